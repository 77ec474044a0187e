/* For tests of the store: a temporary directory, contents out of a seed, their hashes, ways to put them.
 *
 * Include behind cmocka. A test's directory is removed by help_end. */
#ifndef TESTS_STORE_HELP_H
#define TESTS_STORE_HELP_H

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/mem.h"
#include "daemon/store.h"

/* A whole content and all its hashes. */
struct made {
    uint8_t *data;
    struct geometry g;
    uint8_t *leaves, *layer;
    uint8_t root[HASH_SIZE];
};

/* xorshift64*; the same bytes for the same seed. */
static inline uint64_t help_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

static inline void help_hash(struct made *made, uint64_t size)
{
    made->g = geometry_of(size);
    made->leaves = xmalloc((size_t)made->g.blocks * HASH_SIZE + 1);
    made->layer = xmalloc((size_t)made->g.pieces * HASH_SIZE + 1);
    for (uint64_t i = 0; i < made->g.blocks; i++) {
        const uint8_t *block = made->data + i * BLOCK_SIZE;
        merkle_leaves(made->leaves + i * HASH_SIZE, &block, 1, geometry_block_size(&made->g, i));
    }
    merkle_root_of_leaves(made->root, made->layer, &made->g, made->leaves);
}

static inline struct made help_make(uint64_t size, uint64_t seed)
{
    struct made made = {.data = xmalloc(size + 8)};
    uint64_t state = seed * 7919 + 1;

    for (uint64_t i = 0; i < size; i += 8) {
        uint64_t word = help_random(&state);
        memcpy(made.data + i, &word, 8);
    }
    help_hash(&made, size);
    return made;
}

static inline void help_unmake(struct made *made)
{
    free(made->data);
    free(made->leaves);
    free(made->layer);
}

static inline char *help_begin_in(const char *base)
{
    char *directory = xasprintf("%s/p2p-store-XXXXXX", base);

    assert_non_null(mkdtemp(directory));
    return directory;
}

static inline char *help_begin(void)
{
    const char *base = getenv("TMPDIR");

    return help_begin_in(base != NULL ? base : "/tmp");
}

static inline void help_remove(int parent, const char *name)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            unlinkat(fd, entry->d_name, 0) < 0)
            help_remove(fd, entry->d_name);
    }
    if (directory != NULL)
        closedir(directory);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static inline void help_end(char *directory)
{
    help_remove(AT_FDCWD, directory);
    free(directory);
}

static inline struct store *help_open(const char *directory)
{
    const char *fault = "";
    char *path = xasprintf("%s/store", directory);
    struct store *store = store_open(path, &fault);

    free(path);
    assert_non_null(store);
    return store;
}

/* DIRECTORY/store/HH/ROOT.SUFFIX, to free. */
static inline char *help_path(const char *directory, const struct made *made, const char *suffix)
{
    char digits[2 * HASH_SIZE + 1];

    hex_encode(digits, made->root, HASH_SIZE);
    return xasprintf("%s/store/%.2s/%s.%s", directory, digits, digits, suffix);
}

static inline bool help_exists(const char *directory, const struct made *made, const char *suffix)
{
    char *path = help_path(directory, made, suffix);
    bool there = access(path, F_OK) == 0;

    free(path);
    return there;
}

/* Overwrites bytes of one of the content's files behind the store's back. */
static inline void help_damage(const char *directory, const struct made *made, const char *suffix,
                               uint64_t offset, uint8_t value, size_t count)
{
    char *path = help_path(directory, made, suffix);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t *bytes = xmalloc(count);

    assert_true(fd >= 0);
    memset(bytes, value, count);
    assert_int_equal(file_pwrite_all(fd, bytes, count, offset), 0);
    close(fd);
    free(bytes);
    free(path);
}

static inline struct content *help_get(struct store *store, const struct made *made, bool create)
{
    int error;
    struct content *content = store_get(store, made->root, made->g.size, create, &error);

    assert_int_equal(error < 0, content == NULL);
    return content;
}

static inline void help_set_hashes(struct content *content, const struct made *made)
{
    assert_int_equal(content_set_piece_layer(content, made->layer), 0);
    for (uint32_t piece = 0; piece < made->g.pieces; piece++) {
        uint64_t first = (uint64_t)piece * made->g.piece_blocks;
        assert_int_equal(content_set_leaves(content, piece, made->leaves + first * HASH_SIZE), 0);
    }
}

/* Puts `count` blocks of one piece, at most 1024. */
static inline int help_put(struct content *content, const struct made *made, uint64_t first,
                           uint32_t count)
{
    const uint8_t *blocks[1024];
    int verdicts[1024];

    assert_true(count <= 1024);
    for (uint32_t i = 0; i < count; i++)
        blocks[i] = made->data + (first + i) * BLOCK_SIZE;
    return content_put(content, first, count, blocks, verdicts);
}

static inline void help_put_all(struct content *content, const struct made *made)
{
    for (uint32_t piece = 0; piece < made->g.pieces; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(&made->g, piece, &first, &count);
        assert_int_equal(help_put(content, made, first, count), 0);
    }
}

/* The store has this content, empty or whole, and its hashes. */
static inline struct content *help_fill(struct store *store, const struct made *made)
{
    struct content *content = help_get(store, made, true);

    assert_non_null(content);
    help_set_hashes(content, made);
    help_put_all(content, made);
    return content;
}

/* Every block that is present reads right. Returns how many are. */
static inline uint64_t help_verify(struct content *content, const struct made *made)
{
    uint8_t block[BLOCK_SIZE];
    uint64_t present = 0;

    for (uint64_t i = 0; i < made->g.blocks; i++) {
        if (!bitmap_test(content_present(content), i)) {
            assert_int_equal(content_get(content, i, block), -ENODATA);
            continue;
        }
        present++;
        assert_int_equal(content_get(content, i, block), 0);
        assert_memory_equal(block, made->data + i * BLOCK_SIZE, geometry_block_size(&made->g, i));
    }
    assert_int_equal(content_present_blocks(content), present);
    for (uint32_t piece = 0; piece < made->g.pieces; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(&made->g, piece, &first, &count);
        assert_int_equal(content_has_piece(content, piece),
                         bitmap_all(content_present(content), first, count));
    }
    return present;
}

static inline size_t help_count_fds(void)
{
    DIR *directory = opendir("/proc/self/fd");
    size_t count = 0;

    assert_non_null(directory);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count - 3; /* ".", ".." and the directory itself */
}

#endif
