/* watch: a line for each change in the tree, as it happens, until it is interrupted or p2pd ends.
 *
 * Lines leave at once, so that a script can read them from a pipe. Main thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define ROOT_SHOWN 8 /* bytes of a root, for people */

static const char *what_name(Local__What what)
{
    static const char *const names[] = {"",           "watching", "created", "changed",
                                        "attributes", "renamed",  "removed", "lost"};

    return what <= LOCAL__WHAT__WHAT_LOST ? names[what] : "";
}

/* "ann created /videos/a.mkv, 1.2 GiB, 0a1b2c3d4e5f6071" */
static void print_line(const Local__Change *c)
{
    char when[32] = "", size[NUMBER_TEXT_MAX], root[2 * ROOT_SHOWN + 1];
    time_t seconds = (time_t)(c->time / NS_PER_S);
    struct tm tm;
    char *path = text_escape(c->path), *from = text_escape(c->from), *who = text_escape(c->who);

    if (localtime_r(&seconds, &tm) != NULL)
        strftime(when, sizeof when, "%H:%M:%S", &tm);
    printf("%s %s %s %s%s%s%s", when, *who != '\0' ? who : "-", what_name(c->what),
           *from != '\0' ? from : "", *from != '\0' ? " -> " : "", path,
           c->kind == LOCAL__KIND__KIND_DIRECTORY ? "/" : "");
    if (c->kind == LOCAL__KIND__KIND_FILE)
        printf(", %s", bytes_format(size, c->size));
    if (c->root.len >= ROOT_SHOWN && c->size > 0) {
        hex_encode(root, c->root.data, ROOT_SHOWN);
        printf(", %s", root);
    }
    putchar('\n');
    free(path);
    free(from);
    free(who);
}

static void say_watching(const char *path)
{
    char *clean = text_escape(path);

    fprintf(stderr, "watching %s; Ctrl-C ends this\n", clean);
    free(clean);
}

static void print_change(const struct ctl *ctl, const Local__Change *c)
{
    if (ctl->json)
        json_print(json_from_message(&c->base), false);
    else if (c->what == LOCAL__WHAT__WHAT_WATCHING)
        say_watching(c->path);
    else if (c->what == LOCAL__WHAT__WHAT_LOST)
        printf("some changes were too many to be told: look anew\n");
    else
        print_line(c);
    fflush(stdout);
}

static int watch(const struct ctl *ctl, struct client *client, char *path)
{
    static const struct client_notice change = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_CHANGE,
        .message = &local__change__descriptor,
    };
    Local__Watch message = LOCAL__WATCH__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_WATCH,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client_fault fault;
    const void *got;

    message.path = path;
    if (!client_send(client, &request, &fault)) {
        log_error("%s", fault.text);
        return CTL_FAILED;
    }
    while (!ferror(stdout)) {
        switch (client_next(client, &request, &change, request.timeout_ns, &got, &fault)) {
        case CLIENT_NOTICE:
            print_change(ctl, got);
            break;
        case CLIENT_ANSWER:
            return CTL_DONE;
        case CLIENT_TIMEOUT:
        case CLIENT_INTERRUPTED:
            break;
        case CLIENT_FAULT:
            log_error("%s", fault.text);
            return CTL_FAILED;
        }
    }
    return CTL_FAILED;
}

int watch_changes(const struct ctl *ctl)
{
    static char root[] = "/";
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL;
    int status = CTL_FAILED;

    if (paths != NULL)
        status = watch(ctl, client, ctl->argument_count > 0 ? paths[0] : root);
    ctl_free_paths(ctl, paths);
    client_free(client);
    return status;
}
