/* Network addresses: what members announce. */
#ifndef TRACKER_ADDRESS_H
#define TRACKER_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "proto/limits.h"

struct address {
    uint8_t ip[16]; /* IPv4 as ::ffff:a.b.c.d */
    char text[LIMIT_ADDRESS + 1];
};

/* "192.0.2.1:7701", "[2001:db8::1]:7701", "[fe80::1%eth0]:7701": numeric, with a port that is not
 * 0, and one that can be dialled (no multicast, no unspecified address). False for anything else.
 */
bool address_parse(struct address *out, const char *text);
bool address_is_loopback(const struct address *);
/* Bits that both begin with: the nearer, the more. IPv4 and IPv6 have none in common. */
unsigned address_nearness(const struct address *, const struct address *);

#endif
