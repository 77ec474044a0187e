/* A fetcher's queue: three lists of runs.
 *
 * Owns its runs. One owner, one thread at a time. A list holds disjoint runs in the order of
 * asking; taking blocks out of the middle of a run splits it. The lists are short (runs, not
 * blocks), so they are searched from the front.
 *
 * Q1  No block stands in two lists, nor twice in one.
 * Q2  blocks == the sum of all runs' counts <= LIMIT_QUEUED_BLOCKS; the same for each list. */
#include "daemon/request_queue.h"

#include <stddef.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/mem.h"
#include "proto/limits.h"

struct run {
    struct run *next;
    struct block_run r;
};

_Static_assert(sizeof(struct run) + 16 <= LIMIT_MEMORY_RUN, "what malloc takes for it");

struct list {
    struct run *first, **last; /* where the next run is hung */
    struct run *tail;          /* the last one; means nothing while `first` is NULL */
    uint32_t blocks;
};

struct request_queue {
    struct list lists[URGENCIES];
    uint32_t blocks;
};

struct request_queue *request_queue_new(void)
{
    struct request_queue *q = xcalloc(1, sizeof *q);

    for (int i = 0; i < URGENCIES; i++)
        q->lists[i].last = &q->lists[i].first;
    return q;
}

void request_queue_free(struct request_queue *q)
{
    if (q == NULL)
        return;
    for (int i = 0; i < URGENCIES; i++) {
        while (q->lists[i].first != NULL) {
            struct run *run = q->lists[i].first;
            q->lists[i].first = run->next;
            free(run);
        }
    }
    free(q);
}

/* Fetchers often ask block by block: what follows the last run becomes part of it, so that it is
 * read in one go. */
static void append(struct request_queue *q, struct list *list, struct block_run r)
{
    q->blocks += r.count;
    list->blocks += r.count;
    if (list->first != NULL && list->tail->r.file == r.file &&
        list->tail->r.first + list->tail->r.count == r.first) {
        list->tail->r.count += r.count;
        return;
    }
    struct run *run = xmalloc(sizeof *run);
    run->next = NULL;
    run->r = r;
    *list->last = run;
    list->last = &run->next;
    list->tail = run;
}

/* Takes *at out of the list. */
static void remove_run(struct list *list, struct run **at)
{
    struct run *run = *at;

    *at = run->next;
    if (run->next == NULL) {
        list->last = at;
        if (at != &list->first)
            list->tail = (struct run *)(void *)((char *)at - offsetof(struct run, next));
    }
    free(run);
}

static bool overlaps(const struct block_run *a, const struct block_run *b)
{
    return a->file == b->file && a->first < b->first + b->count && b->first < a->first + a->count;
}

/* Takes blocks of `cut` out of one list. */
static void subtract(struct request_queue *q, struct list *list, const struct block_run *cut)
{
    struct run **at = &list->first;

    while (*at != NULL) {
        struct run *run = *at;
        if (!overlaps(&run->r, cut)) {
            at = &run->next;
            continue;
        }
        uint64_t end = run->r.first + run->r.count, cut_end = cut->first + cut->count;
        uint32_t before = cut->first > run->r.first ? (uint32_t)(cut->first - run->r.first) : 0;
        uint32_t after = end > cut_end ? (uint32_t)(end - cut_end) : 0;
        q->blocks -= run->r.count - before - after;
        list->blocks -= run->r.count - before - after;
        if (before == 0 && after == 0) {
            remove_run(list, at);
            continue;
        }
        if (before == 0) {
            run->r.first = cut_end;
            run->r.count = after;
        } else {
            run->r.count = before;
            if (after > 0) {
                struct run *rest = xmalloc(sizeof *rest);
                rest->r = (struct block_run){run->r.file, cut_end, after};
                rest->next = run->next;
                run->next = rest;
                if (rest->next == NULL) {
                    list->last = &rest->next;
                    list->tail = rest;
                }
                at = &rest->next;
                continue;
            }
        }
        at = &run->next;
    }
}

static int by_first(const void *a, const void *b)
{
    const struct block_run *one = a, *two = b;

    return one->first < two->first ? -1 : one->first > two->first;
}

/* Appends those blocks of `r` to the list of `urgency` that stand neither there nor in a higher one: what lies between the
 * runs that do, of which there are no more than blocks. */
static void append_missing(struct request_queue *q, struct block_run r, enum urgency urgency)
{
    struct block_run *there = NULL;
    size_t count = 0;

    for (int i = urgency; i < URGENCIES; i++)
        for (const struct run *run = q->lists[i].first; run != NULL; run = run->next)
            count += overlaps(&run->r, &r);
    if (count > 0)
        there = xmalloc(count * sizeof *there);
    count = 0;
    for (int i = urgency; there != NULL && i < URGENCIES; i++)
        for (const struct run *run = q->lists[i].first; run != NULL; run = run->next)
            if (overlaps(&run->r, &r))
                there[count++] = run->r;
    if (count > 0)
        qsort(there, count, sizeof *there, by_first);
    uint64_t at = r.first;
    for (size_t i = 0; i < count; i++) {
        if (there[i].first > at)
            append(q, &q->lists[urgency],
                   (struct block_run){r.file, at, (uint32_t)(there[i].first - at)});
        at = there[i].first + there[i].count; /* Q1: the next one begins there or later */
    }
    if (at < r.first + r.count)
        append(q, &q->lists[urgency],
               (struct block_run){r.file, at, (uint32_t)(r.first + r.count - at)});
    free(there);
}

/* How many blocks of the run are queued, in whatever class. */
static uint32_t queued_of(const struct request_queue *q, const struct block_run *r)
{
    uint32_t count = 0;

    for (int i = 0; i < URGENCIES; i++) {
        for (const struct run *run = q->lists[i].first; run != NULL; run = run->next) {
            if (!overlaps(&run->r, r))
                continue;
            uint64_t from = run->r.first > r->first ? run->r.first : r->first;
            uint64_t end = r->first + r->count, run_end = run->r.first + run->r.count;
            count += (uint32_t)((run_end < end ? run_end : end) - from);
        }
    }
    return count;
}

bool request_queue_push(struct request_queue *q, struct block_run r, enum urgency urgency)
{
    CHECK(urgency < URGENCIES);
    /* What is queued already, and only moves up, takes no room. */
    if (r.count > LIMIT_QUEUED_BLOCKS - q->blocks &&
        r.count - queued_of(q, &r) > LIMIT_QUEUED_BLOCKS - q->blocks)
        return false;
    if (r.count == 0)
        return true;
    for (int i = 0; i < (int)urgency; i++)
        subtract(q, &q->lists[i], &r);
    append_missing(q, r, urgency);
    return true;
}

void request_queue_cancel(struct request_queue *q, struct block_run r)
{
    for (int i = 0; i < URGENCIES; i++) {
        if (r.count > 0) {
            subtract(q, &q->lists[i], &r);
            continue;
        }
        struct run **at = &q->lists[i].first;
        while (*at != NULL) {
            if ((*at)->r.file == r.file) {
                q->blocks -= (*at)->r.count;
                q->lists[i].blocks -= (*at)->r.count;
                remove_run(&q->lists[i], at);
            } else {
                at = &(*at)->next;
            }
        }
    }
}

bool request_queue_pop(struct request_queue *q, enum urgency least, uint32_t most,
                       struct block_run *run, enum urgency *urgency)
{
    for (int i = URGENCIES - 1; i >= (int)least; i--) {
        struct run *first = q->lists[i].first;
        if (first == NULL)
            continue;
        *run = first->r;
        *urgency = (enum urgency)i;
        if (first->r.count > most) {
            run->count = most;
            first->r.first += most;
            first->r.count -= most;
        } else {
            remove_run(&q->lists[i], &q->lists[i].first);
        }
        q->blocks -= run->count;
        q->lists[i].blocks -= run->count;
        return true;
    }
    return false;
}

const struct block_run *request_queue_each(const struct request_queue *q, enum urgency urgency,
                                           const void **at)
{
    const struct run *run = *at;

    run = run == NULL ? q->lists[urgency].first : run->next;
    *at = run;
    return run == NULL ? NULL : &run->r;
}

bool request_queue_take(struct request_queue *q, enum urgency urgency, struct block_run span,
                        uint32_t most, struct block_run *out)
{
    for (const struct run *run = q->lists[urgency].first; run != NULL; run = run->next) {
        if (!overlaps(&run->r, &span))
            continue;
        uint64_t from = run->r.first > span.first ? run->r.first : span.first;
        uint64_t end = run->r.first + run->r.count, span_end = span.first + span.count;
        uint64_t count = (end < span_end ? end : span_end) - from;
        *out = (struct block_run){span.file, from, count < most ? (uint32_t)count : most};
        subtract(q, &q->lists[urgency], out);
        return true;
    }
    return false;
}

uint32_t request_queue_blocks(const struct request_queue *q)
{
    return q->blocks;
}

uint32_t request_queue_class(const struct request_queue *q, enum urgency urgency)
{
    return q->lists[urgency].blocks;
}

bool request_queue_has(const struct request_queue *q, enum urgency least)
{
    for (int i = URGENCIES - 1; i >= (int)least; i--) {
        if (q->lists[i].first != NULL)
            return true;
    }
    return false;
}
