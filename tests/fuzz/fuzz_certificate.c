/* What strangers send as certificates and as requests for them: the first byte chooses, the rest is DER (or, with the high bit,
 * PEM as it stands). A request that is granted must give a certificate that names the account it was granted for. */
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "crypto/identity.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct key *key;
static struct certificate *ca;

static void set_up(void)
{
    const char *fault = NULL;

    key = key_generate(&fault);
    CHECK(key != NULL);
    ca = ca_create(key, "fuzz", &fault);
    CHECK(ca != NULL);
}

static void judge_certificate(const char *pem, size_t size)
{
    struct certificate_subject subject;
    uint8_t fingerprint[FINGERPRINT_SIZE];
    const char *fault = NULL;
    struct certificate *certificate = certificate_from_pem(pem, size, &fault);

    CHECK((certificate == NULL) == (fault != NULL));
    if (certificate == NULL)
        return;
    certificate_fingerprint(certificate, fingerprint);
    if (certificate_subject(certificate, &subject))
        CHECK(strlen(subject.account) < sizeof subject.account);
    char *again = certificate_to_pem(certificate);
    CHECK(again != NULL);
    free(again);
    certificate_free(certificate);
}

static void judge_request(const char *pem, size_t size)
{
    struct certificate_subject subject;
    const char *fault = NULL;

    if (size > CSR_PEM_MAX)
        return; /* the tracker's own check */
    struct certificate *certificate = ca_issue_device(ca, key, pem, size, "ann", 3600, &fault);
    CHECK((certificate == NULL) == (fault != NULL));
    if (certificate == NULL)
        return;
    CHECK(certificate_subject(certificate, &subject));
    CHECK(subject.role == CERTIFICATE_DEVICE && strcmp(subject.account, "ann") == 0);
    certificate_free(certificate);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text;
    long length;

    if (key == NULL)
        set_up();
    if (size < 2)
        return 0;
    bool request = (data[0] & 1) != 0;
    BIO *bio = BIO_new(BIO_s_mem());
    CHECK(bio != NULL);
    if (data[0] & 0x80)
        CHECK(BIO_write(bio, data + 1, (int)size - 1) == (int)size - 1);
    else
        CHECK(PEM_write_bio(bio, request ? "CERTIFICATE REQUEST" : "CERTIFICATE", "", data + 1,
                            (long)size - 1) > 0);
    length = BIO_get_mem_data(bio, &text);
    /* The functions promise nothing of a NUL behind. */
    char *exact = xmemdup(text, (size_t)length);
    if (request)
        judge_request(exact, (size_t)length);
    else
        judge_certificate(exact, (size_t)length);
    free(exact);
    BIO_free(bio);
    return 0;
}
