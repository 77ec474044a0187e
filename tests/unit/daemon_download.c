/* The download thread against scripted servers: real TLS over loopback, a real store, the session and the local sockets
 * played by the test. */
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/stream.h"
#include "base/workers.h"
#include "crypto/identity.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/download.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "proto/bans.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/peer.pb-c.h"
#include "tests/store_help.h"

#define SERVERS  3
#define DAY_S    INT64_C(86400)
#define PATIENCE 60 /* seconds: a busy machine under a sanitizer */

/* --- the swarm's members -------------------------------------------------------------------------------------------- */
static struct key *ca_key, *reader_key, *server_key[SERVERS];
static struct certificate *ca, *reader_certificate, *server_certificate[SERVERS];
static struct workers *workers, *handshakes;

static struct tls_context *context_of(struct key *key, struct certificate *certificate)
{
    const char *fault = NULL;
    struct tls_settings settings = {
        .policy = TLS_PEER,
        .ca = ca,
        .certificate = certificate,
        .key = key,
        .handshake_timeout_ns = LIMIT_HANDSHAKE_NS,
        .notsent_lowat = 32768,
    };
    struct tls_context *context = tls_context_new(&settings, &fault);

    assert_non_null(context);
    return context;
}

static struct certificate *issue(struct key *key, const char *account)
{
    const char *fault = NULL;
    char *csr = csr_create(key, &fault);
    struct certificate *made =
        ca_issue_device(ca, ca_key, csr, strlen(csr), account, DAY_S, &fault);

    free(csr);
    assert_non_null(made);
    return made;
}

/* --- a scripted server ---------------------------------------------------------------------------------------------- */
#define MOST_BLOCKS 8192

struct script {
    struct made *made;
    unsigned count;            /* of contents at `made`; 0: one */
    uint64_t has_from, has_to; /* blocks it really has; to 0: all */
    bool claims_all;           /* whatever it has */
    int64_t wrong;             /* the block that it sends wrong; -1: none */
    int64_t stall_at;          /* the block at which it falls silent for good */
    int64_t vanish_after;      /* blocks after which it closes its links */
    bool refuses;              /* every Open */
    bool wrong_leaves, wrong_layer;
    bool hashes_last; /* blocks before hashes */
    bool no_hashes;   /* never answers a HashRequest */
    bool unasked;     /* sends a block that nobody asked for */
    bool
        rejects_far; /* rejects, at the end of a range that is asked for, a block far behind the file's */
    bool choked;   /* rejects the first requests as choked, then unchokes */
    uint16_t port; /* 0: any */
};

struct server;
struct served {
    struct served *next;
    struct server *server;
    struct channel *channel;
    uint32_t file;
    struct made *opened[1024]; /* by number */
    Peer__HashRequest late_hashes[64];
    unsigned late_count;
};

struct server {
    struct script script;
    struct loop *loop;
    struct tls_context *context;
    struct event *listener;
    int fd;
    uint16_t port;
    uint8_t device[DEVICE_ID_SIZE];
    struct served *links;
    bool stalled;
    /* read by the test */
    atomic_uint accepted, opens, blocks, requests, cancels, demanded;
    atomic_int goodbye;
    atomic_uchar sent[MOST_BLOCKS];
};

static struct server servers[SERVERS];

static void send_message(struct served *link, Peer__PeerType type, const ProtobufCMessage *message,
                         const void *payload, size_t size)
{
    channel_send(link->channel, CHANNEL_BULK, (uint16_t)type, 0, 0, message, payload, size);
}

static bool really_has(const struct script *script, uint64_t block)
{
    return script->has_to == 0 || (block >= script->has_from && block < script->has_to);
}

static void send_block(struct served *link, uint64_t block)
{
    struct server *server = link->server;
    struct script *script = &server->script;
    const struct made *made = link->opened[link->file];
    Peer__Block message = PEER__BLOCK__INIT;
    uint32_t size = geometry_block_size(&made->g, block);
    uint8_t *bytes = xmemdup(made->data + block * BLOCK_SIZE, size);

    if (script->wrong == (int64_t)block)
        bytes[7] ^= 1;
    message.file = link->file;
    message.block = block;
    server->blocks++;
    server->sent[block]++;
    send_message(link, PEER__PEER_TYPE__PEER_BLOCK, &message.base, bytes, size);
    free(bytes);
}

static void send_reject(struct served *link, uint64_t block, uint32_t count, Peer__Reason reason,
                        bool hashes)
{
    Peer__Reject reject = PEER__REJECT__INIT;

    reject.file = link->file;
    reject.block = block;
    reject.count = count;
    reject.reason = reason;
    reject.hashes = hashes;
    send_message(link, PEER__PEER_TYPE__PEER_REJECT, &reject.base, NULL, 0);
}

static void send_hashes(struct served *link, const Peer__HashRequest *request)
{
    const struct script *script = &link->server->script;
    bool layer = request->layer == PEER__LAYER__LAYER_PIECES;
    const struct made *made = link->opened[request->file];
    const uint8_t *from = (layer ? made->layer : made->leaves) + request->first * HASH_SIZE;
    uint8_t *hashes = xmemdup(from, (size_t)request->count * HASH_SIZE);
    Peer__Hashes message = PEER__HASHES__INIT;

    if (layer ? script->wrong_layer : script->wrong_leaves)
        hashes[3] ^= 1;
    message.file = request->file;
    message.layer = request->layer;
    message.first = request->first;
    message.count = request->count;
    send_message(link, PEER__PEER_TYPE__PEER_HASHES, &message.base, hashes,
                 (size_t)request->count * HASH_SIZE);
    free(hashes);
}

static void serve_open(struct served *link, const Peer__Open *open)
{
    const struct script *script = &link->server->script;
    const struct geometry *g;
    Peer__Opened opened = PEER__OPENED__INIT;
    uint8_t map[64] = {0};

    link->server->opens++;
    link->file = open->file;
    for (unsigned i = 0; open->file < 1024 && (i == 0 || i < script->count); i++) {
        if (memcmp(open->root.data, script->made[i].root, HASH_SIZE) == 0)
            link->opened[open->file] = &script->made[i];
    }
    if (script->refuses || open->file >= 1024 || link->opened[open->file] == NULL) {
        send_reject(link, 0, 0, PEER__REASON__REASON_NO_FILE, false);
        return;
    }
    g = &link->opened[open->file]->g;
    opened.file = open->file;
    opened.complete = script->has_to == 0 || script->claims_all;
    for (uint32_t i = 0; i < g->pieces; i++) {
        if (really_has(script, (uint64_t)i * g->piece_blocks))
            bitmap_set(map, i);
    }
    bitmap_to_wire(map, map, bitmap_bytes(g->pieces));
    send_message(link, PEER__PEER_TYPE__PEER_OPENED, &opened.base, map,
                 opened.complete ? 0 : bitmap_bytes(g->pieces));
    if (script->unasked)
        send_block(link, 1);
}

static const char *serve_request(struct served *link, const Peer__Request *request)
{
    struct server *server = link->server;
    struct script *script = &server->script;

    server->requests++;
    link->file = request->file;
    if (request->urgency == PEER__URGENCY__URGENCY_DEMAND)
        server->demanded += request->count;
    if (script->refuses)
        return NULL;
    if (script->choked) {
        Peer__Choke choke = PEER__CHOKE__INIT;
        Peer__Unchoke unchoke = PEER__UNCHOKE__INIT;

        script->choked = false;
        send_message(link, PEER__PEER_TYPE__PEER_CHOKE, &choke.base, NULL, 0);
        send_reject(link, request->block, request->count, PEER__REASON__REASON_CHOKED, false);
        send_message(link, PEER__PEER_TYPE__PEER_UNCHOKE, &unchoke.base, NULL, 0);
        return NULL;
    }
    for (uint64_t block = request->block; block < request->block + request->count; block++) {
        if (script->stall_at == (int64_t)block)
            server->stalled = true;
        if (server->stalled)
            return NULL;
        if (script->vanish_after >= 0 && server->blocks >= script->vanish_after)
            return "the script says so";
        if (really_has(script, block))
            send_block(link, block);
        else
            send_reject(link, block, 1, PEER__REASON__REASON_NO_BLOCK, false);
    }
    if (script->rejects_far)
        send_reject(link, UINT64_C(0xffffffff) * 4, 1, PEER__REASON__REASON_NO_BLOCK, false);
    while (link->late_count > 0)
        send_hashes(link, &link->late_hashes[--link->late_count]);
    return NULL;
}

static const char *serve_frame(void *arg, const struct frame *frame, const uint8_t *bytes,
                               void *payload)
{
    struct served *link = arg;
    struct server *server = link->server;
    size_t size = frame->message_size;
    const char *fault = NULL;

    (void)payload;
    if (frame->type == PEER__PEER_TYPE__PEER_OPEN) {
        Peer__Open *open = peer__open__unpack(NULL, size, bytes);

        serve_open(link, open);
        peer__open__free_unpacked(open, NULL);
    } else if (frame->type == PEER__PEER_TYPE__PEER_REQUEST) {
        Peer__Request *request = peer__request__unpack(NULL, size, bytes);

        fault = serve_request(link, request);
        peer__request__free_unpacked(request, NULL);
    } else if (frame->type == PEER__PEER_TYPE__PEER_HASH_REQUEST) {
        Peer__HashRequest *request = peer__hash_request__unpack(NULL, size, bytes);

        if (server->script.hashes_last && request->layer == PEER__LAYER__LAYER_BLOCKS &&
            link->late_count < 64)
            link->late_hashes[link->late_count++] = *request;
        else if (!server->script.no_hashes && !server->script.refuses && !server->stalled)
            send_hashes(link, request);
        peer__hash_request__free_unpacked(request, NULL);
    } else if (frame->type == PEER__PEER_TYPE__PEER_CANCEL) {
        server->cancels++;
    } else if (frame->type == PEER__PEER_TYPE__PEER_GOODBYE) {
        Peer__Goodbye *bye = peer__goodbye__unpack(NULL, size, bytes);

        server->goodbye = (int)bye->code;
        peer__goodbye__free_unpacked(bye, NULL);
    }
    return fault;
}

static void serve_ready(void *arg)
{
    struct served *link = arg;
    Peer__Hello hello = PEER__HELLO__INIT;

    hello.version = hello.oldest = 1;
    hello.role = PEER__ROLE__ROLE_SERVER;
    send_message(link, PEER__PEER_TYPE__PEER_HELLO, &hello.base, NULL, 0);
}

static void serve_closed(void *arg, bool orderly, const char *why)
{
    struct served *link = arg, **at = &link->server->links;

    (void)orderly;
    (void)why;
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
    channel_free(link->channel);
    free(link);
}

static const struct channel_events serve_events = {
    .ready = serve_ready, .frame = serve_frame, .closed = serve_closed};

static void on_accept(evutil_socket_t fd, short what, void *arg)
{
    struct server *server = arg;
    struct served *link;
    int connection;

    (void)what;
    while ((connection = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        link = xcalloc(1, sizeof *link);
        link->server = server;
        link->next = server->links;
        server->links = link;
        link->channel = channel_new(
            server->loop, tls_accept(server->loop, handshakes, server->context, connection),
            &serve_events, link);
        server->accepted++;
    }
}

static void server_start(struct server *server, unsigned i, struct script script)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(script.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct certificate_subject subject;
    int one = 1;

    memset(server, 0, sizeof *server);
    server->script = script;
    server->loop = loop_new("server");
    server->context = context_of(server_key[i], server_certificate[i]);
    assert_true(certificate_subject(server_certificate[i], &subject));
    memcpy(server->device, subject.device, DEVICE_ID_SIZE);
    server->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(server->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), 0);
    assert_int_equal(bind(server->fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(server->fd, 16), 0);
    assert_int_equal(getsockname(server->fd, (struct sockaddr *)&address, &length), 0);
    server->port = ntohs(address.sin_port);
    server->listener =
        event_new(loop_base(server->loop), server->fd, EV_READ | EV_PERSIST, on_accept, server);
    event_add(server->listener, NULL);
    loop_start(server->loop);
}

static void server_stop(struct server *server)
{
    if (server->loop == NULL)
        return;
    loop_stop(server->loop);
    loop_join(server->loop);
    while (server->links != NULL)
        serve_closed(server->links, true, "");
    workers_drain(handshakes);
    event_free(server->listener);
    close(server->fd);
    loop_free(server->loop);
    tls_context_free(server->context);
    server->loop = NULL;
}

/* --- the daemon around the download thread -------------------------------------------------------------------------- */
struct world {
    char *directory;
    struct daemon daemon;
    struct made made;
    struct content *content;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int answer[4096];  /* by request; 1: none yet */
    struct made *many; /* other contents */
    unsigned left;     /* of them, not complete */
    int all;           /* 1: some are left */
    int complete;      /* 1: not told */
    struct download_status *status;
    bool announces; /* the session answers a want with all servers */
    bool says_complete;
    bool near_only; /* without the address that nobody has */
    unsigned wants, dial_backs;
    uint64_t next_request;
};
static struct world *world;

static Tracker__Peers *peers_of(const uint8_t *root)
{
    Tracker__Peers *peers = malloc(sizeof *peers);

    tracker__peers__init(peers);
    peers->root.data = xmemdup(root, HASH_SIZE);
    peers->root.len = HASH_SIZE;
    peers->peers = malloc(SERVERS * sizeof *peers->peers);
    for (unsigned i = 0; i < SERVERS; i++) {
        Tracker__Peer *peer;

        if (servers[i].loop == NULL)
            continue;
        peer = malloc(sizeof *peer);
        tracker__peer__init(peer);
        peer->account = xasprintf("server%u", i);
        peer->device.data = xmemdup(servers[i].device, DEVICE_ID_SIZE);
        peer->device.len = DEVICE_ID_SIZE;
        peer->addresses = malloc(2 * sizeof *peer->addresses);
        if (!world->near_only)
            peer->addresses[peer->n_addresses++] = xasprintf("192.0.2.1:9");
        peer->addresses[peer->n_addresses++] = xasprintf("127.0.0.1:%u", servers[i].port);
        peer->complete = world->says_complete;
        peers->peers[peers->n_peers++] = peer;
    }
    peers->holders = (uint32_t)peers->n_peers;
    return peers;
}

void session_want(struct session *session, const uint8_t root[HASH_SIZE], uint64_t size)
{
    (void)session;
    assert_true(world->many != NULL || size == world->made.g.size);
    world->wants++;
    if (world->announces)
        download_peers(world->daemon.download, peers_of(root), true);
}

void session_unwant(struct session *session, const uint8_t root[HASH_SIZE])
{
    (void)session;
    (void)root;
}

void session_ask_dial_back(struct session *session, const uint8_t device[16])
{
    (void)session;
    (void)device;
    __atomic_add_fetch(&world->dial_backs, 1, __ATOMIC_RELAXED);
}

void local_demand_done(struct local *local, uint64_t request, int error)
{
    (void)local;
    pthread_mutex_lock(&world->lock);
    assert_int_equal(world->answer[request], 1);
    world->answer[request] = error;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

void local_content_complete(struct local *local, const uint8_t root[HASH_SIZE], int error)
{
    (void)local;
    pthread_mutex_lock(&world->lock);
    if (memcmp(root, world->made.root, HASH_SIZE) == 0)
        world->complete = error;
    else if (--world->left == 0)
        world->all = error;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

void local_download_status(struct local *local, struct download_status *status)
{
    (void)local;
    pthread_mutex_lock(&world->lock);
    world->status = status;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->lock);
}

/* Waits until *value is not 1. */
static int wait_for(const int *value)
{
    struct timespec until;
    int result;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE;
    pthread_mutex_lock(&world->lock);
    while (*value == 1)
        assert_int_equal(pthread_cond_timedwait(&world->changed, &world->lock, &until), 0);
    result = *value;
    pthread_mutex_unlock(&world->lock);
    return result;
}

static struct download_status *status_of(const uint8_t *root)
{
    struct download_status *status;

    download_ask_status(world->daemon.download, root, NULL);
    pthread_mutex_lock(&world->lock);
    while (world->status == NULL)
        pthread_cond_wait(&world->changed, &world->lock);
    status = world->status;
    world->status = NULL;
    pthread_mutex_unlock(&world->lock);
    return status;
}

static struct credentials *reader_credentials(void)
{
    struct credentials *credentials = xcalloc(1, sizeof *credentials);
    struct certificate_subject subject;

    assert_true(certificate_subject(reader_certificate, &subject));
    memcpy(credentials->device, subject.device, DEVICE_ID_SIZE);
    credentials->peer_context = context_of(reader_key, reader_certificate);
    credentials->references = 2; /* the test keeps one */
    return credentials;
}

static struct credentials *credentials;

static void daemon_up(void)
{
    world->daemon.store = help_open(world->directory);
    world->content = help_get(world->daemon.store, &world->made, true);
    world->daemon.bans = bans_new();
    world->daemon.download = download_new(&world->daemon);
    download_start(world->daemon.download);
    credentials = reader_credentials();
    download_credentials(world->daemon.download, credentials);
}

static void daemon_down(void)
{
    download_stop(world->daemon.download);
    workers_drain(handshakes);
    workers_drain(workers);
    download_free(world->daemon.download);
    bans_free(world->daemon.bans);
    content_release(world->content);
    store_close(world->daemon.store);
    tls_context_free(credentials->peer_context);
    free(credentials);
}

static void world_begin(uint64_t size)
{
    world = xcalloc(1, sizeof *world);
    world->directory = help_begin();
    world->made = help_make(size, size);
    world->daemon.workers = workers;
    world->daemon.handshakes = handshakes;
    world->daemon.settings.background = true;
    world->announces = true;
    world->complete = world->all = 1;
    world->next_request = 1;
    for (unsigned i = 0; i < sizeof world->answer / sizeof world->answer[0]; i++)
        world->answer[i] = 1;
    pthread_mutex_init(&world->lock, NULL);
    pthread_cond_init(&world->changed, NULL);
    daemon_up();
}

static void world_end(void)
{
    daemon_down();
    for (unsigned i = 0; i < SERVERS; i++)
        server_stop(&servers[i]);
    help_unmake(&world->made);
    help_end(world->directory);
    free(world);
    world = NULL;
}

/* A server's bad habits, the numbers among them given as N or left 0. */
static struct script scripted(struct script script)
{
    if (script.made == NULL)
        script.made = &world->made;
    script.wrong = script.wrong != 0 ? script.wrong : -1;
    script.stall_at = script.stall_at != 0 ? script.stall_at : -1;
    script.vanish_after = script.vanish_after != 0 ? script.vanish_after : -1;
    return script;
}

static struct script good(void)
{
    return scripted((struct script){0});
}

static uint64_t want(uint64_t handle, uint64_t offset, uint64_t size, int64_t wait)
{
    uint64_t request = world->next_request++;

    download_demand(world->daemon.download, world->content, request, handle, offset, size, wait);
    return request;
}

/* Reads and compares; the answer's error. */
static int read_at(uint64_t handle, uint64_t offset, uint64_t size)
{
    int error = wait_for(&world->answer[want(handle, offset, size, PATIENCE * NS_PER_S)]);
    uint8_t block[BLOCK_SIZE];

    for (uint64_t i = offset / BLOCK_SIZE; error == 0 && i <= (offset + size - 1) / BLOCK_SIZE;
         i++) {
        assert_int_equal(content_get(world->content, i, block), 0);
        assert_memory_equal(block, world->made.data + i * BLOCK_SIZE,
                            geometry_block_size(&world->made.g, i));
    }
    return error;
}

static int get_all(void)
{
    download_get(world->daemon.download, world->content);
    return wait_for(&world->complete);
}

static unsigned doubly_sent(void)
{
    unsigned twice = 0;

    for (uint64_t i = 0; i < world->made.g.blocks; i++) {
        unsigned sent = 0;

        for (unsigned s = 0; s < SERVERS; s++)
            sent += servers[s].loop != NULL ? servers[s].sent[i] : 0;
        if (sent > 1)
            twice += sent - 1;
    }
    return twice;
}

/* --- tests ------------------------------------------------------------------------------------------------------------ */
#define SIZE (9 * 1024 * 1024 + 5 * 16384 + 1234) /* 37 pieces */

static void a_get_fetches_all_of_it_and_each_block_once(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, good());
    assert_int_equal(get_all(), 0);
    assert_true(content_complete(world->content));
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_int_equal(servers[0].blocks, world->made.g.blocks);
    assert_int_equal(doubly_sent(), 0);
    assert_int_equal(servers[0].accepted, 1);
    world_end();
}

static void several_servers_share_the_work(void **state)
{
    world_begin(SIZE);
    for (unsigned i = 0; i < SERVERS; i++)
        server_start(&servers[i], i, scripted((struct script){.has_to = i == 1 ? 128 : 0}));
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_true(doubly_sent() <= 100);
    world_end();
}

static void small_and_odd_sizes_arrive(void **state)
{
    static const uint64_t sizes[] = {1, 16383, 16384, 16385, 262144, 262145, 5000001};

    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        world_begin(sizes[i]);
        server_start(&servers[0], 0, good());
        world->says_complete = i % 2;
        assert_int_equal(get_all(), 0);
        assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
        world_end();
    }
}

static void a_reader_streams_a_file_and_it_is_completed(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, good());
    for (uint64_t at = 0; at < SIZE / 2 + 1048576; at += 131072)
        assert_int_equal(read_at(7, at, 131072), 0);
    for (unsigned i = 0; i < 100 * PATIENCE && !content_complete(world->content); i++)
        usleep(10000);
    assert_true(content_complete(world->content));
    assert_int_equal(doubly_sent(), 0);
    world_end();
}

static void a_probe_costs_what_is_read(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, good());
    assert_int_equal(read_at(7, 0, 65536), 0);
    assert_int_equal(read_at(7, SIZE - 65536, 65536), 0);
    usleep(100000);
    assert_true(servers[0].blocks <= 9);
    assert_int_equal(wait_for(&world->answer[want(7, 0, 65536, 0)]), 0); /* here already */
    download_handle_closed(world->daemon.download, 7);
    world_end();
}

static void a_bad_block_bans_its_sender_and_comes_from_another(void **state)
{
    struct download_status *status;
    bool named = false;

    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.wrong = 100}));
    assert_int_equal(wait_for(&world->answer[want(1, 100 * BLOCK_SIZE, 4096, 2 * NS_PER_S)]), -EIO);
    assert_int_equal(servers[0].goodbye, PEER__FAREWELL__FAREWELL_BANNED);
    server_start(&servers[1], 1, good());
    download_peers(world->daemon.download, peers_of(world->made.root), true);
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_int_equal(servers[0].accepted, 1);
    status = status_of(NULL);
    for (size_t i = 0; i < status->link_count; i++) {
        if (memcmp(status->links[i].device, servers[0].device, DEVICE_ID_SIZE) == 0) {
            named = true;
            assert_non_null(strstr(status->links[i].state, "banned"));
        }
    }
    assert_true(named);
    assert_true(status->wasted >= BLOCK_SIZE);
    download_status_free(status);
    world_end();
}

static void wrong_hashes_ban_their_sender(void **state)
{
    for (unsigned layer = 0; layer < 2; layer++) {
        world_begin(SIZE);
        server_start(
            &servers[0], 0,
            scripted((struct script){.wrong_layer = layer == 1, .wrong_leaves = layer == 0}));
        assert_int_equal(wait_for(&world->answer[want(1, 0, 4096, NS_PER_S)]), -EIO);
        assert_int_equal(servers[0].goodbye, PEER__FAREWELL__FAREWELL_BANNED);
        server_start(&servers[1], 1, good());
        download_peers(world->daemon.download, peers_of(world->made.root), true);
        assert_int_equal(read_at(1, 0, 4096), 0);
        world_end();
    }
}

static void a_server_that_stalls_delays_a_reader_less_than_a_second(void **state)
{
    int64_t begin;

    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.stall_at = 320}));
    assert_int_equal(read_at(1, 0, 4096), 0); /* warm */
    server_start(&servers[1], 1, good());
    download_peers(world->daemon.download, peers_of(world->made.root), true);
    while (servers[1].opens == 0)
        usleep(1000);
    begin = clock_now();
    assert_int_equal(read_at(1, 300 * BLOCK_SIZE, 64 * BLOCK_SIZE), 0);
    print_message("[          ] %lld ms with one of two servers stalled\n",
                  (long long)((clock_now() - begin) / NS_PER_MS));
    assert_true(clock_now() - begin < (getenv("P2P_SLOW") != NULL ? 10 : 1) * NS_PER_S);
    world_end();
}

static void a_server_that_vanishes_is_replaced_at_once(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.vanish_after = 20}));
    server_start(&servers[1], 1, good());
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    world_end();
}

static void a_server_that_lies_about_its_pieces_is_seen_through(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.has_to = 16, .claims_all = true}));
    server_start(&servers[1], 1, good());
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    world_end();
}

static void a_server_that_rejects_what_no_file_has_is_left(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.has_to = 64, .rejects_far = true}));
    server_start(&servers[1], 1, good());
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_true(servers[0].requests > 0);
    world_end();
}

static void a_server_that_refuses_is_not_asked_over_and_over(void **state)
{
    world_begin(SIZE);
    world->says_complete = true;
    server_start(&servers[0], 0, scripted((struct script){.refuses = true}));
    assert_int_equal(wait_for(&world->answer[want(1, 0, 4096, NS_PER_S)]), -EIO);
    assert_int_equal(servers[0].opens, 1);
    world_end();
}

static void hashes_behind_their_blocks_are_waited_for(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.hashes_last = true}));
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_int_equal(doubly_sent(), 0);
    world_end();
}

static void hashes_that_never_come_are_asked_of_another(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.no_hashes = true}));
    server_start(&servers[1], 1, good());
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    world_end();
}

static void an_unasked_block_ends_the_link(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.unasked = true}));
    server_start(&servers[1], 1, good());
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    world_end();
}

static void a_choked_link_goes_on_when_it_is_unchoked(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.choked = true}));
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    world_end();
}

static void a_restart_goes_on_where_it_was(void **state)
{
    uint64_t before;

    world_begin(SIZE);
    server_start(&servers[0], 0, scripted((struct script){.has_to = 320}));
    assert_int_equal(read_at(1, 0, 100 * BLOCK_SIZE), 0);
    download_handle_closed(world->daemon.download, 1);
    before = content_present_blocks(world->content);
    assert_true(before >= 100);
    daemon_down();
    world->daemon.download = NULL;
    server_stop(&servers[0]);
    server_start(&servers[0], 0, good());
    daemon_up();
    assert_true(content_present_blocks(world->content) >= before);
    before = content_present_blocks(world->content);
    assert_int_equal(get_all(), 0);
    assert_int_equal(help_verify(world->content, &world->made), world->made.g.blocks);
    assert_int_equal(servers[0].blocks, world->made.g.blocks - before);
    world_end();
}

static void demands_end_when_readers_do(void **state)
{
    uint64_t gone, late;

    world_begin(SIZE);
    world->announces = false;
    gone = want(3, 0, 4096, PATIENCE * NS_PER_S);
    download_undemand(world->daemon.download, gone);
    want(4, 0, 4096, PATIENCE * NS_PER_S);
    download_handle_closed(world->daemon.download, 4);
    late = want(5, 0, 4096, NS_PER_S / 20);
    assert_int_equal(wait_for(&world->answer[late]), -EIO);
    assert_int_equal(world->answer[gone], 1);
    late = want(5, 0, 4096, PATIENCE * NS_PER_S);
    daemon_down();
    assert_int_equal(world->answer[late], -ESHUTDOWN);
    daemon_up();
    world_end();
}

static void who_cannot_be_dialled_is_asked_to_dial(void **state)
{
    world_begin(SIZE);
    server_start(&servers[0], 0, good());
    close(servers[0].fd); /* nobody listens there any more */
    servers[0].fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(wait_for(&world->answer[want(1, 0, 4096, 2 * NS_PER_S)]), -EIO);
    world_end();
}

/* All is wanted of one server that refuses: three rounds of attempts have failed, and the next would come in 3 s or later. */
static uint16_t be_refused(void)
{
    const struct timespec moment = {.tv_nsec = 10 * NS_PER_MS};

    world->announces = false;
    world->near_only = true;
    server_start(&servers[0], 0, good());
    uint16_t port = servers[0].port;
    Tracker__Peers *peers = peers_of(world->made.root);
    server_stop(&servers[0]);
    download_get(world->daemon.download, world->content);
    download_peers(world->daemon.download, peers, true);
    while (__atomic_load_n(&world->dial_backs, __ATOMIC_RELAXED) < 3)
        nanosleep(&moment, NULL);
    return port;
}

static void a_reader_does_not_wait_for_a_pause_between_dials(void **state)
{
    world_begin(SIZE);
    uint16_t port = be_refused();
    server_start(&servers[0], 0, scripted((struct script){.port = port}));
    assert_int_equal(wait_for(&world->answer[want(1, 0, 4096, 5 * NS_PER_S / 2)]), 0);
    world_end();
}

static void a_new_address_is_dialled_at_once(void **state)
{
    world_begin(SIZE);
    be_refused();
    int64_t began = clock_now();
    server_start(&servers[0], 0, good());
    download_peers(world->daemon.download, peers_of(world->made.root), false);
    assert_int_equal(wait_for(&world->complete), 0);
    assert_true(clock_now() - began < 5 * NS_PER_S / 2);
    world_end();
}

static void a_rate_limit_is_obeyed(void **state)
{
    int64_t begin;
    double rate;

    world_begin(SIZE);
    __atomic_store_n(&world->daemon.settings.rate_down, 4 << 20, __ATOMIC_RELAXED);
    server_start(&servers[0], 0, good());
    begin = clock_now();
    assert_int_equal(get_all(), 0);
    rate = (double)SIZE / ((double)(clock_now() - begin) / 1e9);
    print_message("[          ] %.2f MiB/s with a limit of 4\n", rate / 1048576);
    assert_true(rate < 4.6 * 1048576);
    world_end();
}

static void more_files_than_are_open_at_once_all_arrive(void **state)
{
    enum { MANY = 600 };
    struct content *contents[MANY];

    world_begin(5000);
    world->many = xcalloc(MANY, sizeof *world->many);
    for (unsigned i = 0; i < MANY; i++) {
        world->many[i] = help_make(1 + 37 * i, 1000 + i);
        contents[i] = help_get(world->daemon.store, &world->many[i], true);
    }
    world->left = MANY;
    server_start(&servers[0], 0, scripted((struct script){.made = world->many, .count = MANY}));
    for (unsigned i = 0; i < MANY; i++)
        download_get(world->daemon.download, contents[i]);
    assert_int_equal(wait_for(&world->all), 0);
    assert_int_equal(servers[0].accepted, 1);
    for (unsigned i = 0; i < MANY; i++) {
        assert_int_equal(help_verify(contents[i], &world->many[i]), world->many[i].g.blocks);
        content_release(contents[i]);
        help_unmake(&world->many[i]);
    }
    free(world->many);
    world_end();
}

static void a_warm_read_takes_one_round_trip(void **state)
{
    int64_t took[200];
    uint64_t seed = 99;
    unsigned count = 0;

    world_begin(64 << 20);
    server_start(&servers[0], 0, good());
    assert_int_equal(read_at(0, 0, 4096), 0);
    while (count < 200) {
        uint64_t offset = help_random(&seed) % (64 << 20) / 4096 * 4096;
        int64_t begin;

        if (bitmap_test(content_present(world->content), offset / BLOCK_SIZE))
            continue;
        begin = clock_now();
        assert_int_equal(wait_for(&world->answer[want(0, offset, 4096, PATIENCE * NS_PER_S)]), 0);
        took[count++] = clock_now() - begin;
    }
    for (unsigned i = 1; i < count; i++) {
        for (unsigned j = i; j > 0 && took[j] < took[j - 1]; j--) {
            int64_t swap = took[j];

            took[j] = took[j - 1];
            took[j - 1] = swap;
        }
    }
    print_message("[          ] absent 4 KiB, warm: p50 %lld us, p95 %lld us\n",
                  (long long)(took[count / 2] / 1000), (long long)(took[count * 95 / 100] / 1000));
    assert_int_equal(doubly_sent(), 0);
    world_end();
}

static void a_stream_is_fast(void **state)
{
    const uint64_t size = 128 << 20;
    int64_t begin;

    world_begin(size);
    server_start(&servers[0], 0, good());
    begin = clock_now();
    for (uint64_t at = 0; at < size; at += 1 << 20)
        assert_int_equal(wait_for(&world->answer[want(9, at, 1 << 20, PATIENCE * NS_PER_S)]), 0);
    print_message("[          ] streamed at %.0f MB/s\n",
                  (double)size / ((double)(clock_now() - begin) / 1e3));
    assert_true(doubly_sent() <=
                128); /* of 8192: on a busy machine some are late, and asked for again */
    world_end();
}

static int set_up(void **state)
{
    const char *fault = NULL;

    ca_key = key_generate(&fault);
    reader_key = key_generate(&fault);
    ca = ca_create(ca_key, "lab", &fault);
    reader_certificate = issue(reader_key, "reader");
    for (unsigned i = 0; i < SERVERS; i++) {
        char name[16];

        server_key[i] = key_generate(&fault);
        snprintf(name, sizeof name, "server%u", i);
        server_certificate[i] = issue(server_key[i], name);
    }
    workers = workers_new("worker", 2);
    handshakes = workers_new("handshake", 2);
    return ca != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    workers_free(workers);
    workers_free(handshakes);
    for (unsigned i = 0; i < SERVERS; i++) {
        certificate_free(server_certificate[i]);
        key_free(server_key[i]);
    }
    certificate_free(reader_certificate);
    key_free(reader_key);
    certificate_free(ca);
    key_free(ca_key);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_get_fetches_all_of_it_and_each_block_once),
        cmocka_unit_test(several_servers_share_the_work),
        cmocka_unit_test(small_and_odd_sizes_arrive),
        cmocka_unit_test(a_reader_streams_a_file_and_it_is_completed),
        cmocka_unit_test(a_probe_costs_what_is_read),
        cmocka_unit_test(a_bad_block_bans_its_sender_and_comes_from_another),
        cmocka_unit_test(wrong_hashes_ban_their_sender),
        cmocka_unit_test(a_server_that_stalls_delays_a_reader_less_than_a_second),
        cmocka_unit_test(a_server_that_vanishes_is_replaced_at_once),
        cmocka_unit_test(a_server_that_lies_about_its_pieces_is_seen_through),
        cmocka_unit_test(a_server_that_rejects_what_no_file_has_is_left),
        cmocka_unit_test(a_server_that_refuses_is_not_asked_over_and_over),
        cmocka_unit_test(hashes_behind_their_blocks_are_waited_for),
        cmocka_unit_test(hashes_that_never_come_are_asked_of_another),
        cmocka_unit_test(an_unasked_block_ends_the_link),
        cmocka_unit_test(a_choked_link_goes_on_when_it_is_unchoked),
        cmocka_unit_test(a_restart_goes_on_where_it_was),
        cmocka_unit_test(demands_end_when_readers_do),
        cmocka_unit_test(who_cannot_be_dialled_is_asked_to_dial),
        cmocka_unit_test(a_reader_does_not_wait_for_a_pause_between_dials),
        cmocka_unit_test(a_new_address_is_dialled_at_once),
        cmocka_unit_test(a_rate_limit_is_obeyed),
        cmocka_unit_test(more_files_than_are_open_at_once_all_arrive),
        cmocka_unit_test(a_warm_read_takes_one_round_trip),
        cmocka_unit_test(a_stream_is_fast),
    };

    log_init("test", LOG_LEVEL_ERROR, false);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
