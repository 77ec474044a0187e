/* The kernel's caches of names and attributes live for an hour; this thread takes out of them what the daemon says has
 * changed.
 *
 * A notification may have to wait for a directory's lock, which a lookup holds until it is answered: so it comes from a
 * thread of its own, which answers nothing and holds nothing. For the same reason a lookup that was answered before the
 * notification was posted has entered the cache before the notification looks there: nothing stale stays behind.
 * Pages are never invalidated: the bytes of an inode change through this mount only, and taking a page out waits for
 * the read that fills it, which may be parked.
 *
 * After a restart of the daemon everything is doubtful. Kernels from 6.16 on forget all names at once
 * (FUSE_NOTIFY_INC_EPOCH, which libfuse 3.14 does not know: it is written to the device here). Older ones are told
 * entry by entry of the root directory, for d_invalidate takes the tree below with it; `seen` holds these names. */
#include "fs/invalidate.h"

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "base/check.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "fs/fs.h"
#include "fs/mountinfo.h"

#include <errno.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define INC_EPOCH    8    /* enum fuse_notify_code, since protocol 7.44 */
#define READAHEAD_KB 1024 /* the largest request, so that one readahead is one request */
#define SEEN_BUCKETS 1024
#define SEEN_MAX                                                                                   \
    65536 /* names; beyond that (and on old kernels only) an hour passes until all is fresh */

/* struct fuse_out_header of linux/fuse.h, whose other fields have names that base/banned.h forbids. */
struct out_header {
    uint32_t length;
    int32_t error; /* of a notification: its code */
    uint64_t unique;
};

struct seen {
    struct seen *next;
    char name[];
};

struct invalidator {
    struct fs *fs;
    struct loop *loop;
    pthread_mutex_t lock; /* of the names, held for memory operations only */
    struct seen *seen[SEEN_BUCKETS];
    unsigned seen_count;
    bool finishing; /* atomic */
    int ended;      /* an eventfd */
};

struct invalidate_mail {
    struct mail mail;
    uint64_t ino;
    char name[]; /* of an entry in directory `ino` */
};

static struct invalidate_mail *new_mail(uint64_t ino, const char *name,
                                        void (*deliver)(struct mail *, void *))
{
    size_t size = strlen(name) + 1;
    struct invalidate_mail *m = xcalloc(1, sizeof(*m) + size);

    m->mail.deliver = deliver;
    m->ino = ino;
    memcpy(m->name, name, size);
    return m;
}

static bool is_finishing(struct invalidator *invalidator)
{
    return __atomic_load_n(&invalidator->finishing, __ATOMIC_ACQUIRE);
}

static void deliver_inode(struct mail *mail, void *owner)
{
    struct invalidate_mail *m = (struct invalidate_mail *)mail;
    struct invalidator *invalidator = owner;

    /* -ENOENT: the kernel does not know it; fine. A negative offset: attributes only. */
    if (!is_finishing(invalidator))
        fuse_lowlevel_notify_inval_inode(invalidator->fs->session, m->ino, -1, 0);
    free(m);
}

static void deliver_entry(struct mail *mail, void *owner)
{
    struct invalidate_mail *m = (struct invalidate_mail *)mail;
    struct invalidator *invalidator = owner;

    if (is_finishing(invalidator)) {
        free(m);
        return;
    }
    fuse_lowlevel_notify_inval_entry(invalidator->fs->session, m->ino, m->name, strlen(m->name));
    /* The directory's own times and size. */
    fuse_lowlevel_notify_inval_inode(invalidator->fs->session, m->ino, -1, 0);
    free(m);
}

static bool begin_epoch(struct fuse_session *session)
{
    struct out_header out = {.length = sizeof(out), .error = INC_EPOCH, .unique = 0};

    return write(fuse_session_fd(session), &out, sizeof(out)) == (ssize_t)sizeof(out);
}

static void forget_root(struct invalidator *invalidator)
{
    struct seen *all = NULL, *one, **end = &all;

    CHECK(pthread_mutex_lock(&invalidator->lock) == 0);
    for (unsigned i = 0; i < SEEN_BUCKETS; i++) {
        *end = invalidator->seen[i];
        while (*end != NULL)
            end = &(*end)->next;
        invalidator->seen[i] = NULL;
    }
    invalidator->seen_count = 0;
    CHECK(pthread_mutex_unlock(&invalidator->lock) == 0);
    while ((one = all) != NULL) {
        all = one->next;
        fuse_lowlevel_notify_inval_entry(invalidator->fs->session, FUSE_ROOT_ID, one->name,
                                         strlen(one->name));
        free(one);
    }
}

static void deliver_all(struct mail *mail, void *owner)
{
    struct invalidator *invalidator = owner;

    free(mail);
    if (is_finishing(invalidator))
        return;
    if (!begin_epoch(invalidator->fs->session))
        forget_root(invalidator);
    fuse_lowlevel_notify_inval_inode(invalidator->fs->session, FUSE_ROOT_ID, -1, 0);
}

static void deliver_readahead(struct mail *mail, void *owner)
{
    struct invalidator *invalidator = owner;
    struct mountinfo info;
    char path[96];
    FILE *file;

    free(mail);
    if (!mountinfo_find(invalidator->fs->mountpoint, &info))
        return;
    snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", info.major_number,
             info.minor_number);
    file = fopen(path, "we");
    if (file == NULL) {
        log_debug("read-ahead stays as it is: %s: %s", path, strerror(errno));
        return;
    }
    fprintf(file, "%d\n", READAHEAD_KB);
    if (fclose(file) != 0)
        log_debug("read-ahead stays as it is: %s: %s", path, strerror(errno));
}

struct invalidator *invalidator_new(struct fs *fs)
{
    struct invalidator *invalidator = xcalloc(1, sizeof(*invalidator));

    invalidator->fs = fs;
    CHECK(pthread_mutex_init(&invalidator->lock, NULL) == 0);
    invalidator->ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(invalidator->ended >= 0);
    invalidator->loop = loop_new("invalidate");
    loop_set_owner(invalidator->loop, invalidator);
    return invalidator;
}

void invalidator_start(struct invalidator *invalidator)
{
    loop_start(invalidator->loop);
}

static void deliver_end(struct mail *mail, void *owner)
{
    struct invalidator *invalidator = owner;

    free(mail);
    CHECK(eventfd_write(invalidator->ended, 1) == 0);
}

void invalidator_finish(struct invalidator *invalidator)
{
    struct mail *mail = xcalloc(1, sizeof(*mail));

    __atomic_store_n(&invalidator->finishing, true, __ATOMIC_RELEASE);
    mail->deliver = deliver_end;
    loop_post(invalidator->loop, mail);
}

int invalidator_ended_fd(const struct invalidator *invalidator)
{
    return invalidator->ended;
}

void invalidator_free(struct invalidator *invalidator)
{
    loop_stop(invalidator->loop);
    loop_join(invalidator->loop);
    loop_free(invalidator->loop);
    for (unsigned i = 0; i < SEEN_BUCKETS; i++)
        while (invalidator->seen[i] != NULL) {
            struct seen *one = invalidator->seen[i];

            invalidator->seen[i] = one->next;
            free(one);
        }
    CHECK(pthread_mutex_destroy(&invalidator->lock) == 0);
    close(invalidator->ended);
    free(invalidator);
}

void invalidate_inode(struct invalidator *invalidator, uint64_t ino)
{
    loop_post(invalidator->loop, &new_mail(ino, "", deliver_inode)->mail);
}

void invalidate_entry(struct invalidator *invalidator, uint64_t parent, const char *name)
{
    loop_post(invalidator->loop, &new_mail(parent, name, deliver_entry)->mail);
}

void invalidate_all(struct invalidator *invalidator)
{
    loop_post(invalidator->loop, &new_mail(0, "", deliver_all)->mail);
}

void invalidate_raise_readahead(struct invalidator *invalidator)
{
    loop_post(invalidator->loop, &new_mail(0, "", deliver_readahead)->mail);
}

void invalidate_seen_in_root(struct invalidator *invalidator, const char *name)
{
    unsigned hash = 5381;
    size_t size = strlen(name) + 1;
    struct seen *one;

    for (const char *c = name; *c != '\0'; c++)
        hash = hash * 33 + (unsigned char)*c;
    hash %= SEEN_BUCKETS;
    CHECK(pthread_mutex_lock(&invalidator->lock) == 0);
    for (one = invalidator->seen[hash]; one != NULL; one = one->next)
        if (strcmp(one->name, name) == 0)
            break;
    if (one == NULL && invalidator->seen_count < SEEN_MAX) {
        one = xmalloc(sizeof(*one) + size);
        memcpy(one->name, name, size);
        one->next = invalidator->seen[hash];
        invalidator->seen[hash] = one;
        invalidator->seen_count++;
    }
    CHECK(pthread_mutex_unlock(&invalidator->lock) == 0);
}
