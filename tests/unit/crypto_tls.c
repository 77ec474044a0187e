/* crypto/tls.h over loopback TCP: real loops on their own threads, a real worker pool, and OpenSSL
 * alone as the stranger at the other end where a test needs one that breaks the rules. */
#include "crypto/tls.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/workers.h"
#include "crypto/internal.h"
#include "crypto/random.h"
#include "crypto/tls_internal.h"

#define DAY_S    INT64_C(86400)
#define PATIENCE (60 * NS_PER_S) /* a busy machine under a sanitizer */

/* --- what all tests share ---- */

static struct key *ca_key, *foreign_ca_key, *tracker_key, *anna_key, *bert_key;
static struct certificate *ca, *foreign_ca, *tracker, *anna, *bert, *foreign;
static struct loop *loop_a, *loop_b;
static struct workers *workers;

static struct certificate *device_of(const struct certificate *by, const struct key *by_key,
                                     const struct key *key, const char *account, int64_t lifetime)
{
    const char *fault = NULL;
    char *csr = csr_create(key, &fault);
    struct certificate *made =
        ca_issue_device(by, by_key, csr, strlen(csr), account, lifetime, &fault);
    free(csr);
    return made;
}

static int set_up(void **state)
{
    const char *fault = NULL;
    ca_key = key_generate(&fault);
    foreign_ca_key = key_generate(&fault);
    tracker_key = key_generate(&fault);
    anna_key = key_generate(&fault);
    bert_key = key_generate(&fault);
    ca = ca_create(ca_key, "lab", &fault);
    foreign_ca = ca_create(foreign_ca_key, "lab", &fault);
    tracker = ca_issue_tracker(ca, ca_key, tracker_key, DAY_S, &fault);
    anna = device_of(ca, ca_key, anna_key, "anna", DAY_S);
    bert = device_of(ca, ca_key, bert_key, "bert", DAY_S);
    foreign = device_of(foreign_ca, foreign_ca_key, bert_key, "bert", DAY_S);
    loop_a = loop_new("a");
    loop_b = loop_new("b");
    workers = workers_new("shake", 2);
    loop_start(loop_a);
    loop_start(loop_b);
    return tracker != NULL && anna != NULL && bert != NULL && foreign != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    workers_free(workers);
    loop_stop(loop_a);
    loop_stop(loop_b);
    loop_join(loop_a);
    loop_join(loop_b);
    loop_free(loop_a);
    loop_free(loop_b);
    certificate_free(ca);
    certificate_free(foreign_ca);
    certificate_free(tracker);
    certificate_free(anna);
    certificate_free(bert);
    certificate_free(foreign);
    key_free(ca_key);
    key_free(foreign_ca_key);
    key_free(tracker_key);
    key_free(anna_key);
    key_free(bert_key);
    return 0;
}

/* Runs `act` on the loop's thread and waits for it. */
struct call {
    struct mail mail;
    void (*act)(void *);
    void *arg;
    sem_t done;
};

static void deliver_call(struct mail *mail, void *owner)
{
    struct call *call = (struct call *)mail;
    call->act(call->arg);
    sem_post(&call->done);
}

static void on_loop(struct loop *loop, void (*act)(void *), void *arg)
{
    struct call call = {.mail.deliver = deliver_call, .act = act, .arg = arg};
    assert_int_equal(sem_init(&call.done, 0, 0), 0);
    loop_post(loop, &call.mail);
    while (sem_wait(&call.done) != 0)
        ;
    sem_destroy(&call.done);
}

#define WAIT_FOR(condition)                                                                        \
    do {                                                                                           \
        int64_t until_ = clock_now() + PATIENCE;                                                   \
        while (!(condition) && clock_now() < until_)                                               \
            usleep(500);                                                                           \
        assert_true(condition);                                                                    \
    } while (0)

static struct tls_context *context_with(enum tls_policy policy, struct certificate *certificate,
                                        struct key *key, unsigned notsent_lowat)
{
    const char *fault = NULL;
    const struct tls_settings settings = {.policy = policy,
                                          .ca = ca,
                                          .certificate = certificate,
                                          .key = key,
                                          .handshake_timeout_ns = PATIENCE,
                                          .notsent_lowat = notsent_lowat};
    struct tls_context *context = tls_context_new(&settings, &fault);
    if (context == NULL)
        fail_msg("%s", fault);
    return context;
}

static struct tls_context *context_of(enum tls_policy policy, struct certificate *certificate,
                                      struct key *key)
{
    return context_with(policy, certificate, key, 65536);
}

/* --- one end of a stream, and what it does ---- */

struct end {
    struct loop *loop;
    struct tls_context *context;
    bool server;
    int fd;
    struct stream *stream;
    atomic_bool ready, failed, ended;
    atomic_uint readables;
    char why[256];
    bool known;
    struct certificate_subject peer;

    /* The transfer: byte p of a direction is pattern(p, salt). */
    atomic_ullong to_send;
    atomic_ullong sent, received;
    atomic_bool wrong;
    unsigned out_salt, in_salt;
    atomic_size_t stop_after; /* stop reading after that many bytes of an event; 0: never */
    bool deaf;                /* never read */
    bool resume_self;         /* and ask to go on at once */
    size_t write_size;
    bool reader;          /* waits at the other end: what is offered is what there is room for */
    struct loop *move_to; /* at `ready` */
};

static uint8_t pattern(uint64_t p, unsigned salt)
{
    return (uint8_t)((p * 131) ^ (p >> 11) ^ salt);
}

static void pump(struct end *end)
{
    static _Thread_local uint8_t bytes[200000];
    uint64_t sent = end->sent;
    while (sent < end->to_send) {
        size_t n = end->write_size != 0 ? end->write_size : 100000;
        if (n > end->to_send - sent)
            n = (size_t)(end->to_send - sent);
        if (end->reader) {
            size_t room = stream_room(end->stream);
            n = n < room ? n : room > 0 ? room : 1;
        }
        for (size_t i = 0; i < n; i++)
            bytes[i] = pattern(sent + i, end->out_salt);
        ssize_t taken = stream_write(end->stream, bytes, n);
        if (taken < 0)
            break;
        sent += (uint64_t)taken;
        end->sent = sent;
        if ((size_t)taken < n)
            break;
    }
    stream_flush(end->stream);
}

static void on_ready(void *arg)
{
    struct end *end = arg;
    end->known = tls_peer(end->stream, &end->peer);
    end->ready = true;
    if (end->move_to != NULL)
        return; /* the test goes on */
    if (end->reader)
        tls_reader_near(end->stream, INT64_MAX);
    pump(end);
}

static void on_readable(void *arg)
{
    struct end *end = arg;
    static _Thread_local uint8_t bytes[70000];
    size_t this_time = 0;
    ssize_t n;
    end->readables++;
    if (end->deaf)
        return;
    for (;;) {
        size_t room = sizeof bytes;
        if (end->stop_after != 0 && room > end->stop_after - this_time)
            room = end->stop_after - this_time;
        n = stream_read(end->stream, bytes, room);
        if (n <= 0)
            break;
        uint64_t at = end->received;
        for (ssize_t i = 0; i < n; i++)
            if (bytes[i] != pattern(at + (uint64_t)i, end->in_salt))
                end->wrong = true;
        this_time += (size_t)n;
        end->received = at + (uint64_t)n;
        if (this_time == end->stop_after) {
            if (end->resume_self)
                stream_resume(end->stream);
            return;
        }
    }
    if (n == 0)
        end->ended = true;
}

static void on_writable(void *arg)
{
    pump(arg);
}

static void on_failed(void *arg, const char *why)
{
    struct end *end = arg;
    if (end->failed)
        abort(); /* told twice */
    snprintf(end->why, sizeof end->why, "%s", why);
    end->failed = true;
}

static const struct stream_events events = {on_ready, on_readable, on_writable, on_failed};

static void act_start(void *arg)
{
    struct end *end = arg;
    end->stream = end->server ? tls_accept(end->loop, workers, end->context, end->fd)
                              : tls_connect(end->loop, workers, end->context, end->fd);
    stream_set_events(end->stream, &events, end);
}

static void act_free(void *arg)
{
    struct end *end = arg;
    stream_free(end->stream);
    end->stream = NULL;
}

static void act_resume(void *arg)
{
    stream_resume(((struct end *)arg)->stream);
}

static void act_pump(void *arg)
{
    pump(arg);
}

static void act_send_deaf(void *arg)
{
    struct end *end = arg;
    end->deaf = end->reader = true;
    end->to_send = 64 << 20;
    tls_reader_near(end->stream, INT64_MAX);
    pump(end);
}

static struct end *end_new(struct loop *loop, struct tls_context *context, bool server)
{
    struct end *end = xcalloc(1, sizeof *end);
    end->loop = loop;
    end->context = context;
    end->server = server;
    end->out_salt = server ? 77 : 1;
    end->in_salt = server ? 1 : 77;
    return end;
}

static void end_start(struct end *end, int fd)
{
    end->fd = fd;
    on_loop(end->loop, act_start, end);
}

static void end_free(struct end *end)
{
    if (end->stream != NULL)
        on_loop(end->loop, act_free, end);
    tls_context_free(end->context);
    free(end);
}

/* --- sockets ---- */

static int listener(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)address, size), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)address, &size), 0);
    return fd;
}

/* sockets[0] dialled without waiting, sockets[1] accepted; both non-blocking. */
static void socket_pair(int sockets[2])
{
    struct sockaddr_in address;
    int listening = listener(&address);
    sockets[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int result = connect(sockets[0], (struct sockaddr *)&address, sizeof address);
    assert_true(result == 0 || errno == EINPROGRESS);
    sockets[1] = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_true(sockets[1] >= 0);
    close(listening);
}

static void set_blocking(int fd)
{
    struct timeval limit = {.tv_sec = 30};
    assert_int_equal(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
}

struct pair {
    struct end *client, *server;
};

static struct pair pair_new(struct tls_context *client, struct tls_context *server)
{
    struct pair pair = {end_new(loop_a, client, false), end_new(loop_b, server, true)};
    return pair;
}

static void pair_start(struct pair *pair)
{
    int sockets[2];
    socket_pair(sockets);
    end_start(pair->server, sockets[1]);
    end_start(pair->client, sockets[0]);
}

static struct pair pair_of(struct tls_context *client, struct tls_context *server)
{
    struct pair pair = pair_new(client, server);
    pair_start(&pair);
    return pair;
}

static void pair_free(struct pair *pair)
{
    end_free(pair->client);
    end_free(pair->server);
}

/* --- OpenSSL alone ---- */

struct raw {
    SSL_CTX *context;
    SSL *ssl;
    int fd;
    int result;
};

static void raw_new(struct raw *raw, struct certificate *certificate, struct key *key)
{
    memset(raw, 0, sizeof *raw);
    raw->fd = -1;
    raw->context = SSL_CTX_new(TLS_method());
    SSL_CTX_set_verify(raw->context, SSL_VERIFY_NONE, NULL);
    if (certificate != NULL) {
        assert_int_equal(SSL_CTX_use_certificate(raw->context, certificate_x509(certificate)), 1);
        assert_int_equal(SSL_CTX_use_PrivateKey(raw->context, key_pkey(key)), 1);
    }
}

/* Shakes hands with a new server end of that context. */
static struct end *raw_dial(struct raw *raw, struct tls_context *context)
{
    int sockets[2];
    struct end *server = end_new(loop_b, context, true);
    socket_pair(sockets);
    end_start(server, sockets[1]);
    set_blocking(sockets[0]);
    raw->fd = sockets[0];
    raw->ssl = SSL_new(raw->context);
    SSL_set_fd(raw->ssl, raw->fd);
    raw->result = SSL_connect(raw->ssl);
    return server;
}

static void raw_hang_up(struct raw *raw)
{
    SSL_free(raw->ssl);
    raw->ssl = NULL;
    if (raw->fd >= 0)
        close(raw->fd);
    raw->fd = -1;
    ERR_clear_error();
}

static void raw_free(struct raw *raw)
{
    raw_hang_up(raw);
    SSL_CTX_free(raw->context);
}

static int raw_alert(struct raw *raw)
{
    char byte;
    ERR_clear_error();
    assert_true(SSL_read(raw->ssl, &byte, 1) <= 0);
    int reason = ERR_GET_REASON(ERR_peek_error());
    ERR_clear_error();
    return reason - SSL_AD_REASON_OFFSET;
}

/* --- who may talk to whom ---- */

static void two_devices_know_each_other_once_ready(void **state)
{
    struct pair p =
        pair_of(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    uint8_t id[DEVICE_ID_SIZE];
    WAIT_FOR(p.client->ready && p.server->ready);
    assert_true(p.client->known && p.server->known);
    assert_string_equal(p.client->peer.account, "bert");
    assert_string_equal(p.server->peer.account, "anna");
    key_device_id(bert_key, id);
    assert_memory_equal(p.client->peer.device, id, DEVICE_ID_SIZE);
    SSL *ssl = ((struct tls *)(void *)p.client->stream)->ssl;
    int type = 0, on = 0, lowat = 0;
    socklen_t size = sizeof on;
    assert_string_equal(SSL_get_cipher(ssl), "TLS_AES_256_GCM_SHA384");
    assert_string_equal(SSL_get_version(ssl), "TLSv1.3");
    assert_int_equal(SSL_get_peer_signature_type_nid(ssl, &type), 1);
    assert_int_equal(type, EVP_PKEY_RSA_PSS);
    assert_int_equal(SSL_get_negotiated_group(ssl), NID_X25519);
    assert_int_equal(getsockopt(tls_fd(p.client->stream), IPPROTO_TCP, TCP_NODELAY, &on, &size), 0);
    assert_int_not_equal(on, 0);
    assert_int_equal(
        getsockopt(tls_fd(p.client->stream), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, &size), 0);
    assert_int_equal(lowat, 2 * 65536);
    tls_reader_near(p.client->stream, INT64_MAX); /* this thread alone uses the stream now */
    assert_int_equal(
        getsockopt(tls_fd(p.client->stream), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, &size), 0);
    assert_int_equal(lowat, 65536);
    assert_true(tls_rtt(p.client->stream) > 0);
    pair_free(&p);
}

static void a_device_knows_the_tracker_and_the_tracker_the_device(void **state)
{
    struct pair p = pair_of(context_of(TLS_TRACKER_CLIENT, anna, anna_key),
                            context_of(TLS_TRACKER, tracker, tracker_key));
    WAIT_FOR(p.client->ready && p.server->ready);
    assert_true(p.client->known && p.server->known);
    assert_int_equal(p.client->peer.role, CERTIFICATE_TRACKER);
    assert_string_equal(p.server->peer.account, "anna");
    pair_free(&p);
}

static void the_tracker_lets_in_whoever_has_no_certificate_yet(void **state)
{
    struct pair p = pair_of(context_of(TLS_TRACKER_CLIENT, NULL, NULL),
                            context_of(TLS_TRACKER, tracker, tracker_key));
    WAIT_FOR(p.client->ready && p.server->ready);
    assert_true(p.client->known);
    assert_false(p.server->known);
    pair_free(&p);
}

static void a_peer_without_certificate_is_refused(void **state)
{
    struct raw raw;
    raw_new(&raw, NULL, NULL);
    struct end *server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(server->failed);
    assert_false(server->ready);
    assert_string_equal(server->why, "the peer shows no certificate");
    assert_int_equal(raw_alert(&raw), SSL_AD_CERTIFICATE_REQUIRED);
    end_free(server);
    raw_free(&raw);
}

static void refused_by_server(struct certificate *certificate, struct key *key,
                              enum tls_policy policy, const char *why, int alert)
{
    struct raw raw;
    raw_new(&raw, certificate, key);
    struct end *server =
        raw_dial(&raw, policy == TLS_TRACKER ? context_of(TLS_TRACKER, tracker, tracker_key)
                                             : context_of(TLS_PEER, anna, anna_key));
    WAIT_FOR(server->failed);
    assert_false(server->ready);
    assert_string_equal(server->why, why);
    if (alert != 0)
        assert_int_equal(raw_alert(&raw), alert);
    end_free(server);
    raw_free(&raw);
}

static void a_certificate_of_another_swarm_is_refused(void **state)
{
    static const char why[] = "the peer's certificate was issued by another swarm";
    refused_by_server(foreign, bert_key, TLS_PEER, why, SSL_AD_UNKNOWN_CA);
    refused_by_server(foreign, bert_key, TLS_TRACKER, why, SSL_AD_UNKNOWN_CA);

    /* and by the dialling end */
    const char *fault = NULL;
    const struct tls_settings settings = {
        .policy = TLS_PEER, .ca = foreign_ca, .certificate = foreign, .key = bert_key};
    struct tls_context *stranger = tls_context_new(&settings, &fault);
    assert_non_null(stranger);
    struct pair p = pair_of(context_of(TLS_PEER, anna, anna_key), stranger);
    WAIT_FOR(p.client->failed && p.server->failed);
    assert_string_equal(p.client->why, why);
    assert_string_equal(p.server->why, "the peer finds our certificate issued by another swarm");
    pair_free(&p);
}

static void one_that_is_refused_after_its_ready_hears_why(void **state)
{
    const char *fault = NULL;
    /* The dialler trusts the right CA but has a certificate of another. */
    const struct tls_settings settings = {
        .policy = TLS_PEER, .ca = ca, .certificate = foreign, .key = bert_key};
    struct tls_context *stranger = tls_context_new(&settings, &fault);
    assert_non_null(stranger);
    struct pair p = pair_new(stranger, context_of(TLS_PEER, anna, anna_key));
    /* It writes at once, into a connection that is being refused, and does not read: the alert waits
     * behind a broken pipe. */
    p.client->to_send = 100 << 20;
    p.client->deaf = true;
    pair_start(&p);
    WAIT_FOR(p.server->failed);
    on_loop(loop_b, act_free, p.server);
    WAIT_FOR(p.client->failed);
    assert_string_equal(p.client->why, "the peer finds our certificate issued by another swarm");
    pair_free(&p);
}

static void an_expired_certificate_is_refused(void **state)
{
    struct certificate *brief = device_of(ca, ca_key, bert_key, "bert", 1);
    struct certificate_subject subject;
    assert_true(certificate_subject(brief, &subject));
    while (clock_wall() / NS_PER_S <= subject.not_after)
        usleep(50000);
    refused_by_server(brief, bert_key, TLS_PEER, "the peer's certificate has expired",
                      SSL_AD_CERTIFICATE_EXPIRED);
    refused_by_server(brief, bert_key, TLS_TRACKER, "the peer's certificate has expired",
                      SSL_AD_CERTIFICATE_EXPIRED);
    certificate_free(brief);
}

static void a_member_cannot_stand_in_for_the_tracker(void **state)
{
    struct pair p = pair_of(context_of(TLS_TRACKER_CLIENT, anna, anna_key),
                            context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(p.client->failed && p.server->failed);
    assert_false(p.client->ready);
    assert_string_equal(p.client->why, "the peer's certificate is not the tracker's");
    assert_string_equal(p.server->why, "the peer refuses our certificate");
    pair_free(&p);
}

static void the_tracker_cannot_stand_in_for_a_member(void **state)
{
    refused_by_server(tracker, tracker_key, TLS_PEER, "the peer's certificate is not a device's",
                      SSL_AD_BAD_CERTIFICATE);
    refused_by_server(tracker, tracker_key, TLS_TRACKER, "the peer's certificate is not a device's",
                      SSL_AD_BAD_CERTIFICATE);
}

/* A certificate by the swarm's own CA, but not as the CA makes them. */
static X509 *odd_certificate(EVP_PKEY *pkey, const char *san, const EVP_MD *digest)
{
    X509 *x509 = X509_new();
    X509V3_CTX v3;
    X509V3_set_ctx(&v3, certificate_x509(ca), x509, NULL, NULL, 0);
    X509_set_version(x509, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), 99);
    X509_gmtime_adj(X509_getm_notBefore(x509), -60);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_issuer_name(x509, X509_get_subject_name(certificate_x509(ca)));
    X509_set_pubkey(x509, pkey);
    if (san != NULL) {
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &v3, NID_subject_alt_name, san);
        X509_add_ext(x509, extension, -1);
        X509_EXTENSION_free(extension);
    }
    assert_true(X509_sign(x509, key_pkey(ca_key), digest) > 0);
    return x509;
}

static void odd_refused(EVP_PKEY *pkey, const char *san, const EVP_MD *digest, const char *why)
{
    struct raw raw;
    raw_new(&raw, NULL, NULL);
    SSL_CTX_set_security_level(raw.context, 0);
    X509 *x509 = odd_certificate(pkey, san, digest);
    assert_int_equal(SSL_CTX_use_certificate(raw.context, x509), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(raw.context, pkey), 1);
    struct end *server = raw_dial(&raw, context_of(TLS_PEER, anna, anna_key));
    WAIT_FOR(server->failed);
    assert_false(server->ready);
    if (why != NULL)
        assert_string_equal(server->why, why);
    end_free(server);
    raw_free(&raw);
    X509_free(x509);
}

static void short_keys_weak_digests_and_nameless_certificates_are_refused(void **state)
{
    EVP_PKEY *small = EVP_RSA_gen(2048), *curve = EVP_EC_gen("P-256");
    odd_refused(small, "URI:p2p://tracker", EVP_sha256(),
                "the peer's certificate holds a key that is too short");
    odd_refused(key_pkey(bert_key), NULL, EVP_sha256(),
                "the peer's certificate names nobody of this swarm");
    odd_refused(key_pkey(bert_key), "URI:p2p://device/bert/00000000000000000000000000000000",
                EVP_sha256(), "the peer's certificate names nobody of this swarm");
    odd_refused(key_pkey(bert_key), "URI:p2p://tracker", EVP_sha1(),
                "the peer's certificate is signed with an algorithm that is too weak");
    odd_refused(curve, "URI:p2p://tracker", EVP_sha256(), NULL);
    EVP_PKEY_free(small);
    EVP_PKEY_free(curve);
}

static void tls_1_2_is_refused(void **state)
{
    struct raw raw;
    for (int round = 0; round < 2; round++) {
        raw_new(&raw, anna, anna_key);
        SSL_CTX_set_max_proto_version(raw.context, TLS1_2_VERSION);
        struct end *server =
            raw_dial(&raw, round == 0 ? context_of(TLS_PEER, bert, bert_key)
                                      : context_of(TLS_TRACKER, tracker, tracker_key));
        assert_int_not_equal(raw.result, 1);
        assert_int_equal(ERR_GET_REASON(ERR_peek_error()), SSL_R_TLSV1_ALERT_PROTOCOL_VERSION);
        WAIT_FOR(server->failed);
        assert_string_equal(server->why, "TLS 1.3 is not offered");
        end_free(server);
        raw_free(&raw);
    }
}

static void what_is_not_tls_is_refused(void **state)
{
    static const char *const said[] = {"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                                       "\023BitTorrent protocol.......",
                                       "\x16\x03\x01\xff\xff...................."};
    for (size_t i = 0; i < 3; i++) {
        int sockets[2];
        struct end *server = end_new(loop_b, context_of(TLS_PEER, bert, bert_key), true);
        socket_pair(sockets);
        end_start(server, sockets[1]);
        set_blocking(sockets[0]);
        assert_true(write(sockets[0], said[i], strlen(said[i])) > 0);
        WAIT_FOR(server->failed);
        end_free(server);
        close(sockets[0]);
    }
}

/* --- first contact ---- */

static struct tls_context *first_contact(const uint8_t *fingerprint)
{
    const char *fault = NULL;
    const struct tls_settings settings = {.policy = TLS_TRACKER_CLIENT,
                                          .ca_fingerprint = fingerprint,
                                          .handshake_timeout_ns = PATIENCE};
    struct tls_context *context = tls_context_new(&settings, &fault);
    assert_non_null(context);
    return context;
}

static void act_peer_ca(void *arg)
{
    struct end *end = arg;
    uint8_t expected[FINGERPRINT_SIZE], told[FINGERPRINT_SIZE];
    struct certificate *told_ca = tls_peer_ca(end->stream);
    certificate_fingerprint(told_ca, told);
    certificate_fingerprint(ca, expected);
    end->wrong = memcmp(told, expected, FINGERPRINT_SIZE) != 0;
    certificate_free(told_ca);
}

static void the_cas_fingerprint_is_enough_for_a_first_contact(void **state)
{
    uint8_t fingerprint[FINGERPRINT_SIZE];
    certificate_fingerprint(ca, fingerprint);
    struct pair p =
        pair_of(first_contact(fingerprint), context_of(TLS_TRACKER, tracker, tracker_key));
    WAIT_FOR(p.client->ready);
    p.client->wrong = true;
    on_loop(loop_a, act_peer_ca, p.client);
    assert_false(p.client->wrong);
    pair_free(&p);
}

static void a_wrong_fingerprint_is_refused(void **state)
{
    uint8_t fingerprint[FINGERPRINT_SIZE];
    for (int round = 0; round < 3; round++) {
        /* a flipped bit; another swarm's CA; the fingerprint of the tracker's own certificate */
        certificate_fingerprint(round == 0 ? ca : round == 1 ? foreign_ca : tracker, fingerprint);
        fingerprint[31] ^= round == 0;
        struct pair p =
            pair_of(first_contact(fingerprint), context_of(TLS_TRACKER, tracker, tracker_key));
        WAIT_FOR(p.client->failed && p.server->failed);
        assert_false(p.client->ready);
        assert_false(p.server->ready);
        if (round < 2)
            assert_string_equal(
                p.client->why,
                "the tracker's CA does not have the fingerprint in the swarm's address");
        pair_free(&p);
    }
}

/* A foreign server that shows the right CA's certificate beside its own, which that CA did not
 * sign. */
static void showing_the_right_ca_is_not_enough(void **state)
{
    uint8_t fingerprint[FINGERPRINT_SIZE];
    const char *fault = NULL;
    struct tls_context *server = context_of(TLS_TRACKER, tracker, tracker_key);
    struct certificate *fake =
        ca_issue_tracker(foreign_ca, foreign_ca_key, tracker_key, DAY_S, &fault);
    assert_int_equal(SSL_CTX_use_certificate(server->ssl, certificate_x509(fake)), 1);
    certificate_fingerprint(ca, fingerprint);
    struct pair p = pair_of(first_contact(fingerprint), server);
    WAIT_FOR(p.client->failed);
    assert_false(p.client->ready);
    assert_string_equal(p.client->why, "the peer's certificate was issued by another swarm");
    pair_free(&p);
    certificate_free(fake);
}

/* --- sessions ---- */

static atomic_uint sessions;
static int on_session(SSL *ssl, SSL_SESSION *session)
{
    sessions++;
    return 0;
}

static void no_session_can_be_resumed(void **state)
{
    struct raw raw;
    raw_new(&raw, anna, anna_key);
    SSL_CTX_set_session_cache_mode(raw.context, SSL_SESS_CACHE_CLIENT);
    SSL_CTX_sess_set_new_cb(raw.context, on_session);
    sessions = 0;
    struct end *server = raw_dial(&raw, context_of(TLS_TRACKER, tracker, tracker_key));
    assert_int_equal(raw.result, 1);
    WAIT_FOR(server->ready);
    server->to_send = 100; /* whatever was sent after the handshake arrives before this */
    on_loop(loop_b, act_pump, server);
    uint8_t bytes[100];
    assert_int_equal(SSL_read(raw.ssl, bytes, sizeof bytes), 100);
    assert_int_equal(sessions, 0);
    SSL_SESSION *session = SSL_get1_session(raw.ssl);
    assert_int_equal(SSL_SESSION_is_resumable(session), 0);
    SSL_shutdown(raw.ssl);
    raw_hang_up(&raw);
    end_free(server);

    /* Nor is one taken up that is offered nevertheless. */
    SSL_CTX_use_certificate(raw.context, certificate_x509(anna));
    int sockets[2];
    server = end_new(loop_b, context_of(TLS_TRACKER, tracker, tracker_key), true);
    socket_pair(sockets);
    end_start(server, sockets[1]);
    set_blocking(sockets[0]);
    raw.fd = sockets[0];
    raw.ssl = SSL_new(raw.context);
    SSL_set_fd(raw.ssl, raw.fd);
    SSL_set_session(raw.ssl, session);
    assert_int_equal(SSL_connect(raw.ssl), 1);
    assert_int_equal(SSL_session_reused(raw.ssl), 0);
    WAIT_FOR(server->ready);
    assert_true(server->known);
    SSL_SESSION_free(session);
    end_free(server);
    raw_free(&raw);
}

/* --- time and ends ---- */

static struct tls_context *impatient(void)
{
    const char *fault = NULL;
    const struct tls_settings settings = {.policy = TLS_PEER,
                                          .ca = ca,
                                          .certificate = anna,
                                          .key = anna_key,
                                          .handshake_timeout_ns = 200 * NS_PER_MS};
    return tls_context_new(&settings, &fault);
}

static void a_silent_stranger_times_out(void **state)
{
    int sockets[2];
    struct end *server = end_new(loop_b, impatient(), true);
    socket_pair(sockets);
    end_start(server, sockets[1]);
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "handshake timed out");
    end_free(server);
    close(sockets[0]);

    struct end *client = end_new(loop_a, impatient(), false);
    socket_pair(sockets);
    end_start(client, sockets[0]);
    WAIT_FOR(client->failed);
    assert_string_equal(client->why, "handshake timed out");
    end_free(client);
    close(sockets[1]);
}

static void a_closed_port_is_told_as_such(void **state)
{
    struct sockaddr_in address;
    close(listener(&address));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct end *client = end_new(loop_a, context_of(TLS_PEER, anna, anna_key), false);
    (void)connect(fd, (struct sockaddr *)&address, sizeof address);
    end_start(client, fd);
    WAIT_FOR(client->failed);
    assert_string_equal(client->why, "connection refused");
    end_free(client);
}

static void a_peer_that_goes_during_the_handshake_is_noticed(void **state)
{
    int sockets[2];
    struct end *server = end_new(loop_b, context_of(TLS_PEER, anna, anna_key), true);
    socket_pair(sockets);
    end_start(server, sockets[1]);
    close(sockets[0]);
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "the peer closed the connection during the handshake");
    end_free(server);
}

/* A flood's connection: a whole ClientHello, and the end behind it. */
static void a_client_that_is_gone_before_the_answer_costs_no_signature(void **state)
{
    int sockets[2];
    uint8_t bytes[16384];
    struct raw raw;
    BIO *out = BIO_new(BIO_s_mem());

    raw_new(&raw, NULL, NULL);
    raw.ssl = SSL_new(raw.context);
    SSL_set_bio(raw.ssl, BIO_new(BIO_s_mem()), out);
    assert_int_equal(SSL_connect(raw.ssl), -1);
    int size = BIO_read(out, bytes, sizeof bytes);
    socket_pair(sockets);
    set_blocking(sockets[0]);
    assert_int_equal(write(sockets[0], bytes, (size_t)size), size);
    assert_int_equal(shutdown(sockets[0], SHUT_WR), 0);
    assert_true(tls_is_gone(sockets[1]));
    struct end *server = end_new(loop_b, context_of(TLS_PEER, anna, anna_key), true);
    end_start(server, sockets[1]);
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "the peer closed the connection during the handshake");
    end_free(server);
    assert_int_equal(read(sockets[0], bytes, sizeof bytes), 0); /* not a byte of an answer */
    close(sockets[0]);
    raw_free(&raw);
}

static void an_orderly_end_is_told_from_a_cut(void **state)
{
    for (int cut = 0; cut < 2; cut++) {
        struct raw raw;
        uint8_t bytes[1000];
        raw_new(&raw, anna, anna_key);
        struct end *server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
        WAIT_FOR(server->ready);
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = pattern(i, 1);
        assert_int_equal(SSL_write(raw.ssl, bytes, sizeof bytes), sizeof bytes);
        if (!cut)
            SSL_shutdown(raw.ssl);
        shutdown(raw.fd, SHUT_WR);
        WAIT_FOR(server->ended || server->failed);
        assert_int_equal(server->ended, !cut);
        assert_int_equal(server->failed, cut);
        assert_int_equal(server->received, sizeof bytes);
        assert_false(server->wrong);
        if (cut) {
            assert_string_equal(server->why,
                                "the connection ended without the peer closing it in order");
        } else { /* the other direction lives on */
            server->to_send = 500;
            on_loop(loop_b, act_pump, server);
            assert_int_equal(SSL_read(raw.ssl, bytes, sizeof bytes), 500);
            on_loop(loop_b, act_free, server); /* and ends in order */
            assert_int_equal(SSL_read(raw.ssl, bytes, sizeof bytes), 0);
            assert_int_equal(SSL_get_error(raw.ssl, 0), SSL_ERROR_ZERO_RETURN);
        }
        end_free(server);
        raw_free(&raw);
    }
}

static void a_flipped_bit_on_the_way_ends_the_stream(void **state)
{
    struct raw raw;
    raw_new(&raw, anna, anna_key);
    struct end *server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(server->ready);
    static const uint8_t record[] = {23, 3,  3,  0,  32, 1,  2,  3,  4,  5,  6,  7,  8,
                                     9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                     22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32};
    assert_true(write(raw.fd, record, sizeof record) > 0);
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "a record was damaged on its way");
    assert_int_equal(server->received, 0);
    end_free(server);
    raw_free(&raw);
}

static void writing_to_a_peer_that_is_gone_fails_without_a_signal(void **state)
{
    struct raw raw;
    raw_new(&raw, anna, anna_key);
    struct end *server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(server->ready);
    struct linger abort_it = {1, 0};
    setsockopt(raw.fd, SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    raw_hang_up(&raw);
    server->to_send = 10 << 20;
    on_loop(loop_b, act_pump, server);
    on_loop(loop_b, act_pump, server);
    WAIT_FOR(server->failed);
    end_free(server);

    server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(server->ready);
    assert_int_equal(shutdown(tls_fd(server->stream), SHUT_WR), 0);
    server->to_send = 100;
    on_loop(loop_b, act_pump, server); /* the surest way to a SIGPIPE */
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "broken pipe");
    end_free(server);
    raw_free(&raw);
}

/* The owner reads nothing (a link whose answers are not read is paused), and the socket held all that it may when the peer reset
 * the connection: what was unsent stays so for good, while the kernel says at once, and again, that it can be written to. */
static void a_full_socket_that_is_reset_is_noticed_though_nobody_reads(void **state)
{
    struct raw raw;
    struct linger abort_it = {1, 0};

    raw_new(&raw, anna, anna_key);
    struct end *server = raw_dial(&raw, context_with(TLS_PEER, bert, bert_key, 16384));
    WAIT_FOR(server->ready);
    on_loop(loop_b, act_send_deaf, server);
    uint64_t before;
    do { /* until buffers are full */
        before = server->sent;
        usleep(100000);
    } while (server->sent != before);
    assert_true(before < server->to_send);
    assert_false(server->failed);
    setsockopt(raw.fd, SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    raw_hang_up(&raw);
    WAIT_FOR(server->failed);
    assert_non_null(strstr(server->why, "reset"));
    end_free(server);
    raw_free(&raw);
}

/* --- being freed ---- */

static void a_stream_can_be_freed_at_any_moment_of_its_handshake(void **state)
{
    struct tls_context *client = context_of(TLS_PEER, anna, anna_key);
    struct tls_context *server = context_of(TLS_PEER, bert, bert_key);
    for (unsigned i = 0; i < 60; i++) {
        struct pair p = pair_of(tls_context_share(client), tls_context_share(server));
        usleep(i * 250);
        if (i % 3 == 0) {
            end_free(p.server);
            end_free(p.client);
        } else {
            pair_free(&p);
        }
    }
    tls_context_free(client);
    tls_context_free(server);
}

struct gate {
    struct job job;
    sem_t open;
};

static void run_gate(struct job *job)
{
    struct gate *gate = (struct gate *)job;
    while (sem_wait(&gate->open) != 0)
        ;
}

static void a_stream_freed_while_its_step_waits_or_runs_is_released_later(void **state)
{
    struct workers *mine = workers, *one = workers_new("one", 1);
    struct gate gate = {.job.run = run_gate};
    int sockets[2];

    sem_init(&gate.open, 0, 0);
    workers_post(one, &gate.job,
                 true); /* as a dial is: the gate is first, however late the thread begins */
    workers = one;      /* whose only thread is held */
    struct end *client = end_new(loop_a, context_of(TLS_PEER, anna, anna_key), false);
    socket_pair(sockets);
    end_start(client, sockets[0]);
    WAIT_FOR(workers_backlog(one) == 2);
    int64_t start = clock_now();
    on_loop(loop_a, act_free, client);
    assert_true(clock_now() - start < 5 * NS_PER_S); /* did not wait for the worker */
    /* The other end hears of it at once. */
    char byte;
    set_blocking(sockets[1]);
    assert_int_equal(read(sockets[1], &byte, 1), 0);
    sem_post(&gate.open);
    workers_free(one);
    workers = mine;
    end_free(client);
    close(sockets[1]);
    sem_destroy(&gate.open);
}

static void a_handshake_that_times_out_during_a_step_fails_once(void **state)
{
    struct workers *mine = workers, *one = workers_new("one", 1);
    struct gate gate = {.job.run = run_gate};
    int sockets[2];

    sem_init(&gate.open, 0, 0);
    workers_post(one, &gate.job,
                 true); /* as a dial is: the gate is first, however late the thread begins */
    workers = one;
    struct end *client = end_new(loop_a, impatient(), false);
    socket_pair(sockets);
    end_start(client, sockets[0]);
    WAIT_FOR(client->failed);
    assert_string_equal(client->why, "handshake timed out");
    sem_post(&gate.open);
    workers_free(one);
    workers = mine;
    end_free(client);
    close(sockets[1]);
    sem_destroy(&gate.open);
}

static void free_at_once(void *arg)
{
    struct end *end = arg;
    act_free(end);
    end->ready = true;
}

static void free_failed(void *arg, const char *why)
{
    struct end *end = arg;
    act_free(end);
    end->failed = true;
}

static void act_start_to_free(void *arg)
{
    static const struct stream_events at_once = {free_at_once, on_readable, on_writable,
                                                 free_failed};
    struct end *end = arg;
    act_start(end);
    stream_set_events(end->stream, &at_once, end);
}

static void a_stream_can_be_freed_in_its_own_callbacks(void **state)
{
    struct pair p = pair_new(context_of(TLS_PEER, anna, anna_key), impatient());
    int sockets[2];
    socket_pair(sockets);
    p.client->fd = sockets[0];
    p.server->fd = sockets[1];
    on_loop(loop_b, act_start_to_free, p.server);
    on_loop(loop_a, act_start_to_free, p.client);
    WAIT_FOR((p.client->ready || p.client->failed) && (p.server->ready || p.server->failed));
    pair_free(&p);

    struct end *alone = end_new(loop_b, impatient(), true);
    socket_pair(sockets);
    alone->fd = sockets[1];
    on_loop(loop_b, act_start_to_free, alone);
    WAIT_FOR(alone->failed);
    end_free(alone);
    close(sockets[0]);
}

/* --- bytes ---- */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define MUCH (UINT64_C(16) << 20)
#else
#define MUCH (UINT64_C(64) << 20)
#endif

static void expect_transfer(struct pair *p)
{
    WAIT_FOR(p->client->received == p->server->to_send || p->client->failed);
    WAIT_FOR(p->server->received == p->client->to_send || p->server->failed);
    assert_false(p->client->wrong || p->server->wrong);
    if (p->client->failed || p->server->failed)
        fail_msg("failed: %s %s", p->client->why, p->server->why);
}

static void much_flows_both_ways_at_once_and_is_right(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    p.client->to_send = MUCH;
    p.server->to_send = MUCH + 12345;
    /* One end reads in bites and asks for more each time. */
    p.server->stop_after = 50000;
    p.server->resume_self = true;
    pair_start(&p);
    expect_transfer(&p);
    assert_int_equal(p.client->sent, MUCH);
    pair_free(&p);
}

/* What TCP holds back counts as unsent: were it not sent off, each record would wait for TCP's own 200 ms, minutes in all. */
static void records_for_a_reader_are_not_held_back(void **state)
{
    struct pair p = pair_new(context_with(TLS_PEER, anna, anna_key, 16384),
                             context_of(TLS_PEER, bert, bert_key));
    p.client->to_send = 16 << 20;
    p.client->reader = true;
    pair_start(&p);
    expect_transfer(&p);
    pair_free(&p);
}

static void writes_of_every_size_arrive(void **state)
{
    static const size_t sizes[] = {1, 16383, 16384, 16385, 32768, 199999};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        struct pair p = pair_new(context_of(TLS_TRACKER_CLIENT, anna, anna_key),
                                 context_of(TLS_TRACKER, tracker, tracker_key));
        p.client->to_send = sizes[i] == 1 ? 20000 : 1000000;
        p.server->to_send = 3000;
        p.client->write_size = p.server->write_size = sizes[i];
        pair_start(&p);
        expect_transfer(&p);
        pair_free(&p);
    }
}

static void a_reader_that_stops_holds_the_writer_up_and_goes_on_when_resumed(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    p.client->to_send = 64 << 20;
    p.server->stop_after = 1;
    pair_start(&p);
    WAIT_FOR(p.server->received == 1);
    uint64_t before;
    do { /* until buffers are full */
        before = p.client->sent;
        usleep(200000);
    } while (p.client->sent != before);
    assert_true(before < (64 << 20));
    assert_int_equal(p.server->received, 1);
    unsigned events_before = p.server->readables;
    on_loop(loop_b, act_resume, p.server);
    WAIT_FOR(p.server->received == 2);
    usleep(20000);
    assert_int_equal(p.server->readables, events_before + 1); /* one resume, one event */
    p.client->to_send = before;                               /* enough of it */
    p.server->stop_after = 0;
    on_loop(loop_b, act_resume, p.server);
    WAIT_FOR(p.server->received == p.client->sent);
    assert_false(p.server->wrong);
    pair_free(&p);
}

static void bytes_that_openssl_holds_come_by_resume_alone(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    p.client->to_send = 1000;
    p.server->stop_after = 10;
    pair_start(&p);
    for (uint64_t expected = 10; expected <= 1000; expected += 10) {
        WAIT_FOR(p.server->received == expected);
        on_loop(loop_b, act_resume, p.server); /* the socket has been empty since the first */
    }
    assert_false(p.server->wrong);
    pair_free(&p);
}

struct updates {
    struct end *end;
    uint64_t count;
};

static void act_updates(void *arg)
{
    struct updates *updates = arg;
    updates->count = tls_key_updates(updates->end->stream);
}

static uint64_t updates_of(struct end *end)
{
    struct updates updates = {.end = end};
    on_loop(end->loop, act_updates, &updates);
    return updates.count;
}

static void keys_are_updated_in_time_and_no_byte_is_lost(void **state)
{
    struct tls_context *client = context_of(TLS_PEER, anna, anna_key);
    struct tls_context *server = context_of(TLS_PEER, bert, bert_key);
    tls_context_set_key_records(client, 3);
    tls_context_set_key_records(server, 7);
    struct pair p = pair_new(client, server);
    p.client->to_send = p.server->to_send = 8 << 20;
    p.server->stop_after = 33333;
    p.server->resume_self = true;
    pair_start(&p);
    expect_transfer(&p);
    assert_in_range(updates_of(p.client), 512 / 3 - 1, 2048);
    assert_in_range(updates_of(p.server), 512 / 7 - 1, 1024);
    pair_free(&p);
}

static void a_peer_that_asks_for_key_updates_gets_them(void **state)
{
    struct raw raw;
    uint8_t bytes[100];
    raw_new(&raw, anna, anna_key);
    struct end *server = raw_dial(&raw, context_of(TLS_PEER, bert, bert_key));
    WAIT_FOR(server->ready);
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(SSL_key_update(raw.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
        bytes[0] = pattern(i, 1);
        assert_int_equal(SSL_write(raw.ssl, bytes, 1), 1);
        WAIT_FOR(server->received == i + 1);
        server->to_send += 1;
        on_loop(loop_b, act_pump, server);
        assert_int_equal(SSL_read(raw.ssl, bytes, 1), 1);
        assert_int_equal(bytes[0], pattern(i, 77));
    }
    assert_false(server->wrong);
    end_free(server);
    raw_free(&raw);
}

/* One read goes on over key updates for as long as they come: 1.2 MB of them keep a thread for a second. */
static void a_peer_that_sends_only_key_updates_is_left(void **state)
{
    struct raw raw;
    raw_new(&raw, anna, anna_key);
    struct end *server = raw_dial(&raw, context_of(TLS_TRACKER, tracker, tracker_key));
    WAIT_FOR(server->ready);
    for (unsigned i = 0; i < 65; i++) {
        assert_int_equal(SSL_key_update(raw.ssl, SSL_KEY_UPDATE_NOT_REQUESTED), 1);
        assert_int_equal(SSL_do_handshake(raw.ssl), 1);
    }
    WAIT_FOR(server->failed);
    assert_string_equal(server->why, "the peer sends key updates instead of data");
    end_free(server);
    raw_free(&raw);
}

/* --- moving ---- */

static void act_move(void *arg)
{
    struct end *end = arg;
    tls_move(end->stream, end->move_to);
    end->loop = end->move_to;
}

static void act_settle(void *arg)
{
    struct end *end = arg;
    stream_set_events(end->stream, &events, end);
    pump(end);
}

static void a_stream_moves_to_another_loop_with_all_its_bytes(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    p.client->to_send = 4 << 20; /* under way while the other end moves */
    p.server->to_send = 2 << 20;
    p.server->stop_after = 0;
    p.server->move_to = loop_a;
    int sockets[2];
    socket_pair(sockets);
    end_start(p.server, sockets[1]);
    end_start(p.client, sockets[0]);
    WAIT_FOR(p.server->ready);
    on_loop(loop_b, act_move, p.server);
    on_loop(loop_a, act_settle, p.server);
    expect_transfer(&p);
    pair_free(&p);
}

/* --- settings ---- */

static void settings_that_do_not_fit_make_no_context(void **state)
{
    uint8_t other[FINGERPRINT_SIZE] = {1};
    const struct tls_settings bad[] = {
        {.policy = TLS_PEER, .ca = ca},
        {.policy = TLS_PEER, .certificate = anna, .key = anna_key},
        {.policy = TLS_PEER, .ca = ca, .certificate = anna, .key = bert_key},
        {.policy = TLS_PEER, .ca = ca, .certificate = tracker, .key = tracker_key},
        {.policy = TLS_PEER, .ca = anna, .certificate = anna, .key = anna_key},
        {.policy = TLS_TRACKER, .ca = ca, .certificate = anna, .key = anna_key},
        {.policy = TLS_TRACKER, .ca = ca},
        {.policy = TLS_TRACKER,
         .ca_fingerprint = other,
         .certificate = tracker,
         .key = tracker_key},
        {.policy = TLS_TRACKER_CLIENT},
        {.policy = TLS_TRACKER_CLIENT, .ca = ca, .ca_fingerprint = other},
        {.policy = TLS_TRACKER_CLIENT, .ca = ca, .certificate = anna},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const char *fault = NULL;
        assert_null(tls_context_new(&bad[i], &fault));
        assert_non_null(fault);
    }
}

/* --- beginning again after a pause ---- */

static void act_wake(void *arg)
{
    struct tls *tls = (struct tls *)(void *)((struct end *)arg)->stream;

    tls->sent_at = 0;
    tls_wake(tls);
}

static bool control_is(const struct end *end, const char *name)
{
    char control[16] = "";
    socklen_t size = sizeof control;

    assert_int_equal(getsockopt(end->fd, IPPROTO_TCP, TCP_CONGESTION, control, &size), 0);
    return strncmp(control, name, sizeof control) == 0;
}

static bool all_acknowledged(const struct end *end)
{
    struct tcp_info info;
    socklen_t size = sizeof info;

    assert_int_equal(getsockopt(end->fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    return info.tcpi_unacked == 0;
}

static void limit_pace(const struct end *end, uint64_t rate)
{
    assert_int_equal(setsockopt(end->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate), 0);
}

/* Bytes a second at which the kernel lets bytes leave, and what a window in each round trip is. */
static uint64_t pace_of(const struct end *end, double *window_rate)
{
    struct linux_tcp_info {
        struct tcp_info known;
        uint64_t pacing_rate;
    } info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    assert_int_equal(getsockopt(end->fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    *window_rate =
        (double)info.known.tcpi_snd_cwnd * info.known.tcpi_snd_mss * 1e6 / info.known.tcpi_rtt;
    return info.pacing_rate;
}

static void a_link_between_daemons_that_idled_begins_with_its_whole_window(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));
    double window_rate;

    p.client->to_send = p.server->to_send = 1000;
    pair_start(&p);
    expect_transfer(&p);
    if (!control_is(p.server, "bbr")) { /* this machine has none, or does not allow it */
        pair_free(&p);
        skip();
    }
    WAIT_FOR(all_acknowledged(p.server));
    limit_pace(p.server, 1000000);
    limit_pace(p.server, UINT64_MAX);
    assert_true(pace_of(p.server, &window_rate) <= 1000000);
    on_loop(loop_b, act_wake, p.server);
    assert_true(control_is(p.server, "bbr"));
    assert_true((double)pace_of(p.server, &window_rate) > 2 * window_rate);
    p.client->to_send = p.server->to_send = 100000;
    on_loop(loop_b, act_pump, p.server);
    on_loop(loop_a, act_pump, p.client);
    expect_transfer(&p);
    pair_free(&p);
}

static void act_crowd(void *arg)
{
    struct end *end = arg;

    ((struct tls *)(void *)end->stream)->near = false;
    tls_crowd(end->stream, true);
}

static void act_no_crowd(void *arg)
{
    tls_crowd(((struct end *)arg)->stream, false);
}

static void a_link_that_is_one_of_many_leaves_its_pace_to_its_owner(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));

    p.client->to_send = p.server->to_send = 1000;
    pair_start(&p);
    expect_transfer(&p);
    if (!control_is(p.server, "bbr")) { /* this machine has none, or does not allow it */
        pair_free(&p);
        skip();
    }
    on_loop(loop_b, act_crowd, p.server);
    assert_true(control_is(p.server, "cubic"));
    p.client->to_send = p.server->to_send = 100000;
    on_loop(loop_b, act_pump, p.server);
    on_loop(loop_a, act_pump, p.client);
    expect_transfer(&p);
    on_loop(loop_b, act_no_crowd, p.server);
    assert_true(control_is(p.server, "bbr"));
    pair_free(&p);
}

/* As a link that is far away and sends as fast as it can. */
static void measure(struct end *end, unsigned looks, bool reader)
{
    struct tls *tls = (struct tls *)(void *)end->stream;

    tls->near = false;
    tls->rate = UINT64_MAX;
    while (looks-- > 0)
        tls_wake_measured(tls, reader);
}

static void act_look_busy(void *arg)
{
    measure(arg, 5, false);
}

static void act_look_read(void *arg)
{
    measure(arg, 1, true);
}

static bool is_bounded(const struct end *end)
{
    uint64_t rate = 0;
    socklen_t size = sizeof rate;

    assert_int_equal(getsockopt(end->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, &size), 0);
    return rate != UINT64_MAX;
}

static void a_busy_link_is_paced_by_what_the_path_carries_unless_a_reader_waits(void **state)
{
    struct pair p =
        pair_new(context_of(TLS_PEER, anna, anna_key), context_of(TLS_PEER, bert, bert_key));

    p.client->to_send = p.server->to_send = 100000;
    pair_start(&p);
    expect_transfer(&p);
    if (!control_is(p.server, "bbr")) { /* this machine has none, or does not allow it */
        pair_free(&p);
        skip();
    }
    WAIT_FOR(all_acknowledged(p.server));
    assert_false(is_bounded(p.server));
    on_loop(loop_b, act_look_busy, p.server);
    assert_true(is_bounded(p.server));
    on_loop(loop_b, act_look_read, p.server);
    assert_false(is_bounded(p.server));
    pair_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_devices_know_each_other_once_ready),
        cmocka_unit_test(a_device_knows_the_tracker_and_the_tracker_the_device),
        cmocka_unit_test(the_tracker_lets_in_whoever_has_no_certificate_yet),
        cmocka_unit_test(a_peer_without_certificate_is_refused),
        cmocka_unit_test(a_certificate_of_another_swarm_is_refused),
        cmocka_unit_test(one_that_is_refused_after_its_ready_hears_why),
        cmocka_unit_test(an_expired_certificate_is_refused),
        cmocka_unit_test(a_member_cannot_stand_in_for_the_tracker),
        cmocka_unit_test(the_tracker_cannot_stand_in_for_a_member),
        cmocka_unit_test(short_keys_weak_digests_and_nameless_certificates_are_refused),
        cmocka_unit_test(tls_1_2_is_refused),
        cmocka_unit_test(what_is_not_tls_is_refused),
        cmocka_unit_test(the_cas_fingerprint_is_enough_for_a_first_contact),
        cmocka_unit_test(a_wrong_fingerprint_is_refused),
        cmocka_unit_test(showing_the_right_ca_is_not_enough),
        cmocka_unit_test(no_session_can_be_resumed),
        cmocka_unit_test(a_silent_stranger_times_out),
        cmocka_unit_test(a_closed_port_is_told_as_such),
        cmocka_unit_test(a_peer_that_goes_during_the_handshake_is_noticed),
        cmocka_unit_test(a_client_that_is_gone_before_the_answer_costs_no_signature),
        cmocka_unit_test(an_orderly_end_is_told_from_a_cut),
        cmocka_unit_test(a_flipped_bit_on_the_way_ends_the_stream),
        cmocka_unit_test(writing_to_a_peer_that_is_gone_fails_without_a_signal),
        cmocka_unit_test(a_full_socket_that_is_reset_is_noticed_though_nobody_reads),
        cmocka_unit_test(a_stream_can_be_freed_at_any_moment_of_its_handshake),
        cmocka_unit_test(a_stream_freed_while_its_step_waits_or_runs_is_released_later),
        cmocka_unit_test(a_handshake_that_times_out_during_a_step_fails_once),
        cmocka_unit_test(a_stream_can_be_freed_in_its_own_callbacks),
        cmocka_unit_test(much_flows_both_ways_at_once_and_is_right),
        cmocka_unit_test(records_for_a_reader_are_not_held_back),
        cmocka_unit_test(writes_of_every_size_arrive),
        cmocka_unit_test(a_reader_that_stops_holds_the_writer_up_and_goes_on_when_resumed),
        cmocka_unit_test(bytes_that_openssl_holds_come_by_resume_alone),
        cmocka_unit_test(keys_are_updated_in_time_and_no_byte_is_lost),
        cmocka_unit_test(a_peer_that_asks_for_key_updates_gets_them),
        cmocka_unit_test(a_peer_that_sends_only_key_updates_is_left),
        cmocka_unit_test(a_stream_moves_to_another_loop_with_all_its_bytes),
        cmocka_unit_test(settings_that_do_not_fit_make_no_context),
        cmocka_unit_test(a_link_between_daemons_that_idled_begins_with_its_whole_window),
        cmocka_unit_test(a_link_that_is_one_of_many_leaves_its_pace_to_its_owner),
        cmocka_unit_test(a_busy_link_is_paced_by_what_the_path_carries_unless_a_reader_waits),
    };
    return cmocka_run_group_tests_name("tls", tests, set_up, tear_down);
}
