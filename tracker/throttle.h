/* How often passwords may be tried: per account from one source, and per source address.
 *
 * Waiting is for a name from one source, so that who guesses never locks out the owner who comes from
 * elsewhere; for a device that the account knows its id stands for the source, so that not even a
 * guesser in the same house does. Pure; one thread; times in nanoseconds on any one clock. Names need
 * not exist: an unknown one is throttled exactly like a known one. Memory is bounded: when the table is
 * full some entries are forgotten, those with the fewest tries first. */
#ifndef TRACKER_THROTTLE_H
#define TRACKER_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

struct throttle;

/* A source is 16 bytes of address, see source_key (base/source.h). */
struct throttle *throttle_new(uint64_t seed);
void throttle_free(struct throttle *); /* NULL is fine */

/* Counts a try before its outcome is known, so that many at once are not one. 0: go on; else the
 * time to wait, and nothing was counted. */
int64_t throttle_try(struct throttle *, const char *name, const uint8_t source[16], int64_t now);
/* The same for a name and any 16 bytes that are not an address, as a device's id; costs no source. */
int64_t throttle_pair(struct throttle *, const char *name, const uint8_t key[16], int64_t now);
/* For what costs work without naming an account. */
int64_t throttle_spend(struct throttle *, const uint8_t source[16], unsigned cost, int64_t now);
/* The try was good: the name starts anew there. */
void throttle_good(struct throttle *, const char *name, const uint8_t source[16]);
/* Whether another mail may be sent for the name; the same for names that do not exist. */
bool throttle_mail(struct throttle *, const char *name, int64_t now);
/* The try was a wrong guess: it costs the source more. */
void throttle_bad(struct throttle *, const uint8_t source[16], int64_t now);

#endif
