/* Contents that lost their last name here.
 *
 * Owns nothing but their deletion. Thread: local; deleting is a worker's job. Nobody here has such a
 * content open any more, but other members may be streaming it: so it is kept for DROP_GRACE_NS, over
 * restarts as well, and served meanwhile, unless the disk is short of space. Then it goes, unless it has a name again, or a change of
 * ours that is not confirmed could bring one back. */
#include "daemon/local_private.h"

#include "base/clock.h"
#include "base/mem.h"
#include "daemon/session.h"

#define DROP_GRACE_NS (3600 * NS_PER_S)
#define LOOK_NS       (2 * NS_PER_S)
#define SPACE_SHORT   (64u << 20) /* and less than a sixteenth of the disk: no grace */

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
        if (catalogue_with_root(l->catalogue, item->root, NULL) == NULL)
            catalogue_dropped_put(l->catalogue, item->root, until);
        free(item);
    }
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

void local_drop_look(struct local *l, int64_t now)
{
    if (now < l->next_drop_look)
        return;
    l->next_drop_look = now + LOOK_NS;
    if (is_short(l))
        timer_set(l->drop_timer, 0);
}

void local_drop_due(void *arg)
{
    struct local *l = arg;
    struct due due = {l, xcalloc(1, sizeof *due.drop)};
    int64_t now = clock_wall() + (is_short(l) ? DROP_GRACE_NS : 0);
    int64_t next = catalogue_dropped_due(l->catalogue, now, due_one, &due);

    if (due.drop->count > 0)
        local_post(l, &due.drop->task, drop_work, drop_done);
    else
        free(due.drop);
    if (next != 0)
        timer_set(l->drop_timer, next > now ? next - now + NS_PER_S : NS_PER_S);
    local_after(l);
}
