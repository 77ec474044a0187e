/* Small files that must be whole or absent, and directories that are nobody else's.
 *
 * Blocking: for start-up, tools and workers, not for a loop in full flight (except the pread and
 * pwrite loops on local files). Any thread; holds nothing. Secrets are wiped from every buffer here
 * that held them. */
#include "base/file.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define OTHERS (S_IRWXG | S_IRWXO)

/* mkdir -p, mode 0700 for whatever is missing; cuts `path` short and mends it on its way. */
static int make_directories(char *path)
{
    for (char *at = path;;) {
        char end;

        at += strspn(at, "/");
        at += strcspn(at, "/");
        end = *at;
        *at = '\0';
        if (mkdir(path, S_IRWXU) < 0 && errno != EEXIST) {
            int error = errno;
            struct stat status;

            /* A parent that exists may say EROFS or EACCES instead of EEXIST. */
            if (stat(path, &status) < 0 || !S_ISDIR(status.st_mode))
                return -error;
        }
        *at = end;
        if (end == '\0' || at[strspn(at, "/")] == '\0')
            return 0;
    }
}

int file_private_dir(const char *path)
{
    struct stat status;
    char *copy;
    int result, fd;

    if (*path == '\0')
        return -ENOENT;
    copy = xstrdup(path);
    result = make_directories(copy);
    free(copy);
    if (result < 0)
        return result;
    /* A link is fine if this user made it: in a directory like /tmp a stranger may have. */
    if (lstat(path, &status) < 0)
        return -errno;
    if (S_ISLNK(status.st_mode) && status.st_uid != geteuid())
        return -EPERM;
    fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    result = fstat(fd, &status) < 0 ? -errno : 0;
    close(fd);
    if (result == 0 && (status.st_uid != geteuid() || (status.st_mode & OTHERS) != 0))
        result = -EPERM;
    return result;
}

int file_check_private(const char *path)
{
    struct stat status;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : -errno;
    return S_ISREG(status.st_mode) && status.st_uid == geteuid() && (status.st_mode & OTHERS) == 0
               ? 0
               : -EPERM;
}

void file_free_secret(char *data, size_t size)
{
    if (data == NULL)
        return;
    explicit_bzero(data, size);
    free(data);
}

/* Reads to the end of `fd`, which claims to have `expected` bytes. */
static int read_to_end(int fd, size_t expected, size_t max, char **data, size_t *size)
{
    size_t room = expected < max ? expected : max, used = 0;
    char *buffer = malloc(room + 1);
    int error = ENOMEM;

    if (buffer == NULL)
        return -error;
    for (;;) {
        ssize_t n = read(fd, buffer + used, room + 1 - used);
        char *larger;

        if (n < 0 && errno == EINTR)
            continue;
        error = errno;
        if (n < 0)
            break;
        if (n == 0) {
            buffer[used] = '\0';
            *data = buffer;
            *size = used;
            return 0;
        }
        used += (size_t)n;
        if (used <= room)
            continue;
        error = EFBIG;
        if (used > max)
            break;
        /* It has grown since it was asked. No realloc: that could leave a copy unwiped. */
        room = max / 2 > room ? room * 2 + 4096 : max;
        if (room > max)
            room = max;
        error = ENOMEM;
        larger = malloc(room + 1);
        if (larger == NULL)
            break;
        memcpy(larger, buffer, used);
        file_free_secret(buffer, used);
        buffer = larger;
    }
    file_free_secret(buffer, used);
    return -error;
}

int file_read(const char *path, size_t max, bool secret, char **data, size_t *size)
{
    struct stat status;
    int fd, result;

    *data = NULL;
    *size = 0;
    /* O_NONBLOCK: opening a FIFO that somebody put there must not hang. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) < 0)
        result = -errno;
    else if (S_ISDIR(status.st_mode))
        result = -EISDIR;
    else if (!S_ISREG(status.st_mode))
        result = -EINVAL;
    else if (secret &&
             ((status.st_mode & OTHERS) != 0 || (status.st_uid != geteuid() && status.st_uid != 0)))
        result = -EPERM;
    else if ((uint64_t)status.st_size > max)
        result = -EFBIG;
    else
        result = read_to_end(fd, (size_t)status.st_size, max, data, size);
    close(fd);
    return result;
}

int file_sync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *parent;
    int fd, result;

    if (slash == NULL)
        parent = xstrdup(".");
    else
        parent = xasprintf("%.*s", slash == path ? 1 : (int)(slash - path), path);
    fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    result = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    free(parent);
    return result;
}

int file_replace(const char *path, const void *data, size_t size, mode_t mode)
{
    char *temporary = xasprintf("%s.XXXXXX", path);
    int fd, result;

    fd = mkostemp(temporary, O_CLOEXEC); /* 0600 until it is whole */
    if (fd < 0) {
        result = -errno;
        free(temporary);
        return result;
    }
    result = file_pwrite_all(fd, data, size, 0);
    if (result == 0 && (fchmod(fd, mode) < 0 || fsync(fd) < 0))
        result = -errno;
    if (close(fd) < 0 && result == 0)
        result = -errno;
    if (result == 0 && rename(temporary, path) < 0)
        result = -errno;
    if (result == 0)
        result = file_sync_parent(path);
    else
        unlink(temporary);
    free(temporary);
    return result;
}

int file_pread_all(int fd, void *to, size_t size, uint64_t offset)
{
    char *at = to;

    while (size > 0) {
        ssize_t n = pread(fd, at, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENODATA;
        at += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int file_pwrite_all(int fd, const void *from, size_t size, uint64_t offset)
{
    const char *at = from;

    while (size > 0) {
        ssize_t n = pwrite(fd, at, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO; /* never, for a regular file; but better than turning forever */
        at += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

bool file_is_kept(int fd, unsigned kept)
{
    struct rlimit limit;

    /* A new descriptor is the lowest that is free: its number tells how many there are. */
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
           (rlim_t)fd + kept >= limit.rlim_cur;
}
