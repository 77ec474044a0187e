/* What libfuse 3.14 does not know of the kernel's protocol: passthrough (kernel 6.9, CAP_SYS_ADMIN), and writing
 * without a question about capabilities in front of each write.
 *
 * A file that is open in passthrough is read by the kernel from the descriptor that it was given, without a request to
 * us. The kernel's rules: all that have an inode open at a time have it open in passthrough, from the same backing file,
 * or none has; and it gathers no writes (write-back cache) on a mount that may do this. */
#ifndef FS_DEVICE_H
#define FS_DEVICE_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <stdbool.h>

struct device;
struct fs;

/* Puts itself between libfuse and the device of fs->session, which is mounted. `wanted`: passthrough is asked for if the
 * kernel offers it and we may. */
struct device *device_new(struct fs *, bool wanted);
void device_free(struct device *);
/* Within libfuse's init: whether the reply that follows will switch passthrough on. */
bool device_passes(const struct device *);

/* Whether an open may be answered with direct I/O and its file still be mapped shared. Once the session runs. */
bool device_direct(const struct device *);

/* A backing file for the kernel, by its number (greater than 0); -errno. Needs a close when no handle has it any more.
 * Any thread. */
int device_backing_open(struct device *, int fd);
void device_backing_close(struct device *, int backing);
/* Answers OPEN; `backing` 0: by requests, through the page cache. As fuse_reply_open. */
int device_reply_open(fuse_req_t, const struct fuse_file_info *, int backing);

#endif
