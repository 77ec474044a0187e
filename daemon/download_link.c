/* One link on which we fetch: the fetching end of the peer protocol.
 *
 * Owns the channel, the numbers of the files that are open on it, the request that is being gathered, the payload that is coming.
 * Leaves what to ask to the picker, what comes to download_verify.c and download_hashes.c, reconnecting to download_peers.c.
 * Protocol: proto/peer.proto. Thread: "download".
 *
 *   DIALLING --TLS is done, the device is the right one--> UP --the other end goes--> freed
 *            \--refused, late, another attempt won--> freed  \--link_end--> LEAVING --last words are out--> freed
 *
 * (A link that is LEAVING belongs to no device and has no files.)
 *
 * Nothing waits for the other end's Hello: files are opened, hashes and blocks asked for in the same flight as ours.
 *
 * K1  File numbers are never used again on the same link, so a block that crosses a Close cannot be taken for another's.
 * K2  A block is taken only if it was asked for and has the size it must have; anything else ends the link.
 * K3  While `paused` no more than one payload per link is under way. */
#include "daemon/download_private.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "base/swarm_url.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/message.h"

#define OPEN_BACKGROUND                                                                            \
    256 /* files without a reader open at once: each is looked at when there is room */
#define BUSY_PAUSE  (100 * NS_PER_MS) /* a server that is over a limit is left alone for so long */
#define READER_NEAR NS_PER_S /* so long after a demand the link is kept short for the next one */

static void say(struct link *link, Peer__PeerType type, const ProtobufCMessage *message)
{
    channel_send(link->channel, CHANNEL_URGENT, (uint16_t)type, 0, 0, message, NULL, 0);
}

/* --- asking ------------------------------------------------------------------------------------------------------- */
static void link_dirty(struct link *link)
{
    if (link->dirty)
        return;
    link->dirty = true;
    STAILQ_INSERT_TAIL(&link->download->dirty_links, link, of_dirty);
}

/* Sends the run that was gathered. */
static void run_send(struct link *link)
{
    struct run *run = &link->run;

    if (run->fetch == NULL)
        return;
    if (run->cancel) {
        Peer__Cancel cancel = PEER__CANCEL__INIT;

        cancel.file = run->fetch->number;
        cancel.block = run->first;
        cancel.count = run->count;
        say(link, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base);
    } else {
        Peer__Request request = PEER__REQUEST__INIT;

        request.file = run->fetch->number;
        request.block = run->first;
        request.count = run->count;
        request.urgency = (Peer__Urgency)run->class;
        say(link, PEER__PEER_TYPE__PEER_REQUEST, &request.base);
    }
    run->fetch = NULL;
}

/* Adds a block to the run, sending what doesn't fit in front of it. */
static void run_add(struct fetch *fetch, uint64_t block, enum picker_class class, bool cancel)
{
    struct link *link = fetch->link;
    struct run *run = &link->run;

    if (run->fetch == fetch && run->cancel == cancel && run->class == class &&
        run->count < LIMIT_REQUEST_BLOCKS) {
        if (block == run->first + run->count) {
            run->count++;
            return;
        }
        if (block + 1 == run->first) {
            run->first--;
            run->count++;
            return;
        }
    }
    run_send(link);
    *run =
        (struct run){.fetch = fetch, .first = block, .count = 1, .class = class, .cancel = cancel};
    link_dirty(link);
}

void fetch_ask(struct fetch *fetch, uint64_t block, enum picker_class class)
{
    struct link *link = fetch->link;

    hashes_need(fetch->file, (uint32_t)(block / fetch->file->geometry->piece_blocks), fetch);
    if (class == PICKER_DEMAND)
        link->last_demand = clock_now();
    run_add(fetch, block, class, false);
}

void fetch_raise(struct fetch *fetch, uint64_t block)
{
    fetch->link->last_demand = clock_now();
    run_add(fetch, block, PICKER_DEMAND, false);
}

void fetch_cancel(struct fetch *fetch, uint64_t block)
{
    run_add(fetch, block, PICKER_BACKGROUND, true);
}

void link_ask_hashes(struct fetch *fetch, Peer__Layer layer, uint64_t first, uint32_t count)
{
    Peer__HashRequest request = PEER__HASH_REQUEST__INIT;

    run_send(fetch->link);
    request.file = fetch->number;
    request.layer = layer;
    request.first = first;
    request.count = count;
    fetch->hash_asks++;
    say(fetch->link, PEER__PEER_TYPE__PEER_HASH_REQUEST, &request.base);
}

void link_flush(struct link *link)
{
    run_send(link);
}

static uint32_t fill_class(struct link *link, enum picker_class class, uint32_t room, int64_t now)
{
    uint32_t asked = 0, files = link->fetch_count;
    struct fetch *fetch = TAILQ_FIRST(&link->fetches);

    while (files-- > 0 && fetch != NULL && asked < room) {
        struct fetch *next = TAILQ_NEXT(fetch, of_link);
        uint32_t got = fetch->refused ? 0 : picker_fill(fetch->source, class, room - asked, now);

        if (got > 0) { /* the next time the others come first */
            TAILQ_REMOVE(&link->fetches, fetch, of_link);
            TAILQ_INSERT_TAIL(&link->fetches, fetch, of_link);
        }
        asked += got;
        fetch = next;
    }
    return asked;
}

void link_fill(struct link *link, int64_t now)
{
    struct download *download = link->download;
    uint32_t allowance, room;
    bool reader;

    if (link->state != LINK_UP || link->choked || link->fetch_count == 0)
        return;
    allowance = download_allowance(download, now);
    room = pipeline_room(&link->pipe, now, false);
    if (room > allowance)
        room = allowance;
    if (room == 0)
        return;
    fill_class(link, PICKER_PREFETCH, room, now);
    reader = link->pipe.urgent > 0 || now - link->last_demand < READER_NEAR;
    room = pipeline_room(&link->pipe, now, reader);
    allowance = download_allowance(download, now);
    fill_class(link, PICKER_BACKGROUND, room < allowance ? room : allowance, now);
}

/* --- files on the link ------------------------------------------------------------------------------------------ */
struct fetch *link_open(struct link *link, struct file *file)
{
    struct fetch *fetch;
    Peer__Open open = PEER__OPEN__INIT;

    CHECK(link->state == LINK_UP);
    if (link->fetch_count >= (file->demanding ? LIMIT_OPEN_FILES - 1 : OPEN_BACKGROUND)) {
        link->full = true;
        return NULL;
    }
    fetch = xcalloc(1, sizeof(*fetch));
    fetch->link = link;
    fetch->file = file;
    fetch->number = link->next_number++;
    fetch->source = picker_source_new(file->picker, &link->pipe, fetch);
    if (link->choked)
        picker_source_close(fetch->source, true);
    HASH_ADD(hh, link->by_number, number, sizeof(fetch->number), fetch);
    TAILQ_INSERT_TAIL(&link->fetches, fetch, of_link);
    link->fetch_count++;
    LIST_INSERT_HEAD(&file->fetches, fetch, of_file);
    run_send(link);
    open.file = fetch->number;
    open.root.data = file->root;
    open.root.len = HASH_SIZE;
    open.size = file->geometry->size;
    say(link, PEER__PEER_TYPE__PEER_OPEN, &open.base);
    link->last_used = clock_now();
    file_dirty(file);
    return fetch;
}

static void fetch_free(struct fetch *fetch)
{
    struct link *link = fetch->link;

    if (link->run.fetch == fetch)
        link->run.fetch = NULL;
    if (link->in_fetch == fetch)
        link->in_fetch = NULL;
    LIST_REMOVE(fetch, of_file);
    hashes_fetch_gone(fetch);
    picker_source_free(fetch->source);
    HASH_DEL(link->by_number, fetch);
    TAILQ_REMOVE(&link->fetches, fetch, of_link);
    link->fetch_count--;
    link->last_used = clock_now();
    if (link->full && link->fetch_count <= OPEN_BACKGROUND - OPEN_BACKGROUND / 4) {
        link->full = false;
        link->download->place = true;
    }
    file_dirty(fetch->file);
    free(fetch);
}

void fetch_close(struct fetch *fetch)
{
    struct link *link = fetch->link;

    if (link->state == LINK_UP && !fetch->refused) {
        Peer__Close message = PEER__CLOSE__INIT;

        if (link->run.fetch == fetch)
            link->run.fetch = NULL; /* a Close ends its requests as well */
        run_send(link);
        message.file = fetch->number;
        say(link, PEER__PEER_TYPE__PEER_CLOSE, &message.base);
    }
    fetch_free(fetch);
}

static struct fetch *fetch_of(struct link *link, uint32_t number)
{
    struct fetch *fetch;

    HASH_FIND(hh, link->by_number, &number, sizeof(number), fetch);
    return fetch;
}

/* The server will not serve this file: it stays known, so that it is not opened over and over. */
static void refuse(struct fetch *fetch)
{
    fetch->refused = true;
    picker_source_close(fetch->source, true);
    picker_source_withdraw(fetch->source);
    hashes_fetch_gone(fetch);
    file_dirty(fetch->file);
}

/* --- what the server says --------------------------------------------------------------------------------------- */
static const char *on_hello(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Hello *hello = message_unpack(&arena, &peer__hello__descriptor, bytes, size);
    const char *fault = NULL;

    if (hello == NULL)
        fault = "a malformed Hello";
    else if (link->greeted)
        fault = "a second Hello";
    else if (hello->version < 1 || hello->oldest > 1)
        fault = "it speaks another version of the protocol";
    else if (hello->role != PEER__ROLE__ROLE_SERVER)
        fault = "it does not want to serve";
    link->greeted = true;
    message_done(&arena);
    return fault;
}

static const char *on_opened(struct link *link, const uint8_t *bytes, size_t size,
                             const uint8_t *payload, size_t payload_size)
{
    struct message_arena arena;
    const Peer__Opened *opened = message_unpack(&arena, &peer__opened__descriptor, bytes, size);
    struct fetch *fetch = opened != NULL ? fetch_of(link, opened->file) : NULL;
    bool complete = opened != NULL && opened->complete, malformed = opened == NULL;
    uint8_t *map;

    message_done(&arena);
    if (malformed)
        return "a malformed Opened";
    if (fetch == NULL)
        return NULL; /* closed meanwhile */
    if (fetch->opened || fetch->refused)
        return "an Opened without an Open";
    fetch->opened = true;
    fetch->file->hashes_due = true;
    file_dirty(fetch->file);
    if (complete && payload_size == 0) {
        picker_source_told(fetch->source, NULL);
        return NULL;
    }
    if (complete || payload_size != bitmap_bytes(fetch->file->geometry->pieces))
        return "a bitfield of the wrong size";
    map = malloc(payload_size + 1);
    if (map == NULL || !bitmap_from_wire(map, payload, fetch->file->geometry->pieces)) {
        free(map);
        return "a bitfield with spare bits set";
    }
    picker_source_told(fetch->source, map);
    free(map);
    return NULL;
}

static const char *on_have(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Have *have = message_unpack(&arena, &peer__have__descriptor, bytes, size);
    struct fetch *fetch = have != NULL ? fetch_of(link, have->file) : NULL;
    const char *fault = NULL;

    if (have == NULL)
        fault = "a malformed Have";
    else if (have->n_pieces > LIMIT_HAVE_PIECES)
        fault = "a Have of too many pieces";
    else if (fetch != NULL && !fetch->opened)
        fault = "a Have before Opened";
    for (size_t i = 0; fault == NULL && fetch != NULL && i < have->n_pieces; i++) {
        if (have->pieces[i] >= fetch->file->geometry->pieces)
            fault = "a Have of a piece behind the end";
        else if (!fetch->distrusted)
            picker_source_have(fetch->source, have->pieces[i]);
    }
    if (fault == NULL && fetch != NULL && have->complete && !fetch->distrusted)
        picker_source_told(fetch->source, NULL);
    message_done(&arena);
    if (fetch != NULL)
        file_dirty(fetch->file);
    return fault;
}

/* A claim turned out not to be true. Too many, and nothing it claims is believed any more. */
static void broken_claim(struct fetch *fetch)
{
    uint8_t *nothing;

    if (++fetch->broken <= LIMIT_BROKEN_CLAIMS || fetch->distrusted)
        return;
    fetch->distrusted = true;
    log_info("%s at %s claims pieces that it does not have: its claims are ignored",
             fetch->link->device->account, fetch->link->address);
    nothing = calloc(1, bitmap_bytes(fetch->file->geometry->pieces) + 1);
    if (nothing != NULL)
        picker_source_told(fetch->source, nothing);
    free(nothing);
}

static void on_reject_blocks(struct fetch *fetch, const Peer__Reject *reject)
{
    bool lacks = reject->reason == PEER__REASON__REASON_NO_BLOCK ||
                 reject->reason == PEER__REASON__REASON_CORRUPT;

    switch (reject->reason) {
    case PEER__REASON__REASON_NO_FILE:
        if (fetch->opened) {
            refuse(fetch);
            return;
        }
        lacks =
            true; /* it has not opened it yet: what was asked for in advance is asked for again */
        break;
    case PEER__REASON__REASON_NO_BLOCK:
        if (fetch->opened &&
            picker_source_has(fetch->source,
                              (uint32_t)(reject->block / fetch->file->geometry->piece_blocks)))
            broken_claim(fetch);
        break;
    case PEER__REASON__REASON_CORRUPT:
        break;
    default: /* busy, choked, something newer */
        fetch->busy_until = clock_now() + BUSY_PAUSE;
        picker_source_close(fetch->source, true);
        break;
    }
    picker_rejected(fetch->source, reject->block, reject->count, lacks);
    file_dirty(fetch->file);
}

static const char *on_reject(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Reject *reject = message_unpack(&arena, &peer__reject__descriptor, bytes, size);
    struct fetch *fetch = reject != NULL ? fetch_of(link, reject->file) : NULL;
    const char *fault = NULL;

    if (reject == NULL)
        fault = "a malformed Reject";
    else if (reject->count > LIMIT_REQUEST_BLOCKS && !reject->hashes)
        fault = "a Reject of too much";
    else if (fetch != NULL && reject->hashes)
        hashes_rejected(fetch, reject->block);
    else if (fetch != NULL && reject->count == 0)
        refuse(fetch);
    else if (fetch != NULL && !fetch->refused)
        on_reject_blocks(fetch, reject);
    message_done(&arena);
    return fault;
}

static const char *on_hashes(struct link *link, const uint8_t *bytes, size_t size,
                             const uint8_t *payload, size_t payload_size)
{
    struct message_arena arena;
    const Peer__Hashes *hashes = message_unpack(&arena, &peer__hashes__descriptor, bytes, size);
    struct fetch *fetch = hashes != NULL ? fetch_of(link, hashes->file) : NULL;
    const char *fault = hashes == NULL ? "malformed Hashes" : NULL;

    if (fetch != NULL)
        fault = payload == NULL ? "Hashes without hashes"
                                : hashes_arrived(fetch, hashes, payload, payload_size);
    message_done(&arena);
    return fault;
}

static void on_choke(struct link *link, bool choked)
{
    struct fetch *fetch;

    link->choked = choked;
    TAILQ_FOREACH(fetch, &link->fetches, of_link) {
        picker_source_close(fetch->source, choked || fetch->refused);
        file_dirty(fetch->file);
    }
}

static const char *on_ping(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Ping *ping = message_unpack(&arena, &peer__ping__descriptor, bytes, size);
    Peer__Pong pong = PEER__PONG__INIT;

    if (ping != NULL) {
        pong.nonce = ping->nonce;
        say(link, PEER__PEER_TYPE__PEER_PONG, &pong.base);
    }
    message_done(&arena);
    return ping == NULL ? "a malformed Ping" : NULL;
}

static const char *on_goodbye(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Goodbye *bye = message_unpack(&arena, &peer__goodbye__descriptor, bytes, size);

    if (bye != NULL)
        log_debug("%s at %s says good-bye (%d): %.200s", link->device->account, link->address,
                  (int)bye->code, bye->text);
    message_done(&arena);
    return "it said good-bye";
}

/* --- blocks -------------------------------------------------------------------------------------------------------- */
static bool varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
        uint8_t byte = *(*at)++;

        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* A Block by hand, as there is one for each 16 KiB. False: it is not in its plainest form. */
static bool block_plain(const uint8_t *at, size_t size, uint64_t *file, uint64_t *block)
{
    const uint8_t *end = at + size;

    *file = *block = 0;
    if (at < end && *at == 0x08) {
        at++;
        if (!varint(&at, end, file))
            return false;
    }
    if (at < end && *at == 0x10) {
        at++;
        if (!varint(&at, end, block))
            return false;
    }
    return at == end && *file <= UINT32_MAX;
}

static bool block_parse(const uint8_t *bytes, size_t size, uint64_t *file, uint64_t *block)
{
    struct message_arena arena;
    const Peer__Block *message;

    if (block_plain(bytes, size, file, block))
        return true;
    message = message_unpack(&arena, &peer__block__descriptor, bytes, size);
    if (message != NULL) {
        *file = message->file;
        *block = message->block;
    }
    message_done(&arena);
    return message != NULL;
}

static void *block_begins(struct link *link, const struct frame *frame, const uint8_t *message,
                          const char **fault)
{
    uint64_t file, block;
    struct fetch *fetch;

    if (!block_parse(message, frame->message_size, &file, &block)) {
        *fault = "a malformed Block";
        return NULL;
    }
    fetch = fetch_of(link, (uint32_t)file);
    if (fetch == NULL) {
        if (file >= link->next_number)
            *fault = "a Block of a file that is not open";
        link->download->wasted += frame->payload_size;
        return NULL;
    }
    if (block >= fetch->file->geometry->blocks ||
        frame->payload_size != geometry_block_size(fetch->file->geometry, block)) {
        *fault = "a Block of the wrong size";
        return NULL;
    }
    link->in_fetch = fetch;
    link->in_block = block;
    link->in_buffer = buffer_new(link->download);
    return link->in_buffer->bytes;
}

static const char *block_arrived(struct link *link, size_t size)
{
    struct fetch *fetch = link->in_fetch;
    struct buffer *buffer = link->in_buffer;
    struct download *download = link->download;
    struct file *file;

    link->in_fetch = NULL;
    link->in_buffer = NULL;
    if (buffer == NULL)
        return NULL;
    link->bytes += size;
    if (fetch == NULL) { /* closed while it came */
        download->wasted += size;
        buffer_free(download, buffer);
        return NULL;
    }
    file = fetch->file;
    switch (picker_received(fetch->source, link->in_block, (uint32_t)size, clock_now(),
                            &buffer->urgent)) {
    case PICKER_TAKE:
        break;
    case PICKER_SPARE:
        download->wasted += size;
        buffer_free(download, buffer);
        return NULL;
    default:
        buffer_free(download, buffer);
        return "a Block that was not asked for";
    }
    buffer->block = link->in_block;
    buffer->size = (uint32_t)size;
    memcpy(buffer->device, link->device->id, DEVICE_ID_SIZE);
    verify_block(file, buffer);
    return download->held > BUFFERS_HELD ? "it sends blocks without their hashes" : NULL;
}

/* --- the channel --------------------------------------------------------------------------------------------------- */
static void payload_drop(struct link *link)
{
    buffer_free(link->download, link->in_buffer);
    link->in_buffer = NULL;
    link->in_fetch = NULL;
    free(link->in_bytes);
    link->in_bytes = NULL;
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct link *link = arg;

    CHECK_OBJECT(link, LINK_MAGIC);
    payload_drop(link);
    if (link->state != LINK_UP)
        return NULL;
    switch (frame->type) {
    case PEER__PEER_TYPE__PEER_BLOCK:
        return block_begins(link, frame, message, fault);
    case PEER__PEER_TYPE__PEER_OPENED: /* a bitfield of the largest file's pieces */
    case PEER__PEER_TYPE__PEER_HASHES:
        if (frame->payload_size > LIMIT_HASHES * HASH_SIZE) {
            *fault = "a payload that is too large";
            return NULL;
        }
        link->in_bytes = malloc(frame->payload_size);
        if (link->in_bytes == NULL)
            *fault = "there is no memory for a payload";
        return link->in_bytes;
    default:
        if (!(frame->flags & FRAME_MAY_SKIP))
            *fault = "a payload where none belongs";
        return NULL;
    }
}

static const char *dispatch(struct link *link, const struct frame *frame, const uint8_t *message)
{
    size_t size = frame->message_size;

    if (!link->greeted && frame->type != PEER__PEER_TYPE__PEER_HELLO &&
        frame->type != PEER__PEER_TYPE__PEER_GOODBYE)
        return "its first message is not a Hello";
    switch (frame->type) {
    case PEER__PEER_TYPE__PEER_HELLO:
        return on_hello(link, message, size);
    case PEER__PEER_TYPE__PEER_OPENED:
        return on_opened(link, message, size, link->in_bytes, frame->payload_size);
    case PEER__PEER_TYPE__PEER_HAVE:
        return on_have(link, message, size);
    case PEER__PEER_TYPE__PEER_BLOCK:
        return frame->payload_size == 0 ? "a Block without bytes"
                                        : block_arrived(link, frame->payload_size);
    case PEER__PEER_TYPE__PEER_REJECT:
        return on_reject(link, message, size);
    case PEER__PEER_TYPE__PEER_HASHES:
        return on_hashes(link, message, size, link->in_bytes, frame->payload_size);
    case PEER__PEER_TYPE__PEER_CHOKE:
    case PEER__PEER_TYPE__PEER_UNCHOKE:
        on_choke(link, frame->type == PEER__PEER_TYPE__PEER_CHOKE);
        return NULL;
    case PEER__PEER_TYPE__PEER_PING:
        return on_ping(link, message, size);
    case PEER__PEER_TYPE__PEER_PONG:
        if (link->pinged != 0)
            pipeline_round_trip(&link->pipe, clock_now(), clock_now() - link->pinged);
        link->pinged = 0;
        return NULL;
    case PEER__PEER_TYPE__PEER_GOODBYE:
        return on_goodbye(link, message, size);
    default:
        return frame->flags & FRAME_MAY_SKIP ? NULL : "a message that a server does not send";
    }
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct link *link = arg;
    const char *fault;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (link->state != LINK_UP)
        return NULL;
    fault = dispatch(link, frame, message);
    free(link->in_bytes);
    link->in_bytes = NULL;
    return fault;
}

static void on_idle(void *arg)
{
    struct link *link = arg;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (link->state != LINK_UP)
        return;
    download_room(link->download, link);
    download_settle(link->download);
}

static void go_up(struct link *link)
{
    struct download *download = link->download;
    Peer__Hello hello = PEER__HELLO__INIT;
    char agent[] = "p2pd " P2P_VERSION;
    int64_t now = clock_now();

    hello.version = 1;
    hello.oldest = 1;
    hello.role = PEER__ROLE__ROLE_FETCHER;
    hello.agent = agent;
    channel_trust(link->channel);
    say(link, PEER__PEER_TYPE__PEER_HELLO, &hello.base);
    link->state = LINK_UP;
    link->since = link->last_used = now;
    pipeline_init(&link->pipe, now);
    pipeline_round_trip(&link->pipe, now, tls_rtt(channel_stream(link->channel)));
    if (download->paused)
        link_pause(link, true);
    log_debug("fetching from %s at %s", link->device->account, link->address);
}

static void on_ready(void *arg)
{
    struct link *link = arg;
    struct download *download = link->download;
    struct certificate_subject subject;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (!tls_peer(channel_stream(link->channel), &subject) || subject.role != CERTIFICATE_DEVICE ||
        memcmp(subject.device, link->device->id, DEVICE_ID_SIZE) != 0) {
        log_debug("%s is another device than was expected", link->address);
        link_end(link, PEER__FAREWELL__FAREWELL_UNKNOWN, "another device than was expected");
        download_settle(download);
        return;
    }
    if (link->device->banned_until > clock_now()) {
        link_end(link, PEER__FAREWELL__FAREWELL_BANNED, link->device->ban);
        download_settle(download);
        return;
    }
    go_up(link);
    snprintf(link->device->account, sizeof(link->device->account), "%s", subject.account);
    device_attempt_ended(link->device, link);
    download_settle(download);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct link *link = arg;
    struct download *download = link->download;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (link->state == LINK_LEAVING)
        log_debug("a link to %s is closed", link->address);
    else if (link->state == LINK_UP)
        log_info("the link to %s at %s has ended: %s", link->device->account, link->address, why);
    else
        log_debug("dialling %s: %s", link->address, why);
    link_free(link);
    download_settle(download);
}

static const struct channel_events events = {
    .ready = on_ready,
    .frame = on_frame,
    .payload = on_payload,
    .idle = on_idle,
    .closed = on_closed,
};

/* --- life ----------------------------------------------------------------------------------------------------------- */
static struct link *link_new(struct download *download, struct device *device, const char *address)
{
    struct link *link = xcalloc(1, sizeof(*link));

    link->magic = LINK_MAGIC;
    link->download = download;
    link->device = device;
    snprintf(link->address, sizeof(link->address), "%s", address);
    link->since = clock_now();
    TAILQ_INIT(&link->fetches);
    pipeline_init(&link->pipe, link->since);
    TAILQ_INSERT_TAIL(&download->links, link, entry);
    download->link_count++;
    return link;
}

/* A socket on its way to "HOST:PORT", numbers only; -1 if there is none. */
static int dial(const char *text)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                             .ai_socktype = SOCK_STREAM},
                    *found = NULL;
    char host[SWARM_HOST_MAX + 1], service[8];
    uint16_t port = 0;
    int fd;

    if (!host_port_parse(text, 0, host, &port) || port == 0)
        return -1;
    snprintf(service, sizeof(service), "%u", port);
    if (getaddrinfo(host, service, &hints, &found) != 0)
        return -1;
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) < 0 && errno != EINPROGRESS) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

struct link *link_dial(struct device *device, const char *address)
{
    struct download *download = device->download;
    struct link *link;
    struct stream *stream;
    int fd = dial(address);

    if (fd < 0)
        return NULL;
    link = link_new(download, device, address);
    stream = tls_connect(download->loop, download->daemon->handshakes,
                         download->credentials->peer_context, fd);
    link->channel = channel_new(download->loop, stream, &events, link);
    device->dialling++;
    return link;
}

struct link *link_adopt(struct download *download, struct stream *stream, const uint8_t *hello,
                        size_t size)
{
    struct certificate_subject subject;
    struct sockaddr_storage from;
    socklen_t length = sizeof(from);
    char address[LIMIT_ADDRESS] = "unknown", host[48], service[8];
    struct device *device;
    struct link *link;

    if (!tls_peer(stream, &subject) || subject.role != CERTIFICATE_DEVICE ||
        download->link_count >= LIMIT_PEER_LINKS) {
        stream_free(stream);
        return NULL;
    }
    device = device_get(download, subject.device, subject.account);
    if (device->banned_until > clock_now() ||
        (device->link != NULL &&
         clock_now() - channel_last_heard(device->link->channel) < LIMIT_HELLO_NS)) {
        stream_free(stream);
        device_review(device);
        return NULL;
    }
    if (getpeername(tls_fd(stream), (struct sockaddr *)&from, &length) == 0 &&
        getnameinfo((struct sockaddr *)&from, length, host, sizeof(host), service, sizeof(service),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(address, sizeof(address), from.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
                 service);
    if (device->link != NULL)
        link_end(device->link, PEER__FAREWELL__FAREWELL_IDLE, "replaced by a newer link");
    link = link_new(download, device, address);
    link->channel = channel_new(download->loop, stream, &events, link);
    go_up(link);
    if (on_hello(link, hello, size) != NULL) {
        link_end(link, PEER__FAREWELL__FAREWELL_PROTOCOL, "its Hello is not a server's");
        return NULL;
    }
    stream_resume(stream);
    device->dialling++;
    device_attempt_ended(device, link);
    return link;
}

void link_pause(struct link *link, bool paused)
{
    if (link->state == LINK_UP)
        channel_pause(link->channel, paused);
}

/* Takes it from its device and its files. */
static void detach(struct link *link)
{
    struct device *device = link->device;
    bool dialling = link->state == LINK_DIALLING;
    struct fetch *fetch;

    link->state = LINK_LEAVING;
    while ((fetch = TAILQ_FIRST(&link->fetches)) != NULL)
        fetch_free(fetch);
    if (device == NULL)
        return;
    link->device = NULL;
    if (device->link == link)
        device->link = NULL;
    if (dialling)
        device_attempt_ended(device, NULL);
    else
        device_review(device);
}

void link_free(struct link *link)
{
    struct download *download = link->download;

    detach(link);
    payload_drop(link);
    channel_free(link->channel);
    TAILQ_REMOVE(&download->links, link, entry);
    download->link_count--;
    if (link->dirty)
        STAILQ_REMOVE(&download->dirty_links, link, link, of_dirty);
    link->magic = 0;
    free(link);
}

void link_end(struct link *link, Peer__Farewell farewell, const char *why)
{
    Peer__Goodbye bye = PEER__GOODBYE__INIT;
    char text[LIMIT_REASON];

    if (link->state == LINK_LEAVING)
        return;
    if (link->state == LINK_DIALLING) {
        link_free(link);
        return;
    }
    log_debug("ending the link to %s at %s: %s", link->device->account, link->address, why);
    detach(link);
    snprintf(text, sizeof(text), "%s", why);
    bye.code = farewell;
    bye.text = text;
    say(link, PEER__PEER_TYPE__PEER_GOODBYE, &bye.base);
    channel_pause(link->channel, false);
    channel_finish(link->channel, why);
}

static void reopen_busy(struct link *link, int64_t now)
{
    struct fetch *fetch;

    TAILQ_FOREACH(fetch, &link->fetches, of_link) {
        if (fetch->busy_until == 0 || now < fetch->busy_until)
            continue;
        fetch->busy_until = 0;
        if (!fetch->refused && !link->choked)
            picker_source_close(fetch->source, false);
        file_dirty(fetch->file);
    }
}

void link_tick(struct link *link, int64_t now)
{
    int64_t quiet;

    if (link->state == LINK_LEAVING)
        return; /* the channel sees to its end */
    if (link->state == LINK_DIALLING) {
        if (now - link->since > LIMIT_CONNECT_NS)
            link_end(link, PEER__FAREWELL__FAREWELL_UNKNOWN, "no answer");
        return;
    }
    if (!link->greeted && now - link->since > LIMIT_HELLO_NS) {
        link_end(link, PEER__FAREWELL__FAREWELL_PROTOCOL, "no Hello");
        return;
    }
    quiet = now - channel_last_heard(link->channel);
    if (quiet > LIMIT_PEER_IDLE_NS && now - link->since > LIMIT_PEER_IDLE_NS) {
        log_info("the link to %s at %s has ended: nothing was heard for %lld s",
                 link->device->account, link->address, (long long)(quiet / NS_PER_S));
        link_free(link);
        return;
    }
    if (link->fetch_count == 0 && now - link->last_used > LIMIT_PEER_IDLE_NS) {
        link_end(link, PEER__FAREWELL__FAREWELL_IDLE, "nothing to fetch");
        return;
    }
    if (quiet > LIMIT_PEER_IDLE_NS / 3 &&
        (link->pinged == 0 || now - link->pinged > LIMIT_PEER_IDLE_NS / 3)) {
        Peer__Ping ping = PEER__PING__INIT;

        link->pinged = now;
        ping.nonce = (uint64_t)now;
        say(link, PEER__PEER_TYPE__PEER_PING, &ping.base);
    }
    pipeline_round_trip(&link->pipe, now, tls_rtt(channel_stream(link->channel)));
    reopen_busy(link, now);
}
