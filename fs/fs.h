/* What all parts of one mount share. Set up by mount.c before any thread runs; afterwards each field is read only or
 * belongs to its module, which does its own locking.
 *
 * Threads: libfuse's workers (ops_*.c), which never wait for the daemon or the network; "client" (client.c), which owns
 * the socket, the requests under way and the states of open files; "invalidate", which tells the kernel what it must
 * forget; "disk-N", for fdatasync. */
#ifndef FS_FS_H
#define FS_FS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct client;
struct device;
struct files;
struct fuse_session;
struct invalidator;
struct listings;
struct times;
struct workers;

struct fs {
    char *home;
    char *mountpoint; /* absolute */
    int mount_id;     /* of mountinfo; 0: unknown */
    int64_t wait;     /* ns that a request waits for an answer */
    int64_t slow;     /* ns for one that may take long (sealing); INT64_MAX: as long as it takes */
    uid_t uid;        /* owner of all entries */
    gid_t gid;
    void (*live)(struct fs *); /* called once when the kernel has greeted us */
    struct fuse_session *session;
    struct device *device;
    bool wants_passthrough; /* -o passthrough: its absence is worth a warning */
    bool
        passthrough; /* set while the kernel greets us: it takes complete files over, and gathers no writes */
    struct client *client;
    struct files *files;
    struct times *times;
    struct listings *listings;
    struct invalidator *invalidator;
    struct workers *disk;
    uint64_t
        changes; /* atomic; from 1; counts what makes a listing that was read earlier doubtful */
};

/* Something in the tree changed. Any thread. */
static inline void fs_changed(struct fs *fs)
{
    __atomic_fetch_add(&fs->changes, 1, __ATOMIC_ACQ_REL);
}

static inline uint64_t fs_changes(struct fs *fs)
{
    return __atomic_load_n(&fs->changes, __ATOMIC_ACQUIRE);
}

/* What the kernel is told when the daemon does not know an inode number any more. ENOENT would be the program's; on ESTALE the
 * kernel looks the name up again, and finds the version that has taken the old one's place in the meantime. */
static inline int stale(int error)
{
    return error == ENOENT ? ESTALE : error;
}

#endif
