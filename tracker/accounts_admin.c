/* What admins do about accounts: listing, disabling, deleting, the admin role, ownership of files, the audit log.
 *
 *   list, change, audit   storage -> answer
 *   transfer              storage, a batch of entries at a time; each is pushed to subscribers -> answer
 *
 * That the asker is an admin has been looked at in session.c. An account that is disabled or deleted has all its
 * devices logged out: their certificates are void, and every member is told; invites that it has made end, and those
 * for admins with the admin role. A deleted account's row stays, without
 * password and address, so that nobody else gets its name, which stands on its files. The swarm's last admin stays one.
 * The loop's thread, but for functions named _run. */
#include "tracker/accounts_private.h"

#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"

#define TRANSFER_BATCH 256 /* entries in one transaction: others' operations come in between */

/* --- listing --------------------------------------------------------------------------------------- */

static void users_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    a->users = xcalloc(LIMIT_USERS_PAGE + 1, sizeof *a->users);
    if (a->target[0] == '\0') {
        a->users_count =
            storage_accounts_after(storage, a->target_to, a->users, LIMIT_USERS_PAGE + 1);
        a->more = a->users_count > LIMIT_USERS_PAGE;
        if (a->more)
            a->users_count = LIMIT_USERS_PAGE;
        return;
    }
    if (!storage_account_get(storage, a->target, a->users)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account");
        return;
    }
    a->users_count = 1;
    a->recovery_left = storage_recovery_count(storage, a->target);
    storage_device_each(storage, a->target, attempt_add_device, a);
}

static void users_known(struct attempt *a)
{
    struct accounts_told **told = xcalloc(a->users_count + 1, sizeof *told);
    Tracker__Account **list = xcalloc(a->users_count + 1, sizeof *list);
    for (size_t i = 0; i < a->users_count; i++) {
        told[i] = accounts_tell(a->session->server, &a->users[i], a->devices, a->devices_count);
        list[i] = &told[i]->message;
        list[i]->recovery_codes = a->recovery_left;
    }
    Tracker__UsersAre message = TRACKER__USERS_ARE__INIT;
    message.n_users = a->users_count;
    message.users = list;
    message.more = a->more;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_USERS_ARE, &message.base);
    for (size_t i = 0; i < a->users_count; i++)
        accounts_told_free(told[i]);
    free(told);
    free(list);
    attempt_free(a);
}

/* Names in requests are looked up, nothing else: one that is too long is nobody's. */
static bool take_name(char *to, const char *name)
{
    bool fits = strlen(name) <= ACCOUNT_BYTES_MAX;
    snprintf(to, ACCOUNT_BYTES_MAX + 1, "%s", fits ? name : "?");
    return fits;
}

const char *accounts_users(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Users *request = message;
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    take_name(a->target, request->name);
    take_name(a->target_to, request->after);
    attempt_to_storage(a, users_run, false, users_known);
    return NULL;
}

/* --- changing -------------------------------------------------------------------------------------- */

static const struct act {
    const char *what;      /* in the audit log */
    bool takes_admin_away; /* forbidden for the last one */
    bool logs_out;
    bool ends_admin_invites; /* what logs out ends all of them */
} acts[] = {
    [TRACKER__USER_ACT__USER_DISABLE] = {"user-disable", true, true, false},
    [TRACKER__USER_ACT__USER_ENABLE] = {"user-enable", false, false, false},
    [TRACKER__USER_ACT__USER_DELETE] = {"user-delete", true, true, false},
    [TRACKER__USER_ACT__USER_ADMIN_ON] = {"admin-on", false, false, false},
    [TRACKER__USER_ACT__USER_ADMIN_OFF] = {"admin-off", true, false, true},
    [TRACKER__USER_ACT__USER_TOTP_OFF] = {"totp-off", false, false, false},
    [TRACKER__USER_ACT__USER_QUOTA] = {"quota", false, false, false},
};

static void forget(struct storage *storage, struct storage_account *account)
{
    account->deleted = wall_seconds();
    account->disabled = true;
    account->admin = account->verified = account->waiting = false;
    memset(account->email, 0, sizeof account->email);
    memset(account->password, 0, sizeof account->password);
    storage_token_drop(storage, account->name, 0);
    storage_mail_drop_of(storage, account->name, 0);
}

static void change_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    struct storage_account *account = &a->account;
    const struct act *act = &acts[a->act];
    if (!storage_account_get(storage, a->target, account) || account->deleted != 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account");
        return;
    }
    if (act->takes_admin_away && account->admin && !account->disabled &&
        storage_admins_besides(storage, a->target) == 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
                     "that is the swarm's last admin: make another one first");
        return;
    }
    switch (a->act) {
    case TRACKER__USER_ACT__USER_DISABLE:
        account->disabled = true;
        break;
    case TRACKER__USER_ACT__USER_ENABLE:
        account->disabled = false;
        break;
    case TRACKER__USER_ACT__USER_DELETE:
        forget(storage, account);
        break;
    case TRACKER__USER_ACT__USER_ADMIN_ON:
    case TRACKER__USER_ACT__USER_ADMIN_OFF:
        account->admin = a->act == TRACKER__USER_ACT__USER_ADMIN_ON;
        break;
    case TRACKER__USER_ACT__USER_QUOTA:
        account->quota = a->quota;
        break;
    default:
        break;
    }
    if (a->act == TRACKER__USER_ACT__USER_TOTP_OFF || a->act == TRACKER__USER_ACT__USER_DELETE) {
        account->has_totp = account->totp_on = false;
        storage_recovery_set(storage, account->name, NULL, 0);
    }
    storage_account_put(storage, account);
    if (a->act == TRACKER__USER_ACT__USER_ADMIN_ON || a->act == TRACKER__USER_ACT__USER_ADMIN_OFF)
        storage_renew(storage, account->name);
    if (act->logs_out)
        attempt_log_out_run(storage, a, a->target, NULL);
    if (act->logs_out || act->ends_admin_invites)
        storage_invite_drop_of(storage, a->target, !act->logs_out);
    attempt_audit_about(storage, a, act->what, a->target, NULL);
}

static void changed(struct attempt *a)
{
    log_info("%s: %s: %s of %s", a->from, a->name, acts[a->act].what, a->target);
    members_set_account(a->session->server->members, &a->account);
    session_done(a->session, a->id);
    if (a->act == TRACKER__USER_ACT__USER_ADMIN_ON || a->act == TRACKER__USER_ACT__USER_ADMIN_OFF)
        rights_changed(a->session->server, a->target); /* admins see all */
    attempt_revoke(a);
    attempt_free(a);
}

const char *accounts_user_change(struct session *s, uint32_t id, const void *message)
{
    const Tracker__UserChange *request = message;
    if (request->act <= 0 || (size_t)request->act >= sizeof acts / sizeof *acts) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED, "unknown act", 0);
        return NULL;
    }
    if (request->quota > LIMIT_ENTRIES) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED,
                      "a quota above all that there may be", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    a->quota = request->quota;
    take_name(a->target, request->name);
    a->act = (unsigned)request->act;
    attempt_to_storage(a, change_run, true, changed);
    return NULL;
}

/* --- ownership of files ---------------------------------------------------------------------------- */

static void transfer_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    struct storage_account to;
    if (a->transferred == 0 &&
        (!storage_account_get(storage, a->target, &a->account) ||
         !storage_account_get(storage, a->target_to, &to) || to.deleted != 0)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NOT_FOUND, "there is no such account");
        return;
    }
    size_t done = catalogue_transfer(storage, a->target, a->target_to, &a->cursor, TRANSFER_BATCH,
                                     &a->changes);
    a->transferred += done;
    a->more = done == TRANSFER_BATCH;
    if (a->more)
        return;
    char detail[ACCOUNT_BYTES_MAX + 40];
    snprintf(detail, sizeof detail, "to %s: %llu entries", a->target_to,
             (unsigned long long)a->transferred);
    attempt_audit_about(storage, a, "transfer", a->target, detail);
}

static void transferred(struct attempt *a)
{
    feed_changed(a->session->server, &a->changes);
    catalogue_changes_clear(&a->changes);
    if (a->more) {
        attempt_to_storage(a, transfer_run, true, transferred);
        return;
    }
    log_info("%s: %s has transferred %llu entries of %s to %s", a->from, a->name,
             (unsigned long long)a->transferred, a->target, a->target_to);
    Tracker__Transferred message = TRACKER__TRANSFERRED__INIT;
    message.entries = a->transferred;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_TRANSFERRED, &message.base);
    attempt_free(a);
}

const char *accounts_transfer(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Transfer *request = message;
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    take_name(a->target, request->from);
    take_name(a->target_to, request->to);
    if (strcmp(a->target, a->target_to) == 0) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_MALFORMED, "the two are the same account");
        return NULL;
    }
    attempt_to_storage(a, transfer_run, true, transferred);
    return NULL;
}

/* --- the audit log ------------------------------------------------------------------------------------ */

struct audit_job {
    struct storage_job job;
    struct session *session;
    uint32_t id;
    uint64_t before;
    int64_t since;
    char account[ACCOUNT_BYTES_MAX + 1];
    size_t want, count;
    struct storage_audit_row rows[LIMIT_AUDIT_ROWS + 1];
};

static void audit_run(struct storage_job *job, struct storage *storage)
{
    struct audit_job *j = (struct audit_job *)(void *)job;
    j->count = storage_audit_list(storage, j->before, j->since, j->account, j->rows, j->want + 1);
}

static void audit_answer(struct audit_job *j)
{
    size_t count = j->count > j->want ? j->want : j->count;
    Tracker__Event *events = xcalloc(count + 1, sizeof *events);
    Tracker__Event **list = xcalloc(count + 1, sizeof *list);
    char(*devices)[2 * DEVICE_ID_SIZE + 1] = xcalloc(count + 1, sizeof *devices);
    for (size_t i = 0; i < count; i++) {
        struct storage_audit_row *row = &j->rows[i];
        tracker__event__init(&events[i]);
        events[i].number = row->number;
        events[i].time = row->when;
        events[i].what = row->what;
        events[i].account = row->account;
        events[i].by = row->by;
        events[i].source = row->source;
        events[i].detail = row->detail;
        if (row->has_device)
            hex_encode(devices[i], row->device, DEVICE_ID_SIZE);
        events[i].device = devices[i];
        list[i] = &events[i];
    }
    Tracker__AuditIs message = TRACKER__AUDIT_IS__INIT;
    message.n_events = count;
    message.events = list;
    message.more = j->count > count;
    session_answer(j->session, j->id, TRACKER__TRACKER_TYPE__TRACKER_AUDIT_IS, &message.base);
    free(events);
    free(list);
    free(devices);
}

static void audit_done(struct storage_job *job)
{
    struct audit_job *j = (struct audit_job *)(void *)job;
    if (job->failed)
        session_fault(j->session, j->id, TRACKER__FAULT_CODE__FAULT_INTERNAL,
                      "the tracker cannot read its database", 0);
    else
        audit_answer(j);
    j->session->busy--;
    session_release(j->session);
    free(j);
}

const char *accounts_audit(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Audit *request = message;
    if (s->busy > 0) { /* a page may mean going through all rows */
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "one page at a time", 0);
        return NULL;
    }
    struct audit_job *j = xcalloc(1, sizeof *j);
    j->job = (struct storage_job){.run = audit_run, .done = audit_done};
    j->session = s;
    j->id = id;
    j->before = request->before;
    j->since = request->since;
    j->want = request->count == 0 || request->count > LIMIT_AUDIT_ROWS ? LIMIT_AUDIT_ROWS
                                                                       : request->count;
    take_name(j->account, request->account);
    s->busy++;
    session_keep(s);
    storage_queue_post(s->server->queue, &j->job);
    return NULL;
}
