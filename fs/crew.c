/* Places and threads.
 *
 * Owns the loop around fuse_session_receive_buf. `places` is how many threads may be at the device (waiting for a request
 * or carrying one out) at a time; a thread takes a place, or sleeps until one is free. crew_step_aside gives its place up
 * in the middle of a request; the thread asks for another one when it has answered.
 *
 * A thread that waits in read(2) is ended by cancellation, which is enabled there only, when it holds nothing. */
#include "fs/crew.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/thread.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define THREADS    8 /* seven of them may wait for the disk */
#define PLACES_MAX 6

struct crew {
    struct fuse_session *session;
    sem_t places;
    sem_t finish;
};

struct seat {
    struct crew *crew;
    bool taken;
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    CHECK(pthread_key_create(&key, NULL) == 0);
}

static void take_place(struct seat *seat)
{
    int old;

    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old) == 0);
    while (sem_wait(&seat->crew->places) != 0)
        CHECK(errno == EINTR);
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old) == 0);
    seat->taken = true;
}

static void leave_place(struct seat *seat)
{
    if (seat->taken)
        CHECK(sem_post(&seat->crew->places) == 0);
    seat->taken = false;
}

void crew_step_aside(void)
{
    struct seat *seat;

    CHECK(pthread_once(&once, make_key) == 0);
    seat = pthread_getspecific(key);
    if (seat != NULL)
        leave_place(seat);
}

static void free_buffer(void *arg)
{
    struct fuse_buf *buffer = arg;

    free(buffer->mem);
}

static void *run(void *arg)
{
    struct crew *crew = arg;
    struct seat seat = {.crew = crew};
    struct fuse_buf buffer = {.mem = NULL};
    int result = 1, old;

    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old) == 0);
    CHECK(pthread_setspecific(key, &seat) == 0);
    pthread_cleanup_push(free_buffer, &buffer);
    while (!fuse_session_exited(crew->session)) {
        if (!seat.taken)
            take_place(&seat);
        CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old) == 0);
        result = fuse_session_receive_buf(crew->session, &buffer);
        CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old) == 0);
        if (result == -EINTR || result == -EAGAIN)
            continue;
        if (result <= 0)
            break;
        fuse_session_process_buf(crew->session, &buffer);
    }
    fuse_session_exit(crew->session);
    CHECK(sem_post(&crew->finish) == 0);
    leave_place(&seat);
    pthread_cleanup_pop(1);
    return NULL;
}

void crew_run(struct fuse_session *session)
{
    struct crew crew = {.session = session};
    pthread_t threads[THREADS];
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned places = processors >= 4 ? (unsigned)processors / 2 : 1;
    char name[16];

    if (places > PLACES_MAX)
        places = PLACES_MAX;
    CHECK(pthread_once(&once, make_key) == 0);
    CHECK(sem_init(&crew.places, 0, places) == 0 && sem_init(&crew.finish, 0, 0) == 0);
    for (unsigned i = 0; i < THREADS; i++) {
        snprintf(name, sizeof(name), "fuse-%u", i);
        threads[i] = thread_start(name, run, &crew);
    }
    while (!fuse_session_exited(session))
        (void)sem_wait(&crew.finish); /* a signal's handler ends the session */
    for (unsigned i = 0; i < THREADS; i++)
        (void)pthread_cancel(threads[i]);
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(sem_destroy(&crew.places) == 0 && sem_destroy(&crew.finish) == 0);
    fuse_session_reset(session);
}
