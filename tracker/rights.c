/* What each session may see, and what has to be done when that changes.
 *
 * Owns the mirror of rules and folders (access.h), the tracker's ticket key, the epoch and the list of who was barred
 * lately. The loop's thread. The mirror is changed where storage jobs come home, in their order, so it stands exactly
 * where the chunks and changes that the feed sends were made (feed.c).
 *
 * When rights change: the sessions concerned get the catalogue anew (what they may no longer see goes at its end,
 * live, in their mounts), wants and holdings are judged again, every member is told from which epoch on tickets count
 * for the accounts concerned, the holders of what somebody was fetching are told to end that at once, and who is
 * concerned asks for new tickets. Tickets of others stay good. */
#include "tracker/rights.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "crypto/ticket.h"
#include "tracker/server_private.h"

#define FOLDER  TRACKER__KIND__KIND_DIRECTORY
#define CONTENT TRACKER__KIND__KIND_FILE

/* Tickets of this account made before `epoch` are void; remembered for as long as there may be one. */
struct barred {
    struct barred *next;
    char account[ACCOUNT_BYTES_MAX + 1];
    uint64_t epoch;
    int64_t until; /* monotonic */
};

struct rights {
    struct access *access;
    uint8_t key[TICKET_KEY_SIZE];
    int64_t ticket_lifetime; /* seconds */
    uint64_t epoch;
    struct barred *barred;
};

/* --- opening -------------------------------------------------------------------------------------------- */

static bool key_open(struct rights *r, const char *dir, char **fault)
{
    char *path = xasprintf("%s/tickets.key", dir), *data = NULL;
    size_t size = 0;
    int error = file_read(path, TICKET_KEY_SIZE, true, &data, &size);
    if (error == 0 && size == TICKET_KEY_SIZE) {
        memcpy(r->key, data, sizeof r->key);
    } else if (error == 0 || error == -EFBIG) {
        error = -EINVAL;
        *fault = xasprintf("%s: is not a key of %d bytes; put the right one back, or remove it and "
                           "a new one is made",
                           path, TICKET_KEY_SIZE);
    } else if (error == -ENOENT) {
        random_bytes(r->key, sizeof r->key);
        error = file_replace(path, r->key, sizeof r->key, 0600);
    }
    if (error != 0 && *fault == NULL)
        *fault =
            xasprintf("%s: %s", path, error == -EPERM ? "others can read it" : strerror(-error));
    file_free_secret(data, size);
    free(path);
    return error == 0;
}

static void load_folder(uint64_t id, uint64_t parent, void *arg)
{
    access_folder_put(arg, id, parent);
}

static void load_content(const uint8_t root[STORAGE_ROOT_SIZE], uint64_t parent, void *arg)
{
    access_content_add(arg, root, parent);
}

static void load_rule(const struct storage_rule *rule, void *arg)
{
    access_rule_set(arg, rule->folder, (enum access_kind)rule->kind, rule->who,
                    (enum access_level)rule->level);
}

static void load_group(const char *group, const char *account, void *arg)
{
    if (account != NULL)
        access_group_join(arg, group, account);
}

struct rights *rights_open(const struct rights_settings *settings, struct storage *storage,
                           char **fault)
{
    struct rights *r = xcalloc(1, sizeof *r);
    r->access = access_new(settings->seed);
    r->ticket_lifetime = settings->ticket_lifetime;
    r->epoch = (uint64_t)(clock_wall() / NS_PER_US);
    if (!key_open(r, settings->dir, fault))
        goto fail;
    bool good = storage_begin(storage, false);
    if (good) {
        storage_folders_each(storage, load_folder, r->access);
        storage_contents_each(storage, load_content, r->access);
        storage_rules_each(storage, load_rule, r->access);
        storage_groups_each(storage, load_group, r->access);
        good = storage_commit(storage);
    }
    if (good)
        return r;
    *fault = xasprintf("cannot read the rules of access in %s", settings->dir);
fail:
    rights_close(r);
    return NULL;
}

void rights_close(struct rights *r)
{
    if (r == NULL)
        return;
    while (r->barred != NULL) {
        struct barred *next = r->barred->next;
        free(r->barred);
        r->barred = next;
    }
    access_free(r->access);
    secret_wipe(r->key, sizeof r->key);
    free(r);
}

struct access *rights_access(struct rights *r)
{
    return r->access;
}

/* --- judging -------------------------------------------------------------------------------------------- */

static struct access_account *account_of(const struct session *s)
{
    return access_account(s->server->rights->access, s->account);
}

static bool sees_all(const struct session *s)
{
    const struct member_account *account = members_account(s->server->members, s->account);
    return access_is_plain(s->server->rights->access) || (account != NULL && account->admin);
}

enum access_level rights_level(const struct session *s, uint64_t folder)
{
    struct access *a = s->server->rights->access;
    const struct member_account *account = members_account(s->server->members, s->account);
    if (account != NULL && account->admin)
        return ACCESS_MANAGE;
    return access_is_plain(a) ? ACCESS_WRITE : access_of(a, account_of(s), folder);
}

static bool sees(const struct session *s, uint8_t kind, uint64_t id, uint64_t parent)
{
    struct access *a = s->server->rights->access;
    if (sees_all(s))
        return true;
    return kind == FOLDER ? access_shows(a, account_of(s), id)
                          : access_of(a, account_of(s), parent) >= ACCESS_READ;
}

bool rights_sees(const struct session *s, const struct storage_entry *entry)
{
    return sees(s, entry->kind, entry->id, entry->parent);
}

bool rights_saw(const struct session *s, const struct storage_entry *entry)
{
    if (entry->was == 0)
        return false;
    if (entry->kind != FOLDER)
        return sees(s, entry->kind, entry->id, entry->was);
    return sees_all(s) || access_shows(s->server->rights->access, account_of(s), entry->was);
}

bool rights_sees_root(const struct session *s, const uint8_t root[HASH_SIZE])
{
    return sees_all(s) || access_content(s->server->rights->access, account_of(s), root);
}

/* --- tickets -------------------------------------------------------------------------------------------- */

void rights_server_key(const struct server *server, const uint8_t device[DEVICE_ID_SIZE],
                       uint8_t out[TICKET_KEY_SIZE])
{
    ticket_key(server->rights->key, device, out);
}

bool rights_ticket(const struct session *fetcher, const uint8_t device[DEVICE_ID_SIZE],
                   const uint8_t root[HASH_SIZE], uint8_t out[TICKET_SIZE])
{
    const struct rights *r = fetcher->server->rights;
    static const uint8_t whole[HASH_SIZE];
    uint8_t key[TICKET_KEY_SIZE];
    bool all = sees_all(fetcher);
    struct ticket ticket = {.epoch = r->epoch, .end = wall_seconds() + r->ticket_lifetime};
    ticket_key(r->key, device, key);
    ticket_make(key, fetcher->device, all ? whole : root, &ticket, out);
    return all;
}

static void push_barred(struct session *s, const char *account, uint64_t epoch, const uint8_t *root)
{
    Tracker__Barred message = TRACKER__BARRED__INIT;
    union {
        const char *from;
        char *to;
    } name = {.from = account};
    union {
        const uint8_t *from;
        uint8_t *to;
    } bytes = {.from = root};
    ProtobufCBinaryData item = {.len = HASH_SIZE, .data = bytes.to};
    message.account = name.to;
    message.epoch = epoch;
    message.n_roots = root == NULL ? 0 : 1;
    message.roots = &item;
    session_push(s, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_BARRED, &message.base);
}

void rights_greet(struct session *s)
{
    int64_t now = clock_now();
    for (struct barred **at = &s->server->rights->barred; *at != NULL;) {
        struct barred *b = *at;
        if (b->until <= now) {
            *at = b->next;
            free(b);
            continue;
        }
        push_barred(s, b->account, b->epoch, NULL);
        at = &b->next;
    }
}

/* Tickets of the account ("": of all) count from a new epoch on, and every member hears of it. */
static void bar(struct server *server, const char *account)
{
    struct rights *r = server->rights;
    uint64_t now = (uint64_t)(clock_wall() / NS_PER_US);
    r->epoch = now > r->epoch ? now : r->epoch + 1;
    struct barred *b = r->barred;
    while (b != NULL && strcmp(b->account, account) != 0)
        b = b->next;
    if (b == NULL) {
        b = xcalloc(1, sizeof *b);
        snprintf(b->account, sizeof b->account, "%s", account);
        b->next = r->barred;
        r->barred = b;
    }
    b->epoch = r->epoch;
    b->until = clock_now() + (r->ticket_lifetime + 60) * NS_PER_S;
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        if (session_is_member(s) && s->greeted)
            push_barred(s, account, r->epoch, NULL);
}

/* --- changes -------------------------------------------------------------------------------------------- */

/* A want that is not to be seen any more: whoever serves it ends that at once. */
static void lost(void *arg, struct swarm_device *asker, struct swarm_device *holder,
                 const struct swarm_key *key)
{
    struct server *server = arg;
    const struct session *fetcher = swarm_owner(asker);
    push_barred(swarm_owner(holder), fetcher->account, server->rights->epoch, key->root);
}

bool rights_judge(void *arg, void *owner, const uint8_t root[HASH_SIZE])
{
    (void)arg;
    return owner == NULL || rights_sees_root(owner, root);
}

bool rights_knows(void *arg, const uint8_t root[HASH_SIZE])
{
    const struct server *server = arg;
    return access_knows(server->rights->access, root);
}

/* The session's sight is another one now. That costs a look at all that it holds and the catalogue again from its
 * beginning, and whoever manages a folder can have it done for everybody: so not more than once in LIMIT_RENEW_NS. */
static void renew_session(struct session *s)
{
    Tracker__RenewTickets message = TRACKER__RENEW_TICKETS__INIT;
    int64_t now = clock_now();
    s->renew_later = s->renewed_at != 0 && now - s->renewed_at < LIMIT_RENEW_NS;
    if (!s->renew_later) {
        s->renewed_at = now;
        feed_renew(s);
        swarm_rejudge(s->server->swarm, s->peer, lost, s->server);
    }
    /* The old ones are void already. */
    session_push(s, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_RENEW_TICKETS, &message.base);
}

void rights_sweep(struct session *s, int64_t now)
{
    if (!session_is_member(s) || !session_is_open(s))
        return;
    if (s->renew_later && now - s->renewed_at >= LIMIT_RENEW_NS) {
        renew_session(s);
        announce_changed(s->server);
    }
    if (s->feed_anew)
        feed_renew(s);
}

void rights_changed(struct server *server, const char *account)
{
    bar(server, account);
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        if (session_is_member(s) && session_is_open(s) &&
            (*account == '\0' || strcmp(s->account, account) == 0))
            renew_session(s);
    announce_changed(server);
}

/* Whose rules differ between the two folders sees something else of what was moved. */
static bool differs(const struct session *s, uint64_t from, uint64_t to)
{
    struct access_walk one, two;
    struct access *a = s->server->rights->access;
    if (sees_all(s))
        return false;
    access_walk_of(a, account_of(s), from, &one);
    access_walk_of(a, account_of(s), to, &two);
    return memcmp(&one, &two, sizeof one) != 0;
}

static void folder_changed(struct server *server, const struct storage_entry *entry)
{
    struct access *a = server->rights->access;
    bool moved = entry->was != 0 && !entry->gone && entry->was != entry->parent;
    bool way = entry->gone && access_folder_has_rules(a, entry->id);
    for (struct session *s = server->sessions; (moved || way) && s != NULL; s = s->next) {
        if (!session_is_member(s) || sees_all(s))
            continue;
        /* A folder that could be read at the end of a way: the way goes with it. */
        s->renew |= way && access_of(a, account_of(s), entry->id) >= ACCESS_READ &&
                    access_of(a, account_of(s), entry->was) < ACCESS_READ;
        s->renew |= moved && differs(s, entry->was, entry->parent);
    }
    if (entry->gone)
        access_folder_gone(a, entry->id);
    else
        access_folder_put(a, entry->id, entry->parent);
    if (entry->was == 0 && entry->ruled)
        access_rule_set(a, entry->id, ACCESS_ACCOUNT, entry->owner, ACCESS_MANAGE);
}

static void content_changed(struct server *server, const struct storage_entry *entry)
{
    struct access *a = server->rights->access;
    bool moved = entry->was != 0 && !entry->gone && entry->was != entry->parent;
    if (entry->was != 0 && entry->was_file)
        access_content_remove(a, entry->was_root, entry->was, !moved);
    struct swarm_key key = {.size = entry->size};
    memcpy(key.root, entry->root, sizeof key.root);
    if (!entry->gone && entry->kind == CONTENT) {
        access_content_add(a, entry->root, entry->parent);
        swarm_published(server->swarm, &key);
    }
    if (access_is_plain(a))
        return;
    for (struct session *s = server->sessions; moved && s != NULL; s = s->next)
        if (session_is_member(s) && !sees_all(s) && sees(s, entry->kind, entry->id, entry->was) &&
            !rights_sees_root(s, entry->root))
            s->renew = true;
    if (!entry->gone && entry->kind == CONTENT && entry->size > 0)
        swarm_rejudge_content(server->swarm, &key, lost, server);
}

void rights_follow(struct server *server, const struct catalogue_changes *changes)
{
    for (size_t i = 0; i < changes->count; i++) {
        const struct storage_entry *entry = &changes->entries[i];
        if (entry->kind == FOLDER)
            folder_changed(server, entry);
        else
            content_changed(server, entry);
    }
}

void rights_followed(struct server *server)
{
    bool any = false;
    for (struct session *s = server->sessions; s != NULL; s = s->next)
        any |= s->renew;
    if (!any)
        return;
    bar(server, "");
    for (struct session *s = server->sessions; s != NULL; s = s->next) {
        Tracker__RenewTickets message = TRACKER__RENEW_TICKETS__INIT;
        if (!session_is_member(s) || !session_is_open(s))
            continue;
        if (s->renew)
            renew_session(s);
        else
            session_push(s, CHANNEL_URGENT, TRACKER__TRACKER_TYPE__TRACKER_RENEW_TICKETS,
                         &message.base);
        s->renew = false;
    }
    announce_changed(server);
}
