/* The bytes of an open inode: a descriptor, and for a sealed content that may not be whole the daemon's live bitmap of
 * present 16 KiB blocks. Immutable but for its reference count; any thread. */
#ifndef FS_CONTENT_H
#define FS_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CONTENT_BLOCK 16384

struct content;

/* A sealed content of `size` bytes; `complete`: there is no map, all of it is here. Takes both descriptors over, also on failure; with size 0 there are none (-1).
 * The map's descriptor is closed once it is mapped. NULL and *error (-errno) if they do not fit together. */
struct content *content_sealed(int data_fd, int map_fd, uint64_t size, bool complete, int *error);
/* A working file: all of it is there, as long as the descriptor says. Takes the descriptor over. */
struct content *content_working(int fd);

struct content *content_share(struct content *);
void content_release(struct content *); /* NULL is fine */

int content_fd(const struct content *);
/* Its size now (fstat of a working file); -errno. */
int64_t content_size(const struct content *);
/* True if the range, as far as it lies within the content, is present. */
bool content_has(const struct content *, uint64_t offset, size_t size);
/* True if it was handed over as complete (or is a working file): then all of it is here, and stays as long as the
 * descriptor is open, so that the kernel may have it. What became complete since is not: its blocks may go again. */
bool content_complete(const struct content *);

/* Reads (stepping aside in front of the disk, crew.h) up to `size` bytes that are present, cut at the end of the content. The number of bytes, -EAGAIN if a block
 * is not present, -errno. */
ssize_t content_read(const struct content *, void *to, size_t size, uint64_t offset);

/* The bytes at `offset` of a complete content, for the kernel to copy (not to be looked at): valid until
 * content_view_done. *size is cut at the end of the content. NULL if they are to be had by content_read only. */
const void *content_view(struct content *, size_t *size, uint64_t offset);
void content_view_done(const void *view, size_t size);

#endif
