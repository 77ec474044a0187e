/* What the implementations of SHA-256 share; private to crypto/sha256_*.c. */
#ifndef CRYPTO_SHA256_INTERNAL_H
#define CRYPTO_SHA256_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DIGEST      32
#define CHUNK       64
#define WIDE_LANES  16
#define LENGTH_SIZE 8 /* of the message's length in bits, at the end of the padding */

/* FIPS 180-4, 4.2.2; aligned to 16 */
extern const uint32_t sha256_round_constants[64];

/* Makes the last one or two chunks of a message: what is left behind its whole chunks, and the
 * padding (5.1.1). Returns their size, which depends on `size` only. */
size_t sha256_pad(uint8_t tail[2 * CHUNK], const uint8_t *message, size_t size);

static inline void sha256_put_be32(uint8_t *to, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(to, &value, sizeof value);
}

/* Whether processor and kernel have what sha256_avx512 needs. Cheap. */
bool sha256_avx512_usable(void);

/* digests + 32 i becomes the SHA-256 of the `size` bytes at messages[i], for i < count, where
 * 1 <= count <= WIDE_LANES; takes as long for one as for all of them. Everything is read before
 * anything is written. */
void sha256_avx512(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size);

#endif
