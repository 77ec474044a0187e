/* The control socket, both ends of it.
 *
 * Holds nothing. On the lab's side its single thread; a client that does not read its answers loses them, as the
 * lab waits for nobody. */
#include "tests/lab/control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"

struct text {
    char *at;
    size_t room;
};

static void say(struct text *, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(struct text *text, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text->at, text->room, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    if ((size_t)length >= text->room)
        length = (int)text->room - 1;
    text->at += length;
    text->room -= (size_t)length;
}

/* The host that `word` names, or NULL. */
static struct host *find_host(const struct net *net, const char *word)
{
    uint64_t number;

    if (word == NULL || !number_parse(word, 1, net->count, &number))
        return NULL;
    return &net->hosts[number - 1];
}

static void change(struct host *host, const struct link_setting *setting)
{
    host->setting = *setting;
    line_set(&host->up, &setting->up);
    line_set(&host->down, &setting->down);
}

static void answer_set(struct net *net, const char *which, const char *text, struct text *out)
{
    struct host *one = find_host(net, which);
    struct link_setting setting;
    const char *fault = NULL;

    if (which == NULL || text == NULL || (one == NULL && strcmp(which, "all") != 0)) {
        say(out, "error set takes a host from 1 to %u or 'all', and a setting", net->count);
        return;
    }
    for (unsigned i = 0; i < net->count && fault == NULL; i++) {
        struct host *host = &net->hosts[i];
        if (one != NULL && host != one)
            continue;
        setting = host->setting;
        fault = link_setting_parse(text, &setting);
        if (fault == NULL)
            change(host, &setting);
    }
    say(out, fault == NULL ? "ok" : "error %s", fault);
}

static void show_line(const char *name, const struct line_setting *setting, struct text *out)
{
    char rate[LINE_TEXT_MAX], queue[NUMBER_TEXT_MAX] = "endless";

    if (line_queue(setting) != UINT64_MAX)
        bytes_format(queue, line_queue(setting));
    say(out, "  %s %s, %g ms, queue %s, loss %g%%", name, line_rate_format(rate, setting->rate),
        (double)setting->delay_ns / 1e6, queue, setting->loss * 100);
}

static void answer_show(const struct net *net, struct text *out)
{
    say(out, "ok\n");
    for (unsigned i = 0; i < net->count; i++) {
        const struct host *host = &net->hosts[i];
        say(out, "host %u  10.77.0.%u  fd77::%x", host->number, host->number, host->number);
        show_line("up", &host->setting.up, out);
        show_line("down", &host->setting.down, out);
        say(out, "%s\n", host->setting.closed ? "  not dialled" : "");
    }
}

static void count_line(const char *name, const struct line *line, struct text *out)
{
    const struct line_count *count = &line->count;

    say(out,
        "\"%s\":{\"packets\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"dropped\":%" PRIu64
        ",\"lost\":%" PRIu64 ",\"held\":%" PRIu64 "}",
        name, count->packets, count->bytes, count->dropped, count->lost, line->held);
}

static void answer_stats(const struct net *net, struct text *out)
{
    say(out, "ok\n{\"hosts\":[");
    for (unsigned i = 0; i < net->count; i++) {
        say(out, "%s{\"host\":%u,", i == 0 ? "" : ",", net->hosts[i].number);
        count_line("up", &net->hosts[i].up, out);
        say(out, ",");
        count_line("down", &net->hosts[i].down, out);
        say(out, "}");
    }
    say(out, "],\"astray\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"late_us\":%" PRIi64 "}",
        net->astray, net->refused, net->late_ns / 1000);
}

int control_answer(struct net *net, char *command, char *answer, bool *quit)
{
    struct text out = {answer, CONTROL_ANSWER_MAX};
    char *rest = command;
    const char *verb = strsep(&rest, " \n");
    const char *first = rest == NULL ? NULL : strsep(&rest, " \n");
    const char *second = rest == NULL ? NULL : strsep(&rest, " \n");

    answer[0] = '\0';
    if (strcmp(verb, "set") == 0) {
        answer_set(net, first, second, &out);
    } else if (strcmp(verb, "show") == 0) {
        answer_show(net, &out);
    } else if (strcmp(verb, "stats") == 0) {
        answer_stats(net, &out);
    } else if (strcmp(verb, "clear") == 0) {
        net_clear_counters(net);
        say(&out, "ok");
    } else if (strcmp(verb, "enter") == 0 && find_host(net, first) != NULL) {
        say(&out, "ok");
        return find_host(net, first)->netns;
    } else if (strcmp(verb, "enter") == 0) {
        say(&out, "error there is no such host: they are numbered from 1 to %u", net->count);
    } else if (strcmp(verb, "quit") == 0) {
        *quit = true;
        say(&out, "ok");
    } else {
        say(&out, "error a command is one of set, show, stats, clear, enter, quit");
    }
    return -1;
}

/* --- the socket ----------------------------------------------------------------------------------------- */

/* False if the name is too long. */
static bool address_of(const char *name, struct sockaddr_un *address, socklen_t *length)
{
    int used;

    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    used = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "p2p-lab/%s", name);
    if (used < 0 || (size_t)used >= sizeof address->sun_path - 1) {
        log_error("a lab's name is at most %zu characters", sizeof address->sun_path - 10);
        return false;
    }
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)used);
    return true;
}

int control_listen(const char *name)
{
    struct sockaddr_un address;
    socklen_t length;
    int listener;

    if (!address_of(name, &address, &length))
        return -1;
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener >= 0 && bind(listener, (const struct sockaddr *)&address, length) == 0 &&
        listen(listener, 16) == 0)
        return listener;
    if (errno == EADDRINUSE)
        log_error("a lab with the name '%s' is running; give this one another with --name", name);
    else
        log_error("cannot listen for commands: %s", strerror(errno));
    if (listener >= 0)
        close(listener);
    return -1;
}

/* One message, with a descriptor if `fd` is not -1. */
static bool send_message(int socket, const char *text, int fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {(char *)(uintptr_t)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    memset(&control, 0, sizeof control);
    if (fd >= 0) {
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) >= 0;
}

bool control_serve(struct net *net, int connection, bool *quit)
{
    static char answer[CONTROL_ANSWER_MAX];
    char command[CONTROL_COMMAND_MAX];
    struct ucred peer;
    socklen_t length = sizeof peer;
    ssize_t got = recv(connection, command, sizeof command - 1, 0);
    int fd;

    if (got < 0 && errno == EAGAIN)
        return true;
    if (got <= 0 || getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
        return false;
    command[got] = '\0';
    if (peer.uid != geteuid())
        return send_message(connection, "error the lab belongs to another user", -1);
    fd = control_answer(net, command, answer, quit);
    return send_message(connection, answer, fd);
}

/* --- the other side ------------------------------------------------------------------------------------- */

/* Reads the answer and what came along. False if the connection ended. */
static bool receive_message(int socket, char *answer, int *fd)
{
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {answer, CONTROL_ANSWER_MAX - 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *head;

    if (got <= 0)
        return false;
    answer[got] = '\0';
    head = CMSG_FIRSTHDR(&message);
    if (head != NULL && head->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(head), sizeof *fd);
    return true;
}

int control_ask(const char *name, const char *command, char *answer, int *fd)
{
    struct sockaddr_un address;
    socklen_t length;
    int came = -1, result = -1;
    int asker = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd != NULL)
        *fd = -1;
    if (asker < 0 || !address_of(name, &address, &length))
        goto out;
    if (connect(asker, (const struct sockaddr *)&address, length) != 0) {
        log_error("no lab with the name '%s' is running", name);
        goto out;
    }
    if (!send_message(asker, command, -1) || !receive_message(asker, answer, &came))
        log_error("the lab does not answer");
    else if (strncmp(answer, "error ", 6) == 0)
        log_error("%s", answer + 6);
    else
        result = 0;
    if (came >= 0 && (fd == NULL || result != 0))
        close(came);
    else if (fd != NULL)
        *fd = came;
out:
    if (asker >= 0)
        close(asker);
    return result;
}
