/* How fast the store is, by itself: store_bench [DIRECTORY [MIB]] (default /tmp, 1024).
 *
 * Prints, in MB/s: plain pwrite and one stream of SHA-256 for comparison; content_put of 16 and of 64 blocks at a time, in
 * random order of pieces, on one thread and on two; content_get_many; ingest behind a writer, sealed, against writing the
 * same plus fdatasync plus one SHA-256 pass. Data come from the page cache, which must have room for three times MIB. */
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/thread.h"
#include "daemon/ingest.h"
#include "daemon/store.h"

#define CHUNK                                                                                      \
    (4u << 20) /* distinct data that is repeated; each block's first bytes are its number */

static uint64_t size;
static struct geometry g;
static uint8_t *data, *leaves, *layer;
static uint8_t root[HASH_SIZE];
static char *directory;

/* CPU time of the process so far; it moves less than the wall's when the machine has other work. */
static double cpu_now(void)
{
    struct rusage usage;

    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double cpu_start;

static int64_t start_now(void)
{
    cpu_start = cpu_now();
    return clock_now();
}

static void print(const char *what, int64_t start)
{
    double seconds = (double)(clock_now() - start) / 1e9, cpu = cpu_now() - cpu_start;

    printf("%-48s %8.0f MB/s  %6.2f s  CPU %6.2f s, %5.2f ns/KiB\n", what,
           (double)size / 1e6 / seconds, seconds, cpu, cpu * 1e9 / ((double)size / 1024));
    fflush(stdout);
}

static char *path_of(const char *name)
{
    return xasprintf("%s/%s", directory, name);
}

/* --- for comparison ------------------------------------------------------------------------------- */
static double plain_write(bool durable)
{
    char *path = path_of("plain");
    int64_t start = start_now();
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    CHECK(fd >= 0);
    for (uint64_t at = 0; at < size; at += 1 << 20)
        CHECK(file_pwrite_all(fd, data + at, 1 << 20, at) == 0);
    if (durable)
        CHECK(fdatasync(fd) == 0);
    double seconds = (double)(clock_now() - start) / 1e9;
    print(durable ? "plain write of 1 MiB, fdatasync" : "plain write of 1 MiB", start);
    close(fd);
    unlink(path);
    free(path);
    return seconds;
}

static double one_stream(void)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    int64_t start = start_now();

    CHECK(EVP_Digest(data, size, digest, NULL, EVP_sha256(), NULL) == 1);
    print("SHA-256, one stream", start);
    return (double)(clock_now() - start) / 1e9;
}

static void all_leaves(void)
{
    int64_t start = start_now();
    const uint8_t *blocks[64];

    for (uint64_t i = 0; i < g.blocks; i += 64) {
        for (uint64_t k = 0; k < 64; k++)
            blocks[k] = data + (i + k) * BLOCK_SIZE;
        merkle_leaves(leaves + i * HASH_SIZE, blocks, 64, BLOCK_SIZE);
    }
    print("SHA-256, leaves", start);
    merkle_root_of_leaves(root, layer, &g, leaves);
}

/* --- the store --------------------------------------------------------------------------------------- */
struct share {
    struct content *content;
    uint32_t batch, first, step;
};

static void *put_share(void *arg)
{
    const struct share *share = arg;
    const uint8_t *blocks[64];
    int verdicts[64];

    for (uint32_t i = share->first; i < g.pieces; i += share->step) {
        uint64_t piece = (uint64_t)i * 7919 % g.pieces;
        for (uint64_t at = piece * g.piece_blocks; at < (piece + 1) * g.piece_blocks;
             at += share->batch) {
            for (uint32_t k = 0; k < share->batch; k++)
                blocks[k] = data + (at + k) * BLOCK_SIZE;
            CHECK(content_put(share->content, at, share->batch, blocks, verdicts) == 0);
        }
    }
    return NULL;
}

static void bench_put(struct store *store, uint32_t batch, uint32_t threads)
{
    int error;
    struct content *content = store_get(store, root, size, true, &error);
    pthread_t thread[8];
    struct share shares[8];
    char what[80];

    CHECK(content != NULL);
    CHECK(content_set_piece_layer(content, layer) == 0);
    for (uint32_t i = 0; i < g.pieces; i++)
        CHECK(content_set_leaves(content, i, leaves + (size_t)HASH_SIZE * g.piece_blocks * i) == 0);
    int64_t start = start_now();
    for (uint32_t i = 0; i < threads; i++) {
        shares[i] = (struct share){content, batch, i, threads};
        thread[i] = thread_start("put", put_share, &shares[i]);
    }
    for (uint32_t i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    snprintf(what, sizeof what, "content_put, %u blocks, %u thread%s", batch, threads,
             threads > 1 ? "s" : "");
    print(what, start);
    CHECK(content_complete(content));
    start = start_now();
    CHECK(content_sync(content) == 0);
    print("  content_sync of it", start);
    if (batch == 16 && threads == 1) {
        uint8_t *to = xmalloc(64 * BLOCK_SIZE);
        start = start_now();
        for (uint64_t i = 0; i < g.blocks; i += 64)
            CHECK(content_get_many(content, i, 64, to, &error) == 64);
        print("content_get_many, 64 blocks", start);
        start = start_now();
        for (uint64_t i = 0; i < g.blocks; i++)
            CHECK(content_get(content, i * 7919 % g.blocks, to) == 0);
        print("content_get, random", start);
        free(to);
    }
    content_release(content);
    store_drop(store, root);
}

struct along {
    struct ingest *ingest;
    bool done;
};
static void *hash_along(void *arg)
{
    struct along *along = arg;

    while (!__atomic_load_n(&along->done, __ATOMIC_ACQUIRE)) {
        if (ingest_hash_due(along->ingest))
            CHECK(ingest_hash(along->ingest, 4 << 20) == 0);
        else
            usleep(200);
    }
    return NULL;
}

static double bench_ingest(struct store *store)
{
    int error;
    struct along along = {.ingest = ingest_new(store, NULL, 0, &error)};
    int64_t start = start_now();
    int fd = ingest_dup(along.ingest);
    pthread_t thread = thread_start("hash", hash_along, &along);

    for (uint64_t at = 0; at < size; at += 1 << 20) {
        CHECK(file_pwrite_all(fd, data + at, 1 << 20, at) == 0);
        ingest_wrote(along.ingest, at, 1 << 20);
    }
    double written = (double)(clock_now() - start) / 1e9;
    __atomic_store_n(&along.done, true, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    int64_t sealing = clock_now();
    struct content *content = ingest_seal(along.ingest, size, &error);
    CHECK(content != NULL && memcmp(content_root(content), root, HASH_SIZE) == 0);
    double seconds = (double)(clock_now() - start) / 1e9;
    print("ingest: written, hashed, durable, sealed", start);
    printf("  of which written %.2f s, sealed %.2f s\n", written,
           (double)(clock_now() - sealing) / 1e9);
    close(fd);
    ingest_drop(along.ingest);
    content_release(content);
    store_drop(store, root);
    return seconds;
}

int main(int argc, char **argv)
{
    const char *fault;
    uint64_t mib = 1024;

    if (argc > 3 || (argc > 2 && !number_parse(argv[2], 64, 16384, &mib))) {
        fprintf(stderr, "usage: store_bench [DIRECTORY [MIB]]\n");
        return 2;
    }
    mib &= ~UINT64_C(3);
    directory = xasprintf("%s/p2p-bench-XXXXXX", argc > 1 ? argv[1] : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    size = mib << 20;
    g = geometry_of(size);
    data = malloc(size);
    leaves = malloc(g.blocks * HASH_SIZE);
    layer = malloc((size_t)g.pieces * HASH_SIZE);
    CHECK(data != NULL && leaves != NULL && layer != NULL);
    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t word = (i % CHUNK + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ i / BLOCK_SIZE;
        memcpy(data + i, &word, 8);
    }

    plain_write(false);
    double plain = plain_write(true) + one_stream();
    all_leaves();
    char *path = path_of("store");
    struct store *store = store_open(path, &fault);
    CHECK(store != NULL);
    bench_put(store, 16, 1);
    bench_put(store, 1, 1);
    bench_put(store, 16, 2);
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double seconds = bench_ingest(store);
        best = seconds < best ? seconds : best;
    }
    printf("ingest / (plain write + fdatasync + SHA-256): %.2f\n", best / plain);
    store_close(store);
    fflush(stdout);
    execlp("rm", "rm", "-rf", directory, (char *)NULL);
    return 1;
}
