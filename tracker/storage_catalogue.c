/* Rows of the catalogue, its numbers, and what became of each device's operations. The rules are
 * catalogue.c's.
 *
 * The numbers (last seq, next id, live entries, last pruned seq) stand in `meta`: read when a
 * transaction begins, written once before it ends. The storage's thread, within a transaction; see
 * storage.h. */
#include "base/check.h"
#include "tracker/storage_private.h"

static uint64_t number_get(struct storage *s, const char *key)
{
    sqlite3_stmt *get = storage_statement(s, SQL_META_GET);
    storage_bind_text(get, 1, key);
    uint64_t value = storage_step(s, get) ? (uint64_t)sqlite3_column_int64(get, 0) : 0;
    storage_done(get);
    return value;
}

static void number_put(struct storage *s, const char *key, uint64_t value)
{
    sqlite3_stmt *put = storage_statement(s, SQL_META_PUT);
    storage_bind_text(put, 1, key);
    storage_bind_number(put, 2, (int64_t)value);
    storage_run(s, put);
}

void storage_numbers_load(struct storage *s)
{
    uint64_t seq = number_get(s, "seq");
    if (seq != s->seq) /* something was taken back, or another process changed it */
        memset(s->directories, 0, sizeof s->directories);
    s->seq = s->seq_written = seq;
    s->next_id = s->next_id_written = number_get(s, "next_id");
    s->live = s->live_written = number_get(s, "live");
    if (s->next_id <= STORAGE_ROOT_ENTRY)
        s->next_id = STORAGE_ROOT_ENTRY + 1;
}

void storage_numbers_save(struct storage *s)
{
    if (s->seq != s->seq_written)
        number_put(s, "seq", s->seq);
    if (s->next_id != s->next_id_written && s->next_id != STORAGE_ROOT_ENTRY + 1)
        number_put(s, "next_id", s->next_id);
    if (s->live != s->live_written)
        number_put(s, "live", s->live);
}

void storage_generation(struct storage *s, uint8_t out[STORAGE_GENERATION_SIZE])
{
    memset(out, 0, STORAGE_GENERATION_SIZE);
    sqlite3_stmt *get = storage_statement(s, SQL_META_GET);
    storage_bind_text(get, 1, "generation");
    if (storage_step(s, get))
        storage_column_bytes(get, 0, out, STORAGE_GENERATION_SIZE);
    storage_done(get);
}

void storage_entry_clear(struct storage_entry *entry)
{
    free(entry->target);
    entry->target = NULL;
    xattrs_free(entry->xattrs);
    entry->xattrs = NULL;
}

void storage_entry_copy(struct storage_entry *to, const struct storage_entry *from)
{
    *to = *from;
    if (from->target != NULL) {
        to->target = strdup(from->target);
        CHECK(to->target != NULL);
    }
    to->xattrs = xattrs_copy(from->xattrs);
}

static void entry_of(sqlite3_stmt *row, struct storage_entry *out)
{
    *out = (struct storage_entry){0};
    out->id = (uint64_t)sqlite3_column_int64(row, 0);
    out->parent = (uint64_t)sqlite3_column_int64(row, 1);
    storage_column_text(row, 2, out->name, sizeof out->name);
    out->kind = (uint8_t)sqlite3_column_int(row, 3);
    out->size = (uint64_t)sqlite3_column_int64(row, 4);
    storage_column_bytes(row, 5, out->root, sizeof out->root);
    const unsigned char *target = sqlite3_column_text(row, 6);
    if (target != NULL) {
        out->target = strdup((const char *)target);
        CHECK(out->target != NULL);
    }
    out->mtime = sqlite3_column_int64(row, 7);
    out->mode = (uint32_t)sqlite3_column_int(row, 8);
    storage_column_text(row, 9, out->owner, sizeof out->owner);
    out->seq = (uint64_t)sqlite3_column_int64(row, 10);
    out->gone = sqlite3_column_type(row, 11) != SQLITE_NULL;
    out->is_signed = storage_column_bytes(row, 12, out->signer, sizeof out->signer) &&
                     storage_column_bytes(row, 13, out->signature, sizeof out->signature);
    out->xattrs =
        xattrs_unpack(sqlite3_column_blob(row, 14), (size_t)sqlite3_column_bytes(row, 14));
}

bool storage_entry_get(struct storage *s, uint64_t id, struct storage_entry *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_ENTRY_GET);
    storage_bind_number(get, 1, (int64_t)id);
    bool found = storage_step(s, get);
    if (found)
        entry_of(get, out);
    storage_done(get);
    return found;
}

bool storage_entry_find(struct storage *s, uint64_t parent, const char *name,
                        struct storage_entry *out)
{
    sqlite3_stmt *find = storage_statement(s, SQL_ENTRY_FIND);
    storage_bind_number(find, 1, (int64_t)parent);
    storage_bind_text(find, 2, name);
    bool found = storage_step(s, find);
    if (found)
        entry_of(find, out);
    storage_done(find);
    return found;
}

bool storage_entry_has_children(struct storage *s, uint64_t id)
{
    sqlite3_stmt *child = storage_statement(s, SQL_ENTRY_CHILD);
    storage_bind_number(child, 1, (int64_t)id);
    bool found = storage_step(s, child);
    storage_done(child);
    return found;
}

size_t storage_entries_owned(struct storage *s, const char *owner, uint64_t after, uint64_t *out,
                             size_t max)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_ENTRY_OWNED);
    size_t count = 0;
    storage_bind_number(rows, 1, (int64_t)after);
    storage_bind_text(rows, 2, owner);
    storage_bind_number(rows, 3, (int64_t)max);
    while (count < max && storage_step(s, rows))
        out[count++] = (uint64_t)sqlite3_column_int64(rows, 0);
    storage_done(rows);
    return count;
}

unsigned storage_entry_height(struct storage *s, uint64_t id)
{
    sqlite3_stmt *height = storage_statement(s, SQL_ENTRY_HEIGHT);
    storage_bind_number(height, 1, (int64_t)id);
    unsigned levels = storage_step(s, height) ? (unsigned)sqlite3_column_int(height, 0) : 0;
    storage_done(height);
    return levels;
}

uint64_t storage_entry_count(struct storage *s)
{
    return s->live;
}

void storage_quota_set(struct storage *s, uint64_t entries)
{
    s->quota = entries;
}

uint64_t storage_quota(const struct storage *s)
{
    return s->quota;
}

bool storage_owner_full(struct storage *s, const char *account)
{
    sqlite3_stmt *get = storage_statement(s, SQL_OWNED_GET);
    bool full = false;
    storage_bind_text(get, 1, account);
    if (storage_step(s, get)) {
        uint64_t entries = (uint64_t)sqlite3_column_int64(get, 0);
        uint64_t quota = (uint64_t)sqlite3_column_int64(get, 1);
        full = entries >= (quota == 0 ? s->quota : quota);
    }
    storage_done(get);
    return full;
}

static struct storage_directory *directory_at(struct storage *s, uint64_t id)
{
    return &s->directories[id % STORAGE_DIRECTORIES];
}

/* Counting costs 20 ms where it matters: done once, then kept up to date. */
bool storage_directory_full(struct storage *s, uint64_t directory)
{
    struct storage_directory *d = directory_at(s, directory);
    if (s->live < LIMIT_DIRECTORY)
        return false;
    if (d->id != directory) {
        sqlite3_stmt *count = storage_statement(s, SQL_ENTRY_CHILDREN);
        storage_bind_number(count, 1, (int64_t)directory);
        d->count = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
        d->id = directory;
        storage_done(count);
    }
    return d->count >= LIMIT_DIRECTORY;
}

static void directory_changes(struct storage *s, uint64_t directory, bool more)
{
    struct storage_directory *d = directory_at(s, directory);
    if (d->id == directory)
        d->count += more ? 1 : UINT64_MAX;
}

uint64_t storage_seq(struct storage *s)
{
    return s->seq;
}

uint64_t storage_pruned(struct storage *s)
{
    return number_get(s, "pruned");
}

/* Inserts or updates it. */
static void entry_write(struct storage *s, sqlite3_stmt *statement,
                        const struct storage_entry *entry)
{
    bool file = entry->kind == 2;
    size_t size;
    uint8_t *xattrs = xattrs_pack(entry->xattrs, &size);
    storage_bind_number(statement, 1, (int64_t)entry->id);
    storage_bind_number(statement, 2, (int64_t)entry->parent);
    storage_bind_text(statement, 3, entry->name);
    storage_bind_number(statement, 4, entry->kind);
    storage_bind_number(statement, 5, (int64_t)entry->size);
    storage_bind_bytes(statement, 6, file ? entry->root : NULL, sizeof entry->root);
    storage_bind_text(statement, 7, entry->target);
    storage_bind_number(statement, 8, entry->mtime);
    storage_bind_number(statement, 9, entry->mode);
    storage_bind_text(statement, 10, entry->owner);
    storage_bind_number(statement, 11, (int64_t)entry->seq);
    storage_bind_bytes(statement, 12, entry->is_signed ? entry->signer : NULL,
                       sizeof entry->signer);
    storage_bind_bytes(statement, 13, entry->is_signed ? entry->signature : NULL,
                       sizeof entry->signature);
    storage_bind_bytes(statement, 14, xattrs, size);
    storage_run(s, statement);
    free(xattrs);
}

void storage_entry_add(struct storage *s, struct storage_entry *entry)
{
    if (s->failed)
        return;
    entry->id = s->next_id++;
    entry->seq = ++s->seq;
    s->live++;
    directory_changes(s, entry->parent, true);
    sqlite3_stmt *add = storage_statement(s, SQL_ENTRY_ADD);
    entry_write(s, add, entry);
}

void storage_entry_put(struct storage *s, struct storage_entry *entry)
{
    if (s->failed)
        return;
    entry->seq = ++s->seq;
    if (entry->gone) {
        CHECK(s->live > 0);
        s->live--;
        directory_changes(s, entry->parent, false);
        sqlite3_stmt *gone = storage_statement(s, SQL_ENTRY_GONE);
        storage_bind_number(gone, 1, (int64_t)entry->id);
        storage_bind_number(gone, 2, (int64_t)entry->seq);
        storage_run(s, gone);
        return;
    }
    if (entry->was != 0 && entry->was != entry->parent) {
        directory_changes(s, entry->was, false);
        directory_changes(s, entry->parent, true);
    }
    sqlite3_stmt *put = storage_statement(s, SQL_ENTRY_PUT);
    entry_write(s, put, entry);
}

void storage_entry_unname(struct storage *s, uint64_t id)
{
    sqlite3_stmt *unname = storage_statement(s, SQL_ENTRY_UNNAME);
    storage_bind_number(unname, 1, (int64_t)id);
    storage_run(s, unname);
}

void storage_prune(struct storage *s, int64_t before)
{
    sqlite3_stmt *limit = storage_statement(s, SQL_PRUNE_LIMIT);
    storage_bind_number(limit, 1, before);
    uint64_t last = storage_step(s, limit) ? (uint64_t)sqlite3_column_int64(limit, 0) : 0;
    storage_done(limit);
    if (last == 0)
        return;
    sqlite3_stmt *prune = storage_statement(s, SQL_PRUNE);
    storage_bind_number(prune, 1, before);
    storage_run(s, prune);
    if (last > storage_pruned(s))
        number_put(s, "pruned", last);
}

size_t storage_entries_since(struct storage *s, uint64_t since, uint64_t tombstones_after,
                             struct storage_entry *out, size_t max, size_t bytes_max, bool *more)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_ENTRY_SINCE);
    storage_bind_number(rows, 1, (int64_t)since);
    storage_bind_number(rows, 2, (int64_t)tombstones_after);
    storage_bind_number(rows, 3, (int64_t)max);
    size_t count = 0;
    size_t bytes = 0;
    while (count < max && bytes < bytes_max && storage_step(s, rows)) {
        struct storage_entry *entry = &out[count++];
        entry_of(rows, entry);
        bytes += 160 + strlen(entry->name) + (entry->target == NULL ? 0 : strlen(entry->target)) +
                 xattrs_bytes(entry->xattrs);
    }
    storage_done(rows);
    *more = count == max || bytes >= bytes_max;
    return count;
}

bool storage_op_get(struct storage *s, const uint8_t device[DEVICE_ID_SIZE], uint64_t op,
                    struct storage_op *out)
{
    sqlite3_stmt *get = storage_statement(s, SQL_OP_GET);
    storage_bind_bytes(get, 1, device, DEVICE_ID_SIZE);
    storage_bind_number(get, 2, (int64_t)op);
    bool found = storage_step(s, get);
    if (found)
        *out = (struct storage_op){.op = op,
                                   .status = (uint32_t)sqlite3_column_int(get, 0),
                                   .entry = (uint64_t)sqlite3_column_int64(get, 1)};
    storage_done(get);
    return found;
}

void storage_op_put(struct storage *s, const uint8_t device[DEVICE_ID_SIZE],
                    const struct storage_op *op)
{
    sqlite3_stmt *put = storage_statement(s, SQL_OP_PUT);
    storage_bind_bytes(put, 1, device, DEVICE_ID_SIZE);
    storage_bind_number(put, 2, (int64_t)op->op);
    storage_bind_number(put, 3, op->status);
    storage_bind_number(put, 4, (int64_t)op->entry);
    /* Trimmed now and then: the row numbers are the tracker's, so every 256th is somebody's. */
    if (storage_run(s, put) && sqlite3_last_insert_rowid(s->main) % 256 == 0) {
        sqlite3_stmt *trim = storage_statement(s, SQL_OP_TRIM);
        storage_bind_bytes(trim, 1, device, DEVICE_ID_SIZE);
        storage_bind_number(trim, 2, LIMIT_OPS_KEPT);
        storage_run(s, trim);
    }
}
