/* Reading state.db at the start: rows become the tree and the journal again.
 *
 * Owns nothing. Thread: local. A row that makes no sense (a disk's fault, a person with a tool) is left
 * out, and goes with the next commit; the rest is as it was, and what the replica lacks then the
 * tracker says again at the next resync. Where the disk fails to give a row, that is no row that is not there: nothing of
 * what was read counts (`unreadable`). Entries are made first and linked second, as a row may come
 * before that of its directory. */
#include "daemon/catalogue_private.h"

#include <string.h>

#include "base/check.h"
#include "base/mem.h"

static uint64_t column_number(sqlite3_stmt *s, int index)
{
    return (uint64_t)sqlite3_column_int64(s, index);
}

/* Whether there is a row; if there is none because the disk fails, or memory does, that is noted. */
static bool next_row(struct catalogue *c, sqlite3_stmt *s)
{
    int result = s == NULL ? sqlite3_errcode(c->db) : sqlite3_step(s);

    switch (result & 0xff) {
    case SQLITE_ROW:
        return s != NULL;
    case SQLITE_OK:
    case SQLITE_DONE:
    case SQLITE_ERROR: /* a table that is not as we make them */
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return false;
    default:
        c->unreadable = true;
        return false;
    }
}

static bool meta_get(struct catalogue *c, const char *key, sqlite3_stmt **row)
{
    *row = db_statement(c, SQL_META_GET);
    if (*row != NULL)
        sqlite3_bind_text(*row, 1, key, -1, SQLITE_STATIC);
    if (next_row(c, *row))
        return true;
    sqlite3_reset(*row);
    return false;
}

static uint64_t meta_number(struct catalogue *c, const char *key, uint64_t otherwise)
{
    sqlite3_stmt *s;

    if (!meta_get(c, key, &s))
        return otherwise;
    uint64_t value = column_number(s, 0);
    sqlite3_reset(s);
    return value;
}

static void load_meta(struct catalogue *c)
{
    sqlite3_stmt *s;

    c->next_op = c->op_limit = meta_number(c, "op_limit", c->op_limit);
    c->next_ino = c->ino_limit = meta_number(c, "ino_limit", c->ino_limit);
    c->seq = meta_number(c, "seq", 0);
    if (meta_get(c, "generation", &s)) {
        if (sqlite3_column_bytes(s, 0) == GENERATION_SIZE) {
            memcpy(c->generation, sqlite3_column_blob(s, 0), GENERATION_SIZE);
            c->generation_known = true;
        }
        sqlite3_reset(s);
    }
    if (meta_get(c, "account", &s)) {
        const char *text = (const char *)sqlite3_column_text(s, 0);
        snprintf(c->account, sizeof c->account, "%s", text == NULL ? "" : text);
        sqlite3_reset(s);
    }
    if (meta_get(c, "swarm", &s)) {
        const char *text = (const char *)sqlite3_column_text(s, 0);
        free(c->swarm);
        c->swarm = xstrdup(text == NULL ? "" : text);
        sqlite3_reset(s);
    }
}

static void load_pending(struct entry *e, sqlite3_stmt *s)
{
    bool any = false;

    for (int i = 14; i < 20; i++)
        any |= sqlite3_column_type(s, i) != SQLITE_NULL;
    any |= sqlite3_column_type(s, 21) != SQLITE_NULL;
    if (!any)
        return;
    struct pending *p = tree_pending(e);
    if (sqlite3_column_type(s, 14) != SQLITE_NULL)
        p->held = tracker__entry__unpack(NULL, (size_t)sqlite3_column_bytes(s, 14),
                                         sqlite3_column_blob(s, 14));
    p->made_by = column_number(s, 15);
    p->last_content = column_number(s, 16);
    p->place = column_number(s, 17);
    int lost = sqlite3_column_int(s, 18);
    p->lost = (uint8_t)(lost & 0xff);
    p->retries = (uint8_t)(lost >> 8 & 0xff);
    if (sqlite3_column_bytes(s, 19) == HASH_SIZE) {
        p->has_base = true;
        memcpy(p->base, sqlite3_column_blob(s, 19), HASH_SIZE);
    }
    p->covers = column_number(s, 21);
}

/* NULL if the row makes no sense. */
static struct entry *load_row(struct catalogue *c, sqlite3_stmt *s)
{
    uint64_t ino = column_number(s, 0), id = column_number(s, 1);
    const char *name = (const char *)sqlite3_column_text(s, 3);
    int kind = sqlite3_column_int(s, 4);
    uint64_t size = column_number(s, 6);
    const char *target = (const char *)sqlite3_column_text(s, 9);
    const char *owner = (const char *)sqlite3_column_text(s, 10);
    bool good = ino > INO_ROOT && ino < INT64_MAX && name != NULL && owner != NULL &&
                strlen(name) <= NAME_BYTES_MAX && kind >= NODE_DIRECTORY && kind <= NODE_SYMLINK &&
                size <= FILE_SIZE_MAX && id != 1 &&
                (kind != NODE_SYMLINK || target != NULL || column_number(s, 2) == 0) &&
                strlen(owner) <= ACCOUNT_BYTES_MAX;

    if (!good || (id != 0 && tree_find(c, BY_ID, id) != NULL))
        return NULL;
    struct entry *e = tree_new(c, ino, (enum node_kind)kind, name);
    int flags = sqlite3_column_int(s, 13);
    e->node.mode = (uint16_t)(sqlite3_column_int(s, 5) & 0777);
    e->node.mtime = sqlite3_column_int64(s, 7);
    e->seq = column_number(s, 11);
    e->flags = (uint8_t)(flags & FLAGS_STORED);
    e->node.pinned = (flags & ROW_PINNED) != 0;
    e->node.working = (flags & ROW_WORKING) != 0;
    e->node.level = (uint8_t)(flags / ROW_LEVEL & 7);
    e->node.size = size;
    if (kind == NODE_FILE && sqlite3_column_bytes(s, 8) == HASH_SIZE)
        tree_set_content(c, e, sqlite3_column_blob(s, 8), size);
    if (kind == NODE_SYMLINK && target != NULL) /* one that was hidden from the start has none */
        tree_set_target(e, target);
    tree_set_owner(c, e, owner);
    e->node.xattrs = xattrs_unpack(sqlite3_column_blob(s, 20), (size_t)sqlite3_column_bytes(s, 20));
    tree_set_id(c, e, id);
    load_pending(e, s);
    if (e->pending != NULL && e->pending->held == NULL)
        e->flags &= (uint8_t)~FLAG_HIDDEN;
    if ((e->flags & FLAG_HIDDEN) != 0)
        vector_add(&c->hidden, ino);
    return e;
}

struct place {
    uint64_t ino, parent, cookie;
};

/* Puts all entries under their directories. Rows that cannot be placed are left out. */
static bool link_all(struct catalogue *c, const struct place *places, size_t count)
{
    bool good = true;

    for (size_t i = 0; i < count; i++) {
        struct entry *e = tree_find(c, BY_INO, places[i].ino);
        struct entry *d = tree_find(c, BY_INO, places[i].parent);
        if (places[i].parent == 0)
            continue;
        bool fits = d != NULL && d->node.kind == NODE_DIRECTORY && places[i].cookie > 0 &&
                    places[i].cookie < INT64_MAX &&
                    name_is_valid(e->node.name, strlen(e->node.name)) &&
                    tree_child(c, d, e->node.name) == NULL && tree_fits(c, d, e) == 0;
        if (fits)
            tree_link(c, e, d, e->node.name, places[i].cookie);
        good &= fits;
        if (places[i].cookie >= c->next_cookie)
            c->next_cookie = places[i].cookie + 1;
    }
    return good;
}

static bool load_entries(struct catalogue *c)
{
    sqlite3_stmt *s = db_statement(c, SQL_ENTRY_ALL);
    struct place *places = NULL;
    size_t count = 0, room = 0;
    bool good = true;

    while (next_row(c, s)) {
        struct entry *e = load_row(c, s);
        if (e == NULL) {
            vector_add(&c->dirty, column_number(s, 0)); /* the row goes */
            good = false;
            continue;
        }
        if (count == room) {
            room = room == 0 ? 256 : 2 * room;
            places = xrealloc(places, room * sizeof *places);
        }
        places[count++] = (struct place){e->node.ino, column_number(s, 2), column_number(s, 12)};
    }
    good &= sqlite3_reset(s) == SQLITE_OK && s != NULL;
    good &= link_all(c, places, count);
    free(places);
    return good;
}

static bool load_ops(struct catalogue *c)
{
    sqlite3_stmt *s = db_statement(c, SQL_OP_ALL);
    bool good = s != NULL;

    while (next_row(c, s)) {
        struct entry *e = tree_find(c, BY_INO, column_number(s, 1));
        struct entry *other = tree_find(c, BY_INO, column_number(s, 2));
        Tracker__Op *message = tracker__op__unpack(NULL, (size_t)sqlite3_column_bytes(s, 4),
                                                   sqlite3_column_blob(s, 4));
        if (e == NULL || message == NULL || e->node.unconfirmed == UINT16_MAX) {
            if (message != NULL)
                tracker__op__free_unpacked(message, NULL);
            vector_add(&c->op_rows, column_number(s, 0));
            good = false;
            continue;
        }
        struct op *op = xcalloc(1, sizeof *op);
        op->message = message;
        message->op = column_number(s, 0);
        op->ino = e->node.ino;
        op->parent = column_number(s, 3);
        op->stored = op->again = true;
        tree_pending(e);
        e->node.unconfirmed++;
        if (other != NULL && other->node.unconfirmed < UINT16_MAX) {
            op->other = other->node.ino;
            tree_pending(other);
            other->node.unconfirmed++;
        }
        journal_put(c, op);
    }
    sqlite3_reset(s);
    return good;
}

static void load_small_tables(struct catalogue *c)
{
    sqlite3_stmt *s = db_statement(c, SQL_WORKING_ALL);

    while (next_row(c, s)) {
        struct working_row row = {.number = column_number(s, 0),
                                  .ino = column_number(s, 1),
                                  .mount = column_number(s, 2),
                                  .marked = (sqlite3_column_int(s, 3) & 1) != 0,
                                  .sealed = (sqlite3_column_int(s, 3) & 2) != 0,
                                  .inode = column_number(s, 4)};
        catalogue_working_put(c, &row);
    }
    sqlite3_reset(s);
    s = db_statement(c, SQL_DROPPED_ALL);
    while (next_row(c, s)) {
        struct dropped_row row = {.until = sqlite3_column_int64(s, 1)};
        if (sqlite3_column_bytes(s, 0) != HASH_SIZE)
            continue;
        memcpy(row.root, sqlite3_column_blob(s, 0), HASH_SIZE);
        dropped_load(c, &row);
    }
    sqlite3_reset(s);
    c->working_dirty = false;
}

/* What was only kept for being open has nobody any more: programs that still have it open say so
 * (catalogue_reopen_node). Its content is due to be dropped; not if it may have lost its place by a row that makes no sense. */
static void forget_open_ones(struct catalogue *c, bool good)
{
    static const uint8_t zero[HASH_SIZE];
    struct vector inos = {0};

    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++)
        for (struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO])
            if (!tree_is_linked(c, e))
                vector_add(&inos, e->node.ino);
    for (size_t i = 0; i < inos.count; i++) {
        struct entry *e = tree_find(c, BY_INO, inos.items[i]);
        uint8_t root[HASH_SIZE];
        if (e == NULL)
            continue;
        memcpy(root, e->node.root, HASH_SIZE);
        tree_free_if_idle(c, e);
        if (good && tree_find(c, BY_INO, inos.items[i]) == NULL &&
            memcmp(root, zero, HASH_SIZE) != 0 && tree_with_root(c, root, NULL) == NULL)
            catalogue_dropped_put(c, root, 1);
    }
    free(inos.items);
}

static void quiet_invalid(void *arg, uint64_t ino, uint64_t parent, const char *name)
{
}
static void quiet_unused(void *arg, const uint8_t root[HASH_SIZE], uint64_t size)
{
}
static const struct catalogue_events quiet = {
    .invalid = quiet_invalid, .renewed = quiet_invalid, .unused = quiet_unused};

bool db_load(struct catalogue *c)
{
    const struct catalogue_events *events = c->events;

    c->events = &quiet;
    c->loading = true;
    load_meta(c);
    bool good = load_entries(c);
    good = load_ops(c) && good;
    load_small_tables(c);
    c->loading = false;
    c->root->flags &= (uint8_t)~FLAG_DIRTY;
    if (!c->unreadable)
        forget_open_ones(c, good);
    c->events = events;
    return good;
}
