/* INI files, read by libinih, judged here.
 *
 * inih calls back per key without a line number, cuts lines at its own limit and takes an indented
 * line as more of the value above it. So it is fed line by line by a reader that counts, refuses
 * what would be cut, and strips the indentation. The first fault ends the reading. */
#include "base/config.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct reading {
    const char *path;
    FILE *file;
    const struct config_key *keys;
    unsigned line;
    bool failed; /* and logged */
};

static bool section_is_known(const struct config_key *keys, const char *name, size_t length)
{
    for (; keys->section != NULL; keys++) {
        if (strlen(keys->section) == length && memcmp(keys->section, name, length) == 0)
            return true;
    }
    return false;
}

/* A section without keys never reaches take_pair, yet may be a slip: judged by its own line. */
static void judge_section(struct reading *reading, const char *line)
{
    size_t length = strcspn(line + 1, "]");

    if (line[1 + length] != ']')
        log_error("%s:%u: a section's name lacks its \"]\"", reading->path, reading->line);
    else if (section_is_known(reading->keys, line + 1, length))
        return;
    else
        log_error("%s:%u: there is no section [%.*s]", reading->path, reading->line, (int)length,
                  line + 1);
    reading->failed = true;
}

/* inih's fgets: at most size - 1 bytes of the next line, NULL at the end. */
static char *next_line(char *to, int size, void *arg)
{
    struct reading *reading = arg;
    size_t length, blanks;

    if (reading->failed || fgets(to, size, reading->file) == NULL)
        return NULL;
    reading->line++;
    length = strlen(to);
    if ((length == 0 || to[length - 1] != '\n') && !feof(reading->file)) {
        /* Either the buffer ended first, or fgets met a NUL byte. */
        log_error("%s:%u: the line is too long or not text", reading->path, reading->line);
        reading->failed = true;
        return NULL;
    }
    blanks = strspn(to, " \t");
    memmove(to, to + blanks, length - blanks + 1);
    if (to[0] == '[')
        judge_section(reading, to);
    return reading->failed ? NULL : to;
}

static int take_pair(void *arg, const char *section, const char *name, const char *value)
{
    struct reading *reading = arg;
    const char *fault = "is not known";

    if (reading->failed)
        return 0;
    for (const struct config_key *key = reading->keys; key->section != NULL; key++) {
        if (strcmp(key->section, section) == 0 && strcmp(key->key, name) == 0) {
            fault = key->take(key->to, value != NULL ? value : "");
            break;
        }
    }
    if (fault == NULL)
        return 1;
    log_error("%s:%u: %s in [%s] %s", reading->path, reading->line, name, section, fault);
    reading->failed = true;
    return 0;
}

bool config_load(const char *path, const struct config_key *keys)
{
    struct reading reading = {.path = path, .keys = keys};
    int fault;

    reading.file = fopen(path, "re");
    if (reading.file == NULL) {
        if (errno == ENOENT)
            return true;
        log_error("%s cannot be read: %s", path, strerror(errno));
        return false;
    }
    fault = ini_parse_stream(next_line, &reading, take_pair, &reading);
    if (!reading.failed && ferror(reading.file)) {
        log_error("%s cannot be read: %s", path, strerror(errno));
        reading.failed = true;
    }
    fclose(reading.file);
    if (fault != 0 && !reading.failed) {
        if (fault > 0)
            log_error("%s:%d: is neither \"[section]\" nor \"key = value\"", path, fault);
        else
            log_error("%s cannot be read: out of memory", path);
        reading.failed = true;
    }
    return !reading.failed;
}

const char *config_take_number(void *to, const char *value)
{
    return number_parse(value, 0, UINT64_MAX, to) ? NULL : "must be a whole number";
}

const char *config_take_bool(void *to, const char *value)
{
    static const char *const words[][2] = {
        {"no", "yes"}, {"false", "true"}, {"off", "on"}, {"0", "1"}};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        for (int truth = 0; truth < 2; truth++) {
            if (strcasecmp(value, words[i][truth]) == 0) {
                *(bool *)to = truth;
                return NULL;
            }
        }
    }
    return "must be yes or no";
}

const char *config_take_bytes(void *to, const char *value)
{
    return bytes_parse(value, to) ? NULL : "must be a size like 500K, 20M or 1.5G";
}

const char *config_take_duration(void *to, const char *value)
{
    return duration_parse(value, to) ? NULL : "must be a time like 30s, 15m, 8h or 7d";
}

const char *config_take_text(void *to, const char *value)
{
    char **text = to;

    free(*text);
    *text = xstrdup(value);
    return NULL;
}
