/* How much to ask of one link: the request window, from what the link has delivered.
 *
 * Pure: no I/O, no clock; time comes as an argument (nanoseconds, any monotonic origin). A pipeline
 * belongs to one link and is shared by all contents that are fetched over it. Bandwidth is the
 * highest delivery rate of the last seconds, delay the lowest answer time of the last half minute;
 * the window is their product and a quarter, and a little for the machines at both ends, so that a
 * far fast peer fills its link and little queues in front of what is asked next. */
#ifndef DAEMON_PIPELINE_H
#define DAEMON_PIPELINE_H

#include <stdbool.h>
#include <stdint.h>

struct pipeline {
    /* What is under way; kept by pipeline_asked and pipeline_answered. */
    uint32_t in_flight; /* blocks asked for and not yet here */
    uint32_t urgent;    /* of which a reader waits for */
    uint32_t window;    /* blocks */
    uint64_t delivered; /* bytes, ever */
    int64_t last_heard; /* of the last block, or of the first ask after an idle time */

    /* Bandwidth: bytes a second, the maximum over two spans. */
    double rate_now, rate_before;
    int64_t rate_since;
    /* Delay: the minimum over two spans, 0 for none. */
    int64_t delay_now, delay_before;
    int64_t delay_since;
    int64_t usual, spread; /* answer times, smoothed, and their deviation from that */
    double few;            /* blocks under way that are no queue worth speaking of */
    bool draining;         /* the window is small for a moment so that the delay shows */
    int64_t drain_end;

    /* Fast start. */
    bool fast_start;
    uint8_t flat_rounds;
    double round_rate;
    uint64_t round_end; /* `delivered` at which the round ends */
};

/* What is remembered of one asked block until it is here. */
struct pipeline_stamp {
    int64_t asked;
    uint64_t delivered;
    bool thin;  /* the window was not full: the rate it shows is a lower bound */
    bool alone; /* next to nothing was ahead of it: its answer time is the link's delay */
};

void pipeline_init(struct pipeline *, int64_t now);
/* A measurement of the round trip from elsewhere (the kernel's, a ping's); 0 is ignored. */
void pipeline_round_trip(struct pipeline *, int64_t now, int64_t rtt);

void pipeline_asked(struct pipeline *, int64_t now, bool urgent, struct pipeline_stamp *out);
/* The block came: `size` bytes. */
void pipeline_answered(struct pipeline *, int64_t now, const struct pipeline_stamp *, bool urgent,
                       uint32_t size);
/* The block will not come (cancelled, rejected). */
void pipeline_withdrawn(struct pipeline *, bool urgent);
/* A request that is under way became urgent. */
void pipeline_raised(struct pipeline *);

/* How many more blocks may be asked for now. With `keep_short` hardly more is under way than the link itself holds, so that what
 * a reader asks for next finds no queue; it costs rate where answer times vary. */
uint32_t pipeline_room(struct pipeline *, int64_t now, bool keep_short);
/* The same for blocks that a reader waits for: they overtake the others. */
uint32_t pipeline_urgent_room(const struct pipeline *);

/* In how many ns a block asked for now will be here; a link that owes answers and is silent gets
 * later and later. */
int64_t pipeline_expect(const struct pipeline *, int64_t now, bool urgent);
/* After how many ns such a block is late. */
int64_t pipeline_patience(const struct pipeline *, int64_t now, bool urgent);

/* Bytes a second, and ns; 0 if unknown. */
double pipeline_rate(const struct pipeline *);
int64_t pipeline_delay(const struct pipeline *);

#endif
