/* The 16 bytes before every message: written and judged here, and nowhere else.
 *
 * Implements the table in frame.h. Pure: no state, no memory, any thread. The bounds are checked
 * before anyone can use a length, so a caller may add and allocate what a decoded frame says: both
 * lengths are at most 1 MiB and their sum can't wrap. What a type means is left to the owner of the
 * channel. */
#include "proto/frame.h"

#include "proto/limits.h"

static void put16(uint8_t *out, uint16_t value)
{
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
}

static void put32(uint8_t *out, uint32_t value)
{
    put16(out, (uint16_t)(value >> 16));
    put16(out + 2, (uint16_t)value);
}

static uint16_t get16(const uint8_t *in)
{
    return (uint16_t)(in[0] << 8 | in[1]);
}

static uint32_t get32(const uint8_t *in)
{
    return (uint32_t)get16(in) << 16 | get16(in + 2);
}

void frame_encode(uint8_t out[FRAME_HEADER_SIZE], const struct frame *frame)
{
    put32(out, frame->message_size);
    put32(out + 4, frame->payload_size);
    put16(out + 8, frame->type);
    out[10] = frame->flags;
    out[11] = frame->fds;
    put32(out + 12, frame->id);
}

const char *frame_decode(struct frame *out, const uint8_t in[FRAME_HEADER_SIZE],
                         uint32_t message_max)
{
    out->message_size = get32(in);
    out->payload_size = get32(in + 4);
    out->type = get16(in + 8);
    out->flags = in[10];
    out->fds = in[11];
    out->id = get32(in + 12);
    if (out->message_size > message_max || out->message_size > LIMIT_FRAME_MESSAGE)
        return "a frame's message is over the limit";
    if (out->payload_size > LIMIT_FRAME_PAYLOAD)
        return "a frame's payload is over the limit";
    if ((out->flags & ~(FRAME_MAY_SKIP | FRAME_ANSWER)) != 0)
        return "a frame has unknown flags";
    if (out->fds > LIMIT_FRAME_FDS)
        return "a frame has too many file descriptors";
    return NULL;
}
