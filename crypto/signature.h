/* Signatures of catalogue entries: a device vouches for what it publishes, so that no tracker can make it up.
 *
 * An RSA-3072 signature costs 1.8 ms, an Ed25519 one 30 us: so a device's RSA key signs, once, the claim of an
 * Ed25519 key, and that signs entries. Ed25519 needs no padding to get wrong, and its signatures have 64 bytes.
 *
 *   claim      RSA-PSS (SHA-256, salt of 32 bytes) by the device's key over "p2p signer 1", a zero byte, the swarm's
 *              CA fingerprint (32), the Ed25519 key (32) and the account's name
 *   statement  Ed25519 over "p2p entry 1", a zero byte, the swarm's CA fingerprint (32), kind (1), size (8, big
 *              endian), root (32; zeroes if there is none) and the target of a symbolic link
 *
 * A signing key is named by the first 16 bytes of the SHA-256 of its public half. Any thread; signing keys are
 * immutable. Functions that return NULL or false set *fault to a half sentence, static. */
#ifndef CRYPTO_SIGNATURE_H
#define CRYPTO_SIGNATURE_H

#include "crypto/identity.h"
#include "crypto/merkle.h"

#define SIGNER_ID_SIZE  16
#define SIGNER_KEY_SIZE 32
#define SIGNATURE_SIZE  64
#define CLAIM_MAX       1024 /* bytes of a claim's RSA signature: a key of 8192 bits */
#define DEVICE_KEY_MAX  2048 /* bytes of a device's SubjectPublicKeyInfo */

struct signing_key;

/* Reads the key from a file of 32 bytes that nobody else can read, or makes it if there is none. One
 * that is not a key is left as it is: a new key is a warning to every member. */
struct signing_key *signing_key_open(const char *path, const char **fault);
void signing_key_free(struct signing_key *); /* NULL is fine */
void signing_key_id(const struct signing_key *, uint8_t id[SIGNER_ID_SIZE]);

struct signer_claim {
    uint8_t key[SIGNER_KEY_SIZE];
    char account[65];
    uint8_t device_key[DEVICE_KEY_MAX]; /* SubjectPublicKeyInfo, DER */
    size_t device_key_size;
    uint8_t signature[CLAIM_MAX];
    size_t signature_size;
};
/* The device claims the signing key for this account: about 2 ms. */
bool signer_claim_make(struct signer_claim *, const struct signing_key *, const struct key *device,
                       const uint8_t ca[FINGERPRINT_SIZE], const char *account, const char **fault);
/* Whether the claim is good; *device tells whose it is. About 40 us. */
bool signer_claim_check(const struct signer_claim *, const uint8_t ca[FINGERPRINT_SIZE],
                        uint8_t device[DEVICE_ID_SIZE]);
void signer_id(const uint8_t key[SIGNER_KEY_SIZE], uint8_t id[SIGNER_ID_SIZE]);

struct entry_statement {
    uint8_t kind; /* Tracker__Kind */
    uint64_t size;
    const uint8_t *root; /* HASH_SIZE bytes, or NULL */
    const char *target;  /* or NULL */
};
bool entry_sign(const struct signing_key *, const uint8_t ca[FINGERPRINT_SIZE],
                const struct entry_statement *, uint8_t out[SIGNATURE_SIZE]);
bool entry_check(const uint8_t key[SIGNER_KEY_SIZE], const uint8_t ca[FINGERPRINT_SIZE],
                 const struct entry_statement *, const uint8_t signature[SIGNATURE_SIZE]);

#endif
