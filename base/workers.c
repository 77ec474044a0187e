/* A fixed set of threads that take jobs from two queues, the urgent one first.
 *
 * Owned by whoever made it; the queues are guarded by `lock`, which is held for a few instructions
 * and never while a job runs. A job belongs to the pool from workers_post until its `run` is
 * entered.
 *
 * Invariants: `waiting` threads sleep on `wake`, each because both queues were empty; `backlog`
 * counts jobs from their post until their `run` has returned. */
#include "base/workers.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/thread.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define WORKERS_MAGIC 0x776f726bu

struct queue {
    struct job *first, **end;
};

/* 110 of 1024 parts of what a thread without it weighs. */
#define MEEK_NICE 10

struct workers {
    unsigned magic;
    unsigned threads;
    bool meek;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_cond_t quiet;        /* backlog has become 0 */
    struct queue urgent, normal; /* under lock */
    unsigned waiting;            /* under lock */
    bool ending;                 /* under lock */
    size_t backlog;              /* atomic */
    pthread_t thread[];
};

static void queue_put(struct queue *queue, struct job *job)
{
    job->next = NULL;
    *queue->end = job;
    queue->end = &job->next;
}

static struct job *queue_take(struct queue *queue)
{
    struct job *job = queue->first;

    if (job == NULL)
        return NULL;
    queue->first = job->next;
    if (queue->first == NULL)
        queue->end = &queue->first;
    job->next = NULL;
    return job;
}

/* The next job, waiting for one; NULL when the pool ends and nothing is left. */
static struct job *next_job(struct workers *workers)
{
    struct job *job;

    CHECK(pthread_mutex_lock(&workers->lock) == 0);
    for (;;) {
        job = queue_take(&workers->urgent);
        if (job == NULL)
            job = queue_take(&workers->normal);
        if (job != NULL || workers->ending)
            break;
        workers->waiting++;
        CHECK(pthread_cond_wait(&workers->wake, &workers->lock) == 0);
        workers->waiting--;
    }
    CHECK(pthread_mutex_unlock(&workers->lock) == 0);
    return job;
}

static void *work(void *arg)
{
    struct workers *workers = arg;
    struct job *job;

    CHECK_OBJECT(workers, WORKERS_MAGIC);
    if (workers->meek) /* of this thread alone; where a sandbox forbids it, it stays as it is */
        (void)setpriority(PRIO_PROCESS, (id_t)gettid(), getpriority(PRIO_PROCESS, 0) + MEEK_NICE);
    while ((job = next_job(workers)) != NULL) {
        job->run(job);
        if (__atomic_sub_fetch(&workers->backlog, 1, __ATOMIC_ACQ_REL) == 0) {
            CHECK(pthread_mutex_lock(&workers->lock) == 0);
            CHECK(pthread_cond_broadcast(&workers->quiet) == 0);
            CHECK(pthread_mutex_unlock(&workers->lock) == 0);
        }
    }
    return NULL;
}

/* Processors that this process may use, which taskset or a container may have made fewer. */
static unsigned processors(void)
{
    cpu_set_t set;
    long online;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);
    online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (unsigned)online : 1;
}

static struct workers *pool_new(const char *name, unsigned threads, bool meek)
{
    struct workers *workers;

    if (threads == 0)
        threads = processors();
    workers = xcalloc(1, sizeof(*workers) + threads * sizeof(workers->thread[0]));
    workers->magic = WORKERS_MAGIC;
    workers->threads = threads;
    workers->meek = meek;
    workers->urgent.end = &workers->urgent.first;
    workers->normal.end = &workers->normal.first;
    CHECK(pthread_mutex_init(&workers->lock, NULL) == 0);
    CHECK(pthread_cond_init(&workers->wake, NULL) == 0);
    CHECK(pthread_cond_init(&workers->quiet, NULL) == 0);
    for (unsigned i = 0; i < threads; i++) {
        char *thread_name = xasprintf("%s-%u", name, i);

        workers->thread[i] = thread_start(thread_name, work, workers);
        free(thread_name);
    }
    return workers;
}

struct workers *workers_new(const char *name, unsigned threads)
{
    return pool_new(name, threads, false);
}

struct workers *workers_new_meek(const char *name, unsigned threads)
{
    return pool_new(name, threads, true);
}

void workers_post(struct workers *workers, struct job *job, bool urgent)
{
    bool wake;

    CHECK_OBJECT(workers, WORKERS_MAGIC);
    CHECK(job->run != NULL);
    __atomic_add_fetch(&workers->backlog, 1, __ATOMIC_RELAXED);
    CHECK(pthread_mutex_lock(&workers->lock) == 0);
    queue_put(urgent ? &workers->urgent : &workers->normal, job);
    wake = workers->waiting > 0;
    CHECK(pthread_mutex_unlock(&workers->lock) == 0);
    if (wake)
        CHECK(pthread_cond_signal(&workers->wake) == 0);
}

size_t workers_backlog(const struct workers *workers)
{
    return __atomic_load_n(&workers->backlog, __ATOMIC_ACQUIRE);
}

void workers_drain(struct workers *workers)
{
    CHECK_OBJECT(workers, WORKERS_MAGIC);
    CHECK(pthread_mutex_lock(&workers->lock) == 0);
    while (workers_backlog(workers) > 0)
        CHECK(pthread_cond_wait(&workers->quiet, &workers->lock) == 0);
    CHECK(pthread_mutex_unlock(&workers->lock) == 0);
}

void workers_free(struct workers *workers)
{
    if (workers == NULL)
        return;
    CHECK_OBJECT(workers, WORKERS_MAGIC);
    CHECK(pthread_mutex_lock(&workers->lock) == 0);
    workers->ending = true;
    CHECK(pthread_mutex_unlock(&workers->lock) == 0);
    CHECK(pthread_cond_broadcast(&workers->wake) == 0);
    for (unsigned i = 0; i < workers->threads; i++)
        CHECK(pthread_join(workers->thread[i], NULL) == 0);
    CHECK(workers->backlog == 0);
    CHECK(pthread_cond_destroy(&workers->wake) == 0);
    CHECK(pthread_cond_destroy(&workers->quiet) == 0);
    CHECK(pthread_mutex_destroy(&workers->lock) == 0);
    workers->magic = 0;
    free(workers);
}
