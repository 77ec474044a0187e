/* What the files behind store.h and ingest.h share; nobody else includes it.
 *
 *   store.c         the table of records, references, idle contents, rounds of syncing
 *   store_window.c  what stays in the page cache of what is written
 *   store_files.c   names, headers, the scan at the start
 *   content_open.c  opening, making, checking after an unclean end, closing
 *   content.c       blocks: put, get, the bits and what is counted from them
 *   content_lend.c  descriptors for other processes
 *   content_evict.c, store_evict.c  taking blocks away, and choosing which
 *   content_trust.c what is known to be right, and served without another hash
 *   content_hash.c  piece layer and block hashes, the cache of block hashes
 *   content_sync.c  descriptors, syncing, the steps between incomplete and complete
 *   ingest.c, ingest_seal.c  working files
 *
 * Locks, none taken while another is held, none held across a system call:
 *   store->lock      the table, references, lists, descriptors of all contents
 *   store->leaves_lock  the cache of block hashes
 *   content->lock    bits and counters when they change; readers go by atomic loads
 * content->busy (under content->lock, with content->wake) is held across system calls by whoever works
 * on the content's files as a whole: a sync, a change of map, the loss of a block. record->busy
 * (under store->lock, with store->wake) likewise while a content is opened, closed or deleted. */
#ifndef DAEMON_STORE_PRIVATE_H
#define DAEMON_STORE_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "crypto/file_cipher.h"
#include "crypto/merkle.h"
#include "daemon/store.h"

#define STORE_HEADER  4096
#define STORE_PAGE    4096
#define STRETCH       16 /* blocks that are read and hashed in one go: 256 KiB stay in the cache */
#define LEAVES_AHEAD  1024 /* block hashes that are read beyond what was asked for */
#define SYNC_BATCH    4096 /* contents synced together */
#define NAME_SIZE     80   /* "HH/", 64 digits, a suffix */
#define HASHES(n)     ((size_t)HASH_SIZE * (n))

#define STORE_MAGIC   0x53544f52u
#define CONTENT_MAGIC 0x434f4e54u

static inline void lock_take(pthread_mutex_t *lock)
{
    CHECK(pthread_mutex_lock(lock) == 0);
}
static inline void lock_drop(pthread_mutex_t *lock)
{
    CHECK(pthread_mutex_unlock(lock) == 0);
}
static inline void lock_wait(pthread_cond_t *wake, pthread_mutex_t *lock)
{
    CHECK(pthread_cond_wait(wake, lock) == 0);
}
static inline void lock_wake(pthread_cond_t *wake)
{
    CHECK(pthread_cond_broadcast(wake) == 0);
}

/* One content that is here, open or not. Guarded by store->lock. */
struct record {
    struct record *next; /* in its bucket */
    struct content *content;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    uint64_t bytes; /* present, as long as it is not open */
    uint32_t used;  /* as a piece's; likewise */
    bool busy, dropped;
    bool own; /* put in by this member; atomic */
};

/* The block hashes of one piece, verified. Guarded by store->leaves_lock. */
struct leaves {
    struct leaves *newer, *older;
    struct content *content;
    uint32_t piece, count;
    uint8_t hashes[];
};

#define STORE_ROOT_WORDS (HASH_SIZE / sizeof(uint32_t))

struct store {
    uint32_t magic;
    char *directory;
    struct store_key *key; /* NULL: the files are not encrypted */
    int fd, incoming;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct record **buckets;
    size_t bucket_count, records;
    uint64_t secret[STORE_ROOT_WORDS + 1];  /* what decides a root's bucket */
    struct content *idle_first, *idle_last; /* first to be closed in front */
    size_t idle_count, idle_memory;
    struct content *dirty; /* contents with something to sync */
    size_t dirty_count;
    bool syncing;
    struct content *fds_first,
        *fds_last; /* unpinned, with open descriptors; first to be closed in front */
    size_t fds;
    uint64_t first_number, next_number; /* of working files: of this process, the next one */
    uint64_t held;                      /* bytes, atomic */
    bool ending;                        /* atomic: long looks end early */
    void (*changed)(void *, struct content *, uint64_t, uint32_t, bool);
    void *changed_arg;
    struct store_window *window; /* store_window.c */
    pthread_mutex_t leaves_lock;
    struct leaves *newest, *oldest;
    size_t leaves_memory;
};

enum { FD_DATA, FD_MAP, FD_HASH, FD_COUNT };

struct content {
    uint32_t magic;
    struct store *store;
    struct record *record;
    struct geometry geometry;
    uint8_t root[HASH_SIZE];
    struct file_cipher *cipher; /* of the data file; from its opening on */
    size_t memory;              /* about what it takes */

    /* store->lock */
    uint32_t references;
    struct content *idle_next, *idle_before;
    int64_t idle_since;
    bool idle, queued;
    struct content *dirty_next, *dirty_before;
    int fd[FD_COUNT];
    unsigned pins;
    bool opening, listed;
    struct content *fds_next, *fds_before;

    /* content->lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool busy;
    uint8_t *map; /* the map file behind its header, or as much memory of our own */
    size_t map_size;
    uint8_t *present, *synced, *known; /* in `map`; bits of blocks, blocks, pieces */
    bool has_map;                      /* on disk: .part and .map; else .data. Atomic. */
    bool has_hash_file;                /* atomic */
    bool hash_dirty, names_dirty;      /* atomic: what the next sync has to do besides */
    uint64_t present_blocks;           /* atomic */
    uint16_t *piece_counts;            /* present blocks of each piece; atomic */
    uint8_t *pieces;                   /* bits: whole pieces; atomic */
    uint8_t *dirty_pages;              /* bits: pages of `present` not yet synced */
    uint32_t *used;                    /* when each piece was used; atomic; see content_evict.c */
    unsigned putting;                  /* puts under way */
    bool evicting;                     /* and no new one begins */
    bool damage_logged;
    bool
        unstamped; /* atomic: this process changed the data file since it was stamped (content_trust.c) */
    bool doubtful;    /* atomic: somebody else may have; until all of it was looked through */
    bool looking;     /* one thread does */
    uint8_t *trusted; /* bits of blocks, or NULL: see content_trust.c */
    struct timespec trusted_time;

    uint8_t *layer;         /* atomic: NULL, or the verified piece layer, for good */
    struct leaves **leaves; /* store->leaves_lock; by piece; NULL until the first */
};

/* --- store_files.c --- */
void store_file_name(char name[NAME_SIZE], const uint8_t root[HASH_SIZE], const char *suffix);
#define SUFFIX_DATA    "data" /* complete and durable, never written again */
#define SUFFIX_PART    "part" /* the same before that, beside a map */
#define SUFFIX_MAP     "map"
#define SUFFIX_HASH    "hash"
#define SUFFIX_DAMAGED "damaged" /* set aside: data that no longer fits its root */
void store_header_make(uint8_t header[STORE_HEADER], const char magic[8],
                       const uint8_t root[HASH_SIZE], uint64_t size);
bool store_header_fits(const uint8_t header[STORE_HEADER], const char magic[8],
                       const uint8_t root[HASH_SIZE], uint64_t size);
#define MAGIC_MAP  "p2p map\n"
#define MAGIC_HASH "p2phash\n"
/* In the map's header, 64 bits each: grows whenever blocks are taken away; not 0 while their space is given back. */
#define MAP_GENERATION 64
#define MAP_EVICTING   72
/* Bytes of a bitmap in the map file, and of all three. */
size_t store_bits_size(uint64_t bits);
size_t store_map_size(const struct geometry *);
/* Makes the content's map file: header, and room for bits, all 0. Its descriptor or -errno. */
int store_make_map(struct content *);
/* Makes the directory of this root if need be. */
int store_make_folder(struct store *, const uint8_t root[HASH_SIZE]);
int store_sync_folder(struct store *, const uint8_t root[HASH_SIZE]);
void store_unlink(struct store *, const uint8_t root[HASH_SIZE], const char *suffix);
void store_unlink_all(struct store *, const uint8_t root[HASH_SIZE]);
/* Reads the directory; calls store_add_record. 0 or -errno. */
int store_scan(struct store *);

/* --- store.c --- */
struct record *store_add_record(struct store *, const uint8_t root[HASH_SIZE], uint64_t size,
                                uint64_t bytes);
/* Takes what makes a complete content into the store: renames incoming/`data` and, if not NULL, `hash`.
 * -EEXIST if the root is known here already. */
int store_adopt(struct store *, const uint8_t root[HASH_SIZE], uint64_t size, const char *data,
                const char *hash);
/* This member put it in, too. 0 or -errno. */
int content_own(struct content *);
#define MODE_OWN                                                                                   \
    (S_IRUSR | S_IWUSR | S_IXUSR) /* of the data file of what this member put in; else 0600 */
/* Deletes it at once if nobody uses it. The bytes that were here, -EBUSY, -ENOENT. */
int64_t store_drop_unused(struct store *, const uint8_t root[HASH_SIZE]);
/* As store_get without `create`, but what was dropped and is still in use stays after all. */
struct content *store_revive(struct store *, const uint8_t root[HASH_SIZE], uint64_t size,
                             int *error);
/* Likewise: one more reference. */
void store_take(struct store *, struct content *);
/* store->lock is held. */
void store_add_dirty(struct store *, struct content *);
void store_tell(struct content *, uint64_t first, uint64_t count, bool present);

/* --- store_window.c --- */
struct store_window *store_window_new(void);
void store_window_free(struct store_window *);
/* These bytes of the data file were written just now. */
void content_wrote(struct content *, uint64_t offset, uint64_t size);

/* --- content_open.c --- */
struct content *content_create(struct store *, struct record *, int *error);
/* -ENOENT if what is here is of no use; then its files are out of the way. */
struct content *content_open(struct store *, struct record *, int *error);
void content_close(struct content *);

/* --- content.c --- */
uint64_t content_bytes(const struct content *);
uint64_t content_present_bytes(const struct content *, uint64_t first, uint64_t count);
/* Counts pieces and blocks anew from the bits; before the content is shared. */
void content_count(struct content *);
/* Clears what is set of these bits (present, synced); the caller is busy. Says whether any was. */
bool content_clear_bits(struct content *, uint64_t first, uint64_t count);
/* Clears the synced bits alone. */
void content_clear_synced(struct content *, uint64_t first, uint64_t count);
/* Of `count` blocks from `first`. */
uint64_t content_block_bytes(const struct geometry *, uint64_t first, uint64_t count);
/* The content is pinned, and not busy with the caller: these blocks are lost, durably. */
void content_lose(struct content *, uint64_t first, uint64_t count);

/* --- content_trust.c: the content is pinned --- */
/* The time of change of a complete content's file; false if it is not complete, or not the size it should be. */
bool content_file_time(const struct content *, struct timespec *);
/* These blocks were hashed, and right, in a file whose time of change was `time` before they were read. */
void content_trust(struct content *, uint64_t first, uint64_t count, const struct timespec *time);
/* A data file of which all is right and durable is stamped, if `time` is that of its last change still. Says whether it is. */
bool store_stamp(int fd, const struct timespec *time);
bool store_is_stamped(int fd);
/* Opened as it lies on the disk: whether its file was changed by somebody else than this program. */
void content_doubt(struct content *);
/* This process changed the data file; what the next sync has to do besides. */
void content_unstamp(struct content *);
/* Whether it may not be lent before it was looked through. */
bool content_is_doubtful(const struct content *);
/* [worker] For a sync, when all that this process changed is in the file: stamps it, unless it is doubtful. */
void content_stamp(struct content *);
/* [worker] Hashes all that is present of a doubtful content, and stamps it; what is wrong is lost. 0 or -errno, if that could
 * not be found out. Who comes while another thread is at it waits for that one. */
int content_look_through(struct content *);

/* --- content_hash.c --- */
uint64_t hash_file_size(const struct geometry *);
static inline uint64_t hash_leaf_offset(uint64_t block)
{
    return STORE_HEADER + block * HASH_SIZE;
}
static inline uint64_t hash_layer_offset(const struct geometry *g)
{
    return hash_leaf_offset(g->blocks);
}
/* Hashes `count` blocks of a data file; `buffer` holds STRETCH blocks. -EIO if the file ends early. */
int hash_blocks(const struct file_cipher *, int fd, const struct geometry *, uint64_t first,
                uint64_t count, uint8_t *leaves, uint8_t *buffer);
/* True if this layer belongs to this root. */
bool hash_layer_fits(const struct geometry *, const uint8_t root[HASH_SIZE], const uint8_t *layer);
/* Loads the layer from the hash file. -EBADMSG: there is none that fits. */
int content_load_layer(struct content *, int hash_fd);
/* The data is all there: makes its hash file anew. -EBADMSG if the data does not fit the root. */
int content_rebuild_hashes(struct content *, int data_fd);
/* As content_block_hashes; the content is pinned. */
int content_leaves(struct content *, uint64_t first, uint32_t count, uint8_t *out);
void content_forget_leaves(struct content *);

/* --- content_evict.c --- */
#define USED_AGAIN 0x80000000u /* read again a minute after it was read */
#define USED_READ  0x40000000u
#define USED_TIME  0x3fffffffu /* seconds since 2020 */
uint32_t used_now(void);
uint32_t used_at(int64_t wall_seconds);
/* The larger, the longer it stays. */
uint32_t used_rank(uint32_t used);
uint32_t content_used(const struct content *); /* of the piece that stays longest */
/* Blocks were put there. */
void content_note_put(struct content *, uint64_t first, uint64_t count);
/* Around each put. The second does not wait: false while blocks are taken away. */
void content_put_begin(struct content *);
bool content_put_begin_now(struct content *);
void content_put_end(struct content *);
/* [worker] 0, -EBUSY, -errno. */
int content_evict(struct content *, const uint8_t *pieces, uint64_t *freed);
/* While it is opened: gives space back that an eviction did not come to. The map is open. */
void content_evict_resume(struct content *);

/* --- content_lend.c --- */
/* Holds a lock on one of its files so that nobody has it lent and nobody gets it; the descriptor to close, or -EBUSY. */
int content_claim(struct content *, int which);
/* The same read only, as a new open file. */
int content_dup_read_only(int fd);

/* --- content_sync.c --- */
/* Opens the descriptors if they are not, and keeps them open until unpinned. */
int content_pin(struct content *);
/* The same if that needs no opening. */
bool content_pin_now(struct content *);
void content_unpin(struct content *, bool dirty);
/* Gives the content a descriptor that was opened on the side; closes it if it has one already (of a map: the old one). */
void content_take_fd(struct content *, int which, int fd);
void content_close_fds(struct content *);
/* Only one thread is busy with a content's files at a time. */
void content_busy(struct content *);
void content_unbusy(struct content *);
/* The caller is busy, the content pinned: gives a complete content its map back. 0 or -errno. */
int content_restore_map(struct content *);
/* Syncs at most SYNC_BATCH contents that the caller holds references of. 0 or the first -errno. */
int content_sync_many(struct store *, struct content **, size_t count);

/* --- ingest.c --- */
/* One more than the highest number of a working file; 0: the folder cannot be read. */
uint64_t ingest_next_number(struct store *);

#endif
