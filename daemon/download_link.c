/* One link on which we fetch: the fetching end of the peer protocol.
 *
 * Owns the channel, the numbers of the files that are open on it, the request that is being gathered. Leaves what to ask to
 * the picker, what comes in to download_server.c, reconnecting to download_peers.c.
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
#include "daemon/revocations.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "base/swarm_url.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/store.h"
#include "proto/channel.h"

#define TELL_EVERY_NS (600 * NS_PER_S) /* the same reason of the same device */
#define LINE_NEWS     8                /* so much of it must have changed */
#define OPEN_BACKGROUND                                                                            \
    256 /* files without a reader open at once: each is looked at when there is room */
#define READER_NEAR                                                                                \
    (5 * NS_PER_S)           /* so long after a read the link is kept short for the next one */
#define HUNGRY_SPAN NS_PER_S /* so long after a reader waited its read-ahead fills the link */

void link_say(struct link *link, Peer__PeerType type, const ProtobufCMessage *message)
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

/* What our uplink carries, if that is news there; else 0. */
static uint64_t line_news(struct link *link)
{
    uint64_t line = __atomic_load_n(&link->download->daemon->line_up, __ATOMIC_RELAXED);

    if (line > link->told_line - link->told_line / LINE_NEWS &&
        line < link->told_line + link->told_line / LINE_NEWS)
        return 0;
    link->told_line = line;
    return line;
}

/* Sends the run that was gathered. */
static void run_send(struct link *link)
{
    struct run *run = &link->run;

    if (run->fetch == NULL)
        return;
    if (run->kind != RUN_REQUEST) {
        Peer__Cancel cancel = PEER__CANCEL__INIT;

        cancel.file = run->fetch->number;
        cancel.block = run->first;
        cancel.count = run->count;
        cancel.tell = run->kind == RUN_WITHDRAW;
        link_say(link, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base);
    } else {
        Peer__Request request = PEER__REQUEST__INIT;

        request.file = run->fetch->number;
        request.block = run->first;
        request.count = run->count;
        request.urgency = (Peer__Urgency)run->class;
        request.passes_on = line_news(link);
        link_say(link, PEER__PEER_TYPE__PEER_REQUEST, &request.base);
    }
    run->fetch = NULL;
}

/* Adds a block to the run, sending what doesn't fit in front of it. */
static void run_add(struct fetch *fetch, uint64_t block, enum picker_class class,
                    enum run_kind kind)
{
    struct link *link = fetch->link;
    struct run *run = &link->run;

    if (run->fetch == fetch && run->kind == kind && run->class == class &&
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
    *run = (struct run){.fetch = fetch, .first = block, .count = 1, .class = class, .kind = kind};
    link_dirty(link);
}

bool fetch_has_piece(const struct fetch *fetch, uint32_t piece)
{
    const struct file *file = fetch->file;
    uint32_t ratio = parts_ratio(file->geometry, &file->parts);

    for (uint32_t i = piece * ratio; i < (piece + 1) * ratio && i < file->parts.pieces; i++) {
        if (picker_source_has(fetch->source, i))
            return true;
    }
    return false;
}

static void note_reader(struct fetch *fetch, enum picker_class class)
{
    if (class == PICKER_BACKGROUND)
        return;
    fetch->link->last_demand = clock_now();
    if (class == PICKER_DEMAND)
        fetch->file->last_wait = fetch->link->last_demand;
}

void fetch_ask(struct fetch *fetch, uint64_t block, enum picker_class class)
{
    hashes_need(fetch->file, (uint32_t)(block / fetch->file->geometry->piece_blocks), fetch);
    note_reader(fetch, class);
    run_add(fetch, block, class, RUN_REQUEST);
}

void fetch_raise(struct fetch *fetch, uint64_t block)
{
    note_reader(fetch, PICKER_DEMAND);
    run_add(fetch, block, PICKER_DEMAND, RUN_REQUEST);
}

void fetch_cancel(struct fetch *fetch, uint64_t block)
{
    run_add(fetch, block, PICKER_BACKGROUND, RUN_CANCEL);
}

void fetch_withdraw(struct fetch *fetch, uint64_t block)
{
    run_add(fetch, block, PICKER_BACKGROUND, RUN_WITHDRAW);
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
    link_say(fetch->link, PEER__PEER_TYPE__PEER_HASH_REQUEST, &request.base);
}

void link_flush(struct link *link)
{
    run_send(link);
}

/* Whether a reader of the file waited just now: who is faster than the network needs full windows, and is hardly about to seek. */
static bool reader_hungry(const struct file *file, int64_t now)
{
    return now - file->last_wait < HUNGRY_SPAN;
}

static void fill_class(struct link *link, enum picker_class class, int64_t now)
{
    uint32_t files = link->fetch_count;
    struct fetch *fetch = TAILQ_FIRST(&link->fetches);

    while (files-- > 0 && fetch != NULL) {
        struct fetch *next = TAILQ_NEXT(fetch, of_link);
        bool keep_short = class == PICKER_BACKGROUND ? link_reader_near(link, now)
                                                     : !reader_hungry(fetch->file, now);
        uint32_t room = pipeline_room(&link->pipe, now, keep_short);
        uint32_t own = fetch->refused ? 0 : file_allowance(fetch->file, now);

        if (room > own)
            room = own;
        if (room > 0 && picker_fill(fetch->source, class, room, now) > 0) {
            /* the next time the others come first */
            TAILQ_REMOVE(&link->fetches, fetch, of_link);
            TAILQ_INSERT_TAIL(&link->fetches, fetch, of_link);
        }
        fetch = next;
    }
}

bool link_reader_near(const struct link *link, int64_t now)
{
    return link->pipe.urgent > 0 || now - link->last_demand < READER_NEAR;
}

void link_fill(struct link *link, int64_t now)
{
    if (link->state != LINK_UP || link->choked || link->fetch_count == 0 ||
        download_allowance(link->download, now) == 0 || pipeline_room(&link->pipe, now, false) == 0)
        return;
    fill_class(link, PICKER_PREFETCH, now);
    fill_class(link, PICKER_BACKGROUND, now);
}

/* --- tickets ---------------------------------------------------------------------------------------------------- */
/* A ticket that ends hardly later than the one shown is not worth a message. */
#define NEWER_S 30

void link_show_whole(struct link *link)
{
    Peer__Ticket message = PEER__TICKET__INIT;
    struct ticket ticket;

    if (link->state != LINK_UP || !link->device->has_whole)
        return;
    ticket_read(link->device->whole, &ticket);
    if (ticket.epoch <= link->shown.epoch && ticket.end < link->shown.end + NEWER_S)
        return;
    link->shown = ticket;
    run_send(link);
    message.whole = true;
    message.ticket.data = link->device->whole;
    message.ticket.len = TICKET_SIZE;
    link_say(link, PEER__PEER_TYPE__PEER_TICKET, &message.base);
}

void fetch_show_ticket(struct fetch *fetch, const uint8_t ticket[TICKET_SIZE])
{
    Peer__Ticket message = PEER__TICKET__INIT;
    uint8_t copy[TICKET_SIZE];

    if (fetch->link->state != LINK_UP || fetch->refused)
        return;
    run_send(fetch->link);
    memcpy(copy, ticket, sizeof(copy));
    message.file = fetch->number;
    message.ticket.data = copy;
    message.ticket.len = sizeof(copy);
    link_say(fetch->link, PEER__PEER_TYPE__PEER_TICKET, &message.base);
}

/* --- files on the link ------------------------------------------------------------------------------------------ */
struct fetch *link_open(struct link *link, struct file *file)
{
    struct fetch *fetch;
    struct holding *holding;
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
    link_show_whole(link);
    LIST_FOREACH(holding, &file->holdings, of_file)
    {
        if (holding->device == link->device && holding->has_ticket && !link->device->has_whole) {
            open.ticket.data = holding->ticket;
            open.ticket.len = TICKET_SIZE;
        }
    }
    open.file = fetch->number;
    open.root.data = file->root;
    open.root.len = HASH_SIZE;
    open.size = file->geometry->size;
    link_say(link, PEER__PEER_TYPE__PEER_OPEN, &open.base);
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
        link_say(link, PEER__PEER_TYPE__PEER_CLOSE, &message.base);
    }
    fetch_free(fetch);
}

/* --- the channel --------------------------------------------------------------------------------------------------- */
static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct link *link = arg;

    CHECK_OBJECT(link, LINK_MAGIC);
    return link->state == LINK_UP ? link_payload(link, frame, message, fault) : NULL;
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct link *link = arg;
    const char *fault;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (link->state != LINK_UP)
        return NULL;
    fault = link_message(link, frame, message);
    free(link->in_bytes);
    link->in_bytes = NULL;
    link->broke = fault != NULL && frame->type != PEER__PEER_TYPE__PEER_GOODBYE;
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
    link_say(link, PEER__PEER_TYPE__PEER_HELLO, &hello.base);
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
    if (revocations_void(download->daemon->revocations, &subject)) {
        link_end(link, PEER__FAREWELL__FAREWELL_REVOKED, "its certificate has been revoked");
        download_settle(download);
        return;
    }
    if (device_is_banned(link->device)) {
        link_end(link, PEER__FAREWELL__FAREWELL_BANNED, link->device->ban);
        download_settle(download);
        return;
    }
    go_up(link);
    snprintf(link->device->account, sizeof(link->device->account), "%s", subject.account);
    device_attempt_ended(link->device, link);
    download_settle(download);
}

static void broke_the_rules(struct link *link, const char *what)
{
    struct download *download = link->download;
    uint8_t id[DEVICE_ID_SIZE];
    char account[sizeof(link->device->account)];

    memcpy(id, link->device->id, sizeof(id));
    memcpy(account, link->device->account, sizeof(account));
    link_free(link);
    device_strike(download, id, account, what);
}

/* A device that refuses us (a clock is wrong, a certificate has ended) is dialled again and again: that is said now and
 * then. */
static bool is_news(const struct link *link, const char *why)
{
    struct device *device = link->device;
    int64_t now = clock_now();

    if (link->greeted)
        return true;
    if (device->told_at != 0 && now - device->told_at < TELL_EVERY_NS &&
        strncmp(device->told, why, sizeof(device->told) - 1) == 0)
        return false;
    snprintf(device->told, sizeof(device->told), "%s", why);
    device->told_at = now;
    return true;
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct link *link = arg;
    struct download *download = link->download;

    CHECK_OBJECT(link, LINK_MAGIC);
    if (link->state == LINK_LEAVING)
        log_debug("a link to %s is closed", link->address);
    else if (link->state == LINK_UP && is_news(link, why))
        log_info("the link to %s at %s has ended: %s", link->device->account, link->address, why);
    else
        log_debug("dialling %s: %s", link->address, why);
    if (link->state == LINK_UP && (link->broke || channel_is_broken(link->channel)))
        broke_the_rules(link, why);
    else
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
    if (device_is_banned(device) ||
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
    if (link_hello(link, hello, size) != NULL) {
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
    link_payload_drop(link);
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
    link_say(link, PEER__PEER_TYPE__PEER_GOODBYE, &bye.base);
    channel_pause(link->channel, false);
    channel_finish(link->channel, why);
}

static void reopen_busy(struct link *link, int64_t now)
{
    struct fetch *fetch, *next;

    for (fetch = TAILQ_FIRST(&link->fetches); fetch != NULL; fetch = next) {
        next = TAILQ_NEXT(fetch, of_link);
        if (fetch->later_at != 0 && now >= fetch->later_at) {
            fetch_again(fetch); /* it may be gone now */
            continue;
        }
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
        link_say(link, PEER__PEER_TYPE__PEER_PING, &ping.base);
    }
    pipeline_round_trip(&link->pipe, now, tls_rtt(channel_stream(link->channel)));
    reopen_busy(link, now);
}
