/* Starting the daemon: finds p2pd, runs it detached, learns whether it became ready.
 *
 * `p2pd --detach` ends with 0 once its child serves the socket, with 1 and a reason on standard
 * error if it cannot. That error goes to a file in memory, not to a pipe: the daemon that stays
 * behind may keep its end of a pipe open, and whoever reads to the end of it would wait as long as
 * the daemon lives. The new process gets no signal mask or dispositions of ours: threads here run
 * with signals blocked. */
#include "base/spawn.h"

#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM       "p2pd"
#define READY_WAIT_MS 30000
#define ERROR_MAX     4096

extern char **environ;

/* The path of p2pd beside this program, or just its name: then PATH decides. malloc'ed. */
static char *find_program(void)
{
    char self[PATH_MAX], *slash, *path;
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (length > 0) {
        self[length] = '\0';
        slash = strrchr(self, '/');
        if (slash != NULL) {
            *slash = '\0';
            path = xasprintf("%s/%s", self, PROGRAM);
            if (access(path, X_OK) == 0)
                return path;
            free(path);
        }
    }
    return xstrdup(PROGRAM);
}

/* The last line of what p2pd said, without its name in front. */
static void last_line(int fd, char *why, size_t why_size)
{
    char text[ERROR_MAX + 1], *line;
    off_t end = lseek(fd, 0, SEEK_END);
    off_t from = end > ERROR_MAX ? end - ERROR_MAX : 0;
    ssize_t size = end < 0 ? -1 : pread(fd, text, ERROR_MAX, from);

    if (size < 0)
        size = 0;
    while (size > 0 && text[size - 1] == '\n')
        size--;
    text[size] = '\0';
    line = strrchr(text, '\n');
    line = line == NULL ? text : line + 1;
    if (strncmp(line, PROGRAM ": ", strlen(PROGRAM) + 2) == 0)
        line += strlen(PROGRAM) + 2;
    snprintf(why, why_size, "%s", *line != '\0' ? line : PROGRAM " failed without a word");
}

/* `options` end with NULL; none of them is longer than it needs to be read. */
static int spawn(pid_t *pid, char *program, const char *home, const char *const options[],
                 int secret_fd, int error_fd)
{
    char name[] = PROGRAM, home_option[] = "--home", *home_copy = xstrdup(home);
    char *arguments[8] = {name, home_option, home_copy};
    for (size_t i = 0; options[i] != NULL; i++)
        arguments[3 + i] = (char *)(uintptr_t)options[i]; /* execve's type, not its doing */
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    int result;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    if (secret_fd >= 0)
        posix_spawn_file_actions_adddup2(&actions, secret_fd, STDIN_FILENO);
    else
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, error_fd, STDERR_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    result = posix_spawnp(pid, program, &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    free(home_copy);
    return result;
}

/* False if the process is still there after READY_WAIT_MS. */
static bool wait_for(pid_t pid, int *status)
{
    int fd = pidfd_open(pid, 0);

    if (fd >= 0) {
        struct pollfd ended = {.fd = fd, .events = POLLIN};
        int count;

        do
            count = poll(&ended, 1, READY_WAIT_MS);
        while (count < 0 && errno == EINTR);
        close(fd);
        if (count == 0)
            return false;
    }
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR) {
            *status = -1;
            break;
        }
    return true;
}

/* A pipe's reading end with the secret in it, which fits into the pipe's buffer; -1 and errno. */
static int secret_pipe(const void *secret, size_t size)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    bool good = write(ends[1], secret, size) == (ssize_t)size;
    close(ends[1]);
    if (!good)
        close(ends[0]);
    return good ? ends[0] : -1;
}

static int run(const char *home, const char *const options[], const void *secret, size_t size,
               char *why, size_t why_size)
{
    char *program = find_program();
    int fd = memfd_create("p2pd-stderr", MFD_CLOEXEC), status = -1, result, input = -1;
    pid_t pid;

    if (fd < 0 || (secret != NULL && (input = secret_pipe(secret, size)) < 0)) {
        snprintf(why, why_size, "cannot start p2pd: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        free(program);
        return -1;
    }
    result = spawn(&pid, program, home, options, input, fd);
    if (input >= 0)
        close(input);
    if (result != 0)
        snprintf(why, why_size, "cannot run %s: %s", program, strerror(result));
    else if (!wait_for(pid, &status))
        snprintf(why, why_size, "%s is not ready after %d s", program, READY_WAIT_MS / 1000);
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        last_line(fd, why, why_size);
    close(fd);
    free(program);
    return result == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

int daemon_start(const char *home, char *why, size_t why_size)
{
    static const char *const options[] = {"--detach", NULL};

    return run(home, options, NULL, 0, why, why_size);
}

int daemon_start_with(const char *home, const void *secret, size_t size, char *why, size_t why_size)
{
    static const char *const options[] = {"--detach", "--passphrase-file", "-", NULL};

    return run(home, options, secret, size, why, why_size);
}

int daemon_key_passphrase(const char *home, const void *lines, size_t size, char *why,
                          size_t why_size)
{
    static const char *const options[] = {"--key-passphrase", NULL};

    return run(home, options, lines, size, why, why_size);
}
