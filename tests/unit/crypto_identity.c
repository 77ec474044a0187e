/* crypto/identity.h: keys, requests, certificates, and what is refused of each. */
#include "crypto/identity.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/protection.h"
#include "crypto/random.h"

#define DAY_S INT64_C(86400)

static struct key *ca_key, *other_ca_key, *device_key, *tracker_key;
static struct certificate *ca, *other_ca;
static char folder[] = "/tmp/crypto_identity.XXXXXX";

static int set_up(void **state)
{
    const char *fault = NULL;
    if (mkdtemp(folder) == NULL)
        return -1;
    ca_key = key_generate(&fault);
    other_ca_key = key_generate(&fault);
    device_key = key_generate(&fault);
    tracker_key = key_generate(&fault);
    ca = ca_create(ca_key, "the lab", &fault);
    other_ca = ca_create(other_ca_key, "the lab", &fault);
    return ca != NULL && other_ca != NULL && device_key != NULL && tracker_key != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    certificate_free(ca);
    certificate_free(other_ca);
    key_free(ca_key);
    key_free(other_ca_key);
    key_free(device_key);
    key_free(tracker_key);
    return rmdir(folder);
}

static char *path_of(const char *name)
{
    return xasprintf("%s/%s", folder, name);
}

static char *bio_text(BIO *bio)
{
    char *data;
    long size = BIO_get_mem_data(bio, &data);
    char *text = xmalloc((size_t)size + 1);
    memcpy(text, data, (size_t)size);
    text[size] = '\0';
    BIO_free(bio);
    return text;
}

static char *pem_of_key(EVP_PKEY *pkey)
{
    BIO *bio = BIO_new(BIO_s_mem());
    assert_int_equal(PEM_write_bio_PKCS8PrivateKey(bio, pkey, NULL, NULL, 0, NULL, NULL), 1);
    return bio_text(bio);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

static EVP_PKEY *rsa_with(unsigned bits, unsigned long exponent)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_id(EVP_PKEY_RSA, NULL);
    EVP_PKEY *pkey = NULL;
    BIGNUM *e = BN_new();
    assert_int_equal(BN_set_word(e, exponent), 1);
    assert_int_equal(EVP_PKEY_keygen_init(context), 1);
    assert_int_equal(EVP_PKEY_CTX_set_rsa_keygen_bits(context, (int)bits), 1);
    assert_int_equal(EVP_PKEY_CTX_set1_rsa_keygen_pubexp(context, e), 1);
    assert_int_equal(EVP_PKEY_generate(context, &pkey), 1);
    BN_free(e);
    EVP_PKEY_CTX_free(context);
    return pkey;
}

/* A request that claims a name and an alternative name. */
static char *request_of(EVP_PKEY *pkey, const EVP_MD *digest, const char *claim)
{
    X509_REQ *request = X509_REQ_new();
    X509_NAME *name = X509_REQ_get_subject_name(request);
    assert_int_equal(X509_REQ_set_pubkey(request, pkey), 1);
    assert_int_equal(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                                (const unsigned char *)"tracker", -1, -1, 0),
                     1);
    if (claim != NULL) {
        STACK_OF(X509_EXTENSION) *extensions = NULL;
        X509_EXTENSION *san = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, claim);
        X509_EXTENSION *constraints =
            X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints, "critical,CA:TRUE");
        X509v3_add_ext(&extensions, san, -1);
        X509v3_add_ext(&extensions, constraints, -1);
        assert_int_equal(X509_REQ_add_extensions(request, extensions), 1);
        X509_EXTENSION_free(san);
        X509_EXTENSION_free(constraints);
        sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
    }
    assert_true(X509_REQ_sign(request, pkey, digest) > 0);
    BIO *bio = BIO_new(BIO_s_mem());
    assert_int_equal(PEM_write_bio_X509_REQ(bio, request), 1);
    X509_REQ_free(request);
    return bio_text(bio);
}

static struct certificate *issue(const char *account, int64_t lifetime_s)
{
    const char *fault = NULL;
    char *csr = csr_create(device_key, &fault);
    assert_non_null(csr);
    struct certificate *made =
        ca_issue_device(ca, ca_key, csr, strlen(csr), account, lifetime_s, &fault);
    free(csr);
    if (made == NULL)
        assert_non_null(fault);
    return made;
}

static void a_key_survives_saving_and_loading_with_its_device_id(void **state)
{
    const char *fault = NULL;
    uint8_t before[DEVICE_ID_SIZE], after[DEVICE_ID_SIZE];
    struct stat info;
    char *path = path_of("device.key");

    assert_true(key_save(device_key, path, &fault));
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    struct key *loaded = key_load(path, &fault);
    assert_non_null(loaded);
    key_device_id(device_key, before);
    key_device_id(loaded, after);
    assert_memory_equal(before, after, DEVICE_ID_SIZE);
    key_device_id(ca_key, after);
    assert_memory_not_equal(before, after, DEVICE_ID_SIZE);
    struct key *shared = key_share(loaded);
    key_free(loaded);
    key_device_id(shared, after);
    assert_memory_equal(before, after, DEVICE_ID_SIZE);
    key_free(shared);
    unlink(path);
    free(path);
}

static void the_device_id_begins_the_sha256_of_the_public_key_info(void **state)
{
    uint8_t id[DEVICE_ID_SIZE], digest[32], *der = NULL;
    int size = i2d_PUBKEY(key_pkey(device_key), &der);
    sha256(digest, der, (size_t)size);
    OPENSSL_free(der);
    key_device_id(device_key, id);
    assert_memory_equal(id, digest, DEVICE_ID_SIZE);
}

static void a_key_file_that_others_can_read_is_refused(void **state)
{
    static const mode_t wide[] = {0640, 0604, 0660, 0644, 0602};
    const char *fault;
    char *path = path_of("wide.key");
    assert_true(key_save(device_key, path, &fault));
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        fault = NULL;
        assert_int_equal(chmod(path, wide[i]), 0);
        assert_null(key_load(path, &fault));
        assert_non_null(strstr(fault, "others"));
    }
    unlink(path);
    assert_null(key_load(path, &fault));
    assert_string_equal(fault, "No such file or directory");
    free(path);
}

static void a_key_file_with_a_passphrase_opens_with_it_only(void **state)
{
    static const char good[] = "correct horse", bad[] = "wrong horse";
    const char *fault = NULL;
    char *path = path_of("locked.key"), *text = NULL;
    uint8_t before[DEVICE_ID_SIZE], after[DEVICE_ID_SIZE];
    struct stat info;
    size_t size;

    assert_true(key_save_protected(device_key, path, good, strlen(good), &fault));
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    assert_int_equal(file_read(path, 1 << 16, true, &text, &size), 0);
    assert_non_null(strstr(text, "ENCRYPTED PRIVATE KEY"));
    free(text);
    assert_int_equal(protection_of_key(path), 1);
    assert_null(key_load(path, &fault));
    assert_non_null(strstr(fault, "needs its passphrase"));
    key_set_passphrase(bad, strlen(bad));
    assert_null(key_load(path, &fault));
    assert_non_null(strstr(fault, "not opened by this passphrase"));
    key_set_passphrase(good, strlen(good));
    struct key *loaded = key_load(path, &fault);
    assert_non_null(loaded);
    key_device_id(device_key, before);
    key_device_id(loaded, after);
    assert_memory_equal(before, after, DEVICE_ID_SIZE);
    /* A file without one needs none. */
    assert_true(key_save(loaded, path, &fault));
    assert_int_equal(protection_of_key(path), 0);
    key_free(loaded);
    loaded = key_load(path, &fault);
    assert_non_null(loaded);
    key_free(loaded);
    key_set_passphrase(NULL, 0);
    unlink(path);
    assert_int_equal(protection_of_key(path), -ENOENT);
    free(path);
}

static void a_key_file_behind_a_symbolic_link_is_refused(void **state)
{
    const char *fault = NULL;
    char *path = path_of("real.key"), *link = path_of("link.key");
    assert_true(key_save(device_key, path, &fault));
    assert_int_equal(symlink(path, link), 0);
    assert_null(key_load(link, &fault));
    unlink(path);
    unlink(link);
    free(path);
    free(link);
}

static void short_and_foreign_keys_are_refused(void **state)
{
    EVP_PKEY *keys[] = {rsa_with(1024, 65537), rsa_with(2048, 65537), EVP_EC_gen("P-256"),
                        rsa_with(3072, 3)};
    char *path = path_of("bad.key");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const char *fault = NULL;
        uint8_t id[DEVICE_ID_SIZE];
        char *pem = pem_of_key(keys[i]);
        write_file(path, pem, 0600);
        assert_null(key_load(path, &fault));
        assert_non_null(fault);
        free(pem);
        char *csr = request_of(keys[i], EVP_sha256(), NULL);
        fault = NULL;
        assert_false(csr_inspect(csr, strlen(csr), id, &fault));
        assert_non_null(fault);
        fault = NULL;
        assert_null(ca_issue_device(ca, ca_key, csr, strlen(csr), "anna", DAY_S, &fault));
        assert_non_null(fault);
        free(csr);
        EVP_PKEY_free(keys[i]);
    }
    unlink(path);
    free(path);
}

static void what_is_no_key_or_an_encrypted_one_is_refused_without_asking(void **state)
{
    const char *fault = NULL;
    char *path = path_of("no.key");
    write_file(path, "", 0600);
    assert_null(key_load(path, &fault));
    write_file(path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0600);
    assert_null(key_load(path, &fault));
    BIO *bio = BIO_new(BIO_s_mem());
    assert_int_equal(PEM_write_bio_PKCS8PrivateKey(bio, key_pkey(device_key), EVP_aes_128_cbc(),
                                                   "secret", 6, NULL, NULL),
                     1);
    char *pem = bio_text(bio);
    write_file(path, pem, 0600);
    assert_null(key_load(path, &fault));
    free(pem);
    unlink(path);
    free(path);
}

static void a_request_tells_the_device_of_its_own_key(void **state)
{
    const char *fault = NULL;
    uint8_t told[DEVICE_ID_SIZE], id[DEVICE_ID_SIZE];
    char *csr = csr_create(device_key, &fault);
    key_device_id(device_key, id);
    assert_true(csr_inspect(csr, strlen(csr), told, &fault));
    assert_memory_equal(told, id, DEVICE_ID_SIZE);
    free(csr);
}

/* Every bit of the request counts: with any one flipped it is refused, or it is the same key still
 * (bits that no decoder looks at do not exist in DER, so the latter happens in PEM's own frame
 * only). */
static void a_request_that_was_tampered_with_is_refused(void **state)
{
    const char *fault = NULL;
    uint8_t id[DEVICE_ID_SIZE];
    char *csr = csr_create(device_key, &fault);
    BIO *in = BIO_new_mem_buf(csr, -1);
    X509_REQ *request = PEM_read_bio_X509_REQ(in, NULL, NULL, NULL);
    uint8_t *der = NULL;
    int size = i2d_X509_REQ(request, &der), refused = 0, tried = 0;

    for (int i = 0; i < size; i += 7) {
        der[i] ^= 0x04;
        BIO *bio = BIO_new(BIO_s_mem());
        assert_true(PEM_write_bio(bio, "CERTIFICATE REQUEST", "", der, size) > 0);
        char *changed = bio_text(bio);
        tried++;
        refused += !csr_inspect(changed, strlen(changed), id, &fault);
        free(changed);
        der[i] ^= 0x04;
    }
    assert_int_equal(refused, tried);
    OPENSSL_free(der);
    X509_REQ_free(request);
    BIO_free(in);

    assert_false(csr_inspect(csr, 0, id, &fault));
    assert_false(csr_inspect(csr, strlen(csr) / 2, id, &fault));
    char *padded = xcalloc(1, CSR_PEM_MAX + 2);
    memset(padded, '\n', CSR_PEM_MAX + 1);
    memcpy(padded, csr, strlen(csr));
    assert_false(csr_inspect(padded, CSR_PEM_MAX + 1, id, &fault));
    assert_true(csr_inspect(padded, CSR_PEM_MAX, id, &fault));
    free(padded);
    free(csr);
}

static void a_request_signed_with_sha1_is_refused(void **state)
{
    const char *fault = NULL;
    uint8_t id[DEVICE_ID_SIZE];
    char *csr = request_of(key_pkey(device_key), EVP_sha1(), NULL);
    assert_false(csr_inspect(csr, strlen(csr), id, &fault));
    free(csr);
}

static void names_that_a_request_claims_are_ignored(void **state)
{
    const char *fault = NULL;
    struct certificate_subject subject;
    uint8_t id[DEVICE_ID_SIZE];
    char *csr =
        request_of(key_pkey(device_key), EVP_sha256(),
                   "URI:p2p://tracker,URI:p2p://device/admin/00000000000000000000000000000000");
    struct certificate *made =
        ca_issue_device(ca, ca_key, csr, strlen(csr), "mallory", DAY_S, &fault);
    assert_non_null(made);
    assert_true(certificate_subject(made, &subject));
    assert_int_equal(subject.role, CERTIFICATE_DEVICE);
    assert_string_equal(subject.account, "mallory");
    key_device_id(device_key, id);
    assert_memory_equal(subject.device, id, DEVICE_ID_SIZE);
    assert_int_equal(X509_check_ca(certificate_x509(made)), 0);
    certificate_free(made);
    free(csr);
}

static void a_device_certificate_says_who_and_how_long(void **state)
{
    struct certificate_subject subject, second;
    int64_t now = clock_wall() / NS_PER_S;
    struct certificate *made = issue("anna.b_c-9", DAY_S), *again = issue("anna.b_c-9", DAY_S);
    X509 *x509 = certificate_x509(made);

    assert_true(certificate_subject(made, &subject));
    assert_true(certificate_subject(again, &second));
    assert_string_equal(subject.account, "anna.b_c-9");
    assert_in_range(subject.not_before, now - 3602, now - 3598);
    assert_in_range(subject.not_after, now + DAY_S - 2, now + DAY_S + 2);
    assert_int_equal(strlen(subject.serial), 32);
    assert_string_not_equal(subject.serial, second.serial);
    assert_int_equal(X509_get_version(x509), X509_VERSION_3);
    assert_int_equal(X509_get_signature_nid(x509), NID_sha256WithRSAEncryption);
    assert_int_equal(X509_get_key_usage(x509), KU_DIGITAL_SIGNATURE);
    assert_int_equal(X509_get_extended_key_usage(x509), XKU_SSL_SERVER | XKU_SSL_CLIENT);
    assert_int_equal(X509_verify(x509, key_pkey(ca_key)), 1);
    assert_int_equal(X509_verify(x509, key_pkey(other_ca_key)), 0);
    ERR_clear_error();
    certificate_free(made);
    certificate_free(again);
}

static void the_tracker_certificate_names_the_tracker(void **state)
{
    const char *fault = NULL;
    struct certificate_subject subject;
    struct certificate *made = ca_issue_tracker(ca, ca_key, tracker_key, 365 * DAY_S, &fault);
    assert_non_null(made);
    assert_true(certificate_subject(made, &subject));
    assert_int_equal(subject.role, CERTIFICATE_TRACKER);
    assert_string_equal(subject.account, "");
    certificate_free(made);
}

static void a_ca_names_nobody_and_signs_leaves_only(void **state)
{
    struct certificate_subject subject;
    X509 *x509 = certificate_x509(ca);
    assert_false(certificate_subject(ca, &subject));
    assert_int_equal(X509_check_ca(x509), 1);
    assert_int_equal(X509_get_pathlen(x509), 0);
    assert_int_equal(X509_get_key_usage(x509), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
}

static void a_leaf_or_a_foreign_key_cannot_issue(void **state)
{
    const char *fault = NULL;
    struct certificate *leaf = issue("anna", DAY_S);
    char *csr = csr_create(device_key, &fault);
    assert_null(ca_issue_device(leaf, device_key, csr, strlen(csr), "anna", DAY_S, &fault));
    assert_non_null(fault);
    fault = NULL;
    assert_null(ca_issue_device(ca, other_ca_key, csr, strlen(csr), "anna", DAY_S, &fault));
    assert_non_null(fault);
    fault = NULL;
    assert_null(ca_issue_tracker(ca, other_ca_key, tracker_key, DAY_S, &fault));
    assert_non_null(fault);
    free(csr);
    certificate_free(leaf);
}

static void bad_accounts_and_lifetimes_get_no_certificate(void **state)
{
    assert_null(issue("", DAY_S));
    assert_null(issue("Anna", DAY_S));
    assert_null(issue("a/b", DAY_S));
    assert_null(issue("a,URI:p2p://tracker", DAY_S));
    assert_null(issue("anna", 0));
    assert_null(issue("anna", -1));
    assert_null(issue("anna", INT64_MAX));
}

static void no_certificate_outlives_its_ca(void **state)
{
    struct certificate_subject subject;
    const char *fault = NULL;
    struct tm tm;
    struct certificate *made = ca_issue_tracker(ca, ca_key, tracker_key, 20 * 365 * DAY_S, &fault);
    assert_non_null(made);
    assert_true(certificate_subject(made, &subject));
    assert_int_equal(ASN1_TIME_to_tm(X509_get0_notAfter(certificate_x509(ca)), &tm), 1);
    assert_true(subject.not_after <= (int64_t)timegm(&tm));
    certificate_free(made);
}

/* A certificate by the CA with this alternative name (X509V3 syntax, "" for none), twice if so
 * asked. */
static struct certificate *with_alternative_name(const char *san, bool twice)
{
    const char *fault = NULL;
    X509 *x509 = X509_new();
    assert_int_equal(X509_set_version(x509, X509_VERSION_3), 1);
    assert_int_equal(ASN1_INTEGER_set(X509_get_serialNumber(x509), 7), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509), 0);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_issuer_name(x509, X509_get_subject_name(certificate_x509(ca)));
    assert_int_equal(X509_set_pubkey(x509, key_pkey(device_key)), 1);
    for (int i = 0; i < (san[0] == '\0' ? 0 : twice ? 2 : 1); i++) {
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, san);
        assert_non_null(extension);
        assert_int_equal(X509_add_ext(x509, extension, -1), 1);
        X509_EXTENSION_free(extension);
    }
    assert_true(X509_sign(x509, key_pkey(ca_key), EVP_sha256()) > 0);
    struct certificate *made = certificate_wrap(x509, &fault);
    assert_non_null(made);
    return made;
}

static bool names_somebody(const char *san, bool twice)
{
    struct certificate_subject subject;
    struct certificate *made = with_alternative_name(san, twice);
    bool ours = certificate_subject(made, &subject);
    certificate_free(made);
    return ours;
}

static void only_one_exact_alternative_name_is_believed(void **state)
{
    uint8_t id[DEVICE_ID_SIZE];
    char hex[2 * DEVICE_ID_SIZE + 1], upper[sizeof hex], san[256];
    static const char *const bad[] = {
        "",
        "URI:p2p://tracker/",
        "URI:p2p://TRACKER",
        "URI:http://tracker",
        "URI:p2p://device/",
        "URI:p2p://device/anna",
        "URI:p2p://device/anna/",
        "URI:p2p://device/anna/00000000000000000000000000000000", /* not this key's */
        "DNS:tracker",
        "email:p2p@tracker.test",
        "URI:p2p://tracker,URI:p2p://tracker",
        "URI:p2p://tracker,DNS:a.test",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(names_somebody(bad[i], false));

    key_device_id(device_key, id);
    hex_encode(hex, id, sizeof id);
    for (size_t i = 0; i < sizeof hex; i++)
        upper[i] = (char)(hex[i] >= 'a' && hex[i] <= 'f' ? hex[i] - 32 : hex[i]);
    snprintf(san, sizeof san, "URI:p2p://device/anna/%s", hex);
    assert_true(names_somebody(san, false));
    assert_false(names_somebody(san, true)); /* the extension twice */
    snprintf(san, sizeof san, "URI:p2p://device/Anna/%s", hex);
    assert_false(names_somebody(san, false));
    snprintf(san, sizeof san, "URI:p2p://device/anna/%s", upper);
    assert_int_equal(names_somebody(san, false), strcmp(upper, hex) == 0);
    snprintf(san, sizeof san, "URI:p2p://device/anna/%s0", hex);
    assert_false(names_somebody(san, false));
    snprintf(san, sizeof san, "URI:p2p://device/a/b/%s", hex);
    assert_false(names_somebody(san, false));
    snprintf(san, sizeof san, "URI:p2p://device//%s", hex);
    assert_false(names_somebody(san, false));
    snprintf(san, sizeof san, "URI:p2p://device/%065d/%s", 1, hex);
    assert_false(names_somebody(san, false));
    assert_true(names_somebody("URI:p2p://tracker", false));
}

static void certificates_survive_pem_and_files(void **state)
{
    const char *fault = NULL;
    uint8_t before[FINGERPRINT_SIZE], after[FINGERPRINT_SIZE];
    struct certificate_subject subject;
    char *path = path_of("device.crt");
    struct certificate *made = issue("anna", DAY_S);
    char *pem = certificate_to_pem(made);

    certificate_fingerprint(made, before);
    struct certificate *parsed = certificate_from_pem(pem, strlen(pem), &fault);
    assert_non_null(parsed);
    certificate_fingerprint(parsed, after);
    assert_memory_equal(before, after, FINGERPRINT_SIZE);
    assert_true(certificate_save(parsed, path, &fault));
    struct certificate *loaded = certificate_load(path, &fault);
    assert_non_null(loaded);
    assert_true(certificate_subject(loaded, &subject));
    assert_string_equal(subject.account, "anna");
    struct certificate *shared = certificate_share(loaded);
    certificate_free(loaded);
    certificate_free(shared);

    char *two = xasprintf("%s%s", pem, pem);
    assert_null(certificate_from_pem(two, strlen(two), &fault));
    assert_null(certificate_from_pem(pem, strlen(pem) / 2, &fault));
    assert_null(certificate_from_pem("", 0, &fault));
    assert_null(certificate_from_pem("nothing", 7, &fault));
    free(two);
    free(pem);
    certificate_free(parsed);
    certificate_free(made);
    unlink(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_survives_saving_and_loading_with_its_device_id),
        cmocka_unit_test(the_device_id_begins_the_sha256_of_the_public_key_info),
        cmocka_unit_test(a_key_file_that_others_can_read_is_refused),
        cmocka_unit_test(a_key_file_with_a_passphrase_opens_with_it_only),
        cmocka_unit_test(a_key_file_behind_a_symbolic_link_is_refused),
        cmocka_unit_test(short_and_foreign_keys_are_refused),
        cmocka_unit_test(what_is_no_key_or_an_encrypted_one_is_refused_without_asking),
        cmocka_unit_test(a_request_tells_the_device_of_its_own_key),
        cmocka_unit_test(a_request_that_was_tampered_with_is_refused),
        cmocka_unit_test(a_request_signed_with_sha1_is_refused),
        cmocka_unit_test(names_that_a_request_claims_are_ignored),
        cmocka_unit_test(a_device_certificate_says_who_and_how_long),
        cmocka_unit_test(the_tracker_certificate_names_the_tracker),
        cmocka_unit_test(a_ca_names_nobody_and_signs_leaves_only),
        cmocka_unit_test(a_leaf_or_a_foreign_key_cannot_issue),
        cmocka_unit_test(bad_accounts_and_lifetimes_get_no_certificate),
        cmocka_unit_test(no_certificate_outlives_its_ca),
        cmocka_unit_test(only_one_exact_alternative_name_is_believed),
        cmocka_unit_test(certificates_survive_pem_and_files),
    };
    return cmocka_run_group_tests_name("identity", tests, set_up, tear_down);
}
