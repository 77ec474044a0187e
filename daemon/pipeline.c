/* The request window of one link.
 *
 * Owns the arithmetic; leaves what is asked to picker.h and the asking to download_link.c. Pure.
 *
 *   rate    each block carries the count of bytes that had been delivered when it was asked for; what was delivered between
 *           asking and answer, over that time, is a sample. The maximum over the last SPAN or two counts, as the link may
 *           have had too little to do meanwhile; a sample taken while the window was not full can only raise it. Idle
 *           time ages nothing: a link that idled is fast at once.
 *   delay   answer time of blocks that found the link empty, and the kernel's round trip; the minimum over DELAY_SPAN or
 *           two. A link that was never empty for that long is drained for one moment, so that a queue of our own making
 *           is not taken for distance.
 *   window  rate x (delay x 5/4 + SLACK + spread) + a block, and no less than `few`. SLACK covers the wake-ups of both machines,
 *           `spread` the pauses of TCP on a link with loss.
 *   few     a rate that is low because little was asked for must not stay so: while blocks come within FEW_SOON, one more may be
 *           under way each round; where they take longer than FEW_LATE, one less, down to one. What waits at a busy server is
 *           missing where it could come from sooner, and swarms end late for it: with uplinks of a quarter and seven quarters
 *           the slow ones' queues held half a copy while the fast ones had nothing to send.
 *
 * Fast start: as TCP's, a block more for each that comes, until the rate has not grown by a quarter for three rounds, or answers
 * come so late that more requests would only wait at the server (as HyStart, RFC 9406, leaves slow start). In the background the
 * very first requests are few: what a seed suggests (choker.h) comes before the first block, and is asked for then. */
#include "daemon/pipeline.h"

#include "base/check.h"
#include "crypto/merkle.h"
#include "proto/limits.h"

#define WINDOW_MIN    1u
#define WINDOW_ALONE  4u /* so little under way is no queue that hides the delay */
#define WINDOW_READER 4u /* the least while a reader waits */
#define WINDOW_START  16u
#define WINDOW_FIRST  4u /* of it in the background, until the first block has come */
#define FEW_START     2.0
#define FEW_MOST      8.0
#define FEW_SOON      (1000 * NS_PER_MS)
#define FEW_LATE      (1500 * NS_PER_MS)
#define QUEUE_MOST    (150 * NS_PER_MS) /* beyond two delays: such answers end a fast start */
#define SPAN          (2 * NS_PER_S)
#define DELAY_SPAN    (15 * NS_PER_S)
#define DRAIN_LONGEST (400 * NS_PER_MS)
#define SLACK         (4 * NS_PER_MS)
#define SLACK_READER  (1 * NS_PER_MS)
#define FAST_LINK                                                                                  \
    50e6 /* bytes a second: such a link's queue is gone in no time, and keeping both machines busy counts */
#define DELAY_UNKNOWN  (50 * NS_PER_MS)
#define RATE_UNKNOWN   1e6
#define PATIENCE_LEAST (30 * NS_PER_MS) /* a disk's seek or a busy machine is not a stall */
#define PATIENCE_MOST                                                                              \
    (400 *                                                                                         \
     NS_PER_MS) /* a reader must have its block within a second, another peer's answer included */
#define PATIENCE_BACKGROUND (5 * NS_PER_S)
#define PATIENCE_LONGEST                                                                           \
    (20 * NS_PER_S) /* of the background: who never answers seems ever slower */

static int64_t min_time(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max_time(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

void pipeline_init(struct pipeline *pipe, int64_t now)
{
    *pipe = (struct pipeline){
        .window = WINDOW_START,
        .last_heard = now,
        .rate_since = now,
        .delay_since = now,
        .fast_start = true,
        .few = FEW_START,
    };
}

double pipeline_rate(const struct pipeline *pipe)
{
    return pipe->rate_now > pipe->rate_before ? pipe->rate_now : pipe->rate_before;
}

int64_t pipeline_delay(const struct pipeline *pipe)
{
    if (pipe->delay_now == 0 || pipe->delay_before == 0)
        return pipe->delay_now + pipe->delay_before;
    return min_time(pipe->delay_now, pipe->delay_before);
}

static void note_delay(struct pipeline *pipe, int64_t now, int64_t delay)
{
    if (delay <= 0)
        return;
    if (now - pipe->delay_since > DELAY_SPAN) {
        pipe->delay_before = pipe->delay_now;
        pipe->delay_now = 0;
        pipe->delay_since = now;
    }
    if (pipe->delay_now == 0 || delay < pipe->delay_now)
        pipe->delay_now = delay;
}

void pipeline_round_trip(struct pipeline *pipe, int64_t now, int64_t rtt)
{
    /* While much is under way the round trip contains our own queue, and tells nothing unless it is
     * lower. */
    if (pipe->in_flight > WINDOW_ALONE &&
        (pipeline_delay(pipe) == 0 || rtt >= pipeline_delay(pipe)))
        return;
    note_delay(pipe, now, rtt);
}

void pipeline_asked(struct pipeline *pipe, int64_t now, bool urgent, struct pipeline_stamp *out)
{
    if (pipe->in_flight == 0)
        pipe->last_heard = now;
    out->asked = now;
    out->delivered = pipe->delivered;
    out->alone = pipe->in_flight < WINDOW_ALONE;
    pipe->in_flight++;
    if (urgent)
        pipe->urgent++;
    out->thin = pipe->in_flight < pipe->window;
}

void pipeline_raised(struct pipeline *pipe)
{
    CHECK(pipe->urgent < pipe->in_flight);
    pipe->urgent++;
}

void pipeline_withdrawn(struct pipeline *pipe, bool urgent)
{
    CHECK(pipe->in_flight > 0 && (!urgent || pipe->urgent > 0));
    pipe->in_flight--;
    if (urgent)
        pipe->urgent--;
}

static void note_rate(struct pipeline *pipe, int64_t now, const struct pipeline_stamp *stamp)
{
    int64_t took = max_time(now - stamp->asked, 1000);
    double rate = (double)(pipe->delivered - stamp->delivered) * 1e9 / (double)took;

    if (stamp->thin && rate < pipeline_rate(pipe))
        return;
    if (now - pipe->rate_since > max_time(SPAN, 10 * pipeline_delay(pipe))) {
        pipe->rate_before = pipe->rate_now;
        pipe->rate_now = 0;
        pipe->rate_since = now;
    }
    if (rate > pipe->rate_now)
        pipe->rate_now = rate;
}

/* A round has ended: all that was under way when it began is here. */
static void judge_round(struct pipeline *pipe, bool thin)
{
    double rate = pipeline_rate(pipe);

    pipe->round_end = pipe->delivered + (uint64_t)pipe->in_flight * BLOCK_SIZE;
    if (thin)
        return;
    if (rate >= pipe->round_rate * 1.25) {
        pipe->round_rate = rate;
        pipe->flat_rounds = 0;
    } else if (++pipe->flat_rounds >= 3) {
        pipe->fast_start = false;
    }
}

static uint32_t steady_window(const struct pipeline *pipe, bool keep_short)
{
    int64_t delay = pipeline_delay(pipe);
    double rate = pipeline_rate(pipe), span, least;

    if (delay == 0)
        delay = DELAY_UNKNOWN;
    if (keep_short)
        span = (double)(delay + (rate >= FAST_LINK ? SLACK : SLACK_READER));
    else
        span = (double)(delay + delay / 4 + SLACK + min_time(2 * pipe->spread, delay));
    span = rate * span / 1e9 / BLOCK_SIZE + (keep_short ? 2 : 1);
    least = keep_short ? WINDOW_READER : pipe->few;
    if (span < least)
        span = least;
    return span > LIMIT_QUEUED_BLOCKS ? LIMIT_QUEUED_BLOCKS : (uint32_t)span;
}

/* `took`: from asking to answer; `thin`: more might have been under way. */
static void adapt_few(struct pipeline *pipe, int64_t took, bool thin)
{
    if (took > FEW_LATE)
        pipe->few -= 1 / pipe->few;
    else if (took < FEW_SOON && !thin)
        pipe->few += 1 / pipe->few;
    if (pipe->few < WINDOW_MIN)
        pipe->few = WINDOW_MIN;
    if (pipe->few > FEW_MOST)
        pipe->few = FEW_MOST;
}

void pipeline_answered(struct pipeline *pipe, int64_t now, const struct pipeline_stamp *stamp,
                       bool urgent, uint32_t size)
{
    int64_t took = now - stamp->asked, delay;

    pipeline_withdrawn(pipe, urgent);
    pipe->delivered += size;
    pipe->last_heard = now;
    delay = pipeline_delay(pipe);
    if (stamp->alone || (delay != 0 && took < delay))
        note_delay(pipe, now, took);
    if (pipe->usual == 0)
        pipe->usual = took;
    pipe->spread += (llabs(took - pipe->usual) - pipe->spread) / 16;
    pipe->usual += (took - pipe->usual) / 8;
    note_rate(pipe, now, stamp);
    if (pipe->fast_start) {
        if (!stamp->thin && pipe->window < LIMIT_QUEUED_BLOCKS)
            pipe->window++;
        if (pipe->delivered >= pipe->round_end)
            judge_round(pipe, stamp->thin);
        if (delay > 0 && pipe->usual > 2 * delay + QUEUE_MOST)
            pipe->fast_start = false;
    } else if (!urgent) {
        adapt_few(pipe, took, stamp->thin);
    }
    if (!pipe->fast_start)
        pipe->window = steady_window(pipe, false);
}

/* Starts or ends the moment in which the link runs empty; true while it lasts. */
static bool drains(struct pipeline *pipe, int64_t now)
{
    if (pipe->draining) {
        if (now < pipe->drain_end && now - pipe->delay_since > DELAY_SPAN)
            return true;
        pipe->draining = false;
        if (now - pipe->delay_since >
            DELAY_SPAN) /* nothing was learnt: what is known stays in force */
            pipe->delay_since = now;
        return false;
    }
    if (pipe->fast_start || pipe->delay_now == 0 || now - pipe->delay_since <= 2 * DELAY_SPAN ||
        pipe->in_flight <= WINDOW_ALONE)
        return false;
    pipe->draining = true;
    pipe->drain_end = now + min_time(4 * pipeline_delay(pipe) + 20 * NS_PER_MS, DRAIN_LONGEST);
    return true;
}

uint32_t pipeline_room(struct pipeline *pipe, int64_t now, bool keep_short)
{
    uint32_t window = pipe->window;

    if (drains(pipe, now))
        window = WINDOW_ALONE;
    else if (keep_short && !pipe->fast_start)
        window = steady_window(pipe, true);
    else if (!keep_short && pipe->delivered == 0)
        window = WINDOW_FIRST;
    return pipe->in_flight < window ? window - pipe->in_flight : 0;
}

uint32_t pipeline_urgent_room(const struct pipeline *pipe)
{
    uint32_t window = pipe->window < WINDOW_READER ? WINDOW_READER : pipe->window;

    if (window > LIMIT_QUEUED_BLOCKS - pipe->in_flight)
        window = LIMIT_QUEUED_BLOCKS - pipe->in_flight;

    return pipe->urgent < window ? window - pipe->urgent : 0;
}

int64_t pipeline_expect(const struct pipeline *pipe, int64_t now, bool urgent)
{
    double rate = pipeline_rate(pipe);
    int64_t delay = pipeline_delay(pipe), expect;
    uint32_t ahead = pipe->in_flight;

    if (rate <= 0)
        rate = RATE_UNKNOWN;
    if (delay == 0)
        delay = DELAY_UNKNOWN;
    /* Urgent blocks overtake what the server has queued, but not what it has given to its socket.
     */
    if (urgent && ahead > pipe->urgent + 3)
        ahead = pipe->urgent + 3;
    expect = delay + (int64_t)((double)(ahead + 1) * BLOCK_SIZE * 1e9 / rate);
    if (pipe->in_flight > 0 && 2 * (now - pipe->last_heard) > expect)
        expect = max_time(expect, 2 * (now - pipe->last_heard) - expect);
    return expect;
}

int64_t pipeline_patience(const struct pipeline *pipe, int64_t now, bool urgent)
{
    int64_t expect = pipeline_expect(pipe, now, urgent), patience;

    patience = max_time(2 * expect, expect + 4 * min_time(pipe->spread, expect));
    if (urgent)
        return min_time(max_time(patience, PATIENCE_LEAST), PATIENCE_MOST);
    return min_time(max_time(patience, PATIENCE_BACKGROUND), PATIENCE_LONGEST);
}
