/* What the files of the download thread share. Nobody else includes it. All of it belongs to that thread.
 *
 *   download.c         the thread: mail, readers' demands, handles, timers
 *   download_file.c    one content that is being fetched: what it needs, from whom, when it is done
 *   download_hashes.c  piece layers and block hashes: asked for in time, held against the tree
 *   download_verify.c  blocks on their way from a link into the store: buffers, jobs, verdicts
 *   download_link.c    one link on which we fetch: its life, files and requests
 *   download_server.c  what the server says on it
 *   download_readers.c demands and handles
 *   download_peers.c   devices: who is known to hold what, dialling, bans
 *   download_status.c  what `status` and `peers` show
 *
 * Objects: a `file` is fetched over `fetch`es, each tying it to a `link`; a link belongs to a `device`; a `holding` says
 * that a device is known to hold some of a file. Whatever touches several of them at once is deferred to download_settle,
 * which ends every event: files are reviewed (opened, closed, freed) there, requests are flushed, jobs posted. */
#ifndef DAEMON_DOWNLOAD_PRIVATE_H
#define DAEMON_DOWNLOAD_PRIVATE_H

#include <pthread.h>
#include <sys/queue.h>
#include <uthash.h>

#include "base/loop.h"
#include "base/workers.h"
#include "crypto/identity.h"
#include "crypto/ticket.h"
#include "daemon/bucket.h"
#include "daemon/download.h"
#include "daemon/parts.h"
#include "daemon/picker.h"
#include "daemon/pipeline.h"
#include "daemon/readahead.h"
#include "proto/bans.h"
#include "proto/limits.h"
#include "proto/peer.pb-c.h"

struct channel;
struct frame;
struct file;
struct fetch;
struct link;
struct device;

#define DOWNLOAD_MAGIC 0x646f776eu
#define LINK_MAGIC     0x646c6e6bu

/* --- blocks under way to the store ------------------------------------------------------------------------------- */
#define PUT_BLOCKS    16 /* of one job: 256 KiB stay in a processor's cache */
#define PUT_JOBS_BUSY 4  /* under way: two for each of two processors, so none is idle meanwhile */
#define BUFFERS_AGAIN (LIMIT_BLOCKS_HELD / 4 * 3) /* below, they are again */
#define BUFFERS_SPARE 512                         /* kept for reuse when nothing happens */

struct buffer {
    struct buffer *next;
    uint64_t block;
    uint32_t size;
    bool urgent;
    uint8_t device[DEVICE_ID_SIZE]; /* who sent it */
    _Alignas(64) uint8_t bytes[BLOCK_SIZE];
};

/* --- a handle ---------------------------------------------------------------------------------------------------- */
struct handle {
    UT_hash_handle hh;
    LIST_ENTRY(handle) of_file;
    uint64_t id;
    struct file *file;
    struct readahead ahead;
    struct picker_window windows[READAHEAD_CURSORS];
};

struct demand {
    UT_hash_handle hh;
    TAILQ_ENTRY(demand) of_file;
    TAILQ_ENTRY(demand) by_expiry;
    uint64_t request, handle;
    struct file *file;
    uint64_t first, count; /* blocks */
    int64_t expires;
    struct picker_demand wanted;
};

/* --- a content that is fetched ------------------------------------------------------------------------------------ */
enum layer_state { LAYER_ABSENT, LAYER_ASKED, LAYER_CHECKED, LAYER_HERE };

/* Block hashes of one piece that are not here yet. */
struct leaves {
    UT_hash_handle hh;
    uint32_t piece, count;
    bool checked;                   /* they came, and are being held against the piece layer */
    uint8_t *early;                 /* … or wait for that to come */
    struct fetch *asked;            /* whom; NULL: nobody at the moment */
    int64_t late;                   /* when to ask another */
    uint8_t device[DEVICE_ID_SIZE]; /* who sent what is being checked */
    struct buffer *held;            /* blocks that came before their hashes */
};

/* Blocks of one file that were checked and wait to be written. Whichever worker comes when nobody writes does it, and goes on as
 * long as there are any, while the others check: two writers of one file only wait for each other in the kernel. */
struct put_queue {
    pthread_mutex_t lock;
    struct put_job *first, **end;
    bool writing;
};

struct file {
    UT_hash_handle hh;
    struct download *download;
    struct content *content;
    const struct geometry *geometry;
    struct geometry parts; /* in which the picker counts */
    uint8_t root[HASH_SIZE];
    struct picker *picker;
    TAILQ_HEAD(, demand) demands;
    LIST_HEAD(, handle) handles;
    LIST_HEAD(, fetch) fetches;
    LIST_HEAD(, holding) holdings;
    int64_t dial_after; /* when the next of many is dialled */
    int64_t last_wait;  /* a block of it was asked for that a reader waited for */
    bool get;           /* asked for by name */
    bool background;    /* really being read */
    bool wanting;       /* the session looks for peers */
    bool dirty;         /* in download->dirty_files */
    bool demanding;     /* in download->demanding */
    STAILQ_ENTRY(file) of_dirty;
    TAILQ_ENTRY(file) of_demanding;
    uint32_t jobs;     /* on workers */
    uint32_t put_jobs; /* of which write blocks */
    struct put_queue puts;

    enum layer_state layer;
    struct fetch *layer_fetch;
    uint8_t *layer_hashes;
    uint32_t layer_have;
    int64_t layer_late;
    bool layer_unasked; /* there was nobody to ask: whoever comes is asked at once */
    uint8_t layer_device[DEVICE_ID_SIZE];
    struct leaves *leaves;
    int64_t leaves_late; /* the earliest of them; INT64_MAX: none */
    bool hashes_due;     /* someone new could be asked for hashes */

    struct buffer *arrived, **arrived_end; /* to be given to workers */
    uint64_t bytes, bytes_before, rate;
    struct bucket bucket; /* of its own limit */
    uint32_t holders;     /* as the tracker counts */
};

/* --- links ---------------------------------------------------------------------------------------------------------- */
/* A file on a link. */
/* Of one source at a time; more of them, and its disk is left in peace. */
#define LATER_PARTS 8

struct fetch {
    UT_hash_handle hh; /* by number */
    LIST_ENTRY(fetch) of_file;
    TAILQ_ENTRY(fetch) of_link;
    struct link *link;
    struct file *file;
    struct picker_source *source;
    uint32_t number;
    bool opened;        /* the server told what it has */
    bool refused;       /* it will not serve this */
    int64_t busy_until; /* it said it was busy; 0: no */
    int64_t later_at;   /* it said "later": of `later`, or, if it is refused, of all; 0: no */
    uint32_t later[LATER_PARTS], later_count; /* parts that count as lacking until then */
    uint32_t hash_asks;                       /* HashRequests without answer */
    uint32_t hash_refusals;                   /* since it last gave some */
    uint32_t broken;                          /* claims that were not true */
    bool distrusted;
};

enum link_state { LINK_DIALLING, LINK_UP, LINK_LEAVING };

/* Requests or cancels of consecutive blocks, not sent yet. */
enum run_kind { RUN_REQUEST, RUN_CANCEL, RUN_WITHDRAW };
struct run {
    struct fetch *fetch; /* NULL: none */
    uint64_t first;
    uint32_t count;
    enum picker_class class;
    enum run_kind kind;
};

struct link {
    unsigned magic;
    TAILQ_ENTRY(link) entry;
    struct download *download;
    struct device *device;
    struct channel *channel;
    enum link_state state;
    char address[LIMIT_ADDRESS];
    struct ticket shown; /* the newest ticket for every content that was shown there */
    bool greeted;        /* its Hello came */
    bool choked;
    bool dirty;
    bool full;  /* a file found no place on it */
    bool broke; /* its last message broke the protocol */
    STAILQ_ENTRY(link) of_dirty;
    int64_t since;       /* of this state */
    int64_t last_used;   /* a file was open on it */
    int64_t last_demand; /* a block was asked for that a reader waits for, or is about to read */
    int64_t pinged;      /* 0: no ping under way */
    struct pipeline pipe;
    struct run run;
    uint64_t told_line;      /* what our uplink carries, as was last said there */
    struct fetch *by_number; /* hash */
    TAILQ_HEAD(, fetch) fetches;
    uint32_t fetch_count, next_number;
    /* The payload that is coming. */
    struct fetch *in_fetch;
    uint64_t in_block;
    struct buffer *in_buffer;
    uint8_t *in_bytes;
    uint64_t bytes, bytes_before, rate; /* of blocks */
};

/* --- devices ---------------------------------------------------------------------------------------------------------- */
struct holding {
    LIST_ENTRY(holding) of_file;
    LIST_ENTRY(holding) of_device;
    struct file *file;
    struct device *device;
    bool complete;
    bool stale; /* not in the answer that is being read */
    uint32_t pieces;
    bool has_ticket;
    uint8_t ticket[TICKET_SIZE]; /* our right to the file at that device */
};

struct device {
    UT_hash_handle hh;
    struct download *download;
    uint8_t id[DEVICE_ID_SIZE];
    char account[65];
    char addresses[LIMIT_ADDRESSES][LIMIT_ADDRESS]; /* nearest first */
    unsigned address_count;
    LIST_HEAD(, holding) holdings;
    struct link *link; /* that is up; NULL */
    unsigned dialling; /* attempts under way */
    unsigned next_address;
    bool asked_back;     /* to dial us, in this round of attempts */
    int64_t fresh_until; /* the round has begun so lately that others wait for it */
    unsigned patience;   /* times that the stagger timer may still find a handshake under way */
    struct timer *stagger;
    unsigned failures;
    int64_t next_try;
    int64_t failed_at; /* the last round of attempts */
    int64_t banned_until;
    bool has_whole;
    uint8_t whole[TICKET_SIZE]; /* our right to every content there */
    char ban[BANS_WHY_SIZE];    /* why */
    char told[64]; /* why a link that never came about ended, as last logged at `told_at` */
    int64_t told_at;
};

#define TROUBLE_RETRY (3 * NS_PER_S) /* when the store could not take a block */
#define ROOM_AGAIN                                                                                 \
    (64u << 20) /* or a sixteenth of a small disk: then a full disk is no longer full */

/* --- the thread ---------------------------------------------------------------------------------------------------------- */
struct download {
    unsigned magic;
    struct daemon *daemon;
    struct loop *loop;
    struct credentials *credentials;
    struct file *files;
    struct demand *demands;
    struct handle *handles;
    struct device *devices;
    TAILQ_HEAD(demand_expiry, demand) expiry; /* in order, as waits are mostly equal */
    TAILQ_HEAD(, file) demanding;             /* files with demands */
    STAILQ_HEAD(, file) dirty_files;
    STAILQ_HEAD(, link) dirty_links;
    TAILQ_HEAD(, link) links;
    uint32_t link_count;
    struct timer *due;  /* late blocks and hashes */
    int64_t due_at;     /* INT64_MAX: not set */
    struct timer *tick; /* housekeeping */
    int64_t second;     /* rates were last measured */

    struct buffer *spare;
    uint32_t buffers, spare_count; /* in use; kept */
    struct put_job *spare_jobs;
    uint32_t held; /* buffers that wait for hashes */
    bool paused;   /* links are not read: too many buffers are in use */

    char trouble[96];   /* the store's; "" for none */
    int64_t slow_until; /* the disk made this thread wait: what is written goes to workers */
    int64_t trouble_until;
    bool disk_full; /* that is the trouble */

    struct bucket bucket; /* of settings.rate_down */
    uint32_t limited;     /* files with a limit of their own */
    uint64_t total, total_before, rate, wasted;
    bool ticketed; /* the tracker gives tickets: without one no content is asked for blindly */
    bool place;    /* on a link that was full */
    bool started, stopping;
};

/* download.c */
void download_settle(struct download *);
/* Input was handled, so this link may have room: jobs are posted, readers served, the rest filled. */
void download_room(struct download *, struct link *);
/* A job of a few microseconds is done on this thread if nothing else is under way for the file: waking a worker, and being woken by
 * it, take longer than that. Not for a while after the disk made us wait. */
bool here_may(const struct download *, uint32_t under_way);
void here_done(struct download *, int64_t began);
/* Whether the store takes nothing for now, neither blocks nor hashes; not before trouble_until. */
bool download_is_troubled(struct download *, int64_t now);
/* Whether blocks may be asked for now at all: room in the store, and in the rate limit. */
bool download_may_ask(struct download *, int64_t now);
/* How many by the rate limit. */
uint32_t download_allowance(struct download *, int64_t now);
/* The same for one file, by its own limit as well. */
uint32_t file_allowance(struct file *, int64_t now);

/* download_file.c */
struct file *file_of(struct download *, const uint8_t root[HASH_SIZE]); /* NULL: not known */
struct file *file_get(struct download *, struct content *);
void file_dirty(struct file *);  /* review it when this event has been handled */
void file_review(struct file *); /* may free it */
void file_free(struct file *);
void file_limit(struct file *, int64_t now); /* looks up its own rate limit */
bool file_is_wanted(const struct file *);
void file_demands_changed(struct file *);
void file_run(struct file *, int64_t now);  /* what readers wait for */
void file_fill(struct file *, int64_t now); /* the rest, on all its links */
void file_set_background(struct file *);
void file_progress(struct file *, uint64_t first, uint32_t count); /* these blocks are present */
void file_connect(struct file *); /* opens it on links, dials holders */

/* download_hashes.c */
/* Sees to it that the block hashes of the piece come, asked of `fetch` first. */
void hashes_need(struct file *, uint32_t piece, struct fetch *);
void hashes_retry(struct file *, int64_t now); /* asks again for what is late or was refused */
const char *hashes_arrived(struct fetch *, const Peer__Hashes *, const uint8_t *hashes,
                           size_t size);
void hashes_rejected(struct fetch *, uint64_t first);
void hashes_fetch_gone(struct fetch *);
void hashes_free(struct file *);
int64_t hashes_next(const struct file *);
/* Whether a block must wait for its hashes, which are on their way; then it is held. */
bool hashes_hold(struct file *, struct buffer *);

/* download_verify.c */
struct buffer *buffer_new(struct download *);
void buffer_free(struct download *, struct buffer *);
void buffers_trim(struct download *, uint32_t keep);
void verify_block(struct file *, struct buffer *); /* takes it over */
void verify_post(struct file *);                   /* gives workers what has arrived */
void verify_free(struct download *);
void put_queue_init(struct put_queue *);
void put_queue_end(struct put_queue *);
void store_trouble(struct download *, int error);

/* download_link.c */
struct link *link_dial(struct device *, const char *address);
struct link *link_adopt(struct download *, struct stream *, const uint8_t *hello, size_t size);
/* Ends it at once; `farewell` is said if it is up. */
void link_end(struct link *, Peer__Farewell farewell, const char *why);
void link_free(struct link *);
/* NULL: no more files on this link at the moment; then the file is reviewed again when there is a place. */
struct fetch *link_open(struct link *, struct file *);
void fetch_close(struct fetch *); /* says Close, frees */
/* What its server put off is to be had again. It may be freed. */
void fetch_again(struct fetch *);
/* Shows the device's newer ticket for every content, if there is one. */
void link_show_whole(struct link *);
/* Shows a newer ticket for a file that is open. */
void fetch_show_ticket(struct fetch *, const uint8_t ticket[TICKET_SIZE]);
void link_fill(struct link *, int64_t now);
bool link_reader_near(const struct link *, int64_t now);
void link_flush(struct link *);
void link_tick(struct link *, int64_t now);
void link_ask_hashes(struct fetch *, Peer__Layer, uint64_t first, uint32_t count);
/* Whether it has something of the piece, and so its block hashes. */
bool fetch_has_piece(const struct fetch *, uint32_t piece);
void fetch_ask(struct fetch *, uint64_t block, enum picker_class);
void fetch_raise(struct fetch *, uint64_t block);
void fetch_cancel(struct fetch *, uint64_t block);
void fetch_withdraw(struct fetch *, uint64_t block);
void link_pause(struct link *, bool paused);

void link_say(struct link *, Peer__PeerType, const ProtobufCMessage *);

/* download_server.c */
/* As the channel's callbacks of these names. */
const char *link_message(struct link *, const struct frame *, const uint8_t *message);
void *link_payload(struct link *, const struct frame *, const uint8_t *message, const char **fault);
void link_payload_drop(struct link *); /* what was coming does not come */
const char *link_hello(struct link *, const uint8_t *bytes, size_t size);

/* download_readers.c */
struct demand *demand_of(struct download *, uint64_t request); /* NULL: not known */
void demand_add(struct file *, uint64_t request, uint64_t handle, uint64_t first, uint64_t count,
                int64_t wait);
void demand_end(struct demand *, int error, bool tell);
struct handle *handle_get(struct file *, uint64_t id); /* NULL: it is another file's */
void handle_reads(struct handle *, uint64_t offset, uint64_t size);
void handle_free(struct handle *);

/* download_peers.c */
struct device *device_get(struct download *, const uint8_t id[DEVICE_ID_SIZE], const char *account);
struct device *device_of(struct download *, const uint8_t id[DEVICE_ID_SIZE]);
struct fetch *device_fetch(const struct device *, const struct file *);
/* If it is time to; `reader`: one waits for what it holds. */
void device_dial(struct device *, bool reader, int64_t now);
/* One attempt is over: `up` is the link that it made, or NULL. */
void device_attempt_ended(struct device *, struct link *up);
void device_ban(struct download *, const uint8_t id[DEVICE_ID_SIZE], const char *why);
/* The device broke the protocol: a ban if it did so too often. */
void device_strike(struct download *, const uint8_t id[DEVICE_ID_SIZE], const char *account,
                   const char *what);
/* Whether it is banned, be it for what it did to this side or to the upload side. */
bool device_is_banned(struct device *);
void device_review(struct device *); /* forgets it if nothing is known of it */
void devices_tick(struct download *, int64_t now);
void devices_free(struct download *);
void peers_arrived(struct download *, const Tracker__Peers *, bool answer);
void holding_free(struct holding *);

/* download_status.c */
/* Once a second: rates of all there is. */
void status_measure(struct download *, int64_t now);
struct download_status *status_make(struct download *, const uint8_t *root, void *cookie);

#endif
