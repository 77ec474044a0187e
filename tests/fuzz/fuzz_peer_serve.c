/* What a fetcher may send to a link on which we serve (daemon/upload_link.c): files opened and
 * closed, requests, cancels, hash requests, nonsense.
 *
 * The first byte says in what chunks the bytes come; then follow commands of four bytes, made into
 * frames that are mostly right, so that the fuzzer need not learn protobuf first; after a command 0
 * the rest is sent as it is. What must hold: no fault of memory, whatever was asked for is gone when
 * the link is. Workers and store are real; the content is made once. */
#include <event2/event.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/workers.h"
#include "daemon/download.h"
#include "daemon/ingest.h"
#include "daemon/local.h"
#include "daemon/store.h"
#include "daemon/upload_link_private.h"
#include "proto/bans.h"
#include "proto/frame.h"
#include "proto/peer.pb-c.h"
#include "tests/mock_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define CONTENT_SIZE (600000u) /* 37 blocks, 3 pieces */
#define INPUT_MAX    65536u

/* Upload calls these; no link does. */
void download_adopt(struct download *download, struct stream *stream, uint8_t *hello, size_t size)
{
    CHECK(!"a link does not hand over");
}

struct loop *download_loop(struct download *download)
{
    return NULL;
}

void local_upload_status(struct local *local, struct upload_status *status)
{
    upload_status_free(status);
}

static struct daemon d;
static struct upload *upload;
static struct content *content;

static void make_content(void)
{
    int error;
    struct ingest *ingest = ingest_new(d.store, NULL, 0, &error);

    CHECK(ingest != NULL);
    int fd = ingest_dup(ingest);
    uint8_t *data = xcalloc(1, CONTENT_SIZE);
    for (size_t i = 0; i < CONTENT_SIZE; i++)
        data[i] = (uint8_t)(i * 31 + i / 16384);
    CHECK(write(fd, data, CONTENT_SIZE) == (ssize_t)CONTENT_SIZE);
    close(fd);
    free(data);
    ingest_wrote(ingest, 0, CONTENT_SIZE);
    content = ingest_seal(ingest, CONTENT_SIZE, &error);
    CHECK(content != NULL);
    ingest_drop(ingest);
}

static char home[] = "/tmp/fuzz-serve-XXXXXX";

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *where)
{
    (void)remove(path);
    return 0;
}

static void remove_home(void)
{
    (void)nftw(home, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void set_up(void)
{
    static char listen[] = "127.0.0.1:0";
    const char *fault = "";

    log_init("fuzz", LOG_LEVEL_ERROR, false);
    CHECK(mkdtemp(home) != NULL);
    CHECK(atexit(remove_home) == 0);
    d.home = home;
    d.settings.listen = listen;
    char *path = xasprintf("%s/store", home);
    d.store = store_open(path, &fault);
    free(path);
    CHECK(d.store != NULL);
    d.bans = bans_new();
    d.workers = workers_new("worker", 1);
    upload = upload_new(&d, &fault);
    CHECK(upload != NULL);
    make_content();
}

static size_t put(uint8_t *to, unsigned type, const ProtobufCMessage *message)
{
    struct frame frame = {.type = (uint16_t)type};

    frame.message_size = (uint32_t)protobuf_c_message_pack(message, to + FRAME_HEADER_SIZE);
    frame_encode(to, &frame);
    return FRAME_HEADER_SIZE + frame.message_size;
}

/* One command as a frame; at most 128 bytes. */
static size_t command(uint8_t *to, const uint8_t c[4])
{
    Peer__Open open = PEER__OPEN__INIT;
    Peer__Close close_it = PEER__CLOSE__INIT;
    Peer__Request request = PEER__REQUEST__INIT;
    Peer__Cancel cancel = PEER__CANCEL__INIT;
    Peer__HashRequest hashes = PEER__HASH_REQUEST__INIT;
    Peer__Ping ping = PEER__PING__INIT;
    uint8_t root[HASH_SIZE];

    switch (c[0] % 7) {
    case 1:
        memcpy(root, content_root(content), HASH_SIZE);
        root[0] ^= c[2];
        open.file = c[1] % 8;
        open.root.data = root;
        open.root.len = c[3] & 0x40 ? c[1] % HASH_SIZE : HASH_SIZE;
        open.size = CONTENT_SIZE + (c[3] & 1);
        return put(to, PEER__PEER_TYPE__PEER_OPEN, &open.base);
    case 2:
        close_it.file = c[1] % 8;
        return put(to, PEER__PEER_TYPE__PEER_CLOSE, &close_it.base);
    case 3:
        request.file = c[1] % 8;
        request.block = c[2] % 40;
        request.count = c[3] % 40;
        request.urgency = (Peer__Urgency)(c[1] >> 6);
        return put(to, PEER__PEER_TYPE__PEER_REQUEST, &request.base);
    case 4:
        cancel.file = c[1] % 8;
        cancel.block = c[2];
        cancel.count = c[3];
        return put(to, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base);
    case 5:
        hashes.file = c[1] % 8;
        hashes.layer = (Peer__Layer)(c[1] >> 6);
        hashes.first = c[2] % 40;
        hashes.count = c[3] % 20;
        return put(to, PEER__PEER_TYPE__PEER_HASH_REQUEST, &hashes.base);
    default:
        ping.nonce = c[1];
        return put(to, PEER__PEER_TYPE__PEER_PING, &ping.base);
    }
}

static void turn(struct mock_stream *mock)
{
    event_base_loop(loop_base(upload->loop), EVLOOP_NONBLOCK);
    if (upload->links == NULL)
        return;
    mock->events->readable(mock->arg);
    event_base_loop(loop_base(upload->loop), EVLOOP_NONBLOCK);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const size_t chunks[] = {0, 1, 40, 300};
    static uint8_t input[INPUT_MAX];
    const struct remote remote = {.account = "fuzz", .valid_until = INT64_MAX};
    struct mock_stream mock;
    size_t used = 0, at = 1;

    if (upload == NULL)
        set_up();
    if (size == 0)
        return 0;
    while (at + 4 <= size && bytes[at] != 0 && used + 256 < INPUT_MAX) {
        used += command(input + used, bytes + at);
        at += 4;
    }
    if (at < size && bytes[at] == 0)
        at++;
    size_t rest = size - at < INPUT_MAX - used ? size - at : INPUT_MAX - used;
    memcpy(input + used, bytes + at, rest);

    mock_init(&mock);
    mock.in = input;
    mock.in_size = used + rest;
    mock.chunk = chunks[bytes[0] & 3];
    mock.at_end = (bytes[0] & 4) != 0;
    mock.room = bytes[0] & 8 ? 100000 : SIZE_MAX; /* and no more is read */
    serve_link_new(upload, &mock.stream, &remote, (bytes[0] & 16) != 0);
    /* What a ticket says is its MAC's to prove: this fetcher has shown a good one. */
    upload->has_ticket_key = true;
    upload->links->whole = (struct ticket){.epoch = UINT64_MAX, .end = INT64_MAX};
    for (unsigned i = 0; i < 3 && upload->links != NULL; i++) {
        turn(&mock);
        if (!(bytes[0] & 32)) /* else it ends with jobs under way */
            workers_drain(d.workers);
    }
    if (upload->links != NULL && bytes[0] & 64)
        serve_link_close(upload->links, PEER__FAREWELL__FAREWELL_STOPPING, "enough");
    if (upload->links != NULL)
        turn(&mock);
    if (upload->links != NULL)
        serve_link_free(upload->links);
    workers_drain(d.workers);
    event_base_loop(loop_base(upload->loop), EVLOOP_NONBLOCK);
    CHECK(mock.destroyed && upload->links == NULL && upload->link_count == 0);
    CHECK(upload->watched == NULL);
    return 0;
}
