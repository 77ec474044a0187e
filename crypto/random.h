/* Random bytes from the kernel, and what is made of them. Abort if there are none. */
#ifndef CRYPTO_RANDOM_H
#define CRYPTO_RANDOM_H

#include <stddef.h>
#include <stdint.h>

void random_bytes(void *to, size_t size);
uint64_t random_u64(void);
/* A code of `length` characters out of A-Z a-z 0-9 without look-alikes (no 0 O 1 l I), and a NUL. */
void random_code(char *to, size_t length);
/* SHA-256, for tokens that are stored hashed. */
void sha256(uint8_t digest[32], const void *data, size_t size);
/* Overwrites in a way no compiler removes. */
void secret_wipe(void *data, size_t size);

#endif
