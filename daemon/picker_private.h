/* What picker.c (pieces, requests), picker_want.c (sources, what is wanted) and picker_pick.c
 * (choices) share. Not for others. */
#ifndef DAEMON_PICKER_PRIVATE_H
#define DAEMON_PICKER_PRIVATE_H

#include <sys/queue.h>

#include "daemon/picker.h"
#include "daemon/pipeline.h"
#include "daemon/rarity.h"

/* A block within an active piece. */
enum block_state {
    BLOCK_ABSENT,   /* to be asked for */
    BLOCK_ASKED,    /* one request or more is under way */
    BLOCK_RECEIVED, /* being verified and written */
    BLOCK_PRESENT
};

/* One block asked of one source. */
struct request {
    LIST_ENTRY(request) of_source;
    struct request *next; /* the same block, another source */
    struct picker_source *source;
    struct piece *piece;
    struct picker_source *taker; /* for whom it was withdrawn; NULL if that one has left */
    struct pipeline_stamp stamp;
    int64_t due;  /* when it was expected */
    int64_t late; /* from when on it may be asked for elsewhere */
    uint32_t index;
    uint8_t urgency;
    bool second;    /* others had been asked before */
    bool withdrawn; /* it is asked back, and may come none the less … */
    int64_t withdrawn_at;
};

/* A piece with something under way, or begun and to be finished. */
struct piece {
    struct piece *chain; /* of its hash bucket */
    TAILQ_ENTRY(piece) entry;
    uint64_t first;
    uint32_t number, count;
    uint32_t absent, asked, received; /* blocks in these states */
    int64_t late;                     /* no request of it is late before */
    bool withdrawn;                   /* of the requests under way some may have been asked back */
    bool open;                        /* in the list of those with absent blocks */
    uint8_t *state;
    struct request *requests[]; /* one list per block */
};

TAILQ_HEAD(piece_list, piece);
LIST_HEAD(request_list, request);

struct picker_source {
    TAILQ_ENTRY(picker_source) entry;
    struct picker *picker;
    struct pipeline *pipe;
    void *owner;
    uint8_t *map; /* NULL: nothing, or all */
    uint32_t pieces;
    bool all, told, guess, closed;
    struct request_list requests;
    uint32_t *suggested; /* PICKER_SUGGESTED of them, in order; NULL: it never suggested any */
    uint32_t suggested_count;
    uint32_t in_flight;
    uint32_t taking;    /* requests of which it is the taker */
    uint32_t cancelled; /* blocks that may still come though they were withdrawn */
    uint64_t dry; /* nothing to ask for in the background while the picker's version is this */
    int64_t second_after; /* when second requests may be looked for again */
    int64_t take_after;   /* and what others owe */
};

struct picker {
    struct geometry geometry;
    const uint8_t *present;
    struct picker_actions actions;
    void *arg;
    uint64_t seed;

    TAILQ_HEAD(, picker_source) sources;
    uint32_t source_count;
    struct picker_demand *demands; /* circular, sorted by deadline */
    struct picker_window *windows; /* circular; turns */
    bool want_all;
    struct rarity *rarity; /* with want_all */

    struct piece_list open, full; /* with absent blocks; without */
    struct piece **buckets;
    uint32_t bucket_count, active, open_count;
    struct request *spare_requests; /* free list, linked by next */
    struct request_chunk *chunks;

    uint64_t version;    /* grows when something may have become askable */
    int64_t next_late;   /* the earliest late demand that another source could answer */
    uint64_t late_seen;  /* the version at which late ones were looked for */
    int64_t full_late;   /* no request of a piece in `full` is late before */
    bool full_withdrawn; /* of pieces in `full` some may have been asked back */
    uint32_t in_flight;
    uint32_t seconds; /* second requests under way */
    uint64_t asked, duplicates, spare;
};

struct piece *picker_piece(const struct picker *, uint32_t number);
/* The piece with state; NULL if all of it is present, or no memory. */
struct piece *picker_activate(struct picker *, uint32_t number);
/* Puts it into the right list, or forgets it. The piece may be gone afterwards. */
void picker_settle(struct picker *, struct piece *);
/* Its `late` may have become earlier, or it came into `full`. */
void picker_note_late(struct picker *, const struct piece *);
/* The state of a block, brought up to date with the bitmap. */
enum block_state picker_block(struct picker *, struct piece *, uint32_t index);
void picker_ask(struct picker *, struct picker_source *, struct piece *, uint32_t index,
                enum picker_class, int64_t now);
/* Takes a request out of all lists and frees it; a block without requests is absent again. */
void picker_drop(struct picker *, struct request *, bool cancel);

#endif
