/* What choker.c (links, files, requests), choker_offer.c (suggestions), choker_turn.c (decisions) and choker_slots.c (how many
 * at a time) share. Not for others. */
#ifndef DAEMON_CHOKER_PRIVATE_H
#define DAEMON_CHOKER_PRIVATE_H

#include <uthash.h>
#include <utlist.h>

#include "daemon/bucket.h"
#include "daemon/choker.h"

/* One piece of an open content, as seen by what goes out. */
struct sent_piece {
    uint16_t blocks; /* of it that went out, repeats counted; stops at its maximum */
    uint8_t current; /* links to which it is being sent */
    bool offered;    /* to one link */
};

struct choker_file {
    UT_hash_handle hh;
    const void *key;
    struct geometry geometry;
    struct opened_file *opened; /* on links */
    bool several;               /* more than one link has had it open */
    bool complete;
    struct sent_piece *pieces; /* NULL: there was no memory, nothing is known */
    uint32_t unsent;           /* pieces that have not gone out once */
    struct choker_spent spent;
    uint32_t cursor, stride; /* of the order in which pieces are offered */
    bool offered_all;        /* nothing is left to offer until something is given back */
    struct bucket bucket;
    uint64_t least_pass; /* the pass in which `least` was found */
    uint32_t least;      /* copies of the piece sent least, of those queued */
};

struct offer {
    uint32_t piece;
    bool asked;
};

/* A content open on a link. */
struct opened_file {
    UT_hash_handle hh;
    uint32_t number;
    struct choker_file *file;
    struct choker_link *link;
    struct opened_file *prev, *next; /* of the content */
    struct offer *offers;            /* 2 * CHOKER_OFFERS; NULL: there were none yet */
    uint32_t offer_count;
};

/* Start-time fair queueing: who comes back after a pause stands level with those who did not pause. */
struct account {
    UT_hash_handle hh;
    uint64_t number;
    uint32_t links;
    uint64_t served;    /* bytes, of those that it passes on badly a multiple */
    uint64_t passes_on; /* what its uplink carries, bytes a second; 0: not known */
};

struct choker_link {
    struct choker_link *prev, *next; /* of those with something queued */
    struct choker *choker;
    void *owner;
    struct account *account;
    struct request_queue *queue;
    struct opened_file *files, *last_file;       /* hash; the one looked up last */
    struct choker_link *begun_prev, *begun_next; /* of those to which bulk is on its way */
    bool listed, begun;
    uint64_t listed_as;         /* place in the list of those with something queued */
    uint32_t queued[URGENCIES]; /* blocks, as counted in the choker's */
    bool busy;                  /* a piece is being sent: `current` */
    uint32_t current_file, current_piece;
    int64_t waits; /* since when it was given nothing */
    int64_t took;  /* when it last got rid of something, or it began */
    uint32_t seen; /* bytes pending when that was last looked at */
    /* What it would be given if it were its turn, in this pass. */
    struct opened_file *best_file; /* NULL: nothing */
    uint32_t best_piece, best_copies;
};

enum trial { TRIAL_NONE, TRIAL_MORE, TRIAL_LESS };

struct slots {
    uint32_t count;
    uint32_t proven; /* a trial showed that fewer do not fill the uplink */
    bool settled;    /* its first part is over */
    bool refused;    /* somebody found no slot in this span */
    int64_t since;   /* of this span */
    uint64_t bytes;  /* at its beginning */
    enum trial trial;
    uint32_t before; /* count and rate before the trial */
    double before_rate;
    int64_t next_trial, pause;
    bool less_next;
};

/* Somebody without a slot stood first while others might have taken more: looking again finds the same as long as nothing of
 * this has changed. */
struct refusal {
    uint64_t changes;
    int64_t at; /* 0: there was none */
    uint32_t takers, ahead;
};

struct choker {
    struct choker_actions actions;
    struct choker_link *links; /* with something queued */
    struct choker_link *begun; /* all that may have bulk pending */
    uint32_t begun_count;
    uint64_t listings;
    uint64_t changes; /* grows with each change of a queue */
    struct refusal refusal;
    struct choker_file *files;
    struct account *accounts;
    struct bucket bucket;
    struct slots slots;
    uint64_t queued[URGENCIES]; /* blocks of all links */
    int64_t wake;
    uint64_t pass, virtual_time;
    uint32_t since_optimistic; /* pieces */
    uint64_t sent;             /* bulk bytes given to sockets */
    uint64_t rate_sent;
    int64_t rate_at;
    double rate;
    uint64_t repeats;
    double best; /* the highest rate of a second; forgets slowly */
    uint64_t best_sent;
    int64_t best_at;
    uint32_t extra;      /* slots beyond those, as the line's queue is short */
    int64_t line;        /* ns that its queue takes … */
    int64_t line_at;     /* … when that was heard; 0: never */
    int64_t extra_at;    /* `extra` changed */
    uint32_t slot_bytes; /* who has more than this pending occupies a slot */
};

/* --- choker.c --- */
struct opened_file *choker_file_of(struct choker_link *, uint32_t number); /* NULL: not open */
/* The link's queue has changed: it is counted, and put into the list of those with something queued, or out of it. */
void choker_list(struct choker_link *, int64_t now);
uint32_t choker_piece_copies(const struct choker_file *, uint32_t piece);
/* Bulk is on its way to this link, or no more. */
void choker_set_begun(struct choker_link *, bool begun);
/* These blocks go out. */
void choker_mark_sent(struct choker_file *, struct block_run);

/* --- choker_offer.c --- */
void choker_offer(struct opened_file *);                         /* tops up what is suggested */
void choker_offer_asked(struct opened_file *, struct block_run); /* the fetcher asks for these */
void choker_offer_cancelled(struct opened_file *, struct block_run);
void choker_offer_end(struct opened_file *); /* gives all back */
bool choker_offered_to(const struct opened_file *, uint32_t piece);

/* --- choker_slots.c --- */
void choker_slots_init(struct choker *, int64_t now);
void choker_slots_step(struct choker *, int64_t now);
/* How many slots there are now: on a slow uplink no more than it carries blocks in AHEAD, unless it was proven to need them. */
uint32_t choker_slots(const struct choker *);
/* Somebody found no slot. */
void choker_slots_refused(struct choker *, int64_t now);
/* How many bytes a link may have pending when others wait: together, what goes out in AHEAD. More would only stand in the uplink's
 * queue, before everything else, the answers and acknowledgements for what this member fetches included. */
uint32_t choker_ahead(const struct choker *);
/* How many bytes that is of all of them. */
uint64_t choker_ahead_all(const struct choker *);

#endif
