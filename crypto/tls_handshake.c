/* Owns the way of a stream from a socket to `ready`: connecting, the handshake's steps, its time
 * limit.
 *
 * What OpenSSL does between two waits is one step. Steps run on a worker, because one of them signs
 * and verifies with RSA; the waits are the loop's. So a loop is never held by RSA, and a worker
 * never by a peer that says nothing. While a step runs the worker owns the SSL, the outbox and the
 * socket's flags; the loop only notes what happens (`edge_pending`, a timeout, `orphan`), and acts
 * on it when the step's mail has arrived.
 *
 *   start -> (socket connected) -> step -> mail -> wait for bytes -> step -> … -> mail -> ready
 *
 * The job and the mail are part of the stream: a step can neither be lost nor fail for want of
 * memory. */
#include <errno.h>
#include <event2/event.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/tls_internal.h"

bool tls_is_gone(int fd)
{
    struct pollfd at = {.fd = fd, .events = POLLRDHUP};

    return poll(&at, 1, 0) == 1;
}

/* --- on a worker ---- */

static void note_peer_ca(struct tls *tls)
{
    const char *fault;
    STACK_OF(X509) *chain = SSL_get0_verified_chain(tls->ssl);
    if (chain == NULL || sk_X509_num(chain) == 0)
        return;
    X509 *x509 = sk_X509_value(chain, sk_X509_num(chain) - 1);
    if (X509_up_ref(x509) == 1)
        tls->peer_ca = certificate_wrap(x509, &fault);
}

static enum tls_step step(struct tls *tls)
{
    /* Our answer to a ClientHello is what costs: who does not wait for it, as in a flood, gets none. */
    if (tls->server && SSL_get_state(tls->ssl) == TLS_ST_BEFORE && tls_is_gone(tls->fd)) {
        snprintf(tls->step_why, sizeof tls->step_why,
                 "the peer closed the connection during the handshake");
        return TLS_STEP_FAILED;
    }
    ERR_clear_error();
    int result = SSL_do_handshake(tls->ssl);
    if (result == 1) {
        if (tls->context->policy == TLS_TRACKER_CLIENT)
            note_peer_ca(tls);
        return TLS_STEP_DONE;
    }
    int error = SSL_get_error(tls->ssl, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return TLS_STEP_AGAIN;
    tls_fault_describe(tls, false, error, tls->step_why);
    return TLS_STEP_FAILED;
}

static void deliver(struct mail *mail, void *owner);

static void run(struct job *job)
{
    struct tls *tls = (struct tls *)((char *)job - offsetof(struct tls, job));

    CHECK_OBJECT(tls, TLS_MAGIC);
    tls->step = step(tls);
    /* Failed or not, what OpenSSL has to say (an alert) leaves now. */
    if (tls_socket_send(tls) == STREAM_FAILED && tls->step != TLS_STEP_FAILED) {
        tls_fault_of_errno(tls->io_error, tls->step_why);
        tls->step = TLS_STEP_FAILED;
    }
    tls->mail.deliver = deliver;
    loop_post(tls->loop, &tls->mail); /* the loop owns all again */
}

/* --- on the loop ---- */

static void begin_step(struct tls *tls)
{
    CHECK(tls->state == TLS_SHAKING && !tls->stepping);
    tls->stepping = true;
    tls->edge_pending = false;
    tls->drained = false;
    tls->closing = tls->edge_closed;
    tls->job.run = run;
    /* Our own dials come before strangers' calls. */
    workers_post(tls->handshakes, &tls->job, !tls->server);
}

static void become_ready(struct tls *tls)
{
    timer_free(tls->timer);
    tls->timer = NULL;
    tls->state = TLS_READY;
    tls->drained = false;
    tls->closing = tls->edge_closed;
    tls_socket_count_messages(tls);
    if (tls_outbox_held(tls) > 0 || tls->starved)
        CHECK(event_add(&tls->room, NULL) == 0);
    /* Bytes may have come with the handshake's last: OpenSSL holds them, no edge will tell. */
    tls->resume = true;
    tls_soon(tls);
    tls->events->ready(tls->arg); /* last: the owner may free or move the stream */
}

static void deliver(struct mail *mail, void *owner)
{
    struct tls *tls = (struct tls *)((char *)mail - offsetof(struct tls, mail));

    CHECK_OBJECT(tls, TLS_MAGIC);
    tls->stepping = false;
    if (tls->orphan) {
        tls_release(tls);
        return;
    }
    if (tls->state != TLS_SHAKING) /* timed out meanwhile */
        return;
    switch (tls->step) {
    case TLS_STEP_DONE:
        become_ready(tls);
        return;
    case TLS_STEP_FAILED:
        memcpy(tls->why, tls->step_why, sizeof tls->why);
        tls_fail(tls);
        return;
    case TLS_STEP_AGAIN:
        if (tls_outbox_held(tls) > 0)
            CHECK(event_add(&tls->room, NULL) == 0);
        if (tls->edge_pending)
            begin_step(tls);
        return;
    }
}

void tls_handshake_edge(struct tls *tls, bool closed)
{
    if (closed)
        tls->edge_closed = true;
    if (tls->state == TLS_SHAKING && !tls->stepping)
        begin_step(tls);
    else
        tls->edge_pending = true;
}

static void connected(struct tls *tls)
{
    int error = 0;
    socklen_t size = sizeof error;

    if (getsockopt(tls->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0)
        error = errno;
    if (error != 0) {
        tls_fault_of_errno(error, tls->why);
        tls_fail(tls);
        return;
    }
    tls_socket_connected(tls);
    tls->state = TLS_SHAKING;
    CHECK(event_add(&tls->edge, NULL) == 0);
    begin_step(tls);
}

void tls_handshake_room(struct tls *tls)
{
    if (tls->state == TLS_CONNECTING) {
        connected(tls);
    } else if (tls->state == TLS_SHAKING && !tls->stepping) {
        int result = tls_socket_send(tls);
        if (result == STREAM_AGAIN) {
            CHECK(event_add(&tls->room, NULL) == 0);
        } else if (result == STREAM_FAILED) {
            tls_fault_of_errno(tls->io_error, tls->why);
            tls_fail(tls);
        }
    } /* a worker that is at it sends by itself */
}

static void on_timeout(void *arg)
{
    struct tls *tls = arg;

    CHECK_OBJECT(tls, TLS_MAGIC);
    snprintf(tls->why, sizeof tls->why, "%s",
             tls->state == TLS_CONNECTING ? "connection timed out" : "handshake timed out");
    tls_fail(tls);
}

static struct stream *start(struct loop *loop, struct workers *handshakes,
                            struct tls_context *context, int fd, bool server)
{
    CHECK_OBJECT(context, TLS_CONTEXT_MAGIC);
    CHECK(loop_is_here(loop) && fd >= 0 && handshakes != NULL);
    CHECK(context->policy != (server ? TLS_TRACKER_CLIENT : TLS_TRACKER));
    struct tls *tls = xcalloc(1, sizeof *tls);
    tls->stream.class = &tls_class;
    tls->magic = TLS_MAGIC;
    tls->loop = loop;
    tls->handshakes = handshakes;
    tls->context = tls_context_share(context);
    tls->server = server;
    tls->state = server ? TLS_SHAKING : TLS_CONNECTING;
    tls->fd = fd;
    tls->ssl = SSL_new(context->ssl);
    CHECK(tls->ssl != NULL);
    BIO *bio = tls_socket_bio(tls);
    SSL_set_bio(tls->ssl, bio, bio);
    SSL_set_app_data(tls->ssl, tls);
    if (server)
        SSL_set_accept_state(tls->ssl);
    else
        SSL_set_connect_state(tls->ssl);
    tls_socket_prepare(tls);
    if (server)
        tls_socket_connected(tls);
    tls->timer = timer_new(loop, on_timeout, tls);
    timer_set(tls->timer, context->handshake_timeout_ns);
    tls_attach(tls);
    /* A server waits for the client's first bytes, a client until it is connected. */
    CHECK(event_add(server ? &tls->edge : &tls->room, NULL) == 0);
    return &tls->stream;
}

struct stream *tls_connect(struct loop *loop, struct workers *handshakes,
                           struct tls_context *context, int fd)
{
    return start(loop, handshakes, context, fd, false);
}

struct stream *tls_accept(struct loop *loop, struct workers *handshakes,
                          struct tls_context *context, int fd)
{
    return start(loop, handshakes, context, fd, true);
}
