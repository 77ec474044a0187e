/* The swarm as this device sees it: peers, and the health of files. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/verbs.h"

#define HEALTH_ROWS 50 /* without --all */

/* Asks about the command's paths; NULL: the reason has been said. The answer lives as long as
 * *client, which the caller frees. */
static const void *ask_about_paths(const struct ctl *ctl, struct client **client, uint16_t type,
                                   uint16_t answer_type, const ProtobufCMessageDescriptor *answer,
                                   int64_t timeout_ns)
{
    Local__Paths message = LOCAL__PATHS__INIT;
    const struct client_request request = {
        .type = type,
        .message = &message.base,
        .answer_type = answer_type,
        .answer = answer,
        .timeout_ns = timeout_ns,
    };
    const void *result = NULL;

    *client = ctl_open(ctl, false);
    char **paths = *client != NULL ? ctl_paths(ctl) : NULL;
    if (paths != NULL) {
        message.paths = paths;
        message.n_paths = (size_t)ctl->argument_count;
        result = ctl_ask(*client, &request);
    }
    ctl_free_paths(ctl, paths);
    return result;
}

/* --- peers ------------------------------------------------------------------------------------- */

static void peer_row(struct table *table, const Local__Peer *peer, bool with_have)
{
    char text[NUMBER_TEXT_MAX];

    table_row(table);
    table_cell(table, "%s", peer->account);
    table_cell(table, "%s", peer->device);
    table_cell(table, "%s", peer->address);
    table_cell(table, "%s", peer->direction);
    if (peer->rate > 0)
        table_cell(table, "%s/s", bytes_format(text, peer->rate));
    else
        table_cell(table, "%s", "");
    table_cell(table, "%s", bytes_format(text, peer->total));
    if (peer->rtt_us >= 1000)
        table_cell(table, "%" PRIu64 ".%" PRIu64 " ms", peer->rtt_us / 1000,
                   peer->rtt_us % 1000 / 100);
    else if (peer->rtt_us > 0)
        table_cell(table, "%" PRIu64 " us", peer->rtt_us);
    else
        table_cell(table, "%s", "");
    table_cell(table, "%" PRIu32, peer->files);
    table_count(table, peer->queued);
    table_cell(table, "%s", with_have ? bytes_format(text, peer->have) : "");
    table_cell(table, "%s%s", peer->state, peer->choked ? ", choked" : "");
}

static void print_peers(const Local__Peers *peers, bool with_have)
{
    static const struct table_column columns[] = {
        {"MEMBER", TABLE_LEFT},
        {"DEVICE", TABLE_LEFT | TABLE_MAY_GO},
        {"ADDRESS", TABLE_LEFT},
        {"WAY", TABLE_LEFT},
        {"RATE", TABLE_RIGHT},
        {"TOTAL", TABLE_RIGHT},
        {"RTT", TABLE_RIGHT},
        {"FILES", TABLE_RIGHT | TABLE_MAY_GO},
        {"QUEUED", TABLE_RIGHT | TABLE_MAY_GO},
        {"HAS", TABLE_RIGHT},
        {"STATE", TABLE_LEFT},
        {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);

    for (size_t i = 0; i < peers->n_peers; i++)
        peer_row(table, peers->peers[i], with_have);
    if (table_rows(table) == 0)
        puts("No links to other members now.");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

int swarm_peers(const struct ctl *ctl)
{
    struct client *client;
    const Local__Peers *peers = ask_about_paths(ctl, &client, LOCAL__LOCAL_TYPE__LOCAL_PEERS,
                                                LOCAL__LOCAL_TYPE__LOCAL_PEERS_ARE,
                                                &local__peers__descriptor, LIMIT_CTL_ANSWER_NS);
    bool good = peers != NULL;

    if (good && ctl->json)
        json_print(json_from_message(&peers->base), true);
    else if (good)
        print_peers(peers, ctl->argument_count > 0);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}

/* --- health ------------------------------------------------------------------------------------ */

/* One word for it; none if the tracker said nothing. */
static const char *health_of(const Local__FileHealth *file)
{
    if (file->pieces == 0)
        return *file->trouble == '\0' ? "good" : "";
    if (file->missing > 0)
        return "incomplete";
    return file->rarest < 2 ? "at risk" : "good";
}

static void health_row(struct table *table, const Local__FileHealth *file)
{
    char text[NUMBER_TEXT_MAX];

    table_row(table);
    table_cell(table, "%s", file->path);
    table_cell(table, "%s", bytes_format(text, file->size));
    table_cell(table, "%s", health_of(file));
    table_cell(table, "%" PRIu64 ".%03" PRIu64, file->distributed / 1000, file->distributed % 1000);
    table_cell(table, "%" PRIu32, file->rarest);
    table_cell(table, "%" PRIu32, file->complete);
    table_count(table, file->partial);
    table_count(table, file->offline);
    if (file->missing > 0)
        table_cell(table, "%" PRIu32 " of %" PRIu32, file->missing, file->pieces);
    if (file->missing > 0 || file->pieces == 0) /* else one word has said it */
        table_note(table, file->trouble);
}

/* The worse comes first: what nobody can complete, then what may soon be so, then what is not known. */
static int health_rank(const Local__FileHealth *file)
{
    if (file->pieces == 0)
        return *file->trouble == '\0' ? 3 : 2;
    return file->missing > 0 ? 0 : file->rarest < 2 ? 1 : 3;
}

static int compare_health(const void *left, const void *right)
{
    const Local__FileHealth *a = *(Local__FileHealth *const *)left,
                            *b = *(Local__FileHealth *const *)right;
    int rank = health_rank(a) - health_rank(b);

    if (rank != 0)
        return rank;
    if (a->distributed != b->distributed && a->pieces > 0 && b->pieces > 0)
        return a->distributed < b->distributed ? -1 : 1;
    return strcmp(a->path, b->path);
}

static void print_health(const Local__Health *health, bool all)
{
    static const struct table_column columns[] = {
        {"FILE", TABLE_GIVES_WAY}, {"SIZE", TABLE_RIGHT},    {"HEALTH", TABLE_LEFT},
        {"COPIES", TABLE_RIGHT},   {"RAREST", TABLE_RIGHT},  {"COMPLETE", TABLE_RIGHT},
        {"PARTLY", TABLE_RIGHT},   {"OFFLINE", TABLE_RIGHT}, {"MISSING", TABLE_RIGHT},
        {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);
    size_t count = all || health->n_files <= HEALTH_ROWS ? health->n_files : HEALTH_ROWS;

    if (count < health->n_files)
        qsort(health->files, health->n_files, sizeof *health->files, compare_health);
    for (size_t i = 0; i < count; i++)
        health_row(table, health->files[i]);
    if (table_rows(table) == 0)
        puts("No published files.");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    if (count < health->n_files)
        printf("%zu more are no worse off; --all shows them.\n", health->n_files - count);
    if (health->more)
        printf("There are more files than %zu; ask about parts of the tree.\n", health->n_files);
    table_free(table);
}

int swarm_health(const struct ctl *ctl)
{
    struct client *client;
    const Local__Health *health = ask_about_paths(ctl, &client, LOCAL__LOCAL_TYPE__LOCAL_HEALTH,
                                                  LOCAL__LOCAL_TYPE__LOCAL_HEALTH_IS,
                                                  &local__health__descriptor, LIMIT_CTL_TRACKER_NS);
    bool good = health != NULL;

    if (good && ctl->json)
        json_print(json_from_message(&health->base), true);
    else if (good)
        print_health(health, ctl->all);
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}
