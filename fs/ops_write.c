/* Writing and changing attributes.
 *
 * WRITE goes to the working file at once when the gate is open (file_write.c), else its bytes are copied and wait for
 * their turn. With the kernel's write-back cache these are few and large, and the kernel is the authority on size and
 * mtime of a file that is being written: its SETATTR of mtime before a close is kept for Seal.
 *
 * Owner and group are always the mounting user's: a chown is accepted and changes nothing, so that `tar x` and
 * `rsync -a` as root do not fail for it. */
#include "fs/ops.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "fs/attr.h"
#include "fs/client.h"
#include "fs/crew.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/request.h"
#include "fs/times.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define NS            1000000000
#define LARGE_WRITE   (64u << 10)       /* takes longer than to wake another thread */
#define SLOW_WRITE_NS (2 * NS_PER_MS)   /* the kernel makes writers wait for the disk */
#define SLOW_FOR_NS   (500 * NS_PER_MS) /* so others wait as well, for the next moment */

static int64_t slow_until; /* atomic */

/* --- write, fallocate ------------------------------------------------------------------------------------ */

static void on_written(struct request *r, struct answer *a)
{
    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, a->error);
    else
        fuse_reply_write(r->req, r->data_size);
}

static void start_turn(struct request *r)
{
    file_take_turn(r->file, r, r->turn);
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *bytes, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    struct handle *h = handle_of(fi);
    struct content *content = file_begin_write(h->file);
    struct request *r;
    void *copy;
    int result;

    if (content != NULL) {
        int64_t began = clock_now();

        if (size >= LARGE_WRITE || began < __atomic_load_n(&slow_until, __ATOMIC_RELAXED))
            crew_step_aside();
        result = content_write(content, bytes, size, (uint64_t)offset);
        file_end_write(h->file, content, (uint64_t)offset, size, result);
        if (clock_now() - began > SLOW_WRITE_NS)
            __atomic_store_n(&slow_until, began + SLOW_FOR_NS, __ATOMIC_RELAXED);
        if (result != 0)
            fuse_reply_err(req, -result);
        else
            fuse_reply_write(req, size);
        return;
    }
    copy = malloc(size);
    if (copy == NULL) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    memcpy(copy, bytes, size);
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_written);
    r->data = copy;
    r->data_size = size;
    r->file = h->file;
    r->offset = (uint64_t)offset;
    r->turn = TURN_WRITE;
    r->patience = PATIENCE_SLOW;
    r->start = start_turn;
    request_submit(r);
}

static void on_allocated(struct request *r, struct answer *a)
{
    if (r->req != NULL)
        fuse_reply_err(r->req, a->error);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_allocated);

    r->file = handle_of(fi)->file;
    r->flags = mode;
    r->offset = (uint64_t)offset;
    r->size = (uint64_t)length;
    r->turn = TURN_ALLOCATE;
    r->patience = PATIENCE_SLOW;
    r->start = start_turn;
    request_submit(r);
}

/* --- setattr --------------------------------------------------------------------------------------------- */

static bool is_being_written(const struct file *f)
{
    return f != NULL && f->content != NULL && f->state == FILE_WORKING;
}

static void on_setattr(struct request *r, struct answer *a)
{
    struct file *f = file_find(r->fs->files, r->ino);
    const Local__Attr *attr = a->message;
    struct stat st;
    double timeout = ATTR_SHORT;

    fs_changed(r->fs);
    if (a->error == 0) {
        times_changed(r->fs->times, r->ino);
        times_set(r->fs->times, r->ino, (r->flags & FUSE_SET_ATTR_ATIME) != 0 ? &r->atime : NULL,
                  r->sets_mtime);
        if (r->ino == FUSE_ROOT_ID)
            times_set_root(r->fs->times, (r->flags & FUSE_SET_ATTR_MODE) != 0 ? &r->mode : NULL,
                           r->sets_mtime ? &r->mtime : NULL);
    }
    if (r->req == NULL)
        return;
    if (a->error != 0 && !(a->error == ENOENT && f != NULL && f->content != NULL)) {
        fuse_reply_err(r->req, stale(a->error));
        return;
    }
    if (attr != NULL && attr_stat(&st, attr, r->fs->uid, r->fs->gid)) {
        timeout = attr_timeout(attr);
        st.st_ino = r->ino;
        if (f != NULL && f->content != NULL)
            f->st.st_mode = st.st_mode;
    } else if (f != NULL && f->content != NULL) {
        int64_t size = content_size(f->content);

        st = f->st;
        if (size >= 0)
            st.st_size = size;
    } else {
        fuse_reply_err(r->req, EIO);
        return;
    }
    file_correct(r->fs->files, r->ino, &st);
    fuse_reply_attr(r->req, &st, timeout);
}

/* What is left of the request for the daemon; GETATTR if nothing is. The root's mode and times are kept here (times.h). */
static void send_rest(struct request *r)
{
    if (r->ino == FUSE_ROOT_ID || (r->flags & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_MTIME)) == 0) {
        r->type = LOCAL__LOCAL_TYPE__LOCAL_GETATTR;
        r->message.node = (Local__Node)LOCAL__NODE__INIT;
        r->message.node.ino = r->ino;
    } else {
        r->type = LOCAL__LOCAL_TYPE__LOCAL_SETATTR;
        r->message.setattr = (Local__Setattr)LOCAL__SETATTR__INIT;
        r->message.setattr.ino = r->ino;
        r->message.setattr.set_mode = (r->flags & FUSE_SET_ATTR_MODE) != 0;
        r->message.setattr.mode = r->mode & 0777;
        r->message.setattr.set_mtime = (r->flags & FUSE_SET_ATTR_MTIME) != 0;
        r->message.setattr.mtime = r->mtime;
    }
    request_send(r);
}

static void start_setattr(struct request *r)
{
    struct file *f = file_find(r->fs->files, r->ino);

    if ((r->flags & FUSE_SET_ATTR_SIZE) != 0) {
        f = file_get(r->fs, r->ino);
        r->file = f;
        if (file_is_passed(f)) {
            file_renew(r);
            return;
        }
        file_take_turn(f, r, TURN_TRUNCATE);
        return;
    }
    if (f != NULL &&
        (f->state == FILE_SEALING || f->state == FILE_BEGINNING || f->state == FILE_OPENING)) {
        r->file = f;
        file_take_turn(f, r, TURN_AGAIN);
        return;
    }
    if (is_being_written(f) && (r->flags & FUSE_SET_ATTR_MTIME) != 0) {
        CHECK(pthread_mutex_lock(&f->lock) == 0);
        f->st.st_mtim.tv_sec = r->mtime / NS;
        f->st.st_mtim.tv_nsec = r->mtime % NS;
        f->set_mtime = true;
        CHECK(pthread_mutex_unlock(&f->lock) == 0);
        r->flags &= ~FUSE_SET_ATTR_MTIME;
    }
    if (is_being_written(f) && (r->flags & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_MTIME)) == 0)
        request_finish(r, 0); /* its attributes are known here (file_correct) */
    else
        send_rest(r);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                       struct fuse_file_info *fi)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_NONE, on_setattr);

    r->ino = ino;
    r->flags = to_set;
    r->mode = attr->st_mode;
    r->size = (uint64_t)attr->st_size;
    if ((to_set & FUSE_SET_ATTR_MTIME_NOW) != 0) {
        r->flags |= FUSE_SET_ATTR_MTIME;
        r->mtime = clock_wall();
    } else if ((to_set & FUSE_SET_ATTR_MTIME) != 0) {
        r->mtime = (int64_t)attr->st_mtim.tv_sec * NS + attr->st_mtim.tv_nsec;
    }
    r->sets_mtime = (r->flags & FUSE_SET_ATTR_MTIME) != 0;
    if ((to_set & FUSE_SET_ATTR_ATIME_NOW) != 0) {
        r->flags |= FUSE_SET_ATTR_ATIME;
        r->atime = clock_wall();
    } else if ((to_set & FUSE_SET_ATTR_ATIME) != 0) {
        r->atime = (int64_t)attr->st_atim.tv_sec * NS + attr->st_atim.tv_nsec;
    }
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0)
        r->patience = PATIENCE_SLOW;
    r->start = start_setattr;
    request_submit(r);
}

void ops_fill_write(struct fuse_lowlevel_ops *ops)
{
    ops->write = op_write;
    ops->fallocate = op_fallocate;
    ops->setattr = op_setattr;
}
