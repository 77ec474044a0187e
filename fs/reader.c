/* What becomes of readers: /proc, read when a parked request might wait for nobody.
 *
 * The kernel tells little. In page-cache mode a reader waits for a locked page, not for its request: when it is
 * killed, p2pfs sees a FLUSH of its descriptor and nothing else (a mapping, not even that); INTERRUPT comes for
 * synchronous requests only, for any signal, harmless ones too, and once. Every request names the thread that issued
 * it, and /proc knows whether that thread is ending (PF_EXITING; SIGKILL pending, which is what any fatal signal
 * becomes) or has a caught signal waiting that asks it to stop. */
#include "fs/reader.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PF_EXITING  0x4 /* include/linux/sched.h; field 9 of /proc/TID/stat */

#define BIT(signal) (UINT64_C(1) << ((signal)-1))
/* Asked to stop, even if the program handles it. */
#define STOP_SIGNALS (BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGHUP) | BIT(SIGQUIT))
/* Without a handler these do not end a process. */
#define HARMLESS_SIGNALS                                                                           \
    (BIT(SIGCHLD) | BIT(SIGCONT) | BIT(SIGSTOP) | BIT(SIGTSTP) | BIT(SIGTTIN) | BIT(SIGTTOU) |     \
     BIT(SIGURG) | BIT(SIGWINCH))

/* Reads /proc/TID/NAME as a string; false if there is no such thread. */
static bool read_proc(pid_t tid, const char *name, char *text, size_t size)
{
    char path[64];
    ssize_t length;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/%s", (int)tid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    length = read(fd, text, size - 1);
    close(fd);
    if (length <= 0)
        return false;
    text[length] = '\0';
    return true;
}

/* The number behind "\nNAME:\t" in /proc/TID/status. */
static uint64_t field(const char *status, const char *name, int radix)
{
    const char *at = strstr(status, name);

    return at == NULL ? 0 : strtoull(at + strlen(name), NULL, radix);
}

static bool is_exiting(const char *stat)
{
    const char *at = strrchr(stat, ')'); /* the name may hold anything, blanks and ")" too */
    char state;
    unsigned flags;

    if (at == NULL || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return false;
    return state == 'Z' || state == 'X' || (flags & PF_EXITING) != 0;
}

enum reader_state reader_state(pid_t tid)
{
    char text[4096];
    uint64_t pending, own, blocked, caught, ignored;

    if (tid <= 0)
        return READER_WAITS;
    if (!read_proc(tid, "stat", text, sizeof(text)))
        return access("/proc/self/stat", R_OK) == 0 ? READER_GONE : READER_WAITS;
    if (is_exiting(text))
        return READER_GONE;
    if (!read_proc(tid, "status", text, sizeof(text)))
        return READER_GONE;
    own = field(text, "\nSigPnd:", 16);
    blocked = field(text, "\nSigBlk:", 16);
    ignored = field(text, "\nSigIgn:", 16);
    caught = field(text, "\nSigCgt:", 16);
    if ((own & BIT(SIGKILL)) != 0)
        return READER_GONE;
    pending = (own | field(text, "\nShdPnd:", 16)) & ~blocked & ~ignored;
    if ((pending & caught & STOP_SIGNALS) != 0 || (pending & ~caught & ~HARMLESS_SIGNALS) != 0)
        return READER_CALLED;
    return READER_WAITS;
}

pid_t reader_process(pid_t tid)
{
    char text[4096];

    if (tid <= 0 || !read_proc(tid, "status", text, sizeof(text)))
        return 0;
    return (pid_t)field(text, "\nTgid:", 10);
}

bool reader_writes(pid_t tid, int mount_id, uint64_t ino)
{
    char text[4096];
    struct dirent *entry;
    bool found = false;
    DIR *dir;

    if (tid <= 0 || mount_id <= 0)
        return false;
    snprintf(text, sizeof(text), "/proc/%d/fdinfo", (int)tid);
    dir = opendir(text);
    while (!found && dir != NULL && (entry = readdir(dir)) != NULL) {
        char name[300];

        snprintf(name, sizeof(name), "fdinfo/%s", entry->d_name);
        found = entry->d_name[0] != '.' && read_proc(tid, name, text, sizeof(text)) &&
                field(text, "\nmnt_id:", 10) == (uint64_t)mount_id &&
                field(text, "\nino:", 10) == ino &&
                (field(text, "\nflags:", 8) & O_ACCMODE) != O_RDONLY;
    }
    if (dir != NULL)
        closedir(dir);
    return found;
}
