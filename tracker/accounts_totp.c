/* The second factor of an account: switching it on and off, recovery codes, and whether a code is right.
 *
 *   begin      storage: account -> password: verify -> storage: secret                       -> secret, otpauth URL
 *   confirm                                            storage: code, on, recovery codes     -> recovery codes
 *   disable,
 *   recovery   storage: account -> password: verify -> storage: code, rows                   -> recovery codes, or none
 *
 * A code works once: the last used step is remembered, and recovery codes are dropped when used. Recovery codes have 58
 * bits, so that their plain hash is safe at rest; the secret itself must be kept. The loop's thread, but for functions
 * named _run and attempt_second_factor. */
#include "tracker/accounts_private.h"

#include <ctype.h>

#include "base/log.h"
#include "base/mem.h"

#define RECOVERY_CODES 10
#define RECOVERY_CHARS 10 /* shown as two halves with a - between */

/* As typed, with blanks and dashes. */
static void recovery_hash(uint8_t hash[32], const char *code)
{
    char bare[RECOVERY_CHARS + 1] = "";
    size_t size = 0;
    for (; *code != '\0' && size < RECOVERY_CHARS + 1; code++)
        if (*code != '-' && *code != ' ')
            bare[size++] = *code;
    sha256(hash, bare, size);
    secret_wipe(bare, sizeof bare);
}

bool attempt_second_factor(struct storage *storage, struct storage_account *account,
                           const char *code)
{
    uint8_t hash[32];
    int64_t step, now = wall_seconds(), last = account->totp_step;
    /* A step that has yet to come was used while the clock was wrong: it must not lock out until it comes. */
    if (last > now / TOTP_STEP + TOTP_SKEW)
        last = 0;
    if (totp_check(account->totp, code, now, last, &step)) {
        account->totp_step = step;
        storage_account_put(storage, account);
        return true;
    }
    recovery_hash(hash, code);
    return storage_recovery_use(storage, account->name, hash);
}

/* --- answers ----------------------------------------------------------------------------------------- */

/* The swarm's name may hold anything but control characters. */
static char *percent(const char *text)
{
    char *out = xcalloc(3 * strlen(text) + 1, 1), *to = out;
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c < 0x80 && (isalnum(*c) || strchr("-._~", *c) != NULL))
            *to++ = (char)*c;
        else
            to += snprintf(to, 4, "%%%02X", *c);
    }
    return out;
}

static void answer(struct attempt *a)
{
    Tracker__TotpIs message = TRACKER__TOTP_IS__INIT;
    char text[TOTP_TEXT + 1] = "", *url = NULL, *codes[RECOVERY_CODES];
    if (a->act == TRACKER__TOTP_ACT__TOTP_BEGIN) {
        char *issuer = percent(a->session->server->name);
        totp_text(a->account.totp, text);
        url =
            xasprintf("otpauth://totp/%s:%s?secret=%s&issuer=%s&algorithm=SHA1&digits=%d&period=%d",
                      issuer, a->name, text, issuer, TOTP_DIGITS, TOTP_STEP);
        free(issuer);
        message.secret = text;
        message.url = url;
    }
    for (size_t i = 0; i < a->recovery_made; i++)
        codes[i] = a->recovery[i];
    message.n_recovery = a->recovery_made;
    message.recovery = codes;
    session_answer(a->session, a->id, TRACKER__TRACKER_TYPE__TRACKER_TOTP_IS, &message.base);
    if (url != NULL)
        secret_wipe(url, strlen(url));
    free(url);
    secret_wipe(text, sizeof text);
    attempt_free(a);
}

static void done(struct attempt *a)
{
    static const char *const said[] = {
        [TRACKER__TOTP_ACT__TOTP_BEGIN] = "begins with a second factor",
        [TRACKER__TOTP_ACT__TOTP_CONFIRM] = "has a second factor now",
        [TRACKER__TOTP_ACT__TOTP_DISABLE] = "has no second factor any more",
        [TRACKER__TOTP_ACT__TOTP_RECOVERY] = "has new recovery codes",
    };
    log_info("%s: %s %s", a->from, a->name, said[a->act]);
    attempt_good(a);
    answer(a);
}

/* --- rows --------------------------------------------------------------------------------------------- */

static void make_recovery(struct storage *storage, struct attempt *a)
{
    uint8_t hashes[RECOVERY_CODES][32];
    _Static_assert(RECOVERY_CODES <= ATTEMPT_RECOVERY_MAX, "they must fit");
    for (size_t i = 0; i < RECOVERY_CODES; i++) {
        char code[RECOVERY_CHARS + 1];
        random_code(code, RECOVERY_CHARS);
        sha256(hashes[i], code, RECOVERY_CHARS);
        snprintf(a->recovery[i], sizeof a->recovery[i], "%.5s-%.5s", code, code + 5);
        secret_wipe(code, sizeof code);
    }
    a->recovery_made = RECOVERY_CODES;
    storage_recovery_set(storage, a->name, (const uint8_t(*)[32])hashes, RECOVERY_CODES);
}

static void begin_rows(struct storage *storage, struct attempt *a)
{
    if (a->account.totp_on) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
                     "there is a second factor already: disable it first");
        return;
    }
    random_bytes(a->account.totp, sizeof a->account.totp);
    a->account.has_totp = true;
    a->account.totp_step = 0;
    storage_account_put(storage, &a->account);
}

static void rows_run(struct storage_job *job, struct storage *storage)
{
    static const char *const what[] = {
        [TRACKER__TOTP_ACT__TOTP_CONFIRM] = "totp-on",
        [TRACKER__TOTP_ACT__TOTP_DISABLE] = "totp-off",
        [TRACKER__TOTP_ACT__TOTP_RECOVERY] = "totp-recovery",
    };
    struct attempt *a = attempt_of_storage(job);
    bool known = storage_account_get(storage, a->name, &a->account);
    bool confirms = a->act == TRACKER__TOTP_ACT__TOTP_CONFIRM;
    if (!known || (!confirms && strcmp(a->account.password, a->verified) != 0)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_PASSWORD, "wrong password");
        return;
    }
    if (a->act == TRACKER__TOTP_ACT__TOTP_BEGIN) {
        begin_rows(storage, a);
        return;
    }
    if (!a->account.has_totp || a->account.totp_on == confirms) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_DENIED,
                     confirms ? "there is nothing to confirm" : "there is no second factor");
        return;
    }
    if (!attempt_second_factor(storage, &a->account, a->second)) {
        attempt_fail(a, TRACKER__FAULT_CODE__FAULT_WRONG_CODE, "wrong code");
        attempt_audit_about(storage, a, "refused", a->name, "second factor");
        return;
    }
    if (a->act == TRACKER__TOTP_ACT__TOTP_DISABLE) {
        a->account.has_totp = a->account.totp_on = false;
        storage_recovery_set(storage, a->name, NULL, 0);
    } else {
        a->account.totp_on = true;
        make_recovery(storage, a);
    }
    storage_account_put(storage, &a->account);
    attempt_audit(storage, a, what[a->act]);
}

/* --- the request ---------------------------------------------------------------------------------------- */

static void verified(struct attempt *a)
{
    if (!attempt_code_is_throttled(a))
        attempt_to_storage(a, rows_run, true, done);
}

static void looked(struct attempt *a)
{
    attempt_to_worker(a, a->session->server->passwords, attempt_verify_run, verified);
}

const char *accounts_totp(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Totp *request = message;
    bool confirms = request->act == TRACKER__TOTP_ACT__TOTP_CONFIRM;
    if (request->act <= 0 || request->act > TRACKER__TOTP_ACT__TOTP_RECOVERY) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED, "unknown act", 0);
        return NULL;
    }
    struct attempt *a = attempt_new(s, id, !confirms);
    if (a == NULL)
        return NULL;
    a->act = (unsigned)request->act;
    if (!attempt_take_password(a, &request->password, request->code))
        return NULL;
    if (confirms && attempt_code_is_throttled(a))
        return NULL;
    if (confirms)
        attempt_to_storage(a, rows_run, true, done);
    else
        attempt_to_storage(a, attempt_look_run, false, looked);
    return NULL;
}
