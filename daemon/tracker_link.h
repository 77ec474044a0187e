/* One connection to the tracker, from dialling to its end: resolves, connects, shakes hands, says
 * Hello, then carries requests and pushes. Whether and when to connect again is the caller's affair
 * (session.c). One loop's thread; callbacks come from the loop, never from within a call here. */
#ifndef DAEMON_TRACKER_LINK_H
#define DAEMON_TRACKER_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/tracker.pb-c.h"

struct certificate;
struct loop;
struct swarm_url;
struct tls_context;
struct tracker_link;
struct workers;

struct tracker_link_events {
    /* The tracker has said Welcome: requests may be sent. */
    void (*up)(void *arg, const Tracker__Welcome *);
    /* A frame that answers nothing. NULL, or why the connection must end;
     * tracker_link_unknown_push if the type is not known, so that what may be skipped is. */
    const char *(*push)(void *arg, unsigned type, const uint8_t *message, size_t size);
    /* It has ended, before or after `up`; all requests have been answered with `lost`. `why` is a
     * clause. The caller frees. */
    void (*down)(void *arg, const char *why);
};

extern const char tracker_link_unknown_push[];

/* An answer. Exactly one of these: `lost`: the connection ended before (why); `fault`: the tracker
 * said no; else message. */
struct tracker_answer {
    const char *lost;
    const Tracker__Fault *fault;
    unsigned type;
    const uint8_t *message;
    size_t size;
    const uint8_t *payload;
    size_t payload_size;
};

/* Where the work is done that must not hold up the loop. */
struct tracker_link_pools {
    struct workers *resolver;   /* names: may take as long as a dead name server makes it */
    struct workers *handshakes; /* TLS */
};

/* Starts to connect. Takes a reference on the context. */
struct tracker_link *tracker_link_new(struct loop *, const struct tracker_link_pools *,
                                      const struct swarm_url *, struct tls_context *,
                                      const struct tracker_link_events *, void *arg);
void tracker_link_free(
    struct tracker_link *); /* no callback follows, not even `answered`; NULL is fine */
/* The same, but requests that wait for an answer are answered with `lost` first. */
void tracker_link_end(struct tracker_link *, const char *why);
/* Sends a request; `answered` is called once, unless the link is freed first. It may be NULL. */
void tracker_link_request(struct tracker_link *, unsigned type, const ProtobufCMessage *,
                          void (*answered)(void *arg, const struct tracker_answer *), void *arg);
/* Sends what has no answer (id 0). */
void tracker_link_notice(struct tracker_link *, unsigned type, const ProtobufCMessage *);
bool tracker_link_is_up(const struct tracker_link *);
/* After `up`: the CA that the tracker showed, a new reference. */
struct certificate *tracker_link_ca(const struct tracker_link *);
/* The local address of the connection, without port, "" if unknown; `out` holds LIMIT_ADDRESS
 * bytes. */
void tracker_link_local_address(const struct tracker_link *, char *out);

#endif
