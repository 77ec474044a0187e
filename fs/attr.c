/* Attr → struct stat.
 *
 * st_blocks is what is local, so `du` shows how much of a file is here. Timeouts: the daemon pushes every change, so
 * an hour is as good as for ever; what is on its way in, where the number of local bytes moves, gets a second. */
#include "fs/attr.h"

#include <errno.h>
#include <string.h>

#define NS 1000000000
/* What programs take as the size of one read or write. */
#define BLKSIZE        (128 << 10)
#define DIRECTORY_SIZE 4096

bool attr_stat(struct stat *st, const Local__Attr *attr, uid_t uid, gid_t gid)
{
    mode_t kind;

    switch (attr->kind) {
    case LOCAL__KIND__KIND_DIRECTORY:
        kind = S_IFDIR;
        break;
    case LOCAL__KIND__KIND_FILE:
        kind = S_IFREG;
        break;
    case LOCAL__KIND__KIND_SYMLINK:
        kind = S_IFLNK;
        break;
    default:
        return false;
    }
    if (attr->ino == 0 || attr->size > INT64_MAX || attr->local > INT64_MAX)
        return false;
    memset(st, 0, sizeof(*st));
    st->st_ino = attr->ino;
    st->st_mode = kind | (attr->mode & 0777);
    st->st_nlink = attr->nlink; /* 0: removed, but open */
    st->st_uid = uid;
    st->st_gid = gid;
    st->st_size = kind == S_IFDIR ? DIRECTORY_SIZE : (off_t)attr->size;
    st->st_blocks = (blkcnt_t)((attr->local + 511) / 512);
    st->st_blksize = BLKSIZE;
    st->st_mtim.tv_sec = attr->mtime / NS;
    st->st_mtim.tv_nsec = attr->mtime % NS;
    if (st->st_mtim.tv_nsec < 0) {
        st->st_mtim.tv_sec--;
        st->st_mtim.tv_nsec += NS;
    }
    st->st_atim = st->st_ctim = st->st_mtim;
    return true;
}

double attr_timeout(const Local__Attr *attr)
{
    bool moves =
        attr->state == LOCAL__STATE__STATE_LOCAL || attr->state == LOCAL__STATE__STATE_STREAMING;

    return attr->kind == LOCAL__KIND__KIND_FILE && moves ? ATTR_SHORT : ATTR_LONG;
}

int attr_errno(int number)
{
    return number >= 1 && number <= 4095 ? number : EIO;
}
