/* p2pctl's request for the health of files.
 *
 * Owns the questions under way (struct health): one to the session for each file, answered together when all have been. Leaves
 * counting to the tracker, and talking to it to the session. Thread: local. */
#include "daemon/local_private.h"

#include <errno.h>
#include <inttypes.h>

#include "base/mem.h"
#include "daemon/session.h"
#include "proto/limits.h"

struct health_file {
    struct health *health;
    char *path;
    uint64_t size;
    uint8_t root[HASH_SIZE];
    bool pending; /* not published yet */
    Tracker__Health *answer;
    int error;
};

struct health {
    struct health *next;
    struct reply reply;
    size_t count, answered;
    bool more; /* files than are asked about */
    struct health_file *files;
};

static void health_free(struct local *l, struct health *h)
{
    for (struct health **at = &l->healths; *at != NULL; at = &(*at)->next) {
        if (*at == h) {
            *at = h->next;
            break;
        }
    }
    for (size_t i = 0; i < h->count; i++) {
        free(h->files[i].path);
        if (h->files[i].answer != NULL)
            tracker__health__free_unpacked(h->files[i].answer, NULL);
    }
    free(h->files);
    free(h);
}

#define TROUBLE 128

/* Why others do not have it, though all of it is here: the tracker hears of both a moment later. NULL: that is not so. */
static const char *not_told(struct local *l, const struct health_file *f)
{
    struct store_summary summary;

    if (f->pending)
        return "the tracker has not heard of it yet";
    if (f->answer->complete == 0 && store_summary(l->daemon->store, f->root, &summary) &&
        summary.complete)
        return "the tracker has not heard yet that it is here";
    return NULL;
}

static void fill_health(struct local *l, Local__FileHealth *out, const struct health_file *f,
                        char trouble[TROUBLE])
{
    const Tracker__Health *a = f->answer;
    const char *why;

    *out = (Local__FileHealth)LOCAL__FILE_HEALTH__INIT;
    out->path = f->path;
    out->size = f->size;
    trouble[0] = '\0';
    out->trouble = trouble;
    if (f->size == 0)
        return;
    if (a == NULL) {
        snprintf(trouble, TROUBLE, "%s",
                 f->error == ENOTCONN ? "the tracker is away" : "the tracker does not say");
        return;
    }
    out->pieces = a->pieces;
    out->rarest = a->rarest;
    out->complete = a->complete;
    out->partial = a->partial;
    out->distributed = a->distributed;
    out->missing = a->missing;
    out->offline = a->offline;
    if ((why = not_told(l, f)) != NULL)
        snprintf(trouble, TROUBLE, "%s", why);
    else if (a->missing > 0 && a->missing == a->pieces)
        snprintf(trouble, TROUBLE, "nobody who is connected has any of it");
    else if (a->missing > 0)
        snprintf(trouble, TROUBLE, "nobody who is connected has %" PRIu32 " of its pieces",
                 a->missing);
    else if (a->rarest == 1)
        snprintf(trouble, TROUBLE, "at risk: some of it is at one member only");
}

static void send_health(struct local *l, struct health *h)
{
    Local__Health message = LOCAL__HEALTH__INIT;
    Local__FileHealth *files = xcalloc(h->count + 1, sizeof *files);
    Local__FileHealth **pointers = xcalloc(h->count + 1, sizeof *pointers);
    char(*troubles)[TROUBLE] = xcalloc(h->count + 1, sizeof *troubles);

    for (size_t i = 0; i < h->count; i++) {
        fill_health(l, &files[i], &h->files[i], troubles[i]);
        pointers[i] = &files[i];
    }
    message.n_files = h->count;
    message.more = h->more;
    message.files = pointers;
    local_send(l, h->reply, TYPE(HEALTH_IS), &message.base);
    free(files);
    free(pointers);
    free(troubles);
    health_free(l, h);
}

static void health_add(struct local *l, struct health *h, const struct node *node)
{
    const struct node *child;
    uint64_t cookie = 0;

    if (node->kind == NODE_DIRECTORY)
        while (!h->more && (child = catalogue_next(l->catalogue, node, &cookie)) != NULL)
            health_add(l, h, child);
    if (node->kind != NODE_FILE || node->working)
        return;
    if (h->count == LIMIT_HEALTH_FILES) {
        h->more = true;
        return;
    }
    h->files = xrealloc(h->files, (h->count + 1) * sizeof *h->files);
    struct health_file *f = &h->files[h->count++];
    *f = (struct health_file){.path = catalogue_path(l->catalogue, node),
                              .size = node->size,
                              .pending = node->unconfirmed > 0};
    memcpy(f->root, node->root, HASH_SIZE);
}

void health_show(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Paths *m = message;

    if (!ctl_check_paths(l, reply, m->paths, m->n_paths))
        return;
    struct health *h = xcalloc(1, sizeof *h);
    h->reply = reply;
    for (size_t i = 0; i < m->n_paths; i++)
        health_add(l, h, ctl_resolve(l, reply, m->paths[i]));
    if (m->n_paths == 0 && local_is_visible(l))
        health_add(l, h, catalogue_node(l->catalogue, INO_ROOT));
    h->next = l->healths;
    l->healths = h;
    for (size_t i = 0; i < h->count; i++) {
        struct health_file *f = &h->files[i];
        f->health = h;
        if (f->size == 0)
            h->answered++;
        else
            session_health(l->daemon->session, f->root, f->size, f);
    }
    if (h->answered == h->count)
        send_health(l, h);
}

void health_answer(struct local *l, void *cookie, int error, Tracker__Health *answer)
{
    struct health_file *f = cookie;
    struct health *h = f->health;

    f->error = error;
    f->answer = answer;
    if (++h->answered == h->count)
        send_health(l, h);
}

void health_free_all(struct local *l)
{
    while (l->healths != NULL)
        health_free(l, l->healths);
}
