/* Fetching whole files: get (waits and shows how far it is), pin, unpin.
 *
 * Progress goes to standard error: a bar that is drawn over and over on a terminal, else a plain line
 * every few seconds. Why it does not go on is a line of its own, said once for each reason. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/progress.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define PLAIN_NS      (5 * NS_PER_S) /* between plain lines */
#define SLOW_START_NS (NS_PER_S / 2) /* what is done before that needs no progress */
#define CLEAR_LINE    "\r\033[K"

struct fetch {
    bool terminal;
    bool drawn;          /* a bar stands on the terminal's last line */
    int64_t began, said; /* clock_now() */
    char *trouble;       /* the one said last; malloc'ed */
    bool any;            /* there was a notice at all */
    uint64_t size, have, first_have;
    uint32_t files;
};

static void remove_bar(struct fetch *f)
{
    if (f->drawn)
        fputs(CLEAR_LINE, stderr);
    f->drawn = false;
}

static void say_trouble(struct fetch *f, const char *trouble)
{
    if (strcmp(trouble, f->trouble != NULL ? f->trouble : "") == 0)
        return;
    free(f->trouble);
    f->trouble = xstrdup(trouble);
    if (*trouble == '\0')
        return;
    remove_bar(f);
    char *clean = text_escape(trouble);
    fprintf(stderr, "waiting: %s\n", clean);
    free(clean);
}

static void show(struct fetch *f, const Local__Progress *p)
{
    int64_t now = clock_now();

    if (!f->any)
        f->first_have = p->have;
    f->any = true;
    f->size = p->size;
    f->have = p->have;
    f->files = p->files;
    if (now - f->began < SLOW_START_NS)
        return;
    say_trouble(f, p->trouble);
    if (!f->terminal && now - f->said < PLAIN_NS)
        return;
    f->said = now;
    char *line = progress_line(p, f->terminal ? terminal_width(STDERR_FILENO) - 1 : 0);
    fprintf(stderr, f->terminal ? CLEAR_LINE "%s" : "%s\n", line);
    fflush(stderr);
    f->drawn = f->terminal;
    free(line);
}

static void print_result(const struct fetch *f, const struct ctl *ctl)
{
    char bytes[NUMBER_TEXT_MAX], rate[NUMBER_TEXT_MAX], took[NUMBER_TEXT_MAX];
    int64_t ns = clock_now() - f->began;
    uint64_t fetched = f->size - (f->first_have < f->size ? f->first_have : f->size);

    if (ctl->json) {
        json_t *object =
            json_pack("{s:b, s:I}", "done", 1, "milliseconds", (json_int_t)(ns / NS_PER_MS));
        if (f->any) {
            json_object_set_new(object, "files", json_integer(f->files));
            json_object_set_new(object, "size", json_integer((json_int_t)f->size));
            json_object_set_new(object, "fetched", json_integer((json_int_t)fetched));
        }
        json_print(object, true);
    } else if (fetched == 0) {
        puts("All of it is here.");
    } else if (ns < NS_PER_S) {
        printf("Fetched %s; all of it is here.\n", bytes_format(bytes, fetched));
    } else {
        double seconds = (double)ns / (double)NS_PER_S;
        printf("Fetched %s in %s (%s/s); all of it is here.\n", bytes_format(bytes, fetched),
               duration_format(took, (uint64_t)(seconds + 0.5)),
               bytes_format(rate, (uint64_t)((double)fetched / seconds)));
    }
}

/* Until the answer: true if it is all here. */
static bool wait_for_all(struct client *client, const struct client_request *request,
                         struct fetch *f)
{
    static const struct client_notice progress = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_PROGRESS,
        .message = &local__progress__descriptor,
    };
    struct client_fault fault;
    const void *message;

    for (;;) {
        switch (client_next(client, request, &progress, request->timeout_ns, &message, &fault)) {
        case CLIENT_NOTICE:
            show(f, message);
            break;
        case CLIENT_ANSWER:
            remove_bar(f);
            return true;
        case CLIENT_TIMEOUT:
        case CLIENT_INTERRUPTED:
            break;
        case CLIENT_FAULT:
            remove_bar(f);
            if (fault.lost)
                log_error("%s; what came is kept: run this again to go on", fault.text);
            else
                log_error("%s", fault.text);
            return false;
        }
    }
}

/* Asks for what `message` names, and unless it says no_wait stays until it is here. */
static bool ask_for(struct client *client, const Local__Get *message, struct fetch *f)
{
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_GET,
        .message = &message->base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client_fault fault;
    bool good = false;

    f->terminal = isatty(STDERR_FILENO);
    f->began = f->said = clock_now();
    if (message->no_wait)
        good = ctl_ask(client, &request) != NULL;
    else if (client_send(client, &request, &fault))
        good = wait_for_all(client, &request, f);
    else
        log_error("%s", fault.text);
    free(f->trouble);
    return good;
}

static int fetch(const struct ctl *ctl, bool pin, bool wait)
{
    Local__Get message = LOCAL__GET__INIT;
    struct fetch f = {0};
    struct client *client = ctl_open(ctl, false);
    bool good = false;

    message.paths = client != NULL ? ctl_paths(ctl) : NULL;
    message.n_paths = (size_t)ctl->argument_count;
    message.pin = pin;
    message.no_wait = !wait;
    if (message.paths != NULL)
        good = ask_for(client, &message, &f);
    if (good && wait)
        print_result(&f, ctl);
    ctl_free_paths(ctl, message.paths);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}

bool fetch_paths(const struct ctl *ctl, char **paths, size_t count)
{
    Local__Get message = LOCAL__GET__INIT;
    struct fetch f = {0};
    struct client *client = ctl_open(ctl, false);

    message.paths = paths;
    message.n_paths = count;
    bool good = client != NULL && ask_for(client, &message, &f);
    client_free(client);
    return good;
}

int fetch_get(const struct ctl *ctl)
{
    return fetch(ctl, false, true);
}

int fetch_pin(const struct ctl *ctl)
{
    int status = fetch(ctl, true, false);

    return status != CTL_DONE
               ? status
               : ctl_finish(ctl, true, "Pinned. What is missing is fetched in the background.");
}

int fetch_unpin(const struct ctl *ctl)
{
    Local__Paths message = LOCAL__PATHS__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_UNPIN,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL;
    bool good = false;

    if (paths != NULL) {
        message.paths = paths;
        message.n_paths = (size_t)ctl->argument_count;
        good = ctl_ask(client, &request) != NULL;
    }
    ctl_free_paths(ctl, paths);
    client_free(client);
    return ctl_finish(ctl, good, "No longer pinned. What is here stays until the space is needed.");
}
