/* The storage's connection: opening, schema, transactions, statements.
 *
 * Owns both database files, tracker.db (accounts and catalogue: an acknowledged change is durable,
 * synchronous=FULL) and pieces.db (piece maps: may lag, synchronous=NORMAL). What stands in the
 * tables is the business of storage_accounts.c, storage_catalogue.c and storage_pieces.c, the texts
 * of storage_sql.c. One thread at a time.
 *
 * A file that is newer than this program, that is damaged or that is not ours is left as it is and
 * refused with a sentence that says what to do. */
#include "tracker/storage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "tracker/storage_private.h"

#define BUSY_MS 5000 /* how long the other one (a command, the server) may hold the write lock */
#define TELL_EVERY                                                                                 \
    (60 *                                                                                          \
     NS_PER_S) /* members try again every few seconds: the same trouble is logged once in so long */
#define APPLICATION_ID 0x70327074 /* "p2pt", in the file's header */

static void note_failure(struct storage *s, sqlite3 *db, const char *what)
{
    int code = sqlite3_errcode(db), why = sqlite3_extended_errcode(db);
    int64_t now = clock_now();
    if (!s->failed && (why != s->told || now - s->told_at >= TELL_EVERY)) {
        log_error("database: %.32s: %s (%d)", what, sqlite3_errmsg(db), why);
        s->told = why;
        s->told_at = now;
    }
    s->failed = true;
    if ((code & 0xff) == SQLITE_FULL)
        s->full = true;
}

static sqlite3 *database_of(const struct storage *s, enum sql which)
{
    return which < SQL_MAIN_END ? s->main : s->pieces;
}

/* Prepares at first use. */
static sqlite3_stmt *prepared(struct storage *s, enum sql which)
{
    if (s->statements[which] == NULL) {
        sqlite3 *db = database_of(s, which);
        CHECK(db != NULL);
        if (sqlite3_prepare_v3(db, storage_sql[which], -1, SQLITE_PREPARE_PERSISTENT,
                               &s->statements[which], NULL) != SQLITE_OK) {
            note_failure(s, db, storage_sql[which]);
            return NULL;
        }
    }
    return s->statements[which];
}

sqlite3_stmt *storage_statement(struct storage *s, enum sql which)
{
    return s->failed ? NULL : prepared(s, which);
}

bool storage_step(struct storage *s, sqlite3_stmt *statement)
{
    if (statement == NULL || s->failed)
        return false;
    int code = sqlite3_step(statement);
    if (code == SQLITE_ROW)
        return true;
    if (code != SQLITE_DONE)
        note_failure(s, sqlite3_db_handle(statement), sqlite3_sql(statement));
    storage_done(statement);
    return false;
}

bool storage_run(struct storage *s, sqlite3_stmt *statement)
{
    while (storage_step(s, statement))
        ;
    return statement != NULL && !s->failed;
}

void storage_done(sqlite3_stmt *statement)
{
    if (statement != NULL) {
        sqlite3_reset(statement);
        sqlite3_clear_bindings(statement);
    }
}

void storage_bind_number(sqlite3_stmt *statement, int index, int64_t value)
{
    if (statement != NULL)
        sqlite3_bind_int64(statement, index, value);
}

void storage_bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    if (statement == NULL)
        return;
    if (text == NULL)
        sqlite3_bind_null(statement, index);
    else
        sqlite3_bind_text(statement, index, text, -1, SQLITE_TRANSIENT);
}

void storage_bind_bytes(sqlite3_stmt *statement, int index, const void *bytes, size_t size)
{
    if (statement == NULL)
        return;
    if (bytes == NULL)
        sqlite3_bind_null(statement, index);
    else
        sqlite3_bind_blob64(statement, index, bytes, size, SQLITE_TRANSIENT);
}

void storage_column_text(sqlite3_stmt *statement, int column, char *to, size_t size)
{
    const unsigned char *text = sqlite3_column_text(statement, column);
    size_t length = (size_t)sqlite3_column_bytes(statement, column);
    if (text == NULL || length >= size)
        length = 0;
    else
        memcpy(to, text, length);
    to[length] = '\0';
}

bool storage_column_bytes(sqlite3_stmt *statement, int column, uint8_t *to, size_t size)
{
    const void *bytes = sqlite3_column_blob(statement, column);
    if (bytes == NULL || (size_t)sqlite3_column_bytes(statement, column) != size) {
        memset(to, 0, size);
        return false;
    }
    memcpy(to, bytes, size);
    return true;
}

/* --- opening
 * ----------------------------------------------------------------------------------------- */

static bool execute(sqlite3 *db, const char *text)
{
    return sqlite3_exec(db, text, NULL, NULL, NULL) == SQLITE_OK;
}

/* The single number or text that a pragma answers with; "" if it fails. */
static void ask(sqlite3 *db, const char *text, char *answer, size_t size)
{
    sqlite3_stmt *statement = NULL;
    answer[0] = '\0';
    if (sqlite3_prepare_v2(db, text, -1, &statement, NULL) == SQLITE_OK &&
        sqlite3_step(statement) == SQLITE_ROW)
        snprintf(answer, size, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
}

/* Brings a file's schema to `version` in one transaction. */
static bool migrate(sqlite3 *db, const char *const *steps, int from, int version)
{
    if (!execute(db, "BEGIN IMMEDIATE"))
        return false;
    for (int i = from; i < version; i++)
        if (!execute(db, steps[i]))
            goto undo;
    char pragma[64];
    snprintf(pragma, sizeof pragma, "PRAGMA user_version = %d", version);
    if (!execute(db, pragma))
        goto undo;
    snprintf(pragma, sizeof pragma, "PRAGMA application_id = %d", APPLICATION_ID);
    if (execute(db, pragma) && execute(db, "COMMIT"))
        return true;
undo:
    execute(db, "ROLLBACK");
    return false;
}

struct database_plan {
    const char *path;
    const char *synchronous;
    const char *const *steps;
    int version;
    bool serve;
};

static sqlite3 *database_open(const struct database_plan *plan, char **fault)
{
    sqlite3 *db = NULL;
    char answer[128];
    int flags =
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (plan->serve ? SQLITE_OPEN_CREATE : 0);
    if (sqlite3_open_v2(plan->path, &db, flags, NULL) != SQLITE_OK) {
        *fault = xasprintf("cannot open %s: %s", plan->path,
                           db == NULL ? "out of memory" : sqlite3_errmsg(db));
        goto fail;
    }
    sqlite3_extended_result_codes(db, 1);
    sqlite3_busy_timeout(db, BUSY_MS);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, 64 << 20);

    ask(db, "PRAGMA user_version", answer, sizeof answer);
    if (answer[0] == '\0') {
        *fault = xasprintf("%s is damaged or not a database (%s); put a backup in its place",
                           plan->path, sqlite3_errmsg(db));
        goto fail;
    }
    int version = (int)strtol(answer, NULL, 10);
    ask(db, "PRAGMA application_id", answer, sizeof answer);
    if (version != 0 && strtol(answer, NULL, 10) != APPLICATION_ID) {
        *fault = xasprintf("%s is not a tracker's database", plan->path);
        goto fail;
    }
    if (version > plan->version) {
        *fault = xasprintf(
            "%s was written by a newer p2ptracker (its schema is %d, this program knows %d)",
            plan->path, version, plan->version);
        goto fail;
    }
    if (!plan->serve && version < plan->version) {
        *fault =
            xasprintf("%s is of an older p2ptracker; start `p2ptracker serve` once to bring it up",
                      plan->path);
        goto fail;
    }
    char synchronous[64];
    snprintf(synchronous, sizeof synchronous, "PRAGMA synchronous = %s", plan->synchronous);
    if (!execute(db, "PRAGMA journal_mode = WAL") || !execute(db, synchronous) ||
        !execute(
            db,
            "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;"
            "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384")) {
        bool damaged = (sqlite3_errcode(db) & 0xff) == SQLITE_CORRUPT;
        *fault = xasprintf("%s %s (%s)", plan->path, damaged ? "is damaged" : "cannot be set up",
                           sqlite3_errmsg(db));
        goto fail;
    }
    if (plan->serve) {
        ask(db, "PRAGMA quick_check(1)", answer, sizeof answer);
        if (strcmp(answer, "ok") != 0) {
            *fault = xasprintf(
                "%s is damaged (%s); put a backup in its place, or try `sqlite3 %s .recover`",
                plan->path, answer[0] == '\0' ? sqlite3_errmsg(db) : answer, plan->path);
            goto fail;
        }
        if (version < plan->version && !migrate(db, plan->steps, version, plan->version)) {
            *fault = xasprintf("cannot bring %s from schema %d to %d: %s", plan->path, version,
                               plan->version, sqlite3_errmsg(db));
            goto fail;
        }
    }
    return db;
fail:
    sqlite3_close(db);
    return NULL;
}

/* As database_open says it; what else the path holds does not matter. */
static bool is_damage(const struct database_plan *plan, const char *fault)
{
    size_t size = strlen(plan->path);
    return strncmp(fault, plan->path, size) == 0 && strncmp(fault + size, " is damaged", 11) == 0;
}

/* Piece maps are told again by the daemons, so a damaged file is put aside instead of stopping the
 * tracker. */
static sqlite3 *pieces_open(const struct database_plan *plan, char **fault)
{
    sqlite3 *db = database_open(plan, fault);
    if (db != NULL || !is_damage(plan, *fault))
        return db;
    log_warning("%s: piece maps start anew, the old file is kept as %s.damaged", *fault,
                plan->path);
    free(*fault);
    *fault = NULL;
    static const char *const tails[] = {"", "-wal", "-shm"};
    for (size_t i = 0; i < 3; i++) {
        char *from = xasprintf("%s%s", plan->path, tails[i]);
        char *to = xasprintf("%s.damaged%s", plan->path, tails[i]);
        rename(from, to);
        free(from);
        free(to);
    }
    return database_open(plan, fault);
}

/* The swarm's generation: made with the database. */
static bool generation_make(struct storage *s)
{
    uint8_t id[STORAGE_GENERATION_SIZE];
    if (!storage_begin(s, true))
        return false;
    storage_generation(s, id);
    bool known = false;
    for (size_t i = 0; i < sizeof id; i++)
        known |= id[i] != 0;
    if (!known) {
        random_bytes(id, sizeof id);
        sqlite3_stmt *put = storage_statement(s, SQL_META_PUT);
        storage_bind_text(put, 1, "generation");
        storage_bind_bytes(put, 2, id, sizeof id);
        storage_run(s, put);
    }
    return storage_commit(s);
}

struct storage *storage_open(const char *dir, enum storage_use use, char **fault)
{
    struct storage *s = xcalloc(1, sizeof *s);
    s->quota = LIMIT_ENTRIES_ACCOUNT;
    char *main_path = xasprintf("%s/tracker.db", dir);
    char *pieces_path = xasprintf("%s/pieces.db", dir);
    *fault = NULL;
    if (use == STORAGE_VISIT && access(main_path, F_OK) != 0) {
        *fault = xasprintf("%s holds no tracker yet; start `p2ptracker serve --data %s` first", dir,
                           dir);
        goto fail;
    }
    struct database_plan plan = {.path = main_path,
                                 .synchronous = "FULL",
                                 .steps = storage_main_steps,
                                 .version = storage_main_version,
                                 .serve = use == STORAGE_SERVE};
    s->main = database_open(&plan, fault);
    if (s->main == NULL)
        goto fail;
    if (use == STORAGE_SERVE) {
        plan.path = pieces_path;
        plan.synchronous = "NORMAL";
        plan.steps = storage_pieces_steps;
        plan.version = storage_pieces_version;
        s->pieces = pieces_open(&plan, fault);
        if (s->pieces == NULL)
            goto fail;
        if (!generation_make(s)) {
            *fault = xasprintf("cannot write to %s", main_path);
            goto fail;
        }
    }
    free(main_path);
    free(pieces_path);
    return s;
fail:
    free(main_path);
    free(pieces_path);
    storage_close(s);
    return NULL;
}

void storage_close(struct storage *s)
{
    if (s == NULL)
        return;
    for (int i = 0; i < SQL_END; i++)
        sqlite3_finalize(s->statements[i]);
    if (sqlite3_close(s->main) != SQLITE_OK || sqlite3_close(s->pieces) != SQLITE_OK)
        log_error("database: not closed in order");
    free(s);
}

/* --- transactions
 * ---------------------------------------------------------------------------------------- */

/* Runs a statement about transactions, which must work after a failure as well. */
static bool control(struct storage *s, enum sql which)
{
    sqlite3_stmt *statement = prepared(s, which);
    if (statement == NULL)
        return false;
    int code = sqlite3_step(statement);
    if (code != SQLITE_DONE)
        note_failure(s, database_of(s, which), storage_sql[which]);
    sqlite3_reset(statement);
    return code == SQLITE_DONE;
}

bool storage_begin(struct storage *s, bool writes)
{
    CHECK(sqlite3_get_autocommit(s->main));
    s->failed = s->full = false;
    if (!control(s, writes ? SQL_BEGIN_WRITE : SQL_BEGIN_READ))
        return false;
    storage_numbers_load(s);
    if (s->failed) {
        storage_rollback(s);
        s->failed = true;
        return false;
    }
    return true;
}

bool storage_mark(struct storage *s)
{
    s->seq_marked = s->seq;
    s->next_id_marked = s->next_id;
    s->live_marked = s->live;
    return !s->failed && control(s, SQL_MARK);
}

void storage_undo(struct storage *s)
{
    s->seq = s->seq_marked;
    s->next_id = s->next_id_marked;
    s->live = s->live_marked;
    memset(s->directories, 0, sizeof s->directories);
    if (storage_is_lost(s))
        return;
    if (control(s, SQL_UNDO) && control(s, SQL_KEEP))
        s->failed = s->full = false;
}

bool storage_keep(struct storage *s)
{
    return !s->failed && control(s, SQL_KEEP);
}

bool storage_commit(struct storage *s)
{
    if (!s->failed)
        storage_numbers_save(s);
    if (!s->failed && control(s, SQL_COMMIT))
        return true;
    storage_rollback(s);
    return false;
}

void storage_rollback(struct storage *s)
{
    if (!sqlite3_get_autocommit(s->main))
        control(s, SQL_ROLLBACK);
}

bool storage_failed(const struct storage *s)
{
    return s->failed;
}

bool storage_is_full(const struct storage *s)
{
    return s->full;
}

bool storage_is_lost(const struct storage *s)
{
    return sqlite3_get_autocommit(s->main) != 0;
}
