/* Opening, reading, closing.
 *
 * READ: if the blocks are there, pread and a plain reply (which beats splice here), on the worker, without a message. If
 * not, the request is parked: the client's thread sends a Want and answers when the daemon says Done, in whatever order
 * blocks come. A parked read ends with its blocks, at its deadline (EIO), or when its reader is gone.
 *
 * FLUSH. In page-cache mode that is all p2pfs hears when a reader is killed; but a fork's copy of the descriptor, closed
 * while the parent reads, makes a FLUSH, too. The rule: a FLUSH by thread T ends (EINTR) the parked reads of that
 * handle which T itself asked for, because T is here and waits for none of them, and those whose thread has ended or is
 * ending. Everyone else's stay. Nobody gets an error that is not his: a read of pages that fails leaves them locked by
 * nobody and not up to date, and whoever else waits for them asks for them again, in his own name. What FLUSH misses (a
 * killed reader of a mapping, a FLUSH that was quicker than its READ) the client's sweep finds.
 *
 * FLUSH of a file that was made or emptied, and not written, makes that durable and publishes nothing: a program that gets the
 * descriptor from who opened it may be about to write. FLUSH of a file that was written makes it a content: it is answered when
 * that is done, or with why not. Only if the
 * closing process is the one that opened it and has it open for writing no more: in `{ a >&2; b; } >file` the children
 * and the shell itself close copies all the time, and each would publish a version. What is never sealed so is sealed
 * at the last close. */
#include "fs/ops.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/workers.h"
#include "fs/attr.h"
#include "fs/buffer.h"
#include "fs/client.h"
#include "fs/crew.h"
#include "fs/device.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/reader.h"
#include "fs/request.h"
#include "fs/times.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define TELL_EVERY_NS (10 * NS_PER_S) /* at most one log line for each file and this time */
#define TRIES         3               /* of a Want whose answer the bitmap does not confirm */

static bool is_for_writing(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

/* --- open, create, release ------------------------------------------------------------------------------- */

static void set_info(struct fuse_file_info *fi, const struct request *r, struct handle *h)
{
    memset(fi, 0, sizeof(*fi));
    fi->flags = r->flags;
    fi->fh = (uintptr_t)h;
    fi->keep_cache = 1; /* the bytes of an inode change through this mount only */
}

static void on_open(struct request *r, struct answer *a)
{
    struct fuse_file_info fi;
    struct handle *h;
    int backing;

    if (r->req == NULL)
        return;
    if (a->error != 0) {
        fuse_reply_err(r->req, stale(a->error));
        return;
    }
    h = handle_new(r->file, is_for_writing(r->flags), r->process);
    set_info(&fi, r, h);
    backing = handle_pass(h);
    fi.direct_io = handle_is_direct(h);
    if (device_reply_open(r->req, &fi, backing) == -ENOENT)
        handle_drop(h);
}

static void start_open(struct request *r)
{
    struct file *f = file_get(r->fs, r->ino);

    r->file = f;
    request_queue(r, &f->opens);
    file_advance(f);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_open);

    r->ino = ino;
    r->flags = fi->flags;
    r->process = is_for_writing(fi->flags) ? reader_process(r->tid) : 0;
    r->start = start_open;
    request_submit(r);
}

static void reply_created(struct request *r, const Local__Opened *opened, struct file *f)
{
    struct fuse_entry_param entry = {
        .ino = f->ino, .entry_timeout = ATTR_LONG, .attr_timeout = ATTR_SHORT};
    struct fuse_file_info fi;
    struct handle *h = handle_new(f, true, r->process);

    entry.attr = f->st;
    file_correct(r->fs->files, f->ino, &entry.attr);
    set_info(&fi, r, h);
    if (r->message.make.parent == FUSE_ROOT_ID)
        invalidate_seen_in_root(r->fs->invalidator, r->text[0]);
    if (fuse_reply_create(r->req, &entry, &fi) == -ENOENT)
        handle_drop(h);
}

static void on_create(struct request *r, struct answer *a)
{
    struct file *f = NULL;
    int error = a->error;

    fs_changed(r->fs);
    if (error == 0) {
        times_names_changed(r->fs->times, r->message.make.parent);
        f = file_created(r->fs, a, &error);
    }
    if (f == NULL) {
        if (r->req != NULL)
            fuse_reply_err(r->req, error);
        return;
    }
    f->busy++; /* if the caller is gone, so is the only handle: file_advance lets the file go, not that */
    if (r->req != NULL)
        reply_created(r, a->message, f);
    f->busy--;
    file_advance(f);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    size_t length = strlen(name);
    struct request *r;

    if (length > NAME_BYTES_MAX || !name_is_valid(name, length)) {
        fuse_reply_err(req, length > NAME_BYTES_MAX ? ENAMETOOLONG : EINVAL);
        return;
    }
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_CREATE, on_create);
    r->keep = true;
    r->flags = fi->flags;
    r->process = reader_process(r->tid);
    r->message.make = (Local__Make)LOCAL__MAKE__INIT;
    r->message.make.parent = parent;
    r->message.make.name = request_text(r, 0, name);
    r->message.make.mode = mode & 0777;
    r->message.make.exclusive = (fi->flags & O_EXCL) != 0;
    request_submit(r);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    handle_close(handle_of(fi));
    fuse_reply_err(req, 0);
}

/* --- read ------------------------------------------------------------------------------------------------ */

/* As content_read, into this thread's buffer. */
static ssize_t read_present(const struct content *content, size_t size, uint64_t offset)
{
    return content_read(content, buffer_here(), size < BUFFER_SIZE ? size : BUFFER_SIZE, offset);
}

/* What read_present gave, -EAGAIN apart. The last that is done with a handle: RELEASE may follow at once. */
static void reply_read(fuse_req_t req, ssize_t length)
{
    if (length < 0)
        fuse_reply_err(req, (int)-length);
    else
        fuse_reply_buf(req, buffer_here(), (size_t)length);
}

static void tell_failure(struct request *r, int error)
{
    int64_t now = clock_now();
    struct file *f = r->file;

    if (f->told != 0 && now - f->told < TELL_EVERY_NS)
        return;
    f->told = now;
    log_warning("reading %s (inode %llu) at byte %llu failed: %s",
                f->name == NULL ? "a file" : f->name, (unsigned long long)f->ino,
                (unsigned long long)r->offset, strerror(error));
}

static void on_read(struct request *r, struct answer *a)
{
    struct file *f = r->file;
    int error = a->error;

    if (error == 0 && r->req != NULL) {
        ssize_t length = read_present(f->content, r->size, r->offset);

        if (length != -EAGAIN) {
            reply_read(r->req, length);
            r->req = NULL;
        } else if (r->tries++ < TRIES) {
            /* p2pd came back with another map file, most likely; with the new one the read is sent again. */
            r->more = true;
            request_queue(r, &f->reads);
            file_refresh(f);
            return;
        } else {
            error = EIO;
        }
    }
    if (r->req != NULL) {
        if (error != EINTR && !client_stopping(r->fs->client))
            tell_failure(r, error);
        fuse_reply_err(r->req, error);
    }
    __atomic_fetch_sub(&f->parked, 1, __ATOMIC_RELAXED);
    file_advance(f);
}

static void start_read(struct request *r)
{
    struct file *f = r->file;

    if (content_has(f->content, r->offset, r->size)) { /* it came meanwhile */
        request_finish(r, 0);
        return;
    }
    request_queue(r, &f->reads);
    r->type = LOCAL__LOCAL_TYPE__LOCAL_WANT;
    r->message.want = (Local__Want)LOCAL__WANT__INIT;
    r->message.want.ino = f->ino;
    r->message.want.handle = r->handle->id;
    r->message.want.offset = r->offset;
    r->message.want.size = r->size;
    request_send(r);
}

/* From a view, if there is one: the last that is done with the handle, as in reply_read. */
static bool read_from_view(fuse_req_t req, struct content *content, size_t size, uint64_t offset)
{
    const void *view = content_view(content, &size, offset);

    if (view == NULL)
        return false;
    fuse_reply_buf(req, view, size);
    content_view_done(view, size);
    return true;
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);
    struct content *content = file_content(h->file);
    struct request *r;
    ssize_t length;

    if (read_from_view(req, content, size, (uint64_t)offset)) {
        content_release(content);
        return;
    }
    length = read_present(content, size, (uint64_t)offset);
    if (length != -EAGAIN) {
        if (length > 0)
            file_was_read(h, content, (uint64_t)offset, (size_t)length);
        content_release(content);
        reply_read(req, length);
        return;
    }
    content_release(content);
    __atomic_fetch_add(&h->file->parked, 1, __ATOMIC_RELAXED);
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_read);
    r->file = h->file;
    r->handle = h;
    r->offset = (uint64_t)offset;
    r->size = size;
    r->start = start_read;
    request_submit(r);
}

/* --- flush, fsync ---------------------------------------------------------------------------------------- */

static void on_flush(struct request *r, struct answer *a)
{
    if (r->req != NULL)
        fuse_reply_err(r->req, a->error);
}

static void let_readers_go(struct file *f, const struct handle *h, pid_t closer)
{
    struct request *r, *next;
    pid_t alive = 0;

    f->busy++;
    for (r = TAILQ_FIRST(&f->reads); r != NULL; r = next) {
        next = TAILQ_NEXT(r, queue_link);
        if (r->handle != h || r->tid == 0 || r->tid == alive)
            continue;
        if (r->tid == closer || reader_state(r->tid) == READER_GONE)
            client_let_go(r->fs->client, r);
        else
            alive = r->tid;
    }
    f->busy--;
}

/* By the process that opened it, and the last of its descriptors. */
static bool closes_what_it_opened(const struct request *r)
{
    const struct handle *h = r->handle;

    if (r->tid != 0 && h->process != 0 && r->tid != h->process &&
        reader_process(r->tid) != h->process)
        return false;
    return !reader_writes(r->tid, r->fs->mount_id, r->file->ino);
}

/* The working file as it is now survives a kill of all of us; or, `failed`, p2pd has to write it again. */
static void send_sync(struct request *r, bool failed)
{
    r->type = LOCAL__LOCAL_TYPE__LOCAL_SYNC;
    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = r->file->ino;
    r->message.node.number = r->file->number;
    r->message.node.failed = failed;
    request_send(r);
}

static void start_flush(struct request *r)
{
    struct file *f = r->file;

    let_readers_go(f, r->handle, r->tid);
    if (!r->handle->writable || !(file_is_dirty(f) || file_is_unsealed(f)) ||
        !closes_what_it_opened(r))
        request_finish(r, 0);
    else if (file_is_dirty(f))
        file_take_turn(f, r, TURN_SEAL);
    else
        send_sync(r, false);
}

static void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);
    struct request *r;

    if (!(h->writable && (file_is_dirty(h->file) || file_is_unsealed(h->file))) &&
        __atomic_load_n(&h->file->parked, __ATOMIC_RELAXED) == 0) {
        fuse_reply_err(req, 0);
        return;
    }
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_flush);
    r->file = h->file;
    r->handle = h;
    r->patience = PATIENCE_SLOW;
    r->start = start_flush;
    request_submit(r);
}

/* fdatasync may take as long as the disk likes: on a thread of its own, by a number of the request, for that may end
 * meanwhile. */
struct sync_job {
    struct job job;
    struct mail mail;
    struct fs *fs;
    struct content *content;
    uint32_t id;
    int error;
};

static void deliver_synced(struct mail *mail, void *owner)
{
    struct sync_job *s = (struct sync_job *)((char *)mail - offsetof(struct sync_job, mail));
    struct request *r = client_find(s->fs->client, s->id);

    if (r != NULL)
        send_sync(r, s->error != 0);
    content_release(s->content);
    free(s);
}

static void run_sync(struct job *job)
{
    struct sync_job *s = (struct sync_job *)job;

    s->error = fdatasync(content_fd(s->content)) == 0 ? 0 : errno;
    loop_post(client_loop(s->fs->client), &s->mail);
}

static void start_fsync(struct request *r)
{
    struct file *f = r->file;
    struct sync_job *s;

    if (f->state == FILE_SEALED && (r->had_turn || TAILQ_EMPTY(&f->turns))) {
        request_finish(r, 0); /* it was synced when it was sealed */
        return;
    }
    if (f->state != FILE_WORKING) {
        file_take_turn(f, r, TURN_AGAIN);
        return;
    }
    s = xcalloc(1, sizeof(*s));
    s->job.run = run_sync;
    s->mail.deliver = deliver_synced;
    s->fs = r->fs;
    s->content = content_share(f->content);
    s->id = r->id;
    workers_post(r->fs->disk, &s->job, false);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_flush);

    r->ino = ino;
    r->file = h->file;
    r->patience = PATIENCE_SLOW;
    r->start = start_fsync;
    request_submit(r);
}

/* Holes are those of a complete content, or of a file that nobody can be writing to through a mapping: what only the
 * kernel knows of must not be called a hole. Everything else is data up to its end. Where the kernel gathers writes it
 * knows the end better: it answers by itself after an ENOSYS. */
static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence,
                     struct fuse_file_info *fi)
{
    const struct handle *h = handle_of(fi);
    const struct fs *fs = fuse_req_userdata(req);
    struct content *content;
    int64_t size, found;

    if (!fs->passthrough) {
        fuse_reply_err(req, ENOSYS);
        return;
    }
    content = file_content(h->file);
    size = content_size(content);
    if (offset < 0 || offset >= size) {
        fuse_reply_err(req, size < 0 ? EIO : ENXIO);
    } else if (!h->writable && content_complete(content) && file_has_no_writer(h->file)) {
        found = content_seek(content, (uint64_t)offset, whence);
        if (found < 0)
            fuse_reply_err(req, (int)-found);
        else
            fuse_reply_lseek(req, found);
    } else {
        fuse_reply_lseek(req, whence == SEEK_DATA ? offset : size);
    }
    content_release(content);
}

void ops_fill_io(struct fuse_lowlevel_ops *ops)
{
    ops->open = op_open;
    ops->create = op_create;
    ops->read = op_read;
    ops->flush = op_flush;
    ops->fsync = op_fsync;
    ops->lseek = op_lseek;
    ops->release = op_release;
}
