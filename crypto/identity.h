/* Keys and certificates: the tracker's certificate authority, its server certificate, a device's key,
 * certificate requests, device certificates.
 *
 * Keys are RSA-3072. A device's id is the first 16 bytes of SHA-256 over its public key's
 * SubjectPublicKeyInfo (DER): nobody can claim an id without its key. Who a certificate speaks for stands
 * in its one URI subject alternative name, and nowhere else:
 *     p2p://tracker                        the server certificate of the swarm's tracker
 *     p2p://device/ACCOUNT/DEVICEIDHEX     a member's device
 * notBefore is an hour back, so that clocks may differ; the tracker's answer names the device id that it
 * computed from the request's own key, never one that was claimed.
 *
 * No OpenSSL type appears in a header that others include. Functions return NULL or false on failure and
 * then set *fault to a half sentence (static storage, never freed). Any thread; objects are immutable
 * once made and may be shared between threads (reference counted). */
#ifndef CRYPTO_IDENTITY_H
#define CRYPTO_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DEVICE_ID_SIZE      16
#define FINGERPRINT_SIZE    32
#define CERTIFICATE_PEM_MAX 16384 /* a chain in PEM, more than that is refused */
#define CSR_PEM_MAX         8192

struct key;         /* a private key */
struct certificate; /* one certificate */

enum certificate_role { CERTIFICATE_TRACKER = 1, CERTIFICATE_DEVICE = 2 };
struct certificate_subject {
    enum certificate_role role;
    char account[65];               /* "" for the tracker */
    uint8_t device[DEVICE_ID_SIZE]; /* zero for the tracker */
    int64_t not_before, not_after;  /* seconds since 1970 */
    char serial[41];                /* hexadecimal */
};

/* --- keys ---- */
struct key *key_generate(const char **fault); /* RSA-3072; 0.2 to 2 s of CPU: use a worker */
struct key *key_load(const char *path,
                     const char **fault); /* refuses wide modes, < 3072 bits, non-RSA */
bool key_save(const struct key *, const char *path, const char **fault); /* 0600, atomically */

/* --- key files with a passphrase ---- */
#define PASSPHRASE_MAX 1024 /* bytes */
/* PKCS #8 encrypted with AES-256 and scrypt (N 2^14, r 8, p 5: 16 MiB, a quarter of a second a try). */
bool key_save_protected(const struct key *, const char *path, const void *passphrase, size_t size,
                        const char **fault);
/* What key_load tries on files that need one, from now on (NULL: nothing). Kept in memory that goes into no core file and
 * no swap, until the end of the process. Not while other threads load keys. */
void key_set_passphrase(const void *passphrase, size_t size);
void key_device_id(const struct key *, uint8_t id[DEVICE_ID_SIZE]);
struct key *key_share(struct key *);
void key_free(struct key *); /* last reference wipes; NULL is fine */

/* --- certificates ---- */
struct certificate *certificate_from_pem(const char *pem, size_t size, const char **fault);
struct certificate *certificate_load(const char *path, const char **fault);
char *certificate_to_pem(const struct certificate *); /* malloc'ed */
bool certificate_save(const struct certificate *, const char *path, const char **fault);
void certificate_fingerprint(const struct certificate *, uint8_t sha256[FINGERPRINT_SIZE]);
/* False if the certificate names nobody of ours (a CA certificate, a stranger's). */
bool certificate_subject(const struct certificate *, struct certificate_subject *out);
struct certificate *certificate_share(struct certificate *);
void certificate_free(struct certificate *);

/* --- the tracker's side ---- */
struct certificate *ca_create(struct key *ca_key, const char *swarm_name,
                              const char **fault); /* 20 years */
/* The tracker's own server certificate. */
struct certificate *ca_issue_tracker(const struct certificate *ca, const struct key *ca_key,
                                     const struct key *subject_key, int64_t lifetime_s,
                                     const char **fault);
/* Checks a certificate request (self-signature, RSA >= 3072 and <= 8192, size) and tells its device id. */
bool csr_inspect(const char *pem, size_t size, uint8_t device[DEVICE_ID_SIZE], const char **fault);
/* A device certificate for the key in the request; everything else in the request is ignored. */
struct certificate *ca_issue_device(const struct certificate *ca, const struct key *ca_key,
                                    const char *csr_pem, size_t csr_size, const char *account,
                                    int64_t lifetime_s, const char **fault);

/* --- the device's side ---- */
char *csr_create(const struct key *, const char **fault); /* PEM, malloc'ed */

#endif
