/* What readers wait for (demands) and where they read (handles).
 *
 * Owns both, and the order in which demands run out of time. Leaves which blocks that means to picker.h and readahead.h, mail
 * to download.c. Thread: "download".
 *
 * A demand ends once: all its blocks are present (file_progress), its time is up, its reader or handle is gone, or the daemon
 * stops. A handle is known from its first read until it is closed, as long as its file is not complete. */
#include "daemon/download_private.h"

#include <errno.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/local.h"
#include "daemon/store.h"

/* --- demands ------------------------------------------------------------------------------------------------------------ */
static void log_expired(const struct demand *demand)
{
    const struct file *file = demand->file;
    uint64_t block = bitmap_next_clear(content_present(file->content), demand->first,
                                       demand->first + demand->count);
    uint32_t part = (uint32_t)(block / file->parts.piece_blocks);
    uint32_t piece = (uint32_t)(block / file->geometry->piece_blocks), links = 0, have = 0,
             known = 0;
    const struct holding *holding;
    const struct fetch *fetch;
    char root[2 * HASH_SIZE + 1];

    LIST_FOREACH(fetch, &file->fetches, of_file)
    {
        links++;
        if (!fetch->refused && picker_source_has(fetch->source, part))
            have++;
    }
    LIST_FOREACH(holding, &file->holdings, of_file)
    known++;
    hex_encode(root, file->root, HASH_SIZE);
    log_warning("a reader of %.16s gives up on piece %u: %u of %u connected devices have it, %u "
                "are known to hold "
                "some of the file%s%s",
                root, piece, have, links, known, file->download->trouble[0] != '\0' ? "; " : "",
                file->download->trouble);
}

void demand_end(struct demand *demand, int error, bool tell)
{
    struct file *file = demand->file;
    struct download *download = file->download;

    if (error == -EIO)
        log_expired(demand);
    picker_demand_remove(&demand->wanted);
    TAILQ_REMOVE(&file->demands, demand, of_file);
    TAILQ_REMOVE(&download->expiry, demand, by_expiry);
    HASH_DEL(download->demands, demand);
    file_demands_changed(file);
    if (tell)
        local_demand_done(download->daemon->local, demand->request, error);
    if (error != 0)
        picker_trim(file->picker);
    file_dirty(file);
    free(demand);
}

struct handle *handle_get(struct file *file, uint64_t id)
{
    struct download *download = file->download;
    struct handle *handle;

    HASH_FIND(hh, download->handles, &id, sizeof(id), handle);
    if (handle != NULL)
        return handle->file == file ? handle : NULL;
    handle = xcalloc(1, sizeof(*handle));
    handle->id = id;
    handle->file = file;
    readahead_init(&handle->ahead, file->geometry->size);
    HASH_ADD(hh, download->handles, id, sizeof(handle->id), handle);
    LIST_INSERT_HEAD(&file->handles, handle, of_file);
    return handle;
}

/* A file that takes most of the cache would only push out what was read of it before. */
static bool may_complete(const struct file *file)
{
    const struct daemon_settings *settings = &file->download->daemon->settings;

    return settings->background &&
           (settings->cache_size == 0 || file->geometry->size <= settings->cache_size / 2);
}

/* The handle reads there: its windows move. */
void handle_reads(struct handle *handle, uint64_t offset, uint64_t size)
{
    struct file *file = handle->file;
    struct readahead_range ranges[READAHEAD_CURSORS];
    unsigned count;

    if (!readahead_read(&handle->ahead, offset, size, clock_now()))
        return;
    count = readahead_windows(&handle->ahead, ranges);
    for (unsigned i = 0; i < READAHEAD_CURSORS; i++) {
        uint64_t first = 0, end = 0;

        if (i < count && ranges[i].size > 0) {
            first = ranges[i].offset / BLOCK_SIZE;
            end = (ranges[i].offset + ranges[i].size + BLOCK_SIZE - 1) / BLOCK_SIZE;
        }
        picker_window_set(file->picker, &handle->windows[i], first, end - first);
    }
    if (may_complete(file) && readahead_is_reading(&handle->ahead))
        file_set_background(file);
    picker_trim(file->picker);
    file_dirty(file);
}

void handle_free(struct handle *handle)
{
    struct file *file = handle->file;

    for (unsigned i = 0; i < READAHEAD_CURSORS; i++)
        picker_window_set(file->picker, &handle->windows[i], 0, 0);
    picker_trim(file->picker);
    LIST_REMOVE(handle, of_file);
    HASH_DEL(file->download->handles, handle);
    file_dirty(file);
    free(handle);
}

struct demand *demand_of(struct download *download, uint64_t request)
{
    struct demand *demand;

    HASH_FIND(hh, download->demands, &request, sizeof(request), demand);
    return demand;
}

void demand_add(struct file *file, uint64_t request, uint64_t handle, uint64_t first,
                uint64_t count, int64_t wait)
{
    struct download *download = file->download;
    struct demand *demand = xcalloc(1, sizeof(*demand)), *before;
    int64_t now = clock_now();

    demand->request = request;
    demand->handle = handle;
    demand->file = file;
    demand->first = first;
    demand->count = count;
    demand->expires = wait < INT64_MAX - now ? now + wait : INT64_MAX;
    HASH_ADD(hh, download->demands, request, sizeof(demand->request), demand);
    TAILQ_INSERT_TAIL(&file->demands, demand, of_file);
    before = TAILQ_LAST(&download->expiry, demand_expiry);
    while (before != NULL && before->expires > demand->expires)
        before = TAILQ_PREV(before, demand_expiry, by_expiry);
    if (before != NULL)
        TAILQ_INSERT_AFTER(&download->expiry, before, demand, by_expiry);
    else
        TAILQ_INSERT_HEAD(&download->expiry, demand, by_expiry);
    picker_demand_add(file->picker, &demand->wanted, first, count, now);
    file_demands_changed(file);
    file_dirty(file);
}
