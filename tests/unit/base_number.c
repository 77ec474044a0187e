/* Numbers, durations and sizes, read and written. */
#include "base/number.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void a_number_is_digits_within_its_bounds(void **state)
{
    uint64_t n = 42;

    assert_true(number_parse("0", 0, 9, &n));
    assert_int_equal(n, 0);
    assert_true(number_parse("007", 0, 9, &n));
    assert_int_equal(n, 7);
    assert_true(number_parse("18446744073709551615", 0, UINT64_MAX, &n));
    assert_true(n == UINT64_MAX);
    assert_true(number_parse("5", 5, 5, &n));
}

static void anything_else_is_no_number_and_changes_nothing(void **state)
{
    static const char *const bad[] = {"",
                                      " 1",
                                      "1 ",
                                      "+1",
                                      "-1",
                                      "1x",
                                      "0x1",
                                      "1.0",
                                      "x",
                                      "18446744073709551616",
                                      "18446744073709551620",
                                      "99999999999999999999999",
                                      "1\n"};
    uint64_t n = 42;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(number_parse(bad[i], 0, UINT64_MAX, &n));
    assert_false(number_parse("4", 5, 9, &n));
    assert_false(number_parse("10", 5, 9, &n));
    assert_int_equal(n, 42);
}

static void durations_have_units(void **state)
{
    static const struct {
        const char *text;
        uint64_t seconds;
    } good[] = {{"0", 0},       {"30s", 30}, {"15m", 900},        {"8h", 28800},
                {"7d", 604800}, {"90", 90},  {"3650d", 315360000}};
    static const char *const bad[] = {"",    "s",    "1w",    "1 s",       "-1s",
                                      "1ss", "1.5h", "3651d", "315360001", "18446744073709551615d",
                                      "1S"};
    uint64_t n = 0;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(duration_parse(good[i].text, &n));
        assert_int_equal(n, good[i].seconds);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(duration_parse(bad[i], &n));
}

static void sizes_are_powers_of_1024(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"500", 500},
                {"812 B", 812},
                {"500K", 512000},
                {"20M", 20971520},
                {"1.5G", 1610612736},
                {"1.5 GiB", 1610612736},
                {"2MB", 2097152},
                {"3MiB/s", 3145728},
                {"20M/s", 20971520},
                {"7k", 7168},
                {"0.5K", 512},
                {"1T", UINT64_C(1) << 40},
                {"15E", UINT64_C(15) << 60},
                {"100B/s", 100},
                {"0.333333333333333333K", 341}};
    static const char *const bad[] = {"",
                                      "K",
                                      "1.K",
                                      ".5K",
                                      "1.5",
                                      "1X",
                                      "-1K",
                                      "1K ",
                                      "1KK",
                                      "1 ",
                                      "16E",
                                      "1iB",
                                      "1  K",
                                      "1Ki",
                                      "1K/",
                                      "1K/m",
                                      "1.5.5K",
                                      "99999999999999999999",
                                      "18446744073709551615K",
                                      "1/sK"};
    uint64_t n = 0;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(bytes_parse(good[i].text, &n));
        assert_true(n == good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(bytes_parse(bad[i], &n));
}

static void sizes_are_written_short(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {{0, "0 B"},
                 {812, "812 B"},
                 {1023, "1023 B"},
                 {1024, "1.0 KiB"},
                 {1572864, "1.5 MiB"},
                 {UINT64_C(12) << 30, "12 GiB"},
                 {10188, "9.9 KiB"},
                 {10189, "10 KiB"},
                 {1023 * 1024, "1023 KiB"},
                 {1048063, "1023 KiB"},
                 {1048064, "1.0 MiB"}, /* never "1024 KiB" */
                 {UINT64_MAX, "16 EiB"},
                 {(UINT64_C(1) << 60) - 1, "1.0 EiB"}};
    char text[NUMBER_TEXT_MAX];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(bytes_format(text, cases[i].bytes), cases[i].text);
}

static void durations_are_written_short(void **state)
{
    char text[NUMBER_TEXT_MAX];

    assert_string_equal(duration_format(text, 0), "0s");
    assert_string_equal(duration_format(text, 3), "3s");
    assert_string_equal(duration_format(text, 59), "59s");
    assert_string_equal(duration_format(text, 60), "1m 00s");
    assert_string_equal(duration_format(text, 125), "2m 05s");
    assert_string_equal(duration_format(text, 3599), "59m 59s");
    assert_string_equal(duration_format(text, 4320), "1h 12m");
    assert_string_equal(duration_format(text, 86399), "23h 59m");
    assert_string_equal(duration_format(text, 4 * 86400 + 3 * 3600 + 59), "4d 3h");
    assert_string_equal(duration_format(text, UINT64_MAX), "213503982334601d 7h");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_number_is_digits_within_its_bounds),
        cmocka_unit_test(anything_else_is_no_number_and_changes_nothing),
        cmocka_unit_test(durations_have_units),
        cmocka_unit_test(sizes_are_powers_of_1024),
        cmocka_unit_test(sizes_are_written_short),
        cmocka_unit_test(durations_are_written_short),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
