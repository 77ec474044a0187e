/* Copying in: hashing behind the writer, sealing, restarts. */
#include <errno.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#undef BLOCK_SIZE /* the kernel has one of its own */
#include <sys/wait.h>

#include "base/thread.h"
#include "daemon/ingest.h"
#include "tests/store_place.h"

static struct ingest *begin(struct place *place)
{
    int error;
    struct ingest *ingest = ingest_new(place->store, NULL, 0, &error);

    assert_non_null(ingest);
    return ingest;
}

/* As p2pfs does: writes to the descriptor, then tells. */
static void put(struct ingest *ingest, const uint8_t *data, uint64_t offset, uint64_t size)
{
    int fd = ingest_dup(ingest);

    assert_true(fd >= 0);
    assert_int_equal(file_pwrite_all(fd, data + offset, size, offset), 0);
    close(fd);
    ingest_wrote(ingest, offset, size);
}

static void hash_along(struct ingest *ingest)
{
    while (ingest_hash_due(ingest))
        assert_int_equal(ingest_hash(ingest, 1 << 20), 0);
}

/* Files in incoming/. */
static size_t count_incoming(struct place *place)
{
    char *path = xasprintf("%s/store/incoming", place->directory);
    DIR *directory = opendir(path);
    size_t count = 0;

    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    free(path);
    return count - 2;
}

static void seal_right(struct place *place, struct ingest *ingest, const struct made *made)
{
    int error = -1;
    struct content *content = ingest_seal(ingest, made->g.size, &error);

    assert_non_null(content);
    assert_int_equal(error, 0);
    assert_memory_equal(content_root(content), made->root, HASH_SIZE);
    assert_true(content_complete(content));
    assert_int_equal(help_verify(content, made), made->g.blocks);
    content_release(content);
    ingest_drop(ingest);
    assert_int_equal(count_incoming(place), 0);
}

static void every_size_gives_its_root(void **state)
{
    static const uint64_t sizes[] = {1,      16383,  16384,   16385,   262144,         262145,
                                     300000, 524288, 1048575, 5000001, (16 << 20) - 1, 18 << 20};
    struct place *place = *state;
    int error = -1;

    struct ingest *empty = begin(place);
    assert_null(ingest_seal(empty, 0, &error));
    assert_int_equal(error, 0);
    assert_int_equal(count_incoming(place), 1); /* until its publication is durable */
    ingest_drop(empty);
    assert_int_equal(count_incoming(place), 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct made made = help_make(sizes[i], i);
        struct ingest *ingest = begin(place);
        uint64_t seed = i + 1, step;
        place->came = 0;
        for (uint64_t at = 0; at < sizes[i]; at += step) {
            step = 1 + help_random(&seed) % 300000;
            step = step < sizes[i] - at ? step : sizes[i] - at;
            put(ingest, made.data, at, step);
            hash_along(ingest);
        }
        seal_right(place, ingest, &made);
        assert_int_equal(place->came, made.g.blocks);
        assert_int_equal(help_exists(place->directory, &made, "hash"), made.g.blocks > 1);
        assert_true(help_exists(place->directory, &made, "data"));
        assert_false(help_exists(place->directory, &made, "map"));
        help_unmake(&made);
    }
}

static void a_sealed_file_can_be_read_after_a_restart_and_by_its_writer(void **state)
{
    struct place *place = *state;
    struct made made = help_make(5000001, 2);
    struct ingest *ingest = begin(place);
    int fd = ingest_dup(ingest);
    uint8_t byte;

    put(ingest, made.data, 0, made.g.size);
    seal_right(place, ingest, &made);
    assert_int_equal(pread(fd, &byte, 1, 5000000), 1);
    assert_int_equal(byte, made.data[5000000]);
    close(fd);
    place_reopen(place);
    struct content *content = help_get(place->store, &made, false);
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    content_release(content);
    help_unmake(&made);
}

static void blocks_that_are_written_again_are_hashed_again(void **state)
{
    struct place *place = *state;
    struct made made = help_make(20 << 20, 3), old = help_make(20 << 20, 4);
    struct ingest *ingest = begin(place);
    uint64_t seed = 9;

    put(ingest, old.data, 0, old.g.size);
    hash_along(ingest);
    assert_int_equal(ingest_hash(ingest, UINT64_MAX), 0);
    memcpy(made.data, old.data, made.g.size); /* then 50 changes anywhere */
    for (int i = 0; i < 50; i++) {
        uint64_t at = help_random(&seed) % (made.g.size - 40000);
        uint64_t size = 1 + help_random(&seed) % 40000;
        memset(made.data + at, i, size);
        put(ingest, made.data, at, size);
    }
    free(made.leaves);
    free(made.layer);
    help_hash(&made, made.g.size);
    seal_right(place, ingest, &made);
    help_unmake(&made);
    help_unmake(&old);
}

static void writes_in_any_order_give_the_same(void **state)
{
    struct place *place = *state;
    struct made made = help_make(6 << 20, 5);
    uint32_t order[1536]; /* of 4096 bytes each */
    uint64_t seed = 10;

    for (int round = 0; round < 3; round++) {
        struct ingest *ingest = begin(place);
        for (uint32_t i = 0; i < 1536; i++)
            order[i] = i;
        for (uint32_t i = 0; i + 1 < 1536;
             i++) { /* near each other, then anywhere, then backwards */
            uint32_t far = round == 0 ? 20 : 1536;
            uint32_t k = i + (uint32_t)(help_random(&seed) % (far < 1536 - i ? far : 1536 - i));
            uint32_t swap = order[i];
            order[i] = round == 2 ? 1535 - i : order[k];
            if (round != 2)
                order[k] = swap;
        }
        order[1535] = round == 2 ? 0 : order[1535];
        for (uint32_t i = 0; i < 1536; i++) {
            put(ingest, made.data, order[i] * UINT64_C(4096), 4096);
            hash_along(ingest);
        }
        seal_right(place, ingest, &made);
    }
    help_unmake(&made);
}

static void sealing_sets_the_length(void **state)
{
    struct place *place = *state;
    struct made whole = help_make(4 << 20, 6), shorter, longer;
    struct ingest *ingest = begin(place);

    put(ingest, whole.data, 0, whole.g.size);
    hash_along(ingest);
    shorter = help_make(3000000, 6); /* the same bytes, fewer */
    seal_right(place, ingest, &shorter);
    help_unmake(&shorter);

    longer = help_make(8 << 20, 7);
    memcpy(longer.data, whole.data, whole.g.size);
    memset(longer.data + whole.g.size, 0, whole.g.size);
    free(longer.leaves);
    free(longer.layer);
    help_hash(&longer, 8 << 20);
    ingest = begin(place);
    put(ingest, whole.data, 0, whole.g.size);
    hash_along(ingest);
    seal_right(place, ingest, &longer);
    help_unmake(&longer);

    /* Cut by the writer and written further, between hashing. */
    ingest = begin(place);
    put(ingest, whole.data, 0, whole.g.size);
    hash_along(ingest);
    int fd = ingest_dup(ingest);
    assert_int_equal(ftruncate(fd, 1000), 0);
    close(fd);
    ingest_wrote(ingest, 1000, whole.g.size - 1000);
    assert_int_equal(ingest_hash(ingest, UINT64_MAX), 0);
    shorter = help_make(2 << 20, 8);
    put(ingest, shorter.data, 0, shorter.g.size);
    seal_right(place, ingest, &shorter);
    help_unmake(&shorter);
    help_unmake(&whole);
}

static void the_same_content_twice_is_kept_once(void **state)
{
    struct place *place = *state;
    struct made made = help_make(3000000, 11);
    struct store_summary summary;
    int error;

    for (int i = 0; i < 2; i++) {
        struct ingest *ingest = begin(place);
        put(ingest, made.data, 0, made.g.size);
        seal_right(place, ingest, &made);
        assert_int_equal(place->came, made.g.blocks);
    }
    assert_true(store_summary(place->store, made.root, &summary));
    assert_true(summary.complete);

    /* One that was dropped and is still in use stays. */
    struct content *content = help_get(place->store, &made, false);
    store_drop(place->store, made.root);
    struct ingest *ingest = begin(place);
    put(ingest, made.data, 0, made.g.size);
    struct content *sealed = ingest_seal(ingest, made.g.size, &error);
    assert_ptr_equal(sealed, content);
    assert_int_equal(count_incoming(place),
                     1); /* the store has another file: this one is not given up before time */
    ingest_drop(ingest);
    content_release(sealed);
    content_release(content);
    store_sync(place->store);
    assert_true(store_summary(place->store, made.root, &summary));
    help_unmake(&made);
}

static void an_incomplete_content_is_completed(void **state)
{
    struct place *place = *state;
    struct made made = help_make(3000000, 12);
    struct content *content = help_get(place->store, &made, true);

    assert_int_equal(content_set_piece_layer(content, made.layer), 0);
    assert_int_equal(content_set_leaves(content, 1, made.leaves + 16 * HASH_SIZE), 0);
    assert_int_equal(help_put(content, &made, 18, 7), 0);
    int fd = content_dup_data(content); /* p2pfs's */
    struct ingest *ingest = begin(place);
    put(ingest, made.data, 0, made.g.size);
    seal_right(place, ingest, &made);
    assert_true(content_complete(content));
    assert_int_equal(place->came, made.g.blocks);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, 2999999), 1);
    assert_int_equal(byte, made.data[2999999]);
    close(fd);
    assert_true(help_exists(place->directory, &made, "data"));
    content_release(content);
    help_unmake(&made);
}

static void a_new_version_starts_from_the_old(void **state)
{
    struct place *place = *state;
    struct made made = help_make(20000000, 13), next = help_make(20500000, 14);
    struct ingest *ingest = begin(place);
    int error;

    put(ingest, made.data, 0, made.g.size);
    struct content *content = ingest_seal(ingest, made.g.size, &error);
    assert_non_null(content);
    ingest_drop(ingest);
    static const uint64_t keeps[] = {1, BLOCK_SIZE, 1000000, 19999999, 20000000};
    for (size_t i = 0; i < sizeof keeps / sizeof *keeps; i++) {
        ingest = ingest_new(place->store, content, keeps[i], &error);
        assert_non_null(ingest);
        memcpy(next.data, made.data, keeps[i]);
        free(next.leaves);
        free(next.layer);
        help_hash(&next, 20500000);
        put(ingest, next.data, keeps[i], next.g.size - keeps[i]);
        hash_along(ingest);
        seal_right(place, ingest, &next);
    }
    assert_int_equal(help_verify(content, &made), made.g.blocks);
    assert_null(ingest_new(place->store, content, made.g.size + 1, &error));
    assert_int_equal(error, -EINVAL);
    assert_int_equal(count_incoming(place), 0);
    content_release(content);
    help_unmake(&made);
    help_unmake(&next);
}

/* --- restarts ------------------------------------------------------------------------------------ */
struct orphans {
    uint64_t number, size;
    unsigned count;
};
static void note_orphan(void *arg, uint64_t number, uint64_t size)
{
    struct orphans *orphans = arg;
    orphans->number = number;
    orphans->size = size;
    orphans->count++;
}

struct survivors {
    uint64_t held; /* number of the file whose descriptor lives on */
    pid_t holder;
};

/* p2pfs's part: a process that holds nothing but this descriptor. */
static pid_t hold(int fd)
{
    int ready[2];
    char none;

    CHECK(pipe2(ready, O_CLOEXEC) == 0);
    pid_t holder = fork();
    if (holder == 0) {
        dup2(fd, 9); /* all others are close-on-exec */
        execlp("sleep", "sleep", "60", (char *)NULL);
        _exit(1);
    }
    close(ready[1]);
    CHECK(read(ready[0], &none, 1) == 0);
    close(ready[0]);
    return holder;
}

/* A daemon that dies while three working files are being written: one marked, one whose descriptor lives on, one that
 * nobody knows any more. */
static void run_and_die(const char *directory, const struct made *made, int channel)
{
    struct store *store = help_open(directory);
    struct ingest *files[3];
    int error;

    for (int i = 0; i < 3; i++) {
        files[i] = ingest_new(store, NULL, 0, &error);
        CHECK(files[i] != NULL);
        put(files[i], made->data, 0, made->g.size);
        hash_along(files[i]);
    }
    CHECK(ingest_mark(files[0]) == 0);
    CHECK(ingest_mark(files[0]) == 0);
    struct survivors survivors = {.held = ingest_number(files[1]),
                                  .holder = hold(ingest_dup(files[1]))};
    CHECK(write(channel, &survivors, sizeof survivors) == sizeof survivors);
    kill(getpid(), SIGKILL);
}

static void after_a_restart_working_files_are_kept_adopted_or_deleted(void **state)
{
    struct place *place = *state;
    struct made made = help_make(20 << 20, 15);
    struct orphans orphans = {0};
    struct survivors survivors;
    int channel[2], status, error;

    store_close(place->store);
    assert_int_equal(pipe2(channel, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0)
        run_and_die(place->directory, &made, channel[1]);
    assert_int_equal(read(channel[0], &survivors, sizeof survivors), sizeof survivors);
    close(channel[0]);
    close(channel[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    place->store = help_open(place->directory);
    ingest_recover(place->store, note_orphan, &orphans);
    assert_int_equal(orphans.count, 1);
    assert_int_equal(orphans.size, made.g.size);
    assert_int_equal(count_incoming(place), 2);

    struct ingest *held = ingest_reopen(place->store, survivors.held, &error);
    assert_non_null(held);
    struct ingest *orphan = ingest_reopen(place->store, orphans.number, &error);
    assert_non_null(orphan);
    assert_int_equal(ingest_number(orphan), orphans.number);
    assert_true(ingest_is_held(held));
    assert_false(ingest_is_held(orphan));
    assert_null(ingest_reopen(place->store, 999, &error));
    assert_int_equal(error, -ENOENT);
    orphans.count = 0;
    ingest_recover(place->store, note_orphan, &orphans); /* they have an owner again */
    assert_int_equal(orphans.count, 0);
    struct ingest *fresh = begin(place); /* gets a number of its own */
    assert_true(ingest_number(fresh) > survivors.held && ingest_number(fresh) > orphans.number);
    ingest_drop(fresh);
    hash_along(held);
    struct content *content = ingest_seal(held, made.g.size, &error);
    assert_non_null(content);
    assert_memory_equal(content_root(content), made.root, HASH_SIZE);
    content_release(content);
    ingest_drop(held);
    seal_right(place, orphan, &made);
    kill(survivors.holder, SIGKILL);
    help_unmake(&made);
}

static void a_kill_while_sealing_leaves_the_file_or_the_content(void **state)
{
    struct place *place = *state;
    struct made made = help_make(3000000, 16);
    struct orphans orphans = {0};
    uint64_t seed = 3;
    int status, error, sealed = 0;

    store_close(place->store);
    for (int round = 0; round < 30; round++) {
        pid_t child = fork();
        if (child == 0) {
            struct store *store = help_open(place->directory);
            struct ingest *ingest = ingest_new(store, NULL, 0, &error);
            put(ingest, made.data, 0, made.g.size);
            CHECK(ingest_mark(ingest) == 0);
            content_release(ingest_seal(ingest, made.g.size, &error));
            pause();
        }
        usleep((useconds_t)(help_random(&seed) % 12000));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        place->store = help_open(place->directory);
        orphans.count = 0;
        ingest_recover(place->store, note_orphan, &orphans);
        struct content *content = help_get(place->store, &made, false);
        if (content != NULL) {
            assert_int_equal(help_verify(content, &made), made.g.blocks);
            assert_int_equal(orphans.count, 0);
            sealed++;
        } else if (orphans.count > 0 && orphans.size == made.g.size) {
            seal_right(place, ingest_reopen(place->store, orphans.number, &error), &made);
        }
        content_release(content);
        store_drop(place->store, made.root);
        store_close(place->store);
    }
    print_message("%d of 30 were sealed before the kill\n", sealed);
    place->store = help_open(place->directory);
    help_unmake(&made);
}

/* --- threads and full disks -------------------------------------------------------------------------- */
struct writer {
    struct ingest *ingest;
    const struct made *made;
    bool done;
};

static void *write_along(void *arg)
{
    struct writer *writer = arg;
    int fd = ingest_dup(writer->ingest);
    uint64_t seed = 4, size = writer->made->g.size;
    static const uint8_t junk[5000];

    for (uint64_t at = 0, step; at < size; at += step) {
        step = size - at < 50000 ? size - at : 50000;
        if (at > 100000) { /* junk behind, mended in the next breath */
            uint64_t back = help_random(&seed) % (at - 5000);
            CHECK(file_pwrite_all(fd, junk, 5000, back) == 0);
            ingest_wrote(writer->ingest, back, 5000);
            CHECK(file_pwrite_all(fd, writer->made->data + back, 5000, back) == 0);
            ingest_wrote(writer->ingest, back, 5000);
        }
        CHECK(file_pwrite_all(fd, writer->made->data + at, step, at) == 0);
        ingest_wrote(writer->ingest, at, step);
    }
    close(fd);
    __atomic_store_n(&writer->done, true, __ATOMIC_RELEASE);
    return NULL;
}

static void hashing_goes_on_while_the_writer_writes(void **state)
{
    struct place *place = *state;
    struct made made = help_make(24 << 20, 17);
    struct writer writer = {.ingest = begin(place), .made = &made};
    pthread_t thread = thread_start("writer", write_along, &writer);

    while (!__atomic_load_n(&writer.done, __ATOMIC_ACQUIRE))
        hash_along(writer.ingest);
    pthread_join(thread, NULL);
    seal_right(place, writer.ingest, &made);
    help_unmake(&made);
}

static void a_full_disk_leaves_the_working_file_to_be_sealed_again(void **state)
{
    struct place *place = *state;
    struct made made = help_make(3 << 20, 18);
    int error = 0;

    store_close(place->store);
    if (mount("none", place->directory, "tmpfs", 0, "size=4m") < 0) {
        print_message("needs root, skipped\n");
        place->store = help_open(place->directory);
        skip();
    }
    place->store = help_open(place->directory);
    struct ingest *ingest = begin(place), *filler = begin(place);
    put(ingest, made.data, 0, made.g.size);
    int fd = ingest_dup(filler);
    while (write(fd, made.data, 4096) > 0)
        ;
    assert_int_equal(errno, ENOSPC);
    close(fd);
    assert_null(ingest_seal(ingest, made.g.size, &error)); /* no room for the hash file */
    assert_int_equal(error, -ENOSPC);
    ingest_drop(filler);
    struct ingest *from = NULL;
    seal_right(place, ingest, &made);
    struct content *content = help_get(place->store, &made, false);
    from = ingest_new(place->store, content, made.g.size, &error);
    assert_null(from); /* no room for a copy */
    assert_int_equal(error, -ENOSPC);
    assert_int_equal(count_incoming(place), 0);
    content_release(content);
    store_close(place->store);
    assert_int_equal(umount(place->directory), 0);
    place->store = help_open(place->directory);
    help_unmake(&made);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, place_set_up, place_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(every_size_gives_its_root),
        TEST(a_sealed_file_can_be_read_after_a_restart_and_by_its_writer),
        TEST(blocks_that_are_written_again_are_hashed_again),
        TEST(writes_in_any_order_give_the_same),
        TEST(sealing_sets_the_length),
        TEST(the_same_content_twice_is_kept_once),
        TEST(an_incomplete_content_is_completed),
        TEST(a_new_version_starts_from_the_old),
        TEST(after_a_restart_working_files_are_kept_adopted_or_deleted),
        TEST(a_kill_while_sealing_leaves_the_file_or_the_content),
        TEST(hashing_goes_on_while_the_writer_writes),
        TEST(a_full_disk_leaves_the_working_file_to_be_sealed_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
