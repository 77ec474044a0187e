/* The request window, against a model of a link: so much delay, so many bytes a second. */
#include "daemon/pipeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "crypto/merkle.h"
#include "proto/limits.h"

/* A link with one queue: blocks arrive in order, `delay` after the server has sent them at `rate`. */
struct model {
    struct pipeline pipe;
    int64_t now, delay, free_at; /* the server sends again from free_at on */
    double rate;
    struct pipeline_stamp stamp[LIMIT_QUEUED_BLOCKS];
    int64_t arrives[LIMIT_QUEUED_BLOCKS];
    uint32_t head, count;
    uint64_t bytes;
};

static struct model *model_new(int64_t delay, double rate)
{
    struct model *model = xcalloc(1, sizeof(*model));

    model->now = NS_PER_S;
    model->delay = delay;
    model->rate = rate;
    pipeline_init(&model->pipe, model->now);
    return model;
}

static void ask(struct model *model)
{
    uint32_t at = (model->head + model->count++) % LIMIT_QUEUED_BLOCKS;
    int64_t starts = model->now + model->delay / 2;

    assert_true(model->count <= LIMIT_QUEUED_BLOCKS);
    pipeline_asked(&model->pipe, model->now, false, &model->stamp[at]);
    if (starts < model->free_at)
        starts = model->free_at;
    model->free_at = starts + (int64_t)(BLOCK_SIZE * 1e9 / model->rate);
    model->arrives[at] = model->free_at + model->delay / 2;
}

/* Lets time pass, asking whatever there is room for; `most` blocks under way at most. */
static void run(struct model *model, int64_t span, uint32_t most)
{
    int64_t end = model->now + span;

    for (;;) {
        while (model->pipe.in_flight < most && pipeline_room(&model->pipe, model->now, false) > 0)
            ask(model);
        if (model->count == 0 || model->arrives[model->head] > end)
            break;
        model->now = model->arrives[model->head];
        pipeline_answered(&model->pipe, model->now, &model->stamp[model->head], false, BLOCK_SIZE);
        model->bytes += BLOCK_SIZE;
        model->head = (model->head + 1) % LIMIT_QUEUED_BLOCKS;
        model->count--;
    }
    model->now = end;
}

static void check_fills(int64_t delay, double rate)
{
    struct model *model = model_new(delay, rate);
    double product = rate * (double)delay / 1e9 / BLOCK_SIZE;
    uint64_t before;

    run(model, 2 * NS_PER_S, UINT32_MAX);
    before = model->bytes;
    run(model, 5 * NS_PER_S, UINT32_MAX);
    /* at least 97 % of the link … */
    assert_true((double)(model->bytes - before) >= 0.97 * rate * 5);
    /* … with a window of the product, a quarter more, what the machines' wake-ups take, and the few that are always right */
    assert_true(model->pipe.window >= (uint32_t)product);
    assert_true(model->pipe.window <= 1.3 * product + rate * 0.005 / BLOCK_SIZE + 8);
    free(model);
}

static void the_window_fills_links_near_and_far(void **state)
{
    check_fills(20 * NS_PER_MS, 12.5e6);
    check_fills(100 * NS_PER_MS, 12.5e6);
    check_fills(40 * NS_PER_MS, 2.5e6);
    check_fills(10 * NS_PER_MS, 0.6e6);
    check_fills(200 * NS_PER_US, 1e9);
    check_fills(50 * NS_PER_MS, 125e6);
}

static void a_new_link_is_fast_within_a_few_round_trips(void **state)
{
    struct model *model = model_new(100 * NS_PER_MS, 12.5e6);

    run(model, NS_PER_S, UINT32_MAX);
    assert_true(model->bytes > 0.55 * 12.5e6);
    free(model);
}

static void a_link_that_idled_is_fast_at_once(void **state)
{
    struct model *model = model_new(50 * NS_PER_MS, 12.5e6);
    uint32_t window;

    run(model, 3 * NS_PER_S, UINT32_MAX);
    window = model->pipe.window;
    run(model, NS_PER_S, 0);
    model->now += 100 * NS_PER_S;
    assert_true(pipeline_room(&model->pipe, model->now, false) >= window - 1);
    free(model);
}

static void a_trickle_does_not_shrink_the_window(void **state)
{
    struct model *model = model_new(50 * NS_PER_MS, 12.5e6);
    uint32_t window;

    run(model, 3 * NS_PER_S, UINT32_MAX);
    window = model->pipe.window;
    run(model, 30 * NS_PER_S, 1);
    assert_true(model->pipe.window * 10 >= window * 9);
    free(model);
}

static void a_slower_link_gets_a_smaller_window(void **state)
{
    struct model *model = model_new(40 * NS_PER_MS, 25e6);
    uint32_t window;

    run(model, 5 * NS_PER_S, UINT32_MAX);
    window = model->pipe.window;
    model->rate = 2.5e6;
    run(model, 20 * NS_PER_S, UINT32_MAX);
    assert_true(model->pipe.window < window / 4);
    free(model);
}

static void the_window_does_not_grow_out_of_its_own_queue(void **state)
{
    struct model *model = model_new(40 * NS_PER_MS, 5e6);
    uint32_t window;

    run(model, 5 * NS_PER_S, UINT32_MAX);
    window = model->pipe.window;
    run(model, 300 * NS_PER_S, UINT32_MAX);
    assert_true(model->pipe.window <= window + window / 3 + 2);
    free(model);
}

static void a_longer_way_is_learnt(void **state)
{
    struct model *model = model_new(10 * NS_PER_MS, 12.5e6);
    uint64_t before;

    run(model, 5 * NS_PER_S, UINT32_MAX);
    model->delay = 100 * NS_PER_MS;
    run(model, 120 * NS_PER_S, UINT32_MAX);
    before = model->bytes;
    run(model, 5 * NS_PER_S, UINT32_MAX);
    assert_true((double)(model->bytes - before) >= 0.9 * 12.5e6 * 5);
    free(model);
}

/* The same link, served by turns among others: what waits there is missing elsewhere. */
static void little_waits_at_a_busy_server(void **state)
{
    struct model *model = model_new(20 * NS_PER_MS, 10e3);

    pipeline_round_trip(&model->pipe, model->now, 20 * NS_PER_MS);
    run(model, 60 * NS_PER_S, UINT32_MAX);
    assert_in_range(model->pipe.window, 1, 3);
    free(model);
}

/* One block at a time, and each takes long: the rate is low for that alone. */
static void a_small_window_does_not_keep_itself_small(void **state)
{
    struct model *model = model_new(20 * NS_PER_MS, 10e3);
    uint64_t before;

    pipeline_round_trip(&model->pipe, model->now, 20 * NS_PER_MS);
    run(model, 60 * NS_PER_S, UINT32_MAX);
    model->free_at = model->now;
    model->rate = 1e6;
    model->delay = 700 * NS_PER_MS;
    run(model, 60 * NS_PER_S, UINT32_MAX);
    before = model->bytes;
    run(model, 10 * NS_PER_S, UINT32_MAX);
    assert_true(model->bytes - before > 10 * 6 * BLOCK_SIZE);
    free(model);
}

static void the_first_requests_in_the_background_are_few(void **state)
{
    struct model *model = model_new(50 * NS_PER_MS, 12.5e6);

    assert_int_equal(pipeline_room(&model->pipe, model->now, false), 4);
    assert_int_equal(pipeline_room(&model->pipe, model->now, true), 16);
    assert_int_equal(pipeline_urgent_room(&model->pipe), 16);
    run(model, 60 * NS_PER_MS, UINT32_MAX);
    assert_true(pipeline_room(&model->pipe, model->now, false) + model->pipe.in_flight >= 16);
    free(model);
}

static void a_waiting_reader_shortens_what_is_in_front_of_it(void **state)
{
    struct model *model = model_new(20 * NS_PER_MS, 5e6);
    uint32_t in_flight;

    run(model, 5 * NS_PER_S, UINT32_MAX);
    in_flight = model->pipe.in_flight;
    assert_true(in_flight > 0);
    run(model, NS_PER_S, 0);
    assert_true(pipeline_room(&model->pipe, model->now, true) <
                pipeline_room(&model->pipe, model->now, false));
    /* no more than 10 ms of the link beyond the way itself */
    assert_true((double)pipeline_room(&model->pipe, model->now, true) * BLOCK_SIZE < 5e6 * 0.030);
    free(model);
}

static void a_silent_link_is_expected_later_and_later(void **state)
{
    struct model *model = model_new(20 * NS_PER_MS, 5e6);
    int64_t first, later;

    run(model, 2 * NS_PER_S, UINT32_MAX);
    first = pipeline_expect(&model->pipe, model->now, true);
    assert_true(first >= 20 * NS_PER_MS && first < 60 * NS_PER_MS);
    later = pipeline_expect(&model->pipe, model->now + NS_PER_S, true);
    assert_true(later > NS_PER_S);
    assert_true(pipeline_patience(&model->pipe, model->now, true) <= NS_PER_S / 2);
    assert_true(pipeline_patience(&model->pipe, model->now, false) >= 5 * NS_PER_S);
    free(model);
}

static void urgent_blocks_do_not_wait_behind_the_others(void **state)
{
    struct model *model = model_new(20 * NS_PER_MS, 1e6);

    run(model, 2 * NS_PER_S, UINT32_MAX);
    for (unsigned i = 0; i < 100; i++)
        ask(model);
    assert_true(pipeline_expect(&model->pipe, model->now, true) < 120 * NS_PER_MS);
    assert_true(pipeline_expect(&model->pipe, model->now, false) > NS_PER_S);
    assert_true(pipeline_urgent_room(&model->pipe) >= 4);
    free(model);
}

static void the_window_never_exceeds_the_limit(void **state)
{
    struct model *model = model_new(NS_PER_S, 1e9);

    run(model, 20 * NS_PER_S, UINT32_MAX);
    assert_true(model->pipe.window <= LIMIT_QUEUED_BLOCKS);
    assert_true(model->pipe.window >= LIMIT_QUEUED_BLOCKS - 1);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_window_fills_links_near_and_far),
        cmocka_unit_test(a_new_link_is_fast_within_a_few_round_trips),
        cmocka_unit_test(a_link_that_idled_is_fast_at_once),
        cmocka_unit_test(a_trickle_does_not_shrink_the_window),
        cmocka_unit_test(a_slower_link_gets_a_smaller_window),
        cmocka_unit_test(the_window_does_not_grow_out_of_its_own_queue),
        cmocka_unit_test(a_longer_way_is_learnt),
        cmocka_unit_test(little_waits_at_a_busy_server),
        cmocka_unit_test(a_small_window_does_not_keep_itself_small),
        cmocka_unit_test(the_first_requests_in_the_background_are_few),
        cmocka_unit_test(a_waiting_reader_shortens_what_is_in_front_of_it),
        cmocka_unit_test(a_silent_link_is_expected_later_and_later),
        cmocka_unit_test(urgent_blocks_do_not_wait_behind_the_others),
        cmocka_unit_test(the_window_never_exceeds_the_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
