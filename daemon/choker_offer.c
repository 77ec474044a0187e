/* Suggestions: which pieces each fetcher is told to ask for, so that no two ask for the same one while others have not gone
 * out.
 *
 * Owns the offers of each opened file. Pure. An offer's way:
 *
 *   not offered --choker_offer--> offered --the fetcher asks--> asked --all its blocks went out--> forgotten
 *        ^                           |                            |
 *        +-- a later one is asked ---+------- it is cancelled ----+-- the file is closed
 *
 * Offers are asked for in order, so who asks for a later one has no use for those before it. */
#include "daemon/choker_private.h"

#include "base/mem.h"

/* So many pieces are suggested beyond what is asked for, and one more for each piece that is queued: a fetcher far away asks
 * for many before the next suggestion can reach it. */
#define OFFERS_LEAST 2

static void give_back(struct choker_file *file, uint32_t piece)
{
    file->pieces[piece].offered = false;
    file->offered_all = false;
}

static void remove_at(struct opened_file *opened, uint32_t i)
{
    give_back(opened->file, opened->offers[i].piece);
    opened->offer_count--;
    memmove(&opened->offers[i], &opened->offers[i + 1],
            (opened->offer_count - i) * sizeof(opened->offers[0]));
}

static bool went_out(const struct choker_file *file, uint32_t number)
{
    uint64_t first;
    uint32_t count;

    geometry_piece(&file->geometry, number, &first, &count);
    return file->pieces[number].blocks >= count;
}

/* The next piece that never went out and is nobody's; geometry.pieces if there is none. */
static uint32_t next_piece(struct choker_file *file)
{
    uint32_t pieces = file->geometry.pieces;

    for (uint32_t steps = 0; steps < pieces && !file->offered_all; steps++) {
        uint32_t number = file->cursor;
        const struct sent_piece *piece = &file->pieces[number];

        file->cursor = (uint32_t)(((uint64_t)file->cursor + file->stride) % pieces);
        if (!piece->offered && piece->current == 0 && !went_out(file, number))
            return number;
    }
    file->offered_all = true;
    return pieces;
}

void choker_offer(struct opened_file *opened)
{
    struct choker_file *file = opened->file;
    struct choker *choker = opened->link->choker;
    uint32_t fresh[CHOKER_OFFERS], count = 0, open = 0, wanted;

    if (!file->complete || file->unsent == 0 || !file->several || file->geometry.pieces < 2)
        return;
    for (uint32_t i = opened->offer_count; i-- > 0;) {
        if (opened->offers[i].asked && went_out(file, opened->offers[i].piece))
            remove_at(opened, i);
    }
    for (uint32_t i = 0; i < opened->offer_count; i++)
        open += !opened->offers[i].asked;
    wanted = OFFERS_LEAST + request_queue_blocks(opened->link->queue) / file->geometry.piece_blocks;
    if (wanted > CHOKER_OFFERS)
        wanted = CHOKER_OFFERS;
    if (opened->offers == NULL)
        opened->offers = xcalloc(2 * CHOKER_OFFERS, sizeof(*opened->offers));
    while (open + count < wanted && opened->offer_count < 2 * CHOKER_OFFERS) {
        uint32_t piece = next_piece(file);

        if (piece == file->geometry.pieces)
            break;
        file->pieces[piece].offered = true;
        opened->offers[opened->offer_count++] = (struct offer){.piece = piece};
        fresh[count++] = piece;
    }
    if (count > 0)
        choker->actions.suggest(opened->link->owner, opened->number, fresh, count);
}

/* Which offer the run touches; offer_count: none. */
static uint32_t touched(const struct opened_file *opened, struct block_run run)
{
    uint32_t piece_blocks = opened->file->geometry.piece_blocks, i;

    for (i = 0; i < opened->offer_count; i++) {
        uint64_t first = (uint64_t)opened->offers[i].piece * piece_blocks;

        if (run.first < first + piece_blocks && first < run.first + run.count)
            break;
    }
    return i;
}

void choker_offer_asked(struct opened_file *opened, struct block_run run)
{
    uint32_t at = touched(opened, run);

    if (at < opened->offer_count && !opened->offers[at].asked) {
        opened->offers[at].asked = true;
        for (uint32_t i = at; i-- > 0;) {
            if (!opened->offers[i].asked)
                remove_at(opened, i);
        }
    }
    choker_offer(opened);
}

void choker_offer_cancelled(struct opened_file *opened, struct block_run run)
{
    uint32_t at = touched(opened, run);

    if (at < opened->offer_count && opened->offers[at].asked)
        remove_at(opened, at);
}

void choker_offer_end(struct opened_file *opened)
{
    while (opened->offer_count > 0)
        remove_at(opened, opened->offer_count - 1);
    free(opened->offers);
    opened->offers = NULL;
}

bool choker_offered_to(const struct opened_file *opened, uint32_t piece)
{
    for (uint32_t i = 0; i < opened->offer_count; i++) {
        if (opened->offers[i].piece == piece)
            return true;
    }
    return false;
}
