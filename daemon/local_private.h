/* What the files of the local thread share; nobody else includes this.
 *
 *   local.c         life, listener, clients, the table of requests
 *   local_mail.c    mail from other threads
 *   local_names.c   lookup, readdir, rename and their like, extended attributes
 *   local_io.c      opening, waiting reads, releasing, attaching again
 *   local_write.c   working files: made, hashed along, sealed, published, recovered
 *   local_recover.c working files after a restart
 *   local_fetch.c   files that are fetched whole: get, pin, what a writer needs
 *   local_ahead.c   small files that a program is about to read
 *   local_ctl.c     p2pctl: status, peers, health, ls, stop
 *   local_account.c p2pctl: accounts, and which swarm the tree belongs to
 *   local_access.c  p2pctl: rights of folders, groups
 *   local_sealed.c  Seals and Syncs that wait for the disk
 *   local_drop.c    contents that lost their last name
 *   local_watch.c   p2pctl watch
 *   local_push.c    invalidations, gathered and sent in batches
 *   evict.c         p2pctl evict, and the limit of the cache
 *   scrub.c         p2pctl check, and the scrub
 *
 * A request is answered at once or later, from a job's or another thread's mail: then a struct reply
 * names it, by the client's number, which is never used twice; an answer to a client that is gone
 * goes nowhere. */
#ifndef DAEMON_LOCAL_PRIVATE_H
#define DAEMON_LOCAL_PRIVATE_H

#include <pthread.h>
#include <uthash.h>

#include "base/loop.h"
#include "base/workers.h"
#include "daemon/catalogue.h"
#include "daemon/evict.h"
#include "daemon/local.h"
#include "daemon/scrub.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/local.pb-c.h"

#define TYPE(name) LOCAL__LOCAL_TYPE__LOCAL_##name

struct access_cookie;
struct aheads;
struct batch;
struct client;
struct fetch;
struct gather;
struct ingest;
struct local;
struct mount;
struct watch;
struct watch_event;
struct session_answer;

struct reply {
    uint64_t client;
    uint32_t id;
};

/* A request that came before its time, kept as it came. */
struct deferred {
    struct deferred *next;
    struct reply reply;
    uint16_t type;
    size_t size;
    uint8_t message[];
};

struct client {
    uint32_t magic;
    struct local *local;
    struct client *next;
    struct channel *channel;
    uint64_t number;
    uint32_t pid;
    bool greeted;
    Local__Program program;
    struct mount *mount; /* of p2pfs */
    struct batch *next_batch;
    struct watch *watch; /* of p2pctl watch */
};

/* A content that a mount has open. */
struct opened {
    uint64_t ino;
    struct content *content; /* NULL: empty, or being written */
    UT_hash_handle hh;
};

/* What a p2pfs has open outlives its connection for a while. */
struct mount {
    uint64_t id;
    uint64_t salt; /* makes its handles differ from another mount's */
    char *mountpoint;
    struct client *client; /* NULL: away */
    uint32_t pid;
    struct local *local;
    int process;         /* a pidfd, or -1 */
    struct event *ended; /* it is readable once the process is gone */
    int64_t away_since;
    struct opened *opened;
    uint32_t wants;
    UT_hash_handle hh;
};

/* A parked read. */
struct want {
    uint64_t number; /* of the demand */
    struct reply reply;
    struct mount *mount;
    UT_hash_handle by_number, by_reply;
};

enum working_phase {
    WORKING_MAKING,   /* a worker makes the file */
    WORKING_FETCHING, /* the old content is not all here yet */
    WORKING_READY,    /* p2pfs writes */
    WORKING_SEALING   /* a worker makes it a content */
};

struct working {
    uint64_t ino;
    uint64_t number; /* of the ingest, once there is one */
    uint64_t inode;  /* of its file */
    struct ingest *ingest;
    struct mount *mount; /* NULL: nobody writes it now */
    enum working_phase phase;
    bool busy;   /* a worker has the ingest */
    bool marked; /* fsync was acknowledged: it survives */
    bool end;    /* to be ended as soon as the worker is done */
    uint64_t keep;
    struct content *from;
    struct fetch *fetch;
    uint64_t fetched; /* bytes, when it was looked at last */
    int64_t deadline; /* FETCHING: no progress until then; without mount: nobody came back */
    int64_t again;    /* what was promised could not be stored: how long until it is tried again */
    struct reply reply;
    struct deferred *queue, **queue_end;
    UT_hash_handle hh;
};

/* An answer that waits until what it promises is durable: to a Seal, or to a Sync. */
struct sealed {
    struct sealed *next;
    uint64_t ino;
    bool seal;
    struct ingest *ingest;
    struct reply reply;
};

/* Work for a worker, with a way back. `work` runs there, `done` on the local thread and frees. */
struct task {
    struct job job;
    struct mail mail;
    struct local *local;
    void (*work)(struct task *);
    void (*done)(struct local *, struct task *);
};

struct numbers {
    uint64_t *items;
    size_t count, room;
};

/* store/incoming/NUMBER.kept that nobody knows the name of. */
struct kept {
    uint64_t number, size;
};

struct root_item {
    uint8_t root[HASH_SIZE];
    UT_hash_handle hh;
};

struct local {
    struct daemon *daemon;
    struct loop *loop;
    struct catalogue *catalogue;
    char *socket_path;
    int socket;
    dev_t socket_device; /* this and the next: what was bound at socket_path */
    ino_t socket_inode;
    struct event *accept;
    struct timer *accept_rest; /* without descriptors */
    bool started, stopped;
    void (*on_stop)(void *arg);
    void *on_stop_arg;

    struct client *clients;
    unsigned client_count;
    uint64_t next_client;
    uint64_t origin; /* number of the client whose request is being carried out */
    struct mount *mounts;
    const uint8_t *raw; /* the request being carried out, for `local_defer` */
    size_t raw_size;
    uint16_t raw_type;

    /* the session */
    enum session_state state;
    char *trouble, *swarm_name, *url;
    struct arrival *arrivals; /* local_account.c */

    /* contents */
    struct want *wants, *wants_by_reply;
    uint64_t next_want;
    struct working *workings;
    bool recovered;    /* working files of the last run have been looked after */
    struct kept *kept; /* local_kept.c: working files of earlier runs without a name */
    size_t kept_count;
    struct numbers unreadable; /* inos: see write_is_unreadable */
    struct deferred *waiting_recovery, **waiting_recovery_end;
    struct {
        struct ingest *ingest; /* NULL: none */
        uint64_t inode;
        bool making;
        int64_t until;
    } spare;               /* local_spare.c */
    struct sealed *sealed; /* not committed yet */
    bool syncing;          /* a worker makes a commit durable */
    bool sync_lost;        /* that has failed: what is committed may not be in the log */
    char *state_path;      /* of state.db */
    unsigned epoch;        /* of the session's link: see session_op */
    struct timer *commit_timer, *tick, *stir_timer, *drop_timer, *progress_timer, *journal_timer;
    uint32_t entries_refused, keys_unexpected;
    struct access_cookie *folders_awaited; /* local_access.c */
    struct timer *access_timer;
    char store_trouble[96];   /* of state.db */
    struct root_item *unused; /* contents that lost their last name in this round */
    struct numbers newly_pinned;
    struct root_item *stirred; /* contents with new blocks that mounts have not heard of */
    int64_t next_retry, next_drop_look;
    bool aside_grew; /* since the last look: contents that are kept without a name */

    /* fetching */
    struct fetch *fetches;
    struct fetch *waiting_first; /* queued ones */
    unsigned fetching;
    struct get *gets;

    struct aheads *aheads; /* local_ahead.c; NULL: no small file was read yet */

    struct gather *gathers;
    struct health *healths;
    struct workers *lender; /* one thread, for what is looked through before it is lent */
    struct evict *evict;
    struct scrub *scrub;

    /* local_watch.c */
    unsigned watchers;
    struct watch_event *events, **events_end; /* of this round */

    /* local_push.c */
    struct batch *first_batch, *open_batch, *last_batch;

    /* contents that changed, from any thread */
    pthread_mutex_t lock;
    struct content **changed; /* under lock; each with a reference */
    size_t changed_count, changed_room;
    bool changed_posted;
};

/* --- local.c --- */
void numbers_add(struct numbers *, uint64_t);
struct client *local_client(const struct local *, uint64_t number);
void local_send(struct local *, struct reply, uint16_t type, const ProtobufCMessage *);
void local_done(struct local *, struct reply);
/* `error` of either sign. The text is for people: a clause. */
void local_error(struct local *, struct reply, int error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void local_post(struct local *, struct task *, void (*work)(struct task *),
                void (*done)(struct local *, struct task *));
/* The same on other threads than the daemon's workers. */
void local_post_to(struct local *, struct workers *, struct task *, void (*work)(struct task *),
                   void (*done)(struct local *, struct task *));
/* The request being carried out is put off. */
struct deferred *local_defer(struct local *, struct reply);
/* Carries out, in order, and frees. */
void local_resume(struct local *, struct deferred *);
void local_fail_deferred(struct local *, struct deferred *, int error);
/* What every round ends with: operations are sent, invalidations pushed, a commit is arranged. */
void local_after(struct local *);
/* A content that nothing here names or needs any more: dropped after a grace, unless that changes. */
void local_unused(struct local *, const uint8_t root[HASH_SIZE]);
/* local_drop.c: those of this round are noted; a timer's function. */
void local_put_aside(struct local *);
void local_drop_due(void *arg);
/* Where the disk is short of space nothing is kept for others' sake. */
void local_drop_look(struct local *, int64_t now);
bool local_is_visible(const struct local *); /* somebody is logged in */
bool local_is_connected(const struct local *);

typedef void handler(struct local *, struct client *, struct reply, const void *message);
extern handler names_lookup, names_getattr, names_readdir, names_readlink, names_statfs,
    names_getxattr, names_setxattr, names_listxattr, names_mknod, names_mkdir, names_symlink,
    names_unlink, names_rmdir, names_rename, names_renew, names_setattr;
extern handler io_open, io_want, io_unwant, io_reading, io_release, io_reattach;
extern handler write_create, write_begin, write_wrote, write_seal, write_sync;
extern handler ctl_register, ctl_login, ctl_logout, ctl_whoami, ctl_password, ctl_invite,
    ctl_tracker_call, ctl_status, ctl_peers, health_show, ctl_ls, ctl_stop;
extern handler fetch_get, fetch_unpin;
extern handler limit_handle;
extern handler ctl_evict; /* evict.c */
extern handler ctl_check; /* scrub.c */
extern handler ctl_copy_kept;
extern handler access_keys;
extern handler access_grant, access_show, access_group, access_groups;

/* --- local_kept.c --- */
/* Fills in answer->kept, malloc'ed as the rest of the answer is. */
void kept_list(const struct local *, Local__Checked *answer);

/* --- local_mail.c --- */
void local_stir(void *local); /* tells the mounts of contents that grew; a timer's */

/* --- local_names.c --- */
/* The node, if somebody is logged in; else the root only. */
const struct node *names_visible(const struct local *, uint64_t ino);
/* Points into the node: valid as long as it. */
void names_fill(struct local *, Local__Attr *, const struct node *);
void names_send_attr(struct local *, struct reply, uint64_t ino);
/* Answers a change of names or attributes: 0 or -errno; what was changed is written down first. */
void names_finish(struct local *, struct reply, int error);
/* One page of a directory's children behind `cookie`. */
void names_list(struct local *, struct reply, const struct node *directory, uint64_t cookie,
                uint32_t count);
void names_send_text(struct local *, struct reply, const char *text);

/* --- local_io.c --- */
struct mount *io_mount(struct local *, struct client *, const Local__Hello *);
void io_client_gone(struct local *, struct client *);
bool io_has_ended(const struct mount *); /* its process */
void io_tick(struct local *, int64_t now);
/* The mount has the ino open with this content, a reference of which is taken over. */
struct opened *io_opened(struct local *, struct mount *, uint64_t ino, struct content *);
/* The descriptors of a content that the mount has open now. */
void io_send_opened(struct local *, struct reply, uint64_t ino, struct content *);
void io_demand_done(struct local *, uint64_t number, int error);
void io_free(struct local *);

/* --- local_write.c --- */
struct working *write_find(const struct local *, uint64_t ino);
void write_send_working(struct local *, struct reply, const struct working *);
bool write_await_end(struct local *, struct working *, struct reply);
bool write_defer(struct local *, struct working *, struct reply); /* true: it is not ready */
void write_mount_gone(struct local *, struct mount *);
void write_released(struct local *, struct mount *, uint64_t ino);
bool write_attach(struct local *, struct mount *, uint64_t ino, uint64_t number);
/* The mount opens it: one that waits to be stored for nobody is the mount's from now on. True if it is the mount's. */
bool write_take_on(struct working *, struct mount *);
#define WRITE_AGAIN_NS                                                                             \
    NS_PER_S /* before what could not be stored is tried again; doubled each time */
#define WRITE_ATTACH_NS (60 * NS_PER_S) /* what a working file waits for its p2pfs after a start */
struct working *write_new(struct local *, uint64_t ino, struct mount *);
/* Nobody writes it any more: seals it under its name if it was marked, else drops it. */
void write_end(struct local *, struct working *);
/* On a worker, which also deletes the file; NULL is fine. */
void write_drop_ingest(struct local *, struct ingest *);
void write_tick(struct local *, int64_t now);
void write_fetched(struct local *, const uint8_t root[HASH_SIZE], int error);
void write_free(struct local *);

/* --- local_sealed.c --- */
/* What has been done to the ino up to now is answered as soon as it is durable; `seal`: with its
 * attributes. From then on the ingest is not needed any more (NULL is fine). */
void sealed_answer(struct local *, struct reply, uint64_t ino, bool seal, struct ingest *);
/* At the end of a round: begins to make durable what waits for it. */
void sealed_sync(struct local *);
void sealed_forget(struct local *);

/* --- local_spare.c --- */
/* An empty working file that is ready, and its inode's number; NULL: none is. */
struct ingest *spare_take(struct local *, uint64_t *inode);
/* Once a second. With INT64_MAX, at the end: nothing is left of it. */
void spare_tick(struct local *, int64_t now);

/* --- local_recover.c --- */
void write_recover(struct local *);
/* True: it is not known yet which working files there are, and the request is carried out again when it is. */
bool write_await_recovery(struct local *, struct reply);
/* What was written of it is there, but could not be opened when we began: nothing may take its place. */
bool write_is_unreadable(const struct local *, uint64_t ino);
/* The mount's working file was sealed and published, though the answer may have been lost. */
bool write_was_sealed(struct local *, uint64_t ino, uint64_t number);
/* The mount knows of its sealed files (of this one; ino 0: of all, or is gone). */
void write_forget_sealed(struct local *, uint64_t mount, uint64_t ino);

/* --- local_fetch.c --- */
/* Somebody wants all of it; each needs a fetch_drop. */
struct fetch *fetch_add(struct local *, const uint8_t root[HASH_SIZE], uint64_t size);
void fetch_drop(struct local *, struct fetch *);
uint64_t fetch_have(struct local *, const struct fetch *); /* bytes here */
void fetch_complete(struct local *, const uint8_t root[HASH_SIZE], int error);
/* No file here has this content any more: who wants it whole is told. */
void fetch_lost(struct local *, const uint8_t root[HASH_SIZE]);
void fetch_pinned(struct local *, uint64_t ino); /* a pinned file has a new content */
void fetch_pin_all(struct local *);              /* at the start */
void fetch_each_root(struct local *, void (*each)(void *arg, const uint8_t root[HASH_SIZE]),
                     void *arg);
bool fetch_has_root(struct local *, const uint8_t root[HASH_SIZE]); /* it is under way or waits */
void fetch_client_gone(struct local *, uint64_t client);
void fetch_free(struct local *);

/* --- local_ahead.c --- */
/* A mount has closed the file, and all of it is here. */
void ahead_read(struct local *, uint64_t ino);
void ahead_tick(struct local *, int64_t now);
void ahead_free(struct local *);

/* --- local_ctl.c --- */
/* Why a file does not come on, "" if it does. */
void ctl_trouble(const struct local *, const struct download_status *,
                 const uint8_t root[HASH_SIZE], char *out, size_t size);
/* The path in the swarm of one under a mountpoint; any other as it is. */
const char *ctl_inside(const struct local *, const char *path);
/* A path in the swarm, or under a mountpoint of a p2pfs that is connected. NULL: answered. */
const struct node *ctl_resolve(struct local *, struct reply, const char *path);
/* Whether all paths can be resolved, and are few enough for one answer; else it is answered. */
bool ctl_check_paths(struct local *, struct reply, char **paths, size_t count);
/* What download and upload say, together. `finish` runs once both have answered. */
struct gather {
    struct gather *next;
    struct reply reply;
    void (*finish)(struct local *, struct gather *);
    struct download_status *down;
    struct upload_status *up;
    bool asked_up; /* its answer is still to come */
    bool asked_down;
    bool has_root;
    uint8_t root[HASH_SIZE];
    char **paths;
    size_t path_count;
    uint64_t ino;
};
struct gather *ctl_gather(struct local *, struct reply, const uint8_t *root,
                          void (*finish)(struct local *, struct gather *));
void ctl_gathered_down(struct local *, struct download_status *);
void ctl_gathered_up(struct local *, struct upload_status *);
void ctl_free(struct local *);

/* --- local_health.c --- */
void health_answer(struct local *, void *cookie, int error, Tracker__Health *);
void health_free_all(struct local *);

/* --- local_account.c --- */
void ctl_account_answer(struct local *, struct account_answer *);
/* Asks the session what is known here: url and so on. */
void ctl_ask_self(struct local *);
/* Answers the log ins that have waited for the tree, or long enough. */
void ctl_account_look(struct local *, int64_t now);
void ctl_account_free(struct local *);

/* --- local_watch.c --- */
extern handler watch_begin;
void watch_client_gone(struct local *, struct client *);
void watch_changed(struct local *, const struct node *, enum node_change);
void watch_flush(struct local *); /* at the end of a round */
void watch_free(struct local *);
/* --- local_access.c --- */
void access_answer(struct local *, struct session_answer *);
void access_keys_known(struct local *, struct known_keys *);
void access_look(void *local); /* folders that were waited for; a timer's */
void access_free(struct local *);

/* --- local_push.c --- */
void push_invalid(struct local *, uint64_t ino, uint64_t parent, const char *name);
/* See Invalid in proto/local.proto. */
void push_renewed(struct local *, uint64_t ino, uint64_t parent, const char *name);
void push_timed(struct local *, uint64_t ino);
void push_all_names(struct local *); /* the tree appears or disappears */
void push_flush(struct local *);
void push_to(struct client *); /* as much as it takes now */
void push_client_new(struct client *);
void push_client_gone(struct client *);
void push_free(struct local *);

#endif
