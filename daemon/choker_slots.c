/* How many fetchers are given background at a time: as few as fill the uplink.
 *
 * Owns struct slots and the measurement of what goes out. Pure.
 *
 * Spans of SPAN, in which somebody was refused a slot, are compared: with half as many slots more, does a seventh more go out?
 * With one less, does as much go out? What a socket's buffer swallows when a link is first used counts as sent, so the first part
 * of a trial (SETTLE) is not counted.
 *
 *   NONE --next_trial--> MORE --more went out: kept--> MORE again
 *                         |  \--no: taken back, and the pause before the next trial is doubled--> NONE
 *                         \ (every other time) LESS --as much went out: kept--> NONE, soon LESS again
 *                                               \--less did: taken back--> NONE
 *
 * On a slow line there are no more than it carries blocks in AHEAD, whatever the trials say, unless one has shown that it takes
 * more (`proven`). And there are up to EXTRA_MOST more, one each LINE_STEP, while somebody is refused although the line's own
 * queue is short. */
#include "daemon/choker_private.h"

#include "crypto/merkle.h"

#define SLOTS_START   3
#define SLOTS_LEAST   1
#define SLOTS_MOST    512 /* more links than that are not served */
#define SETTLE        (300 * NS_PER_MS)
#define SPAN          (1200 * NS_PER_MS)
#define PAUSE_FIRST   (1 * NS_PER_S)
#define PAUSE_MOST    (30 * NS_PER_S)
#define MORE          1.15 /* so much more must go out for a slot more to be kept … */
#define LESS          0.95 /* … and so much, at least, for one less */
#define RATE_SPAN     (200 * NS_PER_MS)
#define RATE_KEPT     0.8  /* of a rate's height after another RATE_SPAN */
#define SLOTS_UNKNOWN 2    /* until a rate is known */
#define BEST_KEPT     0.97 /* of the best rate, after another second */
#define AHEAD         (100 * NS_PER_MS)
#define LINE_SHORT    (60 * NS_PER_MS)  /* a line with such a queue may soon be idle … */
#define LINE_LONG     (120 * NS_PER_MS) /* … and with such a one it is not */
#define LINE_FULL     0.75              /* of the best rate */
#define LINE_STEP     (20 * NS_PER_MS)
#define LINE_KNOWN    (500 * NS_PER_MS)
#define EXTRA_MOST    16
#define AHEAD_LEAST   (BLOCK_SIZE + 1)
#define AHEAD_START   BLOCK_SIZE

void choker_slots_init(struct choker *choker, int64_t now)
{
    choker->slots = (struct slots){.count = SLOTS_START,
                                   .since = now,
                                   .pause = PAUSE_FIRST,
                                   .next_trial = now + PAUSE_FIRST,
                                   .less_next = false};
}

/* What the line can carry, though it may carry less of late: were slots given by that, few would go on being few. */
static void note_best(struct choker *choker, int64_t now)
{
    double passed = (double)(now - choker->best_at) / NS_PER_S, rate;

    if (passed < 1)
        return;
    rate = (double)(choker->sent - choker->best_sent) / passed;
    choker->best = rate > choker->best * BEST_KEPT ? rate : choker->best * BEST_KEPT;
    choker->best_sent = choker->sent;
    choker->best_at = now;
}

static double line_rate(const struct choker *choker)
{
    return choker->best > 0 ? choker->best : choker->rate;
}

uint64_t choker_line_rate(const struct choker *choker)
{
    return (uint64_t)choker->best;
}

void choker_sent(struct choker_link *link, uint32_t bytes, int64_t now)
{
    struct choker *choker = link->choker;
    int64_t passed = now - choker->rate_at;
    double rate;

    link->took = now;
    choker->sent += bytes;
    note_best(choker, now);
    if (passed < RATE_SPAN)
        return;
    rate = (double)(choker->sent - choker->rate_sent) * NS_PER_S / (double)passed;
    choker->rate_sent = choker->sent;
    choker->rate_at = now;
    choker->rate = rate > choker->rate * RATE_KEPT ? rate : choker->rate * RATE_KEPT;
}

static uint32_t by_rate(const struct choker *choker)
{
    const struct slots *slots = &choker->slots;
    double blocks = line_rate(choker) * AHEAD / NS_PER_S / BLOCK_SIZE;
    uint32_t most = choker->rate == 0 ? SLOTS_UNKNOWN : blocks < 1 ? 1 : (uint32_t)blocks;

    if (most < slots->proven)
        most = slots->proven;
    if (slots->trial == TRIAL_MORE)
        most += most > 3 ? most / 2 : 1;
    return slots->count < most ? slots->count : most;
}

uint32_t choker_slots(const struct choker *choker)
{
    return by_rate(choker) + choker->extra;
}

void choker_line(struct choker *choker, int64_t queue_ns, int64_t now)
{
    choker->line = queue_ns;
    choker->line_at = now;
    if (queue_ns > LINE_LONG && choker->rate >= choker->best * LINE_FULL && choker->extra > 0 &&
        now - choker->extra_at >= LINE_STEP) {
        choker->extra--;
        choker->extra_at = now;
    }
}

/* Whoever holds a slot may do so because its acknowledgements are late: the line is not to idle for that. If all of those are
 * late, its queue seems longer than it is; but it has none if it carries much less than it could. */
void choker_slots_refused(struct choker *choker, int64_t now)
{
    bool is_short = choker->line <= LINE_SHORT || choker->rate < choker->best * LINE_FULL;

    if (choker->line_at == 0 || now - choker->line_at > LINE_KNOWN || !is_short ||
        choker->extra >= EXTRA_MOST || now - choker->extra_at < LINE_STEP)
        return;
    choker->extra++;
    choker->extra_at = now;
}

uint32_t choker_ahead(const struct choker *choker)
{
    double bytes = line_rate(choker) * AHEAD / NS_PER_S / by_rate(choker);

    if (choker->rate == 0)
        return AHEAD_START;
    if (bytes < AHEAD_LEAST)
        return AHEAD_LEAST;
    return bytes > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)bytes;
}

uint64_t choker_ahead_all(const struct choker *choker)
{
    return (uint64_t)choker_ahead(choker) * by_rate(choker);
}

static void begin_trial(struct slots *slots, double rate)
{
    slots->before = slots->count;
    slots->before_rate = rate;
    if (slots->less_next && slots->count > SLOTS_LEAST) {
        slots->trial = TRIAL_LESS;
        slots->count--;
    } else if (slots->count < SLOTS_MOST) {
        slots->trial = TRIAL_MORE;
        slots->count += slots->count > 3 ? slots->count / 2 : 1;
    }
    slots->less_next = !slots->less_next;
}

static void end_trial(struct slots *slots, double rate, int64_t now)
{
    bool more = slots->trial == TRIAL_MORE;
    bool kept = more ? rate >= slots->before_rate * MORE : rate >= slots->before_rate * LESS;

    slots->trial = TRIAL_NONE;
    if (kept && (more || slots->proven > slots->count))
        slots->proven = slots->count;
    if (kept) {
        slots->less_next = !more; /* the same way again, at once */
        slots->pause = PAUSE_FIRST;
        slots->next_trial = now;
        if (more)
            begin_trial(slots, rate);
        return;
    }
    slots->count = slots->before;
    slots->pause = slots->pause * 2 < PAUSE_MOST ? slots->pause * 2 : PAUSE_MOST;
    slots->next_trial = now + slots->pause;
}

static void begin_span(struct choker *choker, int64_t now)
{
    choker->slots.since = now;
    choker->slots.bytes = choker->sent;
    choker->slots.refused = false;
    choker->slots.settled = false;
}

void choker_slots_step(struct choker *choker, int64_t now)
{
    struct slots *slots = &choker->slots;
    double rate;

    if (!slots->settled) {
        if (now - slots->since < SETTLE)
            return;
        slots->settled = true;
        slots->since = now;
        slots->bytes = choker->sent;
        return;
    }
    if (now - slots->since < SPAN)
        return;
    rate = (double)(choker->sent - slots->bytes) * NS_PER_S / (double)(now - slots->since);
    if (!slots->refused || now - slots->since > 2 * SPAN) { /* it tells nothing about slots */
        if (slots->trial != TRIAL_NONE) {
            slots->count = slots->before;
            slots->trial = TRIAL_NONE;
        }
    } else if (slots->trial != TRIAL_NONE) {
        end_trial(slots, rate, now);
    } else if (now >= slots->next_trial) {
        begin_trial(slots, rate);
    }
    begin_span(choker, now);
}
