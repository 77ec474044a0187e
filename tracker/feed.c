/* The catalogue between sessions and storage: operations in, changes out.
 *
 * A subscriber is BEHIND (chunks of entries are read for it from the storage, the next one when its channel has
 * room) or LIVE (it has everything up to its cursor, and what operations change is pushed). Storage jobs come
 * home in the order in which they were posted, and seq numbers are given in that order, so a chunk that reached
 * the end and the changes that come home after it fit together without a gap. Whoever does not read falls BEHIND
 * again instead of filling memory.
 *
 *   Subscribe -> BEHIND --(a chunk reached the end)--> LIVE
 *                  ^                                     |
 *                  +-----(its channel is too full)-------+
 *
 * Changes are gathered for FEED_GATHER before they are pushed, so that a burst of small operations costs each
 * subscriber one message; a first one after a pause leaves at once.
 *
 * Invariants: a subscriber has been sent exactly the changes up to its cursor, in the order of seq; for each session
 * one chunk is being read at most, however often it subscribes. */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "tracker/server_private.h"

#define FEED_GATHER (20 * NS_PER_MS)
/* Of entries in one message: with a signature for each, and a claim of 1 KiB for each of LIMIT_CHANGES signers, it stays
 * below LIMIT_FRAME_MESSAGE. */
#define CHUNK_BYTES (224u << 10)
#define FEED_ASKED_FREE                                                                            \
    2 /* Subscribes of one connection whose chunks are not charged: it needs one */
#define QUEUE_NEXT    (256u << 10) /* below this the next chunk is read */
#define RESULTS_BYTES (512u << 10) /* entries in one Results; the rest is told by the feed alone */

/* --- sending ------------------------------------------------------------------------------------------- */

static size_t entry_bytes(const struct storage_entry *entry)
{
    return 160 + strlen(entry->name) + (entry->target == NULL ? 0 : strlen(entry->target)) +
           xattrs_bytes(entry->xattrs);
}

/* One message's worth: how many of the entries. */
static size_t fitting(const struct storage_entry *entries, size_t count)
{
    size_t bytes = 0;
    size_t n = 0;
    while (n < count && n < LIMIT_CHANGES && bytes < CHUNK_BYTES)
        bytes += entry_bytes(&entries[n++]);
    return n;
}

/* The entry as this session may see it. */
static void entry_for(const struct session *s, Tracker__Entry *message,
                      const struct storage_entry *entry)
{
    catalogue_entry_message(message, entry);
    if (!entry->gone && entry->kind == TRACKER__KIND__KIND_DIRECTORY)
        message->level = (Tracker__Level)(rights_level(s, entry->id) + 1);
}

/* The entry is gone, or it is gone for this session. */
static void entry_gone(Tracker__Entry *message, const struct storage_entry *entry)
{
    tracker__entry__init(message);
    message->id = entry->id;
    message->seq = entry->seq;
    message->gone = true;
}

/* Puts into `message` what the session is to be told of a change; false: nothing. Who may not see an entry is told
 * that it is gone if it may know it from before. Of a change as it happens (`fresh`) that can be said; of a row it is
 * assumed, but for one that is older than a series from scratch. */
static bool change_for(const struct session *s, Tracker__Entry *message,
                       const struct storage_entry *entry, bool fresh)
{
    if (!entry->gone && rights_sees(s, entry)) {
        entry_for(s, message, entry);
        return true;
    }
    if (fresh ? !rights_saw(s, entry) : !entry->gone && entry->seq <= s->feed_scratch)
        return false;
    entry_gone(message, entry);
    return true;
}

/* Sends what the session may see of these entries, and that everything up to `upto` has been sent. */
static void send_changes(struct session *s, const struct storage_entry *entries, size_t count,
                         uint64_t upto, bool fresh)
{
    Tracker__Entry messages[LIMIT_CHANGES];
    Tracker__Entry *list[LIMIT_CHANGES];
    size_t told = 0;
    bool quiet = s->feed_quiet;
    for (size_t i = 0; i < count; i++)
        if (change_for(s, &messages[told], &entries[i], fresh)) {
            list[told] = &messages[told];
            told++;
        }
    s->feed_cursor = upto;
    if (told == 0 && quiet)
        return; /* it learns with the next one how far that was */
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    changes.generation =
        (ProtobufCBinaryData){.len = sizeof s->server->generation, .data = s->server->generation};
    changes.n_entries = told;
    changes.entries = list;
    Tracker__Signer *signers[LIMIT_CHANGES];
    changes.n_signers = signers_tell(s, list, told, signers);
    changes.signers = signers;
    changes.seq = upto;
    changes.from_scratch = s->feed_first && s->feed_scratch != 0;
    changes.live = s->feed_was_live;
    if (s->feed_first)
        changes.level = (Tracker__Level)(rights_level(s, STORAGE_ROOT_ENTRY) + 1);
    s->feed_first = false;
    s->feed_quiet = s->feed_was_live;
    session_push(s, CHANNEL_BULK, TRACKER__TRACKER_TYPE__TRACKER_CHANGES, &changes.base);
}

/* --- chunks for those who are behind ---------------------------------------------------------------------- */

struct chunk {
    struct storage_job job;
    struct session *session;
    unsigned round;
    uint64_t since, scratch;
    uint8_t generation[STORAGE_GENERATION_SIZE]; /* of what the member knows */
    char account[ACCOUNT_BYTES_MAX + 1];
    bool asked; /* by who has subscribed time and again */
    bool check; /* the first chunk: does `since` mean anything here? */
    bool end;
    uint64_t upto;
    size_t count;
    struct storage_entry entries[LIMIT_CHANGES];
};

static void chunk_run(struct storage_job *job, struct storage *storage)
{
    struct chunk *c = (struct chunk *)(void *)job;
    uint8_t generation[STORAGE_GENERATION_SIZE];
    uint64_t seq = storage_seq(storage);
    storage_generation(storage, generation);
    bool strange = c->check && (memcmp(generation, c->generation, sizeof generation) != 0 ||
                                c->since < storage_renewed(storage, c->account));
    if (c->scratch == 0 &&
        (strange || c->since > seq || c->since == 0 || c->since < storage_pruned(storage))) {
        c->since = 0;
        c->scratch = seq == 0 ? 1 : seq;
    }
    bool more;
    c->count = storage_entries_since(storage, c->since, c->scratch, c->entries, LIMIT_CHANGES,
                                     CHUNK_BYTES, &more);
    c->end = !more;
    c->upto = c->end ? seq : c->entries[c->count - 1].seq;
}

static void chunk_free(struct chunk *c)
{
    for (size_t i = 0; i < c->count; i++)
        storage_entry_clear(&c->entries[i]);
    session_release(c->session);
    free(c);
}

static void chunk_done(struct storage_job *job)
{
    struct chunk *c = (struct chunk *)(void *)job;
    struct session *s = c->session;
    if (c->asked)
        session_charge(s, job->cost);
    s->feed_reading = false;
    if (!session_is_open(s) || s->feed != FEED_BEHIND) {
        chunk_free(c);
        return;
    }
    if (job->failed) {
        session_end(s, "the tracker cannot read its database");
        chunk_free(c);
        return;
    }
    if (c->round == s->feed_round) {
        s->feed_scratch = c->scratch;
        if (c->end) {
            s->feed = FEED_LIVE;
            s->feed_was_live = true;
        }
        send_changes(s, c->entries, c->count, c->upto, false);
        if (c->end)
            s->feed_scratch = 0;
    }
    chunk_free(c);
    feed_drained(s);
}

/* Reads what comes next for a subscriber. */
static void chunk_post(struct session *s)
{
    CHECK(!s->feed_reading);
    struct chunk *c = xcalloc(1, sizeof *c);
    c->job = (struct storage_job){.run = chunk_run, .done = chunk_done};
    c->session = s;
    c->round = s->feed_round;
    c->asked = s->feed_asked > FEED_ASKED_FREE;
    c->since = s->feed_cursor;
    c->scratch = s->feed_scratch;
    c->check = s->feed_claims;
    s->feed_claims = false;
    memcpy(c->account, s->account, sizeof c->account);
    memcpy(c->generation, s->feed_generation, sizeof c->generation);
    session_keep(s);
    s->feed_reading = true;
    storage_queue_post(s->server->queue, &c->job);
}

void feed_drained(struct session *s)
{
    if (session_is_open(s) && s->feed == FEED_BEHIND && !s->feed_reading && !s->server->stopping &&
        channel_queued(s->channel, CHANNEL_BULK) < QUEUE_NEXT)
        chunk_post(s);
}

/* `generation`: what a member says to know `since` of; NULL: it is known here. */
static void begin(struct session *s, uint64_t since, const ProtobufCBinaryData *generation)
{
    s->feed = FEED_BEHIND;
    s->feed_round++;
    s->feed_was_live = s->feed_quiet = false;
    s->feed_first = true;
    s->feed_cursor = since;
    s->feed_scratch = 0;
    s->feed_claims = generation != NULL;
    memset(s->feed_generation, 0, sizeof s->feed_generation);
    if (generation != NULL && generation->len == sizeof s->feed_generation)
        memcpy(s->feed_generation, generation->data, sizeof s->feed_generation);
}

void feed_renew(struct session *s)
{
    int64_t now = clock_now();
    if (s->feed == FEED_NONE)
        return;
    /* A series that is begun anew time and again never ends; so it goes on, each row by what may be seen when it is sent, and
     * who has lost a folder knows at its end. */
    s->feed_anew = s->feed == FEED_BEHIND && now - s->feed_renewed_at < LIMIT_RENEW_FEED_NS;
    if (s->feed_anew)
        return;
    s->feed_renewed_at = now;
    begin(s, 0, NULL);
    feed_drained(s);
}

const char *feed_subscribe(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Subscribe *request = message;
    if (request->generation.len != 0 && request->generation.len != STORAGE_GENERATION_SIZE)
        return "a malformed Subscribe";
    session_done(s, id);
    channel_set_low_mark(s->channel, QUEUE_NEXT);
    begin(s, request->since, &request->generation);
    s->feed_asked++;
    if (!s->feed_reading) /* else chunk_done goes on with this one */
        chunk_post(s);
    return NULL;
}

/* --- changes for those who are live -------------------------------------------------------------------------- */

static void push_to(struct session *s, const struct catalogue_changes *changes)
{
    if (s->renew_later)
        return; /* it gets all of it anew in a moment, by what it may see then */
    if (s->feed_cursor < changes->from ||
        channel_queued(s->channel, CHANNEL_BULK) >
            channel_share(s->server->queued.memory, LIMIT_ANSWERS_POOL, s->server->links,
                          LIMIT_ANSWERS_SHARE, LIMIT_FEED_BEHIND)) {
        s->feed = FEED_BEHIND;
        feed_drained(s);
        return;
    }
    size_t at = 0;
    while (at < changes->count && changes->entries[at].seq <= s->feed_cursor)
        at++;
    while (at < changes->count) {
        size_t count = fitting(changes->entries + at, changes->count - at);
        send_changes(s, changes->entries + at, count, changes->entries[at + count - 1].seq, true);
        at += count;
    }
}

static void flush(void *arg)
{
    struct server *server = arg;
    struct catalogue_changes *changes = &server->feed_pending;
    server->feed_flushed = clock_now();
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        if (s->feed == FEED_LIVE && session_is_open(s))
            push_to(s, changes);
    catalogue_changes_clear(changes);
}

/* Takes the entries over. */
static void gather(struct server *server, struct catalogue_changes *changes)
{
    struct catalogue_changes *to = &server->feed_pending;
    if (changes->count == 0 || server->stopping)
        return;
    if (to->count == 0) {
        *to = *changes;
        *changes = (struct catalogue_changes){0};
    } else {
        CHECK(changes->from == to->to);
        to->entries = xrealloc(to->entries, (to->count + changes->count) * sizeof *to->entries);
        memcpy(to->entries + to->count, changes->entries, changes->count * sizeof *to->entries);
        to->count += changes->count;
        to->room = to->count;
        to->to = changes->to;
        changes->count = 0;
        catalogue_changes_clear(changes);
    }
    if (timer_pending(server->feed))
        return;
    int64_t since = clock_now() - server->feed_flushed;
    timer_set(server->feed, since >= FEED_GATHER ? 0 : FEED_GATHER - since);
}

void feed_changed(struct server *server, struct catalogue_changes *changes)
{
    /* The mirror follows before anything is told, and whose sight it changes is told last. */
    rights_follow(server, changes);
    gather(server, changes);
    rights_followed(server);
}

/* --- operations ------------------------------------------------------------------------------------------------- */

struct ops {
    struct storage_job job;
    struct session *session;
    uint32_t id;
    char account[ACCOUNT_BYTES_MAX + 1];
    uint8_t device[DEVICE_ID_SIZE];
    struct message_arena arena;
    const Tracker__Ops *message;
    struct catalogue_result *results;
    struct catalogue_changes changes;
    bool refused; /* others before it were not carried out */
};

static void ops_run(struct storage_job *job, struct storage *storage)
{
    struct ops *o = (struct ops *)(void *)job;
    struct catalogue_actor actor = {.account = o->account, .device = o->device};
    uint32_t attempt = o->message->attempt;
    o->refused = attempt != 0 && attempt <= o->session->ops_failed;
    if (o->refused)
        return;
    for (size_t i = 0; i < o->message->n_ops && !storage_failed(storage); i++)
        catalogue_apply(storage, &actor, o->message->ops[i], &o->results[i], &o->changes);
}

/* What is behind it must not overtake it. */
static void ops_undone(struct storage_job *job)
{
    const struct ops *o = (const struct ops *)(const void *)job;
    if (o->message->attempt > o->session->ops_failed)
        o->session->ops_failed = o->message->attempt;
}

static void ops_answer(struct ops *o)
{
    size_t count = o->message->n_ops;
    Tracker__Result *items = xcalloc(count + 1, sizeof *items);
    Tracker__Result **list = xcalloc(count + 1, sizeof *list);
    Tracker__Entry *entries = xcalloc(count + 1, sizeof *entries);
    Tracker__Entry **shown = xcalloc(count + 1, sizeof *shown);
    size_t bytes = 0, shown_count = 0;
    for (size_t i = 0; i < count; i++) {
        struct catalogue_result *result = &o->results[i];
        tracker__result__init(&items[i]);
        items[i].op = o->message->ops[i]->op;
        items[i].status = result->status;
        if (result->has_entry && (bytes += entry_bytes(&result->entry)) < RESULTS_BYTES) {
            items[i].entry = &entries[i];
            if (!result->entry.gone && session_is_member(o->session) &&
                rights_sees(o->session, &result->entry))
                entry_for(o->session, &entries[i], &result->entry);
            else if (result->entry.gone || result->status == TRACKER__OP_STATUS__OP_OK)
                entry_gone(&entries[i], &result->entry);
            else
                items[i].entry = NULL;
        }
        list[i] = &items[i];
        if (items[i].entry != NULL)
            shown[shown_count++] = items[i].entry;
    }
    Tracker__Results results = TRACKER__RESULTS__INIT;
    results.n_results = count;
    results.results = list;
    Tracker__Signer **signers = xcalloc(count + 1, sizeof *signers);
    if (session_is_member(o->session))
        results.n_signers = signers_tell(o->session, shown, shown_count, signers);
    results.signers = signers;
    session_answer(o->session, o->id, TRACKER__TRACKER_TYPE__TRACKER_RESULTS, &results.base);
    free(signers);
    free(shown);
    free(items);
    free(list);
    free(entries);
}

static void ops_done(struct storage_job *job)
{
    struct ops *o = (struct ops *)(void *)job;
    session_charge(o->session, job->cost);
    if (job->failed || o->refused) {
        session_fault(o->session, o->id, TRACKER__FAULT_CODE__FAULT_INTERNAL,
                      job->full    ? "the tracker's disk is full"
                      : o->refused ? "the tracker could not write what came before"
                                   : "the tracker cannot write to its database",
                      0);
    } else {
        /* The mirror follows before anything is told, and whose sight it changes is told last. */
        rights_follow(o->session->server, &o->changes);
        gather(o->session->server, &o->changes);
        ops_answer(o);
        rights_followed(o->session->server);
    }
    for (size_t i = 0; i < o->message->n_ops; i++)
        catalogue_result_clear(&o->results[i]);
    catalogue_changes_clear(&o->changes);
    free(o->results);
    message_done(&o->arena);
    session_release(o->session);
    free(o);
}

const char *feed_ops(struct session *s, uint32_t id, const uint8_t *message, size_t size)
{
    struct ops *o = xcalloc(1, sizeof *o);
    o->message = message_unpack(&o->arena, &tracker__ops__descriptor, message, size);
    if (o->message == NULL || o->message->n_ops > LIMIT_OPS) {
        const char *why =
            o->message == NULL ? "a malformed Ops" : "too many operations in one message";
        message_done(&o->arena);
        free(o);
        return why;
    }
    o->job = (struct storage_job){
        .run = ops_run, .done = ops_done, .undone = ops_undone, .writes = true};
    o->session = s;
    o->id = id;
    memcpy(o->account, s->account, sizeof o->account);
    memcpy(o->device, s->device, sizeof o->device);
    o->results = xcalloc(o->message->n_ops + 1, sizeof *o->results);
    session_keep(s);
    storage_queue_post(s->server->queue, &o->job);
    return NULL;
}

void feed_start(struct server *server)
{
    server->feed = timer_new(server->loop, flush, server);
}

void feed_stop(struct server *server)
{
    timer_free(server->feed);
    server->feed = NULL;
    catalogue_changes_clear(&server->feed_pending);
}
