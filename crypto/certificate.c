/* Owns certificates as read-only objects: parsing, storing, and who a certificate speaks for.
 *
 * Leaves to authority.c to make them and to tls_context.c to decide whether one is to be trusted:
 * nothing that is read here has been verified against a CA.
 *
 * The subject is computed once, when the object is made. It stands in the URI subject alternative
 * name (identity.h) and holds only if the certificate has exactly one alternative name, is not a
 * CA's, and, for a device, if the device id is the one of the certificate's own key.
 *
 * Thread: any; immutable, counts its references. Bounds: PEM of CERTIFICATE_PEM_MAX, RSA keys of
 * 3072 to 8192 bits. */
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdatomic.h>
#include <string.h>

#include "base/check.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/mem.h"
#include "base/name.h"
#include "crypto/internal.h"

#define CERTIFICATE_MAGIC 0x63657274u

struct certificate {
    unsigned magic;
    atomic_uint references;
    X509 *x509;
    uint8_t fingerprint[FINGERPRINT_SIZE];
    bool ours; /* `subject` holds */
    struct certificate_subject subject;
};

/* "ACCOUNT/DEVICEIDHEX" */
static bool parse_device(const char *text, struct certificate_subject *out)
{
    const char *slash = strchr(text, '/');
    if (slash == NULL || (size_t)(slash - text) >= sizeof out->account)
        return false;
    memcpy(out->account, text, (size_t)(slash - text));
    out->account[slash - text] = '\0';
    if (account_name_fault(out->account) != NULL)
        return false;
    const char *digits = slash + 1;
    if (strspn(digits, "0123456789abcdef") != strlen(digits)) /* one spelling only */
        return false;
    return hex_decode(out->device, DEVICE_ID_SIZE, digits);
}

static bool parse_uri(const ASN1_IA5STRING *uri, struct certificate_subject *out)
{
    char text[128];
    int length = ASN1_STRING_length(uri);
    if (length <= 0 || (size_t)length >= sizeof text)
        return false;
    memcpy(text, ASN1_STRING_get0_data(uri), (size_t)length);
    text[length] = '\0';
    if (strlen(text) != (size_t)length)
        return false;
    if (strcmp(text, URI_TRACKER) == 0) {
        out->role = CERTIFICATE_TRACKER;
        return true;
    }
    out->role = CERTIFICATE_DEVICE;
    return strncmp(text, URI_DEVICE_PREFIX, strlen(URI_DEVICE_PREFIX)) == 0 &&
           parse_device(text + strlen(URI_DEVICE_PREFIX), out);
}

static bool parse_alternative_name(const X509 *x509, struct certificate_subject *out)
{
    int critical; /* -2 if the extension is there twice, and then there is no result */
    GENERAL_NAMES *names = X509_get_ext_d2i(x509, NID_subject_alt_name, &critical, NULL);
    bool good = false;
    if (names != NULL && sk_GENERAL_NAME_num(names) == 1) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, 0);
        good = name->type == GEN_URI && parse_uri(name->d.uniformResourceIdentifier, out);
    }
    GENERAL_NAMES_free(names);
    return good;
}

static bool seconds_since_1970(const ASN1_TIME *time, int64_t *out)
{
    struct tm tm;
    if (ASN1_TIME_to_tm(time, &tm) != 1)
        return false;
    *out = (int64_t)timegm(&tm);
    return true;
}

static bool serial_to_hex(const X509 *x509, char *out, size_t size)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(x509), NULL);
    char *hex = number == NULL ? NULL : BN_bn2hex(number);
    bool good = hex != NULL && strlen(hex) < size;
    if (good)
        snprintf(out, size, "%s", hex);
    OPENSSL_free(hex);
    BN_free(number);
    return good;
}

static bool parse_subject(X509 *x509, struct certificate_subject *out)
{
    uint8_t device[DEVICE_ID_SIZE];
    memset(out, 0, sizeof *out);
    if ((X509_get_extension_flags(x509) & (EXFLAG_CA | EXFLAG_INVALID | EXFLAG_V1)) != 0)
        return false;
    if (!parse_alternative_name(x509, out) || !serial_to_hex(x509, out->serial, sizeof out->serial))
        return false;
    if (!seconds_since_1970(X509_get0_notBefore(x509), &out->not_before) ||
        !seconds_since_1970(X509_get0_notAfter(x509), &out->not_after))
        return false;
    if (out->role == CERTIFICATE_TRACKER)
        return true;
    return public_key_device_id(X509_get0_pubkey(x509), device) &&
           memcmp(device, out->device, DEVICE_ID_SIZE) == 0;
}

struct certificate *certificate_wrap(X509 *x509, const char **fault)
{
    const EVP_PKEY *pkey = X509_get0_pubkey(x509);
    const char *why = pkey == NULL ? "holds no key that OpenSSL knows" : public_key_fault(pkey);
    if (why != NULL) {
        *fault = why;
        X509_free(x509);
        ERR_clear_error();
        return NULL;
    }
    struct certificate *certificate = xcalloc(1, sizeof *certificate);
    certificate->magic = CERTIFICATE_MAGIC;
    atomic_init(&certificate->references, 1);
    certificate->x509 = x509;
    CHECK(X509_digest(x509, EVP_sha256(), certificate->fingerprint, NULL) == 1);
    certificate->ours = parse_subject(x509, &certificate->subject);
    ERR_clear_error();
    return certificate;
}

struct certificate *certificate_from_pem(const char *pem, size_t size, const char **fault)
{
    if (size == 0 || size > CERTIFICATE_PEM_MAX) {
        *fault = "is no certificate (by its size)";
        return NULL;
    }
    BIO *bio = BIO_new_mem_buf(pem, (int)size);
    CHECK(bio != NULL);
    X509 *x509 = PEM_read_bio_X509(bio, NULL, pem_no_password, NULL);
    X509 *second = x509 == NULL ? NULL : PEM_read_bio_X509(bio, NULL, pem_no_password, NULL);
    BIO_free(bio);
    ERR_clear_error();
    if (second != NULL) {
        X509_free(second);
        X509_free(x509);
        *fault = "holds more than one certificate";
        return NULL;
    }
    if (x509 == NULL) {
        *fault = "holds no certificate in PEM form";
        return NULL;
    }
    return certificate_wrap(x509, fault);
}

struct certificate *certificate_load(const char *path, const char **fault)
{
    char *pem;
    size_t size;
    int error = file_read(path, CERTIFICATE_PEM_MAX, false, &pem, &size);
    if (error != 0) {
        *fault = fault_of_errno(-error);
        return NULL;
    }
    struct certificate *certificate = certificate_from_pem(pem, size, fault);
    free(pem);
    return certificate;
}

char *certificate_to_pem(const struct certificate *certificate)
{
    char *data, *pem;
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    BIO *bio = BIO_new(BIO_s_mem());
    CHECK(bio != NULL && PEM_write_bio_X509(bio, certificate->x509) == 1);
    long size = BIO_get_mem_data(bio, &data);
    pem = xmalloc((size_t)size + 1);
    memcpy(pem, data, (size_t)size);
    pem[size] = '\0';
    BIO_free(bio);
    return pem;
}

bool certificate_save(const struct certificate *certificate, const char *path, const char **fault)
{
    char *pem = certificate_to_pem(certificate);
    int error = file_replace(path, pem, strlen(pem), 0644);
    free(pem);
    if (error != 0)
        *fault = error == -EPERM ? "Operation not permitted" : fault_of_errno(-error);
    return error == 0;
}

void certificate_fingerprint(const struct certificate *certificate,
                             uint8_t sha256[FINGERPRINT_SIZE])
{
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    memcpy(sha256, certificate->fingerprint, FINGERPRINT_SIZE);
}

bool certificate_subject(const struct certificate *certificate, struct certificate_subject *out)
{
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    if (certificate->ours)
        *out = certificate->subject;
    return certificate->ours;
}

X509 *certificate_x509(const struct certificate *certificate)
{
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    return certificate->x509;
}

struct certificate *certificate_share(struct certificate *certificate)
{
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    atomic_fetch_add(&certificate->references, 1);
    return certificate;
}

void certificate_free(struct certificate *certificate)
{
    if (certificate == NULL)
        return;
    CHECK_OBJECT(certificate, CERTIFICATE_MAGIC);
    if (atomic_fetch_sub(&certificate->references, 1) != 1)
        return;
    X509_free(certificate->x509);
    certificate->magic = 0;
    free(certificate);
}
