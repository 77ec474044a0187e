/* The download thread: its mail and its timers.
 *
 * Owns what download_private.h lists. Thread: "download"; the functions of download.h
 * post mail and return. Memory: a demand, a handle, a known file, device and link are small structures; buffers of blocks are
 * bounded (download_verify.c); state of pieces exists for what is under way (picker.h).
 *
 * Every event (mail, a link's callback, a timer) ends with download_settle: blocks that came go to workers, files that
 * changed are reviewed, requests that were gathered are sent, the timer is set. So a reader's demand is on the wire in the round
 * of the loop that delivers it, and its answer leaves in the one that delivers the verdict; no timer is in that path.
 *
 *   demand:  download_demand -> (present: answered) -> picker -> link -> buffer -> worker -> file_progress -> local_demand_done
 *                                \-- after wait_ns: -EIO, one log line */
#include "daemon/download_private.h"

#include <errno.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "daemon/credentials.h"
#include "daemon/local.h"
#include "daemon/store.h"
#include "proto/channel.h"

#define TICK       (250 * NS_PER_MS)
#define LAST_WORDS (300 * NS_PER_MS) /* how long stopping waits for good-byes to leave */

/* --- the rate limit, and the store's trouble --------------------------------------------------------------------------- */
static uint64_t rate_limit(const struct download *download)
{
    return __atomic_load_n(&download->daemon->settings.rate_down, __ATOMIC_RELAXED);
}

/* A block may be asked for when there is room for a whole one. */
static uint32_t blocks_of(uint64_t room)
{
    return room / BLOCK_SIZE > UINT32_MAX ? UINT32_MAX : (uint32_t)(room / BLOCK_SIZE);
}

/* The store takes nothing for now. After a full disk there must be room for more than the next few blocks: asking for
 * what cannot be kept costs everybody. */
bool download_is_troubled(struct download *download, int64_t now)
{
    uint64_t held, space, total;

    if (download->trouble[0] == '\0')
        return false;
    if (now >= download->trouble_until && download->disk_full) {
        store_space(download->daemon->store, &held, &space, &total);
        if (space < ROOM_AGAIN && space < total / 16)
            download->trouble_until = now + TROUBLE_RETRY;
    }
    return now < download->trouble_until;
}

bool download_may_ask(struct download *download, int64_t now)
{
    if (download->stopping || download_is_troubled(download, now))
        return false;
    return download_allowance(download, now) > 0;
}

uint32_t download_allowance(struct download *download, int64_t now)
{
    if (download->stopping || download_is_troubled(download, now))
        return 0;
    bucket_set(&download->bucket, rate_limit(download), now);
    return blocks_of(bucket_room(&download->bucket, now));
}

uint32_t file_allowance(struct file *file, int64_t now)
{
    uint32_t all = download_allowance(file->download, now);
    uint32_t own = blocks_of(bucket_room(&file->bucket, now));

    return own < all ? own : all;
}

/* When a limit lets something be asked for again, if one holds it back now. */
static int64_t limits_next(struct download *download, int64_t now)
{
    int64_t next = INT64_MAX, wait = bucket_wait(&download->bucket, BLOCK_SIZE);
    const struct file *file;

    if (download->files == NULL)
        return next;
    if (wait > 0)
        next = now + wait;
    for (file = download->limited > 0 ? download->files : NULL; file != NULL;
         file = file->hh.next) {
        wait = bucket_wait(&file->bucket, BLOCK_SIZE);
        if (wait > 0 && now + wait < next)
            next = now + wait;
    }
    return next == INT64_MAX || next < now + NS_PER_S ? next : now + NS_PER_S;
}

/* --- the end of every event ---------------------------------------------------------------------------------------------- */
static int64_t next_due(struct download *download, int64_t now)
{
    const struct demand *first = TAILQ_FIRST(&download->expiry);
    const struct file *file;
    int64_t next = first == NULL ? INT64_MAX : first->expires;
    int64_t limited = limits_next(download, now);

    TAILQ_FOREACH(file, &download->demanding, of_demanding) {
        int64_t late = picker_next(file->picker), hashes = hashes_next(file);

        if (late < next)
            next = late;
        if (hashes < next)
            next = hashes;
    }
    return limited < next ? limited : next;
}

static void set_timers(struct download *download)
{
    int64_t now, next;

    if (download->stopping)
        return;
    if (download->files != NULL || !TAILQ_EMPTY(&download->links) || download->devices != NULL) {
        if (!timer_pending(download->tick))
            timer_set(download->tick, TICK);
    }
    now = clock_now();
    next = next_due(download, now);
    if (next >= download->due_at)
        return; /* an earlier one only looks in vain */
    download->due_at = next;
    timer_set(download->due, next > now ? next - now : 0);
}

static void review_files(struct download *download)
{
    struct file *file, *next;

    while ((file = STAILQ_FIRST(&download->dirty_files)) != NULL) {
        STAILQ_REMOVE_HEAD(&download->dirty_files, of_dirty);
        file->dirty = false;
        if (!download->stopping)
            file_review(file);
    }
    if (!download->place)
        return;
    download->place = false;
    HASH_ITER(hh, download->files, file, next) {
        if (LIST_EMPTY(&file->fetches))
            file_dirty(file);
    }
    if (!STAILQ_EMPTY(&download->dirty_files))
        review_files(download);
}

void download_settle(struct download *download)
{
    struct link *link;

    review_files(download);
    while ((link = STAILQ_FIRST(&download->dirty_links)) != NULL) {
        STAILQ_REMOVE_HEAD(&download->dirty_links, of_dirty);
        link->dirty = false;
        if (link->state == LINK_UP)
            link_flush(link);
    }
    set_timers(download);
}

void download_room(struct download *download, struct link *link)
{
    struct file *file;
    int64_t now = clock_now();

    STAILQ_FOREACH(file, &download->dirty_files, of_dirty)
    verify_post(file);
    TAILQ_FOREACH(file, &download->demanding, of_demanding)
        file_run(file, now);
    link_fill(link, now);
}

static void on_due(void *arg)
{
    struct download *download = arg;
    struct file *file;
    struct demand *demand;
    int64_t now = clock_now();

    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    download->due_at = INT64_MAX;
    while ((demand = TAILQ_FIRST(&download->expiry)) != NULL && demand->expires <= now)
        demand_end(demand, -EIO, true);
    TAILQ_FOREACH(file, &download->demanding, of_demanding) {
        if (hashes_next(file) <= now)
            hashes_retry(file, now);
        file_run(file, now);
    }
    if (rate_limit(download) != 0 || download->limited > 0) {
        struct link *link;

        TAILQ_FOREACH(link, &download->links, entry)
            link_fill(link, now);
    }
    download_settle(download);
}

/* --- housekeeping ------------------------------------------------------------------------------------------------------ */
static void on_tick(void *arg)
{
    struct download *download = arg;
    struct link *link, *next_link;
    struct file *file, *next;
    int64_t now = clock_now();

    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    status_measure(download, now);
    for (link = TAILQ_FIRST(&download->links); link != NULL; link = next_link) {
        next_link = TAILQ_NEXT(link, entry);
        link_tick(link, now);
    }
    devices_tick(download, now);
    HASH_ITER(hh, download->files, file, next) {
        if (hashes_next(file) <= now)
            hashes_retry(file, now);
        if (download->trouble[0] != '\0' && now >= download->trouble_until)
            file_dirty(file);
    }
    for (link = TAILQ_FIRST(&download->links); link != NULL; link = TAILQ_NEXT(link, entry))
        link_fill(link, now);
    download_settle(download);
}

/* --- mail ---------------------------------------------------------------------------------------------------------------- */
struct note {
    struct mail mail;
    struct content *content;
    uint64_t request, handle, offset, size;
    int64_t wait;
    uint8_t id[HASH_SIZE]; /* a root or a device */
    void *object;          /* peers, credentials, a stream, a cookie */
    uint8_t *bytes;
    bool flag;
};

static struct note *note_new(void (*deliver)(struct mail *, void *))
{
    struct note *note = xcalloc(1, sizeof(*note));

    note->mail.deliver = deliver;
    return note;
}

static void post(struct download *download, struct note *note)
{
    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    loop_post(download->loop, &note->mail);
}

static struct note *open_note(struct mail *mail, struct download *download)
{
    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    return (struct note *)(void *)((char *)mail - offsetof(struct note, mail));
}

/* The blocks that hold the bytes; false if there are none. */
static bool range_of(const struct geometry *geometry, uint64_t offset, uint64_t size,
                     uint64_t *first, uint64_t *count)
{
    if (size == 0 || offset >= geometry->size)
        return false;
    if (size > geometry->size - offset)
        size = geometry->size - offset;
    *first = offset / BLOCK_SIZE;
    *count = (offset + size - 1) / BLOCK_SIZE - *first + 1;
    return true;
}

/* A handle reads there, whether the bytes are here or not. */
static void reads(struct download *download, const struct note *note)
{
    struct handle *handle;

    if (note->handle == 0 || content_complete(note->content))
        return;
    handle = handle_get(file_get(download, note->content), note->handle);
    if (handle != NULL)
        handle_reads(handle, note->offset, note->size);
}

static void on_demand(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    uint64_t first = 0, count = 0;

    if (download->stopping) {
        local_demand_done(download->daemon->local, note->request, -ESHUTDOWN);
    } else if (demand_of(download, note->request) != NULL) {
        log_warning("a reader's request %llu came twice", (unsigned long long)note->request);
    } else if (!range_of(content_geometry(note->content), note->offset, note->size, &first,
                         &count) ||
               bitmap_all(content_present(note->content), first, count)) {
        local_demand_done(download->daemon->local, note->request, 0);
        reads(download, note);
    } else {
        demand_add(file_get(download, note->content), note->request, note->handle, first, count,
                   note->wait);
        reads(download, note);
    }
    content_release(note->content);
    free(note);
    download_settle(download);
}

static void on_limits(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct link *link;
    struct file *file, *next;
    int64_t now = clock_now();

    free(open_note(mail, download));
    HASH_ITER(hh, download->files, file, next) {
        file_limit(file, now);
        file_dirty(file);
    }
    TAILQ_FOREACH(link, &download->links, entry)
        link_fill(link, now);
    download_settle(download);
}

static void on_undemand(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct demand *demand = demand_of(download, note->request);

    if (demand != NULL)
        demand_end(demand, -ECANCELED, false);
    free(note);
    download_settle(download);
}

static void on_reading(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    if (!download->stopping)
        reads(download, note);
    content_release(note->content);
    free(note);
    download_settle(download);
}

static void on_handle_closed(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct handle *handle;

    HASH_FIND(hh, download->handles, &note->handle, sizeof(note->handle), handle);
    if (handle != NULL) {
        struct demand *demand, *next;

        for (demand = TAILQ_FIRST(&handle->file->demands); demand != NULL; demand = next) {
            next = TAILQ_NEXT(demand, of_file);
            if (demand->handle == note->handle)
                demand_end(demand, -ECANCELED, false);
        }
        handle_free(handle);
    }
    free(note);
    download_settle(download);
}

static void on_get(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    if (!download->stopping) {
        if (content_complete(note->content)) {
            local_content_complete(download->daemon->local, content_root(note->content), 0);
        } else {
            struct file *file = file_get(download, note->content);

            file->get = true;
            if (!picker_want_all(file->picker, true)) {
                file->get = false;
                local_content_complete(download->daemon->local, file->root, -ENOMEM);
            }
            file_dirty(file);
        }
    }
    content_release(note->content);
    free(note);
    download_settle(download);
}

static void on_unget(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct file *file = file_of(download, note->id);

    if (file != NULL && file->get) {
        file->get = false;
        if (!file->background)
            picker_want_all(file->picker, false);
        picker_trim(file->picker);
        file_dirty(file);
    }
    free(note);
    download_settle(download);
}

static void on_peers(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    if (!download->stopping)
        peers_arrived(download, note->object, note->flag);
    tracker__peers__free_unpacked(note->object, NULL);
    free(note);
    download_settle(download);
}

static void end_links(struct download *download, Peer__Farewell farewell, const char *why)
{
    struct link *link, *next;

    for (link = TAILQ_FIRST(&download->links); link != NULL; link = next) {
        next = TAILQ_NEXT(link, entry);
        link_end(link, farewell, why);
    }
}

static void on_credentials(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    credentials_release(download->credentials);
    download->credentials = note->object;
    if (download->credentials == NULL && !download->stopping)
        end_links(download, PEER__FAREWELL__FAREWELL_STOPPING, "logged out");
    free(note);
    download_settle(download);
}

static void on_revoked(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct device *device = download->stopping ? NULL : device_of(download, note->id);

    if (device != NULL) {
        struct holding *holding;

        while ((holding = LIST_FIRST(&device->holdings)) != NULL)
            holding_free(holding);
        device->address_count = 0;
        if (device->link != NULL)
            link_end(device->link, PEER__FAREWELL__FAREWELL_REVOKED, "revoked by the tracker");
        else
            device_review(device);
    }
    free(note);
    download_settle(download);
}

static void on_adopt(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    if (download->stopping)
        stream_free(note->object);
    else
        link_adopt(download, note->object, note->bytes, (size_t)note->size);
    free(note->bytes);
    free(note);
    download_settle(download);
}

static void on_ask_status(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);

    local_download_status(download->daemon->local,
                          status_make(download, note->flag ? note->id : NULL, note->object));
    free(note);
}

/* --- any thread ------------------------------------------------------------------------------------------------------------ */
void download_demand(struct download *download, struct content *content, uint64_t request,
                     uint64_t handle, uint64_t offset, uint64_t size, int64_t wait_ns)
{
    struct note *note = note_new(on_demand);

    note->content = content_share(content);
    note->request = request;
    note->handle = handle;
    note->offset = offset;
    note->size = size;
    note->wait = wait_ns > 0 ? wait_ns : 0;
    post(download, note);
}

void download_limits_changed(struct download *download)
{
    post(download, note_new(on_limits));
}

void download_undemand(struct download *download, uint64_t request)
{
    struct note *note = note_new(on_undemand);

    note->request = request;
    post(download, note);
}

void download_reading(struct download *download, struct content *content, uint64_t handle,
                      uint64_t offset, uint64_t size)
{
    struct note *note = note_new(on_reading);

    note->content = content_share(content);
    note->handle = handle;
    note->offset = offset;
    note->size = size;
    post(download, note);
}

void download_handle_closed(struct download *download, uint64_t handle)
{
    struct note *note = note_new(on_handle_closed);

    note->handle = handle;
    post(download, note);
}

void download_get(struct download *download, struct content *content)
{
    struct note *note = note_new(on_get);

    note->content = content_share(content);
    post(download, note);
}

void download_unget(struct download *download, const uint8_t root[HASH_SIZE])
{
    struct note *note = note_new(on_unget);

    memcpy(note->id, root, HASH_SIZE);
    post(download, note);
}

static void on_lost(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct file *file = file_of(download, note->id);

    if (file != NULL && !download->stopping) {
        picker_lost(file->picker);
        file_dirty(file);
    }
    free(note);
    download_settle(download);
}

void download_lost(struct download *download, struct content *content)
{
    struct note *note = note_new(on_lost);

    memcpy(note->id, content_root(content), HASH_SIZE);
    post(download, note);
}

void download_peers(struct download *download, Tracker__Peers *peers, bool answer)
{
    struct note *note = note_new(on_peers);

    note->object = peers;
    note->flag = answer;
    post(download, note);
}

void download_credentials(struct download *download, struct credentials *credentials)
{
    struct note *note = note_new(on_credentials);

    note->object = credentials;
    post(download, note);
}

void download_revoked(struct download *download, const uint8_t device[16])
{
    struct note *note = note_new(on_revoked);

    memcpy(note->id, device, DEVICE_ID_SIZE);
    post(download, note);
}

void download_adopt(struct download *download, struct stream *stream, uint8_t *hello,
                    size_t hello_size)
{
    struct note *note = note_new(on_adopt);

    note->object = stream;
    note->bytes = hello;
    note->size = hello_size;
    post(download, note);
}

void download_ask_status(struct download *download, const uint8_t *root, void *cookie)
{
    struct note *note = note_new(on_ask_status);

    note->flag = root != NULL;
    if (root != NULL)
        memcpy(note->id, root, HASH_SIZE);
    note->object = cookie;
    post(download, note);
}

struct loop *download_loop(struct download *download)
{
    return download->loop;
}

/* --- life ---------------------------------------------------------------------------------------------------------------------- */
struct download *download_new(struct daemon *daemon)
{
    struct download *download = xcalloc(1, sizeof(*download));

    download->magic = DOWNLOAD_MAGIC;
    download->daemon = daemon;
    download->loop = loop_new("download");
    loop_set_owner(download->loop, download);
    TAILQ_INIT(&download->expiry);
    TAILQ_INIT(&download->demanding);
    TAILQ_INIT(&download->links);
    STAILQ_INIT(&download->dirty_files);
    STAILQ_INIT(&download->dirty_links);
    download->due = timer_new(download->loop, on_due, download);
    download->tick = timer_new(download->loop, on_tick, download);
    download->due_at = INT64_MAX;
    download->second = clock_now();
    return download;
}

void download_start(struct download *download)
{
    download->started = true;
    loop_start(download->loop);
}

/* What needs the loop ends while it runs, or can run no more. */
static void dismantle(struct download *download)
{
    struct link *link;

    while ((link = TAILQ_FIRST(&download->links)) != NULL)
        link_free(link);
    timer_free(download->due);
    timer_free(download->tick);
    download->due = download->tick = NULL;
    devices_free(download);
}

static void on_last_words(void *arg)
{
    struct download *download = arg;

    dismantle(download);
    loop_stop(download->loop);
}

static void on_stop(struct mail *mail, void *owner)
{
    struct download *download = owner;
    struct note *note = open_note(mail, download);
    struct demand *demand;

    while ((demand = TAILQ_FIRST(&download->expiry)) != NULL)
        demand_end(demand, -ESHUTDOWN, true);
    download->stopping = true;
    end_links(download, PEER__FAREWELL__FAREWELL_STOPPING, "the daemon stops");
    free(note);
    if (!download->started || TAILQ_EMPTY(&download->links)) {
        dismantle(download);
        if (download->started)
            loop_stop(download->loop);
        return;
    }
    timer_free(download->due);
    download->due = timer_new(download->loop, on_last_words, download);
    timer_set(download->due, LAST_WORDS);
}

void download_stop(struct download *download)
{
    if (!download->started) {
        on_stop(&note_new(on_stop)->mail, download);
        return;
    }
    post(download, note_new(on_stop));
    loop_join(download->loop);
}

void download_free(struct download *download)
{
    struct handle *handle, *next_handle;
    struct file *file, *next;

    if (download == NULL)
        return;
    CHECK(download->stopping);
    loop_free(download->loop); /* delivers what workers and others sent last */
    HASH_ITER(hh, download->handles, handle, next_handle)
        handle_free(handle);
    HASH_ITER(hh, download->files, file, next)
        file_free(file);
    verify_free(download);
    credentials_release(download->credentials);
    download->magic = 0;
    free(download);
}
