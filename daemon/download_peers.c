/* Devices: who is known to hold what, dialling them, and those that are banned.
 *
 * Owns devices and holdings; leaves the links to download_link.c and which files want them to download_file.c. Thread:
 * "download".
 *
 * A device has at most one link. It is dialled at its addresses in order, this machine's and the local network's first, a
 * new attempt starting when the one before has failed or has taken STAGGER; the first that shows the device's certificate wins
 * and the others are dropped. When none has been quick (or all have failed) the tracker is asked to have it dial us: a packet
 * filter that answers nothing costs a reader half a second, not the whole wait for a connection. The next round of attempts
 * waits: 1 s, doubled up to a minute, give or take a quarter; but only 1 s while a reader waits for what the device holds,
 * or if it has moved. */
#include "daemon/download_private.h"

#include <arpa/inet.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/swarm_url.h"
#include "crypto/random.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/session.h"
#include "daemon/store.h"
#include "proto/bans.h"
#include "proto/channel.h"

#define STAGGER     (250 * NS_PER_MS)
#define PATIENCE    8 /* times STAGGER, for a handshake with a device that is busy with others' */
#define RETRY_FIRST NS_PER_S
#define RETRY_MOST  (60 * NS_PER_S)

/* --- devices ------------------------------------------------------------------------------------------------------ */
struct device *device_of(struct download *download, const uint8_t id[DEVICE_ID_SIZE])
{
    struct device *device;

    HASH_FIND(hh, download->devices, id, DEVICE_ID_SIZE, device);
    return device;
}

static void stagger_due(void *arg);

struct device *device_get(struct download *download, const uint8_t id[DEVICE_ID_SIZE],
                          const char *account)
{
    struct device *device = device_of(download, id);

    if (device == NULL) {
        device = xcalloc(1, sizeof(*device));
        device->download = download;
        memcpy(device->id, id, DEVICE_ID_SIZE);
        LIST_INIT(&device->holdings);
        device->stagger = timer_new(download->loop, stagger_due, device);
        HASH_ADD(hh, download->devices, id, DEVICE_ID_SIZE, device);
    }
    snprintf(device->account, sizeof(device->account), "%s", account);
    return device;
}

static void device_free(struct device *device)
{
    struct holding *holding;

    while ((holding = LIST_FIRST(&device->holdings)) != NULL)
        holding_free(holding);
    HASH_DEL(device->download->devices, device);
    timer_free(device->stagger);
    free(device);
}

/* Nothing is known of it, nothing under way: forget it. Not from within the dialling itself. */
void device_review(struct device *device)
{
    if (device->link != NULL || device->dialling > 0 || !LIST_EMPTY(&device->holdings) ||
        device->banned_until > clock_now())
        return;
    device_free(device);
}

void devices_free(struct download *download)
{
    struct device *device, *next;

    HASH_ITER(hh, download->devices, device, next)
        device_free(device);
}

struct fetch *device_fetch(const struct device *device, const struct file *file)
{
    struct fetch *fetch;

    LIST_FOREACH(fetch, &file->fetches, of_file)
    {
        if (fetch->link->device == device)
            return fetch;
    }
    return NULL;
}

void device_ban(struct download *download, const uint8_t id[DEVICE_ID_SIZE], const char *why)
{
    struct device *device = device_of(download, id);
    char text[2 * DEVICE_ID_SIZE + 1];

    if (download->stopping)
        return;
    if (device == NULL)
        device = device_get(download, id, "unknown");
    if (device->banned_until > clock_now())
        return;
    device->banned_until = clock_now() + LIMIT_BAN_NS;
    snprintf(device->ban, sizeof(device->ban), "%s", why);
    bans_add(download->daemon->bans, id, device->account, why, clock_now());
    hex_encode(text, id, DEVICE_ID_SIZE);
    log_warning("%s (device %s) is banned for an hour: it %s", device->account, text, why);
    timer_cancel(device->stagger);
    if (device->link != NULL)
        link_end(device->link, PEER__FAREWELL__FAREWELL_BANNED, why);
}

void device_strike(struct download *download, const uint8_t id[DEVICE_ID_SIZE], const char *account,
                   const char *what)
{
    char why[BANS_WHY_SIZE];

    snprintf(why, sizeof(why), "broke the protocol: %s", what);
    if (!bans_strike(download->daemon->bans, id, account, why, clock_now()))
        return;
    device_get(download, id, account);
    device_ban(download, id, why);
}

bool device_is_banned(struct device *device)
{
    struct ban ban;
    int64_t now = clock_now();

    if (device->banned_until > now)
        return true;
    if (!bans_find(device->download->daemon->bans, device->id, now, &ban))
        return false;
    device->banned_until = ban.until;
    snprintf(device->ban, sizeof(device->ban), "%s", ban.why);
    return true;
}

/* --- dialling ------------------------------------------------------------------------------------------------------- */
/* 0: this machine, 1: a local network, 2: elsewhere. */
static unsigned distance(const char *address)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    struct in_addr four;
    struct in6_addr six;

    if (!host_port_parse(address, 0, host, &port))
        return 2;
    if (inet_pton(AF_INET, host, &four) == 1) {
        uint32_t bits = ntohl(four.s_addr);

        if (bits >> 24 == 127)
            return 0;
        return bits >> 24 == 10 || bits >> 20 == 0xac1 || bits >> 16 == 0xc0a8 ||
                       bits >> 16 == 0xa9fe
                   ? 1
                   : 2;
    }
    if (strchr(host, '%') != NULL)
        return 1; /* link-local */
    if (inet_pton(AF_INET6, host, &six) == 1) {
        if (IN6_IS_ADDR_LOOPBACK(&six))
            return 0;
        return (six.s6_addr[0] & 0xfe) == 0xfc || IN6_IS_ADDR_LINKLOCAL(&six) ? 1 : 2;
    }
    return 2;
}

static void set_addresses(struct device *device, const Tracker__Peer *peer)
{
    unsigned count = 0, before = device->address_count;
    char old[LIMIT_ADDRESSES][LIMIT_ADDRESS];

    if (device->dialling > 0)
        return; /* the next answer will do */
    memcpy(old, device->addresses, sizeof(old));
    for (unsigned near = 0; near < 3; near++) {
        for (size_t i = 0; i < peer->n_addresses && count < LIMIT_ADDRESSES; i++) {
            if (strlen(peer->addresses[i]) < LIMIT_ADDRESS && distance(peer->addresses[i]) == near)
                snprintf(device->addresses[count++], LIMIT_ADDRESS, "%s", peer->addresses[i]);
        }
    }
    device->address_count = count;
    bool moved = count != before;
    for (unsigned i = 0; i < count && !moved; i++)
        moved = strcmp(old[i], device->addresses[i]) != 0;
    if (moved) {
        device->failures = 0;
        device->next_try = 0;
    }
}

static void ask_back(struct device *device)
{
    if (device->asked_back || LIST_EMPTY(&device->holdings) || device->download->stopping)
        return;
    device->asked_back = true;
    log_debug("%s cannot be dialled; it is asked to dial", device->account);
    session_ask_dial_back(device->download->daemon->session, device->id);
}

static void failed(struct device *device, int64_t now)
{
    struct holding *holding;

    device->failed_at = now;
    LIST_FOREACH(holding, &device->holdings, of_device)
    file_dirty(holding->file); /* it holds others up no longer */
    if (now < device->next_try)
        return; /* it was dialled before its time, for a reader */
    int64_t wait = RETRY_FIRST << (device->failures < 6 ? device->failures : 6);
    uint32_t jitter;

    if (wait > RETRY_MOST)
        wait = RETRY_MOST;
    random_bytes(&jitter, sizeof(jitter));
    device->next_try = now + wait * 3 / 4 + (int64_t)((double)wait / 2 * jitter / UINT32_MAX);
    device->failures++;
    ask_back(device);
}

/* Starts the next attempt; true if one is under way then. */
static bool attempt(struct device *device)
{
    while (device->next_address < device->address_count) {
        if (device->download->link_count >= LIMIT_PEER_LINKS)
            break;
        if (link_dial(device, device->addresses[device->next_address++]) != NULL) {
            timer_set(device->stagger, STAGGER);
            return true;
        }
    }
    return device->dialling > 0;
}

/* Whether its host has answered: what is missing is the handshake, which another attempt would only make slower. */
static bool shakes_hands(const struct device *device)
{
    const struct link *link;

    TAILQ_FOREACH(link, &device->download->links, entry) {
        if (link->device == device && link->state == LINK_DIALLING &&
            tls_rtt(channel_stream(link->channel)) > 0)
            return true;
    }
    return false;
}

static void stagger_due(void *arg)
{
    struct device *device = arg;
    struct download *download = device->download;
    struct holding *holding;

    if (device->link != NULL || device->dialling == 0)
        return;
    LIST_FOREACH(holding, &device->holdings, of_device)
    file_dirty(holding->file); /* it holds others up no longer */
    if (device->patience > 0 && shakes_hands(device)) {
        device->patience--;
        timer_set(device->stagger, STAGGER);
    } else if (device->next_address < device->address_count) {
        attempt(device);
    } else {
        ask_back(device);
    }
    download_settle(download);
}

/* Whether it may be dialled now. */
static bool is_due(const struct device *device, bool reader, int64_t now)
{
    int64_t due = device->next_try;

    if (reader && due > device->failed_at + RETRY_FIRST)
        due = device->failed_at + RETRY_FIRST;
    return device->link == NULL && device->dialling == 0 && now >= due;
}

void device_dial(struct device *device, bool reader, int64_t now)
{
    if (!is_due(device, reader, now) || device_is_banned(device) ||
        device->download->credentials == NULL || device->download->stopping)
        return;
    device->next_address = 0;
    if (now >= device->next_try)
        device->asked_back = false;
    device->fresh_until = now + STAGGER;
    device->patience = PATIENCE;
    if (!attempt(device))
        failed(device, now);
}

void device_attempt_ended(struct device *device, struct link *up)
{
    struct download *download = device->download;
    struct link *link, *next;
    struct holding *holding;

    CHECK(device->dialling > 0);
    device->dialling--;
    if (up == NULL) {
        if (device->link != NULL || device->banned_until > clock_now() || download->stopping)
            return;
        if (device->dialling == 0 && !attempt(device)) {
            failed(device, clock_now());
            device_review(device);
        }
        return;
    }
    timer_cancel(device->stagger);
    device->failures = 0;
    device->next_try = 0;
    if (device->link != NULL && device->link != up)
        link_end(device->link, PEER__FAREWELL__FAREWELL_IDLE, "replaced by a newer link");
    device->link = up;
    for (link = TAILQ_FIRST(&download->links); link != NULL; link = next) {
        next = TAILQ_NEXT(link, entry);
        if (link != up && link->device == device && link->state == LINK_DIALLING)
            link_free(link);
    }
    LIST_FOREACH(holding, &device->holdings, of_device)
    file_dirty(holding->file);
}

/* --- who holds what ----------------------------------------------------------------------------------------------------- */
void holding_free(struct holding *holding)
{
    LIST_REMOVE(holding, of_file);
    LIST_REMOVE(holding, of_device);
    free(holding);
}

static struct holding *holding_get(struct file *file, struct device *device)
{
    struct holding *holding;

    LIST_FOREACH(holding, &device->holdings, of_device)
    {
        if (holding->file == file)
            return holding;
    }
    holding = xcalloc(1, sizeof(*holding));
    holding->file = file;
    holding->device = device;
    LIST_INSERT_HEAD(&file->holdings, holding, of_file);
    LIST_INSERT_HEAD(&device->holdings, holding, of_device);
    return holding;
}

/* It holds some of a file that it refused before: it is asked again. */
static void forgive(struct device *device, struct file *file)
{
    struct fetch *fetch = device_fetch(device, file);

    if (fetch != NULL && fetch->refused)
        fetch_close(fetch);
}

/* Our right at that device, as the tracker gives it now. */
static void take_ticket(struct holding *holding, const Tracker__Peer *peer)
{
    struct device *device = holding->device;
    struct fetch *fetch = device_fetch(device, holding->file);

    if (peer->ticket.len != TICKET_SIZE)
        return;
    device->download->ticketed = true;
    device->has_whole = peer->whole;
    holding->has_ticket = !peer->whole;
    if (peer->whole) {
        memcpy(device->whole, peer->ticket.data, TICKET_SIZE);
        if (device->link != NULL)
            link_show_whole(device->link);
        return;
    }
    memcpy(holding->ticket, peer->ticket.data, TICKET_SIZE);
    if (fetch != NULL)
        fetch_show_ticket(fetch, holding->ticket);
}

static void peer_arrived(struct file *file, const Tracker__Peer *peer)
{
    struct download *download = file->download;
    struct holding *holding;
    struct device *device;

    if (peer->device.len != DEVICE_ID_SIZE ||
        (download->credentials != NULL &&
         memcmp(peer->device.data, download->credentials->device, DEVICE_ID_SIZE) == 0))
        return;
    if (device_of(download, peer->device.data) == NULL &&
        HASH_COUNT(download->devices) >= LIMIT_DEVICES_KNOWN)
        return;
    device = device_get(download, peer->device.data, peer->account);
    set_addresses(device, peer);
    holding = holding_get(file, device);
    holding->stale = false;
    holding->complete = peer->complete;
    holding->pieces = peer->pieces;
    take_ticket(holding, peer);
    forgive(device, file);
}

/* The tracker counts pieces. */
static void take_copies(struct file *file, const uint8_t *copies, size_t count)
{
    uint32_t ratio = parts_ratio(file->geometry, &file->parts);
    size_t known = count > file->geometry->pieces ? file->geometry->pieces : count;
    uint8_t *of_parts = malloc(known * ratio + 1);

    if (of_parts == NULL)
        return; /* it is advice */
    for (size_t i = 0; i < known * ratio; i++)
        of_parts[i] = copies[i / ratio];
    picker_copies(file->picker, of_parts,
                  known * ratio > file->parts.pieces ? file->parts.pieces : known * ratio);
    free(of_parts);
}

void peers_arrived(struct download *download, const Tracker__Peers *peers, bool answer)
{
    struct file *file = peers->root.len == HASH_SIZE ? file_of(download, peers->root.data) : NULL;
    struct holding *holding, *next;

    if (file == NULL)
        return;
    LIST_FOREACH(holding, &file->holdings, of_file)
    holding->stale = answer;
    for (size_t i = 0; i < peers->n_peers; i++)
        peer_arrived(file, peers->peers[i]);
    for (holding = LIST_FIRST(&file->holdings); holding != NULL; holding = next) {
        struct device *device = holding->device;

        next = LIST_NEXT(holding, of_file);
        if (!holding->stale || device_fetch(device, file) != NULL)
            continue;
        holding_free(holding);
        device_review(device);
    }
    file->holders = peers->holders;
    if (peers->copies.len > 0)
        take_copies(file, peers->copies.data, peers->copies.len);
    file_dirty(file);
}

static void dial_for_readers(struct download *download, int64_t now)
{
    const struct holding *holding;
    struct file *file;

    TAILQ_FOREACH(file, &download->demanding, of_demanding) {
        LIST_FOREACH(holding, &file->holdings, of_file)
        {
            if (holding->device->banned_until == 0 && is_due(holding->device, true, now))
                file_dirty(file);
        }
    }
}

void devices_tick(struct download *download, int64_t now)
{
    struct device *device, *next;

    HASH_ITER(hh, download->devices, device, next) {
        struct holding *holding;

        if (device->banned_until != 0 && device->banned_until <= now) {
            device->banned_until = 0;
            device->ban[0] = '\0';
            device_review(device);
            continue;
        }
        if (device->banned_until != 0 || !is_due(device, false, now))
            continue;
        LIST_FOREACH(holding, &device->holdings, of_device)
        file_dirty(holding->file); /* they dial it if they want it */
    }
    dial_for_readers(download, now);
}
