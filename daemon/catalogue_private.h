/* What the catalogue's files share; nobody else includes this.
 *
 *   catalogue.c          opening, looking, the small tables
 *   catalogue_tree.c     entries, the four hash tables, links between parent and child
 *   catalogue_change.c   changes of ours: checked, applied, journalled
 *   catalogue_journal.c  the operations: packing, results, what follows from a refusal
 *   catalogue_remote.c   what the tracker says: judged, shown, held back, swept
 *   catalogue_db.c       state.db: schema, commits
 *   catalogue_load.c     state.db: reading it at the start
 *
 * Invariants (R: the entry's record at the tracker, as far as we heard):
 *   C1  An entry without `pending` shows R, or is `working`, or is the root.
 *   C2  An entry with node.unconfirmed > 0 shows ours; R, if there is one, lies in pending->held.
 *   C3  A hidden entry (its place is taken by something of ours, or makes no sense) is unlinked, has
 *       R in pending->held, and is tried again after each batch of news.
 *   C4  An entry with node.id != 0 is in the table BY_ID, one with a root in BY_ROOT, a linked one
 *       in BY_NAME and in its parent's children; every one is in BY_INO.
 *   C5  Following parents ends after at most NAME_DEPTH_MAX steps.
 *   C6  An unlinked directory that still has children stays (as a ghost) until they leave. */
#ifndef DAEMON_CATALOGUE_PRIVATE_H
#define DAEMON_CATALOGUE_PRIVATE_H

#include <sqlite3.h>

#include "base/name.h"
#include "daemon/catalogue.h"

enum table { BY_NAME, BY_INO, BY_ID, BY_ROOT, TABLES };

enum {
    FLAG_HIDDEN = 1,  /* C3; it is in the list of hidden ones */
    FLAG_GHOST = 2,   /* a directory that was only named as a parent so far */
    FLAG_REMOVED = 4, /* its name was taken away by a change of ours */
    FLAG_WRITING = 8, /* a working file stands behind it */
    FLAG_STALE = 16, /* left from another data base of the tracker: goes unless it is named again */
    FLAG_REMAKE = 32,   /* with FLAG_STALE: holds something of ours that must not go */
    FLAG_REPLACED = 64, /* another member's version or removal took its name while it was open */
    FLAG_DIRTY = 128,   /* in memory only: its row is out of date */
};
#define FLAGS_STORED (FLAG_DIRTY - 1)

/* What our content's refusal asks for once all is answered. */
enum lost { LOST_NOT, LOST_BESIDE, LOST_AGAIN, LOST_LATER };

/* What only few entries have. */
struct pending {
    Tracker__Entry *held;  /* R, or NULL: the tracker does not know it */
    uint64_t made_by;      /* the operation that makes it; 0: none under way */
    uint64_t last_content; /* the last operation that gives it a content or makes it */
    uint64_t place;        /* of an unlinked one: ino of the directory it was in */
    uint64_t over; /* within a call: the `other` of the publication to come, which counts it */
    /* Of a working file: the published one whose place it took, which goes if ours leaves that place by a change of ours, as it
     * has been replaced. */
    uint64_t covers;
    uint8_t lost; /* enum lost */
    uint8_t retries;
    bool has_base;
    uint8_t base[HASH_SIZE]; /* what the version being written is made from */
};

/* With the number of a resync under way: only an answer has named it so far. */
#define SERIES_ANSWER (UINT32_C(1) << 31)

struct children {
    uintptr_t *slots; /* entries in the order of their cookies; a hole is (cookie << 1) | 1 */
    uint32_t used, live, room;
    uint32_t folders; /* of the live ones */
};

struct entry {
    struct node node; /* first */
    uint64_t seq;     /* of R */
    uint64_t cookie;  /* in its directory */
    struct entry *next[TABLES];
    struct children *children;
    struct pending *pending;
    uint32_t series; /* the resync that named it last; see SERIES_ANSWER */
    uint8_t flags;
    uint8_t name_room;
    char inline_name[];
};

struct op {
    Tracker__Op *message; /* id and parent as far as they are known; see op_resolve */
    uint64_t ino;         /* the entry that it changes */
    uint64_t
        other; /* the one that loses its name or changes places, also to a publication that replaces
                             it; 0: none. The operation is one of its changes, too, so it is not shown before */
    uint64_t parent; /* the directory it names; 0: none */
    int64_t due;     /* when it has lingered; 0: not seen by catalogue_next_op */
    bool sent, later, stored;
    bool again; /* it may have been sent before */
};

struct interned {
    struct interned *next;
    char text[];
};

struct vector {
    uint64_t *items;
    size_t count, room;
};

/* An entry that an answer said is gone, before all that was pushed about it in its life has come. */
#define BURIED_MAX                                                                                 \
    1024 /* more than there are answers on their way (WINDOW), with room to be behind */
struct buried {
    uint64_t id, seq;
};

struct dropped;

/* The tracker is asked again so much later whether this account may have one more entry. */
#define QUOTA_AGAIN_NS (5 * NS_PER_S)

struct catalogue {
    const struct catalogue_events *events;
    void *arg;
    struct {
        struct entry **buckets;
        size_t mask, count;
    } tables[TABLES];
    uint64_t hash_seed;
    struct entry *root;
    struct interned *owners[256];
    uint64_t entries;      /* linked ones */
    int64_t quota_met;     /* when the tracker said that this account is full; 0: it has not */
    struct vector hidden;  /* inos; may name ones that are hidden no more */
    struct vector dirty;   /* inos whose rows are out of date */
    struct vector op_rows; /* numbers of operations whose rows must go */

    /* the journal: operations in order; those with a result leave a NULL */
    struct op **ops;
    size_t ops_first, ops_end, ops_room, ops_live, ops_next, in_flight;
    size_t ops_new;   /* without a row */
    bool ops_blocked; /* one was passed over that must go behind a later one */

    /* numbers, each reserved in the data base in advance */
    uint64_t next_op, op_limit, next_ino, ino_limit, next_cookie;
    bool unreadable;   /* while it is opened: the disk does not give all of it */
    bool limits_dirty; /* a reservation could not be written: it goes with the next commit */

    /* where the replica stands */
    uint8_t generation[GENERATION_SIZE];
    bool generation_known;
    uint64_t seq;
    uint32_t series; /* grows with each from_scratch */
    bool resyncing;  /* between from_scratch and live */
    bool answering;  /* within catalogue_results */
    bool heard;      /* the tracker has said on this connection which data base it has */
    unsigned bad;    /* bad entries in this series */
    struct buried buried[BURIED_MAX]; /* a ring; the oldest is overwritten */
    size_t buried_first, buried_count;
    char account[ACCOUNT_BYTES_MAX + 1];
    char *swarm;
    int64_t now; /* of the call under way */

    /* small tables */
    struct working_row *working;
    size_t working_count;
    bool working_dirty;
    struct dropped *dropped;
    bool dropped_dirty;
    bool meta_dirty;

    /* catalogue_db.c */
    sqlite3 *db;
    sqlite3_stmt *statements[24];
    char *path;
    bool loading;  /* rows come from the data base: nothing is dirty */
    bool failing;  /* the last commit failed, and was logged */
    bool full;     /* synchronous=FULL is set */
    bool unsynced; /* a commit since the last one that was safe */
};

/* --- catalogue_tree.c --- */
void vector_add(struct vector *, uint64_t);
struct entry *tree_find(const struct catalogue *, enum table, uint64_t key);
struct entry *tree_child(const struct catalogue *, const struct entry *directory, const char *name);
struct entry *tree_with_root(const struct catalogue *, const uint8_t root[HASH_SIZE],
                             const struct entry *previous);
/* Unlinked, without id; `ino` 0: a new one. */
struct entry *tree_new(struct catalogue *, uint64_t ino, enum node_kind, const char *name);
/* Unlinks and frees. It has no children. */
void tree_free(struct catalogue *, struct entry *);
/* The same, if nothing holds it any more. */
void tree_free_if_idle(struct catalogue *, struct entry *);
void tree_free_all(struct catalogue *);
bool tree_is_linked(const struct catalogue *, const struct entry *);
bool tree_is_attached(const struct catalogue *, const struct entry *);
/* Whether it may stand there: no loop, not too deep. */
int tree_fits(const struct catalogue *, const struct entry *directory, const struct entry *);
/* The name must be free and the place fit. `cookie` 0: behind all others. Both invalidate. */
void tree_link(struct catalogue *, struct entry *, struct entry *directory, const char *name,
               uint64_t cookie);
void tree_unlink(struct catalogue *, struct entry *);
void tree_set_id(struct catalogue *, struct entry *, uint64_t id);
void tree_set_ino(struct catalogue *, struct entry *, uint64_t ino);
void tree_set_content(struct catalogue *, struct entry *, const uint8_t root[HASH_SIZE],
                      uint64_t size);
void tree_set_target(struct entry *, const char *target);
void tree_set_xattrs(struct entry *e, const Tracker__Xattrs *); /* copied */
void tree_set_owner(struct catalogue *, struct entry *, const char *owner);
void tree_dirty(struct catalogue *, struct entry *);
void tree_changed(struct catalogue *, struct entry *); /* dirty, and its attributes are invalid */
/* To who watches. */
void tree_tell(struct catalogue *, const struct entry *, enum node_change);
struct pending *tree_pending(struct entry *);
void tree_trim_pending(struct entry *);
uint32_t tree_children(const struct entry *);
struct entry *tree_next_child(const struct entry *directory, uint64_t *cookie);
/* "NAME (conflict …)" that is free in the directory; `name` may be `out`. */
void tree_conflict_name(const struct catalogue *, const struct entry *directory, const char *name,
                        char out[NAME_BYTES_MAX + 1]);

/* --- catalogue_journal.c --- */
/* An entry that the tracker names for the first time, and that is one of ours whose answer is still to come; or NULL. Ours may
 * be gone here meanwhile, or have moved on: it must not come back under the name that it had. */
struct entry *journal_made(struct catalogue *, const Tracker__Entry *);
/* Something of ours now happens to the entry: keeps R aside. */
void journal_touch(struct catalogue *, struct entry *);
/* Appends; fills in op->message's number. Takes the struct over; `message` is copied. */
uint64_t journal_add(struct catalogue *, const Tracker__Op *message, struct entry *,
                     struct entry *other, struct entry *parent);
/* The one operation of ours on this entry makes or fills it, and has not left: the entry can be
 * changed as if it had not been journalled. `fresh`: nor does it replace anything. */
bool journal_is_here(const struct catalogue *, const struct entry *, bool fresh);
/* Takes that operation back; the version it was based on is the entry's base again. */
void journal_take_back(struct catalogue *, struct entry *);
void journal_put(struct catalogue *, struct op *); /* when loading */
/* The operation that makes the entry as it is shown, under its name. Touches it. */
uint64_t journal_make(struct catalogue *, struct entry *, bool later);
/* Before journal_make: it takes the place of `other`, which the tracker knows, and which is not seen again before the
 * tracker has answered. */
void journal_over(struct catalogue *, struct entry *, struct entry *other);
void journal_clear(struct catalogue *);
void journal_settle(struct catalogue *, struct entry *);

/* --- catalogue_remote.c --- */
Tracker__Entry *remote_copy(const Tracker__Entry *);
Tracker__Entry *remote_of(const struct entry *); /* as the tracker would say it */
/* The entry's record; ours on top stays. `E` is judged here. */
void remote_absorb(struct catalogue *, const Tracker__Entry *e);
/* The directory with this id: as it is known, or a ghost until it is. */
struct entry *remote_directory(struct catalogue *, uint64_t id);
bool remote_is_sound(struct catalogue *, const Tracker__Entry *e);
/* For entry.series of what is named now. */
uint32_t remote_series(const struct catalogue *);
/* The resync, of which all up to c->seq has come, has not named the entry, nor has an answer that is ahead of it. */
bool remote_is_unnamed(const struct catalogue *, const struct entry *);
/* An answer says that the entry is gone: what is pushed later and is older does not bring it back. */
void remote_bury(struct catalogue *, const Tracker__Entry *gone);
/* Makes the entry what R says, as far as ours lets it. */
void remote_show(struct catalogue *, struct entry *, const Tracker__Entry *e);
/* Out of sight, with R kept. */
void remote_hide(struct catalogue *, struct entry *, const Tracker__Entry *e);
/* It is no more. Open, or with children, it lives on without a name. */
void remote_discard(struct catalogue *, struct entry *);
void remote_retry_hidden(struct catalogue *);
/* Whether it, or something in it, is ours and unknown to the tracker. */
bool remote_is_ours(const struct entry *);

/* --- catalogue_db.c, catalogue_load.c --- */
/* All statements; the texts stand in catalogue_db.c. */
enum sql {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_FULL,
    SQL_NORMAL,
    SQL_META_GET,
    SQL_META_PUT,
    SQL_ENTRY_PUT,
    SQL_ENTRY_DELETE,
    SQL_ENTRY_ALL,
    SQL_OP_PUT,
    SQL_OP_DELETE,
    SQL_OP_ALL,
    SQL_WORKING_CLEAR,
    SQL_WORKING_PUT,
    SQL_WORKING_ALL,
    SQL_DROPPED_PUT,
    SQL_DROPPED_DELETE,
    SQL_DROPPED_ALL,
    SQL_END
};

/* In the column `flags` of an entry's row, above FLAGS_STORED. */
#define ROW_PINNED  256
#define ROW_WORKING 512
#define ROW_LEVEL   1024 /* times the level */

/* Ready for binding; NULL if the data base has failed. */
sqlite3_stmt *db_statement(struct catalogue *, enum sql);
bool db_open(struct catalogue *, const char **fault);
void db_close(struct catalogue *);
/* False: rows were left out that made no sense; or the disk failed, then it is `unreadable`. */
bool db_load(struct catalogue *);
int db_commit(struct catalogue *, bool safe);
/* Raise a limit of numbers, so that none is given twice, whatever happens. */
void db_reserve(struct catalogue *, bool ops);
int db_wipe(struct catalogue *); /* in one step with what says how far it had come */

struct dropped_row {
    uint8_t root[HASH_SIZE];
    int64_t until;
};
void dropped_load(struct catalogue *, const struct dropped_row *);
/* False if one could not be written. */
bool dropped_each_dirty(struct catalogue *,
                        bool (*write)(struct catalogue *, const struct dropped_row *));
void dropped_written(struct catalogue *); /* and it is committed */

#endif
