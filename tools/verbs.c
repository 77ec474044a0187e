/* The table of verbs, and the help that is made from it.
 *
 * Owns the table; what a verb does is in its family's file. */
#include "tools/verbs.h"

#include <limits.h>
#include <string.h>

#include "base/log.h"
#include "tools/options.h"
#include "tools/text.h"

#define PATHS                                                                                      \
    "\nPATH is a path inside the swarm (/videos/a.mkv) or one under its mount\n"                   \
    "(~/swarm/videos/a.mkv, or relative to where you are).\n"

#define FOLDER "\nPATH is a folder inside the swarm (/videos) or one under its mount.\n"

static int help(const struct ctl *ctl);

static const struct verb verbs[] = {
    {"register", account_register, "URL NAME", 2, 2,
     OPTION_EMAIL | OPTION_PASSWORD_FILE | OPTION_JSON, "make an account and log this device in",
     "URL is the address with an invite that you got from a member or from who runs the\n"
     "tracker (p2p://HOST:PORT/?ca=...&invite=...): put it in quotes, or give - and the address\n"
     "on standard input. NAME is what you will be called: a-z 0-9 . _ -. Asks for a new password,\n"
     "twice. Starts p2pd if it is not running.\n"},
    {"login", account_login, "URL NAME", 2, 2,
     OPTION_PASSWORD_FILE | OPTION_TOTP_FILE | OPTION_JSON,
     "log this device in to an account that exists",
     "URL is the swarm's address (p2p://HOST:PORT/?ca=...): put it in quotes, or give - and the\n"
     "address on standard input. Starts p2pd if it is not running.\n"},
    {"logout", account_logout, "", 0, 0, OPTION_JSON, "log this device out",
     "Its certificate is void from then on. What is stored here stays.\n"},
    {"whoami", account_whoami, "", 0, 0, OPTION_TRACKER | OPTION_JSON,
     "show account, swarm and device", NULL},
    {"passwd", account_passwd, "", 0, 0,
     OPTION_PASSWORD_FILE | OPTION_NEW_PASSWORD_FILE | OPTION_LOGOUT_OTHERS | OPTION_JSON,
     "change the password", NULL},
    {"reset", proof_reset, "[NAME]", 0, 1,
     OPTION_URL | OPTION_CODE_FILE | OPTION_NEW_PASSWORD_FILE | OPTION_JSON,
     "get a new password by mail",
     "Asks the tracker to send a code to the account's e-mail address, then for that code and a\n"
     "new password. Without a terminal it only asks for the mail; with --code-file it only sets\n"
     "the password. All devices of the account have to log in again.\n"},
    {"email", proof_email, "set ADDR|none, send, verify [CODE]", 1, 2,
     OPTION_PASSWORD_FILE | OPTION_CODE_FILE | OPTION_URL | OPTION_JSON,
     "set or verify the e-mail address",
     "A code is sent to ADDR, and the address counts when 'verify' has given it back; 'send'\n"
     "sends another one. 'verify' needs no log in.\n"},
    {"totp", proof_totp, "enable|confirm|disable|recovery", 1, 1,
     OPTION_PASSWORD_FILE | OPTION_TOTP_FILE | OPTION_JSON,
     "have log ins ask for a code as well (second factor)",
     "enable prints a secret for an authenticator; the factor counts when confirm has been given\n"
     "a code, which prints recovery codes. recovery makes new ones. A code works once.\n"},
    {"devices", user_devices, "[remove DEVICE]", 0, 2, OPTION_JSON,
     "list the account's devices, or log one out",
     "DEVICE is its number as it is listed, or as many of its first digits (an even number) as\n"
     "tell it from the others.\n"},
    {"user", user_verb, "VERB [NAME ...]", 1, 3, OPTION_JSON, "manage accounts (admins)",
     "  list                 all accounts\n"
     "  show NAME            one, with its devices\n"
     "  disable NAME         no log in; its certificates are void, its links end\n"
     "  enable NAME          its devices may log in again\n"
     "  delete NAME          for good; the name stays taken, its files stay\n"
     "  admin NAME on|off    make it an admin's, or not\n"
     "  quota NAME N         how many files, directories and links it may have;\n"
     "                       'default' for what the tracker's settings say\n"
     "  totp-off NAME        take its second factor away (it was lost)\n"
     "  transfer FROM TO     all files of FROM become TO's\n"},
    {"audit", user_audit, "", 0, 0, OPTION_SINCE | OPTION_ACCOUNT | OPTION_COUNT | OPTION_JSON,
     "show what happened to accounts (admins)", NULL},
    {"invite", account_invite, "", 0, 0, OPTION_ADMIN | OPTION_USES | OPTION_EXPIRES | OPTION_JSON,
     "print an address with which others can register",
     "Pass it on where only those who are meant can read it.\n"},
    {"grant", access_grant, "PATH WHO RIGHT", 3, 3, OPTION_JSON,
     "give a member or a group a right in a folder and all below",
     "WHO is an account, a group or 'everyone'. RIGHT is read, write (read, and change what is\n"
     "there), manage (write, and give rights), or inherited: then the folder says nothing of WHO\n"
     "any more, and what holds above it counts. Who makes a folder manages it; admins manage "
     "all.\n" FOLDER},
    {"revoke", access_revoke, "PATH WHO", 2, 2, OPTION_JSON,
     "take away what a member or a group may do in a folder",
     "For a member that is all access there, also what the member's groups have. The folder\n"
     "disappears for them, and what they are reading from it ends. What they have copied stays\n"
     "theirs: nobody can take that back.\n" FOLDER},
    {"access", access_show, "PATH", 1, 1, OPTION_JSON, "show who may do what in a folder", FOLDER},
    {"group", access_group, "create|delete|add|remove|list [GROUP [ACCOUNT]]", 1, 3, OPTION_JSON,
     "make groups of members, to give them rights together",
     "group create GROUP, group delete GROUP, group add GROUP ACCOUNT,\n"
     "group remove GROUP ACCOUNT, group list. Only admins change groups.\n"},
    {"keys", access_keys, "[accept ACCOUNT]", 0, 2, OPTION_JSON,
     "show with which devices' keys members sign what they publish",
     "A key that appears later than the first ones of its account is 'new': a new device of\n"
     "theirs, or a tracker that makes one up. Ask them, then accept it.\n"},
    {"start", service_start, "", 0, 0, OPTION_PASSPHRASE_FILE | OPTION_JSON,
     "start p2pd in the background",
     "p2pfs does that by itself, unless the device's key has a passphrase ('p2pctl key').\n"
     "p2pd then runs until 'p2pctl stop', also when you log out of the machine; its messages\n"
     "go to p2pd.log in the member's directory.\n"},
    {"stop", service_stop, "", 0, 0, OPTION_JSON, "stop p2pd",
     "Mounts stay; whoever lists them or reads what is not here waits until p2pd runs again, as\n"
     "long as the mount's option wait allows.\n"},
    {"key", key_passphrase, "passphrase", 1, 1,
     OPTION_PASSPHRASE_FILE | OPTION_NEW_PASSPHRASE_FILE | OPTION_REMOVE | OPTION_JSON,
     "set, change or remove the passphrase of the device's key",
     "Whoever copies the member's directory can then not be this device without guessing the\n"
     "passphrase. p2pd needs it when it starts: 'p2pctl start' asks for it, and p2pd(8) names\n"
     "other ways. p2pfs cannot ask, so start p2pd first. A lost passphrase cannot be had back:\n"
     "remove device.key, then log in, and the device is a new one.\n"},
    {"status", status_show, "[PATH...]", 0, UINT_MAX, OPTION_WATCH | OPTION_JSON,
     "show what moves and what waits, or how PATHs are",
     "Without PATH: account, tracker, store, rates, and the files that move or wait now. A\n"
     "directory stands for all files below it, together.\n" PATHS},
    {"peers", swarm_peers, "[PATH]", 0, 1, OPTION_JSON,
     "show the members that this device exchanges data with",
     "With PATH: only those that have or want that file.\n" PATHS},
    {"health", swarm_health, "PATH...", 1, UINT_MAX, OPTION_ALL | OPTION_JSON,
     "show how many copies the swarm has of a file",
     "Of more than 50 files the 50 that are worst off; --json tells of all.\n" PATHS},
    {"get", fetch_get, "PATH...", 1, UINT_MAX, OPTION_JSON, "fetch files whole, and wait for them",
     "A directory stands for all below it. Ctrl-C ends the waiting; what came stays.\n" PATHS},
    {"pin", fetch_pin, "PATH...", 1, UINT_MAX, OPTION_JSON,
     "keep files here whole: fetched now, never evicted",
     "Returns at once; 'p2pctl get' waits for them.\n" PATHS},
    {"unpin", fetch_unpin, "PATH...", 1, UINT_MAX, OPTION_JSON, "undo pin", PATHS},
    {"evict", store_evict, "PATH...", 1, UINT_MAX, OPTION_JSON,
     "give back the space files take here",
     "They stay in the swarm, and are fetched again when they are read. What is pinned, and\n"
     "pieces of which no other connected member has a copy, stay.\n" PATHS},
    {"limit", limit_rates, "[PATH]", 0, 1, OPTION_RATES | OPTION_JSON,
     "set and show rate limits, of all or of one file",
     "Without --up and --down the limits are only shown. A limit holds for everything that goes\n"
     "out or comes in, what readers wait for included, and stays until it is changed. That of a\n"
     "file belongs to its present content, and is on top of that of all. RATE is bytes a\n"
     "second: 500K, 20M, 1.5G (powers of 1024), at least 4K; 'unlimited' takes a limit "
     "away.\n" PATHS},
    {"check", store_check, "[PATH...]", 0, UINT_MAX, OPTION_CHECK | OPTION_JSON,
     "read what is kept here and compare it with its hashes",
     "Without PATH: all of it. Damaged blocks are given up, and with --repair fetched again. The\n"
     "same goes on in the background, slowly; 'p2pctl status' says how far it is. Files that were\n"
     "being written when p2pd lost its data base are named, too; --recover copies them "
     "out.\n" PATHS},
    {"ls", list_entries, "[PATH]", 0, 1, OPTION_LONG | OPTION_JSON, "list a directory", PATHS},
    {"watch", watch_changes, "[PATH]", 0, 1, OPTION_JSON,
     "print what changes in the swarm, as it happens",
     "A line for each change: when, who, what, path, size and root. Who renamed or removed\n"
     "something elsewhere is not known. With --json: an object in each line; the first says\n"
     "that all later changes are told. PATH need not exist yet.\n" PATHS},
    {"help", help, "[COMMAND]", 0, 1, 0, "say how p2pctl, or one command, is used", NULL},
};
#define VERBS (sizeof verbs / sizeof verbs[0])

const struct verb *verb_find(const char *name)
{
    for (const struct verb *verb = verbs; verb < verbs + VERBS; verb++)
        if (strcmp(verb->name, name) == 0)
            return verb;
    return NULL;
}

const char *verb_nearest(const char *name)
{
    const char *names[VERBS + 1] = {NULL};

    for (size_t i = 0; i < VERBS; i++)
        names[i] = verbs[i].name;
    return text_nearest(name, names);
}

static int help(const struct ctl *ctl)
{
    const char *name = ctl->argument_count > 0 ? ctl->arguments[0] : NULL;
    const struct verb *verb = name != NULL ? verb_find(name) : NULL;

    if (name != NULL && verb == NULL) {
        log_error("unknown command '%s'; see 'p2pctl --help'", name);
        return CTL_WRONG_USAGE;
    }
    if (verb != NULL)
        verb_help(verb, stdout);
    else
        verb_help_all(stdout);
    return CTL_DONE;
}

void verb_help(const struct verb *verb, FILE *to)
{
    fprintf(to, "usage: p2pctl %s [OPTION...]%s%s\n%c%s.\n", verb->name,
            *verb->arguments != '\0' ? " " : "", verb->arguments, verb->summary[0] - 'a' + 'A',
            verb->summary + 1);
    if (verb->details != NULL) {
        if (*verb->details != '\n')
            fputs("\n", to);
        text_wrap(to, verb->details);
    }
    fputs("\n", to);
    options_print(to, verb->options | OPTION_EVERYWHERE);
}

void verb_help_all(FILE *to)
{
    fputs("usage: p2pctl COMMAND [OPTION...] [ARGUMENT...]\n"
          "Accounts, status and all else in a private swarm that is not a file operation.\n"
          "\n",
          to);
    for (const struct verb *verb = verbs; verb < verbs + VERBS; verb++) {
        char left[64];

        snprintf(left, sizeof left, "%s %s", verb->name, verb->arguments);
        text_columns(to, left, 20, verb->summary);
    }
    fputs("\n", to);
    options_print(to, OPTION_EVERYWHERE);
    fputs("\n'p2pctl COMMAND --help' says more about one of them; so does p2pctl(1).\n", to);
}
