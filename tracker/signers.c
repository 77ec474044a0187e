/* Signing keys that devices have claimed: taken, kept, handed on with the entries that they signed.
 *
 * Owns a copy of every claim in memory, by the key's name. The loop's thread. A claim is checked before it is taken,
 * so that nobody can put one in another's name; members check it again, and do not believe this tracker. */
#include <string.h>

#include "base/mem.h"
#include "tracker/server_private.h"

struct signer {
    struct table_node node;
    uint8_t id[SIGNER_ID_SIZE];
    uint32_t number; /* its bit in what a session was told */
    Tracker__Signer *claim;
};

struct signers {
    uint64_t seed;
    struct table table;
    uint32_t count;
};

static struct signer *find(const struct signers *signers, const uint8_t id[SIGNER_ID_SIZE])
{
    uint64_t hash = table_hash(signers->seed, id, SIGNER_ID_SIZE);
    for (struct table_node *node = table_first(&signers->table, hash); node != NULL;
         node = table_next(node)) {
        struct signer *signer = (struct signer *)(void *)node;
        if (memcmp(signer->id, id, SIGNER_ID_SIZE) == 0)
            return signer;
    }
    return NULL;
}

static void add(const uint8_t id[SIGNER_ID_SIZE], const void *packed, size_t size, void *arg)
{
    struct signers *signers = arg;
    Tracker__Signer *claim =
        find(signers, id) != NULL ? NULL : tracker__signer__unpack(NULL, size, packed);
    if (claim == NULL)
        return;
    struct signer *signer = xcalloc(1, sizeof *signer);
    memcpy(signer->id, id, SIGNER_ID_SIZE);
    signer->number = signers->count++;
    signer->claim = claim;
    table_add(&signers->table, &signer->node, table_hash(signers->seed, id, SIGNER_ID_SIZE));
}

struct signers *signers_load(struct storage *storage, uint64_t seed)
{
    struct signers *signers = xcalloc(1, sizeof *signers);
    signers->seed = seed;
    table_init(&signers->table);
    if (storage_begin(storage, false)) {
        storage_signers_each(storage, add, signers);
        if (storage_commit(storage))
            return signers;
    }
    signers_free(signers);
    return NULL;
}

void signers_free(struct signers *signers)
{
    struct table_node *node;
    if (signers == NULL)
        return;
    while ((node = table_walk(&signers->table, NULL)) != NULL) {
        struct signer *signer = (struct signer *)(void *)node;
        table_remove(&signers->table, node);
        tracker__signer__free_unpacked(signer->claim, NULL);
        free(signer);
    }
    table_clear(&signers->table);
    free(signers);
}

size_t signers_tell(struct session *s, Tracker__Entry *const *entries, size_t count,
                    Tracker__Signer **out)
{
    size_t told = 0;
    for (size_t i = 0; i < count; i++) {
        struct signer *signer = entries[i]->signer.len != SIGNER_ID_SIZE
                                    ? NULL
                                    : find(s->server->signers, entries[i]->signer.data);
        if (signer == NULL)
            continue;
        if (signer->number / 8 >= s->signers_room) {
            uint32_t room = (signer->number / 8 + 64) & ~63u;
            s->signers_told = xrealloc(s->signers_told, room);
            memset(s->signers_told + s->signers_room, 0, room - s->signers_room);
            s->signers_room = room;
        }
        uint8_t bit = (uint8_t)(1u << signer->number % 8);
        if (s->signers_told[signer->number / 8] & bit)
            continue;
        s->signers_told[signer->number / 8] |= bit;
        out[told++] = signer->claim;
    }
    return told;
}

/* --- taking --------------------------------------------------------------------------------------------- */

struct claim_job {
    struct storage_job job;
    struct session *session;
    uint32_t id;
    uint8_t name[SIGNER_ID_SIZE], device[DEVICE_ID_SIZE];
    size_t size;
    uint8_t packed[];
};

static void claim_run(struct storage_job *job, struct storage *storage)
{
    struct claim_job *c = (struct claim_job *)(void *)job;
    storage_signer_put(storage, c->name, c->device, c->packed, c->size, LIMIT_SIGNERS);
}

static void claim_done(struct storage_job *job)
{
    struct claim_job *c = (struct claim_job *)(void *)job;
    if (job->failed) {
        session_fault(c->session, c->id, TRACKER__FAULT_CODE__FAULT_INTERNAL,
                      "the tracker cannot write to its database", 0);
    } else {
        add(c->name, c->packed, c->size, c->session->server->signers);
        session_done(c->session, c->id);
    }
    session_release(c->session);
    free(c);
}

static bool is_good(const struct session *s, const Tracker__Signer *m)
{
    struct signer_claim claim = {0};
    uint8_t device[DEVICE_ID_SIZE];
    if (m->key.len != SIGNER_KEY_SIZE || m->device_key.len > DEVICE_KEY_MAX ||
        m->signature.len > CLAIM_MAX || strcmp(m->account, s->account) != 0)
        return false;
    memcpy(claim.key, m->key.data, SIGNER_KEY_SIZE);
    snprintf(claim.account, sizeof claim.account, "%s", m->account);
    claim.device_key_size = m->device_key.len;
    claim.signature_size = m->signature.len;
    if (m->device_key.len > 0)
        memcpy(claim.device_key, m->device_key.data, m->device_key.len);
    if (m->signature.len > 0)
        memcpy(claim.signature, m->signature.data, m->signature.len);
    return signer_claim_check(&claim, s->server->authority.fingerprint, device) &&
           memcmp(device, s->device, sizeof device) == 0;
}

const char *signers_claim(struct session *s, uint32_t id, const void *message)
{
    const Tracker__Signer *m = message;
    uint8_t name[SIGNER_ID_SIZE];
    if (!is_good(s, m)) {
        session_fault(s, id, TRACKER__FAULT_CODE__FAULT_MALFORMED,
                      "that signing key is not this device's", 0);
        return NULL;
    }
    signer_id(m->key.data, name);
    if (find(s->server->signers, name) != NULL) {
        session_done(s, id);
        return NULL;
    }
    size_t size = tracker__signer__get_packed_size(m);
    struct claim_job *c = xcalloc(1, sizeof *c + size);
    c->job = (struct storage_job){.run = claim_run, .done = claim_done, .writes = true};
    c->session = s;
    c->id = id;
    c->size = size;
    memcpy(c->name, name, sizeof name);
    memcpy(c->device, s->device, sizeof c->device);
    tracker__signer__pack(m, c->packed);
    session_keep(s);
    storage_queue_post(s->server->queue, &c->job);
    return NULL;
}
