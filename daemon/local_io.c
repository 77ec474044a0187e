/* What mounts have open: contents, parked reads, and what survives a lost connection.
 *
 * Owns mounts, what each has open, and the waiting reads. Leaves working files to local_write.c and
 * fetching to download.h. Thread: local.
 *
 * A mount is known by the number that its p2pfs chose. When its connection ends (p2pfs crashed, or
 * one of the two was restarted) what it has open is kept until that process has ended. A content stays the one
 * that was opened, whatever happens to its name; so the store keeps it. */
#include "daemon/local_private.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "daemon/download.h"
#include "daemon/ingest.h"
#include "proto/limits.h"

#define MOUNT_GRACE_NS (60 * NS_PER_S)

static const uint8_t zero_root[HASH_SIZE];

/* --- mounts ----------------------------------------------------------------------------------- */

static void forget_process(struct mount *m)
{
    if (m->ended != NULL)
        event_free(m->ended);
    m->ended = NULL;
    if (m->process >= 0)
        close(m->process);
    m->process = -1;
}

static void mount_free(struct local *, struct mount *);

static void on_ended(evutil_socket_t process, short what, void *arg)
{
    struct mount *m = arg;
    struct local *l = m->local;

    event_free(m->ended);
    m->ended = NULL;
    if (m->client != NULL) /* what it still had to say is read first */
        return;
    mount_free(l, m);
    local_after(l);
}

/* Its end is heard of at once: what it was writing and had synced is to be seen under its name. */
static void watch_process(struct local *l, struct mount *m)
{
    forget_process(m);
    m->local = l;
    m->process = (int)syscall(SYS_pidfd_open, (pid_t)m->pid, 0);
    if (m->process >= 0)
        m->ended = event_new(loop_base(l->loop), m->process, EV_READ, on_ended, m);
    if (m->ended != NULL)
        CHECK(event_add(m->ended, NULL) == 0);
}

struct mount *io_mount(struct local *l, struct client *cl, const Local__Hello *hello)
{
    struct mount *m;

    HASH_FIND(hh, l->mounts, &hello->mount, sizeof hello->mount, m);
    if (m != NULL && m->client != NULL)
        return NULL;
    if (m == NULL) {
        m = xcalloc(1, sizeof *m);
        m->id = hello->mount;
        m->process = -1;
        m->salt = random_u64();
        HASH_ADD(hh, l->mounts, id, sizeof m->id, m);
    }
    free(m->mountpoint);
    m->mountpoint = xstrdup(hello->mountpoint);
    m->client = cl;
    m->pid = cl->pid;
    watch_process(l, m);
    return m;
}

static void opened_free(struct local *l, struct mount *m, struct opened *o)
{
    HASH_DEL(m->opened, o);
    if (o->content != NULL && content_complete(o->content)) /* of whose reads nothing is heard */
        content_touch(o->content, 0, content_geometry(o->content)->blocks);
    content_release(o->content);
    catalogue_close_node(l->catalogue, o->ino);
    free(o);
}

static void mount_free(struct local *l, struct mount *m)
{
    struct opened *o, *next;

    write_mount_gone(l, m);
    if (!l->stopped)
        write_forget_sealed(l, m->id, 0);
    HASH_ITER(hh, m->opened, o, next)
        opened_free(l, m, o);
    HASH_DEL(l->mounts, m);
    forget_process(m);
    free(m->mountpoint);
    free(m);
}

static struct opened *opened_find(const struct mount *m, uint64_t ino)
{
    struct opened *o;

    HASH_FIND(hh, m->opened, &ino, sizeof ino, o);
    return o;
}

struct opened *io_opened(struct local *l, struct mount *m, uint64_t ino, struct content *content)
{
    struct opened *o = opened_find(m, ino);

    if (o == NULL) {
        o = xcalloc(1, sizeof *o);
        o->ino = ino;
        HASH_ADD(hh, m->opened, ino, sizeof o->ino, o);
        catalogue_open_node(l->catalogue, ino);
    }
    content_release(o->content);
    o->content = content;
    return o;
}

static void want_free(struct local *l, struct want *w)
{
    HASH_DELETE(by_number, l->wants, w);
    HASH_DELETE(by_reply, l->wants_by_reply, w);
    w->mount->wants--;
    free(w);
}

void io_client_gone(struct local *l, struct client *cl)
{
    struct want *w, *next;

    if (cl->mount == NULL)
        return;
    HASH_ITER(by_number, l->wants, w, next) {
        if (w->reply.client != cl->number)
            continue;
        download_undemand(l->daemon->download, w->number);
        want_free(l, w);
    }
    cl->mount->client = NULL;
    cl->mount->away_since = clock_now();
    cl->mount = NULL;
}

/* Whether the process has ended, reaped or not. As long as it lives it may be writing to what it has open, however long it
 * says nothing; only where that cannot be told a time must do. */
static bool has_ended(const struct mount *m, int64_t now)
{
    struct pollfd one = {.fd = m->process, .events = POLLIN};

    if (m->process < 0)
        return now - m->away_since >= MOUNT_GRACE_NS ||
               (kill((pid_t)m->pid, 0) < 0 && errno == ESRCH);
    return poll(&one, 1, 0) == 1;
}

bool io_has_ended(const struct mount *m)
{
    return has_ended(m, clock_now());
}

void io_tick(struct local *l, int64_t now)
{
    struct mount *m, *next;

    HASH_ITER(hh, l->mounts, m, next)
        if (m->client == NULL && has_ended(m, now))
            mount_free(l, m);
}

void io_free(struct local *l)
{
    struct mount *m, *next;
    struct want *w, *after;

    HASH_ITER(by_number, l->wants, w, after)
        want_free(l, w);
    HASH_ITER(hh, l->mounts, m, next)
        mount_free(l, m);
}

/* --- opening ---------------------------------------------------------------------------------- */

static void fill_opened(struct local *l, Local__Opened *opened, Local__Attr *attr, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);

    *opened = (Local__Opened)LOCAL__OPENED__INIT;
    if (node == NULL)
        return;
    names_fill(l, attr, node);
    opened->attr = attr;
}

static void send_with(struct local *l, struct reply reply, const Local__Opened *opened,
                      const int *fds, unsigned count)
{
    struct client *cl = local_client(l, reply.client);

    if (cl != NULL)
        channel_send_fds(cl->channel, TYPE(OPENED), FRAME_ANSWER, reply.id, &opened->base, fds,
                         count);
}

/* `lent`: what content_lend gave. */
static void send_lent(struct local *l, struct reply reply, uint64_t ino, struct content *content,
                      int lent, const int fds[2])
{
    Local__Opened opened;
    Local__Attr attr;
    uint8_t key[FILE_CIPHER_KEY];

    if (lent < 0) {
        local_error(l, reply, lent, "the store cannot open it");
        return;
    }
    fill_opened(l, &opened, &attr, ino);
    opened.complete = lent == 1;
    opened.root.data = content == NULL ? (uint8_t *)(uintptr_t)zero_root
                                       : (uint8_t *)(uintptr_t)content_root(content);
    opened.root.len = HASH_SIZE;
    opened.size = content == NULL ? 0 : content_geometry(content)->size;
    opened.key.data = key;
    opened.key.len = content != NULL && content_key(content, key) ? sizeof key : 0;
    send_with(l, reply, &opened, fds, content == NULL ? 0 : lent == 1 ? 1 : 2);
    secret_wipe(key, sizeof key);
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

struct lend_task {
    struct task task;
    struct reply reply;
    uint64_t ino;
    struct content *content;
    int lent, fds[2];
};

static void lend_work(struct task *task)
{
    struct lend_task *lend = (struct lend_task *)(void *)task;

    lend->lent = content_lend(lend->content, true, &lend->fds[0], &lend->fds[1]);
}

static void lend_done(struct local *l, struct task *task)
{
    struct lend_task *lend = (struct lend_task *)(void *)task;

    send_lent(l, lend->reply, lend->ino, lend->content, lend->lent, lend->fds);
    content_release(lend->content);
    free(lend);
}

void io_send_opened(struct local *l, struct reply reply, uint64_t ino, struct content *content)
{
    int fds[2] = {-1, -1};
    int lent = content == NULL ? 1 : content_lend(content, false, &fds[0], &fds[1]);

    if (lent != -EAGAIN && lent != -EBUSY) {
        send_lent(l, reply, ino, content, lent, fds);
        return;
    }
    /* Blocks of it are just being taken away, or the last one came: that takes as long as the disk likes. Or all of it has to be
     * hashed: the workers have more to do. */
    struct lend_task *lend = xcalloc(1, sizeof *lend);
    lend->reply = reply;
    lend->ino = ino;
    lend->content = content_share(content);
    local_post_to(l, lent == -EBUSY ? l->lender : l->daemon->workers, &lend->task, lend_work,
                  lend_done);
}

void write_send_working(struct local *l, struct reply reply, const struct working *w)
{
    Local__Opened opened;
    Local__Attr attr;
    uint8_t key[FILE_CIPHER_KEY];
    int fd = ingest_dup(w->ingest);

    if (fd < 0) {
        local_error(l, reply, fd, "no descriptor is left");
        return;
    }
    fill_opened(l, &opened, &attr, w->ino);
    opened.working = true;
    opened.number = w->number;
    opened.key.data = key;
    opened.key.len = ingest_key(w->ingest, key) ? sizeof key : 0;
    send_with(l, reply, &opened, &fd, 1);
    secret_wipe(key, sizeof key);
    close(fd);
}

struct open_task {
    struct task task;
    struct reply reply;
    uint64_t ino, size;
    uint8_t root[HASH_SIZE];
    struct content *content;
    int error;
};

static void open_work(struct task *task)
{
    struct open_task *open = (struct open_task *)(void *)task;

    open->content =
        store_get(task->local->daemon->store, open->root, open->size, true, &open->error);
}

static void open_done(struct local *l, struct task *task)
{
    struct open_task *open = (struct open_task *)(void *)task;
    struct client *cl = local_client(l, open->reply.client);

    if (open->content == NULL) {
        local_error(l, open->reply, open->error, "the store has no place for it");
    } else if (cl == NULL || cl->mount == NULL) {
        content_release(open->content);
    } else {
        io_opened(l, cl->mount, open->ino, open->content);
        io_send_opened(l, open->reply, open->ino, open->content);
    }
    catalogue_close_node(l->catalogue, open->ino);
    free(open);
}

/* Another file has the name by now, and this mount's kernel has not heard of it yet. What it believes of the number's
 * size and bytes may be of an earlier version: it is told to look the name up again, as ESTALE makes it. Who has the
 * number open goes on with it. */
static bool is_stale(const struct local *l, const struct mount *m, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);

    return (node == NULL || !catalogue_is_linked(l->catalogue, node)) &&
           opened_find(m, ino) == NULL;
}

void io_open(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    uint64_t ino = ((const Local__Open *)message)->ino;
    const struct node *node = catalogue_node(l->catalogue, ino);
    struct working *w = write_find(l, ino);
    bool visible = node != NULL && (local_is_visible(l) || opened_find(cl->mount, ino) != NULL);

    if (node != NULL && node->working && write_await_recovery(l, reply))
        return;
    if (local_is_visible(l) && is_stale(l, cl->mount, ino)) {
        local_error(l, reply, ESTALE, "%s", "");
        return;
    }
    if (!visible || node->kind != NODE_FILE) {
        local_error(l, reply,
                    !visible                       ? ENOENT
                    : node->kind == NODE_DIRECTORY ? EISDIR
                                                   : ELOOP,
                    "%s", "");
        return;
    }
    if (HASH_COUNT(cl->mount->opened) >= LIMIT_HANDLES) {
        local_error(l, reply, EMFILE, "too many files are open");
        return;
    }
    if (w != NULL && write_await_end(l, w, reply))
        return;
    if (w != NULL && (write_take_on(w, cl->mount) || node->working)) { /* W4 */
        if (write_defer(l, w, reply))
            return;
        io_opened(l, cl->mount, ino, NULL);
        write_send_working(l, reply, w);
        return;
    }
    if (node->working) {
        local_error(l, reply, EIO, "what was written of it is lost");
        return;
    }
    struct content *content = node->size == 0 ? NULL : store_find(l->daemon->store, node->root);
    if (node->size == 0 || (content != NULL && content_geometry(content)->size == node->size)) {
        io_opened(l, cl->mount, ino, content);
        io_send_opened(l, reply, ino, content);
        return;
    }
    content_release(content);
    struct open_task *open = xcalloc(1, sizeof *open);
    open->reply = reply;
    open->ino = ino;
    open->size = node->size;
    memcpy(open->root, node->root, HASH_SIZE);
    catalogue_open_node(l->catalogue, ino); /* until it is answered */
    local_post(l, &open->task, open_work, open_done);
}

/* --- reading ---------------------------------------------------------------------------------- */

static struct want *want_find(const struct local *l, struct reply reply)
{
    struct reply key;
    struct want *w;

    memset(&key, 0, sizeof key); /* padding is part of the key */
    key.client = reply.client;
    key.id = reply.id;
    HASH_FIND(by_reply, l->wants_by_reply, &key, sizeof key, w);
    return w;
}

static void park(struct local *l, struct mount *m, struct reply reply, struct content *content,
                 const Local__Want *message, uint64_t size)
{
    struct want *w = xcalloc(1, sizeof *w);

    w->number = ++l->next_want;
    w->reply.client = reply.client;
    w->reply.id = reply.id;
    w->mount = m;
    m->wants++;
    HASH_ADD(by_number, l->wants, number, sizeof w->number, w);
    HASH_ADD(by_reply, l->wants_by_reply, reply, sizeof w->reply, w);
    download_demand(l->daemon->download, content, w->number, message->handle ^ m->salt,
                    message->offset, size, (int64_t)message->wait_ms * NS_PER_MS);
}

static void touch(struct content *content, uint64_t offset, uint64_t size)
{
    uint64_t first = offset / BLOCK_SIZE, last = (offset + size - 1) / BLOCK_SIZE;

    content_touch(content, first, last - first + 1);
}

void io_want(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Want *m = message;
    const struct opened *o = opened_find(cl->mount, m->ino);

    if (o == NULL) {
        local_error(l, reply, EBADF, "the file is not open");
        return;
    }
    uint64_t size = o->content == NULL ? 0 : content_geometry(o->content)->size;
    if (m->offset >= size || m->size == 0) {
        local_done(l, reply);
        return;
    }
    uint64_t length = m->size < size - m->offset ? m->size : size - m->offset;
    touch(o->content, m->offset, length);
    uint64_t first = m->offset / BLOCK_SIZE, last = (m->offset + length - 1) / BLOCK_SIZE;
    if (bitmap_all(content_present(o->content), first, last - first + 1))
        local_done(l, reply);
    else if (cl->mount->wants >= LIMIT_WANTS)
        local_error(l, reply, EAGAIN, "too many reads are waiting");
    else if (want_find(l, reply) != NULL)
        local_error(l, reply, EINVAL, "that request waits already");
    else
        park(l, cl->mount, reply, o->content, m, length);
}

void io_demand_done(struct local *l, uint64_t number, int error)
{
    struct want *w;

    HASH_FIND(by_number, l->wants, &number, sizeof number, w);
    if (w == NULL)
        return; /* nobody waits any more */
    if (error == 0)
        local_done(l, w->reply);
    else
        local_error(l, w->reply, error, "%s",
                    error == -EIO ? "nobody who is connected has it" : "");
    want_free(l, w);
}

void io_unwant(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Unwant *m = message;
    struct want *w = want_find(l, (struct reply){cl->number, m->request});

    if (w == NULL)
        return;
    download_undemand(l->daemon->download, w->number);
    want_free(l, w);
}

void io_reading(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Reading *m = message;
    const struct opened *o = opened_find(cl->mount, m->ino);

    if (o != NULL && o->content != NULL && m->size > 0 &&
        m->offset < content_geometry(o->content)->size) {
        uint64_t left = content_geometry(o->content)->size - m->offset;
        uint64_t size = m->size < left ? m->size : left;
        touch(o->content, m->offset, size);
        if (!content_complete(o->content))
            download_reading(l->daemon->download, o->content, m->handle ^ cl->mount->salt,
                             m->offset, size);
    }
}

void io_release(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Release *m = message;
    struct opened *o = opened_find(cl->mount, m->ino);

    download_handle_closed(l->daemon->download, m->handle ^ cl->mount->salt);
    if (!m->last)
        return;
    write_released(l, cl->mount, m->ino);
    write_forget_sealed(l, cl->mount->id, m->ino);
    if (o != NULL) {
        if (o->content != NULL && content_complete(o->content))
            ahead_read(l, m->ino);
        opened_free(l, cl->mount, o);
    }
}

/* --- attaching again -------------------------------------------------------------------------- */

struct attach_one {
    uint64_t ino, size;
    uint8_t root[HASH_SIZE];
    struct content *content;
};

struct attach_task {
    struct task task;
    struct reply reply;
    bool failed;
    size_t count;
    struct attach_one items[];
};

static void attach_work(struct task *task)
{
    struct attach_task *attach = (struct attach_task *)(void *)task;
    int error;

    for (size_t i = 0; i < attach->count; i++) {
        struct attach_one *one = &attach->items[i];
        if (one->size > 0)
            one->content =
                store_get(task->local->daemon->store, one->root, one->size, true, &error);
        attach->failed |= one->size > 0 && one->content == NULL;
    }
}

static void attach_done(struct local *l, struct task *task)
{
    struct attach_task *attach = (struct attach_task *)(void *)task;
    struct client *cl = local_client(l, attach->reply.client);

    for (size_t i = 0; i < attach->count; i++) {
        struct attach_one *one = &attach->items[i];
        int error = catalogue_reopen_node(l->catalogue, one->ino, one->root, one->size);
        if (cl == NULL || cl->mount == NULL || (error != 0 && error != -EEXIST)) {
            attach->failed |= cl != NULL;
            content_release(one->content);
        } else if (one->size == 0 || one->content != NULL) {
            io_opened(l, cl->mount, one->ino, one->content);
        }
        if (error == 0)
            catalogue_close_node(l->catalogue,
                                 one->ino); /* the mount holds it, if it came so far */
    }
    if (attach->failed)
        local_error(l, attach->reply, EIO, "not all of the open files could be found again");
    else
        local_done(l, attach->reply);
    free(attach);
}

void io_reattach(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Reattach *m = message;

    if (write_await_recovery(l, reply))
        return;
    struct attach_task *attach = xcalloc(1, sizeof *attach + m->n_nodes * sizeof attach->items[0]);
    attach->reply = reply;
    for (size_t i = 0; i < m->n_nodes; i++) {
        const Local__OpenNode *node = m->nodes[i];
        struct attach_one *one = &attach->items[attach->count];
        bool sound = node->root.len == HASH_SIZE && node->size <= FILE_SIZE_MAX &&
                     (node->size == 0) == (memcmp(node->root.data, zero_root, HASH_SIZE) == 0);
        if (HASH_COUNT(cl->mount->opened) + attach->count >= LIMIT_HANDLES) {
            attach->failed = true;
        } else if (node->working && write_attach(l, cl->mount, node->ino, node->number)) {
            io_opened(l, cl->mount, node->ino, NULL);
        } else if (node->working) {
            /* Perhaps it was sealed, and the answer lost. */
            const struct node *here = catalogue_node(l->catalogue, node->ino);
            if (here == NULL || here->kind != NODE_FILE || here->working ||
                !write_was_sealed(l, node->ino, node->number)) {
                attach->failed = true;
                continue;
            }
            one->ino = node->ino;
            one->size = here->size;
            memcpy(one->root, here->root, HASH_SIZE);
            attach->count++;
        } else if (sound) {
            one->ino = node->ino;
            one->size = node->size;
            memcpy(one->root, node->root.data, HASH_SIZE);
            attach->count++;
        } else if (node->root.len == 0) {
            attach->count++; /* an empty file */
            one->ino = node->ino;
        } else {
            attach->failed = true;
        }
    }
    local_post(l, &attach->task, attach_work, attach_done);
}
