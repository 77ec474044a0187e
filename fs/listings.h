/* Which directories' listings the kernel holds as they are: then it reads them out of its own pages, without us.
 *
 * The kernel drops its pages of a directory whenever one is opened that is not to be kept, and fills them again as that
 * handle is read. So a listing is kept if what is there was read by one handle alone, from one state of the tree, and
 * the tree has not changed since (fs_changes). That one counter stands for all directories: a listing is cheap, and
 * what is worth keeping is what is read again and again while nothing changes.
 *
 * A handle that stays open and is rewound while another member changes the directory may be shown what it has read
 * before; who opens the directory gets what is there.
 *
 * Any thread; never waits. */
#ifndef FS_LISTINGS_H
#define FS_LISTINGS_H

#include <stdbool.h>
#include <stdint.h>

struct fs;
struct listings;

struct listings *listings_new(void);
void listings_free(struct listings *);

/* OPENDIR. False: the kernel is not to fill its cache from this handle, and listings_closed is not called for it.
 * *keep: what the kernel has is as good as what it would be told. */
bool listings_opened(struct listings *, uint64_t ino, uint64_t changes, bool *keep);
/* A handle that listings_opened took was read to its end, all from the state `changes`. */
void listings_read(struct listings *, uint64_t ino, uint64_t changes);
void listings_closed(struct listings *, uint64_t ino);

#endif
