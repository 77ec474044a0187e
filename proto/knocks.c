/* Budgets of handshakes, one for each source and each account, and one for all suspects.
 *
 * Owns the tables. A bucket is kept as the time at which it will be full again: `full_at` <= now is
 * a full one, which need not be remembered. When a table is full those go; if there are none, the
 * one that is nearest to full. */
#include "proto/knocks.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/mem.h"
#include "base/name.h"
#include "proto/limits.h"

/* The emptiest that a bucket becomes: fines stop here, so that nobody is shut out for longer than
 * twice the time that a bucket takes to fill. */
#define LONGEST (2 * LIMIT_KNOCKS * LIMIT_KNOCK_NS)

/* A source's key with zeros behind it, or an account's name. */
#define KEY_SIZE ACCOUNT_BYTES_MAX
struct key {
    uint8_t bytes[KEY_SIZE];
};

struct record {
    struct key key;
    int64_t full_at;
    int64_t suspect_until, trusted_until;
    UT_hash_handle hh;
};

struct knocks {
    struct record *sources, *accounts;
    int64_t suspects_full_at; /* the bucket that all of them share */
};

struct knocks *knocks_new(void)
{
    return xcalloc(1, sizeof(struct knocks));
}

static void drop(struct record **table, struct record *r)
{
    HASH_DEL(*table, r);
    free(r);
}

static void drop_all(struct record **table)
{
    struct record *r, *next;

    HASH_ITER(hh, *table, r, next) {
        drop(table, r);
    }
}

void knocks_free(struct knocks *k)
{
    if (k == NULL)
        return;
    drop_all(&k->sources);
    drop_all(&k->accounts);
    free(k);
}

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* From then on the record says nothing that is not so of everybody. */
static int64_t forgotten_at(const struct record *r)
{
    return later(later(r->full_at, r->suspect_until), r->trusted_until);
}

static void make_room(struct record **table, int64_t now)
{
    struct record *r, *next, *first = NULL;

    HASH_ITER(hh, *table, r, next) {
        if (forgotten_at(r) <= now)
            drop(table, r);
        else if (first == NULL || r->full_at < first->full_at)
            first = r;
    }
    if (first != NULL && HASH_COUNT(*table) >= LIMIT_KNOCK_SOURCES)
        drop(table, first);
}

static struct key key_of(const void *bytes, size_t size)
{
    struct key key = {0};

    memcpy(key.bytes, bytes, size);
    return key;
}

static struct record *find(struct record *table, struct key key)
{
    struct record *r;

    HASH_FIND(hh, table, &key, KEY_SIZE, r);
    return r;
}

static struct record *find_or_make(struct record **table, struct key key, int64_t now)
{
    struct record *r = find(*table, key);

    if (r == NULL) {
        if (HASH_COUNT(*table) >= LIMIT_KNOCK_SOURCES)
            make_room(table, now);
        r = xcalloc(1, sizeof *r);
        r->key = key;
        r->full_at = now;
        HASH_ADD(hh, *table, key, KEY_SIZE, r);
    }
    r->full_at = later(r->full_at, now);
    return r;
}

/* In how long there will be one more in a bucket of LIMIT_KNOCKS that gets one each `each`; 0: there is. */
static int64_t wait_for(int64_t full_at, int64_t each, int64_t now)
{
    return later(later(full_at, now) + each - now - LIMIT_KNOCKS * each, 0);
}

int64_t knocks_take(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], int64_t now)
{
    struct record *r = find_or_make(&k->sources, key_of(source, SOURCE_KEY_SIZE), now);
    bool suspect = r->suspect_until > now;
    int64_t wait = wait_for(r->full_at, LIMIT_KNOCK_NS, now);

    if (suspect)
        wait = later(wait, wait_for(k->suspects_full_at, LIMIT_KNOCK_SUSPECTS_NS, now));
    if (wait > 0)
        return wait;
    r->full_at += LIMIT_KNOCK_NS;
    if (suspect)
        k->suspects_full_at = later(k->suspects_full_at, now) + LIMIT_KNOCK_SUSPECTS_NS;
    return 0;
}

/* Whether the account's devices have come no more often than a source may. */
static bool account_takes(struct knocks *k, const char *account, int64_t now)
{
    struct key key = key_of(account, strnlen(account, KEY_SIZE));
    struct record *r = find_or_make(&k->accounts, key, now);

    if (wait_for(r->full_at, LIMIT_KNOCK_NS, now) > 0)
        return false;
    r->full_at += LIMIT_KNOCK_NS;
    return true;
}

void knocks_give_back(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], const char *account,
                      int64_t now)
{
    struct record *r = find(k->sources, key_of(source, SOURCE_KEY_SIZE));

    if (!account_takes(k, account, now) || r == NULL)
        return;
    r->full_at -= LIMIT_KNOCK_NS;
    r->suspect_until = 0;
    r->trusted_until = now + LIMIT_KNOCK_TRUST_NS;
}

void knocks_fine(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], int64_t now)
{
    struct record *r = find_or_make(&k->sources, key_of(source, SOURCE_KEY_SIZE), now);

    r->full_at += LIMIT_KNOCK_FINE * LIMIT_KNOCK_NS;
    if (r->full_at > now + LONGEST)
        r->full_at = now + LONGEST;
    if (r->trusted_until <= now)
        r->suspect_until = now + LIMIT_KNOCK_SUSPECT_NS;
}

size_t knocks_sources(const struct knocks *k)
{
    return HASH_COUNT(k->sources);
}
