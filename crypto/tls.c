/* Owns a TLS stream from `ready` to its end: reading, writing, key updates, moving, failing,
 * closing.
 *
 * Leaves the handshake to tls_handshake.c, the socket to tls_socket.c. One loop's thread; the
 * states and who owns what during a handshake: tls_internal.h.
 *
 * Reading: the socket is watched edge-triggered; `told` as in base/stream_unix.c. OpenSSL reads
 * ahead, so bytes may wait in it while the socket is silent: the owner reads until AGAIN or
 * resumes, and a resume brings `readable` by itself, not by the socket. Writing: each record goes
 * into the outbox; when it is full, and at a flush, one send takes several. The socket is watched
 * for room only while the kernel has none; `writable` comes when all that was held is gone.
 *
 * Callbacks come from libevent's and from the handshake's mail, each as the last act, so that the
 * owner may free the stream in them. Memory: OpenSSL's read buffer (64 KiB; a tracker's is released
 * when idle) and an outbox of outbox_max + TLS_OUTBOX_SPARE at most. */
#include "crypto/tls.h"

#include <errno.h>
#include <event2/event.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/tls_internal.h"

/* How much of what a peer had still sent is looked through for the alert that says why it closed,
 * and swallowed at a failed handshake so that our own alert is not lost by a reset. */
#define LAST_WORDS_MAX (256u << 10)

static struct tls *of(const struct stream *stream)
{
    struct tls *tls = (struct tls *)(uintptr_t)stream;
    CHECK(stream != NULL && stream->class == &tls_class && tls->magic == TLS_MAGIC);
    return tls;
}

static struct tls *here(const struct stream *stream)
{
    struct tls *tls = of(stream);
    CHECK(loop_is_here(tls->loop));
    return tls;
}

/* What OpenSSL noted before would be taken for the next call's. It is seldom anything, and clearing costs more than looking. */
static void forget_errors(void)
{
    if (ERR_peek_error() != 0)
        ERR_clear_error();
}

void tls_soon(struct tls *tls)
{
    static const struct timeval zero;
    CHECK(event_add(&tls->soon, &zero) == 0);
}

int tls_fail(struct tls *tls)
{
    if (tls->state == TLS_FAILED)
        return STREAM_FAILED;
    tls->state = TLS_FAILED;
    if (tls->timer != NULL)
        timer_cancel(tls->timer);
    if (tls->attached) {
        CHECK(event_del(&tls->edge) == 0);
        CHECK(event_del(&tls->room) == 0);
        tls_soon(tls);
    }
    return STREAM_FAILED;
}

/* After a failed OpenSSL call. */
static int fail_by_ssl(struct tls *tls, int ssl_error)
{
    tls_fault_describe(tls, true, ssl_error, tls->why);
    return tls_fail(tls);
}

/* After a failed send. A peer that refuses us sends an alert and closes: the alert, not the broken
 * pipe, is the reason, and it may still be there to read. */
static int fail_by_send(struct tls *tls)
{
    uint8_t last_words[4096];
    size_t total = 0, n = 0;
    int result, error = tls->io_error;

    tls->drained = false;
    tls->io_error = 0;
    ERR_clear_error();
    while ((result = SSL_read_ex(tls->ssl, last_words, sizeof last_words, &n)) == 1 &&
           total < LAST_WORDS_MAX)
        total += n;
    if (result != 1 && SSL_get_error(tls->ssl, result) == SSL_ERROR_SSL && !tls->eof)
        return fail_by_ssl(tls, SSL_ERROR_SSL);
    ERR_clear_error();
    tls_fault_of_errno(error, tls->why);
    return tls_fail(tls);
}

/* Sends what is held; watches for room if not all could leave. */
static int send_held(struct tls *tls)
{
    if (event_pending(&tls->room, EV_WRITE, NULL))
        return STREAM_AGAIN; /* the kernel is known to be full */
    int result = tls_socket_send(tls);
    if (result == STREAM_FAILED)
        return fail_by_send(tls);
    if (result == STREAM_AGAIN)
        CHECK(event_add(&tls->room, NULL) == 0);
    return result;
}

/* --- reading ---- */

static ssize_t read_some(struct tls *tls, uint8_t *to, size_t size)
{
    size_t got = 0, n;

    while (got < size) {
        forget_errors();
        int result = SSL_read_ex(tls->ssl, to + got, size - got, &n);
        if (result == 1) {
            got += n;
            continue;
        }
        int error = SSL_get_error(tls->ssl, result);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
            tls->told = false;
            tls->read_blocked = error == SSL_ERROR_WANT_WRITE;
            return got > 0 ? (ssize_t)got : STREAM_AGAIN;
        }
        if (error == SSL_ERROR_ZERO_RETURN)
            tls->ended = true;
        else
            fail_by_ssl(tls, error);
        if (got > 0)
            return (ssize_t)got; /* the next call tells the end */
        return tls->ended ? 0 : STREAM_FAILED;
    }
    return (ssize_t)got;
}

static ssize_t tls_read(struct stream *stream, void *to, size_t size)
{
    struct tls *tls = here(stream);

    if (tls->state == TLS_FAILED)
        return STREAM_FAILED;
    if (tls->state != TLS_READY) {
        tls->told = false;
        return STREAM_AGAIN;
    }
    if (tls->ended)
        return 0;
    size_t held = tls_outbox_held(tls);
    ssize_t result = read_some(tls, to, size);
    /* What was read may have made OpenSSL answer (a key update). */
    if (tls->state == TLS_READY && tls_outbox_held(tls) > held && send_held(tls) == STREAM_FAILED &&
        result == STREAM_AGAIN)
        return STREAM_FAILED;
    return result;
}

static void on_edge(evutil_socket_t fd, short what, void *arg)
{
    struct tls *tls = arg;

    CHECK_OBJECT(tls, TLS_MAGIC);
    if (tls->state != TLS_READY) {
        tls_handshake_edge(tls, (what & EV_CLOSED) != 0);
        return;
    }
    tls->drained = false;
    if ((what & EV_CLOSED) != 0)
        tls->closing = true;
    if (tls->told || tls->ended)
        return;
    tls->told = true;
    tls->resume = false; /* the first `readable`, which follows `ready`, is this one */
    tls->events->readable(tls->arg);
}

static void tls_resume(struct stream *stream)
{
    struct tls *tls = here(stream);

    tls->resume = true;
    if (tls->state == TLS_READY && tls->attached)
        tls_soon(tls);
}

/* --- writing ---- */

/* A key that has protected enough is replaced before the next record. */
static void update_key(struct tls *tls)
{
    if (tls->records < tls->context->key_records)
        return;
    if (SSL_key_update(tls->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1) {
        tls->records = 0;
        tls->updates++;
    } else {
        ERR_clear_error(); /* one is still on its way; the limit leaves room to ask again */
    }
}

/* One record into the outbox; there is room for it. Bytes taken, or STREAM_FAILED. */
static ssize_t write_record(struct tls *tls, const uint8_t *from, size_t size)
{
    size_t n;

    update_key(tls);
    forget_errors();
    int result = SSL_write_ex(tls->ssl, from, size, &n);
    if (result != 1)
        return fail_by_ssl(tls, SSL_get_error(tls->ssl, result));
    tls->records++;
    return (ssize_t)n;
}

/* Whether the next record may be made; sends what is held if that makes room. STREAM_FAILED, or a bool. */
static int make_way(struct tls *tls, size_t taken, size_t part)
{
    /* The end of what was offered goes along with what it ends. */
    if (tls->by_record && taken > 0 && part <= TLS_RECORD_TAIL)
        return true;
    if (tls->roomless)
        return false;
    if (tls_socket_has_room(tls))
        return true;
    if (send_held(tls) == STREAM_FAILED)
        return STREAM_FAILED;
    return tls_socket_has_room(tls);
}

static ssize_t tls_write(struct stream *stream, const void *from, size_t size)
{
    struct tls *tls = here(stream);
    const uint8_t *bytes = from;
    size_t taken = 0;

    if (tls->state == TLS_FAILED)
        return STREAM_FAILED;
    while (tls->state == TLS_READY && taken < size) {
        size_t part = size - taken < TLS_RECORD_CONTENT ? size - taken : TLS_RECORD_CONTENT;
        int way = make_way(tls, taken, part);
        if (way == STREAM_FAILED)
            return STREAM_FAILED;
        if (!way)
            break;
        ssize_t n = write_record(tls, bytes + taken, part);
        if (n < 0)
            return STREAM_FAILED;
        taken += (size_t)n;
    }
    tls->roomless = false;
    if (taken < size) {
        tls->starved = true;
        /* Nothing is held, and yet there is no room: the socket has enough. */
        if (tls->state == TLS_READY && tls_outbox_held(tls) == 0)
            CHECK(event_add(&tls->room, NULL) == 0);
    }
    return taken > 0 || size == 0 ? (ssize_t)taken : STREAM_AGAIN;
}

static size_t tls_room(struct stream *stream)
{
    struct tls *tls = here(stream);

    tls->roomless = false;
    if (tls->state != TLS_READY || !tls->by_record || tls_outbox_held(tls) > 0)
        return SIZE_MAX;
    /* What TCP holds back takes room until it is sent off. */
    tls->roomless = !tls_socket_has_room(tls) && (send_held(tls) != 0 || !tls_socket_has_room(tls));
    return tls->roomless ? 0 : TLS_RECORD_CONTENT;
}

static int tls_flush(struct stream *stream)
{
    struct tls *tls = here(stream);

    if (tls->state == TLS_FAILED)
        return STREAM_FAILED;
    if (tls->state != TLS_READY)
        return 0; /* nothing of the owner's is held yet */
    int result = send_held(tls);
    if (result == STREAM_AGAIN)
        tls->starved = true;
    return result;
}

static void on_room(evutil_socket_t fd, short what, void *arg)
{
    struct tls *tls = arg;

    CHECK_OBJECT(tls, TLS_MAGIC);
    if (tls->state != TLS_READY) {
        tls_handshake_room(tls);
        return;
    }
    if (send_held(tls) != 0)
        return;
    /* Else who reads nothing would never hear of it, and this event would come again at once for good. */
    if (!tls_socket_has_room(tls) && tls_socket_is_gone(tls)) {
        fail_by_send(tls);
        return;
    }
    if (tls->read_blocked) {
        tls->read_blocked = false;
        tls->resume = true;
        tls_soon(tls);
    }
    if (tls->starved) {
        tls->starved = false;
        tls->events->writable(tls->arg);
    }
}

/* --- life ---- */

static void on_soon(evutil_socket_t fd, short what, void *arg)
{
    struct tls *tls = arg;

    CHECK_OBJECT(tls, TLS_MAGIC);
    CHECK(tls->events != NULL);
    if (tls->state == TLS_FAILED) {
        tls->events->failed(tls->arg, tls->why);
    } else if (tls->state == TLS_READY && tls->resume) {
        tls->resume = false;
        tls->told = true;
        tls->events->readable(tls->arg);
    }
}

void tls_attach(struct tls *tls)
{
    struct event_base *base = loop_base(tls->loop);
    CHECK(event_assign(&tls->edge, base, tls->fd, EV_READ | EV_CLOSED | EV_ET | EV_PERSIST, on_edge,
                       tls) == 0);
    CHECK(event_assign(&tls->room, base, tls->fd, EV_WRITE | EV_ET, on_room, tls) == 0);
    CHECK(event_assign(&tls->soon, base, -1, 0, on_soon, tls) == 0);
    tls->attached = true;
}

static void detach(struct tls *tls)
{
    if (!tls->attached)
        return;
    CHECK(event_del(&tls->edge) == 0);
    CHECK(event_del(&tls->room) == 0);
    CHECK(event_del(&tls->soon) == 0);
    tls->attached = false;
}

static void tls_set_events(struct stream *stream, const struct stream_events *events, void *arg)
{
    struct tls *tls = here(stream);

    CHECK(events != NULL && events->ready != NULL && events->readable != NULL &&
          events->writable != NULL && events->failed != NULL);
    tls->events = events;
    tls->arg = arg;
    if (tls->attached)
        return;
    tls_attach(tls); /* was moved here */
    if (tls->state == TLS_READY) {
        CHECK(event_add(&tls->edge, NULL) == 0);
        if (tls_outbox_held(tls) > 0 || tls->starved)
            CHECK(event_add(&tls->room, NULL) == 0);
        tls->resume = true;
    }
    tls_soon(tls);
}

void tls_move(struct stream *stream, struct loop *to)
{
    struct tls *tls = here(stream);

    CHECK(tls->state == TLS_READY || tls->state == TLS_FAILED);
    detach(tls);
    timer_free(tls->timer);
    tls->timer = NULL;
    tls->events = NULL;
    tls->loop = to;
}

/* Takes in what the peer has sent already: a close with bytes unread would be a reset, and could
 * overtake the alert that tells the peer what was wrong. */
static void swallow(int fd)
{
    char bytes[4096];
    size_t total = 0;
    ssize_t n;

    (void)shutdown(fd, SHUT_WR);
    while (total < LAST_WORDS_MAX && (n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        total += (size_t)n;
}

void tls_release(struct tls *tls)
{
    SSL_free(tls->ssl);
    close(tls->fd);
    free(tls->out);
    certificate_free(tls->peer_ca);
    tls_context_free(tls->context);
    tls->magic = 0;
    free(tls);
}

static void tls_destroy(struct stream *stream)
{
    struct tls *tls = here(stream);

    detach(tls);
    timer_free(tls->timer);
    tls->timer = NULL;
    if (tls->stepping) {
        /* A worker is using the socket and the SSL: the peer hears the end now, the rest follows
         * when the step's mail arrives. */
        tls->orphan = true;
        (void)shutdown(tls->fd, SHUT_RDWR);
        return;
    }
    if (tls->state == TLS_READY) {
        ERR_clear_error();
        (void)SSL_shutdown(tls->ssl);
        ERR_clear_error();
        (void)tls_socket_send(tls);
    } else if (tls->state == TLS_FAILED) {
        swallow(tls->fd);
    }
    tls_release(tls);
}

const struct stream_class tls_class = {
    .read = tls_read,
    .write = tls_write,
    .room = tls_room,
    .flush = tls_flush,
    .set_events = tls_set_events,
    .resume = tls_resume,
    .destroy = tls_destroy,
};

/* --- what is known of a stream ---- */

bool tls_peer(const struct stream *stream, struct certificate_subject *out)
{
    const struct tls *tls = of(stream);
    if (tls->has_peer && tls->state == TLS_READY)
        *out = tls->peer;
    return tls->has_peer && tls->state == TLS_READY;
}

struct certificate *tls_peer_ca(const struct stream *stream)
{
    const struct tls *tls = of(stream);
    CHECK(tls->state >= TLS_READY && tls->peer_ca != NULL);
    return certificate_share(tls->peer_ca);
}

int tls_fd(const struct stream *stream)
{
    return of(stream)->fd;
}

int64_t tls_rtt(const struct stream *stream)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (getsockopt(of(stream)->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return 0;
    return (int64_t)info.tcpi_rtt * NS_PER_US;
}

uint64_t tls_key_updates(const struct stream *stream)
{
    return here(stream)->updates;
}
