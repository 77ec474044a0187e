/* Owns what is random or secret at the lowest level: the kernel's random bytes, codes made of them,
 * wiping.
 *
 * Leaves keys to key.c and salts to password.c. Thread: any. Memory: none. */
#include "crypto/random.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/random.h>

#include "base/check.h"
#include "crypto/sha256_multi.h"

void random_bytes(void *to, size_t size)
{
    uint8_t *at = to;
    while (size > 0) {
        ssize_t got = getrandom(at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        CHECK(got > 0); /* without random bytes nothing here is safe */
        at += got;
        size -= (size_t)got;
    }
}

uint64_t random_u64(void)
{
    uint64_t value;
    random_bytes(&value, sizeof value);
    return value;
}

void random_code(char *to, size_t length)
{
    /* A-Z without I and O, a-z without l, digits without 0 and 1 */
    static const char alphabet[] = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";
    const unsigned letters = sizeof alphabet - 1;
    const unsigned fair = 256 - 256 % letters; /* above it some letters would be likelier */
    uint8_t pool[64];
    size_t left = 0;

    for (size_t i = 0; i < length;) {
        if (left == 0) {
            random_bytes(pool, sizeof pool);
            left = sizeof pool;
        }
        uint8_t byte = pool[--left];
        if (byte < fair)
            to[i++] = alphabet[byte % letters];
    }
    to[length] = '\0';
    secret_wipe(pool, sizeof pool);
}

void sha256(uint8_t digest[32], const void *data, size_t size)
{
    const uint8_t *message = data;
    sha256_many(digest, &message, 1, size);
}

void secret_wipe(void *data, size_t size)
{
    if (size > 0)
        OPENSSL_cleanse(data, size);
}
