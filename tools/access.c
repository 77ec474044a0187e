/* Who may do what in which folder: grant, revoke, access, group. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/path.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define INHERITED "inherited"

static const char *const levels[] = {"", "none", "read", "write", "manage"};

static const char *level_text(Local__Level level)
{
    return level <= LOCAL__LEVEL__LEVEL_MANAGE ? levels[level] : "";
}

/* The path inside the swarm that the first argument names; NULL: said why. */
static char *first_path(const struct ctl *ctl)
{
    char *why = NULL, *path = path_resolve(ctl->arguments[0], &why);

    if (path == NULL)
        log_error("%s", why);
    free(why);
    return path;
}

/* --- grant, revoke ----------------------------------------------------------------------------- */

static int change(const struct ctl *ctl, Local__Level level, bool inherit)
{
    Local__Grant message = LOCAL__GRANT__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_GRANT,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_TEXT,
        .answer = &local__text__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    struct client *client = ctl_open(ctl, true);
    char *path = client == NULL ? NULL : first_path(ctl);
    const Local__Text *note = NULL;

    if (path != NULL) {
        message.path = path;
        message.who = ctl->arguments[1];
        message.level = level;
        message.inherit = inherit;
        note = ctl_ask(client, &request);
    }
    if (note != NULL && ctl->json) {
        json_print(json_pack("{s:o, s:o, s:s, s:o}", "path", json_from_text(path), "who",
                             json_from_text(ctl->arguments[1]), "level",
                             inherit ? INHERITED : level_text(level), "note",
                             json_from_text(note->text)),
                   true);
    } else if (note != NULL && *note->text != '\0') {
        char *clean = text_escape(note->text);
        puts(clean);
        free(clean);
    }
    free(path);
    client_free(client);
    return note == NULL ? CTL_FAILED : CTL_DONE;
}

int access_grant(const struct ctl *ctl)
{
    const char *right = ctl->arguments[2];

    if (strcmp(right, INHERITED) == 0)
        return change(ctl, LOCAL__LEVEL__LEVEL_UNKNOWN, true);
    for (unsigned i = LOCAL__LEVEL__LEVEL_READ; i <= LOCAL__LEVEL__LEVEL_MANAGE; i++)
        if (strcmp(right, levels[i]) == 0)
            return change(ctl, (Local__Level)i, false);
    log_error("'%s' is no right: read, write, manage or inherited", right);
    return CTL_WRONG_USAGE;
}

int access_revoke(const struct ctl *ctl)
{
    return change(ctl, LOCAL__LEVEL__LEVEL_NONE, false);
}

/* --- access ------------------------------------------------------------------------------------ */

static void print_access(const Local__Access *access)
{
    static const struct table_column columns[] = {
        {"WHO", TABLE_LEFT},       {"KIND", TABLE_LEFT}, {"RIGHT", TABLE_LEFT},
        {"FROM", TABLE_GIVES_WAY}, {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);

    for (size_t i = 0; i < access->n_rules; i++) {
        const Local__Rule *rule = access->rules[i];

        table_row(table);
        table_cell(table, "%s", rule->who);
        table_cell(table, "%s", rule->kind);
        table_cell(table, "%s", level_text(rule->level));
        table_cell(table, "%s",
                   !rule->inherited        ? "here"
                   : rule->path[0] == '\0' ? "a folder above"
                                           : rule->path);
    }
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
    printf("You: %s\n", level_text(access->own));
}

int access_show(const struct ctl *ctl)
{
    Local__AccessRequest message = LOCAL__ACCESS_REQUEST__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_ACCESS,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_ACCESS_IS,
        .answer = &local__access__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    struct client *client = ctl_open(ctl, true);
    char *path = client == NULL ? NULL : first_path(ctl);
    const Local__Access *access = NULL;

    if (path != NULL) {
        message.path = path;
        access = ctl_ask(client, &request);
    }
    if (access != NULL && ctl->json)
        json_print(json_from_message(&access->base), true);
    else if (access != NULL)
        print_access(access);
    free(path);
    client_free(client);
    return access == NULL ? CTL_FAILED : CTL_DONE;
}

/* --- keys -------------------------------------------------------------------------------------- */

static void print_keys(const Local__Keys *keys)
{
    static const struct table_column columns[] = {
        {"MEMBER", TABLE_LEFT}, {"DEVICE", TABLE_LEFT}, {"FIRST SEEN", TABLE_LEFT},
        {"KEY", TABLE_LEFT},    {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);

    for (size_t i = 0; i < keys->n_keys; i++) {
        char when[32] = "";
        time_t first = (time_t)keys->keys[i]->first_seen;
        struct tm tm;

        if (localtime_r(&first, &tm) != NULL)
            strftime(when, sizeof when, "%Y-%m-%d %H:%M", &tm);
        table_row(table);
        table_cell(table, "%s", keys->keys[i]->account);
        table_cell(table, "%s", keys->keys[i]->device);
        table_cell(table, "%s", when);
        table_cell(table, "%s", keys->keys[i]->state);
    }
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
    if (keys->entries_refused > 0)
        printf("%" PRIu32 " entries that the tracker shows are not what their publishers signed: "
               "they are not shown here.\n",
               keys->entries_refused);
}

static bool has_key(const Local__Keys *keys, const char *account)
{
    for (size_t i = 0; i < keys->n_keys; i++)
        if (strcmp(keys->keys[i]->account, account) == 0)
            return true;
    return false;
}

int access_keys(const struct ctl *ctl)
{
    Local__KeysRequest message = LOCAL__KEYS_REQUEST__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_KEYS,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_KEYS_ARE,
        .answer = &local__keys__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };

    if (ctl->argument_count == 1 ||
        (ctl->argument_count == 2 && strcmp(ctl->arguments[0], "accept") != 0)) {
        log_error("keys takes nothing, or accept ACCOUNT");
        return CTL_WRONG_USAGE;
    }
    struct client *client = ctl_open(ctl, true);
    if (client == NULL)
        return CTL_FAILED;
    if (ctl->argument_count == 2)
        message.accept = ctl->arguments[1];
    const Local__Keys *keys = ctl_ask(client, &request);
    bool good = keys != NULL;
    if (good && ctl->argument_count == 2 && !has_key(keys, message.accept)) {
        char *clean = text_escape(message.accept);
        log_error("no key of '%s' has been seen here: there is nothing to accept", clean);
        free(clean);
        good = false;
    } else if (good && ctl->json)
        json_print(json_from_message(&keys->base), true);
    else if (good)
        print_keys(keys);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}

/* --- group ------------------------------------------------------------------------------------- */

static void print_name(const char *before, const char *name, const char *after)
{
    char *clean = text_escape(name);

    printf("%s%s%s", before, clean, after);
    free(clean);
}

static void print_groups(const Local__Groups *groups)
{
    for (size_t i = 0; i < groups->n_groups; i++) {
        print_name("", groups->groups[i]->name, ":");
        for (size_t k = 0; k < groups->groups[i]->n_accounts; k++)
            print_name(" ", groups->groups[i]->accounts[k], "");
        putchar('\n');
    }
    if (groups->n_groups == 0)
        puts("No groups.");
}

static int list_groups(const struct ctl *ctl, struct client *client)
{
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_GROUPS,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_GROUPS_ARE,
        .answer = &local__groups__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    const Local__Groups *groups = ctl_ask(client, &request);

    if (groups != NULL && ctl->json)
        json_print(json_from_message(&groups->base), true);
    else if (groups != NULL)
        print_groups(groups);
    return groups == NULL ? CTL_FAILED : CTL_DONE;
}

static int change_group(const struct ctl *ctl, struct client *client, Local__GroupVerb verb)
{
    Local__Group message = LOCAL__GROUP__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_GROUP,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };

    message.verb = verb;
    message.name = ctl->arguments[1];
    if (ctl->argument_count > 2)
        message.account = ctl->arguments[2];
    if (ctl_ask(client, &request) == NULL)
        return CTL_FAILED;
    if (ctl->json)
        json_print(json_pack("{s:o}", "group", json_from_text(ctl->arguments[1])), true);
    return CTL_DONE;
}

int access_group(const struct ctl *ctl)
{
    static const struct {
        const char *name;
        Local__GroupVerb verb;
        int arguments;
    } verbs[] = {
        {"create", LOCAL__GROUP_VERB__GROUP_CREATE, 2},
        {"delete", LOCAL__GROUP_VERB__GROUP_DELETE, 2},
        {"add", LOCAL__GROUP_VERB__GROUP_ADD, 3},
        {"remove", LOCAL__GROUP_VERB__GROUP_REMOVE, 3},
        {"list", LOCAL__GROUP_VERB__GROUP_UNKNOWN, 1},
    };

    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(ctl->arguments[0], verbs[i].name) != 0)
            continue;
        if (ctl->argument_count != verbs[i].arguments) {
            log_error("group %s takes %d arguments behind it; see 'p2pctl group --help'",
                      verbs[i].name, verbs[i].arguments - 1);
            return CTL_WRONG_USAGE;
        }
        struct client *client = ctl_open(ctl, true);
        if (client == NULL)
            return CTL_FAILED;
        int status = verbs[i].verb == LOCAL__GROUP_VERB__GROUP_UNKNOWN
                         ? list_groups(ctl, client)
                         : change_group(ctl, client, verbs[i].verb);
        client_free(client);
        return status;
    }
    log_error("'%s' is nothing that is done with a group: create, delete, add, remove or list",
              ctl->arguments[0]);
    return CTL_WRONG_USAGE;
}
