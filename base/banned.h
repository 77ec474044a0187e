/* Functions that this project does not use; force-included into every compilation.
 *
 * Each has a bounded, re-entrant or checked replacement: snprintf, memcpy with a length, strtok_r,
 * localtime_r, getrandom, base/number.h. */
#ifndef BASE_BANNED_H
#define BASE_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#pragma GCC poison strcpy strcat strncpy strncat stpcpy sprintf vsprintf strtok
#pragma GCC poison localtime gmtime ctime asctime srand srandom atoi atol atoll
#undef alloca
#pragma GCC poison tmpnam mktemp tempnam alloca

/* These names are parameters in headers of libraries, so that only a call is an error. */
int rand(void) __attribute__((deprecated("use crypto/random.h")));
long random(void) __attribute__((deprecated("use crypto/random.h")));

#endif
