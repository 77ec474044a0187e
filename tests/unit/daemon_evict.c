/* Taking blocks away: by piece, crash safe, under readers, never what is lent as complete; and the choice of what goes. */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#undef BLOCK_SIZE /* the kernel has one of its own */

#include "base/clock.h"
#include "base/thread.h"
#include "daemon/ingest.h"
#include "daemon/store_private.h"
#include "tests/store_place.h"

#define SIZE (4 * 1024 * 1024 + 12345) /* 17 pieces */

static struct store_victim victim_of(const struct made *made, uint32_t first, uint32_t end)
{
    struct store_victim victim = {.size = made->g.size};
    memcpy(victim.root, made->root, HASH_SIZE);
    if (end > 0)
        victim.pieces = xcalloc(1, bitmap_bytes(made->g.pieces));
    for (uint32_t i = first; i < end; i++)
        bitmap_set(victim.pieces, i);
    return victim;
}

static int evict(struct place *place, const struct made *made, uint32_t first, uint32_t end,
                 uint64_t *freed, bool *gone)
{
    struct store_victim victim = victim_of(made, first, end);
    int result = store_evict(place->store, &victim, freed, gone);
    free(victim.pieces);
    return result;
}

static uint64_t disk_bytes(struct place *place, const struct made *made, const char *suffix)
{
    char *path = help_path(place->directory, made, suffix);
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    free(path);
    return (uint64_t)status.st_blocks * 512;
}

static void pieces_go_and_come_back(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 1);
    struct content *content = help_fill(place->store, &made);
    uint64_t freed, held, space, total;
    uint8_t block[BLOCK_SIZE];
    bool gone;

    assert_int_equal(content_sync(content), 0);
    assert_true(help_exists(place->directory, &made, "data"));
    assert_int_equal(evict(place, &made, 2, 5, &freed, &gone), 0);
    assert_int_equal(freed, 3 << 18);
    assert_false(gone);
    assert_int_equal(place->went, 48);
    assert_false(content_complete(content));
    assert_int_equal(content_get(content, 32, block), -ENODATA);
    assert_int_equal(content_get(content, 31, block), 0);
    assert_int_equal(content_get(content, 80, block), 0);
    assert_true(help_exists(place->directory, &made, "part"));
    assert_true(disk_bytes(place, &made, "part") <= SIZE - (3 << 18) + 65536);
    store_space(place->store, &held, &space, &total);
    assert_int_equal(held, SIZE - (3 << 18));
    /* the last, short one */
    assert_int_equal(evict(place, &made, 16, 17, &freed, &gone), 0);
    assert_int_equal(freed, 12345);
    content_release(content);
    place_reopen(place);
    content = help_get(place->store, &made, false);
    assert_int_equal(help_verify(content, &made), made.g.blocks - 48 - 1);
    help_put_all(content, &made);
    assert_true(content_complete(content));
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    assert_int_equal(content_sync(content), 0);
    assert_true(help_exists(place->directory, &made, "data"));
    content_release(content);
    help_unmake(&made);
}

static void a_content_that_nobody_uses_goes_with_its_files(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 2);
    struct store_summary summary;
    uint64_t freed;
    bool gone;

    content_release(help_fill(place->store, &made));
    assert_int_equal(evict(place, &made, 0, 17, &freed, &gone), 0);
    assert_true(gone);
    assert_int_equal(freed, SIZE);
    assert_false(store_summary(place->store, made.root, &summary));
    assert_false(help_exists(place->directory, &made, "part"));
    assert_false(help_exists(place->directory, &made, "hash"));
    assert_int_equal(evict(place, &made, 0, 0, &freed, &gone), -ENOENT);
    help_unmake(&made);
}

static void what_is_lent_as_complete_stays_over_restarts(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 3);
    struct content *content = help_fill(place->store, &made);
    uint64_t freed;
    int data, map;
    bool gone;

    assert_int_equal(content_sync(content), 0);
    assert_int_equal(content_lend(content, false, &data, &map), 1);
    assert_int_equal(evict(place, &made, 0, 1, &freed, &gone), -EBUSY);
    assert_int_equal(freed, 0);
    content_release(content);
    place_reopen(place);
    content = help_get(place->store, &made, false);
    assert_int_equal(evict(place, &made, 0, 1, &freed, &gone), -EBUSY);
    assert_true(content_complete(content));
    close(data);
    assert_int_equal(evict(place, &made, 0, 1, &freed, &gone), 0);
    assert_int_equal(content_lend(content, false, &data, &map), 0);
    close(data);
    close(map);
    content_release(content);
    help_unmake(&made);
}

/* As p2pfs reads, while blocks come and go. */
struct race {
    struct place *place;
    struct made made;
    struct content *content;
    int data; /* lent while nothing was there, so not as complete */
    const uint8_t *bits;
    bool done;
    uint64_t good, missed;
};

/* fs/content.h's content of the same name is another type: what p2pfs does is done here once more. */
static ssize_t read_as_p2pfs(const struct race *race, uint64_t at, uint8_t *to)
{
    const uint8_t *map = race->bits;
    const uint64_t *generation = (const void *)(map + MAP_GENERATION);
    uint64_t before = __atomic_load_n(generation, __ATOMIC_ACQUIRE);
    uint32_t size = geometry_block_size(&race->made.g, at);

    if (!bitmap_test(map + STORE_HEADER, at))
        return -EAGAIN;
    CHECK(file_pread_all(race->data, to, size, at * BLOCK_SIZE) == 0);

    if (!bitmap_test(map + STORE_HEADER, at) ||
        __atomic_load_n(generation, __ATOMIC_ACQUIRE) != before)
        return -EAGAIN;
    return size;
}

static void *read_on(void *arg)
{
    struct race *race = arg;
    uint8_t block[BLOCK_SIZE];
    uint64_t state = 7;

    while (!__atomic_load_n(&race->done, __ATOMIC_ACQUIRE)) {
        uint64_t at = help_random(&state) % race->made.g.blocks;
        ssize_t size = read_as_p2pfs(race, at, block);
        if (size < 0) {
            __atomic_fetch_add(&race->missed, 1, __ATOMIC_RELAXED);
            continue;
        }
        CHECK(memcmp(block, race->made.data + at * BLOCK_SIZE, (size_t)size) == 0);
        __atomic_fetch_add(&race->good, 1, __ATOMIC_RELAXED);
        int error = content_get(race->content, at, block); /* as the server does */
        CHECK(error == 0 || error == -ENODATA);
    }
    return NULL;
}

static void *put_on(void *arg)
{
    struct race *race = arg;
    const struct made *made = &race->made;
    uint64_t state = 11;

    while (!__atomic_load_n(&race->done, __ATOMIC_ACQUIRE)) {
        uint64_t first;
        uint32_t count;
        geometry_piece(&made->g, (uint32_t)(help_random(&state) % made->g.pieces), &first, &count);
        (void)help_put(race->content, made, first, count);
    }
    return NULL;
}

static void nobody_reads_a_wrong_byte_while_blocks_come_and_go(void **state)
{
    struct place *place = *state;
    struct race race = {.place = place, .made = help_make(SIZE, 4)};
    uint64_t seed = 5, freed;
    bool gone;
    int map;

    race.content = help_get(place->store, &race.made, true);
    help_set_hashes(race.content, &race.made);
    assert_int_equal(content_lend(race.content, true, &race.data, &map), 0);
    race.bits = mmap(NULL, STORE_HEADER + 4096, PROT_READ, MAP_SHARED, map, 0);
    assert_true(race.bits != MAP_FAILED);
    close(map);
    pthread_t readers[2], writers[2];
    for (int i = 0; i < 2; i++) {
        readers[i] = thread_start("reader", read_on, &race);
        writers[i] = thread_start("writer", put_on, &race);
    }
    for (int i = 0; i < 200; i++) {
        uint32_t first = (uint32_t)(help_random(&seed) % race.made.g.pieces);
        uint32_t end = first + 1 + (uint32_t)(help_random(&seed) % (race.made.g.pieces - first));
        assert_int_equal(evict(place, &race.made, first, end, &freed, &gone), 0);
        if (i % 10 == 0)
            assert_int_equal(store_sync(place->store), 0);
    }
    __atomic_store_n(&race.done, true, __ATOMIC_RELEASE);
    for (int i = 0; i < 2; i++) {
        pthread_join(readers[i], NULL);
        pthread_join(writers[i], NULL);
    }
    munmap((void *)(uintptr_t)race.bits, STORE_HEADER + 4096);
    close(race.data);
    assert_true(race.good > 0);
    uint64_t present = content_present_blocks(race.content);
    assert_int_equal(help_verify(race.content, &race.made), present);
    content_release(race.content);
    place_reopen(place);
    race.content = help_get(place->store, &race.made, false);
    assert_int_equal(help_verify(race.content, &race.made), present);
    content_release(race.content);
    help_unmake(&race.made);
}

static void evict_until_killed(const char *directory, const struct made *made, uint64_t seed)
{
    struct place place = {.directory = (char *)(uintptr_t)directory};
    uint64_t freed;
    bool gone;

    place_open(&place);
    struct content *content = help_get(place.store, made, true);
    help_set_hashes(content, made);
    for (;;) {
        uint32_t piece = (uint32_t)(help_random(&seed) % made->g.pieces), count;
        uint64_t first;
        geometry_piece(&made->g, piece, &first, &count);
        (void)help_put(content, made, first, count);
        piece = (uint32_t)(help_random(&seed) % made->g.pieces);
        evict(&place, made, piece, piece + 1, &freed, &gone);
        if (help_random(&seed) % 8 == 0)
            store_sync(place.store);
    }
}

static void a_kill_amid_an_eviction_leaves_only_right_blocks(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 6);

    for (uint64_t round = 1; round <= 10; round++) {
        pid_t child = fork();
        if (child == 0)
            evict_until_killed(place->directory, &made, round);
        usleep(20000 + 7000 * (useconds_t)round);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        place_reopen(place);
        int error;
        struct content *content = store_get(place->store, made.root, made.g.size, false, &error);
        if (content != NULL)
            assert_int_equal(help_verify(content, &made), content_present_blocks(content));
        content_release(content);
    }
    help_unmake(&made);
}

static void space_that_an_eviction_did_not_come_to_is_given_back(void **state)
{
    struct place *place = *state;
    struct made made = help_make(SIZE, 7);
    struct content *content = help_get(place->store, &made, true);

    help_set_hashes(content, &made);
    help_put_all(content, &made);
    int data, map;
    assert_int_equal(content_lend(content, false, &data, &map), 1);
    close(data);
    /* as a crash between bits and holes leaves it */
    store_sync(place->store);
    uint64_t freed;
    bool gone;
    assert_int_equal(evict(place, &made, 0, 1, &freed, &gone), 0);
    content_release(content);
    store_close(place->store);
    uint8_t none[BLOCK_SIZE] = {1};
    help_damage(place->directory, &made, "part", 0, 1, sizeof none);
    help_damage(place->directory, &made, "map", MAP_EVICTING, 1, 1);
    uint64_t before = disk_bytes(place, &made, "part");
    place_open(place);
    content = help_get(place->store, &made, false);
    assert_true(disk_bytes(place, &made, "part") < before);
    assert_int_equal(help_verify(content, &made), made.g.blocks - 16);
    content_release(content);
    help_unmake(&made);
}

static size_t choose(struct place *place, uint64_t most, const struct made *kept, uint64_t *cached,
                     struct store_victim **victims)
{
    uint8_t roots[1][HASH_SIZE];

    if (kept != NULL)
        memcpy(roots[0], kept->root, HASH_SIZE);
    return store_choose(place->store, most, roots, kept != NULL, cached, victims);
}

static void set_used(struct content *content, uint32_t from, uint32_t end, uint32_t used)
{
    for (uint32_t i = from; i < end; i++)
        content->used[i] = used;
}

static void the_least_recently_read_goes_first(void **state)
{
    struct place *place = *state;
    struct made a = help_make(SIZE, 8), b = help_make(SIZE, 9), c = help_make(SIZE, 10);
    struct content *one = help_fill(place->store, &a), *two = help_fill(place->store, &b);
    struct store_victim *victims;
    uint64_t cached;
    size_t count;

    set_used(one, 0, 17, USED_READ | 1000);
    set_used(two, 0, 17, USED_READ | 2000);
    set_used(one, 3, 5, USED_READ | 3000);
    assert_int_equal(choose(place, 2 * SIZE, NULL, &cached, &victims), 0);
    assert_int_equal(cached, 2 * SIZE);
    store_victims_free(victims, 0);
    count = choose(place, 2 * SIZE - (10 << 18), NULL, &cached, &victims);
    assert_int_equal(count, 1);
    assert_memory_equal(victims[0].root, a.root, HASH_SIZE);
    for (uint32_t i = 0; i < 17; i++)
        assert_int_equal(bitmap_test(victims[0].pieces, i), i < 12 && i != 3 && i != 4);
    store_victims_free(victims, count);
    /* Read once today does not push out what was read again yesterday. */
    set_used(one, 0, 17, USED_READ | USED_AGAIN | 1000);
    count = choose(place, 2 * SIZE - (10 << 18), NULL, &cached, &victims);
    assert_int_equal(count, 1);
    assert_memory_equal(victims[0].root, b.root, HASH_SIZE);
    store_victims_free(victims, count);
    /* What is pinned, and what this member put in, does not count and does not go. */
    count = choose(place, 0, &b, &cached, &victims);
    assert_int_equal(cached, SIZE);
    assert_int_equal(count, 1);
    assert_memory_equal(victims[0].root, a.root, HASH_SIZE);
    store_victims_free(victims, count);
    int error;
    struct ingest *ingest = ingest_new(place->store, NULL, 0, &error);
    int fd = ingest_dup(ingest);
    assert_int_equal(file_pwrite_all(fd, c.data, c.g.size, 0), 0);
    close(fd);
    ingest_wrote(ingest, 0, c.g.size);
    content_release(ingest_seal(ingest, c.g.size, &error));
    ingest_drop(ingest);
    assert_int_equal(error, 0);
    for (int i = 0; i < 2; i++) {
        struct store_summary summary;
        assert_true(store_summary(place->store, c.root, &summary));
        assert_true(summary.own);
        count = choose(place, 0, &b, &cached, &victims);
        assert_int_equal(cached, SIZE);
        store_victims_free(victims, count);
        content_release(one);
        content_release(two);
        place_reopen(place);
        one = help_get(place->store, &a, false);
        two = help_get(place->store, &b, false);
    }
    content_release(one);
    content_release(two);
    help_unmake(&a);
    help_unmake(&b);
    help_unmake(&c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, place_set_up, place_tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pieces_go_and_come_back),
        TEST(a_content_that_nobody_uses_goes_with_its_files),
        TEST(what_is_lent_as_complete_stays_over_restarts),
        TEST(nobody_reads_a_wrong_byte_while_blocks_come_and_go),
        TEST(a_kill_amid_an_eviction_leaves_only_right_blocks),
        TEST(space_that_an_eviction_did_not_come_to_is_given_back),
        TEST(the_least_recently_read_goes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
