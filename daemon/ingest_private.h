/* What ingest.c (a working file while it is written) and ingest_seal.c (how it ends) share. */
#ifndef DAEMON_INGEST_PRIVATE_H
#define DAEMON_INGEST_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "crypto/file_cipher.h"
#include "crypto/merkle.h"
#include "daemon/ingest.h"

#define INGEST_MAGIC     0x494e4753u
#define INGEST_NAME      40   /* "18446744073709551615.hash" */
#define LEAVES_IN_MEMORY 1024 /* blocks whose hashes need no file: 16 MiB of data */
#define RANGES_AHEAD                                                                               \
    64 /* written stretches behind the first hole; further ones are hashed at the end */

struct range {
    uint64_t first, end; /* bytes */
};

struct ingest {
    uint32_t magic;
    struct store *store;
    uint64_t number;
    int fd;
    struct file_cipher *cipher;
    bool marked;
    bool adopted;  /* the store has it, only a reference could not be had */
    bool unsynced; /* a sync has failed: all of it is to be written again */
    int broken;    /* and that did not help: what is on disk nobody knows, for good */

    /* under lock: what was written */
    pthread_mutex_t lock;
    uint64_t written; /* no hole before this byte */
    struct range ahead[RANGES_AHEAD];
    unsigned ahead_count;
    uint64_t hashed;  /* blocks that have a hash */
    uint64_t hashing; /* those before this one have or are getting one */
    uint8_t *dirty;   /* bits of blocks written again since */
    uint64_t dirty_room;

    /* the worker's */
    int hash_fd; /* incoming/N.hash, -1 as long as `leaves` suffices */
    uint8_t *leaves;
    uint64_t flushed; /* bytes whose writing to disk was begun */
};

void ingest_data_name(const struct ingest *, char name[INGEST_NAME]);
void ingest_hash_name(const struct ingest *, char name[INGEST_NAME]);
/* The hashes of whole blocks, one after the other or again. 0 or -errno. */
int ingest_put_leaves(struct ingest *, uint64_t first, uint64_t count, const uint8_t *hashes);
int ingest_get_leaves(struct ingest *, uint64_t first, uint64_t count, uint8_t *hashes);
/* Puts all leaves into incoming/N.hash, if they are not there. `known` blocks have one. */
int ingest_need_hash_file(struct ingest *, uint64_t known);
/* Closes and frees; the files stay. */
void ingest_free(struct ingest *);

#endif
