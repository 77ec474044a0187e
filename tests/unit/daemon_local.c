/* The local thread with a real store and real working files; session, download and upload are played by the test:
 * the tracker is the reference of catalogue_tracker.h, downloads end when the test says so. The client is a
 * blocking Unix socket. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/log.h"
#include "base/workers.h"
#include "daemon/download.h"
#include "daemon/ingest.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/store.h"
#include "daemon/upload.h"
#include "proto/bans.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tests/local_stubs.h"
#include "tests/unit/catalogue_tracker.h"

#define TYPE(name) LOCAL__LOCAL_TYPE__LOCAL_##name

/* --- session, download and upload, as the test plays them ---------------------------------------------------- */

static char home[] = "/tmp/p2p-local-XXXXXX";

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over all below */
static struct ref tracker;
static bool tracker_answers;
static uint64_t demands[64], undemanded, handle_closed;
static unsigned demand_count, get_count, unget_count, dropped_count, ops_seen;
static struct content *got;
static char *asked_url, *asked_password;

static void hold_lock(void)
{
    assert_int_equal(pthread_mutex_lock(&lock), 0);
}
static void drop_lock(void)
{
    assert_int_equal(pthread_mutex_unlock(&lock), 0);
}

static void push_changes(uint64_t since)
{
    for (uint64_t seq = since + 1; seq <= tracker.seq; seq++) {
        Tracker__Changes *changes = ref_changes_new(&tracker);
        ref_changes_add(changes, ref_message(&tracker.entries[tracker.log[seq % 65536] - 2]));
        changes->seq = seq;
        changes->live = true;
        local_changes(d.local, changes);
    }
}

void session_op(struct session *s, unsigned epoch, uint8_t *packed, size_t size)
{
    Tracker__Op *op = tracker__op__unpack(NULL, size, packed);
    hold_lock();
    ops_seen++;
    if (tracker_answers) {
        uint64_t seq = tracker.seq;
        Tracker__Results *results = xcalloc(1, sizeof *results);
        tracker__results__init(results);
        results->n_results = 1;
        results->results = xcalloc(1, sizeof(Tracker__Result *));
        results->results[0] = ref_apply(&tracker, 1, "ann", op);
        local_results(d.local, results);
        push_changes(seq);
    }
    drop_lock();
    tracker__op__free_unpacked(op, NULL);
    free(packed);
}
void session_account(struct session *s, struct account_request *request)
{
    struct account_answer *answer = xcalloc(1, sizeof *answer);
    answer->cookie = request->cookie;
    if (request->verb == ACCOUNT_WHOAMI || request->verb == ACCOUNT_LOGIN) {
        answer->name = xstrdup("ann");
        answer->swarm = xstrdup("lab");
        answer->device = xstrdup("00ff");
    }
    if (request->verb == ACCOUNT_LOGIN) {
        hold_lock();
        free(asked_url);
        free(asked_password);
        asked_url = xstrdup(request->url);
        asked_password = xmalloc(request->password_size + 1);
        memcpy(asked_password, request->password, request->password_size);
        asked_password[request->password_size] = '\0';
        drop_lock();
    }
    if (request->verb == ACCOUNT_PASSWORD) {
        answer->error = EACCES;
        answer->text = xstrdup("the password is wrong");
    }
    if (request->verb == ACCOUNT_INVITE)
        answer->text = xstrdup("p2p://t/?invite=x");
    bool enters = request->verb == ACCOUNT_LOGIN;
    account_request_free(request);
    local_account_answer(d.local, answer);
    if (enters) { /* which waits for the tree: a swarm of its own, in which nothing is */
        static struct ref empty = {.generation = {9}};
        local_changes(d.local, ref_since(&empty, 0, true));
    }
}
void session_health(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size, void *cookie)
{
    Tracker__Health *health = xcalloc(1, sizeof *health);
    tracker__health__init(health);
    health->pieces = 4;
    health->missing = 3;
    local_health_answer(d.local, cookie, 0, health);
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
    hold_lock();
    dropped_count++;
    drop_lock();
}

void download_demand(struct download *w, struct content *content, uint64_t request, uint64_t handle,
                     uint64_t offset, uint64_t size, int64_t wait_ns)
{
    hold_lock();
    demands[demand_count++ % 64] = request;
    drop_lock();
}
void download_undemand(struct download *w, uint64_t request)
{
    hold_lock();
    undemanded = request;
    drop_lock();
}
void download_reading(struct download *w, struct content *content, uint64_t handle, uint64_t offset,
                      uint64_t size)
{
}
void download_handle_closed(struct download *w, uint64_t handle)
{
    hold_lock();
    handle_closed = handle;
    drop_lock();
}
void download_get(struct download *w, struct content *content)
{
    hold_lock();
    get_count++;
    content_release(got);
    got = content_share(content);
    drop_lock();
}
void download_unget(struct download *w, const uint8_t root[HASH_SIZE])
{
    hold_lock();
    unget_count++;
    drop_lock();
}
void download_ask_status(struct download *w, const uint8_t *root, void *cookie)
{
    struct download_status *s = xcalloc(1, sizeof *s);
    s->cookie = cookie;
    hold_lock();
    if (got != NULL) {
        s->files = xcalloc(1, sizeof *s->files);
        s->file_count = 1;
        memcpy(s->files->root, content_root(got), HASH_SIZE);
        s->files->wanted_all = true;
        s->files->missing_pieces = 1;
    }
    drop_lock();
    local_download_status(d.local, s);
}

/* --- a client -------------------------------------------------------------------------------------------------- */

struct wire {
    int fd;
    uint32_t id; /* of the last request */
    struct frame frame;
    uint8_t *message;
    char *payload;
    int fds[4];
    unsigned fd_count;
    /* what was pushed meanwhile */
    unsigned invalidations, progress;
    char last_invalid[256];
    bool goodbye;
};

static void read_all(struct wire *w, void *to, size_t size, bool with_fds)
{
    size_t done = 0;
    while (done < size) {
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(4 * sizeof(int))];
        } control;
        struct iovec iov = {(char *)to + done, size - done};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = &control,
                           .msg_controllen = sizeof control};
        struct pollfd p = {.fd = w->fd, .events = POLLIN};
        if (poll(&p, 1, 30000) != 1)
            fail_msg("no answer");
        ssize_t n = recvmsg(w->fd, &m, MSG_CMSG_CLOEXEC);
        if (n <= 0)
            fail_msg("the connection ended: %s", n == 0 ? "in order" : strerror(errno));
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c)) {
            unsigned count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(w->fds + w->fd_count, CMSG_DATA(c), count * sizeof(int));
            w->fd_count += count;
        }
        done += (size_t)n;
    }
}

static void close_fds(struct wire *w)
{
    for (unsigned i = 0; i < w->fd_count; i++)
        if (w->fds[i] >= 0)
            close(w->fds[i]);
    w->fd_count = 0;
}

static void read_frame(struct wire *w)
{
    uint8_t header[FRAME_HEADER_SIZE];
    close_fds(w);
    read_all(w, header, sizeof header, true);
    assert_null(frame_decode(&w->frame, header, LIMIT_FRAME_MESSAGE));
    free(w->message);
    free(w->payload);
    w->message = xmalloc(w->frame.message_size + 1);
    w->payload = xcalloc(1, w->frame.payload_size + 1);
    read_all(w, w->message, w->frame.message_size, true);
    read_all(w, w->payload, w->frame.payload_size, true);
}

static void take_push(struct wire *w)
{
    if (w->frame.type == TYPE(INVALIDATE)) {
        Local__Invalidate *m = local__invalidate__unpack(NULL, w->frame.message_size, w->message);
        assert_non_null(m);
        w->invalidations += (unsigned)m->n_what;
        for (size_t i = 0; i < m->n_what; i++)
            if (m->what[i]->name[0] != '\0')
                snprintf(w->last_invalid, sizeof w->last_invalid, "%s", m->what[i]->name);
        local__invalidate__free_unpacked(m, NULL);
    }
    w->goodbye |= w->frame.type == TYPE(GOODBYE);
    w->progress += w->frame.type == TYPE(PROGRESS);
}

static void send_message(struct wire *w, uint16_t type, uint32_t id, const ProtobufCMessage *m)
{
    struct frame frame = {
        .type = type, .id = id, .message_size = (uint32_t)protobuf_c_message_get_packed_size(m)};
    uint8_t *bytes = xmalloc(FRAME_HEADER_SIZE + frame.message_size);
    frame_encode(bytes, &frame);
    protobuf_c_message_pack(m, bytes + FRAME_HEADER_SIZE);
    assert_int_equal(send(w->fd, bytes, FRAME_HEADER_SIZE + frame.message_size, MSG_NOSIGNAL),
                     FRAME_HEADER_SIZE + frame.message_size);
    free(bytes);
}

static void await(struct wire *w, uint32_t id)
{
    for (;;) {
        read_frame(w);
        if (w->frame.id == id && (w->frame.flags & FRAME_ANSWER) != 0)
            return;
        take_push(w);
    }
}

/* The answer's errno, 0 if it is not an error. */
static int ask(struct wire *w, uint16_t type, const ProtobufCMessage *m)
{
    send_message(w, type, ++w->id, m);
    await(w, w->id);
    if (w->frame.type != TYPE(ERROR))
        return 0;
    Local__Error *error = local__error__unpack(NULL, w->frame.message_size, w->message);
    assert_non_null(error);
    int number = error->number;
    free(w->payload);
    w->payload = xstrdup(error->text);
    local__error__free_unpacked(error, NULL);
    assert_int_not_equal(number, 0);
    return number;
}

static struct wire *wire_raw(void)
{
    struct wire *w = xcalloc(1, sizeof *w);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *path = home_socket(home);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    free(path);
    w->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(w->fd, (struct sockaddr *)&address, sizeof address), 0);
    return w;
}

static struct wire *wire_open(Local__Program program, uint64_t mount)
{
    struct wire *w = wire_raw();
    Local__Hello hello = LOCAL__HELLO__INIT;
    hello.version = 1;
    hello.program = program;
    hello.mount = mount;
    hello.mountpoint = (char *)(uintptr_t) "/mnt/swarm";
    assert_int_equal(ask(w, TYPE(HELLO), &hello.base), 0);
    assert_int_equal(w->frame.type, TYPE(WELCOME));
    return w;
}

static void wire_close(struct wire *w)
{
    close_fds(w);
    close(w->fd);
    free(w->message);
    free(w->payload);
    free(w);
}

/* --- requests ---------------------------------------------------------------------------------------------------- */

static Local__Attr last; /* without the pointers */
static uint8_t last_root[HASH_SIZE];

static void take_attr(const Local__Attr *a)
{
    last = *a;
    last.name = last.owner = NULL;
    last.root.data = NULL;
    memset(last_root, 0, sizeof last_root);
    if (a->root.len == HASH_SIZE)
        memcpy(last_root, a->root.data, HASH_SIZE);
}

static int ask_attr(struct wire *w, uint16_t type, const ProtobufCMessage *m)
{
    int error = ask(w, type, m);
    if (error == 0) {
        assert_int_equal(w->frame.type, TYPE(ATTR));
        Local__Attr *a = local__attr__unpack(NULL, w->frame.message_size, w->message);
        assert_non_null(a);
        take_attr(a);
        local__attr__free_unpacked(a, NULL);
    }
    return error;
}

static int lookup(struct wire *w, uint64_t parent, const char *name)
{
    Local__Lookup m = LOCAL__LOOKUP__INIT;
    m.parent = parent;
    m.name = (char *)(uintptr_t)name;
    return ask_attr(w, TYPE(LOOKUP), &m.base);
}

static int getattr(struct wire *w, uint64_t ino)
{
    Local__Node m = LOCAL__NODE__INIT;
    m.ino = ino;
    return ask_attr(w, TYPE(GETATTR), &m.base);
}

static int make_dir(struct wire *w, uint64_t parent, const char *name)
{
    Local__Make m = LOCAL__MAKE__INIT;
    m.parent = parent;
    m.name = (char *)(uintptr_t)name;
    m.mode = 0755;
    return ask_attr(w, TYPE(MKDIR), &m.base);
}

static int remove_name(struct wire *w, uint16_t type, uint64_t parent, const char *name)
{
    Local__Lookup m = LOCAL__LOOKUP__INIT;
    m.parent = parent;
    m.name = (char *)(uintptr_t)name;
    return ask(w, type, &m.base);
}

static bool last_complete, last_working;
static uint64_t last_number, numbers[65536]; /* of working files, by ino */

static int take_opened(struct wire *w, int error)
{
    if (error != 0)
        return error;
    assert_int_equal(w->frame.type, TYPE(OPENED));
    Local__Opened *o = local__opened__unpack(NULL, w->frame.message_size, w->message);
    assert_non_null(o);
    assert_non_null(o->attr);
    take_attr(o->attr);
    last_complete = o->complete;
    last_working = o->working;
    last_number = o->number;
    if (o->working && last.ino < sizeof numbers / sizeof *numbers)
        numbers[last.ino] = o->number;
    local__opened__free_unpacked(o, NULL);
    return 0;
}

/* The descriptors are in w->fds. */
static int open_file(struct wire *w, uint64_t ino)
{
    Local__Open m = LOCAL__OPEN__INIT;
    m.ino = ino;
    return take_opened(w, ask(w, TYPE(OPEN), &m.base));
}

static int create(struct wire *w, uint64_t parent, const char *name, int *fd)
{
    Local__Make m = LOCAL__MAKE__INIT;
    m.parent = parent;
    m.name = (char *)(uintptr_t)name;
    m.mode = 0644;
    m.exclusive = true;
    int error = take_opened(w, ask(w, TYPE(CREATE), &m.base));
    if (error == 0) {
        assert_true(last_working);
        assert_int_equal(w->fd_count, 1);
        *fd = w->fds[0];
        w->fd_count = 0;
    }
    return error;
}

static int begin_write(struct wire *w, uint64_t ino, uint64_t keep, int *fd)
{
    Local__WriteBegin m = LOCAL__WRITE_BEGIN__INIT;
    m.ino = ino;
    m.size = keep;
    int error = take_opened(w, ask(w, TYPE(WRITE_BEGIN), &m.base));
    if (error == 0) {
        assert_int_equal(w->fd_count, 1);
        *fd = w->fds[0];
        w->fd_count = 0;
    }
    return error;
}

static void wrote(struct wire *w, uint64_t ino, uint64_t offset, uint64_t size)
{
    Local__Wrote m = LOCAL__WROTE__INIT;
    m.ino = ino;
    m.offset = offset;
    m.size = size;
    send_message(w, TYPE(WROTE), 0, &m.base);
}

static int seal_number(struct wire *w, uint64_t ino, uint64_t size, uint64_t number)
{
    Local__Seal m = LOCAL__SEAL__INIT;
    m.number = number;
    m.ino = ino;
    m.size = size;
    m.mtime = 42;
    m.set_mtime = true;
    return ask_attr(w, TYPE(SEAL), &m.base);
}

static int seal(struct wire *w, uint64_t ino, uint64_t size)
{
    return seal_number(w, ino, size, ino < sizeof numbers / sizeof *numbers ? numbers[ino] : 0);
}

static void release(struct wire *w, uint64_t ino, bool is_last)
{
    Local__Release m = LOCAL__RELEASE__INIT;
    m.ino = ino;
    m.handle = 1;
    m.last = is_last;
    send_message(w, TYPE(RELEASE), 0, &m.base);
}

static void fill(uint8_t *data, size_t size, unsigned seed)
{
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (size_t i = 0; i < size; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[i] = (uint8_t)x;
    }
}

static void root_of(uint8_t root[HASH_SIZE], const uint8_t *data, size_t size)
{
    struct geometry g = geometry_of(size);
    uint8_t *leaves = xmalloc(g.blocks * HASH_SIZE + 1);
    for (uint64_t i = 0; i < g.blocks; i++) {
        const uint8_t *block = data + i * BLOCK_SIZE;
        merkle_leaves(leaves + i * HASH_SIZE, &block, 1, geometry_block_size(&g, i));
    }
    merkle_root_of_leaves(root, NULL, &g, leaves);
    free(leaves);
}

/* Copies a file in, as p2pfs does it; closes it. */
static uint64_t copy_in(struct wire *w, uint64_t parent, const char *name, size_t size,
                        unsigned seed)
{
    uint8_t *data = xmalloc(size + 1), root[HASH_SIZE];
    int fd = -1;
    fill(data, size, seed);
    assert_int_equal(create(w, parent, name, &fd), 0);
    uint64_t ino = last.ino;
    assert_int_equal(file_pwrite_all(fd, data, size, 0), 0);
    wrote(w, ino, 0, size);
    assert_int_equal(seal(w, ino, size), 0);
    root_of(root, data, size);
    assert_memory_equal(last_root, root, HASH_SIZE);
    close(fd);
    release(w, ino, true);
    free(data);
    return ino;
}

/* --- life --------------------------------------------------------------------------------------------------------- */

static void daemon_begin(void)
{
    const char *fault = NULL;
    char *store_path = home_path(home, "store");
    d.home = home;
    d.started = clock_now();
    d.store = store_open(store_path, &fault);
    assert_non_null(d.store);
    free(store_path);
    d.bans = bans_new();
    d.workers = workers_new("worker", 2);
    d.local = local_new(&d, &fault);
    if (d.local == NULL)
        fail_msg("%s", fault);
    local_start(d.local);
}

static void daemon_end(void)
{
    local_stop(d.local);
    workers_drain(d.workers);
    local_free(d.local);
    workers_free(d.workers);
    bans_free(d.bans);
    hold_lock();
    content_release(got);
    got = NULL;
    drop_lock();
    store_close(d.store);
    memset(&d, 0, sizeof d);
}

static void say_state(enum session_state state)
{
    local_session_state(d.local, state, 1, NULL,
                        state == SESSION_LOGGED_OUT ? NULL : xstrdup("ann"), xstrdup("lab"));
    if (state == SESSION_CONNECTED)
        local_changes(d.local, ref_since(&tracker, 0, true));
}

static int set_up(void **state)
{
    memset(&tracker, 0, sizeof tracker);
    memset(tracker.generation, 7, sizeof tracker.generation);
    tracker_answers = true;
    demand_count = get_count = unget_count = dropped_count = ops_seen = 0;
    snprintf(home, sizeof home, "/tmp/p2p-local-XXXXXX");
    if (mkdtemp(home) == NULL)
        return -1;
    daemon_begin();
    say_state(SESSION_CONNECTED);
    return 0;
}

static int tear_down(void **state)
{
    if (d.local != NULL)
        daemon_end();
    remove_tree(home);
    return 0;
}

#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        int64_t until_ = clock_now() + 30 * NS_PER_S;                                              \
        bool met_;                                                                                 \
        do {                                                                                       \
            hold_lock();                                                                           \
            met_ = (condition);                                                                    \
            drop_lock();                                                                           \
            if (!met_)                                                                             \
                usleep(1000);                                                                      \
        } while (!met_ && clock_now() < until_);                                                   \
        assert_true(met_);                                                                         \
    } while (0)

/* --- tests --------------------------------------------------------------------------------------------------------- */

/* The tracker hears of it a moment after close. */
static void await_complete(struct wire *w, uint64_t ino)
{
    for (int i = 0; i < 5000 && getattr(w, ino) == 0 && last.state == LOCAL__STATE__STATE_PENDING;
         i++)
        usleep(1000);
    assert_int_equal(last.state, LOCAL__STATE__STATE_COMPLETE);
}

/* After a start it is local first, and pending only then. */
static void await_published(struct wire *w, const char *name)
{
    for (int i = 0; i < 5000; i++) {
        assert_int_equal(lookup(w, 1, name), 0);
        if (last.state == LOCAL__STATE__STATE_COMPLETE)
            break;
        usleep(1000);
    }
    assert_int_equal(last.state, LOCAL__STATE__STATE_COMPLETE);
}

static void a_file_that_is_copied_in_is_published_and_read_back(void **state)
{
    static const size_t sizes[] = {0, 1, 16384, 16385, 5000001};
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    assert_int_equal(make_dir(w, 1, "d"), 0);
    uint64_t dir = last.ino;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%zu", i);
        uint64_t ino = copy_in(w, dir, name, sizes[i], (unsigned)i);
        assert_true(last.mtime == 42);
        await_complete(w, ino);
        assert_int_equal(open_file(w, ino), 0);
        assert_true(last_complete);
        assert_int_equal(last.size, sizes[i]);
        if (sizes[i] == 0) {
            assert_int_equal(w->fd_count, 0);
            continue;
        }
        uint8_t *data = xmalloc(sizes[i]), *read = xmalloc(sizes[i]);
        fill(data, sizes[i], (unsigned)i);
        assert_int_equal(file_pread_all(w->fds[0], read, sizes[i], 0), 0);
        assert_memory_equal(data, read, sizes[i]);
        free(data);
        free(read);
        release(w, ino, true);
    }
    hold_lock();
    assert_int_equal(tracker.count, 6);
    drop_lock();
    wire_close(w);
}

static void names_are_made_moved_listed_and_removed(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    assert_int_equal(make_dir(w, 1, "d"), 0);
    uint64_t dir = last.ino;
    assert_int_equal(make_dir(w, 1, "d"), EEXIST);
    assert_int_equal(make_dir(w, 1, "a/b"), EINVAL);
    Local__Make link = LOCAL__MAKE__INIT;
    link.parent = dir;
    link.name = (char *)(uintptr_t) "l";
    link.target = (char *)(uintptr_t) "../x";
    assert_int_equal(ask_attr(w, TYPE(SYMLINK), &link.base), 0);
    assert_int_equal(last.size, 4);
    Local__Node node = LOCAL__NODE__INIT;
    node.ino = last.ino;
    assert_int_equal(ask(w, TYPE(READLINK), &node.base), 0);
    Local__Rename rename = LOCAL__RENAME__INIT;
    rename.parent = dir;
    rename.name = (char *)(uintptr_t) "l";
    rename.to_parent = 1;
    rename.to_name = (char *)(uintptr_t) "m";
    assert_int_equal(ask(w, TYPE(RENAME), &rename.base), 0);
    assert_int_equal(lookup(w, dir, "l"), ENOENT);
    assert_int_equal(lookup(w, 1, "m"), 0);
    assert_int_equal(remove_name(w, TYPE(RMDIR), 1, "m"), ENOTDIR);
    assert_int_equal(remove_name(w, TYPE(UNLINK), 1, "m"), 0);
    Local__Setattr set = LOCAL__SETATTR__INIT;
    set.ino = dir;
    set.set_mode = set.set_mtime = true;
    set.mode = 0700;
    set.mtime = 99;
    assert_int_equal(ask_attr(w, TYPE(SETATTR), &set.base), 0);
    assert_int_equal(last.mode, 0700);
    char name[16];
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "%d", i);
        assert_int_equal(make_dir(w, dir, name), 0);
    }
    unsigned seen = 0;
    Local__Readdir list = LOCAL__READDIR__INIT;
    list.ino = dir;
    list.count = 7;
    for (bool end = false; !end;) {
        assert_int_equal(ask(w, TYPE(READDIR), &list.base), 0);
        Local__Listing *listing = local__listing__unpack(NULL, w->frame.message_size, w->message);
        assert_non_null(listing);
        assert_true(listing->n_entries <= 7 && listing->n_entries == listing->n_cookies);
        seen += (unsigned)listing->n_entries;
        end = listing->end;
        if (listing->n_entries > 0)
            list.cookie = listing->cookies[listing->n_entries - 1];
        local__listing__free_unpacked(listing, NULL);
    }
    assert_int_equal(seen, 50);
    assert_int_equal(remove_name(w, TYPE(RMDIR), 1, "d"), ENOTEMPTY);
    Local__Statfs statfs = LOCAL__STATFS__INIT;
    assert_int_equal(ask(w, TYPE(STATFS), &statfs.base), 0);
    Local__Space *space = local__space__unpack(NULL, w->frame.message_size, w->message);
    assert_int_equal(space->entries, 51);
    assert_true(space->size > 0);
    local__space__free_unpacked(space, NULL);
    wire_close(w);
}

static int xattr(struct wire *w, uint64_t ino, const char *name)
{
    Local__Xattr m = LOCAL__XATTR__INIT;
    m.ino = ino;
    m.name = (char *)(uintptr_t)name;
    return ask(w, TYPE(GETXATTR), &m.base);
}

static void extended_attributes_tell_what_is_known(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    char hex[65];
    uint64_t ino = copy_in(w, 1, "f", 20000, 1);
    hex_encode(hex, last_root, HASH_SIZE);
    assert_int_equal(last.state, LOCAL__STATE__STATE_PENDING);
    await_complete(w, ino);
    assert_int_equal(xattr(w, ino, "user.p2p.root"), 0);
    assert_string_equal(w->payload, hex);
    assert_int_equal(xattr(w, ino, "user.p2p.state"), 0);
    assert_string_equal(w->payload, "complete");
    assert_int_equal(xattr(w, ino, "user.p2p.have"), 0);
    assert_string_equal(w->payload, "20000");
    assert_int_equal(xattr(w, ino, "user.p2p.owner"), 0);
    assert_string_equal(w->payload, "ann");
    assert_int_equal(xattr(w, ino, "user.p2p.path"), 0);
    assert_string_equal(w->payload, "/f");
    assert_int_equal(xattr(w, ino, "user.p2p.peers"), 0);
    assert_string_equal(w->payload, "0");
    assert_int_equal(xattr(w, ino, "user.other"), ENODATA);
    assert_int_equal(xattr(w, 1, "user.p2p.root"), ENODATA);
    wire_close(w);
}

static void without_a_tracker_files_are_kept_and_published_later(void **state)
{
    say_state(SESSION_AWAY);
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint64_t ino = copy_in(w, 1, "f", 1000, 1);
    assert_int_equal(last.state, LOCAL__STATE__STATE_PENDING);
    wire_close(w);
    daemon_end();
    daemon_begin();
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    assert_int_equal(lookup(w, 1, "f"), 0);
    assert_int_equal(last.ino, ino);
    assert_int_equal(last.state, LOCAL__STATE__STATE_PENDING);
    say_state(SESSION_CONNECTED);
    WAIT_UNTIL(tracker.count == 1);
    await_complete(w, ino);
    wire_close(w);
}

static void close_does_not_wait_for_the_tracker(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    hold_lock();
    tracker_answers = false;
    drop_lock();
    copy_in(w, 1, "f", 1000, 1);
    assert_int_equal(last.state, LOCAL__STATE__STATE_PENDING);
    wire_close(w);
}

static void what_the_tracker_has_no_room_for_stays_here_and_pending(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    hold_lock();
    tracker.full = true;
    drop_lock();
    assert_int_equal(create(w, 1, "f", &fd), 0);
    assert_int_equal(file_pwrite_all(fd, "x", 1, 0), 0);
    assert_int_equal(seal(w, last.ino, 1), 0);
    WAIT_UNTIL(ops_seen == 1);
    assert_int_equal(lookup(w, 1, "f"), 0);
    assert_int_equal(last.state, LOCAL__STATE__STATE_PENDING);
    close(fd);
    wire_close(w);
}

static void a_new_version_replaces_the_old_one_and_old_readers_keep_theirs(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7),
                *other = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 8),
                *third = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 9);
    uint64_t ino = copy_in(w, 1, "f", 40000, 1);
    assert_int_equal(getattr(third, ino), 0);
    uint8_t old[40000], read[40000];
    int fd = -1, old_fd;
    fill(old, sizeof old, 1);
    assert_int_equal(open_file(other, ino), 0);
    old_fd = other->fds[0];
    other->fds[0] = -1;
    assert_int_equal(begin_write(w, ino, 30000, &fd), 0);
    assert_int_equal(file_pread_all(fd, read, 30000, 0), 0);
    assert_memory_equal(read, old, 30000);
    assert_int_equal(file_pwrite_all(fd, "new", 3, 0), 0);
    wrote(w, ino, 0, 3);
    assert_int_equal(seal(w, ino, 30000), 0);
    assert_int_equal(last.ino, ino);
    assert_int_equal(last.size, 30000);
    close(fd);
    assert_int_equal(file_pread_all(old_fd, read, sizeof read, 0), 0);
    assert_memory_equal(read, old, sizeof old);
    close(old_fd);
    assert_int_equal(lookup(other, 1, "f"), 0);
    assert_int_equal(last.size, 30000);
    assert_int_not_equal(last.ino, ino);   /* the other kernel may have pages of the number */
    assert_true(other->invalidations > 0); /* the other mount heard of it */
    assert_true(w->invalidations > 0);     /* and so did this one */
    /* Who only knows the number takes it for the old version, whose bytes are not what it would get. */
    assert_int_equal(open_file(third, ino), ESTALE);
    assert_int_equal(open_file(other, ino), 0);
    assert_int_equal(open_file(w, ino), 0);
    wire_close(w);
    wire_close(other);
    wire_close(third);
}

static void a_large_file_is_hashed_behind_its_writer(void **state)
{
    enum { STEP = 1 << 20, STEPS = 24 };
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint8_t *data = xmalloc(STEP * STEPS), root[HASH_SIZE];
    int fd = -1;
    fill(data, STEP * STEPS, 5);
    assert_int_equal(create(w, 1, "f", &fd), 0);
    uint64_t ino = last.ino;
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(file_pwrite_all(fd, data + i * STEP, STEP, (uint64_t)i * STEP), 0);
        wrote(w, ino, (uint64_t)i * STEP, STEP);
    }
    memset(data, 0, 100); /* the beginning, once more */
    assert_int_equal(file_pwrite_all(fd, data, 100, 0), 0);
    wrote(w, ino, 0, 100);
    assert_int_equal(getattr(w, ino), 0);
    assert_int_equal(last.state, LOCAL__STATE__STATE_LOCAL);
    assert_int_equal(seal(w, ino, STEP * STEPS), 0);
    root_of(root, data, STEP * STEPS);
    assert_memory_equal(root, last_root, HASH_SIZE);
    close(fd);
    free(data);
    wire_close(w);
}

/* Another member's file that nobody here has. */
static void publish_elsewhere(const char *name, const uint8_t root[HASH_SIZE], uint64_t size)
{
    static uint64_t number;
    Tracker__Op op = TRACKER__OP__INIT;
    uint8_t copy[HASH_SIZE];
    memcpy(copy, root, HASH_SIZE);
    op.op = ++number;
    op.kind = TRACKER__OP_KIND__OP_PUBLISH;
    op.parent = 1;
    op.name = (char *)(uintptr_t)name;
    op.size = size;
    op.root.data = copy;
    op.root.len = HASH_SIZE;
    hold_lock();
    uint64_t seq = tracker.seq;
    Tracker__Result *result = ref_apply(&tracker, 99, "bob", &op);
    assert_int_equal(result->status, TRACKER__OP_STATUS__OP_OK);
    tracker__result__free_unpacked(result, NULL);
    push_changes(seq);
    drop_lock();
}

static uint64_t await_name(struct wire *w, const char *name)
{
    for (int i = 0; i < 10000 && lookup(w, 1, name) != 0; i++)
        usleep(1000);
    assert_int_equal(lookup(w, 1, name), 0);
    return last.ino;
}

/* Puts the first block(s) of a content into the store. */
static void put_blocks(const uint8_t *data, size_t size, uint64_t first, uint32_t count)
{
    struct geometry g = geometry_of(size);
    uint8_t root[HASH_SIZE], *leaves = xmalloc(g.blocks * HASH_SIZE),
                             *layer = xmalloc(g.pieces * HASH_SIZE);
    const uint8_t *blocks[64];
    int error, verdicts[64];
    for (uint64_t i = 0; i < g.blocks; i++) {
        const uint8_t *block = data + i * BLOCK_SIZE;
        merkle_leaves(leaves + i * HASH_SIZE, &block, 1, geometry_block_size(&g, i));
    }
    merkle_root_of_leaves(root, layer, &g, leaves);
    struct content *content = store_get(d.store, root, size, true, &error);
    assert_non_null(content);
    if (!content_has_piece_layer(content))
        assert_int_equal(content_set_piece_layer(content, layer), 0);
    if (!content_has_leaves(content, 0))
        assert_int_equal(content_set_leaves(content, 0, leaves), 0);
    for (uint32_t i = 0; i < count; i++)
        blocks[i] = data + (first + i) * BLOCK_SIZE;
    assert_int_equal(content_put(content, first, count, blocks, verdicts), 0);
    local_holding_changed(d.local, content);
    content_release(content);
    free(leaves);
    free(layer);
}

static void send_want(struct wire *w, uint32_t id, uint64_t ino, uint64_t offset, uint64_t size)
{
    Local__Want m = LOCAL__WANT__INIT;
    m.ino = ino;
    m.handle = 1;
    m.offset = offset;
    m.size = size;
    m.wait_ms = 30000;
    send_message(w, TYPE(WANT), id, &m.base);
}

static void reads_of_what_is_not_here_wait_and_are_answered_in_any_order(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint8_t *data = xmalloc(100000), root[HASH_SIZE];
    fill(data, 100000, 9);
    root_of(root, data, 100000);
    publish_elsewhere("movie", root, 100000);
    uint64_t ino = await_name(w, "movie");
    assert_int_equal(last.state, LOCAL__STATE__STATE_PUBLISHED);
    assert_int_equal(open_file(w, ino), 0);
    assert_false(last_complete);
    assert_int_equal(w->fd_count, 2);
    int fd = w->fds[0];
    w->fds[0] = -1;
    send_want(w, 101, ino, 0, 10);
    send_want(w, 102, ino, 50000, 10);
    send_want(w, 103, ino, 99999, 1000000);
    WAIT_UNTIL(demand_count == 3);
    put_blocks(data, 100000, 3, 1);
    local_demand_done(d.local, demands[1], 0);
    await(w, 102);
    assert_int_equal(w->frame.type, TYPE(DONE));
    uint8_t byte;
    assert_int_equal(file_pread_all(fd, &byte, 1, 50000), 0);
    assert_int_equal(byte, data[50000]);
    local_demand_done(d.local, demands[0], -EIO);
    await(w, 101);
    assert_int_equal(w->frame.type, TYPE(ERROR));
    Local__Unwant unwant = LOCAL__UNWANT__INIT;
    unwant.request = 103;
    send_message(w, TYPE(UNWANT), 0, &unwant.base);
    WAIT_UNTIL(undemanded == demands[2]);
    send_want(w, 104, ino, 50000, 10); /* here by now */
    await(w, 104);
    assert_int_equal(w->frame.type, TYPE(DONE));
    hold_lock();
    assert_int_equal(demand_count, 3);
    drop_lock();
    send_want(w, 105, ino, 0, 10);
    WAIT_UNTIL(demand_count == 4);
    wire_close(w); /* whoever dies takes its reads along */
    WAIT_UNTIL(undemanded == demands[3]);
    close(fd);
    free(data);
}

static void blocks_that_come_are_shown(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint8_t *data = xmalloc(100000), root[HASH_SIZE];
    fill(data, 100000, 10);
    root_of(root, data, 100000);
    publish_elsewhere("movie", root, 100000);
    uint64_t ino = await_name(w, "movie");
    put_blocks(data, 100000, 0, 2);
    assert_int_equal(getattr(w, ino), 0);
    assert_int_equal(last.local, 32768);
    assert_int_equal(last.state, LOCAL__STATE__STATE_STREAMING);
    unsigned before = w->invalidations;
    put_blocks(data, 100000, 2, 5);
    for (int i = 0; i < 10000 && w->invalidations == before; i++) {
        assert_int_equal(getattr(w, ino), 0);
        usleep(1000);
    }
    assert_int_equal(last.state, LOCAL__STATE__STATE_COMPLETE);
    free(data);
    wire_close(w);
}

static void what_is_written_survives_a_restart_of_the_daemon(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint8_t data[50000], root[HASH_SIZE], read[20000];
    int fd = -1, old_fd;
    fill(data, sizeof data, 3);
    uint64_t sealed = copy_in(w, 1, "sealed", 20000, 4);
    uint8_t sealed_root[HASH_SIZE];
    memcpy(sealed_root, last_root, HASH_SIZE);
    assert_int_equal(open_file(w, sealed), 0);
    old_fd = w->fds[0];
    w->fds[0] = -1;
    assert_int_equal(remove_name(w, TYPE(UNLINK), 1, "sealed"), 0); /* open, and without a name */
    assert_int_equal(create(w, 1, "working", &fd), 0);
    uint64_t ino = last.ino;
    assert_int_equal(file_pwrite_all(fd, data, 30000, 0), 0);
    wrote(w, ino, 0, 30000);
    assert_int_equal(getattr(w, ino), 0); /* it has heard so far */
    daemon_end();
    wire_close(w);
    assert_int_equal(file_pwrite_all(fd, data + 30000, 20000, 30000), 0);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    Local__Reattach m = LOCAL__REATTACH__INIT;
    Local__OpenNode nodes[3] = {LOCAL__OPEN_NODE__INIT, LOCAL__OPEN_NODE__INIT,
                                LOCAL__OPEN_NODE__INIT};
    Local__OpenNode *pointers[3] = {&nodes[0], &nodes[1], &nodes[2]};
    m.n_nodes = 2;
    m.nodes = pointers;
    nodes[0].ino = ino;
    nodes[0].number = numbers[ino];
    nodes[0].working = true;
    nodes[1].ino = sealed;
    nodes[1].root.data = sealed_root;
    nodes[1].root.len = HASH_SIZE;
    nodes[1].size = 20000;
    assert_int_equal(ask(w, TYPE(REATTACH), &m.base), 0);
    send_want(w, 50, sealed, 0, 20000);
    await(w, 50);
    assert_int_equal(w->frame.type, TYPE(DONE));
    assert_int_equal(file_pread_all(old_fd, read, sizeof read, 0), 0);
    assert_int_equal(seal(w, ino, sizeof data), 0);
    root_of(root, data, sizeof data);
    assert_memory_equal(last_root, root, HASH_SIZE);
    assert_int_equal(lookup(w, 1, "working"), 0);
    assert_int_equal(last.ino, ino);
    /* A number that was never given out, and a working file that is not there. */
    nodes[0].ino = 1u << 30;
    nodes[1].ino = 1u << 29;
    assert_int_equal(ask(w, TYPE(REATTACH), &m.base), EIO);
    close(fd);
    close(old_fd);
    wire_close(w);
}

static void a_marked_file_whose_writer_died_is_published_an_unmarked_one_is_not(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int marked = -1, lost = -1;
    assert_int_equal(create(w, 1, "marked", &marked), 0);
    uint64_t ino = last.ino;
    assert_int_equal(create(w, 1, "lost", &lost), 0);
    assert_int_equal(file_pwrite_all(marked, "safe", 4, 0), 0);
    Local__Node node = LOCAL__NODE__INIT;
    node.ino = ino;
    assert_int_equal(ask(w, TYPE(SYNC), &node.base), 0);
    daemon_end();
    wire_close(w);
    close(marked);
    close(lost);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 8);
    await_published(w, "marked");
    assert_int_equal(last.size, 4);
    assert_int_equal(lookup(w, 1, "lost"), ENOENT);
    wire_close(w);
}

static void a_marked_file_that_the_disk_does_not_give_is_waited_for(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    char *away = xasprintf("%s/away", home);
    assert_int_equal(create(w, 1, "marked", &fd), 0);
    uint64_t ino = last.ino;
    char *kept = xasprintf("%s/store/incoming/%llu.kept", home, (unsigned long long)last_number);
    assert_int_equal(file_pwrite_all(fd, "safe", 4, 0), 0);
    Local__Node node = LOCAL__NODE__INIT;
    node.ino = ino;
    assert_int_equal(ask(w, TYPE(SYNC), &node.base), 0);
    daemon_end();
    wire_close(w);
    close(fd);
    assert_int_equal(rename(kept, away), 0);
    assert_int_equal(symlink(away, kept), 0); /* which is never followed */
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 8);
    assert_int_equal(begin_write(w, ino, 0, &fd), EIO); /* nothing takes its place */
    assert_int_equal(lookup(w, 1, "marked"), 0);
    daemon_end();
    wire_close(w);
    assert_int_equal(rename(away, kept), 0);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 8);
    await_published(w, "marked");
    assert_int_equal(last.size, 4);
    free(kept);
    free(away);
    wire_close(w);
}

static int reattach(struct wire *w, uint64_t ino, uint64_t number)
{
    Local__Reattach m = LOCAL__REATTACH__INIT;
    Local__OpenNode node = LOCAL__OPEN_NODE__INIT;
    Local__OpenNode *pointers[1] = {&node};
    node.ino = ino;
    node.number = number;
    node.working = true;
    m.n_nodes = 1;
    m.nodes = pointers;
    return ask(w, TYPE(REATTACH), &m.base);
}

static struct wire *restart(struct wire *w, uint64_t mount)
{
    daemon_end();
    wire_close(w);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    return wire_open(LOCAL__PROGRAM__PROGRAM_FS, mount);
}

static void remove_incoming(uint64_t number)
{
    char *path = xasprintf("%s/store/incoming/%llu", home, (unsigned long long)number);
    assert_int_equal(unlink(path), 0);
    free(path);
}

static void
a_working_file_that_is_gone_is_not_called_sealed_for_what_had_its_name_before(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    uint64_t ino = copy_in(w, 1, "f", 30000, 3);
    assert_int_equal(begin_write(w, ino, 0, &fd), 0);
    uint64_t number = last_number;
    assert_true(number != 0);
    assert_int_equal(file_pwrite_all(fd, "new", 3, 0), 0);
    daemon_end();
    wire_close(w);
    remove_incoming(number);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    assert_int_equal(reattach(w, ino, number), EIO);
    assert_int_equal(seal_number(w, ino, 3, number), EIO);
    Local__Node node = LOCAL__NODE__INIT;
    node.ino = ino;
    node.number = number;
    assert_int_equal(ask(w, TYPE(SYNC), &node.base), EIO);
    release(w, ino, true);
    close(fd);
    /* It may be written again. */
    assert_int_equal(begin_write(w, ino, 0, &fd), 0);
    assert_true(last_number > number);
    assert_int_equal(seal_number(w, ino, 3, number), EIO); /* not this one */
    assert_int_equal(file_pwrite_all(fd, "again", 5, 0), 0);
    assert_int_equal(seal(w, ino, 5), 0);
    assert_int_equal(last.size, 5);
    close(fd);
    wire_close(w);
}

static void a_working_file_that_nobody_got_is_made_again(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    uint64_t ino = copy_in(w, 1, "f", 30000, 3);
    assert_int_equal(begin_write(w, ino, 30000, &fd), 0);
    close(fd); /* as if it had been on the way */
    uint64_t number = last_number;
    w = restart(w, 7);
    assert_int_equal(begin_write(w, ino, 30000, &fd), 0);
    assert_true(last_number > number);
    assert_int_equal(seal(w, ino, 20000), 0);
    assert_int_equal(last.size, 20000);
    close(fd);
    wire_close(w);
}

static void a_seal_whose_answer_was_lost_is_answered_after_a_restart(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int full = -1, empty = -1, same = -1;
    uint8_t data[20000];
    fill(data, sizeof data, 5);
    copy_in(w, 1, "before", sizeof data, 5);
    const char *const names[] = {"full", "empty", "same"};
    int *const fds[] = {&full, &empty, &same};
    uint64_t inos[3];
    for (int i = 0; i < 3; i++) { /* "same": the store has that content already */
        assert_int_equal(create(w, 1, names[i], fds[i]), 0);
        inos[i] = last.ino;
        if (i != 1)
            assert_int_equal(file_pwrite_all(*fds[i], data, sizeof data - (i == 0), 0), 0);
        assert_int_equal(seal(w, inos[i], i == 1 ? 0 : sizeof data - (i == 0)), 0);
    }
    w = restart(w, 7);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(reattach(w, inos[i], numbers[inos[i]]), 0);
        assert_int_equal(seal(w, inos[i], i == 1 ? 0 : sizeof data - (i == 0)), 0);
        assert_int_equal(lookup(w, 1, names[i]), 0);
        assert_int_equal(last.size, i == 1 ? 0 : sizeof data - (i == 0));
        assert_int_equal(seal_number(w, inos[i], 7, numbers[inos[i]] + 100), EIO);
        close(*fds[i]);
        release(w, inos[i], true);
        assert_int_equal(seal(w, inos[i], 7), EIO); /* who has released it knows */
    }
    wire_close(w);
}

static unsigned rows(const char *query)
{
    char *path = home_path(home, "state.db");
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, query, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int count = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    free(path);
    return (unsigned)count;
}

static void a_changed_name_is_on_disk_when_it_is_answered(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    hold_lock();
    tracker_answers = false;
    drop_lock();
    copy_in(w, 1, "f", 1, 3);
    assert_int_equal(rows("SELECT count(*) FROM entry WHERE name = 'f' AND parent != 0"), 1);
    assert_int_equal(make_dir(w, 1, "d"), 0);
    assert_int_equal(rows("SELECT count(*) FROM entry WHERE name = 'd' AND parent != 0"), 1);
    assert_int_equal(remove_name(w, TYPE(UNLINK), 1, "f"), 0);
    assert_int_equal(rows("SELECT count(*) FROM entry WHERE name = 'f' AND parent != 0"), 0);
    wire_close(w);
}

static void numbers_of_working_files_are_never_given_out_twice(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1, other = -1;
    assert_int_equal(create(w, 1, "a", &fd), 0);
    uint64_t number = last_number;
    daemon_end();
    wire_close(w);
    close(fd);
    remove_incoming(number);
    daemon_begin();
    say_state(SESSION_CONNECTED);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 8);
    assert_int_equal(create(w, 1, "b", &other), 0);
    assert_true(last_number > number);
    uint64_t ino = last.ino;
    w = restart(w, 8); /* its row is still there */
    assert_int_equal(reattach(w, ino, numbers[ino]), 0);
    assert_int_equal(seal(w, ino, 0), 0);
    close(other);
    wire_close(w);
}

static void a_file_that_is_removed_while_written_goes_on_for_its_writer(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    assert_int_equal(create(w, 1, "tmp", &fd), 0);
    uint64_t ino = last.ino;
    assert_int_equal(remove_name(w, TYPE(UNLINK), 1, "tmp"), 0);
    assert_int_equal(getattr(w, ino), 0);
    assert_int_equal(last.nlink, 0);
    assert_int_equal(file_pwrite_all(fd, "x", 1, 0), 0);
    assert_int_equal(open_file(w, ino), 0);
    assert_true(last_working);
    assert_int_equal(seal(w, ino, 1), ENOENT);
    release(w, ino, true);
    assert_int_equal(getattr(w, ino), ENOENT);
    hold_lock();
    assert_int_equal(tracker.count, 0);
    drop_lock();
    close(fd);
    wire_close(w);
}

static void a_file_is_renamed_while_it_is_written(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    int fd = -1;
    assert_int_equal(create(w, 1, "before", &fd), 0);
    uint64_t ino = last.ino;
    Local__Rename rename = LOCAL__RENAME__INIT;
    rename.parent = rename.to_parent = 1;
    rename.name = (char *)(uintptr_t) "before";
    rename.to_name = (char *)(uintptr_t) "after";
    assert_int_equal(ask(w, TYPE(RENAME), &rename.base), 0);
    assert_int_equal(seal(w, ino, 0), 0);
    assert_int_equal(lookup(w, 1, "after"), 0);
    await_complete(w, ino);
    hold_lock();
    bool published = ref_find(&tracker, 1, "after") != NULL;
    drop_lock();
    assert_true(published);
    close(fd);
    wire_close(w);
}

static void changing_a_file_that_is_elsewhere_fetches_it_first(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    uint8_t *data = xmalloc(100000), root[HASH_SIZE], *read = xmalloc(100000);
    fill(data, 100000, 11);
    root_of(root, data, 100000);
    publish_elsewhere("book", root, 100000);
    uint64_t ino = await_name(w, "book");
    Local__WriteBegin m = LOCAL__WRITE_BEGIN__INIT;
    m.ino = ino;
    m.size = 100000;
    send_message(w, TYPE(WRITE_BEGIN), 60, &m.base);
    WAIT_UNTIL(get_count == 1);
    put_blocks(data, 100000, 0, 7);
    local_content_complete(d.local, root, 0);
    await(w, 60);
    assert_int_equal(take_opened(w, 0), 0);
    assert_true(last_working);
    assert_int_equal(file_pread_all(w->fds[0], read, 100000, 0), 0);
    assert_memory_equal(read, data, 100000);
    release(w, ino, true);
    assert_int_equal(lookup(w, 1, "book"), 0);
    free(data);
    free(read);
    wire_close(w);
}

static void get_tells_how_far_it_is_and_ends_when_all_is_here(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    uint8_t *data = xmalloc(100000), root[HASH_SIZE];
    fill(data, 100000, 12);
    root_of(root, data, 100000);
    publish_elsewhere("movie", root, 100000);
    await_name(w, "movie");
    char *paths[] = {(char *)(uintptr_t) "/nothing", (char *)(uintptr_t) "/"};
    Local__Get get = LOCAL__GET__INIT;
    get.n_paths = 1;
    get.paths = paths;
    assert_int_equal(ask(w, TYPE(GET), &get.base), ENOENT);
    assert_string_equal(w->payload, "no such file in the swarm: /nothing");
    get.paths = paths + 1;
    get.pin = true;
    send_message(w, TYPE(GET), 70, &get.base);
    WAIT_UNTIL(get_count == 1);
    for (int i = 0; i < 3; i++) {
        do {
            read_frame(w);
            take_push(w);
        } while (w->frame.type != TYPE(PROGRESS));
        Local__Progress *p = local__progress__unpack(NULL, w->frame.message_size, w->message);
        assert_int_equal(p->size, 100000);
        assert_int_equal(p->files, 1);
        local__progress__free_unpacked(p, NULL);
    }
    put_blocks(data, 100000, 0, 7);
    local_content_complete(d.local, root, 0);
    await(w, 70);
    assert_int_equal(w->frame.type, TYPE(DONE));
    assert_int_equal(lookup(w, 1, "movie"), 0);
    assert_true(last.pinned);
    Local__Paths none = LOCAL__PATHS__INIT;
    assert_int_equal(ask(w, TYPE(UNPIN), &none.base), 0);
    assert_int_equal(lookup(w, 1, "movie"), 0);
    assert_false(last.pinned);
    /* Interrupted: what was asked for stops. */
    root[0] ^= 1;
    publish_elsewhere("other", root, 100000);
    await_name(w, "other");
    get.pin = false;
    send_message(w, TYPE(GET), 71, &get.base);
    WAIT_UNTIL(get_count == 2);
    wire_close(w);
    WAIT_UNTIL(unget_count == 1);
    /* Removed meanwhile, or closed to this account: it will not come. */
    struct wire *mount = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    send_message(w, TYPE(GET), 72, &get.base);
    WAIT_UNTIL(get_count == 3);
    assert_int_equal(remove_name(mount, TYPE(UNLINK), 1, "other"), 0);
    await(w, 72);
    assert_int_equal(w->frame.type, TYPE(ERROR));
    WAIT_UNTIL(unget_count == 2);
    wire_close(mount);
    wire_close(w);
    free(data);
}

static void pins_are_taken_up_again_after_a_restart(void **state)
{
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    uint8_t root[HASH_SIZE] = {5, 5};
    publish_elsewhere("movie", root, 100000);
    await_name(w, "movie");
    char *paths[] = {(char *)(uintptr_t) "/movie"};
    Local__Get get = LOCAL__GET__INIT;
    get.n_paths = 1;
    get.paths = paths;
    get.pin = get.no_wait = true;
    assert_int_equal(ask(w, TYPE(GET), &get.base), 0);
    WAIT_UNTIL(get_count == 1);
    wire_close(w);
    daemon_end();
    daemon_begin();
    WAIT_UNTIL(get_count == 2);
    root[0] = 6; /* a new version of a pinned file is fetched as well */
    say_state(SESSION_CONNECTED);
    hold_lock();
    struct ref_entry *e = ref_find(&tracker, 1, "movie");
    uint64_t seq = tracker.seq;
    memcpy(e->root, root, HASH_SIZE);
    ref_changed(&tracker, e);
    push_changes(seq);
    drop_lock();
    WAIT_UNTIL(get_count == 3);
}

static void status_peers_health_and_accounts_are_put_together(void **state)
{
    struct wire *fs = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7),
                *w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    copy_in(fs, 1, "f", 1000, 1);
    char *paths[] = {(char *)(uintptr_t) "/mnt/swarm/f"}; /* as seen under the mount */
    Local__StatusRequest status = LOCAL__STATUS_REQUEST__INIT;
    status.n_paths = 1;
    status.paths = paths;
    assert_int_equal(ask(w, TYPE(STATUS), &status.base), 0);
    Local__Status *s = local__status__unpack(NULL, w->frame.message_size, w->message);
    assert_non_null(s);
    assert_string_equal(s->account, "ann");
    assert_string_equal(s->swarm, "lab");
    assert_true(s->connected);
    assert_int_equal(s->entries, 1);
    assert_int_equal(s->n_files, 1);
    assert_string_equal(s->files[0]->path, "/f");
    assert_int_equal(s->files[0]->have, 1000);
    assert_int_equal(s->n_mounts, 1);
    assert_string_equal(s->mounts[0]->mountpoint, "/mnt/swarm");
    assert_int_equal(s->mounts[0]->pid, getpid());
    local__status__free_unpacked(s, NULL);
    Local__Paths all = LOCAL__PATHS__INIT;
    assert_int_equal(ask(w, TYPE(PEERS), &all.base), 0);
    assert_int_equal(ask(w, TYPE(HEALTH), &all.base), 0);
    Local__Health *health = local__health__unpack(NULL, w->frame.message_size, w->message);
    assert_int_equal(health->n_files, 1);
    assert_non_null(
        strstr(health->files[0]->trouble, "the tracker has not heard ")); /* all is here */
    assert_false(health->more);
    local__health__free_unpacked(health, NULL);
    char root_path[] = "/", *root_paths[] = {root_path};
    Local__StatusRequest below = LOCAL__STATUS_REQUEST__INIT;
    below.paths = root_paths;
    below.n_paths = 1;
    assert_int_equal(ask(w, TYPE(STATUS), &below.base), 0);
    s = local__status__unpack(NULL, w->frame.message_size, w->message);
    assert_int_equal(s->n_files, 1);
    assert_int_equal(s->files[0]->files, 1);
    assert_int_equal(s->files[0]->attr->size, 1000);
    assert_int_equal(s->files[0]->have, 1000);
    local__status__free_unpacked(s, NULL);
    Local__Whoami who = LOCAL__WHOAMI__INIT;
    assert_int_equal(ask(w, TYPE(WHOAMI), &who.base), 0);
    Local__Password password = LOCAL__PASSWORD__INIT;
    assert_int_equal(ask(w, TYPE(PASSWORD), &password.base), EACCES);
    assert_string_equal(w->payload, "the password is wrong");
    Local__Invite invite = LOCAL__INVITE__INIT;
    assert_int_equal(ask(w, TYPE(INVITE), &invite.base), 0);
    Local__Ls ls = LOCAL__LS__INIT;
    ls.path = (char *)(uintptr_t) "/";
    assert_int_equal(ask(w, TYPE(LS), &ls.base), 0);
    ls.path = (char *)(uintptr_t) "/g";
    assert_int_equal(ask(w, TYPE(LS), &ls.base), ENOENT);
    wire_close(w);
    wire_close(fs);
}

#define URL_A "p2p://t:7700/?ca=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define URL_B "p2p://t:7700/?ca=bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static int login(struct wire *w, const char *url)
{
    Local__Login m = LOCAL__LOGIN__INIT;
    m.url = (char *)(uintptr_t)url;
    m.name = (char *)(uintptr_t) "ann";
    m.password.data = (uint8_t *)(uintptr_t) "secret12";
    m.password.len = 8;
    return ask(w, TYPE(LOGIN), &m.base);
}

static void another_swarm_is_entered_only_when_nothing_is_left_for_the_old_one(void **state)
{
    struct wire *fs = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7),
                *w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    say_state(SESSION_LOGGED_OUT);
    assert_int_equal(login(w, "http://x"), EINVAL);
    assert_int_equal(login(w, URL_A), 0);
    hold_lock();
    assert_string_equal(asked_url, URL_A);
    assert_string_equal(asked_password, "secret12");
    drop_lock();
    say_state(SESSION_AWAY);
    copy_in(fs, 1, "pending", 10, 1);
    assert_int_equal(login(w, URL_B), EBUSY);
    say_state(SESSION_LOGGED_OUT);
    for (int i = 0; i < 1000 && lookup(fs, 1, "pending") == 0; i++)
        usleep(1000);
    assert_int_equal(lookup(fs, 1, "pending"), ENOENT); /* nobody's tree is empty */
    assert_int_equal(make_dir(fs, 1, "d"), EACCES);
    assert_int_equal(login(w, URL_B), EBUSY);
    assert_non_null(strstr(w->payload, "not published yet"));
    say_state(SESSION_CONNECTED);
    WAIT_UNTIL(tracker.count == 1);
    say_state(SESSION_LOGGED_OUT);
    sqlite3 *db;
    char *path = xasprintf("%s/state.db", home);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(login(w, URL_B), EIO);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    free(path);
    assert_int_equal(login(w, URL_B), 0);
    say_state(SESSION_AWAY);
    for (int i = 0; i < 100; i++)
        assert_int_equal(lookup(fs, 1, "pending"), ENOENT);
    wire_close(w);
    wire_close(fs);
}

static void who_speaks_nonsense_is_cut_off_and_nobody_else_notices(void **state)
{
    struct wire *good = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7), *bad = wire_raw();
    char byte;
    Local__Node node = LOCAL__NODE__INIT;
    send_message(bad, TYPE(GETATTR), 1, &node.base); /* without Hello */
    assert_int_equal(recv(bad->fd, &byte, 1, 0), 0);
    wire_close(bad);
    bad = wire_raw();
    assert_int_equal(send(bad->fd, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    assert_int_equal(recv(bad->fd, &byte, 1, 0), 0);
    wire_close(bad);
    bad = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    Local__Lookup unlink = LOCAL__LOOKUP__INIT;
    send_message(bad, TYPE(UNLINK), 5, &unlink.base); /* not for p2pctl */
    assert_int_equal(recv(bad->fd, &byte, 1, 0), 0);
    wire_close(bad);
    bad = wire_raw(); /* the same mount twice */
    Local__Hello hello = LOCAL__HELLO__INIT;
    hello.version = 1;
    hello.program = LOCAL__PROGRAM__PROGRAM_FS;
    hello.mount = 7;
    send_message(bad, TYPE(HELLO), 1, &hello.base);
    assert_int_equal(recv(bad->fd, &byte, 1, 0), 0);
    wire_close(bad);
    /* Requests that make no sense. */
    assert_int_equal(open_file(good, 1), EISDIR);
    assert_int_equal(open_file(good, 4711), ESTALE);
    assert_int_equal(seal(good, 4711, 1), ENOENT);
    send_want(good, 90, 4711, 0, 1);
    await(good, 90);
    assert_int_equal(good->frame.type, TYPE(ERROR));
    wrote(good, 4711, UINT64_MAX, UINT64_MAX);
    release(good, 4711, true);
    assert_int_equal(getattr(good, 1), 0);
    wire_close(good);
}

static bool was_stopped;
static void on_stop(void *arg)
{
    hold_lock();
    was_stopped = true;
    drop_lock();
}

static void stop_is_answered_and_mounts_are_told(void **state)
{
    struct wire *fs = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7), *w;
    daemon_end();
    while (!fs->goodbye) {
        read_frame(fs);
        take_push(fs);
    }
    wire_close(fs);
    was_stopped = false;
    const char *fault;
    daemon_begin();
    daemon_end();
    /* on_stop is set before start */
    char *store_path = home_path(home, "store");
    d.home = home;
    d.store = store_open(store_path, &fault);
    free(store_path);
    d.bans = bans_new();
    d.workers = workers_new("worker", 1);
    d.local = local_new(&d, &fault);
    local_on_stop(d.local, on_stop, NULL);
    local_start(d.local);
    w = wire_open(LOCAL__PROGRAM__PROGRAM_CTL, 0);
    Local__Stop stop = LOCAL__STOP__INIT;
    assert_int_equal(ask(w, TYPE(STOP), &stop.base), 0);
    WAIT_UNTIL(was_stopped);
    wire_close(w);
}

static void a_directory_of_61189_entries_is_listed_quickly(void **state)
{
    enum { COUNT = 61189, PAGE = 500 };
    struct wire *w = wire_open(LOCAL__PROGRAM__PROGRAM_FS, 7);
    for (unsigned i = 0; i < COUNT; i += PAGE) {
        Tracker__Changes *changes = ref_changes_new(&tracker);
        for (unsigned k = i; k < i + PAGE && k < COUNT; k++) {
            struct ref_entry e = {.id = 100000 + k,
                                  .seq = 100 + k,
                                  .parent = 1,
                                  .mode = 0644,
                                  .size = 1,
                                  .kind = TRACKER__KIND__KIND_FILE};
            memcpy(e.root, &k, sizeof k);
            e.root[31] = 1;
            snprintf(e.owner, sizeof e.owner, "bob");
            snprintf(e.name, sizeof e.name, "some file's name %u.jpg", k);
            ref_changes_add(changes, ref_message(&e));
        }
        changes->live = true;
        changes->seq = 100 + i;
        local_changes(d.local, changes);
    }
    char name[64];
    snprintf(name, sizeof name, "some file's name %u.jpg", COUNT - 1);
    await_name(w, name);
    int64_t before = clock_now(), slowest = 0;
    unsigned seen = 0, pages = 0;
    Local__Readdir list = LOCAL__READDIR__INIT;
    list.ino = 1;
    list.count = 128;
    for (bool end = false; !end; pages++) {
        int64_t start = clock_now();
        assert_int_equal(ask(w, TYPE(READDIR), &list.base), 0);
        if (clock_now() - start > slowest)
            slowest = clock_now() - start;
        Local__Listing *listing = local__listing__unpack(NULL, w->frame.message_size, w->message);
        seen += (unsigned)listing->n_entries;
        end = listing->end;
        if (listing->n_entries > 0)
            list.cookie = listing->cookies[listing->n_entries - 1];
        local__listing__free_unpacked(listing, NULL);
    }
    assert_int_equal(seen, COUNT);
    printf("61189 entries in %u pages: %ld ms, the slowest page %ld us\n", pages,
           (long)((clock_now() - before) / NS_PER_MS), (long)(slowest / NS_PER_US));
    wire_close(w);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_file_that_is_copied_in_is_published_and_read_back),
        TEST(names_are_made_moved_listed_and_removed),
        TEST(extended_attributes_tell_what_is_known),
        TEST(without_a_tracker_files_are_kept_and_published_later),
        TEST(close_does_not_wait_for_the_tracker),
        TEST(what_the_tracker_has_no_room_for_stays_here_and_pending),
        TEST(a_new_version_replaces_the_old_one_and_old_readers_keep_theirs),
        TEST(a_large_file_is_hashed_behind_its_writer),
        TEST(reads_of_what_is_not_here_wait_and_are_answered_in_any_order),
        TEST(blocks_that_come_are_shown),
        TEST(what_is_written_survives_a_restart_of_the_daemon),
        TEST(a_marked_file_whose_writer_died_is_published_an_unmarked_one_is_not),
        TEST(a_marked_file_that_the_disk_does_not_give_is_waited_for),
        TEST(a_working_file_that_is_gone_is_not_called_sealed_for_what_had_its_name_before),
        TEST(a_working_file_that_nobody_got_is_made_again),
        TEST(a_seal_whose_answer_was_lost_is_answered_after_a_restart),
        TEST(a_changed_name_is_on_disk_when_it_is_answered),
        TEST(numbers_of_working_files_are_never_given_out_twice),
        TEST(a_file_that_is_removed_while_written_goes_on_for_its_writer),
        TEST(a_file_is_renamed_while_it_is_written),
        TEST(changing_a_file_that_is_elsewhere_fetches_it_first),
        TEST(get_tells_how_far_it_is_and_ends_when_all_is_here),
        TEST(pins_are_taken_up_again_after_a_restart),
        TEST(status_peers_health_and_accounts_are_put_together),
        TEST(another_swarm_is_entered_only_when_nothing_is_left_for_the_old_one),
        TEST(who_speaks_nonsense_is_cut_off_and_nobody_else_notices),
        TEST(stop_is_answered_and_mounts_are_told),
        TEST(a_directory_of_61189_entries_is_listed_quickly),
    };
    log_init("daemon_local", LOG_LEVEL_ERROR, false);
    unsetenv("XDG_RUNTIME_DIR");
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(asked_url);
    free(asked_password);
    return failed;
}
