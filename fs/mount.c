/* The session with the kernel: what is checked before, capabilities, threads, the way into the background, the end.
 *
 * Order: everything that can fail for a reason that a user can mend is tried in the process that has his terminal:
 * the daemon is probed, the mount is made. Then the fork; then, in the child, the threads (a fork would not copy them);
 * the parent stays until the kernel has greeted the child, so that a script's next command finds a mount that answers.
 *
 * End: libfuse's loop returns (unmounted, or a signal). From then on everything is refused: what the client holds, so
 * that readers get their EIO and close their files, and what still comes, which is read here until the invalidator has
 * ended (it may wait for a lock that only an answer frees). With both threads gone the session is unmounted. */
#include "fs/mount.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/notify.h"
#include "base/number.h"
#include "base/workers.h"
#include "fs/buffer.h"
#include "fs/client.h"
#include "fs/crew.h"
#include "fs/device.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/listings.h"
#include "fs/mount_guard.h"
#include "fs/mountinfo.h"
#include "fs/ops.h"
#include "fs/probe.h"
#include "fs/times.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_BACKGROUND                                                                             \
    2048 /* reads and writes that the kernel has under way: one parked read of each of 2,000 */
#define CONGESTION        1536
#define DISK_THREADS      2
#define REQUEST_TIMEOUT   "/proc/sys/fs/fuse/max_request_timeout"
#define LOG_NAME          "p2pfs.log"
#define MOUNT_PATIENCE_MS 5000 /* how long what is mounted already may take to say that it lives */

/* Set by main thread before the loop runs; the write end of the pipe on which the parent waits. */
static int live_fd = -1;

/* --- checks ---------------------------------------------------------------------------------------------- */

/* One number from a file of /proc; 0 if there is none. */
static uint64_t read_number(const char *path)
{
    char text[32];
    uint64_t number = 0;
    ssize_t length;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    length = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return number_parse(text, 0, UINT32_MAX, &number) ? number : 0;
}

/* The kernel may abort the whole mount when one request stays unanswered for too long: stay below 80 % of that.
 * False if `wait` does not. */
static bool check_timeout(struct fs *fs, const struct options *options)
{
    uint64_t limit = read_number(REQUEST_TIMEOUT);

    fs->wait = (int64_t)options->wait * NS_PER_S;
    fs->slow = INT64_MAX;
    if (limit == 0)
        return true;
    fs->slow = (int64_t)limit * NS_PER_S * 4 / 5;
    if (fs->wait < fs->slow)
        return true;
    log_error(
        "wait=%llus is too long: the kernel ends a mount that does not answer within %llus (%s); "
        "at most %llus, please",
        (unsigned long long)options->wait, (unsigned long long)limit, REQUEST_TIMEOUT,
        (unsigned long long)(limit * 4 / 5 > 0 ? limit * 4 / 5 - 1 : 0));
    return false;
}

/* The absolute path, without touching its last component (which may be a dead mount); NULL if the directory it is in
 * is not there. malloc'ed. */
static char *absolute_path(const char *path)
{
    char *copy = xstrdup(path), *slash, *parent, *result;
    size_t length = strlen(copy);

    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = '\0';
    slash = strrchr(copy, '/');
    if (slash == copy || strcmp(slash == NULL ? copy : slash + 1, ".") == 0 ||
        strcmp(slash == NULL ? copy : slash + 1, "..") == 0) {
        result = realpath(copy, NULL);
    } else {
        if (slash != NULL)
            *slash = '\0';
        parent = realpath(slash == NULL ? "." : copy, NULL);
        result = parent == NULL ? NULL
                                : xasprintf("%s/%s", strcmp(parent, "/") == 0 ? "" : parent,
                                            slash == NULL ? copy : slash + 1);
        free(parent);
    }
    free(copy);
    return result;
}

/* Takes a mount away whose p2pfs has crashed. */
static bool clean_up(const char *path)
{
    pid_t pid;
    int status = 0;

    log_info("%s: a crashed p2pfs left its mount behind; removing it", path);
    if (umount2(path, MNT_DETACH) == 0)
        return true;
    pid = fork();
    if (pid == 0) {
        execlp("fusermount3", "fusermount3", "-u", "-z", "-q", "--", path, (char *)NULL);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
}

/* What cannot be read counts as empty: the mount will fail by itself, or it is nobody's business. */
static bool is_empty(const char *path)
{
    DIR *directory = opendir(path);
    const struct dirent *entry;
    bool empty = true;

    while (directory != NULL && empty && (entry = readdir(directory)) != NULL)
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    if (directory != NULL)
        closedir(directory);
    return empty;
}

enum mount_state { MOUNT_LIVES, MOUNT_SILENT, MOUNT_DEAD };

/* Asks what is mounted there, in a child: who asks a mount that does not answer waits for as long as it is there. */
static enum mount_state ask_mount(const char *path)
{
    struct pollfd ended = {.events = POLLIN};
    struct statvfs space;
    pid_t pid = fork();
    int status = 0, ready;

    if (pid < 0)
        return MOUNT_SILENT;
    /* Not stat: the kernel may have the root's attributes, and answers with nobody left to ask. */
    if (pid == 0)
        _exit(statvfs(path, &space) != 0 && (errno == ENOTCONN || errno == ECONNABORTED)
                  ? MOUNT_DEAD
                  : MOUNT_LIVES);
    ended.fd = pidfd_open(pid, 0);
    do
        ready = poll(&ended, 1, MOUNT_PATIENCE_MS);
    while (ready < 0 && errno == EINTR);
    if (ended.fd >= 0)
        close(ended.fd);
    if (ready == 0)
        kill(pid, SIGKILL);
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return MOUNT_SILENT;
    return (enum mount_state)WEXITSTATUS(status);
}

static bool check_mountpoint(const char *path, bool nonempty)
{
    struct mountinfo info;
    struct stat st;

    while (mountinfo_find(path, &info)) {
        switch (ask_mount(path)) {
        case MOUNT_LIVES:
            log_error("%s: already mounted", path);
            return false;
        case MOUNT_SILENT:
            log_error("%s: already mounted, and does not answer: its p2pfs or p2pd is stopped (if "
                      "they are gone: echo 1 > /sys/fs/fuse/connections/%u/abort)",
                      path, info.minor_number);
            return false;
        case MOUNT_DEAD:
            break;
        }
        if (!clean_up(path)) {
            log_error(
                "%s: a crashed p2pfs left its mount behind, and fusermount3 -u does not remove it",
                path);
            return false;
        }
    }
    if (stat(path, &st) != 0) {
        log_error("%s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISDIR(st.st_mode)) {
        log_error("%s: not a directory", path);
        return false;
    }
    /* Another kind of mount is somebody's plan, as systemd's automount, which must not be looked into. */
    if (!nonempty && !mountinfo_is_mounted(path) && !is_empty(path)) {
        log_error("%s: not empty: a mount would hide what is in it (-o nonempty does so)", path);
        return false;
    }
    return true;
}

static bool check_device(void)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (fd >= 0) {
        close(fd);
        return true;
    }
    if (errno == EACCES)
        log_error("/dev/fuse: %s (only root may mount here: its mode is usually 0666)",
                  strerror(errno));
    else
        log_error("/dev/fuse: %s (is the kernel's fuse module loaded?)", strerror(errno));
    return false;
}

/* --- the session ----------------------------------------------------------------------------------------- */

static void want(struct fuse_conn_info *conn, unsigned capability, bool wanted)
{
    if (wanted && (conn->capable & capability) != 0)
        conn->want |= capability;
    else
        conn->want &= ~capability;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    struct fs *fs = userdata;

    want(conn, FUSE_CAP_ASYNC_READ, true);
    want(conn, FUSE_CAP_PARALLEL_DIROPS, true);
    want(conn, FUSE_CAP_READDIRPLUS, true);
    /* Always with attributes: they cost us nothing more, and a later stat is answered by the kernel. */
    want(conn, FUSE_CAP_READDIRPLUS_AUTO, false);
    want(conn, FUSE_CAP_ATOMIC_O_TRUNC, true);
    /* The kernel does not do both. */
    fs->passthrough = device_passes(fs->device);
    want(conn, FUSE_CAP_WRITEBACK_CACHE, !fs->passthrough);
    if (fs->wants_passthrough && !fs->passthrough)
        log_warning("no passthrough: it needs Linux 6.9 and CAP_SYS_ADMIN");
    want(conn, FUSE_CAP_CACHE_SYMLINKS, true);
    /* Pages are valid as long as the inode: size and mtime change only with what is written here. */
    want(conn, FUSE_CAP_AUTO_INVAL_DATA, false);
    want(conn, FUSE_CAP_EXPORT_SUPPORT, false);
    /* Plain replies are faster than spliced ones on the kernels that were measured. */
    want(conn, FUSE_CAP_SPLICE_READ, false);
    want(conn, FUSE_CAP_SPLICE_WRITE, false);
    want(conn, FUSE_CAP_SPLICE_MOVE, false);
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = CONGESTION;
    conn->max_write = BUFFER_SIZE;
    conn->time_gran = 1;
    fs->live(fs);
}

__attribute__((format(printf, 2, 0))) static void say(enum fuse_log_level level, const char *format,
                                                      va_list arguments)
{
    char text[512];
    int length = vsnprintf(text, sizeof(text), format, arguments);

    if (length < 0)
        return;
    text[strcspn(text, "\n")] = '\0';
    if (level <= FUSE_LOG_ERR)
        log_error("libfuse: %s", text);
    else if (level == FUSE_LOG_WARNING)
        log_warning("libfuse: %s", text);
    else if (level == FUSE_LOG_DEBUG)
        fprintf(stderr, "%s\n", text); /* -d: asked for, line by line */
    else
        log_info("libfuse: %s", text);
}

/* With a backslash before what would end a value in libfuse's list of options. malloc'ed. */
static char *escaped(const char *text)
{
    char *out = xmalloc(2 * strlen(text) + 1), *to = out;

    for (; *text != '\0'; text++) {
        if (*text == ',' || *text == '\\')
            *to++ = '\\';
        *to++ = *text;
    }
    *to = '\0';
    return out;
}

static struct fuse_session *new_session(struct fs *fs, const struct options *options)
{
    struct fuse_lowlevel_ops ops = {.init = op_init};
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    /* mount -a knows by the source of fstab's line that it is mounted. */
    char *source =
        escaped(options->source != NULL && *options->source != '\0' ? options->source : "p2pfs");
    char *list = xasprintf("fsname=%s,subtype=p2pfs,nosuid,nodev,default_permissions%s%s%s", source,
                           options->allow_other ? ",allow_other" : "",
                           *options->pass != '\0' ? "," : "", options->pass);
    struct fuse_session *session;

    ops_fill_names(&ops);
    ops_fill_xattr(&ops);
    ops_fill_dir(&ops);
    ops_fill_io(&ops);
    ops_fill_write(&ops);
    fuse_set_log_func(say);
    fuse_opt_add_arg(&args, "p2pfs");
    fuse_opt_add_arg(&args, "-o");
    fuse_opt_add_arg(&args, list);
    if (options->debug)
        fuse_opt_add_arg(&args, "-d");
    session = fuse_session_new(&args, &ops, sizeof(ops), fs);
    fuse_opt_free_args(&args);
    free(list);
    free(source);
    return session;
}

/* --- the background -------------------------------------------------------------------------------------- */

/* A FUSE worker, once. */
static void on_live(struct fs *fs)
{
    invalidate_raise_readahead(fs->invalidator);
    notify_service_manager("READY=1");
    if (live_fd >= 0) {
        char yes = 1;

        if (write(live_fd, &yes, 1) != 1)
            log_debug("nobody waits for the mount");
        close(live_fd);
        live_fd = -1;
    }
}

/* The parent: ends when the child's mount is live, or with 1 when it has died. */
static _Noreturn void wait_for_child(int fd)
{
    char yes;
    ssize_t length;

    do
        length = read(fd, &yes, 1);
    while (length < 0 && errno == EINTR);
    if (length != 1)
        log_error("the mount has failed; see %s", LOG_NAME);
    _exit(length == 1 ? 0 : 1);
}

static bool go_into_background(const char *home)
{
    char *path = home_path(home, LOG_NAME);
    int pipes[2], null = open("/dev/null", O_RDWR | O_CLOEXEC), file;
    pid_t pid;

    file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        log_warning("%s: %s; nothing is logged", path, strerror(errno));
    free(path);
    if (null < 0 || pipe2(pipes, O_CLOEXEC) != 0) {
        log_error("cannot go into the background: %s", strerror(errno));
        return false;
    }
    pid = fork();
    if (pid < 0) {
        log_error("cannot go into the background: %s", strerror(errno));
        return false;
    }
    if (pid > 0) {
        close(pipes[1]);
        wait_for_child(pipes[0]);
    }
    close(pipes[0]);
    live_fd = pipes[1];
    setsid();
    if (chdir("/") != 0)
        log_debug("chdir: %s", strerror(errno));
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(file >= 0 ? file : null, STDERR_FILENO);
    close(null);
    if (file >= 0)
        close(file);
    log_init("p2pfs", LOG_LEVEL_INFO, true);
    return true;
}

/* --- run ------------------------------------------------------------------------------------------------- */

/* Reads what still comes from the kernel, for the client to refuse, until the invalidator has ended. */
static void refuse_requests(struct fs *fs)
{
    struct pollfd fds[] = {{.fd = invalidator_ended_fd(fs->invalidator), .events = POLLIN},
                           {.fd = fuse_session_fd(fs->session), .events = POLLIN}};
    struct fuse_buf buffer = {.mem = NULL};

    invalidator_finish(fs->invalidator);
    for (;;) {
        if (poll(fds, 2, -1) < 0) {
            CHECK(errno == EINTR);
            continue;
        }
        if (fds[0].revents != 0)
            break;
        int result = fuse_session_receive_buf(fs->session, &buffer);
        if (result > 0)
            fuse_session_process_buf(fs->session, &buffer);
        else if (result != -EINTR && result != -EAGAIN)
            fds[1].fd = -1; /* unmounted: nothing comes any more */
    }
    free(buffer.mem);
}

static void serve(struct fs *fs)
{
    fs->changes = 1;
    fs->files = files_new(fs);
    fs->times = times_new();
    fs->listings = listings_new();
    fs->disk = workers_new("disk", DISK_THREADS);
    fs->invalidator = invalidator_new(fs);
    fs->client = client_new(fs);
    invalidator_start(fs->invalidator);
    client_start(fs->client);
    crew_run(fs->session);
    notify_service_manager("STOPPING=1");
    client_refuse(fs->client);
    refuse_requests(fs);
    client_await_refusal(fs->client);
    workers_free(fs->disk); /* nobody gives them work any more; who waits for theirs is there */
    client_stop(fs->client);
    invalidator_free(fs->invalidator);
    fuse_session_unmount(fs->session);
    files_free(fs->files);
    times_free(fs->times);
    listings_free(fs->listings);
}

/* Every open file of the mount costs two descriptors. */
static void raise_limits(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            log_debug("the limit of open files stays: %s", strerror(errno));
    }
}

static int run(struct fs *fs, const struct options *options)
{
    struct mountinfo info;
    char why[256];

    if (!check_timeout(fs, options) || !check_device() ||
        !check_mountpoint(fs->mountpoint, options->nonempty))
        return 1;
    if (probe_daemon(fs->home, why, sizeof(why)) != 0) {
        log_error("%s", why);
        return 1;
    }
    fs->session = new_session(fs, options);
    if (fs->session == NULL)
        return 1;
    if (fuse_set_signal_handlers(fs->session) != 0 ||
        fuse_session_mount(fs->session, fs->mountpoint) != 0) {
        fuse_session_destroy(fs->session);
        return 1;
    }
    fs->device = device_new(fs, options->cache != CACHE_WRITEBACK);
    if (fs->device == NULL) {
        log_error("no memory");
        fuse_session_unmount(fs->session);
        fuse_session_destroy(fs->session);
        return 1;
    }
    fs->wants_passthrough = options->cache == CACHE_PASSTHROUGH;
    if (!options->foreground && !go_into_background(fs->home)) {
        fuse_session_unmount(fs->session);
        fuse_session_destroy(fs->session);
        return 1;
    }
    if (mountinfo_find(fs->mountpoint, &info)) {
        fs->mount_id = info.id;
        mount_guard_start(&info);
    }
    raise_limits();
    serve(fs);
    fuse_remove_signal_handlers(fs->session);
    fuse_session_destroy(fs->session);
    device_free(fs->device);
    return 0;
}

int mount_run(const struct options *options)
{
    struct fs fs = {.uid = geteuid(), .gid = getegid(), .live = on_live};
    int status = 1;

    fs.home = home_find(options->home);
    fs.mountpoint = absolute_path(options->mountpoint);
    if (fs.home == NULL)
        log_error("no home directory: give --home DIR or set P2P_HOME");
    else if (fs.mountpoint == NULL)
        log_error("%s: %s", options->mountpoint, strerror(errno));
    else
        status = run(&fs, options);
    free(fs.home);
    free(fs.mountpoint);
    return status;
}
