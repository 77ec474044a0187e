/* The store: what is held, dropping, many contents, crashes, full disks. */
#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#undef BLOCK_SIZE /* the kernel has one of its own */
#include <sys/wait.h>

#include "base/clock.h"
#include "base/thread.h"
#include "tests/store_help.h"

#define MANY (3 * 1024 * 1024 + 2 * 16384 + 12345)

static int set_up(void **state)
{
    *state = help_begin();
    return 0;
}

static int tear_down(void **state)
{
    help_end(*state);
    return 0;
}

struct sum {
    uint64_t count, bytes, complete;
};
static void add_up(const struct store_summary *summary, void *arg)
{
    struct sum *sum = arg;
    sum->count++;
    sum->bytes += summary->bytes;
    sum->complete += summary->complete;
}

static struct sum sum_of(struct store *store)
{
    struct sum sum = {0};
    uint64_t held, free_bytes, total;

    store_each(store, add_up, &sum);
    store_space(store, &held, &free_bytes, &total);
    assert_int_equal(held, sum.bytes);
    assert_true(free_bytes <= total);
    return sum;
}

static void what_is_held_is_known_from_memory(void **state)
{
    struct store *store = help_open(*state);
    struct made made = help_make(MANY, 1), one = help_make(1, 2);
    struct store_summary summary;
    int error;

    assert_null(store_find(store, made.root));
    assert_null(store_get(store, made.root, MANY, false, &error));
    assert_int_equal(error, -ENOENT);
    struct content *content = help_get(store, &made, true);
    assert_false(store_summary(store, made.root, &summary));
    help_set_hashes(content, &made);
    assert_int_equal(help_put(content, &made, made.g.blocks - 2, 2), 0);
    assert_true(store_summary(store, made.root, &summary));
    assert_int_equal(summary.bytes, BLOCK_SIZE + MANY % BLOCK_SIZE);
    assert_int_equal(summary.size, MANY);
    assert_false(summary.complete);
    struct content *again = store_find(store, made.root);
    assert_ptr_equal(again, content);
    content_release(again);
    assert_null(store_get(store, made.root, MANY + 1, true, &error));
    assert_int_equal(error, -EINVAL);
    assert_null(store_get(store, made.root, 0, true, &error));
    assert_int_equal(error, -EINVAL);
    content_release(help_fill(store, &one));
    content_release(content);
    store_close(store);

    store = help_open(*state);
    struct sum sum = sum_of(store);
    assert_int_equal(sum.count, 2);
    assert_int_equal(sum.bytes, BLOCK_SIZE + MANY % BLOCK_SIZE + 1);
    assert_int_equal(sum.complete, 1);
    assert_null(store_find(store, made.root)); /* not open */
    content = help_get(store, &made, false);
    assert_int_equal(help_verify(content, &made), 2);
    assert_int_equal(sum_of(store).bytes, BLOCK_SIZE + MANY % BLOCK_SIZE + 1);
    content_release(content);
    store_close(store);
    help_unmake(&made);
    help_unmake(&one);
}

static void dropped_content_goes_with_its_last_reference(void **state)
{
    struct store *store = help_open(*state);
    struct made made = help_make(MANY, 3), other = help_make(5, 4);
    struct store_summary summary;
    int error;

    struct content *content = help_fill(store, &made);
    store_sync(store);
    store_drop(store, made.root);
    store_drop(store, other.root); /* not there: nothing happens */
    assert_null(store_find(store, made.root));
    assert_false(store_summary(store, made.root, &summary));
    assert_null(store_get(store, made.root, MANY, false, &error));
    assert_int_equal(help_verify(content, &made), made.g.blocks); /* its user goes on */
    struct content *again = help_get(store, &made, true);         /* wanted after all */
    assert_ptr_equal(again, content);
    content_release(again);
    assert_true(store_summary(store, made.root, &summary));
    store_drop(store, made.root);
    content_release(content);
    store_sync(store);
    assert_false(help_exists(*state, &made, "data"));
    assert_false(help_exists(*state, &made, "hash"));
    assert_int_equal(sum_of(store).count, 0);

    content_release(help_fill(store, &made)); /* idle */
    store_drop(store, made.root);
    assert_false(help_exists(*state, &made, "part"));
    assert_false(help_exists(*state, &made, "map"));
    content_release(help_fill(store, &made));
    store_close(store);
    store = help_open(*state);
    store_drop(store, made.root); /* closed */
    assert_false(help_exists(*state, &made, "data"));
    assert_int_equal(sum_of(store).count, 0);
    store_close(store);
    help_unmake(&made);
    help_unmake(&other);
}

static void foreign_and_left_over_files_do_no_harm(void **state)
{
    struct store *store = help_open(*state);
    struct made made = help_make(MANY, 5), other = help_make(MANY, 6);
    char *path;

    content_release(help_fill(store, &made));
    struct content *content = help_get(store, &other, true);
    help_set_hashes(content, &other);
    assert_int_equal(help_put(content, &other, 0, 3), 0);
    content_release(content);
    store_close(store);
    path = help_path(*state, &made, "map"); /* as after a crash behind the rename */
    assert_int_equal(file_replace(path, "x", 1, 0600), 0);
    free(path);
    help_damage(*state, &other, "map", 8, 0xff, 4); /* another version */
    path = xasprintf("%s/store/ab", (char *)*state);
    mkdir(path, 0700);
    free(path);
    path = xasprintf("%s/store/ab/README", (char *)*state);
    assert_int_equal(file_replace(path, "x", 1, 0600), 0);
    free(path);

    store = help_open(*state);
    assert_int_equal(sum_of(store).count, 1);
    assert_false(help_exists(*state, &made, "map"));
    assert_false(help_exists(*state, &other, "part"));
    content = help_get(store, &made, false);
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    store_close(store);
    help_unmake(&made);
    help_unmake(&other);
}

static void a_map_that_is_damaged_while_closed_makes_the_content_absent(void **state)
{
    struct store *store = help_open(*state);
    struct made made = help_make(MANY, 7);
    int error;

    struct content *content = help_get(store, &made, true);
    help_set_hashes(content, &made);
    assert_int_equal(help_put(content, &made, 0, 3), 0);
    content_release(content);
    store_close(store);
    store = help_open(*state);
    help_damage(*state, &made, "map", 30, 0xff, 4); /* behind the scan's back */
    assert_null(store_get(store, made.root, MANY, false, &error));
    assert_int_equal(error, -ENOENT);
    assert_false(help_exists(*state, &made, "part"));
    assert_int_equal(sum_of(store).count, 0);
    content_release(help_fill(store, &made));
    store_close(store);
    help_unmake(&made);
}

/* --- many ------------------------------------------------------------------------------------------- */
#define SMALL 20000

static void twenty_thousand_small_contents_need_few_descriptors(void **state)
{
    /* In memory: a disk that others keep busy would make this the slowest of all tests. */
    char *directory = help_begin_in(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    struct store *store = help_open(directory);
    struct content **kept = xcalloc(SMALL, sizeof *kept);
    size_t before = help_count_fds(), most = 0;
    int64_t start = clock_now();

    for (uint64_t i = 0; i < SMALL; i++) {
        struct made made = help_make(100 + i % 50, i);
        struct content *content = help_get(store, &made, true);
        assert_non_null(content);
        assert_int_equal(help_put(content, &made, 0, 1), 0);
        if (i % 4 == 0) /* one in four stays in use */
            kept[i] = content;
        else
            content_release(content);
        if (i % 1000 == 0) {
            size_t fds = help_count_fds() - before;
            most = fds > most ? fds : most;
        }
        help_unmake(&made);
    }
    assert_int_equal(store_sync(store), 0);
    print_message("20,000 contents put and synced in %.1f s, %zu descriptors\n",
                  (double)(clock_now() - start) / 1e9, most);
    assert_true(most <= 600);
    for (uint64_t i = 0; i < SMALL; i += 4) {
        struct made made = help_make(100 + i % 50, i);
        assert_int_equal(help_verify(kept[i], &made), 1);
        content_release(kept[i]);
        help_unmake(&made);
    }
    store_close(store);
    assert_int_equal(help_count_fds(), before - 2); /* the store's directories */
    start = clock_now();
    store = help_open(directory);
    print_message("scanned in %.0f ms\n", (double)(clock_now() - start) / 1e6);
    struct sum sum = sum_of(store);
    assert_int_equal(sum.count, SMALL);
    assert_int_equal(sum.complete, SMALL);
    store_close(store);
    help_end(directory);
    free(kept);
}

struct rush {
    struct store *store;
    struct made *mades;
    uint64_t seed;
};

static void *get_and_release(void *arg)
{
    struct rush *rush = arg;
    uint64_t state = __atomic_add_fetch(&rush->seed, 1, __ATOMIC_RELAXED);
    int error;

    for (int i = 0; i < 2000; i++) {
        uint64_t random = help_random(&state);
        const struct made *made = &rush->mades[random % 16];
        struct content *content;
        if (random % 97 == 0)
            store_sync(rush->store);
        if (random % 31 == 0)
            store_drop(rush->store, made->root);
        content = random % 5 == 0 ? store_find(rush->store, made->root)
                                  : store_get(rush->store, made->root, made->g.size, true, &error);
        if (content == NULL)
            continue;
        const uint8_t *block = made->data;
        int verdict = content_put(content, 0, 1, &block, &error);
        CHECK(verdict == 0);
        CHECK(content_complete(content));
        content_release(content_share(content));
        content_release(content);
    }
    return NULL;
}

static void threads_open_drop_and_sync_the_same_contents(void **state)
{
    struct made mades[16];
    struct rush rush = {.store = help_open(*state), .mades = mades};
    pthread_t threads[4];

    for (uint64_t i = 0; i < 16; i++)
        mades[i] = help_make(1 + i * 1000, i);
    for (int i = 0; i < 4; i++)
        threads[i] = thread_start("getter", get_and_release, &rush);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    sum_of(rush.store);
    store_close(rush.store);
    for (int i = 0; i < 16; i++)
        help_unmake(&mades[i]);
}

/* --- crashes ------------------------------------------------------------------------------------------ */
/* Puts blocks in random order, syncs now and then, never ends by itself. */
static void put_until_killed(const char *directory, const struct made *made, uint64_t seed)
{
    struct store *store = help_open(directory);
    struct content *content = help_get(store, made, true);

    help_set_hashes(content, made);
    for (;;) {
        (void)help_put(content, made, help_random(&seed) % made->g.blocks, 1);
        if (help_random(&seed) % 40 == 0)
            store_sync(store);
    }
}

static void whatever_is_present_after_kill_9_is_right(void **state)
{
    struct made made = help_make(24 << 20, 8);
    uint64_t seed = 17, last = 0;
    int status;

    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) {
            put_until_killed(*state, &made, (uint64_t)round + 1);
            _exit(0);
        }
        usleep((useconds_t)(help_random(&seed) % 30000));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        struct store *store = help_open(*state);
        struct content *content = help_get(store, &made, false);
        if (content != NULL) {
            uint64_t present = help_verify(content, &made);
            assert_true(present >= last); /* what was there before is kept */
            last = present;
            content_release(content);
        }
        store_close(store);
    }
    print_message("%llu of %llu blocks after 40 kills\n", (unsigned long long)last,
                  (unsigned long long)made.g.blocks);
    help_unmake(&made);
}

/* The child syncs some blocks, puts more, and is gone. Power loss is what we then do to the data file: every
 * block that was not synced is what the disk liked. */
static void after_power_loss_unsynced_blocks_count_only_if_they_are_whole(void **state)
{
    struct made made = help_make(MANY, 9);
    int status;

    pid_t child = fork();
    if (child == 0) {
        struct store *store = help_open(*state);
        struct content *content = help_get(store, &made, true);
        help_set_hashes(content, &made);
        for (uint64_t i = 0; i < 40; i += 2)
            CHECK(help_put(content, &made, i, 1) == 0);
        CHECK(content_sync(content) == 0);
        for (uint64_t i = 1; i < 40; i += 2)
            CHECK(help_put(content, &made, i, 1) == 0);
        CHECK(help_put(content, &made, 100, 5) == 0);
        CHECK(help_put(content, &made, made.g.blocks - 1, 1) == 0);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (uint64_t i = 1; i < 20; i += 2)
        help_damage(*state, &made, "part", i * BLOCK_SIZE, 0, BLOCK_SIZE);
    help_damage(*state, &made, "part", 21 * BLOCK_SIZE + 4096, 0, 512);
    help_damage(*state, &made, "part", 102 * BLOCK_SIZE, 0xff, 4096);
    help_damage(*state, &made, "part", MANY - 1, (uint8_t)(made.data[MANY - 1] ^ 1), 1);

    struct store *store = help_open(*state);
    struct store_summary summary;
    assert_true(store_summary(store, made.root, &summary));
    assert_int_equal(summary.bytes, 20 * BLOCK_SIZE); /* only what needs no checking */
    struct content *content = help_get(store, &made, false);
    assert_int_equal(help_verify(content, &made), 20 + 9 + 4);
    assert_false(bitmap_test(content_present(content), 21));
    assert_false(bitmap_test(content_present(content), 102));
    assert_int_equal(sum_of(store).bytes, 33 * BLOCK_SIZE);
    for (uint32_t piece = 0; piece < made.g.pieces; piece++)
        assert_true(content_has_leaves(content, piece));
    help_put_all(content, &made);
    content_release(content);
    store_close(store);
    store = help_open(*state);
    assert_int_equal(sum_of(store).complete, 1);
    store_close(store);
    help_unmake(&made);
}

static void without_its_hashes_an_unsynced_block_is_dropped(void **state)
{
    struct made made = help_make(MANY, 10);
    int status;

    pid_t child = fork();
    if (child == 0) {
        struct store *store = help_open(*state);
        struct content *content = help_get(store, &made, true);
        help_set_hashes(content, &made);
        CHECK(help_put(content, &made, 0, 4) == 0);
        CHECK(content_sync(content) == 0);
        CHECK(help_put(content, &made, 4, 4) == 0);
        CHECK(help_put(content, &made, 20, 4) == 0);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    help_damage(*state, &made, "hash", 4096, 0,
                16 * HASH_SIZE); /* piece 0's did not reach the disk */
    struct store *store = help_open(*state);
    struct content *content = help_get(store, &made, false);
    assert_int_equal(content_present_blocks(content), 8);
    assert_true(bitmap_all(content_present(content), 0, 4));
    assert_true(bitmap_all(content_present(content), 20, 4));
    assert_false(content_has_leaves(content, 0));
    assert_true(content_has_leaves(content, 1));
    assert_int_equal(content_set_leaves(content, 0, made.leaves), 0); /* asked for again */
    assert_int_equal(help_verify(content, &made), 8);
    content_release(content);
    store_close(store);
    help_unmake(&made);
}

static void a_lost_hash_file_can_be_fetched_again(void **state)
{
    struct made made = help_make(MANY, 20);
    struct store *store = help_open(*state);
    struct content *content = help_get(store, &made, true);
    char *path = help_path(*state, &made, "hash");

    help_set_hashes(content, &made);
    assert_int_equal(help_put(content, &made, 0, 16), 0);
    assert_int_equal(help_put(content, &made, 20, 4), 0);
    content_release(content);
    store_close(store);
    assert_int_equal(unlink(path), 0);
    free(path);
    store = help_open(*state);
    content = help_get(store, &made, false);
    assert_int_equal(content_present_blocks(content), 20); /* they were synced */
    assert_false(content_has_piece_layer(content));
    assert_false(content_has_leaves(content, 1));
    help_set_hashes(content, &made);
    assert_int_equal(help_verify(content, &made), 20);
    help_put_all(content, &made);
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    store_close(store);
    help_unmake(&made);
}

/* --- a full disk --------------------------------------------------------------------------------------- */
static void a_full_disk_hurts_only_the_writer(void **state)
{
    struct made made = help_make(8 << 20, 11), first = help_make(1 << 20, 12),
                other = help_make(300000, 13);
    const uint8_t *blocks[16];
    int verdicts[16], error = 0, result = 0;
    uint64_t written = 0;

    if (mount("none", *state, "tmpfs", 0, "size=4m") < 0) {
        print_message("needs root, skipped\n");
        skip();
    }
    struct store *store = help_open(*state);
    struct content *content = help_fill(store, &first);
    assert_int_equal(content_sync(content), 0);
    struct content *big = help_get(store, &made, true);
    help_set_hashes(big, &made);
    for (uint64_t i = 0; i < made.g.blocks && result == 0; i += 16) {
        for (int k = 0; k < 16; k++)
            blocks[k] = made.data + (i + (uint64_t)k) * BLOCK_SIZE;
        result = content_put(big, i, 16, blocks, verdicts);
        for (int k = 0; k < 16; k++) {
            assert_true(verdicts[k] == 0 || verdicts[k] == -ENOSPC);
            assert_int_equal(bitmap_test(content_present(big), i + (uint64_t)k), verdicts[k] == 0);
            written += verdicts[k] == 0;
        }
    }
    assert_int_equal(result, -ENOSPC);
    assert_true(written > 100);
    assert_int_equal(help_verify(big, &made), written);
    assert_int_equal(help_verify(content, &first), first.g.blocks);
    assert_null(store_get(store, other.root, other.g.size, true, &error));
    assert_int_equal(error, -ENOSPC);
    assert_false(help_exists(*state, &other, "part"));
    assert_int_equal(store_sync(store), 0);

    store_drop(store, first.root); /* room again: it goes on */
    content_release(content);
    assert_int_equal(store_sync(store), 0);
    for (uint64_t i = 0; i < made.g.blocks && result == -ENOSPC; i++) {
        if (!bitmap_test(content_present(big), i))
            result = help_put(big, &made, i, 1);
    }
    assert_int_equal(result, 0);
    content_release(big);
    store_close(store);
    assert_int_equal(umount(*state), 0);
    help_unmake(&made);
    help_unmake(&first);
    help_unmake(&other);
}

static void a_directory_of_others_is_refused(void **state)
{
    const char *fault = NULL;
    char *path = xasprintf("%s/store", (char *)*state);

    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, 0755), 0);
    assert_null(store_open(path, &fault));
    assert_non_null(fault);
    assert_int_equal(chmod(path, 0700), 0);
    struct store *store = store_open(path, &fault);
    assert_non_null(store);
    store_close(store);
    free(path);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(what_is_held_is_known_from_memory),
        TEST(dropped_content_goes_with_its_last_reference),
        TEST(foreign_and_left_over_files_do_no_harm),
        TEST(a_map_that_is_damaged_while_closed_makes_the_content_absent),
        TEST(twenty_thousand_small_contents_need_few_descriptors),
        TEST(threads_open_drop_and_sync_the_same_contents),
        TEST(whatever_is_present_after_kill_9_is_right),
        TEST(after_power_loss_unsynced_blocks_count_only_if_they_are_whole),
        TEST(without_its_hashes_an_unsynced_block_is_dropped),
        TEST(a_lost_hash_file_can_be_fetched_again),
        TEST(a_full_disk_hurts_only_the_writer),
        TEST(a_directory_of_others_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
