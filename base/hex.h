/* Bytes as lower-case hexadecimal and back. */
#ifndef BASE_HEX_H
#define BASE_HEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Writes 2 * size digits and a NUL to `out`, which holds 2 * size + 1 bytes. */
void hex_encode(char *out, const uint8_t *bytes, size_t size);

/* Reads exactly 2 * size digits (either case) and then the end of `text`; false if it is anything
 * else, and then `out` is unspecified. */
bool hex_decode(uint8_t *out, size_t size, const char *text);

#endif
