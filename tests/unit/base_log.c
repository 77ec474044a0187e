/* What reaches standard error, byte by byte. */
#include "base/log.h"

#include "base/check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static int saved = -1, capture;
static char text[1 << 20];

static int set_up(void **state)
{
    char path[] = "/tmp/p2p-test-XXXXXX";

    capture = mkstemp(path);
    unlink(path);
    saved = dup(STDERR_FILENO);
    unsetenv("P2P_LOG");
    return dup2(capture, STDERR_FILENO) < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    if (saved >= 0) {
        dup2(saved, STDERR_FILENO);
        close(saved);
        close(capture);
        saved = -1;
    }
    return 0;
}

/* What was written so far; standard error is as it was again. */
static const char *written(void)
{
    ssize_t n = pread(capture, text, sizeof(text) - 1, 0);

    assert_true(n >= 0);
    text[n] = '\0';
    tear_down(NULL);
    return text;
}

static void a_line_is_the_program_and_the_text(void **state)
{
    log_init("p2pd", LOG_LEVEL_INFO, false);
    log_info("ready");
    log_error("%d of %s", 3, "four");
    assert_string_equal(written(), "p2pd: ready\np2pd: 3 of four\n");
    assert_string_equal(log_program(), "p2pd");
}

static void levels_below_the_chosen_one_are_silent(void **state)
{
    log_init("p", LOG_LEVEL_WARNING, false);
    log_debug("no");
    log_info("no");
    log_warning("w");
    log_error("e");
    assert_string_equal(written(), "p: w\np: e\n");
    assert_true(log_enabled(LOG_LEVEL_WARNING));
    assert_false(log_enabled(LOG_LEVEL_INFO));
}

static void the_environment_overrides_the_level(void **state)
{
    setenv("P2P_LOG", "debug", 1);
    log_init("p", LOG_LEVEL_ERROR, false);
    log_debug("d");
    setenv("P2P_LOG", "error", 1);
    log_init("p", LOG_LEVEL_DEBUG, false);
    log_warning("no");
    setenv("P2P_LOG", "loud", 1);
    log_init("p", LOG_LEVEL_WARNING, false);
    assert_string_equal(written(),
                        "p: d\np: P2P_LOG is \"loud\", not one of error, warning, info, debug\n");
}

static void a_strangers_name_can_neither_forge_a_line_nor_reach_the_terminal(void **state)
{
    log_init("p", LOG_LEVEL_INFO, false);
    log_info("<%s>", "a\np: forged");
    log_info("<%s>", "\x1b[2J\r\t\x7f");
    log_info("<%s>", "gr\xc3\xbcn \xe6\x97\xa5");
    log_info("<%s>", "\xff\xc3(\xc0\xaf");
    log_info("<%s>", "\xc2\x9b"
                     "31m\xe2\x80\xae"
                     "x\xe2\x80\xa8");
    log_info("<%s>", "cut \xe2\x82");
    assert_string_equal(written(), "p: <a\\x0ap: forged>\n"
                                   "p: <\\x1b[2J\\x0d\\x09\\x7f>\n"
                                   "p: <gr\xc3\xbcn \xe6\x97\xa5>\n"
                                   "p: <\\xff\\xc3(\\xc0\\xaf>\n"
                                   "p: <\\xc2\\x9b"
                                   "31m\\xe2\\x80\\xaex\\xe2\\x80\\xa8>\n"
                                   "p: <cut \\xe2\\x82>\n");
}

static void a_long_message_is_one_line_cut_with_dots(void **state)
{
    char *long_text = malloc(100000);
    const char *out;

    log_init("p", LOG_LEVEL_INFO, false);
    memset(long_text, 'x', 99999);
    long_text[99999] = '\0';
    log_info("%s", long_text);
    memset(long_text, '\n', 99999);
    log_info("%s", long_text);
    memset(long_text, '\x1b', 1000);
    long_text[1023] = '\0';
    log_info("%s", long_text);
    free(long_text);
    out = written();
    assert_true(strlen(out) < 3 * 4096 + 1);
    for (int line = 0; line < 3; line++) {
        const char *end = strchr(out, '\n');

        assert_non_null(end);
        assert_true(end - out > 1000);
        assert_memory_equal(out, "p: ", 3);
        assert_memory_equal(end - 3, "...", 3);
        out = end + 1;
    }
    assert_string_equal(out, "");
}

static void errno_stays_as_it_was(void **state)
{
    log_init("p", LOG_LEVEL_INFO, true);
    errno = ENOSPC;
    log_info("%s \xff", "x");
    assert_int_equal(errno, ENOSPC);
    close(STDERR_FILENO);
    log_info("nobody listens");
    assert_int_equal(errno, ENOSPC);
}

static void timestamps_stand_in_front(void **state)
{
    int year, month, day, hour, minute, second, ms, end = 0;

    log_init("p", LOG_LEVEL_INFO, true);
    log_info("x");
    written();
    assert_int_equal(sscanf(text, "%d-%d-%d %d:%d:%d.%d %n", &year, &month, &day, &hour, &minute,
                            &second, &ms, &end),
                     7);
    assert_true(year >= 2024 && month <= 12 && second <= 60);
    assert_string_equal(text + end, "p: x\n");
}

static void *shout(void *arg)
{
    for (int i = 0; i < 500; i++)
        log_info("%s", (const char *)arg);
    return NULL;
}

static void lines_of_several_threads_do_not_mix(void **state)
{
    static char a[300], b[300];
    pthread_t threads[2];
    unsigned lines = 0;

    log_init("p", LOG_LEVEL_INFO, false);
    memset(a, 'a', sizeof(a) - 1);
    memset(b, 'b', sizeof(b) - 1);
    pthread_create(&threads[0], NULL, shout, a);
    pthread_create(&threads[1], NULL, shout, b);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    for (const char *at = written(); *at != '\0'; at += 303, lines++) {
        assert_memory_equal(at, "p: ", 3);
        assert_memory_equal(at + 3, at[3] == 'a' ? a : b, 299);
        assert_int_equal(at[302], '\n');
    }
    assert_int_equal(lines, 1000);
}

static void a_broken_invariant_ends_the_process_and_says_where(void **state)
{
    int status;
    pid_t child;

    log_init("p", LOG_LEVEL_INFO, false);
    child = fork();
    if (child == 0) {
        const struct rlimit none = {0};

        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL);
        CHECK(1 + 1 == 2);
        CHECK(1 + 1 == 3);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    written();
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_memory_equal(text, "p: ", 3);
    assert_non_null(strstr(text, "base_log.c:"));
    assert_non_null(strstr(text, "1 + 1 == 3"));
    assert_null(strstr(text, "1 + 1 == 2"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        TEST(a_line_is_the_program_and_the_text),
        TEST(levels_below_the_chosen_one_are_silent),
        TEST(the_environment_overrides_the_level),
        TEST(a_strangers_name_can_neither_forge_a_line_nor_reach_the_terminal),
        TEST(a_long_message_is_one_line_cut_with_dots),
        TEST(errno_stays_as_it_was),
        TEST(timestamps_stand_in_front),
        TEST(lines_of_several_threads_do_not_mix),
        TEST(a_broken_invariant_ends_the_process_and_says_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
