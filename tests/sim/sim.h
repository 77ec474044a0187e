/* A swarm in one thread: the daemon's picker, pipeline and choker on a modelled network.
 *
 * Model. Every peer has an uplink and a downlink of its own; between them lies a one-way delay. An uplink sends one block after
 * the other, taking turns among the links that have some (as TCP flows share a bottleneck), with 4 % of headers; a link has at
 * most IN_FLIGHT blocks under way, as TCP would. In large swarms a turn is of several blocks that lie side by side (`unit`), as
 * a socket's bursts are, which makes fewer events; and a Have makes its fetcher look at once only at an idle link. A downlink takes what arrives in order. Requests, cancels, suggestions,
 * Have and acknowledgements take the delay, which is the same between all, and no bandwidth; but in small swarms they wait behind
 * the blocks that their sender has given to its own uplink's queue, and a sender counts a block as pending until it is
 * acknowledged, as a daemon does that asks its sockets. Verification takes no time. Everything random comes
 * from one seed, so that a run can be repeated exactly: the digest that is printed is one of all events.
 *
 *   sim.c        what is run and what is printed
 *   sim_net.c    time, the queue of events, uplinks and downlinks
 *   sim_peer.c   one member: what it does with the picker and the choker */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "daemon/choker.h"
#include "daemon/picker.h"
#include "daemon/pipeline.h"

enum kind {
    KIND_GOOD,
    KIND_RIDER,  /* serves nothing */
    KIND_LIAR,   /* claims to have all, has what it has */
    KIND_BROKEN, /* half of the blocks that it sends are garbage */
    KIND_STUCK   /* takes requests, and never answers after a while */
};

enum event_type {
    EVENT_JOIN,
    EVENT_LEAVE,
    EVENT_UP,      /* a block has left an uplink */
    EVENT_ACK,     /* the sender has heard that blocks arrived */
    EVENT_DELIVER, /* a block has come out of a downlink */
    EVENT_MAIL,    /* messages on a link */
    EVENT_HAVE,    /* a piece is whole, and all fetchers learn of it */
    EVENT_TICK,
    EVENT_READER,
    EVENT_WAKE /* a rate limit lets go on */
};

struct event {
    int64_t at;
    uint64_t order;
    uint8_t type;
    uint8_t count;       /* blocks */
    uint32_t generation; /* of the link */
    union {
        struct peer *peer;
        struct link *link;
    };
    uint64_t block; /* the first one, or a piece */
};

enum message_type { MESSAGE_REQUEST, MESSAGE_CANCEL, MESSAGE_SUGGEST, MESSAGE_REJECT };
struct message {
    int64_t at;
    uint8_t type, class;
    bool tell; /* of a cancel: it is asked back; of a reject: it was */
    uint32_t count;
    uint64_t first; /* block, or piece */
};
struct mailbox {
    struct message *messages;
    uint32_t head, count, room;
    bool scheduled;
};

/* One direction: `fetcher` asks, `server` serves. */
struct link {
    struct peer *fetcher, *server;
    uint32_t generation; /* grows when it ends: events under way mean nothing then */
    bool up;
    int64_t delay;
    struct pipeline pipe;
    struct picker_source *source;
    struct choker_link *choke;
    struct mailbox to_server, to_fetcher;
    /* The server's socket. */
    struct link *send_prev, *send_next;
    uint64_t *queue;
    uint32_t queue_head, queue_count, queue_room, urgent_count;
    uint32_t in_flight, pending;
    unsigned lies;
};

struct peer {
    struct swarm *swarm;
    uint32_t number;
    enum kind kind;
    bool here, seed, done;
    double up, down; /* bytes a second */
    int64_t delay;   /* its half of each link's */
    int64_t joined, finished, left_at, stays;
    uint8_t *present;
    uint8_t *whole; /* pieces */
    uint32_t *piece_count;
    uint64_t have; /* blocks */
    struct picker *picker;
    struct choker *choker;
    struct link **out, **in; /* it fetches on; it serves on */
    uint32_t out_count, in_count, links_room_out, links_room_in;
    /* Uplink and downlink. */
    struct link *sending; /* list of links with something to send */
    bool up_busy;
    uint32_t queued; /* blocks that sockets hold */
    int64_t down_free;
    bool wake_set;
    uint64_t sent_blocks, got_blocks, spare_blocks;
    /* A reader. */
    double read_rate;
    bool reading, waiting;
    uint64_t read_at;
    int64_t wait_began, stalled, worst_stall;
    unsigned seeks, stalls;
    struct picker_demand demand;
    struct picker_window window;
};

struct swarm {
    struct geometry geometry;
    uint64_t random, digest;
    int64_t now, tick;
    uint64_t order, events;
    struct event *heap;
    uint32_t heap_count, heap_room;
    struct peer *peers;
    uint32_t peer_count, neighbours, to_finish, unit;
    struct peer **here;
    uint32_t here_count;
    uint64_t seed_blocks_when_out; /* sent by the first seed when each piece had left it once */
    bool all_out;
    bool no_suggestions;
    int64_t limit; /* of simulated time */
};

/* sim_net.c */
uint32_t sim_random(struct swarm *, uint32_t below);
double sim_uniform(struct swarm *);
void sim_at(struct swarm *, int64_t at, struct event);
bool sim_next(struct swarm *, struct event *);
void sim_up_start(struct peer *); /* something may be sent */
void sim_up_done(struct link *, uint64_t first, uint32_t count);
void sim_send(struct link *, uint64_t block, bool urgent);
void sim_unsend(struct link *);
int64_t
sim_line_delay(const struct peer *); /* what a message waits behind the blocks of the same uplink */
void sim_mail(struct link *, bool to_server, struct message);
#define SIM_IN_FLIGHT 8
#define HEADERS       1.04 /* what a block takes on the wire, of its own size */

/* sim_peer.c */
void peer_join(struct peer *);
void peer_leave(struct peer *);
void peer_event(struct swarm *, const struct event *);
void peer_pump(struct peer *); /* the choker's next jobs */
void peer_free(struct peer *);

#endif
