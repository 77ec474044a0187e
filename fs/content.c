/* Contents: pread behind a check of the bitmap.
 *
 * The daemon sets a bit after the block is in the data file (acquire and release order, base/bitmap.h), in memory that
 * is shared: a set bit is all that is needed to read without asking anyone. Blocks may go again (evicted, or damage was
 * found on the disk): first the generation grows, then the bit is cleared, then the bytes go. So both are looked at
 * again after the read; the generation, as a block may have gone and come back meanwhile.
 *
 * Views. Large reads of a complete content that is in the page cache are answered from a mapping of the data file: the
 * kernel copies from there straight into the mount's pages, once instead of twice. Only the kernel looks at the mapped
 * bytes (a store's file that shrinks gives an error there, no SIGBUS here), and the pages are let go of after each answer,
 * so that reading a large file does not make this process look large.
 *
 * Encrypted files are read and written through their cipher, and never mapped or passed to the kernel. A part of 16 bytes is
 * written by writing all of them, so one writer at a time has a working file, and no reader meanwhile: `turn`, held over the
 * system call, but for working files of an encrypted store only. */
#include "fs/content.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/mem.h"
#include "fs/crew.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CONTENT_MAGIC 0x636f6e74u
/* Of the daemon's map file, see Opened in proto/local.proto. */
#define MAP_HEADER     4096
#define MAP_GENERATION 64
#define VIEW_MIN       (64u << 10)         /* for less, copying is cheaper than mapping */
#define VIEW_MAX       (UINT64_C(1) << 40) /* bytes of address space for one content */
#define PAGE           4096u

struct content {
    unsigned magic;
    unsigned references; /* atomic */
    int fd;
    bool working;
    uint64_t size; /* of a sealed content */
    void *mapping; /* NULL: everything is present, and stays */
    size_t mapping_size;
    struct file_cipher *cipher; /* NULL: the file is plain */
    pthread_rwlock_t turn;      /* if there is a cipher */
    void *view; /* atomic; of all bytes; NULL: not mapped yet, MAP_FAILED: cannot be */
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
    /* The kernel would read ahead into holes: pages of zeros that the next blocks then have to replace. */
    (void)posix_fadvise(content->fd, 0, 0, POSIX_FADV_RANDOM);
    return 0;
}

struct content *content_sealed(int data_fd, int map_fd, uint64_t size, bool complete, int *error)
{
    struct content *content = content_new(data_fd);
    int result = 0;

    content->size = size;
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
    return content;
}

void content_set_key(struct content *content, const uint8_t key[FILE_CIPHER_KEY])
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    content->cipher = file_cipher_of_key(key);
    CHECK(pthread_rwlock_init(&content->turn, NULL) == 0);
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
    if (content->view != NULL && content->view != MAP_FAILED)
        munmap(content->view, content->size);
    if (content->fd >= 0)
        close(content->fd);
    if (content->cipher != NULL)
        CHECK(pthread_rwlock_destroy(&content->turn) == 0);
    file_cipher_free(content->cipher);
    free(content);
}

int content_fd(const struct content *content)
{
    return content->fd;
}

bool content_is_plain(const struct content *content)
{
    return content->cipher == NULL;
}

int64_t content_size(const struct content *content)
{
    struct stat st;

    if (!content->working)
        return (int64_t)content->size;
    if (fstat(content->fd, &st) != 0)
        return -errno;
    return (int64_t)file_cipher_size(content->cipher != NULL, (uint64_t)st.st_size);
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

bool content_complete(const struct content *content)
{
    return content->mapping == NULL;
}

static uint64_t generation_of(const struct content *content)
{
    const uint64_t *at;

    if (content->mapping == NULL)
        return 0;
    at = (const void *)((const uint8_t *)content->mapping + MAP_GENERATION); /* a page is aligned */
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void *map_view(struct content *content)
{
    void *view = __atomic_load_n(&content->view, __ATOMIC_ACQUIRE), *other = NULL;

    if (view != NULL)
        return view;
    view = mmap(NULL, content->size, PROT_READ, MAP_SHARED, content->fd, 0);
    if (__atomic_compare_exchange_n(&content->view, &other, view, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
        return view;
    if (view != MAP_FAILED)
        munmap(view, content->size);
    return other;
}

/* Without waiting for the disk: whether the page at `offset` is in memory. */
static bool is_in_memory(const struct content *content, uint64_t offset)
{
    char byte;
    struct iovec io = {.iov_base = &byte, .iov_len = 1};

    return preadv2(content->fd, &io, 1, (off_t)offset, RWF_NOWAIT) == 1;
}

const void *content_view(struct content *content, size_t *size, uint64_t offset)
{
    char *view;

    if (content->working || content->cipher != NULL || *size < VIEW_MIN || offset % PAGE != 0 ||
        offset >= content->size || content->size > VIEW_MAX || !content_complete(content))
        return NULL;
    if (*size > content->size - offset)
        *size = (size_t)(content->size - offset);
    if (!is_in_memory(content, offset) || !is_in_memory(content, offset + *size - 1))
        return NULL; /* read(2) reads ahead on the disk better than a mapping */
    view = map_view(content);
    if (view == MAP_FAILED)
        return NULL;
    view += offset;
    return madvise(view, *size, MADV_POPULATE_READ) == 0 ? view : NULL;
}

void content_view_done(const void *view, size_t size)
{
    (void)madvise((void *)(uintptr_t)view, size, MADV_DONTNEED);
}

/* --- turns at an encrypted working file ---- */

/* It looks const from outside. */
static void take_turn(const struct content *content, bool writes)
{
    pthread_rwlock_t *turn = (pthread_rwlock_t *)(uintptr_t)&content->turn;

    if (content->cipher != NULL && content->working)
        CHECK((writes ? pthread_rwlock_wrlock(turn) : pthread_rwlock_rdlock(turn)) == 0);
}

static void end_turn(const struct content *content)
{
    if (content->cipher != NULL && content->working)
        CHECK(pthread_rwlock_unlock((pthread_rwlock_t *)(uintptr_t)&content->turn) == 0);
}

int content_write(const struct content *content, const void *from, size_t size, uint64_t offset)
{
    take_turn(content, true);
    int result = file_cipher_pwrite_all(content->cipher, content->fd, from, size, offset);
    end_turn(content);
    return result;
}

int content_set_size(const struct content *content, uint64_t size)
{
    take_turn(content, true);
    int result = file_cipher_truncate(content->cipher, content->fd, size);
    end_turn(content);
    return result;
}

int content_allocate(const struct content *content, int mode, uint64_t offset, uint64_t size)
{
    take_turn(content, true);
    int result = file_cipher_allocate(content->cipher, content->fd, mode, offset, size);
    end_turn(content);
    return result;
}

int64_t content_seek(const struct content *content, uint64_t offset, int whence)
{
    const uint64_t start = file_cipher_at(content->cipher, 0);
    int64_t size = content_size(content);
    off_t found; /* nobody goes by the descriptor's position */

    if (size < 0)
        return size;
    found = lseek(content->fd, (off_t)(start + offset), whence);
    if (found < 0)
        return -errno;
    if ((uint64_t)found - start < (uint64_t)size)
        return found - (off_t)start;
    return whence == SEEK_DATA ? -ENXIO : size;
}

/* --- reading ---- */

/* Part of what is present; -errno. */
static ssize_t read_part(const struct content *content, void *to, size_t size, uint64_t offset,
                         int flags)
{
    ssize_t part;

    take_turn(content, false);
    if (content->cipher != NULL && content->working) {
        int64_t now = content_size(content);

        if (now < 0 || offset >= (uint64_t)now)
            size = 0;
        else if (size > (uint64_t)now - offset)
            size = (size_t)((uint64_t)now - offset);
    }
    part = size == 0 ? 0 : file_cipher_pread(content->cipher, content->fd, to, size, offset, flags);
    end_turn(content);
    return part;
}

ssize_t content_read(const struct content *content, void *to, size_t size, uint64_t offset)
{
    uint64_t generation = generation_of(content);
    size_t done = 0;
    bool patient = false;

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
        ssize_t part = read_part(content, (char *)to + done, size - done, offset + done,
                                 patient ? 0 : RWF_NOWAIT);

        if (!patient &&
            part <=
                0) { /* -EAGAIN: it is on the disk; or the file system cannot tell, or the end */
            patient = true;
            crew_step_aside();
            continue;
        }
        if (part < 0)
            return part;
        if (part == 0)
            break;
        done += (size_t)part;
    }
    if (content->working)
        return (ssize_t)done;
    if (done < size)
        return -EIO; /* the data file is shorter than its content */
    /* A system call lies between: what was read was read before this. */
    if (!content_has(content, offset, size) || generation_of(content) != generation)
        return -EAGAIN;
    return (ssize_t)done;
}
