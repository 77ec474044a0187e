/* What the parts of the upload side share; nobody else includes this. All of it belongs to the
 * upload thread.
 *
 *   upload.c         the thread: mail, links' roster, holdings' changes, status
 *   upload_accept.c  the listener and the first frame of what it accepts; dialling back
 *   upload_link.c    one link on which we serve: the protocol, its files, its queue
 */
#ifndef DAEMON_UPLOAD_INTERNAL_H
#define DAEMON_UPLOAD_INTERNAL_H

#include "daemon/upload.h"

#include <event2/event.h>
#include <stddef.h>
#include <sys/socket.h>
#include <uthash.h>

#include "base/loop.h"
#include "crypto/identity.h"
#include "crypto/merkle.h"
#include "proto/limits.h"

struct channel;
struct credentials;
struct greeting;
struct listener;
struct serve_link;
struct stream;

/* Blocks that one read job takes at most: 256 KiB, enough for full TLS records and long writes,
 * small enough to stay in the processor's cache between reading, hashing and encrypting. */
#define UPLOAD_JOB_BLOCKS 16

/* Memory for one job's blocks; recycled, as a fresh 256 KiB costs 64 page faults. */
struct upload_buffer {
    struct upload_buffer *next;
    struct upload *upload;
    struct serve_link *link; /* whose urgent frames hold it, else NULL */
    uint32_t users;          /* frames that are still queued */
    uint8_t bytes[UPLOAD_JOB_BLOCKS * BLOCK_SIZE];
};
#define UPLOAD_SPARE_BUFFERS 32

/* A device that the tracker has shown the door: certificates issued before `at` count no more. */
struct revoked {
    uint8_t device[DEVICE_ID_SIZE];
    int64_t at; /* seconds since 1970 */
    UT_hash_handle hh;
};

struct upload {
    struct daemon *daemon;
    struct loop *loop;
    struct credentials *credentials;
    struct listener *listener;
    struct greeting
        *greetings; /* connections whose first frame has not come; doubly linked by utlist */
    unsigned greeting_count;
    struct serve_link *links; /* doubly linked by utlist */
    unsigned link_count;
    struct revoked *revoked;
    struct upload_buffer *spare;
    unsigned spare_count;
    struct timer *tick; /* once a second: rates, pings, idle links */
    uint64_t total;     /* content bytes sent */
    uint64_t rate_total, rate;
    int64_t rate_at;
    /* the token bucket of settings.rate_up */
    int64_t tokens, tokens_at;
    struct timer *refill;
    bool stopping;
};

/* Who is at the other end. */
struct remote {
    char account[65];
    uint8_t device[DEVICE_ID_SIZE];
    char address[LIMIT_ADDRESS];
};

/* --- upload_accept.c --- */
/* Binds. NULL and *fault. `settings` is "HOST:PORT"; the port chosen before is tried first if it is
 * 0. */
struct listener *listener_new(struct upload *, const char *home, const char *listen,
                              const char **fault);
uint16_t listener_port(const struct listener *);
void listener_start(struct listener *); /* on the thread */
void listener_free(struct listener *);
void greeting_close_all(struct upload *);
void upload_dial(struct upload *, const uint8_t device[DEVICE_ID_SIZE], char **addresses);

/* --- upload.c --- */
/* NULL if that device may be served, else why not: revoked, too many links. */
const char *upload_refuses(struct upload *, const struct certificate_subject *);
struct upload_buffer *upload_buffer_get(struct upload *);
void upload_buffer_put(struct upload_buffer *);
/* Takes so many bytes from the rate limit's bucket. False: not now; links are pumped again when
 * there is room. */
bool upload_may_send(struct upload *, uint32_t bytes);

/* --- upload_link.c --- */
/* A link whose fetcher has said Hello; answers that if `answer` (else ours has gone out). Owns the
 * stream from now on. */
void serve_link_new(struct upload *, struct stream *, const struct remote *, bool answer);
void serve_link_close(struct serve_link *, int farewell,
                      const char *why); /* says Goodbye, then ends */
void serve_link_pump(struct serve_link *);
void serve_link_holding_changed(struct serve_link *, struct content *);
void serve_link_tick(struct serve_link *, int64_t now);
void serve_link_free(struct serve_link *); /* at once */
const struct remote *serve_link_remote(const struct serve_link *);
void serve_link_status(const struct serve_link *, struct upload_link_status *);
/* Calls `each` for every open file. */
void serve_link_files(const struct serve_link *,
                      void (*each)(void *arg, const uint8_t *root, uint64_t rate), void *arg);
struct serve_link *serve_link_next(const struct serve_link *);

#endif
