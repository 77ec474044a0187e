/* SHA-256 of many messages of one size at once; private to crypto/.
 *
 * Any thread; no allocation on processors with SHA extensions. Results never depend on the
 * processor. Sixteen and more messages at once are the fastest. */
#ifndef CRYPTO_SHA256_MULTI_H
#define CRYPTO_SHA256_MULTI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* digests + 32 i becomes the SHA-256 of the `size` bytes at messages[i], for i < count. */
void sha256_many(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size);

/* The same of 64-byte messages that lie one behind the other. `digests` may be `messages`. */
void sha256_pairs(uint8_t *digests, const uint8_t *messages, size_t count);

/* What sha256_many is made of, for tests and benchmarks: the accelerated form with exactly `lanes`
 * (1, 2 or 4) messages at a time, false if this processor has none; and OpenSSL's. */
bool sha256_many_lanes(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                       unsigned lanes);
void sha256_many_openssl(uint8_t *digests, const uint8_t *const *messages, size_t count,
                         size_t size);

/* The same by AVX-512, sixteen at a time, as long as there are `least` (1 or more) messages left, the
 * rest as a processor without it does; false if this one has none. */
bool sha256_many_wide(uint8_t *digests, const uint8_t *const *messages, size_t count, size_t size,
                      unsigned least);

/* The `least` that sha256_many found best on this processor, by measuring it at the first call; 17 if
 * AVX-512 is not there or not faster. */
unsigned sha256_wide_least(void);

#endif
