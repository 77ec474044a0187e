/* The tracker over the wire: a real server on loopback with real TLS, and a small client.
 *
 * The client has one loop thread for all its connections; the test's thread sends through it and waits, with a
 * time limit, for frames that it has laid out in arrival order. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <malloc.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/thread.h"
#include "base/workers.h"
#include "crypto/identity.h"
#include "crypto/merkle.h"
#include "crypto/random.h"
#include "crypto/tls.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/tracker.pb-c.h"
#include "tracker/accounts.h"
#include "tracker/place.h"
#include "tracker/server.h"
#include "tracker/storage.h"

#define TYPE(name)  TRACKER__TRACKER_TYPE__TRACKER_##name
#define FAULT(name) TRACKER__FAULT_CODE__FAULT_##name
#define WAIT_NS     (20 * NS_PER_S)

/* --- the client -------------------------------------------------------------------------------------------- */

struct received {
    struct received *next;
    struct frame frame;
    uint8_t *message;
    uint8_t *payload;
};

struct client {
    struct channel *channel;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct received *first, **last;
    bool ready, closed;
    char why[200];
    uint32_t next_id;
    void *incoming; /* payload under way */
};

static struct loop *loop;
static struct workers *handshakes;

static void on_ready(void *arg)
{
    struct client *c = arg;
    pthread_mutex_lock(&c->lock);
    c->ready = true;
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->lock);
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct client *c = arg;
    free(c->incoming);
    c->incoming = xmalloc(frame->payload_size);
    return c->incoming;
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct client *c = arg;
    struct received *r = xcalloc(1, sizeof *r);
    r->frame = *frame;
    r->message = xmalloc(frame->message_size + 1);
    if (frame->message_size > 0)
        memcpy(r->message, message, frame->message_size);
    r->payload = payload;
    c->incoming = NULL;
    pthread_mutex_lock(&c->lock);
    *c->last = r;
    c->last = &r->next;
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct client *c = arg;
    channel_free(c->channel);
    pthread_mutex_lock(&c->lock);
    c->channel = NULL;
    c->closed = true;
    snprintf(c->why, sizeof c->why, "%s", why);
    pthread_cond_broadcast(&c->wake);
    pthread_mutex_unlock(&c->lock);
}

static const struct channel_events client_events = {
    .ready = on_ready, .frame = on_frame, .payload = on_payload, .closed = on_closed};

/* Runs something on the client's loop and waits for it. */
struct errand {
    struct mail mail;
    struct client *client;
    void (*run)(struct errand *);
    struct tls_context *tls;
    uint16_t port;
    uint16_t type;
    uint8_t flags;
    uint32_t id;
    const ProtobufCMessage *message;
    bool done;
};

static pthread_mutex_t errand_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t errand_wake = PTHREAD_COND_INITIALIZER;

static void errand_deliver(struct mail *mail, void *owner)
{
    struct errand *e = (struct errand *)(void *)mail;
    e->run(e);
    pthread_mutex_lock(&errand_lock);
    e->done = true;
    pthread_cond_broadcast(&errand_wake);
    pthread_mutex_unlock(&errand_lock);
}

static void errand_do(struct errand *e)
{
    e->mail.deliver = errand_deliver;
    loop_post(loop, &e->mail);
    pthread_mutex_lock(&errand_lock);
    while (!e->done)
        pthread_cond_wait(&errand_wake, &errand_lock);
    pthread_mutex_unlock(&errand_lock);
}

static void run_connect(struct errand *e)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(e->port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    struct stream *stream = tls_connect(loop, handshakes, e->tls, fd);
    e->client->channel = channel_new(loop, stream, &client_events, e->client);
    channel_trust(e->client->channel);
}

static void run_send(struct errand *e)
{
    if (e->client->channel != NULL)
        channel_send(e->client->channel, CHANNEL_URGENT, e->type, e->flags, e->id, e->message, NULL,
                     0);
}

static void run_close(struct errand *e)
{
    channel_free(e->client->channel);
    e->client->channel = NULL;
}

static bool wait_until(struct client *c, bool (*what)(struct client *, void *), void *arg,
                       int64_t limit)
{
    int64_t end = clock_wall() + limit;
    struct timespec at = {.tv_sec = end / NS_PER_S, .tv_nsec = end % NS_PER_S};
    bool good;
    pthread_mutex_lock(&c->lock);
    while (!(good = what(c, arg)) && pthread_cond_timedwait(&c->wake, &c->lock, &at) == 0)
        ;
    pthread_mutex_unlock(&c->lock);
    return good;
}

static bool is_up_or_closed(struct client *c, void *arg)
{
    return c->ready || c->closed;
}

static bool is_closed(struct client *c, void *arg)
{
    return c->closed;
}

/* --- the server and its members --------------------------------------------------------------------------------- */

static char dir[64];
static struct server *server;
static pthread_t server_thread;
static uint8_t fingerprint[FINGERPRINT_SIZE];

struct member {
    const char *name, *password;
    struct key *key;
    struct certificate *certificate;
    uint8_t device[DEVICE_ID_SIZE];
    bool admin;
};
static struct member ann = {.name = "ann", .password = "correct horse"};
static struct member bob = {.name = "bob", .password = "battery staple"};
static struct key *spare;

static void *server_main(void *arg)
{
    server_run(server);
    return NULL;
}

static void server_up(enum registration registration)
{
    char *fault = NULL;
    struct server_settings settings = {.dir = dir,
                                       .host = "127.0.0.1",
                                       .registration = registration,
                                       .certificate_lifetime = SERVER_CERTIFICATE_LIFETIME,
                                       .name = "test swarm"};
    server = server_new(&settings, &fault);
    if (server == NULL)
        fail_msg("%s", fault);
    assert_true(place_set_listening(dir, server_address(server), &fault));
    server_thread = thread_start("server", server_main, NULL);
}

static void server_down(void)
{
    server_stop(server);
    pthread_join(server_thread, NULL);
    server_free(server);
    server = NULL;
}

static struct storage *visit(void)
{
    char *fault = NULL;
    struct storage *storage = storage_open(dir, STORAGE_VISIT, &fault);
    assert_non_null(storage);
    assert_true(storage_begin(storage, true));
    return storage;
}

static void leave(struct storage *storage)
{
    assert_true(storage_commit(storage));
    storage_close(storage);
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static struct client *client_open(struct key *key, struct certificate *certificate)
{
    const char *fault = NULL;
    struct tls_settings settings = {.policy = TLS_TRACKER_CLIENT,
                                    .ca_fingerprint = fingerprint,
                                    .certificate = certificate,
                                    .key = certificate == NULL ? NULL : key,
                                    .handshake_timeout_ns = WAIT_NS};
    struct client *c = xcalloc(1, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    c->last = &c->first;
    c->next_id = 1;
    struct errand e = {.client = c, .run = run_connect, .port = server_port(server)};
    e.tls = tls_context_new(&settings, &fault);
    if (e.tls == NULL)
        fail_msg("%s", fault);
    errand_do(&e);
    tls_context_free(e.tls);
    assert_true(wait_until(c, is_up_or_closed, NULL, WAIT_NS));
    return c;
}

static void received_free(struct received *r)
{
    if (r != NULL) {
        free(r->message);
        free(r->payload);
        free(r);
    }
}

static void client_close(struct client *c)
{
    struct errand e = {.client = c, .run = run_close};
    errand_do(&e);
    while (c->first != NULL) {
        struct received *r = c->first;
        c->first = r->next;
        received_free(r);
    }
    free(c->incoming);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->wake);
    free(c);
}

struct wanted {
    uint32_t id;   /* an answer to this request; or 0: a push */
    uint16_t type; /* of this type */
    struct received *found;
};

static bool take_wanted(struct client *c, void *arg)
{
    struct wanted *w = arg;
    for (struct received **at = &c->first; *at != NULL; at = &(*at)->next)
        if ((*at)->frame.id == w->id && (w->id != 0 || (*at)->frame.type == w->type)) {
            w->found = *at;
            *at = w->found->next;
            if (*at == NULL)
                c->last = at;
            return true;
        }
    return c->closed;
}

static void send_frame(struct client *c, uint16_t type, uint32_t id,
                       const ProtobufCMessage *message)
{
    struct errand e = {.client = c, .run = run_send, .type = type, .id = id, .message = message};
    errand_do(&e);
}

static struct received *answer_of(struct client *c, uint32_t id)
{
    struct wanted w = {.id = id};
    if (!wait_until(c, take_wanted, &w, WAIT_NS))
        fail_msg("no answer");
    return w.found;
}

static struct received *pushed(struct client *c, uint16_t type)
{
    struct wanted w = {.type = type};
    if (!wait_until(c, take_wanted, &w, WAIT_NS))
        fail_msg("no push of type %u", type);
    if (w.found == NULL)
        fail_msg("closed: %s", c->why);
    return w.found;
}

static struct received *call(struct client *c, uint16_t type, const ProtobufCMessage *message)
{
    uint32_t id = c->next_id++;
    send_frame(c, type, id, message);
    return answer_of(c, id);
}

static void *unpack(const struct received *r, const ProtobufCMessageDescriptor *descriptor)
{
    assert_non_null(r);
    void *message = protobuf_c_message_unpack(descriptor, NULL, r->frame.message_size, r->message);
    assert_non_null(message);
    return message;
}

/* The code of the fault that this answer is; 0 if it is none. */
static int fault_of(struct received *r)
{
    assert_non_null(r);
    int code = 0;
    if (r->frame.type == TYPE(FAULT)) {
        Tracker__Fault *fault = unpack(r, &tracker__fault__descriptor);
        code = (int)fault->code;
        tracker__fault__free_unpacked(fault, NULL);
    }
    received_free(r);
    return code;
}

static void hello(struct client *c)
{
    Tracker__Hello message = TRACKER__HELLO__INIT;
    message.version = message.oldest = 1;
    assert_int_equal(fault_of(call(c, TYPE(HELLO), &message.base)), 0);
}

static struct client *member_open(struct member *m)
{
    struct client *c = client_open(m->key, m->certificate);
    hello(c);
    return c;
}

static struct client *stranger_open(void)
{
    struct client *c = client_open(NULL, NULL);
    hello(c);
    return c;
}

static ProtobufCBinaryData bytes_of(const char *text)
{
    return (ProtobufCBinaryData){.len = strlen(text), .data = (uint8_t *)(uintptr_t)text};
}

static void make_invite(bool admin, unsigned uses, int64_t lifetime,
                        char code[ACCOUNTS_INVITE_CODE + 1])
{
    char *fault = NULL;
    struct storage *storage = storage_open(dir, STORAGE_VISIT, &fault);
    assert_non_null(storage);
    struct storage_invite invite = {
        .admin = admin, .uses = uses, .expires = clock_wall() / NS_PER_S + lifetime};
    accounts_make_invite(&invite, code);
    assert_true(storage_begin(storage, true));
    storage_invite_add(storage, &invite);
    assert_true(storage_commit(storage));
    storage_close(storage);
}

/* 0 and the member's certificate taken over, or the fault's code. */
static int take_credentials(struct member *m, struct received *r)
{
    assert_non_null(r);
    if (r->frame.type != TYPE(CREDENTIALS))
        return fault_of(r);
    const char *fault;
    Tracker__Credentials *credentials = unpack(r, &tracker__credentials__descriptor);
    struct certificate_subject subject;
    certificate_free(m->certificate);
    m->certificate =
        certificate_from_pem(credentials->certificate, strlen(credentials->certificate), &fault);
    assert_non_null(m->certificate);
    assert_true(certificate_subject(m->certificate, &subject));
    assert_string_equal(subject.account, m->name);
    assert_string_equal(credentials->account, m->name);
    assert_memory_equal(credentials->device.data, subject.device, DEVICE_ID_SIZE);
    memcpy(m->device, subject.device, DEVICE_ID_SIZE);
    m->admin = credentials->admin;
    tracker__credentials__free_unpacked(credentials, NULL);
    received_free(r);
    return 0;
}

static int try_register(struct client *c, struct member *m, const char *password,
                        const char *invite)
{
    const char *fault;
    char *csr = csr_create(m->key, &fault);
    Tracker__Register message = TRACKER__REGISTER__INIT;
    message.name = (char *)(uintptr_t)m->name;
    message.password = bytes_of(password);
    message.invite = (char *)(uintptr_t)invite;
    message.request = csr;
    int code = take_credentials(m, call(c, TYPE(REGISTER), &message.base));
    free(csr);
    return code;
}

static int login_with_code(struct client *c, struct member *m, const char *name,
                           const char *password, const char *code)
{
    const char *fault;
    char *csr = csr_create(m->key, &fault);
    char machine[] = "laptop";
    Tracker__Login message = TRACKER__LOGIN__INIT;
    message.name = (char *)(uintptr_t)name;
    message.password = bytes_of(password);
    message.request = csr;
    message.machine = machine;
    message.code = (char *)(uintptr_t)code;
    int result = take_credentials(m, call(c, TYPE(LOGIN), &message.base));
    free(csr);
    return result;
}

static int try_login(struct client *c, struct member *m, const char *name, const char *password)
{
    return login_with_code(c, m, name, password, "");
}

static int group_setup(void **state)
{
    const char *why;
    char *fault = NULL;
    char invite[ACCOUNTS_INVITE_CODE + 1];
    snprintf(dir, sizeof dir, "/tmp/tracker-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    loop = loop_new("client");
    loop_start(loop);
    handshakes = workers_new("client", 2);
    ann.key = key_generate(&why);
    bob.key = key_generate(&why);
    spare = key_generate(&why);
    assert_non_null(spare);
    server_up(REGISTRATION_INVITE);
    struct swarm_url url;
    assert_true(place_url(dir, &url, &fault));
    memcpy(fingerprint, url.ca, sizeof fingerprint);
    struct client *c = stranger_open();
    make_invite(true, 1, 3600, invite);
    assert_int_equal(try_register(c, &ann, ann.password, invite), 0);
    make_invite(false, 1, 3600, invite);
    assert_int_equal(try_register(c, &bob, bob.password, invite), 0);
    client_close(c);
    return 0;
}

static int group_teardown(void **state)
{
    server_down();
    loop_stop(loop);
    loop_join(loop);
    workers_free(handshakes);
    loop_free(loop);
    key_free(ann.key);
    key_free(bob.key);
    key_free(spare);
    certificate_free(ann.certificate);
    certificate_free(bob.certificate);
    char *command = xasprintf("rm -rf %s", dir);
    int status = system(command);
    free(command);
    return status;
}

/* --- tests: accounts ----------------------------------------------------------------------------------------------- */

static void the_first_admin_is_made_by_an_admin_invite(void **state)
{
    assert_true(ann.admin);
    assert_false(bob.admin);
}

static void without_certificate_nothing_but_register_and_login_is_done(void **state)
{
    static const uint16_t types[] = {TYPE(RENEW),  TYPE(LOGOUT),    TYPE(PASSWORD), TYPE(WHOAMI),
                                     TYPE(INVITE), TYPE(SUBSCRIBE), TYPE(OPS),      TYPE(ANNOUNCE),
                                     TYPE(WANT),   TYPE(HEALTH)};
    struct client *c = stranger_open();
    Tracker__Done empty = TRACKER__DONE__INIT;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        assert_int_equal(fault_of(call(c, types[i], &empty.base)), FAULT(DENIED));
    client_close(c);
}

static void hello_must_come_first(void **state)
{
    struct client *c = client_open(NULL, NULL);
    Tracker__Ping ping = TRACKER__PING__INIT;
    assert_null(call(c, TYPE(PING), &ping.base));
    client_close(c);
}

static void an_unknown_version_is_refused_with_a_reason(void **state)
{
    struct client *c = client_open(NULL, NULL);
    Tracker__Hello message = TRACKER__HELLO__INIT;
    message.version = message.oldest = 7;
    assert_int_equal(fault_of(call(c, TYPE(HELLO), &message.base)), FAULT(VERSION));
    assert_true(wait_until(c, is_closed, NULL, WAIT_NS));
    client_close(c);
}

static void welcome_tells_who_one_is(void **state)
{
    struct client *c = client_open(bob.key, bob.certificate);
    Tracker__Hello message = TRACKER__HELLO__INIT;
    message.version = message.oldest = 1;
    struct received *r = call(c, TYPE(HELLO), &message.base);
    Tracker__Welcome *welcome = unpack(r, &tracker__welcome__descriptor);
    assert_string_equal(welcome->account, "bob");
    assert_string_equal(welcome->swarm, "test swarm");
    assert_string_equal(welcome->seen_as, "127.0.0.1");
    assert_memory_equal(welcome->device.data, bob.device, DEVICE_ID_SIZE);
    tracker__welcome__free_unpacked(welcome, NULL);
    received_free(r);
    client_close(c);
}

static void registering_keeps_the_rules(void **state)
{
    char invite[ACCOUNTS_INVITE_CODE + 1], old[ACCOUNTS_INVITE_CODE + 1];
    struct client *c = stranger_open();
    struct member carl = {.name = "carl", .key = spare};
    struct member second_ann = {.name = "ann", .key = spare};
    struct member bad = {.name = "Not Good", .key = spare};
    make_invite(false, 1, 3600, invite);
    make_invite(false, 1, -10, old);
    assert_int_equal(try_register(c, &carl, "long enough", ""), FAULT(BAD_INVITE));
    assert_int_equal(try_register(c, &carl, "long enough", "nonsense"), FAULT(BAD_INVITE));
    assert_int_equal(try_register(c, &carl, "long enough", old), FAULT(BAD_INVITE));
    assert_int_equal(try_register(c, &carl, "short", invite), FAULT(BAD_PASSWORD));
    assert_int_equal(try_register(c, &bad, "long enough", invite), FAULT(BAD_NAME));
    assert_int_equal(try_register(c, &second_ann, "long enough", invite), FAULT(NAME_TAKEN));
    assert_int_equal(try_register(c, &carl, "long enough", invite), 0);
    struct member dora = {.name = "dora", .key = spare};
    assert_int_equal(try_register(c, &dora, "long enough", invite), FAULT(BAD_INVITE));
    certificate_free(carl.certificate);
    client_close(c);
}

static void a_wrong_password_and_an_unknown_name_get_the_same_answer(void **state)
{
    struct client *c = stranger_open();
    struct member someone = {.name = "bob", .key = spare};
    assert_int_equal(try_login(c, &someone, "bob", "wrong password"), FAULT(WRONG_PASSWORD));
    assert_int_equal(try_login(c, &someone, "nobody", "wrong password"), FAULT(WRONG_PASSWORD));
    assert_int_equal(try_login(c, &someone, "nobody", "wrong password"), FAULT(WRONG_PASSWORD));
    assert_int_equal(try_login(c, &someone, "nobody", "wrong password"), FAULT(WRONG_PASSWORD));
    assert_int_equal(try_login(c, &someone, "nobody", "wrong password"), FAULT(BUSY));
    assert_int_equal(try_login(c, &bob, "bob", bob.password), 0);
    client_close(c);
}

/* Codes count once the password is right: the owner's device gets in, whoever guesses. */
static void codes_of_strangers_do_not_keep_the_owner_out(void **state)
{
    struct client *c = stranger_open();
    struct member someone = {.name = "bob", .key = spare};
    for (unsigned i = 0; i <= LIMIT_TRIES_FREE; i++)
        (void)login_with_code(c, &someone, "bob", "wrong password", "123456");
    assert_int_equal(login_with_code(c, &someone, "bob", "wrong password", "123456"), FAULT(BUSY));
    assert_int_equal(login_with_code(c, &bob, "bob", bob.password, "123456"), 0);
    client_close(c);
}

static void a_malformed_request_for_a_certificate_is_refused(void **state)
{
    struct client *c = stranger_open();
    Tracker__Login message = TRACKER__LOGIN__INIT;
    char name[] = "bob", request[] = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n";
    message.name = name;
    message.password = bytes_of(bob.password);
    message.request = request;
    assert_int_equal(fault_of(call(c, TYPE(LOGIN), &message.base)), FAULT(BAD_REQUEST_KEY));
    client_close(c);
}

static int try_renew(struct client *c, struct member *m, const struct key *key)
{
    const char *fault;
    Tracker__Renew message = TRACKER__RENEW__INIT;
    char *csr = csr_create(key, &fault);
    message.request = csr;
    int code = take_credentials(m, call(c, TYPE(RENEW), &message.base));
    free(csr);
    return code;
}

static void a_certificate_is_renewed_for_the_same_key_only(void **state)
{
    struct client *c = member_open(&bob);
    assert_int_equal(try_renew(c, &bob, spare), FAULT(BAD_REQUEST_KEY));
    assert_int_equal(try_renew(c, &bob, bob.key), 0);
    client_close(c);
    client_close(member_open(&bob));
}

static void whoami_lists_devices(void **state)
{
    struct client *c = member_open(&ann);
    Tracker__Whoami message = TRACKER__WHOAMI__INIT;
    struct received *r = call(c, TYPE(WHOAMI), &message.base);
    Tracker__Account *account = unpack(r, &tracker__account__descriptor);
    assert_string_equal(account->name, "ann");
    assert_true(account->admin);
    assert_int_equal(account->n_devices, 1);
    assert_true(account->devices[0]->connected);
    tracker__account__free_unpacked(account, NULL);
    received_free(r);
    client_close(c);
}

static void only_admins_invite_admins(void **state)
{
    Tracker__Invite message = TRACKER__INVITE__INIT;
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    message.admin = true;
    assert_int_equal(fault_of(call(b, TYPE(INVITE), &message.base)), FAULT(DENIED));
    assert_int_equal(fault_of(call(a, TYPE(INVITE), &message.base)), 0);
    message.admin = false;
    assert_int_equal(fault_of(call(b, TYPE(INVITE), &message.base)), 0);
    message.lifetime = UINT32_MAX;
    assert_int_equal(fault_of(call(b, TYPE(INVITE), &message.base)), FAULT(MALFORMED));
    client_close(a);
    client_close(b);
}

static int change_user(struct client *c, const char *name, Tracker__UserAct act)
{
    Tracker__UserChange message = TRACKER__USER_CHANGE__INIT;
    message.name = (char *)(uintptr_t)name;
    message.act = act;
    return fault_of(call(c, TYPE(USER_CHANGE), &message.base));
}

/* The code of an invite that this member makes. */
static char *invite_of(struct client *c, bool admin)
{
    Tracker__Invite message = TRACKER__INVITE__INIT;
    message.admin = admin;
    message.uses = 5;
    struct received *r = call(c, TYPE(INVITE), &message.base);
    Tracker__Invited *invited = unpack(r, &tracker__invited__descriptor);
    char *code = xstrdup(invited->code);
    tracker__invited__free_unpacked(invited, NULL);
    received_free(r);
    return code;
}

static void invites_end_with_their_maker(void **state)
{
    char code[ACCOUNTS_INVITE_CODE + 1];
    struct client *a = member_open(&ann);
    struct client *c = stranger_open();
    const char *why;
    struct member rogue = {.name = "rogue", .key = key_generate(&why)};
    struct member back = {.name = "back", .key = spare};
    make_invite(true, 1, 3600, code);
    assert_int_equal(try_register(c, &rogue, "long enough", code), 0);
    struct client *r = member_open(&rogue);
    char *for_admins = invite_of(r, true), *for_members = invite_of(r, false);
    assert_int_equal(change_user(a, "rogue", TRACKER__USER_ACT__USER_ADMIN_OFF), 0);
    assert_int_equal(try_register(c, &back, "long enough", for_admins), FAULT(BAD_INVITE));
    assert_int_equal(change_user(a, "rogue", TRACKER__USER_ACT__USER_DELETE), 0);
    assert_int_equal(try_register(c, &back, "long enough", for_members), FAULT(BAD_INVITE));
    client_close(r);
    client_close(c);
    client_close(a);
    free(for_admins);
    free(for_members);
    certificate_free(rogue.certificate);
    key_free(rogue.key);
}

static int try_password(struct client *c, const char *old, const char *fresh, bool logout_others)
{
    Tracker__Password message = TRACKER__PASSWORD__INIT;
    message.old = bytes_of(old);
    message.new_ = bytes_of(fresh);
    message.logout_others = logout_others;
    return fault_of(call(c, TYPE(PASSWORD), &message.base));
}

static void a_new_password_replaces_the_old_one(void **state)
{
    struct client *c = member_open(&bob);
    assert_int_equal(try_password(c, "not the old one", "something else", false),
                     FAULT(WRONG_PASSWORD));
    assert_int_equal(try_password(c, bob.password, "short", false), FAULT(BAD_PASSWORD));
    assert_int_equal(try_password(c, bob.password, "something else", false), 0);
    client_close(c);
    c = stranger_open();
    assert_int_equal(try_login(c, &bob, "bob", bob.password), FAULT(WRONG_PASSWORD));
    bob.password = "something else";
    assert_int_equal(try_login(c, &bob, "bob", bob.password), 0);
    client_close(c);
}

static void a_new_password_logs_out_the_other_devices_if_asked(void **state)
{
    struct client *c = stranger_open();
    const char *why;
    struct member other = {.name = "bob", .key = key_generate(&why)};
    assert_int_equal(try_login(c, &other, "bob", bob.password), 0);
    client_close(c);
    struct client *lost = member_open(&other);
    c = member_open(&bob);
    assert_int_equal(try_password(c, bob.password, bob.password, false), 0);
    Tracker__Whoami whoami = TRACKER__WHOAMI__INIT;
    assert_int_equal(fault_of(call(lost, TYPE(WHOAMI), &whoami.base)), 0);
    assert_int_equal(try_password(c, bob.password, bob.password, true), 0);
    assert_true(wait_until(lost, is_closed, NULL, WAIT_NS));
    client_close(lost);
    client_close(c);
    lost = member_open(&other);
    Tracker__Whoami message = TRACKER__WHOAMI__INIT;
    assert_int_equal(fault_of(call(lost, TYPE(WHOAMI), &message.base)), FAULT(DISABLED));
    client_close(lost);
    certificate_free(other.certificate);
    key_free(other.key);
    client_close(member_open(&bob));
}

static void logging_out_voids_certificates_and_tells_everybody(void **state)
{
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    Tracker__Logout logout = TRACKER__LOGOUT__INIT;
    Tracker__Whoami whoami = TRACKER__WHOAMI__INIT;
    assert_int_equal(fault_of(call(b, TYPE(LOGOUT), &logout.base)), 0);
    assert_true(wait_until(b, is_closed, NULL, WAIT_NS));
    client_close(b);
    bool told = false;
    while (!told) {
        struct received *r = pushed(a, TYPE(REVOKED));
        Tracker__Revoked *revoked = unpack(r, &tracker__revoked__descriptor);
        for (size_t i = 0; i < revoked->n_devices; i++)
            told |= memcmp(revoked->devices[i].data, bob.device, DEVICE_ID_SIZE) == 0;
        tracker__revoked__free_unpacked(revoked, NULL);
        received_free(r);
    }
    client_close(a);
    b = member_open(&bob);
    assert_int_equal(fault_of(call(b, TYPE(WHOAMI), &whoami.base)), FAULT(DISABLED));
    assert_int_equal(try_login(b, &bob, "bob", bob.password), 0);
    client_close(b);
    b = member_open(&bob);
    assert_int_equal(fault_of(call(b, TYPE(WHOAMI), &whoami.base)), 0);
    client_close(b);
}

static void the_newest_connection_of_a_device_wins(void **state)
{
    struct client *first = member_open(&bob);
    struct client *second = member_open(&bob);
    assert_true(wait_until(first, is_closed, NULL, WAIT_NS));
    Tracker__Ping ping = TRACKER__PING__INIT;
    assert_int_equal(fault_of(call(second, TYPE(PING), &ping.base)), 0);
    client_close(first);
    client_close(second);
}

/* --- tests: the catalogue ----------------------------------------------------------------------------------------------- */

static uint64_t op_number(void)
{
    static uint64_t last;
    if (last == 0)
        last = (uint64_t)clock_wall();
    return ++last;
}

static Tracker__OpStatus do_op(struct client *c, Tracker__Op *op, uint64_t *entry)
{
    Tracker__Ops ops = TRACKER__OPS__INIT;
    Tracker__Op *list[] = {op};
    ops.n_ops = 1;
    ops.ops = list;
    if (op->op == 0)
        op->op = op_number();
    struct received *r = call(c, TYPE(OPS), &ops.base);
    assert_non_null(r);
    assert_int_equal(r->frame.type, TYPE(RESULTS));
    Tracker__Results *results = unpack(r, &tracker__results__descriptor);
    assert_int_equal(results->n_results, 1);
    assert_int_equal(results->results[0]->op, op->op);
    Tracker__OpStatus status = results->results[0]->status;
    if (entry != NULL)
        *entry = results->results[0]->entry == NULL ? 0 : results->results[0]->entry->id;
    tracker__results__free_unpacked(results, NULL);
    received_free(r);
    return status;
}

static uint64_t make_directory(struct client *c, uint64_t parent, const char *name)
{
    uint64_t id;
    Tracker__Op op = TRACKER__OP__INIT;
    op.kind = TRACKER__OP_KIND__OP_MKDIR;
    op.parent = parent;
    op.name = (char *)(uintptr_t)name;
    op.mode = 0755;
    assert_int_equal(do_op(c, &op, &id), TRACKER__OP_STATUS__OP_OK);
    return id;
}

static void remove_entry(struct client *c, uint64_t id)
{
    Tracker__Op op = TRACKER__OP__INIT;
    op.kind = TRACKER__OP_KIND__OP_REMOVE;
    op.id = id;
    assert_int_equal(do_op(c, &op, NULL), TRACKER__OP_STATUS__OP_OK);
}

/* What a subscriber knows after a series. */
struct view {
    uint8_t generation[16];
    uint64_t seq;
    size_t live, gone;
    bool from_scratch;
};

static void subscribe(struct client *c, const struct view *known)
{
    Tracker__Subscribe message = TRACKER__SUBSCRIBE__INIT;
    union {
        const uint8_t *from;
        uint8_t *to;
    } generation = {.from = known->generation};
    message.generation =
        (ProtobufCBinaryData){.len = known->seq == 0 ? 0 : 16, .data = generation.to};
    message.since = known->seq;
    assert_int_equal(fault_of(call(c, TYPE(SUBSCRIBE), &message.base)), 0);
}

/* Takes one Changes in; true if it says that the subscriber is up to date. */
static bool follow(struct client *c, struct view *view)
{
    struct received *r = pushed(c, TYPE(CHANGES));
    Tracker__Changes *changes = unpack(r, &tracker__changes__descriptor);
    if (changes->from_scratch) {
        memset(view, 0, sizeof *view);
        view->from_scratch = true;
    }
    memcpy(view->generation, changes->generation.data, 16);
    for (size_t i = 0; i < changes->n_entries; i++) {
        assert_true(changes->entries[i]->seq > view->seq);
        view->seq = changes->entries[i]->seq;
        if (changes->entries[i]->gone)
            view->gone++;
        else
            view->live++;
    }
    assert_true(changes->seq >= view->seq);
    view->seq = changes->seq;
    bool live = changes->live;
    tracker__changes__free_unpacked(changes, NULL);
    received_free(r);
    return live;
}

static void catch_up(struct client *c, struct view *view)
{
    subscribe(c, view);
    while (!follow(c, view))
        ;
}

static void follow_to(struct client *c, struct view *view, uint64_t seq)
{
    while (view->seq < seq)
        assert_true(follow(c, view));
}

static void subscribers_get_everything_then_what_changes(void **state)
{
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    struct view view = {0};
    uint64_t top = make_directory(a, 1, "videos");
    uint64_t inner = make_directory(a, top, "old");
    catch_up(b, &view);
    assert_true(view.from_scratch);
    assert_int_equal(view.live, 2);
    uint64_t before = view.seq;
    remove_entry(a, inner);
    follow_to(b, &view, before + 1);
    assert_int_equal(view.gone, 1);

    /* Away for a while, then from where it was. */
    client_close(b);
    remove_entry(a, top);
    uint64_t other = make_directory(a, 1, "other");
    b = member_open(&bob);
    struct view later = {.seq = view.seq};
    memcpy(later.generation, view.generation, 16);
    catch_up(b, &later);
    assert_false(later.from_scratch);
    assert_int_equal(later.gone, 1);
    assert_int_equal(later.live, 1);

    /* One who knows another tracker's data base starts anew. */
    struct view stranger = {.seq = view.seq};
    catch_up(b, &stranger);
    assert_true(stranger.from_scratch);
    assert_int_equal(stranger.live, 1);
    assert_int_equal(stranger.gone, 0);
    remove_entry(a, other);
    client_close(a);
    client_close(b);
}

static void a_large_catalogue_arrives_in_order_and_whole_while_it_changes(void **state)
{
    enum { COUNT = 3000 };
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    struct view view = {0};
    uint64_t top = make_directory(a, 1, "many");
    Tracker__Op *items = xcalloc(LIMIT_OPS, sizeof *items);
    Tracker__Op *list[LIMIT_OPS];
    char(*names)[32] = xcalloc(LIMIT_OPS, sizeof *names);
    uint32_t last_id = 0;
    for (size_t made = 0; made < COUNT; made += LIMIT_OPS) {
        Tracker__Ops ops = TRACKER__OPS__INIT;
        for (size_t i = 0; i < LIMIT_OPS; i++) {
            tracker__op__init(&items[i]);
            snprintf(names[i], sizeof names[i], "entry %zu", made + i);
            items[i].op = op_number();
            items[i].kind = TRACKER__OP_KIND__OP_MKDIR;
            items[i].parent = top;
            items[i].name = names[i];
            list[i] = &items[i];
        }
        ops.n_ops = LIMIT_OPS;
        ops.ops = list;
        last_id = a->next_id++;
        send_frame(a, TYPE(OPS), last_id, &ops.base);
        if (made == 2 * LIMIT_OPS)
            subscribe(b, &view); /* in the middle of it */
    }
    received_free(answer_of(a, last_id));
    while (!follow(b, &view))
        ;
    struct view whole = {0};
    size_t total = (COUNT + LIMIT_OPS - 1) / LIMIT_OPS * LIMIT_OPS + 1;
    while (view.live < total)
        assert_true(follow(b, &view));
    catch_up(b, &whole);
    assert_int_equal(whole.live, total);
    assert_int_equal(whole.seq, view.seq);
    free(items);
    free(names);
    client_close(a);
    client_close(b);
}

/* While the storage is busy with something else. */
static void whoever_subscribes_again_and_again_costs_one_reading(void **state)
{
    enum { TIMES = 400 };
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    struct view view = {0};
    Tracker__Subscribe message = TRACKER__SUBSCRIBE__INIT;
    make_directory(a, 1, "seldom");
    struct storage *storage = visit();
    Tracker__Ops none = TRACKER__OPS__INIT;
    uint32_t writing = a->next_id++;
    send_frame(a, TYPE(OPS), writing, &none.base);
    struct mallinfo2 before = mallinfo2();
    for (unsigned i = 0; i < TIMES; i++)
        assert_int_equal(fault_of(call(b, TYPE(SUBSCRIBE), &message.base)), 0);
    struct mallinfo2 after = mallinfo2();
    leave(storage);
    received_free(answer_of(a, writing));
    assert_true(after.uordblks + after.hblkhd < before.uordblks + before.hblkhd + (16u << 20));
    while (!follow(b, &view))
        ;
    assert_true(view.from_scratch);
    assert_true(view.live >= 1);
    client_close(a);
    client_close(b);
}

static void an_operation_sent_again_is_answered_the_same(void **state)
{
    struct client *a = member_open(&ann);
    uint64_t first, second;
    char name[] = "once";
    Tracker__Op op = TRACKER__OP__INIT;
    op.kind = TRACKER__OP_KIND__OP_MKDIR;
    op.parent = 1;
    op.name = name;
    assert_int_equal(do_op(a, &op, &first), TRACKER__OP_STATUS__OP_OK);
    client_close(a);
    a = member_open(&ann);
    assert_int_equal(do_op(a, &op, &second), TRACKER__OP_STATUS__OP_OK);
    assert_int_equal(first, second);
    op.op = 0;
    assert_int_equal(do_op(a, &op, &second), TRACKER__OP_STATUS__OP_EXISTS);
    client_close(a);
}

/* --- tests: who has what --------------------------------------------------------------------------------------------------- */

static void announce(struct client *c, const uint8_t *root, uint64_t size, bool complete,
                     uint8_t first_byte, const char *address)
{
    Tracker__Announce message = TRACKER__ANNOUNCE__INIT;
    Tracker__Holding holding = TRACKER__HOLDING__INIT;
    Tracker__Holding *holdings[] = {&holding};
    char *addresses[] = {(char *)(uintptr_t)address};
    uint8_t bits[1] = {first_byte};
    union {
        const uint8_t *from;
        uint8_t *to;
    } constant = {.from = root};
    holding.root = (ProtobufCBinaryData){.len = 32, .data = constant.to};
    holding.size = size;
    holding.complete = complete;
    if (!complete)
        holding.bitfield = (ProtobufCBinaryData){.len = 1, .data = bits};
    message.from_scratch = true;
    message.addresses_set = true;
    message.n_addresses = 1;
    message.addresses = addresses;
    message.n_holdings = 1;
    message.holdings = holdings;
    assert_int_equal(fault_of(call(c, TYPE(ANNOUNCE), &message.base)), 0);
}

static Tracker__Peers *want(struct client *c, const uint8_t *root, uint64_t size)
{
    Tracker__Want message = TRACKER__WANT__INIT;
    union {
        const uint8_t *from;
        uint8_t *to;
    } constant = {.from = root};
    message.root = (ProtobufCBinaryData){.len = 32, .data = constant.to};
    message.size = size;
    message.count = LIMIT_PEERS;
    struct received *r = call(c, TYPE(WANT), &message.base);
    assert_int_equal(r->frame.type, TYPE(PEERS));
    Tracker__Peers *peers = unpack(r, &tracker__peers__descriptor);
    received_free(r);
    return peers;
}

static void who_wants_is_told_of_who_has(void **state)
{
    uint8_t root[32];
    uint64_t size = 1 << 20; /* four pieces */
    random_bytes(root, sizeof root);
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    Tracker__Peers *peers = want(b, root, size);
    assert_int_equal(peers->n_peers, 0);
    tracker__peers__free_unpacked(peers, NULL);

    announce(a, root, size, false, 0xc0, "127.0.0.1:7801");
    struct received *r = pushed(b, TYPE(PEERS));
    peers = unpack(r, &tracker__peers__descriptor);
    assert_int_equal(peers->n_peers, 1);
    assert_string_equal(peers->peers[0]->account, "ann");
    assert_memory_equal(peers->peers[0]->device.data, ann.device, DEVICE_ID_SIZE);
    assert_int_equal(peers->peers[0]->pieces, 2);
    assert_int_equal(peers->peers[0]->n_addresses, 1);
    assert_string_equal(peers->peers[0]->addresses[0], "127.0.0.1:7801");
    tracker__peers__free_unpacked(peers, NULL);
    received_free(r);

    peers = want(b, root, size);
    assert_int_equal(peers->n_peers, 1);
    assert_int_equal(peers->holders, 1);
    assert_int_equal(peers->copies.len, 4);
    assert_memory_equal(peers->copies.data, "\1\1\0\0", 4);
    tracker__peers__free_unpacked(peers, NULL);

    Tracker__HealthRequest request = TRACKER__HEALTH_REQUEST__INIT;
    request.root = (ProtobufCBinaryData){.len = 32, .data = root};
    request.size = size;
    r = call(a, TYPE(HEALTH), &request.base);
    Tracker__Health *health = unpack(r, &tracker__health__descriptor);
    assert_int_equal(health->pieces, 4);
    assert_int_equal(health->rarest, 0);
    assert_int_equal(health->missing, 2);
    assert_int_equal(health->partial, 1);
    assert_int_equal(health->distributed, 500);
    assert_int_equal(r->frame.payload_size, 4);
    assert_memory_equal(r->payload, "\1\1\0\0", 4);
    tracker__health__free_unpacked(health, NULL);
    received_free(r);
    client_close(a);
    client_close(b);
}

static void a_dial_back_reaches_the_other_member(void **state)
{
    uint8_t root[32] = {7};
    struct client *a = member_open(&ann);
    struct client *b = member_open(&bob);
    announce(b, root, 16384, true, 0, "192.0.2.9:1234");
    Tracker__DialBack message = TRACKER__DIAL_BACK__INIT;
    message.device = (ProtobufCBinaryData){.len = DEVICE_ID_SIZE, .data = ann.device};
    send_frame(b, TYPE(DIAL_BACK), 0, &message.base);
    struct received *r = pushed(a, TYPE(DIAL_BACK));
    Tracker__DialBack *back = unpack(r, &tracker__dial_back__descriptor);
    assert_string_equal(back->account, "bob");
    assert_memory_equal(back->device.data, bob.device, DEVICE_ID_SIZE);
    assert_int_equal(back->n_addresses, 1);
    assert_string_equal(back->addresses[0], "192.0.2.9:1234");
    tracker__dial_back__free_unpacked(back, NULL);
    received_free(r);
    client_close(a);
    client_close(b);
}

/* --- tests: restarts ----------------------------------------------------------------------------------------------------------- */

static void put_devices(struct storage *storage, int64_t void_before, bool logged_out)
{
    for (unsigned i = 0; i < LIMIT_ACCOUNT_DEVICES; i++) {
        struct storage_device row = {.void_before = void_before,
                                     .logged_out = logged_out,
                                     .last_seen = i,
                                     .id = {0xee, (uint8_t)i, 1}};
        memcpy(row.account, "bob", 4);
        storage_device_put(storage, &row);
    }
}

static void an_account_has_so_many_devices_and_no_more(void **state)
{
    struct storage *storage = visit();
    uint64_t had = storage_device_count(storage, "bob");
    put_devices(storage, 0, false);
    leave(storage);
    struct client *c = stranger_open();
    const char *why;
    struct member other = {.name = "bob", .key = key_generate(&why)};
    assert_int_equal(try_login(c, &other, "bob", bob.password), FAULT(LIMIT));
    assert_int_equal(try_login(c, &bob, "bob", bob.password), 0); /* it is known */

    /* One that was logged out just now has certificates that did not end yet. */
    storage = visit();
    put_devices(storage, clock_wall() / NS_PER_S, true);
    leave(storage);
    assert_int_equal(try_login(c, &other, "bob", bob.password), FAULT(LIMIT));
    storage = visit();
    put_devices(storage, 5, true);
    leave(storage);
    assert_int_equal(try_login(c, &other, "bob", bob.password), 0);
    client_close(c);

    storage = visit();
    struct storage_device row;
    uint8_t oldest[DEVICE_ID_SIZE] = {0xee, 0, 1};
    assert_false(storage_device_get(storage, oldest, &row));
    assert_int_equal(storage_device_count(storage, "bob"), LIMIT_ACCOUNT_DEVICES + had);
    while (storage_device_forget(storage, "bob", 6, oldest))
        ;
    assert_int_equal(storage_device_count(storage, "bob"), had + 1);
    leave(storage);
    key_free(other.key);
    certificate_free(other.certificate);
}

/* Without waiting for the answer to this number. */
static uint32_t send_grant(struct client *c, uint64_t folder, const char *who, Tracker__Level level)
{
    Tracker__Grant grant = TRACKER__GRANT__INIT;
    uint32_t id = c->next_id++;
    grant.folder = folder;
    grant.who = (char *)(uintptr_t)who;
    grant.level = level;
    send_frame(c, TYPE(GRANT), id, &grant.base);
    return id;
}

static int granted(struct client *c, uint32_t id)
{
    struct received *r = answer_of(c, id);
    if (r->frame.type != TYPE(GRANTED))
        return fault_of(r);
    received_free(r);
    return 0;
}

static int try_grant_level(struct client *c, uint64_t folder, const char *who, Tracker__Level level)
{
    return granted(c, send_grant(c, folder, who, level));
}

static int try_grant(struct client *c, uint64_t folder, const char *who)
{
    return try_grant_level(c, folder, who, TRACKER__LEVEL__LEVEL_READ);
}

/* Everybody would look anew for each of them. */
static void rights_that_change_back_and_forth_are_looked_at_now_and_then(void **state)
{
    struct client *a = member_open(&ann), *b = member_open(&bob);
    uint64_t folder = make_directory(a, 1, "churn");
    struct view view = {0};
    assert_int_equal(try_grant(a, folder, "everyone"), 0);
    catch_up(b, &view);
    size_t with = view.live;

    int64_t began = clock_now();
    int64_t looks = 0;
    for (unsigned i = 0; i < 4; i++) {
        bool hidden = i % 2 == 0;
        assert_int_equal(
            try_grant_level(a, folder, "everyone",
                            hidden ? TRACKER__LEVEL__LEVEL_NONE : TRACKER__LEVEL__LEVEL_READ),
            0);
        do {
            view.from_scratch = false;
            while (!follow(b, &view))
                ;
            looks += view.from_scratch;
        } while (!view.from_scratch || view.live != with - hidden);
    }
    int64_t took = clock_now() - began;
    assert_true(looks <= 2 + took / LIMIT_RENEW_NS);
    remove_entry(a, folder);
    client_close(a);
    client_close(b);
}

/* A second change within the second in which nobody's sight is looked at again: the catalogue that the first one has begun to send
 * goes on to its end, and who has lost the folder does not wait for another. */
static void a_change_of_rights_does_not_hold_up_what_an_earlier_one_tells(void **state)
{
    struct client *a = member_open(&ann), *b = member_open(&bob);
    uint64_t folder = make_directory(a, 1, "twice"), other = make_directory(a, 1, "other");
    struct view view = {0};
    catch_up(b, &view);
    size_t with = view.live;
    assert_true(with > 2 * LIMIT_CHANGES); /* several chunks: of a test before this one */

    uint32_t first = send_grant(a, folder, "everyone", TRACKER__LEVEL__LEVEL_NONE);
    uint32_t second = send_grant(a, other, "everyone", TRACKER__LEVEL__LEVEL_READ);
    unsigned beginnings = 0;
    bool live;
    do {
        view.from_scratch = false;
        live = follow(b, &view);
        beginnings += view.from_scratch;
    } while (!live);
    assert_int_equal(beginnings, 1);
    assert_int_equal(view.live, with - 1);
    assert_int_equal(granted(a, first), 0);
    assert_int_equal(granted(a, second), 0);
    remove_entry(a, folder);
    remove_entry(a, other);
    client_close(a);
    client_close(b);
}

static void invites_and_rules_are_not_endless(void **state)
{
    struct client *c = member_open(&ann);
    uint64_t folder = make_directory(c, 1, "governed");
    struct storage *storage = visit();
    for (unsigned i = 0; i < LIMIT_ACCOUNT_INVITES; i++) {
        struct storage_invite invite = {.hash = {1, (uint8_t)i},
                                        .uses = 1,
                                        .by = "ann",
                                        .expires = clock_wall() / NS_PER_S + 1000};
        storage_invite_add(storage, &invite);
    }
    for (unsigned i = 1; i < LIMIT_FOLDER_RULES; i++) { /* who made it has one */
        struct storage_rule rule = {.folder = folder, .kind = 1, .level = 1};
        snprintf(rule.who, sizeof rule.who, "nobody %u", i);
        storage_rule_put(storage, &rule);
    }
    leave(storage);
    Tracker__Invite message = TRACKER__INVITE__INIT;
    assert_int_equal(fault_of(call(c, TYPE(INVITE), &message.base)), FAULT(LIMIT));
    assert_int_equal(try_grant(c, folder, "bob"), FAULT(LIMIT));
    assert_int_equal(try_grant(c, 1, "everyone"), 0);
    storage = visit();
    storage_invite_prune(storage, clock_wall() / NS_PER_S + 2000);
    struct storage_rule one = {.folder = folder, .kind = 1, .who = "nobody 7"};
    storage_rule_drop(storage, &one);
    leave(storage);
    assert_int_equal(try_grant(c, folder, "bob"), 0);
    assert_int_equal(try_grant(c, folder, "bob"), 0); /* a rule that is there is changed */
    remove_entry(c, folder);
    client_close(c);
}

static void a_restart_loses_nothing(void **state)
{
    uint8_t root[32] = {9};
    struct client *a = member_open(&ann);
    struct view view = {0};
    make_directory(a, 1, "kept");
    announce(a, root, 16384, true, 0, "127.0.0.1:7801");
    catch_up(a, &view);
    client_close(a);
    server_down();
    server_up(REGISTRATION_CLOSED);
    a = member_open(&ann);
    struct view after = {.seq = view.seq};
    memcpy(after.generation, view.generation, 16);
    catch_up(a, &after);
    assert_false(after.from_scratch);
    assert_int_equal(after.live, 0);
    Tracker__HealthRequest request = TRACKER__HEALTH_REQUEST__INIT;
    request.root = (ProtobufCBinaryData){.len = 32, .data = root};
    request.size = 16384;
    struct received *r = call(a, TYPE(HEALTH), &request.base);
    Tracker__Health *health = unpack(r, &tracker__health__descriptor);
    assert_int_equal(health->offline, 1);
    assert_int_equal(health->complete, 0);
    tracker__health__free_unpacked(health, NULL);
    received_free(r);
    client_close(a);

    struct client *c = stranger_open();
    struct member eve = {.name = "eve", .key = spare};
    assert_int_equal(try_register(c, &eve, "long enough", "x"), FAULT(CLOSED));
    assert_int_equal(try_login(c, &bob, "bob", bob.password), 0);
    client_close(c);
}

static void open_registration_needs_no_invite(void **state)
{
    server_down();
    server_up(REGISTRATION_OPEN);
    struct client *c = stranger_open();
    struct member fred = {.name = "fred", .key = spare};
    assert_int_equal(try_register(c, &fred, "long enough", ""), 0);
    assert_false(fred.admin);
    certificate_free(fred.certificate);
    client_close(c);
}

int main(void)
{
    log_init("test", LOG_LEVEL_WARNING, false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_admin_is_made_by_an_admin_invite),
        cmocka_unit_test(without_certificate_nothing_but_register_and_login_is_done),
        cmocka_unit_test(hello_must_come_first),
        cmocka_unit_test(an_unknown_version_is_refused_with_a_reason),
        cmocka_unit_test(welcome_tells_who_one_is),
        cmocka_unit_test(registering_keeps_the_rules),
        cmocka_unit_test(a_wrong_password_and_an_unknown_name_get_the_same_answer),
        cmocka_unit_test(codes_of_strangers_do_not_keep_the_owner_out),
        cmocka_unit_test(a_malformed_request_for_a_certificate_is_refused),
        cmocka_unit_test(a_certificate_is_renewed_for_the_same_key_only),
        cmocka_unit_test(whoami_lists_devices),
        cmocka_unit_test(only_admins_invite_admins),
        cmocka_unit_test(invites_end_with_their_maker),
        cmocka_unit_test(a_new_password_replaces_the_old_one),
        cmocka_unit_test(a_new_password_logs_out_the_other_devices_if_asked),
        cmocka_unit_test(logging_out_voids_certificates_and_tells_everybody),
        cmocka_unit_test(the_newest_connection_of_a_device_wins),
        cmocka_unit_test(subscribers_get_everything_then_what_changes),
        cmocka_unit_test(a_large_catalogue_arrives_in_order_and_whole_while_it_changes),
        cmocka_unit_test(whoever_subscribes_again_and_again_costs_one_reading),
        cmocka_unit_test(an_operation_sent_again_is_answered_the_same),
        cmocka_unit_test(who_wants_is_told_of_who_has),
        cmocka_unit_test(a_dial_back_reaches_the_other_member),
        cmocka_unit_test(an_account_has_so_many_devices_and_no_more),
        cmocka_unit_test(invites_and_rules_are_not_endless),
        cmocka_unit_test(rights_that_change_back_and_forth_are_looked_at_now_and_then),
        cmocka_unit_test(a_change_of_rights_does_not_hold_up_what_an_earlier_one_tells),
        cmocka_unit_test(a_restart_loses_nothing),
        cmocka_unit_test(open_registration_needs_no_invite),
    };
    return cmocka_run_group_tests_name("tracker_session", tests, group_setup, group_teardown);
}
