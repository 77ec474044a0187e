/* Password hashes: Argon2id by libargon2, as PHC strings ("$argon2id$v=19$m=…").
 *
 * 19456 KiB, t=2, p=1 or above (OWASP); the parameters stand in the record, so that they can be raised and
 * a record be upgraded at the next log in. Each call costs 20 MiB and 25 ms: run it on a small worker pool
 * with a bounded queue. */
#ifndef CRYPTO_PASSWORD_H
#define CRYPTO_PASSWORD_H

#include <stdbool.h>
#include <stddef.h>

#define PASSWORD_BYTES_MAX  1024
#define PASSWORD_RECORD_MAX 160

/* Fills `record` (PASSWORD_RECORD_MAX bytes) from a password and fresh random salt. */
bool password_hash(char *record, const char *password, size_t size);
/* Constant cost: with record NULL (no such account) a dummy is verified and false returned.
 * *upgrade (may be NULL) tells that the record's parameters are below today's. */
bool password_verify(const char *record, const char *password, size_t size, bool *upgrade);

#endif
