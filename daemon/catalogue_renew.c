/* A file goes on under another number.
 *
 * Owns catalogue_renew. Numbers are what a kernel knows files by: who has the old one open keeps what he has, as when
 * another member's version replaces a content (catalogue_remote.c), only that here the content is the same and the
 * entry, with what the tracker has not confirmed of it, stays what it is. Operations in the journal name their entry by
 * its number, in their rows, too: these are written again. Thread: local. */
#include "daemon/catalogue_private.h"

#include <errno.h>

static void rename_ops(struct catalogue *c, uint64_t from, uint64_t to)
{
    bool found = false;

    for (size_t i = c->ops_first; i < c->ops_end; i++) {
        struct op *op = c->ops[i];

        if (op == NULL)
            continue;
        found = found || op->ino == from || op->other == from;
        if (op->ino == from)
            op->ino = to;
        if (op->other == from)
            op->other = to;
        if (found &&
            op->stored) { /* rows that are not stored yet are the last ones, without a gap */
            op->stored = false;
            c->ops_new++;
        }
    }
}

int catalogue_renew(struct catalogue *c, uint64_t ino)
{
    struct entry *e = tree_find(c, BY_INO, ino), *old;

    if (e == NULL || e->node.kind != NODE_FILE || !tree_is_attached(c, e))
        return -ENOENT;
    if (e->node.working || (e->flags & FLAG_WRITING) != 0)
        return -EBUSY;
    tree_set_ino(c, e, 0);
    rename_ops(c, ino, e->node.ino);
    if (e->node.opens > 0) {
        old = tree_new(c, ino, NODE_FILE, e->node.name);
        old->node.mode = e->node.mode;
        old->node.mtime = e->node.mtime;
        old->node.owner = e->node.owner;
        old->node.opens = e->node.opens;
        tree_set_xattrs(old, e->node.xattrs);
        old->flags |= FLAG_REPLACED;
        tree_set_content(c, old, e->node.root, e->node.size);
        e->node.opens = 0;
    }
    c->events->invalid(c->arg, ino, 0, NULL);
    c->events->renewed(c->arg, e->node.ino, e->node.parent->ino, e->node.name);
    return 0;
}
