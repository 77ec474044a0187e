/* Owns private keys: making, storing and loading RSA keys, and the device id that follows from one.
 *
 * A key file is PEM (PKCS #8, not encrypted) with mode 0600; whoever can read the member's files
 * owns the member's identity, as with an SSH key without a passphrase.
 *
 * Thread: any; a key never changes once made and counts its references. Memory: OpenSSL wipes the
 * key's numbers when the last reference goes, and what held them in PEM form is wiped here. */
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <stdatomic.h>
#include <string.h>

#include "base/check.h"
#include "base/file.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/random.h"

#define KEY_MAGIC         0x6b657931u
#define KEY_PEM_MAX       32768
#define EXPONENT_BITS_MAX 64 /* a huge public exponent makes our verification slow */

struct key {
    unsigned magic;
    atomic_uint references;
    EVP_PKEY *pkey;
    uint8_t device[DEVICE_ID_SIZE];
};

const char *fault_of_errno(int error)
{
    if (error == EPERM)
        return "can be read or written by others (chmod 600 it)";
    const char *text = strerrordesc_np(error);
    return text != NULL ? text : "cannot be accessed";
}

int pem_no_password(char *buffer, int size, int writing, void *arg)
{
    return -1;
}

const char *public_key_fault(const EVP_PKEY *pkey)
{
    BIGNUM *exponent = NULL;
    const char *fault = NULL;

    if (EVP_PKEY_get_base_id(pkey) != EVP_PKEY_RSA)
        return "is not an RSA key";
    if (EVP_PKEY_get_bits(pkey) < RSA_BITS)
        return "is an RSA key of less than 3072 bits";
    if (EVP_PKEY_get_bits(pkey) > RSA_BITS_MAX)
        return "is an RSA key of more than 8192 bits";
    if (EVP_PKEY_get_bn_param(pkey, OSSL_PKEY_PARAM_RSA_E, &exponent) != 1)
        return "is an RSA key without exponent";
    if (!BN_is_odd(exponent) || BN_num_bits(exponent) > EXPONENT_BITS_MAX ||
        BN_get_word(exponent) < RSA_F4)
        fault = "is an RSA key with an unusual exponent";
    BN_free(exponent);
    return fault;
}

bool public_key_device_id(const EVP_PKEY *pkey, uint8_t id[DEVICE_ID_SIZE])
{
    uint8_t *der = NULL, digest[32];
    int size = i2d_PUBKEY(pkey, &der);
    if (size <= 0)
        return false;
    sha256(digest, der, (size_t)size);
    OPENSSL_free(der);
    memcpy(id, digest, DEVICE_ID_SIZE);
    return true;
}

/* Takes over `pkey`. */
static struct key *key_wrap(EVP_PKEY *pkey, const char **fault)
{
    uint8_t device[DEVICE_ID_SIZE];
    const char *why = public_key_fault(pkey);
    if (why == NULL && !public_key_device_id(pkey, device))
        why = "cannot be encoded";
    if (why != NULL) {
        *fault = why;
        EVP_PKEY_free(pkey);
        return NULL;
    }
    struct key *key = xcalloc(1, sizeof *key);
    key->magic = KEY_MAGIC;
    atomic_init(&key->references, 1);
    key->pkey = pkey;
    memcpy(key->device, device, sizeof device);
    return key;
}

struct key *key_generate(const char **fault)
{
    EVP_PKEY *pkey = EVP_RSA_gen(RSA_BITS);
    if (pkey == NULL) {
        ERR_clear_error();
        *fault = "OpenSSL could not make an RSA key";
        return NULL;
    }
    return key_wrap(pkey, fault);
}

struct key *key_load(const char *path, const char **fault)
{
    char *pem;
    size_t size;
    int error = file_read(path, KEY_PEM_MAX, true, &pem, &size);
    if (error != 0) {
        *fault = fault_of_errno(-error);
        return NULL;
    }
    BIO *bio = BIO_new_mem_buf(pem, (int)size);
    EVP_PKEY *pkey = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, pem_no_password, NULL);
    BIO_free(bio);
    file_free_secret(pem, size);
    if (pkey == NULL) {
        ERR_clear_error();
        *fault = "holds no private key in PEM form";
        return NULL;
    }
    return key_wrap(pkey, fault);
}

bool key_save(const struct key *key, const char *path, const char **fault)
{
    bool done = false;
    char *pem;
    BIO *bio = BIO_new(BIO_s_mem()); /* wipes what it frees */

    CHECK_OBJECT(key, KEY_MAGIC);
    if (bio == NULL ||
        PEM_write_bio_PKCS8PrivateKey(bio, key->pkey, NULL, NULL, 0, NULL, NULL) != 1) {
        ERR_clear_error();
        *fault = "the key cannot be encoded";
    } else {
        long size = BIO_get_mem_data(bio, &pem);
        int error = file_replace(path, pem, (size_t)size, 0600);
        done = error == 0;
        if (!done)
            *fault = error == -EPERM ? "Operation not permitted" : fault_of_errno(-error);
    }
    BIO_free(bio);
    return done;
}

void key_device_id(const struct key *key, uint8_t id[DEVICE_ID_SIZE])
{
    CHECK_OBJECT(key, KEY_MAGIC);
    memcpy(id, key->device, DEVICE_ID_SIZE);
}

EVP_PKEY *key_pkey(const struct key *key)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    return key->pkey;
}

struct key *key_share(struct key *key)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    atomic_fetch_add(&key->references, 1);
    return key;
}

void key_free(struct key *key)
{
    if (key == NULL)
        return;
    CHECK_OBJECT(key, KEY_MAGIC);
    if (atomic_fetch_sub(&key->references, 1) != 1)
        return;
    EVP_PKEY_free(key->pkey);
    key->magic = 0;
    free(key);
}
