/* Contents: pread behind a check of the bitmap.
 *
 * The daemon sets a bit after the block is in the data file (acquire and release order, base/bitmap.h), in memory that
 * is shared: a set bit is all that is needed to read without asking anyone. The bits are looked at again after the
 * read, so that a block that was withdrawn meanwhile (damage found on the disk) is never handed out. */
#include "fs/content.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/mem.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONTENT_MAGIC 0x636f6e74u
#define MAP_HEADER    4096 /* of the daemon's map file, see Opened in proto/local.proto */

struct content {
    unsigned magic;
    unsigned references; /* atomic */
    int fd;
    bool working;
    bool whole;    /* atomic; never unset */
    uint64_t size; /* of a sealed content */
    uint64_t seen; /* atomic; blocks below it were all present */
    void *mapping; /* NULL: everything is present */
    size_t mapping_size;
};

static struct content *content_new(int fd)
{
    struct content *content = xcalloc(1, sizeof(*content));

    content->magic = CONTENT_MAGIC;
    content->references = 1;
    content->fd = fd;
    return content;
}

static uint64_t blocks_of(uint64_t size)
{
    return size / CONTENT_BLOCK + (size % CONTENT_BLOCK != 0);
}

static const uint8_t *map_of(const struct content *content)
{
    return (const uint8_t *)content->mapping + MAP_HEADER;
}

/* 0 or -errno; a map file that is too short would be a SIGBUS later. */
static int map_bits(struct content *content, int fd)
{
    struct stat st;
    uint64_t size = MAP_HEADER + (uint64_t)bitmap_bytes(blocks_of(content->size));
    void *mapping;

    if (fd < 0 || fstat(fd, &st) != 0)
        return -EBADF;
    if (st.st_size < 0 || (uint64_t)st.st_size < size)
        return -EPROTO;
    mapping = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED)
        return -errno;
    content->mapping = mapping;
    content->mapping_size = size;
    return 0;
}

struct content *content_sealed(int data_fd, int map_fd, uint64_t size, bool complete, int *error)
{
    struct content *content = content_new(data_fd);
    int result = 0;

    content->size = size;
    content->whole = complete || size == 0;
    if (size > INT64_MAX)
        result = -EPROTO;
    else if (size > 0 && data_fd < 0)
        result = -EBADF;
    else if (size > 0 && (map_fd >= 0 || !complete))
        result = map_bits(content, map_fd);
    if (map_fd >= 0)
        close(map_fd);
    if (result != 0) {
        *error = result;
        content_release(content);
        return NULL;
    }
    return content;
}

struct content *content_working(int fd)
{
    struct content *content = content_new(fd);

    content->working = true;
    content->whole = true;
    return content;
}

struct content *content_share(struct content *content)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    __atomic_fetch_add(&content->references, 1, __ATOMIC_RELAXED);
    return content;
}

void content_release(struct content *content)
{
    if (content == NULL)
        return;
    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (__atomic_fetch_sub(&content->references, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    content->magic = 0;
    if (content->mapping != NULL)
        munmap(content->mapping, content->mapping_size);
    if (content->fd >= 0)
        close(content->fd);
    free(content);
}

int content_fd(const struct content *content)
{
    return content->fd;
}

int64_t content_size(const struct content *content)
{
    struct stat st;

    if (!content->working)
        return (int64_t)content->size;
    return fstat(content->fd, &st) == 0 ? st.st_size : -errno;
}

bool content_has(const struct content *content, uint64_t offset, size_t size)
{
    uint64_t first, last;

    if (content->mapping == NULL || offset >= content->size || size == 0)
        return true;
    if (size > content->size - offset)
        size = content->size - offset;
    first = offset / CONTENT_BLOCK;
    last = (offset + size - 1) / CONTENT_BLOCK;
    return bitmap_all(map_of(content), first, last - first + 1);
}

bool content_complete(struct content *content)
{
    uint64_t blocks, seen;

    if (__atomic_load_n(&content->whole, __ATOMIC_RELAXED))
        return true;
    blocks = blocks_of(content->size);
    seen = __atomic_load_n(&content->seen, __ATOMIC_RELAXED);
    seen = bitmap_next_clear(map_of(content), seen, blocks);
    __atomic_store_n(&content->seen, seen, __ATOMIC_RELAXED);
    if (seen < blocks)
        return false;
    __atomic_store_n(&content->whole, true, __ATOMIC_RELAXED);
    return true;
}

ssize_t content_read(const struct content *content, void *to, size_t size, uint64_t offset)
{
    size_t done = 0;

    if (offset > INT64_MAX - size)
        return 0;
    if (!content->working) {
        if (offset >= content->size)
            return 0;
        if (size > content->size - offset)
            size = content->size - offset;
        if (!content_has(content, offset, size))
            return -EAGAIN;
    }
    while (done < size) {
        ssize_t part = pread(content->fd, (char *)to + done, size - done, (off_t)(offset + done));

        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0)
            return -errno;
        if (part == 0)
            break;
        done += (size_t)part;
    }
    if (content->working)
        return (ssize_t)done;
    if (done < size)
        return -EIO; /* the data file is shorter than its content */
    return content_has(content, offset, size) ? (ssize_t)done : -EAGAIN;
}
