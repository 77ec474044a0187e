/* For tests of the daemon's links: keys and certificates of a small swarm, and the other end of a
 * link as a script: OpenSSL on a blocking socket, frames sent and awaited one by one.
 *
 * Include behind cmocka. One thread uses a wire at a time. */
#ifndef TESTS_SWARM_HELP_H
#define TESTS_SWARM_HELP_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <protobuf-c/protobuf-c.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "crypto/identity.h"
#include "crypto/internal.h"
#include "proto/frame.h"
#include "proto/limits.h"

#define SWARM_DAY_S    INT64_C(86400)
#define SWARM_PATIENCE (60 * NS_PER_S) /* a busy machine under a sanitizer */

#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        int64_t until_ = clock_now() + SWARM_PATIENCE;                                             \
        while (!(condition) && clock_now() < until_)                                               \
            usleep(500);                                                                           \
        assert_true(condition);                                                                    \
    } while (0)

/* --- who there is --- */

static inline struct key *swarm_key(void)
{
    const char *fault = "";
    struct key *key = key_generate(&fault);

    if (key == NULL)
        fail_msg("%s", fault);
    return key;
}

static inline struct certificate *swarm_device(const struct certificate *ca,
                                               const struct key *ca_key, const struct key *key,
                                               const char *account, int64_t lifetime)
{
    const char *fault = "";
    char *request = csr_create(key, &fault);
    struct certificate *made =
        ca_issue_device(ca, ca_key, request, strlen(request), account, lifetime, &fault);

    free(request);
    if (made == NULL)
        fail_msg("%s", fault);
    return made;
}

/* --- a wire --- */

struct wire {
    SSL_CTX *context;
    SSL *ssl;
    int fd;
    struct frame frame; /* the last one that came */
    uint8_t *message, *payload;
};

/* 0 ends the wait for a frame; so does an error. */
#define WIRE_ENDED  (-1)
#define WIRE_SILENT (-2)

static inline int wire_let_in(int good, X509_STORE_CTX *context)
{
    (void)good;
    (void)context;
    return 1;
}

static inline void wire_init(struct wire *w, struct certificate *certificate, const struct key *key,
                             struct certificate *ca)
{
    memset(w, 0, sizeof *w);
    signal(SIGPIPE, SIG_IGN);
    w->fd = -1;
    w->context = SSL_CTX_new(TLS_method());
    SSL_CTX_set_num_tickets(w->context, 0);
    SSL_CTX_set_verify(w->context, SSL_VERIFY_PEER, wire_let_in);
    if (certificate != NULL) {
        assert_int_equal(SSL_CTX_use_certificate(w->context, certificate_x509(certificate)), 1);
        assert_int_equal(SSL_CTX_use_PrivateKey(w->context, key_pkey(key)), 1);
    }
    if (ca != NULL) {
        X509_up_ref(certificate_x509(ca));
        assert_int_equal(SSL_CTX_add_extra_chain_cert(w->context, certificate_x509(ca)), 1);
    }
    w->message = xmalloc(LIMIT_FRAME_MESSAGE);
    w->payload = xmalloc(LIMIT_FRAME_PAYLOAD);
}

static inline void wire_patience(struct wire *w, int64_t ns)
{
    const struct timeval wait = {ns / NS_PER_S, ns % NS_PER_S / NS_PER_US};

    setsockopt(w->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
}

static inline void wire_hang_up(struct wire *w)
{
    SSL_free(w->ssl);
    w->ssl = NULL;
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    ERR_clear_error();
}

static inline void wire_free(struct wire *w)
{
    wire_hang_up(w);
    SSL_CTX_free(w->context);
    free(w->message);
    free(w->payload);
}

static inline int wire_listen(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    const int yes = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(*port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

/* A TCP connection; `receive` bytes of buffer if not 0. */
static inline int wire_tcp(uint16_t port, int receive)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive != 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive, sizeof receive);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static inline bool wire_shake(struct wire *w, int fd, bool server)
{
    const int yes = 1;

    w->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    wire_patience(w, SWARM_PATIENCE);
    w->ssl = SSL_new(w->context);
    SSL_set_fd(w->ssl, fd);
    bool good = (server ? SSL_accept(w->ssl) : SSL_connect(w->ssl)) == 1;
    ERR_clear_error();
    return good;
}

/* Waits for somebody; -1 if nobody comes. */
static inline int wire_await(int listener, int64_t ns)
{
    struct pollfd poll_it = {.fd = listener, .events = POLLIN};

    if (poll(&poll_it, 1, (int)(ns / NS_PER_MS)) <= 0)
        return -1;
    return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static inline bool wire_write(struct wire *w, const void *bytes, size_t size)
{
    size_t n;

    ERR_clear_error();
    return size == 0 || SSL_write_ex(w->ssl, bytes, size, &n) == 1;
}

static inline bool wire_send_raw(struct wire *w, struct frame frame, const void *message)
{
    size_t size = FRAME_HEADER_SIZE + frame.message_size;
    uint8_t *bytes = xmalloc(size);

    frame_encode(bytes, &frame);
    if (frame.message_size > 0)
        memcpy(bytes + FRAME_HEADER_SIZE, message, frame.message_size);
    bool good = wire_write(w, bytes, size);
    free(bytes);
    return good;
}

/* A request if id is not 0; an answer if `flags` says so. */
static inline bool wire_send_id(struct wire *w, unsigned type, uint8_t flags, uint32_t id,
                                const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = xmalloc(size + 1);

    protobuf_c_message_pack(message, packed);
    bool good = wire_send_raw(
        w,
        (struct frame){
            .message_size = (uint32_t)size, .type = (uint16_t)type, .flags = flags, .id = id},
        packed);
    free(packed);
    return good;
}

static inline bool wire_send(struct wire *w, unsigned type, const ProtobufCMessage *message)
{
    return wire_send_id(w, type, 0, 0, message);
}

/* 0, WIRE_ENDED or WIRE_SILENT. */
static inline int wire_read(struct wire *w, void *to, size_t size)
{
    size_t got = 0, n;

    while (got < size) {
        ERR_clear_error();
        errno = 0;
        int result = SSL_read_ex(w->ssl, (uint8_t *)to + got, size - got, &n);
        if (result != 1 && SSL_get_error(w->ssl, result) == SSL_ERROR_WANT_READ && got == 0)
            return WIRE_SILENT;
        if (result != 1)
            return WIRE_ENDED;
        got += n;
    }
    return 0;
}

/* The next frame's type, with its parts in `frame`, `message` and `payload`; or WIRE_… */
static inline int wire_next(struct wire *w)
{
    uint8_t header[FRAME_HEADER_SIZE];
    int result = wire_read(w, header, sizeof header);

    if (result != 0)
        return result;
    assert_null(frame_decode(&w->frame, header, LIMIT_FRAME_MESSAGE));
    if (wire_read(w, w->message, w->frame.message_size) != 0 ||
        wire_read(w, w->payload, w->frame.payload_size) != 0)
        return WIRE_ENDED;
    /* As whoever does not know it does. */
    return w->frame.flags & FRAME_MAY_SKIP ? wire_next(w) : w->frame.type;
}

/* The last frame's message, to free with protobuf_c_message_free_unpacked. */
static inline void *wire_message(struct wire *w, const ProtobufCMessageDescriptor *descriptor)
{
    void *message = protobuf_c_message_unpack(descriptor, NULL, w->frame.message_size, w->message);

    assert_non_null(message);
    return message;
}

#endif
