/* A fixed set of threads for what takes long: hashing, disk, RSA, Argon2.
 *
 * Jobs are intrusive like mail. They are taken in the order in which they were posted, urgent ones
 * before the others. A job's result goes back by loop_post from within `run`. */
#ifndef BASE_WORKERS_H
#define BASE_WORKERS_H

#include <stdbool.h>
#include <stddef.h>

struct workers;
struct job {
    struct job *next;          /* the pool's */
    void (*run)(struct job *); /* on a worker; owns the job */
};

/* `threads` 0: one per processor. Thread names are NAME-0, NAME-1, … */
struct workers *workers_new(const char *name, unsigned threads);
/* As workers_new, for what others make us do: where processors are short, each thread gets a tenth of what one of
 * another pool gets; where they are not, nothing is slower. */
struct workers *workers_new_meek(const char *name, unsigned threads);
/* Any thread. Never blocks; whoever posts bounds how much is under way. */
void workers_post(struct workers *, struct job *, bool urgent);
/* Jobs that were posted and have not ended; for status and for back-pressure. Any thread. */
size_t workers_backlog(const struct workers *);
/* Waits until no job is left or running. Not from a worker. An owner whose thread has ended calls it before it frees its
 * loop, as the jobs that it posted still post their results there. */
void workers_drain(struct workers *);
/* Runs all jobs that are left, then ends the threads. NULL is fine. */
void workers_free(struct workers *);

#endif
