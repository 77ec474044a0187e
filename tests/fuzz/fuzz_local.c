/* A client of the local socket that says anything: a real local thread with a real store; session, download and upload
 * only answer. The input's first byte chooses p2pfs or p2pctl; then requests follow: type (1 byte), length (1), and the
 * message. Whatever it says, the daemon lives, and answers an honest request afterwards. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/workers.h"
#include "daemon/download.h"
#include "daemon/limits.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/store.h"
#include "daemon/upload.h"
#include "proto/bans.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tests/local_stubs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TYPE(name) LOCAL__LOCAL_TYPE__LOCAL_##name
#define LIFETIME   2000 /* inputs that one daemon gets */

static char home[] = "/tmp/p2p-fuzz-local-XXXXXX";

/* --- the other threads ------------------------------------------------------------------------------------- */

void session_op(struct session *s, unsigned epoch, uint8_t *packed, size_t size)
{
    Tracker__Op *op = tracker__op__unpack(NULL, size, packed);
    Tracker__Results *results = xcalloc(1, sizeof *results);
    CHECK(op != NULL);
    tracker__results__init(results);
    results->n_results = 1;
    results->results = xcalloc(1, sizeof(Tracker__Result *));
    results->results[0] = xcalloc(1, sizeof(Tracker__Result));
    tracker__result__init(results->results[0]);
    results->results[0]->op = op->op;
    results->results[0]->status = TRACKER__OP_STATUS__OP_DENIED;
    tracker__op__free_unpacked(op, NULL);
    free(packed);
    local_results(d.local, results);
}
void session_account(struct session *s, struct account_request *request)
{
    struct account_answer *answer = xcalloc(1, sizeof *answer);
    answer->cookie = request->cookie;
    answer->name = xstrdup("ann");
    account_request_free(request);
    local_account_answer(d.local, answer);
}
/* The tracker knows nothing, and says so in one way or the other. */
void session_ask(struct session *s, const struct session_ask *is)
{
    struct session_answer *answer = xcalloc(1, sizeof *answer);
    ProtobufCMessage *request =
        protobuf_c_message_unpack(is->descriptor, NULL, is->size, is->packed);
    CHECK(request != NULL);
    protobuf_c_message_free_unpacked(request, NULL);
    answer->cookie = is->cookie;
    if (is->size % 2 == 0)
        answer->message = protobuf_c_message_unpack(is->answer, NULL, 0, is->packed);
    else
        answer->error = ENOENT;
    free(is->packed);
    local_asked(d.local, answer);
}
void session_answer_free(struct session_answer *answer)
{
    if (answer->message != NULL)
        protobuf_c_message_free_unpacked(answer->message, NULL);
    free(answer);
}
void session_keys(struct session *s, const char *accept, void *cookie)
{
    struct known_keys *keys = xcalloc(1, sizeof *keys);
    keys->keys = xcalloc(1, sizeof *keys->keys);
    keys->count = 1;
    keys->cookie = cookie;
    local_keys(d.local, keys);
}
void known_keys_free(struct known_keys *keys)
{
    if (keys != NULL)
        free(keys->keys);
    free(keys);
}
void session_health(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size, void *cookie)
{
    local_health_answer(d.local, cookie, ENOTCONN, NULL);
}
void session_release(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size,
                     uint8_t *pieces, void *cookie)
{
    free(pieces);
    local_release_answer(d.local, cookie, ENOTCONN, NULL);
}
void session_released(struct session *s, const uint8_t root[HASH_SIZE], bool gone)
{
}
void session_dropped(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size)
{
}
void download_demand(struct download *w, struct content *content, uint64_t request, uint64_t handle,
                     uint64_t offset, uint64_t size, int64_t wait_ns)
{
    CHECK(size > 0 && offset + size <= content_geometry(content)->size);
    local_demand_done(d.local, request, -EIO);
}
void download_undemand(struct download *w, uint64_t request)
{
}
void download_reading(struct download *w, struct content *content, uint64_t handle, uint64_t offset,
                      uint64_t size)
{
    CHECK(size > 0 && offset + size <= content_geometry(content)->size);
}
void download_handle_closed(struct download *w, uint64_t handle)
{
}
void download_get(struct download *w, struct content *content)
{
    local_content_complete(d.local, content_root(content), -EIO);
}
void download_unget(struct download *w, const uint8_t root[HASH_SIZE])
{
}
void download_ask_status(struct download *w, const uint8_t *root, void *cookie)
{
    struct download_status *s = xcalloc(1, sizeof *s);
    s->cookie = cookie;
    local_download_status(d.local, s);
}

/* --- the daemon -------------------------------------------------------------------------------------------- */

static void end(void)
{
    if (d.local == NULL)
        return;
    local_stop(d.local);
    workers_drain(d.workers);
    local_free(d.local);
    workers_free(d.workers);
    limits_free(d.limits);
    bans_free(d.bans);
    store_close(d.store);
    remove_tree(home);
    d.local = NULL;
}

/* What another member has: a directory, a file that is nowhere here, a link. */
static void say_something(void)
{
    static uint8_t root[HASH_SIZE] = {1}, generation[16] = {1};
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    Tracker__Entry entries[3], *list[3] = {&entries[0], &entries[1], &entries[2]};
    for (uint64_t i = 0; i < 3; i++) {
        tracker__entry__init(&entries[i]);
        entries[i].id = i + 2;
        entries[i].parent = i == 2 ? 2 : 1;
        entries[i].seq = i + 1;
        entries[i].kind = (Tracker__Kind)(i + 1);
        entries[i].name = (char *)(uintptr_t)(i == 0 ? "d" : i == 1 ? "f" : "l");
        entries[i].target = (char *)(uintptr_t) "x";
    }
    entries[1].size = 100000;
    entries[1].root.data = root;
    entries[1].root.len = HASH_SIZE;
    changes.generation.data = generation;
    changes.generation.len = sizeof generation;
    changes.n_entries = 3;
    changes.entries = list;
    changes.from_scratch = changes.live = true;
    changes.seq = 3;
    size_t size = tracker__changes__get_packed_size(&changes);
    uint8_t *packed = xmalloc(size);
    tracker__changes__pack(&changes, packed);
    local_changes(d.local, tracker__changes__unpack(NULL, size, packed));
    free(packed);
}

static void begin(void)
{
    const char *fault = NULL;
    static bool registered;
    if (!registered) {
        log_init("fuzz_local", LOG_LEVEL_ERROR, false);
        CHECK(atexit(end) == 0);
    }
    registered = true;
    memcpy(home + sizeof home - 7, "XXXXXX", 6);
    CHECK(mkdtemp(home) != NULL);
    char *store_path = home_path(home, "store");
    d.home = home;
    d.store = store_open(store_path, &fault);
    free(store_path);
    d.limits = limits_open(home, (struct rates){0}, &fault);
    d.bans = bans_new();
    d.workers = workers_new("worker", 1);
    d.local = local_new(&d, &fault);
    CHECK(d.store != NULL && d.limits != NULL && d.local != NULL);
    local_start(d.local);
    local_session_state(d.local, SESSION_CONNECTED, 1, NULL, xstrdup("ann"), NULL);
    say_something();
}

/* --- the client -------------------------------------------------------------------------------------------- */

static int dial(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *path = home_socket(home);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, path, strlen(path) + 1);
    free(path);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static bool say(int fd, uint16_t type, uint32_t id, const uint8_t *message, size_t size)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 256];
    struct frame frame = {.type = type, .id = id, .message_size = (uint32_t)size};
    frame_encode(bytes, &frame);
    memcpy(bytes + FRAME_HEADER_SIZE, message, size);
    return send(fd, bytes, FRAME_HEADER_SIZE + size, MSG_NOSIGNAL) ==
           (ssize_t)(FRAME_HEADER_SIZE + size);
}

static void greet(int fd, Local__Program program)
{
    Local__Hello hello = LOCAL__HELLO__INIT;
    static uint64_t mount;
    uint8_t packed[256];
    hello.version = 1;
    hello.program = program;
    hello.mount = ++mount;
    hello.mountpoint = (char *)(uintptr_t) "/mnt";
    CHECK(say(fd, TYPE(HELLO), 1, packed, local__hello__pack(&hello, packed)));
}

/* All of it, or false. libFuzzer's alarm interrupts calls. */
static bool take_all(int fd, uint8_t *to, size_t size)
{
    while (size > 0) {
        ssize_t part = recv(fd, to, size, 0);
        if (part < 0 && errno == EINTR)
            continue;
        if (part <= 0)
            return false;
        to += part;
        size -= (size_t)part;
    }
    return true;
}

/* Reads until the answer with this id, or the end. */
static bool hear(int fd, uint32_t id)
{
    static uint8_t buffer[LIMIT_FRAME_MESSAGE + LIMIT_FRAME_PAYLOAD];
    uint8_t header[FRAME_HEADER_SIZE];
    for (;;) {
        struct frame frame;
        if (!take_all(fd, header, sizeof header))
            return false;
        CHECK(frame_decode(&frame, header, LIMIT_FRAME_MESSAGE) == NULL);
        size_t size = frame.message_size + frame.payload_size;
        if (!take_all(fd, buffer, size))
            return false;
        if (frame.id == id && (frame.flags & FRAME_ANSWER) != 0)
            return true;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned inputs;
    static const uint8_t of_root[] = {0x08, 0x01};
    if (inputs++ % LIFETIME == 0) {
        end();
        begin();
    }
    if (size == 0)
        return 0;
    int fd = dial();
    greet(fd, data[0] % 2 == 0 ? LOCAL__PROGRAM__PROGRAM_FS : LOCAL__PROGRAM__PROGRAM_CTL);
    uint32_t id = 2;
    for (size_t at = 1; at + 2 <= size && id < 64; id++) {
        size_t length = data[at + 1] < size - at - 2 ? data[at + 1] : size - at - 2;
        if (!say(fd, data[at], data[at] % 7 == 0 ? 0 : id, data + at + 2, length))
            break;
        at += 2 + length;
    }
    if (say(fd, TYPE(GETATTR), 1000, of_root, sizeof of_root))
        (void)hear(fd, 1000);
    close(fd);
    fd = dial();
    greet(fd, LOCAL__PROGRAM__PROGRAM_CTL);
    CHECK(say(fd, TYPE(GETATTR), 1000, of_root, sizeof of_root) && hear(fd, 1000));
    close(fd);
    return 0;
}
