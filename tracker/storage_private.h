/* Shared by the storage_*.c files only: the connection, its prepared statements, short forms. */
#ifndef TRACKER_STORAGE_PRIVATE_H
#define TRACKER_STORAGE_PRIVATE_H

#include <sqlite3.h>

#include "tracker/storage.h"

/* Every statement of the program; the texts stand in storage_sql.c, in this order. */
enum sql {
    SQL_BEGIN_READ,
    SQL_BEGIN_WRITE,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_MARK,
    SQL_UNDO,
    SQL_KEEP,
    SQL_META_GET,
    SQL_META_PUT,
    SQL_ACCOUNT_ANY,
    SQL_ACCOUNT_COUNT,
    SQL_ACCOUNT_GET,
    SQL_ACCOUNT_ADD,
    SQL_ACCOUNT_PASSWORD,
    SQL_ACCOUNT_ALL,
    SQL_ACCOUNT_PUT,
    SQL_ACCOUNT_AFTER,
    SQL_ACCOUNT_ADMINS,
    SQL_ACCOUNT_STALE,
    SQL_ACCOUNT_DROP,
    SQL_TOKEN_PUT,
    SQL_TOKEN_GET,
    SQL_TOKEN_DROP,
    SQL_TOKEN_PRUNE,
    SQL_RECOVERY_ADD,
    SQL_RECOVERY_DROP,
    SQL_RECOVERY_USE,
    SQL_RECOVERY_COUNT,
    SQL_MAIL_ADD,
    SQL_MAIL_NEXT,
    SQL_MAIL_LATER,
    SQL_MAIL_HURRY,
    SQL_MAIL_DROP,
    SQL_MAIL_DROP_OF,
    SQL_MAIL_COUNT,
    SQL_DEVICE_GET,
    SQL_DEVICE_PUT,
    SQL_DEVICE_SEEN,
    SQL_DEVICE_ALL,
    SQL_DEVICE_OF,
    SQL_DEVICE_COUNT,
    SQL_DEVICE_STALE,
    SQL_DEVICE_DROP,
    SQL_INVITE_ADD,
    SQL_INVITE_GET,
    SQL_INVITE_USE,
    SQL_INVITE_PRUNE,
    SQL_INVITE_DROP_OF,
    SQL_INVITE_COUNT,
    SQL_AUDIT_ADD,
    SQL_AUDIT_COUNT,
    SQL_AUDIT_LIST,
    SQL_AUDIT_PRUNE,
    SQL_ENTRY_GET,
    SQL_ENTRY_FIND,
    SQL_ENTRY_CHILD,
    SQL_ENTRY_CHILDREN,
    SQL_ENTRY_HEIGHT,
    SQL_OWNED_GET,
    SQL_ENTRY_OWNED,
    SQL_ENTRY_COUNT,
    SQL_ENTRY_ADD,
    SQL_ENTRY_PUT,
    SQL_ENTRY_GONE,
    SQL_ENTRY_UNNAME,
    SQL_ENTRY_SINCE,
    SQL_PRUNE_LIMIT,
    SQL_PRUNE,
    SQL_OP_GET,
    SQL_OP_PUT,
    SQL_OP_TRIM,
    SQL_RULE_PUT,
    SQL_RULE_DROP,
    SQL_RULE_GET,
    SQL_RULE_COUNT,
    SQL_RULE_ALL,
    SQL_RULE_ABOVE,
    SQL_RULE_NARROW,
    SQL_RULE_FOR,
    SQL_GROUP_GET,
    SQL_GROUP_ADD,
    SQL_GROUP_DROP,
    SQL_GROUP_ALL,
    SQL_GROUP_COUNT,
    SQL_MEMBER_ADD,
    SQL_MEMBER_DROP,
    SQL_MEMBER_ALL,
    SQL_MEMBER_COUNT,
    SQL_RENEW_PUT,
    SQL_RENEW_GET,
    SQL_SIGNER_PUT,
    SQL_SIGNER_ALL,
    SQL_FOLDER_ALL,
    SQL_CONTENT_ALL,
    SQL_MAIN_END, /* from here on: of the piece maps' file */
    SQL_PIECES_BEGIN = SQL_MAIN_END,
    SQL_PIECES_COMMIT,
    SQL_PIECES_ROLLBACK,
    SQL_HOLDING_PUT,
    SQL_HOLDING_DROP,
    SQL_HOLDING_ALL,
    SQL_END
};
extern const char *const storage_sql[SQL_END];

/* The steps that make the two schemas; a file's user_version is the number of steps it has had. */
extern const char *const storage_main_steps[];
extern const char *const storage_pieces_steps[];
extern const int storage_main_version;
extern const int storage_pieces_version;

#define STORAGE_DIRECTORIES 1024

struct storage {
    sqlite3 *main;
    sqlite3 *pieces; /* NULL for STORAGE_VISIT */
    sqlite3_stmt *statements[SQL_END];
    bool failed;
    bool full;
    bool pieces_failed;
    uint64_t quota; /* entries that an account may have of which nothing else is said */
    int told;       /* the trouble that was logged last, an extended code of SQLite, and when */
    int64_t told_at;
    /* The catalogue's numbers, read at each begin, written when they changed before commit. */
    uint64_t seq;
    uint64_t next_id;
    uint64_t live;
    uint64_t seq_written, next_id_written, live_written;
    /* How many entries a directory has, of those that were asked for lately; right for as long as nothing is taken back. */
    struct storage_directory {
        uint64_t id; /* 0: none */
        uint64_t count;
    } directories[STORAGE_DIRECTORIES];
    /* The same at the mark. */
    uint64_t seq_marked, next_id_marked, live_marked;
};

/* The statement, ready for binding; NULL if the storage has failed. */
sqlite3_stmt *storage_statement(struct storage *, enum sql);
/* One step: true if there is a row. Anything else than a row or the end is a failure. NULL is fine.
 * The statement is reset unless there is a row: then storage_done does it, before anything else
 * runs it. */
bool storage_step(struct storage *, sqlite3_stmt *);
/* Runs to the end; true if it did. */
bool storage_run(struct storage *, sqlite3_stmt *);
void storage_done(sqlite3_stmt *);
/* Bindings and columns; NULL statements are fine for the former. */
void storage_bind_number(sqlite3_stmt *, int index, int64_t value);
void storage_bind_text(sqlite3_stmt *, int index, const char *text);
void storage_bind_bytes(sqlite3_stmt *, int index, const void *bytes, size_t size);
/* Copies a text that fits, else "": what does not fit was not written by us. */
void storage_column_text(sqlite3_stmt *, int column, char *to, size_t size);
bool storage_column_bytes(sqlite3_stmt *, int column, uint8_t *to, size_t size);

/* The catalogue's numbers (storage_catalogue.c). */
void storage_numbers_load(struct storage *);
void storage_numbers_save(struct storage *);

#endif
