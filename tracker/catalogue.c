/* The rules of the catalogue.
 *
 * Owns nothing: reads and writes entries through storage.h, on the storage's thread, within the
 * transaction of the job that called. Tree invariants, held by every operation:
 *   1. an entry's parent is the root (id 1) or a live directory;
 *   2. no two live entries of one directory have the same name;
 *   3. following parents ends at the root after at most NAME_DEPTH_MAX steps (so there are no
 * loops);
 *   4. each change has a seq of its own, without gaps within what `changes` collects.
 * All checks of an operation come before its first write.
 *
 * Rights (access.h): what changes a folder's names needs "write" there, at both ends of a move; a directory that moves
 * or goes, and one that is replaced, needs it itself as well, as what is in it inherits from elsewhere then. Who may
 * not see a folder is answered as if it were not there; but that a name is taken has
 * to be said (EXISTS, without the entry). */
#include "tracker/catalogue.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/name.h"
#include "crypto/merkle.h"
#include "proto/limits.h"
#include "tracker/access.h"

#define DIRECTORY     TRACKER__KIND__KIND_DIRECTORY
#define FILE_KIND     TRACKER__KIND__KIND_FILE
#define SYMLINK       TRACKER__KIND__KIND_SYMLINK

#define OK            TRACKER__OP_STATUS__OP_OK
#define NOT_FOUND     TRACKER__OP_STATUS__OP_NOT_FOUND
#define EXISTS        TRACKER__OP_STATUS__OP_EXISTS
#define NOT_EMPTY     TRACKER__OP_STATUS__OP_NOT_EMPTY
#define NOT_DIRECTORY TRACKER__OP_STATUS__OP_NOT_DIRECTORY
#define IS_DIRECTORY  TRACKER__OP_STATUS__OP_IS_DIRECTORY
#define DENIED        TRACKER__OP_STATUS__OP_DENIED
#define BAD_NAME      TRACKER__OP_STATUS__OP_BAD_NAME
#define TOO_DEEP      TRACKER__OP_STATUS__OP_TOO_DEEP
#define LOOP          TRACKER__OP_STATUS__OP_LOOP
#define FULL          TRACKER__OP_STATUS__OP_FULL
#define QUOTA         TRACKER__OP_STATUS__OP_QUOTA
#define CONFLICT      TRACKER__OP_STATUS__OP_CONFLICT
#define BAD           TRACKER__OP_STATUS__OP_BAD

/* One operation under way. */
struct work {
    struct storage *s;
    const struct catalogue_actor *actor;
    const Tracker__Op *op;
    struct catalogue_result *result;
    struct catalogue_changes *changes;
    bool narrow; /* somebody is kept from something */
    bool admin;  /* looked up if `narrow` */
};

void catalogue_result_clear(struct catalogue_result *result)
{
    if (result->has_entry)
        storage_entry_clear(&result->entry);
    result->has_entry = false;
}

void catalogue_changes_clear(struct catalogue_changes *changes)
{
    for (size_t i = 0; i < changes->count; i++)
        storage_entry_clear(&changes->entries[i]);
    free(changes->entries);
    *changes = (struct catalogue_changes){0};
}

void catalogue_entry_message(Tracker__Entry *message, const struct storage_entry *entry)
{
    tracker__entry__init(message);
    message->id = entry->id;
    message->seq = entry->seq;
    message->gone = entry->gone;
    if (entry->gone)
        return;
    /* protobuf-c's structures have no const; packing does not write. */
    union {
        const char *from;
        char *to;
    } name = {.from = entry->name}, owner = {.from = entry->owner};
    union {
        const uint8_t *from;
        uint8_t *to;
    } root = {.from = entry->root};
    message->parent = entry->parent;
    message->name = name.to;
    message->kind = (Tracker__Kind)entry->kind;
    message->mtime = entry->mtime;
    message->mode = entry->mode;
    message->owner = owner.to;
    if (entry->kind == FILE_KIND) {
        message->size = entry->size;
        message->root = (ProtobufCBinaryData){.len = sizeof entry->root, .data = root.to};
    }
    if (entry->target != NULL)
        message->target = entry->target;
    message->xattrs = entry->xattrs;
    if (entry->is_signed) {
        union {
            const uint8_t *from;
            uint8_t *to;
        } signer = {.from = entry->signer}, signature = {.from = entry->signature};
        message->signer = (ProtobufCBinaryData){.len = SIGNER_ID_SIZE, .data = signer.to};
        message->signature = (ProtobufCBinaryData){.len = SIGNATURE_SIZE, .data = signature.to};
    }
}

/* --- small steps
 * ------------------------------------------------------------------------------------- */

/* The answer shows this entry, which the result owns from now on. */
static Tracker__OpStatus show(struct work *w, Tracker__OpStatus status,
                              const struct storage_entry *entry)
{
    catalogue_result_clear(w->result);
    w->result->entry = *entry;
    w->result->has_entry = true;
    return status;
}

static void changed(struct work *w, const struct storage_entry *entry)
{
    struct catalogue_changes *c = w->changes;
    if (c->count == c->room) {
        c->room = c->room == 0 ? 16 : 2 * c->room;
        c->entries = xrealloc(c->entries, c->room * sizeof *c->entries);
    }
    if (c->count == 0)
        c->from = entry->seq - 1;
    storage_entry_copy(&c->entries[c->count++], entry);
    c->to = entry->seq;
}

static void put(struct work *w, struct storage_entry *entry)
{
    storage_entry_put(w->s, entry);
    changed(w, entry);
}

/* What the actor may do in that folder. */
static enum access_level level_of(const struct work *w, uint64_t folder)
{
    if (!w->narrow)
        return ACCESS_WRITE;
    return w->admin ? ACCESS_MANAGE : storage_access(w->s, w->actor->account, folder);
}

/* Whether names in that folder may be made, changed and removed. */
static Tracker__OpStatus may_write(const struct work *w, uint64_t folder)
{
    enum access_level level = level_of(w, folder);
    return level >= ACCESS_WRITE ? OK : level >= ACCESS_READ ? DENIED : NOT_FOUND;
}

static bool may_see(const struct work *w, const struct storage_entry *entry)
{
    return level_of(w, entry->kind == DIRECTORY ? entry->id : entry->parent) >= ACCESS_READ;
}

/* Whether the entry may lose its name, or its place to another. */
static Tracker__OpStatus may_change(const struct work *w, const struct storage_entry *entry)
{
    if (!may_see(w, entry))
        return NOT_FOUND;
    if (level_of(w, entry->parent) < ACCESS_WRITE)
        return DENIED;
    return entry->kind == DIRECTORY ? may_write(w, entry->id) : OK;
}

/* An answer that is about this entry shows it, unless there is nothing to be seen. */
static Tracker__OpStatus refuse(struct work *w, Tracker__OpStatus status,
                                struct storage_entry *entry)
{
    if (status != NOT_FOUND)
        return show(w, status, entry);
    storage_entry_clear(entry);
    return status;
}

/* The name is taken. */
static Tracker__OpStatus taken_by(struct work *w, Tracker__OpStatus status,
                                  struct storage_entry *there)
{
    if (may_see(w, there))
        return show(w, status, there);
    storage_entry_clear(there);
    return EXISTS;
}

/* What the entry was before it is changed, for those who have to be told. */
static void note_was(struct storage_entry *entry, const struct storage_entry *before)
{
    entry->was = before->parent;
    entry->was_file = before->kind == FILE_KIND;
    memcpy(entry->was_root, before->root, sizeof entry->was_root);
}

static bool get_live(struct storage *s, uint64_t id, struct storage_entry *out)
{
    if (!storage_entry_get(s, id, out))
        return false;
    note_was(out, out);
    if (!out->gone)
        return true;
    storage_entry_clear(out);
    return false;
}

/* The id that an operation names, directly or by the operation that made it; 0: none. */
static uint64_t resolve(struct work *w, uint64_t id, uint64_t op)
{
    struct storage_op earlier;
    if (op == 0)
        return id;
    if (!storage_op_get(w->s, w->actor->device, op, &earlier) || earlier.status != OK)
        return 0;
    return earlier.entry;
}

/* Steps from the root to directory `id` (the root itself: 0). *under tells whether `ancestor` is on
 * the way, `id` included. False if `id` is not a live directory; then *status says why. */
static bool depth_of(struct storage *s, uint64_t id, uint64_t ancestor, unsigned *depth,
                     bool *under, Tracker__OpStatus *status)
{
    *depth = 0;
    *under = false;
    for (uint64_t at = id; at != STORAGE_ROOT_ENTRY;) {
        struct storage_entry entry;
        if (*depth > NAME_DEPTH_MAX || !get_live(s, at, &entry)) {
            *status = NOT_FOUND;
            return false;
        }
        uint64_t parent = entry.parent;
        bool directory = entry.kind == DIRECTORY;
        storage_entry_clear(&entry);
        if (!directory) {
            *status = NOT_DIRECTORY;
            return false;
        }
        *under |= at == ancestor;
        (*depth)++;
        at = parent;
    }
    return true;
}

/* The directory and the name that an operation wants to make something under. */
static Tracker__OpStatus find_place(struct work *w, uint64_t moved, uint64_t *parent,
                                    unsigned *depth)
{
    Tracker__OpStatus status;
    bool under;
    if (!name_is_valid(w->op->name, strlen(w->op->name)))
        return BAD_NAME;
    *parent = resolve(w, w->op->parent, w->op->parent_op);
    if (!depth_of(w->s, *parent, moved, depth, &under, &status)) {
        /* "Not a directory" would tell of a file that one may not see. */
        return w->narrow && !w->admin ? NOT_FOUND : status;
    }
    if ((status = may_write(w, *parent)) != OK)
        return status;
    if (under)
        return LOOP;
    return *depth + 1 > NAME_DEPTH_MAX ? TOO_DEEP : OK;
}

/* Is there room for one more, in the swarm, in the directory and among what is the account's? */
static Tracker__OpStatus room_for(const struct work *w, uint64_t directory)
{
    if (storage_entry_count(w->s) >= LIMIT_ENTRIES || storage_directory_full(w->s, directory))
        return FULL;
    return storage_owner_full(w->s, w->actor->account) ? QUOTA : OK;
}

static struct storage_entry entry_new(const struct work *w, uint64_t parent, Tracker__Kind kind)
{
    struct storage_entry entry = {
        .parent = parent, .kind = (uint8_t)kind, .mtime = w->op->mtime, .mode = w->op->mode & 0777};
    snprintf(entry.name, sizeof entry.name, "%s", w->op->name);
    snprintf(entry.owner, sizeof entry.owner, "%s", w->actor->account);
    entry.xattrs = xattrs_copy(w->op->xattrs);
    entry.is_signed = kind != DIRECTORY && w->op->signer.len == SIGNER_ID_SIZE &&
                      w->op->signature.len == SIGNATURE_SIZE;
    if (entry.is_signed) {
        memcpy(entry.signer, w->op->signer.data, SIGNER_ID_SIZE);
        memcpy(entry.signature, w->op->signature.data, SIGNATURE_SIZE);
    }
    return entry;
}

static Tracker__OpStatus add(struct work *w, struct storage_entry *entry)
{
    storage_entry_add(w->s, entry);
    changed(w, entry);
    return show(w, OK, entry);
}

/* --- operations
 * -------------------------------------------------------------------------------------- */

/* Who makes a folder manages it. */
static void rule_owner(struct work *w, const struct storage_entry *entry)
{
    struct storage_rule rule = {
        .folder = entry->id, .kind = ACCESS_ACCOUNT, .level = ACCESS_MANAGE};
    snprintf(rule.who, sizeof rule.who, "%s", w->actor->account);
    storage_rule_put(w->s, &rule);
}

static Tracker__OpStatus op_mkdir(struct work *w)
{
    uint64_t parent;
    unsigned depth;
    struct storage_entry there;
    Tracker__OpStatus status = find_place(w, 0, &parent, &depth);
    if (status != OK)
        return status;
    if (storage_entry_find(w->s, parent, w->op->name, &there))
        return taken_by(w, EXISTS, &there);
    if ((status = room_for(w, parent)) != OK)
        return status;
    struct storage_entry entry = entry_new(w, parent, DIRECTORY);
    entry.ruled = storage_access(w->s, w->actor->account, parent) < ACCESS_MANAGE;
    status = add(w, &entry);
    if (entry.ruled)
        rule_owner(w, &entry);
    return status;
}

static Tracker__OpStatus op_symlink(struct work *w)
{
    uint64_t parent;
    unsigned depth;
    struct storage_entry there;
    size_t length = strlen(w->op->target);
    if (length == 0 || length > LIMIT_SYMLINK || !utf8_is_plain(w->op->target, length))
        return BAD;
    Tracker__OpStatus status = find_place(w, 0, &parent, &depth);
    if (status != OK)
        return status;
    if (storage_entry_find(w->s, parent, w->op->name, &there))
        return taken_by(w, EXISTS, &there);
    if ((status = room_for(w, parent)) != OK)
        return status;
    struct storage_entry entry = entry_new(w, parent, SYMLINK);
    entry.mode = 0777;
    entry.target = xstrdup(w->op->target);
    return add(w, &entry);
}

/* A content that can exist: the empty file, and only it, has the zero root. */
static bool content_is_sound(const Tracker__Op *op)
{
    static const uint8_t zero[STORAGE_ROOT_SIZE];
    return op->root.len == STORAGE_ROOT_SIZE && op->size <= FILE_SIZE_MAX &&
           (op->size == 0) == (memcmp(op->root.data, zero, sizeof zero) == 0) &&
           (op->based_on.len == 0 || op->based_on.len == STORAGE_ROOT_SIZE);
}

/* May this publication take the place of what is there? */
static Tracker__OpStatus judge_replace(const Tracker__Op *op, const struct storage_entry *there)
{
    if (there->kind == DIRECTORY)
        return IS_DIRECTORY;
    if (op->no_replace)
        return EXISTS;
    if (op->replace_any)
        return OK;
    if (there->kind != FILE_KIND)
        return CONFLICT;
    if (op->size == there->size && memcmp(op->root.data, there->root, STORAGE_ROOT_SIZE) == 0)
        return OK;
    bool known = op->based_on.len == STORAGE_ROOT_SIZE &&
                 memcmp(op->based_on.data, there->root, STORAGE_ROOT_SIZE) == 0;
    return known ? OK : CONFLICT;
}

static Tracker__OpStatus op_publish(struct work *w)
{
    const Tracker__Op *op = w->op;
    uint64_t parent;
    unsigned depth;
    struct storage_entry there;
    if (!content_is_sound(op))
        return BAD;
    Tracker__OpStatus status = find_place(w, 0, &parent, &depth);
    if (status != OK)
        return status;
    bool taken = storage_entry_find(w->s, parent, op->name, &there);
    if (taken && (status = judge_replace(op, &there)) != OK)
        return taken_by(w, status, &there);
    if (!taken && (status = room_for(w, parent)) != OK)
        return status;
    if (taken && strcmp(there.owner, w->actor->account) != 0 &&
        storage_owner_full(w->s, w->actor->account))
        return refuse(w, QUOTA, &there); /* what is published is the publisher's */

    struct storage_entry entry = entry_new(w, parent, FILE_KIND);
    entry.size = op->size;
    memcpy(entry.root, op->root.data, STORAGE_ROOT_SIZE);
    if (!taken)
        return add(w, &entry);
    if (op->xattrs == NULL) {
        entry.xattrs = there.xattrs;
        there.xattrs = NULL;
    }
    entry.id = there.id;
    note_was(&entry, &there);
    storage_entry_clear(&there);
    put(w, &entry);
    return show(w, OK, &entry);
}

/* Is it a file with another content than the one that the operation is based on? */
static bool is_newer(const Tracker__Op *op, const struct storage_entry *entry)
{
    return entry->kind == FILE_KIND && op->based_on.len == STORAGE_ROOT_SIZE &&
           memcmp(op->based_on.data, entry->root, STORAGE_ROOT_SIZE) != 0;
}

/* Would everything below `entry` stay within NAME_DEPTH_MAX, `depth` steps under the root? What is not deeper than
 * before does; else all directories below are looked at. */
static bool fits(struct work *w, const struct storage_entry *entry, unsigned depth)
{
    unsigned before;
    bool under;
    Tracker__OpStatus status;

    if (entry->kind != DIRECTORY)
        return true;
    if (depth_of(w->s, entry->parent, 0, &before, &under, &status) && depth <= before + 1)
        return true;
    return depth + storage_entry_height(w->s, entry->id) <= NAME_DEPTH_MAX;
}

/* What is in a directory that moves inherits from elsewhere, and has no new seq of its own. */
static void tell_of_move(struct work *w, const struct storage_entry *entry)
{
    if (w->narrow && entry->kind == DIRECTORY && entry->was != entry->parent)
        storage_renew(w->s, "");
}

static Tracker__OpStatus swap(struct work *w, struct storage_entry *entry,
                              struct storage_entry *there, unsigned depth)
{
    Tracker__OpStatus status;
    unsigned own_depth;
    bool under;
    if (!may_see(w, there))
        return NOT_FOUND;
    if (may_change(w, there) != OK)
        return DENIED;
    if (!depth_of(w->s, entry->parent, there->id, &own_depth, &under, &status))
        return status;
    if (under)
        return LOOP;
    if (!fits(w, entry, depth + 1) || !fits(w, there, own_depth + 1))
        return TOO_DEEP;
    uint64_t parent = entry->parent;
    char name[sizeof entry->name];
    memcpy(name, entry->name, sizeof name);
    entry->parent = there->parent;
    memcpy(entry->name, there->name, sizeof entry->name);
    there->parent = parent;
    memcpy(there->name, name, sizeof there->name);
    storage_entry_unname(w->s, entry->id);
    tell_of_move(w, there);
    tell_of_move(w, entry);
    put(w, there);
    put(w, entry);
    return OK;
}

/* May `entry` take the place of `there`, as rename(2) has it? */
static Tracker__OpStatus judge_over(struct work *w, const struct storage_entry *entry,
                                    const struct storage_entry *there)
{
    if (!may_see(w, there) || w->op->no_replace)
        return EXISTS;
    if (may_change(w, there) != OK)
        return DENIED;
    if ((w->op->over != 0 && w->op->over != there->id) || is_newer(w->op, there))
        return CONFLICT;
    if (there->kind == DIRECTORY && entry->kind != DIRECTORY)
        return IS_DIRECTORY;
    if (there->kind != DIRECTORY && entry->kind == DIRECTORY)
        return NOT_DIRECTORY;
    if (there->kind == DIRECTORY && storage_entry_has_children(w->s, there->id))
        return NOT_EMPTY;
    return OK;
}

static Tracker__OpStatus move(struct work *w, struct storage_entry *entry, uint64_t parent,
                              unsigned depth)
{
    struct storage_entry there = {0};
    bool taken = storage_entry_find(w->s, parent, w->op->name, &there);
    Tracker__OpStatus status = OK;
    note_was(&there, &there);
    if (taken && there.id == entry->id)
        goto done; /* it is there already */
    if (w->op->exchange) {
        status = taken ? swap(w, entry, &there, depth) : NOT_FOUND;
        goto done;
    }
    if (taken && (status = judge_over(w, entry, &there)) != OK) {
        if (status == EXISTS || status == CONFLICT)
            return taken_by(w, status, &there);
        goto done;
    }
    if (!fits(w, entry, depth + 1)) {
        status = TOO_DEEP;
        goto done;
    }
    if (!taken && parent != entry->parent && storage_directory_full(w->s, parent)) {
        status = FULL;
        goto done;
    }
    if (taken) {
        there.gone = true;
        put(w, &there);
    }
    entry->parent = parent;
    memset(entry->name, 0, sizeof entry->name);
    snprintf(entry->name, sizeof entry->name, "%s", w->op->name);
    tell_of_move(w, entry);
    put(w, entry);
done:
    storage_entry_clear(&there);
    return status;
}

static Tracker__OpStatus op_rename(struct work *w)
{
    struct storage_entry entry;
    uint64_t parent;
    unsigned depth;
    uint64_t id = resolve(w, w->op->id, w->op->id_op);
    if (id == STORAGE_ROOT_ENTRY)
        return DENIED;
    if (!get_live(w->s, id, &entry))
        return NOT_FOUND;
    Tracker__OpStatus status = may_change(w, &entry);
    if (status == OK)
        status = find_place(w, entry.id, &parent, &depth);
    if (status == OK)
        status = move(w, &entry, parent, depth);
    if (status == OK)
        return show(w, OK, &entry);
    storage_entry_clear(&entry);
    return status;
}

static Tracker__OpStatus op_remove(struct work *w)
{
    struct storage_entry entry;
    uint64_t id = resolve(w, w->op->id, w->op->id_op);
    if (id == STORAGE_ROOT_ENTRY)
        return DENIED;
    if (!get_live(w->s, id, &entry))
        return NOT_FOUND;
    Tracker__OpStatus status = may_change(w, &entry);
    if (status == OK && entry.kind == DIRECTORY && storage_entry_has_children(w->s, entry.id))
        status = NOT_EMPTY;
    else if (is_newer(w->op, &entry))
        status = CONFLICT;
    if (status != OK)
        return refuse(w, status, &entry);
    entry.gone = true;
    put(w, &entry);
    return show(w, OK, &entry);
}

static Tracker__OpStatus op_attr(struct work *w)
{
    struct storage_entry entry;
    uint64_t id = resolve(w, w->op->id, w->op->id_op);
    if (id == STORAGE_ROOT_ENTRY)
        return DENIED;
    if (!get_live(w->s, id, &entry))
        return NOT_FOUND;
    Tracker__OpStatus status = may_write(w, entry.kind == DIRECTORY ? entry.id : entry.parent);
    if (status != OK)
        return refuse(w, status, &entry);
    uint32_t mode = w->op->set_mode && entry.kind != SYMLINK ? w->op->mode & 0777 : entry.mode;
    int64_t mtime = w->op->set_mtime ? w->op->mtime : entry.mtime;
    Tracker__Xattrs *xattrs;
    if (xattrs_change(entry.xattrs, w->op->xattrs, w->op->xattrs_removed, w->op->n_xattrs_removed,
                      &xattrs) != 0)
        return refuse(w, FULL, &entry);
    bool timed = w->op->set_mtime && entry.kind == DIRECTORY; /* counts, whatever it was */
    bool same = !timed && mode == entry.mode && mtime == entry.mtime &&
                xattrs_are_equal(xattrs, entry.xattrs);
    xattrs_free(entry.xattrs);
    entry.xattrs = xattrs;
    if (same)
        return show(w, OK, &entry);
    entry.mode = mode;
    entry.mtime = mtime;
    put(w, &entry);
    return show(w, OK, &entry);
}

static const struct {
    Tracker__OpKind kind;
    Tracker__OpStatus (*run)(struct work *);
} operations[] = {
    {TRACKER__OP_KIND__OP_MKDIR, op_mkdir},     {TRACKER__OP_KIND__OP_PUBLISH, op_publish},
    {TRACKER__OP_KIND__OP_SYMLINK, op_symlink}, {TRACKER__OP_KIND__OP_RENAME, op_rename},
    {TRACKER__OP_KIND__OP_REMOVE, op_remove},   {TRACKER__OP_KIND__OP_ATTR, op_attr},
};

static Tracker__OpStatus run(struct work *w)
{
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (operations[i].kind == w->op->kind)
            return operations[i].run(w);
    return BAD;
}

void catalogue_apply(struct storage *s, const struct catalogue_actor *actor, const Tracker__Op *op,
                     struct catalogue_result *result, struct catalogue_changes *changes)
{
    struct storage_op earlier;
    struct work work = {.s = s, .actor = actor, .op = op, .result = result, .changes = changes};
    *result = (struct catalogue_result){.op = op->op, .status = BAD};
    if (op->op == 0 || !xattrs_are_sound(op->xattrs) || op->n_xattrs_removed > LIMIT_XATTRS)
        return;
    if (storage_op_get(s, actor->device, op->op, &earlier)) {
        result->status = (Tracker__OpStatus)earlier.status;
        result->has_entry =
            earlier.entry != 0 && storage_entry_get(s, earlier.entry, &result->entry);
        return;
    }
    work.narrow = storage_rules_narrow(s);
    struct storage_account account;
    work.admin = work.narrow && storage_account_get(s, actor->account, &account) && account.admin;
    result->status = run(&work);
    if (result->status == FULL || result->status == QUOTA)
        return; /* there may be room next time */
    struct storage_op answer = {
        .op = op->op, .status = result->status, .entry = result->has_entry ? result->entry.id : 0};
    storage_op_put(s, actor->device, &answer);
}

size_t catalogue_transfer(struct storage *s, const char *from, const char *to, uint64_t *after,
                          size_t max, struct catalogue_changes *changes)
{
    struct work work = {.s = s, .changes = changes};
    uint64_t *ids = xcalloc(max, sizeof *ids);
    size_t count = storage_entries_owned(s, from, *after, ids, max);
    for (size_t i = 0; i < count && !storage_failed(s); i++) {
        struct storage_entry entry;
        *after = ids[i];
        if (!get_live(s, ids[i], &entry))
            continue;
        snprintf(entry.owner, sizeof entry.owner, "%s", to);
        put(&work, &entry);
        storage_entry_clear(&entry);
    }
    free(ids);
    return count;
}
