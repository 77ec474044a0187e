/* One mount from its beginning to its end. */
#ifndef FS_MOUNT_H
#define FS_MOUNT_H

#include "fs/options.h"

/* Mounts, goes into the background (unless `foreground`) once the mount answers, serves until it is unmounted or
 * SIGTERM, SIGINT or SIGHUP comes. Returns the program's exit status; says why not on standard error. */
int mount_run(const struct options *);

#endif
