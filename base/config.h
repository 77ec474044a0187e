/* INI files (libinih): [section] key = value.
 *
 * A program names every key it knows in a table; an unknown section or key, a malformed value or a
 * line that is too long is an error with file and line. A file that does not exist is an empty one. */
#ifndef BASE_CONFIG_H
#define BASE_CONFIG_H

#include <stdbool.h>

struct config_key {
    const char *section;
    const char *key;
    /* Takes the value over; returns NULL or what is wrong with it, as half a sentence. */
    const char *(*take)(void *to, const char *value);
    void *to;
};

/* True if all is well; else the fault has been logged as an error ("FILE:12: …"). The table ends with
 * a row whose section is NULL. */
bool config_load(const char *path, const struct config_key *keys);

/* Ready-made takers; `to` is a uint64_t, a bool, a uint64_t of bytes, of seconds, a char **. */
const char *config_take_number(void *to, const char *value);
const char *config_take_bool(void *to, const char *value);
const char *config_take_bytes(void *to, const char *value);
const char *config_take_duration(void *to, const char *value);
const char *config_take_text(void *to, const char *value);

#endif
