/* crypto/password.h and crypto/random.h. */
#include "crypto/password.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <argon2.h>
#include <cmocka.h>

#include "base/clock.h"
#include "crypto/random.h"

static void the_right_password_is_accepted_and_others_are_not(void **state)
{
    char record[PASSWORD_RECORD_MAX], again[PASSWORD_RECORD_MAX];
    bool upgrade = true;

    assert_true(password_hash(record, "correct horse", 13));
    assert_non_null(strstr(record, "$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_true(password_verify(record, "correct horse", 13, &upgrade));
    assert_false(upgrade);
    assert_false(password_verify(record, "correct horsf", 13, &upgrade));
    assert_false(password_verify(record, "correct hors", 12, NULL));
    assert_false(password_verify(record, "", 0, NULL));
    assert_true(password_hash(again, "correct horse", 13));
    assert_string_not_equal(record, again); /* a fresh salt */
}

static void bytes_of_any_kind_and_the_longest_password_work(void **state)
{
    char record[PASSWORD_RECORD_MAX], longest[PASSWORD_BYTES_MAX + 1];
    memset(longest, 0, sizeof longest);
    assert_true(password_hash(record, longest, PASSWORD_BYTES_MAX));
    assert_true(password_verify(record, longest, PASSWORD_BYTES_MAX, NULL));
    assert_false(password_verify(record, longest, PASSWORD_BYTES_MAX - 1, NULL));
    assert_false(password_hash(record, longest, PASSWORD_BYTES_MAX + 1));
}

static void a_record_below_todays_cost_asks_for_an_upgrade(void **state)
{
    char record[PASSWORD_RECORD_MAX];
    bool upgrade = false;
    assert_int_equal(argon2id_hash_encoded(1, 8192, 1, "pw", 2, "saltsaltsaltsalt", 16, 32, record,
                                           sizeof record),
                     ARGON2_OK);
    assert_true(password_verify(record, "pw", 2, &upgrade));
    assert_true(upgrade);
    assert_false(password_verify(record, "px", 2, &upgrade));
    assert_false(upgrade);
}

static void damaged_and_costly_records_are_refused(void **state)
{
    static const char *const records[] = {
        "",
        "plain",
        "$argon2id$v=19$m=19456,t=2,p=1$",
        "$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2id$v=19$m=19456,t=4000000,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
        "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA",
    };
    for (size_t i = 0; i < sizeof records / sizeof records[0]; i++)
        assert_false(password_verify(records[i], "pw", 2, NULL));
}

/* Processor time of this thread, which other load does not stretch; the best of several. */
static int64_t cost_of(const char *record)
{
    int64_t best = INT64_MAX;

    for (int i = 0; i < 7; i++) {
        struct timespec before, after;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
        assert_false(password_verify(record, "px", 2, NULL));
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
        int64_t cost = (after.tv_sec - before.tv_sec) * NS_PER_S + after.tv_nsec - before.tv_nsec;
        best = cost < best ? cost : best;
    }
    return best;
}

static void an_unknown_account_costs_what_a_wrong_password_costs(void **state)
{
    char record[PASSWORD_RECORD_MAX];

    assert_true(password_hash(record, "pw", 2));
    assert_false(password_verify(NULL, "px", 2, NULL)); /* makes the dummy */
    int64_t known = cost_of(record), unknown = cost_of(NULL);
    assert_true(unknown > known / 2 && known > unknown / 2);
}

static void codes_are_made_of_clear_letters_and_differ(void **state)
{
    char code[65], other[65];
    for (int i = 0; i < 200; i++) {
        random_code(code, 64);
        assert_int_equal(strlen(code), 64);
        assert_null(strpbrk(code, "0O1lI"));
        assert_int_equal(
            strspn(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"), 64);
        random_code(other, 64);
        assert_string_not_equal(code, other);
    }
    assert_true(random_u64() != random_u64());
}

static void sha256_has_its_known_answers(void **state)
{
    static const uint8_t abc[32] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
                                    0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
                                    0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
                                    0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    uint8_t digest[32];
    sha256(digest, "abc", 3);
    assert_memory_equal(digest, abc, 32);
    secret_wipe(digest, sizeof digest);
    for (size_t i = 0; i < sizeof digest; i++)
        assert_int_equal(digest[i], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_right_password_is_accepted_and_others_are_not),
        cmocka_unit_test(bytes_of_any_kind_and_the_longest_password_work),
        cmocka_unit_test(a_record_below_todays_cost_asks_for_an_upgrade),
        cmocka_unit_test(damaged_and_costly_records_are_refused),
        cmocka_unit_test(an_unknown_account_costs_what_a_wrong_password_costs),
        cmocka_unit_test(codes_are_made_of_clear_letters_and_differ),
        cmocka_unit_test(sha256_has_its_known_answers),
    };
    return cmocka_run_group_tests_name("password", tests, NULL, NULL);
}
