/* p2pctl's requests about accounts, and which swarm the tree belongs to.
 *
 * Owns the answers of log ins that wait for the tree. Thread: local. The session does the work and answers; what it says
 * about who and where this member is, is remembered for greetings and status. A tree is of one swarm (its CA): another one
 * is entered only when nobody is logged in and nothing waits to be published.
 *
 * Who has logged in mounts next, and expects to see what is there. So where nothing of the swarm is known yet the answer
 * waits until the tracker has told all of it, but for no longer than TREE_NS: then the rest comes in under the mount. */
#include "daemon/local_private.h"

#include <errno.h>

#include "base/clock.h"
#include "base/hex.h"
#include "base/mem.h"
#include "base/swarm_url.h"
#include "crypto/random.h"
#include "daemon/session.h"
#include "proto/message.h"

#define TREE_NS (5 * NS_PER_S)

struct account_cookie {
    struct reply reply;
    enum account_verb verb;
};

/* A log in that is done, and not answered. */
struct arrival {
    struct arrival *next;
    struct reply reply;
    struct account_answer *answer;
    int64_t deadline;
};

static void ask_session(struct local *l, struct reply reply, struct account_request *request)
{
    struct account_cookie *cookie = xcalloc(1, sizeof *cookie);

    cookie->reply = reply;
    cookie->verb = request->verb;
    request->cookie = cookie;
    session_account(l->daemon->session, request);
}

static struct account_request *request_new(enum account_verb verb)
{
    struct account_request *request = xcalloc(1, sizeof *request);

    request->verb = verb;
    return request;
}

static uint8_t *copy_secret(ProtobufCBinaryData data, size_t *size)
{
    *size = data.len;
    uint8_t *copy = xmemdup(data.data, data.len);
    secret_wipe(data.data, data.len);
    return copy;
}

void ctl_ask_self(struct local *l)
{
    ask_session(l, (struct reply){0}, request_new(ACCOUNT_WHOAMI));
}

/* Another swarm than the one the tree was made from: only with nothing under way, and the tree
 * begins anew. False: answered. */
static bool enter_swarm(struct local *l, struct reply reply, const char *text)
{
    struct swarm_url url;
    const char *fault;
    char ca[65];

    if (!swarm_url_parse(&url, text, &fault)) {
        local_error(l, reply, EINVAL, "the address %s", fault);
        return false;
    }
    hex_encode(ca, url.ca, sizeof url.ca);
    if (strcmp(ca, catalogue_swarm(l->catalogue)) == 0)
        return true;
    if (local_is_visible(l) && catalogue_swarm(l->catalogue)[0] != '\0') {
        local_error(l, reply, EBUSY, "logged in to another swarm: log out first");
        return false;
    }
    if (catalogue_pending(l->catalogue) > 0 || l->workings != NULL) {
        local_error(l, reply, EBUSY,
                    "%zu changes for the other swarm are not published yet: log in there first",
                    catalogue_pending(l->catalogue));
        return false;
    }
    if (l->mounts != NULL)
        for (const struct mount *m = l->mounts; m != NULL; m = m->hh.next)
            if (HASH_COUNT(m->opened) > 0) {
                local_error(l, reply, EBUSY, "files of the other swarm are open under %s",
                            m->mountpoint);
                return false;
            }
    push_all_names(l);
    int error = catalogue_reset(l->catalogue, ca);
    if (error != 0) {
        local_error(l, reply, error, "state.db cannot be written");
        return false;
    }
    const uint8_t nothing[GENERATION_SIZE] = {0};
    session_catalogue_at(l->daemon->session, nothing, 0);
    return true;
}

void ctl_register(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Register *m = message;

    if (!enter_swarm(l, reply, m->url))
        return;
    struct account_request *request = request_new(ACCOUNT_REGISTER);
    request->url = xstrdup(m->url);
    request->name = xstrdup(m->name);
    request->email = xstrdup(m->email);
    request->password = copy_secret(m->password, &request->password_size);
    ask_session(l, reply, request);
}

void ctl_login(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Login *m = message;

    if (!enter_swarm(l, reply, m->url))
        return;
    struct account_request *request = request_new(ACCOUNT_LOGIN);
    request->url = xstrdup(m->url);
    request->name = xstrdup(m->name);
    request->password = copy_secret(m->password, &request->password_size);
    if (m->code[0] != '\0') {
        request->code = xstrdup(m->code);
        secret_wipe(m->code, strlen(m->code));
    }
    ask_session(l, reply, request);
}

void ctl_tracker_call(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__TrackerCall *m = message;
    struct account_request *request = request_new(ACCOUNT_CALL);

    request->url = xstrdup(m->url);
    request->call_type = m->type;
    request->call = copy_secret(m->message, &request->call_size);
    ask_session(l, reply, request);
}

void ctl_logout(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    ask_session(l, reply, request_new(ACCOUNT_LOGOUT));
}

void ctl_whoami(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    struct account_request *request = request_new(ACCOUNT_WHOAMI);

    request->ask_tracker = ((const Local__Whoami *)message)->ask_tracker;
    ask_session(l, reply, request);
}

void ctl_password(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Password *m = message;
    struct account_request *request = request_new(ACCOUNT_PASSWORD);

    request->password = copy_secret(m->old, &request->password_size);
    request->new_password = copy_secret(m->new_, &request->new_password_size);
    request->logout_others = m->logout_others;
    ask_session(l, reply, request);
}

void ctl_invite(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Invite *m = message;
    struct account_request *request = request_new(ACCOUNT_INVITE);

    request->admin = m->admin;
    request->uses = m->uses;
    request->lifetime = m->lifetime;
    ask_session(l, reply, request);
}

static char *or_empty(const char *text)
{
    return message_text(text == NULL ? "" : text);
}

static void add_devices(Local__Account *message, const struct account_answer *a,
                        Local__Device *devices, Local__Device **pointers)
{
    for (size_t i = 0; a->account != NULL && i < a->account->n_devices; i++) {
        const Tracker__Device *from = a->account->devices[i];
        Local__Device *to = &devices[i];
        *to = (Local__Device)LOCAL__DEVICE__INIT;
        char *id = xmalloc(2 * from->id.len + 1);
        hex_encode(id, from->id.data, from->id.len);
        to->id = id;
        to->machine = from->machine;
        to->last_seen = from->last_seen;
        to->connected = from->connected;
        to->logged_out = from->logged_out;
        to->this_one = a->device != NULL && strcmp(a->device, id) == 0;
        pointers[message->n_devices++] = to;
    }
    message->devices = pointers;
}

static void send_account(struct local *l, struct reply reply, const struct account_answer *a)
{
    Local__Account message = LOCAL__ACCOUNT__INIT;
    size_t count = a->account == NULL ? 0 : a->account->n_devices;
    Local__Device *devices = xcalloc(count + 1, sizeof *devices);
    Local__Device **pointers = xcalloc(count + 1, sizeof *pointers);

    message.name = or_empty(a->name);
    message.email = or_empty(a->account == NULL ? NULL : a->account->email);
    message.admin = a->account != NULL ? a->account->admin : a->admin;
    message.email_verified = a->account != NULL && a->account->email_verified;
    message.second_factor = a->account != NULL && a->account->second_factor;
    message.url = or_empty(a->url);
    message.swarm = or_empty(a->swarm);
    message.device = or_empty(a->device);
    message.certificate_until = a->certificate_until;
    message.note = or_empty(a->text);
    add_devices(&message, a, devices, pointers);
    local_send(l, reply, TYPE(ACCOUNT), &message.base);
    for (size_t i = 0; i < message.n_devices; i++)
        free(pointers[i]->id);
    free(devices);
    free(pointers);
}

static void send_call(struct local *l, struct reply reply, const struct account_answer *a)
{
    Local__TrackerAnswer message = LOCAL__TRACKER_ANSWER__INIT;

    message.type = a->call_type;
    message.message.data = a->call;
    message.message.len = a->call_size;
    local_send(l, reply, TYPE(TRACKER_ANSWER), &message.base);
}

/* What is known here now; an answer to p2pctl, or to ourselves. */
static void learn(struct local *l, const struct account_answer *a)
{
    struct swarm_url url;
    const char *fault;
    char ca[65];

    free(l->url);
    l->url = a->url == NULL ? NULL : xstrdup(a->url);
    if (a->swarm != NULL) {
        free(l->swarm_name);
        l->swarm_name = xstrdup(a->swarm);
    }
    if (a->url == NULL || catalogue_swarm(l->catalogue)[0] != '\0' ||
        !swarm_url_parse(&url, a->url, &fault))
        return;
    hex_encode(ca, url.ca, sizeof url.ca);
    catalogue_set_swarm(l->catalogue, ca);
}

/* --- log ins that wait for the tree ------------------------------------------------------------ */

static bool knows_tree(const struct local *l)
{
    uint8_t generation[GENERATION_SIZE];
    uint64_t seq;

    return catalogue_position(l->catalogue, generation, &seq);
}

static void arrive(struct local *l, struct reply reply, struct account_answer *answer)
{
    struct arrival *arrival = xcalloc(1, sizeof *arrival);

    arrival->reply = reply;
    arrival->answer = answer;
    arrival->deadline = clock_now() + TREE_NS;
    arrival->next = l->arrivals;
    l->arrivals = arrival;
}

void ctl_account_look(struct local *l, int64_t now)
{
    bool known = l->arrivals != NULL && knows_tree(l);

    for (struct arrival **at = &l->arrivals; *at != NULL;) {
        struct arrival *arrival = *at;
        if (!known && now < arrival->deadline) {
            at = &arrival->next;
            continue;
        }
        *at = arrival->next;
        send_account(l, arrival->reply, arrival->answer);
        account_answer_free(arrival->answer);
        free(arrival);
    }
}

void ctl_account_free(struct local *l)
{
    while (l->arrivals != NULL) {
        struct arrival *arrival = l->arrivals;
        l->arrivals = arrival->next;
        account_answer_free(arrival->answer);
        free(arrival);
    }
}

void ctl_account_answer(struct local *l, struct account_answer *a)
{
    struct account_cookie *cookie = a->cookie;
    bool enters = cookie->verb == ACCOUNT_REGISTER || cookie->verb == ACCOUNT_LOGIN;

    learn(l, a);
    if (enters && a->error == 0 && a->name != NULL && !knows_tree(l)) {
        arrive(l, cookie->reply, a);
        free(cookie);
        return;
    }
    if (a->error != 0)
        local_error(l, cookie->reply, a->error, "%s", a->text == NULL ? "" : a->text);
    else if (cookie->verb == ACCOUNT_INVITE)
        names_send_text(l, cookie->reply, or_empty(a->text));
    else if (cookie->verb == ACCOUNT_LOGOUT || cookie->verb == ACCOUNT_PASSWORD)
        local_done(l, cookie->reply);
    else if (cookie->verb == ACCOUNT_CALL)
        send_call(l, cookie->reply, a);
    else if (a->name == NULL && (cookie->verb != ACCOUNT_REGISTER || a->text == NULL))
        local_error(l, cookie->reply, ENOENT, "nobody is logged in");
    else
        send_account(l, cookie->reply, a);
    free(cookie);
    account_answer_free(a);
}
