/* What the parts of the upload side share; nobody else includes this. All of it belongs to the
 * upload thread.
 *
 *   upload.c         the thread: mail, links' roster, holdings' changes, status
 *   upload_accept.c  the listener and the first frame of what it accepts; dialling back
 *   upload_link.c    one link on which we serve: see upload_link_private.h
 *   upload_rights.c  tickets
 */
#ifndef DAEMON_UPLOAD_INTERNAL_H
#define DAEMON_UPLOAD_INTERNAL_H

#include "daemon/upload.h"

#include <event2/event.h>
#include <stddef.h>
#include <sys/socket.h>
#include <uthash.h>

#include "base/loop.h"
#include "base/name.h"
#include "crypto/identity.h"
#include "crypto/merkle.h"
#include "crypto/ticket.h"
#include "daemon/request_queue.h"
#include "proto/channel.h"
#include "proto/knocks.h"
#include "proto/limits.h"
#include "proto/peer.pb-c.h"
#include "proto/spent.h"

struct channel;
struct credentials;
struct greeting;
struct listener;
struct serve_link;
struct stream;
struct watched;

/* Blocks that one read job takes at most: 256 KiB, enough for full TLS records and long writes,
 * small enough to stay in the processor's cache between reading, hashing and encrypting. */
#define UPLOAD_JOB_BLOCKS 16

/* Memory for one job's blocks, 1, 2, 4, 8 or 16: who asks for single blocks makes us hold no more than he asks for. Recycled, as a
 * fresh 256 KiB costs 64 page faults. */
struct upload_buffer {
    struct upload_buffer *next;
    struct upload *upload;
    struct serve_link *link; /* whose frames hold it */
    unsigned size;           /* it has room for 1 << size blocks */
    bool urgent;
    uint32_t users; /* frames that are still queued */
    uint32_t lent;  /* bytes of theirs, all together */
    uint8_t bytes[];
};
#define UPLOAD_BUFFER_SIZES 5
/* How often it is looked whether those who were given too many answers have read them. */
#define UPLOAD_HELD_NS      (20 * NS_PER_MS)
#define UPLOAD_SPARE_BLOCKS 512 /* 8 MiB are kept, of all sizes together */

/* From which epoch on an account's ("": everybody's) tickets count. */
struct barred {
    char account[ACCOUNT_BYTES_MAX + 1];
    uint64_t epoch;
    uint64_t before; /* the epoch that counted before, and still does in the grace */
    int64_t at;      /* when it was heard */
    UT_hash_handle hh;
};

struct upload {
    struct daemon *daemon;
    struct loop *loop;
    struct credentials *credentials;
    struct listener *listener;
    struct greeting
        *greetings; /* connections whose first frame has not come; doubly linked by utlist */
    unsigned greeting_count, dial_count; /* accepted ones; those that dial back */
    struct knocks *knocks;
    struct spent *spent;      /* of their bursts, by links that have ended */
    struct serve_link *links; /* doubly linked by utlist; pumped in this order */
    unsigned link_count;
    struct watched *watched; /* upload_link.c: who is told what comes of which content */
    /* upload_rights.c */
    uint8_t ticket_key[TICKET_KEY_SIZE];
    bool has_ticket_key;
    int64_t tracker_ahead; /* the tracker's clock less the monotonic one, seconds */
    struct barred *barred;
    struct upload_buffer *spare[UPLOAD_BUFFER_SIZES];
    unsigned spare_blocks;
    struct channel_pool queued; /* of all links that are served */
    size_t reading;             /* bytes of blocks that jobs read for them */
    struct timer *held;         /* pending: a link's input waits for its answers to leave */
    struct timer *tick;         /* once a second: rates, pings, idle links */
    uint64_t total;             /* content bytes sent */
    uint64_t rate_total, rate;
    int64_t rate_at;
    struct choker *choker;
    struct timer *refill; /* pending: the choker holds something back, until refill_at */
    int64_t refill_at;
    bool pumping;
    int64_t pumped_at;
    int64_t crowd_until;                       /* many are sent to at once, or were lately */
    int64_t own_delay, delay_now, delay_since; /* the line's own queue: upload_blocks.c */
    bool delay_heard;                          /* own_delay is to be told to the choker */
    bool socket_waits;    /* the choker was told of bytes in sockets, whose leaving is no event */
    uint32_t limits_seen; /* limits_version when the choker was told */
    struct timer *stop_timer;
    bool stopping; /* nobody is let in, nothing is begun */
};

/* Who is at the other end. */
struct remote {
    char account[65];
    uint8_t device[DEVICE_ID_SIZE];
    char address[LIMIT_ADDRESS];
    int64_t valid_until; /* its certificate, seconds since 1970 */
};

/* --- upload_accept.c --- */
/* Binds. NULL and *fault. `settings` is "HOST:PORT"; the port chosen before is tried first if it is
 * 0. */
struct listener *listener_new(struct upload *, const char *home, const char *listen,
                              const char **fault);
uint16_t listener_port(const struct listener *);
void listener_start(struct listener *); /* on the thread */
void listener_stop(struct listener *);  /* on the thread: nobody is accepted any more */
void listener_free(struct listener *);
void greeting_close_all(struct upload *);
void upload_dial(struct upload *, const uint8_t device[DEVICE_ID_SIZE], char **addresses);

/* --- upload.c --- */
/* NULL if that device may be served; else why not, and what to tell it; the text lives until the next call. */
const char *upload_refuses(struct upload *, const struct certificate_subject *,
                           Peer__Farewell *farewell);
struct upload_buffer *upload_buffer_get(struct upload *, uint32_t blocks);
void upload_buffer_put(struct upload_buffer *);
/* Begins what the choker says may go now. Call it after whatever makes room or brings requests. */
void upload_pump(struct upload *);
void upload_link_gone(struct upload *); /* a link has left the list */
/* That fetcher broke the protocol: all links of its device end if it did so too often. */
void upload_strike(struct upload *, const struct remote *, const char *what);

/* --- upload_rights.c --- */
void upload_rights_free(struct upload *);

/* --- upload_link.c --- */
/* A link whose fetcher has said Hello; answers that if `answer` (else ours has gone out). Owns the
 * stream from now on. */
void serve_link_new(struct upload *, struct stream *, const struct remote *, bool answer);
void serve_link_close(struct serve_link *, int farewell,
                      const char *why); /* says Goodbye, then ends */
/* The choker's view of a link, and its decision. */
uint32_t serve_link_pending(void *link);
uint32_t serve_link_room(void *link, bool urgent);
void serve_link_suggest(void *link, uint32_t file, const uint32_t *pieces, uint32_t count);
void serve_link_start(struct serve_link *, struct block_run, bool urgent);
/* Whether its input still waits for its answers to leave; looks anew. */
bool serve_link_held(struct serve_link *);
/* Tells the choker the limits of the contents that are open. */
void serve_link_limits(struct serve_link *, int64_t now);
/* Tells all fetchers that have this content open. */
void serve_holding_changed(struct upload *, struct content *);
void serve_link_tick(struct serve_link *, int64_t now);
void serve_link_free(struct serve_link *); /* at once */
const struct remote *serve_link_remote(const struct serve_link *);
void serve_link_status(const struct serve_link *, struct link_status *);
/* Calls `each` for every open file. */
void serve_link_files(const struct serve_link *,
                      void (*each)(void *arg, const struct content *, uint64_t rate), void *arg);
struct serve_link *serve_link_next(const struct serve_link *);

#endif
