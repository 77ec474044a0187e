/* Devices that did harm: what they did, and until when nobody speaks to them.
 *
 * By device, not by address: others may share that. What can only be on purpose (a block that does
 * not match its hash) bans at once; a breach of the protocol may be a mistake, so it is a strike,
 * and LIMIT_STRIKES of them within LIMIT_STRIKES_NS are no mistake any more. A ban lasts
 * LIMIT_BAN_NS. Nothing is kept over a restart.
 *
 * Any thread: guards itself. Memory: LIMIT_BANS records; the ones that matter least go first. Times
 * are on the monotonic clock. */
#ifndef PROTO_BANS_H
#define PROTO_BANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BANS_DEVICE_SIZE 16
#define BANS_WHY_SIZE    80

struct bans;

struct ban {
    uint8_t device[BANS_DEVICE_SIZE];
    char account[65];
    char why[BANS_WHY_SIZE]; /* a clause: "sent a block that does not match" */
    int64_t until;
};

struct bans *bans_new(void);
void bans_free(struct bans *); /* NULL is fine */

/* Bans at once. `account` and `why` are cut to their room. */
void bans_add(struct bans *, const uint8_t device[BANS_DEVICE_SIZE], const char *account,
              const char *why, int64_t now);
/* Notes a breach. True if the device is banned now. */
bool bans_strike(struct bans *, const uint8_t device[BANS_DEVICE_SIZE], const char *account,
                 const char *what, int64_t now);
/* Forgets what the device did. */
void bans_lift(struct bans *, const uint8_t device[BANS_DEVICE_SIZE]);
/* True, with *out (may be NULL), if the device is banned. */
bool bans_find(struct bans *, const uint8_t device[BANS_DEVICE_SIZE], int64_t now, struct ban *out);
/* All bans, at most `max`; returns how many were written. */
size_t bans_list(struct bans *, int64_t now, struct ban *out, size_t max);

#endif
