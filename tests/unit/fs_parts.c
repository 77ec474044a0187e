/* The parts of p2pfs that need no mount: options, attributes, contents, readers, mountinfo. */
#include "fs/attr.h"
#include "fs/content.h"
#include "fs/listings.h"
#include "fs/mountinfo.h"
#include "fs/options.h"
#include "fs/reader.h"
#include "fs/times.h"

#include "base/bitmap.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define MAP_HEADER 4096

/* --- options ---- */

static bool parse(struct options *options, char *fault, char *line)
{
    char *arguments[16] = {NULL}, *state = NULL;
    int count = 0;

    for (char *word = strtok_r(line, " ", &state); word != NULL; word = strtok_r(NULL, " ", &state))
        arguments[count++] = word;
    return options_parse(options, count, arguments, fault);
}

static void the_own_form_is_understood(void **state)
{
    char line[] = "p2pfs /mnt/x -f -o wait=2m,ro,allow_other --home /h";
    char fault[OPTIONS_FAULT_MAX];
    struct options o;

    assert_true(parse(&o, fault, line));
    assert_string_equal(o.mountpoint, "/mnt/x");
    assert_string_equal(o.home, "/h");
    assert_int_equal(o.wait, 120);
    assert_true(o.foreground && o.allow_other);
    assert_string_equal(o.pass, "ro");
    options_done(&o);
}

static void the_form_of_fstab_is_understood(void **state)
{
    char line[] = "p2pfs swarm /mnt/x -o "
                  "rw,noauto,user,nofail,_netdev,x-systemd.automount,dev,suid,home=/h,wait=7";
    char fault[OPTIONS_FAULT_MAX];
    struct options o;

    assert_true(parse(&o, fault, line));
    assert_string_equal(o.mountpoint, "/mnt/x");
    assert_string_equal(o.home, "/h");
    assert_int_equal(o.wait, 7);
    assert_string_equal(o.pass, "rw");
    assert_false(o.foreground || o.allow_other);
    options_done(&o);
}

static void mistakes_are_named(void **state)
{
    const char *const lines[] = {"p2pfs",
                                 "p2pfs a b c",
                                 "p2pfs /m -x",
                                 "p2pfs /m -o",
                                 "p2pfs /m --home",
                                 "p2pfs /m -o waite=3",
                                 "p2pfs /m -o wait=",
                                 "p2pfs /m -o wait=0",
                                 "p2pfs /m -o wait=2h",
                                 "p2pfs /m -o wait=-1",
                                 "p2pfs /m -o max_read=1"};

    for (unsigned i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        char line[64], fault[OPTIONS_FAULT_MAX] = "";
        struct options o;

        snprintf(line, sizeof(line), "%s", lines[i]);
        assert_false(parse(&o, fault, line));
        assert_true(*fault != '\0');
        options_done(&o);
    }
}

/* --- attributes ---- */

static void attributes_are_what_the_kernel_may_see(void **state)
{
    Local__Attr attr = LOCAL__ATTR__INIT;
    struct stat st;

    attr.ino = 7;
    attr.kind = LOCAL__KIND__KIND_FILE;
    attr.mode = 06755;
    attr.size = 1000;
    attr.local = 513;
    attr.mtime = -1;
    assert_true(attr_stat(&st, &attr, 5, 6));
    assert_int_equal(st.st_mode, S_IFREG | 0755); /* no setuid from a stranger */
    assert_int_equal(st.st_blocks, 2);
    assert_int_equal(st.st_uid, 5);
    assert_int_equal(st.st_gid, 6);
    assert_int_equal(st.st_nlink, 0); /* it was removed, and is open */
    assert_int_equal(st.st_mtim.tv_sec, -1);
    assert_int_equal(st.st_mtim.tv_nsec, 999999999);
    attr.size = UINT64_MAX;
    assert_false(attr_stat(&st, &attr, 5, 6));
    attr.size = 0;
    attr.kind = (Local__Kind)99;
    assert_false(attr_stat(&st, &attr, 5, 6));
    attr.kind = LOCAL__KIND__KIND_FILE;
    attr.ino = 0;
    assert_false(attr_stat(&st, &attr, 5, 6));
    assert_int_equal(attr_errno(0), EIO);
    assert_int_equal(attr_errno(-5), EIO);
    assert_int_equal(attr_errno(ENOSPC), ENOSPC);
}

/* --- listings ---- */

static void a_listing_is_kept_as_long_as_nothing_changes(void **state)
{
    struct listings *l = listings_new();
    bool keep;

    assert_true(listings_opened(l, 5, 1, &keep) && !keep);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 1, &keep) && !keep); /* it was not read */
    listings_read(l, 5, 1);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 1, &keep) && keep);
    assert_true(listings_opened(l, 5, 1, &keep) && keep);
    listings_closed(l, 5);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 2, &keep) && !keep);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 1, &keep) &&
                !keep); /* the pages went with the last opening */
    listings_closed(l, 5);
    listings_free(l);
}

static void two_that_fill_a_listing_by_turns_leave_none(void **state)
{
    struct listings *l = listings_new();
    bool keep;

    assert_true(listings_opened(l, 5, 1, &keep) && !keep);
    assert_true(listings_opened(l, 5, 2, &keep) && !keep);
    listings_read(l, 5, 2);
    listings_closed(l, 5);
    listings_read(l, 5, 2);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 2, &keep) && !keep);
    listings_read(l, 5, 2);
    listings_closed(l, 5);
    assert_true(listings_opened(l, 5, 2, &keep) && keep);
    listings_closed(l, 5);
    listings_free(l);
}

static void directories_that_share_a_place_take_it_in_turn(void **state)
{
    struct listings *l = listings_new();
    uint64_t other = 6;
    bool keep;

    assert_true(listings_opened(l, 5, 1, &keep));
    listings_read(l, 5, 1);
    while (listings_opened(l, other, 1, &keep))
        listings_closed(l, other++);
    assert_false(keep);
    listings_closed(l, 5);
    assert_true(listings_opened(l, other, 1, &keep) && !keep);
    listings_closed(l, other);
    assert_true(listings_opened(l, 5, 1, &keep) && !keep);
    listings_closed(l, 5);
    listings_free(l);
}

/* --- times ---- */

static void times_that_the_catalogue_does_not_keep_are_remembered(void **state)
{
    struct times *times = times_new();
    const int64_t atime = -1;
    struct stat st = {.st_ino = 5, .st_mtim = {7, 8}, .st_atim = {7, 8}, .st_ctim = {7, 8}};

    times_apply(times, &st);
    assert_int_equal(st.st_atim.tv_sec, 7);
    times_set(times, 5, &atime, true);
    times_apply(times, &st);
    assert_int_equal(st.st_atim.tv_sec, -1);
    assert_int_equal(st.st_atim.tv_nsec, 999999999);
    assert_int_equal(st.st_ctim.tv_sec, 7);
    times_changed(times, 5);
    times_apply(times, &st);
    assert_true(st.st_ctim.tv_sec > 7);
    assert_int_equal(st.st_mtim.tv_sec, 7); /* the daemon's to tell */
    times_names_changed(times, 5);
    times_apply(times, &st);
    assert_true(st.st_mtim.tv_sec > 7);
    for (uint64_t ino = 100; ino < 100 + 40000; ino++) /* a bound, the recent ones stay */
        times_changed(times, ino);
    for (uint64_t ino = 100; ino < 100 + 70000; ino++)
        times_changed(times, ino);
    st = (struct stat){.st_ino = 5};
    times_apply(times, &st);
    assert_int_equal(st.st_ctim.tv_sec, 0);
    st.st_ino = 100 + 69999;
    times_apply(times, &st);
    assert_true(st.st_ctim.tv_sec > 0);
    times_free(times);
}

/* --- contents ---- */

static struct content *make(uint64_t size, uint8_t **map, bool complete)
{
    uint64_t blocks = (size + CONTENT_BLOCK - 1) / CONTENT_BLOCK;
    size_t bytes = MAP_HEADER + bitmap_bytes(blocks);
    int data = memfd_create("data", 0), bits = memfd_create("map", 0), error = 0;
    struct content *content;

    assert_int_equal(ftruncate(data, (off_t)size), 0);
    assert_int_equal(ftruncate(bits, (off_t)bytes), 0);
    *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bits, 0);
    assert_true(*map != MAP_FAILED);
    content = content_sealed(data, bits, size, complete, &error);
    assert_non_null(content);
    *map += MAP_HEADER;
    return content;
}

static void only_present_blocks_are_read(void **state)
{
    const uint64_t size = 3 * CONTENT_BLOCK + 1;
    static uint8_t bytes[5 * CONTENT_BLOCK];
    uint8_t *map;
    struct content *content = make(size, &map, false);
    size_t few = 4096;

    assert_int_equal(content_read(content, bytes, 1, 0), -EAGAIN);
    bitmap_set(map, 1);
    assert_int_equal(content_read(content, bytes, CONTENT_BLOCK, CONTENT_BLOCK), CONTENT_BLOCK);
    assert_int_equal(content_read(content, bytes, CONTENT_BLOCK + 1, CONTENT_BLOCK), -EAGAIN);
    assert_int_equal(content_read(content, bytes, 2, CONTENT_BLOCK - 1), -EAGAIN);
    bitmap_set(map, 3);
    assert_int_equal(content_read(content, bytes, 4096, 3 * CONTENT_BLOCK), 1); /* cut at the end */
    assert_int_equal(content_read(content, bytes, 4096, size), 0);
    assert_int_equal(content_read(content, bytes, 4096, UINT64_MAX - 10), 0);
    assert_true(content_has(content, size + 5, 1));
    assert_false(content_complete(content));
    bitmap_set(map, 0);
    bitmap_set(map, 2);
    assert_false(content_complete(content)); /* it may become incomplete again */
    assert_int_equal(content_read(content, bytes, sizeof(bytes), 0), size);
    assert_null(content_view(content, &few, 0));
    bitmap_clear(map, 2); /* damage was found */
    assert_int_equal(content_read(content, bytes, sizeof(bytes), 0), -EAGAIN);
    content_release(content);
    munmap(map - MAP_HEADER, MAP_HEADER + 1);
}

static void descriptors_that_do_not_fit_are_refused(void **state)
{
    int error = 0, map = memfd_create("map", 0);

    assert_int_equal(ftruncate(map, MAP_HEADER), 0); /* no room for a bit: it would be SIGBUS */
    assert_null(content_sealed(memfd_create("data", 0), map, 1, false, &error));
    assert_int_equal(error, -EPROTO);
    assert_null(content_sealed(memfd_create("data", 0), -1, 1, false, &error));
    assert_int_equal(error, -EBADF);
    assert_null(content_sealed(-1, -1, 1, true, &error));
    assert_int_equal(error, -EBADF);
    assert_null(content_sealed(memfd_create("data", 0), -1, UINT64_MAX, true, &error));
    assert_int_equal(error, -EPROTO);
}

static void a_data_file_that_is_too_short_is_an_error_not_zeros(void **state)
{
    uint8_t byte;
    int error;
    struct content *content = content_sealed(memfd_create("data", 0), -1, 1, true, &error);

    assert_non_null(content);
    assert_int_equal(content_read(content, &byte, 1, 0), -EIO);
    content_release(content);
}

static void large_reads_of_a_complete_content_come_from_a_view(void **state)
{
    static const uint8_t last = 7;
    uint64_t size = (256 << 10) + 3;
    FILE *file = tmpfile(); /* a memfd cannot say what is in memory */
    int error = 0, data = dup(fileno(file)), pipes[2];
    struct content *content;
    size_t length = 128 << 10;
    const void *view;
    uint8_t got;

    assert_int_equal(ftruncate(data, (off_t)size), 0);
    assert_int_equal(pwrite(data, &last, 1, (off_t)size - 1), 1);
    assert_int_equal(pwrite(data, "x", 1, 64 << 10), 1);
    content = content_sealed(data, -1, size, true, &error);
    view = content_view(content, &length, (192 << 10));
    assert_non_null(view);
    assert_int_equal(length, size - (192 << 10)); /* cut at the end */
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(write(pipes[1], (const uint8_t *)view + length - 1, 1), 1);
    assert_int_equal(read(pipes[0], &got, 1), 1);
    assert_int_equal(got, last);
    content_view_done(view, length);
    length = 128 << 10;
    assert_null(content_view(content, &length, 1)); /* not at a page's start */
    assert_null(content_view(content, &length, size + 4095));
    assert_int_equal(ftruncate(data, 4096), 0); /* the disk's fault, not ours */
    length = 128 << 10;
    assert_null(content_view(content, &length, 0));
    close(pipes[0]);
    close(pipes[1]);
    fclose(file);
    content_release(content);
}

/* --- readers ---- */

static void on_signal(int number)
{
}

static pid_t stopped_child(bool handles)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        struct sigaction action = {.sa_handler = on_signal};

        if (handles)
            sigaction(SIGINT, &action, NULL);
        raise(SIGSTOP); /* signals stay pending */
        pause();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    return pid;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void readers_are_told_apart(void **state)
{
    pid_t child = stopped_child(true);
    int status;

    assert_int_equal(reader_state(0), READER_WAITS);
    assert_int_equal(reader_state(getpid()), READER_WAITS);
    assert_int_equal(reader_state(child), READER_WAITS);
    kill(child, SIGWINCH);
    kill(child, SIGCHLD);
    kill(child, SIGURG);
    assert_int_equal(reader_state(child), READER_WAITS);
    kill(child, SIGINT);
    assert_int_equal(reader_state(child), READER_CALLED);
    assert_int_equal(reader_process(child), child);
    end(child);
    assert_int_equal(reader_state(child), READER_GONE);

    child = fork();
    if (child == 0)
        _exit(0);
    assert_int_equal(waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT), 0);
    assert_int_equal(reader_state(child), READER_GONE); /* a zombie */
    assert_int_equal(waitpid(child, &status, 0), child);
}

static void who_writes_is_found_among_descriptors(void **state)
{
    char name[] = "/tmp/fs_parts.XXXXXX", line[256];
    int fd = mkstemp(name), mount_id = 0, reading;
    struct stat st;
    FILE *file;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", fd);
    file = fopen(line, "re");
    while (fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "mnt_id: %d", &mount_id) == 1)
            break;
    fclose(file);
    assert_true(mount_id > 0);
    assert_true(reader_writes(getpid(), mount_id, st.st_ino));
    assert_false(reader_writes(getpid(), mount_id, st.st_ino + 1));
    assert_false(reader_writes(getpid(), mount_id + 100000, st.st_ino));
    assert_false(reader_writes(getpid(), 0, st.st_ino));
    reading = open(name, O_RDONLY | O_CLOEXEC);
    close(fd);
    assert_false(reader_writes(getpid(), mount_id, st.st_ino));
    close(reading);
    unlink(name);
}

/* --- mountinfo ---- */

static void only_our_mounts_are_ours(void **state)
{
    struct mountinfo info;

    assert_int_equal(
        mountinfo_match("36 35 0:52 / /mnt/a rw,nosuid - fuse.p2pfs p2pfs rw,user_id=0\n", "/mnt/a",
                        &info),
        1);
    assert_int_equal(info.id, 36);
    assert_int_equal(info.minor_number, 52);
    assert_int_equal(mountinfo_match("36 35 0:52 / /mnt/a rw - fuse.sshfs x rw\n", "/mnt/a", &info),
                     0);
    assert_int_equal(
        mountinfo_match("36 35 0:52 / /mnt/ab rw - fuse.p2pfs p2pfs rw\n", "/mnt/a", &info), -1);
    assert_int_equal(
        mountinfo_match("36 35 0:52 / /mnt/a\\040b rw - fuse.p2pfs p rw\n", "/mnt/a\\040b", &info),
        1);
    assert_int_equal(mountinfo_match("", "/mnt/a", &info), -1);
    assert_int_equal(mountinfo_match("36 35 0:52 /", "/mnt/a", &info), -1);
    assert_false(mountinfo_find("/there/is/no/such", &info));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_own_form_is_understood),
        cmocka_unit_test(the_form_of_fstab_is_understood),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(attributes_are_what_the_kernel_may_see),
        cmocka_unit_test(a_listing_is_kept_as_long_as_nothing_changes),
        cmocka_unit_test(two_that_fill_a_listing_by_turns_leave_none),
        cmocka_unit_test(directories_that_share_a_place_take_it_in_turn),
        cmocka_unit_test(times_that_the_catalogue_does_not_keep_are_remembered),
        cmocka_unit_test(only_present_blocks_are_read),
        cmocka_unit_test(descriptors_that_do_not_fit_are_refused),
        cmocka_unit_test(a_data_file_that_is_too_short_is_an_error_not_zeros),
        cmocka_unit_test(large_reads_of_a_complete_content_come_from_a_view),
        cmocka_unit_test(readers_are_told_apart),
        cmocka_unit_test(who_writes_is_found_among_descriptors),
        cmocka_unit_test(only_our_mounts_are_ours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
