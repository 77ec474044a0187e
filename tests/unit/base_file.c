/* Small files, private directories, P2P_HOME. */
#include "base/file.h"
#include "base/home.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static char directory[64]; /* of one test */

static int set_up(void **state)
{
    snprintf(directory, sizeof(directory), "/tmp/p2p-test-XXXXXX");
    return mkdtemp(directory) == NULL || chdir(directory) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return chdir("/") < 0 || system(command) != 0 ? -1 : 0;
}

static void put(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static mode_t mode_of(const char *path)
{
    struct stat status;

    assert_int_equal(lstat(path, &status), 0);
    return status.st_mode & 07777;
}

static void a_private_directory_is_made_with_its_parents(void **state)
{
    umask(0);
    assert_int_equal(file_private_dir("a/b//c/"), 0);
    umask(022);
    assert_int_equal(mode_of("a"), 0700);
    assert_int_equal(mode_of("a/b/c"), 0700);
    assert_int_equal(file_private_dir("a/b/c"), 0);
    assert_int_equal(file_private_dir("/"), -EPERM);
}

static void a_directory_that_others_may_enter_is_refused(void **state)
{
    assert_int_equal(mkdir("open", 0700), 0);
    assert_int_equal(file_private_dir("open"), 0);
    for (mode_t bit = 1; bit <= 040; bit <<= 1) {
        assert_int_equal(chmod("open", 0700 | bit), 0);
        assert_int_equal(file_private_dir("open"), -EPERM);
    }
}

static void what_is_no_directory_is_refused(void **state)
{
    put("file", "x", 0600);
    assert_int_equal(file_private_dir("file"), -ENOTDIR);
    assert_int_equal(file_private_dir("file/below"), -ENOTDIR);
    assert_int_equal(file_private_dir(""), -ENOENT);
}

static void a_directory_of_somebody_else_is_refused(void **state)
{
    if (geteuid() != 0)
        skip();
    assert_int_equal(mkdir("theirs", 0700), 0);
    assert_int_equal(chown("theirs", 12345, 12345), 0);
    assert_int_equal(file_private_dir("theirs"), -EPERM);
    assert_int_equal(mkdir("mine", 0700), 0);
    assert_int_equal(symlink("mine", "link"), 0);
    assert_int_equal(file_private_dir("link"), 0);
    assert_int_equal(lchown("link", 12345, 12345), 0);
    assert_int_equal(file_private_dir("link"), -EPERM);
}

static void a_file_is_read_whole_with_a_nul_behind(void **state)
{
    char *data;
    size_t size;

    put("f", "hello", 0644);
    assert_int_equal(file_read("f", 5, false, &data, &size), 0);
    assert_int_equal(size, 5);
    assert_string_equal(data, "hello");
    free(data);
    put("empty", "", 0644);
    assert_int_equal(file_read("empty", 0, false, &data, &size), 0);
    assert_int_equal(size, 0);
    assert_string_equal(data, "");
    free(data);
}

static void a_file_whose_size_lies_is_read_to_its_end(void **state)
{
    char *data;
    size_t size;

    /* /proc says 0 and has more: as a file that grows meanwhile. */
    assert_int_equal(file_read("/proc/self/status", 1 << 20, false, &data, &size), 0);
    assert_true(size > 100);
    assert_int_equal(strlen(data), size);
    assert_non_null(strstr(data, "Threads:"));
    free(data);
    assert_int_equal(file_read("/proc/self/status", 100, false, &data, &size), -EFBIG);
    assert_null(data);
}

static void a_file_larger_than_allowed_is_refused(void **state)
{
    char *data = directory;
    size_t size = 7;

    put("f", "hello", 0644);
    assert_int_equal(file_read("f", 4, false, &data, &size), -EFBIG);
    assert_null(data);
    assert_int_equal(size, 0);
}

static void a_secret_that_others_can_touch_is_refused(void **state)
{
    char *data;
    size_t size;

    put("key", "secret", 0600);
    assert_int_equal(file_read("key", 100, true, &data, &size), 0);
    file_free_secret(data, size);
    file_free_secret(NULL, 0);
    for (mode_t bit = 1; bit <= 040; bit <<= 1) {
        assert_int_equal(chmod("key", 0600 | bit), 0);
        assert_int_equal(file_read("key", 100, true, &data, &size), -EPERM);
        assert_null(data);
    }
    if (geteuid() == 0) {
        assert_int_equal(chmod("key", 0600), 0);
        assert_int_equal(chown("key", 12345, 12345), 0);
        assert_int_equal(file_read("key", 100, true, &data, &size), -EPERM);
    }
}

static void links_fifos_and_directories_are_not_read(void **state)
{
    char *data;
    size_t size;

    put("f", "hello", 0600);
    assert_int_equal(symlink("f", "link"), 0);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    assert_int_equal(file_read("link", 100, false, &data, &size), -ELOOP);
    assert_int_equal(file_read("fifo", 100, false, &data, &size), -EINVAL);
    assert_int_equal(file_read(".", 100, false, &data, &size), -EISDIR);
    assert_int_equal(file_read("none", 100, false, &data, &size), -ENOENT);
}

static unsigned entries_here(void)
{
    DIR *here = opendir(".");
    unsigned count = 0;

    assert_non_null(here);
    while (readdir(here) != NULL)
        count++;
    closedir(here);
    return count - 2;
}

static void a_file_is_replaced_in_one_step(void **state)
{
    struct stat before, after;
    char *data;
    size_t size;
    int fd;

    assert_int_equal(file_replace("f", "one", 3, 0640), 0);
    assert_int_equal(mode_of("f"), 0640);
    assert_int_equal(stat("f", &before), 0);
    fd = open("f", O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_replace("f", "second", 6, 0600), 0);
    assert_int_equal(mode_of("f"), 0600);
    assert_int_equal(stat("f", &after), 0);
    assert_true(before.st_ino != after.st_ino);
    assert_int_equal(file_read("f", 100, false, &data, &size), 0);
    assert_string_equal(data, "second");
    free(data);
    /* Who has the old one open goes on reading it. */
    data = calloc(1, 4);
    assert_int_equal(file_pread_all(fd, data, 3, 0), 0);
    assert_string_equal(data, "one");
    free(data);
    close(fd);
    assert_int_equal(entries_here(), 1);
}

static void a_replacement_that_fails_leaves_the_old_file_and_nothing_else(void **state)
{
    assert_int_equal(mkdir("d", 0700), 0);
    put("d/keep", "x", 0600);
    assert_int_equal(file_replace("d", "text", 4, 0600), -EISDIR);
    assert_int_equal(mode_of("d/keep"), 0600);
    assert_int_equal(entries_here(), 1);
    assert_int_equal(file_replace("none/f", "text", 4, 0600), -ENOENT);
    assert_int_equal(file_sync_parent("none/f"), -ENOENT);
    assert_int_equal(file_sync_parent("f"), 0);
    assert_int_equal(file_sync_parent("/f"), 0);
}

static void reading_behind_the_end_is_told_from_success(void **state)
{
    char buffer[8] = "";
    int fd = open("f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    assert_int_equal(file_pwrite_all(fd, "hello", 5, 3), 0);
    assert_int_equal(file_pread_all(fd, buffer, 8, 0), 0);
    assert_memory_equal(buffer, "\0\0\0hello", 8);
    assert_int_equal(file_pread_all(fd, buffer, 6, 3), -ENODATA);
    assert_int_equal(file_pread_all(fd, buffer, 0, 99), 0);
    close(fd);
    assert_int_equal(file_pread_all(fd, buffer, 1, 0), -EBADF);
    assert_int_equal(file_pwrite_all(fd, buffer, 1, 0), -EBADF);
}

/* --- home
 * ----------------------------------------------------------------------------------------- */

static void assert_home(const char *option, const char *expected)
{
    char *home = home_find(option);

    if (expected == NULL) {
        assert_null(home);
        return;
    }
    assert_non_null(home);
    assert_string_equal(home, expected);
    free(home);
}

static void the_home_is_option_then_environment_then_default(void **state)
{
    setenv("HOME", "/home/u", 1);
    setenv("XDG_DATA_HOME", "/data", 1);
    setenv("P2P_HOME", "/p2p", 1);
    assert_home("/opt", "/opt");
    assert_home(NULL, "/p2p");
    setenv("P2P_HOME", "", 1);
    assert_home(NULL, "/data/p2pfs");
    setenv("XDG_DATA_HOME", "relative", 1);
    assert_home(NULL, "/home/u/.local/share/p2pfs");
    unsetenv("XDG_DATA_HOME");
    assert_home(NULL, "/home/u/.local/share/p2pfs");
    unsetenv("HOME");
    assert_home(NULL, NULL);
    assert_home("", NULL);
}

static void a_home_is_absolute_and_tidy(void **state)
{
    char expected[128];

    assert_home("/a//b/./c/", "/a/b/c");
    assert_home("/", "/");
    assert_home("//.//", "/");
    assert_home("/a/../b", "/a/../b");
    assert_home("/.hidden/..x", "/.hidden/..x");
    snprintf(expected, sizeof(expected), "%s/x/y", directory);
    assert_home("./x/y/.", expected);
}

static void a_short_home_has_its_socket_inside(void **state)
{
    char *path = home_socket("/home/u"), home[128];

    assert_string_equal(path, "/home/u/p2pd.sock");
    free(path);
    /* 97 bytes and "/p2pd.sock" are the 107 that fit. */
    memset(home, 'h', sizeof(home));
    home[0] = '/';
    home[97] = '\0';
    path = home_socket(home);
    assert_int_equal(strlen(path), 107);
    assert_memory_equal(path, home, 97);
    free(path);
}

static void a_long_home_has_a_short_socket_of_its_own(void **state)
{
    char home[200], expected[128], *first, *second, *other;

    memset(home, 'h', sizeof(home));
    home[0] = '/';
    home[98] = '\0';
    setenv("XDG_RUNTIME_DIR", directory, 1);
    first = home_socket(home);
    second = home_socket(home);
    home[50] = 'x';
    other = home_socket(home);
    assert_true(strlen(first) <= 107);
    assert_memory_equal(first, directory, strlen(directory));
    assert_string_equal(first, second);
    assert_string_not_equal(first, other);
    free(first);
    free(second);
    free(other);

    unsetenv("XDG_RUNTIME_DIR");
    first = home_socket(home);
    snprintf(expected, sizeof(expected), "/tmp/p2pfs-%u/", (unsigned)geteuid());
    assert_memory_equal(first, expected, strlen(expected));
    assert_int_equal(mode_of(expected), 0700);
    rmdir(expected); /* stays if somebody else's socket is in it */
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        TEST(a_private_directory_is_made_with_its_parents),
        TEST(a_directory_that_others_may_enter_is_refused),
        TEST(what_is_no_directory_is_refused),
        TEST(a_directory_of_somebody_else_is_refused),
        TEST(a_file_is_read_whole_with_a_nul_behind),
        TEST(a_file_whose_size_lies_is_read_to_its_end),
        TEST(a_file_larger_than_allowed_is_refused),
        TEST(a_secret_that_others_can_touch_is_refused),
        TEST(links_fifos_and_directories_are_not_read),
        TEST(a_file_is_replaced_in_one_step),
        TEST(a_replacement_that_fails_leaves_the_old_file_and_nothing_else),
        TEST(reading_behind_the_end_is_told_from_success),
        TEST(the_home_is_option_then_environment_then_default),
        TEST(a_home_is_absolute_and_tidy),
        TEST(a_short_home_has_its_socket_inside),
        TEST(a_long_home_has_a_short_socket_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
