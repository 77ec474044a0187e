/* What the tracker says: judged again, shown, or held back behind changes of ours.
 *
 * Owns nothing but the list of hidden entries. Thread: local.
 *
 * News come in the order of seq, and an entry that changed twice comes once, with its last seq. So
 * on the way to the state at `live` there are moments that make no sense: a child before its
 * directory (the directory begins as a ghost), two entries of one name (the one with the greater
 * seq is shown, the other hidden), a directory below itself (hidden until the rest has come). What
 * still makes no sense at `live`, and is not hidden behind something of ours, is counted in one line
 * of the log.
 *
 * Resync (from_scratch): entries that are named keep their ino, whatever else changed; what was not
 * named at `live` is gone. From another data base of the tracker (another generation) numbers mean
 * nothing: entries are stale until they are named again by place; changes of ours that were under
 * way are made anew if they carried content or made a directory, the rest is undone. */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "proto/message.h"

#define RETRY_MAX 4096 /* hidden entries looked at after one batch */

static const uint8_t zero_root[HASH_SIZE];

Tracker__Entry *remote_copy(const Tracker__Entry *from)
{
    size_t size = tracker__entry__get_packed_size(from);
    uint8_t *packed = xmalloc(size);

    tracker__entry__pack(from, packed);
    Tracker__Entry *copy = tracker__entry__unpack(NULL, size, packed);
    CHECK(copy != NULL);
    free(packed);
    return copy;
}

Tracker__Entry *remote_of(const struct entry *e)
{
    Tracker__Entry r = TRACKER__ENTRY__INIT;
    const struct entry *directory = (const struct entry *)(const void *)e->node.parent;

    r.id = e->node.id;
    r.parent = directory == NULL ? 0 : directory->node.id;
    r.name = message_text(e->node.name);
    r.kind = (Tracker__Kind)e->node.kind;
    r.size = e->node.kind == NODE_FILE ? e->node.size : 0;
    if (e->node.kind == NODE_FILE) {
        r.root.data = (uint8_t *)(uintptr_t)e->node.root;
        r.root.len = HASH_SIZE;
    }
    if (e->node.target != NULL)
        r.target = message_text(e->node.target);
    r.mtime = e->node.mtime;
    r.mode = e->node.mode;
    r.owner = message_text(e->node.owner);
    r.level = (Tracker__Level)e->node.level;
    r.xattrs = (Tracker__Xattrs *)(uintptr_t)e->node.xattrs;
    r.seq = e->seq;
    return remote_copy(&r);
}

static void drop_held(struct entry *e)
{
    if (e->pending == NULL || e->pending->held == NULL)
        return;
    tracker__entry__free_unpacked(e->pending->held, NULL);
    e->pending->held = NULL;
}

/* --- judging ---------------------------------------------------------------------------------- */

static const char *fault_of(const Tracker__Entry *r)
{
    if (r->id <= 1)
        return "its number is the root's";
    if (r->gone)
        return NULL;
    if (r->parent == 0 || r->parent == r->id)
        return "it has no directory";
    if (!name_is_valid(r->name, strlen(r->name)))
        return "its name is bad";
    if (r->owner[0] != '\0' && account_name_fault(r->owner) != NULL)
        return "its owner's name is bad";
    if (!xattrs_are_sound(r->xattrs))
        return "its extended attributes are bad";
    if (r->kind == TRACKER__KIND__KIND_FILE) {
        if (r->size > FILE_SIZE_MAX || r->root.len != HASH_SIZE)
            return "its content is bad";
        if ((r->size == 0) != (memcmp(r->root.data, zero_root, HASH_SIZE) == 0))
            return "its size does not fit its root";
        return NULL;
    }
    if (r->kind == TRACKER__KIND__KIND_SYMLINK) {
        size_t length = strlen(r->target);
        if (length == 0 || length > LIMIT_SYMLINK || !utf8_is_plain(r->target, length))
            return "its target is bad";
        return NULL;
    }
    return r->kind == TRACKER__KIND__KIND_DIRECTORY ? NULL : "its kind is unknown";
}

static void report(struct catalogue *c, uint64_t id, const char *fault)
{
    c->bad++;
    if (c->bad <= LIMIT_BAD_LOGGED)
        log_warning("catalogue: entry %" PRIu64 " is not shown: %s", id, fault);
}

bool remote_is_sound(struct catalogue *c, const Tracker__Entry *r)
{
    const char *fault = fault_of(r);

    if (fault != NULL)
        report(c, r->id, fault);
    return fault == NULL;
}

/* --- showing ---------------------------------------------------------------------------------- */

bool remote_is_ours(const struct entry *e)
{
    uint64_t cookie = 0;

    if (e->node.unconfirmed > 0 || e->node.working || (e->flags & FLAG_REMAKE) != 0)
        return true;
    if (e->node.kind == NODE_DIRECTORY)
        for (const struct entry *child; (child = tree_next_child(e, &cookie)) != NULL;)
            if (remote_is_ours(child))
                return true;
    return false;
}

void remote_discard(struct catalogue *c, struct entry *e)
{
    CHECK(e != c->root);
    if (e->node.parent != NULL && (e->flags & FLAG_REMOVED) == 0) {
        tree_pending(e)->place = e->node.parent->ino;
        e->flags |= FLAG_REPLACED;
    }
    e->node.opens++; /* until we are done with it */
    tree_unlink(c, e);
    e->flags &= (uint8_t) ~(FLAG_HIDDEN | FLAG_STALE);
    drop_held(e);
    struct pending *p = e->pending;
    if (p != NULL && (e->flags & FLAG_WRITING) == 0) {
        p->place = p->covers = 0;
        p->has_base = false;
        tree_trim_pending(e);
    }
    e->node.opens--;
    if (tree_children(e) > 0) { /* C6: they will say where they belong now */
        e->flags |= FLAG_GHOST;
        return;
    }
    tree_set_id(c, e, 0);
    tree_changed(c, e);
    tree_free_if_idle(c, e);
}

void remote_hide(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    Tracker__Entry *held = remote_copy(r);

    drop_held(e);
    tree_pending(e)->held = held;
    e->node.opens++;
    tree_unlink(c, e);
    e->node.opens--;
    if ((e->flags & FLAG_HIDDEN) == 0)
        vector_add(&c->hidden, e->node.ino);
    e->flags |= FLAG_HIDDEN;
    e->flags &= (uint8_t)~FLAG_GHOST; /* where it is is known: it no longer hangs on its children */
    tree_dirty(c, e);
}

/* The directory made anew at the tracker, as something in it is ours. */
static void resurrect(struct catalogue *c, struct entry *e)
{
    tree_set_id(c, e, 0);
    e->seq = 0;
    e->flags &= (uint8_t) ~(FLAG_HIDDEN | FLAG_GHOST | FLAG_REMOVED);
    drop_held(e);
    if (!tree_is_linked(c, e)) {
        char name[NAME_BYTES_MAX + 1];
        memcpy(name, e->node.name, strlen(e->node.name) + 1);
        if (name[0] == '\0' || tree_child(c, c->root, name) != NULL)
            tree_conflict_name(c, c->root, name[0] != '\0' ? name : "directory", name);
        tree_link(c, e, c->root, name, 0);
    }
    log_info("'%s' was removed by another member, but is needed here: it is made again",
             e->node.name);
    journal_make(c, e, false);
}

/* Another member's version: who has the old one open keeps it, under the old number. */
static void replace_content(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    struct entry *old = NULL;
    uint64_t ino = e->node.ino;

    c->events->invalid(c->arg, ino, 0, NULL);
    tree_set_ino(c, e, 0);
    if (e->node.opens > 0 || (e->flags & FLAG_WRITING) != 0) {
        old = tree_new(c, ino, NODE_FILE, e->node.name);
        old->node.mode = e->node.mode;
        old->node.mtime = e->node.mtime;
        old->node.owner = e->node.owner;
        old->node.opens = e->node.opens;
        tree_set_xattrs(old, e->node.xattrs);
        old->flags |= (uint8_t)(FLAG_REPLACED | (e->flags & FLAG_WRITING));
        tree_set_content(c, old, e->node.root, e->node.size);
        if ((old->flags & FLAG_WRITING) != 0) {
            tree_pending(old)->place = e->node.parent != NULL ? e->node.parent->ino : 0;
        }
        e->flags &= (uint8_t)~FLAG_WRITING;
        if (e->pending != NULL)
            e->pending->has_base = false;
        e->node.opens = 0;
    }
    tree_set_content(c, e, r->root.data, r->size);
    if (e->node.parent != NULL)
        c->events->renewed(c->arg, e->node.ino, e->node.parent->ino, e->node.name);
}

/* What we may do in a directory: whatever else is under way there. */
static void set_level(struct catalogue *c, struct entry *e, Tracker__Level level)
{
    if (e->node.kind != NODE_DIRECTORY || level > TRACKER__LEVEL__LEVEL_MANAGE ||
        e->node.level == level)
        return;
    bool could = catalogue_may_write(&e->node);
    e->node.level = (uint8_t)level;
    bool seen = could != catalogue_may_write(&e->node);
    if (e == c->root && seen)
        c->events->invalid(c->arg, INO_ROOT, 0, NULL);
    else if (e != c->root && seen)
        tree_changed(c, e);
    else if (e != c->root)
        tree_dirty(c, e);
}

static void set_attributes(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    bool fresh = e->node.mtime == INT64_MIN; /* nobody has seen it yet */
    bool same_content =
        e->node.kind != NODE_FILE || memcmp(e->node.root, r->root.data, HASH_SIZE) == 0;
    bool same = same_content && e->node.mode == (r->mode & 0777) && e->node.mtime == r->mtime &&
                strcmp(e->node.owner, r->owner) == 0 && xattrs_are_equal(e->node.xattrs, r->xattrs);

    /* The kernel keeps the time that it has of an inode, as it writes back through it. */
    bool new_time = e->node.kind == NODE_FILE && e->node.mtime != r->mtime && !e->node.working &&
                    (e->flags & FLAG_WRITING) == 0;

    if (!same_content && fresh)
        tree_set_content(c, e, r->root.data, r->size);
    else if (!same_content || (new_time && !fresh))
        replace_content(c, e, r);
    e->node.mode = (uint16_t)(r->mode & 0777);
    e->node.mtime = r->mtime;
    tree_set_owner(c, e, r->owner);
    if (!xattrs_are_equal(e->node.xattrs, r->xattrs))
        tree_set_xattrs(e, r->xattrs);
    set_level(c, e, r->level);
    if (e->node.kind == NODE_SYMLINK &&
        (e->node.target == NULL || strcmp(e->node.target, r->target) != 0)) {
        tree_set_target(e, r->target);
        same = false;
    }
    if (!same && !fresh)
        tree_changed(c, e);
    if (!same_content && e->node.pinned && e->node.size > 0)
        c->events->pinned(c->arg, &e->node);
}

struct entry *remote_directory(struct catalogue *c, uint64_t id)
{
    struct entry *d = tree_find(c, BY_ID, id);

    if (d == NULL) {
        d = tree_new(c, 0, NODE_DIRECTORY, "");
        d->flags |= FLAG_GHOST;
        d->series = remote_series(c);
        tree_set_id(c, d, id);
    }
    return d;
}

/* Makes the name free, if what has it may be pushed aside by `e`. */
static bool make_room(struct catalogue *c, struct entry *e, struct entry *there)
{
    if ((there->flags & FLAG_STALE) != 0 && !remote_is_ours(there)) {
        remote_discard(c, there);
        return true;
    }
    if (there->node.unconfirmed > 0 || there->node.id == 0 || e->seq < there->seq)
        return false; /* ours, or newer */
    Tracker__Entry *r = remote_of(there);
    remote_hide(c, there, r);
    tracker__entry__free_unpacked(r, NULL);
    return true;
}

static bool move_to(struct catalogue *c, struct entry *e, struct entry *d, const char *name)
{
    struct entry *there = tree_child(c, d, name);
    bool first = !tree_is_linked(c, e), room;

    d->node.opens++; /* it may be a ghost that only lives for what leaves it now */
    e->node.opens++;
    room = there == NULL || make_room(c, e, there);
    if (room) {
        tree_unlink(c, e);
        tree_link(c, e, d, name, 0);
        if (first && d->node.pinned)
            e->node.pinned = true;
    }
    e->node.opens--;
    d->node.opens--;
    return room;
}

void remote_show(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    if (r->gone) {
        if (e->node.kind == NODE_DIRECTORY && remote_is_ours(e))
            resurrect(c, e);
        else
            remote_discard(c, e);
        return;
    }
    e->flags &= (uint8_t) ~(FLAG_REMOVED | FLAG_REPLACED);
    struct entry *d = remote_directory(c, r->parent);
    bool moves = e->node.parent != &d->node || strcmp(e->node.name, r->name) != 0;
    if (d->node.kind != NODE_DIRECTORY || (moves && tree_fits(c, d, e) != 0)) {
        remote_hide(c, e, r);
        return;
    }
    if (moves && !move_to(c, e, d, r->name)) {
        remote_hide(c, e, r);
        return;
    }
    e->flags &= (uint8_t) ~(FLAG_HIDDEN | FLAG_GHOST | FLAG_STALE | FLAG_REMAKE);
    set_attributes(c, e, r);
    drop_held(e);
    tree_trim_pending(e);
    tree_dirty(c, e);
}

/* --- absorbing -------------------------------------------------------------------------------- */

/* An entry left from another data base that is the same by place and kind. */
static struct entry *same_place(struct catalogue *c, const Tracker__Entry *r)
{
    struct entry *d = tree_find(c, BY_ID, r->parent);
    struct entry *e = d == NULL ? NULL : tree_child(c, d, r->name);

    if (e == NULL || (e->flags & FLAG_STALE) == 0 || e->node.kind != (enum node_kind)r->kind)
        return NULL;
    bool differs = e->node.kind == NODE_FILE && memcmp(e->node.root, r->root.data, HASH_SIZE) != 0;
    return differs && (e->flags & FLAG_REMAKE) != 0 ? NULL : e;
}

static struct entry *new_entry(struct catalogue *c, const Tracker__Entry *r)
{
    struct entry *e = c->resyncing ? same_place(c, r) : NULL;

    if (e == NULL)
        e = journal_made(c, r);
    if (e == NULL) {
        e = tree_new(c, 0, (enum node_kind)r->kind, r->name);
        e->node.mtime = INT64_MIN; /* see set_attributes */
    }
    e->flags &= (uint8_t) ~(FLAG_STALE | FLAG_REMAKE);
    tree_set_id(c, e, r->id);
    return e;
}

uint32_t remote_series(const struct catalogue *c)
{
    return c->answering && c->resyncing ? c->series | SERIES_ANSWER : c->series;
}

bool remote_is_unnamed(const struct catalogue *c, const struct entry *e)
{
    bool ahead = e->series == (c->series | SERIES_ANSWER) && e->seq > c->seq;

    return e->series != c->series && !ahead;
}

/* In a resync a smaller seq counts as well, but once: the tracker's data base may be an older one,
 * put back. */
static bool is_old_news(const struct catalogue *c, const struct entry *e, const Tracker__Entry *r)
{
    if ((e->flags & FLAG_GHOST) != 0)
        return false;
    return r->seq <= e->seq && (!c->resyncing || (e->series & ~SERIES_ANSWER) == c->series);
}

void remote_bury(struct catalogue *c, const Tracker__Entry *gone)
{
    if (gone->seq <= c->seq)
        return;
    if (c->buried_count == BURIED_MAX) {
        c->buried_first = (c->buried_first + 1) % BURIED_MAX;
        c->buried_count--;
    }
    c->buried[(c->buried_first + c->buried_count++) % BURIED_MAX] =
        (struct buried){gone->id, gone->seq};
}

static bool is_buried(const struct catalogue *c, const Tracker__Entry *r)
{
    for (size_t i = 0; i < c->buried_count; i++) {
        const struct buried *b = &c->buried[(c->buried_first + i) % BURIED_MAX];
        if (b->id == r->id && r->seq <= b->seq)
            return true;
    }
    return false;
}

/* All that was pushed up to c->seq has come. */
static void forget_buried(struct catalogue *c)
{
    while (c->buried_count > 0 && c->buried[c->buried_first].seq <= c->seq) {
        c->buried_first = (c->buried_first + 1) % BURIED_MAX;
        c->buried_count--;
    }
}

/* Whether news of a directory say that its time was set: to another, or, if they say nothing else, to the same. */
static bool is_timed(const struct entry *e, const Tracker__Entry *r)
{
    const struct entry *d = (const struct entry *)(const void *)e->node.parent;

    if (r->gone || e->node.kind != NODE_DIRECTORY)
        return false;
    return e->node.mtime != r->mtime ||
           (d != NULL && d->node.id == r->parent && strcmp(e->node.name, r->name) == 0 &&
            e->node.mode == (r->mode & 0777) && strcmp(e->node.owner, r->owner) == 0 &&
            xattrs_are_equal(e->node.xattrs, r->xattrs));
}

void remote_absorb(struct catalogue *c, const Tracker__Entry *r)
{
    struct entry *e = tree_find(c, BY_ID, r->id);

    if (e == c->root || (e == NULL && (r->gone || is_buried(c, r))))
        return;
    if (e == NULL) {
        if (c->tables[BY_INO].count > LIMIT_ENTRIES + (LIMIT_ENTRIES >> 2)) {
            report(c, r->id, "there are too many");
            return;
        }
        e = new_entry(c, r);
    } else if (is_old_news(c, e, r)) {
        if (!c->answering)
            e->series = c->series;
        return;
    }
    if (!r->gone && e->node.kind != (enum node_kind)r->kind) {
        report(c, r->id, "it changed its kind");
        return;
    }
    if (!r->gone)
        set_level(c, e, r->level);
    bool unchanged = r->seq == e->seq && !r->gone && e->pending == NULL &&
                     e->flags == (e->flags & FLAG_DIRTY) && tree_is_linked(c, e);
    e->seq = r->seq;
    e->series = remote_series(c);
    if (unchanged)
        return;
    if (e->node.unconfirmed > 0) {
        drop_held(e);
        tree_pending(e)->held = remote_copy(r);
        tree_dirty(c, e);
        return;
    }
    bool timed = is_timed(e, r);
    remote_show(c, e, r);
    e = timed ? tree_find(c, BY_ID, r->id) : NULL;
    if (e != NULL && c->events->timed != NULL)
        c->events->timed(c->arg, e->node.ino);
}

/* A bad record of an entry that was good before: it is not shown any more. */
static void absorb_bad(struct catalogue *c, const Tracker__Entry *r)
{
    struct entry *e = tree_find(c, BY_ID, r->id);
    Tracker__Entry gone = TRACKER__ENTRY__INIT;

    if (e == NULL || e == c->root)
        return;
    gone.id = r->id;
    gone.seq = r->seq;
    gone.gone = true;
    remote_absorb(c, &gone);
}

void remote_retry_hidden(struct catalogue *c)
{
    size_t count = c->hidden.count < RETRY_MAX ? c->hidden.count : RETRY_MAX;
    bool progress = count > 0;

    for (unsigned round = 0; progress && round < NAME_DEPTH_MAX; round++) {
        struct vector batch = c->hidden;
        c->hidden = (struct vector){0};
        progress = false;
        for (size_t i = count; i < batch.count; i++) /* these first the next time */
            vector_add(&c->hidden, batch.items[i]);
        for (size_t i = 0; i < count; i++) {
            struct entry *e = tree_find(c, BY_INO, batch.items[i]);
            if (e == NULL || (e->flags & FLAG_HIDDEN) == 0)
                continue;
            if (e->node.unconfirmed > 0) {
                vector_add(&c->hidden, e->node.ino);
                continue;
            }
            Tracker__Entry *r = e->pending->held;
            e->pending->held = NULL;
            e->flags &= (uint8_t)~FLAG_HIDDEN;
            remote_show(c, e, r);
            e = tree_find(c, BY_ID, r->id);
            progress |= e != NULL && (e->flags & FLAG_HIDDEN) == 0;
            tracker__entry__free_unpacked(r, NULL);
        }
        free(batch.items);
        if (c->hidden.count < count)
            count = c->hidden.count;
    }
}

/* --- resync ----------------------------------------------------------------------------------- */

static void collect(const struct catalogue *c, struct vector *inos,
                    bool (*wanted)(const struct catalogue *, const struct entry *))
{
    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++)
        for (struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO])
            if (e != c->root && (wanted == NULL || wanted(c, e)))
                vector_add(inos, e->node.ino);
}

/* The numbers of another data base mean nothing: everything is stale, what is ours and under way
 * will be made anew. */
static void make_stale(struct catalogue *c)
{
    struct vector inos = {0};

    journal_clear(c);
    collect(c, &inos, NULL);
    for (size_t i = 0; i < inos.count; i++) {
        struct entry *e = tree_find(c, BY_INO, inos.items[i]);
        if (e == NULL)
            continue;
        struct pending *p = e->pending;
        bool ours = e->node.unconfirmed > 0 && p != NULL &&
                    (p->made_by != 0 || p->last_content != 0) && tree_is_linked(c, e);
        e->node.unconfirmed = 0;
        e->seq = 0;
        tree_set_id(c, e, 0);
        tree_dirty(c, e);
        drop_held(e);
        if (p != NULL) {
            p->made_by = p->last_content = 0;
            tree_trim_pending(e);
        }
        e->flags &= (uint8_t) ~(FLAG_HIDDEN | FLAG_GHOST);
        if (!e->node.working)
            e->flags |= (uint8_t)(FLAG_STALE | (ours ? FLAG_REMAKE : 0));
    }
    free(inos.items);
    free(c->hidden.items);
    c->hidden = (struct vector){0};
}

static void begin_series(struct catalogue *c, const Tracker__Changes *changes)
{
    bool same = c->generation_known && changes->generation.len == GENERATION_SIZE &&
                memcmp(c->generation, changes->generation.data, GENERATION_SIZE) == 0;

    c->series++;
    c->seq = 0;
    c->buried_count = 0;
    c->resyncing = true;
    c->bad = 0;
    if (!same && c->generation_known) {
        log_warning("the tracker has a new data base: the catalogue is read anew");
        make_stale(c);
    }
}

static bool is_unnamed(const struct catalogue *c, const struct entry *e)
{
    return !e->node.working &&
           ((e->flags & FLAG_STALE) != 0 || (e->node.id != 0 && remote_is_unnamed(c, e)));
}

static void sweep_one(struct catalogue *c, struct entry *e)
{
    if ((e->flags & FLAG_STALE) != 0) {
        remote_discard(c, e);
        return;
    }
    Tracker__Entry gone = TRACKER__ENTRY__INIT;
    gone.id = e->node.id;
    gone.seq = e->seq;
    gone.gone = true;
    e->series = 0; /* what an answer said last counts no more */
    remote_absorb(c, &gone);
    e = tree_find(c, BY_ID, gone.id);
    if (e != NULL)
        e->seq = 0; /* nobody said it: whatever is said of it next counts */
}

/* Directories before what is in them, so that each finds its own made. */
static void remake_one(struct catalogue *c, struct entry *e)
{
    e->flags &= (uint8_t) ~(FLAG_STALE | FLAG_REMAKE);
    if (e->node.kind == NODE_DIRECTORY)
        resurrect(c, e);
    else if (tree_is_linked(c, e))
        journal_make(c, e, false);
    else
        remote_discard(c, e);
}

/* Calls `act` for those that are still wanted, by depth. */
static void by_depth(struct catalogue *c, const struct vector *inos, bool from_bottom,
                     void (*act)(struct catalogue *, struct entry *))
{
    struct vector levels[NAME_DEPTH_MAX + 1] = {{0}};

    for (size_t i = 0; i < inos->count; i++) {
        const struct entry *e = tree_find(c, BY_INO, inos->items[i]);
        unsigned depth = 0;
        if (e == NULL)
            continue;
        for (const struct node *n = e->node.parent; n != NULL && depth < NAME_DEPTH_MAX;
             n = n->parent)
            depth++;
        vector_add(&levels[depth], e->node.ino);
    }
    for (unsigned i = 0; i <= NAME_DEPTH_MAX; i++) {
        struct vector *level = &levels[from_bottom ? NAME_DEPTH_MAX - i : i];
        for (size_t k = 0; k < level->count; k++) {
            struct entry *e = tree_find(c, BY_INO, level->items[k]);
            if (e != NULL)
                act(c, e);
        }
        free(level->items);
    }
}

/* After a resync: what was not named is gone, but ours in it is made again. */
static void sweep(struct catalogue *c)
{
    struct vector unnamed = {0}, gone = {0}, ours = {0};

    collect(c, &unnamed, is_unnamed);
    for (size_t i = 0; i < unnamed.count; i++) {
        const struct entry *e = tree_find(c, BY_INO, unnamed.items[i]);
        bool remake = (e->flags & FLAG_STALE) != 0 && remote_is_ours(e);
        vector_add(remake ? &ours : &gone, e->node.ino);
    }
    by_depth(c, &gone, true, sweep_one);
    by_depth(c, &ours, false, remake_one);
    free(unnamed.items);
    free(gone.items);
    free(ours.items);
}

static void report_strays(struct catalogue *c)
{
    unsigned strays = 0;

    for (size_t i = 0; i < c->hidden.count; i++) {
        const struct entry *e = tree_find(c, BY_INO, c->hidden.items[i]);
        if (e == NULL || (e->flags & FLAG_HIDDEN) == 0 || e->pending->held == NULL)
            continue;
        const struct entry *d = tree_find(c, BY_ID, e->pending->held->parent);
        const struct entry *there = d == NULL ? NULL : tree_child(c, d, e->pending->held->name);
        if (there == NULL || (there->node.unconfirmed == 0 && there->node.id != 0))
            strays++;
    }
    if (strays + c->bad > 0)
        log_warning("catalogue: %u entries of the tracker make no sense and are not shown",
                    strays + c->bad);
    c->bad = 0;
}

void catalogue_changes(struct catalogue *c, const Tracker__Changes *changes, int64_t now)
{
    bool was_live = !c->resyncing;

    c->now = now;
    if (changes->from_scratch)
        begin_series(c, changes);
    if (changes->generation.len == GENERATION_SIZE) {
        memcpy(c->generation, changes->generation.data, GENERATION_SIZE);
        c->generation_known = true;
        c->heard = true;
    }
    if (changes->level != TRACKER__LEVEL__LEVEL_UNKNOWN)
        set_level(c, c->root, changes->level);
    for (size_t i = 0; i < changes->n_entries; i++) {
        const Tracker__Entry *r = changes->entries[i];
        if (r == NULL)
            continue;
        if (remote_is_sound(c, r))
            remote_absorb(c, r);
        else
            absorb_bad(c, r);
    }
    remote_retry_hidden(c);
    c->seq = changes->seq;
    if (changes->live && c->resyncing) {
        sweep(c);
        c->resyncing = false;
        remote_retry_hidden(c);
    }
    if (changes->live && (!was_live || c->bad > 0))
        report_strays(c);
    forget_buried(c);
    c->meta_dirty = true;
}

bool catalogue_position(const struct catalogue *c, uint8_t generation[GENERATION_SIZE],
                        uint64_t *seq)
{
    bool known = c->generation_known && !c->resyncing;

    memset(generation, 0, GENERATION_SIZE);
    if (known)
        memcpy(generation, c->generation, GENERATION_SIZE);
    *seq = known ? c->seq : 0;
    return known;
}
