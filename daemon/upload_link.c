/* One link on which this daemon serves: its life and its channel.
 *
 * Owns the channel and struct serve_link. Leaves blocks to upload_blocks.c, files and hashes to upload_files.c, order between
 * links to the choker. Protocol: proto/peer.proto, this is the server's end. Thread: "upload".
 *
 *   (greeted by upload_accept.c) SERVING --serve_link_close--> LEAVING (last words going out) --> freed */
#include "daemon/upload_link_private.h"

#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "crypto/tls.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/message.h"

void serve_release(struct serve_link *link)
{
    if (!link->dead || link->reads + link->hashings + link->openings > 0)
        return;
    link->magic = 0;
    free(link);
}
void serve_link_free(struct serve_link *link)
{
    struct served *f, *next;

    CHECK_OBJECT(link, SERVE_LINK_MAGIC);
    link->dead = true;
    DL_DELETE(link->upload->links, link);
    link->upload->link_count--;
    spent_add(link->upload->spent, link->remote.account, channel_spent(link->channel), clock_now());
    HASH_ITER(hh, link->files, f, next)
        serve_file_free(link, f);
    choker_link_free(link->choke);
    link->choke = NULL;
    timer_free(link->have_timer);
    link->have_timer = NULL;
    channel_free(link->channel);
    link->channel = NULL;
    upload_link_gone(link->upload);
    serve_release(link);
}

struct served *serve_file_of(struct serve_link *link, uint32_t file)
{
    struct served *f;

    HASH_FIND(hh, link->files, &file, sizeof file, f);
    return f;
}

/* --- sending
 * -------------------------------------------------------------------------------------------------
 */

void serve_say(struct serve_link *link, unsigned type, const ProtobufCMessage *message)
{
    channel_send(link->channel, CHANNEL_URGENT, (uint16_t)type, 0, 0, message, NULL, 0);
}

void serve_reject(struct serve_link *link, struct block_run run, Peer__Reason reason, bool hashes)
{
    Peer__Reject message = PEER__REJECT__INIT;

    message.file = run.file;
    message.block = run.first;
    message.count = run.count;
    message.reason = reason;
    message.hashes = hashes;
    serve_say(link, PEER__PEER_TYPE__PEER_REJECT, &message.base);
}

static void say_goodbye(struct serve_link *link, int farewell, const char *why)
{
    Peer__Goodbye bye = PEER__GOODBYE__INIT;
    char text[LIMIT_REASON];

    snprintf(text, sizeof text, "%s", why);
    bye.code = (Peer__Farewell)farewell;
    bye.text = text;
    serve_say(link, PEER__PEER_TYPE__PEER_GOODBYE, &bye.base);
    link->leaving = true;
}

void serve_link_close(struct serve_link *link, int farewell, const char *why)
{
    if (link->leaving)
        return;
    say_goodbye(link, farewell, why);
    channel_finish(link->channel, why);
}

/* --- the channel
 * ---------------------------------------------------------------------------------------------------------
 */

static const char *on_ping(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Ping *m = message_unpack(&arena, &peer__ping__descriptor, bytes, size);

    if (m != NULL) {
        Peer__Pong pong = PEER__PONG__INIT;
        pong.nonce = m->nonce;
        serve_say(link, PEER__PEER_TYPE__PEER_PONG, &pong.base);
    }
    message_done(&arena);
    return m == NULL ? "a malformed Ping" : NULL;
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    (void)arg;
    (void)message;
    if (!(frame->flags & FRAME_MAY_SKIP))
        *fault = "a payload where none belongs";
    return NULL; /* something newer: read and thrown away */
}

static const char *dispatch(struct serve_link *link, const struct frame *frame,
                            const uint8_t *message)
{
    size_t size = frame->message_size;

    switch (frame->type) {
    case PEER__PEER_TYPE__PEER_OPEN:
        return serve_on_open(link, message, size);
    case PEER__PEER_TYPE__PEER_CLOSE:
        return serve_on_close(link, message, size);
    case PEER__PEER_TYPE__PEER_REQUEST:
        return serve_on_request(link, message, size);
    case PEER__PEER_TYPE__PEER_CANCEL:
        return serve_on_cancel(link, message, size);
    case PEER__PEER_TYPE__PEER_HASH_REQUEST:
        return serve_on_hash_request(link, message, size);
    case PEER__PEER_TYPE__PEER_TICKET:
        return serve_on_ticket(link, message, size);
    case PEER__PEER_TYPE__PEER_PING:
        return on_ping(link, message, size);
    case PEER__PEER_TYPE__PEER_PONG:
        return NULL;
    case PEER__PEER_TYPE__PEER_GOODBYE:
        return "the peer said good-bye";
    default:
        return frame->flags & FRAME_MAY_SKIP ? NULL : "a message that a fetcher does not send";
    }
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct serve_link *link = arg;
    const char *fault = dispatch(link, frame, message);

    (void)payload;
    if (fault == NULL)
        return NULL;
    if (frame->type == PEER__PEER_TYPE__PEER_GOODBYE) {
        link->leaving = true;
    } else {
        log_info("%s at %s breaks the protocol: %s", link->remote.account, link->remote.address,
                 fault);
        say_goodbye(link, PEER__FAREWELL__FAREWELL_PROTOCOL, fault);
        link->broke = true;
    }
    return fault;
}

/* Answers, and the heads of blocks. */
static size_t answers(const struct serve_link *link)
{
    return channel_memory(link->channel, CHANNEL_URGENT);
}

static size_t answers_most(const struct serve_link *link)
{
    const struct upload *u = link->upload;

    return channel_share(u->queued.memory, LIMIT_PEER_ANSWERS_POOL, u->link_count,
                         LIMIT_ANSWERS_SHARE, LIMIT_ANSWERS_AHEAD);
}

static void hold_back(struct serve_link *link, bool held)
{
    if (link->held_back == held)
        return;
    link->held_back = held;
    channel_pause(link->channel, held);
    if (held && !timer_pending(link->upload->held))
        timer_set(link->upload->held, UPLOAD_HELD_NS);
}

bool serve_link_held(struct serve_link *link)
{
    if (link->held_back && answers(link) < answers_most(link) / 2)
        hold_back(link, false);
    return link->held_back;
}

static void on_idle(void *arg)
{
    struct serve_link *link = arg;

    if (answers(link) >= answers_most(link))
        hold_back(link, true);
    upload_pump(link->upload);
}

static void on_drained(void *arg)
{
    upload_pump(((struct serve_link *)arg)->upload);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct serve_link *link = arg;

    log_debug("link for %s (%s) has ended: %s", link->remote.account, link->remote.address,
              orderly ? "closed by the peer" : why);
    if (link->broke || channel_is_broken(link->channel)) {
        struct upload *u = link->upload;
        struct remote remote = link->remote;
        serve_link_free(link);
        upload_strike(u, &remote, why);
        return;
    }
    serve_link_free(link);
}

static const struct channel_events events = {
    .frame = on_frame,
    .payload = on_payload,
    .idle = on_idle,
    .drained = on_drained,
    .closed = on_closed,
};

/* --- life
 * ------------------------------------------------------------------------------------------------------------------
 */

/* FNV-1a: who shares it shares turns, no more. */
static uint64_t account_number(const char *account)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    while (*account != '\0')
        hash = (hash ^ (uint8_t)*account++) * UINT64_C(0x100000001b3);
    return hash;
}

/* Who has many links gets no more of this thread for it. */
static void set_budget(struct serve_link *link)
{
    int64_t share = LIMIT_PEER_ACCOUNT_NS / choker_link_siblings(link->choke);

    channel_set_budget(link->channel, share < LIMIT_PEER_INPUT_NS ? share : LIMIT_PEER_INPUT_NS,
                       share < LIMIT_PEER_BURST_NS ? share : LIMIT_PEER_BURST_NS);
}

void serve_link_new(struct upload *u, struct stream *stream, const struct remote *remote,
                    bool answer)
{
    struct serve_link *link = xcalloc(1, sizeof *link);
    Peer__Hello hello = PEER__HELLO__INIT;
    char agent[] = "p2pd " P2P_VERSION;

    link->magic = SERVE_LINK_MAGIC;
    link->upload = u;
    link->remote = *remote;
    link->choke = choker_link_new(u->choker, link, account_number(remote->account));
    link->have_timer = timer_new(u->loop, serve_have_due, link);
    link->channel = channel_new(u->loop, stream, &events, link);
    channel_set_pool(link->channel, &u->queued);
    channel_set_low_mark(link->channel, READ_AHEAD / 2);
    set_budget(link);
    channel_charge(link->channel,
                   spent_take(u->spent, remote->account, LIMIT_PEER_BURST_NS, clock_now()));
    link->taken_at = channel_last_heard(link->channel);
    DL_APPEND(u->links, link);
    u->link_count++;
    hello.version = 1;
    hello.oldest = 1;
    hello.role = PEER__ROLE__ROLE_SERVER;
    hello.agent = agent;
    if (answer)
        serve_say(link, PEER__PEER_TYPE__PEER_HELLO, &hello.base);
    log_debug("serving %s at %s", remote->account, remote->address);
}

/* Whether it has been given bytes for long and took none of them: it may ask and ping for ever, and
 * what is queued for it is memory. */
static bool is_stalled(struct serve_link *link, int64_t now)
{
    uint64_t out = channel_bytes_out(link->channel);
    size_t queued =
        channel_queued(link->channel, CHANNEL_URGENT) + channel_queued(link->channel, CHANNEL_BULK);

    if (out != link->taken || queued == 0) {
        link->taken = out;
        link->taken_at = now;
    }
    return now - link->taken_at > LIMIT_STALL_NS;
}

static uint64_t smooth(uint64_t rate, uint64_t bytes)
{
    return (rate * 3 + bytes) / 4;
}

void serve_link_tick(struct serve_link *link, int64_t now)
{
    struct served *f, *next;

    link->rate = smooth(link->rate, link->sent - link->rate_sent);
    link->rate_sent = link->sent;
    HASH_ITER(hh, link->files, f, next) {
        f->rate = smooth(f->rate, f->sent - f->rate_sent);
        f->rate_sent = f->sent;
    }
    serve_rights_tick(link);
    set_budget(link);
    int64_t silent = now - channel_last_heard(link->channel);
    if (clock_wall() / NS_PER_S > link->remote.valid_until + LIMIT_CERTIFICATE_GRACE_S) {
        /* A revocation may have been missed; whoever is still a member comes again with a new one. */
        serve_link_close(link, PEER__FAREWELL__FAREWELL_IDLE, "the certificate has ended");
    } else if (is_stalled(link, now)) {
        serve_link_close(link, PEER__FAREWELL__FAREWELL_IDLE, "it does not read what it asked for");
    } else if (silent > LIMIT_PEER_IDLE_NS) {
        serve_link_close(link, PEER__FAREWELL__FAREWELL_IDLE, "idle");
    } else if (silent > LIMIT_PEER_IDLE_NS / 3 && !link->leaving &&
               now - link->pinged > LIMIT_PEER_IDLE_NS / 3) {
        Peer__Ping ping = PEER__PING__INIT;
        link->pinged = now;
        serve_say(link, PEER__PEER_TYPE__PEER_PING, &ping.base);
    }
}

const struct remote *serve_link_remote(const struct serve_link *link)
{
    return &link->remote;
}

struct serve_link *serve_link_next(const struct serve_link *link)
{
    return link->next;
}

void serve_link_status(const struct serve_link *link, struct link_status *status)
{
    memset(status, 0, sizeof *status);
    memcpy(status->account, link->remote.account, sizeof status->account);
    memcpy(status->device, link->remote.device, sizeof status->device);
    memcpy(status->address, link->remote.address, sizeof status->address);
    status->rate = link->rate;
    status->total = link->sent;
    status->rtt_us = (uint64_t)(tls_rtt(channel_stream(link->channel)) / NS_PER_US);
    status->files = HASH_COUNT(link->files);
    status->queued = choker_queued(link->choke);
    memcpy(status->state, "connected", sizeof "connected");
}

void serve_link_files(const struct serve_link *link,
                      void (*each)(void *arg, const struct content *, uint64_t rate), void *arg)
{
    struct served *f, *next;

    HASH_ITER(hh, link->files, f, next) {
        if (f->content != NULL)
            each(arg, f->content, f->rate);
    }
}
