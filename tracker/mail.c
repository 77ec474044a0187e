/* The mail queue's run: one mail at a time from the database to the mail thread and back.
 *
 *   kick, timer -> storage: take the first that is due, make its code -> thread: send -> storage: drop it -> next
 *                                                                           |
 *                                                                           +-> not now: it is due again later
 *
 * Owns the mail thread and the timer; rows are storage_mail.c's, SMTP is mail_send.c's. A mail that is taken is made due
 * later in the same transaction, before it is sent: whatever kills the tracker meanwhile, the mail is tried again after
 * the next start, and its row goes as soon as the server has taken it. The sending thread posts that itself, so that it
 * is written even while the tracker stops. */
#include "tracker/mail.h"

#include <curl/curl.h>
#include <time.h>

#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "tracker/server_private.h"

#define CODE_CHARS   16 /* out of 57: 93 bits */
#define DOUBLINGS    6
#define RETRY_MOST   3600
#define TOO_OLD      (3 * 86400)
#define MESSAGE_SIZE 4096

struct mailer {
    struct server *server;
    struct mail_settings settings;
    struct workers *thread;
    struct timer *timer;
    bool started; /* what was left by an earlier run has been made due */
    bool busy;    /* a turn is under way */
    bool again;   /* kicked meanwhile */
    atomic_bool stop;
};

struct turn {
    struct storage_job storage;
    struct job work;
    struct mailer *mailer;
    bool hurry, found, more;
    int64_t next_due; /* 0: nothing waits */
    struct storage_mail mail;
    char code[CODE_CHARS + 1];
    int64_t expires;
    enum mail_result result;
    char why[256];
};

/* --- what a mail says ------------------------------------------------------------------------------ */

static void format_date(char *out, size_t size, int64_t seconds)
{
    static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t when = (time_t)seconds;
    struct tm t;
    gmtime_r(&when, &t);
    snprintf(out, size, "%s, %02d %s %d %02d:%02d:%02d +0000", days[t.tm_wday % 7], t.tm_mday,
             months[t.tm_mon % 12], 1900 + t.tm_year, t.tm_hour, t.tm_min, t.tm_sec);
}

static int compose(const struct turn *turn, char *out, size_t size)
{
    const struct mailer *mailer = turn->mailer;
    const struct server *server = mailer->server;
    const char *account = turn->mail.account;
    bool reset = turn->mail.kind == STORAGE_TOKEN_RESET;
    const char *domain = strchr(mailer->settings.from, '@');
    char date[64], until[64], generation[2 * STORAGE_GENERATION_SIZE + 1], body[MESSAGE_SIZE / 2];

    format_date(date, sizeof date, wall_seconds());
    format_date(until, sizeof until, turn->expires);
    hex_encode(generation, server->generation, sizeof server->generation);
    if (reset)
        snprintf(body, sizeof body,
                 "somebody, probably you, has asked for a new password for the account\r\n"
                 "%s in the swarm %s. The code for it is\r\n\r\n    %s\r\n\r\n"
                 "Run 'p2pctl reset %s', which asks for the code and for the new password;\r\n"
                 "all devices of the account have to log in again then.\r\n",
                 account, server->name, turn->code, account);
    else
        snprintf(body, sizeof body,
                 "somebody, probably you, has given this address for the account\r\n"
                 "%s in the swarm %s. To confirm it, give this code\r\n\r\n    %s\r\n\r\n"
                 "to 'p2pctl email verify'.\r\n",
                 account, server->name, turn->code);
    return snprintf(out, size,
                    "From: <%s>\r\nTo: <%s>\r\nSubject: %s\r\nDate: %s\r\n"
                    "Message-ID: <%lld.%u.%s%s>\r\nAuto-Submitted: auto-generated\r\n"
                    "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
                    "Content-Transfer-Encoding: 8bit\r\n\r\n"
                    "Hello %s,\r\n\r\n%s\r\nThe code works once, until %s.\r\n"
                    "If it was not you, there is nothing to do: ignore this mail.\r\n",
                    mailer->settings.from, turn->mail.email,
                    reset ? "Reset your password" : "Confirm your e-mail address", date,
                    (long long)turn->mail.id, turn->mail.tries, generation,
                    domain == NULL ? "@localhost" : domain, account, body, until);
}

/* --- a turn ------------------------------------------------------------------------------------------ */

static void start_turn(struct mailer *);

static int64_t retry_after(const struct mailer *mailer, uint32_t tries)
{
    int64_t wait = (int64_t)mailer->settings.retry << (tries < DOUBLINGS ? tries : DOUBLINGS);
    int64_t most =
        mailer->settings.retry > RETRY_MOST ? (int64_t)mailer->settings.retry : RETRY_MOST;
    return wait > most ? most : wait;
}

static void lose(struct storage *storage, const struct storage_mail *mail, const char *why)
{
    struct storage_event event = {
        .when = wall_seconds(), .what = "mail-lost", .account = mail->account, .detail = why};
    storage_mail_drop(storage, mail->id);
    storage_audit(storage, &event);
}

static void take_run(struct storage_job *job, struct storage *storage)
{
    struct turn *turn = (struct turn *)(void *)job;
    struct storage_mail *mail = &turn->mail;
    struct storage_account account;
    int64_t now = wall_seconds();
    if (turn->hurry)
        storage_mail_hurry(storage, now);
    if (!storage_mail_next(storage, mail))
        return;
    if (mail->due > now) {
        turn->next_due = mail->due;
        return;
    }
    if (!storage_account_get(storage, mail->account, &account) || account.deleted != 0 ||
        account.disabled || now - mail->made > TOO_OLD) {
        lose(storage, mail, "too old, or its account is disabled");
        turn->more = true;
        return;
    }
    struct storage_token token = {.kind = mail->kind,
                                  .expires = now + (int64_t)turn->mailer->settings.code_lifetime};
    random_code(turn->code, CODE_CHARS);
    sha256(token.hash, turn->code, CODE_CHARS);
    memcpy(token.account, mail->account, sizeof token.account);
    memcpy(token.email, mail->email, sizeof token.email);
    turn->expires = token.expires;
    storage_token_put(storage, &token);
    storage_mail_later(storage, mail->id, now + retry_after(turn->mailer, mail->tries));
    turn->found = true;
}

static void settle_run(struct storage_job *job, struct storage *storage)
{
    struct turn *turn = (struct turn *)(void *)job;
    if (turn->result == MAIL_SENT)
        storage_mail_drop(storage, turn->mail.id);
    else if (turn->result == MAIL_REFUSED)
        lose(storage, &turn->mail, turn->why);
}

static void turn_free(struct turn *turn)
{
    secret_wipe(turn, sizeof *turn);
    free(turn);
}

/* What comes after: the next one, or a rest. */
static void turn_end(struct turn *turn, bool next)
{
    struct mailer *mailer = turn->mailer;
    int64_t due = turn->next_due;
    turn_free(turn);
    mailer->busy = false;
    if (mailer->server->stopping)
        return;
    if (next || mailer->again)
        start_turn(mailer);
    else if (due != 0) {
        int64_t wait = due - wall_seconds();
        timer_set(mailer->timer, (wait < 0 ? 0 : wait > RETRY_MOST ? RETRY_MOST : wait) * NS_PER_S);
    }
}

static void settle_done(struct storage_job *job)
{
    struct turn *turn = (struct turn *)(void *)job;
    if (turn->result == MAIL_SENT)
        log_info("a mail for %s has been sent", turn->mail.account);
    else
        log_warning("a mail for %s %s: %s", turn->mail.account,
                    turn->result == MAIL_REFUSED ? "is refused" : "can't be sent now", turn->why);
    turn_end(turn, true);
}

/* On the mail thread. */
static void send_run(struct job *job)
{
    struct turn *turn = (struct turn *)(void *)((char *)job - offsetof(struct turn, work));
    struct mailer *mailer = turn->mailer;
    char message[MESSAGE_SIZE];
    int size = compose(turn, message, sizeof message);
    CHECK(size > 0 && (size_t)size < sizeof message);
    turn->result = mail_send(&mailer->settings, turn->mail.email, message, (size_t)size,
                             &mailer->stop, turn->why, sizeof turn->why);
    secret_wipe(message, sizeof message);
    turn->storage = (struct storage_job){.run = settle_run, .done = settle_done, .writes = true};
    storage_queue_post(mailer->server->queue, &turn->storage);
}

static void take_done(struct storage_job *job)
{
    struct turn *turn = (struct turn *)(void *)job;
    struct mailer *mailer = turn->mailer;
    if (turn->found && !job->failed && !mailer->server->stopping) {
        turn->work = (struct job){.run = send_run};
        workers_post(mailer->thread, &turn->work, false);
        return;
    }
    if (job->failed)
        turn->next_due = wall_seconds() + MAIL_RETRY;
    turn_end(turn, turn->more && !job->failed);
}

static void start_turn(struct mailer *mailer)
{
    mailer->again = mailer->busy;
    if (mailer->busy)
        return;
    struct turn *turn = xcalloc(1, sizeof *turn);
    mailer->busy = true;
    turn->mailer = mailer;
    turn->hurry = !mailer->started;
    mailer->started = true;
    turn->storage = (struct storage_job){.run = take_run, .done = take_done, .writes = true};
    storage_queue_post(mailer->server->queue, &turn->storage);
}

/* --- life -------------------------------------------------------------------------------------------- */

static void on_timer(void *arg)
{
    start_turn(arg);
}

struct mailer *mailer_new(struct server *server, const struct mail_settings *settings)
{
    struct mailer *mailer = xcalloc(1, sizeof *mailer);
    CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
    mailer->server = server;
    mail_settings_copy(&mailer->settings, settings);
    mailer->thread = workers_new("mail", 1);
    mailer->timer = timer_new(server->loop, on_timer, mailer);
    timer_set(mailer->timer, 0);
    return mailer;
}

void mailer_kick(struct mailer *mailer)
{
    if (mailer != NULL && !mailer->server->stopping)
        start_turn(mailer);
}

void mailer_stop(struct mailer *mailer)
{
    if (mailer == NULL)
        return;
    atomic_store(&mailer->stop, true);
    workers_free(mailer->thread);
    mailer->thread = NULL;
    timer_free(mailer->timer);
    mailer->timer = NULL;
}

void mailer_free(struct mailer *mailer)
{
    if (mailer == NULL)
        return;
    mail_settings_clear(&mailer->settings);
    free(mailer);
    curl_global_cleanup();
}
