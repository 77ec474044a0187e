/* What is taken away to keep the cache within its limit, or because somebody asked for it.
 *
 * Owns the rounds and the conversation with the tracker. Leaves the choice by use to store_choose, the deletion to
 * store_evict. Thread: local; disk work on a thread of its own, as punching holes and syncing take as long as the disk likes.
 *
 *   evict_look --> choose (worker) --> for each content: session_release --> granted --> store_evict (worker)
 *                                                                      \--> refused: left alone for REFUSED_NS
 *
 * Never goes: what this member put in (unless asked for by name), what is pinned, what is being fetched whole or copied
 * from, pieces that no other connected device holds (the tracker says), a file that a program has open complete. All that
 * comes on top of the limit. While the tracker is away nothing goes, and the limit may be exceeded.
 *
 * Memory: a list of pinned contents while choosing; 100 bytes for each content that is to go. */
#include "daemon/evict.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/local_private.h"
#include "daemon/session.h"

#define ASKED_MOST 32 /* contents about which the tracker is asked at once */
#define REFUSED_NS (60 * NS_PER_S)
#define AGAIN_NS   (10 * NS_PER_S) /* after a round in which nothing could go */
#define WHY_MAX    256

/* One `p2pctl evict`. */
struct command {
    struct reply reply;
    unsigned left; /* victims that are not through */
    uint64_t bytes;
    uint32_t files, kept;
    char why[WHY_MAX]; /* the first that was kept, and why */
};

struct victim {
    struct task task;
    struct victim *next;
    struct evict *evict;
    struct store_victim what;
    struct command *command; /* NULL: because of the limit */
    uint64_t freed;
    bool gone, held; /* held: session_released is owed */
    int error;
};

struct refused {
    uint8_t root[HASH_SIZE];
    int64_t until;
    UT_hash_handle hh;
};

struct evict {
    struct local *local;
    struct workers *disk;
    uint64_t limit;
    uint64_t kept; /* bytes that do not count, at the last look, believed until then: */
    int64_t kept_until;
    uint64_t cached;
    int64_t again; /* no round before that */
    bool choosing;
    unsigned round_left; /* victims of the round that are not through */
    uint64_t round_freed;
    struct victim *queue, **queue_end;
    unsigned asked;
    struct refused *refused;
};

struct evict *evict_new(struct local *l)
{
    struct evict *e = xcalloc(1, sizeof *e);

    e->local = l;
    e->limit = l->daemon->settings.cache_size;
    e->queue_end = &e->queue;
    e->disk = workers_new("evict", 1);
    return e;
}

void evict_stop(struct evict *e)
{
    workers_drain(e->disk);
}

static void forget_refused(struct evict *e, int64_t now)
{
    struct refused *r, *next;

    HASH_ITER(hh, e->refused, r, next) {
        if (r->until > now)
            continue;
        HASH_DEL(e->refused, r);
        free(r);
    }
}

static void victim_free(struct victim *v)
{
    free(v->what.pieces);
    free(v);
}

void evict_free(struct evict *e)
{
    if (e == NULL)
        return;
    while (e->queue != NULL) {
        struct victim *v = e->queue;
        e->queue = v->next;
        if (v->command != NULL && --v->command->left == 0)
            free(v->command);
        victim_free(v);
    }
    forget_refused(e, INT64_MAX);
    workers_free(e->disk);
    free(e);
}

/* --- through ----------------------------------------------------------------------------------------- */
static void finish_command(struct evict *e, struct command *c)
{
    Local__Evicted message = LOCAL__EVICTED__INIT;

    message.files = c->files;
    message.bytes = c->bytes;
    message.kept = c->kept;
    message.why = c->why;
    if (!e->local->stopped)
        local_send(e->local, c->reply, TYPE(EVICTED), &message.base);
    free(c);
}

static void say_kept(struct evict *e, struct command *c, const uint8_t *root, const char *why)
{
    const struct node *node = catalogue_with_root(e->local->catalogue, root, NULL);
    char *path = node == NULL ? NULL : catalogue_path(e->local->catalogue, node);

    c->kept++;
    if (c->why[0] == '\0')
        snprintf(c->why, sizeof c->why, "%.150s %s", path == NULL ? "a file" : path, why);
    free(path);
}

static const char *reason(int error, uint64_t freed)
{
    if (error == -EBUSY)
        return "is open in a program, which has all of it";
    if (error == -ENOTCONN)
        return "stays: without the tracker nobody knows whether others have it";
    if (error == -EPERM)
        return freed > 0 ? "stays in part: of the rest no other connected member has a copy"
                         : "stays: no other connected member has a copy";
    return "stays: the store could not delete it";
}

static void refuse(struct evict *e, const uint8_t *root)
{
    struct refused *r;

    HASH_FIND(hh, e->refused, root, HASH_SIZE, r);
    if (r == NULL) {
        r = xcalloc(1, sizeof *r);
        memcpy(r->root, root, HASH_SIZE);
        HASH_ADD(hh, e->refused, root, HASH_SIZE, r);
    }
    r->until = clock_now() + REFUSED_NS;
}

static void pump(struct evict *e);

/* The names of this content look different now. */
static void tell_mounts(struct local *l, const uint8_t *root)
{
    const struct node *node = NULL;

    while ((node = catalogue_with_root(l->catalogue, root, node)) != NULL)
        push_invalid(l, node->ino, 0, NULL);
}

static void through(struct victim *v)
{
    struct evict *e = v->evict;
    struct local *l = e->local;
    struct command *c = v->command;

    log_debug("cache: gave up %llu bytes of one content%s%s", (unsigned long long)v->freed,
              v->error < 0 ? ": " : "", v->error < 0 ? strerror(-v->error) : "");
    if (v->held)
        session_released(l->daemon->session, v->what.root, v->gone);
    if (v->freed > 0 && !l->stopped)
        tell_mounts(l, v->what.root);
    if (c != NULL) {
        c->bytes += v->freed;
        c->files += v->freed > 0;
        if (v->error < 0 && v->error != -ENOENT && !l->stopped)
            say_kept(e, c, v->what.root, reason(v->error, v->freed));
        if (--c->left == 0)
            finish_command(e, c);
    } else {
        e->round_left--;
        e->round_freed += v->freed;
        e->cached -= v->freed < e->cached ? v->freed : e->cached;
        if (v->error < 0 && v->error != -ENOTCONN)
            refuse(e, v->what.root);
        if (e->round_left == 0 && e->round_freed == 0)
            e->again = clock_now() + AGAIN_NS;
    }
    victim_free(v);
    pump(e);
    evict_look(e);
}

/* --- one content ---------------------------------------------------------------------------------------- */
static void take_work(struct task *task)
{
    struct victim *v = (struct victim *)(void *)task;
    int error = store_evict(task->local->daemon->store, &v->what, &v->freed, &v->gone);

    if (error < 0)
        v->error = error;
}

static void take_done(struct local *l, struct task *task)
{
    struct victim *v = (struct victim *)(void *)task;

    (void)l;
    v->evict->asked--;
    through(v);
}

/* Keeps of what was wanted what was granted. False if nothing is left; *all: nothing was refused. */
static bool only_granted(struct store_victim *what, uint8_t *granted, bool *all)
{
    uint32_t pieces = geometry_of(what->size).pieces;
    size_t bytes = bitmap_bytes(pieces);
    bool any = false;

    *all = true;
    for (size_t i = 0; i < bytes; i++) {
        uint8_t wanted = what->pieces != NULL ? what->pieces[i] : 0xff;
        if (what->pieces == NULL && i + 1 == bytes && pieces % 8 != 0)
            wanted = (uint8_t)((1u << (pieces % 8)) - 1);
        *all = *all && (wanted & ~granted[i]) == 0;
        granted[i] &= wanted;
        any = any || granted[i] != 0;
    }
    if (*all && what->pieces == NULL) {
        free(granted);
        return true;
    }
    free(what->pieces);
    what->pieces = granted;
    return any;
}

void evict_granted(struct evict *e, void *cookie, int error, uint8_t *granted)
{
    struct victim *v = cookie;
    bool all = false;

    CHECK(v->evict == e);
    if (error != 0) {
        free(granted);
        v->error = -error;
    } else if (!only_granted(&v->what, granted, &all)) {
        v->error = -EPERM;
    } else {
        v->error = all ? 0 : -EPERM;
        if (!e->local->stopped) {
            local_post_to(e->local, e->disk, &v->task, take_work, take_done);
            return;
        }
    }
    e->asked--;
    through(v);
}

static void pump(struct evict *e)
{
    struct local *l = e->local;

    while (e->queue != NULL && e->asked < ASKED_MOST && !l->stopped) {
        struct victim *v = e->queue;
        uint8_t *pieces = NULL;
        e->queue = v->next;
        if (e->queue == NULL)
            e->queue_end = &e->queue;
        if (v->what.pieces != NULL)
            pieces = xmemdup(v->what.pieces, bitmap_bytes(geometry_of(v->what.size).pieces));
        e->asked++;
        v->held = true;
        session_release(l->daemon->session, v->what.root, v->what.size, pieces, v);
    }
}

static void add_victim(struct evict *e, const struct store_victim *what, struct command *command)
{
    struct victim *v = xcalloc(1, sizeof *v);

    v->evict = e;
    v->what = *what;
    v->command = command;
    *e->queue_end = v;
    e->queue_end = &v->next;
}

/* --- the limit -------------------------------------------------------------------------------------------- */
struct choose_task {
    struct task task;
    struct evict *evict;
    uint8_t (*kept)[HASH_SIZE];
    size_t kept_count, kept_room;
    uint64_t most, cached;
    bool passing; /* something is kept for a while only */
    struct store_victim *victims;
    size_t count;
};

static void keep(struct choose_task *choose, const uint8_t *root)
{
    if (choose->kept_count == choose->kept_room) {
        choose->kept_room = choose->kept_room == 0 ? 64 : 2 * choose->kept_room;
        choose->kept = xrealloc(choose->kept, choose->kept_room * HASH_SIZE);
    }
    memcpy(choose->kept[choose->kept_count++], root, HASH_SIZE);
}

static void keep_pinned(void *arg, const struct node *node)
{
    if (node->kind == NODE_FILE && !node->working)
        keep(arg, node->root);
}

static int by_root(const void *a, const void *b)
{
    return memcmp(a, b, HASH_SIZE);
}

static void choose_work(struct task *task)
{
    struct choose_task *choose = (struct choose_task *)(void *)task;

    if (choose->kept_count > 1)
        qsort(choose->kept, choose->kept_count, HASH_SIZE, by_root);
    choose->count = store_choose(task->local->daemon->store, choose->most,
                                 (const uint8_t(*)[HASH_SIZE])(void *)choose->kept,
                                 choose->kept_count, &choose->cached, &choose->victims);
}

static void choose_done(struct local *l, struct task *task)
{
    struct choose_task *choose = (struct choose_task *)(void *)task;
    struct evict *e = choose->evict;
    uint64_t held = store_held(l->daemon->store);

    e->choosing = false;
    log_debug("cache: %llu of %llu bytes, %zu contents to give up some",
              (unsigned long long)choose->cached, (unsigned long long)e->limit, choose->count);
    e->cached = choose->cached;
    e->kept = held > choose->cached ? held - choose->cached : 0;
    e->kept_until = clock_now() + (choose->passing ? NS_PER_S : AGAIN_NS);
    e->round_freed = 0;
    if (choose->cached > e->limit && !l->stopped) {
        for (size_t i = 0; i < choose->count; i++) {
            add_victim(e, &choose->victims[i], NULL);
            choose->victims[i].pieces = NULL; /* taken over */
        }
        e->round_left = (unsigned)choose->count;
        if (choose->count == 0)
            e->again = clock_now() + AGAIN_NS;
    }
    store_victims_free(choose->victims, choose->count);
    free(choose->kept);
    free(choose);
    pump(e);
}

void evict_look(struct evict *e)
{
    struct local *l = e->local;
    int64_t now = clock_now();
    const struct refused *r;

    if (e->limit == 0 || e->choosing || e->round_left > 0 || l->stopped || now < e->again ||
        !local_is_connected(l))
        return;
    uint64_t held = store_held(l->daemon->store);
    if (now >= e->kept_until)
        e->kept = 0;
    if (held <= e->limit || held - e->limit <= e->kept) {
        e->cached = held > e->kept ? held - e->kept : 0;
        return;
    }
    struct choose_task *choose = xcalloc(1, sizeof *choose);
    choose->evict = e;
    choose->most = e->limit - e->limit / 16; /* a little at a time, but not each block alone */
    catalogue_each_pinned(l->catalogue, keep_pinned, choose);
    size_t lasting = choose->kept_count;
    fetch_each_root(l, (void (*)(void *, const uint8_t *))keep, choose);
    for (const struct working *w = l->workings; w != NULL; w = w->hh.next)
        if (w->from != NULL)
            keep(choose, content_root(w->from));
    forget_refused(e, now);
    for (r = e->refused; r != NULL; r = r->hh.next)
        keep(choose, r->root);
    choose->passing = choose->kept_count > lasting;
    e->choosing = true;
    local_post_to(l, e->disk, &choose->task, choose_work, choose_done);
}

void evict_status(const struct evict *e, uint64_t *limit, uint64_t *cached, const char **trouble)
{
    *limit = e->limit;
    *cached = e->cached;
    *trouble = e->limit == 0 || e->cached <= e->limit + e->limit / 8 ? ""
               : !local_is_connected(e->local)
                   ? "over its limit: nothing is evicted while the tracker is away"
                   : "over its limit: no more of it can go";
}

/* --- by name -------------------------------------------------------------------------------------------------- */
/* What one command names, each content once. */
struct asked {
    struct evict *evict;
    struct command *command;
    struct root_item *seen;
};

static bool is_pinned(const struct local *l, const uint8_t *root)
{
    const struct node *node = NULL;

    while ((node = catalogue_with_root(l->catalogue, root, node)) != NULL)
        if (node->pinned)
            return true;
    return false;
}

static void ask_file(struct asked *asked, const struct node *node)
{
    struct evict *e = asked->evict;
    struct local *l = e->local;
    struct store_victim what = {.size = node->size};
    struct store_summary summary;
    struct root_item *item;

    if (node->working || node->size == 0 || !store_summary(l->daemon->store, node->root, &summary))
        return;
    HASH_FIND(hh, asked->seen, node->root, HASH_SIZE, item);
    if (item != NULL)
        return;
    item = xcalloc(1, sizeof *item);
    memcpy(item->root, node->root, HASH_SIZE);
    HASH_ADD(hh, asked->seen, root, HASH_SIZE, item);
    if (is_pinned(l, node->root)) {
        say_kept(e, asked->command, node->root, "is pinned: unpin it first");
        return;
    }
    if (fetch_has_root(l, node->root)) {
        say_kept(e, asked->command, node->root, "is just being fetched");
        return;
    }
    memcpy(what.root, node->root, HASH_SIZE);
    asked->command->left++;
    add_victim(e, &what, asked->command);
}

static void ask_tree(struct asked *asked, const struct node *node)
{
    const struct node *child;
    uint64_t cookie = 0;

    if (node->kind == NODE_FILE)
        ask_file(asked, node);
    else if (node->kind == NODE_DIRECTORY)
        while ((child = catalogue_next(asked->evict->local->catalogue, node, &cookie)) != NULL)
            ask_tree(asked, child);
}

void ctl_evict(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Paths *m = message;
    struct asked asked = {.evict = l->evict};
    struct root_item *item, *next;

    (void)cl;
    if (m->n_paths == 0) {
        local_error(l, reply, EINVAL, "no path");
        return;
    }
    for (size_t i = 0; i < m->n_paths; i++)
        if (ctl_resolve(l, reply, m->paths[i]) == NULL)
            return;
    asked.command = xcalloc(1, sizeof *asked.command);
    asked.command->reply = reply;
    for (size_t i = 0; i < m->n_paths; i++)
        ask_tree(&asked, ctl_resolve(l, reply, m->paths[i]));
    HASH_ITER(hh, asked.seen, item, next) {
        HASH_DEL(asked.seen, item);
        free(item);
    }
    if (asked.command->left == 0)
        finish_command(l->evict, asked.command);
    pump(l->evict);
}
