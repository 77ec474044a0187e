/* One content that is being fetched: what it needs, from whom, and when it is done.
 *
 * Owns struct file and its life; leaves which blocks to ask for to the picker, links to download_link.c. Thread: "download".
 *
 * A file is known as long as someone uses it: a reader waits, a handle is open, it is asked for by name (get), it is really being
 * read (background), or a worker has blocks of it. Events mark it dirty; file_review, at the end of the event, looks at it
 * as a whole: complete? wanted? by whom can it be fetched? A file that nobody uses is closed on its links and freed there.
 *
 *   wanted and incomplete   the session looks for peers; known holders with a link have it opened at once, others are dialled;
 *                           links that are warm anyway are tried before the tracker has answered
 *   complete, or unwanted   closed everywhere, the links stay warm (LIMIT_PEER_IDLE_NS) */
#include "daemon/download_private.h"

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "daemon/limits.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/store.h"

#define SOURCES_READER 8           /* links opened for a reader … */
#define SOURCES_ALL    LIMIT_PEERS /* … and for a whole file */
#define WARM_TRIED     8           /* warm links that are tried blindly */
/* Where a crowd begins at once, all handshakes at once end late, and nothing else goes on meanwhile. So only a few are begun at
 * a time; when some links are there, one after the other. Who has nothing to give yet is dialled when a link to somebody who
 * has something is there, or has not come about quickly: in a crowd that begins, the seed's first pieces would else wait for the
 * handshakes of all with all. */
#define DIALS_FRESH 4
#define LINKS_FIRST 6
#define DIAL_EVERY  (200 * NS_PER_MS)

static void action_ask(void *arg, void *owner, uint64_t block, enum picker_class class)
{
    struct file *file = arg;

    bucket_spend(&file->download->bucket, BLOCK_SIZE);
    bucket_spend(&file->bucket, BLOCK_SIZE);
    fetch_ask(owner, block, class);
}

static void action_raise(void *arg, void *owner, uint64_t block)
{
    (void)arg;
    fetch_raise(owner, block);
}

static void action_cancel(void *arg, void *owner, uint64_t block)
{
    struct file *file = arg;

    bucket_refund(&file->download->bucket, BLOCK_SIZE);
    bucket_refund(&file->bucket, BLOCK_SIZE);
    fetch_cancel(owner, block);
}

static void action_withdraw(void *arg, void *owner, uint64_t block)
{
    (void)arg;
    fetch_withdraw(owner, block);
}

static const struct picker_actions actions = {action_ask, action_raise, action_cancel,
                                              action_withdraw};

struct file *file_of(struct download *download, const uint8_t root[HASH_SIZE])
{
    struct file *file;

    HASH_FIND(hh, download->files, root, HASH_SIZE, file);
    return file;
}

struct file *file_get(struct download *download, struct content *content)
{
    struct file *file = file_of(download, content_root(content));
    uint64_t seed;

    if (file != NULL)
        return file;
    file = xcalloc(1, sizeof(*file));
    file->download = download;
    file->content = content_share(content);
    file->geometry = content_geometry(content);
    file->parts = parts_of(file->geometry);
    memcpy(file->root, content_root(content), HASH_SIZE);
    random_bytes(&seed, sizeof(seed));
    file->picker = picker_new(&file->parts, content_present(content), seed, &actions, file);
    TAILQ_INIT(&file->demands);
    LIST_INIT(&file->handles);
    LIST_INIT(&file->fetches);
    LIST_INIT(&file->holdings);
    file->arrived_end = &file->arrived;
    put_queue_init(&file->puts);
    file->leaves_late = INT64_MAX;
    file->layer = content_has_piece_layer(content) ? LAYER_HERE : LAYER_ABSENT;
    HASH_ADD(hh, download->files, root, HASH_SIZE, file);
    file_limit(file, clock_now());
    file_dirty(file);
    return file;
}

void file_limit(struct file *file, int64_t now)
{
    struct download *download = file->download;
    uint64_t rate = limits_of(download->daemon->limits, file->root).down;

    download->limited += rate != 0;
    download->limited -= file->bucket.rate != 0;
    bucket_set(&file->bucket, rate, now);
}

void file_free(struct file *file)
{
    struct download *download = file->download;
    struct fetch *fetch;
    struct holding *holding;

    CHECK(file->jobs == 0 && TAILQ_EMPTY(&file->demands) && LIST_EMPTY(&file->handles));
    while ((fetch = LIST_FIRST(&file->fetches)) != NULL)
        fetch_close(fetch);
    while ((holding = LIST_FIRST(&file->holdings)) != NULL) {
        struct device *device = holding->device;

        holding_free(holding);
        device_review(device);
    }
    if (file->wanting && !download->stopping)
        session_unwant(download->daemon->session, file->root);
    hashes_free(file);
    while (file->arrived != NULL) {
        struct buffer *buffer = file->arrived;

        file->arrived = buffer->next;
        buffer_free(download, buffer);
    }
    if (file->demanding)
        TAILQ_REMOVE(&download->demanding, file, of_demanding);
    if (file->dirty)
        STAILQ_REMOVE(&download->dirty_files, file, file, of_dirty);
    download->limited -= file->bucket.rate != 0;
    picker_free(file->picker);
    content_release(file->content);
    HASH_DEL(download->files, file);
    put_queue_end(&file->puts);
    free(file);
}

void file_dirty(struct file *file)
{
    if (file->dirty)
        return;
    file->dirty = true;
    STAILQ_INSERT_TAIL(&file->download->dirty_files, file, of_dirty);
}

bool file_is_wanted(const struct file *file)
{
    return file->get || file->background || !TAILQ_EMPTY(&file->demands) ||
           !LIST_EMPTY(&file->handles);
}

void file_demands_changed(struct file *file)
{
    bool demanding = !TAILQ_EMPTY(&file->demands);

    if (demanding == file->demanding)
        return;
    file->demanding = demanding;
    if (demanding)
        TAILQ_INSERT_TAIL(&file->download->demanding, file, of_demanding);
    else
        TAILQ_REMOVE(&file->download->demanding, file, of_demanding);
}

void file_set_background(struct file *file)
{
    if (file->background || content_complete(file->content))
        return;
    file->background = true;
    picker_want_all(file->picker, true);
    file_dirty(file);
}

/* --- who serves it -------------------------------------------------------------------------------------------------- */
static bool wants_all(const struct file *file)
{
    return file->get || file->background;
}

static void open_on(struct file *file, struct link *link, const struct holding *holding)
{
    struct fetch *fetch = link_open(link, file);

    if (fetch != NULL && holding != NULL && holding->complete)
        picker_source_guess(fetch->source);
}

/* Links to devices of which nothing is known here: one of them may well have it, and the tracker's answer takes a round trip. While
 * a reader waits it is asked for its blocks in the same flight; if it has not got the file, nothing is lost but that. */
static void try_warm(struct file *file)
{
    struct link *link;
    unsigned tried = 0;

    TAILQ_FOREACH(link, &file->download->links, entry) {
        if (link->state != LINK_UP || tried >= WARM_TRIED ||
            (file->download->ticketed && !link->device->has_whole))
            continue;
        tried++;
        if (device_fetch(link->device, file) == NULL)
            open_on(file, link, NULL);
        if (file->demanding && device_fetch(link->device, file) != NULL)
            picker_source_guess(device_fetch(link->device, file)->source);
    }
}

/* In which order they are dialled: who has all, who has some, who has nothing yet. */
static unsigned rank_of(const struct holding *holding)
{
    return holding->complete ? 0 : holding->pieces > 0 ? 1 : 2;
}

void file_connect(struct file *file)
{
    unsigned most = wants_all(file) ? SOURCES_ALL : SOURCES_READER, busy = 0, up = 0;
    unsigned fresh[3] = {0}; /* being dialled for a moment: of which rank */
    bool enough;
    int64_t now = clock_now();
    struct holding *holding;

    LIST_FOREACH(holding, &file->holdings, of_file)
    {
        struct device *device = holding->device;

        if (device->link != NULL && device_fetch(device, file) == NULL)
            open_on(file, device->link, holding);
        if (device->link != NULL || device->dialling > 0)
            busy++;
        if (device->link != NULL)
            up++;
        else
            fresh[rank_of(holding)] += device->dialling > 0 && now < device->fresh_until;
    }
    enough = up >= LINKS_FIRST;
    if (enough && now < file->dial_after)
        return;
    for (unsigned rank = 0; rank < 3; rank++) {
        if (rank == 2 && up == 0 && fresh[0] + fresh[1] > 0)
            return;
        LIST_FOREACH(holding, &file->holdings, of_file)
        {
            struct device *device = holding->device;

            if (busy >= most || fresh[rank] >= (enough ? 1 : DIALS_FRESH))
                break;
            if (rank_of(holding) != rank || device->link != NULL || device->dialling > 0)
                continue;
            device_dial(device, file->demanding, now);
            if (device->dialling > 0) {
                busy++;
                fresh[rank]++;
                file->dial_after = now + DIAL_EVERY;
            }
        }
    }
}

/* --- asking ---------------------------------------------------------------------------------------------------------- */
void file_run(struct file *file, int64_t now)
{
    if (file->demanding && download_may_ask(file->download, now) && file_allowance(file, now) > 0)
        picker_run(file->picker, now);
}

void file_fill(struct file *file, int64_t now)
{
    struct fetch *fetch, *next;

    for (fetch = LIST_FIRST(&file->fetches); fetch != NULL; fetch = next) {
        next = LIST_NEXT(fetch, of_file);
        link_fill(fetch->link, now);
    }
}

/* --- what has come ------------------------------------------------------------------------------------------------------ */
void file_progress(struct file *file, uint64_t first, uint32_t count)
{
    const uint8_t *present = content_present(file->content);
    struct demand *demand, *next;

    for (demand = TAILQ_FIRST(&file->demands); demand != NULL; demand = next) {
        next = TAILQ_NEXT(demand, of_file);
        if (demand->first < first + count && first < demand->first + demand->count &&
            bitmap_all(present, demand->first, demand->count))
            demand_end(demand, 0, true);
    }
    file_dirty(file);
}

static void completed(struct file *file)
{
    struct fetch *fetch;
    struct demand *demand;

    picker_want_all(file->picker, false);
    while ((demand = TAILQ_FIRST(&file->demands)) != NULL)
        demand_end(demand, 0, true);
    if (file->get)
        local_content_complete(file->download->daemon->local, file->root, 0);
    file->get = file->background = false;
    while ((fetch = LIST_FIRST(&file->fetches)) != NULL)
        fetch_close(fetch);
}

static void want(struct file *file, bool wanting)
{
    if (wanting == file->wanting)
        return;
    file->wanting = wanting;
    if (wanting)
        session_want(file->download->daemon->session, file->root, file->geometry->size);
    else
        session_unwant(file->download->daemon->session, file->root);
}

void file_review(struct file *file)
{
    struct download *download = file->download;
    bool complete = content_complete(file->content), wanted = file_is_wanted(file);
    int64_t now = clock_now();

    verify_post(file);
    if (complete && (file->wanting || file->get || file->background || file->demanding))
        completed(file);
    if (complete || !wanted) {
        struct fetch *fetch;

        want(file, false);
        while ((fetch = LIST_FIRST(&file->fetches)) != NULL)
            fetch_close(fetch);
        if (!file_is_wanted(file) && file->jobs == 0)
            file_free(file);
        return;
    }
    if (!file->wanting)
        try_warm(file);
    file_connect(file);
    if (file->hashes_due) {
        file->hashes_due = false;
        hashes_retry(file, now);
    }
    file_run(file, now);
    if (download_may_ask(download, now))
        file_fill(file, now);
    /* Last: a reader does not wait for a question to the tracker that a link already answers. */
    want(file, true);
}
