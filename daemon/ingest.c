/* Owns a working file while it is written: what was written, which of its blocks are hashed, which were written again;
 * leaves sealing and recovery to ingest_seal.c.
 *
 *   0 ........ hashed (blocks) ....... written (bytes) ... hole ... ahead[] ...
 *
 * Blocks before `hashed` have a hash, and a dirty bit if they were written after their hashing began. A stretch that
 * was written without a hole before it is hashed while the writer goes on; the disk is told to begin writing it, so that
 * the fdatasync at the end finds little to do. Hashes of small files stay in memory, others go straight to incoming/N.hash,
 * in the form in which the store keeps them, so that memory does not grow with the file: 2 bytes a MiB for dirty bits.
 *
 * Files in incoming/: N the data, N.kept the same once marked, N.hash.
 *
 * Threads: ingest_wrote, ingest_hash_due: any, also while a worker hashes; the rest by one at a time. The lock is held for
 * memory only. */
#include "daemon/ingest_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/number.h"
#include "daemon/store_private.h"

#define HASH_DUE     (1u << 20) /* a stretch worth waking a worker for */
#define FLUSH_STEP   (8u << 20) /* begin to write to disk in such steps */
#define COPY_STEP    (1u << 20)
#define LOOK_TRIES   10   /* what a failing disk does not give it may give again */
#define LEAVES_BATCH 1024 /* hashes copied at a time: 32 KiB */

void ingest_data_name(const struct ingest *ingest, char name[INGEST_NAME])
{
    snprintf(name, INGEST_NAME, "%llu%s", (unsigned long long)ingest->number,
             ingest->marked ? ".kept" : "");
}

void ingest_hash_name(const struct ingest *ingest, char name[INGEST_NAME])
{
    snprintf(name, INGEST_NAME, "%llu.hash", (unsigned long long)ingest->number);
}

uint64_t ingest_next_number(struct store *store)
{
    int fd = -1;
    const struct dirent *entry;
    uint64_t next = 1, number;
    char digits[24];

    for (int t = 0; t < LOOK_TRIES && fd < 0; t++)
        fd = openat(store->fd, "incoming", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL && fd >= 0)
        close(fd);
    if (directory == NULL)
        return 0;
    while ((entry = readdir(directory)) != NULL) {
        size_t length = strspn(entry->d_name, "0123456789");
        if (length == 0 || length >= sizeof digits)
            continue;
        memcpy(digits, entry->d_name, length);
        digits[length] = '\0';
        if (number_parse(digits, 0, UINT64_MAX - 1, &number) && number >= next)
            next = number + 1;
    }
    closedir(directory);
    return next;
}

/* --- hashes -------------------------------------------------------------------------------------------- */
int ingest_need_hash_file(struct ingest *ingest, uint64_t known)
{
    char name[INGEST_NAME];

    if (ingest->hash_fd >= 0)
        return 0;
    ingest_hash_name(ingest, name);
    int fd = openat(ingest->store->incoming, name,
                    O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return -errno;
    if (known > LEAVES_IN_MEMORY)
        known = LEAVES_IN_MEMORY;
    int result = file_pwrite_all(fd, ingest->leaves, HASHES(known), hash_leaf_offset(0));
    if (result == 0)
        ingest->hash_fd = fd;
    else
        close(fd);
    return result;
}

int ingest_put_leaves(struct ingest *ingest, uint64_t first, uint64_t count, const uint8_t *hashes)
{
    if (ingest->hash_fd < 0 && first + count <= LEAVES_IN_MEMORY) {
        memcpy(ingest->leaves + HASHES(first), hashes, HASHES(count));
        return 0;
    }
    int result = ingest_need_hash_file(ingest, first);
    return result < 0
               ? result
               : file_pwrite_all(ingest->hash_fd, hashes, HASHES(count), hash_leaf_offset(first));
}

int ingest_get_leaves(struct ingest *ingest, uint64_t first, uint64_t count, uint8_t *hashes)
{
    if (ingest->hash_fd >= 0)
        return file_pread_all(ingest->hash_fd, hashes, HASHES(count), hash_leaf_offset(first));
    memcpy(hashes, ingest->leaves + HASHES(first), HASHES(count));
    return 0;
}

/* Its bytes; fstat gave `status`. */
static uint64_t size_in(const struct ingest *ingest, const struct stat *status)
{
    return file_cipher_size(ingest->cipher != NULL, (uint64_t)status->st_size);
}

/* --- making one ------------------------------------------------------------------------------------------ */
static struct ingest *ingest_alloc(struct store *store, uint64_t number, int fd)
{
    struct ingest *ingest = xcalloc(1, sizeof *ingest);

    ingest->magic = INGEST_MAGIC;
    ingest->store = store;
    ingest->number = number;
    ingest->fd = fd;
    ingest->hash_fd = -1;
    ingest->leaves = xmalloc(HASHES(LEAVES_IN_MEMORY));
    CHECK(pthread_mutex_init(&ingest->lock, NULL) == 0);
    return ingest;
}

void ingest_free(struct ingest *ingest)
{
    if (ingest->fd >= 0)
        close(ingest->fd);
    file_cipher_free(ingest->cipher);
    if (ingest->hash_fd >= 0)
        close(ingest->hash_fd);
    pthread_mutex_destroy(&ingest->lock);
    free(ingest->dirty);
    free(ingest->leaves);
    ingest->magic = 0;
    free(ingest);
}

void ingest_drop(struct ingest *ingest)
{
    char name[INGEST_NAME];

    if (ingest == NULL)
        return;
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    ingest_data_name(ingest, name);
    unlinkat(ingest->store->incoming, name, 0);
    if (ingest->hash_fd >= 0) {
        ingest_hash_name(ingest, name);
        unlinkat(ingest->store->incoming, name, 0);
    }
    ingest_free(ingest);
}

/* The lock is held. Dirty bits for that many blocks. */
static bool make_room(struct ingest *ingest, uint64_t blocks)
{
    if (blocks <= ingest->dirty_room)
        return true;
    uint64_t room = ingest->dirty_room * 2 > 4096 ? ingest->dirty_room * 2 : 4096;
    while (room < blocks)
        room *= 2;
    uint8_t *dirty = realloc(ingest->dirty, bitmap_bytes(room));
    if (dirty == NULL)
        return false;
    memset(dirty + bitmap_bytes(ingest->dirty_room), 0,
           bitmap_bytes(room) - bitmap_bytes(ingest->dirty_room));
    ingest->dirty = dirty;
    ingest->dirty_room = room;
    return true;
}

/* What the file systems between can share or copy without us, else through our hands. */
static int copy_bytes(const struct file_cipher *cipher, int from, const struct ingest *to,
                      uint64_t size)
{
    off_t in = 0, out = 0;
    uint8_t *buffer = NULL;
    int result = 0;
    bool other = cipher != NULL || to->cipher != NULL; /* each file has a key of its own */

    while ((uint64_t)out < size && result == 0) {
        ssize_t n = buffer != NULL || other
                        ? 0
                        : copy_file_range(from, &in, to->fd, &out, size - (uint64_t)out, 0);
        if (n > 0 || (n < 0 && errno == EINTR))
            continue;
        if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) {
            result = -errno;
            break;
        }
        if (buffer == NULL && (buffer = malloc(COPY_STEP)) == NULL) {
            result = -ENOMEM;
            break;
        }
        size_t step = size - (uint64_t)out < COPY_STEP ? size - (uint64_t)out : COPY_STEP;
        result = file_cipher_pread_all(cipher, from, buffer, step, (uint64_t)out);
        if (result == 0)
            result = file_cipher_pwrite_all(to->cipher, to->fd, buffer, step, (uint64_t)out);
        out += (off_t)step;
        in = out;
    }
    free(buffer);
    return result;
}

int ingest_copy_out(const struct ingest *ingest, int to)
{
    int64_t size = ingest_size(ingest);
    uint8_t *buffer = size < 0 ? NULL : malloc(COPY_STEP);
    int result = size < 0 ? (int)size : buffer == NULL ? -ENOMEM : 0;

    for (uint64_t at = 0; result == 0 && at < (uint64_t)size; at += COPY_STEP) {
        size_t step = (uint64_t)size - at < COPY_STEP ? (size_t)((uint64_t)size - at) : COPY_STEP;
        result = file_cipher_pread_all(ingest->cipher, ingest->fd, buffer, step, at);
        if (result == 0)
            result = file_pwrite_all(to, buffer, step, at);
    }
    free(buffer);
    return result;
}

/* Hashes of the first `blocks` blocks of `from`, as many as can be had. They are those of the bytes as they should
 * be: should the disk have damaged some, that is found out when the new content is read. */
static int copy_leaves(struct ingest *ingest, struct content *from, uint64_t blocks)
{
    const struct geometry *g = content_geometry(from);
    uint8_t *hashes = xmalloc(HASHES(LEAVES_BATCH));
    uint64_t done = 0;
    int result = 0;

    while (done < blocks && result == 0) {
        uint64_t step = g->piece_blocks - done % g->piece_blocks;
        if (step > blocks - done)
            step = blocks - done;
        if (step > LEAVES_BATCH)
            step = LEAVES_BATCH;
        if (content_block_hashes(from, done, (uint32_t)step, hashes) < 0)
            break;
        result = ingest_put_leaves(ingest, done, step, hashes);
        if (result == 0)
            done += step;
    }
    free(hashes);
    if (result == 0 && !make_room(ingest, done))
        result = -ENOMEM;
    ingest->hashed = ingest->hashing = done;
    return result;
}

static int copy_from(struct ingest *ingest, struct content *from, uint64_t keep)
{
    if (!content_complete(from) || keep > content_geometry(from)->size)
        return -EINVAL;
    int fd, map, result = content_lend(from, true, &fd, &map);
    if (result == 0) { /* it has just lost blocks */
        close(fd);
        close(map);
        return -EINVAL;
    }
    if (result < 0)
        return result;
    result = copy_bytes(from->cipher, fd, ingest, keep);
    close(fd);
    ingest->written = keep;
    return result < 0 ? result : copy_leaves(ingest, from, keep / BLOCK_SIZE);
}

struct ingest *ingest_new(struct store *store, struct content *from, uint64_t keep, int *error)
{
    char name[INGEST_NAME];
    uint64_t number = __atomic_fetch_add(&store->next_number, 1, __ATOMIC_RELAXED);

    snprintf(name, sizeof name, "%llu", (unsigned long long)number);
    int fd = openat(store->incoming, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
                    S_IRUSR | S_IWUSR);
    if (fd < 0) {
        *error = -errno;
        return NULL;
    }
    struct ingest *ingest = ingest_alloc(store, number, fd);
    *error = flock(fd, LOCK_SH | LOCK_NB) < 0 ? -errno : 0;
    if (*error == 0)
        ingest->cipher = file_cipher_make(store->key, fd, error);
    if (*error == 0 && from != NULL && keep > 0)
        *error = copy_from(ingest, from, keep);
    if (*error == 0)
        return ingest;
    ingest_drop(ingest);
    return NULL;
}

struct ingest *ingest_reopen(struct store *store, uint64_t number, int *error)
{
    struct ingest *ingest = ingest_alloc(store, number, -1);
    struct stat status;
    char name[INGEST_NAME];

    for (int i = 0; i < 2 && ingest->fd < 0; i++) {
        ingest->marked = i == 0;
        ingest_data_name(ingest, name);
        ingest->fd = openat(store->incoming, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        *error = ingest->fd < 0 ? -errno : 0;
        if (*error != 0 && *error != -ENOENT)
            break;
    }
    if (*error == 0 && (fstat(ingest->fd, &status) < 0 || flock(ingest->fd, LOCK_SH | LOCK_NB) < 0))
        *error = -errno;
    else if (*error == 0 && !S_ISREG(status.st_mode))
        *error = -EINVAL;
    if (*error == 0)
        ingest->cipher = file_cipher_open(store->key, ingest->fd, error);
    if (*error < 0) {
        ingest_free(ingest);
        return NULL;
    }
    ingest->written = size_in(ingest, &status);
    return ingest;
}

uint64_t ingest_number(const struct ingest *ingest)
{
    return ingest->number;
}

void ingest_numbers_from(struct store *store, uint64_t number)
{
    if (number > store->next_number)
        store->next_number = number;
}

bool ingest_is_held(const struct ingest *ingest)
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    bool held = flock(ingest->fd, LOCK_EX | LOCK_NB) < 0;
    (void)flock(ingest->fd, LOCK_SH | LOCK_NB); /* a change that fails has lost the old lock */
    return held;
}

int ingest_dup(const struct ingest *ingest)
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    int fd = fcntl(ingest->fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

bool ingest_key(const struct ingest *ingest, uint8_t key[FILE_CIPHER_KEY])
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    if (ingest->cipher != NULL)
        file_cipher_key(ingest->cipher, key);
    return ingest->cipher != NULL;
}

uint64_t ingest_inode(const struct ingest *ingest)
{
    struct stat status;

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    return fstat(ingest->fd, &status) < 0 ? 0 : (uint64_t)status.st_ino;
}

int64_t ingest_size(const struct ingest *ingest)
{
    struct stat status;

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    return fstat(ingest->fd, &status) < 0 ? -errno : (int64_t)size_in(ingest, &status);
}

int ingest_mark(struct ingest *ingest)
{
    char from[INGEST_NAME], to[INGEST_NAME];

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    if (!ingest->marked) {
        ingest_data_name(ingest, from);
        ingest->marked = true;
        ingest_data_name(ingest, to);
        if (renameat(ingest->store->incoming, from, ingest->store->incoming, to) < 0) {
            int error = -errno;
            ingest->marked = false;
            return error;
        }
    }
    return fsync(ingest->store->incoming) < 0 ? -errno : 0;
}

/* --- behind the writer ------------------------------------------------------------------------------------- */
/* Keeps the stretches behind a hole, joined, in order. The lock is held. */
static void add_ahead(struct ingest *ingest, uint64_t first, uint64_t end)
{
    struct range *ahead = ingest->ahead;
    unsigned at = 0, last;

    while (at < ingest->ahead_count && ahead[at].end < first)
        at++;
    for (last = at; last < ingest->ahead_count && ahead[last].first <= end; last++) {
        first = ahead[last].first < first ? ahead[last].first : first;
        end = ahead[last].end > end ? ahead[last].end : end;
    }
    if (last == at && ingest->ahead_count == RANGES_AHEAD) {
        /* Too many: forget the furthest. Hashing stops in front of it, sealing does the rest. */
        if (at == RANGES_AHEAD)
            return;
        ingest->ahead_count--;
    }
    memmove(&ahead[at + 1], &ahead[last], (ingest->ahead_count - last) * sizeof *ahead);
    ingest->ahead_count = ingest->ahead_count - (last - at) + 1;
    ahead[at] = (struct range){first, end};
}

void ingest_wrote(struct ingest *ingest, uint64_t offset, uint64_t size)
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    if (size == 0 || offset >= FILE_SIZE_MAX)
        return;
    uint64_t end = size > FILE_SIZE_MAX - offset ? FILE_SIZE_MAX : offset + size;
    lock_take(&ingest->lock);
    uint64_t last = (end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    for (uint64_t block = offset / BLOCK_SIZE; block < last && block < ingest->hashing; block++)
        bitmap_set(ingest->dirty, block);
    if (end > ingest->written) {
        add_ahead(ingest, offset > ingest->written ? offset : ingest->written, end);
        if (ingest->ahead[0].first <= ingest->written) {
            ingest->written = ingest->ahead[0].end;
            ingest->ahead_count--;
            memmove(&ingest->ahead[0], &ingest->ahead[1],
                    ingest->ahead_count * sizeof *ingest->ahead);
        }
    }
    lock_drop(&ingest->lock);
}

void ingest_doubt(struct ingest *ingest)
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    lock_take(&ingest->lock);
    for (uint64_t block = 0; block < ingest->hashing; block++)
        bitmap_set(ingest->dirty, block);
    lock_drop(&ingest->lock);
}

void ingest_sync_failed(struct ingest *ingest)
{
    CHECK_OBJECT(ingest, INGEST_MAGIC);
    ingest->unsynced = true;
}

bool ingest_hash_due(const struct ingest *constant)
{
    struct ingest *ingest = (struct ingest *)(uintptr_t)constant;

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    lock_take(&ingest->lock);
    bool due = ingest->written / BLOCK_SIZE >= ingest->hashing + HASH_DUE / BLOCK_SIZE;
    lock_drop(&ingest->lock);
    return due;
}

/* Takes up to `max` blocks for hashing: [*first, returned end). 0: there are none, or -errno. */
static int take_stretch(struct ingest *ingest, uint64_t max, uint64_t *first, uint64_t *end)
{
    struct stat status;
    int result = 0;

    *first = *end = 0;
    if (fstat(ingest->fd, &status) < 0)
        return -errno;
    lock_take(&ingest->lock);
    if (ingest->written > size_in(ingest, &status)) /* it was cut off since */
        ingest->written = size_in(ingest, &status);
    uint64_t blocks = ingest->written / BLOCK_SIZE;
    *first = ingest->hashed;
    *end = blocks - *first > max ? *first + max : blocks;
    if (blocks <= *first)
        *end = *first;
    else if (make_room(ingest, *end))
        ingest->hashing = *end;
    else
        result = -ENOMEM;
    lock_drop(&ingest->lock);
    return result;
}

static void begin_flush(struct ingest *ingest, uint64_t end)
{
    if (end >= ingest->flushed + FLUSH_STEP) {
        sync_file_range(ingest->fd, (off_t)file_cipher_at(ingest->cipher, ingest->flushed),
                        (off_t)(end - ingest->flushed),
                        SYNC_FILE_RANGE_WRITE); /* only a beginning: errors are fdatasync's */
        ingest->flushed = end;
    }
}

int ingest_hash(struct ingest *ingest, uint64_t max_bytes)
{
    uint8_t leaves[HASHES(STRETCH)];
    uint64_t first, end;

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    int result =
        take_stretch(ingest, max_bytes < BLOCK_SIZE ? 1 : max_bytes / BLOCK_SIZE, &first, &end);
    if (result < 0 || first == end)
        return result;
    const struct geometry g = geometry_of(end * BLOCK_SIZE);
    uint8_t *buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
    uint64_t done = first;
    result = buffer == NULL ? -ENOMEM : 0;
    while (done < end && result == 0) {
        uint64_t step = end - done < STRETCH ? end - done : STRETCH;
        result = hash_blocks(ingest->cipher, ingest->fd, &g, done, step, leaves, buffer);
        if (result == 0)
            result = ingest_put_leaves(ingest, done, step, leaves);
        if (result == 0)
            done += step;
    }
    free(buffer);
    lock_take(&ingest->lock);
    ingest->hashed = ingest->hashing = done;
    lock_drop(&ingest->lock);
    begin_flush(ingest, done * BLOCK_SIZE);
    return result;
}
