/* The picker's state: active pieces, requests, and the events that change them. Sources and what is
 * wanted are in picker_want.c, choices in picker_pick.c.
 *
 * Pure; one content; memory as picker.h says.
 *
 * A block of an active piece:
 *
 *   ABSENT --picker_ask--> ASKED --picker_received--> RECEIVED --picker_present--> PRESENT
 *      ^                     |                            |
 *      +----- picker_drop ---+------ picker_failed -------+
 *
 * Invariants
 *   P1  absent + asked + received + present == count; requests[i] is not NULL exactly when state[i]
 * is ASKED. P2  an active piece is in `open` if absent > 0, else in `full`; it is not listed in
 * `rarity`. P3  with want_all every piece that misses a block is either active or listed in
 * `rarity`. P4  a source's in_flight is the length of its list; the sum over sources is the
 * picker's. */
#include "daemon/picker_private.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/mem.h"

#define CHUNK_REQUESTS 32
#define IDLE_OPEN_MOST 256 /* begun pieces that are remembered without anything under way */

struct request_chunk {
    struct request_chunk *next;
    struct request request[CHUNK_REQUESTS];
};

struct picker *picker_new(const struct geometry *geometry, const uint8_t *present, uint64_t seed,
                          const struct picker_actions *actions, void *arg)
{
    struct picker *picker = xcalloc(1, sizeof(*picker));

    picker->geometry = *geometry;
    picker->present = present;
    picker->actions = *actions;
    picker->arg = arg;
    picker->seed = seed;
    picker->version = 1;
    picker->next_late = picker->full_late = INT64_MAX;
    TAILQ_INIT(&picker->sources);
    TAILQ_INIT(&picker->open);
    TAILQ_INIT(&picker->full);
    return picker;
}

static void piece_forget(struct picker *picker, struct piece *piece);

void picker_free(struct picker *picker)
{
    struct piece *piece;

    if (picker == NULL)
        return;
    CHECK(TAILQ_EMPTY(&picker->sources) && picker->demands == NULL && picker->windows == NULL);
    picker->want_all = false;
    while ((piece = TAILQ_FIRST(&picker->open)) != NULL ||
           (piece = TAILQ_FIRST(&picker->full)) != NULL)
        piece_forget(picker, piece);
    while (picker->chunks != NULL) {
        struct request_chunk *chunk = picker->chunks;

        picker->chunks = chunk->next;
        free(chunk);
    }
    rarity_free(picker->rarity);
    free(picker->buckets);
    free(picker);
}

/* --- active pieces
 * --------------------------------------------------------------------------------------------- */
static uint32_t bucket_of(const struct picker *picker, uint32_t number)
{
    return (number * 2654435761u) & (picker->bucket_count - 1);
}

static void grow_buckets(struct picker *picker)
{
    struct piece **old = picker->buckets;
    uint32_t old_count = picker->bucket_count;

    picker->bucket_count = old_count == 0 ? 16 : old_count * 2;
    picker->buckets = xcalloc(picker->bucket_count, sizeof(*picker->buckets));
    for (uint32_t i = 0; i < old_count; i++) {
        struct piece *piece, *next;

        for (piece = old[i]; piece != NULL; piece = next) {
            uint32_t bucket = bucket_of(picker, piece->number);

            next = piece->chain;
            piece->chain = picker->buckets[bucket];
            picker->buckets[bucket] = piece;
        }
    }
    free(old);
}

struct piece *picker_piece(const struct picker *picker, uint32_t number)
{
    struct piece *piece;

    if (picker->active == 0)
        return NULL;
    for (piece = picker->buckets[bucket_of(picker, number)]; piece != NULL; piece = piece->chain) {
        if (piece->number == number)
            return piece;
    }
    return NULL;
}

struct piece *picker_activate(struct picker *picker, uint32_t number)
{
    struct piece *piece = picker_piece(picker, number);
    uint64_t first;
    uint32_t count, bucket;

    if (piece != NULL)
        return piece;
    if (picker->rarity != NULL)
        rarity_list(picker->rarity, number, false);
    geometry_piece(&picker->geometry, number, &first, &count);
    if (bitmap_all(picker->present, first, count))
        return NULL;
    piece = calloc(1, sizeof(*piece) + count * (sizeof(struct request *) + 1));
    if (piece == NULL)
        return NULL;
    piece->number = number;
    piece->first = first;
    piece->count = count;
    piece->state = (uint8_t *)&piece->requests[count];
    for (uint32_t i = 0; i < count; i++) {
        if (bitmap_test(picker->present, first + i))
            piece->state[i] = BLOCK_PRESENT;
        else
            piece->absent++;
    }
    if (picker->active >= picker->bucket_count)
        grow_buckets(picker);
    bucket = bucket_of(picker, number);
    piece->chain = picker->buckets[bucket];
    picker->buckets[bucket] = piece;
    picker->active++;
    piece->open = piece->absent > 0;
    if (piece->open) {
        TAILQ_INSERT_TAIL(&picker->open, piece, entry);
        picker->open_count++;
    } else {
        TAILQ_INSERT_TAIL(&picker->full, piece, entry);
    }
    return piece;
}

static void unlist(struct picker *picker, struct piece *piece)
{
    if (piece->open) {
        TAILQ_REMOVE(&picker->open, piece, entry);
        picker->open_count--;
    } else {
        TAILQ_REMOVE(&picker->full, piece, entry);
    }
}

static void piece_forget(struct picker *picker, struct piece *piece)
{
    struct piece **link = &picker->buckets[bucket_of(picker, piece->number)];

    unlist(picker, piece);
    while (*link != piece)
        link = &(*link)->chain;
    *link = piece->chain;
    picker->active--;
    if (picker->want_all && piece->absent + piece->asked + piece->received > 0)
        rarity_list(picker->rarity, piece->number, true);
    free(piece);
}

void picker_note_late(struct picker *picker, const struct piece *piece)
{
    if (piece->asked > 0 && piece->late < picker->full_late)
        picker->full_late = piece->late;
    picker->full_withdrawn |= piece->withdrawn;
}

void picker_settle(struct picker *picker, struct piece *piece)
{
    bool open = piece->absent > 0;

    if (piece->asked + piece->received == 0 &&
        (!open || !picker->want_all || picker->open_count > IDLE_OPEN_MOST)) {
        piece_forget(picker, piece);
        return;
    }
    if (open == piece->open)
        return;
    unlist(picker, piece);
    piece->open = open;
    if (open) {
        TAILQ_INSERT_HEAD(&picker->open, piece, entry);
        picker->open_count++;
    } else {
        TAILQ_INSERT_TAIL(&picker->full, piece, entry);
        picker_note_late(picker, piece);
    }
}

enum block_state picker_block(struct picker *picker, struct piece *piece, uint32_t index)
{
    if (piece->state[index] == BLOCK_ABSENT && bitmap_test(picker->present, piece->first + index)) {
        piece->state[index] = BLOCK_PRESENT;
        piece->absent--;
    } else if (piece->state[index] == BLOCK_PRESENT &&
               !bitmap_test(picker->present, piece->first + index)) {
        piece->state[index] = BLOCK_ABSENT; /* the disk lost it */
        piece->absent++;
    }
    return piece->state[index];
}

/* --- requests
 * --------------------------------------------------------------------------------------------------
 */
static struct request *request_new(struct picker *picker)
{
    struct request *request;

    if (picker->spare_requests == NULL) {
        struct request_chunk *chunk = xmalloc(sizeof(*chunk));

        chunk->next = picker->chunks;
        picker->chunks = chunk;
        for (unsigned i = 0; i < CHUNK_REQUESTS; i++) {
            chunk->request[i].next = picker->spare_requests;
            picker->spare_requests = &chunk->request[i];
        }
    }
    request = picker->spare_requests;
    picker->spare_requests = request->next;
    return request;
}

void picker_ask(struct picker *picker, struct picker_source *source, struct piece *piece,
                uint32_t index, enum picker_class class, int64_t now)
{
    struct request *request = request_new(picker);
    bool urgent = class == PICKER_DEMAND;

    request->source = source;
    request->taker = NULL;
    request->withdrawn = false;
    request->piece = piece;
    request->index = index;
    request->urgency = (uint8_t) class;
    request->due = now + pipeline_expect(source->pipe, now, urgent);
    request->late = now + pipeline_patience(source->pipe, now, urgent);
    if (urgent && request->late < picker->next_late)
        picker->next_late = request->late;
    if (piece->asked == 0)
        piece->withdrawn = false;
    if (piece->asked == 0 || request->late < piece->late)
        piece->late = request->late;
    picker_note_late(picker, piece);
    pipeline_asked(source->pipe, now, urgent, &request->stamp);
    request->second = piece->requests[index] != NULL;
    if (request->second) {
        picker->duplicates++;
        picker->seconds++;
    }
    request->next = piece->requests[index];
    piece->requests[index] = request;
    LIST_INSERT_HEAD(&source->requests, request, of_source);
    source->in_flight++;
    picker->in_flight++;
    picker->asked++;
    if (piece->state[index] == BLOCK_ABSENT) {
        piece->state[index] = BLOCK_ASKED;
        piece->absent--;
        piece->asked++;
        picker_settle(picker, piece);
    }
    picker->actions.ask(picker->arg, source->owner, piece->first + index, class);
}

/* Takes a request out of its source's and its block's lists. */
static void unlink_request(struct picker *picker, struct request *request)
{
    struct request **link = &request->piece->requests[request->index];

    while (*link != request)
        link = &(*link)->next;
    *link = request->next;
    LIST_REMOVE(request, of_source);
    request->source->in_flight--;
    picker->in_flight--;
    if (request->second)
        picker->seconds--;
    if (request->taker != NULL)
        request->taker->taking--;
}

static void recycle(struct picker *picker, struct request *request)
{
    request->next = picker->spare_requests;
    picker->spare_requests = request;
}

void picker_drop(struct picker *picker, struct request *request, bool cancel)
{
    struct piece *piece = request->piece;
    struct picker_source *source = request->source;
    uint32_t index = request->index;

    unlink_request(picker, request);
    pipeline_withdrawn(source->pipe, request->urgency == PICKER_DEMAND);
    recycle(picker, request);
    if (cancel) {
        source->cancelled++;
        picker->actions.cancel(picker->arg, source->owner, piece->first + index);
    }
    if (piece->requests[index] == NULL && piece->state[index] == BLOCK_ASKED) {
        piece->state[index] = BLOCK_ABSENT;
        piece->asked--;
        piece->absent++;
        picker->version++;
    }
}

/* All requests of a block but the one of `winner`'s are withdrawn; the block's state is the
 * caller's to set. */
static void end_race(struct picker *picker, struct piece *piece, uint32_t index)
{
    struct request *request;

    while ((request = piece->requests[index]) != NULL) {
        struct picker_source *source = request->source;

        unlink_request(picker, request);
        pipeline_withdrawn(source->pipe, request->urgency == PICKER_DEMAND);
        recycle(picker, request);
        source->cancelled++;
        picker->actions.cancel(picker->arg, source->owner, piece->first + index);
    }
}

/* --- what became of requests
 * ----------------------------------------------------------------------------------- */
/* What was asked of this source for that block; NULL: nothing. */
static struct request *request_of(const struct picker_source *source, const struct piece *piece,
                                  uint32_t index)
{
    struct request *request = piece->requests[index];

    while (request != NULL && request->source != source)
        request = request->next;
    return request;
}

enum picker_verdict picker_received(struct picker_source *source, uint64_t block, uint32_t size,
                                    int64_t now, bool *urgent)
{
    struct picker *picker = source->picker;
    uint32_t number, index;
    struct piece *piece;
    struct request *request;

    if (urgent != NULL)
        *urgent = false;
    if (block >= picker->geometry.blocks)
        return PICKER_UNASKED;
    number = (uint32_t)(block / picker->geometry.piece_blocks);
    piece = picker_piece(picker, number);
    index = (uint32_t)(block % picker->geometry.piece_blocks);
    request = piece != NULL ? request_of(source, piece, index) : NULL;
    if (request != NULL) {
        if (urgent != NULL)
            *urgent = request->urgency == PICKER_DEMAND;
        unlink_request(picker, request);
        pipeline_answered(source->pipe, now, &request->stamp, request->urgency == PICKER_DEMAND,
                          size);
        recycle(picker, request);
    } else if (source->cancelled > 0) {
        source->cancelled--;
        piece = picker_activate(picker, number);
    } else {
        return PICKER_UNASKED;
    }
    if (piece == NULL || piece->state[index] == BLOCK_RECEIVED ||
        picker_block(picker, piece, index) == BLOCK_PRESENT) {
        picker->spare++;
        if (piece != NULL)
            picker_settle(picker, piece);
        return PICKER_SPARE;
    }
    end_race(picker, piece, index);
    if (piece->state[index] == BLOCK_ASKED)
        piece->asked--;
    else
        piece->absent--;
    piece->state[index] = BLOCK_RECEIVED;
    piece->received++;
    picker_settle(picker, piece);
    return PICKER_TAKE;
}

void picker_present(struct picker *picker, uint64_t first, uint32_t count)
{
    for (uint64_t block = first; block < first + count; block++) {
        struct piece *piece =
            picker_piece(picker, (uint32_t)(block / picker->geometry.piece_blocks));
        uint32_t index = (uint32_t)(block % picker->geometry.piece_blocks);

        if (piece == NULL)
            continue;
        if (piece->state[index] == BLOCK_RECEIVED) {
            piece->received--;
            piece->state[index] = BLOCK_PRESENT;
        } else if (piece->state[index] == BLOCK_ASKED) {
            end_race(picker, piece, index);
            piece->asked--;
            piece->state[index] = BLOCK_PRESENT;
        } else {
            picker_block(picker, piece, index);
        }
        picker_settle(picker, piece);
    }
}

void picker_failed(struct picker *picker, uint64_t block)
{
    struct piece *piece = picker_piece(picker, (uint32_t)(block / picker->geometry.piece_blocks));
    uint32_t index = (uint32_t)(block % picker->geometry.piece_blocks);

    if (piece == NULL || piece->state[index] != BLOCK_RECEIVED)
        return;
    piece->received--;
    piece->state[index] = BLOCK_ABSENT;
    piece->absent++;
    picker->version++;
    picker_settle(picker, piece);
}

void picker_lost(struct picker *picker)
{
    picker->version++;
    for (uint32_t i = 0; i < picker->geometry.pieces; i++) {
        struct piece *piece = picker_piece(picker, i);
        uint64_t first;
        uint32_t count;

        geometry_piece(&picker->geometry, i, &first, &count);
        if (piece != NULL) {
            for (uint32_t k = 0; k < count; k++)
                picker_block(picker, piece, k);
            picker_settle(picker, piece);
        } else if (picker->want_all && !bitmap_all(picker->present, first, count)) {
            rarity_list(picker->rarity, i, true); /* P3 */
        }
    }
}

void picker_rejected(struct picker_source *source, uint64_t first, uint32_t count, bool lacks)
{
    struct picker *picker = source->picker;
    uint64_t end = first + count;

    if (first >= picker->geometry.blocks)
        return;
    if (end > picker->geometry.blocks)
        end = picker->geometry.blocks;
    for (uint64_t block = first; block < end; block++) {
        struct piece *piece =
            picker_piece(picker, (uint32_t)(block / picker->geometry.piece_blocks));
        uint32_t index = (uint32_t)(block % picker->geometry.piece_blocks);
        struct request *request;

        if (lacks)
            picker_source_lacks(source, (uint32_t)(block / picker->geometry.piece_blocks));
        if (piece == NULL)
            continue;
        request = request_of(source, piece, index);
        if (request == NULL)
            continue;
        picker_drop(picker, request, false);
        picker_settle(picker, piece);
    }
    picker->version++;
}

/* One withdrawn request; false if it was none. */
static bool pass_on(struct picker_source *from, struct piece *piece, uint32_t index, int64_t now)
{
    struct picker *picker = from->picker;
    uint64_t version = picker->version;
    struct request *request = request_of(from, piece, index);
    struct picker_source *taker;
    bool urgent;

    if (request == NULL || !request->withdrawn)
        return false;
    taker = request->taker;
    urgent = request->urgency == PICKER_DEMAND; /* it became so meanwhile: picker_run's matter */
    picker_drop(picker, request, false);
    if (taker == NULL || taker->closed || urgent || piece->state[index] != BLOCK_ABSENT ||
        picker_block(picker, piece, index) != BLOCK_ABSENT ||
        !picker_source_has(taker, piece->number))
        return true;
    picker_ask(picker, taker, piece, index, PICKER_BACKGROUND, now);
    picker->version = version; /* nothing has become askable */
    return true;
}

uint32_t picker_withdrawn(struct picker_source *source, uint64_t first, uint32_t count, int64_t now)
{
    struct picker *picker = source->picker;
    uint64_t end = first + count;
    uint32_t withdrawn = 0;

    if (first >= picker->geometry.blocks)
        return 0;
    if (end > picker->geometry.blocks)
        end = picker->geometry.blocks;
    for (uint64_t block = first; block < end; block++) {
        struct piece *piece =
            picker_piece(picker, (uint32_t)(block / picker->geometry.piece_blocks));

        if (piece == NULL)
            continue;
        withdrawn += pass_on(source, piece, (uint32_t)(block % picker->geometry.piece_blocks), now);
        picker_settle(picker, piece);
    }
    return withdrawn;
}

bool picker_has_demands(const struct picker *picker)
{
    return picker->demands != NULL;
}

int64_t picker_next(const struct picker *picker)
{
    return picker->demands == NULL ? INT64_MAX : picker->next_late;
}

/* Notes which blocks of [first, end) are not here. */
static void note_gaps(const struct picker *picker, uint64_t first, uint64_t end,
                      struct picker_counts *out)
{
    uint64_t at = bitmap_next_clear(picker->present, first, end);

    while (at < end) {
        uint64_t until = bitmap_next_set(picker->present, at, end);
        struct picker_gap *last = out->gap_count > 0 ? &out->gaps[out->gap_count - 1] : NULL;

        if (last != NULL && last->first + last->count == at) {
            last->count += until - at;
        } else if (out->gap_count < PICKER_GAPS) {
            out->gaps[out->gap_count++] = (struct picker_gap){at, until - at};
        } else {
            out->more_gaps = true;
            return;
        }
        at = bitmap_next_clear(picker->present, until, end);
    }
}

/* Pieces that miss a block and that no source has. */
static void count_missing(const struct picker *picker, struct picker_counts *out)
{
    const struct picker_source *source;

    TAILQ_FOREACH(source, &picker->sources, entry) {
        if (source->all || (!source->told && source->guess))
            return;
    }
    for (uint32_t i = 0; i < picker->geometry.pieces; i++) {
        uint64_t first;
        uint32_t count;
        bool found = false;

        geometry_piece(&picker->geometry, i, &first, &count);
        TAILQ_FOREACH(source, &picker->sources, entry) {
            if (picker_source_has(source, i)) {
                found = true;
                break;
            }
        }
        if (found || bitmap_all(picker->present, first, count))
            continue;
        out->missing_pieces++;
        note_gaps(picker, first, first + count, out);
    }
}

void picker_count(const struct picker *picker, struct picker_counts *out)
{
    *out = (struct picker_counts){
        .in_flight = picker->in_flight,
        .active = picker->active,
        .asked = picker->asked,
        .duplicates = picker->duplicates,
        .spare = picker->spare,
    };
    if (picker->want_all || picker->demands != NULL)
        count_missing(picker, out);
}
