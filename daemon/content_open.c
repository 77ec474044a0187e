/* Owns how a content comes into memory: made anew, opened complete, or opened incomplete and then brought in order with
 * what a crash may have left (S3); and how it leaves. Which is which, store_files.c tells.
 *
 * Opening an incomplete content: blocks present and synced are trusted. Where the two bits differ the end was unclean
 * for this block (or power failed between the two writes): it is read and hashed, and counts if it matches; if its
 * hash is not known it does not.
 *
 * Thread: a worker, or the one that opens the store; the content is not shared yet. Memory: three bitmaps, mapped; 32
 * bytes a piece for the layer, 6 for counters. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"

static struct content *content_new(struct store *store, struct record *record)
{
    struct content *content = xcalloc(1, sizeof *content);
    struct geometry g = geometry_of(record->size);
    size_t pages = store_bits_size(g.blocks) / STORE_PAGE;

    content->magic = CONTENT_MAGIC;
    content->store = store;
    content->record = record;
    content->geometry = g;
    memcpy(content->root, record->root, HASH_SIZE);
    content->map_size = store_map_size(&g);
    content->fd[FD_DATA] = content->fd[FD_MAP] = content->fd[FD_HASH] = -1;
    content->pins = 1; /* until it is whole */
    CHECK(pthread_mutex_init(&content->lock, NULL) == 0);
    CHECK(pthread_cond_init(&content->wake, NULL) == 0);
    content->piece_counts = calloc(g.pieces, sizeof *content->piece_counts);
    content->pieces = calloc(bitmap_bytes(g.pieces), 1);
    content->used = calloc(g.pieces, sizeof *content->used);
    content->dirty_pages = calloc(bitmap_bytes(pages), 1);
    content->memory = sizeof *content + content->map_size + (size_t)g.pieces * (HASH_SIZE + 6);
    if (content->piece_counts == NULL || content->pieces == NULL || content->used == NULL ||
        content->dirty_pages == NULL) {
        content_close(content);
        return NULL;
    }
    for (uint32_t i = 0; i < g.pieces; i++)
        content->used[i] = record->used;
    return content;
}

void content_close(struct content *content)
{
    content_forget_leaves(content);
    content_close_fds(content);
    if (content->map != NULL)
        munmap(content->map, content->map_size);
    pthread_mutex_destroy(&content->lock);
    pthread_cond_destroy(&content->wake);
    free(content->piece_counts);
    free(content->pieces);
    free(content->used);
    free(content->dirty_pages);
    free(content->layer);
    free(content->trusted);
    file_cipher_free(content->cipher);
    content->magic = 0;
    free(content);
}

/* Maps the map file, or as much memory of our own (`fd` -1). */
static int map_bits(struct content *content, int fd)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *map =
        mmap(NULL, content->map_size, PROT_READ | PROT_WRITE, flags, fd, fd < 0 ? 0 : STORE_HEADER);

    if (map == MAP_FAILED)
        return -errno;
    content->map = map;
    content->present = content->map;
    content->synced = content->present + store_bits_size(content->geometry.blocks);
    content->known = content->synced + store_bits_size(content->geometry.blocks);
    return 0;
}

/* Opens a file of this content; its descriptor or -errno. With `size` it must have that many bytes: else -EBADMSG. */
static int open_file(struct content *content, const char *suffix, uint64_t size)
{
    char name[NAME_SIZE];
    struct stat status;

    store_file_name(name, content->root, suffix);
    int fd = openat(content->store->fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && (uint64_t)status.st_size == size)
        return fd;
    close(fd);
    return -EBADMSG;
}

/* 0, -EBADMSG, or -errno of a disk that does not say. */
static int check_header(const struct content *content, int fd, const char *magic)
{
    uint8_t header[STORE_HEADER];
    int result = file_pread_all(fd, header, sizeof header, 0);

    if (result == -ENODATA ||
        (result == 0 && !store_header_fits(header, magic, content->root, content->geometry.size)))
        return -EBADMSG;
    return result;
}

/* Opens the hash file, if there is a good one, and loads the layer. */
static int open_hashes(struct content *content)
{
    const struct geometry *g = &content->geometry;

    if (g->blocks == 1)
        return content_load_layer(content, -1);
    int fd = open_file(content, SUFFIX_HASH, hash_file_size(g));
    int result = fd < 0 ? fd : check_header(content, fd, MAGIC_HASH);
    if (fd >= 0 && result < 0) {
        close(fd);
        fd = -1;
    }
    if (fd >= 0) {
        content_take_fd(content, FD_HASH, fd);
        content->has_hash_file = true;
    }
    if (result == 0 || g->pieces == 1) {
        int error = content_load_layer(content, fd);
        if (result == 0)
            result = error;
    }
    return result;
}

/* --- made anew -------------------------------------------------------------------------------------- */
static int make_map(struct content *content)
{
    int fd = store_make_map(content);

    if (fd < 0)
        return fd;
    int result = map_bits(content, fd);
    if (result == 0)
        content_take_fd(content, FD_MAP, fd);
    else
        close(fd);
    return result;
}

static int make_data(struct content *content)
{
    char name[NAME_SIZE];

    store_file_name(name, content->root, SUFFIX_PART);
    int fd = openat(content->store->fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                    S_IRUSR | S_IWUSR);
    if (fd < 0)
        return -errno;
    int result;
    content->cipher = file_cipher_make(content->store->key, fd, &result);
    if (result == 0)
        result = file_cipher_truncate(content->cipher, fd, content->geometry.size);
    if (result < 0) {
        close(fd);
        return result;
    }
    content_take_fd(content, FD_DATA, fd);
    return 0;
}

struct content *content_create(struct store *store, struct record *record, int *error)
{
    struct content *content = content_new(store, record);

    *error = -ENOMEM;
    if (content == NULL)
        return NULL;
    content->has_map = true;
    content->names_dirty = true;
    *error = store_make_folder(store, record->root);
    if (*error == 0)
        *error = make_map(content);
    if (*error == 0)
        *error = make_data(content);
    if (*error == 0 && content->geometry.pieces == 1)
        *error = content_load_layer(content, -1);
    if (*error == 0) {
        content_unpin(content, false);
        return content;
    }
    content_close(content);
    store_unlink_all(store, record->root);
    return NULL;
}

/* --- complete ----------------------------------------------------------------------------------------- */
static void fill(uint8_t *map, uint64_t bits)
{
    memset(map, 0xff, bits / 8);
    if (bits % 8 != 0)
        map[bits / 8] = (uint8_t)((1u << (bits % 8)) - 1);
}

static int open_complete(struct content *content, int data_fd)
{
    const struct geometry *g = &content->geometry;
    int result = map_bits(content, -1);

    if (result < 0)
        return result;
    fill(content->present, g->blocks);
    fill(content->synced, g->blocks);
    fill(content->known, g->pieces);
    result = open_hashes(content);
    if (result == 0 && g->blocks == 1) { /* so small that it can be looked at now */
        uint8_t hash[HASH_SIZE], *buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
        result =
            buffer == NULL ? -ENOMEM : hash_blocks(content->cipher, data_fd, g, 0, 1, hash, buffer);
        free(buffer);
        if (result == 0 && memcmp(hash, content->root, HASH_SIZE) != 0)
            result = -EBADMSG;
    } else if (result == -EBADMSG || result == -ENOENT || result == -EIO) {
        result = content_rebuild_hashes(content, data_fd);
    }
    return result;
}

/* Complete data that gives another root: nobody knows which of its bytes are good. Kept for its owner to look at. */
static void set_aside(struct store *store, const uint8_t root[HASH_SIZE])
{
    char from[NAME_SIZE], to[NAME_SIZE];

    store_file_name(from, root, SUFFIX_DATA);
    store_file_name(to, root, SUFFIX_DAMAGED);
    if (renameat(store->fd, from, store->fd, to) == 0)
        log_error("store: %s is damaged and was renamed to %s", from, to);
    store_unlink_all(store, root);
}

/* --- incomplete ---------------------------------------------------------------------------------------- */
/* The first block from `block` on whose two bits differ, or `blocks`. */
static uint64_t next_unsynced(const struct content *content, uint64_t block)
{
    while (block < content->geometry.blocks) {
        unsigned differ =
            (unsigned)(content->present[block / 8] ^ content->synced[block / 8]) >> block % 8;
        if (differ & 1)
            return block;
        block = differ == 0 ? (block | 7) + 1 : block + 1;
    }
    return content->geometry.blocks;
}

/* Checks `count` blocks of one piece, at most STRETCH; says whether any was lost. */
static bool check_blocks(struct content *content, uint64_t first, uint32_t count, uint8_t *buffer)
{
    uint8_t wanted[HASHES(STRETCH)], hashes[HASHES(STRETCH)];
    bool readable = content_leaves(content, first, count, wanted) == 0 &&
                    hash_blocks(content->cipher, content->fd[FD_DATA], &content->geometry, first,
                                count, hashes, buffer) == 0;
    bool lost = false;

    for (uint32_t i = 0; i < count; i++) {
        bitmap_clear(content->synced, first + i);
        if (readable && memcmp(hashes + HASHES(i), wanted + HASHES(i), HASH_SIZE) == 0) {
            bitmap_set(content->present, first + i);
            bitmap_set(content->dirty_pages, (first + i) / (STORE_PAGE * 8));
        } else {
            bitmap_clear(content->present, first + i);
            lost = true;
        }
    }
    return lost;
}

/* Bits behind the last block: only damage sets them. */
static void clear_spare(uint8_t *map, uint64_t bits)
{
    for (uint64_t bit = bits; bit < (uint64_t)store_bits_size(bits) * 8; bit++) {
        if (bitmap_test(map, bit))
            bitmap_clear(map, bit);
    }
}

/* S3 */
static int check_unsynced(struct content *content)
{
    const struct geometry *g = &content->geometry;
    uint8_t *buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
    bool lost = false;

    if (buffer == NULL)
        return -ENOMEM;
    clear_spare(content->present, g->blocks);
    clear_spare(content->synced, g->blocks);
    clear_spare(content->known, g->pieces);
    uint64_t first = next_unsynced(content, 0);
    while (first < g->blocks) {
        uint32_t count = 1;
        while (count < STRETCH && (first + count) % g->piece_blocks != 0 &&
               next_unsynced(content, first + count) == first + count && first + count < g->blocks)
            count++;
        lost |= check_blocks(content, first, count, buffer);
        first = next_unsynced(content, first + count);
    }
    free(buffer);
    /* C2: before any of these blocks is written again. */
    return lost && fdatasync(content->fd[FD_MAP]) < 0 ? -errno : 0;
}

static int open_incomplete(struct content *content)
{
    int fd = open_file(content, SUFFIX_MAP, STORE_HEADER + content->map_size);

    if (fd < 0)
        return fd == -ENOENT ? -EBADMSG : fd;
    int result = check_header(content, fd, MAGIC_MAP);
    if (result == 0)
        result = map_bits(content, fd);
    if (result < 0) {
        close(fd);
        return result;
    }
    content_take_fd(content, FD_MAP, fd);
    content->has_map = true;
    content->names_dirty = true; /* whether they were synced nobody knows any more */
    result = open_hashes(content);
    if (result < 0 && result != -ENOENT && result != -EBADMSG)
        return result;
    if (result < 0) /* nothing that is in the hash file can be used */
        memset(content->known, 0, store_bits_size(content->geometry.pieces));
    result = check_unsynced(content);
    content_doubt(content); /* before our own changes */
    if (result == 0)
        content_evict_resume(content);
    return result;
}

struct content *content_open(struct store *store, struct record *record, int *error)
{
    struct content *content = content_new(store, record);
    char digits[2 * HASH_SIZE + 1];

    *error = -ENOMEM;
    if (content == NULL)
        return NULL;
    bool complete = true;
    uint64_t length = file_cipher_length(store->key != NULL, record->size);
    int fd = open_file(content, SUFFIX_DATA, length);
    if (fd == -ENOENT) {
        complete = false;
        fd = open_file(content, SUFFIX_PART, length);
    }
    *error = fd < 0 ? fd : 0;
    if (fd >= 0) {
        content_take_fd(content, FD_DATA, fd);
        content->cipher = file_cipher_open(store->key, fd, error);
    }
    if (*error == 0) {
        *error = complete ? open_complete(content, fd) : open_incomplete(content);
    }
    if (*error == 0) {
        content_count(content);
        content_unpin(content, false);
        return content;
    }
    content_close(content);
    if (*error == -EBADMSG && complete) {
        set_aside(store, record->root);
        *error = -ENOENT;
    } else if (*error == -EBADMSG || *error == -ENOENT) {
        hex_encode(digits, record->root, HASH_SIZE);
        log_warning("store: the files of %s are damaged, deleted", digits);
        store_unlink_all(store, record->root);
        *error = -ENOENT;
    }
    return NULL;
}
