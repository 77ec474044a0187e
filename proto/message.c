/* The arena that strangers' messages are unpacked into, see message.h.
 *
 * A bump allocator behind protobuf-c's allocator interface: first `small`, then chunks of malloc
 * that double, all charged against `left` before they are taken. free does nothing; message_done
 * frees the chunks. Bound before memory: what `left` does not cover fails, and protobuf-c then
 * gives up in order, freeing what it had.
 *
 * Unknown fields: protobuf-c copies each into memory of its allocator, so they are charged as well.
 * Recursion: the schemas have no message that contains itself, so the depth is theirs, not the
 * sender's. */
#include "proto/message.h"

#include <stdbool.h>
#include <stdlib.h>

#include "proto/limits.h"

#define ALIGNMENT   16
#define CHUNK_FIRST 4096

struct message_chunk {
    struct message_chunk *next;
    size_t size;
    _Alignas(ALIGNMENT) uint8_t bytes[];
};

static bool add_chunk(struct message_arena *arena, size_t need)
{
    size_t size = arena->chunks == NULL ? CHUNK_FIRST : 2 * arena->chunks->size;
    if (size < need)
        size = need;
    if (size > arena->left)
        size = arena->left; /* the last one */
    if (size < need)
        return false;
    struct message_chunk *chunk = malloc(sizeof *chunk + size);
    if (chunk == NULL)
        return false;
    chunk->next = arena->chunks;
    chunk->size = size;
    arena->chunks = chunk;
    arena->at = chunk->bytes;
    arena->room = size;
    arena->left -= size;
    return true;
}

static void *arena_alloc(void *data, size_t size)
{
    struct message_arena *arena = data;
    if (size > arena->room + arena->left)
        return NULL;
    size = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (size > arena->room && !add_chunk(arena, size))
        return NULL;
    void *taken = arena->at;
    arena->at += size;
    arena->room -= size;
    return taken;
}

static void arena_free(void *data, void *pointer)
{
}

const void *message_unpack(struct message_arena *arena,
                           const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
                           size_t size)
{
    arena->allocator = (ProtobufCAllocator){
        .alloc = arena_alloc,
        .free = arena_free,
        .allocator_data = arena,
    };
    arena->chunks = NULL;
    arena->at = arena->small;
    arena->room = sizeof arena->small;
    arena->left = LIMIT_ARENA_FLOOR + LIMIT_ARENA_FACTOR * size;
    return protobuf_c_message_unpack(descriptor, &arena->allocator, size, bytes);
}

void message_done(struct message_arena *arena)
{
    while (arena->chunks != NULL) {
        struct message_chunk *chunk = arena->chunks;
        arena->chunks = chunk->next;
        free(chunk);
    }
}
