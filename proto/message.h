/* Unpacking messages from strangers, in bounded memory and mostly without malloc.
 *
 *     struct message_arena arena;
 *     const Peer__Request *request = message_unpack(&arena, &peer__request__descriptor, message,
 * frame->message_size); if (request == NULL) return "a malformed Request"; … use it …
 *     message_done(&arena);
 *
 * Everything that message_unpack returned lies in the arena and is gone with message_done (which
 * must also follow a NULL; twice is fine). The first MESSAGE_ARENA_SMALL bytes are in the arena
 * itself, on the caller's stack: a Block, a Request, a Ping needs no malloc.
 *
 * The bound: protobuf-c makes a structure of 150 bytes out of two bytes on the wire (an empty
 * submessage). So all memory of one unpacking, with protobuf-c's own bookkeeping, is at most
 * LIMIT_ARENA_FLOOR plus LIMIT_ARENA_FACTOR times the message's size; a message that needs more
 * is as good as malformed. The floor lets through what honest senders pack tightest: LIMIT_CHANGES
 * deletions or LIMIT_OPS removals in one message. How many elements a repeated field may have is a
 * limit that the owner still checks.
 *
 * What is not checked here: that strings are UTF-8 (name_is_valid and utf8_is_valid do it); that a
 * byte of 0 within a string does not end it early for C (it does); enums (an unknown number arrives
 * as such); lengths of bytes and strings. What protobuf-c promises: strings end with 0 and are
 * never NULL ("" when absent), submessages may be NULL, of a field sent twice the last one counts,
 * unknown fields are skipped (and take memory of the arena). */
#ifndef PROTO_MESSAGE_H
#define PROTO_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#define MESSAGE_ARENA_SMALL 1024

struct message_chunk;

struct message_arena { /* all of it message.c's */
    ProtobufCAllocator allocator;
    struct message_chunk *chunks;
    uint8_t *at; /* free bytes of the newest chunk, or of `small` */
    size_t room;
    size_t left; /* bytes that may still be taken from malloc */
    _Alignas(16) uint8_t small[MESSAGE_ARENA_SMALL];
};

/* The message, in *arena, which need not be initialised; or NULL if the bytes are malformed or over
 * the bound. Any thread. */
const void *message_unpack(struct message_arena *arena, const ProtobufCMessageDescriptor *,
                           const uint8_t *bytes, size_t size);
void message_done(struct message_arena *arena);

/* Text for a field of a message that is going to be packed: protobuf-c's structures have no const, and packing does not
 * write. */
static inline char *message_text(const char *text)
{
    return (char *)(uintptr_t)text;
}

#endif
