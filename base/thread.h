/* A thread with a name, which leaves the process's signals to the first thread.
 *
 * Used by loop.h and workers.h; whoever can should use those instead. */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

/* Starts `run`; the thread is named `name` (cut to 15 bytes) before it does anything else. Signals
 * are blocked on it, those apart that its own faults raise. Aborts on failure. Join it. */
pthread_t thread_start(const char *name, void *(*run)(void *arg), void *arg);

#endif
