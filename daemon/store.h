/* The content store: what this member holds, one content per root, block by block.
 *
 * On disk, under HOME/store, HH being the first two digits of the root's 64 hexadecimal ones:
 *   complete:    HH/ROOT.data  the content's bytes; never written again
 *                HH/ROOT.hash  4096-byte header, the block hashes, the piece layer; none if the file is one block
 *   incomplete:  HH/ROOT.part  sparse data file of the content's size
 *                HH/ROOT.map   4096-byte header (magic, version, size, root, generation), then the bitmap of present blocks
 *                              (base/bitmap.h order, padded to 4096), that of synced blocks, likewise padded, and one of
 *                              pieces whose block hashes are known
 *                HH/ROOT.hash  as above, from the first hash on
 *   HH/ROOT.damaged            complete data that no longer gives its root, set aside
 *   incoming/N     working files (ingest.h)
 * In an encrypted store data files and working files are those of crypto/file_cipher.h; the others, and the names, are plain.
 *
 * Invariants:
 *   S1  A block's present bit is set only after its bytes were verified against a known block hash and
 *       written to the data file.
 *   S2  A synced bit reaches the disk only after an fdatasync of the data file that came behind the write. A content is
 *       named .data only after an fdatasync of all of it.
 *   S3  After an unclean end, blocks that are present but not synced count only after their hash was checked
 *       again (a few seconds' worth); what does not match is absent. Nothing else is hashed again.
 *   S4  A file name is made of a root or a number of ours, never of a name from outside.
 *   S5  The map file's present bitmap is what p2pfs maps read only; its space is allocated in advance, so no
 *       one gets SIGBUS from a full disk.
 *   S6  Blocks are taken away again (content_evict.c) only behind their bits, and behind the map's generation: who
 *       finds generation and bits unchanged behind a read has read the blocks. Never from a content that was lent as
 *       complete (content_lend) as long as any process has that descriptor.
 *
 * Threads: struct store and struct content are shared between threads and reference counted; functions marked
 * [worker] do disk I/O or hash and are called on worker threads (or in tests) only; the rest is quick and may be
 * called on any thread. Locks inside are held for memory operations only, never across a system call. */
#ifndef DAEMON_STORE_H
#define DAEMON_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/file_cipher.h"
#include "crypto/merkle.h"

struct store;
struct content;

/* [worker] Opens or makes the store in `directory` (HOME/store), 0700. NULL and *fault on failure. */
struct store *store_open(const char *directory, const char **fault);
/* The same, all data files and working files being encrypted with this key (crypto/file_cipher.h), which is taken over, also
 * on failure. Not for a directory that holds files of another key or plain ones: these would count as damaged. */
struct store_key;
struct store *store_open_encrypted(const char *directory, struct store_key *, const char **fault);
bool store_is_encrypted(const struct store *);
/* The size of the content in a data file of this length. */
uint64_t store_size_of_length(const struct store *, uint64_t length);
/* Any thread: a content_lend that looks through a content ends soon with -EINTR, from now on. */
void store_end(struct store *);
/* [worker] Syncs everything, closes. All contents have been released before. */
void store_close(struct store *);

/* [worker] The content with this root: a new reference. If it is not there and `create`, made, empty. NULL with
 * *error set to -errno: -ENOENT, -ENOSPC, -EINVAL if `size` is not the size it has here. After an unclean end the
 * unsynced blocks are checked here, before it returns. */
struct content *store_get(struct store *, const uint8_t root[HASH_SIZE], uint64_t size, bool create,
                          int *error);
/* The same if it is already open in this process, else NULL: no I/O, any thread. */
struct content *store_find(struct store *, const uint8_t root[HASH_SIZE]);

/* What is held, for the first announce, for status and for `local` bytes of entries; on any thread, from memory (the
 * store scans its directory once, in store_open). */
struct store_summary {
    uint8_t root[HASH_SIZE];
    uint64_t size;
    uint64_t bytes; /* present */
    bool complete;
    bool own; /* put in by this member */
};
/* Calls `each` for every content; it must not call the store. */
void store_each(struct store *, void (*each)(const struct store_summary *, void *arg), void *arg);
/* False if nothing of it is here. */
bool store_summary(struct store *, const uint8_t root[HASH_SIZE], struct store_summary *out);
/* Bytes present of all contents. */
uint64_t store_held(const struct store *);
void store_space(struct store *, uint64_t *held, uint64_t *free_bytes, uint64_t *total);

/* [worker] Deletes a content once its last reference is gone (at once if there is none): at the next call of a [worker]
 * function of the store. Until then it is as good as gone for store_find, store_each, and store_get without `create`; a
 * store_get with `create` keeps it after all. */
void store_drop(struct store *, const uint8_t root[HASH_SIZE]);

/* [worker] One round of syncing: for every content with unsynced blocks fdatasync of its data, then its map.
 * The daemon calls it every few seconds and after much was written; 0 or the first -errno. */
int store_sync(struct store *);
/* [worker] Sends what content_put wrote lately on its way to the disk, and takes what lies further back out of the page cache.
 * `written` is called (any thread, quick) when there is something for it to do, once until it has run. */
void store_writeback(struct store *);
void store_on_written(struct store *, void (*written)(void *arg), void *arg);
/* [worker] The same as store_sync for one content, so that all its present blocks are durable. */
int content_sync(struct content *);

struct content *content_share(struct content *);
void content_release(
    struct content
        *); /* any thread; NULL is fine; never does I/O (closing is left to a later store_sync) */

const struct geometry *content_geometry(const struct content *);
const uint8_t *content_root(const struct content *);
/* The live bitmap of present blocks; read with bitmap_test and friends; valid as long as the reference. */
const uint8_t *content_present(const struct content *);
uint64_t content_present_blocks(const struct content *);
bool content_complete(const struct content *);
/* Whether the whole piece is present. */
bool content_has_piece(const struct content *, uint32_t piece);
/* The piece bitmap, geometry.pieces bits, into `map` (base/bitmap.h order). */
void content_pieces(const struct content *, uint8_t *map);
/* Descriptors to hand to p2pfs: read only, close-on-exec; the caller closes. Returns
 *   1  complete: *data alone. No block of it is taken away as long as any process has that descriptor open (it carries a
 *      lock of the kernel's, so that holds over restarts of p2pd).
 *   0  incomplete: *data and *map. In the map file the generation (8 bytes) stands at byte 64, the live bitmap from byte
 *      4096 on. As long as any process has the map open or mapped it stays the live one. Blocks may go again: a
 *      reader looks at bits and generation before and behind its read.
 *   -EAGAIN  the content is just changing from one to the other: call again with `wait`, on a worker
 *   -EBUSY   likewise, but all of it has to be hashed first, as its file may have been changed by somebody else: that may take
 *            a minute, and ends with -EINTR after store_end. Other -errno. */
int content_lend(const struct content *, bool wait, int *data, int *map);
/* The key that goes with these descriptors; false if the file is not encrypted. Any thread. */
bool content_key(const struct content *, uint8_t key[FILE_CIPHER_KEY]);
/* A descriptor of the data for this process, which must bear blocks going away. */
int content_dup_data(const struct content *);

/* --- hashes ---- */
bool content_has_piece_layer(const struct content *);
/* [worker] Takes over a whole piece layer if its root is right. 0, -EBADMSG if it is not, -errno. */
int content_set_piece_layer(struct content *, const uint8_t *hashes);
/* Copies `count` piece hashes; false if not known. */
bool content_piece_hashes(const struct content *, uint32_t first, uint32_t count, uint8_t *out);
bool content_has_leaves(const struct content *, uint32_t piece);
/* [worker] Takes over the block hashes of one piece if they fit the piece layer. 0, -EBADMSG, -ENODATA without
 * piece layer, -errno. */
int content_set_leaves(struct content *, uint32_t piece, const uint8_t *hashes);
/* [worker] Copies block hashes within one piece; -ENODATA if not known. */
int content_block_hashes(struct content *, uint64_t first, uint32_t count, uint8_t *out);
/* [worker] Then: loads those of the pieces behind that block's, which are likely to be asked for next. */
void content_block_hashes_ahead(struct content *, uint64_t block);

/* The same from memory: false if they are not there at the moment. Any thread. */
bool content_block_hashes_now(struct content *, uint64_t first, uint32_t count, uint8_t *out);

/* --- blocks ---- */
/* [worker] Verifies `count` consecutive blocks from `first` (within one piece whose leaves are known) and writes those
 * that match with as few writes as possible, then sets their present bits. verdict[i]: 0 written, -EALREADY it was
 * present before, -EBADMSG hash does not match, -errno the write failed (-ENOSPC …). Returns 0 if all are 0 or -EALREADY.
 * Safe to call for different or the same blocks from several workers. */
int content_put(struct content *, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                int *verdicts);
/* [worker] content_put in its two halves, for blocks of one piece: the first hashes and judges (0, -EALREADY, -EBADMSG, -errno)
 * and touches no file; the second writes what was judged 0. Any number of threads may check at once, but two that write to one
 * file stand in each other's way in the kernel. */
void content_check(struct content *, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                   int *verdicts);
int content_write(struct content *, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                  int *verdicts);
/* content_set_leaves and content_put for a few blocks, at once and on any thread, if no file has to be opened for it, no hash be
 * read, and no other thread be waited for; else false, and nothing was done. Only a disk that makes writers wait holds it up. */
#define CONTENT_NOW_BLOCKS 4
bool content_set_leaves_now(struct content *, uint32_t piece, const uint8_t *hashes, int *result);
bool content_put_now(struct content *, uint64_t first, uint32_t count, const uint8_t *const *blocks,
                     int *verdicts);
/* [worker] Reads one present block and checks it against its hash. 0; -ENODATA if it is not present; -EBADMSG if the disk
 * gave something else (then the present bit is cleared and the damage logged once); -errno. `to` holds BLOCK_SIZE bytes. */
int content_get(struct content *, uint64_t block, uint8_t *to);
/* [worker] As content_get for `count` consecutive blocks into consecutive memory, hashed several at a time. Returns how many
 * leading blocks are good; *error says why it stopped (0 if it did not). */
uint32_t content_get_many(struct content *, uint64_t first, uint32_t count, uint8_t *to,
                          int *error);
/* [worker] Reads and checks what is present of such a range, all of it: damage is lost, as in content_get, and no reason to stop.
 * Adds to *bytes what was read and is right, in whole blocks, and to *damaged the blocks that are not. 0 or -errno. */
int content_look(struct content *, uint64_t first, uint32_t count, uint8_t *buffer, uint64_t *bytes,
                 uint64_t *damaged);
/* Any thread, quick: the same for blocks that this process has hashed before, of a complete content whose file is unchanged
 * since, if they are in the page cache. False: content_get_many has to do it. */
bool content_get_now(struct content *, uint64_t first, uint32_t count, uint8_t *to);
/* --- eviction --------------------------------------------------------------------------------------- */
/* Somebody read these blocks, which are here. Any thread, no I/O. */
void content_touch(struct content *, uint64_t first, uint64_t count);
/* What is to go of one content. */
struct store_victim {
    uint8_t root[HASH_SIZE];
    uint64_t size;
    uint8_t *pieces; /* bits, base/bitmap.h; malloc'ed; NULL: all of it */
};
/* [worker] Chooses pieces to take away: what was not read for longest, and what was read once before what was read
 * again a minute later. Never of contents that this member put in, nor of those in `kept` (sorted by memcmp). *cached:
 * bytes of all others. Chooses as much of these as is above `most`; nothing if they fit. *victims is malloc'ed. */
size_t store_choose(struct store *, uint64_t most, const uint8_t (*kept)[HASH_SIZE],
                    size_t kept_count, uint64_t *cached, struct store_victim **victims);
void store_victims_free(struct store_victim *, size_t count); /* NULL is fine */
/* [worker] Takes these pieces away. *freed: bytes; *gone: nothing is left of it. 0; -ENOENT; -EBUSY: lent as complete;
 * -errno. */
int store_evict(struct store *, const struct store_victim *, uint64_t *freed, bool *gone);

/* [worker] The next read of these blocks comes from the disk, not from the page cache, as far as that can be had. */
void content_forget_cached(struct content *, uint64_t first, uint64_t count);

/* Tells `changed` (any thread, quick: post mail) when blocks of any content become present or get lost. One subscriber set
 * before threads start. */
void store_on_change(struct store *,
                     void (*changed)(void *arg, struct content *, uint64_t first, uint32_t count,
                                     bool present),
                     void *arg);

#endif
