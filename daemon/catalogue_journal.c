/* The journal: operations of ours that have no result yet, in the order of their numbers.
 *
 * Owns struct op. Leaves checking and applying a change to catalogue_change.c, showing what the
 * tracker has to catalogue_remote.c. Thread: local.
 *
 * Which entry an operation means is kept as ino and turned into the tracker's id as late as it is
 * packed: the id if it is known by then, else the number of the operation that makes the entry. So
 * a directory and ten thousand files in it can be journalled while the tracker is away.
 *
 * The life of an entry with changes of ours:
 *
 *   R shown --journal_touch--> ours shown, R held --(pushes replace R)--> … last result --settle-->
 *     R is there, nothing lost        remote_show(R)
 *     our content was refused         it goes beside (settle_lost), then remote_show(R)
 *     no R, our entry was refused     made again: under its name (its directory had to be made
 *                                     anew), beside (the name is taken), or with the next
 *                                     connection (the tracker is full, or says no)
 *     no R, and removed by us         gone */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "proto/message.h"

#define WINDOW      256 /* operations sent and unanswered; see catalogue_next_op */
#define RETRIES_MAX 8   /* in the same place, before it goes to the top */

#define OK          TRACKER__OP_STATUS__OP_OK

static bool makes(const Tracker__Op *op)
{
    return op->kind == TRACKER__OP_KIND__OP_MKDIR || op->kind == TRACKER__OP_KIND__OP_PUBLISH ||
           op->kind == TRACKER__OP_KIND__OP_SYMLINK;
}

static Tracker__Op *op_copy(const Tracker__Op *from)
{
    size_t size = tracker__op__get_packed_size(from);
    uint8_t *packed = xmalloc(size);

    tracker__op__pack(from, packed);
    Tracker__Op *copy = tracker__op__unpack(NULL, size, packed);
    CHECK(copy != NULL);
    free(packed);
    return copy;
}

static void op_free(struct op *op)
{
    tracker__op__free_unpacked(op->message, NULL);
    free(op);
}

/* --- the list --------------------------------------------------------------------------------- */

/* Where the operation is, or ops_end. Answered ones are NULL, so the search by halves looks for the
 * next one that is there. */
static size_t find_op(const struct catalogue *c, uint64_t number)
{
    size_t low = c->ops_first, high = c->ops_end;

    while (low < high) {
        size_t middle = low + (high - low) / 2, probe = middle;
        while (probe < high && c->ops[probe] == NULL)
            probe++;
        if (probe == high || c->ops[probe]->message->op > number)
            high = middle;
        else if (c->ops[probe]->message->op == number)
            return probe;
        else
            low = probe + 1;
    }
    return c->ops_end;
}

void journal_put(struct catalogue *c, struct op *op)
{
    if (c->ops_end == c->ops_room) {
        if (c->ops_first > c->ops_end / 2) {
            memmove(c->ops, c->ops + c->ops_first,
                    (c->ops_end - c->ops_first) * sizeof(struct op *));
            c->ops_end -= c->ops_first;
            c->ops_next -= c->ops_first;
            c->ops_first = 0;
        } else {
            c->ops_room = c->ops_room == 0 ? 64 : 2 * c->ops_room;
            c->ops = xrealloc(c->ops, c->ops_room * sizeof(struct op *));
        }
    }
    c->ops[c->ops_end++] = op;
    c->ops_live++;
    c->ops_new += !op->stored;
}

static void take_out(struct catalogue *c, size_t at)
{
    struct op *op = c->ops[at];

    if (op->sent)
        c->in_flight--;
    if (op->stored)
        vector_add(&c->op_rows, op->message->op);
    else
        c->ops_new--;
    c->ops[at] = NULL;
    c->ops_live--;
    while (c->ops_first < c->ops_end && c->ops[c->ops_first] == NULL)
        c->ops_first++;
    if (c->ops_next < c->ops_first)
        c->ops_next = c->ops_first;
}

void journal_clear(struct catalogue *c)
{
    while (c->ops_first < c->ops_end) {
        size_t at = c->ops_first;
        struct op *op = c->ops[at];
        take_out(c, at);
        op_free(op);
    }
    CHECK(c->ops_live == 0 && c->in_flight == 0);
}

size_t catalogue_pending(const struct catalogue *c)
{
    return c->ops_live;
}

/* --- adding ----------------------------------------------------------------------------------- */

void journal_touch(struct catalogue *c, struct entry *e)
{
    struct pending *p = tree_pending(e);

    if (e->node.unconfirmed == 0 && e->node.id != 0 && p->held == NULL)
        p->held = remote_of(e);
    e->node.unconfirmed++;
    tree_dirty(c, e);
}

uint64_t journal_add(struct catalogue *c, const Tracker__Op *message, struct entry *e,
                     struct entry *other, struct entry *parent)
{
    struct op *op = xcalloc(1, sizeof *op);

    if (c->next_op >= c->op_limit)
        db_reserve(c, true);
    op->message = op_copy(message);
    op->message->op = c->next_op++;
    op->ino = e->node.ino;
    op->other = other != NULL ? other->node.ino : 0;
    op->parent = parent != NULL ? parent->node.ino : 0;
    if (parent != NULL)
        op->message->parent = parent->node.id;
    journal_put(c, op);
    journal_touch(c, e);
    if (other != NULL)
        journal_touch(c, other);
    if (makes(message))
        e->pending->last_content = op->message->op;
    c->events->journalled(c->arg);
    return op->message->op;
}

uint64_t journal_make(struct catalogue *c, struct entry *e, bool later)
{
    static const Tracker__OpKind kinds[] = {[NODE_DIRECTORY] = TRACKER__OP_KIND__OP_MKDIR,
                                            [NODE_FILE] = TRACKER__OP_KIND__OP_PUBLISH,
                                            [NODE_SYMLINK] = TRACKER__OP_KIND__OP_SYMLINK};
    Tracker__Op op = TRACKER__OP__INIT;
    Tracker__Xattrs none = TRACKER__XATTRS__INIT;
    struct pending *p = tree_pending(e);

    op.kind = kinds[e->node.kind];
    op.name = message_text(e->node.name);
    op.mtime = e->node.mtime;
    op.mode = e->node.mode;
    op.xattrs = e->node.xattrs != NULL ? (Tracker__Xattrs *)(uintptr_t)e->node.xattrs : &none;
    if (e->node.kind == NODE_SYMLINK)
        op.target = message_text(e->node.target);
    if (e->node.kind == NODE_FILE) {
        op.size = e->node.size;
        op.root.data = e->node.root;
        op.root.len = HASH_SIZE;
        if (p->has_base) {
            op.based_on.data = p->base;
            op.based_on.len = HASH_SIZE;
        }
    }
    uint64_t number = journal_add(c, &op, e, NULL, (struct entry *)(void *)e->node.parent);
    /* A second version behind the first one makes nothing: what stands between them must not wait for it. */
    if (e->node.id == 0 && (p->made_by == 0 || find_op(c, p->made_by) == c->ops_end))
        p->made_by = number;
    c->ops[c->ops_end - 1]->later = later;
    c->ops[c->ops_end - 1]->other = p->over;
    p->over = 0;
    return number;
}

void journal_over(struct catalogue *c, struct entry *e, struct entry *other)
{
    journal_touch(c, other);
    tree_pending(e)->over = other->node.ino;
}

/* --- taking together -------------------------------------------------------------------------- */

static struct op *op_here(const struct catalogue *c, const struct entry *e)
{
    if (e->node.unconfirmed != 1 || e->pending->last_content == 0)
        return NULL;
    size_t at = find_op(c, e->pending->last_content);
    struct op *op = at == c->ops_end ? NULL : c->ops[at];
    return op == NULL || op->sent || op->again || op->ino != e->node.ino ? NULL : op;
}

bool journal_is_here(const struct catalogue *c, const struct entry *e, bool fresh)
{
    const struct op *op = op_here(c, e);

    if (op == NULL || e->node.kind == NODE_DIRECTORY || (e->flags & FLAG_WRITING) != 0)
        return false;
    return !fresh || (e->node.id == 0 && op->message->based_on.len == 0);
}

void journal_take_back(struct catalogue *c, struct entry *e)
{
    struct op *op = op_here(c, e);
    struct pending *p = e->pending;

    CHECK(op != NULL);
    p->has_base = op->message->based_on.len == HASH_SIZE;
    if (p->has_base)
        memcpy(p->base, op->message->based_on.data, HASH_SIZE);
    p->over = op->other;
    take_out(c, find_op(c, op->message->op));
    op_free(op);
    p->made_by = p->last_content = 0;
    e->node.unconfirmed--;
    tree_dirty(c, e);
}

/* --- sending ---------------------------------------------------------------------------------- */

enum readiness { READY, BLOCKED, LATER };

/* Fills in what the operation names, as known now. BLOCKED: what makes it has not been sent yet;
 * LATER: that waits for a later connection itself. */
static enum readiness resolve_one(const struct catalogue *c, uint64_t ino, uint64_t *id,
                                  uint64_t *by)
{
    const struct entry *e = tree_find(c, BY_INO, ino);

    if (e == NULL)
        return READY; /* gone; what is filled in already must do */
    *by = 0;
    *id = e->node.id;
    if (e->node.id != 0 || e->pending == NULL || e->pending->made_by == 0)
        return READY;
    *by = e->pending->made_by;
    size_t at = find_op(c, *by);
    if (at == c->ops_end || c->ops[at]->sent)
        return READY;
    return c->ops[at]->later ? LATER : BLOCKED;
}

static enum readiness op_resolve(const struct catalogue *c, struct op *op)
{
    Tracker__Op *m = op->message;
    enum readiness parent = READY, self = READY;

    if (op->parent != 0)
        parent = resolve_one(c, op->parent, &m->parent, &m->parent_op);
    if (!makes(m))
        self = resolve_one(c, op->ino, &m->id, &m->id_op);
    const struct entry *other = op->other == 0 ? NULL : tree_find(c, BY_INO, op->other);
    if (other != NULL && !makes(m) && !m->exchange)
        m->over = other->node.id;
    return parent > self ? parent : self;
}

/* All of them leave in order, so one that lingers holds back what comes behind it. */
static bool lingers(const struct op *op, int64_t now)
{
    return !op->again && op->due > now;
}

/* Those that came since the last call begin to linger. */
static void begin_to_linger(struct catalogue *c, int64_t now)
{
    int64_t due = now > INT64_MAX - JOURNAL_LINGER_NS ? now : now + JOURNAL_LINGER_NS;

    for (size_t i = c->ops_end; i > c->ops_first; i--) {
        if (c->ops[i - 1] == NULL)
            continue;
        if (c->ops[i - 1]->due != 0)
            break;
        c->ops[i - 1]->due = due;
    }
}

/* The next one that can go. A directory that had to be made anew has a greater number than what is
 * in it, so one pass may not do. */
static struct op *pick_op(struct catalogue *c, int64_t now, int64_t *due)
{
    bool again;

    do {
        again = c->ops_blocked;
        if (c->ops_blocked)
            c->ops_next = c->ops_first;
        c->ops_blocked = false;
        while (c->ops_next < c->ops_end) {
            struct op *op = c->ops[c->ops_next++];
            if (op == NULL || op->sent || op->later)
                continue;
            if (lingers(op, now)) {
                *due = op->due;
                c->ops_next--;
                return NULL;
            }
            enum readiness readiness = op_resolve(c, op);
            if (readiness == READY)
                return op;
            if (readiness == LATER)
                op->later = true;
            else
                c->ops_blocked = true;
        }
    } while (!again && c->ops_blocked);
    return NULL;
}

uint8_t *catalogue_next_op(struct catalogue *c, int64_t now, int64_t *due, size_t *size)
{
    *due = 0;
    begin_to_linger(c, now);
    struct op *op = c->heard && c->in_flight < WINDOW ? pick_op(c, now, due) : NULL;

    if (op == NULL)
        return NULL;
    /* Before it leaves: killed in between, we would take its file for lost, and its number for free. */
    if (catalogue_is_dirty(c) && catalogue_commit(c, false) != 0) {
        c->ops_next = c->ops_first;
        *due = now > INT64_MAX - NS_PER_S ? now : now + NS_PER_S;
        return NULL;
    }
    op->sent = true;
    c->in_flight++;
    *size = tracker__op__get_packed_size(op->message);
    uint8_t *packed = xmalloc(*size);
    tracker__op__pack(op->message, packed);
    return packed;
}

void catalogue_resend(struct catalogue *c, bool anew)
{
    c->ops_next = c->ops_first;
    c->in_flight = 0;
    c->heard = c->heard && !anew;
    for (size_t i = c->ops_first; i < c->ops_end; i++)
        if (c->ops[i] != NULL) {
            c->ops[i]->again |= c->ops[i]->sent;
            c->ops[i]->sent = c->ops[i]->later = false;
        }
}

void catalogue_retry(struct catalogue *c)
{
    c->ops_next = c->ops_first;
    for (size_t i = c->ops_first; i < c->ops_end; i++)
        if (c->ops[i] != NULL)
            c->ops[i]->later = false;
}

/* --- results ---------------------------------------------------------------------------------- */

static int error_of(Tracker__OpStatus status)
{
    switch (status) {
    case TRACKER__OP_STATUS__OP_OK:
        return 0;
    case TRACKER__OP_STATUS__OP_NOT_FOUND:
        return -ENOENT;
    case TRACKER__OP_STATUS__OP_EXISTS:
    case TRACKER__OP_STATUS__OP_CONFLICT:
        return -EEXIST;
    case TRACKER__OP_STATUS__OP_NOT_EMPTY:
        return -ENOTEMPTY;
    case TRACKER__OP_STATUS__OP_NOT_DIRECTORY:
        return -ENOTDIR;
    case TRACKER__OP_STATUS__OP_IS_DIRECTORY:
        return -EISDIR;
    case TRACKER__OP_STATUS__OP_DENIED:
        return -EACCES;
    case TRACKER__OP_STATUS__OP_BAD_NAME:
    case TRACKER__OP_STATUS__OP_LOOP:
        return -EINVAL;
    case TRACKER__OP_STATUS__OP_TOO_DEEP:
        return -ENAMETOOLONG;
    case TRACKER__OP_STATUS__OP_FULL:
        return -ENOSPC;
    case TRACKER__OP_STATUS__OP_QUOTA:
        return -EDQUOT;
    default:
        return -EIO;
    }
}

/* What becomes of a content whose publication was refused. */
static enum lost lost_by(Tracker__OpStatus status)
{
    switch (status) {
    case TRACKER__OP_STATUS__OP_EXISTS:
    case TRACKER__OP_STATUS__OP_CONFLICT:
    case TRACKER__OP_STATUS__OP_IS_DIRECTORY:
        return LOST_BESIDE;
    case TRACKER__OP_STATUS__OP_NOT_FOUND:
    case TRACKER__OP_STATUS__OP_NOT_DIRECTORY:
    case TRACKER__OP_STATUS__OP_LOOP:
        return LOST_AGAIN;
    default:
        return LOST_LATER;
    }
}

static void hold(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    struct pending *p = tree_pending(e);

    if (p->held != NULL && r->seq < e->seq)
        return; /* a push was quicker */
    if (p->held != NULL)
        tracker__entry__free_unpacked(p->held, NULL);
    p->held = remote_copy(r);
    e->seq = r->seq;
    e->series = remote_series(c);
    tree_dirty(c, e);
}

static void move_children(struct catalogue *c, struct entry *from, struct entry *to)
{
    uint64_t cookie = 0;
    char name[NAME_BYTES_MAX + 1];

    from->node.opens++; /* so that it outlives its last child */
    for (struct entry *child; (child = tree_next_child(from, &cookie)) != NULL;) {
        memcpy(name, child->node.name, strlen(child->node.name) + 1);
        Tracker__Entry *r = child->node.unconfirmed == 0 ? remote_of(child) : NULL;
        tree_unlink(c, child);
        if (tree_child(c, to, name) == NULL && tree_fits(c, to, child) == 0) {
            tree_link(c, child, to, name, 0);
        } else if (r != NULL) {
            r->parent = to->node.id;
            remote_hide(c, child, r);
        } /* else ours: settles by its own result */
        if (r != NULL)
            tracker__entry__free_unpacked(r, NULL);
    }
    from->node.opens--;
}

/* What the tracker has in the directory `id`, which we took `e` for. What is ours stays with `e`. */
static void split_off(struct catalogue *c, struct entry *e, uint64_t id)
{
    struct entry *d = remote_directory(c, id);
    uint64_t cookie = 0;
    char name[NAME_BYTES_MAX + 1];

    for (struct entry *child; (child = tree_next_child(e, &cookie)) != NULL;) {
        if (child->node.id == 0 || child->node.unconfirmed > 0)
            continue;
        memcpy(name, child->node.name, strlen(child->node.name) + 1);
        child->node.opens++;
        tree_unlink(c, child);
        tree_link(c, child, d, name, 0);
        child->node.opens--;
    }
}

/* The tracker calls our entry `r->id`. Another entry that a push brought under that number, or that
 * ours replaced, becomes one with it. */
static void adopt(struct catalogue *c, struct entry *e, const Tracker__Entry *r)
{
    struct entry *twin = tree_find(c, BY_ID, r->id);
    Tracker__Entry *orphan = NULL;

    if (e->node.id == r->id)
        return;
    if (twin != NULL && twin->node.unconfirmed > 0) {
        hold(c, twin, r); /* it has changes of ours itself: it stays, ours dissolves in it */
        return;
    }
    if (e->node.id != 0) {
        /* We thought of it as a new version, or as made by us; the tracker made a new entry, as the
         * old one had moved away. The old one gets its own place again, with what it has in it. */
        orphan = e->pending->held;
        e->pending->held = NULL;
        e->seq = 0;
        tree_set_id(c, e, 0);
        if (orphan != NULL && e->node.kind == NODE_DIRECTORY)
            split_off(c, e, orphan->id);
    }
    if (twin != NULL) {
        if (twin->seq > r->seq && twin->pending != NULL && twin->pending->held != NULL) {
            hold(c, e, twin->pending->held);
            e->seq = twin->seq;
        } else if (twin->seq > r->seq) {
            Tracker__Entry *newer = remote_of(twin);
            hold(c, e, newer);
            tracker__entry__free_unpacked(newer, NULL);
        }
        tree_unlink(c, twin);
        tree_set_id(c, twin, 0);
        tree_set_id(c, e, r->id);
        if (twin->node.kind == NODE_DIRECTORY && e->node.kind == NODE_DIRECTORY)
            move_children(c, twin, e);
        if ((twin->flags & FLAG_WRITING) != 0) {
            twin->flags |= FLAG_REPLACED;
            if (e->node.parent != NULL)
                tree_pending(twin)->place = e->node.parent->ino;
        }
        remote_discard(c, twin);
    } else {
        tree_set_id(c, e, r->id);
    }
    if (orphan != NULL) {
        remote_absorb(c, orphan);
        tracker__entry__free_unpacked(orphan, NULL);
    }
}

/* A rename that went through also did something to who had the name. Its own push may come earlier
 * or later: so its seq is left alone, and what it says counts. Without this it would be seen again
 * until then. */
static void infer_other(struct catalogue *c, const struct op *op, const struct entry *e,
                        struct entry *other, const Tracker__Entry *result)
{
    Tracker__Entry *was = e->pending == NULL ? NULL : e->pending->held;
    Tracker__Entry *r = other->pending == NULL ? NULL : other->pending->held;

    if (r == NULL || r->gone || strcmp(r->name, op->message->name) != 0)
        return;
    /* Told from a first answer only: one that was asked for again shows a later state. */
    if (op->again || result == NULL || result->seq < r->seq || result->id == other->node.id)
        return;
    const struct entry *directory = tree_find(c, BY_INO, op->parent);
    if (directory == NULL || r->parent != directory->node.id)
        return;
    if (!op->message->exchange) {
        r->gone = true;
    } else if (was != NULL && !was->gone) {
        Tracker__Entry *moved = remote_copy(r);
        tracker__entry__free_unpacked(r, NULL);
        moved->parent = was->parent;
        char *name = moved->name;
        moved->name = message_text(was->name); /* packed into the copy below */
        other->pending->held = remote_copy(moved);
        moved->name = name;
        tracker__entry__free_unpacked(moved, NULL);
    }
    tree_dirty(c, other);
}

/* What an operation of ours that has left would make of `e`. */
static bool is_made_by(const struct catalogue *c, const struct op *op, const struct entry *e,
                       const Tracker__Entry *r)
{
    const struct entry *directory = tree_find(c, BY_INO, op->parent);
    const Tracker__Op *m = op->message;

    if (directory == NULL || directory->node.id != r->parent || strcmp(m->name, r->name) != 0 ||
        e->node.kind != (enum node_kind)r->kind || strcmp(c->account, r->owner) != 0)
        return false;
    if (m->kind == TRACKER__OP_KIND__OP_PUBLISH)
        return m->size == r->size && m->root.len == r->root.len &&
               memcmp(m->root.data, r->root.data, r->root.len) == 0;
    return m->kind != TRACKER__OP_KIND__OP_SYMLINK || strcmp(m->target, r->target) == 0;
}

struct entry *journal_made(struct catalogue *c, const Tracker__Entry *r)
{
    for (size_t i = c->ops_first; i < c->ops_end && i < c->ops_first + 2 * WINDOW; i++) {
        const struct op *op = c->ops[i];
        if (op == NULL || (!op->sent && !op->again) ||
            (!makes(op->message) && op->message->kind != TRACKER__OP_KIND__OP_RENAME))
            continue;
        struct entry *e = tree_find(c, BY_INO, op->ino);
        if (e != NULL && e->node.id == 0 && is_made_by(c, op, e, r))
            return e;
    }
    return NULL;
}

/* Answers and pushes come in no order of their own. Everything up to c->seq has been pushed: what is older and was not named
 * by that, or was said to be gone, is gone since. */
static bool is_past(const struct catalogue *c, const Tracker__Entry *r)
{
    const struct entry *e = tree_find(c, BY_ID, r->id);

    if (r->seq > c->seq)
        return false;
    bool gone =
        e != NULL && e->pending != NULL && e->pending->held != NULL && e->pending->held->gone;
    return e == NULL || gone || (e->flags & FLAG_GHOST) != 0 || remote_is_unnamed(c, e);
}

static void learn(struct catalogue *c, const Tracker__Entry *r)
{
    if (!is_past(c, r))
        remote_absorb(c, r);
}

static void accepted(struct catalogue *c, const struct op *op, struct entry *e, struct entry *other,
                     const Tracker__Entry *r)
{
    if (other != NULL && !makes(op->message))
        infer_other(c, op, e, other, r);
    if (r == NULL)
        return;
    Tracker__Entry gone = TRACKER__ENTRY__INIT;
    gone.id = r->id;
    gone.seq = r->seq;
    gone.gone = true;
    if (is_past(c, r))
        r = &gone;
    if (makes(op->message))
        adopt(c, e, r);
    if (e->node.id == r->id)
        hold(c, e, r);
    else
        learn(c, r);
}

static const char *status_text(Tracker__OpStatus status)
{
    if (status == TRACKER__OP_STATUS__OP_QUOTA)
        return "this account has as many files, directories and links as it may";
    return strerror(-error_of(status));
}

/* Another member was quicker to use the name, or to write what had it: so ours goes beside. */
static void rename_beside(struct catalogue *c, struct entry *e)
{
    struct entry *directory = (struct entry *)(void *)e->node.parent;
    Tracker__Op op = TRACKER__OP__INIT;
    char name[NAME_BYTES_MAX + 1];

    tree_conflict_name(c, directory, e->node.name, name);
    log_info("'%s' is another member's: what was renamed so here is kept as '%s'", e->node.name,
             name);
    e->node.opens++;
    tree_unlink(c, e);
    tree_link(c, e, directory, name, 0);
    e->node.opens--;
    op.kind = TRACKER__OP_KIND__OP_RENAME;
    op.id = e->node.id;
    op.name = name;
    op.no_replace = true;
    journal_add(c, &op, e, NULL, directory);
}

static void refused(struct catalogue *c, const struct op *op, struct entry *e,
                    Tracker__OpStatus status, const Tracker__Entry *r)
{
    struct pending *p = tree_pending(e);
    bool merged = op->message->kind == TRACKER__OP_KIND__OP_MKDIR && r != NULL && !r->gone &&
                  r->kind == TRACKER__KIND__KIND_DIRECTORY &&
                  status == TRACKER__OP_STATUS__OP_EXISTS && e->node.id == 0 && !is_past(c, r);

    if (merged) { /* two made the same directory: it is one */
        adopt(c, e, r);
        if (e->node.id == r->id) {
            hold(c, e, r);
            return;
        }
    }
    if (r != NULL)
        learn(c, r);
    bool taken =
        status == TRACKER__OP_STATUS__OP_EXISTS || status == TRACKER__OP_STATUS__OP_CONFLICT;
    if (op->message->kind == TRACKER__OP_KIND__OP_RENAME && taken && !op->message->exchange &&
        e->node.unconfirmed == 1 && tree_is_attached(c, e) && e != c->root) {
        rename_beside(c, e);
        return;
    }
    if (op->message->kind == TRACKER__OP_KIND__OP_REMOVE && taken) {
        log_info("'%s' was removed here and has a new version by another member: it stays",
                 e->node.name);
        return;
    }
    if (!makes(op->message)) {
        if (status != TRACKER__OP_STATUS__OP_NOT_FOUND)
            log_warning("the tracker refuses a change of '%s': %s", e->node.name,
                        status_text(status));
        return;
    }
    if (op->message->op < p->last_content)
        return; /* a later content counts */
    p->lost = (uint8_t)lost_by(status);
    if (status == TRACKER__OP_STATUS__OP_QUOTA)
        c->quota_met = c->now;
    if (p->lost == LOST_LATER)
        log_warning("the tracker does not take '%s' now: %s", e->node.name, status_text(status));
}

static void one_result(struct catalogue *c, const Tracker__Result *result)
{
    size_t at = find_op(c, result->op);
    const Tracker__Entry *r = result->entry;

    if (at == c->ops_end)
        return; /* answered before the connection was lost */
    struct op *op = c->ops[at];
    struct entry *e = tree_find(c, BY_INO, op->ino);
    struct entry *other = op->other != 0 ? tree_find(c, BY_INO, op->other) : NULL;
    CHECK(e != NULL && e->node.unconfirmed > 0);
    Tracker__OpStatus status = result->status;
    if (r != NULL && (!remote_is_sound(c, r) ||
                      (status == OK && !r->gone && r->kind != (Tracker__Kind)e->node.kind)))
        r = NULL;
    if (status == OK && (makes(op->message) || op->message->kind == TRACKER__OP_KIND__OP_REMOVE))
        c->quota_met = 0;
    uint64_t number = op->message->op, other_ino = op->other;
    bool replaces = makes(op->message);

    take_out(c, at);
    if (other != NULL && replaces)
        other->node.unconfirmed--; /* so that it can become one with ours */
    if (makes(op->message) && op->message->op >= e->pending->last_content)
        e->pending->lost = LOST_NOT;
    if (status == OK && (r != NULL || !makes(op->message)))
        accepted(c, op, e, other, r);
    else if (status == OK) /* made, it says, but not what: that helps nobody */
        refused(c, op, e, TRACKER__OP_STATUS__OP_BAD, r);
    else
        refused(c, op, e, status, r);
    if (e->pending->made_by == number)
        e->pending->made_by = 0;
    op_free(op);
    e->node.unconfirmed--;
    tree_dirty(c, e);
    if (e->node.unconfirmed == 0)
        journal_settle(c, e);
    if (other != NULL && replaces) {
        other = tree_find(c, BY_INO, other_ino);
        if (other != NULL && other->node.unconfirmed == 0 && other->node.id != 0 &&
            other->pending != NULL && other->pending->held != NULL)
            journal_settle(c, other); /* the tracker took ours for something else */
    } else if (other != NULL && --other->node.unconfirmed == 0) {
        journal_settle(c, other);
    }
}

void catalogue_results(struct catalogue *c, const Tracker__Results *results, int64_t now)
{
    c->now = now;
    c->answering = true;
    for (size_t i = 0; i < results->n_results; i++)
        if (results->results[i] != NULL)
            one_result(c, results->results[i]);
    c->answering = false;
    remote_retry_hidden(c);
}

/* --- settling --------------------------------------------------------------------------------- */

static struct entry *live_parent(struct catalogue *c, struct entry *e)
{
    return tree_is_attached(c, e) ? (struct entry *)(void *)e->node.parent : c->root;
}

/* A content that lost its name to another version: a new entry beside, which keeps the ino, as who
 * has it open has our content open. */
static void fork_beside(struct catalogue *c, struct entry *e, bool later)
{
    struct entry *directory = live_parent(c, e);
    struct entry *copy = tree_new(c, 0, e->node.kind, e->node.name);
    char name[NAME_BYTES_MAX + 1];

    copy->node.mode = e->node.mode;
    copy->node.mtime = e->node.mtime;
    copy->node.owner = e->node.owner;
    copy->node.pinned = e->node.pinned;
    copy->node.opens = e->node.opens;
    tree_set_target(copy, e->node.target);
    tree_set_xattrs(copy, e->node.xattrs);
    tree_set_content(c, copy, e->node.root, e->node.size);
    copy->flags |= e->flags & FLAG_WRITING;
    e->flags &= (uint8_t)~FLAG_WRITING;
    e->node.opens = 0;
    uint64_t ours = e->node.ino, fresh = copy->node.ino;
    tree_set_ino(c, copy, UINT64_MAX); /* out of the way */
    tree_set_ino(c, e, fresh);
    tree_set_ino(c, copy, ours);
    tree_conflict_name(c, directory, e->node.name, name);
    tree_link(c, copy, directory, name, 0);
    log_info("another version of '%s' was published: ours is kept as '%s'", e->node.name, name);
    journal_make(c, copy, later);
}

/* An entry of ours that the tracker does not have, and did not take. */
static void make_again(struct catalogue *c, struct entry *e, enum lost lost)
{
    struct entry *directory = live_parent(c, e);
    struct pending *p = tree_pending(e);
    char name[NAME_BYTES_MAX + 1];

    memcpy(name, e->node.name, strlen(e->node.name) + 1);
    p->has_base = false;
    if (lost == LOST_AGAIN && ++p->retries > RETRIES_MAX) {
        p->retries = 0;
        directory = c->root;
        lost = LOST_BESIDE;
    }
    if (lost == LOST_BESIDE) {
        tree_conflict_name(c, directory, name, name);
        log_info("'%s' cannot be published under its name: it is kept as '%s'", e->node.name, name);
        e->node.opens++;
        tree_unlink(c, e);
        tree_link(c, e, directory, name, 0);
        e->node.opens--;
    }
    journal_make(c, e, lost == LOST_LATER);
}

void journal_settle(struct catalogue *c, struct entry *e)
{
    struct pending *p = e->pending;
    Tracker__Entry *r = p->held;
    enum lost lost = (enum lost)p->lost;
    bool ours = tree_is_linked(c, e) && lost != LOST_NOT;

    p->lost = LOST_NOT;
    tree_dirty(c, e);
    if (r == NULL) {
        if (ours)
            make_again(c, e, lost);
        else if (tree_is_linked(c, e) && (e->flags & FLAG_WRITING) != 0)
            e->node.working = true; /* its next version is on the way */
        else
            remote_discard(c, e);
        return;
    }
    p->held = NULL;
    if (r->gone)
        remote_bury(c, r);
    if (ours && e->node.kind != NODE_DIRECTORY)
        fork_beside(c, e, lost == LOST_LATER);
    remote_show(c, e, r);
    tracker__entry__free_unpacked(r, NULL);
}
