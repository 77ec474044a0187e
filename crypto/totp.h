/* Time-based one-time codes, the second factor of an account: RFC 6238 with HMAC-SHA-1, 30 seconds, six
 * digits, which is what every authenticator speaks. Pure; any thread. */
#ifndef CRYPTO_TOTP_H
#define CRYPTO_TOTP_H

#include <stdbool.h>
#include <stdint.h>

#define TOTP_SECRET_SIZE 20
#define TOTP_STEP        30 /* seconds */
#define TOTP_DIGITS      6
#define TOTP_SKEW        1  /* steps that clocks may be apart, either way */
#define TOTP_TEXT        32 /* characters of a secret in base32 */

/* The code of one step, as digits and a NUL. */
void totp_code(const uint8_t secret[TOTP_SECRET_SIZE], int64_t step, char code[TOTP_DIGITS + 1]);
/* Is `code` that of a step around `now` (seconds since 1970) that comes after `last_step`? Then *step is
 * it; the caller remembers it, so that no code works twice. Takes the same time whatever the code is. */
bool totp_check(const uint8_t secret[TOTP_SECRET_SIZE], const char *code, int64_t now,
                int64_t last_step, int64_t *step);
/* The secret as people type it (RFC 4648 base32, without padding), and a NUL. */
void totp_text(const uint8_t secret[TOTP_SECRET_SIZE], char text[TOTP_TEXT + 1]);

#endif
