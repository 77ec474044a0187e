/* The tracker's keys and certificates on disk: DIR/ca.key, ca.crt, server.key, server.crt. */
#ifndef TRACKER_AUTHORITY_H
#define TRACKER_AUTHORITY_H

#include "crypto/identity.h"

#define AUTHORITY_SERVER_LIFETIME (90 * 86400)
#define AUTHORITY_SERVER_RENEW    (30 * 86400) /* left when a new server certificate is issued */

struct authority {
    struct key *ca_key;
    struct certificate *ca;
    uint8_t fingerprint[FINGERPRINT_SIZE]; /* of the CA */
    struct key *server_key;
    struct certificate *server;
};

/* Loads all four; what is missing is made, in an order in which a crash leaves nothing half. A CA
 * certificate without its key (or the other way round) is refused, never replaced. False: *fault is
 * a malloc'ed sentence. */
bool authority_open(struct authority *, const char *dir, const char *swarm_name, char **fault);
/* Re-issues the server certificate if it ends soon; *renewed tells. False: *fault as above, the old
 * one is kept. */
bool authority_renew(struct authority *, const char *dir, bool *renewed, char **fault);
void authority_close(struct authority *);
/* The fingerprint alone, for commands beside a running server. */
bool authority_fingerprint(const char *dir, uint8_t fingerprint[FINGERPRINT_SIZE], char **fault);

#endif
