/* The steps that attempts have in common: between threads and home again, passwords, certificates.
 *
 * Owns the attempts under way and bounds how many there are. Certificates are dated to the second, so one that is
 * issued in the second of a log out would be void with those before it: it waits that second. */
#include "tracker/attempt.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/password.h"
#include "crypto/random.h"

#define BUSY_RETRY   (2 * NS_PER_S)
#define WAIT_LONGEST 2 /* seconds; if more is to wait, the clock has been set back */

/* --- life --------------------------------------------------------------------------------- */

void attempt_wipe(char **secret, size_t size)
{
    if (*secret != NULL) {
        secret_wipe(*secret, size);
        free(*secret);
        *secret = NULL;
    }
}

void attempt_free(struct attempt *a)
{
    struct session *s = a->session;
    s->server->attempts--;
    s->busy--;
    attempt_wipe(&a->password, a->password_size);
    attempt_wipe(&a->new_password, a->new_password_size);
    timer_free(a->timer);
    free(a->request);
    free(a->certificate);
    free(a->devices);
    catalogue_changes_clear(&a->changes);
    if (a->users != NULL)
        secret_wipe(a->users, a->users_count * sizeof *a->users);
    free(a->users);
    secret_wipe(a, sizeof *a);
    free(a);
    session_release(s);
}

/* NULL if there are too many: then the answer has been given. */
struct attempt *attempt_new(struct session *s, uint32_t id, bool password)
{
    struct server *server = s->server;
    if (s->busy >= (session_is_member(s) ? LIMIT_ATTEMPTS_MEMBER : 1) ||
        server->attempts >= LIMIT_ATTEMPTS ||
        (password && workers_backlog(server->passwords) >= LIMIT_PASSWORD_JOBS)) {
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

void attempt_fault(struct attempt *a, Tracker__FaultCode code, const char *why)
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

struct attempt *attempt_of_storage(struct storage_job *job)
{
    return (struct attempt *)(void *)((char *)job - offsetof(struct attempt, storage));
}

struct attempt *attempt_of_work(struct job *job)
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
    if (a->fault != ATTEMPT_OK) {
        if (a->fault == TRACKER__FAULT_CODE__FAULT_NEEDS_CODE) /* it was no guess */
            throttle_good(a->session->server->throttle, a->name, a->session->source_key);
        if (a->fault == TRACKER__FAULT_CODE__FAULT_BAD_INVITE ||
            a->fault == TRACKER__FAULT_CODE__FAULT_WRONG_CODE)
            throttle_bad(a->session->server->throttle, a->session->source_key, clock_now());
        if (a->fault != TRACKER__FAULT_CODE__FAULT_INTERNAL)
            server_log_refusal(a->session->server, a->from, "refused %s: %s", a->name, a->why);
        attempt_fault(a, a->fault, a->why);
        return;
    }
    a->home(a);
}

static void stored(struct storage_job *job)
{
    struct attempt *a = attempt_of_storage(job);
    if (job->failed && a->fault == ATTEMPT_OK) {
        a->fault = TRACKER__FAULT_CODE__FAULT_INTERNAL;
        a->why = "the tracker cannot write to its database";
    }
    go_home(a);
}

void attempt_to_storage(struct attempt *a, void (*run)(struct storage_job *, struct storage *),
                        bool writes, void (*home)(struct attempt *))
{
    if (is_stopping(a))
        return;
    a->home = home;
    a->storage = (struct storage_job){.run = run, .done = stored, .writes = writes};
    storage_queue_post(a->session->server->queue, &a->storage);
}

static void deliver(struct mail *mail, void *owner)
{
    go_home(of_mail(mail));
}

/* Called by a worker's function as its last act. */
void attempt_worker_done(struct attempt *a)
{
    a->mail = (struct mail){.deliver = deliver};
    loop_post(a->session->server->loop, &a->mail);
}

void attempt_to_worker(struct attempt *a, struct workers *workers, void (*run)(struct job *),
                       void (*home)(struct attempt *))
{
    if (is_stopping(a))
        return;
    a->home = home;
    a->work = (struct job){.run = run};
    workers_post(workers, &a->work, false);
}

void attempt_fail(struct attempt *a, Tracker__FaultCode code, const char *why)
{
    a->fault = code;
    a->why = why;
}

void attempt_audit(struct storage *storage, const struct attempt *a, const char *what)
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

void attempt_audit_about(struct storage *storage, const struct attempt *a, const char *what,
                         const char *account, const char *detail)
{
    struct storage_event event = {.when = wall_seconds(),
                                  .what = what,
                                  .account = account,
                                  .device = session_is_member(a->session) ? a->device : NULL,
                                  .source = a->from,
                                  .by = strcmp(account, a->name) == 0 ? NULL : a->name,
                                  .detail = detail};
    storage_audit(storage, &event);
}

/* --- what requests hold -------------------------------------------------------------------------- */

bool attempt_password_is_sound(const ProtobufCBinaryData *password)
{
    return password->len >= LIMIT_PASSWORD_MIN && password->len <= LIMIT_PASSWORD;
}

bool attempt_take_request(struct attempt *a, const ProtobufCBinaryData *password,
                          const char *request, const char *machine)
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

/* --- passwords ---------------------------------------------------------------------------------- */

void attempt_look_run(struct storage_job *job, struct storage *storage)
{
    struct attempt *a = attempt_of_storage(job);
    a->known = storage_account_get(storage, a->name, &a->account);
}

static bool answer_wait(struct session *s, uint32_t id, const char *name, int64_t wait)
{
    if (wait <= 0)
        return false;
    server_log_refusal(s->server, s->from, "too many tries for %s", name);
    session_fault(s, id, TRACKER__FAULT_CODE__FAULT_BUSY, "too many tries; wait a moment", wait);
    return true;
}

bool attempt_is_throttled(struct session *s, uint32_t id, const char *name)
{
    struct throttle *throttle = s->server->throttle;
    int64_t now = clock_now();
    int64_t wait = session_is_member(s) ? throttle_pair(throttle, name, s->device, now)
                                        : throttle_try(throttle, name, s->source_key, now);
    return answer_wait(s, id, name, wait);
}

/* Six digits are soon guessed by one who has the password: whoever comes, from wherever, waits for the others. */
static const uint8_t everywhere[16] = {0xff, 2};

bool attempt_code_is_throttled(struct attempt *a)
{
    struct session *s = a->session;
    struct throttle *throttle = s->server->throttle;
    if (a->second[0] == '\0' ||
        !answer_wait(s, a->id, a->name, throttle_pair(throttle, a->name, everywhere, clock_now())))
        return false;
    throttle_good(throttle, a->name, s->source_key); /* the password was right */
    attempt_free(a);
    return true;
}

void attempt_good(struct attempt *a)
{
    struct throttle *throttle = a->session->server->throttle;
    throttle_good(throttle, a->name, a->session->source_key);
    throttle_good(throttle, a->name, a->device);
    if (a->second[0] != '\0')
        throttle_good(throttle, a->name, everywhere);
}

bool attempt_take_password(struct attempt *a, const ProtobufCBinaryData *password, const char *code)
{
    struct session *s = a->session;
    if (password->len > LIMIT_PASSWORD) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong password");
        return false;
    }
    if (strlen(code) > LIMIT_SECOND_FACTOR) {
        attempt_fault(a, TRACKER__FAULT_CODE__FAULT_WRONG_CODE, "wrong code");
        return false;
    }
    if (attempt_is_throttled(s, a->id, a->name)) {
        attempt_free(a);
        return false;
    }
    snprintf(a->second, sizeof a->second, "%s", code);
    a->password_size = password->len;
    a->password = xcalloc(1, password->len + 1);
    if (password->len > 0)
        memcpy(a->password, password->data, password->len);
    return true;
}

static void login_failed(struct attempt *a)
{
    struct server *server = a->session->server;
    throttle_bad(server->throttle, a->session->source_key, clock_now());
    server_log_refusal(server, a->from, "wrong name or password for %s", a->name);
    server_audit_refusal(server, a->name, a->from);
    attempt_fault(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong name or password");
}

void attempt_verify_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    memcpy(a->verified, a->account.password, sizeof a->verified);
    bool good = password_verify(a->known ? a->account.password : NULL, a->password,
                                a->password_size, &a->upgrade);
    if (!good) {
        a->home = login_failed;
    } else if (a->new_password != NULL) {
        if (!password_hash(a->record, a->new_password, a->new_password_size))
            attempt_fail(a, TRACKER__FAULT_CODE__FAULT_INTERNAL,
                         "the password cannot be hashed now");
    } else if (a->upgrade && !password_hash(a->record, a->password, a->password_size)) {
        a->record[0] = '\0'; /* next time, then */
    }
    attempt_wipe(&a->password, a->password_size);
    attempt_wipe(&a->new_password, a->new_password_size);
    attempt_worker_done(a);
}

/* --- certificates ----------------------------------------------------------------------------------- */

void attempt_sign_run(struct job *job)
{
    struct attempt *a = attempt_of_work(job);
    const struct server *server = a->session->server;
    const char *why = NULL;
    struct certificate *certificate =
        ca_issue_device(server->authority.ca, server->authority.ca_key, a->request, a->request_size,
                        a->name, server->certificate_lifetime, &why);
    struct certificate_subject subject;
    if (certificate != NULL)
        a->certificate = certificate_to_pem(certificate);
    if (certificate != NULL && certificate_subject(certificate, &subject))
        a->valid_until = subject.not_after;
    certificate_free(certificate);
    if (a->certificate == NULL)
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_BAD_REQUEST_KEY,
                     why == NULL ? "no certificate" : why);
    attempt_worker_done(a);
}

void attempt_answer(struct attempt *a)
{
    Tracker__Credentials message = TRACKER__CREDENTIALS__INIT;
    const struct member_account *account = members_account(a->session->server->members, a->name);
    message.certificate = a->certificate;
    message.account = a->name;
    message.device = (ProtobufCBinaryData){.len = sizeof a->device, .data = a->device};
    message.admin = account != NULL && account->admin;
    struct session *s = a->session;
    session_answer(s, a->id, TRACKER__TRACKER_TYPE__TRACKER_CREDENTIALS, &message.base);
    /* It logged in as somebody else over its own link: that link is the old account's. */
    if (session_is_open(s) && session_is_member(s) && strcmp(s->account, a->name) != 0) {
        s->ending = true;
        channel_finish(s->channel, "the device is another account's now");
    }
    attempt_free(a);
}

static void sign(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->crypto, attempt_sign_run, attempt_answer);
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
void attempt_issue(struct attempt *a)
{
    struct server *server = a->session->server;
    struct swarm_device *peer = swarm_device_find(server->swarm, a->device);
    struct session *connected = peer == NULL ? NULL : swarm_owner(peer);
    if (connected != NULL && connected != a->session && strcmp(connected->account, a->name) != 0)
        session_end(connected, "the device is another account's now");
    members_set_account(server->members, &a->account);
    if (a->forgot)
        members_drop_device(server->members, a->forgotten);
    members_set_device(server->members, &a->row);
    attempt_good(a);
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

/* Room for one more. A device that is logged out, and whose certificates have all ended, needs no row to be kept out. */
static bool make_room(struct storage *storage, struct attempt *a, int64_t now)
{
    if (storage_device_count(storage, a->name) < LIMIT_ACCOUNT_DEVICES)
        return true;
    a->forgot = storage_device_forget(
        storage, a->name,
        now - a->session->server->certificate_lifetime - LIMIT_CERTIFICATE_GRACE_S, a->forgotten);
    if (!a->forgot)
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_LIMIT,
                     "the account has as many devices as it may: log some out");
    return a->forgot;
}

bool attempt_row_make(struct storage *storage, struct attempt *a)
{
    int64_t now = wall_seconds();
    struct storage_device *row = &a->row;
    if (!storage_device_get(storage, a->device, row)) {
        *row = (struct storage_device){.created = now};
        memcpy(row->id, a->device, sizeof row->id);
    }
    if (strcmp(row->account, a->name) != 0 && !make_room(storage, a, now))
        return false;
    if (row->account[0] != '\0' && strcmp(row->account, a->name) != 0)
        row->void_before = now + 1;
    if (row->void_before > now + WAIT_LONGEST)
        row->void_before = now;
    memcpy(row->account, a->name, sizeof row->account);
    memcpy(row->machine, a->machine, sizeof row->machine);
    row->last_seen = now;
    row->logged_out = false;
    return true;
}

/* --- devices ------------------------------------------------------------------------------------------- */

void attempt_add_device(const struct storage_device *row, void *arg)
{
    struct attempt *a = arg;
    if (a->devices_count == a->devices_room) {
        a->devices_room = a->devices_room == 0 ? 8 : 2 * a->devices_room;
        a->devices = xrealloc(a->devices, a->devices_room * sizeof *a->devices);
    }
    a->devices[a->devices_count++] = *row;
}

void attempt_log_out_run(struct storage *storage, struct attempt *a, const char *account,
                         const uint8_t *but)
{
    int64_t now = wall_seconds();
    size_t kept = 0;
    a->devices_count = 0;
    storage_device_each(storage, account, attempt_add_device, a);
    for (size_t i = 0; i < a->devices_count; i++) {
        struct storage_device row = a->devices[i];
        if (row.logged_out || (but != NULL && memcmp(row.id, but, sizeof row.id) == 0))
            continue;
        row.void_before = now + 1;
        row.logged_out = true;
        storage_device_put(storage, &row);
        a->devices[kept++] = row;
    }
    a->devices_count = kept;
}

void attempt_revoke(struct attempt *a)
{
    struct server *server = a->session->server;
    if (a->devices_count == 0)
        return;
    struct session *s = a->session;
    bool self = false; /* the asking device is among them: its answer leaves first */
    uint8_t(*ids)[DEVICE_ID_SIZE] = xcalloc(a->devices_count, sizeof *ids);
    for (size_t i = 0; i < a->devices_count; i++) {
        members_set_device(server->members, &a->devices[i]);
        memcpy(ids[i], a->devices[i].id, DEVICE_ID_SIZE);
        self |= session_is_member(s) && memcmp(ids[i], s->device, DEVICE_ID_SIZE) == 0;
    }
    sessions_revoke(server, (const uint8_t(*)[DEVICE_ID_SIZE])ids, a->devices_count,
                    self ? s : NULL);
    free(ids);
    if (self && session_is_open(s)) {
        s->ending = true;
        channel_finish(s->channel, "this device has been logged out");
    }
}
