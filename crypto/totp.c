/* Owns the second factor's arithmetic: RFC 4226 truncation over HMAC-SHA-1 of the step's number, and base32.
 *
 * Leaves to the caller where secrets and last steps are kept, and how often may be tried. */
#include "crypto/totp.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

void totp_code(const uint8_t secret[TOTP_SECRET_SIZE], int64_t step, char code[TOTP_DIGITS + 1])
{
    uint8_t counter[8], digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    for (int i = 0; i < 8; i++)
        counter[i] = (uint8_t)((uint64_t)step >> (56 - 8 * i));
    CHECK(HMAC(EVP_sha1(), secret, TOTP_SECRET_SIZE, counter, sizeof counter, digest, &size) !=
              NULL &&
          size == 20);
    unsigned at = digest[19] & 15;
    uint32_t number = ((uint32_t)(digest[at] & 0x7f) << 24) | ((uint32_t)digest[at + 1] << 16) |
                      ((uint32_t)digest[at + 2] << 8) | digest[at + 3];
    snprintf(code, TOTP_DIGITS + 1, "%06u", number % 1000000);
}

bool totp_check(const uint8_t secret[TOTP_SECRET_SIZE], const char *code, int64_t now,
                int64_t last_step, int64_t *step)
{
    char given[TOTP_DIGITS + 1] = {0}, right[TOTP_DIGITS + 1];
    bool good = false;

    if (strlen(code) == TOTP_DIGITS)
        memcpy(given, code, TOTP_DIGITS);
    for (int64_t at = now / TOTP_STEP - TOTP_SKEW; at <= now / TOTP_STEP + TOTP_SKEW; at++) {
        totp_code(secret, at, right);
        bool same = CRYPTO_memcmp(given, right, TOTP_DIGITS) == 0;
        if (same && at > last_step) {
            *step = at;
            good = true;
        }
    }
    OPENSSL_cleanse(right, sizeof right);
    return good;
}

void totp_text(const uint8_t secret[TOTP_SECRET_SIZE], char text[TOTP_TEXT + 1])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

    for (int i = 0; i < TOTP_TEXT; i++) {
        unsigned bit = 5 * (unsigned)i, byte = bit / 8;
        unsigned pair =
            (unsigned)secret[byte] << 8 | (byte + 1 < TOTP_SECRET_SIZE ? secret[byte + 1] : 0u);
        text[i] = digits[pair >> (11 - bit % 8) & 31];
    }
    text[TOTP_TEXT] = '\0';
}
