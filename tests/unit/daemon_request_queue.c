/* daemon/request_queue.h: what a fetcher asked for comes out once, the most urgent first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
/* cmocka wants those before it */
#include <cmocka.h>

#include "daemon/request_queue.h"
#include "proto/limits.h"

static struct request_queue *q;

static int set_up(void **state)
{
    (void)state;
    q = request_queue_new();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    request_queue_free(q);
    return 0;
}

static bool push(uint32_t file, uint64_t first, uint32_t count, enum urgency urgency)
{
    return request_queue_push(q, (struct block_run){file, first, count}, urgency);
}

static void expect(uint32_t file, uint64_t first, uint32_t count, enum urgency urgency)
{
    struct block_run run;
    enum urgency u;

    assert_true(request_queue_pop(q, URGENT_BACKGROUND, 1000, &run, &u));
    assert_int_equal(run.file, file);
    assert_int_equal(run.first, first);
    assert_int_equal(run.count, count);
    assert_int_equal(u, urgency);
}

static void expect_empty(void)
{
    struct block_run run;
    enum urgency u;

    assert_int_equal(request_queue_blocks(q), 0);
    assert_false(request_queue_pop(q, URGENT_BACKGROUND, 1, &run, &u));
}

static void the_most_urgent_comes_first_and_equals_in_order(void **state)
{
    (void)state;
    push(1, 0, 10, URGENT_BACKGROUND);
    push(1, 100, 2, URGENT_PREFETCH);
    push(2, 50, 1, URGENT_DEMAND);
    push(1, 70, 1, URGENT_DEMAND);
    expect(2, 50, 1, URGENT_DEMAND);
    expect(1, 70, 1, URGENT_DEMAND);
    expect(1, 100, 2, URGENT_PREFETCH);
    expect(1, 0, 10, URGENT_BACKGROUND);
    expect_empty();
}

static void asking_again_more_urgently_moves_a_block_up(void **state)
{
    (void)state;
    push(1, 0, 10, URGENT_BACKGROUND);
    push(1, 4, 2, URGENT_DEMAND);
    assert_int_equal(request_queue_blocks(q), 10);
    expect(1, 4, 2, URGENT_DEMAND);
    expect(1, 0, 4, URGENT_BACKGROUND);
    expect(1, 6, 4, URGENT_BACKGROUND);
    expect_empty();
}

static void asking_again_less_urgently_changes_nothing(void **state)
{
    (void)state;
    push(1, 4, 2, URGENT_DEMAND);
    push(1, 0, 10, URGENT_BACKGROUND);
    assert_int_equal(request_queue_blocks(q), 10);
    expect(1, 4, 2, URGENT_DEMAND);
    expect(1, 0, 4, URGENT_BACKGROUND);
    expect(1, 6, 4, URGENT_BACKGROUND);
    expect_empty();
}

static void a_cancelled_block_does_not_come(void **state)
{
    (void)state;
    push(1, 0, 10, URGENT_BACKGROUND);
    push(2, 0, 3, URGENT_PREFETCH);
    request_queue_cancel(q, (struct block_run){1, 3, 100});
    request_queue_cancel(q, (struct block_run){2, 0, 0});
    expect(1, 0, 3, URGENT_BACKGROUND);
    expect_empty();
}

static void more_than_the_limit_is_refused_whole(void **state)
{
    (void)state;
    assert_true(push(1, 0, LIMIT_QUEUED_BLOCKS - 1, URGENT_BACKGROUND));
    assert_false(push(2, 0, 2, URGENT_DEMAND));
    assert_false(push(2, 0, UINT32_MAX, URGENT_DEMAND));
    assert_true(push(2, 0, 1, URGENT_DEMAND));
    assert_int_equal(request_queue_blocks(q), LIMIT_QUEUED_BLOCKS);
}

static void in_a_full_queue_a_block_can_still_be_raised(void **state)
{
    (void)state;
    assert_true(push(1, 0, LIMIT_QUEUED_BLOCKS, URGENT_BACKGROUND));
    assert_true(push(1, 700, 3, URGENT_DEMAND));
    assert_false(push(1, LIMIT_QUEUED_BLOCKS - 1, 2, URGENT_DEMAND));
    assert_int_equal(request_queue_blocks(q), LIMIT_QUEUED_BLOCKS);
    expect(1, 700, 3, URGENT_DEMAND);
}

static void blocks_asked_for_one_by_one_come_as_one_run(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 40; i++)
        push(3, i, 1, URGENT_BACKGROUND);
    push(4, 40, 1, URGENT_BACKGROUND);
    expect(3, 0, 40, URGENT_BACKGROUND);
    push(4, 41, 1, URGENT_BACKGROUND);
    expect(4, 40, 2, URGENT_BACKGROUND);
    expect_empty();
    /* The last run taken away, another one is the last. */
    push(1, 0, 2, URGENT_BACKGROUND);
    push(2, 0, 2, URGENT_BACKGROUND);
    request_queue_cancel(q, (struct block_run){2, 0, 2});
    push(1, 2, 1, URGENT_BACKGROUND);
    expect(1, 0, 3, URGENT_BACKGROUND);
    expect_empty();
}

/* Against a plain array: each block's class, and whether it is queued. */
static void random_calls_match_a_plain_model(void **state)
{
    enum { SPACE = 64 };
    int model[SPACE];
    uint32_t seed = 12345;

    (void)state;
    for (int i = 0; i < SPACE; i++)
        model[i] = -1;
    for (int round = 0; round < 100000; round++) {
        seed = seed * 1664525 + 1013904223;
        uint32_t first = (seed >> 8) % SPACE, count = 1 + (seed >> 16) % (SPACE - first);
        int urgency = (int)((seed >> 24) % URGENCIES);
        switch ((seed >> 28) % 3) {
        case 0:
            assert_true(push(7, first, count, (enum urgency)urgency));
            for (uint32_t i = first; i < first + count; i++)
                model[i] = model[i] > urgency ? model[i] : urgency;
            break;
        case 1:
            request_queue_cancel(q, (struct block_run){7, first, count});
            for (uint32_t i = first; i < first + count; i++)
                model[i] = -1;
            break;
        default: {
            struct block_run run;
            enum urgency u;
            int highest = -1;
            for (int i = 0; i < SPACE; i++)
                highest = model[i] > highest ? model[i] : highest;
            assert_int_equal(request_queue_pop(q, URGENT_BACKGROUND, count, &run, &u),
                             highest >= 0);
            if (highest < 0)
                break;
            assert_int_equal(u, highest);
            for (uint64_t i = run.first; i < run.first + run.count; i++) {
                assert_int_equal(model[i], highest);
                model[i] = -1;
            }
        }
        }
        uint32_t queued = 0;
        for (int i = 0; i < SPACE; i++)
            queued += model[i] >= 0;
        assert_int_equal(request_queue_blocks(q), queued);
    }
}

/* Every second of 2,000 blocks alone, in two classes and out of order, then Requests over their gaps. */
static void gaps_between_what_is_queued_are_filled_once(void **state)
{
    struct block_run run;
    enum urgency u;
    unsigned seen[2000] = {0};

    (void)state;
    for (unsigned i = 0; i < 1000; i++)
        push(1, (i * 7 % 1000) * 2, 1, i % 2 == 0 ? URGENT_PREFETCH : URGENT_BACKGROUND);
    assert_true(push(1, 100, 1024, URGENT_BACKGROUND));
    assert_int_equal(request_queue_blocks(q), 1000 + 512);
    assert_int_equal(request_queue_class(q, URGENT_PREFETCH), 500);
    assert_true(push(1, 0, 1024, URGENT_PREFETCH)); /* the background's move up */
    assert_int_equal(request_queue_blocks(q), 1000 + 512 + 50);
    assert_true(push(1, 1024, 976, URGENT_DEMAND));
    assert_int_equal(request_queue_class(q, URGENT_DEMAND), 976);
    assert_int_equal(request_queue_class(q, URGENT_PREFETCH), 1024);
    assert_int_equal(request_queue_blocks(q), 2000);
    while (request_queue_pop(q, URGENT_BACKGROUND, 5000, &run, &u)) {
        assert_int_equal(u, run.first >= 1024 ? URGENT_DEMAND : URGENT_PREFETCH);
        for (uint32_t i = 0; i < run.count; i++)
            seen[run.first + i]++;
    }
    for (unsigned i = 0; i < 2000; i++)
        assert_int_equal(seen[i], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_most_urgent_comes_first_and_equals_in_order, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(asking_again_more_urgently_moves_a_block_up, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(asking_again_less_urgently_changes_nothing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_cancelled_block_does_not_come, set_up, tear_down),
        cmocka_unit_test_setup_teardown(more_than_the_limit_is_refused_whole, set_up, tear_down),
        cmocka_unit_test_setup_teardown(in_a_full_queue_a_block_can_still_be_raised, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(blocks_asked_for_one_by_one_come_as_one_run, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(random_calls_match_a_plain_model, set_up, tear_down),
        cmocka_unit_test_setup_teardown(gaps_between_what_is_queued_are_filled_once, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
