/* Who holds which pieces of what, who wants what, how rare it is, and whom to tell about whom.
 *
 * Pure: no input or output, no clock, no thread of its own. One thread. Everything is maintained by
 * deltas: health costs the same for ten peers and for ten thousand.
 *
 *   content   a root with a size (two members that claim different sizes for one root speak of two
 * contents) holding   what one device says it has of one content: all pieces, or a map. It counts
 * while the device is connected and has confirmed it since; else it is known, but `offline`. want
 * a device waits for peers of a content; ends with its connection */
#ifndef TRACKER_SWARM_H
#define TRACKER_SWARM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/identity.h"
#include "crypto/merkle.h"

struct swarm;
struct swarm_device;

struct swarm_key {
    uint8_t root[HASH_SIZE];
    uint64_t size; /* <= FILE_SIZE_MAX, CHECKed */
};

struct swarm *swarm_new(uint64_t seed);
void swarm_free(struct swarm *); /* NULL is fine */

/* May the owner of a connected device see this root? Without a judge everybody may. What a device announces of a root
 * that it may not see is kept but counts for nothing, as if it were not connected; its wants of one get no peers and
 * are not told of; nothing of it is released. Neither learns the difference. */
void swarm_set_judge(struct swarm *,
                     bool (*may)(void *arg, void *owner, const uint8_t root[HASH_SIZE]), void *arg);
/* Is this root in the catalogue, or was it lately? Without such a judge all are. What is not, or may not be seen, is
 * memory that only its holders ask for: bounded for all devices of an account together (LIMIT_ANNOUNCED_UNSEEN). The
 * argument is the one of swarm_set_judge. */
void swarm_set_known(struct swarm *, bool (*known)(void *arg, const uint8_t root[HASH_SIZE]));
/* It has come into the catalogue. */
void swarm_published(struct swarm *, const struct swarm_key *);
typedef void swarm_lost(void *arg, struct swarm_device *asker, struct swarm_device *holder,
                        const struct swarm_key *);
/* What the device may see has changed: judges its holdings and wants again. `lost` is called for each connected
 * holder of each content that it wants and may not see any more. */
void swarm_rejudge(struct swarm *, struct swarm_device *, swarm_lost *, void *arg);
/* Who may see the content has changed: judges it for all connected devices. */
void swarm_rejudge_content(struct swarm *, const struct swarm_key *, swarm_lost *, void *arg);

/* --- devices
 * ------------------------------------------------------------------------------------------ */
/* The device with this id, made if it is unknown. Lives as long as the swarm. */
struct swarm_device *swarm_device(struct swarm *, const uint8_t id[DEVICE_ID_SIZE]);
/* The same, NULL if it is unknown. */
struct swarm_device *swarm_device_find(struct swarm *, const uint8_t id[DEVICE_ID_SIZE]);
const uint8_t *swarm_device_id(const struct swarm_device *);
/* Whose it is: some limits are the account's. Before the device connects; each device alone without. */
void swarm_device_of(struct swarm *, struct swarm_device *, const char *account);
/* `owner`, not NULL, stands for its connection. What it is known to hold does not count yet. */
void swarm_connect(struct swarm *, struct swarm_device *, void *owner);
void *swarm_owner(const struct swarm_device *); /* NULL: not connected */
/* Ends its wants; its holdings stay known. */
void swarm_disconnect(struct swarm *, struct swarm_device *);

/* --- holdings: of connected devices. Functions that return text: NULL, or a clause that says what
 * is wrong - */
/* Announced from scratch: nothing counts until it is said again. */
void swarm_forget(struct swarm *, struct swarm_device *);
/* Announced as a continuation: what is known counts again. */
void swarm_confirm(struct swarm *, struct swarm_device *);
/* Drops what has not been said again since swarm_forget. */
void swarm_settle(struct swarm *, struct swarm_device *);
/* All pieces, or those of a bitfield as it stands on the wire (BEP 3); replaces what was said
 * before. */
const char *swarm_hold(struct swarm *, struct swarm_device *, const struct swarm_key *,
                       bool complete, const uint8_t *bitfield, size_t bitfield_size);
/* Pieces that came since; none: what is known is confirmed. */
const char *swarm_add(struct swarm *, struct swarm_device *, const struct swarm_key *,
                      const uint32_t *pieces, size_t count);
void swarm_drop(struct swarm *, struct swarm_device *, const struct swarm_key *);
/* The device would like to delete these pieces (`bitfield` as on the wire, size 0: all). `out`, bytes of a bitfield:
 * those that some other connected device holds; of these the device's no longer count. */
const char *swarm_release(struct swarm *, struct swarm_device *, const struct swarm_key *,
                          const uint8_t *bitfield, size_t bitfield_size, uint8_t *out);
/* From disk at the start: known, offline. `map` as base/bitmap.h has it. Unsound rows are left out.
 */
void swarm_load(struct swarm *, const uint8_t id[DEVICE_ID_SIZE], const struct swarm_key *,
                bool complete, const uint8_t *map, size_t map_size);

/* --- wants
 * -------------------------------------------------------------------------------------------- */
struct swarm_peer {
    struct swarm_device *device;
    bool complete;
    uint32_t pieces;
};
/* From now on the device is told of up to `count` (at most LIMIT_PEERS) peers. Fills `out`: those
 * that have what it lacks first, then those that want it as well, random among equals; never
 * itself. */
const char *swarm_want(struct swarm *, struct swarm_device *, const struct swarm_key *,
                       unsigned count, struct swarm_peer *out, size_t *found);
/* All wants of that root. */
void swarm_unwant(struct swarm *, struct swarm_device *, const uint8_t root[HASH_SIZE]);

/* News for those who want: call when swarm_news_due (INT64_MAX: nothing) has come; calls `tell`
 * once for each device that has something to learn. Times on any one clock, nanoseconds. */
int64_t swarm_news_due(const struct swarm *); /* or a little earlier */
void swarm_news(struct swarm *, int64_t now,
                void (*tell)(void *arg, struct swarm_device *to, const struct swarm_key *,
                             const struct swarm_peer *peers, size_t count),
                void *arg);
/* Say the time before a batch of announces and wants. */
void swarm_at(struct swarm *, int64_t now);

/* --- health
 * ------------------------------------------------------------------------------------------- */
struct swarm_health {
    uint32_t pieces;
    uint32_t rarest;   /* copies of the rarest piece; of an empty file: of the file */
    uint32_t complete; /* connected devices with all pieces */
    uint32_t partial;  /* with some */
    uint32_t missing;  /* pieces that nobody connected has */
    uint32_t offline;  /* holdings that are known and do not count now */
    uint64_t
        distributed; /* thousandths of a copy: rarest, and the share of pieces that have more */
};
/* Of a content nobody spoke of: zero, but for `pieces` and `missing`. */
void swarm_health(const struct swarm *, const struct swarm_key *, struct swarm_health *out);
/* Copies of each piece, 255 for more; writes and returns the number of pieces, or 0 if `max` is
 * less. */
size_t swarm_copies(const struct swarm *, const struct swarm_key *, uint8_t *out, size_t max);

/* --- for the disk
 * --------------------------------------------------------------------------------------- */
struct swarm_change {
    const uint8_t *device; /* DEVICE_ID_SIZE bytes */
    struct swarm_key key;
    bool dropped;
    bool complete;
    const uint8_t *map; /* unless complete or dropped */
    size_t map_size;
};
/* Takes up to `max` holdings that changed since they were last taken; returns how many. */
size_t swarm_changes(struct swarm *, size_t max,
                     void (*each)(const struct swarm_change *, void *arg), void *arg);
/* Whether there are any. */
bool swarm_has_changes(const struct swarm *);

#endif
