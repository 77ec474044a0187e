/* The one judge of names: of entries in the catalogue, and of accounts.
 *
 * Every name that comes from outside passes here, at the tracker and again at the daemon. */
#ifndef BASE_NAME_H
#define BASE_NAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_BYTES_MAX    255 /* of one entry's name, as NAME_MAX */
#define NAME_DEPTH_MAX    64  /* of an entry below the root of the swarm */
#define ACCOUNT_BYTES_MAX 64

/* True for a name that may stand in a directory: 1 to 255 bytes of well-formed UTF-8, not "." or
 * "..", without "/", NUL and control characters (U+0000..1F, U+007F..9F), without line and paragraph
 * separators (U+2028, U+2029) and bidirectional controls (U+202A..E, U+2066..9). */
bool name_is_valid(const char *name, size_t length);

/* NULL for a good account name, else what is wrong with it, as half a sentence for an error message
 * ("is empty"). Good: 1 to 64 bytes of a-z 0-9 . _ -, beginning with a letter or digit. Lower case
 * ASCII only, so that no two accounts look alike. */
const char *account_name_fault(const char *name);

/* True for well-formed UTF-8 (RFC 3629) of exactly `length` bytes without NUL. */
bool utf8_is_valid(const char *text, size_t length);

/* As utf8_is_valid, and nothing in it is a control (see utf8_is_control): what targets of symbolic links have to be. Where
 * these lead is not judged, nothing of ours follows them. */
bool utf8_is_plain(const char *text, size_t length);

/* Reads the well-formed sequence that `text` begins with into *code; returns its 1 to 4 bytes, or 0
 * if there is none. NUL is a code like any other here. */
size_t utf8_decode(const char *text, size_t length, uint32_t *code);

/* True for what may stand neither in a name nor reach a terminal: control characters, line and
 * paragraph separators, bidirectional controls. */
bool utf8_is_control(uint32_t code);

#endif
