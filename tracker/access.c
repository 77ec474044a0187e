/* Rules, groups, folders and contents in memory: see access.h.
 *
 * Owns copies of names; leaves rows to storage_access.c. One thread. Objects: an account or group is a `principal`,
 * made when it is first named; a folder has its rules, a principal the list of folders that have rules for it.
 *
 * Invariants:
 *   1. a rule is in its folder's list and its principal's list, or in neither; a removed folder's is in the former;
 *   2. `narrow` counts rules below "write" of whatever kind; the swarm is plain while it is 0 and everyone may write
 *      at the root;
 *   3. what is derived (the folders that are only shown) carries the version it was derived from, and is made anew
 *      when that has passed. */
#include "tracker/access.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "tracker/table.h"

struct folder;

struct principal {
    struct table_node node; /* access.principals */
    enum access_kind kind;
    uint64_t *folders; /* that have a rule for it */
    uint32_t folders_count, folders_room;
    char name[ACCOUNT_BYTES_MAX + 1];
};

struct rule {
    struct principal *who;
    enum access_level level;
    uint32_t listed; /* at who->folders[]; means nothing once the folder is gone */
};

struct folder {
    struct table_node node; /* access.folders */
    uint64_t id, parent;
    struct rule *rules;
    uint32_t rules_count;
    bool gone;
    struct folder *next_gone;
};

struct access_account {
    struct table_node node; /* access.accounts */
    struct principal *self;
    struct principal *groups[LIMIT_ACCOUNT_GROUPS];
    unsigned groups_count;
    uint64_t version; /* of its own rules and groups */
    uint64_t shown_version, shown_own;
    uint64_t *shown; /* folders on the way to what it may read, sorted */
    uint32_t shown_count;
};

struct content_place {
    struct table_node
        node; /* access.contents: by a seeded hash of the root, which nobody outside can aim at */
    uint64_t folder;
    uint32_t files;
    bool lately;
    struct content_place *next_lately;
};

struct access {
    uint64_t seed;
    struct table principals, folders, accounts, contents;
    struct principal *everyone;
    uint64_t version; /* of what concerns all: groups' and everyone's rules, where folders are */
    unsigned narrow;
    struct folder *gone, **gone_end;
    unsigned gone_count;
    struct content_place *lately, **lately_end;
    unsigned lately_count;
};

/* --- finding -------------------------------------------------------------------------------------------- */

static struct principal *principal_get(struct access *a, enum access_kind kind, const char *name,
                                       bool make)
{
    uint64_t hash = table_hash(a->seed + kind, name, strlen(name));
    for (struct table_node *node = table_first(&a->principals, hash); node != NULL;
         node = table_next(node)) {
        struct principal *p = (struct principal *)(void *)node;
        if (p->kind == kind && strcmp(p->name, name) == 0)
            return p;
    }
    if (!make)
        return NULL;
    struct principal *p = xcalloc(1, sizeof *p);
    p->kind = kind;
    snprintf(p->name, sizeof p->name, "%s", name);
    table_add(&a->principals, &p->node, hash);
    return p;
}

static uint64_t folder_hash(const struct access *a, uint64_t id)
{
    return table_hash(a->seed, &id, sizeof id);
}

static struct folder *folder_get(const struct access *a, uint64_t id)
{
    for (struct table_node *node = table_first(&a->folders, folder_hash(a, id)); node != NULL;
         node = table_next(node)) {
        struct folder *f = (struct folder *)(void *)node;
        if (f->id == id)
            return f;
    }
    return NULL;
}

static struct folder *folder_make(struct access *a, uint64_t id, uint64_t parent)
{
    struct folder *f = xcalloc(1, sizeof *f);
    f->id = id;
    f->parent = parent;
    table_add(&a->folders, &f->node, folder_hash(a, id));
    return f;
}

static struct access_account *account_find(const struct access *a, const char *name)
{
    uint64_t hash = table_hash(a->seed, name, strlen(name));
    for (struct table_node *node = table_first(&a->accounts, hash); node != NULL;
         node = table_next(node)) {
        struct access_account *account = (struct access_account *)(void *)node;
        if (strcmp(account->self->name, name) == 0)
            return account;
    }
    return NULL;
}

struct access_account *access_account(struct access *a, const char *name)
{
    struct access_account *account = account_find(a, name);
    if (account == NULL) {
        account = xcalloc(1, sizeof *account);
        account->self = principal_get(a, ACCESS_ACCOUNT, name, true);
        table_add(&a->accounts, &account->node, table_hash(a->seed, name, strlen(name)));
    }
    return account;
}

struct access *access_new(uint64_t seed)
{
    struct access *a = xcalloc(1, sizeof *a);
    a->seed = seed;
    table_init(&a->principals);
    table_init(&a->folders);
    table_init(&a->accounts);
    table_init(&a->contents);
    a->gone_end = &a->gone;
    a->lately_end = &a->lately;
    a->version = 1;
    a->everyone = principal_get(a, ACCESS_EVERYONE, "", true);
    folder_make(a, ACCESS_ROOT_FOLDER, 0);
    return a;
}

void access_free(struct access *a)
{
    struct table_node *node;
    if (a == NULL)
        return;
    while ((node = table_walk(&a->folders, NULL)) != NULL) {
        struct folder *f = (struct folder *)(void *)node;
        table_remove(&a->folders, node);
        free(f->rules);
        free(f);
    }
    while ((node = table_walk(&a->accounts, NULL)) != NULL) {
        struct access_account *account = (struct access_account *)(void *)node;
        table_remove(&a->accounts, node);
        free(account->shown);
        free(account);
    }
    while ((node = table_walk(&a->principals, NULL)) != NULL) {
        struct principal *p = (struct principal *)(void *)node;
        table_remove(&a->principals, node);
        free(p->folders);
        free(p);
    }
    while ((node = table_walk(&a->contents, NULL)) != NULL) {
        table_remove(&a->contents, node);
        free((struct content_place *)(void *)node);
    }
    table_clear(&a->folders);
    table_clear(&a->accounts);
    table_clear(&a->principals);
    table_clear(&a->contents);
    free(a);
}

/* --- rules ---------------------------------------------------------------------------------------------- */

/* Something changed for this principal: who it concerns derives anew. */
static void passed(struct access *a, const struct principal *who)
{
    struct access_account *account =
        who->kind == ACCESS_ACCOUNT ? account_find(a, who->name) : NULL;
    if (who->kind != ACCESS_ACCOUNT)
        a->version++;
    else if (account != NULL)
        account->version++;
}

static struct rule *rule_of(const struct folder *f, const struct principal *who)
{
    for (uint32_t i = 0; i < f->rules_count; i++)
        if (f->rules[i].who == who)
            return &f->rules[i];
    return NULL;
}

static void rule_unlist(struct access *a, const struct folder *f, const struct rule *rule)
{
    struct principal *who = rule->who;
    a->narrow -= rule->level < ACCESS_WRITE;
    CHECK(rule->listed < who->folders_count && who->folders[rule->listed] == f->id);
    uint64_t last = who->folders[--who->folders_count];
    if (last != f->id) {
        who->folders[rule->listed] = last;
        rule_of(folder_get(a, last), who)->listed = rule->listed;
    }
    passed(a, who);
}

static void rule_remove(struct access *a, struct folder *f, struct rule *rule)
{
    rule_unlist(a, f, rule);
    *rule = f->rules[--f->rules_count];
}

void access_rule_set(struct access *a, uint64_t folder, enum access_kind kind, const char *name,
                     enum access_level level)
{
    struct folder *f = folder_get(a, folder);
    struct principal *who = principal_get(a, kind, kind == ACCESS_EVERYONE ? "" : name, true);
    if (f == NULL || f->gone)
        return;
    struct rule *rule = rule_of(f, who);
    if (rule == NULL) {
        f->rules = xrealloc(f->rules, (f->rules_count + 1) * sizeof *f->rules);
        rule = &f->rules[f->rules_count++];
        *rule = (struct rule){.who = who, .level = ACCESS_MANAGE};
        if (who->folders_count == who->folders_room) {
            who->folders_room = who->folders_room == 0 ? 4 : 2 * who->folders_room;
            who->folders = xrealloc(who->folders, who->folders_room * sizeof *who->folders);
        }
        rule->listed = who->folders_count;
        who->folders[who->folders_count++] = folder;
    }
    a->narrow -= rule->level < ACCESS_WRITE;
    a->narrow += level < ACCESS_WRITE;
    rule->level = level;
    passed(a, who);
}

void access_rule_clear(struct access *a, uint64_t folder, enum access_kind kind, const char *name)
{
    struct folder *f = folder_get(a, folder);
    struct principal *who = principal_get(a, kind, kind == ACCESS_EVERYONE ? "" : name, false);
    struct rule *rule = f == NULL || who == NULL ? NULL : rule_of(f, who);
    if (rule != NULL)
        rule_remove(a, f, rule);
}

static void rules_drop(struct access *a, struct principal *who)
{
    while (who != NULL && who->folders_count > 0) {
        struct folder *f = folder_get(a, who->folders[who->folders_count - 1]);
        CHECK(f != NULL);
        rule_remove(a, f, rule_of(f, who));
    }
}

void access_group_join(struct access *a, const char *group, const char *name)
{
    struct access_account *account = access_account(a, name);
    struct principal *p = principal_get(a, ACCESS_GROUP, group, true);
    for (unsigned i = 0; i < account->groups_count; i++)
        if (account->groups[i] == p)
            return;
    if (account->groups_count < LIMIT_ACCOUNT_GROUPS)
        account->groups[account->groups_count++] = p;
    account->version++;
}

static void leave(struct access_account *account, const struct principal *group)
{
    for (unsigned i = 0; i < account->groups_count; i++)
        if (account->groups[i] == group) {
            account->groups[i] = account->groups[--account->groups_count];
            account->version++;
            return;
        }
}

void access_group_leave(struct access *a, const char *group, const char *name)
{
    struct access_account *account = account_find(a, name);
    struct principal *p = principal_get(a, ACCESS_GROUP, group, false);
    if (account != NULL && p != NULL)
        leave(account, p);
}

void access_group_drop(struct access *a, const char *group)
{
    struct principal *p = principal_get(a, ACCESS_GROUP, group, false);
    if (p == NULL)
        return;
    rules_drop(a, p);
    for (struct table_node *node = table_walk(&a->accounts, NULL); node != NULL;
         node = table_walk(&a->accounts, node))
        leave((struct access_account *)(void *)node, p);
}

void access_account_drop(struct access *a, const char *name)
{
    struct access_account *account = account_find(a, name);
    rules_drop(a, principal_get(a, ACCESS_ACCOUNT, name, false));
    if (account != NULL) {
        account->groups_count = 0;
        account->version++;
    }
}

bool access_is_plain(const struct access *a)
{
    const struct rule *rule =
        a->narrow > 0 ? NULL : rule_of(folder_get(a, ACCESS_ROOT_FOLDER), a->everyone);
    return rule != NULL && rule->level >= ACCESS_WRITE;
}

/* --- folders and contents ------------------------------------------------------------------------------- */

/* Removed folders are remembered up to a bound; the oldest are forgotten. */
static void gone_trim(struct access *a)
{
    while (a->gone_count > LIMIT_GONE_FOLDERS) {
        struct folder *f = a->gone;
        a->gone = f->next_gone;
        if (a->gone == NULL)
            a->gone_end = &a->gone;
        a->gone_count--;
        table_remove(&a->folders, &f->node);
        free(f->rules);
        free(f);
    }
}

void access_folder_put(struct access *a, uint64_t folder, uint64_t parent)
{
    struct folder *f = folder_get(a, folder);
    if (f == NULL) {
        folder_make(a, folder, parent);
    } else if (f->parent != parent && !f->gone) {
        f->parent = parent;
        a->version++;
    }
}

void access_folder_gone(struct access *a, uint64_t folder)
{
    struct folder *f = folder_get(a, folder);
    if (f == NULL || f->gone || folder == ACCESS_ROOT_FOLDER)
        return;
    /* Its rules stay with it, for what lately was in it, but nobody finds it by them any more. */
    for (uint32_t i = 0; i < f->rules_count; i++)
        rule_unlist(a, f, &f->rules[i]);
    f->gone = true;
    *a->gone_end = f;
    a->gone_end = &f->next_gone;
    a->gone_count++;
    gone_trim(a);
}

bool access_folder_has_rules(const struct access *a, uint64_t folder)
{
    const struct folder *f = folder_get(a, folder);
    return f != NULL && !f->gone && f->rules_count > 0;
}

static uint64_t content_hash(const struct access *a, const uint8_t root[HASH_SIZE])
{
    return table_hash(a->seed, root, HASH_SIZE);
}

static struct content_place *place_find(const struct access *a, uint64_t hash, uint64_t folder)
{
    for (struct table_node *node = table_first(&a->contents, hash); node != NULL;
         node = table_next(node)) {
        struct content_place *place = (struct content_place *)(void *)node;
        if (place->folder == folder)
            return place;
    }
    return NULL;
}

void access_content_add(struct access *a, const uint8_t root[HASH_SIZE], uint64_t folder)
{
    uint64_t hash = content_hash(a, root);
    struct content_place *place = place_find(a, hash, folder);
    if (place == NULL) {
        place = xcalloc(1, sizeof *place);
        place->folder = folder;
        table_add(&a->contents, &place->node, hash);
    }
    place->files++;
}

static void place_free(struct access *a, struct content_place *place)
{
    table_remove(&a->contents, &place->node);
    free(place);
}

/* In the list of those that went lately exactly while `lately` is set. */
static void lately_trim(struct access *a)
{
    while (a->lately_count > LIMIT_LATE_CONTENTS) {
        struct content_place *place = a->lately;
        a->lately = place->next_lately;
        if (a->lately == NULL)
            a->lately_end = &a->lately;
        a->lately_count--;
        place->lately = false;
        place->next_lately = NULL;
        if (place->files == 0)
            place_free(a, place);
    }
}

void access_content_remove(struct access *a, const uint8_t root[HASH_SIZE], uint64_t folder,
                           bool lately)
{
    struct content_place *place = place_find(a, content_hash(a, root), folder);
    if (place == NULL || place->files == 0)
        return;
    place->files--;
    if (lately && !place->lately) {
        place->lately = true;
        *a->lately_end = place;
        a->lately_end = &place->next_lately;
        a->lately_count++;
        lately_trim(a);
    } else if (place->files == 0 && !place->lately) {
        place_free(a, place);
    }
}

/* --- judging -------------------------------------------------------------------------------------------- */

enum access_level access_end(const struct access_walk *walk)
{
    uint8_t best = walk->own > walk->everyone ? walk->own : walk->everyone;
    if (walk->own == ACCESS_NONE + 1)
        return ACCESS_NONE;
    for (unsigned i = 0; i < LIMIT_ACCOUNT_GROUPS; i++)
        best = walk->groups[i] > best ? walk->groups[i] : best;
    return best == 0 ? ACCESS_NONE : (enum access_level)(best - 1);
}

static void step(const struct access *a, const struct access_account *account,
                 const struct folder *f, struct access_walk *walk)
{
    for (uint32_t i = 0; i < f->rules_count; i++) {
        const struct principal *who = f->rules[i].who;
        if (who == account->self)
            access_step(&walk->own, f->rules[i].level);
        else if (who == a->everyone)
            access_step(&walk->everyone, f->rules[i].level);
        for (unsigned g = 0; who->kind == ACCESS_GROUP && g < account->groups_count; g++)
            if (account->groups[g] == who)
                access_step(&walk->groups[g], f->rules[i].level);
    }
}

void access_walk_of(struct access *a, struct access_account *account, uint64_t folder,
                    struct access_walk *walk)
{
    memset(walk, 0, sizeof *walk);
    unsigned depth = 0;
    for (const struct folder *f = folder_get(a, folder); f != NULL && depth <= NAME_DEPTH_MAX + 1;
         f = folder_get(a, f->parent), depth++) {
        step(a, account, f, walk);
        if (f->id == ACCESS_ROOT_FOLDER)
            return;
    }
    memset(walk, 0, sizeof *walk); /* it does not hang on the root: nobody's */
}

enum access_level access_of(struct access *a, struct access_account *account, uint64_t folder)
{
    struct access_walk walk;
    access_walk_of(a, account, folder, &walk);
    return access_end(&walk);
}

static int compare_ids(const void *x, const void *y)
{
    uint64_t one = *(const uint64_t *)x, two = *(const uint64_t *)y;
    return one < two ? -1 : one > two;
}

/* The folders above those that rules let the account read. */
struct way {
    uint64_t *ids;
    uint32_t count, room;
};

static void way_add(struct way *way, uint64_t id)
{
    if (way->count == way->room) {
        way->room = way->room == 0 ? 64 : 2 * way->room;
        way->ids = xrealloc(way->ids, way->room * sizeof *way->ids);
    }
    way->ids[way->count++] = id;
}

static void ways_to(struct access *a, struct access_account *account, const struct principal *who,
                    struct way *way)
{
    for (uint32_t i = 0; i < who->folders_count; i++) {
        const struct folder *f = folder_get(a, who->folders[i]);
        if (f == NULL || access_of(a, account, f->id) < ACCESS_READ)
            continue;
        for (unsigned depth = 0;
             f != NULL && f->id != ACCESS_ROOT_FOLDER && depth <= NAME_DEPTH_MAX; depth++) {
            way_add(way, f->id);
            f = folder_get(a, f->parent);
        }
    }
}

static void derive_shown(struct access *a, struct access_account *account)
{
    if (account->shown_version == a->version && account->shown_own == account->version)
        return;
    struct way way = {0};
    ways_to(a, account, account->self, &way);
    ways_to(a, account, a->everyone, &way);
    for (unsigned i = 0; i < account->groups_count; i++)
        ways_to(a, account, account->groups[i], &way);
    if (way.count > 0)
        qsort(way.ids, way.count, sizeof *way.ids, compare_ids);
    free(account->shown);
    account->shown = way.ids;
    account->shown_count = way.count;
    account->shown_version = a->version;
    account->shown_own = account->version;
}

bool access_shows(struct access *a, struct access_account *account, uint64_t folder)
{
    if (folder == ACCESS_ROOT_FOLDER || access_of(a, account, folder) >= ACCESS_READ)
        return true;
    derive_shown(a, account);
    return account->shown_count > 0 && bsearch(&folder, account->shown, account->shown_count,
                                               sizeof folder, compare_ids) != NULL;
}

bool access_content(struct access *a, struct access_account *account, const uint8_t root[HASH_SIZE])
{
    for (struct table_node *node = table_first(&a->contents, content_hash(a, root)); node != NULL;
         node = table_next(node))
        if (access_of(a, account, ((struct content_place *)(void *)node)->folder) >= ACCESS_READ)
            return true;
    return false;
}

bool access_knows(const struct access *a, const uint8_t root[HASH_SIZE])
{
    return table_first(&a->contents, content_hash(a, root)) != NULL;
}

bool access_is_in(struct access *a, struct access_account *account, const char *group)
{
    const struct principal *p = principal_get(a, ACCESS_GROUP, group, false);
    for (unsigned i = 0; p != NULL && i < account->groups_count; i++)
        if (account->groups[i] == p)
            return true;
    return false;
}
