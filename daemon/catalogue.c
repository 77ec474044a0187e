/* The catalogue's replica: opening, looking, and the small tables beside the tree.
 *
 * Owns struct catalogue. Leaves the tree's memory to catalogue_tree.c, changes of ours to
 * catalogue_change.c and catalogue_journal.c, the tracker's to catalogue_remote.c, the data base to
 * catalogue_db.c. Thread: local. Memory: about 250 bytes an entry, of which 120 are struct node. */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"

#define FIRST_INO    16 /* numbers below are for programs to give a meaning to */
#define FIRST_COOKIE 16
#define LOAD_TRIES   5 /* what a failing disk does not give it may give again */

struct dropped {
    struct dropped_row row;
    bool dirty; /* until < 0: the row goes */
    UT_hash_handle hh;
};

/* --- life ------------------------------------------------------------------------------------- */

static void plant_root(struct catalogue *c)
{
    c->root = tree_new(c, INO_ROOT, NODE_DIRECTORY, "");
    c->root->node.mode = 0755;
    tree_set_id(c, c->root, 1);
}

/* Frees it as it is, whatever is not committed. */
static void discard(struct catalogue *);

/* NULL and *fault; `again`: that may be different the next time. */
static struct catalogue *open_once(const char *path, const struct catalogue_events *events,
                                   void *arg, const char **fault, bool *again)
{
    struct catalogue *c = xcalloc(1, sizeof *c);

    c->events = events;
    c->arg = arg;
    c->hash_seed = random_u64();
    c->path = xstrdup(path);
    c->swarm = xstrdup("");
    c->next_op = c->op_limit = 1;
    c->next_ino = c->ino_limit = FIRST_INO;
    c->next_cookie = FIRST_COOKIE;
    if (!db_open(c, fault)) {
        free(c->path);
        free(c->swarm);
        free(c);
        return NULL;
    }
    plant_root(c);
    bool good = db_load(c);
    *again = c->unreadable;
    if (c->unreadable) {
        *fault = "the catalogue's data base (state.db) cannot be read";
        discard(c);
        return NULL;
    }
    if (!good)
        log_warning("%s: some of its rows made no sense and are left out", path);
    return c;
}

struct catalogue *catalogue_open(const char *path, const struct catalogue_events *events, void *arg,
                                 const char **fault)
{
    struct catalogue *c = NULL;
    bool again = true;

    /* Half of it is nothing to go on with: who writes the rest down next would have forgotten what was not read. */
    for (int i = 0; i < LOAD_TRIES && c == NULL && again; i++) {
        again = false;
        c = open_once(path, events, arg, fault, &again);
    }
    return c;
}

static void free_dropped(struct catalogue *c)
{
    struct dropped *d, *next;

    HASH_ITER(hh, c->dropped, d, next) {
        HASH_DEL(c->dropped, d);
        free(d);
    }
}

static void discard(struct catalogue *c)
{
    journal_clear(c);
    tree_free_all(c);
    db_close(c);
    free_dropped(c);
    free(c->ops);
    free(c->hidden.items);
    free(c->dirty.items);
    free(c->op_rows.items);
    free(c->working);
    free(c->path);
    free(c->swarm);
    free(c);
}

void catalogue_close(struct catalogue *c)
{
    if (c == NULL)
        return;
    (void)catalogue_commit(c, true);
    discard(c);
}

bool catalogue_is_dirty(const struct catalogue *c)
{
    bool dirty = c->dirty.count > 0 || c->op_rows.count > 0 || c->working_dirty ||
                 c->dropped_dirty || c->meta_dirty;

    return dirty || c->ops_new > 0 || c->limits_dirty;
}

int catalogue_commit(struct catalogue *c, bool safe)
{
    return db_commit(c, safe);
}

int catalogue_reset(struct catalogue *c, const char *swarm)
{
    struct working_row *working = c->working;
    int error = db_wipe(c);

    if (error != 0)
        return error;
    journal_clear(c);
    tree_free_all(c);
    c->hidden.count = c->dirty.count = c->op_rows.count = 0;
    c->generation_known = c->resyncing = c->heard = false;
    memset(c->generation, 0, sizeof c->generation);
    c->seq = 0;
    c->working = NULL;
    c->working_count = 0;
    free(working);
    free(c->swarm);
    c->swarm = xstrdup(swarm);
    c->meta_dirty = c->working_dirty = true;
    plant_root(c);
    return 0;
}

/* --- looking ---------------------------------------------------------------------------------- */

const struct node *catalogue_with_id(const struct catalogue *c, uint64_t id)
{
    const struct entry *e = id == 1 ? c->root : tree_find(c, BY_ID, id);

    return e == NULL ? NULL : &e->node;
}

const struct node *catalogue_node(const struct catalogue *c, uint64_t ino)
{
    const struct entry *e = tree_find(c, BY_INO, ino);

    return e == NULL ? NULL : &e->node;
}

const struct node *catalogue_lookup(const struct catalogue *c, uint64_t parent, const char *name)
{
    const struct entry *d = tree_find(c, BY_INO, parent);
    const struct entry *e = d == NULL ? NULL : tree_child(c, d, name);

    return e == NULL ? NULL : &e->node;
}

const struct node *catalogue_next(const struct catalogue *c, const struct node *directory,
                                  uint64_t *cookie)
{
    const struct entry *e = tree_next_child((const struct entry *)(const void *)directory, cookie);

    (void)c;
    return e == NULL ? NULL : &e->node;
}

bool catalogue_is_linked(const struct catalogue *c, const struct node *node)
{
    return tree_is_linked(c, (const struct entry *)(const void *)node);
}

bool catalogue_is_attached(const struct catalogue *c, const struct node *node)
{
    return tree_is_attached(c, (const struct entry *)(const void *)node);
}

char *catalogue_path(const struct catalogue *c, const struct node *node)
{
    size_t size = 0;

    if (!catalogue_is_attached(c, node))
        return NULL;
    for (const struct node *n = node; n->parent != NULL; n = n->parent)
        size += strlen(n->name) + 1;
    if (size == 0)
        return xstrdup("/");
    char *path = xmalloc(size + 1), *at = path + size;
    *at = '\0';
    for (const struct node *n = node; n->parent != NULL; n = n->parent) {
        size_t length = strlen(n->name);
        at -= length;
        memcpy(at, n->name, length);
        *--at = '/';
    }
    return path;
}

const struct node *catalogue_resolve(const struct catalogue *c, const char *path, int *error)
{
    const struct entry *e = c->root;
    char name[NAME_BYTES_MAX + 1];

    *error = 0;
    while (e != NULL) {
        path += strspn(path, "/");
        size_t length = strcspn(path, "/");
        if (length == 0)
            return &e->node;
        bool here = length == 1 && path[0] == '.';
        if (e->node.kind != NODE_DIRECTORY) {
            *error = -ENOTDIR;
            return NULL;
        }
        if (length > NAME_BYTES_MAX)
            break;
        memcpy(name, path, length);
        name[length] = '\0';
        path += length;
        if (!here)
            e = tree_child(c, e, name);
    }
    *error = -ENOENT;
    return NULL;
}

const struct node *catalogue_with_root(const struct catalogue *c, const uint8_t root[HASH_SIZE],
                                       const struct node *previous)
{
    const struct entry *e = tree_with_root(c, root, (const struct entry *)(const void *)previous);

    return e == NULL ? NULL : &e->node;
}

bool catalogue_may_return(const struct catalogue *c, const uint8_t root[HASH_SIZE])
{
    for (size_t i = c->ops_first; i < c->ops_end; i++) {
        const struct op *op = c->ops[i];
        if (op == NULL)
            continue;
        const uint64_t inos[2] = {op->ino, op->other};
        for (int k = 0; k < 2; k++) {
            const struct entry *e = tree_find(c, BY_INO, inos[k]);
            const Tracker__Entry *r = e == NULL || e->pending == NULL ? NULL : e->pending->held;
            if (r != NULL && r->root.len == HASH_SIZE && memcmp(r->root.data, root, HASH_SIZE) == 0)
                return true;
        }
    }
    for (size_t i = 0; i < c->hidden.count; i++) {
        const struct entry *e = tree_find(c, BY_INO, c->hidden.items[i]);
        const Tracker__Entry *r = e == NULL || e->pending == NULL ? NULL : e->pending->held;
        if (r != NULL && r->root.len == HASH_SIZE && memcmp(r->root.data, root, HASH_SIZE) == 0)
            return true;
    }
    return false;
}

uint64_t catalogue_entries(const struct catalogue *c)
{
    return c->entries;
}

void catalogue_each_pinned(const struct catalogue *c, void (*each)(void *arg, const struct node *),
                           void *arg)
{
    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++)
        for (const struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO])
            if (e->node.pinned && e != c->root && tree_is_attached(c, e))
                each(arg, &e->node);
}

/* --- who and where ---------------------------------------------------------------------------- */

void catalogue_set_account(struct catalogue *c, const char *account)
{
    if (strcmp(c->account, account) == 0)
        return;
    snprintf(c->account, sizeof c->account, "%s", account);
    c->meta_dirty = true;
}

const char *catalogue_account(const struct catalogue *c)
{
    return c->account;
}

const char *catalogue_swarm(const struct catalogue *c)
{
    return c->swarm;
}

void catalogue_set_swarm(struct catalogue *c, const char *swarm)
{
    char *copy = xstrdup(swarm);

    free(c->swarm);
    c->swarm = copy;
    c->meta_dirty = true;
}

/* --- working files ---------------------------------------------------------------------------- */

static struct working_row *working_row(const struct catalogue *c, uint64_t number)
{
    for (size_t i = 0; i < c->working_count; i++)
        if (c->working[i].number == number)
            return &c->working[i];
    return NULL;
}

void catalogue_each_writing(const struct catalogue *c, void (*each)(void *arg, uint64_t ino),
                            void *arg)
{
    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++)
        for (const struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO])
            if ((e->flags & FLAG_WRITING) != 0)
                each(arg, e->node.ino);
}

void catalogue_working_put(struct catalogue *c, const struct working_row *row)
{
    struct working_row *there = working_row(c, row->number);

    if (there == NULL) {
        c->working = xrealloc(c->working, (c->working_count + 1) * sizeof *c->working);
        there = &c->working[c->working_count++];
    }
    *there = *row;
    c->working_dirty = true;
}

void catalogue_working_remove(struct catalogue *c, uint64_t number)
{
    struct working_row *there = working_row(c, number);

    if (there == NULL)
        return;
    *there = c->working[--c->working_count];
    c->working_dirty = true;
}

void catalogue_working_each(struct catalogue *c,
                            void (*each)(void *arg, const struct working_row *), void *arg)
{
    for (size_t i = 0; i < c->working_count; i++)
        each(arg, &c->working[i]);
}

/* --- dropped contents ------------------------------------------------------------------------- */

static struct dropped *dropped_get(struct catalogue *c, const uint8_t root[HASH_SIZE], bool create)
{
    struct dropped *d;

    HASH_FIND(hh, c->dropped, root, HASH_SIZE, d);
    if (d == NULL && create) {
        d = xcalloc(1, sizeof *d);
        memcpy(d->row.root, root, HASH_SIZE);
        HASH_ADD(hh, c->dropped, row.root, HASH_SIZE, d);
    }
    return d;
}

void catalogue_dropped_put(struct catalogue *c, const uint8_t root[HASH_SIZE], int64_t until)
{
    struct dropped *d = dropped_get(c, root, true);

    d->row.until = until;
    d->dirty = c->dropped_dirty = true;
}

void catalogue_dropped_remove(struct catalogue *c, const uint8_t root[HASH_SIZE])
{
    struct dropped *d = dropped_get(c, root, false);

    if (d == NULL)
        return;
    d->row.until = -1;
    d->dirty = c->dropped_dirty = true;
}

int64_t catalogue_dropped_due(struct catalogue *c, int64_t now,
                              void (*each)(void *arg, const uint8_t root[HASH_SIZE]), void *arg)
{
    int64_t next = 0;
    struct dropped *d, *tmp;

    HASH_ITER(hh, c->dropped, d, tmp) {
        if (d->row.until < 0)
            continue;
        if (d->row.until <= now)
            each(arg, d->row.root);
        if (d->row.until > now && (next == 0 || d->row.until < next))
            next = d->row.until;
    }
    return next;
}

void dropped_load(struct catalogue *c, const struct dropped_row *row)
{
    dropped_get(c, row->root, true)->row.until = row->until;
}

bool dropped_each_dirty(struct catalogue *c,
                        bool (*write)(struct catalogue *, const struct dropped_row *))
{
    struct dropped *d, *next;

    HASH_ITER(hh, c->dropped, d, next) {
        if (d->dirty && !write(c, &d->row))
            return false;
    }
    return true;
}

void dropped_written(struct catalogue *c)
{
    struct dropped *d, *next;

    HASH_ITER(hh, c->dropped, d, next) {
        if (!d->dirty)
            continue;
        d->dirty = false;
        if (d->row.until < 0) {
            HASH_DEL(c->dropped, d);
            free(d);
        }
    }
}
