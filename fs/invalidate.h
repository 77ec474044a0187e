/* Telling the kernel what it must forget. One thread, "invalidate", that holds no lock and that nobody waits for. */
#ifndef FS_INVALIDATE_H
#define FS_INVALIDATE_H

#include <stdint.h>

struct fs;
struct invalidator;

struct invalidator *invalidator_new(struct fs *);
void invalidator_start(struct invalidator *); /* after the session is mounted */
/* After the session was unmounted, before it is destroyed. NULL is fine. */
void invalidator_stop(struct invalidator *);

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
