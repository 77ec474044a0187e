/* The table of requests: ids, deadlines, and readers that are gone.
 *
 * Two lists hold it in the order of deadlines: all in one list have the same patience, so appending keeps the order. A
 * list head that is due is answered EIO. Who asked is looked at when the kernel sends INTERRUPT and, four times a second,
 * for all that wait longer (reader.c): a reader that is gone, or that has a signal waiting which asks it to stop, is let
 * go with EINTR. INTERRUPT comes from libfuse on any thread and with its lock held, so it is turned into mail with the
 * request's number; a number that is not in the table any more means nothing. */
#include "fs/client_internal.h"

#include "base/check.h"
#include "base/mem.h"
#include "fs/fs.h"
#include "fs/reader.h"

#include <errno.h>

#define SWEEP_NS     (250 * NS_PER_MS) /* between looks at who waits */
#define SWEEP_AGE_NS (100 * NS_PER_MS) /* younger requests are not looked at */
#define SWEEP_MAX    512               /* threads looked at in one sweep; each costs 20 us */

struct request *client_find(struct client *client, uint32_t id)
{
    struct request *r = client->table[id % CLIENT_BUCKETS];

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

void client_set_deadline(struct request *r, int64_t now, int64_t wait)
{
    r->deadline = wait > INT64_MAX - now ? INT64_MAX : now + wait;
}

void client_arm_deadline(struct client *client)
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
    bucket = &client->table[r->id % CLIENT_BUCKETS];
    r->next_by_id = *bucket;
    *bucket = r;
    r->in_table = true;
    client->count++;
    r->since = clock_now();
    client_set_deadline(r, r->since, patience(client, r));
    r->by_deadline = &client->lists[r->patience];
    TAILQ_INSERT_TAIL(r->by_deadline, r, deadline_link);
    if (TAILQ_FIRST(r->by_deadline) == r)
        client_arm_deadline(client);
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
    struct request **at = &client->table[r->id % CLIENT_BUCKETS];

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

void client_on_deadline(void *arg)
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
    client_arm_deadline(client);
}

/* Lets go what waits for threads that are gone. Sorted by age, so the first young one ends it. */
void client_on_sweep(void *arg)
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

/* Answers all that `which` picks. Answering one may end others: so each search starts anew. */
void client_finish_all(struct client *client, bool (*which)(const struct request *))
{
    for (unsigned i = 0; i < CLIENT_BUCKETS; i++) {
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
