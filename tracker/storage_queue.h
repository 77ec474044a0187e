/* The thread that owns the storage, and the jobs it does.
 *
 * Group commit: the thread takes all jobs that wait, does them in the order in which they were
 * posted within one transaction, commits, and only then gives all of them back. So what `done`
 * tells a member is on disk, and a hundred members that write at once cost one fsync.
 *
 * A job that fails is undone alone; if the commit fails, every job of the group has failed, also
 * those that only read (what they read may never have happened). */
#ifndef TRACKER_STORAGE_QUEUE_H
#define TRACKER_STORAGE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/loop.h"

struct storage;
struct storage_queue;

struct storage_job {
    struct mail mail; /* the queue's */
    /* On the storage's thread, within a transaction. */
    void (*run)(struct storage_job *, struct storage *);
    /* On the home loop's thread; owns the job. Jobs come back in the order in which they were
     * posted. */
    void (*done)(struct storage_job *);
    /* On the storage's thread, before any job behind it runs: nothing of this one happened. Once or twice; may be NULL. */
    void (*undone)(struct storage_job *);
    bool writes;
    bool apart;   /* runs outside the group's transaction, after it: piece maps */
    int64_t cost; /* ns of the thread's processor time that `run` took */
    bool failed;  /* the result: nothing of it happened */
    bool full;    /* and that for want of space */
};

/* The storage is the thread's until storage_queue_free gives it back. */
struct storage_queue *storage_queue_new(struct storage *, struct loop *home);
/* Any thread. Whoever posts bounds how much is under way. */
void storage_queue_post(struct storage_queue *, struct storage_job *);
/* Does what is left, ends the thread. The last jobs are in the home loop's mailbox then. NULL is
 * fine. */
void storage_queue_free(struct storage_queue *);
/* Transactions and jobs so far; any thread. Their quotient tells how well grouping works. */
void storage_queue_counts(const struct storage_queue *, unsigned long *transactions,
                          unsigned long *jobs);

#endif
