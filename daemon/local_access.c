/* p2pctl's requests about rights and groups: the tracker decides; here paths become folders' numbers and back.
 *
 * Owns the questions under way, and those that wait until the tracker has heard of a folder that was made a moment
 * ago. Thread: local. */
#include "daemon/local_private.h"

#include <errno.h>

#include "base/clock.h"
#include "base/mem.h"
#include "daemon/session.h"

#define LOOK_NS (20 * NS_PER_MS) /* how often a new folder is looked at */
#define WAIT_NS (10 * NS_PER_S)  /* how long it is waited for */

struct access_cookie {
    struct access_cookie *next; /* of those that wait */
    struct reply reply;
    void (*answer)(struct local *, struct access_cookie *, const ProtobufCMessage *);
    struct session_ask ask;
    uint64_t ino, folder;
    int64_t until;
    Tracker__Grant *grant;
    Tracker__AccessRequest *access;
};

static void cookie_free(struct access_cookie *cookie)
{
    if (cookie->grant != NULL)
        free(cookie->grant->who);
    free(cookie->grant);
    free(cookie->access);
    free(cookie);
}

/* Sends it; the cookie comes back with the answer. */
static void ask(struct local *l, struct access_cookie *cookie, const ProtobufCMessage *message)
{
    cookie->ask.descriptor = message->descriptor;
    cookie->ask.size = protobuf_c_message_get_packed_size(message);
    cookie->ask.packed = xmalloc(cookie->ask.size + 1);
    protobuf_c_message_pack(message, cookie->ask.packed);
    cookie->ask.cookie = cookie;
    session_ask(l->daemon->session, &cookie->ask);
}

void access_answer(struct local *l, struct session_answer *answer)
{
    struct access_cookie *cookie = answer->cookie;

    if (l->stopped) {
        /* nobody is there to be told */
    } else if (answer->error != 0) {
        local_error(l, cookie->reply, answer->error, "%s",
                    answer->text == NULL ? "" : answer->text);
    } else {
        cookie->answer(l, cookie, answer->message);
    }
    cookie_free(cookie);
    session_answer_free(answer);
}

/* --- folders -------------------------------------------------------------------------------------------- */

/* True if the request is on its way or has been answered; false: the tracker has not heard of the folder. */
static bool ask_about(struct local *l, struct access_cookie *cookie)
{
    const struct node *node = catalogue_node(l->catalogue, cookie->ino);

    if (node == NULL) {
        local_error(l, cookie->reply, ENOENT, "the folder has gone");
        cookie_free(cookie);
        return true;
    }
    cookie->folder = node->ino == INO_ROOT ? 1 : node->id;
    if (cookie->folder == 0)
        return false;
    if (cookie->grant != NULL) {
        cookie->grant->folder = cookie->folder;
        ask(l, cookie, &cookie->grant->base);
    } else {
        cookie->access->folder = cookie->folder;
        ask(l, cookie, &cookie->access->base);
    }
    return true;
}

void access_look(void *arg)
{
    struct local *l = arg;
    struct access_cookie **at = &l->folders_awaited;

    while (*at != NULL) {
        struct access_cookie *cookie = *at, *next = cookie->next;
        if (ask_about(l, cookie)) {
            *at = next;
        } else if (clock_now() > cookie->until) {
            *at = next;
            local_error(l, cookie->reply, EAGAIN, "the tracker has not heard of this folder yet");
            cookie_free(cookie);
        } else {
            at = &cookie->next;
        }
    }
    if (l->folders_awaited != NULL)
        timer_set(l->access_timer, LOOK_NS);
}

/* The question about the folder at that path; NULL: answered. */
static struct access_cookie *cookie_for(struct local *l, struct reply reply, const char *path)
{
    const struct node *node = ctl_resolve(l, reply, path);

    if (node == NULL)
        return NULL;
    if (node->kind != NODE_DIRECTORY) {
        local_error(l, reply, ENOTDIR, "rights are given in folders: %s is none", path);
        return NULL;
    }
    struct access_cookie *cookie = xcalloc(1, sizeof *cookie);
    cookie->reply = reply;
    cookie->ino = node->ino;
    cookie->until = clock_now() + WAIT_NS;
    return cookie;
}

static void ask_or_wait(struct local *l, struct access_cookie *cookie)
{
    if (ask_about(l, cookie))
        return;
    cookie->next = l->folders_awaited;
    l->folders_awaited = cookie;
    if (!timer_pending(l->access_timer))
        timer_set(l->access_timer, LOOK_NS);
}

/* --- grant ---------------------------------------------------------------------------------------------- */

static void granted(struct local *l, struct access_cookie *cookie, const ProtobufCMessage *message)
{
    names_send_text(l, cookie->reply, ((const Tracker__Granted *)(const void *)message)->note);
}

void access_grant(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Grant *m = message;
    struct access_cookie *cookie = cookie_for(l, reply, m->path);

    if (cookie == NULL)
        return;
    cookie->answer = granted;
    cookie->ask.type = TRACKER__TRACKER_TYPE__TRACKER_GRANT;
    cookie->ask.answer_type = TRACKER__TRACKER_TYPE__TRACKER_GRANTED;
    cookie->ask.answer = &tracker__granted__descriptor;
    cookie->grant = xcalloc(1, sizeof *cookie->grant);
    tracker__grant__init(cookie->grant);
    cookie->grant->who = xstrdup(m->who);
    cookie->grant->level = (Tracker__Level)m->level;
    cookie->grant->inherit = m->inherit;
    ask_or_wait(l, cookie);
}

/* --- access --------------------------------------------------------------------------------------------- */

static char *kind_text(Tracker__RuleKind kind)
{
    static char account[] = "account", group[] = "group", everyone[] = "everyone";

    return kind == TRACKER__RULE_KIND__RULE_ACCOUNT ? account
           : kind == TRACKER__RULE_KIND__RULE_GROUP ? group
                                                    : everyone;
}

static void shown(struct local *l, struct access_cookie *cookie, const ProtobufCMessage *message)
{
    const Tracker__Access *m = (const Tracker__Access *)(const void *)message;
    const struct node *node = catalogue_node(l->catalogue, cookie->ino);
    Local__Access answer = LOCAL__ACCESS__INIT;
    Local__Rule *rules = xcalloc(m->n_rules + 1, sizeof *rules);
    Local__Rule **list = xcalloc(m->n_rules + 1, sizeof *list);
    static char everyone[] = "everyone";

    answer.path = node == NULL ? NULL : catalogue_path(l->catalogue, node);
    if (answer.path == NULL)
        answer.path = xstrdup("");
    answer.own = (Local__Level)m->own;
    for (size_t i = 0; i < m->n_rules; i++) {
        const struct node *folder = catalogue_with_id(l->catalogue, m->rules[i]->folder);
        local__rule__init(&rules[i]);
        rules[i].path = folder == NULL ? NULL : catalogue_path(l->catalogue, folder);
        if (rules[i].path == NULL)
            rules[i].path = xstrdup("");
        rules[i].kind = kind_text(m->rules[i]->kind);
        rules[i].who = m->rules[i]->who[0] == '\0' ? everyone : m->rules[i]->who;
        rules[i].level = (Local__Level)m->rules[i]->level;
        rules[i].inherited = m->rules[i]->folder != cookie->folder;
        list[i] = &rules[i];
    }
    answer.n_rules = m->n_rules;
    answer.rules = list;
    local_send(l, cookie->reply, TYPE(ACCESS_IS), &answer.base);
    for (size_t i = 0; i < m->n_rules; i++)
        free(rules[i].path);
    free(answer.path);
    free(rules);
    free(list);
}

void access_show(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    struct access_cookie *cookie =
        cookie_for(l, reply, ((const Local__AccessRequest *)message)->path);

    if (cookie == NULL)
        return;
    cookie->answer = shown;
    cookie->ask.type = TRACKER__TRACKER_TYPE__TRACKER_ACCESS;
    cookie->ask.answer_type = TRACKER__TRACKER_TYPE__TRACKER_ACCESS_IS;
    cookie->ask.answer = &tracker__access__descriptor;
    cookie->access = xcalloc(1, sizeof *cookie->access);
    tracker__access_request__init(cookie->access);
    ask_or_wait(l, cookie);
}

/* --- groups --------------------------------------------------------------------------------------------- */

static void group_changed(struct local *l, struct access_cookie *cookie,
                          const ProtobufCMessage *message)
{
    local_done(l, cookie->reply);
}

void access_group(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Group *m = message;
    struct access_cookie *cookie = xcalloc(1, sizeof *cookie);
    Tracker__Group request = TRACKER__GROUP__INIT;

    cookie->reply = reply;
    cookie->answer = group_changed;
    cookie->ask.type = TRACKER__TRACKER_TYPE__TRACKER_GROUP;
    cookie->ask.answer_type = TRACKER__TRACKER_TYPE__TRACKER_DONE;
    cookie->ask.answer = &tracker__done__descriptor;
    request.verb = (Tracker__GroupVerb)m->verb;
    request.name = m->name;
    request.account = m->account;
    ask(l, cookie, &request.base);
}

static void groups_known(struct local *l, struct access_cookie *cookie,
                         const ProtobufCMessage *message)
{
    const Tracker__Groups *m = (const Tracker__Groups *)(const void *)message;
    Local__Groups answer = LOCAL__GROUPS__INIT;
    Local__GroupMembers *groups = xcalloc(m->n_groups + 1, sizeof *groups);
    Local__GroupMembers **list = xcalloc(m->n_groups + 1, sizeof *list);

    for (size_t i = 0; i < m->n_groups; i++) {
        local__group_members__init(&groups[i]);
        groups[i].name = m->groups[i]->name;
        groups[i].n_accounts = m->groups[i]->n_accounts;
        groups[i].accounts = m->groups[i]->accounts;
        list[i] = &groups[i];
    }
    answer.n_groups = m->n_groups;
    answer.groups = list;
    local_send(l, cookie->reply, TYPE(GROUPS_ARE), &answer.base);
    free(groups);
    free(list);
}

void access_groups(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    struct access_cookie *cookie = xcalloc(1, sizeof *cookie);
    Tracker__GroupsRequest request = TRACKER__GROUPS_REQUEST__INIT;

    cookie->reply = reply;
    cookie->answer = groups_known;
    cookie->ask.type = TRACKER__TRACKER_TYPE__TRACKER_GROUPS;
    cookie->ask.answer_type = TRACKER__TRACKER_TYPE__TRACKER_GROUPS_ARE;
    cookie->ask.answer = &tracker__groups__descriptor;
    ask(l, cookie, &request.base);
}

/* --- keys ----------------------------------------------------------------------------------------------- */

void access_keys(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const char *accept = ((const Local__KeysRequest *)message)->accept;
    struct reply *cookie = xmemdup(&reply, sizeof reply);

    session_keys(l->daemon->session, accept[0] == '\0' ? NULL : accept, cookie);
}

void access_keys_known(struct local *l, struct known_keys *keys)
{
    static char states[][9] = {"first", "new", "accepted"};
    struct reply *reply = keys->cookie;
    Local__Keys answer = LOCAL__KEYS__INIT;
    Local__Key *list = xcalloc(keys->count + 1, sizeof *list);
    Local__Key **pointers = xcalloc(keys->count + 1, sizeof *pointers);

    for (size_t i = 0; i < keys->count; i++) {
        local__key__init(&list[i]);
        list[i].account = keys->keys[i].account;
        list[i].device = keys->keys[i].device;
        list[i].first_seen = keys->keys[i].first;
        list[i].state = states[keys->keys[i].state];
        pointers[i] = &list[i];
    }
    answer.n_keys = keys->count;
    answer.keys = pointers;
    answer.entries_refused = keys->refused;
    if (!l->stopped)
        local_send(l, *reply, TYPE(KEYS_ARE), &answer.base);
    free(list);
    free(pointers);
    free(reply);
    known_keys_free(keys);
}

void access_free(struct local *l)
{
    while (l->folders_awaited != NULL) {
        struct access_cookie *next = l->folders_awaited->next;
        cookie_free(l->folders_awaited);
        l->folders_awaited = next;
    }
}
