/* The choker's state: fetchers, what they have open, what they have asked for.
 *
 * Owns links' queues and what is known of each open content. Leaves suggestions to choker_offer.c, decisions to choker_turn.c,
 * the number of slots to choker_slots.c. Pure; memory as choker.h says.
 *
 * C1  a link is in choker->links exactly when its queue is not empty.
 * C2  sent_piece.current is the number of links that are busy with the piece; .offered is set exactly when one opened_file
 *     has it among its offers.
 * C3  choker->begun holds each link whose owner has bulk pending, and may hold some that have none any more; choker->links
 *     stands in the order of listed_as.
 * C4  file.unsent is the number of its pieces of which fewer blocks went out than they have. */
#include "daemon/choker_private.h"

#include "base/check.h"
#include "base/mem.h"

struct choker *choker_new(const struct choker_actions *actions, int64_t now)
{
    struct choker *choker = xcalloc(1, sizeof(*choker));

    choker->actions = *actions;
    choker->wake = INT64_MAX;
    choker->rate_at = now;
    choker_slots_init(choker, now);
    return choker;
}

void choker_free(struct choker *choker)
{
    if (choker == NULL)
        return;
    CHECK(choker->links == NULL && choker->files == NULL && choker->accounts == NULL);
    free(choker);
}

/* --- links ------------------------------------------------------------------------------------------------------------- */
struct choker_link *choker_link_new(struct choker *choker, void *owner, uint64_t number)
{
    struct choker_link *link = xcalloc(1, sizeof(*link));
    struct account *account;

    HASH_FIND(hh, choker->accounts, &number, sizeof(number), account);
    if (account == NULL) {
        account = xcalloc(1, sizeof(*account));
        account->number = number;
        HASH_ADD(hh, choker->accounts, number, sizeof(account->number), account);
    }
    account->links++;
    link->choker = choker;
    link->owner = owner;
    link->account = account;
    link->queue = request_queue_new();
    return link;
}

unsigned choker_link_siblings(const struct choker_link *link)
{
    return link->account->links;
}

void choker_link_free(struct choker_link *link)
{
    struct choker *choker;
    struct opened_file *opened, *next;

    if (link == NULL)
        return;
    choker = link->choker;
    HASH_ITER(hh, link->files, opened, next)
        choker_close(link, opened->number);
    CHECK(!link->listed);
    choker_set_begun(link, false);
    if (--link->account->links == 0) {
        HASH_DEL(choker->accounts, link->account);
        free(link->account);
    }
    request_queue_free(link->queue);
    free(link);
}

void choker_link_passes_on(struct choker_link *link, uint64_t rate)
{
    link->account->passes_on = rate;
}

void choker_list(struct choker_link *link, int64_t now)
{
    struct choker *choker = link->choker;
    bool wanted = request_queue_blocks(link->queue) > 0;

    choker->changes++;
    for (int i = 0; i < URGENCIES; i++) {
        uint32_t queued = request_queue_class(link->queue, (enum urgency)i);

        choker->queued[i] += queued;
        choker->queued[i] -= link->queued[i];
        link->queued[i] = queued;
    }
    if (wanted == link->listed)
        return;
    link->listed = wanted;
    if (!wanted) {
        DL_DELETE(choker->links, link);
        return;
    }
    link->waits = now;
    if (link->account->served < choker->virtual_time)
        link->account->served = choker->virtual_time;
    link->listed_as = ++choker->listings;
    DL_APPEND(choker->links, link);
}

void choker_set_begun(struct choker_link *link, bool begun)
{
    struct choker *choker = link->choker;

    if (link->begun == begun)
        return;
    link->begun = begun;
    if (begun) {
        DL_APPEND2(choker->begun, link, begun_prev, begun_next);
        choker->begun_count++;
    } else {
        DL_DELETE2(choker->begun, link, begun_prev, begun_next);
        choker->begun_count--;
    }
}

uint32_t choker_begun(const struct choker *choker)
{
    return choker->begun_count;
}

/* --- contents ---------------------------------------------------------------------------------------------------------- */
static uint32_t greatest_common_divisor(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

static struct choker_file *file_of_key(const struct choker *choker, const void *key)
{
    struct choker_file *file;

    HASH_FIND_PTR(choker->files, &key, file);
    return file;
}

static struct choker_file *file_new(struct choker *choker, const void *key,
                                    const struct geometry *geometry)
{
    struct choker_file *file = xcalloc(1, sizeof(*file));

    file->key = key;
    file->geometry = *geometry;
    file->pieces = calloc(geometry->pieces + 1, sizeof(*file->pieces));
    file->unsent = file->pieces != NULL ? geometry->pieces : 0;
    /* A walk over all pieces in steps near the golden section of them, so that what goes out early is spread evenly. */
    file->stride = (uint32_t)((double)geometry->pieces * 0.6180339887) | 1;
    while (geometry->pieces > 1 && greatest_common_divisor(file->stride, geometry->pieces) != 1)
        file->stride++;
    HASH_ADD_PTR(choker->files, key, file);
    return file;
}

struct opened_file *choker_file_of(struct choker_link *link, uint32_t number)
{
    struct opened_file *opened = link->last_file;

    if (opened != NULL && opened->number == number)
        return opened;
    HASH_FIND(hh, link->files, &number, sizeof(number), opened);
    link->last_file = opened;
    return opened;
}

void choker_open(struct choker_link *link, uint32_t number, const void *key,
                 const struct geometry *geometry, bool complete)
{
    struct choker *choker = link->choker;
    struct choker_file *file = file_of_key(choker, key);
    struct opened_file *opened = xcalloc(1, sizeof(*opened));

    CHECK(choker_file_of(link, number) == NULL && geometry->pieces > 0);
    if (file == NULL)
        file = file_new(choker, key, geometry);
    file->complete = complete;
    opened->number = number;
    opened->file = file;
    opened->link = link;
    HASH_ADD(hh, link->files, number, sizeof(opened->number), opened);
    DL_APPEND(file->opened, opened);
    link->last_file = opened;
    if (!file->several && file->opened->link != link) {
        file->several = true; /* those who were here learn that they are not alone */
        DL_FOREACH(file->opened, opened)
            choker_offer(opened);
    } else {
        choker_offer(opened);
    }
}

/* The piece that was being sent to this link is so no longer. */
static void end_current(struct choker_link *link)
{
    struct opened_file *opened;

    if (!link->busy)
        return;
    link->busy = false;
    opened = choker_file_of(link, link->current_file);
    if (opened != NULL && opened->file->pieces != NULL)
        opened->file->pieces[link->current_piece].current--;
}

void choker_close(struct choker_link *link, uint32_t number)
{
    struct choker *choker = link->choker;
    struct opened_file *opened = choker_file_of(link, number);

    if (opened == NULL)
        return;
    if (link->busy && link->current_file == number)
        end_current(link);
    request_queue_cancel(link->queue, (struct block_run){.file = number});
    choker_list(link, 0);
    choker_offer_end(opened);
    link->last_file = NULL;
    HASH_DEL(link->files, opened);
    DL_DELETE(opened->file->opened, opened);
    if (opened->file->opened == NULL) {
        HASH_DEL(choker->files, opened->file);
        free(opened->file->pieces);
        free(opened->file);
    }
    free(opened);
}

uint32_t choker_piece_copies(const struct choker_file *file, uint32_t number)
{
    const struct sent_piece *piece;
    uint64_t first;
    uint32_t count;

    if (file->pieces == NULL)
        return 0;
    piece = &file->pieces[number];
    geometry_piece(&file->geometry, number, &first, &count);
    return piece->blocks / count + piece->current;
}

void choker_mark_sent(struct choker_file *file, struct block_run run)
{
    uint64_t end = run.first + run.count;

    file->spent.sent += run.count;
    if (file->pieces == NULL)
        return;
    for (uint64_t at = run.first; at < end;) {
        uint32_t number = (uint32_t)(at / file->geometry.piece_blocks), count, blocks;
        struct sent_piece *piece = &file->pieces[number];
        uint64_t first, piece_end;

        geometry_piece(&file->geometry, number, &first, &count);
        piece_end = first + count;
        blocks = (uint32_t)((end < piece_end ? end : piece_end) - at);
        if (piece->blocks < count && piece->blocks + blocks >= count)
            file->unsent--;
        piece->blocks =
            piece->blocks + blocks > UINT16_MAX ? UINT16_MAX : (uint16_t)(piece->blocks + blocks);
        at += blocks;
    }
    if (file->unsent == 0 && file->spent.until_out == 0)
        file->spent.until_out = file->spent.sent;
}

/* --- requests ---------------------------------------------------------------------------------------------------------- */
bool choker_request(struct choker_link *link, struct block_run run, enum urgency urgency,
                    int64_t now)
{
    struct opened_file *opened = choker_file_of(link, run.file);

    CHECK(opened != NULL);
    if (!request_queue_push(link->queue, run, urgency))
        return false;
    choker_list(link, now);
    choker_offer_asked(opened, run);
    return true;
}

void choker_cancel(struct choker_link *link, struct block_run run)
{
    struct opened_file *opened = choker_file_of(link, run.file);

    if (opened == NULL)
        return;
    request_queue_cancel(link->queue, run);
    choker_list(link, 0);
    choker_offer_cancelled(opened, run);
}

bool choker_withdraw(struct choker_link *link, struct block_run run, struct block_run *out)
{
    struct opened_file *opened = choker_file_of(link, run.file);

    if (opened == NULL || !request_queue_take(link->queue, URGENT_BACKGROUND, run, run.count, out))
        return false;
    choker_list(link, 0);
    choker_offer_cancelled(opened, *out);
    return true;
}

uint32_t choker_queued(const struct choker_link *link)
{
    return request_queue_blocks(link->queue);
}

/* --- limits and figures -------------------------------------------------------------------------------------------------- */
void choker_limit(struct choker *choker, uint64_t rate, int64_t now)
{
    bucket_set(&choker->bucket, rate, now);
}

void choker_limit_file(struct choker *choker, const void *key, uint64_t rate, int64_t now)
{
    struct choker_file *file = file_of_key(choker, key);

    if (file != NULL)
        bucket_set(&file->bucket, rate, now);
}

int64_t choker_wake(const struct choker *choker)
{
    return choker->wake;
}

void choker_count(const struct choker *choker, struct choker_status *out)
{
    struct choker_link *link;

    *out = (struct choker_status){
        .slots = choker_slots(choker), .rate = (uint64_t)choker->rate, .repeats = choker->repeats};
    DL_FOREACH(choker->links, link)
        out->active += link->busy;
}

struct choker_spent choker_spent(const struct choker *choker, const void *key)
{
    const struct choker_file *file = file_of_key(choker, key);

    return file == NULL ? (struct choker_spent){0} : file->spent;
}

uint32_t choker_unsent(const struct choker *choker, const void *key)
{
    const struct choker_file *file = file_of_key(choker, key);

    return file == NULL ? 0 : file->unsent;
}
