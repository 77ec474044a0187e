/* Read-ahead of one handle. */
#include "daemon/readahead.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"

#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

/* Reads [from, from + size) in steps, one each `pause`; returns the time afterwards. */
static int64_t read_on(struct readahead *ahead, uint64_t from, uint64_t size, uint64_t step,
                       int64_t now, int64_t pause)
{
    for (uint64_t at = from; at < from + size; at += step) {
        readahead_read(ahead, at, step, now);
        now += pause;
    }
    return now;
}

static uint64_t ahead_of(const struct readahead *ahead, uint64_t at)
{
    struct readahead_range ranges[READAHEAD_CURSORS];
    unsigned count = readahead_windows(ahead, ranges);

    for (unsigned i = 0; i < count; i++) {
        if (ranges[i].offset == at)
            return ranges[i].size;
    }
    return 0;
}

static uint64_t all_ahead(const struct readahead *ahead)
{
    struct readahead_range ranges[READAHEAD_CURSORS];
    unsigned count = readahead_windows(ahead, ranges);
    uint64_t sum = 0;

    for (unsigned i = 0; i < count; i++)
        sum += ranges[i].size;
    return sum;
}

static void a_probe_fetches_nothing_ahead(void **state)
{
    struct readahead ahead;
    int64_t now = NS_PER_S;

    readahead_init(&ahead, GIB);
    readahead_read(&ahead, 0, 64 * KIB, now);
    assert_int_equal(all_ahead(&ahead), 0);
    readahead_read(&ahead, 64 * KIB, 64 * KIB, now); /* the kernel's own read-ahead */
    assert_int_equal(all_ahead(&ahead), 0);
    readahead_read(&ahead, GIB - 64 * KIB, 64 * KIB, now);
    readahead_read(&ahead, GIB - 128 * KIB, 64 * KIB, now);
    assert_int_equal(all_ahead(&ahead), 0);
    assert_false(readahead_is_reading(&ahead));
}

static void the_window_doubles_while_reading_is_sequential(void **state)
{
    struct readahead ahead;
    uint64_t window;

    readahead_init(&ahead, GIB);
    read_on(&ahead, 0, 256 * KIB, 128 * KIB, NS_PER_S, NS_PER_MS);
    window = ahead_of(&ahead, 256 * KIB);
    assert_int_equal(window, 128 * KIB);
    readahead_read(&ahead, 256 * KIB, 128 * KIB, NS_PER_S + 3 * NS_PER_MS);
    assert_int_equal(ahead_of(&ahead, 384 * KIB), 256 * KIB);
    readahead_read(&ahead, 384 * KIB, 128 * KIB, NS_PER_S + 4 * NS_PER_MS);
    assert_int_equal(ahead_of(&ahead, 512 * KIB), 512 * KIB);
}

static void the_window_is_two_seconds_of_what_is_consumed(void **state)
{
    struct readahead ahead;
    uint64_t window;

    readahead_init(&ahead, GIB);
    /* 1 MB/s: 128 KiB every 131 ms */
    read_on(&ahead, 0, 20 * MIB, 128 * KIB, NS_PER_S, 131 * NS_PER_MS);
    window = ahead_of(&ahead, 20 * MIB);
    assert_in_range(window, 1500 * KIB, 2500 * KIB);
    /* as fast as it comes */
    readahead_init(&ahead, 10 * GIB);
    read_on(&ahead, 0, 2 * GIB, MIB, NS_PER_S, NS_PER_MS);
    assert_int_equal(ahead_of(&ahead, 2 * GIB), READAHEAD_MOST);
    /* a trickle */
    readahead_init(&ahead, GIB);
    read_on(&ahead, 0, 256 * KIB, 4 * KIB, NS_PER_S, NS_PER_S);
    assert_int_equal(ahead_of(&ahead, 256 * KIB), READAHEAD_LEAST);
}

static void the_window_ends_at_the_end_of_the_file(void **state)
{
    struct readahead ahead;

    readahead_init(&ahead, 10 * MIB + 5);
    read_on(&ahead, 0, 9 * MIB, MIB, NS_PER_S, NS_PER_MS);
    assert_int_equal(ahead_of(&ahead, 9 * MIB), MIB + 5);
    readahead_read(&ahead, 9 * MIB, 4 * MIB, 2 * NS_PER_S);
    assert_int_equal(all_ahead(&ahead), 0);
    assert_false(readahead_read(&ahead, 11 * MIB, 5, 2 * NS_PER_S));
    assert_false(readahead_read(&ahead, UINT64_MAX, UINT64_MAX, 2 * NS_PER_S));
}

static void a_seek_drops_the_window(void **state)
{
    struct readahead ahead;
    int64_t now;

    readahead_init(&ahead, GIB);
    now = read_on(&ahead, 0, 16 * MIB, 128 * KIB, NS_PER_S, NS_PER_MS);
    assert_true(ahead_of(&ahead, 16 * MIB) >= 4 * MIB);
    assert_true(readahead_read(&ahead, 500 * MIB, 128 * KIB, now));
    assert_int_equal(ahead_of(&ahead, 16 * MIB), 0);
    /* one that streams goes on streaming where it jumped to, from small */
    assert_int_equal(all_ahead(&ahead), 128 * KIB);
}

static void random_reads_have_no_window(void **state)
{
    struct readahead ahead;
    uint64_t at = 12345;

    readahead_init(&ahead, 100 * GIB);
    for (unsigned i = 0; i < 10000; i++) {
        at = at * 6364136223846793005u + 1442695040888963407u;
        readahead_read(&ahead, at % (100 * GIB) / 4096 * 4096, 64 * KIB, NS_PER_S + i * NS_PER_MS);
    }
    assert_int_equal(all_ahead(&ahead), 0);
    assert_false(readahead_is_reading(&ahead));
}

static void reads_slightly_out_of_order_are_one_stream(void **state)
{
    static const unsigned order[] = {0, 1, 3, 2, 5, 4, 6, 9, 7, 8, 10, 12, 11, 15, 14, 13, 16, 17};
    struct readahead ahead;

    readahead_init(&ahead, GIB);
    for (unsigned i = 0; i < sizeof order / sizeof order[0]; i++)
        readahead_read(&ahead, order[i] * 128 * KIB, 128 * KIB, NS_PER_S + i * NS_PER_MS);
    assert_true(ahead_of(&ahead, 18 * 128 * KIB) >= MIB);
}

static void two_places_of_one_handle_are_followed(void **state)
{
    struct readahead ahead;

    readahead_init(&ahead, GIB);
    read_on(&ahead, 0, MIB, 128 * KIB, NS_PER_S, NS_PER_MS);
    for (unsigned i = 0; i < 20; i++) {
        readahead_read(&ahead, MIB + i * 128 * KIB, 128 * KIB, 2 * NS_PER_S + i * NS_PER_MS);
        readahead_read(&ahead, 500 * MIB + i * 128 * KIB, 128 * KIB, 2 * NS_PER_S + i * NS_PER_MS);
    }
    assert_true(ahead_of(&ahead, MIB + 20 * 128 * KIB) >= MIB);
    assert_true(ahead_of(&ahead, 500 * MIB + 20 * 128 * KIB) >= MIB);
}

static void real_reading_is_told_from_probing(void **state)
{
    struct readahead ahead;

    readahead_init(&ahead, GIB);
    read_on(&ahead, 0, 7 * MIB, 128 * KIB, NS_PER_S, NS_PER_MS); /* as libmagic does */
    read_on(&ahead, GIB - 7 * MIB, 7 * MIB, 128 * KIB, 2 * NS_PER_S, NS_PER_MS);
    assert_false(readahead_is_reading(&ahead));
    read_on(&ahead, 7 * MIB, 3 * MIB, 128 * KIB, 3 * NS_PER_S, NS_PER_MS);
    assert_true(readahead_is_reading(&ahead));
    readahead_init(&ahead, 2 * MIB);
    read_on(&ahead, 0, 384 * KIB, 128 * KIB, NS_PER_S, NS_PER_MS);
    assert_false(readahead_is_reading(&ahead));
    read_on(&ahead, 384 * KIB, 384 * KIB, 128 * KIB, NS_PER_S, NS_PER_MS);
    assert_true(readahead_is_reading(&ahead));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_probe_fetches_nothing_ahead),
        cmocka_unit_test(the_window_doubles_while_reading_is_sequential),
        cmocka_unit_test(the_window_is_two_seconds_of_what_is_consumed),
        cmocka_unit_test(the_window_ends_at_the_end_of_the_file),
        cmocka_unit_test(a_seek_drops_the_window),
        cmocka_unit_test(random_reads_have_no_window),
        cmocka_unit_test(reads_slightly_out_of_order_are_one_stream),
        cmocka_unit_test(two_places_of_one_handle_are_followed),
        cmocka_unit_test(real_reading_is_told_from_probing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
