/* proto/spent.h: who comes again begins with what it owed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "proto/limits.h"
#include "proto/spent.h"

#define RATE (NS_PER_S / 10)
#define MS   NS_PER_MS

static void a_debt_passes_to_the_next_link_and_is_paid_off(void **state)
{
    struct spent *s = spent_new(RATE);
    int64_t now = NS_PER_S;

    spent_add(s, "eve", 100 * MS, now);
    assert_int_equal(spent_take(s, "ann", 100 * MS, now), 0);
    assert_int_equal(spent_take(s, "eve", 100 * MS, now), 100 * MS);
    assert_int_equal(spent_take(s, "eve", 100 * MS, now),
                     0); /* the link that took it owes it now */
    assert_int_equal(spent_accounts(s), 0);

    spent_add(s, "eve", 60 * MS, now);
    spent_add(s, "eve", 60 * MS, now); /* two links */
    now += NS_PER_S / 2;               /* pays 50 */
    assert_int_equal(spent_take(s, "eve", 40 * MS, now), 40 * MS);
    assert_int_equal(spent_take(s, "eve", 40 * MS, now), 30 * MS);
    spent_add(s, "eve", 60 * MS, now);
    now += NS_PER_S;
    assert_int_equal(spent_take(s, "eve", 100 * MS, now), 0);
    spent_free(s);
}

static void debts_have_an_end_and_so_has_their_number(void **state)
{
    struct spent *s = spent_new(RATE);
    int64_t now = NS_PER_S;
    char name[16];

    for (unsigned i = 0; i < 1000; i++)
        spent_add(s, "eve", 100 * MS, now);
    for (unsigned i = 0; i < 2 * LIMIT_SPENT_ACCOUNTS; i++) {
        snprintf(name, sizeof name, "sock%u", i);
        spent_add(s, name, 1 * MS, now);
    }
    assert_int_equal(spent_accounts(s), LIMIT_SPENT_ACCOUNTS);
    assert_int_equal(spent_take(s, "eve", 100 * NS_PER_S, now),
                     LIMIT_SPENT_NS / 10); /* the small ones made room */
    now += LIMIT_SPENT_NS;
    spent_add(s, "ann", 1 * MS, now);
    spent_add(s, "bob", 1 * MS, now);
    assert_int_equal(spent_accounts(s), 2); /* the others are paid */
    spent_add(s, "bob", 0, now);
    spent_add(s, "cat", -1, now);
    assert_int_equal(spent_accounts(s), 2);
    spent_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_debt_passes_to_the_next_link_and_is_paid_off),
        cmocka_unit_test(debts_have_an_end_and_so_has_their_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
