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
    "  disabled    INTEGER NOT NULL   -- unused, 0: devices are logged out, accounts disabled\n"
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

    /* 4: who may see and change which folder */
    "CREATE TABLE team (\n"
    "  name TEXT PRIMARY KEY,  -- a group's name, formed as an account's and never the same as "
    "one\n"
    "  made INTEGER NOT NULL   -- seconds since 1970\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE membership (\n"
    "  team    TEXT NOT NULL REFERENCES team(name) ON DELETE CASCADE,\n"
    "  account TEXT NOT NULL REFERENCES account(name) ON DELETE CASCADE,\n"
    "  PRIMARY KEY (account, team)\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX membership_team ON membership(team);\n"
    "CREATE TABLE rule (\n"
    "  folder INTEGER NOT NULL, -- entry, 1 for the root\n"
    "  kind   INTEGER NOT NULL, -- 1 account, 2 group, 3 everyone\n"
    "  who    TEXT NOT NULL,    -- its name, '' for everyone\n"
    "  level  INTEGER NOT NULL, -- 0 nothing, 1 read, 2 write, 3 manage\n"
    "  PRIMARY KEY (folder, kind, who)\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX rule_who ON rule(kind, who);\n"
    "CREATE INDEX rule_narrow ON rule(level) WHERE level < 2;\n"
    "INSERT INTO rule(folder, kind, who, level) VALUES(1, 3, '', 2);\n"
    "CREATE TRIGGER rule_account AFTER DELETE ON account BEGIN\n"
    "  DELETE FROM rule WHERE kind = 1 AND who = OLD.name; END;\n"
    "CREATE TRIGGER rule_team AFTER DELETE ON team BEGIN\n"
    "  DELETE FROM rule WHERE kind = 2 AND who = OLD.name; END;\n"
    "CREATE TRIGGER rule_folder AFTER UPDATE OF gone ON entry WHEN NEW.gone IS NOT NULL AND\n"
    "  NEW.kind = 1 BEGIN DELETE FROM rule WHERE folder = NEW.id; END;\n"
    "CREATE TABLE renewal (\n"
    "  account TEXT PRIMARY KEY, -- whose sight changed otherwise than by entries; '' for "
    "everyone's\n"
    "  seq     INTEGER NOT NULL  -- who knows less than this gets the catalogue from scratch\n"
    ") STRICT, WITHOUT ROWID;\n",

    /* 5: proof of addresses, second factors, mail, who did what */
    "ALTER TABLE account ADD COLUMN\n"
    "  verified INTEGER NOT NULL DEFAULT 0 /* 1: a code that was sent to the address came back "
    "*/;\n"
    "ALTER TABLE account ADD COLUMN\n"
    "  waiting INTEGER NOT NULL DEFAULT 0 /* 1: no log in before the address has been verified "
    "*/;\n"
    "ALTER TABLE account ADD COLUMN\n"
    "  deleted INTEGER NOT NULL DEFAULT 0 /* when, seconds since 1970; the row keeps the name "
    "taken */;\n"
    "ALTER TABLE account ADD COLUMN\n"
    "  totp BLOB /* secret of the second factor, 20 bytes, or NULL */;\n"
    "ALTER TABLE account ADD COLUMN\n"
    "  totp_on INTEGER NOT NULL DEFAULT 0 /* 1: a log in needs a code of it */;\n"
    "ALTER TABLE account ADD COLUMN\n"
    "  totp_step INTEGER NOT NULL DEFAULT 0 /* the last one whose code was used: none works twice "
    "*/;\n"
    "CREATE TABLE recovery (\n"
    "  hash    BLOB PRIMARY KEY, -- SHA-256 of a code that stands for the second factor once\n"
    "  account TEXT NOT NULL REFERENCES account(name)\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX recovery_account ON recovery(account);\n"
    "CREATE TABLE token (\n"
    "  account TEXT NOT NULL REFERENCES account(name),\n"
    "  kind    INTEGER NOT NULL,     -- 1 proves an address, 2 sets a new password\n"
    "  hash    BLOB NOT NULL UNIQUE, -- SHA-256 of the code: the code itself is not kept\n"
    "  email   TEXT NOT NULL,        -- where it was sent\n"
    "  expires INTEGER NOT NULL,     -- seconds since 1970\n"
    "  PRIMARY KEY (account, kind)\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE TABLE mail (\n"
    "  id      INTEGER PRIMARY KEY AUTOINCREMENT,\n"
    "  kind    INTEGER NOT NULL, -- of the token that is made when it is sent\n"
    "  account TEXT NOT NULL REFERENCES account(name),\n"
    "  email   TEXT NOT NULL,    -- to whom\n"
    "  made    INTEGER NOT NULL, -- seconds since 1970\n"
    "  due     INTEGER NOT NULL, -- when it is tried next\n"
    "  tries   INTEGER NOT NULL  -- so far\n"
    ") STRICT;\n"
    "CREATE INDEX mail_due ON mail(due);\n"
    "ALTER TABLE audit ADD COLUMN actor TEXT NOT NULL DEFAULT '' /* who did it, if not the account "
    "*/;\n"
    "ALTER TABLE audit ADD COLUMN detail TEXT NOT NULL DEFAULT '' /* what else there is to say "
    "*/;\n"
    /* Old rows may go, so that the log is bounded; the newest thousand stay whatever happens. */
    "DROP TRIGGER audit_keep;\n"
    "CREATE TRIGGER audit_keep BEFORE DELETE ON audit WHEN OLD.n > (SELECT max(n) FROM audit) - "
    "1000\n"
    "BEGIN SELECT RAISE(ABORT, 'audit is kept'); END;\n",

    /* 6: who vouches for an entry */
    "ALTER TABLE entry ADD COLUMN signer BLOB;\n"
    "ALTER TABLE entry ADD COLUMN signature BLOB;\n"
    "CREATE TABLE signer (\n"
    "  id     BLOB PRIMARY KEY, -- 16 bytes, names the signing key\n"
    "  device BLOB NOT NULL,    -- whose it is\n"
    "  claim  BLOB NOT NULL     -- tracker.Signer, packed\n"
    ") STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX signer_device ON signer(device);\n",

    /* 7: extended attributes that members give entries */
    "ALTER TABLE entry ADD COLUMN xattrs BLOB /* tracker.Xattrs, packed; NULL: none */;\n",

    /* 8: invites end with what their maker may: those that are left from before */
    "DELETE FROM invite WHERE made_by IN (SELECT name FROM account WHERE disabled = 1 OR deleted "
    "<> 0)"
    " OR (admin = 1 AND made_by IN (SELECT name FROM account WHERE admin = 0));\n",

    /* 9: how many entries are whose, and how many may be */
    "ALTER TABLE account ADD COLUMN\n"
    "  quota INTEGER NOT NULL DEFAULT 0 /* entries that it may have; 0: what the settings say */;\n"
    "CREATE TABLE owned (\n"
    "  owner   TEXT PRIMARY KEY, -- account\n"
    "  entries INTEGER NOT NULL  -- that are its own and not gone; kept by the triggers below\n"
    ") STRICT, WITHOUT ROWID;\n"
    "INSERT INTO owned(owner, entries) SELECT owner, count(*) FROM entry WHERE gone IS NULL GROUP "
    "BY owner;\n"
    "CREATE TRIGGER owned_more AFTER INSERT ON entry WHEN NEW.gone IS NULL BEGIN\n"
    "  INSERT INTO owned(owner, entries) VALUES(NEW.owner, 1)\n"
    "    ON CONFLICT(owner) DO UPDATE SET entries = entries + 1; END;\n"
    "CREATE TRIGGER owned_less AFTER UPDATE OF gone ON entry\n"
    "  WHEN OLD.gone IS NULL AND NEW.gone IS NOT NULL BEGIN\n"
    "  UPDATE owned SET entries = entries - 1 WHERE owner = OLD.owner; END;\n"
    "CREATE TRIGGER owned_moved AFTER UPDATE OF owner ON entry\n"
    "  WHEN NEW.gone IS NULL AND NEW.owner <> OLD.owner BEGIN\n"
    "  UPDATE owned SET entries = entries - 1 WHERE owner = OLD.owner;\n"
    "  INSERT INTO owned(owner, entries) VALUES(NEW.owner, 1)\n"
    "    ON CONFLICT(owner) DO UPDATE SET entries = entries + 1; END;\n",
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

#define ACCOUNT_COLUMNS                                                                            \
    "name, email, password, admin, disabled, created, verified, waiting, deleted, totp, totp_on,"  \
    " totp_step"
#define ACCOUNT_SHOWN                                                                              \
    ACCOUNT_COLUMNS ", quota, coalesce((SELECT entries FROM owned WHERE owner = account.name), 0)"
#define MAIL_COLUMNS   "id, kind, account, email, made, due, tries"
#define DEVICE_COLUMNS "id, account, machine, created, last_seen, void_before, logged_out"
#define ENTRY_COLUMNS                                                                              \
    "id, parent, name, kind, size, root, target, mtime, mode, owner, seq, gone, "                  \
    "signer, signature, xattrs"

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
    [SQL_ACCOUNT_COUNT] = "SELECT count(*) FROM account",
    [SQL_ACCOUNT_GET] = "SELECT " ACCOUNT_SHOWN " FROM account WHERE name = ?1",
    [SQL_ACCOUNT_ADD] = "INSERT INTO account(" ACCOUNT_COLUMNS ") VALUES(?1, ?2, ?3, ?4, ?5, ?6,"
                        " ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT(name) DO NOTHING",
    [SQL_ACCOUNT_PUT] =
        "UPDATE account SET email = ?2, password = ?3, admin = ?4, disabled = ?5, verified = ?7,"
        " waiting = ?8, deleted = ?9, totp = ?10, totp_on = ?11, totp_step = ?12, quota = ?13 "
        "WHERE name = ?1",
    [SQL_ACCOUNT_AFTER] =
        "SELECT " ACCOUNT_SHOWN " FROM account WHERE name > ?1 ORDER BY name LIMIT ?2",
    [SQL_ACCOUNT_ADMINS] = "SELECT count(*) FROM account WHERE admin = 1 AND disabled = 0"
                           " AND deleted = 0 AND name <> ?1",
    [SQL_ACCOUNT_STALE] = "SELECT name FROM account WHERE waiting = 1 AND created < ?1"
                          " AND name NOT IN (SELECT account FROM membership)"
                          " AND name NOT IN (SELECT who FROM rule WHERE kind = 1) LIMIT 1",
    [SQL_ACCOUNT_DROP] = "DELETE FROM account WHERE name = ?1",
    [SQL_TOKEN_PUT] = "INSERT INTO token(account, kind, hash, email, expires)"
                      " VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(account, kind)"
                      " DO UPDATE SET hash = ?3, email = ?4, expires = ?5",
    [SQL_TOKEN_GET] = "SELECT account, email, expires FROM token"
                      " WHERE hash = ?1 AND kind = ?2 AND expires > ?3",
    [SQL_TOKEN_DROP] = "DELETE FROM token WHERE account = ?1 AND (?2 = 0 OR kind = ?2)",
    [SQL_TOKEN_PRUNE] = "DELETE FROM token WHERE expires <= ?1",
    [SQL_RECOVERY_ADD] = "INSERT INTO recovery(hash, account) VALUES(?1, ?2)",
    [SQL_RECOVERY_DROP] = "DELETE FROM recovery WHERE account = ?1",
    [SQL_RECOVERY_USE] = "DELETE FROM recovery WHERE hash = ?1 AND account = ?2",
    [SQL_RECOVERY_COUNT] = "SELECT count(*) FROM recovery WHERE account = ?1",
    [SQL_MAIL_ADD] = "INSERT INTO mail(kind, account, email, made, due, tries)"
                     " VALUES(?1, ?2, ?3, ?4, ?4, 0)",
    [SQL_MAIL_NEXT] = "SELECT " MAIL_COLUMNS " FROM mail ORDER BY due, id LIMIT 1",
    [SQL_MAIL_LATER] = "UPDATE mail SET due = ?2, tries = tries + 1 WHERE id = ?1",
    [SQL_MAIL_HURRY] = "UPDATE mail SET due = ?1 WHERE due > ?1",
    [SQL_MAIL_DROP] = "DELETE FROM mail WHERE id = ?1",
    [SQL_MAIL_DROP_OF] = "DELETE FROM mail WHERE account = ?1 AND (?2 = 0 OR kind = ?2)",
    [SQL_MAIL_COUNT] = "SELECT count(*) FROM mail",
    [SQL_ACCOUNT_PASSWORD] = "UPDATE account SET password = ?2 WHERE name = ?1",
    [SQL_ACCOUNT_ALL] = "SELECT " ACCOUNT_SHOWN " FROM account",
    [SQL_DEVICE_GET] = "SELECT " DEVICE_COLUMNS " FROM device WHERE id = ?1",
    [SQL_DEVICE_PUT] =
        "INSERT INTO device(" DEVICE_COLUMNS ", disabled) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)"
        " ON CONFLICT(id) DO UPDATE SET account = ?2, machine = ?3, last_seen = ?5,"
        " void_before = ?6, logged_out = ?7",
    [SQL_DEVICE_SEEN] = "UPDATE device SET last_seen = max(last_seen, ?2) WHERE id = ?1",
    [SQL_DEVICE_ALL] = "SELECT " DEVICE_COLUMNS " FROM device",
    [SQL_DEVICE_OF] =
        "SELECT " DEVICE_COLUMNS " FROM device WHERE account = ?1 ORDER BY last_seen DESC",
    [SQL_DEVICE_COUNT] = "SELECT count(*) FROM device WHERE account = ?1",
    [SQL_DEVICE_STALE] = "SELECT id FROM device WHERE account = ?1 AND logged_out = 1"
                         " AND void_before < ?2 ORDER BY last_seen LIMIT 1",
    [SQL_DEVICE_DROP] = "DELETE FROM device WHERE id = ?1",

    [SQL_INVITE_ADD] = "INSERT INTO invite(hash, admin, uses, expires, made_by, made)"
                       " VALUES(?1, ?2, ?3, ?4, ?5, unixepoch())",
    [SQL_INVITE_GET] = "SELECT admin, uses, expires, made_by FROM invite"
                       " WHERE hash = ?1 AND uses > 0 AND expires > ?2",
    [SQL_INVITE_USE] = "UPDATE invite SET uses = uses - 1 WHERE hash = ?1 AND uses > 0",
    [SQL_INVITE_COUNT] =
        "SELECT count(*) FROM invite WHERE made_by = ?1 AND uses > 0 AND expires > ?2",
    [SQL_INVITE_PRUNE] = "DELETE FROM invite WHERE uses = 0 OR expires <= ?1",
    [SQL_INVITE_DROP_OF] = "DELETE FROM invite WHERE made_by = ?1 AND (?2 = 0 OR admin = 1)",
    [SQL_AUDIT_ADD] = "INSERT INTO audit(at, what, account, device, source, actor, detail)"
                      " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    [SQL_AUDIT_LIST] = "SELECT n, at, what, account, device, source, actor, detail FROM audit"
                       " WHERE n < ?1 AND at >= ?2 AND (?3 = '' OR account = ?3 OR actor = ?3)"
                       " ORDER BY n DESC LIMIT ?4",
    [SQL_AUDIT_PRUNE] = "DELETE FROM audit WHERE (what IN ('refused', 'reset-ask')) = ?1"
                        " AND n <= (SELECT n FROM audit WHERE (what IN ('refused', 'reset-ask')) = "
                        "?1 ORDER BY n DESC"
                        " LIMIT 1 OFFSET ?2) AND n <= (SELECT max(n) FROM audit) - 1000",
    [SQL_AUDIT_COUNT] = "SELECT count(*) FROM audit WHERE what = ?1",

    [SQL_ENTRY_GET] = "SELECT " ENTRY_COLUMNS " FROM entry WHERE id = ?1",
    [SQL_ENTRY_FIND] =
        "SELECT " ENTRY_COLUMNS " FROM entry WHERE parent = ?1 AND name = ?2 AND gone IS NULL",
    [SQL_ENTRY_CHILDREN] = "SELECT count(*) FROM entry WHERE parent = ?1 AND gone IS NULL",
    [SQL_ENTRY_CHILD] = "SELECT 1 FROM entry WHERE parent = ?1 AND gone IS NULL LIMIT 1",
    /* Walks directories only; the last level may hold anything. */
    [SQL_ENTRY_HEIGHT] =
        "WITH RECURSIVE d(id, level) AS (SELECT ?1, 0 UNION ALL SELECT e.id, d.level + 1"
        " FROM d JOIN entry e ON e.parent = d.id AND e.kind = 1 AND e.gone IS NULL)"
        " SELECT max(level + EXISTS(SELECT 1 FROM entry c WHERE c.parent = d.id"
        " AND c.gone IS NULL)) FROM d",
    [SQL_OWNED_GET] = "SELECT coalesce((SELECT entries FROM owned WHERE owner = ?1), 0),"
                      " coalesce((SELECT quota FROM account WHERE name = ?1), 0)",
    [SQL_ENTRY_OWNED] = "SELECT id FROM entry WHERE id > ?1 AND owner = ?2 AND gone IS NULL"
                        " ORDER BY id LIMIT ?3",
    [SQL_ENTRY_COUNT] = "SELECT count(*) FROM entry WHERE gone IS NULL",
    [SQL_ENTRY_ADD] = "INSERT INTO entry(" ENTRY_COLUMNS ")"
                      " VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL, ?12, ?13, ?14)",
    [SQL_ENTRY_PUT] =
        "UPDATE entry SET parent = ?2, name = ?3, kind = ?4, size = ?5, root = ?6, target = ?7,"
        " mtime = ?8, mode = ?9, owner = ?10, seq = ?11,"
        " signer = ?12, signature = ?13, xattrs = ?14 WHERE id = ?1",
    [SQL_ENTRY_GONE] =
        "UPDATE entry SET parent = NULL, name = NULL, root = NULL, target = NULL, size = 0,"
        " xattrs = NULL, owner = '', seq = ?2, gone = unixepoch() WHERE id = ?1",
    [SQL_ENTRY_UNNAME] = "UPDATE entry SET parent = NULL, name = NULL WHERE id = ?1",
    [SQL_ENTRY_SINCE] = "SELECT " ENTRY_COLUMNS " FROM entry WHERE seq > ?1"
                        " AND (gone IS NULL OR seq > ?2) ORDER BY seq LIMIT ?3",
    [SQL_PRUNE_LIMIT] = "SELECT max(seq) FROM entry WHERE gone IS NOT NULL AND gone < ?1",
    [SQL_PRUNE] = "DELETE FROM entry WHERE gone IS NOT NULL AND gone < ?1",
    [SQL_OP_GET] = "SELECT status, entry FROM op WHERE device = ?1 AND op = ?2",
    [SQL_OP_PUT] = "INSERT INTO op(device, op, status, entry) VALUES(?1, ?2, ?3, ?4)",
    [SQL_OP_TRIM] = "DELETE FROM op WHERE device = ?1 AND n <= (SELECT n FROM op WHERE device = ?1"
                    " ORDER BY n DESC LIMIT 1 OFFSET ?2)",

    [SQL_RULE_PUT] = "INSERT INTO rule(folder, kind, who, level) VALUES(?1, ?2, ?3, ?4)"
                     " ON CONFLICT(folder, kind, who) DO UPDATE SET level = ?4",
    [SQL_RULE_DROP] = "DELETE FROM rule WHERE folder = ?1 AND kind = ?2 AND who = ?3",
    [SQL_RULE_GET] = "SELECT level FROM rule WHERE folder = ?1 AND kind = ?2 AND who = ?3",
    [SQL_RULE_COUNT] = "SELECT count(*) FROM rule WHERE folder = ?1",
    [SQL_RULE_ALL] = "SELECT folder, kind, who, level FROM rule",
    [SQL_RULE_ABOVE] =
        "WITH RECURSIVE up(id, depth) AS (SELECT ?1, 0 UNION ALL SELECT e.parent, depth + 1"
        " FROM up JOIN entry e ON e.id = up.id WHERE depth < 80)"
        " SELECT r.folder, r.kind, r.who, r.level FROM up JOIN rule r ON r.folder = up.id"
        " ORDER BY up.depth, r.kind DESC, r.who",
    [SQL_RULE_NARROW] = "SELECT EXISTS(SELECT 1 FROM rule WHERE level < 2) OR NOT EXISTS("
                        "SELECT 1 FROM rule WHERE folder = 1 AND kind = 3 AND level >= 2)",
    [SQL_RULE_FOR] =
        "WITH RECURSIVE up(id, depth) AS (SELECT ?1, 0 UNION ALL SELECT e.parent, depth + 1"
        " FROM up JOIN entry e ON e.id = up.id WHERE depth < 80)"
        " SELECT r.kind, r.who, r.level, r.folder FROM up CROSS JOIN rule r ON r.folder = up.id"
        " WHERE r.kind = 3 OR (r.kind = 1 AND r.who = ?2) OR (r.kind = 2 AND EXISTS("
        "SELECT 1 FROM membership m WHERE m.account = ?2 AND m.team = r.who)) ORDER BY up.depth",
    [SQL_GROUP_GET] = "SELECT 1 FROM team WHERE name = ?1",
    [SQL_GROUP_ADD] = "INSERT INTO team(name, made) VALUES(?1, unixepoch())",
    [SQL_GROUP_DROP] = "DELETE FROM team WHERE name = ?1",
    [SQL_GROUP_ALL] = "SELECT name FROM team ORDER BY name",
    [SQL_GROUP_COUNT] = "SELECT count(*) FROM team",
    [SQL_MEMBER_ADD] = "INSERT OR IGNORE INTO membership(team, account) VALUES(?1, ?2)",
    [SQL_MEMBER_DROP] = "DELETE FROM membership WHERE team = ?1 AND account = ?2",
    [SQL_MEMBER_ALL] = "SELECT team, account FROM membership ORDER BY team, account",
    [SQL_MEMBER_COUNT] = "SELECT count(*) FROM membership WHERE account = ?1",
    [SQL_RENEW_PUT] = "INSERT INTO renewal(account, seq) VALUES(?1, ?2)"
                      " ON CONFLICT(account) DO UPDATE SET seq = ?2",
    [SQL_RENEW_GET] = "SELECT max(seq) FROM renewal WHERE account = ?1 OR account = ''",
    [SQL_SIGNER_PUT] = "INSERT OR IGNORE INTO signer(id, device, claim) SELECT ?1, ?2, ?3"
                       " WHERE (SELECT count(*) FROM signer WHERE device = ?2) < ?4",
    [SQL_SIGNER_ALL] = "SELECT id, claim FROM signer",
    [SQL_FOLDER_ALL] = "SELECT id, parent FROM entry WHERE kind = 1 AND gone IS NULL",
    [SQL_CONTENT_ALL] = "SELECT root, parent FROM entry WHERE kind = 2 AND gone IS NULL",

    [SQL_PIECES_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_PIECES_COMMIT] = "COMMIT",
    [SQL_PIECES_ROLLBACK] = "ROLLBACK",
    [SQL_HOLDING_PUT] =
        "INSERT INTO holding(device, root, size, complete, map) VALUES(?1, ?2, ?3, ?4, ?5)"
        " ON CONFLICT(device, root, size) DO UPDATE SET complete = ?4, map = ?5",
    [SQL_HOLDING_DROP] = "DELETE FROM holding WHERE device = ?1 AND root = ?2 AND size = ?3",
    [SQL_HOLDING_ALL] = "SELECT device, root, size, complete, map FROM holding",
};
