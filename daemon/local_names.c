/* Names for p2pfs: lookup, listing, making, moving, removing, attributes.
 *
 * Owns nothing: translates between the local protocol and the catalogue. Thread: local. A tree of
 * which nobody is logged in is empty: its root can be looked at, nothing else is there. */
#include "daemon/local_private.h"

#include <errno.h>
#include <inttypes.h>

#include "base/clock.h"
#include "base/hex.h"
#include "base/mem.h"
#include "base/name.h"
#include "daemon/download.h"
#include "proto/limits.h"
#include "proto/message.h"

const struct node *names_visible(const struct local *l, uint64_t ino)
{
    if (ino != INO_ROOT && !local_is_visible(l) && write_find(l, ino) == NULL)
        return NULL;
    return catalogue_node(l->catalogue, ino);
}

static const struct node *visible_child(const struct local *l, uint64_t parent, const char *name)
{
    return local_is_visible(l) ? catalogue_lookup(l->catalogue, parent, name) : NULL;
}

/* --- attributes ------------------------------------------------------------------------------- */

static Local__State state_of(const struct node *node, bool here, bool some)
{
    if (node->working)
        return LOCAL__STATE__STATE_LOCAL;
    if (node->unconfirmed > 0)
        return LOCAL__STATE__STATE_PENDING;
    if (node->kind != NODE_FILE)
        return LOCAL__STATE__STATE_PUBLISHED;
    return here   ? LOCAL__STATE__STATE_COMPLETE
           : some ? LOCAL__STATE__STATE_STREAMING
                  : LOCAL__STATE__STATE_PUBLISHED;
}

void names_fill(struct local *l, Local__Attr *a, const struct node *node)
{
    struct store_summary summary = {0};
    bool here = false;

    *a = (Local__Attr)LOCAL__ATTR__INIT;
    a->ino = node->ino;
    a->kind = (Local__Kind)node->kind;
    a->mtime = node->mtime;
    a->mode = node->mode;
    const struct node *directory = node->kind == NODE_DIRECTORY ? node : node->parent;
    if (directory != NULL && node->kind != NODE_SYMLINK && !catalogue_may_write(directory))
        a->mode &= ~0222u; /* as it is for this member */
    /* A directory's: its name, its ".", and the ".." of each in it. */
    if (node->parent != NULL || node->ino == INO_ROOT)
        a->nlink = node->kind == NODE_DIRECTORY ? 2 + catalogue_folders(node) : 1;
    a->owner = message_text(node->owner);
    a->parent = node->parent == NULL ? 0 : node->parent->ino;
    a->name = message_text(node->name);
    a->pinned = node->pinned;
    if (node->kind == NODE_SYMLINK && node->target != NULL)
        a->size = a->local = strlen(node->target);
    if (node->kind == NODE_FILE) {
        a->size = node->size;
        here = node->size == 0;
        if (node->working) {
            a->local = node->size;
        } else {
            a->root.data = (uint8_t *)(uintptr_t)node->root;
            a->root.len = HASH_SIZE;
            if (!here && store_summary(l->daemon->store, node->root, &summary)) {
                a->local = summary.bytes < node->size ? summary.bytes : node->size;
                here = summary.complete;
            }
        }
    }
    a->state = state_of(node, here, a->local > 0);
}

void names_send_attr(struct local *l, struct reply reply, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);
    Local__Attr attr;

    if (node == NULL) {
        local_error(l, reply, ENOENT, "there is no such entry any more");
        return;
    }
    names_fill(l, &attr, node);
    local_send(l, reply, TYPE(ATTR), &attr.base);
}

void names_lookup(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Lookup *m = message;
    const struct node *node = visible_child(l, m->parent, m->name);
    Local__Attr attr;

    if (node == NULL) {
        local_error(l, reply, strlen(m->name) > NAME_BYTES_MAX ? ENAMETOOLONG : ENOENT, "%s", "");
        return;
    }
    names_fill(l, &attr, node);
    local_send(l, reply, TYPE(ATTR), &attr.base);
}

void names_getattr(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const struct node *node = names_visible(l, ((const Local__Node *)message)->ino);
    Local__Attr attr;

    if (node == NULL) {
        local_error(l, reply, ENOENT, "%s", "");
        return;
    }
    names_fill(l, &attr, node);
    local_send(l, reply, TYPE(ATTR), &attr.base);
}

void names_setattr(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Setattr *m = message;
    int error = names_visible(l, m->ino) == NULL
                    ? -ENOENT
                    : catalogue_attr(l->catalogue, m->ino, m->set_mode ? &m->mode : NULL,
                                     m->set_mtime ? &m->mtime : NULL);

    if (error != 0)
        local_error(l, reply, error, "%s", "");
    else
        names_send_attr(l, reply, m->ino);
}

/* --- listing ---------------------------------------------------------------------------------- */

void names_list(struct local *l, struct reply reply, const struct node *directory, uint64_t cookie,
                uint32_t count)
{
    Local__Listing listing = LOCAL__LISTING__INIT;
    const struct node *child = NULL;

    if (count == 0 || count > LIMIT_LIST_ENTRIES)
        count = LIMIT_LIST_ENTRIES;
    Local__Attr *attrs = xmalloc(count * sizeof *attrs),
                **entries = xmalloc(count * sizeof *entries);
    uint64_t *cookies = xmalloc(count * sizeof *cookies);
    while (listing.n_entries < count && local_is_visible(l) &&
           (child = catalogue_next(l->catalogue, directory, &cookie)) != NULL) {
        size_t i = listing.n_entries++;
        names_fill(l, &attrs[i], child);
        entries[i] = &attrs[i];
        cookies[i] = cookie;
    }
    listing.end =
        listing.n_entries < count || catalogue_next(l->catalogue, directory, &cookie) == NULL;
    listing.entries = entries;
    listing.cookies = cookies;
    listing.n_cookies = listing.n_entries;
    local_send(l, reply, TYPE(LISTING), &listing.base);
    free(attrs);
    free(entries);
    free(cookies);
}

void names_readdir(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Readdir *m = message;
    const struct node *directory = names_visible(l, m->ino);

    if (directory == NULL || directory->kind != NODE_DIRECTORY)
        local_error(l, reply, directory == NULL ? ENOENT : ENOTDIR, "%s", "");
    else
        names_list(l, reply, directory, m->cookie, m->count);
}

void names_send_text(struct local *l, struct reply reply, const char *text)
{
    Local__Text message = LOCAL__TEXT__INIT;

    message.text = message_text(text);
    local_send(l, reply, TYPE(TEXT), &message.base);
}

void names_readlink(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const struct node *node = names_visible(l, ((const Local__Node *)message)->ino);

    if (node == NULL || node->kind != NODE_SYMLINK || node->target == NULL)
        local_error(l, reply, node == NULL ? ENOENT : EINVAL, "%s", "");
    else
        names_send_text(l, reply, node->target);
}

void names_statfs(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    Local__Space space = LOCAL__SPACE__INIT;
    uint64_t held;

    store_space(l->daemon->store, &held, &space.free, &space.size);
    space.entries = local_is_visible(l) ? catalogue_entries(l->catalogue) : 0;
    local_send(l, reply, TYPE(SPACE), &space.base);
}

/* --- changes ---------------------------------------------------------------------------------- */

/* What is answered survives a kill of p2pd: p2pfs goes on over it, and an fsync of the directory, answered by the next p2pd,
 * is about this change, too. If it cannot be written now it is kept in memory and tried again; fsync says so. */
static void keep(struct local *l, int error)
{
    if (error == 0 && catalogue_is_dirty(l->catalogue))
        (void)catalogue_commit(l->catalogue, false);
}

/* Answers with the new entry's attributes, or the error. */
static void made(struct local *l, struct reply reply, int error, uint64_t ino)
{
    keep(l, error);
    if (error != 0)
        local_error(l, reply, error, "%s", "");
    else
        names_send_attr(l, reply, ino);
}

void names_mkdir(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Make *m = message;
    uint64_t ino = 0;
    int error = !local_is_visible(l) ? -EACCES
                                     : catalogue_mkdir(l->catalogue, m->parent, m->name, m->mode,
                                                       clock_wall(), &ino);

    made(l, reply, error, ino);
}

void names_mknod(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    static const uint8_t zero_root[HASH_SIZE];
    const Local__Make *m = message;
    uint64_t ino = 0;
    int64_t now = clock_wall();
    int error = !local_is_visible(l)
                    ? -EACCES
                    : catalogue_create(l->catalogue, m->parent, m->name, m->mode, now, &ino);

    if (error == 0)
        error = catalogue_publish(l->catalogue, ino, zero_root, 0, now, now);
    made(l, reply, error, ino);
}

void names_symlink(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Make *m = message;
    uint64_t ino = 0;
    int error = !local_is_visible(l) ? -EACCES
                                     : catalogue_symlink(l->catalogue, m->parent, m->name,
                                                         m->target, clock_wall(), &ino);

    made(l, reply, error, ino);
}

void names_finish(struct local *l, struct reply reply, int error)
{
    keep(l, error);
    if (error != 0)
        local_error(l, reply, error, "%s", "");
    else
        local_done(l, reply);
}

static void remove_name(struct local *l, struct reply reply, const Local__Lookup *m, bool directory)
{
    names_finish(l, reply,
                 !local_is_visible(l)
                     ? -ENOENT
                     : catalogue_remove(l->catalogue, m->parent, m->name, directory));
}

void names_unlink(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    remove_name(l, reply, message, false);
}

void names_rmdir(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    remove_name(l, reply, message, true);
}

void names_rename(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Rename *m = message;
    const struct rename rename = {.parent = m->parent,
                                  .name = m->name,
                                  .to_parent = m->to_parent,
                                  .to_name = m->to_name,
                                  .no_replace = m->no_replace,
                                  .exchange = m->exchange};

    if (rename.no_replace && rename.exchange)
        names_finish(l, reply, -EINVAL);
    else
        names_finish(l, reply,
                     local_is_visible(l) ? catalogue_rename(l->catalogue, &rename) : -ENOENT);
}

void names_renew(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    uint64_t ino = ((const Local__Node *)message)->ino;

    if (names_visible(l, ino) == NULL)
        names_finish(l, reply, -ENOENT);
    else
        names_finish(l, reply,
                     write_find(l, ino) != NULL ? -EBUSY : catalogue_renew(l->catalogue, ino));
}
