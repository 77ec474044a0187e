/* ls: a directory of the swarm, as p2pd knows it; works without a mount.
 *
 * Owns copies of what it prints: pages come one by one, and are sorted as one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/path.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

struct item {
    char *name, *owner;
    json_t *json; /* with --json only */
    Local__Kind kind;
    Local__State state;
    uint64_t size, local;
    int64_t mtime;
    uint32_t mode;
    bool pinned;
};

struct items {
    struct item *list;
    size_t count, room;
};

static void add(struct items *items, const Local__Attr *attr, bool json)
{
    if (items->count == items->room) {
        items->room = items->room == 0 ? 64 : 2 * items->room;
        items->list = xrealloc(items->list, items->room * sizeof *items->list);
    }
    items->list[items->count++] = (struct item){
        .name = xstrdup(attr->name),
        .owner = xstrdup(attr->owner),
        .json = json ? json_from_message(&attr->base) : NULL,
        .kind = attr->kind,
        .state = attr->state,
        .size = attr->size,
        .local = attr->local,
        .mtime = attr->mtime,
        .mode = attr->mode,
        .pinned = attr->pinned,
    };
}

static void clear(struct items *items)
{
    for (size_t i = 0; i < items->count; i++) {
        free(items->list[i].name);
        free(items->list[i].owner);
        json_decref(items->list[i].json);
    }
    free(items->list);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

/* All pages. False: the reason has been said. */
static bool collect(struct items *items, struct client *client, char *path, bool json)
{
    Local__Ls message = LOCAL__LS__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_LS,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_LISTING,
        .answer = &local__listing__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };

    message.path = path;
    for (;;) {
        const Local__Listing *page = ctl_ask(client, &request);
        if (page == NULL)
            return false;
        for (size_t i = 0; i < page->n_entries; i++)
            add(items, page->entries[i], json);
        if (page->end || page->n_cookies == 0)
            break;
        message.cookie = page->cookies[page->n_cookies - 1];
    }
    if (items->count > 0)
        qsort(items->list, items->count, sizeof *items->list, by_name);
    return true;
}

/* --- printing ---------------------------------------------------------------------------------- */

static const char *mark_of(const struct item *item)
{
    return item->kind == LOCAL__KIND__KIND_DIRECTORY ? "/"
           : item->kind == LOCAL__KIND__KIND_SYMLINK ? "@"
                                                     : "";
}

static void format_mode(char out[11], const struct item *item)
{
    static const char letters[] = "rwxrwxrwx";

    out[0] = item->kind == LOCAL__KIND__KIND_DIRECTORY ? 'd'
             : item->kind == LOCAL__KIND__KIND_SYMLINK ? 'l'
                                                       : '-';
    for (int i = 0; i < 9; i++)
        out[1 + i] = (item->mode >> (8 - i) & 1) != 0 ? letters[i] : '-';
    out[10] = '\0';
}

static void format_time(char *out, size_t size, int64_t ns)
{
    time_t when = (time_t)(ns / NS_PER_S);
    struct tm parts;

    if (localtime_r(&when, &parts) == NULL || strftime(out, size, "%Y-%m-%d %H:%M", &parts) == 0)
        snprintf(out, size, "?");
}

/* How much of it is here, in one word. */
static void format_here(char out[32], const struct item *item)
{
    out[0] = '\0';
    if (item->kind != LOCAL__KIND__KIND_FILE)
        return;
    if (item->state == LOCAL__STATE__STATE_LOCAL || item->state == LOCAL__STATE__STATE_PENDING)
        snprintf(out, 32, "%s", item->state == LOCAL__STATE__STATE_LOCAL ? "writing" : "pending");
    else
        snprintf(out, 32, "%u%%", progress_percent(item->local, item->size));
    if (item->state == LOCAL__STATE__STATE_PUBLISHED && item->size > 0)
        snprintf(out, 32, "-");
}

static void print_long(const struct items *items)
{
    static const struct table_column columns[] = {
        {"MODE", TABLE_LEFT},  {"OWNER", TABLE_LEFT},  {"SIZE", TABLE_RIGHT},
        {"HERE", TABLE_RIGHT}, {"PINNED", TABLE_LEFT}, {"CHANGED", TABLE_LEFT},
        {"NAME", TABLE_LEFT},  {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);
    char mode[11], when[64], here[32], size[NUMBER_TEXT_MAX];

    for (size_t i = 0; i < items->count; i++) {
        const struct item *item = &items->list[i];

        format_mode(mode, item);
        format_time(when, sizeof when, item->mtime);
        format_here(here, item);
        table_row(table);
        table_cell(table, "%s", mode);
        table_cell(table, "%s", item->owner);
        table_cell(table, "%s",
                   item->kind == LOCAL__KIND__KIND_FILE ? bytes_format(size, item->size) : "");
        table_cell(table, "%s", here);
        table_cell(table, "%s", item->pinned ? "yes" : "");
        table_cell(table, "%s", when);
        table_cell(table, "%s%s", item->name, mark_of(item));
    }
    table_print(table, stdout, 0);
    table_free(table);
}

static void print_names(const struct items *items, bool terminal)
{
    for (size_t i = 0; i < items->count; i++) {
        char *name = text_escape(items->list[i].name);
        printf("%s%s\n", name, terminal ? mark_of(&items->list[i]) : "");
        free(name);
    }
}

static void print_items_json(struct items *items)
{
    json_t *list = json_array();

    for (size_t i = 0; i < items->count; i++) {
        json_array_append_new(list, items->list[i].json);
        items->list[i].json = NULL;
    }
    json_print(json_pack("{s:o}", "entries", list), true);
}

int list_entries(const struct ctl *ctl)
{
    struct items items = {0};
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL, root[] = "/";
    bool good = paths != NULL &&
                collect(&items, client, ctl->argument_count > 0 ? paths[0] : root, ctl->json);

    if (good && ctl->json)
        print_items_json(&items);
    else if (good && ctl->details)
        print_long(&items);
    else if (good)
        print_names(&items, isatty(STDOUT_FILENO));
    clear(&items);
    ctl_free_paths(ctl, paths);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}
