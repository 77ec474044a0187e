/* Names for terminals, columns, progress lines. */
#include "tools/progress.h"
#include "tools/table.h"
#include "tools/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check_escaped(const char *text, const char *expected)
{
    char *escaped = text_escape(text);

    assert_string_equal(escaped, expected);
    free(escaped);
}

static void nothing_that_a_terminal_obeys_survives_escaping(void **state)
{
    check_escaped("plain name.mkv", "plain name.mkv");
    check_escaped("Größe 漢字", "Größe 漢字");
    check_escaped("\033[31mred\033[0m", "\\x1b[31mred\\x1b[0m");
    check_escaped("a\nb\tc\r", "a\\x0ab\\x09c\\x0d");
    check_escaped("\x7f", "\\x7f");
    check_escaped("\xc2\x9b"
                  "31m",
                  "\\xc2\\x9b31m");
    check_escaped("\xe2\x80\xae"
                  "gpj.exe",
                  "\\xe2\\x80\\xaegpj.exe");
    check_escaped("\xff\xfe", "\\xff\\xfe");
    check_escaped("half \xc3", "half \\xc3");
    check_escaped("", "");
}

static void width_is_counted_in_columns(void **state)
{
    assert_int_equal(text_width("abc"), 3);
    assert_int_equal(text_width("Größe"), 5);
    assert_int_equal(text_width("漢字"), 4);
    assert_int_equal(text_width("e\xcc\x81"), 1); /* e and a combining accent */
}

static void check_fit(const char *text, size_t width, enum text_cut cut, const char *expected)
{
    char *fitted = text_fit(text, width, cut);

    assert_string_equal(fitted, expected);
    assert_true(text_width(fitted) <= width);
    free(fitted);
}

static void what_does_not_fit_is_cut_and_marked(void **state)
{
    check_fit("abcdef", 6, TEXT_CUT_START, "abcdef");
    check_fit("abcdef", 4, TEXT_CUT_START, "…def");
    check_fit("abcdef", 4, TEXT_CUT_END, "abc…");
    check_fit("abcdef", 1, TEXT_CUT_END, "…");
    check_fit("abcdef", 0, TEXT_CUT_END, "");
    check_fit("漢字漢字", 5, TEXT_CUT_START, "…漢字");
    check_fit("漢字漢字", 4, TEXT_CUT_START, "…字");
    check_fit("漢字漢字", 4, TEXT_CUT_END, "漢…");
    check_fit("aae\xcc\x81zz", 3, TEXT_CUT_START, "…zz");
}

static void the_nearest_word_is_found_and_a_far_one_is_not(void **state)
{
    static const char *const words[] = {"status", "start", "stop", "get", NULL};

    assert_string_equal(text_nearest("statsu", words), "status");
    assert_string_equal(text_nearest("sotp", words), "stop");
    assert_string_equal(text_nearest("stat", words), "status");
    assert_string_equal(text_nearest("gte", words), "get");
    assert_null(text_nearest("frobnicate", words));
    assert_null(text_nearest("x", words));
    assert_null(text_nearest("", words));
    assert_null(text_nearest("ssssssssssssssssssssssssssssssssssssssssssssssss", words));
}

/* --- tables ------------------------------------------------------------------------------------ */

static const struct table_column columns[] = {
    {"FILE", TABLE_GIVES_WAY}, {"SIZE", TABLE_RIGHT}, {"PEERS", TABLE_RIGHT},
    {"STATE", TABLE_LEFT},     {NULL, TABLE_LEFT},
};

static void check_table(const struct table *table, size_t width, const char *expected)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    assert_non_null(to);
    table_print(table, to, width);
    fclose(to);
    assert_string_equal(text, expected);
    free(text);
}

static struct table *sample(void)
{
    struct table *table = table_new(columns);

    table_row(table);
    table_cell(table, "/films/Größe.mkv");
    table_cell(table, "1.5 GiB");
    table_cell(table, "%s", "");
    table_cell(table, "complete");
    table_row(table);
    table_cell(table, "/a\033b");
    table_cell(table, "7 B");
    table_note(table, "nobody has it");
    return table;
}

static void columns_are_aligned_and_empty_ones_left_out(void **state)
{
    struct table *table = sample();

    check_table(table, 0,
                "FILE                 SIZE  STATE\n"
                "/films/Größe.mkv  1.5 GiB  complete\n"
                "/a\\x1bb               7 B\n"
                "    nobody has it\n");
    table_free(table);
}

static void the_column_that_gives_way_is_cut_to_the_width(void **state)
{
    struct table *table = sample();

    check_table(table, 32,
                "FILE              SIZE  STATE\n"
                "…ms/Größe.mkv  1.5 GiB  complete\n"
                "/a\\x1bb            7 B\n"
                "    nobody has it\n");
    table_free(table);
}

static void a_table_without_rows_prints_nothing(void **state)
{
    struct table *table = table_new(columns);

    check_table(table, 80, "");
    table_free(table);
}

static void on_a_narrow_terminal_columns_go_before_a_line_breaks(void **state)
{
    static const struct table_column narrow[] = {{"NAME", TABLE_GIVES_WAY},
                                                 {"NUMBER", TABLE_RIGHT | TABLE_MAY_GO},
                                                 {"PLACE", TABLE_LEFT | TABLE_MAY_GO},
                                                 {"STATE", TABLE_LEFT},
                                                 {NULL, TABLE_LEFT}};
    struct table *table = table_new(narrow);

    table_row(table);
    table_cell(table, "sixteen_letters_");
    table_count(table, 17);
    table_cell(table, "here");
    table_cell(table, "well");
    check_table(table, 0,
                "NAME              NUMBER  PLACE  STATE\nsixteen_letters_      17  here   well\n");
    check_table(table, 34,
                "NAME          NUMBER  PLACE  STATE\n…en_letters_      17  here   well\n");
    check_table(table, 33, "NAME              NUMBER  STATE\nsixteen_letters_      17  well\n");
    check_table(table, 22, "NAME             STATE\n…xteen_letters_  well\n");
    check_table(table, 5, "NAME          STATE\n…en_letters_  well\n");
    table_free(table);
}

/* --- progress ---------------------------------------------------------------------------------- */

static Local__Progress half_way(void)
{
    Local__Progress p = LOCAL__PROGRESS__INIT;
    static char name[] = "/films/a.mkv";

    p.size = 100 << 20;
    p.have = 50 << 20;
    p.rate = 10 << 20;
    p.files = 1;
    p.peers = 3;
    p.current = name;
    return p;
}

static void a_plain_line_says_how_far_it_is(void **state)
{
    Local__Progress p = half_way();
    char *line = progress_line(&p, 0);

    assert_string_equal(line, " 50%  50 MiB of 100 MiB  10 MiB/s  6s left  3 peers  /films/a.mkv");
    free(line);
}

static void a_bar_fits_every_terminal(void **state)
{
    Local__Progress p = half_way();

    for (size_t width = 1; width < 300; width++) {
        char *line = progress_line(&p, width);
        assert_true(text_width(line) <= width);
        if (width == 120)
            assert_non_null(strstr(line, "[###############...............]"));
        free(line);
    }
}

static void a_fetch_that_stands_still_says_so_and_tells_no_time(void **state)
{
    Local__Progress p = half_way();

    p.rate = 0;
    p.peers = 1;
    p.files = 12;
    p.files_done = 3;
    char *line = progress_line(&p, 0);
    assert_non_null(strstr(line, "stalled"));
    assert_non_null(strstr(line, "3 of 12 files"));
    assert_non_null(strstr(line, "1 peer  "));
    assert_null(strstr(line, "left"));
    free(line);
}

static void what_is_not_all_here_is_never_100_percent(void **state)
{
    assert_int_equal(progress_percent(0, 0), 100);
    assert_int_equal(progress_percent(0, 7), 0);
    assert_int_equal(progress_percent(999, 1000), 99);
    assert_int_equal(progress_percent(1000, 1000), 100);
    assert_int_equal(progress_percent(UINT64_MAX - 1, UINT64_MAX), 99);
    assert_int_equal(progress_percent(2000, 1000), 100);
}

static int set_up(void **state)
{
    text_init();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_that_a_terminal_obeys_survives_escaping),
        cmocka_unit_test(width_is_counted_in_columns),
        cmocka_unit_test(what_does_not_fit_is_cut_and_marked),
        cmocka_unit_test(the_nearest_word_is_found_and_a_far_one_is_not),
        cmocka_unit_test(columns_are_aligned_and_empty_ones_left_out),
        cmocka_unit_test(the_column_that_gives_way_is_cut_to_the_width),
        cmocka_unit_test(a_table_without_rows_prints_nothing),
        cmocka_unit_test(on_a_narrow_terminal_columns_go_before_a_line_breaks),
        cmocka_unit_test(a_plain_line_says_how_far_it_is),
        cmocka_unit_test(a_bar_fits_every_terminal),
        cmocka_unit_test(a_fetch_that_stands_still_says_so_and_tells_no_time),
        cmocka_unit_test(what_is_not_all_here_is_never_100_percent),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
