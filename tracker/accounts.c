/* Registering and logging in: what a stranger may do.
 *
 *   register   storage: invite, name  -> password: hash   -> storage: rows -> crypto: sign -> answer
 *   log in     storage: account       -> password: verify -> storage: rows -> crypto: sign -> answer
 *
 * The steps are attempt.c's. An unknown name costs as much as a known one and gets the same answer. The loop's
 * thread, but for functions named _run, which run where the attempt has been sent. */
#include "tracker/accounts.h"

#include "base/clock.h"
#include "base/log.h"
#include "crypto/password.h"
#include "crypto/random.h"
#include "tracker/attempt.h"
#include "tracker/mail.h"

/* --- register --------------------------------------------------------------------------------------------------------- */

/* Is the invite good, is the name free? Looked at before Argon2 is run for it, and again when it is used. */
static bool may_register(struct storage *storage, struct attempt *a)
{
    bool open = a->session->server->registration == REGISTRATION_OPEN;
    if (a->has_invite || !open) {
        if (!a->has_invite) {
            attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_INVITE,
                         "this tracker asks for an invite, and this address carries none");
            return false;
        }
        if (!storage_invite_get(storage, a->invite_hash, wall_seconds(), &a->invite)) {
            attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_INVITE,
                         "the invite is unknown, used up or expired");
            return false;
        }
    }
    /* Rows: who waits for a code from a mail is in no mirror yet. */
    if (storage_account_count(storage) >= LIMIT_ACCOUNTS) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT,
                     "there are as many accounts as there may be");
        return false;
    }
    if (storage_account_get(storage, a->name, &a->account) || storage_group_get(storage, a->name) ||
        strcmp(a->name, "everyone") == 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NAME_TAKEN, "the name is taken");
        return false;
    }
    return true;
}

static void register_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    const struct server *server = a->session->server;
    if (!may_register(storage, a))
        return;
    a->account = (struct storage_account){.admin = a->has_invite && a->invite.admin,
                                          .created = wall_seconds(),
                                          .waiting = server->verify_email};
    if (!a->account.waiting && !attempt_row_make(storage, a))
        return;
    memcpy(a->account.name, a->name, sizeof a->account.name);
    memcpy(a->account.email, a->email, sizeof a->account.email);
    memcpy(a->account.password, a->record, sizeof a->account.password);
    storage_account_add(storage, &a->account);
    if (!a->account.waiting)
        storage_device_put(storage, &a->row);
    if (server->mailer != NULL && a->email[0] != '\0')
        storage_mail_add(storage, STORAGE_TOKEN_EMAIL, a->name, a->email, wall_seconds());
    if (a->has_invite)
        storage_invite_use(storage, a->invite_hash);
    attempt_audit(storage, a, "register");
}

static void registered(struct attempt *a)
{
    log_info("%s: registered %s%s%s", a->from, a->name, a->account.admin ? " as admin" : "",
             a->account.waiting ? "; its address is to be verified" : "");
    if (a->email[0] != '\0')
        mailer_kick(a->session->server->mailer);
    if (!a->account.waiting) {
        attempt_issue(a);
        return;
    }
    session_done(a->session, a->id);
    attempt_free(a);
}

static void register_hashed(struct attempt *a)
{
    attempt_to_storage(a, register_rows_run, true, registered);
}

static void register_hash_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    const char *why = NULL;
    if (!csr_inspect(a->request, a->request_size, a->device, &why))
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    else if (!password_hash(a->record, a->password, a->password_size))
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_INTERNAL, "the password cannot be hashed now");
    attempt_wipe(&a->password, a->password_size);
    attempt_worker_done(a);
}

static void register_may(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, register_hash_run, register_hashed);
}

static void register_look_run(struct storage_job *job, struct storage *storage)
{
    may_register(storage, attempt_of_storage(job));
}

const char *accounts_register(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Register *request = message;
    struct server *server = s->server;
    const char *name_fault = account_name_fault(request->name);
    if (server->registration == REGISTRATION_CLOSED) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_CLOSED, "this tracker registers nobody", 0);
        return NULL;
    }
    if (name_fault != NULL) {
        char text[160];
        snprintf(text, sizeof text, "the account's name %s", name_fault);
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_NAME, text, 0);
        return NULL;
    }
    if (!attempt_password_is_sound(&request->password)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD,
                      "the password must have 8 to 1024 bytes", 0);
        return NULL;
    }
    if (request->email[0] != '\0' ? !mail_address_is_sound(request->email) : server->verify_email) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_EMAIL,
                      request->email[0] != '\0'
                          ? "the e-mail address is not a good one"
                          : "this tracker asks for an e-mail address (--email)",
                      0);
        return NULL;
    }
    int64_t wait =
        throttle_spend(server->throttle, s->source_key, LIMIT_COST_REGISTER, clock_now());
    if (wait > 0) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries from there", wait);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    snprintf(a->name, sizeof a->name, "%s", request->name);
    snprintf(a->email, sizeof a->email, "%s", request->email);
    if (!attempt_take_request(a, &request->password, request->request, request->machine))
        return NULL;
    a->has_invite = request->invite[0] != '\0';
    sha256(a->invite_hash, request->invite, strlen(request->invite));
    attempt_to_storage(a, register_look_run, false, register_may);
    return NULL;
}

/* --- log in --------------------------------------------------------------------------------------------------------------- */

static void login_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    /* The password may have been changed while the old one was being verified. */
    if (!storage_account_get(storage, a->name, &a->account) ||
        strcmp(a->account.password, a->verified) != 0)
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password");
    else if (a->account.disabled || a->account.deleted != 0)
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this account has been disabled");
    else if (a->account.waiting)
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_UNVERIFIED,
                     "the e-mail address has not been verified yet (p2pctl email verify)");
    else if (a->account.totp_on && a->second[0] == '\0')
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_NEEDS_CODE,
                     "this account wants a code of its second factor as well");
    else if (a->account.totp_on && !attempt_second_factor(storage, &a->account, a->second)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_CODE, "wrong code");
        attempt_audit_about(storage, a, "refused", a->name, "second factor");
    }
    if (a->fault != ATTEMPT_OK || !attempt_row_make(storage, a))
        return;
    storage_device_put(storage, &a->row);
    if (a->record[0] != '\0')
        storage_account_set_password(storage, a->name, a->record);
    attempt_audit(storage, a, "login");
}

static void logged_in(struct attempt *a)
{
    log_info("%s: %s has logged in%s%s", a->from, a->name, a->machine[0] == '\0' ? "" : " on ",
             a->machine);
    attempt_issue(a);
}

static void login_verified(struct attempt *a)
{
    if (!attempt_code_is_throttled(a))
        attempt_to_storage(a, login_rows_run, true, logged_in);
}

static void login_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    const char *why = NULL;
    if (csr_inspect(a->request, a->request_size, a->device, &why)) {
        attempt_verify_run(job);
        return;
    }
    attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    attempt_worker_done(a);
}

static void login_looked(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, login_run, login_verified);
}

/* Too many were tried from there. A device that the account knows is not held up by that: it proves by its request's
 * signature which one it is. */
static void login_inspect_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    const char *why = NULL;
    if (!csr_inspect(a->request, a->request_size, a->device, &why))
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    attempt_worker_done(a);
}

static void login_inspected(struct attempt *a)
{
    struct server *server = a->session->server;
    const struct member_device *device = members_device(server->members, a->device);
    int64_t wait = a->wait;
    if (device != NULL && strcmp(device->account, a->name) == 0)
        wait = throttle_pair(server->throttle, a->name, a->device, clock_now());
    if (wait <= 0) {
        attempt_to_storage(a, attempt_look_run, false, login_looked);
        return;
    }
    server_log_refusal(server, a->from, "too many tries for %s", a->name);
    session_fault(a->session, a->id, TRACKER__FAULT_CODE__FAULT_BUSY,
                  "too many tries; wait a moment", wait);
    attempt_free(a);
}

const char *accounts_login(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Login *request = message;
    struct server *server = s->server;
    if (account_name_fault(request->name) != NULL || strlen(request->code) > LIMIT_SECOND_FACTOR ||
        !attempt_password_is_sound(&request->password)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password",
                      0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    snprintf(a->name, sizeof a->name, "%s", request->name);
    snprintf(a->second, sizeof a->second, "%s", request->code);
    if (!attempt_take_request(a, &request->password, request->request, request->machine))
        return NULL;
    a->wait = throttle_try(server->throttle, request->name, s->source_key, clock_now());
    if (a->wait <= 0) {
        attempt_to_storage(a, attempt_look_run, false, login_looked);
    } else if (throttle_spend(server->throttle, s->source_key, 1, clock_now()) > 0) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries; wait a moment",
                      a->wait);
        attempt_free(a);
    } else {
        attempt_to_worker(a, server->crypto, login_inspect_run, login_inspected);
    }
    return NULL;
}
