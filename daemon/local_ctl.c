/* p2pctl's requests that are answered out of this daemon: status, peers, ls, stop.
 *
 * Owns the questions under way (struct gather). Leaves accounts to local_account.c, and health, which the tracker knows, to
 * local_health.c. Thread: local. What download and upload know is asked of them by mail and put together when both have
 * answered. */
#include "daemon/limits.h"
#include "daemon/local_private.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/download.h"
#include "daemon/session.h"
#include "daemon/upload.h"
#include "proto/bans.h"
#include "proto/limits.h"
#include "proto/message.h"

/* --- paths ------------------------------------------------------------------------------------ */

/* The part of `path` inside the mount, or NULL. */
static const char *below(const char *path, const char *mountpoint)
{
    size_t length = strlen(mountpoint);

    while (length > 1 && mountpoint[length - 1] == '/')
        length--;
    if (length < 2 || strncmp(path, mountpoint, length) != 0)
        return NULL;
    return path[length] == '/' || path[length] == '\0' ? path + length : NULL;
}

const char *ctl_inside(const struct local *l, const char *path)
{
    for (const struct mount *m = l->mounts; m != NULL; m = m->hh.next) {
        const char *inside = m->client == NULL ? NULL : below(path, m->mountpoint);
        if (inside != NULL)
            return inside;
    }
    return path;
}

const struct node *ctl_resolve(struct local *l, struct reply reply, const char *path)
{
    const struct mount *m;
    const struct node *node = NULL;
    int error = -ENOENT;

    if (strlen(path) > LIMIT_PATH) {
        local_error(l, reply, ENAMETOOLONG, "the path is too long");
        return NULL;
    }
    for (m = l->mounts; m != NULL && node == NULL && local_is_visible(l); m = m->hh.next) {
        const char *inside = m->client == NULL ? NULL : below(path, m->mountpoint);
        if (inside != NULL)
            node = catalogue_resolve(l->catalogue, inside, &error);
    }
    if (node == NULL && local_is_visible(l))
        node = catalogue_resolve(l->catalogue, path, &error);
    if (node == NULL && !local_is_visible(l))
        local_error(l, reply, ENOENT, "nobody is logged in: p2pctl register, or login, URL NAME");
    else if (node == NULL)
        local_error(l, reply, error, "no such file in the swarm: %s", path);
    return node;
}

/* --- asking download and upload --------------------------------------------------------------- */

static void gather_free(struct local *l, struct gather *g)
{
    for (struct gather **at = &l->gathers; *at != NULL; at = &(*at)->next) {
        if (*at == g) {
            *at = g->next;
            break;
        }
    }
    if (g->down != NULL)
        download_status_free(g->down);
    if (g->up != NULL)
        upload_status_free(g->up);
    for (size_t i = 0; i < g->path_count; i++)
        free(g->paths[i]);
    free(g->paths);
    free(g);
}

struct gather *ctl_gather(struct local *l, struct reply reply, const uint8_t *root,
                          void (*finish)(struct local *, struct gather *))
{
    struct gather *g = xcalloc(1, sizeof *g);

    g->reply = reply;
    g->finish = finish;
    if (root != NULL) {
        g->has_root = true;
        memcpy(g->root, root, HASH_SIZE);
    }
    g->asked_down = g->asked_up = true;
    g->next = l->gathers;
    l->gathers = g;
    download_ask_status(l->daemon->download, root, g);
    upload_ask_status(l->daemon->upload, g);
    return g;
}

static void gathered(struct local *l, struct gather *g)
{
    if (g->asked_down || g->asked_up)
        return;
    if (!l->stopped)
        g->finish(l, g);
    gather_free(l, g);
}

void ctl_gathered_down(struct local *l, struct download_status *status)
{
    struct gather *g = status->cookie;

    g->down = status;
    g->asked_down = false;
    gathered(l, g);
}

void ctl_gathered_up(struct local *l, struct upload_status *status)
{
    struct gather *g = status->cookie;

    g->up = status;
    g->asked_up = false;
    gathered(l, g);
}

/* ": blocks 0 to 15, 48 and others", behind what is there; block numbers count from 0. */
#define GAPS_TOLD 4
static void add_gaps(const struct download_file_status *s, char *out, size_t size)
{
    uint32_t told = s->gap_count < GAPS_TOLD ? s->gap_count : GAPS_TOLD;

    for (uint32_t i = 0; i < told; i++) {
        size_t used = strlen(out);
        uint64_t first = s->gaps[i].first, last = first + s->gaps[i].count - 1;

        if (first == last)
            snprintf(out + used, size - used, "%s %" PRIu64, i == 0 ? ": blocks" : ",", first);
        else
            snprintf(out + used, size - used, "%s %" PRIu64 " to %" PRIu64,
                     i == 0 ? ": blocks" : ",", first, last);
    }
    if (told < s->gap_count || s->more_gaps) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, " and others");
    }
}

void ctl_trouble(const struct local *l, const struct download_status *down,
                 const uint8_t root[HASH_SIZE], char *out, size_t size)
{
    const struct download_file_status *s = NULL;

    out[0] = '\0';
    for (size_t i = 0; down != NULL && i < down->file_count; i++)
        if (memcmp(down->files[i].root, root, HASH_SIZE) == 0)
            s = &down->files[i];
    if (s == NULL || (s->waiting == 0 && !s->wanted_all))
        return;
    if (down->store_trouble[0] != '\0')
        snprintf(out, size, "%s", down->store_trouble);
    else if (s->holders == 0 && !local_is_connected(l))
        snprintf(out, size, "the tracker is away and nobody who has it is known");
    else if (s->holders == 0)
        snprintf(out, size, "nobody who is connected has it");
    else if (s->missing_pieces > 0)
        snprintf(out, size, "nobody who is connected has %" PRIu32 " of its pieces",
                 s->missing_pieces);
    if (down->store_trouble[0] == '\0' && (s->holders == 0 || s->missing_pieces > 0))
        add_gaps(s, out, size);
}

/* --- status ----------------------------------------------------------------------------------- */

struct status {
    Local__Status message;
    Local__FileStatus *files, **file_pointers;
    Local__Attr *attrs;
    char (*troubles)[256];
    Local__BlockRange (*gaps)[PICKER_GAPS], *(*gap_pointers)[PICKER_GAPS];
    size_t room;
    size_t looked_at; /* entries below directories, in this answer */
};

static void show_gaps(struct status *s, size_t i, const struct download_file_status *file)
{
    if (file->waiting == 0 && !file->wanted_all)
        return;
    for (uint32_t k = 0; k < file->gap_count; k++) {
        s->gaps[i][k] = (Local__BlockRange)LOCAL__BLOCK_RANGE__INIT;
        s->gaps[i][k].first = file->gaps[k].first;
        s->gaps[i][k].count = file->gaps[k].count;
        s->gap_pointers[i][k] = &s->gaps[i][k];
    }
    s->files[i].missing = s->gap_pointers[i];
    s->files[i].n_missing = file->gap_count;
    s->files[i].missing_more = file->more_gaps;
}

/* What is below a directory, all together. */
struct below {
    uint64_t files, size, here;
    size_t looked_at; /* in this answer */
};

/* False: there is too much to look at. */
static bool look_below(struct local *l, const struct node *directory, struct below *below)
{
    const struct node *child;
    uint64_t cookie = 0;

    while ((child = catalogue_next(l->catalogue, directory, &cookie)) != NULL) {
        Local__Attr attr;

        if (++below->looked_at > LIMIT_STATUS_BELOW)
            return false;
        if (child->kind == NODE_DIRECTORY && !look_below(l, child, below))
            return false;
        if (child->kind != NODE_FILE)
            continue;
        names_fill(l, &attr, child);
        below->files++;
        below->size += attr.size;
        below->here += attr.local;
    }
    return true;
}

static void add_file(struct local *l, const struct gather *g, struct status *s,
                     const struct node *node)
{
    size_t i = s->message.n_files;
    char *path = catalogue_path(l->catalogue, node);

    if (i == s->room || path == NULL) {
        free(path);
        return;
    }
    s->message.n_files++;
    Local__FileStatus *f = &s->files[i];
    *f = (Local__FileStatus)LOCAL__FILE_STATUS__INIT;
    s->file_pointers[i] = f;
    names_fill(l, &s->attrs[i], node);
    f->path = path;
    f->attr = &s->attrs[i];
    struct below below = {.looked_at = s->looked_at};
    if (node->kind == NODE_DIRECTORY && look_below(l, node, &below)) {
        f->files = below.files;
        s->attrs[i].size = below.size;
        s->attrs[i].local = below.here;
    }
    s->looked_at = below.looked_at;
    f->have = s->attrs[i].local;
    for (size_t k = 0; k < g->down->file_count && node->kind == NODE_FILE; k++) {
        if (memcmp(g->down->files[k].root, node->root, HASH_SIZE) != 0)
            continue;
        f->rate_in = g->down->files[k].rate;
        f->peers += g->down->files[k].links;
        f->waiting = g->down->files[k].waiting;
        show_gaps(s, i, &g->down->files[k]);
    }
    for (size_t k = 0; k < g->up->file_count && node->kind == NODE_FILE; k++) {
        if (memcmp(g->up->files[k].root, node->root, HASH_SIZE) != 0)
            continue;
        f->rate_out = g->up->files[k].rate;
        f->peers += g->up->files[k].links;
        f->sent = g->up->files[k].sent;
        f->sent_until_out = g->up->files[k].sent_until_out;
    }
    if (node->kind == NODE_FILE && !node->working) {
        struct rates limits = limits_of(l->daemon->limits, node->root);
        f->limit_up = limits.up;
        f->limit_down = limits.down;
    }
    ctl_trouble(l, g->down, node->root, s->troubles[i], sizeof s->troubles[i]);
    f->trouble = s->troubles[i];
}

static void add_moving(struct local *l, const struct gather *g, struct status *s)
{
    for (size_t i = 0; i < g->down->file_count; i++) {
        const struct download_file_status *f = &g->down->files[i];
        const struct node *node = catalogue_with_root(l->catalogue, f->root, NULL);
        if (node != NULL && (f->rate > 0 || f->waiting > 0 || f->wanted_all))
            add_file(l, g, s, node);
    }
    for (size_t i = 0; i < g->up->file_count; i++) {
        bool known = false;
        for (size_t k = 0; k < g->down->file_count && !known; k++)
            known = memcmp(g->down->files[k].root, g->up->files[i].root, HASH_SIZE) == 0 &&
                    (g->down->files[k].rate > 0 || g->down->files[k].waiting > 0 ||
                     g->down->files[k].wanted_all);
        const struct node *node = catalogue_with_root(l->catalogue, g->up->files[i].root, NULL);
        if (!known && node != NULL && g->up->files[i].rate > 0)
            add_file(l, g, s, node);
    }
    for (const struct working *w = l->workings; w != NULL; w = w->hh.next) {
        const struct node *node = catalogue_node(l->catalogue, w->ino);
        if (node != NULL)
            add_file(l, g, s, node);
    }
}

static void add_mounts(struct local *l, Local__Mount *mounts, Local__Mount **pointers,
                       Local__Status *message)
{
    for (const struct mount *m = l->mounts; m != NULL; m = m->hh.next) {
        if (m->client == NULL)
            continue;
        Local__Mount *one = &mounts[message->n_mounts];
        *one = (Local__Mount)LOCAL__MOUNT__INIT;
        one->mountpoint = m->mountpoint;
        one->pid = m->pid;
        one->open_files = HASH_COUNT(m->opened);
        pointers[message->n_mounts++] = one;
    }
    message->mounts = pointers;
}

static void fill_status(struct local *l, const struct gather *g, Local__Status *m)
{
    uint64_t total;

    m->account = message_text(local_is_visible(l) ? catalogue_account(l->catalogue) : "");
    if (l->swarm_name != NULL)
        m->swarm = l->swarm_name;
    m->connected = local_is_connected(l);
    if (l->trouble != NULL)
        m->tracker_trouble = l->trouble;
    m->entries_refused = l->entries_refused;
    m->keys_unexpected = l->keys_unexpected;
    m->pending = (uint32_t)catalogue_pending(l->catalogue);
    m->entries = local_is_visible(l) ? catalogue_entries(l->catalogue) : 0;
    store_space(l->daemon->store, &m->store_bytes, &m->store_free, &total);
    m->store_encrypted = store_is_encrypted(l->daemon->store);
    m->rate_in = g->down->rate;
    m->total_in = g->down->total;
    m->wasted_in = g->down->wasted;
    m->limit_up = __atomic_load_n(&l->daemon->settings.rate_up, __ATOMIC_RELAXED);
    m->limit_down = __atomic_load_n(&l->daemon->settings.rate_down, __ATOMIC_RELAXED);
    m->rate_out = g->up->rate;
    m->total_out = g->up->total;
    m->links_in = (uint32_t)g->down->link_count;
    m->links_out = (uint32_t)g->up->link_count;
    m->uptime = (uint64_t)((clock_now() - l->daemon->started) / NS_PER_S);
    m->store_trouble =
        g->down->store_trouble[0] != '\0' ? g->down->store_trouble : l->store_trouble;
    const char *cache_trouble;
    evict_status(l->evict, &m->cache_size, &m->cache_bytes, &cache_trouble);
    m->cache_trouble = message_text(cache_trouble);
    scrub_status(l->scrub, m);
    m->version = message_text(P2P_VERSION);
    m->pid = (uint32_t)getpid();
}

static void send_status(struct local *l, struct gather *g)
{
    struct status s = {.message = LOCAL__STATUS__INIT};
    unsigned mounts = HASH_COUNT(l->mounts);
    Local__Mount *mount_messages = xcalloc(mounts + 1, sizeof *mount_messages);
    Local__Mount **mount_pointers = xcalloc(mounts + 1, sizeof *mount_pointers);
    bool gone = false;

    s.room = g->path_count > 0 ? g->path_count : LIMIT_STATUS_FILES;
    s.files = xmalloc(s.room * sizeof *s.files);
    s.file_pointers = xmalloc(s.room * sizeof *s.file_pointers);
    s.attrs = xmalloc(s.room * sizeof *s.attrs);
    s.troubles = xmalloc(s.room * sizeof *s.troubles);
    s.gaps = xmalloc(s.room * sizeof *s.gaps);
    s.gap_pointers = xmalloc(s.room * sizeof *s.gap_pointers);
    s.message.files = s.file_pointers;
    fill_status(l, g, &s.message);
    add_mounts(l, mount_messages, mount_pointers, &s.message);
    for (size_t i = 0; i < g->path_count && !gone; i++) {
        const struct node *node = ctl_resolve(l, g->reply, g->paths[i]);
        gone = node == NULL;
        if (!gone)
            add_file(l, g, &s, node);
    }
    if (g->path_count == 0)
        add_moving(l, g, &s);
    if (!gone)
        local_send(l, g->reply, TYPE(STATUS_IS), &s.message.base);
    for (size_t i = 0; i < s.message.n_files; i++)
        free(s.files[i].path);
    free(s.files);
    free(s.file_pointers);
    free(s.attrs);
    free(s.troubles);
    free(s.gaps);
    free(s.gap_pointers);
    free(mount_messages);
    free(mount_pointers);
}

static void keep_paths(struct gather *g, char **paths, size_t count)
{
    g->paths = xcalloc(count + 1, sizeof *g->paths);
    g->path_count = count;
    for (size_t i = 0; i < count; i++)
        g->paths[i] = xstrdup(paths[i]);
}

bool ctl_check_paths(struct local *l, struct reply reply, char **paths, size_t count)
{
    if (count > LIMIT_HEALTH_FILES) {
        local_error(l, reply, E2BIG, "more than %d paths", LIMIT_HEALTH_FILES);
        return false;
    }
    for (size_t i = 0; i < count; i++)
        if (ctl_resolve(l, reply, paths[i]) == NULL)
            return false;
    return true;
}

void ctl_status(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__StatusRequest *m = message;

    if (ctl_check_paths(l, reply, m->paths, m->n_paths))
        keep_paths(ctl_gather(l, reply, NULL, send_status), m->paths, m->n_paths);
}

/* --- peers ------------------------------------------------------------------------------------ */

static char *short_device(const uint8_t device[16])
{
    char *text = xmalloc(17);

    hex_encode(text, device, 8);
    return text;
}

/* The download side shows those that it has met. */
static bool is_shown_as_banned(const struct download_status *down, const uint8_t device[16])
{
    for (size_t i = 0; i < down->link_count; i++)
        if (memcmp(down->links[i].device, device, sizeof down->links[i].device) == 0 &&
            strncmp(down->links[i].state, "banned", 6) == 0)
            return true;
    return false;
}

/* Fills *p, which borrows all but `device` from *s. */
static Local__Peer *show_link(Local__Peer *p, struct link_status *s, const char *direction)
{
    p->account = s->account;
    p->device = short_device(s->device);
    p->address = s->address;
    p->direction = message_text(direction);
    p->rate = s->rate;
    p->total = s->total;
    p->rtt_us = s->rtt_us;
    p->files = s->files;
    p->queued = s->queued;
    p->choked = s->choked;
    p->state = s->state;
    p->have = s->have_bytes;
    return p;
}

static void send_peers(struct local *l, struct gather *g)
{
    Local__Peers message = LOCAL__PEERS__INIT;
    struct ban *bans = xcalloc(LIMIT_BANS_SHOWN, sizeof *bans);
    size_t banned = bans_list(l->daemon->bans, clock_now(), bans, LIMIT_BANS_SHOWN);
    char **states = xcalloc(banned + 1, sizeof *states);
    size_t most = g->down->link_count + g->up->link_count + banned;
    Local__Peer *peers = xcalloc(most + 1, sizeof *peers),
                **pointers = xcalloc(most + 1, sizeof *pointers);

    message.peers = pointers;
    for (size_t i = 0; i < most; i++)
        peers[i] = (Local__Peer)LOCAL__PEER__INIT;
    for (size_t i = 0; i < g->down->link_count; i++) {
        struct link_status *s = &g->down->links[i];
        if (g->has_root && s->have_bytes == 0)
            continue;
        pointers[message.n_peers] = show_link(&peers[message.n_peers], s, "in");
        message.n_peers++;
    }
    for (size_t i = 0; !g->has_root && i < g->up->link_count; i++) {
        pointers[message.n_peers] = show_link(&peers[message.n_peers], &g->up->links[i], "out");
        message.n_peers++;
    }
    for (size_t i = 0; !g->has_root && i < banned; i++) {
        Local__Peer *p = &peers[message.n_peers];
        if (is_shown_as_banned(g->down, bans[i].device))
            continue;
        p->account = bans[i].account;
        p->device = short_device(bans[i].device);
        p->direction = message_text("out");
        p->state = states[i] = xasprintf("banned: %s", bans[i].why);
        pointers[message.n_peers++] = p;
    }
    local_send(l, g->reply, TYPE(PEERS_ARE), &message.base);
    for (size_t i = 0; i < message.n_peers; i++)
        free(pointers[i]->device);
    for (size_t i = 0; i < banned; i++)
        free(states[i]);
    free(states);
    free(bans);
    free(peers);
    free(pointers);
}

void ctl_peers(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Paths *m = message;
    const struct node *node = NULL;

    if (m->n_paths > 1) {
        local_error(l, reply, EINVAL, "one path at a time");
        return;
    }
    if (m->n_paths == 1 && (node = ctl_resolve(l, reply, m->paths[0])) == NULL)
        return;
    if (node != NULL && (node->kind != NODE_FILE || node->working)) {
        local_error(l, reply, EINVAL, "not a published file: %s", m->paths[0]);
        return;
    }
    ctl_gather(l, reply, node == NULL ? NULL : node->root, send_peers);
}

/* --- the rest --------------------------------------------------------------------------------- */

void ctl_ls(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Ls *m = message;
    const struct node *node = ctl_resolve(l, reply, m->path);
    Local__Listing listing = LOCAL__LISTING__INIT;
    Local__Attr attr, *entries[1] = {&attr};
    uint64_t cookie = 1;

    if (node == NULL)
        return;
    if (node->kind == NODE_DIRECTORY) {
        names_list(l, reply, node, m->cookie, LIMIT_LIST_ENTRIES);
        return;
    }
    names_fill(l, &attr, node);
    listing.entries = entries;
    listing.n_entries = 1;
    listing.cookies = &cookie;
    listing.n_cookies = 1;
    listing.end = true;
    local_send(l, reply, TYPE(LISTING), &listing.base);
}

void ctl_stop(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    local_done(l, reply);
    if (l->on_stop != NULL)
        l->on_stop(l->on_stop_arg);
}

void ctl_free(struct local *l)
{
    while (l->gathers != NULL)
        gather_free(l, l->gathers);
}
