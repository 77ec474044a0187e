/* Owns the shape of a file's Merkle tree: geometry, leaves, nodes, piece layer, root (BEP 52).
 *
 * SHA-256 itself is in sha256_multi.c. Every node of the tree is the SHA-256 of its two children's
 * hashes; what lies behind the end of a file is a subtree of zero leaves, whose root depends on its
 * height only and is computed once for the whole process.
 *
 * Thread: any. Memory: the stack, some KiB, whatever the file's size. */
#include "crypto/merkle.h"

#include <pthread.h>
#include <string.h>

#include "base/check.h"
#include "crypto/sha256_multi.h"

#define PIECE_SIZE_MIN    (256u << 10)
#define PIECE_SIZE_MIDDLE (4u << 20) /* up to here a bitfield is kept within 1 KiB */
#define PIECES_FEW        8192
#define PIECES_MAX        (1u << 20)
#define HEIGHT_MAX        40 /* 2^40 blocks of 16 KiB: far beyond FILE_SIZE_MAX */
#define FLAT_HEIGHT       8 /* subtrees up to this height are computed level by level on the stack */

static uint8_t zero_roots[HEIGHT_MAX + 1][HASH_SIZE];

static void make_zero_roots(void)
{
    for (unsigned height = 0; height < HEIGHT_MAX; height++) {
        uint8_t pair[2 * HASH_SIZE];
        memcpy(pair, zero_roots[height], HASH_SIZE);
        memcpy(pair + HASH_SIZE, zero_roots[height], HASH_SIZE);
        sha256_pairs(zero_roots[height + 1], pair, 1);
    }
}

/* Root of a subtree of zero leaves. */
static const uint8_t *zero_root(unsigned height)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_zero_roots);
    CHECK(height <= HEIGHT_MAX);
    return zero_roots[height];
}

static unsigned height_of(uint64_t width)
{
    return 63u - (unsigned)__builtin_clzll(width);
}

static uint64_t round_up(uint64_t count)
{
    return count <= 1 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(count - 1));
}

struct geometry geometry_of(uint64_t size)
{
    struct geometry g = {.size = size, .piece_size = PIECE_SIZE_MIN};
    uint64_t pieces;

    CHECK(size <= FILE_SIZE_MAX);
    for (;; g.piece_size *= 2) {
        pieces = (size + g.piece_size - 1) / g.piece_size;
        if (pieces <= (g.piece_size < PIECE_SIZE_MIDDLE ? PIECES_FEW : PIECES_MAX))
            break;
    }
    g.pieces = (uint32_t)pieces;
    g.piece_blocks = g.piece_size / BLOCK_SIZE;
    g.blocks = (size + BLOCK_SIZE - 1) / BLOCK_SIZE;
    return g;
}

uint32_t geometry_block_size(const struct geometry *g, uint64_t block)
{
    CHECK(block < g->blocks);
    uint64_t left = g->size - block * BLOCK_SIZE;
    return left < BLOCK_SIZE ? (uint32_t)left : BLOCK_SIZE;
}

void geometry_piece(const struct geometry *g, uint32_t piece, uint64_t *first, uint32_t *count)
{
    CHECK(piece < g->pieces);
    *first = (uint64_t)piece * g->piece_blocks;
    uint64_t left = g->blocks - *first;
    *count = left < g->piece_blocks ? (uint32_t)left : g->piece_blocks;
}

void merkle_leaves(uint8_t *hashes, const uint8_t *const *blocks, size_t count, uint32_t last_size)
{
    CHECK(last_size >= 1 && last_size <= BLOCK_SIZE);
    if (count == 0)
        return;
    size_t whole = last_size == BLOCK_SIZE ? count : count - 1;
    sha256_many(hashes, blocks, whole, BLOCK_SIZE);
    if (whole < count)
        sha256_many(hashes + HASH_SIZE * whole, blocks + whole, 1, last_size);
}

/* Root of the subtree of 2^height nodes that begins with nodes[0..count), each of which stands on a
 * subtree of height `base`; those that are missing stand on zero leaves. */
static void subtree(uint8_t root[HASH_SIZE], const uint8_t *nodes, uint64_t count, unsigned height,
                    unsigned base)
{
    uint8_t level[(HASH_SIZE << FLAT_HEIGHT) / 2 + HASH_SIZE];

    if (count == 0) {
        memcpy(root, zero_root(base + height), HASH_SIZE);
        return;
    }
    if (height == 0) {
        memcpy(root, nodes, HASH_SIZE);
        return;
    }
    if (height > FLAT_HEIGHT) {
        uint64_t half = UINT64_C(1) << (height - 1);
        uint64_t left = count < half ? count : half;
        subtree(level, nodes, left, height - 1, base);
        subtree(level + HASH_SIZE, nodes + HASH_SIZE * left, count - left, height - 1, base);
        sha256_pairs(root, level, 1);
        return;
    }
    for (unsigned done = 0; done < height; done++) {
        uint64_t pairs = count / 2;
        uint8_t odd[2 * HASH_SIZE];
        if (count % 2 != 0) { /* taken aside first: the pairs before it may overwrite it */
            memcpy(odd, nodes + HASH_SIZE * (count - 1), HASH_SIZE);
            memcpy(odd + HASH_SIZE, zero_root(base + done), HASH_SIZE);
        }
        sha256_pairs(level, nodes, pairs);
        if (count % 2 != 0)
            sha256_pairs(level + HASH_SIZE * pairs, odd, 1);
        nodes = level;
        count = pairs + count % 2;
    }
    memcpy(root, level, HASH_SIZE);
}

void merkle_subtree(uint8_t root[HASH_SIZE], const uint8_t *leaves, uint64_t count, uint64_t width)
{
    CHECK(width > 0 && (width & (width - 1)) == 0 && count <= width);
    subtree(root, leaves, count, height_of(width), 0);
}

void merkle_piece(uint8_t node[HASH_SIZE], const struct geometry *g, uint32_t piece,
                  const uint8_t *leaves)
{
    uint64_t first;
    uint32_t count;
    geometry_piece(g, piece, &first, &count);
    /* A file of one piece is no wider than its blocks need. */
    merkle_subtree(node, leaves, count, g->pieces == 1 ? round_up(g->blocks) : g->piece_blocks);
}

void merkle_root(uint8_t root[HASH_SIZE], const struct geometry *g, const uint8_t *piece_layer)
{
    if (g->pieces == 0)
        memset(root, 0, HASH_SIZE);
    else
        subtree(root, piece_layer, g->pieces, height_of(round_up(g->pieces)),
                height_of(g->piece_blocks));
}

void merkle_root_of_leaves(uint8_t root[HASH_SIZE], uint8_t *piece_layer, const struct geometry *g,
                           const uint8_t *leaves)
{
    for (uint32_t piece = 0; piece_layer != NULL && piece < g->pieces; piece++)
        merkle_piece(piece_layer + (size_t)HASH_SIZE * piece, g, piece,
                     leaves + (size_t)HASH_SIZE * g->piece_blocks * piece);
    if (g->pieces == 0)
        memset(root, 0, HASH_SIZE);
    else if (piece_layer != NULL)
        merkle_root(root, g, piece_layer);
    else
        merkle_subtree(root, leaves, g->blocks, round_up(g->blocks));
}
