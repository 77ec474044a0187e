/* Passwords from a terminal or a file.
 *
 * Owns the terminal's echo while it asks: whatever ends the question, a signal too, the settings are
 * put back first. Every buffer that held a password is wiped. Main thread: signal handlers are
 * replaced for the time of the question.
 *
 *   asking: settings saved, echo off -> a line, or a signal -> settings back -> (signal raised again;
 *   after a stop and a continue the question comes again) */
#include "tools/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

#define FILE_MAX_BYTES 65536
#define TRIES          3

static volatile sig_atomic_t caught;

static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU};
#define SIGNALS (sizeof signals / sizeof signals[0])

void secret_clear(struct secret *s)
{
    explicit_bzero(s, sizeof *s);
}

bool secret_hide(struct secret *out, char *argument, size_t from)
{
    size_t size = strlen(argument);

    if (size > LIMIT_PASSWORD)
        return false;
    memcpy(out->bytes, argument, size + 1);
    out->size = size;
    if (from < size)
        memset(argument + from, '*', size - from);
    return true;
}

/* --- files ------------------------------------------------------------------------------------- */

/* The first line of `size` bytes. False: too long or empty, said with `from`. */
static bool take_line(struct secret *out, const char *bytes, size_t size, const char *from)
{
    const char *end = memchr(bytes, '\n', size);
    size_t length = end != NULL ? (size_t)(end - bytes) : size;

    if (length > 0 && bytes[length - 1] == '\r')
        length--;
    if (length == 0) {
        log_error("%s: its first line is empty", from);
        return false;
    }
    if (length > LIMIT_PASSWORD) {
        log_error("%s: its first line is longer than %d bytes", from, LIMIT_PASSWORD);
        return false;
    }
    memcpy(out->bytes, bytes, length);
    out->bytes[length] = '\0';
    out->size = length;
    return true;
}

bool secret_read_file(struct secret *out, const char *path)
{
    char *data = NULL;
    size_t size = 0;
    int error = file_read(path, FILE_MAX_BYTES, true, &data, &size);

    memset(out, 0, sizeof *out);
    if (error == -EPERM)
        log_error("%s: others may read it; 'chmod 600' it first", path);
    else if (error == -ELOOP)
        log_error("%s: is a symbolic link; name the password file itself", path);
    else if (error != 0)
        log_error("%s: %s", path, strerror(-error));
    if (error != 0)
        return false;
    bool good = take_line(out, data, size, path);
    file_free_secret(data, size);
    return good;
}

static bool read_standard_input(struct secret *out)
{
    char bytes[LIMIT_PASSWORD + 3];
    size_t size = 0;
    bool good = false;

    while (size < sizeof bytes && memchr(bytes, '\n', size) == NULL) {
        ssize_t got = read(STDIN_FILENO, bytes + size, 1); /* what is behind the line is not ours */
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        size += (size_t)got;
    }
    good = take_line(out, bytes, size, "standard input");
    explicit_bzero(bytes, sizeof bytes);
    return good;
}

/* --- a terminal -------------------------------------------------------------------------------- */

static void on_signal(int number)
{
    caught = number;
}

/* Reads a line byte by byte: nothing of it stays in a buffer of stdio. 1 a line, 0 the end of input,
 * -1 a signal came or reading failed. */
static int read_line(int fd, struct secret *out, bool *too_long)
{
    char byte = 0;
    int result = 1;

    out->size = 0;
    *too_long = false;
    for (;;) {
        ssize_t got = read(fd, &byte, 1);
        if (got < 0 && errno == EINTR && caught == 0)
            continue;
        if (got <= 0) {
            result = got == 0 && out->size > 0 ? 1 : (int)got;
            break;
        }
        if (byte == '\n')
            break;
        if (out->size < LIMIT_PASSWORD)
            out->bytes[out->size++] = byte;
        else
            *too_long = true;
    }
    byte = 0;
    out->bytes[out->size] = '\0';
    return result;
}

/* Asks once, with echo off. As read_line; after a stop it asks again. */
static int ask(int fd, const char *prompt, struct secret *out, bool *too_long)
{
    struct sigaction action = {.sa_handler = on_signal}, old[SIGNALS];
    struct termios saved, quiet;
    int result;

    sigemptyset(&action.sa_mask);
    for (;;) {
        caught = 0;
        for (size_t i = 0; i < SIGNALS; i++)
            sigaction(signals[i], &action, &old[i]);
        bool terminal = tcgetattr(fd, &saved) == 0;
        if (terminal) {
            quiet = saved;
            quiet.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL);
            quiet.c_lflag |= ICANON | ISIG;
            (void)tcsetattr(fd, TCSAFLUSH, &quiet);
        }
        dprintf(fd, "%s: ", prompt);
        result = caught == 0 ? read_line(fd, out, too_long) : -1;
        if (terminal)
            (void)tcsetattr(fd, TCSAFLUSH, &saved);
        dprintf(fd, "\n");
        for (size_t i = 0; i < SIGNALS; i++)
            sigaction(signals[i], &old[i], NULL);
        if (caught == 0)
            return result;
        explicit_bzero(out->bytes, sizeof out->bytes);
        raise(caught); /* ends us, or stops us until we are continued */
        if (caught != SIGTSTP && caught != SIGTTIN && caught != SIGTTOU)
            return -1;
    }
}

static const char *fault_of(const struct secret *s, bool fresh, bool too_long)
{
    static char text[64];

    if (too_long)
        snprintf(text, sizeof text, "a password has at most %d bytes", LIMIT_PASSWORD);
    else if (fresh && s->size < LIMIT_PASSWORD_MIN)
        snprintf(text, sizeof text, "a password has at least %d bytes", LIMIT_PASSWORD_MIN);
    else if (s->size == 0)
        snprintf(text, sizeof text, "no password given");
    else
        return NULL;
    return text;
}

/* A new one is typed twice; what does not do may be corrected a few times. */
static bool ask_until_good(int fd, struct secret *out, const struct secret_source *source)
{
    char *again = xasprintf("%s, again", source->prompt);
    bool good = false;

    for (int i = 0; i < TRIES && !good; i++) {
        struct secret second = {.size = 0};
        bool too_long, last = i + 1 == TRIES || !source->fresh;

        if (ask(fd, source->prompt, out, &too_long) <= 0) {
            log_error("no password given");
            break;
        }
        const char *fault = fault_of(out, source->fresh, too_long);
        if (fault == NULL && source->fresh) {
            bool same = ask(fd, again, &second, &too_long) > 0 && second.size == out->size &&
                        memcmp(second.bytes, out->bytes, out->size) == 0;
            secret_clear(&second);
            fault = same ? NULL : "the two are not the same";
        }
        good = fault == NULL;
        if (!good && last) {
            log_error("%s", fault);
            break;
        }
        if (!good)
            dprintf(fd, "That did not do: %s. Once more.\n", fault);
    }
    free(again);
    return good;
}

static bool from_terminal(struct secret *out, const struct secret_source *source)
{
    int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);

    if (fd < 0) {
        log_error("%s: there is no terminal to ask at; use %s FILE", source->prompt,
                  source->option);
        return false;
    }
    bool good = ask_until_good(fd, out, source);
    close(fd);
    return good;
}

bool secret_get(struct secret *out, const struct secret_source *source)
{
    const char *file = source->file;
    bool good;

    memset(out, 0, sizeof *out);
    if (file == NULL && source->environment)
        file = getenv("P2P_PASSWORD_FILE");
    if (file == NULL || *file == '\0') {
        good = from_terminal(out, source);
    } else {
        good = strcmp(file, "-") == 0 ? read_standard_input(out) : secret_read_file(out, file);
        if (good && source->fresh && out->size < LIMIT_PASSWORD_MIN) {
            log_error("%s: %s", file, fault_of(out, true, false));
            good = false;
        }
    }
    if (!good)
        secret_clear(out);
    return good;
}
