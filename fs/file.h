/* Open inodes: what p2pfs holds of them, and the way from a sealed content to a working file and back.
 *
 * Threads: a file, its state and its queues belong to the client's thread. FUSE workers reach, through a handle that
 * the kernel holds open, what is under the file's own lock: the content, the gate for writers, and what was written or
 * read since the daemon was last told. The lock is held for memory operations only.
 *
 * Passthrough. A complete content that is opened for reading only, and by nobody else in the ordinary way, is handed to
 * the kernel (device.h), which then reads it without us. Two things follow from the kernel's rules. Who opens the inode
 * while another has it open in the ordinary way (it was still streaming, or somebody writes) gets the ordinary way, too;
 * once all of these are closed, the next open decides anew. And who opens it for writing, or truncates it, while it is
 * passed gets another inode: the entry is given a new number, under which it is written; the readers keep the version
 * that they opened. */
#ifndef FS_FILE_H
#define FS_FILE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fs/content.h"
#include "fs/request.h"

#define FILE_WROTE 8 /* ranges */

struct files;
struct fs;

/* What besides the state tells where a working file stands, and in which states it may be set:
 *
 *              SEALED  BEGINNING  WORKING  SEALING
 *   gate                             x               FUSE workers may write: no turn waits, and there is no doubt
 *   calm          x                  x               no turn waits, and none is carried out
 *   dirty                            x               what was written is not in what was sealed last
 *   unsealed                         x        x      nothing of this working file was sealed yet
 *   doubt                            x        x      a Seal was sent and no answer came
 *   seal_failed   x                  x        x      a Seal of this working file: none is sent unless somebody asks for it
 *   nameless      x                                  was removed while it was written: what is written to it goes to the
 *                                                    working file that it had, and is told to nobody (then `dirty`, too)
 * and `edited` from BEGINNING on, as long as the file is in the table. In OPENING none is set. */
enum file_state {
    FILE_OPENING,   /* the daemon was asked for it */
    FILE_SEALED,    /* content is immutable */
    FILE_BEGINNING, /* the daemon was asked for a working file */
    FILE_WORKING,   /* content is a working file */
    FILE_SEALING,   /* the daemon hashes and publishes it; nobody writes */
};

struct file {
    unsigned magic;
    struct fs *fs;
    uint64_t ino;
    struct file *next; /* in its bucket */

    /* The client's thread: */
    enum file_state state;
    unsigned handles;
    unsigned
        passed; /* of these, in passthrough: then all are, none writes, and the state is FILE_SEALED */
    int backing;   /* the kernel's number of the content's descriptor, while `passed` is not 0 */
    unsigned busy; /* file_advance or a callback is at work: not to be freed */
    struct request_list opens; /* wait for FILE_OPENING to end */
    struct request_list turns; /* in order; while one waits the gate is closed */
    struct request_list reads; /* parked */
    struct handle *first;      /* all handles */
    unsigned pending;          /* Open, WriteBegin and Seal of our own that are under way */
    bool refreshing;           /* one of them brings a new bitmap */
    uint64_t
        closed; /* id of the last handle, while the daemon does not know that it is closed; else 0 */
    uint64_t number;  /* of the working file, or of the last one */
    bool doubt;       /* a Seal was sent and no answer came: the file may be the store's by now */
    bool edited;      /* was written while it was in the table: its readers may be in for more */
    bool seal_failed; /* the last try; not tried again by itself */
    bool nameless;    /* a Seal was answered ENOENT */
    bool gone;        /* the daemon does not have it open: no Release */
    bool forgotten;   /* no longer in the table */
    int64_t told;     /* when a failed read was last logged */

    /* Under `lock`: */
    pthread_mutex_t lock;
    struct content *content; /* NULL while opening */
    bool gate;               /* FUSE workers may write */
    bool calm;               /* nothing waits in `turns` or for the daemon */
    bool gate_watch;         /* the client's thread waits for the last writer */
    unsigned writers;
    unsigned writable; /* handles that may write */
    bool dirty;        /* written since it was last sealed */
    bool unsealed; /* has a working file that was never sealed: to be sealed at the last close */
    struct {
        uint64_t from, to;
    } wrote[FILE_WROTE]; /* what the daemon is still to hear of; a range that is written on grows */
    unsigned wrote_count;
    bool telling; /* mail is under way for that */
    struct stat st;
    char *name; /* for log lines */
    bool set_mtime;
    uint8_t root[32];
    bool has_root;

    unsigned parked; /* atomic, by ops_io.c: length of `reads` */
};

struct handle {
    unsigned magic;
    struct file *file;
    uint64_t id;
    struct handle *next; /* the client's thread */
    bool writable;
    bool passed;
    pid_t process; /* that opened it for writing */
    uint64_t run_from,
        run_to; /* under the file's lock: present bytes read in one run, not told yet */
};

/* --- FUSE workers, by a handle that is open -------------------------------------------------------------- */
struct content *file_content(struct file *); /* a new reference */
/* A reference to the working file if it may be written to right now, else NULL. Each needs its file_end_write. */
struct content *file_begin_write(struct file *);
/* Bytes [offset, offset + size) were written, with that result: after a negative one some of them may have been. */
void file_end_write(struct file *, struct content *, uint64_t offset, uint64_t size, int result);
bool file_has_no_writer(struct file *); /* nobody has it open for writing */
bool file_is_dirty(
    struct file *); /* or about to be, or being sealed: a FLUSH has something to wait for */
bool file_is_unsealed(struct file *); /* has a working file that was never sealed */
/* A reader got present bytes: tells the daemon now and then. */
void file_was_read(struct handle *, struct content *, uint64_t offset, size_t size);
void handle_close(struct handle *); /* RELEASE */

/* --- the client's thread --------------------------------------------------------------------------------- */
struct files *files_new(struct fs *);
void files_free(struct files *);
struct file *file_find(struct files *, uint64_t ino);
/* Found, or made and asked for: the caller puts a request into `opens` or `turns` and calls file_advance. */
struct file *file_get(struct fs *, uint64_t ino);
/* After CREATE: a file with this answer as its content, made or found. NULL and *error. */
struct file *file_created(struct fs *, struct answer *, int *error);
struct handle *handle_new(struct file *, bool writable, pid_t process);
void handle_drop(struct handle *); /* what handle_close asks for */
/* After handle_new: whether the kernel may read by itself for this handle; if so the backing file's number, else 0. */
int handle_pass(struct handle *);
/* After that: whether it is to be read by direct I/O. */
bool handle_is_direct(const struct handle *);
/* Whether the inode is open in passthrough, so that nothing of it may change: a writer needs another number
 * (file_renew). */
bool file_is_passed(const struct file *);
/* Asks the daemon for another number for the entry, then answers the request with ESTALE, whereupon the kernel looks the
 * name up again; ETXTBSY if it has no name any more. */
void file_renew(struct request *);
/* Goes on with what waits; may free the file. */
void file_advance(struct file *);
/* Asks for content and bitmap anew; then parked reads that are not sent are. */
void file_refresh(struct file *);
/* Puts a request into `turns` and goes on. */
void file_take_turn(struct file *, struct request *, enum request_turn);
/* `st` with what this mount knows better: times.h, and size and time of a file that is being written. */
void file_correct(struct files *, uint64_t ino, struct stat *);
/* What is open, for Reattach: calls `send` for each batch. Then, once connected: asks anew for contents that are
 * not whole, for the daemon may have new map files. */
void files_attach(struct files *, void (*send)(void *arg, const Local__Reattach *), void *arg);
void files_refresh(struct files *);

#endif
