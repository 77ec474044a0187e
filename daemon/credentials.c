/* Credentials: loaded from HOME, made after a log in, forgotten after a log out.
 *
 * Owns the files device.crt, ca.crt and account; device.key is made by whoever first needs it
 * (session_account.c) and is only read here. `account` holds the swarm's address in its first line;
 * the account's name stands in the certificate, which is what counts. The objects are immutable
 * after credentials_new, so they need no lock but the reference count. */
#include "daemon/credentials.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/home.h"
#include "base/mem.h"
#include "proto/limits.h"

/* Bulk that waits in the kernel delays a reader's block behind it; measured: 196 ms without, 13 ms
 * with this. */
#define PEER_NOTSENT_LOWAT (16u << 10)

static bool make_contexts(struct credentials *c, const char **fault)
{
    struct tls_settings settings = {
        .policy = TLS_PEER,
        .ca = c->ca,
        .certificate = c->certificate,
        .key = c->key,
        .handshake_timeout_ns = LIMIT_HANDSHAKE_NS,
        .notsent_lowat = PEER_NOTSENT_LOWAT,
    };
    c->peer_context = tls_context_new(&settings, fault);
    if (c->peer_context == NULL)
        return false;
    settings.policy = TLS_TRACKER_CLIENT;
    settings.ca_fingerprint = c->url.ca;
    settings.notsent_lowat = 0;
    c->tracker_context = tls_context_new(&settings, fault);
    return c->tracker_context != NULL;
}

static struct credentials *assemble(const struct swarm_url *url, struct key *key,
                                    struct certificate *certificate, struct certificate *ca,
                                    const char **fault)
{
    struct credentials *c = xcalloc(1, sizeof *c);
    struct certificate_subject subject;

    c->references = 1;
    c->url = *url;
    c->url.invite[0] = '\0';
    c->key = key_share(key);
    c->certificate = certificate_share(certificate);
    c->ca = certificate_share(ca);
    uint8_t device[DEVICE_ID_SIZE], fingerprint[FINGERPRINT_SIZE];
    key_device_id(key, device);
    certificate_fingerprint(ca, fingerprint);
    if (!certificate_subject(certificate, &subject) || subject.role != CERTIFICATE_DEVICE) {
        *fault = "the certificate does not name a device";
    } else if (memcmp(subject.device, device, sizeof device) != 0) {
        *fault = "the certificate belongs to another key";
    } else if (memcmp(fingerprint, url->ca, sizeof fingerprint) != 0) {
        *fault = "the tracker's CA is not the one in the swarm's address";
    } else {
        memcpy(c->device, device, sizeof device);
        memcpy(c->account, subject.account, sizeof c->account);
        c->valid_until = subject.not_after;
        if (make_contexts(c, fault))
            return c;
    }
    credentials_release(c);
    return NULL;
}

static bool write_files(const char *home, const struct credentials *c, const char **fault)
{
    char text[SWARM_URL_MAX + 1];
    char *certificate = home_path(home, "device.crt");
    char *ca = home_path(home, "ca.crt");
    char *account = home_path(home, "account");
    bool good = false;

    swarm_url_format(text, &c->url, false);
    size_t length = strlen(text);
    text[length++] = '\n';
    /* The account file comes last: without it nobody is logged in. */
    if (certificate_save(c->ca, ca, fault) &&
        certificate_save(c->certificate, certificate, fault)) {
        good = file_replace(account, text, length, 0600) == 0;
        if (!good)
            *fault = "the account could not be written to P2P_HOME";
    }
    free(certificate);
    free(ca);
    free(account);
    return good;
}

struct credentials *credentials_new(const char *home, const struct swarm_url *url, struct key *key,
                                    struct certificate *certificate, struct certificate *ca,
                                    const char **fault)
{
    struct credentials *c = assemble(url, key, certificate, ca, fault);

    if (c != NULL && home != NULL && !write_files(home, c, fault)) {
        credentials_release(c);
        return NULL;
    }
    return c;
}

/* What is wrong with the key is said with its name. */
static struct key *load_key(const char *path, const char **fault)
{
    static char text[160];
    const char *why = NULL;
    struct key *key = key_load(path, &why);

    if (key == NULL) {
        snprintf(text, sizeof text, "device.key %s", why);
        *fault = text;
    }
    return key;
}

struct credentials *credentials_load(const char *home, const char **fault)
{
    char *account_path = home_path(home, "account");
    char *key_path = home_path(home, "device.key");
    char *certificate_path = home_path(home, "device.crt");
    char *ca_path = home_path(home, "ca.crt");
    struct credentials *c = NULL;
    struct key *key = NULL;
    struct certificate *certificate = NULL, *ca = NULL;
    struct swarm_url url;
    char *text = NULL;
    size_t size;

    *fault = NULL;
    int error = file_read(account_path, SWARM_URL_MAX, false, &text, &size);
    if (error == -ENOENT)
        goto out;
    if (error != 0) {
        *fault = "the account file can't be read";
        goto out;
    }
    text[strcspn(text, "\r\n")] = '\0';
    if (!swarm_url_parse(&url, text, fault))
        goto out;
    if ((key = load_key(key_path, fault)) == NULL ||
        (ca = certificate_load(ca_path, fault)) == NULL ||
        (certificate = certificate_load(certificate_path, fault)) == NULL)
        goto out;
    c = assemble(&url, key, certificate, ca, fault);
out:
    free(text);
    key_free(key);
    certificate_free(certificate);
    certificate_free(ca);
    free(account_path);
    free(key_path);
    free(certificate_path);
    free(ca_path);
    return c;
}

void credentials_forget(const char *home)
{
    static const char *const names[] = {"account", "device.crt", "ca.crt"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = home_path(home, names[i]);
        (void)unlink(path);
        free(path);
    }
}

struct credentials *credentials_share(struct credentials *c)
{
    int before = __atomic_fetch_add(&c->references, 1, __ATOMIC_RELAXED);
    CHECK(before > 0);
    return c;
}

void credentials_release(struct credentials *c)
{
    if (c == NULL || __atomic_sub_fetch(&c->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    tls_context_free(c->peer_context);
    tls_context_free(c->tracker_context);
    certificate_free(c->certificate);
    certificate_free(c->ca);
    key_free(c->key);
    free(c);
}
