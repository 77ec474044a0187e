/* Rate limits: limit.
 *
 * Owns nothing; p2pd keeps the limits. Main thread. */
#include <stdio.h>

#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/ctl.h"
#include "tools/json.h"
#include "tools/verbs.h"

static void print_rate(const char *name, uint64_t rate)
{
    char text[NUMBER_TEXT_MAX];

    if (rate == 0)
        printf("%-5s unlimited\n", name);
    else
        printf("%-5s %s/s\n", name, bytes_format(text, rate));
}

int limit_rates(const struct ctl *ctl)
{
    static char none[] = "";
    Local__Limit message = LOCAL__LIMIT__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_LIMIT,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_LIMITS_ARE,
        .answer = &local__limits__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL;
    const Local__Limits *limits = NULL;

    if (paths != NULL) {
        message.path = ctl->argument_count > 0 ? paths[0] : none;
        message.set_up = ctl->up_given;
        message.set_down = ctl->down_given;
        message.up = ctl->up;
        message.down = ctl->down;
        limits = ctl_ask(client, &request);
    }
    bool good = limits != NULL;
    if (good && ctl->json) {
        json_print(json_from_message(&limits->base), true);
    } else if (good) {
        print_rate("up", limits->up);
        print_rate("down", limits->down);
    }
    ctl_free_paths(ctl, paths);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}
