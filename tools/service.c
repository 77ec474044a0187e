/* The daemon's life: start, stop.
 *
 * Leaves finding and running p2pd to base/spawn.h. `stop` waits until the process is gone, so that a
 * script can go on with what needs that. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/verbs.h"

int service_start(const struct ctl *ctl)
{
    struct client_fault fault;
    struct client *client = client_open(ctl->home, &fault);
    bool started = client == NULL && fault.absent;

    if (client == NULL && !started) {
        log_error("%s", fault.text);
        return CTL_FAILED;
    }
    if (started)
        client = ctl_open(ctl, true);
    if (client == NULL)
        return CTL_FAILED;
    if (ctl->json)
        json_print(
            json_pack("{s:b, s:I}", "started", (int)started, "pid", (json_int_t)client_pid(client)),
            true);
    else
        printf("p2pd %s (pid %u)\n", started ? "has started" : "is already running",
               client_pid(client));
    client_free(client);
    return CTL_DONE;
}

/* False if the process is still there after a while. */
static bool wait_for_end(int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int count;

    if (pidfd < 0)
        return true; /* it went before we looked */
    do
        count = poll(&p, 1, (int)(LIMIT_CTL_ANSWER_NS / NS_PER_MS));
    while (count < 0 && errno == EINTR);
    return count > 0;
}

static int say_stopped(const struct ctl *ctl, bool ran)
{
    if (ctl->json)
        json_print(json_pack("{s:b}", "stopped", (int)ran), true);
    else
        puts(ran ? "p2pd has ended" : "p2pd is not running");
    return CTL_DONE;
}

int service_stop(const struct ctl *ctl)
{
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_STOP,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client_fault fault;
    struct client *client = client_open(ctl->home, &fault);

    if (client == NULL && fault.absent)
        return say_stopped(ctl, false);
    if (client == NULL) {
        log_error("%s", fault.text);
        return CTL_FAILED;
    }
    uint32_t pid = client_pid(client);
    int pidfd = pid > 0 ? pidfd_open((pid_t)pid, 0) : -1;
    bool good = client_request(client, &request, &fault) != NULL || fault.lost;
    client_free(client);
    if (!good)
        log_error("%s", fault.text);
    else if (!wait_for_end(pidfd)) {
        log_error("p2pd (pid %u) was told to stop and has not ended yet", pid);
        good = false;
    }
    if (pidfd >= 0)
        close(pidfd);
    return good ? say_stopped(ctl, true) : CTL_FAILED;
}
