/* Small files and private directories. Results are 0 or -errno unless said otherwise. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Makes `path` (and its parents) a directory with mode 0700. An existing one must be a directory of
 * this user that nobody else may enter: else -EPERM. */
int file_private_dir(const char *path);

/* 0 if `path` is a file of this user that nobody else can read or write, or if there is none; -EPERM if
 * others can, or it is somebody else's; another -errno. Follows no symbolic link in the last component. */
int file_check_private(const char *path);

/* Reads a whole file of at most `max` bytes; *data is malloc'ed with a NUL behind it, for the caller
 * to free (file_free_secret for a secret). -EFBIG if it is larger. Does not follow a symbolic link in
 * the last component. With `secret`, a file that others can read or write is refused with -EPERM. */
int file_read(const char *path, size_t max, bool secret, char **data, size_t *size);

/* Replaces `path` in one step: temporary file beside it, mode, write, fsync, rename, fsync of the
 * directory. After a crash the old or the new content is there. */
int file_replace(const char *path, const void *data, size_t size, mode_t mode);

/* fsyncs the directory that holds `path`. */
int file_sync_parent(const char *path);

/* Like pread/pwrite but goes on after short counts and EINTR. Returns 0, -errno, or -ENODATA when
 * the file ends early. */
int file_pread_all(int fd, void *to, size_t size, uint64_t offset);
int file_pwrite_all(int fd, const void *from, size_t size, uint64_t offset);

/* Whether `fd`, just got, is one of the last `kept` descriptors that this process may have: then it should go back. */
bool file_is_kept(int fd, unsigned kept);

/* Wipes and frees what file_read(…, secret=true, …) returned; NULL is fine. */
void file_free_secret(char *data, size_t size);

#endif
