/* The picker, alone: events and times are made up, what it decides is written down. */
#include "daemon/picker.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/mem.h"
#include "daemon/pipeline.h"
#include "daemon/rarity.h"
#include "proto/limits.h"

#define LINKS 8
#define MIB   (UINT64_C(1) << 20)

struct table;
struct peer {
    struct table *table;
    struct pipeline pipe;
    struct picker_source *source;
    /* what it was asked for, oldest first */
    uint64_t *asked;
    enum picker_class *class;
    unsigned count, room;
    unsigned raised, cancelled, withdrawn;
    /* as a model */
    double rate;
    int64_t delay, free_at;
    int64_t *arrives;
};

struct table {
    struct geometry geometry;
    uint8_t *present;
    struct picker *picker;
    struct peer peers[LINKS];
    int64_t now;
};

static void on_ask(void *arg, void *owner, uint64_t block, enum picker_class class)
{
    struct peer *peer = owner;

    assert_ptr_equal(arg, peer->table);
    for (unsigned i = 0; i < peer->count; i++)
        assert_true(peer->asked[i] != block); /* never twice of the same source */
    assert_false(bitmap_test(peer->table->present, block));
    assert_true(
        picker_source_has(peer->source, (uint32_t)(block / peer->table->geometry.piece_blocks)));
    if (peer->count == peer->room) {
        peer->room = peer->room * 2 + 16;
        peer->asked = xrealloc(peer->asked, peer->room * sizeof *peer->asked);
        peer->class = xrealloc(peer->class, peer->room * sizeof *peer->class);
        peer->arrives = xrealloc(peer->arrives, peer->room * sizeof *peer->arrives);
    }
    if (peer->free_at < peer->table->now + peer->delay / 2)
        peer->free_at = peer->table->now + peer->delay / 2;
    peer->free_at += (int64_t)(BLOCK_SIZE * 1e9 / (peer->rate > 0 ? peer->rate : 1e6));
    peer->arrives[peer->count] = peer->free_at + peer->delay / 2;
    peer->asked[peer->count] = block;
    peer->class[peer->count++] = class;
}

static void forget(struct peer *peer, unsigned i)
{
    peer->count--;
    memmove(peer->asked + i, peer->asked + i + 1, (peer->count - i) * sizeof *peer->asked);
    memmove(peer->class + i, peer->class + i + 1, (peer->count - i) * sizeof *peer->class);
    memmove(peer->arrives + i, peer->arrives + i + 1, (peer->count - i) * sizeof *peer->arrives);
}

static void on_raise(void *arg, void *owner, uint64_t block)
{
    struct peer *peer = owner;

    (void)arg;
    (void)block;
    peer->raised++;
}

static void on_cancel(void *arg, void *owner, uint64_t block)
{
    struct peer *peer = owner;

    (void)arg;
    peer->cancelled++;
    for (unsigned i = 0; i < peer->count; i++) {
        if (peer->asked[i] == block) {
            forget(peer, i);
            return;
        }
    }
    fail_msg("a cancel of what was not asked for");
}

static void on_withdraw(void *arg, void *owner, uint64_t block)
{
    struct peer *peer = owner;

    (void)arg;
    (void)block;
    peer->withdrawn++;
}

static const struct picker_actions actions = {on_ask, on_raise, on_cancel, on_withdraw};

static struct table *table_new(uint64_t size, uint64_t seed)
{
    struct table *table = xcalloc(1, sizeof *table);

    table->geometry = geometry_of(size);
    table->present = xcalloc(1, bitmap_bytes(table->geometry.blocks) + 1);
    table->picker = picker_new(&table->geometry, table->present, seed, &actions, table);
    table->now = NS_PER_S;
    return table;
}

static void leave(struct peer *peer)
{
    picker_source_free(peer->source);
    free(peer->asked);
    free(peer->class);
    free(peer->arrives);
    peer->source = NULL;
    peer->asked = NULL;
    peer->class = NULL;
    peer->arrives = NULL;
    peer->count = peer->room = 0;
}

static void table_free(struct table *table)
{
    for (unsigned i = 0; i < LINKS; i++) {
        if (table->peers[i].source != NULL)
            leave(&table->peers[i]);
    }
    picker_free(table->picker);
    free(table->present);
    free(table);
}

/* A source with a measured link. */
static struct peer *join(struct table *table, unsigned i, const uint8_t *map, double rate,
                         int64_t delay)
{
    struct peer *peer = &table->peers[i];

    peer->table = table;
    pipeline_init(&peer->pipe, table->now);
    peer->pipe.rate_now = rate;
    peer->pipe.delay_now = delay;
    peer->pipe.fast_start = false;
    peer->pipe.window = (uint32_t)(rate * (double)delay * 1.25 / 1e9 / BLOCK_SIZE) + 6;
    peer->rate = rate;
    peer->delay = delay;
    peer->source = picker_source_new(table->picker, &peer->pipe, peer);
    assert_true(picker_source_told(peer->source, map));
    return peer;
}

/* The peer delivers its oldest, or a given, block. */
static enum picker_verdict deliver(struct peer *peer, uint64_t block)
{
    struct table *table = peer->table;
    enum picker_verdict verdict;

    for (unsigned i = 0; i < peer->count; i++) {
        if (peer->asked[i] == block) {
            forget(peer, i);
            break;
        }
    }
    verdict = picker_received(peer->source, block, geometry_block_size(&table->geometry, block),
                              table->now, NULL);
    if (verdict == PICKER_TAKE) {
        bitmap_set(table->present, block);
        picker_present(table->picker, block, 1);
    }
    return verdict;
}

static bool asks(const struct peer *peer, uint64_t block)
{
    for (unsigned i = 0; i < peer->count; i++) {
        if (peer->asked[i] == block)
            return true;
    }
    return false;
}

static uint8_t *map_of(const struct table *table, const uint32_t *pieces, unsigned count)
{
    uint8_t *map = xcalloc(1, bitmap_bytes(table->geometry.pieces) + 1);

    for (unsigned i = 0; i < count; i++)
        bitmap_set(map, pieces[i]);
    return map;
}

/* --- background ----------------------------------------------------------------------------------------------- */
static void the_rarest_piece_comes_first(void **state)
{
    struct table *table = table_new(16 * MIB, 1);
    uint8_t *map = map_of(table, (uint32_t[]){0}, 0);
    struct peer *seed;

    for (uint32_t i = 0; i < table->geometry.pieces; i++) {
        if (i != 40)
            bitmap_set(map, i);
    }
    assert_true(picker_want_all(table->picker, true));
    seed = join(table, 0, NULL, 1e7, NS_PER_MS);
    join(table, 1, map, 1e7, NS_PER_MS);
    assert_int_equal(picker_fill(seed->source, PICKER_BACKGROUND, 16, table->now), 16);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(seed->asked[i], 40 * 16 + i);
    free(map);
    table_free(table);
}

static void haves_change_what_is_rare(void **state)
{
    struct table *table = table_new(16 * MIB, 2);
    uint8_t *map = map_of(table, (uint32_t[]){0}, 0);
    struct peer *seed, *other;

    picker_want_all(table->picker, true);
    seed = join(table, 0, NULL, 1e7, NS_PER_MS);
    other = join(table, 1, map, 1e7, NS_PER_MS);
    for (uint32_t i = 0; i < table->geometry.pieces; i++) {
        if (i != 7)
            picker_source_have(other->source, i);
    }
    picker_fill(seed->source, PICKER_BACKGROUND, 1, table->now);
    assert_int_equal(seed->asked[0], 7 * 16);
    free(map);
    table_free(table);
}

static void equally_rare_pieces_come_in_random_order(void **state)
{
    unsigned seen[64] = {0}, different = 0;

    for (uint64_t seed = 1; seed <= 64; seed++) {
        struct table *table = table_new(16 * MIB, seed);
        struct peer *peer;

        picker_want_all(table->picker, true);
        peer = join(table, 0, NULL, 1e7, NS_PER_MS);
        picker_fill(peer->source, PICKER_BACKGROUND, 1, table->now);
        seen[peer->asked[0] / 16]++;
        table_free(table);
    }
    for (unsigned i = 0; i < 64; i++)
        different += seen[i] > 0;
    assert_true(different >= 28);
}

static void the_trackers_count_decides_among_equals(void **state)
{
    struct table *table = table_new(16 * MIB, 3);
    uint8_t copies[64];
    struct peer *peer;

    memset(copies, 20, sizeof copies);
    copies[33] = 1;
    picker_want_all(table->picker, true);
    picker_copies(table->picker, copies, sizeof copies);
    peer = join(table, 0, NULL, 1e7, NS_PER_MS);
    picker_fill(peer->source, PICKER_BACKGROUND, 1, table->now);
    assert_int_equal(peer->asked[0], 33 * 16);
    table_free(table);
}

static void a_started_piece_is_finished_first(void **state)
{
    struct table *table = table_new(16 * MIB, 4);
    struct peer *a, *b;
    uint64_t piece;

    picker_want_all(table->picker, true);
    a = join(table, 0, NULL, 1e7, NS_PER_MS);
    b = join(table, 1, NULL, 1e7, NS_PER_MS);
    picker_fill(a->source, PICKER_BACKGROUND, 5, table->now);
    piece = a->asked[0] / 16;
    picker_fill(b->source, PICKER_BACKGROUND, 11, table->now);
    for (unsigned i = 0; i < 11; i++)
        assert_int_equal(b->asked[i] / 16, piece);
    table_free(table);
}

static void rarity_keeps_its_order_under_random_changes(void **state)
{
    struct rarity *rarity = rarity_new(500, 7);
    unsigned count[500] = {0};
    uint64_t random = 88172645463325252u;

    for (unsigned i = 0; i < 500; i++)
        rarity_list(rarity, i, true);
    for (unsigned step = 0; step < 100000; step++) {
        uint32_t piece, what;

        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        piece = (uint32_t)(random >> 8) % 500;
        what = (uint32_t)(random >> 40) % 4;
        if (what == 0) {
            rarity_list(rarity, piece, random >> 63);
        } else if (what == 1 && count[piece] > 0) {
            count[piece]--;
            rarity_neighbour(rarity, piece, -1);
        } else {
            count[piece]++;
            rarity_neighbour(rarity, piece, 1);
        }
    }
    for (uint32_t i = 1; i < rarity_listed(rarity); i++) {
        uint32_t before = count[rarity_at(rarity, i - 1)], after = count[rarity_at(rarity, i)];

        assert_true(before <= after || after >= 31);
    }
    rarity_free(rarity);
}

/* --- demand --------------------------------------------------------------------------------------------------- */
static void a_demand_goes_where_it_will_be_soonest(void **state)
{
    struct table *table = table_new(16 * MIB, 5);
    struct picker_demand demand = {0}, second = {0};
    struct peer *slow, *fast;

    slow = join(table, 0, NULL, 1e6, 50 * NS_PER_MS);
    fast = join(table, 1, NULL, 1e7, 10 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 100, 1, table->now);
    picker_run(table->picker, table->now);
    assert_true(asks(fast, 100));
    assert_int_equal(slow->count, 0);
    /* … which is the slow one, when the fast one has much to do */
    fast->pipe.in_flight = fast->pipe.urgent = 100;
    picker_demand_add(table->picker, &second, 200, 1, table->now);
    picker_run(table->picker, table->now);
    assert_true(asks(slow, 200));
    fast->pipe.in_flight = fast->pipe.urgent = 1;
    picker_demand_remove(&demand);
    picker_demand_remove(&second);
    table_free(table);
}

static void a_demand_does_not_wait_for_the_background(void **state)
{
    struct table *table = table_new(16 * MIB, 6);
    struct picker_demand demand = {0};
    struct peer *peer;

    picker_want_all(table->picker, true);
    peer = join(table, 0, NULL, 1e7, 20 * NS_PER_MS);
    picker_fill(peer->source, PICKER_BACKGROUND, peer->pipe.window, table->now);
    assert_int_equal(pipeline_room(&peer->pipe, table->now, false), 0);
    picker_demand_add(table->picker, &demand, 1000, 8, table->now);
    picker_run(table->picker, table->now);
    for (uint64_t block = 1000; block < 1008; block++)
        assert_true(asks(peer, block));
    picker_demand_remove(&demand);
    table_free(table);
}

static void earlier_deadlines_are_served_first(void **state)
{
    struct table *table = table_new(16 * MIB, 7);
    struct picker_demand late = {0}, early = {0}, middle = {0};
    struct peer *peer = join(table, 0, NULL, 1e7, 20 * NS_PER_MS);

    picker_demand_add(table->picker, &late, 300, 1, 30);
    picker_demand_add(table->picker, &early, 100, 1, 10);
    picker_demand_add(table->picker, &middle, 200, 1, 20);
    picker_run(table->picker, table->now);
    assert_int_equal(peer->asked[0], 100);
    assert_int_equal(peer->asked[1], 200);
    assert_int_equal(peer->asked[2], 300);
    picker_demand_remove(&late);
    picker_demand_remove(&early);
    picker_demand_remove(&middle);
    table_free(table);
}

static void a_late_block_is_asked_of_another_and_the_loser_is_cancelled(void **state)
{
    struct table *table = table_new(16 * MIB, 8);
    struct picker_demand demand = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    b = join(table, 1, NULL, 1e7, 12 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    picker_run(table->picker, table->now);
    assert_int_equal(a->count, 1);
    assert_int_equal(b->count, 0);
    picker_run(table->picker, table->now + 5 * NS_PER_MS);
    assert_int_equal(b->count, 0); /* not late yet */
    assert_true(picker_next(table->picker) > table->now);
    assert_true(picker_next(table->picker) <= table->now + NS_PER_S / 2);
    table->now = picker_next(table->picker);
    picker_run(table->picker, table->now);
    assert_true(asks(b, 50));
    assert_int_equal(deliver(b, 50), PICKER_TAKE);
    assert_int_equal(a->cancelled, 1);
    assert_int_equal(a->count, 0);
    /* it was on its way: no fault */
    assert_int_equal(deliver(a, 50), PICKER_SPARE);
    assert_int_equal(deliver(a, 50), PICKER_UNASKED);
    picker_demand_remove(&demand);
    table_free(table);
}

static void duplicates_are_bounded(void **state)
{
    struct table *table = table_new(16 * MIB, 9);
    struct picker_demand demand = {0};
    unsigned asked = 0;

    for (unsigned i = 0; i < LINKS; i++)
        join(table, i, NULL, 1e7, 10 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    for (unsigned i = 0; i < 100; i++) {
        picker_run(table->picker, table->now);
        table->now += NS_PER_S;
    }
    for (unsigned i = 0; i < LINKS; i++)
        asked += table->peers[i].count;
    assert_int_equal(asked, 3);
    picker_demand_remove(&demand);
    table_free(table);
}

/* Two take a request and never answer; the third has room for it later. */
static void a_block_that_two_owe_for_ever_is_asked_of_a_third_in_the_background(void **state)
{
    struct table *table = table_new(BLOCK_SIZE, 3);
    struct peer *peers[3];
    unsigned asked = 0;

    (void)state;
    for (unsigned i = 0; i < 3; i++)
        peers[i] = join(table, i, NULL, 1e7, 10 * NS_PER_MS);
    picker_want_all(table->picker, true);
    for (unsigned i = 0; i < 2; i++) {
        picker_fill(peers[i]->source, PICKER_BACKGROUND, 1, table->now);
        assert_true(asks(peers[i], 0));
        table->now += 30 * NS_PER_S;
    }
    picker_fill(peers[2]->source, PICKER_BACKGROUND, 1, table->now);
    assert_true(asks(peers[2], 0));
    for (unsigned i = 0; i < 3; i++)
        asked += peers[i]->count;
    assert_int_equal(asked, 2); /* the first is not waited for any more */
    assert_int_equal(deliver(peers[2], 0), PICKER_TAKE);
    table_free(table);
}

static void one_source_is_never_asked_twice(void **state)
{
    struct table *table = table_new(16 * MIB, 10);
    struct picker_demand demand = {0};
    struct peer *peer = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);

    picker_demand_add(table->picker, &demand, 50, 20, table->now);
    for (unsigned i = 0; i < 100; i++) {
        picker_run(table->picker, table->now);
        table->now += NS_PER_S;
    }
    assert_int_equal(peer->count, 20);
    picker_demand_remove(&demand);
    table_free(table);
}

static void a_vanished_sources_blocks_are_asked_elsewhere_at_once(void **state)
{
    struct table *table = table_new(16 * MIB, 11);
    struct picker_demand demand = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    b = join(table, 1, NULL, 1e6, 90 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 50, 4, table->now);
    picker_run(table->picker, table->now);
    assert_int_equal(a->count, 4);
    leave(a);
    picker_run(table->picker, table->now);
    assert_int_equal(b->count, 4);
    picker_demand_remove(&demand);
    table_free(table);
}

static void a_rejected_block_goes_elsewhere_or_waits(void **state)
{
    struct table *table = table_new(16 * MIB, 12);
    struct picker_demand demand = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    picker_run(table->picker, table->now);
    forget(a, 0);
    picker_rejected(a->source, 50, 1, true);
    assert_false(picker_source_has(a->source, 50 / 16));
    picker_run(table->picker, table->now);
    assert_int_equal(a->count, 0);
    b = join(table, 1, NULL, 1e6, 90 * NS_PER_MS);
    picker_run(table->picker, table->now);
    assert_int_equal(b->count, 1);
    picker_demand_remove(&demand);
    table_free(table);
}

static void a_wrong_block_is_asked_for_again(void **state)
{
    struct table *table = table_new(16 * MIB, 13);
    struct picker_demand demand = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    b = join(table, 1, NULL, 1e6, 90 * NS_PER_MS);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    picker_run(table->picker, table->now);
    forget(a, 0);
    assert_int_equal(picker_received(a->source, 50, BLOCK_SIZE, table->now, NULL), PICKER_TAKE);
    picker_run(table->picker, table->now);
    assert_int_equal(b->count, 0); /* being verified */
    leave(a);
    picker_failed(table->picker, 50);
    picker_run(table->picker, table->now);
    assert_true(asks(b, 50));
    picker_demand_remove(&demand);
    table_free(table);
}

static void a_choked_source_is_not_asked(void **state)
{
    struct table *table = table_new(16 * MIB, 14);
    struct picker_demand demand = {0};
    struct peer *a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);

    picker_want_all(table->picker, true);
    picker_source_close(a->source, true);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    picker_run(table->picker, table->now);
    assert_int_equal(picker_fill(a->source, PICKER_BACKGROUND, 10, table->now), 0);
    assert_int_equal(a->count, 0);
    picker_source_close(a->source, false);
    picker_run(table->picker, table->now);
    assert_int_equal(a->count, 1);
    picker_demand_remove(&demand);
    table_free(table);
}

static void what_the_tracker_says_is_believed_for_readers_only(void **state)
{
    struct table *table = table_new(16 * MIB, 15);
    struct picker_demand demand = {0};
    struct peer *peer = &table->peers[0];
    uint8_t *map = map_of(table, (uint32_t[]){1}, 1);

    peer->table = table;
    pipeline_init(&peer->pipe, table->now);
    peer->source = picker_source_new(table->picker, &peer->pipe, peer);
    picker_want_all(table->picker, true);
    picker_source_guess(peer->source);
    assert_int_equal(picker_fill(peer->source, PICKER_BACKGROUND, 10, table->now), 0);
    picker_demand_add(table->picker, &demand, 50, 1, table->now);
    picker_run(table->picker, table->now);
    assert_true(asks(peer, 50));
    picker_source_told(peer->source, map);
    assert_false(picker_source_has(peer->source, 3));
    picker_demand_remove(&demand);
    free(map);
    table_free(table);
}

/* --- windows -------------------------------------------------------------------------------------------------- */
static void a_window_is_fetched_in_order_and_only_once(void **state)
{
    struct table *table = table_new(16 * MIB, 16);
    struct picker_window window = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    b = join(table, 1, NULL, 1e7, 10 * NS_PER_MS);
    picker_window_set(table->picker, &window, 100, 30);
    assert_int_equal(picker_fill(a->source, PICKER_PREFETCH, 10, table->now), 10);
    assert_int_equal(picker_fill(b->source, PICKER_PREFETCH, 100, table->now), 20);
    assert_int_equal(picker_fill(a->source, PICKER_PREFETCH, 100, table->now), 0);
    for (unsigned i = 0; i < 10; i++)
        assert_int_equal(a->asked[i], 100 + i);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(b->asked[i], 110 + i);
    picker_window_set(table->picker, &window, 110, 30);
    assert_int_equal(picker_fill(a->source, PICKER_PREFETCH, 100, table->now), 10);
    picker_window_set(table->picker, &window, 0, 0);
    table_free(table);
}

static void a_seek_cancels_what_nobody_wants_any_more(void **state)
{
    struct table *table = table_new(16 * MIB, 17);
    struct picker_window window = {0};
    struct picker_demand demand = {0};
    struct peer *peer = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);

    picker_window_set(table->picker, &window, 100, 30);
    picker_demand_add(table->picker, &demand, 98, 4, table->now);
    picker_run(table->picker, table->now);
    picker_fill(peer->source, PICKER_PREFETCH, 100, table->now);
    assert_int_equal(peer->count, 32);
    picker_window_set(table->picker, &window, 500, 10);
    picker_trim(table->picker);
    assert_int_equal(peer->cancelled, 28);
    assert_int_equal(peer->count, 4); /* the reader's */
    picker_demand_remove(&demand);
    picker_window_set(table->picker, &window, 0, 0);
    table_free(table);
}

static void a_reader_that_reaches_its_window_is_not_asked_for_twice(void **state)
{
    struct table *table = table_new(16 * MIB, 18);
    struct picker_window window = {0};
    struct picker_demand demand = {0};
    struct peer *a, *b;

    a = join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    b = join(table, 1, NULL, 1e7, 10 * NS_PER_MS);
    picker_window_set(table->picker, &window, 100, 30);
    picker_fill(a->source, PICKER_PREFETCH, 100, table->now);
    picker_demand_add(table->picker, &demand, 100, 8, table->now);
    picker_run(table->picker, table->now);
    assert_int_equal(a->count, 30);
    assert_int_equal(b->count, 0);
    assert_int_equal(a->pipe.urgent, 8);
    picker_demand_remove(&demand);
    picker_window_set(table->picker, &window, 0, 0);
    table_free(table);
}

static void a_much_slower_source_is_not_asked_for_what_is_read_next(void **state)
{
    struct table *table = table_new(16 * MIB, 19);
    struct picker_window window = {0};
    struct peer *slow;

    join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    slow = join(table, 1, NULL, 1e5, 10 * NS_PER_MS);
    picker_window_set(table->picker, &window, 100, 30);
    assert_int_equal(picker_fill(slow->source, PICKER_PREFETCH, 10, table->now), 0);
    picker_window_set(table->picker, &window, 0, 0);
    table_free(table);
}

/* --- whole downloads, played ---------------------------------------------------------------------------------------- */
/* Fetches everything from the peers as models; returns the time it took. */
static int64_t play(struct table *table)
{
    int64_t began = table->now;

    while (!bitmap_all(table->present, 0, table->geometry.blocks)) {
        struct peer *next = NULL;

        for (unsigned i = 0; i < LINKS; i++) {
            struct peer *peer = &table->peers[i];

            if (peer->source == NULL)
                continue;
            picker_fill(peer->source, PICKER_BACKGROUND,
                        pipeline_room(&peer->pipe, table->now, false), table->now);
            if (peer->count > 0 && (next == NULL || peer->arrives[0] < next->arrives[0]))
                next = peer;
        }
        if (next == NULL || next->arrives[0] > table->now + 4 * NS_PER_MS) {
            table->now += 4 * NS_PER_MS; /* the daemon's own pace */
            continue;
        }
        if (next->arrives[0] > table->now)
            table->now = next->arrives[0];
        deliver(next, next->asked[0]);
        assert_true(table->now - began < 3600 * NS_PER_S);
    }
    return table->now - began;
}

static void unequal_sources_finish_together(void **state)
{
    struct table *table = table_new(64 * MIB, 20);
    struct picker_counts counts;
    double rate = 0, ideal;
    int64_t took;

    picker_want_all(table->picker, true);
    for (unsigned i = 0; i < 4; i++) {
        double mine = 1e6 * (double)(1u << i);

        join(table, i, NULL, mine, (int64_t)(10 + 20 * i) * NS_PER_MS);
        rate += mine;
    }
    ideal = 64.0 * 1048576 / rate;
    took = play(table);
    picker_count(table->picker, &counts);
    print_message("[          ] %.3f of the bound, %llu blocks of %llu in vain\n",
                  (double)took / 1e9 / ideal, (unsigned long long)counts.duplicates,
                  (unsigned long long)table->geometry.blocks);
    assert_true((double)took / 1e9 < 1.07 * ideal);
    assert_true(counts.duplicates <= 64);
    assert_int_equal(counts.active, 0);
    assert_int_equal(counts.in_flight, 0);
    table_free(table);
}

static void nothing_is_asked_twice_with_one_source(void **state)
{
    struct table *table = table_new(64 * MIB + 777, 21);
    struct picker_counts counts;

    picker_want_all(table->picker, true);
    join(table, 0, NULL, 1e7, 30 * NS_PER_MS);
    play(table);
    picker_count(table->picker, &counts);
    assert_int_equal(counts.asked, table->geometry.blocks);
    assert_int_equal(counts.duplicates, 0);
    table_free(table);
}

static void the_last_blocks_of_a_slow_source_are_fetched_from_a_fast_one(void **state)
{
    struct table *table = table_new(8 * MIB, 22);
    int64_t took;

    picker_want_all(table->picker, true);
    join(table, 0, NULL, 1e7, 10 * NS_PER_MS);
    join(table, 1, NULL, 2e4, 10 * NS_PER_MS);
    took = play(table);
    assert_true(took <
                1200 * NS_PER_MS); /* one block takes the slow one 0.8 s, its window several */
    table_free(table);
}

/* The fast one has nothing of its own to give while the slow one owes its blocks. */
static void what_is_taken_over_is_asked_back_first(void **state)
{
    struct table *table = table_new(2 * MIB, 23);
    struct picker_counts counts;
    struct peer *slow, *fast;
    uint64_t taken;

    picker_want_all(table->picker, true);
    slow = join(table, 0, NULL, 1e5, 10 * NS_PER_MS);
    assert_int_equal(picker_fill(slow->source, PICKER_BACKGROUND, 128, table->now), 128);
    fast = join(table, 1, NULL, 1e7, 10 * NS_PER_MS);
    table->now += NS_PER_S;
    picker_fill(fast->source, PICKER_BACKGROUND, 8, table->now);
    assert_int_equal(slow->withdrawn, 8);
    assert_int_equal(slow->cancelled, 0);
    assert_int_equal(fast->count, 0); /* the slow one may be sending them */
    table->now += 50 * NS_PER_MS;
    picker_fill(fast->source, PICKER_BACKGROUND, 8, table->now);
    assert_int_equal(slow->withdrawn, 8); /* that is all the fast one has room for */
    taken = slow->asked[1];
    assert_int_equal(deliver(slow, slow->asked[0]), PICKER_TAKE);
    forget(slow, 0);
    assert_int_equal(picker_withdrawn(slow->source, taken, 1, table->now), 1);
    assert_true(asks(fast, taken));
    assert_int_equal(picker_withdrawn(slow->source, taken, 1, table->now), 0); /* no harm */
    assert_int_equal(picker_withdrawn(slow->source, slow->asked[20], 1, table->now), 0); /* a lie */
    assert_int_equal(fast->count, 1);
    taken = slow->asked[0];
    leave(fast);
    forget(slow, 0);
    picker_withdrawn(slow->source, taken, 1, table->now); /* nobody takes it: absent */
    picker_count(table->picker, &counts);
    assert_int_equal(counts.in_flight, 125);
    assert_int_equal(picker_fill(slow->source, PICKER_BACKGROUND, 8, table->now), 2);
    table_free(table);
}

static void random_events_keep_the_invariants(void **state)
{
    for (uint64_t round = 1; round <= 20; round++) {
        struct table *table = table_new(5 * MIB + 12345, round);
        struct picker_demand demands[4] = {{0}};
        struct picker_window windows[2] = {{0}};
        uint64_t random = round * 88172645463325252u;
        struct picker_counts counts;

        for (unsigned step = 0; step < 4000; step++) {
            struct peer *peer;
            unsigned i;

            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            i = (unsigned)(random >> 8) % LINKS;
            peer = &table->peers[i];
            table->now += (int64_t)(random >> 20) % (20 * NS_PER_MS);
            switch ((random >> 40) % 12) {
            case 0:
                if (peer->source != NULL)
                    leave(peer);
                else
                    join(table, i, NULL, 1e5 * (i + 1), (int64_t)(1 + i) * NS_PER_MS);
                break;
            case 1:
                picker_want_all(table->picker, (random >> 50) % 4 != 0);
                break;
            case 2:
                if (demands[i % 4].picker != NULL)
                    picker_demand_remove(&demands[i % 4]);
                else
                    picker_demand_add(table->picker, &demands[i % 4], (random >> 30) % 300,
                                      1 + (random >> 55) % 20, table->now);
                picker_trim(table->picker);
                break;
            case 3:
                picker_window_set(table->picker, &windows[i % 2], (random >> 30) % 300,
                                  (random >> 57) % 20);
                picker_trim(table->picker);
                break;
            case 4:
                if (peer->source != NULL && peer->count > 0) {
                    uint64_t block = peer->asked[0];

                    forget(peer, 0);
                    picker_rejected(peer->source, block, 1, random >> 63);
                }
                break;
            case 5:
                if (peer->source != NULL)
                    picker_source_close(peer->source, random >> 63);
                break;
            case 6:
                if (peer->source != NULL && peer->count > 0) {
                    uint64_t block = peer->asked[peer->count - 1];

                    forget(peer, peer->count - 1);
                    if (picker_received(peer->source, block, 16384, table->now, NULL) ==
                        PICKER_TAKE)
                        picker_failed(table->picker, block);
                }
                break;
            case 7:
                if (peer->source != NULL)
                    picker_source_have(peer->source, (uint32_t)(random >> 33) % 21);
                break;
            default:
                if (peer->source == NULL)
                    break;
                if (peer->count > 0 && (random >> 62) != 0)
                    deliver(peer, peer->asked[0]);
                picker_run(table->picker, table->now);
                picker_fill(peer->source, PICKER_PREFETCH, 4, table->now);
                picker_fill(peer->source, PICKER_BACKGROUND, 4, table->now);
                break;
            }
        }
        for (unsigned i = 0; i < 4; i++)
            picker_demand_remove(&demands[i]);
        for (unsigned i = 0; i < 2; i++)
            picker_window_set(table->picker, &windows[i], 0, 0);
        for (unsigned i = 0; i < LINKS; i++) {
            if (table->peers[i].source != NULL)
                leave(&table->peers[i]);
        }
        picker_want_all(table->picker, false);
        picker_count(table->picker, &counts);
        assert_int_equal(counts.in_flight, 0);
        assert_int_equal(counts.active, 0);
        /* and it can still be completed */
        join(table, 0, NULL, 1e7, NS_PER_MS);
        table->peers[0].free_at = 0;
        picker_want_all(table->picker, true);
        play(table);
        table_free(table);
    }
}

/* --- memory --------------------------------------------------------------------------------------------------------------- */
static void the_largest_file_costs_what_is_under_way(void **state)
{
    struct table *table = table_new(FILE_SIZE_MAX, 23);
    struct picker_demand demands[200] = {{0}};
    struct picker_counts counts;
    struct mallinfo2 before = mallinfo2(), after;
    struct peer *peer = join(table, 0, NULL, 1e8, 20 * NS_PER_MS);

    for (unsigned i = 0; i < 200; i++)
        picker_demand_add(table->picker, &demands[i], (uint64_t)i * 5000011, 1, table->now);
    picker_run(table->picker, table->now);
    picker_count(table->picker, &counts);
    assert_true(peer->count > 100);
    after = mallinfo2();
    assert_true(after.uordblks - before.uordblks < 4 * MIB);
    for (unsigned i = 0; i < 200; i++) {
        if (asks(peer, (uint64_t)i * 5000011))
            deliver(peer, (uint64_t)i * 5000011);
        picker_demand_remove(&demands[i]);
    }
    picker_count(table->picker, &counts);
    assert_int_equal(counts.active, 0);
    /* wanting all of its 2^20 pieces costs 11 bytes each */
    picker_want_all(table->picker, true);
    assert_true(picker_fill(peer->source, PICKER_BACKGROUND, 64, table->now) == 64);
    after = mallinfo2();
    assert_true(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd < 16 * MIB);
    table_free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rarest_piece_comes_first),
        cmocka_unit_test(haves_change_what_is_rare),
        cmocka_unit_test(equally_rare_pieces_come_in_random_order),
        cmocka_unit_test(the_trackers_count_decides_among_equals),
        cmocka_unit_test(a_started_piece_is_finished_first),
        cmocka_unit_test(rarity_keeps_its_order_under_random_changes),
        cmocka_unit_test(a_demand_goes_where_it_will_be_soonest),
        cmocka_unit_test(a_demand_does_not_wait_for_the_background),
        cmocka_unit_test(earlier_deadlines_are_served_first),
        cmocka_unit_test(a_late_block_is_asked_of_another_and_the_loser_is_cancelled),
        cmocka_unit_test(duplicates_are_bounded),
        cmocka_unit_test(a_block_that_two_owe_for_ever_is_asked_of_a_third_in_the_background),
        cmocka_unit_test(one_source_is_never_asked_twice),
        cmocka_unit_test(a_vanished_sources_blocks_are_asked_elsewhere_at_once),
        cmocka_unit_test(a_rejected_block_goes_elsewhere_or_waits),
        cmocka_unit_test(a_wrong_block_is_asked_for_again),
        cmocka_unit_test(a_choked_source_is_not_asked),
        cmocka_unit_test(what_the_tracker_says_is_believed_for_readers_only),
        cmocka_unit_test(a_window_is_fetched_in_order_and_only_once),
        cmocka_unit_test(a_seek_cancels_what_nobody_wants_any_more),
        cmocka_unit_test(a_reader_that_reaches_its_window_is_not_asked_for_twice),
        cmocka_unit_test(a_much_slower_source_is_not_asked_for_what_is_read_next),
        cmocka_unit_test(unequal_sources_finish_together),
        cmocka_unit_test(nothing_is_asked_twice_with_one_source),
        cmocka_unit_test(the_last_blocks_of_a_slow_source_are_fetched_from_a_fast_one),
        cmocka_unit_test(what_is_taken_over_is_asked_back_first),
        cmocka_unit_test(random_events_keep_the_invariants),
        cmocka_unit_test(the_largest_file_costs_what_is_under_way),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
