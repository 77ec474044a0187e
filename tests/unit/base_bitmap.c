/* Bits: searches against a naive count at every alignment, and against neighbours. */
#include "base/bitmap.h"

#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define BITS 400

/* A small generator: the same bits in every run. */
static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void a_bit_is_counted_from_the_low_end(void **state)
{
    uint8_t map[2] = {0};

    bitmap_set(map, 0);
    bitmap_set(map, 9);
    assert_int_equal(map[0], 1);
    assert_int_equal(map[1], 2);
    assert_true(bitmap_test(map, 9));
    bitmap_clear(map, 9);
    assert_false(bitmap_test(map, 9));
    assert_true(bitmap_test(map, 0));
    assert_int_equal(bitmap_bytes(0), 0);
    assert_int_equal(bitmap_bytes(8), 1);
    assert_int_equal(bitmap_bytes(9), 2);
}

static void compare_with_naive(const uint8_t *map, uint64_t from, uint64_t end)
{
    uint64_t count = 0, set = end, clear = end;

    for (uint64_t i = end; i-- > from;) {
        if (bitmap_test(map, i)) {
            count++;
            set = i;
        } else {
            clear = i;
        }
    }
    assert_int_equal(bitmap_count(map, from, end - from), count);
    assert_int_equal(bitmap_all(map, from, end - from), count == end - from);
    assert_int_equal(bitmap_next_set(map, from, end), set);
    assert_int_equal(bitmap_next_clear(map, from, end), clear);
}

static void every_range_agrees_with_a_naive_count(void **state)
{
    /* Sparse, even, dense, empty and full maps at each of eight alignments. */
    static const unsigned odds[] = {2, 128, 254, 0, 256};
    uint32_t seed = 1;

    for (size_t shift = 0; shift < 8; shift++) {
        for (size_t k = 0; k < sizeof(odds) / sizeof(odds[0]); k++) {
            /* Exactly as long as it needs to be: ASan sees a read behind the end. */
            uint8_t *memory = calloc(1, shift + bitmap_bytes(BITS)), *map = memory + shift;

            for (uint64_t i = 0; i < BITS; i++) {
                if (next_random(&seed) % 256 < odds[k])
                    bitmap_set(map, i);
            }
            for (uint64_t from = 0; from <= BITS; from += 7) {
                for (uint64_t end = from; end <= BITS; end += from % 3 + 1)
                    compare_with_naive(map, from, end);
            }
            free(memory);
        }
    }
}

static void bits_outside_a_range_do_not_count(void **state)
{
    uint8_t map[24];

    memset(map, 0xff, sizeof(map));
    for (uint64_t i = 60; i < 140; i++)
        bitmap_clear(map, i);
    assert_int_equal(bitmap_count(map, 60, 80), 0);
    assert_int_equal(bitmap_next_set(map, 60, 140), 140);
    assert_int_equal(bitmap_next_set(map, 60, 192), 140);
    assert_int_equal(bitmap_next_clear(map, 0, 192), 60);
    assert_int_equal(bitmap_next_clear(map, 0, 60), 60);
    assert_true(bitmap_all(map, 0, 60));
    assert_false(bitmap_all(map, 0, 61));
    assert_true(bitmap_all(map, 70, 0));
}

static void the_wire_has_the_high_bit_first(void **state)
{
    uint8_t map[2] = {0}, wire[2];

    bitmap_set(map, 0);
    bitmap_set(map, 3);
    bitmap_set(map, 9);
    bitmap_to_wire(wire, map, 2);
    assert_int_equal(wire[0], 0x90);
    assert_int_equal(wire[1], 0x40);
    memset(map, 0, sizeof(map));
    assert_true(bitmap_from_wire(map, wire, 10));
    assert_int_equal(map[0], 0x09);
    assert_int_equal(map[1], 0x02);
    bitmap_to_wire(map, map, 2); /* in place */
    assert_memory_equal(map, wire, 2);
    for (unsigned value = 0; value < 256; value++) {
        uint8_t byte = (uint8_t)value, there, back;

        bitmap_to_wire(&there, &byte, 1);
        assert_true(bitmap_from_wire(&back, &there, 8));
        assert_int_equal(back, byte);
    }
}

static void a_spare_bit_on_the_wire_is_refused(void **state)
{
    uint8_t wire[2] = {0xff, 0xc0}, map[2];

    assert_true(bitmap_from_wire(map, wire, 10));
    assert_false(bitmap_from_wire(map, wire, 9));
    wire[1] = 0x01;
    assert_false(bitmap_from_wire(map, wire, 15));
    assert_true(bitmap_from_wire(map, wire, 16));
    assert_true(bitmap_from_wire(map, wire, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bit_is_counted_from_the_low_end),
        cmocka_unit_test(every_range_agrees_with_a_naive_count),
        cmocka_unit_test(bits_outside_a_range_do_not_count),
        cmocka_unit_test(the_wire_has_the_high_bit_first),
        cmocka_unit_test(a_spare_bit_on_the_wire_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
