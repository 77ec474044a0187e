/* The operations that the kernel asks for. Each runs on a FUSE worker, answers at once from what is here, or makes a
 * request and returns. `ops_fill` puts them all into libfuse's table. */
#ifndef FS_OPS_H
#define FS_OPS_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <stdint.h>

struct handle;

void ops_fill_names(struct fuse_lowlevel_ops
                        *); /* ops_names.c: lookup, getattr, readlink, mkdir, unlink, …, statfs */
void ops_fill_xattr(struct fuse_lowlevel_ops *); /* ops_xattr.c */
void ops_fill_dir(
    struct fuse_lowlevel_ops *); /* ops_dir.c: opendir, readdir, readdirplus, releasedir */
void ops_fill_io(
    struct fuse_lowlevel_ops *); /* ops_io.c: open, create, read, flush, release, fsync */
void ops_fill_write(struct fuse_lowlevel_ops *); /* ops_write.c: write, setattr, fallocate */

/* What open and create have put there. */
static inline struct handle *handle_of(const struct fuse_file_info *fi)
{
    return (struct handle *)(uintptr_t)fi->fh;
}

#endif
