/* One content: blocks, hashes, damage, many threads. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "base/thread.h"
#include "tests/store_place.h"

#define MANY (3 * 1024 * 1024 + 12345) /* 13 pieces of 256 KiB, a short block at the end */

static void blocks_are_present_once_they_were_put(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 1);
    struct content *content = help_get(place->store, &made, true);
    uint8_t pieces[2];
    uint8_t *whole = xmalloc(made.g.blocks * BLOCK_SIZE);
    int error;

    assert_false(content_has_piece_layer(content));
    help_set_hashes(content, &made);
    assert_int_equal(help_verify(content, &made), 0);
    assert_int_equal(help_put(content, &made, 16, 16), 0);
    assert_int_equal(help_put(content, &made, made.g.blocks - 1, 1), 0);
    assert_int_equal(help_put(content, &made, 17, 2), 0); /* again: no harm */
    assert_int_equal(help_verify(content, &made), 17);
    assert_true(content_has_piece(content, 1));
    content_pieces(content, pieces);
    assert_int_equal(pieces[0], 2);
    assert_int_equal(content_get_many(content, 14, 8, whole, &error), 0);
    assert_int_equal(error, -ENODATA);
    assert_int_equal(content_get_many(content, 28, 8, whole, &error), 4);
    assert_int_equal(error, -ENODATA);
    help_put_all(content, &made);
    assert_true(content_complete(content));
    assert_int_equal(content_get_many(content, 0, (uint32_t)made.g.blocks, whole, &error),
                     made.g.blocks);
    assert_int_equal(error, 0);
    assert_memory_equal(whole, made.data, MANY);
    assert_int_equal(place->came, made.g.blocks);
    assert_int_equal(place->went, 0);
    content_release(content);
    free(whole);
    help_unmake(&made);
}

static void a_block_that_does_not_match_is_not_written(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 2);
    struct content *content = help_get(place->store, &made, true);
    const uint8_t *blocks[4];
    int verdicts[4];
    uint8_t bad[BLOCK_SIZE];

    help_set_hashes(content, &made);
    memcpy(bad, made.data + BLOCK_SIZE, BLOCK_SIZE);
    bad[BLOCK_SIZE - 1] ^= 1;
    for (int i = 0; i < 4; i++)
        blocks[i] = made.data + i * BLOCK_SIZE;
    blocks[1] = bad;
    assert_int_equal(help_put(content, &made, 3, 1), 0);
    assert_int_equal(content_put(content, 0, 4, blocks, verdicts), -EBADMSG);
    assert_int_equal(verdicts[0], 0);
    assert_int_equal(verdicts[1], -EBADMSG);
    assert_int_equal(verdicts[2], 0);
    assert_int_equal(verdicts[3], -EALREADY);
    assert_int_equal(help_verify(content, &made), 3);
    content_release(content);
    help_unmake(&made);
}

static void a_few_blocks_are_put_at_once_if_all_is_at_hand(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 3);
    struct content *content = help_get(place->store, &made, true);
    const uint8_t *blocks[CONTENT_NOW_BLOCKS + 1];
    int verdicts[CONTENT_NOW_BLOCKS + 1], result = 0, data, map;
    uint8_t bad[BLOCK_SIZE] = {1};

    for (int i = 0; i <= CONTENT_NOW_BLOCKS; i++)
        blocks[i] = made.data + i * BLOCK_SIZE;
    assert_false(content_set_leaves_now(content, 0, made.leaves, &result)); /* no layer */
    assert_false(content_put_now(content, 0, 1, blocks, verdicts));
    assert_int_equal(content_set_piece_layer(content, made.layer), 0);
    assert_false(content_put_now(content, 0, 1, blocks, verdicts)); /* no hashes */
    assert_true(content_set_leaves_now(content, 0, made.leaves + HASH_SIZE, &result));
    assert_int_equal(result, -EBADMSG);
    assert_true(content_set_leaves_now(content, 0, made.leaves, &result));
    assert_int_equal(result, 0);
    assert_false(content_put_now(content, 0, CONTENT_NOW_BLOCKS + 1, blocks, verdicts));
    blocks[1] = bad;
    assert_true(content_put_now(content, 0, 3, blocks, verdicts));
    assert_int_equal(verdicts[0], 0);
    assert_int_equal(verdicts[1], -EBADMSG);
    assert_int_equal(verdicts[2], 0);
    assert_int_equal(help_verify(content, &made), 2);
    assert_int_equal(place->came, 2);
    blocks[1] = made.data + BLOCK_SIZE;
    assert_true(content_put_now(content, 0, 2, blocks, verdicts));
    assert_int_equal(verdicts[0], -EALREADY);
    assert_int_equal(verdicts[1], 0);
    content_release(content);
    place_reopen(place);
    content = help_get(place->store, &made, false);
    assert_int_equal(content_lend(content, false, &data, &map), 0); /* the file has its stamp */
    close(data);
    close(map);
    assert_false(content_put_now(content, 3, 1, blocks + 3, verdicts)); /* its hashes are on disk */
    assert_int_equal(help_verify(content, &made), 3);
    content_release(content);
    help_unmake(&made);
}

static void wrong_hashes_are_refused(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 3);
    struct content *content = help_get(place->store, &made, true);
    uint8_t hash[HASH_SIZE];

    assert_int_equal(content_set_leaves(content, 0, made.leaves), -ENODATA);
    assert_int_equal(help_put(content, &made, 0, 1), -ENODATA);
    made.layer[40] ^= 1;
    assert_int_equal(content_set_piece_layer(content, made.layer), -EBADMSG);
    assert_false(content_has_piece_layer(content));
    assert_false(content_piece_hashes(content, 0, 1, hash));
    made.layer[40] ^= 1;
    assert_int_equal(content_set_piece_layer(content, made.layer), 0);
    assert_int_equal(content_set_leaves(content, 1, made.leaves), -EBADMSG);
    assert_false(content_has_leaves(content, 1));
    assert_int_equal(content_block_hashes(content, 16, 1, hash), -ENODATA);
    assert_int_equal(content_set_leaves(content, 1, made.leaves + 16 * HASH_SIZE), 0);
    assert_int_equal(content_block_hashes(content, 17, 1, hash), 0);
    assert_memory_equal(hash, made.leaves + 17 * HASH_SIZE, HASH_SIZE);
    assert_true(content_piece_hashes(content, 12, 1, hash));
    assert_memory_equal(hash, made.layer + 12 * HASH_SIZE, HASH_SIZE);
    content_release(content);
    help_unmake(&made);
}

static void small_files_need_no_hashes_from_elsewhere(void **state)
{
    struct place *place = *state;
    struct made one = help_make(BLOCK_SIZE, 4), two = help_make(BLOCK_SIZE + 1, 5);
    struct content *content = help_get(place->store, &one, true);

    assert_true(content_has_piece_layer(content));
    assert_true(content_has_leaves(content, 0));
    assert_int_equal(help_put(content, &one, 0, 1), 0);
    assert_true(content_complete(content));
    content_release(content);

    content = help_get(place->store, &two, true);
    assert_true(content_has_piece_layer(content));
    assert_false(content_has_leaves(content, 0));
    assert_int_equal(content_set_leaves(content, 0, two.leaves), 0);
    assert_int_equal(help_put(content, &two, 0, 2), 0);
    assert_true(content_complete(content));
    content_release(content);
    help_unmake(&one);
    help_unmake(&two);
}

static void a_complete_content_is_one_file_and_its_hashes(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 6), one = help_make(77, 7);
    struct content *content = help_fill(place->store, &made), *small;
    int data, map;

    small = help_fill(place->store, &one);
    assert_true(help_exists(place->directory, &one, "map"));
    assert_int_equal(store_sync(place->store), 0);
    assert_true(help_exists(place->directory, &made, "data"));
    assert_true(help_exists(place->directory, &made, "hash"));
    assert_false(help_exists(place->directory, &made, "part"));
    assert_false(help_exists(place->directory, &made, "map"));
    assert_true(help_exists(place->directory, &one, "data"));
    assert_false(help_exists(place->directory, &one, "hash"));
    assert_false(help_exists(place->directory, &one, "map"));
    assert_int_equal(content_lend(content, false, &data, &map), 1);
    assert_int_equal(map, -1);
    assert_int_equal(fcntl(data, F_GETFL) & O_ACCMODE, O_RDONLY);
    close(data);
    content_release(content);
    content_release(small);
    place_reopen(place);
    content = help_get(place->store, &made, false);
    assert_true(content_complete(content));
    assert_true(content_has_piece_layer(content));
    assert_true(content_has_leaves(content, 5));
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    help_unmake(&made);
    help_unmake(&one);
}

static void a_map_that_is_lent_stays_the_live_one(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 16);
    struct content *content = help_get(place->store, &made, true);
    int data, map;
    uint8_t bits[4];

    help_set_hashes(content, &made);
    assert_int_equal(content_lend(content, false, &data, &map), 0);
    assert_int_equal(fcntl(map, F_GETFL) & O_ACCMODE, O_RDONLY);
    help_put_all(content, &made);
    assert_int_equal(store_sync(place->store), 0);
    assert_true(content_complete(content));
    assert_true(help_exists(place->directory, &made, "map"));
    assert_int_equal(pread(map, bits, 4, 4096), 4);
    assert_int_equal(bits[0] & bits[3], 0xff);
    close(map);
    close(data);
    assert_int_equal(content_sync(content), 0);
    assert_true(help_exists(place->directory, &made, "data"));
    assert_false(help_exists(place->directory, &made, "map"));
    content_release(content);
    help_unmake(&made);
}

static void a_flipped_byte_is_found_and_can_be_mended(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 8);
    struct content *content = help_fill(place->store, &made);
    uint8_t *many = xmalloc(40 * BLOCK_SIZE);
    int error;

    for (int complete = 0; complete < 2; complete++) { /* with its map still there, and without */
        const char *suffix = complete ? "data" : "part";
        if (complete)
            assert_int_equal(content_sync(content), 0);
        uint8_t right = made.data[20 * BLOCK_SIZE + 5];
        help_damage(place->directory, &made, suffix, 20 * BLOCK_SIZE + 5, right ^ 0x10, 1);
        const uint8_t *bits = content_present(content);
        assert_int_equal(content_get_many(content, 8, 40, many, &error), 12);
        assert_int_equal(error, -EBADMSG);
        assert_false(bitmap_test(bits, 20));
        assert_true(bits == content_present(content));
        assert_false(content_complete(content));
        assert_false(content_has_piece(content, 1));
        assert_int_equal(content_get(content, 20, many), -ENODATA);
        assert_int_equal(place->went, complete + 1);
        assert_true(help_exists(place->directory, &made, "part"));
        assert_true(help_exists(place->directory, &made, "map"));
        assert_false(help_exists(place->directory, &made, "data"));
        assert_int_equal(help_verify(content, &made), made.g.blocks - 1);
        int data, map;
        uint8_t byte;
        assert_int_equal(content_lend(content, false, &data, &map), 0);
        assert_int_equal(pread(map, &byte, 1, 4096 + 2), 1);
        assert_int_equal(byte, 0xef);
        close(map);
        close(data);
        content_release(content);
        place_reopen(place);
        content = help_get(place->store, &made, false);
        assert_int_equal(help_verify(content, &made), made.g.blocks - 1);
        assert_int_equal(help_put(content, &made, 20, 1), 0);
        assert_true(content_complete(content));
        assert_int_equal(help_verify(content, &made), made.g.blocks);
    }
    assert_int_equal(content_sync(content), 0);
    assert_true(help_exists(place->directory, &made, "data"));
    content_release(content);
    free(many);
    help_unmake(&made);
}

static void damaged_hashes_are_made_anew(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 9);
    struct content *content = help_fill(place->store, &made);
    char *path = help_path(place->directory, &made, "hash");

    for (int way = 0; way < 4; way++) {
        content_release(content);
        place_reopen(place);
        if (way == 0)
            unlink(path);
        else if (way == 1) /* the header */
            help_damage(place->directory, &made, "hash", 3, 0, 64);
        else if (way == 2) /* some block hashes */
            help_damage(place->directory, &made, "hash", 4096 + 20 * HASH_SIZE, 7, 3 * HASH_SIZE);
        else /* the layer */
            help_damage(place->directory, &made, "hash", 4096 + made.g.blocks * HASH_SIZE, 7, 32);
        content = help_get(place->store, &made, false);
        assert_non_null(content);
        assert_int_equal(help_verify(content, &made), made.g.blocks);
    }
    content_release(content);
    free(path);
    help_unmake(&made);
}

static void cut(struct place *place, const struct made *made)
{
    char *path = help_path(place->directory, made, "data");

    assert_int_equal(truncate(path, (off_t)made->g.size / 2), 0);
    free(path);
}

static void data_that_gives_another_root_is_set_aside(void **state)
{
    struct place *place = *state;
    struct made mades[3] = {help_make(MANY, 10), help_make(MANY, 15), help_make(500, 11)};
    int error;

    for (int i = 0; i < 3; i++)
        content_release(help_fill(place->store, &mades[i]));
    store_close(place->store);
    cut(place, &mades[0]); /* seen while the store is scanned, or not */
    place->store = help_open(place->directory);
    cut(place, &mades[1]);
    help_damage(place->directory, &mades[2], "data", 100, 0, 10);
    for (int i = 0; i < 3; i++) {
        assert_null(store_get(place->store, mades[i].root, mades[i].g.size, false, &error));
        assert_int_equal(error, -ENOENT);
        assert_true(help_exists(place->directory, &mades[i], "damaged"));
        assert_false(help_exists(place->directory, &mades[i], "data"));
        struct content *content = help_fill(place->store, &mades[i]); /* and can be had again */
        assert_true(content_complete(content));
        content_release(content);
        help_unmake(&mades[i]);
    }
}

/* --- threads ------------------------------------------------------------------------------------- */
struct crowd {
    struct place *place;
    struct made made;
    struct content *content;
    bool done;
    uint64_t seed;
};

static void *put_randomly(void *arg)
{
    struct crowd *crowd = arg;
    const struct made *made = &crowd->made;
    uint64_t state = __atomic_add_fetch(&crowd->seed, 1, __ATOMIC_RELAXED);

    while (!content_complete(crowd->content)) {
        uint64_t first = help_random(&state) % made->g.blocks;
        uint32_t count = 1 + (uint32_t)(help_random(&state) % 8);
        if (count > made->g.piece_blocks - first % made->g.piece_blocks)
            count = made->g.piece_blocks - (uint32_t)(first % made->g.piece_blocks);
        if (count > made->g.blocks - first)
            count = (uint32_t)(made->g.blocks - first);
        (void)help_put(crowd->content, made, first, count);
        if (help_random(&state) % 16 == 0)
            content_sync(crowd->content);
    }
    return NULL;
}

static void *read_all_the_time(void *arg)
{
    struct crowd *crowd = arg;
    const struct made *made = &crowd->made;
    int fd = content_dup_data(crowd->content);
    uint8_t block[BLOCK_SIZE];
    uint64_t state = 99;

    CHECK(fd >= 0);
    while (!__atomic_load_n(&crowd->done, __ATOMIC_ACQUIRE)) {
        uint64_t at = help_random(&state) % made->g.blocks;
        uint32_t size = geometry_block_size(&made->g, at);
        if (!bitmap_test(content_present(crowd->content), at))
            continue;
        CHECK(file_pread_all(fd, block, size, at * BLOCK_SIZE) == 0); /* as p2pfs does it */
        CHECK(memcmp(block, made->data + at * BLOCK_SIZE, size) == 0);
        CHECK(content_get(crowd->content, at, block) == 0);
    }
    close(fd);
    return NULL;
}

static void eight_threads_put_while_another_reads(void **state)
{
    struct place *place = *state;
    struct crowd crowd = {.place = place, .made = help_make(8 << 20, 12)};
    pthread_t threads[8], reader;

    crowd.content = help_get(place->store, &crowd.made, true);
    help_set_hashes(crowd.content, &crowd.made);
    reader = thread_start("reader", read_all_the_time, &crowd);
    for (int i = 0; i < 8; i++)
        threads[i] = thread_start("putter", put_randomly, &crowd);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    __atomic_store_n(&crowd.done, true, __ATOMIC_RELEASE);
    pthread_join(reader, NULL);
    assert_int_equal(place->came, crowd.made.g.blocks);
    assert_int_equal(help_verify(crowd.content, &crowd.made), crowd.made.g.blocks);
    content_release(crowd.content);
    help_unmake(&crowd.made);
}

static void *read_or_mend(void *arg)
{
    struct crowd *crowd = arg;
    const struct made *made = &crowd->made;
    uint64_t state = __atomic_add_fetch(&crowd->seed, 1, __ATOMIC_RELAXED);
    uint8_t block[BLOCK_SIZE];

    for (int i = 0; i < 300; i++) {
        uint64_t at = help_random(&state) % made->g.blocks;
        int result = content_get(crowd->content, at, block);
        if (result == 0)
            CHECK(memcmp(block, made->data + at * BLOCK_SIZE, geometry_block_size(&made->g, at)) ==
                  0);
        else
            help_put(crowd->content, made, at, 1);
        if (i % 50 == 0)
            store_sync(crowd->place->store);
    }
    return NULL;
}

static void damage_under_four_threads_is_mended(void **state)
{
    struct place *place = *state;
    struct crowd crowd = {.place = place, .made = help_make(2 << 20, 13)};
    pthread_t threads[4];
    uint64_t seed = 5;

    crowd.content = help_fill(place->store, &crowd.made);
    assert_int_equal(content_sync(crowd.content), 0);
    for (int i = 0; i < 20; i++)
        help_damage(place->directory, &crowd.made, "data", help_random(&seed) % crowd.made.g.size,
                    0, 1);
    for (int i = 0; i < 4; i++)
        threads[i] = thread_start("reader", read_or_mend, &crowd);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t i = 0; i < crowd.made.g.blocks; i++)
        help_put(crowd.content, &crowd.made, i, 1);
    uint8_t block[BLOCK_SIZE];
    for (uint64_t i = 0; i < crowd.made.g.blocks; i++) {
        if (content_get(crowd.content, i, block) != 0) /* not met above */
            assert_int_equal(help_put(crowd.content, &crowd.made, i, 1), 0);
    }
    assert_int_equal(help_verify(crowd.content, &crowd.made), crowd.made.g.blocks);
    content_release(crowd.content);
    help_unmake(&crowd.made);
}

/* --- no room --------------------------------------------------------------------------------------- */
/* In a process of its own, whose files may not grow beyond 1 MiB. */
static void put_with_little_room(struct place *place, const struct made *made)
{
    struct content *content = help_get(place->store, made, true);
    struct rlimit limit = {1 << 20, 1 << 20};
    const uint8_t *blocks[16];
    int verdicts[16];

    signal(SIGXFSZ, SIG_IGN);
    help_set_hashes(content, made);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(help_put(content, made, 0, 16) == 0);
    for (int i = 0; i < 16; i++)
        blocks[i] = made->data + (64 + i) * BLOCK_SIZE;
    CHECK(content_put(content, 64, 16, blocks, verdicts) == -EFBIG);
    for (int i = 0; i < 16; i++)
        CHECK(verdicts[i] == -EFBIG && !bitmap_test(content_present(content), 64 + i));
    CHECK(content_present_blocks(content) == 16);
    CHECK(help_put(content, made, 16, 16) == 0);
    content_release(content);
}

static void a_file_that_may_not_grow_is_an_error_and_no_bit(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 14);
    int status;

    pid_t child = fork();
    if (child == 0) {
        put_with_little_room(place, &made);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    help_unmake(&made);
}

/* Not every file system can say whether a read would wait. */
static bool can_read_now(const char *path)
{
    uint8_t byte;
    struct iovec vector = {&byte, 1};
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    bool can = preadv2(fd, &vector, 1, 0, RWF_NOWAIT) == 1;
    close(fd);
    return can;
}

static void a_block_is_hashed_once_as_long_as_the_file_is_unchanged(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 15);
    struct content *content = help_fill(place->store, &made);
    uint32_t last = (uint32_t)made.g.blocks - 1;
    uint8_t *whole = xmalloc(made.g.blocks * BLOCK_SIZE);
    int error;

    assert_int_equal(store_sync(place->store), 0);
    char *path = help_path(place->directory, &made, "data");
    assert_false(content_get_now(content, 0, 4, whole));
    assert_int_equal(content_get_many(content, 0, 32, whole, &error), 32);
    assert_int_equal(content_get_many(content, last, 1, whole, &error), 1);
    memset(whole, 0, 32 * BLOCK_SIZE);
    assert_int_equal(content_get_now(content, 4, 28, whole), can_read_now(path));
    if (can_read_now(path))
        assert_memory_equal(whole, made.data + 4 * BLOCK_SIZE, 28 * BLOCK_SIZE);
    assert_int_equal(content_get_now(content, last, 1, whole), can_read_now(path));
    assert_false(content_get_now(content, 31, 2, whole));
    help_damage(place->directory, &made, "data", 20 * BLOCK_SIZE + 5, 0x5a, 1);
    assert_false(content_get_now(content, 4, 1, whole));
    assert_int_equal(content_get_many(content, 16, 8, whole, &error), 4);
    assert_int_equal(error, -EBADMSG);
    content_release(content);
    free(path);
    free(whole);
    help_unmake(&made);
}

static void block_hashes_are_in_memory_once_they_were_needed(void **state)
{
    struct place *place = *state;
    struct made made = help_make(MANY, 16);
    struct content *content = help_fill(place->store, &made);
    uint8_t hashes[16 * HASH_SIZE], again[16 * HASH_SIZE];

    content_release(content);
    place_reopen(place);
    content = help_get(place->store, &made, false);
    assert_false(content_block_hashes_now(content, 0, 16, hashes));
    assert_int_equal(content_block_hashes(content, 0, 16, hashes), 0);
    assert_true(content_block_hashes_now(content, 0, 16, again));
    assert_memory_equal(hashes, again, sizeof hashes);
    assert_false(content_block_hashes_now(content, 16, 16, again));
    content_block_hashes_ahead(content, 3);
    assert_true(content_block_hashes_now(content, 16, 16, again));
    assert_int_equal(content_block_hashes(content, 16, 16, hashes), 0);
    assert_memory_equal(hashes, again, sizeof hashes);
    content_release(content);
    help_unmake(&made);
}

static uint64_t bytes_in_memory(const char *path, uint64_t size)
{
    size_t pages = (size_t)(size + 4095) / 4096, count = 0;
    unsigned char *map = xmalloc(pages);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

    assert_true(fd >= 0 && at != MAP_FAILED && mincore(at, size, map) == 0);
    for (size_t i = 0; i < pages; i++)
        count += map[i] & 1;
    munmap(at, size);
    close(fd);
    free(map);
    return count * 4096;
}

static void count_calls(void *arg)
{
    ++*(unsigned *)arg;
}

static void what_is_fetched_leaves_a_bounded_trace_in_the_page_cache(void **state)
{
    struct place *place = *state;
    uint64_t size = 192u << 20;
    struct made made = help_make(size, 17);
    struct content *content = help_get(place->store, &made, true);
    char *path = help_path(place->directory, &made, "part");
    unsigned told = 0;
    struct statfs system;

    assert_int_equal(statfs(path, &system), 0);
    store_on_written(place->store, count_calls, &told);
    help_set_hashes(content, &made);
    for (uint32_t piece = 0; piece < made.g.pieces; piece++) {
        unsigned before = told;
        assert_int_equal(
            help_put(content, &made, (uint64_t)piece * made.g.piece_blocks, made.g.piece_blocks),
            0);
        if (told != before)
            store_writeback(place->store);
    }
    assert_true(told > 16 && told <= 24); /* every 8 MiB */
    if (system.f_type != TMPFS_MAGIC)
        assert_true(bytes_in_memory(path, size) <= (144u << 20));
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    free(path);
    help_unmake(&made);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, place_set_up, place_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(blocks_are_present_once_they_were_put),
        TEST(a_block_that_does_not_match_is_not_written),
        TEST(a_few_blocks_are_put_at_once_if_all_is_at_hand),
        TEST(wrong_hashes_are_refused),
        TEST(small_files_need_no_hashes_from_elsewhere),
        TEST(a_complete_content_is_one_file_and_its_hashes),
        TEST(a_map_that_is_lent_stays_the_live_one),
        TEST(a_flipped_byte_is_found_and_can_be_mended),
        TEST(damaged_hashes_are_made_anew),
        TEST(data_that_gives_another_root_is_set_aside),
        TEST(eight_threads_put_while_another_reads),
        TEST(damage_under_four_threads_is_mended),
        TEST(a_file_that_may_not_grow_is_an_error_and_no_bit),
        TEST(a_block_is_hashed_once_as_long_as_the_file_is_unchanged),
        TEST(block_hashes_are_in_memory_once_they_were_needed),
        TEST(what_is_fetched_leaves_a_bounded_trace_in_the_page_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
