/* The command line, by one table of options.
 *
 * Owns the parsing; leaves what verbs there are to verbs.c and home to base/home.c. getopt_long does
 * the splitting, messages are ours so that each is one line that says what would be right. The verb is
 * looked for first: an option is judged by it. Main thread. */
#include "tools/options.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/number.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define USES_MAX  100000 /* the tracker takes no more */
#define COUNT_MAX 200000 /* rows of the audit log: more are not kept */
#define FIRST_ROW 256    /* of values that getopt_long returns for long options */

static const char *take_home(struct ctl *ctl, const char *value)
{
    ctl->home_option = value;
    return *value != '\0' ? NULL : "needs a directory";
}

static const char *take_help(struct ctl *ctl, const char *value)
{
    ctl->help = true;
    return NULL;
}

static const char *take_version(struct ctl *ctl, const char *value)
{
    ctl->version = true;
    return NULL;
}

static const char *take_json(struct ctl *ctl, const char *value)
{
    ctl->json = true;
    return NULL;
}

static const char *take_email(struct ctl *ctl, const char *value)
{
    ctl->email = value;
    return NULL;
}

static const char *take_password_file(struct ctl *ctl, const char *value)
{
    ctl->password_file = value;
    return NULL;
}

static const char *take_new_password_file(struct ctl *ctl, const char *value)
{
    ctl->new_password_file = value;
    return NULL;
}

static const char *take_admin(struct ctl *ctl, const char *value)
{
    ctl->admin = true;
    return NULL;
}

static const char *take_uses(struct ctl *ctl, const char *value)
{
    return number_parse(value, 1, USES_MAX, &ctl->uses) ? NULL : "is not a number from 1 to 100000";
}

static const char *take_expires(struct ctl *ctl, const char *value)
{
    bool good = duration_parse(value, &ctl->expires) && ctl->expires > 0;

    return good ? NULL : "is not a time like 30m, 12h or 7d";
}

#define RATE_LEAST 4096
#define RATE_MOST  (UINT64_C(1) << 37)

static const char *take_rate(uint64_t *rate, bool *given, const char *value)
{
    *given = true;
    *rate = 0;
    if (strcmp(value, "unlimited") == 0)
        return NULL;
    if (!bytes_parse(value, rate))
        return "is not a rate like 500K, 20M or 1.5G (bytes a second), or 'unlimited'";
    if (*rate == 0)
        return "would stop everything: the least is 4K a second; 'unlimited' takes a limit away";
    if (*rate < RATE_LEAST)
        return "is too low: the least is 4K a second";
    return *rate > RATE_MOST ? "is too high: the most is 128G a second; say 'unlimited'" : NULL;
}

static const char *take_up(struct ctl *ctl, const char *value)
{
    return take_rate(&ctl->up, &ctl->up_given, value);
}

static const char *take_down(struct ctl *ctl, const char *value)
{
    return take_rate(&ctl->down, &ctl->down_given, value);
}

static const char *take_watch(struct ctl *ctl, const char *value)
{
    ctl->watch = true;
    return NULL;
}

static const char *take_tracker(struct ctl *ctl, const char *value)
{
    ctl->tracker = true;
    return NULL;
}

static const char *take_passphrase_file(struct ctl *ctl, const char *value)
{
    ctl->passphrase_file = value;
    return NULL;
}

static const char *take_new_passphrase_file(struct ctl *ctl, const char *value)
{
    ctl->new_passphrase_file = value;
    return NULL;
}

static const char *take_remove(struct ctl *ctl, const char *value)
{
    ctl->remove = true;
    return NULL;
}

static const char *take_long(struct ctl *ctl, const char *value)
{
    ctl->details = true;
    return NULL;
}

static const char *take_code_file(struct ctl *ctl, const char *value)
{
    ctl->code_file = value;
    return NULL;
}

static const char *take_totp_file(struct ctl *ctl, const char *value)
{
    ctl->totp_file = value;
    return NULL;
}

static const char *take_url(struct ctl *ctl, const char *value)
{
    ctl->url = value;
    return NULL;
}

static const char *take_account(struct ctl *ctl, const char *value)
{
    ctl->account = value;
    return account_name_fault(value);
}

/* "24h": that long ago; "2026-01-31" or "2026-01-31 12:00": local time. */
static const char *take_since(struct ctl *ctl, const char *value)
{
    static const char *const formats[] = {"%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
                                          "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"};
    uint64_t ago;

    if (duration_parse(value, &ago)) {
        ctl->since = (int64_t)time(NULL) - (int64_t)ago;
        return ctl->since > 0 ? NULL : "is before all times";
    }
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct tm parts = {.tm_isdst = -1};
        const char *end = strptime(value, formats[i], &parts);
        if (end != NULL && *end == '\0' && (ctl->since = (int64_t)mktime(&parts)) > 0)
            return NULL;
    }
    return "is neither a time like 24h or 7d ago nor a date like 2026-01-31";
}

static const char *take_count(struct ctl *ctl, const char *value)
{
    return number_parse(value, 1, COUNT_MAX, &ctl->count) ? NULL
                                                          : "is not a number from 1 to 200000";
}

static const char *take_all(struct ctl *ctl, const char *value)
{
    ctl->all = true;
    return NULL;
}

static const char *take_logout_others(struct ctl *ctl, const char *value)
{
    ctl->logout_others = true;
    return NULL;
}

static const char *take_repair(struct ctl *ctl, const char *value)
{
    ctl->repair = true;
    return NULL;
}

static const char *take_recover(struct ctl *ctl, const char *value)
{
    ctl->recover = value;
    return *value == '\0' ? "is empty" : NULL;
}

static const char *take_pause(struct ctl *ctl, const char *value)
{
    ctl->pause = true;
    return NULL;
}

static const char *take_resume(struct ctl *ctl, const char *value)
{
    ctl->resume = true;
    return NULL;
}

static const struct row {
    const char *name;
    char letter;           /* 0: none */
    const char *parameter; /* NULL: none */
    unsigned bit;
    const char *(*take)(struct ctl *, const char *value); /* NULL or what is wrong */
    const char *help;
} rows[] = {
    {"email", 0, "ADDR", OPTION_EMAIL, take_email, "e-mail address of the new account"},
    {"password-file", 0, "FILE", OPTION_PASSWORD_FILE, take_password_file,
     "take the password from the first line of FILE, which "
     "nobody else may read (default: $P2P_PASSWORD_FILE, else ask)"},
    {"new-password-file", 0, "FILE", OPTION_NEW_PASSWORD_FILE, take_new_password_file,
     "the same for the new password (default: ask)"},
    {"passphrase-file", 0, "FILE", OPTION_PASSPHRASE_FILE, take_passphrase_file,
     "take the key's passphrase from the first line of FILE, "
     "which nobody else may read (-: standard input; default: ask)"},
    {"new-passphrase-file", 0, "FILE", OPTION_NEW_PASSPHRASE_FILE, take_new_passphrase_file,
     "the same for the new passphrase (default: ask)"},
    {"remove", 0, NULL, OPTION_REMOVE, take_remove, "keep the key without a passphrase again"},
    {"admin", 0, NULL, OPTION_ADMIN, take_admin, "who registers with the invite becomes an admin"},
    {"uses", 0, "N", OPTION_USES, take_uses, "how many may register with it (default: 1)"},
    {"expires", 0, "TIME", OPTION_EXPIRES, take_expires,
     "how long it is good, like 12h or 7d (default: 7d)"},
    {"all", 0, NULL, OPTION_ALL, take_all, "all files, not only the worst"},
    {"logout-others", 0, NULL, OPTION_LOGOUT_OTHERS, take_logout_others,
     "all other devices of the account have to log in again"},
    {"code-file", 0, "FILE", OPTION_CODE_FILE, take_code_file,
     "take the code of the mail from the first line of FILE (default: ask)"},
    {"totp-file", 0, "FILE", OPTION_TOTP_FILE, take_totp_file,
     "take the code of the second factor, or a recovery code, from the "
     "first line of FILE (default: $P2P_TOTP_FILE, else ask)"},
    {"url", 0, "URL", OPTION_URL, take_url,
     "the swarm's address, where nobody is logged in (default: the last one)"},
    {"account", 0, "NAME", OPTION_ACCOUNT, take_account, "only what is about or by that account"},
    {"since", 0, "TIME", OPTION_SINCE, take_since,
     "only what happened since: 24h or 7d ago, or a date like 2026-01-31"},
    {"count", 'n', "N", OPTION_COUNT, take_count, "the newest N (default: 100, with --since all)"},
    {"watch", 'w', NULL, OPTION_WATCH, take_watch, "show it anew every second, until Ctrl-C"},
    {"tracker", 0, NULL, OPTION_TRACKER, take_tracker,
     "ask the tracker: e-mail address, role, all devices"},
    {"long", 'l', NULL, OPTION_LONG, take_long, "one line for each, with sizes, times and owners"},
    {"up", 0, "RATE", OPTION_RATES, take_up,
     "send at most so many bytes a second, like 500K or 20M, or "
     "'unlimited'"},
    {"down", 0, "RATE", OPTION_RATES, take_down, "the same for what is fetched"},
    {"repair", 0, NULL, OPTION_CHECK, take_repair, "fetch what is damaged from other members"},
    {"recover", 0, "DIR", OPTION_CHECK, take_recover,
     "copy files whose name was lost into that folder"},
    {"pause", 0, NULL, OPTION_CHECK, take_pause, "only: the check in the background pauses"},
    {"resume", 0, NULL, OPTION_CHECK, take_resume, "only: it goes on"},
    {"json", 0, NULL, OPTION_JSON, take_json, "print JSON"},
    {"home", 0, "DIR", OPTION_EVERYWHERE, take_home,
     "the member's directory (default: $P2P_HOME, else "
     "${XDG_DATA_HOME:-~/.local/share}/p2pfs)"},
    {"help", 'h', NULL, OPTION_EVERYWHERE, take_help, "say how it is used"},
    {"version", 'V', NULL, OPTION_EVERYWHERE, take_version, "say which version it is"},
};
#define ROWS (sizeof rows / sizeof rows[0])

void options_print(FILE *to, unsigned mask)
{
    for (const struct row *row = rows; row < rows + ROWS; row++) {
        char left[64], letter[8] = "    ";

        if ((row->bit & mask) == 0)
            continue;
        if (row->letter != 0)
            snprintf(letter, sizeof letter, "-%c, ", row->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, row->name,
                 row->parameter != NULL ? " " : "", row->parameter != NULL ? row->parameter : "");
        text_columns(to, left, 24, row->help);
    }
}

static void make_getopt_tables(struct option *long_options, char *letters)
{
    *letters++ = ':'; /* tell a missing argument from an unknown option */
    for (size_t i = 0; i < ROWS; i++) {
        long_options[i] = (struct option){
            .name = rows[i].name,
            .has_arg = rows[i].parameter != NULL ? required_argument : no_argument,
            .val = FIRST_ROW + (int)i,
        };
        if (rows[i].letter != 0) {
            *letters++ = rows[i].letter;
            if (rows[i].parameter != NULL)
                *letters++ = ':';
        }
    }
    long_options[ROWS] = (struct option){0};
    *letters = '\0';
}

static const struct row *row_of(int c)
{
    if (c >= FIRST_ROW)
        return &rows[c - FIRST_ROW];
    for (const struct row *row = rows; row < rows + ROWS; row++)
        if (row->letter == c)
            return row;
    return NULL;
}

/* The option as it was typed, for a message: argv[optind - 1], or one letter of a bundle. */
static void complain_unknown(char **argv, int letter)
{
    const char *typed = argv[optind - 1], *names[ROWS + 1] = {NULL}, *nearest;

    if (letter != 0 && letter < FIRST_ROW) {
        log_error("unknown option '-%c'; see 'p2pctl --help'", letter);
        return;
    }
    for (size_t i = 0; i < ROWS; i++)
        names[i] = rows[i].name;
    nearest = strncmp(typed, "--", 2) == 0 ? text_nearest(typed + 2, names) : NULL;
    if (nearest != NULL)
        log_error("unknown option '%s'; did you mean '--%s'?", typed, nearest);
    else
        log_error("unknown option '%s'; see 'p2pctl --help'", typed);
}

/* Options into *ctl, their bits into *given. False: wrong usage, said. */
static bool take_options(struct ctl *ctl, unsigned *given, int argc, char **argv, bool quiet)
{
    struct option long_options[ROWS + 1];
    char letters[2 * ROWS + 3]; /* a colon, and each with a colon */
    bool good = true;
    int c;

    make_getopt_tables(long_options, letters);
    opterr = 0;
    optind = 0; /* from the beginning, also a second time */
    while ((c = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
        const struct row *row = c == '?' ? NULL : c == ':' ? row_of(optopt) : row_of(c);
        const char *wrong = NULL;

        if (quiet)
            continue;
        if (row == NULL && good)
            complain_unknown(argv, optopt);
        else if (c == ':' && good)
            log_error("option '--%s' needs an argument: %s", row->name, row->parameter);
        if (row == NULL || c == ':') {
            good = false;
            continue;
        }
        *given |= row->bit;
        wrong = row->take(ctl, optarg);
        if (wrong != NULL && good) {
            log_error("--%s: '%s' %s", row->name, optarg, wrong);
            good = false;
        }
    }
    return good;
}

static bool find_verb(struct ctl *ctl, const char *name)
{
    ctl->verb = verb_find(name);
    if (ctl->verb != NULL)
        return true;
    const char *nearest = verb_nearest(name);
    if (nearest != NULL)
        log_error("unknown command '%s'; did you mean '%s'?", name, nearest);
    else
        log_error("unknown command '%s'; see 'p2pctl --help'", name);
    return false;
}

static bool check_options(const struct ctl *ctl, unsigned given)
{
    unsigned wrong = given & ~(ctl->verb->options | OPTION_EVERYWHERE);

    for (const struct row *row = rows; row < rows + ROWS; row++)
        if ((row->bit & wrong) != 0) {
            log_error("'%s' takes no option '--%s'; see 'p2pctl %s --help'", ctl->verb->name,
                      row->name, ctl->verb->name);
            return false;
        }
    return true;
}

static bool check_count(const struct ctl *ctl)
{
    const struct verb *verb = ctl->verb;
    unsigned count = (unsigned)ctl->argument_count;

    if (count >= verb->least && count <= verb->most)
        return true;
    if (count > verb->most && verb->most == 0)
        log_error("'%s' takes no argument; got '%s'", verb->name, ctl->arguments[0]);
    else
        log_error("%s arguments; usage: p2pctl %s %s", count < verb->least ? "missing" : "too many",
                  verb->name, verb->arguments);
    return false;
}

bool options_parse(struct ctl *ctl, int argc, char **argv)
{
    unsigned given = 0;

    /* getopt sorts its argv, options to the front and the rest behind optind; of a copy, as a second
     * sorting would take the verb for the argument of an option that lacks one. */
    char **copy = xmemdup(argv, ((size_t)argc + 1) * sizeof *copy);
    (void)take_options(ctl, &given, argc, copy, true);
    const char *name = optind < argc ? copy[optind] : NULL;
    free(copy);
    if (name != NULL && !find_verb(ctl, name))
        return false;
    if (!take_options(ctl, &given, argc, argv, false))
        return false;
    if (ctl->help || ctl->version)
        return true;
    if (optind == argc) {
        log_error("no command given; see 'p2pctl --help'");
        return false;
    }
    ctl->argument_count = argc - optind - 1;
    ctl->arguments = xcalloc((size_t)ctl->argument_count + 1, sizeof *ctl->arguments);
    for (int i = 0; i < ctl->argument_count; i++)
        ctl->arguments[i] = argv[optind + 1 + i];
    return check_options(ctl, given) && check_count(ctl);
}
