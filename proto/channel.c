/* A channel's life: its stream's events, its end, and the owner's calls that are neither input
 * (channel_input.c) nor output (channel_output.c).
 *
 * Thread: the loop's; checked. Memory: an idle channel holds this structure and no buffers: what a
 * burst of input or output needs lies on the stack while it is handled.
 *
 * Invariants:
 *  1. The owner's callbacks run from the stream's events, from `later` and from the finish timer,
 * never from an owner's call. So every end, wherever it is noticed, only marks the channel and
 * rouses `later`.
 *  2. Whoever handles an event holds the channel with channel_enter; channel_free within a callback
 * closes the stream and releases the queues at once, and leaves the structure, with the message and
 * the clause that a callback may still be reading, to the last channel_leave.
 *  3. While an event is handled (`handling`) sending only queues: the output is looked after once,
 * at the end, so that all answers to a burst of input leave together. Otherwise `later` does it,
 * after everything else that is ready in this round of the loop.
 *
 *   open --channel_finish--> finishing --all sent, EOF or timer--> ended --later--> told
 *     \--fault, EOF, stream failed, send queue over the limit------/ */
#include "proto/channel.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "proto/channel_internal.h"
#include "proto/limits.h"

#define LOW_MARK 32768

void channel_enter(struct channel *channel)
{
    channel->depth++;
}

void channel_leave(struct channel *channel)
{
    if (--channel->depth > 0 || !channel->freed)
        return;
    channel_input_free(channel);
    free(channel->why);
    channel->magic = 0;
    free(channel);
}

void channel_end(struct channel *channel, bool orderly, const char *why)
{
    if (channel->ended || channel->freed)
        return;
    channel->ended = true;
    channel->orderly = orderly;
    if (channel->why != why) { /* the clause may lie in memory that is gone by then */
        free(channel->why);
        channel->why = xstrdup(why);
    }
    event_active(&channel->later, 0, 0);
}

static void tell_closed(struct channel *channel)
{
    if (channel->told)
        return;
    channel->told = true;
    timer_free(channel->finish_timer);
    channel->finish_timer = NULL;
    if (channel->budget_timer != NULL)
        timer_cancel(channel->budget_timer);
    channel->events.closed(channel->arg, channel->orderly, channel->why);
}

/* --- events
 * ------------------------------------------------------------------------------------------- */
static void event_begin(struct channel *channel)
{
    channel_enter(channel);
    channel->handling = true;
}

static void event_finish(struct channel *channel)
{
    if (!channel->freed)
        channel_output(channel);
    channel->handling = false;
    channel_leave(channel);
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    struct channel *channel = arg;
    event_begin(channel);
    if (channel->ended)
        tell_closed(channel);
    event_finish(channel);
}

static void on_ready(void *arg)
{
    struct channel *channel = arg;
    event_begin(channel);
    channel->blocked = false;
    if (!channel->ended && !channel->finishing && channel->events.ready != NULL)
        channel->events.ready(channel->arg);
    event_finish(channel);
}

static void on_readable(void *arg)
{
    struct channel *channel = arg;
    event_begin(channel);
    channel_input(channel);
    event_finish(channel);
}

static void on_writable(void *arg)
{
    struct channel *channel = arg;
    event_begin(channel);
    channel->blocked = false;
    event_finish(channel);
}

static void on_failed(void *arg, const char *why)
{
    channel_end(arg, false, why);
}

static void on_finish_timer(void *arg)
{
    struct channel *channel = arg;
    channel_end(channel, true, channel->why);
}

/* --- the owner's calls
 * -------------------------------------------------------------------------------- */
struct channel *channel_new(struct loop *loop, struct stream *stream,
                            const struct channel_events *events, void *arg)
{
    static const struct stream_events stream_events = {
        .ready = on_ready,
        .readable = on_readable,
        .writable = on_writable,
        .failed = on_failed,
    };
    CHECK(loop_is_here(loop));
    CHECK(events->frame != NULL && events->closed != NULL);
    struct channel *channel = xcalloc(1, sizeof *channel);
    channel->magic = CHANNEL_MAGIC;
    channel->loop = loop;
    channel->stream = stream;
    channel->events = *events;
    channel->arg = arg;
    channel->low_mark = LOW_MARK;
    channel->last_heard = clock_now();
    CHECK(event_assign(&channel->later, loop_base(loop), -1, 0, on_later, channel) == 0);
    stream_set_events(stream, &stream_events, channel);
    return channel;
}

void channel_free(struct channel *channel)
{
    if (channel == NULL)
        return;
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(loop_is_here(channel->loop));
    CHECK(!channel->freed);
    channel_enter(channel);
    channel->freed = true;
    event_del(&channel->later);
    timer_free(channel->finish_timer);
    channel->finish_timer = NULL;
    timer_free(channel->budget_timer);
    channel->budget_timer = NULL;
    stream_free(channel->stream);
    channel->stream = NULL;
    channel_output_free(channel);
    channel_leave(channel);
}

void channel_finish(struct channel *channel, const char *why)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(!channel->freed);
    if (channel->ended || channel->finishing)
        return;
    channel->finishing = true;
    channel->why = xstrdup(why);
    channel->finish_timer = timer_new(channel->loop, on_finish_timer, channel);
    timer_set(channel->finish_timer, LIMIT_FINISH_NS);
    event_active(&channel->later, 0, 0);
}

void channel_pause(struct channel *channel, bool paused)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    if (channel->paused && !paused && !channel->ended)
        stream_resume(channel->stream);
    channel->paused = paused;
}

void channel_set_budget(struct channel *channel, int64_t per_second, int64_t burst)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(per_second > 0 && per_second <= NS_PER_S && burst > 0);
    if (channel->budget_timer == NULL) {
        channel->budget_timer = timer_new(channel->loop, channel_input_again, channel);
        channel->credit = burst;
        channel->credit_at = clock_now();
    }
    channel->budget = per_second;
    channel->burst = burst;
}

void channel_trust(struct channel *channel)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    channel->trusted = true;
}

struct stream *channel_stream(const struct channel *channel)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    return channel->stream;
}

bool channel_is_broken(const struct channel *channel)
{
    return channel->broken;
}

int64_t channel_last_heard(const struct channel *channel)
{
    return channel->last_heard;
}

uint64_t channel_bytes_in(const struct channel *channel)
{
    return channel->bytes_in;
}

uint64_t channel_bytes_out(const struct channel *channel)
{
    return channel->bytes_out;
}
