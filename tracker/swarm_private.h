/* Shared by swarm.c (what is held), swarm_peers.c (who is told of whom) and nobody else. */
#ifndef TRACKER_SWARM_PRIVATE_H
#define TRACKER_SWARM_PRIVATE_H

#include "base/name.h"
#include "tracker/swarm.h"
#include "tracker/table.h"

#define NOT_LISTED UINT32_MAX

struct holding {
    struct table_node node; /* swarm.holdings */
    struct swarm_device *device;
    struct content *content;
    uint8_t *map;        /* which pieces; NULL if complete */
    uint32_t pieces;     /* how many */
    uint32_t at_device;  /* place in device->held; NOT_LISTED once dropped */
    uint32_t at_content; /* place in content->holders; NOT_LISTED: does not count */
    bool barred;         /* said by its device, which may not see the content: does not count */
    bool
        unseen; /* barred, or of a content in no catalogue, when that was last judged: counts in budgets */
    bool dirty;
    struct holding *next_dirty;
};

struct want {
    struct swarm_device *device;
    struct content *content;
    uint32_t at_device;
    uint32_t at_content;
    uint16_t count; /* peers it asked for */
    uint16_t given; /* and has been told of */
    bool barred;    /* the device may not see the content */
};

/* What the devices of one account take together of what only they speak of. */
struct swarm_budget {
    struct table_node node; /* swarm.budgets, unless it is a device's own */
    uint32_t unseen;        /* holdings that are */
    uint64_t unseen_pieces; /* pieces of those that have maps */
    uint32_t wants;
    char account[ACCOUNT_BYTES_MAX + 1];
};

struct swarm_device {
    struct table_node node; /* swarm.devices */
    uint8_t id[DEVICE_ID_SIZE];
    void *owner;
    struct holding **held;
    uint32_t held_count, held_room;
    struct want **wants;
    uint32_t wants_count, wants_room;
    uint32_t unseen; /* holdings that are */
    uint64_t unseen_pieces;
    struct swarm_budget alone; /* until its account is known */
    struct swarm_budget *budget;
    uint64_t map_pieces; /* pieces of all incomplete holdings: what the maps cost */
};

struct content {
    struct table_node node; /* swarm.contents */
    struct swarm_key key;
    uint32_t pieces;
    uint32_t refs;            /* holdings (dropped ones that are still dirty as well) and wants */
    uint32_t known;           /* holdings, counted or not */
    uint32_t barred;          /* of which are barred */
    struct holding **holders; /* those that count */
    uint32_t holders_count, holders_room;
    uint32_t complete; /* of which have all */
    uint16_t *copies;  /* of each piece among the incomplete holders; NULL: none anywhere */
    uint32_t *spread;  /* spread[k]: pieces with k copies among the incomplete ones */
    uint32_t spread_room;
    uint32_t least; /* the smallest k with spread[k] > 0 */
    struct want **wants;
    uint32_t wants_count, wants_room;
    /* News not yet told. */
    struct swarm_device **news;
    uint32_t news_count;
    int64_t told; /* when news was told last */
    int64_t due;
    uint32_t at_pending; /* place in swarm.pending, or NOT_LISTED */
};

struct swarm {
    struct table devices, contents, holdings, budgets;
    uint64_t seed;
    uint64_t random; /* state of swarm_random */
    int64_t now;
    struct holding *dirty, **dirty_end;
    struct content **pending; /* contents with news */
    uint32_t pending_count, pending_room;
    int64_t news_due; /* of those; may be too early: the next look at all of them sets it right */
    bool (*may)(void *arg, void *owner, const uint8_t root[HASH_SIZE]);
    bool (*known)(void *arg, const uint8_t root[HASH_SIZE]);
    void *may_arg; /* both judges' */
};

/* Whether the device, which is connected, may see the content. */
static inline bool swarm_may(const struct swarm *s, const struct swarm_device *d,
                             const struct content *c)
{
    return s->may == NULL || s->may(s->may_arg, d->owner, c->key.root);
}
void swarm_count_in(struct swarm *, struct holding *);
void swarm_count_out(struct holding *);
void swarm_holding_bar(struct holding *, bool barred);

/* --- swarm_budget.c --- */
/* Judges whether a holding counts in its account's budget. */
void swarm_budget_judge(struct swarm *, struct holding *);
/* It does no longer: it goes, or everybody may know of its content. Before its map is freed. */
void swarm_budget_release(struct holding *);
/* Of a holding that is to be made (`h` NULL), or to get its first map: NULL, or a clause that says what is too much. */
const char *swarm_budget_fault(const struct swarm *, const struct swarm_device *,
                               const struct content *, const struct holding *h, bool map);
/* Its map comes (+1) or goes (-1): before it does. */
void swarm_map_counts(struct holding *, int sign);
void swarm_budgets_free(struct swarm *);

struct content *swarm_content(struct swarm *, const struct swarm_key *, bool make);
void swarm_content_release(struct swarm *, struct content *);
struct holding *swarm_holding(const struct swarm *, const struct swarm_device *,
                              const struct content *);
uint64_t swarm_random(struct swarm *);
/* The device is worth telling those who want this content. */
void swarm_is_news(struct swarm *, struct content *, struct swarm_device *);
void swarm_news_cancel(struct swarm *, struct content *);
void swarm_wants_end(struct swarm *, struct swarm_device *);

/* Appends to a growing array of pointers; the array's name, count and room are lvalues. */
#define SWARM_PUSH(array, count, room, item)                                                       \
    do {                                                                                           \
        if ((count) == (room)) {                                                                   \
            (room) = (room) == 0 ? 4 : 2 * (room);                                                 \
            (array) = xrealloc((array), (room) * sizeof *(array));                                 \
        }                                                                                          \
        (array)[(count)++] = (item);                                                               \
    } while (0)

#endif
