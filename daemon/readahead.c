/* Read-ahead windows of one handle. Pure; see the header for the rules.
 *
 * Reads of one stream arrive slightly out of order (the kernel sends several at once), so a read
 * that begins a little before or behind the place where it was expected still belongs to the
 * sequence. */
#include "daemon/readahead.h"

#include "base/clock.h"

#include <string.h>

#define NEAR          (UINT64_C(128) << 10) /* tolerance before a stream is recognised … */
#define NEAR_STREAM   (UINT64_C(2) << 20)   /* … and after: two requests of the largest size */
#define READ_FOR_REAL (UINT64_C(16) << 20)  /* `file` reads 7 MiB at either end */
#define PROBES        (UINT64_C(256) << 10) /* head and tail, the kernel's read-ahead included */
#define RATE_SPAN     (100 * NS_PER_MS)
#define RATE_STALE    (10 * NS_PER_S) /* a pause: what was consumed before tells nothing */
#define AHEAD_SECONDS 2.0
#define BLIND_MOST    (UINT64_C(4) << 20) /* while the rate is unknown */

void readahead_init(struct readahead *ahead, uint64_t file_size)
{
    memset(ahead, 0, sizeof(*ahead));
    ahead->size = file_size;
}

static bool belongs(const struct readahead_cursor *cursor, uint64_t offset, uint64_t end)
{
    uint64_t near = cursor->window > 0 ? NEAR_STREAM : NEAR;
    uint64_t reach = near > cursor->window ? near : cursor->window;

    return cursor->used && offset <= cursor->next + reach && end + near >= cursor->next;
}

/* The cursor whose sequence the read continues, the nearest of several; NULL: a jump. */
static struct readahead_cursor *find(struct readahead *ahead, uint64_t offset, uint64_t end)
{
    struct readahead_cursor *best = NULL;
    uint64_t best_distance = 0;

    for (unsigned i = 0; i < READAHEAD_CURSORS; i++) {
        struct readahead_cursor *cursor = &ahead->cursor[i];
        uint64_t distance = offset > cursor->next ? offset - cursor->next : cursor->next - offset;

        if (belongs(cursor, offset, end) && (best == NULL || distance < best_distance)) {
            best = cursor;
            best_distance = distance;
        }
    }
    return best;
}

static void measure(struct readahead_cursor *cursor, uint64_t fresh, int64_t now)
{
    int64_t span;

    if (cursor->since == 0 || now - cursor->last > RATE_STALE) {
        cursor->since = now;
        cursor->bytes = 0;
        return;
    }
    cursor->bytes += fresh;
    span = now - cursor->since;
    if (span >= RATE_SPAN) {
        double rate = (double)cursor->bytes * 1e9 / (double)span;

        cursor->rate = cursor->rate > 0 ? (cursor->rate + rate) / 2 : rate;
        cursor->since = now;
        cursor->bytes = 0;
    }
}

static uint64_t ceiling(const struct readahead_cursor *cursor)
{
    double most = cursor->rate * AHEAD_SECONDS;

    if (cursor->rate <= 0)
        return BLIND_MOST;
    if (most < (double)READAHEAD_LEAST)
        return READAHEAD_LEAST;
    return most > (double)READAHEAD_MOST ? READAHEAD_MOST : (uint64_t)most;
}

static uint64_t first_window(uint64_t size)
{
    return size > READAHEAD_LEAST ? size : READAHEAD_LEAST;
}

static bool jump(struct readahead *ahead, uint64_t offset, uint64_t end, int64_t now)
{
    struct readahead_cursor *oldest = &ahead->cursor[0];
    bool changed = false;

    for (unsigned i = 0; i < READAHEAD_CURSORS; i++) {
        struct readahead_cursor *cursor = &ahead->cursor[i];

        changed |= cursor->awake;
        cursor->awake = false;
        if (oldest->used && (!cursor->used || cursor->last < oldest->last))
            oldest = cursor;
    }
    *oldest = (struct readahead_cursor){
        .used = true, .next = end, .run = end - offset, .last = now, .since = now};
    if (ahead->streamed) {
        oldest->awake = true;
        oldest->window = first_window(end - offset);
        changed = true;
    }
    return changed;
}

bool readahead_read(struct readahead *ahead, uint64_t offset, uint64_t size, int64_t now)
{
    struct readahead_cursor *cursor;
    uint64_t end, fresh, most;

    if (size == 0 || offset >= ahead->size)
        return false;
    end = size > ahead->size - offset ? ahead->size : offset + size;
    cursor = find(ahead, offset, end);
    if (cursor == NULL)
        return jump(ahead, offset, end, now);
    fresh = end > cursor->next ? end - (offset > cursor->next ? offset : cursor->next) : 0;
    measure(cursor, fresh, now);
    cursor->last = now;
    if (fresh == 0)
        return false;
    cursor->next = end;
    cursor->run += fresh;
    ahead->sequential += fresh;
    if (cursor->run <= READAHEAD_PROBE && !ahead->streamed)
        return false;
    ahead->streamed = true;
    cursor->awake = true;
    most = ceiling(cursor);
    cursor->window = cursor->window == 0 ? first_window(end - offset) : 2 * cursor->window;
    if (cursor->window > most)
        cursor->window = most;
    return true;
}

unsigned readahead_windows(const struct readahead *ahead,
                           struct readahead_range out[READAHEAD_CURSORS])
{
    int64_t last[READAHEAD_CURSORS];
    unsigned count = 0;

    for (unsigned i = 0; i < READAHEAD_CURSORS; i++) {
        const struct readahead_cursor *cursor = &ahead->cursor[i];
        uint64_t left = cursor->next < ahead->size ? ahead->size - cursor->next : 0;
        unsigned at = count;

        if (!cursor->used || !cursor->awake || cursor->window == 0 || left == 0)
            continue;
        for (; at > 0 && last[at - 1] < cursor->last; at--) {
            last[at] = last[at - 1];
            out[at] = out[at - 1];
        }
        last[at] = cursor->last;
        out[at].offset = cursor->next;
        out[at].size = left < cursor->window ? left : cursor->window;
        count++;
    }
    return count;
}

bool readahead_is_reading(const struct readahead *ahead)
{
    if (ahead->sequential > READ_FOR_REAL)
        return true;
    return ahead->sequential > ahead->size / 4 && ahead->sequential > PROBES;
}
