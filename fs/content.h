/* The bytes of an open inode: a descriptor, its key if the store is encrypted (crypto/file_cipher.h), and for a sealed content
 * that may not be whole the daemon's live bitmap of present 16 KiB blocks. Immutable but for its reference count; any thread. */
#ifndef FS_CONTENT_H
#define FS_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "crypto/file_cipher.h"

#define CONTENT_BLOCK 16384

struct content;

/* A sealed content of `size` bytes; `complete`: there is no map, all of it is here. Takes both descriptors over, also on failure; with size 0 there are none (-1).
 * The map's descriptor is closed once it is mapped. NULL and *error (-errno) if they do not fit together. */
struct content *content_sealed(int data_fd, int map_fd, uint64_t size, bool complete, int *error);
/* A working file: all of it is there, as long as the descriptor says. Takes the descriptor over. */
struct content *content_working(int fd);
/* Its file is encrypted with this key. At once after it was made. */
void content_set_key(struct content *, const uint8_t key[FILE_CIPHER_KEY]);

struct content *content_share(struct content *);
void content_release(struct content *); /* NULL is fine */

/* For what needs no bytes. */
int content_fd(const struct content *);
/* Whether the kernel may do with the descriptor what it likes: it holds the bytes as they are. */
bool content_is_plain(const struct content *);
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

/* Of a working file, all or an error: 0 or -errno; as pwrite, ftruncate and fallocate. */
int content_write(const struct content *, const void *from, size_t size, uint64_t offset);
int content_set_size(const struct content *, uint64_t size);
int content_allocate(const struct content *, int mode, uint64_t offset, uint64_t size);
/* As lseek with SEEK_DATA or SEEK_HOLE; of a content that does not change meanwhile. -errno. */
int64_t content_seek(const struct content *, uint64_t offset, int whence);

/* The bytes at `offset` of a complete content, for the kernel to copy (not to be looked at): valid until
 * content_view_done. *size is cut at the end of the content. NULL if they are to be had by content_read only. */
const void *content_view(struct content *, size_t *size, uint64_t offset);
void content_view_done(const void *view, size_t size);

#endif
