/* A channel's receiving half: bytes of the stream in, frames out.
 *
 * The bytes of headers and messages pass through a window on the stack, so that one stream_read
 * brings many small frames. A payload is read straight into its owner's memory; what of it came
 * with the window is copied. After a frame with a large payload another one is likely: then only a
 * small window is asked for, enough for the next header and message, and next to nothing of the
 * payload is copied. (A read from a TLS stream costs about 200 ns whatever its size, a copied block
 * ten times that.)
 *
 * A message that lies in the window is handed out where it is. One that does not, or that must
 * outlast its payload, is kept: small ones in the channel, larger ones in memory that grows with
 * the bytes that came, never with the length that a stranger claims. No window outlives the call:
 * input behind a pause is put aside.
 *
 *   HEADER --16 bytes, judged--> MESSAGE --all of it--> PAYLOAD --all of it, or none--> deliver -->
 * HEADER */
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "proto/channel_internal.h"
#include "proto/limits.h"

#define WINDOW       8192
#define WINDOW_BULK  256
#define BULK_PAYLOAD 4096 /* a payload from here on makes the next window small */

static bool is_open(const struct channel *channel)
{
    return !channel->freed && !channel->ended && !channel->finishing && !channel->paused &&
           !channel->yields && !channel->overdrawn;
}

static int64_t smaller_time(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The input ends here. What was queued before, answers or a farewell, gets its one chance to leave.
 */
static void end_input(struct channel *channel, bool orderly, const char *why)
{
    if (!channel->ended && !channel->finishing)
        channel_output(channel);
    if (!channel->freed)
        channel_end(channel, orderly, why);
}

static void drop_message(struct channel *channel)
{
    free(channel->large);
    channel->large = NULL;
    channel->large_size = 0;
    channel->message = NULL;
    channel->borrowed = false;
}

/* --- file descriptors
 * --------------------------------------------------------------------------------- */
int channel_take_fd(struct channel *channel)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    if (channel->fds == 0 || channel->freed)
        return -1;
    channel->fds--;
    return stream_unix_take(channel->stream);
}

static void drop_fds(struct channel *channel)
{
    while (channel->fds > 0) {
        int fd = channel_take_fd(channel);
        if (fd >= 0)
            close(fd);
    }
}

/* --- a frame's three parts
 * ---------------------------------------------------------------------------- */
static void deliver(struct channel *channel)
{
    struct frame frame = channel->frame;
    void *payload = channel->payload;
    channel->phase = CHANNEL_HEADER;
    channel->have = 0;
    channel->payload = NULL;
    if (!channel->delivered)
        channel->last_heard = clock_now(); /* once for all of a burst */
    channel->delivered = true;
    channel->expects_bulk = frame.payload_size >= BULK_PAYLOAD;
    channel->fds = frame.fds;
    const char *fault = channel->events.frame(channel->arg, &frame, channel->message, payload);
    if (channel->freed)
        return;
    drop_fds(channel);
    if (fault != NULL && !channel->finishing)
        end_input(channel, false, fault);
    drop_message(channel);
    if (frame.payload_size < BULK_PAYLOAD && ++channel->frames >= LIMIT_TURN_FRAMES)
        channel->yields = true;
    if (channel->budget > 0 && clock_now() >= channel->slice_end)
        channel->yields = true;
}

/* channel->message is whole. */
static void message_here(struct channel *channel)
{
    if (channel->frame.payload_size == 0) {
        deliver(channel);
        return;
    }
    const char *fault = NULL;
    void *payload = NULL;
    if (channel->events.payload == NULL)
        fault = "a frame has a payload where none is allowed";
    else
        payload = channel->events.payload(channel->arg, &channel->frame, channel->message, &fault);
    if (channel->freed)
        return;
    channel->phase = CHANNEL_PAYLOAD;
    channel->have = 0;
    channel->payload = payload;
    if (payload == NULL && fault != NULL) {
        channel->broken = true;
        end_input(channel, false, fault);
    }
}

static void header_here(struct channel *channel)
{
    uint32_t max = channel->trusted ? LIMIT_FRAME_MESSAGE : LIMIT_STRANGER_FRAME;
    const char *fault = frame_decode(&channel->frame, channel->header, max);
    if (fault == NULL && channel->frame.fds > 0 && !stream_is_unix(channel->stream))
        fault = "a frame has file descriptors where none can be";
    if (fault != NULL) {
        channel->broken = true;
        end_input(channel, false, fault);
        return;
    }
    channel->phase = CHANNEL_MESSAGE;
    channel->have = 0;
    if (channel->frame.message_size == 0) {
        channel->message = channel->small;
        message_here(channel);
    }
}

/* Memory for more of the message that is being collected: *room bytes at the result; NULL if there
 * is none, and the channel has ended. */
static uint8_t *message_room(struct channel *channel, size_t *room)
{
    size_t size = channel->frame.message_size;
    if (size <= sizeof channel->small) {
        *room = size - channel->have;
        return channel->small + channel->have;
    }
    if (channel->have == channel->large_size) {
        size_t grown = channel->have == 0 ? LIMIT_FIRST_ROOM : 2 * channel->have;
        grown = smaller(grown, size);
        uint8_t *large = realloc(channel->large, grown);
        if (large == NULL) {
            channel_end(channel, false, "there is no memory for a message");
            return NULL;
        }
        channel->large = large;
        channel->large_size = grown;
    }
    *room = channel->large_size - channel->have;
    return channel->large + channel->have;
}

static void message_grew(struct channel *channel, size_t size)
{
    channel->have += size;
    if (channel->have < channel->frame.message_size)
        return;
    channel->message = channel->large != NULL ? channel->large : channel->small;
    message_here(channel);
}

/* A message in the window is needed beyond it. */
static void keep_message(struct channel *channel)
{
    size_t size = channel->frame.message_size;
    uint8_t *to = channel->small;
    if (size > sizeof channel->small) {
        to = channel->large = malloc(size);
        if (to == NULL) {
            channel_end(channel, false, "there is no memory for a message");
            return;
        }
        channel->large_size = size;
    }
    memcpy(to, channel->message, size);
    channel->message = to;
    channel->borrowed = false;
}

/* --- bytes that were read into a window
 * ---------------------------------------------------------------- */
static size_t feed_header(struct channel *channel, const uint8_t *at, size_t size)
{
    size_t used = smaller(size, FRAME_HEADER_SIZE - channel->have);
    memcpy(channel->header + channel->have, at, used);
    channel->have += used;
    if (channel->have == FRAME_HEADER_SIZE)
        header_here(channel);
    return used;
}

static size_t feed_message(struct channel *channel, const uint8_t *at, size_t size)
{
    size_t whole = channel->frame.message_size;
    if (channel->have == 0 && size >= whole) {
        channel->message = at;
        channel->borrowed = true;
        message_here(channel);
        return whole;
    }
    size_t room;
    uint8_t *to = message_room(channel, &room);
    if (to == NULL)
        return 0;
    size_t used = smaller(size, room);
    memcpy(to, at, used);
    message_grew(channel, used);
    return used;
}

static void payload_grew(struct channel *channel, size_t size)
{
    channel->have += size;
    if (channel->have == channel->frame.payload_size)
        deliver(channel);
}

static size_t feed_payload(struct channel *channel, const uint8_t *at, size_t size)
{
    size_t used = smaller(size, channel->frame.payload_size - channel->have);
    if (channel->payload != NULL)
        memcpy(channel->payload + channel->have, at, used);
    payload_grew(channel, used);
    return used;
}

static void feed(struct channel *channel, const uint8_t *window, size_t size)
{
    const uint8_t *at = window;
    const uint8_t *end = window + size;
    while (at < end && is_open(channel)) {
        if (channel->phase == CHANNEL_HEADER)
            at += feed_header(channel, at, (size_t)(end - at));
        else if (channel->phase == CHANNEL_MESSAGE)
            at += feed_message(channel, at, (size_t)(end - at));
        else
            at += feed_payload(channel, at, (size_t)(end - at));
    }
    if (channel->freed || channel->ended || channel->finishing)
        return;
    if (channel->borrowed)
        keep_message(channel);
    if (at < end) {
        channel->held_size = (size_t)(end - at);
        channel->held = xmemdup(at, channel->held_size);
    }
}

static void feed_held(struct channel *channel)
{
    uint8_t *held = channel->held;
    channel->held = NULL;
    feed(channel, held, channel->held_size);
    free(held);
}

/* --- reading
 * ------------------------------------------------------------------------------------------- */
/* Reads once, to where the bytes belong. What stream_read said. */
static ssize_t receive(struct channel *channel, uint8_t window[WINDOW])
{
    ssize_t n;
    uint8_t *to = window;
    size_t room = channel->expects_bulk ? WINDOW_BULK : WINDOW;
    if (channel->phase == CHANNEL_MESSAGE) {
        to = message_room(channel, &room);
        if (to == NULL)
            return STREAM_FAILED;
    } else if (channel->phase == CHANNEL_PAYLOAD) {
        room = channel->frame.payload_size - channel->have;
        if (channel->payload != NULL)
            to = channel->payload + channel->have;
        else
            room = smaller(room, WINDOW);
    }
    n = stream_read(channel->stream, to, room);
    if (n <= 0)
        return n;
    channel->bytes_in += (uint64_t)n;
    if (channel->phase == CHANNEL_MESSAGE)
        message_grew(channel, (size_t)n);
    else if (channel->phase == CHANNEL_PAYLOAD)
        payload_grew(channel, (size_t)n);
    else
        feed(channel, window, (size_t)n);
    return n;
}

static void other_end_closed(struct channel *channel)
{
    if (channel->phase == CHANNEL_HEADER && channel->have == 0)
        end_input(channel, true, "the other end closed the connection");
    else
        end_input(channel, false, "the other end closed the connection within a frame");
}

void channel_input_discard(struct channel *channel)
{
    uint8_t window[WINDOW];
    for (size_t left = LIMIT_TURN_BYTES; left >= sizeof window; left -= sizeof window) {
        ssize_t n = stream_read(channel->stream, window, sizeof window);
        if (n == 0)
            channel_end(channel, true, channel->why);
        if (n <= 0)
            return;
    }
    stream_resume(channel->stream);
}

/* --- what input may cost
 * -------------------------------------------------------------------------------- */
static int64_t credit_at(const struct channel *channel, int64_t now)
{
    int64_t passed = smaller_time(now - channel->credit_at, 60 * NS_PER_S);
    int64_t grown =
        (int64_t)((double)passed * (double)channel->budget / (double)NS_PER_S) + channel->credit;
    return smaller_time(grown, channel->burst);
}

int64_t channel_spent(const struct channel *channel)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    return channel->budget > 0 ? channel->burst - credit_at(channel, clock_now()) : 0;
}

static void charge(struct channel *channel, int64_t cost)
{
    int64_t now = clock_now();
    channel->credit = credit_at(channel, now) - cost;
    channel->credit_at = now;
    if (channel->credit >= 0)
        return;
    /* Not for the debt alone: then a frame or two would be read at a time. */
    double debt = (double)(channel->burst / 4 - channel->credit);
    double wait = debt * (double)NS_PER_S / (double)channel->budget;
    channel->overdrawn = true;
    timer_set(channel->budget_timer, wait < (double)LIMIT_DEBT_NS ? (int64_t)wait : LIMIT_DEBT_NS);
}

void channel_charge(struct channel *channel, int64_t cost)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    if (channel->budget > 0 && !channel->ended && !channel->freed)
        charge(channel, cost);
}

void channel_input_again(void *arg)
{
    struct channel *channel = arg;
    channel->overdrawn = false;
    if (!channel->ended && !channel->paused)
        stream_resume(channel->stream);
}

static void read_round(struct channel *channel)
{
    uint8_t window[WINDOW];
    size_t read = 0;
    if (is_open(channel) && channel->held != NULL)
        feed_held(channel);
    while (is_open(channel)) {
        if (read >= LIMIT_TURN_BYTES) {
            stream_resume(channel->stream);
            break;
        }
        ssize_t n = receive(channel, window);
        if (n == 0)
            other_end_closed(channel);
        if (n <= 0)
            break;
        read += (size_t)n;
    }
}

void channel_input(struct channel *channel)
{
    int64_t began = channel->budget > 0 ? clock_thread() : 0;
    channel->frames = 0;
    if (channel->budget > 0)
        channel->slice_end = clock_now() + LIMIT_TURN_NS;
    read_round(channel);
    if (channel->freed)
        return;
    if (channel->budget > 0 && !channel->ended)
        charge(channel, clock_thread() - began);
    if (channel->yields) {
        channel->yields = false;
        if (!channel->ended && !channel->overdrawn && !channel->paused)
            stream_resume(channel->stream);
    }
    bool delivered = channel->delivered;
    channel->delivered = false;
    if (delivered && channel->events.idle != NULL)
        channel->events.idle(channel->arg);
    if (!channel->freed && !channel->ended && channel->finishing)
        channel_input_discard(channel);
}

void channel_input_free(struct channel *channel)
{
    drop_message(channel);
    free(channel->held);
    channel->held = NULL;
}
