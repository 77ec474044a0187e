/* Starting threads alike: named, and deaf to signals, so that SIGTERM and its kind always reach the
 * thread that waits for them. */
#include "base/thread.h"

#include "base/check.h"
#include "base/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define NAME_MAX_ 16 /* the kernel's limit, with the NUL */

struct start {
    char name[NAME_MAX_];
    void *(*run)(void *arg);
    void *arg;
};

static void *begin(void *arg)
{
    struct start start = *(struct start *)arg;

    free(arg);
    pthread_setname_np(pthread_self(), start.name); /* only a help to the eye: may fail */
    return start.run(start.arg);
}

pthread_t thread_start(const char *name, void *(*run)(void *arg), void *arg)
{
    static const int faults[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL,
                                 SIGTRAP, SIGABRT, SIGSYS, SIGPROF};
    struct start *start = xmalloc(sizeof(*start));
    sigset_t blocked, old;
    pthread_t thread;

    snprintf(start->name, sizeof(start->name), "%.15s", name);
    start->run = run;
    start->arg = arg;
    /* Blocked before it exists: a new thread inherits the mask, so there is no moment without it.
     */
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(&blocked, faults[i]);
    CHECK(pthread_sigmask(SIG_SETMASK, &blocked, &old) == 0);
    CHECK(pthread_create(&thread, NULL, begin, start) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    return thread;
}
