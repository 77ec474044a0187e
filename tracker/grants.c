/* What members ask about rights: grant, revoke, access, groups.
 *
 *   Grant, Group             storage: may they? rows, audit -> loop: the mirror, who is concerned -> answer
 *   AccessRequest, Groups    storage -> answer
 *
 * The loop's thread, but for functions named _run. What rules mean is access.h's; what follows from a change is
 * rights.c's. */
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "tracker/server_private.h"

#define EVERYONE "everyone"

struct ask {
    struct storage_job job;
    struct session *session;
    uint32_t id;
    char account[ACCOUNT_BYTES_MAX + 1];
    uint8_t device[DEVICE_ID_SIZE];
    bool admin;
    void (*answer)(struct ask *);

    Tracker__FaultCode fault; /* 0: none */
    const char *why;
    char note[ACCOUNT_BYTES_MAX + 160];

    /* Grant, Access */
    struct storage_rule rule;
    bool inherit;
    bool set; /* the rule is there now, else it is not */
    enum access_level own;
    struct storage_rule *rules;
    size_t rules_count;

    /* Group */
    Tracker__GroupVerb verb;
    char group[ACCOUNT_BYTES_MAX + 1], member[ACCOUNT_BYTES_MAX + 1];
    char (*names)[2][ACCOUNT_BYTES_MAX + 1]; /* group, and account or "" */
    size_t names_count;
};

static struct ask *ask_of(struct storage_job *job)
{
    return (struct ask *)(void *)job;
}

static void fail(struct ask *a, Tracker__FaultCode fault, const char *why)
{
    if (a->fault == 0) {
        a->fault = fault;
        a->why = why;
    }
}

static void audit(struct storage *storage, const struct ask *a, const char *what,
                  const char *detail)
{
    struct storage_event event = {.when = wall_seconds(),
                                  .what = what,
                                  .account = a->account,
                                  .device = a->device,
                                  .source = a->session->from,
                                  .detail = detail};
    storage_audit(storage, &event);
}

static void ask_done(struct storage_job *job)
{
    struct ask *a = ask_of(job);
    session_charge(a->session, job->cost);
    if (job->failed)
        session_fault(a->session, a->id, TRACKER__FAULT_CODE__FAULT_INTERNAL,
                      "the tracker cannot use its database", 0);
    else if (a->fault != 0)
        session_fault(a->session, a->id, a->fault, a->why, 0);
    else
        a->answer(a);
    session_release(a->session);
    free(a->rules);
    free(a->names);
    free(a);
}

static struct ask *ask_new(struct session *s, uint32_t id,
                           void (*run)(struct storage_job *, struct storage *), bool writes,
                           void (*answer)(struct ask *))
{
    const struct member_account *account = members_account(s->server->members, s->account);
    struct ask *a = xcalloc(1, sizeof *a);
    a->job = (struct storage_job){.run = run, .done = ask_done, .writes = writes};
    a->session = s;
    a->id = id;
    a->answer = answer;
    a->admin = account != NULL && account->admin;
    memcpy(a->account, s->account, sizeof a->account);
    memcpy(a->device, s->device, sizeof a->device);
    session_keep(s);
    return a;
}

/* --- grant, revoke -------------------------------------------------------------------------------------- */

/* Is it a folder of which the asker may know? Leaves what it may do there in a->own. */
static bool find_folder(struct ask *a, struct storage *storage)
{
    struct storage_entry entry = {.kind = TRACKER__KIND__KIND_DIRECTORY};
    bool found =
        a->rule.folder == STORAGE_ROOT_ENTRY || storage_entry_get(storage, a->rule.folder, &entry);
    found = found && !entry.gone && entry.kind == TRACKER__KIND__KIND_DIRECTORY;
    storage_entry_clear(&entry);
    a->own = a->admin ? ACCESS_MANAGE
                      : (enum access_level)storage_access(storage, a->account, a->rule.folder);
    if (!found || a->own < ACCESS_READ)
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such folder");
    return a->fault == 0;
}

struct look {
    const struct ask *ask;
    bool met;
    uint8_t level;
};

static void look_above(const struct storage_rule *rule, void *arg)
{
    struct look *look = arg;
    if (look->met || rule->kind != look->ask->rule.kind ||
        strcmp(rule->who, look->ask->rule.who) != 0)
        return;
    look->met = true;
    look->level = rule->level;
}

/* After their own rule went: would they still have access there, by a rule above or by others they belong to? */
static bool still_has(struct ask *a, struct storage *storage)
{
    if (a->rule.kind == ACCESS_ACCOUNT)
        return storage_access(storage, a->rule.who, a->rule.folder) > ACCESS_NONE;
    struct look look = {.ask = a};
    storage_rules_above(storage, a->rule.folder, look_above, &look);
    return look.met && look.level > ACCESS_NONE;
}

/* The folder's path; of one that is too long only the end. */
static void path_of(struct storage *storage, uint64_t folder, char *out, size_t size)
{
    char *at = out + size - 1;

    *at = '\0';
    for (unsigned depth = 0; folder != STORAGE_ROOT_ENTRY && depth < NAME_DEPTH_MAX; depth++) {
        struct storage_entry entry = {0};
        bool fits =
            storage_entry_get(storage, folder, &entry) && (size_t)(at - out) > strlen(entry.name);
        if (fits) {
            at -= strlen(entry.name) + 1;
            *at = '/';
            memcpy(at + 1, entry.name, strlen(entry.name));
        }
        folder = fits ? entry.parent : STORAGE_ROOT_ENTRY;
        storage_entry_clear(&entry);
    }
    if (*at == '\0')
        *--at = '/';
    memmove(out, at, strlen(at) + 1);
}

/* "ben: read in /videos" */
static void audit_grant(struct storage *storage, const struct ask *a)
{
    static const char *const names[] = {"none", "read", "write", "manage"};
    char detail[LIMIT_EMAIL + 1], path[LIMIT_EMAIL - ACCOUNT_BYTES_MAX - 16];

    path_of(storage, a->rule.folder, path, sizeof path);
    snprintf(detail, sizeof detail, "%s: %s in %s",
             a->rule.kind == ACCESS_EVERYONE ? EVERYONE : a->rule.who,
             a->inherit ? "inherited" : names[a->rule.level], path);
    audit(storage, a, a->rule.level > ACCESS_NONE || a->inherit ? "grant" : "revoke", detail);
}

static void grant_run(struct storage_job *job, struct storage *storage)
{
    struct ask *a = ask_of(job);
    struct storage_account account;
    if (!find_folder(a, storage))
        return;
    if (a->own < ACCESS_MANAGE) {
        fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
             "only who manages the folder gives rights in it");
        return;
    }
    if (strcmp(a->rule.who, EVERYONE) == 0) {
        a->rule.kind = ACCESS_EVERYONE;
        a->rule.who[0] = '\0';
    } else if (storage_account_get(storage, a->rule.who, &account)) {
        a->rule.kind = ACCESS_ACCOUNT;
        if (account.admin && a->rule.level < ACCESS_MANAGE && !a->inherit)
            snprintf(a->note, sizeof a->note, "%s is an admin, and may do everything anyway",
                     a->rule.who);
    } else if (storage_group_get(storage, a->rule.who)) {
        a->rule.kind = ACCESS_GROUP;
    } else {
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account or group");
        return;
    }
    struct storage_rule old = a->rule;
    if (!storage_rule_get(storage, &old) &&
        storage_rule_count(storage, a->rule.folder) >= LIMIT_FOLDER_RULES) {
        fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT, "the folder has too many rules: use groups");
        return;
    }
    storage_rule_drop(storage, &a->rule);
    a->set = a->inherit ? false : a->rule.level > ACCESS_NONE || still_has(a, storage);
    if (a->set)
        storage_rule_put(storage, &a->rule);
    storage_renew(storage, a->rule.kind == ACCESS_ACCOUNT ? a->rule.who : "");
    audit_grant(storage, a);
}

static void granted(struct ask *a)
{
    struct server *server = a->session->server;
    struct access *access = rights_access(server->rights);
    bool plain = access_is_plain(access);
    if (a->set)
        access_rule_set(access, a->rule.folder, (enum access_kind)a->rule.kind, a->rule.who,
                        (enum access_level)a->rule.level);
    else
        access_rule_clear(access, a->rule.folder, (enum access_kind)a->rule.kind, a->rule.who);
    log_info("%s: %s has changed the access of %s to folder %llu", a->session->from, a->account,
             a->rule.kind == ACCESS_EVERYONE ? EVERYONE : a->rule.who,
             (unsigned long long)a->rule.folder);
    Tracker__Granted message = TRACKER__GRANTED__INIT;
    message.note = a->note;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_GRANTED, &message.base);
    if (plain && access_is_plain(access))
        return;
    rights_changed(server, a->rule.kind == ACCESS_ACCOUNT ? a->rule.who : "");
    if (!a->admin && a->session->channel != NULL)
        channel_charge(a->session->channel, LIMIT_GRANT_NS);
}

static bool take_who(char to[ACCOUNT_BYTES_MAX + 1], const char *name)
{
    if (account_name_fault(name) != NULL)
        return false;
    snprintf(to, ACCOUNT_BYTES_MAX + 1, "%s", name);
    return true;
}

const char *grants_grant(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Grant *m = message;
    if (m->level > TRACKER__LEVEL__LEVEL_MANAGE ||
        (m->level < TRACKER__LEVEL__LEVEL_NONE && !m->inherit)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED, "an unknown right", 0);
        return NULL;
    }
    struct ask *a = ask_new(s, id, grant_run, true, granted);
    a->rule.folder = m->folder;
    a->rule.level = m->inherit ? 0 : (uint8_t)(m->level - 1);
    a->inherit = m->inherit;
    if (!take_who(a->rule.who, m->who))
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account or group");
    if (a->fault != 0)
        ask_done(&a->job);
    else
        storage_queue_post(s->server->queue, &a->job);
    return NULL;
}

/* --- access --------------------------------------------------------------------------------------------- */

/* The nearest rule for each counts; what stands above it for the same one does not. */
static void add_rule(const struct storage_rule *rule, void *arg)
{
    struct ask *a = arg;
    for (size_t i = 0; i < a->rules_count; i++)
        if (a->rules[i].kind == rule->kind && strcmp(a->rules[i].who, rule->who) == 0)
            return;
    if (a->rules_count < LIMIT_RULES_SHOWN)
        a->rules[a->rules_count++] = *rule;
}

static void access_run(struct storage_job *job, struct storage *storage)
{
    struct ask *a = ask_of(job);
    if (!find_folder(a, storage))
        return;
    a->rules = xcalloc(LIMIT_RULES_SHOWN, sizeof *a->rules);
    storage_rules_above(storage, a->rule.folder, add_rule, a);
}

static void access_known(struct ask *a)
{
    Tracker__Access message = TRACKER__ACCESS__INIT;
    Tracker__Rule *rules = xcalloc(a->rules_count + 1, sizeof *rules);
    Tracker__Rule **list = xcalloc(a->rules_count + 1, sizeof *list);
    for (size_t i = 0; i < a->rules_count; i++) {
        tracker__rule__init(&rules[i]);
        rules[i].folder = a->rules[i].folder;
        rules[i].kind = (Tracker__RuleKind)a->rules[i].kind;
        rules[i].who = a->rules[i].who;
        rules[i].level = (Tracker__Level)(a->rules[i].level + 1);
        list[i] = &rules[i];
    }
    message.n_rules = a->rules_count;
    message.rules = list;
    message.own = (Tracker__Level)(a->own + 1);
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_ACCESS_IS, &message.base);
    free(rules);
    free(list);
}

const char *grants_access(struct session *s, uint32_t id, const void *message)
{
    struct ask *a = ask_new(s, id, access_run, false, access_known);
    a->rule.folder = ((const Tracker__AccessRequest *)message)->folder;
    storage_queue_post(s->server->queue, &a->job);
    return NULL;
}

/* --- groups --------------------------------------------------------------------------------------------- */

static void group_create(struct ask *a, struct storage *storage)
{
    struct storage_account account;
    if (storage_group_get(storage, a->group) || storage_account_get(storage, a->group, &account) ||
        strcmp(a->group, EVERYONE) == 0)
        fail(a, TRACKER__FAULT_CODE__FAULT_EXISTS, "there is an account or a group of that name");
    else if (storage_group_count(storage) >= LIMIT_GROUPS)
        fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT, "there are too many groups");
    else
        storage_group_add(storage, a->group);
}

static void group_add(struct ask *a, struct storage *storage)
{
    struct storage_account account;
    if (!storage_account_get(storage, a->member, &account))
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account");
    else if (storage_groups_of(storage, a->member) >= LIMIT_ACCOUNT_GROUPS)
        fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT, "the account is in too many groups");
    else
        storage_group_join(storage, a->group, a->member);
}

static void group_run(struct storage_job *job, struct storage *storage)
{
    static const char *const verbs[] = {[TRACKER__GROUP_VERB__GROUP_CREATE] = "create",
                                        [TRACKER__GROUP_VERB__GROUP_DELETE] = "delete",
                                        [TRACKER__GROUP_VERB__GROUP_ADD] = "add to",
                                        [TRACKER__GROUP_VERB__GROUP_REMOVE] = "remove from"};
    struct ask *a = ask_of(job);
    char detail[LIMIT_EMAIL + 1];
    if (a->verb == TRACKER__GROUP_VERB__GROUP_CREATE)
        group_create(a, storage);
    else if (!storage_group_get(storage, a->group))
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such group");
    else if (a->verb == TRACKER__GROUP_VERB__GROUP_DELETE)
        storage_group_drop(storage, a->group);
    else if (a->verb == TRACKER__GROUP_VERB__GROUP_ADD)
        group_add(a, storage);
    else
        storage_group_leave(storage, a->group, a->member);
    if (a->fault != 0)
        return;
    if (a->verb != TRACKER__GROUP_VERB__GROUP_CREATE)
        storage_renew(storage, a->verb == TRACKER__GROUP_VERB__GROUP_DELETE ? "" : a->member);
    snprintf(detail, sizeof detail, "%s %s%s%s", verbs[a->verb], a->group,
             a->member[0] != '\0' ? ": " : "", a->member);
    audit(storage, a, "group", detail);
}

static void group_done(struct ask *a)
{
    struct server *server = a->session->server;
    struct access *access = rights_access(server->rights);
    bool plain = access_is_plain(access);
    log_info("%s: %s has changed the group %s", a->session->from, a->account, a->group);
    if (a->verb == TRACKER__GROUP_VERB__GROUP_DELETE)
        access_group_drop(access, a->group);
    else if (a->verb == TRACKER__GROUP_VERB__GROUP_ADD)
        access_group_join(access, a->group, a->member);
    else if (a->verb == TRACKER__GROUP_VERB__GROUP_REMOVE)
        access_group_leave(access, a->group, a->member);
    session_done(a->session, a->id);
    if (a->verb != TRACKER__GROUP_VERB__GROUP_CREATE && (!plain || !access_is_plain(access)))
        rights_changed(server, a->verb == TRACKER__GROUP_VERB__GROUP_DELETE ? "" : a->member);
}

const char *grants_group(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Group *m = message;
    struct ask *a = ask_new(s, id, group_run, true, group_done);
    bool with_member =
        m->verb == TRACKER__GROUP_VERB__GROUP_ADD || m->verb == TRACKER__GROUP_VERB__GROUP_REMOVE;
    a->verb = m->verb;
    if (!a->admin)
        fail(a, TRACKER__FAULT_CODE__FAULT_DENIED, "only an admin changes groups");
    if (m->verb < TRACKER__GROUP_VERB__GROUP_CREATE || m->verb > TRACKER__GROUP_VERB__GROUP_REMOVE)
        fail(a, TRACKER__FAULT_CODE__FAULT_MALFORMED, "nothing that is done with a group");
    if (!take_who(a->group, m->name))
        fail(a, TRACKER__FAULT_CODE__FAULT_BAD_NAME,
             "a group is called like an account: 1 to 64 of a-z 0-9 . _ -");
    if (with_member && !take_who(a->member, m->account))
        fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account");
    if (a->fault != 0)
        ask_done(&a->job);
    else
        storage_queue_post(s->server->queue, &a->job);
    return NULL;
}

static void add_name(const char *group, const char *account, void *arg)
{
    struct ask *a = arg;
    if (a->names_count >= LIMIT_GROUP_LINES)
        return;
    if (a->names_count % 64 == 0)
        a->names = xrealloc(a->names, (a->names_count + 64) * sizeof *a->names);
    snprintf(a->names[a->names_count][0], ACCOUNT_BYTES_MAX + 1, "%s", group);
    snprintf(a->names[a->names_count][1], ACCOUNT_BYTES_MAX + 1, "%s",
             account == NULL ? "" : account);
    a->names_count++;
}

static void groups_run(struct storage_job *job, struct storage *storage)
{
    storage_groups_each(storage, add_name, ask_of(job));
}

/* Groups without members come first, then pairs of group and member, both in the order of names. */
static void groups_known(struct ask *a)
{
    Tracker__Groups message = TRACKER__GROUPS__INIT;
    Tracker__GroupMembers *groups = xcalloc(a->names_count + 1, sizeof *groups);
    Tracker__GroupMembers **list = xcalloc(a->names_count + 1, sizeof *list);
    char **accounts = xcalloc(a->names_count + 1, sizeof *accounts);
    size_t count = 0, at;
    while (count < a->names_count && a->names[count][1][0] == '\0') {
        tracker__group_members__init(&groups[count]);
        groups[count].name = a->names[count][0];
        list[count] = &groups[count];
        count++;
    }
    at = count;
    for (size_t g = 0; g < count; g++) {
        groups[g].accounts = &accounts[at];
        while (at < a->names_count && strcmp(a->names[at][0], groups[g].name) == 0) {
            accounts[at] = a->names[at][1];
            groups[g].n_accounts++;
            at++;
        }
    }
    message.n_groups = count;
    message.groups = list;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_GROUPS_ARE, &message.base);
    free(groups);
    free(list);
    free(accounts);
}

const char *grants_groups(struct session *s, uint32_t id, const void *message)
{
    (void)message;
    storage_queue_post(s->server->queue, &ask_new(s, id, groups_run, false, groups_known)->job);
    return NULL;
}
