/* Owns what the store leaves in the kernel's page cache of what it writes block by block.
 *
 * A fetched terabyte must not push everything else out of this machine's memory, nor pile up gigabytes of dirty pages that the
 * kernel then writes in one go while every writer waits. So what is written goes to the disk steadily, a step at a time,
 * and only the last WINDOW_BYTES of it, over all contents, stay in memory: enough for a reader who is close behind, and
 * for peers who ask for what just came. What is read again later comes from the disk, and stays in memory then, as
 * with any file. (Memory that is used again at once is also cheaper than fresh memory: on a virtual machine whose host hands
 * out pages when they are touched, a stream through fresh memory took twice the processor time.)
 *
 * Runs of written bytes wait in a ring, in the order of their writing: [dropped, begun) are on their way to the disk,
 * [begun, end) not yet. The ring is bounded; what is pushed out of it stays in memory until the kernel takes it.
 *
 * Threads: content_wrote on any, store_writeback on one at a time, which may wait for the disk. */
#include "daemon/store_private.h"

#include <fcntl.h>

#include "base/mem.h"

#define WINDOW_BYTES (128u << 20)
#define WINDOW_STEP  (8u << 20) /* written before anybody is told */
#define RUN_MAX      (4u << 20) /* runs that follow each other are one up to this */
#define RING         8192       /* runs; a power of two */

struct written {
    uint8_t root[HASH_SIZE];
    uint64_t offset, size;
};

struct store_window {
    pthread_mutex_t lock;
    uint64_t dropped, begun, end; /* numbers of runs; run N is ring[N % RING] */
    uint64_t waiting, under_way;  /* bytes of the two stretches */
    bool told;
    void (*tell)(void *arg);
    void *tell_arg;
    struct written ring[RING];
};

struct store_window *store_window_new(void)
{
    struct store_window *window = xcalloc(1, sizeof *window);

    CHECK(pthread_mutex_init(&window->lock, NULL) == 0);
    return window;
}

void store_window_free(struct store_window *window)
{
    CHECK(pthread_mutex_destroy(&window->lock) == 0);
    free(window);
}

void store_on_written(struct store *store, void (*tell)(void *arg), void *arg)
{
    store->window->tell = tell;
    store->window->tell_arg = arg;
}

/* The lock is held. The oldest run is forgotten. */
static void forget_oldest(struct store_window *window)
{
    uint64_t size = window->ring[window->dropped % RING].size;

    if (window->dropped == window->begun) {
        window->begun++;
        window->waiting -= size;
    } else {
        window->under_way -= size;
    }
    window->dropped++;
}

void content_wrote(struct content *content, uint64_t offset, uint64_t size)
{
    struct store_window *window = content->store->window;

    lock_take(&window->lock);
    struct written *last = &window->ring[(window->end - 1) % RING];
    if (window->end > window->begun && last->offset + last->size == offset &&
        last->size + size <= RUN_MAX && memcmp(last->root, content->root, HASH_SIZE) == 0) {
        last->size += size;
    } else {
        if (window->end - window->dropped == RING)
            forget_oldest(window);
        last = &window->ring[window->end++ % RING];
        memcpy(last->root, content->root, HASH_SIZE);
        last->offset = offset;
        last->size = size;
    }
    window->waiting += size;
    bool tell = !window->told && window->waiting >= WINDOW_STEP && window->tell != NULL;
    window->told |= tell;
    lock_drop(&window->lock);
    if (tell)
        window->tell(window->tell_arg);
}

static void write_back(const struct content *content, const struct written *run)
{
    (void)sync_file_range(content->fd[FD_DATA], (off_t)file_cipher_at(content->cipher, run->offset),
                          (off_t)run->size, SYNC_FILE_RANGE_WRITE);
}

static void let_go(const struct content *content, const struct written *run)
{
    int fd = content->fd[FD_DATA];
    off_t offset = (off_t)file_cipher_at(content->cipher, run->offset);

    (void)sync_file_range(fd, offset, (off_t)run->size,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                              SYNC_FILE_RANGE_WAIT_AFTER);
    (void)posix_fadvise(fd, offset, (off_t)run->size, POSIX_FADV_DONTNEED);
}

/* What is no longer open is left to the kernel. */
static void with_content(struct store *store, const struct written *run,
                         void (*act)(const struct content *, const struct written *))
{
    struct content *content = store_find(store, run->root);

    if (content != NULL && content_pin_now(content)) {
        act(content, run);
        content_unpin(content, false);
    }
    content_release(content);
}

static bool next_to_begin(struct store_window *window, struct written *run)
{
    lock_take(&window->lock);
    bool any = window->begun < window->end;
    if (any) {
        *run = window->ring[window->begun++ % RING];
        window->waiting -= run->size;
        window->under_way += run->size;
    }
    lock_drop(&window->lock);
    return any;
}

static bool next_to_drop(struct store_window *window, struct written *run)
{
    lock_take(&window->lock);
    bool any = window->under_way > WINDOW_BYTES;
    if (any) {
        *run = window->ring[window->dropped % RING];
        forget_oldest(window);
    }
    lock_drop(&window->lock);
    return any;
}

void store_writeback(struct store *store)
{
    struct store_window *window = store->window;
    struct written run;

    lock_take(&window->lock);
    window->told = false;
    lock_drop(&window->lock);
    while (next_to_begin(window, &run))
        with_content(store, &run, write_back);
    while (next_to_drop(window, &run))
        with_content(store, &run, let_go);
}
