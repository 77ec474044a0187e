/* The daemon's word on an entry as the kernel wants it. Pure; any thread. */
#ifndef FS_ATTR_H
#define FS_ATTR_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "proto/local.pb-c.h"

#define ATTR_LONG  3600.0 /* seconds; changes are pushed into the kernel */
#define ATTR_SHORT 1.0    /* for what changes while it is looked at */

/* False if it cannot be an entry: no inode number, an unknown kind, a size beyond off_t. Every entry belongs to
 * `uid` and `gid`; of the mode only the nine permission bits count. */
bool attr_stat(struct stat *, const Local__Attr *, uid_t uid, gid_t gid);
/* How long the kernel may rely on it. */
double attr_timeout(const Local__Attr *);
/* An errno from the daemon: 1 to 4095, else EIO. */
int attr_errno(int number);

#endif
