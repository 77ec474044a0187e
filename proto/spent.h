/* What accounts' links that have ended had used up of the processor time that their input may cost at once.
 *
 * Each link has a burst (channel_set_budget). Without a memory of it, who has used it up would only have to come again: a handshake
 * buys a new one. So what is missing when a link ends is noted for its account, and the account's next link begins with that debt.
 * It is paid off at the rate that the account has.
 *
 * Pure: no I/O, no clock, no thread. Memory: LIMIT_SPENT_ACCOUNTS records of about 150 bytes; who owes nothing is forgotten. */
#ifndef PROTO_SPENT_H
#define PROTO_SPENT_H

#include <stddef.h>
#include <stdint.h>

struct spent;

/* `per_second` ns of processor time are paid off each second. */
struct spent *spent_new(int64_t per_second);
void spent_free(struct spent *); /* NULL is fine */

/* A link of the account has ended, and had used so much of its burst. `now` on the monotonic clock. */
void spent_add(struct spent *, const char *account, int64_t cost, int64_t now);
/* Takes over what the account still owes, at most `most` of it: for a new link of its, which then owes it. */
int64_t spent_take(struct spent *, const char *account, int64_t most, int64_t now);

/* How many accounts owe something, as far as that was looked at. */
size_t spent_accounts(const struct spent *);

#endif
