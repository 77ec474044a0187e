/* The store's files as a damaged disk gives them back: .part or .data, .map and .hash.
 *
 * Three contents are whole (or half) in memory. The input's first byte chooses one and whether it is complete; the rest
 * are changes to its files: file and kind (1 byte), offset (2 bytes, little-endian), length (1), and that many bytes
 * to put there; or the file ends there; or it is not there. Then the store is opened. Whatever it makes of that, a block
 * that it gives out is right, its counters agree with its bits, and the content can be completed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DATA, MAP, HASH, FILES };
static const char *const suffixes[2][FILES] = {{"part", "map", "hash"}, {"data", "map", "hash"}};

/* One content as it lies on disk. */
struct image {
    uint8_t *bytes[FILES];
    size_t size[FILES];
};
static struct sample {
    uint64_t size;
    struct geometry g;
    uint8_t root[HASH_SIZE], *data, *leaves, *layer;
    struct image images[2]; /* half of it, and complete */
} samples[3] = {{.size = 100}, {.size = BLOCK_SIZE + 1}, {.size = 600000}};
static char *directory;

static char *path_of(const struct sample *sample, const char *suffix)
{
    char digits[2 * HASH_SIZE + 1];

    hex_encode(digits, sample->root, HASH_SIZE);
    return xasprintf("%s/%.2s/%s.%s", directory, digits, digits, suffix);
}

static struct store *open_store(void)
{
    const char *fault;
    struct store *store = store_open(directory, &fault);

    CHECK(store != NULL);
    return store;
}

static void put_blocks(struct content *content, const struct sample *sample, uint64_t step)
{
    for (uint64_t i = 0; i < sample->g.blocks; i += step) {
        const uint8_t *block = sample->data + i * BLOCK_SIZE;
        int verdict;
        CHECK(content_put(content, i, 1, &block, &verdict) == 0);
    }
}

static void set_hashes(struct content *content, const struct sample *sample)
{
    CHECK(content_set_piece_layer(content, sample->layer) == 0);
    for (uint32_t i = 0; i < sample->g.pieces; i++)
        CHECK(content_set_leaves(content, i,
                                 sample->leaves + (size_t)HASH_SIZE * sample->g.piece_blocks * i) ==
              0);
}

static void take_image(struct image *image, const struct sample *sample, bool complete)
{
    struct store *store = open_store();
    int error;
    struct content *content = store_get(store, sample->root, sample->size, true, &error);

    CHECK(content != NULL);
    set_hashes(content, sample);
    put_blocks(content, sample, complete ? 1 : 3);
    content_release(content);
    store_close(store);
    for (int i = 0; i < FILES; i++) {
        char *path = path_of(sample, suffixes[complete][i]);
        error = file_read(path, 1 << 20, false, (char **)&image->bytes[i], &image->size[i]);
        CHECK(error == 0 || error == -ENOENT);
        unlink(path);
        free(path);
    }
}

static void make_sample(struct sample *sample)
{
    sample->g = geometry_of(sample->size);
    sample->data = xmalloc(sample->size);
    sample->leaves = xmalloc(sample->g.blocks * HASH_SIZE);
    sample->layer = xmalloc((size_t)sample->g.pieces * HASH_SIZE);
    for (uint64_t i = 0; i < sample->size; i++)
        sample->data[i] = (uint8_t)(i * 31 + i / 1021);
    for (uint64_t i = 0; i < sample->g.blocks; i++) {
        const uint8_t *block = sample->data + i * BLOCK_SIZE;
        merkle_leaves(sample->leaves + i * HASH_SIZE, &block, 1,
                      geometry_block_size(&sample->g, i));
    }
    merkle_root_of_leaves(sample->root, sample->layer, &sample->g, sample->leaves);
    take_image(&sample->images[0], sample, false);
    take_image(&sample->images[1], sample, true);
}

static void remove_directory(void)
{
    char *incoming = xasprintf("%s/incoming", directory);

    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        char *path = path_of(&samples[i], "data");
        *strrchr(path, '/') = '\0';
        rmdir(path);
        free(path);
    }
    rmdir(incoming);
    rmdir(directory);
    free(incoming);
    free(directory);
}

static void prepare(void)
{
    bool fast = access("/dev/shm", W_OK) == 0;

    log_init("fuzz", LOG_LEVEL_ERROR, false);
    directory = xstrdup(fast ? "/dev/shm/p2p-fuzz-XXXXXX" : "/tmp/p2p-fuzz-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    atexit(remove_directory);
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++)
        make_sample(&samples[i]);
}

/* Writes the sample's files with the input's changes. */
static void write_files(const struct sample *sample, bool complete, const uint8_t *input,
                        size_t size)
{
    int fds[FILES];

    for (int i = 0; i < FILES; i++) {
        char *path = path_of(sample, suffixes[complete][i]);
        fds[i] = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        CHECK(fds[i] >= 0);
        CHECK(file_pwrite_all(fds[i], sample->images[complete].bytes[i],
                              sample->images[complete].size[i], 0) == 0);
        if (sample->images[complete].bytes[i] == NULL)
            unlink(path);
        free(path);
    }
    while (size >= 4) {
        int which = input[0] % FILES, kind = input[0] / FILES % 4;
        uint64_t offset = (uint64_t)input[1] | (uint64_t)input[2] << 8;
        size_t length = input[3];
        input += 4;
        size -= 4;
        length = length < size ? length : size;
        if (kind == 1) {
            CHECK(ftruncate(fds[which], (off_t)offset) == 0);
        } else if (kind == 2) {
            char *path = path_of(sample, suffixes[complete][which]);
            unlink(path);
            free(path);
        } else {
            CHECK(file_pwrite_all(fds[which], input, length, offset * (kind == 3 ? 8 : 1)) == 0);
            input += length;
            size -= length;
        }
    }
    for (int i = 0; i < FILES; i++)
        close(fds[i]);
}

static void check_content(struct content *content, const struct sample *sample)
{
    uint8_t block[BLOCK_SIZE];

    for (uint64_t i = 0; i < sample->g.blocks; i++) {
        int result = content_get(content, i, block);
        CHECK(result == 0 || !content_complete(content));
        CHECK(result != 0 || memcmp(block, sample->data + i * BLOCK_SIZE,
                                    geometry_block_size(&sample->g, i)) == 0);
    }
    CHECK(content_present_blocks(content) ==
          bitmap_count(content_present(content), 0, sample->g.blocks));
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    int error;

    if (directory == NULL)
        prepare();
    if (size == 0)
        return 0;
    const struct sample *sample = &samples[input[0] % 3];
    bool complete = input[0] / 3 % 2;
    write_files(sample, complete, input + 1, size - 1);

    struct store *store = open_store();
    struct content *content = store_get(store, sample->root, sample->size, false, &error);
    if (content != NULL) {
        check_content(content, sample);
        content_release(content);
    }
    if (content != NULL || error == -ENOENT) {
        content = store_get(store, sample->root, sample->size, true, &error);
        CHECK(content != NULL);
        set_hashes(content, sample);
        put_blocks(content, sample, 1);
        check_content(content, sample);
        content_release(content);
    }
    store_drop(store, sample->root);
    store_close(store);
    char *path = path_of(sample, "damaged");
    unlink(path);
    free(path);
    return 0;
}
