/* What is held: devices, contents, holdings, copies per piece, health.
 *
 * Owns all of it, in memory, for one thread. Whom to tell about whom is swarm_peers.c's.
 *
 * How rarity is kept: complete holders are one number. For the others `copies` counts holders per
 * piece and `spread` counts pieces per number of copies. A piece that gains or loses a copy moves
 * between two neighbouring places of `spread`, so the least number moves by at most one and is
 * never searched for.
 *
 * Invariants:
 *   1. a holding is in content->holders exactly if its device is connected, has confirmed it and may see it;
 *   2. copies[i] = number of incomplete holders whose map has i; sum over spread = pieces;
 *   3. spread[least] > 0 and spread[k] = 0 for k < least, where there are copies at all;
 *   4. a content lives while refs > 0. */
#include "tracker/swarm.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/swarm_private.h"

/* --- making and finding
 * ------------------------------------------------------------------------------- */

struct swarm *swarm_new(uint64_t seed)
{
    struct swarm *s = xcalloc(1, sizeof *s);
    table_init(&s->devices);
    table_init(&s->contents);
    table_init(&s->holdings);
    table_init(&s->budgets);
    s->seed = seed;
    s->random = seed | 1;
    s->dirty_end = &s->dirty;
    return s;
}

uint64_t swarm_random(struct swarm *s)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random * UINT64_C(0x2545f4914f6cdd1d);
}

static uint64_t key_hash(const struct swarm *s, const struct swarm_key *key)
{
    uint8_t bytes[HASH_SIZE + sizeof key->size];
    memcpy(bytes, key->root, HASH_SIZE);
    memcpy(bytes + HASH_SIZE, &key->size, sizeof key->size);
    return table_hash(s->seed, bytes, sizeof bytes);
}

struct content *swarm_content(struct swarm *s, const struct swarm_key *key, bool make)
{
    uint64_t hash = key_hash(s, key);
    for (struct table_node *node = table_first(&s->contents, hash); node != NULL;
         node = table_next(node)) {
        struct content *c = (struct content *)(void *)node;
        if (c->key.size == key->size && memcmp(c->key.root, key->root, HASH_SIZE) == 0)
            return c;
    }
    if (!make)
        return NULL;
    struct content *c = xcalloc(1, sizeof *c);
    memcpy(c->key.root, key->root, HASH_SIZE);
    c->key.size = key->size;
    c->pieces = geometry_of(key->size).pieces;
    c->at_pending = NOT_LISTED;
    c->told = INT64_MIN / 2;
    table_add(&s->contents, &c->node, hash);
    return c;
}

void swarm_content_release(struct swarm *s, struct content *c)
{
    CHECK(c->refs > 0);
    if (--c->refs > 0)
        return;
    swarm_news_cancel(s, c);
    table_remove(&s->contents, &c->node);
    free(c->holders);
    free(c->copies);
    free(c->spread);
    free(c->wants);
    free(c);
}

static uint64_t pair_hash(const struct swarm *s, const struct swarm_device *d,
                          const struct content *c)
{
    const void *pair[2] = {d, c};
    return table_hash(s->seed, pair, sizeof pair);
}

struct holding *swarm_holding(const struct swarm *s, const struct swarm_device *d,
                              const struct content *c)
{
    struct table_node *node = table_first(&s->holdings, pair_hash(s, d, c));
    for (; node != NULL; node = table_next(node)) {
        struct holding *h = (struct holding *)(void *)node;
        if (h->device == d && h->content == c)
            return h;
    }
    return NULL;
}

void swarm_set_judge(struct swarm *s,
                     bool (*may)(void *arg, void *owner, const uint8_t root[HASH_SIZE]), void *arg)
{
    s->may = may;
    s->may_arg = arg;
}

struct swarm_device *swarm_device_find(struct swarm *s, const uint8_t id[DEVICE_ID_SIZE])
{
    struct table_node *node = table_first(&s->devices, table_hash(s->seed, id, DEVICE_ID_SIZE));
    for (; node != NULL; node = table_next(node)) {
        struct swarm_device *d = (struct swarm_device *)(void *)node;
        if (memcmp(d->id, id, DEVICE_ID_SIZE) == 0)
            return d;
    }
    return NULL;
}

struct swarm_device *swarm_device(struct swarm *s, const uint8_t id[DEVICE_ID_SIZE])
{
    struct swarm_device *d = swarm_device_find(s, id);
    if (d == NULL) {
        d = xcalloc(1, sizeof *d);
        memcpy(d->id, id, DEVICE_ID_SIZE);
        d->budget = &d->alone;
        table_add(&s->devices, &d->node, table_hash(s->seed, id, DEVICE_ID_SIZE));
    }
    return d;
}

const uint8_t *swarm_device_id(const struct swarm_device *d)
{
    return d->id;
}

void *swarm_owner(const struct swarm_device *d)
{
    return d->owner;
}

/* --- copies per piece
 * ----------------------------------------------------------------------------------- */

static void spread_make(struct content *c)
{
    if (c->copies != NULL || c->pieces == 0)
        return;
    c->copies = xcalloc(c->pieces, sizeof *c->copies);
    c->spread_room = 8;
    c->spread = xcalloc(c->spread_room, sizeof *c->spread);
    c->spread[0] = c->pieces;
    c->least = 0;
}

static void piece_gains(struct content *c, uint32_t piece)
{
    uint32_t k = c->copies[piece];
    CHECK(k < UINT16_MAX);
    if (k + 1 >= c->spread_room) {
        c->spread = xrealloc(c->spread, 2 * (size_t)c->spread_room * sizeof *c->spread);
        memset(c->spread + c->spread_room, 0, c->spread_room * sizeof *c->spread);
        c->spread_room *= 2;
    }
    c->copies[piece] = (uint16_t)(k + 1);
    c->spread[k]--;
    c->spread[k + 1]++;
    if (k == c->least && c->spread[k] == 0)
        c->least = k + 1;
}

static void piece_loses(struct content *c, uint32_t piece)
{
    uint32_t k = c->copies[piece];
    CHECK(k > 0);
    c->copies[piece] = (uint16_t)(k - 1);
    c->spread[k]--;
    c->spread[k - 1]++;
    if (k - 1 < c->least)
        c->least = k - 1;
}

static void map_count(struct content *c, const uint8_t *map,
                      void (*each)(struct content *, uint32_t))
{
    spread_make(c);
    for (uint64_t i = bitmap_next_set(map, 0, c->pieces); i < c->pieces;
         i = bitmap_next_set(map, i + 1, c->pieces))
        each(c, (uint32_t)i);
}

void swarm_holding_bar(struct holding *h, bool barred)
{
    if (h->barred != barred)
        h->content->barred += barred ? 1 : UINT32_MAX;
    h->barred = barred;
}

/* The holding counts from now on, if its device may see the content. */
void swarm_count_in(struct swarm *s, struct holding *h)
{
    struct content *c = h->content;
    if (h->at_content != NOT_LISTED)
        return;
    swarm_holding_bar(h, !swarm_may(s, h->device, c));
    swarm_budget_judge(s, h);
    if (h->barred)
        return;
    h->at_content = c->holders_count;
    SWARM_PUSH(c->holders, c->holders_count, c->holders_room, h);
    if (h->map == NULL)
        c->complete++;
    else
        map_count(c, h->map, piece_gains);
    swarm_is_news(s, c, h->device);
}

/* It does so no longer. */
void swarm_count_out(struct holding *h)
{
    struct content *c = h->content;
    swarm_holding_bar(h, false);
    if (h->at_content == NOT_LISTED)
        return;
    if (h->map == NULL)
        c->complete--;
    else
        map_count(c, h->map, piece_loses);
    struct holding *last = c->holders[--c->holders_count];
    c->holders[h->at_content] = last;
    last->at_content = h->at_content;
    h->at_content = NOT_LISTED;
    if (c->holders_count == c->complete) { /* no maps left: give their memory back */
        free(c->copies);
        free(c->spread);
        c->copies = NULL;
        c->spread = NULL;
        c->spread_room = c->least = 0;
    }
}

/* --- holdings
 * --------------------------------------------------------------------------------------------- */

static void mark_dirty(struct swarm *s, struct holding *h)
{
    if (h->dirty)
        return;
    h->dirty = true;
    h->next_dirty = NULL;
    *s->dirty_end = h;
    s->dirty_end = &h->next_dirty;
}

static struct holding *holding_make(struct swarm *s, struct swarm_device *d, struct content *c)
{
    struct holding *h = xcalloc(1, sizeof *h);
    h->device = d;
    h->content = c;
    h->at_content = NOT_LISTED;
    h->at_device = d->held_count;
    SWARM_PUSH(d->held, d->held_count, d->held_room, h);
    table_add(&s->holdings, &h->node, pair_hash(s, d, c));
    c->refs++;
    c->known++;
    return h;
}

static void holding_drop(struct swarm *s, struct holding *h)
{
    struct swarm_device *d = h->device;
    swarm_count_out(h);
    swarm_budget_release(h);
    struct holding *last = d->held[--d->held_count];
    d->held[h->at_device] = last;
    last->at_device = h->at_device;
    h->at_device = NOT_LISTED;
    table_remove(&s->holdings, &h->node);
    h->content->known--;
    if (h->map != NULL)
        swarm_map_counts(h, -1);
    free(h->map);
    h->map = NULL;
    mark_dirty(s, h);
}

/* Sets what a holding is; `map` (NULL: complete) is the holding's from now on. */
static void holding_set(struct swarm *s, struct holding *h, uint8_t *map, bool fresh)
{
    struct content *c = h->content;
    if (!fresh && (map == NULL) == (h->map == NULL) &&
        (map == NULL || memcmp(map, h->map, bitmap_bytes(c->pieces)) == 0)) {
        free(map);
        return;
    }
    swarm_count_out(h);
    if (h->map != NULL)
        swarm_map_counts(h, -1);
    free(h->map);
    h->map = map;
    h->pieces = map == NULL ? c->pieces : (uint32_t)bitmap_count(map, 0, c->pieces);
    if (map != NULL)
        swarm_map_counts(h, 1);
    mark_dirty(s, h);
}

static const char *check_room(const struct swarm *s, const struct swarm_device *d,
                              const struct content *c, const struct holding *h, bool map)
{
    if (h == NULL && d->held_count >= LIMIT_ANNOUNCED)
        return "more files announced than a device may";
    if (map && (h == NULL || h->map == NULL) && d->map_pieces + c->pieces > LIMIT_ANNOUNCED_PIECES)
        return "more pieces of incomplete files announced than a device may";
    return swarm_budget_fault(s, d, c, h, map);
}

/* A content that was looked up for somebody who then took no reference goes again. */
static void content_forget(struct swarm *s, struct content *c)
{
    c->refs++;
    swarm_content_release(s, c);
}

const char *swarm_hold(struct swarm *s, struct swarm_device *d, const struct swarm_key *key,
                       bool complete, const uint8_t *bitfield, size_t bitfield_size)
{
    CHECK(key->size <= FILE_SIZE_MAX && d->owner != NULL);
    uint32_t pieces = geometry_of(key->size).pieces;
    uint8_t *map = NULL;
    if (!complete && pieces > 0) {
        if (bitfield_size != bitmap_bytes(pieces))
            return "a bitfield of the wrong length";
        map = xmalloc(bitfield_size);
        if (!bitmap_from_wire(map, bitfield, pieces)) {
            free(map);
            return "a bitfield with bits behind its end";
        }
        uint64_t count = bitmap_count(map, 0, pieces);
        if (count == 0) {
            free(map);
            swarm_drop(s, d, key);
            return NULL;
        }
        if (count == pieces) {
            free(map);
            map = NULL;
        }
    }
    struct content *c = swarm_content(s, key, true);
    struct holding *h = swarm_holding(s, d, c);
    const char *fault = check_room(s, d, c, h, map != NULL);
    if (fault != NULL) {
        free(map);
        content_forget(s, c);
        return fault;
    }
    bool fresh = h == NULL;
    if (fresh)
        h = holding_make(s, d, c);
    holding_set(s, h, map, fresh);
    swarm_count_in(s, h);
    return NULL;
}

/* The last missing piece has come: one of the complete ones from now on. */
static void holding_completes(struct swarm *s, struct holding *h)
{
    swarm_count_out(h);
    swarm_map_counts(h, -1);
    free(h->map);
    h->map = NULL;
    swarm_count_in(s, h);
}

const char *swarm_add(struct swarm *s, struct swarm_device *d, const struct swarm_key *key,
                      const uint32_t *pieces, size_t count)
{
    CHECK(key->size <= FILE_SIZE_MAX && d->owner != NULL);
    uint32_t end = geometry_of(key->size).pieces;
    for (size_t i = 0; i < count; i++)
        if (pieces[i] >= end)
            return "a piece behind the end of its file";
    struct content *c = swarm_content(s, key, count > 0);
    struct holding *h = c == NULL ? NULL : swarm_holding(s, d, c);
    if (h != NULL && (h->map == NULL || count == 0))
        swarm_count_in(s, h);
    if (count == 0 || (h != NULL && h->map == NULL))
        return NULL;
    const char *fault = check_room(s, d, c, h, true);
    if (fault != NULL) {
        content_forget(s, c);
        return fault;
    }
    if (h == NULL) {
        h = holding_make(s, d, c);
        h->map = xcalloc(1, bitmap_bytes(end));
        swarm_map_counts(h, 1);
    }
    swarm_count_in(s, h);
    for (size_t i = 0; i < count; i++)
        if (!bitmap_test(h->map, pieces[i])) {
            bitmap_set(h->map, pieces[i]);
            if (!h->barred)
                piece_gains(c, pieces[i]);
            h->pieces++;
            mark_dirty(s, h);
        }
    if (h->pieces == end)
        holding_completes(s, h);
    return NULL;
}

void swarm_drop(struct swarm *s, struct swarm_device *d, const struct swarm_key *key)
{
    struct content *c = swarm_content(s, key, false);
    struct holding *h = c == NULL ? NULL : swarm_holding(s, d, c);
    if (h != NULL)
        holding_drop(s, h);
}

/* Whether a device other than the holder of `own` (which may be NULL) has that piece. */
static bool others_have(const struct content *c, const struct holding *own, uint32_t piece)
{
    uint32_t copies = c->complete + (c->copies == NULL ? 0 : c->copies[piece]);
    bool counts = own != NULL && own->at_content != NOT_LISTED &&
                  (own->map == NULL || bitmap_test(own->map, piece));

    return copies > (counts ? 1 : 0);
}

/* The holding is without these pieces from now on. */
static void holding_lessen(struct swarm *s, struct holding *h, const uint8_t *less)
{
    struct content *c = h->content;
    size_t bytes = bitmap_bytes(c->pieces);
    bool counts = h->at_content != NOT_LISTED;
    uint8_t *map = xcalloc(1, bytes);

    for (uint32_t i = 0; i < c->pieces; i++)
        if ((h->map == NULL || bitmap_test(h->map, i)) && !bitmap_test(less, i))
            bitmap_set(map, i);
    if (bitmap_next_set(map, 0, c->pieces) == c->pieces) {
        free(map);
        holding_drop(s, h);
        return;
    }
    holding_set(s, h, map, false);
    if (counts)
        swarm_count_in(s, h);
}

const char *swarm_release(struct swarm *s, struct swarm_device *d, const struct swarm_key *key,
                          const uint8_t *bitfield, size_t bitfield_size, uint8_t *out)
{
    CHECK(key->size <= FILE_SIZE_MAX && d->owner != NULL);
    uint32_t pieces = geometry_of(key->size).pieces;
    size_t bytes = bitmap_bytes(pieces);
    uint8_t *asked = xcalloc(1, bytes + 1), *granted = xcalloc(1, bytes + 1);
    bool sound =
        bitfield_size == 0 || (bitfield_size == bytes && bitmap_from_wire(asked, bitfield, pieces));
    struct content *c = sound ? swarm_content(s, key, false) : NULL;
    if (c != NULL && swarm_may(s, d, c)) { /* else nothing is said of what others hold */
        struct holding *h = swarm_holding(s, d, c);
        bool any = false;
        for (uint32_t i = 0; i < pieces; i++)
            if ((bitfield_size == 0 || bitmap_test(asked, i)) && others_have(c, h, i)) {
                bitmap_set(granted, i);
                any = true;
            }
        if (h != NULL && any && check_room(s, d, c, h, true) != NULL)
            memset(granted, 0, bytes); /* no room for the map of what stays */
        else if (h != NULL && any)
            holding_lessen(s, h, granted);
    }
    bitmap_to_wire(out, granted, bytes);
    free(asked);
    free(granted);
    return sound ? NULL : "a malformed Release";
}

void swarm_load(struct swarm *s, const uint8_t id[DEVICE_ID_SIZE], const struct swarm_key *key,
                bool complete, const uint8_t *map, size_t map_size)
{
    if (key->size > FILE_SIZE_MAX)
        return;
    uint32_t pieces = geometry_of(key->size).pieces;
    if (!complete && (map == NULL || pieces == 0 || map_size != bitmap_bytes(pieces)))
        return;
    struct swarm_device *d = swarm_device(s, id);
    struct content *c = swarm_content(s, key, true);
    if (swarm_holding(s, d, c) != NULL)
        return;
    struct holding *h = holding_make(s, d, c);
    h->pieces = pieces;
    if (!complete) {
        h->map = xmemdup(map, map_size);
        h->pieces = (uint32_t)bitmap_count(h->map, 0, pieces);
        swarm_map_counts(h, 1);
    }
}

void swarm_connect(struct swarm *s, struct swarm_device *d, void *owner)
{
    CHECK(d->owner == NULL && owner != NULL);
    d->owner = owner;
}

void swarm_disconnect(struct swarm *s, struct swarm_device *d)
{
    CHECK(d->owner != NULL);
    swarm_forget(s, d);
    swarm_wants_end(s, d);
    d->owner = NULL;
}

void swarm_forget(struct swarm *s, struct swarm_device *d)
{
    for (uint32_t i = 0; i < d->held_count; i++)
        swarm_count_out(d->held[i]);
}

void swarm_confirm(struct swarm *s, struct swarm_device *d)
{
    CHECK(d->owner != NULL);
    for (uint32_t i = 0; i < d->held_count; i++)
        swarm_count_in(s, d->held[i]);
}

void swarm_settle(struct swarm *s, struct swarm_device *d)
{
    for (uint32_t i = d->held_count; i-- > 0;)
        if (d->held[i]->at_content == NOT_LISTED && !d->held[i]->barred)
            holding_drop(s, d->held[i]);
}

/* --- health
 * -------------------------------------------------------------------------------------------------
 */

void swarm_health(const struct swarm *s, const struct swarm_key *key, struct swarm_health *out)
{
    *out = (struct swarm_health){.pieces = geometry_of(key->size).pieces};
    struct content *c = swarm_content((struct swarm *)(uintptr_t)s, key, false);
    if (c == NULL) {
        out->missing = out->pieces;
        return;
    }
    out->complete = c->complete;
    out->partial = c->holders_count - c->complete;
    out->offline = c->known - c->holders_count - c->barred;
    out->rarest = c->complete + c->least;
    uint32_t more = c->copies == NULL ? 0 : c->pieces - c->spread[c->least];
    out->distributed = UINT64_C(1000) * out->rarest;
    if (c->pieces > 0)
        out->distributed += UINT64_C(1000) * more / c->pieces;
    if (out->rarest == 0)
        out->missing = c->pieces - more;
}

size_t swarm_copies(const struct swarm *s, const struct swarm_key *key, uint8_t *out, size_t max)
{
    uint32_t pieces = geometry_of(key->size).pieces;
    if (pieces > max)
        return 0;
    struct content *c = swarm_content((struct swarm *)(uintptr_t)s, key, false);
    for (uint32_t i = 0; i < pieces; i++) {
        uint32_t copies = c == NULL ? 0 : c->complete + (c->copies == NULL ? 0 : c->copies[i]);
        out[i] = copies > 255 ? 255 : (uint8_t)copies;
    }
    return pieces;
}

/* --- for the disk, and the end
 * ------------------------------------------------------------------------------- */

bool swarm_has_changes(const struct swarm *s)
{
    return s->dirty != NULL;
}

size_t swarm_changes(struct swarm *s, size_t max,
                     void (*each)(const struct swarm_change *, void *arg), void *arg)
{
    size_t count = 0;
    while (count < max && s->dirty != NULL) {
        struct holding *h = s->dirty;
        s->dirty = h->next_dirty;
        if (s->dirty == NULL)
            s->dirty_end = &s->dirty;
        h->dirty = false;
        bool dropped = h->at_device == NOT_LISTED;
        struct swarm_change change = {.device = h->device->id,
                                      .key = h->content->key,
                                      .dropped = dropped,
                                      .complete = h->map == NULL,
                                      .map = h->map,
                                      .map_size = bitmap_bytes(h->content->pieces)};
        if (each != NULL)
            each(&change, arg);
        count++;
        if (dropped) {
            swarm_content_release(s, h->content);
            free(h);
        }
    }
    return count;
}

void swarm_free(struct swarm *s)
{
    if (s == NULL)
        return;
    struct table_node *node;
    for (node = table_walk(&s->devices, NULL); node != NULL; node = table_walk(&s->devices, node)) {
        struct swarm_device *d = (struct swarm_device *)(void *)node;
        swarm_wants_end(s, d);
        while (d->held_count > 0)
            holding_drop(s, d->held[d->held_count - 1]);
        free(d->held);
        free(d->wants);
    }
    swarm_changes(s, SIZE_MAX, NULL, NULL);
    while ((node = table_walk(&s->devices, NULL)) != NULL) {
        table_remove(&s->devices, node);
        free((struct swarm_device *)(void *)node);
    }
    CHECK(s->contents.count == 0 && s->holdings.count == 0);
    swarm_budgets_free(s);
    table_clear(&s->devices);
    table_clear(&s->contents);
    table_clear(&s->holdings);
    free(s->pending);
    free(s);
}
