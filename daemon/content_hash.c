/* Owns the hashes of one content: the piece layer, in memory for as long as the content is open; the block hashes, on disk
 * and, for the pieces in use, in a cache that all contents share; the hash file, which holds both.
 *
 * Nothing that is read from the hash file is believed: the layer must give the root, a piece's block hashes the
 * layer's entry. What does not is unknown again; a complete content's (or piece's) is made anew from its data.
 *
 * A content of one block needs no hash file (its hash is the root), one of one piece no layer (likewise).
 *
 * Threads: any, on workers. Memory: LIMIT_STORE_HASHES for all block hashes; 32 bytes a piece for the layer. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"

uint64_t hash_file_size(const struct geometry *g)
{
    return hash_layer_offset(g) + HASHES(g->pieces);
}

int hash_blocks(const struct file_cipher *cipher, int fd, const struct geometry *g, uint64_t first,
                uint64_t count, uint8_t *leaves, uint8_t *buffer)
{
    const uint8_t *messages[STRETCH];

    for (unsigned i = 0; i < STRETCH; i++)
        messages[i] = buffer + (size_t)BLOCK_SIZE * i;
    for (uint64_t done = 0, step; done < count; done += step) {
        step = count - done < STRETCH ? count - done : STRETCH;
        uint32_t last = geometry_block_size(g, first + done + step - 1);
        int result =
            file_cipher_pread_all(cipher, fd, buffer, (size_t)((step - 1) * BLOCK_SIZE + last),
                                  (first + done) * BLOCK_SIZE);
        if (result < 0)
            return result == -ENODATA ? -EIO : result;
        merkle_leaves(leaves + HASHES(done), messages, step, last);
    }
    return 0;
}

bool hash_layer_fits(const struct geometry *g, const uint8_t root[HASH_SIZE], const uint8_t *layer)
{
    uint8_t computed[HASH_SIZE];

    if (g->pieces == 1)
        return memcmp(layer, root, HASH_SIZE) == 0;
    merkle_root(computed, g, layer);
    return memcmp(computed, root, HASH_SIZE) == 0;
}

/* --- the piece layer ------------------------------------------------------------------------------- */
static const uint8_t *layer_of(const struct content *content)
{
    return __atomic_load_n(&content->layer, __ATOMIC_ACQUIRE);
}

/* Takes over `layer`, unless there is one already. */
static void keep_layer(struct content *content, uint8_t *layer)
{
    lock_take(&content->lock);
    if (content->layer == NULL) {
        __atomic_store_n(&content->layer, layer, __ATOMIC_RELEASE);
        layer = NULL;
    }
    lock_drop(&content->lock);
    free(layer);
}

bool content_has_piece_layer(const struct content *content)
{
    return layer_of(content) != NULL;
}

bool content_piece_hashes(const struct content *content, uint32_t first, uint32_t count,
                          uint8_t *out)
{
    const uint8_t *layer = layer_of(content);

    CHECK(first <= content->geometry.pieces && count <= content->geometry.pieces - first);
    if (layer == NULL)
        return false;
    memcpy(out, layer + HASHES(first), HASHES(count));
    return true;
}

int content_load_layer(struct content *content, int hash_fd)
{
    const struct geometry *g = &content->geometry;
    uint8_t *layer = malloc(HASHES(g->pieces));

    if (layer == NULL)
        return -ENOMEM;
    int result = 0;
    if (g->pieces == 1)
        memcpy(layer, content->root, HASH_SIZE);
    else
        result = file_pread_all(hash_fd, layer, HASHES(g->pieces), hash_layer_offset(g));
    if (result == -ENODATA || (result == 0 && !hash_layer_fits(g, content->root, layer)))
        result = -EBADMSG;
    if (result < 0)
        free(layer);
    else
        keep_layer(content, layer);
    return result;
}

/* --- the hash file --------------------------------------------------------------------------------- */
/* Makes an empty one of full length, sparse, under `name`; its descriptor or -errno. */
static int make_hash_file(struct content *content, const char *name)
{
    uint8_t header[STORE_HEADER];
    int fd = openat(content->store->fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
                    S_IRUSR | S_IWUSR);

    if (fd < 0)
        return -errno;
    store_header_make(header, MAGIC_HASH, content->root, content->geometry.size);
    int result = file_pwrite_all(fd, header, sizeof header, 0);
    if (result == 0 && ftruncate(fd, (off_t)hash_file_size(&content->geometry)) < 0)
        result = -errno;
    if (result == 0)
        return fd;
    close(fd);
    return result;
}

/* The content is pinned. Made when the first hashes come; doing it twice at once does no harm. */
static int need_hash_file(struct content *content)
{
    char name[NAME_SIZE];

    if (__atomic_load_n(&content->has_hash_file, __ATOMIC_ACQUIRE))
        return 0;
    store_file_name(name, content->root, SUFFIX_HASH);
    int fd = make_hash_file(content, name);
    if (fd < 0)
        return fd;
    content_take_fd(content, FD_HASH, fd);
    __atomic_store_n(&content->names_dirty, true, __ATOMIC_RELEASE);
    __atomic_store_n(&content->has_hash_file, true, __ATOMIC_RELEASE);
    return 0;
}

static int write_hashes(struct content *content, const uint8_t *hashes, size_t count,
                        uint64_t offset)
{
    int result = need_hash_file(content);

    if (result == 0)
        result = file_pwrite_all(content->fd[FD_HASH], hashes, HASHES(count), offset);
    if (result == 0)
        __atomic_store_n(&content->hash_dirty, true, __ATOMIC_RELEASE);
    return result;
}

int content_set_piece_layer(struct content *content, const uint8_t *hashes)
{
    const struct geometry *g = &content->geometry;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (!hash_layer_fits(g, content->root, hashes))
        return -EBADMSG;
    if (content_has_piece_layer(content))
        return 0;
    uint8_t *layer = malloc(HASHES(g->pieces));
    if (layer == NULL)
        return -ENOMEM;
    memcpy(layer, hashes, HASHES(g->pieces));
    int result = content_pin(content);
    if (result == 0) {
        result = write_hashes(content, hashes, g->pieces, hash_layer_offset(g));
        content_unpin(content, result == 0);
    }
    if (result < 0)
        free(layer);
    else
        keep_layer(content, layer);
    return result;
}

/* --- block hashes: the cache ------------------------------------------------------------------------ */
/* leaves_lock is held. */
static void cache_unlink(struct store *store, struct leaves *leaves)
{
    *(leaves->newer ? &leaves->newer->older : &store->newest) = leaves->older;
    *(leaves->older ? &leaves->older->newer : &store->oldest) = leaves->newer;
}

static void cache_to_front(struct store *store, struct leaves *leaves)
{
    leaves->newer = NULL;
    leaves->older = store->newest;
    *(store->newest ? &store->newest->newer : &store->oldest) = leaves;
    store->newest = leaves;
}

static void cache_remove(struct store *store, struct leaves *leaves)
{
    cache_unlink(store, leaves);
    store->leaves_memory -= sizeof *leaves + HASHES(leaves->count);
    leaves->content->leaves[leaves->piece] = NULL;
    free(leaves);
}

/* Takes over verified block hashes of a piece. */
static void cache_add(struct content *content, struct leaves *leaves)
{
    struct store *store = content->store;

    lock_take(&store->leaves_lock);
    if (content->leaves == NULL)
        content->leaves = calloc(content->geometry.pieces, sizeof *content->leaves);
    if (content->leaves == NULL || content->leaves[leaves->piece] != NULL) {
        lock_drop(&store->leaves_lock);
        free(leaves);
        return;
    }
    content->leaves[leaves->piece] = leaves;
    store->leaves_memory += sizeof *leaves + HASHES(leaves->count);
    cache_to_front(store, leaves);
    while (store->leaves_memory > LIMIT_STORE_HASHES && store->oldest != leaves)
        cache_remove(store, store->oldest);
    lock_drop(&store->leaves_lock);
}

static bool cache_copy(struct content *content, uint32_t piece, uint64_t skip, uint32_t count,
                       uint8_t *out)
{
    struct store *store = content->store;
    struct leaves *leaves;

    lock_take(&store->leaves_lock);
    leaves = content->leaves == NULL ? NULL : content->leaves[piece];
    if (leaves != NULL) {
        if (store->newest != leaves) {
            cache_unlink(store, leaves);
            cache_to_front(store, leaves);
        }
        memcpy(out, leaves->hashes + HASHES(skip), HASHES(count));
    }
    lock_drop(&store->leaves_lock);
    return leaves != NULL;
}

void content_forget_leaves(struct content *content)
{
    struct store *store = content->store;

    lock_take(&store->leaves_lock);
    for (uint32_t i = 0; content->leaves != NULL && i < content->geometry.pieces; i++) {
        if (content->leaves[i] != NULL)
            cache_remove(store, content->leaves[i]);
    }
    free(content->leaves);
    content->leaves = NULL;
    lock_drop(&store->leaves_lock);
}

/* --- block hashes ----------------------------------------------------------------------------------- */
static struct leaves *leaves_new(struct content *content, uint32_t piece)
{
    uint64_t first;
    uint32_t count;

    geometry_piece(&content->geometry, piece, &first, &count);
    struct leaves *leaves = malloc(sizeof *leaves + HASHES(count));
    if (leaves != NULL) {
        leaves->content = content;
        leaves->piece = piece;
        leaves->count = count;
    }
    return leaves;
}

static bool leaves_fit(const struct content *content, const uint8_t *layer, uint32_t piece,
                       const uint8_t *hashes)
{
    uint8_t node[HASH_SIZE];

    merkle_piece(node, &content->geometry, piece, hashes);
    return memcmp(node, layer + HASHES(piece), HASH_SIZE) == 0;
}

bool content_has_leaves(const struct content *content, uint32_t piece)
{
    CHECK(piece < content->geometry.pieces);
    return content->geometry.blocks == 1 ||
           (content_has_piece_layer(content) &&
            (bitmap_test(content->known, piece) || content_has_piece(content, piece)));
}

static int store_leaves(struct content *content, uint32_t piece, const uint8_t *hashes)
{
    uint64_t first;
    uint32_t count;

    geometry_piece(&content->geometry, piece, &first, &count);
    int result = write_hashes(content, hashes, count, hash_leaf_offset(first));
    if (result == 0)
        bitmap_set(content->known, piece);
    return result;
}

int content_set_leaves(struct content *content, uint32_t piece, const uint8_t *hashes)
{
    const struct geometry *g = &content->geometry;
    const uint8_t *layer = layer_of(content);

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(piece < g->pieces);
    if (layer == NULL)
        return -ENODATA;
    if (!leaves_fit(content, layer, piece, hashes))
        return -EBADMSG;
    if (g->blocks == 1)
        return 0;
    /* Even if they are known: the file's may be damaged, which is not noticed before they are needed. */
    struct leaves *leaves = leaves_new(content, piece);
    if (leaves == NULL)
        return -ENOMEM;
    memcpy(leaves->hashes, hashes, HASHES(leaves->count));
    int result = content_pin(content);
    if (result == 0) {
        result = store_leaves(content, piece, hashes);
        content_unpin(content, result == 0);
    }
    if (result < 0)
        free(leaves);
    else
        cache_add(content, leaves);
    return result;
}

bool content_set_leaves_now(struct content *content, uint32_t piece, const uint8_t *hashes,
                            int *result)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (!content_has_piece_layer(content) || !content_pin_now(content))
        return false;
    bool now = content->geometry.blocks == 1 || content->fd[FD_HASH] >= 0;
    if (now)
        *result = content_set_leaves(content, piece, hashes);
    content_unpin(content, false);
    return now;
}

/* The hash file's are no good. If the piece is whole they can be had from its data. */
static int heal_leaves(struct content *content, const uint8_t *layer, struct leaves *leaves)
{
    uint32_t piece = leaves->piece;
    uint64_t first = (uint64_t)piece * content->geometry.piece_blocks;

    if (!content_has_piece(content, piece)) {
        bitmap_clear(content->known, piece); /* they can be asked for again */
        return -ENODATA;
    }
    uint8_t *buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
    if (buffer == NULL)
        return -ENOMEM;
    int result = hash_blocks(content->cipher, content->fd[FD_DATA], &content->geometry, first,
                             leaves->count, leaves->hashes, buffer);
    free(buffer);
    if (result < 0)
        return result;
    if (leaves_fit(content, layer, piece, leaves->hashes))
        return store_leaves(content, piece, leaves->hashes);
    content_lose(content, first, leaves->count);
    bitmap_clear(content->known, piece);
    return -ENODATA;
}

/* Reads the block hashes of a piece from the hash file and checks them. The content is pinned. */
static int load_leaves(struct content *content, uint32_t piece, struct leaves **out)
{
    const uint8_t *layer = layer_of(content);
    int result = -EBADMSG;

    if (layer == NULL || !content_has_leaves(content, piece))
        return -ENODATA;
    struct leaves *leaves = leaves_new(content, piece);
    if (leaves == NULL)
        return -ENOMEM;
    if (content->fd[FD_HASH] >= 0)
        result = file_pread_all(content->fd[FD_HASH], leaves->hashes, HASHES(leaves->count),
                                hash_leaf_offset((uint64_t)piece * content->geometry.piece_blocks));
    if (result == -EBADMSG || result == -ENODATA ||
        (result == 0 && !leaves_fit(content, layer, piece, leaves->hashes)))
        result = heal_leaves(content, layer, leaves);
    if (result < 0)
        free(leaves);
    else
        *out = leaves;
    return result;
}

/* Who needs one piece's hashes will need the next ones', and pieces may be small. */
static void load_more(struct content *content, uint32_t piece)
{
    const struct geometry *g = &content->geometry;
    uint32_t more = LEAVES_AHEAD / g->piece_blocks;
    struct leaves *leaves;

    while (more-- > 0 && ++piece < g->pieces && content_has_leaves(content, piece) &&
           load_leaves(content, piece, &leaves) == 0)
        cache_add(content, leaves);
}

/* The content is pinned. *missed: they were not in memory. */
static int get_leaves(struct content *content, uint64_t first, uint32_t count, uint8_t *out,
                      bool *missed)
{
    const struct geometry *g = &content->geometry;
    uint32_t piece = (uint32_t)(first / g->piece_blocks);
    uint64_t skip = first % g->piece_blocks;
    struct leaves *leaves;

    *missed = false;
    if (g->blocks == 1) {
        memcpy(out, content->root, HASH_SIZE);
        return 0;
    }
    if (cache_copy(content, piece, skip, count, out))
        return 0;
    *missed = true;
    int result = load_leaves(content, piece, &leaves);
    if (result < 0)
        return result;
    memcpy(out, leaves->hashes + HASHES(skip), HASHES(count));
    cache_add(content, leaves);
    return 0;
}

int content_leaves(struct content *content, uint64_t first, uint32_t count, uint8_t *out)
{
    bool missed;
    int result = get_leaves(content, first, count, out, &missed);

    if (result == 0 && missed)
        load_more(content, (uint32_t)(first / content->geometry.piece_blocks));
    return result;
}

int content_block_hashes(struct content *content, uint64_t first, uint32_t count, uint8_t *out)
{
    const struct geometry *g = &content->geometry;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(count > 0 && first < g->blocks && count <= g->blocks - first);
    CHECK(first / g->piece_blocks == (first + count - 1) / g->piece_blocks);
    int result = content_pin(content);
    bool missed;
    if (result == 0) {
        result = get_leaves(content, first, count, out, &missed);
        content_unpin(content, false);
    }
    return result;
}

void content_block_hashes_ahead(struct content *content, uint64_t block)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    if (content->geometry.blocks == 1 || content_pin(content) < 0)
        return;
    load_more(content, (uint32_t)(block / content->geometry.piece_blocks));
    content_unpin(content, false);
}

bool content_block_hashes_now(struct content *content, uint64_t first, uint32_t count, uint8_t *out)
{
    const struct geometry *g = &content->geometry;

    CHECK_OBJECT(content, CONTENT_MAGIC);
    CHECK(count > 0 && first < g->blocks && count <= g->blocks - first);
    if (g->blocks == 1) {
        memcpy(out, content->root, HASH_SIZE);
        return true;
    }
    return cache_copy(content, (uint32_t)(first / g->piece_blocks), first % g->piece_blocks, count,
                      out);
}

/* --- anew from the data ------------------------------------------------------------------------------ */
/* All block hashes into the file, and the layer into memory. */
static int rebuild_into(struct content *content, int data_fd, int hash_fd, uint8_t *layer)
{
    const struct geometry *g = &content->geometry;
    uint8_t *buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
    uint8_t *leaves = malloc(HASHES(g->piece_blocks));
    int result = buffer == NULL || leaves == NULL ? -ENOMEM : 0;

    for (uint32_t piece = 0; piece < g->pieces && result == 0; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(g, piece, &first, &count);
        result = hash_blocks(content->cipher, data_fd, g, first, count, leaves, buffer);
        if (result == 0) {
            merkle_piece(layer + HASHES(piece), g, piece, leaves);
            result = file_pwrite_all(hash_fd, leaves, HASHES(count), hash_leaf_offset(first));
        }
    }
    free(buffer);
    free(leaves);
    if (result == 0 && !hash_layer_fits(g, content->root, layer))
        result = -EBADMSG;
    if (result == 0)
        result = file_pwrite_all(hash_fd, layer, HASHES(g->pieces), hash_layer_offset(g));
    if (result == 0 && fdatasync(hash_fd) < 0)
        result = -errno;
    return result;
}

int content_rebuild_hashes(struct content *content, int data_fd)
{
    char name[NAME_SIZE], digits[2 * HASH_SIZE + 1];
    uint8_t *layer = malloc(HASHES(content->geometry.pieces));

    if (layer == NULL)
        return -ENOMEM;
    hex_encode(digits, content->root, HASH_SIZE);
    log_warning("store: the hashes of %s are damaged, made anew", digits);
    store_file_name(name, content->root, SUFFIX_HASH);
    int fd = make_hash_file(content, name);
    if (fd < 0) {
        free(layer);
        return fd;
    }
    int result = rebuild_into(content, data_fd, fd, layer);
    if (result < 0) {
        free(layer);
        close(fd);
        return result;
    }
    keep_layer(content, layer);
    content_take_fd(content, FD_HASH, fd);
    content->has_hash_file = true;
    return 0;
}
