/* How often passwords may be tried: per account from one source, and per source address.
 *
 * Waiting is for a name from one source, so that who guesses never locks out the owner who comes from
 * elsewhere; for a device that the account knows its id stands for the source, so that not even a
 * guesser in the same house does. Pure; one thread; times in nanoseconds on any one clock. Names need
 * not exist: an unknown one is throttled exactly like a known one. Memory is bounded: when the table is
 * full some entries are forgotten. */
#ifndef TRACKER_THROTTLE_H
#define TRACKER_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

struct throttle;

#define THROTTLE_FREE_TRIES 3               /* typing errors cost nothing */
#define THROTTLE_FIRST      (1 * NS_PER_S)  /* then one second, two, four … */
#define THROTTLE_LONGEST    (60 * NS_PER_S) /* longer would lock out the owner in the same office */
#define THROTTLE_FORGET     (3600 * NS_PER_S) /* a name that was left alone starts anew */
#define THROTTLE_BURST      256 /* tries that a source has in hand: an office behind one address */
#define THROTTLE_REFILL     (250 * NS_PER_MS) /* one more each */
#define THROTTLE_MAILS      8                 /* mails to one account in a burst */
#define THROTTLE_MAIL_AGAIN (600 * NS_PER_S)  /* then one each */
#define THROTTLE_TABLE      65536             /* names and sources remembered, each */

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
