/* proto/knocks.h: handshakes are dealt out to sources. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "proto/knocks.h"
#include "proto/limits.h"

static const uint8_t here[SOURCE_KEY_SIZE] = {1};
static const uint8_t there[SOURCE_KEY_SIZE] = {2};

static void empty(struct knocks *k, const uint8_t *source, int64_t now)
{
    for (unsigned i = 0; i < LIMIT_KNOCKS; i++)
        assert_int_equal(knocks_take(k, source, now), 0);
}

static void a_bucket_runs_dry_and_fills_up_again(void **state)
{
    struct knocks *k = knocks_new();
    int64_t now = NS_PER_S;

    empty(k, here, now);
    assert_int_equal(knocks_take(k, here, now), LIMIT_KNOCK_NS);
    assert_int_equal(knocks_take(k, here, now), LIMIT_KNOCK_NS); /* asking costs nothing */
    assert_int_equal(knocks_take(k, there, now), 0);
    now += LIMIT_KNOCK_NS;
    assert_int_equal(knocks_take(k, here, now), 0);
    assert_true(knocks_take(k, here, now) > 0);
    now += LIMIT_KNOCKS * LIMIT_KNOCK_NS;
    empty(k, here, now);
    assert_true(knocks_take(k, here, now) > 0);
    knocks_free(k);
}

static void members_cost_nothing_and_nobodies_more(void **state)
{
    struct knocks *k = knocks_new();
    int64_t now = NS_PER_S;

    for (unsigned i = 0; i < 10 * LIMIT_KNOCKS; i++) {
        char account[16];

        snprintf(account, sizeof account, "member %u", i);
        assert_int_equal(knocks_take(k, here, now), 0);
        knocks_give_back(k, here, account, now);
    }
    assert_int_equal(knocks_sources(k), 1);
    unsigned begun = 0;
    while (knocks_take(k, here, now) == 0) {
        knocks_fine(k, here, now);
        begun++;
    }
    assert_int_equal(begun, LIMIT_KNOCKS / (1 + LIMIT_KNOCK_FINE));
    /* Fines have an end. */
    for (unsigned i = 0; i < 100000; i++)
        knocks_fine(k, here, now);
    now += LIMIT_KNOCK_SUSPECT_NS;
    empty(k, here, now);
    knocks_give_back(k, there, "anna", now); /* of nobody */
    knocks_free(k);
}

static void an_account_that_comes_back_all_the_time_pays_for_it(void **state)
{
    struct knocks *k = knocks_new();
    int64_t now = NS_PER_S;
    unsigned begun = 0;

    while (begun < 10 * LIMIT_KNOCKS && knocks_take(k, here, now) == 0) {
        knocks_give_back(k, here, "anna", now);
        begun++;
    }
    assert_int_equal(begun, 2 * LIMIT_KNOCKS); /* its own, and then its source's */
    assert_int_equal(knocks_take(k, there, now), 0);
    knocks_give_back(k, there, "bert", now);
    now += LIMIT_KNOCK_NS;
    assert_int_equal(knocks_take(k, here, now), 0);
    assert_true(knocks_take(k, here, now) > 0);
    knocks_free(k);
}

static void many_suspects_get_no_more_than_a_few(void **state)
{
    struct knocks *k = knocks_new();
    int64_t now = NS_PER_S;
    uint8_t source[SOURCE_KEY_SIZE] = {9}, other[SOURCE_KEY_SIZE] = {9};
    unsigned begun = 0;

    for (unsigned turn = 0; turn < 10; turn++)
        for (unsigned i = 0; i < 1000; i++) {
            memcpy(source + 4, &i, sizeof i);
            bool first = turn == 0;
            bool may = knocks_take(k, source, now) == 0;
            assert_true(may || !first); /* nobody is suspected before he did something */
            begun += !first && may;
            knocks_fine(k, source, now);
        }
    assert_int_equal(begun, LIMIT_KNOCKS);
    assert_int_equal(knocks_take(k, source, now), LIMIT_KNOCK_SUSPECTS_NS);
    assert_int_equal(knocks_take(k, here, now), 0); /* others come in as ever */
    now += LIMIT_KNOCK_SUSPECTS_NS;
    assert_int_equal(knocks_take(k, source, now), 0);
    assert_true(knocks_take(k, source, now) > 0);
    knocks_give_back(k, source, "anna", now); /* a member's was among them */
    knocks_fine(k, source, now);
    assert_int_equal(knocks_take(k, source, now), 0);
    assert_true(knocks_take(k, other, now) > 0);
    now += LIMIT_KNOCK_SUSPECT_NS;
    memcpy(source + 4, &begun, sizeof begun);
    assert_int_equal(knocks_take(k, source, now), 0);
    knocks_free(k);
}

static void memory_is_bounded_and_those_in_debt_stay(void **state)
{
    struct knocks *k = knocks_new();
    uint8_t source[SOURCE_KEY_SIZE] = {9};

    empty(k, here, NS_PER_S);
    for (uint32_t i = 0; i < 3 * LIMIT_KNOCK_SOURCES; i++) {
        memcpy(source + 4, &i, sizeof i);
        assert_int_equal(knocks_take(k, source, NS_PER_S), 0);
        assert_true(knocks_sources(k) <= LIMIT_KNOCK_SOURCES);
    }
    assert_true(knocks_take(k, here, NS_PER_S) > 0);
    knocks_free(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bucket_runs_dry_and_fills_up_again),
        cmocka_unit_test(members_cost_nothing_and_nobodies_more),
        cmocka_unit_test(an_account_that_comes_back_all_the_time_pays_for_it),
        cmocka_unit_test(many_suspects_get_no_more_than_a_few),
        cmocka_unit_test(memory_is_bounded_and_those_in_debt_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
