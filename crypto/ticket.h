/* Tickets: a member's right to fetch one content from one server, for some minutes, as the tracker gives it.
 *
 * A ticket is 32 bytes: epoch (8 bytes, big endian), end (8 bytes, big endian, seconds since 1970 on the tracker's
 * clock), and the first 16 bytes of HMAC-SHA-256 under the server's ticket key over "p2p ticket 1", a zero byte, the
 * fetching device's id (16), the root (32), epoch and end as they stand in the ticket. A server's ticket key is
 * HMAC-SHA-256 under the tracker's own key over "p2p ticket key 1", a zero byte and the server's device id; it is
 * told only to that server. A root of zeroes stands for every content. So a server can hold a ticket against its key without asking anybody, for a microsecond,
 * and a server that gives its key away harms only itself. The epoch tells before which change of rights a ticket was
 * made. Any thread. */
#ifndef CRYPTO_TICKET_H
#define CRYPTO_TICKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/identity.h"
#include "crypto/merkle.h"

#define TICKET_SIZE     32
#define TICKET_KEY_SIZE 32

struct ticket {
    uint64_t epoch;
    int64_t end; /* seconds since 1970, the tracker's clock */
};

/* The key of the server `device`, out of the tracker's own. */
void ticket_key(const uint8_t tracker_key[TICKET_KEY_SIZE], const uint8_t device[DEVICE_ID_SIZE],
                uint8_t out[TICKET_KEY_SIZE]);
void ticket_make(const uint8_t server_key[TICKET_KEY_SIZE], const uint8_t fetcher[DEVICE_ID_SIZE],
                 const uint8_t root[HASH_SIZE], const struct ticket *, uint8_t out[TICKET_SIZE]);
/* What a ticket of TICKET_SIZE bytes says of itself. */
void ticket_read(const uint8_t bytes[TICKET_SIZE], struct ticket *out);
/* True if it was made with that key for that device and root; then *out says the rest, which the caller judges. */
bool ticket_open(const uint8_t server_key[TICKET_KEY_SIZE], const uint8_t fetcher[DEVICE_ID_SIZE],
                 const uint8_t root[HASH_SIZE], const void *bytes, size_t size, struct ticket *out);

#endif
