/* The picker's choices: which block from which source. State and events are in picker.c.
 *
 * Pure. Demands are pushed: for each block the source is chosen that will deliver it soonest. All
 * else is pulled: a source with room takes what suits it. Scans remember where they stopped and
 * begin again only when the picker's `version` says that something may have become askable. */
#include "daemon/picker_private.h"

#include "base/bitmap.h"
#include "proto/limits.h"

#define ASKED_MOST 3 /* sources asked for one block at the same time, a reader waiting */
#define SECOND_EVERY                                                                               \
    (50 * NS_PER_MS) /* how often a source with nothing to do looks for second requests … */
#define SECOND_LAST (5 * NS_PER_MS) /* … and when only the last blocks are left */
#define SECONDS_MOST                                                                               \
    32 /* second requests in the background under way at once: what they may waste */
#define SECOND_GRACE                                                                               \
    (100 * NS_PER_MS) /* so much longer than usual a source that was asked back keeps silent */
#define SILENT       (3 * NS_PER_S)
#define TAKE_EVERY   (20 * NS_PER_MS) /* how often such a source looks what it could take over … */
#define TAKE_FASTER  2                /* … that it would bring so many times sooner */
#define TAKE_QUIET   (250 * NS_PER_MS) /* … from one that has been silent for so long */
#define SERVER_TAKES 48 /* blocks that a server has in hand, beside what is in its queue */
#define FASTER_BY    3 /* a source that many times slower is not asked for what will be read next */

static bool asked_of(const struct piece *piece, uint32_t index, const struct picker_source *source)
{
    const struct request *request;

    for (request = piece->requests[index]; request != NULL; request = request->next) {
        if (request->source == source)
            return true;
    }
    return false;
}

/* --- demands
 * ---------------------------------------------------------------------------------------------------
 */
/* The source that will deliver the block soonest, out of those not asked for it yet; NULL if there
 * is none, or if it is worth waiting until it has room (*no_room). */
static struct picker_source *soonest(struct picker *picker, const struct piece *piece,
                                     uint32_t index, int64_t now, bool *no_room)
{
    struct picker_source *source, *best = NULL, *roomy = NULL;
    int64_t best_time = 0, roomy_time = 0;
    unsigned candidates = 0;

    TAILQ_FOREACH(source, &picker->sources, entry) {
        int64_t expect;

        if (source->closed || !picker_source_has(source, piece->number) ||
            asked_of(piece, index, source))
            continue;
        if (source->pipe->in_flight >= LIMIT_QUEUED_BLOCKS) {
            *no_room = true;
            continue;
        }
        candidates++;
        expect = pipeline_expect(source->pipe, now, true);
        if (!source->told)
            expect += expect / 2;
        if (best == NULL || expect < best_time) {
            best = source;
            best_time = expect;
        }
        if (pipeline_urgent_room(source->pipe) > 0 && (roomy == NULL || expect < roomy_time)) {
            roomy = source;
            roomy_time = expect;
        }
    }
    if (candidates <= 1 || best == roomy)
        return best;
    if (roomy != NULL && roomy_time <= best_time + best_time / 2)
        return roomy;
    *no_room = true;
    return NULL;
}

/* Whether telling the source that a reader waits would bring the block sooner. What the server has taken from its queue
 * it can hurry no more; asking again then only makes it send the block twice. */
static bool worth_raising(const struct request *request, int64_t now)
{
    const struct pipeline *pipe = request->source->pipe;
    double rate = pipeline_rate(pipe);
    int64_t left = request->due - now, taken;

    if (rate <= 0)
        return false;
    taken = (int64_t)((double)SERVER_TAKES * BLOCK_SIZE * 1e9 / rate);
    return left > pipeline_expect(pipe, now, true) + taken;
}

/* A reader has reached what was asked for ahead of it. */
static void raise_requests(struct picker *picker, struct piece *piece, uint32_t index, int64_t now)
{
    struct request *request;

    for (request = piece->requests[index]; request != NULL; request = request->next) {
        struct picker_source *source = request->source;
        int64_t late;

        if (request->urgency == PICKER_DEMAND)
            continue;
        request->urgency = PICKER_DEMAND;
        pipeline_raised(source->pipe);
        late = now + pipeline_patience(source->pipe, now, true);
        if (late < request->late)
            request->late = late;
        if (request->late < piece->late)
            piece->late = request->late;
        picker_note_late(picker, piece);
        if (request->late < picker->next_late)
            picker->next_late = request->late;
        if (!worth_raising(request, now))
            continue;
        source->cancelled++; /* it may come twice */
        picker->actions.raise(picker->arg, source->owner, piece->first + index);
    }
}

/* Asks another source for a demanded block that all who were asked for it owe for too long. */
static void hedge(struct picker *picker, struct piece *piece, uint32_t index, int64_t now)
{
    const struct request *request;
    struct picker_source *source;
    int64_t late = 0;
    unsigned asked = 0;
    bool no_room = false;

    for (request = piece->requests[index]; request != NULL; request = request->next) {
        asked++;
        if (request->late > late)
            late = request->late;
    }
    if (late > now) {
        if (late < picker->next_late)
            picker->next_late = late;
        return;
    }
    if (asked >= ASKED_MOST)
        return;
    source = soonest(picker, piece, index, now, &no_room);
    if (source != NULL)
        picker_ask(picker, source, piece, index, PICKER_DEMAND, now);
    else if (no_room && now + SECOND_EVERY < picker->next_late)
        picker->next_late = now + SECOND_EVERY;
}

/* One block of a demand; true if it found no source. */
static bool serve_block(struct picker *picker, struct piece *piece, uint32_t index, int64_t now,
                        bool look_late, bool *no_room)
{
    struct picker_source *source;

    switch (picker_block(picker, piece, index)) {
    case BLOCK_ABSENT:
        source = soonest(picker, piece, index, now, no_room);
        if (source == NULL)
            return true;
        picker_ask(picker, source, piece, index, PICKER_DEMAND, now);
        return false;
    case BLOCK_ASKED:
        raise_requests(picker, piece, index, now);
        if (look_late)
            hedge(picker, piece, index, now);
        return false;
    default:
        return false;
    }
}

static void serve(struct picker *picker, struct picker_demand *demand, int64_t now, bool look_late)
{
    uint32_t piece_blocks = picker->geometry.piece_blocks;
    uint64_t block, unserved = demand->end;
    struct piece *piece = NULL;
    bool no_room = false;

    if (demand->seen != picker->version || look_late) {
        demand->seen = picker->version;
        demand->cursor = demand->first;
        demand->stuck = 0;
    }
    if (demand->stuck == picker->version)
        return;
    block = bitmap_next_clear(picker->present, demand->cursor, demand->end);
    while (block < demand->end) {
        uint32_t number = (uint32_t)(block / piece_blocks);

        if (piece == NULL || piece->number != number) {
            if (piece != NULL)
                picker_settle(picker, piece);
            piece = picker_activate(picker, number);
        }
        if (piece != NULL &&
            serve_block(picker, piece, (uint32_t)(block % piece_blocks), now, look_late,
                        &no_room) &&
            unserved > block)
            unserved = block;
        block = bitmap_next_clear(picker->present, block + 1, demand->end);
    }
    if (piece != NULL)
        picker_settle(picker, piece);
    demand->cursor = unserved;
    if (unserved < demand->end && !no_room)
        demand->stuck = picker->version;
}

void picker_run(struct picker *picker, int64_t now)
{
    struct picker_demand *demand = picker->demands;
    bool look_late;

    if (demand == NULL) {
        picker->next_late = INT64_MAX;
        return;
    }
    look_late = now >= picker->next_late || picker->late_seen != picker->version;
    if (look_late)
        picker->next_late = INT64_MAX;
    picker->late_seen = picker->version;
    do {
        serve(picker, demand, now, look_late);
        demand = demand->next;
    } while (demand != picker->demands);
}

/* --- prefetch
 * --------------------------------------------------------------------------------------------------
 */
/* A source that is much faster than this one, or NULL. */
static const struct picker_source *much_faster(const struct picker_source *than, int64_t now)
{
    const struct picker_source *source, *best = NULL;
    int64_t best_time = pipeline_expect(than->pipe, now, false) / FASTER_BY;

    TAILQ_FOREACH(source, &than->picker->sources, entry) {
        int64_t expect;

        if (source == than || source->closed)
            continue;
        expect = pipeline_expect(source->pipe, now, false);
        if (expect < best_time) {
            best = source;
            best_time = expect;
        }
    }
    return best;
}

/* Asks for up to `most` blocks of a window. */
static uint32_t fill_window(struct picker_source *source, struct picker_window *window,
                            const struct picker_source *faster, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    uint32_t piece_blocks = picker->geometry.piece_blocks, asked = 0;
    uint64_t block, skipped = UINT64_MAX;
    struct piece *piece = NULL;

    if (window->seen != picker->version) {
        window->seen = picker->version;
        window->cursor = window->first;
    }
    block = bitmap_next_clear(picker->present, window->cursor, window->end);
    while (block < window->end && asked < most) {
        uint32_t number = (uint32_t)(block / piece_blocks);
        uint32_t index = (uint32_t)(block % piece_blocks);

        if (!picker_source_has(source, number) ||
            (faster != NULL && picker_source_has(faster, number))) {
            if (skipped > block)
                skipped = block;
            block = bitmap_next_clear(picker->present, (uint64_t)(number + 1) * piece_blocks,
                                      window->end);
            continue;
        }
        if (piece == NULL || piece->number != number) {
            if (piece != NULL)
                picker_settle(picker, piece);
            piece = picker_activate(picker, number);
        }
        if (piece != NULL && picker_block(picker, piece, index) == BLOCK_ABSENT) {
            picker_ask(picker, source, piece, index, PICKER_PREFETCH, now);
            asked++;
        }
        block = bitmap_next_clear(picker->present, block + 1, window->end);
    }
    if (piece != NULL)
        picker_settle(picker, piece);
    window->cursor = skipped < block ? skipped : block;
    return asked;
}

static uint32_t fill_prefetch(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    struct picker_window *window = picker->windows;
    const struct picker_source *faster;
    uint32_t asked = 0;

    if (window == NULL)
        return 0;
    faster = picker->source_count > 1 ? much_faster(source, now) : NULL;
    do {
        asked += fill_window(source, window, faster, most - asked, now);
        window = window->next;
    } while (window != picker->windows && asked < most);
    picker->windows = window; /* the next reader's turn */
    return asked;
}

/* --- background
 * ------------------------------------------------------------------------------------------------
 */
/* Asks for absent blocks of one piece, which may be gone afterwards. */
static uint32_t fill_piece(struct picker_source *source, struct piece *piece, uint32_t most,
                           int64_t now)
{
    struct picker *picker = source->picker;
    uint32_t asked = 0;

    for (uint32_t i = 0; i < piece->count && asked < most && piece->absent > 0; i++) {
        if (piece->state[i] != BLOCK_ABSENT || picker_block(picker, piece, i) != BLOCK_ABSENT)
            continue;
        picker_ask(picker, source, piece, i, PICKER_BACKGROUND, now);
        asked++;
    }
    picker_settle(picker, piece);
    return asked;
}

/* Whether this piece is better left to others: the source has all, someone who has not all has this piece as well, and there
 * are pieces that only sources like this one have. So what has left a seed once is fetched elsewhere while the seed gives
 * what has not. */
static bool spared(const struct picker_source *source, uint32_t number)
{
    const struct rarity *rarity = source->picker->rarity;

    return source->all && rarity_common(rarity) > 0 && rarity_neighbours(rarity, number) > 0;
}

static uint32_t fill_started(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    struct piece *piece, *next;
    uint32_t asked = 0;

    for (piece = TAILQ_FIRST(&picker->open); piece != NULL && asked < most; piece = next) {
        next = TAILQ_NEXT(piece, entry);
        if (picker_source_has(source, piece->number) && !spared(source, piece->number))
            asked += fill_piece(source, piece, most - asked, now);
    }
    return asked;
}

/* What the source itself proposes: pieces that nobody else was told to ask it for. */
static uint32_t fill_suggested(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    uint32_t asked = 0, used = 0;

    while (used < source->suggested_count && asked < most) {
        uint32_t number = source->suggested[used++];
        struct piece *piece;

        if (picker_piece(picker, number) != NULL || !picker_source_has(source, number) ||
            rarity_neighbours(picker->rarity, number) > 0)
            continue;
        piece = picker_activate(picker, number);
        if (piece != NULL)
            asked += fill_piece(source, piece, most - asked, now);
    }
    source->suggested_count -= used;
    if (used > 0)
        memmove(source->suggested, source->suggested + used,
                source->suggested_count * sizeof(*source->suggested));
    return asked;
}

static uint32_t fill_rarest(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    /* What it has and has not all of is counted, so the pieces of no neighbour are none of its. */
    uint32_t asked = 0, i = source->all ? 0 : rarity_common(picker->rarity);

    while (asked < most && i < rarity_listed(picker->rarity)) {
        uint32_t number = rarity_at(picker->rarity, i);
        struct piece *piece;

        if (!picker_source_has(source, number)) {
            i++;
            continue;
        }
        /* It leaves the order of rarity, so that another one stands at place i. */
        piece = picker_activate(picker, number);
        if (piece != NULL)
            asked += fill_piece(source, piece, most - asked, now);
    }
    return asked;
}

/* All who were asked owe the block for too long: a source that takes requests and never answers must not hold it for good, nor may
 * two of them. */
static bool all_late(const struct request *request, const struct picker_source *source, int64_t now)
{
    for (; request != NULL; request = request->next) {
        if (request->source == source || now < request->late)
            return false;
    }
    return true;
}

/* Whether asking `source` as well is likely to bring the block sooner than those who were asked. */
static bool worth_a_second(const struct piece *piece, uint32_t index,
                           const struct picker_source *source, bool last, int64_t mine, int64_t now)
{
    const struct request *request = piece->requests[index];
    int64_t left;

    if (request == NULL)
        return false;
    if (all_late(request, source, now))
        return true;
    if (request->next != NULL || request->source == source)
        return false;
    /* Before a block is asked for twice it is asked back. */
    if (!last || !request->withdrawn ||
        now - request->withdrawn_at < 2 * pipeline_delay(request->source->pipe) + SECOND_GRACE)
        return false;
    left = request->due - now;
    if (left < (now - request->stamp.asked) / 4)
        left = (now - request->stamp.asked) / 4;
    return left > mine + mine / 2;
}

/* Nothing is left to ask for that was not asked of somebody. */
static bool all_is_asked(const struct picker *picker)
{
    return picker->want_all && rarity_listed(picker->rarity) == 0 && TAILQ_EMPTY(&picker->open);
}

/* Of a block that two owe for too long, the one that was asked first is asked no more. */
static void drop_oldest(struct picker *picker, struct piece *piece, uint32_t index)
{
    struct request *request = piece->requests[index];

    if (request->next == NULL)
        return;
    while (request->next != NULL)
        request = request->next;
    picker_drop(picker, request, true);
}

/* The same for the blocks of one piece; returns how many. */
static uint32_t second_of_piece(struct picker_source *source, struct piece *piece, bool last,
                                uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    int64_t mine = last ? pipeline_expect(source->pipe, now, false) : 0, late = INT64_MAX;
    uint32_t asked = 0;

    for (uint32_t i = 0; i < piece->count && asked < most; i++) {
        if ((picker->seconds < SECONDS_MOST ||
             (piece->requests[i] != NULL && piece->requests[i]->next != NULL)) &&
            worth_a_second(piece, i, source, last, mine, now)) {
            drop_oldest(picker, piece, i);
            picker_ask(picker, source, piece, i, PICKER_BACKGROUND, now);
            asked++;
            mine = last ? pipeline_expect(source->pipe, now, false) : 0;
        }
        for (const struct request *request = piece->requests[i]; request != NULL;
             request = request->next) {
            if (request->late < late)
                late = request->late;
        }
    }
    if (asked < most)
        piece->late = late;
    return asked;
}

/* Second requests for what is late; and, when nothing else is left to ask for, for what was asked back in vain and this source
 * would bring sooner. */
static uint32_t fill_second(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    bool last = all_is_asked(picker), withdrawn = false;
    int64_t late = INT64_MAX;
    struct piece *piece;
    uint32_t asked = 0;

    if (now < source->second_after || picker->source_count < 2)
        return 0;
    source->second_after = now + (last ? SECOND_LAST : SECOND_EVERY);
    if (now < picker->full_late && !(last && picker->full_withdrawn))
        return 0;
    TAILQ_FOREACH(piece, &picker->full, entry) {
        if (piece->asked == 0)
            continue;
        if ((now >= piece->late || (last && piece->withdrawn)) &&
            picker_source_has(source, piece->number)) {
            asked += second_of_piece(source, piece, last, most - asked, now);
            if (asked >= most)
                return asked;
        }
        if (piece->late < late)
            late = piece->late;
        withdrawn |= piece->withdrawn;
    }
    picker->full_late = late;
    picker->full_withdrawn = withdrawn;
    return asked;
}

/* In how long a block that another source owes is likely to be here: not before it usually takes there, and the longer it took
 * already the later. */
static int64_t owed(const struct request *request, int64_t now)
{
    int64_t usual = request->stamp.asked + request->source->pipe->usual - now;
    int64_t left = request->due - now, overdue = (now - request->stamp.asked) / 2;

    if (left < usual)
        left = usual;
    return left < overdue ? overdue : left;
}

/* Whether the source is sending us something just now: then what it owes is on its way, or next. */
static bool answers(const struct picker_source *source, int64_t now)
{
    return now - source->pipe->last_heard < pipeline_delay(source->pipe) + TAKE_QUIET;
}

/* Whether the block would be here much sooner from a source that brings it in `mine`. At the very end a queue that moves is asked
 * back as well, but nothing that was only just asked for: else two idle sources would hand it to and fro. */
static bool worth_taking(const struct request *request, bool last, int64_t mine, int64_t now)
{
    const struct picker_source *other = request->source;

    if (request->withdrawn || request->next != NULL || request->urgency == PICKER_DEMAND)
        return false;
    /* A seed need not send what a neighbour has by now. */
    if (spared(other, request->piece->number) && owed(request, now) >= TAKE_FASTER * mine)
        return true;
    if (last ? now - request->stamp.asked < pipeline_delay(other->pipe) + TAKE_QUIET
             : answers(other, now))
        return false;
    return owed(request, now) >= TAKE_FASTER * mine;
}

/* In how long the source would bring one block more than it was asked for and is to take over. */
static int64_t would_take(const struct picker_source *source, int64_t now)
{
    double rate = pipeline_rate(source->pipe);
    int64_t mine = pipeline_expect(source->pipe, now, false);

    if (rate > 0)
        mine += (int64_t)((double)source->taking * BLOCK_SIZE * 1e9 / rate);
    return source->in_flight + source->taking > 0 && mine < source->pipe->usual
               ? source->pipe->usual
               : mine;
}

/* A source that has room and nothing of its own to give takes over what others owe and it would bring much sooner: the
 * queue of a slow member empties into the uplinks of fast ones. The other is asked back for it first, as it may have begun to
 * send; so nothing comes twice. */
static void take_over(struct picker_source *source, uint32_t most, int64_t now)
{
    struct picker *picker = source->picker;
    struct piece_list *lists[] = {&picker->full, &picker->open};
    bool last = all_is_asked(picker);
    int64_t mine;

    if (now < source->take_after || picker->source_count < 2)
        return;
    source->take_after = now + TAKE_EVERY;
    mine = would_take(source, now);
    for (unsigned list = 0; list < 2; list++) {
        struct piece *piece;

        TAILQ_FOREACH(piece, lists[list], entry) {
            if (piece->asked == 0 || !picker_source_has(source, piece->number) ||
                spared(source, piece->number))
                continue;
            for (uint32_t i = 0; i < piece->count; i++) {
                struct request *request = piece->requests[i];

                if (source->taking >= most)
                    return;
                if (request == NULL || request->source == source ||
                    !worth_taking(request, last, mine, now))
                    continue;
                request->withdrawn = piece->withdrawn = picker->full_withdrawn = true;
                request->withdrawn_at = now;
                request->taker = source;
                source->taking++;
                mine = would_take(source, now);
                picker->actions.withdraw(picker->arg, request->source->owner, piece->first + i);
            }
        }
    }
}

/* It owes something and has sent nothing for so long that it may never: in the background others are asked. */
static bool is_silent(const struct picker_source *source, int64_t now)
{
    return source->pipe->in_flight > 0 && now - source->pipe->last_heard > SILENT;
}

uint32_t picker_fill(struct picker_source *source, enum picker_class class, uint32_t most,
                     int64_t now)
{
    struct picker *picker = source->picker;
    uint32_t asked;

    if (source->closed || most == 0)
        return 0;
    if (class == PICKER_PREFETCH)
        return fill_prefetch(source, most, now);
    if (!picker->want_all || !source->told || is_silent(source, now))
        return 0;
    asked = fill_second(source, most, now);
    if (asked < most && source->dry != picker->version) {
        asked += fill_started(source, most - asked, now);
        if (asked < most)
            asked += fill_suggested(source, most - asked, now);
        if (asked < most)
            asked += fill_rarest(source, most - asked, now);
        if (asked < most)
            source->dry = picker->version;
    }
    if (asked < most)
        take_over(source, most - asked, now);
    return asked;
}
