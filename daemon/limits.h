/* Rate limits as users set them (p2pctl limit): of the daemon as a whole, and of single contents. Kept over restarts in
 * P2P_HOME/limits. Bytes a second; 0: unlimited. Functions are for any thread; who enforces a limit looks at
 * limits_version and asks again when it has changed. */
#ifndef DAEMON_LIMITS_H
#define DAEMON_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/merkle.h"

struct limits;

struct rates {
    uint64_t up, down;
};

#define LIMITS_FILES 1000 /* contents that have limits of their own */

/* `start`: what p2pd.conf says, in force until p2pctl says otherwise. NULL, and *fault: the file cannot be read or is not
 * ours. */
struct limits *limits_open(const char *home, struct rates start, const char **fault);
void limits_free(struct limits *); /* NULL is fine */

/* NULL for `root`: of the daemon. A NULL `limits` has none. */
struct rates limits_of(struct limits *, const uint8_t root[HASH_SIZE]);
/* Sets and saves. 0 or -errno (-ENOSPC: LIMITS_FILES have limits); then nothing has changed. */
int limits_set(struct limits *, const uint8_t root[HASH_SIZE], struct rates);
/* Grows with each change. */
uint32_t limits_version(const struct limits *);

#endif
