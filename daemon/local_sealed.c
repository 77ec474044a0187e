/* Answers that promise something durable: to Seal, which close() waits for, and to Sync, which is fsync().
 *
 * Owns struct sealed. Thread: local. The change is committed without a sync on this thread, then a worker syncs what was
 * written: so nobody else waits for the disk, and all who close at the same moment share one sync.
 *
 * close() so means: the content and the change in the journal are durable here. The tracker hears of it a moment later
 * (JOURNAL_LINGER_NS), or when it is back; until then the file's state is "pending". */
#include "daemon/local_private.h"

#include <errno.h>

#include "base/mem.h"
#include "daemon/ingest.h"

struct sync_task {
    struct task task;
    struct sealed *waiting;
    int error;
};

void sealed_answer(struct local *l, struct reply reply, uint64_t ino, bool seal,
                   struct ingest *ingest)
{
    struct sealed *s = xcalloc(1, sizeof *s), **end = &l->sealed;

    s->ino = ino;
    s->seal = seal;
    s->ingest = ingest;
    s->reply = reply;
    while (*end != NULL)
        end = &(*end)->next;
    *end = s;
}

/* Frees the list. */
static void answer(struct local *l, struct sealed *list, int error)
{
    while (list != NULL) {
        struct sealed *s = list;
        list = s->next;
        if (error != 0)
            local_error(l, s->reply, error, "state.db cannot be written");
        else if (s->seal)
            names_send_attr(l, s->reply, s->ino);
        else
            local_done(l, s->reply);
        if (error == 0 && s->ingest != NULL) {
            if (s->reply.client == 0) /* nobody will come for it */
                catalogue_working_remove(l->catalogue, ingest_number(s->ingest));
            write_drop_ingest(l, s->ingest);
        } else if (s->ingest != NULL && s->reply.client == 0 && !s->seal) {
            sealed_answer(l, s->reply, s->ino, false,
                          s->ingest); /* given up: it goes with the next */
        } else if (s->ingest != NULL)
            ingest_free(s->ingest); /* the next start knows what has become of it */
        free(s);
    }
}

static void sync_work(struct task *task)
{
    ((struct sync_task *)(void *)task)->error = catalogue_sync(task->local->state_path);
}

static void sync_done(struct local *l, struct task *task)
{
    struct sync_task *sync = (struct sync_task *)(void *)task;

    l->syncing = false;
    l->sync_lost |= sync->error != 0;
    answer(l, sync->waiting, sync->error);
    free(sync);
}

void sealed_sync(struct local *l)
{
    if (l->sealed == NULL || l->syncing)
        return;
    struct sealed *waiting = l->sealed;
    int error = catalogue_commit(l->catalogue, false);
    /* After a sync that failed another one says that all is well, and it is not. */
    if (error == 0 && l->sync_lost) {
        error = catalogue_checkpoint(l->catalogue);
        l->sync_lost = error != 0;
    }
    l->sealed = NULL;
    if (error != 0) {
        answer(l, waiting, error);
        return;
    }
    struct sync_task *sync = xcalloc(1, sizeof *sync);
    sync->waiting = waiting;
    l->syncing = true;
    local_post(l, &sync->task, sync_work, sync_done);
}

void sealed_forget(struct local *l)
{
    while (l->sealed != NULL) {
        struct sealed *s = l->sealed;
        l->sealed = s->next;
        if (s->ingest != NULL)
            ingest_free(s->ingest);
        free(s);
    }
}
