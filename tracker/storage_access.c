/* Rows of rules, groups and memberships, and what they let an account do. What rules mean is access.h's.
 *
 * The storage's thread, within a transaction; see storage.h. */
#include <string.h>

#include "tracker/access.h"
#include "tracker/storage_private.h"

static sqlite3_stmt *rule_statement(struct storage *s, enum sql which,
                                    const struct storage_rule *rule)
{
    sqlite3_stmt *statement = storage_statement(s, which);
    storage_bind_number(statement, 1, (int64_t)rule->folder);
    storage_bind_number(statement, 2, rule->kind);
    storage_bind_text(statement, 3, rule->who);
    return statement;
}

void storage_rule_put(struct storage *s, const struct storage_rule *rule)
{
    sqlite3_stmt *put = rule_statement(s, SQL_RULE_PUT, rule);
    storage_bind_number(put, 4, rule->level);
    storage_run(s, put);
}

void storage_rule_drop(struct storage *s, const struct storage_rule *rule)
{
    storage_run(s, rule_statement(s, SQL_RULE_DROP, rule));
}

bool storage_rule_get(struct storage *s, struct storage_rule *rule)
{
    sqlite3_stmt *get = rule_statement(s, SQL_RULE_GET, rule);
    bool found = storage_step(s, get);
    if (found)
        rule->level = (uint8_t)sqlite3_column_int(get, 0);
    storage_done(get);
    return found;
}

uint64_t storage_rule_count(struct storage *s, uint64_t folder)
{
    sqlite3_stmt *count = storage_statement(s, SQL_RULE_COUNT);
    storage_bind_number(count, 1, (int64_t)folder);
    uint64_t rules = storage_step(s, count) ? (uint64_t)sqlite3_column_int64(count, 0) : 0;
    storage_done(count);
    return rules;
}

static void each_rule(struct storage *s, sqlite3_stmt *rows,
                      void (*each)(const struct storage_rule *, void *), void *arg)
{
    while (storage_step(s, rows)) {
        struct storage_rule rule = {.folder = (uint64_t)sqlite3_column_int64(rows, 0),
                                    .kind = (uint8_t)sqlite3_column_int(rows, 1),
                                    .level = (uint8_t)sqlite3_column_int(rows, 3)};
        storage_column_text(rows, 2, rule.who, sizeof rule.who);
        each(&rule, arg);
    }
}

void storage_rules_each(struct storage *s, void (*each)(const struct storage_rule *, void *),
                        void *arg)
{
    each_rule(s, storage_statement(s, SQL_RULE_ALL), each, arg);
}

void storage_rules_above(struct storage *s, uint64_t folder,
                         void (*each)(const struct storage_rule *, void *), void *arg)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_RULE_ABOVE);
    storage_bind_number(rows, 1, (int64_t)folder);
    each_rule(s, rows, each, arg);
}

static bool truth(struct storage *s, sqlite3_stmt *question)
{
    bool yes = storage_step(s, question) && sqlite3_column_int(question, 0) != 0;
    storage_done(question);
    return yes;
}

bool storage_rules_narrow(struct storage *s)
{
    return truth(s, storage_statement(s, SQL_RULE_NARROW));
}

/* The number of a group in this walk. */
static unsigned group_number(char names[LIMIT_ACCOUNT_GROUPS][ACCOUNT_BYTES_MAX + 1],
                             unsigned *count, const char *name)
{
    for (unsigned i = 0; i < *count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    if (*count < LIMIT_ACCOUNT_GROUPS)
        memcpy(names[*count], name, strlen(name) + 1);
    return *count < LIMIT_ACCOUNT_GROUPS ? (*count)++ : LIMIT_ACCOUNT_GROUPS;
}

unsigned storage_access(struct storage *s, const char *account, uint64_t folder)
{
    struct access_walk walk = {0};
    char names[LIMIT_ACCOUNT_GROUPS][ACCOUNT_BYTES_MAX + 1], who[ACCOUNT_BYTES_MAX + 1];
    unsigned count = 0;
    sqlite3_stmt *rows = storage_statement(s, SQL_RULE_FOR);
    storage_bind_number(rows, 1, (int64_t)folder);
    storage_bind_text(rows, 2, account);
    while (storage_step(s, rows)) {
        enum access_level level = (enum access_level)sqlite3_column_int(rows, 2);
        int kind = sqlite3_column_int(rows, 0);
        storage_column_text(rows, 1, who, sizeof who);
        if (kind == ACCESS_ACCOUNT) {
            access_step(&walk.own, level);
        } else if (kind == ACCESS_EVERYONE) {
            access_step(&walk.everyone, level);
        } else {
            unsigned group = group_number(names, &count, who);
            if (group < LIMIT_ACCOUNT_GROUPS)
                access_step(&walk.groups[group], level);
        }
    }
    return access_end(&walk);
}

/* --- groups --------------------------------------------------------------------------------------------- */

static sqlite3_stmt *named(struct storage *s, enum sql which, const char *first, const char *second)
{
    sqlite3_stmt *statement = storage_statement(s, which);
    storage_bind_text(statement, 1, first);
    if (second != NULL)
        storage_bind_text(statement, 2, second);
    return statement;
}

static uint64_t number(struct storage *s, sqlite3_stmt *question)
{
    uint64_t value = storage_step(s, question) ? (uint64_t)sqlite3_column_int64(question, 0) : 0;
    storage_done(question);
    return value;
}

bool storage_group_get(struct storage *s, const char *name)
{
    return truth(s, named(s, SQL_GROUP_GET, name, NULL));
}

void storage_group_add(struct storage *s, const char *name)
{
    storage_run(s, named(s, SQL_GROUP_ADD, name, NULL));
}

void storage_group_drop(struct storage *s, const char *name)
{
    storage_run(s, named(s, SQL_GROUP_DROP, name, NULL));
}

uint64_t storage_group_count(struct storage *s)
{
    return number(s, storage_statement(s, SQL_GROUP_COUNT));
}

void storage_group_join(struct storage *s, const char *group, const char *account)
{
    storage_run(s, named(s, SQL_MEMBER_ADD, group, account));
}

void storage_group_leave(struct storage *s, const char *group, const char *account)
{
    storage_run(s, named(s, SQL_MEMBER_DROP, group, account));
}

uint64_t storage_groups_of(struct storage *s, const char *account)
{
    return number(s, named(s, SQL_MEMBER_COUNT, account, NULL));
}

void storage_groups_each(struct storage *s,
                         void (*each)(const char *group, const char *account, void *), void *arg)
{
    char group[ACCOUNT_BYTES_MAX + 1], account[ACCOUNT_BYTES_MAX + 1];
    sqlite3_stmt *rows = storage_statement(s, SQL_GROUP_ALL);
    while (storage_step(s, rows)) {
        storage_column_text(rows, 0, group, sizeof group);
        each(group, NULL, arg);
    }
    rows = storage_statement(s, SQL_MEMBER_ALL);
    while (storage_step(s, rows)) {
        storage_column_text(rows, 0, group, sizeof group);
        storage_column_text(rows, 1, account, sizeof account);
        each(group, account, arg);
    }
}

/* --- what was told -------------------------------------------------------------------------------------- */

void storage_renew(struct storage *s, const char *account)
{
    sqlite3_stmt *put = named(s, SQL_RENEW_PUT, account, NULL);
    storage_bind_number(put, 2, (int64_t)storage_seq(s) + 1);
    storage_run(s, put);
}

uint64_t storage_renewed(struct storage *s, const char *account)
{
    return number(s, named(s, SQL_RENEW_GET, account, NULL));
}

/* --- for the mirror ------------------------------------------------------------------------------------- */

void storage_folders_each(struct storage *s, void (*each)(uint64_t id, uint64_t parent, void *),
                          void *arg)
{
    sqlite3_stmt *rows = storage_statement(s, SQL_FOLDER_ALL);
    while (storage_step(s, rows))
        each((uint64_t)sqlite3_column_int64(rows, 0), (uint64_t)sqlite3_column_int64(rows, 1), arg);
}

void storage_contents_each(struct storage *s,
                           void (*each)(const uint8_t root[STORAGE_ROOT_SIZE], uint64_t parent,
                                        void *),
                           void *arg)
{
    uint8_t root[STORAGE_ROOT_SIZE];
    sqlite3_stmt *rows = storage_statement(s, SQL_CONTENT_ALL);
    while (storage_step(s, rows))
        if (storage_column_bytes(rows, 0, root, sizeof root))
            each(root, (uint64_t)sqlite3_column_int64(rows, 1), arg);
}

/* --- signing keys --------------------------------------------------------------------------------------- */

void storage_signer_put(struct storage *s, const uint8_t id[SIGNER_ID_SIZE],
                        const uint8_t device[DEVICE_ID_SIZE], const void *claim, size_t size,
                        unsigned most)
{
    sqlite3_stmt *put = storage_statement(s, SQL_SIGNER_PUT);
    storage_bind_bytes(put, 1, id, SIGNER_ID_SIZE);
    storage_bind_bytes(put, 2, device, DEVICE_ID_SIZE);
    storage_bind_bytes(put, 3, claim, size);
    storage_bind_number(put, 4, most);
    storage_run(s, put);
}

void storage_signers_each(struct storage *s,
                          void (*each)(const uint8_t id[SIGNER_ID_SIZE], const void *claim,
                                       size_t size, void *),
                          void *arg)
{
    uint8_t id[SIGNER_ID_SIZE];
    sqlite3_stmt *rows = storage_statement(s, SQL_SIGNER_ALL);
    while (storage_step(s, rows))
        if (storage_column_bytes(rows, 0, id, sizeof id))
            each(id, sqlite3_column_blob(rows, 1), (size_t)sqlite3_column_bytes(rows, 1), arg);
}
