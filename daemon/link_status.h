/* How one link to another device does, as `p2pctl peers` shows it. */
#ifndef DAEMON_LINK_STATUS_H
#define DAEMON_LINK_STATUS_H

#include <stdbool.h>
#include <stdint.h>

struct link_status {
    char account[65];
    uint8_t device[16];
    char address[64];
    uint64_t rate, total, rtt_us; /* bytes a second, bytes */
    uint32_t files, queued;
    bool choked;
    char state[96]; /* "connected", "connecting", "banned: …" */
    uint64_t
        have_bytes; /* of the root asked for: what the other end has; 0 of a link that is served */
};

#endif
