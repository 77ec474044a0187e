/* Lines on standard error, whole and harmless.
 *
 * Each line is put together on the stack and leaves in one write(2), so lines of several threads
 * and processes do not mix, and nothing here takes a lock or memory. What is set by log_init is
 * read only afterwards. errno is left as it was, so that a caller may log first and return -errno
 * then. */
#include "base/log.h"

#include "base/clock.h"
#include "base/name.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_MAX 2048 /* as formatted; what is longer is cut and ends in "..." */
#define LINE_MAX_   4096 /* as escaped, with time and program */

static struct {
    const char *program;
    enum log_level level;
    bool timestamps;
} config = {.level = LOG_LEVEL_INFO};

void log_init(const char *program, enum log_level level, bool timestamps)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    const char *wanted = getenv("P2P_LOG");

    config.program = program;
    config.level = level;
    config.timestamps = timestamps;
    if (wanted == NULL || *wanted == '\0')
        return;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(wanted, names[i]) == 0) {
            config.level = (enum log_level)i;
            return;
        }
    }
    log_warning("P2P_LOG is \"%s\", not one of error, warning, info, debug", wanted);
}

const char *log_program(void)
{
    return config.program != NULL ? config.program : program_invocation_short_name;
}

bool log_enabled(enum log_level level)
{
    return level <= config.level;
}

/* Appends `text` to the `used` bytes of `line`, escaped, keeping `keep` bytes free; returns how
 * many bytes are used then. */
static size_t append_escaped(char *line, size_t used, size_t keep, const char *text, size_t length)
{
    while (length > 0) {
        uint32_t code;
        size_t size = utf8_decode(text, length, &code);
        bool plain = size > 0 && !utf8_is_control(code);

        if (size == 0)
            size = 1;
        if (used + (plain ? size : 4 * size) + keep > LINE_MAX_)
            break;
        if (plain) {
            memcpy(line + used, text, size);
            used += size;
        } else {
            for (size_t i = 0; i < size; i++)
                used += (size_t)snprintf(line + used, 5, "\\x%02x", (unsigned char)text[i]);
        }
        text += size;
        length -= size;
    }
    if (length > 0) {
        memcpy(line + used, "...", 3);
        used += 3;
    }
    return used;
}

static size_t append_time(char *line, size_t size)
{
    int64_t wall = clock_wall();
    time_t seconds = (time_t)(wall / NS_PER_S);
    struct tm parts;
    size_t used;

    if (localtime_r(&seconds, &parts) == NULL)
        return 0;
    used = strftime(line, size, "%Y-%m-%d %H:%M:%S", &parts);
    return used +
           (size_t)snprintf(line + used, size - used, ".%03d ", (int)(wall % NS_PER_S / NS_PER_MS));
}

static void write_line(const char *format, va_list arguments) __attribute__((format(printf, 1, 0)));

static void write_line(const char *format, va_list arguments)
{
    char message[MESSAGE_MAX], line[LINE_MAX_];
    int error = errno, length = vsnprintf(message, sizeof(message), format, arguments);
    bool cut = length >= (int)sizeof(message);
    size_t used = 0, done = 0;

    if (length < 0)
        return;
    if (config.timestamps)
        used = append_time(line, 64);
    used += (size_t)snprintf(line + used, 64, "%.60s: ", log_program());
    used = append_escaped(line, used, 8, message, cut ? sizeof(message) - 1 : (size_t)length);
    if (cut && memcmp(line + used - 3, "...", 3) != 0) {
        memcpy(line + used, "...", 3);
        used += 3;
    }
    line[used++] = '\n';
    while (done < used) {
        ssize_t n = write(STDERR_FILENO, line + done, used - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break; /* nobody listens: there is nowhere to say so */
        done += (size_t)n;
    }
    errno = error;
}

#define LOG_AT(wanted)                                                                             \
    do {                                                                                           \
        va_list arguments;                                                                         \
        if (!log_enabled(wanted))                                                                  \
            return;                                                                                \
        va_start(arguments, format);                                                               \
        write_line(format, arguments);                                                             \
        va_end(arguments);                                                                         \
    } while (0)

void log_error(const char *format, ...)
{
    LOG_AT(LOG_LEVEL_ERROR);
}

void log_warning(const char *format, ...)
{
    LOG_AT(LOG_LEVEL_WARNING);
}

void log_info(const char *format, ...)
{
    LOG_AT(LOG_LEVEL_INFO);
}

void log_debug(const char *format, ...)
{
    LOG_AT(LOG_LEVEL_DEBUG);
}
