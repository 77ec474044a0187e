/* Passwords from files, and from a terminal (a pseudo terminal with a child on it). */
#include "tools/secret.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

#define WAIT_MS 10000

static char directory[] = "/tmp/p2pfs-secret-XXXXXX";

static const char *file(const char *content, size_t size, mode_t mode)
{
    static char path[sizeof directory + 16];
    int fd;

    snprintf(path, sizeof path, "%s/password", directory);
    unlink(path);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, size), size);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

static void the_first_line_of_a_file_is_the_password(void **state)
{
    struct secret secret;

    assert_true(secret_read_file(&secret, file("correct horse\nmore\n", 19, 0600)));
    assert_int_equal(secret.size, 13);
    assert_string_equal(secret.bytes, "correct horse");
    assert_true(secret_read_file(&secret, file("no line end", 11, 0400)));
    assert_string_equal(secret.bytes, "no line end");
    assert_true(secret_read_file(&secret, file("dos\r\n", 5, 0600)));
    assert_string_equal(secret.bytes, "dos");
    secret_clear(&secret);
    assert_int_equal(secret.size, 0);
    assert_string_equal(secret.bytes, "");
}

static void what_is_hidden_is_gone_from_the_argument(void **state)
{
    char argument[] = "p2p://host/?ca=aa&invite=CODE", plain[] = "p2p://host/", code[] = "CODE";
    char longer[LIMIT_PASSWORD + 2];
    struct secret secret;

    assert_true(secret_hide(&secret, argument, strlen("p2p://host/?ca=aa&invite=")));
    assert_string_equal(secret.bytes, "p2p://host/?ca=aa&invite=CODE");
    assert_string_equal(argument, "p2p://host/?ca=aa&invite=****");
    assert_true(secret_hide(&secret, code, 0));
    assert_string_equal(secret.bytes, "CODE");
    assert_int_equal(secret.size, 4);
    assert_string_equal(code, "****");
    assert_true(secret_hide(&secret, plain, SIZE_MAX));
    assert_string_equal(plain, "p2p://host/");
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    assert_false(secret_hide(&secret, longer, 0));
    assert_int_equal(longer[0], 'x');
}

static void a_file_that_others_can_read_is_refused(void **state)
{
    struct secret secret;

    assert_false(secret_read_file(&secret, file("password\n", 9, 0640)));
    assert_false(secret_read_file(&secret, file("password\n", 9, 0604)));
    assert_false(secret_read_file(&secret, file("password\n", 9, 0620)));
}

static void a_symbolic_link_is_refused(void **state)
{
    struct secret secret;
    char link[sizeof directory + 16];

    snprintf(link, sizeof link, "%s/link", directory);
    assert_int_equal(symlink(file("password\n", 9, 0600), link), 0);
    assert_false(secret_read_file(&secret, link));
    unlink(link);
}

static void what_can_be_no_password_is_refused(void **state)
{
    struct secret secret;
    char longest[LIMIT_PASSWORD + 1];

    memset(longest, 'x', sizeof longest);
    assert_false(secret_read_file(&secret, file("", 0, 0600)));
    assert_false(secret_read_file(&secret, file("\nsecond line\n", 13, 0600)));
    assert_true(secret_read_file(&secret, file(longest, LIMIT_PASSWORD, 0600)));
    assert_int_equal(secret.size, LIMIT_PASSWORD);
    assert_false(secret_read_file(&secret, file(longest, LIMIT_PASSWORD + 1, 0600)));
    assert_false(secret_read_file(&secret, "/no/such/file"));
    assert_false(secret_read_file(&secret, directory));
}

static void a_new_password_has_a_least_length_from_a_file_too(void **state)
{
    struct secret secret;
    struct secret_source source = {.file = file("short\n", 6, 0600),
                                   .option = "--password-file",
                                   .prompt = "New",
                                   .fresh = true};

    assert_false(secret_get(&secret, &source));
    assert_string_equal(secret.bytes, "");
    source.fresh = false;
    assert_true(secret_get(&secret, &source));
    source.file = NULL;
    source.environment = true;
    setenv("P2P_PASSWORD_FILE", file("from the environment\n", 21, 0600), 1);
    assert_true(secret_get(&secret, &source));
    assert_string_equal(secret.bytes, "from the environment");
    unsetenv("P2P_PASSWORD_FILE");
}

/* --- a terminal -------------------------------------------------------------------------------- */

struct terminal {
    int fd;
    pid_t child;
    char seen[8192];
    size_t seen_size;
    size_t looked; /* up to where expect has found things */
};

/* A child on a terminal of its own that asks; it ends with 0 if it got "correct horse". */
static void begin(struct terminal *t, bool fresh)
{
    memset(t, 0, sizeof *t);
    t->child = forkpty(&t->fd, NULL, NULL, NULL);
    assert_true(t->child >= 0);
    if (t->child == 0) {
        struct secret secret;
        const struct secret_source source = {
            .option = "--password-file", .prompt = "Password", .fresh = fresh};
        bool good = secret_get(&secret, &source) && strcmp(secret.bytes, "correct horse") == 0;

        printf("child is done\n");
        fflush(stdout);
        _exit(good ? 0 : 7);
    }
}

/* False: the terminal has closed, or nothing came. */
static bool read_more(struct terminal *t)
{
    struct pollfd p = {.fd = t->fd, .events = POLLIN};

    if (poll(&p, 1, WAIT_MS) <= 0)
        return false;
    ssize_t got = read(t->fd, t->seen + t->seen_size, sizeof t->seen - 1 - t->seen_size);
    if (got <= 0)
        return false;
    t->seen_size += (size_t)got;
    t->seen[t->seen_size] = '\0';
    return true;
}

static void expect(struct terminal *t, const char *text)
{
    char *found;

    while ((found = strstr(t->seen + t->looked, text)) == NULL)
        if (!read_more(t))
            fail_msg("no '%s' in '%s'", text, t->seen);
    t->looked = (size_t)(found - t->seen) + strlen(text);
}

static void type(struct terminal *t, const char *text)
{
    assert_int_equal(write(t->fd, text, strlen(text)), strlen(text));
}

static int end(struct terminal *t)
{
    int status;

    while (read_more(t))
        ;
    assert_int_equal(waitpid(t->child, &status, 0), t->child);
    close(t->fd);
    assert_null(strstr(t->seen, "correct"));
    return status;
}

static bool echoes(const struct terminal *t)
{
    struct termios settings;

    assert_int_equal(tcgetattr(t->fd, &settings), 0);
    return (settings.c_lflag & ECHO) != 0;
}

static void a_terminal_shows_nothing_of_what_is_typed(void **state)
{
    struct terminal t;

    begin(&t, false);
    expect(&t, "Password: ");
    assert_false(echoes(&t));
    type(&t, "correct horse\n");
    expect(&t, "child is done");
    assert_true(echoes(&t));
    assert_int_equal(end(&t), 0);
}

static void a_new_password_is_typed_twice_until_both_agree(void **state)
{
    struct terminal t;

    begin(&t, true);
    expect(&t, "Password: ");
    type(&t, "short\n");
    expect(&t, "at least 8 bytes");
    expect(&t, "Password: ");
    type(&t, "correct horse\n");
    expect(&t, "Password, again: ");
    type(&t, "correct hose\n");
    expect(&t, "not the same");
    expect(&t, "Password: ");
    type(&t, "correct horse\n");
    expect(&t, "Password, again: ");
    type(&t, "correct horse\n");
    expect(&t, "child is done");
    assert_int_equal(end(&t), 0);
}

static void the_end_of_input_gives_no_password(void **state)
{
    struct terminal t;

    begin(&t, false);
    expect(&t, "Password: ");
    type(&t, "\004");
    expect(&t, "no password given");
    int status = end(&t);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void a_signal_puts_the_echo_back_and_then_acts(void **state)
{
    struct terminal t;

    begin(&t, false);
    expect(&t, "Password: ");
    type(&t, "corr\003"); /* Ctrl-C */
    int status, waited;
    while ((waited = waitpid(t.child, &status, WNOHANG)) == 0)
        (void)usleep(1000);
    assert_int_equal(waited, t.child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    assert_true(echoes(&t));
    close(t.fd);
}

static int set_up(void **state)
{
    log_init("p2pctl", LOG_LEVEL_INFO, false);
    unsetenv("P2P_PASSWORD_FILE");
    return mkdtemp(directory) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    char path[sizeof directory + 16];

    snprintf(path, sizeof path, "%s/password", directory);
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_line_of_a_file_is_the_password),
        cmocka_unit_test(what_is_hidden_is_gone_from_the_argument),
        cmocka_unit_test(a_file_that_others_can_read_is_refused),
        cmocka_unit_test(a_symbolic_link_is_refused),
        cmocka_unit_test(what_can_be_no_password_is_refused),
        cmocka_unit_test(a_new_password_has_a_least_length_from_a_file_too),
        cmocka_unit_test(a_terminal_shows_nothing_of_what_is_typed),
        cmocka_unit_test(a_new_password_is_typed_twice_until_both_agree),
        cmocka_unit_test(the_end_of_input_gives_no_password),
        cmocka_unit_test(a_signal_puts_the_echo_back_and_then_acts),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
