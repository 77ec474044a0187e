/* Sessions: one connection each, from the end of its handshake to its end.
 *
 *   handshake -> stranger -> (Hello) greeted stranger: Register, Log in
 *             -> member   -> (Hello) greeted member: everything the table allows
 *
 * Owns the channel and what is known of its other end. A session is ended by session_end, at any time, from
 * anywhere on the loop's thread; its memory stays until answers that are under way have come home (refs).
 *
 * Invariants: 1. a member's session is its device's only one: the newest wins; 2. account is not "" exactly if
 * the certificate was good at the time and nothing revoked it since; 3. peer is connected in the swarm exactly
 * while account is not "" and the channel is there. */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "tracker/server_private.h"

#define REVOKED_AT_ONCE 1024 /* devices in one Revoked */

/* --- talking ---------------------------------------------------------------------------------------------- */

void session_answer_payload(struct session *s, uint32_t id, Tracker__TrackerType type,
                            const ProtobufCMessage *message, const void *payload, size_t size)
{
    if (id != 0 && s->unanswered > 0)
        s->unanswered--;
    if (session_is_open(s))
        channel_send(s->channel, CHANNEL_URGENT, (uint16_t)type, FRAME_ANSWER, id, message, payload,
                     size);
}

void session_answer(struct session *s, uint32_t id, Tracker__TrackerType type,
                    const ProtobufCMessage *message)
{
    session_answer_payload(s, id, type, message, NULL, 0);
}

void session_fault(struct session *s, uint32_t id, Tracker__FaultCode code, const char *text,
                   int64_t retry_after_ns)
{
    Tracker__Fault fault = TRACKER__FAULT__INIT;
    union {
        const char *from;
        char *to;
    } constant = {.from = text};
    fault.code = code;
    fault.text = constant.to;
    fault.retry_after = (uint32_t)((retry_after_ns + NS_PER_S - 1) / NS_PER_S);
    session_answer(s, id, TRACKER__TRACKER_TYPE__TRACKER_FAULT, &fault.base);
}

void session_done(struct session *s, uint32_t id)
{
    Tracker__Done done = TRACKER__DONE__INIT;
    session_answer(s, id, TRACKER__TRACKER_TYPE__TRACKER_DONE, &done.base);
}

void session_push(struct session *s, enum channel_class class, Tracker__TrackerType type,
                  const ProtobufCMessage *message)
{
    if (session_is_open(s))
        channel_send(s->channel, class, (uint16_t)type, 0, 0, message, NULL, 0);
}

/* --- Hello --------------------------------------------------------------------------------------------------- */

static void push_revoked(struct session *s, const uint8_t (*devices)[DEVICE_ID_SIZE], size_t count)
{
    Tracker__Revoked message = TRACKER__REVOKED__INIT;
    ProtobufCBinaryData items[REVOKED_AT_ONCE];
    int64_t before[REVOKED_AT_ONCE];
    union {
        const uint8_t *from;
        uint8_t *to;
    } constant;
    message.devices = items;
    message.before = before;
    for (size_t at = 0; at < count; at += message.n_devices) {
        message.n_devices = count - at < REVOKED_AT_ONCE ? count - at : REVOKED_AT_ONCE;
        for (size_t i = 0; i < message.n_devices; i++) {
            constant.from = devices[at + i];
            items[i] = (ProtobufCBinaryData){.len = DEVICE_ID_SIZE, .data = constant.to};
            const struct member_device *device =
                members_device(s->server->members, devices[at + i]);
            before[i] = device == NULL ? wall_seconds() : device->void_before;
        }
        message.n_before = message.n_devices;
        session_push(s, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_REVOKED, &message.base);
    }
}

/* Whoever was not connected when it was pushed hears now of certificates that are void and have not ended. */
static void tell_revoked(struct session *s)
{
    int64_t since = wall_seconds() - s->server->certificate_lifetime;
    size_t room = members_revoked(s->server->members, since, NULL, 0);
    if (room == 0)
        return;
    uint8_t(*devices)[DEVICE_ID_SIZE] = xmalloc(room * sizeof *devices);
    size_t count = members_revoked(s->server->members, since, devices, room);
    push_revoked(s, (const uint8_t(*)[DEVICE_ID_SIZE])devices, count);
    free(devices);
}

static const char *on_hello(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Hello *hello = message;
    if (hello->version < 1 || hello->oldest > 1) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_VERSION, "this tracker speaks version 1",
                      0);
        return "a protocol version that is not spoken here";
    }
    if (strlen(hello->agent) > LIMIT_AGENT)
        return "an agent's name that is too long";
    Tracker__Welcome welcome = TRACKER__WELCOME__INIT;
    char agent[] = "p2ptracker " P2P_VERSION;
    welcome.version = 1;
    welcome.agent = agent;
    welcome.swarm = s->server->name;
    welcome.account = s->account;
    if (session_is_member(s))
        welcome.device = (ProtobufCBinaryData){.len = sizeof s->device, .data = s->device};
    welcome.seen_as = s->from;
    welcome.time = wall_seconds();
    uint8_t key[TICKET_KEY_SIZE];
    if (session_is_member(s)) {
        rights_server_key(s->server, s->device, key);
        welcome.ticket_lifetime = (uint32_t)s->server->ticket_lifetime;
        welcome.ticket_key = (ProtobufCBinaryData){.len = sizeof key, .data = key};
    }
    s->greeted = true;
    session_answer(s, id, TRACKER__TRACKER_TYPE__TRACKER_WELCOME, &welcome.base);
    if (session_is_member(s)) {
        tell_revoked(s);
        rights_greet(s);
    }
    return NULL;
}

static const char *on_ping(struct session *s, uint32_t id, const void *message)
{
    session_done(s, id);
    return NULL;
}

/* --- requests --------------------------------------------------------------------------------------------------- */

enum { MEMBER = 1, NO_ID = 2, ADMIN = 4 };

static const struct request {
    Tracker__TrackerType type;
    unsigned needs;
    const ProtobufCMessageDescriptor *descriptor;
    session_handler *handler;
} requests[] = {
    {TRACKER__TRACKER_TYPE__TRACKER_HELLO, 0, &tracker__hello__descriptor, on_hello},
    {TRACKER__TRACKER_TYPE__TRACKER_REGISTER, 0, &tracker__register__descriptor, accounts_register},
    {TRACKER__TRACKER_TYPE__TRACKER_LOGIN, 0, &tracker__login__descriptor, accounts_login},
    {TRACKER__TRACKER_TYPE__TRACKER_RENEW, MEMBER, &tracker__renew__descriptor, accounts_renew},
    {TRACKER__TRACKER_TYPE__TRACKER_LOGOUT, MEMBER, &tracker__logout__descriptor, accounts_logout},
    {TRACKER__TRACKER_TYPE__TRACKER_PASSWORD, MEMBER, &tracker__password__descriptor,
     accounts_password},
    {TRACKER__TRACKER_TYPE__TRACKER_WHOAMI, MEMBER, &tracker__whoami__descriptor, accounts_whoami},
    {TRACKER__TRACKER_TYPE__TRACKER_INVITE, MEMBER, &tracker__invite__descriptor, accounts_invite},
    {TRACKER__TRACKER_TYPE__TRACKER_SUBSCRIBE, MEMBER, &tracker__subscribe__descriptor,
     feed_subscribe},
    {TRACKER__TRACKER_TYPE__TRACKER_OPS, MEMBER, NULL, NULL},
    {TRACKER__TRACKER_TYPE__TRACKER_ANNOUNCE, MEMBER, &tracker__announce__descriptor,
     announce_announce},
    {TRACKER__TRACKER_TYPE__TRACKER_WANT, MEMBER, &tracker__want__descriptor, announce_want},
    {TRACKER__TRACKER_TYPE__TRACKER_UNWANT, MEMBER | NO_ID, &tracker__unwant__descriptor,
     announce_unwant},
    {TRACKER__TRACKER_TYPE__TRACKER_HEALTH, MEMBER, &tracker__health_request__descriptor,
     announce_health},
    {TRACKER__TRACKER_TYPE__TRACKER_RELEASE, MEMBER, &tracker__release__descriptor,
     announce_release},
    {TRACKER__TRACKER_TYPE__TRACKER_DIAL_BACK, MEMBER | NO_ID, &tracker__dial_back__descriptor,
     announce_dial_back},
    {TRACKER__TRACKER_TYPE__TRACKER_GRANT, MEMBER, &tracker__grant__descriptor, grants_grant},
    {TRACKER__TRACKER_TYPE__TRACKER_ACCESS, MEMBER, &tracker__access_request__descriptor,
     grants_access},
    {TRACKER__TRACKER_TYPE__TRACKER_GROUP, MEMBER, &tracker__group__descriptor, grants_group},
    {TRACKER__TRACKER_TYPE__TRACKER_GROUPS, MEMBER, &tracker__groups_request__descriptor,
     grants_groups},
    {TRACKER__TRACKER_TYPE__TRACKER_USERS, MEMBER | ADMIN, &tracker__users__descriptor,
     accounts_users},
    {TRACKER__TRACKER_TYPE__TRACKER_USER_CHANGE, MEMBER | ADMIN, &tracker__user_change__descriptor,
     accounts_user_change},
    {TRACKER__TRACKER_TYPE__TRACKER_TRANSFER, MEMBER | ADMIN, &tracker__transfer__descriptor,
     accounts_transfer},
    {TRACKER__TRACKER_TYPE__TRACKER_AUDIT, MEMBER | ADMIN, &tracker__audit__descriptor,
     accounts_audit},
    {TRACKER__TRACKER_TYPE__TRACKER_DEVICE_REMOVE, MEMBER, &tracker__device_remove__descriptor,
     accounts_device_remove},
    {TRACKER__TRACKER_TYPE__TRACKER_EMAIL, MEMBER, &tracker__email__descriptor, accounts_email},
    {TRACKER__TRACKER_TYPE__TRACKER_VERIFY, 0, &tracker__verify__descriptor, accounts_verify},
    {TRACKER__TRACKER_TYPE__TRACKER_RESET, 0, &tracker__reset__descriptor, accounts_reset},
    {TRACKER__TRACKER_TYPE__TRACKER_RESET_SET, 0, &tracker__reset_set__descriptor,
     accounts_reset_set},
    {TRACKER__TRACKER_TYPE__TRACKER_TOTP, MEMBER, &tracker__totp__descriptor, accounts_totp},
    {TRACKER__TRACKER_TYPE__TRACKER_SIGNER, MEMBER, &tracker__signer__descriptor, signers_claim},
    {TRACKER__TRACKER_TYPE__TRACKER_PING, 0, &tracker__ping__descriptor, on_ping},
};

static const struct request *request_find(uint16_t type)
{
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        if (requests[i].type == type)
            return &requests[i];
    return NULL;
}

static const char *dispatch(struct session *s, const struct request *request,
                            const struct frame *frame, const uint8_t *message)
{
    if (request->handler == NULL)
        return feed_ops(s, frame->id, message, frame->message_size);
    struct message_arena arena;
    const void *unpacked =
        message_unpack(&arena, request->descriptor, message, frame->message_size);
    const char *fault =
        unpacked == NULL ? "a malformed message" : request->handler(s, frame->id, unpacked);
    message_done(&arena);
    return fault;
}

static const char *judge(struct session *s, const struct frame *frame, const uint8_t *message)
{
    if (s->ending)
        return NULL;
    const struct request *request = request_find(frame->type);
    if (request == NULL)
        return frame->flags & FRAME_MAY_SKIP ? NULL : "a message of unknown type";
    if (frame->flags & FRAME_ANSWER)
        return "an answer to nothing";
    if (frame->id == 0 && !(request->needs & NO_ID))
        return "a request without a number";
    if (!s->greeted && request->handler != on_hello)
        return "no Hello first";
    if (frame->id != 0 && ++s->unanswered > LIMIT_REQUESTS)
        return "too many unanswered requests";
    if ((request->needs & MEMBER) && !session_is_member(s)) {
        server_log_refusal(s->server, s->from, "refused a request that needs a certificate");
        if (frame->id != 0 && s->void_why != NULL)
            session_fault(s, frame->id, TRACKER__FAULT_CODE__FAULT_DISABLED, s->void_why, 0);
        else if (frame->id != 0)
            session_fault(s, frame->id, TRACKER__FAULT_CODE__FAULT_DENIED,
                          "this needs a member's certificate: log in first", 0);
        return NULL;
    }
    if (request->needs & ADMIN) {
        const struct member_account *account = members_account(s->server->members, s->account);
        if (account == NULL || !account->admin) {
            server_log_refusal(s->server, s->from, "refused %s what only admins may", s->account);
            session_fault(s, frame->id, TRACKER__FAULT_CODE__FAULT_DENIED,
                          "only an admin may do that", 0);
            return NULL;
        }
    }
    return dispatch(s, request, frame, message);
}

/* The other end broke the protocol: a member's device may do so by mistake a few times. */
static void note_breach(struct session *s, const char *what)
{
    struct server *server = s->server;
    if (!session_is_member(s)) {
        server_knock_bad(server, s->source);
        return;
    }
    server_log_refusal(server, s->from, "%s breaks the protocol: %s", s->account, what);
    if (bans_strike(server->bans, s->device, s->account, what, clock_now()))
        log_warning("%s: a device of %s is not spoken to for an hour: %s", s->from, s->account,
                    what);
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct session *s = arg;
    CHECK_OBJECT(s, SESSION_MAGIC);
    bool greeted = s->greeted; /* a version that is not spoken here is no breach */
    const char *fault = judge(s, frame, message);
    if (fault != NULL && greeted && s->channel != NULL)
        note_breach(s, fault);
    return fault;
}

/* No request has a payload; of what may be skipped it is read and thrown away. */
static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    if (request_find(frame->type) != NULL || !(frame->flags & FRAME_MAY_SKIP))
        *fault = "a payload where none belongs";
    return NULL;
}

/* --- beginning and end --------------------------------------------------------------------------------------------- */

void session_keep(struct session *s)
{
    CHECK_OBJECT(s, SESSION_MAGIC);
    s->refs++;
}

void session_release(struct session *s)
{
    CHECK_OBJECT(s, SESSION_MAGIC);
    if (--s->refs > 0)
        return;
    CHECK(s->channel == NULL);
    s->magic = 0;
    free(s->addresses);
    free(s->signers_told);
    free(s);
}

void session_end(struct session *s, const char *why)
{
    CHECK_OBJECT(s, SESSION_MAGIC);
    if (s->channel == NULL)
        return;
    struct server *server = s->server;
    if (session_is_member(s)) {
        log_debug("%s on %s left: %s", s->account, s->from, why);
        server_account_ends(server, s->account_links);
        spent_add(server->spent, s->account, channel_spent(s->channel), clock_now());
        announce_disconnect(s);
        s->account[0] = '\0';
    }
    s->feed = FEED_NONE;
    channel_free(s->channel);
    s->channel = NULL;
    *s->link = s->next;
    if (s->next != NULL)
        s->next->link = s->link;
    if (!s->ready)
        server_handshake_ended(server, s->source);
    server_link_ended(server, s->source);
    s->source = NULL;
    session_release(s);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct session *s = arg;
    CHECK_OBJECT(s, SESSION_MAGIC);
    if (s->channel != NULL && channel_is_broken(s->channel))
        note_breach(s, why);
    if (!s->ready)
        server_knock_bad(s->server, s->source);
    if (!orderly && !session_is_member(s))
        server_log_refusal(s->server, s->from,
                           s->ready ? "connection ended: %s" : "no handshake: %s", why);
    session_end(s, why);
}

/* Who is connected with many devices gets little more of this thread for it. */
static void set_budget(struct session *s)
{
    int64_t links = s->account_links->links, share = LIMIT_MEMBER_ACCOUNT_NS / links;
    channel_set_budget(s->channel, share < LIMIT_MEMBER_INPUT_NS ? share : LIMIT_MEMBER_INPUT_NS,
                       LIMIT_MEMBER_BURST_NS / links);
}

/* Of the two threads this one has the more to do. */
void session_charge(struct session *s, int64_t cost)
{
    if (s->channel != NULL)
        channel_charge(s->channel, cost / LIMIT_STORAGE_PART);
}

/* A certificate was shown: whose is it, and does it still count? */
static void become_member(struct session *s, const struct certificate_subject *subject)
{
    struct server *server = s->server;
    switch (members_judge(server->members, subject)) {
    case MEMBERS_GOOD:
        break;
    case MEMBERS_UNKNOWN:
        server_log_refusal(server, s->from, "a certificate of nobody known here (%s)",
                           subject->account);
        s->void_why = "this account or device is not known here: log in again";
        return;
    case MEMBERS_VOID:
        server_log_refusal(server, s->from, "a certificate of %s that a log out has made void",
                           subject->account);
        s->void_why = "this device has been logged out";
        return;
    case MEMBERS_DISABLED:
        server_log_refusal(server, s->from, "the account %s is disabled", subject->account);
        s->void_why = "this account has been disabled";
        return;
    }
    if (bans_find(server->bans, subject->device, clock_now(), NULL)) {
        server_log_refusal(server, s->from, "a device of %s that broke the protocol",
                           subject->account);
        s->void_why = "this device broke the protocol time and again: the tracker does not speak "
                      "to it for an hour";
        return;
    }
    struct swarm_device *peer = swarm_device(server->swarm, subject->device);
    struct session *older = swarm_owner(peer);
    if (older != NULL)
        session_end(older, "the same device has connected again");
    s->account_links = server_account_begins(server, subject->account);
    if (s->account_links == NULL) {
        server_log_refusal(server, s->from, "too many connections of %s", subject->account);
        s->void_why = "too many devices of this account are connected";
        return;
    }
    server_knock_good(server, s->source, subject->account);
    memcpy(s->account, subject->account, sizeof s->account);
    memcpy(s->device, subject->device, sizeof s->device);
    s->valid_until = subject->not_after;
    s->peer = peer;
    channel_trust(s->channel);
    set_budget(s);
    /* From a stranger's burst to a member's, less what is owed. */
    int64_t more = LIMIT_MEMBER_BURST_NS / s->account_links->links - LIMIT_STRANGER_BURST_NS;
    int64_t owed = spent_take(server->spent, s->account, LIMIT_MEMBER_BURST_NS, clock_now());
    channel_charge(s->channel, owed - more);
    announce_connect(s);
    log_debug("%s: %s has connected", s->from, s->account);
}

void session_ready(struct session *s, const struct certificate_subject *subject)
{
    s->ready = true;
    s->since = clock_now();
    if (subject != NULL)
        become_member(s, subject);
    server_handshake_ended(s->server, s->source);
}

static void on_ready(void *arg)
{
    struct session *s = arg;
    CHECK_OBJECT(s, SESSION_MAGIC);
    struct certificate_subject subject;
    bool shown = tls_peer(channel_stream(s->channel), &subject);
    session_ready(s, shown ? &subject : NULL);
}

static void on_drained(void *arg)
{
    struct session *s = arg;
    CHECK_OBJECT(s, SESSION_MAGIC);
    feed_drained(s);
}

static size_t answers_most(const struct session *s)
{
    return channel_share(s->server->queued.memory, LIMIT_ANSWERS_POOL, s->server->links,
                         LIMIT_ANSWERS_SHARE, LIMIT_ANSWERS_AHEAD);
}

static size_t queued(const struct session *s)
{
    return channel_queued(s->channel, CHANNEL_URGENT) + channel_queued(s->channel, CHANNEL_BULK);
}

static void hold_back(struct session *s, bool held)
{
    if (s->held_back == held)
        return;
    s->held_back = held;
    channel_pause(s->channel, held);
}

static void on_idle(void *arg)
{
    struct session *s = arg;
    CHECK_OBJECT(s, SESSION_MAGIC);
    if (s->channel != NULL && channel_memory(s->channel, CHANNEL_URGENT) >= answers_most(s))
        hold_back(s, true);
}

static const struct channel_events events = {.ready = on_ready,
                                             .frame = on_frame,
                                             .payload = on_payload,
                                             .idle = on_idle,
                                             .drained = on_drained,
                                             .closed = on_closed};

struct session *session_start(struct server *server, struct stream *stream, struct source *source,
                              const char *from)
{
    struct session *s = xcalloc(1, sizeof *s);
    s->magic = SESSION_MAGIC;
    s->refs = 1;
    s->server = server;
    s->source = source;
    memcpy(s->source_key, source->key, sizeof s->source_key);
    snprintf(s->from, sizeof s->from, "%s", from);
    s->since = clock_now();
    s->next = server->sessions;
    if (s->next != NULL)
        s->next->link = &s->next;
    s->link = &server->sessions;
    server->sessions = s;
    s->channel = channel_new(server->loop, stream, &events, s);
    channel_set_pool(s->channel, &server->queued);
    channel_set_budget(s->channel, LIMIT_STRANGER_INPUT_NS, LIMIT_STRANGER_BURST_NS);
    return s;
}

/* --- all of them ------------------------------------------------------------------------------------------------------ */

void sessions_revoke(struct server *server, const uint8_t (*devices)[DEVICE_ID_SIZE], size_t count,
                     const struct session *but)
{
    for (size_t i = 0; i < count; i++) {
        struct swarm_device *peer = swarm_device_find(server->swarm, devices[i]);
        struct session *s = peer == NULL ? NULL : swarm_owner(peer);
        if (s != NULL && s != but)
            session_end(s, "its certificate is void from now on");
    }
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        if (session_is_member(s) && s->greeted && s != but)
            push_revoked(s, devices, count);
}

/* Whether it has been sent bytes for long and took none of them. */
static bool is_stalled(struct session *s, int64_t now)
{
    uint64_t out = channel_bytes_out(s->channel);
    if (out != s->taken || queued(s) == 0) {
        s->taken = out;
        s->taken_at = now;
    }
    return now - s->taken_at > LIMIT_STALL_NS;
}

static const char *expired(struct session *s, int64_t now)
{
    if (!s->ready)
        return NULL; /* the handshake has its own time limit */
    if (!s->greeted && now - s->since > LIMIT_HELLO_NS)
        return "no Hello in time";
    if (!session_is_member(s) && now - s->since > LIMIT_LOGIN_NS)
        return "no log in in time";
    if (now - channel_last_heard(s->channel) > LIMIT_TRACKER_IDLE_NS)
        return "silent for too long";
    if (is_stalled(s, now))
        return "it does not read what it is sent";
    /* Who is still a member has had it renewed, or comes again with a new one. */
    if (session_is_member(s) && wall_seconds() > s->valid_until + LIMIT_CERTIFICATE_GRACE_S)
        return "the certificate has ended";
    return NULL;
}

void sessions_sweep(struct server *server, int64_t now)
{
    struct session *next;
    for (struct session *s = server->sessions; s != NULL; s = next) {
        next = s->next;
        if (s->settle_at != 0 && now >= s->settle_at && session_is_member(s)) {
            s->settle_at = 0;
            swarm_settle(server->swarm, s->peer);
        }
        if (s->ready && channel_memory(s->channel, CHANNEL_URGENT) < answers_most(s) / 2)
            hold_back(s, false);
        if (session_is_member(s) && s->account_links != NULL)
            set_budget(s);
        rights_sweep(s, now);
        const char *why = expired(s, now);
        if (why != NULL)
            session_end(s, why);
    }
}

#define ROOM_EVERY (50 * NS_PER_MS) /* looking for one costs a walk over all sessions */

bool sessions_make_room(struct server *server, int64_t now)
{
    struct session *victim = NULL;
    if (now - server->evicted_at < ROOM_EVERY)
        return false;
    server->evicted_at = now;
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        if (!s->ready && now - s->since > LIMIT_HANDSHAKE_FAIR_NS &&
            (victim == NULL || s->source->half_open > victim->source->half_open ||
             (s->source->half_open == victim->source->half_open && s->since < victim->since)))
            victim = s;
    if (victim == NULL)
        return false;
    server_log_refusal(server, victim->from, "its handshake takes long, and others wait");
    server_knock_bad(server, victim->source);
    session_end(victim, "others wait for its place");
    return true;
}
