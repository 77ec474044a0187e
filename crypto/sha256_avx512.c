/* Owns SHA-256 of sixteen messages at once (FIPS 180-4), in AVX-512 registers.
 *
 * One 32-bit lane of every register belongs to one message, so the standard's formulas stand here as
 * they are, and no instruction waits for its neighbour. A chunk of 16 words of 16 messages is
 * loaded row by row and transposed: gathers would cost more. State (8 registers), schedule (16) and what
 * is in work nearly fill the 32 registers there are; the state before a chunk waits in memory. What limits
 * the speed is the one port that rotates 512 bits, and the two that do the rest.
 *
 * Whether this is faster than the SHA extensions depends on the processor: sha256_multi.c measures it.
 * Thread: any. Memory: 3 KiB of stack. */
#include "crypto/sha256_internal.h"

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define WIDE_TARGET   __attribute__((target("avx512f,avx512bw")))

#define ADD(A, B)     _mm512_add_epi32(A, B)
#define ROTATE(A, N)  _mm512_ror_epi32(A, N)
#define XOR3(A, B, C) _mm512_ternarylogic_epi32(A, B, C, 0x96)

/* 4.1.2 */
#define CH(E, F, G)  _mm512_ternarylogic_epi32(E, F, G, 0xca)
#define MAJ(A, B, C) _mm512_ternarylogic_epi32(A, B, C, 0xe8)
#define SUM0(A)      XOR3(ROTATE(A, 2), ROTATE(A, 13), ROTATE(A, 22))
#define SUM1(E)      XOR3(ROTATE(E, 6), ROTATE(E, 11), ROTATE(E, 25))
#define SIGMA0(W)    XOR3(ROTATE(W, 7), ROTATE(W, 18), _mm512_srli_epi32(W, 3))
#define SIGMA1(W)    XOR3(ROTATE(W, 17), ROTATE(W, 19), _mm512_srli_epi32(W, 10))

/* 6.2.2, step 3. The sum that does not need the last round's result comes first. */
#define ROUND(A, B, C, D, E, F, G, H, T)                                                           \
    do {                                                                                           \
        H = ADD(H, ADD(w[T], _mm512_set1_epi32((int)constants[T])));                               \
        H = ADD(ADD(H, CH(E, F, G)), SUM1(E));                                                     \
        D = ADD(D, H);                                                                             \
        H = ADD(ADD(H, MAJ(A, B, C)), SUM0(A));                                                    \
    } while (0)
/* Step 1, in place: word T + 16 takes the place of word T. */
#define SCHEDULE(T)                                                                                \
    (w[T] = ADD(ADD(w[T], w[((T) + 9) % 16]),                                                      \
                ADD(SIGMA0(w[((T) + 1) % 16]), SIGMA1(w[((T) + 14) % 16]))))
#define NO_SCHEDULE(T) (void)0
#define ROUNDS_8(WORDS, T)                                                                         \
    do {                                                                                           \
        WORDS(T);                                                                                  \
        ROUND(a, b, c, d, e, f, g, h, T);                                                          \
        WORDS((T) + 1);                                                                            \
        ROUND(h, a, b, c, d, e, f, g, (T) + 1);                                                    \
        WORDS((T) + 2);                                                                            \
        ROUND(g, h, a, b, c, d, e, f, (T) + 2);                                                    \
        WORDS((T) + 3);                                                                            \
        ROUND(f, g, h, a, b, c, d, e, (T) + 3);                                                    \
        WORDS((T) + 4);                                                                            \
        ROUND(e, f, g, h, a, b, c, d, (T) + 4);                                                    \
        WORDS((T) + 5);                                                                            \
        ROUND(d, e, f, g, h, a, b, c, (T) + 5);                                                    \
        WORDS((T) + 6);                                                                            \
        ROUND(c, d, e, f, g, h, a, b, (T) + 6);                                                    \
        WORDS((T) + 7);                                                                            \
        ROUND(b, c, d, e, f, g, h, a, (T) + 7);                                                    \
    } while (0)

/* The chunk at `offset` of the messages 4 G to 4 G + 3, their words in the machine's order, transposed
 * in fours: 128-bit lane L of quads[G][J] is word 4 L + J of the four messages. */
#define LOAD(I) _mm512_shuffle_epi8(_mm512_loadu_si512(data[I] + offset), swap)
#define LOAD_QUADS(G)                                                                              \
    do {                                                                                           \
        const __m512i r0 = LOAD(4 * (G)), r1 = LOAD(4 * (G) + 1);                                  \
        const __m512i r2 = LOAD(4 * (G) + 2), r3 = LOAD(4 * (G) + 3);                              \
        const __m512i low0 = _mm512_unpacklo_epi32(r0, r1);                                        \
        const __m512i low2 = _mm512_unpacklo_epi32(r2, r3);                                        \
        const __m512i high0 = _mm512_unpackhi_epi32(r0, r1);                                       \
        const __m512i high2 = _mm512_unpackhi_epi32(r2, r3);                                       \
        quads[G][0] = _mm512_unpacklo_epi64(low0, low2);                                           \
        quads[G][1] = _mm512_unpackhi_epi64(low0, low2);                                           \
        quads[G][2] = _mm512_unpacklo_epi64(high0, high2);                                         \
        quads[G][3] = _mm512_unpackhi_epi64(high0, high2);                                         \
    } while (0)
/* Words J, J + 4, J + 8 and J + 12 of all messages. */
#define LOAD_WORDS(J)                                                                              \
    do {                                                                                           \
        const __m512i even0 = _mm512_shuffle_i32x4(quads[0][J], quads[1][J], 0x88);                \
        const __m512i even2 = _mm512_shuffle_i32x4(quads[2][J], quads[3][J], 0x88);                \
        const __m512i odd0 = _mm512_shuffle_i32x4(quads[0][J], quads[1][J], 0xdd);                 \
        const __m512i odd2 = _mm512_shuffle_i32x4(quads[2][J], quads[3][J], 0xdd);                 \
        w[J] = _mm512_shuffle_i32x4(even0, even2, 0x88);                                           \
        w[(J) + 4] = _mm512_shuffle_i32x4(odd0, odd2, 0x88);                                       \
        w[(J) + 8] = _mm512_shuffle_i32x4(even0, even2, 0xdd);                                     \
        w[(J) + 12] = _mm512_shuffle_i32x4(odd0, odd2, 0xdd);                                      \
    } while (0)

/* Takes `size` bytes, whole chunks, of each message into the state. */
WIDE_TARGET static void compress(__m512i state[8], const uint8_t *const data[WIDE_LANES],
                                 size_t size)
{
    const __m512i swap =
        _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
    __m512i a = state[0], b = state[1], c = state[2], d = state[3];
    __m512i e = state[4], f = state[5], g = state[6], h = state[7];

    for (size_t offset = 0; offset < size; offset += CHUNK) {
        const uint32_t *constants = sha256_round_constants;
        __m512i quads[4][4], w[16];

        LOAD_QUADS(0);
        LOAD_QUADS(1);
        LOAD_QUADS(2);
        LOAD_QUADS(3);
        LOAD_WORDS(0);
        LOAD_WORDS(1);
        LOAD_WORDS(2);
        LOAD_WORDS(3);
        ROUNDS_8(NO_SCHEDULE, 0);
        ROUNDS_8(NO_SCHEDULE, 8);
        for (unsigned pass = 1; pass < 4; pass++) {
            constants += 16;
            ROUNDS_8(SCHEDULE, 0);
            ROUNDS_8(SCHEDULE, 8);
        }
        state[0] = a = ADD(a, state[0]);
        state[1] = b = ADD(b, state[1]);
        state[2] = c = ADD(c, state[2]);
        state[3] = d = ADD(d, state[3]);
        state[4] = e = ADD(e, state[4]);
        state[5] = f = ADD(f, state[5]);
        state[6] = g = ADD(g, state[6]);
        state[7] = h = ADD(h, state[7]);
    }
}

WIDE_TARGET void sha256_avx512(uint8_t *digests, const uint8_t *const *messages, size_t count,
                               size_t size)
{
    static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, /* 5.3.3 */
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const uint8_t *data[WIDE_LANES];
    uint8_t tails[WIDE_LANES][2 * CHUNK];
    uint32_t words[8][WIDE_LANES];
    size_t tail_size = 0;
    __m512i state[8];

    CHECK(count >= 1 && count <= WIDE_LANES);
    for (size_t i = 0; i < WIDE_LANES; i++) /* what is not there is the first one once more */
        data[i] = messages[i < count ? i : 0];
    for (unsigned word = 0; word < 8; word++)
        state[word] = _mm512_set1_epi32((int)initial[word]);
    compress(state, data, size - size % CHUNK);

    for (size_t i = 0; i < WIDE_LANES; i++) {
        if (i < count)
            tail_size = sha256_pad(tails[i], data[i], size);
        data[i] = tails[i < count ? i : 0];
    }
    compress(state, data, tail_size);

    for (unsigned word = 0; word < 8; word++)
        _mm512_storeu_si512(words[word], state[word]);
    for (size_t i = 0; i < count; i++)
        for (unsigned word = 0; word < 8; word++)
            sha256_put_be32(digests + DIGEST * i + 4 * word, words[word][i]);
}

bool sha256_avx512_usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}
#else
void sha256_avx512(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size)
{
    CHECK(false);
}

bool sha256_avx512_usable(void)
{
    return false;
}
#endif
