/* Loops: mail from many threads, stopping, timers. */
#include "base/loop.h"

#include "base/clock.h"

#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define POSTERS 4
#define EACH    25000

struct owner {
    struct loop *loop;
    unsigned next[POSTERS]; /* the number that is expected of each poster */
    unsigned total, wrong;
};

struct numbered {
    struct mail mail;
    unsigned poster, number;
};

static struct owner owner;
static sem_t done;

static int set_up(void **state)
{
    memset(&owner, 0, sizeof(owner));
    owner.loop = loop_new("test-loop");
    loop_set_owner(owner.loop, &owner);
    return sem_init(&done, 0, 0);
}

static int tear_down(void **state)
{
    loop_free(owner.loop);
    return 0;
}

static void deliver_numbered(struct mail *mail, void *arg)
{
    struct numbered *numbered = (struct numbered *)mail;
    struct owner *to = arg;

    if (to != &owner || !loop_is_here(to->loop) || to->next[numbered->poster] != numbered->number)
        to->wrong++;
    to->next[numbered->poster] = numbered->number + 1;
    if (++to->total == POSTERS * EACH)
        sem_post(&done);
    free(numbered);
}

static void post_numbered(unsigned poster, unsigned number)
{
    struct numbered *numbered = calloc(1, sizeof(*numbered));

    numbered->mail.deliver = deliver_numbered;
    numbered->poster = poster;
    numbered->number = number;
    loop_post(owner.loop, &numbered->mail);
}

static void *poster(void *arg)
{
    for (unsigned i = 0; i < EACH; i++) {
        post_numbered((unsigned)(uintptr_t)arg, i);
        if (i % 5000 == 0)
            usleep(1000); /* so that the box runs empty now and then */
    }
    return NULL;
}

static void mail_of_four_threads_arrives_once_and_in_order(void **state)
{
    pthread_t threads[POSTERS];

    loop_start(owner.loop);
    assert_false(loop_is_here(owner.loop));
    for (uintptr_t i = 0; i < POSTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, poster, (void *)i), 0);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    sem_wait(&done); /* without a stop: no wake-up may be lost */
    loop_stop(owner.loop);
    loop_join(owner.loop);
    assert_int_equal(owner.total, POSTERS * EACH);
    assert_int_equal(owner.wrong, 0);
}

/* --- ping-pong
 * ------------------------------------------------------------------------------------ */

struct ball {
    struct mail mail;
    struct loop *here, *there;
    unsigned left;
};

static void deliver_ball(struct mail *mail, void *arg)
{
    struct ball *ball = (struct ball *)mail;
    struct loop *there = ball->there;

    if (ball->left-- == 0) {
        sem_post(&done);
        return;
    }
    ball->there = ball->here;
    ball->here = there;
    loop_post(there, &ball->mail);
}

static void a_ball_goes_to_and_fro_between_two_loops(void **state)
{
    struct loop *other = loop_new("other");
    struct ball ball = {{NULL, deliver_ball}, owner.loop, other, 20000};

    loop_start(owner.loop);
    loop_start(other);
    loop_post(owner.loop, &ball.mail);
    sem_wait(&done);
    loop_stop(other);
    loop_stop(owner.loop);
    loop_join(other);
    loop_join(owner.loop);
    loop_free(other);
    assert_int_equal(ball.left, UINT_MAX);
}

/* --- stopping
 * ------------------------------------------------------------------------------------- */

static void the_loop_ends_after_the_mail_posted_before(void **state)
{
    for (unsigned i = 0; i < 1000; i++)
        post_numbered(0, i);
    loop_stop(owner.loop);
    for (unsigned i = 1000; i < 1010; i++)
        post_numbered(0, i);
    loop_run(owner.loop);
    assert_int_equal(owner.total, 1000);
    assert_true(loop_is_here(owner.loop));
}

static void mail_left_in_the_box_is_delivered_by_loop_free(void **state)
{
    the_loop_ends_after_the_mail_posted_before(NULL);
    post_numbered(0, 1010);
    loop_stop(owner.loop); /* too late, and harmless */
    post_numbered(0, 1011);
    loop_free(owner.loop);
    assert_int_equal(owner.total, 1012);
    assert_int_equal(owner.wrong, 0);
    owner.loop = NULL;
}

static void deliver_chain(struct mail *mail, void *arg)
{
    struct numbered *numbered = (struct numbered *)mail;

    owner.total++;
    if (numbered->number-- > 0)
        loop_post(owner.loop, mail);
    else
        free(numbered);
}

static void mail_that_posts_mail_in_loop_free_is_delivered_too(void **state)
{
    struct numbered *numbered = calloc(1, sizeof(*numbered));

    numbered->mail.deliver = deliver_chain;
    numbered->number = 10;
    loop_post(owner.loop, &numbered->mail);
    loop_free(owner.loop);
    owner.loop = NULL;
    assert_int_equal(owner.total, 11);
}

static void a_loop_may_be_stopped_twice_and_from_within(void **state)
{
    loop_stop(owner.loop);
    loop_stop(owner.loop);
    loop_start(owner.loop);
    loop_join(owner.loop);
    loop_free(NULL);
}

static void deliver_here(struct mail *mail, void *arg)
{
    char *name = (char *)(mail + 1);

    owner.total += loop_is_here(owner.loop);
    pthread_getname_np(pthread_self(), name, 16);
    loop_stop(owner.loop);
}

static void the_thread_has_the_loops_name(void **state)
{
    struct {
        struct mail mail;
        char name[16];
    } mail = {{NULL, deliver_here}, ""};

    loop_post(owner.loop, &mail.mail);
    loop_start(owner.loop);
    loop_join(owner.loop);
    assert_string_equal(mail.name, "test-loop");
    assert_int_equal(owner.total, 1);
}

static void deliver_mask(struct mail *mail, void *arg)
{
    pthread_sigmask(SIG_SETMASK, NULL, (sigset_t *)(mail + 1));
}

static void signals_do_not_reach_a_loops_thread(void **state)
{
    struct {
        struct mail mail;
        sigset_t mask;
    } mail = {.mail = {NULL, deliver_mask}};
    sigset_t mask;

    loop_post(owner.loop, &mail.mail);
    loop_stop(owner.loop);
    loop_start(owner.loop);
    loop_join(owner.loop);
    assert_true(sigismember(&mail.mask, SIGTERM));
    assert_true(sigismember(&mail.mask, SIGCHLD));
    assert_false(sigismember(&mail.mask, SIGSEGV)); /* its own fault */
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_false(sigismember(&mask, SIGTERM)); /* the starter's mask is as before */
}

/* --- timers
 * --------------------------------------------------------------------------------------- */

static struct timer *timers[3];
static int fired[8], fired_count;
static int64_t fired_at;

static void fire(void *arg)
{
    fired[fired_count++] = (int)(intptr_t)arg;
    fired_at = clock_now();
    if ((intptr_t)arg == 2)
        loop_stop(owner.loop);
}

static int timers_up(void **state)
{
    fired_count = 0;
    set_up(state);
    for (intptr_t i = 0; i < 3; i++)
        timers[i] = timer_new(owner.loop, fire, (void *)i);
    return 0;
}

static int timers_down(void **state)
{
    for (int i = 0; i < 3; i++)
        timer_free(timers[i]);
    return tear_down(state);
}

static void timers_fire_in_order_and_never_early(void **state)
{
    int64_t start = clock_now();

    timer_set(timers[2], 30 * NS_PER_MS);
    timer_set(timers[0], 20 * NS_PER_MS);
    timer_set(timers[1], 10 * NS_PER_MS);
    assert_true(timer_pending(timers[0]));
    loop_run(owner.loop);
    assert_int_equal(fired_count, 3);
    assert_int_equal(fired[0], 1);
    assert_int_equal(fired[1], 0);
    assert_int_equal(fired[2], 2);
    assert_true(fired_at - start >= 30 * NS_PER_MS);
    assert_true(fired_at - start < 2 * NS_PER_S);
    assert_false(timer_pending(timers[0]));
}

static void a_cancelled_timer_does_not_fire(void **state)
{
    timer_set(timers[0], 0);
    timer_set(timers[1], -5); /* as 0 */
    timer_set(timers[2], 10 * NS_PER_MS);
    timer_cancel(timers[0]);
    timer_cancel(timers[0]);
    assert_false(timer_pending(timers[0]));
    loop_run(owner.loop);
    assert_int_equal(fired_count, 2);
    assert_int_equal(fired[0], 1);
}

static void a_timer_set_again_fires_once_at_the_later_time(void **state)
{
    timer_set(timers[0], NS_PER_MS);
    timer_set(timers[0], 20 * NS_PER_MS);
    timer_set(timers[1], 10 * NS_PER_MS);
    timer_set(timers[2], 30 * NS_PER_MS);
    loop_run(owner.loop);
    assert_int_equal(fired_count, 3);
    assert_int_equal(fired[0], 1);
    assert_int_equal(fired[1], 0);
}

static void fire_late(void *arg)
{
    int64_t busy_until = clock_now() + 5 * NS_PER_MS;

    /* A clock read at the beginning of the round would be this much behind. */
    while (clock_now() < busy_until)
        ;
    fired_at = clock_now() + 3 * NS_PER_MS;
    timer_set(arg, 3 * NS_PER_MS);
}

static void fire_check(void *arg)
{
    fired[fired_count++] = clock_now() >= fired_at;
    loop_stop(owner.loop);
}

static void a_timer_set_in_a_long_round_is_not_early(void **state)
{
    struct timer *check = timer_new(owner.loop, fire_check, NULL);
    struct timer *late = timer_new(owner.loop, fire_late, check);

    timer_set(late, 0);
    loop_run(owner.loop);
    assert_int_equal(fired_count, 1);
    assert_true(fired[0]);
    timer_free(late);
    timer_free(check);
}

static void fire_and_free(void *arg)
{
    struct timer **self = arg;

    fired_count++;
    fired[7] = timer_pending(*self);
    timer_free(*self);
    timer_free(timers[0]); /* due in the same round */
    *self = timers[0] = NULL;
    timer_set(timers[2], NS_PER_MS);
}

static void a_timer_may_be_freed_as_it_fires_and_free_others(void **state)
{
    struct timer *self = timer_new(owner.loop, fire_and_free, &self);

    timer_set(self, 0);
    timer_set(timers[0], 0);
    usleep(1000);
    loop_run(owner.loop);
    assert_null(self);
    assert_int_equal(fired_count, 2);
    assert_int_equal(fired[1], 2);
    assert_false(fired[7]);
}

static void deliver_forever(struct mail *mail, void *arg)
{
    if (fired_count == 0)
        loop_post(owner.loop, mail);
    else
        loop_stop(owner.loop);
}

static void mail_that_answers_mail_does_not_keep_timers_waiting(void **state)
{
    struct mail mail = {NULL, deliver_forever};

    loop_post(owner.loop, &mail);
    timer_set(timers[0], 5 * NS_PER_MS);
    loop_run(owner.loop);
    assert_int_equal(fired_count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name)  cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TIMER(name) cmocka_unit_test_setup_teardown(name, timers_up, timers_down)
        TEST(mail_of_four_threads_arrives_once_and_in_order),
        TEST(a_ball_goes_to_and_fro_between_two_loops),
        TEST(the_loop_ends_after_the_mail_posted_before),
        TEST(mail_left_in_the_box_is_delivered_by_loop_free),
        TEST(mail_that_posts_mail_in_loop_free_is_delivered_too),
        TEST(a_loop_may_be_stopped_twice_and_from_within),
        TEST(the_thread_has_the_loops_name),
        TEST(signals_do_not_reach_a_loops_thread),
        TIMER(timers_fire_in_order_and_never_early),
        TIMER(a_cancelled_timer_does_not_fire),
        TIMER(a_timer_set_again_fires_once_at_the_later_time),
        TIMER(a_timer_set_in_a_long_round_is_not_early),
        TIMER(a_timer_may_be_freed_as_it_fires_and_free_others),
        TIMER(mail_that_answers_mail_does_not_keep_timers_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
