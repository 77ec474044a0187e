/* Keeping the cache within its limit, and `p2pctl evict`. Belongs to the local thread, which calls all of it. */
#ifndef DAEMON_EVICT_H
#define DAEMON_EVICT_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/merkle.h"

struct evict;
struct local;
struct reply;
struct content;

#define CACHE_SIZE_LEAST (16u << 20) /* less would throw away what is about to be read */

struct evict *evict_new(struct local *);
/* After the local thread has ended, before its mail is delivered for the last time: waits for the disk. */
void evict_stop(struct evict *);
void evict_free(struct evict *); /* NULL is fine */
/* More may be here than should: looks, and begins to evict. Quick if there is nothing to do; call it often. */
void evict_look(struct evict *);
/* From the session: see local_release_answer. */
void evict_granted(struct evict *, void *cookie, int error, uint8_t *granted);
/* For status: the limit (0: none), what counts against it as far as is known, and why it is exceeded, "" if it is not. */
void evict_status(const struct evict *, uint64_t *limit, uint64_t *cached, const char **trouble);

#endif
