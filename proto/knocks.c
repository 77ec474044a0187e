/* Budgets of handshakes, one for each source.
 *
 * Owns the table. A bucket is kept as the time at which it will be full again: `full_at` <= now is
 * a full one, which need not be remembered. When the table is full those go; if there are none, the
 * one that is nearest to full. */
#include "proto/knocks.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/mem.h"
#include "proto/limits.h"

/* The emptiest that a bucket becomes: fines stop here, so that nobody is shut out for longer than
 * twice the time that a bucket takes to fill. */
#define LONGEST (2 * LIMIT_KNOCKS * LIMIT_KNOCK_NS)

struct record {
    uint8_t key[SOURCE_KEY_SIZE];
    int64_t full_at;
    UT_hash_handle hh;
};

struct knocks {
    struct record *records;
};

struct knocks *knocks_new(void)
{
    return xcalloc(1, sizeof(struct knocks));
}

static void drop(struct knocks *k, struct record *r)
{
    HASH_DEL(k->records, r);
    free(r);
}

void knocks_free(struct knocks *k)
{
    struct record *r, *next;

    if (k == NULL)
        return;
    HASH_ITER(hh, k->records, r, next) {
        drop(k, r);
    }
    free(k);
}

static void make_room(struct knocks *k, int64_t now)
{
    struct record *r, *next, *fullest = NULL;

    HASH_ITER(hh, k->records, r, next) {
        if (r->full_at <= now)
            drop(k, r);
        else if (fullest == NULL || r->full_at < fullest->full_at)
            fullest = r;
    }
    if (fullest != NULL && HASH_COUNT(k->records) >= LIMIT_KNOCK_SOURCES)
        drop(k, fullest);
}

static struct record *find(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE])
{
    struct record *r;

    HASH_FIND(hh, k->records, source, SOURCE_KEY_SIZE, r);
    return r;
}

static struct record *find_or_make(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE],
                                   int64_t now)
{
    struct record *r = find(k, source);

    if (r == NULL) {
        if (HASH_COUNT(k->records) >= LIMIT_KNOCK_SOURCES)
            make_room(k, now);
        r = xcalloc(1, sizeof *r);
        memcpy(r->key, source, SOURCE_KEY_SIZE);
        r->full_at = now;
        HASH_ADD(hh, k->records, key, SOURCE_KEY_SIZE, r);
    }
    if (r->full_at < now)
        r->full_at = now;
    return r;
}

int64_t knocks_take(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], int64_t now)
{
    struct record *r = find_or_make(k, source, now);
    int64_t over = r->full_at + LIMIT_KNOCK_NS - now - LIMIT_KNOCKS * LIMIT_KNOCK_NS;

    if (over > 0)
        return over;
    r->full_at += LIMIT_KNOCK_NS;
    return 0;
}

void knocks_give_back(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], int64_t now)
{
    struct record *r = find(k, source);

    if (r == NULL)
        return;
    r->full_at -= LIMIT_KNOCK_NS;
    if (r->full_at <= now)
        drop(k, r);
}

void knocks_fine(struct knocks *k, const uint8_t source[SOURCE_KEY_SIZE], int64_t now)
{
    struct record *r = find_or_make(k, source, now);

    r->full_at += LIMIT_KNOCK_FINE * LIMIT_KNOCK_NS;
    if (r->full_at > now + LONGEST)
        r->full_at = now + LONGEST;
}

size_t knocks_sources(const struct knocks *k)
{
    return HASH_COUNT(k->records);
}
