/* Streams over Unix sockets: events, back-pressure, descriptors, ends and failures.
 *
 * Each test runs a loop on its own thread. `a` is the stream under test; its other end is a second
 * stream or a plain socket. A guard timer ends a loop whose event never came. */
#include "base/clock.h"
#include "base/loop.h"
#include "base/stream.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct end {
    struct stream *stream;
    unsigned ready, readable, writable, failed;
    bool within;    /* a call of the owner's is under way: no event may come */
    unsigned wrong; /* events at the wrong time */
    char why[128];
    void (*act)(struct end *, char event); /* 'r'eady, re'a'dable, 'w'ritable, 'f'ailed */
    char got[1 << 16];
    size_t got_size;
    bool ended;
    /* For bulk: how far each direction is. */
    uint64_t written, seen;
};

static struct loop *loop;
static struct timer *guard, *later;
static bool timed_out;
static struct end a, b;
static int plain; /* the other end, when it is not `b` */
static unsigned descriptors_before;

static unsigned open_descriptors(void)
{
    DIR *list = opendir("/proc/self/fd");
    unsigned count = 0;

    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

static void event(struct end *end, unsigned *count, char which)
{
    ++*count;
    end->wrong += end->within || !loop_is_here(loop) || (which != 'f' && end->ready == 0);
    if (end->act != NULL)
        end->act(end, which);
}

static void on_ready(void *arg)
{
    struct end *end = arg;

    event(end, &end->ready, 'r');
}

static void on_readable(void *arg)
{
    struct end *end = arg;

    event(end, &end->readable, 'a');
}

static void on_writable(void *arg)
{
    struct end *end = arg;

    event(end, &end->writable, 'w');
}

static void on_failed(void *arg, const char *why)
{
    struct end *end = arg;

    snprintf(end->why, sizeof(end->why), "%s", why);
    event(end, &end->failed, 'f');
}

static const struct stream_events events = {on_ready, on_readable, on_writable, on_failed};

static void fire_guard(void *arg)
{
    timed_out = true;
    loop_stop(loop);
}

static void fire_later(void *arg)
{
    loop_stop(loop);
}

static void open_end(struct end *end, int fd)
{
    end->stream = stream_unix(loop, fd);
    stream_set_events(end->stream, &events, end);
}

static int set_up(void **state)
{
    descriptors_before = open_descriptors();
    memset(&a, 0, sizeof(a));
    memset(&b, 0, sizeof(b));
    timed_out = false;
    plain = -1;
    loop = loop_new("test");
    guard = timer_new(loop, fire_guard, NULL);
    later = timer_new(loop, fire_later, NULL);
    timer_set(guard, 20 * NS_PER_S);
    return 0;
}

static int tear_down(void **state)
{
    stream_free(a.stream);
    stream_free(b.stream);
    if (plain >= 0)
        close(plain);
    timer_free(guard);
    timer_free(later);
    loop_free(loop);
    /* Every test proves that nothing leaks and that no event came at a wrong time. */
    assert_int_equal(open_descriptors(), descriptors_before);
    assert_int_equal(a.wrong + b.wrong, 0);
    return 0;
}

static void two_streams(void)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    open_end(&a, pair[0]);
    open_end(&b, pair[1]);
}

static void stream_and_socket(void)
{
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    open_end(&a, pair[0]);
    plain = pair[1];
}

static void run(void)
{
    loop_run(loop);
    assert_false(timed_out);
}

/* Runs for a while in which nothing stops the loop, to see what does not come. A loop runs only
 * once, so it is the last run of a test. */
static void run_a_while(void)
{
    timer_set(later, 50 * NS_PER_MS);
    run();
}

static ssize_t write_all(struct end *end, const char *text)
{
    ssize_t n;

    end->within = true;
    n = stream_write(end->stream, text, strlen(text));
    if (n >= 0 && stream_flush(end->stream) == STREAM_FAILED)
        n = STREAM_FAILED;
    end->within = false;
    return n;
}

/* Reads up to AGAIN; the text is in `got`. */
static ssize_t read_all(struct end *end)
{
    ssize_t n;

    end->within = true;
    while ((n = stream_read(end->stream, end->got + end->got_size,
                            sizeof(end->got) - end->got_size - 1)) > 0)
        end->got_size += (size_t)n;
    end->within = false;
    if (n == 0)
        end->ended = true;
    return n;
}

/* --- events
 * --------------------------------------------------------------------------------------- */

static void act_order(struct end *end, char which)
{
    end->got[end->got_size++] = which;
    if (which == 'a')
        loop_stop(loop);
}

static void ready_comes_first_and_in_a_later_round(void **state)
{
    stream_and_socket();
    a.act = act_order;
    assert_int_equal(write(plain, "x", 1), 1);
    assert_int_equal(a.ready, 0);
    run();
    assert_string_equal(a.got, "ra");
}

static void act_echo(struct end *end, char which)
{
    if (which != 'a')
        return;
    end->got_size = 0;
    read_all(end);
    end->got[end->got_size] = '\0';
    write_all(end, end->got);
}

static void act_ping(struct end *end, char which)
{
    if (which == 'r') {
        write_all(end, "0");
    } else if (which == 'a') {
        end->got_size = 0;
        read_all(end);
        end->got[end->got_size] = '\0';
        if (strtoul(end->got, NULL, 10) != end->seen) {
            end->wrong++;
            loop_stop(loop);
        } else if (++end->seen == 3000) {
            loop_stop(loop);
        } else {
            char text[24];

            snprintf(text, sizeof(text), "%llu", (unsigned long long)end->seen);
            write_all(end, text);
        }
    }
}

static void messages_go_to_and_fro(void **state)
{
    two_streams();
    a.act = act_ping;
    b.act = act_echo;
    run();
    assert_int_equal(a.seen, 3000);
}

static void a_flush_sends_at_once(void **state)
{
    char text[8] = "";

    stream_and_socket();
    assert_int_equal(stream_write(a.stream, "abc", 3), 3);
    assert_int_equal(recv(plain, text, sizeof(text), 0), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(stream_write(a.stream, "def", 3), 3);
    assert_int_equal(stream_flush(a.stream), 0);
    assert_int_equal(recv(plain, text, sizeof(text), 0), 6);
    assert_string_equal(text, "abcdef");
    assert_int_equal(stream_flush(a.stream), 0);
    assert_int_equal(stream_write(a.stream, "", 0), 0);
}

/* Reads one byte per event and stops early. */
static void act_one_byte(struct end *end, char which)
{
    if (which == 'a' && stream_read(end->stream, end->got + end->got_size, 1) == 1)
        end->got_size++;
}

static void who_stops_early_hears_nothing_until_he_resumes(void **state)
{
    stream_and_socket();
    a.act = act_one_byte;
    assert_int_equal(write(plain, "abc", 3), 3);
    run_a_while();
    assert_int_equal(a.readable, 1);
    assert_string_equal(a.got, "a");
}

static void act_one_byte_and_more_comes(struct end *end, char which)
{
    act_one_byte(end, which);
    if (which == 'a' && end->readable == 1)
        assert_int_equal(write(plain, "def", 3), 3);
}

static void new_bytes_do_not_wake_who_stopped_early(void **state)
{
    stream_and_socket();
    a.act = act_one_byte_and_more_comes;
    assert_int_equal(write(plain, "abc", 3), 3);
    run_a_while();
    assert_int_equal(a.readable, 1);
    assert_string_equal(a.got, "a");
}

static void act_one_byte_and_resume(struct end *end, char which)
{
    act_one_byte(end, which);
    if (which != 'a')
        return;
    if (end->got_size == 3) {
        loop_stop(loop);
        return;
    }
    end->within = true;
    stream_resume(end->stream);
    end->within = false;
}

static void each_resume_brings_an_event(void **state)
{
    stream_and_socket();
    a.act = act_one_byte_and_resume;
    assert_int_equal(write(plain, "abc", 3), 3);
    run();
    assert_int_equal(a.readable, 3);
    assert_string_equal(a.got, "abc");
}

/* Stops after a read that emptied the socket, without having been told AGAIN. More comes meanwhile.
 */
static void act_stop_at_the_brink(struct end *end, char which)
{
    ssize_t n;

    if (which != 'a')
        return;
    n = stream_read(end->stream, end->got + end->got_size, 100);
    if (n > 0)
        end->got_size += (size_t)n;
    if (end->readable == 1) {
        assert_int_equal(write(plain, "def", 3), 3);
        stream_resume(end->stream);
    } else if (end->got_size >= 6) {
        loop_stop(loop);
    }
}

static void bytes_that_come_between_a_last_read_and_a_resume_are_found(void **state)
{
    stream_and_socket();
    a.act = act_stop_at_the_brink;
    assert_int_equal(write(plain, "abc", 3), 3);
    run();
    assert_string_equal(a.got, "abcdef");
}

static void act_read_then_more(struct end *end, char which)
{
    if (which != 'a')
        return;
    /* Lands between the read that empties the socket and the one that says AGAIN. */
    end->got_size += (size_t)stream_read(end->stream, end->got + end->got_size, 100);
    if (end->got_size == 20)
        loop_stop(loop);
    else
        assert_int_equal(write(plain, "x", 1), 1);
    while (stream_read(end->stream, end->got + end->got_size, 1) > 0)
        end->got_size++;
}

static void bytes_that_come_before_again_bring_an_event(void **state)
{
    stream_and_socket();
    a.act = act_read_then_more;
    assert_int_equal(write(plain, "x", 1), 1);
    run();
    assert_true(a.got_size >= 20);
}

/* --- ends
 * ----------------------------------------------------------------------------------------- */

static void act_until_end(struct end *end, char which)
{
    if (which == 'f' || (which == 'a' && read_all(end) != STREAM_AGAIN))
        loop_stop(loop);
}

static void the_peers_end_comes_after_its_last_bytes(void **state)
{
    stream_and_socket();
    a.act = act_until_end;
    assert_int_equal(write(plain, "last words", 10), 10);
    close(plain);
    plain = -1;
    run();
    assert_true(a.ended);
    assert_string_equal(a.got, "last words");
    assert_int_equal(a.failed, 0);
    assert_int_equal(stream_read(a.stream, a.got, 1), 0);
}

static void act_close_peer(struct end *end, char which)
{
    if (which == 'a' && end->readable == 1) {
        read_all(end);
        close(plain);
        plain = -1;
    } else {
        act_until_end(end, which);
    }
}

static void an_end_that_comes_later_brings_an_event(void **state)
{
    stream_and_socket();
    a.act = act_close_peer;
    assert_int_equal(write(plain, "x", 1), 1);
    run();
    assert_true(a.ended);
    assert_int_equal(a.failed, 0);
}

static void a_half_closed_stream_can_still_answer(void **state)
{
    char text[8] = "";

    stream_and_socket();
    a.act = act_until_end;
    assert_int_equal(write(plain, "ask", 3), 3);
    assert_int_equal(shutdown(plain, SHUT_WR), 0);
    run();
    assert_true(a.ended);
    assert_int_equal(write_all(&a, "answer"), 6);
    assert_int_equal(recv(plain, text, sizeof(text), 0), 6);
    assert_string_equal(text, "answer");
}

static void writing_to_a_closed_peer_fails_once_and_later(void **state)
{
    stream_and_socket();
    a.act = act_until_end;
    close(plain);
    plain = -1;
    assert_int_equal(write_all(&a, "x"), STREAM_FAILED);
    assert_int_equal(a.failed, 0);
    assert_int_equal(write_all(&a, "x"), STREAM_FAILED);
    assert_int_equal(stream_read(a.stream, a.got, 1), STREAM_FAILED);
    assert_int_equal(stream_flush(a.stream), STREAM_FAILED);
    assert_int_equal(stream_unix_attach(a.stream, 0), -EPIPE);
    run_a_while();
    assert_int_equal(a.failed, 1);
    assert_int_equal(a.ready, 0);
    assert_string_equal(a.why, "cannot write: Broken pipe");
}

static void act_free(struct end *end, char which)
{
    if (which != end->got[0])
        return;
    stream_free(end->stream);
    end->stream = NULL;
    timer_set(later, 20 * NS_PER_MS); /* nothing may come any more */
}

static void a_stream_may_be_freed_within_any_callback(void **state)
{
    stream_and_socket();
    a.act = act_free;
    a.got[0] = *(char *)*state;
    if (a.got[0] == 'a') {
        assert_int_equal(write(plain, "x", 1), 1);
    } else if (a.got[0] == 'f') {
        close(plain);
        plain = -1;
        assert_int_equal(write_all(&a, "x"), STREAM_FAILED);
    } else if (a.got[0] == 'r') {
        assert_int_equal(write(plain, "x", 1), 1);
        stream_resume(a.stream);
    }
    run();
    assert_null(a.stream);
    assert_int_equal(a.ready, a.got[0] != 'f');
    assert_int_equal(a.readable, a.got[0] == 'a');
    assert_int_equal(a.failed, a.got[0] == 'f');
}

static void a_freed_stream_has_no_events(void **state)
{
    two_streams();
    stream_free(a.stream); /* `ready` was under way */
    a.stream = NULL;
    stream_free(NULL);
    b.act = act_until_end;
    run();
    assert_int_equal(a.ready, 0);
    assert_true(b.ended);
}

/* --- back-pressure
 * -------------------------------------------------------------------------------- */

#define BULK (UINT64_C(8) << 20)

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 31 + (at >> 8) * 7 + (at >> 16));
}

static void write_bulk(struct end *end)
{
    uint8_t part[10007]; /* so that parts and buffers never line up */

    end->within = true;
    while (end->written < BULK) {
        size_t size = BULK - end->written < sizeof(part) ? BULK - end->written : sizeof(part);
        ssize_t n;

        for (size_t i = 0; i < size; i++)
            part[i] = pattern(end->written + i);
        n = stream_write(end->stream, part, size);
        if (n > 0)
            end->written += (uint64_t)n;
        if (n < (ssize_t)size) {
            end->wrong += n < STREAM_AGAIN;
            break;
        }
    }
    if (end->written == BULK)
        end->wrong += stream_flush(end->stream) == STREAM_FAILED;
    end->within = false;
}

static void act_write_bulk(struct end *end, char which)
{
    if (which == 'r' || which == 'w')
        write_bulk(end);
}

static void act_read_bulk(struct end *end, char which)
{
    ssize_t n;

    if (which != 'a')
        return;
    end->within = true;
    while ((n = stream_read(end->stream, end->got, 5003)) > 0) {
        for (ssize_t i = 0; i < n; i++)
            end->wrong += (uint8_t)end->got[i] != pattern(end->seen + (uint64_t)i);
        end->seen += (uint64_t)n;
    }
    end->within = false;
    if (end->seen == BULK || n != STREAM_AGAIN)
        loop_stop(loop);
}

static void eight_megabytes_pass_through_a_bounded_buffer(void **state)
{
    two_streams();
    a.act = act_write_bulk;
    b.act = act_read_bulk;
    run();
    assert_int_equal(b.seen, BULK);
    assert_true(a.writable > 0);
}

static uint64_t fill(struct end *end)
{
    static const uint8_t part[10000];
    uint64_t total = 0;
    ssize_t n;

    end->within = true;
    while ((n = stream_write(end->stream, part, sizeof(part))) > 0)
        total += (uint64_t)n;
    end->wrong += n != STREAM_AGAIN;
    end->within = false;
    return total;
}

static void a_peer_that_does_not_read_costs_bounded_memory(void **state)
{
    uint64_t total;

    stream_and_socket();
    total = fill(&a);
    assert_true(total > 256 << 10);
    assert_true(total < 4 << 20); /* the kernel's share is about 200 KiB */
    assert_int_equal(stream_flush(a.stream), STREAM_AGAIN);
    assert_int_equal(stream_write(a.stream, "x", 1), STREAM_AGAIN);
    run_a_while();
    assert_int_equal(a.writable, 0);
}

static void drain_and_expect(void *arg)
{
    char part[4096];
    ssize_t n;

    while ((n = read(plain, part, sizeof(part))) > 0)
        a.seen += (uint64_t)n;
    if (a.seen < a.written || a.writable == 0)
        timer_set(later, NS_PER_MS);
    else
        loop_stop(loop);
}

static void writable_comes_once_there_is_room_again(void **state)
{
    stream_and_socket();
    a.written = fill(&a);
    timer_free(later);
    later = timer_new(loop, drain_and_expect, NULL);
    timer_set(later, 0);
    run();
    assert_int_equal(a.writable, 1);
    assert_int_equal(a.seen, a.written);
    assert_int_equal(stream_flush(a.stream), 0);
}

static void act_free_on_writable(struct end *end, char which)
{
    if (which == 'r')
        fill(end);
    end->got[0] = 'w';
    act_free(end, which);
}

static void act_drain(struct end *end, char which)
{
    while (which == 'a' && stream_read(end->stream, end->got, sizeof(end->got)) > 0)
        ;
}

static void a_stream_may_be_freed_when_it_has_room(void **state)
{
    two_streams();
    a.act = act_free_on_writable;
    b.act = act_drain;
    run();
    assert_null(a.stream);
    assert_int_equal(a.writable, 1);
}

static void act_nothing(struct end *end, char which)
{
    if (which == 'f')
        loop_stop(loop);
}

static void a_peer_that_goes_while_bytes_wait_fails_the_stream(void **state)
{
    stream_and_socket();
    fill(&a);
    a.act = act_nothing;
    close(plain);
    plain = -1;
    run();
    assert_int_equal(a.failed, 1);
    assert_int_equal(a.writable, 0);
}

/* --- descriptors
 * ---------------------------------------------------------------------------------- */

/* A descriptor whose file says `size` when asked. */
static int marked(off_t size)
{
    char path[] = "/tmp/p2p-test-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);

    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, size), 0);
    return fd;
}

/* Closes the descriptor and returns its mark; -1 for none, -2 if it outlives an exec. */
static off_t take_mark(struct end *end)
{
    int fd = stream_unix_take(end->stream);
    struct stat status;
    off_t mark;

    if (fd < 0)
        return -1;
    assert_int_equal(fstat(fd, &status), 0);
    mark = (fcntl(fd, F_GETFD) & FD_CLOEXEC) ? status.st_size : -2;
    close(fd);
    return mark;
}

static void attach(struct end *end, off_t mark)
{
    int fd = marked(mark);

    assert_int_equal(stream_unix_attach(end->stream, fd), 0);
    close(fd); /* the stream has its own */
}

static void act_take_four(struct end *end, char which)
{
    if (which != 'a')
        return;
    read_all(end);
    if (end->got_size >= 12)
        loop_stop(loop);
}

static void descriptors_arrive_in_order_beside_their_bytes(void **state)
{
    two_streams();
    b.act = act_take_four;
    attach(&a, 11);
    attach(&a, 12);
    assert_int_equal(write_all(&a, "abcd"), 4);
    assert_int_equal(stream_write(a.stream, "efgh", 4), 4);
    attach(&a, 13);
    assert_int_equal(stream_write(a.stream, "ijk", 3), 3);
    attach(&a, 14);
    assert_int_equal(write_all(&a, "l"), 1);
    run();
    assert_string_equal(b.got, "abcdefghijkl");
    assert_int_equal(take_mark(&b), 11);
    assert_int_equal(take_mark(&b), 12);
    assert_int_equal(take_mark(&b), 13);
    assert_int_equal(take_mark(&b), 14);
    assert_int_equal(take_mark(&b), -1);
}

static void act_byte_by_byte(struct end *end, char which)
{
    if (which != 'a')
        return;
    /* A descriptor is there as soon as the byte is that it was sent with, and not before. */
    while (stream_read(end->stream, end->got + end->got_size, 1) == 1) {
        off_t expected = end->got_size == 2 ? 7 : -1;

        end->wrong += take_mark(end) != expected;
        end->got_size++;
    }
    if (end->got_size == 4)
        loop_stop(loop);
}

static void a_descriptor_leaves_with_the_first_byte_written_after_it(void **state)
{
    two_streams();
    b.act = act_byte_by_byte;
    assert_int_equal(stream_write(a.stream, "ab", 2), 2);
    attach(&a, 7);
    assert_int_equal(write_all(&a, "cd"), 2);
    run();
    assert_string_equal(b.got, "abcd");
}

static void bytes_behind_a_descriptor_are_not_overlooked(void **state)
{
    /* A read ends early where a descriptor came: what follows must not be taken for drained. */
    two_streams();
    b.act = act_take_four;
    attach(&a, 1);
    assert_int_equal(write_all(&a, "abcd"), 4);
    attach(&a, 2);
    assert_int_equal(write_all(&a, "efgh"), 4);
    assert_int_equal(write_all(&a, "ijkl"), 4);
    run();
    assert_string_equal(b.got, "abcdefghijkl");
    assert_int_equal(take_mark(&b), 1);
    assert_int_equal(take_mark(&b), 2);
}

static void no_more_than_eight_may_wait_to_leave(void **state)
{
    two_streams();
    for (int i = 0; i < STREAM_UNIX_FDS_MAX; i++)
        attach(&a, i);
    assert_int_equal(stream_unix_attach(a.stream, 0), -EAGAIN);
    assert_int_equal(stream_flush(a.stream), 0); /* without a byte they stay */
    assert_int_equal(stream_unix_attach(a.stream, 0), -EAGAIN);
    assert_int_equal(write_all(&a, "x"), 1);
    assert_int_equal(stream_unix_attach(a.stream, 0), 0);
    assert_int_equal(stream_unix_attach(a.stream, -1), -EBADF);
    b.act = act_take_four;
    run_a_while();
    assert_string_equal(b.got, "x");
    for (int i = 0; i < STREAM_UNIX_FDS_MAX; i++)
        assert_int_equal(take_mark(&b), i);
}

static void act_read_until_failed(struct end *end, char which)
{
    if (which == 'a')
        read_all(end);
    else if (which == 'f')
        loop_stop(loop);
}

static void more_than_eight_untaken_ones_end_the_stream(void **state)
{
    two_streams();
    b.act = act_read_until_failed;
    for (int i = 0; i < STREAM_UNIX_FDS_MAX; i++)
        attach(&a, i);
    assert_int_equal(write_all(&a, "x"), 1);
    attach(&a, 9);
    assert_int_equal(write_all(&a, "y"), 1);
    run();
    assert_int_equal(b.failed, 1);
    assert_non_null(strstr(b.why, "descriptors"));
    assert_int_equal(b.got_size, 1);
}

static void a_message_with_too_many_descriptors_ends_the_stream(void **state)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(20 * sizeof(int))];
    } control = {0};
    char byte = 'x';
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof(control.space)};

    stream_and_socket();
    a.act = act_read_until_failed;
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(20 * sizeof(int));
    for (int i = 0; i < 20; i++) {
        int zero = 0;

        memcpy(CMSG_DATA(&control.header) + i * (int)sizeof(int), &zero, sizeof(int));
    }
    assert_int_equal(sendmsg(plain, &message, 0), 1);
    run();
    assert_int_equal(a.failed, 1);
    assert_int_equal(a.got_size, 0);
}

static void descriptors_survive_a_full_socket(void **state)
{
    char part[4096];
    ssize_t n;
    int received = 0;

    stream_and_socket();
    a.written = fill(&a);
    assert_int_equal(stream_unix_attach(a.stream, 0), 0);
    /* Nothing was taken, so nothing is bound to a byte yet: it leaves with the next that is. */
    assert_int_equal(stream_write(a.stream, "x", 1), STREAM_AGAIN);
    do {
        while (read(plain, part, sizeof(part)) > 0)
            ;
    } while (stream_flush(a.stream) == STREAM_AGAIN);
    while (read(plain, part, sizeof(part)) > 0)
        ;
    assert_int_equal(write_all(&a, "z"), 1);
    {
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec into = {part, sizeof(part)};
        struct msghdr message = {.msg_iov = &into,
                                 .msg_iovlen = 1,
                                 .msg_control = control.space,
                                 .msg_controllen = sizeof(control.space)};

        n = recvmsg(plain, &message, 0);
        assert_int_equal(n, 1);
        assert_int_equal(part[0], 'z');
        assert_non_null(CMSG_FIRSTHDR(&message));
        memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
        assert_true(received > 0);
        close(received);
    }
}

static void a_write_during_a_full_socket_keeps_descriptors_with_their_bytes(void **state)
{
    two_streams();
    /* 300 KB of bytes, a descriptor, more bytes: the boundary falls into what the buffer holds. */
    a.act = NULL;
    while (stream_write(a.stream, "0123456789", 10) == 10 && a.written < 300000)
        a.written += 10;
    attach(&a, 42);
    assert_int_equal(stream_write(a.stream, "mark", 4), 4);
    assert_int_equal(stream_flush(a.stream), STREAM_AGAIN);
    a.written += 14; /* the last ten were taken too */
    for (a.seen = 0; a.seen < a.written;) {
        char byte;
        ssize_t n = stream_read(b.stream, &byte, 1);

        if (n == STREAM_AGAIN) {
            assert_true(stream_flush(a.stream) != STREAM_FAILED);
            continue;
        }
        assert_int_equal(n, 1);
        assert_int_equal(take_mark(&b), byte == 'm' ? 42 : -1);
        a.seen++;
    }
}

static void descriptors_that_nobody_took_are_closed(void **state)
{
    two_streams();
    b.act = act_take_four;
    attach(&a, 1);
    assert_int_equal(write_all(&a, "abcdefghijkl"), 12);
    attach(&a, 2); /* and this one never left */
    run();
    assert_string_equal(b.got, "abcdefghijkl");
    /* tear_down counts. */
}

static void the_peers_user_is_known(void **state)
{
    two_streams();
    assert_int_equal(stream_unix_peer(a.stream), geteuid());
}

int main(void)
{
    static char which[] = "raf";
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_OF(name, i)                                                                           \
    cmocka_unit_test_prestate_setup_teardown(name, set_up, tear_down, &which[i])
        TEST(ready_comes_first_and_in_a_later_round),
        TEST(messages_go_to_and_fro),
        TEST(a_flush_sends_at_once),
        TEST(who_stops_early_hears_nothing_until_he_resumes),
        TEST(new_bytes_do_not_wake_who_stopped_early),
        TEST(each_resume_brings_an_event),
        TEST(bytes_that_come_between_a_last_read_and_a_resume_are_found),
        TEST(bytes_that_come_before_again_bring_an_event),
        TEST(the_peers_end_comes_after_its_last_bytes),
        TEST(an_end_that_comes_later_brings_an_event),
        TEST(a_half_closed_stream_can_still_answer),
        TEST(writing_to_a_closed_peer_fails_once_and_later),
        TEST_OF(a_stream_may_be_freed_within_any_callback, 0),
        TEST_OF(a_stream_may_be_freed_within_any_callback, 1),
        TEST_OF(a_stream_may_be_freed_within_any_callback, 2),
        TEST(a_freed_stream_has_no_events),
        TEST(eight_megabytes_pass_through_a_bounded_buffer),
        TEST(a_peer_that_does_not_read_costs_bounded_memory),
        TEST(writable_comes_once_there_is_room_again),
        TEST(a_stream_may_be_freed_when_it_has_room),
        TEST(a_peer_that_goes_while_bytes_wait_fails_the_stream),
        TEST(descriptors_arrive_in_order_beside_their_bytes),
        TEST(a_descriptor_leaves_with_the_first_byte_written_after_it),
        TEST(bytes_behind_a_descriptor_are_not_overlooked),
        TEST(no_more_than_eight_may_wait_to_leave),
        TEST(more_than_eight_untaken_ones_end_the_stream),
        TEST(a_message_with_too_many_descriptors_ends_the_stream),
        TEST(descriptors_survive_a_full_socket),
        TEST(a_write_during_a_full_socket_keeps_descriptors_with_their_bytes),
        TEST(descriptors_that_nobody_took_are_closed),
        TEST(the_peers_user_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
