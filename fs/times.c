/* A table of inodes by number, with a bound: when it is full, the older half of it is forgotten.
 *
 * The lock is held for memory operations only. */
#include "fs/times.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "base/check.h"
#include "base/mem.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#define NS      1000000000
#define BUCKETS 4096
#define MAX     32768 /* of each generation: 2.5 MB */

struct entry {
    struct entry *next;
    uint64_t ino;
    int64_t atime, mtime, changed; /* ns; INT64_MIN: not known */
};

struct generation {
    struct entry *buckets[BUCKETS];
    unsigned count;
};

struct times {
    pthread_mutex_t lock;
    struct generation *young, *old;
    struct entry root; /* never forgotten */
    int64_t root_mode; /* of the permissions; below 0: not set */
};

struct times *times_new(void)
{
    struct times *times = xcalloc(1, sizeof(*times));

    CHECK(pthread_mutex_init(&times->lock, NULL) == 0);
    times->young = xcalloc(1, sizeof(*times->young));
    times->old = xcalloc(1, sizeof(*times->old));
    times->root = (struct entry){NULL, FUSE_ROOT_ID, INT64_MIN, INT64_MIN, INT64_MIN};
    times->root_mode = -1;
    return times;
}

static void empty(struct generation *g)
{
    for (unsigned i = 0; i < BUCKETS; i++)
        while (g->buckets[i] != NULL) {
            struct entry *e = g->buckets[i];

            g->buckets[i] = e->next;
            free(e);
        }
    g->count = 0;
}

void times_free(struct times *times)
{
    if (times == NULL)
        return;
    empty(times->young);
    empty(times->old);
    free(times->young);
    free(times->old);
    CHECK(pthread_mutex_destroy(&times->lock) == 0);
    free(times);
}

static struct entry **place(struct generation *g, uint64_t ino)
{
    struct entry **at = &g->buckets[ino % BUCKETS];

    while (*at != NULL && (*at)->ino != ino)
        at = &(*at)->next;
    return at;
}

/* Under the lock: the inode's entry, in the young generation; made if there is none. */
static struct entry *get(struct times *times, uint64_t ino)
{
    struct entry **at, **was, *e;

    if (ino == FUSE_ROOT_ID)
        return &times->root;
    at = place(times->young, ino);
    if (*at != NULL)
        return *at;
    if (times->young->count == MAX) {
        struct generation *g = times->old;

        empty(g);
        times->old = times->young;
        times->young = g;
        at = &g->buckets[ino % BUCKETS];
    }
    was = place(times->old, ino);
    e = *was;
    if (e != NULL) {
        *was = e->next;
        times->old->count--;
        e->next = NULL;
    } else {
        e = xcalloc(1, sizeof(*e));
        e->ino = ino;
        e->atime = e->mtime = e->changed = INT64_MIN;
    }
    *at = e;
    times->young->count++;
    return e;
}

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * NS + t.tv_nsec;
}

static void changed(struct times *times, uint64_t ino, bool names)
{
    struct entry *e;

    CHECK(pthread_mutex_lock(&times->lock) == 0);
    e = get(times, ino);
    e->changed = now();
    if (names)
        e->mtime = e->changed;
    CHECK(pthread_mutex_unlock(&times->lock) == 0);
}

void times_changed(struct times *times, uint64_t ino)
{
    changed(times, ino, false);
}

void times_names_changed(struct times *times, uint64_t ino)
{
    changed(times, ino, true);
}

void times_set(struct times *times, uint64_t ino, const int64_t *atime, bool mtime)
{
    struct entry *e;

    CHECK(pthread_mutex_lock(&times->lock) == 0);
    e = get(times, ino);
    if (atime != NULL)
        e->atime = *atime;
    if (mtime)
        e->mtime = INT64_MIN;
    CHECK(pthread_mutex_unlock(&times->lock) == 0);
}

void times_set_root(struct times *times, const mode_t *mode, const int64_t *mtime)
{
    CHECK(pthread_mutex_lock(&times->lock) == 0);
    if (mode != NULL)
        times->root_mode = *mode & 0777;
    if (mtime != NULL)
        times->root.mtime = *mtime;
    CHECK(pthread_mutex_unlock(&times->lock) == 0);
}

static void put(struct timespec *to, int64_t time)
{
    if (time == INT64_MIN)
        return;
    to->tv_sec = time / NS;
    to->tv_nsec = time % NS;
    if (to->tv_nsec < 0) {
        to->tv_sec--;
        to->tv_nsec += NS;
    }
}

/* Under the lock: write permission that the daemon does not give is not shown. */
static void put_root_mode(const struct times *times, struct stat *st)
{
    mode_t mode = (mode_t)times->root_mode;

    if (times->root_mode < 0)
        return;
    if ((st->st_mode & 0222) == 0)
        mode &= ~(mode_t)0222;
    st->st_mode = (st->st_mode & S_IFMT) | mode;
}

void times_apply(struct times *times, struct stat *st)
{
    const struct entry *e;

    CHECK(pthread_mutex_lock(&times->lock) == 0);
    if (st->st_ino == FUSE_ROOT_ID) {
        e = &times->root;
        put_root_mode(times, st);
    } else {
        e = *place(times->young, st->st_ino);
        if (e == NULL)
            e = *place(times->old, st->st_ino);
    }
    if (e != NULL) {
        put(&st->st_atim, e->atime);
        put(&st->st_mtim, e->mtime);
        put(&st->st_ctim, e->changed);
    }
    CHECK(pthread_mutex_unlock(&times->lock) == 0);
}
