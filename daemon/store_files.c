/* Owns the names and headers of the store's files and the scan of its directory; leaves their contents to
 * content_open.c.
 *
 * A content is in one of two states on disk, told apart by the name of its data file alone:
 *
 *   incomplete   HH/ROOT.part and HH/ROOT.map, and HH/ROOT.hash when the first hashes came
 *   complete     HH/ROOT.data, and HH/ROOT.hash unless the file is one block, whose hash is the root
 *
 * The step is one rename, made when all data and hashes are durable (content_sync.c). So whatever a crash leaves
 * behind is read one way only: .data counts, a map beside it is left over; .part without a good map is
 * worthless; .map and .hash alone are left over.
 *
 * Header of .map and .hash, 4096 bytes, integers little-endian, the rest zero:
 *    0  8 bytes  magic
 *    8  u32      version, 1
 *   12  u32      0
 *   16  u64      size of the content
 *   24  32 bytes root
 *   64  u64      .map only: generation, any number, which grows when blocks are taken away
 *   72  u64      .map only: not 0 while the space of such blocks is given back
 * .map: header, present bits (of blocks), synced bits (of blocks), known bits (of pieces whose block hashes stand in
 * .hash), each bitmap padded to 4096. .hash: header, block hashes, piece layer; both are checked against the root
 * when they are read, so nothing in it needs to be trusted.
 *
 * Thread: the scan runs in store_open; the rest on any. */
#include "daemon/store_private.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"

#define VERSION 1

void store_file_name(char name[NAME_SIZE], const uint8_t root[HASH_SIZE], const char *suffix)
{
    char digits[2 * HASH_SIZE + 1];

    hex_encode(digits, root, HASH_SIZE);
    snprintf(name, NAME_SIZE, "%.2s/%s.%s", digits, digits, suffix);
}

void store_header_make(uint8_t header[STORE_HEADER], const char magic[8],
                       const uint8_t root[HASH_SIZE], uint64_t size)
{
    uint32_t version = htole32(VERSION);
    uint64_t le_size = htole64(size);

    memset(header, 0, STORE_HEADER);
    memcpy(header, magic, 8);
    memcpy(header + 8, &version, 4);
    memcpy(header + 16, &le_size, 8);
    memcpy(header + 24, root, HASH_SIZE);
}

bool store_header_fits(const uint8_t header[STORE_HEADER], const char magic[8],
                       const uint8_t root[HASH_SIZE], uint64_t size)
{
    uint8_t wanted[STORE_HEADER];

    store_header_make(wanted, magic, root, size);
    memcpy(wanted + MAP_GENERATION, header + MAP_GENERATION, MAP_EVICTING + 8 - MAP_GENERATION);
    return memcmp(header, wanted, STORE_HEADER) == 0;
}

int store_make_map(struct content *content)
{
    uint8_t header[STORE_HEADER];
    uint64_t generation = random_u64();
    char name[NAME_SIZE];

    store_file_name(name, content->root, SUFFIX_MAP);
    int fd = openat(content->store->fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                    S_IRUSR | S_IWUSR);
    if (fd < 0)
        return -errno;
    store_header_make(header, MAGIC_MAP, content->root, content->geometry.size);
    memcpy(header + MAP_GENERATION, &generation, sizeof generation);
    int result = -posix_fallocate(fd, 0, (off_t)(STORE_HEADER + content->map_size)); /* S5 */
    if (result == 0)
        result = file_pwrite_all(fd, header, sizeof header, 0);
    if (result == 0)
        return fd;
    close(fd);
    store_unlink(content->store, content->root, SUFFIX_MAP);
    return result;
}

size_t store_bits_size(uint64_t bits)
{
    return (bitmap_bytes(bits) + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
}

size_t store_map_size(const struct geometry *g)
{
    return 2 * store_bits_size(g->blocks) + store_bits_size(g->pieces);
}

bool store_is_encrypted(const struct store *store)
{
    return store->key != NULL;
}

uint64_t store_size_of_length(const struct store *store, uint64_t length)
{
    return file_cipher_size(store->key != NULL, length);
}

int store_make_folder(struct store *store, const uint8_t root[HASH_SIZE])
{
    char name[3];

    snprintf(name, sizeof name, "%02x", root[0]);
    if (mkdirat(store->fd, name, S_IRWXU) < 0)
        return errno == EEXIST ? 0 : -errno;
    return fsync(store->fd) < 0 ? -errno : 0;
}

int store_sync_folder(struct store *store, const uint8_t root[HASH_SIZE])
{
    char name[3];
    int fd, result;

    snprintf(name, sizeof name, "%02x", root[0]);
    fd = openat(store->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    result = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return result;
}

void store_unlink(struct store *store, const uint8_t root[HASH_SIZE], const char *suffix)
{
    char name[NAME_SIZE];

    store_file_name(name, root, suffix);
    if (unlinkat(store->fd, name, 0) < 0 && errno != ENOENT)
        log_warning("store: %s cannot be deleted: %s", name, strerror(errno));
}

/* The data goes first: without it the others mean nothing. */
void store_unlink_all(struct store *store, const uint8_t root[HASH_SIZE])
{
    store_unlink(store, root, SUFFIX_DATA);
    store_unlink(store, root, SUFFIX_PART);
    store_unlink(store, root, SUFFIX_MAP);
    store_unlink(store, root, SUFFIX_HASH);
}

/* --- the scan --------------------------------------------------------------------------------- */
enum { HAS_DATA = 1, HAS_PART = 2, HAS_MAP = 4, HAS_HASH = 8 };
static const struct {
    const char *suffix;
    int flag;
} suffixes[] = {{SUFFIX_DATA, HAS_DATA},
                {SUFFIX_PART, HAS_PART},
                {SUFFIX_MAP, HAS_MAP},
                {SUFFIX_HASH, HAS_HASH}};

struct found {
    uint8_t root[HASH_SIZE];
    int flags;
};

/* One folder's files, gathered by root. */
struct folder {
    struct found *found;
    size_t count, room;
    size_t strangers;
    char stranger[64];
};

static bool parse_name(const char *folder, const char *name, struct found *out)
{
    char digits[2 * HASH_SIZE + 1];

    if (strlen(name) < 2 * HASH_SIZE + 2 || name[2 * HASH_SIZE] != '.')
        return false;
    memcpy(digits, name, 2 * HASH_SIZE);
    digits[2 * HASH_SIZE] = '\0';
    if (strncmp(digits, folder, 2) != 0 || strspn(digits, "0123456789abcdef") != 2 * HASH_SIZE ||
        !hex_decode(out->root, HASH_SIZE, digits))
        return false;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        if (strcmp(name + 2 * HASH_SIZE + 1, suffixes[i].suffix) == 0) {
            out->flags = suffixes[i].flag;
            return true;
        }
    }
    return false;
}

static int by_root(const void *a, const void *b)
{
    return memcmp(((const struct found *)a)->root, ((const struct found *)b)->root, HASH_SIZE);
}

static void read_folder(struct folder *folder, DIR *directory, const char *name)
{
    const struct dirent *entry;

    while ((entry = readdir(directory)) != NULL) {
        struct found found;
        const char *dot = strrchr(entry->d_name, '.');

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            (dot != NULL && strcmp(dot + 1, SUFFIX_DAMAGED) == 0))
            continue;
        if (!parse_name(name, entry->d_name, &found)) {
            if (folder->strangers++ == 0)
                snprintf(folder->stranger, sizeof folder->stranger, "%s/%.48s", name,
                         entry->d_name);
            continue;
        }
        if (folder->count == folder->room) {
            folder->room = folder->room == 0 ? 64 : folder->room * 2;
            folder->found = xrealloc(folder->found, folder->room * sizeof *folder->found);
        }
        folder->found[folder->count++] = found;
    }
    if (folder->count > 1)
        qsort(folder->found, folder->count, sizeof *folder->found, by_root);
}

/* Bytes of an incomplete content that need no checking; opening it looks closer. -EBADMSG if its map is no good, -ENOENT if
 * there is none, or -errno. */
static int read_map(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                    uint64_t *bytes)
{
    char name[NAME_SIZE];
    uint8_t header[STORE_HEADER], present[STORE_PAGE], synced[STORE_PAGE];
    struct geometry g = geometry_of(size);
    struct stat status;
    uint64_t blocks = 0;
    bool last = false;

    store_file_name(name, root, SUFFIX_MAP);
    int fd = openat(store->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    int result = -EBADMSG;
    if (fstat(fd, &status) == 0 && (uint64_t)status.st_size == STORE_HEADER + store_map_size(&g))
        result = file_pread_all(fd, header, sizeof header, 0);
    if (result == 0 && !store_header_fits(header, MAGIC_MAP, root, size))
        result = -EBADMSG;
    size_t bits_size = store_bits_size(g.blocks);
    for (size_t at = 0; result == 0 && at < bits_size; at += STORE_PAGE) {
        uint64_t first = (uint64_t)at * 8;
        uint64_t count = g.blocks - first < STORE_PAGE * 8 ? g.blocks - first : STORE_PAGE * 8;
        result = file_pread_all(fd, present, STORE_PAGE, STORE_HEADER + at);
        if (result == 0)
            result = file_pread_all(fd, synced, STORE_PAGE, STORE_HEADER + bits_size + at);
        if (result < 0)
            break;
        for (size_t i = 0; i < STORE_PAGE; i++)
            present[i] &= synced[i];
        blocks += bitmap_count(present, 0, count);
        last = bitmap_test(present, count - 1);
    }
    close(fd);
    *bytes = blocks * BLOCK_SIZE;
    if (last)
        *bytes -= BLOCK_SIZE - geometry_block_size(&g, g.blocks - 1);
    return result;
}

static void add_found(struct store *store, const struct found *found)
{
    char name[NAME_SIZE];
    struct stat status;
    uint64_t bytes = 0;
    bool complete = (found->flags & HAS_DATA) != 0;

    if ((found->flags & (HAS_DATA | HAS_PART)) == 0) { /* a crash while it was made or deleted */
        store_unlink_all(store, found->root);
        return;
    }
    store_file_name(name, found->root, complete ? SUFFIX_DATA : SUFFIX_PART);
    if (fstatat(store->fd, name, &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(status.st_mode)) {
        log_warning("store: %s is not a file, ignored", name);
        return;
    }
    uint64_t size = store_size_of_length(store, (uint64_t)status.st_size);
    int map = complete || size == 0 || size > FILE_SIZE_MAX
                  ? 0
                  : read_map(store, found->root, size, &bytes);
    if (size == 0 || size > FILE_SIZE_MAX || map == -EBADMSG || map == -ENOENT || map == -ENODATA) {
        log_warning("store: %s is damaged, deleted", name);
        store_unlink_all(store, found->root);
        return;
    }
    if (complete && (found->flags & HAS_PART) != 0)
        store_unlink(store, found->root, SUFFIX_PART);
    if (complete && (found->flags & HAS_MAP) != 0)
        store_unlink(store, found->root, SUFFIX_MAP);
    struct record *record = store_add_record(store, found->root, size, complete ? size : bytes);
    int64_t read = status.st_atim.tv_sec, written = status.st_mtim.tv_sec;
    record->used = used_at(read > written ? read : written);
    record->own = (status.st_mode & S_IXUSR) != 0;
}

static int scan_folder(struct store *store, const char *name, struct folder *folder)
{
    int fd = openat(store->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        close(fd);
        return -ENOMEM;
    }
    folder->count = 0;
    read_folder(folder, directory, name);
    closedir(directory);
    for (size_t i = 0; i < folder->count;) {
        struct found found = folder->found[i++];
        for (; i < folder->count && by_root(&found, &folder->found[i]) == 0; i++)
            found.flags |= folder->found[i].flags;
        add_found(store, &found);
    }
    return 0;
}

int store_scan(struct store *store)
{
    struct folder folder = {0};
    int result = 0;

    for (unsigned i = 0; i < 256 && result == 0; i++) {
        char name[3];
        snprintf(name, sizeof name, "%02x", i);
        result = scan_folder(store, name, &folder);
    }
    if (folder.strangers > 0)
        log_warning("store: %zu files are not the store's and are ignored, such as %s",
                    folder.strangers, folder.stranger);
    free(folder.found);
    return result;
}
