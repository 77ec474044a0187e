/* daemon/session.h: the real thread against a tracker that is a script (tests/swarm_help.h), with
 * real TLS and a real store. What the session calls in other modules is defined here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/home.h"
#include "base/loop.h"
#include "base/workers.h"
#include "crypto/signature.h"
#include "daemon/credentials.h"
#include "daemon/download.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/upload.h"
#include "proto/limits.h"
#include "proto/tracker.pb-c.h"
#include "tests/store_help.h"
#include "tests/swarm_help.h"

#define T(name) TRACKER__TRACKER_TYPE__TRACKER_##name

/* --- what all tests share --- */

static struct key *ca_key, *tracker_key, *device_key;
static struct certificate *ca, *tracker_certificate;

static char *directory;
static struct daemon d;
static struct session *session;
static int listener;
static uint16_t port;
static struct wire tracker; /* the kept connection */
static char url[SWARM_URL_MAX];

/* --- the other modules: what they were told last --- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_uint epoch_now;
static atomic_int state_now, connects, credentials_told, revocations, dial_backs, peers_came;
static atomic_int changes_came, results_came, health_came, health_error;
static atomic_int keys_unexpected;
static struct account_answer *answer; /* under lock */
static char trouble_now[300];         /* under lock */

void local_tracker_trouble(struct local *local, char *trouble)
{
    (void)local;
    pthread_mutex_lock(&lock);
    snprintf(trouble_now, sizeof trouble_now, "%s", trouble == NULL ? "" : trouble);
    pthread_mutex_unlock(&lock);
    free(trouble);
}

void local_session_state(struct local *local, enum session_state state, unsigned epoch,
                         char *trouble, char *account, char *swarm)
{
    (void)local;
    pthread_mutex_lock(&lock);
    snprintf(trouble_now, sizeof trouble_now, "%s", trouble == NULL ? "" : trouble);
    pthread_mutex_unlock(&lock);
    free(trouble);
    free(account);
    free(swarm);
    connects += state == SESSION_CONNECTED;
    epoch_now = epoch;
    state_now = (int)state;
}

void local_changes(struct local *local, Tracker__Changes *changes)
{
    (void)local;
    changes_came += (int)changes->n_entries;
    tracker__changes__free_unpacked(changes, NULL);
}

void local_results(struct local *local, Tracker__Results *results)
{
    (void)local;
    results_came += (int)results->n_results;
    tracker__results__free_unpacked(results, NULL);
}

void local_account_answer(struct local *local, struct account_answer *came)
{
    (void)local;
    pthread_mutex_lock(&lock);
    account_answer_free(answer);
    answer = came;
    pthread_mutex_unlock(&lock);
}

void local_health_answer(struct local *local, void *cookie, int error, Tracker__Health *health)
{
    (void)local;
    (void)cookie;
    health_error = error;
    health_came++;
    if (health != NULL)
        tracker__health__free_unpacked(health, NULL);
}

void download_peers(struct download *download, Tracker__Peers *peers, bool is_answer)
{
    (void)download;
    (void)is_answer;
    peers_came++;
    tracker__peers__free_unpacked(peers, NULL);
}

void download_credentials(struct download *download, struct credentials *credentials)
{
    (void)download;
    credentials_release(credentials);
}

void download_revoked(struct download *download, const uint8_t device[16])
{
    (void)download;
    (void)device;
    revocations++;
}

void upload_credentials(struct upload *upload, struct credentials *credentials)
{
    (void)upload;
    credentials_told++;
    credentials_release(credentials);
}

void upload_revoked(struct upload *upload, const uint8_t device[16])
{
    (void)upload;
    (void)device;
    revocations++;
}

void local_keys(struct local *local, struct known_keys *keys)
{
    (void)local;
    known_keys_free(keys);
}

void local_suspicions(struct local *local, uint32_t refused, uint32_t unexpected)
{
    (void)local;
    (void)refused;
    keys_unexpected = (int)unexpected;
}

void local_asked(struct local *local, struct session_answer *asked)
{
    (void)local;
    session_answer_free(asked);
}

void upload_ticket_key(struct upload *upload, const uint8_t key[32], int64_t tracker_time)
{
    (void)upload;
    (void)key;
    (void)tracker_time;
}

void upload_barred(struct upload *upload, const char *account, uint64_t epoch,
                   const uint8_t (*roots)[32], size_t count)
{
    (void)upload;
    (void)account;
    (void)epoch;
    (void)roots;
    (void)count;
}

void upload_dial_back(struct upload *upload, const uint8_t device[16], char **addresses)
{
    (void)upload;
    (void)device;
    for (size_t i = 0; addresses[i] != NULL; i++)
        free(addresses[i]);
    free(addresses);
    dial_backs++;
}

/* --- set up and tear down --- */

static int set_up_all(void **state)
{
    const char *fault = "";

    (void)state;
    ca_key = swarm_key();
    tracker_key = swarm_key();
    device_key = swarm_key();
    ca = ca_create(ca_key, "lab", &fault);
    tracker_certificate = ca_issue_tracker(ca, ca_key, tracker_key, SWARM_DAY_S, &fault);
    return tracker_certificate == NULL;
}

static int tear_down_all(void **state)
{
    (void)state;
    certificate_free(ca);
    certificate_free(tracker_certificate);
    key_free(ca_key);
    key_free(tracker_key);
    key_free(device_key);
    return 0;
}

static void format_url(const uint8_t *fingerprint)
{
    struct swarm_url parts = {.host = "127.0.0.1", .port = port};

    memcpy(parts.ca, fingerprint, sizeof parts.ca);
    swarm_url_format(url, &parts, false);
}

/* What a test wants to be in the home before p2pd starts. */
static void (*prepare)(void);

/* Who is logged in at the start; NULL: nobody. The key is there in any case: it takes long to make. */
static void begin(const char *account, int64_t lifetime)
{
    const char *fault = "";
    uint8_t fingerprint[FINGERPRINT_SIZE];
    struct swarm_url parts;
    struct credentials *credentials = NULL;

    directory = help_begin();
    memset(&d, 0, sizeof d);
    d.home = directory;
    d.store = help_open(directory);
    d.workers = workers_new("worker", 2);
    d.handshakes = workers_new("handshake", 2);
    port = 0;
    listener = wire_listen(&port);
    certificate_fingerprint(ca, fingerprint);
    format_url(fingerprint);
    char *path = home_path(directory, "device.key");
    assert_true(key_save(device_key, path, &fault));
    free(path);
    if (account != NULL) {
        struct certificate *certificate = swarm_device(ca, ca_key, device_key, account, lifetime);
        assert_true(swarm_url_parse(&parts, url, &fault));
        credentials = credentials_new(directory, &parts, device_key, certificate, ca, &fault);
        assert_non_null(credentials);
        certificate_free(certificate);
    }
    if (prepare != NULL)
        prepare();
    prepare = NULL;
    keys_unexpected = 0;
    state_now = connects = credentials_told = revocations = dial_backs = peers_came = 0;
    changes_came = results_came = health_came = health_error = 0;
    session = session_new(&d, credentials);
    session_start(session);
    session_listening(session, 4711);
}

static void finish(void)
{
    session_stop(session);
    workers_drain(d.handshakes);
    workers_drain(d.workers);
    session_free(session);
    workers_free(d.handshakes);
    workers_free(d.workers);
    store_close(d.store);
    close(listener);
    help_end(directory);
    account_answer_free(answer);
    answer = NULL;
}

/* --- the tracker --- */

static bool let_in(struct wire *w)
{
    wire_init(w, tracker_certificate, tracker_key, ca);
    int fd = wire_await(listener, SWARM_PATIENCE);
    assert_true(fd >= 0);
    return wire_shake(w, fd, true);
}

static void welcome(struct wire *w, const char *account)
{
    Tracker__Welcome message = TRACKER__WELCOME__INIT;
    char swarm[] = "lab", seen_as[] = "127.0.0.1";
    char *name = xstrdup(account);

    assert_int_equal(wire_next(w), T(HELLO));
    message.version = 1;
    message.swarm = swarm;
    message.seen_as = seen_as;
    message.account = name;
    assert_true(wire_send_id(w, T(WELCOME), FRAME_ANSWER, w->frame.id, &message.base));
    free(name);
}

static void answer_done(struct wire *w)
{
    Tracker__Done done = TRACKER__DONE__INIT;

    assert_true(wire_send_id(w, T(DONE), FRAME_ANSWER, w->frame.id, &done.base));
}

static void answer_fault(struct wire *w, Tracker__FaultCode code)
{
    Tracker__Fault fault = TRACKER__FAULT__INIT;
    char text[] = "no";

    fault.code = code;
    fault.text = text;
    assert_true(wire_send_id(w, T(FAULT), FRAME_ANSWER, w->frame.id, &fault.base));
}

/* The next request but announces and the claim of a key, which are answered, unless they are what is awaited. */
static int next_request(struct wire *w, int wanted)
{
    int type;

    while (((type = wire_next(w)) == T(ANNOUNCE) || type == T(SIGNER)) && type != wanted)
        answer_done(w);
    return type;
}

#define EXPECT(w, type) assert_int_equal(next_request(w, type), type)

/* The kept connection, up to its first announce. */
static void connected(const char *account)
{
    int before = connects;

    assert_true(let_in(&tracker));
    welcome(&tracker, account);
    EXPECT(&tracker, T(ANNOUNCE));
    Tracker__Announce *announce = wire_message(&tracker, &tracker__announce__descriptor);
    assert_true(announce->from_scratch);
    assert_true(announce->addresses_set);
    assert_true(announce->n_addresses >= 1);
    assert_string_equal(announce->addresses[0], "127.0.0.1:4711");
    tracker__announce__free_unpacked(announce, NULL);
    answer_done(&tracker);
    WAIT_FOR(connects == before + 1);
}

static void give_credentials(struct wire *w, const char *account, const char *csr, int64_t lifetime)
{
    Tracker__Credentials message = TRACKER__CREDENTIALS__INIT;
    const char *fault = "";
    struct certificate *certificate =
        ca_issue_device(ca, ca_key, csr, strlen(csr), account, lifetime, &fault);
    assert_non_null(certificate);
    char *pem = certificate_to_pem(certificate), *name = xstrdup(account);

    message.certificate = pem;
    message.account = name;
    assert_true(wire_send_id(w, T(CREDENTIALS), FRAME_ANSWER, w->frame.id, &message.base));
    certificate_free(certificate);
    free(pem);
    free(name);
}

static void ask_account(enum account_verb verb, const char *name)
{
    struct account_request *request = xcalloc(1, sizeof *request);

    request->verb = verb;
    request->url = xstrdup(url);
    request->name = xstrdup(name);
    request->password = xmemdup("secret-1", 8);
    request->password_size = 8;
    request->new_password = xmemdup("secret-2", 8);
    request->new_password_size = 8;
    request->ask_tracker = true;
    session_account(session, request);
}

static struct account_answer *take_answer(void)
{
    struct account_answer *came = NULL;
    int64_t until = clock_now() + SWARM_PATIENCE;

    while (came == NULL && clock_now() < until) {
        usleep(500);
        pthread_mutex_lock(&lock);
        came = answer;
        answer = NULL;
        pthread_mutex_unlock(&lock);
    }
    assert_non_null(came);
    return came;
}

static void expect_answer(int error, const char *text)
{
    struct account_answer *came = take_answer();

    assert_int_equal(came->error, error);
    if (text != NULL) {
        if (came->text == NULL || strstr(came->text, text) == NULL)
            fail_msg("%s", came->text == NULL ? "(none)" : came->text);
    }
    account_answer_free(came);
}

static void expect_mode(const char *name, mode_t mode)
{
    struct stat status;
    char *path = home_path(directory, name);

    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, mode);
    free(path);
}

static bool in_home(const char *name)
{
    char *path = home_path(directory, name);
    bool there = access(path, F_OK) == 0;

    free(path);
    return there;
}

/* --- accounts --- */

static void registering_makes_a_member(void **state)
{
    struct wire w;

    (void)state;
    begin(NULL, 0);
    WAIT_FOR(credentials_told == 1);
    assert_int_equal(state_now, SESSION_LOGGED_OUT);
    ask_account(ACCOUNT_WHOAMI, "");
    expect_answer(EACCES, "not logged in");
    ask_account(ACCOUNT_REGISTER, "anna");
    assert_true(let_in(&w));
    welcome(&w, "");
    assert_int_equal(wire_next(&w), T(REGISTER));
    Tracker__Register *m = wire_message(&w, &tracker__register__descriptor);
    assert_string_equal(m->name, "anna");
    assert_int_equal(m->password.len, 8);
    assert_memory_equal(m->password.data, "secret-1", 8);
    ask_account(ACCOUNT_LOGIN, "anna"); /* one at a time */
    expect_answer(EBUSY, NULL);
    give_credentials(&w, "anna", m->request, SWARM_DAY_S);
    tracker__register__free_unpacked(m, NULL);
    expect_answer(0, NULL);
    wire_free(&w);
    connected("anna");
    expect_mode("device.key", 0600);
    assert_true(in_home("account") && in_home("device.crt") && in_home("ca.crt"));
    const char *fault = NULL;
    struct credentials *loaded = credentials_load(directory, &fault);
    assert_non_null(loaded);
    assert_string_equal(loaded->account, "anna");
    credentials_release(loaded);
    wire_free(&tracker);
    finish();
}

static void a_tracker_with_another_fingerprint_gets_no_password(void **state)
{
    uint8_t other[FINGERPRINT_SIZE] = {1};
    struct wire w;

    (void)state;
    begin(NULL, 0);
    format_url(other);
    ask_account(ACCOUNT_LOGIN, "anna");
    if (let_in(&w))
        assert_int_equal(wire_next(&w), WIRE_ENDED);
    wire_free(&w);
    expect_answer(ENOTCONN, "can't be used");
    assert_false(in_home("account"));
    ask_account(ACCOUNT_LOGIN, "anna");
    close(wire_await(listener, SWARM_PATIENCE));
    expect_answer(ENOTCONN, NULL);
    finish();
}

static void a_refused_log_in_says_why(void **state)
{
    struct wire w;

    (void)state;
    begin(NULL, 0);
    ask_account(ACCOUNT_LOGIN, "anna");
    assert_true(let_in(&w));
    welcome(&w, "");
    assert_int_equal(wire_next(&w), T(LOGIN));
    answer_fault(&w, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD);
    expect_answer(EACCES, "no");
    wire_free(&w);
    /* The connection lost in the middle. */
    ask_account(ACCOUNT_LOGIN, "anna");
    assert_true(let_in(&w));
    welcome(&w, "");
    assert_int_equal(wire_next(&w), T(LOGIN));
    wire_free(&w);
    expect_answer(ENOTCONN, NULL);
    /* And p2pd stopped in the middle. */
    ask_account(ACCOUNT_LOGIN, "anna");
    assert_true(let_in(&w));
    session_stop(session);
    expect_answer(ECANCELED, NULL);
    ask_account(ACCOUNT_LOGIN, "anna");
    wire_free(&w);
    workers_drain(d.handshakes);
    session_free(session);
    expect_answer(ECANCELED, NULL);
    session = session_new(&d, NULL);
    session_start(session);
    finish();
}

static void logging_in_again_renews_and_as_somebody_else_is_refused(void **state)
{
    struct wire w;

    (void)state;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    ask_account(ACCOUNT_LOGIN, "bert");
    expect_answer(EEXIST, "already logged in as anna");
    ask_account(ACCOUNT_LOGIN, "anna");
    assert_true(let_in(&w));
    welcome(&w, "");
    assert_int_equal(wire_next(&w), T(LOGIN));
    Tracker__Login *m = wire_message(&w, &tracker__login__descriptor);
    give_credentials(&w, "anna", m->request, SWARM_DAY_S);
    tracker__login__free_unpacked(m, NULL);
    expect_answer(0, "renewed");
    wire_free(&w);
    wire_free(&tracker);
    connected("anna");
    wire_free(&tracker);
    finish();
}

static void the_other_verbs_go_to_the_tracker(void **state)
{
    Tracker__Account account = TRACKER__ACCOUNT__INIT;
    Tracker__Invited invited = TRACKER__INVITED__INIT;
    char name[] = "anna", code[] = "abc";

    (void)state;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    ask_account(ACCOUNT_PASSWORD, "");
    EXPECT(&tracker, T(PASSWORD));
    answer_done(&tracker);
    expect_answer(0, NULL);
    ask_account(ACCOUNT_WHOAMI, "");
    EXPECT(&tracker, T(WHOAMI));
    account.name = name;
    wire_send_id(&tracker, T(ACCOUNT), FRAME_ANSWER, tracker.frame.id, &account.base);
    struct account_answer *came = take_answer();
    assert_non_null(came->account);
    assert_string_equal(came->name, "anna");
    assert_string_equal(came->swarm, "lab");
    account_answer_free(came);
    ask_account(ACCOUNT_INVITE, "");
    EXPECT(&tracker, T(INVITE));
    invited.code = code;
    wire_send_id(&tracker, T(INVITED), FRAME_ANSWER, tracker.frame.id, &invited.base);
    expect_answer(0, "invite=abc");
    ask_account(ACCOUNT_LOGOUT, "");
    EXPECT(&tracker, T(LOGOUT));
    answer_done(&tracker);
    expect_answer(0, NULL);
    WAIT_FOR(state_now == SESSION_LOGGED_OUT);
    assert_false(in_home("account") || in_home("device.crt"));
    assert_true(in_home("device.key"));
    wire_free(&tracker);
    finish();
}

static void a_certificate_is_renewed_in_time(void **state)
{
    (void)state;
    begin("anna", 600); /* an hour of its life lies before its making */
    connected("anna");
    int told = credentials_told;
    EXPECT(&tracker, T(RENEW));
    Tracker__Renew *m = wire_message(&tracker, &tracker__renew__descriptor);
    give_credentials(&tracker, "anna", m->request, SWARM_DAY_S);
    tracker__renew__free_unpacked(m, NULL);
    WAIT_FOR(credentials_told == told + 1);
    assert_int_equal(state_now, SESSION_CONNECTED); /* on the same connection */
    const char *fault = NULL;
    struct credentials *loaded = credentials_load(directory, &fault);
    assert_true(loaded->valid_until > clock_wall() / NS_PER_S + SWARM_DAY_S / 2);
    credentials_release(loaded);
    wire_free(&tracker);
    finish();
}

/* --- the connection --- */

static void expect_want(uint8_t first)
{
    EXPECT(&tracker, T(WANT));
    Tracker__Want *want = wire_message(&tracker, &tracker__want__descriptor);
    assert_int_equal(want->root.data[0], first);
    assert_int_equal(want->size, 1000);
    tracker__want__free_unpacked(want, NULL);
}

static void answer_peers(uint8_t first)
{
    Tracker__Peers peers = TRACKER__PEERS__INIT;
    uint8_t root[HASH_SIZE] = {first};

    peers.root.data = root;
    peers.root.len = HASH_SIZE;
    wire_send_id(&tracker, T(PEERS), FRAME_ANSWER, tracker.frame.id, &peers.base);
}

static void it_comes_back_and_repeats_what_is_wanted(void **state)
{
    const uint8_t one[HASH_SIZE] = {1}, two[HASH_SIZE] = {2};
    int64_t start;

    (void)state;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    session_want(session, one, 1000);
    expect_want(1);
    answer_peers(1);
    WAIT_FOR(peers_came == 1);
    session_want(session, two, 1000);
    expect_want(2);
    session_unwant(session, two);
    EXPECT(&tracker, T(UNWANT));
    session_health(session, one, 1000, NULL);
    EXPECT(&tracker, T(HEALTH));
    wire_free(&tracker); /* with two requests unanswered */
    WAIT_FOR(health_came == 1 && state_now == SESSION_AWAY);
    assert_int_equal(health_error, EIO);
    session_health(session, one, 1000, NULL);
    WAIT_FOR(health_came == 2);
    assert_int_equal(health_error, ENOTCONN);
    connected("anna");
    expect_want(1);
    answer_peers(1);
    WAIT_FOR(peers_came == 2);
    wire_free(&tracker);
    /* A tracker that throws us out each time is left more and more alone. */
    start = clock_now();
    for (int i = 0; i < 4; i++) {
        connected("anna");
        wire_free(&tracker);
    }
    assert_true(clock_now() - start > 3 * NS_PER_S); /* halves of 1, 2, 4 and 8 s at least */
    finish();
}

static void a_thousand_wants_do_not_swamp_the_tracker(void **state)
{
    uint8_t root[HASH_SIZE] = {0};
    unsigned wants = 0;

    (void)state;
    begin("anna", SWARM_DAY_S);
    for (unsigned i = 0; i < 1000; i++) {
        root[0] = (uint8_t)i;
        root[1] = (uint8_t)(i >> 8);
        session_want(session, root, 1000);
    }
    connected("anna");
    wire_patience(&tracker, NS_PER_S / 2);
    while (next_request(&tracker, T(WANT)) == T(WANT))
        wants++;
    assert_in_range(wants, 100, 300);
    wire_patience(&tracker, SWARM_PATIENCE);
    /* Ids are in order: Hello, Announce, then these; all of them answered, the others come. */
    uint32_t last = tracker.frame.id, first = last - wants + 1;
    for (uint32_t id = first; id <= last; id++) {
        tracker.frame.id = id;
        answer_peers(1);
    }
    for (unsigned i = 0; wants < 1000; i++) {
        assert_int_equal(next_request(&tracker, T(WANT)), T(WANT));
        answer_peers(1);
        wants++;
    }
    WAIT_FOR(peers_came == 1000);
    wire_free(&tracker);
    finish();
}

static void pushes_reach_whom_they_concern(void **state)
{
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    Tracker__Entry entry = TRACKER__ENTRY__INIT, *entries[] = {&entry};
    Tracker__Revoked revoked = TRACKER__REVOKED__INIT;
    Tracker__DialBack dial = TRACKER__DIAL_BACK__INIT;
    uint8_t generation[16] = {5}, device[16] = {6};
    char address[] = "127.0.0.1:1";
    char *addresses[] = {address};
    ProtobufCBinaryData list[] = {{16, device}, {3, device}};

    (void)state;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    session_catalogue_at(session, generation, 0);
    EXPECT(&tracker, T(SUBSCRIBE));
    answer_done(&tracker);
    entry.id = 2;
    changes.generation.data = generation;
    changes.generation.len = 16;
    changes.n_entries = 1;
    changes.entries = entries;
    changes.seq = 9;
    wire_send(&tracker, T(CHANGES), &changes.base);
    WAIT_FOR(changes_came == 1);
    revoked.n_devices = 2;
    revoked.devices = list;
    wire_send(&tracker, T(REVOKED), &revoked.base);
    WAIT_FOR(revocations == 2); /* one each; the short one is nobody */
    dial.device = list[0];
    dial.n_addresses = 1;
    dial.addresses = addresses;
    wire_send(&tracker, T(DIAL_BACK), &dial.base);
    WAIT_FOR(dial_backs == 1);
    session_ask_dial_back(session, device);
    EXPECT(&tracker, T(DIAL_BACK));
    assert_int_equal(tracker.frame.id, 0);
    /* What may be skipped is, what may not ends it. */
    wire_send_id(&tracker, 999, FRAME_MAY_SKIP, 0, &dial.base);
    wire_send(&tracker, T(DIAL_BACK), &dial.base);
    WAIT_FOR(dial_backs == 2);
    wire_send(&tracker, 999, &dial.base);
    WAIT_FOR(state_now == SESSION_AWAY);
    wire_free(&tracker);
    connected("anna");
    EXPECT(&tracker, T(SUBSCRIBE)); /* from where it stood */
    Tracker__Subscribe *m = wire_message(&tracker, &tracker__subscribe__descriptor);
    assert_int_equal(m->since, 9);
    assert_int_equal(m->generation.data[0], 5);
    tracker__subscribe__free_unpacked(m, NULL);
    wire_free(&tracker);
    finish();
}

static void send_op(unsigned epoch, uint64_t number)
{
    Tracker__Op op = TRACKER__OP__INIT;

    op.op = number;
    op.kind = TRACKER__OP_KIND__OP_REMOVE;
    size_t size = tracker__op__get_packed_size(&op);
    uint8_t *packed = xmalloc(size);
    tracker__op__pack(&op, packed);
    session_op(session, epoch, packed, size);
}

static void operations_are_answered_or_asked_for_again(void **state)
{
    Tracker__Result result = TRACKER__RESULT__INIT, *list[] = {&result};
    Tracker__Results results = TRACKER__RESULTS__INIT;

    (void)state;
    begin("anna", SWARM_DAY_S);
    send_op(epoch_now, 1); /* not connected: forgotten, local submits it then */
    connected("anna");
    send_op(epoch_now - 1,
            7); /* it was on its way when the link was lost: it would overtake others */
    send_op(epoch_now, 2);
    EXPECT(&tracker, T(OPS));
    Tracker__Ops *ops = wire_message(&tracker, &tracker__ops__descriptor);
    assert_int_equal(ops->n_ops, 1);
    assert_int_equal(ops->ops[0]->op, 2);
    tracker__ops__free_unpacked(ops, NULL);
    results.n_results = 1;
    results.results = list;
    wire_send_id(&tracker, T(RESULTS), FRAME_ANSWER, tracker.frame.id, &results.base);
    WAIT_FOR(results_came == 1);
    send_op(epoch_now, 3);
    EXPECT(&tracker, T(OPS));
    int before = connects;
    answer_fault(&tracker, TRACKER__FAULT_CODE__FAULT_INTERNAL);
    WAIT_FOR(connects == before + 1); /* local is to submit again */
    wire_free(&tracker);
    finish();
}

/* --- the history of keys --- */

/* The tracker says that the account signs with a key of its own making, which `device` has claimed. */
static void show_signer(const char *account, const char *which, const struct key *device)
{
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    Tracker__Signer message = TRACKER__SIGNER__INIT, *signers[] = {&message};
    struct signer_claim *claim = xcalloc(1, sizeof *claim);
    const char *fault = "";
    uint8_t fingerprint[FINGERPRINT_SIZE];
    char *path = xasprintf("%s/%s", directory, which);

    certificate_fingerprint(ca, fingerprint);
    struct signing_key *key = signing_key_open(path, &fault);
    assert_non_null(key);
    assert_true(signer_claim_make(claim, key, device, fingerprint, account, &fault));
    message.key = (ProtobufCBinaryData){.len = sizeof claim->key, .data = claim->key};
    message.account = claim->account;
    message.device_key =
        (ProtobufCBinaryData){.len = claim->device_key_size, .data = claim->device_key};
    message.signature =
        (ProtobufCBinaryData){.len = claim->signature_size, .data = claim->signature};
    changes.n_signers = 1;
    changes.signers = signers;
    changes.live = true;
    wire_send(&tracker, T(CHANGES), &changes.base);
    signing_key_free(key);
    free(claim);
    free(path);
}

static char *keys_path(void)
{
    return home_path(directory, "keys");
}

/* As many lines as there may be, the longest ones, and bert's among them. */
static void full_history(void)
{
    char *path = keys_path();
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fprintf(file, "bert %032x 1700000000 first\n", 0u);
    for (unsigned i = 1; i < LIMIT_CLAIMS; i++)
        fprintf(file, "%064u %032x %d accepted\n", i, i, 1700000000);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static void unreadable_history(void)
{
    char *path = keys_path();

    assert_int_equal(mkdir(path, 0700), 0);
    free(path);
}

static void a_full_history_of_keys_still_tells_what_is_new(void **state)
{
    struct stat before, after;
    char *path;

    (void)state;
    prepare = full_history;
    begin("anna", SWARM_DAY_S);
    path = keys_path();
    assert_int_equal(stat(path, &before), 0);
    connected("anna");
    show_signer("bert", "first key", tracker_key);
    WAIT_FOR(keys_unexpected == 1);
    show_signer("carl", "second key", tracker_key); /* seen before or not: nobody can say */
    WAIT_FOR(keys_unexpected == 2);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
    free(path);
    wire_free(&tracker);
    finish();
}

static void an_unreadable_history_of_keys_believes_nobody_and_is_kept(void **state)
{
    (void)state;
    prepare = unreadable_history;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    show_signer("bert", "first key", tracker_key);
    WAIT_FOR(keys_unexpected == 1);
    show_signer("anna", "third key", device_key); /* our own */
    show_signer("carl", "second key", tracker_key);
    WAIT_FOR(keys_unexpected == 2);
    wire_free(&tracker);
    finish();
}

static void who_is_seen_first_is_believed_and_the_second_is_not(void **state)
{
    (void)state;
    begin("anna", SWARM_DAY_S);
    connected("anna");
    show_signer("bert", "first key", tracker_key);
    WAIT_FOR(in_home("keys"));
    assert_int_equal(keys_unexpected, 0);
    show_signer("carl", "second key", tracker_key); /* an account of which none was seen yet */
    show_signer("bert", "third key", ca_key);
    WAIT_FOR(keys_unexpected == 1);
    wire_free(&tracker);
    finish();
}

/* --- announces --- */

static Tracker__Announce *next_announce(void)
{
    for (;;) {
        EXPECT(&tracker, T(ANNOUNCE));
        Tracker__Announce *announce = wire_message(&tracker, &tracker__announce__descriptor);
        answer_done(&tracker);
        if (announce->n_holdings > 0)
            return announce;
        tracker__announce__free_unpacked(announce, NULL);
    }
}

static void holdings_are_told_whole_then_by_what_came(void **state)
{
    struct made whole = help_make(100000, 1), part = help_make(4 << 20, 2);
    int before;

    (void)state;
    begin("anna", SWARM_DAY_S);
    struct content *content = help_fill(d.store, &whole);
    content_release(content);
    content = help_get(d.store, &part, true);
    help_set_hashes(content, &part);
    assert_int_equal(help_put(content, &part, 0, 16), 0);
    for (int round = 0; round < 2; round++) { /* the second time after a reconnect */
        connected("anna");
        bool told_whole = false, told_part = false;
        while (!told_whole || !told_part) {
            Tracker__Announce *announce = next_announce();
            for (size_t i = 0; i < announce->n_holdings; i++) {
                const Tracker__Holding *h = announce->holdings[i];
                told_whole |= memcmp(h->root.data, whole.root, HASH_SIZE) == 0 && h->complete;
                if (memcmp(h->root.data, part.root, HASH_SIZE) != 0)
                    continue;
                assert_int_equal(h->bitfield.len, 2);
                assert_int_equal(h->bitfield.data[0], round == 0 ? 0x80 : 0xa0);
                told_part = true;
            }
            tracker__announce__free_unpacked(announce, NULL);
        }
        if (round == 0) {
            assert_int_equal(help_put(content, &part, 32, 16), 0);
            session_holding_changed(session, content);
            session_holding_changed(session, content);
            Tracker__Announce *announce = next_announce();
            assert_int_equal(announce->n_holdings, 1);
            assert_int_equal(announce->holdings[0]->bitfield.len, 0);
            assert_int_equal(announce->holdings[0]->n_added, 1);
            assert_int_equal(announce->holdings[0]->added[0], 2);
            tracker__announce__free_unpacked(announce, NULL);
            /* Nothing new is not told. */
            session_holding_changed(session, content);
            wire_patience(&tracker, 3 * NS_PER_S / 2);
            assert_int_equal(wire_next(&tracker), WIRE_SILENT);
            before = connects;
            wire_free(&tracker);
            WAIT_FOR(state_now == SESSION_AWAY);
            assert_int_equal(connects, before);
        }
    }
    for (uint32_t piece = 0; piece < 16; piece++)
        if (!content_has_piece(content, piece))
            assert_int_equal(help_put(content, &part, 16 * piece, 16), 0);
    session_holding_changed(session, content);
    Tracker__Announce *announce = next_announce();
    assert_true(announce->holdings[0]->complete);
    tracker__announce__free_unpacked(announce, NULL);
    session_dropped(session, part.root, part.g.size);
    announce = next_announce();
    assert_true(announce->holdings[0]->dropped);
    assert_memory_equal(announce->holdings[0]->root.data, part.root, HASH_SIZE);
    tracker__announce__free_unpacked(announce, NULL);
    content_release(content);
    wire_free(&tracker);
    finish();
    help_unmake(&whole);
    help_unmake(&part);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(registering_makes_a_member),
        cmocka_unit_test(a_tracker_with_another_fingerprint_gets_no_password),
        cmocka_unit_test(a_refused_log_in_says_why),
        cmocka_unit_test(logging_in_again_renews_and_as_somebody_else_is_refused),
        cmocka_unit_test(the_other_verbs_go_to_the_tracker),
        cmocka_unit_test(a_certificate_is_renewed_in_time),
        cmocka_unit_test(it_comes_back_and_repeats_what_is_wanted),
        cmocka_unit_test(a_thousand_wants_do_not_swamp_the_tracker),
        cmocka_unit_test(pushes_reach_whom_they_concern),
        cmocka_unit_test(operations_are_answered_or_asked_for_again),
        cmocka_unit_test(who_is_seen_first_is_believed_and_the_second_is_not),
        cmocka_unit_test(a_full_history_of_keys_still_tells_what_is_new),
        cmocka_unit_test(an_unreadable_history_of_keys_believes_nobody_and_is_kept),
        cmocka_unit_test(holdings_are_told_whole_then_by_what_came),
    };
    return cmocka_run_group_tests_name("session", tests, set_up_all, tear_down_all);
}
