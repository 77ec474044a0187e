/* Framing: how messages of all three protocols (peer, tracker, local) stand in a stream of bytes.
 *
 *   offset size
 *   0      4    length of the message, big endian, at most LIMIT_FRAME_MESSAGE
 *   4      4    length of the payload, big endian, at most LIMIT_FRAME_PAYLOAD
 *   8      2    type: the number of the message in its protocol's `enum …Type`
 *   10     1    flags
 *   11     1    number of file descriptors beside this frame (local protocol only, else 0)
 *   12     4    id: ties an answer to its request; 0 where there is none
 *   16          the message, packed by Protocol Buffers; then the payload, raw
 *
 * Flags: FRAME_MAY_SKIP: a receiver that does not know the type skips the frame; without it, it ends the
 * connection. FRAME_ANSWER: this is the answer to the request with that id. Other bits must be 0. */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER_SIZE 16
#define FRAME_MAY_SKIP    0x01
#define FRAME_ANSWER      0x02

struct frame {
    uint32_t message_size;
    uint32_t payload_size;
    uint16_t type;
    uint8_t flags;
    uint8_t fds;
    uint32_t id;
};

void frame_encode(uint8_t out[FRAME_HEADER_SIZE], const struct frame *);

/* NULL and *out filled, or what is wrong (a clause for a log line). `message_max` is the bound on the
 * message in the connection's present state. */
const char *frame_decode(struct frame *out, const uint8_t in[FRAME_HEADER_SIZE],
                         uint32_t message_max);

#endif
