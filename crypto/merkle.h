/* The Merkle tree of a file, exactly as BitTorrent v2 (BEP 52) lays it.
 *
 *   leaf   SHA-256 of one 16 KiB block's bytes (the last block as short as it is)
 *   tree   binary; the leaves are padded with zero hashes (32 bytes of 0) to a power of two
 *   root   names the content. A file of one block has its only leaf as root; an empty file has the
 *          zero hash, as libtorrent reports for it.
 *   piece layer   the nodes that cover one piece each; pieces behind the end are not listed, and count
 *          as the root of a subtree of zero leaves when the root is computed. In a file of one piece or
 *          less the layer has one entry: the root.
 *
 * All functions are pure and thread-safe. Hashes are 32 bytes, arrays of hashes are packed. */
#ifndef CRYPTO_MERKLE_H
#define CRYPTO_MERKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HASH_SIZE  32
#define BLOCK_SIZE 16384

/* Sizes that follow from a file's size. piece_size: 256 KiB, doubled while there are more than 8192
 * pieces, up to 4 MiB; then doubled only while there are more than 2^20 pieces. */
struct geometry {
    uint64_t size;         /* of the file, bytes */
    uint32_t piece_size;   /* power of two, >= 256 KiB */
    uint32_t piece_blocks; /* piece_size / BLOCK_SIZE */
    uint64_t blocks;       /* of the file; 0 for an empty one */
    uint32_t pieces;
};
#define FILE_SIZE_MAX (UINT64_C(1) << 44) /* 16 TiB: what ext4 can hold in one file */

/* size <= FILE_SIZE_MAX (CHECKed). */
struct geometry geometry_of(uint64_t size);
/* Bytes of block `block` (16384, or less for the last). */
uint32_t geometry_block_size(const struct geometry *, uint64_t block);
/* First block and number of blocks of piece `piece`. */
void geometry_piece(const struct geometry *, uint32_t piece, uint64_t *first, uint32_t *count);

/* SHA-256 of `count` messages, each 16384 bytes but the last of which may be shorter
 * (`last_size` in 1..16384): block[i] is where message i lies, hash + 32 i gets its digest. Uses SHA-NI on
 * several messages at once where the processor has it, OpenSSL elsewhere; the same result. */
void merkle_leaves(uint8_t *hashes, const uint8_t *const *blocks, size_t count, uint32_t last_size);

/* Root of a subtree over leaves[0..count), padded with zero leaves to `width` (a power of two >= count). */
void merkle_subtree(uint8_t root[HASH_SIZE], const uint8_t *leaves, uint64_t count, uint64_t width);

/* The node of piece `piece` from the leaves of that piece (count as geometry_piece says). */
void merkle_piece(uint8_t node[HASH_SIZE], const struct geometry *, uint32_t piece,
                  const uint8_t *leaves);

/* The file's root from its piece layer (geometry.pieces hashes; 0 pieces: the zero hash). */
void merkle_root(uint8_t root[HASH_SIZE], const struct geometry *, const uint8_t *piece_layer);

/* Convenience: piece layer and root from all leaves. `piece_layer` may be NULL. */
void merkle_root_of_leaves(uint8_t root[HASH_SIZE], uint8_t *piece_layer, const struct geometry *,
                           const uint8_t *leaves);

#endif
