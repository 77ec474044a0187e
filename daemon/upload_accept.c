/* How links for serving come to be: the listener, the first frame of what it accepts, dialling
 * back.
 *
 * Owns the listening sockets and, as greetings, connections from accept (or connect) to the first
 * Hello; then hands the stream to upload_link.c, or to the download side if the other end is the
 * server. The first frame is read byte-exact from the stream, not through a channel, so that
 * nothing behind it is taken away from whoever gets the stream. Thread: "upload".
 *
 *   accepted: HANDSHAKE --ready--> HELLO --Hello{fetcher}--> serve_link_new
 *                                       '--Hello{server}---> download_adopt
 *   dialled:  (next address) HANDSHAKE --ready: our Hello{server} goes out--> HELLO
 * --Hello{fetcher}--> serve_link_new
 *
 * Handshakes cost 2.6 ms of RSA each, so their number is bounded: at once, in all and for each source,
 * and over time for each source (proto/knocks.h); when all places are taken, the slowest of the source
 * that has most of them makes room. Descriptors that others need (LIMIT_DESCRIPTORS_KEPT) are not given to
 * strangers, and when there are none at all the listener rests for a second instead of spinning. */
#include "daemon/upload_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/stream.h"
#include "base/swarm_url.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/download.h"
#include "proto/channel.h"
#include "proto/message.h"
#include "proto/peer.pb-c.h"

#define ACCEPT_REST_NS   NS_PER_S
#define PROTOCOL_VERSION 1

/* --- greetings
 * ------------------------------------------------------------------------------------------------
 */

struct greeting {
    struct greeting *prev, *next;
    struct upload *upload;
    struct stream *stream;
    struct timer *timer;
    struct remote remote;
    char source[INET6_ADDRSTRLEN]; /* without port */
    uint8_t key[SOURCE_KEY_SIZE];  /* the source's, for budgets */
    int64_t since;
    bool good; /* a member of whom nothing bad is known */
    uint8_t bytes[FRAME_HEADER_SIZE + LIMIT_HELLO];
    size_t have, need;
    bool dialled;
    uint8_t expected[DEVICE_ID_SIZE]; /* dialled: who must answer */
    char **addresses;                 /* dialled: malloc'ed, NULL-terminated */
    size_t tried;
};

static void greeting_free(struct greeting *g)
{
    DL_DELETE(g->upload->greetings, g);
    *(g->dialled ? &g->upload->dial_count : &g->upload->greeting_count) -= 1;
    stream_free(g->stream);
    timer_free(g->timer);
    for (size_t i = 0; g->addresses != NULL && g->addresses[i] != NULL; i++)
        free(g->addresses[i]);
    free(g->addresses);
    free(g);
}

static struct greeting *greeting_new(struct upload *u, void (*timeout)(void *), bool dialled)
{
    struct greeting *g = xcalloc(1, sizeof *g);

    g->upload = u;
    g->dialled = dialled;
    g->timer = timer_new(u->loop, timeout, g);
    g->need = FRAME_HEADER_SIZE;
    g->since = clock_now();
    DL_APPEND(u->greetings, g);
    *(dialled ? &u->dial_count : &u->greeting_count) += 1;
    return g;
}

void greeting_close_all(struct upload *u)
{
    struct greeting *g, *next;

    DL_FOREACH_SAFE(u->greetings, g, next)
        greeting_free(g);
}

static void dial_next(struct greeting *, const char *why);

static void give_up(struct greeting *g, const char *why)
{
    if (g->dialled) {
        dial_next(g, why);
        return;
    }
    log_debug("a connection from %s came to nothing: %s", g->source, why);
    if (!g->good)
        knocks_fine(g->upload->knocks, g->key, clock_now());
    greeting_free(g);
}

/* A frame that is small and the first thing on the stream, so it is taken whole. */
static bool send_first(struct greeting *g, unsigned type, const ProtobufCMessage *message)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 512];
    size_t size = protobuf_c_message_get_packed_size(message);
    struct frame frame = {.message_size = (uint32_t)size, .type = (uint16_t)type};

    CHECK(size <= sizeof bytes - FRAME_HEADER_SIZE);
    frame_encode(bytes, &frame);
    protobuf_c_message_pack(message, bytes + FRAME_HEADER_SIZE);
    return stream_write(g->stream, bytes, FRAME_HEADER_SIZE + size) ==
               (ssize_t)(FRAME_HEADER_SIZE + size) &&
           stream_flush(g->stream) != STREAM_FAILED;
}

/* Gives up on a member, who is told why. */
static void refuse(struct greeting *g, Peer__Farewell farewell, const char *why)
{
    Peer__Goodbye bye = PEER__GOODBYE__INIT;
    char text[LIMIT_REASON];

    snprintf(text, sizeof text, "%s", why);
    bye.code = farewell;
    bye.text = text;
    if (!g->dialled)
        (void)send_first(g, PEER__PEER_TYPE__PEER_GOODBYE, &bye.base);
    give_up(g, why);
}

/* The frame is whole. Who is it, and what for? */
static void decide(struct greeting *g, const struct frame *frame)
{
    struct upload *u = g->upload;
    struct message_arena arena;
    const Peer__Hello *hello = NULL;
    const char *fault = NULL;
    Peer__Role role = PEER__ROLE__ROLE_UNKNOWN;
    Peer__Farewell farewell = PEER__FAREWELL__FAREWELL_PROTOCOL;
    struct certificate_subject subject;

    if (frame->type == PEER__PEER_TYPE__PEER_HELLO && frame->payload_size == 0) {
        hello = message_unpack(&arena, &peer__hello__descriptor, g->bytes + FRAME_HEADER_SIZE,
                               frame->message_size);
        if (hello == NULL)
            fault = "a malformed Hello";
        else
            role = hello->role;
        if (hello != NULL &&
            (hello->oldest > PROTOCOL_VERSION || hello->version < PROTOCOL_VERSION)) {
            fault = "it speaks another version of the protocol";
            farewell = PEER__FAREWELL__FAREWELL_VERSION;
        }
        message_done(&arena);
    } else {
        fault = "its first message is not a Hello";
    }
    if (fault == NULL && role != PEER__ROLE__ROLE_FETCHER &&
        (role != PEER__ROLE__ROLE_SERVER || g->dialled))
        fault = "its Hello names no role that fits";
    /* Once more: it may have been revoked, or brought its friends, since the handshake. */
    if (fault == NULL)
        fault = tls_peer(g->stream, &subject) ? upload_refuses(u, &subject, &farewell)
                                              : "it shows no certificate";
    if (fault != NULL) {
        refuse(g, farewell, fault);
        return;
    }
    struct stream *stream = g->stream;
    struct remote remote = g->remote;
    g->stream = NULL;
    if (role == PEER__ROLE__ROLE_FETCHER) {
        bool answer = !g->dialled;
        greeting_free(g);
        serve_link_new(u, stream, &remote, answer);
        stream_resume(stream);
        return;
    }
    size_t size = frame->message_size;
    uint8_t *bytes = xmemdup(g->bytes + FRAME_HEADER_SIZE, size == 0 ? 1 : size);
    greeting_free(g);
    tls_move(stream, download_loop(u->daemon->download));
    download_adopt(u->daemon->download, stream, bytes, size);
}

static void on_readable(void *arg)
{
    struct greeting *g = arg;
    struct frame frame;

    for (;;) {
        ssize_t n = stream_read(g->stream, g->bytes + g->have, g->need - g->have);
        if (n == STREAM_AGAIN || n == STREAM_FAILED)
            return; /* `failed` follows */
        if (n == 0) {
            give_up(g, "closed");
            return;
        }
        g->have += (size_t)n;
        if (g->have < g->need)
            continue;
        const char *fault = frame_decode(&frame, g->bytes, LIMIT_HELLO);
        if (fault != NULL) {
            give_up(g, fault);
            return;
        }
        g->need = FRAME_HEADER_SIZE + frame.message_size;
        if (g->have == g->need) {
            decide(g, &frame);
            return;
        }
    }
}

/* Our Hello as the server who dialled. */
static bool send_hello(struct greeting *g)
{
    Peer__Hello hello = PEER__HELLO__INIT;
    char agent[] = "p2pd " P2P_VERSION;

    hello.version = PROTOCOL_VERSION;
    hello.oldest = PROTOCOL_VERSION;
    hello.role = PEER__ROLE__ROLE_SERVER;
    hello.agent = agent;
    hello.device.data = g->expected;
    hello.device.len = sizeof g->expected;
    return send_first(g, PEER__PEER_TYPE__PEER_HELLO, &hello.base);
}

static void on_ready(void *arg)
{
    struct greeting *g = arg;
    struct certificate_subject subject;

    if (!tls_peer(g->stream, &subject)) {
        give_up(g, "it shows no certificate");
        return;
    }
    Peer__Farewell farewell;
    const char *no = upload_refuses(g->upload, &subject, &farewell);
    if (no == NULL && g->dialled && memcmp(subject.device, g->expected, DEVICE_ID_SIZE) != 0)
        no = "another device answers there";
    if (no != NULL) {
        refuse(g, farewell, no);
        return;
    }
    g->good = true;
    if (!g->dialled)
        knocks_give_back(g->upload->knocks, g->key, subject.account, clock_now());
    memcpy(g->remote.account, subject.account, sizeof g->remote.account);
    memcpy(g->remote.device, subject.device, sizeof g->remote.device);
    g->remote.valid_until = subject.not_after;
    timer_set(g->timer, LIMIT_HELLO_NS);
    if (g->dialled && !send_hello(g))
        give_up(g, "the Hello could not be sent");
}

static void on_failed(void *arg, const char *why)
{
    give_up(arg, why);
}

static void on_writable(void *arg)
{
    (void)stream_flush(((struct greeting *)arg)->stream);
}

static const struct stream_events greeting_events = {
    .ready = on_ready, .readable = on_readable, .writable = on_writable, .failed = on_failed};

static void on_timeout(void *arg)
{
    give_up(arg, "no answer in time");
}

/* --- dialling back
 * ------------------------------------------------------------------------------------------------
 */

/* Connects to a numeric "HOST:PORT"; -1 if that can't be. */
static int connect_numeric(const char *address)
{
    char host[SWARM_HOST_MAX + 1], service[8];
    uint16_t port;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV},
                    *list;

    if (!host_port_parse(address, 0, host, &port) || port == 0)
        return -1;
    snprintf(service, sizeof service, "%u", port);
    if (getaddrinfo(host, service, &hints, &list) != 0)
        return -1;
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) != 0 && errno != EINPROGRESS) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

/* For an address that is not the last: the asker may have several networks that are not ours. */
#define DIAL_STEP_NS (NS_PER_S)

static void dial_next(struct greeting *g, const char *why)
{
    struct upload *u = g->upload;

    stream_free(g->stream);
    g->stream = NULL;
    g->have = 0;
    g->need = FRAME_HEADER_SIZE;
    while (g->addresses[g->tried] != NULL && u->credentials != NULL) {
        const char *address = g->addresses[g->tried++];
        int fd = connect_numeric(address);
        if (fd < 0)
            continue;
        snprintf(g->remote.address, sizeof g->remote.address, "%s", address);
        g->stream = tls_connect(u->loop, u->daemon->handshakes, u->credentials->peer_context, fd);
        stream_set_events(g->stream, &greeting_events, g);
        timer_set(g->timer, g->addresses[g->tried] != NULL ? DIAL_STEP_NS : LIMIT_CONNECT_NS);
        return;
    }
    log_debug("dialling back came to nothing: %s", why);
    greeting_free(g);
}

void upload_dial(struct upload *u, const uint8_t device[DEVICE_ID_SIZE], char **addresses)
{
    struct greeting *g, *other;
    bool too_many = u->dial_count >= LIMIT_DIAL_BACKS;

    /* Any member may have us dial: one try for each device, and a few in all. */
    DL_FOREACH(u->greetings, other)
        too_many |= other->dialled && memcmp(other->expected, device, DEVICE_ID_SIZE) == 0;
    g = greeting_new(u, on_timeout, true);
    memcpy(g->expected, device, DEVICE_ID_SIZE);
    g->addresses = addresses;
    if (too_many)
        greeting_free(g);
    else
        dial_next(g, "no address can be dialled");
}

/* --- the listener
 * ----------------------------------------------------------------------------------------------------
 */

struct listener {
    struct upload *upload;
    int fd;
    uint16_t port;
    struct event *event;
    struct timer *rest;
};

static void source_of(const struct sockaddr_storage *address, char *host, uint16_t *port)
{
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)address;
        *port = ntohs(in6->sin6_port);
        if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
            inet_ntop(AF_INET, &in6->sin6_addr.s6_addr[12], host, INET6_ADDRSTRLEN);
        else
            inet_ntop(AF_INET6, &in6->sin6_addr, host, INET6_ADDRSTRLEN);
        return;
    }
    const struct sockaddr_in *in = (const void *)address;
    *port = ntohs(in->sin_port);
    inet_ntop(AF_INET, &in->sin_addr, host, INET6_ADDRSTRLEN);
}

static unsigned half_open_of(struct upload *u, const uint8_t key[SOURCE_KEY_SIZE])
{
    struct greeting *g;
    unsigned count = 0;

    DL_FOREACH(u->greetings, g)
        count += !g->dialled && memcmp(g->key, key, SOURCE_KEY_SIZE) == 0;
    return count;
}

/* All places are taken: the one who has been at it longest, and for more than a second, of the source
 * that has most of them gives up its own. */
static void make_room(struct upload *u, int64_t now)
{
    struct greeting *g, *victim = NULL;
    unsigned most = 1; /* a source with one place keeps it */

    DL_FOREACH(u->greetings, g) {
        if (g->dialled || now - g->since < LIMIT_HANDSHAKE_FAIR_NS)
            continue;
        unsigned count = half_open_of(u, g->key);
        if (count > most) { /* they stand in the order in which they came */
            most = count;
            victim = g;
        }
    }
    if (victim != NULL)
        give_up(victim, "others wait for its place");
}

static bool is_welcome(struct upload *u, int fd, const uint8_t key[SOURCE_KEY_SIZE])
{
    int64_t now = clock_now();

    if (u->credentials == NULL || file_is_kept(fd, LIMIT_DESCRIPTORS_KEPT))
        return false;
    if (half_open_of(u, key) >= LIMIT_HALF_OPEN_SOURCE)
        return false;
    if (u->greeting_count >= LIMIT_HALF_OPEN)
        make_room(u, now);
    return u->greeting_count < LIMIT_HALF_OPEN && knocks_take(u->knocks, key, now) == 0;
}

static void welcome(struct upload *u, int fd, const struct sockaddr_storage *address)
{
    char source[INET6_ADDRSTRLEN] = "";
    uint8_t key[SOURCE_KEY_SIZE];
    uint16_t port = 0;

    source_of(address, source, &port);
    source_key(address, key);
    if (!is_welcome(u, fd, key)) {
        close(fd);
        return;
    }
    struct greeting *g = greeting_new(u, on_timeout, false);
    snprintf(g->source, sizeof g->source, "%s", source);
    memcpy(g->key, key, sizeof g->key);
    snprintf(g->remote.address, sizeof g->remote.address,
             strchr(source, ':') != NULL ? "[%s]:%u" : "%s:%u", source, port);
    g->stream = tls_accept(u->loop, u->daemon->accepts, u->credentials->peer_context, fd);
    stream_set_events(g->stream, &greeting_events, g);
    timer_set(g->timer, LIMIT_HANDSHAKE_NS + LIMIT_HELLO_NS);
}

static void on_acceptable(evutil_socket_t fd, short what, void *arg)
{
    struct listener *l = arg;

    (void)what;
    for (int i = 0; i < LIMIT_HALF_OPEN; i++) {
        struct sockaddr_storage address = {0};
        socklen_t size = sizeof address;
        int accepted =
            accept4(fd, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (accepted >= 0) {
            welcome(l->upload, accepted, &address);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warning("no more connections for a moment: %s", strerror(errno));
            event_del(l->event);
            timer_set(l->rest, ACCEPT_REST_NS);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
        /* Anything else concerns that one connection only. */
    }
}

static void rested(void *arg)
{
    struct listener *l = arg;

    CHECK(event_add(l->event, NULL) == 0);
}

/* A listening socket on HOST (empty: any address, IPv6 and IPv4 in one) and port; -1 and errno. */
static int listen_on(const char *host, uint16_t port)
{
    char service[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV},
                    *list;
    const int yes = 1, no = 0;
    int fd = -1;

    snprintf(service, sizeof service, "%u", port);
    if (host[0] == '\0')
        hints.ai_family = AF_INET6;
    if (getaddrinfo(host[0] == '\0' ? NULL : host, service, &hints, &list) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (list->ai_family == AF_INET6)
            (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
        if (bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, LIMIT_HALF_OPEN) != 0) {
            int error = errno;
            close(fd);
            fd = -1;
            errno = error;
        }
    }
    freeaddrinfo(list);
    /* A machine without IPv6 listens on IPv4 alone. */
    if (fd < 0 && host[0] == '\0' && (errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL))
        return listen_on("0.0.0.0", port);
    return fd;
}

/* The port of the last time, so that addresses that others remember stay good; 0 if there is none.
 */
static uint16_t last_port(const char *home)
{
    char *path = home_path(home, "p2pd.port");
    char *text = NULL;
    size_t size;
    uint64_t port = 0;

    if (file_read(path, 16, false, &text, &size) == 0) {
        text[strcspn(text, "\n")] = '\0';
        (void)number_parse(text, 1, 65535, &port);
    }
    free(text);
    free(path);
    return (uint16_t)port;
}

static void remember_port(const char *home, uint16_t port)
{
    char *path = home_path(home, "p2pd.port");
    char text[16];

    snprintf(text, sizeof text, "%u\n", port);
    int error = file_replace(path, text, strlen(text), 0600);
    if (error != 0)
        log_warning("%s: %s", path, strerror(-error));
    free(path);
}

struct listener *listener_new(struct upload *u, const char *home, const char *listen_at,
                              const char **fault)
{
    static char why[SWARM_HOST_MAX + 96];
    char host[SWARM_HOST_MAX + 1] = "";
    uint16_t port = 0;
    int fd = -1;
    bool chosen = false;

    if (listen_at != NULL && !host_port_parse(listen_at, 0, host, &port)) {
        *fault = "the address to listen on is not HOST:PORT";
        return NULL;
    }
    if (port == 0) {
        chosen = true;
        port = last_port(home);
        if (port != 0)
            fd = listen_on(host, port);
        port = fd >= 0 ? port : 0;
    }
    if (fd < 0)
        fd = listen_on(host, port);
    if (fd < 0) {
        snprintf(why, sizeof why, "can't listen on %s port %u: %s",
                 host[0] == '\0' ? "any address" : host, port, strerror(errno));
        *fault = why;
        return NULL;
    }
    struct listener *l = xcalloc(1, sizeof *l);
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    char ignored[INET6_ADDRSTRLEN];
    source_of(&address, ignored, &l->port);
    if (chosen && l->port != port)
        remember_port(home, l->port);
    l->upload = u;
    l->fd = fd;
    l->event = event_new(loop_base(u->loop), fd, EV_READ | EV_PERSIST, on_acceptable, l);
    CHECK(l->event != NULL);
    l->rest = timer_new(u->loop, rested, l);
    return l;
}

uint16_t listener_port(const struct listener *l)
{
    return l->port;
}

void listener_start(struct listener *l)
{
    CHECK(event_add(l->event, NULL) == 0);
}

void listener_stop(struct listener *l)
{
    CHECK(event_del(l->event) == 0);
    timer_cancel(l->rest);
}

void listener_free(struct listener *l)
{
    if (l == NULL)
        return;
    event_free(l->event);
    timer_free(l->rest);
    close(l->fd);
    free(l);
}
