/* Encrypted files: against a plain file that gets the same treatment; what is on the disk; wrong keys and damage. The key
 * file of a store. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/mem.h"
#include "crypto/file_cipher.h"
#include "crypto/identity.h"
#include "crypto/protection.h"
#include "crypto/random.h"

#define ROOM (300u << 10)

/* The same file twice. */
struct pair {
    struct store_key *key;
    struct file_cipher *cipher;
    int plain, sealed;
};

static struct pair pair_new(void)
{
    struct pair pair = {.key = store_key_make()};
    int error;

    pair.plain = memfd_create("plain", 0);
    pair.sealed = memfd_create("sealed", 0);
    pair.cipher = file_cipher_make(pair.key, pair.sealed, &error);
    assert_non_null(pair.cipher);
    return pair;
}

static void pair_free(struct pair *pair)
{
    file_cipher_free(pair->cipher);
    store_key_free(pair->key);
    close(pair->plain);
    close(pair->sealed);
}

static uint64_t length_of(int fd)
{
    struct stat status;

    assert_int_equal(fstat(fd, &status), 0);
    return (uint64_t)status.st_size;
}

static void assert_same(const struct pair *pair)
{
    uint64_t size = length_of(pair->plain);
    uint8_t *wanted = xmalloc(size + 1), *got = xmalloc(size + 1);

    assert_int_equal(file_cipher_size(true, length_of(pair->sealed)), size);
    assert_int_equal(file_cipher_length(true, size), length_of(pair->sealed));
    assert_int_equal(file_pread_all(pair->plain, wanted, size, 0), 0);
    assert_int_equal(file_cipher_pread_all(pair->cipher, pair->sealed, got, size, 0), 0);
    assert_memory_equal(wanted, got, size);
    free(wanted);
    free(got);
}

static void put(const struct pair *pair, const uint8_t *bytes, size_t size, uint64_t offset)
{
    assert_int_equal(file_pwrite_all(pair->plain, bytes, size, offset), 0);
    assert_int_equal(file_cipher_pwrite_all(pair->cipher, pair->sealed, bytes, size, offset), 0);
}

static void cut(const struct pair *pair, uint64_t size)
{
    assert_int_equal(file_cipher_truncate(NULL, pair->plain, size), 0);
    assert_int_equal(file_cipher_truncate(pair->cipher, pair->sealed, size), 0);
}

static void allocate(const struct pair *pair, int mode, uint64_t offset, uint64_t size)
{
    assert_int_equal(file_cipher_allocate(pair->cipher, pair->sealed, mode, offset, size), 0);
    /* What tmpfs lacks is written out. */
    uint64_t end = offset + size, old = length_of(pair->plain);
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0 && end > old)
        assert_int_equal(ftruncate(pair->plain, (off_t)end), 0);
    end = end < old ? end : old;
    if ((mode & FALLOC_FL_PUNCH_HOLE) != 0 && offset < end) {
        uint8_t *zeros = xcalloc(1, end - offset);
        assert_int_equal(file_pwrite_all(pair->plain, zeros, end - offset, offset), 0);
        free(zeros);
    }
}

static void sizes_and_lengths_tell_each_other(void **state)
{
    for (uint64_t size = 0; size < 20000; size++) {
        assert_int_equal(file_cipher_size(true, file_cipher_length(true, size)), size);
        assert_int_equal(file_cipher_length(false, size), size);
        assert_int_equal(file_cipher_size(false, size), size);
    }
    assert_int_equal(file_cipher_size(true, 0), 0);
    assert_int_equal(file_cipher_size(true, FILE_CIPHER_HEADER + 5), 0);
}

static void whatever_is_done_to_it_it_reads_as_a_plain_file_does(void **state)
{
    uint8_t *bytes = xmalloc(ROOM);

    random_bytes(bytes, ROOM);
    for (unsigned round = 0; round < 40; round++) {
        struct pair pair = pair_new();
        uint64_t span = round % 4 == 0 ? 64 : round % 4 == 1 ? 5000 : ROOM;

        for (unsigned step = 0; step < 60; step++) {
            uint64_t offset = random_u64() % span, size = random_u64() % (span - offset) + 1;

            switch (random_u64() % 8) {
            case 0:
                cut(&pair, offset);
                break;
            case 1:
                allocate(&pair, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);
                break;
            case 2:
                allocate(&pair, random_u64() % 2 == 0 ? 0 : FALLOC_FL_KEEP_SIZE, offset, size);
                break;
            case 3: /* the next bytes */
                put(&pair, bytes, size, length_of(pair.plain));
                break;
            case 4:
                size = size % 40 + 1;
                put(&pair, bytes + offset % 1000, size, offset);
                break;
            default:
                put(&pair, bytes + ROOM - size, size, offset);
                break;
            }
            assert_same(&pair);
        }
        pair_free(&pair);
    }
    free(bytes);
}

static void any_range_can_be_read(void **state)
{
    struct pair pair = pair_new();
    uint8_t bytes[10000], got[10000];

    random_bytes(bytes, sizeof bytes);
    put(&pair, bytes, sizeof bytes, 0);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t offset = random_u64() % sizeof bytes;
        size_t size = (size_t)(random_u64() % (sizeof bytes - offset)) + 1;

        assert_int_equal(file_cipher_pread_all(pair.cipher, pair.sealed, got, size, offset), 0);
        assert_memory_equal(got, bytes + offset, size);
    }
    assert_int_equal(file_cipher_pread(pair.cipher, pair.sealed, got, 100, sizeof bytes, 0), 0);
    assert_int_equal(file_cipher_pread_all(pair.cipher, pair.sealed, got, 17, sizeof bytes - 16),
                     -ENODATA);
    pair_free(&pair);
}

static void blocks_are_put_into_a_file_of_their_length(void **state)
{
    struct pair pair = pair_new();
    const size_t size = 5 * 16384 + 77;
    uint8_t *bytes = xmalloc(size), *got = xmalloc(size);
    struct iovec vector[3] = {
        {bytes, 16384}, {bytes + 16384, 3 * 16384}, {bytes + 4 * 16384, 16384 + 77}};
    int error;

    random_bytes(bytes, size);
    assert_int_equal(file_cipher_truncate(pair.cipher, pair.sealed, size), 0);
    assert_int_equal(file_cipher_put(pair.cipher, pair.sealed, vector, 3, 0, &error), size);
    assert_int_equal(error, 0);
    assert_int_equal(length_of(pair.sealed), file_cipher_length(true, size));
    assert_int_equal(file_cipher_pread_all(pair.cipher, pair.sealed, got, size, 0), 0);
    assert_memory_equal(got, bytes, size);
    free(bytes);
    free(got);
    pair_free(&pair);
}

/* Where a disk tears a write, old and new bytes stand beside each other, and neither is lost. */
static void a_torn_write_spoils_nothing_else(void **state)
{
    struct pair pair = pair_new();
    uint8_t old[4096], fresh[4096], before[4096], got[4096];

    memset(old, 'o', sizeof old);
    memset(fresh, 'n', sizeof fresh);
    put(&pair, old, sizeof old, 0);
    assert_int_equal(file_pread_all(pair.sealed, before, sizeof before, FILE_CIPHER_HEADER), 0);
    put(&pair, fresh, sizeof fresh, 0);
    assert_int_equal(
        file_pwrite_all(pair.sealed, before + 512, sizeof before - 512, FILE_CIPHER_HEADER + 512),
        0);
    assert_int_equal(file_cipher_pread_all(pair.cipher, pair.sealed, got, sizeof got, 0), 0);
    assert_memory_equal(got, fresh, 512);
    assert_memory_equal(got + 512, old, sizeof old - 512);
    pair_free(&pair);
}

static void nothing_of_it_is_on_the_disk(void **state)
{
    struct pair pair = pair_new(), other = pair_new();
    uint8_t bytes[8192], raw[8192], others[8192];

    memset(bytes, 'A', sizeof bytes);
    put(&pair, bytes, sizeof bytes, 0);
    put(&other, bytes, sizeof bytes, 0);
    assert_int_equal(file_pread_all(pair.sealed, raw, sizeof raw, FILE_CIPHER_HEADER), 0);
    assert_int_equal(file_pread_all(other.sealed, others, sizeof others, FILE_CIPHER_HEADER), 0);
    assert_null(memmem(raw, sizeof raw, "AAAA", 4));
    /* The same bytes look different at every place and in every file. */
    for (size_t at = 16; at < sizeof raw; at += 16)
        assert_memory_not_equal(raw, raw + at, 16);
    assert_memory_not_equal(raw, others, 16);
    pair_free(&pair);
    pair_free(&other);
}

static void only_its_own_key_opens_a_file(void **state)
{
    struct pair pair = pair_new();
    struct store_key *wrong = store_key_make();
    uint8_t byte, key[FILE_CIPHER_KEY], again[FILE_CIPHER_KEY];
    int error;

    struct file_cipher *cipher = file_cipher_open(pair.key, pair.sealed, &error);
    assert_non_null(cipher);
    file_cipher_key(cipher, key);
    file_cipher_key(pair.cipher, again);
    assert_memory_equal(key, again, sizeof key);
    file_cipher_free(cipher);
    assert_null(file_cipher_open(wrong, pair.sealed, &error));
    assert_int_equal(error, -EBADMSG);
    assert_null(file_cipher_open(pair.key, pair.plain, &error));
    assert_int_equal(error, -EBADMSG);
    assert_null(file_cipher_open(NULL, pair.sealed, &error));
    assert_int_equal(error, 0);
    assert_int_equal(file_pread_all(pair.sealed, &byte, 1, 20), 0);
    byte ^= 1;
    assert_int_equal(file_pwrite_all(pair.sealed, &byte, 1, 20), 0);
    assert_null(file_cipher_open(pair.key, pair.sealed, &error));
    assert_int_equal(error, -EBADMSG);
    store_key_free(wrong);
    pair_free(&pair);
}

/* --- the key's file ---- */

static void a_key_file_opens_in_each_of_its_ways(void **state)
{
    char folder[] = "/tmp/p2p-store-key-XXXXXX";
    const char *fault;
    uint8_t id[STORE_KEY_ID], other[STORE_KEY_ID];

    assert_non_null(mkdtemp(folder));
    char *path = xasprintf("%s/store.key", folder);
    struct store_key *key = store_key_make(), *again;
    const struct store_key_way ways[] = {{"first", 5}, {"second", 6}, {NULL, 0}};
    store_key_id(key, id);

    assert_null(store_key_load(path, &fault));
    assert_int_equal(protection_of_store_key(path), -ENOENT);
    assert_true(store_key_save(key, path, &ways[0], &fault));
    assert_int_equal(protection_of_store_key(path), 1);
    assert_true(store_key_add_way(key, path, &ways[1], &fault));
    assert_null(store_key_load(path, &fault));
    assert_non_null(strstr(fault, "needs the passphrase"));
    key_set_passphrase("third", 5);
    assert_null(store_key_load(path, &fault));
    assert_non_null(strstr(fault, "not opened"));
    for (unsigned i = 0; i < 2; i++) {
        key_set_passphrase(ways[i].passphrase, ways[i].size);
        again = store_key_load(path, &fault);
        assert_non_null(again);
        store_key_id(again, other);
        assert_memory_equal(id, other, sizeof id);
        store_key_free(again);
    }
    /* A change that broke off here is one that was not made. */
    key_set_passphrase("first", 5);
    again = store_key_load(path, &fault);
    assert_true(store_key_tidy(again, path, &fault));
    store_key_free(again);
    key_set_passphrase("second", 6);
    assert_null(store_key_load(path, &fault));
    /* The first is no way any more. */
    assert_true(store_key_settle(key, path, &fault));
    key_set_passphrase("first", 5);
    assert_null(store_key_load(path, &fault));
    key_set_passphrase("second", 6);
    again = store_key_load(path, &fault);
    assert_non_null(again);
    key_set_passphrase(NULL, 0);
    assert_true(store_key_add_way(again, path, &ways[2], &fault));
    assert_int_equal(protection_of_store_key(path), 1);
    assert_true(store_key_settle(again, path, &fault));
    assert_int_equal(protection_of_store_key(path), 0);
    store_key_free(again);
    again = store_key_load(path, &fault);
    assert_non_null(again);
    store_key_free(again);
    assert_int_equal(chmod(path, 0644), 0);
    assert_null(store_key_load(path, &fault));
    assert_non_null(strstr(fault, "others"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
    store_key_free(key);
    free(path);
}

static void a_damaged_key_file_is_refused(void **state)
{
    char folder[] = "/tmp/p2p-store-key-XXXXXX";
    const char *fault;
    char *bytes;
    size_t size;

    assert_non_null(mkdtemp(folder));
    char *path = xasprintf("%s/store.key", folder);
    struct store_key *key = store_key_make();
    const struct store_key_way ways[] = {{"secret", 6}, {NULL, 0}};

    for (unsigned way = 0; way < 2; way++) {
        assert_true(store_key_save(key, path, &ways[way], &fault));
        assert_int_equal(file_read(path, 4096, true, &bytes, &size), 0);
        key_set_passphrase("secret", 6);
        for (size_t at = 0; at < size; at += way == 0 ? 31 : 1) {
            /* Of a key that lies open, salt and nonce mean nothing. */
            if (way == 1 && at > 8 && at < 8 + 29)
                continue;
            bytes[at] ^= 0x10;
            assert_int_equal(file_replace(path, bytes, size, 0600), 0);
            assert_null(store_key_load(path, &fault));
            bytes[at] ^= 0x10;
        }
        for (size_t cut = 0; cut < size; cut += 7) {
            assert_int_equal(file_replace(path, bytes, cut, 0600), 0);
            assert_null(store_key_load(path, &fault));
        }
        key_set_passphrase(NULL, 0);
        file_free_secret(bytes, size);
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
    store_key_free(key);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_and_lengths_tell_each_other),
        cmocka_unit_test(whatever_is_done_to_it_it_reads_as_a_plain_file_does),
        cmocka_unit_test(any_range_can_be_read),
        cmocka_unit_test(blocks_are_put_into_a_file_of_their_length),
        cmocka_unit_test(a_torn_write_spoils_nothing_else),
        cmocka_unit_test(nothing_of_it_is_on_the_disk),
        cmocka_unit_test(only_its_own_key_opens_a_file),
        cmocka_unit_test(a_key_file_opens_in_each_of_its_ways),
        cmocka_unit_test(a_damaged_key_file_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
