/* proto/bans.h: who did harm is known, and not for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "proto/bans.h"
#include "proto/limits.h"

static const uint8_t eve[BANS_DEVICE_SIZE] = {1}, ann[BANS_DEVICE_SIZE] = {2};

static void a_ban_has_a_reason_and_an_end(void **state)
{
    struct bans *b = bans_new();
    struct ban ban;

    assert_false(bans_find(b, eve, 1, &ban));
    bans_add(b, eve, "eve", "sent a block that does not match", 1);
    assert_true(bans_find(b, eve, LIMIT_BAN_NS, &ban));
    assert_string_equal(ban.account, "eve");
    assert_string_equal(ban.why, "sent a block that does not match");
    assert_false(bans_find(b, ann, 2, NULL));
    assert_int_equal(bans_list(b, 2, &ban, 1), 1);
    assert_false(bans_find(b, eve, LIMIT_BAN_NS + 1, NULL));
    assert_int_equal(bans_list(b, LIMIT_BAN_NS + 1, &ban, 1), 0);
    bans_add(b, eve, "eve", "lied", 1);
    bans_lift(b, eve);
    bans_lift(b, ann);
    assert_false(bans_find(b, eve, 1, NULL));
    bans_free(b);
}

static void one_breach_may_be_a_mistake_and_many_are_not(void **state)
{
    struct bans *b = bans_new();
    int64_t now = NS_PER_S;

    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 1; i < LIMIT_STRIKES; i++)
            assert_false(bans_strike(b, eve, "eve", "a malformed Open", now));
        assert_false(bans_find(b, eve, now, NULL));
        assert_true(bans_strike(b, eve, "eve", "a malformed Open", now));
        assert_true(bans_find(b, eve, now, NULL));
        now += LIMIT_BAN_NS;
    }
    /* Far apart. */
    for (unsigned i = 0; i < 10 * LIMIT_STRIKES; i++) {
        now += LIMIT_STRIKES_NS + 1;
        assert_false(bans_strike(b, ann, "ann", "a malformed Open", now));
    }
    bans_free(b);
}

static void memory_is_bounded_and_bans_outlast_strikes(void **state)
{
    struct bans *b = bans_new();
    uint8_t device[BANS_DEVICE_SIZE] = {9};
    struct ban *list = calloc(2 * LIMIT_BANS, sizeof *list);

    bans_add(b, eve, "eve", "lied", 1);
    for (uint32_t i = 0; i < 3 * LIMIT_BANS; i++) {
        memcpy(device + 4, &i, sizeof i);
        bans_strike(b, device, "somebody", "erred", 2);
    }
    assert_true(bans_find(b, eve, 3, NULL));
    for (uint32_t i = 0; i < 3 * LIMIT_BANS; i++) {
        memcpy(device + 4, &i, sizeof i);
        bans_add(b, device, "somebody", "lied", 2);
    }
    assert_int_equal(bans_list(b, 3, list, 2 * LIMIT_BANS), LIMIT_BANS);
    free(list);
    bans_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ban_has_a_reason_and_an_end),
        cmocka_unit_test(one_breach_may_be_a_mistake_and_many_are_not),
        cmocka_unit_test(memory_is_bounded_and_bans_outlast_strikes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
