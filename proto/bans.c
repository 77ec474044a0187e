/* The list of devices that did harm.
 *
 * Owns the records; a record is a count of strikes, a ban, or a ban that has run out (then the
 * strikes begin anew). The lock is held for memory operations only. */
#include "proto/bans.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/mem.h"
#include "proto/limits.h"

struct record {
    struct ban ban; /* begins with the device; until 0: strikes only */
    unsigned strikes;
    int64_t first; /* strike of those */
    UT_hash_handle hh;
};

struct bans {
    pthread_mutex_t lock;
    struct record *records;
};

struct bans *bans_new(void)
{
    struct bans *b = xcalloc(1, sizeof *b);

    CHECK(pthread_mutex_init(&b->lock, NULL) == 0);
    return b;
}

void bans_free(struct bans *b)
{
    struct record *r, *next;

    if (b == NULL)
        return;
    HASH_ITER(hh, b->records, r, next) {
        HASH_DEL(b->records, r);
        free(r);
    }
    CHECK(pthread_mutex_destroy(&b->lock) == 0);
    free(b);
}

static bool is_over(const struct record *r, int64_t now)
{
    return r->ban.until <= now && now - r->first > LIMIT_STRIKES_NS;
}

/* Drops what is over, and if that makes no room the ban that ends first. */
static void make_room(struct bans *b, int64_t now)
{
    struct record *r, *next, *least = NULL;

    HASH_ITER(hh, b->records, r, next) {
        if (is_over(r, now)) {
            HASH_DEL(b->records, r);
            free(r);
        } else if (least == NULL || r->ban.until < least->ban.until) {
            least = r;
        }
    }
    if (least != NULL && HASH_COUNT(b->records) >= LIMIT_BANS) {
        HASH_DEL(b->records, least);
        free(least);
    }
}

static struct record *get(struct bans *b, const uint8_t device[BANS_DEVICE_SIZE],
                          const char *account, int64_t now)
{
    struct record *r;

    HASH_FIND(hh, b->records, device, BANS_DEVICE_SIZE, r);
    if (r == NULL) {
        if (HASH_COUNT(b->records) >= LIMIT_BANS)
            make_room(b, now);
        r = xcalloc(1, sizeof *r);
        memcpy(r->ban.device, device, BANS_DEVICE_SIZE);
        r->first = now;
        HASH_ADD(hh, b->records, ban.device, BANS_DEVICE_SIZE, r);
    }
    snprintf(r->ban.account, sizeof r->ban.account, "%s", account);
    return r;
}

static void lock(struct bans *b)
{
    CHECK(pthread_mutex_lock(&b->lock) == 0);
}

static void unlock(struct bans *b)
{
    CHECK(pthread_mutex_unlock(&b->lock) == 0);
}

static void set(struct record *r, const char *why, int64_t now)
{
    snprintf(r->ban.why, sizeof r->ban.why, "%s", why);
    r->ban.until = now + LIMIT_BAN_NS;
    r->strikes = 0;
}

void bans_add(struct bans *b, const uint8_t device[BANS_DEVICE_SIZE], const char *account,
              const char *why, int64_t now)
{
    lock(b);
    set(get(b, device, account, now), why, now);
    unlock(b);
}

bool bans_strike(struct bans *b, const uint8_t device[BANS_DEVICE_SIZE], const char *account,
                 const char *what, int64_t now)
{
    lock(b);
    struct record *r = get(b, device, account, now);
    if (now - r->first > LIMIT_STRIKES_NS)
        r->strikes = 0;
    if (r->strikes == 0)
        r->first = now;
    if (++r->strikes >= LIMIT_STRIKES && r->ban.until <= now)
        set(r, what, now);
    bool banned = r->ban.until > now;
    unlock(b);
    return banned;
}

void bans_lift(struct bans *b, const uint8_t device[BANS_DEVICE_SIZE])
{
    struct record *r;

    lock(b);
    HASH_FIND(hh, b->records, device, BANS_DEVICE_SIZE, r);
    if (r != NULL) {
        HASH_DEL(b->records, r);
        free(r);
    }
    unlock(b);
}

bool bans_find(struct bans *b, const uint8_t device[BANS_DEVICE_SIZE], int64_t now, struct ban *out)
{
    struct record *r;

    lock(b);
    HASH_FIND(hh, b->records, device, BANS_DEVICE_SIZE, r);
    bool banned = r != NULL && r->ban.until > now;
    if (banned && out != NULL)
        *out = r->ban;
    unlock(b);
    return banned;
}

size_t bans_list(struct bans *b, int64_t now, struct ban *out, size_t max)
{
    struct record *r, *next;
    size_t count = 0;

    lock(b);
    HASH_ITER(hh, b->records, r, next) {
        if (r->ban.until > now && count < max)
            out[count++] = r->ban;
    }
    unlock(b);
    return count;
}
