/* Seals that wait for the tracker's word, so that close() can say what became of a file.
 *
 * Owns struct sealed. Thread: local. Whoever closes is answered when the tracker has taken the file,
 * or has said why not; if it is away, or silent for RESULT_NS, as soon as the change is safely in
 * the journal: then the file is pending, and published later. */
#include "daemon/local_private.h"

#include <errno.h>

#include "base/clock.h"
#include "base/mem.h"

#define RESULT_NS (5 * NS_PER_S) /* what close() waits for the tracker */

/* Its name is known here; says so to whoever closes, as soon as it is safe. */
void write_published(struct local *l, struct reply reply, uint64_t ino, uint64_t op)
{
    if (local_is_connected(l) && local_client(l, reply.client) != NULL) {
        /* Before the operation leaves: killed in between, we would take the file for lost. */
        (void)catalogue_commit(l->catalogue, false);
        struct sealed *s = xcalloc(1, sizeof *s);
        s->op = op;
        s->ino = ino;
        s->reply = reply;
        s->deadline = clock_now() + RESULT_NS;
        s->next = l->sealed;
        l->sealed = s;
        return;
    }
    if (catalogue_commit(l->catalogue, true) == 0)
        names_send_attr(l, reply, ino);
    else
        local_error(l, reply, EIO, "state.db cannot be written");
}

bool write_awaited(const struct local *l, uint64_t op)
{
    for (const struct sealed *s = l->sealed; s != NULL; s = s->next)
        if (s->op == op)
            return true;
    return false;
}

void write_answered(struct local *l, uint64_t op, int error, uint64_t ino)
{
    for (struct sealed **at = &l->sealed; *at != NULL; at = &(*at)->next) {
        struct sealed *s = *at;
        if (s->op != op)
            continue;
        *at = s->next;
        if (error == 0)
            names_send_attr(l, s->reply, ino);
        else
            local_error(l, s->reply, error, "the tracker does not take it: %s", strerror(-error));
        free(s);
        return;
    }
}

/* Kept here and published later; the caller is told as soon as that is safe. */
void write_settle(struct local *l, int64_t now)
{
    bool safe = false, tried = false;

    for (struct sealed **at = &l->sealed; *at != NULL;) {
        struct sealed *s = *at;
        if (s->deadline > now) {
            at = &s->next;
            continue;
        }
        if (!tried)
            safe = catalogue_commit(l->catalogue, true) == 0;
        tried = true;
        *at = s->next;
        if (safe)
            names_send_attr(l, s->reply, s->ino);
        else
            local_error(l, s->reply, EIO, "state.db cannot be written");
        free(s);
    }
}

void write_tracker_away(struct local *l)
{
    write_settle(l, INT64_MAX);
}

void write_forget_sealed(struct local *l)
{
    while (l->sealed != NULL) {
        struct sealed *s = l->sealed;
        l->sealed = s->next;
        free(s);
    }
}
