/* What is kept here: evict, check. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define EVICT_NS (3600 * NS_PER_S) /* the tracker is asked about each file, and the disk works */

static void print_evicted(const struct ctl *ctl, const Local__Evicted *e)
{
    char bytes[NUMBER_TEXT_MAX];

    if (ctl->json)
        json_print(json_pack("{s:b, s:I, s:I, s:I}", "done", e->kept == 0, "files",
                             (json_int_t)e->files, "bytes", (json_int_t)e->bytes, "kept",
                             (json_int_t)e->kept),
                   true);
    else if (e->files == 0 && e->kept == 0)
        puts("Nothing of it is here.");
    else if (e->files > 0)
        printf("Evicted %s of %" PRIu32 " file%s.\n", bytes_format(bytes, e->bytes), e->files,
               e->files == 1 ? "" : "s");
}

int store_evict(const struct ctl *ctl)
{
    Local__Paths message = LOCAL__PATHS__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_EVICT,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_EVICTED,
        .answer = &local__evicted__descriptor,
        .timeout_ns = EVICT_NS,
    };
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL;
    const Local__Evicted *evicted = NULL;
    bool good = false;

    if (paths != NULL) {
        message.paths = paths;
        message.n_paths = (size_t)ctl->argument_count;
        evicted = ctl_ask(client, &request);
    }
    if (evicted != NULL) {
        print_evicted(ctl, evicted);
        good = evicted->kept == 0;
        if (evicted->kept > 1)
            log_error("%s; %" PRIu32 " more stay", evicted->why, evicted->kept - 1);
        else if (evicted->kept == 1)
            log_error("%s", evicted->why);
    }
    ctl_free_paths(ctl, paths);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}

/* --- check -------------------------------------------------------------------------------------- */
static void print_checked(const struct ctl *ctl, const Local__Checked *c, bool repaired)
{
    char bytes[NUMBER_TEXT_MAX];

    if (ctl->json) {
        json_t *damaged = json_array();
        for (size_t i = 0; i < c->n_damaged; i++)
            json_array_append_new(damaged, json_pack("{s:s, s:s, s:I}", "path", c->damaged[i]->path,
                                                     "root", c->damaged[i]->root, "blocks",
                                                     (json_int_t)c->damaged[i]->blocks));
        json_t *kept = json_array();
        for (size_t i = 0; i < c->n_kept; i++)
            json_array_append_new(kept,
                                  json_pack("{s:I, s:I}", "number", (json_int_t)c->kept[i]->number,
                                            "bytes", (json_int_t)c->kept[i]->size));
        json_print(json_pack("{s:I, s:I, s:I, s:b, s:o, s:o}", "files", (json_int_t)c->files,
                             "bytes", (json_int_t)c->bytes, "failed", (json_int_t)c->failed,
                             "repaired", repaired, "damaged", damaged, "kept", kept),
                   true);
        return;
    }
    for (size_t i = 0; i < c->n_damaged; i++) {
        const Local__Damaged *one = c->damaged[i];
        char *clean = text_escape(*one->path != '\0' ? one->path : one->root);
        printf("%s: %" PRIu64 " damaged block%s%s\n", clean, one->blocks,
               one->blocks == 1 ? "" : "s", repaired ? ", fetched again" : "");
        free(clean);
    }
    printf("%" PRIu32 " file%s checked, %s right", c->files, c->files == 1 ? "" : "s",
           bytes_format(bytes, c->bytes));
    if (c->n_damaged > 0)
        printf(", %zu damaged", c->n_damaged);
    if (c->failed > 0)
        printf(", %" PRIu32 " could not be read", c->failed);
    puts(".");
    for (size_t i = 0; i < c->n_kept; i++)
        printf("kept-%" PRIu64 ": %s, was being written; its name is lost%s\n", c->kept[i]->number,
               bytes_format(bytes, c->kept[i]->size),
               ctl->recover != NULL ? "" : " (--recover DIR copies it out)");
}

/* The folder that is to take what is recovered, from "/" on, malloc'ed; NULL: the reason has been said. */
static char *recovery_folder(const char *name)
{
    if (mkdir(name, 0700) < 0 && errno != EEXIST) {
        log_error("%s cannot be made: %s", name, strerror(errno));
        return NULL;
    }
    char *path = realpath(name, NULL);
    struct stat status;
    if (path == NULL || stat(path, &status) < 0 || !S_ISDIR(status.st_mode))
        log_error("%s is no folder that can be used", name);
    else if (getxattr(path, "user.p2p.path", NULL, 0) >= 0)
        log_error("%s lies in the swarm; name a folder outside the mount", name);
    else
        return path;
    free(path);
    return NULL;
}

/* Files without a name, copied into `folder`. True if all are there. */
static bool recover_kept(struct client *client, const char *folder, uint64_t number)
{
    Local__CopyKept message = LOCAL__COPY_KEPT__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_COPY_KEPT,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = EVICT_NS,
    };
    struct stat status;

    message.number = number;
    message.path = xasprintf("%s/kept-%" PRIu64, folder, number);
    bool there = lstat(message.path, &status) == 0, good = false;
    if (there)
        log_error("%s is there already and is left alone", message.path);
    else
        good = ctl_ask(client, &request) != NULL;
    if (!good && !there)
        log_error("kept-%" PRIu64 " is not copied", number);
    free(message.path);
    return good;
}

/* Fetches what was damaged and still has a name. True if there is nothing left to mend. */
static bool repair(const struct ctl *ctl, const Local__Checked *checked)
{
    char **paths = xcalloc(checked->n_damaged + 1, sizeof *paths);
    size_t count = 0;

    for (size_t i = 0; i < checked->n_damaged; i++)
        if (*checked->damaged[i]->path != '\0')
            paths[count++] = checked->damaged[i]->path;
    bool good = count == 0 || fetch_paths(ctl, paths, count);
    free(paths);
    return good;
}

static int pause_or_resume(struct client *client, const struct ctl *ctl)
{
    Local__Check message = LOCAL__CHECK__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_CHECK,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = EVICT_NS,
    };

    message.pause = ctl->pause;
    message.resume = ctl->resume;
    bool good = ctl_ask(client, &request) != NULL;
    if (good && ctl->json)
        json_print(json_pack("{s:b}", "done", 1), true);
    else if (good)
        puts(ctl->pause ? "Paused." : "Resumed.");
    return good ? CTL_DONE : CTL_FAILED;
}

int store_check(const struct ctl *ctl)
{
    Local__Check message = LOCAL__CHECK__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_CHECK,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_CHECKED,
        .answer = &local__checked__descriptor,
        .timeout_ns = 365 * 24 * EVICT_NS, /* it reads whole disks */
    };
    int status = CTL_FAILED;

    if (ctl->pause + ctl->resume > 0 && (ctl->pause + ctl->resume > 1 || ctl->repair ||
                                         ctl->recover != NULL || ctl->argument_count > 0)) {
        log_error("--pause and --resume stand alone; see p2pctl check --help");
        return CTL_WRONG_USAGE;
    }
    if (ctl->recover != NULL && ctl->argument_count > 0) {
        log_error("--recover takes no path of the swarm: the files have none");
        return CTL_WRONG_USAGE;
    }
    struct client *client = ctl_open(ctl, false);
    if (client == NULL)
        return CTL_FAILED;
    if (ctl->pause || ctl->resume) {
        status = pause_or_resume(client, ctl);
        client_free(client);
        return status;
    }
    char *folder = ctl->recover != NULL ? recovery_folder(ctl->recover) : NULL;
    char **paths = ctl->recover == NULL || folder != NULL ? ctl_paths(ctl) : NULL;
    const Local__Checked *checked = NULL;
    if (paths != NULL) {
        message.paths = paths;
        message.n_paths = (size_t)ctl->argument_count;
        checked = ctl_ask(client, &request);
    }
    if (checked != NULL) {
        bool repaired = ctl->repair && checked->n_damaged > 0 && repair(ctl, checked);
        print_checked(ctl, checked, repaired);
        if (checked->failed == 0 && (checked->n_damaged == 0 || repaired))
            status = CTL_DONE;
        size_t count = folder != NULL ? checked->n_kept : 0;
        uint64_t *numbers =
            xcalloc(count + 1, sizeof *numbers); /* the answer lasts until the next */
        for (size_t i = 0; i < count; i++)
            numbers[i] = checked->kept[i]->number;
        for (size_t i = 0; i < count; i++)
            if (!recover_kept(client, folder, numbers[i]))
                status = CTL_FAILED;
        free(numbers);
    }
    free(folder);
    ctl_free_paths(ctl, paths);
    client_free(client);
    return status;
}
