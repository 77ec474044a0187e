/* Everything that a member, or a stranger, can make the tracker do: sessions over mock streams, with the real
 * storage, swarm and catalogue behind them.
 *
 * The first byte says who sends: bit 0: a member (else a stranger); bit 1: a second, quiet member is connected,
 * subscribed and gets the pushes; bits 2 to 7: how many bytes come at a time. The rest is a series of frames in short
 * form, so that the fuzzer need not find lengths: one byte type, one byte id, two bytes length, then the message; of
 * type 255 the bytes go out as they are, header and all.
 *
 * What must hold: no crash, no leak, and the server still answers the next input. */
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "tests/mock_stream.h"
#include "tracker/server_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define INPUT_MAX (256u << 10)

static char dir[64];
static struct server *server;

static void clean_up(void)
{
    server_free(server);
    char *command = xasprintf("rm -rf %s", dir);
    CHECK(system(command) == 0);
    free(command);
}

static struct certificate_subject subject_of(unsigned n)
{
    struct certificate_subject subject = {
        .role = CERTIFICATE_DEVICE, .device = {(uint8_t)n, 1}, .not_before = 1000000};
    snprintf(subject.account, sizeof subject.account, "member%u", n);
    return subject;
}

static void add_member(unsigned n)
{
    struct certificate_subject subject = subject_of(n);
    struct storage_account account = {.password = "$argon2id$nobody"};
    struct storage_device device = {0};
    memcpy(account.name, subject.account, sizeof account.name);
    memcpy(device.id, subject.device, sizeof device.id);
    memcpy(device.account, subject.account, sizeof device.account);
    members_set_account(server->members, &account);
    members_set_device(server->members, &device);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char *fault = NULL;
    log_init("fuzz", LOG_LEVEL_ERROR, false);
    snprintf(dir, sizeof dir, "/dev/shm/fuzz-tracker-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    struct server_settings settings = {.dir = dir,
                                       .host = "127.0.0.1",
                                       .registration = REGISTRATION_OPEN,
                                       .certificate_lifetime = 3600,
                                       .name = "fuzz"};
    server = server_new(&settings, &fault);
    CHECK(server != NULL);
    for (unsigned n = 1; n <= 2; n++)
        add_member(n);
    atexit(clean_up);
    return 0;
}

/* Frames in full from the short form; returns how many bytes. */
static size_t expand(uint8_t *out, const uint8_t *bytes, size_t size)
{
    size_t length = 0;
    struct frame hello = {.type = TRACKER__TRACKER_TYPE__TRACKER_HELLO, .id = 1, .message_size = 4};
    static const uint8_t version_1[] = {0x08, 1, 0x10, 1};
    frame_encode(out, &hello);
    memcpy(out + FRAME_HEADER_SIZE, version_1, sizeof version_1);
    length = FRAME_HEADER_SIZE + sizeof version_1;
    while (size >= 4) {
        struct frame frame = {.type = bytes[0], .id = bytes[1]};
        size_t count = (size_t)bytes[2] << 8 | bytes[3];
        bytes += 4;
        size -= 4;
        count = count < size ? count : size;
        if (length + FRAME_HEADER_SIZE + count > INPUT_MAX)
            break;
        frame.message_size = (uint32_t)count;
        if (frame.type != 255) {
            frame_encode(out + length, &frame);
            length += FRAME_HEADER_SIZE;
        }
        memcpy(out + length, bytes, count);
        length += count;
        bytes += count;
        size -= count;
    }
    return length;
}

/* Runs the loop until the storage has answered everything that was posted before. */
static bool settled;

static void has_settled(struct storage_job *job)
{
    free(job);
    settled = true;
}

static void nothing(struct storage_job *job, struct storage *storage)
{
}

static void settle(void)
{
    struct storage_job *job = xcalloc(1, sizeof *job);
    *job = (struct storage_job){.run = nothing, .done = has_settled};
    settled = false;
    storage_queue_post(server->queue, job);
    while (!settled)
        CHECK(event_base_loop(loop_base(server->loop), EVLOOP_ONCE) >= 0);
}

static struct session *adopt(struct mock_stream *mock, unsigned member)
{
    struct certificate_subject subject = subject_of(member);
    struct stream *stream = mock_init(mock);
    mock->room = SIZE_MAX / 2;
    bans_lift(server->bans, subject.device); /* what it did in the last input is forgotten */
    struct session *s = server_adopt(server, stream, "fuzz", member == 0 ? NULL : &subject);
    session_keep(s);
    return s;
}

static void say(struct mock_stream *mock, const uint8_t *bytes, size_t size, size_t chunk)
{
    mock->in = bytes;
    mock->in_size = size;
    mock->in_at = 0;
    mock->chunk = chunk;
    for (unsigned round = 0; round < 64 && !mock->destroyed && mock->in_at < size; round++) {
        mock->events->readable(mock->arg);
        settle();
    }
}

static void leave(struct session *s)
{
    session_end(s, "the input has ended");
    session_release(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    /* Hello, Subscribe, Want of a root of zeros. */
    static const uint8_t listener_says[] = {20, 2, 0, 0, 31, 3, 0, 36, 0x0a, 32, 0, 0, 0, 0, 0,
                                            0,  0, 0, 0, 0,  0, 0, 0,  0,    0,  0, 0, 0, 0, 0,
                                            0,  0, 0, 0, 0,  0, 0, 0,  0,    0,  0, 0, 0, 0};
    if (size < 1)
        return 0;
    uint8_t *input = xmalloc(INPUT_MAX + FRAME_HEADER_SIZE);
    uint8_t *other_input = xmalloc(1024);
    struct mock_stream speaker = {0}, listener = {0};
    struct session *other = NULL;
    if (bytes[0] & 2) {
        other = adopt(&listener, 2);
        say(&listener, other_input, expand(other_input, listener_says, sizeof listener_says), 0);
        settle();
    }
    struct session *s = adopt(&speaker, bytes[0] & 1);
    say(&speaker, input, expand(input, bytes + 1, size - 1), bytes[0] >> 2);
    settle();
    leave(s);
    if (other != NULL)
        leave(other);
    settle();
    free(input);
    free(other_input);
    return 0;
}
