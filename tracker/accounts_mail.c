/* E-mail addresses and codes that were sent there: setting and proving an address, a new password for one who has lost
 * the old one.
 *
 *   email       storage: account -> password: verify -> storage: rows, mail queued     -> answer
 *   verify                                              storage: token used, rows      -> answer
 *   reset                                      answer;  storage: mail queued, or not
 *   reset set   storage: token   -> password: hash   -> storage: token used, rows      -> answer
 *
 * Asking for a reset is answered before anything is looked up, and writes a row whether the account is there or not: the
 * answer and its time tell nothing. A code stands for an account by itself (93 bits), is kept as its hash only, works
 * once, and one that is unknown, expired, altered or used gets one and the same answer. Sending is mail.c's. The loop's
 * thread, but for functions named _run. */
#include "tracker/accounts_private.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/password.h"
#include "tracker/mail.h"

static const char bad_code[] = "the code is unknown, expired or used already";

/* Blanks that came with copying do not count. */
static void token_hash(uint8_t hash[32], const char *code)
{
    char bare[LIMIT_MAIL_CODE];
    size_t size = 0;
    for (; *code != '\0' && size < sizeof bare; code++)
        if (*code != ' ' && *code != '\t' && *code != '\r' && *code != '\n')
            bare[size++] = *code;
    sha256(hash, bare, size);
    secret_wipe(bare, sizeof bare);
}

static bool is_too_much(struct session *s, uint32_t id, unsigned cost)
{
    int64_t wait = throttle_spend(s->server->throttle, s->source_key, cost, clock_now());
    if (wait > 0)
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries from there", wait);
    return wait > 0;
}

/* --- setting an address ------------------------------------------------------------------------------ */

static void email_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    bool sends = a->session->server->mailer != NULL;
    if (!storage_account_get(storage, a->name, &a->account) ||
        (!a->again && strcmp(a->account.password, a->verified) != 0)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong password");
        return;
    }
    if (a->again) {
        memcpy(a->email, a->account.email, sizeof a->email);
        if (a->email[0] == '\0' || a->account.verified) {
            attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
                         a->email[0] == '\0' ? "this account has no e-mail address"
                                             : "the e-mail address has been verified already");
            return;
        }
    }
    if (a->email[0] == '\0' || !sends) {
        memcpy(a->account.email, a->email, sizeof a->account.email);
        a->account.verified = false;
        storage_token_drop(storage, a->name, 0);
        storage_mail_drop_of(storage, a->name, 0);
        storage_account_put(storage, &a->account);
    } else {
        storage_mail_add(storage, STORAGE_TOKEN_EMAIL, a->name, a->email, wall_seconds());
        a->more = true;
    }
    attempt_audit_about(storage, a, "email", a->name, a->email);
}

static void email_set(struct attempt *a)
{
    Tracker__EmailIs message = TRACKER__EMAIL_IS__INIT;
    log_info("%s: %s has %s e-mail address", a->from, a->name,
             a->email[0] == '\0' ? "removed the" : "given an");
    attempt_good(a);
    message.sent = a->more;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_EMAIL_IS, &message.base);
    mailer_kick(a->session->server->mailer);
    attempt_free(a);
}

static void email_verified(struct attempt *a)
{
    attempt_to_storage(a, email_run, true, email_set);
}

static void email_looked(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, attempt_verify_run, email_verified);
}

const char *accounts_email(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Email *request = message;
    struct server *server = s->server;
    if (request->email[0] != '\0' && !mail_address_is_sound(request->email)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_EMAIL,
                      "the e-mail address is not a good one", 0);
        return NULL;
    }
    if (request->again && server->mailer == NULL) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_NO_MAIL, "this tracker sends no mail", 0);
        return NULL;
    }
    if (request->email[0] == '\0' && !request->again && server->verify_email) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_EMAIL,
                      "this tracker asks for an e-mail address", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, !request->again);
    if (a == NULL)
        return NULL;
    a->again = request->again;
    snprintf(a->email, sizeof a->email, "%s", request->email);
    if (!attempt_take_password(a, &request->password, ""))
        return NULL;
    if (server->mailer != NULL && request->email[0] != '\0' &&
        !throttle_mail(server->mails, a->name, clock_now())) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_BUSY, "too many mails; wait some minutes");
        return NULL;
    }
    if (a->again)
        attempt_to_storage(a, email_run, true, email_set);
    else
        attempt_to_storage(a, attempt_look_run, false, email_looked);
    return NULL;
}

/* --- proving it ---------------------------------------------------------------------------------------- */

static void verify_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    struct storage_token token;
    if (!storage_token_get(storage, STORAGE_TOKEN_EMAIL, a->token, wall_seconds(), &token) ||
        !storage_account_get(storage, token.account, &a->account) || a->account.deleted != 0) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_CODE, bad_code);
        return;
    }
    /* A code for a new password that went to another address is void. */
    int kinds = strcmp(a->account.email, token.email) == 0 ? STORAGE_TOKEN_EMAIL : 0;
    memcpy(a->account.email, token.email, sizeof a->account.email);
    a->account.verified = true;
    a->account.waiting = false;
    storage_account_put(storage, &a->account);
    storage_token_drop(storage, token.account, kinds);
    storage_mail_drop_of(storage, token.account, kinds);
    attempt_audit_about(storage, a, "email-verify", token.account, token.email);
}

static void verify_done(struct attempt *a)
{
    log_info("%s: the e-mail address of %s is verified", a->from, a->account.name);
    session_done(a->session, a->id);
    attempt_free(a);
}

const char *accounts_verify(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Verify *request = message;
    if (is_too_much(s, id, LIMIT_COST_VERIFY))
        return NULL;
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    token_hash(a->token, request->code);
    attempt_to_storage(a, verify_run, true, verify_done);
    return NULL;
}

/* --- asking for a reset ---------------------------------------------------------------------------------- */

struct reset_job {
    struct storage_job job;
    struct server *server;
    char name[ACCOUNT_BYTES_MAX + 1], from[64];
    bool mails;   /* the name has mails left */
    bool audited; /* not too many were written down just now */
};

static void reset_run(struct storage_job *job, struct storage *storage)
{
    struct reset_job *j = (struct reset_job *)(void *)job;
    struct storage_account account;
    int64_t now = wall_seconds();
    bool known = storage_account_get(storage, j->name, &account) && !account.disabled &&
                 account.deleted == 0 && account.email[0] != '\0';
    struct storage_event event = {
        .when = now, .what = "reset-ask", .account = j->name, .source = j->from};
    if (j->audited)
        storage_audit(storage, &event);
    if (known && j->mails)
        storage_mail_add(storage, STORAGE_TOKEN_RESET, j->name, account.email, now);
}

static void reset_done(struct storage_job *job)
{
    struct reset_job *j = (struct reset_job *)(void *)job;
    struct server *server = j->server;
    server->attempts--;
    mailer_kick(server->mailer);
    free(j);
}

const char *accounts_reset(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Reset *request = message;
    struct server *server = s->server;
    if (server->mailer == NULL) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_NO_MAIL,
                      "this tracker sends no mail: ask an admin", 0);
        return NULL;
    }
    const char *fault = account_name_fault(request->name);
    if (fault != NULL) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_NAME, "that is no account's name", 0);
        return NULL;
    }
    if (is_too_much(s, id, LIMIT_COST_RESET))
        return NULL;
    if (server->attempts >= LIMIT_ATTEMPTS || server->stopping) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many requests at once",
                      NS_PER_S);
        return NULL;
    }
    struct reset_job *j = xcalloc(1, sizeof *j);
    j->job = (struct storage_job){.run = reset_run, .done = reset_done, .writes = true};
    j->server = server;
    snprintf(j->name, sizeof j->name, "%s", request->name);
    snprintf(j->from, sizeof j->from, "%s", s->from);
    j->mails = throttle_mail(server->mails, j->name, clock_now());
    j->audited = server_may_audit(server);
    server->attempts++;
    session_done(s, id);
    storage_queue_post(server->queue, &j->job);
    return NULL;
}

/* --- the new password -------------------------------------------------------------------------------------- */

static bool find_token(struct storage *storage, struct attempt *a, struct storage_token *token)
{
    if (storage_token_get(storage, STORAGE_TOKEN_RESET, a->token, wall_seconds(), token) &&
        storage_account_get(storage, token->account, &a->account) && !a->account.disabled)
        return true;
    attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_CODE, bad_code);
    return false;
}

static void set_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    struct storage_token token;
    if (!find_token(storage, a, &token))
        return;
    /* The code came to the address, so that is proven as well. */
    if (strcmp(token.email, a->account.email) == 0) {
        a->account.verified = true;
        a->account.waiting = false;
    }
    memcpy(a->account.password, a->record, sizeof a->account.password);
    storage_account_put(storage, &a->account);
    storage_token_drop(storage, token.account, STORAGE_TOKEN_RESET);
    storage_mail_drop_of(storage, token.account, STORAGE_TOKEN_RESET);
    attempt_log_out_run(storage, a, token.account,
                        strcmp(a->name, token.account) == 0 ? a->device : NULL);
    attempt_audit_about(storage, a, "reset", token.account, NULL);
}

static void set_done(struct attempt *a)
{
    log_info("%s: %s has a new password by mail; %zu devices have to log in again", a->from,
             a->account.name, a->devices_count);
    session_done(a->session, a->id);
    attempt_revoke(a);
    attempt_free(a);
}

static void set_hashed(struct attempt *a)
{
    attempt_to_storage(a, set_run, true, set_done);
}

static void set_hash_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    if (!password_hash(a->record, a->new_password, a->new_password_size))
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_INTERNAL, "the password cannot be hashed now");
    attempt_wipe(&a->new_password, a->new_password_size);
    attempt_worker_done(a);
}

static void set_may(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, set_hash_run, set_hashed);
}

static void set_look_run(struct storage_job *job, struct storage *storage)
{
    struct storage_token token;
    (void)find_token(storage, attempt_of_storage(job), &token);
}

const char *accounts_reset_set(struct session *s, uint32_t id, const void *message)
{
    const Tracker__ResetSet *request = message;
    if (!attempt_password_is_sound(&request->password)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD,
                      "the password must have 8 to 1024 bytes", 0);
        return NULL;
    }
    if (is_too_much(s, id, LIMIT_COST_VERIFY))
        return NULL;
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    token_hash(a->token, request->code);
    a->new_password_size = request->password.len;
    a->new_password = xmemdup(request->password.data, request->password.len);
    attempt_to_storage(a, set_look_run, false, set_may);
    return NULL;
}
