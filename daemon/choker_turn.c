/* The choker's decision: the next job, out of all that is queued.
 *
 * Owns nothing; reads what choker.c keeps. Pure.
 *
 * Who occupies a slot: a link with more than SLOT_BYTES pending, that is, one whose socket does not take what it is given at
 * once; unless it has taken nothing for STALLED, as then the slot would serve nobody. A
 * piece that was begun goes on before another is begun; a new one is begun for the best of all links, and only if a slot is
 * free. With one link alone there is nothing to decide: its queue is answered in order. */
#include "daemon/choker_private.h"

#include "base/check.h"
#include "crypto/merkle.h"

#define HELD_MOST                                                                                  \
    2 /* times what may go out in a tenth of a second: sockets that hold more together need no other one */
#define SLOT_BYTES       (2 * BLOCK_SIZE) /* … or half of what a link may have pending, if that is less */
#define STALLED          (500 * NS_PER_MS)
#define PIECES_LOOKED_AT 64 /* of one link's queue */
#define BEGUN_FEW                                                                                  \
    16 /* links, in order of which a few looks at all of them are cheaper than one list */
#define REFUSAL_LASTS                                                                              \
    (100 * NS_PER_MS) /* so late does the optimistic slot, or a link that stalls, come at most */
/* What a fetcher says that it can pass on counts within these bounds, of what the own uplink carries: if that is less than
 * theirs, each can pass on all of it; and who lies gains little. */
#define PASSES_ON_MOST   2.0
#define PASSES_ON_LEAST  (1 / 16.0)
#define OPTIMISTIC_EVERY 16              /* pieces */
#define OPTIMISTIC_WAIT  (10 * NS_PER_S) /* who waited less long is not helped out of turn */

/* What so many bytes count for in the turns of accounts: choker.h, "Who is given what". */
static uint64_t in_turns(const struct choker *choker, const struct account *account,
                         const struct choker_file *file, uint64_t bytes)
{
    double share;

    if (!file->complete || file->unsent == 0 || account->passes_on == 0 || choker->best == 0)
        return bytes;
    share = (double)account->passes_on / choker->best;
    if (share > PASSES_ON_MOST)
        share = PASSES_ON_MOST;
    if (share < PASSES_ON_LEAST)
        share = PASSES_ON_LEAST;
    return (uint64_t)((double)bytes / share);
}

static void spend(struct choker *choker, struct choker_link *link, struct choker_file *file,
                  const struct block_run *run)
{
    uint64_t bytes = (uint64_t)run->count * BLOCK_SIZE;

    bucket_spend(&choker->bucket, bytes);
    bucket_spend(&file->bucket, bytes);
    if (choker->virtual_time < link->account->served)
        choker->virtual_time = link->account->served;
    link->account->served += in_turns(choker, link->account, file, bytes);
}

/* Whether the content's own limit lets a block go; notes when, if not. */
static bool file_may(struct choker *choker, struct choker_file *file, int64_t now)
{
    int64_t wake;

    if (bucket_room(&file->bucket, now) > 0)
        return true;
    wake = now + bucket_wait(&file->bucket, 1);
    if (wake < choker->wake)
        choker->wake = wake;
    return false;
}

/* Blocks out of `most` that the limits allow at once: at least one, as debts are waited out. */
static uint32_t within_limits(struct choker *choker, struct choker_file *file, uint32_t most,
                              int64_t now)
{
    uint64_t room = bucket_room(&choker->bucket, now), own = bucket_room(&file->bucket, now);

    if (own < room)
        room = own;
    if (room == UINT64_MAX || room / BLOCK_SIZE >= most)
        return most;
    return room < BLOCK_SIZE ? 1 : (uint32_t)(room / BLOCK_SIZE);
}

static bool give(struct choker_link *link, struct opened_file *opened, enum urgency urgency,
                 struct block_run span, uint32_t most, int64_t now, struct choker_turn *turn)
{
    struct choker *choker = link->choker;

    most = within_limits(choker, opened->file, most, now);
    if (!request_queue_take(link->queue, urgency, span, most, &turn->run))
        return false;
    turn->owner = link->owner;
    turn->urgency = urgency;
    link->waits = now;
    if (urgency != URGENT_DEMAND) {
        if (choker->actions.pending(link->owner) <= choker->slot_bytes)
            link->took = now; /* it begins again */
        choker_set_begun(link, true);
    }
    spend(choker, link, opened->file, &turn->run);
    choker_mark_sent(opened->file, turn->run);
    choker_list(link, now);
    return true;
}

/* --- demand and prefetch ------------------------------------------------------------------------------------------------- */
/* The first run of a class whose content may be sent; NULL: none. */
static const struct block_run *first_of(struct choker_link *link, enum urgency urgency, int64_t now)
{
    const struct block_run *run;
    const void *at = NULL;

    while ((run = request_queue_each(link->queue, urgency, &at)) != NULL) {
        struct opened_file *opened = choker_file_of(link, run->file);

        CHECK(opened != NULL);
        if (file_may(link->choker, opened->file, now))
            return run;
    }
    return NULL;
}

/* In order of asking within a link, fair among accounts. */
static bool take_in_order(struct choker *choker, enum urgency urgency, int64_t now,
                          struct choker_turn *turn)
{
    struct choker_link *link, *best = NULL;
    const struct block_run *run = NULL;
    uint32_t most = 0;

    if (choker->queued[urgency] == 0)
        return false;
    DL_FOREACH(choker->links, link) {
        const struct block_run *first;
        uint32_t room;

        if (link->queued[urgency] == 0)
            continue;
        if (best != NULL && (link->account->served > best->account->served ||
                             (link->account == best->account && link->waits >= best->waits)))
            continue;
        first = first_of(link, urgency, now);
        if (first == NULL)
            continue;
        room = choker->actions.room(link->owner, urgency == URGENT_DEMAND);
        if (room == 0)
            continue;
        best = link;
        run = first;
        most = room;
    }
    return best != NULL &&
           give(best, choker_file_of(best, run->file), urgency, *run, most, now, turn);
}

/* --- background ------------------------------------------------------------------------------------------------------------ */
struct room {
    uint32_t ahead;    /* bytes that one link may have pending */
    uint32_t occupied; /* slots … */
    uint32_t slots;    /* … of so many */
    bool enough;       /* sockets hold what the line takes for a while */
};

/* Whether its socket has taken nothing for long, though there is something. */
static bool stalled(const struct choker_link *link, uint32_t pending, int64_t now)
{
    return pending > link->choker->slot_bytes && now - link->took >= STALLED;
}

static struct block_run span_of(const struct opened_file *opened, uint32_t piece)
{
    struct block_run span = {.file = opened->number};

    geometry_piece(&opened->file->geometry, piece, &span.first, &span.count);
    return span;
}

/* How often a piece went out, as far as this link is concerned: one that was suggested to another is as good as sent. */
static uint32_t copies_for(const struct opened_file *opened, uint32_t piece)
{
    const struct choker_file *file = opened->file;
    uint32_t copies = choker_piece_copies(file, piece);

    if (file->pieces != NULL && file->pieces[piece].offered && !choker_offered_to(opened, piece))
        copies++;
    return copies;
}

/* The piece sent least of what the link has queued; false: nothing that may be sent. */
static bool look(struct choker_link *link, const struct room *room, int64_t now)
{
    uint32_t pending = link->choker->actions.pending(link->owner);
    const struct block_run *run;
    const void *at = NULL;
    unsigned looked = 0;

    link->best_file = NULL;
    if (pending >= room->ahead || stalled(link, pending, now) ||
        link->choker->actions.room(link->owner, false) == 0)
        return false;
    while ((run = request_queue_each(link->queue, URGENT_BACKGROUND, &at)) != NULL &&
           looked < PIECES_LOOKED_AT) {
        struct opened_file *opened = choker_file_of(link, run->file);
        uint32_t piece_blocks, piece, last;

        CHECK(opened != NULL);
        if (!file_may(link->choker, opened->file, now))
            continue;
        piece_blocks = opened->file->geometry.piece_blocks;
        last = (uint32_t)((run->first + run->count - 1) / piece_blocks);
        for (piece = (uint32_t)(run->first / piece_blocks);
             piece <= last && looked++ < PIECES_LOOKED_AT; piece++) {
            uint32_t copies = copies_for(opened, piece);

            if (link->best_file != NULL && copies >= link->best_copies)
                continue;
            link->best_file = opened;
            link->best_piece = piece;
            link->best_copies = copies;
            if (copies == 0)
                return true; /* there is no better one */
        }
    }
    return link->best_file != NULL;
}

/* Whether `a` goes before `b`, where both are offered what is sent least of their contents. */
static bool before(const struct choker_link *a, const struct choker_link *b)
{
    if (a->account->served != b->account->served)
        return a->account->served < b->account->served;
    return a->waits < b->waits;
}

/* The best of all links, or who has waited longest, for the optimistic slot. The first look finds what is sent least of each
 * content; whoever asks for something else of it stands back. */
static struct choker_link *best_of_all(struct choker *choker, const struct room *room, int64_t now)
{
    struct choker_link *link, *best = NULL, *longest = NULL;

    choker->pass++;
    DL_FOREACH(choker->links, link) {
        struct choker_file *file;

        if (!look(link, room, now))
            continue;
        file = link->best_file->file;
        if (file->least_pass != choker->pass || link->best_copies < file->least) {
            file->least_pass = choker->pass;
            file->least = link->best_copies;
        }
    }
    DL_FOREACH(choker->links, link) {
        if (link->best_file == NULL)
            continue;
        if (longest == NULL || link->waits < longest->waits)
            longest = link;
        if (link->best_copies <= link->best_file->file->least &&
            (best == NULL || before(link, best)))
            best = link;
    }
    if (longest != NULL && choker->since_optimistic >= OPTIMISTIC_EVERY &&
        now - longest->waits > OPTIMISTIC_WAIT) {
        choker->since_optimistic = 0;
        best = longest;
    }
    return best;
}

/* How many links occupy a slot, `but` not counted, and what all of them have pending (*held) if they take any. Those that have
 * nothing pending any more leave the list of those that do, so that few are looked at, however many there are. */
static uint32_t occupied(struct choker *choker, int64_t now, const struct choker_link *but,
                         uint64_t *held)
{
    struct choker_link *link, *next;
    uint32_t count = 0;

    *held = 0;

    for (link = choker->begun; link != NULL; link = next) {
        uint32_t pending = choker->actions.pending(link->owner);

        next = link->begun_next;
        if (pending == 0)
            choker_set_begun(link, false);
        if (pending < link->seen)
            link->took = now;
        link->seen = pending;
        if (stalled(link, pending, now))
            continue;
        *held += pending;
        count += link != but && pending > choker->slot_bytes;
    }
    return count;
}

static void set_current(struct choker_link *link, const struct opened_file *opened, uint32_t piece)
{
    if (link->busy) {
        struct opened_file *old = choker_file_of(link, link->current_file);

        if (old != NULL && old->file->pieces != NULL)
            old->file->pieces[link->current_piece].current--;
    }
    link->busy = opened != NULL;
    if (opened == NULL)
        return;
    link->current_file = opened->number;
    link->current_piece = piece;
    if (opened->file->pieces != NULL)
        opened->file->pieces[piece].current++;
}

/* Whether the link may be given something: it has a slot, or there is one for it, and it has not enough. */
static bool may_take(const struct choker *choker, const struct choker_link *link,
                     const struct room *room)
{
    uint32_t pending = choker->actions.pending(link->owner);

    return pending < room->ahead &&
           (pending > choker->slot_bytes || (room->occupied < room->slots && !room->enough));
}

/* How many blocks it may be given now: what it may have pending is not exceeded by more than one. */
static uint32_t blocks_for(struct choker_link *link, const struct room *room)
{
    struct choker *choker = link->choker;
    uint32_t pending = choker->actions.pending(link->owner), own, most;

    if (pending >= room->ahead)
        return 0;
    own = (room->ahead - pending + BLOCK_SIZE - 1) / BLOCK_SIZE;
    most = choker->actions.room(link->owner, false);
    return own < most ? own : most;
}

/* The rest of the piece that was begun for this link. */
static bool go_on_with(struct choker_link *link, int64_t now, const struct room *room,
                       struct choker_turn *turn)
{
    struct choker *choker = link->choker;
    struct opened_file *opened;
    uint32_t most;

    if (!link->busy || link->queued[URGENT_BACKGROUND] == 0 || !may_take(choker, link, room))
        return false;
    opened = choker_file_of(link, link->current_file);
    CHECK(opened != NULL);
    most = blocks_for(link, room);
    return most > 0 && file_may(choker, opened->file, now) &&
           give(link, opened, URGENT_BACKGROUND, span_of(opened, link->current_piece), most, now,
                turn);
}

/* The rest of pieces that were begun, in the order of the list. Where no slot is free only those that hold one may be given
 * more: as a rule they are few, and the others need not be looked at. */
static bool go_on(struct choker *choker, int64_t now, const struct room *room,
                  struct choker_turn *turn)
{
    struct choker_link *link, *next;
    uint64_t tried = 0;

    if (room->occupied < room->slots || choker->begun_count > BEGUN_FEW) {
        DL_FOREACH(choker->links, link) {
            if (go_on_with(link, now, room, turn))
                return true;
        }
        return false;
    }
    do {
        next = NULL;
        DL_FOREACH2(choker->begun, link, begun_next)
        {
            if (link->listed && link->listed_as > tried &&
                (next == NULL || link->listed_as < next->listed_as))
                next = link;
        }
        if (next == NULL)
            return false;
        tried = next->listed_as;
    } while (!go_on_with(next, now, room, turn));
    return true;
}

/* How many of those that hold a slot might be given more. */
static uint32_t takers(const struct choker *choker, const struct room *room)
{
    const struct choker_link *link;
    uint32_t count = 0;

    DL_FOREACH2(choker->begun, link, begun_next)
    {
        count += link->queued[URGENT_BACKGROUND] > 0 && may_take(choker, link, room) &&
                 choker->actions.room(link->owner, false) > 0;
    }
    return count;
}

/* Whether any link might be given a new piece: looking for the best of all is dear. Without a free slot only those who hold one
 * might, and none of them while who was refused one stands before them. */
static bool may_begin(const struct choker *choker, const struct room *room, int64_t now)
{
    const struct refusal *refusal = &choker->refusal;
    uint32_t count;

    if (room->occupied < room->slots)
        return true;
    if (room->occupied > room->slots)
        return false;
    count = takers(choker, room);
    return count > 0 &&
           (refusal->at == 0 || now - refusal->at > REFUSAL_LASTS || refusal->takers != count ||
            refusal->changes != choker->changes || refusal->ahead != room->ahead);
}

static void refuse(struct choker *choker, const struct choker_link *best, const struct room *room,
                   int64_t now)
{
    choker->slots.refused |= room->occupied >= room->slots;
    if (room->occupied >= room->slots)
        choker_slots_refused(choker, now);
    if (best != NULL && room->occupied == room->slots && choker->wake == INT64_MAX)
        choker->refusal = (struct refusal){.changes = choker->changes,
                                           .at = now,
                                           .takers = takers(choker, room),
                                           .ahead = room->ahead};
    if (choker->wake > now + STALLED) /* who occupies a slot may have stalled by then */
        choker->wake = now + STALLED;
}

static bool begin(struct choker *choker, int64_t now, const struct room *room,
                  struct choker_turn *turn)
{
    struct choker_link *best = may_begin(choker, room, now) ? best_of_all(choker, room, now) : NULL;
    struct opened_file *opened;

    if (best == NULL || !may_take(choker, best, room)) {
        refuse(choker, best, room, now);
        return false;
    }
    opened = best->best_file;
    if (best->best_copies > 0 && opened->file->unsent > 0)
        choker->repeats += opened->file->geometry.piece_blocks;
    choker->since_optimistic++;
    set_current(best, opened, best->best_piece);
    return give(best, opened, URGENT_BACKGROUND, span_of(opened, best->best_piece),
                blocks_for(best, room), now, turn);
}

bool choker_next(struct choker *choker, int64_t now, struct choker_turn *turn)
{
    struct choker_link *alone;
    struct room room;
    uint64_t held;

    choker->wake = INT64_MAX;
    if (choker->links == NULL)
        return false;
    if (bucket_room(&choker->bucket, now) == 0) {
        choker->wake = now + bucket_wait(&choker->bucket, 1);
        return false;
    }
    if (take_in_order(choker, URGENT_DEMAND, now, turn) ||
        take_in_order(choker, URGENT_PREFETCH, now, turn))
        return true;
    if (choker->queued[URGENT_BACKGROUND] == 0)
        return false;
    room.ahead = choker_ahead(choker);
    room.slots = choker_slots(choker);
    choker->slot_bytes = room.ahead / 2 < SLOT_BYTES ? room.ahead / 2 : SLOT_BYTES;
    alone = choker->links->next == NULL ? choker->links : NULL;
    room.occupied = occupied(choker, now, alone, &held);
    if (alone != NULL && room.occupied == 0) {
        if (alone->busy)
            set_current(alone, NULL, 0);
        return take_in_order(choker, URGENT_BACKGROUND, now, turn);
    }
    if (alone != NULL)
        room.occupied = occupied(choker, now, NULL, &held);
    room.enough = choker->rate > 0 && held > HELD_MOST * choker_ahead_all(choker);
    choker_slots_step(choker, now);
    return go_on(choker, now, &room, turn) || begin(choker, now, &room, turn);
}
