/* Which blocks of one content to ask from which link, now.
 *
 * Pure: no I/O, no clock, no thread; events and the time go in, decisions come out through `struct
 * picker_actions`, from within the call that caused them. The same code runs in the daemon, in unit
 * tests and in a simulation.
 *
 * Three classes, each before the next:
 *   demand      a reader waits: earliest deadline first, each block from the source that will
 * deliver it soonest; when it is late it is asked for a second time elsewhere, and the loser is
 * cancelled. prefetch    windows in front of readers, nearest first. background  with
 * picker_want_all: started pieces first, then the rarest, random among equals; the last blocks are
 * asked for twice when that is sooner. Otherwise no block is asked for twice. A source that owes
 * something and has been silent for seconds is asked for nothing more in the background, and what it
 * owes is asked of others, one after the other, until it comes: who takes requests and never answers
 * holds nothing up for good.
 *
 * Memory: what is present is the caller's bitmap, which is only read. A picker that wants nothing
 * holds nothing else; state of blocks exists for pieces with something under way; with
 * picker_want_all 11 bytes a piece are added. */
#ifndef DAEMON_PICKER_H
#define DAEMON_PICKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/merkle.h"

struct picker;
struct picker_source; /* one link, as a source of this content */
struct pipeline;

/* As on the wire (proto/peer.proto). */
enum picker_class { PICKER_BACKGROUND = 0, PICKER_PREFETCH = 1, PICKER_DEMAND = 2 };

struct picker_actions {
    /* Ask this source for this block. */
    void (*ask)(void *arg, void *owner, uint64_t block, enum picker_class);
    /* This source was asked for this block before, and now a reader waits for it. */
    void (*raise)(void *arg, void *owner, uint64_t block);
    /* Withdraw: it came from elsewhere, or nobody wants it any more. */
    void (*cancel)(void *arg, void *owner, uint64_t block);
    /* Withdraw, and say so if it was in time: picker_withdrawn follows then, else the block comes. */
    void (*withdraw)(void *arg, void *owner, uint64_t block);
};

/* `present`: the live bitmap of the content's blocks (base/bitmap.h), valid as long as the picker.
 */
struct picker *picker_new(const struct geometry *, const uint8_t *present, uint64_t seed,
                          const struct picker_actions *, void *arg);
/* All sources, demands and windows have been removed. NULL is fine. */
void picker_free(struct picker *);

/* Everything is wanted, or no more. False if there is no memory for it. */
bool picker_want_all(struct picker *, bool all);
/* The tracker's copies of each piece, one byte each, 255: 255 or more. Advice. */
void picker_copies(struct picker *, const uint8_t *copies, size_t count);

/* --- sources
 * -------------------------------------------------------------------------------------------------
 */
/* It has nothing yet. `pipe` is the link's, shared with its other contents; `owner` goes to the
 * actions. */
struct picker_source *picker_source_new(struct picker *, struct pipeline *pipe, void *owner);
/* What it was asked for is absent again; no action is called for it. NULL is fine. */
void picker_source_free(struct picker_source *);
/* The tracker says that it has all: believed, for what readers wait for, until it tells itself. */
void picker_source_guess(struct picker_source *);
/* Its bitfield, low bit first; NULL: it has all. False if there is no memory. */
bool picker_source_told(struct picker_source *, const uint8_t *pieces);
void picker_source_have(struct picker_source *, uint32_t piece);
/* It said it had this piece, and has it not. */
void picker_source_lacks(struct picker_source *, uint32_t piece);
/* It would serve this piece at once, as nobody else was told to ask for it: taken next, unless it is begun or a neighbour has
 * it. PICKER_SUGGESTED are remembered. */
void picker_source_suggests(struct picker_source *, uint32_t piece);
#define PICKER_SUGGESTED 32
bool picker_source_has(const struct picker_source *, uint32_t piece);
uint32_t picker_source_pieces(const struct picker_source *); /* how many it has */
/* While closed (choked) it is asked for nothing new. */
void picker_source_close(struct picker_source *, bool closed);
uint32_t picker_source_in_flight(const struct picker_source *);
/* Cancels all it was asked for. */
void picker_source_withdraw(struct picker_source *);

/* --- what is wanted
 * ----------------------------------------------------------------------------------------- */
/* The owner's memory; zeroed before the first use; fields are the picker's. */
struct picker_demand {
    struct picker_demand *prev, *next;
    struct picker *picker;
    uint64_t first, end, cursor;
    int64_t deadline;
    uint64_t seen, stuck;
};
void picker_demand_add(struct picker *, struct picker_demand *, uint64_t first, uint64_t count,
                       int64_t deadline);
void picker_demand_remove(struct picker_demand *); /* not added: fine */

struct picker_window {
    struct picker_window *prev, *next;
    struct picker *picker;
    uint64_t first, end, cursor;
    uint64_t seen;
};
/* Sets or moves a window of blocks; count 0 removes it. */
void picker_window_set(struct picker *, struct picker_window *, uint64_t first, uint64_t count);
/* Cancels what is under way and no longer wanted by anyone (after a seek, or a reader's end). */
void picker_trim(struct picker *);

/* --- decisions
 * --------------------------------------------------------------------------------------------------
 */
/* Asks for what readers wait for, as far as sources have room. Call it after events and at
 * picker_next. */
void picker_run(struct picker *, int64_t now);
/* When picker_run should be called at the latest; INT64_MAX: no need. */
int64_t picker_next(const struct picker *);
/* Asks this source for up to `most` blocks of a class below demand; returns how many. */
uint32_t picker_fill(struct picker_source *, enum picker_class, uint32_t most, int64_t now);
/* Whether there may be demands that found no room. */
bool picker_has_demands(const struct picker *);

/* --- what became of them
 * ----------------------------------------------------------------------------------------- */
enum picker_verdict {
    PICKER_TAKE,    /* verify it; then picker_present or picker_failed follows */
    PICKER_SPARE,   /* asked for, but it is here already */
    PICKER_UNASKED, /* nobody asked for it: the sender breaks the protocol */
};
/* `size`: of the block in bytes. *urgent, if not NULL: a reader waits for it. */
enum picker_verdict picker_received(struct picker_source *, uint64_t block, uint32_t size,
                                    int64_t now, bool *urgent);
void picker_present(struct picker *, uint64_t first, uint32_t count);
void picker_failed(struct picker *, uint64_t block);
/* Blocks went from the bitmap, by damage or because they were taken away. */
void picker_lost(struct picker *);
/* The source will not send these; `lacks`: it has not got them. */
void picker_rejected(struct picker_source *, uint64_t first, uint32_t count, bool lacks);
/* The source will not send these, as it was told to by actions.withdraw: who offered to bring them sooner is asked. Returns how
 * many were under way and withdrawn; others in the range are no harm. */
uint32_t picker_withdrawn(struct picker_source *, uint64_t first, uint32_t count, int64_t now);

/* Consecutive blocks that are not here, and that no source has. */
struct picker_gap {
    uint64_t first, count;
};
#define PICKER_GAPS 16

struct picker_counts {
    uint32_t in_flight;      /* requests under way */
    uint32_t active;         /* pieces with state */
    uint64_t asked;          /* requests ever, repeats not counted */
    uint64_t duplicates;     /* of which second ones of a block */
    uint64_t spare;          /* blocks that came in vain */
    uint32_t missing_pieces; /* not here, and no source has them; only with want_all or a demand:
                                else 0 */
    struct picker_gap gaps[PICKER_GAPS]; /* the first blocks of those */
    uint32_t gap_count;
    bool more_gaps; /* than are listed */
};
void picker_count(const struct picker *, struct picker_counts *);

#endif
