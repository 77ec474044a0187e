/* Owns a store's master key: making, keeping and deriving from it. Leaves what is encrypted with what comes of it to
 * file_cipher.c, and where the file is to who calls.
 *
 * Thread: any. Memory: the key alone; scrypt takes 16 MiB while a passphrase is tried. */
#include "crypto/store_key.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <string.h>

#include "base/check.h"
#include "base/file.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/random.h"

#define KEY_MAGIC  0x73746b79u
#define MAGIC_SIZE 8
#define SALT_SIZE  16
#define NONCE_SIZE 12
#define TAG_SIZE   16
#define SLOT_SIZE  (1 + SALT_SIZE + NONCE_SIZE + STORE_KEY_SIZE + TAG_SIZE)
#define SLOTS_MAX  2

struct store_key {
    unsigned magic;
    uint8_t bytes[STORE_KEY_SIZE];
    uint8_t slots[SLOTS_MAX][SLOT_SIZE]; /* as it was loaded or saved; the way that was added */
    bool several;                        /* the file has another way than slots[0] */
};

static struct store_key *key_new(const uint8_t bytes[STORE_KEY_SIZE])
{
    struct store_key *key = xcalloc(1, sizeof *key);

    key->magic = KEY_MAGIC;
    memcpy(key->bytes, bytes, STORE_KEY_SIZE);
    return key;
}

struct store_key *store_key_make(void)
{
    uint8_t bytes[STORE_KEY_SIZE];

    random_bytes(bytes, sizeof bytes);
    struct store_key *key = key_new(bytes);
    secret_wipe(bytes, sizeof bytes);
    return key;
}

void store_key_free(struct store_key *key)
{
    if (key == NULL)
        return;
    CHECK_OBJECT(key, KEY_MAGIC);
    secret_wipe(key, sizeof *key);
    free(key);
}

void store_key_derive(const struct store_key *key, const uint8_t *salt, size_t salt_size,
                      const char *purpose, uint8_t *to, size_t size)
{
    static char digest[] = "SHA256";
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *context = kdf == NULL ? NULL : EVP_KDF_CTX_new(kdf);
    OSSL_PARAM params[5], *at = params;

    CHECK_OBJECT(key, KEY_MAGIC);
    CHECK(context != NULL);
    *at++ = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0);
    *at++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)key->bytes,
                                              STORE_KEY_SIZE);
    *at++ =
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, salt_size);
    *at++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)purpose,
                                              strlen(purpose));
    *at = OSSL_PARAM_construct_end();
    CHECK(EVP_KDF_derive(context, to, size, params) == 1);
    EVP_KDF_CTX_free(context);
    EVP_KDF_free(kdf);
}

void store_key_id(const struct store_key *key, uint8_t id[STORE_KEY_ID])
{
    store_key_derive(key, (const uint8_t *)"", 0, "p2p store id", id, STORE_KEY_ID);
}

/* --- slots ------------------------------------------------------------------------------------------- */

static bool seal(uint8_t slot[SLOT_SIZE], const struct store_key *key, const uint8_t wrap[32])
{
    uint8_t *nonce = slot + 1 + SALT_SIZE, *sealed = nonce + NONCE_SIZE;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int size;

    random_bytes(nonce, NONCE_SIZE);
    bool good =
        context != NULL &&
        EVP_EncryptInit_ex2(context, EVP_aes_256_gcm(), wrap, nonce, NULL) == 1 &&
        EVP_EncryptUpdate(context, sealed, &size, key->bytes, STORE_KEY_SIZE) == 1 &&
        EVP_EncryptFinal_ex(context, sealed + size, &size) == 1 &&
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, sealed + STORE_KEY_SIZE) == 1;
    EVP_CIPHER_CTX_free(context);
    return good;
}

static bool unseal(const uint8_t slot[SLOT_SIZE], const uint8_t wrap[32],
                   uint8_t bytes[STORE_KEY_SIZE])
{
    const uint8_t *nonce = slot + 1 + SALT_SIZE, *sealed = nonce + NONCE_SIZE;
    uint8_t tag[TAG_SIZE];
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int size;

    memcpy(tag, sealed + STORE_KEY_SIZE, TAG_SIZE);
    bool good = context != NULL &&
                EVP_DecryptInit_ex2(context, EVP_aes_256_gcm(), wrap, nonce, NULL) == 1 &&
                EVP_DecryptUpdate(context, bytes, &size, sealed, STORE_KEY_SIZE) == 1 &&
                EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag) == 1 &&
                EVP_DecryptFinal_ex(context, bytes + size, &size) == 1;
    EVP_CIPHER_CTX_free(context);
    return good;
}

static bool fill_slot(uint8_t slot[SLOT_SIZE], const struct store_key *key,
                      const struct store_key_way *way)
{
    uint8_t wrap[32], digest[32];

    memset(slot, 0, SLOT_SIZE);
    if (way->passphrase == NULL) {
        uint8_t *at = slot + 1 + SALT_SIZE + NONCE_SIZE;
        memcpy(at, key->bytes, STORE_KEY_SIZE);
        sha256(digest, key->bytes, STORE_KEY_SIZE);
        memcpy(at + STORE_KEY_SIZE, digest, TAG_SIZE);
        return true;
    }
    slot[0] = STORE_KEY_SEALED;
    random_bytes(slot + 1, SALT_SIZE);
    bool good = passphrase_stretch(wrap, slot + 1, SALT_SIZE, way->passphrase, way->size) &&
                seal(slot, key, wrap);
    secret_wipe(wrap, sizeof wrap);
    return good;
}

struct store_key_way store_key_way_now(bool protect)
{
    struct store_key_way way = {NULL, 0};

    if (protect)
        way.passphrase = key_passphrase(&way.size);
    return way;
}

static bool write_slots(struct store_key *key, const char *path, size_t count, const char **fault)
{
    uint8_t file[MAGIC_SIZE + sizeof key->slots];

    memcpy(file, STORE_KEY_MAGIC, MAGIC_SIZE);
    memcpy(file + MAGIC_SIZE, key->slots, count * SLOT_SIZE);
    int error = file_replace(path, file, MAGIC_SIZE + count * SLOT_SIZE, 0600);
    if (error != 0)
        *fault = error == -EPERM ? "Operation not permitted" : fault_of_errno(-error);
    secret_wipe(file, sizeof file);
    return error == 0;
}

bool store_key_save(struct store_key *key, const char *path, const struct store_key_way *way,
                    const char **fault)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    *fault = "cannot be encrypted";
    return fill_slot(key->slots[0], key, way) && write_slots(key, path, 1, fault);
}

bool store_key_add_way(struct store_key *key, const char *path, const struct store_key_way *way,
                       const char **fault)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    *fault = "cannot be encrypted";
    return fill_slot(key->slots[1], key, way) && write_slots(key, path, 2, fault);
}

bool store_key_settle(struct store_key *key, const char *path, const char **fault)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    memcpy(key->slots[0], key->slots[1], SLOT_SIZE);
    return write_slots(key, path, 1, fault);
}

/* 1 opened, 0 not by this passphrase, -1 needs one and there is none, -2 damaged. */
static int open_slot(const uint8_t slot[SLOT_SIZE], uint8_t bytes[STORE_KEY_SIZE])
{
    uint8_t wrap[32], digest[32];
    size_t size;

    if (slot[0] == STORE_KEY_OPEN) {
        const uint8_t *at = slot + 1 + SALT_SIZE + NONCE_SIZE;
        memcpy(bytes, at, STORE_KEY_SIZE);
        sha256(digest, bytes, STORE_KEY_SIZE);
        return memcmp(digest, at + STORE_KEY_SIZE, TAG_SIZE) == 0 ? 1 : -2;
    }
    const char *passphrase = key_passphrase(&size);
    if (slot[0] != STORE_KEY_SEALED)
        return -2;
    if (passphrase == NULL)
        return -1;
    bool good = passphrase_stretch(wrap, slot + 1, SALT_SIZE, passphrase, size) &&
                unseal(slot, wrap, bytes);
    secret_wipe(wrap, sizeof wrap);
    return good;
}

static struct store_key *load_slot(const uint8_t slot[SLOT_SIZE], int *opened)
{
    uint8_t bytes[STORE_KEY_SIZE];
    struct store_key *key = NULL;

    *opened = open_slot(slot, bytes);
    if (*opened == 1) {
        key = key_new(bytes);
        memcpy(key->slots[0], slot, SLOT_SIZE);
    }
    secret_wipe(bytes, sizeof bytes);
    return key;
}

bool store_key_tidy(struct store_key *key, const char *path, const char **fault)
{
    CHECK_OBJECT(key, KEY_MAGIC);
    if (key->several && !write_slots(key, path, 1, fault))
        return false;
    key->several = false;
    return true;
}

struct store_key *store_key_load(const char *path, const char **fault)
{
    struct store_key *key = NULL;
    char *file;
    size_t size;
    int opened = -2,
        error = file_read(path, MAGIC_SIZE + SLOTS_MAX * SLOT_SIZE, true, &file, &size);

    if (error != 0) {
        *fault = error == -EFBIG ? "is damaged" : fault_of_errno(-error);
        return NULL;
    }
    if (size > MAGIC_SIZE && memcmp(file, STORE_KEY_MAGIC, MAGIC_SIZE) == 0 &&
        (size - MAGIC_SIZE) % SLOT_SIZE == 0) {
        /* A slot that lies open last: after a change that broke off, who gives a passphrase has it on the device's key. */
        for (unsigned lies_open = 0; lies_open < 2 && key == NULL; lies_open++) {
            for (size_t at = MAGIC_SIZE; at < size && key == NULL; at += SLOT_SIZE) {
                if ((file[at] == STORE_KEY_OPEN) == (lies_open == 1))
                    key = load_slot((const uint8_t *)file + at, &opened);
            }
        }
        if (key != NULL)
            key->several = size > MAGIC_SIZE + SLOT_SIZE;
    }
    *fault = opened == -1  ? "needs the passphrase of the device's key (p2pctl start asks for it)"
             : opened == 0 ? "is not opened by this passphrase, or is damaged"
                           : "is damaged";
    file_free_secret(file, size);
    return key;
}
