/* The tracker's life: opening, listening, accepting within bounds, regular work, stopping.
 *
 * Owns the listener, the sources' counts, the pools, the storage queue and every module's state; sessions are
 * session.c's. One thread, the one in server_run.
 *
 * Accepting: a connection costs 2.6 ms of RSA before it is known whose it is, so LIMIT_HALF_OPEN handshakes are
 * under way at once and LIMIT_HALF_OPEN_SOURCE from one source; who comes in between, or whose source has used up its
 * handshakes (proto/knocks.h), waits in a bounded queue (after a restart everybody comes at once, often from behind one
 * address). When the queue is full, or all places are taken by handshakes that do not get on, the source that
 * has most of them makes room: so a flood is in its own way, not in others'. One descriptor is held in reserve, so
 * that a process without descriptors can still take a connection and close it, instead of spinning. */
#include "tracker/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/source.h"
#include "crypto/random.h"
#include "tracker/server_private.h"

#define LISTEN_BACKLOG 1024
#define ACCEPT_RETRY   (100 * NS_PER_MS) /* without descriptors */
#define REFUSALS_PER_S 5                 /* log lines; the rest is counted */
#define TOMBSTONE_LIFETIME                                                                         \
    (30 * 86400) /* a member that was away longer gets the catalogue from scratch */

struct waiting {
    struct waiting *next;
    int fd;
    int64_t since;
    struct source *source;
    char from[64];
};

int64_t wall_seconds(void)
{
    return clock_wall() / NS_PER_S;
}

void server_log_refusal(struct server *server, const char *from, const char *format, ...)
{
    int64_t now = clock_now();
    if (now - server->refusals_from > NS_PER_S) {
        if (server->refusals > REFUSALS_PER_S)
            log_warning("%u more refusals", server->refusals - REFUSALS_PER_S);
        server->refusals = 0;
        server->refusals_from = now;
    }
    if (++server->refusals > REFUSALS_PER_S)
        return;
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_info("%s: %s", from, text);
}

struct refusal_job {
    struct storage_job job;
    char account[ACCOUNT_BYTES_MAX + 1], from[64];
};

static void refusal_run(struct storage_job *job, struct storage *storage)
{
    struct refusal_job *refusal = (struct refusal_job *)(void *)job;
    struct storage_event event = {.when = wall_seconds(),
                                  .what = "refused",
                                  .account = refusal->account,
                                  .source = refusal->from};
    storage_audit(storage, &event);
}

static void refusal_done(struct storage_job *job)
{
    free(job);
}

bool server_may_audit(struct server *server)
{
    int64_t now = clock_now();
    if (now - server->audited_from > NS_PER_S) {
        server->audited = 0;
        server->audited_from = now;
    }
    return ++server->audited <= REFUSALS_PER_S;
}

void server_audit_refusal(struct server *server, const char *account, const char *from)
{
    if (!server_may_audit(server) || server->stopping)
        return;
    struct refusal_job *refusal = xcalloc(1, sizeof *refusal);
    refusal->job = (struct storage_job){.run = refusal_run, .done = refusal_done, .writes = true};
    snprintf(refusal->account, sizeof refusal->account, "%s", account);
    snprintf(refusal->from, sizeof refusal->from, "%s", from);
    storage_queue_post(server->queue, &refusal->job);
}

/* --- sources ------------------------------------------------------------------------------------------ */

static struct source *source_get(struct server *server, const uint8_t key[16])
{
    uint64_t hash = table_hash(server->seed, key, 16);
    for (struct table_node *node = table_first(&server->sources, hash); node != NULL;
         node = table_next(node)) {
        struct source *source = (struct source *)(void *)node;
        if (memcmp(source->key, key, 16) == 0)
            return source;
    }
    struct source *source = xcalloc(1, sizeof *source);
    memcpy(source->key, key, 16);
    table_add(&server->sources, &source->node, hash);
    return source;
}

/* Takes it out of the queue; its connection is the caller's. */
static void waiting_remove(struct server *server, struct waiting **at)
{
    struct waiting *w = *at;
    *at = w->next;
    if (*at == NULL)
        server->waiting_end = at;
    server->waiting_count--;
    w->source->waiting--;
}

static void waiting_refuse(struct server *server, struct waiting **at, const char *why)
{
    struct waiting *w = *at;
    waiting_remove(server, at);
    server_log_refusal(server, w->from, "%s", why);
    close(w->fd);
    server_link_ended(server, w->source);
    free(w);
}

static void waiting_start(struct server *server)
{
    struct waiting **at = &server->waiting;
    int64_t now = clock_now();
    int64_t soonest = INT64_MAX;
    if (server->starting)
        return;
    server->starting = true;
    while (*at != NULL) {
        struct waiting *w = *at;
        if (server->half_open >= LIMIT_HALF_OPEN &&
            (w->source->half_open > 0 || !sessions_make_room(server, now))) {
            at = &w->next;
            continue;
        }
        int64_t wait = 0;
        if (w->source->half_open >= LIMIT_HALF_OPEN_SOURCE ||
            (wait = knocks_take(server->knocks, w->source->key, now)) > 0) {
            soonest = wait > 0 && wait < soonest ? wait : soonest;
            at = &w->next;
            continue;
        }
        waiting_remove(server, at);
        server->half_open++;
        w->source->half_open++;
        session_start(server, tls_accept(server->loop, server->crypto, server->tls, w->fd),
                      w->source, w->from);
        free(w);
    }
    server->starting = false;
    if (soonest != INT64_MAX)
        timer_set(server->knock, soonest);
}

static void on_knock(void *arg)
{
    struct server *server = arg;
    if (!server->stopping)
        waiting_start(server);
}

/* Who waited so long has given up at the other end; who went away already is not begun with. */
static void waiting_sweep(struct server *server, int64_t now)
{
    while (server->waiting != NULL && now - server->waiting->since > LIMIT_HANDSHAKE_NS)
        waiting_refuse(server, &server->waiting, "refused: too many connections from there");
    for (struct waiting **at = &server->waiting; *at != NULL;)
        if (tls_is_gone((*at)->fd))
            waiting_refuse(server, at, "gone before its turn");
        else
            at = &(*at)->next;
    if (server->waiting != NULL)
        waiting_start(server);
}

/* The queue is full: the last one of the source that has most in it goes, if that is more than `source` has. */
static bool waiting_make_room(struct server *server, const struct source *source)
{
    struct waiting **victim = NULL;
    for (struct waiting **at = &server->waiting; *at != NULL; at = &(*at)->next)
        if (victim == NULL || (*at)->source->waiting >= (*victim)->source->waiting)
            victim = at;
    if (victim == NULL || (*victim)->source->waiting <= source->waiting)
        return false;
    waiting_refuse(server, victim, "refused: too many connections at once");
    return true;
}

void server_knock_good(struct server *server, const struct source *source, const char *account)
{
    knocks_give_back(server->knocks, source->key, account, clock_now());
}

void server_knock_bad(struct server *server, const struct source *source)
{
    knocks_fine(server->knocks, source->key, clock_now());
}

void server_handshake_ended(struct server *server, struct source *source)
{
    server->half_open--;
    source->half_open--;
    if (!server->stopping)
        waiting_start(server);
}

void server_link_ended(struct server *server, struct source *source)
{
    server->links--;
    if (--source->links == 0) {
        table_remove(&server->sources, &source->node);
        free(source);
    }
}

/* --- accounts ----------------------------------------------------------------------------------------- */

struct account_links *server_account_begins(struct server *server, const char *name)
{
    uint64_t hash = table_hash(server->seed, name, strlen(name));
    struct account_links *found = NULL;
    for (struct table_node *node = table_first(&server->accounts, hash);
         node != NULL && found == NULL; node = table_next(node))
        if (strcmp(((struct account_links *)(void *)node)->name, name) == 0)
            found = (struct account_links *)(void *)node;
    if (found == NULL) {
        found = xcalloc(1, sizeof *found);
        snprintf(found->name, sizeof found->name, "%s", name);
        table_add(&server->accounts, &found->node, hash);
    }
    if (found->links >= LIMIT_TRACKER_LINKS_ACCOUNT)
        return NULL;
    found->links++;
    return found;
}

void server_account_ends(struct server *server, struct account_links *account)
{
    if (--account->links == 0) {
        table_remove(&server->accounts, &account->node);
        free(account);
    }
}

struct session *server_adopt(struct server *server, struct stream *stream, const char *from,
                             const struct certificate_subject *subject)
{
    static const uint8_t nowhere[16];
    struct source *source = source_get(server, nowhere);
    source->links++;
    source->half_open++;
    server->links++;
    server->half_open++;
    struct session *s = session_start(server, stream, source, from);
    session_ready(s, subject);
    return s;
}

/* --- accepting ------------------------------------------------------------------------------------------ */

static void take_connection(struct server *server, int fd, const struct sockaddr_storage *address)
{
    uint8_t key[16];
    struct waiting *w = xcalloc(1, sizeof *w);
    source_key(address, key);
    source_text(address, w->from, sizeof w->from);
    struct source *source = source_get(server, key);
    source->links++;
    server->links++;
    const char *fault = NULL;
    if (server->links > LIMIT_TRACKER_LINKS || file_is_kept(fd, LIMIT_DESCRIPTORS_KEPT))
        fault = "refused: too many connections";
    else if (source->links > LIMIT_TRACKER_LINKS_SOURCE)
        fault = "refused: too many connections from there";
    else if (server->waiting_count >= LIMIT_WAITING && !waiting_make_room(server, source))
        fault = "refused: too many connections at once";
    if (fault != NULL) {
        server_log_refusal(server, w->from, "%s", fault);
        close(fd);
        free(w);
        server_link_ended(server, source);
        return;
    }
    w->fd = fd;
    w->since = clock_now();
    w->source = source;
    *server->waiting_end = w;
    server->waiting_end = &w->next;
    server->waiting_count++;
    source->waiting++;
}

/* No descriptor is left: take one connection on the reserve and close it, then rest a moment. */
static void shed(struct server *server)
{
    log_warning("out of file descriptors: %s", strerror(errno));
    close(server->reserve);
    int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    server->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
    event_del(server->accepting);
    timer_set(server->retry, ACCEPT_RETRY);
}

static void accept_again(void *arg)
{
    struct server *server = arg;
    if (!server->stopping)
        event_add(server->accepting, NULL);
}

static void on_accept(evutil_socket_t listener, short what, void *arg)
{
    struct server *server = arg;
    for (int i = 0; i < LIMIT_ACCEPT_BURST; i++) {
        struct sockaddr_storage address;
        socklen_t size = sizeof address;
        int fd =
            accept4(listener, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                shed(server);
            break;
        }
        take_connection(server, fd, &address);
    }
    waiting_start(server);
}

/* --- listening --------------------------------------------------------------------------------------------- */

static int try_listen(const struct addrinfo *at)
{
    int one = 1;
    int zero = 0;
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    if (at->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    int error = errno;
    close(fd);
    return -error;
}

static void describe_listener(struct server *server)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    char host[128] = "", port[16] = "0";
    CHECK(getsockname(server->listener, (struct sockaddr *)&address, &size) == 0);
    getnameinfo((struct sockaddr *)&address, size, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    server->port = (uint16_t)strtoul(port, NULL, 10);
    bool colons = strchr(host, ':') != NULL;
    snprintf(server->address, sizeof server->address, colons ? "[%s]:%s" : "%s:%s", host, port);
}

static bool listen_on(struct server *server, const char *host, uint16_t port, char **fault)
{
    char service[8];
    struct addrinfo *found = NULL;
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    snprintf(service, sizeof service, "%u", port);
    /* "" is all addresses: IPv6 that takes IPv4 as well, where there is IPv6. */
    int code = getaddrinfo(host[0] == '\0' ? NULL : host, service, &hints, &found);
    if (code != 0) {
        *fault = xasprintf("cannot listen on %s: %s", host, gai_strerror(code));
        return false;
    }
    int fd = -EADDRNOTAVAIL;
    for (int pass = 0; pass < 2 && fd < 0; pass++)
        for (struct addrinfo *at = found; at != NULL && fd < 0; at = at->ai_next)
            if ((at->ai_family == AF_INET6) == (pass == (host[0] == '\0' ? 0 : 1)))
                fd = try_listen(at);
    freeaddrinfo(found);
    if (fd < 0) {
        *fault = xasprintf("cannot listen on %s:%u: %s", host, port, strerror(-fd));
        return false;
    }
    server->listener = fd;
    describe_listener(server);
    return true;
}

/* --- regular work -------------------------------------------------------------------------------------------- */

static void on_sweep(void *arg)
{
    struct server *server = arg;
    timer_set(server->sweep, NS_PER_S);
    sessions_sweep(server, clock_now());
    waiting_sweep(server, clock_now());
}

struct prune_job {
    struct storage_job job;
    int64_t now;
};

static void prune_run(struct storage_job *job, struct storage *storage)
{
    struct prune_job *prune = (struct prune_job *)(void *)job;
    storage_prune(storage, prune->now - TOMBSTONE_LIFETIME);
    storage_invite_prune(storage, prune->now);
    storage_token_prune(storage, prune->now);
    storage_account_prune(storage, prune->now - LIMIT_UNVERIFIED_S);
    storage_audit_prune(storage);
}

static void prune_done(struct storage_job *job)
{
    free(job);
}

static bool tls_renew(struct server *server, char **fault)
{
    const char *why = NULL;
    struct tls_settings settings = {.policy = TLS_TRACKER,
                                    .ca = server->authority.ca,
                                    .certificate = server->authority.server,
                                    .key = server->authority.server_key,
                                    .handshake_timeout_ns = LIMIT_HANDSHAKE_NS};
    struct tls_context *tls = tls_context_new(&settings, &why);
    if (tls == NULL) {
        *fault = xasprintf("cannot set up TLS: %s", why);
        return false;
    }
    tls_context_free(server->tls);
    server->tls = tls;
    return true;
}

/* Tombstones, invites, codes, old audit rows, and the server's own certificate. */
static void on_hourly(void *arg)
{
    struct server *server = arg;
    timer_set(server->hourly, 3600 * NS_PER_S);
    struct prune_job *prune = xcalloc(1, sizeof *prune);
    prune->job = (struct storage_job){.run = prune_run, .done = prune_done, .writes = true};
    prune->now = wall_seconds();
    storage_queue_post(server->queue, &prune->job);

    bool renewed;
    char *fault = NULL;
    if (!authority_renew(&server->authority, server->dir, &renewed, &fault) ||
        (renewed && !tls_renew(server, &fault))) {
        log_error("%s", fault);
        free(fault);
    } else if (renewed) {
        log_info("the server's certificate was issued anew");
    }
}

/* --- life ---------------------------------------------------------------------------------------------------- */

/* One server for one directory. The lock goes with the process, and can be seen without taking it (place.c). */
static bool lock_directory(struct server *server, char **fault)
{
    char *path = xasprintf("%s/tracker.lock", server->dir);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    server->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (server->lock < 0)
        *fault = xasprintf("%s: %s", path, strerror(errno));
    else if (fcntl(server->lock, F_OFD_SETLK, &whole) != 0)
        *fault = xasprintf("%s is served by another p2ptracker already", server->dir);
    free(path);
    return *fault == NULL;
}

static bool open_state(struct server *server, char **fault)
{
    if (!lock_directory(server, fault))
        return false;
    if (!authority_open(&server->authority, server->dir, server->name, fault) ||
        !tls_renew(server, fault))
        return false;
    server->storage = storage_open(server->dir, STORAGE_SERVE, fault);
    if (server->storage == NULL)
        return false;
    if (server->quota != 0)
        storage_quota_set(server->storage, server->quota);
    struct rights_settings rights = {
        .dir = server->dir, .seed = server->seed, .ticket_lifetime = server->ticket_lifetime};
    server->rights = rights_open(&rights, server->storage, fault);
    if (server->rights == NULL)
        return false;
    server->signers = signers_load(server->storage, server->seed);
    swarm_set_judge(server->swarm, rights_judge, server);
    swarm_set_known(server->swarm, rights_knows);
    server->members = members_load(server->storage, server->seed);
    bool good = server->signers != NULL && server->members != NULL && announce_load(server) &&
                storage_begin(server->storage, false);
    if (good) {
        storage_generation(server->storage, server->generation);
        server->is_new = storage_is_new(server->storage);
        good = storage_commit(server->storage);
    }
    if (!good)
        *fault = xasprintf("cannot read the database in %s", server->dir);
    return good;
}

struct server *server_new(const struct server_settings *settings, char **fault)
{
    *fault = NULL;
    struct server *server = xcalloc(1, sizeof *server);
    server->dir = xstrdup(settings->dir);
    server->name = xstrdup(settings->name);
    server->registration = settings->registration;
    server->certificate_lifetime = (int64_t)settings->certificate_lifetime;
    server->ticket_lifetime = settings->ticket_lifetime == 0 ? SERVER_TICKET_LIFETIME
                                                             : (int64_t)settings->ticket_lifetime;
    server->quota = settings->quota;
    server->seed = random_u64();
    server->listener = server->reserve = server->lock = -1;
    server->waiting_end = &server->waiting;
    table_init(&server->sources);
    table_init(&server->accounts);
    server->knocks = knocks_new();
    server->spent = spent_new(LIMIT_MEMBER_ACCOUNT_NS);
    server->bans = bans_new();
    server->swarm = swarm_new(random_u64());
    server->throttle = throttle_new(random_u64());
    server->mails = throttle_new(random_u64());
    server->verify_email = settings->verify_email;
    if (!open_state(server, fault) || !listen_on(server, settings->host, settings->port, fault)) {
        server_free(server);
        return NULL;
    }
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    server->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
    server->loop = loop_new("tracker");
    loop_set_owner(server->loop, server);
    server->crypto = workers_new_meek("crypto", 0);
    server->passwords = workers_new_meek("password", cores < 3 ? 1 : (unsigned)cores / 2);
    server->queue = storage_queue_new(server->storage, server->loop);
    server->accepting = event_new(loop_base(server->loop), server->listener, EV_READ | EV_PERSIST,
                                  on_accept, server);
    CHECK(server->accepting != NULL);
    event_add(server->accepting, NULL);
    server->retry = timer_new(server->loop, accept_again, server);
    server->knock = timer_new(server->loop, on_knock, server);
    server->sweep = timer_new(server->loop, on_sweep, server);
    server->hourly = timer_new(server->loop, on_hourly, server);
    timer_set(server->sweep, NS_PER_S);
    timer_set(server->hourly, 60 * NS_PER_S);
    feed_start(server);
    announce_start(server);
    if (settings->mail.server != NULL || settings->mail.command != NULL)
        server->mailer = mailer_new(server, &settings->mail);
    return server;
}

const char *server_address(const struct server *server)
{
    return server->address;
}

uint16_t server_port(const struct server *server)
{
    return server->port;
}

bool server_is_new(const struct server *server)
{
    return server->is_new;
}

static void on_signal(evutil_socket_t number, short what, void *arg)
{
    server_stop(arg);
}

void server_stop_on_signals(struct server *server)
{
    struct event_base *base = loop_base(server->loop);
    server->on_term = evsignal_new(base, SIGTERM, on_signal, server);
    server->on_int = evsignal_new(base, SIGINT, on_signal, server);
    CHECK(server->on_term != NULL && server->on_int != NULL);
    event_add(server->on_term, NULL);
    event_add(server->on_int, NULL);
}

void server_stop(struct server *server)
{
    loop_stop(server->loop);
}

void server_run(struct server *server)
{
    loop_run(server->loop);
}

static void waiting_drop(struct server *server)
{
    while (server->waiting != NULL)
        waiting_refuse(server, &server->waiting, "the tracker is stopping");
}

/* Nobody listens any more; what was accepted by a thread is brought home, then written. */
static void stop_threads(struct server *server)
{
    server->stopping = true;
    event_free(server->accepting);
    if (server->on_term != NULL)
        event_free(server->on_term);
    if (server->on_int != NULL)
        event_free(server->on_int);
    while (server->sessions != NULL)
        session_end(server->sessions, "the tracker is stopping");
    waiting_drop(server);
    accounts_stop(server);
    mailer_stop(server->mailer);
    workers_free(server->passwords);
    workers_free(server->crypto);
    server->passwords = server->crypto = NULL;
    storage_queue_free(server->queue);
    server->queue = NULL;
    feed_stop(server);
    announce_stop(server);
    timer_free(server->retry);
    timer_free(server->knock);
    timer_free(server->sweep);
    timer_free(server->hourly);
    loop_free(server->loop);
    announce_finish(server);
}

void server_free(struct server *server)
{
    if (server == NULL)
        return;
    if (server->loop != NULL)
        stop_threads(server);
    if (server->listener >= 0)
        close(server->listener);
    if (server->reserve >= 0)
        close(server->reserve);
    if (server->lock >= 0)
        close(server->lock);
    tls_context_free(server->tls);
    authority_close(&server->authority);
    members_free(server->members);
    rights_close(server->rights);
    signers_free(server->signers);
    swarm_free(server->swarm);
    throttle_free(server->throttle);
    throttle_free(server->mails);
    mailer_free(server->mailer);
    storage_close(server->storage);
    table_clear(&server->sources);
    table_clear(&server->accounts);
    knocks_free(server->knocks);
    spent_free(server->spent);
    bans_free(server->bans);
    free(server->dir);
    free(server->name);
    free(server);
}
