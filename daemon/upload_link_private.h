/* What the files about one serving link share; nobody else includes this. All of it belongs to the upload thread.
 *
 *   upload_link.c    the link's life, its channel, what it says
 *   upload_blocks.c  requests for blocks, and the jobs that read them
 *   upload_files.c   files opened and closed, hashes, news of pieces
 *   upload_rights.c  who may open what
 *   upload_early.c   what is asked for before the file is open
 *
 * L1  what is read or queued of a class is less than READ_AHEAD or LIMIT_URGENT_AHEAD, plus one job.
 * L2  whatever keeps the pump from going on ends in a call of it: a job (of hashes too) in its `done`, a full bulk queue in
 *     `drained`, sent frames in frame_sent, a rate limit in upload.c's refill.
 * L3  a file may be closed while jobs for it are under way: they hold a reference on the content and name the file by number
 *     and generation.
 * L4  a file that is neither complete nor being opened is watched (struct watched). */
#ifndef DAEMON_UPLOAD_LINK_PRIVATE_H
#define DAEMON_UPLOAD_LINK_PRIVATE_H

#include "daemon/upload_internal.h"

#include "base/clock.h"
#include "daemon/choker.h"
#include "daemon/parts.h"
#include "daemon/request_queue.h"
#include "proto/limits.h"
#include "proto/peer.pb-c.h"

#define SERVE_LINK_MAGIC 0x73726c6bu
/* Bulk that is being read or waits in the channel: two jobs, so that one is read while the other is
 * sent. */
#define READ_AHEAD       (2 * UPLOAD_JOB_BLOCKS * BLOCK_SIZE)
#define READ_AHEAD_FIRST (4 * BLOCK_SIZE) /* on a link that has sent nothing yet */
/* The first of several urgent jobs is small, so that the first block of a demand does not wait for the reading of the last; the
 * others are read while it is sent. */
#define URGENT_JOB_BLOCKS 4
/* Have messages about one file: gathered for so long. */
#define HAVE_DELAY_NS        (20 * NS_PER_MS)
#define HAVE_DELAY_MIDDLE_NS (250 * NS_PER_MS)
#define HAVE_FIRST_BLOCKS    128 /* what is not the middle yet */

struct served {
    uint32_t file;       /* the fetcher's number */
    uint32_t generation; /* tells a number's users apart */
    struct serve_link *link;
    struct content *content; /* NULL while it is being opened */
    struct geometry parts;
    uint8_t *told;                          /* parts that the fetcher was told of; NULL: all */
    struct early *early;                    /* asked for while it is being opened; NULL: nothing */
    bool changed;                           /* in the hands of have_timer */
    bool waiting;                           /* in link->waiting */
    struct served *prev, *next;             /* there */
    struct served *watch_prev, *watch_next; /* in the list of struct watched */
    uint8_t root[HASH_SIZE];
    struct ticket ticket; /* what it was opened with, unless the link's is good */
    uint64_t size;
    uint64_t sent, rate_sent, rate;
    UT_hash_handle hh;
};
_Static_assert(sizeof(struct served) + 64 <= LIMIT_MEMORY_FILE, "with its place in the table");

/* A content of which more may come, and those who have it open. */
struct watched {
    struct content *content; /* theirs */
    struct served *files;
    UT_hash_handle hh;
};

struct serve_link {
    unsigned magic;
    struct serve_link *prev, *next;
    struct upload *upload;
    struct channel *channel;
    struct remote remote;
    struct served *files;
    struct choker_link *choke;
    struct timer *have_timer;
    struct served *waiting; /* files to be opened, in order */
    struct ticket whole;    /* good for every content; 0: none was shown */
    uint32_t generation;
    uint32_t reads, hashings, openings;    /* jobs under way */
    uint32_t bulk_reading, urgent_reading; /* bytes */
    uint32_t early_blocks, early_hashes;   /* requests in its files' `early` */
    uint32_t urgent_queued; /* bytes of blocks lent to the channel as urgent frames */
    uint64_t sent, rate_sent, rate;
    int64_t pinged;
    /* What the socket held when it was last asked, when that was, and what had gone out then. */
    int64_t asked_at;
    uint64_t asked_out;
    int64_t reader_until; /* it is not sent to as one of a crowd */
    uint64_t acked;       /* when its round trip was last looked at */
    size_t in_socket;
    bool leaving;
    bool held_back;   /* its messages wait until it has read its answers */
    bool broke;       /* the last message broke the protocol, and it was told so */
    uint64_t taken;   /* bytes that had gone out when that was last looked at */
    int64_t taken_at; /* and when they last grew, or nothing waited */
    bool dead;        /* closed, kept for the jobs under way */
};

/* --- upload_link.c --- */
/* Frees a dead link once its last job has come back. */
void serve_release(struct serve_link *);
/* NULL if the fetcher has no file of this number open. */
struct served *serve_file_of(struct serve_link *, uint32_t file);
void serve_say(struct serve_link *, unsigned type, const ProtobufCMessage *);
void serve_reject(struct serve_link *, struct block_run, Peer__Reason, bool hashes);

/* --- upload_rights.c --- */
/* REASON_UNKNOWN: the fetcher has the right to that root, and `f` its ticket; else why not. */
Peer__Reason serve_may_open(struct serve_link *, const Peer__Open *, struct served *f);
const char *serve_on_ticket(struct serve_link *, const uint8_t *bytes, size_t size);
/* Ends the files whose tickets count no more. */
void serve_rights_tick(struct serve_link *);

/* --- upload_blocks.c: each returns NULL, or why the link must end --- */
const char *serve_on_request(struct serve_link *, const uint8_t *bytes, size_t size);
const char *serve_on_cancel(struct serve_link *, const uint8_t *bytes, size_t size);

/* Answers a request for blocks of a file that is open. */
const char *serve_blocks(struct served *, struct block_run, enum urgency);

/* --- upload_early.c: requests for a file that is being opened --- */
struct early;
void early_request(struct served *, struct block_run, enum urgency);
void early_hash_request(struct served *, struct block_run, Peer__Layer);
void early_cancel(struct served *, struct block_run);
void early_drop(struct served *);
/* The content is open: answers all. NULL, or why the link must end. */
const char *early_replay(struct served *);

/* --- upload_files.c --- */
const char *serve_hashes(struct served *, struct block_run, Peer__Layer);
const char *serve_on_hash_request(struct serve_link *, const uint8_t *bytes, size_t size);
const char *serve_on_open(struct serve_link *, const uint8_t *bytes, size_t size);
const char *serve_on_close(struct serve_link *, const uint8_t *bytes, size_t size);
void serve_file_free(struct serve_link *, struct served *);
void serve_have_due(void *link);

#endif
