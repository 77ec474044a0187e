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

#pragma GCC poison strcpy strcat strncpy strncat stpcpy sprintf vsprintf gets strtok
#pragma GCC poison localtime gmtime ctime asctime rand srand random srandom atoi atol atoll
#pragma GCC poison tmpnam mktemp tempnam alloca

#endif
