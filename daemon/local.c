/* The local thread: its life, the listener and the clients.
 *
 * Owns struct local. Leaves each request to a handler in the other local_*.c files (the table below
 * says which), the mail of other threads to local_mail.c and the tree to catalogue.h. Thread: "local".
 *
 * Who may connect: this user, and root; the kernel says who it is. A client's first message is
 * Hello. What a request changes is in memory at once; the commit follows within COMMIT_NS, or before
 * the answer where a caller is told that something is safe. */
#include "daemon/local_private.h"

#include <errno.h>
#include <event2/event.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "daemon/download.h"
#include "daemon/session.h"
#include "daemon/upload.h"
#include "proto/limits.h"
#include "proto/message.h"

#define CLIENT_MAGIC    0x636c6e74u
#define VERSION         1
#define COMMIT_NS       (20 * NS_PER_MS)
#define ACCEPT_REST_NS  (100 * NS_PER_MS) /* without descriptors */
#define COMMIT_AGAIN_NS NS_PER_S          /* after one that failed */
#define TICK_NS         NS_PER_S
#define FAREWELL_NS     (30 * NS_PER_MS) /* for the last words to leave */
#define RETRY_NS        (10 * NS_PER_S)  /* for changes that the tracker had no room for */
#define DROP_FIRST_NS   (120 * NS_PER_S) /* at the start: until programs said what they have open */

void numbers_add(struct numbers *n, uint64_t item)
{
    if (n->count == n->room) {
        n->room = n->room == 0 ? 16 : 2 * n->room;
        n->items = xrealloc(n->items, n->room * sizeof *n->items);
    }
    n->items[n->count++] = item;
}

bool local_is_visible(const struct local *l)
{
    return l->state != SESSION_LOGGED_OUT;
}

bool local_is_connected(const struct local *l)
{
    return l->state == SESSION_CONNECTED;
}

/* --- answers ---------------------------------------------------------------------------------- */

struct client *local_client(const struct local *l, uint64_t number)
{
    for (struct client *cl = l->clients; cl != NULL; cl = cl->next)
        if (cl->number == number)
            return cl;
    return NULL;
}

void local_send(struct local *l, struct reply reply, uint16_t type, const ProtobufCMessage *message)
{
    struct client *cl = local_client(l, reply.client);

    if (cl != NULL)
        channel_send(cl->channel, CHANNEL_URGENT, type, FRAME_ANSWER, reply.id, message, NULL, 0);
}

void local_done(struct local *l, struct reply reply)
{
    Local__Done done = LOCAL__DONE__INIT;

    local_send(l, reply, TYPE(DONE), &done.base);
}

void local_error(struct local *l, struct reply reply, int error, const char *format, ...)
{
    char text[512];
    va_list arguments;
    Local__Error message = LOCAL__ERROR__INIT;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    message.number = error < 0 ? -error : error;
    message.text = text;
    local_send(l, reply, TYPE(ERROR), &message.base);
}

/* --- work for workers ------------------------------------------------------------------------- */

static void run_task(struct job *job)
{
    struct task *task = (struct task *)(void *)((char *)job - offsetof(struct task, job));

    task->work(task);
    loop_post(task->local->loop, &task->mail);
}

static void deliver_task(struct mail *mail, void *owner)
{
    struct local *l = owner;
    struct task *task = (struct task *)(void *)((char *)mail - offsetof(struct task, mail));

    task->done(l, task);
    local_after(l);
}

void local_post(struct local *l, struct task *task, void (*work)(struct task *),
                void (*done)(struct local *, struct task *))
{
    local_post_to(l, l->daemon->workers, task, work, done);
}

void local_post_to(struct local *l, struct workers *workers, struct task *task,
                   void (*work)(struct task *), void (*done)(struct local *, struct task *))
{
    task->local = l;
    task->work = work;
    task->done = done;
    task->job.run = run_task;
    task->mail.deliver = deliver_task;
    if (!l->stopped) {
        workers_post(workers, &task->job, true);
        return;
    }
    /* At the end: nobody else is left to do it. */
    work(task);
    done(l, task);
}

/* --- requests --------------------------------------------------------------------------------- */

enum who { WHO_FS = 1, WHO_CTL = 2, WHO_BOTH = 3 };

static const struct request_kind {
    uint16_t type;
    enum who who;
    const ProtobufCMessageDescriptor *message;
    handler *handle;
} kinds[] = {
    {TYPE(LOOKUP), WHO_BOTH, &local__lookup__descriptor, names_lookup},
    {TYPE(GETATTR), WHO_BOTH, &local__node__descriptor, names_getattr},
    {TYPE(READDIR), WHO_BOTH, &local__readdir__descriptor, names_readdir},
    {TYPE(READLINK), WHO_BOTH, &local__node__descriptor, names_readlink},
    {TYPE(STATFS), WHO_BOTH, &local__statfs__descriptor, names_statfs},
    {TYPE(GETXATTR), WHO_BOTH, &local__xattr__descriptor, names_getxattr},
    {TYPE(SETXATTR), WHO_FS, &local__set_xattr__descriptor, names_setxattr},
    {TYPE(LISTXATTR), WHO_BOTH, &local__node__descriptor, names_listxattr},
    {TYPE(MKDIR), WHO_FS, &local__make__descriptor, names_mkdir},
    {TYPE(MKNOD), WHO_FS, &local__make__descriptor, names_mknod},
    {TYPE(SYMLINK), WHO_FS, &local__make__descriptor, names_symlink},
    {TYPE(UNLINK), WHO_FS, &local__lookup__descriptor, names_unlink},
    {TYPE(RMDIR), WHO_FS, &local__lookup__descriptor, names_rmdir},
    {TYPE(RENAME), WHO_FS, &local__rename__descriptor, names_rename},
    {TYPE(SETATTR), WHO_FS, &local__setattr__descriptor, names_setattr},
    {TYPE(OPEN), WHO_FS, &local__open__descriptor, io_open},
    {TYPE(CREATE), WHO_FS, &local__make__descriptor, write_create},
    {TYPE(WRITE_BEGIN), WHO_FS, &local__write_begin__descriptor, write_begin},
    {TYPE(WROTE), WHO_FS, &local__wrote__descriptor, write_wrote},
    {TYPE(SEAL), WHO_FS, &local__seal__descriptor, write_seal},
    {TYPE(WANT), WHO_FS, &local__want__descriptor, io_want},
    {TYPE(UNWANT), WHO_FS, &local__unwant__descriptor, io_unwant},
    {TYPE(READING), WHO_FS, &local__reading__descriptor, io_reading},
    {TYPE(RELEASE), WHO_FS, &local__release__descriptor, io_release},
    {TYPE(REATTACH), WHO_FS, &local__reattach__descriptor, io_reattach},
    {TYPE(SYNC), WHO_FS, &local__node__descriptor, write_sync},
    {TYPE(RENEW), WHO_FS, &local__node__descriptor, names_renew},
    {TYPE(REGISTER), WHO_CTL, &local__register__descriptor, ctl_register},
    {TYPE(LOGIN), WHO_CTL, &local__login__descriptor, ctl_login},
    {TYPE(LOGOUT), WHO_CTL, &local__logout__descriptor, ctl_logout},
    {TYPE(WHOAMI), WHO_CTL, &local__whoami__descriptor, ctl_whoami},
    {TYPE(PASSWORD), WHO_CTL, &local__password__descriptor, ctl_password},
    {TYPE(INVITE), WHO_CTL, &local__invite__descriptor, ctl_invite},
    {TYPE(TRACKER_CALL), WHO_CTL, &local__tracker_call__descriptor, ctl_tracker_call},
    {TYPE(KEYS), WHO_CTL, &local__keys_request__descriptor, access_keys},
    {TYPE(GRANT), WHO_CTL, &local__grant__descriptor, access_grant},
    {TYPE(ACCESS), WHO_CTL, &local__access_request__descriptor, access_show},
    {TYPE(GROUP), WHO_CTL, &local__group__descriptor, access_group},
    {TYPE(GROUPS), WHO_CTL, &local__groups_request__descriptor, access_groups},
    {TYPE(STATUS), WHO_CTL, &local__status_request__descriptor, ctl_status},
    {TYPE(PEERS), WHO_CTL, &local__paths__descriptor, ctl_peers},
    {TYPE(HEALTH), WHO_CTL, &local__paths__descriptor, health_show},
    {TYPE(GET), WHO_CTL, &local__get__descriptor, fetch_get},
    {TYPE(UNPIN), WHO_CTL, &local__paths__descriptor, fetch_unpin},
    {TYPE(CHECK), WHO_CTL, &local__check__descriptor, ctl_check},
    {TYPE(COPY_KEPT), WHO_CTL, &local__copy_kept__descriptor, ctl_copy_kept},
    {TYPE(EVICT), WHO_CTL, &local__paths__descriptor, ctl_evict},
    {TYPE(LS), WHO_CTL, &local__ls__descriptor, ctl_ls},
    {TYPE(LIMIT), WHO_CTL, &local__limit__descriptor, limit_handle},
    {TYPE(STOP), WHO_CTL, &local__stop__descriptor, ctl_stop},
    {TYPE(WATCH), WHO_CTL, &local__watch__descriptor, watch_begin},
};

static const char *carry_out(struct local *l, struct client *cl, const struct frame *frame,
                             const uint8_t *bytes)
{
    const struct request_kind *kind = NULL;
    struct message_arena arena;

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].type == frame->type)
            kind = &kinds[i];
    enum who who = cl->program == LOCAL__PROGRAM__PROGRAM_FS ? WHO_FS : WHO_CTL;
    if (kind == NULL || (kind->who & who) == 0)
        return (frame->flags & FRAME_MAY_SKIP) != 0 ? NULL : "a request of an unknown type";
    const void *message = message_unpack(&arena, kind->message, bytes, frame->message_size);
    if (message != NULL) {
        l->raw = bytes;
        l->raw_size = frame->message_size;
        l->raw_type = frame->type;
        l->origin = cl->number;
        kind->handle(l, cl, (struct reply){cl->number, frame->id}, message);
        l->origin = 0;
        l->raw = NULL;
    }
    message_done(&arena);
    return message == NULL ? "a malformed request" : NULL;
}

struct deferred *local_defer(struct local *l, struct reply reply)
{
    CHECK(l->raw != NULL);
    struct deferred *d = xcalloc(1, sizeof *d + l->raw_size);

    d->reply = reply;
    d->type = l->raw_type;
    d->size = l->raw_size;
    memcpy(d->message, l->raw, l->raw_size);
    return d;
}

void local_resume(struct local *l, struct deferred *d)
{
    while (d != NULL) {
        struct deferred *next = d->next;
        struct client *cl = local_client(l, d->reply.client);
        const struct frame frame = {
            .type = d->type, .id = d->reply.id, .message_size = (uint32_t)d->size};
        if (cl != NULL)
            (void)carry_out(l, cl, &frame, d->message); /* it was well formed before */
        free(d);
        d = next;
    }
}

void local_fail_deferred(struct local *l, struct deferred *d, int error)
{
    while (d != NULL) {
        struct deferred *next = d->next;
        local_error(l, d->reply, error, "the file could not be written");
        free(d);
        d = next;
    }
}

static const char *greet(struct local *l, struct client *cl, const struct frame *frame,
                         const uint8_t *bytes)
{
    struct message_arena arena;
    Local__Welcome welcome = LOCAL__WELCOME__INIT;
    const char *fault = NULL;

    if (frame->type != TYPE(HELLO))
        return "no Hello";
    const Local__Hello *hello =
        message_unpack(&arena, &local__hello__descriptor, bytes, frame->message_size);
    if (hello == NULL || (hello->program != LOCAL__PROGRAM__PROGRAM_FS &&
                          hello->program != LOCAL__PROGRAM__PROGRAM_CTL)) {
        message_done(&arena);
        return "a malformed Hello";
    }
    cl->greeted = true;
    cl->program = hello->program;
    channel_trust(cl->channel);
    if (cl->program == LOCAL__PROGRAM__PROGRAM_FS) {
        cl->mount = io_mount(l, cl, hello);
        if (cl->mount == NULL)
            fault = "two programs say they are the same mount";
        else
            push_client_new(cl);
    }
    message_done(&arena);
    welcome.version = VERSION;
    welcome.pid = (uint32_t)getpid();
    welcome.account =
        (char *)(uintptr_t)(local_is_visible(l) ? catalogue_account(l->catalogue) : "");
    welcome.swarm = l->swarm_name != NULL ? l->swarm_name : (char *)(uintptr_t) "";
    welcome.url = l->url != NULL ? l->url : (char *)(uintptr_t) "";
    if (fault == NULL)
        local_send(l, (struct reply){cl->number, frame->id}, TYPE(WELCOME), &welcome.base);
    return fault;
}

/* --- clients ---------------------------------------------------------------------------------- */

static void client_free(struct client *cl)
{
    struct local *l = cl->local;
    struct client **at = &l->clients;

    while (*at != cl)
        at = &(*at)->next;
    *at = cl->next;
    l->client_count--;
    if (cl->mount != NULL)
        push_client_gone(cl);
    io_client_gone(l, cl);
    watch_client_gone(l, cl);
    fetch_client_gone(l, cl->number);
    scrub_client_gone(l->scrub, cl->number);
    channel_free(cl->channel);
    cl->magic = 0;
    free(cl);
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct client *cl = arg;
    struct local *l = cl->local;

    (void)payload;
    CHECK_OBJECT(cl, CLIENT_MAGIC);
    const char *fault =
        cl->greeted ? carry_out(l, cl, frame, message) : greet(l, cl, frame, message);
    local_after(l);
    return fault;
}

static void on_drained(void *arg)
{
    push_to(arg);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct client *cl = arg;
    struct local *l = cl->local;

    CHECK_OBJECT(cl, CLIENT_MAGIC);
    if (!orderly && cl->greeted)
        log_debug("a client of the local socket is gone: %s", why);
    client_free(cl);
    local_after(l);
}

static const struct channel_events client_events = {
    .frame = on_frame, .drained = on_drained, .closed = on_closed};

static void client_new(struct local *l, int fd)
{
    struct ucred who = {.uid = (uid_t)-1};
    socklen_t size = sizeof who;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
        (who.uid != geteuid() && who.uid != 0)) {
        log_warning("user %u may not use the local socket", (unsigned)who.uid);
        close(fd);
        return;
    }
    if (l->client_count >= LIMIT_LOCAL_CLIENTS) {
        log_warning("more than %d clients on the local socket: one is turned away",
                    LIMIT_LOCAL_CLIENTS);
        close(fd);
        return;
    }
    struct client *cl = xcalloc(1, sizeof *cl);
    cl->magic = CLIENT_MAGIC;
    cl->local = l;
    cl->number = ++l->next_client;
    cl->pid = (uint32_t)who.pid;
    cl->next = l->clients;
    l->clients = cl;
    l->client_count++;
    cl->channel = channel_new(l->loop, stream_unix(l->loop, fd), &client_events, cl);
}

static void on_accept(evutil_socket_t socket, short what, void *arg)
{
    struct local *l = arg;

    (void)what;
    for (;;) {
        int fd = accept4(socket, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
            /* Whoever waits stays ready to be accepted: without a rest this thread would spin. */
            log_warning("no more clients for a moment: %s", strerror(errno));
            event_del(l->accept);
            timer_set(l->accept_rest, ACCEPT_REST_NS);
            return;
        }
        if (fd < 0)
            return;
        client_new(l, fd);
    }
}

static void rested(void *arg)
{
    struct local *l = arg;

    if (!l->stopped)
        CHECK(event_add(l->accept, NULL) == 0);
}

/* --- after each round ------------------------------------------------------------------------- */

static bool owes_safety(const struct local *l)
{
    return !local_is_connected(l) && catalogue_pending(l->catalogue) > 0;
}

static void commit(void *arg)
{
    struct local *l = arg;
    int error = catalogue_commit(l->catalogue, owes_safety(l));

    if (error == 0)
        l->store_trouble[0] = '\0';
    else
        snprintf(l->store_trouble, sizeof l->store_trouble, "state.db cannot be written: %s",
                 strerror(-error));
    if (error != 0)
        timer_set(l->commit_timer, COMMIT_AGAIN_NS);
}

static void send_journal(void *arg)
{
    struct local *l = arg;
    int64_t due = 0;
    size_t size;
    uint8_t *packed;

    if (!local_is_connected(l) || l->stopped)
        return;
    while ((packed = catalogue_next_op(l->catalogue, clock_now(), &due, &size)) != NULL)
        session_op(l->daemon->session, l->epoch, packed, size);
    if (due != 0 && !timer_pending(l->journal_timer)) {
        int64_t now = clock_now();
        timer_set(l->journal_timer, due > now ? due - now : 0);
    }
}

void local_after(struct local *l)
{
    if (l->stopped)
        return;
    if (l->unused != NULL)
        local_put_aside(l);
    for (size_t i = 0; i < l->newly_pinned.count; i++)
        fetch_pinned(l, l->newly_pinned.items[i]);
    l->newly_pinned.count = 0;
    sealed_sync(l);
    send_journal(l);
    push_flush(l);
    watch_flush(l);
    if (catalogue_is_dirty(l->catalogue) && !timer_pending(l->commit_timer))
        timer_set(l->commit_timer, COMMIT_NS);
}

/* --- the catalogue's events ------------------------------------------------------------------- */

static void on_invalid(void *arg, uint64_t ino, uint64_t parent, const char *name)
{
    push_invalid(arg, ino, parent, name);
}

static void on_renewed(void *arg, uint64_t ino, uint64_t parent, const char *name)
{
    push_renewed(arg, ino, parent, name);
}

static void on_timed(void *arg, uint64_t ino)
{
    push_timed(arg, ino);
}

static void on_journalled(void *arg)
{
    (void)arg; /* local_after sends it */
}

static void on_unused(void *arg, const uint8_t root[HASH_SIZE], uint64_t size)
{
    (void)size;
    local_unused(arg, root);
}

static void on_pinned(void *arg, const struct node *node)
{
    struct local *l = arg;

    numbers_add(&l->newly_pinned, node->ino);
}

static void on_changed(void *arg, const struct node *node, enum node_change change)
{
    watch_changed(arg, node, change);
}

static const struct catalogue_events catalogue_events = {.invalid = on_invalid,
                                                         .renewed = on_renewed,
                                                         .timed = on_timed,
                                                         .journalled = on_journalled,
                                                         .unused = on_unused,
                                                         .pinned = on_pinned,
                                                         .changed = on_changed};

/* --- life ------------------------------------------------------------------------------------- */

static void tick(void *arg)
{
    struct local *l = arg;
    int64_t now = clock_now();

    timer_set(l->tick, TICK_NS);
    io_tick(l, now);
    ahead_tick(l, now);
    write_tick(l, now);
    ctl_account_look(l, now);
    evict_look(l->evict);
    local_drop_look(l, now);
    if (now >= l->next_retry) {
        l->next_retry = now + RETRY_NS;
        catalogue_retry(l->catalogue);
    }
    local_after(l);
}

/* The socket, with whatever an unclean end left in its place removed: main holds p2pd.lock, so it
 * is nobody's. */
static int bind_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    CHECK(strlen(path) < sizeof address.sun_path);
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (unlink(path) != 0 && errno != ENOENT)
        goto failed;
    mode_t old = umask(0177);
    int result = bind(fd, (struct sockaddr *)&address, sizeof address);
    umask(old);
    if (result == 0 && listen(fd, LIMIT_LOCAL_CLIENTS) == 0)
        return fd;
failed:
    result = -errno;
    close(fd);
    return result;
}

static void remember_socket(struct local *l)
{
    struct stat st = {0};

    (void)lstat(l->socket_path, &st);
    l->socket_device = st.st_dev;
    l->socket_inode = st.st_ino;
}

/* Not if another p2pd has made its own there: somebody removed p2pd.lock under us. */
static void remove_socket(const struct local *l)
{
    struct stat st;

    if (lstat(l->socket_path, &st) == 0 && st.st_dev == l->socket_device &&
        st.st_ino == l->socket_inode)
        unlink(l->socket_path);
}

struct local *local_new(struct daemon *daemon, const char **fault)
{
    struct local *l = xcalloc(1, sizeof *l);
    char *path = home_path(daemon->home, "state.db");

    l->daemon = daemon;
    l->socket_path = home_socket(daemon->home);
    CHECK(pthread_mutex_init(&l->lock, NULL) == 0);
    l->state_path = path;
    l->catalogue = catalogue_open(path, &catalogue_events, l, fault);
    if (l->catalogue == NULL)
        goto no_catalogue;
    l->socket = bind_socket(l->socket_path);
    if (l->socket < 0) {
        log_error("%s: %s", l->socket_path, strerror(-l->socket));
        *fault = "the local socket cannot be made";
        goto no_socket;
    }
    remember_socket(l);
    l->state = catalogue_account(l->catalogue)[0] != '\0' ? SESSION_AWAY : SESSION_LOGGED_OUT;
    l->waiting_recovery_end = &l->waiting_recovery;
    l->events_end = &l->events;
    l->loop = loop_new("local");
    loop_set_owner(l->loop, l);
    l->commit_timer = timer_new(l->loop, commit, l);
    l->tick = timer_new(l->loop, tick, l);
    l->journal_timer = timer_new(l->loop, send_journal, l);
    l->stir_timer = timer_new(l->loop, local_stir, l);
    l->access_timer = timer_new(l->loop, access_look, l);
    l->drop_timer = timer_new(l->loop, local_drop_due, l);
    l->lender = workers_new("lend", 1);
    l->evict = evict_new(l);
    l->accept_rest = timer_new(l->loop, rested, l);
    l->scrub = scrub_new(l);
    l->accept = event_new(loop_base(l->loop), l->socket, EV_READ | EV_PERSIST, on_accept, l);
    CHECK(l->accept != NULL && event_add(l->accept, NULL) == 0);
    return l;
no_socket:
    catalogue_close(l->catalogue);
no_catalogue:
    free(l->state_path);
    pthread_mutex_destroy(&l->lock);
    free(l->socket_path);
    free(l);
    return NULL;
}

static void deliver_start(struct mail *mail, void *owner)
{
    struct local *l = owner;
    uint8_t generation[GENERATION_SIZE];
    uint64_t seq;

    free(mail);
    (void)catalogue_position(l->catalogue, generation, &seq);
    session_catalogue_at(l->daemon->session, generation, seq);
    timer_set(l->tick, TICK_NS);
    timer_set(l->drop_timer, DROP_FIRST_NS);
    l->next_retry = clock_now() + RETRY_NS;
    ctl_ask_self(l);
    write_recover(l);
    fetch_pin_all(l);
    l->aside_grew = true;
    scrub_start(l->scrub);
    local_after(l);
}

void local_start(struct local *l)
{
    struct mail *mail = xcalloc(1, sizeof *mail);

    mail->deliver = deliver_start;
    loop_post(l->loop, mail);
    l->started = true;
    loop_start(l->loop);
}

void local_on_stop(struct local *l, void (*stop)(void *arg), void *arg)
{
    l->on_stop = stop;
    l->on_stop_arg = arg;
}

static void farewell_said(void *arg)
{
    struct local *l = arg;

    loop_stop(l->loop);
}

static void deliver_stop(struct mail *mail, void *owner)
{
    struct local *l = owner;
    Local__Goodbye goodbye = LOCAL__GOODBYE__INIT;

    free(mail);
    goodbye.text = (char *)(uintptr_t) "p2pd was told to stop";
    for (struct client *cl = l->clients; cl != NULL; cl = cl->next)
        if (cl->greeted)
            channel_send(cl->channel, CHANNEL_URGENT, TYPE(GOODBYE), FRAME_MAY_SKIP, 0,
                         &goodbye.base, NULL, 0);
    event_del(l->accept);
    timer_cancel(l->accept_rest);
    timer_free(l->tick);
    l->tick = timer_new(l->loop, farewell_said, l);
    timer_set(l->tick, FAREWELL_NS);
}

void local_stop(struct local *l)
{
    if (l->started) {
        struct mail *mail = xcalloc(1, sizeof *mail);
        mail->deliver = deliver_stop;
        loop_post(l->loop, mail);
        loop_join(l->loop);
    }
    l->stopped = true;
    while (l->clients != NULL)
        client_free(l->clients);
    workers_drain(l->lender);
    evict_stop(l->evict);
    scrub_stop(l->scrub);
    (void)catalogue_commit(l->catalogue, true);
    if (l->socket >= 0) {
        remove_socket(l);
        event_free(l->accept);
        timer_free(l->accept_rest);
        close(l->socket);
        l->socket = -1;
    }
}

static void free_items(struct root_item **items)
{
    struct root_item *item, *next;

    HASH_ITER(hh, *items, item, next) {
        HASH_DEL(*items, item);
        free(item);
    }
}

void local_free(struct local *l)
{
    timer_free(l->commit_timer);
    timer_free(l->tick);
    timer_free(l->journal_timer);
    timer_free(l->stir_timer);
    timer_free(l->access_timer);
    timer_free(l->drop_timer);
    timer_free(l->progress_timer);
    loop_free(l->loop); /* delivers what is left */
    write_free(l);
    io_free(l);
    ahead_free(l);
    fetch_free(l);
    ctl_free(l);
    health_free_all(l);
    ctl_account_free(l);
    workers_free(l->lender);
    evict_free(l->evict);
    scrub_free(l->scrub);
    access_free(l);
    push_free(l);
    watch_free(l);
    catalogue_close(l->catalogue);
    free_items(&l->unused);
    free_items(&l->stirred);
    for (size_t i = 0; i < l->changed_count; i++)
        content_release(l->changed[i]);
    free(l->changed);
    free(l->newly_pinned.items);
    free(l->unreadable.items);
    free(l->kept);
    free(l->trouble);
    free(l->swarm_name);
    free(l->url);
    free(l->state_path);
    free(l->socket_path);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
