/* proto/channel.c: over a mock, where every byte and call is the test's, and over real Unix
 * sockets. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <event2/event.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/peer.pb-c.h"
#include "tests/mock_stream.h"

#define BLOCK 16384

/* --- one end of a channel, and what came to it
 * --------------------------------------------------------- */
enum where { NOWHERE, READY, FRAME, PAYLOAD, IDLE, DRAINED, CLOSED, RELEASE };

struct end {
    struct channel *channel;
    struct loop *loop;
    /* What came. */
    struct frame frames[64];
    unsigned frame_count, ready, idle, drained, closed, released;
    size_t message_bytes, payload_bytes;
    uint32_t checksum;
    bool orderly;
    char why[128];
    unsigned in_call; /* of ours: `closed` must not come then */
    /* What to do. */
    enum where free_in, pause_in;
    const char *fault;
    uint8_t *memory; /* for payloads; NULL: skip */
    const char *payload_fault;
    bool answer; /* every frame */
    bool finish; /* at the first frame */
    int fds[4];
    unsigned fd_take, fd_count;
    unsigned refill; /* bulk blocks to send in `drained` */
    int64_t burn;    /* processor time that each frame costs */
};

static void acts(struct end *end, enum where where)
{
    if (end->pause_in == where)
        channel_pause(end->channel, true);
    if (end->free_in == where) {
        channel_free(end->channel);
        end->channel = NULL;
    }
}

static uint32_t sum(uint32_t start, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        start = start * 31 + bytes[i];
    return start;
}

static void send_ping(struct end *end, enum channel_class class, uint32_t id)
{
    Peer__Ping ping = PEER__PING__INIT;
    ping.nonce = id;
    end->in_call++;
    channel_send(end->channel, class, PEER__PEER_TYPE__PEER_PING, 0, id, &ping.base, NULL, 0);
    end->in_call--;
}

static void send_block(struct end *end, uint32_t id, const void *bytes, size_t size)
{
    Peer__Block block = PEER__BLOCK__INIT;
    block.file = 1;
    block.block = id;
    end->in_call++;
    channel_send(end->channel, CHANNEL_BULK, PEER__PEER_TYPE__PEER_BLOCK, 0, id, &block.base, bytes,
                 size);
    end->in_call--;
}

static uint8_t some_bytes[1u << 20];

static void on_ready(void *arg)
{
    struct end *end = arg;
    end->ready++;
    acts(end, READY);
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct end *end = arg;
    assert_int_equal(end->closed, 0);
    for (int64_t until = clock_thread() + end->burn; end->burn > 0 && clock_thread() < until;)
        ;
    if (end->frame_count < 64)
        end->frames[end->frame_count] = *frame;
    end->frame_count++;
    end->message_bytes += frame->message_size;
    end->payload_bytes += frame->payload_size;
    if (payload != NULL)
        assert_ptr_equal(payload, end->memory);
    for (unsigned i = 0; i < end->fd_take; i++)
        end->fds[end->fd_count++] = channel_take_fd(end->channel);
    if (end->answer)
        send_ping(end, CHANNEL_URGENT, frame->id);
    if (end->finish && end->frame_count == 1)
        channel_finish(end->channel, "enough");
    acts(end, FRAME);
    /* Still there, whatever was done to the channel. */
    end->checksum = sum(end->checksum, message, frame->message_size);
    if (payload != NULL)
        end->checksum = sum(end->checksum, payload, frame->payload_size);
    return end->fault;
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct end *end = arg;
    sum(0, message, frame->message_size);
    *fault = end->payload_fault;
    acts(end, PAYLOAD);
    return end->payload_fault != NULL ? NULL : end->memory;
}

static void on_idle(void *arg)
{
    struct end *end = arg;
    end->idle++;
    acts(end, IDLE);
}

static void on_drained(void *arg)
{
    struct end *end = arg;
    end->drained++;
    for (; end->refill > 0 && channel_queued(end->channel, CHANNEL_BULK) < 65536; end->refill--)
        send_block(end, end->refill, some_bytes, BLOCK);
    acts(end, DRAINED);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct end *end = arg;
    assert_int_equal(end->in_call, 0);
    end->closed++;
    end->orderly = orderly;
    acts(end, CLOSED);
    snprintf(end->why, sizeof end->why, "%s", why);
}

static void on_release(void *payload, void *arg)
{
    struct end *end = arg;
    end->released++;
    acts(end, RELEASE);
}

static const struct channel_events all_events = {
    .ready = on_ready,
    .frame = on_frame,
    .payload = on_payload,
    .idle = on_idle,
    .drained = on_drained,
    .closed = on_closed,
};

static void turn(struct loop *loop)
{
    for (int i = 0; i < 4; i++)
        assert_true(event_base_loop(loop_base(loop), EVLOOP_NONBLOCK) >= 0);
}

#define UNTIL(loop, condition)                                                                     \
    do {                                                                                           \
        int64_t until_ = clock_now() + 10 * NS_PER_S;                                              \
        while (!(condition)) {                                                                     \
            assert_true(clock_now() < until_);                                                     \
            turn(loop);                                                                            \
        }                                                                                          \
    } while (0)

/* --- a channel over a mock
 * ------------------------------------------------------------------------------ */
struct mocked {
    struct end end;
    struct mock_stream mock;
    uint8_t *in;
    uint8_t out[1u << 20];
};

static struct mocked *mocked_new(void)
{
    struct mocked *m = xcalloc(1, sizeof *m);
    m->end.loop = loop_new("test");
    mock_init(&m->mock);
    m->mock.out = m->out;
    m->mock.out_room = sizeof m->out;
    m->mock.room = SIZE_MAX;
    m->end.memory = xmalloc(LIMIT_FRAME_PAYLOAD);
    m->end.channel = channel_new(m->end.loop, &m->mock.stream, &all_events, &m->end);
    return m;
}

static void mocked_free(struct mocked *m)
{
    channel_free(m->end.channel);
    assert_true(m->mock.destroyed);
    turn(m->end.loop);
    loop_free(m->end.loop);
    free(m->end.memory);
    free(m->in);
    free(m);
}

/* The input that `make` sends on a channel of its own. */
static void record(struct mocked *m, void (*make)(struct end *))
{
    struct mocked *other = mocked_new();
    make(&other->end);
    turn(other->end.loop);
    assert_int_equal(other->end.closed, 0);
    m->in = xmemdup(other->out, other->mock.out_size);
    m->mock.in = m->in;
    m->mock.in_size = other->mock.out_size;
    mocked_free(other);
}

static void read_it(struct mocked *m)
{
    m->mock.events->readable(m->mock.arg);
    turn(m->end.loop);
}

/* Gives `size` bytes as input, on a memory of exactly that size. */
static void feed(struct mocked *m, const void *bytes, size_t size)
{
    free(m->in);
    m->in = xmemdup(bytes, size);
    m->mock.in = m->in;
    m->mock.in_size = size;
    m->mock.in_at = 0;
    read_it(m);
}

static void feed_header(struct mocked *m, const struct frame *frame)
{
    uint8_t header[FRAME_HEADER_SIZE];
    frame_encode(header, frame);
    feed(m, header, sizeof header);
}

static void make_mixture(struct end *end)
{
    Peer__Goodbye goodbye = PEER__GOODBYE__INIT;
    static char text[100001];
    memset(text, 'x', sizeof text - 1);
    goodbye.text = text;
    channel_trust(end->channel);
    for (uint32_t i = 1; i <= 5; i++)
        send_ping(end, CHANNEL_URGENT, i);
    channel_send(end->channel, CHANNEL_URGENT, 9, FRAME_MAY_SKIP, 6, NULL, NULL, 0);
    channel_send(end->channel, CHANNEL_URGENT, 16, FRAME_ANSWER, 7, &goodbye.base, NULL, 0);
    channel_send(end->channel, CHANNEL_URGENT, 3, 0, 8, NULL, "payload", 7);
    text[300] = '\0';
    channel_send(end->channel, CHANNEL_URGENT, 16, 0, 9, &goodbye.base, some_bytes, 70000);
    text[300] = 'x';
    channel_send(end->channel, CHANNEL_URGENT, 16, 0, 10, &goodbye.base, some_bytes, 1);
    send_block(end, 11, some_bytes, BLOCK);
    send_block(end, 12, some_bytes + 1, BLOCK);
    send_ping(end, CHANNEL_BULK, 13);
    send_block(end, 14, some_bytes + 2, 100);
}
#define MIXTURE 14

static void frames_are_the_same_however_the_input_is_cut(void **state)
{
    static const size_t chunks[] = {0,   1,   2,    15,   16,   17,   31,   255,
                                    256, 257, 1000, 4095, 8191, 8192, 16384};
    uint32_t checksum = 0;
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        struct mocked *m = mocked_new();
        record(m, make_mixture);
        channel_trust(m->end.channel);
        m->mock.chunk = chunks[i];
        read_it(m);
        assert_int_equal(m->end.frame_count, MIXTURE);
        for (uint32_t id = 1; id <= MIXTURE; id++)
            assert_int_equal(m->end.frames[id - 1].id, id);
        assert_int_equal(m->end.frames[5].flags, FRAME_MAY_SKIP);
        assert_int_equal(m->end.frames[6].flags, FRAME_ANSWER);
        assert_int_equal(m->end.payload_bytes, 7 + 70000 + 1 + 2 * BLOCK + 100);
        assert_int_equal(m->end.idle, 1);
        assert_int_equal(m->end.closed, 0);
        if (i == 0)
            checksum = m->end.checksum;
        assert_int_equal(m->end.checksum, checksum);
        assert_int_equal(channel_bytes_in(m->end.channel), m->mock.in_size);
        mocked_free(m);
    }
}

/* Overwrites the stack that the calls before have used. */
static __attribute__((noinline)) void trample(void)
{
    uint8_t bytes[200000];
    memset(bytes, 0xee, sizeof bytes);
    __asm__ volatile("" ::"r"(bytes) : "memory");
}

static void what_is_needed_later_is_kept_between_events(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_mixture);
    channel_trust(m->end.channel);
    read_it(m);
    uint32_t checksum = m->end.checksum;
    mocked_free(m);
    for (size_t chunk = 1; chunk < 9000; chunk = chunk * 3 + 1) {
        m = mocked_new();
        record(m, make_mixture);
        channel_trust(m->end.channel);
        m->mock.chunk = chunk;
        m->mock.stutter = true;
        while (m->mock.in_at < m->mock.in_size) {
            m->mock.events->readable(m->mock.arg);
            trample();
        }
        assert_int_equal(m->end.frame_count, MIXTURE);
        assert_int_equal(m->end.checksum, checksum);
        mocked_free(m);
    }
}

static void make_blocks(struct end *end)
{
    for (uint32_t i = 1; i <= 32; i++)
        send_block(end, i, some_bytes + i, BLOCK);
}

static void blocks_go_straight_into_their_memory(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_blocks);
    read_it(m);
    assert_int_equal(m->end.frame_count, 32);
    assert_true(m->mock.largest_read > BLOCK - 256);
    /* One for the head, one for the rest, and the last that finds nothing. */
    assert_true(m->mock.reads <= 2 * 32 + 2);
    mocked_free(m);
}

static void make_pings(struct end *end)
{
    for (uint32_t i = 1; i <= 60; i++)
        send_ping(end, CHANNEL_URGENT, i);
}

static void small_frames_are_read_and_written_many_at_once(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_pings);
    m->end.answer = true;
    read_it(m);
    assert_int_equal(m->end.frame_count, 60);
    assert_int_equal(m->mock.reads, 2);
    assert_int_equal(m->mock.writes, 1);
    assert_int_equal(m->mock.flushes, 1);
    assert_int_equal(m->mock.out_size, m->mock.in_size);
    mocked_free(m);
}

static void one_round_of_sending_is_one_write(void **state)
{
    struct mocked *m = mocked_new();
    make_pings(&m->end);
    send_block(&m->end, 61, some_bytes, BLOCK);
    assert_int_equal(m->mock.writes, 0); /* not from within the call */
    turn(m->end.loop);
    assert_int_equal(m->mock.writes, 1);
    assert_int_equal(m->mock.flushes, 1);
    assert_int_equal(channel_bytes_out(m->end.channel), m->mock.out_size);
    assert_int_equal(channel_queued(m->end.channel, CHANNEL_BULK), 0);
    mocked_free(m);
}

static uint32_t id_at(const struct mocked *m, size_t *at)
{
    struct frame frame;
    assert_true(*at + FRAME_HEADER_SIZE <= m->mock.out_size);
    assert_null(frame_decode(&frame, m->out + *at, LIMIT_FRAME_MESSAGE));
    *at += FRAME_HEADER_SIZE + frame.message_size + frame.payload_size;
    return frame.id;
}

static void urgent_frames_overtake_bulk_but_cut_none(void **state)
{
    struct mocked *m = mocked_new();
    size_t at = 0;
    m->mock.room = 20000; /* the second block is begun */
    for (uint32_t i = 1; i <= 4; i++)
        send_block(&m->end, i, some_bytes, BLOCK);
    turn(m->end.loop);
    assert_int_equal(m->mock.out_size, 20000);
    send_ping(&m->end, CHANNEL_URGENT, 100);
    send_ping(&m->end, CHANNEL_URGENT, 101);
    turn(m->end.loop);
    m->mock.room = SIZE_MAX;
    m->mock.events->writable(m->mock.arg);
    turn(m->end.loop);
    static const uint32_t order[] = {1, 2, 100, 101, 3, 4};
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(id_at(m, &at), order[i]);
    assert_int_equal(at, m->mock.out_size);
    mocked_free(m);
}

static void bulk_that_the_stream_refused_is_not_begun(void **state)
{
    struct mocked *m = mocked_new();
    size_t at = 0;
    m->mock.room = 0;
    send_block(&m->end, 1, some_bytes, BLOCK);
    turn(m->end.loop);
    send_ping(&m->end, CHANNEL_URGENT, 2);
    m->mock.room = SIZE_MAX;
    m->mock.events->writable(m->mock.arg);
    turn(m->end.loop);
    assert_int_equal(id_at(m, &at), 2);
    assert_int_equal(id_at(m, &at), 1);
    mocked_free(m);
}

static void output_is_the_same_however_the_stream_takes_it(void **state)
{
    struct mocked *whole = mocked_new();
    make_mixture(&whole->end);
    turn(whole->end.loop);
    static const size_t rooms[] = {1, 7, 16, 1000, 16384, 70000};
    for (size_t i = 0; i < sizeof rooms / sizeof rooms[0]; i++) {
        struct mocked *m = mocked_new();
        m->mock.room = 0;
        make_mixture(&m->end);
        while (m->mock.out_size < whole->mock.out_size) {
            m->mock.room = rooms[i];
            m->mock.events->writable(m->mock.arg);
        }
        assert_int_equal(m->mock.out_size, whole->mock.out_size);
        assert_memory_equal(m->out, whole->out, whole->mock.out_size);
        mocked_free(m);
    }
    mocked_free(whole);
}

static void nothing_is_written_while_a_flush_waits(void **state)
{
    struct mocked *m = mocked_new();
    m->mock.flush_again = true;
    send_ping(&m->end, CHANNEL_URGENT, 1);
    turn(m->end.loop);
    size_t before = m->mock.out_size;
    send_ping(&m->end, CHANNEL_URGENT, 2);
    turn(m->end.loop);
    assert_int_equal(m->mock.out_size, before);
    m->mock.flush_again = false;
    m->mock.events->writable(m->mock.arg);
    assert_true(m->mock.out_size > before);
    mocked_free(m);
}

static void the_end_between_frames_is_orderly_and_within_one_is_not(void **state)
{
    struct mocked *whole = mocked_new();
    record(whole, make_mixture);
    for (size_t cut = 0; cut <= whole->mock.in_size; cut += cut < 500 ? 1 : 9973) {
        struct mocked *m = mocked_new();
        channel_trust(m->end.channel);
        m->mock.at_end = true;
        feed(m, whole->in, cut);
        assert_int_equal(m->end.closed, 1);
        size_t at = 0;
        whole->mock.out_size = whole->mock.in_size;
        memcpy(whole->out, whole->in, whole->mock.in_size);
        for (unsigned i = 0; i < m->end.frame_count; i++)
            id_at(whole, &at);
        assert_int_equal(m->end.orderly, at == cut);
        mocked_free(m);
    }
    mocked_free(whole);
}

static void bad_headers_end_the_channel(void **state)
{
    static const struct frame cases[] = {
        {.message_size = LIMIT_STRANGER_FRAME + 1},
        {.message_size = UINT32_MAX},
        {.payload_size = LIMIT_FRAME_PAYLOAD + 1},
        {.payload_size = UINT32_MAX},
        {.flags = 0x04},
        {.flags = 0x80},
        {.fds = LIMIT_FRAME_FDS + 1},
        {.fds = 1}, /* on a stream that carries none */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mocked *m = mocked_new();
        feed_header(m, &cases[i]);
        assert_int_equal(m->end.frame_count, 0);
        assert_int_equal(m->end.closed, 1);
        assert_false(m->end.orderly);
        assert_true(strlen(m->end.why) > 0);
        read_it(m); /* nothing more comes of it */
        assert_int_equal(m->end.closed, 1);
        mocked_free(m);
    }
}

static void a_trusted_end_may_send_more(void **state)
{
    struct mocked *m = mocked_new();
    struct frame frame = {.message_size = LIMIT_FRAME_MESSAGE};
    channel_trust(m->end.channel);
    feed_header(m, &frame);
    assert_int_equal(m->end.closed, 0);
    feed(m, some_bytes, LIMIT_FRAME_MESSAGE);
    assert_int_equal(m->end.frame_count, 1);
    frame.message_size++;
    feed_header(m, &frame);
    assert_int_equal(m->end.closed, 1);
    mocked_free(m);
}

static void a_claimed_length_takes_no_memory(void **state)
{
    struct mocked *m = mocked_new();
    struct frame frame = {.message_size = LIMIT_FRAME_MESSAGE};
    channel_trust(m->end.channel);
    feed_header(m, &frame);
    m->mock.chunk = 1;
    m->mock.largest_read = 0;
    feed(m, some_bytes, 10);
    /* What it would read at most at once is the room it has made. */
    m->mock.chunk = 0;
    feed(m, some_bytes, 100000);
    assert_true(m->mock.largest_read < 70000);
    mocked_free(m);
}

static void a_fault_of_the_owner_ends_the_channel(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_pings);
    m->end.fault = "a ping was not wanted";
    read_it(m);
    assert_int_equal(m->end.frame_count, 1);
    assert_int_equal(m->end.closed, 1);
    assert_false(m->end.orderly);
    assert_string_equal(m->end.why, "a ping was not wanted");
    mocked_free(m);
}

static void a_farewell_before_a_fault_is_sent(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_pings);
    m->end.answer = true;
    m->end.fault = "a ping was not wanted";
    read_it(m);
    assert_int_equal(m->end.closed, 1);
    size_t at = 0;
    assert_int_equal(id_at(m, &at), 1);
    assert_int_equal(at, m->mock.out_size);
    mocked_free(m);
}

static void a_payload_can_be_refused_or_skipped(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_blocks);
    m->end.payload_fault = "no";
    read_it(m);
    assert_int_equal(m->end.frame_count, 0);
    assert_string_equal(m->end.why, "no");
    mocked_free(m);

    m = mocked_new();
    record(m, make_blocks);
    free(m->end.memory);
    m->end.memory = NULL;
    read_it(m);
    assert_int_equal(m->end.frame_count, 32);
    assert_int_equal(m->end.closed, 0);
    mocked_free(m);
}

static void without_a_payload_callback_a_payload_is_a_fault(void **state)
{
    static const struct channel_events events = {.frame = on_frame, .closed = on_closed};
    struct mocked *m = mocked_new();
    struct mock_stream mock;
    record(m, make_blocks);
    struct end end = {.loop = m->end.loop};
    mock_init(&mock);
    mock.in = m->in;
    mock.in_size = m->mock.in_size;
    end.channel = channel_new(end.loop, &mock.stream, &events, &end);
    mock.events->readable(mock.arg);
    turn(end.loop);
    assert_int_equal(end.frame_count, 0);
    assert_int_equal(end.closed, 1);
    channel_free(end.channel);
    mocked_free(m);
}

static void a_pause_holds_frames_that_were_read_already(void **state)
{
    static const enum where places[] = {FRAME, PAYLOAD};
    for (size_t i = 0; i < 2; i++) {
        struct mocked *m = mocked_new();
        record(m, make_mixture);
        channel_trust(m->end.channel);
        m->end.pause_in = places[i];
        read_it(m);
        unsigned frames = m->end.frame_count;
        assert_int_equal(frames, places[i] == FRAME ? 1 : 7);
        read_it(m);
        assert_int_equal(m->end.frame_count, frames);
        for (unsigned left = 100; m->end.frame_count < MIXTURE && left > 0; left--) {
            unsigned resumes = m->mock.resumes;
            channel_pause(m->end.channel, false);
            assert_int_equal(m->mock.resumes, resumes + 1);
            assert_int_equal(m->end.frame_count, frames); /* not from within the call */
            read_it(m);
            frames = m->end.frame_count;
        }
        assert_int_equal(m->end.frame_count, MIXTURE);
        for (uint32_t id = 1; id <= MIXTURE; id++)
            assert_int_equal(m->end.frames[id - 1].id, id);
        mocked_free(m);
    }
}

static void endless_input_gives_way_to_others(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_blocks);
    m->mock.endless = true;
    m->mock.events->readable(m->mock.arg);
    assert_int_equal(m->mock.resumes, 1);
    assert_int_equal(m->end.idle, 1);
    assert_true(channel_bytes_in(m->end.channel) < 2u << 20);
    mocked_free(m);
}

#define SMALL_FRAMES 2000

static void make_many(struct end *end)
{
    for (uint32_t i = 1; i <= SMALL_FRAMES; i++)
        send_ping(end, CHANNEL_URGENT, i);
}

static void make_many_with_a_byte(struct end *end)
{
    for (uint32_t i = 1; i <= SMALL_FRAMES; i++)
        send_block(end, i, some_bytes, 1);
}

static void give_way(void (*make)(struct end *))
{
    struct mocked *m = mocked_new();
    record(m, make);
    for (unsigned round = 1; m->end.frame_count < SMALL_FRAMES; round++) {
        read_it(m);
        assert_true(m->end.frame_count <= round * 512);
        assert_int_equal(m->mock.resumes, m->end.frame_count < SMALL_FRAMES ? round : round - 1);
    }
    assert_int_equal(m->end.frame_count, SMALL_FRAMES);
    mocked_free(m);
}

static void many_small_frames_give_way_to_others(void **state)
{
    give_way(make_many);
    give_way(make_many_with_a_byte);
}

static void input_over_its_budget_waits_and_is_not_lost(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_many);
    m->end.burn = 20 * NS_PER_MS;
    channel_set_budget(m->end.channel, NS_PER_S / 50, 10 * NS_PER_MS);
    read_it(m); /* ends with the first frame, as that takes more than a turn's time */
    assert_int_equal(m->end.frame_count, 1);
    unsigned resumes = m->mock.resumes;
    assert_int_equal(resumes, 0);
    read_it(m); /* nothing: the budget waits half a second */
    assert_int_equal(m->end.frame_count, 1);
    UNTIL(m->end.loop, m->mock.resumes > resumes);
    m->end.burn = 0;
    while (m->end.frame_count < SMALL_FRAMES) {
        resumes = m->mock.resumes;
        read_it(m);
        UNTIL(m->end.loop, m->mock.resumes > resumes || m->end.frame_count == SMALL_FRAMES);
    }
    assert_int_equal(m->end.closed, 0);
    mocked_free(m);
}

static void what_a_burst_has_left_is_known_and_does_not_grow_by_setting_it(void **state)
{
    struct mocked *m = mocked_new();
    struct channel *channel = m->end.channel;
    record(m, make_many);
    assert_int_equal(channel_spent(channel), 0);
    channel_set_budget(channel, 1, 50 * NS_PER_MS); /* next to nothing comes back */
    m->end.burn = 20 * NS_PER_MS;
    read_it(m);
    assert_int_equal(m->end.frame_count, 1);
    assert_true(channel_spent(channel) >= 20 * NS_PER_MS);
    int64_t left = 50 * NS_PER_MS - channel_spent(channel);
    channel_set_budget(channel, 1, 10 * NS_PER_MS);
    channel_set_budget(channel, 1, 50 * NS_PER_MS);
    assert_true(50 * NS_PER_MS - channel_spent(channel) <= left);
    channel_charge(channel, -100 * NS_PER_MS); /* a gift; more than the burst is none */
    assert_int_equal(channel_spent(channel), 0);
    mocked_free(m);
}

static void endless_output_gives_way_to_others(void **state)
{
    struct mocked *m = mocked_new();
    m->mock.out = NULL;
    m->end.refill = 1000;
    for (uint32_t i = 0; i < 4; i++)
        send_block(&m->end, i, some_bytes, BLOCK);
    m->mock.events->writable(m->mock.arg);
    assert_in_range(channel_bytes_out(m->end.channel), 1u << 20, (1u << 20) + 100000);
    UNTIL(m->end.loop, channel_bytes_out(m->end.channel) > (uint64_t)1004 * BLOCK);
    assert_int_equal(m->end.refill, 0);
    mocked_free(m);
}

static void drained_comes_once_each_time(void **state)
{
    struct mocked *m = mocked_new();
    channel_set_low_mark(m->end.channel, 20000);
    send_block(&m->end, 1, some_bytes, 1000);
    turn(m->end.loop);
    assert_int_equal(m->end.drained, 0); /* never was above */
    for (unsigned i = 1; i <= 3; i++) {
        m->mock.room = 0;
        send_block(&m->end, 1, some_bytes, BLOCK);
        send_block(&m->end, 2, some_bytes, BLOCK);
        turn(m->end.loop);
        assert_int_equal(m->end.drained, i - 1);
        m->mock.room = 14000;
        m->mock.events->writable(m->mock.arg);
        turn(m->end.loop);
        assert_int_equal(m->end.drained, i);
        m->mock.room = SIZE_MAX;
        m->mock.events->writable(m->mock.arg);
        turn(m->end.loop);
        assert_int_equal(m->end.drained, i);
    }
    mocked_free(m);
}

static void send_released(struct end *end, size_t size)
{
    Peer__Block block = PEER__BLOCK__INIT;
    end->in_call++;
    channel_send_payload(end->channel, CHANNEL_BULK, PEER__PEER_TYPE__PEER_BLOCK, 0, 1, &block.base,
                         some_bytes, size, on_release, end);
    end->in_call--;
}

static void lent_payloads_are_released_once_written(void **state)
{
    struct mocked *m = mocked_new();
    m->mock.room = 100000;
    send_released(&m->end, BLOCK);
    send_released(&m->end, 300000); /* larger than what is gathered */
    send_released(&m->end, BLOCK);
    assert_int_equal(m->end.released, 0);
    turn(m->end.loop);
    assert_int_equal(m->end.released, 1);
    m->mock.room = SIZE_MAX;
    m->mock.events->writable(m->mock.arg);
    assert_int_equal(m->end.released, 3);
    size_t at = 0, head = FRAME_HEADER_SIZE + 0;
    assert_memory_equal(m->out + head, some_bytes, BLOCK);
    id_at(m, &at);
    assert_memory_equal(m->out + at + head, some_bytes, 300000);
    id_at(m, &at);
    assert_memory_equal(m->out + at + head, some_bytes, BLOCK);
    mocked_free(m);
}

static void a_receiver_that_does_not_read_ends_the_channel(void **state)
{
    struct mocked *m = mocked_new();
    m->mock.room = 0;
    unsigned sent = 0;
    while (m->end.closed == 0 && sent < 1000) {
        send_released(&m->end, BLOCK);
        sent++;
        turn(m->end.loop);
    }
    assert_int_equal(sent, LIMIT_SEND_QUEUE / (BLOCK + FRAME_HEADER_SIZE) + 1);
    assert_false(m->end.orderly);
    send_released(&m->end, BLOCK); /* to nowhere, and released */
    assert_int_equal(m->end.released, 1);
    channel_free(m->end.channel);
    m->end.channel = NULL;
    assert_int_equal(m->end.released, sent + 1);
    mocked_free(m);
}

static void memory_of_small_frames_is_counted(void **state)
{
    struct channel_pool pool = {0};
    struct mocked *m = mocked_new();
    Peer__Pong pong = PEER__PONG__INIT;
    m->mock.room = 0;
    channel_set_pool(m->end.channel, &pool);
    pong.nonce = 7;
    for (unsigned i = 0; i < 100; i++)
        channel_send(m->end.channel, CHANNEL_URGENT, 4, 0, 0, &pong.base, NULL, 0);
    assert_true(channel_queued(m->end.channel, CHANNEL_URGENT) == 100 * (FRAME_HEADER_SIZE + 2));
    assert_true(channel_memory(m->end.channel, CHANNEL_URGENT) > 100 * 80);
    send_released(&m->end, BLOCK);
    assert_int_equal(pool.lent, BLOCK);
    assert_int_equal(pool.memory, channel_memory(m->end.channel, CHANNEL_URGENT) +
                                      channel_memory(m->end.channel, CHANNEL_BULK));
    m->mock.room = SIZE_MAX;
    turn(m->end.loop);
    assert_int_equal(pool.memory, 0);
    assert_int_equal(pool.lent, 0);
    m->mock.room = 0;
    send_released(&m->end, BLOCK);
    mocked_free(m);
    assert_int_equal(pool.memory, 0);
    assert_int_equal(pool.lent, 0);
}

static void channels_share_a_pool_once_half_of_it_is_used(void **state)
{
    assert_int_equal(channel_share(49, 100, 1000, 5, 30), 30);
    assert_int_equal(channel_share(50, 100, 1, 5, 30), 30);
    assert_int_equal(channel_share(50, 100, 2, 5, 30), 25);
    assert_int_equal(channel_share(500, 100, 1000, 5, 30), 5);
    assert_int_equal(channel_share(500, 100, 0, 5, 30), 30);
}

static void a_frame_over_the_limits_ends_the_channel(void **state)
{
    Peer__Goodbye goodbye = PEER__GOODBYE__INIT;
    char *text = xmalloc(LIMIT_FRAME_MESSAGE + 1);
    memset(text, 'x', LIMIT_FRAME_MESSAGE);
    text[LIMIT_FRAME_MESSAGE] = '\0';
    goodbye.text = text;
    struct mocked *m = mocked_new();
    channel_send(m->end.channel, CHANNEL_URGENT, 16, 0, 0, &goodbye.base, NULL, 0);
    assert_int_equal(m->end.closed, 0);
    turn(m->end.loop);
    assert_int_equal(m->end.closed, 1);
    assert_int_equal(m->mock.out_size, 0);
    mocked_free(m);
    free(text);
    m = mocked_new();
    send_released(&m->end, LIMIT_FRAME_PAYLOAD + 1);
    assert_int_equal(m->end.released, 1);
    turn(m->end.loop);
    assert_int_equal(m->end.closed, 1);
    mocked_free(m);
}

static void a_stream_that_fails_ends_the_channel(void **state)
{
    struct mocked *m = mocked_new();
    m->mock.events->failed(m->mock.arg, "the cable was cut");
    turn(m->end.loop);
    assert_int_equal(m->end.closed, 1);
    assert_false(m->end.orderly);
    assert_string_equal(m->end.why, "the cable was cut");
    send_ping(&m->end, CHANNEL_URGENT, 1);
    turn(m->end.loop);
    assert_int_equal(m->mock.writes, 0);
    mocked_free(m);
}

static void a_channel_can_be_freed_in_every_callback(void **state)
{
    for (enum where where = READY; where <= RELEASE; where++) {
        struct mocked *m = mocked_new();
        record(m, make_mixture);
        channel_trust(m->end.channel);
        m->end.free_in = where;
        if (where == READY) {
            m->mock.events->ready(m->mock.arg);
        } else if (where == DRAINED || where == RELEASE) {
            for (unsigned i = 0; i < 3; i++)
                send_released(&m->end, BLOCK);
            turn(m->end.loop);
        } else {
            m->mock.at_end = true;
            read_it(m);
        }
        assert_null(m->end.channel);
        assert_true(m->mock.destroyed);
        assert_int_equal(m->end.closed, where == CLOSED ? 1 : 0);
        mocked_free(m);
    }
}

static void freeing_within_a_large_message_keeps_it_for_the_call(void **state)
{
    struct mocked *m = mocked_new();
    struct frame frame = {.message_size = 60000};
    feed_header(m, &frame);
    m->end.free_in = FRAME;
    m->mock.chunk = 1000;
    feed(m, some_bytes, 60000);
    assert_int_equal(m->end.frame_count, 1);
    assert_int_equal(m->end.checksum, sum(0, some_bytes, 60000));
    mocked_free(m);
}

static void a_last_word_is_sent_before_the_end(void **state)
{
    struct mocked *m = mocked_new();
    record(m, make_pings);
    m->mock.room = 0;
    m->end.answer = true;
    m->end.finish = true;
    read_it(m);
    assert_int_equal(m->end.frame_count, 1); /* new input is ignored */
    assert_int_equal(m->end.closed, 0);
    m->mock.room = SIZE_MAX;
    m->mock.events->writable(m->mock.arg);
    turn(m->end.loop);
    assert_int_equal(m->end.closed, 1);
    assert_true(m->end.orderly);
    assert_string_equal(m->end.why, "enough");
    size_t at = 0;
    assert_int_equal(id_at(m, &at), 1);
    assert_int_equal(at, m->mock.out_size);
    mocked_free(m);
}

static void finishing_with_nothing_queued_ends_soon_but_not_at_once(void **state)
{
    struct mocked *m = mocked_new();
    channel_finish(m->end.channel, "done");
    assert_int_equal(m->end.closed, 0);
    turn(m->end.loop);
    assert_int_equal(m->end.closed, 1);
    assert_true(m->end.orderly);
    mocked_free(m);
}

static void finishing_does_not_wait_for_ever(void **state)
{
    struct mocked *m = mocked_new();
    int64_t start = clock_now();
    m->mock.room = 0;
    send_ping(&m->end, CHANNEL_URGENT, 1);
    channel_finish(m->end.channel, "done");
    while (m->end.closed == 0 && clock_now() - start < 2 * LIMIT_FINISH_NS)
        event_base_loop(loop_base(m->end.loop), EVLOOP_ONCE);
    assert_int_equal(m->end.closed, 1);
    assert_true(clock_now() - start >= LIMIT_FINISH_NS);
    mocked_free(m);
}

/* --- over Unix sockets
 * -------------------------------------------------------------------------------------- */
struct pair {
    struct loop *loop;
    struct end a, b;
};

static void pair_open(struct pair *pair)
{
    int fds[2];
    memset(pair, 0, sizeof *pair);
    pair->loop = loop_new("test");
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    struct end *ends[2] = {&pair->a, &pair->b};
    for (int i = 0; i < 2; i++) {
        ends[i]->loop = pair->loop;
        ends[i]->memory = xmalloc(LIMIT_FRAME_PAYLOAD);
        ends[i]->channel =
            channel_new(pair->loop, stream_unix(pair->loop, fds[i]), &all_events, ends[i]);
    }
}

static void pair_close(struct pair *pair)
{
    channel_free(pair->a.channel);
    channel_free(pair->b.channel);
    free(pair->a.memory);
    free(pair->b.memory);
    loop_free(pair->loop);
}

static void two_ends_talk(void **state)
{
    struct pair pair;
    pair_open(&pair);
    make_mixture(&pair.a);
    pair.b.answer = true;
    channel_trust(pair.b.channel);
    UNTIL(pair.loop, pair.a.frame_count == MIXTURE);
    assert_int_equal(pair.a.ready, 1);
    assert_int_equal(pair.b.ready, 1);
    assert_int_equal(pair.b.frame_count, MIXTURE);
    assert_int_equal(channel_bytes_in(pair.b.channel), channel_bytes_out(pair.a.channel));
    assert_true(channel_last_heard(pair.a.channel) <= clock_now());
    channel_free(pair.a.channel);
    pair.a.channel = NULL;
    UNTIL(pair.loop, pair.b.closed == 1);
    assert_true(pair.b.orderly);
    pair_close(&pair);
}

static void a_last_word_reaches_the_other_end(void **state)
{
    struct pair pair;
    pair_open(&pair);
    for (unsigned i = 0; i < 100; i++)
        send_block(&pair.a, i, some_bytes, BLOCK);
    send_ping(&pair.a, CHANNEL_BULK, 1000);
    channel_finish(pair.a.channel, "bye");
    pair.a.free_in = CLOSED;
    UNTIL(pair.loop, pair.b.closed == 1);
    assert_int_equal(pair.a.closed, 1);
    assert_int_equal(pair.b.frame_count, 101);
    assert_true(pair.b.orderly);
    pair_close(&pair);
}

static unsigned open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

static bool same_file(int a, int b)
{
    struct stat x, y;
    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void descriptors_are_taken_once_and_the_rest_closed(void **state)
{
    struct pair pair;
    int sent[2] = {open("/dev/null", O_RDONLY | O_CLOEXEC),
                   open("/dev/zero", O_RDONLY | O_CLOEXEC)};
    pair_open(&pair);
    UNTIL(pair.loop, pair.a.ready == 1 && pair.b.ready == 1);
    unsigned before = open_fds();
    pair.b.fd_take = 1;
    for (uint32_t i = 0; i < 20; i++) {
        send_ping(&pair.a, CHANNEL_URGENT, i);
        channel_send_fds(pair.a.channel, 5, 0, 100 + i, NULL, sent, 1 + i % 2);
        send_block(&pair.a, i, some_bytes, BLOCK);
        pair.b.fd_count = 0;
        UNTIL(pair.loop, pair.b.frame_count == 3 * (i + 1));
        /* The ping had none, the block neither. */
        assert_int_equal(pair.b.fds[0], -1);
        assert_true(same_file(pair.b.fds[1], sent[0]));
        assert_true(fcntl(pair.b.fds[1], F_GETFD) & FD_CLOEXEC);
        assert_int_equal(pair.b.fds[2], -1);
        close(pair.b.fds[1]);
        pair.b.frame_count = 3 * (i + 1);
    }
    assert_int_equal(open_fds(), before);
    pair_close(&pair);
    close(sent[0]);
    close(sent[1]);
}

static void many_frames_with_descriptors_in_one_round(void **state)
{
    struct pair pair;
    int sent[2] = {open("/dev/null", O_RDONLY | O_CLOEXEC),
                   open("/dev/zero", O_RDONLY | O_CLOEXEC)};
    pair_open(&pair);
    UNTIL(pair.loop, pair.a.ready == 1 && pair.b.ready == 1);
    unsigned before = open_fds();
    for (uint32_t i = 0; i < 50; i++) {
        channel_send_fds(pair.a.channel, 5, 0, i, NULL, sent, 2);
        send_ping(&pair.a, CHANNEL_URGENT, i);
    }
    UNTIL(pair.loop, pair.b.frame_count == 100 || pair.b.closed != 0 || pair.a.closed != 0);
    assert_string_equal(pair.b.why, "");
    assert_int_equal(pair.b.frame_count, 100);
    assert_int_equal(open_fds(), before);
    /* Queued ones are closed with the channel. */
    channel_send_fds(pair.a.channel, 5, 0, 1, NULL, sent, 2);
    pair_close(&pair);
    close(sent[0]);
    close(sent[1]);
}

/* --- two threads
 * ------------------------------------------------------------------------------------------------
 */
#define MANY 4096 /* blocks: 64 MiB */

struct runner {
    struct end end;
    struct mail start;
    int fd;
};

static void receiver_closed(void *arg, bool orderly, const char *why)
{
    struct end *end = arg;
    end->closed++;
    channel_free(end->channel);
    end->channel = NULL;
    loop_stop(end->loop);
}

static const char *receiver_frame(void *arg, const struct frame *frame, const uint8_t *message,
                                  void *payload)
{
    struct end *end = arg;
    end->frame_count++;
    end->payload_bytes += frame->payload_size;
    return payload != NULL && memcmp(payload, some_bytes, BLOCK) != 0 ? "wrong bytes" : NULL;
}

static void start_receiver(struct mail *mail, void *owner)
{
    static const struct channel_events events = {
        .frame = receiver_frame, .payload = on_payload, .closed = receiver_closed};
    struct runner *runner = owner;
    runner->end.channel =
        channel_new(runner->end.loop, stream_unix(runner->end.loop, runner->fd), &events, runner);
}

/* Keeps the queue filled, and finishes once all is queued. */
static void sender_drained(void *arg)
{
    struct end *end = arg;
    on_drained(arg);
    if (end->refill == 0)
        channel_finish(end->channel, "all sent");
}

static void start_sender(struct mail *mail, void *owner)
{
    static const struct channel_events events = {
        .frame = on_frame, .drained = sender_drained, .closed = receiver_closed};
    struct runner *runner = owner;
    runner->end.channel =
        channel_new(runner->end.loop, stream_unix(runner->end.loop, runner->fd), &events, runner);
    runner->end.refill = MANY - 4;
    for (uint32_t i = 0; i < 4; i++)
        send_block(&runner->end, i, some_bytes, BLOCK);
}

static void two_threads_pass_many_blocks(void **state)
{
    struct runner sender = {.end.loop = loop_new("sender"), .start.deliver = start_sender};
    struct runner receiver = {.end.loop = loop_new("receiver"), .start.deliver = start_receiver};
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    sender.fd = fds[0];
    receiver.fd = fds[1];
    receiver.end.memory = xmalloc(LIMIT_FRAME_PAYLOAD);
    loop_set_owner(sender.end.loop, &sender);
    loop_set_owner(receiver.end.loop, &receiver);
    int64_t start = clock_now();
    loop_post(sender.end.loop, &sender.start);
    loop_post(receiver.end.loop, &receiver.start);
    loop_start(sender.end.loop);
    loop_start(receiver.end.loop);
    loop_join(sender.end.loop);
    loop_join(receiver.end.loop);
    double seconds = (double)(clock_now() - start) / 1e9;
    assert_int_equal(receiver.end.frame_count, MANY);
    assert_int_equal(receiver.end.payload_bytes, (size_t)MANY * BLOCK);
    print_message("%d blocks of 16 KiB in %.3f s: %.0f MB/s\n", MANY, seconds,
                  (double)MANY * BLOCK / 1e6 / seconds);
    loop_free(sender.end.loop);
    loop_free(receiver.end.loop);
    free(receiver.end.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_are_the_same_however_the_input_is_cut),
        cmocka_unit_test(what_is_needed_later_is_kept_between_events),
        cmocka_unit_test(blocks_go_straight_into_their_memory),
        cmocka_unit_test(small_frames_are_read_and_written_many_at_once),
        cmocka_unit_test(one_round_of_sending_is_one_write),
        cmocka_unit_test(urgent_frames_overtake_bulk_but_cut_none),
        cmocka_unit_test(bulk_that_the_stream_refused_is_not_begun),
        cmocka_unit_test(output_is_the_same_however_the_stream_takes_it),
        cmocka_unit_test(nothing_is_written_while_a_flush_waits),
        cmocka_unit_test(the_end_between_frames_is_orderly_and_within_one_is_not),
        cmocka_unit_test(bad_headers_end_the_channel),
        cmocka_unit_test(a_trusted_end_may_send_more),
        cmocka_unit_test(a_claimed_length_takes_no_memory),
        cmocka_unit_test(a_fault_of_the_owner_ends_the_channel),
        cmocka_unit_test(a_farewell_before_a_fault_is_sent),
        cmocka_unit_test(a_payload_can_be_refused_or_skipped),
        cmocka_unit_test(without_a_payload_callback_a_payload_is_a_fault),
        cmocka_unit_test(a_pause_holds_frames_that_were_read_already),
        cmocka_unit_test(endless_input_gives_way_to_others),
        cmocka_unit_test(many_small_frames_give_way_to_others),
        cmocka_unit_test(input_over_its_budget_waits_and_is_not_lost),
        cmocka_unit_test(what_a_burst_has_left_is_known_and_does_not_grow_by_setting_it),
        cmocka_unit_test(endless_output_gives_way_to_others),
        cmocka_unit_test(drained_comes_once_each_time),
        cmocka_unit_test(lent_payloads_are_released_once_written),
        cmocka_unit_test(a_receiver_that_does_not_read_ends_the_channel),
        cmocka_unit_test(memory_of_small_frames_is_counted),
        cmocka_unit_test(channels_share_a_pool_once_half_of_it_is_used),
        cmocka_unit_test(a_frame_over_the_limits_ends_the_channel),
        cmocka_unit_test(a_stream_that_fails_ends_the_channel),
        cmocka_unit_test(a_channel_can_be_freed_in_every_callback),
        cmocka_unit_test(freeing_within_a_large_message_keeps_it_for_the_call),
        cmocka_unit_test(a_last_word_is_sent_before_the_end),
        cmocka_unit_test(finishing_with_nothing_queued_ends_soon_but_not_at_once),
        cmocka_unit_test(finishing_does_not_wait_for_ever),
        cmocka_unit_test(two_ends_talk),
        cmocka_unit_test(a_last_word_reaches_the_other_end),
        cmocka_unit_test(descriptors_are_taken_once_and_the_rest_closed),
        cmocka_unit_test(many_frames_with_descriptors_in_one_round),
        cmocka_unit_test(two_threads_pass_many_blocks),
    };
    for (size_t i = 0; i < sizeof some_bytes; i++)
        some_bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
