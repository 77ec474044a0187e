/* Working files: from Create or WriteBegin to the published content.
 *
 * Owns struct working, one for each ino that is being written. Leaves bytes and hashes to ingest.h,
 * names to the catalogue, waiting for the disk to local_sealed.c. Thread: local; what takes long is posted to a worker, which then has the ingest alone (`busy`).
 *
 *   (Create, WriteBegin) MAKING --made--> READY --Seal--> SEALING --sealed--> published, struct gone
 *                          ^                |  ^             |
 *   FETCHING --complete----'              hashing            '--error--> READY
 *   READY --last Release, mount gone, not marked--> dropped; marked by Sync--> SEALING, for nobody
 *
 * A request for an ino whose worker is busy waits in its queue and is carried out again when the
 * worker is done.
 *
 * p2pfs has the descriptor and goes on when we are killed, as we do when it is; then it asks again for what was not
 * answered. Every working file has a number that is never given out twice, which Opened tells p2pfs, and which Reattach,
 * Sync and Seal tell us: so nobody seals, or calls sealed, another file than the one that was meant.
 *
 *   we were killed             p2pfs believes it is   the next p2pd finds (local_recover.c)    and so
 *   before it was answered     BEGINNING              no row, or one whose file nobody holds   deletes it, makes another
 *   while it was written       WORKING                row, file held                           waits for Reattach
 *   before the store had it    SEALING                row, file held                           seals again when asked
 *   before it was published    SEALING                row, and the file or its inode in the    seals again; or publishes
 *                                                     store
 *   before that was answered   SEALING                row `sealed`                             answers that it is done
 *
 *   W1  A row is committed before p2pfs gets the descriptor; if it cannot be, p2pfs gets an error.
 *   W2  Publication and the row `sealed` are one commit. The row goes when p2pfs shows that it knows (Release, another
 *       WriteBegin) or has ended. The file itself goes when that commit is durable, or that of giving it up is.
 *   W3  As long as another process holds the file, it is not sealed or given up without being asked: it may be written
 *       to at any moment.
 *   W4  What a kernel has in memory of a number's bytes is what the mount wrote or read. So a working file that could not be
 *       stored for nobody is what an Open of its number gets until it is; and a file whose new bytes were given up, which the
 *       kernel may have, goes on under another number with its old ones, as does one that was stored while the member has
 *       other mounts, whose kernels may have the bytes that it had before. */
#include "daemon/local_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/ingest.h"
#include "proto/limits.h"

#define FETCH_IDLE_NS (60 * NS_PER_S) /* an old content that is wanted, and does not come on */
#define HASH_JOB      (64u << 20)     /* bytes hashed in one job behind the writer */

static const uint8_t zero_root[HASH_SIZE];

struct working *write_find(const struct local *l, uint64_t ino)
{
    struct working *w;

    HASH_FIND(hh, l->workings, &ino, sizeof ino, w);
    return w;
}

struct working *write_new(struct local *l, uint64_t ino, struct mount *m)
{
    struct working *w = xcalloc(1, sizeof *w);

    w->ino = ino;
    w->mount = m;
    w->queue_end = &w->queue;
    HASH_ADD(hh, l->workings, ino, sizeof w->ino, w);
    catalogue_open_node(l->catalogue, ino);
    return w;
}

static struct deferred *take_queue(struct working *w)
{
    struct deferred *queue = w->queue;

    w->queue = NULL;
    w->queue_end = &w->queue;
    return queue;
}

/* Forgets the struct; the ingest is somebody else's matter by now. Returns who still waits. */
static struct deferred *working_free(struct local *l, struct working *w)
{
    struct deferred *queue = take_queue(w);

    HASH_DEL(l->workings, w);
    if (w->number != 0)
        catalogue_working_remove(l->catalogue, w->number);
    if (w->fetch != NULL)
        fetch_drop(l, w->fetch);
    content_release(w->from);
    catalogue_close_node(l->catalogue, w->ino);
    free(w);
    return queue;
}

static void enqueue(struct local *l, struct working *w, struct reply reply)
{
    struct deferred *d = local_defer(l, reply);

    *w->queue_end = d;
    w->queue_end = &d->next;
}

bool write_defer(struct local *l, struct working *w, struct reply reply)
{
    if (w->phase == WORKING_READY)
        return false;
    enqueue(l, w, reply);
    return true;
}

static struct working_row row_of(const struct working *w)
{
    return (struct working_row){.number = w->number,
                                .ino = w->ino,
                                .mount = w->mount == NULL ? 0 : w->mount->id,
                                .inode = w->inode,
                                .marked = w->marked};
}

static void put_row(struct local *l, const struct working *w)
{
    const struct working_row row = row_of(w);

    catalogue_working_put(l->catalogue, &row);
}

/* --- giving up -------------------------------------------------------------------------------- */

struct drop_task {
    struct task task;
    struct ingest *ingest;
};

static void drop_work(struct task *task)
{
    ingest_drop(((struct drop_task *)(void *)task)->ingest);
}

static void drop_done(struct local *l, struct task *task)
{
    free(task);
}

void write_drop_ingest(struct local *l, struct ingest *ingest)
{
    if (ingest == NULL)
        return;
    struct drop_task *drop = xcalloc(1, sizeof *drop);
    drop->ingest = ingest;
    local_post(l, &drop->task, drop_work, drop_done);
}

/* The bytes of this number are not what kernels may have in memory: what has the name goes on under another one. */
static void forget_pages(struct local *l, uint64_t ino)
{
    uint64_t origin = l->origin;

    l->origin = 0;                            /* also that kernel whose p2pfs let the file go */
    (void)catalogue_renew(l->catalogue, ino); /* -ENOENT: it went with what was written */
    l->origin = origin;
}

/* Whether kernels of the member's other mounts may have bytes of what is now stored anew. */
static bool is_read_elsewhere(const struct local *l, const struct mount *m, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);

    return HASH_COUNT(l->mounts) > (m != NULL ? 1u : 0u) && node != NULL && !node->working;
}

static void give_up(struct local *l, struct working *w, int error)
{
    uint64_t ino = w->ino;
    bool end = w->end;

    /* Its row goes before the file: else the file's inode number, used again, would be taken for it. */
    if (w->ingest != NULL)
        sealed_answer(l, (struct reply){0}, ino, false, w->ingest);
    catalogue_write_abandon(l->catalogue, ino);
    if (end) { /* who waits is another mount's */
        struct deferred *queue = working_free(l, w);
        forget_pages(l, ino);
        local_resume(l, queue);
    } else {
        local_fail_deferred(l, working_free(l, w), error);
    }
}

bool write_take_on(struct working *w, struct mount *m)
{
    if (w->mount == NULL && w->again != 0 && !w->end) {
        w->mount = m;
        w->deadline = 0;
    }
    return w->mount == m;
}

/* --- making ----------------------------------------------------------------------------------- */

struct make_task {
    struct task task;
    uint64_t ino, keep, size;
    uint8_t root[HASH_SIZE];
    uint64_t inode;
    struct content *from;
    struct ingest *ingest;
    int error;
};

static void make_work(struct task *task)
{
    struct make_task *make = (struct make_task *)(void *)task;
    struct store *store = task->local->daemon->store;

    if (make->keep > 0 && make->from == NULL)
        make->from = store_get(store, make->root, make->size, true, &make->error);
    if (make->keep > 0 && (make->from == NULL || !content_complete(make->from)))
        return;
    make->ingest = ingest_new(store, make->from, make->keep, &make->error);
    make->inode = make->ingest == NULL ? 0 : ingest_inode(make->ingest);
}

static void fetch_old(struct local *l, struct working *w, struct content *from)
{
    w->from = from;
    w->phase = WORKING_FETCHING;
    w->fetch = fetch_add(l, content_root(from), content_geometry(from)->size);
    w->fetched = content_present_blocks(from);
    w->deadline = clock_now() + FETCH_IDLE_NS;
}

/* w->ingest is there. */
static void made(struct local *l, struct working *w, uint64_t inode)
{
    w->number = ingest_number(w->ingest);
    w->inode = inode;
    put_row(l, w);
    int error = catalogue_commit(l->catalogue, false);
    if (error != 0) { /* W1: a p2pd that is killed would not find it again */
        local_error(l, w->reply, error, "state.db cannot be written");
        give_up(l, w, error);
        return;
    }
    w->phase = WORKING_READY;
    struct client *cl = local_client(l, w->reply.client);
    if (cl != NULL && cl->mount != NULL)
        io_opened(l, cl->mount, w->ino, NULL);
    write_send_working(l, w->reply, w);
    local_resume(l, take_queue(w));
}

static void make_done(struct local *l, struct task *task)
{
    struct make_task *make = (struct make_task *)(void *)task;
    struct working *w = write_find(l, make->ino);

    CHECK(w != NULL && w->phase == WORKING_MAKING);
    w->busy = false;
    if (make->ingest == NULL && make->from != NULL && !content_complete(make->from) && !w->end &&
        !l->stopped) {
        fetch_old(l, w, make->from);
        free(make);
        return;
    }
    content_release(make->from);
    w->ingest = make->ingest;
    if (make->ingest == NULL || w->end) {
        if (make->ingest == NULL)
            local_error(l, w->reply, make->error, "the store has no place for it");
        give_up(l, w, make->error == 0 ? EIO : make->error);
        free(make);
        return;
    }
    uint64_t inode = make->inode;
    free(make);
    made(l, w, inode);
}

/* The working file is made by a worker, from what is in `w` and the node, if there is not one ready. */
static void make_file(struct local *l, struct working *w)
{
    const struct node *node = catalogue_node(l->catalogue, w->ino);
    uint64_t inode;

    if (w->from == NULL && w->keep == 0 && (w->ingest = spare_take(l, &inode)) != NULL) {
        made(l, w, inode);
        return;
    }
    struct make_task *make = xcalloc(1, sizeof *make);

    make->ino = w->ino;
    make->keep = w->keep;
    if (w->from != NULL)
        make->from = content_share(w->from);
    else if (w->keep > 0) {
        make->size = node->size;
        memcpy(make->root, node->root, HASH_SIZE);
    }
    w->phase = WORKING_MAKING;
    w->busy = true;
    local_post(l, &make->task, make_work, make_done);
}

/* True: its mount has ended, and what becomes of the file is known in a moment: the request waits for that. */
bool write_await_end(struct local *l, struct working *w, struct reply reply)
{
    bool over = !w->end && w->mount != NULL && w->mount->client == NULL && io_has_ended(w->mount);

    if (!over && !w->end)
        return false;
    enqueue(l, w, reply);
    if (over)
        write_end(l, w); /* which may carry it out now */
    return true;
}

static bool refuse_unreadable(struct local *l, struct reply reply, uint64_t ino)
{
    bool unreadable = write_is_unreadable(l, ino);

    if (unreadable)
        local_error(l, reply, EIO,
                    "what was written of it could not be read when p2pd was started");
    return unreadable;
}

void write_create(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Make *m = message;
    const struct node *there = catalogue_lookup(l->catalogue, m->parent, m->name);
    uint64_t ino;
    int error;

    if (write_await_recovery(l, reply))
        return;
    if (!local_is_visible(l)) {
        local_error(l, reply, EACCES, "nobody is logged in");
        return;
    }
    if (there != NULL && !m->exclusive && there->kind == NODE_FILE) {
        /* Somebody was quicker: as open(2) with O_TRUNC has it. */
        struct working *w = write_find(l, there->ino);
        if (w != NULL && write_await_end(l, w, reply))
            return;
        if (w != NULL && !write_take_on(w, cl->mount)) {
            local_error(l, reply, EBUSY, "it is being written through another mount");
            return;
        }
        if (w != NULL && write_defer(l, w, reply))
            return;
        if (w != NULL) {
            io_opened(l, cl->mount, there->ino, NULL);
            write_send_working(l, reply, w);
            return;
        }
        ino = there->ino;
        if (refuse_unreadable(l, reply, ino))
            return;
        write_forget_sealed(l, cl->mount->id, ino);
        error = catalogue_write_begin(l->catalogue, ino);
    } else {
        error = catalogue_create(l->catalogue, m->parent, m->name, m->mode, clock_wall(), &ino);
    }
    if (error != 0) {
        local_error(l, reply, error, "%s", "");
        return;
    }
    struct working *w = write_new(l, ino, cl->mount);
    w->reply = reply;
    make_file(l, w);
}

void write_begin(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__WriteBegin *m = message;
    const struct node *node = catalogue_node(l->catalogue, m->ino);
    struct working *w = write_find(l, m->ino);

    if (write_await_recovery(l, reply))
        return;
    if (node == NULL) {
        local_error(l, reply, ENOENT, "%s", "");
        return;
    }
    if (w != NULL && write_await_end(l, w, reply))
        return;
    if (w != NULL && !write_take_on(w, cl->mount)) {
        local_error(l, reply, EBUSY, "it is being written through another mount");
        return;
    }
    if (w != NULL) {
        if (!write_defer(l, w, reply))
            write_send_working(l, reply, w);
        return;
    }
    if (refuse_unreadable(l, reply, m->ino))
        return;
    uint64_t keep = m->size < node->size ? m->size : node->size;
    int error = catalogue_write_begin(l->catalogue, m->ino);
    if (error != 0) {
        local_error(l, reply, error, "%s", "");
        return;
    }
    write_forget_sealed(l, cl->mount->id, m->ino);
    w = write_new(l, m->ino, cl->mount);
    w->reply = reply;
    w->keep = keep;
    make_file(l, w);
}

void write_fetched(struct local *l, const uint8_t root[HASH_SIZE], int error)
{
    struct working *w, *next;

    HASH_ITER(hh, l->workings, w, next) {
        if (w->phase != WORKING_FETCHING || memcmp(content_root(w->from), root, HASH_SIZE) != 0)
            continue;
        if (error != 0) {
            local_error(l, w->reply, error, "what is there of the file cannot be fetched");
            give_up(l, w, error);
        } else if (content_complete(w->from)) {
            make_file(l, w);
        }
    }
}

/* --- hashing along ---------------------------------------------------------------------------- */

struct hash_task {
    struct task task;
    uint64_t ino;
    struct ingest *ingest;
    int error;
};

static void begin_seal(struct local *l, struct working *w, struct reply reply,
                       const Local__Seal *m);

/* The worker has given the ingest back: what waited goes on. */
static void worker_done(struct local *l, struct working *w)
{
    w->busy = false;
    if (w->phase != WORKING_READY)
        return;
    if (w->end && w->marked) {
        const Local__Seal seal = LOCAL__SEAL__INIT;
        begin_seal(l, w, (struct reply){0}, &seal);
    } else if (w->end) {
        give_up(l, w, EIO);
    } else {
        local_resume(l, take_queue(w));
    }
}

static void hash_work(struct task *task)
{
    struct hash_task *hash = (struct hash_task *)(void *)task;

    hash->error = ingest_hash(hash->ingest, HASH_JOB);
}

static void hash_along(struct local *l, struct working *w);

static void hash_done(struct local *l, struct task *task)
{
    struct hash_task *hash = (struct hash_task *)(void *)task;
    struct working *w = write_find(l, hash->ino);
    int error = hash->error;

    free(hash);
    CHECK(w != NULL);
    uint64_t ino = w->ino;
    worker_done(l, w);
    w = write_find(l, ino);
    if (w != NULL && error == 0 && !l->stopped)
        hash_along(l, w); /* an error will show itself again when it is sealed */
}

static void hash_along(struct local *l, struct working *w)
{
    if (w->phase != WORKING_READY || w->busy || !ingest_hash_due(w->ingest))
        return;
    struct hash_task *hash = xcalloc(1, sizeof *hash);
    hash->ino = w->ino;
    hash->ingest = w->ingest;
    w->busy = true;
    local_post(l, &hash->task, hash_work, hash_done);
}

void write_wrote(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Wrote *m = message;
    struct working *w = write_find(l, m->ino);

    if (w == NULL || w->phase != WORKING_READY || m->offset >= FILE_SIZE_MAX ||
        m->size > FILE_SIZE_MAX - m->offset)
        return;
    ingest_wrote(w->ingest, m->offset, m->size);
    const struct node *node = catalogue_node(l->catalogue, m->ino);
    if (node != NULL && node->working && m->offset + m->size > node->size)
        catalogue_grown(l->catalogue, m->ino, m->offset + m->size);
    hash_along(l, w);
}

/* --- marking ---------------------------------------------------------------------------------- */

struct mark_task {
    struct task task;
    struct reply reply;
    uint64_t ino;
    struct ingest *ingest;
    int error;
};

static void mark_work(struct task *task)
{
    struct mark_task *mark = (struct mark_task *)(void *)task;

    mark->error = ingest_mark(mark->ingest);
}

static void mark_done(struct local *l, struct task *task)
{
    struct mark_task *mark = (struct mark_task *)(void *)task;
    struct working *w = write_find(l, mark->ino);

    CHECK(w != NULL);
    if (mark->error == 0) {
        w->marked = true;
        put_row(l, w);
        sealed_answer(l, mark->reply, w->ino, false, NULL);
    } else {
        local_error(l, mark->reply, mark->error, "it cannot be made durable");
    }
    worker_done(l, w);
    free(mark);
}

void write_sync(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Node *m = message;
    struct working *w = write_find(l, m->ino);

    if (write_await_recovery(l, reply))
        return;
    if (m->number != 0 && (w == NULL || w->number != m->number) &&
        !write_was_sealed(l, m->ino, m->number) && catalogue_node(l->catalogue, m->ino) != NULL) {
        local_error(l, reply, EIO, "what was written is lost");
        return;
    }
    if (w != NULL && (!w->marked || m->failed) && (w->busy || w->phase != WORKING_READY)) {
        enqueue(l, w, reply);
        return;
    }
    if (m->failed) {
        if (w != NULL)
            ingest_sync_failed(w->ingest);
        local_error(l, reply, EIO, "the disk failed to keep what was written");
        return;
    }
    if (w == NULL || w->marked) {
        sealed_answer(l, reply, 0, false, NULL); /* it may be under way */
        return;
    }
    struct mark_task *mark = xcalloc(1, sizeof *mark);
    mark->reply = reply;
    mark->ino = w->ino;
    mark->ingest = w->ingest;
    w->busy = true;
    local_post(l, &mark->task, mark_work, mark_done);
}

/* --- sealing ---------------------------------------------------------------------------------- */

struct seal_task {
    struct task task;
    struct reply reply;
    uint64_t ino, size;
    int64_t mtime;
    bool measure; /* the size is what the file has */
    struct ingest *ingest;
    struct content *content;
    int error;
};

static void seal_work(struct task *task)
{
    struct seal_task *seal = (struct seal_task *)(void *)task;

    if (seal->measure) {
        int64_t size = ingest_size(seal->ingest);
        seal->error = size < 0 ? (int)size : 0;
        if (size < 0)
            return;
        seal->size = (uint64_t)size;
    }
    seal->content = ingest_seal(seal->ingest, seal->size, &seal->error);
}

static void seal_done(struct local *l, struct task *task)
{
    struct seal_task *seal = (struct seal_task *)(void *)task;
    struct working *w = write_find(l, seal->ino);

    CHECK(w != NULL && w->phase == WORKING_SEALING);
    w->busy = false;
    if (seal->error == 0 && w->marked && catalogue_is_crowded(l->catalogue, w->ino)) {
        content_release(seal->content);
        seal->error = -EAGAIN; /* it is published when the tracker has heard of the others */
    }
    if (seal->error != 0) {
        w->phase = WORKING_READY;
        local_error(l, seal->reply, seal->error, "the content cannot be stored");
        if (w->end && w->marked) { /* it was promised: tried again */
            log_error("a file that was being written could not be stored yet: %s",
                      strerror(-seal->error));
            w->end = false;
            w->again = w->again == 0 ? WRITE_AGAIN_NS : 2 * w->again;
            if (w->again > WRITE_ATTACH_NS)
                w->again = WRITE_ATTACH_NS;
            w->deadline = clock_now() + w->again;
        }
        worker_done(l, w);
        free(seal);
        return;
    }
    const uint8_t *root = seal->content != NULL ? content_root(seal->content) : zero_root;
    struct mount *m = w->mount;
    uint64_t ino = w->ino;
    bool end = w->end;
    struct working_row row = row_of(w);
    bool elsewhere = is_read_elsewhere(l, m, ino);
    struct deferred *queue = working_free(l, w);
    l->origin = seal->reply.client; /* its kernel learns it from the answer */
    int error = catalogue_publish(l->catalogue, ino, root, seal->size, seal->mtime, clock_wall());
    l->origin = 0;
    if (error == 0 && m != NULL && !end) {
        io_opened(l, m, ino, seal->content);
    } else {
        if (error != 0 && seal->content != NULL)
            local_unused(l, root);
        content_release(seal->content);
    }
    if (error == 0) {
        row.sealed = true;
        catalogue_working_put(l->catalogue, &row); /* W2 */
        sealed_answer(l, seal->reply, ino, true, seal->ingest);
        if (elsewhere)
            forget_pages(l, ino);
    } else {
        local_error(l, seal->reply, error, "it was removed while it was written");
        sealed_answer(l, (struct reply){0}, ino, false, seal->ingest);
    }
    free(seal);
    local_resume(l, queue);
}

static void begin_seal(struct local *l, struct working *w, struct reply reply, const Local__Seal *m)
{
    struct seal_task *seal = xcalloc(1, sizeof *seal);
    const struct node *node = catalogue_node(l->catalogue, w->ino);

    seal->reply = reply;
    seal->ino = w->ino;
    seal->size = m->size;
    seal->measure = reply.client == 0;
    seal->mtime = m->set_mtime                        ? m->mtime
                  : reply.client == 0 && node != NULL ? node->mtime
                                                      : clock_wall();
    seal->ingest = w->ingest;
    if (reply.client == 0)
        ingest_doubt(w->ingest); /* p2pfs may have written more than it came to tell */
    w->phase = WORKING_SEALING;
    w->busy = true;
    local_post(l, &seal->task, seal_work, seal_done);
}

void write_seal(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Seal *m = message;
    struct working *w = write_find(l, m->ino);
    const struct node *node = catalogue_node(l->catalogue, m->ino);

    if (write_await_recovery(l, reply))
        return;
    if (w == NULL || w->number != m->number) {
        /* Sent again after a restart: it was sealed before, or it is lost. */
        if (node == NULL) {
            local_error(l, reply, ENOENT, "%s", "");
        } else if (!write_was_sealed(l, m->ino, m->number)) {
            local_error(l, reply, EIO, "what was written is lost");
        } else {
            if (m->set_mtime)
                (void)catalogue_attr(l->catalogue, m->ino, NULL, &m->mtime);
            sealed_answer(l, reply, m->ino, true, NULL);
        }
        return;
    }
    if (m->size > FILE_SIZE_MAX) {
        local_error(l, reply, EFBIG, "no file may be larger than 16 TiB");
        return;
    }
    if (w->busy || w->phase != WORKING_READY) {
        enqueue(l, w, reply);
        return;
    }
    begin_seal(l, w, reply, m);
}

/* --- mounts that go, and come back ------------------------------------------------------------ */

void write_end(struct local *l, struct working *w)
{
    w->mount = NULL;
    w->end = true;
    if (w->phase == WORKING_FETCHING)
        give_up(l, w, EIO);
    else if (!w->busy)
        worker_done(l, w);
}

void write_mount_gone(struct local *l, struct mount *m)
{
    struct working *w, *next;

    HASH_ITER(hh, l->workings, w, next) {
        if (w->mount != m)
            continue;
        if (l->stopped)
            w->mount = NULL; /* the next p2pd takes it on */
        else
            write_end(l, w);
    }
}

void write_released(struct local *l, struct mount *m, uint64_t ino)
{
    struct working *w = write_find(l, ino);

    if (w != NULL && w->mount == m)
        write_end(l, w);
}

bool write_attach(struct local *l, struct mount *m, uint64_t ino, uint64_t number)
{
    struct working *w = write_find(l, ino);

    if (w == NULL || w->number != number || (w->mount != NULL && w->mount != m))
        return false;
    w->mount = m;
    w->deadline = 0;
    if (w->phase == WORKING_READY)
        ingest_doubt(w->ingest); /* what it told meanwhile was lost */
    if (w->number != 0)
        put_row(l, w);
    return true;
}

void write_tick(struct local *l, int64_t now)
{
    struct working *w, *next;

    spare_tick(l, now);
    HASH_ITER(hh, l->workings, w, next) {
        if (w->phase == WORKING_FETCHING && content_present_blocks(w->from) != w->fetched) {
            w->fetched = content_present_blocks(w->from);
            w->deadline = now + FETCH_IDLE_NS;
        } else if (w->phase == WORKING_FETCHING && now >= w->deadline) {
            local_error(l, w->reply, EIO, "what is there of the file cannot be fetched");
            give_up(l, w, EIO);
        } else if (w->mount == NULL && w->phase == WORKING_READY && !w->end && !w->busy &&
                   now >= w->deadline) {
            if (ingest_is_held(w->ingest)) /* W3 */
                w->deadline = now + WRITE_ATTACH_NS;
            else
                write_end(l, w);
        }
    }
}

void write_free(struct local *l)
{
    struct working *w, *next;

    spare_tick(l, INT64_MAX);
    HASH_ITER(hh, l->workings, w, next) {
        if (w->ingest != NULL)
            ingest_free(w->ingest);
        w->number = 0; /* its row stays */
        local_fail_deferred(l, working_free(l, w), ESHUTDOWN);
    }
    sealed_forget(l);
    local_fail_deferred(l, l->waiting_recovery, ESHUTDOWN);
    l->waiting_recovery = NULL;
}
