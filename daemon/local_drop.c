/* Contents that lost their last name here.
 *
 * Owns nothing but their deletion. Thread: local; deleting is a worker's job. Nobody here has such a
 * content open any more, but other members may be streaming it: so it is kept for DROP_GRACE_NS, over
 * restarts as well, and served meanwhile, unless the disk is short of space. Then it goes, unless it has a name again, or a change of
 * ours that is not confirmed could bring one back.
 *
 * A large file that is saved every minute must not fill the disk with what it was: all that is kept so has an allowance, beyond which
 * the oldest goes first. The newest stays, however large: somebody may be in the middle of it. */
#include "daemon/local_private.h"

#include "base/clock.h"
#include "base/mem.h"
#include "daemon/session.h"

#define DROP_GRACE_NS (3600 * NS_PER_S)
#define LOOK_NS       (2 * NS_PER_S)
#define SPACE_SHORT   (64u << 20) /* and less than a sixteenth of the disk: no grace */
#define ALLOWANCE     (64u << 20) /* or, if that is more, a sixteenth of what is free */

void local_unused(struct local *l, const uint8_t root[HASH_SIZE])
{
    struct root_item *item;

    HASH_FIND(hh, l->unused, root, HASH_SIZE, item);
    if (item != NULL)
        return;
    item = xcalloc(1, sizeof *item);
    memcpy(item->root, root, HASH_SIZE);
    HASH_ADD(hh, l->unused, root, HASH_SIZE, item);
}

void local_put_aside(struct local *l)
{
    struct root_item *item, *next;
    int64_t until = clock_wall() + DROP_GRACE_NS;

    HASH_ITER(hh, l->unused, item, next) {
        HASH_DEL(l->unused, item);
        if (catalogue_with_root(l->catalogue, item->root, NULL) == NULL) {
            catalogue_dropped_put(l->catalogue, item->root, until);
            fetch_lost(l, item->root);
        }
        free(item);
    }
    l->aside_grew = true;
    if (!timer_pending(l->drop_timer))
        timer_set(l->drop_timer, DROP_GRACE_NS);
}

struct drop_task {
    struct task task;
    size_t count;
    uint8_t (*roots)[HASH_SIZE];
};

static void drop_work(struct task *task)
{
    struct drop_task *drop = (struct drop_task *)(void *)task;

    for (size_t i = 0; i < drop->count; i++)
        store_drop(task->local->daemon->store, drop->roots[i]);
}

static void drop_done(struct local *l, struct task *task)
{
    struct drop_task *drop = (struct drop_task *)(void *)task;
    struct store_summary summary;

    for (size_t i = 0; !l->stopped && i < drop->count; i++)
        if (!store_summary(l->daemon->store, drop->roots[i], &summary))
            session_dropped(l->daemon->session, drop->roots[i], 0);
    free(drop->roots);
    free(drop);
}

struct due {
    struct local *local;
    struct drop_task *drop;
};

static void due_one(void *arg, const uint8_t root[HASH_SIZE])
{
    struct due *due = arg;
    struct local *l = due->local;
    struct drop_task *drop = due->drop;

    if (catalogue_with_root(l->catalogue, root, NULL) != NULL) {
        catalogue_dropped_remove(l->catalogue, root); /* it has a name again, or is open */
    } else if (catalogue_may_return(l->catalogue, root)) {
        catalogue_dropped_put(l->catalogue, root, clock_wall() + DROP_GRACE_NS);
    } else {
        drop->roots = xrealloc(drop->roots, (drop->count + 1) * sizeof *drop->roots);
        memcpy(drop->roots[drop->count++], root, HASH_SIZE);
        catalogue_dropped_remove(l->catalogue, root);
    }
}

static bool is_short(struct local *l)
{
    uint64_t held, space, total;

    store_space(l->daemon->store, &held, &space, &total);
    return total > 0 && space < SPACE_SHORT && space < total / 16;
}

/* What is kept, and what of it goes before its time. */
struct aside {
    struct due due;
    uint64_t bytes, excess;
    uint8_t newest[HASH_SIZE];
};

static uint64_t bytes_of(const struct local *l, const uint8_t root[HASH_SIZE])
{
    struct store_summary summary;

    return store_summary(l->daemon->store, root, &summary) ? summary.bytes : 0;
}

static void add_aside(void *arg, const uint8_t root[HASH_SIZE])
{
    struct aside *aside = arg;

    aside->bytes += bytes_of(aside->due.local, root);
    memcpy(aside->newest, root, HASH_SIZE);
}

static void drop_excess(void *arg, const uint8_t root[HASH_SIZE])
{
    struct aside *aside = arg;
    uint64_t bytes = bytes_of(aside->due.local, root);
    size_t before = aside->due.drop->count;

    if (aside->excess == 0 || memcmp(root, aside->newest, HASH_SIZE) == 0)
        return;
    due_one(&aside->due, root);
    if (aside->due.drop->count > before)
        aside->excess -= bytes < aside->excess ? bytes : aside->excess;
}

static void send_drop(struct local *l, struct drop_task *drop)
{
    if (drop->count > 0)
        local_post(l, &drop->task, drop_work, drop_done);
    else
        free(drop);
}

static void hold_allowance(struct local *l)
{
    struct aside aside = {.due = {l, NULL}};
    uint64_t held, space, total;

    store_space(l->daemon->store, &held, &space, &total);
    uint64_t most = space / 16 > ALLOWANCE ? space / 16 : ALLOWANCE;
    (void)catalogue_dropped_due(l->catalogue, INT64_MAX, add_aside, &aside);
    if (aside.bytes <= most)
        return;
    aside.excess = aside.bytes - most;
    aside.due.drop = xcalloc(1, sizeof *aside.due.drop);
    (void)catalogue_dropped_due(l->catalogue, INT64_MAX, drop_excess, &aside);
    send_drop(l, aside.due.drop);
}

void local_drop_look(struct local *l, int64_t now)
{
    if (now < l->next_drop_look)
        return;
    l->next_drop_look = now + LOOK_NS;
    if (is_short(l))
        timer_set(l->drop_timer, 0);
    else if (l->aside_grew)
        hold_allowance(l);
    l->aside_grew = false;
}

void local_drop_due(void *arg)
{
    struct local *l = arg;
    struct due due = {l, xcalloc(1, sizeof *due.drop)};
    int64_t now = clock_wall() + (is_short(l) ? DROP_GRACE_NS : 0);
    int64_t next = catalogue_dropped_due(l->catalogue, now, due_one, &due);

    send_drop(l, due.drop);
    if (next != 0)
        timer_set(l->drop_timer, next > now ? next - now + NS_PER_S : NS_PER_S);
    local_after(l);
}
