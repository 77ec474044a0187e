/* proto/frame.c: the header's layout is a promise to other programs, its bounds are a wall. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/frame.h"
#include "proto/limits.h"

static const struct frame good = {
    .message_size = 0x0001f203,
    .payload_size = 0x00040506,
    .type = 0x0708,
    .flags = FRAME_MAY_SKIP | FRAME_ANSWER,
    .fds = 2,
    .id = 0x090a0b0c,
};

static const char *judge(const struct frame *frame, uint32_t max)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame out;
    frame_encode(bytes, frame);
    return frame_decode(&out, bytes, max);
}

static void the_header_stands_as_the_table_says(void **state)
{
    static const uint8_t expected[FRAME_HEADER_SIZE] = {
        0x00, 0x01, 0xf2, 0x03, 0x00, 0x04, 0x05, 0x06,
        0x07, 0x08, 0x03, 0x02, 0x09, 0x0a, 0x0b, 0x0c,
    };
    uint8_t bytes[FRAME_HEADER_SIZE];
    frame_encode(bytes, &good);
    assert_memory_equal(bytes, expected, sizeof expected);
}

static void what_was_encoded_is_decoded(void **state)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame out;
    frame_encode(bytes, &good);
    assert_null(frame_decode(&out, bytes, LIMIT_FRAME_MESSAGE));
    assert_int_equal(out.message_size, good.message_size);
    assert_int_equal(out.payload_size, good.payload_size);
    assert_int_equal(out.type, good.type);
    assert_int_equal(out.flags, good.flags);
    assert_int_equal(out.fds, good.fds);
    assert_int_equal(out.id, good.id);
}

static void lengths_up_to_the_limit_pass_and_one_more_does_not(void **state)
{
    struct frame frame = {.message_size = LIMIT_FRAME_MESSAGE, .payload_size = LIMIT_FRAME_PAYLOAD};
    assert_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    frame.message_size++;
    assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    assert_non_null(judge(&frame, UINT32_MAX)); /* whatever the caller allows */
    frame.message_size = UINT32_MAX;
    assert_non_null(judge(&frame, UINT32_MAX));
    frame.message_size = 0;
    frame.payload_size++;
    assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    frame.payload_size = UINT32_MAX;
    assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
}

static void a_stranger_is_held_to_a_lower_limit(void **state)
{
    struct frame frame = {.message_size = LIMIT_STRANGER_FRAME};
    assert_null(judge(&frame, LIMIT_STRANGER_FRAME));
    frame.message_size++;
    assert_non_null(judge(&frame, LIMIT_STRANGER_FRAME));
    assert_null(judge(&frame, LIMIT_FRAME_MESSAGE));
}

static void unknown_flags_are_a_fault(void **state)
{
    for (unsigned bit = 0; bit < 8; bit++) {
        struct frame frame = {.flags = (uint8_t)(1u << bit)};
        if (frame.flags == FRAME_MAY_SKIP || frame.flags == FRAME_ANSWER)
            assert_null(judge(&frame, LIMIT_FRAME_MESSAGE));
        else
            assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    }
}

static void more_descriptors_than_the_limit_are_a_fault(void **state)
{
    struct frame frame = {.fds = LIMIT_FRAME_FDS};
    assert_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    frame.fds++;
    assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
    frame.fds = 255;
    assert_non_null(judge(&frame, LIMIT_FRAME_MESSAGE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_header_stands_as_the_table_says),
        cmocka_unit_test(what_was_encoded_is_decoded),
        cmocka_unit_test(lengths_up_to_the_limit_pass_and_one_more_does_not),
        cmocka_unit_test(a_stranger_is_held_to_a_lower_limit),
        cmocka_unit_test(unknown_flags_are_a_fault),
        cmocka_unit_test(more_descriptors_than_the_limit_are_a_fault),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
