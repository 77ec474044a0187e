/* The certificate authority's files: made at the first start, read ever after.
 *
 * The CA's key is written before its certificate: a certificate on disk always has its key, and a
 * key alone is one that never certified anything, so it may be used for a new certificate. The
 * server's pair can be made again at any time. Set-up and the main thread only. */
#include "tracker/authority.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

static struct key *key_at(const char *dir, const char *name, bool may_make, char **fault)
{
    const char *why = NULL;
    char *path = xasprintf("%s/%s", dir, name);
    struct key *key = NULL;
    if (access(path, F_OK) == 0) {
        key = key_load(path, &why);
    } else if (!may_make) {
        why = "is missing; put it back from a backup";
    } else {
        key = key_generate(&why);
        if (key != NULL && !key_save(key, path, &why)) {
            key_free(key);
            key = NULL;
        }
    }
    if (key == NULL)
        *fault = xasprintf("%s: %s", path, why);
    free(path);
    return key;
}

static bool ca_open(struct authority *a, const char *dir, const char *swarm_name, char **fault)
{
    const char *why = NULL;
    char *path = xasprintf("%s/ca.crt", dir);
    bool known = access(path, F_OK) == 0;
    if (!known)
        log_info("making the keys of a new swarm, which takes a moment");
    a->ca_key = key_at(dir, "ca.key", !known, fault);
    if (a->ca_key == NULL)
        goto end;
    if (known) {
        a->ca = certificate_load(path, &why);
    } else {
        a->ca = ca_create(a->ca_key, swarm_name, &why);
        if (a->ca != NULL && !certificate_save(a->ca, path, &why)) {
            certificate_free(a->ca);
            a->ca = NULL;
        }
    }
    if (a->ca == NULL)
        *fault = xasprintf("%s: %s", path, why);
    else
        certificate_fingerprint(a->ca, a->fingerprint);
end:
    free(path);
    return a->ca != NULL;
}

static bool ends_soon(const struct certificate *certificate)
{
    struct certificate_subject subject;
    if (!certificate_subject(certificate, &subject) || subject.role != CERTIFICATE_TRACKER)
        return true;
    return subject.not_after - clock_wall() / NS_PER_S < AUTHORITY_SERVER_RENEW;
}

bool authority_renew(struct authority *a, const char *dir, bool *renewed, char **fault)
{
    const char *why = NULL;
    *renewed = false;
    if (a->server != NULL && !ends_soon(a->server))
        return true;
    struct certificate *fresh =
        ca_issue_tracker(a->ca, a->ca_key, a->server_key, AUTHORITY_SERVER_LIFETIME, &why);
    char *path = xasprintf("%s/server.crt", dir);
    if (fresh == NULL || !certificate_save(fresh, path, &why)) {
        *fault = xasprintf("%s: %s", path, why);
        free(path);
        certificate_free(fresh);
        return false;
    }
    free(path);
    certificate_free(a->server);
    a->server = fresh;
    *renewed = true;
    return true;
}

bool authority_open(struct authority *a, const char *dir, const char *swarm_name, char **fault)
{
    *a = (struct authority){0};
    bool renewed;
    if (!ca_open(a, dir, swarm_name, fault))
        goto fail;
    a->server_key = key_at(dir, "server.key", true, fault);
    if (a->server_key == NULL)
        goto fail;
    const char *why;
    char *path = xasprintf("%s/server.crt", dir);
    if (access(path, F_OK) == 0) {
        a->server = certificate_load(path, &why);
        if (a->server == NULL)
            log_warning("%s: %s; it is issued anew", path, why);
    }
    free(path);
    if (authority_renew(a, dir, &renewed, fault))
        return true;
fail:
    authority_close(a);
    return false;
}

void authority_close(struct authority *a)
{
    key_free(a->ca_key);
    key_free(a->server_key);
    certificate_free(a->ca);
    certificate_free(a->server);
    *a = (struct authority){0};
}

bool authority_fingerprint(const char *dir, uint8_t fingerprint[FINGERPRINT_SIZE], char **fault)
{
    const char *why = NULL;
    char *path = xasprintf("%s/ca.crt", dir);
    if (access(path, F_OK) != 0) {
        *fault = xasprintf("%s holds no tracker yet; start `p2ptracker serve --data %s` first", dir,
                           dir);
        free(path);
        return false;
    }
    struct certificate *ca = certificate_load(path, &why);
    if (ca == NULL)
        *fault = xasprintf("%s: %s", path, why);
    else
        certificate_fingerprint(ca, fingerprint);
    free(path);
    certificate_free(ca);
    return ca != NULL;
}
