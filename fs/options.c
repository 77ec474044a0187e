/* The command line. Pure: it looks at its arguments only.
 *
 * Options behind -o are of three kinds: ours (wait=, home=, fsname=, passthrough, writeback), those that the kernel's mount or libfuse must know
 * (passed on), and those that mount(8), systemd and people put into /etc/fstab for others, which are dropped.
 * nosuid and nodev are always in force, so suid and dev are dropped, too. Anything else is a mistake worth an error:
 * a misspelt "waite=5s" must not give a mount that waits for 30. */
#include "fs/options.h"

#include "base/mem.h"
#include "base/number.h"

#include <string.h>

static const char *const passed_on[] = {
    "ro", "rw", "exec", "noexec", "sync", "async", "dirsync", "atime", "noatime", NULL,
};

static const char *const dropped[] = {
    "defaults",   "auto",        "noauto",        "user",     "nouser",
    "users",      "owner",       "group",         "nofail",   "_netdev",
    "suid",       "nosuid",      "dev",           "nodev",    "relatime",
    "norelatime", "strictatime", "nostrictatime", "diratime", "nodiratime",
    "lazytime",   "nolazytime",  "silent",        "loud",     "default_permissions",
    NULL,
};

static bool is_one_of(const char *option, const char *const *table)
{
    for (; *table != NULL; table++)
        if (strcmp(option, *table) == 0)
            return true;
    return false;
}

/* What stands behind "NAME=" in `option`, or NULL. */
static const char *value_of(const char *option, const char *name)
{
    size_t length = strlen(name);

    return strncmp(option, name, length) == 0 && option[length] == '=' ? option + length + 1 : NULL;
}

static void replace(char **to, const char *text)
{
    free(*to);
    *to = xstrdup(text);
}

static bool take_wait(struct options *options, const char *value, char *fault)
{
    uint64_t seconds;

    if (!duration_parse(value, &seconds) || seconds == 0 || seconds > OPTIONS_WAIT_MAX) {
        snprintf(fault, OPTIONS_FAULT_MAX, "wait=%.40s is not a time between 1s and 1h", value);
        return false;
    }
    options->wait = seconds;
    return true;
}

static bool take_one(struct options *options, const char *option, char *fault)
{
    const char *value;

    if ((value = value_of(option, "wait")) != NULL)
        return take_wait(options, value, fault);
    if ((value = value_of(option, "home")) != NULL) {
        replace(&options->home, value);
        return true;
    }
    if ((value = value_of(option, "fsname")) != NULL) {
        replace(&options->source, value);
        return true;
    }
    if (strcmp(option, "allow_other") == 0) {
        options->allow_other = true;
        return true;
    }
    if (strcmp(option, "passthrough") == 0 || strcmp(option, "writeback") == 0) {
        options->cache = *option == 'p' ? CACHE_PASSTHROUGH : CACHE_WRITEBACK;
        return true;
    }
    if (strcmp(option, "nonempty") == 0) {
        options->nonempty = true;
        return true;
    }
    if (strcmp(option, "debug") == 0) {
        options->debug = options->foreground = true;
        return true;
    }
    if (is_one_of(option, passed_on)) {
        char *old = options->pass;

        options->pass = xasprintf("%s%s%s", old, *old != '\0' ? "," : "", option);
        free(old);
        return true;
    }
    if (*option == '\0' || is_one_of(option, dropped) || strncmp(option, "x-", 2) == 0 ||
        value_of(option, "comment") != NULL)
        return true;
    snprintf(fault, OPTIONS_FAULT_MAX, "unknown mount option %.80s", option);
    return false;
}

static bool take_list(struct options *options, const char *list, char *fault)
{
    char *copy = xstrdup(list), *state = NULL, *option;
    bool good = true;

    for (option = strtok_r(copy, ",", &state); good && option != NULL;
         option = strtok_r(NULL, ",", &state))
        good = take_one(options, option, fault);
    free(copy);
    return good;
}

/* The argument of an option, behind it ("-owait=5s", "--home=DIR") or the next one; NULL if there is none. */
static const char *argument(const char *behind, int *at, int argc, char **argv)
{
    if (*behind != '\0')
        return behind;
    return *at + 1 < argc ? argv[++*at] : NULL;
}

static bool missing(const char *option, char *fault)
{
    snprintf(fault, OPTIONS_FAULT_MAX, "%s needs an argument", option);
    return false;
}

static bool take_option(struct options *options, int *at, int argc, char **argv, char *fault)
{
    const char *text = argv[*at], *value;

    if (strcmp(text, "-f") == 0) {
        options->foreground = true;
    } else if (strcmp(text, "-d") == 0) {
        options->debug = options->foreground = true;
    } else if (strcmp(text, "-h") == 0 || strcmp(text, "--help") == 0) {
        options->help = true;
    } else if (strcmp(text, "-V") == 0 || strcmp(text, "--version") == 0) {
        options->version = true;
    } else if (strncmp(text, "-o", 2) == 0) {
        value = argument(text + 2, at, argc, argv);
        return value == NULL ? missing("-o", fault) : take_list(options, value, fault);
    } else if (strcmp(text, "--home") == 0 || (value = value_of(text, "--home")) != NULL) {
        value =
            argument(strcmp(text, "--home") == 0 ? "" : text + strlen("--home="), at, argc, argv);
        if (value == NULL)
            return missing("--home", fault);
        replace(&options->home, value);
    } else {
        snprintf(fault, OPTIONS_FAULT_MAX, "unknown option %.80s", text);
        return false;
    }
    return true;
}

bool options_parse(struct options *options, int argc, char **argv, char *fault)
{
    const char *places[2];
    int count = 0;
    bool only_places = false;

    *options = (struct options){.wait = OPTIONS_WAIT_DEFAULT, .pass = xstrdup("")};
    for (int i = 1; i < argc; i++) {
        if (!only_places && strcmp(argv[i], "--") == 0) {
            only_places = true;
        } else if (!only_places && argv[i][0] == '-' && argv[i][1] != '\0') {
            if (!take_option(options, &i, argc, argv, fault))
                return false;
        } else if (count == 2) {
            snprintf(fault, OPTIONS_FAULT_MAX, "more than SOURCE and MOUNTPOINT given");
            return false;
        } else {
            places[count++] = argv[i];
        }
    }
    if (options->help || options->version)
        return true;
    if (count == 0 || *places[count - 1] == '\0') {
        snprintf(fault, OPTIONS_FAULT_MAX, "no MOUNTPOINT given");
        return false;
    }
    options->mountpoint = xstrdup(places[count - 1]);
    if (count == 2 && options->source == NULL)
        options->source = xstrdup(places[0]);
    return true;
}

void options_done(struct options *options)
{
    free(options->mountpoint);
    free(options->source);
    free(options->home);
    free(options->pass);
    *options = (struct options){0};
}

const char *options_usage(void)
{
    return "usage: p2pfs [SOURCE] MOUNTPOINT [-f] [-d] [-o OPTION,...] [--home DIR]\n"
           "\n"
           "Mounts the swarm that this member is logged in to. Unmount with: fusermount3 -u "
           "MOUNTPOINT\n"
           "\n"
           "  -f             stay in the foreground\n"
           "  -d             foreground, with a trace of every request\n"
           "  -o wait=30s    how long a read waits for blocks that nobody serves, before it fails\n"
           "  -o ro          read only\n"
           "  -o nonempty    mount over a directory that is not empty\n"
           "  -o allow_other let other users in, within the files' modes\n"
           "  -o writeback   small writes are gathered in the kernel, even where large complete "
           "files\n"
           "                 could be handed to it instead (passthrough: the default for root, "
           "kernel\n"
           "                 6.9 and later)\n"
           "  --home DIR     the member's directory (default: $P2P_HOME, else "
           "~/.local/share/p2pfs);\n"
           "                 also -o home=DIR, for /etc/fstab, where SOURCE can be any word\n"
           "  --help, --version\n";
}
