/* p2pctl's verbs, from command line to exit status, against a daemon that is played by the test: the
 * verb runs in a child whose output goes to files in memory, the test answers what it asks. */
#include "tools/ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/home.h"
#include "base/mem.h"
#include "proto/frame.h"
#include "proto/local.pb-c.h"

#define T(name)  LOCAL__LOCAL_TYPE__LOCAL_##name
#define WAIT_MS  10000
#define BODY_MAX 65536
#define URL                                                                                        \
    "p2p://localhost:7700/?ca=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static char home[] = "/tmp/p2pfs-ctl-XXXXXX";

struct play {
    int listener, fd; /* fd: the connection, -1 if none */
    pid_t child;
    int out, err;
    char out_text[16384], err_text[16384];
    struct frame frame; /* received last, and its message */
    uint8_t body[BODY_MAX];
};

/* --- the stage --------------------------------------------------------------------------------- */

static void play_listen(struct play *p)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *path = home_socket(home);

    unlink(path);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    free(path);
    p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(p->listener >= 0);
    assert_int_equal(bind(p->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(p->listener, 4), 0);
}

/* Starts "p2pctl --home HOME" with up to 12 more words, NULL-terminated. */
static void play_begin(struct play *p, ...)
{
    char program[] = "p2pctl", option[] = "--home", *argv[16] = {program, option, home};
    int argc = 3;
    va_list words;

    va_start(words, p);
    while (argc < 15 && (argv[argc] = va_arg(words, char *)) != NULL)
        argc++;
    va_end(words);
    p->fd = -1;
    p->out = memfd_create("out", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    p->err = memfd_create("err", MFD_CLOEXEC);
    assert_true(p->out >= 0 && p->err >= 0);
    fflush(NULL);
    p->child = fork();
    assert_true(p->child >= 0);
    if (p->child == 0) {
        int null = open("/dev/null", O_RDONLY);
        setsid(); /* no terminal to ask for a password */
        dup2(null, STDIN_FILENO);
        dup2(p->out, STDOUT_FILENO);
        dup2(p->err, STDERR_FILENO);
        /* A program may write to its arguments: p2pctl hides an invite. */
        for (int i = 3; i < argc; i++)
            argv[i] = xstrdup(argv[i]);
        exit(ctl_run(argc, argv)); /* not _exit: leaks are looked for */
    }
}

static void take(int fd, char *text, size_t room)
{
    ssize_t size = pread(fd, text, room - 1, 0);

    text[size > 0 ? size : 0] = '\0';
    close(fd);
}

/* The exit status; output is in out_text and err_text. */
static int play_end(struct play *p)
{
    int status;

    assert_int_equal(waitpid(p->child, &status, 0), p->child);
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
    take(p->out, p->out_text, sizeof p->out_text);
    take(p->err, p->err_text, sizeof p->err_text);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void receive_all(int fd, void *to, size_t size)
{
    uint8_t *at = to;

    while (size > 0) {
        struct pollfd q = {.fd = fd, .events = POLLIN};
        if (poll(&q, 1, WAIT_MS) <= 0)
            fail_msg("p2pctl sent nothing");
        ssize_t got = recv(fd, at, size, 0);
        assert_true(got > 0);
        at += got;
        size -= (size_t)got;
    }
}

/* The next request, which must be of that type. */
static void play_expect(struct play *p, uint16_t type)
{
    uint8_t header[FRAME_HEADER_SIZE];

    receive_all(p->fd, header, sizeof header);
    assert_null(frame_decode(&p->frame, header, BODY_MAX));
    assert_int_equal(p->frame.type, type);
    assert_true(p->frame.id != 0 && p->frame.flags == 0 && p->frame.payload_size == 0);
    receive_all(p->fd, p->body, p->frame.message_size);
}

static void send_frame(struct play *p, uint16_t type, uint8_t flags, uint32_t id,
                       const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = xmalloc(FRAME_HEADER_SIZE + size);
    const struct frame frame = {
        .message_size = (uint32_t)size, .type = type, .flags = flags, .id = id};

    frame_encode(bytes, &frame);
    protobuf_c_message_pack(message, bytes + FRAME_HEADER_SIZE);
    /* In two parts, as a socket may do. */
    size_t half = (FRAME_HEADER_SIZE + size) / 2;
    assert_int_equal(send(p->fd, bytes, half, MSG_NOSIGNAL), half);
    assert_int_equal(send(p->fd, bytes + half, FRAME_HEADER_SIZE + size - half, MSG_NOSIGNAL),
                     FRAME_HEADER_SIZE + size - half);
    free(bytes);
}

static void play_answer(struct play *p, uint16_t type, const ProtobufCMessage *message)
{
    send_frame(p, type, FRAME_ANSWER, p->frame.id, message);
}

/* The connection and its hello; `account` is who is logged in. */
static void play_welcome(struct play *p, const char *account)
{
    Local__Welcome welcome = LOCAL__WELCOME__INIT;
    struct pollfd q = {.fd = p->listener, .events = POLLIN};
    char name[65];

    if (poll(&q, 1, WAIT_MS) <= 0)
        fail_msg("p2pctl does not connect");
    p->fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(p->fd >= 0);
    play_expect(p, T(HELLO));
    Local__Hello *hello = local__hello__unpack(NULL, p->frame.message_size, p->body);
    assert_non_null(hello);
    assert_int_equal(hello->version, 1);
    assert_int_equal(hello->program, LOCAL__PROGRAM__PROGRAM_CTL);
    local__hello__free_unpacked(hello, NULL);
    snprintf(name, sizeof name, "%s", account);
    welcome.version = 1;
    welcome.pid = 0;
    welcome.account = name;
    play_answer(p, T(WELCOME), &welcome.base);
}

static void answer_done(struct play *p)
{
    const Local__Done done = LOCAL__DONE__INIT;

    play_answer(p, T(DONE), &done.base);
}

static void answer_error(struct play *p, int number, const char *text)
{
    Local__Error error = LOCAL__ERROR__INIT;
    char *copy = xstrdup(text);

    error.number = number;
    error.text = copy;
    play_answer(p, T(ERROR), &error.base);
    free(copy);
}

static json_t *output_json(const struct play *p)
{
    json_t *object = json_loads(p->out_text, 0, NULL);

    if (object == NULL)
        fail_msg("no JSON: '%s'", p->out_text);
    return object;
}

static int set_up(void **state)
{
    struct play *p = xcalloc(1, sizeof *p);

    play_listen(p);
    *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct play *p = *state;
    char *path = home_socket(home);

    close(p->listener);
    unlink(path);
    free(path);
    free(p);
    return 0;
}

static char *password_file(const char *name, const char *content)
{
    char *path = xasprintf("%s/%s", home, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, strlen(content)), strlen(content));
    close(fd);
    return path;
}

/* --- no daemon, an odd daemon ------------------------------------------------------------------ */

static void without_a_daemon_there_is_one_line_with_a_hint(void **state)
{
    struct play *p = *state;
    char expected[256], *path = home_socket(home);

    close(p->listener); /* a stale socket, as after kill -9 */
    snprintf(expected, sizeof expected,
             "p2pctl: p2pd is not running for %s; 'p2pctl start' starts it\n", home);
    for (int stale = 1; stale >= 0; stale--) {
        play_begin(p, "status", NULL);
        assert_int_equal(play_end(p), 1);
        assert_string_equal(p->out_text, "");
        assert_string_equal(p->err_text, expected);
        unlink(path);
    }
    play_begin(p, "stop", NULL);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->out_text, "p2pd is not running\n");
    free(path);
    play_listen(p);
}

static void a_daemon_of_another_version_is_named_as_the_trouble(void **state)
{
    struct play *p = *state;
    Local__Welcome welcome = LOCAL__WELCOME__INIT;

    play_begin(p, "whoami", NULL);
    p->fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);
    play_expect(p, T(HELLO));
    welcome.version = 2;
    play_answer(p, T(WELCOME), &welcome.base);
    assert_int_equal(play_end(p), 1);
    assert_non_null(strstr(p->err_text, "different packages"));
}

static void a_daemon_that_ends_meanwhile_is_told(void **state)
{
    struct play *p = *state;
    Local__Goodbye goodbye = LOCAL__GOODBYE__INIT;
    char text[] = "it was told to stop";

    play_begin(p, "whoami", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(WHOAMI));
    close(p->fd);
    p->fd = -1;
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text, "p2pctl: p2pd has ended\n");
    play_begin(p, "whoami", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(WHOAMI));
    goodbye.text = text;
    send_frame(p, T(GOODBYE), 0, 0, &goodbye.base);
    close(p->fd);
    p->fd = -1;
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text, "p2pctl: p2pd has ended: it was told to stop\n");
}

static void an_error_is_one_clean_line(void **state)
{
    struct play *p = *state;

    play_begin(p, "logout", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(LOGOUT));
    answer_error(p, ENOTCONN, "the tracker\n\033[31mis away");
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text, "p2pctl: the tracker\\x0a\\x1b[31mis away\n");
    play_begin(p, "unpin", "/a", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(UNPIN));
    answer_error(p, ENOENT, "");
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text, "p2pctl: No such file or directory\n");
}

static void garbage_ends_it_with_a_message(void **state)
{
    struct play *p = *state;
    uint8_t header[FRAME_HEADER_SIZE];

    play_begin(p, "whoami", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(WHOAMI));
    memset(header, 0xff, sizeof header);
    assert_int_equal(send(p->fd, header, sizeof header, MSG_NOSIGNAL), sizeof header);
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text, "p2pctl: p2pd sent something malformed\n");
}

/* --- accounts ---------------------------------------------------------------------------------- */

static void register_sends_what_was_given_and_prints_who_it_is(void **state)
{
    struct play *p = *state;
    Local__Account account = LOCAL__ACCOUNT__INIT;
    char *file = password_file("pw", "correct horse battery\n"), name[] = "ann", swarm[] = "lab";

    play_begin(p, "register", URL "&invite=abc", "ann", "--email", "ann@example.org",
               "--password-file", file, NULL);
    play_welcome(p, "");
    play_expect(p, T(REGISTER));
    Local__Register *asked = local__register__unpack(NULL, p->frame.message_size, p->body);
    assert_non_null(asked);
    assert_string_equal(asked->url, URL "&invite=abc");
    assert_string_equal(asked->name, "ann");
    assert_string_equal(asked->email, "ann@example.org");
    assert_int_equal(asked->password.len, 21);
    assert_memory_equal(asked->password.data, "correct horse battery", 21);
    local__register__free_unpacked(asked, NULL);
    account.name = name;
    account.swarm = swarm;
    play_answer(p, T(ACCOUNT), &account.base);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->out_text, "Registered and logged in as ann at lab\n");
    assert_string_equal(p->err_text, "");
    unlink(file);
    free(file);
}

static void wrong_arguments_never_reach_the_daemon(void **state)
{
    struct play *p = *state;

    play_begin(p, "register", "http://example.org", "ann", NULL);
    assert_int_equal(play_end(p), 2);
    assert_non_null(strstr(p->err_text, "is not a swarm's address"));
    play_begin(p, "login", URL, "Ann", NULL);
    assert_int_equal(play_end(p), 2);
    assert_non_null(strstr(p->err_text, "the account name 'Ann' "));
    play_begin(p, "register", URL, "ann", "--email", "nobody", NULL);
    assert_int_equal(play_end(p), 2);
}

static void without_terminal_and_file_there_is_no_password(void **state)
{
    struct play *p = *state;

    play_begin(p, "login", URL, "ann", NULL);
    play_welcome(p, "");
    assert_int_equal(play_end(p), 1);
    assert_string_equal(
        p->err_text,
        "p2pctl: Password of ann: there is no terminal to ask at; use --password-file FILE\n");

    play_begin(p, "email", "verify", "--url", URL, NULL);
    assert_int_equal(play_end(p), 1);
    assert_non_null(strstr(p->err_text, "Code from the mail: there is no terminal"));
}

static void passwd_sends_the_old_and_the_new_one(void **state)
{
    struct play *p = *state;
    char *old = password_file("old", "the old one\n"), *new = password_file("new", "the new one\n");

    play_begin(p, "passwd", "--password-file", old, "--new-password-file", new, NULL);
    play_welcome(p, "ann");
    play_expect(p, T(PASSWORD));
    Local__Password *asked = local__password__unpack(NULL, p->frame.message_size, p->body);
    assert_non_null(asked);
    assert_memory_equal(asked->old.data, "the old one", asked->old.len);
    assert_memory_equal(asked->new_.data, "the new one", asked->new_.len);
    assert_int_equal(asked->new_.len, 11);
    local__password__free_unpacked(asked, NULL);
    answer_done(p);
    assert_int_equal(play_end(p), 0);
    assert_non_null(strstr(p->out_text, "The password has been changed."));
    unlink(old);
    unlink(new);
    free(old);
    free(new);
}

static void whoami_tells_the_account_or_that_there_is_none(void **state)
{
    struct play *p = *state;
    Local__Account account = LOCAL__ACCOUNT__INIT;
    char name[] = "ann", device[] = "00aa", machine[] = "ann's \033[1mlaptop";
    Local__Device one = LOCAL__DEVICE__INIT, *devices[] = {&one};

    play_begin(p, "whoami", NULL);
    play_welcome(p, "");
    assert_int_equal(play_end(p), 1);
    assert_non_null(strstr(p->err_text, "nobody is logged in here"));
    play_begin(p, "whoami", "--tracker", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(WHOAMI));
    Local__Whoami *asked = local__whoami__unpack(NULL, p->frame.message_size, p->body);
    assert_true(asked->ask_tracker);
    local__whoami__free_unpacked(asked, NULL);
    account.name = name;
    account.admin = true;
    one.id = device;
    one.machine = machine;
    one.connected = one.this_one = true;
    account.devices = devices;
    account.n_devices = 1;
    play_answer(p, T(ACCOUNT), &account.base);
    assert_int_equal(play_end(p), 0);
    assert_non_null(strstr(p->out_text, "account     ann (admin)\n"));
    assert_non_null(strstr(p->out_text, "ann's \\x1b[1mlaptop"));
}

static void invite_prints_one_line(void **state)
{
    struct play *p = *state;
    Local__Text text = LOCAL__TEXT__INIT;
    char url[] = URL "&invite=abc";

    play_begin(p, "invite", "--uses", "3", "--expires", "1h", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(INVITE));
    Local__Invite *asked = local__invite__unpack(NULL, p->frame.message_size, p->body);
    assert_true(!asked->admin && asked->uses == 3 && asked->lifetime == 3600);
    local__invite__free_unpacked(asked, NULL);
    text.text = url;
    play_answer(p, T(TEXT), &text.base);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->out_text, URL "&invite=abc\n");
}

/* --- files ------------------------------------------------------------------------------------- */

static void answer_status(struct play *p)
{
    Local__Status status = LOCAL__STATUS__INIT;
    Local__FileStatus file = LOCAL__FILE_STATUS__INIT, *files[] = {&file};
    Local__Attr attr = LOCAL__ATTR__INIT;
    char path[] = "/films/Größe.mkv", account[] = "ann", why[] = "nobody has 3 of its pieces",
         version[] = "0.1.0", away[] = "connection refused";

    attr.kind = LOCAL__KIND__KIND_FILE;
    attr.size = 3 << 20;
    attr.state = LOCAL__STATE__STATE_STREAMING;
    file.path = path;
    file.attr = &attr;
    file.have = 1 << 20;
    file.waiting = 2;
    file.rate_in = 1000;
    file.trouble = why;
    status.account = account;
    status.tracker_trouble = away;
    status.pid = 4711;
    status.version = version;
    status.files = files;
    status.n_files = 1;
    play_answer(p, T(STATUS_IS), &status.base);
}

static void status_shows_what_moves_and_why_not(void **state)
{
    struct play *p = *state;

    play_begin(p, "status", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(STATUS));
    answer_status(p);
    assert_int_equal(play_end(p), 0);
    assert_non_null(strstr(p->out_text, "account    ann\n"));
    assert_non_null(strstr(p->out_text, "tracker    not connected: connection refused\n"));
    assert_non_null(strstr(p->out_text, "pid 4711"));
    assert_non_null(strstr(p->out_text, "/films/Größe.mkv  3.0 MiB   33%  partly here  1000 B/s"));
    assert_non_null(strstr(p->out_text, "    nobody has 3 of its pieces\n"));
}

static void status_as_json_has_the_messages_keys(void **state)
{
    struct play *p = *state;

    play_begin(p, "status", "//films/x/../Größe.mkv", "--json", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(STATUS));
    Local__StatusRequest *asked =
        local__status_request__unpack(NULL, p->frame.message_size, p->body);
    assert_int_equal(asked->n_paths, 1);
    assert_string_equal(asked->paths[0], "/films/Größe.mkv");
    local__status_request__free_unpacked(asked, NULL);
    answer_status(p);
    assert_int_equal(play_end(p), 0);
    assert_non_null(strstr(p->out_text, "  \"pid\": 4711"));
    assert_non_null(strstr(p->out_text, "\"waiting\": 2"));
    json_t *object = output_json(p), *file = json_array_get(json_object_get(object, "files"), 0);
    assert_string_equal(json_string_value(json_object_get(file, "state")), "streaming");
    assert_int_equal(json_integer_value(json_object_get(file, "have")), 1 << 20);
    assert_true(json_is_false(json_object_get(object, "connected")));
    json_decref(object);
}

static void get_waits_for_the_answer_and_says_why_it_waits(void **state)
{
    struct play *p = *state;
    Local__Progress progress = LOCAL__PROGRESS__INIT;
    char why[] = "nobody who is connected has 12 of its pieces", nothing[] = "";

    play_begin(p, "get", "/a", "/b", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(GET));
    Local__Get *asked = local__get__unpack(NULL, p->frame.message_size, p->body);
    assert_true(asked->n_paths == 2 && !asked->pin && !asked->no_wait);
    local__get__free_unpacked(asked, NULL);
    progress.size = 1000;
    progress.trouble = why;
    for (int i = 0; i < 7; i++) { /* as p2pd does, a few a second */
        send_frame(p, T(PROGRESS), 0, p->frame.id, &progress.base);
        usleep(100000);
    }
    progress.have = 1000;
    progress.trouble = nothing;
    send_frame(p, T(PROGRESS), 0, p->frame.id, &progress.base);
    answer_done(p);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->err_text, "waiting: nobody who is connected has 12 of its pieces\n");
    assert_non_null(strstr(p->out_text, "Fetched 1000 B"));
}

static void a_get_that_p2pd_does_not_survive_can_be_run_again(void **state)
{
    struct play *p = *state;

    play_begin(p, "get", "/a", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(GET));
    close(p->fd);
    p->fd = -1;
    assert_int_equal(play_end(p), 1);
    assert_string_equal(p->err_text,
                        "p2pctl: p2pd has ended; what came is kept: run this again to go on\n");
}

static void pin_does_not_wait(void **state)
{
    struct play *p = *state;

    play_begin(p, "pin", "/a", "--json", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(GET));
    Local__Get *asked = local__get__unpack(NULL, p->frame.message_size, p->body);
    assert_true(asked->n_paths == 1 && asked->pin && asked->no_wait);
    local__get__free_unpacked(asked, NULL);
    answer_done(p);
    assert_int_equal(play_end(p), 0);
    json_decref(output_json(p));
}

static void ls_takes_page_after_page_and_sorts(void **state)
{
    struct play *p = *state;
    Local__Listing page = LOCAL__LISTING__INIT;
    Local__Attr one = LOCAL__ATTR__INIT, *entries[] = {&one};
    uint64_t cookies[] = {17};
    char zoo[] = "zoo", ape[] = "a\npe";

    play_begin(p, "ls", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(LS));
    one.name = zoo;
    one.kind = LOCAL__KIND__KIND_DIRECTORY;
    page.entries = entries;
    page.n_entries = page.n_cookies = 1;
    page.cookies = cookies;
    play_answer(p, T(LISTING), &page.base);
    play_expect(p, T(LS));
    Local__Ls *asked = local__ls__unpack(NULL, p->frame.message_size, p->body);
    assert_string_equal(asked->path, "/");
    assert_int_equal(asked->cookie, 17);
    local__ls__free_unpacked(asked, NULL);
    one.name = ape;
    page.end = true;
    play_answer(p, T(LISTING), &page.base);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->out_text, "a\\x0ape\nzoo\n");
}

static void peers_and_health_are_tables(void **state)
{
    struct play *p = *state;
    Local__Peers peers = LOCAL__PEERS__INIT;
    Local__Peer peer = LOCAL__PEER__INIT, *list[] = {&peer};
    Local__Health health = LOCAL__HEALTH__INIT;
    Local__FileHealth file = LOCAL__FILE_HEALTH__INIT, *files[] = {&file};
    char ben[] = "ben", address[] = "[::1]:7701", in[] = "in", connected[] = "connected",
         path[] = "/a";

    play_begin(p, "peers", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(PEERS));
    peer.account = ben;
    peer.address = address;
    peer.direction = in;
    peer.state = connected;
    peer.rtt_us = 1250;
    peers.peers = list;
    peers.n_peers = 1;
    play_answer(p, T(PEERS_ARE), &peers.base);
    assert_int_equal(play_end(p), 0);
    assert_string_equal(p->out_text, "MEMBER  ADDRESS     WAY  TOTAL     RTT  FILES  STATE\n"
                                     "ben     [::1]:7701  in     0 B  1.2 ms      0  connected\n");
    play_begin(p, "health", "/a", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(HEALTH));
    file.path = path;
    file.pieces = 4;
    file.rarest = 1;
    file.distributed = 1750;
    health.files = files;
    health.n_files = 1;
    play_answer(p, T(HEALTH_IS), &health.base);
    assert_int_equal(play_end(p), 0);
    assert_non_null(strstr(p->out_text, "at risk   1.750"));
}

static void a_full_disk_behind_the_output_is_a_failure(void **state)
{
    struct play *p = *state;
    Local__Text text = LOCAL__TEXT__INIT;
    char url[] = URL;

    play_begin(p, "invite", NULL);
    play_welcome(p, "ann");
    play_expect(p, T(INVITE));
    /* Standard output is a file in memory that may no longer grow. */
    text.text = url;
    int sealed = fcntl(p->out, F_ADD_SEALS, F_SEAL_GROW);
    play_answer(p, T(TEXT), &text.base);
    int status = play_end(p);
    if (sealed == 0) {
        assert_int_equal(status, 1);
        assert_non_null(strstr(p->err_text, "p2pctl: standard output: "));
    }
}

static int make_home(void **state)
{
    unsetenv("P2P_PASSWORD_FILE");
    unsetenv("P2P_LOG");
    return mkdtemp(home) != NULL ? 0 : -1;
}

static int remove_home(void **state)
{
    return rmdir(home);
}

#define PLAY(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAY(without_a_daemon_there_is_one_line_with_a_hint),
        PLAY(a_daemon_of_another_version_is_named_as_the_trouble),
        PLAY(a_daemon_that_ends_meanwhile_is_told),
        PLAY(an_error_is_one_clean_line),
        PLAY(garbage_ends_it_with_a_message),
        PLAY(register_sends_what_was_given_and_prints_who_it_is),
        PLAY(wrong_arguments_never_reach_the_daemon),
        PLAY(without_terminal_and_file_there_is_no_password),
        PLAY(passwd_sends_the_old_and_the_new_one),
        PLAY(whoami_tells_the_account_or_that_there_is_none),
        PLAY(invite_prints_one_line),
        PLAY(status_shows_what_moves_and_why_not),
        PLAY(status_as_json_has_the_messages_keys),
        PLAY(get_waits_for_the_answer_and_says_why_it_waits),
        PLAY(a_get_that_p2pd_does_not_survive_can_be_run_again),
        PLAY(pin_does_not_wait),
        PLAY(ls_takes_page_after_page_and_sorts),
        PLAY(peers_and_health_are_tables),
        PLAY(a_full_disk_behind_the_output_is_a_failure),
    };

    return cmocka_run_group_tests(tests, make_home, remove_home);
}
