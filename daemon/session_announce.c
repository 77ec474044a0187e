/* What this device holds, and where it can be reached, told to the tracker.
 *
 * Owns the table of holdings: one row for each content of which anything is here, with the piece
 * bitmap that the tracker was told last (only for incomplete ones: a complete content needs a
 * flag). The store's change hook marks rows; the difference goes out at once, but half a second after the
 * one before, so that a download of thousands of pieces costs the tracker two small messages a second, and
 * who has just put a file in is asked for it as soon as its name is seen. Leaves what is
 * held to store.h. Thread: "tracker"; piece bitmaps of contents that are not open are read on a
 * worker.
 *
 *   after `up`: Announce(from_scratch, addresses), then all rows in batches; then differences
 *
 * Addresses are looked at again when the kernel says that they changed, as laptops move between networks; and every ten
 * seconds, if it cannot. */
#include "daemon/session_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/swarm_url.h"
#include "base/workers.h"
#include "daemon/addresses.h"
#include "daemon/store.h"
#include "proto/limits.h"

#define ANNOUNCE_DELAY_NS  (NS_PER_S / 2)
#define ANNOUNCE_FIRST_NS  (10 * NS_PER_MS) /* what changes together is told together */
#define ADDRESSES_LOOK_NS  (10 * NS_PER_S)
#define ANNOUNCES_AT_ONCE  4            /* unanswered: the tracker sets the pace */
#define LOADS_AT_ONCE      16           /* contents that workers open */
#define ANNOUNCE_BYTES_MAX (256u << 10) /* of bitfields in one message */

struct holding {
    uint8_t root[HASH_SIZE];
    uint64_t size;
    struct content *content; /* while it changes; NULL for one that has been told whole */
    uint8_t *told;           /* pieces that the tracker knows of, NULL: none */
    bool complete, told_complete;
    bool marked;  /* to be told: in the list */
    bool loading; /* a worker opens the content; then it is not in the list */
    bool dropped;
    unsigned releasing;          /* parts of it are being deleted: nothing is told meanwhile */
    struct holding *prev, *next; /* in session->marked */
    UT_hash_handle hh;
};

static struct holding *holding_of(struct session *s, const uint8_t *root, uint64_t size)
{
    struct holding *h;

    HASH_FIND(hh, s->holdings, root, HASH_SIZE, h);
    if (h == NULL) {
        h = xcalloc(1, sizeof *h);
        memcpy(h->root, root, HASH_SIZE);
        h->size = size;
        HASH_ADD(hh, s->holdings, root, HASH_SIZE, h);
    }
    return h;
}

static void holding_free(struct session *s, struct holding *h)
{
    if (h->marked)
        DL_DELETE(s->marked, h);
    HASH_DEL(s->holdings, h);
    content_release(h->content);
    free(h->told);
    free(h);
}

static void mark(struct session *s, struct holding *h)
{
    if (h->releasing > 0)
        return;
    if (!h->marked && !h->loading)
        DL_APPEND(s->marked, h);
    h->marked = !h->loading;
    if (tracker_link_is_up(s->link) && !timer_pending(s->announce_timer)) {
        int64_t wait = s->announced_at + ANNOUNCE_DELAY_NS - clock_now();

        timer_set(s->announce_timer, wait > ANNOUNCE_FIRST_NS ? wait : ANNOUNCE_FIRST_NS);
    }
}

/* --- one row, as a message
 * ---------------------------------------------------------------------------------- */

/* Fills `message`, whose bitfield and list are malloc'ed (row_free). Returns the bytes it takes,
 * about; 0 if there is nothing to tell. The content is let go: whoever changes it brings it along. */
static size_t row_fill(struct holding *h, Tracker__Holding *message)
{
    tracker__holding__init(message);
    message->root.data = h->root;
    message->root.len = HASH_SIZE;
    message->size = h->size;
    if (h->dropped) {
        message->dropped = true;
        return 64;
    }
    if (h->content != NULL && content_complete(h->content))
        h->complete = true;
    if (h->complete) {
        if (h->told_complete)
            return 0;
        message->complete = true;
        h->told_complete = true;
        free(h->told);
        h->told = NULL;
        content_release(h->content);
        h->content = NULL;
        return 64;
    }
    uint32_t pieces = content_geometry(h->content)->pieces;
    size_t bytes = bitmap_bytes(pieces);
    uint8_t *now = xmalloc(bytes);
    content_pieces(h->content, now);
    uint32_t *added = xcalloc(pieces + 1, sizeof *added);
    bool lost = h->told == NULL;
    for (uint32_t i = 0; i < pieces && !lost; i++) {
        bool had = bitmap_test(h->told, i), has = bitmap_test(now, i);
        lost = had && !has;
        if (has && !had)
            added[message->n_added++] = i;
    }
    content_release(h->content);
    h->content = NULL;
    if (!lost && message->n_added == 0) {
        free(added);
        free(now);
        return 0;
    }
    if (!lost && message->n_added * 2 < bytes + 16) {
        message->added = added;
        free(h->told);
        h->told = now;
        return 64 + 5 * message->n_added;
    }
    free(added);
    message->n_added = 0;
    message->bitfield.data = xmalloc(bytes);
    message->bitfield.len = bytes;
    bitmap_to_wire(message->bitfield.data, now, bytes);
    free(h->told);
    h->told = now;
    return 64 + bytes;
}

static void row_free(Tracker__Holding *message)
{
    free(message->bitfield.data);
    free(message->added);
}

/* --- opening what is not open
 * --------------------------------------------------------------------------------- */

struct load {
    struct job job;
    struct mail mail;
    struct session *session;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    struct content *content;
};

static void loaded(struct mail *mail, void *owner)
{
    struct load *load = (struct load *)(void *)((char *)mail - offsetof(struct load, mail));
    struct session *s = owner;
    struct holding *h;

    s->loads_under_way--;
    HASH_FIND(hh, s->holdings, load->root, HASH_SIZE, h);
    if (h == NULL || s->stopping) {
        content_release(load->content);
    } else if (load->content == NULL) {
        holding_free(s, h); /* it could not be opened: the store has said why */
    } else {
        content_release(h->content);
        h->content = load->content;
        h->loading = false;
        mark(s, h);
    }
    if (s->marked != NULL && tracker_link_is_up(s->link) && !timer_pending(s->announce_timer))
        timer_set(s->announce_timer, 0);
    free(load);
}

static void load_run(struct job *job)
{
    struct load *load = (struct load *)(void *)job;
    int error;

    load->content = store_get(load->session->daemon->store, load->root, load->size, false, &error);
    loop_post(load->session->loop, &load->mail);
}

static void load_start(struct session *s, struct holding *h)
{
    struct load *load = xcalloc(1, sizeof *load);

    DL_DELETE(s->marked, h);
    h->marked = false;
    h->loading = true;
    s->loads_under_way++;
    load->job.run = load_run;
    load->mail.deliver = loaded;
    load->session = s;
    memcpy(load->root, h->root, HASH_SIZE);
    load->size = h->size;
    workers_post(s->daemon->workers, &load->job, false);
}

/* --- announcing
 * -------------------------------------------------------------------------------------------------
 */

static void announce_answered(void *arg, const struct tracker_answer *answer)
{
    struct session *s = arg;

    if (answer->lost != NULL)
        return; /* all is told again after the next connect */
    s->announces_under_way--;
    if (answer->fault != NULL)
        log_warning("the tracker does not take an announce: %s", answer->fault->text);
    if (s->marked != NULL && !timer_pending(s->announce_timer))
        timer_set(s->announce_timer, 0);
}

static void send_announce(struct session *s, Tracker__Announce *announce)
{
    s->announces_under_way++;
    s->announced_at = clock_now();
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_ANNOUNCE, &announce->base,
                         announce_answered, s);
}

/* Sends one batch of marked rows. True if some are left that could go now. */
static bool announce_batch(struct session *s)
{
    Tracker__Announce announce = TRACKER__ANNOUNCE__INIT;
    Tracker__Holding *rows = xcalloc(LIMIT_ANNOUNCE_FILES, sizeof *rows);
    Tracker__Holding **list = xcalloc(LIMIT_ANNOUNCE_FILES, sizeof *list);
    uint8_t(*roots)[HASH_SIZE] = xcalloc(LIMIT_ANNOUNCE_FILES, HASH_SIZE);
    struct holding *h, *next;
    size_t bytes = 0, size;
    bool left = false;

    DL_FOREACH_SAFE(s->marked, h, next) {
        if (announce.n_holdings == LIMIT_ANNOUNCE_FILES || bytes > ANNOUNCE_BYTES_MAX) {
            left = true;
            break;
        }
        if (!h->dropped && !h->complete && h->content == NULL) {
            if (s->loads_under_way == LOADS_AT_ONCE)
                continue;
            load_start(s, h);
            continue;
        }
        Tracker__Holding *row = &rows[announce.n_holdings];
        if ((size = row_fill(h, row)) > 0) {
            memcpy(roots[announce.n_holdings], h->root, HASH_SIZE); /* h may go before it is sent */
            row->root.data = roots[announce.n_holdings];
            list[announce.n_holdings++] = row;
            bytes += size;
        }
        DL_DELETE(s->marked, h);
        h->marked = false;
        if (h->dropped)
            holding_free(s, h);
    }
    announce.holdings = list;
    if (announce.n_holdings > 0)
        send_announce(s, &announce);
    for (size_t i = 0; i < announce.n_holdings; i++)
        row_free(&rows[i]);
    free(rows);
    free(list);
    free(roots);
    return left;
}

static void announce_due(void *arg)
{
    struct session *s = arg;

    if (!tracker_link_is_up(s->link))
        return;
    while (s->announces_under_way < ANNOUNCES_AT_ONCE && announce_batch(s))
        ;
}

/* It is not what was announced: what is here a worker finds out. */
static void take_back(struct session *s, struct holding *h, uint64_t size)
{
    Tracker__Announce announce = TRACKER__ANNOUNCE__INIT;
    Tracker__Holding row = TRACKER__HOLDING__INIT, *list = &row;

    row.root.data = h->root;
    row.root.len = HASH_SIZE;
    row.size = h->size;
    row.dropped = true;
    announce.holdings = &list;
    announce.n_holdings = 1;
    if (tracker_link_is_up(s->link))
        send_announce(s, &announce);
    h->size = size;
    h->complete = h->told_complete = false;
    free(h->told);
    h->told = NULL;
    mark(s, h);
}

void session_announce_wanted(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size)
{
    struct holding *h;

    HASH_FIND(hh, s->holdings, root, HASH_SIZE, h);
    if (h == NULL || h->dropped || s->stopping)
        return;
    /* The size of a complete content was its file's until now, which may have been cut. */
    if (h->size != size || (h->complete && h->content == NULL))
        take_back(s, h, size);
    else if (h->marked)
        announce_due(s);
}

/* --- addresses
 * ----------------------------------------------------------------------------------------------------
 */

static bool usable(const struct ifaddrs *at, bool loopback)
{
    if (at->ifa_addr == NULL || !(at->ifa_flags & IFF_UP) ||
        !!(at->ifa_flags & IFF_LOOPBACK) != loopback)
        return false;
    if (at->ifa_addr->sa_family == AF_INET)
        return true;
    /* A link-local address means nothing on another link. */
    return at->ifa_addr->sa_family == AF_INET6 &&
           !IN6_IS_ADDR_LINKLOCAL(
               &((const struct sockaddr_in6 *)(const void *)at->ifa_addr)->sin6_addr);
}

static char *address_text(const struct sockaddr *address, uint16_t port)
{
    char text[INET6_ADDRSTRLEN] = "";

    if (address->sa_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)address)->sin_addr, text,
                  sizeof text);
        return xasprintf("%s:%u", text, port);
    }
    inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, text,
              sizeof text);
    return xasprintf("[%s]:%u", text, port);
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
           strncmp(host, "::ffff:127.", 11) == 0;
}

/* This machine's addresses, at most LIMIT_ADDRESSES, malloc'ed. Loopback ones only if the tracker
 * is on this machine too: then they come first, being nearest. With a listener on one address only
 * that one is told. */
static size_t gather_addresses(struct session *s, const char *seen_as, char **list)
{
    const struct daemon_settings *settings = &s->daemon->settings;
    char host[SWARM_HOST_MAX + 1] = "";
    uint16_t port = s->port;
    size_t count = 0;
    struct ifaddrs *all = NULL;

    if (settings->announce != NULL && settings->announce[0] != '\0')
        list[count++] = xstrdup(settings->announce);
    if (settings->listen != NULL && host_port_parse(settings->listen, port, host, &port) &&
        host[0] != '\0' && strcmp(host, "0.0.0.0") != 0 && strcmp(host, "::") != 0) {
        list[count++] = xasprintf(strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host, s->port);
        return count;
    }
    if (getifaddrs(&all) != 0)
        return count;
    for (int loopback = 1; loopback >= 0; loopback--) {
        if (loopback && !is_loopback(seen_as))
            continue;
        for (struct ifaddrs *at = all; at != NULL && count < LIMIT_ADDRESSES; at = at->ifa_next) {
            if (usable(at, loopback))
                list[count++] = address_text(at->ifa_addr, s->port);
        }
    }
    freeifaddrs(all);
    return count;
}

static void announce_addresses(struct session *s, const char *seen_as, bool from_scratch)
{
    Tracker__Announce announce = TRACKER__ANNOUNCE__INIT;
    char *list[LIMIT_ADDRESSES];
    char *joined = xstrdup("");

    announce.n_addresses = s->port == 0 ? 0 : gather_addresses(s, seen_as, list);
    announce.addresses = list;
    announce.addresses_set = true;
    announce.from_scratch = from_scratch;
    for (size_t i = 0; i < announce.n_addresses; i++) {
        char *longer = xasprintf("%s %s", joined, list[i]);
        free(joined);
        joined = longer;
    }
    if (from_scratch || s->addresses == NULL || strcmp(joined, s->addresses) != 0) {
        log_debug("announced addresses:%s", joined);
        free(s->addresses);
        s->addresses = joined;
        send_announce(s, &announce);
    } else {
        free(joined);
    }
    for (size_t i = 0; i < announce.n_addresses; i++)
        free(list[i]);
}

static void look_again(struct session *s)
{
    if (s->address_watch == NULL)
        timer_set(s->address_timer, ADDRESSES_LOOK_NS);
}

static void look_at_addresses(void *arg)
{
    struct session *s = arg;
    char local[LIMIT_ADDRESS];

    if (!tracker_link_is_up(s->link))
        return;
    tracker_link_local_address(s->link, local);
    announce_addresses(s, local, false);
    look_again(s);
}

/* --- events
 * ---------------------------------------------------------------------------------------------------------
 */

static void list_one(const struct store_summary *summary, void *arg)
{
    struct session *s = arg;
    struct holding *h = holding_of(s, summary->root, summary->size);

    h->complete = summary->complete;
}

void session_announce_link_up(struct session *s, const char *seen_as)
{
    struct holding *h, *next;

    s->announces_under_way = 0;
    if (!s->holdings_listed) {
        s->holdings_listed = true;
        store_each(s->daemon->store, list_one, s);
    }
    announce_addresses(s, seen_as, true);
    HASH_ITER(hh, s->holdings, h, next) {
        if (h->dropped && h->releasing == 0) {
            holding_free(s, h);
            continue;
        }
        free(h->told);
        h->told = NULL;
        h->told_complete = false;
        mark(s, h);
    }
    timer_set(s->announce_timer, 0);
    look_again(s);
}

void session_announce_link_down(struct session *s)
{
    if (s->announce_timer != NULL)
        timer_cancel(s->announce_timer);
    if (s->address_timer != NULL)
        timer_cancel(s->address_timer);
}

struct content_mail {
    struct mail mail;
    struct content *content;
};

static void deliver_changed(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct content_mail *mail = (struct content_mail *)raw;
    const struct geometry *geometry = content_geometry(mail->content);
    struct holding *h = holding_of(s, content_root(mail->content), geometry->size);

    h->dropped = false;
    h->complete = content_complete(mail->content);
    if (h->complete && h->told_complete) {
        content_release(mail->content);
    } else {
        h->told_complete = false;
        content_release(h->content);
        h->content = mail->content;
        if (!s->stopping)
            mark(s, h);
    }
    free(mail);
}

void session_holding_changed(struct session *s, struct content *content)
{
    struct content_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_changed;
    mail->content = content_share(content);
    loop_post(s->loop, &mail->mail);
}

void session_announce_hold(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size)
{
    struct holding *h = holding_of(s, root, size);

    h->releasing++;
    if (h->marked)
        DL_DELETE(s->marked, h);
    h->marked = false;
}

void session_announce_go_on(struct session *s, const uint8_t root[HASH_SIZE], bool gone)
{
    struct holding *h;

    HASH_FIND(hh, s->holdings, root, HASH_SIZE, h);
    if (h == NULL || s->stopping)
        return;
    if (h->releasing > 0)
        h->releasing--;
    if (gone) {
        h->dropped = true;
        content_release(h->content);
        h->content = NULL;
    }
    free(h->told); /* what the tracker thinks we have it knows better than we */
    h->told = NULL;
    h->told_complete = false;
    mark(s, h);
}

struct dropped_mail {
    struct mail mail;
    uint8_t root[HASH_SIZE];
    uint64_t size;
};

static void deliver_dropped(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct dropped_mail *mail = (struct dropped_mail *)raw;
    struct holding *h;

    HASH_FIND(hh, s->holdings, mail->root, HASH_SIZE, h);
    if (h != NULL && !s->stopping) {
        h->dropped = true;
        content_release(h->content);
        h->content = NULL;
        mark(s, h);
    }
    free(mail);
}

void session_dropped(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size)
{
    struct dropped_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_dropped;
    memcpy(mail->root, root, HASH_SIZE);
    mail->size = size;
    loop_post(s->loop, &mail->mail);
}

struct port_mail {
    struct mail mail;
    uint16_t port;
};

static void deliver_port(struct mail *raw, void *owner)
{
    struct session *s = owner;

    s->port = ((struct port_mail *)raw)->port;
    if (!s->stopping)
        timer_set(s->address_timer, 0);
    free(raw);
}

void session_listening(struct session *s, uint16_t port)
{
    struct port_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_port;
    mail->port = port;
    loop_post(s->loop, &mail->mail);
}

void session_announce_init(struct session *s)
{
    s->announce_timer = timer_new(s->loop, announce_due, s);
    s->address_timer = timer_new(s->loop, look_at_addresses, s);
    s->address_watch = addresses_watch(s->loop, look_at_addresses, s);
}

void session_announce_down(struct session *s)
{
    timer_free(s->announce_timer);
    timer_free(s->address_timer);
    addresses_free(s->address_watch);
    s->address_watch = NULL;
    s->announce_timer = NULL;
    s->address_timer = NULL;
}

void session_announce_free(struct session *s)
{
    struct holding *h, *next;

    HASH_ITER(hh, s->holdings, h, next)
        holding_free(s, h);
    free(s->addresses);
}
