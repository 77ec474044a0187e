/* Invalidations: what mounts may have cached and is no longer so.
 *
 * Owns the batches. Thread: local.
 *
 * What one round of the loop invalidates is gathered and sent together, to every mount but the one
 * that asked for the change: its kernel knows. A batch is packed for each mount when its channel has
 * room, so a mount that is slow to take a hundred thousand of them costs one list, shared by all,
 * and not its channel's bound. */
#include "daemon/local_private.h"

#include "base/check.h"
#include "base/mem.h"

#define BATCH_ITEMS 256 /* with names of 255 bytes far below LIMIT_FRAME_MESSAGE */
#define PUSH_ROOM   (256u << 10)

struct invalid {
    uint64_t ino, parent, origin;
    char *name; /* NULL: the attributes */
    bool timed, renewed;
};

struct batch {
    struct batch *next;
    unsigned readers; /* mounts that have not had it */
    unsigned count;
    struct invalid items[BATCH_ITEMS];
};

static unsigned mounts_connected(const struct local *l)
{
    unsigned count = 0;

    for (const struct client *cl = l->clients; cl != NULL; cl = cl->next)
        count += cl->mount != NULL;
    return count;
}

static void batch_free(struct batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++)
        free(batch->items[i].name);
    free(batch);
}

/* Frees those at the front that everybody has had. */
static void trim(struct local *l)
{
    while (l->first_batch != NULL && l->first_batch->readers == 0) {
        struct batch *batch = l->first_batch;
        l->first_batch = batch->next;
        if (l->first_batch == NULL)
            l->last_batch = NULL;
        batch_free(batch);
    }
}

static void close_batch(struct local *l)
{
    struct batch *batch = l->open_batch;

    if (batch == NULL)
        return;
    l->open_batch = NULL;
    batch->readers = mounts_connected(l);
    if (batch->readers == 0) {
        batch_free(batch);
        return;
    }
    if (l->last_batch != NULL)
        l->last_batch->next = batch;
    else
        l->first_batch = batch;
    l->last_batch = batch;
    for (struct client *cl = l->clients; cl != NULL; cl = cl->next)
        if (cl->mount != NULL && cl->next_batch == NULL)
            cl->next_batch = batch;
}

/* `item` with a name that is the caller's. */
static void add(struct local *l, const struct invalid *item)
{
    struct batch *batch = l->open_batch;

    if (mounts_connected(l) == 0)
        return;
    if (batch == NULL)
        batch = l->open_batch = xcalloc(1, sizeof *batch);
    struct invalid *added = &batch->items[batch->count++];
    *added = *item;
    added->origin = l->origin;
    added->name = item->name == NULL ? NULL : xstrdup(item->name);
    if (batch->count == BATCH_ITEMS)
        close_batch(l);
}

static bool just_said(const struct batch *batch, uint64_t ino)
{
    if (batch != NULL)
        for (unsigned i = batch->count; i > 0 && i + 8 > batch->count; i--)
            if (batch->items[i - 1].ino == ino && batch->items[i - 1].name == NULL)
                return true;
    return false;
}

void push_invalid(struct local *l, uint64_t ino, uint64_t parent, const char *name)
{
    if (name != NULL || !just_said(l->open_batch, ino))
        add(l, &(struct invalid){.ino = ino, .parent = parent, .name = (char *)(uintptr_t)name});
}

void push_renewed(struct local *l, uint64_t ino, uint64_t parent, const char *name)
{
    add(l, &(struct invalid){
               .ino = ino, .parent = parent, .name = (char *)(uintptr_t)name, .renewed = true});
}

void push_timed(struct local *l, uint64_t ino)
{
    add(l, &(struct invalid){.ino = ino, .timed = true});
}

void push_all_names(struct local *l)
{
    const struct node *root = catalogue_node(l->catalogue, INO_ROOT), *child;
    uint64_t cookie = 0;

    push_invalid(l, INO_ROOT, 0, NULL);
    while ((child = catalogue_next(l->catalogue, root, &cookie)) != NULL)
        push_invalid(l, child->ino, INO_ROOT, child->name);
}

static void send_batch(struct client *cl, const struct batch *batch)
{
    Local__Invalid messages[BATCH_ITEMS], *pointers[BATCH_ITEMS];
    Local__Invalidate invalidate = LOCAL__INVALIDATE__INIT;

    for (unsigned i = 0; i < batch->count; i++) {
        const struct invalid *item = &batch->items[i];
        if (item->origin == cl->number)
            continue;
        Local__Invalid *m = &messages[invalidate.n_what];
        *m = (Local__Invalid)LOCAL__INVALID__INIT;
        m->ino = item->ino;
        m->parent = item->parent;
        m->timed = item->timed;
        m->renewed = item->renewed;
        if (item->name != NULL)
            m->name = item->name;
        pointers[invalidate.n_what++] = m;
    }
    invalidate.what = pointers;
    if (invalidate.n_what > 0)
        channel_send(cl->channel, CHANNEL_BULK, TYPE(INVALIDATE), 0, 0, &invalidate.base, NULL, 0);
}

void push_to(struct client *cl)
{
    struct local *l = cl->local;

    while (cl->next_batch != NULL && channel_queued(cl->channel, CHANNEL_BULK) < PUSH_ROOM) {
        struct batch *batch = cl->next_batch;
        cl->next_batch = batch->next;
        send_batch(cl, batch);
        batch->readers--;
    }
    trim(l);
}

void push_flush(struct local *l)
{
    close_batch(l);
    for (struct client *cl = l->clients; cl != NULL; cl = cl->next)
        if (cl->next_batch != NULL)
            push_to(cl);
}

/* What was said before it came does not concern it. The client counts as a mount already. */
void push_client_new(struct client *cl)
{
    struct local *l = cl->local;
    struct mount *mount = cl->mount;

    cl->mount = NULL;
    close_batch(l);
    cl->mount = mount;
    cl->next_batch = NULL;
}

void push_client_gone(struct client *cl)
{
    for (struct batch *batch = cl->next_batch; batch != NULL; batch = batch->next)
        batch->readers--;
    cl->next_batch = NULL;
    trim(cl->local);
}

void push_free(struct local *l)
{
    if (l->open_batch != NULL)
        batch_free(l->open_batch);
    while (l->first_batch != NULL) {
        struct batch *next = l->first_batch->next;
        batch_free(l->first_batch);
        l->first_batch = next;
    }
}
