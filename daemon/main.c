/* p2pd: one member's swarm daemon. Options, configuration, setting up, waiting for the end, taking
 * down.
 *
 * Everything that can fail at the start fails here, on the main thread, before a thread of a module
 * runs: one line on standard error and exit status 1 (2 for wrong usage). After `ready` a fault
 * ends a link or a file, never the daemon. With --detach the parent stays until the child is ready
 * or has said why not; from then on messages go to HOME/p2pd.log. */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/file.h"
#include "base/home.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/notify.h"
#include "base/secrecy.h"
#include "base/swarm_url.h"
#include "base/workers.h"
#include "crypto/identity.h"
#include "crypto/store_key.h"
#include "daemon/bucket.h"
#include "daemon/credentials.h"
#include "daemon/daemon.h"
#include "daemon/download.h"
#include "daemon/encryption.h"
#include "daemon/evict.h"
#include "daemon/limits.h"
#include "daemon/local.h"
#include "daemon/parts.h"
#include "daemon/revocations.h"
#include "daemon/session.h"
#include "daemon/store.h"
#include "daemon/upload.h"
#include "proto/bans.h"
#include "proto/limits.h"

#define SYNC_NS         (5 * NS_PER_S) /* how much of a download a power cut may cost */
#define EXIT_WRONG_CALL 2
#define LOCK_WAIT_S     2

static const char usage[] =
    "usage: p2pd [--home DIR] [--detach] [--listen HOST:PORT] [--passphrase-file FILE]\n"
    "            [--check]\n"
    "One member's swarm daemon. p2pctl and p2pfs start it by themselves.\n"
    "\n"
    "  --home DIR          where keys, state and store are (default: $P2P_HOME,\n"
    "                      else ${XDG_DATA_HOME:-~/.local/share}/p2pfs)\n"
    "  --detach            go to the background once ready; log to DIR/p2pd.log\n"
    "  --listen HOST:PORT  where to accept other members (default: any address,\n"
    "                      a free port that is kept)\n"
    "  --passphrase-file FILE  the device key's passphrase is FILE's first line (-: of\n"
    "                      standard input; default: $P2P_PASSPHRASE_FILE, else the\n"
    "                      service manager's credential p2pd.passphrase)\n"
    "  --key-passphrase    give the device's key another passphrase: the present and the\n"
    "                      new one are two lines of standard input, empty for none; then end\n"
    "  --check             read DIR/p2pd.conf, say what is wrong with it, and end\n"
    "  --help, --version\n";

struct options {
    char *home;
    char *listen;
    char *passphrase_file;
    bool detach, check_only, key_passphrase;
};

struct program {
    struct daemon daemon;
    struct loop *loop; /* the main thread's: signals and the sync timer */
    struct timer *sync_timer;
    struct workers *
        syncer; /* one thread: an fdatasync takes as long as the disk likes, and must not hold a worker */
    struct job writeback; /* the syncer's; posted again only when it runs */
    struct event *on_term, *on_int, *on_home;
    int lock;
    int home_watch;  /* inotify's */
    bool homeless;   /* the lock is not in its place any more */
    int tell_parent; /* a pipe, -1 if not detached */
};

/* Static, so that what lives until the end stays reachable to the end. */
static struct program program;

static int parse_options(struct options *options, int argc, char **argv)
{
    static const struct option table[] = {
        {"home", required_argument, NULL, 'H'},
        {"detach", no_argument, NULL, 'd'},
        {"listen", required_argument, NULL, 'l'},
        {"passphrase-file", required_argument, NULL, 'P'},
        {"key-passphrase", no_argument, NULL, 'K'},

        {"check", no_argument, NULL, 'n'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {NULL, 0, NULL, 0},
    };
    static char name[] = "p2pd";
    int c;

    argv[0] = name; /* what getopt puts before its messages */
    while ((c = getopt_long(argc, argv, "n", table, NULL)) != -1) {
        switch (c) {
        case 'H':
            options->home = optarg;
            break;
        case 'd':
            options->detach = true;
            break;
        case 'l':
            options->listen = optarg;
            break;
        case 'K':
            options->key_passphrase = true;
            break;
        case 'P':
            options->passphrase_file = optarg;
            break;
        case 'n':
            options->check_only = true;
            break;
        case 'h':
            fputs(usage, stdout);
            exit(EXIT_SUCCESS);
        case 'V':
            puts("p2pd " P2P_VERSION);
            exit(EXIT_SUCCESS);
        default:
            return EXIT_WRONG_CALL;
        }
    }
    if (optind < argc) {
        log_error("unexpected argument '%s'; see p2pd --help", argv[optind]);
        return EXIT_WRONG_CALL;
    }
    return 0;
}

static const char *take_announce(void *to, const char *value)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;

    if (!host_port_parse(value, 0, host, &port))
        return "is not HOST:PORT";
    return config_take_text(to, value);
}

/* One of this machine's own addresses: a name that means several, or none yet, is nothing to listen at. */
static const char *take_listen(void *to, const char *value)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    uint8_t address[16];

    if (!host_port_parse(value, 0, host, &port))
        return "is not HOST:PORT";
    if (host[0] != '\0' && inet_pton(AF_INET, host, address) != 1 &&
        inet_pton(AF_INET6, host, address) != 1)
        return "must name its host by an IP address, as in 192.0.2.7:7701, [2001:db8::7]:7701 or "
               ":7701";
    return config_take_text(to, value);
}

static const char *take_cache_size(void *to, const char *value)
{
    const char *fault = config_take_bytes(to, value);
    uint64_t size = *(uint64_t *)to;

    return fault != NULL ? fault : size > 0 && size < CACHE_SIZE_LEAST ? "is less than 16M" : NULL;
}

static const char *take_rate(void *to, const char *value)
{
    const char *fault = config_take_bytes(to, value);
    uint64_t rate = *(uint64_t *)to;

    if (fault != NULL || rate == 0)
        return fault;
    return rate < BUCKET_RATE_LEAST  ? "is less than 4K a second"
           : rate > BUCKET_RATE_MOST ? "is more than 128G a second"
                                     : NULL;
}

static bool load_settings(const char *home, struct daemon_settings *settings)
{
    const struct config_key keys[] = {
        {"peer", "listen", take_listen, &settings->listen},
        {"peer", "announce", take_announce, &settings->announce},
        {"limit", "up", take_rate, &settings->rate_up},
        {"limit", "down", take_rate, &settings->rate_down},
        {"fetch", "background", config_take_bool, &settings->background},
        {"store", "cache-size", take_cache_size, &settings->cache_size},
        {"store", "encryption", config_take_bool, &settings->encryption},
        {NULL, NULL, NULL, NULL},
    };
    char *path = home_path(home, "p2pd.conf");

    settings->background = true;
    bool good = config_load(path, keys);
    free(path);
    return good;
}

/* --- becoming a daemon
 * ------------------------------------------------------------------------------------ */

/* Only the child returns. The parent ends with 0 once the child is ready, else with 1: the child
 * has said why. */
static void detach(void)
{
    int fds[2];
    char byte;

    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    pid_t child = fork();
    if (child < 0) {
        log_error("can't fork: %s", strerror(errno));
        exit(EXIT_FAILURE);
    }
    if (child > 0) {
        close(fds[1]);
        ssize_t got;
        while ((got = read(fds[0], &byte, 1)) < 0 && errno == EINTR)
            ;
        _exit(got == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    close(fds[0]);
    setsid();
    program.tell_parent = fds[1];
}

/* Standard error has told what went wrong until now; from here on the log file is for that. */
static void turn_to_log_file(const char *home)
{
    char *path = home_path(home, "p2pd.log");
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (log < 0 || null < 0) {
        log_error("%s: %s", path, strerror(errno));
        exit(EXIT_FAILURE);
    }
    CHECK(dup2(null, STDIN_FILENO) >= 0 && dup2(null, STDOUT_FILENO) >= 0 &&
          dup2(log, STDERR_FILENO) >= 0);
    close(null);
    close(log);
    free(path);
    CHECK(chdir("/") == 0);
    log_init("p2pd", LOG_LEVEL_INFO, true);
}

static void on_waited(int signal)
{
    (void)signal; /* it interrupts flock */
}

/* As LOCK_EX, for LOCK_WAIT_S at most: a p2pd that was killed is gone from the list of processes before the kernel has closed its
 * files (an inotify's alone takes milliseconds), and whoever killed it may start another at once. */
static bool lock_in_time(int fd)
{
    struct sigaction waited = {.sa_handler = on_waited}, before; /* no SA_RESTART */

    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return true;
    if (errno != EWOULDBLOCK)
        return false;
    sigaction(SIGALRM, &waited, &before);
    alarm(LOCK_WAIT_S);
    bool good = flock(fd, LOCK_EX) == 0;
    int error = errno;
    alarm(0);
    sigaction(SIGALRM, &before, NULL);
    errno = error == EINTR ? EWOULDBLOCK : error;
    return good;
}

/* False if another p2pd has this home. */
static bool take_lock(const char *home)
{
    char *path = home_path(home, "p2pd.lock");

    program.lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool good = program.lock >= 0 && lock_in_time(program.lock);
    if (!good && errno == EWOULDBLOCK)
        log_error("already running for %s", home);
    else if (!good)
        log_error("%s: %s", path, strerror(errno));
    free(path);
    return good;
}

static void set_limits(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    secrecy_begin(); /* it holds the device's key */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file over the size limit is an error of one write */
}

/* --- the device key's passphrase
 * --------------------------------------------------------------------------------------------- */

/* Where it is, malloc'ed; NULL: nowhere. A credential of systemd's is a file that only we can read. */
static char *passphrase_path(const struct options *options)
{
    const char *file = getenv("P2P_PASSPHRASE_FILE");
    const char *credentials = getenv("CREDENTIALS_DIRECTORY");

    if (options->passphrase_file != NULL)
        return xstrdup(options->passphrase_file);
    if (file != NULL && *file != '\0')
        return xstrdup(file);
    if (credentials == NULL)
        return NULL;
    char *path = xasprintf("%s/p2pd.passphrase", credentials);
    if (access(path, F_OK) == 0)
        return path;
    free(path);
    return NULL;
}

static bool take_line(char *bytes, size_t size, const char *from)
{
    const char *end = memchr(bytes, '\n', size);

    size = end != NULL ? (size_t)(end - bytes) : size;
    bool good = size > 0 && size <= PASSPHRASE_MAX;
    if (good)
        key_set_passphrase(bytes, size);
    else
        log_error("%s: no passphrase of at most %d bytes in its first line", from, PASSPHRASE_MAX);
    return good;
}

static bool take_passphrase(const struct options *options)
{
    char *path = passphrase_path(options), *bytes = NULL;
    size_t size = 0;
    bool good = true;

    if (path == NULL)
        return true;
    if (strcmp(path, "-") == 0) {
        char line[PASSPHRASE_MAX + 2];
        ssize_t n;

        while (size < sizeof line && (n = read(STDIN_FILENO, line + size, sizeof line - size)) > 0)
            size += (size_t)n;
        good = take_line(line, size, "standard input");
        explicit_bzero(line, sizeof line);
    } else {
        int error = file_read(path, PASSPHRASE_MAX + 1, true, &bytes, &size);
        if (error == -EPERM)
            log_error("%s: others may read it; 'chmod 600' it first", path);
        else if (error != 0)
            log_error("%s: %s", path, strerror(-error));
        good = error == 0 && take_line(bytes, size, path);
        file_free_secret(bytes, size);
    }
    free(path);
    return good;
}

/* Takes a line off *bytes; false if there is none. */
static bool next_line(char **bytes, size_t *left, char **line, size_t *size)
{
    char *end = memchr(*bytes, '\n', *left);

    if (end == NULL)
        return false;
    *line = *bytes;
    *size = (size_t)(end - *bytes);
    *left -= *size + 1;
    *bytes = end + 1;
    return true;
}

/* The store's key opens with either passphrase until the device's key has the new one. */
static bool change_both(const char *home, const struct key *key, const char *path,
                        const char *fresh, size_t size, const char **which, const char **fault)
{
    struct store_key *store_key;

    *which = "store.key";
    bool good = encryption_prepare_passphrase(home, fresh, size, &store_key, fault);
    if (good) {
        *which = "device.key";
        good = size == 0 ? key_save(key, path, fault)
                         : key_save_protected(key, path, fresh, size, fault);
    }
    if (good)
        *which = "store.key";
    return encryption_settle_passphrase(home, store_key, good, fault) && good;
}

static bool change_passphrase(const char *home)
{
    char bytes[2 * PASSPHRASE_MAX + 2], *at = bytes, *old, *fresh;
    size_t left = 0, old_size, fresh_size;
    const char *which = "device.key",
               *fault = "was not changed: two lines are needed on standard input";
    ssize_t n;
    bool good = false;

    while (left < sizeof bytes && (n = read(STDIN_FILENO, bytes + left, sizeof bytes - left)) > 0)
        left += (size_t)n;
    char *path = home_path(home, "device.key");
    if (next_line(&at, &left, &old, &old_size) && next_line(&at, &left, &fresh, &fresh_size) &&
        old_size <= PASSPHRASE_MAX && fresh_size <= PASSPHRASE_MAX) {
        if (old_size > 0)
            key_set_passphrase(old, old_size);
        struct key *key = key_load(path, &fault);
        good = key != NULL && change_both(home, key, path, fresh, fresh_size, &which, &fault);
        key_free(key);
    }
    if (!good)
        log_error("%s %s", which, fault);
    explicit_bzero(bytes, sizeof bytes);
    key_set_passphrase(NULL, 0);
    free(path);
    return good;
}

/* What nobody else may read is not used if somebody could have. */
static bool files_are_private(const char *home)
{
    static const char *const names[] = {"device.key", "signing.key", "store.key",
                                        "account",    "state.db",    "state.db-wal"};

    return secrecy_files(home, names, sizeof names / sizeof names[0]);
}

/* --- the store's hook and its regular sync
 * ----------------------------------------------------------------- */

/* On a worker: blocks came or went. Only whole pieces are anybody's business but the readers', and those to whom the content
 * is being served. */
static void holding_changed(void *arg, struct content *content, uint64_t first, uint32_t count,
                            bool present)
{
    struct daemon *d = arg;
    const struct geometry *geometry = content_geometry(content);
    uint32_t from = (uint32_t)(first / geometry->piece_blocks);
    uint32_t to = (uint32_t)((first + count - 1) / geometry->piece_blocks);
    bool whole = !present;

    for (uint32_t piece = from; piece <= to && !whole; piece++)
        whole = content_has_piece(content, piece);
    if (!whole) {
        struct geometry parts = parts_of(geometry);

        if (parts.piece_blocks < geometry->piece_blocks &&
            parts_completed(&parts, content_present(content), first, count))
            upload_holding_changed(d->upload, content);
        return;
    }
    if (!present)
        download_lost(d->download, content);
    session_holding_changed(d->session, content);
    upload_holding_changed(d->upload, content);
    local_holding_changed(d->local, content);
}

struct sync {
    struct job job;
    struct mail mail;
    struct store *store;
};

static void synced(struct mail *mail, void *owner)
{
    struct program *p = owner;

    free((char *)mail - offsetof(struct sync, mail));
    if (p->sync_timer != NULL)
        timer_set(p->sync_timer, SYNC_NS);
}

static void sync_run(struct job *job)
{
    struct sync *sync = (struct sync *)(void *)job;
    int error = store_sync(sync->store);

    if (error != 0)
        log_warning("the store could not be synced: %s", strerror(-error));
    loop_post(program.loop, &sync->mail);
}

static void writeback_run(struct job *job)
{
    store_writeback(program.daemon.store);
}

/* On a worker that wrote. */
static void written(void *arg)
{
    struct program *p = arg;

    workers_post(p->syncer, &p->writeback, false);
}

static void sync_due(void *arg)
{
    struct program *p = arg;
    struct sync *sync = xcalloc(1, sizeof *sync);

    sync->job.run = sync_run;
    sync->mail.deliver = synced;
    sync->store = p->daemon.store;
    workers_post(p->syncer, &sync->job, false);
}

/* --- life
 * ----------------------------------------------------------------------------------------------------
 */

static void on_signal(evutil_socket_t number, short what, void *arg)
{
    (void)what;
    struct program *p = arg;

    log_info("stopping (%s)", strsignal((int)number));
    loop_stop(p->loop);
}

/* Whether p2pd.lock is still the file that was locked. Without it another p2pd could start for this home, or there is no home. */
static bool has_lock(const struct program *p)
{
    char *path = home_path(p->daemon.home, "p2pd.lock");
    struct stat mine, there;
    bool has = fstat(p->lock, &mine) == 0 && lstat(path, &there) == 0 &&
               mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;

    if (!has)
        log_error("%s: was removed or replaced: this home is not p2pd's any more, stopping", path);
    free(path);
    return has;
}

static void on_home_changed(evutil_socket_t fd, short what, void *arg)
{
    struct program *p = arg;
    char events[4096]; /* what they say is not looked at */

    (void)what;
    while (read(fd, events, sizeof events) > 0)
        continue;
    if (p->homeless || has_lock(p))
        return;
    p->homeless = true;
    loop_stop(p->loop);
}

/* Without inotify (its instances are limited) p2pd does without. */
static void watch_home(struct program *p)
{
    p->home_watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (p->home_watch < 0 || inotify_add_watch(p->home_watch, p->daemon.home,
                                               IN_DELETE | IN_MOVED_FROM | IN_MOVE_SELF) < 0) {
        log_info("%s is not watched: %s", p->daemon.home, strerror(errno));
        return;
    }
    p->on_home =
        event_new(loop_base(p->loop), p->home_watch, EV_READ | EV_PERSIST, on_home_changed, p);
    CHECK(p->on_home != NULL && event_add(p->on_home, NULL) == 0);
}

static void on_stop_asked(void *arg)
{
    struct program *p = arg;

    log_info("stopping (p2pctl stop)");
    loop_stop(p->loop);
}

/* Everything that may fail. NULL, or what did. */
static const char *set_up(struct program *p)
{
    struct daemon *d = &p->daemon;
    const char *fault = NULL;
    struct store_key *key;

    d->started = clock_now();
    if (!encryption_open(d->home, d->settings.encryption, &key, &fault))
        return fault;
    char *store_path = home_path(d->home, "store");
    d->store = store_open_encrypted(store_path, key, &fault);
    free(store_path);
    if (d->store == NULL)
        return fault;
    d->limits =
        limits_open(d->home, (struct rates){d->settings.rate_up, d->settings.rate_down}, &fault);
    if (d->limits == NULL)
        return fault;
    d->settings.rate_up = limits_of(d->limits, NULL).up;
    d->settings.rate_down = limits_of(d->limits, NULL).down;
    struct credentials *credentials = credentials_load(d->home, &fault);
    if (credentials == NULL && fault != NULL)
        return fault;
    d->revocations = revocations_open(d->home);
    p->loop = loop_new("main");
    loop_set_owner(p->loop, p);
    d->workers = workers_new("worker", 0);
    p->syncer = workers_new("sync", 1);
    d->bans = bans_new();
    d->handshakes = workers_new("handshake", LIMIT_HANDSHAKE_THREADS);
    d->accepts = workers_new_meek("accept", LIMIT_HANDSHAKE_THREADS);
    if ((d->local = local_new(d, &fault)) == NULL || (d->upload = upload_new(d, &fault)) == NULL)
        return fault;
    d->download = download_new(d);
    d->session = session_new(d, credentials);
    store_on_change(d->store, holding_changed, d);
    p->writeback.run = writeback_run;
    store_on_written(d->store, written, p);
    local_on_stop(d->local, on_stop_asked, p);
    p->on_term = evsignal_new(loop_base(p->loop), SIGTERM, on_signal, p);
    p->on_int = evsignal_new(loop_base(p->loop), SIGINT, on_signal, p);
    CHECK(p->on_term != NULL && p->on_int != NULL);
    CHECK(event_add(p->on_term, NULL) == 0 && event_add(p->on_int, NULL) == 0);
    watch_home(p);
    p->sync_timer = timer_new(p->loop, sync_due, p);
    timer_set(p->sync_timer, SYNC_NS);
    return NULL;
}

static void start(struct program *p)
{
    struct daemon *d = &p->daemon;

    download_start(d->download);
    upload_start(d->upload);
    local_start(d->local);
    session_start(d->session);
    session_listening(d->session, upload_port(d->upload));
    if (p->tell_parent >= 0) {
        CHECK(write(p->tell_parent, "", 1) == 1 || errno == EPIPE);
        close(p->tell_parent);
    } else {
        fputs("p2pd: ready\n", stderr);
    }
    notify_service_manager("READY=1");
}

/* All threads end before anything is freed, as each may still post to the others. */
static void take_down(struct program *p)
{
    struct daemon *d = &p->daemon;

    notify_service_manager("STOPPING=1");
    timer_free(p->sync_timer);
    p->sync_timer = NULL;
    store_end(d->store);
    local_stop(d->local);
    session_stop(d->session);
    download_stop(d->download);
    upload_stop(d->upload);
    workers_drain(d->handshakes);
    workers_drain(d->accepts);
    workers_drain(d->workers);
    workers_drain(p->syncer);
    session_free(d->session);
    download_free(d->download);
    upload_free(d->upload);
    local_free(d->local);
    workers_free(d->handshakes);
    workers_free(d->accepts);
    bans_free(d->bans);
    workers_free(d->workers);
    workers_free(p->syncer);
    event_free(p->on_term);
    event_free(p->on_int);
    if (p->on_home != NULL)
        event_free(p->on_home);
    if (p->home_watch >= 0)
        close(p->home_watch);
    loop_free(p->loop);
    store_close(d->store);
    revocations_close(d->revocations);
    limits_free(d->limits);
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct program *p = &program;

    p->tell_parent = -1;
    log_init("p2pd", LOG_LEVEL_INFO, false);
    int status = parse_options(&options, argc, argv);
    if (status != 0)
        return status;
    char *home = home_find(options.home);
    if (home == NULL) {
        log_error("no home: give --home DIR or set P2P_HOME");
        return EXIT_FAILURE;
    }
    p->daemon.home = home;
    if (!load_settings(home, &p->daemon.settings))
        return EXIT_FAILURE;
    if (options.listen != NULL) {
        free(p->daemon.settings.listen);
        p->daemon.settings.listen = NULL;
        const char *fault = take_listen(&p->daemon.settings.listen, options.listen);
        if (fault != NULL) {
            log_error("--listen: '%s' %s", options.listen, fault);
            return EXIT_WRONG_CALL;
        }
    }
    if (options.check_only)
        return EXIT_SUCCESS;
    int error = file_private_dir(home);
    if (error != 0) {
        log_error("%s: %s", home,
                  error == -EPERM ? "must be a directory that only its owner may enter (chmod 700)"
                                  : strerror(-error));
        return EXIT_FAILURE;
    }
    if (!files_are_private(home))
        return EXIT_FAILURE;
    umask(077);
    set_limits();
    if (options.key_passphrase)
        return change_passphrase(home) ? EXIT_SUCCESS : EXIT_FAILURE;
    if (!take_passphrase(&options))
        return EXIT_FAILURE;
    if (options.detach)
        detach();
    if (!take_lock(home))
        return EXIT_FAILURE;
    const char *fault = set_up(p);
    if (fault != NULL) {
        log_error("%s", fault);
        return EXIT_FAILURE;
    }
    if (options.detach)
        turn_to_log_file(home);
    start(p);
    loop_run(p->loop);
    take_down(p);
    free(p->daemon.settings.listen);
    free(p->daemon.settings.announce);
    free(home);
    return p->homeless ? EXIT_FAILURE : EXIT_SUCCESS;
}
