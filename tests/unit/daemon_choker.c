/* daemon/choker.h: what goes out next. Time is the test's own; sockets are counters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* cmocka wants those before it */
#include <cmocka.h>

#include "base/clock.h"
#include "daemon/bucket.h"
#include "daemon/choker.h"

#define LINKS 6

struct fetcher {
    struct choker_link *link;
    uint32_t pending, blocks;
    uint32_t suggested[256], suggested_count;
    bool full;
};

static struct choker *choker;
static struct fetcher fetchers[LINKS];
static int64_t now;
static struct geometry geometry; /* 64 pieces of 16 blocks */
static int content, other_content;

static uint32_t pending(void *owner)
{
    return ((struct fetcher *)owner)->pending;
}

static uint32_t room(void *owner, bool urgent)
{
    struct fetcher *f = owner;

    return urgent || (!f->full && f->pending < (512u << 10)) ? 16 : 0;
}

static void suggest(void *owner, uint32_t file, const uint32_t *pieces, uint32_t count)
{
    struct fetcher *f = owner;

    assert_int_equal(file, 1);
    for (uint32_t i = 0; i < count && f->suggested_count < 256; i++)
        f->suggested[f->suggested_count++] = pieces[i];
}

static const struct choker_actions actions = {pending, room, suggest};

static int set_up(void **state)
{
    (void)state;
    now = NS_PER_S;
    geometry = geometry_of(16 << 20);
    memset(fetchers, 0, sizeof(fetchers));
    choker = choker_new(&actions, now);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (unsigned i = 0; i < LINKS; i++)
        choker_link_free(fetchers[i].link);
    choker_free(choker);
    return 0;
}

static void join(unsigned i, uint64_t account, const void *key, bool complete)
{
    fetchers[i].link = choker_link_new(choker, &fetchers[i], account);
    choker_open(fetchers[i].link, 1, key, &geometry, complete);
}

static void ask(unsigned i, uint64_t first, uint32_t count, enum urgency urgency)
{
    assert_true(
        choker_request(fetchers[i].link, (struct block_run){1, first, count}, urgency, now));
}

/* The next job's fetcher, or -1; it is pending from then on if it is bulk. */
static int next(struct choker_turn *turn)
{
    struct fetcher *f;

    if (!choker_next(choker, now, turn))
        return -1;
    f = turn->owner;
    f->blocks += turn->run.count;
    if (turn->urgency != URGENT_DEMAND)
        f->pending += turn->run.count * BLOCK_SIZE;
    return (int)(f - fetchers);
}

/* The uplink sends for so long: a block of each socket in turns. */
static void send_for(int64_t time, double rate)
{
    int64_t step = (int64_t)(BLOCK_SIZE * NS_PER_S / rate), end = now + time;
    struct choker_turn turn;
    static unsigned at;

    while (now < end) {
        while (next(&turn) >= 0)
            ;
        now += step;
        for (unsigned k = 0; k < LINKS; k++) {
            struct fetcher *f = &fetchers[(at + k) % LINKS];

            if (f->pending == 0 || f->full)
                continue;
            f->pending -= BLOCK_SIZE;
            choker_sent(f->link, BLOCK_SIZE, now);
            at = at + k + 1;
            break;
        }
    }
}

static void demand_goes_before_all_else_on_all_links(void **state)
{
    struct choker_turn turn;

    (void)state;
    join(0, 1, &content, true);
    join(1, 2, &content, true);
    ask(0, 0, 64, URGENT_BACKGROUND);
    ask(0, 64, 4, URGENT_PREFETCH);
    ask(1, 500, 2, URGENT_DEMAND);
    assert_int_equal(next(&turn), 1);
    assert_int_equal(turn.urgency, URGENT_DEMAND);
    assert_int_equal(turn.run.first, 500);
    assert_int_equal(next(&turn), 0);
    assert_int_equal(turn.urgency, URGENT_PREFETCH);
    assert_int_equal(next(&turn), 0);
    assert_int_equal(turn.urgency, URGENT_BACKGROUND);
}

static void whoever_is_alone_is_served_in_order_and_is_told_nothing(void **state)
{
    struct choker_turn turn;

    (void)state;
    join(0, 1, &content, true);
    ask(0, 40, 40, URGENT_BACKGROUND);
    ask(0, 0, 16, URGENT_BACKGROUND);
    for (uint64_t at = 40; at < 80; at += turn.run.count) {
        assert_int_equal(next(&turn), 0);
        assert_int_equal(turn.run.first, at);
        fetchers[0].pending = 0;
    }
    assert_int_equal(next(&turn), 0);
    assert_int_equal(turn.run.first, 0);
    assert_int_equal(fetchers[0].suggested_count, 0);
}

static void no_piece_goes_out_twice_while_one_that_has_not_is_asked_for(void **state)
{
    struct choker_turn turn;
    unsigned sent[64] = {0};

    (void)state;
    for (unsigned i = 0; i < 4; i++)
        join(i, i, &content, false);
    /* All ask for the same pieces. */
    for (unsigned i = 0; i < 4; i++)
        ask(i, 0, 64, URGENT_BACKGROUND);
    for (unsigned blocks = 0; blocks < 64; blocks += turn.run.count) {
        int i = next(&turn);

        assert_in_range(i, 0, 3);
        sent[turn.run.first / 16] += turn.run.count;
        fetchers[i].pending = 0;
    }
    for (unsigned piece = 0; piece < 4; piece++)
        assert_int_equal(sent[piece], 16);
    /* Then it does not idle. */
    assert_in_range(next(&turn), 0, 3);
}

static void suggestions_are_of_different_pieces_and_follow_the_requests(void **state)
{
    uint8_t seen[64] = {0};
    struct choker_turn turn;

    (void)state;
    for (unsigned i = 0; i < 3; i++)
        join(i, i, &content, true);
    for (unsigned round = 0; round < 30; round++) {
        struct fetcher *f = &fetchers[round % 3];

        if (round / 3 < f->suggested_count)
            ask(round % 3, (uint64_t)f->suggested[round / 3] * 16, 16, URGENT_BACKGROUND);
        while (next(&turn) >= 0)
            ((struct fetcher *)turn.owner)->pending = 0;
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_in_range(fetchers[i].suggested_count, 10, 20);
        for (unsigned k = 0; k < fetchers[i].suggested_count; k++) {
            assert_in_range(fetchers[i].suggested[k], 0, 63);
            assert_int_equal(seen[fetchers[i].suggested[k]]++, 0);
        }
    }
    assert_int_equal(choker_unsent(choker, &content), 64 - 30);
    /* What was suggested to one who goes is suggested to others. */
    uint32_t before = fetchers[1].suggested_count;
    choker_link_free(fetchers[0].link);
    fetchers[0].link = NULL;
    for (unsigned round = 10; round < 64; round++) {
        for (unsigned i = 1; i < 3; i++) {
            if (round < fetchers[i].suggested_count)
                ask(i, (uint64_t)fetchers[i].suggested[round] * 16, 16, URGENT_BACKGROUND);
        }
        while (next(&turn) >= 0)
            ((struct fetcher *)turn.owner)->pending = 0;
    }
    assert_true(fetchers[1].suggested_count > before);
    assert_int_equal(choker_unsent(choker, &content), 0);
}

/* Blocks that fetcher 0 and fetcher 1 are given while the content goes out for the first time. */
static void share_first(uint64_t passes_on, uint64_t passes_on_other, uint32_t given[2])
{
    struct choker_turn turn;

    join(0, 1, &content, true);
    join(1, 2, &content, true);
    for (unsigned i = 0; i < 192; i++) { /* 1 MiB a second */
        now += NS_PER_S / 64;
        choker_sent(fetchers[0].link, BLOCK_SIZE, now);
    }
    choker_link_passes_on(fetchers[0].link, passes_on);
    choker_link_passes_on(fetchers[1].link, passes_on_other);
    ask(0, 0, 512, URGENT_BACKGROUND);
    ask(1, 512, 512, URGENT_BACKGROUND);
    given[0] = given[1] = 0;
    for (unsigned i = 0; i < 400 && next(&turn) >= 0; i++) {
        struct fetcher *f = turn.owner;

        given[f - fetchers] += turn.run.count;
        choker_sent(f->link, turn.run.count * BLOCK_SIZE, now);
        f->pending = 0;
        now += turn.run.count * (NS_PER_S / 64);
        if (given[0] + given[1] >= 480)
            break;
    }
}

static void who_passes_on_more_is_given_more_of_what_is_new(void **state)
{
    uint32_t given[2];

    (void)state;
    share_first(1750000, 250000, given);
    assert_in_range(given[0], 3 * given[1], 9 * given[1]);
}

static void who_says_nothing_of_what_it_passes_on_is_given_as_much_as_others(void **state)
{
    uint32_t given[2];

    (void)state;
    share_first(0, 1 << 20, given);
    assert_in_range(given[0], given[1] - given[1] / 4, given[1] + given[1] / 4);
}

static void a_boast_of_what_is_passed_on_gains_twice_as_much_at_most(void **state)
{
    uint32_t given[2];

    (void)state;
    share_first(UINT64_MAX, 1 << 20, given);
    assert_in_range(given[0], given[1], 5 * given[1] / 2);
}

static void what_was_spent_until_each_piece_was_out_is_counted(void **state)
{
    struct choker_turn turn;

    (void)state;
    join(0, 1, &content, true);
    ask(0, 0, 16, URGENT_BACKGROUND);
    for (unsigned i = 0; i < 2; i++) {
        ask(0, 0, 1024, URGENT_BACKGROUND);
        while (next(&turn) >= 0)
            fetchers[0].pending = 0;
        if (i == 0)
            assert_int_equal(choker_spent(choker, &content).until_out, 1024);
    }
    assert_int_equal(choker_spent(choker, &content).sent, 2048);
    assert_int_equal(choker_spent(choker, &content).until_out, 1024);
    assert_int_equal(choker_spent(choker, &other_content).sent, 0);
}

static void few_are_served_at_a_time_and_each_gets_whole_pieces(void **state)
{
    struct choker_status status;
    unsigned active = 0;

    (void)state;
    for (unsigned i = 0; i < LINKS; i++) {
        join(i, i, &content, true);
        ask(i, (uint64_t)i * 160, 160, URGENT_BACKGROUND);
    }
    send_for(2 * NS_PER_S, 1e6);
    for (unsigned i = 0; i < LINKS; i++)
        active += fetchers[i].pending > 0;
    choker_count(choker, &status);
    assert_in_range(status.slots, 2, 4);
    assert_in_range(active, 1, 4);
}

static uint32_t all_pending(void)
{
    uint32_t bytes = 0;

    for (unsigned i = 0; i < LINKS; i++)
        bytes += fetchers[i].pending;
    return bytes;
}

static void little_stands_in_front_of_a_slow_line(void **state)
{
    (void)state;
    for (unsigned i = 0; i < LINKS; i++) {
        join(i, i, &content, true);
        ask(i, (uint64_t)i * 160, 160, URGENT_BACKGROUND);
    }
    send_for(5 * NS_PER_S, 150e3);
    assert_in_range(all_pending(), 1, 3 * BLOCK_SIZE);
}

/* Sockets hold what they were given, as its acknowledgements are late; how many links hold something after a while in which
 * the line has such a queue. */
static unsigned given_with_queue(int64_t queue_ns)
{
    struct choker_turn turn;
    unsigned given = 0;

    for (unsigned i = 0; i < LINKS; i++) {
        join(i, i, &content, true);
        ask(i, (uint64_t)i * 160, 160, URGENT_BACKGROUND);
    }
    for (unsigned step = 0; step < 12; step++) {
        choker_line(choker, queue_ns, now);
        while (next(&turn) >= 0)
            ;
        now += 25 * NS_PER_MS;
    }
    for (unsigned i = 0; i < LINKS; i++)
        given += fetchers[i].pending > 0;
    return given;
}

static void a_line_without_a_queue_gives_to_more_than_its_slots(void **state)
{
    (void)state;
    assert_int_equal(given_with_queue(0), LINKS);
}

static void a_line_with_a_long_queue_gives_to_no_more_than_its_slots(void **state)
{
    (void)state;
    assert_in_range(given_with_queue(300 * NS_PER_MS), 1, 3);
}

static void who_takes_nothing_occupies_no_slot(void **state)
{
    (void)state;
    for (unsigned i = 0; i < LINKS; i++) {
        join(i, i, &content, false);
        fetchers[i].full = false;
        ask(i, (uint64_t)i * 160, 160, URGENT_BACKGROUND);
    }
    struct choker_turn turn;
    while (next(&turn) >= 0)
        ;
    for (unsigned i = 0; i < LINKS; i++)
        fetchers[i].full = fetchers[i].pending > 0; /* their sockets are stuck */
    assert_true(choker_wake(choker) != INT64_MAX);
    send_for(6 * NS_PER_S, 2e6);
    for (unsigned i = 0; i < LINKS; i++) {
        if (!fetchers[i].full)
            assert_int_equal(fetchers[i].blocks, 160);
    }
}

/* Sockets of slots in use at the same time share evenly, so an account with one link gets a slot's share: more than its part
 * of the links. */
static void an_account_is_served_whatever_the_number_of_the_others_links(void **state)
{
    uint32_t all = 0;

    (void)state;
    for (unsigned i = 0; i < LINKS; i++) {
        join(i, i == 0 ? 1 : 2, &content, false);
        ask(i, (uint64_t)i * 160, 160, URGENT_BACKGROUND);
    }
    send_for(6 * NS_PER_S, 1e6);
    for (unsigned i = 0; i < LINKS; i++)
        all += fetchers[i].blocks;
    assert_in_range(fetchers[0].blocks, all * 27 / 100, all * 60 / 100);
}

static void who_waits_long_is_helped_out_of_turn(void **state)
{
    (void)state;
    join(0, 0, &content, false);
    join(1, 1, &content, false);
    join(2, 2, &content, false);
    ask(2, 0, 16, URGENT_BACKGROUND);
    send_for(NS_PER_S, 1e6); /* piece 0 has gone out */
    ask(0, 0, 16, URGENT_BACKGROUND);
    ask(1, 64, 900, URGENT_BACKGROUND);
    ask(2, 512, 500, URGENT_BACKGROUND);
    send_for(14 * NS_PER_S, 1e6);
    assert_int_equal(fetchers[0].blocks, 16);
}

static double rate_of(int64_t time, double uplink)
{
    uint64_t blocks = 0;
    int64_t began = now;

    for (unsigned i = 0; i < LINKS; i++)
        fetchers[i].blocks = 0;
    send_for(time, uplink);
    for (unsigned i = 0; i < LINKS; i++)
        blocks += fetchers[i].blocks;
    return (double)blocks * BLOCK_SIZE * NS_PER_S / (double)(now - began);
}

static void limits_are_kept_within_five_percent(void **state)
{
    static const uint64_t rates[] = {100000, 1000000, 20000000};
    double rate;

    (void)state;
    geometry = geometry_of(UINT64_C(1) << 30);
    join(0, 0, &content, false);
    join(1, 1, &other_content, false);
    for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        for (unsigned k = 0; k < 2; k++) {
            choker_cancel(fetchers[k].link, (struct block_run){1, 0, 65536});
            ask(k, i * 4096, 4096, URGENT_BACKGROUND);
        }
        choker_limit(choker, rates[i], now);
        rate = rate_of(i == 2 ? 5 * NS_PER_S : 20 * NS_PER_S, 50e6);
        assert_true(rate > 0.95 * (double)rates[i] && rate < 1.05 * (double)rates[i]);
    }
    /* Of one content; demanded blocks as well. */
    choker_limit(choker, 0, now);
    choker_limit_file(choker, &content, 500000, now);
    choker_cancel(fetchers[1].link, (struct block_run){1, 0, 65536});
    ask(0, 20000, 2000, URGENT_DEMAND);
    rate = rate_of(20 * NS_PER_S, 50e6);
    assert_true(rate > 0.95 * 500000 && rate < 1.05 * 500000);
    ask(1, 30000, 3000, URGENT_BACKGROUND);
    rate = rate_of(5 * NS_PER_S, 50e6);
    assert_true(rate > 8e6); /* the other one has no limit */
}

static void a_bucket_forgets_no_time_however_often_it_is_looked_at(void **state)
{
    struct bucket bucket = {0};
    uint64_t sent = 0;
    int64_t at = 0;

    (void)state;
    assert_true(bucket_room(&bucket, at) == UINT64_MAX);
    bucket_set(&bucket, 1024, at);
    for (; at < 100 * NS_PER_S; at += NS_PER_MS / 3) {
        if (bucket_room(&bucket, at) > 0) {
            bucket_spend(&bucket, BLOCK_SIZE);
            sent += BLOCK_SIZE;
        }
    }
    assert_in_range(sent, 100 * 1024 - 2 * BLOCK_SIZE, 100 * 1024 + 2 * BLOCK_SIZE);
    assert_true(bucket_wait(&bucket, 1) > 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(demand_goes_before_all_else_on_all_links),
        TEST(whoever_is_alone_is_served_in_order_and_is_told_nothing),
        TEST(no_piece_goes_out_twice_while_one_that_has_not_is_asked_for),
        TEST(suggestions_are_of_different_pieces_and_follow_the_requests),
        TEST(who_passes_on_more_is_given_more_of_what_is_new),
        TEST(who_says_nothing_of_what_it_passes_on_is_given_as_much_as_others),
        TEST(a_boast_of_what_is_passed_on_gains_twice_as_much_at_most),
        TEST(what_was_spent_until_each_piece_was_out_is_counted),
        TEST(few_are_served_at_a_time_and_each_gets_whole_pieces),
        TEST(little_stands_in_front_of_a_slow_line),
        TEST(a_line_without_a_queue_gives_to_more_than_its_slots),
        TEST(a_line_with_a_long_queue_gives_to_no_more_than_its_slots),
        TEST(who_takes_nothing_occupies_no_slot),
        TEST(an_account_is_served_whatever_the_number_of_the_others_links),
        TEST(who_waits_long_is_helped_out_of_turn),
        TEST(limits_are_kept_within_five_percent),
        TEST(a_bucket_forgets_no_time_however_often_it_is_looked_at),
    };

    return cmocka_run_group_tests_name("choker", tests, NULL, NULL);
}
