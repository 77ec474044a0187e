/* Owns the blocks of one content: what is put is verified, written, then shown as present; what is read is verified
 * again. Leaves the hashes to content_hash.c, files and syncing to content_sync.c.
 *
 * Invariants (S1 to S5 are store.h's):
 *   C1  Bits and counters change only under content->lock; a bit is set after its block was written (release), so who
 *       sees the bit (acquire) may read the block from the file.
 *   C2  synced is a subset of present. A synced bit is cleared, durably, before its block may be written anew.
 *   C3  Bits are set only while there is a map on disk; without one the content was complete when it was opened, and
 *       its first lost block gives it a map again (content_restore_map).
 *
 * Threads: any; content_put and the like on workers. Memory: the stack, 3 KiB. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"

#define BATCH 64 /* blocks verified and written together: 1 MiB */

/* --- what is here, from memory --------------------------------------------------------------------- */
const struct geometry *content_geometry(const struct content *content)
{
    return &content->geometry;
}

const uint8_t *content_root(const struct content *content)
{
    return content->root;
}

const uint8_t *content_present(const struct content *content)
{
    return content->present;
}

uint64_t content_present_blocks(const struct content *content)
{
    return __atomic_load_n(&content->present_blocks, __ATOMIC_ACQUIRE);
}

bool content_complete(const struct content *content)
{
    return content_present_blocks(content) == content->geometry.blocks;
}

bool content_has_piece(const struct content *content, uint32_t piece)
{
    CHECK(piece < content->geometry.pieces);
    return bitmap_test(content->pieces, piece);
}

void content_pieces(const struct content *content, uint8_t *map)
{
    size_t bytes = bitmap_bytes(content->geometry.pieces);

    for (size_t i = 0; i < bytes; i++)
        map[i] = __atomic_load_n(&content->pieces[i], __ATOMIC_ACQUIRE);
}

uint64_t content_bytes(const struct content *content)
{
    const struct geometry *g = &content->geometry;
    uint64_t bytes = content_present_blocks(content) * BLOCK_SIZE;

    if (bytes > 0 && bitmap_test(content->present, g->blocks - 1))
        bytes -= BLOCK_SIZE - geometry_block_size(g, g->blocks - 1);
    return bytes;
}

uint64_t content_block_bytes(const struct geometry *g, uint64_t first, uint64_t count)
{
    uint64_t end = (first + count) * BLOCK_SIZE;

    return (end < g->size ? end : g->size) - first * BLOCK_SIZE;
}

/* --- bits ------------------------------------------------------------------------------------------ */
static void mark_page(struct content *content, uint64_t block)
{
    bitmap_set(content->dirty_pages, block / (STORE_PAGE * 8));
}

void content_count(struct content *content)
{
    const struct geometry *g = &content->geometry;

    content->present_blocks = 0;
    for (uint32_t piece = 0; piece < g->pieces; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(g, piece, &first, &count);
        uint64_t present = bitmap_count(content->present, first, count);
        content->piece_counts[piece] = (uint16_t)present;
        content->present_blocks += present;
        if (present == count)
            bitmap_set(content->pieces, piece);
        else
            bitmap_clear(content->pieces, piece);
    }
}

/* The lock is held. */
static void set_bit(struct content *content, uint64_t block)
{
    const struct geometry *g = &content->geometry;
    uint32_t piece = (uint32_t)(block / g->piece_blocks), count;
    uint64_t first;

    geometry_piece(g, piece, &first, &count);
    bitmap_set(content->present, block);
    mark_page(content, block);
    if (__atomic_add_fetch(&content->piece_counts[piece], 1, __ATOMIC_RELAXED) == count)
        bitmap_set(content->pieces, piece);
    __atomic_fetch_add(&content->present_blocks, 1, __ATOMIC_RELEASE);
}

void content_clear_synced(struct content *content, uint64_t first, uint64_t count)
{
    lock_take(&content->lock);
    for (uint64_t block = first; block < first + count; block++)
        bitmap_clear(content->synced, block);
    lock_drop(&content->lock);
}

bool content_clear_bits(struct content *content, uint64_t first, uint64_t count)
{
    uint64_t lost = 0;

    lock_take(&content->lock);
    for (uint64_t block = first; block < first + count; block++) {
        bitmap_clear(content->synced, block);
        if (!bitmap_test(content->present, block))
            continue;
        uint32_t piece = (uint32_t)(block / content->geometry.piece_blocks);
        bitmap_clear(content->pieces, piece);
        __atomic_sub_fetch(&content->piece_counts[piece], 1, __ATOMIC_RELAXED);
        bitmap_clear(content->present, block);
        __atomic_fetch_sub(&content->present_blocks, 1, __ATOMIC_RELEASE);
        lost += content_block_bytes(&content->geometry, block, 1);
    }
    lock_drop(&content->lock);
    __atomic_fetch_sub(&content->store->held, lost, __ATOMIC_RELAXED);
    return lost > 0;
}

/* Shows the blocks of [first, first + count) whose verdict is 0 as present, and tells. */
static void show(struct content *content, uint64_t first, uint32_t count, const int *verdicts)
{
    bool fresh[BATCH] = {false};
    uint64_t bytes = 0;

    lock_take(&content->lock);
    for (uint32_t i = 0; i < count; i++) {
        if (verdicts[i] == 0 && !bitmap_test(content->present, first + i)) {
            set_bit(content, first + i);
            fresh[i] = true;
            bytes += content_block_bytes(&content->geometry, first + i, 1);
        }
    }
    lock_drop(&content->lock);
    __atomic_fetch_add(&content->store->held, bytes, __ATOMIC_RELAXED);
    content_note_put(content, first, count);
    for (uint32_t i = 0, run; i < count; i += run) {
        for (run = 1; i + run < count && fresh[i + run] == fresh[i];)
            run++;
        if (fresh[i])
            store_tell(content, first + i, run, true);
    }
}

static void log_damage(struct content *content, uint64_t block)
{
    char digits[2 * HASH_SIZE + 1];

    lock_take(&content->lock);
    bool first = !content->damage_logged;
    content->damage_logged = true;
    lock_drop(&content->lock);
    if (!first)
        return;
    hex_encode(digits, content->root, HASH_SIZE);
    log_warning("store: block %llu of %s is damaged on disk, to be fetched again",
                (unsigned long long)block, digits);
}

void content_lose(struct content *content, uint64_t first, uint64_t count)
{
    log_damage(content, first);
    content_busy(content);
    int error = content_restore_map(content);
    content_clear_synced(content, first,
                         count); /* C2: nobody can put them before their bits are clear */
    if (error == 0 && fdatasync(content->fd[FD_MAP]) < 0)
        error = -errno;
    bool lost = content_clear_bits(content, first, count);
    content_unbusy(content);
    if (error < 0)
        log_warning("store: a lost block cannot be noted: %s", strerror(-error));
    if (lost)
        store_tell(content, first, count, false);
}

/* --- put ------------------------------------------------------------------------------------------- */
/* Which of the blocks match their hashes: verdict 0, -EBADMSG, or -EALREADY as it stands. */
static void verify(const struct content *content, uint64_t first, uint32_t count,
                   const uint8_t *leaves, const uint8_t *const *blocks, int *verdicts)
{
    const uint8_t *messages[BATCH];
    uint8_t hashes[HASHES(BATCH)];
    uint32_t which[BATCH], n = 0;

    for (uint32_t i = 0; i < count; i++) {
        verdicts[i] = -EALREADY;
        if (bitmap_test(content->present, first + i))
            continue;
        messages[n] = blocks[i];
        which[n++] = i;
    }
    if (n == 0)
        return;
    merkle_leaves(hashes, messages, n,
                  geometry_block_size(&content->geometry, first + which[n - 1]));
    for (uint32_t i = 0; i < n; i++)
        verdicts[which[i]] =
            memcmp(hashes + HASHES(i), leaves + HASHES(which[i]), HASH_SIZE) == 0 ? 0 : -EBADMSG;
}

/* Writes the runs of blocks whose verdict is 0; those that could not be get -errno. */
static void write_runs(struct content *content, uint64_t first, uint32_t count,
                       const uint8_t *const *blocks, int *verdicts)
{
    struct iovec vector[BATCH];

    for (uint32_t i = 0, run; i < count; i += run) {
        for (run = 0; i + run < count && verdicts[i + run] == 0; run++) {
            vector[run].iov_base = (void *)(uintptr_t)blocks[i + run];
            vector[run].iov_len = geometry_block_size(&content->geometry, first + i + run);
        }
        if (run == 0) {
            run = 1;
            continue;
        }
        int error = 0;
        uint64_t done = file_cipher_put(content->cipher, content->fd[FD_DATA], vector, (int)run,
                                        (first + i) * BLOCK_SIZE, &error);
        if (done > 0)
            content_wrote(content, (first + i) * BLOCK_SIZE, done);
        for (uint32_t k = 0; k < run && error < 0; k++) {
            if (content_block_bytes(&content->geometry, first + i, k + 1) > done)
                verdicts[i + k] = error;
        }
    }
}

static void check_batch(struct content *content, uint64_t first, uint32_t count,
                        const uint8_t *const *blocks, int *verdicts)
{
    uint8_t leaves[HASHES(BATCH)];
    int result = content_leaves(content, first, count, leaves);

    for (uint32_t i = 0; i < count && result < 0; i++)
        verdicts[i] = result;
    if (result == 0)
        verify(content, first, count, leaves, blocks, verdicts);
}

void content_check(struct content *content, uint64_t first, uint32_t count,
                   const uint8_t *const *blocks, int *verdicts)
{
    const struct geometry *g = &content->geometry;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(count > 0 && first < g->blocks && count <= g->blocks - first);
    CHECK(first / g->piece_blocks == (first + count - 1) / g->piece_blocks);
    int result = content_pin(content);
    for (uint32_t i = 0; i < count && result < 0; i++)
        verdicts[i] = result;
    if (result < 0)
        return;
    for (uint32_t done = 0, step; done < count; done += step) {
        step = count - done < BATCH ? count - done : BATCH;
        check_batch(content, first + done, step, blocks + done, verdicts + done);
    }
    content_unpin(content, false);
}

/* C3, and it failed when the block was lost. */
static int need_map(struct content *content)
{
    if (__atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE) || content_complete(content))
        return 0;
    content_busy(content);
    int result = content_restore_map(content);
    content_unbusy(content);
    return result;
}

static void spoil(uint32_t count, int *verdicts, int error)
{
    for (uint32_t i = 0; i < count; i++) {
        if (verdicts[i] == 0)
            verdicts[i] = error;
    }
}

/* Within a put. */
static void write_and_show(struct content *content, uint64_t first, uint32_t count,
                           const uint8_t *const *blocks, int *verdicts)
{
    write_runs(content, first, count, blocks, verdicts);
    content_unstamp(content);
    show(content, first, count, verdicts);
}

int content_write(struct content *content, uint64_t first, uint32_t count,
                  const uint8_t *const *blocks, int *verdicts)
{
    int result = content_pin(content);

    if (result == 0) {
        result = need_map(content);
        if (result < 0)
            spoil(count, verdicts, result);
        for (uint32_t done = 0, step; done < count; done += step) {
            step = count - done < BATCH ? count - done : BATCH;
            content_put_begin(content);
            write_and_show(content, first + done, step, blocks + done, verdicts + done);
            content_put_end(content);
        }
        content_unpin(content, true);
    } else {
        spoil(count, verdicts, result);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (verdicts[i] != 0 && verdicts[i] != -EALREADY)
            return verdicts[i];
    }
    return 0;
}

int content_put(struct content *content, uint64_t first, uint32_t count,
                const uint8_t *const *blocks, int *verdicts)
{
    content_check(content, first, count, blocks, verdicts);
    return content_write(content, first, count, blocks, verdicts);
}

/* Pinned, its hashes known. */
static bool put_pinned(struct content *content, uint64_t first, uint32_t count,
                       const uint8_t *leaves, const uint8_t *const *blocks, int *verdicts)
{
    if (!__atomic_load_n(&content->has_map, __ATOMIC_ACQUIRE) || !content_put_begin_now(content))
        return false;
    verify(content, first, count, leaves, blocks, verdicts);
    write_and_show(content, first, count, blocks, verdicts);
    content_put_end(content);
    return true;
}

bool content_put_now(struct content *content, uint64_t first, uint32_t count,
                     const uint8_t *const *blocks, int *verdicts)
{
    uint8_t leaves[HASHES(CONTENT_NOW_BLOCKS)];

    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (count > CONTENT_NOW_BLOCKS || !content_block_hashes_now(content, first, count, leaves) ||
        !content_pin_now(content))
        return false;
    bool done = put_pinned(content, first, count, leaves, blocks, verdicts);
    content_unpin(content, done);
    return done;
}

/* --- get ------------------------------------------------------------------------------------------- */
/* Reads blocks that are present and checks them by these hashes. Returns how many leading ones are good. */
static uint32_t read_verified(struct content *content, uint64_t first, uint32_t count,
                              const uint8_t *leaves, uint8_t *to, int *error)
{
    const uint8_t *messages[BATCH];
    uint8_t hashes[HASHES(BATCH)];
    uint32_t good = 0;
    struct timespec time;

    bool timed = content_file_time(content, &time);
    *error = file_cipher_pread_all(content->cipher, content->fd[FD_DATA], to,
                                   content_block_bytes(&content->geometry, first, count),
                                   first * BLOCK_SIZE);
    if (*error == -ENODATA) /* somebody made the file shorter */
        *error = -EBADMSG;
    if (*error < 0)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        messages[i] = to + (size_t)BLOCK_SIZE * i;
    merkle_leaves(hashes, messages, count,
                  geometry_block_size(&content->geometry, first + count - 1));
    while (good < count && memcmp(hashes + HASHES(good), leaves + HASHES(good), HASH_SIZE) == 0)
        good++;
    if (good < count)
        *error = -EBADMSG;
    if (timed && good > 0)
        content_trust(content, first, good, &time);
    return good;
}

/* A reading fault is not damage, and neither is a block that was taken away under the read, even if it came back since: so
 * one block is read once more, alone, and while nothing is taken away. (Its hash is had before: a hash file that is damaged
 * makes blocks lost, which waits for those that take away, and these wait for us.) */
static bool read_again(struct content *content, uint64_t block, const uint8_t *leaf, uint8_t *to,
                       int *error)
{
    bool good = false;

    content_put_begin(content);
    *error = -ENODATA;
    if (bitmap_test(content->present, block))
        good = read_verified(content, block, 1, leaf, to, error) == 1;
    bool here = bitmap_test(content->present, block);
    content_put_end(content);
    if (*error == -EBADMSG && here)
        content_lose(content, block, 1);
    else if (*error == -EBADMSG)
        *error = -ENODATA; /* somebody else saw the damage first */
    return good;
}

static uint32_t get_batch(struct content *content, uint64_t first, uint32_t count, uint8_t *to,
                          int *error)
{
    uint8_t leaves[HASHES(BATCH)];
    uint32_t here = 0, good = 0;

    while (here < count && bitmap_test(content->present, first + here))
        here++;
    *error = here == 0 ? 0 : content_leaves(content, first, here, leaves);
    if (*error < 0)
        return 0;
    if (here > 0)
        good = read_verified(content, first, here, leaves, to, error);
    if (good < here && *error == -EBADMSG) {
        if (read_again(content, first + good, leaves + HASHES(good), to + (size_t)BLOCK_SIZE * good,
                       error))
            return good + 1; /* the caller goes on from there */
    }
    if (good == here && here < count)
        *error = -ENODATA;
    return good;
}

uint32_t content_get_many(struct content *content, uint64_t first, uint32_t count, uint8_t *to,
                          int *error)
{
    const struct geometry *g = &content->geometry;
    uint32_t done = 0;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(first < g->blocks && count <= g->blocks - first);
    *error = content_pin(content);
    if (*error < 0)
        return 0;
    while (done < count && *error == 0) {
        uint32_t step = count - done < STRETCH ? count - done : STRETCH;
        uint64_t at = first + done, in_piece = g->piece_blocks - at % g->piece_blocks;
        if (step > in_piece)
            step = (uint32_t)in_piece;
        done += get_batch(content, at, step, to + (size_t)BLOCK_SIZE * done, error);
    }
    content_unpin(content, false);
    return done;
}

int content_get(struct content *content, uint64_t block, uint8_t *to)
{
    int error;

    return content_get_many(content, block, 1, to, &error) == 1 ? 0 : error;
}

int content_look(struct content *content, uint64_t first, uint32_t count, uint8_t *buffer,
                 uint64_t *bytes, uint64_t *damaged)
{
    uint64_t end = first + count;
    int error = 0;

    while (first < end && (error == 0 || error == -EBADMSG || error == -ENODATA)) {
        uint32_t good = content_get_many(content, first, (uint32_t)(end - first), buffer, &error);
        *bytes += (uint64_t)good * BLOCK_SIZE;
        *damaged += error == -EBADMSG;
        first += good + (error != 0);
    }
    return error == -EBADMSG || error == -ENODATA ? 0 : error;
}

void content_forget_cached(struct content *content, uint64_t first, uint64_t count)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (content_pin(content) < 0)
        return;
    (void)posix_fadvise(content->fd[FD_DATA],
                        (off_t)file_cipher_at(content->cipher, first * BLOCK_SIZE),
                        (off_t)(count * BLOCK_SIZE), POSIX_FADV_DONTNEED);
    content_unpin(content, false);
}
