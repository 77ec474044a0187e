/* Tickets: HMAC-SHA-256 by OpenSSL. Format: ticket.h. Owns nothing; any thread. */
#include "crypto/ticket.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "base/check.h"

#define MAC_AT   16
#define MAC_SIZE (TICKET_SIZE - MAC_AT)

static const char ticket_label[] = "p2p ticket 1";  /* with its zero byte */
static const char key_label[] = "p2p ticket key 1"; /* likewise */

static void hmac(const uint8_t *key, const uint8_t *bytes, size_t size, uint8_t out[32])
{
    unsigned length = 0;
    CHECK(HMAC(EVP_sha256(), key, TICKET_KEY_SIZE, bytes, size, out, &length) != NULL &&
          length == 32);
}

void ticket_key(const uint8_t tracker_key[TICKET_KEY_SIZE], const uint8_t device[DEVICE_ID_SIZE],
                uint8_t out[TICKET_KEY_SIZE])
{
    uint8_t text[sizeof key_label + DEVICE_ID_SIZE];
    memcpy(text, key_label, sizeof key_label);
    memcpy(text + sizeof key_label, device, DEVICE_ID_SIZE);
    hmac(tracker_key, text, sizeof text, out);
}

static void put_number(uint8_t *to, uint64_t value)
{
    for (int i = 7; i >= 0; i--, value >>= 8)
        to[i] = (uint8_t)value;
}

static uint64_t get_number(const uint8_t *from)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | from[i];
    return value;
}

/* `head`: epoch and end as they stand in the ticket. */
static void mac(const uint8_t *key, const uint8_t *fetcher, const uint8_t *root,
                const uint8_t head[MAC_AT], uint8_t out[32])
{
    uint8_t text[sizeof ticket_label + DEVICE_ID_SIZE + HASH_SIZE + MAC_AT], *at = text;
    memcpy(at, ticket_label, sizeof ticket_label);
    at += sizeof ticket_label;
    memcpy(at, fetcher, DEVICE_ID_SIZE);
    at += DEVICE_ID_SIZE;
    memcpy(at, root, HASH_SIZE);
    at += HASH_SIZE;
    memcpy(at, head, MAC_AT);
    hmac(key, text, sizeof text, out);
}

void ticket_make(const uint8_t server_key[TICKET_KEY_SIZE], const uint8_t fetcher[DEVICE_ID_SIZE],
                 const uint8_t root[HASH_SIZE], const struct ticket *ticket,
                 uint8_t out[TICKET_SIZE])
{
    uint8_t whole[32];
    put_number(out, ticket->epoch);
    put_number(out + 8, (uint64_t)ticket->end);
    mac(server_key, fetcher, root, out, whole);
    memcpy(out + MAC_AT, whole, MAC_SIZE);
}

void ticket_read(const uint8_t bytes[TICKET_SIZE], struct ticket *out)
{
    out->epoch = get_number(bytes);
    out->end = (int64_t)get_number(bytes + 8);
}

bool ticket_open(const uint8_t server_key[TICKET_KEY_SIZE], const uint8_t fetcher[DEVICE_ID_SIZE],
                 const uint8_t root[HASH_SIZE], const void *bytes, size_t size, struct ticket *out)
{
    const uint8_t *ticket = bytes;
    uint8_t whole[32];
    if (size != TICKET_SIZE)
        return false;
    mac(server_key, fetcher, root, ticket, whole);
    if (CRYPTO_memcmp(whole, ticket + MAC_AT, MAC_SIZE) != 0)
        return false;
    ticket_read(ticket, out);
    return true;
}
