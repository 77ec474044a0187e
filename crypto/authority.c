/* Owns the making of certificates and of certificate requests (X.509 v3, PKCS #10).
 *
 *   CA       self-signed, basicConstraints CA with path length 0, keyCertSign and cRLSign, 20 years
 *   tracker  URI p2p://tracker            signed by the CA, both extended key usages, so that one
 *   device   URI p2p://device/A/ID        certificate serves both ends of a link
 *
 * Of a request only its public key is used, after its self-signature has shown that the sender
 * holds the private one; names and extensions that it asks for are ignored. No certificate outlives
 * its CA.
 *
 * Thread: any; pure apart from random serials and the wall clock. Signing costs some ms: use a
 * worker. */
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/mem.h"
#include "base/name.h"
#include "crypto/internal.h"
#include "crypto/random.h"

#define DAY_S          INT64_C(86400)
#define CA_LIFETIME_S  (20 * 365 * DAY_S)
#define LIFETIME_MAX_S CA_LIFETIME_S
#define BACKDATED_S    3600 /* so that a member whose clock is behind accepts a fresh certificate */
#define SERIAL_SIZE    16
#define NAME_PART_MAX  64 /* X.520's bound for a name's part */

static const char signing_failed[] = "OpenSSL could not make the certificate";

struct plan {
    X509 *issuer; /* NULL: self-signed */
    EVP_PKEY *issuer_key;
    EVP_PKEY *subject_key;
    const char *common_name;
    const char *organization; /* or NULL */
    const char *uri;          /* NULL: a CA */
    int64_t lifetime_s;
};

static bool set_serial(X509 *x509)
{
    uint8_t bytes[SERIAL_SIZE];
    random_bytes(bytes, sizeof bytes);
    bytes[0] = (uint8_t)((bytes[0] & 0x7f) | 0x40); /* positive, and always as long */
    BIGNUM *number = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool good = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x509)) != NULL;
    BN_free(number);
    return good;
}

static bool set_times(X509 *x509, const struct plan *plan)
{
    int64_t now = clock_wall() / NS_PER_S;
    if (ASN1_TIME_set(X509_getm_notBefore(x509), (time_t)(now - BACKDATED_S)) == NULL ||
        ASN1_TIME_set(X509_getm_notAfter(x509), (time_t)(now + plan->lifetime_s)) == NULL)
        return false;
    if (plan->issuer != NULL &&
        ASN1_TIME_compare(X509_get0_notAfter(x509), X509_get0_notAfter(plan->issuer)) > 0)
        return X509_set1_notAfter(x509, X509_get0_notAfter(plan->issuer)) == 1;
    return true;
}

static bool add_name(X509_NAME *name, int nid, const char *text)
{
    return X509_NAME_add_entry_by_NID(name, nid, MBSTRING_UTF8, (const unsigned char *)text, -1, -1,
                                      0) == 1;
}

static bool set_names(X509 *x509, const struct plan *plan)
{
    X509_NAME *name = X509_get_subject_name(x509);
    if (plan->organization != NULL && !add_name(name, NID_organizationName, plan->organization))
        return false;
    if (!add_name(name, NID_commonName, plan->common_name))
        return false;
    const X509_NAME *issuer = plan->issuer != NULL ? X509_get_subject_name(plan->issuer) : name;
    return X509_set_issuer_name(x509, issuer) == 1;
}

static bool add_extension(X509 *x509, X509V3_CTX *context, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, context, nid, value);
    bool good = extension != NULL && X509_add_ext(x509, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return good;
}

static bool add_uri(X509 *x509, const char *uri)
{
    bool good = false;
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_IA5STRING *text = ASN1_IA5STRING_new();
    if (names != NULL && name != NULL && text != NULL && ASN1_STRING_set(text, uri, -1) == 1) {
        GENERAL_NAME_set0_value(name, GEN_URI, text);
        text = NULL;
        if (sk_GENERAL_NAME_push(names, name) > 0) {
            name = NULL;
            good = X509_add1_ext_i2d(x509, NID_subject_alt_name, names, 0, X509V3_ADD_APPEND) == 1;
        }
    }
    ASN1_IA5STRING_free(text);
    GENERAL_NAME_free(name);
    GENERAL_NAMES_free(names);
    return good;
}

static bool add_extensions(X509 *x509, const struct plan *plan)
{
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, plan->issuer != NULL ? plan->issuer : x509, x509, NULL, NULL, 0);
    if (plan->uri == NULL)
        return add_extension(x509, &context, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
               add_extension(x509, &context, NID_key_usage, "critical,keyCertSign,cRLSign") &&
               add_extension(x509, &context, NID_subject_key_identifier, "hash");
    return add_extension(x509, &context, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(x509, &context, NID_key_usage, "critical,digitalSignature") &&
           add_extension(x509, &context, NID_ext_key_usage, "serverAuth,clientAuth") &&
           add_extension(x509, &context, NID_subject_key_identifier, "hash") &&
           add_extension(x509, &context, NID_authority_key_identifier, "keyid:always") &&
           add_uri(x509, plan->uri);
}

static struct certificate *make(const struct plan *plan, const char **fault)
{
    if (plan->lifetime_s <= 0 || plan->lifetime_s > LIFETIME_MAX_S) {
        *fault = "the certificate's lifetime is out of range";
        return NULL;
    }
    X509 *x509 = X509_new();
    if (x509 == NULL || X509_set_version(x509, X509_VERSION_3) != 1 || !set_serial(x509) ||
        !set_times(x509, plan) || !set_names(x509, plan) ||
        X509_set_pubkey(x509, plan->subject_key) != 1 || !add_extensions(x509, plan) ||
        X509_sign(x509, plan->issuer_key, EVP_sha256()) == 0) {
        X509_free(x509);
        ERR_clear_error();
        *fault = signing_failed;
        return NULL;
    }
    return certificate_wrap(x509, fault);
}

/* NULL, or why this pair cannot issue. */
static const char *issuer_fault(const struct certificate *ca, const struct key *ca_key)
{
    X509 *x509 = certificate_x509(ca);
    if (X509_check_ca(x509) != 1)
        return "the CA's certificate is not a CA's";
    bool matches = X509_check_private_key(x509, key_pkey(ca_key)) == 1;
    ERR_clear_error();
    return matches ? NULL : "the CA's key does not belong to its certificate";
}

struct certificate *ca_create(struct key *ca_key, const char *swarm_name, const char **fault)
{
    uint8_t id[DEVICE_ID_SIZE];
    char hex[2 * DEVICE_ID_SIZE + 1], common_name[NAME_PART_MAX + 1];

    if (swarm_name != NULL &&
        (strlen(swarm_name) > NAME_PART_MAX || !utf8_is_valid(swarm_name, strlen(swarm_name)))) {
        *fault = "the swarm's name is not 64 bytes of UTF-8 or less";
        return NULL;
    }
    /* The key's id makes the names of any two CAs differ, which chain building goes by. */
    key_device_id(ca_key, id);
    hex_encode(hex, id, sizeof id);
    snprintf(common_name, sizeof common_name, "swarm CA %.16s", hex);
    const struct plan plan = {
        .issuer_key = key_pkey(ca_key),
        .subject_key = key_pkey(ca_key),
        .common_name = common_name,
        .organization = swarm_name != NULL && swarm_name[0] != '\0' ? swarm_name : NULL,
        .lifetime_s = CA_LIFETIME_S,
    };
    return make(&plan, fault);
}

struct certificate *ca_issue_tracker(const struct certificate *ca, const struct key *ca_key,
                                     const struct key *subject_key, int64_t lifetime_s,
                                     const char **fault)
{
    if ((*fault = issuer_fault(ca, ca_key)) != NULL)
        return NULL;
    const struct plan plan = {
        .issuer = certificate_x509(ca),
        .issuer_key = key_pkey(ca_key),
        .subject_key = key_pkey(subject_key),
        .common_name = "tracker",
        .uri = URI_TRACKER,
        .lifetime_s = lifetime_s,
    };
    return make(&plan, fault);
}

/* The request's key if it may have a certificate, else NULL. The caller frees the request. */
static EVP_PKEY *csr_check(X509_REQ *request, uint8_t device[DEVICE_ID_SIZE], const char **fault)
{
    EVP_PKEY *pkey = X509_REQ_get0_pubkey(request);
    if (pkey == NULL) {
        *fault = "the request's key is of an unknown kind";
        return NULL;
    }
    if (public_key_fault(pkey) != NULL) {
        *fault = "the request's key is not RSA of 3072 to 8192 bits";
        return NULL;
    }
    switch (X509_REQ_get_signature_nid(request)) {
    case NID_sha256WithRSAEncryption:
    case NID_sha384WithRSAEncryption:
    case NID_sha512WithRSAEncryption:
    case NID_rsassaPss:
        break;
    default:
        *fault = "the request is signed with an algorithm that is not accepted";
        return NULL;
    }
    if (X509_REQ_verify(request, pkey) != 1) {
        *fault = "the request's signature is wrong";
        return NULL;
    }
    if (!public_key_device_id(pkey, device)) {
        *fault = "the request's key cannot be encoded";
        return NULL;
    }
    return pkey;
}

static X509_REQ *csr_parse(const char *pem, size_t size, const char **fault)
{
    X509_REQ *request = NULL;
    if (size > 0 && size <= CSR_PEM_MAX) {
        BIO *bio = BIO_new_mem_buf(pem, (int)size);
        CHECK(bio != NULL);
        request = PEM_read_bio_X509_REQ(bio, NULL, pem_no_password, NULL);
        BIO_free(bio);
    }
    if (request == NULL)
        *fault = "is no certificate request in PEM form";
    return request;
}

bool csr_inspect(const char *pem, size_t size, uint8_t device[DEVICE_ID_SIZE], const char **fault)
{
    X509_REQ *request = csr_parse(pem, size, fault);
    bool good = request != NULL && csr_check(request, device, fault) != NULL;
    X509_REQ_free(request);
    ERR_clear_error();
    return good;
}

struct certificate *ca_issue_device(const struct certificate *ca, const struct key *ca_key,
                                    const char *csr_pem, size_t csr_size, const char *account,
                                    int64_t lifetime_s, const char **fault)
{
    uint8_t device[DEVICE_ID_SIZE];
    char hex[2 * DEVICE_ID_SIZE + 1];
    struct certificate *certificate = NULL;

    if ((*fault = issuer_fault(ca, ca_key)) != NULL)
        return NULL;
    if (account_name_fault(account) != NULL) {
        *fault = "the account's name is not valid";
        return NULL;
    }
    X509_REQ *request = csr_parse(csr_pem, csr_size, fault);
    EVP_PKEY *pkey = request == NULL ? NULL : csr_check(request, device, fault);
    if (pkey != NULL) {
        hex_encode(hex, device, sizeof device);
        char *uri = xasprintf(URI_DEVICE_PREFIX "%s/%s", account, hex);
        const struct plan plan = {
            .issuer = certificate_x509(ca),
            .issuer_key = key_pkey(ca_key),
            .subject_key = pkey,
            .common_name = account,
            .uri = uri,
            .lifetime_s = lifetime_s,
        };
        certificate = make(&plan, fault);
        free(uri);
    }
    X509_REQ_free(request);
    ERR_clear_error();
    return certificate;
}

char *csr_create(const struct key *key, const char **fault)
{
    uint8_t id[DEVICE_ID_SIZE];
    char hex[2 * DEVICE_ID_SIZE + 1], *data, *pem = NULL;
    X509_REQ *request = X509_REQ_new();
    BIO *bio = BIO_new(BIO_s_mem());

    key_device_id(key, id);
    hex_encode(hex, id, sizeof id);
    if (request != NULL && bio != NULL && X509_REQ_set_version(request, X509_REQ_VERSION_1) == 1 &&
        add_name(X509_REQ_get_subject_name(request), NID_commonName, hex) &&
        X509_REQ_set_pubkey(request, key_pkey(key)) == 1 &&
        X509_REQ_sign(request, key_pkey(key), EVP_sha256()) > 0 &&
        PEM_write_bio_X509_REQ(bio, request) == 1) {
        long size = BIO_get_mem_data(bio, &data);
        pem = xmalloc((size_t)size + 1);
        memcpy(pem, data, (size_t)size);
        pem[size] = '\0';
    } else {
        *fault = "OpenSSL could not make the certificate request";
    }
    BIO_free(bio);
    X509_REQ_free(request);
    ERR_clear_error();
    return pem;
}
