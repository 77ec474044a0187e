/* Rules of access: what they let whom do, and what follows from moves and removals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tracker/access.h"

static struct access *a;

static int set_up(void **state)
{
    a = access_new(7);
    access_rule_set(a, ACCESS_ROOT_FOLDER, ACCESS_EVERYONE, "", ACCESS_WRITE);
    access_folder_put(a, 2, 1);
    access_folder_put(a, 3, 2);
    access_folder_put(a, 4, 3);
    access_folder_put(a, 5, 1);
    return 0;
}

static int tear_down(void **state)
{
    access_free(a);
    return 0;
}

static enum access_level level(const char *name, uint64_t folder)
{
    return access_of(a, access_account(a, name), folder);
}

static bool shows(const char *name, uint64_t folder)
{
    return access_shows(a, access_account(a, name), folder);
}

static void a_new_swarm_is_open(void **state)
{
    assert_true(access_is_plain(a));
    assert_int_equal(level("ann", 4), ACCESS_WRITE);
    access_rule_set(a, 3, ACCESS_ACCOUNT, "ann", ACCESS_MANAGE);
    assert_true(access_is_plain(a));
    assert_int_equal(level("ann", 4), ACCESS_MANAGE);
    assert_int_equal(level("ann", 2), ACCESS_WRITE);
}

static void the_nearest_rule_counts_for_each_and_the_best_of_them(void **state)
{
    access_rule_set(a, 2, ACCESS_EVERYONE, "", ACCESS_NONE);
    assert_false(access_is_plain(a));
    assert_int_equal(level("ann", 4), ACCESS_NONE);
    assert_int_equal(level("ann", 5), ACCESS_WRITE);
    access_rule_set(a, 2, ACCESS_GROUP, "team", ACCESS_READ);
    access_group_join(a, "team", "ann");
    assert_int_equal(level("ann", 4), ACCESS_READ);
    assert_int_equal(level("ben", 4), ACCESS_NONE);
    access_rule_set(a, 3, ACCESS_ACCOUNT, "ann", ACCESS_WRITE);
    assert_int_equal(level("ann", 2), ACCESS_READ);
    assert_int_equal(level("ann", 4), ACCESS_WRITE);
    access_rule_set(a, 4, ACCESS_GROUP, "team", ACCESS_NONE);
    assert_int_equal(level("ann", 4), ACCESS_WRITE);
    access_group_drop(a, "team");
    assert_int_equal(level("ann", 2), ACCESS_NONE);
}

static void who_was_shut_out_by_name_is_out_whatever_the_groups_say(void **state)
{
    access_group_join(a, "team", "ann");
    access_rule_set(a, 3, ACCESS_GROUP, "team", ACCESS_MANAGE);
    access_rule_set(a, 2, ACCESS_ACCOUNT, "ann", ACCESS_NONE);
    assert_int_equal(level("ann", 2), ACCESS_NONE);
    assert_int_equal(level("ann", 4), ACCESS_NONE);
    access_rule_set(a, 4, ACCESS_ACCOUNT, "ann", ACCESS_READ);
    assert_int_equal(level("ann", 4), ACCESS_MANAGE);
    access_rule_clear(a, 2, ACCESS_ACCOUNT, "ann");
    assert_int_equal(level("ann", 3), ACCESS_MANAGE);
    access_account_drop(a, "ann");
    assert_int_equal(level("ann", 4), ACCESS_WRITE);
}

static void the_way_to_what_may_be_read_is_shown(void **state)
{
    access_rule_set(a, 1, ACCESS_EVERYONE, "", ACCESS_NONE);
    assert_true(shows("ann", 1));
    assert_false(shows("ann", 2));
    access_rule_set(a, 4, ACCESS_ACCOUNT, "ann", ACCESS_READ);
    assert_true(shows("ann", 2) && shows("ann", 3) && shows("ann", 4));
    assert_false(shows("ann", 5) || shows("ben", 2));
    access_folder_put(a, 3, 5); /* moved, with 4 in it */
    assert_false(shows("ann", 2));
    assert_true(shows("ann", 5));
    access_folder_gone(a, 4);
    assert_false(shows("ann", 5));
    assert_false(access_folder_has_rules(a, 4));
}

static void contents_are_seen_by_who_may_read_a_folder_with_them(void **state)
{
    const uint8_t root[HASH_SIZE] = {9};
    struct access_account *ann;
    access_rule_set(a, 2, ACCESS_EVERYONE, "", ACCESS_NONE);
    ann = access_account(a, "ann");
    assert_false(access_content(a, ann, root));
    access_content_add(a, root, 3);
    assert_false(access_content(a, ann, root));
    access_content_add(a, root, 5);
    assert_true(access_content(a, ann, root));
    access_content_remove(a, root, 5, false); /* moved away */
    assert_false(access_content(a, ann, root));
    access_content_add(a, root, 5);
    access_content_remove(a, root, 5, true); /* replaced: who reads it reads on */
    assert_true(access_content(a, ann, root));
    /* What was in a folder that is gone is judged by that folder's own rules. */
    const uint8_t other[HASH_SIZE] = {8};
    access_content_add(a, other, 3);
    access_content_remove(a, other, 3, true);
    access_folder_gone(a, 3);
    assert_false(access_content(a, ann, other));
}

/* Rules of one account on many folders, made and taken in an order of their own. */
static void rules_of_one_account_come_and_go_in_any_order(void **state)
{
    enum { FOLDERS = 500 };
    bool has[FOLDERS] = {false};

    access_rule_set(a, ACCESS_ROOT_FOLDER, ACCESS_EVERYONE, "", ACCESS_NONE);
    for (uint64_t i = 0; i < FOLDERS; i++)
        access_folder_put(a, 100 + i, 1);
    for (uint64_t turn = 0; turn < 20 * FOLDERS; turn++) {
        uint64_t i = turn * 7919 % 8713 % FOLDERS;
        if (has[i])
            access_rule_clear(a, 100 + i, ACCESS_ACCOUNT, "ann");
        else
            access_rule_set(a, 100 + i, ACCESS_ACCOUNT, "ann", ACCESS_READ);
        has[i] = !has[i];
    }
    for (uint64_t i = 0; i < FOLDERS; i += 5) {
        access_folder_gone(a, 100 + i);
        has[i] = false;
    }
    for (uint64_t i = 0; i < FOLDERS; i++) {
        if (i % 5 == 0)
            continue;
        assert_int_equal(level("ann", 100 + i), has[i] ? ACCESS_READ : ACCESS_NONE);
        assert_int_equal(shows("ann", 100 + i), has[i]);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_new_swarm_is_open),
        TEST(the_nearest_rule_counts_for_each_and_the_best_of_them),
        TEST(who_was_shut_out_by_name_is_out_whatever_the_groups_say),
        TEST(the_way_to_what_may_be_read_is_shown),
        TEST(rules_of_one_account_come_and_go_in_any_order),
        TEST(contents_are_seen_by_who_may_read_a_folder_with_them),
    };
    return cmocka_run_group_tests_name("tracker_access", tests, NULL, NULL);
}
