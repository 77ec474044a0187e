/* Signatures of entries and claims of keys: good ones are taken, and nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "crypto/signature.h"
#include "crypto/ticket.h"

static char directory[] = "/tmp/p2p-signature-XXXXXX";

static char *path(const char *name)
{
    return xasprintf("%s/%s", directory, name);
}

static void an_entry_is_signed_and_nothing_in_it_can_change(void **state)
{
    const char *fault = NULL;
    char *file = path("signing.key");
    uint8_t ca[FINGERPRINT_SIZE] = {1}, root[HASH_SIZE] = {2}, signature[SIGNATURE_SIZE];
    struct signing_key *key = signing_key_open(file, &fault), *again;
    struct signer_claim claim;
    struct key *device = key_generate(&fault);
    struct stat status;
    assert_non_null(key);
    assert_int_equal(stat(file, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_true(signer_claim_make(&claim, key, device, ca, "ann", &fault));
    struct entry_statement entry = {.kind = 2, .size = 77, .root = root}, other = entry;
    assert_true(entry_sign(key, ca, &entry, signature));
    assert_true(entry_check(claim.key, ca, &entry, signature));
    other.size++;
    assert_false(entry_check(claim.key, ca, &other, signature));
    other = entry;
    other.kind = 3;
    assert_false(entry_check(claim.key, ca, &other, signature));
    other = entry;
    other.target = "x";
    assert_false(entry_check(claim.key, ca, &other, signature));
    root[31] ^= 1;
    assert_false(entry_check(claim.key, ca, &entry, signature));
    root[31] ^= 1;
    ca[0] ^= 1;
    assert_false(entry_check(claim.key, ca, &entry, signature));
    ca[0] ^= 1;
    signature[0] ^= 1;
    assert_false(entry_check(claim.key, ca, &entry, signature));
    /* The same key after a restart. */
    again = signing_key_open(file, &fault);
    uint8_t one[SIGNER_ID_SIZE], two[SIGNER_ID_SIZE];
    signing_key_id(key, one);
    signing_key_id(again, two);
    assert_memory_equal(one, two, sizeof one);
    signing_key_free(again);
    /* One that others can read is not used. */
    chmod(file, 0644);
    assert_null(signing_key_open(file, &fault));
    assert_string_equal(fault, "can be read or written by others (chmod 600 it)");
    /* One that was cut off is not replaced. */
    assert_int_equal(chmod(file, 0600), 0);
    assert_int_equal(truncate(file, 31), 0);
    assert_null(signing_key_open(file, &fault));
    assert_int_equal(stat(file, &status), 0);
    assert_int_equal(status.st_size, 31);
    key_free(device);
    signing_key_free(key);
    unlink(file);
    free(file);
}

static void a_claim_is_the_devices_own(void **state)
{
    const char *fault = NULL;
    char *file = path("signing.key");
    uint8_t ca[FINGERPRINT_SIZE] = {1}, device[DEVICE_ID_SIZE], own[DEVICE_ID_SIZE];
    struct signing_key *key = signing_key_open(file, &fault);
    struct key *ann = key_generate(&fault), *eve = key_generate(&fault);
    struct signer_claim claim, forged;
    assert_true(signer_claim_make(&claim, key, ann, ca, "ann", &fault));
    assert_true(signer_claim_check(&claim, ca, device));
    key_device_id(ann, own);
    assert_memory_equal(device, own, sizeof own);
    forged = claim;
    memcpy(forged.account, "ben", 4);
    assert_false(signer_claim_check(&forged, ca, device));
    forged = claim;
    forged.key[3] ^= 1;
    assert_false(signer_claim_check(&forged, ca, device));
    assert_true(signer_claim_make(&forged, key, eve, ca, "ann", &fault));
    memcpy(forged.signature, claim.signature, sizeof forged.signature);
    assert_false(signer_claim_check(&forged, ca, device));
    forged = claim;
    forged.device_key_size--;
    assert_false(signer_claim_check(&forged, ca, device));
    ca[5] ^= 1;
    assert_false(signer_claim_check(&claim, ca, device));
    key_free(ann);
    key_free(eve);
    signing_key_free(key);
    unlink(file);
    free(file);
}

static void a_ticket_is_for_one_device_one_root_and_one_server(void **state)
{
    uint8_t tracker[TICKET_KEY_SIZE] = {1}, server[TICKET_KEY_SIZE], other[TICKET_KEY_SIZE];
    uint8_t device[DEVICE_ID_SIZE] = {2}, root[HASH_SIZE] = {3}, bytes[TICKET_SIZE];
    struct ticket ticket = {.epoch = 77, .end = 1234567890}, out;
    ticket_key(tracker, device, server);
    device[0]++;
    ticket_key(tracker, device, other);
    ticket_make(server, device, root, &ticket, bytes);
    assert_true(ticket_open(server, device, root, bytes, sizeof bytes, &out));
    assert_int_equal(out.epoch, 77);
    assert_int_equal(out.end, 1234567890);
    assert_false(ticket_open(other, device, root, bytes, sizeof bytes, &out));
    assert_false(ticket_open(server, device, root, bytes, sizeof bytes - 1, &out));
    root[0]++;
    assert_false(ticket_open(server, device, root, bytes, sizeof bytes, &out));
    root[0]--;
    device[0]++;
    assert_false(ticket_open(server, device, root, bytes, sizeof bytes, &out));
    device[0]--;
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] ^= 1;
        assert_false(ticket_open(server, device, root, bytes, sizeof bytes, &out));
        bytes[i] ^= 1;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_is_signed_and_nothing_in_it_can_change),
        cmocka_unit_test(a_claim_is_the_devices_own),
        cmocka_unit_test(a_ticket_is_for_one_device_one_root_and_one_server),
    };
    if (mkdtemp(directory) == NULL)
        return 1;
    int failed = cmocka_run_group_tests_name("crypto_signature", tests, NULL, NULL);
    rmdir(directory);
    return failed;
}
