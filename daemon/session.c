/* The session with the tracker: its connection and all that travels on it but accounts and
 * announces.
 *
 * Owns the credentials in use, the one connection, the set of wanted roots. Leaves the catalogue to
 * local, peers to download, accounts to session_account.c, announces to session_announce.c. Thread:
 * "tracker"; the exported functions post mail.
 *
 *   LOGGED OUT --session_install--> AWAY --redial--> (link) --up--> CONNECTED
 *        ^-----------log out---------'  ^--------------down----------'
 *
 * After `up`, in this order: announce (from scratch), wants, subscription; then local is told,
 * which submits its journal. Back-off: a first try at once, then doubling from 0.5 s to 30 s, each
 * with a random half, so that a tracker that comes back is not met by all members at the same
 * moment. */
#include "daemon/session_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/workers.h"
#include "crypto/random.h"
#include "crypto/ticket.h"
#include "daemon/download.h"
#include "daemon/local.h"
#include "daemon/revocations.h"
#include "daemon/store.h"
#include "daemon/upload.h"
#include "proto/limits.h"

#define REDIAL_FIRST_NS (NS_PER_S / 2)
#define REDIAL_MAX_NS   (30 * NS_PER_S)
/* A connection that ends sooner counts as a failure: a tracker that throws us out at once is not
 * dialled in a circle. */
#define STEADY_NS (10 * NS_PER_S)
/* Unanswered at a time: LIMIT_REQUESTS is for all requests together. */
#define WANTS_AT_ONCE 256
/* An operation that the tracker did not take, for a trouble of its own, is sent again so much later. */
#define RESUBMIT_NS (5 * NS_PER_S)

static void tell_state(struct session *s, enum session_state state, const char *trouble)
{
    if (state == SESSION_CONNECTED)
        s->epoch++;
    session_signed_state(s, state, trouble);
}

/* --- pushes from the tracker
 * --------------------------------------------------------------------------- */

static const char malformed[] = "the tracker sent a malformed message";

static const char *take_changes(struct session *s, const uint8_t *message, size_t size)
{
    Tracker__Changes *changes = tracker__changes__unpack(NULL, size, message);

    if (changes == NULL)
        return malformed;
    if (changes->generation.len == sizeof s->generation) {
        memcpy(s->generation, changes->generation.data, sizeof s->generation);
        s->seq = changes->seq;
    }
    session_signed_changes(s, changes);
    return NULL;
}

static const char *take_peers(struct session *s, const uint8_t *message, size_t size, bool answer)
{
    Tracker__Peers *peers = tracker__peers__unpack(NULL, size, message);

    if (peers == NULL)
        return malformed;
    if (peers->root.len != HASH_SIZE) {
        tracker__peers__free_unpacked(peers, NULL);
        return malformed;
    }
    download_peers(s->daemon->download, peers, answer);
    return NULL;
}

static const char *take_dial_back(struct session *s, const uint8_t *message, size_t size)
{
    Tracker__DialBack *ask = tracker__dial_back__unpack(NULL, size, message);

    if (ask == NULL)
        return malformed;
    if (ask->device.len == DEVICE_ID_SIZE && ask->n_addresses <= LIMIT_ADDRESSES) {
        char **addresses = xcalloc(ask->n_addresses + 1, sizeof *addresses);
        for (size_t i = 0; i < ask->n_addresses; i++)
            addresses[i] = xstrdup(ask->addresses[i]);
        upload_dial_back(s->daemon->upload, ask->device.data, addresses);
    }
    tracker__dial_back__free_unpacked(ask, NULL);
    return NULL;
}

static const char *take_revoked(struct session *s, const uint8_t *message, size_t size)
{
    Tracker__Revoked *revoked = tracker__revoked__unpack(NULL, size, message);

    if (revoked == NULL)
        return malformed;
    for (size_t i = 0; i < revoked->n_devices; i++) {
        if (revoked->devices[i].len != DEVICE_ID_SIZE)
            continue;
        revocations_add(s->daemon->revocations, revoked->devices[i].data,
                        i < revoked->n_before ? revoked->before[i] : clock_wall() / NS_PER_S + 1);
        download_revoked(s->daemon->download, revoked->devices[i].data);
        upload_revoked(s->daemon->upload, revoked->devices[i].data);
    }
    revocations_save(s->daemon->revocations);
    tracker__revoked__free_unpacked(revoked, NULL);
    return NULL;
}

static const char *take_barred(struct session *s, const uint8_t *message, size_t size)
{
    Tracker__Barred *barred = tracker__barred__unpack(NULL, size, message);

    if (barred == NULL)
        return malformed;
    uint8_t(*roots)[HASH_SIZE] = xcalloc(barred->n_roots + 1, sizeof *roots);
    size_t count = 0;
    for (size_t i = 0; i < barred->n_roots; i++)
        if (barred->roots[i].len == HASH_SIZE)
            memcpy(roots[count++], barred->roots[i].data, HASH_SIZE);
    if (strlen(barred->account) <= ACCOUNT_BYTES_MAX)
        upload_barred(s->daemon->upload, barred->account, barred->epoch,
                      (const uint8_t(*)[HASH_SIZE])roots, count);
    free(roots);
    tracker__barred__free_unpacked(barred, NULL);
    return NULL;
}

static void ask_wanted(struct session *);
static void ask_for(struct session *, struct wanted *);

/* Our rights have changed: the tickets we have are void, or will be in a moment. */
static const char *renew_tickets(struct session *s)
{
    struct wanted *wanted, *next;

    HASH_ITER(hh, s->wanted, wanted, next)
        ask_for(s, wanted);
    ask_wanted(s);
    return NULL;
}

static const char *on_push(void *arg, unsigned type, const uint8_t *message, size_t size)
{
    struct session *s = arg;

    switch (type) {
    case TRACKER__TRACKER_TYPE__TRACKER_CHANGES:
        return take_changes(s, message, size);
    case TRACKER__TRACKER_TYPE__TRACKER_PEERS:
        return take_peers(s, message, size, false);
    case TRACKER__TRACKER_TYPE__TRACKER_DIAL_BACK:
        return take_dial_back(s, message, size);
    case TRACKER__TRACKER_TYPE__TRACKER_REVOKED:
        return take_revoked(s, message, size);
    case TRACKER__TRACKER_TYPE__TRACKER_BARRED:
        return take_barred(s, message, size);
    case TRACKER__TRACKER_TYPE__TRACKER_RENEW_TICKETS:
        return renew_tickets(s);
    default:
        return tracker_link_unknown_push;
    }
}

/* --- wants
 * ---------------------------------------------------------------------------------------------- */

static void want_answered(void *arg, const struct tracker_answer *answer)
{
    struct session *s = arg;

    s->wants_under_way--;
    if (answer->lost != NULL)
        return; /* asked again after the next connect */
    ask_wanted(s);
    if (answer->fault != NULL)
        log_warning("the tracker gives no peers: %s", answer->fault->text);
    else if (answer->type == TRACKER__TRACKER_TYPE__TRACKER_PEERS)
        (void)take_peers(s, answer->message, answer->size, true);
}

static void send_want(struct session *s, struct wanted *wanted)
{
    Tracker__Want want = TRACKER__WANT__INIT;

    want.root.data = wanted->root;
    want.root.len = sizeof wanted->root;
    want.size = wanted->size;
    want.count = LIMIT_PEERS;
    s->wants_under_way++;
    wanted->asked = clock_now();
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_WANT, &want.base, want_answered,
                         s);
}

/* Sends what waits, as much as may be under way. */
static void ask_wanted(struct session *s)
{
    while (s->to_ask != NULL && s->wants_under_way < WANTS_AT_ONCE && tracker_link_is_up(s->link)) {
        struct wanted *wanted = s->to_ask;
        DL_DELETE(s->to_ask, wanted);
        wanted->to_ask = false;
        send_want(s, wanted);
    }
}

static void ask_for(struct session *s, struct wanted *wanted)
{
    if (!wanted->to_ask)
        DL_APPEND(s->to_ask, wanted);
    wanted->to_ask = true;
}

/* Tickets are renewed when a quarter of their life is over, so that a tracker may be away for the rest of it. */
static void tickets_due(void *arg)
{
    struct session *s = arg;
    struct wanted *wanted, *next;
    int64_t old = clock_now() - s->ticket_lifetime / 4;

    if (!tracker_link_is_up(s->link) || s->ticket_lifetime == 0)
        return;
    HASH_ITER(hh, s->wanted, wanted, next) {
        if (wanted->asked <= old)
            ask_for(s, wanted);
    }
    ask_wanted(s);
    timer_set(s->tickets, s->ticket_lifetime / 16);
}

static void take_ticket_key(struct session *s, const Tracker__Welcome *welcome)
{
    s->ticket_lifetime = welcome->ticket_lifetime * NS_PER_S;
    if (welcome->ticket_key.len == TICKET_KEY_SIZE)
        upload_ticket_key(s->daemon->upload, welcome->ticket_key.data, welcome->time);
    if (s->ticket_lifetime > 0)
        timer_set(s->tickets, s->ticket_lifetime / 16);
}

/* --- the connection
 * -------------------------------------------------------------------------------------- */

static void subscribed(void *arg, const struct tracker_answer *answer)
{
    (void)arg;
    if (answer->fault != NULL)
        log_warning("the tracker gives no catalogue: %s", answer->fault->text);
}

static void subscribe(struct session *s)
{
    Tracker__Subscribe subscribe = TRACKER__SUBSCRIBE__INIT;

    if (s->seq != 0) {
        subscribe.generation.data = s->generation;
        subscribe.generation.len = sizeof s->generation;
        subscribe.since = s->seq;
    }
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_SUBSCRIBE, &subscribe.base,
                         subscribed, s);
}

static void on_up(void *arg, const Tracker__Welcome *welcome)
{
    struct session *s = arg;
    struct wanted *wanted, *next;

    if (welcome->account[0] == '\0') {
        s->void_certificate = true;
        timer_set(s->redial, 0); /* the link must not be freed within its own callback */
        return;
    }
    if (s->failures > 0)
        log_info("the tracker is back");
    s->up_since = clock_now();
    free(s->swarm);
    s->swarm = xstrdup(welcome->swarm);
    take_ticket_key(s, welcome);
    session_signed_link_up(s);
    session_announce_link_up(s, welcome->seen_as);
    HASH_ITER(hh, s->wanted, wanted, next)
        ask_for(s, wanted);
    ask_wanted(s);
    if (s->catalogue_known)
        subscribe(s);
    session_account_link_up(s);
    session_ask_link_up(s);
    tell_state(s, SESSION_CONNECTED, NULL);
}

static void drop_link(struct session *s)
{
    struct tracker_link *link = s->link;

    session_announce_link_down(s);
    timer_cancel(s->resubmit);
    free(s->ops_trouble);
    s->ops_trouble = NULL;
    s->void_certificate = false;
    s->up_since = 0;
    s->link = NULL; /* who hears now that an answer is lost finds it down */
    tracker_link_end(link, "the connection to the tracker was given up");
}

static void on_down(void *arg, const char *why)
{
    struct session *s = arg;
    int64_t delay = REDIAL_FIRST_NS;

    if (s->up_since != 0 && clock_now() - s->up_since >= STEADY_NS)
        s->failures = 0;
    if (s->failures == 0)
        log_warning("the tracker is away: %s", why);
    for (unsigned i = 0; i < s->failures && delay < REDIAL_MAX_NS; i++)
        delay *= 2;
    if (delay > REDIAL_MAX_NS)
        delay = REDIAL_MAX_NS;
    delay = delay / 2 + (int64_t)(random_u64() % (uint64_t)(delay / 2));
    s->failures++;
    tell_state(s, SESSION_AWAY, why);
    drop_link(s);
    timer_set(s->redial, delay);
    session_account_link_down(s);
    session_ask_link_down(s);
}

static const struct tracker_link_events link_events = {
    .up = on_up, .push = on_push, .down = on_down};

/* The tracker takes our certificate for nobody's: logged out from elsewhere, the password changed, the account disabled. */
static void give_up_certificate(struct session *s)
{
    static const char why[] =
        "this device has been logged out at the tracker; log in again (p2pctl login)";

    if (s->failures == 0)
        log_warning("%s", why);
    s->failures++;
    tell_state(s, SESSION_AWAY, why);
    drop_link(s);
    timer_set(s->redial, REDIAL_MAX_NS);
    session_account_link_down(s);
    session_ask_link_down(s);
}

static void dial(void *arg)
{
    struct session *s = arg;

    if (s->void_certificate) {
        s->void_certificate = false;
        give_up_certificate(s);
        return;
    }
    if (s->credentials == NULL || s->link != NULL)
        return;
    s->link = tracker_link_new(s->loop, &s->pools, &s->credentials->url,
                               s->credentials->tracker_context, &link_events, s);
}

void session_replace_credentials(struct session *s, struct credentials *fresh)
{
    credentials_release(s->credentials);
    s->credentials = fresh;
    download_credentials(s->daemon->download, credentials_share(fresh));
    upload_credentials(s->daemon->upload, credentials_share(fresh));
}

void session_install(struct session *s, struct credentials *fresh)
{
    drop_link(s);
    timer_cancel(s->redial);
    s->failures = 0;
    if (fresh != NULL) {
        session_replace_credentials(s, fresh);
        tell_state(s, SESSION_AWAY, "connecting");
        dial(s);
        return;
    }
    credentials_release(s->credentials);
    s->credentials = NULL;
    free(s->swarm);
    s->swarm = NULL;
    download_credentials(s->daemon->download, NULL);
    upload_credentials(s->daemon->upload, NULL);
    tell_state(s, SESSION_LOGGED_OUT, NULL);
}

/* --- mail: what other threads ask
 * ------------------------------------------------------------------------ */

struct root_mail {
    struct mail mail;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    void *cookie;
    struct session *session; /* while an answer is awaited */
};

static struct root_mail *root_mail_new(void (*deliver)(struct mail *, void *), const uint8_t *root,
                                       uint64_t size)
{
    struct root_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver;
    memcpy(mail->root, root, HASH_SIZE);
    mail->size = size;
    return mail;
}

static void deliver_want(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct root_mail *mail = (struct root_mail *)raw;
    struct wanted *wanted;

    HASH_FIND(hh, s->wanted, mail->root, HASH_SIZE, wanted);
    if (wanted == NULL) {
        wanted = xcalloc(1, sizeof *wanted);
        memcpy(wanted->root, mail->root, HASH_SIZE);
        HASH_ADD(hh, s->wanted, root, HASH_SIZE, wanted);
    }
    wanted->size = mail->size;
    session_announce_wanted(s, mail->root, mail->size);
    ask_for(s, wanted);
    ask_wanted(s);
    free(mail);
}

void session_want(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size)
{
    loop_post(s->loop, &root_mail_new(deliver_want, root, size)->mail);
}

static void deliver_unwant(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct root_mail *mail = (struct root_mail *)raw;
    struct wanted *wanted;

    HASH_FIND(hh, s->wanted, mail->root, HASH_SIZE, wanted);
    if (wanted != NULL) {
        bool asked = !wanted->to_ask;
        if (!asked)
            DL_DELETE(s->to_ask, wanted);
        HASH_DEL(s->wanted, wanted);
        free(wanted);
        if (asked && tracker_link_is_up(s->link)) {
            Tracker__Unwant unwant = TRACKER__UNWANT__INIT;
            unwant.root.data = mail->root;
            unwant.root.len = HASH_SIZE;
            tracker_link_notice(s->link, TRACKER__TRACKER_TYPE__TRACKER_UNWANT, &unwant.base);
        }
    }
    free(mail);
}

void session_unwant(struct session *s, const uint8_t root[HASH_SIZE])
{
    loop_post(s->loop, &root_mail_new(deliver_unwant, root, 0)->mail);
}

static void health_answered(void *arg, const struct tracker_answer *answer)
{
    struct root_mail *mail = arg;
    Tracker__Health *health = NULL;

    if (answer->lost == NULL && answer->fault == NULL &&
        answer->type == TRACKER__TRACKER_TYPE__TRACKER_HEALTH_IS)
        health = tracker__health__unpack(NULL, answer->size, answer->message);
    local_health_answer(mail->session->daemon->local, mail->cookie, health == NULL ? EIO : 0,
                        health);
    free(mail);
}

static void deliver_health(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct root_mail *mail = (struct root_mail *)raw;

    if (!tracker_link_is_up(s->link)) {
        local_health_answer(s->daemon->local, mail->cookie, ENOTCONN, NULL);
        free(mail);
        return;
    }
    Tracker__HealthRequest ask = TRACKER__HEALTH_REQUEST__INIT;
    ask.root.data = mail->root;
    ask.root.len = HASH_SIZE;
    ask.size = mail->size;
    mail->session = s;
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_HEALTH, &ask.base, health_answered,
                         mail);
}

void session_health(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size, void *cookie)
{
    struct root_mail *mail = root_mail_new(deliver_health, root, size);

    mail->cookie = cookie;
    loop_post(s->loop, &mail->mail);
}

static void deliver_dial_back(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct root_mail *mail = (struct root_mail *)raw;

    if (tracker_link_is_up(s->link)) {
        Tracker__DialBack ask = TRACKER__DIAL_BACK__INIT;
        ask.device.data = mail->root;
        ask.device.len = DEVICE_ID_SIZE;
        tracker_link_notice(s->link, TRACKER__TRACKER_TYPE__TRACKER_DIAL_BACK, &ask.base);
    }
    free(mail);
}

void session_ask_dial_back(struct session *s, const uint8_t device[16])
{
    uint8_t padded[HASH_SIZE] = {0};

    memcpy(padded, device, DEVICE_ID_SIZE);
    loop_post(s->loop, &root_mail_new(deliver_dial_back, padded, 0)->mail);
}

struct position_mail {
    struct mail mail;
    uint8_t generation[16];
    uint64_t seq;
};

static void deliver_position(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct position_mail *mail = (struct position_mail *)raw;

    memcpy(s->generation, mail->generation, sizeof s->generation);
    s->seq = mail->seq;
    s->catalogue_known = true;
    if (tracker_link_is_up(s->link))
        subscribe(s);
    free(mail);
}

void session_catalogue_at(struct session *s, const uint8_t generation[16], uint64_t seq)
{
    struct position_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_position;
    memcpy(mail->generation, generation, sizeof mail->generation);
    mail->seq = seq;
    loop_post(s->loop, &mail->mail);
}

struct op_mail {
    struct mail mail;
    unsigned epoch;
    uint8_t *packed;
    size_t size;
};

/* `why` is taken over. */
static void note_ops_trouble(struct session *s, char *why)
{
    free(s->ops_trouble);
    s->ops_trouble = why;
    local_tracker_trouble(s->daemon->local, why == NULL ? NULL : xstrdup(why));
}

static void op_answered(void *arg, const struct tracker_answer *answer)
{
    struct session *s = arg;

    if (answer->lost != NULL)
        return; /* local submits its journal again */
    if (answer->fault != NULL) {
        if (!timer_pending(s->resubmit)) /* of those that were under way the first one says why */
            timer_set(s->resubmit, RESUBMIT_NS);
        if (s->ops_trouble == NULL) {
            log_warning("the tracker does not take a change: %s", answer->fault->text);
            note_ops_trouble(s, xasprintf("it takes no changes: %s", answer->fault->text));
        }
        return;
    }
    if (s->ops_trouble != NULL) {
        log_info("the tracker takes changes again");
        note_ops_trouble(s, NULL);
    }
    Tracker__Results *results = tracker__results__unpack(NULL, answer->size, answer->message);
    if (results == NULL)
        log_warning("%s", malformed);
    else
        session_signed_results(s, results);
}

static void deliver_op(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct op_mail *mail = (struct op_mail *)raw;

    if (tracker_link_is_up(s->link) && mail->epoch == s->epoch) {
        Tracker__Op *op = tracker__op__unpack(NULL, mail->size, mail->packed);
        CHECK(op != NULL); /* local packed it */
        Tracker__Ops ops = TRACKER__OPS__INIT;
        ops.n_ops = 1;
        ops.ops = &op;
        ops.attempt = s->epoch;
        struct session_signature ours;
        if (session_sign(s, op, &ours)) {
            free(op->signer.data);
            free(op->signature.data);
            op->signer = (ProtobufCBinaryData){.len = sizeof ours.signer,
                                               .data = xmemdup(ours.signer, sizeof ours.signer)};
            op->signature =
                (ProtobufCBinaryData){.len = sizeof ours.signature,
                                      .data = xmemdup(ours.signature, sizeof ours.signature)};
        }
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_OPS, &ops.base, op_answered,
                             s);
        tracker__op__free_unpacked(op, NULL);
    }
    free(mail->packed);
    free(mail);
}

void session_op(struct session *s, unsigned epoch, uint8_t *packed, size_t size)
{
    struct op_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_op;
    mail->epoch = epoch;
    mail->packed = packed;
    mail->size = size;
    loop_post(s->loop, &mail->mail);
}

/* Told once more that it is connected, local submits its journal again; the epoch, which has grown, is the attempt. */
static void resubmit_due(void *arg)
{
    struct session *s = arg;

    if (tracker_link_is_up(s->link))
        tell_state(s, SESSION_CONNECTED, s->ops_trouble);
}

/* --- life
 * --------------------------------------------------------------------------------------------------
 */

struct session *session_new(struct daemon *daemon, struct credentials *credentials)
{
    struct session *s = xcalloc(1, sizeof *s);

    s->daemon = daemon;
    s->loop = loop_new("tracker");
    loop_set_owner(s->loop, s);
    s->credentials = credentials;
    s->redial = timer_new(s->loop, dial, s);
    s->resubmit = timer_new(s->loop, resubmit_due, s);
    s->tickets = timer_new(s->loop, tickets_due, s);
    s->pools.handshakes = daemon->handshakes;
    s->pools.resolver = workers_new("resolver", 1);
    session_account_init(s);
    session_announce_init(s);
    session_signed_init(s);
    return s;
}

static void deliver_start(struct mail *mail, void *owner)
{
    struct session *s = owner;
    struct credentials *credentials = s->credentials;

    free(mail);
    s->credentials = NULL;
    session_install(s, credentials);
}

void session_start(struct session *s)
{
    struct mail *mail = xcalloc(1, sizeof *mail);

    mail->deliver = deliver_start;
    loop_post(s->loop, mail);
    loop_start(s->loop);
}

void session_stop(struct session *s)
{
    loop_stop(s->loop);
    loop_join(s->loop);
    s->stopping = true;
    drop_link(s);
    session_ask_link_down(s);
    session_account_down(s);
}

void session_free(struct session *s)
{
    struct wanted *wanted, *next;

    workers_free(s->pools.resolver);
    timer_free(s->redial);
    free(s->ops_trouble);
    timer_free(s->resubmit);
    timer_free(s->tickets);
    session_announce_down(s);
    loop_free(s->loop);
    session_signed_free(s);
    session_announce_free(s);
    HASH_ITER(hh, s->wanted, wanted, next) {
        HASH_DEL(s->wanted, wanted);
        free(wanted);
    }
    credentials_release(s->credentials);
    free(s->swarm);
    free(s);
}
