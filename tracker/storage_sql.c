/* All SQL of the tracker: the steps that make the schema, and the statements that run.
 *
 * A schema is a list of steps; a file whose user_version is n has had the first n. A step that has
 * been released is never changed: what comes later is a step of its own. Comments inside the texts
 * are kept by SQLite and show in `.schema`. */
#include "tracker/storage_private.h"

const char *const storage_main_steps[] = {
    /* 1: the swarm and its members */
    "CREATE TABLE meta (\n"
    "  key   TEXT PRIMARY KEY, -- generation, seq, next_id, live, pruned\n"
    "  value ANY               -- a number, or bytes\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE account (\n"
    "  name     TEXT PRIMARY KEY, -- as base/name.h has it\n"
    "  email    TEXT NOT NULL,    -- '' if there is none\n"
    "  password TEXT NOT NULL,    -- PHC string, Argon2id\n"
    "  admin    INTEGER NOT NULL, -- 1: may do what admins may\n"
    "  disabled INTEGER NOT NULL, -- 1: certificates are void, no log in\n"
    "  created  INTEGER NOT NULL  -- seconds since 1970\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE device (\n"
    "  id          BLOB PRIMARY KEY,  -- 16 bytes, from the public key\n"
    "  account     TEXT NOT NULL REFERENCES account(name), -- whose log in was the last\n"
    "  machine     TEXT NOT NULL,     -- what its owner calls it\n"
    "  created     INTEGER NOT NULL,  -- first log in\n"
    "  last_seen   INTEGER NOT NULL,  -- last time it was connected\n"
    "  void_before INTEGER NOT NULL,  -- certificates issued before are void\n"
    "  logged_out  INTEGER NOT NULL,  -- 1: none was issued since void_before\n"
    "  disabled    INTEGER NOT NULL   -- 1: certificates are void, no log in\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX device_account ON device(account);\n"
    "CREATE TABLE invite (\n"
    "  hash    BLOB PRIMARY KEY,  -- SHA-256 of the code\n"
    "  admin   INTEGER NOT NULL,  -- 1: the account made with it is an admin's\n"
    "  uses    INTEGER NOT NULL,  -- left\n"
    "  expires INTEGER NOT NULL,  -- seconds since 1970\n"
    "  made_by TEXT NOT NULL,     -- account, '' for the tracker's own command\n"
    "  made    INTEGER NOT NULL   -- seconds since 1970\n"
    ") STRICT, WITHOUT ROWID;\n",

    /* 2: the catalogue */
    "CREATE TABLE entry (\n"
    "  id     INTEGER PRIMARY KEY, -- 2 and up, never used again; 1 is the tree's root and has no "
    "row\n"
    "  parent INTEGER,             -- NULL in a tombstone\n"
    "  name   TEXT,                -- NULL in a tombstone\n"
    "  kind   INTEGER NOT NULL,    -- 1 directory, 2 file, 3 symbolic link\n"
    "  size   INTEGER NOT NULL,    -- of a file, bytes\n"
    "  root   BLOB,                -- of a file, 32 bytes\n"
    "  target TEXT,                -- of a symbolic link\n"
    "  mtime  INTEGER NOT NULL,    -- nanoseconds since 1970\n"
    "  mode   INTEGER NOT NULL,    -- permission bits within 0777\n"
    "  owner  TEXT NOT NULL,       -- account that made this version\n"
    "  seq    INTEGER NOT NULL,    -- of the change that made it so\n"
    "  gone   INTEGER              -- tombstone: when it was deleted, seconds since 1970; else "
    "NULL\n"
    ") STRICT;\n"
    "CREATE UNIQUE INDEX entry_name ON entry(parent, name) WHERE gone IS NULL;\n"
    "CREATE UNIQUE INDEX entry_seq ON entry(seq);\n"
    "CREATE INDEX entry_directory ON entry(parent) WHERE kind = 1 AND gone IS NULL;\n"
    "CREATE INDEX entry_gone ON entry(gone) WHERE gone IS NOT NULL;\n"
    "CREATE TABLE op (\n"
    "  n      INTEGER PRIMARY KEY, -- order of arrival\n"
    "  device BLOB NOT NULL,       -- who asked\n"
    "  op     INTEGER NOT NULL,    -- the device's number for it\n"
    "  status INTEGER NOT NULL,    -- what was answered\n"
    "  entry  INTEGER NOT NULL,    -- entry that the answer showed, 0: none\n"
    "  UNIQUE (device, op)\n"
    ") STRICT;\n"
    "CREATE INDEX op_order ON op(device, n);\n",

    /* 3: what happened to accounts */
    "CREATE TABLE audit (\n"
    "  n       INTEGER PRIMARY KEY AUTOINCREMENT, -- rows are only ever added\n"
    "  at      INTEGER NOT NULL, -- seconds since 1970\n"
    "  what    TEXT NOT NULL,    -- register, login, refused, passwd, logout, invite, ...\n"
    "  account TEXT NOT NULL,    -- whose, or ''\n"
    "  device  BLOB,             -- on which device, or NULL\n"
    "  source  TEXT NOT NULL     -- from which address, or ''\n"
    ") STRICT;\n"
    "CREATE TRIGGER audit_keep BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit is kept'); "
    "END;\n"
    "CREATE TRIGGER audit_true BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit is kept'); "
    "END;\n",
};
const int storage_main_version = sizeof storage_main_steps / sizeof *storage_main_steps;

const char *const storage_pieces_steps[] = {
    "CREATE TABLE holding (\n"
    "  device   BLOB NOT NULL,    -- 16 bytes\n"
    "  root     BLOB NOT NULL,    -- 32 bytes\n"
    "  size     INTEGER NOT NULL, -- of the file\n"
    "  complete INTEGER NOT NULL, -- 1: all pieces\n"
    "  map      BLOB,             -- else which, low bit first\n"
    "  PRIMARY KEY (device, root, size)\n"
    ") STRICT, WITHOUT ROWID;\n",
};
const int storage_pieces_version = sizeof storage_pieces_steps / sizeof *storage_pieces_steps;

#define ACCOUNT_COLUMNS "name, email, password, admin, disabled, created"
#define DEVICE_COLUMNS  "id, account, machine, created, last_seen, void_before, logged_out, disabled"
#define ENTRY_COLUMNS   "id, parent, name, kind, size, root, target, mtime, mode, owner, seq, gone"

const char *const storage_sql[SQL_END] = {
    [SQL_BEGIN_READ] = "BEGIN",
    [SQL_BEGIN_WRITE] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
    [SQL_MARK] = "SAVEPOINT job",
    [SQL_UNDO] = "ROLLBACK TO job",
    [SQL_KEEP] = "RELEASE job",
    [SQL_META_GET] = "SELECT value FROM meta WHERE key = ?1",
    [SQL_META_PUT] = "INSERT INTO meta(key, value) VALUES(?1, ?2)"
                     " ON CONFLICT(key) DO UPDATE SET value = excluded.value",

    [SQL_ACCOUNT_ANY] = "SELECT 1 FROM account LIMIT 1",
    [SQL_ACCOUNT_GET] = "SELECT " ACCOUNT_COLUMNS " FROM account WHERE name = ?1",
    [SQL_ACCOUNT_ADD] = "INSERT INTO account(" ACCOUNT_COLUMNS ") VALUES(?1, ?2, ?3, ?4, ?5, ?6)"
                        " ON CONFLICT(name) DO NOTHING",
    [SQL_ACCOUNT_PASSWORD] = "UPDATE account SET password = ?2 WHERE name = ?1",
    [SQL_ACCOUNT_DISABLE] = "UPDATE account SET disabled = ?2 WHERE name = ?1",
    [SQL_ACCOUNT_ALL] = "SELECT " ACCOUNT_COLUMNS " FROM account",
    [SQL_DEVICE_GET] = "SELECT " DEVICE_COLUMNS " FROM device WHERE id = ?1",
    [SQL_DEVICE_PUT] =
        "INSERT INTO device(" DEVICE_COLUMNS ") VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
        " ON CONFLICT(id) DO UPDATE SET account = ?2, machine = ?3, last_seen = ?5,"
        " void_before = ?6, logged_out = ?7, disabled = ?8",
    [SQL_DEVICE_SEEN] = "UPDATE device SET last_seen = max(last_seen, ?2) WHERE id = ?1",
    [SQL_DEVICE_ALL] = "SELECT " DEVICE_COLUMNS " FROM device",
    [SQL_DEVICE_OF] =
        "SELECT " DEVICE_COLUMNS " FROM device WHERE account = ?1 ORDER BY last_seen DESC",

    [SQL_INVITE_ADD] = "INSERT INTO invite(hash, admin, uses, expires, made_by, made)"
                       " VALUES(?1, ?2, ?3, ?4, ?5, unixepoch())",
    [SQL_INVITE_GET] = "SELECT admin, uses, expires, made_by FROM invite"
                       " WHERE hash = ?1 AND uses > 0 AND expires > ?2",
    [SQL_INVITE_USE] = "UPDATE invite SET uses = uses - 1 WHERE hash = ?1 AND uses > 0",
    [SQL_INVITE_PRUNE] = "DELETE FROM invite WHERE uses = 0 OR expires <= ?1",
    [SQL_AUDIT_ADD] =
        "INSERT INTO audit(at, what, account, device, source) VALUES(?1, ?2, ?3, ?4, ?5)",
    [SQL_AUDIT_COUNT] = "SELECT count(*) FROM audit WHERE what = ?1",

    [SQL_ENTRY_GET] = "SELECT " ENTRY_COLUMNS " FROM entry WHERE id = ?1",
    [SQL_ENTRY_FIND] =
        "SELECT " ENTRY_COLUMNS " FROM entry WHERE parent = ?1 AND name = ?2 AND gone IS NULL",
    [SQL_ENTRY_CHILD] = "SELECT 1 FROM entry WHERE parent = ?1 AND gone IS NULL LIMIT 1",
    /* Walks directories only; the last level may hold anything. */
    [SQL_ENTRY_HEIGHT] =
        "WITH RECURSIVE d(id, level) AS (SELECT ?1, 0 UNION ALL SELECT e.id, d.level + 1"
        " FROM d JOIN entry e ON e.parent = d.id AND e.kind = 1 AND e.gone IS NULL)"
        " SELECT max(level + EXISTS(SELECT 1 FROM entry c WHERE c.parent = d.id"
        " AND c.gone IS NULL)) FROM d",
    [SQL_ENTRY_COUNT] = "SELECT count(*) FROM entry WHERE gone IS NULL",
    [SQL_ENTRY_ADD] = "INSERT INTO entry(" ENTRY_COLUMNS ")"
                      " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL)",
    [SQL_ENTRY_PUT] =
        "UPDATE entry SET parent = ?2, name = ?3, kind = ?4, size = ?5, root = ?6, target = ?7,"
        " mtime = ?8, mode = ?9, owner = ?10, seq = ?11 WHERE id = ?1",
    [SQL_ENTRY_GONE] =
        "UPDATE entry SET parent = NULL, name = NULL, root = NULL, target = NULL, size = 0,"
        " owner = '', seq = ?2, gone = unixepoch() WHERE id = ?1",
    [SQL_ENTRY_UNNAME] = "UPDATE entry SET parent = NULL, name = NULL WHERE id = ?1",
    [SQL_ENTRY_SINCE] = "SELECT " ENTRY_COLUMNS " FROM entry WHERE seq > ?1"
                        " AND (gone IS NULL OR seq > ?2) ORDER BY seq LIMIT ?3",
    [SQL_PRUNE_LIMIT] = "SELECT max(seq) FROM entry WHERE gone IS NOT NULL AND gone < ?1",
    [SQL_PRUNE] = "DELETE FROM entry WHERE gone IS NOT NULL AND gone < ?1",
    [SQL_OP_GET] = "SELECT status, entry FROM op WHERE device = ?1 AND op = ?2",
    [SQL_OP_PUT] = "INSERT INTO op(device, op, status, entry) VALUES(?1, ?2, ?3, ?4)",
    [SQL_OP_TRIM] = "DELETE FROM op WHERE device = ?1 AND n <= (SELECT n FROM op WHERE device = ?1"
                    " ORDER BY n DESC LIMIT 1 OFFSET ?2)",

    [SQL_PIECES_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_PIECES_COMMIT] = "COMMIT",
    [SQL_PIECES_ROLLBACK] = "ROLLBACK",
    [SQL_HOLDING_PUT] =
        "INSERT INTO holding(device, root, size, complete, map) VALUES(?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT(device, root, size) DO UPDATE SET complete = ?4, map = ?5",
    [SQL_HOLDING_DROP] = "DELETE FROM holding WHERE device = ?1 AND root = ?2 AND size = ?3",
    [SQL_HOLDING_ALL] = "SELECT device, root, size, complete, map FROM holding",
};
