/* Parts of pieces. */
#include "daemon/parts.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bitmap.h"

#define MIB (UINT64_C(1) << 20)

static void small_contents_have_many_parts_and_large_ones_their_pieces(void **state)
{
    static const struct {
        uint64_t size;
        uint32_t blocks, parts;
    } rows[] = {
        {0, 1, 0},
        {1, 1, 1},
        {MIB, 1, 64},
        {16 * MIB, 1, 1024},
        {16 * MIB + 1, 2, 513},
        {64 * MIB, 4, 1024},
        {64 * MIB + 1, 8, 513},
        {128 * MIB, 8, 1024},
        {128 * MIB + 1, 16, 513},
        {2048 * MIB, 16, 8192},
        {UINT64_C(1) << 40, 256, 262144},
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct geometry g = geometry_of(rows[i].size), parts = parts_of(&g);

        assert_int_equal(parts.piece_blocks, rows[i].blocks);
        assert_int_equal(parts.pieces, rows[i].parts);
        assert_int_equal(parts.blocks, g.blocks);
        assert_true(parts_ratio(&g, &parts) >= 1 && parts_ratio(&g, &parts) <= 16);
        assert_int_equal(parts.piece_blocks * parts_ratio(&g, &parts), g.piece_blocks);
    }
}

static void a_part_is_whole_with_its_last_block(void **state)
{
    struct geometry g = geometry_of(32 * MIB + 5 * BLOCK_SIZE + 1), parts = parts_of(&g);
    uint8_t *present = calloc(1, bitmap_bytes(g.blocks) + 1), *map;
    uint8_t pieces[17] = {0};

    (void)state;
    bitmap_set(pieces, 1);
    bitmap_set(pieces, 128);                        /* the last, which is short */
    for (uint64_t block = 5; block < 12; block++) { /* part 2, and most of part 1 */
        bitmap_set(present, block);
        assert_int_equal(parts_completed(&parts, present, block, 1), block == 11);
    }
    bitmap_set(present, g.blocks - 1);
    assert_false(parts_completed(&parts, present, g.blocks - 1, 1));
    bitmap_set(present, g.blocks - 2);
    assert_true(parts_completed(&parts, present, g.blocks - 2, 2));
    map = parts_map(&parts, present);
    for (uint32_t i = 0; i < parts.pieces; i++)
        assert_int_equal(bitmap_test(map, i), i == 2 || i == 513);
    free(map);
    map = parts_of_pieces(&g, &parts, pieces);
    for (uint32_t i = 0; i < parts.pieces; i++)
        assert_int_equal(bitmap_test(map, i), (i >= 4 && i < 8) || i >= 512);
    free(map);
    free(present);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_contents_have_many_parts_and_large_ones_their_pieces),
        cmocka_unit_test(a_part_is_whole_with_its_last_block),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
