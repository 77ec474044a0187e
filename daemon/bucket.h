/* A token bucket: how many bytes may go now, under a rate limit.
 *
 * Pure: no clock; time comes as an argument (nanoseconds, any monotonic origin). What is spent may exceed what is there: the
 * debt is waited out, so that over any span T at most rate x (T + BUCKET_BURST) and one spending go. */
#ifndef DAEMON_BUCKET_H
#define DAEMON_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define BUCKET_BURST (NS_PER_S / 10) /* of unused rate is kept */
/* With a smaller limit a block would take longer than its fetcher waits (LIMIT_REQUEST_NS, halved for two who share); a
 * larger one limits nothing that exists. Bytes a second. */
#define BUCKET_RATE_LEAST 4096u
#define BUCKET_RATE_MOST  (UINT64_C(1) << 37)

struct bucket {
    uint64_t rate; /* bytes a second; 0: unlimited */
    int64_t at;    /* tokens are counted up to here */
    int64_t tokens;
};

/* Sets the rate; what was owed under the old one is forgiven. */
void bucket_set(struct bucket *, uint64_t rate, int64_t now);
/* Bytes that may go now; 0: none; UINT64_MAX: unlimited. */
uint64_t bucket_room(struct bucket *, int64_t now);
void bucket_spend(struct bucket *, uint64_t bytes);
void bucket_refund(struct bucket *, uint64_t bytes);
/* In how many ns there is room for `bytes` (at most what the bucket holds); 0: now. */
int64_t bucket_wait(const struct bucket *, uint64_t bytes);

#endif
