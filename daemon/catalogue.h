/* The catalogue's replica: the tree of names as this member sees it, in memory and in
 * HOME/state.db, and the journal of changes that the tracker has not confirmed.
 *
 * The tree is the tracker's state with our own unconfirmed changes on top: each change of ours is
 * applied at once, journalled, and sent in order (session_op) a moment later (JOURNAL_LINGER_NS);
 * its result brings the entry as the tracker has it. While an entry has unconfirmed changes of ours,
 * what the tracker pushes about it is held back: the result of the last of them is authoritative.
 *
 * What has not left is taken together: a file that is made and then renamed, removed, saved again or
 * given another mode or time within that moment (or while the tracker is away) is one operation, or
 * none. So a temporary file is published once, under its last name.
 *
 * When two members change the same thing, who reaches the tracker first wins, and what the other
 * wrote is kept beside as "NAME (conflict ACCOUNT YYYY-MM-DD HHMM)". Nothing that somebody wrote is
 * dropped. By what the first did (rows) and the second, before he heard of it (columns):
 *
 *            | create N      | write F       | remove F     | rename F to B   | mkdir N
 *   create N | both: 2nd beside  -               -              -                both: 2nd beside
 *   write F  | -               both: 2nd beside  removed F 1)   new version at B  -
 *   remove F | -               2nd comes back    removed        gone 2)           -
 *   rename F | -               F at its new      removed        the second name   -
 *     to A   |                 name, and 2nd
 *            |                 at the old one
 *   mkdir N  | 2nd beside      -                 -              -                 one directory
 *   rmdir D  | in D: D is made again by who has something in it
 *
 *   1) as unlink(2) by somebody who did not look; the removed version is what was removed there: see
 *      `based_on` of OP_REMOVE in tracker.proto: a version that the remover had not seen stays.
 *   2) a rename makes no content: what another member removed stays removed.
 *
 * ino numbers are ours, stable over restarts; a file gets a new one when another member's version
 * replaces its content, or gives it another time. About 250 bytes of memory an entry. One thread (local). No clock, no
 * network: time comes as an argument (nanoseconds since 1970). state.db: WAL, synchronous=NORMAL
 * for the replica (it can be had again), FULL while something is journalled that a caller was told
 * is safe.
 *
 * Functions that change something return 0 or -errno unless said otherwise. */
#ifndef DAEMON_CATALOGUE_H
#define DAEMON_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "crypto/merkle.h"
#include "proto/tracker.pb-c.h"
#include "proto/xattrs.h"

struct catalogue;

#define INO_ROOT        1
#define GENERATION_SIZE 16

enum node_kind { NODE_DIRECTORY = 1, NODE_FILE = 2, NODE_SYMLINK = 3 };

/* One entry. Pointers to it are valid until the next call that changes the catalogue. */
struct node {
    uint64_t ino;
    uint64_t id;         /* the tracker's; 0 if it has not heard of it */
    struct node *parent; /* NULL for the root and for one that was removed but is still open */
    const char *name;
    enum node_kind kind;
    uint16_t mode;
    uint16_t unconfirmed; /* changes of ours under way */
    bool working;         /* a file being written here for the first time: not published, no root */
    bool pinned;
    uint8_t level; /* of a directory: Tracker__Level, what this member may do in it; 0: not heard */
    uint64_t size;
    int64_t mtime;
    uint8_t root[HASH_SIZE];
    const char *target;            /* of a symbolic link */
    const Tracker__Xattrs *xattrs; /* what members gave it; NULL: nothing */
    const char *owner;             /* interned */
    uint32_t opens; /* kept alive although removed, as long as it is open: catalogue_open_node,
                           catalogue_close_node */
};

enum node_change { NODE_LINKED, NODE_UNLINKED, NODE_CONTENT, NODE_ATTRIBUTES };

/* What the catalogue tells its owner, from within calls that change it. The functions must not call
 * back into the catalogue, but to look (catalogue_node and its like). */
struct catalogue_events {
    /* What a kernel may have cached is no longer so: `name` NULL: the attributes of `ino`; else the
     * entry `name` of directory `parent`. */
    void (*invalid)(void *arg, uint64_t ino, uint64_t parent, const char *name);
    /* The same of an entry whose name stays and has another inode number now. */
    void (*renewed)(void *arg, uint64_t ino, uint64_t parent, const char *name);
    /* NULL, or: the time of that directory was set, be it to what it was: it counts, whatever was made or removed in it
     * before. */
    void (*timed)(void *arg, uint64_t ino);
    /* The journal has something to send: see catalogue_next_op. */
    void (*journalled)(void *arg);
    /* No entry and no open file here has this content any more. */
    void (*unused)(void *arg, const uint8_t root[HASH_SIZE], uint64_t size);
    /* A pinned file has a content that is new to us. */
    void (*pinned)(void *arg, const struct node *);
    /* NULL, or: this happens to an entry that is in the tree. Of an unlinked one it comes before, of
     * all others behind the change. */
    void (*changed)(void *arg, const struct node *, enum node_change);
};

/* Opens or makes the database and loads the tree. A damaged database is moved aside (with a line in
 * the log) and a new one begun. NULL and *fault if that fails as well. */
struct catalogue *catalogue_open(const char *path, const struct catalogue_events *, void *arg,
                                 const char **fault);
/* Commits and frees. NULL is fine. */
void catalogue_close(struct catalogue *);
/* Whether there is something to commit; all changes since the last commit are one transaction. */
bool catalogue_is_dirty(const struct catalogue *);
/* `safe`: survives a loss of power when it returns 0. -ENOSPC, -EIO: nothing was written, and all
 * of it is tried again by the next call. */
int catalogue_commit(struct catalogue *, bool safe);
/* Any thread: what was committed before the call survives a loss of power when it returns 0. `path`
 * is what catalogue_open was given. */
int catalogue_sync(const char *path);
/* After that has failed: the disk may have lost what was committed, and says so only once. Writes all of it again, elsewhere.
 * 0 or -errno. */
int catalogue_checkpoint(struct catalogue *);

/* --- looking -----------------------------------------------------------------------------------
 */
/* Whether names in that directory may be made and changed by this member, as far as is known. */
bool catalogue_may_write(const struct node *directory);
/* How many directories lie in it. */
uint32_t catalogue_folders(const struct node *directory);
/* The entry that the tracker calls by that number; NULL if there is none. */
const struct node *catalogue_with_id(const struct catalogue *, uint64_t id);
/* NULL if there is none. Removed but open ones are found as well. */
const struct node *catalogue_node(const struct catalogue *, uint64_t ino);
const struct node *catalogue_lookup(const struct catalogue *, uint64_t parent, const char *name);
/* The child behind *cookie (0: the first), which then is its cookie; NULL at the end. Cookies grow,
 * are greater than 15, and stay the same while an entry is in its directory, so that a listing
 * under way neither skips nor repeats what is not touched. */
const struct node *catalogue_next(const struct catalogue *, const struct node *directory,
                                  uint64_t *cookie);
/* Whether it has a name: it is in a directory, or is the root. */
bool catalogue_is_linked(const struct catalogue *, const struct node *);
/* Whether following parents leads to the root. */
bool catalogue_is_attached(const struct catalogue *, const struct node *);
/* "/a/b", malloc'ed; NULL if it is not attached. */
char *catalogue_path(const struct catalogue *, const struct node *);
/* The node that a path names, seen from the root; repeated and trailing slashes and "." are
 * skipped. NULL and *error -ENOENT, -ENOTDIR. */
const struct node *catalogue_resolve(const struct catalogue *, const char *path, int *error);
/* The next file with this content after `previous` (NULL: the first). */
const struct node *catalogue_with_root(const struct catalogue *, const uint8_t root[HASH_SIZE],
                                       const struct node *previous);
/* Whether a refused change could bring this content back to a name. */
bool catalogue_may_return(const struct catalogue *, const uint8_t root[HASH_SIZE]);
uint64_t catalogue_entries(const struct catalogue *);
/* Calls `each` for every attached node (the root apart) whose `pinned` is set. */
void catalogue_each_pinned(const struct catalogue *, void (*each)(void *arg, const struct node *),
                           void *arg);

/* --- changes of ours ---------------------------------------------------------------------------
 */
/* Whose changes these are, and in which swarm (its CA): kept over restarts. "" for nobody. */
void catalogue_set_account(struct catalogue *, const char *account);
const char *catalogue_account(const struct catalogue *);
const char *catalogue_swarm(const struct catalogue *);
void catalogue_set_swarm(struct catalogue *, const char *swarm); /* the tree stays */
/* Another swarm: forgets tree and journal. The owner has made sure that the journal is empty. -errno: nothing has changed. */
int catalogue_reset(struct catalogue *, const char *swarm);

/* What is made is of the time `now`. -EDQUOT: a moment ago the tracker had no more room for this account. */
int catalogue_mkdir(struct catalogue *, uint64_t parent, const char *name, uint32_t mode,
                    int64_t now, uint64_t *ino);
int catalogue_symlink(struct catalogue *, uint64_t parent, const char *name, const char *target,
                      int64_t now, uint64_t *ino);
/* A file that is being written here; nobody else hears of it before catalogue_publish. */
int catalogue_create(struct catalogue *, uint64_t parent, const char *name, uint32_t mode,
                     int64_t now, uint64_t *ino);
/* A published file gets a new version: remembers what it is made from. */
int catalogue_write_begin(struct catalogue *, uint64_t ino);
/* The file that was being written has this content from now on. -ENOENT if
 * it was removed here meanwhile: then nothing is published, and nothing is lost that anybody wants.
 * A file that another member removed or replaced meanwhile comes back, under its own name or beside
 * the other. */
int catalogue_publish(struct catalogue *, uint64_t ino, const uint8_t root[HASH_SIZE],
                      uint64_t size, int64_t mtime, int64_t now);
/* It has so many unconfirmed changes that catalogue_publish gives -EAGAIN. */
bool catalogue_is_crowded(const struct catalogue *, uint64_t ino);
/* The writing was given up: a new file goes away, another one stays as it was. */
void catalogue_write_abandon(struct catalogue *, uint64_t ino);
/* A file being written is `size` bytes long now, for who looks at it. */
void catalogue_grown(struct catalogue *, uint64_t ino, uint64_t size);
struct rename {
    uint64_t parent;
    const char *name;
    uint64_t to_parent;
    const char *to_name;
    bool no_replace, exchange;
};
int catalogue_rename(struct catalogue *, const struct rename *);
/* -EISDIR, -ENOTDIR if it is not what `directory` says. */
int catalogue_remove(struct catalogue *, uint64_t parent, const char *name, bool directory);
/* NULL: stays as it is. */
int catalogue_attr(struct catalogue *, uint64_t ino, const uint32_t *mode, const int64_t *mtime);
/* An extended attribute of user.*, as setxattr(2) and removexattr(2) (`value` NULL) have it: -EEXIST, -ENODATA for what
 * `create` and `replace` say, -E2BIG for a value that is too large, -ENOSPC if all of them together are; -EPERM for the
 * root of the tree. */
struct xattr_change {
    const char *name;
    const uint8_t *value;
    size_t size;
    bool create, replace;
};
int catalogue_xattr(struct catalogue *, uint64_t ino, const struct xattr_change *);
/* Of one entry; new entries in a pinned directory are pinned. */
void catalogue_pin(struct catalogue *, uint64_t ino, bool pinned);
/* The entry goes on under a new number; the old one, if it is open, names a node of the same content
 * without a name. For a file that somebody reads in a way that cannot follow its next version.
 * -EBUSY while it is being written, -ENOENT if it has no name. */
int catalogue_renew(struct catalogue *, uint64_t ino);
/* Holds a node although its name goes; each open needs a close. */
void catalogue_open_node(struct catalogue *, uint64_t ino);
void catalogue_close_node(struct catalogue *, uint64_t ino);
/* After a restart: a program has a file open that the tree no longer has under this number. Makes a
 * nameless node, opened once. -EEXIST if the number has another meaning. */
int catalogue_reopen_node(struct catalogue *, uint64_t ino, const uint8_t root[HASH_SIZE],
                          uint64_t size);

/* --- the journal -------------------------------------------------------------------------------
 */
#define JOURNAL_LINGER_NS (200 * NS_PER_MS)
/* The next operation to send, packed (tracker.Op, malloc'ed); NULL if there is none now: the
 * journal is empty, the first Changes of this connection has not come (another data base of the
 * tracker would understand the numbers wrongly), enough is under way (256, so that the tracker
 * still remembers each of them when it is sent again), or the next one has not lingered yet: then
 * *due is when it will have (else 0). `now` is of a clock that does not jump; an operation begins to
 * linger with the first call that sees it. INT64_MAX: no lingering. What is not committed is, before the operation is given out;
 * NULL, and *due a second later, if that fails. */
uint8_t *catalogue_next_op(struct catalogue *, int64_t now, int64_t *due, size_t *size);
/* All that has no result is sent again; `anew`: the connection is a new one, and has to be heard first. */
void catalogue_resend(struct catalogue *, bool anew);
/* What the tracker refused for a reason that may pass (it is full) is sent once more. */
void catalogue_retry(struct catalogue *);
size_t catalogue_pending(const struct catalogue *);

/* --- from the tracker --------------------------------------------------------------------------
 */
/* `now` dates what is kept beside. Strings and lengths are judged here; bad entries are shown
 * nowhere. */
void catalogue_changes(struct catalogue *, const Tracker__Changes *, int64_t now);
void catalogue_results(struct catalogue *, const Tracker__Results *, int64_t now);
/* Where the replica stands: for Subscribe. False, and zeroes, if it knows nothing. */
bool catalogue_position(const struct catalogue *, uint8_t generation[GENERATION_SIZE],
                        uint64_t *seq);

/* --- small things of the local thread that live in state.db as well ---------------------------
 */
/* Working files (ingest.h), so that a restart finds them again. They are written with the next
 * commit. */
struct working_row {
    uint64_t number; /* of the ingest */
    uint64_t ino;
    uint64_t mount; /* who writes it */
    uint64_t inode; /* of the file in its file system: says where the store has put it */
    bool marked;    /* fsync was acknowledged */
    bool sealed; /* published in the same commit; kept until who wrote it is known to know that */
};
/* Calls `each` for every file that is being written, by what the tree says. */
void catalogue_each_writing(const struct catalogue *, void (*each)(void *arg, uint64_t ino),
                            void *arg);
void catalogue_working_put(struct catalogue *, const struct working_row *);
void catalogue_working_remove(struct catalogue *, uint64_t number);
void catalogue_working_each(struct catalogue *, void (*each)(void *arg, const struct working_row *),
                            void *arg);
/* Contents that lost their last name here, kept until `until` (nanoseconds since 1970), as others
 * may still be reading them. */
void catalogue_dropped_put(struct catalogue *, const uint8_t root[HASH_SIZE], int64_t until);
void catalogue_dropped_remove(struct catalogue *, const uint8_t root[HASH_SIZE]);
/* Calls `each` for those whose time came by `now`, first what lost its name first; returns when the next one's comes, 0: none. */
int64_t catalogue_dropped_due(struct catalogue *, int64_t now,
                              void (*each)(void *arg, const uint8_t root[HASH_SIZE]), void *arg);

#endif
