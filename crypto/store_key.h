/* The master key of an encrypted store: 256 random bits in a file of its own.
 *
 * File, mode 0600: "p2pkeys1", then slots of 77 bytes, each the same key in one way, tried in turn:
 *    0  1 byte    0: the key as it is; 1: encrypted with a passphrase
 *    1  16 bytes  salt    scrypt (N 2^14, r 8, p 5), as for the device's key
 *   17  12 bytes  nonce   AES-256-GCM, over the key
 *   29  32 bytes  the key
 *   61  16 bytes  tag; of slot kind 0 the first 16 bytes of SHA-256 over the key
 * There is more than one slot only while a passphrase is changed, so that a crash leaves a file that either opens.
 *
 * No OpenSSL type here. Functions return NULL or false on failure and then set *fault to a half sentence (static). Threads:
 * any, one at a time where the key is not const. Memory: wiped by store_key_free. */
#ifndef CRYPTO_STORE_KEY_H
#define CRYPTO_STORE_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_KEY_SIZE  32
#define STORE_KEY_ID    16
#define STORE_KEY_MAGIC "p2pkeys1"
#define STORE_KEY_SLOT  77                         /* bytes */
enum { STORE_KEY_OPEN = 0, STORE_KEY_SEALED = 1 }; /* a slot's first byte */

struct store_key;

struct store_key *store_key_make(void); /* a new one */
/* With the passphrase of key_set_passphrase, if it needs one. Refuses a file that others can read. */
struct store_key *store_key_load(const char *path, const char **fault);

/* One way to keep a key: under a passphrase, or (NULL) as it is. */
struct store_key_way {
    const void *passphrase;
    size_t size;
};
/* Under the passphrase of key_set_passphrase if there is one and `protect`, else as it is. Valid until that is set anew. */
struct store_key_way store_key_way_now(bool protect);
/* Replaces the file in one step. */
bool store_key_save(struct store_key *, const char *path, const struct store_key_way *,
                    const char **fault);
/* From one way to another in two steps, of a key that was loaded or saved: after the first the file opens in both ways, after
 * the second in the new one only. */
bool store_key_add_way(struct store_key *, const char *path, const struct store_key_way *,
                       const char **fault);
bool store_key_settle(struct store_key *, const char *path, const char **fault);
/* Of a loaded key: if such a change broke off, the way in which it was opened is the only one from now on. */
bool store_key_tidy(struct store_key *, const char *path, const char **fault);

/* Names the key without telling it. */
void store_key_id(const struct store_key *, uint8_t id[STORE_KEY_ID]);
/* HKDF-SHA-256 with this salt and purpose. */
void store_key_derive(const struct store_key *, const uint8_t *salt, size_t salt_size,
                      const char *purpose, uint8_t *to, size_t size);
void store_key_free(struct store_key *);

#endif
