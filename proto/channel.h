/* A channel: frames over a stream, both ways, on one loop's thread.
 *
 * Receiving: a frame's message is collected in the channel; its payload goes straight from the stream into
 * memory that the owner names (`payload`), so that a block is decrypted into the buffer that is hashed and
 * written. Sending: frames wait in two queues; all of the urgent queue goes before the next frame of the bulk
 * queue. A frame is never cut. So that urgent frames have little to wait for, whoever sends bulk keeps its
 * queue short: `drained` comes when less than the low mark is queued, and then more may be given.
 *
 * Callbacks come from the loop, never from within channel_send or channel_start. Within any callback
 * channel_free is allowed. */
#ifndef PROTO_CHANNEL_H
#define PROTO_CHANNEL_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"

struct loop;
struct stream;
struct channel;

struct channel_events {
    /* The stream's handshake is done. May be NULL. */
    void (*ready)(void *arg);
    /* A whole frame: `message` has frame->message_size bytes and is valid during the call. The payload, if
     * any, lies where `payload` said. Returns NULL, or a clause that says why the channel must end (it is sent
     * nowhere; `closed` follows with it; what was queued before, a farewell say, is sent as far as the stream takes
     * it at once: channel_finish does more). */
    const char *(*frame)(void *arg, const struct frame *, const uint8_t *message, void *payload);
    /* A frame with a payload has begun: its message is here. Returns memory of payload_size bytes, or NULL
     * with *fault set to end the channel, or NULL with *fault left NULL: the payload is read and thrown away, and
     * `frame` gets NULL for it. With this callback NULL every payload is a fault. The memory stays the owner's;
     * if the channel ends before `frame`, it was not filled. */
    void *(*payload)(void *arg, const struct frame *, const uint8_t *message, const char **fault);
    /* All the input that was there has been handed out: a good moment to pass on what was gathered. May be
     * NULL. */
    void (*idle)(void *arg);
    /* The bulk queue is below the low mark. Comes once each time it falls below. May be NULL. */
    void (*drained)(void *arg);
    /* The channel has ended; nothing else follows; the owner frees it. `why` is a clause. `orderly` if the
     * other end closed between two frames. */
    void (*closed)(void *arg, bool orderly, const char *why);
};

/* Owns the stream from now on. Bound on messages: LIMIT_STRANGER_FRAME until channel_trust. */
struct channel *channel_new(struct loop *, struct stream *, const struct channel_events *,
                            void *arg);
void channel_trust(struct channel *);
struct stream *channel_stream(const struct channel *);
/* Closes at once, NULL is fine. Payloads that were queued are released. */
void channel_free(struct channel *);
/* Sends what is queued, then calls closed(orderly): for a last word. New input is ignored. What the other end
 * does not take within LIMIT_FINISH_NS is given up. */
void channel_finish(struct channel *, const char *why);

enum channel_class { CHANNEL_URGENT, CHANNEL_BULK };

/* Packs and queues a message; a NULL message is an empty one, `payload` may be NULL. The payload's bytes are copied (channel_send) or stay the
 * caller's until `release` is called on this thread, perhaps from within this very call (channel_send_payload).
 * What is queued leaves by itself at the end of the loop's round. If more than LIMIT_SEND_QUEUE is queued, or the
 * message or payload is over its LIMIT_FRAME_… (so batch what strangers can swell by its packed size), the channel
 * ends (`closed`). On a channel that has ended nothing is sent, and the payload is released at once. */
void channel_send(struct channel *, enum channel_class, uint16_t type, uint8_t flags, uint32_t id,
                  const ProtobufCMessage *message, const void *payload, size_t payload_size);
void channel_send_payload(struct channel *, enum channel_class, uint16_t type, uint8_t flags,
                          uint32_t id, const ProtobufCMessage *message, void *payload,
                          size_t payload_size, void (*release)(void *payload, void *arg),
                          void *release_arg);
/* As channel_send without payload, with file descriptors beside (Unix streams only); they are duplicated. */
void channel_send_fds(struct channel *, uint16_t type, uint8_t flags, uint32_t id,
                      const ProtobufCMessage *message, const int *fds, unsigned count);
/* During `frame`: the descriptors that came with it; each can be taken once and is then the caller's; -1 if there
 * are no more. What is not taken is closed. */
int channel_take_fd(struct channel *);

/* Bytes queued and not yet given to the stream. */
size_t channel_queued(const struct channel *, enum channel_class);
/* The memory of the frames that are queued, which for small ones is a multiple of their bytes; without lent payloads. */
size_t channel_memory(const struct channel *, enum channel_class);
/* What the channels of one thread have queued together. */
struct channel_pool {
    size_t memory; /* as channel_memory has it */
    size_t lent;   /* bytes of payloads that are lent */
};
/* From now on the channel, which has queued nothing yet, is counted there; the pool outlives it. */
void channel_set_pool(struct channel *, struct channel_pool *);
/* What one of `links` channels may have queued when all of them have `used`, and should have no more than `pool`: `most`
 * while half of the pool is free, then an equal share of that half, `least` at the least. */
size_t channel_share(size_t used, size_t pool, unsigned links, size_t least, size_t most);
void channel_set_low_mark(struct channel *, size_t bytes); /* default 32 KiB */
/* Stops and resumes reading, for back-pressure. */
void channel_pause(struct channel *, bool paused);
/* Bounds what the other end's input may cost, for owners who expect no bulk: `per_second` ns of this thread's processor
 * time, `burst` at once. Beyond that input waits, in the kernel, until the debt is paid; nothing is lost and the
 * channel does not end. Any channel gives way to the others of its loop after a few hundred small frames; one with a
 * budget also after two milliseconds. A larger burst than before fills up in time. */
void channel_set_budget(struct channel *, int64_t per_second, int64_t burst);
/* Input of this channel's cost so much besides, elsewhere or later; less than 0: it may cost so much more, once. Nothing
 * without a budget. */
void channel_charge(struct channel *, int64_t cost);
/* How much of its burst is used up at this moment; 0 without a budget. */
int64_t channel_spent(const struct channel *);
/* Whether it ended because the other end broke the rules of framing (a header or a payload that is not allowed): a
 * fault of `frame`'s is the owner's own to know. */
bool channel_is_broken(const struct channel *);
/* When the last frame arrived, on the monotonic clock; and bytes both ways, frames included. */
int64_t channel_last_heard(const struct channel *);
uint64_t channel_bytes_in(const struct channel *);
uint64_t channel_bytes_out(const struct channel *);

#endif
