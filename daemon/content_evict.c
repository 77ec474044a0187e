/* Owns taking blocks of one content away, and when its pieces were used; leaves which pieces go to store_evict.c, and whether
 * they may to evict.c.
 *
 * Taking away, while busy with the content and with the claim on its data (content_lend.c):
 *   1  a complete content gets its map back
 *   2  the header says that an eviction is under way, the synced bits are cleared; fdatasync the map. From here on, after
 *      a crash, none of these blocks counts unless its hash was checked (S3)
 *   3  no put is under way and none begins; the generation grows; the present bits are cleared; holes are punched
 *   4  the header says that it is over; listeners are told
 * A reader of the mapped bits that read a hole finds a bit or the generation changed behind its read: step 3 is in that
 * order for it. A crash within step 3 leaves space that nobody uses: opening the content gives it back.
 *
 * A piece's time of use is a number of seconds in memory; what is known of a content that is closed is its last use, at the
 * start its file's times. Being read a second time, a minute or more after the first, makes a piece stay AGAIN_WORTH
 * longer: so one pass over a large file does not push out what is read every day.
 *
 * Threads: any; content_evict on a worker. Memory: 4 bytes a piece. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"

#define USED_EPOCH  1577836800 /* 2020 */
#define AGAIN_AFTER 60
#define AGAIN_WORTH (24 * 3600)

/* --- use -------------------------------------------------------------------------------------------- */
uint32_t used_at(int64_t wall_seconds)
{
    int64_t at = wall_seconds - USED_EPOCH;

    return at < 1 ? 1 : at > USED_TIME ? USED_TIME : (uint32_t)at;
}

uint32_t used_now(void)
{
    return used_at(clock_wall() / NS_PER_S);
}

uint32_t used_rank(uint32_t used)
{
    return (used & USED_TIME) + (used & USED_AGAIN ? AGAIN_WORTH : 0);
}

uint32_t content_used(const struct content *content)
{
    uint32_t best = 0;

    for (uint32_t i = 0; i < content->geometry.pieces; i++) {
        uint32_t used = __atomic_load_n(&content->used[i], __ATOMIC_RELAXED);
        if (used_rank(used) > used_rank(best))
            best = used;
    }
    return best;
}

void content_note_put(struct content *content, uint64_t first, uint64_t count)
{
    uint32_t piece_blocks = content->geometry.piece_blocks, now = used_now();

    for (uint64_t i = first / piece_blocks; i <= (first + count - 1) / piece_blocks; i++) {
        uint32_t used = __atomic_load_n(&content->used[i], __ATOMIC_RELAXED);
        __atomic_store_n(&content->used[i], (used & ~USED_TIME) | now, __ATOMIC_RELAXED);
    }
}

void content_touch(struct content *content, uint64_t first, uint64_t count)
{
    uint32_t piece_blocks = content->geometry.piece_blocks, now = used_now();

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(count > 0 && first < content->geometry.blocks &&
          count <= content->geometry.blocks - first);
    for (uint64_t i = first / piece_blocks; i <= (first + count - 1) / piece_blocks; i++) {
        uint32_t used = __atomic_load_n(&content->used[i], __ATOMIC_RELAXED);
        uint32_t flags = (used & USED_AGAIN) | USED_READ;
        if ((used & USED_READ) != 0 && now - (used & USED_TIME) >= AGAIN_AFTER)
            flags |= USED_AGAIN;
        __atomic_store_n(&content->used[i], flags | now, __ATOMIC_RELAXED);
    }
}

/* --- puts and evictions keep out of each other's way -------------------------------------------------- */
void content_put_begin(struct content *content)
{
    lock_take(&content->lock);
    while (content->evicting)
        lock_wait(&content->wake, &content->lock);
    content->putting++;
    lock_drop(&content->lock);
}

bool content_put_begin_now(struct content *content)
{
    lock_take(&content->lock);
    bool free = !content->evicting;
    content->putting += free;
    lock_drop(&content->lock);
    return free;
}

void content_put_end(struct content *content)
{
    lock_take(&content->lock);
    if (--content->putting == 0 && content->evicting)
        lock_wake(&content->wake);
    lock_drop(&content->lock);
}

static void stop_puts(struct content *content)
{
    lock_take(&content->lock);
    content->evicting = true; /* one at a time: we are busy */
    while (content->putting > 0)
        lock_wait(&content->wake, &content->lock);
    lock_drop(&content->lock);
}

static void allow_puts(struct content *content)
{
    lock_take(&content->lock);
    content->evicting = false;
    lock_wake(&content->wake);
    lock_drop(&content->lock);
}

/* --- taking away ---------------------------------------------------------------------------------------- */
static int note(struct content *content, uint64_t value, uint64_t at)
{
    return file_pwrite_all(content->fd[FD_MAP], &value, sizeof value, at);
}

static int grow_generation(struct content *content)
{
    uint64_t generation;
    int result =
        file_pread_all(content->fd[FD_MAP], &generation, sizeof generation, MAP_GENERATION);

    return result < 0 ? result : note(content, generation + 1, MAP_GENERATION);
}

/* The space of these blocks, up to a whole page behind the content's end. */
static int punch(struct content *content, uint64_t first, uint64_t count)
{
    uint64_t bytes = content_block_bytes(&content->geometry, first, count);

    bytes = (bytes + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
    return fallocate(content->fd[FD_DATA], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)file_cipher_at(content->cipher, first * BLOCK_SIZE), (off_t)bytes) < 0
               ? -errno
               : 0;
}

/* The next run of wanted pieces, as blocks; false if there is none. */
static bool next_run(const struct content *content, const uint8_t *pieces, uint32_t *at,
                     uint64_t *first, uint64_t *count)
{
    const struct geometry *g = &content->geometry;
    uint32_t from = pieces == NULL ? *at : (uint32_t)bitmap_next_set(pieces, *at, g->pieces);

    if (from >= g->pieces)
        return false;
    uint32_t end =
        pieces == NULL ? g->pieces : (uint32_t)bitmap_next_clear(pieces, from, g->pieces);
    uint64_t last = (uint64_t)end * g->piece_blocks;
    *first = (uint64_t)from * g->piece_blocks;
    *count = (last < g->blocks ? last : g->blocks) - *first;
    *at = end;
    return true;
}

/* Steps 1 and 2. */
static int announce(struct content *content, const uint8_t *pieces)
{
    uint64_t first, count;
    int result = content_restore_map(content);

    if (result == 0)
        result = note(content, 1, MAP_EVICTING);
    for (uint32_t at = 0; result == 0 && next_run(content, pieces, &at, &first, &count);)
        content_clear_synced(content, first, count);
    if (result == 0 && fdatasync(content->fd[FD_MAP]) < 0)
        result = -errno;
    return result;
}

/* Step 3. */
static int take_away(struct content *content, const uint8_t *pieces)
{
    uint64_t first, count;
    int result;

    stop_puts(content);
    result = grow_generation(content);
    for (uint32_t at = 0; result == 0 && next_run(content, pieces, &at, &first, &count);)
        content_clear_bits(content, first, count);
    int error = result;
    for (uint32_t at = 0;
         result == 0 && error == 0 && next_run(content, pieces, &at, &first, &count);)
        error = punch(content, first, count);
    allow_puts(content);
    content_unstamp(content);
    if (error < 0)
        log_warning("store: space cannot be given back: %s", strerror(-error));
    else
        (void)note(content, 0, MAP_EVICTING);
    return error;
}

int content_evict(struct content *content, const uint8_t *pieces, uint64_t *freed)
{
    uint64_t first, count, before;
    int result = content_pin(content);

    *freed = 0;
    if (result < 0)
        return result;
    content_busy(content);
    int claim = content_claim(content, FD_DATA);
    result = claim < 0 ? claim : announce(content, pieces);
    before = content_bytes(content);
    if (result == 0)
        result = take_away(content, pieces);
    uint64_t after = content_bytes(content);
    *freed = before > after ? before - after : 0;
    content_unbusy(content);
    if (claim >= 0)
        close(claim);
    content_unpin(content, true);
    for (uint32_t at = 0; *freed > 0 && next_run(content, pieces, &at, &first, &count);)
        store_tell(content, first, count, false);
    return result;
}

void content_evict_resume(struct content *content)
{
    uint64_t evicting = 0, blocks = content->geometry.blocks, end;

    if (file_pread_all(content->fd[FD_MAP], &evicting, sizeof evicting, MAP_EVICTING) < 0 ||
        evicting == 0)
        return;
    int result = 0;
    for (uint64_t at = bitmap_next_clear(content->present, 0, blocks); at < blocks && result == 0;
         at = bitmap_next_clear(content->present, end, blocks)) {
        end = bitmap_next_set(content->present, at, blocks);
        result = punch(content, at, end - at);
    }
    content_unstamp(content);
    if (result == 0)
        (void)note(content, 0, MAP_EVICTING);
}
