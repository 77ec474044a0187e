/* A request of the kernel (or of our own) that something must happen for before it is answered.
 *
 * Made by a FUSE worker, given away by request_submit; from then on the client's thread alone owns it, keeps it in the
 * table and answers it. Its life:
 *
 *   request_new ─ request_submit ─▶ [table] start ─┬─ request_send ─ the daemon's answer ─┐
 *                                                  ├─ in a file's queue ─ request_finish ─┤▶ done ─ freed
 *                                                  └─ deadline, interrupt, unmount ───────┘
 *
 * R1  `done` is called exactly once for each time that the request was started or sent, and replies to `req` exactly
 *     once, unless it sends the request again.
 * R2  Whoever removes a request from the table owns it; only the client's thread does.
 * R3  A request in the table has a deadline, unless it is slow and the daemon is connected. */
#ifndef FS_REQUEST_H
#define FS_REQUEST_H

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/loop.h"
#include "proto/local.pb-c.h"

struct dir;
struct file;
struct fs;
struct handle;
struct request;

TAILQ_HEAD(request_list, request);

struct answer {
    int error; /* 0 or an errno */
    const void *
        message; /* unpacked, of the kind that the request expects; NULL with an error; valid in `done` */
    const uint8_t *packed; /* its bytes */
    size_t packed_size;
    const void *payload;
    size_t payload_size;
    int fds[2]; /* -1 where there is none; `done` takes one by setting it to -1 */
};

/* What a request in the queue of a file does when its turn comes. */
enum request_turn {
    TURN_NONE,
    TURN_AGAIN,    /* calls `start` again */
    TURN_SEAL,     /* makes what was written a content */
    TURN_WRITE,    /* these need a working file: */
    TURN_TRUNCATE, /* to `size` */
    TURN_EMPTY,    /* O_TRUNC of an open */
    TURN_ALLOCATE, /* fallocate */
};

enum request_patience { PATIENCE_WAIT, PATIENCE_SLOW };

struct request {
    struct mail mail; /* first */
    unsigned magic;
    struct fs *fs;
    fuse_req_t req; /* NULL: nobody in the kernel waits (any more) */
    pid_t tid;      /* the thread that asked; 0 if unknown */

    /* The daemon's part. */
    uint16_t type; /* LOCAL_NONE: nothing is sent */
    union {
        ProtobufCMessage head;
        Local__Node node;
        Local__Lookup lookup;
        Local__Readdir readdir;
        Local__Statfs statfs;
        Local__Xattr xattr;
        Local__SetXattr set_xattr;
        Local__Make make;
        Local__Rename rename;
        Local__Setattr setattr;
        Local__Open open;
        Local__WriteBegin begin;
        Local__Seal seal;
        Local__Want want;
    } message;
    char *text[2]; /* strings of the message; freed with it */

    void (*start)(struct request *); /* NULL: request_send */
    void (*done)(struct request *, struct answer *);

    /* For `start` and `done`. */
    struct file *file;
    struct handle *handle;
    struct dir *dir;
    uint64_t ino, offset, size;
    uint64_t changes; /* fs_changes when it was made */
    int flags;        /* open's; fallocate's mode; setattr's to_set */
    pid_t process;    /* of an open for writing */
    mode_t mode;
    int64_t mtime, atime;
    bool sets_mtime;
    void *data; /* freed with the request */
    size_t data_size;
    bool plus;
    unsigned tries;

    /* The table's. */
    enum request_turn turn;
    enum request_patience patience;
    bool had_turn; /* TURN_AGAIN came: all that was before it in its file's queue is done */
    bool keep;     /* its answer must be seen even if nobody waits any more */
    bool sent, again, more, in_table;
    uint32_t id;
    int64_t since, deadline;
    struct request *next_by_id;
    struct request_list *by_deadline; /* the list it is in, or NULL */
    TAILQ_ENTRY(request) deadline_link;
    struct request_list *queue; /* likewise: of a file */
    TAILQ_ENTRY(request) queue_link;
};

/* Any thread: a new request; `type` LOCAL_NONE if it is not (or not at once) for the daemon. */
struct request *request_new(struct fs *, fuse_req_t, uint16_t type,
                            void (*done)(struct request *, struct answer *));
/* Copies a string that a message refers to; index 0 or 1. */
char *request_text(struct request *, unsigned index, const char *text);
void request_submit(struct request *); /* any thread */

/* The client's thread: */
/* Puts a request that was made here into the table and starts it. */
void request_begin(struct request *);
/* Sends it to the daemon, now or when there is one. Within `done`: once more. */
void request_send(struct request *);
/* Answers it: calls `done` and frees it. */
void request_finish(struct request *, int error);
void request_answer(struct request *, struct answer *);
/* Puts it at the end of a queue; it leaves by itself when it is answered. */
void request_queue(struct request *, struct request_list *);
void request_unqueue(struct request *);

#endif
