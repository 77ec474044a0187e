/* The lab's network: every host's link, and the packets on their way from one to another.
 *
 * A packet from A to B passes A's uplink (queue, rate, delay, loss) and then B's downlink, so a round trip
 * between two hosts takes the four delays. The core between the links is infinitely fast and full mesh. */
#ifndef LAB_NET_H
#define LAB_NET_H

#include "tests/lab/host.h"

struct net {
    struct host *hosts; /* [count]; host N at N - 1 */
    unsigned count;
    struct packet *spare; /* packets to use again */
    uint64_t astray;      /* packets for no host of ours */
    uint64_t refused;     /* connections not let through to a closed host */
    int64_t late_ns; /* the worst delivery since the counters were cleared: this machine was busy */
};

/* `hosts` stay the caller's and must outlive the net. */
void net_init(struct net *, struct host *hosts, unsigned count);

/* Takes the packets that the host has sent, 64 at most. `late_ns` is by how much the caller woke later than it
 * meant to. */
void net_receive(struct net *, struct host *, int64_t now_ns, int64_t late_ns);

/* Moves on whatever is due by now. Returns when to come again; INT64_MAX if nothing is on its way. */
int64_t net_run(struct net *, int64_t now_ns);

void net_clear_counters(struct net *);

#endif
