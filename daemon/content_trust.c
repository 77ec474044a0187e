/* Owns what this process knows to be right of complete contents, so that a block is hashed once and not every time it is
 * served. Leaves reading with a check to content.c.
 *
 * A block of a complete content is trusted once it was hashed, by the ingest or by a read, and as long as the data file is
 * the file it was then: its size and its time of change (st_mtim) are compared at each read, after the bytes were read.
 * Whatever changes the file meanwhile, a hole punched by ourselves too, changes that time, and all trust is gone. What no
 * file system can tell, a disk that gives other bytes than it took, is for the scrub and for the fetcher, who checks
 * every block anyway. Incomplete contents are never trusted: their files change with every block that comes.
 *
 * Programs read the file of a complete content without p2pd, so what was changed behind its back would reach them unseen. So when
 * a content is whole and durable its file gets a time of change that nothing has by itself, the stamp. Whoever writes to the file
 * takes the stamp away, running p2pd or not, and who is to be lent a file without it waits until all of it was hashed: once.
 *
 * The file of an incomplete content changes with every block. It gets the stamp with each sync, so that one that was left alone has
 * it, and is looked at when it is opened from the disk: without the stamp the content is doubtful, until all that is present was
 * hashed, before it is lent. So after a clean end nothing is hashed, and after another one what was just being fetched. What
 * somebody changes between two writes of this process cannot be told.
 *
 * Invariant: a bit of content->trusted says that the block was hashed when the file's time was content->trusted_time.
 * Under content->lock. Threads: any. Memory: one bit a block, from the first trust on. */
#include "daemon/store_private.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"

#define STAMP                                                                                      \
    981173106 /* 2001-02-03 04:05:06 UTC; whole seconds, as some file systems keep no more */
#define LOOK_THROUGH 64 /* blocks at a time */

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool content_file_time(const struct content *content, struct timespec *time)
{
    struct stat status;

    if (!content_complete(content) || fstat(content->fd[FD_DATA], &status) < 0 ||
        (uint64_t)status.st_size !=
            file_cipher_length(content->cipher != NULL, content->geometry.size))
        return false;
    *time = status.st_mtim;
    return true;
}

void content_trust(struct content *content, uint64_t first, uint64_t count,
                   const struct timespec *time)
{
    size_t bytes = store_bits_size(content->geometry.blocks);

    lock_take(&content->lock);
    if (content->trusted == NULL)
        content->trusted = calloc(1, bytes); /* without it blocks are just hashed again */
    else if (!same_time(&content->trusted_time, time))
        memset(content->trusted, 0, bytes);
    content->trusted_time = *time;
    for (uint64_t block = first; content->trusted != NULL && block < first + count; block++)
        bitmap_set(content->trusted, block);
    lock_drop(&content->lock);
}

static bool is_trusted(struct content *content, uint64_t first, uint32_t count,
                       struct timespec *time)
{
    lock_take(&content->lock);
    bool trusted = content->trusted != NULL && bitmap_all(content->trusted, first, count);
    *time = content->trusted_time;
    lock_drop(&content->lock);
    return trusted;
}

/* From the page cache only. */
static bool read_now(const struct content *content, uint64_t first, uint32_t count, uint8_t *to)
{
    const struct geometry *g = &content->geometry;
    uint64_t offset = first * BLOCK_SIZE, end = offset + (uint64_t)count * BLOCK_SIZE;
    size_t size = (size_t)((end < g->size ? end : g->size) - offset);

    return file_cipher_pread(content->cipher, content->fd[FD_DATA], to, size, offset, RWF_NOWAIT) ==
           (ssize_t)size;
}

bool content_get_now(struct content *content, uint64_t first, uint32_t count, uint8_t *to)
{
    struct timespec then, now;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(first < content->geometry.blocks && count <= content->geometry.blocks - first);
    if (!is_trusted(content, first, count, &then) || !content_pin_now(content))
        return false;
    bool good = read_now(content, first, count, to) && content_file_time(content, &now) &&
                same_time(&then, &now);
    content_unpin(content, false);
    return good;
}

/* --- the stamp ---------------------------------------------------------------------------------------- */
bool store_is_stamped(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 && status.st_mtim.tv_sec == STAMP && status.st_mtim.tv_nsec == 0;
}

static bool set_stamp(int fd)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = STAMP}};

    return futimens(fd, times) == 0;
}

bool store_stamp(int fd, const struct timespec *time)
{
    struct stat status;

    return fstat(fd, &status) == 0 && same_time(&status.st_mtim, time) && set_stamp(fd);
}

void content_doubt(struct content *content)
{
    uint64_t blocks = content->geometry.blocks;

    content->doubtful = bitmap_next_set(content->present, 0, blocks) < blocks &&
                        !store_is_stamped(content->fd[FD_DATA]);
}

bool content_is_doubtful(const struct content *content)
{
    if (__atomic_load_n(&content->doubtful, __ATOMIC_ACQUIRE))
        return true;
    return content_complete(content) && !__atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE) &&
           !store_is_stamped(content->fd[FD_DATA]);
}

void content_unstamp(struct content *content)
{
    __atomic_store_n(&content->unstamped, true, __ATOMIC_RELEASE);
}

void content_stamp(struct content *content)
{
    if (__atomic_load_n(&content->doubtful, __ATOMIC_ACQUIRE) || content_pin(content) < 0)
        return;
    set_stamp(content->fd[FD_DATA]);
    content_unpin(content, false);
}

static void end_looking(struct content *content)
{
    lock_take(&content->lock);
    content->looking = false;
    lock_wake(&content->wake);
    lock_drop(&content->lock);
}

/* One at a time. False if another thread has done it meanwhile. */
static bool begin_looking(struct content *content)
{
    lock_take(&content->lock);
    while (content->looking)
        lock_wait(&content->wake, &content->lock);
    content->looking = true;
    lock_drop(&content->lock);
    if (content_is_doubtful(content))
        return true;
    end_looking(content);
    return false;
}

static int look(struct content *content, uint8_t *buffer)
{
    uint64_t blocks = content->geometry.blocks, bytes = 0, damaged = 0;
    int result = 0;

    for (uint64_t at = 0; result == 0; at += LOOK_THROUGH) {
        at = bitmap_next_set(content->present, at, blocks);
        if (at >= blocks)
            break;
        uint32_t count = blocks - at < LOOK_THROUGH ? (uint32_t)(blocks - at) : LOOK_THROUGH;
        result = content_look(content, at, count, buffer, &bytes, &damaged);
        if (result == 0 && __atomic_load_n(&content->store->ending, __ATOMIC_RELAXED))
            result = -EINTR;
    }
    return result;
}

int content_look_through(struct content *content)
{
    char digits[2 * HASH_SIZE + 1];
    struct timespec time;

    if (!begin_looking(content))
        return 0;
    uint8_t *buffer = malloc((size_t)LOOK_THROUGH * BLOCK_SIZE);
    bool timed = content_file_time(content, &time);
    hex_encode(digits, content->root, HASH_SIZE);
    log_info("store: the file of %s was changed since it was stored: all of it is checked", digits);
    int result = buffer == NULL ? -ENOMEM : look(content, buffer);
    free(buffer);
    if (result == 0) {
        __atomic_store_n(&content->doubtful, false, __ATOMIC_RELEASE);
        /* What was lost will be fetched again; without the stamp all of it is looked through again. */
        if (timed && content_complete(content))
            (void)store_stamp(content->fd[FD_DATA], &time);
        else
            content_unstamp(content);
    }
    end_looking(content);
    return result;
}
