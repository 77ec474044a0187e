/* Owns what this process knows to be right of complete contents, so that a block is hashed once and not every time it is
 * served. Leaves reading with a check to content.c.
 *
 * A block of a complete content is trusted once it was hashed, by the ingest or by a read, and as long as the data file is
 * the file it was then: its size and its time of change (st_mtim) are compared at each read, after the bytes were read.
 * Whatever changes the file meanwhile, a hole punched by ourselves too, changes that time, and all trust is gone. What no
 * file system can tell, a disk that gives other bytes than it took, is for the scrub and for the fetcher, who checks
 * every block anyway. Incomplete contents are never trusted: their files change with every block that comes.
 *
 * Invariant: a bit of content->trusted says that the block was hashed when the file's time was content->trusted_time.
 * Under content->lock. Threads: any. Memory: one bit a block, from the first trust on. */
#include "daemon/store_private.h"

#include <sys/stat.h>
#include <sys/uio.h>

#include "base/mem.h"

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
