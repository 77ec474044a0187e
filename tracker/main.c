/* p2ptracker: the command line. One table of verbs drives dispatch and help; what they do is the library's.
 *
 * Exit status: 0 done, 1 failed (one line on standard error), 2 wrong usage. Settings come from DIR/tracker.conf,
 * then from the command line, which wins. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/config.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/notify.h"
#include "base/number.h"
#include "base/secrecy.h"
#include "base/swarm_url.h"
#include "tracker/accounts.h"
#include "tracker/place.h"
#include "tracker/server.h"
#include "tracker/storage.h"

enum { DONE = 0, FAILED = 1, USAGE = 2 };

#define HEAP_BLOCK        (1 << 20)
#define LIFETIME_SHORTEST 60
#define LIFETIME_LONGEST  (366 * 86400)
#define TICKET_SHORTEST   10
#define TICKET_LONGEST    86400

/* Everything that an option of any verb or the configuration file can say. */
struct settings {
    const char *data;
    char *listen, *public, *name;
    enum registration registration;
    uint64_t lifetime, ticket_lifetime, quota;
    bool admin, json;
    uint64_t uses, expires;
    struct mail_settings mail;
    bool verify_email;
};

/* Options, as bits: which verb takes which. */
enum {
    DATA = 1,
    LISTEN = 2,
    PUBLIC = 4,
    REGISTRATION = 8,
    LIFETIME = 16,
    NAME = 32,
    ADMIN = 64,
    USES = 128,
    EXPIRES = 256,
    JSON = 512,
    VERIFY_EMAIL = 1024,
    TICKETS = 1 << 20,
    QUOTA = 1 << 21
};
static const struct option long_options[] = {
    {"data", required_argument, NULL, DATA},
    {"listen", required_argument, NULL, LISTEN},
    {"public", required_argument, NULL, PUBLIC},
    {"registration", required_argument, NULL, REGISTRATION},
    {"certificate-lifetime", required_argument, NULL, LIFETIME},
    {"ticket-lifetime", required_argument, NULL, TICKETS},
    {"entries-per-account", required_argument, NULL, QUOTA},
    {"name", required_argument, NULL, NAME},
    {"admin", no_argument, NULL, ADMIN},
    {"uses", required_argument, NULL, USES},
    {"expires", required_argument, NULL, EXPIRES},
    {"json", no_argument, NULL, JSON},
    {"verify-email", no_argument, NULL, VERIFY_EMAIL},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int serve(struct settings *);
static int url(struct settings *);
static int invite(struct settings *);

static const struct verb {
    const char *name;
    int (*run)(struct settings *);
    int takes;
    const char *usage;
    const char *line;
} verbs[] = {
    {"serve", serve,
     DATA | LISTEN | PUBLIC | REGISTRATION | LIFETIME | TICKETS | QUOTA | NAME | VERIFY_EMAIL,
     "--data DIR [--listen HOST:PORT] [--public HOST:PORT]\n"
     "            [--registration open|invite|closed] [--certificate-lifetime 24h] [--name NAME]\n"
     "            [--ticket-lifetime 20m] [--entries-per-account N] [--verify-email]",
     "serve the swarm whose state is in DIR; the first start creates it"},
    {"url", url, DATA | PUBLIC | JSON, "--data DIR [--public HOST:PORT] [--json]",
     "print the swarm's address, with the fingerprint of its CA"},
    {"invite", invite, DATA | PUBLIC | ADMIN | USES | EXPIRES | JSON,
     "--data DIR [--admin] [--uses N] [--expires 7d] [--public HOST:PORT] [--json]",
     "print the address with an invite to register with"},
};
#define VERBS (sizeof verbs / sizeof *verbs)

static void print_help(void)
{
    printf(
        "p2ptracker keeps the accounts, the catalogue and the membership of a private swarm.\n\n");
    for (size_t i = 0; i < VERBS; i++)
        printf("  p2ptracker %s %s\n      %s\n", verbs[i].name, verbs[i].usage, verbs[i].line);
    printf("  p2ptracker --help, --version\n\n"
           "Defaults: --listen :%u, --registration invite, --certificate-lifetime 24h, --uses 1, "
           "--expires 7d.\n"
           "DIR/tracker.conf may set listen, public, registration, certificate-lifetime, "
           "ticket-lifetime, entries-per-account,\n"
           "name and verify-email in a section [tracker], and the mail server in a section [mail]. "
           "More in "
           "p2ptracker(8).\n",
           SWARM_PORT);
}

/* One line for whoever typed it. */
static int complain(int status, char *text)
{
    log_error("%s", text);
    free(text);
    return status;
}

static int wrong_use(const char *what)
{
    return complain(USAGE, xasprintf("%s; see p2ptracker --help", what));
}

/* --- settings ------------------------------------------------------------------------------------------- */

static const char *take_registration(void *to, const char *value)
{
    enum registration *registration = to;
    if (strcmp(value, "open") == 0)
        *registration = REGISTRATION_OPEN;
    else if (strcmp(value, "invite") == 0)
        *registration = REGISTRATION_INVITE;
    else if (strcmp(value, "closed") == 0)
        *registration = REGISTRATION_CLOSED;
    else
        return "must be open, invite or closed";
    return NULL;
}

static const char *take_lifetime(void *to, const char *value)
{
    uint64_t *lifetime = to;
    if (!duration_parse(value, lifetime) || *lifetime < LIFETIME_SHORTEST ||
        *lifetime > LIFETIME_LONGEST)
        return "must be a time from 60s to 366d";
    return NULL;
}

static const char *take_ticket_lifetime(void *to, const char *value)
{
    uint64_t *lifetime = to;
    if (!duration_parse(value, lifetime) || *lifetime < TICKET_SHORTEST ||
        *lifetime > TICKET_LONGEST)
        return "must be a time from 10s to 24h";
    return NULL;
}

static const char *take_quota(void *to, const char *value)
{
    return number_parse(value, 1, LIMIT_ENTRIES, to) ? NULL : "must be a number from 1 to 4194304";
}

static const char *take_host_port(void *to, const char *value)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    char **text = to;
    if (!host_port_parse(value, SWARM_PORT, host, &port))
        return "must be HOST:PORT";
    free(*text);
    *text = xstrdup(value);
    return NULL;
}

static const char *take_text(void *to, const char *value)
{
    char **text = to;
    if (value[0] == '\0' || !name_is_valid(value, strlen(value)) || strlen(value) > 64)
        return "must be a name of 1 to 64 bytes";
    free(*text);
    *text = xstrdup(value);
    return NULL;
}

static const char *take_expires(void *to, const char *value)
{
    uint64_t *expires = to;
    if (!duration_parse(value, expires) || *expires == 0 || *expires > LIMIT_INVITE_S)
        return "must be a time of 366d at most, such as 7d";
    return NULL;
}

static const char *take_seconds(void *to, const char *value)
{
    uint64_t *seconds = to;
    if (!duration_parse(value, seconds) || *seconds == 0 || *seconds > 7 * 86400)
        return "must be a time from 1s to 7d";
    return NULL;
}

static bool load_config(struct settings *s)
{
    const struct config_key keys[] = {
        {"tracker", "listen", take_host_port, &s->listen},
        {"tracker", "public", take_host_port, &s->public},
        {"tracker", "registration", take_registration, &s->registration},
        {"tracker", "certificate-lifetime", take_lifetime, &s->lifetime},
        {"tracker", "ticket-lifetime", take_ticket_lifetime, &s->ticket_lifetime},
        {"tracker", "entries-per-account", take_quota, &s->quota},
        {"tracker", "name", take_text, &s->name},
        {"tracker", "verify-email", config_take_bool, &s->verify_email},
        {"mail", "server", config_take_text, &s->mail.server},
        {"mail", "command", config_take_text, &s->mail.command},
        {"mail", "from", config_take_text, &s->mail.from},
        {"mail", "user", config_take_text, &s->mail.user},
        {"mail", "password-file", config_take_text, &s->mail.password_file},
        {"mail", "ca-file", config_take_text, &s->mail.ca_file},
        {"mail", "plain", config_take_bool, &s->mail.plain},
        {"mail", "retry", take_seconds, &s->mail.retry},
        {"mail", "code-lifetime", take_seconds, &s->mail.code_lifetime},
        {0},
    };
    char *path = xasprintf("%s/tracker.conf", s->data);
    bool good = config_load(path, keys);
    free(path);
    return good;
}

/* NULL, or what is wrong with the value. */
static const char *take_option(struct settings *s, int option, char *value)
{
    switch (option) {
    case DATA:
        s->data = value;
        return value[0] == '\0' ? "must name a directory" : NULL;
    case LISTEN:
        return take_host_port(&s->listen, value);
    case PUBLIC:
        return take_host_port(&s->public, value);
    case REGISTRATION:
        return take_registration(&s->registration, value);
    case LIFETIME:
        return take_lifetime(&s->lifetime, value);
    case TICKETS:
        return take_ticket_lifetime(&s->ticket_lifetime, value);
    case QUOTA:
        return take_quota(&s->quota, value);
    case NAME:
        return take_text(&s->name, value);
    case ADMIN:
        s->admin = true;
        return NULL;
    case USES:
        return number_parse(value, 1, LIMIT_INVITE_USES, &s->uses)
                   ? NULL
                   : "must be a number from 1 to 100000";
    case EXPIRES:
        return take_expires(&s->expires, value);
    case VERIFY_EMAIL:
        s->verify_email = true;
        return NULL;
    default:
        s->json = true;
        return NULL;
    }
}

/* Goes through the options of a verb; -1, or the status to exit with. The first time only --data is looked at, so
 * that the configuration file can come before the others. */
static int parse(const struct verb *verb, int argc, char **argv, struct settings *s, bool data_only)
{
    int index;
    int option;
    optind = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", long_options, &index)) != -1) {
        if (option == 'h') {
            print_help();
            return DONE;
        }
        if (option == ':' || option == '?') {
            char *what = xasprintf("%s %s", argv[optind - 1],
                                   option == ':' ? "needs a value" : "is not an option");
            int status = wrong_use(what);
            free(what);
            return status;
        }
        if (!(verb->takes & option)) {
            char *what = xasprintf("%s does not take --%s", verb->name, long_options[index].name);
            int status = wrong_use(what);
            free(what);
            return status;
        }
        if (data_only && option != DATA)
            continue;
        const char *fault = take_option(s, option, optarg);
        if (fault != NULL)
            return complain(USAGE, xasprintf("--%s %s", long_options[index].name, fault));
    }
    if (optind < argc)
        return complain(USAGE,
                        xasprintf("%s is one word too many; see p2ptracker --help", argv[optind]));
    if (s->data == NULL)
        return wrong_use("--data DIR is missing");
    return -1;
}

/* What nobody else may read is not used if somebody could have. */
static bool files_are_private(const char *dir)
{
    static const char *const names[] = {"ca.key",       "server.key",     "tickets.key",
                                        "tracker.db",   "tracker.db-wal", "pieces.db",
                                        "pieces.db-wal"};
    return secrecy_files(dir, names, sizeof names / sizeof names[0]);
}

/* --- serve ------------------------------------------------------------------------------------------------ */

static void set_limits(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    secrecy_begin(); /* it holds the CA's key */
    signal(SIGPIPE, SIG_IGN);
}

/* `public` is remembered for url and invite. */
static bool remember(const struct settings *s, const struct server *server, char **fault)
{
    return place_set_listening(s->data, server_address(server), fault) &&
           (s->public == NULL || place_set_public(s->data, s->public, fault));
}

static int serve(struct settings *s)
{
    char host[SWARM_HOST_MAX + 1] = "";
    char *fault = NULL;
    struct server_settings server_settings = {.dir = s->data,
                                              .host = host,
                                              .port = SWARM_PORT,
                                              .registration = s->registration,
                                              .certificate_lifetime = s->lifetime,
                                              .ticket_lifetime = s->ticket_lifetime,
                                              .quota = s->quota,
                                              .name = s->name == NULL ? "swarm" : s->name,
                                              .mail = s->mail,
                                              .verify_email = s->verify_email};
    bool sends_mail;
    fault = mail_settings_fault(&s->mail, &sends_mail);
    if (fault == NULL && s->verify_email && !sends_mail)
        fault = xasprintf("--verify-email needs a mail server: see [mail] in p2ptracker(8)");
    if (fault != NULL)
        return complain(FAILED, fault);
    if (s->listen != NULL)
        host_port_parse(s->listen, SWARM_PORT, host, &server_settings.port);
    set_limits();
    struct server *server = server_new(&server_settings, &fault);
    if (server == NULL)
        return complain(FAILED, fault);
    if (!remember(s, server, &fault)) {
        server_free(server);
        return complain(FAILED, fault);
    }
    server_stop_on_signals(server);
    if (server_is_new(server))
        fprintf(
            stderr,
            "p2ptracker: nobody is registered yet; invite the first admin with: p2ptracker invite "
            "--data %s --admin\n",
            s->data);
    fprintf(stderr, "p2ptracker: ready on %s\n", server_address(server));
    notify_service_manager("READY=1");
    server_run(server);
    notify_service_manager("STOPPING=1");
    server_free(server);
    log_info("stopped");
    return DONE;
}

/* --- url, invite -------------------------------------------------------------------------------------------- */

static bool find_place(const struct settings *s, struct swarm_url *address, char **fault)
{
    if (s->public != NULL && !place_set_public(s->data, s->public, fault))
        return false;
    return place_url(s->data, address, fault);
}

static int url(struct settings *s)
{
    struct swarm_url address;
    char text[SWARM_URL_MAX];
    char *fault = NULL;
    if (!find_place(s, &address, &fault))
        return complain(FAILED, fault);
    swarm_url_format(text, &address, false);
    printf(s->json ? "{\"url\": \"%s\"}\n" : "%s\n", text);
    return DONE;
}

static bool write_invite(const struct settings *s, const struct storage_invite *new_invite,
                         char **fault)
{
    struct storage *storage = storage_open(s->data, STORAGE_VISIT, fault);
    if (storage == NULL)
        return false;
    struct storage_event event = {.when = clock_wall() / NS_PER_S, .what = "invite"};
    bool good = storage_begin(storage, true);
    if (good) {
        storage_invite_add(storage, new_invite);
        storage_audit(storage, &event);
        good = storage_commit(storage);
    }
    storage_close(storage);
    if (!good)
        *fault = xasprintf("cannot write the invite to the database in %s", s->data);
    return good;
}

static int invite(struct settings *s)
{
    struct swarm_url address;
    char text[SWARM_URL_MAX];
    char *fault = NULL;
    struct storage_invite fresh = {.admin = s->admin,
                                   .uses = (uint32_t)s->uses,
                                   .expires = clock_wall() / NS_PER_S + (int64_t)s->expires};
    if (!find_place(s, &address, &fault))
        return complain(FAILED, fault);
    accounts_make_invite(&fresh, address.invite);
    if (!write_invite(s, &fresh, &fault))
        return complain(FAILED, fault);
    swarm_url_format(text, &address, true);
    if (s->json)
        printf("{\"url\": \"%s\", \"code\": \"%s\", \"admin\": %s, \"uses\": %" PRIu64
               ", \"expires\": %" PRId64 "}\n",
               text, address.invite, s->admin ? "true" : "false", s->uses, fresh.expires);
    else
        printf("%s\n", text);
    return DONE;
}

static int run(const struct verb *verb, int argc, char **argv)
{
    struct settings s = {.mail = {.retry = MAIL_RETRY, .code_lifetime = MAIL_CODE_LIFETIME},
                         .lifetime = SERVER_CERTIFICATE_LIFETIME,
                         .uses = 1,
                         .expires = ACCOUNTS_INVITE_LIFETIME,
                         .registration = REGISTRATION_INVITE};
    int status = parse(verb, argc, argv, &s, true);
    if (status >= 0)
        goto done;
    status = FAILED;
    if (verb->run == serve) {
        int error = file_private_dir(s.data);
        if (error < 0) {
            status = complain(FAILED, xasprintf("%s: %s", s.data,
                                                error == -EPERM
                                                    ? "others may enter it, or it is not yours; "
                                                      "mend it with chmod 700"
                                                    : strerror(-error)));
            goto done;
        }
        if (!files_are_private(s.data))
            goto done;
    }
    if (!load_config(&s))
        goto done;
    status = parse(verb, argc, argv, &s, false);
    if (status < 0)
        status = verb->run(&s);
done:
    free(s.listen);
    free(s.public);
    free(s.name);
    mail_settings_clear(&s.mail);
    return status;
}

int main(int argc, char **argv)
{
    log_init("p2ptracker", LOG_LEVEL_INFO, false);
    umask(0077);
    /* Left alone, the C library learns from the first password (20 MiB) to keep such blocks in its heaps: 60 MiB for good. */
    (void)mallopt(M_MMAP_THRESHOLD, HEAP_BLOCK);
    if (argc < 2)
        return wrong_use("a verb is missing");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("p2ptracker %s\n", P2P_VERSION);
        return DONE;
    }
    int status = -1;
    for (size_t i = 0; i < VERBS && status < 0; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            status = run(&verbs[i], argc - 1, argv + 1);
    if (status < 0)
        return complain(USAGE, xasprintf("%s is not a verb; see p2ptracker --help", argv[1]));
    if (fflush(stdout) != 0)
        return complain(FAILED, xasprintf("standard output: %s", strerror(errno)));
    return status;
}
