/* A tracker in memory, for tests of the replica: carries out operations as man/p2p-protocol.7 says, numbers
 * changes, remembers answers. Small and slow on purpose: it is the reference. One per test; no threads. */
#ifndef TESTS_UNIT_CATALOGUE_TRACKER_H
#define TESTS_UNIT_CATALOGUE_TRACKER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/name.h"
#include "proto/tracker.pb-c.h"

#define REF_ENTRIES 4096
#define REF_ANSWERS 16384

struct ref_entry {
    uint64_t id, parent, seq, size;
    int64_t mtime;
    uint32_t mode;
    Tracker__Kind kind;
    bool gone;
    char name[256], owner[65], target[64];
    uint8_t root[32];
};

struct ref_answer {
    unsigned device;
    uint64_t op, id;
    Tracker__OpStatus status;
};

struct ref {
    struct ref_entry entries[REF_ENTRIES]; /* entry i has id i + 2 */
    size_t count;
    uint64_t seq;
    struct ref_answer answers[REF_ANSWERS];
    size_t answer_count;
    uint8_t generation[16];
    Tracker__OpStatus full; /* not 0: takes nothing new, and says so */
    uint64_t log[65536];    /* ids in the order of their changes: what is pushed live */
};

static inline struct ref_entry *ref_get(struct ref *r, uint64_t id)
{
    if (id < 2 || id - 2 >= r->count || r->entries[id - 2].gone)
        return NULL;
    return &r->entries[id - 2];
}

static inline struct ref_entry *ref_find(struct ref *r, uint64_t parent, const char *name)
{
    for (size_t i = 0; i < r->count; i++) {
        struct ref_entry *e = &r->entries[i];
        if (!e->gone && e->parent == parent && strcmp(e->name, name) == 0)
            return e;
    }
    return NULL;
}

static inline bool ref_has_children(struct ref *r, uint64_t id)
{
    for (size_t i = 0; i < r->count; i++)
        if (!r->entries[i].gone && r->entries[i].parent == id)
            return true;
    return false;
}

static inline void ref_changed(struct ref *r, struct ref_entry *e)
{
    e->seq = ++r->seq;
    r->log[r->seq % 65536] = e->id;
}

static inline uint64_t ref_resolve(struct ref *r, unsigned device, uint64_t id, uint64_t op)
{
    if (op == 0)
        return id;
    for (size_t i = 0; i < r->answer_count; i++)
        if (r->answers[i].device == device && r->answers[i].op == op)
            return r->answers[i].status == TRACKER__OP_STATUS__OP_OK ? r->answers[i].id : 0;
    return 0;
}

/* 0, or why nothing can be put there. `moved` must not be above it. */
static inline Tracker__OpStatus ref_place(struct ref *r, unsigned device, const Tracker__Op *op,
                                          uint64_t moved, uint64_t *parent)
{
    if (!name_is_valid(op->name, strlen(op->name)))
        return TRACKER__OP_STATUS__OP_BAD_NAME;
    *parent = ref_resolve(r, device, op->parent, op->parent_op);
    for (uint64_t at = *parent; at != 1;) {
        struct ref_entry *e = ref_get(r, at);
        if (e == NULL)
            return TRACKER__OP_STATUS__OP_NOT_FOUND;
        if (e->kind != TRACKER__KIND__KIND_DIRECTORY)
            return TRACKER__OP_STATUS__OP_NOT_DIRECTORY;
        if (at == moved)
            return TRACKER__OP_STATUS__OP_LOOP;
        at = e->parent;
    }
    return TRACKER__OP_STATUS__OP_OK;
}

static inline struct ref_entry *ref_new(struct ref *r, uint64_t parent, Tracker__Kind kind,
                                        const Tracker__Op *op, const char *owner)
{
    struct ref_entry *e = &r->entries[r->count++];
    if (r->count >= REF_ENTRIES)
        abort();
    memset(e, 0, sizeof *e);
    e->id = r->count + 1;
    e->parent = parent;
    e->kind = kind;
    e->mtime = op->mtime;
    e->mode = op->mode & 0777;
    snprintf(e->name, sizeof e->name, "%s", op->name);
    snprintf(e->owner, sizeof e->owner, "%s", owner);
    return e;
}

static inline Tracker__OpStatus ref_make(struct ref *r, unsigned device, const char *owner,
                                         const Tracker__Op *op, uint64_t *id)
{
    uint64_t parent;
    Tracker__OpStatus status = ref_place(r, device, op, 0, &parent);
    if (status != TRACKER__OP_STATUS__OP_OK)
        return status;
    struct ref_entry *there = ref_find(r, parent, op->name), *e;
    if (op->kind != TRACKER__OP_KIND__OP_PUBLISH) {
        if (there != NULL) {
            *id = there->id;
            return TRACKER__OP_STATUS__OP_EXISTS;
        }
        if (r->full != 0)
            return r->full;
        bool link = op->kind == TRACKER__OP_KIND__OP_SYMLINK;
        e = ref_new(r, parent, link ? TRACKER__KIND__KIND_SYMLINK : TRACKER__KIND__KIND_DIRECTORY,
                    op, owner);
        if (link) {
            snprintf(e->target, sizeof e->target, "%s", op->target);
            e->mode = 0777;
        }
        ref_changed(r, e);
        *id = e->id;
        return TRACKER__OP_STATUS__OP_OK;
    }
    if (there != NULL) {
        *id = there->id;
        if (there->kind == TRACKER__KIND__KIND_DIRECTORY)
            return TRACKER__OP_STATUS__OP_IS_DIRECTORY;
        if (there->kind != TRACKER__KIND__KIND_FILE)
            return TRACKER__OP_STATUS__OP_CONFLICT;
        bool same = memcmp(there->root, op->root.data, 32) == 0;
        bool known = op->based_on.len == 32 && memcmp(there->root, op->based_on.data, 32) == 0;
        if (!same && !known)
            return TRACKER__OP_STATUS__OP_CONFLICT;
        e = there;
        e->mtime = op->mtime;
        e->mode = op->mode & 0777;
        snprintf(e->owner, sizeof e->owner, "%s", owner);
    } else {
        if (r->full != 0)
            return r->full;
        e = ref_new(r, parent, TRACKER__KIND__KIND_FILE, op, owner);
    }
    e->size = op->size;
    memcpy(e->root, op->root.data, 32);
    ref_changed(r, e);
    *id = e->id;
    return TRACKER__OP_STATUS__OP_OK;
}

static inline bool ref_is_newer(const Tracker__Op *op, const struct ref_entry *e)
{
    return e->kind == TRACKER__KIND__KIND_FILE && op->based_on.len == 32 &&
           memcmp(op->based_on.data, e->root, 32) != 0;
}

static inline Tracker__OpStatus ref_rename(struct ref *r, unsigned device, const Tracker__Op *op,
                                           struct ref_entry *e, uint64_t *id)
{
    uint64_t parent, ignored;
    Tracker__OpStatus status = ref_place(r, device, op, e->id, &parent);
    if (status != TRACKER__OP_STATUS__OP_OK)
        return status;
    struct ref_entry *there = ref_find(r, parent, op->name);
    *id = e->id;
    if (there == e)
        return TRACKER__OP_STATUS__OP_OK;
    if (op->exchange && there == NULL)
        return TRACKER__OP_STATUS__OP_NOT_FOUND;
    if (op->exchange) {
        Tracker__Op back = TRACKER__OP__INIT;
        back.parent = e->parent;
        back.name = e->name;
        status = ref_place(r, device, &back, there->id, &ignored);
        if (status != TRACKER__OP_STATUS__OP_OK)
            return status;
        char name[256];
        snprintf(name, sizeof name, "%s", e->name);
        there->parent = e->parent;
        snprintf(e->name, sizeof e->name, "%s", there->name);
        snprintf(there->name, sizeof there->name, "%s", name);
        e->parent = parent;
        ref_changed(r, there);
        ref_changed(r, e);
        return TRACKER__OP_STATUS__OP_OK;
    }
    if (there != NULL) {
        bool directory = there->kind == TRACKER__KIND__KIND_DIRECTORY;
        if (op->no_replace) {
            *id = there->id;
            return TRACKER__OP_STATUS__OP_EXISTS;
        }
        if ((op->over != 0 && op->over != there->id) || ref_is_newer(op, there)) {
            *id = there->id;
            return TRACKER__OP_STATUS__OP_CONFLICT;
        }
        if (directory && e->kind != TRACKER__KIND__KIND_DIRECTORY)
            return TRACKER__OP_STATUS__OP_IS_DIRECTORY;
        if (!directory && e->kind == TRACKER__KIND__KIND_DIRECTORY)
            return TRACKER__OP_STATUS__OP_NOT_DIRECTORY;
        if (directory && ref_has_children(r, there->id))
            return TRACKER__OP_STATUS__OP_NOT_EMPTY;
        there->gone = true;
        ref_changed(r, there);
    }
    e->parent = parent;
    snprintf(e->name, sizeof e->name, "%s", op->name);
    ref_changed(r, e);
    return TRACKER__OP_STATUS__OP_OK;
}

static inline Tracker__OpStatus ref_run(struct ref *r, unsigned device, const char *owner,
                                        const Tracker__Op *op, uint64_t *id)
{
    if (op->kind == TRACKER__OP_KIND__OP_MKDIR || op->kind == TRACKER__OP_KIND__OP_PUBLISH ||
        op->kind == TRACKER__OP_KIND__OP_SYMLINK)
        return ref_make(r, device, owner, op, id);
    struct ref_entry *e = ref_get(r, ref_resolve(r, device, op->id, op->id_op));
    if (e == NULL)
        return TRACKER__OP_STATUS__OP_NOT_FOUND;
    *id = e->id;
    if (op->kind == TRACKER__OP_KIND__OP_RENAME)
        return ref_rename(r, device, op, e, id);
    if (op->kind == TRACKER__OP_KIND__OP_REMOVE) {
        if (ref_has_children(r, e->id))
            return TRACKER__OP_STATUS__OP_NOT_EMPTY;
        if (ref_is_newer(op, e))
            return TRACKER__OP_STATUS__OP_CONFLICT;
        e->gone = true;
    } else {
        if (op->set_mode && e->kind != TRACKER__KIND__KIND_SYMLINK)
            e->mode = op->mode & 0777;
        if (op->set_mtime)
            e->mtime = op->mtime;
    }
    ref_changed(r, e);
    return TRACKER__OP_STATUS__OP_OK;
}

static inline Tracker__Entry *ref_message(const struct ref_entry *from)
{
    Tracker__Entry e = TRACKER__ENTRY__INIT;
    struct ref_entry copy = *from;
    e.id = copy.id;
    e.seq = copy.seq;
    e.gone = copy.gone;
    if (!copy.gone) {
        e.parent = copy.parent;
        e.name = copy.name;
        e.kind = copy.kind;
        e.size = copy.size;
        e.mtime = copy.mtime;
        e.mode = copy.mode;
        e.owner = copy.owner;
        if (copy.kind == TRACKER__KIND__KIND_FILE) {
            e.root.data = copy.root;
            e.root.len = 32;
        }
        e.target = copy.target;
    }
    size_t size = tracker__entry__get_packed_size(&e);
    uint8_t *packed = xmalloc(size + 1);
    tracker__entry__pack(&e, packed);
    Tracker__Entry *result = tracker__entry__unpack(NULL, size, packed);
    free(packed);
    return result;
}

/* The answer; tracker__result__free_unpacked frees it. */
static inline Tracker__Result *ref_apply(struct ref *r, unsigned device, const char *owner,
                                         const Tracker__Op *op)
{
    Tracker__Result *result = xcalloc(1, sizeof *result);
    uint64_t id = 0;
    tracker__result__init(result);
    result->op = op->op;
    for (size_t i = 0; i < r->answer_count; i++) {
        const struct ref_answer *a = &r->answers[i];
        if (a->device != device || a->op != op->op)
            continue;
        result->status = a->status;
        if (a->id != 0)
            result->entry = ref_message(&r->entries[a->id - 2]);
        return result;
    }
    result->status = ref_run(r, device, owner, op, &id);
    if (id != 0)
        result->entry = ref_message(&r->entries[id - 2]);
    if (result->status == TRACKER__OP_STATUS__OP_FULL ||
        result->status == TRACKER__OP_STATUS__OP_QUOTA)
        return result;
    if (r->answer_count >= REF_ANSWERS)
        abort();
    r->answers[r->answer_count++] = (struct ref_answer){device, op->op, id, result->status};
    return result;
}

static inline Tracker__Changes *ref_changes_new(const struct ref *r)
{
    Tracker__Changes *changes = xcalloc(1, sizeof *changes);
    tracker__changes__init(changes);
    changes->generation.len = 16;
    changes->generation.data = xmemdup(r->generation, 16);
    return changes;
}

static inline void ref_changes_add(Tracker__Changes *changes, Tracker__Entry *e)
{
    changes->entries =
        xrealloc(changes->entries, (changes->n_entries + 1) * sizeof(Tracker__Entry *));
    changes->entries[changes->n_entries++] = e;
}

/* What a subscription from `since` gets first: the entries in the order of their last change. */
static inline Tracker__Changes *ref_since(const struct ref *r, uint64_t since, bool from_scratch)
{
    Tracker__Changes *changes = ref_changes_new(r);
    for (uint64_t seq = since + 1; seq <= r->seq; seq++) {
        const struct ref_entry *e = &r->entries[r->log[seq % 65536] - 2];
        if (e->seq == seq && !(from_scratch && e->gone))
            ref_changes_add(changes, ref_message(e));
    }
    changes->seq = r->seq;
    changes->from_scratch = from_scratch;
    changes->live = true;
    return changes;
}

#endif
