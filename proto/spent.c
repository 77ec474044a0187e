/* Debts of accounts.
 *
 * Owns the table. A debt is kept as the time at which it will be paid; one that is paid need not be remembered. When the table is
 * full those go; if there are none, the smallest one. */
#include "proto/spent.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/mem.h"
#include "base/name.h"
#include "proto/limits.h"

struct record {
    char account[ACCOUNT_BYTES_MAX + 1];
    int64_t paid_at;
    UT_hash_handle hh;
};

struct spent {
    struct record *accounts;
    int64_t per_second;
};

struct spent *spent_new(int64_t per_second)
{
    struct spent *s = xcalloc(1, sizeof *s);

    CHECK(per_second > 0);
    s->per_second = per_second;
    return s;
}

static void drop(struct spent *s, struct record *r)
{
    HASH_DEL(s->accounts, r);
    free(r);
}

void spent_free(struct spent *s)
{
    struct record *r, *next;

    if (s == NULL)
        return;
    HASH_ITER(hh, s->accounts, r, next) {
        drop(s, r);
    }
    free(s);
}

static void make_room(struct spent *s, int64_t now)
{
    struct record *r, *next, *least = NULL;

    HASH_ITER(hh, s->accounts, r, next) {
        if (r->paid_at <= now)
            drop(s, r);
        else if (least == NULL || r->paid_at < least->paid_at)
            least = r;
    }
    if (least != NULL && HASH_COUNT(s->accounts) >= LIMIT_SPENT_ACCOUNTS)
        drop(s, least);
}

static struct record *find(const struct spent *s, const char *account)
{
    struct record *r;

    HASH_FIND_STR(s->accounts, account, r);
    return r;
}

/* How long it takes to pay that, and the other way. */
static int64_t time_of(const struct spent *s, int64_t cost)
{
    return (int64_t)((double)cost * (double)NS_PER_S / (double)s->per_second);
}

static int64_t cost_of(const struct spent *s, int64_t time)
{
    return (int64_t)((double)time * (double)s->per_second / (double)NS_PER_S);
}

void spent_add(struct spent *s, const char *account, int64_t cost, int64_t now)
{
    struct record *r = find(s, account);

    CHECK(strlen(account) <= ACCOUNT_BYTES_MAX);
    if (cost <= 0)
        return;
    if (r == NULL) {
        if (HASH_COUNT(s->accounts) >= LIMIT_SPENT_ACCOUNTS)
            make_room(s, now);
        r = xcalloc(1, sizeof *r);
        memcpy(r->account, account, strlen(account) + 1);
        HASH_ADD_STR(s->accounts, account, r);
    }
    if (r->paid_at < now)
        r->paid_at = now;
    r->paid_at += time_of(s, cost);
    if (r->paid_at > now + LIMIT_SPENT_NS)
        r->paid_at = now + LIMIT_SPENT_NS;
}

int64_t spent_take(struct spent *s, const char *account, int64_t most, int64_t now)
{
    struct record *r = find(s, account);
    int64_t owed = r == NULL || r->paid_at <= now ? 0 : cost_of(s, r->paid_at - now);

    if (r != NULL && owed <= most)
        drop(s, r);
    else if (r != NULL)
        r->paid_at -= time_of(s, most);
    return owed < most ? owed : most;
}

size_t spent_accounts(const struct spent *s)
{
    return HASH_COUNT(s->accounts);
}
