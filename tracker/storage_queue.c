/* The storage's thread: takes jobs, groups them into transactions, gives them back.
 *
 * Owns the storage while it lives; knows nothing of what jobs do. Invariants:
 *   1. a job is given back only after its group's commit has returned;
 *   2. jobs come back in the order of posting;
 *   3. what a failed job did is undone before the next one runs. */
#include "tracker/storage_queue.h"

#include <pthread.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "tracker/storage.h"

#define GROUP_MAX                                                                                  \
    512 /* jobs in one transaction: bounds how long the first one waits for the last */

struct storage_queue {
    struct storage *storage;
    struct loop *home;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the following */
    pthread_cond_t wake;
    struct mail *first, **last;
    bool ending;
    unsigned long transactions, jobs; /* atomic */
};

static struct storage_job *job_of(struct mail *mail)
{
    return (struct storage_job *)(void *)mail;
}

static void deliver(struct mail *mail, void *owner)
{
    struct storage_job *job = job_of(mail);
    job->done(job);
}

static void note_undone(struct storage_job *job)
{
    job->failed = true;
    if (job->undone != NULL)
        job->undone(job);
}

static void run(struct storage_job *job, struct storage *s)
{
    int64_t began = clock_thread();
    job->run(job, s);
    job->cost = clock_thread() - began;
}

static void run_marked(struct storage_job *job, struct storage *s)
{
    if (!job->writes) {
        run(job, s);
        job->failed = storage_failed(s);
        return;
    }
    if (storage_mark(s)) {
        run(job, s);
        if (!storage_failed(s) && storage_keep(s))
            return;
    }
    job->full = storage_is_full(s);
    note_undone(job);
    storage_undo(s);
}

static void run_group(struct storage_queue *q, struct storage_job **jobs, size_t count)
{
    bool writes = false;
    size_t apart = 0;
    for (size_t i = 0; i < count; i++) {
        writes |= jobs[i]->writes;
        apart += jobs[i]->apart;
    }
    if (apart == count)
        return;
    bool good = storage_begin(q->storage, writes);
    for (size_t i = 0; good && i < count; i++) {
        if (!jobs[i]->apart)
            run_marked(jobs[i], q->storage);
        good = !storage_failed(q->storage) && !storage_is_lost(q->storage);
    }
    if (good)
        good = storage_commit(q->storage);
    else
        storage_rollback(q->storage);
    bool full = storage_is_full(q->storage);
    for (size_t i = 0; !good && i < count; i++)
        if (!jobs[i]->apart) {
            jobs[i]->full |= full;
            note_undone(jobs[i]);
        }
    __atomic_fetch_add(&q->transactions, 1, __ATOMIC_RELAXED);
}

static size_t take(struct storage_queue *q, struct storage_job **jobs)
{
    size_t count = 0;
    CHECK(pthread_mutex_lock(&q->lock) == 0);
    while (q->first == NULL && !q->ending)
        CHECK(pthread_cond_wait(&q->wake, &q->lock) == 0);
    while (q->first != NULL && count < GROUP_MAX) {
        struct mail *mail = q->first;
        q->first = mail->next;
        if (q->first == NULL)
            q->last = &q->first;
        jobs[count++] = job_of(mail);
    }
    CHECK(pthread_mutex_unlock(&q->lock) == 0);
    return count;
}

static void *thread_main(void *arg)
{
    struct storage_queue *q = arg;
    struct storage_job *jobs[GROUP_MAX];
    size_t count;
    while ((count = take(q, jobs)) > 0) {
        run_group(q, jobs, count);
        for (size_t i = 0; i < count; i++)
            if (jobs[i]->apart)
                run(jobs[i], q->storage);
        __atomic_fetch_add(&q->jobs, count, __ATOMIC_RELAXED);
        for (size_t i = 0; i < count; i++)
            loop_post(q->home, &jobs[i]->mail);
    }
    return NULL;
}

struct storage_queue *storage_queue_new(struct storage *storage, struct loop *home)
{
    struct storage_queue *q = xcalloc(1, sizeof *q);
    q->storage = storage;
    q->home = home;
    q->last = &q->first;
    CHECK(pthread_mutex_init(&q->lock, NULL) == 0);
    CHECK(pthread_cond_init(&q->wake, NULL) == 0);
    q->thread = thread_start("storage", thread_main, q);
    return q;
}

void storage_queue_post(struct storage_queue *q, struct storage_job *job)
{
    job->mail = (struct mail){.deliver = deliver};
    job->failed = job->full = false;
    job->cost = 0;
    CHECK(pthread_mutex_lock(&q->lock) == 0);
    CHECK(!q->ending);
    *q->last = &job->mail;
    q->last = &job->mail.next;
    CHECK(pthread_cond_signal(&q->wake) == 0);
    CHECK(pthread_mutex_unlock(&q->lock) == 0);
}

void storage_queue_free(struct storage_queue *q)
{
    if (q == NULL)
        return;
    CHECK(pthread_mutex_lock(&q->lock) == 0);
    q->ending = true;
    CHECK(pthread_cond_signal(&q->wake) == 0);
    CHECK(pthread_mutex_unlock(&q->lock) == 0);
    CHECK(pthread_join(q->thread, NULL) == 0);
    CHECK(pthread_mutex_destroy(&q->lock) == 0);
    CHECK(pthread_cond_destroy(&q->wake) == 0);
    free(q);
}

void storage_queue_counts(const struct storage_queue *q, unsigned long *transactions,
                          unsigned long *jobs)
{
    *transactions = __atomic_load_n(&q->transactions, __ATOMIC_RELAXED);
    *jobs = __atomic_load_n(&q->jobs, __ATOMIC_RELAXED);
}
