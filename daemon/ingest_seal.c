/* Owns how a working file ends: sealed into the store, or found again after a restart.
 *
 * Seal, in this order, so that a crash at any point leaves the working file or a whole content:
 *   1  set the length; hash what is not hashed or was written again; layer and root
 *   2  the store has the root: complete: it is used, and the working file is dropped by the caller when that is durable;
 *      incomplete: what it lacks is put in from here
 *   3  else fdatasync the data; write the hash file and fdatasync it
 *   4  stamp the data (content_trust.c); rename both into the store, the data last; fsync the folder
 * Any failure before the last rename leaves the working file as it is, to be sealed again. After a failed sync the kernel
 * has forgotten which pages did not reach the disk: then all of it is written again, as far as it is still what was hashed;
 * if that does not help either it is never sealed.
 *
 * Thread: a worker. Memory: 256 KiB, and 32 bytes a piece. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "daemon/ingest_private.h"
#include "daemon/store_private.h"

#define SYNC_AGAIN 5

/* What is known about the file while it is sealed. */
struct seal {
    struct ingest *ingest;
    struct geometry geometry;
    uint8_t root[HASH_SIZE];
    uint8_t *layer;
    uint8_t *buffer;      /* STRETCH blocks */
    struct timespec time; /* of the last change of the file, when all of it was written */
};

/* --- hashing what is left ------------------------------------------------------------------------------------ */
static int hash_range(struct seal *seal, uint64_t first, uint64_t end)
{
    uint8_t leaves[HASHES(STRETCH)];
    int result = 0;

    for (uint64_t step; first < end && result == 0; first += step) {
        step = end - first < STRETCH ? end - first : STRETCH;
        result = hash_blocks(seal->ingest->cipher, seal->ingest->fd, &seal->geometry, first, step,
                             leaves, seal->buffer);
        if (result == 0)
            result = ingest_put_leaves(seal->ingest, first, step, leaves);
    }
    return result;
}

static int hash_again(struct seal *seal)
{
    struct ingest *ingest = seal->ingest;
    int result = 0;

    uint64_t first = bitmap_next_set(ingest->dirty, 0, ingest->hashed);
    while (first < ingest->hashed && result == 0) {
        uint64_t end = bitmap_next_clear(ingest->dirty, first, ingest->hashed);
        result = hash_range(seal, first, end);
        for (uint64_t block = first; block < end && result == 0; block++)
            bitmap_clear(ingest->dirty, block);
        first = bitmap_next_set(ingest->dirty, end, ingest->hashed);
    }
    return result;
}

static int hash_rest(struct seal *seal)
{
    struct ingest *ingest = seal->ingest;
    uint64_t whole = seal->geometry.size / BLOCK_SIZE;

    lock_take(&ingest->lock);
    if (ingest->hashed > whole)
        ingest->hashed = ingest->hashing = whole;
    lock_drop(&ingest->lock);
    int result = hash_again(seal);
    if (result == 0)
        result = hash_range(seal, ingest->hashed, seal->geometry.blocks);
    return result;
}

static int make_layer(struct seal *seal)
{
    const struct geometry *g = &seal->geometry;
    uint8_t *leaves = xmalloc(HASHES(g->piece_blocks));
    int result = 0;

    for (uint32_t piece = 0; piece < g->pieces && result == 0; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(g, piece, &first, &count);
        result = ingest_get_leaves(seal->ingest, first, count, leaves);
        if (result == 0)
            merkle_piece(seal->layer + HASHES(piece), g, piece, leaves);
    }
    free(leaves);
    if (g->pieces == 1)
        memcpy(seal->root, seal->layer, HASH_SIZE);
    else
        merkle_root(seal->root, g, seal->layer);
    return result;
}

/* --- into the store -------------------------------------------------------------------------------------------- */
/* Puts the blocks that the store lacks of one piece. */
static int fill_piece(struct seal *seal, struct content *content, uint32_t piece)
{
    const struct geometry *g = &seal->geometry;
    const uint8_t *blocks[STRETCH];
    int verdicts[STRETCH];
    uint8_t *leaves = xmalloc(HASHES(g->piece_blocks));
    uint64_t first;
    uint32_t count;

    geometry_piece(g, piece, &first, &count);
    int result = ingest_get_leaves(seal->ingest, first, count, leaves);
    if (result == 0)
        result = content_set_leaves(content, piece, leaves);
    free(leaves);
    for (unsigned i = 0; i < STRETCH; i++)
        blocks[i] = seal->buffer + (size_t)BLOCK_SIZE * i;
    for (uint64_t at = first; at < first + count && result == 0; at += STRETCH) {
        uint64_t step = first + count - at < STRETCH ? first + count - at : STRETCH;
        uint64_t end = (at + step) * BLOCK_SIZE < g->size ? (at + step) * BLOCK_SIZE : g->size;
        if (bitmap_all(content_present(content), at, step))
            continue;
        result = file_cipher_pread_all(seal->ingest->cipher, seal->ingest->fd, seal->buffer,
                                       end - at * BLOCK_SIZE, at * BLOCK_SIZE);
        if (result == 0)
            result = content_put(content, at, (uint32_t)step, blocks, verdicts);
    }
    return result;
}

static int fill_content(struct seal *seal, struct content *content)
{
    int result = content_set_piece_layer(content, seal->layer);

    for (uint32_t piece = 0; piece < seal->geometry.pieces && result == 0; piece++) {
        if (!content_has_piece(content, piece))
            result = fill_piece(seal, content, piece);
    }
    return result;
}

static int write_hash_file(struct seal *seal)
{
    struct ingest *ingest = seal->ingest;
    const struct geometry *g = &seal->geometry;
    uint8_t header[STORE_HEADER];
    int result = ingest_need_hash_file(ingest, g->blocks);

    if (result < 0)
        return result;
    store_header_make(header, MAGIC_HASH, seal->root, g->size);
    result = file_pwrite_all(ingest->hash_fd, header, sizeof header, 0);
    if (result == 0)
        result =
            file_pwrite_all(ingest->hash_fd, seal->layer, HASHES(g->pieces), hash_layer_offset(g));
    if (result == 0 && (ftruncate(ingest->hash_fd, (off_t)hash_file_size(g)) < 0 ||
                        fdatasync(ingest->hash_fd) < 0))
        result = -errno;
    return result;
}

/* Everything has a hash. -EIO if the file has other bytes by now. */
static int write_again(struct seal *seal)
{
    struct ingest *ingest = seal->ingest;
    const struct geometry *g = &seal->geometry;
    uint8_t wanted[HASHES(STRETCH)], found[HASHES(STRETCH)];
    int result = 0;

    for (uint64_t at = 0, step; at < g->blocks && result == 0; at += step) {
        step = g->blocks - at < STRETCH ? g->blocks - at : STRETCH;
        uint64_t end = (at + step) * BLOCK_SIZE < g->size ? (at + step) * BLOCK_SIZE : g->size;
        result = ingest_get_leaves(ingest, at, step, wanted);
        if (result == 0)
            result = hash_blocks(ingest->cipher, ingest->fd, g, at, step, found, seal->buffer);
        if (result == 0 && memcmp(wanted, found, HASHES(step)) != 0)
            result = -EIO;
        if (result == 0)
            result = file_cipher_pwrite_all(ingest->cipher, ingest->fd, seal->buffer,
                                            end - at * BLOCK_SIZE, at * BLOCK_SIZE);
    }
    return result;
}

static int sync_data(struct seal *seal)
{
    struct ingest *ingest = seal->ingest;
    struct stat status;

    if (ingest->broken == 0 && !ingest->unsynced && fsync(ingest->fd) == 0)
        return 0;
    int error = ingest->unsynced ? -EIO : -errno;
    for (int i = 0; i < SYNC_AGAIN && ingest->broken == 0; i++) {
        int written = write_again(seal);
        if (written == 0 && fsync(ingest->fd) == 0) {
            log_warning("store: the disk failed to keep a new file, which was written again: %s",
                        strerror(-error));
            ingest->unsynced = false;
            if (fstat(ingest->fd, &status) == 0)
                seal->time = status.st_mtim;
            return 0;
        }
    }
    if (ingest->broken == 0)
        ingest->broken = error;
    return ingest->broken;
}

static int make_durable(struct seal *seal)
{
    (void)fchmod(seal->ingest->fd, MODE_OWN);
    int result = sync_data(seal);
    return result < 0 || seal->geometry.blocks == 1 ? result : write_hash_file(seal);
}

static int adopt(struct seal *seal)
{
    char data[INGEST_NAME], hash[INGEST_NAME];
    struct stat status;

    if (store_stamp(seal->ingest->fd, &seal->time) && fstat(seal->ingest->fd, &status) == 0)
        seal->time = status.st_mtim;
    ingest_data_name(seal->ingest, data);
    ingest_hash_name(seal->ingest, hash);
    return store_adopt(seal->ingest->store, seal->root, seal->geometry.size, data,
                       seal->geometry.blocks == 1 ? NULL : hash);
}

/* Another content with this root is here already. Its reference is taken over. */
static int join(struct seal *seal, struct content *content)
{
    int result = content->record->own
                     ? 0
                     : content_own(content); /* first: from now on no block of it goes */

    if (result == 0 && !content_complete(content))
        result = fill_content(seal, content);
    if (result == 0)
        result = content_sync(content);
    if (result == 0)
        result = store_sync_folder(seal->ingest->store, seal->root);
    if (result < 0)
        content_release(content);
    return result;
}

/* Steps 2 to 4. */
static struct content *enter(struct seal *seal, int *error)
{
    struct store *store = seal->ingest->store;
    uint64_t size = seal->geometry.size;
    bool durable = false, fresh = seal->ingest->adopted;

    for (;;) {
        struct content *content = store_revive(store, seal->root, size, error);
        if (content != NULL && !fresh) {
            *error = join(seal, content);
            return *error == 0 ? content : NULL;
        }
        if (content != NULL) {
            content_trust(content, 0, seal->geometry.blocks, &seal->time);
            store_tell(content, 0, seal->geometry.blocks, true);
        }
        if (content != NULL || *error != -ENOENT)
            return content;
        *error = durable ? 0 : make_durable(seal);
        if (*error < 0)
            return NULL;
        durable = true;
        *error = adopt(seal);
        if (*error < 0 && *error != -EEXIST)
            return NULL;
        seal->ingest->adopted = fresh = *error == 0;
    }
}

static int set_length(struct seal *seal, uint64_t size)
{
    struct ingest *ingest = seal->ingest;
    struct stat status;

    if (fstat(ingest->fd, &status) < 0)
        return -errno;
    bool right = (uint64_t)status.st_size == file_cipher_length(ingest->cipher != NULL, size);
    if (ingest->adopted && !right)
        return -EINVAL; /* it is the store's, and never changes again */
    int result = right ? 0 : file_cipher_truncate(ingest->cipher, ingest->fd, size);
    if (result < 0)
        return result;
    if (!right && fstat(ingest->fd, &status) < 0)
        return -errno;
    seal->time = status.st_mtim;
    return 0;
}

struct content *ingest_seal(struct ingest *ingest, uint64_t size, int *error)
{
    struct seal seal = {.ingest = ingest};
    struct content *content = NULL;

    CHECK_OBJECT(ingest, INGEST_MAGIC);
    *error = size > FILE_SIZE_MAX ? -EFBIG : 0;
    if (*error == 0)
        *error = set_length(&seal, size);
    if (*error < 0)
        return NULL;
    if (size == 0)
        return NULL;
    sync_file_range(ingest->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    seal.geometry = geometry_of(size);
    seal.buffer = malloc((size_t)STRETCH * BLOCK_SIZE);
    seal.layer = malloc(HASHES(seal.geometry.pieces));
    *error = seal.buffer == NULL || seal.layer == NULL ? -ENOMEM : 0;
    if (*error == 0)
        *error = hash_rest(&seal);
    if (*error == 0)
        *error = make_layer(&seal);
    if (*error == 0)
        content = enter(&seal, error);
    free(seal.buffer);
    free(seal.layer);
    return content;
}

/* --- after a restart ----------------------------------------------------------------------------------------------- */
/* "N", "N.kept", "N.hash" */
static bool parse_name(const char *name, uint64_t *number, const char **suffix)
{
    char digits[24];
    size_t length = strspn(name, "0123456789");

    if (length == 0 || length >= sizeof digits || (name[length] != '\0' && name[length] != '.'))
        return false;
    memcpy(digits, name, length);
    digits[length] = '\0';
    *suffix = name + length;
    return number_parse(digits, 0, UINT64_MAX - 1, number);
}

/* True if the file was marked and nobody holds it any more; what nobody holds and is not marked is deleted. */
static bool is_orphan(struct store *store, const char *name, bool marked, uint64_t *size)
{
    struct stat status;
    int fd = openat(store->incoming, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool orphan = false;

    if (fd < 0)
        return false;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &status) == 0) {
        orphan = marked;
        *size = store_size_of_length(store, (uint64_t)status.st_size);
        if (!marked && unlinkat(store->incoming, name, 0) < 0)
            log_warning("store: incoming/%s cannot be deleted: %s", name, strerror(errno));
    }
    close(fd);
    return orphan;
}

void ingest_recover(struct store *store, void (*found)(void *arg, uint64_t number, uint64_t size),
                    void *arg)
{
    int fd = openat(store->fd, "incoming", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    if (directory == NULL) {
        log_error("store: incoming cannot be read: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name, *suffix;
        uint64_t number, size;

        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        bool known = parse_name(name, &number, &suffix);
        bool marked = known && strcmp(suffix, ".kept") == 0;
        if (known && number >= store->first_number)
            continue; /* of this process */
        if (known && strcmp(suffix, ".hash") == 0)
            unlinkat(store->incoming, name, 0); /* hashed again when the data is */
        else if (known && (marked || *suffix == '\0')) {
            if (is_orphan(store, name, marked, &size))
                found(arg, number, size);
        } else {
            log_warning("store: incoming/%.48s is not the store's and is ignored", name);
        }
    }
    closedir(directory);
}
