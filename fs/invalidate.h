/* Telling the kernel what it must forget. One thread, "invalidate", that holds no lock and that nobody waits for. */
#ifndef FS_INVALIDATE_H
#define FS_INVALIDATE_H

#include <stdbool.h>
#include <stdint.h>

struct fs;
struct invalidator;

struct invalidator *invalidator_new(struct fs *);
void invalidator_start(struct invalidator *); /* after the session is mounted */
/* Asks the thread to end; what was not carried out is dropped. It may still wait for a directory's lock, so the kernel's
 * requests must be answered until the descriptor of invalidator_ended_fd (the invalidator's own) is readable. */
void invalidator_finish(struct invalidator *);
int invalidator_ended_fd(const struct invalidator *);
/* After invalidator_finish, before the session is unmounted: nothing may be written to a device that is closed. */
void invalidator_free(struct invalidator *);

/* Any thread; carried out in order, later. */
void invalidate_inode(struct invalidator *, uint64_t ino); /* its attributes */
void invalidate_entry(struct invalidator *, uint64_t parent, const char *name);
/* All names and attributes: nobody knows what changed meanwhile. */
void invalidate_all(struct invalidator *);
/* Any thread: the kernel was told this entry of the root directory. */
void invalidate_seen_in_root(struct invalidator *, const char *name);
/* Any thread: raises the mount's read-ahead to 1 MiB where we may. */
void invalidate_raise_readahead(struct invalidator *);

#endif
