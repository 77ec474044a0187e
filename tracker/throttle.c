/* Budgets for password tries: exponential waiting per name and source, a bucket of tries per source, one of mails
 * per name.
 *
 * Owns three tables of small records. A pair's count is raised when a try begins and cleared by
 * success, so parallel guesses count as many. A source's bucket is kept as the time at which it
 * will be full again. */
#include "tracker/throttle.h"

#include <limits.h>

#include "base/clock.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/table.h"

struct record {
    struct table_node node;
    uint64_t key[2]; /* hashed */
    int64_t at;      /* of a pair: the last try; of a bucket: when it is full again */
    unsigned tries;
};

struct throttle {
    uint64_t seed;
    struct table pairs, sources, mails;
};

struct throttle *throttle_new(uint64_t seed)
{
    struct throttle *t = xcalloc(1, sizeof *t);
    t->seed = seed;
    table_init(&t->pairs);
    table_init(&t->sources);
    table_init(&t->mails);
    return t;
}

/* Drops what is older than `before`, and at most `some` others with `tries` tries or fewer. Returns how many others. */
static size_t sweep(struct table *table, int64_t before, size_t some, unsigned tries)
{
    size_t dropped = 0;
    struct table_node *next;
    for (struct table_node *node = table_walk(table, NULL); node != NULL; node = next) {
        struct record *r = (struct record *)(void *)node;
        next = table_walk(table, node);
        bool is_old = r->at < before;
        if (is_old || (dropped < some && r->tries <= tries)) {
            dropped += !is_old;
            table_remove(table, node);
            free(r);
        }
    }
    return dropped;
}

/* An eighth goes, those that were tried the least first: a name that somebody guesses at stays in memory, however many
 * others are made up to push it out. */
static void make_room(struct table *table, int64_t old)
{
    size_t room = LIMIT_TRIES_KEPT / 8;
    (void)sweep(table, old, 0, 0);
    if (table->count < LIMIT_TRIES_KEPT)
        return;
    for (unsigned tries = 1; room > 0; tries = tries > UINT_MAX / 2 ? UINT_MAX : 2 * tries)
        room -= sweep(table, 0, room, tries);
}

void throttle_free(struct throttle *t)
{
    if (t == NULL)
        return;
    (void)sweep(&t->pairs, INT64_MAX, SIZE_MAX, UINT_MAX);
    (void)sweep(&t->sources, INT64_MAX, SIZE_MAX, UINT_MAX);
    (void)sweep(&t->mails, INT64_MAX, SIZE_MAX, UINT_MAX);
    table_clear(&t->pairs);
    table_clear(&t->sources);
    table_clear(&t->mails);
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
    if (table->count >= LIMIT_TRIES_KEPT)
        make_room(table, old);
    r = xcalloc(1, sizeof *r);
    r->key[0] = key[0];
    r->key[1] = key[1];
    r->at = old;
    table_add(table, &r->node, key[0] ^ key[1]);
    return r;
}

static void hash_key(const struct throttle *t, const void *bytes, size_t size, uint64_t key[2])
{
    key[0] = table_hash(t->seed, bytes, size);
    key[1] = table_hash(~t->seed, bytes, size);
}

static void pair_key(const struct throttle *t, const char *name, const uint8_t with[16],
                     uint64_t key[2])
{
    uint64_t other[2];
    hash_key(t, name, strlen(name), key);
    hash_key(t, with, 16, other);
    key[0] ^= other[1];
    key[1] ^= other[0];
}

static int64_t wait_of(unsigned tries)
{
    if (tries < LIMIT_TRIES_FREE)
        return 0;
    unsigned doublings = tries - LIMIT_TRIES_FREE;
    if (doublings > 6)
        return LIMIT_TRY_LONGEST_NS;
    int64_t wait = LIMIT_TRY_FIRST_NS << doublings;
    return wait > LIMIT_TRY_LONGEST_NS ? LIMIT_TRY_LONGEST_NS : wait;
}

/* Takes `cost` out of a bucket that holds `burst` and gets one more each `refill`, if it is there. */
static int64_t spend(struct table *table, const uint64_t key[2], int64_t cost, int64_t burst,
                     int64_t refill, int64_t now, bool force)
{
    struct record *r = find_or_make(table, key, now);
    if (r->at < now)
        r->at = now;
    int64_t full_at = r->at + cost * refill;
    int64_t over = full_at - now - burst * refill;
    if (over > 0 && !force)
        return over;
    if (over > LIMIT_TRY_LONGEST_NS)
        full_at -= over - LIMIT_TRY_LONGEST_NS;
    r->at = full_at;
    return 0;
}

static int64_t spend_source(struct throttle *t, const uint8_t source[16], unsigned cost,
                            int64_t now, bool force)
{
    uint64_t key[2];
    hash_key(t, source, 16, key);
    return spend(&t->sources, key, cost, LIMIT_TRIES_SOURCE, LIMIT_TRY_NS, now, force);
}

bool throttle_mail(struct throttle *t, const char *name, int64_t now)
{
    uint64_t key[2];
    hash_key(t, name, strlen(name), key);
    return spend(&t->mails, key, 1, LIMIT_MAILS_BURST, LIMIT_MAIL_AGAIN_NS, now, false) == 0;
}

int64_t throttle_spend(struct throttle *t, const uint8_t source[16], unsigned cost, int64_t now)
{
    return spend_source(t, source, cost, now, false);
}

/* How long the pair has to wait yet. */
static int64_t pair_wait(struct throttle *t, const uint64_t key[2], int64_t now)
{
    const struct record *r = find(&t->pairs, key);
    if (r == NULL || r->tries == 0 || now - r->at >= LIMIT_TRY_FORGET_NS)
        return 0;
    return r->at + wait_of(r->tries) - now;
}

/* Only now is there a record of it. */
static void pair_count(struct throttle *t, const uint64_t key[2], int64_t now)
{
    struct record *r = find_or_make(&t->pairs, key, now - LIMIT_TRY_FORGET_NS);
    if (now - r->at >= LIMIT_TRY_FORGET_NS)
        r->tries = 0;
    r->tries++;
    r->at = now;
}

int64_t throttle_pair(struct throttle *t, const char *name, const uint8_t with[16], int64_t now)
{
    uint64_t key[2];
    pair_key(t, name, with, key);
    int64_t left = pair_wait(t, key, now);
    if (left > 0)
        return left;
    pair_count(t, key, now);
    return 0;
}

int64_t throttle_try(struct throttle *t, const char *name, const uint8_t source[16], int64_t now)
{
    uint64_t key[2];
    pair_key(t, name, source, key);
    int64_t left = pair_wait(t, key, now);
    if (left <= 0)
        left = spend_source(t, source, 1, now, false);
    if (left > 0)
        return left;
    pair_count(t, key, now);
    return 0;
}

void throttle_good(struct throttle *t, const char *name, const uint8_t source[16])
{
    uint64_t key[2];
    pair_key(t, name, source, key);
    struct record *r = find(&t->pairs, key);
    if (r != NULL) {
        table_remove(&t->pairs, &r->node);
        free(r);
    }
}

void throttle_bad(struct throttle *t, const uint8_t source[16], int64_t now)
{
    (void)spend_source(t, source, LIMIT_COST_WRONG, now, true);
}
