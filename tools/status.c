/* status: what moves and what waits, once or every second.
 *
 * The report is written to a stream (a string for the full screen), so that one function serves both.
 * With --watch p2pd may be restarted: the report says so and comes back. Main thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define WATCH_NS NS_PER_S

/* --- for people -------------------------------------------------------------------------------- */

static const char *state_name(Local__State state)
{
    switch (state) {
    case LOCAL__STATE__STATE_LOCAL:
        return "being written";
    case LOCAL__STATE__STATE_PENDING:
        return "pending";
    case LOCAL__STATE__STATE_PUBLISHED:
        return "not here";
    case LOCAL__STATE__STATE_STREAMING:
        return "partly here";
    case LOCAL__STATE__STATE_COMPLETE:
        return "complete";
    default:
        return "";
    }
}

static void print_heading(FILE *to, const Local__Status *s)
{
    char a[NUMBER_TEXT_MAX], b[NUMBER_TEXT_MAX], c[NUMBER_TEXT_MAX], d[NUMBER_TEXT_MAX];
    char *account = text_escape(s->account), *swarm = text_escape(s->swarm),
         *tracker = text_escape(s->tracker_trouble), *store = text_escape(s->store_trouble),
         *cache = text_escape(s->cache_trouble);

    if (*account == '\0')
        fprintf(to, "account    nobody is logged in: p2pctl register, or login, URL NAME\n");
    else
        fprintf(to, "account    %s%s%s\n", account, *swarm != '\0' ? " at " : "", swarm);
    if (*account != '\0' || s->connected)
        fprintf(to, "tracker    %s%s%s\n", s->connected ? "connected" : "not connected",
                *tracker != '\0' ? ": " : "", tracker);
    fprintf(to, "catalogue  %" PRIu64 " entr%s", s->entries, s->entries == 1 ? "y" : "ies");
    if (s->pending > 0)
        fprintf(to, ", %" PRIu32 " change%s waiting for the tracker", s->pending,
                s->pending == 1 ? "" : "s");
    if (s->entries_refused > 0)
        fprintf(to,
                "\n           %" PRIu32
                " not shown: not what their publishers signed (p2pctl keys)",
                s->entries_refused);
    if (s->keys_unexpected > 0)
        fprintf(to, "\n           %" PRIu32 " unexpected key%s of members (p2pctl keys)",
                s->keys_unexpected, s->keys_unexpected == 1 ? "" : "s");
    fprintf(to, "\nstore      %s used, %s free%s%s%s\n", bytes_format(a, s->store_bytes),
            bytes_format(b, s->store_free), s->store_encrypted ? ", encrypted" : "",
            *store != '\0' ? ": " : "", store);
    if (s->cache_size > 0)
        fprintf(to, "cache      %s of %s%s%s\n", bytes_format(a, s->cache_bytes),
                bytes_format(b, s->cache_size), *cache != '\0' ? ": " : "", cache);
    fprintf(to, "check      %s%s",
            s->scrub_paused    ? "paused"
            : s->scrub_running ? "under way, "
                               : "done",
            s->scrub_running && !s->scrub_paused ? bytes_format(a, s->scrub_bytes) : "");
    if (s->scrub_damaged > 0)
        fprintf(to, ": %" PRIu64 " damaged block%s given up", s->scrub_damaged,
                s->scrub_damaged == 1 ? "" : "s");
    fputs("\n", to);
    fprintf(to,
            "traffic    in %s/s on %" PRIu32 " link%s, out %s/s on %" PRIu32 " link%s\n"
            "           since the start: in %s, out %s",
            bytes_format(a, s->rate_in), s->links_in, s->links_in == 1 ? "" : "s",
            bytes_format(b, s->rate_out), s->links_out, s->links_out == 1 ? "" : "s",
            bytes_format(c, s->total_in), bytes_format(d, s->total_out));
    if (s->wasted_in > 0)
        fprintf(to, ", came in vain %s", bytes_format(a, s->wasted_in));
    if (s->limit_down > 0 || s->limit_up > 0)
        fprintf(to, "\n           limits: in %s%s, out %s%s",
                s->limit_down > 0 ? bytes_format(a, s->limit_down) : "unlimited",
                s->limit_down > 0 ? "/s" : "",
                s->limit_up > 0 ? bytes_format(b, s->limit_up) : "unlimited",
                s->limit_up > 0 ? "/s" : "");
    fprintf(to, "\np2pd       %s, pid %" PRIu32 ", up %s\n", s->version, s->pid,
            duration_format(a, s->uptime));
    for (size_t i = 0; i < s->n_mounts; i++) {
        char *mountpoint = text_escape(s->mounts[i]->mountpoint);
        fprintf(to, "%-10s %s (pid %" PRIu32 ", %" PRIu32 " open file%s)\n", i == 0 ? "mounts" : "",
                mountpoint, s->mounts[i]->pid, s->mounts[i]->open_files,
                s->mounts[i]->open_files == 1 ? "" : "s");
        free(mountpoint);
    }
    free(account);
    free(swarm);
    free(tracker);
    free(store);
    free(cache);
}

/* An empty cell says "nothing" with less noise than "0 B/s". */
static void rate_cell(struct table *table, uint64_t rate)
{
    char text[NUMBER_TEXT_MAX];

    if (rate > 0)
        table_cell(table, "%s/s", bytes_format(text, rate));
    else
        table_cell(table, "%s", "");
}

static void file_row(struct table *table, const Local__FileStatus *file)
{
    const Local__Attr none = LOCAL__ATTR__INIT, *attr = file->attr != NULL ? file->attr : &none;
    bool is_file = attr->kind == LOCAL__KIND__KIND_FILE, has_size = is_file || file->files > 0;
    char text[NUMBER_TEXT_MAX], below[64] = "";

    if (file->files > 0)
        snprintf(below, sizeof below, "%" PRIu64 " file%s", file->files,
                 file->files == 1 ? "" : "s");

    table_row(table);
    table_cell(table, "%s%s", file->path,
               attr->kind == LOCAL__KIND__KIND_DIRECTORY && strcmp(file->path, "/") != 0 ? "/"
                                                                                         : "");
    table_cell(table, "%s", has_size ? bytes_format(text, attr->size) : "");
    if (has_size)
        table_cell(table, "%u%%", progress_percent(file->have, attr->size));
    else
        table_cell(table, "%s", "");
    table_cell(table, "%s%s%s", is_file ? state_name(attr->state) : below,
               has_size && attr->pinned ? ", " : "", attr->pinned ? "pinned" : "");
    rate_cell(table, file->rate_in);
    rate_cell(table, file->rate_out);
    table_count(table, file->peers);
    table_count(table, file->waiting);
    if (file->limit_up > 0 || file->limit_down > 0) {
        char note[128], down[NUMBER_TEXT_MAX], up[NUMBER_TEXT_MAX];

        snprintf(note, sizeof note, "limited: in %s%s, out %s%s",
                 file->limit_down > 0 ? bytes_format(down, file->limit_down) : "unlimited",
                 file->limit_down > 0 ? "/s" : "",
                 file->limit_up > 0 ? bytes_format(up, file->limit_up) : "unlimited",
                 file->limit_up > 0 ? "/s" : "");
        table_note(table, *file->trouble != '\0' ? file->trouble : note);
    } else {
        table_note(table, file->trouble);
    }
}

static void print_files(FILE *to, const Local__Status *s, size_t width)
{
    static const struct table_column columns[] = {
        {"FILE", TABLE_GIVES_WAY}, {"SIZE", TABLE_RIGHT},
        {"HERE", TABLE_RIGHT},     {"STATE", TABLE_LEFT},
        {"IN", TABLE_RIGHT},       {"OUT", TABLE_RIGHT},
        {"PEERS", TABLE_RIGHT},    {"WAITING READS", TABLE_RIGHT},
        {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);

    for (size_t i = 0; i < s->n_files; i++)
        file_row(table, s->files[i]);
    table_print(table, to, width);
    table_free(table);
}

static void print_report(FILE *to, const struct ctl *ctl, const Local__Status *s, size_t width)
{
    if (ctl->argument_count == 0) {
        print_heading(to, s);
        if (s->n_files > 0)
            putc('\n', to);
    }
    print_files(to, s, width);
}

static void print_json(const Local__Status *s, bool indented)
{
    json_t *object = json_from_message(&s->base);

    json_flatten(json_object_get(object, "files"), "attr");
    json_print(object, indented);
}

/* --- once, and again and again ----------------------------------------------------------------- */

struct status_view {
    const struct ctl *ctl;
    char **paths;
    Local__StatusRequest message;
    struct client_request request;
};

static void view_init(struct status_view *view, const struct ctl *ctl, char **paths)
{
    *view = (struct status_view){.ctl = ctl, .paths = paths};
    local__status_request__init(&view->message);
    view->message.paths = paths;
    view->message.n_paths = (size_t)ctl->argument_count;
    view->request = (struct client_request){
        .type = LOCAL__LOCAL_TYPE__LOCAL_STATUS,
        .message = &view->message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_STATUS_IS,
        .answer = &local__status__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
}

static bool show_once(const struct status_view *view, struct client *client)
{
    const Local__Status *status = ctl_ask(client, &view->request);

    if (status == NULL)
        return false;
    if (view->ctl->json)
        print_json(status, true);
    else
        print_report(stdout, view->ctl, status, terminal_width(STDOUT_FILENO));
    return true;
}

/* The next picture: a report or why there is none. */
static void show_next(const struct status_view *view, const Local__Status *status,
                      const struct client_fault *fault, bool full_screen)
{
    char *text = NULL;
    size_t size = 0;

    if (view->ctl->json) {
        if (status != NULL)
            print_json(status, false);
        fflush(stdout);
        return;
    }
    FILE *to = open_memstream(&text, &size);
    if (to == NULL)
        return;
    if (status != NULL) {
        print_report(to, view->ctl, status, terminal_width(STDOUT_FILENO));
    } else {
        char *clean = text_escape(fault->text);
        fprintf(to, "%s\nWaiting for it; Ctrl-C ends this.\n", clean);
        free(clean);
    }
    fclose(to);
    if (full_screen) {
        terminal_show(text);
    } else {
        printf("%s\n", text);
        fflush(stdout);
    }
    free(text);
}

/* True as long as it makes sense to ask again. */
static bool watch_round(struct status_view *view, struct client **client, bool full_screen)
{
    struct client_fault fault = {.text = ""};
    const Local__Status *status = NULL;

    if (*client == NULL && (*client = client_open(view->ctl->home, &fault)) != NULL && full_screen)
        client_unblock(*client, terminal_wait_mask());
    if (*client != NULL)
        status = client_request(*client, &view->request, &fault);
    if (status == NULL && fault.number == EINTR)
        return true;
    show_next(view, status, &fault, full_screen);
    if (status == NULL && *client != NULL && fault.number != 0 && fault.number != ETIMEDOUT) {
        terminal_leave();
        log_error("%s", fault.text); /* of the paths: it will not get better by waiting */
        return false;
    }
    if (status == NULL) {
        client_free(*client);
        *client = NULL;
    }
    return !ferror(stdout);
}

static int watch(struct status_view *view, struct client **client)
{
    bool full_screen = !view->ctl->json && terminal_width(STDOUT_FILENO) > 0, good = true;

    if (full_screen) {
        terminal_enter();
        client_unblock(*client, terminal_wait_mask());
    }
    while (good && !(full_screen && terminal_serve_signals())) {
        good = watch_round(view, client, full_screen);
        if (good && !(full_screen && terminal_serve_signals()))
            terminal_pause(WATCH_NS);
    }
    terminal_leave();
    return good ? CTL_DONE : CTL_FAILED;
}

int status_show(const struct ctl *ctl)
{
    struct status_view view;
    struct client *client = ctl_open(ctl, false);
    char **paths = client != NULL ? ctl_paths(ctl) : NULL;
    int status = CTL_FAILED;

    if (paths != NULL) {
        view_init(&view, ctl, paths);
        if (ctl->watch)
            status = watch(&view, &client);
        else
            status = show_once(&view, client) ? CTL_DONE : CTL_FAILED;
    }
    ctl_free_paths(ctl, paths);
    client_free(client);
    return status;
}
