/* A thread with an event loop (libevent) and a mailbox: the form of every owner of state here.
 *
 * What a loop's objects hold is touched on its thread only; others post mail. Mail from one thread
 * arrives in the order in which it was posted. No lock is held while mail is delivered.
 *
 * Mail is intrusive: the poster allocates a structure that begins with `struct mail`, fills it in and
 * gives it away; `deliver` runs on the loop's thread and frees it. By convention each owner module
 * exports functions marked "any thread" that do this, and keeps the structures to itself. */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct event_base;
struct loop;

struct mail {
    struct mail *next;                      /* the mailbox's */
    void (*deliver)(struct mail *, void *); /* runs on the loop's thread; owns the mail; the second
                                               argument is the loop's owner, see loop_set_owner */
};

/* Makes a loop whose thread, once started, is named `name` (15 bytes at most). Aborts on failure:
 * without its loops a program cannot start. */
struct loop *loop_new(const char *name);
void loop_set_owner(struct loop *, void *owner); /* before loop_start */
struct event_base *loop_base(struct loop *);

/* Starts the thread; or runs the loop on the calling thread until loop_stop. */
void loop_start(struct loop *);
void loop_run(struct loop *);

/* Any thread. Mail that is still in the box when the loop ends is delivered by loop_free, on the
 * thread that calls it, so that nobody's memory or promise is lost. */
void loop_post(struct loop *, struct mail *);

/* Any thread: the loop ends after the mail posted before. */
void loop_stop(struct loop *);
/* Waits for the thread of a loop that was stopped. */
void loop_join(struct loop *);
/* Joined or never started: delivers what mail is left, then frees. The owner is still there, and no
 * other thread posts any more: end workers and other loops first. NULL is fine. */
void loop_free(struct loop *);

/* True on the loop's thread (or while it is not running at all). Owners CHECK it. */
bool loop_is_here(const struct loop *);

/* --- timers: one shot, re-armed by their owner ---------------------------------------------------- */
struct timer; /* belongs to the loop's thread */
struct timer *timer_new(struct loop *, void (*fire)(void *arg), void *arg);
void timer_set(struct timer *,
               int64_t delay_ns);  /* from now; replaces an earlier one; never early */
void timer_cancel(struct timer *); /* `fire` will not come */
bool timer_pending(const struct timer *);
void timer_free(struct timer *); /* NULL is fine */

#endif
