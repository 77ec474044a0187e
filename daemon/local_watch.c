/* p2pctl watch: what changes in the tree, told as it happens.
 *
 * Owns the watches (one a client at most) and the events of the round under way. Thread: local.
 *
 * The catalogue says what it does in small steps: a rename is an unlink and a link, a new version may be both as well. So
 * the steps of one round of the loop are gathered by path, with what was there before the first of them; at the end of
 * the round they are compared with what is there now, and what is the same again is not told. Nothing is gathered while
 * nobody watches.
 *
 * Who does not read loses events, and is told so: it costs no memory here. */
#include "daemon/local_private.h"

#include <errno.h>

#include "base/clock.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "proto/message.h"

struct watch {
    uint32_t id; /* of the request */
    char *path;  /* "" for all, else without a slash at the end */
    bool lost;   /* some events were not told */
};

struct watch_event {
    struct watch_event *next;
    char *path;
    enum node_change first;
    uint64_t ino;
    bool told;
    /* what was there, of an unlinked one */
    enum node_kind kind;
    uint64_t size;
    int64_t mtime;
    uint16_t mode;
    uint8_t root[HASH_SIZE];
    bool ours;
};

/* --- gathering -------------------------------------------------------------------------------- */

void watch_changed(struct local *l, const struct node *node, enum node_change change)
{
    if (l->watchers == 0 || !local_is_visible(l))
        return;
    char *path = catalogue_path(l->catalogue, node);
    if (path == NULL)
        return;
    /* The newest ones are at the end; a path comes again soon, if at all. */
    for (const struct watch_event *e = l->events; change != NODE_UNLINKED && e != NULL; e = e->next)
        if (e->ino == node->ino && strcmp(e->path, path) == 0) {
            free(path);
            return;
        }
    struct watch_event *e = xcalloc(1, sizeof *e);
    e->path = path;
    e->first = change;
    e->ino = node->ino;
    e->kind = node->kind;
    e->size = node->kind == NODE_FILE ? node->size : 0;
    e->mtime = node->mtime;
    e->mode = node->mode;
    memcpy(e->root, node->root, HASH_SIZE);
    e->ours = node->unconfirmed > 0;
    *l->events_end = e;
    l->events_end = &e->next;
}

/* --- telling ---------------------------------------------------------------------------------- */

static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);

    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static void send_change(struct client *cl, const Local__Change *change)
{
    channel_send(cl->channel, CHANNEL_BULK, TYPE(CHANGE), 0, cl->watch->id, &change->base, NULL, 0);
}

static void tell(struct local *l, Local__Change *change)
{
    change->time = clock_wall();
    for (struct client *cl = l->clients; cl != NULL; cl = cl->next) {
        if (cl->watch == NULL ||
            (!is_below(change->path, cl->watch->path) &&
             !(change->from[0] != '\0' && is_below(change->from, cl->watch->path))))
            continue;
        if (channel_queued(cl->channel, CHANNEL_BULK) > LIMIT_WATCH_QUEUE) {
            cl->watch->lost = true;
            continue;
        }
        if (cl->watch->lost) {
            Local__Change lost = LOCAL__CHANGE__INIT;
            lost.what = LOCAL__WHAT__WHAT_LOST;
            lost.time = change->time;
            cl->watch->lost = false;
            send_change(cl, &lost);
        }
        send_change(cl, change);
    }
}

static void describe(Local__Change *change, const struct node *node, const char *path)
{
    *change = (Local__Change)LOCAL__CHANGE__INIT;
    change->path = message_text(path);
    change->who = message_text(node->owner);
    change->kind = (Local__Kind)node->kind;
    change->mtime = node->mtime;
    change->mode = node->mode;
    if (node->kind == NODE_FILE) {
        change->size = node->size;
        change->root = (ProtobufCBinaryData){HASH_SIZE, (uint8_t *)(uintptr_t)node->root};
    }
}

/* What else the round says of this path or this entry is part of the same thing. */
static struct watch_event *other_end(const struct watch_event *unlinked)
{
    for (struct watch_event *e = unlinked->next; e != NULL; e = e->next)
        if (e->first == NODE_LINKED && e->ino == unlinked->ino && !e->told)
            return e;
    return NULL;
}

/* Of what happens to names the tracker does not say. */
static char *who_did(const struct local *l, bool ours)
{
    return message_text(ours ? catalogue_account(l->catalogue) : "");
}

static void tell_unlinked(struct local *l, struct watch_event *e, const struct node *now)
{
    struct watch_event *to = other_end(e);
    Local__Change change;
    int error;

    if (now != NULL && (to == NULL || now->ino == e->ino)) { /* replaced, or back again */
        bool same = now->kind == e->kind && memcmp(now->root, e->root, HASH_SIZE) == 0;
        describe(&change, now, e->path);
        change.what = same ? LOCAL__WHAT__WHAT_ATTRIBUTES : LOCAL__WHAT__WHAT_CHANGED;
        for (struct watch_event *at = e->next; at != NULL; at = at->next)
            at->told |= strcmp(at->path, e->path) == 0;
        if (!same || now->mode != e->mode || now->mtime != e->mtime)
            tell(l, &change);
        return;
    }
    const struct node *moved =
        to == NULL ? NULL : catalogue_resolve(l->catalogue, to->path, &error);
    if (moved != NULL && moved->ino == e->ino) {
        for (struct watch_event *at = e; at != NULL; at = at->next)
            at->told |= strcmp(at->path, to->path) == 0;
        describe(&change, moved, to->path);
        change.what = LOCAL__WHAT__WHAT_RENAMED;
        change.from = e->path;
        change.who = who_did(l, e->ours || moved->unconfirmed > 0);
        tell(l, &change);
        return;
    }
    change = (Local__Change)LOCAL__CHANGE__INIT;
    change.what = LOCAL__WHAT__WHAT_REMOVED;
    change.path = e->path;
    change.who = who_did(l, e->ours);
    change.kind = (Local__Kind)e->kind;
    change.size = e->size;
    change.mtime = e->mtime;
    change.mode = e->mode;
    if (e->kind == NODE_FILE)
        change.root = (ProtobufCBinaryData){HASH_SIZE, e->root};
    tell(l, &change);
}

static void tell_one(struct local *l, struct watch_event *e)
{
    static const Local__What what[] = {[NODE_LINKED] = LOCAL__WHAT__WHAT_CREATED,
                                       [NODE_CONTENT] = LOCAL__WHAT__WHAT_CHANGED,
                                       [NODE_ATTRIBUTES] = LOCAL__WHAT__WHAT_ATTRIBUTES};
    Local__Change change;
    int error;
    const struct node *now = catalogue_resolve(l->catalogue, e->path, &error);

    e->told = true;
    if (now != NULL && now->working)
        now = NULL;
    if (e->first == NODE_UNLINKED) {
        tell_unlinked(l, e, now);
        return;
    }
    if (now == NULL)
        return; /* came and went */
    for (struct watch_event *at = e->next; at != NULL; at = at->next)
        at->told |= strcmp(at->path, e->path) == 0;
    describe(&change, now, e->path);
    change.what = what[e->first];
    tell(l, &change);
}

void watch_flush(struct local *l)
{
    while (l->events != NULL) {
        struct watch_event *e = l->events;
        if (!e->told && l->watchers > 0)
            tell_one(l, e);
        l->events = e->next;
        free(e->path);
        free(e);
    }
    l->events_end = &l->events;
}

/* --- watches ---------------------------------------------------------------------------------- */

/* The path in the swarm, whether or not something is there. */
static char *place_of(struct local *l, const char *path)
{
    const char *inside = ctl_inside(l, path);
    char *copy = xstrdup(inside);
    size_t length = strlen(copy);

    while (length > 0 && copy[length - 1] == '/')
        copy[--length] = '\0';
    return copy;
}

void watch_begin(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Watch *m = message;
    Local__Change first = LOCAL__CHANGE__INIT;

    if (!local_is_visible(l) || strlen(m->path) > LIMIT_PATH) {
        local_error(l, reply, ENOENT, "%s",
                    local_is_visible(l) ? "the path is too long" : "nobody is logged in");
        return;
    }
    if (cl->watch != NULL) {
        local_error(l, reply, EBUSY, "one watch at a time");
        return;
    }
    cl->watch = xcalloc(1, sizeof *cl->watch);
    cl->watch->id = reply.id;
    cl->watch->path = place_of(l, m->path);
    l->watchers++;
    first.what = LOCAL__WHAT__WHAT_WATCHING;
    first.path = cl->watch->path[0] != '\0' ? cl->watch->path : message_text("/");
    first.time = clock_wall();
    send_change(cl, &first);
}

void watch_client_gone(struct local *l, struct client *cl)
{
    if (cl->watch == NULL)
        return;
    free(cl->watch->path);
    free(cl->watch);
    cl->watch = NULL;
    l->watchers--;
}

void watch_free(struct local *l)
{
    l->watchers = 0;
    watch_flush(l);
}
