/* Parts: what of a piece that is not whole yet can be passed on already.
 *
 * Blocks are verified one by one, so a member can serve what it has of a piece before it has the rest. On a slow uplink a piece
 * takes seconds, and a swarm that passes on only what is whole waits that long at the start, at the end, and at every step
 * between; so the smaller a content, the smaller the unit in which members tell each other what they have. Picker and choker
 * count in parts; tracker, store and hashes know pieces only.
 *
 * A part is a run of consecutive blocks, PART_BLOCKS at least, of which 1, 2, 4 … make a piece; so many that a content has at
 * most PARTS_FEW of them, or else its pieces themselves. Both ends of a link compute this alike from the content's size; it is
 * a rule of the peer protocol. Pure. */
#ifndef DAEMON_PARTS_H
#define DAEMON_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/merkle.h"

/* A twenty-fifth of a second of 5 Mbit/s. With 64 KiB, 16 fetchers of 16 MiB on uplinks of 1.25 and 8.75 Mbit/s took 1.21 of the
 * bound, with 16 KiB 1.15: nobody has anything to pass on before its first part, and the last parts take their time with everybody.
 * Each received 1.105 of the content, headers included, after 1.091: news is gathered for a moment. */
#define PART_BLOCKS 1u
#define PARTS_FEW   1024u /* each is told to every neighbour */

/* The same content cut into parts: piece_size, piece_blocks and pieces are theirs. */
struct geometry parts_of(const struct geometry *);
/* How many make a piece. */
uint32_t parts_ratio(const struct geometry *, const struct geometry *parts);
/* The parts of which all blocks are in the bitmap `present`: a fresh bitmap, the caller's to free; NULL if there is no memory. */
uint8_t *parts_map(const struct geometry *parts, const uint8_t *present);
/* The parts of the pieces in the bitmap `pieces`; the same. */
uint8_t *parts_of_pieces(const struct geometry *, const struct geometry *parts,
                         const uint8_t *pieces);
/* Whether blocks [first, first + count), which have just come, made any part whole. */
bool parts_completed(const struct geometry *parts, const uint8_t *present, uint64_t first,
                     uint32_t count);

#endif
