/* A stream over a connected Unix socket, with file descriptors beside the bytes.
 *
 * Owns the socket, what waits to be written, descriptors that wait to leave or to be taken. One
 * loop's thread; memory: at most OUT_MAX bytes and 2 * STREAM_UNIX_FDS_MAX descriptors a stream.
 *
 * Reading. The socket is watched edge-triggered, so a message costs no change of what epoll
 * watches:
 *
 *   ARMED --edge--> TOLD (`readable` was called) --stream_read says AGAIN--> ARMED
 *
 * An edge in TOLD is not passed on: the owner reads on, or has stopped until stream_resume. A read
 * that got less than it had room for has emptied the socket (unless descriptors came with it, which
 * end a read early, or the peer is closing), so the next one says AGAIN without a system call
 * (`drained`); an edge takes that back.
 *
 * Writing. stream_write fills the buffer, stream_flush sends it at once. The socket is watched for
 * room only while the kernel has none.
 *
 * Callbacks come from libevent's only, each as the last act of one, so that the owner may free the
 * stream: an edge, room, or `soon`, a zero timeout that brings what a call of the owner's caused.
 */
#include "base/stream.h"

#include "base/check.h"
#include "base/loop.h"
#include "base/mem.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAM_UNIX_MAGIC 0x756e6978u

#define OUT_MAX           ((size_t)256 << 10) /* more than a burst of small messages, less than hurts */
#define OUT_FIRST         ((size_t)4 << 10)
/* `writable` comes when no more than this is held, so that the owner writes in bursts. */
#define OUT_LOW (OUT_MAX / 2)

/* Space for the descriptors of one message, aligned as a header needs it. */
union control {
    struct cmsghdr header;
    char space[CMSG_SPACE(STREAM_UNIX_FDS_MAX * sizeof(int))];
};

struct leaving {
    int fd;
    bool bound;  /* to a byte: a stream_write came after it was attached */
    uint64_t at; /* that byte's place in all that was ever written */
};

struct stream_unix {
    struct stream stream;
    unsigned magic;
    struct loop *loop;
    int fd;
    uid_t peer;
    struct event edge, room, soon;
    const struct stream_events *events;
    void *arg;

    bool ready;   /* has been told */
    bool told;    /* TOLD, else ARMED */
    bool drained; /* see above */
    bool closing; /* the peer has shut its side: the end stands behind what is left to read */
    bool resume;  /* the owner asked for `readable` */
    bool starved; /* the owner waits for `writable` */
    bool failed;  /* `failed` was or will be called */
    char why[128];

    char *out; /* bytes [out_head, out_tail) wait */
    size_t out_room, out_head, out_tail;
    uint64_t sent; /* bytes that have gone to the kernel, ever */
    struct leaving leaving[STREAM_UNIX_FDS_MAX];
    unsigned leaving_count;
    int arrived[STREAM_UNIX_FDS_MAX]; /* oldest first */
    unsigned arrived_count;
};

static const struct stream_class class_unix;

static struct stream_unix *self(const struct stream *stream)
{
    struct stream_unix *this = (struct stream_unix *)(uintptr_t)stream;

    CHECK(stream != NULL && stream->class == &class_unix && this->magic == STREAM_UNIX_MAGIC);
    CHECK(loop_is_here(this->loop));
    return this;
}

static void call_soon(struct stream_unix *this)
{
    static const struct timeval zero;

    CHECK(event_add(&this->soon, &zero) == 0);
}

/* Ends the stream; the owner hears of it from `soon`. Returns STREAM_FAILED. */
static int fail(struct stream_unix *this, const char *what, int error)
{
    if (this->failed)
        return STREAM_FAILED;
    this->failed = true;
    if (error != 0)
        snprintf(this->why, sizeof(this->why), "%s: %s", what, strerror(error));
    else
        snprintf(this->why, sizeof(this->why), "%s", what);
    event_del(&this->edge);
    event_del(&this->room);
    call_soon(this);
    return STREAM_FAILED;
}

/* --- reading
 * -------------------------------------------------------------------------------------- */

/* Keeps the descriptors that came with a message; false if there are more than anybody asked for.
 */
static bool keep_arrived(struct stream_unix *this, struct msghdr *message)
{
    bool good = (message->msg_flags & MSG_CTRUNC) == 0;
    struct cmsghdr *header;

    for (header = CMSG_FIRSTHDR(message); header != NULL; header = CMSG_NXTHDR(message, header)) {
        size_t count;

        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
            if (this->arrived_count < STREAM_UNIX_FDS_MAX) {
                this->arrived[this->arrived_count++] = fd;
            } else {
                close(fd);
                good = false;
            }
        }
    }
    return good;
}

static ssize_t unix_read(struct stream *stream, void *to, size_t size)
{
    struct stream_unix *this = self(stream);
    struct iovec part = {.iov_base = to, .iov_len = size};
    union control control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t n;

    if (this->failed)
        return STREAM_FAILED;
    if (this->drained) {
        this->drained = false;
        this->told = false;
        return STREAM_AGAIN;
    }
    do {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        n = recvmsg(this->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        this->told = false;
        return STREAM_AGAIN;
    }
    if (n < 0)
        return fail(this, "cannot read", errno);
    if (!keep_arrived(this, &message))
        return fail(this, "more descriptors came than are expected or may be open", 0);
    this->drained = n > 0 && (size_t)n < size && message.msg_controllen == 0 && !this->closing;
    return n;
}

static void on_edge(evutil_socket_t fd, short what, void *arg)
{
    struct stream_unix *this = arg;

    CHECK(this->magic == STREAM_UNIX_MAGIC);
    this->drained = false;
    if (what & EV_CLOSED)
        this->closing = true;
    if (this->told)
        return;
    this->told = true;
    this->events->readable(this->arg);
}

static void unix_resume(struct stream *stream)
{
    struct stream_unix *this = self(stream);

    this->resume = true;
    if (this->ready)
        call_soon(this);
}

/* --- writing
 * -------------------------------------------------------------------------------------- */

static size_t held(const struct stream_unix *this)
{
    return this->out_tail - this->out_head;
}

/* How many descriptors leave with the next byte; *size is cut to end before the next that do. */
static unsigned leaving_now(const struct stream_unix *this, size_t *size)
{
    unsigned count = 0;

    for (unsigned i = 0; i < this->leaving_count && this->leaving[i].bound; i++) {
        if (this->leaving[i].at == this->sent) {
            count++;
        } else {
            if (*size > this->leaving[i].at - this->sent)
                *size = (size_t)(this->leaving[i].at - this->sent);
            break;
        }
    }
    return count;
}

static void put_descriptors(const struct stream_unix *this, unsigned count, struct msghdr *message,
                            union control *control)
{
    struct cmsghdr *header;

    memset(control, 0, sizeof(*control));
    message->msg_control = control->space;
    message->msg_controllen = CMSG_SPACE(count * sizeof(int));
    header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (unsigned i = 0; i < count; i++)
        memcpy(CMSG_DATA(header) + i * sizeof(int), &this->leaving[i].fd, sizeof(int));
}

static void drop_leaving(struct stream_unix *this, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        close(this->leaving[i].fd);
    this->leaving_count -= count;
    memmove(this->leaving, this->leaving + count, this->leaving_count * sizeof(this->leaving[0]));
}

/* Sends until nothing is held (0), the kernel is full (STREAM_AGAIN) or the stream has failed. */
static int send_held(struct stream_unix *this)
{
    while (held(this) > 0) {
        struct iovec part = {.iov_base = this->out + this->out_head, .iov_len = held(this)};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        unsigned descriptors = leaving_now(this, &part.iov_len);
        union control control;
        ssize_t n;

        if (descriptors > 0)
            put_descriptors(this, descriptors, &message, &control);
        n = sendmsg(this->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            CHECK(event_add(&this->room, NULL) == 0);
            return STREAM_AGAIN;
        }
        if (n < 0)
            return fail(this, "cannot write", errno);
        drop_leaving(this, descriptors);
        this->out_head += (size_t)n;
        this->sent += (uint64_t)n;
    }
    this->out_head = this->out_tail = 0;
    return 0;
}

static int unix_flush(struct stream *stream)
{
    struct stream_unix *this = self(stream);
    int result;

    if (this->failed)
        return STREAM_FAILED;
    result = send_held(this);
    if (result == STREAM_AGAIN)
        this->starved = true;
    return result;
}

/* Makes contiguous room for up to `size` bytes more; returns how many there is room for. */
static size_t make_room(struct stream_unix *this, size_t size)
{
    size_t wanted = held(this) + size, larger = this->out_room;

    if (wanted > OUT_MAX)
        wanted = OUT_MAX;
    if (this->out_room - this->out_tail<size &&this->out_head> 0) {
        memmove(this->out, this->out + this->out_head, held(this));
        this->out_tail -= this->out_head;
        this->out_head = 0;
    }
    if (larger < wanted) {
        if (larger == 0)
            larger = OUT_FIRST;
        while (larger < wanted)
            larger *= 2;
        this->out = xrealloc(this->out, larger);
        this->out_room = larger;
    }
    return this->out_room - this->out_tail < size ? this->out_room - this->out_tail : size;
}

static ssize_t unix_write(struct stream *stream, const void *from, size_t size)
{
    struct stream_unix *this = self(stream);
    const char *bytes = from;
    size_t taken = 0;

    if (this->failed)
        return STREAM_FAILED;
    if (size == 0)
        return 0;
    while (taken < size) {
        size_t part = make_room(this, size - taken);

        if (part == 0) {
            int result = send_held(this);

            if (result == STREAM_FAILED)
                return STREAM_FAILED;
            if (held(this) == OUT_MAX)
                break;
            continue;
        }
        for (unsigned i = 0; taken == 0 && i < this->leaving_count; i++) {
            if (!this->leaving[i].bound) {
                this->leaving[i].bound = true;
                this->leaving[i].at = this->sent + held(this);
            }
        }
        memcpy(this->out + this->out_tail, bytes + taken, part);
        this->out_tail += part;
        taken += part;
    }
    if (taken < size)
        this->starved = true;
    return taken > 0 ? (ssize_t)taken : STREAM_AGAIN;
}

static void on_room(evutil_socket_t fd, short what, void *arg)
{
    struct stream_unix *this = arg;

    CHECK(this->magic == STREAM_UNIX_MAGIC);
    if (send_held(this) == STREAM_FAILED || !this->starved || held(this) > OUT_LOW)
        return;
    this->starved = false;
    this->events->writable(this->arg);
}

/* --- life
 * ----------------------------------------------------------------------------------------- */

static void on_soon(evutil_socket_t fd, short what, void *arg)
{
    struct stream_unix *this = arg;

    CHECK(this->magic == STREAM_UNIX_MAGIC);
    CHECK(this->events != NULL);
    if (this->failed) {
        this->events->failed(this->arg, this->why);
    } else if (!this->ready) {
        this->ready = true;
        CHECK(event_add(&this->edge, NULL) == 0);
        if (this->resume)
            call_soon(this);
        this->events->ready(this->arg);
    } else if (this->resume) {
        this->resume = false;
        this->told = true;
        this->events->readable(this->arg);
    }
}

static void unix_set_events(struct stream *stream, const struct stream_events *events, void *arg)
{
    struct stream_unix *this = self(stream);

    CHECK(events->ready != NULL && events->readable != NULL && events->writable != NULL &&
          events->failed != NULL);
    this->events = events;
    this->arg = arg;
}

static void unix_destroy(struct stream *stream)
{
    struct stream_unix *this = self(stream);

    event_del(&this->edge);
    event_del(&this->room);
    event_del(&this->soon);
    drop_leaving(this, this->leaving_count);
    for (unsigned i = 0; i < this->arrived_count; i++)
        close(this->arrived[i]);
    close(this->fd);
    free(this->out);
    this->magic = 0;
    free(this);
}

static const struct stream_class class_unix = {
    .read = unix_read,
    .write = unix_write,
    .flush = unix_flush,
    .set_events = unix_set_events,
    .resume = unix_resume,
    .destroy = unix_destroy,
};

struct stream *stream_unix(struct loop *loop, int fd)
{
    struct stream_unix *this = xcalloc(1, sizeof(*this));
    struct event_base *base = loop_base(loop);
    struct ucred peer;
    socklen_t size = sizeof(peer);

    CHECK(fd >= 0 && loop_is_here(loop));
    this->stream.class = &class_unix;
    this->magic = STREAM_UNIX_MAGIC;
    this->loop = loop;
    this->fd = fd;
    this->peer = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.uid : (uid_t)-1;
    CHECK(event_assign(&this->edge, base, fd, EV_READ | EV_CLOSED | EV_ET | EV_PERSIST, on_edge,
                       this) == 0);
    CHECK(event_assign(&this->room, base, fd, EV_WRITE | EV_ET, on_room, this) == 0);
    CHECK(event_assign(&this->soon, base, -1, 0, on_soon, this) == 0);
    call_soon(this);
    return &this->stream;
}

bool stream_is_unix(const struct stream *stream)
{
    CHECK(stream != NULL);
    return stream->class == &class_unix;
}

int stream_unix_attach(struct stream *stream, int fd)
{
    struct stream_unix *this = self(stream);
    int copy;

    if (this->failed)
        return -EPIPE;
    if (this->leaving_count == STREAM_UNIX_FDS_MAX)
        return -EAGAIN;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        return -errno;
    this->leaving[this->leaving_count++] = (struct leaving){.fd = copy};
    return 0;
}

int stream_unix_take(struct stream *stream)
{
    struct stream_unix *this = self(stream);
    int fd;

    if (this->arrived_count == 0)
        return -1;
    fd = this->arrived[0];
    this->arrived_count--;
    memmove(this->arrived, this->arrived + 1, this->arrived_count * sizeof(this->arrived[0]));
    return fd;
}

uid_t stream_unix_peer(const struct stream *stream)
{
    return self(stream)->peer;
}
