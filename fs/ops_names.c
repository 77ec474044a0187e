/* Names: one message each to the daemon, whose catalogue answers without the network.
 *
 * Absent names are not cached by the kernel: another member's new file must be seen at the next look, and a look costs
 * 50 us. Names that cannot exist (base/name.h) are answered here. After a crash of the daemon MKDIR, SYMLINK, UNLINK,
 * RMDIR and RENAME are sent again though they may have been carried out: then "exists" and "does not exist" mean that
 * they were. */
#include "fs/ops.h"

#include "base/name.h"
#include "fs/attr.h"
#include "fs/client.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/request.h"
#include "fs/times.h"
#include "proto/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#define STATFS_BLOCK 4096

static struct fs *fs_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* 0, or the errno for a name that nothing can have. */
static int name_fault(const char *name, int otherwise)
{
    size_t length = strlen(name);

    if (length > NAME_BYTES_MAX)
        return ENAMETOOLONG;
    return name_is_valid(name, length) ? 0 : otherwise;
}

static void reply_entry(struct request *r, uint64_t parent, const Local__Attr *attr)
{
    struct fuse_entry_param entry = {.entry_timeout = ATTR_LONG};

    if (!attr_stat(&entry.attr, attr, r->fs->uid, r->fs->gid)) {
        fuse_reply_err(r->req, EIO);
        return;
    }
    file_correct(r->fs->files, attr->ino, &entry.attr);
    entry.ino = attr->ino;
    entry.attr_timeout = attr_timeout(attr);
    if (parent == FUSE_ROOT_ID && *attr->name != '\0')
        invalidate_seen_in_root(r->fs->invalidator, attr->name);
    fuse_reply_entry(r->req, &entry);
}

/* --- lookup ---------------------------------------------------------------------------------------------- */

static void on_lookup(struct request *r, struct answer *a)
{
    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, a->error);
    else
        reply_entry(r, r->message.lookup.parent, a->message);
}

static void set_lookup(struct request *r, uint64_t parent, const char *name)
{
    r->message.lookup = (Local__Lookup)LOCAL__LOOKUP__INIT;
    r->message.lookup.parent = parent;
    r->message.lookup.name = request_text(r, 0, name);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct request *r;
    int fault = name_fault(name, ENOENT);

    if (fault != 0) {
        fuse_reply_err(req, fault);
        return;
    }
    r = request_new(fs_of(req), req, LOCAL__LOCAL_TYPE__LOCAL_LOOKUP, on_lookup);
    set_lookup(r, parent, name);
    request_submit(r);
}

/* --- getattr, readlink, statfs --------------------------------------------------------------------------- */

static void on_getattr(struct request *r, struct answer *a)
{
    const Local__Attr *attr = a->message;
    struct file *f = file_find(r->fs->files, r->ino);
    struct stat st;

    if (r->req == NULL)
        return;
    if (a->error == ENOENT && f != NULL && f->content != NULL) { /* removed, but open here */
        st = f->st;
        st.st_nlink = 0;
        file_correct(r->fs->files, r->ino, &st);
        fuse_reply_attr(r->req, &st, 0);
    } else if (a->error != 0) {
        fuse_reply_err(r->req, stale(a->error));
    } else if (!attr_stat(&st, attr, r->fs->uid, r->fs->gid)) {
        fuse_reply_err(r->req, EIO);
    } else {
        st.st_ino = r->ino;
        file_correct(r->fs->files, r->ino, &st);
        fuse_reply_attr(r->req, &st, attr_timeout(attr));
    }
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct request *r = request_new(fs_of(req), req, LOCAL__LOCAL_TYPE__LOCAL_GETATTR, on_getattr);

    r->ino = ino;
    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = ino;
    request_submit(r);
}

static void on_readlink(struct request *r, struct answer *a)
{
    const Local__Text *text = a->message;

    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, stale(a->error));
    else
        fuse_reply_readlink(r->req, text->text);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct request *r =
        request_new(fs_of(req), req, LOCAL__LOCAL_TYPE__LOCAL_READLINK, on_readlink);

    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = ino;
    request_submit(r);
}

static void on_statfs(struct request *r, struct answer *a)
{
    const Local__Space *space = a->message;
    struct statvfs st = {
        .f_bsize = STATFS_BLOCK, .f_frsize = STATFS_BLOCK, .f_namemax = NAME_BYTES_MAX};

    if (r->req == NULL)
        return;
    if (a->error != 0) {
        fuse_reply_err(r->req, a->error);
        return;
    }
    st.f_blocks = space->size / STATFS_BLOCK;
    st.f_bfree = st.f_bavail = space->free / STATFS_BLOCK;
    st.f_files = LIMIT_ENTRIES;
    st.f_ffree = st.f_favail = space->entries < LIMIT_ENTRIES ? LIMIT_ENTRIES - space->entries : 0;
    fuse_reply_statfs(r->req, &st);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct request *r = request_new(fs_of(req), req, LOCAL__LOCAL_TYPE__LOCAL_STATFS, on_statfs);

    r->message.statfs = (Local__Statfs)LOCAL__STATFS__INIT;
    request_submit(r);
}

/* --- making ---------------------------------------------------------------------------------------------- */

static void on_make(struct request *r, struct answer *a)
{
    fs_changed(r->fs);
    if (a->error == 0)
        times_names_changed(r->fs->times, r->message.make.parent);
    if (r->req == NULL)
        return;
    if (a->error == EEXIST && r->again) {
        uint64_t parent = r->message.make.parent;

        r->type = LOCAL__LOCAL_TYPE__LOCAL_LOOKUP;
        r->done = on_lookup;
        r->message.lookup = (Local__Lookup)LOCAL__LOOKUP__INIT;
        r->message.lookup.parent = parent;
        r->message.lookup.name = r->text[0];
        request_send(r);
    } else if (a->error != 0) {
        fuse_reply_err(r->req, a->error);
    } else {
        reply_entry(r, r->message.make.parent, a->message);
    }
}

static struct request *make(fuse_req_t req, uint16_t type, uint64_t parent, const char *name)
{
    struct request *r;
    int fault = name_fault(name, EINVAL);

    if (fault != 0) {
        fuse_reply_err(req, fault);
        return NULL;
    }
    r = request_new(fs_of(req), req, type, on_make);
    r->message.make = (Local__Make)LOCAL__MAKE__INIT;
    r->message.make.parent = parent;
    r->message.make.name = request_text(r, 0, name);
    return r;
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct request *r = make(req, LOCAL__LOCAL_TYPE__LOCAL_MKDIR, parent, name);

    if (r == NULL)
        return;
    r->message.make.mode = mode & 0777;
    request_submit(r);
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct request *r;

    if (strlen(target) > LIMIT_SYMLINK) {
        fuse_reply_err(req, ENAMETOOLONG);
        return;
    }
    r = make(req, LOCAL__LOCAL_TYPE__LOCAL_SYMLINK, parent, name);
    if (r == NULL)
        return;
    r->message.make.mode = 0777;
    r->message.make.target = request_text(r, 1, target);
    request_submit(r);
}

/* Neither hard links nor devices exist in a swarm: mknod makes files (tar --xattrs does so). */
static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
    fuse_reply_err(req, EPERM);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
    struct request *r;

    if (!S_ISREG(mode)) {
        fuse_reply_err(req, EPERM);
        return;
    }
    r = make(req, LOCAL__LOCAL_TYPE__LOCAL_MKNOD, parent, name);
    if (r == NULL)
        return;
    r->message.make.mode = mode & 0777;
    request_submit(r);
}

/* --- removing, renaming ---------------------------------------------------------------------------------- */

static void on_gone(struct request *r, struct answer *a)
{
    fs_changed(r->fs);
    if (a->error == 0 && r->type == LOCAL__LOCAL_TYPE__LOCAL_RENAME) {
        times_names_changed(r->fs->times, r->message.rename.parent);
        times_names_changed(r->fs->times, r->message.rename.to_parent);
    } else if (a->error == 0) {
        times_names_changed(r->fs->times, r->message.lookup.parent);
    }
    if (r->req != NULL)
        fuse_reply_err(r->req, a->error == ENOENT && r->again ? 0 : a->error);
}

static void take_away(fuse_req_t req, uint16_t type, uint64_t parent, const char *name)
{
    struct request *r;
    int fault = name_fault(name, ENOENT);

    if (fault != 0) {
        fuse_reply_err(req, fault);
        return;
    }
    r = request_new(fs_of(req), req, type, on_gone);
    set_lookup(r, parent, name);
    request_submit(r);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    take_away(req, LOCAL__LOCAL_TYPE__LOCAL_UNLINK, parent, name);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    take_away(req, LOCAL__LOCAL_TYPE__LOCAL_RMDIR, parent, name);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t to_parent,
                      const char *to_name, unsigned flags)
{
    struct request *r;
    int fault = name_fault(name, ENOENT);

    if (fault == 0)
        fault = name_fault(to_name, EINVAL);
    if (fault == 0 && (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0)
        fault = EINVAL;
    if (fault != 0) {
        fuse_reply_err(req, fault);
        return;
    }
    r = request_new(fs_of(req), req, LOCAL__LOCAL_TYPE__LOCAL_RENAME, on_gone);
    r->message.rename = (Local__Rename)LOCAL__RENAME__INIT;
    r->message.rename.parent = parent;
    r->message.rename.name = request_text(r, 0, name);
    r->message.rename.to_parent = to_parent;
    r->message.rename.to_name = request_text(r, 1, to_name);
    r->message.rename.no_replace = (flags & RENAME_NOREPLACE) != 0;
    r->message.rename.exchange = (flags & RENAME_EXCHANGE) != 0;
    if (to_parent == FUSE_ROOT_ID)
        invalidate_seen_in_root(fs_of(req)->invalidator, to_name);
    request_submit(r);
}

void ops_fill_names(struct fuse_lowlevel_ops *ops)
{
    ops->lookup = op_lookup;
    ops->getattr = op_getattr;
    ops->readlink = op_readlink;
    ops->statfs = op_statfs;
    ops->mkdir = op_mkdir;
    ops->symlink = op_symlink;
    ops->link = op_link;
    ops->mknod = op_mknod;
    ops->unlink = op_unlink;
    ops->rmdir = op_rmdir;
    ops->rename = op_rename;
}
