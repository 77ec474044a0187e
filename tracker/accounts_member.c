/* What a member does about its own account: renewing, logging out, passwords, invites.
 *
 *   renew                                                                     crypto: sign -> answer
 *   passwd     storage: account       -> password: verify, hash -> storage: rows           -> answer
 *   log out, invite                                                storage                 -> answer
 *
 * The steps are attempt.c's. The loop's thread, but for functions named _run. */
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "tracker/attempt.h"

/* --- renew ------------------------------------------------------------------------------------------------------------------ */

static void renew_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    const char *why = "the request holds another key than the certificate";
    uint8_t device[DEVICE_ID_SIZE];
    if (csr_inspect(a->request, a->request_size, device, &why) &&
        memcmp(device, a->device, sizeof device) == 0) {
        attempt_sign_run(job);
        return;
    }
    attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    attempt_worker_done(a);
}

/* It may have been revoked while it was being signed. */
static void renewed(struct attempt *a)
{
    if (session_is_member(a->session)) {
        a->session->valid_until = a->valid_until;
        attempt_answer(a);
    } else
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this device has been logged out");
}

const char *accounts_renew(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Renew *request = message;
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    ProtobufCBinaryData none = {0};
    if (attempt_take_request(a, &none, request->request, ""))
        attempt_to_worker(a, s->server->crypto, renew_run, renewed);
    return NULL;
}

/* --- log out ------------------------------------------------------------------------------------------------------------------ */

static void logout_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    if (!storage_device_get(storage, a->device, &a->row)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this device has been logged out");
        return;
    }
    a->row.void_before = wall_seconds() + 1;
    a->row.logged_out = true;
    storage_device_put(storage, &a->row);
    attempt_audit(storage, a, "logout");
}

static void logged_out(struct attempt *a)
{
    struct session *s = a->session;
    struct server *server = s->server;
    log_info("%s: %s has logged out", a->from, a->name);
    members_set_device(server->members, &a->row);
    sessions_revoke(server, (const uint8_t(*)[DEVICE_ID_SIZE])a->device, 1, s);
    session_done(s, a->id);
    if (session_is_open(s)) {
        s->ending = true;
        channel_finish(s->channel, "logged out");
    }
    attempt_free(a);
}

const char *accounts_logout(struct session *s, uint32_t id, const void *message)
{
    struct attempt *a = attempt_new(s, id, false);
    if (a != NULL)
        attempt_to_storage(a, logout_run, true, logged_out);
    return NULL;
}

/* --- passwords ------------------------------------------------------------------------------------------------------------------ */

static void password_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    struct storage_account account;
    if (!storage_account_get(storage, a->name, &account) ||
        strcmp(account.password, a->verified) != 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password");
        return;
    }
    storage_account_set_password(storage, a->name, a->record);
    storage_token_drop(storage, a->name, STORAGE_TOKEN_RESET);
    if (a->logout_others)
        attempt_log_out_run(storage, a, a->name, a->device);
    attempt_audit(storage, a, "passwd");
}

static void password_changed(struct attempt *a)
{
    log_info("%s: %s has a new password; %zu other devices have to log in again", a->from, a->name,
             a->devices_count);
    attempt_good(a);
    session_done(a->session, a->id);
    attempt_revoke(a);
    attempt_free(a);
}

static void password_verified(struct attempt *a)
{
    attempt_to_storage(a, password_rows_run, true, password_changed);
}

static void password_looked(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, attempt_verify_run, password_verified);
}

const char *accounts_password(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Password *request = message;
    if (!attempt_password_is_sound(&request->new_)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD,
                      "the password must have 8 to 1024 bytes", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL || !attempt_take_password(a, &request->old, ""))
        return NULL;
    a->logout_others = request->logout_others;
    a->new_password_size = request->new_.len;
    a->new_password = xmemdup(request->new_.data, request->new_.len);
    attempt_to_storage(a, attempt_look_run, false, password_looked);
    return NULL;
}

/* --- invites ------------------------------------------------------------------------------------------------------------------------- */

static void invite_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    if (storage_invite_count(storage, a->name, wall_seconds()) >= LIMIT_ACCOUNT_INVITES) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT,
                     "the account has made as many invites as may be open at a time");
        return;
    }
    storage_invite_add(storage, &a->invite);
    attempt_audit(storage, a, "invite");
}

static void invited(struct attempt *a)
{
    Tracker__Invited message = TRACKER__INVITED__INIT;
    log_info("%s: %s has made an invite%s", a->from, a->name,
             a->invite.admin ? " for an admin" : "");
    message.code = a->code;
    message.expires = a->invite.expires;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_INVITED, &message.base);
    attempt_free(a);
}

void accounts_make_invite(struct storage_invite *invite, char code[ACCOUNTS_INVITE_CODE + 1])
{
    random_code(code, ACCOUNTS_INVITE_CODE);
    sha256(invite->hash, code, ACCOUNTS_INVITE_CODE);
}

const char *accounts_invite(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Invite *request = message;
    const struct member_account *account = members_account(s->server->members, s->account);
    if (request->admin && (account == NULL || !account->admin)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_DENIED, "only an admin may invite an admin",
                      0);
        return NULL;
    }
    if (request->uses > LIMIT_INVITE_USES || request->lifetime > LIMIT_INVITE_S) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED,
                      "an invite has at most 100000 uses and lives for a year at most", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    accounts_make_invite(&a->invite, a->code);
    a->invite.admin = request->admin;
    a->invite.uses = request->uses == 0 ? 1 : request->uses;
    a->invite.expires =
        wall_seconds() + (request->lifetime == 0 ? ACCOUNTS_INVITE_LIFETIME : request->lifetime);
    memcpy(a->invite.by, s->account, sizeof a->invite.by);
    attempt_to_storage(a, invite_run, true, invited);
    return NULL;
}
