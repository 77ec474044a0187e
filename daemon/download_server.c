/* What the server says on a link: its messages, checked, and passed on.
 *
 * Owns the payload that is coming. Leaves the link to download_link.c, blocks to download_verify.c, hashes to download_hashes.c,
 * what it all means for the next request to picker.h. Protocol: proto/peer.proto. Thread: "download".
 *
 * Each handler returns NULL, or a clause that says how the protocol was broken: then the link ends. Messages about a file that
 * was closed meanwhile are no fault. A block is taken only if it was asked for and has the size that it must have. */
#include "crypto/tls.h"
#include "daemon/download_private.h"

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/message.h"

#define BUSY_PAUSE  (100 * NS_PER_MS) /* a server that is over a limit is left alone for so long */
#define LATER_PAUSE NS_PER_S /* and what its disk did not give is not asked for again for so long */

static struct fetch *fetch_of(struct link *link, uint32_t number)
{
    struct fetch *fetch;

    HASH_FIND(hh, link->by_number, &number, sizeof(number), fetch);
    return fetch;
}

/* The server will not serve this file: it stays known, so that it is not opened over and over. */
static void refuse(struct fetch *fetch, Peer__Reason reason)
{
    bool passes = reason == PEER__REASON__REASON_LATER || reason == PEER__REASON__REASON_BUSY;

    fetch->later_at = passes ? clock_now() + LATER_PAUSE : 0;

    fetch->refused = true;
    picker_source_close(fetch->source, true);
    picker_source_withdraw(fetch->source);
    hashes_fetch_gone(fetch);
    file_dirty(fetch->file);
}

/* --- what the server says --------------------------------------------------------------------------------------- */
const char *link_hello(struct link *link, const uint8_t *bytes, size_t size)
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

static void told_pieces(struct fetch *fetch, const uint8_t *pieces)
{
    const struct file *file = fetch->file;
    uint8_t *parts = parts_of_pieces(file->geometry, &file->parts, pieces);

    if (parts != NULL)
        picker_source_told(fetch->source, parts);
    free(parts);
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
    map = xmalloc(payload_size + 1);
    if (!bitmap_from_wire(map, payload, fetch->file->geometry->pieces)) {
        free(map);
        return "a bitfield with spare bits set";
    }
    told_pieces(fetch, map);
    free(map);
    return NULL;
}

static void has_piece(struct fetch *fetch, uint32_t piece)
{
    const struct file *file = fetch->file;
    uint32_t ratio = parts_ratio(file->geometry, &file->parts);

    for (uint32_t i = piece * ratio; i < (piece + 1) * ratio && i < file->parts.pieces; i++)
        picker_source_have(fetch->source, i);
}

static const char *on_have(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Have *have = message_unpack(&arena, &peer__have__descriptor, bytes, size);
    struct fetch *fetch = have != NULL ? fetch_of(link, have->file) : NULL;
    const char *fault = NULL;

    if (have == NULL)
        fault = "a malformed Have";
    else if (have->n_pieces > LIMIT_HAVE_PIECES || have->n_parts > LIMIT_HAVE_PIECES)
        fault = "a Have of too many pieces";
    else if (fetch != NULL && !fetch->opened)
        fault = "a Have before Opened";
    for (size_t i = 0; fault == NULL && fetch != NULL && i < have->n_pieces; i++) {
        if (have->pieces[i] >= fetch->file->geometry->pieces)
            fault = "a Have of a piece behind the end";
        else if (!fetch->distrusted)
            has_piece(fetch, have->pieces[i]);
    }
    for (size_t i = 0; fault == NULL && fetch != NULL && i < have->n_parts; i++) {
        if (have->parts[i] >= fetch->file->parts.pieces)
            fault = "a Have of a part behind the end";
        else if (!fetch->distrusted)
            picker_source_have(fetch->source, have->parts[i]);
    }
    if (fault == NULL && fetch != NULL && have->complete && !fetch->distrusted)
        picker_source_told(fetch->source, NULL);
    message_done(&arena);
    if (fetch != NULL)
        file_dirty(fetch->file);
    return fault;
}

static const char *on_suggest(struct link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Suggest *suggest = message_unpack(&arena, &peer__suggest__descriptor, bytes, size);
    struct fetch *fetch = suggest != NULL ? fetch_of(link, suggest->file) : NULL;
    bool malformed = suggest == NULL;

    for (size_t i = 0; fetch != NULL && i < suggest->n_parts && i < PICKER_SUGGESTED; i++)
        picker_source_suggests(fetch->source, suggest->parts[i]);
    message_done(&arena);
    return malformed ? "a malformed Suggest" : NULL;
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
    nothing = calloc(1, bitmap_bytes(fetch->file->parts.pieces) + 1);
    if (nothing != NULL)
        picker_source_told(fetch->source, nothing);
    free(nothing);
}

static void pause_source(struct fetch *fetch)
{
    fetch->busy_until = clock_now() + BUSY_PAUSE;
    picker_source_close(fetch->source, true);
}

/* One bad sector is no reason not to ask for anything else: for a moment the source counts as one that lacks the part. False:
 * there are too many of them. */
static bool put_off(struct fetch *fetch, uint64_t block, uint32_t count)
{
    uint32_t blocks = fetch->file->parts.piece_blocks;
    uint32_t first = (uint32_t)(block / blocks), last = (uint32_t)((block + count - 1) / blocks);

    if (count == 0 || last - first >= LATER_PARTS - fetch->later_count)
        return false;
    for (uint32_t part = first; part <= last; part++)
        if (picker_source_has(fetch->source, part))
            fetch->later[fetch->later_count++] = part;
    if (fetch->later_at == 0)
        fetch->later_at = clock_now() + LATER_PAUSE;
    return true;
}

void fetch_again(struct fetch *fetch)
{
    fetch->later_at = 0;
    if (fetch->refused) {
        fetch_close(fetch); /* and opened again */
        return;
    }
    for (; fetch->later_count > 0; fetch->later_count--)
        if (!fetch->distrusted)
            picker_source_have(fetch->source, fetch->later[fetch->later_count - 1]);
    file_dirty(fetch->file);
}

static void on_reject_blocks(struct fetch *fetch, const Peer__Reject *reject)
{
    bool lacks = reject->reason == PEER__REASON__REASON_NO_BLOCK ||
                 reject->reason == PEER__REASON__REASON_CORRUPT;
    uint32_t withdrawn;

    switch (reject->reason) {
    case PEER__REASON__REASON_NO_FILE:
        if (fetch->opened) {
            refuse(fetch, reject->reason);
            return;
        }
        lacks =
            true; /* it has not opened it yet: what was asked for in advance is asked for again */
        break;
    case PEER__REASON__REASON_NO_BLOCK:
        if (fetch->opened &&
            picker_source_has(fetch->source,
                              (uint32_t)(reject->block / fetch->file->parts.piece_blocks)))
            broken_claim(fetch);
        break;
    case PEER__REASON__REASON_CORRUPT:
        break;
    case PEER__REASON__REASON_LATER:
        lacks = put_off(fetch, reject->block, reject->count);
        if (!lacks)
            pause_source(fetch);
        break;
    case PEER__REASON__REASON_WITHDRAWN:
        withdrawn = picker_withdrawn(fetch->source, reject->block, reject->count, clock_now());
        bucket_refund(&fetch->link->download->bucket, (uint64_t)withdrawn * BLOCK_SIZE);
        bucket_refund(&fetch->file->bucket, (uint64_t)withdrawn * BLOCK_SIZE);
        file_dirty(fetch->file);
        return;
    default: /* busy, choked, something newer */
        pause_source(fetch);
        break;
    }
    picker_rejected(fetch->source, reject->block, reject->count, lacks);
    file_dirty(fetch->file);
}

static bool is_behind_the_end(const struct fetch *fetch, const Peer__Reject *reject)
{
    uint64_t blocks = fetch->file->geometry->blocks;

    return reject->count > 0 && (reject->block >= blocks || reject->count > blocks - reject->block);
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
    else if (fetch != NULL && !reject->hashes && is_behind_the_end(fetch, reject))
        fault = "a Reject behind the end of the file";
    else if (fetch != NULL && reject->hashes)
        hashes_rejected(fetch, reject->block);
    else if (fetch != NULL && reject->count == 0)
        refuse(fetch, reject->reason);
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
        link_say(link, PEER__PEER_TYPE__PEER_PONG, &pong.base);
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
    tls_comes_bulk(channel_stream(link->channel),
                   !buffer->urgent && !link_reader_near(link, clock_now()));
    buffer->block = link->in_block;
    buffer->size = (uint32_t)size;
    memcpy(buffer->device, link->device->id, DEVICE_ID_SIZE);
    verify_block(file, buffer);
    return download->held > LIMIT_BLOCKS_UNPROVEN ? "it sends blocks without their hashes" : NULL;
}

/* --- frames ---------------------------------------------------------------------------------------------------------- */
void link_payload_drop(struct link *link)
{
    buffer_free(link->download, link->in_buffer);
    link->in_buffer = NULL;
    link->in_fetch = NULL;
    free(link->in_bytes);
    link->in_bytes = NULL;
}

void *link_payload(struct link *link, const struct frame *frame, const uint8_t *message,
                   const char **fault)
{
    link_payload_drop(link);
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

const char *link_message(struct link *link, const struct frame *frame, const uint8_t *message)
{
    size_t size = frame->message_size;

    if (!link->greeted && frame->type != PEER__PEER_TYPE__PEER_HELLO &&
        frame->type != PEER__PEER_TYPE__PEER_GOODBYE)
        return "its first message is not a Hello";
    switch (frame->type) {
    case PEER__PEER_TYPE__PEER_HELLO:
        return link_hello(link, message, size);
    case PEER__PEER_TYPE__PEER_OPENED:
        return on_opened(link, message, size, link->in_bytes, frame->payload_size);
    case PEER__PEER_TYPE__PEER_HAVE:
        return on_have(link, message, size);
    case PEER__PEER_TYPE__PEER_SUGGEST:
        return on_suggest(link, message, size);
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
