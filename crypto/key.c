/* Owns private keys: making, storing and loading RSA keys, and the device id that follows from one.
 *
 * A key file is PEM (PKCS #8) with mode 0600. Without a passphrase whoever can read the member's
 * files owns the member's identity, as with an SSH key; with one they must guess it, at a quarter of
 * a second and 16 MiB each. The process holds at most one passphrase, which key_set_passphrase sets
 * before there are threads.
 *
 * Thread: any; a key never changes once made and counts its references. Memory: OpenSSL wipes the
 * key's numbers when the last reference goes, and what held them in PEM form is wiped here. */
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/file.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/protection.h"
#include "crypto/random.h"

#define KEY_MAGIC         0x6b657931u
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

/* --- passphrases ---- */

static char *passphrase; /* a mapping of PASSPHRASE_ROOM bytes, or NULL */
static size_t passphrase_size;

void key_set_passphrase(const void *bytes, size_t size)
{
    CHECK(size <= PASSPHRASE_MAX);
    if (passphrase != NULL) {
        OPENSSL_cleanse(passphrase, PASSPHRASE_MAX);
        munmap(passphrase, PASSPHRASE_MAX);
        passphrase = NULL;
    }
    if (bytes == NULL)
        return;
    void *room =
        mmap(NULL, PASSPHRASE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    /* Either may be forbidden; it is less private then, and works. */
    (void)mlock(room, PASSPHRASE_MAX);
    (void)madvise(room, PASSPHRASE_MAX, MADV_DONTDUMP);
    memcpy(room, bytes, size);
    passphrase = room;
    passphrase_size = size;
}

const char *key_passphrase(size_t *size)
{
    *size = passphrase_size;
    return passphrase;
}

/* OpenSSL asks for the passphrase of a file that needs one. */
static int give_passphrase(char *buffer, int size, int writing, void *arg)
{
    bool *asked = arg;

    *asked = true;
    if (passphrase == NULL || passphrase_size > (size_t)size)
        return -1;
    memcpy(buffer, passphrase, passphrase_size);
    return (int)passphrase_size;
}

struct key *key_load(const char *path, const char **fault)
{
    bool asked = false;
    char *pem;
    size_t size;
    int error = file_read(path, PROTECTION_FILE_MAX, true, &pem, &size);
    if (error != 0) {
        *fault = fault_of_errno(-error);
        return NULL;
    }
    BIO *bio = BIO_new_mem_buf(pem, (int)size);
    EVP_PKEY *pkey =
        bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, give_passphrase, &asked);
    BIO_free(bio);
    file_free_secret(pem, size);
    if (pkey == NULL) {
        ERR_clear_error();
        *fault = !asked ? "holds no private key in PEM form"
                 : passphrase == NULL
                     ? "needs its passphrase (p2pctl start asks for it; see p2pd(8))"
                     : "is not opened by this passphrase";
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

/* 16 MiB and a quarter of a second for each guess. OpenSSL allows scrypt no more memory when it
 * decrypts a key file. */
#define SCRYPT_N 16384
#define SCRYPT_R 8
#define SCRYPT_P 5

bool passphrase_stretch(uint8_t to[32], const uint8_t *salt, size_t salt_size, const void *with,
                        size_t size)
{
    return EVP_PBE_scrypt(with, size, salt, salt_size, SCRYPT_N, SCRYPT_R, SCRYPT_P, 0, to, 32) ==
           1;
}

bool key_save_protected(const struct key *key, const char *path, const void *with, size_t size,
                        const char **fault)
{
    BIO *bio = BIO_new(BIO_s_mem());
    X509_ALGOR *algorithm = NULL;
    PKCS8_PRIV_KEY_INFO *info = NULL;
    X509_SIG *sealed = NULL;
    bool done = false;
    char *pem;

    CHECK_OBJECT(key, KEY_MAGIC);
    CHECK(size > 0 && size <= PASSPHRASE_MAX);
    *fault = "the key cannot be encrypted";
    if (bio == NULL || (info = EVP_PKEY2PKCS8(key->pkey)) == NULL ||
        (algorithm = PKCS5_pbe2_set_scrypt(EVP_aes_256_cbc(), NULL, 0, NULL, SCRYPT_N, SCRYPT_R,
                                           SCRYPT_P)) == NULL)
        goto out;
    sealed = PKCS8_set0_pbe(with, (int)size, info, algorithm);
    if (sealed == NULL)
        goto out;
    algorithm = NULL; /* is part of `sealed` */
    if (PEM_write_bio_PKCS8(bio, sealed) != 1)
        goto out;
    long length = BIO_get_mem_data(bio, &pem);
    int error = file_replace(path, pem, (size_t)length, 0600);
    done = error == 0;
    if (!done)
        *fault = error == -EPERM ? "Operation not permitted" : fault_of_errno(-error);
out:
    ERR_clear_error();
    X509_SIG_free(sealed);
    X509_ALGOR_free(algorithm);
    PKCS8_PRIV_KEY_INFO_free(info);
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
