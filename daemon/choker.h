/* What goes out next: the order in which a daemon answers what all its fetchers have asked for.
 *
 * Pure: no I/O, no clock, no thread; events and the time go in, decisions come out. The same code runs in the daemon, in unit
 * tests and in the simulation of whole swarms (tests/sim).
 *
 * Order, each rule before the next:
 *   demand       of all fetchers, fair among accounts
 *   prefetch     the same
 *   background   a piece that was begun for a fetcher goes on; then, of each content, the piece sent least; then the account
 *                that was given least; then the fetcher that waits longest
 *
 * Background goes to few fetchers at a time (slots), a whole piece to each: a piece that is whole can be passed on, sixteen
 * halves of pieces cannot. There are as many slots as it takes to fill the uplink, found by trying: one more is kept if more
 * goes out, one less if not less does. A link that gets rid of all it is given at once occupies no slot, so that where the uplink
 * is not the bottleneck nobody is held up. What sockets hold counts as pending; together they are given what goes out in a tenth of
 * a second, as more would only stand in the line's queue, in front of the acknowledgements and requests of this member's own
 * fetching, and many flows in a short queue lose packets of each other: on a lab's line of 1.25 Mbit/s with 100 ms of queue, 15
 * flows at once lost one packet in ten. When all sockets together hold twice that, none is given anything that has not some
 * already. A socket may hold what has left long ago, if the other end acknowledges it through a long queue of its own: so while
 * the line's own queue is short (choker_line), or it carries clearly less than it has carried, there are more slots. The uplink
 * never idles: a repeated piece goes out if nothing else is asked for. Each sixteenth piece may go to whoever has waited for long,
 * whatever its rank (the optimistic slot).
 *
 * Spending the upload once per piece. Fetchers pick what they ask for, and cannot know what others have just asked for; with
 * P pieces left and N fetchers one pick in P/N falls on a piece that is on its way to someone else. Answering in the server's
 * order alone only moves the waste: the fetcher whose pick is held back waits. So the choker tells each fetcher in advance
 * which pieces to ask for (choker_actions.suggest): pieces that never went out and that were suggested to nobody else, a few at
 * a time, more as they are asked for. A suggestion costs no round trip (it is there before the last piece is through), and is
 * only advice: a fetcher that has the piece takes the next one, and who knows nothing of suggestions asks as before. This is
 * not super-seeding, which shows pieces one by one and idles until they are seen elsewhere.
 *
 * Who is given what. What a swarm can do is the sum of its uplinks; a piece that only a slow one holds is late for everybody. So as
 * long as a content that is complete here has pieces that have not gone out once, the accounts' turns are weighed by what each
 * can pass on, as it says itself (choker_link_passes_on): that is how much of the new each would get if all uplinks were full
 * all the time. Simulated with 16 fetchers on a quarter and seven quarters of 5 Mbit/s and 64 MiB, the last one took 1.12 of the
 * bound before, and takes 1.03. Who says nothing counts as much as this uplink.
 *
 * Rate limits of the daemon and of single contents are token buckets (bucket.h) and hold for all classes.
 *
 * Memory: bounded by what the links hold open and queued; 4 bytes a piece of each content that is open. */
#ifndef DAEMON_CHOKER_H
#define DAEMON_CHOKER_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "daemon/request_queue.h"

struct choker;
struct choker_link; /* one fetcher */

/* Called from within choker_next, choker_open and choker_request; they may not call back. */
struct choker_actions {
    /* Bytes of bulk (prefetch, background) begun for this link that have not left: not yet given to its socket, or held there. */
    uint32_t (*pending)(void *owner);
    /* How many blocks may be begun for this link now, demanded ones or bulk; 0: none. */
    uint32_t (*room)(void *owner, bool urgent);
    /* Tell the fetcher: of this file, ask for these pieces first. At most CHOKER_OFFERS. */
    void (*suggest)(void *owner, uint32_t file, const uint32_t *pieces, uint32_t count);
};
#define CHOKER_OFFERS 16

struct choker *choker_new(const struct choker_actions *, int64_t now);
void choker_free(struct choker *); /* all links have been freed */

/* `account`: whoever shares this number shares a turn. */
struct choker_link *choker_link_new(struct choker *, void *owner, uint64_t account);
/* Links of the same account, this one included. */
unsigned choker_link_siblings(const struct choker_link *);
void choker_link_free(struct choker_link *); /* NULL is fine */
/* What the fetcher's own uplink carries, as it says, in bytes a second; 0: it is not known. */
void choker_link_passes_on(struct choker_link *, uint64_t rate);

/* The fetcher has opened a content under this number, unused by it. `key` names the content: equal for all links that open it
 * (any address that stays its own while open). `complete`: all of it is here, so its pieces may be suggested. */
void choker_open(struct choker_link *, uint32_t file, const void *key, const struct geometry *,
                 bool complete);
/* And closed it; what is queued of it is dropped. Not open: fine. */
void choker_close(struct choker_link *, uint32_t file);

/* The run lies within a content that is open. False, and nothing changed: the queue is full. */
bool choker_request(struct choker_link *, struct block_run, enum urgency, int64_t now);
void choker_cancel(struct choker_link *, struct block_run);
/* Takes the first background blocks out of the queue that lie within the run: *out. False: there are none. */
bool choker_withdraw(struct choker_link *, struct block_run, struct block_run *out);
uint32_t choker_queued(const struct choker_link *); /* blocks */

struct choker_turn {
    void *owner;
    struct block_run run; /* taken out of the queue, and spent */
    enum urgency urgency;
};
/* The next job; false: nothing may go now. Call it until false after events that make room or bring requests, and at
 * choker_wake. */
bool choker_next(struct choker *, int64_t now, struct choker_turn *);
/* When something that the last choker_next held back may go, if nothing happens before; INT64_MAX: it held back nothing. */
int64_t choker_wake(const struct choker *);
/* So much bulk was given to the link's socket: this is how the uplink is measured. Call it frame by frame. */
void choker_sent(struct choker_link *, uint32_t bytes, int64_t now);

/* So long is the queue in front of the own line, as far as it can be known: while it is short, nobody need wait for a slot. */
void choker_line(struct choker *, int64_t queue_ns, int64_t now);

/* Links to which bulk is on its way. */
uint32_t choker_begun(const struct choker *);

/* What the own uplink was seen to carry, bytes a second; 0: nothing is known yet. */
uint64_t choker_line_rate(const struct choker *);

/* Bytes a second, 0: unlimited. Of a content: as long as it is open; set it again when it is opened. */
void choker_limit(struct choker *, uint64_t rate, int64_t now);
void choker_limit_file(struct choker *, const void *key, uint64_t rate, int64_t now);

struct choker_status {
    uint32_t slots, active; /* background */
    uint64_t rate;          /* bulk bytes a second, of late */
    uint64_t
        repeats; /* blocks of pieces that had gone out before, while the content had pieces that had not */
};
void choker_count(const struct choker *, struct choker_status *);
/* Blocks of a content that went out since it was opened; and of these, before each piece had gone out once: 0 as long as not all
 * have. Both 0 if it is not open. */
struct choker_spent {
    uint64_t sent, until_out;
};
struct choker_spent choker_spent(const struct choker *, const void *key);
/* How many pieces of a content have not gone out since it was opened; 0 if it is not open. */
uint32_t choker_unsent(const struct choker *, const void *key);

#endif
