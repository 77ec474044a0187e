/* The client's thread: what goes to p2pd and what comes from it.
 *
 * Owns the socket and every request from request_submit to its answer (the table: client_table.c; connecting:
 * client_connect.c); leaves the states of files to file.c (which runs
 * on this thread, too), what an answer means to each request's `done`, and the kernel's caches to invalidate.c.
 *
 *             connect            Welcome             every Reattach answered
 *   AWAY ───────────────▶ GREETING ───────▶ ATTACHING ───────▶ LIVE
 *     ▲───────────────────────┴── closed ──────┴────────────────┘
 *
 * The mount outlives the daemon. While it is away requests stay in the table and reads of present blocks need no
 * daemon at all; p2pd is started when it is not there (unless it said GOODBYE: somebody stopped it on purpose). On the
 * way to LIVE it is told what is open here, then gets every request again. For those that may have been carried out
 * before the crash, `again` is set and their `done` reads EEXIST and ENOENT accordingly. */
#include "fs/client_internal.h"

#include "base/check.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/times.h"
#include "proto/limits.h"
#include "proto/message.h"

#include <errno.h>
#include <sys/random.h>
#include <unistd.h>

#define START_MIN_NS NS_PER_S       /* between our own attempts to start it, doubling */
#define STOP_NS      (2 * NS_PER_S) /* for sealing that is under way at unmount */

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
    {LOCAL__LOCAL_TYPE__LOCAL_MKNOD, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_SYMLINK, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_SEAL, LOCAL__LOCAL_TYPE__LOCAL_ATTR, &local__attr__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_READDIR, LOCAL__LOCAL_TYPE__LOCAL_LISTING,
     NULL}, /* unpacked by who keeps it */
    {LOCAL__LOCAL_TYPE__LOCAL_READLINK, LOCAL__LOCAL_TYPE__LOCAL_TEXT, &local__text__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_GETXATTR, LOCAL__LOCAL_TYPE__LOCAL_TEXT, &local__text__descriptor},
    {LOCAL__LOCAL_TYPE__LOCAL_LISTXATTR, LOCAL__LOCAL_TYPE__LOCAL_TEXT, &local__text__descriptor},
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

            if (*one->name == '\0') {
                if (one->timed)
                    times_set(client->fs->times, one->ino, NULL, true);
                invalidate_inode(client->fs->invalidator, one->ino);
            } else {
                if (!one->renewed)
                    times_names_changed(client->fs->times, one->parent);
                invalidate_entry(client->fs->invalidator, one->parent, one->name);
            }
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
                client_set_deadline(r, now, client->fs->slow);
            if (r->type == LOCAL__LOCAL_TYPE__LOCAL_NONE || r->sent || !r->more)
                continue;
            if (r->type == LOCAL__LOCAL_TYPE__LOCAL_RENAME && r->again &&
                r->message.rename.exchange)
                request_finish(r, EIO); /* twice would be not at all */
            else
                client_transmit(client, r);
        }
    }
    client_arm_deadline(client);
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

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct client *client = arg;

    if (client->state >= CLIENT_ATTACHING && !client->goodbye)
        log_warning("the connection to p2pd has ended: %s", why);
    else
        log_debug("the connection to p2pd has ended: %s", why);
    client_go_away(client);
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

const struct channel_events client_channel_events = {
    .ready = on_ready,
    .frame = on_frame,
    .payload = on_payload,
    .closed = on_closed,
};

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
    client_finish_all(client, is_not_sealing);
    CHECK(sem_post(&client->refused) == 0);
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
    CHECK(sem_init(&client->refused, 0, 0) == 0);
    client->fs = fs;
    client->loop = loop_new("client");
    loop_set_owner(client->loop, client);
    client->socket = home_socket(fs->home);
    client->start_pause = START_MIN_NS;
    TAILQ_INIT(&client->lists[0]);
    TAILQ_INIT(&client->lists[1]);
    CHECK(getrandom(&client->mount, sizeof(client->mount), 0) == (ssize_t)sizeof(client->mount));
    client->connect = timer_new(client->loop, client_on_connect, client);
    client->deadline = timer_new(client->loop, client_on_deadline, client);
    client->sweep = timer_new(client->loop, client_on_sweep, client);
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

void client_await_refusal(struct client *client)
{
    while (sem_wait(&client->refused) != 0)
        CHECK(errno == EINTR);
}

void client_stop(struct client *client)
{
    CHECK_OBJECT(client, CLIENT_MAGIC);
    post(client, deliver_stop);
    loop_join(client->loop);
    client_finish_all(client, is_any);
    channel_free(client->channel);
    timer_free(client->connect);
    timer_free(client->deadline);
    timer_free(client->sweep);
    timer_free(client->stop);
    client_drop_starter(client);
    loop_free(client->loop);
    CHECK(sem_destroy(&client->refused) == 0);
    free(client->socket);
    client->magic = 0;
    free(client);
}
