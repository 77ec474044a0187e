/* The pool of workers. */
#include "base/workers.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct note {
    struct job job;
    int number;
};

static sem_t gate, entered;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int order[64];
static unsigned count;
static pthread_barrier_t together;
static char name[16];

static int set_up(void **state)
{
    count = 0;
    return sem_init(&gate, 0, 0) < 0 || sem_init(&entered, 0, 0) < 0 ? -1 : 0;
}

static void run_gate(struct job *job)
{
    sem_post(&entered);
    sem_wait(&gate);
    free(job);
}

static void run_note(struct job *job)
{
    struct note *note = (struct note *)job;

    pthread_mutex_lock(&lock);
    order[count++] = note->number;
    pthread_mutex_unlock(&lock);
    free(note);
}

static void post(struct workers *workers, void (*run)(struct job *), int number, bool urgent)
{
    struct note *note = calloc(1, sizeof(*note));

    note->job.run = run;
    note->number = number;
    workers_post(workers, &note->job, urgent);
}

static void jobs_run_in_order_and_urgent_ones_first(void **state)
{
    static const int expected[] = {101, 102, 1, 2, 3};
    struct workers *workers = workers_new("test", 1);

    post(workers, run_gate, 0, false);
    sem_wait(&entered); /* the only worker is busy */
    post(workers, run_note, 1, false);
    post(workers, run_note, 2, false);
    post(workers, run_note, 101, true);
    post(workers, run_note, 102, true);
    post(workers, run_note, 3, false);
    assert_int_equal(workers_backlog(workers), 6);
    sem_post(&gate);
    workers_free(workers);
    assert_int_equal(count, 5);
    assert_memory_equal(order, expected, sizeof(expected));
}

static void the_pool_ends_only_after_all_jobs(void **state)
{
    struct workers *workers = workers_new("test", 2);

    for (int i = 0; i < 60; i++)
        post(workers, run_note, i, i % 3 == 0);
    workers_free(workers);
    assert_int_equal(count, 60);
}

static void run_together(struct job *job)
{
    /* Each waits until the other is here too: one thread alone would never come back. */
    pthread_barrier_wait(&together);
    free(job);
}

static void two_threads_work_at_once(void **state)
{
    struct workers *workers = workers_new("test", 2);

    assert_int_equal(pthread_barrier_init(&together, NULL, 2), 0);
    post(workers, run_together, 0, false);
    post(workers, run_together, 0, true);
    workers_free(workers);
}

static struct workers *pool;

static void run_and_post(struct job *job)
{
    struct note *note = (struct note *)job;

    if (note->number > 0)
        post(pool, run_and_post, note->number - 1, false);
    run_note(job);
}

static void a_job_may_post_another_even_while_the_pool_ends(void **state)
{
    pool = workers_new("test", 2);
    post(pool, run_and_post, 50, false);
    workers_free(pool);
    assert_int_equal(count, 51);
}

static void run_name(struct job *job)
{
    pthread_getname_np(pthread_self(), name, sizeof(name));
    free(job);
}

static void a_worker_bears_the_pools_name(void **state)
{
    struct workers *workers = workers_new("hash", 1);

    post(workers, run_name, 0, false);
    workers_free(workers);
    assert_string_equal(name, "hash-0");
}

static size_t ended;

static void run_count(struct job *job)
{
    __atomic_add_fetch(&ended, 1, __ATOMIC_RELAXED);
    free(job);
}

static void *poster(void *arg)
{
    for (int i = 0; i < 5000; i++)
        post(arg, run_count, i, i % 7 == 0);
    return NULL;
}

static void no_job_of_several_posters_is_lost(void **state)
{
    struct workers *workers = workers_new("test", 3);
    pthread_t threads[4];

    ended = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, poster, workers), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    workers_free(workers);
    assert_int_equal(ended, 20000);
}

static int niceness;

static void run_look(struct job *job)
{
    niceness = getpriority(PRIO_PROCESS, 0);
    free(job);
}

static void a_meek_pool_gives_way_and_nobody_else_does(void **state)
{
    const int own = getpriority(PRIO_PROCESS, 0);
    struct workers *meek = workers_new_meek("meek", 1), *other;

    post(meek, run_look, 0, false);
    workers_drain(meek);
    assert_int_equal(niceness, own + 10 < 19 ? own + 10 : 19);
    other = workers_new("other", 1);
    post(other, run_look, 0, false);
    workers_drain(other);
    assert_int_equal(niceness, own);
    assert_int_equal(getpriority(PRIO_PROCESS, 0), own);
    workers_free(meek);
    workers_free(other);
}

static void the_backlog_sinks_to_nothing(void **state)
{
    struct workers *workers = workers_new("test", 0);

    assert_int_equal(workers_backlog(workers), 0);
    post(workers, run_gate, 0, false);
    sem_wait(&entered);
    assert_int_equal(workers_backlog(workers), 1); /* running counts */
    sem_post(&gate);
    while (workers_backlog(workers) > 0)
        sched_yield();
    workers_free(workers);
    workers_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(jobs_run_in_order_and_urgent_ones_first, set_up),
        cmocka_unit_test_setup(the_pool_ends_only_after_all_jobs, set_up),
        cmocka_unit_test_setup(two_threads_work_at_once, set_up),
        cmocka_unit_test_setup(a_job_may_post_another_even_while_the_pool_ends, set_up),
        cmocka_unit_test_setup(a_worker_bears_the_pools_name, set_up),
        cmocka_unit_test_setup(no_job_of_several_posters_is_lost, set_up),
        cmocka_unit_test_setup(a_meek_pool_gives_way_and_nobody_else_does, set_up),
        cmocka_unit_test_setup(the_backlog_sinks_to_nothing, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
