/* A child of p2pfs that ends the mount when p2pfs has died.
 *
 * The kernel ends a mount when the last descriptor of its device is closed. A killed thread closes its own as it goes,
 * but one that waits within the kernel cannot go: a notification (invalidate.h) waits for a directory's lock, the lock's
 * holder for an answer that nobody will give, and so a p2pfs that is killed at such a moment would leave a mount behind
 * on which everything hangs. Writing to the connection's `abort` (fs/fuse/control.c of Linux) wakes all of them with an
 * error; after that the mount is what a crash leaves, and the next start cleans it up. */
#ifndef FS_MOUNT_GUARD_H
#define FS_MOUNT_GUARD_H

struct mountinfo;

/* Main thread, before there are others, as the child is told of the end of the thread that made it: that one must live
 * as long as the session. Where `abort` cannot be had (not root, and nobody has mounted fusectl) there is no guard. */
void mount_guard_start(const struct mountinfo *);

#endif
