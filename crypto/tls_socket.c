/* Owns the bytes between OpenSSL and the socket, as an OpenSSL BIO.
 *
 * Writing: OpenSSL hands over record by record. Small ones are gathered in the outbox and leave together, by
 * tls_socket_send; a full one goes to the socket at once, behind what the outbox holds, with MSG_MORE (`corked`), and only
 * what the socket does not take is copied to the outbox. OpenSSL never meets a socket error on its writing side (the
 * outbox's next send meets it again), and a record is either taken whole or not begun. The outbox is bounded: application
 * records by context->outbox_max (tls.c asks before it writes), what OpenSSL adds by TLS_OUTBOX_SPARE.
 *
 * Reading: a recv that got less than it had room for has emptied the socket, so the next one is not
 * tried before the next edge (`drained`), unless the peer is closing.
 *
 * Thread: whichever owns the SSL at the time. SIGPIPE cannot come: MSG_NOSIGNAL. */
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <openssl/bio.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "crypto/tls_internal.h"

#define OUTBOX_FIRST 4096

/* TLS's own messages that a peer may send before any data; then one for each full record. We update keys every few GiB. */
#define MESSAGES_FREE 64
/* TCP_CLOSE of netinet/tcp.h, which cannot stand beside linux/tcp.h. */
#define STATE_CLOSED 7
/* Pace is measured over so many bytes. */
#define PACE_BYTES (1u << 20)
/* What may wait in front of a byte that is written now: so much time's worth, within bounds. While a reader is near little;
 * else enough for what the congestion control sends in one go, or it takes the owner for slow. */
#define AHEAD_READER_NS (2 * NS_PER_MS)
#define AHEAD_NS        (20 * NS_PER_MS)
#define AHEAD_MAX       (512u << 10)

/* Between members on one machine or in one room a window of more than this only lets the bytes in flight fall out of the
 * processors' caches, and pacing costs more than it spares: together a third of the time that a stream took on both sides. */
#define NEAR_US      1000
#define NEAR_WINDOW  (1 << 20)
#define UNPACED_RATE (UINT64_C(128) << 20) /* bytes a second: a line of a Gbit/s and more */

static void set_ahead(struct tls *tls, bool reader)
{
    size_t least = tls->context->notsent_lowat * (reader ? 1 : 2);
    size_t wanted = tls->rate > AHEAD_MAX * NS_PER_S / AHEAD_READER_NS
                        ? AHEAD_MAX
                        : tls->rate * (reader ? AHEAD_READER_NS : AHEAD_NS) / NS_PER_S;
    int mark;

    if (wanted > AHEAD_MAX)
        wanted = AHEAD_MAX;
    if (wanted < least)
        wanted = least;
    tls->by_record = reader && wanted == least;
    if (wanted > tls->ahead - tls->ahead / 3 && wanted < tls->ahead + tls->ahead / 2)
        return;
    tls->ahead = wanted;
    mark = (int)wanted;
    (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &mark, sizeof mark);
}

void tls_reader_near(struct stream *stream, int64_t until)
{
    struct tls *tls = (struct tls *)(void *)stream;

    if (stream->class != &tls_class)
        return;
    CHECK_OBJECT(tls, TLS_MAGIC);
    if (tls->reader_until < clock_now() && tls->ahead > 0)
        set_ahead(tls, true);
    tls->reader_until = until;
}

void tls_socket_prepare(struct tls *tls)
{
    int on = 1;

    /* These fail on a socket that is not TCP (a test's), which works without them. */
    (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (tls->context->notsent_lowat > 0)
        set_ahead(tls, false);
    tls_wake_prepare(tls);
}

/* Bytes that the socket holds and has not sent once. */
static size_t unsent(const struct tls *tls)
{
    int bytes = 0;

    return ioctl(tls->fd, SIOCOUTQNSD, &bytes) == 0 && bytes > 0 ? (size_t)bytes : 0;
}

void tls_comes_bulk(struct stream *stream, bool bulk)
{
    struct tls *tls = (struct tls *)(void *)stream;

    if (stream->class != &tls_class)
        return;
    CHECK_OBJECT(tls, TLS_MAGIC);
    tls->bulk_comes = bulk && !tls->near;
}

/* The kernel acknowledges the first sixteen packets after a pause one by one, which is most of what comes on a link that brings
 * one block a second: in a swarm on slow lines that took 1.2 % of the uplinks. What is said here it forgets soon. */
static void acknowledge_late(const struct tls *tls)
{
    int quick = 0;

    if (tls->bulk_comes)
        (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof quick);
}

void tls_backlog(const struct stream *stream, int64_t own_ns, struct tls_backlog *out)
{
    const struct tls *tls = (const struct tls *)(const void *)stream;
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    int64_t flying;
    int held = 0;

    *out = (struct tls_backlog){0};
    if (stream->class != &tls_class)
        return;
    CHECK_OBJECT(tls, TLS_MAGIC);
    out->waiting = tls_outbox_held(tls);
    if (getsockopt(tls->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
        ioctl(tls->fd, SIOCOUTQ, &held) != 0 || info.tcpi_min_rtt == UINT32_MAX)
        return;
    out->acked = info.tcpi_bytes_acked;
    out->late = ((int64_t)info.tcpi_rtt - info.tcpi_min_rtt) * NS_PER_US;
    flying = info.tcpi_min_rtt * NS_PER_US + (out->late > own_ns ? out->late - own_ns : 0);
    flying = (int64_t)((double)flying * (double)info.tcpi_delivery_rate / NS_PER_S);
    if (held > flying)
        out->waiting += (size_t)(held - flying);
}

bool tls_socket_has_room(const struct tls *tls)
{
    size_t most = tls->context->outbox_max;

    /* On a slow link each record is a wait for what comes behind it: the next one is made when the socket has room for it. */
    if (tls->by_record)
        return tls_outbox_held(tls) == 0 && unsent(tls) < tls->ahead;
    /* Two records at least: one is filled while the other leaves. */
    if (tls->ahead > 0 && tls->ahead < most)
        most = tls->ahead < 2 * TLS_RECORD_MAX ? 2 * TLS_RECORD_MAX : tls->ahead;
    return tls_outbox_held(tls) + TLS_RECORD_MAX <= most;
}

bool tls_socket_is_gone(struct tls *tls)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info, error_size = sizeof tls->io_error;

    if (getsockopt(tls->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 ||
        info.tcpi_state != STATE_CLOSED)
        return false;
    if (getsockopt(tls->fd, SOL_SOCKET, SO_ERROR, &tls->io_error, &error_size) != 0 ||
        tls->io_error == 0)
        tls->io_error = EPIPE;
    return true;
}

void tls_socket_connected(struct tls *tls)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    int window = NEAR_WINDOW;

    tls->near = tls->ahead > 0 && getsockopt(tls->fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
                info.tcpi_rtt > 0 && info.tcpi_rtt < NEAR_US;
    if (tls->near)
        (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &window, sizeof window);
}

/* Near and fast: the sender leaves its pacing to the receiver's window. Once the network, not the owner, was slow, it is
 * the system's choice again. */
static void choose_control(struct tls *tls, uint64_t rate)
{
    bool unpaced = rate >= UNPACED_RATE || (tls->unpaced && !tls->filled);

    tls->filled = false;
    if (unpaced == tls->unpaced || !tls->near)
        return;
    tls->unpaced = unpaced;
    if (unpaced) {
        socklen_t size = sizeof tls->control;
        if (getsockopt(tls->fd, IPPROTO_TCP, TCP_CONGESTION, tls->control, &size) != 0)
            return;
    }
    const char *control = unpaced ? "cubic" : tls->control;
    (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_CONGESTION, control,
                     (socklen_t)strnlen(control, sizeof tls->control));
    tls->bbr = strcmp(control, "bbr") == 0;
}

/* What is written waits behind what the socket and the outbox hold. On a slow link that must be little, or an urgent frame
 * comes late; on a fast one little means a system call, and a wake-up at the other end, every 32 KiB. So both follow the
 * pace. A link that idled counts as slow, for a megabyte. */
static void pace(struct tls *tls, size_t sent)
{
    tls->paced += sent;
    if (tls->paced < PACE_BYTES || tls->ahead == 0)
        return;
    int64_t now = clock_now(), took = now - tls->paced_at;
    tls->rate = tls->paced * NS_PER_S / (uint64_t)(took > 0 ? took : 1);
    choose_control(tls, tls->rate);
    tls_wake_measured(tls, now < tls->reader_until);
    set_ahead(tls, now < tls->reader_until);
    tls->paced = 0;
    tls->paced_at = now;
}

/* What TCP holds back counts as unsent: a socket that takes no more because of it would stay so until TCP's own timer. */
static void push(struct tls *tls)
{
    int on = 1;

    if (tls->corked)
        (void)setsockopt(tls->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    tls->corked = false;
}

int tls_socket_send(struct tls *tls)
{
    if (tls_outbox_held(tls) > 0)
        tls_wake(tls);
    while (tls_outbox_held(tls) > 0) {
        ssize_t n = send(tls->fd, tls->out + tls->out_head, tls_outbox_held(tls),
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            tls->filled = true;
            push(tls);
            return STREAM_AGAIN;
        }
        if (n < 0) {
            tls->io_error = errno;
            return STREAM_FAILED;
        }
        tls->out_head += (size_t)n;
        tls->corked = false;
        pace(tls, (size_t)n);
    }
    tls->out_head = tls->out_tail = 0;
    push(tls);
    if (tls->context->policy == TLS_TRACKER && tls->out_room > OUTBOX_FIRST) {
        /* ten thousand idle connections do not keep what a burst needed */
        free(tls->out);
        tls->out = NULL;
        tls->out_room = 0;
    }
    return 0;
}

/* False if the outbox may not hold `size` bytes more. */
static bool make_room(struct tls *tls, size_t size)
{
    size_t wanted = tls_outbox_held(tls) + size, larger = tls->out_room;
    size_t most = tls->context->outbox_max + TLS_OUTBOX_SPARE;

    if (wanted > most)
        return false;
    if (tls->out_tail + size > tls->out_room && tls->out_head > 0) {
        memmove(tls->out, tls->out + tls->out_head, tls_outbox_held(tls));
        tls->out_tail -= tls->out_head;
        tls->out_head = 0;
    }
    if (larger < wanted) {
        if (larger == 0)
            larger = OUTBOX_FIRST;
        while (larger < wanted)
            larger = larger < most / 2 ? larger * 2 : most;
        tls->out = xrealloc(tls->out, larger);
        tls->out_room = larger;
    }
    return true;
}

/* A full record, and before it what waits: to the socket, as far as it takes them. How much of the record it took. */
static size_t send_through(struct tls *tls, const char *from, size_t size)
{
    size_t held = tls_outbox_held(tls);
    struct iovec parts[] = {{tls->out + tls->out_head, held}, {(void *)(uintptr_t)from, size}};
    struct msghdr message = {.msg_iov = parts + (held == 0), .msg_iovlen = 1 + (held > 0)};

    tls_wake(tls);
    ssize_t n = sendmsg(tls->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE);
    if (n <= 0) {
        push(tls);
        return 0;
    }
    tls->corked = true;
    pace(tls, (size_t)n);
    if ((size_t)n < held) {
        tls->out_head += (size_t)n;
        return 0;
    }
    tls->out_head = tls->out_tail = 0;
    return (size_t)n - held;
}

static int bio_write(BIO *bio, const char *from, size_t size, size_t *written)
{
    struct tls *tls = BIO_get_data(bio);

    BIO_clear_retry_flags(bio);
    if (!make_room(tls, size)) {
        BIO_set_retry_write(bio);
        return 0;
    }
    size_t sent = 0;
    if (tls->state == TLS_READY && size > TLS_RECORD_CONTENT)
        sent = send_through(tls, from, size);
    memcpy(tls->out + tls->out_tail, from + sent, size - sent);
    tls->out_tail += size - sent;
    *written = size;
    return 1;
}

static void on_message(int written, int version, int type, const void *bytes, size_t size, SSL *ssl,
                       void *arg)
{
    struct tls *tls = arg;

    if (!written && type == SSL3_RT_HANDSHAKE)
        tls->messages++;
}

void tls_socket_count_messages(struct tls *tls)
{
    SSL_set_msg_callback(tls->ssl, on_message);
    SSL_set_msg_callback_arg(tls->ssl, tls);
}

bool tls_socket_is_flooded(const struct tls *tls)
{
    return tls->messages > MESSAGES_FREE + tls->received / TLS_RECORD_CONTENT;
}

static int bio_read(BIO *bio, char *to, size_t size, size_t *got)
{
    struct tls *tls = BIO_get_data(bio);
    ssize_t n;

    BIO_clear_retry_flags(bio);
    if (tls_socket_is_flooded(tls))
        return 0;
    if (tls->drained && !tls->closing) {
        BIO_set_retry_read(bio);
        return 0;
    }
    do
        n = recv(tls->fd, to, size, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        tls->drained = true;
        BIO_set_retry_read(bio);
        return 0;
    }
    if (n < 0) {
        tls->io_error = errno;
        return 0;
    }
    if (n == 0) {
        tls->eof = size > 0;
        return 0;
    }
    tls->drained = (size_t)n < size;
    tls->received += (size_t)n;
    acknowledge_late(tls);
    *got = (size_t)n;
    return 1;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    const struct tls *tls = BIO_get_data(bio);

    switch (command) {
    case BIO_CTRL_FLUSH: /* bursts end where the stream says so */
        return 1;
    case BIO_CTRL_EOF:
        return tls->eof;
    case BIO_CTRL_WPENDING:
        return (long)tls_outbox_held(tls);
    default:
        return 0;
    }
}

static BIO_METHOD *method;
static void make_method(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "swarm socket");
    CHECK(method != NULL);
    CHECK(BIO_meth_set_write_ex(method, bio_write) == 1);
    CHECK(BIO_meth_set_read_ex(method, bio_read) == 1);
    CHECK(BIO_meth_set_ctrl(method, bio_control) == 1);
}

BIO *tls_socket_bio(struct tls *tls)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    CHECK(pthread_once(&once, make_method) == 0);
    BIO *bio = BIO_new(method);
    CHECK(bio != NULL);
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    return bio;
}
