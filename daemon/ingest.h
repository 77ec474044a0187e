/* Copying in: working files, hashed along behind the writer, then sealed into the store.
 *
 * A working file is HOME/store/incoming/N (N a number of ours). p2pfs holds a descriptor of it and writes; the daemon
 * reads what was written (from the page cache) and keeps leaf hashes of the blocks that were written whole and in order.
 * A block that is written again after it was hashed is marked and hashed again when sealing.
 *
 * Seal: hash what is left, build piece layer and root, fdatasync data, map and hashes, rename into the store under the root
 * (or drop it, if the store has that root complete already), all blocks present and synced. After that the file is never
 * written again: whoever held the descriptor may read on.
 *
 * The descriptor handed out carries a flock(LOCK_SH): after a restart of the daemon, a working file on which LOCK_EX can
 * be had belongs to nobody any more; ingest_recover deletes it, or adopts it if it was marked (ingest_mark: fsync had been
 * acknowledged).
 *
 * One struct ingest is used by one thread at a time: its owner posts it to a worker for the functions marked [worker] and
 * leaves it alone meanwhile. */
#ifndef DAEMON_INGEST_H
#define DAEMON_INGEST_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/file_cipher.h"
#include "crypto/merkle.h"

struct store;
struct content;
struct ingest;

/* [worker] A new, empty working file; or one that starts with the first `keep` bytes of `from` (complete content; reflink
 * or copy_file_range where possible), whose leaf hashes are reused. NULL and *error. */
struct ingest *ingest_new(struct store *, struct content *from, uint64_t keep, int *error);
/* The working file again after a restart of the daemon, from its number. NULL and *error. [worker] */
struct ingest *ingest_reopen(struct store *, uint64_t number, int *error);
uint64_t ingest_number(const struct ingest *);
/* A descriptor for p2pfs, read and write, sharing the flock. The caller closes its copy. */
int ingest_dup(const struct ingest *);
/* The key that goes with it; false if the file is not encrypted. */
bool ingest_key(const struct ingest *, uint8_t key[FILE_CIPHER_KEY]);
/* Of the file, in its own file system; 0: not known. */
uint64_t ingest_inode(const struct ingest *);
/* How many bytes it has now; -errno. */
int64_t ingest_size(const struct ingest *);
/* p2pfs wrote there, or cut the file there (the range that was cut off counts as written). Cheap; no I/O; any thread, also
 * while a worker hashes (not while it seals). What was written must be told before it is sealed. */
void ingest_wrote(struct ingest *, uint64_t offset, uint64_t size);
/* It is not known what was written: nothing that was hashed counts. As ingest_wrote. */
void ingest_doubt(struct ingest *);
/* p2pfs could not sync it: what was written may not have reached the disk, and will not by another sync. Not while a worker has it. */
void ingest_sync_failed(struct ingest *);
/* True if a worthwhile stretch (1 MiB) lies written and not yet hashed behind the frontier. Any thread. */
bool ingest_hash_due(const struct ingest *);
/* [worker] Hashes that stretch, at most `max_bytes`. 0 or -errno. */
int ingest_hash(struct ingest *, uint64_t max_bytes);
/* [worker] See above. The content (a new reference) has `size` bytes; the file is truncated or extended to that first.
 * NULL and *error; then the working file is still there and may be sealed again. An empty file gives the zero root: then
 * the result is NULL with *error 0, and nothing is kept in the store. On success the working file stays too, if the store
 * did not take the file itself: ingest_drop is called once what names the content is durable, so that a crash in between
 * finds one of the two. */
struct content *ingest_seal(struct ingest *, uint64_t size, int *error);
/* Before the first ingest_new: numbers below `number` have had a meaning. */
void ingest_numbers_from(struct store *, uint64_t number);
/* After a restart: whether another process still has the file open. Two quick system calls. */
bool ingest_is_held(const struct ingest *);
/* [worker] Gives it up and deletes the file. NULL is fine. */
void ingest_drop(struct ingest *);
/* [worker] Its bytes as they are, into the empty file `to`; not synced. -errno. */
int ingest_copy_out(const struct ingest *, int to);
/* Closes and frees; the files stay, for ingest_reopen. Not while a worker has it. */
void ingest_free(struct ingest *);
/* [worker] Makes the working file survive a restart without p2pfs holding it; p2pfs has synced the data. */
int ingest_mark(struct ingest *);
/* [worker] At start: deletes what belongs to nobody; calls `found` for marked orphans. */
void ingest_recover(struct store *, void (*found)(void *arg, uint64_t number, uint64_t size),
                    void *arg);

#endif
