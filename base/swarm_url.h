/* The address of a swarm: p2p://HOST:PORT/?ca=SHA256HEX[&invite=CODE]
 *
 * `ca` is the SHA-256 of the DER form of the tracker's CA certificate, so a member never trusts a
 * stranger's tracker. HOST is a name, an IPv4 address, or an IPv6 address in brackets. */
#ifndef BASE_SWARM_URL_H
#define BASE_SWARM_URL_H

#include <stdbool.h>
#include <stdint.h>

#define SWARM_URL_MAX    512
#define SWARM_HOST_MAX   253
#define SWARM_INVITE_MAX 64
#define SWARM_PORT       7700

struct swarm_url {
    char host[SWARM_HOST_MAX + 1]; /* without brackets */
    uint16_t port;
    uint8_t ca[32];
    char invite[SWARM_INVITE_MAX + 1]; /* "" if there is none; A-Z a-z 0-9 - _ */
};

/* True and *out filled; or false, *out unspecified and *fault a half sentence that says why. */
bool swarm_url_parse(struct swarm_url *out, const char *text, const char **fault);

/* The canonical text, with the invite if `with_invite` and there is one; `out` has SWARM_URL_MAX bytes. */
void swarm_url_format(char *out, const struct swarm_url *url, bool with_invite);

/* Splits "HOST:PORT", "HOST", "[V6]:PORT", ":PORT" (host ""); false if malformed. */
bool host_port_parse(const char *text, uint16_t default_port, char host[SWARM_HOST_MAX + 1],
                     uint16_t *port);

#endif
