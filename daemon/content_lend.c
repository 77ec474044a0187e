/* Owns the descriptors that other processes get of a content's files, and the locks they carry; leaves the files to
 * content_sync.c.
 *
 * A descriptor that was handed out lives as long as its receiver likes, and longer than this process. What must not happen
 * to the file meanwhile is said by a flock(LOCK_SH) on the open file that is handed out: the kernel keeps it until the
 * last descriptor and the last mapping of it are gone, whoever has them.
 *
 *   data, lent as complete   no block is taken away        content_evict claims it
 *   map                      it stays the live one         a content that becomes complete keeps it (content_sync.c)
 *
 * To claim is to hold LOCK_EX for as long as the change takes. So who lends meanwhile waits, or comes again.
 *
 * Threads: any; a worker if `wait`. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

int content_dup_read_only(int fd)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* A new open file with that lock; -EAGAIN, -errno. */
static int dup_locked(int fd, int lock)
{
    int result;

    fd = content_dup_read_only(fd);
    if (fd < 0)
        return fd;
    while ((result = flock(fd, lock)) < 0 && errno == EINTR)
        ;
    if (result == 0)
        return fd;
    result = errno == EWOULDBLOCK ? -EAGAIN : -errno;
    close(fd);
    return result;
}

int content_claim(struct content *content, int which)
{
    int fd = dup_locked(content->fd[which], LOCK_EX | LOCK_NB);

    return fd == -EAGAIN ? -EBUSY : fd;
}

/* 1, 0, or -EAGAIN if it changed meanwhile, -errno. */
static int lend(struct content *content, int lock, int *data, int *map)
{
    bool complete = content_complete(content);

    *map = -1;
    if (complete)
        *data = dup_locked(content->fd[FD_DATA], lock);
    else
        *data = content_dup_read_only(content->fd[FD_DATA]);
    if (*data < 0)
        return *data;
    if (!complete && !__atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE))
        *map = -EAGAIN; /* it just gets one, or just became complete */
    else if (!complete)
        *map = dup_locked(content->fd[FD_MAP], lock);
    /* What it was before the lock was had says nothing. */
    bool same = complete ? content_complete(content)
                         : *map >= 0 && __atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE);
    if (same)
        return complete;
    int result = complete || *map >= 0 ? -EAGAIN : *map;
    close(*data);
    if (*map >= 0)
        close(*map);
    *data = *map = -1;
    return result;
}

/* It looks const from outside: nothing that a caller can see changes. */
static struct content *pinned(const struct content *constant, int *result)
{
    struct content *content = (struct content *)(uintptr_t)constant;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    *result = content_pin(content);
    return *result < 0 ? NULL : content;
}

int content_lend(const struct content *constant, bool wait, int *data, int *map)
{
    int result;
    struct content *content = pinned(constant, &result);

    *data = *map = -1;
    if (content == NULL)
        return result;
    bool doubtful = content_is_doubtful(content);
    if (doubtful) {
        result = wait ? content_look_through(content) : -EBUSY;
        if (result < 0) {
            content_unpin(content, false);
            return result;
        }
    }
    result = lend(content, LOCK_SH | LOCK_NB, data, map);
    for (int i = 0; i < 100 && wait && result == -EAGAIN; i++) {
        content_busy(content); /* who changes it is busy with it */
        if (!content_complete(content))
            (void)content_restore_map(content); /* if that failed when a block was lost */
        content_unbusy(content);
        result = lend(content, LOCK_SH, data, map);
    }
    content_unpin(content, doubtful); /* it is stamped with the next sync */
    return result;
}

bool content_key(const struct content *content, uint8_t key[FILE_CIPHER_KEY])
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (content->cipher != NULL)
        file_cipher_key(content->cipher, key);
    return content->cipher != NULL;
}

int content_dup_data(const struct content *constant)
{
    int result;
    struct content *content = pinned(constant, &result);

    if (content == NULL)
        return result;
    result = content_dup_read_only(content->fd[FD_DATA]);
    content_unpin(content, false);
    return result;
}
