/* state.db: the tree, the journal and the small tables on disk.
 *
 * Owns the connection. Leaves reading it at the start to catalogue_load.c, what the rows mean to the
 * other files. Thread: local.
 *
 * Nothing is written when it changes: entries and operations are marked, and db_commit writes all
 * marked rows in one transaction. WAL, so that a commit is a write of a few pages; with
 * synchronous=FULL it is on the disk when it returns (and all commits before it as well), with
 * NORMAL it survives the end of the process, but not a loss of power. A commit that fails changes
 * nothing, and everything stays marked for the next.
 *
 * Numbers (of operations, of inos) are reserved in blocks: the upper end is on disk before the first
 * of a block is used, so that no crash makes one come again with another meaning; or, if the disk failed just then, with
 * the first commit, before which nothing that has such a number leaves us. */
#include "daemon/catalogue_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"

#define SCHEMA_VERSION 3
#define RESERVE_OPS    1024
#define RESERVE_INOS   8192
#define OPEN_AGAIN     3
#define BUSY_MS        2000 /* nobody else writes here but a person with a tool */

static const char schema[] =
    "CREATE TABLE meta ("
    "  key TEXT PRIMARY KEY," /* generation, seq, account, swarm, op_limit, ino_limit */
    "  value"
    ") WITHOUT ROWID;"
    "CREATE TABLE entry ("
    "  ino INTEGER PRIMARY KEY," /* ours, stable */
    "  id INTEGER NOT NULL,"     /* the tracker's; 0: not known to it */
    "  parent INTEGER NOT NULL," /* ino of the directory; 0: unlinked (removed, hidden, ghost) */
    "  name TEXT NOT NULL,"      /* shown, or shown last */
    "  kind INTEGER NOT NULL,"   /* 1 directory, 2 file, 3 symbolic link */
    "  mode INTEGER NOT NULL,"   /* permission bits */
    "  size INTEGER NOT NULL,"   /* bytes, of a file */
    "  mtime INTEGER NOT NULL,"  /* nanoseconds since 1970 */
    "  root BLOB,"               /* 32 bytes, of a file that is not empty */
    "  target TEXT,"             /* of a symbolic link */
    "  owner TEXT NOT NULL,"     /* account that made this version */
    "  seq INTEGER NOT NULL,"    /* the tracker's number of the last change we know */
    "  cookie INTEGER NOT NULL," /* its place in listings of the directory */
    "  flags INTEGER NOT NULL," /* FLAG_… of catalogue_private.h, from 256: pinned, 512: working */
    "  held BLOB,"              /* packed tracker.Entry: the tracker's state behind ours */
    "  made_by INTEGER,"        /* number of the operation that makes it */
    "  last_content INTEGER,"   /* number of the last operation that gives it a content */
    "  place INTEGER,"          /* of an unlinked one: the directory it was in */
    "  lost INTEGER,"           /* what its refusal asks for, retries << 8 */
    "  base BLOB,"              /* 32 bytes: what the version being written is made from */
    "  xattrs BLOB,"            /* packed tracker.Xattrs; NULL: none */
    "  covers INTEGER" /* of a working file: ino of the published one whose place it took */
    ");"
    "CREATE TABLE op ("
    "  number INTEGER PRIMARY KEY," /* never used twice */
    "  ino INTEGER NOT NULL,"       /* the entry it changes */
    "  other INTEGER NOT NULL,"     /* the entry whose place it takes; 0: none */
    "  parent INTEGER NOT NULL,"    /* ino of the directory it names; 0: none */
    "  message BLOB NOT NULL"       /* packed tracker.Op */
    ");"
    "CREATE TABLE working ("
    "  number INTEGER PRIMARY KEY," /* of the file in store/incoming */
    "  ino INTEGER NOT NULL,"       /* whose new content it is */
    "  mount INTEGER NOT NULL,"     /* the mount that writes it */
    "  marked INTEGER NOT NULL,"    /* 1: fsync was acknowledged; 2: sealed */
    "  inode INTEGER NOT NULL"      /* of that file, in its own file system */
    ");"
    "CREATE TABLE dropped ("
    "  root BLOB PRIMARY KEY," /* a content without name */
    "  until INTEGER NOT NULL" /* kept until then, nanoseconds since 1970 */
    ") WITHOUT ROWID;";
/* What a file of version 1, and of version 2, lacks for the next. */
static const char *const upgrades[SCHEMA_VERSION] = {
    [1] = "ALTER TABLE entry ADD COLUMN xattrs BLOB;",
    [2] = "ALTER TABLE entry ADD COLUMN covers INTEGER;",
};

static const char *const texts[SQL_END] = {
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_FULL] = "PRAGMA synchronous=FULL",
    [SQL_NORMAL] = "PRAGMA synchronous=NORMAL",
    [SQL_META_GET] = "SELECT value FROM meta WHERE key = ?",
    [SQL_META_PUT] = "INSERT OR REPLACE INTO meta VALUES (?, ?)",
    [SQL_ENTRY_PUT] =
        "INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
    [SQL_ENTRY_DELETE] = "DELETE FROM entry WHERE ino = ?",
    [SQL_ENTRY_ALL] = "SELECT * FROM entry ORDER BY ino",
    [SQL_OP_PUT] = "INSERT OR REPLACE INTO op VALUES (?,?,?,?,?)",
    [SQL_OP_DELETE] = "DELETE FROM op WHERE number = ?",
    [SQL_OP_ALL] = "SELECT * FROM op ORDER BY number",
    [SQL_WORKING_CLEAR] = "DELETE FROM working",
    [SQL_WORKING_PUT] = "INSERT INTO working VALUES (?,?,?,?,?)",
    [SQL_WORKING_ALL] = "SELECT * FROM working",
    [SQL_DROPPED_PUT] = "INSERT OR REPLACE INTO dropped VALUES (?,?)",
    [SQL_DROPPED_DELETE] = "DELETE FROM dropped WHERE root = ?",
    [SQL_DROPPED_ALL] = "SELECT * FROM dropped ORDER BY until",
};

/* --- statements ------------------------------------------------------------------------------- */

sqlite3_stmt *db_statement(struct catalogue *c, enum sql which)
{
    _Static_assert(SQL_END <= sizeof((struct catalogue *)NULL)->statements / sizeof(sqlite3_stmt *),
                   "room for all statements");
    if (c->statements[which] == NULL &&
        sqlite3_prepare_v3(c->db, texts[which], -1, SQLITE_PREPARE_PERSISTENT,
                           &c->statements[which], NULL) != SQLITE_OK)
        return NULL;
    return c->statements[which];
}

/* Runs to the end and makes the statement ready for the next time. */
static bool run(sqlite3_stmt *s)
{
    int result;

    if (s == NULL)
        return false;
    do
        result = sqlite3_step(s);
    while (result == SQLITE_ROW);
    sqlite3_reset(s);
    return result == SQLITE_DONE;
}

static void bind_blob(sqlite3_stmt *s, int index, const void *bytes, size_t size)
{
    if (bytes == NULL)
        sqlite3_bind_null(s, index);
    else
        sqlite3_bind_blob(s, index, bytes, (int)size, SQLITE_STATIC);
}

static void bind_number(sqlite3_stmt *s, int index, uint64_t value)
{
    sqlite3_bind_int64(s, index, (sqlite3_int64)value);
}

/* --- opening ---------------------------------------------------------------------------------- */

static bool execute(struct catalogue *c, const char *text)
{
    return sqlite3_exec(c->db, text, NULL, NULL, NULL) == SQLITE_OK;
}

static int version_of(struct catalogue *c)
{
    sqlite3_stmt *s = NULL;
    int version = -1;

    if (sqlite3_prepare_v2(c->db, "PRAGMA user_version", -1, &s, NULL) == SQLITE_OK &&
        sqlite3_step(s) == SQLITE_ROW)
        version = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    return version;
}

static void close_connection(struct catalogue *c)
{
    for (int i = 0; i < SQL_END; i++) {
        sqlite3_finalize(c->statements[i]);
        c->statements[i] = NULL;
    }
    sqlite3_close(c->db);
    c->db = NULL;
}

/* Makes the tables, or brings them from that version to ours. */
static bool make_tables(struct catalogue *c, int version)
{
    char pragma[64];

    snprintf(pragma, sizeof pragma, "PRAGMA user_version=%d", SCHEMA_VERSION);
    bool good = execute(c, "BEGIN IMMEDIATE");
    if (version == 0)
        good = good && execute(c, schema);
    for (int v = version; v > 0 && v < SCHEMA_VERSION; v++)
        good = good && execute(c, upgrades[v]);
    return good && execute(c, pragma) && execute(c, "COMMIT");
}

/* 1: open; 0: it is damaged; -1 and *fault: it cannot be had. */
static int try_open(struct catalogue *c, const char **fault)
{
    if (sqlite3_open_v2(c->path, &c->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        NULL) != SQLITE_OK) {
        *fault = "the catalogue's data base (state.db) cannot be opened";
        return -1;
    }
    sqlite3_busy_timeout(c->db, BUSY_MS);
    int version = version_of(c);
    int code = sqlite3_errcode(c->db);
    if (version > SCHEMA_VERSION) {
        *fault = "state.db was made by a newer p2pd";
        return -1;
    }
    bool good = version >= 0 && execute(c, "PRAGMA journal_mode=WAL") &&
                execute(c, "PRAGMA synchronous=NORMAL") && execute(c, "PRAGMA cell_size_check=ON");
    if (good && version < SCHEMA_VERSION)
        good = make_tables(c, version);
    if (good)
        return 1;
    if (version >= 0)
        code = sqlite3_errcode(c->db);
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB)
        return 0;
    *fault = code == SQLITE_FULL ? "state.db: the disk is full" : "state.db cannot be used";
    return -1;
}

static void move_aside(struct catalogue *c)
{
    char *bad = xasprintf("%s.damaged", c->path);
    static const char *const tails[] = {"", "-wal", "-shm"};

    log_error("%s is damaged: kept as %s; the catalogue is fetched again", c->path, bad);
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        char *from = xasprintf("%s%s", c->path, tails[i]);
        char *to = xasprintf("%s%s", bad, tails[i]);
        if (rename(from, to) != 0 && errno != ENOENT)
            log_error("%s: %s", from, strerror(errno));
        free(from);
        free(to);
    }
    free(bad);
}

bool db_open(struct catalogue *c, const char **fault)
{
    int result = try_open(c, fault);

    /* What a failing disk gives once it may not give again: nothing is set aside for that. */
    for (int i = 0; i < OPEN_AGAIN && result == 0; i++) {
        close_connection(c);
        result = try_open(c, fault);
    }
    if (result == 0) {
        close_connection(c);
        move_aside(c);
        result = try_open(c, fault);
        if (result == 0)
            *fault = "state.db is damaged";
    }
    if (result != 1)
        close_connection(c);
    return result == 1;
}

void db_close(struct catalogue *c)
{
    close_connection(c);
}

/* --- writing ---------------------------------------------------------------------------------- */

static bool write_entry(struct catalogue *c, const struct entry *e)
{
    static const uint8_t zero[HASH_SIZE];
    sqlite3_stmt *s = db_statement(c, SQL_ENTRY_PUT);
    const struct pending *p = e->pending;
    const struct node *n = &e->node;
    uint8_t *held = NULL, *xattrs;
    size_t xattrs_size;

    if (s == NULL)
        return false;
    bind_number(s, 1, n->ino);
    bind_number(s, 2, n->id);
    bind_number(s, 3, n->parent == NULL ? 0 : n->parent->ino);
    sqlite3_bind_text(s, 4, n->name, -1, SQLITE_STATIC);
    sqlite3_bind_int(s, 5, (int)n->kind);
    sqlite3_bind_int(s, 6, n->mode);
    bind_number(s, 7, n->size);
    sqlite3_bind_int64(s, 8, n->mtime);
    bind_blob(s, 9, memcmp(n->root, zero, HASH_SIZE) == 0 ? NULL : n->root, HASH_SIZE);
    sqlite3_bind_text(s, 10, n->target, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 11, n->owner, -1, SQLITE_STATIC);
    bind_number(s, 12, e->seq);
    bind_number(s, 13, e->cookie);
    sqlite3_bind_int(s, 14,
                     (e->flags & FLAGS_STORED) | (n->pinned ? ROW_PINNED : 0) |
                         (n->working ? ROW_WORKING : 0) | n->level * ROW_LEVEL);
    for (int i = 15; i <= 20; i++)
        sqlite3_bind_null(s, i);
    if (p != NULL) {
        if (p->held != NULL) {
            size_t size = tracker__entry__get_packed_size(p->held);
            held = xmalloc(size);
            tracker__entry__pack(p->held, held);
            bind_blob(s, 15, held, size);
        }
        bind_number(s, 16, p->made_by);
        bind_number(s, 17, p->last_content);
        bind_number(s, 18, p->place);
        sqlite3_bind_int(s, 19, p->lost | p->retries << 8);
        bind_blob(s, 20, p->has_base ? p->base : NULL, HASH_SIZE);
    }
    xattrs = xattrs_pack(n->xattrs, &xattrs_size);
    bind_blob(s, 21, xattrs, xattrs_size);
    if (p != NULL && p->covers != 0)
        bind_number(s, 22, p->covers);
    else
        sqlite3_bind_null(s, 22);
    bool good = run(s);
    free(xattrs);
    free(held);
    return good;
}

static bool write_entries(struct catalogue *c)
{
    for (size_t i = 0; i < c->dirty.count; i++) {
        const struct entry *e = tree_find(c, BY_INO, c->dirty.items[i]);
        if (e == c->root)
            continue;
        if (e != NULL) {
            if (!write_entry(c, e))
                return false;
            continue;
        }
        sqlite3_stmt *s = db_statement(c, SQL_ENTRY_DELETE);
        if (s != NULL)
            bind_number(s, 1, c->dirty.items[i]);
        if (!run(s))
            return false;
    }
    return true;
}

static bool write_op(struct catalogue *c, const struct op *op)
{
    sqlite3_stmt *s = db_statement(c, SQL_OP_PUT);
    size_t size = tracker__op__get_packed_size(op->message);

    if (s == NULL)
        return false;
    uint8_t *packed = xmalloc(size + 1); /* never NULL for SQLite, which would store one */
    tracker__op__pack(op->message, packed);
    bind_number(s, 1, op->message->op);
    bind_number(s, 2, op->ino);
    bind_number(s, 3, op->other);
    bind_number(s, 4, op->parent);
    bind_blob(s, 5, packed, size);
    bool good = run(s);
    free(packed);
    return good;
}

/* Those that are not stored yet are the last ones. `act` NULL: says that they are stored now. */
static bool each_new_op(struct catalogue *c, bool (*act)(struct catalogue *, const struct op *))
{
    for (size_t i = c->ops_end; i > c->ops_first; i--) {
        struct op *op = c->ops[i - 1];
        if (op == NULL)
            continue;
        if (op->stored)
            break;
        if (act == NULL)
            op->stored = true;
        else if (!act(c, op))
            return false;
    }
    return true;
}

static bool write_journal(struct catalogue *c)
{
    if (!each_new_op(c, write_op))
        return false;
    for (size_t i = 0; i < c->op_rows.count; i++) {
        sqlite3_stmt *s = db_statement(c, SQL_OP_DELETE);
        if (s != NULL)
            bind_number(s, 1, c->op_rows.items[i]);
        if (!run(s))
            return false;
    }
    return true;
}

static bool meta_put_number(struct catalogue *c, const char *key, uint64_t value)
{
    sqlite3_stmt *s = db_statement(c, SQL_META_PUT);

    if (s == NULL)
        return false;
    sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
    bind_number(s, 2, value);
    return run(s);
}

static bool meta_put_text(struct catalogue *c, const char *key, const char *value)
{
    sqlite3_stmt *s = db_statement(c, SQL_META_PUT);

    if (s == NULL)
        return false;
    sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
    sqlite3_bind_text(s, 2, value, -1, SQLITE_STATIC);
    return run(s);
}

static bool write_meta(struct catalogue *c)
{
    sqlite3_stmt *s = db_statement(c, SQL_META_PUT);

    if (!c->meta_dirty)
        return true;
    if (s == NULL)
        return false;
    sqlite3_bind_text(s, 1, "generation", -1, SQLITE_STATIC);
    bind_blob(s, 2, c->generation, c->generation_known ? GENERATION_SIZE : 1);
    /* Half a resync is no state: after a restart it begins anew. */
    return run(s) && meta_put_number(c, "seq", c->resyncing ? 0 : c->seq) &&
           meta_put_text(c, "account", c->account) && meta_put_text(c, "swarm", c->swarm);
}

static bool write_dropped(struct catalogue *c, const struct dropped_row *row)
{
    sqlite3_stmt *s = db_statement(c, row->until < 0 ? SQL_DROPPED_DELETE : SQL_DROPPED_PUT);

    if (s == NULL)
        return false;
    bind_blob(s, 1, row->root, HASH_SIZE);
    if (row->until >= 0)
        sqlite3_bind_int64(s, 2, row->until);
    return run(s);
}

static bool write_working(struct catalogue *c)
{
    if (!c->working_dirty)
        return true;
    if (!run(db_statement(c, SQL_WORKING_CLEAR)))
        return false;
    for (size_t i = 0; i < c->working_count; i++) {
        sqlite3_stmt *s = db_statement(c, SQL_WORKING_PUT);
        const struct working_row *row = &c->working[i];
        if (s == NULL)
            return false;
        bind_number(s, 1, row->number);
        bind_number(s, 2, row->ino);
        bind_number(s, 3, row->mount);
        sqlite3_bind_int(s, 4, row->marked + 2 * row->sealed);
        bind_number(s, 5, row->inode);
        if (!run(s))
            return false;
    }
    return true;
}

static bool write_limits(struct catalogue *c)
{
    return !c->limits_dirty || (meta_put_number(c, "op_limit", c->op_limit) &&
                                meta_put_number(c, "ino_limit", c->ino_limit));
}

static bool write_all(struct catalogue *c)
{
    return write_entries(c) && write_journal(c) && write_meta(c) && write_working(c) &&
           write_limits(c) && (!c->dropped_dirty || dropped_each_dirty(c, write_dropped));
}

static void all_written(struct catalogue *c)
{
    for (size_t i = 0; i < c->dirty.count; i++) {
        struct entry *e = tree_find(c, BY_INO, c->dirty.items[i]);
        if (e != NULL)
            e->flags &= (uint8_t)~FLAG_DIRTY;
    }
    c->dirty.count = c->op_rows.count = 0;
    (void)each_new_op(c, NULL);
    c->ops_new = 0;
    dropped_written(c);
    c->meta_dirty = c->working_dirty = c->dropped_dirty = c->limits_dirty = false;
    if (c->dirty.room > 65536) { /* after a resync */
        free(c->dirty.items);
        c->dirty = (struct vector){0};
    }
}

static int failed(struct catalogue *c)
{
    int code = sqlite3_errcode(c->db);

    if (!c->failing)
        log_error("%s: %s", c->path, sqlite3_errmsg(c->db));
    c->failing = true;
    if (!sqlite3_get_autocommit(c->db))
        (void)run(db_statement(c, SQL_ROLLBACK));
    return code == SQLITE_FULL ? -ENOSPC : -EIO;
}

static void set_full(struct catalogue *c, bool full)
{
    if (c->full != full && run(db_statement(c, full ? SQL_FULL : SQL_NORMAL)))
        c->full = full;
}

int db_commit(struct catalogue *c, bool safe)
{
    if (!catalogue_is_dirty(c)) {
        if (!safe || !c->unsynced)
            return 0;
        c->meta_dirty = true; /* something to commit, behind which all the rest is synced */
    }
    safe = safe || c->limits_dirty;
    set_full(c, safe);
    if (!run(db_statement(c, SQL_BEGIN)) || !write_all(c) || !run(db_statement(c, SQL_COMMIT)))
        return failed(c);
    c->failing = false;
    c->unsynced = !safe;
    all_written(c);
    return 0;
}

int catalogue_sync(const char *path)
{
    char *wal = xasprintf("%s-wal", path);
    /* Commits are appended to it, and leave it for the data base only when that has been synced. No lock of SQLite's is
     * on it, so that closing it drops none. */
    int fd = open(wal, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    int result = fd < 0 || fdatasync(fd) != 0 ? -errno : 0;

    if (fd >= 0)
        close(fd);
    free(wal);
    return result;
}

int catalogue_checkpoint(struct catalogue *c)
{
    if (sqlite3_wal_checkpoint_v2(c->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL) != SQLITE_OK)
        return failed(c);
    return 0;
}

void db_reserve(struct catalogue *c, bool ops)
{
    const char *key = ops ? "op_limit" : "ino_limit";
    uint64_t *limit = ops ? &c->op_limit : &c->ino_limit;

    CHECK(!c->loading);
    *limit += ops ? RESERVE_OPS : RESERVE_INOS;
    set_full(c, ops); /* the tracker remembers operations over our loss of power */
    if (!meta_put_number(c, key, *limit)) {
        (void)failed(c);
        c->limits_dirty = true;
    } else if (ops)
        c->unsynced = false;
}

int db_wipe(struct catalogue *c)
{
    bool good =
        execute(c, "BEGIN IMMEDIATE; DELETE FROM entry; DELETE FROM op; DELETE FROM working; "
                   "DELETE FROM meta WHERE key IN ('seq', 'generation', 'swarm'); COMMIT");

    return good ? 0 : failed(c);
}
