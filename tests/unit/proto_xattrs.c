/* Lists of extended attributes: what is sound, and what a change makes of them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "proto/limits.h"
#include "proto/xattrs.h"

static uint8_t bytes[LIMIT_XATTRS_BYTES + 1];

static Tracker__Xattrs *with(Tracker__Xattrs *from, const char *name, size_t size, int *error)
{
    Tracker__Xattr one = TRACKER__XATTR__INIT, *list = &one;
    Tracker__Xattrs set = TRACKER__XATTRS__INIT, *out;

    one.name = (char *)(uintptr_t)name;
    one.value.data = bytes;
    one.value.len = size;
    set.list = &list;
    set.n_list = 1;
    *error = xattrs_change(from, &set, NULL, 0, &out);
    if (*error != 0)
        return from;
    xattrs_free(from);
    return out;
}

static void names_are_of_user_and_not_our_own(void **state)
{
    char name[300] = "user.";

    assert_int_equal(xattr_name_fault("user.a"), 0);
    assert_int_equal(xattr_name_fault("user.p2pish"), 0);
    assert_int_equal(xattr_name_fault("user."), -EINVAL);
    assert_int_equal(xattr_name_fault("user.\xff"), -EINVAL);
    assert_int_equal(xattr_name_fault("user.p2p.root"), -EOPNOTSUPP);
    assert_int_equal(xattr_name_fault("user.p2p.whatever"), -EOPNOTSUPP);
    assert_int_equal(xattr_name_fault("security.selinux"), -EOPNOTSUPP);
    assert_int_equal(xattr_name_fault(""), -EOPNOTSUPP);
    memset(name + 5, 'n', LIMIT_XATTR_NAME - 5);
    assert_int_equal(xattr_name_fault(name), 0);
    name[LIMIT_XATTR_NAME] = 'n';
    assert_int_equal(xattr_name_fault(name), -ERANGE);
}

static void a_change_keeps_order_and_limits(void **state)
{
    Tracker__Xattrs *x = NULL, *out;
    char name[32], *removed[2];
    int error;

    x = with(x, "user.b", 3, &error);
    x = with(x, "user.a", 0, &error);
    x = with(x, "user.c", 1, &error);
    x = with(x, "user.b", 5, &error);
    assert_int_equal(x->n_list, 3);
    assert_string_equal(x->list[0]->name, "user.a");
    assert_int_equal(xattrs_find(x, "user.b")->value.len, 5);
    assert_int_equal(xattrs_find(x, "user.a")->value.len, 0);
    assert_null(xattrs_find(x, "user.d"));
    assert_true(xattrs_are_sound(x));
    removed[0] = x->list[0]->name;
    removed[1] = (char *)(uintptr_t) "user.none";
    assert_int_equal(xattrs_change(x, NULL, removed, 2, &out), 0);
    assert_int_equal(out->n_list, 2);
    assert_false(xattrs_are_equal(x, out));
    xattrs_free(out);
    x = with(x, "user.d", LIMIT_XATTR_VALUE, &error);
    assert_int_equal(error, 0);
    x = with(x, "user.e", LIMIT_XATTR_VALUE, &error);
    assert_int_equal(error, -ENOSPC);
    for (unsigned i = 0; i < LIMIT_XATTRS - 4; i++) {
        snprintf(name, sizeof name, "user.x%u", i);
        x = with(x, name, 1, &error);
        assert_int_equal(error, 0);
    }
    x = with(x, "user.y", 1, &error);
    assert_int_equal(error, -ENOSPC);
    assert_true(xattrs_are_sound(x));
    xattrs_free(x);
}

static void what_a_modified_client_sends_is_not_sound(void **state)
{
    Tracker__Xattr items[LIMIT_XATTRS + 1], *list[LIMIT_XATTRS + 1];
    Tracker__Xattrs x = TRACKER__XATTRS__INIT;
    char names[LIMIT_XATTRS + 1][16];

    x.list = list;
    for (unsigned i = 0; i <= LIMIT_XATTRS; i++) {
        snprintf(names[i], sizeof names[i], "user.%03u", i);
        items[i] = (Tracker__Xattr)TRACKER__XATTR__INIT;
        items[i].name = names[i];
        list[i] = &items[i];
    }
    x.n_list = LIMIT_XATTRS;
    assert_true(xattrs_are_sound(&x));
    x.n_list++;
    assert_false(xattrs_are_sound(&x));
    x.n_list = 2;
    assert_true(xattrs_are_sound(&x));
    items[1].name = names[0]; /* twice */
    assert_false(xattrs_are_sound(&x));
    items[1].name = (char *)(uintptr_t) "user.000a";
    assert_true(xattrs_are_sound(&x));
    list[0] = &items[1], list[1] = &items[0]; /* not in order */
    assert_false(xattrs_are_sound(&x));
    list[0] = &items[0], list[1] = &items[1];
    items[1].value.data = bytes;
    items[1].value.len = LIMIT_XATTR_VALUE + 1;
    assert_false(xattrs_are_sound(&x));
    items[1].value.len = LIMIT_XATTR_VALUE;
    assert_true(xattrs_are_sound(&x));
    items[0].value = items[1].value; /* together too much, with their names */
    assert_false(xattrs_are_sound(&x));
    items[0].value.len = 1;
    items[1].name = (char *)(uintptr_t) "user.p2p.root";
    assert_false(xattrs_are_sound(&x));
}

static void a_packed_list_comes_back_and_damage_does_not(void **state)
{
    Tracker__Xattrs *x = NULL, *back;
    size_t size;
    int error;

    assert_null(xattrs_pack(NULL, &size));
    assert_null(xattrs_unpack(NULL, 0));
    x = with(x, "user.mime_type", 20, &error);
    uint8_t *packed = xattrs_pack(x, &size);
    back = xattrs_unpack(packed, size);
    assert_true(xattrs_are_equal(x, back));
    xattrs_free(back);
    assert_null(xattrs_unpack(packed, size - 1));
    memcpy(strstr((char *)packed, "user"), "root", 4);
    assert_null(xattrs_unpack(packed, size));
    free(packed);
    xattrs_free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_of_user_and_not_our_own),
        cmocka_unit_test(a_change_keeps_order_and_limits),
        cmocka_unit_test(what_a_modified_client_sends_is_not_sound),
        cmocka_unit_test(a_packed_list_comes_back_and_damage_does_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
