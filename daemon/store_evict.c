/* Owns the choice of what is taken away next, and taking it away from a content that may be open or not. Whether it may
 * go (pins, the last copy) is evict.c's to say; how, content_evict.c's.
 *
 * The unit is a piece of a content that is open, all of a content that is not. A large content that is not open is
 * opened if a part of it is enough.
 *
 * Thread: a worker. Memory: 16 bytes a piece of the open contents, 56 a content, while choosing. */
#include "daemon/store_private.h"

#include <errno.h>
#include <stdlib.h>

#include "base/mem.h"

#define WHOLE_MOST (64u << 20) /* a content up to this size goes whole */

/* One content that may lose something. */
struct offer {
    uint8_t root[HASH_SIZE];
    uint64_t size, bytes;
    struct content *content; /* a reference; NULL: it is not open */
    uint32_t used;
};

struct part {
    uint32_t rank, offer, piece;
    uint32_t blocks; /* present */
};

struct choice {
    struct store *store;
    struct offer *offers;
    size_t offer_count, offer_room;
    struct part *parts;
    size_t part_count, part_room;
};

static bool is_kept(const uint8_t (*kept)[HASH_SIZE], size_t count, const uint8_t *root)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = memcmp(kept[middle], root, HASH_SIZE);
        if (order == 0)
            return true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* store->lock is held. */
static void add_offer(struct choice *c, struct record *record)
{
    if (c->offer_count == c->offer_room) {
        c->offer_room = c->offer_room == 0 ? 256 : c->offer_room * 2;
        c->offers = xrealloc(c->offers, c->offer_room * sizeof *c->offers);
    }
    struct offer *offer = &c->offers[c->offer_count++];
    memcpy(offer->root, record->root, HASH_SIZE);
    offer->size = record->size;
    offer->content = record->content;
    offer->bytes = record->content == NULL ? record->bytes : content_bytes(record->content);
    offer->used = record->used;
}

static void add_part(struct choice *c, uint32_t rank, size_t offer, uint32_t piece, uint32_t blocks)
{
    if (c->part_count == c->part_room) {
        c->part_room = c->part_room == 0 ? 1024 : c->part_room * 2;
        c->parts = xrealloc(c->parts, c->part_room * sizeof *c->parts);
    }
    c->parts[c->part_count++] = (struct part){rank, (uint32_t)offer, piece, blocks};
}

/* All contents of others that are not kept, and what they hold. */
static uint64_t gather(struct choice *c, const uint8_t (*kept)[HASH_SIZE], size_t kept_count)
{
    struct store *store = c->store;
    uint64_t cached = 0;

    lock_take(&store->lock);
    for (size_t i = 0; i < store->bucket_count; i++) {
        for (struct record *record = store->buckets[i]; record != NULL; record = record->next) {
            if (record->busy || record->dropped || record->own ||
                is_kept(kept, kept_count, record->root))
                continue;
            add_offer(c, record);
            struct offer *offer = &c->offers[c->offer_count - 1];
            cached += offer->bytes;
            if (offer->bytes == 0)
                c->offer_count--;
            else if (offer->content != NULL)
                store_take(store, offer->content);
        }
    }
    lock_drop(&store->lock);
    return cached;
}

static void offer_pieces(struct choice *c, size_t which)
{
    struct content *content = c->offers[which].content;

    for (uint32_t piece = 0; piece < content->geometry.pieces; piece++) {
        uint32_t used = __atomic_load_n(&content->used[piece], __ATOMIC_RELAXED);
        uint32_t blocks = __atomic_load_n(&content->piece_counts[piece], __ATOMIC_RELAXED);
        if (blocks > 0)
            add_part(c, used_rank(used), which, piece, blocks);
    }
}

static int by_rank(const void *a, const void *b)
{
    const struct part *x = a, *y = b;

    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    if (x->offer != y->offer)
        return x->offer < y->offer ? -1 : 1;
    return x->piece < y->piece ? -1 : x->piece > y->piece;
}

/* The victim that stands for this content; made at its first piece. `at` holds its place by offer, plus 1. */
static struct store_victim *victim_of(struct choice *c, struct store_victim *victims, size_t *count,
                                      uint32_t *at, uint32_t offer)
{
    if (at[offer] == 0) {
        struct store_victim *victim = &victims[(*count)++];
        memcpy(victim->root, c->offers[offer].root, HASH_SIZE);
        victim->size = c->offers[offer].size;
        victim->pieces = NULL;
        at[offer] = (uint32_t)*count;
    }
    return &victims[at[offer] - 1];
}

static void want_piece(struct store_victim *victim, uint32_t piece)
{
    if (victim->pieces == NULL)
        victim->pieces = xcalloc(1, bitmap_bytes(geometry_of(victim->size).pieces));
    bitmap_set(victim->pieces, piece);
}

/* Takes a part of a content that is not open; bytes. */
static uint64_t split(struct choice *c, struct store_victim *victim, uint64_t need)
{
    uint64_t got = 0;
    int error;
    struct content *content = store_get(c->store, victim->root, victim->size, false, &error);

    for (uint32_t i = 0; content != NULL && i < content->geometry.pieces && got < need; i++) {
        uint32_t blocks = __atomic_load_n(&content->piece_counts[i], __ATOMIC_RELAXED);
        if (blocks == 0)
            continue;
        want_piece(victim, i);
        got += (uint64_t)blocks * BLOCK_SIZE;
    }
    content_release(content);
    return got;
}

static size_t take_parts(struct choice *c, uint64_t need, struct store_victim *victims)
{
    uint32_t *at = xcalloc(c->offer_count + 1, sizeof *at);
    size_t count = 0;
    uint64_t got = 0;

    for (size_t i = 0; i < c->part_count && got < need; i++) {
        const struct part *part = &c->parts[i];
        const struct offer *offer = &c->offers[part->offer];
        struct store_victim *victim = victim_of(c, victims, &count, at, part->offer);
        if (offer->content != NULL) {
            want_piece(victim, part->piece);
            got += (uint64_t)part->blocks * BLOCK_SIZE;
        } else if (offer->bytes > WHOLE_MOST && offer->bytes > need - got) {
            got += split(c, victim, need - got);
        } else {
            got += offer->bytes;
        }
    }
    free(at);
    return count;
}

size_t store_choose(struct store *store, uint64_t most, const uint8_t (*kept)[HASH_SIZE],
                    size_t kept_count, uint64_t *cached, struct store_victim **victims)
{
    struct choice c = {.store = store};
    size_t count = 0;

    CHECK_OBJECT(store, STORE_MAGIC);
    *victims = NULL;
    *cached = gather(&c, kept, kept_count);
    if (*cached > most) {
        for (size_t i = 0; i < c.offer_count; i++) {
            if (c.offers[i].content != NULL)
                offer_pieces(&c, i);
            else
                add_part(&c, used_rank(c.offers[i].used), i, 0, 0);
        }
        if (c.part_count > 1)
            qsort(c.parts, c.part_count, sizeof *c.parts, by_rank);
        *victims = xcalloc(c.offer_count + 1, sizeof **victims);
        count = take_parts(&c, *cached - most, *victims);
    }
    for (size_t i = 0; i < c.offer_count; i++)
        content_release(c.offers[i].content);
    free(c.offers);
    free(c.parts);
    return count;
}

void store_victims_free(struct store_victim *victims, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(victims[i].pieces);
    free(victims);
}

/* Whether these are all that is here of it. */
static bool is_all(const struct content *content, const uint8_t *pieces)
{
    for (uint32_t i = 0; pieces != NULL && i < content->geometry.pieces; i++)
        if (!bitmap_test(pieces, i) &&
            __atomic_load_n(&content->piece_counts[i], __ATOMIC_RELAXED) > 0)
            return false;
    return true;
}

int store_evict(struct store *store, const struct store_victim *victim, uint64_t *freed, bool *gone)
{
    int error;

    *freed = 0;
    *gone = false;
    int64_t bytes = victim->pieces == NULL ? store_drop_unused(store, victim->root) : -EBUSY;
    if (bytes >= 0) {
        *freed = (uint64_t)bytes;
        *gone = true;
        return 0;
    }
    struct content *content = store_get(store, victim->root, victim->size, false, &error);
    if (content == NULL)
        return error;
    bool all = is_all(content, victim->pieces);
    if (all) { /* deleting it is less work, if nobody came meanwhile */
        content_release(content);
        bytes = store_drop_unused(store, victim->root);
        *gone = bytes >= 0;
        *freed = *gone ? (uint64_t)bytes : 0;
        if (*gone)
            return 0;
        content = store_get(store, victim->root, victim->size, false, &error);
        if (content == NULL)
            return error;
    }
    int result = content_evict(content, victim->pieces, freed);
    content_release(content);
    return result;
}
