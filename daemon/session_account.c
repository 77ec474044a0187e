/* Accounts: registering, logging in and out, password, invitation, whoami; and the certificate's
 * renewal.
 *
 * Owns the one flow that may be under way (a second request meanwhile is told to wait) with the
 * temporary connection that registering and logging in use: it shows no certificate, and trusts the
 * tracker only if its CA has the fingerprint in the swarm's address. Leaves the kept connection to
 * session.c. Thread: "tracker"; the device's key is made on a worker.
 *
 *   register, log in:  prepare (worker: key, request) -> connect -> Register/Login -> Credentials
 * -> write HOME -> install the others:        one request on the kept connection
 *
 * Passwords are wiped as soon as they have been sent or the flow has ended, whichever comes first.
 */
#include "daemon/session_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/workers.h"
#include "crypto/random.h"
#include "daemon/local.h"
#include "proto/limits.h"

/* How often the certificate's age is looked at: the wall clock may jump, so no timer is set to the
 * due time itself. Until it is renewed others refuse it, and readers do not wait longer than half a minute. */
#define RENEW_LOOK_NS (5 * NS_PER_S)
/* A member's device certificate lives a day; it is renewed when less than this share of its life is
 * left. */
#define RENEW_SHARE 3

/* A worker's part of a flow. */
struct preparation {
    struct job job;
    struct mail mail;
    struct loop *loop;
    struct account_flow *flow;
    char *key_path;
    const char *fault;
};

void account_request_free(struct account_request *request)
{
    if (request == NULL)
        return;
    if (request->password != NULL)
        secret_wipe(request->password, request->password_size);
    if (request->new_password != NULL)
        secret_wipe(request->new_password, request->new_password_size);
    if (request->code != NULL)
        secret_wipe(request->code, strlen(request->code));
    if (request->call != NULL)
        secret_wipe(request->call, request->call_size);
    free(request->code);
    free(request->call);
    free(request->password);
    free(request->new_password);
    free(request->url);
    free(request->name);
    free(request->email);
    free(request);
}

void account_answer_free(struct account_answer *answer)
{
    if (answer == NULL)
        return;
    if (answer->account != NULL)
        tracker__account__free_unpacked(answer->account, NULL);
    if (answer->call != NULL)
        secret_wipe(answer->call, answer->call_size);
    free(answer->call);
    free(answer->text);
    free(answer->url);
    free(answer->swarm);
    free(answer->name);
    free(answer->device);
    free(answer);
}

/* --- answering
 * --------------------------------------------------------------------------------------------- */

static struct account_answer *answer_new(struct session *s, void *cookie)
{
    struct account_answer *answer = xcalloc(1, sizeof *answer);
    struct credentials *c = s->credentials;

    answer->cookie = cookie;
    if (c != NULL) {
        char url[SWARM_URL_MAX];
        char device[2 * DEVICE_ID_SIZE + 1];
        swarm_url_format(url, &c->url, false);
        for (size_t i = 0; i < DEVICE_ID_SIZE; i++)
            snprintf(device + 2 * i, 3, "%02x", c->device[i]);
        answer->url = xstrdup(url);
        answer->device = xstrdup(device);
        answer->name = xstrdup(c->account);
        answer->swarm = s->swarm == NULL ? NULL : xstrdup(s->swarm);
        answer->certificate_until = c->valid_until;
    }
    return answer;
}

static void flow_free(struct account_flow *flow)
{
    tracker_link_free(flow->link);
    tls_context_free(flow->context);
    key_free(flow->key);
    free(flow->certificate_request);
    account_request_free(flow->request);
    free(flow);
}

static void hand_back(struct account_flow *flow, struct account_answer *answer)
{
    struct session *s = flow->session;

    CHECK(s->flow == flow && !flow->preparing);
    s->flow = NULL;
    flow_free(flow);
    local_account_answer(s->daemon->local, answer);
}

void account_flow_finish(struct account_flow *flow, int error, const char *text,
                         Tracker__Account *account)
{
    struct account_answer *answer = answer_new(flow->session, flow->request->cookie);

    answer->error = error;
    answer->text = text == NULL ? NULL : xstrdup(text);
    answer->account = account;
    hand_back(flow, answer);
}

void account_flow_finish_call(struct account_flow *flow, const struct tracker_answer *from)
{
    struct account_answer *answer = answer_new(flow->session, flow->request->cookie);

    answer->call_type = from->type;
    answer->call = xmemdup(from->message, from->size);
    answer->call_size = from->size;
    hand_back(flow, answer);
}

static int fault_errno(const Tracker__Fault *fault)
{
    switch (fault->code) {
    case TRACKER__FAULT_CODE__FAULT_BUSY:
        return EAGAIN;
    case TRACKER__FAULT_CODE__FAULT_NAME_TAKEN:
        return EEXIST;
    case TRACKER__FAULT_CODE__FAULT_INTERNAL:
        return EIO;
    case TRACKER__FAULT_CODE__FAULT_MALFORMED:
    case TRACKER__FAULT_CODE__FAULT_BAD_NAME:
    case TRACKER__FAULT_CODE__FAULT_BAD_PASSWORD:
    case TRACKER__FAULT_CODE__FAULT_BAD_EMAIL:
        return EINVAL;
    case TRACKER__FAULT_CODE__FAULT_NEEDS_CODE:
        return ENOKEY;
    case TRACKER__FAULT_CODE__FAULT_NOT_FOUND:
        return ENOENT;
    case TRACKER__FAULT_CODE__FAULT_NO_MAIL:
        return EOPNOTSUPP;
    default:
        return EACCES;
    }
}

int account_fault(const Tracker__Fault *fault, char **text)
{
    *text = fault->retry_after > 0
                ? xasprintf("%s (try again in %u s)", fault->text, fault->retry_after)
                : xstrdup(fault->text);
    return fault_errno(fault);
}

/* True if the answer is what was asked for; else the flow has been finished. */
static bool answered_well(struct account_flow *flow, const struct tracker_answer *answer,
                          unsigned type)
{
    char *text = NULL;

    if (answer->lost != NULL) {
        account_flow_finish(flow, ENOTCONN, answer->lost, NULL);
    } else if (answer->fault != NULL) {
        int error = account_fault(answer->fault, &text);
        account_flow_finish(flow, error, text, NULL);
        free(text);
    } else if (answer->type != type) {
        account_flow_finish(flow, EPROTO, "the tracker sent an unexpected answer", NULL);
    } else {
        return true;
    }
    return false;
}

/* --- registering and logging in
 * ----------------------------------------------------------------------------- */

/* Makes credentials from the tracker's answer. NULL and *fault. */
static struct credentials *accept_credentials(struct session *s, const struct swarm_url *url,
                                              struct key *key, struct certificate *ca,
                                              const struct tracker_answer *answer,
                                              const char **fault)
{
    struct credentials *fresh = NULL;
    Tracker__Credentials *message =
        tracker__credentials__unpack(NULL, answer->size, answer->message);

    if (message == NULL || ca == NULL) {
        *fault = "the tracker sent a malformed message";
    } else {
        struct certificate *certificate =
            certificate_from_pem(message->certificate, strlen(message->certificate), fault);
        if (certificate != NULL)
            fresh = credentials_new(s->daemon->home, url, key, certificate, ca, fault);
        certificate_free(certificate);
    }
    if (message != NULL)
        tracker__credentials__free_unpacked(message, NULL);
    return fresh;
}

static void credentials_came(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;
    struct session *s = flow->session;
    const char *fault = NULL;

    if (answer->lost != NULL)
        return; /* `down` follows and ends the flow */
    if (answer->type == TRACKER__TRACKER_TYPE__TRACKER_DONE &&
        flow->request->verb == ACCOUNT_REGISTER) {
        session_call_remember(s, &flow->url);
        account_flow_finish(flow, 0,
                            "a code is on its way to the e-mail address: give it to 'p2pctl email "
                            "verify', then log in",
                            NULL);
        return;
    }
    if (!answered_well(flow, answer, TRACKER__TRACKER_TYPE__TRACKER_CREDENTIALS))
        return;
    struct certificate *ca = tracker_link_ca(flow->link);
    struct credentials *fresh = accept_credentials(s, &flow->url, flow->key, ca, answer, &fault);
    certificate_free(ca);
    if (fresh == NULL) {
        account_flow_finish(flow, EIO, fault, NULL);
        return;
    }
    log_info("logged in as %s", fresh->account);
    session_call_remember(s, &flow->url);
    session_install(s, fresh);
    account_flow_finish(flow, 0, flow->note, NULL);
}

static void flow_link_up(void *arg, const Tracker__Welcome *welcome)
{
    struct account_flow *flow = arg;
    struct account_request *request = flow->request;
    char machine[65] = "";

    (void)welcome;
    if (request->verb == ACCOUNT_CALL) {
        session_call_send(flow, flow->link);
        return;
    }
    if (gethostname(machine, sizeof machine - 1) != 0 || !name_is_valid(machine, strlen(machine)))
        machine[0] = '\0';
    if (request->verb == ACCOUNT_REGISTER) {
        Tracker__Register message = TRACKER__REGISTER__INIT;
        char none[] = "";
        message.name = request->name;
        message.password.data = request->password;
        message.password.len = request->password_size;
        message.email = request->email != NULL ? request->email : none;
        message.invite = flow->url.invite;
        message.request = flow->certificate_request;
        message.machine = machine;
        tracker_link_request(flow->link, TRACKER__TRACKER_TYPE__TRACKER_REGISTER, &message.base,
                             credentials_came, flow);
    } else {
        Tracker__Login message = TRACKER__LOGIN__INIT;
        message.name = request->name;
        message.password.data = request->password;
        message.password.len = request->password_size;
        message.request = flow->certificate_request;
        message.machine = machine;
        if (request->code != NULL)
            message.code = request->code;
        tracker_link_request(flow->link, TRACKER__TRACKER_TYPE__TRACKER_LOGIN, &message.base,
                             credentials_came, flow);
    }
    secret_wipe(request->password, request->password_size);
}

static void flow_link_down(void *arg, const char *why)
{
    struct account_flow *flow = arg;
    char *text = xasprintf("the tracker at %s port %u can't be used: %s", flow->url.host,
                           flow->url.port, why);

    account_flow_finish(flow, ENOTCONN, text, NULL);
    free(text);
}

static const char *flow_link_push(void *arg, unsigned type, const uint8_t *message, size_t size)
{
    (void)arg, (void)type, (void)message, (void)size;
    return "the tracker sent an unexpected message";
}

static const struct tracker_link_events flow_events = {
    .up = flow_link_up, .push = flow_link_push, .down = flow_link_down};

void account_flow_dial(struct account_flow *flow)
{
    struct session *s = flow->session;
    const char *fault = NULL;
    struct tls_settings settings = {
        .policy = TLS_TRACKER_CLIENT,
        .ca_fingerprint = flow->url.ca,
        .handshake_timeout_ns = LIMIT_HANDSHAKE_NS,
    };

    flow->context = tls_context_new(&settings, &fault);
    if (flow->context == NULL)
        account_flow_finish(flow, EIO, fault, NULL);
    else
        flow->link =
            tracker_link_new(s->loop, &s->pools, &flow->url, flow->context, &flow_events, flow);
}

static void prepared(struct mail *mail, void *owner)
{
    struct preparation *p =
        (struct preparation *)(void *)((char *)mail - offsetof(struct preparation, mail));
    struct account_flow *flow = p->flow;
    const char *fault = p->fault;

    (void)owner;
    free(p->key_path);
    free(p);
    flow->preparing = false;
    if (flow->abandoned)
        flow_free(flow);
    else if (fault != NULL)
        account_flow_finish(flow, EIO, fault, NULL);
    else
        account_flow_dial(flow);
}

static void prepare(struct job *job)
{
    struct preparation *p = (struct preparation *)(void *)job;
    struct account_flow *flow = p->flow;

    if (access(p->key_path, F_OK) == 0) {
        flow->key = key_load(p->key_path, &p->fault);
    } else if ((flow->key = key_generate(&p->fault)) != NULL &&
               !key_save(flow->key, p->key_path, &p->fault)) {
        key_free(flow->key);
        flow->key = NULL;
    }
    if (flow->key != NULL)
        flow->certificate_request = csr_create(flow->key, &p->fault);
    if (flow->certificate_request != NULL)
        p->fault = NULL;
    loop_post(p->loop, &p->mail);
}

static void start_login(struct account_flow *flow)
{
    struct session *s = flow->session;
    struct account_request *request = flow->request;
    const char *fault = NULL;

    if (!swarm_url_parse(&flow->url, request->url, &fault)) {
        char *text = xasprintf("the swarm's address is not good: %s", fault);
        account_flow_finish(flow, EINVAL, text, NULL);
        free(text);
        return;
    }
    if (s->credentials != NULL) {
        bool same = memcmp(s->credentials->url.ca, flow->url.ca, sizeof flow->url.ca) == 0 &&
                    strcmp(s->credentials->account, request->name) == 0;
        if (!same || request->verb == ACCOUNT_REGISTER) {
            char *text = xasprintf("already logged in as %s; log out first (p2pctl logout)",
                                   s->credentials->account);
            account_flow_finish(flow, EEXIST, text, NULL);
            free(text);
            return;
        }
        flow->note = "this device was logged in already; its certificate has been renewed";
    }
    struct preparation *p = xcalloc(1, sizeof *p);
    p->job.run = prepare;
    p->mail.deliver = prepared;
    p->loop = s->loop;
    p->flow = flow;
    p->key_path = home_path(s->daemon->home, "device.key");
    flow->preparing = true;
    workers_post(s->daemon->handshakes, &p->job, false);
}

/* --- the other verbs
 * ------------------------------------------------------------------------------------------ */

static void logged_out(struct account_flow *flow, const char *note)
{
    struct session *s = flow->session;

    log_info("logged out");
    credentials_forget(s->daemon->home);
    session_install(s, NULL);
    account_flow_finish(flow, 0, note, NULL);
}

static void logout_answered(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;

    if (answer->lost != NULL)
        account_flow_finish(flow, ENOTCONN,
                            "the connection to the tracker was lost meanwhile; try again", NULL);
    else
        logged_out(flow, NULL);
}

static void password_answered(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;

    if (answered_well(flow, answer, TRACKER__TRACKER_TYPE__TRACKER_DONE))
        account_flow_finish(flow, 0, NULL, NULL);
}

static void whoami_answered(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;

    if (!answered_well(flow, answer, TRACKER__TRACKER_TYPE__TRACKER_ACCOUNT))
        return;
    Tracker__Account *account = tracker__account__unpack(NULL, answer->size, answer->message);
    if (account == NULL)
        account_flow_finish(flow, EPROTO, "the tracker sent a malformed message", NULL);
    else
        account_flow_finish(flow, 0, NULL, account);
}

static void invite_answered(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;
    char text[SWARM_URL_MAX];

    if (!answered_well(flow, answer, TRACKER__TRACKER_TYPE__TRACKER_INVITED))
        return;
    Tracker__Invited *invited = tracker__invited__unpack(NULL, answer->size, answer->message);
    if (invited == NULL || strlen(invited->code) > SWARM_INVITE_MAX) {
        account_flow_finish(flow, EPROTO, "the tracker sent a malformed message", NULL);
    } else {
        struct swarm_url url = flow->session->credentials->url;
        snprintf(url.invite, sizeof url.invite, "%s", invited->code);
        swarm_url_format(text, &url, true);
        account_flow_finish(flow, 0, text, NULL);
    }
    if (invited != NULL)
        tracker__invited__free_unpacked(invited, NULL);
}

static void start_online(struct account_flow *flow)
{
    struct session *s = flow->session;
    struct account_request *request = flow->request;

    switch (request->verb) {
    case ACCOUNT_LOGOUT: {
        Tracker__Logout message = TRACKER__LOGOUT__INIT;
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_LOGOUT, &message.base,
                             logout_answered, flow);
        return;
    }
    case ACCOUNT_PASSWORD: {
        Tracker__Password message = TRACKER__PASSWORD__INIT;
        message.old.data = request->password;
        message.old.len = request->password_size;
        message.new_.data = request->new_password;
        message.new_.len = request->new_password_size;
        message.logout_others = request->logout_others;
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_PASSWORD, &message.base,
                             password_answered, flow);
        return;
    }
    case ACCOUNT_WHOAMI: {
        Tracker__Whoami message = TRACKER__WHOAMI__INIT;
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_WHOAMI, &message.base,
                             whoami_answered, flow);
        return;
    }
    case ACCOUNT_INVITE: {
        Tracker__Invite message = TRACKER__INVITE__INIT;
        message.admin = request->admin;
        message.uses = request->uses;
        message.lifetime = request->lifetime;
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_INVITE, &message.base,
                             invite_answered, flow);
        return;
    }
    case ACCOUNT_CALL:
        session_call_send(flow, s->link);
        return;
    case ACCOUNT_REGISTER:
    case ACCOUNT_LOGIN:
        break;
    }
    CHECK(!"a verb that needs the kept connection");
}

static void start_flow(struct account_flow *flow)
{
    struct session *s = flow->session;
    enum account_verb verb = flow->request->verb;

    if (verb == ACCOUNT_REGISTER || verb == ACCOUNT_LOGIN)
        start_login(flow);
    else if (verb == ACCOUNT_CALL && session_call_is_strangers(flow->request->call_type) &&
             !tracker_link_is_up(s->link))
        session_call_dial(flow);
    else if (s->credentials == NULL)
        account_flow_finish(flow, EACCES, "not logged in", NULL);
    else if (verb == ACCOUNT_WHOAMI && !flow->request->ask_tracker)
        account_flow_finish(flow, 0, NULL, NULL);
    else if (tracker_link_is_up(s->link))
        start_online(flow);
    else if (s->link != NULL)
        flow->connecting = true; /* session_account_link_up or _down goes on */
    else if (verb == ACCOUNT_LOGOUT)
        logged_out(flow, "the tracker is away: it still lists this device until its certificate "
                         "ends, within a day");
    else if (verb == ACCOUNT_WHOAMI)
        account_flow_finish(flow, 0, "the tracker is away; this is what is known here", NULL);
    else
        account_flow_finish(flow, ENOTCONN, "the tracker is away", NULL);
}

struct account_mail {
    struct mail mail;
    struct account_request *request;
};

static void deliver_account(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct account_mail *mail = (struct account_mail *)raw;
    struct account_request *request = mail->request;

    free(mail);
    if (s->flow != NULL || s->stopping) {
        struct account_answer *answer = answer_new(s, request->cookie);
        answer->error = s->stopping ? ECANCELED : EBUSY;
        answer->text =
            xstrdup(s->stopping ? "p2pd is stopping"
                                : "another log in or the like is under way; try again in a moment");
        account_request_free(request);
        local_account_answer(s->daemon->local, answer);
        return;
    }
    s->flow = xcalloc(1, sizeof *s->flow);
    s->flow->session = s;
    s->flow->request = request;
    start_flow(s->flow);
}

void session_account(struct session *s, struct account_request *request)
{
    struct account_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_account;
    mail->request = request;
    loop_post(s->loop, &mail->mail);
}

/* --- renewal
 * ----------------------------------------------------------------------------------------------------
 */

static void renewed(void *arg, const struct tracker_answer *answer)
{
    struct session *s = arg;
    const char *fault = NULL;

    s->renewing = false;
    if (answer->lost != NULL || s->credentials == NULL)
        return;
    if (answer->fault != NULL) {
        log_warning("the tracker does not renew the certificate: %s", answer->fault->text);
        return;
    }
    struct credentials *old = s->credentials;
    struct credentials *fresh = accept_credentials(s, &old->url, old->key, old->ca, answer, &fault);
    if (fresh == NULL) {
        log_warning("the certificate could not be renewed: %s", fault);
        return;
    }
    log_info("the certificate has been renewed");
    session_replace_credentials(s, fresh);
}

static bool renewal_is_due(const struct credentials *c)
{
    struct certificate_subject subject;
    int64_t now = clock_wall() / NS_PER_S;

    if (!certificate_subject(c->certificate, &subject))
        return false;
    /* The clock was set back: to others it is not valid yet, and will not be for long. */
    if (now < subject.not_before)
        return true;
    /* The hour that notBefore lies back counts to the life: that errs on the early side. */
    return subject.not_after - now < (subject.not_after - subject.not_before) / RENEW_SHARE;
}

static void look_at_certificate(void *arg)
{
    struct session *s = arg;
    const char *fault = NULL;

    timer_set(s->renew_timer, RENEW_LOOK_NS);
    if (s->credentials == NULL || s->renewing || !tracker_link_is_up(s->link) ||
        !renewal_is_due(s->credentials))
        return;
    char *request = csr_create(s->credentials->key, &fault);
    if (request == NULL) {
        log_warning("the certificate could not be renewed: %s", fault);
        return;
    }
    Tracker__Renew message = TRACKER__RENEW__INIT;
    message.request = request;
    s->renewing = true;
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_RENEW, &message.base, renewed, s);
    free(request);
}

void session_account_link_up(struct session *s)
{
    s->renewing = false;
    timer_set(s->renew_timer, 0);
    if (s->flow != NULL && s->flow->connecting) {
        s->flow->connecting = false;
        start_online(s->flow);
    }
}

void session_account_link_down(struct session *s)
{
    if (s->flow != NULL && s->flow->connecting) {
        s->flow->connecting = false;
        start_flow(s->flow);
    }
}

void session_account_init(struct session *s)
{
    s->renew_timer = timer_new(s->loop, look_at_certificate, s);
}

void session_account_down(struct session *s)
{
    timer_free(s->renew_timer);
    s->renew_timer = NULL;
    if (s->flow == NULL)
        return;
    if (s->flow->preparing) {
        /* The worker's mail is delivered when the loop is freed. */
        s->flow->abandoned = true;
        s->flow = NULL;
        return;
    }
    account_flow_finish(s->flow, ECANCELED, "p2pd is stopping", NULL);
}
