/* An encrypted store: what daemon_content.c, daemon_ingest.c and daemon_evict.c hold of a plain one, in short, and what is on
 * the disk. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/store_help.h"

#include "crypto/file_cipher.h"
#include "crypto/store_key.h"
#include "daemon/ingest.h"

#define SIZE (3 * (UINT64_C(256) << 10) + 5 * BLOCK_SIZE + 1001) /* three pieces and a bit */

struct place {
    char *directory, *key;
    struct store *store;
};

static void open_store(struct place *place)
{
    const char *fault = "";
    char *path = xasprintf("%s/store", place->directory);
    struct store_key *key = store_key_load(place->key, &fault);

    assert_non_null(key);
    place->store = store_open_encrypted(path, key, &fault);
    assert_non_null(place->store);
    free(path);
}

static void reopen(struct place *place)
{
    store_close(place->store);
    open_store(place);
}

static int set_up(void **state)
{
    struct place *place = xcalloc(1, sizeof *place);
    struct store_key *key = store_key_make();
    const struct store_key_way way = {NULL, 0};
    const char *fault;

    place->directory = help_begin();
    place->key = xasprintf("%s/store.key", place->directory);
    assert_true(store_key_save(key, place->key, &way, &fault));
    store_key_free(key);
    open_store(place);
    *state = place;
    return 0;
}

static int tear_down(void **state)
{
    struct place *place = *state;

    store_close(place->store);
    help_end(place->directory);
    free(place->key);
    free(place);
    return 0;
}

/* Some bytes of the content stand in its file as they are. */
static bool is_readable(const struct place *place, const struct made *made, const char *suffix)
{
    char *path = help_path(place->directory, made, suffix), *bytes;
    size_t size;

    assert_int_equal(file_read(path, SIZE + 65536, false, &bytes, &size), 0);
    assert_int_equal(size, file_cipher_length(true, made->g.size));
    bool found = false;
    for (uint64_t at = 0; at < made->g.size && !found; at += 4096)
        found = memmem(bytes, size, made->data + at, 16) != NULL;
    free(bytes);
    free(path);
    return found;
}

/* As p2pfs reads: the descriptor, the key. */
static void read_as_lent(const struct content *content, const struct made *made)
{
    uint8_t key[FILE_CIPHER_KEY], *got = xmalloc(made->g.size);
    int data, map;

    assert_true(content_lend(content, true, &data, &map) >= 0);
    assert_true(content_key(content, key));
    struct file_cipher *cipher = file_cipher_of_key(key);
    assert_int_equal(file_cipher_pread_all(cipher, data, got, made->g.size, 0), 0);
    assert_memory_equal(got, made->data, made->g.size);
    file_cipher_free(cipher);
    free(got);
    close(data);
    if (map >= 0)
        close(map);
}

static void blocks_are_encrypted_on_the_disk_and_nowhere_else(void **state)
{
    struct place *place = *state;
    const uint64_t sizes[] = {SIZE, 1, 15, 16, 17, 4096, BLOCK_SIZE, BLOCK_SIZE + 8};

    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct made made = help_make(sizes[i], i + 1);
        struct content *content = help_fill(place->store, &made);

        assert_int_equal(help_verify(content, &made), made.g.blocks);
        read_as_lent(content, &made);
        if (made.g.size >= 16)
            assert_false(is_readable(place, &made, "part"));
        assert_int_equal(content_sync(content), 0);
        content_release(content);
        reopen(place);
        content = help_get(place->store, &made, false);
        assert_non_null(content);
        assert_true(content_complete(content));
        assert_int_equal(help_verify(content, &made), made.g.blocks);
        read_as_lent(content, &made);
        if (made.g.size >= 16)
            assert_false(is_readable(place, &made, "data"));
        struct store_summary summary;
        assert_true(store_summary(place->store, made.root, &summary));
        assert_int_equal(summary.size, made.g.size);
        content_release(content);
        help_unmake(&made);
    }
}

static void what_was_put_counts_again_after_an_unclean_end(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 20);
    struct content *content = help_get(place->store, &made, true);

    help_set_hashes(content, &made);
    assert_int_equal(help_put(content, &made, 3, 7), 0);
    assert_int_equal(content_sync(content), 0);
    content_release(content);
    reopen(place);
    content = help_get(place->store, &made, false);
    assert_int_equal(help_verify(content, &made), 7);
    help_put_all(content, &made);
    read_as_lent(content, &made);
    content_release(content);
    help_unmake(&made);
}

static void pieces_that_are_taken_away_are_gone(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 21);
    struct content *content = help_fill(place->store, &made);
    uint8_t pieces[1] = {0x0a}; /* the second, and the last with its end inside 16 bytes */
    struct store_victim victim = {.size = SIZE, .pieces = pieces};
    uint64_t freed;
    bool gone;

    assert_int_equal(content_sync(content), 0);
    memcpy(victim.root, made.root, HASH_SIZE);
    assert_int_equal(store_evict(place->store, &victim, &freed, &gone), 0);
    assert_false(gone);
    assert_int_equal(help_verify(content, &made), made.g.blocks - 16 - 6);
    content_release(content);
    reopen(place);
    content = help_get(place->store, &made, false);
    assert_int_equal(help_verify(content, &made), made.g.blocks - 16 - 6);
    help_put_all(content, &made);
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    help_unmake(&made);
}

static void a_damaged_header_costs_the_content_and_nothing_else(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 22), other = help_make(5000, 23);
    struct content *content = help_fill(place->store, &made), *second;

    second = help_fill(place->store, &other);
    assert_int_equal(store_sync(place->store), 0);
    content_release(content);
    content_release(second);
    store_close(place->store);
    help_damage(place->directory, &made, "data", 8, 0xa5, 4);
    open_store(place);
    assert_null(help_get(place->store, &made, false));
    assert_true(help_exists(place->directory, &made, "damaged"));
    second = help_get(place->store, &other, false);
    assert_int_equal(help_verify(second, &other), other.g.blocks);
    content_release(second);
    help_unmake(&made);
    help_unmake(&other);
}

/* --- working files ---- */

/* As p2pfs writes: by its own cipher, then it tells. */
static void write_at(struct ingest *ingest, const uint8_t *data, uint64_t offset, uint64_t size)
{
    uint8_t key[FILE_CIPHER_KEY];
    int fd = ingest_dup(ingest);

    assert_true(ingest_key(ingest, key));
    struct file_cipher *cipher = file_cipher_of_key(key);
    assert_int_equal(file_cipher_pwrite_all(cipher, fd, data + offset, size, offset), 0);
    file_cipher_free(cipher);
    close(fd);
    ingest_wrote(ingest, offset, size);
}

static struct content *seal(struct ingest *ingest, const struct made *made)
{
    int error = -1;
    struct content *content = ingest_seal(ingest, made->g.size, &error);

    assert_non_null(content);
    assert_int_equal(error, 0);
    assert_memory_equal(content_root(content), made->root, HASH_SIZE);
    assert_int_equal(help_verify(content, made), made->g.blocks);
    ingest_drop(ingest);
    return content;
}

static void a_working_file_is_sealed_as_it_is(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 30);
    int error;
    struct ingest *ingest = ingest_new(place->store, NULL, 0, &error);

    assert_int_equal(ingest_size(ingest), 0);
    for (uint64_t at = 0, step; at < SIZE; at += step) {
        step = SIZE - at < 100003 ? SIZE - at : 100003;
        write_at(ingest, made.data, at, step);
        assert_int_equal(ingest_size(ingest), at + step);
        while (ingest_hash_due(ingest))
            assert_int_equal(ingest_hash(ingest, 1 << 20), 0);
    }
    struct content *content = seal(ingest, &made);
    read_as_lent(content, &made);
    assert_false(is_readable(place, &made, "data"));
    content_release(content);
    help_unmake(&made);
}

static void a_new_version_begins_with_the_old_one(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 31);
    struct content *content = help_fill(place->store, &made);
    const uint64_t keeps[] = {1, 16, BLOCK_SIZE + 5, SIZE};
    int error;

    assert_int_equal(content_sync(content), 0);
    for (unsigned i = 0; i < sizeof keeps / sizeof *keeps; i++) {
        struct ingest *ingest = ingest_new(place->store, content, keeps[i], &error);
        assert_non_null(ingest);
        assert_int_equal(ingest_size(ingest), keeps[i]);
        struct made cut = {.data = xmalloc(keeps[i] + 8)};
        memcpy(cut.data, made.data, keeps[i]);
        cut.data[0] ^= 1;
        help_hash(&cut, keeps[i]);
        write_at(ingest, cut.data, 0, 1);
        content_release(seal(ingest, &cut));
        help_unmake(&cut);
    }
    content_release(content);
    help_unmake(&made);
}

static void a_working_file_is_found_again(void **state)
{
    struct place *place = *state;
    struct made made = help_make(12345, 32);
    int error;
    struct ingest *ingest = ingest_new(place->store, NULL, 0, &error);
    uint64_t number = ingest_number(ingest);

    write_at(ingest, made.data, 0, 10000);
    assert_int_equal(ingest_mark(ingest), 0);
    ingest_free(ingest);
    reopen(place);
    ingest = ingest_reopen(place->store, number, &error);
    assert_non_null(ingest);
    assert_int_equal(ingest_size(ingest), 10000);
    write_at(ingest, made.data, 10000, 2345);
    content_release(seal(ingest, &made));
    help_unmake(&made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blocks_are_encrypted_on_the_disk_and_nowhere_else, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_was_put_counts_again_after_an_unclean_end, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(pieces_that_are_taken_away_are_gone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_header_costs_the_content_and_nothing_else, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_working_file_is_sealed_as_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_version_begins_with_the_old_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_working_file_is_found_again, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
