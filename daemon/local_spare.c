/* A working file that lies ready, while files are made one after the other (`tar x`, `cp -r`).
 *
 * Owns l->spare. To make one takes two threads that wake each other and a disk that may be busy; with one ready a Create is
 * answered at once, and the next is made meanwhile. Only who makes a second file within SPARE_NS gets it so: after that
 * time without another the file goes again. It has no row, so what a killed p2pd leaves of it is deleted at the next start
 * (ingest_recover). Thread: local; files are made and deleted on workers. */
#include "daemon/local_private.h"

#include "base/clock.h"
#include "base/mem.h"
#include "daemon/ingest.h"

#define SPARE_NS (2 * NS_PER_S)

struct spare_task {
    struct task task;
    struct ingest *ingest;
    uint64_t inode;
};

static void spare_work(struct task *task)
{
    struct spare_task *spare = (struct spare_task *)(void *)task;
    int error;

    spare->ingest = ingest_new(task->local->daemon->store, NULL, 0, &error);
    spare->inode = spare->ingest == NULL ? 0 : ingest_inode(spare->ingest);
}

static void spare_done(struct local *l, struct task *task)
{
    struct spare_task *spare = (struct spare_task *)(void *)task;

    l->spare.making = false;
    if (l->stopped || clock_now() >= l->spare.until) {
        write_drop_ingest(l, spare->ingest);
    } else {
        l->spare.ingest = spare->ingest; /* NULL: who makes the next file is told why */
        l->spare.inode = spare->inode;
    }
    free(spare);
}

struct ingest *spare_take(struct local *l, uint64_t *inode)
{
    struct ingest *ingest = l->spare.ingest;
    int64_t now = clock_now();

    *inode = l->spare.inode;
    l->spare.ingest = NULL;
    if (now < l->spare.until && !l->spare.making) {
        l->spare.making = true;
        local_post(l, &((struct spare_task *)xcalloc(1, sizeof(struct spare_task)))->task,
                   spare_work, spare_done);
    }
    l->spare.until = now + SPARE_NS;
    return ingest;
}

void spare_tick(struct local *l, int64_t now)
{
    if (now < l->spare.until)
        return;
    write_drop_ingest(l, l->spare.ingest);
    l->spare.ingest = NULL;
}
