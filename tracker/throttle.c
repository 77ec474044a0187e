/* Budgets for password tries: exponential waiting per name, a bucket of tries per source.
 *
 * Owns two tables of small records. A name's count is raised when a try begins and cleared by
 * success, so parallel guesses count as many. A source's bucket is kept as the time at which it
 * will be full again. */
#include "tracker/throttle.h"

#include <stdbool.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tracker/table.h"

#define BAD_COST                                                                                   \
    3 /* tries that a wrong guess costs its source on top: one guess a second in the long run */

struct record {
    struct table_node node;
    uint64_t key[2]; /* hashed name, or the source */
    int64_t at;      /* of a name: the last try; of a source: when its bucket is full again */
    unsigned tries;
};

struct throttle {
    uint64_t seed;
    struct table names, sources;
};

struct throttle *throttle_new(uint64_t seed)
{
    struct throttle *t = xcalloc(1, sizeof *t);
    t->seed = seed;
    table_init(&t->names);
    table_init(&t->sources);
    return t;
}

/* Drops what `old` says, or with `some` each eighth record. */
static void sweep(struct table *table, int64_t before, bool some)
{
    unsigned n = 0;
    struct table_node *next;
    for (struct table_node *node = table_walk(table, NULL); node != NULL; node = next) {
        struct record *r = (struct record *)(void *)node;
        next = table_walk(table, node);
        if (r->at < before || (some && n++ % 8 == 0)) {
            table_remove(table, node);
            free(r);
        }
    }
}

void throttle_free(struct throttle *t)
{
    if (t == NULL)
        return;
    sweep(&t->names, INT64_MAX, true);
    sweep(&t->sources, INT64_MAX, true);
    table_clear(&t->names);
    table_clear(&t->sources);
    free(t);
}

static struct record *find(struct table *table, const uint64_t key[2])
{
    for (struct table_node *node = table_first(table, key[0] ^ key[1]); node != NULL;
         node = table_next(node)) {
        struct record *r = (struct record *)(void *)node;
        if (r->key[0] == key[0] && r->key[1] == key[1])
            return r;
    }
    return NULL;
}

static struct record *find_or_make(struct table *table, const uint64_t key[2], int64_t old)
{
    struct record *r = find(table, key);
    if (r != NULL)
        return r;
    if (table->count >= THROTTLE_TABLE)
        sweep(table, old, false);
    if (table->count >= THROTTLE_TABLE)
        sweep(table, old, true);
    r = xcalloc(1, sizeof *r);
    r->key[0] = key[0];
    r->key[1] = key[1];
    r->at = old;
    table_add(table, &r->node, key[0] ^ key[1]);
    return r;
}

static void name_key(const struct throttle *t, const char *name, uint64_t key[2])
{
    key[0] = table_hash(t->seed, name, strlen(name));
    key[1] = table_hash(~t->seed, name, strlen(name));
}

static void source_key_hash(const struct throttle *t, const uint8_t source[16], uint64_t key[2])
{
    key[0] = table_hash(t->seed, source, 16);
    key[1] = table_hash(~t->seed, source, 16);
}

static int64_t wait_of(unsigned tries)
{
    if (tries < THROTTLE_FREE_TRIES)
        return 0;
    unsigned doublings = tries - THROTTLE_FREE_TRIES;
    if (doublings > 6)
        return THROTTLE_LONGEST;
    int64_t wait = THROTTLE_FIRST << doublings;
    return wait > THROTTLE_LONGEST ? THROTTLE_LONGEST : wait;
}

/* Takes `cost` out of a source's bucket if it is there. */
static int64_t spend(struct throttle *t, const uint8_t source[16], unsigned cost, int64_t now,
                     bool force)
{
    uint64_t key[2];
    source_key_hash(t, source, key);
    struct record *r = find_or_make(&t->sources, key, now);
    if (r->at < now)
        r->at = now;
    int64_t full_at = r->at + cost * THROTTLE_REFILL;
    int64_t over = full_at - now - THROTTLE_BURST * THROTTLE_REFILL;
    if (over > 0 && !force)
        return over;
    if (over > THROTTLE_LONGEST)
        full_at -= over - THROTTLE_LONGEST;
    r->at = full_at;
    return 0;
}

int64_t throttle_spend(struct throttle *t, const uint8_t source[16], unsigned cost, int64_t now)
{
    return spend(t, source, cost, now, false);
}

int64_t throttle_try(struct throttle *t, const char *name, const uint8_t source[16], int64_t now)
{
    uint64_t key[2];
    name_key(t, name, key);
    struct record *r = find_or_make(&t->names, key, now - THROTTLE_FORGET);
    if (now - r->at >= THROTTLE_FORGET)
        r->tries = 0;
    int64_t left = r->tries == 0 ? 0 : r->at + wait_of(r->tries) - now;
    if (left > 0)
        return left;
    left = spend(t, source, 1, now, false);
    if (left > 0)
        return left;
    r->tries++;
    r->at = now;
    return 0;
}

void throttle_good(struct throttle *t, const char *name)
{
    uint64_t key[2];
    name_key(t, name, key);
    struct record *r = find(&t->names, key);
    if (r != NULL) {
        table_remove(&t->names, &r->node);
        free(r);
    }
}

void throttle_bad(struct throttle *t, const uint8_t source[16], int64_t now)
{
    spend(t, source, BAD_COST, now, true);
}
