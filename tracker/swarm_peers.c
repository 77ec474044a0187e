/* Whom to tell about whom: the choice of peers for one who asks, and news for those who wait.
 *
 * Owns wants and the list of contents with news; what is held is swarm.c's.
 *
 * Each newcomer asks and is given a random handful of peers, so nearly all acquaintances are made
 * by answers. News makes the rest: those who were given less than they asked for are told of
 * whoever comes; the others only of holders, and only while there are few (a first seed must reach
 * everybody; the hundredth need not). News of one content is told at most once in NEWS_INTERVAL, a
 * first one after NEWS_DELAY, so that what comes together is told together. */
#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/swarm_private.h"

#define NEWS_DELAY    (10 * NS_PER_MS)
#define NEWS_INTERVAL (200 * NS_PER_MS)

/* --- choosing
 * ---------------------------------------------------------------------------------------------- */

/* Draws numbers below `count` in random order, at most LIMIT_CANDIDATES of them. */
struct draw {
    uint32_t at, end;
    uint32_t numbers[LIMIT_CANDIDATES];
};

static void draw_start(struct swarm *s, struct draw *draw, uint32_t count)
{
    uint32_t start = 0;
    uint32_t step = 1;
    draw->at = 0;
    draw->end = count;
    if (count > LIMIT_CANDIDATES) {
        draw->end = LIMIT_CANDIDATES;
        step = count / LIMIT_CANDIDATES;
        start = (uint32_t)(swarm_random(s) % count);
    }
    for (uint32_t i = 0; i < draw->end; i++)
        draw->numbers[i] = (uint32_t)((start + (uint64_t)i * step) % count);
}

static bool draw_next(struct swarm *s, struct draw *draw, uint32_t *number)
{
    if (draw->at == draw->end)
        return false;
    uint32_t other = draw->at + (uint32_t)(swarm_random(s) % (draw->end - draw->at));
    *number = draw->numbers[other];
    draw->numbers[other] = draw->numbers[draw->at++];
    return true;
}

/* Has `h` a piece that the asker (`own`, NULL: has nothing) lacks? */
static bool is_useful(const struct holding *h, const struct holding *own)
{
    if (own == NULL)
        return h->pieces > 0 || h->map == NULL;
    if (own->map == NULL)
        return false;
    if (h->map == NULL || h->pieces > own->pieces)
        return true;
    for (size_t i = 0; i < bitmap_bytes(h->content->pieces); i++)
        if (h->map[i] & ~own->map[i])
            return true;
    return false;
}

/* What the asker has. What he has not said again since he came back may be gone, and be what he asks for. */
static struct holding *own_of(struct swarm *s, const struct swarm_device *d,
                              const struct content *c)
{
    struct holding *h = swarm_holding(s, d, c);
    return h != NULL && h->at_content == NOT_LISTED ? NULL : h;
}

static struct swarm_peer peer_of(const struct holding *h)
{
    return (struct swarm_peer){
        .device = h->device, .complete = h->map == NULL, .pieces = h->pieces};
}

/* Looks through the shorter of the two lists. */
static struct want *want_find(const struct swarm_device *d, const struct content *c)
{
    for (uint32_t i = 0; c->wants_count < d->wants_count && i < c->wants_count; i++)
        if (c->wants[i]->device == d)
            return c->wants[i];
    if (c->wants_count < d->wants_count)
        return NULL;
    for (uint32_t i = 0; i < d->wants_count; i++)
        if (d->wants[i]->content == c)
            return d->wants[i];
    return NULL;
}

static bool is_listed(const struct swarm_peer *peers, size_t count, const struct swarm_device *d)
{
    for (size_t i = 0; i < count; i++)
        if (peers[i].device == d)
            return true;
    return false;
}

static size_t choose(struct swarm *s, struct content *c, struct swarm_device *asker, size_t max,
                     struct swarm_peer *out)
{
    struct draw draw;
    uint32_t i;
    size_t count = 0;
    struct holding *own = own_of(s, asker, c);
    draw_start(s, &draw, c->holders_count);
    while (count < max && draw_next(s, &draw, &i)) {
        struct holding *h = c->holders[i];
        if (h->device != asker && is_useful(h, own))
            out[count++] = peer_of(h);
    }
    draw_start(s, &draw, c->wants_count);
    while (count < max && draw_next(s, &draw, &i)) {
        struct swarm_device *d = c->wants[i]->device;
        if (d == asker || c->wants[i]->barred || is_listed(out, count, d))
            continue;
        struct holding *h = swarm_holding(s, d, c);
        if (h != NULL && h->at_content != NOT_LISTED)
            out[count++] = peer_of(h);
        else
            out[count++] = (struct swarm_peer){.device = d};
    }
    return count;
}

/* --- wants
 * -----------------------------------------------------------------------------------------------------
 */

static void want_end(struct swarm *s, struct want *want)
{
    struct swarm_device *d = want->device;
    struct content *c = want->content;
    struct want *last = d->wants[--d->wants_count];
    d->wants[want->at_device] = last;
    last->at_device = want->at_device;
    last = c->wants[--c->wants_count];
    c->wants[want->at_content] = last;
    last->at_content = want->at_content;
    if (c->wants_count == 0)
        swarm_news_cancel(s, c);
    d->budget->wants--;
    free(want);
    swarm_content_release(s, c);
}

void swarm_wants_end(struct swarm *s, struct swarm_device *d)
{
    while (d->wants_count > 0)
        want_end(s, d->wants[d->wants_count - 1]);
}

const char *swarm_want(struct swarm *s, struct swarm_device *d, const struct swarm_key *key,
                       unsigned count, struct swarm_peer *out, size_t *found)
{
    CHECK(key->size <= FILE_SIZE_MAX && d->owner != NULL);
    if (count > LIMIT_PEERS)
        count = LIMIT_PEERS;
    *found = 0;
    struct content *c = swarm_content(s, key, false);
    struct want *want = c == NULL ? NULL : want_find(d, c);
    if (want == NULL) {
        if (d->wants_count >= LIMIT_WANTED)
            return "more files wanted than a device may";
        if (d->budget->wants >= LIMIT_WANTED_ACCOUNT)
            return "more files wanted than the devices of an account may";
        c = swarm_content(s, key, true);
        c->refs++;
        want = xcalloc(1, sizeof *want);
        want->barred = !swarm_may(s, d, c);
        /* The newcomer is news to the others, not to itself: told before it is on the list. */
        if (!want->barred)
            swarm_is_news(s, c, d);
        want->device = d;
        d->budget->wants++;
        want->content = c;
        want->at_device = d->wants_count;
        SWARM_PUSH(d->wants, d->wants_count, d->wants_room, want);
        want->at_content = c->wants_count;
        SWARM_PUSH(c->wants, c->wants_count, c->wants_room, want);
    }
    if (!want->barred)
        *found = choose(s, c, d, count, out);
    want->count = (uint16_t)count;
    want->given = (uint16_t)*found;
    return NULL;
}

static void want_judge(struct swarm *s, struct want *want, swarm_lost *lost, void *arg)
{
    struct content *c = want->content;
    bool barred = !swarm_may(s, want->device, c);
    if (barred == want->barred)
        return;
    want->barred = barred;
    if (!barred) {
        want->given = 0;
        swarm_is_news(s, c, want->device);
    }
    for (uint32_t i = 0; barred && lost != NULL && i < c->holders_count; i++)
        if (c->holders[i]->device != want->device)
            lost(arg, want->device, c->holders[i]->device, &c->key);
}

static void holding_judge(struct swarm *s, struct holding *h)
{
    if (h->barred) {
        swarm_count_in(s, h);
    } else if (h->at_content != NOT_LISTED && !swarm_may(s, h->device, h->content)) {
        swarm_count_out(h);
        swarm_holding_bar(h, true);
        swarm_budget_judge(s, h);
    }
}

void swarm_rejudge(struct swarm *s, struct swarm_device *d, swarm_lost *lost, void *arg)
{
    for (uint32_t i = 0; i < d->wants_count; i++)
        want_judge(s, d->wants[i], lost, arg);
    for (uint32_t i = 0; i < d->held_count; i++)
        holding_judge(s, d->held[i]);
}

/* Barred holdings are found only through their devices. */
void swarm_rejudge_content(struct swarm *s, const struct swarm_key *key, swarm_lost *lost,
                           void *arg)
{
    struct content *c = swarm_content(s, key, false);
    if (c == NULL)
        return;
    for (uint32_t i = 0; i < c->wants_count; i++)
        want_judge(s, c->wants[i], lost, arg);
    for (uint32_t i = c->holders_count; i-- > 0;)
        holding_judge(s, c->holders[i]);
    struct table_node *node = c->barred == 0 ? NULL : table_walk(&s->devices, NULL);
    for (; node != NULL && c->barred > 0; node = table_walk(&s->devices, node)) {
        struct holding *h = swarm_holding(s, (struct swarm_device *)(void *)node, c);
        if (h != NULL && h->barred)
            holding_judge(s, h);
    }
}

void swarm_unwant(struct swarm *s, struct swarm_device *d, const uint8_t root[HASH_SIZE])
{
    for (uint32_t i = d->wants_count; i-- > 0;)
        if (memcmp(d->wants[i]->content->key.root, root, HASH_SIZE) == 0)
            want_end(s, d->wants[i]);
}

/* --- news
 * --------------------------------------------------------------------------------------------------------
 */

void swarm_at(struct swarm *s, int64_t now)
{
    s->now = now;
}

void swarm_is_news(struct swarm *s, struct content *c, struct swarm_device *d)
{
    if (c->wants_count == 0 || (c->wants_count == 1 && c->wants[0]->device == d))
        return;
    for (uint32_t i = 0; i < c->news_count; i++)
        if (c->news[i] == d)
            return;
    if (c->news == NULL)
        c->news = xmalloc(LIMIT_NEWCOMERS * sizeof *c->news);
    if (c->news_count < LIMIT_NEWCOMERS)
        c->news[c->news_count++] = d;
    else
        c->news[swarm_random(s) % LIMIT_NEWCOMERS] = d;
    if (c->at_pending != NOT_LISTED)
        return;
    c->due = s->now + NEWS_DELAY;
    if (c->due < c->told + NEWS_INTERVAL)
        c->due = c->told + NEWS_INTERVAL;
    if (s->pending_count == 0 || c->due < s->news_due)
        s->news_due = c->due;
    c->at_pending = s->pending_count;
    SWARM_PUSH(s->pending, s->pending_count, s->pending_room, c);
}

void swarm_news_cancel(struct swarm *s, struct content *c)
{
    free(c->news);
    c->news = NULL;
    c->news_count = 0;
    if (c->at_pending == NOT_LISTED)
        return;
    struct content *last = s->pending[--s->pending_count];
    s->pending[c->at_pending] = last;
    last->at_pending = c->at_pending;
    c->at_pending = NOT_LISTED;
}

int64_t swarm_news_due(const struct swarm *s)
{
    return s->pending_count == 0 ? INT64_MAX : s->news_due;
}

static bool wants_openly(const struct swarm_device *d, const struct content *c)
{
    const struct want *want = want_find(d, c);
    return want != NULL && !want->barred;
}

/* What of the news one waiting device is told. */
static size_t news_for(struct swarm *s, struct content *c, struct want *want,
                       struct swarm_peer *out)
{
    size_t count = 0;
    bool few = c->holders_count <= LIMIT_PEERS;
    struct holding *own = own_of(s, want->device, c);
    for (uint32_t i = 0; i < c->news_count && count < LIMIT_PEERS; i++) {
        struct swarm_device *d = c->news[i];
        if (d == want->device || d->owner == NULL)
            continue;
        struct holding *h = swarm_holding(s, d, c);
        bool holds = h != NULL && h->at_content != NOT_LISTED && is_useful(h, own);
        if (want->given >= want->count && !(holds && few))
            continue;
        if (holds)
            out[count++] = peer_of(h);
        else if (wants_openly(d, c))
            out[count++] = (struct swarm_peer){.device = d};
        else
            continue;
        if (want->given < want->count)
            want->given++;
    }
    return count;
}

void swarm_news(struct swarm *s, int64_t now,
                void (*tell)(void *arg, struct swarm_device *to, const struct swarm_key *,
                             const struct swarm_peer *peers, size_t count),
                void *arg)
{
    struct swarm_peer peers[LIMIT_PEERS];
    s->now = now;
    s->news_due = INT64_MAX;
    for (uint32_t i = s->pending_count; i-- > 0;) {
        struct content *c = s->pending[i];
        if (c->due > now) {
            s->news_due = c->due < s->news_due ? c->due : s->news_due;
            continue;
        }
        for (uint32_t w = 0; w < c->wants_count; w++) {
            size_t count = c->wants[w]->barred ? 0 : news_for(s, c, c->wants[w], peers);
            if (count > 0)
                tell(arg, c->wants[w]->device, &c->key, peers, count);
        }
        c->told = now;
        swarm_news_cancel(s, c);
    }
}
