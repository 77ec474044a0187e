/* One member of the simulated swarm: what download_*.c and upload_*.c do with the picker and the choker, without the rest. */
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tests/sim/sim.h"

#define READ_AHEAD   (2u * 16 * BLOCK_SIZE) /* of one link's bulk, as upload_link_private.h has it */
#define URGENT_AHEAD 64u                    /* blocks */
#define REFILL       (2 * NS_PER_S)

/* --- the picker asks --------------------------------------------------------------------------------------------------- */
static void on_ask(void *arg, void *owner, uint64_t block, enum picker_class class)
{
    (void)arg;
    sim_mail(owner, true,
             (struct message){
                 .type = MESSAGE_REQUEST, .class = (uint8_t) class, .first = block, .count = 1});
}

static void on_raise(void *arg, void *owner, uint64_t block)
{
    on_ask(arg, owner, block, PICKER_DEMAND);
}

static void on_cancel(void *arg, void *owner, uint64_t block)
{
    (void)arg;
    sim_mail(owner, true, (struct message){.type = MESSAGE_CANCEL, .first = block, .count = 1});
}

static void on_withdraw(void *arg, void *owner, uint64_t block)
{
    (void)arg;
    sim_mail(owner, true,
             (struct message){.type = MESSAGE_CANCEL, .tell = true, .first = block, .count = 1});
}

static const struct picker_actions picker_actions = {on_ask, on_raise, on_cancel, on_withdraw};

static void fill(struct link *link)
{
    struct peer *peer = link->fetcher;
    int64_t now = peer->swarm->now;
    uint32_t room;

    if (!link->up)
        return;
    picker_run(peer->picker, now);
    if (pipeline_room(&link->pipe, now, false) == 0)
        return;
    /* as download_link.c: read-ahead fills the link for a reader who waited just now, and no other */
    room = pipeline_room(&link->pipe, now, !peer->waiting && now - peer->wait_began >= NS_PER_S);
    picker_fill(link->source, PICKER_PREFETCH, room, now);
    room = pipeline_room(&link->pipe, now, peer->waiting);
    picker_fill(link->source, PICKER_BACKGROUND, room, now);
}

/* --- the choker answers -------------------------------------------------------------------------------------------------- */
static uint32_t on_pending(void *owner)
{
    struct link *link = owner;

    return link->pending;
}

static uint32_t on_room(void *owner, bool urgent)
{
    struct link *link = owner;

    if (urgent)
        return link->urgent_count < URGENT_AHEAD ? 16 : 0;
    return link->pending < READ_AHEAD ? 16 : 0;
}

static void on_suggest(void *owner, uint32_t file, const uint32_t *pieces, uint32_t count)
{
    struct link *link = owner;

    (void)file;
    if (link->server->swarm->no_suggestions)
        return;
    for (uint32_t i = 0; i < count; i++)
        sim_mail(link, false, (struct message){.type = MESSAGE_SUGGEST, .first = pieces[i]});
}

static const struct choker_actions choker_actions = {on_pending, on_room, on_suggest};

void peer_pump(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;
    struct choker_turn turn;

    while (choker_next(peer->choker, swarm->now, &turn)) {
        struct link *link = turn.owner;
        bool urgent = turn.urgency == URGENT_DEMAND;

        for (uint32_t i = 0; i < turn.run.count; i++)
            sim_send(link, turn.run.first + i, urgent);
        if (!urgent)
            link->pending += turn.run.count * BLOCK_SIZE;
    }
    if (choker_wake(peer->choker) != INT64_MAX && !peer->wake_set) {
        peer->wake_set = true;
        sim_at(swarm, choker_wake(peer->choker), (struct event){.type = EVENT_WAKE, .peer = peer});
    }
    sim_up_start(peer);
}

/* --- links ------------------------------------------------------------------------------------------------------------------ */
static void add(struct link ***list, uint32_t *count, uint32_t *room, struct link *link)
{
    if (*count == *room) {
        *room = *room == 0 ? 32 : *room * 2;
        *list = xrealloc(*list, *room * sizeof(struct link *));
    }
    (*list)[(*count)++] = link;
}

static void drop(struct link **list, uint32_t *count, const struct link *link)
{
    for (uint32_t i = 0; i < *count; i++) {
        if (list[i] == link) {
            list[i] = list[--*count];
            return;
        }
    }
}

static void link_begin(struct peer *fetcher, struct peer *server)
{
    struct swarm *swarm = fetcher->swarm;
    struct link *link;
    uint8_t *map;

    for (uint32_t i = 0; i < fetcher->out_count; i++) {
        if (fetcher->out[i]->server == server)
            return;
    }
    link = xcalloc(1, sizeof(*link));
    link->fetcher = fetcher;
    link->server = server;
    link->up = true;
    link->delay = fetcher->delay + server->delay;
    pipeline_init(&link->pipe, swarm->now);
    pipeline_round_trip(&link->pipe, swarm->now, 2 * link->delay);
    add(&fetcher->out, &fetcher->out_count, &fetcher->links_room_out, link);
    add(&server->in, &server->in_count, &server->links_room_in, link);
    link->source = picker_source_new(fetcher->picker, &link->pipe, link);
    if (server->seed || server->kind == KIND_LIAR) {
        picker_source_told(link->source, NULL);
    } else {
        map = xmemdup(server->whole, bitmap_bytes(swarm->geometry.pieces));
        picker_source_told(link->source, map);
        free(map);
    }
    link->choke = choker_link_new(server->choker, link, fetcher->number);
    choker_open(link->choke, 1, server, &swarm->geometry, server->seed);
    fill(link);
}

/* Ends the fetching and the serving half; what is under way comes to nothing. The memory stays until the end, as events name it. */
static void link_end(struct link *link)
{
    if (!link->up)
        return;
    link->up = false;
    link->generation++;
    picker_source_free(link->source);
    link->source = NULL;
    sim_unsend(link);
    choker_link_free(link->choke);
    link->choke = NULL;
    drop(link->fetcher->out, &link->fetcher->out_count, link);
    drop(link->server->in, &link->server->in_count, link);
    free(link->queue);
    free(link->to_server.messages);
    free(link->to_fetcher.messages);
    link->queue = NULL;
    link->to_server = link->to_fetcher = (struct mailbox){0};
}

static void meet(struct peer *a, struct peer *b)
{
    if (!a->done && b->kind != KIND_RIDER)
        link_begin(a, b);
    if (!b->done && a->kind != KIND_RIDER)
        link_begin(b, a);
}

/* As the tracker does it: random members, those who have all included. */
static void find_neighbours(struct peer *peer, uint32_t most)
{
    struct swarm *swarm = peer->swarm;

    for (uint32_t tries = 0; tries < 4 * most && peer->out_count < most; tries++) {
        struct peer *other = swarm->here[sim_random(swarm, swarm->here_count)];

        if (other != peer && other->in_count < 3 * swarm->neighbours + (other->seed ? 64 : 0))
            meet(peer, other);
    }
}

/* --- life ---------------------------------------------------------------------------------------------------------------------- */
static void note_block(struct peer *peer, uint64_t block)
{
    const struct geometry *geometry = &peer->swarm->geometry;
    uint32_t piece = (uint32_t)(block / geometry->piece_blocks), count;
    uint64_t first;

    bitmap_set(peer->present, block);
    peer->have++;
    geometry_piece(geometry, piece, &first, &count);
    if (++peer->piece_count[piece] == count)
        bitmap_set(peer->whole, piece);
}

void peer_join(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;
    const struct geometry *geometry = &swarm->geometry;

    peer->here = true;
    peer->joined = swarm->now;
    peer->present = xcalloc(1, bitmap_bytes(geometry->blocks) + 8);
    peer->whole = xcalloc(1, bitmap_bytes(geometry->pieces) + 8);
    peer->piece_count = xcalloc(geometry->pieces, sizeof(uint32_t));
    peer->picker =
        picker_new(geometry, peer->present, swarm->random ^ peer->number, &picker_actions, peer);
    peer->choker = choker_new(&choker_actions, swarm->now);
    if (peer->seed) {
        for (uint64_t i = 0; i < geometry->blocks; i++)
            note_block(peer, i);
        peer->done = true;
    } else {
        picker_want_all(peer->picker, true);
    }
    if (swarm->here_count > 0)
        find_neighbours(peer, peer->seed ? 3 * swarm->neighbours : swarm->neighbours);
    swarm->here[swarm->here_count++] = peer;
    sim_at(swarm, swarm->now + swarm->tick, (struct event){.type = EVENT_TICK, .peer = peer});
    if (peer->read_rate > 0)
        sim_at(swarm, swarm->now, (struct event){.type = EVENT_READER, .peer = peer});
    if (peer->stays != 0)
        sim_at(swarm, swarm->now + peer->stays, (struct event){.type = EVENT_LEAVE, .peer = peer});
}

void peer_free(struct peer *peer)
{
    while (peer->out_count > 0)
        link_end(peer->out[0]);
    while (peer->in_count > 0)
        link_end(peer->in[0]);
    picker_demand_remove(&peer->demand);
    if (peer->picker != NULL && peer->window.picker != NULL)
        picker_window_set(peer->picker, &peer->window, 0, 0);
    picker_free(peer->picker);
    choker_free(peer->choker);
    free(peer->present);
    free(peer->whole);
    free(peer->piece_count);
    free(peer->out);
    free(peer->in);
    peer->picker = NULL;
    peer->choker = NULL;
    peer->present = peer->whole = NULL;
    peer->piece_count = NULL;
    peer->out = peer->in = NULL;
    peer->here = false;
}

void peer_leave(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;

    if (!peer->here)
        return;
    if (!peer->done)
        swarm->to_finish--;
    peer->left_at = swarm->now;
    for (uint32_t i = 0; i < swarm->here_count; i++) {
        if (swarm->here[i] == peer) {
            swarm->here[i] = swarm->here[--swarm->here_count];
            break;
        }
    }
    peer_free(peer);
}

static void finish(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;

    peer->done = true;
    peer->finished = swarm->now;
    picker_want_all(peer->picker, false);
    while (peer->out_count > 0)
        link_end(peer->out[0]);
    swarm->to_finish--;
}

/* --- readers -------------------------------------------------------------------------------------------------------------- */
#define READ_BLOCKS 8u /* 128 KiB at a time, as the kernel asks */

static void reader_step(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;
    const struct geometry *geometry = &swarm->geometry;
    uint64_t count = READ_BLOCKS, ahead;

    if (peer->picker == NULL || peer->done)
        return;
    if (peer->seeks > 0 && sim_random(swarm, 200) == 0) {
        peer->seeks--;
        peer->read_at = sim_random(swarm, (uint32_t)geometry->blocks);
    }
    if (peer->read_at >= geometry->blocks) {
        peer->reading = false;
        return;
    }
    if (count > geometry->blocks - peer->read_at)
        count = geometry->blocks - peer->read_at;
    ahead = (uint64_t)(2 * peer->read_rate / BLOCK_SIZE) + READ_BLOCKS;
    if (ahead > geometry->blocks - peer->read_at)
        ahead = geometry->blocks - peer->read_at;
    picker_window_set(peer->picker, &peer->window, peer->read_at, ahead);
    if (bitmap_all(peer->present, peer->read_at, count)) {
        if (peer->waiting) {
            int64_t stall = swarm->now - peer->wait_began;

            peer->waiting = false;
            picker_demand_remove(&peer->demand);
            if (peer->wait_began > peer->joined) { /* the first read is the start, not a stall */
                peer->stalled += stall;
                peer->stalls += stall > 100 * NS_PER_MS;
                if (stall > peer->worst_stall)
                    peer->worst_stall = stall;
            }
        }
        peer->read_at += count;
        sim_at(swarm,
               swarm->now + (int64_t)((double)(count * BLOCK_SIZE) * NS_PER_S / peer->read_rate),
               (struct event){.type = EVENT_READER, .peer = peer});
        return;
    }
    if (!peer->waiting) {
        peer->waiting = true;
        peer->wait_began = swarm->now;
        picker_demand_add(peer->picker, &peer->demand, peer->read_at, count, swarm->now);
    }
    picker_run(peer->picker, swarm->now);
}

/* --- what happens ------------------------------------------------------------------------------------------------------------ */
/* A piece is whole: its fetchers learn of it when the delay has passed. One event does for all of them. */
static void tell_all(struct peer *peer, uint32_t piece)
{
    sim_at(peer->swarm, peer->swarm->now + 2 * peer->delay + sim_line_delay(peer),
           (struct event){.type = EVENT_HAVE, .peer = peer, .block = piece});
}

static void all_learn(struct peer *peer, uint32_t piece)
{
    for (uint32_t i = 0; peer->here && i < peer->in_count; i++) {
        struct link *link = peer->in[i];

        if (bitmap_test(link->fetcher->whole, piece))
            continue;
        picker_source_have(link->source, piece);
        if (peer->swarm->unit == 1 || link->pipe.in_flight == 0)
            fill(link); /* else what is under way on it does so when it comes */
    }
}

static void ban(struct link *link)
{
    struct peer *a = link->fetcher, *b = link->server;

    link_end(link);
    for (uint32_t i = 0; i < b->out_count; i++) {
        if (b->out[i]->server == a) {
            link_end(b->out[i]);
            break;
        }
    }
}

/* One block has come; false: the link is no more. */
static bool receive(struct link *link, uint64_t block)
{
    struct peer *peer = link->fetcher;
    struct swarm *swarm = peer->swarm;
    uint32_t piece = (uint32_t)(block / swarm->geometry.piece_blocks);

    if (picker_received(link->source, block, BLOCK_SIZE, swarm->now, NULL) != PICKER_TAKE) {
        peer->spare_blocks++;
        return true;
    }
    if (link->server->kind == KIND_BROKEN && sim_random(swarm, 2) == 0) {
        picker_failed(peer->picker, block);
        ban(link);
        for (uint32_t i = 0; i < peer->out_count; i++)
            fill(peer->out[i]);
        return false;
    }
    peer->got_blocks++;
    note_block(peer, block);
    picker_present(peer->picker, block, 1);
    if (bitmap_test(peer->whole, piece))
        tell_all(peer, piece);
    if (peer->waiting)
        reader_step(peer);
    if (peer->have < swarm->geometry.blocks)
        return true;
    finish(peer);
    return false;
}

static void delivered(struct link *link, uint64_t first, uint32_t count)
{
    link->in_flight -= count;
    sim_up_start(link->server);
    for (uint32_t i = 0; i < count; i++) {
        if (!receive(link, first + i))
            return;
    }
    fill(link);
}

static void to_server(struct link *link, const struct message *message)
{
    struct peer *server = link->server;
    struct block_run run = {1, message->first, message->count};

    if (server->kind == KIND_STUCK && server->sent_blocks > 32)
        return;
    if (message->type == MESSAGE_CANCEL && message->tell) {
        struct block_run taken;

        while (choker_withdraw(link->choke, run, &taken))
            sim_mail(link, false,
                     (struct message){.type = MESSAGE_REJECT,
                                      .tell = true,
                                      .first = taken.first,
                                      .count = taken.count});
        return;
    }
    if (message->type == MESSAGE_CANCEL) {
        choker_cancel(link->choke, run);
        return;
    }
    choker_link_passes_on(link->choke, choker_line_rate(link->fetcher->choker));
    if (!bitmap_all(server->present, run.first, run.count) ||
        !choker_request(link->choke, run, (enum urgency)message->class, server->swarm->now))
        sim_mail(link, false,
                 (struct message){
                     .type = MESSAGE_REJECT, .first = message->first, .count = message->count});
}

static void to_fetcher(struct link *link, const struct message *message)
{
    switch (message->type) {
    case MESSAGE_SUGGEST:
        picker_source_suggests(link->source, (uint32_t)message->first);
        break;
    default:
        if (message->tell) {
            picker_withdrawn(link->source, message->first, message->count,
                             link->fetcher->swarm->now);
            return;
        }
        picker_rejected(link->source, message->first, message->count, true);
        if (++link->lies > LIMIT_BROKEN_CLAIMS) {
            uint8_t *nothing = xcalloc(1, bitmap_bytes(link->server->swarm->geometry.pieces) + 8);

            picker_source_told(link->source, nothing);
            free(nothing);
        }
    }
}

static void mail_due(struct link *link, bool server)
{
    struct mailbox *box = server ? &link->to_server : &link->to_fetcher;
    struct swarm *swarm = link->server->swarm;
    uint32_t generation = link->generation;

    while (box->head < box->count && box->messages[box->head].at <= swarm->now) {
        struct message message = box->messages[box->head++];

        if (server)
            to_server(link, &message);
        else
            to_fetcher(link, &message);
    }
    if (link->generation != generation)
        return;
    box->scheduled = box->head < box->count;
    if (box->scheduled)
        sim_at(
            swarm, box->messages[box->head].at,
            (struct event){
                .type = EVENT_MAIL, .generation = link->generation, .link = link, .block = server});
    if (server)
        peer_pump(link->server);
    else
        fill(link);
}

static void less_pending(struct link *link, uint32_t count)
{
    uint32_t bytes = count * BLOCK_SIZE;

    link->pending -= link->pending < bytes ? link->pending : bytes;
}

static void blocks_left(struct link *link, bool alive, uint64_t first, uint32_t count)
{
    struct peer *server = link->server;
    struct swarm *swarm = server->swarm;
    uint32_t bytes = count * BLOCK_SIZE;

    server->up_busy = false;
    server->sent_blocks += count;
    if (alive) {
        if (swarm->unit > 1)
            less_pending(link, count);
        sim_up_done(link, first, count);
    }
    if (!server->here)
        return;
    if (alive)
        choker_sent(link->choke, bytes, swarm->now);
    if (!swarm->all_out && server == &swarm->peers[0] &&
        choker_unsent(server->choker, server) == 0) {
        swarm->all_out = true;
        swarm->seed_blocks_when_out = server->sent_blocks;
    }
    peer_pump(server);
}

static void tick(struct peer *peer)
{
    struct swarm *swarm = peer->swarm;

    if (!peer->here)
        return;
    if (!peer->done) {
        uint64_t round = (uint64_t)((swarm->now - peer->joined) / swarm->tick);

        if (peer->out_count < swarm->neighbours / 2 &&
            round % (uint64_t)(REFILL / swarm->tick) == 0)
            find_neighbours(peer, swarm->neighbours);
        for (uint32_t i = 0; i < peer->out_count; i++)
            fill(peer->out[i]);
    }
    peer_pump(peer);
    if (!peer->done || peer->in_count > 0)
        sim_at(swarm, swarm->now + swarm->tick, (struct event){.type = EVENT_TICK, .peer = peer});
}

void peer_event(struct swarm *swarm, const struct event *event)
{
    bool alive = true;

    if (event->type == EVENT_UP || event->type == EVENT_ACK || event->type == EVENT_DELIVER ||
        event->type == EVENT_MAIL)
        alive = event->generation == event->link->generation;
    switch (event->type) {
    case EVENT_JOIN:
        peer_join(event->peer);
        break;
    case EVENT_LEAVE:
        peer_leave(event->peer);
        break;
    case EVENT_UP:
        blocks_left(event->link, alive, event->block, event->count);
        break;
    case EVENT_ACK:
        if (alive) {
            less_pending(event->link, event->count);
            if (event->link->server->here)
                choker_line(event->link->server->choker, sim_line_delay(event->link->server),
                            swarm->now);
            peer_pump(event->link->server);
        }
        break;
    case EVENT_DELIVER:
        if (alive)
            delivered(event->link, event->block, event->count);
        break;
    case EVENT_MAIL:
        if (alive)
            mail_due(event->link, event->block != 0);
        break;
    case EVENT_HAVE:
        all_learn(event->peer, (uint32_t)event->block);
        break;
    case EVENT_TICK:
        tick(event->peer);
        break;
    case EVENT_READER:
        reader_step(event->peer);
        break;
    default:
        event->peer->wake_set = false;
        if (event->peer->here)
            peer_pump(event->peer);
    }
}
