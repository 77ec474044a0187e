/* crypto/totp.c: RFC 6238's own answers (appendix B, its last six digits), and what must not be accepted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "crypto/totp.h"

static const uint8_t *const secret = (const uint8_t *)"12345678901234567890";

static void codes_are_those_of_the_rfc(void **state)
{
    static const struct {
        int64_t time;
        const char *code;
    } answers[] = {{59, "287082"},         {1111111109, "081804"}, {1111111111, "050471"},
                   {1234567890, "005924"}, {2000000000, "279037"}, {20000000000, "353130"}};
    char code[TOTP_DIGITS + 1];
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        totp_code(secret, answers[i].time / TOTP_STEP, code);
        assert_string_equal(code, answers[i].code);
    }
}

static void a_code_is_good_for_a_step_before_and_after_and_only_once(void **state)
{
    const int64_t at = 1111111109;
    int64_t step = 0;
    assert_true(totp_check(secret, "081804", at, 0, &step));
    assert_int_equal(step, at / TOTP_STEP);
    assert_false(totp_check(secret, "081804", at, step, &step));
    assert_true(totp_check(secret, "081804", at + TOTP_STEP, 0, &step));
    assert_true(totp_check(secret, "081804", at - TOTP_STEP, 0, &step));
    assert_false(totp_check(secret, "081804", at + 2 * TOTP_STEP, 0, &step));
    assert_false(totp_check(secret, "081804", at - 2 * TOTP_STEP, 0, &step));
}

static void what_is_no_code_is_refused(void **state)
{
    static const char *const bad[] = {"", "08180", "0818040", "081805", "08180a", " 81804"};
    int64_t step = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(totp_check(secret, bad[i], 1111111109, 0, &step));
}

static void the_secret_in_base32(void **state)
{
    char text[TOTP_TEXT + 1];
    totp_text(secret, text);
    assert_string_equal(text, "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_those_of_the_rfc),
        cmocka_unit_test(a_code_is_good_for_a_step_before_and_after_and_only_once),
        cmocka_unit_test(what_is_no_code_is_refused),
        cmocka_unit_test(the_secret_in_base32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
