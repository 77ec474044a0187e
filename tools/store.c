/* What is kept here: evict. */
#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/number.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
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
