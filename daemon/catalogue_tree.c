/* The tree in memory: entries, their hash tables, the children of each directory.
 *
 * Owns the memory of all entries. Leaves what they mean (ours, the tracker's, held back) to the
 * other files. Thread: local.
 *
 * Four tables with chains through the entries: by (directory, name), by ino, by the tracker's id,
 * by root. The hash is seeded, so that nobody outside can choose names that meet in one chain. A
 * directory's children lie in an array in the order of their cookies; cookies only grow, so adding
 * is appending; who leaves makes a hole that still says its cookie, so that a search by halves goes
 * on to work; holes are swept when they are half of it. */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

static const uint8_t zero_root[HASH_SIZE];

void vector_add(struct vector *v, uint64_t item)
{
    if (v->count == v->room) {
        v->room = v->room == 0 ? 16 : 2 * v->room;
        v->items = xrealloc(v->items, v->room * sizeof *v->items);
    }
    v->items[v->count++] = item;
}

/* --- hash tables ------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 32;
}

static uint64_t hash_number(const struct catalogue *c, uint64_t key)
{
    return mix(key ^ c->hash_seed);
}

static uint64_t hash_name(const struct catalogue *c, uint64_t directory, const char *name)
{
    uint64_t h = mix(directory ^ c->hash_seed);
    size_t left = strlen(name);
    uint64_t word;

    for (; left >= 8; left -= 8, name += 8) {
        memcpy(&word, name, 8);
        h = mix(h ^ word);
    }
    word = 0;
    memcpy(&word, name, left);
    return mix(h ^ word ^ (uint64_t)left << 56);
}

static uint64_t hash_root(const struct catalogue *c, const uint8_t *root)
{
    uint64_t word;

    memcpy(&word, root, sizeof word); /* a root is a hash already, but a stranger may choose it */
    return mix(word ^ c->hash_seed);
}

static uint64_t hash_of(const struct catalogue *c, enum table t, const struct entry *e)
{
    switch (t) {
    case BY_NAME:
        return hash_name(c, e->node.parent->ino, e->node.name);
    case BY_INO:
        return hash_number(c, e->node.ino);
    case BY_ID:
        return hash_number(c, e->node.id);
    default:
        return hash_root(c, e->node.root);
    }
}

static void table_grow(struct catalogue *c, enum table t)
{
    size_t size = c->tables[t].buckets == NULL ? 256 : 2 * (c->tables[t].mask + 1);
    struct entry **old = c->tables[t].buckets;
    size_t old_size = old == NULL ? 0 : c->tables[t].mask + 1;

    c->tables[t].buckets = xcalloc(size, sizeof *old);
    c->tables[t].mask = size - 1;
    for (size_t i = 0; i < old_size; i++) {
        for (struct entry *e = old[i], *next; e != NULL; e = next) {
            struct entry **bucket = &c->tables[t].buckets[hash_of(c, t, e) & (size - 1)];
            next = e->next[t];
            e->next[t] = *bucket;
            *bucket = e;
        }
    }
    free(old);
}

static void table_add(struct catalogue *c, enum table t, struct entry *e)
{
    if (c->tables[t].buckets == NULL || c->tables[t].count > 2 * c->tables[t].mask)
        table_grow(c, t);
    struct entry **bucket = &c->tables[t].buckets[hash_of(c, t, e) & c->tables[t].mask];
    e->next[t] = *bucket;
    *bucket = e;
    c->tables[t].count++;
}

static void table_remove(struct catalogue *c, enum table t, struct entry *e)
{
    struct entry **at = &c->tables[t].buckets[hash_of(c, t, e) & c->tables[t].mask];

    while (*at != e) {
        CHECK(*at != NULL);
        at = &(*at)->next[t];
    }
    *at = e->next[t];
    e->next[t] = NULL;
    c->tables[t].count--;
}

struct entry *tree_find(const struct catalogue *c, enum table t, uint64_t key)
{
    if (key == 0 || c->tables[t].buckets == NULL)
        return NULL;
    struct entry *e = c->tables[t].buckets[hash_number(c, key) & c->tables[t].mask];
    while (e != NULL && (t == BY_INO ? e->node.ino : e->node.id) != key)
        e = e->next[t];
    return e;
}

struct entry *tree_child(const struct catalogue *c, const struct entry *directory, const char *name)
{
    if (c->tables[BY_NAME].buckets == NULL)
        return NULL;
    uint64_t hash = hash_name(c, directory->node.ino, name);
    struct entry *e = c->tables[BY_NAME].buckets[hash & c->tables[BY_NAME].mask];
    while (e != NULL && (e->node.parent != &directory->node || strcmp(e->node.name, name) != 0))
        e = e->next[BY_NAME];
    return e;
}

struct entry *tree_with_root(const struct catalogue *c, const uint8_t root[HASH_SIZE],
                             const struct entry *previous)
{
    struct entry *e;

    if (previous != NULL)
        e = previous->next[BY_ROOT];
    else if (c->tables[BY_ROOT].buckets == NULL)
        return NULL;
    else
        e = c->tables[BY_ROOT].buckets[hash_root(c, root) & c->tables[BY_ROOT].mask];
    while (e != NULL && memcmp(e->node.root, root, HASH_SIZE) != 0)
        e = e->next[BY_ROOT];
    return e;
}

/* --- children --------------------------------------------------------------------------------- */

static struct entry *slot_entry(uintptr_t slot)
{
    return (slot & 1) != 0 ? NULL : (struct entry *)slot;
}

static uint64_t slot_cookie(uintptr_t slot)
{
    return (slot & 1) != 0 ? (uint64_t)slot >> 1 : ((struct entry *)slot)->cookie;
}

/* The first slot whose cookie is greater than `cookie`. */
static uint32_t slot_behind(const struct children *children, uint64_t cookie)
{
    uint32_t low = 0, high = children->used;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (slot_cookie(children->slots[middle]) > cookie)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static void sweep_holes(struct children *children)
{
    uint32_t to = 0;

    for (uint32_t i = 0; i < children->used; i++)
        if ((children->slots[i] & 1) == 0)
            children->slots[to++] = children->slots[i];
    children->used = to;
}

static void children_add(struct entry *directory, struct entry *e)
{
    struct children *children = directory->children;

    if (children == NULL)
        children = directory->children = xcalloc(1, sizeof *children);
    if (children->used == children->room) {
        if (children->live < children->used / 2)
            sweep_holes(children);
        else {
            children->room += children->room / 2 + 4;
            children->slots = xrealloc(children->slots, children->room * sizeof *children->slots);
        }
    }
    uint32_t at = slot_behind(children, e->cookie);
    memmove(&children->slots[at + 1], &children->slots[at],
            (children->used - at) * sizeof *children->slots);
    children->slots[at] = (uintptr_t)e;
    children->used++;
    children->live++;
    children->folders += e->node.kind == NODE_DIRECTORY;
}

static void children_remove(struct entry *directory, struct entry *e)
{
    struct children *children = directory->children;
    uint32_t at = slot_behind(children, e->cookie) - 1;

    /* Holes may share a cookie with one that came back to its place. */
    while (children->slots[at] != (uintptr_t)e) {
        CHECK(at > 0 && slot_cookie(children->slots[at]) == e->cookie);
        at--;
    }
    children->slots[at] = (uintptr_t)(e->cookie << 1 | 1);
    children->live--;
    children->folders -= e->node.kind == NODE_DIRECTORY;
    if (children->live == 0) {
        free(children->slots);
        free(children);
        directory->children = NULL;
    }
}

uint32_t tree_children(const struct entry *directory)
{
    return directory->children == NULL ? 0 : directory->children->live;
}

uint32_t catalogue_folders(const struct node *directory)
{
    const struct children *children = ((const struct entry *)(const void *)directory)->children;

    return children == NULL ? 0 : children->folders;
}

struct entry *tree_next_child(const struct entry *directory, uint64_t *cookie)
{
    const struct children *children = directory->children;

    if (children == NULL)
        return NULL;
    for (uint32_t i = slot_behind(children, *cookie); i < children->used; i++) {
        struct entry *e = slot_entry(children->slots[i]);
        if (e != NULL) {
            *cookie = e->cookie;
            return e;
        }
    }
    return NULL;
}

/* --- entries ---------------------------------------------------------------------------------- */

static uint64_t new_ino(struct catalogue *c)
{
    if (c->next_ino >= c->ino_limit)
        db_reserve(c, false);
    return c->next_ino++;
}

struct entry *tree_new(struct catalogue *c, uint64_t ino, enum node_kind kind, const char *name)
{
    size_t length = strlen(name);
    CHECK(length <= NAME_BYTES_MAX);
    struct entry *e = xcalloc(1, sizeof *e + length + 1);

    e->name_room = (uint8_t)length;
    memcpy(e->inline_name, name, length + 1);
    e->node.name = e->inline_name;
    e->node.ino = ino != 0 ? ino : new_ino(c);
    e->node.kind = kind;
    e->node.owner = "";
    e->node.target = NULL;
    table_add(c, BY_INO, e);
    tree_dirty(c, e);
    return e;
}

static void set_name(struct entry *e, const char *name)
{
    size_t length = strlen(name);

    if (name == e->node.name)
        return;
    if (length <= e->name_room) {
        const char *old = e->node.name;
        memcpy(e->inline_name, name, length + 1);
        e->node.name = e->inline_name;
        if (old != e->inline_name)
            free((void *)(uintptr_t)old);
        return;
    }
    char *copy = xstrdup(name);
    if (e->node.name != e->inline_name)
        free((void *)(uintptr_t)e->node.name);
    e->node.name = copy;
}

static void free_memory(struct entry *e)
{
    if (e->pending != NULL && e->pending->held != NULL)
        tracker__entry__free_unpacked(e->pending->held, NULL);
    free(e->pending);
    if (e->children != NULL)
        free(e->children->slots);
    free(e->children);
    if (e->node.name != e->inline_name)
        free((void *)(uintptr_t)e->node.name);
    free((void *)(uintptr_t)e->node.target);
    xattrs_free((Tracker__Xattrs *)(uintptr_t)e->node.xattrs);
    free(e);
}

void tree_free(struct catalogue *c, struct entry *e)
{
    CHECK(tree_children(e) == 0);
    tree_unlink(c, e);
    tree_set_id(c, e, 0);
    if (e->node.kind == NODE_FILE)
        tree_set_content(c, e, zero_root, 0);
    if ((e->flags & FLAG_DIRTY) == 0)
        vector_add(&c->dirty, e->node.ino); /* its row goes */
    table_remove(c, BY_INO, e);
    free_memory(e);
}

void tree_free_if_idle(struct catalogue *c, struct entry *e)
{
    bool held = tree_is_linked(c, e) || e->node.opens > 0 || e->node.unconfirmed > 0 ||
                e->node.id != 0 || (e->flags & (FLAG_HIDDEN | FLAG_WRITING)) != 0 ||
                tree_children(e) > 0;

    if (!held)
        tree_free(c, e);
}

void tree_free_all(struct catalogue *c)
{
    for (size_t i = 0; c->tables[BY_INO].buckets != NULL && i <= c->tables[BY_INO].mask; i++) {
        for (struct entry *e = c->tables[BY_INO].buckets[i], *next; e != NULL; e = next) {
            next = e->next[BY_INO];
            free_memory(e);
        }
    }
    for (int t = 0; t < TABLES; t++) {
        free(c->tables[t].buckets);
        c->tables[t].buckets = NULL;
        c->tables[t].mask = c->tables[t].count = 0;
    }
    for (size_t i = 0; i < sizeof c->owners / sizeof *c->owners; i++) {
        for (struct interned *o = c->owners[i], *next; o != NULL; o = next) {
            next = o->next;
            free(o);
        }
        c->owners[i] = NULL;
    }
    c->root = NULL;
    c->entries = 0;
}

bool tree_is_linked(const struct catalogue *c, const struct entry *e)
{
    return e == c->root || e->node.parent != NULL;
}

bool tree_is_attached(const struct catalogue *c, const struct entry *e)
{
    const struct node *n = &e->node;

    while (n->parent != NULL)
        n = n->parent;
    return n == &c->root->node;
}

static unsigned depth_of(const struct entry *e)
{
    unsigned depth = 0;

    for (const struct node *n = e->node.parent; n != NULL; n = n->parent)
        depth++;
    return depth;
}

/* Levels below it; C5 bounds the recursion. */
static unsigned height_of(const struct entry *e)
{
    unsigned height = 0;
    uint64_t cookie = 0;

    if (e->children == NULL)
        return 0;
    for (const struct entry *child; (child = tree_next_child(e, &cookie)) != NULL;) {
        unsigned below = height_of(child) + 1;
        if (below > height)
            height = below;
    }
    return height;
}

int tree_fits(const struct catalogue *c, const struct entry *directory, const struct entry *e)
{
    if (e != NULL && e->node.kind == NODE_DIRECTORY)
        for (const struct node *n = &directory->node; n != NULL; n = n->parent)
            if (n == &e->node)
                return -EINVAL;
    if (depth_of(directory) + 1 + (e == NULL ? 0 : height_of(e)) > NAME_DEPTH_MAX)
        return -ENAMETOOLONG;
    return 0;
}

void tree_tell(struct catalogue *c, const struct entry *e, enum node_change change)
{
    if (c->events->changed != NULL && e->node.parent != NULL && !e->node.working)
        c->events->changed(c->arg, &e->node, change);
}

static void invalid_name(struct catalogue *c, const struct entry *e)
{
    c->events->invalid(c->arg, e->node.ino, e->node.parent->ino, e->node.name);
}

static struct entry *parent_of(const struct entry *e)
{
    return (struct entry *)(void *)e->node.parent; /* the node is its first member */
}

void tree_link(struct catalogue *c, struct entry *e, struct entry *directory, const char *name,
               uint64_t cookie)
{
    CHECK(e->node.parent == NULL && e != c->root);
    set_name(e, name);
    e->node.parent = &directory->node;
    e->cookie = cookie != 0 ? cookie : c->next_cookie++;
    table_add(c, BY_NAME, e);
    children_add(directory, e);
    c->entries++;
    tree_dirty(c, e);
    invalid_name(c, e);
    tree_tell(c, e, NODE_LINKED);
}

void tree_unlink(struct catalogue *c, struct entry *e)
{
    struct entry *directory = parent_of(e);

    if (directory == NULL)
        return;
    invalid_name(c, e);
    tree_tell(c, e, NODE_UNLINKED);
    table_remove(c, BY_NAME, e);
    children_remove(directory, e);
    e->node.parent = NULL;
    c->entries--;
    tree_dirty(c, e);
    /* C6: who was kept for its children only goes with the last of them. */
    if ((directory->flags & FLAG_GHOST) != 0 && directory->children == NULL &&
        directory->node.parent == NULL && directory->node.opens == 0 &&
        directory->node.unconfirmed == 0)
        tree_free(c, directory);
}

void tree_set_id(struct catalogue *c, struct entry *e, uint64_t id)
{
    if (e->node.id == id)
        return;
    if (e->node.id != 0)
        table_remove(c, BY_ID, e);
    e->node.id = id;
    if (id != 0)
        table_add(c, BY_ID, e);
    tree_dirty(c, e);
}

void tree_set_ino(struct catalogue *c, struct entry *e, uint64_t ino)
{
    if ((e->flags & FLAG_DIRTY) == 0)
        vector_add(&c->dirty, e->node.ino);
    table_remove(c, BY_INO, e);
    e->node.ino = ino != 0 ? ino : new_ino(c);
    table_add(c, BY_INO, e);
    vector_add(&c->dirty, e->node.ino);
    e->flags |= FLAG_DIRTY;
}

void tree_set_content(struct catalogue *c, struct entry *e, const uint8_t root[HASH_SIZE],
                      uint64_t size)
{
    uint8_t old[HASH_SIZE];
    uint64_t old_size = e->node.size;

    memcpy(old, e->node.root, HASH_SIZE);
    e->node.size = size;
    if (memcmp(old, root, HASH_SIZE) != 0) {
        if (memcmp(old, zero_root, HASH_SIZE) != 0)
            table_remove(c, BY_ROOT, e);
        memcpy(e->node.root, root, HASH_SIZE);
        if (memcmp(root, zero_root, HASH_SIZE) != 0)
            table_add(c, BY_ROOT, e);
        if (memcmp(old, zero_root, HASH_SIZE) != 0 && tree_with_root(c, old, NULL) == NULL)
            c->events->unused(c->arg, old, old_size);
        tree_tell(c, e, NODE_CONTENT);
    }
    tree_dirty(c, e);
}

void tree_set_target(struct entry *e, const char *target)
{
    char *copy = target == NULL ? NULL : xstrdup(target);

    free((void *)(uintptr_t)e->node.target);
    e->node.target = copy;
}

void tree_set_xattrs(struct entry *e, const Tracker__Xattrs *xattrs)
{
    Tracker__Xattrs *copy = xattrs_copy(xattrs);

    xattrs_free((Tracker__Xattrs *)(uintptr_t)e->node.xattrs);
    e->node.xattrs = copy;
}

void tree_set_owner(struct catalogue *c, struct entry *e, const char *owner)
{
    if (strcmp(e->node.owner, owner) == 0)
        return;
    struct interned **at = &c->owners[hash_name(c, 0, owner) % 256];
    for (; *at != NULL; at = &(*at)->next) {
        if (strcmp((*at)->text, owner) == 0) {
            e->node.owner = (*at)->text;
            return;
        }
    }
    size_t size = strlen(owner) + 1;
    *at = xcalloc(1, sizeof **at + size);
    memcpy((*at)->text, owner, size);
    e->node.owner = (*at)->text;
}

void tree_dirty(struct catalogue *c, struct entry *e)
{
    if ((e->flags & FLAG_DIRTY) != 0 || c->loading)
        return;
    e->flags |= FLAG_DIRTY;
    vector_add(&c->dirty, e->node.ino);
}

void tree_changed(struct catalogue *c, struct entry *e)
{
    tree_dirty(c, e);
    c->events->invalid(c->arg, e->node.ino, 0, NULL);
    tree_tell(c, e, NODE_ATTRIBUTES);
}

struct pending *tree_pending(struct entry *e)
{
    if (e->pending == NULL)
        e->pending = xcalloc(1, sizeof *e->pending);
    return e->pending;
}

void tree_trim_pending(struct entry *e)
{
    struct pending *p = e->pending;

    if (p == NULL || p->held != NULL || e->node.unconfirmed > 0 || p->has_base || p->place != 0 ||
        p->covers != 0)
        return;
    free(p);
    e->pending = NULL;
}

/* --- names of what is kept beside ------------------------------------------------------------- */

void tree_conflict_name(const struct catalogue *c, const struct entry *directory, const char *name,
                        char out[NAME_BYTES_MAX + 1])
{
    char suffix[ACCOUNT_BYTES_MAX + 64], when[32];
    time_t seconds = (time_t)(c->now / NS_PER_S);
    struct tm tm;

    if (localtime_r(&seconds, &tm) == NULL ||
        strftime(when, sizeof when, "%Y-%m-%d %H%M", &tm) == 0)
        when[0] = '\0';
    /* What was kept beside once does not grow a second suffix. */
    const char *mark = strstr(name, " (conflict ");
    size_t length = mark != NULL && mark != name ? (size_t)(mark - name) : strlen(name);
    for (unsigned n = 1;; n++) {
        const char *account = c->account[0] != '\0' ? c->account : "unknown";
        if (n == 1)
            snprintf(suffix, sizeof suffix, " (conflict %s %s)", account, when);
        else
            snprintf(suffix, sizeof suffix, " (conflict %s %s) %u", account, when, n);
        size_t room = NAME_BYTES_MAX - strlen(suffix);
        size_t cut = length < room ? length : room;
        while (cut > 0 && cut < length && ((unsigned char)name[cut] & 0xc0) == 0x80)
            cut--;
        memmove(out, name, cut);
        memcpy(out + cut, suffix, strlen(suffix) + 1);
        if (tree_child(c, directory, out) == NULL)
            return;
    }
}
