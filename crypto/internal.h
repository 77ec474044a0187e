/* What the files of crypto/ share about keys and certificates. Private to crypto/ and its tests:
 * here, and nowhere else in headers, OpenSSL's types appear. */
#ifndef CRYPTO_INTERNAL_H
#define CRYPTO_INTERNAL_H

#include <openssl/evp.h>
#include <openssl/x509.h>

#include "crypto/identity.h"

#define RSA_BITS     3072
#define RSA_BITS_MAX 8192 /* a stranger's larger key would cost us too much to verify with */

/* Half a sentence about -errno results of base/file.h; static storage. */
const char *fault_of_errno(int error);

/* NULL if this public key may be used here, else why not. */
const char *public_key_fault(const EVP_PKEY *);
/* False if OpenSSL runs out of memory. */
bool public_key_device_id(const EVP_PKEY *, uint8_t id[DEVICE_ID_SIZE]);

/* Borrowed; OpenSSL wants them writable to count references. */
EVP_PKEY *key_pkey(const struct key *);
X509 *certificate_x509(const struct certificate *);

/* Takes over `x509`, also on failure; NULL with *fault if it is nothing that we use. */
struct certificate *certificate_wrap(X509 *x509, const char **fault);

/* For PEM reading: never asks a terminal for a password. */
int pem_no_password(char *buffer, int size, int writing, void *arg);

/* What key_set_passphrase set, *size bytes of it; NULL: nothing. */
const char *key_passphrase(size_t *size);
/* scrypt, at the cost that a key file's passphrase has. False if OpenSSL runs out of memory. */
bool passphrase_stretch(uint8_t to[32], const uint8_t *salt, size_t salt_size,
                        const void *passphrase, size_t size);

#define URI_TRACKER       "p2p://tracker"
#define URI_DEVICE_PREFIX "p2p://device/"

#endif
