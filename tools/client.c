/* A blocking client of the local protocol.
 *
 * Owns the socket, the buffer of the frame that is being read and the arena of the message handed out
 * last. Framing is proto/frame.h's, limits are proto/limits.h's. p2pd and p2pctl come from one package
 * and belong to one user, which the peer's credentials prove; still every size is checked before
 * memory is taken for it. One thread.
 *
 *   client_open -> hello -> [ client_send -> client_next* ]* -> client_free
 *
 * After the connection has ended every call fails with the same fault. */
#include "tools/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/home.h"
#include "base/mem.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "proto/message.h"

#define PROTOCOL_VERSION 1

struct client {
    int fd;
    uint32_t id; /* of the request under way */
    uint32_t pid;
    char *account, *url;
    const sigset_t *mask; /* while waiting, may be NULL */
    uint8_t header[FRAME_HEADER_SIZE];
    size_t header_have;
    struct frame frame;
    uint8_t *body; /* message and payload of `frame`, NULL before its header is whole */
    size_t body_have;
    char *farewell; /* of LOCAL_GOODBYE */
    struct message_arena arena;
    bool lost;
};

__attribute__((format(printf, 2, 3))) static void fail(struct client_fault *fault,
                                                       const char *format, ...)
{
    va_list arguments;

    memset(fault, 0, sizeof *fault);
    va_start(arguments, format);
    vsnprintf(fault->text, sizeof fault->text, format, arguments);
    va_end(arguments);
}

static void lose(struct client *c, struct client_fault *fault, const char *why)
{
    c->lost = true;
    if (c->farewell != NULL && *c->farewell != '\0')
        fail(fault, "p2pd has ended: %s", c->farewell);
    else
        fail(fault, "%s", c->farewell != NULL ? "p2pd has ended" : why);
    fault->lost = true;
}

/* --- bytes ------------------------------------------------------------------------------------- */

/* 1: the socket is ready for `events`; 0: the deadline has passed; -1: interrupted or failed. */
static int wait_for(struct client *c, short events, int64_t deadline)
{
    struct pollfd p = {.fd = c->fd, .events = events};

    for (;;) {
        int64_t left = deadline - clock_now();
        struct timespec limit = {.tv_sec = left / NS_PER_S, .tv_nsec = left % NS_PER_S};

        if (left < 0)
            limit = (struct timespec){0, 0};
        int count = ppoll(&p, 1, &limit, c->mask);
        if (count >= 0)
            return count > 0;
        if (errno != EINTR || c->mask != NULL)
            return -1;
    }
}

static bool send_bytes(struct client *c, const uint8_t *bytes, size_t size, int64_t deadline,
                       struct client_fault *fault)
{
    while (size > 0) {
        ssize_t sent = send(c->fd, bytes, size, MSG_NOSIGNAL);

        if (sent >= 0) {
            bytes += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (wait_for(c, POLLOUT, deadline) <= 0) {
                lose(c, fault, "p2pd does not answer");
                return false;
            }
        } else if (errno != EINTR) {
            lose(c, fault, "p2pd has ended");
            return false;
        }
    }
    return true;
}

static bool send_frame(struct client *c, uint16_t type, uint32_t id,
                       const ProtobufCMessage *message, int64_t deadline,
                       struct client_fault *fault)
{
    size_t size = message != NULL ? protobuf_c_message_get_packed_size(message) : 0;

    if (c->lost) {
        lose(c, fault, "p2pd has ended");
        return false;
    }
    if (size > LIMIT_FRAME_MESSAGE) {
        fail(fault, "too many or too long arguments for one request");
        return false;
    }
    uint8_t *bytes = xmalloc(FRAME_HEADER_SIZE + size);
    const struct frame frame = {.message_size = (uint32_t)size, .type = type, .id = id};
    frame_encode(bytes, &frame);
    if (message != NULL)
        protobuf_c_message_pack(message, bytes + FRAME_HEADER_SIZE);
    bool good = send_bytes(c, bytes, FRAME_HEADER_SIZE + size, deadline, fault);
    explicit_bzero(bytes, FRAME_HEADER_SIZE + size);
    free(bytes);
    return good;
}

enum read_result { READ_FRAME, READ_TIMEOUT, READ_INTERRUPTED, READ_LOST };

/* Takes what the socket has, up to the end of one part. Returns a fault's clause or NULL. */
static const char *read_part(struct client *c, bool *again)
{
    bool in_header = c->header_have < FRAME_HEADER_SIZE;
    uint8_t *to = in_header ? c->header + c->header_have : c->body + c->body_have;
    size_t size = in_header ? FRAME_HEADER_SIZE - c->header_have
                            : (size_t)c->frame.message_size + c->frame.payload_size - c->body_have;
    ssize_t got;

    do
        got = recv(c->fd, to, size, 0);
    while (got < 0 && errno == EINTR);
    *again = got < 0 && errno == EAGAIN;
    if (*again)
        return NULL;
    if (got <= 0)
        return "p2pd has ended";
    if (!in_header) {
        c->body_have += (size_t)got;
        return NULL;
    }
    c->header_have += (size_t)got;
    if (c->header_have < FRAME_HEADER_SIZE)
        return NULL;
    if (frame_decode(&c->frame, c->header, LIMIT_FRAME_MESSAGE) != NULL)
        return "p2pd sent something malformed";
    c->body = malloc((size_t)c->frame.message_size + c->frame.payload_size + 1);
    return c->body == NULL ? "no memory for p2pd's answer" : NULL;
}

/* The next frame, in c->frame and c->body until the next call. */
static enum read_result read_frame(struct client *c, int64_t deadline, struct client_fault *fault)
{
    if (c->lost) {
        lose(c, fault, "p2pd has ended");
        return READ_LOST;
    }
    if (c->body != NULL && c->body_have == (size_t)c->frame.message_size + c->frame.payload_size) {
        free(c->body);
        c->body = NULL;
        c->header_have = c->body_have = 0;
    }
    for (;;) {
        bool again = false;
        const char *wrong = NULL;

        if (c->body != NULL &&
            c->body_have == (size_t)c->frame.message_size + c->frame.payload_size)
            return READ_FRAME;
        wrong = read_part(c, &again);
        if (wrong != NULL) {
            lose(c, fault, wrong);
            return READ_LOST;
        }
        if (again) {
            int ready = wait_for(c, POLLIN, deadline);
            if (ready <= 0)
                return ready == 0 ? READ_TIMEOUT : READ_INTERRUPTED;
        }
    }
}

/* --- messages ---------------------------------------------------------------------------------- */

static const void *unpack(struct client *c, const ProtobufCMessageDescriptor *descriptor)
{
    message_done(&c->arena);
    return message_unpack(&c->arena, descriptor, c->body, c->frame.message_size);
}

/* An answer LOCAL_ERROR. */
static void answered_error(struct client *c, struct client_fault *fault)
{
    const Local__Error *error = unpack(c, &local__error__descriptor);

    if (error == NULL) {
        lose(c, fault, "p2pd sent something malformed");
        return;
    }
    int number = error->number > 0 && error->number < 4096 ? error->number : EIO;
    fail(fault, "%s", *error->text != '\0' ? error->text : strerror(number));
    fault->number = number;
}

static void keep_farewell(struct client *c)
{
    const Local__Goodbye *goodbye = unpack(c, &local__goodbye__descriptor);

    free(c->farewell);
    c->farewell = xstrdup(goodbye != NULL ? goodbye->text : "");
}

/* What the frame that was read means for `request`; false: nothing, go on. */
static bool understand(struct client *c, const struct client_request *request,
                       const struct client_notice *notice, const void **message,
                       enum client_event *event, struct client_fault *fault)
{
    const struct frame *frame = &c->frame;
    bool answer = (frame->flags & FRAME_ANSWER) != 0 && frame->id == c->id;
    bool told = !answer && notice != NULL && frame->id == c->id && frame->type == notice->type;

    if (frame->type == LOCAL__LOCAL_TYPE__LOCAL_GOODBYE) {
        keep_farewell(c);
        return false;
    }
    if (!answer && !told)
        return false;
    *event = CLIENT_FAULT;
    if (answer && frame->type == LOCAL__LOCAL_TYPE__LOCAL_ERROR) {
        answered_error(c, fault);
        return true;
    }
    if (answer && frame->type != request->answer_type) {
        lose(c, fault, "p2pd sent an unexpected answer");
        return true;
    }
    *message = unpack(c, told ? notice->message : request->answer);
    if (*message == NULL)
        lose(c, fault, "p2pd sent something malformed");
    else
        *event = told ? CLIENT_NOTICE : CLIENT_ANSWER;
    return true;
}

bool client_send(struct client *c, const struct client_request *request, struct client_fault *fault)
{
    c->id = c->id == UINT32_MAX ? 1 : c->id + 1;
    return send_frame(c, request->type, c->id, request->message, clock_now() + LIMIT_CTL_ANSWER_NS,
                      fault);
}

enum client_event client_next(struct client *c, const struct client_request *request,
                              const struct client_notice *notice, int64_t timeout_ns,
                              const void **message, struct client_fault *fault)
{
    int64_t deadline = clock_now() + timeout_ns;
    enum client_event event;

    for (;;) {
        switch (read_frame(c, deadline, fault)) {
        case READ_TIMEOUT:
            return CLIENT_TIMEOUT;
        case READ_INTERRUPTED:
            return CLIENT_INTERRUPTED;
        case READ_LOST:
            return CLIENT_FAULT;
        case READ_FRAME:
            break;
        }
        if (understand(c, request, notice, message, &event, fault))
            return event;
    }
}

const void *client_request(struct client *c, const struct client_request *request,
                           struct client_fault *fault)
{
    const void *message = NULL;

    if (!client_send(c, request, fault))
        return NULL;
    switch (client_next(c, request, NULL, request->timeout_ns, &message, fault)) {
    case CLIENT_ANSWER:
        return message;
    case CLIENT_TIMEOUT:
        fail(fault, "p2pd (pid %u) does not answer", c->pid);
        fault->number = ETIMEDOUT;
        return NULL;
    case CLIENT_INTERRUPTED:
        fail(fault, "interrupted");
        fault->number = EINTR;
        return NULL;
    case CLIENT_NOTICE:
    case CLIENT_FAULT:
        break;
    }
    return NULL;
}

void client_unblock(struct client *c, const sigset_t *mask)
{
    c->mask = mask;
}

/* --- connecting -------------------------------------------------------------------------------- */

/* A connected socket of this user's p2pd, or -1 and *fault. */
static int dial(const char *home, struct client_fault *fault)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof peer;
    char *path = home_socket(home);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || strlen(path) >= sizeof address.sun_path) {
        fail(fault, "%s: %s", path, strerror(fd < 0 ? errno : ENAMETOOLONG));
        goto close_socket;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        if (error == ENOENT || error == ECONNREFUSED || error == ENOTDIR) {
            fail(fault, "p2pd is not running for %s; 'p2pctl start' starts it", home);
            fault->absent = true;
        } else if (error == EAGAIN) {
            fail(fault, "p2pd does not accept connections: it is stopped or overloaded");
        } else {
            fail(fault, "%s: %s", path, strerror(error));
        }
        goto close_socket;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.uid != geteuid()) {
        fail(fault, "%s belongs to another user's program", path);
        goto close_socket;
    }
    free(path);
    return fd;

close_socket:
    if (fd >= 0)
        close(fd);
    free(path);
    return -1;
}

struct client *client_open(const char *home, struct client_fault *fault)
{
    Local__Hello hello = LOCAL__HELLO__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_HELLO,
        .message = &hello.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_WELCOME,
        .answer = &local__welcome__descriptor,
        .timeout_ns = LIMIT_HELLO_NS,
    };
    int fd = dial(home, fault);

    if (fd < 0)
        return NULL;
    struct client *c = xcalloc(1, sizeof *c);
    c->fd = fd;
    hello.version = PROTOCOL_VERSION;
    hello.program = LOCAL__PROGRAM__PROGRAM_CTL;
    const Local__Welcome *welcome = client_request(c, &request, fault);
    if (welcome == NULL || welcome->version != PROTOCOL_VERSION) {
        if (welcome != NULL)
            fail(fault,
                 "p2pd speaks version %u of the local protocol and p2pctl %u: they are from "
                 "different packages; restart p2pd",
                 welcome->version, PROTOCOL_VERSION);
        else if (fault->number == ETIMEDOUT)
            fail(fault, "p2pd does not answer");
        client_free(c);
        return NULL;
    }
    c->pid = welcome->pid;
    c->account = xstrdup(welcome->account);
    c->url = xstrdup(welcome->url);
    return c;
}

void client_free(struct client *c)
{
    if (c == NULL)
        return;
    close(c->fd);
    message_done(&c->arena);
    free(c->body);
    free(c->farewell);
    free(c->account);
    free(c->url);
    free(c);
}

uint32_t client_pid(const struct client *c)
{
    return c->pid;
}

const char *client_account(const struct client *c)
{
    return c->account;
}

const char *client_url(const struct client *c)
{
    return c->url;
}
