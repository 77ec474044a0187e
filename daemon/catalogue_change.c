/* Changes of ours: checked as rename(2) and its like would, applied to the tree at once, journalled.
 *
 * Owns nothing. Leaves sending and what the tracker thinks of it to catalogue_journal.c. Thread:
 * local.
 *
 * A working file (created here, not yet published) is ours alone: what happens to it makes no
 * operation. Where it takes the place of a published entry, that one is hidden, and its root becomes
 * the base of the publication, which so replaces it in one step; given up, the hidden one comes
 * back. */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "proto/message.h"

#define UNCONFIRMED_MAX 60000 /* node.unconfirmed has 16 bits */

bool catalogue_may_write(const struct node *directory)
{
    return directory->level == 0 || directory->level >= TRACKER__LEVEL__LEVEL_WRITE;
}

/* Whether its name may go, or another take its place: what the tracker will ask as well. */
static bool may_go(const struct entry *e)
{
    return (e->node.parent == NULL || catalogue_may_write(e->node.parent)) &&
           (e->node.kind != NODE_DIRECTORY || catalogue_may_write(&e->node));
}

/* The directory, if something can be made in it. */
static struct entry *directory_for(struct catalogue *c, uint64_t ino, int *error)
{
    struct entry *d = tree_find(c, BY_INO, ino);

    *error = d == NULL || !tree_is_attached(c, d)      ? -ENOENT
             : d->node.kind != NODE_DIRECTORY          ? -ENOTDIR
             : !catalogue_may_write(&d->node)          ? -EACCES
             : c->tables[BY_INO].count > LIMIT_ENTRIES ? -ENOSPC
                                                       : 0;
    return *error == 0 ? d : NULL;
}

static int name_fault(const char *name)
{
    size_t length = strlen(name);

    if (length > NAME_BYTES_MAX)
        return -ENAMETOOLONG;
    return name_is_valid(name, length) ? 0 : -EINVAL;
}

/* The tracker said a moment ago that this account has as many entries as it may. The time of day may have been set back since. */
static bool is_over_quota(const struct catalogue *c, int64_t now)
{
    return now >= c->quota_met && now - c->quota_met < QUOTA_AGAIN_NS;
}

/* A new entry in its place, not journalled. */
static struct entry *make(struct catalogue *c, uint64_t parent, const char *name,
                          enum node_kind kind, int64_t now, int *error)
{
    struct entry *d = directory_for(c, parent, error);

    if (d == NULL)
        return NULL;
    *error = name_fault(name);
    if (*error == 0 && is_over_quota(c, now))
        *error = -EDQUOT;
    if (*error == 0 && tree_child(c, d, name) != NULL)
        *error = -EEXIST;
    if (*error == 0)
        *error = tree_fits(c, d, NULL);
    if (*error != 0)
        return NULL;
    struct entry *e = tree_new(c, 0, kind, name);
    tree_set_owner(c, e, c->account);
    e->node.pinned = d->node.pinned;
    e->node.mtime = now;
    tree_link(c, e, d, name, 0);
    return e;
}

int catalogue_mkdir(struct catalogue *c, uint64_t parent, const char *name, uint32_t mode,
                    int64_t now, uint64_t *ino)
{
    int error;
    struct entry *e = make(c, parent, name, NODE_DIRECTORY, now, &error);

    if (e == NULL)
        return error;
    e->node.mode = mode & 0777;
    *ino = e->node.ino;
    journal_make(c, e, false);
    return 0;
}

int catalogue_symlink(struct catalogue *c, uint64_t parent, const char *name, const char *target,
                      int64_t now, uint64_t *ino)
{
    int error;
    size_t length = strlen(target);

    if (length == 0)
        return -ENOENT;
    if (length > LIMIT_SYMLINK)
        return -ENAMETOOLONG;
    if (!utf8_is_plain(target, length))
        return -EINVAL;
    struct entry *e = make(c, parent, name, NODE_SYMLINK, now, &error);
    if (e == NULL)
        return error;
    tree_set_target(e, target);
    e->node.mode = 0777;
    *ino = e->node.ino;
    journal_make(c, e, false);
    return 0;
}

/* --- files being written ---------------------------------------------------------------------- */

int catalogue_create(struct catalogue *c, uint64_t parent, const char *name, uint32_t mode,
                     int64_t now, uint64_t *ino)
{
    int error;
    struct entry *e = make(c, parent, name, NODE_FILE, now, &error);

    if (e == NULL)
        return error;
    e->node.mode = mode & 0777;
    e->node.working = true;
    e->flags |= FLAG_WRITING;
    *ino = e->node.ino;
    return 0;
}

int catalogue_write_begin(struct catalogue *c, uint64_t ino)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e == NULL)
        return -ENOENT;
    if (e->node.kind != NODE_FILE)
        return e->node.kind == NODE_DIRECTORY ? -EISDIR : -EINVAL;
    if (e->node.parent != NULL && !catalogue_may_write(e->node.parent))
        return -EACCES;
    e->flags |= FLAG_WRITING;
    if (!e->node.working) {
        struct pending *p = tree_pending(e);
        p->has_base = true;
        memcpy(p->base, e->node.root, HASH_SIZE);
    }
    tree_dirty(c, e);
    return 0;
}

static void stop_writing(struct catalogue *c, struct entry *e)
{
    e->flags &= (uint8_t)~FLAG_WRITING;
    e->node.working = false;
    if (e->pending != NULL) {
        e->pending->has_base = false;
        e->pending->place = e->pending->covers = 0;
        tree_trim_pending(e);
    }
    tree_dirty(c, e);
}

/* A file that lost its name to another member while it was written here gets one again. */
static void come_back(struct catalogue *c, struct entry *e)
{
    struct entry *d = e->pending == NULL ? NULL : tree_find(c, BY_INO, e->pending->place);
    char name[NAME_BYTES_MAX + 1];

    memcpy(name, e->node.name, strlen(e->node.name) + 1);
    if (d == NULL || d->node.kind != NODE_DIRECTORY || !tree_is_attached(c, d) ||
        tree_fits(c, d, e) != 0)
        d = c->root;
    if (tree_child(c, d, name) != NULL) {
        tree_conflict_name(c, d, name, name);
        log_info("another version of '%s' was published: ours is kept as '%s'", e->node.name, name);
    }
    if (e->pending != NULL) {
        e->pending->has_base = false;
        e->pending->covers = 0;
    }
    e->flags &= (uint8_t) ~(FLAG_REPLACED | FLAG_HIDDEN);
    tree_link(c, e, d, name, 0);
}

/* The published file whose place a private one took, if it is still out of sight. */
static struct entry *find_covered(const struct catalogue *c, const struct entry *e)
{
    const struct pending *p = e->pending;
    struct entry *covered = p == NULL || p->covers == 0 ? NULL : tree_find(c, BY_INO, p->covers);
    bool there = covered != NULL && !tree_is_linked(c, covered) &&
                 covered->node.kind == NODE_FILE &&
                 (covered->node.id != 0 || covered->node.unconfirmed > 0);

    return there ? covered : NULL;
}

bool catalogue_is_crowded(const struct catalogue *c, uint64_t ino)
{
    const struct entry *e = tree_find(c, BY_INO, ino);

    return e != NULL && e->node.unconfirmed > UNCONFIRMED_MAX;
}

int catalogue_publish(struct catalogue *c, uint64_t ino, const uint8_t root[HASH_SIZE],
                      uint64_t size, int64_t mtime, int64_t now)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    c->now = now;
    if (e == NULL || e->node.kind != NODE_FILE)
        return -ENOENT;
    if (e->node.unconfirmed > UNCONFIRMED_MAX)
        return -EAGAIN;
    if (!tree_is_linked(c, e)) {
        bool replaced = (e->flags & FLAG_REPLACED) != 0 ||
                        ((e->flags & FLAG_HIDDEN) != 0 && (e->flags & FLAG_REMOVED) == 0);
        if (!replaced) {
            stop_writing(c, e);
            tree_free_if_idle(c, e);
            return -ENOENT;
        }
        come_back(c, e);
    }
    e->flags &= (uint8_t)~FLAG_WRITING;
    if (journal_is_here(c, e, false))
        journal_take_back(c, e); /* saved twice: the second is based on what the first was */
    if (e->node.unconfirmed == 0 && e->node.id != 0 && tree_pending(e)->held == NULL)
        e->pending->held = remote_of(e); /* before it is overwritten */
    if (e->node.working) {
        e->node.working = false;
        tree_tell(c, e, NODE_LINKED); /* now it is there */
    }
    e->node.mtime = mtime;
    tree_set_owner(c, e, c->account);
    tree_set_content(c, e, root, size);
    struct entry *covered = find_covered(c, e);
    if (covered != NULL && covered->node.unconfirmed <= UNCONFIRMED_MAX)
        journal_over(c, e, covered);
    (void)journal_make(c, e, false);
    stop_writing(c, e);
    tree_changed(c, e);
    remote_retry_hidden(c);
    return 0;
}

void catalogue_write_abandon(struct catalogue *c, uint64_t ino)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e == NULL)
        return;
    bool fresh = e->node.working;
    stop_writing(c, e);
    if (fresh) {
        e->flags |= FLAG_REMOVED;
        remote_discard(c, e);
    } else {
        tree_changed(c, e);
        tree_free_if_idle(c, e);
    }
    remote_retry_hidden(c);
}

void catalogue_grown(struct catalogue *c, uint64_t ino, uint64_t size)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e != NULL && e->node.working)
        e->node.size = size;
}

/* --- moving and removing ---------------------------------------------------------------------- */

/* Nothing of it is known to the tracker, nor on the way there. */
static bool is_private(const struct entry *e)
{
    return e->node.working && e->node.id == 0 && e->node.unconfirmed == 0;
}

static void journal_remove(struct catalogue *c, struct entry *e)
{
    Tracker__Op op = TRACKER__OP__INIT;

    op.kind = TRACKER__OP_KIND__OP_REMOVE;
    op.id = e->node.id;
    if (e->node.kind == NODE_FILE && !e->node.working) {
        op.based_on.data = e->node.root;
        op.based_on.len = HASH_SIZE;
    }
    journal_add(c, &op, e, NULL, NULL);
    e->flags |= FLAG_REMOVED;
    tree_unlink(c, e);
}

/* That, for good: the private one covers nothing any more. */
static struct entry *take_covered(struct catalogue *c, struct entry *e)
{
    struct entry *covered = find_covered(c, e);

    if (e->pending != NULL && e->pending->covers != 0) {
        e->pending->covers = 0;
        e->pending->has_base = false;
        tree_trim_pending(e);
    }
    return covered;
}

/* The private one leaves its place: what it replaced there is gone. */
static void remove_covered(struct catalogue *c, struct entry *e)
{
    struct entry *covered = take_covered(c, e);

    if (covered != NULL && covered->node.unconfirmed <= UNCONFIRMED_MAX)
        journal_remove(c, covered);
}

/* A private entry goes; one that is open lives on without a name. */
static void remove_private(struct catalogue *c, struct entry *e)
{
    e->flags |= FLAG_REMOVED;
    remote_discard(c, e);
}

int catalogue_remove(struct catalogue *c, uint64_t parent, const char *name, bool directory)
{
    struct entry *d = tree_find(c, BY_INO, parent);
    struct entry *e = d == NULL ? NULL : tree_child(c, d, name);

    if (e == NULL || !tree_is_attached(c, e))
        return -ENOENT;
    if (directory != (e->node.kind == NODE_DIRECTORY))
        return directory ? -ENOTDIR : -EISDIR;
    if (!may_go(e))
        return -EACCES;
    if (tree_children(e) > 0)
        return -ENOTEMPTY;
    if (e->node.unconfirmed > UNCONFIRMED_MAX)
        return -EAGAIN;
    if (journal_is_here(c, e, true)) {
        journal_take_back(c, e);
        remove_private(c, e);
        remote_retry_hidden(c);
    } else if (is_private(e)) {
        remove_covered(c, e);
        remove_private(c, e);
        remote_retry_hidden(c);
    } else {
        journal_remove(c, e);
    }
    return 0;
}

static int judge_over(const struct entry *e, const struct entry *there)
{
    if (there->node.kind == NODE_DIRECTORY && e->node.kind != NODE_DIRECTORY)
        return -EISDIR;
    if (there->node.kind != NODE_DIRECTORY && e->node.kind == NODE_DIRECTORY)
        return -ENOTDIR;
    return tree_children(there) > 0 ? -ENOTEMPTY : 0;
}

static int judge_rename(struct catalogue *c, const struct rename *r, const struct entry *e,
                        const struct entry *d, const struct entry *there)
{
    int error = name_fault(r->to_name);

    if (error != 0)
        return error;
    if (there != NULL && r->no_replace)
        return -EEXIST;
    if (there == NULL && r->exchange)
        return -ENOENT;
    if (e->node.unconfirmed > UNCONFIRMED_MAX ||
        (there != NULL && there->node.unconfirmed > UNCONFIRMED_MAX))
        return -EAGAIN;
    if (!may_go(e) || (there != NULL && !may_go(there)))
        return -EACCES;
    error = tree_fits(c, d, e);
    if (error != 0 || there == NULL)
        return error;
    if (!r->exchange)
        return judge_over(e, there);
    if (is_private(e) || is_private(there))
        return -EBUSY; /* the tracker knows nothing to exchange */
    return tree_fits(c, (const struct entry *)(const void *)e->node.parent, there);
}

/* A private file moves: the tracker hears of the place when it is published. */
static void move_private(struct catalogue *c, struct entry *e, struct entry *d, const char *name,
                         struct entry *there)
{
    if (there != NULL && there->node.kind != NODE_FILE) {
        journal_remove(c, there); /* a publication replaces only files */
    } else if (there != NULL) {
        struct pending *p = tree_pending(e);
        p->has_base = true;
        memcpy(p->base, there->node.root, HASH_SIZE);
        p->covers = there->node.ino;
        if (there->node.unconfirmed > 0 || (there->flags & FLAG_HIDDEN) != 0) {
            there->flags |= FLAG_REMOVED;
            tree_unlink(c, there);
        } else {
            Tracker__Entry *held = remote_of(there);
            remote_hide(c, there, held);
            there->flags |= FLAG_REMOVED;
            tracker__entry__free_unpacked(held, NULL);
        }
    }
    tree_unlink(c, e);
    tree_link(c, e, d, name, 0);
}

static void exchange(struct catalogue *c, struct entry *e, struct entry *there)
{
    struct entry *d = (struct entry *)(void *)e->node.parent;
    struct entry *to = (struct entry *)(void *)there->node.parent;
    char name[NAME_BYTES_MAX + 1], to_name[NAME_BYTES_MAX + 1];

    memcpy(name, e->node.name, strlen(e->node.name) + 1);
    memcpy(to_name, there->node.name, strlen(there->node.name) + 1);
    tree_unlink(c, e);
    tree_unlink(c, there);
    tree_link(c, e, to, to_name, 0);
    tree_link(c, there, d, name, 0);
}

static void move_known(struct catalogue *c, const struct rename *r, struct entry *e,
                       struct entry *d, struct entry *there)
{
    Tracker__Op op = TRACKER__OP__INIT;

    op.kind = TRACKER__OP_KIND__OP_RENAME;
    op.id = e->node.id;
    op.name = message_text(r->to_name);
    op.no_replace = r->no_replace || there == NULL;
    op.exchange = r->exchange;
    if (there != NULL && there->node.kind == NODE_FILE && !r->exchange) {
        op.based_on.data = there->node.root;
        op.based_on.len = HASH_SIZE;
    }
    journal_add(c, &op, e, there, d);
    if (r->exchange) {
        exchange(c, e, there);
        return;
    }
    if (there != NULL) {
        there->flags |= FLAG_REMOVED;
        tree_unlink(c, there);
    }
    tree_unlink(c, e);
    tree_link(c, e, d, r->to_name, 0);
}

int catalogue_rename(struct catalogue *c, const struct rename *r)
{
    struct entry *from = tree_find(c, BY_INO, r->parent);
    struct entry *e = from == NULL ? NULL : tree_child(c, from, r->name);
    int error;

    if (e == NULL || !tree_is_attached(c, e))
        return -ENOENT;
    struct entry *d = directory_for(c, r->to_parent, &error);
    if (d == NULL && error != -ENOSPC)
        return error;
    if (d == NULL)
        d = tree_find(c, BY_INO, r->to_parent); /* moving needs no room */
    struct entry *there = tree_child(c, d, r->to_name);
    if (there == e)
        return r->no_replace ? -EEXIST : 0;
    error = judge_rename(c, r, e, d, there);
    if (error != 0)
        return error;
    /* The names may lie in the entries themselves. */
    struct rename copy = *r;
    char *name = xstrdup(r->to_name);
    copy.to_name = name;
    bool here = e->node.kind == NODE_FILE && !r->exchange && journal_is_here(c, e, true);
    if (there != NULL && !r->exchange && journal_is_here(c, there, true)) {
        journal_take_back(c, there);
        remove_private(c, there);
        there = NULL;
    } else if (there != NULL && is_private(there)) {
        struct entry *covered = take_covered(c, there);
        remove_private(c, there);
        there = covered;
    }
    if (here) {
        bool over = there != NULL && there->node.kind == NODE_FILE;
        journal_take_back(c, e);
        move_private(c, e, d, name, there);
        if (over)
            journal_over(c, e, there);
        (void)journal_make(c, e, false);
        e->pending->has_base = false;
        e->pending->covers = 0;
        tree_changed(c, e);
    } else if (is_private(e)) {
        remove_covered(c, e);
        move_private(c, e, d, name, there);
    } else {
        move_known(c, &copy, e, d, there);
    }
    free(name);
    remote_retry_hidden(c);
    return 0;
}

/* Around a change of attributes: what makes the entry and has not left is taken back, and made again with them. */
static bool attributes_begin(struct catalogue *c, struct entry *e, const Tracker__Op *op)
{
    bool here = journal_is_here(c, e, false);

    if (here)
        journal_take_back(c, e);
    else if (tree_is_linked(c, e) && !is_private(e))
        journal_add(c, op, e, NULL, NULL);
    return here;
}

static void attributes_end(struct catalogue *c, struct entry *e, bool here)
{
    if (here) {
        (void)journal_make(c, e, false);
        e->pending->has_base = false;
    }
    tree_changed(c, e);
}

int catalogue_attr(struct catalogue *c, uint64_t ino, const uint32_t *mode, const int64_t *mtime)
{
    struct entry *e = tree_find(c, BY_INO, ino);
    Tracker__Op op = TRACKER__OP__INIT;

    if (e == NULL)
        return -ENOENT;
    if (e == c->root)
        return -EPERM;
    if (e->node.unconfirmed > UNCONFIRMED_MAX)
        return -EAGAIN;
    bool times = mtime != NULL && e->node.kind == NODE_DIRECTORY; /* counts whatever it was */
    bool same = !times && (mode == NULL || (*mode & 0777) == e->node.mode) &&
                (mtime == NULL || *mtime == e->node.mtime);
    if (same)
        return 0;
    const struct node *directory = e->node.kind == NODE_DIRECTORY ? &e->node : e->node.parent;
    if (directory != NULL && !catalogue_may_write(directory))
        return -EACCES;
    op.kind = TRACKER__OP_KIND__OP_ATTR;
    op.id = e->node.id;
    op.set_mode = mode != NULL;
    op.set_mtime = mtime != NULL;
    op.mode = mode != NULL ? *mode & 0777 : 0;
    op.mtime = mtime != NULL ? *mtime : 0;
    bool here = attributes_begin(c, e, &op);
    if (mode != NULL)
        e->node.mode = (uint16_t)op.mode;
    if (mtime != NULL)
        e->node.mtime = *mtime;
    attributes_end(c, e, here);
    if (times && c->events->timed != NULL)
        c->events->timed(c->arg, e->node.ino);
    return 0;
}

static int judge_xattr(const struct entry *e, const struct xattr_change *x)
{
    const struct node *directory = e->node.kind == NODE_DIRECTORY ? &e->node : e->node.parent;
    bool there = xattrs_find(e->node.xattrs, x->name) != NULL;
    int error = xattr_name_fault(x->name);

    if (error != 0)
        return error;
    if (there ? x->create : x->replace || x->value == NULL)
        return there ? -EEXIST : -ENODATA;
    if (x->size > LIMIT_XATTR_VALUE)
        return -E2BIG;
    if (e->node.unconfirmed > UNCONFIRMED_MAX)
        return -EAGAIN;
    return directory != NULL && !catalogue_may_write(directory) ? -EACCES : 0;
}

int catalogue_xattr(struct catalogue *c, uint64_t ino, const struct xattr_change *x)
{
    struct entry *e = tree_find(c, BY_INO, ino);
    Tracker__Xattr one = TRACKER__XATTR__INIT, *list = &one;
    Tracker__Xattrs set = TRACKER__XATTRS__INIT, *changed;
    Tracker__Op op = TRACKER__OP__INIT;
    char *name = message_text(x->name);

    if (e == NULL || e == c->root)
        return e == NULL ? -ENOENT : -EPERM;
    int error = judge_xattr(e, x);
    if (error != 0)
        return error;
    op.kind = TRACKER__OP_KIND__OP_ATTR;
    op.id = e->node.id;
    if (x->value == NULL) {
        op.xattrs_removed = &name;
        op.n_xattrs_removed = 1;
    } else {
        one.name = name;
        one.value.data = (uint8_t *)(uintptr_t)x->value;
        one.value.len = x->size;
        set.list = &list;
        set.n_list = 1;
        op.xattrs = &set;
    }
    error =
        xattrs_change(e->node.xattrs, op.xattrs, op.xattrs_removed, op.n_xattrs_removed, &changed);
    if (error == 0 && !xattrs_are_equal(changed, e->node.xattrs)) {
        bool here = attributes_begin(c, e, &op);
        tree_set_xattrs(e, changed);
        attributes_end(c, e, here);
    }
    xattrs_free(changed);
    return error;
}

void catalogue_pin(struct catalogue *c, uint64_t ino, bool pinned)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e == NULL || e->node.pinned == pinned)
        return;
    e->node.pinned = pinned;
    tree_changed(c, e);
}

/* --- open ones -------------------------------------------------------------------------------- */

void catalogue_open_node(struct catalogue *c, uint64_t ino)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e != NULL)
        e->node.opens++;
}

void catalogue_close_node(struct catalogue *c, uint64_t ino)
{
    struct entry *e = tree_find(c, BY_INO, ino);

    if (e == NULL || e->node.opens == 0)
        return;
    e->node.opens--;
    tree_free_if_idle(c, e);
}

int catalogue_reopen_node(struct catalogue *c, uint64_t ino, const uint8_t root[HASH_SIZE],
                          uint64_t size)
{
    if (ino < 16 || ino >= c->ino_limit)
        return -EINVAL; /* never given out by us */
    if (tree_find(c, BY_INO, ino) != NULL)
        return -EEXIST;
    if (ino >= c->next_ino)
        c->next_ino = ino + 1;
    struct entry *e = tree_new(c, ino, NODE_FILE, "");
    e->node.mode = 0444;
    e->flags |= FLAG_REMOVED;
    tree_set_content(c, e, root, size);
    e->node.opens = 1;
    return 0;
}
