/* A channel's sending half: two queues of frames, and the pump that gives them to the stream.
 *
 * A queued frame is one allocation: header, packed message and copied payload together; a payload
 * that stays its owner's is only pointed to. The pump gathers what comes next into a scratch of
 * several TLS records on the stack and writes that, so records are full and one system call carries
 * many frames (copying a block costs less than the record of its own that a 30-byte head would
 * need). What the stream does not take stays queued, uncopied, and the order is settled anew at the
 * next try. So what is urgent waits for nothing but the frame that has begun and what the stream
 * and the kernel already hold.
 *
 * Order of the bytes: `current`, then all of the urgent queue, then the bulk queue.
 * Invariants: a frame whose first byte, or first descriptor, the stream has is `current` and in no
 * queue; its remaining bytes still count in its class. No callback runs between gathering and
 * taking the written bytes off the queues, and what was taken off is released after the queues are
 * right again.
 *
 * Thread and memory: as channel.c. */
#include <errno.h>
#include <fcntl.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "proto/channel_internal.h"
#include "proto/limits.h"

/* Four records of TLS. */
#define SCRATCH 65536

/* A block is longer than a record by its head and hashes: if no more than this is behind what the stream takes, it is offered, too. */
#define REST 2048

/* Bytes that are sent before the other streams of this loop get their turn. */
#define BURST (1u << 20)

struct outgoing {
    struct outgoing *next;
    const uint8_t
        *payload; /* behind the head; NULL if there is none, or it was copied into the head */
    void (*release)(void *payload, void *arg);
    void *release_arg;
    uint32_t payload_size;
    uint32_t head_size;
    uint8_t class;
    uint8_t fd_count; /* duplicates that were not yet handed to the stream */
    int fds[LIMIT_FRAME_FDS];
    uint8_t head[]; /* header, message, copied payload */
};

static size_t whole_size(const struct outgoing *out)
{
    return (size_t)out->head_size + out->payload_size;
}

/* What malloc takes beside what it is asked for. */
#define MALLOC_OVERHEAD 16

static void count(struct channel *channel, const struct outgoing *out, bool queued)
{
    size_t memory = sizeof *out + out->head_size + MALLOC_OVERHEAD, lent = out->payload_size;
    channel->memory[out->class] += queued ? memory : 0 - memory;
    if (channel->pool == NULL)
        return;
    channel->pool->memory += queued ? memory : 0 - memory;
    channel->pool->lent += queued ? lent : 0 - lent;
}

static void outgoing_free(struct outgoing *out)
{
    while (out->fd_count > 0)
        close(out->fds[--out->fd_count]);
    if (out->release != NULL)
        out->release((void *)(uintptr_t)out->payload, out->release_arg);
    free(out);
}

/* --- queueing
 * ------------------------------------------------------------------------------------------- */
/* What the owner's calls have in common. */
struct sending {
    enum channel_class class;
    struct frame frame;
    const ProtobufCMessage *message;
    const void *payload;
    bool copy;
};

/* NULL if the channel has ended, or ends for this. */
static struct outgoing *make(struct channel *channel, struct sending *sending)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(!channel->freed);
    if (channel->ended || channel->finishing)
        return NULL;
    size_t message_size =
        sending->message == NULL ? 0 : protobuf_c_message_get_packed_size(sending->message);
    size_t payload_size = sending->frame.payload_size;
    if (message_size > LIMIT_FRAME_MESSAGE || payload_size > LIMIT_FRAME_PAYLOAD) {
        log_error("a frame of type %u is too large to send: %zu bytes and %zu bytes",
                  sending->frame.type, message_size, payload_size);
        channel_end(channel, false, "a frame was too large to send");
        return NULL;
    }
    sending->frame.message_size = (uint32_t)message_size;
    size_t head_size = FRAME_HEADER_SIZE + message_size + (sending->copy ? payload_size : 0);
    struct outgoing *out = malloc(sizeof *out + head_size);
    if (out == NULL) {
        channel_end(channel, false, "there is no memory for a frame");
        return NULL;
    }
    memset(out, 0, sizeof *out);
    out->class = (uint8_t)sending->class;
    out->head_size = (uint32_t)head_size;
    frame_encode(out->head, &sending->frame);
    if (message_size > 0)
        protobuf_c_message_pack(sending->message, out->head + FRAME_HEADER_SIZE);
    if (sending->copy && payload_size > 0)
        memcpy(out->head + FRAME_HEADER_SIZE + message_size, sending->payload, payload_size);
    return out;
}

static void enqueue(struct channel *channel, struct outgoing *out)
{
    struct channel_queue *queue = &channel->queue[out->class];
    if (queue->first == NULL)
        queue->first = out;
    else
        queue->last->next = out;
    queue->last = out;
    queue->bytes += whole_size(out);
    count(channel, out, true);
    if (out->class == CHANNEL_BULK && queue->bytes >= channel->low_mark)
        channel->above = true;
    if (channel->queue[0].bytes + channel->queue[1].bytes > LIMIT_SEND_QUEUE)
        channel_end(channel, false, "the other end does not read what is sent to it");
    else if (!channel->handling && !channel->blocked)
        event_active(&channel->later, 0, 0);
}

void channel_send(struct channel *channel, enum channel_class class, uint16_t type, uint8_t flags,
                  uint32_t id, const ProtobufCMessage *message, const void *payload,
                  size_t payload_size)
{
    CHECK(payload_size <= UINT32_MAX && (payload != NULL || payload_size == 0));
    struct sending sending = {
        .class = class,
        .frame = {.payload_size = (uint32_t)payload_size, .type = type, .flags = flags, .id = id},
        .message = message,
        .payload = payload,
        .copy = true,
    };
    struct outgoing *out = make(channel, &sending);
    if (out != NULL)
        enqueue(channel, out);
}

void channel_send_payload(struct channel *channel, enum channel_class class, uint16_t type,
                          uint8_t flags, uint32_t id, const ProtobufCMessage *message,
                          void *payload, size_t payload_size,
                          void (*release)(void *payload, void *arg), void *release_arg)
{
    CHECK(payload_size <= UINT32_MAX && (payload != NULL || payload_size == 0));
    struct sending sending = {
        .class = class,
        .frame = {.payload_size = (uint32_t)payload_size, .type = type, .flags = flags, .id = id},
        .message = message,
        .payload = payload,
    };
    struct outgoing *out = make(channel, &sending);
    if (out == NULL) {
        if (release != NULL)
            release(payload, release_arg);
        return;
    }
    out->payload = payload;
    out->payload_size = (uint32_t)payload_size;
    out->release = release;
    out->release_arg = release_arg;
    enqueue(channel, out);
}

void channel_send_fds(struct channel *channel, uint16_t type, uint8_t flags, uint32_t id,
                      const ProtobufCMessage *message, const int *fds, unsigned count)
{
    CHECK(count <= LIMIT_FRAME_FDS);
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(channel->ended || stream_is_unix(channel->stream));
    struct sending sending = {
        .class = CHANNEL_URGENT,
        .frame = {.type = type, .flags = flags, .fds = (uint8_t)count, .id = id},
        .message = message,
    };
    struct outgoing *out = make(channel, &sending);
    if (out == NULL)
        return;
    for (unsigned i = 0; i < count; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (fd < 0) {
            outgoing_free(out);
            channel_end(channel, false, "a file descriptor could not be duplicated");
            return;
        }
        out->fds[out->fd_count++] = fd;
    }
    enqueue(channel, out);
}

size_t channel_queued(const struct channel *channel, enum channel_class class)
{
    return channel->queue[class].bytes;
}

size_t channel_memory(const struct channel *channel, enum channel_class class)
{
    return channel->memory[class];
}

void channel_set_pool(struct channel *channel, struct channel_pool *pool)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    CHECK(channel->memory[0] + channel->memory[1] == 0 && channel->pool == NULL);
    channel->pool = pool;
}

size_t channel_share(size_t used, size_t pool, unsigned links, size_t least, size_t most)
{
    size_t share = pool / 2 / (links == 0 ? 1 : links);
    if (used < pool / 2 || share > most)
        return most;
    return share < least ? least : share;
}

void channel_set_low_mark(struct channel *channel, size_t bytes)
{
    CHECK_OBJECT(channel, CHANNEL_MAGIC);
    channel->low_mark = bytes;
    channel->above = channel->queue[CHANNEL_BULK].bytes >= bytes;
}

/* --- the order of what goes out
 * -------------------------------------------------------------------------- */
static struct outgoing *first_of(const struct channel *channel)
{
    if (channel->current != NULL)
        return channel->current;
    if (channel->queue[CHANNEL_URGENT].first != NULL)
        return channel->queue[CHANNEL_URGENT].first;
    return channel->queue[CHANNEL_BULK].first;
}

static struct outgoing *next_of(const struct channel *channel, const struct outgoing *out)
{
    if (out == channel->current) {
        struct outgoing *urgent = channel->queue[CHANNEL_URGENT].first;
        return urgent != NULL ? urgent : channel->queue[CHANNEL_BULK].first;
    }
    if (out->next == NULL && out->class == CHANNEL_URGENT)
        return channel->queue[CHANNEL_BULK].first;
    return out->next;
}

/* Makes the first frame of its queue the current one. */
static void begin(struct channel *channel, struct outgoing *out)
{
    if (out == channel->current)
        return;
    channel->queue[out->class].first = out->next;
    out->next = NULL;
    channel->current = out;
    channel->offset = 0;
}

/* Copies a part of a frame, from `offset` on; returns how much. */
static size_t copy_part(uint8_t *to, size_t room, const struct outgoing *out, size_t offset)
{
    size_t done = 0;
    if (offset < out->head_size) {
        done = smaller(room, out->head_size - offset);
        memcpy(to, out->head + offset, done);
        offset += done;
    }
    size_t rest = smaller(room - done, whole_size(out) - offset);
    if (rest > 0 && offset >= out->head_size)
        memcpy(to + done, out->payload + (offset - out->head_size), rest);
    return done + rest;
}

/* The next bytes to write; *from is where they lie. A frame with descriptors begins a write, so
 * that they travel with its first byte. */
static size_t gather(const struct channel *channel, size_t room, uint8_t scratch[SCRATCH],
                     const uint8_t **from)
{
    const struct outgoing *out = first_of(channel);
    size_t offset = out == channel->current ? channel->offset : 0;
    if (offset >= out->head_size && whole_size(out) - offset >= SCRATCH) {
        *from = out->payload + (offset - out->head_size);
        return whole_size(out) - offset;
    }
    *from = scratch;
    size_t size = 0;
    while (size < room && out != NULL && (size == 0 || out->fd_count == 0)) {
        size += copy_part(scratch + size, room - size, out, offset);
        out = next_of(channel, out);
        offset = 0;
    }
    return size;
}

/* --- the pump
 * ---------------------------------------------------------------------------------------------- */
static bool is_empty(const struct channel *channel)
{
    return first_of(channel) == NULL;
}

static bool has_room(const struct channel *channel)
{
    return !channel->freed && !channel->ended && !channel->blocked;
}

static void flush(struct channel *channel)
{
    int result = stream_flush(channel->stream);
    if (result == 0)
        channel->unflushed = false;
    else
        channel->blocked = true;
}

/* The stream has taken `size` bytes of what gather laid out. */
static void take_off(struct channel *channel, size_t size)
{
    struct outgoing *done = NULL;
    struct outgoing **end = &done;
    channel->bytes_out += size;
    channel->unflushed = true;
    while (size > 0) {
        begin(channel, first_of(channel));
        struct outgoing *out = channel->current;
        size_t taken = smaller(size, whole_size(out) - channel->offset);
        channel->offset += taken;
        channel->queue[out->class].bytes -= taken;
        size -= taken;
        if (channel->offset == whole_size(out)) {
            *end = out; /* its `next` is NULL since it was begun */
            end = &out->next;
            channel->current = NULL;
        }
    }
    while (done != NULL) {
        struct outgoing *out = done;
        done = out->next;
        count(channel, out, false);
        outgoing_free(out);
    }
}

/* Hands the descriptors of the next frame, if it has any, to the stream. False if that can't be
 * done now. */
static bool attach_fds(struct channel *channel)
{
    struct outgoing *out = first_of(channel);
    while (out->fd_count > 0) {
        begin(channel, out);
        int result = stream_unix_attach(channel->stream, out->fds[0]);
        if (result != 0) {
            if (channel->unflushed)
                flush(channel); /* others wait there still: they leave with what is flushed */
            else
                channel_end(channel, false, "a file descriptor could not be sent");
            return false;
        }
        close(out->fds[0]);
        out->fd_count--;
        memmove(out->fds, out->fds + 1, out->fd_count * sizeof out->fds[0]);
    }
    return true;
}

/* Writes once. False if the stream takes no more for now. */
static bool write_some(struct channel *channel, uint8_t scratch[SCRATCH])
{
    if (!attach_fds(channel))
        return true; /* the pump looks again: flushed, blocked or ended */
    const uint8_t *from;
    /* Where a record at a time is taken, copying four for each of them was a third of a busy thread's time. */
    size_t room = smaller(stream_room(channel->stream), SCRATCH);
    size_t queued = channel->queue[0].bytes + channel->queue[1].bytes;
    if (room > 0 && room + REST <= SCRATCH && queued <= room + REST)
        room += REST;
    size_t size = gather(channel, room > 0 ? room : 1, scratch, &from);
    ssize_t taken = stream_write(channel->stream, from, size);
    if (taken > 0)
        take_off(channel, (size_t)taken);
    if (taken == (ssize_t)size || !has_room(channel))
        return true;
    if (taken <= 0 && !channel->unflushed)
        return false;
    flush(channel); /* makes room, or not: then `writable` will come */
    return true;
}

static void tell_drained(struct channel *channel)
{
    if (channel->freed || channel->ended || channel->finishing)
        return;
    if (!channel->above || channel->queue[CHANNEL_BULK].bytes >= channel->low_mark)
        return;
    channel->above = false;
    if (channel->events.drained != NULL)
        channel->events.drained(channel->arg);
}

void channel_output(struct channel *channel)
{
    static const struct timeval next_round = {0, 0};
    uint8_t scratch[SCRATCH];
    uint64_t stop = channel->bytes_out + BURST;
    while (has_room(channel) && !is_empty(channel) && channel->bytes_out < stop) {
        if (!write_some(channel, scratch))
            channel->blocked = true;
        tell_drained(channel);
    }
    if (channel->freed || channel->ended)
        return;
    if (channel->unflushed)
        flush(channel);
    if (!channel->blocked && !is_empty(channel))
        event_add(&channel->later, &next_round);
    if (channel->finishing && is_empty(channel) && !channel->unflushed) {
        channel_input_discard(channel);
        channel_end(channel, true, channel->why);
    }
}

void channel_output_free(struct channel *channel)
{
    struct outgoing *out;
    channel_enter(channel);
    while ((out = first_of(channel)) != NULL) {
        begin(channel, out);
        channel->current = NULL;
        count(channel, out, false);
        outgoing_free(out);
    }
    channel->queue[CHANNEL_URGENT].bytes = channel->queue[CHANNEL_BULK].bytes = 0;
    channel_leave(channel);
}
