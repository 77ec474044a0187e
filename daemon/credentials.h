/* Who this member is: device key, certificate, the tracker's CA, and the TLS contexts made of them.
 *
 * Immutable and reference counted: whoever gets a new certificate makes a new object and posts it
 * to those who open links. Any thread. Files: base/home.h. */
#ifndef DAEMON_CREDENTIALS_H
#define DAEMON_CREDENTIALS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/swarm_url.h"
#include "crypto/identity.h"
#include "crypto/tls.h"

struct credentials {
    struct swarm_url url;
    char account[65];
    uint8_t device[DEVICE_ID_SIZE];
    int64_t valid_until; /* seconds since 1970 */
    struct key *key;
    struct certificate *certificate;
    struct certificate *ca;
    struct tls_context *peer_context;    /* TLS_PEER */
    struct tls_context *tracker_context; /* TLS_TRACKER_CLIENT, with our certificate */
    /* private */
    int references;
};

/* Reads them from HOME. NULL with *fault NULL: nobody is logged in; with *fault set: they are there
 * but bad. */
struct credentials *credentials_load(const char *home, const char **fault);
/* Makes them from parts (references are taken) and writes them to HOME if `home` is not NULL. */
struct credentials *credentials_new(const char *home, const struct swarm_url *, struct key *,
                                    struct certificate *, struct certificate *ca,
                                    const char **fault);
/* Logging out: removes account, certificate and CA from HOME; the device's key stays. */
void credentials_forget(const char *home);
struct credentials *credentials_share(struct credentials *);
void credentials_release(struct credentials *); /* NULL is fine */

#endif
