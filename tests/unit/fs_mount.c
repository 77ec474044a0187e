/* p2pfs as a process with a real mount, on a daemon made of memory (tests/fake_daemon.h). Needs /dev/fuse and the right
 * to mount: without them all is skipped. */
#include "tests/fake_daemon.h"

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SECOND NS_PER_S

/* The limits below are what users are promised. A sanitizer makes everything several times slower, so its builds get
 * more time: they look for faults in memory and between threads, not for speed. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 4
#else
#define SLOWER 1
#endif

static struct fake *fake;
static char directory[64], mountpoint[96], program[96];
static pid_t p2pfs;

/* --- the mount -------------------------------------------------------------------------------------------- */

static void copy_program(void)
{
    char command[1200];

    snprintf(program, sizeof(program), "%s/p2pfs", directory);
    /* Away from a real p2pd beside it. */
    snprintf(command, sizeof(command), "cp %s/p2pfs %s", TEST_PROGRAMS, program);
    assert_int_equal(system(command), 0);
}

static bool is_mounted(void)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char line[4096];
    bool found = false;

    while (fgets(line, sizeof(line), file) != NULL)
        if (strstr(line, mountpoint) != NULL)
            found = true;
    fclose(file);
    return found;
}

/* A child without cmocka's handlers, which would go on with the test in it. */
static pid_t fork_child(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
    }
    return pid;
}

static pid_t spawn_p2pfs(const char *options)
{
    pid_t pid = fork_child();

    if (pid == 0) {
        char log[96];
        int fd;

        snprintf(log, sizeof(log), "%s/log", directory);
        fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(fd, STDERR_FILENO);
        setenv("PATH", "/usr/bin:/bin", 1);
        execl(program, "p2pfs", mountpoint, "-f", "--home", directory, "-o", options, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static bool wait_until(bool (*good)(void), int64_t limit)
{
    int64_t end = clock_now() + limit;

    while (!good()) {
        if (clock_now() > end)
            return false;
        usleep(2000);
    }
    return true;
}

static void start_with(const char *options)
{
    p2pfs = spawn_p2pfs(options);
    assert_true(p2pfs > 0);
    assert_true(wait_until(is_mounted, 5 * SECOND));
}

static int set_up_with(const char *options)
{
    if (access("/dev/fuse", R_OK | W_OK) != 0)
        skip();
    snprintf(directory, sizeof(directory), "/tmp/fs_mount.XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(mountpoint, sizeof(mountpoint), "%s/mnt", directory);
    assert_int_equal(mkdir(mountpoint, 0755), 0);
    copy_program();
    fake = fake_start(directory);
    start_with(options);
    return 0;
}

static int set_up(void **state)
{
    return set_up_with("wait=20s");
}

static int set_up_short(void **state)
{
    return set_up_with("wait=1s");
}

/* Waits for p2pfs; -1 if it does not end in time. */
static int ended(pid_t pid, int64_t limit)
{
    int64_t end = clock_now() + limit;
    int status;

    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);

        if (got == pid)
            return status;
        if (got < 0 || clock_now() > end)
            return -1;
        usleep(1000);
    }
}

static int tear_down(void **state)
{
    char command[128];
    int status;

    if (p2pfs > 0) {
        kill(p2pfs, SIGTERM);
        status = ended(p2pfs, 4 * SECOND);
        if (status != 0) {
            print_error("p2pfs ended with %x\n", (unsigned)status);
            kill(p2pfs, SIGKILL);
        }
        p2pfs = 0;
        umount2(mountpoint, MNT_DETACH);
        snprintf(command, sizeof(command),
                 "grep -v 'ended\\|stopped\\|again\\|failed: \\|cannot start' %s/log >&2",
                 directory);
        if (system(command) == 0)
            status = 1; /* it said something that it should not have */
        if (status != 0)
            return -1;
    }
    if (fake != NULL)
        fake_stop(fake);
    fake = NULL;
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

static const char *path(const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *one = paths[next++ % 8];

    snprintf(one, sizeof(paths[0]), "%s/%s", mountpoint, name);
    return one;
}

/* --- bytes ------------------------------------------------------------------------------------------------ */

static void fill(uint8_t *bytes, size_t size, unsigned seed, uint64_t offset)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = fake_byte(seed, offset + i);
}

static void write_pattern(int fd, uint64_t size, unsigned seed, size_t step)
{
    uint8_t *bytes = xmalloc(step);

    for (uint64_t at = 0; at < size; at += step) {
        size_t part = size - at < step ? size - at : step;

        fill(bytes, part, seed, at);
        assert_int_equal(pwrite(fd, bytes, part, (off_t)at), part);
    }
    free(bytes);
}

/* The offset of the first wrong byte, `size` if all are right, -errno. */
static int64_t check_pattern(int fd, uint64_t size, unsigned seed)
{
    static uint8_t bytes[1 << 17];

    for (uint64_t at = 0; at < size;) {
        ssize_t got = pread(fd, bytes, sizeof(bytes), (off_t)at);

        if (got < 0)
            return -errno;
        if (got == 0)
            return (int64_t)at;
        for (ssize_t i = 0; i < got; i++)
            if (bytes[i] != fake_byte(seed, at + (uint64_t)i))
                return (int64_t)at + i;
        at += (uint64_t)got;
    }
    return (int64_t)size;
}

static int64_t check_file(const char *name, uint64_t size, unsigned seed)
{
    int fd = open(path(name), O_RDONLY);
    struct stat st;
    int64_t result;

    if (fd < 0)
        return -errno;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, size);
    result = check_pattern(fd, size, seed);
    close(fd);
    return result;
}

static unsigned versions(const char *name)
{
    return fake_look(fake, 1, name).versions;
}

/* --- readers ---------------------------------------------------------------------------------------------- */

static void on_signal(int number)
{
}

/* A process that reads `size` bytes at `offset`; exits with 0 if they are right, else errno or 255. */
static pid_t reader(const char *name, uint64_t offset, size_t size, unsigned seed,
                    bool handles_signals)
{
    pid_t pid = fork_child();
    static uint8_t bytes[1 << 20];

    if (pid == 0) {
        struct sigaction action = {.sa_handler = on_signal};
        ssize_t got;
        int fd;

        if (handles_signals)
            sigaction(SIGINT, &action, NULL);
        fd = open(path(name), O_RDONLY);
        if (fd < 0)
            _exit(errno);
        got = pread(fd, bytes, size, (off_t)offset);
        if (got < 0)
            _exit(errno);
        for (ssize_t i = 0; i < got; i++)
            if (bytes[i] != fake_byte(seed, offset + (uint64_t)i))
                _exit(255);
        _exit(got == (ssize_t)size ? 0 : 254);
    }
    return pid;
}

static unsigned expected_waiting;

static bool enough_wait(void)
{
    return fake_waiting(fake) >= expected_waiting;
}

static bool nobody_waits(void)
{
    return fake_waiting(fake) == 0;
}

static void wait_for_parked(unsigned count)
{
    expected_waiting = count;
    assert_true(wait_until(enough_wait, 10 * SECOND));
}

static bool ends_with(pid_t pid, int64_t limit, int exit_status)
{
    int status = ended(pid, limit);

    if (status < 0) {
        kill(pid, SIGKILL);
        return false;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == exit_status;
}

/* --- tests ------------------------------------------------------------------------------------------------ */

static unsigned count_entries(const char *name)
{
    DIR *dir = opendir(path(name));
    unsigned count = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static void names_can_be_made_moved_and_removed(void **state)
{
    char target[64];
    struct stat st;
    struct statvfs space;
    char long_name[300];

    assert_int_equal(mkdir(path("d"), 0750), 0);
    assert_int_equal(stat(path("d"), &st), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0750);
    assert_int_equal(mkdir(path("d"), 0750), -1);
    assert_int_equal(errno, EEXIST);
    assert_int_equal(symlink("d/x", path("l")), 0);
    memset(target, 0, sizeof(target));
    assert_int_equal(readlink(path("l"), target, sizeof(target)), 3);
    assert_string_equal(target, "d/x");
    assert_int_equal(rename(path("d"), path("e")), 0);
    assert_int_equal(stat(path("d"), &st), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(chmod(path("e"), 0700), 0);
    assert_int_equal(stat(path("e"), &st), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0700);
    assert_int_equal(count_entries(""), 4);
    assert_int_equal(rmdir(path("e")), 0);
    assert_int_equal(unlink(path("l")), 0);
    assert_int_equal(count_entries(""), 2);
    memset(long_name, 'n', 256);
    long_name[256] = '\0';
    assert_int_equal(mkdir(path(long_name), 0700), -1);
    assert_int_equal(errno, ENAMETOOLONG);
    assert_int_equal(link(path("l"), path("m")), -1);
    assert_int_equal(statvfs(mountpoint, &space), 0);
    assert_int_equal(space.f_bavail * space.f_frsize, UINT64_C(4) << 30);
}

static void large_directories_are_listed_whole(void **state)
{
    char name[32];

    for (unsigned i = 0; i < 3000; i++) {
        snprintf(name, sizeof(name), "file %04u", i);
        fake_add_file(fake, 1, name, i, true);
    }
    assert_int_equal(count_entries(""), 3002);
    assert_int_equal(count_entries(""), 3002);
    assert_true(fake_asked(fake, T(READDIR)) < 40);
}

static void attributes_tell_what_the_daemon_knows(void **state)
{
    char value[64];
    unsigned before;

    fake_add_file(fake, 1, "f", 100000, true);
    assert_int_equal(getxattr(path("f"), "user.p2p.state", value, sizeof(value)), 8);
    assert_memory_equal(value, "complete", 8);
    assert_int_equal(getxattr(path("f"), "user.p2p.state", NULL, 0), 8);
    before = fake_asked(fake, T(GETXATTR));
    assert_int_equal(getxattr(path("f"), "security.selinux", value, sizeof(value)), -1);
    assert_true(errno == ENODATA || errno == EOPNOTSUPP);
    assert_int_equal(getxattr(path("f"), "system.posix_acl_access", value, sizeof(value)), -1);
    assert_int_equal(setxattr(path("f"), "user.p2p.root", "x", 1, 0), -1);
    assert_int_equal(errno, EOPNOTSUPP);
    assert_int_equal(setxattr(path("f"), "trusted.other", "x", 1, 0), -1);
    assert_int_equal(errno, EOPNOTSUPP);
    assert_int_equal(fake_asked(fake, T(GETXATTR)), before);
    assert_int_equal(fake_asked(fake, T(SETXATTR)), 0);
    assert_int_equal(getxattr(path("f"), "user.other", value, sizeof(value)), -1);
    assert_int_equal(errno, ENODATA);
    assert_int_equal(setxattr(path("f"), "user.other", "x", 1, 0), 0);
    assert_int_equal(removexattr(path("f"), "user.other"), 0);
    assert_int_equal(fake_asked(fake, T(SETXATTR)), 2);
    assert_int_equal(listxattr(path("f"), NULL, 0), 8);
    assert_int_equal(listxattr(path("f"), value, 4), -1);
    assert_int_equal(errno, ERANGE);
}

static void present_bytes_are_read_without_asking(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 5000001, true);

    assert_int_equal(check_file("f", 5000001, (unsigned)ino), 5000001);
    assert_int_equal(fake_asked(fake, T(WANT)), 0);
}

static void an_empty_file_is_empty(void **state)
{
    fake_add_file(fake, 1, "f", 0, true);
    assert_int_equal(check_file("f", 0, 0), 0);
}

static void what_is_written_is_sealed_when_it_is_closed(void **state)
{
    const uint64_t sizes[] = {1, 16384, 16385, 5000001};
    const size_t steps[] = {1, 4096, 100000, 1 << 20};

    for (unsigned i = 0; i < 4; i++) {
        char name[16];
        int fd;

        snprintf(name, sizeof(name), "f%u", i);
        fd = open(path(name), O_RDWR | O_CREAT | O_EXCL, 0640);
        assert_true(fd >= 0);
        write_pattern(fd, sizes[i], i, steps[i]);
        assert_int_equal(check_pattern(fd, sizes[i], i), sizes[i]);
        assert_int_equal(versions(name), 0);
        assert_int_equal(close(fd), 0);
        assert_int_equal(versions(name), 1);
        assert_int_equal(check_file(name, sizes[i], i), sizes[i]);
    }
}

static void close_says_why_a_file_could_not_be_published(void **state)
{
    int fd = open(path("f"), O_RDWR | O_CREAT | O_EXCL, 0640);

    write_pattern(fd, 100000, 3, 4096);
    fake_set(fake, &fake->seal_error, ENOSPC);
    assert_int_equal(close(fd), -1);
    assert_int_equal(errno, ENOSPC);
}

static void a_sealed_file_can_be_written_again(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 100000, true);
    uint8_t bytes[10];
    int fd = open(path("f"), O_RDWR), second;

    assert_true(fd >= 0);
    fill(bytes, sizeof(bytes), (unsigned)ino, 50000);
    assert_int_equal(pwrite(fd, "XXXXXXXXXX", 10, 50000), 10);
    assert_int_equal(close(fd), 0);
    assert_int_equal(versions("f"), 1);
    fd = open(path("f"), O_RDWR);
    assert_int_equal(pwrite(fd, bytes, 10, 50000), 10);
    assert_int_equal(close(fd), 0);
    assert_int_equal(versions("f"), 2);
    assert_int_equal(check_file("f", 100000, (unsigned)ino), 100000);

    fd = open(path("f"), O_WRONLY | O_APPEND);
    fill(bytes, sizeof(bytes), (unsigned)ino, 100000);
    assert_int_equal(write(fd, bytes, 10), 10);
    assert_int_equal(close(fd), 0);
    assert_int_equal(check_file("f", 100010, (unsigned)ino), 100010);

    assert_int_equal(truncate(path("f"), 70000), 0);
    assert_int_equal(check_file("f", 70000, (unsigned)ino), 70000);
    assert_int_equal(versions("f"), 4);

    /* Two descriptors of one process: the last one to be closed makes the version. */
    fd = open(path("f"), O_RDWR);
    second = open(path("f"), O_RDWR);
    assert_int_equal(pwrite(fd, "a", 1, 0), 1);
    assert_int_equal(close(fd), 0);
    assert_int_equal(versions("f"), 4);
    assert_int_equal(pwrite(second, "b", 1, 1), 1);
    assert_int_equal(close(second), 0);
    assert_int_equal(versions("f"), 5);

    fd = open(path("f"), O_WRONLY | O_TRUNC);
    write_pattern(fd, 200000, 9, 70000);
    assert_int_equal(close(fd), 0);
    assert_int_equal(check_file("f", 200000, 9), 200000);
}

static bool is_one_version(void)
{
    return versions("f") == 1;
}

static void closes_of_copies_do_not_publish(void **state)
{
    char command[256];

    snprintf(command, sizeof(command),
             "(for i in 1 2 3 4 5; do /bin/date >&2; /bin/echo $i; done) > %s 2>/dev/null",
             path("f"));
    assert_int_equal(system(command), 0);
    wait_until(is_one_version, 2 * SECOND);
    assert_int_equal(versions("f"), 1);
    assert_int_equal(check_file("f", 10, 0) >= 0, true);
    snprintf(command, sizeof(command), "> %s", path("g"));
    assert_int_equal(system(command), 0);
}

static void times_and_modes_are_kept(void **state)
{
    struct timespec times[2] = {{1000000000, 5}, {1234567890, 123456789}};
    struct stat st;
    int fd = open(path("f"), O_RDWR | O_CREAT, 0600);

    write_pattern(fd, 10000, 1, 10000);
    assert_int_equal(futimens(fd, times), 0);
    assert_int_equal(fchmod(fd, 0444), 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(fake_look(fake, 1, "f").mtime, INT64_C(1234567890123456789));
    assert_int_equal(stat(path("f"), &st), 0);
    assert_int_equal(st.st_mtim.tv_sec, 1234567890);
    assert_int_equal(st.st_mode & 0777, 0444);
    times[1].tv_sec = 1111111111;
    assert_int_equal(utimensat(AT_FDCWD, path("f"), times, 0), 0);
    assert_int_equal(fake_look(fake, 1, "f").mtime, INT64_C(1111111111123456789));
    assert_int_equal(chown(path("f"), 12345, 12345), 0);
    assert_int_equal(stat(path("f"), &st), 0);
    assert_int_equal(st.st_uid, geteuid());
}

static void an_unlinked_file_is_read_on(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 300000, false);
    int fd = open(path("f"), O_RDONLY);
    struct stat st;

    assert_int_equal(unlink(path("f")), 0);
    fake_give(fake, ino, 0, 100);
    assert_int_equal(check_pattern(fd, 300000, (unsigned)ino), 300000);
    assert_int_equal(fstat(fd, &st), 0);
    close(fd);
}

static void syncing_reaches_the_daemon(void **state)
{
    int fd = open(path("f"), O_RDWR | O_CREAT, 0600);

    write_pattern(fd, 10000, 1, 10000);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(fake_asked(fake, T(SYNC)), 1);
    assert_int_equal(posix_fallocate(fd, 0, 20000), 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(fake_look(fake, 1, "f").size, 20000);
}

static void closing_a_file_that_was_only_made_or_emptied_waits_until_that_is_durable(void **state)
{
    int fd = open(path("f"), O_WRONLY | O_CREAT, 0600), other;

    assert_true(fd >= 0);
    other = dup(fd);
    assert_int_equal(close(fd), 0); /* somebody still has it */
    assert_int_equal(fake_asked(fake, T(SYNC)), 0);
    assert_int_equal(close(other), 0);
    assert_int_equal(fake_asked(fake, T(SYNC)), 1);
    fake_add_file(fake, 1, "old", 100000, true);
    fd = open(path("old"), O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
    assert_int_equal(fake_asked(fake, T(SYNC)), 2);
}

/* --- parked reads ---- */

static void a_parked_read_gets_its_blocks_in_any_order(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 100 * FAKE_BLOCK, false);
    pid_t first = reader("f", 0, 5, (unsigned)ino, false);
    pid_t last = reader("f", 90 * FAKE_BLOCK, 5, (unsigned)ino, false);

    wait_for_parked(2);
    fake_give(fake, ino, 85, 15);
    assert_true(ends_with(last, 2 * SECOND, 0));
    fake_give(fake, ino, 0, 85);
    assert_true(ends_with(first, 2 * SECOND, 0));
}

static void a_read_that_nobody_serves_fails_in_time(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 100000, false);
    int64_t begin = clock_now();
    pid_t pid = reader("f", 0, 5, (unsigned)ino, false);

    assert_true(ends_with(pid, 5 * SECOND, EIO));
    assert_true(clock_now() - begin > SECOND);
}

#define READERS 200

/* What the whole design is for. */
static void parked_readers_hurt_nobody(void **state)
{
    uint64_t ready = fake_add_file(fake, 1, "ready", 1000000, true);
    static pid_t readers[READERS];
    int64_t begin, listed, read_at;
    char name[32], command[256];

    for (unsigned i = 0; i < READERS; i++) {
        snprintf(name, sizeof(name), "f%u", i);
        fake_add_file(fake, 1, name, 3000000, false);
        readers[i] = reader(name, i % 2 == 0 ? 0 : 1000000, 4096, 0, false);
    }
    wait_for_parked(READERS);
    begin = clock_now();
    snprintf(command, sizeof(command), "ls -l %s > /dev/null", mountpoint);
    assert_int_equal(system(command), 0);
    listed = clock_now();
    assert_int_equal(check_file("ready", 1000000, (unsigned)ready), 1000000);
    read_at = clock_now();
    print_message("with %u parked readers: ls -l %.1f ms, a ready file %.1f ms\n", READERS,
                  (double)(listed - begin) / 1e6, (double)(read_at - listed) / 1e6);
    assert_true(listed - begin < SLOWER * SECOND / 10);
    assert_true(read_at - listed < SLOWER * SECOND / 5);

    begin = clock_now();
    for (unsigned i = 0; i < READERS; i++)
        kill(readers[i], i % 4 < 2 ? SIGKILL : SIGINT);
    for (unsigned i = 0; i < READERS; i++)
        assert_true(ended(readers[i], 2 * SECOND) >= 0);
    print_message("all gone after %.1f ms\n", (double)(clock_now() - begin) / 1e6);
    assert_true(clock_now() - begin < SLOWER * 2 * SECOND);
    assert_true(wait_until(nobody_waits, 2 * SECOND));
}

static void a_program_that_handles_its_signal_gets_eintr(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 3000000, false);
    pid_t pid = reader("f", 0, 5, (unsigned)ino, true);

    wait_for_parked(1);
    kill(pid, SIGINT);
    assert_true(ends_with(pid, 2 * SECOND, EINTR));
}

/* As many as `parked_readers_hurt_nobody` has, all of them programs that handle the signal: it reaches a page-cache
 * reader only because its parked read is answered. */
static void ctrl_c_reaches_all_programs_that_handle_it(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", (uint64_t)READERS << 20, false);
    static pid_t readers[READERS];
    int64_t begin;

    for (unsigned i = 0; i < READERS; i++)
        readers[i] = reader("f", (uint64_t)i << 20, 5, (unsigned)ino, true);
    wait_for_parked(READERS);
    begin = clock_now();
    for (unsigned i = 0; i < READERS; i++)
        kill(readers[i], SIGINT);
    for (unsigned i = 0; i < READERS; i++)
        assert_true(ends_with(readers[i], SLOWER * 2 * SECOND, EINTR));
    print_message("all interrupted after %.1f ms\n", (double)(clock_now() - begin) / 1e6);
    assert_true(clock_now() - begin < SLOWER * 2 * SECOND);
    assert_true(wait_until(nobody_waits, 2 * SECOND));
}

/* A signal that means nothing must not break a read. */
static void a_harmless_signal_does_not_disturb(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 3000000, false);
    pid_t pid = reader("f", 0, 5, (unsigned)ino, false);

    wait_for_parked(1);
    for (unsigned i = 0; i < 20; i++) {
        kill(pid, i % 2 == 0 ? SIGWINCH : SIGCHLD);
        usleep(50000);
    }
    fake_give(fake, ino, 0, 200);
    assert_true(ends_with(pid, 2 * SECOND, 0));
}

static void a_close_elsewhere_does_not_disturb_a_reader(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 3000000, false);
    pid_t pid = fork_child();

    if (pid == 0) {
        uint8_t bytes[100];
        int fd = open(path("f"), O_RDONLY);

        /* FLUSHes while the parent reads. An error for the first would be hidden by the kernel, which asks again for
         * what it only read ahead; from the second on it would be the parent's. */
        for (unsigned i = 1; i <= 4; i++)
            if (fork() == 0) {
                usleep(i * 300000);
                close(fd);
                _exit(0);
            }
        if (pread(fd, bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
            _exit(errno);
        _exit(bytes[7] == fake_byte((unsigned)ino, 7) ? 0 : 255);
    }
    wait_for_parked(1);
    usleep(1500000);
    fake_give(fake, ino, 0, 200);
    assert_true(ends_with(pid, 2 * SECOND, 0));
}

static void a_killed_reader_does_not_take_others_with_it(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 3000000, false);
    pid_t killed = reader("f", 0, 5, (unsigned)ino, false), other;

    wait_for_parked(1);
    other = reader("f", 0, 5, (unsigned)ino, false); /* waits for the same page */
    usleep(300000);
    kill(killed, SIGKILL);
    assert_true(ended(killed, 2 * SECOND) >= 0);
    usleep(500000);
    fake_give(fake, ino, 0, 200);
    assert_true(ends_with(other, 2 * SECOND, 0));
}

static pid_t mapped_reader(const char *name, size_t size, uint64_t offset, unsigned seed)
{
    pid_t pid = fork_child();

    if (pid == 0) {
        int fd = open(path(name), O_RDONLY);
        const uint8_t *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

        if (map == MAP_FAILED)
            _exit(254);
        close(fd); /* so its end is no FLUSH */
        _exit(map[offset] == fake_byte(seed, offset) ? 0 : 255);
    }
    return pid;
}

static void a_killed_readers_close_ends_its_read_at_once(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 30000000, false);
    int64_t best = INT64_MAX;

    for (unsigned i = 0; i < 5; i++) {
        pid_t pid = reader("f", (uint64_t)i * 5000000, 5, (unsigned)ino, false);
        int64_t begin;

        wait_for_parked(1);
        begin = clock_now();
        kill(pid, SIGKILL);
        assert_true(ended(pid, 2 * SECOND) >= 0);
        assert_true(wait_until(nobody_waits, 2 * SECOND));
        if (clock_now() - begin < best)
            best = clock_now() - begin;
    }
    print_message("nothing left %.1f ms after a kill\n", (double)best / 1e6);
    assert_true(best <
                SLOWER * SECOND / 10); /* not when a sweep finds it, a quarter of a second later */
}

static void mapped_files_wait_and_end_likewise(void **state)
{
    const size_t size = 30000000;
    uint64_t ino = fake_add_file(fake, 1, "f", size, false);
    pid_t killed = mapped_reader("f", size, 2000000, (unsigned)ino), far, same;

    wait_for_parked(1);
    far = mapped_reader("f", size, 20000000, (unsigned)ino);
    wait_for_parked(2);
    same = mapped_reader("f", size, 2000000, (unsigned)ino);
    usleep(200000);
    kill(killed, SIGKILL);
    assert_true(ended(killed, 2 * SECOND) >= 0);
    usleep(1000000); /* the sweep has found it; `same` asks for itself */
    wait_for_parked(2);
    fake_give(fake, ino, 0, 2000);
    assert_true(ends_with(far, 2 * SECOND, 0));
    assert_true(ends_with(same, 2 * SECOND, 0));
    assert_true(wait_until(nobody_waits, 3 * SECOND));
}

/* --- the end ---- */

static void a_thousand_parked_reads_do_not_hold_the_mount(void **state)
{
    static pid_t readers[1000];
    int64_t begin;
    int status;

    fake_add_file(fake, 1, "f", UINT64_C(1000) << 20, false);
    for (unsigned i = 0; i < 1000; i++)
        readers[i] = reader("f", (uint64_t)i << 20, 5, 0, false);
    wait_for_parked(1000);
    begin = clock_now();
    kill(p2pfs, SIGTERM);
    status = ended(p2pfs, SLOWER * 5 * SECOND);
    print_message("unmounted after %.1f ms\n", (double)(clock_now() - begin) / 1e6);
    assert_int_equal(status, 0);
    assert_true(clock_now() - begin <
                SLOWER * 3 * SECOND / 2); /* 3 s are promised; it takes a tenth of one */
    p2pfs = 0;
    for (unsigned i = 0; i < 1000; i++)
        assert_true(ended(readers[i], 2 * SECOND) >= 0);
    assert_false(is_mounted());
}

static void fusermount_ends_it_once_the_readers_are_killed(void **state)
{
    static pid_t readers[300];
    char command[128];
    int64_t begin;

    fake_add_file(fake, 1, "f", UINT64_C(300) << 20, false);
    for (unsigned i = 0; i < 300; i++)
        readers[i] = reader("f", (uint64_t)i << 20, 5, 0, false);
    wait_for_parked(300);
    for (unsigned i = 0; i < 300; i++)
        kill(readers[i], SIGKILL);
    for (unsigned i = 0; i < 300; i++)
        assert_true(ended(readers[i], 2 * SECOND) >= 0);
    begin = clock_now();
    snprintf(command, sizeof(command), "fusermount3 -u %s", mountpoint);
    assert_int_equal(system(command), 0);
    assert_int_equal(ended(p2pfs, 3 * SECOND), 0);
    print_message("unmounted after %.1f ms\n", (double)(clock_now() - begin) / 1e6);
    p2pfs = 0;
}

/* --- the daemon comes and goes ---- */

static unsigned greeted_before;

static bool is_greeted(void)
{
    return __atomic_load_n(&fake->greeted, __ATOMIC_RELAXED) > greeted_before;
}

static void bounce(void)
{
    greeted_before = __atomic_load_n(&fake->greeted, __ATOMIC_RELAXED);
    fake_crash(fake);
    usleep(100000);
    fake_listen(fake);
}

static void a_read_goes_on_over_five_crashes(void **state)
{
    const uint64_t blocks = 500;
    uint64_t ino = fake_add_file(fake, 1, "f", blocks * FAKE_BLOCK, false);
    pid_t pid = fork_child();

    if (pid == 0) {
        int fd = open(path("f"), O_RDONLY);

        _exit(check_pattern(fd, blocks * FAKE_BLOCK, (unsigned)ino) ==
                      (int64_t)(blocks * FAKE_BLOCK)
                  ? 0
                  : 255);
    }
    fake_set(fake, &fake->remap, 1);
    for (unsigned i = 0; i < 5; i++) {
        wait_for_parked(1);
        bounce();
        assert_true(wait_until(is_greeted, 2 * SECOND));
        fake_give(fake, ino, i * 100, 100);
    }
    assert_true(ends_with(pid, 5 * SECOND, 0));
    assert_true(fake_asked(fake, T(REATTACH)) >= 5);
}

static void present_bytes_are_read_while_the_daemon_is_away(void **state)
{
    uint64_t ino = fake_add_file(fake, 1, "f", 1000000, true);
    int fd = open(path("f"), O_RDONLY);

    fake_crash(fake);
    assert_int_equal(check_pattern(fd, 1000000, (unsigned)ino), 1000000);
    close(fd);
    fake_listen(fake);
}

static void requests_wait_for_the_daemon_to_come_back(void **state)
{
    char name[] = "f";
    struct stat st;
    pid_t pid;

    fake_crash(fake);
    pid = fork_child();
    if (pid == 0)
        _exit(stat(path("f"), &st) == 0 ? 0 : errno);
    usleep(300000);
    fake_do(fake, fake_add_plain_here, name);
    fake_listen(fake);
    assert_true(ends_with(pid, 3 * SECOND, 0));
}

static bool listening_again;

static void *come_back(void *arg)
{
    usleep(300000);
    fake_listen(fake);
    listening_again = true;
    return NULL;
}

static void what_was_done_before_a_crash_is_done(void **state)
{
    pthread_t thread;
    struct stat st;

    fake_set(fake, &fake->crash_after_type, T(MKDIR));
    pthread_create(&thread, NULL, come_back, NULL);
    assert_int_equal(mkdir(path("d"), 0755), 0);
    pthread_join(thread, NULL);
    assert_int_equal(stat(path("d"), &st), 0);
    fake_set(fake, &fake->crash_after_type, T(RMDIR));
    pthread_create(&thread, NULL, come_back, NULL);
    assert_int_equal(rmdir(path("d")), 0);
    pthread_join(thread, NULL);
}

static void writing_goes_on_over_a_crash(void **state)
{
    int fd = open(path("f"), O_RDWR | O_CREAT, 0600);

    write_pattern(fd, 3000000, 1, 100000);
    bounce();
    write_pattern(fd, 6000000, 1, 100000);
    assert_int_equal(close(fd), 0);
    assert_int_equal(check_file("f", 6000000, 1), 6000000);
}

static void a_daemon_that_is_gone_fails_requests_in_time(void **state)
{
    struct stat st;

    fake_crash(fake);
    assert_int_equal(stat(path("f"), &st), -1);
    assert_int_equal(errno, EIO);
    fake_listen(fake);
}

static void a_missing_daemon_is_started(void **state)
{
    char script[128], marker[128];
    FILE *file;

    snprintf(script, sizeof(script), "%s/p2pd", directory);
    snprintf(marker, sizeof(marker), "%s/started", directory);
    file = fopen(script, "we");
    fprintf(file, "#!/bin/sh\necho \"$@\" > %s\nexit 0\n", marker);
    fclose(file);
    assert_int_equal(chmod(script, 0755), 0);
    fake_crash(fake);
    for (unsigned i = 0; i < 200 && access(marker, F_OK) != 0; i++)
        usleep(20000);
    assert_int_equal(access(marker, F_OK), 0);
    fake_listen(fake);
}

/* --- changes from elsewhere ---- */

static void new_files_are_seen_at_once(void **state)
{
    struct stat st;

    assert_int_equal(stat(path("f"), &st), -1);
    fake_add_file(fake, 1, "f", 10, true);
    assert_int_equal(stat(path("f"), &st), 0);
}

struct change {
    const char *name;
    uint64_t parent;
};

static void remove_here(struct fake *f, void *arg)
{
    struct change *change = arg;

    fake_child(f, change->parent, change->name)->removed = true;
}

static const char *changed_name;
static uint64_t expected_size;

static bool has_expected_size(void)
{
    struct stat st;

    if (stat(path(changed_name), &st) != 0)
        return expected_size == UINT64_MAX;
    return (uint64_t)st.st_size == expected_size;
}

static void changes_from_elsewhere_are_seen(void **state)
{
    struct change change = {"f", 1};
    uint64_t old = fake_add_file(fake, 1, "f", 100, true), new_one;
    int fd = open(path("f"), O_RDONLY);

    changed_name = "f";
    expected_size = 100;
    assert_true(has_expected_size());
    fake_do(fake, remove_here, &change);
    new_one = fake_add_file(fake, 1, "f", 200, true);
    fake_invalidate(fake, 0, 1, "f");
    expected_size = 200;
    assert_true(wait_until(has_expected_size, SECOND));
    assert_int_equal(check_pattern(fd, 100, (unsigned)old),
                     100); /* who had it open reads the old one */
    close(fd);
    assert_int_equal(check_file("f", 200, (unsigned)new_one), 200);
    fake_do(fake, remove_here, &change);
    fake_invalidate(fake, 0, 1, "f");
    expected_size = UINT64_MAX;
    assert_true(wait_until(has_expected_size, SECOND));
}

static void changes_while_the_daemon_was_away_are_seen(void **state)
{
    struct change change = {"f", 1}, deep;
    struct stat st;
    uint64_t parent;

    assert_int_equal(mkdir(path("d"), 0755), 0);
    assert_int_equal(stat(path("d"), &st), 0);
    parent = st.st_ino;
    fake_add_file(fake, 1, "f", 100, true);
    fake_add_file(fake, parent, "g", 100, true);
    changed_name = "f";
    expected_size = 100;
    assert_true(has_expected_size());
    changed_name = "d/g";
    assert_true(has_expected_size());
    fake_crash(fake);
    deep = (struct change){"g", parent};
    fake_do(fake, remove_here, &change);
    fake_do(fake, remove_here, &deep);
    fake_add_file(fake, 1, "f", 300, true);
    fake_add_file(fake, parent, "g", 300, true);
    greeted_before = __atomic_load_n(&fake->greeted, __ATOMIC_RELAXED);
    fake_listen(fake);
    assert_true(wait_until(is_greeted, 2 * SECOND));
    expected_size = 300;
    assert_true(wait_until(has_expected_size, SECOND));
    changed_name = "f";
    assert_true(wait_until(has_expected_size, SECOND));
}

/* --- the command ---- */

/* Runs the program; its exit status, and what it said in `said`. */
static int command(const char *arguments, char *said, size_t size)
{
    char line[512];
    FILE *pipe;
    size_t length;

    snprintf(line, sizeof(line), "%s %s 2>&1", program, arguments);
    pipe = popen(line, "re");
    assert_non_null(pipe);
    length = fread(said, 1, size - 1, pipe);
    said[length] = '\0';
    return WEXITSTATUS(pclose(pipe));
}

static void what_cannot_be_mounted_is_told_in_one_line(void **state)
{
    char arguments[300], said[1000];
    const char *const wrong[][2] = {{"%s/none", "No such file"},
                                    {"%s/p2pfs", "not a directory"},
                                    {"%s/mnt", "already mounted"}};

    for (unsigned i = 0; i < 3; i++) {
        char place[128];

        snprintf(place, sizeof(place),
                 i == 0   ? "%s/none"
                 : i == 1 ? "%s/p2pfs"
                          : "%s/mnt",
                 directory);
        snprintf(arguments, sizeof(arguments), "%s --home %s", place, directory);
        assert_int_equal(command(arguments, said, sizeof(said)), 1);
        assert_non_null(strcasestr(said, wrong[i][1]));
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
        assert_memory_equal(said, "p2pfs: ", 7);
    }
    assert_int_equal(command("--nonsense", said, sizeof(said)), 2);
    assert_int_equal(command("--help", said, sizeof(said)), 0);
    assert_int_equal(command("--version", said, sizeof(said)), 0);
}

static void logged_out_here(struct fake *f, void *arg)
{
    f->account = "";
}

static void without_an_account_there_is_no_mount(void **state)
{
    char arguments[300], said[1000], other[128];

    fake_do(fake, logged_out_here, NULL);
    snprintf(other, sizeof(other), "%s/other", directory);
    assert_int_equal(mkdir(other, 0700), 0);
    snprintf(arguments, sizeof(arguments), "%s --home %s", other, directory);
    assert_int_equal(command(arguments, said, sizeof(said)), 1);
    assert_non_null(strstr(said, "not logged in: run p2pctl register, or login, URL NAME"));
}

static bool is_not_mounted(void)
{
    return !is_mounted();
}

/* As mount(8) calls it, in the background; p2pfs crashes; the next one finds a dead mount. */
static void a_mount_left_by_a_crash_is_replaced(void **state)
{
    char arguments[300], said[1000], line[128];
    struct stat st;

    kill(p2pfs, SIGKILL);
    assert_true(ended(p2pfs, 2 * SECOND) >= 0);
    p2pfs = 0;
    assert_int_equal(stat(mountpoint, &st), -1);
    assert_int_equal(errno, ENOTCONN);
    fake_add_file(fake, 1, "f", 10, true);
    snprintf(arguments, sizeof(arguments), "swarm %s -o rw,noauto,nofail,home=%s", mountpoint,
             directory);
    assert_int_equal(command(arguments, said, sizeof(said)), 0);
    assert_int_equal(stat(path("f"), &st), 0); /* it answers as soon as the command is back */
    snprintf(line, sizeof(line), "fusermount3 -u %s", mountpoint);
    assert_int_equal(system(line), 0);
    assert_true(wait_until(is_not_mounted, 3 * SECOND));
}

#define MOUNTED(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define SHORT(test)   cmocka_unit_test_setup_teardown(test, set_up_short, tear_down)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        MOUNTED(names_can_be_made_moved_and_removed),
        MOUNTED(large_directories_are_listed_whole),
        MOUNTED(attributes_tell_what_the_daemon_knows),
        MOUNTED(present_bytes_are_read_without_asking),
        MOUNTED(an_empty_file_is_empty),
        MOUNTED(what_is_written_is_sealed_when_it_is_closed),
        MOUNTED(close_says_why_a_file_could_not_be_published),
        MOUNTED(a_sealed_file_can_be_written_again),
        MOUNTED(closes_of_copies_do_not_publish),
        MOUNTED(times_and_modes_are_kept),
        MOUNTED(an_unlinked_file_is_read_on),
        MOUNTED(syncing_reaches_the_daemon),
        MOUNTED(closing_a_file_that_was_only_made_or_emptied_waits_until_that_is_durable),
        MOUNTED(a_parked_read_gets_its_blocks_in_any_order),
        SHORT(a_read_that_nobody_serves_fails_in_time),
        MOUNTED(parked_readers_hurt_nobody),
        MOUNTED(a_program_that_handles_its_signal_gets_eintr),
        MOUNTED(ctrl_c_reaches_all_programs_that_handle_it),
        MOUNTED(a_harmless_signal_does_not_disturb),
        MOUNTED(a_close_elsewhere_does_not_disturb_a_reader),
        MOUNTED(a_killed_reader_does_not_take_others_with_it),
        MOUNTED(a_killed_readers_close_ends_its_read_at_once),
        MOUNTED(mapped_files_wait_and_end_likewise),
        MOUNTED(a_thousand_parked_reads_do_not_hold_the_mount),
        MOUNTED(fusermount_ends_it_once_the_readers_are_killed),
        MOUNTED(a_read_goes_on_over_five_crashes),
        MOUNTED(present_bytes_are_read_while_the_daemon_is_away),
        MOUNTED(requests_wait_for_the_daemon_to_come_back),
        MOUNTED(what_was_done_before_a_crash_is_done),
        MOUNTED(writing_goes_on_over_a_crash),
        SHORT(a_daemon_that_is_gone_fails_requests_in_time),
        MOUNTED(a_missing_daemon_is_started),
        MOUNTED(what_cannot_be_mounted_is_told_in_one_line),
        MOUNTED(without_an_account_there_is_no_mount),
        MOUNTED(a_mount_left_by_a_crash_is_replaced),
        MOUNTED(new_files_are_seen_at_once),
        MOUNTED(changes_from_elsewhere_are_seen),
        MOUNTED(changes_while_the_daemon_was_away_are_seen),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
