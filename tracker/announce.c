/* Who has what, between sessions and the swarm: announces, wants, news, health, dial-backs, piece maps on disk.
 *
 * Owns the sessions' addresses and the timers that tell news and write piece maps; the state itself is
 * swarm.c's. Piece maps go to disk at most once a second, at most PIECES_AT_ONCE rows at a time, one batch under
 * way: who announces never waits for a disk. */
#include "base/bitmap.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "tracker/server_private.h"

#define PIECES_AT_ONCE  1000
#define PIECES_INTERVAL NS_PER_S
#define SETTLE_AFTER                                                                               \
    (60 * NS_PER_S) /* after an announce from scratch: what was not said again is dropped */

/* --- peers ------------------------------------------------------------------------------------------------ */

/* The peer's addresses, nearest to the asker first; of equally near ones, as the peer said. Loopback ones are of use only
 * to who is on this machine as well: he comes from one, or says one himself. */
static size_t sort_addresses(const struct session *asker, const struct session *peer, char **out)
{
    unsigned near[LIMIT_ADDRESSES];
    size_t count = 0;
    bool here = strncmp(asker->from, "127.", 4) == 0 || strcmp(asker->from, "::1") == 0;
    for (unsigned k = 0; k < asker->addresses_count; k++)
        here |= address_is_loopback(&asker->addresses[k]);
    for (unsigned i = 0; i < peer->addresses_count; i++) {
        unsigned best = 0;
        if (!here && address_is_loopback(&peer->addresses[i]))
            continue;
        for (unsigned k = 0; k < asker->addresses_count; k++) {
            unsigned bits = address_nearness(&peer->addresses[i], &asker->addresses[k]);
            best = bits > best ? bits : best;
        }
        size_t at = count++;
        for (; at > 0 && near[at - 1] < best; at--) {
            near[at] = near[at - 1];
            out[at] = out[at - 1];
        }
        near[at] = best;
        out[at] = peer->addresses[i].text;
    }
    return count;
}

/* What a Peers message is made of, all of it in one place. */
struct peers_message {
    Tracker__Peers message;
    Tracker__Peer peers[LIMIT_PEERS];
    Tracker__Peer *list[LIMIT_PEERS];
    char *addresses[LIMIT_PEERS][LIMIT_ADDRESSES];
    uint8_t tickets[LIMIT_PEERS][TICKET_SIZE];
};

static void fill_peers(struct peers_message *m, const struct session *asker,
                       const struct swarm_key *key, const struct swarm_peer *peers, size_t count)
{
    union {
        const uint8_t *from;
        uint8_t *to;
    } root = {.from = key->root};
    struct swarm_health health;
    tracker__peers__init(&m->message);
    for (size_t i = 0; i < count; i++) {
        struct session *peer = swarm_owner(peers[i].device);
        CHECK_OBJECT(peer, SESSION_MAGIC);
        tracker__peer__init(&m->peers[i]);
        m->peers[i].account = peer->account;
        m->peers[i].device =
            (ProtobufCBinaryData){.len = sizeof peer->device, .data = peer->device};
        m->peers[i].n_addresses = sort_addresses(asker, peer, m->addresses[i]);
        m->peers[i].addresses = m->addresses[i];
        m->peers[i].complete = peers[i].complete;
        m->peers[i].pieces = peers[i].pieces;
        m->peers[i].whole = rights_ticket(asker, peer->device, key->root, m->tickets[i]);
        m->peers[i].ticket = (ProtobufCBinaryData){.len = TICKET_SIZE, .data = m->tickets[i]};
        m->list[i] = &m->peers[i];
    }
    swarm_health(asker->server->swarm, key, &health);
    if (!rights_sees_root(asker, key->root))
        health = (struct swarm_health){0};
    m->message.root = (ProtobufCBinaryData){.len = HASH_SIZE, .data = root.to};
    m->message.n_peers = count;
    m->message.peers = m->list;
    m->message.holders = health.complete + health.partial;
}

/* False if this names no content. */
static bool key_of(const ProtobufCBinaryData *root, uint64_t size, struct swarm_key *key)
{
    if (root->len != HASH_SIZE || size > FILE_SIZE_MAX)
        return false;
    memcpy(key->root, root->data, HASH_SIZE);
    key->size = size;
    return true;
}

const char *announce_want(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Want *request = message;
    struct server *server = s->server;
    struct swarm_key key;
    struct swarm_peer peers[LIMIT_PEERS];
    struct peers_message answer;
    size_t count;
    if (!key_of(&request->root, request->size, &key))
        return "a malformed Want";
    swarm_at(server->swarm, clock_now());
    const char *fault = swarm_want(server->swarm, s->peer, &key, request->count, peers, &count);
    if (fault != NULL) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_DENIED, fault, 0);
        return NULL;
    }
    fill_peers(&answer, s, &key, peers, count);
    uint32_t pieces = geometry_of(key.size).pieces;
    uint8_t *copies = pieces == 0 || pieces > LIMIT_COPIES_TOLD ? NULL : calloc(1, pieces);
    if (copies != NULL && !rights_sees_root(s, key.root)) {
        answer.message.copies = (ProtobufCBinaryData){.len = pieces, .data = copies};
    } else if (copies != NULL) {
        size_t written = swarm_copies(server->swarm, &key, copies, pieces);
        answer.message.copies = (ProtobufCBinaryData){.len = written, .data = copies};
    }
    session_answer(s, id, TRACKER__TRACKER_TYPE__TRACKER_PEERS, &answer.message.base);
    free(copies);
    announce_changed(server);
    return NULL;
}

const char *announce_unwant(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Unwant *request = message;
    if (request->root.len != HASH_SIZE)
        return "a malformed Unwant";
    swarm_unwant(s->server->swarm, s->peer, request->root.data);
    if (id != 0)
        session_done(s, id);
    return NULL;
}

/* --- news ----------------------------------------------------------------------------------------------------- */

static void tell(void *arg, struct swarm_device *to, const struct swarm_key *key,
                 const struct swarm_peer *peers, size_t count)
{
    struct session *s = swarm_owner(to);
    CHECK_OBJECT(s, SESSION_MAGIC);
    struct peers_message push;
    fill_peers(&push, s, key, peers, count);
    session_push(s, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_PEERS, &push.message.base);
}

void announce_changed(struct server *server)
{
    int64_t due = swarm_news_due(server->swarm);
    if (due == INT64_MAX || server->stopping)
        return;
    int64_t wait = due - clock_now();
    timer_set(server->news, wait > 0 ? wait : 0);
}

static void on_news(void *arg)
{
    struct server *server = arg;
    swarm_news(server->swarm, clock_now(), tell, server);
    announce_changed(server);
}

/* --- announces -------------------------------------------------------------------------------------------------- */

static const char *take_addresses(struct session *s, const Tracker__Announce *request)
{
    struct address fresh[LIMIT_ADDRESSES];
    if (request->n_addresses > LIMIT_ADDRESSES)
        return "too many addresses";
    for (size_t i = 0; i < request->n_addresses; i++)
        if (!address_parse(&fresh[i], request->addresses[i]))
            return "an address that nobody could dial";
    free(s->addresses);
    s->addresses =
        request->n_addresses == 0 ? NULL : xmemdup(fresh, request->n_addresses * sizeof *fresh);
    s->addresses_count = (unsigned)request->n_addresses;
    return NULL;
}

static const char *take_holding(struct session *s, const Tracker__Holding *holding)
{
    struct swarm *swarm = s->server->swarm;
    struct swarm_key key;
    if (!key_of(&holding->root, holding->size, &key))
        return "a malformed holding";
    if (holding->dropped) {
        swarm_drop(swarm, s->peer, &key);
        return NULL;
    }
    /* Neither a bitfield nor pieces: nothing has come since. */
    bool whole =
        holding->complete || holding->bitfield.len > 0 || geometry_of(key.size).pieces == 0;
    if (!whole)
        return swarm_add(swarm, s->peer, &key, holding->added, holding->n_added);
    return swarm_hold(swarm, s->peer, &key, holding->complete, holding->bitfield.data,
                      holding->bitfield.len);
}

const char *announce_announce(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Announce *request = message;
    struct swarm *swarm = s->server->swarm;
    if (request->n_holdings > LIMIT_ANNOUNCE_FILES)
        return "too many files in one Announce";
    swarm_at(swarm, clock_now());
    const char *fault = request->addresses_set ? take_addresses(s, request) : NULL;
    if (request->from_scratch) {
        swarm_forget(swarm, s->peer);
        s->settle_at = clock_now() + SETTLE_AFTER;
    } else if (!s->announced) {
        swarm_confirm(swarm, s->peer);
    }
    s->announced = true;
    for (size_t i = 0; i < request->n_holdings; i++) {
        const char *why = take_holding(s, request->holdings[i]);
        fault = fault == NULL ? why : fault;
    }
    announce_changed(s->server);
    if (fault != NULL)
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED, fault, 0);
    else
        session_done(s, id);
    return NULL;
}

const char *announce_release(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Release *request = message;
    struct swarm_key key;
    if (!key_of(&request->root, request->size, &key) || key.size == 0)
        return "a malformed Release";
    Tracker__Released answer = TRACKER__RELEASED__INIT;
    answer.bitfield.len = bitmap_bytes(geometry_of(key.size).pieces);
    answer.bitfield.data = xmalloc(answer.bitfield.len);
    swarm_at(s->server->swarm, clock_now());
    const char *fault = swarm_release(s->server->swarm, s->peer, &key, request->bitfield.data,
                                      request->bitfield.len, answer.bitfield.data);
    if (fault == NULL)
        session_answer(s, id, TRACKER__TRACKER_TYPE__TRACKER_RELEASED, &answer.base);
    free(answer.bitfield.data);
    announce_changed(s->server);
    return fault;
}

void announce_connect(struct session *s)
{
    swarm_device_of(s->server->swarm, s->peer, s->account);
    swarm_connect(s->server->swarm, s->peer, s);
}

/* When the device was last seen goes to disk; it need not be durable, so it may go with others' changes. */
struct seen_job {
    struct storage_job job;
    uint8_t device[DEVICE_ID_SIZE];
    int64_t when;
};

static void seen_run(struct storage_job *job, struct storage *storage)
{
    struct seen_job *seen = (struct seen_job *)(void *)job;
    storage_device_seen(storage, seen->device, seen->when);
}

static void seen_done(struct storage_job *job)
{
    free(job);
}

void announce_disconnect(struct session *s)
{
    swarm_disconnect(s->server->swarm, s->peer);
    s->peer = NULL;
    if (s->server->queue == NULL)
        return;
    struct seen_job *seen = xcalloc(1, sizeof *seen);
    seen->job = (struct storage_job){.run = seen_run, .done = seen_done, .writes = true};
    memcpy(seen->device, s->device, sizeof seen->device);
    seen->when = wall_seconds();
    storage_queue_post(s->server->queue, &seen->job);
}

/* --- health, dial-backs ------------------------------------------------------------------------------------------ */

const char *announce_health(struct session *s, uint32_t id, const void *message)
{
    const Tracker__HealthRequest *request = message;
    struct swarm_key key;
    struct swarm_health health;
    if (!key_of(&request->root, request->size, &key))
        return "a malformed HealthRequest";
    bool seen = rights_sees_root(s, key.root);
    swarm_health(s->server->swarm, &key, &health);
    if (!seen) /* as of a content that nobody has spoken of */
        health = (struct swarm_health){.pieces = health.pieces, .missing = health.pieces};
    Tracker__Health answer = TRACKER__HEALTH__INIT;
    answer.root = request->root;
    answer.pieces = health.pieces;
    answer.rarest = health.rarest;
    answer.complete = health.complete;
    answer.partial = health.partial;
    answer.distributed = health.distributed;
    answer.missing = health.missing;
    answer.offline = health.offline;
    size_t room = health.pieces <= LIMIT_FRAME_PAYLOAD ? health.pieces : 0;
    uint8_t *copies = room == 0 ? NULL : calloc(1, room);
    size_t size = copies == NULL ? 0
                  : seen         ? swarm_copies(s->server->swarm, &key, copies, room)
                                 : room;
    session_answer_payload(s, id, TRACKER__TRACKER_TYPE__TRACKER_HEALTH_IS, &answer.base, copies,
                           size);
    free(copies);
    return NULL;
}

const char *announce_dial_back(struct session *s, uint32_t id, const void *message)
{
    const Tracker__DialBack *request = message;
    if (request->device.len != DEVICE_ID_SIZE)
        return "a malformed DialBack";
    int64_t now = clock_now();
    if (now - s->dials_from > NS_PER_S) {
        s->dials_from = now;
        s->dials = 0;
    }
    struct swarm_device *peer = swarm_device_find(s->server->swarm, request->device.data);
    struct session *other = peer == NULL ? NULL : swarm_owner(peer);
    if (other != NULL && other != s && ++s->dials <= LIMIT_DIALS_ASKED) {
        char *addresses[LIMIT_ADDRESSES];
        Tracker__DialBack push = TRACKER__DIAL_BACK__INIT;
        push.device = (ProtobufCBinaryData){.len = sizeof s->device, .data = s->device};
        push.account = s->account;
        push.n_addresses = sort_addresses(other, s, addresses);
        push.addresses = addresses;
        session_push(other, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_DIAL_BACK, &push.base);
    }
    if (id != 0)
        session_done(s, id);
    return NULL;
}

/* --- piece maps on disk ------------------------------------------------------------------------------------------- */

struct pieces_job {
    struct storage_job job;
    struct server *server;
    size_t count;
    struct storage_holding rows[PIECES_AT_ONCE];
};

static void take_change(const struct swarm_change *change, void *arg)
{
    struct pieces_job *pieces = arg;
    struct storage_holding *row = &pieces->rows[pieces->count++];
    memcpy(row->device, change->device, sizeof row->device);
    memcpy(row->root, change->key.root, sizeof row->root);
    row->size = change->key.size;
    row->dropped = change->dropped;
    row->complete = change->complete;
    if (!change->dropped && !change->complete) {
        row->map_size = change->map_size;
        row->map = xmemdup(change->map, change->map_size);
    }
}

static void pieces_free(struct pieces_job *pieces)
{
    for (size_t i = 0; i < pieces->count; i++)
        free(pieces->rows[i].map);
    free(pieces);
}

static void pieces_run(struct storage_job *job, struct storage *storage)
{
    struct pieces_job *pieces = (struct pieces_job *)(void *)job;
    storage_holdings_write(storage, pieces->rows, pieces->count);
}

static void pieces_write(struct server *server);

static void pieces_done(struct storage_job *job)
{
    struct pieces_job *pieces = (struct pieces_job *)(void *)job;
    struct server *server = pieces->server;
    bool full = pieces->count == PIECES_AT_ONCE;
    pieces_free(pieces);
    server->pieces_writing = false;
    if (full && !server->stopping)
        pieces_write(server);
}

static void pieces_write(struct server *server)
{
    if (server->pieces_writing || !swarm_has_changes(server->swarm))
        return;
    struct pieces_job *pieces = xcalloc(1, sizeof *pieces);
    pieces->job = (struct storage_job){.run = pieces_run, .done = pieces_done, .apart = true};
    pieces->server = server;
    swarm_changes(server->swarm, PIECES_AT_ONCE, take_change, pieces);
    server->pieces_writing = true;
    storage_queue_post(server->queue, &pieces->job);
}

static void on_pieces(void *arg)
{
    struct server *server = arg;
    timer_set(server->pieces, PIECES_INTERVAL);
    pieces_write(server);
}

static void load_row(const struct storage_holding *row, void *arg)
{
    struct swarm *swarm = arg;
    struct swarm_key key = {.size = row->size};
    memcpy(key.root, row->root, sizeof key.root);
    swarm_load(swarm, row->device, &key, row->complete, row->map, row->map_size);
}

bool announce_load(struct server *server)
{
    if (!storage_begin(server->storage, false))
        return false;
    storage_holdings_each(server->storage, load_row, server->swarm);
    return storage_commit(server->storage);
}

void announce_start(struct server *server)
{
    server->news = timer_new(server->loop, on_news, server);
    server->pieces = timer_new(server->loop, on_pieces, server);
    timer_set(server->pieces, PIECES_INTERVAL);
}

void announce_stop(struct server *server)
{
    timer_free(server->news);
    timer_free(server->pieces);
    server->news = server->pieces = NULL;
}

void announce_finish(struct server *server)
{
    while (swarm_has_changes(server->swarm)) {
        struct pieces_job *pieces = xcalloc(1, sizeof *pieces);
        swarm_changes(server->swarm, PIECES_AT_ONCE, take_change, pieces);
        storage_holdings_write(server->storage, pieces->rows, pieces->count);
        pieces_free(pieces);
    }
}
