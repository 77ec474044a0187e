/* Rows of codes that were sent by mail, of recovery codes, and of mail that waits. Rules about them are
 * accounts_mail.c's, accounts_totp.c's and mail.c's.
 *
 * The storage's thread, within a transaction; see storage.h for errors. */
#include "tracker/storage_private.h"

/* --- tokens ------------------------------------------------------------------------------------ */

void storage_token_put(struct storage *s, const struct storage_token *token)
{
    sqlite3_stmt *put = storage_statement(s, SQL_TOKEN_PUT);
    storage_bind_text(put, 1, token->account);
    storage_bind_number(put, 2, token->kind);
    storage_bind_bytes(put, 3, token->hash, sizeof token->hash);
    storage_bind_text(put, 4, token->email);
    storage_bind_number(put, 5, token->expires);
    storage_run(s, put);
}

bool storage_token_get(struct storage *s, enum storage_token_kind kind, const uint8_t hash[32],
                       int64_t now, struct storage_token *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_TOKEN_GET);
    storage_bind_bytes(get, 1, hash, 32);
    storage_bind_number(get, 2, kind);
    storage_bind_number(get, 3, now);
    bool found = storage_step(s, get);
    if (found) {
        *out = (struct storage_token){.kind = kind};
        memcpy(out->hash, hash, sizeof out->hash);
        storage_column_text(get, 0, out->account, sizeof out->account);
        storage_column_text(get, 1, out->email, sizeof out->email);
        out->expires = sqlite3_column_int64(get, 2);
    }
    storage_done(get);
    return found;
}

void storage_token_drop(struct storage *s, const char *account, int kind)
{
    sqlite3_stmt *drop = storage_statement(s, SQL_TOKEN_DROP);
    storage_bind_text(drop, 1, account);
    storage_bind_number(drop, 2, kind);
    storage_run(s, drop);
}

void storage_token_prune(struct storage *s, int64_t now)
{
    sqlite3_stmt *prune = storage_statement(s, SQL_TOKEN_PRUNE);
    storage_bind_number(prune, 1, now);
    storage_run(s, prune);
}

/* --- recovery codes ---------------------------------------------------------------------------- */

void storage_recovery_set(struct storage *s, const char *account, const uint8_t (*hashes)[32],
                          size_t count)
{
    sqlite3_stmt *drop = storage_statement(s, SQL_RECOVERY_DROP);
    storage_bind_text(drop, 1, account);
    storage_run(s, drop);
    for (size_t i = 0; i < count; i++) {
        sqlite3_stmt *add = storage_statement(s, SQL_RECOVERY_ADD);
        storage_bind_bytes(add, 1, hashes[i], sizeof hashes[i]);
        storage_bind_text(add, 2, account);
        storage_run(s, add);
    }
}

bool storage_recovery_use(struct storage *s, const char *account, const uint8_t hash[32])
{
    sqlite3_stmt *use = storage_statement(s, SQL_RECOVERY_USE);
    storage_bind_bytes(use, 1, hash, 32);
    storage_bind_text(use, 2, account);
    return storage_run(s, use) && sqlite3_changes(s->main) == 1;
}

uint32_t storage_recovery_count(struct storage *s, const char *account)
{
    sqlite3_stmt *count = storage_statement(s, SQL_RECOVERY_COUNT);
    storage_bind_text(count, 1, account);
    uint32_t left = storage_step(s, count) ? (uint32_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return left;
}

/* --- mail -------------------------------------------------------------------------------------- */

void storage_mail_add(struct storage *s, enum storage_token_kind kind, const char *account,
                      const char *email, int64_t now)
{
    storage_mail_drop_of(s, account, kind);
    sqlite3_stmt *count = storage_statement(s, SQL_MAIL_COUNT);
    bool full = storage_step(s, count) && sqlite3_column_int64(count, 0) >= LIMIT_MAILS;
    storage_done(count);
    if (full)
        return;
    sqlite3_stmt *add = storage_statement(s, SQL_MAIL_ADD);
    storage_bind_number(add, 1, kind);
    storage_bind_text(add, 2, account);
    storage_bind_text(add, 3, email);
    storage_bind_number(add, 4, now);
    storage_run(s, add);
}

bool storage_mail_next(struct storage *s, struct storage_mail *out)
{
    sqlite3_stmt *next = storage_statement(s, SQL_MAIL_NEXT);
    bool found = storage_step(s, next);
    if (found) {
        *out = (struct storage_mail){0};
        out->id = sqlite3_column_int64(next, 0);
        out->kind = (enum storage_token_kind)sqlite3_column_int(next, 1);
        storage_column_text(next, 2, out->account, sizeof out->account);
        storage_column_text(next, 3, out->email, sizeof out->email);
        out->made = sqlite3_column_int64(next, 4);
        out->due = sqlite3_column_int64(next, 5);
        out->tries = (uint32_t)sqlite3_column_int64(next, 6);
    }
    storage_done(next);
    return found;
}

void storage_mail_later(struct storage *s, int64_t id, int64_t due)
{
    sqlite3_stmt *later = storage_statement(s, SQL_MAIL_LATER);
    storage_bind_number(later, 1, id);
    storage_bind_number(later, 2, due);
    storage_run(s, later);
}

void storage_mail_hurry(struct storage *s, int64_t now)
{
    sqlite3_stmt *hurry = storage_statement(s, SQL_MAIL_HURRY);
    storage_bind_number(hurry, 1, now);
    storage_run(s, hurry);
}

void storage_mail_drop(struct storage *s, int64_t id)
{
    sqlite3_stmt *drop = storage_statement(s, SQL_MAIL_DROP);
    storage_bind_number(drop, 1, id);
    storage_run(s, drop);
}

void storage_mail_drop_of(struct storage *s, const char *account, int kind)
{
    sqlite3_stmt *drop = storage_statement(s, SQL_MAIL_DROP_OF);
    storage_bind_text(drop, 1, account);
    storage_bind_number(drop, 2, kind);
    storage_run(s, drop);
}
