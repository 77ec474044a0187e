/* The arithmetic of parts: parts.h.
 *
 * Owns nothing. Pure; any thread. The bitmaps of blocks may grow meanwhile: a part is seen whole now or the next time. */
#include "daemon/parts.h"

#include <stdlib.h>

#include "base/bitmap.h"

struct geometry parts_of(const struct geometry *geometry)
{
    struct geometry parts = *geometry;

    parts.piece_blocks = PART_BLOCKS;
    while (parts.piece_blocks < geometry->piece_blocks &&
           geometry->blocks > (uint64_t)parts.piece_blocks * PARTS_FEW)
        parts.piece_blocks *= 2;
    parts.piece_size = parts.piece_blocks * BLOCK_SIZE;
    parts.pieces = (uint32_t)((geometry->blocks + parts.piece_blocks - 1) / parts.piece_blocks);
    return parts;
}

uint32_t parts_ratio(const struct geometry *geometry, const struct geometry *parts)
{
    return geometry->piece_blocks / parts->piece_blocks;
}

static bool is_whole(const struct geometry *parts, const uint8_t *present, uint32_t part)
{
    uint64_t first;
    uint32_t count;

    geometry_piece(parts, part, &first, &count);
    return bitmap_all(present, first, count);
}

uint8_t *parts_map(const struct geometry *parts, const uint8_t *present)
{
    uint8_t *map = calloc(1, bitmap_bytes(parts->pieces) + 1);

    for (uint32_t i = 0; map != NULL && i < parts->pieces; i++) {
        if (is_whole(parts, present, i))
            bitmap_set(map, i);
    }
    return map;
}

uint8_t *parts_of_pieces(const struct geometry *geometry, const struct geometry *parts,
                         const uint8_t *pieces)
{
    uint8_t *map = calloc(1, bitmap_bytes(parts->pieces) + 1);
    uint32_t ratio = parts_ratio(geometry, parts);

    for (uint32_t i = 0; map != NULL && i < parts->pieces; i++) {
        if (bitmap_test(pieces, i / ratio))
            bitmap_set(map, i);
    }
    return map;
}

bool parts_completed(const struct geometry *parts, const uint8_t *present, uint64_t first,
                     uint32_t count)
{
    uint32_t last = (uint32_t)((first + count - 1) / parts->piece_blocks);

    for (uint32_t i = (uint32_t)(first / parts->piece_blocks); i <= last; i++) {
        if (is_whole(parts, present, i))
            return true;
    }
    return false;
}
