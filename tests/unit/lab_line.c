/* A line of the lab: rates, delays, queues and losses are exact, whatever the hour. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lab/host.h"
#include "tests/lab/line.h"

/* 12 Mbit/s: a packet of 1500 bytes takes a millisecond. */
static const struct line_setting millisecond = {
    .rate = 12000000, .queue = 15000, .delay_ns = 10 * NS_PER_MS};

static bool offer(struct line *line, uint16_t length, int64_t at_ns)
{
    struct packet *packet = xcalloc(1, sizeof *packet);

    packet->length = length;
    if (line_offer(line, packet, at_ns))
        return true;
    free(packet);
    return false;
}

static void expect(struct line *line, int64_t due_ns)
{
    struct packet *packet;

    assert_int_equal(line_due(line), due_ns);
    packet = line_take(line);
    assert_int_equal(packet->due_ns, due_ns);
    free(packet);
}

static void empty(struct line *line)
{
    struct packet *packet;

    while ((packet = line_take(line)) != NULL)
        free(packet);
    assert_int_equal(line->held, 0);
}

static void packets_leave_at_the_rate_and_after_the_delay(void **state)
{
    struct line line;

    line_init(&line, &millisecond, 1);
    assert_int_equal(line_due(&line), INT64_MAX);
    assert_null(line_take(&line));
    assert_true(offer(&line, 1500, 0));
    assert_true(offer(&line, 1500, 0));
    assert_true(offer(&line, 750, NS_PER_MS / 2));
    assert_true(offer(&line, 1500, 50 * NS_PER_MS));
    expect(&line, 11 * NS_PER_MS);
    expect(&line, 12 * NS_PER_MS);
    expect(&line, 12 * NS_PER_MS + NS_PER_MS / 2);
    expect(&line, 61 * NS_PER_MS);
    assert_null(line_take(&line));
}

static void a_full_queue_drops_and_takes_again_as_it_empties(void **state)
{
    struct line line;
    int taken = 0;

    line_init(&line, &millisecond, 1);
    for (int i = 0; i < 100; i++)
        taken += offer(&line, 1500, 0);
    assert_int_equal(taken, 10);
    assert_int_equal(line.count.dropped, 90);
    assert_false(offer(&line, 1500, NS_PER_MS - 1000));
    assert_true(offer(&line, 1500, NS_PER_MS));
    assert_false(offer(&line, 1500, NS_PER_MS));
    empty(&line);
}

static void one_packet_fits_on_an_idle_wire_whatever_the_queue(void **state)
{
    struct line_setting setting = {.rate = 1000, .queue = 100};
    struct line line;

    line_init(&line, &setting, 1);
    assert_true(offer(&line, 1500, 0));
    assert_false(offer(&line, 1, 0));
    empty(&line);
}

static void a_line_without_a_limit_only_delays(void **state)
{
    struct line_setting setting = {.delay_ns = NS_PER_MS};
    struct line line;

    line_init(&line, &setting, 1);
    for (int i = 0; i < 1000; i++)
        assert_true(offer(&line, 1500, i));
    for (int i = 0; i < 1000; i++)
        expect(&line, NS_PER_MS + i);
    assert_int_equal(line.count.bytes, 1500000);
}

static void what_a_line_holds_is_bounded(void **state)
{
    struct line_setting setting = {.delay_ns = 60 * NS_PER_S};
    struct packet *packet = xcalloc(1, sizeof *packet);
    struct line line;

    line_init(&line, &setting, 1);
    line.held = LINE_HELD_MOST;
    packet->length = 1;
    assert_false(line_offer(&line, packet, 0));
    assert_int_equal(line.count.dropped, 1);
    free(packet);
}

static void a_delay_that_is_shortened_reorders_nothing(void **state)
{
    struct line_setting quick = {.rate = 12000000, .delay_ns = 0};
    struct line line;

    line_init(&line, &millisecond, 1);
    assert_true(offer(&line, 1500, 0));
    line_set(&line, &quick);
    assert_true(offer(&line, 1500, 0));
    expect(&line, 11 * NS_PER_MS);
    expect(&line, 11 * NS_PER_MS);
}

static void losses_have_their_share_and_use_the_wire(void **state)
{
    struct line_setting setting = {.rate = 12000000, .queue = 1 << 30, .loss = 0.25};
    struct line line, twin;
    unsigned lost = 0;

    line_init(&line, &setting, 7);
    line_init(&twin, &setting, 7);
    for (int i = 0; i < 10000; i++) {
        assert_true(offer(&line, 1500, 0));
        assert_true(offer(&twin, 1500, 0));
    }
    assert_int_equal(line.busy_until_ns, 10000 * NS_PER_MS);
    for (int i = 0; i < 10000; i++) {
        struct packet *one = line_take(&line), *other = line_take(&twin);
        assert_true(one->lost == other->lost);
        lost += one->lost;
        free(one);
        free(other);
    }
    assert_in_range(lost, 2300, 2700);
    assert_int_equal(lost, line.count.lost);
}

static void a_queue_that_nobody_chose_holds_a_tenth_of_a_second(void **state)
{
    struct line_setting setting = {.rate = 100000000};

    assert_int_equal(line_queue(&setting), 1250000);
    setting.rate = 1000;
    assert_int_equal(line_queue(&setting), LINE_QUEUE_LEAST);
    setting.rate = 0;
    assert_true(line_queue(&setting) == UINT64_MAX);
}

static void settings_are_read_as_written(void **state)
{
    struct link_setting link = {.up.loss = 0.5};

    assert_null(link_setting_parse(
        "up=20mbit,down=1.5gbit,delay=2.5ms,delay-up=300us,queue=64K,queue-up=10p,loss-down=0.1%",
        &link));
    assert_int_equal(link.up.rate, 20000000);
    assert_int_equal(link.down.rate, 1500000000);
    assert_int_equal(link.up.delay_ns, 300000);
    assert_int_equal(link.down.delay_ns, 2500000);
    assert_int_equal(link.up.queue, 15000);
    assert_int_equal(link.down.queue, 65536);
    assert_true(link.up.loss == 0.5);
    assert_true(link.down.loss > 0.00099 && link.down.loss < 0.00101);
    assert_null(link_setting_parse("rate=0,queue=auto,dial=no", &link));
    assert_int_equal(link.up.rate, 0);
    assert_int_equal(link.down.queue, 0);
    assert_true(link.closed);
}

static void a_setting_that_is_wrong_changes_nothing(void **state)
{
    static const char *const wrong[] = {"",
                                        "up",
                                        "up=",
                                        "up=5",
                                        "up=5mb",
                                        "up=-1mbit",
                                        "up=1bit",
                                        "up=2000gbit",
                                        "up=nanmbit",
                                        "delay=5",
                                        "delay=61s",
                                        "delay=-1ms",
                                        "queue=0",
                                        "queue=1",
                                        "queue=2G",
                                        "queue=p",
                                        "queue=0p",
                                        "loss=1.1",
                                        "loss=101%",
                                        "loss=-1",
                                        "loss=",
                                        "dial=maybe",
                                        "colour=green",
                                        "up=1mbit,,",
                                        "up=1mbit,",
                                        "=1",
                                        "up==1mbit",
                                        "up=1 mbit",
                                        "up=1mbit down=1mbit",
                                        "up=99999999999999999999999999999999999999mbit"};
    struct link_setting link = {.up.rate = 42};
    struct link_setting before = link;
    char endless[2000];

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (link_setting_parse(wrong[i], &link) == NULL)
            fail_msg("'%s' is taken", wrong[i]);
        assert_memory_equal(&link, &before, sizeof link);
    }
    memset(endless, 'x', sizeof endless);
    endless[sizeof endless - 1] = '\0';
    assert_non_null(link_setting_parse(endless, &link));
}

static void packets_are_known_by_their_addresses(void **state)
{
    uint8_t four[40] = {0x45, [9] = 6, [16] = 10, 77, 0, 9, [33] = 0x02};
    uint8_t six[60] = {0x60, [6] = 6, [24] = 0xfd, 0x77, [39] = 250, [53] = 0x12};

    assert_int_equal(host_of_packet(four, sizeof four), 9);
    assert_int_equal(host_of_packet(six, sizeof six), 250);
    assert_int_equal(host_of_packet(four, 19), 0);
    assert_int_equal(host_of_packet(six, 39), 0);
    assert_int_equal(host_of_packet(four, 0), 0);
    assert_true(packet_dials(four, sizeof four));
    assert_false(packet_dials(six, sizeof six));
    assert_false(packet_dials(four, 39));
    four[0] = 0x4f; /* a header that is longer than the packet */
    assert_false(packet_dials(four, sizeof four));
    four[16] = 11;
    assert_int_equal(host_of_packet(four, sizeof four), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packets_leave_at_the_rate_and_after_the_delay),
        cmocka_unit_test(a_full_queue_drops_and_takes_again_as_it_empties),
        cmocka_unit_test(one_packet_fits_on_an_idle_wire_whatever_the_queue),
        cmocka_unit_test(a_line_without_a_limit_only_delays),
        cmocka_unit_test(what_a_line_holds_is_bounded),
        cmocka_unit_test(a_delay_that_is_shortened_reorders_nothing),
        cmocka_unit_test(losses_have_their_share_and_use_the_wire),
        cmocka_unit_test(a_queue_that_nobody_chose_holds_a_tenth_of_a_second),
        cmocka_unit_test(settings_are_read_as_written),
        cmocka_unit_test(a_setting_that_is_wrong_changes_nothing),
        cmocka_unit_test(packets_are_known_by_their_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
