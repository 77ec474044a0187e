/* Rows of accounts, devices, invites and audit. Rules about them are accounts.c's.
 *
 * The storage's thread, within a transaction; see storage.h for errors. */
#include "tracker/storage_private.h"

static void account_of(sqlite3_stmt *row, struct storage_account *out)
{
    *out = (struct storage_account){0};
    storage_column_text(row, 0, out->name, sizeof out->name);
    storage_column_text(row, 1, out->email, sizeof out->email);
    storage_column_text(row, 2, out->password, sizeof out->password);
    out->admin = sqlite3_column_int(row, 3) != 0;
    out->disabled = sqlite3_column_int(row, 4) != 0;
    out->created = sqlite3_column_int64(row, 5);
}

static void device_of(sqlite3_stmt *row, struct storage_device *out)
{
    *out = (struct storage_device){0};
    storage_column_bytes(row, 0, out->id, sizeof out->id);
    storage_column_text(row, 1, out->account, sizeof out->account);
    storage_column_text(row, 2, out->machine, sizeof out->machine);
    out->created = sqlite3_column_int64(row, 3);
    out->last_seen = sqlite3_column_int64(row, 4);
    out->void_before = sqlite3_column_int64(row, 5);
    out->logged_out = sqlite3_column_int(row, 6) != 0;
    out->disabled = sqlite3_column_int(row, 7) != 0;
}

bool storage_is_new(struct storage *s)
{
    sqlite3_stmt *any = storage_statement(s, SQL_ACCOUNT_ANY);
    bool found = storage_step(s, any);
    storage_done(any);
    return !found && !s->failed;
}

bool storage_account_get(struct storage *s, const char *name, struct storage_account *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_ACCOUNT_GET);
    storage_bind_text(get, 1, name);
    bool found = storage_step(s, get);
    if (found)
        account_of(get, out);
    storage_done(get);
    return found;
}

bool storage_account_add(struct storage *s, const struct storage_account *account)
{
    sqlite3_stmt *add = storage_statement(s, SQL_ACCOUNT_ADD);
    storage_bind_text(add, 1, account->name);
    storage_bind_text(add, 2, account->email);
    storage_bind_text(add, 3, account->password);
    storage_bind_number(add, 4, account->admin);
    storage_bind_number(add, 5, account->disabled);
    storage_bind_number(add, 6, account->created);
    return storage_run(s, add) && sqlite3_changes(s->main) == 1;
}

bool storage_account_set_password(struct storage *s, const char *name, const char *record)
{
    sqlite3_stmt *set = storage_statement(s, SQL_ACCOUNT_PASSWORD);
    storage_bind_text(set, 1, name);
    storage_bind_text(set, 2, record);
    return storage_run(s, set) && sqlite3_changes(s->main) == 1;
}

bool storage_account_set_disabled(struct storage *s, const char *name, bool disabled)
{
    sqlite3_stmt *set = storage_statement(s, SQL_ACCOUNT_DISABLE);
    storage_bind_text(set, 1, name);
    storage_bind_number(set, 2, disabled);
    return storage_run(s, set) && sqlite3_changes(s->main) == 1;
}

bool storage_device_get(struct storage *s, const uint8_t id[DEVICE_ID_SIZE],
                        struct storage_device *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_DEVICE_GET);
    storage_bind_bytes(get, 1, id, DEVICE_ID_SIZE);
    bool found = storage_step(s, get);
    if (found)
        device_of(get, out);
    storage_done(get);
    return found;
}

void storage_device_put(struct storage *s, const struct storage_device *device)
{
    sqlite3_stmt *put = storage_statement(s, SQL_DEVICE_PUT);
    storage_bind_bytes(put, 1, device->id, sizeof device->id);
    storage_bind_text(put, 2, device->account);
    storage_bind_text(put, 3, device->machine);
    storage_bind_number(put, 4, device->created);
    storage_bind_number(put, 5, device->last_seen);
    storage_bind_number(put, 6, device->void_before);
    storage_bind_number(put, 7, device->logged_out);
    storage_bind_number(put, 8, device->disabled);
    storage_run(s, put);
}

void storage_device_seen(struct storage *s, const uint8_t id[DEVICE_ID_SIZE], int64_t when)
{
    sqlite3_stmt *seen = storage_statement(s, SQL_DEVICE_SEEN);
    storage_bind_bytes(seen, 1, id, DEVICE_ID_SIZE);
    storage_bind_number(seen, 2, when);
    storage_run(s, seen);
}

void storage_account_each(struct storage *s, void (*each)(const struct storage_account *, void *),
                          void *arg)
{
    sqlite3_stmt *all = storage_statement(s, SQL_ACCOUNT_ALL);
    while (storage_step(s, all)) {
        struct storage_account account;
        account_of(all, &account);
        each(&account, arg);
    }
}

void storage_device_each(struct storage *s, const char *account,
                         void (*each)(const struct storage_device *, void *), void *arg)
{
    sqlite3_stmt *rows = storage_statement(s, account == NULL ? SQL_DEVICE_ALL : SQL_DEVICE_OF);
    if (account != NULL)
        storage_bind_text(rows, 1, account);
    while (storage_step(s, rows)) {
        struct storage_device device;
        device_of(rows, &device);
        each(&device, arg);
    }
}

void storage_invite_add(struct storage *s, const struct storage_invite *invite)
{
    sqlite3_stmt *add = storage_statement(s, SQL_INVITE_ADD);
    storage_bind_bytes(add, 1, invite->hash, sizeof invite->hash);
    storage_bind_number(add, 2, invite->admin);
    storage_bind_number(add, 3, invite->uses);
    storage_bind_number(add, 4, invite->expires);
    storage_bind_text(add, 5, invite->by);
    storage_run(s, add);
}

bool storage_invite_get(struct storage *s, const uint8_t hash[32], int64_t now,
                        struct storage_invite *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_INVITE_GET);
    storage_bind_bytes(get, 1, hash, 32);
    storage_bind_number(get, 2, now);
    bool found = storage_step(s, get);
    if (found) {
        *out = (struct storage_invite){0};
        memcpy(out->hash, hash, 32);
        out->admin = sqlite3_column_int(get, 0) != 0;
        out->uses = (uint32_t)sqlite3_column_int64(get, 1);
        out->expires = sqlite3_column_int64(get, 2);
        storage_column_text(get, 3, out->by, sizeof out->by);
    }
    storage_done(get);
    return found;
}

void storage_invite_use(struct storage *s, const uint8_t hash[32])
{
    sqlite3_stmt *use = storage_statement(s, SQL_INVITE_USE);
    storage_bind_bytes(use, 1, hash, 32);
    storage_run(s, use);
}

void storage_invite_prune(struct storage *s, int64_t now)
{
    sqlite3_stmt *prune = storage_statement(s, SQL_INVITE_PRUNE);
    storage_bind_number(prune, 1, now);
    storage_run(s, prune);
}

void storage_audit(struct storage *s, const struct storage_event *event)
{
    sqlite3_stmt *add = storage_statement(s, SQL_AUDIT_ADD);
    storage_bind_number(add, 1, event->when);
    storage_bind_text(add, 2, event->what);
    storage_bind_text(add, 3, event->account == NULL ? "" : event->account);
    storage_bind_bytes(add, 4, event->device, DEVICE_ID_SIZE);
    storage_bind_text(add, 5, event->source == NULL ? "" : event->source);
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
