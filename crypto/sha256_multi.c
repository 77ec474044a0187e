/* Owns SHA-256 of several messages at once (FIPS 180-4): by the processor's SHA extensions, and
 * the choice between these, sixteen at a time in AVX-512 (sha256_avx512.c), and OpenSSL.
 *
 * One SHA instruction waits some cycles for the one before it; the chains of independent messages
 * fill those cycles. So two or four messages of equal length go through the rounds side by side:
 * up to 2.5 times the speed of one where the processor can begin such an instruction every cycle.
 * Whatever has no SHA extensions asks OpenSSL.
 *
 * Sixteen at a time is nearly twice as fast as that on some processors and slower on others. So the
 * first call with enough messages measures both, which takes some 200 us. The choice decides about
 * time only, never about a digest.
 *
 * State is kept as the SHA instructions want it, two registers a message: ABEF and CDGH, highest word
 * first. Thread: any. Memory: the stack only; OpenSSL's fallback takes one context per call. */
#include "crypto/sha256_multi.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <time.h>

#include "base/check.h"
#include "crypto/sha256_internal.h"

#define LANES 4

/* Sixteen at a time takes as long for fewer, so it pays from some number of messages on, which is
 * measured; it is not even looked at for less than WIDE_MIN. */
#define WIDE_MIN    4
#define WIDE_NEVER  (WIDE_LANES + 1)
#define TRIALS      8    /* the best counts: the first ones wake the wide registers up */
#define SAMPLE_SIZE 1024 /* bytes of each message that is measured with */

/* FIPS 180-4, 4.2.2 */
const uint32_t sha256_round_constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

size_t sha256_pad(uint8_t tail[2 * CHUNK], const uint8_t *message, size_t size)
{
    size_t rest = size % CHUNK;
    size_t tail_size = rest + 1 + LENGTH_SIZE <= CHUNK ? CHUNK : 2 * CHUNK;

    memset(tail, 0, tail_size);
    if (rest > 0)
        memcpy(tail, message + (size - rest), rest);
    tail[rest] = 0x80;
    sha256_put_be32(tail + tail_size - 8, (uint32_t)((uint64_t)size >> 29));
    sha256_put_be32(tail + tail_size - 4, (uint32_t)((uint64_t)size << 3));
    return tail_size;
}

void sha256_many_openssl(uint8_t *digests, const uint8_t *const *messages, size_t count,
                         size_t size)
{
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    CHECK(context != NULL);
    for (size_t i = 0; i < count; i++) {
        CHECK(EVP_DigestInit_ex(context, i == 0 ? EVP_sha256() : NULL, NULL) == 1);
        CHECK(EVP_DigestUpdate(context, messages[i], size) == 1);
        CHECK(EVP_DigestFinal_ex(context, digests + DIGEST * i, NULL) == 1);
    }
    EVP_MD_CTX_free(context);
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))

struct state {
    __m128i abef[LANES], cdgh[LANES];
};

/* `lanes` is a constant wherever this is used, so what does not apply is not compiled. */
#define EACH_LANE(DO, T)                                                                           \
    do {                                                                                           \
        DO(0, T);                                                                                  \
        if (lanes > 1)                                                                             \
            DO(1, T);                                                                              \
        if (lanes > 2) {                                                                           \
            DO(2, T);                                                                              \
            DO(3, T);                                                                              \
        }                                                                                          \
    } while (0)

/* The message words of step T (four rounds): the first 16 come from the message, later ones from
 * the 16 before them (6.2.2, step 1). w holds the last four quadruples, by T modulo 4. */
#define LOAD(L, T)                                                                                 \
    (w[L][T] = _mm_shuffle_epi8(                                                                   \
         _mm_loadu_si128((const __m128i *)(const void *)(data[L] + offset + 16 * (T))), swap))
#define SCHEDULE(L, T)                                                                             \
    (w[L][(T) % 4] = _mm_sha256msg2_epu32(                                                         \
         _mm_add_epi32(_mm_sha256msg1_epu32(w[L][(T) % 4], w[L][((T) + 1) % 4]),                   \
                       _mm_alignr_epi8(w[L][((T) + 3) % 4], w[L][((T) + 2) % 4], 4)),              \
         w[L][((T) + 3) % 4]))
#define ROUNDS(L, T)                                                                               \
    do {                                                                                           \
        const __m128i words = _mm_add_epi32(w[L][(T) % 4], constant);                              \
        cdgh[L] = _mm_sha256rnds2_epu32(cdgh[L], abef[L], words);                                  \
        abef[L] = _mm_sha256rnds2_epu32(abef[L], cdgh[L], _mm_shuffle_epi32(words, 0x0e));         \
    } while (0)
#define STEP(WORDS, T)                                                                             \
    do {                                                                                           \
        const __m128i constant =                                                                   \
            _mm_load_si128((const __m128i *)(const void *)&sha256_round_constants[4 * (T)]);       \
        EACH_LANE(WORDS, T);                                                                       \
        EACH_LANE(ROUNDS, T);                                                                      \
    } while (0)

/* Takes `size` bytes, whole chunks, of each lane's data into its state. */
SHA_TARGET static inline __attribute__((always_inline)) void
compress(struct state *state, const uint8_t *const *data, size_t size, const unsigned lanes)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[LANES], cdgh[LANES], w[LANES][4];

    for (unsigned i = 0; i < lanes; i++) {
        abef[i] = state->abef[i];
        cdgh[i] = state->cdgh[i];
    }
    for (size_t offset = 0; offset < size; offset += CHUNK) {
        __m128i old_abef[LANES], old_cdgh[LANES];
#define KEEP(L, T) (old_abef[L] = abef[L], old_cdgh[L] = cdgh[L])
#define FEED(L, T)                                                                                 \
    (abef[L] = _mm_add_epi32(abef[L], old_abef[L]), cdgh[L] = _mm_add_epi32(cdgh[L], old_cdgh[L]))
        EACH_LANE(KEEP, 0);
        STEP(LOAD, 0);
        STEP(LOAD, 1);
        STEP(LOAD, 2);
        STEP(LOAD, 3);
        STEP(SCHEDULE, 4);
        STEP(SCHEDULE, 5);
        STEP(SCHEDULE, 6);
        STEP(SCHEDULE, 7);
        STEP(SCHEDULE, 8);
        STEP(SCHEDULE, 9);
        STEP(SCHEDULE, 10);
        STEP(SCHEDULE, 11);
        STEP(SCHEDULE, 12);
        STEP(SCHEDULE, 13);
        STEP(SCHEDULE, 14);
        STEP(SCHEDULE, 15);
        EACH_LANE(FEED, 0);
    }
    for (unsigned i = 0; i < lanes; i++) {
        state->abef[i] = abef[i];
        state->cdgh[i] = cdgh[i];
    }
}

/* Whole messages of one size, `lanes` of them: chunks, padding (5.1.1), digests. */
SHA_TARGET static inline __attribute__((always_inline)) void
digest_lanes(uint8_t *digests, const uint8_t *const *messages, size_t size, const unsigned lanes)
{
    struct state state;
    uint8_t tails[LANES][2 * CHUNK];
    const uint8_t *tail[LANES];
    size_t tail_size = 0;

    for (unsigned i = 0; i < lanes; i++) { /* 5.3.3 */
        state.abef[i] = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
        state.cdgh[i] = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
    }
    compress(&state, messages, size - size % CHUNK, lanes);

    for (unsigned i = 0; i < lanes; i++) {
        tail_size = sha256_pad(tails[i], messages[i], size);
        tail[i] = tails[i];
    }
    compress(&state, tail, tail_size, lanes);

    for (unsigned i = 0; i < lanes; i++) {
        uint32_t abef[4], cdgh[4]; /* lowest word first: f e b a, h g d c */
        memcpy(abef, &state.abef[i], sizeof abef);
        memcpy(cdgh, &state.cdgh[i], sizeof cdgh);
        const uint32_t words[8] = {abef[3], abef[2], cdgh[3], cdgh[2],
                                   abef[1], abef[0], cdgh[1], cdgh[0]};
        for (unsigned word = 0; word < 8; word++)
            sha256_put_be32(digests + DIGEST * i + 4 * word, words[word]);
    }
}

SHA_TARGET static void digest_1(uint8_t *digests, const uint8_t *const *messages, size_t size)
{
    digest_lanes(digests, messages, size, 1);
}

SHA_TARGET static void digest_2(uint8_t *digests, const uint8_t *const *messages, size_t size)
{
    digest_lanes(digests, messages, size, 2);
}

SHA_TARGET static void digest_4(uint8_t *digests, const uint8_t *const *messages, size_t size)
{
    digest_lanes(digests, messages, size, 4);
}

static bool have_extensions;
static void detect(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return;
    have_extensions = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) != 0;
}

static bool accelerated(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, detect);
    return have_extensions;
}

/* Up to `lanes` at a time, and what is left over with fewer. */
static void digest_all(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                       unsigned lanes)
{
    size_t i = 0;
    for (; lanes >= 4 && count - i >= 4; i += 4)
        digest_4(digests + DIGEST * i, messages + i, size);
    for (; lanes >= 2 && count - i >= 2; i += 2)
        digest_2(digests + DIGEST * i, messages + i, size);
    for (; i < count; i++)
        digest_1(digests + DIGEST * i, messages + i, size);
}
#else
static bool accelerated(void)
{
    return false;
}

static void digest_all(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                       unsigned lanes)
{
    CHECK(false);
}
#endif

bool sha256_many_lanes(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                       unsigned lanes)
{
    if (!accelerated())
        return false;
    digest_all(digests, messages, count, size, lanes);
    return true;
}

static void many_narrow(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size)
{
    if (!sha256_many_lanes(digests, messages, count, size, LANES) && count > 0)
        sha256_many_openssl(digests, messages, count, size);
}

/* --- the choice ---- */
/* Of this thread, so that others on the same core do not count. */
static int64_t cpu_time(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static unsigned wide_least = WIDE_NEVER;
static void measure(void)
{
    static const uint8_t sample[SAMPLE_SIZE];
    const uint8_t *messages[WIDE_LANES];
    uint8_t digests[WIDE_LANES * DIGEST];
    int64_t wide = INT64_MAX, narrow = INT64_MAX;

    if (!sha256_avx512_usable())
        return;
    for (unsigned i = 0; i < WIDE_LANES; i++)
        messages[i] = sample;
    for (unsigned trial = 0; trial < TRIALS; trial++) {
        int64_t start = cpu_time();
        sha256_avx512(digests, messages, WIDE_LANES, SAMPLE_SIZE);
        int64_t middle = cpu_time();
        many_narrow(digests, messages, WIDE_LANES, SAMPLE_SIZE);
        int64_t end = cpu_time();
        wide = middle - start < wide ? middle - start : wide;
        narrow = end - middle < narrow ? end - middle : narrow;
    }
    if (narrow <= 0 || wide <= 0) /* a clock that is too coarse tells nothing */
        return;
    /* A tenth against it, for what wide registers cost the code around: some processors lower
     * their clock. */
    int64_t least = (WIDE_LANES * wide * 11 / 10) / narrow + 1;
    if (least < WIDE_MIN)
        least = WIDE_MIN;
    wide_least = least > WIDE_LANES ? WIDE_NEVER : (unsigned)least;
}

unsigned sha256_wide_least(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, measure);
    return wide_least;
}

static void many_mixed(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                       unsigned least)
{
    size_t i = 0;
    while (count - i >= least) {
        size_t n = count - i < WIDE_LANES ? count - i : WIDE_LANES;
        sha256_avx512(digests + DIGEST * i, messages + i, n, size);
        i += n;
    }
    many_narrow(digests + DIGEST * i, messages + i, count - i, size);
}

bool sha256_many_wide(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                      unsigned least)
{
    CHECK(least >= 1);
    if (!sha256_avx512_usable())
        return false;
    many_mixed(digests, messages, count, size, least);
    return true;
}

void sha256_many(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size)
{
    if (count < WIDE_MIN || sha256_wide_least() == WIDE_NEVER)
        many_narrow(digests, messages, count, size);
    else
        many_mixed(digests, messages, count, size, wide_least);
}

void sha256_pairs(uint8_t *digests, const uint8_t *messages, size_t count)
{
    /* A group's digests lie at or before its messages, so writing them in place hurts nobody who is
     * still to be read: each group is read whole before it is written. OpenSSL's way writes one by
     * one, which is the same with groups of one. */
    enum { GROUP = 64 };
    const uint8_t *group[GROUP];
    for (size_t done = 0; done < count;) {
        size_t n = count - done < GROUP ? count - done : GROUP;
        for (size_t i = 0; i < n; i++)
            group[i] = messages + CHUNK * (done + i);
        sha256_many(digests + DIGEST * done, group, n, CHUNK);
        done += n;
    }
}
