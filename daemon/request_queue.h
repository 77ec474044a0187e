/* What one fetcher has asked for and has not been given: runs of blocks in three classes of
 * urgency.
 *
 * Pure: no I/O, no clock, no thread. Memory is bounded by the number of queued blocks: at most
 * LIMIT_QUEUED_BLOCKS, whatever the order in which they were asked for. */
#ifndef DAEMON_REQUEST_QUEUE_H
#define DAEMON_REQUEST_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

enum urgency { URGENT_BACKGROUND = 0, URGENT_PREFETCH = 1, URGENT_DEMAND = 2 };
#define URGENCIES 3

/* A run of consecutive blocks of one file. */
struct block_run {
    uint32_t file;
    uint64_t first;
    uint32_t count;
};

struct request_queue;

struct request_queue *request_queue_new(void);
void request_queue_free(struct request_queue *); /* NULL is fine */

/* Queues a run behind what waits in its class. Blocks of it that wait in a lower class move up;
 * those that wait in the same or a higher class stay where they are. False, and nothing changed, if
 * more than LIMIT_QUEUED_BLOCKS would be queued. */
bool request_queue_push(struct request_queue *, struct block_run, enum urgency);

/* Takes out what is queued of the run (count 0: of the whole file). */
void request_queue_cancel(struct request_queue *, struct block_run);

/* Takes the next run, the most urgent first, in order of asking within a class: at most `most`
 * consecutive blocks. False if nothing is queued, or nothing as urgent as `least`. */
bool request_queue_pop(struct request_queue *, enum urgency least, uint32_t most,
                       struct block_run *run, enum urgency *urgency);

/* The runs of one class, in order: *at is NULL for the first; NULL after the last. Valid until the queue changes. */
const struct block_run *request_queue_each(const struct request_queue *, enum urgency,
                                           const void **at);
/* Takes, of this class, the first queued blocks that lie within `span`: at most `most` consecutive ones. False if there are
 * none. */
bool request_queue_take(struct request_queue *, enum urgency, struct block_run span, uint32_t most,
                        struct block_run *run);

uint32_t request_queue_blocks(const struct request_queue *);
uint32_t request_queue_class(const struct request_queue *, enum urgency); /* blocks */
bool request_queue_has(const struct request_queue *, enum urgency least);

#endif
