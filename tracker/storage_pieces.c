/* Rows of the piece maps, in a file of their own with synchronous=NORMAL: the last second may be
 * lost with the power, and is then told again by the daemons. Failures here never touch accounts or
 * catalogue. */
#include "base/log.h"
#include "base/mem.h"
#include "tracker/storage_private.h"

static bool pieces_run(struct storage *s, enum sql which, const struct storage_holding *holding)
{
    if (s->statements[which] == NULL &&
        sqlite3_prepare_v3(s->pieces, storage_sql[which], -1, SQLITE_PREPARE_PERSISTENT,
                           &s->statements[which], NULL) != SQLITE_OK)
        return false;
    sqlite3_stmt *statement = s->statements[which];
    if (holding != NULL) {
        storage_bind_bytes(statement, 1, holding->device, sizeof holding->device);
        storage_bind_bytes(statement, 2, holding->root, sizeof holding->root);
        storage_bind_number(statement, 3, (int64_t)holding->size);
    }
    if (which == SQL_HOLDING_PUT) {
        storage_bind_number(statement, 4, holding->complete);
        storage_bind_bytes(statement, 5, holding->complete ? NULL : holding->map,
                           holding->map_size);
    }
    bool done = sqlite3_step(statement) == SQLITE_DONE;
    storage_done(statement);
    return done;
}

bool storage_holdings_write(struct storage *s, const struct storage_holding *holdings, size_t count)
{
    if (!pieces_run(s, SQL_PIECES_BEGIN, NULL))
        goto failed;
    for (size_t i = 0; i < count; i++)
        if (!pieces_run(s, holdings[i].dropped ? SQL_HOLDING_DROP : SQL_HOLDING_PUT, &holdings[i]))
            goto undo;
    if (pieces_run(s, SQL_PIECES_COMMIT, NULL)) {
        s->pieces_failed = false;
        return true;
    }
undo:
    if (!s->pieces_failed)
        log_error("database: piece maps: %s", sqlite3_errmsg(s->pieces));
    s->pieces_failed = true;
    if (!sqlite3_get_autocommit(s->pieces))
        pieces_run(s, SQL_PIECES_ROLLBACK, NULL);
    return false;
failed:
    if (!s->pieces_failed)
        log_error("database: piece maps: %s", sqlite3_errmsg(s->pieces));
    s->pieces_failed = true;
    return false;
}

void storage_holdings_each(struct storage *s, void (*each)(const struct storage_holding *, void *),
                           void *arg)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_HOLDING_ALL);
    while (storage_step(s, rows)) {
        struct storage_holding holding = {0};
        if (!storage_column_bytes(rows, 0, holding.device, sizeof holding.device) ||
            !storage_column_bytes(rows, 1, holding.root, sizeof holding.root))
            continue;
        holding.size = (uint64_t)sqlite3_column_int64(rows, 2);
        holding.complete = sqlite3_column_int(rows, 3) != 0;
        const void *map = sqlite3_column_blob(rows, 4);
        holding.map_size = (size_t)sqlite3_column_bytes(rows, 4);
        if (map != NULL)
            holding.map = xmemdup(map, holding.map_size);
        each(&holding, arg);
        free(holding.map);
    }
}
