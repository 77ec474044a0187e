/* The fetching end of the peer protocol against bytes of a server: download_link.c and all that stands on it, with a
 * store, a session and workers that are played here.
 *
 * The first byte chooses the file, the second how the server came to be known, the rest is what it sends after its Hello.
 * What must hold: nothing is left behind, a block is taken only if it was asked for, and a content is complete only if
 * every block was put. */
#include <errno.h>
#include <event2/event.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "crypto/tls.h"
#include "daemon/credentials.h"
#include "daemon/download_private.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/store.h"
#include "proto/bans.h"
#include "tests/mock_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const uint64_t sizes[] = {100, 16384 + 7, 262144 + 5, 3 * 262144 + 16384 + 3};
static const uint8_t server_id[DEVICE_ID_SIZE] = {7};
static const uint8_t root[HASH_SIZE] = {1, 2, 3};
static struct daemon owner;

/* --- the store ---- */
struct content {
    struct geometry geometry;
    int references;
    bool layer;
    uint8_t leaves[8], present[16];
    uint64_t put;
};
static struct content content;

struct content *content_share(struct content *c)
{
    c->references++;
    return c;
}

void content_release(struct content *c)
{
    if (c != NULL)
        c->references--;
}

const struct geometry *content_geometry(const struct content *c)
{
    return &c->geometry;
}

const uint8_t *content_root(const struct content *c)
{
    return root;
}

const uint8_t *content_present(const struct content *c)
{
    return c->present;
}

bool content_complete(const struct content *c)
{
    return bitmap_all(c->present, 0, c->geometry.blocks);
}

bool content_has_piece_layer(const struct content *c)
{
    return c->layer;
}

bool content_has_leaves(const struct content *c, uint32_t piece)
{
    return bitmap_test(c->leaves, piece);
}

/* A hash that begins with 0xee is wrong, and so is such a block. */
int content_set_piece_layer(struct content *c, const uint8_t *hashes)
{
    if (hashes[0] == 0xee)
        return -EBADMSG;
    c->layer = true;
    return 0;
}

int content_set_leaves(struct content *c, uint32_t piece, const uint8_t *hashes)
{
    CHECK(piece < c->geometry.pieces);
    if (!c->layer)
        return -ENODATA;
    if (hashes[0] == 0xee)
        return -EBADMSG;
    bitmap_set(c->leaves, piece);
    return 0;
}

void content_check(struct content *c, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                   int *verdicts)
{
    CHECK(count > 0 && first + count <= c->geometry.blocks);
    CHECK(bitmap_test(c->leaves, first / c->geometry.piece_blocks));
    for (uint32_t i = 0; i < count; i++) {
        CHECK(!bitmap_test(c->present, first + i));
        verdicts[i] = blocks[i][0] == 0xee ? -EBADMSG : 0;
    }
}

int content_write(struct content *c, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                  int *verdicts)
{
    for (uint32_t i = 0; i < count; i++) {
        if (verdicts[i] == 0 && blocks[i][0] == 0xef)
            verdicts[i] = -ENOSPC;
        if (verdicts[i] == 0) {
            bitmap_set(c->present, first + i);
            c->put++;
        }
    }
    return 0;
}

/* Each piece's in one of the two ways. */
bool content_set_leaves_now(struct content *c, uint32_t piece, const uint8_t *hashes, int *result)
{
    if (piece % 2 == 0)
        return false;
    *result = content_set_leaves(c, piece, hashes);
    return true;
}

bool content_put_now(struct content *c, uint64_t first, uint32_t count,
                     const uint8_t *const *blocks, int *verdicts)
{
    if (count > CONTENT_NOW_BLOCKS || first / c->geometry.piece_blocks % 2 == 0)
        return false;
    content_check(c, first, count, blocks, verdicts);
    content_write(c, first, count, blocks, verdicts);
    return true;
}

void store_space(struct store *store, uint64_t *held, uint64_t *free_bytes, uint64_t *total)
{
    *held = 0;
    *free_bytes = *total = UINT64_C(1) << 40;
}

/* --- threads and secrets ---- */
void workers_post(struct workers *workers, struct job *job, bool urgent)
{
    job->run(job); /* its answer is mail */
}

void random_bytes(void *to, size_t size)
{
    memset(to, 5, size);
}

bool tls_peer(const struct stream *stream, struct certificate_subject *out)
{
    memset(out, 0, sizeof *out);
    out->role = CERTIFICATE_DEVICE;
    memcpy(out->device, server_id, sizeof server_id);
    snprintf(out->account, sizeof out->account, "server");
    return true;
}

void tls_comes_bulk(struct stream *stream, bool bulk)
{
}

int tls_fd(const struct stream *stream)
{
    return -1;
}

int64_t tls_rtt(const struct stream *stream)
{
    return 1000;
}

struct stream *tls_connect(struct loop *loop, struct workers *handshakes,
                           struct tls_context *context, int fd)
{
    CHECK(!"nobody is dialled here");
    return NULL;
}

void credentials_release(struct credentials *credentials)
{
}

/* --- the other threads ---- */
static bool told_complete;

void session_want(struct session *session, const uint8_t wanted[HASH_SIZE], uint64_t size)
{
    Tracker__Peers *peers = malloc(sizeof *peers);
    Tracker__Peer *peer = malloc(sizeof *peer);

    tracker__peers__init(peers);
    tracker__peer__init(peer);
    peers->root.data = xmemdup(wanted, HASH_SIZE);
    peers->root.len = HASH_SIZE;
    peers->peers = malloc(sizeof(Tracker__Peer *));
    peers->peers[0] = peer;
    peers->n_peers = 1;
    peer->device.data = xmemdup(server_id, sizeof server_id);
    peer->device.len = sizeof server_id;
    peer->complete = told_complete;
    download_peers(owner.download, peers, true);
}

void session_unwant(struct session *session, const uint8_t wanted[HASH_SIZE])
{
}

void session_ask_dial_back(struct session *session, const uint8_t device[16])
{
}

void local_demand_done(struct local *local, uint64_t request, int error)
{
    CHECK(error != 0 || bitmap_test(content.present, 0));
}

void local_content_complete(struct local *local, const uint8_t wanted[HASH_SIZE], int error)
{
    CHECK(error != 0 || content.put == content.geometry.blocks);
}

void local_download_status(struct local *local, struct download_status *status)
{
    download_status_free(status);
}

static void rounds(void)
{
    for (unsigned i = 0; i < 6; i++)
        event_base_loop(loop_base(download_loop(owner.download)), EVLOOP_NONBLOCK);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const uint8_t hello[] = {0x08, 1, 0x10, 1, 0x18, PEER__ROLE__ROLE_SERVER};
    static bool ready;
    struct mock_stream mock;

    if (!ready)
        log_init("fuzz", LOG_LEVEL_ERROR, false);
    ready = true;
    if (size < 2)
        return 0;
    memset(&content, 0, sizeof content);
    content.geometry = geometry_of(sizes[bytes[0] % 4]);
    told_complete = bytes[1] & 1;
    owner.settings.background = true;
    owner.bans = bans_new();
    owner.download = download_new(&owner);
    mock_init(&mock);
    mock.room = SIZE_MAX;
    mock.chunk = bytes[1] >> 1;
    if (bytes[1] & 1)
        download_adopt(owner.download, &mock.stream, xmemdup(hello, sizeof hello), sizeof hello);
    download_demand(owner.download, &content, 1, 1, 0, 100, NS_PER_S);
    download_get(owner.download, &content);
    rounds();
    if (!(bytes[1] & 1))
        download_adopt(owner.download, &mock.stream, xmemdup(hello, sizeof hello), sizeof hello);
    rounds();
    mock.in = bytes + 2;
    mock.in_size = size - 2;
    mock.at_end = true;
    if (!mock.destroyed && mock.events != NULL)
        mock.events->readable(mock.arg);
    rounds();
    download_ask_status(owner.download, root, NULL);
    rounds();
    download_stop(owner.download);
    download_free(owner.download);
    bans_free(owner.bans);
    CHECK(mock.destroyed);
    CHECK(content.references == 0);
    return 0;
}
