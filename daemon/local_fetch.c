/* Files that are fetched whole: for `get`, for pins, and for a writer who needs the old content.
 *
 * Owns struct fetch (one for each root that is wanted whole) and struct get (a command, or what goes
 * on without one). Leaves picking and asking to download.h. Thread: local.
 *
 *   fetch_add --> QUEUED --(fewer than LIMIT_LOCAL_FETCHES)--> OPENING --> ACTIVE --> DONE or FAILED
 *
 * Only LIMIT_LOCAL_FETCHES are under way at once, so that a tree of a hundred thousand files needs neither as
 * many descriptors nor as many pickers. A command that is interrupted stops what it asked for, but
 * for pins: these go on, also after a restart. */
#include "daemon/local_private.h"

#include <errno.h>
#include <utlist.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/download.h"
#include "proto/limits.h"

#define PROGRESS_NS (NS_PER_S / 4)

enum fetch_state { FETCH_QUEUED, FETCH_OPENING, FETCH_ACTIVE, FETCH_DONE, FETCH_FAILED };

struct fetch {
    uint8_t root[HASH_SIZE];
    uint64_t size;
    unsigned refs;
    enum fetch_state state;
    int error;
    struct content *content;   /* ACTIVE */
    struct fetch *prev, *next; /* QUEUED */
    UT_hash_handle hh;
};

struct get {
    struct get *next;
    struct reply reply; /* client 0: nobody waits */
    bool pin;
    struct fetch **files;
    size_t count, room;
};

static const uint8_t zero_root[HASH_SIZE];

static struct fetch *find(const struct local *l, const uint8_t root[HASH_SIZE])
{
    struct fetch *f;

    HASH_FIND(hh, l->fetches, root, HASH_SIZE, f);
    return f;
}

static bool is_over(const struct fetch *f)
{
    return f->state == FETCH_DONE || f->state == FETCH_FAILED;
}

/* --- one content ------------------------------------------------------------------------------ */

static void start_queued(struct local *l);

static void finish(struct local *l, struct fetch *f, int error)
{
    uint8_t root[HASH_SIZE];

    memcpy(root, f->root, HASH_SIZE);
    f->state = error == 0 ? FETCH_DONE : FETCH_FAILED;
    f->error = error;
    content_release(f->content);
    f->content = NULL;
    l->fetching--;
    if (l->gets != NULL)
        timer_set(l->progress_timer, 0);
    start_queued(l);
    write_fetched(l, root, error); /* may be the end of f */
}

static void got_content(struct local *l, struct fetch *f, struct content *content)
{
    f->content = content;
    f->state = FETCH_ACTIVE;
    if (content_complete(content))
        finish(l, f, 0);
    else
        download_get(l->daemon->download, content);
}

struct fetch_task {
    struct task task;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    struct content *content;
    int error;
};

static void fetch_work(struct task *task)
{
    struct fetch_task *fetch = (struct fetch_task *)(void *)task;

    fetch->content =
        store_get(task->local->daemon->store, fetch->root, fetch->size, true, &fetch->error);
}

static void fetch_done(struct local *l, struct task *task)
{
    struct fetch_task *fetch = (struct fetch_task *)(void *)task;
    struct fetch *f = find(l, fetch->root);

    if (l->stopped || f == NULL || f->state != FETCH_OPENING)
        content_release(fetch->content);
    else if (fetch->content == NULL)
        finish(l, f, fetch->error);
    else
        got_content(l, f, fetch->content);
    free(fetch);
}

static void start(struct local *l, struct fetch *f)
{
    struct content *content = store_find(l->daemon->store, f->root);

    l->fetching++;
    f->state = FETCH_OPENING;
    if (content != NULL && content_geometry(content)->size == f->size) {
        got_content(l, f, content);
        return;
    }
    content_release(content);
    struct fetch_task *task = xcalloc(1, sizeof *task);
    memcpy(task->root, f->root, HASH_SIZE);
    task->size = f->size;
    local_post(l, &task->task, fetch_work, fetch_done);
}

static void start_queued(struct local *l)
{
    while (!l->stopped && l->fetching < LIMIT_LOCAL_FETCHES && l->waiting_first != NULL) {
        struct fetch *f = l->waiting_first;
        DL_DELETE(l->waiting_first, f);
        start(l, f);
    }
}

struct fetch *fetch_add(struct local *l, const uint8_t root[HASH_SIZE], uint64_t size)
{
    struct fetch *f = find(l, root);

    if (f == NULL) {
        f = xcalloc(1, sizeof *f);
        memcpy(f->root, root, HASH_SIZE);
        f->size = size;
        HASH_ADD(hh, l->fetches, root, HASH_SIZE, f);
        DL_APPEND(l->waiting_first, f);
    } else if (is_over(f)) { /* it may have been lost since */
        f->state = FETCH_QUEUED;
        DL_APPEND(l->waiting_first, f);
    }
    f->refs++;
    start_queued(l);
    return f;
}

void fetch_drop(struct local *l, struct fetch *f)
{
    CHECK(f->refs > 0);
    if (--f->refs > 0)
        return;
    if (f->state == FETCH_QUEUED)
        DL_DELETE(l->waiting_first, f);
    if (f->state == FETCH_ACTIVE && !l->stopped)
        download_unget(l->daemon->download, f->root);
    if (f->state == FETCH_ACTIVE || f->state == FETCH_OPENING)
        l->fetching--;
    content_release(f->content);
    HASH_DEL(l->fetches, f);
    free(f);
    start_queued(l);
}

uint64_t fetch_have(struct local *l, const struct fetch *f)
{
    struct store_summary summary;

    if (f->state == FETCH_DONE)
        return f->size;
    if (f->content != NULL) {
        uint64_t bytes = content_present_blocks(f->content) * BLOCK_SIZE;
        return bytes < f->size ? bytes : f->size;
    }
    if (!store_summary(l->daemon->store, f->root, &summary))
        return 0;
    return summary.bytes < f->size ? summary.bytes : f->size;
}

void fetch_each_root(struct local *l, void (*each)(void *arg, const uint8_t root[HASH_SIZE]),
                     void *arg)
{
    for (const struct fetch *f = l->fetches; f != NULL; f = f->hh.next)
        each(arg, f->root);
}

bool fetch_has_root(struct local *l, const uint8_t root[HASH_SIZE])
{
    const struct fetch *f = find(l, root);

    return f != NULL && !is_over(f);
}

void fetch_complete(struct local *l, const uint8_t root[HASH_SIZE], int error)
{
    struct fetch *f = find(l, root);

    if (f != NULL && f->state == FETCH_ACTIVE && (error != 0 || content_complete(f->content)))
        finish(l, f, error);
}

void fetch_lost(struct local *l, const uint8_t root[HASH_SIZE])
{
    struct fetch *f = find(l, root);

    if (f == NULL || is_over(f))
        return;
    if (f->state == FETCH_QUEUED) {
        DL_DELETE(l->waiting_first, f);
        l->fetching++;
    } else if (f->state == FETCH_ACTIVE && !l->stopped) {
        download_unget(l->daemon->download, f->root);
    }
    finish(l, f, -ENOENT);
}

/* --- commands --------------------------------------------------------------------------------- */

static void get_free(struct local *l, struct get *get)
{
    for (size_t i = 0; i < get->count; i++)
        fetch_drop(l, get->files[i]);
    free(get->files);
    free(get);
}

static void add_file(struct local *l, struct get *get, const struct node *node)
{
    struct store_summary summary;

    if (node->working || memcmp(node->root, zero_root, HASH_SIZE) == 0)
        return;
    if (store_summary(l->daemon->store, node->root, &summary) && summary.complete)
        return;
    if (get->count == get->room) {
        get->room = get->room == 0 ? 8 : 2 * get->room;
        get->files = xrealloc(get->files, get->room * sizeof(struct fetch *));
    }
    get->files[get->count++] = fetch_add(l, node->root, node->size);
}

/* Everything from `node` down. The catalogue bounds the depth. */
static void add_tree(struct local *l, struct get *get, const struct node *node)
{
    const struct node *child;
    uint64_t cookie = 0;

    if (node->kind == NODE_FILE)
        add_file(l, get, node);
    else if (node->kind == NODE_DIRECTORY)
        while ((child = catalogue_next(l->catalogue, node, &cookie)) != NULL)
            add_tree(l, get, child);
}

static void collect_tree(struct local *l, const struct node *node, struct numbers *inos)
{
    const struct node *child;
    uint64_t cookie = 0;

    numbers_add(inos, node->ino);
    if (node->kind == NODE_DIRECTORY)
        while ((child = catalogue_next(l->catalogue, node, &cookie)) != NULL)
            collect_tree(l, child, inos);
}

static void pin_tree(struct local *l, const struct node *node, bool pinned)
{
    struct numbers inos = {0};

    collect_tree(l, node, &inos);
    for (size_t i = 0; i < inos.count; i++)
        catalogue_pin(l->catalogue, inos.items[i], pinned);
    free(inos.items);
}

static void progress(void *arg);

/* The command is in the list; the first look at it comes at once. */
static void get_begin(struct local *l, struct get *get)
{
    get->next = l->gets;
    l->gets = get;
    if (l->progress_timer == NULL)
        l->progress_timer = timer_new(l->loop, progress, l);
    timer_set(l->progress_timer, 0);
}

void fetch_get(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Get *m = message;
    struct get *get;

    for (size_t i = 0; i < m->n_paths; i++)
        if (ctl_resolve(l, reply, m->paths[i]) == NULL)
            return;
    get = xcalloc(1, sizeof *get);
    get->reply = m->no_wait ? (struct reply){0} : reply;
    get->pin = m->pin;
    for (size_t i = 0; i < m->n_paths; i++) {
        if (m->pin)
            pin_tree(l, ctl_resolve(l, reply, m->paths[i]), true);
        add_tree(l, get, ctl_resolve(l, reply, m->paths[i]));
    }
    if (m->no_wait)
        local_done(l, reply);
    get_begin(l, get);
}

static void add_pinned(void *arg, const struct node *node)
{
    struct numbers *inos = arg;

    if (node->kind == NODE_FILE)
        numbers_add(inos, node->ino);
}

void fetch_pin_all(struct local *l)
{
    struct numbers inos = {0};
    struct get *get = xcalloc(1, sizeof *get);

    catalogue_each_pinned(l->catalogue, add_pinned, &inos);
    get->pin = true;
    for (size_t i = 0; i < inos.count; i++)
        add_file(l, get, catalogue_node(l->catalogue, inos.items[i]));
    free(inos.items);
    get_begin(l, get);
}

void fetch_pinned(struct local *l, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);

    if (node == NULL || node->kind != NODE_FILE)
        return;
    struct get *get = xcalloc(1, sizeof *get);
    get->pin = true;
    add_file(l, get, node);
    get_begin(l, get);
}

/* Takes these contents out of what goes on without a command. */
static void stop_pinned(struct local *l, const struct node *node)
{
    struct fetch *f = node->kind == NODE_FILE ? find(l, node->root) : NULL;
    const struct node *other = NULL;

    if (f == NULL)
        return;
    while ((other = catalogue_with_root(l->catalogue, node->root, other)) != NULL)
        if (other->pinned)
            return; /* the same content is pinned elsewhere */
    for (struct get *get = l->gets; get != NULL; get = get->next) {
        for (size_t i = 0; get->reply.client == 0 && i < get->count; i++) {
            if (get->files[i] != f)
                continue;
            get->files[i] = get->files[--get->count];
            bool last = f->refs == 1;
            fetch_drop(l, f);
            if (last)
                return;
            i--;
        }
    }
}

static void unpin(struct local *l, const struct node *node)
{
    struct numbers inos = {0};

    collect_tree(l, node, &inos);
    for (size_t i = 0; i < inos.count; i++) {
        const struct node *one = catalogue_node(l->catalogue, inos.items[i]);
        bool was = one->pinned;
        catalogue_pin(l->catalogue, one->ino, false);
        if (was)
            stop_pinned(l, one);
    }
    free(inos.items);
}

void fetch_unpin(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Paths *m = message;

    for (size_t i = 0; i < m->n_paths; i++)
        if (ctl_resolve(l, reply, m->paths[i]) == NULL)
            return;
    for (size_t i = 0; i < m->n_paths; i++)
        unpin(l, ctl_resolve(l, reply, m->paths[i]));
    if (m->n_paths == 0)
        unpin(l, catalogue_node(l->catalogue, INO_ROOT));
    local_done(l, reply);
}

void fetch_client_gone(struct local *l, uint64_t client)
{
    for (struct get **at = &l->gets; *at != NULL;) {
        struct get *get = *at;
        if (get->reply.client != client) {
            at = &get->next;
            continue;
        }
        get->reply = (struct reply){0};
        if (get->pin) {
            at = &get->next;
            continue;
        }
        *at = get->next;
        get_free(l, get);
    }
}

/* --- progress --------------------------------------------------------------------------------- */

static const struct download_file_status *status_of(const struct download_status *down,
                                                    const uint8_t root[HASH_SIZE])
{
    for (size_t i = 0; down != NULL && i < down->file_count; i++)
        if (memcmp(down->files[i].root, root, HASH_SIZE) == 0)
            return &down->files[i];
    return NULL;
}

static void send_progress(struct local *l, const struct get *get,
                          const struct download_status *down)
{
    Local__Progress p = LOCAL__PROGRESS__INIT;
    struct client *cl = local_client(l, get->reply.client);
    char trouble[256] = "", *path = NULL;
    uint64_t best = 0;

    if (cl == NULL)
        return;
    p.files = (uint32_t)get->count;
    for (size_t i = 0; i < get->count; i++) {
        const struct fetch *f = get->files[i];
        p.size += f->size;
        p.have += fetch_have(l, f);
        p.files_done += is_over(f);
        const struct download_file_status *s =
            f->state == FETCH_ACTIVE ? status_of(down, f->root) : NULL;
        if (s == NULL)
            continue;
        p.rate += s->rate;
        p.peers += s->links;
        if (path == NULL || s->rate > best) {
            const struct node *node = catalogue_with_root(l->catalogue, f->root, NULL);
            free(path);
            path = node == NULL ? NULL : catalogue_path(l->catalogue, node);
            best = s->rate;
        }
        if (trouble[0] == '\0' && s->rate == 0)
            ctl_trouble(l, down, f->root, trouble, sizeof trouble);
    }
    if (path != NULL)
        p.current = path;
    p.trouble = trouble;
    if (p.rate > 0)
        trouble[0] = '\0';
    channel_send(cl->channel, CHANNEL_URGENT, TYPE(PROGRESS), FRAME_MAY_SKIP, get->reply.id,
                 &p.base, NULL, 0);
    free(path);
}

static void finish_get(struct local *l, struct get *get)
{
    int error = 0;

    for (size_t i = 0; i < get->count; i++)
        if (get->files[i]->state == FETCH_FAILED)
            error = get->files[i]->error;
    if (error == 0)
        local_done(l, get->reply);
    else if (error == -ENOENT)
        local_error(l, get->reply, ENOENT,
                    "not all of it could be fetched: some files were removed, replaced or closed "
                    "to this account meanwhile");
    else
        local_error(l, get->reply, error, "not all of it could be fetched: %s",
                    strerror(error < 0 ? -error : error));
    get_free(l, get);
}

static bool get_is_over(const struct get *get)
{
    for (size_t i = get->count; i > 0; i--)
        if (!is_over(get->files[i - 1]))
            return false;
    return true;
}

static void gathered(struct local *l, struct gather *gather)
{
    for (const struct get *get = l->gets; get != NULL; get = get->next)
        if (get->reply.client != 0)
            send_progress(l, get, gather->down);
}

static void progress(void *arg)
{
    struct local *l = arg;
    bool watched = false;

    for (struct get **at = &l->gets; *at != NULL;) {
        struct get *get = *at;
        if (get_is_over(get)) {
            *at = get->next;
            finish_get(l, get);
            continue;
        }
        watched |= get->reply.client != 0;
        at = &get->next;
    }
    if (watched)
        ctl_gather(l, (struct reply){0}, NULL, gathered);
    if (l->gets != NULL)
        timer_set(l->progress_timer, PROGRESS_NS);
    local_after(l);
}

void fetch_free(struct local *l)
{
    while (l->gets != NULL) {
        struct get *get = l->gets;
        l->gets = get->next;
        get_free(l, get);
    }
}
