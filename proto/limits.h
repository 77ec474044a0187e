/* Every maximum and timeout that a wire can meet, with its reason. Nothing else may invent one.
 *
 * Sizes are bytes unless named otherwise; times are nanoseconds on the monotonic clock. */
#ifndef PROTO_LIMITS_H
#define PROTO_LIMITS_H

#include "base/clock.h"

/* --- framing, all protocols --------------------------------------------------------------------------- */
#define LIMIT_FRAME_MESSAGE                                                                        \
    (1u << 20) /* a packed message: a page of a large directory, a batch of catalogue changes */
#define LIMIT_FRAME_PAYLOAD                                                                        \
    (1u << 20) /* raw bytes behind it: hashes of 32768 nodes; a block is only 16 KiB */
#define LIMIT_STRANGER_FRAME                                                                       \
    (64u << 10) /* a packed message before the other end is known to be a member */
#define LIMIT_SEND_QUEUE                                                                           \
    (8u << 20) /* bytes queued to one receiver who does not read: then the channel ends */
#define LIMIT_FRAME_FDS 2 /* file descriptors beside one local message: data file and bitmap */

/* --- connections -------------------------------------------------------------------------------------- */
#define LIMIT_HANDSHAKE_NS (10 * NS_PER_S)  /* TLS; 100 times what a slow machine far away needs */
#define LIMIT_HELLO_NS     (10 * NS_PER_S)  /* from the end of TLS to the first message */
#define LIMIT_LOGIN_NS     (120 * NS_PER_S) /* a connection without certificate lives no longer */
#define LIMIT_PEER_IDLE_NS                                                                         \
    (120 * NS_PER_S) /* a peer link without any frame; PING goes at a third */
#define LIMIT_TRACKER_IDLE_NS                                                                      \
    (180 * NS_PER_S) /* a member's link to the tracker; PING goes at a third */
#define LIMIT_FINISH_NS                                                                            \
    (5 * NS_PER_S) /* a last word that is not taken: the channel ends without it */
#define LIMIT_CONNECT_NS            (8 * NS_PER_S) /* dialling one address */
#define LIMIT_HALF_OPEN             64 /* handshakes under way on one listener; each costs 2.6 ms of RSA */
#define LIMIT_HALF_OPEN_SOURCE      8        /* of which from one address */
#define LIMIT_HANDSHAKE_FAIR_NS     NS_PER_S /* a handshake may take so long although others wait */
#define LIMIT_WAITING               1024 /* accepted by the tracker, and waiting for one of those places */
#define LIMIT_KNOCKS                256 /* handshakes that one address may begin at once: 0.7 s of RSA */
#define LIMIT_KNOCK_NS              (NS_PER_S / 16) /* and one more each: 4 % of a core */
#define LIMIT_KNOCK_FINE            3    /* handshakes that one without a good end costs besides */
#define LIMIT_KNOCK_SOURCES         4096 /* addresses of which this is remembered: 100 bytes each */
#define LIMIT_PEER_LINKS            512 /* links that one daemon serves, and as many that it fetches on */
#define LIMIT_PEER_LINKS_DEVICE     4 /* of which from one device, so a stuck one can be replaced */
#define LIMIT_PEER_LINKS_ACCOUNT    32    /* of which from the devices of one account */
#define LIMIT_TRACKER_LINKS         16384 /* connections to one tracker: 14 to 30 KiB each */
#define LIMIT_TRACKER_LINKS_SOURCE  512   /* of which from one address (an office behind one NAT) */
#define LIMIT_TRACKER_LINKS_ACCOUNT 64    /* of which from the devices of one account */
#define LIMIT_LOCAL_CLIENTS         64    /* p2pfs and p2pctl processes on one daemon */
#define LIMIT_DESCRIPTORS_KEPT                                                                     \
    64 /* descriptors that strangers' connections leave for files, databases, local clients */
#define LIMIT_STALL_NS                                                                             \
    (60 * NS_PER_S) /* bytes are queued for a receiver and it takes none: the link ends */

/* --- what handling their input may cost: of each second of a loop's thread, and at once ------------------ */
#define LIMIT_PEER_INPUT_NS                                                                        \
    (50 * NS_PER_MS) /* a link that is served: 20 times what 1 Gbit/s needs */
#define LIMIT_PEER_BURST_NS     (100 * NS_PER_MS)
#define LIMIT_MEMBER_INPUT_NS   (100 * NS_PER_MS) /* a member at the tracker */
#define LIMIT_MEMBER_BURST_NS   NS_PER_S /* 200000 files announced from scratch take half of it */
#define LIMIT_STRANGER_INPUT_NS (10 * NS_PER_MS) /* who has no certificate */
#define LIMIT_STRANGER_BURST_NS (20 * NS_PER_MS)

#define LIMIT_ANSWERS_AHEAD                                                                        \
    (3u << 20) /* answers queued for somebody who does not read them; then requests wait */

/* --- the peer protocol -------------------------------------------------------------------------------- */
#define LIMIT_OPEN_FILES     4096 /* files open on one link */
#define LIMIT_REQUEST_BLOCKS 1024 /* blocks in one Request: 16 MiB */
#define LIMIT_QUEUED_BLOCKS                                                                        \
    4096 /* blocks asked for and not yet served on one link: 64 MiB, the product
                                                of 1 Gbit/s and half a second */
#define LIMIT_HASHES      8192 /* hashes in one answer: 256 KiB */
#define LIMIT_HAVE_PIECES 4096 /* pieces in one Have */
#define LIMIT_HELLO       1024 /* bytes of a packed Hello, the first frame of a link */
#define LIMIT_DIAL_BACKS  32   /* that one daemon has under way for others */
#define LIMIT_GAPS_TOLD   16 /* Rejects for one Request; what is behind them is refused in one go */
#define LIMIT_AGENT       64 /* bytes of a program's name and version in a Hello */
#define LIMIT_REASON      256 /* bytes of a reason for people */
#define LIMIT_REQUEST_NS                                                                           \
    (20 * NS_PER_S) /* a requested block that has not come: asked for elsewhere */
#define LIMIT_BROKEN_CLAIMS                                                                        \
    8 /* rejects of pieces that were announced, before the claims are ignored */
#define LIMIT_BAN_NS (3600 * NS_PER_S) /* a device that did harm on purpose is not spoken to */
#define LIMIT_STRIKES                                                                              \
    3 /* breaches of the protocol by one device, any of which could be a mistake, within ... */
#define LIMIT_STRIKES_NS (600 * NS_PER_S) /* ... this, and it counts as on purpose */
#define LIMIT_BANS       4096             /* devices of which that is remembered */

/* --- the tracker protocol ------------------------------------------------------------------------------ */
#define LIMIT_ANNOUNCE_FILES 1024   /* files in one Announce */
#define LIMIT_ANNOUNCED      200000 /* files that one device may hold announced */
#define LIMIT_ANNOUNCED_PIECES                                                                     \
    (16u << 20)              /* pieces of its incomplete files: 2 MiB of maps, 32 MiB of counts */
#define LIMIT_ADDRESSES   16 /* addresses of one device */
#define LIMIT_ADDRESS     64 /* bytes of one: "[v6%scope]:port" */
#define LIMIT_DIALS_ASKED 64 /* dial-backs that one member may ask for in a second */
#define LIMIT_PEERS                                                                                \
    30 /* peers in one answer: 16 to 30 neighbours spread a file as well as all would */
#define LIMIT_WANTED         4096       /* files for which one device waits for peers */
#define LIMIT_OPS            256        /* catalogue operations in one message */
#define LIMIT_CHANGES        512        /* catalogue entries in one message */
#define LIMIT_ENTRIES        (4u << 20) /* entries in one swarm's catalogue */
#define LIMIT_PASSWORD       1024       /* bytes; longer ones only cost time */
#define LIMIT_PASSWORD_MIN   8          /* bytes; length is all that is asked of a password */
#define LIMIT_EMAIL          254        /* RFC 5321 */
#define LIMIT_SYMLINK        4095 /* bytes of a symbolic link's target: PATH_MAX less the NUL */
#define LIMIT_AUDIT_ROWS     500  /* rows of the audit log in one answer: up to 700 bytes each */
#define LIMIT_REQUESTS       1024 /* unanswered requests of one member */

#define LIMIT_GROUPS         4096 /* in one swarm */
#define LIMIT_ACCOUNT_GROUPS 64   /* of one account: looked at for every folder it is judged in */
#define LIMIT_RULES_SHOWN    4096 /* rules in one answer */
#define LIMIT_TICKET_GRACE_NS                                                                      \
    (2 *                                                                                           \
     NS_PER_S) /* after rights changed, for a new ticket of who still may: several round trips */

/* --- the local protocol -------------------------------------------------------------------------------- */
#define LIMIT_LIST_ENTRIES 1024  /* entries in one page of a directory */
#define LIMIT_HANDLES      65536 /* open files of one mount */
#define LIMIT_WANTS        65536 /* parked reads of one mount */
#define LIMIT_PATH         16384 /* bytes of a path inside the swarm: 64 levels of 255 */
#define LIMIT_CTL_ANSWER_NS                                                                        \
    (30 * NS_PER_S) /* p2pctl waits for an answer out of p2pd's own memory no longer */
#define LIMIT_CTL_TRACKER_NS                                                                       \
    (150 * NS_PER_S) /* nor for one of the tracker: what LIMIT_LOGIN_NS allows, and dialling */

#endif
