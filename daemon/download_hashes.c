/* Piece layers and block hashes of what is being fetched.
 *
 * Owns what is asked for and not here yet; leaves checking and keeping to the store (on workers, or here: here_may), sending to
 * download_link.c. Thread: "download"; the two `…_run` functions run on workers. Format: proto/peer.proto, HashRequest.
 *
 * Both are asked for on the link, and just in front, of the first block that needs them, so that they cost no round trip; what is
 * late or refused is asked of another. Blocks that come first are held.
 *
 *   layer    ABSENT --> ASKED --all of it--> CHECKED --> HERE
 *               ^         |                     |
 *               +-- late, refused, gone --------+-- wrong: the sender is banned
 *   leaves   the same for each piece in `file->leaves`; an entry goes when the store has them. They can be checked only once the
 *            layer is HERE: what comes before waits in `early`.
 *
 * A file of one piece needs no layer (it is the root), a file of one block no leaves. */
#include "daemon/download_private.h"

#include <errno.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "daemon/store.h"

#define RETRY (500 * NS_PER_MS) /* nobody can be asked at the moment */

struct hash_job {
    struct job job;
    struct mail mail;
    struct file *file;
    struct content *content;
    uint32_t piece;
    bool layer;
    uint8_t *hashes;
    int error;
};

static struct leaves *leaves_of(struct file *file, uint32_t piece)
{
    struct leaves *leaves;

    HASH_FIND(hh, file->leaves, &piece, sizeof(piece), leaves);
    return leaves;
}

static void note_late(struct file *file, int64_t late)
{
    if (late < file->leaves_late)
        file->leaves_late = late;
}

/* --- whom to ask ---------------------------------------------------------------------------------------------------- */
static bool may_ask(const struct fetch *fetch)
{
    return !fetch->refused && fetch->link->state == LINK_UP && !fetch->link->choked;
}

/* The best link to ask, other than `not`, that has (any of) the piece; NULL if there is none. One that has refused is asked when
 * those who have not, or less often, are gone: however near it is, asking it alone again would hold up a reader for ever. */
static struct fetch *choose(struct file *file, uint32_t piece, bool any,
                            const struct fetch *not_this, int64_t now)
{
    struct fetch *fetch, *best = NULL;
    int64_t best_time = 0;

    LIST_FOREACH(fetch, &file->fetches, of_file)
    {
        int64_t expect;

        if (fetch == not_this || !may_ask(fetch) || (!any && !fetch_has_piece(fetch, piece)) ||
            (any && !fetch->opened && !fetch_has_piece(fetch, piece)))
            continue;
        expect = pipeline_expect(&fetch->link->pipe, now, true);
        if (best == NULL || fetch->hash_refusals < best->hash_refusals ||
            (fetch->hash_refusals == best->hash_refusals && expect < best_time)) {
            best = fetch;
            best_time = expect;
        }
    }
    return best;
}

/* --- jobs ------------------------------------------------------------------------------------------------------------ */
static void leaves_forget(struct file *file, struct leaves *leaves)
{
    HASH_DEL(file->leaves, leaves);
    free(leaves->early);
    free(leaves);
}

/* They are here: what waited for them goes on. */
static void leaves_here(struct file *file, struct leaves *leaves)
{
    struct buffer *held = leaves->held, *in_order = NULL;

    leaves_forget(file, leaves);
    while (held != NULL) {
        struct buffer *buffer = held;

        held = held->next;
        buffer->next = in_order;
        in_order = buffer;
        file->download->held--;
    }
    while (in_order != NULL) {
        struct buffer *buffer = in_order;

        in_order = in_order->next;
        verify_block(file, buffer);
    }
}

static void post(struct file *file, bool layer, uint32_t piece, uint8_t *hashes);

static void layer_checked(struct file *file, int error)
{
    struct leaves *leaves, *next;

    file->layer = error == 0 ? LAYER_HERE : LAYER_ABSENT;
    HASH_ITER(hh, file->leaves, leaves, next) {
        if (error != 0 || leaves->early == NULL)
            continue;
        post(file, false, leaves->piece, leaves->early);
        leaves->early = NULL;
    }
    if (error == -EBADMSG) {
        file->layer_late = 0; /* others are asked at once */
        device_ban(file->download, file->layer_device, "sent a wrong piece layer");
    } else if (error != 0) {
        store_trouble(file->download, error);
    }
}

static void leaves_checked(struct file *file, uint32_t piece, int error)
{
    struct leaves *leaves = leaves_of(file, piece);

    if (leaves == NULL)
        return;
    leaves->checked = false;
    if (error == 0) {
        leaves_here(file, leaves);
        return;
    }
    if (error == -EBADMSG)
        device_ban(file->download, leaves->device, "sent wrong block hashes");
    else if (error != -ENODATA)
        store_trouble(file->download, error);
    leaves = leaves_of(file, piece);
    if (leaves != NULL) {
        leaves->asked = NULL; /* it has answered: nothing more comes by itself */
        leaves->late = clock_now();
        note_late(file, leaves->late);
    }
}

static void hash_done(struct mail *mail, void *owner)
{
    struct hash_job *job =
        (struct hash_job *)(void *)((char *)mail - offsetof(struct hash_job, mail));
    struct download *download = owner;
    struct file *file = job->file;

    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    file->jobs--;
    if (!download->stopping) {
        if (job->layer)
            layer_checked(file, job->error);
        else
            leaves_checked(file, job->piece, job->error);
        hashes_retry(file, clock_now());
    }
    file_dirty(file);
    content_release(job->content);
    free(job->hashes);
    free(job);
    download_settle(download);
}

/* On a worker. */
static void hash_run(struct job *raw)
{
    struct hash_job *job = (struct hash_job *)(void *)raw;

    job->error = job->layer ? content_set_piece_layer(job->content, job->hashes)
                            : content_set_leaves(job->content, job->piece, job->hashes);
    loop_post(job->file->download->loop, &job->mail);
}

/* Block hashes, without a worker. */
static bool check_here(struct hash_job *job)
{
    struct download *download = job->file->download;
    int64_t began = clock_now();

    if (job->layer || !here_may(download, job->file->jobs) ||
        !content_set_leaves_now(job->content, job->piece, job->hashes, &job->error))
        return false;
    here_done(download, began);
    return true;
}

/* Has them checked; takes `hashes` over. */
static void post(struct file *file, bool layer, uint32_t piece, uint8_t *hashes)
{
    struct hash_job *job = xcalloc(1, sizeof(*job));

    job->job.run = hash_run;
    job->mail.deliver = hash_done;
    job->file = file;
    job->content = content_share(file->content);
    job->layer = layer;
    job->piece = piece;
    job->hashes = hashes;
    bool done = check_here(job);
    file->jobs++;
    if (done)
        loop_post(file->download->loop, &job->mail);
    else
        workers_post(file->download->daemon->workers, &job->job, true);
}

/* --- the piece layer -------------------------------------------------------------------------------------------------- */
static void layer_drop(struct file *file)
{
    free(file->layer_hashes);
    file->layer_hashes = NULL;
    file->layer_have = 0;
    file->layer_fetch = NULL;
    file->layer = LAYER_ABSENT;
}

static void layer_ask(struct file *file, struct fetch *fetch, int64_t now)
{
    uint32_t pieces = file->geometry->pieces;

    if (content_has_piece_layer(file->content)) {
        file->layer = LAYER_HERE;
        return;
    }
    if (pieces == 1) {
        file->layer = LAYER_CHECKED;
        post(file, true, 0, xmemdup(file->root, HASH_SIZE));
        return;
    }
    file->layer_late = now + RETRY;
    file->layer_unasked = fetch == NULL;
    if (fetch == NULL || (file->layer_hashes = malloc((size_t)pieces * HASH_SIZE)) == NULL)
        return;
    file->layer = LAYER_ASKED;
    file->layer_fetch = fetch;
    file->layer_have = 0;
    file->layer_late =
        now + pipeline_patience(&fetch->link->pipe, now, true) + (int64_t)pieces * 1000;
    for (uint32_t first = 0; first < pieces; first += LIMIT_HASHES)
        link_ask_hashes(fetch, PEER__LAYER__LAYER_PIECES, first,
                        pieces - first < LIMIT_HASHES ? pieces - first : LIMIT_HASHES);
}

static void layer_retry(struct file *file, int64_t now)
{
    struct fetch *other;

    if (file->layer == LAYER_CHECKED || file->layer == LAYER_HERE ||
        (now < file->layer_late && !file->layer_unasked))
        return;
    other = choose(file, 0, true, file->layer_fetch, now);
    if (file->layer == LAYER_ASKED && other == NULL) {
        file->layer_late = now + RETRY; /* it may still come */
        return;
    }
    if (other == NULL)
        other = choose(file, 0, true, NULL, now);
    layer_drop(file);
    layer_ask(file, other, now);
}

static const char *layer_arrived(struct fetch *fetch, const Peer__Hashes *message,
                                 const uint8_t *hashes)
{
    struct file *file = fetch->file;

    if (file->layer != LAYER_ASKED || file->layer_fetch != fetch)
        return NULL; /* another was faster */
    if (message->first != file->layer_have ||
        message->count > file->geometry->pieces - file->layer_have)
        return "hashes that were not asked for";
    memcpy(file->layer_hashes + (size_t)file->layer_have * HASH_SIZE, hashes,
           (size_t)message->count * HASH_SIZE);
    file->layer_have += message->count;
    file->layer_late = clock_now() + RETRY;
    if (file->layer_have == file->geometry->pieces) {
        uint8_t *all = file->layer_hashes;

        file->layer_hashes = NULL;
        file->layer_fetch = NULL;
        file->layer = LAYER_CHECKED;
        memcpy(file->layer_device, fetch->link->device->id, DEVICE_ID_SIZE);
        post(file, true, 0, all);
    }
    return NULL;
}

/* --- block hashes ------------------------------------------------------------------------------------------------------- */
static void leaves_ask(struct file *file, struct leaves *leaves, struct fetch *fetch, int64_t now)
{
    uint64_t first;
    uint32_t count;

    if (content_has_leaves(file->content, leaves->piece)) {
        leaves_here(file, leaves);
        return;
    }
    geometry_piece(file->geometry, leaves->piece, &first, &count);
    leaves->count = count;
    leaves->asked = NULL;
    if (file->geometry->blocks == 1) {
        if (file->layer == LAYER_HERE) {
            leaves->checked = true;
            post(file, false, 0, xmemdup(file->root, HASH_SIZE));
        }
        return;
    }
    leaves->late = now + RETRY;
    if (fetch != NULL) {
        leaves->asked = fetch;
        leaves->late = now + pipeline_patience(&fetch->link->pipe, now, true);
        link_ask_hashes(fetch, PEER__LAYER__LAYER_BLOCKS, first, count);
    }
    note_late(file, leaves->late);
}

static void leaves_again(struct file *file, struct leaves *leaves, int64_t now)
{
    struct fetch *other = choose(file, leaves->piece, false, leaves->asked, now);

    if (other == NULL && leaves->asked != NULL && may_ask(leaves->asked)) {
        leaves->late = now + RETRY; /* it may still come */
        note_late(file, leaves->late);
        return;
    }
    leaves_ask(file, leaves, other, now);
}

void hashes_need(struct file *file, uint32_t piece, struct fetch *fetch)
{
    struct leaves *leaves;
    int64_t now;

    if (leaves_of(file, piece) != NULL || content_has_leaves(file->content, piece))
        return;
    now = clock_now();
    if (file->layer == LAYER_ABSENT)
        layer_ask(file, fetch, now);
    leaves = xcalloc(1, sizeof(*leaves));
    leaves->piece = piece;
    HASH_ADD(hh, file->leaves, piece, sizeof(leaves->piece), leaves);
    leaves_ask(file, leaves, fetch, now);
}

void hashes_retry(struct file *file, int64_t now)
{
    struct leaves *leaves, *next;

    if (file->leaves == NULL) {
        file->leaves_late = INT64_MAX;
        return;
    }
    if (download_is_troubled(file->download, now))
        return; /* hashes_next comes back to it */
    layer_retry(file, now);
    file->leaves_late = INT64_MAX;
    HASH_ITER(hh, file->leaves, leaves, next) {
        if (leaves->checked)
            continue;
        if (file->geometry->blocks == 1)
            leaves_ask(file, leaves, NULL, now);
        else if (now >= leaves->late || leaves->asked == NULL)
            leaves_again(file, leaves, now);
        else
            note_late(file, leaves->late);
    }
}

int64_t hashes_next(const struct file *file)
{
    const struct download *download = file->download;
    int64_t next = file->leaves_late;

    if (file->leaves == NULL)
        return INT64_MAX;
    if ((file->layer == LAYER_ABSENT || file->layer == LAYER_ASKED) && file->layer_late < next)
        next = file->layer_late;
    if (download->trouble[0] != '\0' && next < download->trouble_until)
        next = download->trouble_until;
    return next;
}

bool hashes_hold(struct file *file, struct buffer *buffer)
{
    uint32_t piece = (uint32_t)(buffer->block / file->geometry->piece_blocks);
    struct leaves *leaves;

    if (content_has_leaves(file->content, piece))
        return false;
    leaves = leaves_of(file, piece);
    if (leaves == NULL) { /* the store forgot them, or never kept them */
        hashes_need(file, piece, choose(file, piece, false, NULL, clock_now()));
        leaves = leaves_of(file, piece);
        if (leaves == NULL)
            return false;
    }
    buffer->next = leaves->held;
    leaves->held = buffer;
    file->download->held++;
    return true;
}

static const char *leaves_arrived(struct fetch *fetch, const Peer__Hashes *message,
                                  const uint8_t *hashes)
{
    struct file *file = fetch->file;
    uint32_t piece = (uint32_t)(message->first / file->geometry->piece_blocks);
    struct leaves *leaves = leaves_of(file, piece);

    if (leaves == NULL || leaves->checked)
        return NULL; /* another was faster */
    if (message->first % file->geometry->piece_blocks != 0 || message->count != leaves->count)
        return "hashes that were not asked for";
    leaves->checked = true;
    memcpy(leaves->device, fetch->link->device->id, DEVICE_ID_SIZE);
    if (file->layer == LAYER_HERE)
        post(file, false, piece, xmemdup(hashes, (size_t)message->count * HASH_SIZE));
    else
        leaves->early = xmemdup(hashes, (size_t)message->count * HASH_SIZE);
    return NULL;
}

const char *hashes_arrived(struct fetch *fetch, const Peer__Hashes *message, const uint8_t *hashes,
                           size_t size)
{
    if (fetch->hash_asks == 0 || message->count == 0 || size != (size_t)message->count * HASH_SIZE)
        return "hashes that were not asked for";
    fetch->hash_asks--;
    fetch->hash_refusals = 0;
    file_dirty(fetch->file);
    if (message->layer == PEER__LAYER__LAYER_PIECES)
        return layer_arrived(fetch, message, hashes);
    if (message->layer == PEER__LAYER__LAYER_BLOCKS)
        return leaves_arrived(fetch, message, hashes);
    return "hashes of an unknown layer";
}

void hashes_rejected(struct fetch *fetch, uint64_t first)
{
    struct file *file = fetch->file;
    struct leaves *leaves, *next;
    int64_t now = clock_now();

    if (fetch->hash_asks > 0)
        fetch->hash_asks--;
    fetch->hash_refusals++;
    if (file->layer == LAYER_ASKED && file->layer_fetch == fetch &&
        first < file->geometry->pieces) {
        /* Which layer it meant is not told; the piece layer is asked for once, so asking again is cheap. */
        layer_drop(file);
        file->layer_late = now + RETRY / 10;
        file->layer_fetch = NULL;
    }
    HASH_ITER(hh, file->leaves, leaves, next) {
        struct fetch *other;

        if (leaves->asked != fetch || first / file->geometry->piece_blocks != leaves->piece ||
            leaves->checked)
            continue;
        other = choose(file, leaves->piece, false, fetch, now);
        leaves->asked = NULL;
        if (other != NULL) {
            leaves_ask(file, leaves, other, now);
        } else {
            leaves->late = now + RETRY / 10;
            note_late(file, leaves->late);
        }
    }
    file_dirty(file);
}

void hashes_fetch_gone(struct fetch *fetch)
{
    struct file *file = fetch->file;
    struct leaves *leaves, *next;

    if (file->layer == LAYER_ASKED && file->layer_fetch == fetch) {
        layer_drop(file);
        file->layer_late = 0;
    }
    HASH_ITER(hh, file->leaves, leaves, next) {
        if (leaves->asked != fetch)
            continue;
        leaves->asked = NULL;
        leaves->late = 0;
        file->leaves_late = 0;
    }
}

void hashes_free(struct file *file)
{
    struct leaves *leaves, *next;

    layer_drop(file);
    HASH_ITER(hh, file->leaves, leaves, next) {
        while (leaves->held != NULL) {
            struct buffer *buffer = leaves->held;

            leaves->held = buffer->next;
            file->download->held--;
            picker_failed(file->picker, buffer->block);
            buffer_free(file->download, buffer);
        }
        leaves_forget(file, leaves);
    }
}
