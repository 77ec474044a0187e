/* Open inodes: the table, opening, handles, letting go. What writing adds is file_write.c's.
 *
 * A file is in the table from the first Open (or Create) that is sent until the daemon is told that the last handle is
 * closed. In between the daemon keeps its content, so descriptor and bitmap stay good.
 *
 *   F1  While a handle exists, `content` is set and the file is not freed.
 *   F2  Release with `last` is sent only when no handle, no waiting request and no message of ours for this inode is
 *       left; so an Open cannot be overtaken by it.
 *   F3  A file with unsealed writes is sealed before it is let go (unless sealing failed: then the daemon has the
 *       working file and the user the error). */
#include "fs/file.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "fs/attr.h"
#include "fs/client.h"
#include "fs/file_internal.h"
#include "fs/fs.h"
#include "fs/times.h"
#include "proto/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define FILE_MAGIC   0x66696c65u
#define HANDLE_MAGIC 0x68616e64u
#define BUCKETS      1024
#define ATTACH_BATCH 512
#define TELL_READ    (512u << 10) /* bytes read from what is present before the daemon hears of it */

struct files {
    struct fs *fs;
    struct file *table[BUCKETS];
    uint64_t next_handle;
};

/* --- the table ------------------------------------------------------------------------------------------- */

struct files *files_new(struct fs *fs)
{
    struct files *files = xcalloc(1, sizeof(*files));

    files->fs = fs;
    return files;
}

static void file_free(struct file *f)
{
    CHECK(f->first == NULL && f->busy == 0);
    f->magic = 0;
    content_release(f->content);
    CHECK(pthread_mutex_destroy(&f->lock) == 0);
    free(f->name);
    free(f);
}

void files_free(struct files *files)
{
    if (files == NULL)
        return;
    for (unsigned i = 0; i < BUCKETS; i++)
        while (files->table[i] != NULL) {
            struct file *f = files->table[i];

            files->table[i] = f->next;
            while (f->first != NULL) { /* the kernel is gone without a RELEASE */
                struct handle *h = f->first;

                f->first = h->next;
                free(h);
            }
            f->busy = 0;
            file_free(f);
        }
    free(files);
}

struct file *file_find(struct files *files, uint64_t ino)
{
    struct file *f = files->table[ino % BUCKETS];

    while (f != NULL && f->ino != ino)
        f = f->next;
    return f;
}

static struct file *file_new(struct fs *fs, uint64_t ino)
{
    struct file *f = xcalloc(1, sizeof(*f));

    f->magic = FILE_MAGIC;
    f->fs = fs;
    f->ino = ino;
    TAILQ_INIT(&f->opens);
    TAILQ_INIT(&f->turns);
    TAILQ_INIT(&f->reads);
    CHECK(pthread_mutex_init(&f->lock, NULL) == 0);
    f->next = fs->files->table[ino % BUCKETS];
    fs->files->table[ino % BUCKETS] = f;
    return f;
}

static void forget(struct file *f)
{
    struct file **at = &f->fs->files->table[f->ino % BUCKETS];

    while (*at != f) {
        CHECK(*at != NULL);
        at = &(*at)->next;
    }
    *at = f->next;
    f->next = NULL;
}

/* --- what the daemon hands over -------------------------------------------------------------------------- */

static int take_fd(struct answer *a, unsigned i)
{
    int fd = a->fds[i];

    a->fds[i] = -1;
    return fd;
}

static struct content *with_key(struct content *content, const Local__Opened *opened)
{
    if (content != NULL && opened->key.len != 0)
        content_set_key(content, opened->key.data);
    return content;
}

struct content *file_content_of(struct answer *a, int *error)
{
    const Local__Opened *opened = a->message;

    if (opened->key.len != 0 && opened->key.len != FILE_CIPHER_KEY) {
        *error = EPROTO;
        return NULL;
    }
    if (opened->working) {
        if (a->fds[0] < 0) {
            *error = EIO;
            return NULL;
        }
        return with_key(content_working(take_fd(a, 0)), opened);
    } else {
        int data = take_fd(a, 0), map = take_fd(a, 1), result = 0;
        struct content *content =
            content_sealed(data, map, opened->size, opened->complete, &result);

        *error = -result;
        return with_key(content, opened);
    }
}

void file_set_attr(struct file *f, const Local__Attr *attr)
{
    struct stat st;

    if (attr == NULL || !attr_stat(&st, attr, f->fs->uid, f->fs->gid))
        return;
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    f->st = st;
    f->st.st_ino = f->ino;
    if (*attr->name != '\0') {
        free(f->name);
        f->name = xstrdup(attr->name);
    }
    if (attr->root.len == sizeof(f->root)) {
        memcpy(f->root, attr->root.data, sizeof(f->root));
        f->has_root = true;
    }
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

void file_install(struct file *f, struct content *content)
{
    struct content *old;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    old = f->content;
    f->content = content;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    content_release(old);
}

/* 0 or an errno. */
static int take_opened(struct file *f, struct answer *a)
{
    const Local__Opened *opened = a->message;
    int error = 0;
    struct content *content = file_content_of(a, &error);

    if (content == NULL) {
        log_error("p2pd opened inode %llu in a way that does not fit: %s",
                  (unsigned long long)f->ino, strerror(error));
        return EIO;
    }
    file_set_attr(f, opened->attr);
    if (opened->root.len == sizeof(f->root)) {
        memcpy(f->root, opened->root.data, sizeof(f->root));
        f->has_root = true;
    }
    file_install(f, content);
    f->state = opened->working ? FILE_WORKING : FILE_SEALED;
    f->number = opened->number;
    file_set_unsealed(f, opened->working);
    return 0;
}

/* --- opening --------------------------------------------------------------------------------------------- */

static void on_opened(struct request *r, struct answer *a)
{
    struct file *f = r->file;
    struct request *waiting;

    f->pending--;
    if (a->error == 0)
        a->error = take_opened(f, a);
    else
        f->gone = true;
    if (a->error != 0) {
        f->busy++;
        forget(f);
        f->forgotten = true;
        f->state = FILE_SEALED;
        while ((waiting = TAILQ_FIRST(&f->opens)) != NULL ||
               (waiting = TAILQ_FIRST(&f->turns)) != NULL)
            request_finish(waiting, a->error);
        f->busy--;
    }
    file_advance(f);
}

static void ask_for(struct file *f, void (*done)(struct request *, struct answer *))
{
    struct request *r = request_new(f->fs, NULL, LOCAL__LOCAL_TYPE__LOCAL_OPEN, done);

    r->message.open = (Local__Open)LOCAL__OPEN__INIT;
    r->message.open.ino = f->ino;
    r->file = f;
    r->keep = true;
    f->pending++;
    request_begin(r);
}

struct file *file_get(struct fs *fs, uint64_t ino)
{
    struct file *f = file_find(fs->files, ino);

    if (f == NULL) {
        f = file_new(fs, ino);
        f->state = FILE_OPENING;
        f->busy++; /* the caller's request is not in a queue yet */
        ask_for(f, on_opened);
        f->busy--;
    }
    return f;
}

struct file *file_created(struct fs *fs, struct answer *a, int *error)
{
    const Local__Opened *opened = a->message;
    struct file *f;

    if (opened->attr == NULL || opened->attr->ino == 0) {
        *error = EIO;
        return NULL;
    }
    f = file_find(fs->files, opened->attr->ino);
    if (f != NULL) {
        *error = f->state == FILE_OPENING ? EIO : 0;
        return f->state == FILE_OPENING ? NULL : f;
    }
    f = file_new(fs, opened->attr->ino);
    *error = take_opened(f, a);
    if (*error == 0)
        return f;
    forget(f);
    file_free(f);
    return NULL;
}

static void on_refreshed(struct request *r, struct answer *a)
{
    struct file *f = r->file;
    const Local__Opened *opened = a->message;
    struct request_list unsent = TAILQ_HEAD_INITIALIZER(unsent);
    struct request *one, *next;

    f->pending--;
    f->refreshing = false;
    f->busy++;
    if (a->error != 0) {
        log_warning("p2pd does not open %s again: %s", f->name == NULL ? "a file" : f->name,
                    strerror(a->error));
    } else if (!opened->working && (f->state == FILE_SEALED || f->state == FILE_BEGINNING) &&
               (int64_t)opened->size == content_size(f->content)) {
        int error;
        struct content *content = file_content_of(a, &error);

        if (content != NULL)
            file_install(f, content);
    }
    for (one = TAILQ_FIRST(&f->reads); one != NULL; one = next) {
        next = TAILQ_NEXT(one, queue_link);
        if (one->type == LOCAL__LOCAL_TYPE__LOCAL_WANT && !one->sent) {
            request_unqueue(one);
            request_queue(one, &unsent);
        }
    }
    while ((one = TAILQ_FIRST(&unsent)) != NULL) {
        request_unqueue(one);
        request_queue(one, &f->reads);
        request_send(one);
    }
    f->busy--;
    file_advance(f);
}

void file_refresh(struct file *f)
{
    if (f->refreshing || f->state == FILE_OPENING)
        return;
    f->refreshing = true;
    ask_for(f, on_refreshed);
}

/* --- handles --------------------------------------------------------------------------------------------- */

struct handle *handle_new(struct file *f, bool writable, pid_t process)
{
    struct handle *h = xcalloc(1, sizeof(*h));

    h->magic = HANDLE_MAGIC;
    h->file = f;
    h->id = ++f->fs->files->next_handle;
    h->writable = writable;
    h->process = process;
    h->next = f->first;
    f->first = h;
    f->handles++;
    if (writable) {
        CHECK(pthread_mutex_lock(&f->lock) == 0);
        f->writable++;
        CHECK(pthread_mutex_unlock(&f->lock) == 0);
    }
    if (f->closed != 0)
        client_notice_now(f->fs->client, LOCAL__LOCAL_TYPE__LOCAL_RELEASE, f->ino, f->closed, 0, 0,
                          false);
    f->closed = 0;
    return h;
}

void handle_drop(struct handle *h)
{
    struct file *f = h->file;
    struct handle **at = &f->first;
    struct request *r, *next;

    CHECK_OBJECT(h, HANDLE_MAGIC);
    f->busy++;
    for (r = TAILQ_FIRST(&f->reads); r != NULL; r = next) {
        next = TAILQ_NEXT(r, queue_link);
        if (r->handle == h)
            request_finish(r, EIO);
    }
    while (*at != h) {
        CHECK(*at != NULL);
        at = &(*at)->next;
    }
    *at = h->next;
    f->handles--;
    if (h->writable) {
        CHECK(pthread_mutex_lock(&f->lock) == 0);
        f->writable--;
        CHECK(pthread_mutex_unlock(&f->lock) == 0);
    }
    handle_unpass(h);
    if (f->handles > 0)
        client_notice_now(f->fs->client, LOCAL__LOCAL_TYPE__LOCAL_RELEASE, f->ino, h->id, 0, 0,
                          false);
    else
        f->closed = h->id;
    h->magic = 0;
    free(h);
    f->busy--;
    file_advance(f);
}

struct close_mail {
    struct mail mail;
    struct handle *handle;
};

static void deliver_close(struct mail *mail, void *owner)
{
    struct handle *h = ((struct close_mail *)mail)->handle;

    free(mail);
    handle_drop(h);
}

void handle_close(struct handle *h)
{
    struct close_mail *m = xcalloc(1, sizeof(*m));

    CHECK_OBJECT(h, HANDLE_MAGIC);
    m->mail.deliver = deliver_close;
    m->handle = h;
    loop_post(client_loop(h->file->fs->client), &m->mail);
}

/* --- letting go ------------------------------------------------------------------------------------------ */

static void on_nothing(struct request *r, struct answer *a)
{
    if (a->error != 0 && !client_stopping(r->fs->client))
        log_error("%s was written, but not published: %s",
                  r->file->name == NULL ? "a file" : r->file->name, strerror(a->error));
}

static void start_last_seal(struct request *r)
{
    file_take_turn(r->file, r, TURN_SEAL);
}

void file_settle(struct file *f)
{
    bool dirty;

    if (f->busy > 0 || f->pending > 0 || f->handles > 0 || f->state == FILE_OPENING ||
        !TAILQ_EMPTY(&f->opens) || !TAILQ_EMPTY(&f->turns) || !TAILQ_EMPTY(&f->reads))
        return;
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    dirty = f->dirty;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    if (f->state == FILE_WORKING && (dirty || f->unsealed) && !f->seal_failed &&
        !client_stopping(f->fs->client)) {
        struct request *r = request_new(f->fs, NULL, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_nothing);

        r->patience = PATIENCE_SLOW;
        r->file = f;
        r->start = start_last_seal;
        request_begin(r);
        return;
    }
    if (!f->gone)
        client_notice_now(f->fs->client, LOCAL__LOCAL_TYPE__LOCAL_RELEASE, f->ino, f->closed, 0, 0,
                          true);
    if (!f->forgotten)
        forget(f);
    file_free(f);
}

/* --- after a reconnect ----------------------------------------------------------------------------------- */

struct batch {
    Local__OpenNode nodes[ATTACH_BATCH], *pointers[ATTACH_BATCH];
    size_t count;
    void (*send)(void *arg, const Local__Reattach *);
    void *arg;
};

static void add_node(struct batch *batch, const struct file *f)
{
    Local__OpenNode *node = &batch->nodes[batch->count];
    const struct handle *h;
    int64_t size = content_size(f->content);

    *node = (Local__OpenNode)LOCAL__OPEN_NODE__INIT;
    node->ino = f->ino;
    node->working = f->state == FILE_WORKING || f->state == FILE_SEALING;
    node->size = size > 0 ? (uint64_t)size : 0;
    node->number = node->working ? f->number : 0;
    if (!node->working && f->has_root) {
        node->root.data = xmemdup(f->root, sizeof(f->root));
        node->root.len = sizeof(f->root);
    }
    node->handles = xcalloc(f->handles + 1, sizeof(*node->handles));
    for (h = f->first; h != NULL; h = h->next)
        node->handles[node->n_handles++] = h->id;
    batch->pointers[batch->count++] = node;
}

static void send_batch(struct batch *batch)
{
    Local__Reattach message = LOCAL__REATTACH__INIT;

    if (batch->count == 0)
        return;
    message.n_nodes = batch->count;
    message.nodes = batch->pointers;
    batch->send(batch->arg, &message);
    while (batch->count > 0) {
        batch->count--;
        free(batch->nodes[batch->count].handles);
        free(batch->nodes[batch->count].root.data);
    }
}

void files_attach(struct files *files, void (*send)(void *arg, const Local__Reattach *), void *arg)
{
    struct batch *batch = xcalloc(1, sizeof(*batch));

    batch->send = send;
    batch->arg = arg;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (const struct file *f = files->table[i]; f != NULL; f = f->next) {
            if (f->state == FILE_OPENING)
                continue;
            add_node(batch, f);
            if (batch->count == ATTACH_BATCH)
                send_batch(batch);
        }
    send_batch(batch);
    free(batch);
}

void files_refresh(struct files *files)
{
    for (unsigned i = 0; i < BUCKETS; i++) {
        struct file *f, *next;

        for (f = files->table[i]; f != NULL; f = next) {
            next = f->next;
            if (f->state == FILE_SEALED && !f->forgotten && !content_complete(f->content))
                file_refresh(f);
        }
    }
}

void file_correct(struct files *files, uint64_t ino, struct stat *st)
{
    struct file *f = file_find(files, ino);
    int64_t size;

    times_apply(files->fs->times, st);
    if (f == NULL || (f->state != FILE_WORKING && f->state != FILE_SEALING && !f->nameless))
        return;
    size = content_size(f->content);
    if (size >= 0)
        st->st_size = size;
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (f->set_mtime) {
        st->st_mtim = f->st.st_mtim;
        if (st->st_ctim.tv_sec < st->st_mtim.tv_sec)
            st->st_ctim = st->st_mtim;
    }
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

/* --- FUSE workers ---------------------------------------------------------------------------------------- */

struct content *file_content(struct file *f)
{
    struct content *content;

    CHECK_OBJECT(f, FILE_MAGIC);
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    content = content_share(f->content);
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return content;
}

void file_was_read(struct handle *h, struct content *content, uint64_t offset, size_t size)
{
    struct file *f = h->file;
    uint64_t from = 0, length = 0;

    if (content_complete(content))
        return;
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (offset != h->run_to) {
        h->run_from = offset;
    }
    h->run_to = offset + size;
    if (h->run_to - h->run_from >= TELL_READ) {
        from = h->run_from;
        length = h->run_to - from;
        h->run_from = h->run_to;
    }
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    if (length > 0)
        client_notice(f->fs->client, LOCAL__LOCAL_TYPE__LOCAL_READING, f->ino, h->id, from, length,
                      false);
}
