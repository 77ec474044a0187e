/* Moves packets between the hosts' devices and their lines, in the order of the instants at which things happen.
 *
 * Owns the pool of packets. Two stages: what leaves an uplink is offered to a downlink at the instant of its
 * leaving, what leaves a downlink is written to a device. The earliest of all lines goes first, whatever the
 * hour is, so that a late turn drops and delays exactly what a punctual one would have.
 *
 * The one instant that is not known exactly is when a host sent a packet. If its wire has been idle for less than the
 * time by which this program may have come late, the packet is taken to have come in time to follow without a gap
 * (else a sender at full rate would lose the gaps); else it came now.
 */
#include "tests/lab/net.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/mem.h"

#define BATCH    64
#define AWAKE_NS INT64_C(100000) /* from a packet's arrival to our looking, usually less */

void net_init(struct net *net, struct host *hosts, unsigned count)
{
    *net = (struct net){.hosts = hosts, .count = count};
}

static struct packet *packet_get(struct net *net)
{
    struct packet *packet = net->spare;

    if (packet == NULL)
        return xmalloc(sizeof *packet);
    net->spare = packet->next;
    return packet;
}

static void packet_put(struct net *net, struct packet *packet)
{
    packet->next = net->spare;
    net->spare = packet;
}

/* When the packet just read was sent, as far as can be known. */
static int64_t sent_at(const struct host *host, int64_t now_ns, int64_t late_ns)
{
    int64_t busy = host->up.busy_until_ns;

    return busy < now_ns && busy > now_ns - AWAKE_NS - late_ns ? busy : now_ns;
}

/* True if the packet may go to its host. */
static bool admit(struct net *net, const struct packet *packet)
{
    if (packet->to == 0 || packet->to > net->count) {
        net->astray++;
        return false;
    }
    if (net->hosts[packet->to - 1].setting.closed && packet_dials(packet->data, packet->length)) {
        net->refused++;
        return false;
    }
    return true;
}

void net_receive(struct net *net, struct host *host, int64_t now_ns, int64_t late_ns)
{
    for (int i = 0; i < BATCH; i++) {
        struct packet *packet = packet_get(net);
        ssize_t got = read(host->tun, packet->data, sizeof packet->data);

        if (got <= 0) {
            packet_put(net, packet);
            return;
        }
        packet->length = (uint16_t)got;
        packet->to = host_of_packet(packet->data, packet->length);
        if (!admit(net, packet) || !line_offer(&host->up, packet, sent_at(host, now_ns, late_ns)))
            packet_put(net, packet);
    }
}

static void deliver(struct net *net, struct packet *packet, int64_t now_ns)
{
    const struct host *to = &net->hosts[packet->to - 1];

    if (now_ns - packet->due_ns > net->late_ns)
        net->late_ns = now_ns - packet->due_ns;
    /* A device that takes no packet (its host has brought it down) is a cable that was pulled. */
    if (!packet->lost)
        (void)!write(to->tun, packet->data, packet->length);
    packet_put(net, packet);
}

static void leave_uplink(struct net *net, struct packet *packet)
{
    if (packet->lost || !line_offer(&net->hosts[packet->to - 1].down, packet, packet->due_ns))
        packet_put(net, packet);
}

int64_t net_run(struct net *net, int64_t now_ns)
{
    for (;;) {
        struct line *first = NULL;
        bool up = false;
        int64_t due = INT64_MAX;

        for (unsigned i = 0; i < net->count; i++) {
            struct host *host = &net->hosts[i];
            if (line_due(&host->up) < due) {
                due = line_due(&host->up);
                first = &host->up;
                up = true;
            }
            if (line_due(&host->down) < due) {
                due = line_due(&host->down);
                first = &host->down;
                up = false;
            }
        }
        if (first == NULL || due > now_ns)
            return due;
        if (up)
            leave_uplink(net, line_take(first));
        else
            deliver(net, line_take(first), now_ns);
    }
}

void net_clear_counters(struct net *net)
{
    for (unsigned i = 0; i < net->count; i++) {
        net->hosts[i].up.count = (struct line_count){0};
        net->hosts[i].down.count = (struct line_count){0};
    }
    net->astray = 0;
    net->refused = 0;
    net->late_ns = 0;
}
