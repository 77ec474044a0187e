/* The client's thread: the table of requests, deadlines, interrupts, and the connection to p2pd.
 *
 * Owns the socket and every request from request_submit to its answer; leaves the states of files to file.c (which runs
 * on this thread, too), what an answer means to each request's `done`, and the kernel's caches to invalidate.c.
 *
 *             connect            Welcome             every Reattach answered
 *   AWAY ───────────────▶ GREETING ───────▶ ATTACHING ───────▶ LIVE
 *     ▲───────────────────────┴── closed ──────┴────────────────┘
 *
 * The mount outlives the daemon. While it is away requests stay in the table and reads of present blocks need no
 * daemon at all; p2pd is started when it is not there (unless it said GOODBYE: somebody stopped it on purpose). On the
 * way to LIVE it is told what is open here, then gets every request again. For those that may have been carried out
 * before the crash, `again` is set and their `done` reads EEXIST and ENOENT accordingly.
 *
 * Two lists hold the table in the order of deadlines: all in one list have the same patience, so appending keeps the
 * order. Who asked is looked at when the kernel sends INTERRUPT and, twice a second, for all that wait longer
 * (reader.c): a reader that is gone leaves nothing behind. */
#include "fs/client.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "base/stream.h"
#include "base/thread.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/reader.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/message.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENT_MAGIC  0x636c6e74u
#define BUCKETS       4096

#define RETRY_NS      (50 * NS_PER_MS)  /* between attempts to connect */
#define RETRY_SLOW_NS (250 * NS_PER_MS) /* when p2pd was stopped on purpose */
#define RESTART_NS    (250 * NS_PER_MS) /* time for others (systemd) to start it again */
#define START_MIN_NS  NS_PER_S          /* between our own attempts to start it, doubling */
#define START_MAX_NS  (30 * NS_PER_S)
#define GRACE_NS                                                                                   \
    (500 * NS_PER_MS) /* the daemon is to answer a Want in time; we do it that much later */
#define SWEEP_NS     (500 * NS_PER_MS) /* between looks at who waits */
#define SWEEP_AGE_NS (200 * NS_PER_MS) /* younger requests are not looked at */
#define SWEEP_MAX    512               /* threads looked at in one sweep; each costs 40 us */
#define STOP_NS      (2 * NS_PER_S)    /* for sealing that is under way at unmount */
#define PAYLOAD_MAX  (64u << 10) /* the value of an extended attribute: the kernel's own limit */
#define ATTACH_ID    0xffff0000u /* ids from here on are Hello's and Reattach's */

enum client_state { CLIENT_AWAY, CLIENT_GREETING, CLIENT_ATTACHING, CLIENT_LIVE };

/* A p2pd --detach under way on a thread of its own. Whoever comes last frees it. */
struct starter {
    char *home;
    int result;
    char why[256];
    unsigned owners; /* atomic: the thread and the client */
    bool ended;      /* atomic */
};

struct client {
    unsigned magic;
    struct fs *fs;
    struct loop *loop;
    char *socket;
    uint64_t mount; /* our name over reconnects */

    enum client_state state;
    struct channel *channel;
    unsigned attaching; /* Reattach messages without answer */
    bool greeted;       /* there was a daemon before */
    bool goodbye;
    int64_t away_since, start_next, start_pause;
    struct starter *starter;
    uint8_t payload[PAYLOAD_MAX];

    struct request *table[BUCKETS];
    struct request_list lists[2]; /* by enum request_patience */
    size_t count;
    uint32_t next_id;
    bool stopping; /* everything is refused */
    bool ending;   /* the loop ends once the table is empty */
    struct timer *connect, *deadline, *sweep, *stop;
};

static void try_later(struct client *client, int64_t delay);

/* --- the table ------------------------------------------------------------------------------------------- */

struct request *client_find(struct client *client, uint32_t id)
{
    struct request *r = client->table[id % BUCKETS];

    while (r != NULL && r->id != id)
        r = r->next_by_id;
    return r;
}

static uint32_t new_id(struct client *client)
{
    do {
        if (++client->next_id >= ATTACH_ID)
            client->next_id = 1;
    } while (client_find(client, client->next_id) != NULL);
    return client->next_id;
}

static int64_t patience(const struct client *client, const struct request *r)
{
    if (r->patience == PATIENCE_SLOW && client->state != CLIENT_AWAY)
        return client->fs->slow;
    return client->fs->wait + GRACE_NS;
}

static void set_deadline(struct request *r, int64_t now, int64_t wait)
{
    r->deadline = wait > INT64_MAX - now ? INT64_MAX : now + wait;
}

static void arm_deadline(struct client *client)
{
    int64_t first = INT64_MAX;

    for (unsigned i = 0; i < 2; i++) {
        const struct request *r = TAILQ_FIRST(&client->lists[i]);

        if (r != NULL && r->deadline < first)
            first = r->deadline;
    }
    if (first == INT64_MAX)
        timer_cancel(client->deadline);
    else
        timer_set(client->deadline, first - clock_now());
}

struct interrupt_mail {
    struct mail mail;
    uint32_t id;
};

static void let_go(struct client *client, struct request *r, int error)
{
    if (r->keep && r->sent) {
        if (r->req != NULL)
            fuse_reply_err(r->req, error);
        r->req = NULL;
        r->tid = 0;
        return;
    }
    if (r->type == LOCAL__LOCAL_TYPE__LOCAL_WANT && r->sent && client->state == CLIENT_LIVE) {
        Local__Unwant unwant = LOCAL__UNWANT__INIT;

        unwant.request = r->id;
        channel_send(client->channel, CHANNEL_URGENT, LOCAL__LOCAL_TYPE__LOCAL_UNWANT, 0, 0,
                     &unwant.base, NULL, 0);
    }
    request_finish(r, error);
}

void client_let_go(struct client *client, struct request *r)
{
    let_go(client, r, EINTR);
}

/* What changes a file is not left half done for a signal that its program survives. */
static bool is_let_go(const struct request *r)
{
    enum reader_state state = reader_state(r->tid);

    return state == READER_GONE || (state == READER_CALLED && r->turn < TURN_SEAL);
}

static void deliver_interrupt(struct mail *mail, void *owner)
{
    struct interrupt_mail *interrupt = (struct interrupt_mail *)mail;
    struct client *client = owner;
    struct request *r = client_find(client, interrupt->id);

    free(interrupt);
    if (r != NULL && r->req != NULL && (r->tid == 0 || is_let_go(r)))
        let_go(client, r, EINTR);
}

/* Any thread, the request's lock in libfuse held: hence only mail. The id, never a pointer: the request may be answered
 * at this very moment. */
static void on_interrupt(fuse_req_t req, void *data)
{
    struct fs *fs = fuse_req_userdata(req);
    struct interrupt_mail *interrupt = xcalloc(1, sizeof(*interrupt));

    interrupt->mail.deliver = deliver_interrupt;
    interrupt->id = (uint32_t)(uintptr_t)data;
    loop_post(fs->client->loop, &interrupt->mail);
}

void client_add(struct client *client, struct request *r)
{
    struct request **bucket;

    CHECK_OBJECT(client, CLIENT_MAGIC);
    CHECK(loop_is_here(client->loop) && !r->in_table);
    r->id = new_id(client);
    bucket = &client->table[r->id % BUCKETS];
    r->next_by_id = *bucket;
    *bucket = r;
    r->in_table = true;
    client->count++;
    r->since = clock_now();
    set_deadline(r, r->since, patience(client, r));
    r->by_deadline = &client->lists[r->patience];
    TAILQ_INSERT_TAIL(r->by_deadline, r, deadline_link);
    if (TAILQ_FIRST(r->by_deadline) == r)
        arm_deadline(client);
    if (r->req != NULL) {
        if (!timer_pending(client->sweep))
            timer_set(client->sweep, SWEEP_NS);
        fuse_req_interrupt_func(r->req, on_interrupt, (void *)(uintptr_t)r->id);
    }
}

static void unlist(struct request *r)
{
    if (r->by_deadline != NULL)
        TAILQ_REMOVE(r->by_deadline, r, deadline_link);
    r->by_deadline = NULL;
}

void client_remove(struct client *client, struct request *r)
{
    struct request **at = &client->table[r->id % BUCKETS];

    CHECK(r->in_table);
    while (*at != r) {
        CHECK(*at != NULL);
        at = &(*at)->next_by_id;
    }
    *at = r->next_by_id;
    r->in_table = false;
    client->count--;
    unlist(r);
    if (client->ending && client->count == 0)
        timer_set(client->stop, 0);
}

size_t client_waiting(const struct client *client)
{
    return client->count;
}

bool client_stopping(const struct client *client)
{
    return client->stopping;
}

static void on_deadline(void *arg)
{
    struct client *client = arg;
    int64_t now = clock_now();

    for (unsigned i = 0; i < 2; i++) {
        struct request *r;

        while ((r = TAILQ_FIRST(&client->lists[i])) != NULL && r->deadline <= now) {
            if (r->keep && r->sent)
                unlist(r);
            let_go(client, r, EIO);
        }
    }
    arm_deadline(client);
}

/* Lets go what waits for threads that are gone. Sorted by age, so the first young one ends it. */
static void on_sweep(void *arg)
{
    struct client *client = arg;
    struct request *r, *next;
    int64_t old = clock_now() - SWEEP_AGE_NS;
    unsigned looked = 0;
    pid_t known = 0; /* readahead: a thread's requests stand side by side */
    bool any = false;

    for (unsigned i = 0; i < 2 && looked < SWEEP_MAX; i++) {
        for (r = TAILQ_FIRST(&client->lists[i]); r != NULL && r->since <= old && looked < SWEEP_MAX;
             r = next) {
            next = TAILQ_NEXT(r, deadline_link);
            if (r->req == NULL || r->tid == 0 || r->tid == known)
                continue;
            looked++;
            if (is_let_go(r)) {
                let_go(client, r, EINTR);
                next = TAILQ_FIRST(&client->lists[i]); /* others may have ended with it */
            } else {
                known = r->tid;
            }
        }
        any = any || !TAILQ_EMPTY(&client->lists[i]);
    }
    if (any)
        timer_set(client->sweep, SWEEP_NS);
}

/* --- sending --------------------------------------------------------------------------------------------- */

void client_transmit(struct client *client, struct request *r)
{
    if (client->state != CLIENT_LIVE)
        return;
    if (r->type == LOCAL__LOCAL_TYPE__LOCAL_WANT) {
        int64_t left = r->deadline - GRACE_NS - clock_now();

        r->message.want.wait_ms = left > NS_PER_MS ? (uint32_t)(left / NS_PER_MS) : 1;
    } else if (r->type == LOCAL__LOCAL_TYPE__LOCAL_CREATE && r->again) {
        r->message.make.exclusive = false; /* it may be there: ours */
    }
    r->sent = true;
    channel_send(client->channel, CHANNEL_URGENT, r->type, 0, r->id, &r->message.head, NULL, 0);
}

void client_notice_now(struct client *client, uint16_t type, uint64_t ino, uint64_t handle,
                       uint64_t offset, uint64_t size, bool last)
{
    union {
        ProtobufCMessage head;
        Local__Wrote wrote;
        Local__Reading reading;
        Local__Release release;
    } message;

    if (client->state != CLIENT_LIVE)
        return;
    switch (type) {
    case LOCAL__LOCAL_TYPE__LOCAL_WROTE:
        message.wrote = (Local__Wrote)LOCAL__WROTE__INIT;
        message.wrote.ino = ino;
        message.wrote.offset = offset;
        message.wrote.size = size;
        break;
    case LOCAL__LOCAL_TYPE__LOCAL_READING:
        message.reading = (Local__Reading)LOCAL__READING__INIT;
        message.reading.ino = ino;
        message.reading.handle = handle;
        message.reading.offset = offset;
        message.reading.size = size;
        break;
    default:
        CHECK(type == LOCAL__LOCAL_TYPE__LOCAL_RELEASE);
        message.release = (Local__Release)LOCAL__RELEASE__INIT;
        message.release.ino = ino;
        message.release.handle = handle;
        message.release.last = last;
        break;
    }
    channel_send(client->channel, CHANNEL_URGENT, type, 0, 0, &message.head, NULL, 0);
}

struct notice_mail {
    struct mail mail;
    uint16_t type;
    uint64_t ino, handle, offset, size;
    bool last;
};

static void deliver_notice(struct mail *mail, void *owner)
{
    struct notice_mail *n = (struct notice_mail *)mail;

    client_notice_now(owner, n->type, n->ino, n->handle, n->offset, n->size, n->last);
    free(n);
}

void client_notice(struct client *client, uint16_t type, uint64_t ino, uint64_t handle,
                   uint64_t offset, uint64_t size, bool last)
{
    struct notice_mail *n = xcalloc(1, sizeof(*n));

    *n = (struct notice_mail){{NULL, deliver_notice}, type, ino, handle, offset, size, last};
    loop_post(client->loop, &n->mail);
}

/* --- receiving ------------------------------------------------------------------------------------------- */

struct expectation {
    uint16_t request, answer;
    const ProtobufCMessageDescriptor *kind;
};

/* Local.proto's "request -> answer"; what is not here is answered by Done. */
static const struct expectation expectations[] = {
    {LOCAL__LOCAL_TYPE__LOCAL_LOOKUP, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_GETATTR, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_SETATTR, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_MKDIR, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_SYMLINK, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_SEAL, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_READDIR, LOCAL__LOCAL_TYPE__LOCAL_LISTING,
     NULL}, /* unpacked by who keeps it */
    {LOCAL__LOCAL_TYPE__LOCAL_READLINK, LOCAL__LOCAL_TYPE__LOCAL_TEXT, &local__text__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_GETXATTR, LOCAL__LOCAL_TYPE__LOCAL_TEXT, &local__text__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_STATFS, LOCAL__LOCAL_TYPE__LOCAL_SPACE, &local__space__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_OPEN, LOCAL__LOCAL_TYPE__LOCAL_OPENED, &local__opened__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_CREATE, LOCAL__LOCAL_TYPE__LOCAL_OPENED, &local__opened__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_WRITE_BEGIN, LOCAL__LOCAL_TYPE__LOCAL_OPENED,
     &local__opened__descriptor},
    {0, LOCAL__LOCAL_TYPE__LOCAL_DONE, &local__done__descriptor},
};

static const struct expectation *expectation_of(uint16_t request)
{
    const struct expectation *e = expectations;

    while (e->request != 0 && e->request != request)
        e++;
    return e;
}

static const char *take_answer(struct client *client, const struct frame *frame,
                               const uint8_t *message, void *payload)
{
    struct request *r = client_find(client, frame->id);
    struct message_arena arena;
    struct answer answer = {.packed = message, .packed_size = frame->message_size, .fds = {-1, -1}};
    const char *fault = NULL;
    const struct expectation *expected;

    if (r == NULL || !r->sent)
        return NULL; /* nobody waits for it any more; its descriptors are closed */
    expected = expectation_of(r->type);
    if (frame->type == LOCAL__LOCAL_TYPE__LOCAL_ERROR) {
        const Local__Error *error =
            message_unpack(&arena, &local__error__descriptor, message, frame->message_size);

        answer.error = error == NULL                                 ? EIO
                       : error->number >= 1 && error->number <= 4095 ? error->number
                                                                     : EIO;
        fault = error == NULL ? "a malformed Error" : NULL;
    } else if (frame->type != expected->answer) {
        return "an answer of the wrong kind";
    } else if (expected->kind == NULL) {
        message_unpack(&arena, &local__done__descriptor, NULL, 0);
    } else {
        answer.message = message_unpack(&arena, expected->kind, message, frame->message_size);
        if (answer.message == NULL)
            fault = "a malformed answer";
    }
    if (fault == NULL) {
        answer.payload = payload;
        answer.payload_size = frame->payload_size;
        for (unsigned i = 0; i < 2 && i < frame->fds; i++)
            answer.fds[i] = channel_take_fd(client->channel);
        request_answer(r, &answer);
        for (unsigned i = 0; i < 2; i++)
            if (answer.fds[i] >= 0)
                close(answer.fds[i]);
    }
    message_done(&arena);
    return fault;
}

static const char *take_invalidate(struct client *client, const struct frame *frame,
                                   const uint8_t *message)
{
    struct message_arena arena;
    const Local__Invalidate *what =
        message_unpack(&arena, &local__invalidate__descriptor, message, frame->message_size);

    if (what != NULL) {
        fs_changed(client->fs);
        for (size_t i = 0; i < what->n_what; i++) {
            const Local__Invalid *one = what->what[i];

            if (*one->name == '\0')
                invalidate_inode(client->fs->invalidator, one->ino);
            else
                invalidate_entry(client->fs->invalidator, one->parent, one->name);
        }
    }
    message_done(&arena);
    return what == NULL ? "a malformed Invalidate" : NULL;
}

/* All is said: whatever waits goes to the daemon (again). */
static void go_live(struct client *client)
{
    int64_t now = clock_now();

    client->state = CLIENT_LIVE;
    timer_cancel(client->connect);
    for (unsigned i = 0; i < 2; i++) {
        struct request *r, *next;

        for (r = TAILQ_FIRST(&client->lists[i]); r != NULL; r = next) {
            next = TAILQ_NEXT(r, deadline_link);
            if (i == PATIENCE_SLOW)
                set_deadline(r, now, client->fs->slow);
            if (r->type == LOCAL__LOCAL_TYPE__LOCAL_NONE || r->sent || !r->more)
                continue;
            if (r->type == LOCAL__LOCAL_TYPE__LOCAL_RENAME && r->again &&
                r->message.rename.exchange)
                request_finish(r, EIO); /* twice would be not at all */
            else
                client_transmit(client, r);
        }
    }
    arm_deadline(client);
    files_refresh(client->fs->files);
}

static void send_attach(void *arg, const Local__Reattach *message)
{
    struct client *client = arg;

    client->attaching++;
    channel_send(client->channel, CHANNEL_URGENT, LOCAL__LOCAL_TYPE__LOCAL_REATTACH, 0,
                 ATTACH_ID + client->attaching, &message->base, NULL, 0);
}

static const char *take_welcome(struct client *client, const struct frame *frame,
                                const uint8_t *message)
{
    struct message_arena arena;
    const Local__Welcome *welcome;
    const char *fault = NULL;

    if (frame->type != LOCAL__LOCAL_TYPE__LOCAL_WELCOME)
        return "no Welcome";
    welcome = message_unpack(&arena, &local__welcome__descriptor, message, frame->message_size);
    if (welcome == NULL)
        fault = "a malformed Welcome";
    else if (welcome->version != 1)
        fault = "p2pd is of another version";
    message_done(&arena);
    if (fault != NULL)
        return fault;
    if (client->greeted) {
        log_info("connected to p2pd again");
        fs_changed(client->fs);
        invalidate_all(client->fs->invalidator);
    }
    client->greeted = true;
    client->goodbye = false;
    client->start_pause = START_MIN_NS;
    client->state = CLIENT_ATTACHING;
    client->attaching = 0;
    files_attach(client->fs->files, send_attach, client);
    if (client->attaching == 0)
        go_live(client);
    return NULL;
}

static const char *take_attached(struct client *client, const struct frame *frame)
{
    if (frame->id <= ATTACH_ID || client->attaching == 0)
        return "an answer to nothing";
    if (frame->type != LOCAL__LOCAL_TYPE__LOCAL_DONE)
        log_warning("p2pd does not know all files that are open here");
    if (--client->attaching == 0)
        go_live(client);
    return NULL;
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct client *client = arg;

    if ((frame->flags & FRAME_ANSWER) != 0) {
        if (client->state == CLIENT_GREETING)
            return take_welcome(client, frame, message);
        if (client->state == CLIENT_ATTACHING)
            return take_attached(client, frame);
        return take_answer(client, frame, message, payload);
    }
    switch (frame->type) {
    case LOCAL__LOCAL_TYPE__LOCAL_INVALIDATE:
        return take_invalidate(client, frame, message);
    case LOCAL__LOCAL_TYPE__LOCAL_GOODBYE:
        client->goodbye = true;
        log_info("p2pd was stopped; what needs it waits until it is started again");
        return NULL;
    default:
        return (frame->flags & FRAME_MAY_SKIP) != 0 ? NULL : "a message that p2pfs does not know";
    }
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct client *client = arg;

    return frame->payload_size <= sizeof(client->payload) ? client->payload : NULL;
}

/* --- connecting ------------------------------------------------------------------------------------------ */

/* Answers all that `which` picks. Answering one may end others: so each search starts anew. */
static void finish_all(struct client *client, bool (*which)(const struct request *))
{
    for (unsigned i = 0; i < BUCKETS; i++) {
        struct request *r = client->table[i];

        while (r != NULL) {
            if (which(r)) {
                request_finish(r, EIO);
                r = client->table[i];
            } else {
                r = r->next_by_id;
            }
        }
    }
}

/* Its reader gave up; only the daemon's answer was of interest. */
static bool is_forgotten(const struct request *r)
{
    return r->by_deadline == NULL;
}

static void go_away(struct client *client)
{
    int64_t now = clock_now();

    channel_free(client->channel);
    client->channel = NULL;
    if (client->state >= CLIENT_ATTACHING || client->away_since == 0)
        client->away_since = now;
    client->state = CLIENT_AWAY;
    for (unsigned i = 0; i < 2; i++) {
        struct request *r;

        TAILQ_FOREACH(r, &client->lists[i], deadline_link) {
            if (i == PATIENCE_SLOW)
                set_deadline(r, now, client->fs->wait + GRACE_NS);
            if (r->sent) {
                r->again = true;
                r->sent = false;
            }
        }
    }
    finish_all(client, is_forgotten); /* nothing will come for them */
    arm_deadline(client);
    try_later(client, RETRY_NS);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct client *client = arg;

    if (client->state >= CLIENT_ATTACHING && !client->goodbye)
        log_warning("the connection to p2pd has ended: %s", why);
    else
        log_debug("the connection to p2pd has ended: %s", why);
    go_away(client);
}

static void on_ready(void *arg)
{
    struct client *client = arg;
    Local__Hello hello = LOCAL__HELLO__INIT;

    hello.version = 1;
    hello.program = LOCAL__PROGRAM__PROGRAM_FS;
    hello.mountpoint = client->fs->mountpoint;
    hello.mount = client->mount;
    channel_send(client->channel, CHANNEL_URGENT, LOCAL__LOCAL_TYPE__LOCAL_HELLO, 0, ATTACH_ID,
                 &hello.base, NULL, 0);
}

static const struct channel_events channel_events = {
    .ready = on_ready,
    .frame = on_frame,
    .payload = on_payload,
    .closed = on_closed,
};

/* 0 or -errno. */
static int connect_now(struct client *client)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stream *stream;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", client->socket);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        int error = errno;

        close(fd);
        return -error;
    }
    stream = stream_unix(client->loop, fd);
    if (stream_unix_peer(stream) != geteuid()) {
        stream_free(stream);
        return -EPERM;
    }
    client->channel = channel_new(client->loop, stream, &channel_events, client);
    channel_trust(client->channel);
    client->state = CLIENT_GREETING;
    return 0;
}

static void starter_release(struct starter *starter)
{
    if (starter == NULL || __atomic_fetch_sub(&starter->owners, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    free(starter->home);
    free(starter);
}

static void *run_starter(void *arg)
{
    struct starter *starter = arg;

    starter->result = daemon_start(starter->home, starter->why, sizeof(starter->why));
    __atomic_store_n(&starter->ended, true, __ATOMIC_RELEASE);
    starter_release(starter);
    return NULL;
}

/* Nobody listens on the socket: starts p2pd, not too often, not against somebody's will. */
static void start_daemon(struct client *client)
{
    int64_t now = clock_now();

    if (client->starter != NULL) {
        if (!__atomic_load_n(&client->starter->ended, __ATOMIC_ACQUIRE))
            return;
        if (client->starter->result != 0)
            log_warning("cannot start p2pd: %s", client->starter->why);
        starter_release(client->starter);
        client->starter = NULL;
    }
    if (client->goodbye || now - client->away_since < RESTART_NS || now < client->start_next)
        return;
    client->start_next = now + client->start_pause;
    client->start_pause =
        2 * client->start_pause < START_MAX_NS ? 2 * client->start_pause : START_MAX_NS;
    client->starter = xcalloc(1, sizeof(*client->starter));
    client->starter->home = xstrdup(client->fs->home);
    client->starter->owners = 2;
    CHECK(pthread_detach(thread_start("starter", run_starter, client->starter)) == 0);
}

static void on_connect(void *arg)
{
    struct client *client = arg;
    int result;

    if (client->stopping)
        return;
    if (client->state == CLIENT_GREETING || client->state == CLIENT_ATTACHING) {
        log_warning("p2pd does not answer");
        go_away(client);
        return;
    }
    result = connect_now(client);
    if (result == 0) {
        try_later(client, LIMIT_HELLO_NS);
        return;
    }
    if (result == -ENOENT || result == -ECONNREFUSED)
        start_daemon(client);
    else
        log_debug("cannot connect to %s: %s", client->socket, strerror(-result));
    try_later(client, client->goodbye ? RETRY_SLOW_NS : RETRY_NS);
}

static void try_later(struct client *client, int64_t delay)
{
    if (!client->stopping)
        timer_set(client->connect, delay);
}

/* --- life ------------------------------------------------------------------------------------------------ */

struct loop *client_loop(struct client *client)
{
    return client->loop;
}

static void on_stop(void *arg)
{
    struct client *client = arg;

    loop_stop(client->loop);
}

static bool is_not_sealing(const struct request *r)
{
    return r->req != NULL || r->type != LOCAL__LOCAL_TYPE__LOCAL_SEAL || !r->sent;
}

static bool is_any(const struct request *r)
{
    return true;
}

static void deliver_refuse(struct mail *mail, void *owner)
{
    struct client *client = owner;

    free(mail);
    client->stopping = true;
    finish_all(client, is_not_sealing);
}

static void deliver_stop(struct mail *mail, void *owner)
{
    struct client *client = owner;

    free(mail);
    client->ending = true;
    timer_set(client->stop, client->count == 0 || client->state != CLIENT_LIVE ? 0 : STOP_NS);
}

static void post(struct client *client, void (*deliver)(struct mail *, void *))
{
    struct mail *mail = xcalloc(1, sizeof(*mail));

    mail->deliver = deliver;
    loop_post(client->loop, mail);
}

struct client *client_new(struct fs *fs)
{
    struct client *client = xcalloc(1, sizeof(*client));

    client->magic = CLIENT_MAGIC;
    client->fs = fs;
    client->loop = loop_new("client");
    loop_set_owner(client->loop, client);
    client->socket = home_socket(fs->home);
    client->start_pause = START_MIN_NS;
    TAILQ_INIT(&client->lists[0]);
    TAILQ_INIT(&client->lists[1]);
    CHECK(getrandom(&client->mount, sizeof(client->mount), 0) == (ssize_t)sizeof(client->mount));
    client->connect = timer_new(client->loop, on_connect, client);
    client->deadline = timer_new(client->loop, on_deadline, client);
    client->sweep = timer_new(client->loop, on_sweep, client);
    client->stop = timer_new(client->loop, on_stop, client);
    return client;
}

void client_start(struct client *client)
{
    client->away_since = clock_now();
    timer_set(client->connect, 0);
    loop_start(client->loop);
}

void client_refuse(struct client *client)
{
    post(client, deliver_refuse);
}

void client_stop(struct client *client)
{
    CHECK_OBJECT(client, CLIENT_MAGIC);
    post(client, deliver_stop);
    loop_join(client->loop);
    finish_all(client, is_any);
    channel_free(client->channel);
    timer_free(client->connect);
    timer_free(client->deadline);
    timer_free(client->sweep);
    timer_free(client->stop);
    starter_release(client->starter);
    loop_free(client->loop);
    free(client->socket);
    client->magic = 0;
    free(client);
}
