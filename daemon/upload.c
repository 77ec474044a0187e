/* Serving: the thread, the roster of links, what is told to all of them, status.
 *
 * Owns struct upload and all that hangs on it. Leaves connections that have not said Hello to
 * upload_accept.c and each link to upload_link.c. Thread: "upload"; the exported functions post
 * mail.
 *
 * In a closed group nobody is choked for good; what is answered in which order, and within which rate limits, the choker
 * says (choker.h). */
#include "daemon/upload_internal.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/tls.h"
#include "daemon/choker.h"
#include "daemon/credentials.h"
#include "daemon/limits.h"
#include "daemon/local.h"
#include "daemon/revocations.h"
#include "daemon/store.h"
#include "proto/bans.h"

#define TICK_NS     NS_PER_S
#define CROWD       4 /* links with bulk on its way at the same time */
#define CROWD_LASTS (5 * NS_PER_S)
#define SOCKET_LOOK (10 * NS_PER_MS) /* how often it is looked what sockets have got rid of */
/* How long the end waits for links to take their farewell. */
#define STOP_PATIENCE_NS (NS_PER_S / 4)

/* --- buffers
 * ------------------------------------------------------------------------------------------------------
 */

struct upload_buffer *upload_buffer_get(struct upload *u, uint32_t blocks)
{
    unsigned size = 0;
    struct upload_buffer *buffer;

    while (1u << size < blocks)
        size++;
    CHECK(size < UPLOAD_BUFFER_SIZES);
    buffer = u->spare[size];
    if (buffer != NULL) {
        u->spare[size] = buffer->next;
        u->spare_blocks -= 1u << size;
    } else {
        buffer = xmalloc(sizeof *buffer + ((size_t)BLOCK_SIZE << size));
        buffer->upload = u;
        buffer->size = size;
    }
    buffer->next = NULL;
    buffer->link = NULL;
    buffer->users = 0;
    return buffer;
}

void upload_buffer_put(struct upload_buffer *buffer)
{
    struct upload *u = buffer->upload;

    /* What is kept for later and what is in use share one pool. */
    size_t used = u->queued.lent + u->reading + (size_t)u->spare_blocks * BLOCK_SIZE;

    if (u->spare_blocks + (1u << buffer->size) > UPLOAD_SPARE_BLOCKS || used > LIMIT_BLOCKS_POOL) {
        free(buffer);
        return;
    }
    buffer->next = u->spare[buffer->size];
    u->spare[buffer->size] = buffer;
    u->spare_blocks += 1u << buffer->size;
}

/* --- what goes out next
 * ---------------------------------------------------------------------------------------------------
 */

/* Frames that are released, and rejects, may come back here from within. */
void upload_pump(struct upload *u)
{
    struct choker_turn turn;
    int64_t now, wake;

    if (u->pumping || u->stopping)
        return;
    u->pumping = true;
    now = clock_now();
    if (u->limits_seen != limits_version(u->daemon->limits)) {
        u->limits_seen = limits_version(u->daemon->limits);
        for (struct serve_link *link = u->links; link != NULL; link = serve_link_next(link))
            serve_link_limits(link, now);
    }
    u->pumped_at = now;
    u->socket_waits = false;
    if (u->delay_heard)
        choker_line(u->choker, u->own_delay, now);
    u->delay_heard = false;
    __atomic_store_n(&u->daemon->line_up, choker_line_rate(u->choker), __ATOMIC_RELAXED);
    choker_limit(u->choker, __atomic_load_n(&u->daemon->settings.rate_up, __ATOMIC_RELAXED), now);
    while (choker_next(u->choker, now, &turn))
        serve_link_start(turn.owner, turn.run, turn.urgency == URGENT_DEMAND);
    if (choker_begun(u->choker) >= CROWD)
        u->crowd_until = now + CROWD_LASTS;
    wake = choker_wake(u->choker);
    if (wake > now + SOCKET_LOOK && wake != INT64_MAX && u->socket_waits)
        wake = now + SOCKET_LOOK;
    if (wake != INT64_MAX && (!timer_pending(u->refill) || wake < u->refill_at)) {
        u->refill_at = wake;
        timer_set(u->refill, wake > now ? wake - now : 0);
    }
    u->pumping = false;
}

static void refill_due(void *arg)
{
    upload_pump(arg);
}

static const struct choker_actions choker_actions = {serve_link_pending, serve_link_room,
                                                     serve_link_suggest};

/* --- who may come
 * -------------------------------------------------------------------------------------------------------
 */

const char *upload_refuses(struct upload *u, const struct certificate_subject *subject,
                           Peer__Farewell *farewell)
{
    struct serve_link *link;
    unsigned of_device = 0, of_account = 0;
    static char banned[BANS_WHY_SIZE + 32];
    struct ban ban;

    *farewell = PEER__FAREWELL__FAREWELL_UNKNOWN;
    if (u->credentials == NULL)
        return "nobody is logged in here";
    if (memcmp(subject->device, u->credentials->device, DEVICE_ID_SIZE) == 0)
        return "it is this very device";
    *farewell = PEER__FAREWELL__FAREWELL_REVOKED;
    if (revocations_void(u->daemon->revocations, subject))
        return "its certificate has been revoked";
    *farewell = PEER__FAREWELL__FAREWELL_BANNED;
    if (bans_find(u->daemon->bans, subject->device, clock_now(), &ban)) {
        snprintf(banned, sizeof banned, "banned: the device %s", ban.why);
        return banned;
    }
    *farewell = PEER__FAREWELL__FAREWELL_BUSY;
    if (u->link_count >= LIMIT_PEER_LINKS)
        return "too many links";
    for (link = u->links; link != NULL; link = serve_link_next(link)) {
        of_device += memcmp(serve_link_remote(link)->device, subject->device, DEVICE_ID_SIZE) == 0;
        of_account += strcmp(serve_link_remote(link)->account, subject->account) == 0;
    }
    if (of_account >= LIMIT_PEER_LINKS_ACCOUNT)
        return "too many links of one account";
    return of_device >= LIMIT_PEER_LINKS_DEVICE ? "too many links of one device" : NULL;
}

static void close_links(struct upload *u, const uint8_t *device, int farewell, const char *why)
{
    struct serve_link *link = u->links, *next;

    for (; link != NULL; link = next) {
        next = serve_link_next(link);
        if (device == NULL || memcmp(serve_link_remote(link)->device, device, DEVICE_ID_SIZE) == 0)
            serve_link_close(link, farewell, why);
    }
}

void upload_strike(struct upload *u, const struct remote *remote, const char *what)
{
    char why[BANS_WHY_SIZE];

    snprintf(why, sizeof why, "broke the protocol: %s", what);
    if (!bans_strike(u->daemon->bans, remote->device, remote->account, why, clock_now()))
        return;
    log_warning("a device of %s at %s is banned for an hour: it %s", remote->account,
                remote->address, why);
    close_links(u, remote->device, PEER__FAREWELL__FAREWELL_BANNED, why);
}

/* --- mail
 * ------------------------------------------------------------------------------------------------------------------
 */

struct upload_mail {
    struct mail mail;
    struct credentials *credentials;
    struct content *content;
    uint8_t device[DEVICE_ID_SIZE];
    char **addresses;
    void *cookie;
};

static struct upload_mail *mail_new(void (*deliver)(struct mail *, void *))
{
    struct upload_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver;
    return mail;
}

static void deliver_credentials(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct upload_mail *mail = (struct upload_mail *)raw;
    bool same = u->credentials != NULL && mail->credentials != NULL &&
                memcmp(u->credentials->url.ca, mail->credentials->url.ca,
                       sizeof u->credentials->url.ca) == 0;

    if (!same && !u->stopping) {
        greeting_close_all(u);
        close_links(u, NULL, PEER__FAREWELL__FAREWELL_STOPPING, "logged out");
    }
    credentials_release(u->credentials);
    u->credentials = mail->credentials;
    free(mail);
}

void upload_credentials(struct upload *u, struct credentials *credentials)
{
    struct upload_mail *mail = mail_new(deliver_credentials);

    mail->credentials = credentials;
    loop_post(u->loop, &mail->mail);
}

static void deliver_revoked(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct upload_mail *mail = (struct upload_mail *)raw;

    if (!u->stopping)
        close_links(u, mail->device, PEER__FAREWELL__FAREWELL_REVOKED,
                    "the device has been revoked");
    free(mail);
}

void upload_revoked(struct upload *u, const uint8_t device[16])
{
    struct upload_mail *mail = mail_new(deliver_revoked);

    memcpy(mail->device, device, DEVICE_ID_SIZE);
    loop_post(u->loop, &mail->mail);
}

static void deliver_holding(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct upload_mail *mail = (struct upload_mail *)raw;

    if (!u->stopping)
        serve_holding_changed(u, mail->content);
    content_release(mail->content);
    free(mail);
}

void upload_holding_changed(struct upload *u, struct content *content)
{
    struct upload_mail *mail = mail_new(deliver_holding);

    mail->content = content_share(content);
    loop_post(u->loop, &mail->mail);
}

static void deliver_dial_back(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct upload_mail *mail = (struct upload_mail *)raw;

    if (u->credentials != NULL && !u->stopping) {
        upload_dial(u, mail->device, mail->addresses);
    } else {
        for (size_t i = 0; mail->addresses[i] != NULL; i++)
            free(mail->addresses[i]);
        free(mail->addresses);
    }
    free(mail);
}

void upload_dial_back(struct upload *u, const uint8_t device[16], char **addresses)
{
    struct upload_mail *mail = mail_new(deliver_dial_back);

    memcpy(mail->device, device, DEVICE_ID_SIZE);
    mail->addresses = addresses;
    loop_post(u->loop, &mail->mail);
}

/* --- status
 * ------------------------------------------------------------------------------------------------------------------
 */

struct file_sum {
    struct upload_file_status status; /* begins with the root */
    UT_hash_handle hh;
};

struct file_sums {
    const struct choker *choker;
    struct file_sum *table;
};

static void add_file(void *arg, const struct content *content, uint64_t rate)
{
    struct file_sums *sums = arg;
    struct file_sum *sum;

    HASH_FIND(hh, sums->table, content_root(content), HASH_SIZE, sum);
    if (sum == NULL) {
        struct choker_spent spent = choker_spent(sums->choker, content);

        sum = xcalloc(1, sizeof *sum);
        memcpy(sum->status.root, content_root(content), HASH_SIZE);
        sum->status.sent = spent.sent * BLOCK_SIZE;
        sum->status.sent_until_out = spent.until_out * BLOCK_SIZE;
        HASH_ADD(hh, sums->table, status.root, HASH_SIZE, sum);
    }
    sum->status.rate += rate;
    sum->status.links++;
}

static void deliver_ask_status(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct upload_mail *mail = (struct upload_mail *)raw;
    struct upload_status *status = xcalloc(1, sizeof *status);
    struct file_sums sums = {.choker = u->choker};
    struct file_sum *sum, *next;

    status->cookie = mail->cookie;
    status->rate = u->rate;
    status->total = u->total;
    status->links = xcalloc(u->link_count + 1, sizeof *status->links);
    for (struct serve_link *link = u->stopping ? NULL : u->links; link != NULL;
         link = serve_link_next(link)) {
        serve_link_status(link, &status->links[status->link_count++]);
        serve_link_files(link, add_file, &sums);
    }
    status->files = xcalloc(HASH_COUNT(sums.table) + 1, sizeof *status->files);
    HASH_ITER(hh, sums.table, sum, next) {
        status->files[status->file_count++] = sum->status;
        HASH_DEL(sums.table, sum);
        free(sum);
    }
    local_upload_status(u->daemon->local, status);
    free(mail);
}

static void deliver_limits(struct mail *mail, void *owner)
{
    free(mail);
    upload_pump(owner);
}

void upload_limits_changed(struct upload *u)
{
    struct mail *mail = xcalloc(1, sizeof *mail);

    mail->deliver = deliver_limits;
    loop_post(u->loop, mail);
}

void upload_ask_status(struct upload *u, void *cookie)
{
    struct upload_mail *mail = mail_new(deliver_ask_status);

    mail->cookie = cookie;
    loop_post(u->loop, &mail->mail);
}

void upload_status_free(struct upload_status *status)
{
    if (status == NULL)
        return;
    free(status->links);
    free(status->files);
    free(status);
}

/* --- life
 * ----------------------------------------------------------------------------------------------------------------------
 */

static void on_held(void *arg)
{
    struct upload *u = arg;
    bool any = false;

    for (struct serve_link *link = u->links; link != NULL; link = serve_link_next(link))
        any |= serve_link_held(link);
    if (any)
        timer_set(u->held, UPLOAD_HELD_NS);
}

static void on_tick(void *arg)
{
    struct upload *u = arg;
    struct serve_link *link = u->links, *next;
    int64_t now = clock_now();

    u->rate = (u->rate * 3 + (u->total - u->rate_total)) / 4;
    u->rate_total = u->total;
    for (; link != NULL; link = next) {
        next = serve_link_next(link);
        serve_link_tick(link, now);
    }
    timer_set(u->tick, TICK_NS);
}

static void stop_due(void *arg)
{
    loop_stop(((struct upload *)arg)->loop);
}

void upload_link_gone(struct upload *u)
{
    if (u->stopping && u->links == NULL && timer_pending(u->stop_timer))
        timer_set(u->stop_timer, 0);
}

struct upload *upload_new(struct daemon *daemon, const char **fault)
{
    struct upload *u = xcalloc(1, sizeof *u);

    u->daemon = daemon;
    u->knocks = knocks_new();
    u->spent = spent_new(LIMIT_PEER_ACCOUNT_NS);
    u->loop = loop_new("upload");
    loop_set_owner(u->loop, u);
    u->listener = listener_new(u, daemon->home, daemon->settings.listen, fault);
    if (u->listener == NULL) {
        loop_free(u->loop);
        knocks_free(u->knocks);
        spent_free(u->spent);
        free(u);
        return NULL;
    }
    u->tick = timer_new(u->loop, on_tick, u);
    u->held = timer_new(u->loop, on_held, u);
    u->refill = timer_new(u->loop, refill_due, u);
    u->stop_timer = timer_new(u->loop, stop_due, u);
    u->choker = choker_new(&choker_actions, clock_now());
    return u;
}

uint16_t upload_port(const struct upload *u)
{
    return listener_port(u->listener);
}

static void deliver_start(struct mail *mail, void *owner)
{
    struct upload *u = owner;

    free(mail);
    listener_start(u->listener);
    timer_set(u->tick, TICK_NS);
}

void upload_start(struct upload *u)
{
    struct mail *mail = xcalloc(1, sizeof *mail);

    mail->deliver = deliver_start;
    loop_post(u->loop, mail);
    loop_start(u->loop);
}

/* The last words of the links may take a moment. */
static void deliver_stop(struct mail *mail, void *owner)
{
    struct upload *u = owner;

    free(mail);
    u->stopping = true;
    listener_stop(u->listener);
    greeting_close_all(u);
    close_links(u, NULL, PEER__FAREWELL__FAREWELL_STOPPING, "p2pd is stopping");
    timer_set(u->stop_timer, u->links == NULL ? 0 : STOP_PATIENCE_NS);
}

void upload_stop(struct upload *u)
{
    struct mail *mail = xcalloc(1, sizeof *mail);

    mail->deliver = deliver_stop;
    loop_post(u->loop, mail);
    loop_join(u->loop);
    while (u->links != NULL)
        serve_link_free(u->links);
}

void upload_free(struct upload *u)
{
    listener_free(u->listener);
    timer_free(u->tick);
    timer_free(u->held);
    timer_free(u->refill);
    timer_free(u->stop_timer);
    loop_free(u->loop);
    for (unsigned size = 0; size < UPLOAD_BUFFER_SIZES; size++)
        while (u->spare[size] != NULL) {
            struct upload_buffer *buffer = u->spare[size];
            u->spare[size] = buffer->next;
            free(buffer);
        }
    upload_rights_free(u);
    choker_free(u->choker);
    credentials_release(u->credentials);
    knocks_free(u->knocks);
    spent_free(u->spent);
    free(u);
}
