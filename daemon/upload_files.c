/* Files that one fetcher has open: opening and closing, hashes, news of pieces that have come.
 *
 * Owns struct served and the jobs that open contents and read hashes. Protocol: proto/peer.proto, Open, Opened, Close, Have,
 * HashRequest, Hashes. Thread: "upload"; the *_run functions run on workers. */
#include "daemon/upload_link_private.h"

#include <errno.h>
#include <string.h>
#include <utlist.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/workers.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "daemon/request_queue.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/message.h"
#include "proto/peer.pb-c.h"

#define HAVE_AT_ONCE     1024 /* pieces, or parts, in one message */
#define PIECE_PARTS_MOST 16   /* those of the smallest piece, 256 KiB; larger ones are not cut */

static void serve_watch(struct served *f)
{
    struct upload *u = f->link->upload;
    struct watched *watched;

    HASH_FIND_PTR(u->watched, &f->content, watched);
    if (watched == NULL) {
        watched = xcalloc(1, sizeof *watched);
        watched->content = f->content;
        HASH_ADD_PTR(u->watched, content, watched);
    }
    DL_APPEND2(watched->files, f, watch_prev, watch_next);
}

/* The fetcher knows all there is to know. */
static void serve_unwatch(struct served *f)
{
    struct upload *u = f->link->upload;
    struct watched *watched;

    if (f->told == NULL)
        return;
    free(f->told);
    f->told = NULL;
    HASH_FIND_PTR(u->watched, &f->content, watched);
    CHECK(watched != NULL);
    DL_DELETE2(watched->files, f, watch_prev, watch_next);
    if (watched->files == NULL) {
        HASH_DEL(u->watched, watched);
        free(watched);
    }
}

/* Near the beginning, and near the end, what we have is what others wait for; between, each piece by itself would only be told
 * dearly: to twenty fetchers that costs a fiftieth of what a slow line carries. */
static int64_t have_delay(const struct served *f)
{
    uint64_t present = content_present_blocks(f->content);
    uint64_t all = content_geometry(f->content)->blocks;

    return present < HAVE_FIRST_BLOCKS || all - present < all / 8 ? HAVE_DELAY_NS
                                                                  : HAVE_DELAY_MIDDLE_NS;
}

/* It has come to hold more than the fetcher knows of. */
static void news(struct served *f)
{
    if (f->changed)
        return;
    f->changed = true;
    if (!timer_pending(f->link->have_timer))
        timer_set(f->link->have_timer, have_delay(f));
}

void serve_file_free(struct serve_link *link, struct served *f)
{
    serve_unwatch(f);
    early_drop(f);
    if (f->waiting)
        DL_DELETE(link->waiting, f);
    HASH_DEL(link->files, f);
    choker_close(link->choke, f->file);
    content_release(f->content);
    free(f);
}

/* --- hashes
 * ---------------------------------------------------------------------------------------------------------
 */

struct hash_job {
    struct job job;
    struct mail mail;
    struct serve_link *link;
    struct content *content;
    struct block_run run;
    Peer__Layer layer;
    uint8_t *hashes;
    int error;
};

static void send_hashes(struct serve_link *link, struct block_run run, Peer__Layer layer,
                        const uint8_t *hashes)
{
    Peer__Hashes message = PEER__HASHES__INIT;

    message.file = run.file;
    message.layer = layer;
    message.first = run.first;
    message.count = run.count;
    channel_send(link->channel, CHANNEL_URGENT, PEER__PEER_TYPE__PEER_HASHES, 0, 0, &message.base,
                 hashes, (size_t)run.count * HASH_SIZE);
}

static void hashes_done(struct mail *mail, void *owner)
{
    struct hash_job *job =
        (struct hash_job *)(void *)((char *)mail - offsetof(struct hash_job, mail));
    struct serve_link *link = job->link;

    (void)owner;
    CHECK_OBJECT(link, SERVE_LINK_MAGIC);
    link->hashings--;
    if (!link->dead && !link->leaving) {
        if (job->error == 0)
            send_hashes(link, job->run, job->layer, job->hashes);
        else
            serve_reject(link, job->run, PEER__REASON__REASON_NO_BLOCK, true);
    }
    content_release(job->content);
    free(job->hashes);
    free(job);
    if (link->dead)
        serve_release(link);
    else
        upload_pump(link->upload);
}

static void hashes_run(struct job *raw)
{
    struct hash_job *job = (struct hash_job *)(void *)raw;

    struct content *content = content_share(job->content);
    uint64_t first = job->run.first;
    int error = content_block_hashes(content, first, job->run.count, job->hashes);

    job->error = error;
    loop_post(job->link->upload->loop, &job->mail); /* first of all: somebody waits */
    if (error == 0)
        content_block_hashes_ahead(content, first);
    content_release(content);
}

/* Block hashes from the disk, into `hashes`, which become the job's. */
static void hashes_load(struct serve_link *link, struct served *f, struct block_run run,
                        uint8_t *hashes)
{
    struct hash_job *job = xcalloc(1, sizeof *job);

    job->job.run = hashes_run;
    job->mail.deliver = hashes_done;
    job->link = link;
    job->content = content_share(f->content);
    job->run = run;
    job->layer = PEER__LAYER__LAYER_BLOCKS;
    job->hashes = hashes;
    link->hashings++;
    workers_post(link->upload->daemon->workers, &job->job, true);
}

/* Whether [first, first + count) lies within the layer, and for block hashes within one piece. */
static bool hash_range_is_good(const struct geometry *geometry, Peer__Layer layer, uint64_t first,
                               uint32_t count)
{
    uint64_t end = layer == PEER__LAYER__LAYER_PIECES ? geometry->pieces : geometry->blocks;

    if (count == 0 || count > LIMIT_HASHES || first >= end || count > end - first)
        return false;
    return layer == PEER__LAYER__LAYER_PIECES ||
           (layer == PEER__LAYER__LAYER_BLOCKS &&
            first / geometry->piece_blocks == (first + count - 1) / geometry->piece_blocks);
}

const char *serve_hashes(struct served *f, struct block_run run, Peer__Layer layer)
{
    struct serve_link *link = f->link;

    if (!hash_range_is_good(content_geometry(f->content), layer, run.first, run.count))
        return "a HashRequest outside the file";
    if (link->hashings >= LIMIT_LINK_HASHES ||
        channel_queued(link->channel, CHANNEL_URGENT) >= LIMIT_HASHES_AHEAD) {
        serve_reject(link, run, PEER__REASON__REASON_BUSY, true);
    } else {
        uint8_t *hashes = xmalloc((size_t)run.count * HASH_SIZE);
        bool pieces = layer == PEER__LAYER__LAYER_PIECES;
        if (pieces ? content_piece_hashes(f->content, (uint32_t)run.first, run.count, hashes)
                   : content_block_hashes_now(f->content, run.first, run.count, hashes))
            send_hashes(link, run, layer, hashes);
        else if (pieces)
            serve_reject(link, run, PEER__REASON__REASON_NO_BLOCK, true);
        else {
            hashes_load(link, f, run, hashes);
            hashes = NULL;
        }
        free(hashes);
    }
    return NULL;
}

const char *serve_on_hash_request(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__HashRequest *m =
        message_unpack(&arena, &peer__hash_request__descriptor, bytes, size);
    const char *fault = NULL;

    if (m == NULL) {
        message_done(&arena);
        return "a malformed HashRequest";
    }
    struct served *f = serve_file_of(link, m->file);
    struct block_run run = {m->file, m->first, m->count};
    if (f == NULL)
        serve_reject(link, run, PEER__REASON__REASON_NO_FILE, true);
    else if (f->content == NULL)
        early_hash_request(f, run, m->layer);
    else
        fault = serve_hashes(f, run, m->layer);
    message_done(&arena);
    return fault;
}

/* --- files
 * ------------------------------------------------------------------------------------------------------------
 */

struct open_job {
    struct job job;
    struct mail mail;
    struct serve_link *link;
    uint32_t file, generation;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    struct content *content;
    int error;
};

static void opened(struct serve_link *link, struct served *f, struct content *content)
{
    Peer__Opened message = PEER__OPENED__INIT;
    uint32_t pieces = content_geometry(content)->pieces;
    size_t bytes = bitmap_bytes(pieces);
    uint8_t *wire = NULL;

    f->content = content;
    message.file = f->file;
    message.complete = content_complete(content);
    f->parts = parts_of(content_geometry(content));
    if (!message.complete) {
        wire = xmalloc(bytes + 1);
        content_pieces(content, wire);
        f->told = parts_of_pieces(content_geometry(content), &f->parts, wire);
        if (f->told == NULL)
            f->told = xcalloc(1, bitmap_bytes(f->parts.pieces) + 1);
        serve_watch(f);
        bitmap_to_wire(wire, wire, bytes);
    }
    channel_send(link->channel, CHANNEL_URGENT, PEER__PEER_TYPE__PEER_OPENED, 0, 0, &message.base,
                 wire, wire == NULL ? 0 : bytes);
    choker_open(link->choke, f->file, content, &f->parts, message.complete);
    if (!message.complete)
        news(f); /* of pieces that are not whole */
    choker_limit_file(link->upload->choker, content,
                      limits_of(link->upload->daemon->limits, content_root(content)).up,
                      clock_now());
    free(wire);
}

void serve_link_limits(struct serve_link *link, int64_t now)
{
    struct served *f, *next;

    HASH_ITER(hh, link->files, f, next) {
        if (f->content != NULL)
            choker_limit_file(link->upload->choker, f->content,
                              limits_of(link->upload->daemon->limits, content_root(f->content)).up,
                              now);
    }
}

static void open_next(struct serve_link *);

static void open_done(struct mail *mail, void *owner)
{
    struct open_job *job =
        (struct open_job *)(void *)((char *)mail - offsetof(struct open_job, mail));
    struct serve_link *link = job->link;

    (void)owner;
    CHECK_OBJECT(link, SERVE_LINK_MAGIC);
    link->openings--;
    struct served *f = link->dead ? NULL : serve_file_of(link, job->file);
    if (f == NULL || f->generation != job->generation || link->leaving) {
        content_release(job->content);
    } else if (job->content == NULL) {
        serve_file_free(link, f);
        serve_reject(link, (struct block_run){.file = job->file},
                     job->error == -EINVAL   ? PEER__REASON__REASON_SIZE
                     : job->error == -ENOENT ? PEER__REASON__REASON_NO_FILE
                                             : PEER__REASON__REASON_LATER,
                     false);
    } else {
        opened(link, f, job->content);
        const char *fault = early_replay(f);
        if (fault != NULL)
            serve_link_close(link, PEER__FAREWELL__FAREWELL_PROTOCOL, fault);
        else
            upload_pump(link->upload);
    }
    if (link->dead)
        serve_release(link);
    else
        open_next(link);
    free(job);
}

static void open_run(struct job *raw)
{
    struct open_job *job = (struct open_job *)(void *)raw;

    job->content =
        store_get(job->link->upload->daemon->store, job->root, job->size, false, &job->error);
    loop_post(job->link->upload->loop, &job->mail);
}

/* A few at a time, whatever the fetcher opens and closes: jobs outlive their file. */
static void open_next(struct serve_link *link)
{
    while (link->waiting != NULL && link->openings < LIMIT_LINK_OPENS && !link->leaving) {
        struct served *f = link->waiting;
        struct open_job *job = xcalloc(1, sizeof *job);

        DL_DELETE(link->waiting, f);
        f->waiting = false;
        job->job.run = open_run;
        job->mail.deliver = open_done;
        job->link = link;
        job->file = f->file;
        job->generation = f->generation;
        memcpy(job->root, f->root, HASH_SIZE);
        job->size = f->size;
        link->openings++;
        workers_post(link->upload->daemon->workers, &job->job, true);
    }
}

/* A link has its part of what its account may have open; beyond that it is looked what the account's others have. */
static bool has_too_many_files(const struct serve_link *link)
{
    size_t own = HASH_COUNT(link->files), all = 0;

    if (own < LIMIT_OPEN_FILES_ACCOUNT / LIMIT_PEER_LINKS_ACCOUNT)
        return false;
    for (const struct serve_link *l = link->upload->links; l != NULL; l = l->next)
        all += strcmp(l->remote.account, link->remote.account) == 0 ? HASH_COUNT(l->files) : 0;
    return own >= LIMIT_OPEN_FILES || all >= LIMIT_OPEN_FILES_ACCOUNT;
}

static const char *open_file(struct serve_link *link, const Peer__Open *m)
{
    if (m->root.len != HASH_SIZE || m->size == 0 || m->size > FILE_SIZE_MAX)
        return "a malformed Open";
    if (serve_file_of(link, m->file) != NULL)
        return "an Open of a number that is in use";
    if (has_too_many_files(link)) {
        serve_reject(link, (struct block_run){.file = m->file}, PEER__REASON__REASON_BUSY, false);
        return NULL;
    }
    struct served *f = xcalloc(1, sizeof *f);
    Peer__Reason reason = serve_may_open(link, m, f);
    if (reason != PEER__REASON__REASON_UNKNOWN) {
        free(f);
        serve_reject(link, (struct block_run){.file = m->file}, reason, false);
        return NULL;
    }
    f->file = m->file;
    memcpy(f->root, m->root.data, HASH_SIZE);
    f->generation = ++link->generation;
    f->link = link;
    HASH_ADD(hh, link->files, file, sizeof f->file, f);
    struct content *content = store_find(link->upload->daemon->store, m->root.data);
    if (content != NULL && content_geometry(content)->size == m->size) {
        opened(link, f, content);
        return NULL;
    }
    content_release(content);
    f->size = m->size;
    f->waiting = true;
    DL_APPEND(link->waiting, f);
    open_next(link);
    return NULL;
}

const char *serve_on_open(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Open *m = message_unpack(&arena, &peer__open__descriptor, bytes, size);
    const char *fault = m == NULL ? "a malformed Open" : open_file(link, m);

    message_done(&arena);
    return fault;
}

const char *serve_on_close(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Close *m = message_unpack(&arena, &peer__close__descriptor, bytes, size);
    struct served *f = m == NULL ? NULL : serve_file_of(link, m->file);

    if (f != NULL)
        serve_file_free(link, f);
    message_done(&arena);
    return m == NULL ? "a malformed Close" : NULL;
}

/* The parts that are here; NULL: no memory. */
static uint8_t *what_is_here(const struct served *f)
{
    const struct geometry *geometry = content_geometry(f->content);

    if (parts_ratio(geometry, &f->parts) > 1)
        return parts_map(&f->parts, content_present(f->content));
    uint8_t *map = malloc(bitmap_bytes(geometry->pieces) + 1);
    if (map != NULL)
        content_pieces(f->content, map);
    return map;
}

/* What of a piece is new, as bits: its parts. */
static uint32_t fresh_parts(const struct served *f, const uint8_t *now, uint32_t piece,
                            uint32_t ratio)
{
    uint32_t fresh = 0;

    for (uint32_t i = 0; i < ratio && piece * ratio + i < f->parts.pieces; i++) {
        if (bitmap_test(now, piece * ratio + i) && !bitmap_test(f->told, piece * ratio + i))
            fresh |= 1u << i;
    }
    return fresh;
}

/* All parts of a piece, as bits. */
static uint32_t all_parts(const struct served *f, uint32_t piece, uint32_t ratio)
{
    uint32_t left = f->parts.pieces - piece * ratio;

    return (1u << (left < ratio ? left : ratio)) - 1;
}

/* Tells the fetcher of pieces, and of parts of others, that have come since. Lost ones it learns of by a Reject; they are
 * told of once more if they come again. */
static void tell_have(struct serve_link *link, struct served *f)
{
    Peer__Have message = PEER__HAVE__INIT;
    uint32_t pieces[HAVE_AT_ONCE], parts[HAVE_AT_ONCE + PIECE_PARTS_MOST];
    uint32_t ratio = parts_ratio(content_geometry(f->content), &f->parts);

    message.file = f->file;
    message.pieces = pieces;
    message.parts = parts;
    if (content_complete(f->content)) {
        message.complete = true;
        serve_unwatch(f);
        serve_say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
        return;
    }
    uint8_t *now = what_is_here(f);
    if (now == NULL)
        return; /* it is told with the next ones */
    for (uint32_t i = 0; i < content_geometry(f->content)->pieces; i++) {
        uint32_t fresh = fresh_parts(f, now, i, ratio);

        if (fresh == all_parts(f, i, ratio))
            pieces[message.n_pieces++] = i;
        else
            for (; fresh != 0; fresh &= fresh - 1)
                parts[message.n_parts++] = i * ratio + (uint32_t)__builtin_ctz(fresh);
        if (message.n_pieces == HAVE_AT_ONCE || message.n_parts >= HAVE_AT_ONCE) {
            serve_say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
            message.n_pieces = message.n_parts = 0;
        }
    }
    if (message.n_pieces + message.n_parts > 0)
        serve_say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
    free(f->told);
    f->told = now;
}

void serve_have_due(void *arg)
{
    struct serve_link *link = arg;
    struct served *f, *next;

    if (link->leaving)
        return;
    HASH_ITER(hh, link->files, f, next) {
        if (f->changed && f->told != NULL)
            tell_have(link, f);
        f->changed = false;
    }
}

void serve_holding_changed(struct upload *u, struct content *content)
{
    struct watched *watched;
    struct served *f;

    HASH_FIND_PTR(u->watched, &content, watched);
    if (watched == NULL)
        return;
    DL_FOREACH2(watched->files, f, watch_next)
    {
        news(f);
    }
}
