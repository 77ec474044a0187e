/* Signatures: ours under what we publish, others' under what the tracker says they have published.
 *
 * Owns the device's signing key, the claims that came, the history of each account's keys (HOME/keys), and the queue
 * through which all that the tracker says of the catalogue goes to local. Formats: crypto/signature.h. A file or link
 * that is not what its publisher signed goes no further: local is told that there is no such entry. Nobody's key is
 * believed because the tracker says so: the first keys of an account that are seen are, and whatever comes later is
 * shown with a warning until the member accepts it.
 *
 * Thread: "tracker", but for verify_run, which runs on a worker, one item at a time, and has all of `known`, `history`,
 * `people` and `seen` to itself meanwhile. What was verified is remembered by a hash of it, so that a catalogue that is sent anew
 * costs a lookup for each entry and not 100 us. */
#include "daemon/session_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/number.h"
#include "base/workers.h"
#include "crypto/random.h"
#include "crypto/signature.h"
#include "daemon/local.h"
#include "proto/limits.h"

/* A claim that was checked. */
struct known {
    uint8_t id[SIGNER_ID_SIZE];
    uint8_t key[SIGNER_KEY_SIZE];
    UT_hash_handle hh;
};

/* An account was seen to have this device. */
struct line {
    struct known_key is;
    char name[ACCOUNT_BYTES_MAX + 2 * DEVICE_ID_SIZE + 2]; /* "ACCOUNT DEVICE" */
    UT_hash_handle hh;
};

/* An account that has a line at least. */
struct person {
    char name[ACCOUNT_BYTES_MAX + 1];
    UT_hash_handle hh;
};

struct seen {
    uint64_t hash;
    UT_hash_handle hh;
};

/* What goes to local next: exactly one of these. */
struct item {
    struct item *prev, *next;
    Tracker__Changes *changes;
    Tracker__Results *results;
    bool state, keys;
    enum session_state state_is;
    unsigned epoch;
    char *trouble, *account, *swarm;
    char *accept; /* keys: whose are believed from now on; NULL: nobody's */
    void *cookie;
    struct known_keys *answer;
};

struct signatures {
    struct job job;
    struct mail mail;
    struct session *session;
    struct signing_key *key;
    char *key_path, *history_path;
    struct item *items;
    bool busy;
    /* of verify_run while busy */
    uint8_t ca[FINGERPRINT_SIZE], device[DEVICE_ID_SIZE];
    struct known *known;
    struct line *history;
    struct person *people;
    struct seen *seen;
    uint8_t
        salt[32];  /* of this process alone: what goes into `seen` cannot be prepared by anybody */
    bool trusting; /* the first catalogue of this member: whoever is in it is believed */
    bool unreadable; /* there is a history, but it can't be read: nobody is, and it is left alone */
    bool changed;    /* the history is not written */
    uint32_t refused, unexpected, told_refused, told_unexpected;
};

/* --- the history of keys -------------------------------------------------------------------------------- */

/* Of one line, and the longest that is read back. */
_Static_assert(sizeof((struct line *)NULL)->name + 40 <= LIMIT_KEY_LINE,
               "what was written is read again");

static bool history_is_full(const struct signatures *g)
{
    return HASH_COUNT(g->history) >= LIMIT_CLAIMS;
}

/* Once for each key: of one for which there is no room the warning stays, at least. */
static void history_add(struct signatures *g, const char *account, const char *device,
                        int64_t first, enum known_key_state state)
{
    struct line *line;
    struct person *person;
    char name[sizeof line->name];

    snprintf(name, sizeof name, "%s %s", account, device);
    HASH_FIND_STR(g->history, name, line);
    if (line != NULL)
        return;
    g->unexpected += state == KNOWN_KEY_NEW;
    if (history_is_full(g))
        return;
    line = xcalloc(1, sizeof *line);
    memcpy(line->name, name, sizeof name);
    snprintf(line->is.account, sizeof line->is.account, "%s", account);
    snprintf(line->is.device, sizeof line->is.device, "%s", device);
    line->is.first = first;
    line->is.state = state;
    HASH_ADD_STR(g->history, name, line);
    HASH_FIND_STR(g->people, account, person);
    if (person == NULL) {
        person = xcalloc(1, sizeof *person);
        snprintf(person->name, sizeof person->name, "%s", account);
        HASH_ADD_STR(g->people, name, person);
    }
    g->changed = true;
}

/* Lines "ACCOUNT DEVICE FIRST-SEEN STATE". No file: the member is new here. One that can't be read says nothing of the
 * kind: then every key is one to be asked about. */
static void history_load(struct signatures *g)
{
    static const char *const states[] = {"first", "new", "accepted"};
    char *data = NULL, *rest, *line;
    size_t size;
    int error = file_read(g->history_path, LIMIT_KEY_HISTORY, false, &data, &size);

    g->trusting = error == -ENOENT;
    g->unreadable = error != 0 && !g->trusting;
    if (g->unreadable)
        log_warning("%s: %s: which keys were seen before is not known, so no key is believed; "
                    "mend the file and start p2pd anew",
                    g->history_path, strerror(-error));
    if (error != 0)
        return;
    for (rest = data; (line = strsep(&rest, "\n")) != NULL;) {
        char *account = strsep(&line, " "), *device = strsep(&line, " ");
        char *first = strsep(&line, " "), *state = line;
        uint64_t when;
        if (state == NULL || account_name_fault(account) != NULL ||
            strlen(device) != 2 * (size_t)DEVICE_ID_SIZE ||
            !number_parse(first, 0, INT64_MAX, &when))
            continue;
        for (unsigned i = 0; i < 3; i++)
            if (strcmp(state, states[i]) == 0)
                history_add(g, account, device, (int64_t)when, (enum known_key_state)i);
    }
    free(data);
    g->changed = false;
}

static void history_save(struct signatures *g)
{
    static const char *const states[] = {"first", "new", "accepted"};
    size_t room = HASH_COUNT(g->history) * (sizeof g->history->name + 40) + 1, used = 0;
    char *text = xmalloc(room);
    struct line *line, *next;

    HASH_ITER(hh, g->history, line, next)
        used += (size_t)snprintf(text + used, room - used, "%s %" PRId64 " %s\n", line->name,
                                 line->is.first, states[line->is.state]);
    int error = file_replace(g->history_path, text, used, 0600);
    if (error != 0)
        log_warning("%s: %s", g->history_path, strerror(-error));
    else
        g->changed = false;
    free(text);
}

/* The account signs with this device's key. */
static void meet(struct signatures *g, const char *account, const uint8_t device[DEVICE_ID_SIZE])
{
    char text[2 * DEVICE_ID_SIZE + 1], name[sizeof g->history->name];
    struct line *line;
    struct person *person;

    hex_encode(text, device, DEVICE_ID_SIZE);
    snprintf(name, sizeof name, "%s %s", account, text);
    HASH_FIND_STR(g->history, name, line);
    if (line != NULL)
        return;
    HASH_FIND_STR(g->people, account, person);
    bool own = memcmp(device, g->device, DEVICE_ID_SIZE) == 0;
    bool others = person != NULL || g->unreadable || history_is_full(g); /* or they may have */
    bool is_new = others && !g->trusting && !own;
    if (is_new && !g->unreadable)
        log_warning("%s signs with a key that was not seen before (device %s): a new device of "
                    "theirs, or a tracker that makes things up; ask them, then see p2pctl keys",
                    account, text);
    history_add(g, account, text, clock_wall() / NS_PER_S,
                own      ? KNOWN_KEY_ACCEPTED
                : is_new ? KNOWN_KEY_NEW
                         : KNOWN_KEY_FIRST);
}

/* --- verifying, on a worker ----------------------------------------------------------------------------- */

static void take_claim(struct signatures *g, const Tracker__Signer *m)
{
    struct signer_claim *claim;
    struct known *known;
    uint8_t id[SIGNER_ID_SIZE], device[DEVICE_ID_SIZE];

    if (m == NULL || m->key.len != SIGNER_KEY_SIZE || m->device_key.len == 0 ||
        m->device_key.len > DEVICE_KEY_MAX || m->signature.len == 0 ||
        m->signature.len > CLAIM_MAX || account_name_fault(m->account) != NULL)
        return;
    signer_id(m->key.data, id);
    HASH_FIND(hh, g->known, id, sizeof id, known);
    if (known != NULL || HASH_COUNT(g->known) >= LIMIT_CLAIMS)
        return;
    claim = xcalloc(1, sizeof *claim);
    memcpy(claim->key, m->key.data, SIGNER_KEY_SIZE);
    snprintf(claim->account, sizeof claim->account, "%s", m->account);
    memcpy(claim->device_key, m->device_key.data, m->device_key.len);
    claim->device_key_size = m->device_key.len;
    memcpy(claim->signature, m->signature.data, m->signature.len);
    claim->signature_size = m->signature.len;
    if (signer_claim_check(claim, g->ca, device)) {
        known = xcalloc(1, sizeof *known);
        memcpy(known->id, id, sizeof id);
        memcpy(known->key, claim->key, sizeof known->key);
        HASH_ADD(hh, g->known, id, sizeof known->id, known);
        meet(g, claim->account, device);
    }
    free(claim);
}

/* 64 bits of a keyed hash: the tracker, which chooses the values, must not find two that meet. */
static uint64_t hash_of(const struct signatures *g, const Tracker__Entry *e)
{
    uint8_t bytes[sizeof g->salt + SIGNER_ID_SIZE + SIGNATURE_SIZE + HASH_SIZE + 16 +
                  LIMIT_SYMLINK] = {0};
    uint8_t hash[HASH_SIZE], *at = bytes;
    size_t target = strnlen(e->target, LIMIT_SYMLINK);
    uint64_t value, kind = e->kind;

    memcpy(at, g->salt, sizeof g->salt);
    memcpy(at += sizeof g->salt, e->signer.data, SIGNER_ID_SIZE);
    memcpy(at += SIGNER_ID_SIZE, e->signature.data, SIGNATURE_SIZE);
    at += SIGNATURE_SIZE;
    if (e->root.len == HASH_SIZE)
        memcpy(at, e->root.data, HASH_SIZE);
    memcpy(at += HASH_SIZE, &e->size, 8);
    memcpy(at += 8, &kind, 8);
    memcpy(at += 8, e->target, target);
    sha256(hash, bytes, (size_t)(at - bytes) + target);
    memcpy(&value, hash, sizeof value);
    return value;
}

static void forget_seen(struct signatures *g)
{
    struct seen *seen, *next;

    HASH_ITER(hh, g->seen, seen, next) {
        HASH_DEL(g->seen, seen);
        free(seen);
    }
}

static bool is_signed(struct signatures *g, const Tracker__Entry *e)
{
    struct entry_statement statement = {.kind = (uint8_t)e->kind, .size = e->size};
    struct known *known;
    struct seen *seen;

    if (e->signer.len != SIGNER_ID_SIZE || e->signature.len != SIGNATURE_SIZE)
        return false;
    uint64_t hash = hash_of(g, e);
    HASH_FIND(hh, g->seen, &hash, sizeof hash, seen);
    if (seen != NULL)
        return true;
    HASH_FIND(hh, g->known, e->signer.data, SIGNER_ID_SIZE, known);
    if (e->kind == TRACKER__KIND__KIND_FILE && e->root.len == HASH_SIZE)
        statement.root = e->root.data;
    if (e->kind == TRACKER__KIND__KIND_SYMLINK)
        statement.target = e->target;
    if (known == NULL || !entry_check(known->key, g->ca, &statement, e->signature.data))
        return false;
    if (HASH_COUNT(g->seen) >= LIMIT_VERIFIED_KEPT)
        forget_seen(g); /* they cost their 100 us once more */
    seen = xcalloc(1, sizeof *seen);
    seen->hash = hash;
    HASH_ADD(hh, g->seen, hash, sizeof seen->hash, seen);
    return true;
}

/* What is not signed is not there. */
static void judge(struct signatures *g, Tracker__Entry *e)
{
    if (e == NULL || e->gone || e->kind == TRACKER__KIND__KIND_DIRECTORY || is_signed(g, e))
        return;
    if (++g->refused <= LIMIT_BAD_LOGGED)
        log_warning(
            "the tracker shows an entry that is not what its publisher signed: '%s' (number "
            "%" PRIu64 ", by %s) is not shown here",
            e->name, e->id, e->owner);
    e->gone = true;
}

static void forget(struct signatures *g)
{
    struct known *known, *next_known;

    HASH_ITER(hh, g->known, known, next_known) {
        HASH_DEL(g->known, known);
        free(known);
    }
    forget_seen(g);
}

static void list_keys(struct signatures *g, struct item *item)
{
    struct known_keys *answer = xcalloc(1, sizeof *answer);
    struct line *line, *next;

    answer->keys = xcalloc(HASH_COUNT(g->history) + 1, sizeof *answer->keys);
    HASH_ITER(hh, g->history, line, next) {
        if (item->accept != NULL && strcmp(item->accept, line->is.account) == 0 &&
            line->is.state == KNOWN_KEY_NEW) {
            line->is.state = KNOWN_KEY_ACCEPTED;
            g->unexpected--;
            g->changed = true;
        }
        answer->keys[answer->count++] = line->is;
    }
    answer->refused = g->refused;
    answer->cookie = item->cookie;
    item->answer = answer;
}

static void verify_run(struct job *job)
{
    struct signatures *g = (struct signatures *)(void *)job;
    struct item *item = g->items;

    if (item->changes != NULL) {
        if (item->changes->from_scratch)
            g->refused = 0;
        for (size_t i = 0; i < item->changes->n_signers; i++)
            take_claim(g, item->changes->signers[i]);
        for (size_t i = 0; i < item->changes->n_entries; i++)
            judge(g, item->changes->entries[i]);
    }
    for (size_t i = 0; item->results != NULL && i < item->results->n_signers; i++)
        take_claim(g, item->results->signers[i]);
    for (size_t i = 0; item->results != NULL && i < item->results->n_results; i++)
        if (item->results->results[i] != NULL)
            judge(g, item->results->results[i]->entry);
    if (item->keys)
        list_keys(g, item);
    if (g->trusting && item->changes != NULL && item->changes->live) {
        g->trusting = false;
        g->changed = true;
    }
    if (g->changed && !g->trusting && !g->unreadable)
        history_save(g);
    loop_post(g->session->loop, &g->mail);
}

/* --- the queue ------------------------------------------------------------------------------------------ */

static void item_free(struct item *item)
{
    if (item->changes != NULL)
        tracker__changes__free_unpacked(item->changes, NULL);
    if (item->results != NULL)
        tracker__results__free_unpacked(item->results, NULL);
    known_keys_free(item->answer);
    free(item->trouble);
    free(item->account);
    free(item->swarm);
    free(item->accept);
    free(item);
}

/* To local, in the order in which it came. */
static void hand_on(struct session *s, struct item *item)
{
    struct local *local = s->daemon->local;

    if (item->changes != NULL)
        local_changes(local, item->changes);
    else if (item->results != NULL)
        local_results(local, item->results);
    else if (item->keys)
        local_keys(local, item->answer);
    else
        local_session_state(local, item->state_is, item->epoch, item->trouble, item->account,
                            item->swarm);
    item->changes = NULL;
    item->results = NULL;
    item->answer = NULL;
    item->trouble = item->account = item->swarm = NULL;
    item_free(item);
}

static void run_next(struct signatures *g)
{
    struct session *s = g->session;

    while (g->items != NULL && !g->busy) {
        struct item *item = g->items;
        if (item->state) {
            DL_DELETE(g->items, item);
            hand_on(s, item);
            continue;
        }
        if (s->credentials != NULL) {
            if (memcmp(g->ca, s->credentials->url.ca, sizeof g->ca) != 0)
                forget(g); /* claims and signatures are of one swarm */
            memcpy(g->ca, s->credentials->url.ca, sizeof g->ca);
            memcpy(g->device, s->credentials->device, sizeof g->device);
        }
        g->busy = true;
        workers_post(s->daemon->workers, &g->job, false);
    }
}

static void verified(struct mail *mail, void *owner)
{
    struct session *s = owner;
    struct signatures *g = s->signatures;
    struct item *item = g->items;

    (void)mail;
    CHECK(g->busy && item != NULL);
    g->busy = false;
    DL_DELETE(g->items, item);
    if (g->refused != g->told_refused || g->unexpected != g->told_unexpected) {
        g->told_refused = g->refused;
        g->told_unexpected = g->unexpected;
        local_suspicions(s->daemon->local, g->refused, g->unexpected);
    }
    hand_on(s, item);
    if (!s->stopping)
        run_next(g);
}

static void append(struct session *s, struct item *item)
{
    DL_APPEND(s->signatures->items, item);
    if (s->stopping) /* nobody verifies any more */
        return;
    run_next(s->signatures);
}

void session_signed_changes(struct session *s, Tracker__Changes *changes)
{
    struct item *item = xcalloc(1, sizeof *item);

    item->changes = changes;
    append(s, item);
}

void session_signed_results(struct session *s, Tracker__Results *results)
{
    struct item *item = xcalloc(1, sizeof *item);

    item->results = results;
    append(s, item);
}

void session_signed_state(struct session *s, enum session_state state, const char *trouble)
{
    struct item *item = xcalloc(1, sizeof *item);

    item->state = true;
    item->state_is = state;
    item->epoch = s->epoch;
    item->trouble = trouble == NULL ? NULL : xstrdup(trouble);
    item->account = s->credentials == NULL ? NULL : xstrdup(s->credentials->account);
    item->swarm = s->swarm == NULL ? NULL : xstrdup(s->swarm);
    append(s, item);
}

/* --- asking for the keys -------------------------------------------------------------------------------- */

struct keys_mail {
    struct mail mail;
    struct item *item;
};

static void deliver_keys(struct mail *raw, void *owner)
{
    struct keys_mail *mail = (struct keys_mail *)raw;

    append(owner, mail->item);
    free(mail);
}

void session_keys(struct session *s, const char *accept, void *cookie)
{
    struct keys_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_keys;
    mail->item = xcalloc(1, sizeof *mail->item);
    mail->item->keys = true;
    mail->item->accept = accept == NULL ? NULL : xstrdup(accept);
    mail->item->cookie = cookie;
    loop_post(s->loop, &mail->mail);
}

void known_keys_free(struct known_keys *keys)
{
    if (keys == NULL)
        return;
    free(keys->keys);
    free(keys);
}

/* --- ours ----------------------------------------------------------------------------------------------- */

static void claimed(void *arg, const struct tracker_answer *answer)
{
    (void)arg;
    if (answer->fault != NULL)
        log_warning("the tracker does not take the signing key: %s", answer->fault->text);
}

/* Claimed anew with each connection: 2 ms of RSA, once in a long while. */
void session_signed_link_up(struct session *s)
{
    struct signatures *g = s->signatures;
    struct signer_claim *claim = xcalloc(1, sizeof *claim);
    const char *fault = NULL;

    if (g->key == NULL)
        g->key = signing_key_open(g->key_path, &fault);
    if (g->key == NULL ||
        !signer_claim_make(claim, g->key, s->credentials->key, s->credentials->url.ca,
                           s->credentials->account, &fault)) {
        log_warning("%s: %s: what is published here cannot be signed", g->key_path, fault);
    } else {
        Tracker__Signer message = TRACKER__SIGNER__INIT;
        message.key = (ProtobufCBinaryData){.len = sizeof claim->key, .data = claim->key};
        message.account = claim->account;
        message.device_key =
            (ProtobufCBinaryData){.len = claim->device_key_size, .data = claim->device_key};
        message.signature =
            (ProtobufCBinaryData){.len = claim->signature_size, .data = claim->signature};
        tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_SIGNER, &message.base, claimed,
                             s);
    }
    free(claim);
}

bool session_sign(struct session *s, const Tracker__Op *op, struct session_signature *out)
{
    struct entry_statement statement = {.kind = TRACKER__KIND__KIND_FILE, .size = op->size};
    struct signatures *g = s->signatures;

    if (op->kind == TRACKER__OP_KIND__OP_SYMLINK) {
        statement =
            (struct entry_statement){.kind = TRACKER__KIND__KIND_SYMLINK, .target = op->target};
    } else if (op->kind != TRACKER__OP_KIND__OP_PUBLISH || op->root.len != HASH_SIZE) {
        return false;
    } else {
        statement.root = op->root.data;
    }
    if (g->key == NULL || s->credentials == NULL)
        return false;
    signing_key_id(g->key, out->signer);
    return entry_sign(g->key, s->credentials->url.ca, &statement, out->signature);
}

/* --- life ----------------------------------------------------------------------------------------------- */

void session_signed_init(struct session *s)
{
    struct signatures *g = xcalloc(1, sizeof *g);

    g->session = s;
    g->job.run = verify_run;
    g->mail.deliver = verified;
    g->key_path = home_path(s->daemon->home, "signing.key");
    g->history_path = home_path(s->daemon->home, "keys");
    random_bytes(g->salt, sizeof g->salt);
    history_load(g);
    s->signatures = g;
}

void session_signed_free(struct session *s)
{
    struct signatures *g = s->signatures;
    struct line *line, *next;
    struct person *person, *next_person;

    while (g->items != NULL) {
        struct item *item = g->items;
        DL_DELETE(g->items, item);
        hand_on(s, item); /* local frees its mail */
    }
    forget(g);
    HASH_ITER(hh, g->history, line, next) {
        HASH_DEL(g->history, line);
        free(line);
    }
    HASH_ITER(hh, g->people, person, next_person) {
        HASH_DEL(g->people, person);
        free(person);
    }
    signing_key_free(g->key);
    free(g->key_path);
    free(g->history_path);
    free(g);
}
