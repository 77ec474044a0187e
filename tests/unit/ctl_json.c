/* Messages as JSON. */
#include "tools/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/local.pb-c.h"
#include "tools/text.h"

static void check(json_t *value, const char *expected)
{
    char *text = json_dumps(value, JSON_COMPACT);

    assert_string_equal(text, expected);
    free(text);
    json_decref(value);
}

static void keys_are_the_fields_names_and_enums_are_words(void **state)
{
    Local__Attr attr = LOCAL__ATTR__INIT;
    char name[] = "Größe \"x\".mkv";
    uint8_t root[3] = {0, 0xab, 0xff};

    attr.ino = 7;
    attr.kind = LOCAL__KIND__KIND_FILE;
    attr.size = UINT64_C(5) << 40;
    attr.mtime = -1;
    attr.state = LOCAL__STATE__STATE_STREAMING;
    attr.root.data = root;
    attr.root.len = sizeof root;
    attr.name = name;
    attr.pinned = true;
    check(json_from_message(&attr.base),
          "{\"ino\":7,\"kind\":\"file\",\"size\":5497558138880,\"local\":0,\"mtime\":-1,\"mode\":0,"
          "\"nlink\":0,\"state\":\"streaming\",\"root\":\"00abff\",\"owner\":\"\",\"parent\":0,"
          "\"name\":\"Größe \\\"x\\\".mkv\",\"pinned\":true}");
}

static void an_unknown_enum_is_a_number_and_a_huge_number_stays_positive(void **state)
{
    Local__Attr attr = LOCAL__ATTR__INIT;

    attr.state = (Local__State)99;
    attr.size = UINT64_MAX;
    json_t *object = json_from_message(&attr.base);
    assert_int_equal(json_integer_value(json_object_get(object, "state")), 99);
    assert_true(json_integer_value(json_object_get(object, "size")) == INT64_MAX);
    json_decref(object);
}

static void lists_and_messages_within_are_there(void **state)
{
    Local__Status status = LOCAL__STATUS__INIT;
    Local__FileStatus one = LOCAL__FILE_STATUS__INIT, two = LOCAL__FILE_STATUS__INIT;
    Local__FileStatus *files[] = {&one, &two};
    Local__Attr attr = LOCAL__ATTR__INIT;
    char path[] = "/a", account[] = "ann";

    attr.size = 10;
    attr.state = LOCAL__STATE__STATE_COMPLETE;
    one.path = path;
    one.have = 10;
    one.waiting = 2;
    one.attr = &attr;
    status.account = account;
    status.pid = 42;
    status.files = files;
    status.n_files = 2;
    json_t *object = json_from_message(&status.base);
    json_t *list = json_object_get(object, "files"), *file;
    assert_int_equal(json_array_size(list), 2);
    json_flatten(list, "attr");
    file = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(file, "path")), "/a");
    assert_string_equal(json_string_value(json_object_get(file, "state")), "complete");
    assert_int_equal(json_integer_value(json_object_get(file, "size")), 10);
    assert_int_equal(json_integer_value(json_object_get(file, "waiting")), 2);
    assert_null(json_object_get(file, "attr"));
    assert_null(json_object_get(json_array_get(list, 1), "attr")); /* absent in the message */
    assert_int_equal(json_integer_value(json_object_get(object, "pid")), 42);
    assert_true(json_is_false(json_object_get(object, "connected")));
    json_decref(object);
}

static void text_that_is_no_utf8_is_escaped_not_lost(void **state)
{
    check(json_pack("{s:o}", "name", json_from_text("a\xff")), "{\"name\":\"a\\\\xff\"}");
    check(json_pack("{s:o}", "name", json_from_text("\033[1m")), "{\"name\":\"\\u001B[1m\"}");
}

static int set_up(void **state)
{
    text_init();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_the_fields_names_and_enums_are_words),
        cmocka_unit_test(an_unknown_enum_is_a_number_and_a_huge_number_stays_positive),
        cmocka_unit_test(lists_and_messages_within_are_there),
        cmocka_unit_test(text_that_is_no_utf8_is_escaped_not_lost),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
