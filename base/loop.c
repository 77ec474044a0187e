/* A thread with an event loop (libevent), a mailbox and timers.
 *
 * Owns the event base, the box and the thread; leaves what the events mean to the loop's owner.
 * Only the box is shared: a list under a mutex that is held for a few instructions. Whoever puts
 * the first mail into an empty box writes the eventfd; everyone else only appends. The eventfd is
 * watched edge-triggered, so each write wakes the loop and nobody ever has to read it.
 *
 *   loop_post -> box -> (thread of the loop) batch -> deliver
 *
 * Invariants: mail in the box means that a wake-up is under way; `batch` is older than the box; a
 * round takes the box once, so mail that answers mail cannot keep sockets and timers waiting.
 * libevent's own locks are off (EVENT_BASE_FLAG_NOLOCK): its calls are for the loop's thread. */
#include "base/loop.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/thread.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define LOOP_MAGIC  0x6c6f6f70u
#define TIMER_MAGIC 0x74696d72u

struct loop {
    unsigned magic;
    char name[16];
    struct event_base *base;
    struct event wake;
    int wake_fd;
    void *owner;
    pthread_t thread;
    bool started; /* `thread` is to be joined */
    bool running; /* atomic */

    pthread_mutex_t lock;
    struct mail *box, **box_end; /* under lock */

    /* The loop's thread only. */
    struct mail *batch;
    bool stopping;
};

struct timer {
    unsigned magic;
    struct loop *loop;
    struct event event;
    int64_t deadline;
    void (*fire)(void *arg);
    void *arg;
};

/* The loop that runs on this thread. */
static _Thread_local const struct loop *loop_here;

static void log_libevent(int severity, const char *message)
{
    if (severity >= EVENT_LOG_ERR)
        log_error("libevent: %s", message);
    else if (severity == EVENT_LOG_WARN)
        log_warning("libevent: %s", message);
}

static void set_up_libevent(void)
{
    event_set_log_callback(log_libevent);
}

static struct event_base *base_new(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct event_config *config;
    struct event_base *base;

    CHECK(pthread_once(&once, set_up_libevent) == 0);
    config = event_config_new();
    CHECK(config != NULL);
    /* The streams stand on epoll's edges and early notice of a peer's end. */
    CHECK(event_config_require_features(config, EV_FEATURE_ET | EV_FEATURE_EARLY_CLOSE) == 0);
    /* Precise timers cost 0.3 us a round (a timerfd) and fire 0.1 ms late on average instead of 3.
     */
    CHECK(event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_IGNORE_ENV |
                                            EVENT_BASE_FLAG_PRECISE_TIMER) == 0);
    base = event_base_new_with_config(config);
    CHECK(base != NULL);
    event_config_free(config);
    return base;
}

/* Delivers the batch until it is empty or a mail in it stops the loop. */
static void deliver_batch(struct loop *loop)
{
    while (loop->batch != NULL && !loop->stopping) {
        struct mail *mail = loop->batch;

        loop->batch = mail->next;
        mail->next = NULL;
        mail->deliver(mail, loop->owner);
    }
}

/* Moves the box into the (empty) batch. */
static void take_box(struct loop *loop)
{
    CHECK(loop->batch == NULL);
    CHECK(pthread_mutex_lock(&loop->lock) == 0);
    loop->batch = loop->box;
    loop->box = NULL;
    loop->box_end = &loop->box;
    CHECK(pthread_mutex_unlock(&loop->lock) == 0);
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct loop *loop = arg;

    CHECK_OBJECT(loop, LOOP_MAGIC);
    if (loop->stopping)
        return;
    take_box(loop);
    deliver_batch(loop);
}

struct loop *loop_new(const char *name)
{
    struct loop *loop = xcalloc(1, sizeof(*loop));

    loop->magic = LOOP_MAGIC;
    snprintf(loop->name, sizeof(loop->name), "%.15s", name);
    loop->box_end = &loop->box;
    CHECK(pthread_mutex_init(&loop->lock, NULL) == 0);
    loop->base = base_new();
    loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(loop->wake_fd >= 0);
    CHECK(event_assign(&loop->wake, loop->base, loop->wake_fd, EV_READ | EV_PERSIST | EV_ET,
                       on_wake, loop) == 0);
    CHECK(event_add(&loop->wake, NULL) == 0);
    return loop;
}

void loop_set_owner(struct loop *loop, void *owner)
{
    CHECK_OBJECT(loop, LOOP_MAGIC);
    CHECK(loop_is_here(loop));
    loop->owner = owner;
}

struct event_base *loop_base(struct loop *loop)
{
    CHECK_OBJECT(loop, LOOP_MAGIC);
    return loop->base;
}

bool loop_is_here(const struct loop *loop)
{
    return loop_here == loop || !__atomic_load_n(&loop->running, __ATOMIC_ACQUIRE);
}

/* Runs until a stop; `running` was set by the caller. */
static void run(struct loop *loop)
{
    const struct loop *outer = loop_here;

    loop_here = loop;
    while (!loop->stopping)
        CHECK(event_base_loop(loop->base, 0) >= 0);
    loop_here = outer;
    __atomic_store_n(&loop->running, false, __ATOMIC_RELEASE);
}

static void *run_thread(void *arg)
{
    struct loop *loop = arg;

    CHECK_OBJECT(loop, LOOP_MAGIC);
    run(loop);
    return NULL;
}

static void begin(struct loop *loop)
{
    CHECK_OBJECT(loop, LOOP_MAGIC);
    CHECK(!loop->started && !loop->stopping);
    CHECK(!__atomic_exchange_n(&loop->running, true, __ATOMIC_ACQ_REL));
}

void loop_start(struct loop *loop)
{
    begin(loop);
    loop->started = true;
    loop->thread = thread_start(loop->name, run_thread, loop);
}

void loop_run(struct loop *loop)
{
    begin(loop);
    run(loop);
}

void loop_post(struct loop *loop, struct mail *mail)
{
    bool first;

    CHECK_OBJECT(loop, LOOP_MAGIC);
    CHECK(mail->deliver != NULL);
    mail->next = NULL;
    CHECK(pthread_mutex_lock(&loop->lock) == 0);
    first = loop->box == NULL;
    *loop->box_end = mail;
    loop->box_end = &mail->next;
    CHECK(pthread_mutex_unlock(&loop->lock) == 0);
    if (first) {
        uint64_t one = 1;

        /* Only a counter at its end could fail, half a million years of wake-ups from now. */
        CHECK(write(loop->wake_fd, &one, sizeof(one)) == (ssize_t)sizeof(one));
    }
}

struct stop_mail {
    struct mail mail;
    struct loop *loop;
};

static void deliver_stop(struct mail *mail, void *owner)
{
    struct stop_mail *stop = (struct stop_mail *)mail;

    stop->loop->stopping = true;
    CHECK(event_base_loopbreak(stop->loop->base) == 0);
    free(stop);
}

void loop_stop(struct loop *loop)
{
    struct stop_mail *stop = xmalloc(sizeof(*stop));

    CHECK_OBJECT(loop, LOOP_MAGIC);
    stop->mail.deliver = deliver_stop;
    stop->loop = loop;
    loop_post(loop, &stop->mail);
}

void loop_join(struct loop *loop)
{
    CHECK_OBJECT(loop, LOOP_MAGIC);
    if (!loop->started)
        return;
    CHECK(pthread_join(loop->thread, NULL) == 0);
    loop->started = false;
}

void loop_free(struct loop *loop)
{
    if (loop == NULL)
        return;
    CHECK_OBJECT(loop, LOOP_MAGIC);
    CHECK(!loop->started && loop_is_here(loop));
    /* A late loop_stop is among the mail, and mail may post more: hence the two loops. */
    do {
        if (loop->batch == NULL)
            take_box(loop);
        loop->stopping = false;
        deliver_batch(loop);
    } while (loop->batch != NULL || loop->box != NULL);
    CHECK(event_del(&loop->wake) == 0);
    event_base_free(loop->base);
    CHECK(close(loop->wake_fd) == 0);
    CHECK(pthread_mutex_destroy(&loop->lock) == 0);
    loop->magic = 0;
    free(loop);
}

/* --- timers
 * --------------------------------------------------------------------------------------- */

static void arm(struct timer *timer, int64_t delay)
{
    struct timeval wait = {.tv_sec = (time_t)(delay / NS_PER_S),
                           .tv_usec =
                               (suseconds_t)((delay % NS_PER_S + NS_PER_US - 1) / NS_PER_US)};

    if (wait.tv_usec >= 1000000) {
        wait.tv_sec++;
        wait.tv_usec = 0;
    }
    CHECK(event_add(&timer->event, &wait) == 0);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct timer *timer = arg;
    int64_t early;

    CHECK_OBJECT(timer, TIMER_MAGIC);
    /* Owners compare clock_now with the deadline they had in mind: a timer that fired before it
     * would make them turn in circles. So that does not rest on which clock libevent reads, and
     * when. */
    early = timer->deadline - clock_now();
    if (early > 0)
        arm(timer, early);
    else
        timer->fire(timer->arg);
}

struct timer *timer_new(struct loop *loop, void (*fire)(void *arg), void *arg)
{
    struct timer *timer = xcalloc(1, sizeof(*timer));

    CHECK_OBJECT(loop, LOOP_MAGIC);
    CHECK(loop_is_here(loop));
    timer->magic = TIMER_MAGIC;
    timer->loop = loop;
    timer->fire = fire;
    timer->arg = arg;
    CHECK(event_assign(&timer->event, loop->base, -1, 0, on_timer, timer) == 0);
    return timer;
}

void timer_set(struct timer *timer, int64_t delay_ns)
{
    CHECK_OBJECT(timer, TIMER_MAGIC);
    CHECK(loop_is_here(timer->loop));
    if (delay_ns < 0)
        delay_ns = 0;
    timer->deadline = clock_now() + delay_ns;
    arm(timer, delay_ns);
}

void timer_cancel(struct timer *timer)
{
    CHECK_OBJECT(timer, TIMER_MAGIC);
    CHECK(loop_is_here(timer->loop));
    CHECK(event_del(&timer->event) == 0);
}

bool timer_pending(const struct timer *timer)
{
    CHECK_OBJECT(timer, TIMER_MAGIC);
    return event_pending(&timer->event, EV_TIMEOUT, NULL) != 0;
}

void timer_free(struct timer *timer)
{
    if (timer == NULL)
        return;
    timer_cancel(timer);
    timer->magic = 0;
    free(timer);
}
