/* What an account's devices may announce, or wait for, of what nobody else knows of.
 *
 * Owns the accounts' budgets; leaves holdings to swarm.c and wants to swarm_peers.c. A content that is in the catalogue and
 * may be seen is memory that its publisher accounts for; any other one is memory that whoever names it asks for, so it is
 * counted: for all devices of an account together, as one who means harm logs in with many. Pure, one thread.
 *
 *   unseen  set when a holding is made or judged again and its content is barred to its device or known to no catalogue;
 *           it stays while the device is away, so that coming back, or announcing from scratch, frees nothing.
 *
 * Invariants: 1. device.unseen = number of its holdings that are unseen, .unseen_pieces = pieces of those with maps;
 * 2. a budget holds the sums of its devices. */
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/swarm_private.h"

void swarm_set_known(struct swarm *s, bool (*known)(void *arg, const uint8_t root[HASH_SIZE]))
{
    s->known = known;
}

static bool is_seen(const struct swarm *s, const struct swarm_device *d, const struct content *c)
{
    return (s->known == NULL || s->known(s->may_arg, c->key.root)) && swarm_may(s, d, c);
}

static void count(struct holding *h, bool unseen)
{
    struct swarm_device *d = h->device;
    uint64_t pieces = h->map == NULL ? 0 : h->content->pieces;
    if (h->unseen == unseen)
        return;
    h->unseen = unseen;
    if (!unseen) {
        CHECK(d->unseen > 0 && d->unseen_pieces >= pieces);
        pieces = 0 - pieces;
    }
    d->unseen += unseen ? 1 : UINT32_MAX;
    d->budget->unseen += unseen ? 1 : UINT32_MAX;
    d->unseen_pieces += pieces;
    d->budget->unseen_pieces += pieces;
}

void swarm_budget_judge(struct swarm *s, struct holding *h)
{
    count(h, !is_seen(s, h->device, h->content));
}

void swarm_budget_release(struct holding *h)
{
    count(h, false);
}

void swarm_map_counts(struct holding *h, int sign)
{
    struct swarm_device *d = h->device;
    uint64_t pieces = sign < 0 ? 0 - (uint64_t)h->content->pieces : h->content->pieces;
    d->map_pieces += pieces;
    if (!h->unseen)
        return;
    d->unseen_pieces += pieces;
    d->budget->unseen_pieces += pieces;
}

const char *swarm_budget_fault(const struct swarm *s, const struct swarm_device *d,
                               const struct content *c, const struct holding *h, bool map)
{
    bool more = h == NULL && d->budget->unseen >= LIMIT_ANNOUNCED_UNSEEN;
    bool pieces = map && (h == NULL || h->map == NULL) &&
                  d->budget->unseen_pieces + c->pieces > LIMIT_ANNOUNCED_UNSEEN_PIECES;
    if ((!more && !pieces) || is_seen(s, d, c))
        return NULL;
    return more ? "more files announced that are in no folder it may see than an account may"
                : "more pieces of such incomplete files announced than an account may";
}

void swarm_published(struct swarm *s, const struct swarm_key *key)
{
    struct content *c = swarm_content(s, key, false);
    for (uint32_t i = 0; c != NULL && i < c->holders_count; i++)
        swarm_budget_release(c->holders[i]);
}

static struct swarm_budget *budget_of(struct swarm *s, const char *account)
{
    uint64_t hash = table_hash(s->seed, account, strlen(account));
    struct table_node *node = table_first(&s->budgets, hash);
    for (; node != NULL; node = table_next(node)) {
        struct swarm_budget *b = (struct swarm_budget *)(void *)node;
        if (strcmp(b->account, account) == 0)
            return b;
    }
    struct swarm_budget *b = xcalloc(1, sizeof *b);
    CHECK(strlen(account) < sizeof b->account);
    memcpy(b->account, account, strlen(account) + 1);
    table_add(&s->budgets, &b->node, hash);
    return b;
}

void swarm_device_of(struct swarm *s, struct swarm_device *d, const char *account)
{
    struct swarm_budget *to = budget_of(s, account), *from = d->budget;
    CHECK(d->owner == NULL && d->wants_count == 0);
    from->unseen -= d->unseen;
    from->unseen_pieces -= d->unseen_pieces;
    to->unseen += d->unseen;
    to->unseen_pieces += d->unseen_pieces;
    d->budget = to;
}

void swarm_budgets_free(struct swarm *s)
{
    struct table_node *node;
    while ((node = table_walk(&s->budgets, NULL)) != NULL) {
        table_remove(&s->budgets, node);
        free((struct swarm_budget *)(void *)node);
    }
    table_clear(&s->budgets);
}
