/* The picker's sources, and what is wanted of them: everything, demands, windows.
 *
 * Owns these lists and the counts of neighbours that have a piece; leaves pieces and requests to picker.c, choices to
 * picker_pick.c. Pure.
 *
 * W1  With want_all each source that was told of, and has not all, is counted in `rarity` for each piece in its map; those
 *     that have all are not counted, as they make no piece rarer than another.
 * W2  Demands stand in order of their deadlines; windows take turns. */
#include "daemon/picker_private.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/mem.h"

/* --- sources
 * ---------------------------------------------------------------------------------------------------
 */
struct picker_source *picker_source_new(struct picker *picker, struct pipeline *pipe, void *owner)
{
    struct picker_source *source = xcalloc(1, sizeof(*source));

    source->picker = picker;
    source->pipe = pipe;
    source->owner = owner;
    LIST_INIT(&source->requests);
    TAILQ_INSERT_TAIL(&picker->sources, source, entry);
    picker->source_count++;
    return source;
}

/* Drops all requests of a source. */
static void release_requests(struct picker_source *source, bool cancel)
{
    struct picker *picker = source->picker;
    struct request *request;

    while ((request = LIST_FIRST(&source->requests)) != NULL) {
        struct piece *piece = request->piece;

        picker_drop(picker, request, cancel);
        picker_settle(picker, piece);
    }
}

/* What was withdrawn for this source is nobody's. */
static void forget_taker(struct picker_source *taker)
{
    struct picker_source *source;
    struct request *request;

    if (taker->taking == 0)
        return;
    TAILQ_FOREACH(source, &taker->picker->sources, entry) {
        LIST_FOREACH(request, &source->requests, of_source)
        {
            if (request->taker == taker)
                request->taker = NULL;
        }
    }
    taker->taking = 0;
}

static void count_neighbour(struct picker_source *source, int change)
{
    struct picker *picker = source->picker;
    uint64_t end = picker->geometry.pieces;

    if (picker->rarity == NULL || source->map == NULL)
        return;
    for (uint64_t i = bitmap_next_set(source->map, 0, end); i < end;
         i = bitmap_next_set(source->map, i + 1, end))
        rarity_neighbour(picker->rarity, (uint32_t)i, change);
}

void picker_source_free(struct picker_source *source)
{
    struct picker *picker;

    if (source == NULL)
        return;
    picker = source->picker;
    release_requests(source, false);
    forget_taker(source);
    count_neighbour(source, -1);
    TAILQ_REMOVE(&picker->sources, source, entry);
    picker->source_count--;
    free(source->map);
    free(source->suggested);
    free(source);
}

void picker_source_guess(struct picker_source *source)
{
    if (source->told || source->guess)
        return;
    source->guess = true;
    source->picker->version++;
}

bool picker_source_told(struct picker_source *source, const uint8_t *pieces)
{
    const struct geometry *geometry = &source->picker->geometry;
    size_t bytes = bitmap_bytes(geometry->pieces);

    count_neighbour(source, -1);
    free(source->map);
    source->map = NULL;
    source->told = true;
    source->all = pieces == NULL;
    source->pieces = geometry->pieces;
    source->picker->version++;
    if (pieces == NULL)
        return true;
    source->pieces = (uint32_t)bitmap_count(pieces, 0, geometry->pieces);
    if (source->pieces == geometry->pieces) {
        source->all = true;
        return true;
    }
    source->map = malloc(bytes + 1);
    if (source->map == NULL) {
        source->pieces = 0;
        return false;
    }
    memcpy(source->map, pieces, bytes);
    count_neighbour(source, 1);
    return true;
}

void picker_source_have(struct picker_source *source, uint32_t piece)
{
    struct picker *picker = source->picker;

    if (source->all || piece >= picker->geometry.pieces)
        return;
    if (source->map == NULL) {
        source->map = calloc(1, bitmap_bytes(picker->geometry.pieces) + 1);
        source->told = true;
        if (source->map == NULL)
            return;
    }
    if (bitmap_test(source->map, piece))
        return;
    bitmap_set(source->map, piece);
    source->pieces++;
    source->dry =
        0; /* no other source can be asked for more than before, so no other is looked at again */
    if (picker->demands != NULL || picker->windows != NULL)
        picker->version++;
    if (source->pieces == picker->geometry.pieces) {
        /* From now on it counts as one that has all, which makes no piece rarer than another. */
        if (picker->rarity != NULL)
            rarity_neighbour(picker->rarity, piece, 1);
        picker_source_told(source, NULL);
    } else if (picker->rarity != NULL) {
        rarity_neighbour(picker->rarity, piece, 1);
    }
}

void picker_source_lacks(struct picker_source *source, uint32_t piece)
{
    struct picker *picker = source->picker;
    uint32_t pieces = picker->geometry.pieces;

    if (piece >= pieces)
        return;
    if (!source->told) {
        source->guess = false; /* the tracker was wrong; its own bitfield will tell */
        return;
    }
    if (source->all) {
        source->map = malloc(bitmap_bytes(pieces) + 1);
        if (source->map == NULL)
            return;
        memset(source->map, 0xff, bitmap_bytes(pieces));
        for (uint64_t i = pieces; i < 8 * bitmap_bytes(pieces); i++)
            bitmap_clear(source->map, i);
        source->all = false;
        count_neighbour(source, 1);
    }
    if (source->map == NULL || !bitmap_test(source->map, piece))
        return;
    bitmap_clear(source->map, piece);
    source->pieces--;
    if (picker->rarity != NULL)
        rarity_neighbour(picker->rarity, piece, -1);
}

void picker_source_suggests(struct picker_source *source, uint32_t piece)
{
    if (!source->picker->want_all || piece >= source->picker->geometry.pieces ||
        source->suggested_count == PICKER_SUGGESTED)
        return;
    if (source->suggested == NULL)
        source->suggested = xcalloc(PICKER_SUGGESTED, sizeof(*source->suggested));
    source->suggested[source->suggested_count++] = piece;
}

bool picker_source_has(const struct picker_source *source, uint32_t piece)
{
    if (piece >= source->picker->geometry.pieces)
        return false;
    if (source->all)
        return true;
    if (!source->told)
        return source->guess;
    return source->map != NULL && bitmap_test(source->map, piece);
}

uint32_t picker_source_pieces(const struct picker_source *source)
{
    return source->pieces;
}

void picker_source_close(struct picker_source *source, bool closed)
{
    if (source->closed && !closed)
        source->picker->version++;
    source->closed = closed;
}

uint32_t picker_source_in_flight(const struct picker_source *source)
{
    return source->in_flight;
}

void picker_source_withdraw(struct picker_source *source)
{
    release_requests(source, true);
}

/* --- what is wanted
 * -------------------------------------------------------------------------------------------- */
bool picker_want_all(struct picker *picker, bool all)
{
    struct picker_source *source;
    struct piece *piece, *next;

    if (all == picker->want_all)
        return true;
    if (!all) {
        picker->want_all = false;
        rarity_free(picker->rarity);
        picker->rarity = NULL;
        for (piece = TAILQ_FIRST(&picker->open); piece != NULL; piece = next) {
            next = TAILQ_NEXT(piece, entry);
            picker_settle(picker, piece);
        }
        return true;
    }
    picker->rarity = rarity_new(picker->geometry.pieces, picker->seed);
    if (picker->rarity == NULL)
        return false;
    picker->want_all = true;
    picker->version++;
    TAILQ_FOREACH(source, &picker->sources, entry)
        count_neighbour(source, 1);
    for (uint32_t i = 0; i < picker->geometry.pieces; i++) {
        uint64_t first;
        uint32_t count;

        geometry_piece(&picker->geometry, i, &first, &count);
        if (picker_piece(picker, i) == NULL && !bitmap_all(picker->present, first, count))
            rarity_list(picker->rarity, i, true);
    }
    return true;
}

void picker_copies(struct picker *picker, const uint8_t *copies, size_t count)
{
    if (picker->rarity != NULL)
        rarity_copies(picker->rarity, copies, count);
}

void picker_demand_add(struct picker *picker, struct picker_demand *demand, uint64_t first,
                       uint64_t count, int64_t deadline)
{
    struct picker_demand *before;

    CHECK(demand->picker == NULL && count > 0 && first + count <= picker->geometry.blocks);
    *demand = (struct picker_demand){.picker = picker,
                                     .first = first,
                                     .end = first + count,
                                     .cursor = first,
                                     .deadline = deadline};
    if (picker->demands == NULL) {
        demand->prev = demand->next = demand;
        picker->demands = demand;
        return;
    }
    before = picker->demands->prev; /* the last one; deadlines mostly come in order */
    while (before->deadline > deadline && before != picker->demands)
        before = before->prev;
    if (before->deadline > deadline) { /* it is the first one's turn to be second */
        before = picker->demands->prev;
        picker->demands = demand;
    }
    demand->prev = before;
    demand->next = before->next;
    before->next->prev = demand;
    before->next = demand;
}

void picker_demand_remove(struct picker_demand *demand)
{
    struct picker *picker = demand->picker;

    if (picker == NULL)
        return;
    demand->picker = NULL;
    if (picker->demands == demand)
        picker->demands = demand->next == demand ? NULL : demand->next;
    demand->prev->next = demand->next;
    demand->next->prev = demand->prev;
}

void picker_window_set(struct picker *picker, struct picker_window *window, uint64_t first,
                       uint64_t count)
{
    if (count == 0) {
        if (window->picker == NULL)
            return;
        CHECK(window->picker == picker);
        if (picker->windows == window)
            picker->windows = window->next == window ? NULL : window->next;
        window->prev->next = window->next;
        window->next->prev = window->prev;
        window->picker = NULL;
        return;
    }
    CHECK(first + count <= picker->geometry.blocks);
    if (window->picker == NULL) {
        *window = (struct picker_window){.picker = picker, .cursor = first};
        if (picker->windows == NULL) {
            window->prev = window->next = window;
            picker->windows = window;
        } else {
            window->prev = picker->windows->prev;
            window->next = picker->windows;
            window->prev->next = window;
            window->next->prev = window;
        }
    }
    if (first < window->first || window->cursor < first || window->cursor > first + count)
        window->cursor = first;
    if (first + count > window->end)
        picker->version++;
    window->first = first;
    window->end = first + count;
}

static bool wanted(const struct picker *picker, uint64_t block)
{
    const struct picker_demand *demand = picker->demands;
    const struct picker_window *window = picker->windows;

    if (demand != NULL) {
        do {
            if (block >= demand->first && block < demand->end)
                return true;
            demand = demand->next;
        } while (demand != picker->demands);
    }
    if (window != NULL) {
        do {
            if (block >= window->first && block < window->end)
                return true;
            window = window->next;
        } while (window != picker->windows);
    }
    return false;
}

void picker_trim(struct picker *picker)
{
    struct picker_source *source;

    if (picker->want_all || picker->in_flight == 0)
        return;
    TAILQ_FOREACH(source, &picker->sources, entry) {
        struct request *request, *next;

        for (request = LIST_FIRST(&source->requests); request != NULL; request = next) {
            struct piece *piece = request->piece;

            next = LIST_NEXT(request, of_source);
            if (wanted(picker, piece->first + request->index))
                continue;
            picker_drop(picker, request, true);
            picker_settle(picker, piece);
        }
    }
}
