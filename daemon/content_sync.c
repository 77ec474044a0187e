/* Owns a content's descriptors, what makes its blocks durable (S2), and the steps between incomplete and complete.
 *
 * Syncing one content, while busy with it:
 *   1  copy those pages of the present bits that changed since the last time
 *   2  fdatasync the data and, if they changed, the hashes
 *   3  incomplete: the copies become the synced bits; fdatasync the map (and the folder, once)
 *                  The data file gets its stamp (content_trust.c)
 *      complete:   rename .part to .data, fsync the folder, delete the map; unless some process has the map
 * A bit that is set between 1 and 3 is for the next time. Many contents are taken through each step together, and the
 * file system is synced instead of file after file: ten thousand small files cost a few syncs.
 *
 * If step 2 fails nobody knows what is on disk, and the kernel forgets the pages: all blocks not yet synced are lost.
 *
 * Descriptors are opened when needed and pinned while used; of those not pinned LIMIT_STORE_DESCRIPTORS stay open. So any number of
 * contents can be in use at once, and synced.
 *
 * Threads: any worker. Memory: the copies, 1/131072 of the contents' size at most. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"

#define SYNC_MANY 16 /* from so many contents on the whole file system is synced at once */

/* --- descriptors ------------------------------------------------------------------------------------- */
/* store->lock is held. */
static void unlist(struct store *store, struct content *content)
{
    if (!content->listed)
        return;
    *(content->fds_before ? &content->fds_before->fds_next : &store->fds_first) = content->fds_next;
    *(content->fds_next ? &content->fds_next->fds_before : &store->fds_last) = content->fds_before;
    content->listed = false;
}

static void list_last(struct store *store, struct content *content)
{
    content->fds_next = NULL;
    content->fds_before = store->fds_last;
    *(store->fds_last ? &store->fds_last->fds_next : &store->fds_first) = content;
    store->fds_last = content;
    content->listed = true;
}

static void take_fds_away(struct store *store, struct content *content, int fds[FD_COUNT])
{
    unlist(store, content);
    for (int i = 0; i < FD_COUNT; i++) {
        fds[i] = content->fd[i];
        content->fd[i] = -1;
        store->fds -= fds[i] >= 0;
    }
}

static void close_all(const int fds[FD_COUNT])
{
    for (int i = 0; i < FD_COUNT; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
}

void content_take_fd(struct content *content, int which, int fd)
{
    struct store *store = content->store;
    int spare = fd;

    lock_take(&store->lock);
    if (content->fd[which] < 0) {
        content->fd[which] = fd;
        store->fds++;
        spare = -1;
    } else if (which == FD_MAP) { /* of a map that was deleted when it was complete */
        spare = content->fd[which];
        content->fd[which] = fd;
    }
    lock_drop(&store->lock);
    if (spare >= 0)
        close(spare);
}

void content_close_fds(struct content *content)
{
    int fds[FD_COUNT];

    lock_take(&content->store->lock);
    take_fds_away(content->store, content, fds);
    lock_drop(&content->store->lock);
    close_all(fds);
}

static int open_suffix(struct content *content, const char *suffix)
{
    char name[NAME_SIZE];

    store_file_name(name, content->root, suffix);
    int fd = openat(content->store->fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}

/* The data's name may change meanwhile, and the map go: a sync does not wait for us. */
static int open_fds(struct content *content, int fds[FD_COUNT])
{
    bool incomplete = __atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE);

    fds[FD_MAP] = fds[FD_HASH] = -1;
    fds[FD_DATA] = -ENOENT;
    for (int i = 0; i < 3 && fds[FD_DATA] == -ENOENT; i++)
        fds[FD_DATA] = open_suffix(content, incomplete == (i % 2 == 0) ? SUFFIX_PART : SUFFIX_DATA);
    int result = fds[FD_DATA] < 0 ? fds[FD_DATA] : 0;
    if (result == 0 && incomplete) {
        fds[FD_MAP] = open_suffix(content, SUFFIX_MAP);
        if (fds[FD_MAP] < 0 && fds[FD_MAP] != -ENOENT)
            result = fds[FD_MAP];
    }
    if (result == 0 && __atomic_load_n(&content->has_hash_file, __ATOMIC_ACQUIRE)) {
        fds[FD_HASH] = open_suffix(content, SUFFIX_HASH);
        if (fds[FD_HASH] < 0 && fds[FD_HASH] != -ENOENT)
            result = fds[FD_HASH];
    }
    if (result < 0)
        close_all(fds);
    return result;
}

/* store->lock is held. */
static bool pin_open(struct store *store, struct content *content)
{
    if (content->pins == 0 && content->fd[FD_DATA] < 0)
        return false;
    content->pins++;
    unlist(store, content);
    return true;
}

int content_pin(struct content *content)
{
    struct store *store = content->store;
    int fds[FD_COUNT];

    lock_take(&store->lock);
    while (content->opening)
        lock_wait(&store->wake, &store->lock);
    if (pin_open(store, content)) {
        lock_drop(&store->lock);
        return 0;
    }
    content->opening = true;
    lock_drop(&store->lock);
    int result = open_fds(content, fds);
    lock_take(&store->lock);
    for (int i = 0; i < FD_COUNT && result == 0; i++) {
        content->fd[i] = fds[i] >= 0 ? fds[i] : -1;
        store->fds += fds[i] >= 0;
    }
    content->pins += result == 0;
    content->opening = false;
    lock_wake(&store->wake);
    lock_drop(&store->lock);
    return result;
}

bool content_pin_now(struct content *content)
{
    struct store *store = content->store;

    lock_take(&store->lock);
    bool pinned = !content->opening && pin_open(store, content);
    lock_drop(&store->lock);
    return pinned;
}

void content_unpin(struct content *content, bool dirty)
{
    struct store *store = content->store;
    int victims[8][FD_COUNT];
    unsigned count = 0;

    lock_take(&store->lock);
    CHECK(content->pins > 0);
    if (--content->pins == 0)
        list_last(store, content);
    if (dirty)
        store_add_dirty(store, content);
    while (store->fds > LIMIT_STORE_DESCRIPTORS && store->fds_first != NULL && count < 8)
        take_fds_away(store, store->fds_first, victims[count++]);
    lock_drop(&store->lock);
    while (count > 0)
        close_all(victims[--count]);
}

/* --- one at a time ----------------------------------------------------------------------------------- */
void content_busy(struct content *content)
{
    lock_take(&content->lock);
    while (content->busy)
        lock_wait(&content->wake, &content->lock);
    content->busy = true;
    lock_drop(&content->lock);
}

void content_unbusy(struct content *content)
{
    lock_take(&content->lock);
    content->busy = false;
    lock_wake(&content->wake);
    lock_drop(&content->lock);
}

/* --- complete to incomplete -------------------------------------------------------------------------- */
static int rename_data(struct content *content, const char *from, const char *to)
{
    char from_name[NAME_SIZE], to_name[NAME_SIZE];
    int fd = content->store->fd;

    store_file_name(from_name, content->root, from);
    store_file_name(to_name, content->root, to);
    return renameat(fd, from_name, fd, to_name) < 0 ? -errno : 0;
}

/* Puts the map file's bits in the place of those in memory. The kernel does that in one step, and both say the same: who
 * reads a bit meanwhile does not notice. */
static int replace_bits(struct content *content, int fd)
{
    size_t size = content->map_size;
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, STORE_HEADER);

    if (map == MAP_FAILED)
        return -errno;
    if (mremap(map, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, content->map) != MAP_FAILED)
        return 0;
    int error = errno;
    munmap(map, size);
    return -error;
}

int content_restore_map(struct content *content)
{
    if (content->has_map)
        return 0;
    /* No bit is set meanwhile (C3) and none cleared (we are busy), so file and memory agree. */
    int fd = store_make_map(content);
    if (fd < 0)
        return fd;
    int result = file_pwrite_all(fd, content->map, content->map_size, STORE_HEADER);
    if (result == 0 && fsync(fd) < 0)
        result = -errno;
    if (result < 0) {
        close(fd);
        store_unlink(content->store, content->root, SUFFIX_MAP);
        return result;
    }
    result = rename_data(content, SUFFIX_DATA, SUFFIX_PART);
    if (result == 0)
        result = store_sync_folder(content->store, content->root);
    if (result == 0)
        result = replace_bits(content, fd);
    if (result < 0) {
        rename_data(content, SUFFIX_PART, SUFFIX_DATA);
        close(fd);
        store_unlink(content->store, content->root, SUFFIX_MAP);
        return result;
    }
    content_take_fd(content, FD_MAP, fd);
    __atomic_store_n(&content->has_map, true, __ATOMIC_RELEASE);
    return 0;
}

/* --- syncing ------------------------------------------------------------------------------------------ */
/* One content on its way through the steps. */
struct round {
    struct content *content;
    uint8_t *pages; /* copies, in order of `which` */
    uint32_t *which;
    size_t count;
    bool pinned, hashes, names, stamp, complete;
    int claim; /* while it becomes complete: nobody has the map */
    int error;
};

static bool is_complete(const struct content *content)
{
    return content->present_blocks == content->geometry.blocks;
}

/* content->lock is held. Copies up to `max` pages that changed. */
static void copy_pages(struct round *round, size_t max)
{
    struct content *content = round->content;
    uint64_t pages = store_bits_size(content->geometry.blocks) / STORE_PAGE;
    uint64_t page = bitmap_next_set(content->dirty_pages, 0, pages);

    while (page < pages && round->count < max) {
        memcpy(round->pages + round->count * STORE_PAGE, content->present + page * STORE_PAGE,
               STORE_PAGE);
        round->which[round->count++] = (uint32_t)page;
        bitmap_clear(content->dirty_pages, page);
        page = bitmap_next_set(content->dirty_pages, page + 1, pages);
    }
}

/* Step 1. Says whether there is something to do; the content is busy from now on. */
static bool begin(struct round *round)
{
    struct content *content = round->content;
    uint64_t pages = store_bits_size(content->geometry.blocks) / STORE_PAGE;

    content_busy(content);
    lock_take(&content->lock);
    size_t dirty = bitmap_count(content->dirty_pages, 0, pages);
    lock_drop(&content->lock);
    round->hashes = __atomic_exchange_n(&content->hash_dirty, false, __ATOMIC_ACQ_REL);
    round->names = __atomic_exchange_n(&content->names_dirty, false, __ATOMIC_ACQ_REL);
    round->stamp = __atomic_exchange_n(&content->unstamped, false, __ATOMIC_ACQ_REL);
    round->pages = malloc(dirty * STORE_PAGE + 1);
    round->which = malloc(dirty * sizeof *round->which + 1);
    if (round->pages == NULL || round->which == NULL) {
        round->error = -ENOMEM;
        return true;
    }
    lock_take(&content->lock);
    copy_pages(round, dirty);
    round->complete = content->has_map && is_complete(content);
    lock_drop(&content->lock);
    return round->count > 0 || round->hashes || round->stamp || round->complete;
}

/* What was taken in `begin` and not brought to its end is to be done again. */
static void give_back(struct round *round)
{
    struct content *content = round->content;

    if (round->hashes)
        __atomic_store_n(&content->hash_dirty, true, __ATOMIC_RELEASE);
    if (round->names)
        __atomic_store_n(&content->names_dirty, true, __ATOMIC_RELEASE);
    if (round->stamp)
        content_unstamp(content);
    for (size_t i = 0; i < round->count; i++)
        bitmap_set(content->dirty_pages, round->which[i]);
}

static void end(struct round *round)
{
    struct content *content = round->content;
    uint64_t pages = store_bits_size(content->geometry.blocks) / STORE_PAGE;

    lock_take(&content->lock);
    if (round->error < 0)
        give_back(round);
    bool dirty = round->error < 0 || bitmap_next_set(content->dirty_pages, 0, pages) < pages ||
                 __atomic_load_n(&content->hash_dirty, __ATOMIC_ACQUIRE);
    lock_drop(&content->lock);
    free(round->pages);
    free(round->which);
    content_unbusy(content);
    if (round->pinned) {
        content_unpin(content, dirty);
    } else if (dirty) {
        lock_take(&content->store->lock);
        store_add_dirty(content->store, content);
        lock_drop(&content->store->lock);
    }
}

/* Step 2 failed. Busy. */
static void lose_unsynced(struct content *content)
{
    char digits[2 * HASH_SIZE + 1];
    uint64_t blocks = content->geometry.blocks;

    hex_encode(digits, content->root, HASH_SIZE);
    log_error("store: the disk failed to keep new blocks of %s, to be fetched again", digits);
    for (uint64_t block = 0; block < blocks; block++) {
        if (bitmap_test(content->present, block) && !bitmap_test(content->synced, block) &&
            content_clear_bits(content, block, 1))
            store_tell(content, block, 1, false);
    }
}

/* Step 2 for one. */
static void sync_data(struct round *round)
{
    struct content *content = round->content;

    round->error = content_pin(content);
    round->pinned = round->error == 0;
    if (round->error < 0)
        return;
    if ((round->count > 0 || round->complete) && fdatasync(content->fd[FD_DATA]) < 0) {
        round->error = -errno;
        lose_unsynced(content);
    } else if ((round->hashes || round->complete) && content->fd[FD_HASH] >= 0 &&
               fdatasync(content->fd[FD_HASH]) < 0) {
        round->error = -errno;
    }
}

/* Step 3, incomplete: what was present before step 2 is synced, unless it was lost since (then its bit is gone
 * from both, and nobody has set it again while we are busy: C2). */
static void note_synced(struct round *round, bool sync_files)
{
    struct content *content = round->content;

    lock_take(&content->lock);
    for (size_t i = 0; i < round->count; i++)
        memcpy(content->synced + (size_t)round->which[i] * STORE_PAGE,
               round->pages + i * STORE_PAGE, STORE_PAGE);
    lock_drop(&content->lock);
    if (sync_files && content->has_map && fdatasync(content->fd[FD_MAP]) < 0)
        round->error = -errno;
    else if (sync_files && round->names)
        round->error = store_sync_folder(content->store, content->root);
    if (round->stamp && round->error == 0)
        content_stamp(content);
}

/* Step 3, complete, behind the rename. A descriptor of the map stays open with the others: somebody may be using it. */
static void forget_map(struct content *content)
{
    __atomic_store_n(&content->has_map, false, __ATOMIC_RELEASE);
    store_unlink(content->store, content->root, SUFFIX_MAP);
}

/* As long as somebody has the map it stays the live one, and the content as it is: all of it is durable in that form, too.
 * Idle contents are synced once more when they are closed. */
static void claim_map(struct round *round)
{
    if (!round->complete || round->error < 0)
        return;
    if (!round->pinned) {
        round->error = content_pin(round->content);
        round->pinned = round->error == 0;
    }
    if (round->error == 0)
        round->claim = content_claim(round->content, FD_MAP);
    round->complete = round->claim >= 0;
}

static void finish(struct round *round, bool sync_files)
{
    struct content *content = round->content;
    struct timespec time;

    claim_map(round);
    if (round->error < 0)
        return;
    if (!round->complete) {
        note_synced(round, sync_files);
        return;
    }
    /* All of it was hashed when it came, or was known to be unchanged since, and is durable. */
    if (!__atomic_load_n(&content->doubtful, __ATOMIC_ACQUIRE) && content_file_time(content, &time))
        (void)store_stamp(content->fd[FD_DATA], &time);
    round->error = rename_data(content, SUFFIX_PART, SUFFIX_DATA);
    if (round->error < 0)
        round->complete = false;
    else if (sync_files)
        round->error = store_sync_folder(content->store, content->root);
}

/* Step 3, complete, when the new name is durable, or when it is not known to be. */
static void settle_name(struct round *round)
{
    if (round->complete && round->error == 0)
        forget_map(round->content);
    else if (round->complete)
        rename_data(round->content, SUFFIX_DATA, SUFFIX_PART);
    if (round->claim >= 0)
        close(round->claim);
    round->claim = -1;
}

static int sync_rounds(struct store *store, struct round *rounds, size_t count)
{
    bool many = count >= SYNC_MANY;
    int result = 0;

    if (!many || syncfs(store->fd) < 0) {
        for (size_t i = 0; i < count; i++) {
            if (rounds[i].error == 0)
                sync_data(&rounds[i]);
            if (rounds[i].error < 0)
                rounds[i].complete = false;
            if (many && rounds[i].pinned) { /* or all of them would be open at once */
                rounds[i].pinned = false;
                content_unpin(rounds[i].content, false);
            }
        }
    }
    for (size_t i = 0; i < count; i++)
        finish(&rounds[i], !many);
    int error = many && syncfs(store->fd) < 0 ? -errno : 0;
    for (size_t i = 0; i < count; i++) {
        if (rounds[i].error == 0)
            rounds[i].error = error;
        settle_name(&rounds[i]);
        if (result == 0)
            result = rounds[i].error;
    }
    return result;
}

int content_sync_many(struct store *store, struct content **list, size_t count)
{
    struct round *rounds = xmalloc((count + 1) * sizeof *rounds);
    size_t n = 0;

    CHECK(count <= SYNC_BATCH);
    for (size_t i = 0; i < count; i++) {
        rounds[n] = (struct round){.content = list[i], .claim = -1};
        if (begin(&rounds[n]))
            n++;
        else
            end(&rounds[n]);
    }
    int result = sync_rounds(store, rounds, n);
    for (size_t i = 0; i < n; i++)
        end(&rounds[i]);
    free(rounds);
    return result;
}

int content_sync(struct content *content)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    return content_sync_many(content->store, &content, 1);
}
