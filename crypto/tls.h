/* TLS 1.3 streams: OpenSSL on non-blocking sockets, behind base/stream.h.
 *
 * TLS 1.3 only, TLS_AES_256_GCM_SHA384 first, X25519 first. No session tickets, no resumption, no early
 * data: a resumed session would skip the certificate (measured with stock OpenSSL). Certificates are
 * checked against the swarm's CA alone, at the time of the handshake; the system's CAs are not used. A key
 * update is sent before 2^23 records have been protected with one key (RFC 8446, 5.5).
 *
 * Handshakes run step by step on a worker pool, so that RSA (2.6 ms a side) never holds an event loop and
 * a slow stranger holds no worker; a handshake that has not ended within handshake_timeout_ns fails. On the
 * socket: TCP_NODELAY always, TCP_NOTSENT_LOWAT as set, BBR on links between daemons where it may be had. */
#ifndef CRYPTO_TLS_H
#define CRYPTO_TLS_H

#include "base/stream.h"
#include "crypto/identity.h"

struct loop;
struct workers;
struct tls_context;

enum tls_policy {
    TLS_PEER, /* both ends show a device certificate: links between daemons */
    TLS_TRACKER, /* the tracker's listener: shows the tracker's certificate, asks for a device's, allows none */
    TLS_TRACKER_CLIENT /* to the tracker: expects a tracker's certificate; shows ours if there is one */
};

struct tls_settings {
    enum tls_policy policy;
    struct certificate
        *ca; /* trust anchor; NULL only with TLS_TRACKER_CLIENT and `ca_fingerprint`: the first
                                        contact, where the chain that the tracker shows must hold a CA with it */
    const uint8_t *ca_fingerprint; /* 32 bytes or NULL; if given the CA must have it in any case */
    struct certificate *certificate; /* ours, or NULL where the policy allows none */
    struct key *key;                 /* its key, or NULL */
    int64_t handshake_timeout_ns;
    unsigned
        notsent_lowat; /* bytes, while a reader is near; else twice that or more; 0: the kernel's default */
};

/* Takes references on what it needs. NULL on failure with *fault set. Any thread; immutable. */
struct tls_context *tls_context_new(const struct tls_settings *, const char **fault);
struct tls_context *tls_context_share(struct tls_context *);
void tls_context_free(struct tls_context *);

/* Starts a handshake on the connected (or, for tls_connect, connecting) non-blocking socket, which the
 * stream owns from now on. `ready` or `failed` follows. */
struct stream *tls_connect(struct loop *, struct workers *handshakes, struct tls_context *, int fd);
struct stream *tls_accept(struct loop *, struct workers *handshakes, struct tls_context *, int fd);
/* Whether the other end of a connection will send nothing more, or there is none. A client that is gone before its handshake
 * began is not answered, whatever it has sent: no RSA for who does not wait for it. */
bool tls_is_gone(int fd);

/* After `ready`: who is at the other end. False if no certificate was shown. */
bool tls_peer(const struct stream *, struct certificate_subject *out);
/* After `ready`, on a TLS_TRACKER_CLIENT stream: the tracker's CA certificate, a new reference. */
struct certificate *tls_peer_ca(const struct stream *);
int tls_fd(const struct stream *);
/* Moves an idle, ready stream to another loop; call on the old loop's thread, before anything was read by
 * the application. No events come until stream_set_events is called on the new loop's thread. */
void tls_move(struct stream *, struct loop *to);
/* Smooth measurements by the kernel (TCP_INFO): round trip time in ns, 0 if unknown. */
int64_t tls_rtt(const struct stream *);
struct tls_backlog {
    size_t waiting; /* bytes written that have not left this side, as far as can be known */
    int64_t late;   /* ns by which the round trip is longer than the shortest was */
    uint64_t acked; /* bytes that the other end has acknowledged, ever */
};
/* What waits in front of a byte written now. What flies is not counted: the bytes of (shortest round trip + late - own_ns) at the
 * rate of late, where own_ns is how much of `late` is the queue in front of this side's own line; the rest of it is the way of
 * the acknowledgements. All 0 on a stream of another kind. */
void tls_backlog(const struct stream *, int64_t own_ns, struct tls_backlog *);
/* Until then (clock_now) somebody at the other end waits for some of what is written: no pause of the link's own making.
 * Nothing on a stream of another kind. */
void tls_reader_near(struct stream *, int64_t until);
/* Whether many streams of this process send through one line at the same time, with their owner seeing to it that little of them
 * is under way. Nothing on a stream of another kind. */
void tls_crowd(struct stream *, bool crowd);
/* Whether what comes is bulk that nobody waits for: it need not be acknowledged packet by packet. Nothing on a stream of another
 * kind. */
void tls_comes_bulk(struct stream *, bool bulk);

#endif
