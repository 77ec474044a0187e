/* A p2pd made of memory, for tests of p2pfs: speaks the local protocol on HOME's socket, on a loop's
 * thread of its own in the test's process.
 *
 * The tree is a table of nodes. A file's bytes are fake_byte(seed, offset), so that any reader can
 * check them; which blocks are present is the test's to say. It can die (fake_crash: listener and
 * connections gone at once, the tree stays) and come back (fake_listen). What it was asked is
 * counted. For one test program; the process that runs it never touches the mount through mappings,
 * for its own allocations would wait for itself. */
#ifndef TESTS_FAKE_DAEMON_H
#define TESTS_FAKE_DAEMON_H

#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/home.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"

#define FAKE_NODES   4096
#define FAKE_WANTS   8192
#define FAKE_CLIENTS 8
#define FAKE_BLOCK   16384
#define FAKE_TYPES   128

#define T(name)      LOCAL__LOCAL_TYPE__LOCAL_##name

struct fake_node {
    bool used, removed;
    uint64_t ino, parent;
    char name[256];
    Local__Kind kind;
    uint32_t mode;
    uint64_t size;
    int64_t mtime;
    char target[256];
    unsigned seed;
    int data_fd, map_fd;
    uint8_t *map;
    uint64_t blocks;
    int working_fd; /* -1: sealed */
    bool complete;
    unsigned versions; /* how often it was sealed */
};

struct fake_want {
    bool used;
    uint32_t id;
    unsigned client;
    uint64_t ino, offset, size;
};

struct fake_client {
    struct fake *fake;
    struct channel *channel;
    int fd; /* the channel's */
};

struct fake {
    struct loop *loop;
    char *home, *socket;
    struct event listener;
    int listen_fd;
    struct fake_client clients[FAKE_CLIENTS];
    struct fake_node nodes[FAKE_NODES];
    unsigned node_count;
    uint64_t next_ino;
    struct fake_want wants[FAKE_WANTS];
    const char *account;
    int seal_error, begin_error; /* 0, or what the next Seal, WriteBegin gets */
    int seal_delay_ms;
    int deaf;             /* asked, but does not answer */
    int remap;            /* a new map file when it comes back */
    int crash_after_type; /* dies after carrying out a request of that type, before it answers */
    /* Atomic counts: */
    unsigned asked[FAKE_TYPES];
    unsigned waiting; /* Wants without answer */
    unsigned greeted;
};

static inline uint8_t fake_byte(unsigned seed, uint64_t offset)
{
    uint64_t x = (offset >> 3) * UINT64_C(0x9e3779b97f4a7c15) + seed;

    x ^= x >> 29;
    return (uint8_t)((x * UINT64_C(0xbf58476d1ce4e5b9)) >> (8 * (offset & 7)));
}

static inline unsigned fake_asked(struct fake *fake, unsigned type)
{
    return __atomic_load_n(&fake->asked[type], __ATOMIC_RELAXED);
}

static inline unsigned fake_waiting(struct fake *fake)
{
    return __atomic_load_n(&fake->waiting, __ATOMIC_RELAXED);
}

/* --- calls from the test: run on the loop's thread, waited for ------------------------------------- */

struct fake_call {
    struct mail mail;
    struct fake *fake;
    void (*run)(struct fake *, void *);
    void *arg;
    sem_t done;
};

static inline void fake_run_call(struct mail *mail, void *owner)
{
    struct fake_call *call = (struct fake_call *)mail;

    call->run(call->fake, call->arg);
    sem_post(&call->done);
}

static inline void fake_do(struct fake *fake, void (*run)(struct fake *, void *), void *arg)
{
    struct fake_call call = {
        .mail = {.deliver = fake_run_call}, .fake = fake, .run = run, .arg = arg};

    sem_init(&call.done, 0, 0);
    loop_post(fake->loop, &call.mail);
    while (sem_wait(&call.done) != 0)
        ;
    sem_destroy(&call.done);
}

/* --- the tree --------------------------------------------------------------------------------------- */

static inline struct fake_node *fake_node(struct fake *fake, uint64_t ino)
{
    for (unsigned i = 0; i < fake->node_count; i++)
        if (fake->nodes[i].used && fake->nodes[i].ino == ino)
            return &fake->nodes[i];
    return NULL;
}

static inline struct fake_node *fake_child(struct fake *fake, uint64_t parent, const char *name)
{
    for (unsigned i = 0; i < fake->node_count; i++) {
        struct fake_node *n = &fake->nodes[i];

        if (n->used && !n->removed && n->parent == parent && strcmp(n->name, name) == 0)
            return n;
    }
    return NULL;
}

static inline struct fake_node *fake_new(struct fake *fake, uint64_t parent, const char *name,
                                         Local__Kind kind, uint32_t mode)
{
    struct fake_node *n;

    CHECK(fake->node_count < FAKE_NODES);
    n = &fake->nodes[fake->node_count++];
    *n = (struct fake_node){.used = true,
                            .ino = fake->next_ino++,
                            .parent = parent,
                            .kind = kind,
                            .mode = mode,
                            .mtime = clock_wall(),
                            .data_fd = -1,
                            .map_fd = -1,
                            .working_fd = -1};
    snprintf(n->name, sizeof(n->name), "%s", name);
    return n;
}

static inline void fake_new_map(struct fake_node *n)
{
    size_t bytes = 4096 + bitmap_bytes(n->blocks);
    uint8_t *old = n->map;

    n->map_fd = memfd_create("map", MFD_CLOEXEC);
    CHECK(ftruncate(n->map_fd, (off_t)bytes) == 0);
    n->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, n->map_fd, 0);
    CHECK(n->map != MAP_FAILED);
    n->map += 4096;
    if (old != NULL)
        memcpy(n->map, old, bitmap_bytes(n->blocks));
}

static inline void fake_fill(struct fake_node *n, uint64_t block)
{
    uint8_t bytes[FAKE_BLOCK];
    uint64_t from = block * FAKE_BLOCK;
    size_t size = n->size - from < FAKE_BLOCK ? n->size - from : FAKE_BLOCK;

    for (size_t i = 0; i < size; i++)
        bytes[i] = fake_byte(n->seed, from + i);
    CHECK(pwrite(n->data_fd, bytes, size, (off_t)from) == (ssize_t)size);
    bitmap_set(n->map, block);
}

struct fake_file {
    uint64_t parent;
    const char *name;
    uint64_t size;
    bool present;
    uint64_t ino; /* out */
};

static inline void fake_add_file_here(struct fake *fake, void *arg)
{
    struct fake_file *f = arg;
    struct fake_node *n = fake_new(fake, f->parent, f->name, LOCAL__KIND__KIND_FILE, 0644);

    f->ino = n->ino;
    n->size = f->size;
    n->seed = (unsigned)n->ino;
    n->blocks = (f->size + FAKE_BLOCK - 1) / FAKE_BLOCK;
    if (f->size == 0)
        return;
    n->data_fd = memfd_create("data", MFD_CLOEXEC);
    CHECK(ftruncate(n->data_fd, (off_t)f->size) == 0);
    fake_new_map(n);
    for (uint64_t i = 0; f->present && i < n->blocks; i++)
        fake_fill(n, i);
}

static inline void fake_add_plain_here(struct fake *fake, void *arg)
{
    fake_new(fake, 1, arg, LOCAL__KIND__KIND_FILE, 0644);
}

static inline uint64_t fake_add_file(struct fake *fake, uint64_t parent, const char *name,
                                     uint64_t size, bool present)
{
    struct fake_file f = {.parent = parent, .name = name, .size = size, .present = present};

    fake_do(fake, fake_add_file_here, &f);
    return f.ino;
}

/* --- answers ---------------------------------------------------------------------------------------- */

static inline void fake_attr(Local__Attr *attr, struct fake_node *n)
{
    *attr = (Local__Attr)LOCAL__ATTR__INIT;
    attr->ino = n->ino;
    attr->kind = n->kind;
    attr->size = n->kind == LOCAL__KIND__KIND_SYMLINK ? strlen(n->target) : n->size;
    attr->mode = n->mode;
    attr->mtime = n->mtime;
    attr->nlink = 1;
    attr->parent = n->parent;
    attr->name = n->name;
    attr->state = LOCAL__STATE__STATE_COMPLETE;
    if (n->working_fd >= 0)
        attr->state = LOCAL__STATE__STATE_LOCAL;
    else if (n->map != NULL && !bitmap_all(n->map, 0, n->blocks))
        attr->state = LOCAL__STATE__STATE_STREAMING;
    attr->local = n->map != NULL ? bitmap_count(n->map, 0, n->blocks) * FAKE_BLOCK : n->size;
}

static inline void fake_send(struct fake_client *c, uint16_t type, uint32_t id,
                             const ProtobufCMessage *message)
{
    channel_send(c->channel, CHANNEL_URGENT, type, FRAME_ANSWER, id, message, NULL, 0);
}

static inline void fake_error(struct fake_client *c, uint32_t id, int number)
{
    Local__Error error = LOCAL__ERROR__INIT;

    error.number = number;
    fake_send(c, T(ERROR), id, &error.base);
}

static inline void fake_done(struct fake_client *c, uint32_t id)
{
    Local__Done done = LOCAL__DONE__INIT;

    fake_send(c, T(DONE), id, &done.base);
}

static inline void fake_send_attr(struct fake_client *c, uint32_t id, struct fake_node *n)
{
    Local__Attr attr;

    fake_attr(&attr, n);
    fake_send(c, T(ATTR), id, &attr.base);
}

static inline void fake_send_opened(struct fake_client *c, uint32_t id, struct fake_node *n)
{
    Local__Opened opened = LOCAL__OPENED__INIT;
    Local__Attr attr;
    int fds[2];
    unsigned count = 0;
    uint8_t root[32] = {0};

    fake_attr(&attr, n);
    opened.attr = &attr;
    opened.size = n->size;
    opened.complete = n->complete;
    opened.working = n->working_fd >= 0;
    if (opened.working) {
        fds[count++] = n->working_fd;
    } else {
        opened.root.data = root;
        opened.root.len = sizeof(root);
        if (n->size > 0) {
            fds[count++] = n->data_fd;
            fds[count++] = n->map_fd;
        }
    }
    channel_send_fds(c->channel, T(OPENED), FRAME_ANSWER, id, &opened.base, fds, count);
}

static inline bool fake_has(struct fake_node *n, uint64_t offset, uint64_t size)
{
    uint64_t end = offset + size < n->size ? offset + size : n->size;

    if (n->map == NULL || offset >= n->size)
        return true;
    return bitmap_all(n->map, offset / FAKE_BLOCK,
                      (end - 1) / FAKE_BLOCK - offset / FAKE_BLOCK + 1);
}

/* Answers the Wants that can be. */
static inline void fake_serve_wants(struct fake *fake)
{
    for (unsigned i = 0; i < FAKE_WANTS; i++) {
        struct fake_want *w = &fake->wants[i];
        struct fake_node *n = w->used ? fake_node(fake, w->ino) : NULL;

        if (n == NULL || !fake_has(n, w->offset, w->size))
            continue;
        w->used = false;
        __atomic_fetch_sub(&fake->waiting, 1, __ATOMIC_RELAXED);
        if (fake->clients[w->client].channel != NULL)
            fake_done(&fake->clients[w->client], w->id);
    }
}

struct fake_range {
    uint64_t ino, first, count;
};

static inline void fake_give_here(struct fake *fake, void *arg)
{
    struct fake_range *range = arg;
    struct fake_node *n = fake_node(fake, range->ino);

    for (uint64_t i = range->first; i < range->first + range->count && i < n->blocks; i++)
        fake_fill(n, i);
    fake_serve_wants(fake);
}

/* Blocks arrive. */
static inline void fake_give(struct fake *fake, uint64_t ino, uint64_t first, uint64_t count)
{
    struct fake_range range = {ino, first, count};

    fake_do(fake, fake_give_here, &range);
}

static inline void fake_on_readdir(struct fake_client *c, uint32_t id, const Local__Readdir *ask)
{
    struct fake *fake = c->fake;
    static Local__Attr attrs[LIMIT_LIST_ENTRIES], *pointers[LIMIT_LIST_ENTRIES];
    static uint64_t cookies[LIMIT_LIST_ENTRIES];
    Local__Listing listing = LOCAL__LISTING__INIT;
    unsigned i;

    listing.entries = pointers;
    listing.cookies = cookies;
    for (i = (unsigned)ask->cookie; i < fake->node_count && listing.n_entries < ask->count; i++) {
        struct fake_node *n = &fake->nodes[i];

        if (n->removed || n->parent != ask->ino || n->ino == 1)
            continue;
        fake_attr(&attrs[listing.n_entries], n);
        pointers[listing.n_entries] = &attrs[listing.n_entries];
        cookies[listing.n_entries++] = i + 1;
    }
    listing.n_cookies = listing.n_entries;
    listing.end = i >= fake->node_count;
    fake_send(c, T(LISTING), id, &listing.base);
}

static inline void fake_on_make(struct fake_client *c, uint16_t type, uint32_t id,
                                const Local__Make *ask)
{
    struct fake *fake = c->fake;
    struct fake_node *n = fake_child(fake, ask->parent, ask->name);

    if (n != NULL && (type != T(CREATE) || ask->exclusive)) {
        fake_error(c, id, EEXIST);
        return;
    }
    if (type == T(CREATE)) {
        if (n == NULL) {
            n = fake_new(fake, ask->parent, ask->name, LOCAL__KIND__KIND_FILE, ask->mode);
            n->working_fd = memfd_create("working", MFD_CLOEXEC);
        }
        fake_send_opened(c, id, n);
        return;
    }
    n = fake_new(fake, ask->parent, ask->name,
                 type == T(MKDIR) ? LOCAL__KIND__KIND_DIRECTORY : LOCAL__KIND__KIND_SYMLINK,
                 ask->mode);
    snprintf(n->target, sizeof(n->target), "%s", ask->target);
    fake_send_attr(c, id, n);
}

static inline void fake_on_rename(struct fake_client *c, uint32_t id, const Local__Rename *ask)
{
    struct fake_node *from = fake_child(c->fake, ask->parent, ask->name);
    struct fake_node *to = fake_child(c->fake, ask->to_parent, ask->to_name);

    if (from == NULL) {
        fake_error(c, id, ENOENT);
        return;
    }
    if (to != NULL && ask->no_replace) {
        fake_error(c, id, EEXIST);
        return;
    }
    if (to != NULL)
        to->removed = true;
    from->parent = ask->to_parent;
    snprintf(from->name, sizeof(from->name), "%s", ask->to_name);
    fake_done(c, id);
}

static inline void fake_on_begin(struct fake_client *c, uint32_t id, const Local__WriteBegin *ask)
{
    struct fake_node *n = fake_node(c->fake, ask->ino);
    int fd = memfd_create("working", MFD_CLOEXEC);

    if (c->fake->begin_error != 0) {
        fake_error(c, id, c->fake->begin_error);
        c->fake->begin_error = 0;
        close(fd);
        return;
    }
    for (uint64_t at = 0; n->data_fd >= 0 && at < ask->size;) {
        uint8_t bytes[65536];
        size_t want = ask->size - at < sizeof(bytes) ? ask->size - at : sizeof(bytes);
        ssize_t got = pread(n->data_fd, bytes, want, (off_t)at);

        CHECK(got > 0 && pwrite(fd, bytes, (size_t)got, (off_t)at) == got);
        at += (uint64_t)got;
    }
    n->working_fd = fd;
    fake_send_opened(c, id, n);
}

static inline void fake_on_seal(struct fake_client *c, uint32_t id, const Local__Seal *ask)
{
    struct fake_node *n = fake_node(c->fake, ask->ino);
    struct stat st;

    if (c->fake->seal_delay_ms > 0)
        usleep((unsigned)c->fake->seal_delay_ms * 1000);
    if (c->fake->seal_error != 0) {
        fake_error(c, id, c->fake->seal_error);
        c->fake->seal_error = 0;
        return;
    }
    if (n->working_fd >= 0) {
        CHECK(fstat(n->working_fd, &st) == 0 && (uint64_t)st.st_size == ask->size);
        n->data_fd = n->working_fd;
        n->working_fd = -1;
        n->size = ask->size;
        n->blocks = (n->size + FAKE_BLOCK - 1) / FAKE_BLOCK;
        n->map = NULL;
        fake_new_map(n);
        for (uint64_t i = 0; i < n->blocks; i++)
            bitmap_set(n->map, i);
        n->complete = true;
        n->versions++;
        n->mtime = ask->set_mtime ? ask->mtime : clock_wall();
    }
    fake_send_attr(c, id, n);
}

static inline void fake_on_want(struct fake_client *c, uint32_t id, const Local__Want *ask)
{
    struct fake *fake = c->fake;

    for (unsigned i = 0; i < FAKE_WANTS; i++)
        if (!fake->wants[i].used) {
            fake->wants[i] = (struct fake_want){
                true, id, (unsigned)(c - fake->clients), ask->ino, ask->offset, ask->size};
            __atomic_fetch_add(&fake->waiting, 1, __ATOMIC_RELAXED);
            fake_serve_wants(fake);
            return;
        }
    fake_error(c, id, EIO);
}

static inline void fake_on_unwant(struct fake_client *c, uint32_t id)
{
    struct fake *fake = c->fake;

    for (unsigned i = 0; i < FAKE_WANTS; i++)
        if (fake->wants[i].used && fake->wants[i].id == id) {
            fake->wants[i].used = false;
            __atomic_fetch_sub(&fake->waiting, 1, __ATOMIC_RELAXED);
        }
}

static inline void fake_crash_here(struct fake *fake, void *arg);

/* Requests about one node. */
static inline void fake_on_node(struct fake_client *c, uint16_t type, uint32_t id, uint64_t ino,
                                const Local__Setattr *set, const char *xattr)
{
    struct fake_node *n = fake_node(c->fake, ino);
    Local__Text text = LOCAL__TEXT__INIT;

    if (n == NULL) {
        fake_error(c, id, ENOENT);
        return;
    }
    switch (type) {
    case T(GETATTR):
        if (n->removed)
            fake_error(c, id, ENOENT);
        else
            fake_send_attr(c, id, n);
        break;
    case T(SETATTR):
        if (set->set_mode)
            n->mode = set->mode;
        if (set->set_mtime)
            n->mtime = set->mtime;
        fake_send_attr(c, id, n);
        break;
    case T(READLINK):
        text.text = n->target;
        fake_send(c, T(TEXT), id, &text.base);
        break;
    case T(GETXATTR):
        if (strcmp(xattr, "user.p2p.state") == 0)
            channel_send(c->channel, CHANNEL_URGENT, T(TEXT), FRAME_ANSWER, id, &text.base,
                         "complete", 8);
        else
            fake_error(c, id, ENODATA);
        break;
    case T(LISTXATTR):
        channel_send(c->channel, CHANNEL_URGENT, T(TEXT), FRAME_ANSWER, id, &text.base, "user.ab",
                     8);
        break;
    case T(OPEN):
        fake_send_opened(c, id, n);
        break;
    default:
        fake_done(c, id);
        break;
    }
}

static inline const char *fake_frame(void *arg, const struct frame *frame, const uint8_t *message,
                                     void *payload)
{
    struct fake_client *c = arg;
    struct fake *fake = c->fake;
    size_t size = frame->message_size;
    uint32_t id = frame->id;

    CHECK(frame->type < FAKE_TYPES);
    __atomic_fetch_add(&fake->asked[frame->type], 1, __ATOMIC_RELAXED);
    if (fake->deaf)
        return NULL;
#define TAKE(kind, name)                                                                           \
    Local__##kind *ask = local__##name##__unpack(NULL, size, message);                             \
    CHECK(ask != NULL)
    switch (frame->type) {
    case T(HELLO): {
        Local__Welcome welcome = LOCAL__WELCOME__INIT;

        welcome.version = 1;
        welcome.pid = (uint32_t)getpid();
        welcome.account = strdup(fake->account);
        fake_send(c, T(WELCOME), id, &welcome.base);
        free(welcome.account);
        __atomic_fetch_add(&fake->greeted, 1, __ATOMIC_RELAXED);
        break;
    }
    case T(LOOKUP): {
        TAKE(Lookup, lookup);
        struct fake_node *n = fake_child(fake, ask->parent, ask->name);

        if (n == NULL)
            fake_error(c, id, ENOENT);
        else
            fake_send_attr(c, id, n);
        local__lookup__free_unpacked(ask, NULL);
        break;
    }
    case T(UNLINK):
    case T(RMDIR): {
        TAKE(Lookup, lookup);
        struct fake_node *n = fake_child(fake, ask->parent, ask->name);

        if (n == NULL)
            fake_error(c, id, ENOENT);
        else
            n->removed = true;
        if (n != NULL && fake->crash_after_type != frame->type)
            fake_done(c, id);
        local__lookup__free_unpacked(ask, NULL);
        break;
    }
    case T(GETATTR):
    case T(READLINK):
    case T(LISTXATTR):
    case T(SYNC): {
        TAKE(Node, node);
        fake_on_node(c, frame->type, id, ask->ino, NULL, NULL);
        local__node__free_unpacked(ask, NULL);
        break;
    }
    case T(SETATTR): {
        TAKE(Setattr, setattr);
        fake_on_node(c, frame->type, id, ask->ino, ask, NULL);
        local__setattr__free_unpacked(ask, NULL);
        break;
    }
    case T(GETXATTR): {
        TAKE(Xattr, xattr);
        fake_on_node(c, frame->type, id, ask->ino, NULL, ask->name);
        local__xattr__free_unpacked(ask, NULL);
        break;
    }
    case T(OPEN): {
        TAKE(Open, open);
        fake_on_node(c, frame->type, id, ask->ino, NULL, NULL);
        local__open__free_unpacked(ask, NULL);
        break;
    }
    case T(READDIR): {
        TAKE(Readdir, readdir);
        fake_on_readdir(c, id, ask);
        local__readdir__free_unpacked(ask, NULL);
        break;
    }
    case T(STATFS): {
        Local__Space space = LOCAL__SPACE__INIT;

        space.size = UINT64_C(10) << 30;
        space.free = UINT64_C(4) << 30;
        space.entries = fake->node_count;
        fake_send(c, T(SPACE), id, &space.base);
        break;
    }
    case T(MKDIR):
    case T(SYMLINK):
    case T(CREATE): {
        TAKE(Make, make);
        if (fake->crash_after_type == frame->type)
            fake_new(fake, ask->parent, ask->name, LOCAL__KIND__KIND_DIRECTORY, ask->mode);
        else
            fake_on_make(c, frame->type, id, ask);
        local__make__free_unpacked(ask, NULL);
        break;
    }
    case T(RENAME): {
        TAKE(Rename, rename);
        fake_on_rename(c, id, ask);
        local__rename__free_unpacked(ask, NULL);
        break;
    }
    case T(WRITE_BEGIN): {
        TAKE(WriteBegin, write_begin);
        fake_on_begin(c, id, ask);
        local__write_begin__free_unpacked(ask, NULL);
        break;
    }
    case T(SEAL): {
        TAKE(Seal, seal);
        fake_on_seal(c, id, ask);
        local__seal__free_unpacked(ask, NULL);
        break;
    }
    case T(WANT): {
        TAKE(Want, want);
        fake_on_want(c, id, ask);
        local__want__free_unpacked(ask, NULL);
        break;
    }
    case T(UNWANT): {
        TAKE(Unwant, unwant);
        fake_on_unwant(c, ask->request);
        local__unwant__free_unpacked(ask, NULL);
        break;
    }
    case T(SETXATTR):
    case T(REATTACH):
        fake_done(c, id);
        break;
    case T(WROTE):
    case T(READING):
    case T(RELEASE):
        break;
    default:
        return "what is that?";
    }
#undef TAKE
    if (fake->crash_after_type != 0 && fake->crash_after_type == frame->type) {
        fake->crash_after_type = 0;
        fake_crash_here(fake, NULL);
    }
    return NULL;
}

/* --- connections ------------------------------------------------------------------------------------ */

static inline void fake_forget_wants(struct fake *fake, unsigned client)
{
    for (unsigned i = 0; i < FAKE_WANTS; i++)
        if (fake->wants[i].used && fake->wants[i].client == client) {
            fake->wants[i].used = false;
            __atomic_fetch_sub(&fake->waiting, 1, __ATOMIC_RELAXED);
        }
}

static inline void fake_closed(void *arg, bool orderly, const char *why)
{
    struct fake_client *c = arg;

    channel_free(c->channel);
    c->channel = NULL;
    fake_forget_wants(c->fake, (unsigned)(c - c->fake->clients));
}

static const struct channel_events fake_events = {.frame = fake_frame, .closed = fake_closed};

static inline void fake_accept(evutil_socket_t fd, short what, void *arg)
{
    struct fake *fake = arg;
    int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (client < 0)
        return;
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i].channel == NULL) {
            struct fake_client *c = &fake->clients[i];

            c->fake = fake;
            c->fd = client;
            c->channel = channel_new(fake->loop, stream_unix(fake->loop, client), &fake_events, c);
            channel_trust(c->channel);
            return;
        }
    close(client);
}

static inline void fake_listen_here(struct fake *fake, void *arg)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", fake->socket);
    unlink(fake->socket);
    fake->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(bind(fake->listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    CHECK(listen(fake->listen_fd, 16) == 0);
    event_assign(&fake->listener, loop_base(fake->loop), fake->listen_fd, EV_READ | EV_PERSIST,
                 fake_accept, fake);
    event_add(&fake->listener, NULL);
    for (unsigned i = 0; fake->remap && i < fake->node_count; i++)
        if (fake->nodes[i].map != NULL && fake->nodes[i].working_fd < 0)
            fake_new_map(&fake->nodes[i]);
}

static inline void fake_crash_here(struct fake *fake, void *arg)
{
    if (fake->listen_fd >= 0) {
        event_del(&fake->listener);
        close(fake->listen_fd);
        unlink(fake->socket);
        fake->listen_fd = -1;
    }
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i].channel != NULL) {
            /* The test's children have copies of it: closing ours would not end the connection. */
            shutdown(fake->clients[i].fd, SHUT_RDWR);
            fake_closed(&fake->clients[i], false, "");
        }
}

static inline void fake_crash(struct fake *fake)
{
    fake_do(fake, fake_crash_here, NULL);
}

static inline void fake_listen(struct fake *fake)
{
    fake_do(fake, fake_listen_here, NULL);
}

/* A copy of an entry as it is now; all zero if there is none. */
struct fake_look {
    uint64_t parent;
    const char *name;
    struct fake_node node;
};

static inline void fake_look_here(struct fake *fake, void *arg)
{
    struct fake_look *look = arg;
    struct fake_node *n = fake_child(fake, look->parent, look->name);

    look->node = n != NULL ? *n : (struct fake_node){.used = false};
}

static inline struct fake_node fake_look(struct fake *fake, uint64_t parent, const char *name)
{
    struct fake_look look = {.parent = parent, .name = name};

    fake_do(fake, fake_look_here, &look);
    return look.node;
}

/* Sets one of its switches. */
struct fake_switch {
    int *at, value;
};

static inline void fake_set_here(struct fake *fake, void *arg)
{
    struct fake_switch *s = arg;

    *s->at = s->value;
}

static inline void fake_set(struct fake *fake, int *at, int value)
{
    struct fake_switch s = {at, value};

    fake_do(fake, fake_set_here, &s);
}

struct fake_invalid {
    uint64_t ino, parent;
    const char *name;
};

static inline void fake_invalidate_here(struct fake *fake, void *arg)
{
    struct fake_invalid *in = arg;
    Local__Invalid one = LOCAL__INVALID__INIT, *pointer = &one;
    Local__Invalidate all = LOCAL__INVALIDATE__INIT;
    char *name = strdup(in->name);

    one.ino = in->ino;
    one.parent = in->parent;
    one.name = name;
    all.n_what = 1;
    all.what = &pointer;
    for (unsigned i = 0; i < FAKE_CLIENTS; i++)
        if (fake->clients[i].channel != NULL)
            channel_send(fake->clients[i].channel, CHANNEL_URGENT, T(INVALIDATE), 0, 0, &all.base,
                         NULL, 0);
    free(name);
}

static inline void fake_invalidate(struct fake *fake, uint64_t ino, uint64_t parent,
                                   const char *name)
{
    struct fake_invalid in = {ino, parent, name};

    fake_do(fake, fake_invalidate_here, &in);
}

static inline struct fake *fake_start(const char *home)
{
    struct fake *fake = xcalloc(1, sizeof(*fake));
    struct fake_node *root;

    fake->home = xstrdup(home);
    fake->socket = home_socket(home);
    fake->account = "tester";
    fake->listen_fd = -1;
    fake->next_ino = 1;
    root = fake_new(fake, 1, "", LOCAL__KIND__KIND_DIRECTORY, 0755);
    CHECK(root->ino == 1);
    fake->loop = loop_new("fake");
    loop_set_owner(fake->loop, fake);
    loop_start(fake->loop);
    fake_listen(fake);
    return fake;
}

static inline void fake_stop(struct fake *fake)
{
    fake_crash(fake);
    loop_stop(fake->loop);
    loop_join(fake->loop);
    loop_free(fake->loop);
    for (unsigned i = 0; i < fake->node_count; i++) {
        struct fake_node *n = &fake->nodes[i];

        if (n->data_fd >= 0)
            close(n->data_fd);
        if (n->map_fd >= 0)
            close(n->map_fd);
        if (n->working_fd >= 0)
            close(n->working_fd);
        if (n->map != NULL)
            munmap(n->map - 4096, 4096 + bitmap_bytes(n->blocks));
    }
    free(fake->home);
    free(fake->socket);
    free(fake);
}

#endif
