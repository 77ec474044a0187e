/* The catalogue's replica: the tree of names as this member sees it, in memory and in HOME/state.db, and the journal of changes
 * that the tracker has not confirmed.
 *
 * The tree is the tracker's state with our own unconfirmed changes on top: each change of ours is applied at once, journalled,
 * and sent in order (session_op); its result brings the entry as the tracker has it. While an entry has unconfirmed changes of
 * ours, what the tracker pushes about it is held back: the result of the last of them is authoritative. A change that the tracker
 * refuses is undone by its answer; content that would lose its name that way is kept beside as
 * "NAME (conflict ACCOUNT YYYY-MM-DD HHMM)". Nothing is silently dropped.
 *
 * ino numbers are ours, stable over restarts; a file gets a new one when another member's version replaces its content.
 * About 200 bytes of memory an entry. One thread (local). No clock, no network: time comes as an argument. state.db: WAL,
 * synchronous=NORMAL for the replica (it can be had again), FULL while something is journalled that a caller was told is safe. */
#ifndef DAEMON_CATALOGUE_H
#define DAEMON_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "proto/tracker.pb-c.h"

struct catalogue;

#define INO_ROOT 1

enum node_kind { NODE_DIRECTORY = 1, NODE_FILE = 2, NODE_SYMLINK = 3 };
/* One entry. Pointers to it are valid until the next call that changes the catalogue. */
struct node {
    uint64_t ino;
    uint64_t id;          /* the tracker's; 0 if it has not heard of it */
    struct node *parent;  /* NULL for the root and for one that was removed but is still open */
    const char *name;
    enum node_kind kind;
    uint16_t mode;
    uint16_t unconfirmed; /* changes of ours under way */
    bool working;         /* a file being written here for the first time: not published, no root */
    bool pinned;
    uint64_t size;
    int64_t mtime;
    uint8_t root[HASH_SIZE];
    const char *target;   /* of a symbolic link */
    const char *owner;    /* interned */
    uint32_t opens;       /* kept alive although removed, as long as it is open: catalogue_open, _close */
};

#endif
