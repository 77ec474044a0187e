/* Rows of accounts, devices and invites. Rules about them are accounts.c's.
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
    out->verified = sqlite3_column_int(row, 6) != 0;
    out->waiting = sqlite3_column_int(row, 7) != 0;
    out->deleted = sqlite3_column_int64(row, 8);
    out->has_totp = storage_column_bytes(row, 9, out->totp, sizeof out->totp);
    out->totp_on = sqlite3_column_int(row, 10) != 0 && out->has_totp;
    out->totp_step = sqlite3_column_int64(row, 11);
    out->quota = (uint64_t)sqlite3_column_int64(row, 12);
    out->entries = (uint64_t)sqlite3_column_int64(row, 13);
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
}

bool storage_is_new(struct storage *s)
{
    sqlite3_stmt *any = storage_statement(s, SQL_ACCOUNT_ANY);
    bool found = storage_step(s, any);
    storage_done(any);
    return !found && !s->failed;
}

uint64_t storage_account_count(struct storage *s)
{
    sqlite3_stmt *count = storage_statement(s, SQL_ACCOUNT_COUNT);
    uint64_t accounts = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return accounts;
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

static void bind_account(sqlite3_stmt *to, const struct storage_account *account)
{
    storage_bind_text(to, 1, account->name);
    storage_bind_text(to, 2, account->email);
    storage_bind_text(to, 3, account->password);
    storage_bind_number(to, 4, account->admin);
    storage_bind_number(to, 5, account->disabled);
    storage_bind_number(to, 6, account->created);
    storage_bind_number(to, 7, account->verified);
    storage_bind_number(to, 8, account->waiting);
    storage_bind_number(to, 9, account->deleted);
    storage_bind_bytes(to, 10, account->has_totp ? account->totp : NULL, sizeof account->totp);
    storage_bind_number(to, 11, account->totp_on);
    storage_bind_number(to, 12, account->totp_step);
}

bool storage_account_add(struct storage *s, const struct storage_account *account)
{
    sqlite3_stmt *add = storage_statement(s, SQL_ACCOUNT_ADD);
    bind_account(add, account);
    return storage_run(s, add) && sqlite3_changes(s->main) == 1;
}

void storage_account_put(struct storage *s, const struct storage_account *account)
{
    sqlite3_stmt *put = storage_statement(s, SQL_ACCOUNT_PUT);
    bind_account(put, account);
    storage_bind_number(put, 13, (int64_t)account->quota);
    storage_run(s, put);
}

size_t storage_accounts_after(struct storage *s, const char *after, struct storage_account *out,
                              size_t max)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_ACCOUNT_AFTER);
    size_t count = 0;
    storage_bind_text(rows, 1, after);
    storage_bind_number(rows, 2, (int64_t)max);
    while (count < max && storage_step(s, rows))
        account_of(rows, &out[count++]);
    storage_done(rows);
    return count;
}

uint64_t storage_admins_besides(struct storage *s, const char *name)
{
    sqlite3_stmt *count = storage_statement(s, SQL_ACCOUNT_ADMINS);
    storage_bind_text(count, 1, name);
    uint64_t admins = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return admins;
}

void storage_account_prune(struct storage *s, int64_t before)
{
    for (;;) {
        char name[ACCOUNT_BYTES_MAX + 1];
        sqlite3_stmt *stale = storage_statement(s, SQL_ACCOUNT_STALE);
        storage_bind_number(stale, 1, before);
        bool found = storage_step(s, stale);
        if (found)
            storage_column_text(stale, 0, name, sizeof name);
        storage_done(stale);
        if (!found)
            return;
        storage_token_drop(s, name, 0);
        storage_mail_drop_of(s, name, 0);
        sqlite3_stmt *drop = storage_statement(s, SQL_ACCOUNT_DROP);
        storage_bind_text(drop, 1, name);
        if (!storage_run(s, drop))
            return;
    }
}

bool storage_account_set_password(struct storage *s, const char *name, const char *record)
{
    sqlite3_stmt *set = storage_statement(s, SQL_ACCOUNT_PASSWORD);
    storage_bind_text(set, 1, name);
    storage_bind_text(set, 2, record);
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
    storage_run(s, put);
}

uint64_t storage_device_count(struct storage *s, const char *account)
{
    sqlite3_stmt *count = storage_statement(s, SQL_DEVICE_COUNT);
    storage_bind_text(count, 1, account);
    uint64_t devices = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return devices;
}

bool storage_device_forget(struct storage *s, const char *account, int64_t before,
                           uint8_t out[DEVICE_ID_SIZE])
{
    sqlite3_stmt *stale = storage_statement(s, SQL_DEVICE_STALE);
    storage_bind_text(stale, 1, account);
    storage_bind_number(stale, 2, before);
    bool found = storage_step(s, stale) && storage_column_bytes(stale, 0, out, DEVICE_ID_SIZE);
    storage_done(stale);
    if (!found)
        return false;
    sqlite3_stmt *drop = storage_statement(s, SQL_DEVICE_DROP);
    storage_bind_bytes(drop, 1, out, DEVICE_ID_SIZE);
    return storage_run(s, drop);
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

uint64_t storage_invite_count(struct storage *s, const char *by, int64_t now)
{
    sqlite3_stmt *count = storage_statement(s, SQL_INVITE_COUNT);
    storage_bind_text(count, 1, by);
    storage_bind_number(count, 2, now);
    uint64_t invites = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return invites;
}

void storage_invite_prune(struct storage *s, int64_t now)
{
    sqlite3_stmt *prune = storage_statement(s, SQL_INVITE_PRUNE);
    storage_bind_number(prune, 1, now);
    storage_run(s, prune);
}

void storage_invite_drop_of(struct storage *s, const char *by, bool admin_only)
{
    sqlite3_stmt *drop = storage_statement(s, SQL_INVITE_DROP_OF);
    storage_bind_text(drop, 1, by);
    storage_bind_number(drop, 2, admin_only);
    storage_run(s, drop);
}
