/* Owns the table of what is held, references to open contents, and the rounds of syncing; leaves a content's
 * bytes to content.c, its files to content_open.c and content_sync.c, names on disk to store_files.c.
 *
 * A record is kept for every content on disk (about 90 bytes); a struct content only while it is in use or
 * was lately. States of a record, all under store->lock:
 *
 *   absent --store_get(create)--> busy --> open --content_release--> idle --tidy--> busy --> closed
 *   closed --store_get--> busy --> open;   open or idle --store_drop--> dropped --tidy--> busy --> absent
 *
 * While busy one worker works on the files without the lock; others who want the record wait.
 *
 * Threads: any; see store.h. Memory: what is idle is bounded by LIMIT_STORE_IDLE and LIMIT_STORE_IDLE_BYTES. */
#include "daemon/store_private.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "proto/limits.h"

#define IDLE_NS (60 * NS_PER_S) /* then an idle content is closed at the next round */

static void tidy(struct store *, int64_t since);

/* --- the table; store->lock is held -------------------------------------------------------------- */
/* Roots are chosen by strangers, so the bucket depends on numbers they do not know: multilinear hashing, by which any two
 * roots share a bucket once in bucket_count times, whatever they are. */
static size_t bucket_of(const struct store *store, const uint8_t root[HASH_SIZE])
{
    uint32_t words[STORE_ROOT_WORDS];
    uint64_t sum = store->secret[STORE_ROOT_WORDS];

    memcpy(words, root, sizeof words);
    for (size_t i = 0; i < STORE_ROOT_WORDS; i++)
        sum += words[i] * store->secret[i];
    return (size_t)(sum >> 32) & (store->bucket_count - 1);
}

static struct record *find(const struct store *store, const uint8_t root[HASH_SIZE])
{
    struct record *record = store->buckets[bucket_of(store, root)];

    while (record != NULL && memcmp(record->root, root, HASH_SIZE) != 0)
        record = record->next;
    return record;
}

/* As find, but not while somebody works on it. */
static struct record *find_quiet(struct store *store, const uint8_t root[HASH_SIZE])
{
    struct record *record;

    while ((record = find(store, root)) != NULL && record->busy)
        lock_wait(&store->wake, &store->lock);
    return record;
}

static void grow(struct store *store)
{
    struct record **old = store->buckets;
    size_t count = store->bucket_count;

    store->bucket_count = count * 2;
    store->buckets = xcalloc(store->bucket_count, sizeof *store->buckets);
    for (size_t i = 0; i < count; i++) {
        while (old[i] != NULL) {
            struct record *record = old[i];
            old[i] = record->next;
            size_t bucket = bucket_of(store, record->root);
            record->next = store->buckets[bucket];
            store->buckets[bucket] = record;
        }
    }
    free(old);
}

static struct record *add(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size)
{
    struct record *record = xcalloc(1, sizeof *record);

    if (store->records++ >= store->bucket_count)
        grow(store);
    size_t bucket = bucket_of(store, root);
    memcpy(record->root, root, HASH_SIZE);
    record->size = size;
    record->next = store->buckets[bucket];
    store->buckets[bucket] = record;
    return record;
}

static void drop(struct store *store, struct record *record)
{
    struct record **at = &store->buckets[bucket_of(store, record->root)];

    while (*at != record)
        at = &(*at)->next;
    *at = record->next;
    store->records--;
    free(record);
}

struct record *store_add_record(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                                uint64_t bytes)
{
    lock_take(&store->lock);
    struct record *record = add(store, root, size);
    record->bytes = bytes;
    lock_drop(&store->lock);
    __atomic_fetch_add(&store->held, bytes, __ATOMIC_RELAXED);
    return record;
}

/* Somebody was busy with it and is no more. */
static void settle(struct store *store, struct record *record)
{
    record->busy = false;
    lock_wake(&store->wake);
}

/* --- idle contents; store->lock is held ----------------------------------------------------------- */
static void idle_remove(struct store *store, struct content *content)
{
    if (!content->idle)
        return;
    *(content->idle_before ? &content->idle_before->idle_next : &store->idle_first) =
        content->idle_next;
    *(content->idle_next ? &content->idle_next->idle_before : &store->idle_last) =
        content->idle_before;
    content->idle = false;
    store->idle_count--;
    store->idle_memory -= content->memory;
}

static void idle_add(struct store *store, struct content *content)
{
    content->idle = true;
    content->idle_since = clock_now();
    store->idle_count++;
    store->idle_memory += content->memory;
    if (content->record->dropped) { /* in front: the next to go */
        content->idle_before = NULL;
        content->idle_next = store->idle_first;
        *(store->idle_first ? &store->idle_first->idle_before : &store->idle_last) = content;
        store->idle_first = content;
    } else {
        content->idle_next = NULL;
        content->idle_before = store->idle_last;
        *(store->idle_last ? &store->idle_last->idle_next : &store->idle_first) = content;
        store->idle_last = content;
    }
}

void store_take(struct store *store, struct content *content)
{
    if (content->references++ == 0)
        idle_remove(store, content);
}

static void dirty_remove(struct store *store, struct content *content)
{
    if (!content->queued)
        return;
    *(content->dirty_before ? &content->dirty_before->dirty_next : &store->dirty) =
        content->dirty_next;
    if (content->dirty_next != NULL)
        content->dirty_next->dirty_before = content->dirty_before;
    content->queued = false;
    store->dirty_count--;
}

void store_add_dirty(struct store *store, struct content *content)
{
    if (content->queued)
        return;
    content->queued = true;
    content->dirty_before = NULL;
    content->dirty_next = store->dirty;
    if (store->dirty != NULL)
        store->dirty->dirty_before = content;
    store->dirty = content;
    store->dirty_count++;
}

/* Which idle content is to be closed now, if any; `since`: those idle since before that are. */
static struct content *next_victim(struct store *store, int64_t since)
{
    struct content *content = store->idle_first;

    if (content != NULL &&
        (content->record->dropped || store->idle_count > LIMIT_STORE_IDLE ||
         store->idle_memory > LIMIT_STORE_IDLE_BYTES || content->idle_since < since))
        return content;
    return NULL;
}

/* Closes an idle content or, if it was dropped, deletes it. Takes and drops the lock in between. */
static void retire(struct store *store, struct content *content)
{
    struct record *record = content->record;
    bool dropped = record->dropped;

    idle_remove(store, content);
    record->busy = true;
    content->references = 1; /* ours, for the sync */
    lock_drop(&store->lock);
    if (!dropped)
        content_sync(content);
    lock_take(&store->lock);
    dirty_remove(store, content);
    record->content = NULL;
    lock_drop(&store->lock);
    uint64_t bytes = content_bytes(content);
    uint32_t used = content_used(content);
    content_close(content);
    if (dropped) {
        store_unlink_all(store, record->root);
        __atomic_fetch_sub(&store->held, bytes, __ATOMIC_RELAXED);
    }
    lock_take(&store->lock);
    record->bytes = bytes;
    record->used = used;
    settle(store, record);
    if (dropped)
        drop(store, record);
}

/* --- open and close -------------------------------------------------------------------------------- */
static int open_directories(struct store *store)
{
    int result = file_private_dir(store->directory);

    if (result < 0)
        return result;
    store->fd = open(store->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->fd < 0)
        return -errno;
    if (mkdirat(store->fd, "incoming", S_IRWXU) < 0 && errno != EEXIST)
        return -errno;
    store->incoming = openat(store->fd, "incoming", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->incoming < 0)
        return -errno;
    store->first_number = store->next_number = ingest_next_number(store);
    if (store->next_number == 0)
        return -EIO;
    return store_scan(store);
}

static void free_store(struct store *store)
{
    for (size_t i = 0; i < store->bucket_count; i++) {
        while (store->buckets[i] != NULL) {
            struct record *record = store->buckets[i];
            store->buckets[i] = record->next;
            free(record);
        }
    }
    free(store->buckets);
    if (store->fd >= 0)
        close(store->fd);
    if (store->incoming >= 0)
        close(store->incoming);
    pthread_mutex_destroy(&store->lock);
    pthread_mutex_destroy(&store->leaves_lock);
    pthread_cond_destroy(&store->wake);
    free(store->directory);
    store->magic = 0;
    store_key_free(store->key);
    store_window_free(store->window);
    free(store);
}

struct store *store_open(const char *directory, const char **fault)
{
    return store_open_encrypted(directory, NULL, fault);
}

struct store *store_open_encrypted(const char *directory, struct store_key *key, const char **fault)
{
    struct store *store = xcalloc(1, sizeof *store);

    store->magic = STORE_MAGIC;
    store->key = key;
    store->directory = xstrdup(directory);
    store->fd = store->incoming = -1;
    random_bytes(store->secret, sizeof store->secret);
    store->bucket_count = 1024;
    store->buckets = xcalloc(store->bucket_count, sizeof *store->buckets);
    CHECK(pthread_mutex_init(&store->lock, NULL) == 0);
    CHECK(pthread_mutex_init(&store->leaves_lock, NULL) == 0);
    store->window = store_window_new();
    CHECK(pthread_cond_init(&store->wake, NULL) == 0);

    int result = open_directories(store);
    if (result == 0)
        return store;
    *fault = result == -EPERM    ? "the store's directory is not this user's alone"
             : result == -ENOSPC ? "the disk is full"
             : result == -EROFS  ? "the disk is read-only"
             : result == -EACCES ? "the store's directory may not be opened"
                                 : "the store's directory cannot be opened";
    log_error("%s: %s", directory, strerror(-result));
    free_store(store);
    return NULL;
}

void store_end(struct store *store)
{
    __atomic_store_n(&store->ending, true, __ATOMIC_RELAXED);
}

void store_close(struct store *store)
{
    CHECK_OBJECT(store, STORE_MAGIC);
    store_sync(store);
    tidy(store, INT64_MAX);
    for (size_t i = 0; i < store->bucket_count; i++) {
        for (struct record *record = store->buckets[i]; record != NULL; record = record->next)
            CHECK(record->content == NULL); /* a reference was not released */
    }
    free_store(store);
}

/* --- contents -------------------------------------------------------------------------------------- */
/* Opens or makes what `record` names, which this thread is busy with. The lock is held, but not meanwhile. */
static struct content *open_record(struct store *store, struct record *record, bool create,
                                   int *error)
{
    uint64_t before = record->bytes;
    struct content *content;

    record->busy = true;
    lock_drop(&store->lock);
    content = create ? content_create(store, record, error) : content_open(store, record, error);
    if (content != NULL)
        __atomic_fetch_add(&store->held, content_bytes(content) - before, __ATOMIC_RELAXED);
    else if (*error == -ENOENT)
        __atomic_fetch_sub(&store->held, before, __ATOMIC_RELAXED);
    lock_take(&store->lock);
    record->content = content;
    settle(store, record);
    if (content != NULL) {
        content->references = 1;
        store_add_dirty(store, content); /* the next round looks whether there is something to do */
    } else if (create || *error == -ENOENT) {
        drop(store, record);
    }
    return content;
}

/* What to do about a content that is not here, or was dropped but is still in use. */
enum wanted { IF_THERE, EVEN_DROPPED, IN_ANY_CASE };

static struct content *get(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                           enum wanted wanted, int *error)
{
    struct content *content = NULL;
    struct record *record;

    lock_take(&store->lock);
    while ((record = find_quiet(store, root)) != NULL && record->content == NULL) {
        content = open_record(store, record, false, error);
        if (content != NULL || *error != -ENOENT)
            break;
    }
    if (record == NULL) {
        *error = -ENOENT;
        if (wanted == IN_ANY_CASE)
            content = open_record(store, add(store, root, size), true, error);
    } else if (content == NULL && record->content != NULL) {
        if (record->dropped && wanted == IF_THERE) {
            *error = -ENOENT;
        } else {
            record->dropped = false; /* wanted again before it was gone */
            content = record->content;
            store_take(store, content);
        }
    }
    lock_drop(&store->lock);
    return content;
}

static struct content *get_sized(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                                 enum wanted wanted, int *error)
{
    struct content *content;

    CHECK_OBJECT(store, STORE_MAGIC);
    *error = -EINVAL;
    if (size == 0 || size > FILE_SIZE_MAX)
        return NULL;
    content = get(store, root, size, wanted, error);
    if (content != NULL && content->geometry.size != size) {
        content_release(content);
        content = NULL;
        *error = -EINVAL;
    }
    tidy(store, INT64_MIN);
    if (content != NULL)
        *error = 0;
    return content;
}

struct content *store_get(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                          bool create, int *error)
{
    return get_sized(store, root, size, create ? IN_ANY_CASE : IF_THERE, error);
}

struct content *store_revive(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size,
                             int *error)
{
    return get_sized(store, root, size, EVEN_DROPPED, error);
}

struct content *store_find(struct store *store, const uint8_t root[HASH_SIZE])
{
    struct content *content = NULL;

    CHECK_OBJECT(store, STORE_MAGIC);
    lock_take(&store->lock);
    struct record *record = find(store, root);
    if (record != NULL && !record->busy && !record->dropped && record->content != NULL) {
        content = record->content;
        store_take(store, content);
    }
    lock_drop(&store->lock);
    return content;
}

struct content *content_share(struct content *content)
{
    CHECK_OBJECT(content, CONTENT_MAGIC);
    lock_take(&content->store->lock);
    CHECK(content->references > 0);
    content->references++;
    lock_drop(&content->store->lock);
    return content;
}

void content_release(struct content *content)
{
    if (content == NULL)
        return;
    CHECK_OBJECT(content, CONTENT_MAGIC);
    struct store *store = content->store;
    lock_take(&store->lock);
    CHECK(content->references > 0);
    if (--content->references == 0)
        idle_add(store, content);
    lock_drop(&store->lock);
}

/* The lock is held, but not meanwhile. */
static void delete_closed(struct store *store, struct record *record)
{
    record->busy = true;
    lock_drop(&store->lock);
    store_unlink_all(store, record->root);
    lock_take(&store->lock);
    __atomic_fetch_sub(&store->held, record->bytes, __ATOMIC_RELAXED);
    settle(store, record);
    drop(store, record);
}

void store_drop(struct store *store, const uint8_t root[HASH_SIZE])
{
    CHECK_OBJECT(store, STORE_MAGIC);
    lock_take(&store->lock);
    struct record *record = find_quiet(store, root);
    if (record != NULL && record->content != NULL) {
        record->dropped = true;
        if (record->content->references == 0)
            retire(store, record->content);
    } else if (record != NULL) {
        delete_closed(store, record);
    }
    lock_drop(&store->lock);
}

int64_t store_drop_unused(struct store *store, const uint8_t root[HASH_SIZE])
{
    int64_t bytes = -ENOENT;

    lock_take(&store->lock);
    struct record *record = find_quiet(store, root);
    if (record != NULL && record->content != NULL && record->content->references > 0) {
        bytes = -EBUSY;
    } else if (record != NULL && record->content != NULL) {
        bytes = (int64_t)content_bytes(record->content);
        record->dropped = true;
        retire(store, record->content);
    } else if (record != NULL) {
        bytes = (int64_t)record->bytes;
        delete_closed(store, record);
    }
    lock_drop(&store->lock);
    return bytes;
}

int content_own(struct content *content)
{
    int result = content_pin(content);

    if (result < 0)
        return result;
    if (fchmod(content->fd[FD_DATA], MODE_OWN) < 0 || fsync(content->fd[FD_DATA]) < 0)
        result = -errno;
    else
        __atomic_store_n(&content->record->own, true, __ATOMIC_RELAXED);
    content_unpin(content, false);
    return result;
}

static int rename_in(struct store *store, const uint8_t root[HASH_SIZE], const char *name,
                     const char *suffix)
{
    char to[NAME_SIZE];

    store_file_name(to, root, suffix);
    return renameat(store->incoming, name, store->fd, to) < 0 ? -errno : 0;
}

int store_adopt(struct store *store, const uint8_t root[HASH_SIZE], uint64_t size, const char *data,
                const char *hash)
{
    lock_take(&store->lock);
    if (find_quiet(store, root) != NULL) {
        lock_drop(&store->lock);
        return -EEXIST;
    }
    struct record *record = add(store, root, size);
    bool there = false;
    record->busy = true;
    lock_drop(&store->lock);

    int result = store_make_folder(store, root);
    if (result == 0 && hash != NULL)
        result = rename_in(store, root, hash, SUFFIX_HASH);
    if (result == -ENOENT) /* it went there in an earlier attempt, or is made anew when opened */
        result = 0;
    if (result == 0)
        result = rename_in(store, root, data, SUFFIX_DATA);
    if (result == 0) {
        /* If this fails it is here nevertheless, but may not be after a power loss: the caller is told. */
        result = store_sync_folder(store, root);
        there = true;
        __atomic_fetch_add(&store->held, size, __ATOMIC_RELAXED);
    }
    lock_take(&store->lock);
    settle(store, record);
    record->own = there;
    record->used = used_now();
    if (there)
        record->bytes = size;
    else
        drop(store, record);
    lock_drop(&store->lock);
    return result;
}

/* --- what is held ----------------------------------------------------------------------------------- */
static void summarize(const struct record *record, struct store_summary *out)
{
    memcpy(out->root, record->root, HASH_SIZE);
    out->size = record->size;
    out->bytes = record->content != NULL ? content_bytes(record->content) : record->bytes;
    out->complete = out->bytes == out->size;
    out->own = __atomic_load_n(&record->own, __ATOMIC_RELAXED);
}

void store_each(struct store *store, void (*each)(const struct store_summary *, void *arg),
                void *arg)
{
    CHECK_OBJECT(store, STORE_MAGIC);
    lock_take(&store->lock);
    for (size_t i = 0; i < store->bucket_count; i++) {
        for (struct record *record = store->buckets[i]; record != NULL; record = record->next) {
            struct store_summary summary;
            if (record->dropped)
                continue;
            summarize(record, &summary);
            each(&summary, arg);
        }
    }
    lock_drop(&store->lock);
}

bool store_summary(struct store *store, const uint8_t root[HASH_SIZE], struct store_summary *out)
{
    CHECK_OBJECT(store, STORE_MAGIC);
    lock_take(&store->lock);
    struct record *record = find(store, root);
    bool here = record != NULL && !record->dropped;
    if (here)
        summarize(record, out);
    lock_drop(&store->lock);
    return here && out->bytes > 0;
}

uint64_t store_held(const struct store *store)
{
    return __atomic_load_n(&store->held, __ATOMIC_RELAXED);
}

void store_space(struct store *store, uint64_t *held, uint64_t *free_bytes, uint64_t *total)
{
    struct statvfs status;

    CHECK_OBJECT(store, STORE_MAGIC);
    *held = __atomic_load_n(&store->held, __ATOMIC_RELAXED);
    *free_bytes = *total = 0;
    if (fstatvfs(store->fd, &status) == 0) {
        *free_bytes = (uint64_t)status.f_bavail * status.f_frsize;
        *total = (uint64_t)status.f_blocks * status.f_frsize;
    }
}

void store_on_change(struct store *store,
                     void (*changed)(void *arg, struct content *, uint64_t first, uint32_t count,
                                     bool present),
                     void *arg)
{
    CHECK_OBJECT(store, STORE_MAGIC);
    store->changed = changed;
    store->changed_arg = arg;
}

void store_tell(struct content *content, uint64_t first, uint64_t count, bool present)
{
    struct store *store = content->store;

    while (store->changed != NULL && count > 0) {
        uint32_t step = count < (1u << 30) ? (uint32_t)count : 1u << 30;
        store->changed(store->changed_arg, content, first, step, present);
        first += step;
        count -= step;
    }
}

/* --- rounds of syncing ------------------------------------------------------------------------------ */
/* Up to `max` contents with something to sync, each with a reference of ours. */
static size_t take_dirty(struct store *store, struct content **list, size_t max)
{
    size_t count = 0;

    lock_take(&store->lock);
    while (count < max && store->dirty != NULL) {
        struct content *content = store->dirty;
        dirty_remove(store, content);
        if (content->record->dropped || content->record->busy)
            continue; /* goes away anyway, or is being synced in order to be closed */
        store_take(store, content);
        list[count++] = content;
    }
    lock_drop(&store->lock);
    return count;
}

static int sync_round(struct store *store)
{
    struct content **list;
    int result = 0;

    lock_take(&store->lock);
    while (store->syncing)
        lock_wait(&store->wake, &store->lock);
    store->syncing = true;
    size_t left = store->dirty_count; /* what gets dirty from now on is for the next round */
    lock_drop(&store->lock);
    list = xmalloc(SYNC_BATCH * sizeof *list);

    while (left > 0) {
        size_t count = take_dirty(store, list, left < SYNC_BATCH ? left : SYNC_BATCH);
        if (count == 0)
            break;
        left -= count;
        int error = content_sync_many(store, list, count);
        if (result == 0)
            result = error;
        for (size_t i = 0; i < count; i++)
            content_release(list[i]);
    }
    free(list);

    lock_take(&store->lock);
    store->syncing = false;
    lock_wake(&store->wake);
    lock_drop(&store->lock);
    return result;
}

/* Closes what has been idle since before `since`, what is too much and what was dropped. Many small contents are synced
 * together first: that costs as much as one of them alone. */
static void tidy(struct store *store, int64_t since)
{
    struct content *content;

    lock_take(&store->lock);
    content = next_victim(store, since);
    if (content != NULL && content->queued && !content->record->dropped) {
        lock_drop(&store->lock);
        sync_round(store);
        lock_take(&store->lock);
    }
    while ((content = next_victim(store, since)) != NULL)
        retire(store, content);
    lock_drop(&store->lock);
}

int store_sync(struct store *store)
{
    CHECK_OBJECT(store, STORE_MAGIC);
    int result = sync_round(store);
    tidy(store, clock_now() - IDLE_NS);
    return result;
}
