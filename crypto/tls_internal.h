/* What the files of the TLS stream share. Private to crypto/ and its tests.
 *
 *   tls.c            the stream: reading, writing, moving, ending
 *   tls_handshake.c  from a socket to `ready`
 *   tls_context.c    settings, which certificate is believed
 *   tls_socket.c     between OpenSSL and the socket: one recv for several records, one send for several
 *   tls_wake.c       how fast a link that idled begins again
 *   tls_fault.c      why a stream failed, in words */
#ifndef CRYPTO_TLS_INTERNAL_H
#define CRYPTO_TLS_INTERNAL_H

#include <event2/event_struct.h>
#include <openssl/ssl.h>
#include <stdatomic.h>

#include "base/loop.h"
#include "base/workers.h"
#include "crypto/tls.h"

#define TLS_MAGIC         0x746c7331u
#define TLS_CONTEXT_MAGIC 0x746c7363u
#define TLS_WHY_SIZE      160

/* Bytes of one record at most: header, content, content type, tag (RFC 8446, 5.2). */
#define TLS_RECORD_CONTENT 16384
#define TLS_RECORD_MAX     (5 + TLS_RECORD_CONTENT + 1 + 16)
/* So little is not worth a system call, and a wake-up at the other end, of its own. */
#define TLS_RECORD_TAIL 2048
/* Kept free beside application records, for what OpenSSL sends by itself (key updates, alerts). */
#define TLS_OUTBOX_SPARE 16384

struct tls_context {
    unsigned magic;
    atomic_uint references;
    enum tls_policy policy;
    SSL_CTX *ssl;
    bool first_contact; /* no CA yet: the chain shown must hold one with ca_fingerprint */
    uint8_t ca_fingerprint[FINGERPRINT_SIZE];
    int64_t handshake_timeout_ns;
    unsigned notsent_lowat;
    size_t outbox_max;    /* bytes of application records that a stream holds */
    uint64_t key_records; /* records protected with one key before it is updated */
};

/*   CONNECTING --connected--> SHAKING --handshake done--> READY
 *        \_______________________\___________________________\____> FAILED (`failed` told once,
 * from `soon`)
 *
 * In SHAKING `stepping` says who may touch `ssl`, the outbox and the socket flags: while true a
 * worker, else the loop's thread. All else belongs to the loop's thread always. A stream that is
 * freed while a step runs is `orphan` and released when the step's mail arrives. */
enum tls_state { TLS_CONNECTING, TLS_SHAKING, TLS_READY, TLS_FAILED };

enum tls_step { TLS_STEP_DONE, TLS_STEP_AGAIN, TLS_STEP_FAILED };

struct tls {
    struct stream stream;
    unsigned magic;
    struct loop *loop;
    struct workers *handshakes;
    struct tls_context *context;
    enum tls_state state;
    bool server;
    bool attached; /* the events below are the loop's */
    struct event edge, room, soon;
    const struct stream_events *events;
    void *arg;

    bool told;         /* `readable` was called and stream_read has not said AGAIN since */
    bool resume;       /* `soon` is to bring `readable` */
    bool starved;      /* the owner waits for `writable` */
    bool ended;        /* the peer ended its side in order */
    bool read_blocked; /* OpenSSL must send before it reads on */
    char why[TLS_WHY_SIZE];

    /* The handshake's. */
    struct timer *timer;
    struct job job;
    struct mail mail;
    bool stepping, orphan;
    bool edge_pending; /* an edge came while a worker was at it */
    bool edge_closed;  /* an edge said that the peer has shut its side */
    enum tls_step step;
    char step_why[TLS_WHY_SIZE];
    const char *verify_fault; /* static text */

    /* Shared with the worker, see above. */
    SSL *ssl;
    int fd;
    bool drained; /* the socket is empty until the next edge */
    bool closing; /* the peer has shut its side: never believe `drained` */
    bool eof;     /* recv said so */
    int io_error; /* errno of a failed recv or send, 0 if none */
    char *out;    /* bytes [out_head, out_tail) wait for the socket */
    size_t out_room, out_head, out_tail;
    bool corked; /* TCP may hold back what was sent last */
    bool has_peer;
    struct certificate_subject peer;
    struct certificate *peer_ca;

    /* How much may wait between the owner and the network: see tls_socket.c, pace. */
    size_t ahead;
    uint64_t paced; /* bytes sent since paced_at */
    int64_t paced_at;
    bool filled;      /* since then the socket took no more */
    bool near;        /* on this machine or in this room, as TCP's handshake saw it */
    bool unpaced;     /* it has the congestion control of near and fast links */
    char control[16]; /* the one it had before that */
    uint64_t rate;    /* bytes a second, as last measured; 0: not yet */
    bool bbr;         /* that is the congestion control: see tls_wake.c */
    int64_t sent_at;  /* something was last given to the socket */
    int64_t begun_at; /* BBR began */
    uint64_t best;    /* bytes a second: the best that BBR has measured while it was looked at */
    unsigned flat;    /* looks since that has grown */
    bool held;        /* its pace is bounded by us */
    bool bulk_comes;  /* tls_comes_bulk, and it is not near */
    bool crowd;       /* it shares its line with many of this process: no BBR */
    int64_t reader_until; /* tls_reader_near */
    bool by_record;       /* the next record is made when the socket has room for it */
    bool roomless;        /* tls_room has said so: the write that follows gets the same answer */

    uint64_t records;  /* protected with the present sending key */
    uint64_t updates;  /* of the sending key, so far */
    uint64_t received; /* bytes that the socket gave */
    uint64_t messages; /* of TLS itself that came since the handshake: key updates, tickets */
};

/* --- tls_socket.c: the thread that owns `ssl` ---- */
/* The socket's options, and the first measure of what may wait. */
void tls_socket_prepare(struct tls *);
/* Once it is connected, before anything is sent: what TCP's own handshake says of the way to the peer. */
void tls_socket_connected(struct tls *);
/* Once the handshake is done: TLS's own messages are counted from now on, and nothing is read any more when they are too many for
 * the data that came with them. Each costs 20 us and 27 bytes, and OpenSSL reads on behind it. */
void tls_socket_count_messages(struct tls *);
bool tls_socket_is_flooded(const struct tls *);
/* Whether another record of the owner's has room in the outbox. */
bool tls_socket_has_room(const struct tls *);
/* Whether TCP has given the connection up (a reset, too many losses), with io_error set: what was unsent then counts as unsent for
 * good, and the socket as one that can be written to. */
bool tls_socket_is_gone(struct tls *);
BIO *tls_socket_bio(struct tls *);
/* Sends what the outbox holds: 0 all gone, STREAM_AGAIN, STREAM_FAILED with io_error set. */
int tls_socket_send(struct tls *);
static inline size_t tls_outbox_held(const struct tls *tls)
{
    return tls->out_tail - tls->out_head;
}

/* --- tls_wake.c: the same thread ---- */
void tls_wake_prepare(struct tls *);               /* chooses the congestion control */
void tls_wake(struct tls *);                       /* before bytes are given to the socket */
void tls_wake_measured(struct tls *, bool reader); /* tls->rate is new */

/* --- tls_fault.c: right after an OpenSSL call failed, on the same thread ---- */
void tls_fault_describe(const struct tls *, bool ready, int ssl_error, char why[TLS_WHY_SIZE]);
void tls_fault_of_errno(int error, char why[TLS_WHY_SIZE]);
/* Static text for a certificate that X509_verify_cert refused. */
const char *tls_fault_of_verification(int x509_error);

/* --- tls.c ---- */
extern const struct stream_class tls_class;
void tls_attach(struct tls *);  /* binds the events to the loop */
void tls_soon(struct tls *);    /* `soon` fires in the loop's next round */
int tls_fail(struct tls *);     /* `why` is set; returns STREAM_FAILED */
void tls_release(struct tls *); /* socket and memory; events are off */

/* --- tls_handshake.c: what the events mean before `ready` ---- */
void tls_handshake_edge(struct tls *, bool closed);
void tls_handshake_room(struct tls *);

/* --- for tests: before the context's first stream ---- */
void tls_context_set_key_records(struct tls_context *, uint64_t records);
uint64_t tls_key_updates(const struct stream *);

#endif
