/* The guard holds one descriptor, of the connection's `abort`, and waits for one signal, that of its parent's death.
 *
 * The descriptor names this connection and no later one that has its number. After an orderly end the connection is
 * gone, and writing does nothing. A pidfd of p2pfs, or the end of a pipe, would not do instead: both wait for the last
 * of its threads, which is the one that hangs. The signal comes when the main thread dies.
 *
 * Whatever else may be sent to the group or by name is blocked; and it has a name of its own, so that who kills
 * everything that is called p2pfs leaves it to its work. */
#include "fs/mount_guard.h"

#include "base/log.h"
#include "fs/mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CONNECTIONS "/sys/fs/fuse/connections"
#define DIED        SIGUSR1

/* The connections as a mount of our own, which no path leads to; -1 unless we are root. */
static int open_connections(void)
{
    int context = fsopen("fusectl", FSOPEN_CLOEXEC), mount = -1;

    if (context < 0)
        return -1;
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mount = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOEXEC);
    close(context);
    return mount;
}

static int open_abort(const struct mountinfo *info)
{
    char path[sizeof(CONNECTIONS) + 32];
    int fd, connections;

    snprintf(path, sizeof(path), CONNECTIONS "/%u/abort", info->minor_number);
    fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0)
        return fd;
    connections = open_connections();
    if (connections < 0)
        return -1;
    fd = openat(connections, path + sizeof(CONNECTIONS), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    close(connections);
    return fd;
}

static _Noreturn void await_death(int fd, pid_t parent)
{
    sigset_t all;
    int number;

    /* Nothing of p2pfs is kept open or in use: not its device, log, terminal or directory. */
    if (dup2(fd, STDIN_FILENO) != STDIN_FILENO || close_range(STDIN_FILENO + 1, ~0u, 0) != 0 ||
        chdir("/") != 0)
        _exit(1);
    setsid();
    prctl(PR_SET_NAME, "p2p-mount-guard");
    sigfillset(&all);
    if (sigprocmask(SIG_SETMASK, &all, NULL) != 0 || prctl(PR_SET_PDEATHSIG, DIED) != 0)
        _exit(1);
    if (getppid() == parent)
        while (sigwait(&all, &number) != 0 || number != DIED)
            ;
    _exit(write(STDIN_FILENO, "1", 1) == 1 ? 0 : 1);
}

void mount_guard_start(const struct mountinfo *info)
{
    pid_t parent = getpid(), pid;
    int fd = open_abort(info);

    if (fd < 0) {
        log_debug("no guard for the mount: %s: %s", CONNECTIONS, strerror(errno));
        return;
    }
    pid = fork();
    if (pid == 0)
        await_death(fd, parent);
    if (pid < 0)
        log_warning("no guard for the mount: %s", strerror(errno));
    close(fd);
}
