/* What the three files of a channel share: channel.c (life and events), channel_input.c
 * (receiving), channel_output.c (queues and sending). Nobody else includes this. */
#ifndef PROTO_CHANNEL_INTERNAL_H
#define PROTO_CHANNEL_INTERNAL_H

#include <event2/event.h>
#include <event2/event_struct.h>

#include "proto/channel.h"

#define CHANNEL_MAGIC 0x6368616e

/* Enough for the message of a block, a request, a ping: those are kept without malloc. */
#define CHANNEL_SMALL_MESSAGE 128

struct timer;
struct outgoing;

struct channel_queue {
    struct outgoing *first;
    struct outgoing *last; /* means nothing while `first` is NULL */
    size_t bytes;          /* not yet given to the stream */
};

/* Where in a frame the input stands. */
enum channel_phase { CHANNEL_HEADER, CHANNEL_MESSAGE, CHANNEL_PAYLOAD };

struct channel {
    uint32_t magic;
    struct loop *loop;
    struct stream *stream;
    struct channel_events events;
    void *arg;
    struct event later; /* the end of this round, or the next one */
    struct timer *finish_timer;

    unsigned depth; /* of calls that still need this memory */
    bool handling;  /* an event is being handled, and the output is looked after at its end */
    bool freed;     /* by the owner; the memory goes with the last of `depth` */
    bool ended;     /* nothing goes in or out any more; `closed` has been or will be called */
    bool told;      /* `closed` has been called */
    bool orderly;   /* how it ended */
    bool broken;    /* the other end broke the framing */
    char *why;      /* why it ended, or with `finishing` will have */
    bool finishing; /* channel_finish was called */
    bool trusted;
    bool paused;
    bool yields;    /* the rest of the input waits for the next round */
    bool overdrawn; /* the budget is used up: input waits for budget_timer */

    /* Receiving. */
    enum channel_phase phase;
    struct frame frame;
    uint8_t header[FRAME_HEADER_SIZE];
    size_t have;            /* bytes of the part that `phase` names */
    const uint8_t *message; /* whole; in `small`, in `large`, or borrowed */
    bool borrowed;          /* `message` lies in the window that is being read */
    uint8_t *large;         /* malloc'ed, or NULL */
    size_t large_size;
    uint8_t *payload;  /* the owner's; NULL: thrown away */
    unsigned fds;      /* that came with the frame and were not taken */
    bool expects_bulk; /* the last frame had a large payload */
    bool delivered;    /* a frame, since the last `idle` */
    uint8_t *held;     /* input that was read before the pause, or NULL */
    size_t held_size;
    int64_t last_heard;
    uint64_t bytes_in;
    unsigned frames;       /* without a large payload, in this round */
    int64_t slice_end;     /* of this round, with a budget */
    int64_t budget, burst; /* ns of processor time: in a second, and at once; 0: no limit */
    int64_t credit, credit_at;
    struct timer *budget_timer; /* NULL without a budget */
    uint8_t small[CHANNEL_SMALL_MESSAGE];

    /* Sending. */
    struct channel_queue queue[2]; /* by enum channel_class */
    struct outgoing *current;      /* partly given to the stream, in no queue any more; or NULL */
    size_t offset;                 /* bytes of `current` that were given */
    bool blocked;                  /* the stream has no room: wait for `writable` */
    bool unflushed;                /* the stream may hold bytes */
    bool above;                    /* the bulk queue has been at the low mark or above */
    size_t low_mark;
    size_t memory[2];          /* of the frames that are queued, by class */
    struct channel_pool *pool; /* counts that with other channels'; or NULL */
    uint64_t bytes_out;
};

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Between these two the channel's memory stays, whatever a callback does. After any callback look
 * at `freed` before anything else. */
void channel_enter(struct channel *);
void channel_leave(struct channel *);

/* The channel ends; `closed` follows from the loop. The first call counts. */
void channel_end(struct channel *, bool orderly, const char *why);

/* Reads what the stream has, hands out frames. Called from the loop only. */
void channel_input(struct channel *);
/* Reads and forgets: a socket that is closed with unread input takes back what was sent on it. */
void channel_input_discard(struct channel *);
void channel_input_free(struct channel *);
/* The budget has filled up again. */
void channel_input_again(void *channel);

/* Gives the stream what it takes. Called from the loop only. */
void channel_output(struct channel *);
/* Releases all that is queued. */
void channel_output_free(struct channel *);

#endif
