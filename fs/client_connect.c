/* Getting to p2pd, again and again: connecting, starting it when it is not there, and what becomes of requests when the
 * connection is gone (they stay, to be sent again; see client.c).
 *
 * Starting takes up to half a minute and blocks: it is done by a thread that nobody joins. It shares `struct starter`
 * with the client, and whoever lets go of it last frees it, so the mount can end meanwhile. */
#include "fs/client_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "base/stream.h"
#include "base/thread.h"
#include "fs/fs.h"
#include "proto/limits.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RETRY_NS      (50 * NS_PER_MS)  /* between attempts to connect */
#define RETRY_SLOW_NS (250 * NS_PER_MS) /* when p2pd was stopped on purpose */
#define RESTART_NS    (250 * NS_PER_MS) /* time for others (systemd) to start it again */
#define START_MAX_NS  (30 * NS_PER_S)

static void try_later(struct client *client, int64_t delay)
{
    if (!client->stopping)
        timer_set(client->connect, delay);
}

/* Its reader gave up; only the daemon's answer was of interest. */
static bool is_forgotten(const struct request *r)
{
    return r->by_deadline == NULL;
}

void client_go_away(struct client *client)
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
                client_set_deadline(r, now, client->fs->wait + GRACE_NS);
            if (r->sent) {
                r->again = true;
                r->sent = false;
            }
        }
    }
    client_finish_all(client, is_forgotten); /* nothing will come for them */
    client_arm_deadline(client);
    try_later(client, RETRY_NS);
}

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
    client->channel = channel_new(client->loop, stream, &client_channel_events, client);
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

void client_on_connect(void *arg)
{
    struct client *client = arg;
    int result;

    if (client->stopping)
        return;
    if (client->state == CLIENT_GREETING || client->state == CLIENT_ATTACHING) {
        log_warning("p2pd does not answer");
        client_go_away(client);
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

void client_drop_starter(struct client *client)
{
    starter_release(client->starter);
    client->starter = NULL;
}
