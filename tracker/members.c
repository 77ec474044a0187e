/* Accounts and devices in memory: two tables over the storage's rows, by name and by device id. */
#include "tracker/members.h"

#include "base/mem.h"
#include "tracker/table.h"

/* ca_issue_device dates certificates this far back (crypto/identity.h). */
#define CERTIFICATE_BACKDATED 3600

struct account {
    struct table_node node;
    struct member_account is;
};
struct device {
    struct table_node node;
    struct member_device is;
};
struct members {
    uint64_t seed;
    struct table accounts, devices;
};

static struct account *find_account(const struct members *m, const char *name)
{
    uint64_t hash = table_hash(m->seed, name, strlen(name));
    for (struct table_node *node = table_first(&m->accounts, hash); node != NULL;
         node = table_next(node)) {
        struct account *a = (struct account *)(void *)node;
        if (strcmp(a->is.name, name) == 0)
            return a;
    }
    return NULL;
}

static struct device *find_device(const struct members *m, const uint8_t id[DEVICE_ID_SIZE])
{
    uint64_t hash = table_hash(m->seed, id, DEVICE_ID_SIZE);
    for (struct table_node *node = table_first(&m->devices, hash); node != NULL;
         node = table_next(node)) {
        struct device *d = (struct device *)(void *)node;
        if (memcmp(d->is.id, id, DEVICE_ID_SIZE) == 0)
            return d;
    }
    return NULL;
}

const struct member_account *members_account(const struct members *m, const char *name)
{
    struct account *a = find_account(m, name);
    return a == NULL ? NULL : &a->is;
}

const struct member_device *members_device(const struct members *m,
                                           const uint8_t id[DEVICE_ID_SIZE])
{
    struct device *d = find_device(m, id);
    return d == NULL ? NULL : &d->is;
}

void members_set_account(struct members *m, const struct storage_account *row)
{
    struct account *a = find_account(m, row->name);
    if (a == NULL) {
        a = xcalloc(1, sizeof *a);
        memcpy(a->is.name, row->name, sizeof a->is.name);
        table_add(&m->accounts, &a->node, table_hash(m->seed, row->name, strlen(row->name)));
    }
    a->is.admin = row->admin;
    a->is.disabled = row->disabled;
}

void members_set_device(struct members *m, const struct storage_device *row)
{
    struct device *d = find_device(m, row->id);
    if (d == NULL) {
        d = xcalloc(1, sizeof *d);
        memcpy(d->is.id, row->id, sizeof d->is.id);
        table_add(&m->devices, &d->node, table_hash(m->seed, row->id, DEVICE_ID_SIZE));
    }
    memcpy(d->is.account, row->account, sizeof d->is.account);
    d->is.void_before = row->void_before;
    d->is.logged_out = row->logged_out;
}

void members_drop_device(struct members *m, const uint8_t id[DEVICE_ID_SIZE])
{
    struct device *d = find_device(m, id);
    if (d == NULL)
        return;
    table_remove(&m->devices, &d->node);
    free(d);
}

static void load_account(const struct storage_account *row, void *arg)
{
    members_set_account(arg, row);
}

static void load_device(const struct storage_device *row, void *arg)
{
    members_set_device(arg, row);
}

struct members *members_load(struct storage *storage, uint64_t seed)
{
    struct members *m = xcalloc(1, sizeof *m);
    m->seed = seed;
    table_init(&m->accounts);
    table_init(&m->devices);
    if (storage_begin(storage, false)) {
        storage_account_each(storage, load_account, m);
        storage_device_each(storage, NULL, load_device, m);
        if (storage_commit(storage))
            return m;
    }
    members_free(m);
    return NULL;
}

static void table_drop(struct table *table)
{
    struct table_node *node;
    while ((node = table_walk(table, NULL)) != NULL) {
        table_remove(table, node);
        free(node);
    }
    table_clear(table);
}

void members_free(struct members *m)
{
    if (m == NULL)
        return;
    table_drop(&m->accounts);
    table_drop(&m->devices);
    free(m);
}

enum members_verdict members_judge(const struct members *m,
                                   const struct certificate_subject *subject)
{
    if (subject->role != CERTIFICATE_DEVICE)
        return MEMBERS_UNKNOWN;
    struct account *a = find_account(m, subject->account);
    struct device *d = find_device(m, subject->device);
    if (a == NULL || d == NULL || strcmp(d->is.account, subject->account) != 0)
        return MEMBERS_UNKNOWN;
    if (a->is.disabled)
        return MEMBERS_DISABLED;
    if (subject->not_before + CERTIFICATE_BACKDATED < d->is.void_before)
        return MEMBERS_VOID;
    return MEMBERS_GOOD;
}

size_t members_revoked(const struct members *m, int64_t since, uint8_t (*out)[DEVICE_ID_SIZE],
                       size_t max)
{
    size_t count = 0;
    struct table_node *node = table_walk(&m->devices, NULL);
    for (; node != NULL; node = table_walk(&m->devices, node)) {
        struct device *d = (struct device *)(void *)node;
        if (!d->is.logged_out || d->is.void_before < since)
            continue;
        if (count < max)
            memcpy(out[count], d->is.id, DEVICE_ID_SIZE);
        count++;
    }
    return count;
}
