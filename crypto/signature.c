/* Signatures of catalogue entries: Ed25519 and RSA-PSS by OpenSSL. Formats: signature.h. */
#include "crypto/signature.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/random.h"

#define TARGET_MAX 4096

struct signing_key {
    EVP_PKEY *pkey;
    uint8_t public[SIGNER_KEY_SIZE];
};

static const char claim_label[] = "p2p signer 1"; /* with its zero byte */
static const char entry_label[] = "p2p entry 1";  /* likewise */

struct signing_key *signing_key_open(const char *path, const char **fault)
{
    uint8_t secret[32];
    char *data = NULL;
    size_t size = 0, length = SIGNER_KEY_SIZE;
    int error = file_read(path, sizeof secret, true, &data, &size);

    if (error == 0 && size == sizeof secret) {
        memcpy(secret, data, sizeof secret);
    } else if (error == -ENOENT) {
        random_bytes(secret, sizeof secret);
        error = file_replace(path, secret, sizeof secret, 0600);
    }
    bool is_whole = data == NULL || size == sizeof secret;
    file_free_secret(data, size);
    if (error != 0 || !is_whole) { /* another key in its place would be a warning to every member */
        *fault = error == 0 || error == -EFBIG ? "is not a signing key: put it back, or remove it"
                                               : fault_of_errno(-error);
        return NULL;
    }
    struct signing_key *key = xcalloc(1, sizeof *key);
    key->pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, sizeof secret);
    secret_wipe(secret, sizeof secret);
    if (key->pkey == NULL || EVP_PKEY_get_raw_public_key(key->pkey, key->public, &length) != 1) {
        *fault = "the signing key cannot be used";
        signing_key_free(key);
        return NULL;
    }
    return key;
}

void signing_key_free(struct signing_key *key)
{
    if (key == NULL)
        return;
    EVP_PKEY_free(key->pkey);
    free(key);
}

void signer_id(const uint8_t key[SIGNER_KEY_SIZE], uint8_t id[SIGNER_ID_SIZE])
{
    uint8_t hash[HASH_SIZE];

    sha256(hash, key, SIGNER_KEY_SIZE);
    memcpy(id, hash, SIGNER_ID_SIZE);
}

void signing_key_id(const struct signing_key *key, uint8_t id[SIGNER_ID_SIZE])
{
    signer_id(key->public, id);
}

/* --- claims --------------------------------------------------------------------------------------------- */

static size_t claim_text(uint8_t out[256], const struct signer_claim *claim, const uint8_t *ca)
{
    uint8_t *at = out;
    size_t length = strlen(claim->account);

    memcpy(at, claim_label, sizeof claim_label);
    at += sizeof claim_label;
    memcpy(at, ca, FINGERPRINT_SIZE);
    at += FINGERPRINT_SIZE;
    memcpy(at, claim->key, SIGNER_KEY_SIZE);
    at += SIGNER_KEY_SIZE;
    memcpy(at, claim->account, length);
    return (size_t)(at - out) + length;
}

static bool use_pss(EVP_PKEY_CTX *context)
{
    return EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PSS_PADDING) > 0 &&
           EVP_PKEY_CTX_set_rsa_pss_saltlen(context, 32) > 0;
}

bool signer_claim_make(struct signer_claim *claim, const struct signing_key *key,
                       const struct key *device, const uint8_t ca[FINGERPRINT_SIZE],
                       const char *account, const char **fault)
{
    uint8_t text[256], *der = NULL;
    EVP_PKEY_CTX *context = NULL;
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    bool good = false;

    *claim = (struct signer_claim){.signature_size = CLAIM_MAX};
    *fault = "the signing key cannot be vouched for";
    memcpy(claim->key, key->public, SIGNER_KEY_SIZE);
    snprintf(claim->account, sizeof claim->account, "%s", account);
    int size = i2d_PUBKEY(key_pkey(device), &der);
    if (size > 0 && size <= DEVICE_KEY_MAX && digest != NULL) {
        memcpy(claim->device_key, der, (size_t)size);
        claim->device_key_size = (size_t)size;
        size_t length = claim_text(text, claim, ca);
        good = EVP_DigestSignInit(digest, &context, EVP_sha256(), NULL, key_pkey(device)) == 1 &&
               use_pss(context) &&
               EVP_DigestSign(digest, claim->signature, &claim->signature_size, text, length) == 1;
    }
    OPENSSL_free(der);
    EVP_MD_CTX_free(digest);
    return good;
}

bool signer_claim_check(const struct signer_claim *claim, const uint8_t ca[FINGERPRINT_SIZE],
                        uint8_t device[DEVICE_ID_SIZE])
{
    const uint8_t *at = claim->device_key;
    EVP_PKEY *pkey = d2i_PUBKEY(NULL, &at, (long)claim->device_key_size);
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    EVP_PKEY_CTX *context = NULL;
    uint8_t text[256];
    bool good = false;

    if (pkey != NULL && digest != NULL && at == claim->device_key + claim->device_key_size &&
        public_key_fault(pkey) == NULL && public_key_device_id(pkey, device)) {
        size_t length = claim_text(text, claim, ca);
        good = EVP_DigestVerifyInit(digest, &context, EVP_sha256(), NULL, pkey) == 1 &&
               use_pss(context) &&
               EVP_DigestVerify(digest, claim->signature, claim->signature_size, text, length) == 1;
    }
    EVP_MD_CTX_free(digest);
    EVP_PKEY_free(pkey);
    return good;
}

/* --- entries -------------------------------------------------------------------------------------------- */

struct entry_text {
    size_t size;
    uint8_t bytes[sizeof entry_label + FINGERPRINT_SIZE + 1 + 8 + HASH_SIZE + TARGET_MAX];
};

static bool entry_text(struct entry_text *text, const struct entry_statement *entry,
                       const uint8_t *ca)
{
    uint8_t *at = text->bytes;
    size_t target = entry->target == NULL ? 0 : strlen(entry->target);

    if (target > TARGET_MAX)
        return false;
    memcpy(at, entry_label, sizeof entry_label);
    at += sizeof entry_label;
    memcpy(at, ca, FINGERPRINT_SIZE);
    at += FINGERPRINT_SIZE;
    *at++ = entry->kind;
    for (int shift = 56; shift >= 0; shift -= 8)
        *at++ = (uint8_t)(entry->size >> shift);
    memset(at, 0, HASH_SIZE);
    if (entry->root != NULL)
        memcpy(at, entry->root, HASH_SIZE);
    at += HASH_SIZE;
    if (target > 0)
        memcpy(at, entry->target, target);
    text->size = (size_t)(at - text->bytes) + target;
    return true;
}

bool entry_sign(const struct signing_key *key, const uint8_t ca[FINGERPRINT_SIZE],
                const struct entry_statement *entry, uint8_t out[SIGNATURE_SIZE])
{
    struct entry_text text;
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    size_t size = SIGNATURE_SIZE;
    bool good = digest != NULL && entry_text(&text, entry, ca) &&
                EVP_DigestSignInit(digest, NULL, NULL, NULL, key->pkey) == 1 &&
                EVP_DigestSign(digest, out, &size, text.bytes, text.size) == 1;

    EVP_MD_CTX_free(digest);
    return good && size == SIGNATURE_SIZE;
}

bool entry_check(const uint8_t key[SIGNER_KEY_SIZE], const uint8_t ca[FINGERPRINT_SIZE],
                 const struct entry_statement *entry, const uint8_t signature[SIGNATURE_SIZE])
{
    struct entry_text text;
    EVP_PKEY *pkey = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, SIGNER_KEY_SIZE);
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    bool good = pkey != NULL && digest != NULL && entry_text(&text, entry, ca) &&
                EVP_DigestVerifyInit(digest, NULL, NULL, NULL, pkey) == 1 &&
                EVP_DigestVerify(digest, signature, SIGNATURE_SIZE, text.bytes, text.size) == 1;

    EVP_MD_CTX_free(digest);
    EVP_PKEY_free(pkey);
    return good;
}
