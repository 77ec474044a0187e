/* The terminal: size, full screen, signals.
 *
 * Owns the screen's state and the signal handlers between terminal_enter and terminal_leave. Control
 * sequences are ECMA-48's and xterm's, which every terminal of today knows. One thread. */
#include "tools/terminal.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"

#define ENTER          "\033[?1049h\033[?25l" /* alternate screen, no cursor */
#define LEAVE          "\033[?25h\033[?1049l"
#define HOME           "\033[H"
#define CLEAR_LINE_END "\033[K"
#define CLEAR_BELOW    "\033[J"

static volatile sig_atomic_t ending, stopping;
static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH};
#define SIGNALS (sizeof signals / sizeof signals[0])

static bool entered;
static sigset_t outside; /* the mask as it was */
static struct sigaction handlers[SIGNALS];

static struct winsize size_of(int fd)
{
    struct winsize size = {0};

    if (!isatty(fd) || ioctl(fd, TIOCGWINSZ, &size) != 0)
        memset(&size, 0, sizeof size);
    return size;
}

size_t terminal_width(int fd)
{
    size_t width = size_of(fd).ws_col;

    return width == 0 && isatty(fd) ? 80 : width;
}

size_t terminal_height(int fd)
{
    size_t height = size_of(fd).ws_row;

    return height == 0 && isatty(fd) ? 24 : height;
}

static void on_signal(int number)
{
    if (number == SIGTSTP)
        stopping = 1;
    else if (number != SIGWINCH)
        ending = number;
}

static void write_now(const char *text)
{
    fputs(text, stdout);
    fflush(stdout);
}

void terminal_enter(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t held;

    sigemptyset(&action.sa_mask);
    sigemptyset(&held);
    for (size_t i = 0; i < SIGNALS; i++)
        sigaddset(&held, signals[i]);
    sigprocmask(SIG_BLOCK, &held, &outside);
    for (size_t i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &action, &handlers[i]);
    entered = true;
    write_now(ENTER);
}

void terminal_leave(void)
{
    if (!entered)
        return;
    entered = false;
    write_now(LEAVE);
    for (size_t i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &handlers[i], NULL);
    sigprocmask(SIG_SETMASK, &outside, NULL);
}

const sigset_t *terminal_wait_mask(void)
{
    return &outside;
}

bool terminal_serve_signals(void)
{
    if (stopping) {
        stopping = 0;
        terminal_leave();
        raise(SIGTSTP);
        terminal_enter();
    }
    return ending != 0;
}

void terminal_show(const char *text)
{
    size_t left = terminal_height(STDOUT_FILENO);

    fputs(HOME, stdout);
    while (*text != '\0' && left > 0) {
        size_t length = strcspn(text, "\n");

        printf("%.*s%s", (int)length, text, CLEAR_LINE_END);
        text += length + (text[length] == '\n');
        /* A line end in the last line would scroll the first one away. */
        if (--left > 0)
            putchar('\n');
    }
    write_now(CLEAR_BELOW);
}

void terminal_pause(int64_t ns)
{
    const struct timespec limit = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};

    if (ns > 0)
        (void)ppoll(NULL, 0, &limit, entered ? &outside : NULL);
}
