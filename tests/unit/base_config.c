/* INI files: what is taken, and every way to be wrong. */
#include "base/config.h"

#include "base/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static char path[64], errors[4096];
static uint64_t number, size, seconds;
static bool flag;
static char *name;

static const struct config_key keys[] = {{"net", "number", config_take_number, &number},
                                         {"net", "flag", config_take_bool, &flag},
                                         {"store", "size", config_take_bytes, &size},
                                         {"store", "wait", config_take_duration, &seconds},
                                         {"store", "name", config_take_text, &name},
                                         {NULL, NULL, NULL, NULL}};

static int set_up(void **state)
{
    int fd;

    snprintf(path, sizeof(path), "/tmp/p2p-test-XXXXXX");
    fd = mkstemp(path);
    number = size = seconds = 77;
    flag = false;
    name = NULL;
    return fd < 0 || close(fd) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    free(name);
    return unlink(path);
}

/* Loads `length` bytes of text as a file; what is logged lands in `errors`. */
static bool load_bytes(const char *text, size_t length)
{
    char capture_path[] = "/tmp/p2p-test-XXXXXX";
    int capture = mkstemp(capture_path), saved = dup(STDERR_FILENO);
    FILE *file = fopen(path, "w");
    ssize_t n;
    bool good;

    unlink(capture_path);
    assert_int_equal(fwrite(text, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
    dup2(capture, STDERR_FILENO);
    good = config_load(path, keys);
    dup2(saved, STDERR_FILENO);
    close(saved);
    n = pread(capture, errors, sizeof(errors) - 1, 0);
    close(capture);
    errors[n > 0 ? n : 0] = '\0';
    return good;
}

static bool load(const char *text)
{
    return load_bytes(text, strlen(text));
}

/* It is refused with exactly one line, which says that it is line `line` and has `part` in it. */
static void assert_fault(const char *text, int line, const char *part)
{
    char where[96];

    if (load(text))
        fail_msg("accepted: %s", text);
    snprintf(where, sizeof(where), "test: %s:%d: ", path, line);
    if (strncmp(errors, where, strlen(where)) != 0 || strstr(errors, part) == NULL ||
        strchr(errors, '\n') != errors + strlen(errors) - 1)
        fail_msg("not \"%s...%s\" but: %s", where, part, errors);
}

static void every_kind_of_value_is_taken(void **state)
{
    assert_true(load("# a comment\n; another\n\n[net]\nnumber = 12\nflag=yes\n"
                     "[store]\nsize: 1.5G\nwait = 15m ; inline\nname =  two words  \n"));
    assert_string_equal(errors, "");
    assert_int_equal(number, 12);
    assert_true(flag);
    assert_int_equal(size, UINT64_C(3) << 29);
    assert_int_equal(seconds, 900);
    assert_string_equal(name, "two words");
}

static void a_file_that_does_not_exist_is_an_empty_one(void **state)
{
    assert_true(config_load("/tmp/p2p-test-none/none.conf", keys));
    assert_int_equal(number, 77);
    assert_true(load(""));
    assert_true(load("[net]")); /* no newline at the end */
    assert_true(load("[net]\nnumber = 3"));
    assert_int_equal(number, 3);
}

static void an_indented_line_is_a_line_of_its_own(void **state)
{
    assert_true(load("[net]\n  number = 5\n  flag = on\n\t[store]\n  name = x\n"));
    assert_int_equal(number, 5);
    assert_true(flag);
    assert_string_equal(name, "x");
}

static void a_later_value_replaces_an_earlier(void **state)
{
    assert_true(load("[store]\nname = a\nname = b\n"));
    assert_string_equal(name, "b");
}

static void what_is_unknown_is_refused_with_its_line(void **state)
{
    assert_fault("[net]\nnumbre = 1\n", 2, "numbre in [net] is not known");
    assert_fault("[net]\nnumber = 1\n\n[nett]\n", 4, "[nett]");
    assert_fault("[store]\nnumber = 1\n", 2, "number");
    assert_fault("number = 1\n", 1, "number");
    assert_fault("[net]\nNumber = 1\n", 2, "Number");
}

static void a_malformed_value_is_refused_with_its_line(void **state)
{
    assert_fault("[net]\nnumber = -1\n", 2, "must be a whole number");
    assert_fault("[net]\nnumber =\n", 2, "must be a whole number");
    assert_fault("[net]\nflag = maybe\n", 2, "yes or no");
    assert_fault("[store]\n\nsize = big\n", 3, "must be a size");
    assert_fault("[store]\nwait = 3 weeks\n", 2, "must be a time");
    assert_int_equal(number, 77);
    assert_int_equal(size, 77);
    assert_int_equal(seconds, 77);
}

static void a_line_that_is_no_pair_is_refused_with_its_line(void **state)
{
    assert_fault("[net]\nnumber = 1\nwhat is this\n", 3, "key = value");
    assert_fault("[net\nnumber = 1\n", 1, "");
}

static void only_the_first_fault_is_told(void **state)
{
    assert_fault("[net]\nflag = maybe\nnumber = x\nnonsense\n[zzz]\n", 2, "flag");
    assert_int_equal(number, 77);
}

static void a_line_that_is_too_long_is_refused_not_cut(void **state)
{
    char text[5000] = "[store]\nname = ";

    memset(text + strlen(text), 'x', 4000);
    memcpy(text + 4500, "\n", 2);
    memset(text + 4000, 'y', 500);
    assert_fault(text, 2, "too long");
    assert_null(name);
}

static void a_nul_byte_is_refused(void **state)
{
    assert_false(load_bytes("[net]\nnumber = 1\0 2\n", 20));
    assert_non_null(strstr(errors, ":2: "));
    assert_int_equal(number, 77);
}

static void a_path_that_cannot_be_read_is_an_error(void **state)
{
    int saved = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY);
    bool good;

    dup2(null, STDERR_FILENO);
    good = config_load("/tmp", keys); /* a directory */
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(null);
    assert_false(good);
}

static void yes_and_no_have_many_names(void **state)
{
    static const char *const yes[] = {"yes", "true", "on", "1", "YES", "True"};
    static const char *const no[] = {"no", "false", "off", "0", "No"};

    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        bool value = false;

        assert_null(config_take_bool(&value, yes[i]));
        assert_true(value);
    }
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++) {
        bool value = true;

        assert_null(config_take_bool(&value, no[i]));
        assert_false(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        TEST(every_kind_of_value_is_taken),
        TEST(a_file_that_does_not_exist_is_an_empty_one),
        TEST(an_indented_line_is_a_line_of_its_own),
        TEST(a_later_value_replaces_an_earlier),
        TEST(what_is_unknown_is_refused_with_its_line),
        TEST(a_malformed_value_is_refused_with_its_line),
        TEST(a_line_that_is_no_pair_is_refused_with_its_line),
        TEST(only_the_first_fault_is_told),
        TEST(a_line_that_is_too_long_is_refused_not_cut),
        TEST(a_nul_byte_is_refused),
        TEST(a_path_that_cannot_be_read_is_an_error),
        TEST(yes_and_no_have_many_names),
    };
    unsetenv("P2P_LOG");
    log_init("test", LOG_LEVEL_ERROR, false);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
