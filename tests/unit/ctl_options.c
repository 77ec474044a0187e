/* The command line of p2pctl, and what its paths mean. */
#include "tools/options.h"
#include "tools/path.h"
#include "tools/verbs.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static char said[4096]; /* on standard error during the last parse */

/* Parses "p2pctl ..." of up to 15 words, NULL-terminated. */
static bool parse(struct ctl *ctl, ...)
{
    char *argv[17] = {NULL}, *word;
    int argc = 0, error = dup(STDERR_FILENO), file;
    va_list words;
    bool good;

    argv[argc++] = strdup("p2pctl");
    va_start(words, ctl);
    while ((word = va_arg(words, char *)) != NULL)
        argv[argc++] = strdup(word);
    va_end(words);
    char path[] = "/tmp/p2pfs-ctl-XXXXXX";
    file = mkstemp(path);
    assert_true(file >= 0 && error >= 0);
    unlink(path);
    dup2(file, STDERR_FILENO);
    memset(ctl, 0, sizeof *ctl);
    good = options_parse(ctl, argc, argv);
    dup2(error, STDERR_FILENO);
    ssize_t size = pread(file, said, sizeof said - 1, 0);
    said[size > 0 ? size : 0] = '\0';
    close(file);
    close(error);
    /* What ctl refers to must outlive argv's array, not its words: those are leaked to it. */
    static char *kept[1024];
    static int kept_count;
    for (int i = 0; i < argc && kept_count < 1024; i++)
        kept[kept_count++] = argv[i];
    assert_true(kept_count < 1024 && kept[0] != NULL);
    return good;
}

static void done(struct ctl *ctl)
{
    free(ctl->arguments);
}

static void options_may_stand_anywhere(void **state)
{
    struct ctl ctl;

    assert_true(parse(&ctl, "--home", "/h", "status", "/a", "--json", "/b", "-w", NULL));
    assert_string_equal(ctl.verb->name, "status");
    assert_string_equal(ctl.home_option, "/h");
    assert_true(ctl.json && ctl.watch);
    assert_int_equal(ctl.argument_count, 2);
    assert_string_equal(ctl.arguments[0], "/a");
    assert_string_equal(ctl.arguments[1], "/b");
    done(&ctl);
    assert_true(parse(&ctl, "get", "--home=/x", "--", "--json", NULL));
    assert_false(ctl.json);
    assert_string_equal(ctl.arguments[0], "--json");
    assert_string_equal(ctl.home_option, "/x");
    done(&ctl);
}

static void values_are_checked(void **state)
{
    struct ctl ctl;

    assert_true(parse(&ctl, "invite", "--uses", "5", "--expires", "12h", "--admin", NULL));
    assert_int_equal(ctl.uses, 5);
    assert_int_equal(ctl.expires, 12 * 3600);
    assert_true(ctl.admin);
    done(&ctl);
    assert_false(parse(&ctl, "invite", "--uses", "0", NULL));
    assert_string_equal(said, "p2pctl: --uses: '0' is not a number from 1 to 100000\n");
    assert_false(parse(&ctl, "invite", "--expires", "soon", NULL));
    assert_false(parse(&ctl, "invite", "--expires", NULL));
    assert_string_equal(said, "p2pctl: option '--expires' needs an argument: TIME\n");
    assert_false(parse(&ctl, "status", "--home", "", NULL));
    assert_true(parse(&ctl, "audit", "-n", "5", NULL)); /* by its letter */
    assert_int_equal(ctl.count, 5);
    done(&ctl);
    assert_true(parse(&ctl, "audit", "-n7", NULL));
    assert_int_equal(ctl.count, 7);
    done(&ctl);
    assert_false(parse(&ctl, "audit", "-n", NULL));
    assert_string_equal(said, "p2pctl: option '--count' needs an argument: N\n");
}

static void wrong_usage_says_what_would_be_right(void **state)
{
    struct ctl ctl;

    assert_false(parse(&ctl, "statsu", NULL));
    assert_string_equal(said, "p2pctl: unknown command 'statsu'; did you mean 'status'?\n");
    assert_false(parse(&ctl, "\033[1m", NULL));
    assert_string_equal(said, "p2pctl: unknown command '\\x1b[1m'; see 'p2pctl --help'\n");
    assert_false(parse(&ctl, "status", "--jsno", NULL));
    assert_string_equal(said, "p2pctl: unknown option '--jsno'; did you mean '--json'?\n");
    assert_false(parse(&ctl, "statsu", "--jsno", NULL)); /* the command first */
    assert_string_equal(said, "p2pctl: unknown command 'statsu'; did you mean 'status'?\n");
    assert_false(parse(&ctl, "status", "-z", NULL));
    assert_string_equal(said, "p2pctl: unknown option '-z'; see 'p2pctl --help'\n");
    assert_false(parse(&ctl, "stop", "--watch", NULL));
    assert_non_null(strstr(said, "'stop' takes no option '--watch'"));
    done(&ctl);
    assert_false(parse(&ctl, NULL));
    assert_non_null(strstr(said, "no command given"));
}

static void help_fits_80_columns(void **state)
{
    char *text = NULL, *line, *rest;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    verb_help_all(to);
    fflush(to);
    for (char *name = rest = strdup(text); (line = strsep(&rest, "\n")) != NULL;) {
        char verb[32];
        if (sscanf(line, "  %31[a-z]", verb) == 1 && verb_find(verb) != NULL)
            verb_help(verb_find(verb), to);
        if (rest == NULL)
            free(name);
    }
    fclose(to);
    unsigned lines = 0;
    for (rest = text; (line = strsep(&rest, "\n")) != NULL; lines++)
        if (strlen(line) >= 80)
            fail_msg("%s", line);
    assert_true(lines > 300);
    free(text);
}

static void an_option_of_another_verb_is_refused(void **state)
{
    struct ctl ctl;

    assert_false(parse(&ctl, "start", "--repair", NULL));
    done(&ctl);
    assert_false(parse(&ctl, "check", "--passphrase-file", "f", NULL));
    done(&ctl);
    assert_true(parse(&ctl, "check", "--repair", NULL));
    done(&ctl);
}

static void arguments_are_counted(void **state)
{
    struct ctl ctl;

    assert_false(parse(&ctl, "get", NULL));
    assert_string_equal(said, "p2pctl: missing arguments; usage: p2pctl get PATH...\n");
    done(&ctl);
    assert_false(parse(&ctl, "register", "URL", NULL));
    done(&ctl);
    assert_false(parse(&ctl, "ls", "/a", "/b", NULL));
    assert_string_equal(said, "p2pctl: too many arguments; usage: p2pctl ls [PATH]\n");
    done(&ctl);
    assert_false(parse(&ctl, "logout", "now", NULL));
    assert_string_equal(said, "p2pctl: 'logout' takes no argument; got 'now'\n");
    done(&ctl);
}

static void help_needs_nothing_else(void **state)
{
    struct ctl ctl;

    assert_true(parse(&ctl, "--help", NULL));
    assert_true(ctl.help && ctl.verb == NULL);
    assert_true(parse(&ctl, "get", "-h", NULL));
    assert_true(ctl.help && ctl.verb != NULL);
    assert_true(parse(&ctl, "-V", NULL));
    assert_true(ctl.version);
}

static void check_tidy(const char *path, const char *expected)
{
    char *tidy = path_tidy(path);

    assert_string_equal(tidy, expected);
    free(tidy);
}

static void paths_are_tidied(void **state)
{
    check_tidy("/", "/");
    check_tidy("//a//b/", "/a/b");
    check_tidy("/a/./b/../c", "/a/c");
    check_tidy("/../../x", "/x");
    check_tidy("/..", "/");
    check_tidy("/a/..", "/");
    check_tidy("/...", "/...");
    check_tidy("", "/");
}

static void a_path_is_the_swarms_unless_a_mount_says_otherwise(void **state)
{
    char *why = NULL, *path = path_resolve("/videos/no such directory/a.mkv", &why);

    assert_string_equal(path, "/videos/no such directory/a.mkv");
    free(path);
    path = path_resolve("/etc", &why); /* exists here, on no mount */
    assert_string_equal(path, "/etc");
    free(path);
    assert_null(path_resolve("no-such-file", &why));
    assert_string_equal(
        why, "no-such-file: no such file, and not a path inside the swarm: those begin with /");
    free(why);
    assert_null(path_resolve(".", &why));
    assert_string_equal(
        why, ".: not on a mount of p2pfs, and not a path inside the swarm: those begin with /");
    free(why);
    assert_null(path_resolve("", &why));
    free(why);
}

static int set_up(void **state)
{
    log_init("p2pctl", LOG_LEVEL_INFO, false);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_may_stand_anywhere),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(wrong_usage_says_what_would_be_right),
        cmocka_unit_test(an_option_of_another_verb_is_refused),
        cmocka_unit_test(arguments_are_counted),
        cmocka_unit_test(help_fits_80_columns),
        cmocka_unit_test(help_needs_nothing_else),
        cmocka_unit_test(paths_are_tidied),
        cmocka_unit_test(a_path_is_the_swarms_unless_a_mount_says_otherwise),
    };

    return cmocka_run_group_tests(tests, set_up, NULL);
}
