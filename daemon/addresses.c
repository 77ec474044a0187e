/* Changes of addresses and interfaces, from a netlink socket.
 *
 * Owns the socket. What has changed is not read out of the messages: who is told looks at all addresses again, so a
 * message that was lost (ENOBUFS) does no harm. Thread: the loop's. */
#include "daemon/addresses.h"

#include <errno.h>
#include <event2/event.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"

#define SETTLE_NS (300 * NS_PER_MS) /* a network that comes up says so several times */

struct addresses {
    int fd;
    struct event *event;
    struct timer *settle;
    void (*changed)(void *arg);
    void *arg;
};

static void on_settled(void *arg)
{
    struct addresses *a = arg;

    a->changed(a->arg);
}

static void on_message(evutil_socket_t fd, short what, void *arg)
{
    struct addresses *a = arg;
    char buffer[8192];

    (void)what;
    while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0 || errno == ENOBUFS)
        if (!timer_pending(a->settle))
            timer_set(a->settle, SETTLE_NS);
}

struct addresses *addresses_watch(struct loop *loop, void (*changed)(void *arg), void *arg)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK,
                                  .nl_groups =
                                      RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        log_debug("changes of addresses are not told: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    struct addresses *a = xcalloc(1, sizeof *a);
    a->fd = fd;
    a->changed = changed;
    a->arg = arg;
    a->settle = timer_new(loop, on_settled, a);
    a->event = event_new(loop_base(loop), fd, EV_READ | EV_PERSIST, on_message, a);
    CHECK(a->event != NULL && event_add(a->event, NULL) == 0);
    return a;
}

void addresses_free(struct addresses *a)
{
    if (a == NULL)
        return;
    event_free(a->event);
    timer_free(a->settle);
    close(a->fd);
    free(a);
}
