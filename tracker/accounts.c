/* Accounts: registering, logging in, renewing, logging out, passwords, invites.
 *
 * An attempt is one such request on its way between threads: the loop (throttle, answer), the storage (rows),
 * the password pool (Argon2, 25 ms and 20 MiB each), the crypto pool (an RSA signature for the certificate,
 * 2 ms). It owns copies of everything; each step names the next.
 *
 *   register   storage: invite, name  -> password: hash   -> storage: rows -> crypto: sign -> answer
 *   log in     storage: account       -> password: verify -> storage: rows -> crypto: sign -> answer
 *   renew                                                                     crypto: sign -> answer
 *   passwd     storage: account       -> password: verify, hash -> storage: row            -> answer
 *   log out, whoami, invite                                        storage                 -> answer
 *
 * An unknown name costs as much as a known one and gets the same answer. Certificates are dated to the second,
 * so one that is issued in the second of a log out would be void with those before it: it waits that second. */
#include "tracker/accounts.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/password.h"
#include "crypto/random.h"
#include "tracker/server_private.h"

#define ATTEMPTS_MAX  512 /* under way in the whole tracker: each holds up to 10 KiB */
#define PASSWORDS_MAX 128 /* jobs on the password pool: about 1.5 s of work on two cores */
#define BUSY_MEMBER   8   /* of which of one member; a stranger has one */
#define BUSY_RETRY    (2 * NS_PER_S)
#define REGISTER_COST 2 /* of a source's tries */
#define WAIT_LONGEST  2 /* seconds; if more is to wait, the clock has been set back */

#define OK            0 /* no fault */

struct attempt {
    struct storage_job storage;
    struct job work;
    struct mail mail;
    struct timer *timer;          /* while the certificate waits for its second */
    struct attempt *next_waiting; /* of server->waiting_attempts */
    struct session *session;
    uint32_t id;
    void (*home)(struct attempt *); /* what follows on the loop's thread */

    char name[ACCOUNT_BYTES_MAX + 1];
    char machine[NAME_BYTES_MAX + 1];
    char email[LIMIT_EMAIL + 1];
    char from[64];
    char *password, *new_password, *request;
    size_t password_size, new_password_size, request_size;
    uint8_t device[DEVICE_ID_SIZE];
    bool has_invite;
    uint8_t invite_hash[32];
    struct storage_invite invite;

    /* Results of steps. */
    Tracker__FaultCode fault; /* OK while all is well */
    const char *why;
    bool known; /* there is such an account */
    struct storage_account account;
    struct storage_device row;
    bool upgrade;
    char record[PASSWORD_RECORD_MAX]; /* a new one, or "" */
    char *certificate;
    char code[ACCOUNTS_INVITE_CODE + 1];
    /* Devices: of whoami, or those that a new password has voided. */
    struct storage_device *devices;
    size_t devices_count, devices_room;
};

/* --- life of an attempt --------------------------------------------------------------------------------- */

static void wipe(char **secret, size_t size)
{
    if (*secret != NULL) {
        secret_wipe(*secret, size);
        free(*secret);
        *secret = NULL;
    }
}

static void attempt_free(struct attempt *a)
{
    struct session *s = a->session;
    s->server->attempts--;
    s->busy--;
    wipe(&a->password, a->password_size);
    wipe(&a->new_password, a->new_password_size);
    timer_free(a->timer);
    free(a->request);
    free(a->certificate);
    free(a->devices);
    secret_wipe(a, sizeof *a);
    free(a);
    session_release(s);
}

/* NULL if there are too many: then the answer has been given. */
static struct attempt *attempt_new(struct session *s, uint32_t id, bool password)
{
    struct server *server = s->server;
    if (s->busy >= (session_is_member(s) ? BUSY_MEMBER : 1) || server->attempts >= ATTEMPTS_MAX ||
        (password && workers_backlog(server->passwords) >= PASSWORDS_MAX)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many log ins at once",
                      BUSY_RETRY);
        return NULL;
    }
    struct attempt *a = xcalloc(1, sizeof *a);
    a->session = s;
    a->id = id;
    snprintf(a->from, sizeof a->from, "%s", s->from);
    if (session_is_member(s)) {
        memcpy(a->name, s->account, sizeof a->name);
        memcpy(a->device, s->device, sizeof a->device);
    }
    s->busy++;
    server->attempts++;
    session_keep(s);
    return a;
}

static void attempt_fault(struct attempt *a, Tracker__FaultCode code, const char *why)
{
    session_fault(a->session, a->id, code, why,
                  code == TRACKER__FAULT_CODE__FAULT_BUSY ? BUSY_RETRY : 0);
    attempt_free(a);
}

/* While the threads end no step is begun any more: the attempt is over then. */
static bool is_stopping(struct attempt *a)
{
    if (!a->session->server->stopping)
        return false;
    attempt_fault(a, TRACKER__FAULT_CODE__FAULT_INTERNAL, "the tracker is stopping");
    return true;
}

static struct attempt *of_storage(struct storage_job *job)
{
    return (struct attempt *)(void *)((char *)job - offsetof(struct attempt, storage));
}

static struct attempt *of_work(struct job *job)
{
    return (struct attempt *)(void *)((char *)job - offsetof(struct attempt, work));
}

static struct attempt *of_mail(struct mail *mail)
{
    return (struct attempt *)(void *)((char *)mail - offsetof(struct attempt, mail));
}

/* Goes on with what follows, or ends with the fault that the step has left. */
static void go_home(struct attempt *a)
{
    if (a->fault != OK) {
        if (a->fault == TRACKER__FAULT_CODE__FAULT_BAD_INVITE)
            throttle_bad(a->session->server->throttle, a->session->source_key, clock_now());
        if (a->fault != TRACKER__FAULT_CODE__FAULT_INTERNAL)
            server_log_refusal(a->session->server, a->from, "refused %s: %s", a->name, a->why);
        attempt_fault(a, a->fault, a->why);
        return;
    }
    a->home(a);
}

static void storage_done_job(struct storage_job *job)
{
    struct attempt *a = of_storage(job);
    if (job->failed && a->fault == OK) {
        a->fault = TRACKER__FAULT_CODE__FAULT_INTERNAL;
        a->why = "the tracker cannot write to its database";
    }
    go_home(a);
}

static void to_storage(struct attempt *a, void (*run)(struct storage_job *, struct storage *),
                       bool writes, void (*home)(struct attempt *))
{
    if (is_stopping(a))
        return;
    a->home = home;
    a->storage = (struct storage_job){.run = run, .done = storage_done_job, .writes = writes};
    storage_queue_post(a->session->server->queue, &a->storage);
}

static void deliver(struct mail *mail, void *owner)
{
    go_home(of_mail(mail));
}

/* Called by a worker's function as its last act. */
static void worker_done(struct attempt *a)
{
    a->mail = (struct mail){.deliver = deliver};
    loop_post(a->session->server->loop, &a->mail);
}

static void to_worker(struct attempt *a, struct workers *workers, void (*run)(struct job *),
                      void (*home)(struct attempt *))
{
    if (is_stopping(a))
        return;
    a->home = home;
    a->work = (struct job){.run = run};
    workers_post(workers, &a->work, false);
}

static void fail(struct attempt *a, Tracker__FaultCode code, const char *why)
{
    a->fault = code;
    a->why = why;
}

static void audit(struct storage *storage, const struct attempt *a, const char *what)
{
    static const uint8_t none[DEVICE_ID_SIZE];
    struct storage_event event = {.when = wall_seconds(),
                                  .what = what,
                                  .account = a->name,
                                  .device =
                                      memcmp(a->device, none, sizeof none) == 0 ? NULL : a->device,
                                  .source = a->from};
    storage_audit(storage, &event);
}

/* --- what requests hold -------------------------------------------------------------------------------------- */

static bool password_is_sound(const ProtobufCBinaryData *password)
{
    return password->len >= LIMIT_PASSWORD_MIN && password->len <= LIMIT_PASSWORD;
}

/* Printable ASCII without blanks, one @ with something on both sides: nothing that means more to a mail server. */
static bool email_is_sound(const char *email)
{
    size_t length = strlen(email);
    const char *at = strchr(email, '@');
    if (length == 0)
        return true;
    if (length > LIMIT_EMAIL || at == NULL || at == email || at[1] == '\0' ||
        strchr(at + 1, '@') != NULL)
        return false;
    for (const char *c = email; *c != '\0'; c++)
        if (*c < 0x21 || *c > 0x7e || strchr("<>()[],;:\\\"", *c) != NULL)
            return false;
    return true;
}

/* Copies what registering and logging in have in common; a fault is answered and false returned. */
static bool take_request(struct session *s, uint32_t id, struct attempt *a,
                         const ProtobufCBinaryData *password, const char *request,
                         const char *machine)
{
    size_t request_size = strlen(request);
    if (request_size == 0 || request_size > CSR_PEM_MAX) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY,
                      "the certificate request is missing or too long");
        return false;
    }
    if (machine[0] != '\0' && !name_is_valid(machine, strlen(machine))) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_BAD_NAME,
                      "the machine's name is not a good one");
        return false;
    }
    snprintf(a->machine, sizeof a->machine, "%s", machine);
    a->password_size = password->len;
    a->password = xmalloc(password->len + 1);
    if (password->len > 0)
        memcpy(a->password, password->data, password->len);
    a->request_size = request_size;
    a->request = xstrdup(request);
    return true;
}

/* --- certificates ------------------------------------------------------------------------------------------------ */

static void sign_run(struct job *job)
{
    struct attempt *a = of_work(job);
    const struct server *server = a->session->server;
    const char *why = NULL;
    struct certificate *certificate =
        ca_issue_device(server->authority.ca, server->authority.ca_key, a->request, a->request_size,
                        a->name, server->certificate_lifetime, &why);
    if (certificate != NULL)
        a->certificate = certificate_to_pem(certificate);
    certificate_free(certificate);
    if (a->certificate == NULL)
        fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why == NULL ? "no certificate" : why);
    worker_done(a);
}

static void answer_credentials(struct attempt *a)
{
    Tracker__Credentials message = TRACKER__CREDENTIALS__INIT;
    const struct member_account *account = members_account(a->session->server->members, a->name);
    message.certificate = a->certificate;
    message.account = a->name;
    message.device = (ProtobufCBinaryData){.len = sizeof a->device, .data = a->device};
    message.admin = account != NULL && account->admin;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_CREDENTIALS, &message.base);
    attempt_free(a);
}

static void sign(struct attempt *a)
{
    to_worker(a, a->session->server->crypto, sign_run, answer_credentials);
}

static void waited(void *arg)
{
    struct attempt *a = arg;
    struct attempt **at = &a->session->server->waiting_attempts;
    while (*at != a)
        at = &(*at)->next_waiting;
    *at = a->next_waiting;
    sign(a);
}

void accounts_stop(struct server *server)
{
    while (server->waiting_attempts != NULL)
        waited(server->waiting_attempts);
}

/* The rows are written: the mirror follows, then the certificate. */
static void issue(struct attempt *a)
{
    struct server *server = a->session->server;
    members_set_account(server->members, &a->account);
    members_set_device(server->members, &a->row);
    throttle_good(server->throttle, a->name);
    int64_t wait = a->row.void_before * NS_PER_S - clock_wall();
    if (wait > 0 && !server->stopping) {
        a->timer = timer_new(server->loop, waited, a);
        timer_set(a->timer, wait);
        a->next_waiting = server->waiting_attempts;
        server->waiting_attempts = a;
        return;
    }
    sign(a);
}

/* The device's row after a log in; moves the device to this account if it was another's. */
static void row_make(struct storage *storage, struct attempt *a)
{
    int64_t now = wall_seconds();
    struct storage_device *row = &a->row;
    if (!storage_device_get(storage, a->device, row)) {
        *row = (struct storage_device){.created = now};
        memcpy(row->id, a->device, sizeof row->id);
    }
    if (row->account[0] != '\0' && strcmp(row->account, a->name) != 0)
        row->void_before = now + 1;
    if (row->void_before > now + WAIT_LONGEST)
        row->void_before = now;
    memcpy(row->account, a->name, sizeof row->account);
    memcpy(row->machine, a->machine, sizeof row->machine);
    row->last_seen = now;
    row->logged_out = false;
    if (row->disabled)
        fail(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this device has been disabled");
    else
        storage_device_put(storage, row);
}

/* --- register --------------------------------------------------------------------------------------------------------- */

/* Is the invite good, is the name free? Looked at before Argon2 is run for it, and again when it is used. */
static bool may_register(struct storage *storage, struct attempt *a)
{
    bool open = a->session->server->registration == REGISTRATION_OPEN;
    if (a->has_invite || !open) {
        if (!a->has_invite ||
            !storage_invite_get(storage, a->invite_hash, wall_seconds(), &a->invite)) {
            fail(a, TRACKER__FAULT_CODE__FAULT_BAD_INVITE,
                 "the invite is unknown, used up or expired");
            return false;
        }
    }
    if (storage_account_get(storage, a->name, &a->account)) {
        fail(a, TRACKER__FAULT_CODE__FAULT_NAME_TAKEN, "the name is taken");
        return false;
    }
    return true;
}

static void register_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    if (!may_register(storage, a))
        return;
    a->account = (struct storage_account){.admin = a->has_invite && a->invite.admin,
                                          .created = wall_seconds()};
    memcpy(a->account.name, a->name, sizeof a->account.name);
    memcpy(a->account.email, a->email, sizeof a->account.email);
    memcpy(a->account.password, a->record, sizeof a->account.password);
    storage_account_add(storage, &a->account);
    if (a->has_invite)
        storage_invite_use(storage, a->invite_hash);
    row_make(storage, a);
    audit(storage, a, "register");
}

static void registered(struct attempt *a)
{
    log_info("%s: registered %s%s", a->from, a->name, a->account.admin ? " as admin" : "");
    issue(a);
}

static void register_hashed(struct attempt *a)
{
    to_storage(a, register_rows_run, true, registered);
}

static void register_hash_run(struct job *job)
{
    struct attempt *a = of_work(job);
    const char *why = NULL;
    if (!csr_inspect(a->request, a->request_size, a->device, &why))
        fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    else if (!password_hash(a->record, a->password, a->password_size))
        fail(a, TRACKER__FAULT_CODE__FAULT_INTERNAL, "the password cannot be hashed now");
    wipe(&a->password, a->password_size);
    worker_done(a);
}

static void register_may(struct attempt *a)
{
    to_worker(a, a->session->server->passwords, register_hash_run, register_hashed);
}

static void register_look_run(struct storage_job *job, struct storage *storage)
{
    may_register(storage, of_storage(job));
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
    if (!password_is_sound(&request->password)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD,
                      "the password must have 8 to 1024 bytes", 0);
        return NULL;
    }
    if (!email_is_sound(request->email)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_EMAIL,
                      "the e-mail address is not a good one", 0);
        return NULL;
    }
    int64_t wait = throttle_spend(server->throttle, s->source_key, REGISTER_COST, clock_now());
    if (wait > 0) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries from there", wait);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    snprintf(a->name, sizeof a->name, "%s", request->name);
    snprintf(a->email, sizeof a->email, "%s", request->email);
    if (!take_request(s, id, a, &request->password, request->request, request->machine))
        return NULL;
    a->has_invite = request->invite[0] != '\0';
    sha256(a->invite_hash, request->invite, strlen(request->invite));
    to_storage(a, register_look_run, false, register_may);
    return NULL;
}

/* --- log in --------------------------------------------------------------------------------------------------------------- */

static void login_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    if (!storage_account_get(storage, a->name, &a->account))
        fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password");
    else if (a->account.disabled)
        fail(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this account has been disabled");
    if (a->fault != OK)
        return;
    row_make(storage, a);
    if (a->record[0] != '\0')
        storage_account_set_password(storage, a->name, a->record);
    audit(storage, a, "login");
}

static void logged_in(struct attempt *a)
{
    log_info("%s: %s has logged in%s%s", a->from, a->name, a->machine[0] == '\0' ? "" : " on ",
             a->machine);
    issue(a);
}

static void login_verified(struct attempt *a)
{
    to_storage(a, login_rows_run, true, logged_in);
}

static void login_failed(struct attempt *a)
{
    struct server *server = a->session->server;
    throttle_bad(server->throttle, a->session->source_key, clock_now());
    server_log_refusal(server, a->from, "wrong name or password for %s", a->name);
    attempt_fault(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password");
}

static void verify_run(struct job *job)
{
    struct attempt *a = of_work(job);
    bool good = password_verify(a->known ? a->account.password : NULL, a->password,
                                a->password_size, &a->upgrade);
    if (!good) {
        a->home = login_failed;
    } else if (a->new_password != NULL) {
        if (!password_hash(a->record, a->new_password, a->new_password_size))
            fail(a, TRACKER__FAULT_CODE__FAULT_INTERNAL, "the password cannot be hashed now");
    } else if (a->upgrade && !password_hash(a->record, a->password, a->password_size)) {
        a->record[0] = '\0'; /* next time, then */
    }
    wipe(&a->password, a->password_size);
    wipe(&a->new_password, a->new_password_size);
    worker_done(a);
}

static void login_run(struct job *job)
{
    struct attempt *a = of_work(job);
    const char *why = NULL;
    if (csr_inspect(a->request, a->request_size, a->device, &why)) {
        verify_run(job);
        return;
    }
    fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    worker_done(a);
}

static void login_looked(struct attempt *a)
{
    to_worker(a, a->session->server->passwords, login_run, login_verified);
}

static void look_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    a->known = storage_account_get(storage, a->name, &a->account);
}

static bool throttled(struct session *s, uint32_t id, const char *name)
{
    int64_t wait = throttle_try(s->server->throttle, name, s->source_key, clock_now());
    if (wait <= 0)
        return false;
    server_log_refusal(s->server, s->from, "too many tries for %s", name);
    session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries; wait a moment", wait);
    return true;
}

const char *accounts_login(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Login *request = message;
    if (account_name_fault(request->name) != NULL || !password_is_sound(&request->password)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password",
                      0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    if (throttled(s, id, request->name)) {
        attempt_free(a);
        return NULL;
    }
    snprintf(a->name, sizeof a->name, "%s", request->name);
    if (take_request(s, id, a, &request->password, request->request, request->machine))
        to_storage(a, look_run, false, login_looked);
    return NULL;
}

/* --- renew ------------------------------------------------------------------------------------------------------------------ */

static void renew_run(struct job *job)
{
    struct attempt *a = of_work(job);
    const char *why = "the request holds another key than the certificate";
    uint8_t device[DEVICE_ID_SIZE];
    if (csr_inspect(a->request, a->request_size, device, &why) &&
        memcmp(device, a->device, sizeof device) == 0) {
        sign_run(job);
        return;
    }
    fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY, why);
    worker_done(a);
}

/* It may have been revoked while it was being signed. */
static void renewed(struct attempt *a)
{
    if (session_is_member(a->session))
        answer_credentials(a);
    else
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_DISABLED, "this device has been logged out");
}

const char *accounts_renew(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Renew *request = message;
    struct attempt *a = attempt_new(s, id, false);
    if (a == NULL)
        return NULL;
    ProtobufCBinaryData none = {0};
    if (take_request(s, id, a, &none, request->request, ""))
        to_worker(a, s->server->crypto, renew_run, renewed);
    return NULL;
}

/* --- log out ------------------------------------------------------------------------------------------------------------------ */

static void logout_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    if (!storage_device_get(storage, a->device, &a->row))
        return;
    a->row.void_before = wall_seconds() + 1;
    a->row.logged_out = true;
    storage_device_put(storage, &a->row);
    audit(storage, a, "logout");
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
        to_storage(a, logout_run, true, logged_out);
    return NULL;
}

/* --- passwords ------------------------------------------------------------------------------------------------------------------ */

static void add_device(const struct storage_device *row, void *arg)
{
    struct attempt *a = arg;
    if (a->devices_count == a->devices_room) {
        a->devices_room = a->devices_room == 0 ? 8 : 2 * a->devices_room;
        a->devices = xrealloc(a->devices, a->devices_room * sizeof *a->devices);
    }
    a->devices[a->devices_count++] = *row;
}

/* A new password is what one reaches for when a device was stolen: all the others must log in again. */
static void password_rows_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    int64_t now = wall_seconds();
    storage_account_set_password(storage, a->name, a->record);
    storage_device_each(storage, a->name, add_device, a);
    size_t kept = 0;
    for (size_t i = 0; i < a->devices_count; i++) {
        struct storage_device row = a->devices[i];
        if (memcmp(row.id, a->device, sizeof row.id) == 0 || row.logged_out)
            continue;
        row.void_before = now + 1;
        row.logged_out = true;
        storage_device_put(storage, &row);
        a->devices[kept++] = row;
    }
    a->devices_count = kept;
    audit(storage, a, "passwd");
}

static void password_changed(struct attempt *a)
{
    struct server *server = a->session->server;
    log_info("%s: %s has a new password; %zu other devices have to log in again", a->from, a->name,
             a->devices_count);
    throttle_good(server->throttle, a->name);
    uint8_t(*ids)[DEVICE_ID_SIZE] = xcalloc(a->devices_count + 1, sizeof *ids);
    for (size_t i = 0; i < a->devices_count; i++) {
        members_set_device(server->members, &a->devices[i]);
        memcpy(ids[i], a->devices[i].id, DEVICE_ID_SIZE);
    }
    if (a->devices_count > 0)
        sessions_revoke(server, (const uint8_t(*)[DEVICE_ID_SIZE])ids, a->devices_count, NULL);
    free(ids);
    session_done(a->session, a->id);
    attempt_free(a);
}

static void password_verified(struct attempt *a)
{
    to_storage(a, password_rows_run, true, password_changed);
}

static void password_looked(struct attempt *a)
{
    to_worker(a, a->session->server->passwords, verify_run, password_verified);
}

const char *accounts_password(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Password *request = message;
    if (!password_is_sound(&request->new_)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD,
                      "the password must have 8 to 1024 bytes", 0);
        return NULL;
    }
    if (request->old.len > LIMIT_PASSWORD) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong password", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, true);
    if (a == NULL)
        return NULL;
    if (throttled(s, id, s->account)) {
        attempt_free(a);
        return NULL;
    }
    a->password_size = request->old.len;
    a->password = xcalloc(1, request->old.len + 1);
    if (request->old.len > 0)
        memcpy(a->password, request->old.data, request->old.len);
    a->new_password_size = request->new_.len;
    a->new_password = xmemdup(request->new_.data, request->new_.len);
    to_storage(a, look_run, false, password_looked);
    return NULL;
}

/* --- whoami ------------------------------------------------------------------------------------------------------------------------ */

static void whoami_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    a->known = storage_account_get(storage, a->name, &a->account);
    storage_device_each(storage, a->name, add_device, a);
}

static void whoami_known(struct attempt *a)
{
    struct server *server = a->session->server;
    Tracker__Account message = TRACKER__ACCOUNT__INIT;
    size_t count = a->devices_count;
    Tracker__Device *devices = xcalloc(count + 1, sizeof *devices);
    Tracker__Device **list = xcalloc(count + 1, sizeof *list);
    for (size_t i = 0; i < count; i++) {
        struct storage_device *row = &a->devices[i];
        struct swarm_device *peer = swarm_device_find(server->swarm, row->id);
        tracker__device__init(&devices[i]);
        devices[i].id = (ProtobufCBinaryData){.len = sizeof row->id, .data = row->id};
        devices[i].machine = row->machine;
        devices[i].connected = peer != NULL && swarm_owner(peer) != NULL;
        devices[i].last_seen = devices[i].connected ? wall_seconds() : row->last_seen;
        list[i] = &devices[i];
    }
    message.name = a->name;
    message.email = a->account.email;
    message.admin = a->account.admin;
    message.created = a->account.created;
    message.n_devices = count;
    message.devices = list;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_ACCOUNT, &message.base);
    free(devices);
    free(list);
    attempt_free(a);
}

const char *accounts_whoami(struct session *s, uint32_t id, const void *message)
{
    struct attempt *a = attempt_new(s, id, false);
    if (a != NULL)
        to_storage(a, whoami_run, false, whoami_known);
    return NULL;
}

/* --- invites ------------------------------------------------------------------------------------------------------------------------- */

static void invite_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = of_storage(job);
    storage_invite_add(storage, &a->invite);
    audit(storage, a, "invite");
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
    if (request->uses > ACCOUNTS_INVITE_USES_MAX || request->lifetime > ACCOUNTS_INVITE_LONGEST) {
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
    to_storage(a, invite_run, true, invited);
    return NULL;
}
