/* tracker/throttle.c and address.c. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/source.h"
#include "tracker/address.h"
#include "tracker/throttle.h"

#include "proto/limits.h"

static const uint8_t here[16] = {1};
static const uint8_t there[16] = {2};

static void waits_double_up_to_a_minute(void **state)
{
    struct throttle *t = throttle_new(1);
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < LIMIT_TRIES_FREE; i++)
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
    for (int64_t wait = NS_PER_S; wait < 64 * NS_PER_S; wait *= 2) {
        int64_t expected = wait > LIMIT_TRY_LONGEST_NS ? LIMIT_TRY_LONGEST_NS : wait;
        assert_int_equal(throttle_try(t, "ann", here, now), expected);
        now += expected;
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
    }
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(throttle_try(t, "ann", here, now), LIMIT_TRY_LONGEST_NS);
        now += LIMIT_TRY_LONGEST_NS;
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
    }
    throttle_free(t);
}

static void who_guesses_does_not_lock_out_the_owner(void **state)
{
    struct throttle *t = throttle_new(1);
    static const uint8_t device[16] = {3};
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < 50; i++)
        (void)throttle_try(t, "ann", here, now);
    assert_true(throttle_try(t, "ann", here, now) > 0);
    assert_int_equal(throttle_try(t, "ann", there, now), 0);
    assert_int_equal(throttle_pair(t, "ann", device, now), 0);
    assert_int_equal(throttle_try(t, "bob", here, now), 0);
    throttle_good(t, "ann", there);
    assert_true(throttle_try(t, "ann", here, now) > 0);
    throttle_free(t);
}

static void mails_for_a_name_run_out_and_come_again(void **state)
{
    struct throttle *t = throttle_new(1);
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < LIMIT_MAILS_BURST; i++)
        assert_true(throttle_mail(t, "ann", now));
    assert_false(throttle_mail(t, "ann", now));
    assert_true(throttle_mail(t, "bob", now));
    assert_true(throttle_mail(t, "ann", now + LIMIT_MAIL_AGAIN_NS));
    assert_false(throttle_mail(t, "ann", now + LIMIT_MAIL_AGAIN_NS));
    throttle_free(t);
}

static void success_and_time_let_a_name_start_anew(void **state)
{
    struct throttle *t = throttle_new(1);
    int64_t now = NS_PER_S;
    for (unsigned round = 0; round < 20; round++) {
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
        throttle_good(t, "ann", here);
        now += NS_PER_S;
    }
    for (unsigned i = 0; i < LIMIT_TRIES_FREE; i++)
        assert_int_equal(throttle_try(t, "bob", here, now), 0);
    assert_true(throttle_try(t, "bob", here, now) > 0);
    now += LIMIT_TRY_FORGET_NS;
    for (unsigned i = 0; i < LIMIT_TRIES_FREE; i++)
        assert_int_equal(throttle_try(t, "bob", here, now), 0);
    throttle_free(t);
}

static void a_source_runs_out_of_tries_and_others_do_not(void **state)
{
    struct throttle *t = throttle_new(1);
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < LIMIT_TRIES_SOURCE; i++)
        assert_int_equal(throttle_spend(t, here, 1, now), 0);
    int64_t wait = throttle_spend(t, here, 1, now);
    assert_int_equal(wait, LIMIT_TRY_NS);
    assert_int_equal(throttle_spend(t, there, 1, now), 0);
    assert_int_equal(throttle_spend(t, here, 1, now + wait), 0);
    throttle_free(t);
}

static void wrong_guesses_cost_their_source_more_but_never_for_ever(void **state)
{
    struct throttle *t = throttle_new(1);
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < 100000; i++)
        throttle_bad(t, here, now);
    int64_t wait = throttle_spend(t, here, 1, now);
    assert_in_range(wait, 1, LIMIT_TRY_LONGEST_NS + LIMIT_TRY_NS);
    throttle_free(t);
}

static void many_names_take_bounded_memory(void **state)
{
    struct throttle *t = throttle_new(1);
    char name[32];
    uint8_t source[16] = {0};
    for (unsigned i = 0; i < 3 * LIMIT_TRIES_KEPT; i++) {
        snprintf(name, sizeof name, "n%u", i);
        memcpy(source, &i, sizeof i);
        assert_int_equal(throttle_try(t, name, source, NS_PER_S + i), 0);
    }
    throttle_free(t);
}

static void made_up_names_do_not_push_out_one_that_is_guessed_at(void **state)
{
    struct throttle *t = throttle_new(1);
    char name[32];
    uint8_t source[16] = {9};
    int64_t now = NS_PER_S;
    for (unsigned i = 0; i < LIMIT_TRIES_FREE; i++)
        assert_int_equal(throttle_try(t, "ann", here, now), 0);
    for (unsigned i = 0; i < 3 * LIMIT_TRIES_KEPT; i++) {
        snprintf(name, sizeof name, "n%u", i);
        memcpy(source + 4, &i, sizeof i);
        (void)throttle_try(t, name, source, now);
        (void)throttle_pair(t, name, there, now);
    }
    assert_true(throttle_try(t, "ann", here, now) > 0);
    throttle_free(t);
}

static void addresses_are_numeric_and_can_be_dialled(void **state)
{
    static const char *const good[] = {"192.0.2.1:7701", "[2001:db8::1]:1", "[fe80::1%eth0]:65535",
                                       "10.0.0.1:80"};
    static const char *const bad[] = {
        "",
        "192.0.2.1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:77 ",
        "example.org:80",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "[2001:db8::1]80",
        "[]:80",
        "[::]:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "[ff02::1]:80",
        "[::1:80",
        "[fe80::1%a\nb]:80",
        "1111111111111111111111111111111111111111111111111111111111111111111:1"};
    struct address a;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(address_parse(&a, good[i]));
        assert_string_equal(a.text, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (address_parse(&a, bad[i]))
            fail_msg("%s was taken", bad[i]);
}

static void nearness_is_the_common_prefix(void **state)
{
    struct address a, b, c, d;
    assert_true(address_parse(&a, "192.168.1.5:1"));
    assert_true(address_parse(&b, "192.168.1.9:1"));
    assert_true(address_parse(&c, "10.0.0.1:1"));
    assert_true(address_parse(&d, "[2001:db8::1]:1"));
    assert_int_equal(address_nearness(&a, &b), 28);
    assert_int_equal(address_nearness(&a, &a), 32);
    assert_int_equal(address_nearness(&a, &c), 0);
    assert_int_equal(address_nearness(&a, &d), 0);
    assert_int_equal(address_nearness(&d, &d), 128);
}

static void an_ipv6_source_is_its_network(void **state)
{
    struct sockaddr_storage one = {0}, two = {0}, four = {0}, mapped = {0};
    uint8_t a[16], b[16];
    one.ss_family = two.ss_family = mapped.ss_family = AF_INET6;
    four.ss_family = AF_INET;
    inet_pton(AF_INET6, "2001:db8:1:2::5", &((struct sockaddr_in6 *)(void *)&one)->sin6_addr);
    inet_pton(AF_INET6, "2001:db8:1:2:ffff::1", &((struct sockaddr_in6 *)(void *)&two)->sin6_addr);
    inet_pton(AF_INET6, "::ffff:192.0.2.1", &((struct sockaddr_in6 *)(void *)&mapped)->sin6_addr);
    inet_pton(AF_INET, "192.0.2.1", &((struct sockaddr_in *)(void *)&four)->sin_addr);
    source_key(&one, a);
    source_key(&two, b);
    assert_memory_equal(a, b, 16);
    source_key(&four, a);
    source_key(&mapped, b);
    assert_memory_equal(a, b, 16);
    char text[64];
    source_text(&mapped, text, sizeof text);
    assert_string_equal(text, "192.0.2.1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_double_up_to_a_minute),
        cmocka_unit_test(who_guesses_does_not_lock_out_the_owner),
        cmocka_unit_test(mails_for_a_name_run_out_and_come_again),
        cmocka_unit_test(success_and_time_let_a_name_start_anew),
        cmocka_unit_test(a_source_runs_out_of_tries_and_others_do_not),
        cmocka_unit_test(wrong_guesses_cost_their_source_more_but_never_for_ever),
        cmocka_unit_test(many_names_take_bounded_memory),
        cmocka_unit_test(made_up_names_do_not_push_out_one_that_is_guessed_at),
        cmocka_unit_test(addresses_are_numeric_and_can_be_dialled),
        cmocka_unit_test(nearness_is_the_common_prefix),
        cmocka_unit_test(an_ipv6_source_is_its_network),
    };
    return cmocka_run_group_tests_name("tracker_throttle", tests, NULL, NULL);
}
