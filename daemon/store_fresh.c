/* Owns how a small content becomes durable with one sync, and what the store believes of such a one after a restart.
 *
 * A file of its own costs a sync of its data and, behind the rename, one of its folder: each makes the file system commit
 * its journal. Small contents go the other way round: renamed first, synced then. On the file systems that are named
 * below a sync of a file that was renamed takes the rename with it, as both change the inode in one transaction; elsewhere
 * nothing is done so. Between rename and sync the file says by its mode that it is fresh (MODE_FRESH), and the mode
 * changes only after the sync: so after a power loss a file that says so is read, and stays if it is what its name says.
 *
 * The hash file of a small content is not synced at all: with a fresh data file it is deleted, and made anew when the
 * content is opened; and a hash file that is not whole is found out then, too.
 *
 * Not for a working file whose fsync was acknowledged: what it had by then must outlive the seal (ingest_seal.c).
 * Threads: workers; store_check_fresh by the one that opens the store. Memory: the file's, at most FRESH_MAX. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

bool store_renames_follow(int fd)
{
    struct statfs status;

    return fstatfs(fd, &status) == 0 &&
           (status.f_type == EXT4_SUPER_MAGIC || status.f_type == XFS_SUPER_MAGIC ||
            status.f_type == BTRFS_SUPER_MAGIC);
}

int store_settle_fresh(int fd)
{
    if (fsync(fd) < 0)
        return -errno;
    (void)fchmod(fd, MODE_OWN); /* if this fails it is read once more after a restart */
    return 0;
}

static bool has_root(int fd, uint64_t size, const uint8_t root[HASH_SIZE])
{
    struct geometry g = geometry_of(size);
    uint8_t *leaves = xmalloc(HASHES(g.blocks)), *layer = xmalloc(HASHES(g.pieces));
    uint8_t *buffer = xmalloc((size_t)STRETCH * BLOCK_SIZE), found[HASH_SIZE];
    int result = 0;

    for (uint64_t step, at = 0; at < g.blocks && result == 0; at += step) {
        step = g.blocks - at < STRETCH ? g.blocks - at : STRETCH;
        result = hash_blocks(fd, &g, at, step, leaves + HASHES(at), buffer);
    }
    for (uint32_t piece = 0; piece < g.pieces && result == 0; piece++) {
        uint64_t first;
        uint32_t count;
        geometry_piece(&g, piece, &first, &count);
        merkle_piece(layer + HASHES(piece), &g, piece, leaves + HASHES(first));
    }
    if (g.pieces == 1)
        memcpy(found, layer, HASH_SIZE);
    else
        merkle_root(found, &g, layer);
    free(buffer);
    free(layer);
    free(leaves);
    return result == 0 && memcmp(found, root, HASH_SIZE) == 0;
}

bool store_check_fresh(struct store *store, const char *name, const uint8_t root[HASH_SIZE],
                       uint64_t size)
{
    int fd = openat(store->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool good = fd >= 0 && size <= FRESH_MAX && has_root(fd, size, root);

    if (good) {
        store_unlink(store, root, SUFFIX_HASH);
        good = store_settle_fresh(fd) == 0;
    }
    if (fd >= 0)
        close(fd);
    return good;
}
