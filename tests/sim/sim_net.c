/* Time and the wires of the simulation: sim.h. */
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/sim/sim.h"

#define CHILDREN 4

/* SplitMix64. */
static uint64_t next_random(struct swarm *swarm)
{
    uint64_t z = swarm->random += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

uint32_t sim_random(struct swarm *swarm, uint32_t below)
{
    return (uint32_t)(((next_random(swarm) >> 32) * below) >> 32);
}

double sim_uniform(struct swarm *swarm)
{
    return (double)(next_random(swarm) >> 11) / (double)(UINT64_C(1) << 53);
}

/* --- events: a heap of four children each, equal times in the order of their making --------------------------------------------------- */
static bool earlier(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_at(struct swarm *swarm, int64_t at, struct event event)
{
    uint32_t i = swarm->heap_count++;

    if (i == swarm->heap_room) {
        swarm->heap_room = swarm->heap_room == 0 ? 1024 : swarm->heap_room * 2;
        swarm->heap = xrealloc(swarm->heap, swarm->heap_room * sizeof(*swarm->heap));
    }
    event.at = at;
    event.order = swarm->order++;
    while (i > 0 && earlier(&event, &swarm->heap[(i - 1) / CHILDREN])) {
        swarm->heap[i] = swarm->heap[(i - 1) / CHILDREN];
        i = (i - 1) / CHILDREN;
    }
    swarm->heap[i] = event;
}

static void digest(struct swarm *swarm, const struct event *event)
{
    uint64_t value = (uint64_t)event->at ^ event->block << 40 ^ (uint64_t)event->type << 32;

    swarm->digest = (swarm->digest ^ value) * UINT64_C(0x100000001B3);
}

/* In a large swarm each event is of a member whose memory was touched long ago. The next events' links are called for while this one
 * is dealt with, and what hangs on the next one's, which has come by now. */
static void prefetch(const struct swarm *swarm)
{
    const struct event *next = swarm->heap;

    for (uint32_t i = 0; i <= CHILDREN && i < swarm->heap_count; i++)
        __builtin_prefetch(swarm->heap[i].link);
    if (swarm->heap_count > 0 && (next->type == EVENT_UP || next->type == EVENT_DELIVER ||
                                  next->type == EVENT_ACK || next->type == EVENT_MAIL)) {
        __builtin_prefetch(next->link->fetcher);
        __builtin_prefetch(next->link->server);
        __builtin_prefetch(next->link->source);
        __builtin_prefetch(next->link->choke);
    }
}

bool sim_next(struct swarm *swarm, struct event *out)
{
    struct event last;
    uint32_t i = 0;

    if (swarm->heap_count == 0)
        return false;
    *out = swarm->heap[0];
    last = swarm->heap[--swarm->heap_count];
    for (;;) {
        uint32_t first = CHILDREN * i + 1, end = first + CHILDREN, child = first;

        if (first >= swarm->heap_count)
            break;
        if (end > swarm->heap_count)
            end = swarm->heap_count;
        while (++first < end) {
            if (earlier(&swarm->heap[first], &swarm->heap[child]))
                child = first;
        }
        if (!earlier(&swarm->heap[child], &last))
            break;
        swarm->heap[i] = swarm->heap[child];
        i = child;
    }
    swarm->heap[i] = last;
    prefetch(swarm);
    swarm->now = out->at;
    swarm->events++;
    digest(swarm, out);
    return true;
}

/* --- messages ------------------------------------------------------------------------------------------------------------ */
void sim_mail(struct link *link, bool to_server, struct message message)
{
    struct mailbox *box = to_server ? &link->to_server : &link->to_fetcher;
    struct swarm *swarm = link->server->swarm;

    message.at =
        swarm->now + link->delay + sim_line_delay(to_server ? link->fetcher : link->server);
    if (box->head > 0 && box->head == box->count)
        box->head = box->count = 0;
    if (to_server && message.type == MESSAGE_REQUEST && box->count > box->head) {
        struct message *last = &box->messages[box->count - 1];

        if (last->type == message.type && last->class == message.class && last->at == message.at &&
            last->first + last->count == message.first) {
            last->count += message.count;
            return;
        }
    }
    if (box->count == box->room) {
        box->room = box->room == 0 ? 8 : box->room * 2;
        box->messages = xrealloc(box->messages, box->room * sizeof(*box->messages));
    }
    box->messages[box->count++] = message;
    if (!box->scheduled) {
        box->scheduled = true;
        sim_at(swarm, message.at,
               (struct event){.type = EVENT_MAIL,
                              .generation = link->generation,
                              .link = link,
                              .block = to_server});
    }
}

/* --- the uplink ------------------------------------------------------------------------------------------------------------ */
/* Blocks that lie side by side, at most a unit. */
static uint32_t take_blocks(struct link *link, uint64_t *first)
{
    uint32_t count = 0;

    *first = link->queue[link->queue_head];
    do {
        count++;
        link->queue_head++;
        link->queue_count--;
        link->server->queued--;
        if (link->urgent_count > 0)
            link->urgent_count--;
    } while (link->queue_count > 0 && count < link->server->swarm->unit &&
             link->queue[link->queue_head] == *first + count);
    if (link->queue_count == 0) {
        link->queue_head = 0;
        DL_DELETE2(link->server->sending, link, send_prev, send_next);
    }
    return count;
}

static int64_t time_of(uint32_t blocks, double rate)
{
    return (int64_t)(blocks * BLOCK_SIZE * HEADERS * NS_PER_S / rate);
}

/* A router's queue takes what it is given, 100 ms' or 64 KiB at most. */
int64_t sim_line_delay(const struct peer *peer)
{
    double bytes = (double)(peer->queued + peer->up_busy) * BLOCK_SIZE, most = peer->up / 10;

    if (peer->swarm->unit > 1)
        return 0;
    if (most < 65536)
        most = 65536;
    return (int64_t)((bytes < most ? bytes : most) * NS_PER_S / peer->up);
}

void sim_up_start(struct peer *peer)
{
    struct link *link, *chosen = NULL;
    uint64_t first;
    uint32_t count;

    if (peer->up_busy)
        return;
    DL_FOREACH2(peer->sending, link, send_next)
    {
        if (link->in_flight < SIM_IN_FLIGHT) {
            chosen = link;
            break;
        }
    }
    if (chosen == NULL)
        return;
    count = take_blocks(chosen, &first);
    if (chosen->queue_count > 0) { /* the others' turn comes first */
        DL_DELETE2(peer->sending, chosen, send_prev, send_next);
        DL_APPEND2(peer->sending, chosen, send_prev, send_next);
    }
    peer->up_busy = true;
    chosen->in_flight += count;
    sim_at(peer->swarm, peer->swarm->now + time_of(count, peer->up),
           (struct event){.type = EVENT_UP,
                          .count = (uint8_t)count,
                          .generation = chosen->generation,
                          .link = chosen,
                          .block = first});
}

/* The last byte has left: the blocks come out of the other end's downlink after all that arrived before it. */
void sim_up_done(struct link *link, uint64_t first, uint32_t count)
{
    struct swarm *swarm = link->server->swarm;
    struct peer *to = link->fetcher;
    int64_t arrives = swarm->now + link->delay;

    if (swarm->unit == 1)
        sim_at(swarm, arrives + link->delay + sim_line_delay(to),
               (struct event){.type = EVENT_ACK,
                              .count = (uint8_t)count,
                              .generation = link->generation,
                              .link = link});
    if (to->down_free < arrives)
        to->down_free = arrives;
    to->down_free += time_of(count, to->down);
    sim_at(swarm, to->down_free,
           (struct event){.type = EVENT_DELIVER,
                          .count = (uint8_t)count,
                          .generation = link->generation,
                          .link = link,
                          .block = first});
}

void sim_send(struct link *link, uint64_t block, bool urgent)
{
    uint32_t at = urgent ? link->urgent_count : link->queue_count;

    if (link->queue_head + link->queue_count == link->queue_room) {
        memmove(link->queue, link->queue + link->queue_head,
                link->queue_count * sizeof(*link->queue));
        link->queue_head = 0;
        if (link->queue_count >= link->queue_room / 2) {
            link->queue_room = link->queue_room == 0 ? 16 : link->queue_room * 2;
            link->queue = xrealloc(link->queue, link->queue_room * sizeof(*link->queue));
        }
    }
    if (link->queue_count == 0)
        DL_APPEND2(link->server->sending, link, send_prev, send_next);
    memmove(link->queue + link->queue_head + at + 1, link->queue + link->queue_head + at,
            (link->queue_count - at) * sizeof(*link->queue));
    link->queue[link->queue_head + at] = block;
    link->queue_count++;
    link->server->queued++;
    link->urgent_count += urgent;
}

/* The link has ended: nothing of it goes out any more. */
void sim_unsend(struct link *link)
{
    if (link->queue_count > 0)
        DL_DELETE2(link->server->sending, link, send_prev, send_next);
    link->server->queued -= link->queue_count;
    link->queue_count = link->queue_head = link->urgent_count = 0;
}
