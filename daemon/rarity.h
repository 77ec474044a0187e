/* Pieces in order of rarity, kept by deltas.
 *
 * Pure. Holds the pieces that may be picked next (those that are missing and not begun), sorted by
 * how many neighbours have them and, among equals, by how many copies the tracker counts; random
 * among equals. A change of one piece costs a few swaps, whatever the number of pieces; 11 bytes a
 * piece. */
#ifndef DAEMON_RARITY_H
#define DAEMON_RARITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rarity;

/* All of `pieces` pieces, none listed, no copies known. NULL if memory does not suffice. */
struct rarity *rarity_new(uint32_t pieces, uint64_t seed);
void rarity_free(struct rarity *); /* NULL is fine */

/* Lists or unlists a piece; idempotent. */
void rarity_list(struct rarity *, uint32_t piece, bool listed);
/* One neighbour more (+1) or less (-1) has the piece. */
void rarity_neighbour(struct rarity *, uint32_t piece, int change);
/* What the tracker counts: one byte a piece for the first `count` pieces. */
void rarity_copies(struct rarity *, const uint8_t *copies, size_t count);

uint32_t rarity_listed(const struct rarity *);
/* The i-th rarest listed piece, i < rarity_listed. */
uint32_t rarity_at(const struct rarity *, uint32_t i);
/* The first i whose piece a neighbour has; rarity_listed if there is none. */
uint32_t rarity_common(const struct rarity *);
uint32_t rarity_neighbours(const struct rarity *, uint32_t piece);

#endif
