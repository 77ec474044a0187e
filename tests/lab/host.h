/* A host of the lab: a network namespace whose only way out is a TUN device that this program holds.
 *
 * Host N has the addresses 10.77.0.N and fd77::N. Nothing of a host has a name outside the process: when
 * its descriptors are closed, in order or because the process was killed, the device goes, and the
 * namespace with the last process in it. */
#ifndef LAB_HOST_H
#define LAB_HOST_H

#include <net/if.h>
#include <stddef.h>
#include <sys/types.h>

#include "tests/lab/line.h"

#define HOSTS_MOST 250

struct host {
    unsigned number; /* from 1 */
    int tun, netns;  /* descriptors; tun does not block */
    dev_t netns_device;
    ino_t netns_inode;
    struct link_setting setting;
    struct line up, down;
};

/* Makes the namespace and the device, gives it its addresses and brings it up. The calling thread is in
 * its own namespace again afterwards. 0, or -1 with one line logged (and then the program should end). */
int host_open(struct host *, unsigned number, const struct link_setting *, uint64_t seed);

/* The number of the host that an IP packet is for; 0 if for none, or if it is no IP packet. */
unsigned host_of_packet(const uint8_t *packet, size_t length);

/* True if the packet would open a TCP connection: SYN without ACK. */
bool packet_dials(const uint8_t *packet, size_t length);

/* Kills whatever still runs in the hosts' namespaces, and waits for its end. */
void hosts_sweep(const struct host *hosts, unsigned count);

#endif
