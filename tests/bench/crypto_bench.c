/* What crypto/ costs on this machine: leaves of the Merkle tree in every way there is, alone and in turn
 * with AES-GCM (wide registers may lower the clock of what runs beside them), nodes, and one TLS stream over
 * loopback with a loop at each end. Hashes are in time of the processor, streams in time of the clock.
 *
 *   crypto_bench [MIB]     bytes that the TLS stream carries, 2048 MiB if not said
 */
#include <errno.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/number.h"
#include "base/workers.h"
#include "crypto/merkle.h"
#include "crypto/sha256_multi.h"
#include "crypto/tls.h"

#define BLOCKS     64   /* 1 MiB: stays in the cache */
#define FAR_BLOCKS 4096 /* 64 MiB: does not */
#define ROUNDS     300
#define SLICE      16 /* blocks of one turn: what a worker hashes at a time */

static void print_rate(const char *what, uint64_t bytes, int64_t ns)
{
    printf("%-34s %8.0f MB/s\n", what, (double)bytes * 1e3 / (double)ns);
}

static int64_t thread_cpu(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

/* The ways to hash, false if this processor has not got it. */
enum way { OPENSSL, LANES_1, LANES_2, LANES_4, WIDE, CHOSEN, WAYS };
static const char *const way_names[WAYS] = {"OpenSSL",     "1 at a time",           "2 at a time",
                                            "4 at a time", "AVX-512, 16 at a time", "as chosen"};

static bool hash(enum way way, uint8_t *digests, const uint8_t *const *blocks, size_t count)
{
    switch (way) {
    case OPENSSL:
        sha256_many_openssl(digests, blocks, count, BLOCK_SIZE);
        return true;
    case LANES_1:
    case LANES_2:
    case LANES_4:
        return sha256_many_lanes(digests, blocks, count, BLOCK_SIZE, 1u << (way - LANES_1));
    case WIDE:
        return sha256_many_wide(digests, blocks, count, BLOCK_SIZE, 1);
    default:
        sha256_many(digests, blocks, count, BLOCK_SIZE);
        return true;
    }
}

/* `count` blocks in slices, as often as makes BLOCKS x ROUNDS. */
static void bench_leaves(const char *where, const uint8_t *const *blocks, size_t count)
{
    const uint64_t total = (uint64_t)ROUNDS * BLOCKS;
    uint8_t digests[SLICE * HASH_SIZE];
    char what[64];

    for (enum way way = OPENSSL; way < WAYS; way++) {
        if (!hash(way, digests, blocks, SLICE))
            continue;
        int64_t start = thread_cpu();
        for (uint64_t done = 0; done < total; done += SLICE)
            hash(way, digests, blocks + done % count, SLICE);
        snprintf(what, sizeof what, "leaves%s, %s", where, way_names[way]);
        print_rate(what, total * BLOCK_SIZE, thread_cpu() - start);
    }
}

/* A slice is encrypted, then hashed, and so on: what each costs beside the other. */
static void bench_mixed(const uint8_t *const *blocks)
{
    static const uint8_t key[32] = {1}, iv[12] = {2};
    const uint64_t total = (uint64_t)ROUNDS * BLOCKS;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    uint8_t digests[SLICE * HASH_SIZE], *sealed = xmalloc(BLOCK_SIZE);

    CHECK(context != NULL);
    CHECK(EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, iv) == 1);
    for (int way = -1; way < WAYS; way++) { /* -1: nothing is hashed */
        if (way == OPENSSL || way == LANES_1 || way == LANES_2 ||
            (way >= 0 && !hash((enum way)way, digests, blocks, SLICE)))
            continue;
        int64_t crypt = 0, hashing = 0;
        for (uint64_t done = 0; done < total; done += SLICE) {
            int64_t start = thread_cpu();
            for (size_t i = 0; i < SLICE; i++) {
                int size;
                CHECK(EVP_EncryptInit_ex(context, NULL, NULL, NULL, iv) == 1);
                CHECK(EVP_EncryptUpdate(context, sealed, &size, blocks[done % BLOCKS + i],
                                        BLOCK_SIZE) == 1);
            }
            int64_t middle = thread_cpu();
            if (way >= 0)
                hash((enum way)way, digests, blocks + done % BLOCKS, SLICE);
            crypt += middle - start;
            hashing += thread_cpu() - middle;
        }
        const double size = (double)total * BLOCK_SIZE;
        printf("AES-GCM %5.0f MB/s", size * 1e3 / (double)crypt);
        if (way >= 0)
            printf(" in turn with %s %.0f MB/s: both %.0f MB/s", way_names[way],
                   size * 1e3 / (double)hashing, size * 1e3 / (double)(crypt + hashing));
        printf("\n");
    }
    EVP_CIPHER_CTX_free(context);
    free(sealed);
}

static void bench_hashes(void)
{
    uint8_t *bytes = xmalloc((size_t)FAR_BLOCKS * BLOCK_SIZE);
    const uint8_t **blocks = xcalloc(FAR_BLOCKS, sizeof *blocks);

    memset(bytes, 0x5a, (size_t)FAR_BLOCKS * BLOCK_SIZE);
    for (size_t i = 0; i < FAR_BLOCKS; i++)
        blocks[i] = bytes + i * BLOCK_SIZE;
    int64_t start = thread_cpu();
    unsigned least = sha256_wide_least();
    printf("%-34s %8.0f us\n", "measuring which way is faster",
           (double)(thread_cpu() - start) / 1e3);
    printf("%-34s %8u messages on\n", "AVX-512 is chosen from", least);
    bench_leaves("", blocks, BLOCKS);
    bench_leaves(" far away", blocks, FAR_BLOCKS);
    bench_mixed(blocks);

    uint8_t *leaves = xcalloc(1 << 16, HASH_SIZE), root[HASH_SIZE];
    start = thread_cpu();
    for (int round = 0; round < 20; round++)
        merkle_subtree(root, leaves, 1 << 16, 1 << 16);
    printf("%-34s %8.0f ns\n", "one node of the tree",
           (double)(thread_cpu() - start) / 20 / (1 << 16));
    free(leaves);
    free(blocks);
    free(bytes);
}

/* --- one stream ---- */

struct end {
    struct loop *loop;
    struct tls_context *context;
    struct stream *stream;
    bool server;
    int fd;
    uint64_t left;
    int64_t cpu; /* of the loop's thread, at the end */
    sem_t ready, done;
};

static struct workers *handshakes;
static uint8_t chunk[262144];

static void finish(struct end *end)
{
    end->cpu = thread_cpu() - end->cpu;
    sem_post(&end->done);
}

static void on_ready(void *arg)
{
    sem_post(&((struct end *)arg)->ready);
}

static void on_readable(void *arg)
{
    struct end *end = arg;
    static uint8_t to[262144];
    ssize_t n;
    while ((n = stream_read(end->stream, to, sizeof to)) > 0) {
        end->left -= (uint64_t)n;
        if (end->left == 0)
            finish(end);
    }
}

static void on_writable(void *arg)
{
    struct end *end = arg;
    while (end->left > 0) {
        size_t size = end->left < sizeof chunk ? (size_t)end->left : sizeof chunk;
        ssize_t n = stream_write(end->stream, chunk, size);
        if (n < 0)
            break;
        end->left -= (uint64_t)n;
        if ((size_t)n < size)
            break;
        if (end->left == 0)
            finish(end);
    }
    stream_flush(end->stream);
}

static void on_failed(void *arg, const char *why)
{
    fprintf(stderr, "crypto_bench: %s\n", why);
    exit(1);
}

static const struct stream_events receiving = {on_ready, on_readable, on_writable, on_failed};
static void ignore(void *arg)
{
}
static const struct stream_events sending = {on_ready, ignore, on_writable, on_failed};

struct act {
    struct mail mail;
    void (*run)(struct end *);
    struct end *end;
};

static void deliver(struct mail *mail, void *owner)
{
    struct act *act = (struct act *)mail;
    act->run(act->end);
    free(act);
}

static void post(struct end *end, void (*run)(struct end *))
{
    struct act *act = xcalloc(1, sizeof *act);
    act->mail.deliver = deliver;
    act->run = run;
    act->end = end;
    loop_post(end->loop, &act->mail);
}

static void begin(struct end *end)
{
    end->stream = end->server ? tls_accept(end->loop, handshakes, end->context, end->fd)
                              : tls_connect(end->loop, handshakes, end->context, end->fd);
    stream_set_events(end->stream, end->server ? &receiving : &sending, end);
}

static void note_cpu(struct end *end)
{
    end->cpu = thread_cpu();
    sem_post(&end->ready);
}

static void begin_sending(struct end *end)
{
    end->cpu = thread_cpu();
    on_writable(end);
}

static void end_stream(struct end *end)
{
    stream_free(end->stream);
    sem_post(&end->done);
}

static void sockets_of(struct end *client, struct end *server)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listening, (struct sockaddr *)&address, size) == 0 && listen(listening, 1) == 0);
    CHECK(getsockname(listening, (struct sockaddr *)&address, &size) == 0);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int result = connect(client->fd, (struct sockaddr *)&address, size);
    CHECK(result == 0 || errno == EINPROGRESS);
    server->fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    CHECK(server->fd >= 0);
    close(listening);
}

static struct tls_context *context_of(struct certificate *ca, const struct key *ca_key,
                                      unsigned lowat)
{
    const char *fault = NULL;
    struct key *key = key_generate(&fault);
    char *csr = csr_create(key, &fault);
    struct certificate *certificate =
        ca_issue_device(ca, ca_key, csr, strlen(csr), "bench", 3600, &fault);
    const struct tls_settings settings = {.policy = TLS_PEER,
                                          .ca = ca,
                                          .certificate = certificate,
                                          .key = key,
                                          .notsent_lowat = lowat};
    struct tls_context *context = tls_context_new(&settings, &fault);
    CHECK(context != NULL);
    certificate_free(certificate);
    key_free(key);
    free(csr);
    return context;
}

static void bench_stream(struct end *client, struct end *server, uint64_t size, const char *what)
{
    sockets_of(client, server);
    client->left = server->left = size;
    int64_t start = clock_now();
    post(server, begin);
    post(client, begin);
    sem_wait(&client->ready);
    sem_wait(&server->ready);
    printf("%-34s %8.2f ms\n", "handshake, both ends, wall", (double)(clock_now() - start) / 1e6);
    post(server, note_cpu);
    sem_wait(&server->ready);
    start = clock_now();
    post(client, begin_sending);
    sem_wait(&client->done);
    sem_wait(&server->done);
    int64_t took = clock_now() - start;
    print_rate(what, size, took);
    printf("%-34s %8.3f + %.3f ns per byte of CPU (send + receive)\n", "",
           (double)client->cpu / (double)size, (double)server->cpu / (double)size);
    post(client, end_stream);
    post(server, end_stream);
    sem_wait(&client->done);
    sem_wait(&server->done);
}

int main(int argc, char **argv)
{
    uint64_t mib = 2048;
    if (argc > 1 && !number_parse(argv[1], 1, 1u << 20, &mib)) {
        fprintf(stderr, "usage: crypto_bench [MIB]\n");
        return 2;
    }
    bench_hashes();

    const char *fault = NULL;
    struct key *ca_key = key_generate(&fault);
    struct certificate *ca = ca_create(ca_key, "bench", &fault);
    struct end client = {.loop = loop_new("send")},
               server = {.loop = loop_new("receive"), .server = true};
    handshakes = workers_new("shake", 1);
    sem_init(&client.ready, 0, 0);
    sem_init(&client.done, 0, 0);
    sem_init(&server.ready, 0, 0);
    sem_init(&server.done, 0, 0);
    loop_start(client.loop);
    loop_start(server.loop);
    for (unsigned lowat = 0; lowat <= 131072; lowat += 131072) {
        client.context = context_of(ca, ca_key, lowat);
        server.context = context_of(ca, ca_key, lowat);
        bench_stream(&client, &server, mib << 20,
                     lowat == 0 ? "TLS stream" : "TLS stream, 128 KiB unsent mark");
        tls_context_free(client.context);
        tls_context_free(server.context);
    }
    workers_free(handshakes);
    loop_stop(client.loop);
    loop_stop(server.loop);
    loop_join(client.loop);
    loop_join(server.loop);
    loop_free(client.loop);
    loop_free(server.loop);
    certificate_free(ca);
    key_free(ca_key);
    return 0;
}
