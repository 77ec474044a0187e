/* Rows of the audit log: added, listed, and pruned so that they stay bounded.
 *
 * The storage's thread, within a transaction; see storage.h for errors. */
#include "tracker/storage_private.h"

static const char *or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

void storage_audit(struct storage *s, const struct storage_event *event)
{
    sqlite3_stmt *add = storage_statement(s, SQL_AUDIT_ADD);
    storage_bind_number(add, 1, event->when);
    storage_bind_text(add, 2, event->what);
    storage_bind_text(add, 3, or_empty(event->account));
    storage_bind_bytes(add, 4, event->device, DEVICE_ID_SIZE);
    storage_bind_text(add, 5, or_empty(event->source));
    storage_bind_text(add, 6, or_empty(event->by));
    storage_bind_text(add, 7, or_empty(event->detail));
    storage_run(s, add);
}

uint64_t storage_audit_count(struct storage *s, const char *what)
{
    sqlite3_stmt *count = storage_statement(s, SQL_AUDIT_COUNT);
    storage_bind_text(count, 1, what);
    uint64_t rows = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return rows;
}

void storage_audit_prune(struct storage *s)
{
    static const int64_t kept[] = {LIMIT_AUDIT_KEPT, LIMIT_AUDIT_REFUSED};
    for (int refused = 0; refused <= 1; refused++) {
        sqlite3_stmt *prune = storage_statement(s, SQL_AUDIT_PRUNE);
        storage_bind_number(prune, 1, refused);
        storage_bind_number(prune, 2, kept[refused]);
        storage_run(s, prune);
    }
}

static void row_of(sqlite3_stmt *from, struct storage_audit_row *out)
{
    *out = (struct storage_audit_row){0};
    out->number = (uint64_t)sqlite3_column_int64(from, 0);
    out->when = sqlite3_column_int64(from, 1);
    storage_column_text(from, 2, out->what, sizeof out->what);
    storage_column_text(from, 3, out->account, sizeof out->account);
    out->has_device = storage_column_bytes(from, 4, out->device, sizeof out->device);
    storage_column_text(from, 5, out->source, sizeof out->source);
    storage_column_text(from, 6, out->by, sizeof out->by);
    storage_column_text(from, 7, out->detail, sizeof out->detail);
}

size_t storage_audit_list(struct storage *s, uint64_t before, int64_t since, const char *account,
                          struct storage_audit_row *out, size_t max)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_AUDIT_LIST);
    size_t count = 0;
    storage_bind_number(rows, 1, before == 0 || before > INT64_MAX ? INT64_MAX : (int64_t)before);
    storage_bind_number(rows, 2, since);
    storage_bind_text(rows, 3, account);
    storage_bind_number(rows, 4, (int64_t)max);
    while (count < max && storage_step(s, rows))
        row_of(rows, &out[count++]);
    storage_done(rows);
    return count;
}
