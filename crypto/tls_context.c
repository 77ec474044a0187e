/* Owns the settings of TLS connections and the decision which certificate is believed.
 *
 * A peer's chain is verified against one CA only, at the time of the handshake, and then the
 * certificate's subject must have the role that the policy asks for:
 *
 *   TLS_PEER            a device, on both ends
 *   TLS_TRACKER         nothing, or a device
 *   TLS_TRACKER_CLIENT  the tracker: a member's certificate cannot stand in for it
 *
 * On first contact the CA is taken from the chain that the server shows, if its SHA-256 is the
 * expected one; therefore a TLS_TRACKER shows [certificate, CA] where the others show their
 * certificate only.
 *
 * Thread: any; a context never changes once it is in use and counts its references. The
 * verification runs on the worker that runs the handshake's step. */
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "crypto/internal.h"
#include "crypto/tls_internal.h"

static const char ciphers[] = "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
static char groups[] = "X25519:P-256"; /* these two are not const for OpenSSL's macros */
static char signatures[] = "rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512";

#define SECURITY_LEVEL  3 /* 128 bits: RSA of 3072 bits and up */
#define CHAIN_DEPTH     1 /* the CA signs directly */
#define CHAIN_BYTES_MAX 16384
#define READ_BUFFER     65536 /* four records with one recv */
#define TIMEOUT_DEFAULT (10 * NS_PER_S)
#define OUTBOX_RECORDS  8
/* RFC 8446, 5.5 allows 2^24.5 full records; the peer's count is ours to leave room for. */
#define KEY_RECORDS ((UINT64_C(1) << 23) - 1024)

/* The CA with the expected fingerprint among the certificates shown; borrowed. */
static X509 *find_ca(const struct tls_context *context, STACK_OF(X509) * shown)
{
    uint8_t fingerprint[FINGERPRINT_SIZE];
    for (int i = 0; i < sk_X509_num(shown); i++) {
        X509 *x509 = sk_X509_value(shown, i);
        if (X509_digest(x509, EVP_sha256(), fingerprint, NULL) == 1 &&
            memcmp(fingerprint, context->ca_fingerprint, FINGERPRINT_SIZE) == 0)
            return x509;
    }
    return NULL;
}

/* NULL if the chain leads to the swarm's CA, else why not (the store's context then has an error
 * set). */
static const char *verify_chain(const struct tls_context *context, X509_STORE_CTX *store)
{
    STACK_OF(X509) *trusted = NULL;
    const char *fault = NULL;

    if (context->first_contact) {
        X509 *ca = find_ca(context, X509_STORE_CTX_get0_untrusted(store));
        if (ca == NULL) {
            X509_STORE_CTX_set_error(store, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
            return "the tracker's CA does not have the fingerprint in the swarm's address";
        }
        trusted = sk_X509_new_null();
        CHECK(trusted != NULL && sk_X509_push(trusted, ca) > 0);
        X509_STORE_CTX_set0_trusted_stack(store, trusted);
    }
    if (X509_verify_cert(store) != 1) {
        int error = X509_STORE_CTX_get_error(store);
        if (error == X509_V_OK) {
            error = X509_V_ERR_UNSPECIFIED;
            X509_STORE_CTX_set_error(store, error);
        }
        fault = tls_fault_of_verification(error);
    }
    if (trusted != NULL) {
        X509_STORE_CTX_set0_trusted_stack(store, NULL);
        sk_X509_free(trusted);
    }
    return fault;
}

/* Notes who the peer is; NULL, or why it is not who it should be. */
static const char *verify_role(struct tls *tls, X509 *x509)
{
    const char *fault;
    if (X509_up_ref(x509) != 1)
        return "the peer's certificate cannot be held";
    struct certificate *certificate = certificate_wrap(x509, &fault);
    bool known = certificate != NULL && certificate_subject(certificate, &tls->peer);
    certificate_free(certificate);
    if (!known)
        return "the peer's certificate names nobody of this swarm";
    if (tls->context->policy == TLS_TRACKER_CLIENT)
        return tls->peer.role == CERTIFICATE_TRACKER
                   ? NULL
                   : "the peer's certificate is not the tracker's";
    return tls->peer.role == CERTIFICATE_DEVICE ? NULL : "the peer's certificate is not a device's";
}

/* OpenSSL's, in place of its own verification. 1: believed. */
static int verify(X509_STORE_CTX *store, void *arg)
{
    const struct tls_context *context = arg;
    const SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *tls = SSL_get_app_data(ssl);

    CHECK_OBJECT(tls, TLS_MAGIC);
    tls->verify_fault = verify_chain(context, store);
    if (tls->verify_fault != NULL)
        return 0;
    tls->verify_fault = verify_role(tls, X509_STORE_CTX_get0_cert(store));
    if (tls->verify_fault != NULL) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
        return 0;
    }
    tls->has_peer = true;
    return 1;
}

static bool set_parameters(SSL_CTX *ssl, enum tls_policy policy)
{
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_security_level(ssl, SECURITY_LEVEL);
    SSL_CTX_set_max_cert_list(ssl, CHAIN_BYTES_MAX);
    SSL_CTX_set_verify_depth(ssl, CHAIN_DEPTH);
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_set_read_ahead(ssl, 1);
    if (policy == TLS_TRACKER)
        SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
    else
        SSL_CTX_set_default_read_buffer_len(ssl, READ_BUFFER);
    return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(ssl, ciphers) == 1 &&
           SSL_CTX_set1_groups_list(ssl, groups) == 1 &&
           SSL_CTX_set1_sigalgs_list(ssl, signatures) == 1 &&
           SSL_CTX_set1_client_sigalgs_list(ssl, signatures) == 1 &&
           SSL_CTX_set_num_tickets(ssl, 0) == 1 && SSL_CTX_set_max_early_data(ssl, 0) == 1 &&
           SSL_CTX_set_recv_max_early_data(ssl, 0) == 1;
}

static const char *set_identity(SSL_CTX *ssl, const struct tls_settings *s)
{
    struct certificate_subject subject;

    if (s->certificate == NULL && s->key == NULL && s->policy == TLS_TRACKER_CLIENT)
        return NULL;
    if (s->certificate == NULL || s->key == NULL)
        return "a certificate and its key are needed";
    if (!certificate_subject(s->certificate, &subject) ||
        (subject.role == CERTIFICATE_TRACKER) != (s->policy == TLS_TRACKER))
        return s->policy == TLS_TRACKER ? "our certificate is not the tracker's"
                                        : "our certificate is not a device's";
    if (SSL_CTX_use_certificate(ssl, certificate_x509(s->certificate)) != 1)
        return "our certificate is not accepted by OpenSSL";
    if (SSL_CTX_use_PrivateKey(ssl, key_pkey(s->key)) != 1 || SSL_CTX_check_private_key(ssl) != 1)
        return "our key does not belong to our certificate";
    return NULL;
}

static const char *set_trust(struct tls_context *context, const struct tls_settings *s)
{
    uint8_t fingerprint[FINGERPRINT_SIZE];
    int mode = SSL_VERIFY_PEER;

    if (s->ca_fingerprint != NULL)
        memcpy(context->ca_fingerprint, s->ca_fingerprint, FINGERPRINT_SIZE);
    if (s->ca == NULL) {
        if (s->policy != TLS_TRACKER_CLIENT || s->ca_fingerprint == NULL)
            return "a CA certificate is needed";
        context->first_contact = true;
    } else {
        X509 *x509 = certificate_x509(s->ca);
        certificate_fingerprint(s->ca, fingerprint);
        if (s->ca_fingerprint != NULL &&
            memcmp(fingerprint, s->ca_fingerprint, FINGERPRINT_SIZE) != 0)
            return "the CA's certificate does not have the expected fingerprint";
        if (X509_check_ca(x509) != 1)
            return "the CA's certificate is not a CA's";
        if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context->ssl), x509) != 1)
            return "the CA's certificate is not accepted by OpenSSL";
        if (s->policy == TLS_TRACKER && SSL_CTX_add1_chain_cert(context->ssl, x509) != 1)
            return "the CA's certificate cannot be shown";
    }
    if (s->policy == TLS_PEER)
        mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    SSL_CTX_set_verify(context->ssl, mode, NULL);
    SSL_CTX_set_cert_verify_callback(context->ssl, verify, context);
    return NULL;
}

struct tls_context *tls_context_new(const struct tls_settings *s, const char **fault)
{
    struct tls_context *context = xcalloc(1, sizeof *context);

    context->magic = TLS_CONTEXT_MAGIC;
    atomic_init(&context->references, 1);
    context->policy = s->policy;
    context->handshake_timeout_ns =
        s->handshake_timeout_ns > 0 ? s->handshake_timeout_ns : TIMEOUT_DEFAULT;
    context->notsent_lowat = s->notsent_lowat;
    context->outbox_max = OUTBOX_RECORDS * TLS_RECORD_MAX;
    context->key_records = KEY_RECORDS;
    context->ssl = SSL_CTX_new(TLS_method());
    if (context->ssl == NULL || !set_parameters(context->ssl, s->policy))
        *fault = "OpenSSL lacks what TLS 1.3 needs here";
    else if ((*fault = set_trust(context, s)) == NULL)
        *fault = set_identity(context->ssl, s);
    ERR_clear_error();
    if (*fault == NULL)
        return context;
    tls_context_free(context);
    return NULL;
}

struct tls_context *tls_context_share(struct tls_context *context)
{
    CHECK_OBJECT(context, TLS_CONTEXT_MAGIC);
    atomic_fetch_add(&context->references, 1);
    return context;
}

void tls_context_free(struct tls_context *context)
{
    if (context == NULL)
        return;
    CHECK_OBJECT(context, TLS_CONTEXT_MAGIC);
    if (atomic_fetch_sub(&context->references, 1) != 1)
        return;
    SSL_CTX_free(context->ssl);
    context->magic = 0;
    free(context);
}

void tls_context_set_key_records(struct tls_context *context, uint64_t records)
{
    CHECK_OBJECT(context, TLS_CONTEXT_MAGIC);
    context->key_records = records;
}
