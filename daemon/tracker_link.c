/* A connection to the tracker.
 *
 * Owns the socket while it connects, then the channel, and the table of requests that wait for
 * their answers. Leaves when to connect, and what is said, to session.c and session_account.c.
 * Protocol: proto/tracker.proto. One loop's thread; names are resolved on a worker, as getaddrinfo
 * blocks.
 *
 *   RESOLVING --resolved--> CONNECTING --ready--> GREETING --Welcome--> UP
 *       any of them --fail()--> DOWN (`down` was called; nothing follows)
 *
 * In CONNECTING the addresses are tried one after another. */
#include "daemon/tracker_link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "base/swarm_url.h"
#include "base/workers.h"
#include "crypto/tls.h"
#include "proto/channel.h"
#include "proto/limits.h"

#define TRACKER_LINK_MAGIC 0x746c6e6bu
#define PROTOCOL_VERSION   1

const char tracker_link_unknown_push[] = "the tracker sent an unknown message";

enum state { RESOLVING, CONNECTING, GREETING, UP, DOWN };

struct address {
    struct sockaddr_storage storage;
    socklen_t size;
};

/* A name that is being resolved; outlives the link if that is freed meanwhile (`link` NULL then).
 */
struct resolution {
    struct job job;
    struct mail mail;
    struct loop *loop;
    struct tracker_link *link;
    char host[SWARM_HOST_MAX + 1];
    char port[8];
    struct address addresses[LIMIT_TRACKER_ADDRESSES];
    size_t count;
    const char *fault;
};

struct request {
    struct request *next;
    uint32_t id;
    int64_t sent;
    void (*answered)(void *arg, const struct tracker_answer *);
    void *arg;
};

struct tracker_link {
    unsigned magic;
    enum state state;
    struct loop *loop;
    struct workers *handshakes;
    struct tls_context *context;
    const struct tracker_link_events *events;
    void *arg;
    struct resolution *resolution;
    struct address addresses[LIMIT_TRACKER_ADDRESSES];
    size_t count, tried;
    struct channel *channel;
    struct timer *timer;
    struct request *first, **last; /* in the order of sending */
    uint32_t next_id;
    uint8_t *payload; /* of the answer being received */
    char why[LIMIT_REASON];
};

static void connect_next(struct tracker_link *, const char *why);

static void unlink_channel(struct tracker_link *link)
{
    channel_free(link->channel);
    link->channel = NULL;
    free(link->payload);
    link->payload = NULL;
}

static void lose(struct tracker_link *link, const char *why)
{
    CHECK(link->state != DOWN);
    link->state = DOWN;
    snprintf(link->why, sizeof link->why, "%s", why);
    timer_cancel(link->timer);
    unlink_channel(link);
    struct tracker_answer lost = {.lost = link->why};
    while (link->first != NULL) {
        struct request *request = link->first;
        link->first = request->next;
        if (request->answered != NULL)
            request->answered(request->arg, &lost);
        free(request);
    }
    link->last = &link->first;
}

static void fail(struct tracker_link *link, const char *why)
{
    lose(link, why);
    link->events->down(link->arg, link->why);
}

/* --- the channel
 * ------------------------------------------------------------------------------------- */

static void send_hello(struct tracker_link *link)
{
    Tracker__Hello hello = TRACKER__HELLO__INIT;
    char agent[] = "p2pd " P2P_VERSION;

    hello.version = PROTOCOL_VERSION;
    hello.oldest = PROTOCOL_VERSION;
    hello.agent = agent;
    channel_send(link->channel, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_HELLO, 0,
                 ++link->next_id, &hello.base, NULL, 0);
}

static void on_ready(void *arg)
{
    struct tracker_link *link = arg;

    link->state = GREETING;
    /* The handshake proved that this is our tracker, so its messages may have full size. */
    channel_trust(link->channel);
    timer_set(link->timer, LIMIT_HELLO_NS);
    send_hello(link);
}

static const char *on_welcome(struct tracker_link *link, const struct frame *frame,
                              const uint8_t *message)
{
    if (frame->type == TRACKER__TRACKER_TYPE__TRACKER_FAULT) {
        static char why[LIMIT_REASON];
        Tracker__Fault *fault = tracker__fault__unpack(NULL, frame->message_size, message);
        if (fault == NULL)
            return "the tracker sent a malformed message";
        snprintf(why, sizeof why, "the tracker refuses: %s", fault->text);
        tracker__fault__free_unpacked(fault, NULL);
        return why;
    }
    if (frame->type != TRACKER__TRACKER_TYPE__TRACKER_WELCOME)
        return "the tracker did not say Welcome";
    Tracker__Welcome *welcome = tracker__welcome__unpack(NULL, frame->message_size, message);
    if (welcome == NULL)
        return "the tracker sent a malformed message";
    if (welcome->version != PROTOCOL_VERSION) {
        tracker__welcome__free_unpacked(welcome, NULL);
        return "the tracker speaks another version of the protocol";
    }
    link->state = UP;
    timer_set(link->timer, LIMIT_TRACKER_IDLE_NS / 3);
    link->events->up(link->arg, welcome);
    tracker__welcome__free_unpacked(welcome, NULL);
    return NULL;
}

static const char *on_answer(struct tracker_link *link, const struct frame *frame,
                             const uint8_t *message)
{
    struct request **at = &link->first;

    while (*at != NULL && (*at)->id != frame->id)
        at = &(*at)->next;
    struct request *request = *at;
    if (request == NULL)
        return "the tracker answered what was not asked";
    *at = request->next;
    if (*at == NULL)
        link->last = at;
    struct tracker_answer answer = {
        .type = frame->type,
        .message = message,
        .size = frame->message_size,
        .payload = link->payload,
        .payload_size = frame->payload_size,
    };
    Tracker__Fault *fault = NULL;
    const char *wrong = NULL;
    if (frame->type == TRACKER__TRACKER_TYPE__TRACKER_FAULT) {
        fault = tracker__fault__unpack(NULL, frame->message_size, message);
        answer.fault = fault;
        if (fault == NULL) {
            wrong = "the tracker sent a malformed message";
            answer.lost = wrong;
        }
    }
    if (request->answered != NULL)
        request->answered(request->arg, &answer);
    if (fault != NULL)
        tracker__fault__free_unpacked(fault, NULL);
    free(request);
    return wrong;
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct tracker_link *link = arg;

    (void)message;
    free(link->payload);
    link->payload = malloc(frame->payload_size);
    if (link->payload == NULL)
        *fault = "out of memory";
    return link->payload;
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct tracker_link *link = arg;

    (void)payload;
    if (link->state == GREETING)
        return on_welcome(link, frame, message);
    if (frame->flags & FRAME_ANSWER)
        return on_answer(link, frame, message);
    const char *fault = link->events->push(link->arg, frame->type, message, frame->message_size);
    return fault == tracker_link_unknown_push && frame->flags & FRAME_MAY_SKIP ? NULL : fault;
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct tracker_link *link = arg;

    if (link->state == CONNECTING) {
        connect_next(link, why);
        return;
    }
    fail(link, orderly ? "the tracker closed the connection" : why);
}

static const struct channel_events channel_events = {
    .ready = on_ready,
    .frame = on_frame,
    .payload = on_payload,
    .closed = on_closed,
};

/* --- time
 * -------------------------------------------------------------------------------------------- */

static void on_timer(void *arg)
{
    struct tracker_link *link = arg;
    int64_t now = clock_now();

    if (link->state == CONNECTING) {
        connect_next(link, "no answer");
        return;
    }
    if (link->state != UP) {
        fail(link, "the tracker does not answer");
        return;
    }
    if ((link->first != NULL && now - link->first->sent > LIMIT_ANSWER_NS) ||
        now - channel_last_heard(link->channel) > LIMIT_TRACKER_IDLE_NS) {
        fail(link, "the tracker does not answer any more");
        return;
    }
    Tracker__Ping ping = TRACKER__PING__INIT;
    tracker_link_request(link, TRACKER__TRACKER_TYPE__TRACKER_PING, &ping.base, NULL, NULL);
    timer_set(link->timer, LIMIT_TRACKER_IDLE_NS / 3);
}

/* --- connecting
 * -------------------------------------------------------------------------------------- */

static int open_socket(const struct address *address)
{
    int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&address->storage, address->size) != 0 &&
        errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* Tries the next address; `why` the one before failed. */
static void connect_next(struct tracker_link *link, const char *why)
{
    char reason[LIMIT_REASON];

    snprintf(reason, sizeof reason, "%s", why);
    unlink_channel(link);
    while (link->tried < link->count) {
        int fd = open_socket(&link->addresses[link->tried++]);
        if (fd < 0) {
            snprintf(reason, sizeof reason, "%s", strerror(errno));
            continue;
        }
        struct stream *stream = tls_connect(link->loop, link->handshakes, link->context, fd);
        link->channel = channel_new(link->loop, stream, &channel_events, link);
        timer_set(link->timer, LIMIT_CONNECT_NS + LIMIT_HANDSHAKE_NS);
        return;
    }
    fail(link, reason);
}

static void resolved(struct mail *mail, void *owner)
{
    struct resolution *r =
        (struct resolution *)(void *)((char *)mail - offsetof(struct resolution, mail));
    struct tracker_link *link = r->link;

    (void)owner;
    if (link != NULL) {
        CHECK_OBJECT(link, TRACKER_LINK_MAGIC);
        link->resolution = NULL;
        link->state = CONNECTING;
        memcpy(link->addresses, r->addresses, sizeof link->addresses);
        link->count = r->count;
        connect_next(link, r->fault != NULL ? r->fault : "the tracker's host has no address");
    }
    free(r);
}

static void resolve(struct job *job)
{
    struct resolution *r =
        (struct resolution *)(void *)((char *)job - offsetof(struct resolution, job));
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list = NULL;

    int error = getaddrinfo(r->host, r->port, &hints, &list);
    if (error != 0)
        r->fault = gai_strerror(error);
    for (struct addrinfo *at = list; at != NULL && r->count < LIMIT_TRACKER_ADDRESSES;
         at = at->ai_next) {
        struct address *address = &r->addresses[r->count++];
        memcpy(&address->storage, at->ai_addr, at->ai_addrlen);
        address->size = at->ai_addrlen;
    }
    if (list != NULL)
        freeaddrinfo(list);
    loop_post(r->loop, &r->mail);
}

struct tracker_link *tracker_link_new(struct loop *loop, const struct tracker_link_pools *pools,
                                      const struct swarm_url *url, struct tls_context *context,
                                      const struct tracker_link_events *events, void *arg)
{
    struct tracker_link *link = xcalloc(1, sizeof *link);
    struct resolution *r = xcalloc(1, sizeof *r);

    link->magic = TRACKER_LINK_MAGIC;
    link->state = RESOLVING;
    link->loop = loop;
    link->handshakes = pools->handshakes;
    link->context = tls_context_share(context);
    link->events = events;
    link->arg = arg;
    link->last = &link->first;
    /* No limit on resolving: another try would only wait behind this one. */
    link->timer = timer_new(loop, on_timer, link);
    link->resolution = r;
    r->job.run = resolve;
    r->mail.deliver = resolved;
    r->loop = loop;
    r->link = link;
    snprintf(r->host, sizeof r->host, "%s", url->host);
    snprintf(r->port, sizeof r->port, "%u", url->port);
    workers_post(pools->resolver, &r->job, false);
    return link;
}

void tracker_link_free(struct tracker_link *link)
{
    if (link == NULL)
        return;
    CHECK_OBJECT(link, TRACKER_LINK_MAGIC);
    if (link->resolution != NULL)
        link->resolution->link = NULL;
    unlink_channel(link);
    timer_free(link->timer);
    while (link->first != NULL) {
        struct request *request = link->first;
        link->first = request->next;
        free(request);
    }
    tls_context_free(link->context);
    link->magic = 0;
    free(link);
}

void tracker_link_end(struct tracker_link *link, const char *why)
{
    if (link != NULL && link->state != DOWN)
        lose(link, why);
    tracker_link_free(link);
}

/* --- talking
 * ------------------------------------------------------------------------------------------ */

void tracker_link_request(struct tracker_link *link, unsigned type, const ProtobufCMessage *message,
                          void (*answered)(void *arg, const struct tracker_answer *), void *arg)
{
    struct request *request = xcalloc(1, sizeof *request);

    CHECK(link->state == UP);
    if (++link->next_id == 0)
        link->next_id = 1;
    request->id = link->next_id;
    request->sent = clock_now();
    request->answered = answered;
    request->arg = arg;
    *link->last = request;
    link->last = &request->next;
    channel_send(link->channel, CHANNEL_URGENT, (uint16_t)type, 0, request->id, message, NULL, 0);
}

void tracker_link_notice(struct tracker_link *link, unsigned type, const ProtobufCMessage *message)
{
    CHECK(link->state == UP);
    channel_send(link->channel, CHANNEL_URGENT, (uint16_t)type, 0, 0, message, NULL, 0);
}

bool tracker_link_is_up(const struct tracker_link *link)
{
    return link != NULL && link->state == UP;
}

struct certificate *tracker_link_ca(const struct tracker_link *link)
{
    return tls_peer_ca(channel_stream(link->channel));
}

void tracker_link_local_address(const struct tracker_link *link, char *out)
{
    struct sockaddr_storage storage;
    socklen_t size = sizeof storage;

    out[0] = '\0';
    if (link->channel == NULL ||
        getsockname(tls_fd(channel_stream(link->channel)), (struct sockaddr *)&storage, &size) != 0)
        return;
    if (getnameinfo((struct sockaddr *)&storage, size, out, LIMIT_ADDRESS, NULL, 0,
                    NI_NUMERICHOST) != 0)
        out[0] = '\0';
}
