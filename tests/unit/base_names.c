/* The judge of names, UTF-8, and hexadecimal. */
#include "base/hex.h"
#include "base/name.h"

#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define GOOD(text) assert_true(name_is_valid(text, sizeof(text) - 1))
#define BAD(text)  assert_false(name_is_valid(text, sizeof(text) - 1))

static void ordinary_names_are_good(void **state)
{
    GOOD("a");
    GOOD("...");
    GOOD(".hidden");
    GOOD("..a");
    GOOD("with spaces and \\ : * ? \" < > |");
    GOOD("gr\xc3\xbc\xc3\x9f"
         "e");
    GOOD("\xe6\x97\xa5\xe6\x9c\xac");
    GOOD("\xf0\x9f\x8e\x9e");
    GOOD("-rf");
}

static void names_that_mean_a_directory_are_bad(void **state)
{
    BAD("");
    BAD(".");
    BAD("..");
    BAD("/");
    BAD("a/b");
    BAD("/etc");
    BAD("../x");
}

static void a_name_of_255_bytes_is_good_and_of_256_bad(void **state)
{
    char name[256];

    memset(name, 'n', sizeof(name));
    assert_true(name_is_valid(name, 255));
    assert_false(name_is_valid(name, 256));
}

static void control_characters_are_bad(void **state)
{
    char name[3] = "a?b";

    for (int c = 0; c < 0x20; c++) {
        name[1] = (char)c;
        assert_false(name_is_valid(name, 3));
    }
    BAD("a\x7f");
    BAD("a\xc2\x80");
    BAD("a\xc2\x9f");
    GOOD("a\xc2\xa0");
}

static void separators_and_bidirectional_controls_are_bad(void **state)
{
    BAD("a\xe2\x80\xa8");  /* U+2028 */
    BAD("a\xe2\x80\xa9");  /* U+2029 */
    BAD("a\xe2\x80\xaa");  /* U+202A */
    BAD("a\xe2\x80\xae");  /* U+202E */
    BAD("a\xe2\x81\xa6");  /* U+2066 */
    BAD("a\xe2\x81\xa9");  /* U+2069 */
    GOOD("a\xe2\x80\xaf"); /* U+202F, a narrow blank */
    GOOD("a\xe2\x80\xa7"); /* U+2027 */
    GOOD("a\xe2\x81\xa5");
    GOOD("a\xe2\x81\xaa");
}

static void malformed_utf8_is_bad(void **state)
{
    BAD("a\x80");            /* a continuation alone */
    BAD("a\xc3");            /* cut short */
    BAD("a\xe2\x82");        /* cut short */
    BAD("a\xf0\x9f\x8e");    /* cut short */
    BAD("\xc0\xaf");         /* "/" in two bytes */
    BAD("\xc1\xbf");         /* longer than needed */
    BAD("\xe0\x80\xaf");     /* "/" in three bytes */
    BAD("\xe0\x9f\xbf");     /* longer than needed */
    BAD("\xf0\x8f\xbf\xbf"); /* longer than needed */
    BAD("\xed\xa0\x80");     /* a surrogate */
    BAD("\xed\xbf\xbf");     /* a surrogate */
    BAD("\xf4\x90\x80\x80"); /* behind U+10FFFF */
    BAD("\xf5\x80\x80\x80"); /* no such lead */
    BAD("\xff");
    BAD("\xc3(");
    GOOD("\xf4\x8f\xbf\xbf"); /* U+10FFFF */
    GOOD("\xee\x80\x80");     /* U+E000, behind the surrogates */
    GOOD("\xed\x9f\xbf");     /* U+D7FF, before them */
    GOOD("\xe0\xa0\x80");     /* U+0800 */
    GOOD("\xf0\x90\x80\x80"); /* U+10000 */
}

static void a_nul_ends_the_validity_of_text(void **state)
{
    assert_true(utf8_is_valid("ab", 2));
    assert_true(utf8_is_valid("", 0));
    assert_true(utf8_is_valid("a\nb", 3));
    assert_false(utf8_is_plain("a\nb", 3));
    assert_false(utf8_is_plain("a\0b", 3));
    assert_false(utf8_is_plain("\xff", 1));
    assert_true(utf8_is_plain("../\xc3\xa4/b c", 9));
    assert_false(utf8_is_valid("a\0b", 3));
    assert_false(name_is_valid("a\0b", 3));
}

static void a_sequence_is_not_read_behind_its_length(void **state)
{
    uint32_t code = 7;

    assert_int_equal(utf8_decode("\xe2\x82\xac", 3, &code), 3);
    assert_int_equal(code, 0x20ac);
    assert_int_equal(utf8_decode("\xe2\x82\xac", 2, &code), 0);
    assert_int_equal(utf8_decode("x", 0, &code), 0);
}

static void account_names_are_lower_case_ascii(void **state)
{
    static const char *const good[] = {"a", "0", "anna", "a.b_c-d", "9lives"};
    static const char *const bad[] = {"",    "Anna",     ".a",  "-a",  "_a",  "a b",
                                      "a/b", "\xc3\xa4", "a@b", "a\n", "a:b", "a\x7f"};
    char name[ACCOUNT_BYTES_MAX + 2] = {0};

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_null(account_name_fault(good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_non_null(account_name_fault(bad[i]));
    memset(name, 'a', ACCOUNT_BYTES_MAX);
    assert_null(account_name_fault(name));
    name[ACCOUNT_BYTES_MAX] = 'a';
    assert_non_null(account_name_fault(name));
}

static void hexadecimal_goes_there_and_back(void **state)
{
    uint8_t bytes[256], back[256];
    char text[513];

    for (int i = 0; i < 256; i++)
        bytes[i] = (uint8_t)i;
    hex_encode(text, bytes, 256);
    assert_memory_equal(text, "000102", 6);
    assert_string_equal(text + 506, "fdfeff");
    assert_true(hex_decode(back, 256, text));
    assert_memory_equal(back, bytes, 256);
    assert_true(hex_decode(back, 2, "aBCd"));
    assert_int_equal(back[0], 0xab);
    assert_int_equal(back[1], 0xcd);
    assert_true(hex_decode(back, 0, ""));
}

static void hexadecimal_of_another_length_or_alphabet_is_refused(void **state)
{
    uint8_t back[2];

    assert_false(hex_decode(back, 2, ""));
    assert_false(hex_decode(back, 2, "abc"));
    assert_false(hex_decode(back, 2, "ab"));
    assert_false(hex_decode(back, 2, "abcde"));
    assert_false(hex_decode(back, 2, "abcdef"));
    assert_false(hex_decode(back, 2, "abcg"));
    assert_false(hex_decode(back, 2, "abc "));
    assert_false(hex_decode(back, 2, "0xab"));
    assert_false(hex_decode(back, 2, "ab/0"));
    assert_false(hex_decode(back, 2, "ab:0"));
    assert_false(hex_decode(back, 2, "ab@0"));
    assert_false(hex_decode(back, 2, "ab`0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ordinary_names_are_good),
        cmocka_unit_test(names_that_mean_a_directory_are_bad),
        cmocka_unit_test(a_name_of_255_bytes_is_good_and_of_256_bad),
        cmocka_unit_test(control_characters_are_bad),
        cmocka_unit_test(separators_and_bidirectional_controls_are_bad),
        cmocka_unit_test(malformed_utf8_is_bad),
        cmocka_unit_test(a_nul_ends_the_validity_of_text),
        cmocka_unit_test(a_sequence_is_not_read_behind_its_length),
        cmocka_unit_test(account_names_are_lower_case_ascii),
        cmocka_unit_test(hexadecimal_goes_there_and_back),
        cmocka_unit_test(hexadecimal_of_another_length_or_alphabet_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
