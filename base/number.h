/* Numbers as people write and read them. */
#ifndef BASE_NUMBER_H
#define BASE_NUMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Parses a whole decimal number within [min, max]; false (and *out untouched) on anything else,
 * including a sign, blanks, trailing text and overflow. */
bool number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out);

/* "30s", "15m", "8h", "7d" or plain seconds, into seconds; false on anything else or over 10 years. */
bool duration_parse(const char *text, uint64_t *seconds);

/* "500K", "20M", "1.5G" (powers of 1024; optional "B", "iB" or "/s" behind) into bytes. */
bool bytes_parse(const char *text, uint64_t *bytes);

#define NUMBER_TEXT_MAX 32
/* "0 B", "812 B", "1.5 MiB", "12 GiB"; returns `out`, which holds NUMBER_TEXT_MAX bytes. */
char *bytes_format(char *out, uint64_t bytes);
/* "3s", "2m 05s", "1h 12m", "4d 3h"; returns `out`, which holds NUMBER_TEXT_MAX bytes. */
char *duration_format(char *out, uint64_t seconds);

#endif
