/* One link on which this daemon serves: protocol and queue of one fetcher.
 *
 * Owns the channel, the table of files that the fetcher has opened, the queue of what it asked for,
 * and the read jobs under way for it. Leaves reading and checking to the store (on workers), order
 * between links to TCP and to upload.c's rate limit. Protocol: proto/peer.proto, this is the
 * server's end. Thread: "upload".
 *
 *   (greeted by upload_accept.c) SERVING --serve_link_close--> LEAVING (last words going out) -->
 * freed
 *
 * A block's way: Request -> queue -> read job on a worker (content_get_many: read, verify) -> mail
 * -> one Block frame each, the job's memory lent to the channel. Demanded blocks are read at once
 * and overtake bulk in the channel; bulk is read only while little of it is queued in the channel
 * (READ_AHEAD bytes), so that it neither piles up nor runs dry.
 *
 * L1  what is read or queued of a class is less than READ_AHEAD or URGENT_AHEAD, plus one job.
 * L2  whatever keeps the pump from going on ends in a call of it: a job in its `done`, a full bulk
 * queue in `drained`, full urgent frames in frame_sent, an empty bucket in upload.c's refill.
 * L3  a file may be closed while jobs for it are under way: they hold a reference on the content and
 * name the file by number and generation.
 * L4  a file that is neither complete nor being opened is watched (struct watched). */
#include "daemon/upload_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/stream.h"
#include "base/workers.h"
#include "crypto/tls.h"
#include "daemon/daemon.h"
#include "daemon/request_queue.h"
#include "daemon/store.h"
#include "proto/channel.h"
#include "proto/message.h"
#include "proto/peer.pb-c.h"

#define SERVE_LINK_MAGIC 0x73726c6bu
/* Bulk that is being read or waits in the channel: two jobs, so that one is read while the other is
 * sent. */
#define READ_AHEAD (2 * UPLOAD_JOB_BLOCKS * BLOCK_SIZE)
/* The same for demanded blocks: more, as they are not sent in turns with others, but bounded. */
#define URGENT_AHEAD (1u << 20)
/* Jobs under way for one link. Opening waits in a list beyond that, hash requests are refused. */
#define READS_MAX  64
#define HASHES_MAX 32
#define OPENS_MAX  8
/* Answers to hash requests that wait for a fetcher who does not read. */
#define HASHES_AHEAD (2u << 20)
/* Urgent jobs are small, so that the first block of a demand does not wait for the reading of the
 * last. */
#define URGENT_JOB_BLOCKS 4
/* Clocks differ. */
#define CERTIFICATE_GRACE_S 300
/* Have messages about one file: gathered for so long. */
#define HAVE_DELAY_NS (20 * NS_PER_MS)

struct served {
    uint32_t file;       /* the fetcher's number */
    uint32_t generation; /* tells a number's users apart */
    struct serve_link *link;
    struct content *content;                /* NULL while it is being opened */
    uint8_t *told;                          /* pieces that the fetcher was told of; NULL: all */
    bool changed;                           /* in the hands of have_timer */
    bool waiting;                           /* in link->waiting */
    struct served *prev, *next;             /* there */
    struct served *watch_prev, *watch_next; /* in the list of struct watched */
    uint8_t root[HASH_SIZE];                /* what is being opened */
    uint64_t size;
    uint64_t sent, rate_sent, rate;
    UT_hash_handle hh;
};

/* A content of which more may come, and those who have it open. */
struct watched {
    struct content *content; /* theirs */
    struct served *files;
    UT_hash_handle hh;
};

struct serve_link {
    unsigned magic;
    struct serve_link *prev, *next;
    struct upload *upload;
    struct channel *channel;
    struct remote remote;
    struct served *files;
    struct request_queue *queue;
    struct timer *have_timer;
    struct served *waiting; /* files to be opened, in order */
    uint32_t generation;
    uint32_t reads, hashings, openings;    /* jobs under way */
    uint32_t bulk_reading, urgent_reading; /* bytes */
    uint32_t urgent_queued; /* bytes of blocks lent to the channel as urgent frames */
    uint64_t sent, rate_sent, rate;
    int64_t pinged;
    bool leaving;
    bool dead; /* closed, kept for the jobs under way */
};

static void release(struct serve_link *link)
{
    if (!link->dead || link->reads + link->hashings + link->openings > 0)
        return;
    link->magic = 0;
    free(link);
}

static void watch(struct served *f)
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
static void unwatch(struct served *f)
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

static void file_free(struct serve_link *link, struct served *f)
{
    unwatch(f);
    if (f->waiting)
        DL_DELETE(link->waiting, f);
    HASH_DEL(link->files, f);
    request_queue_cancel(link->queue, (struct block_run){.file = f->file});
    content_release(f->content);
    free(f);
}

void serve_link_free(struct serve_link *link)
{
    struct served *f, *next;

    CHECK_OBJECT(link, SERVE_LINK_MAGIC);
    link->dead = true;
    DL_DELETE(link->upload->links, link);
    link->upload->link_count--;
    HASH_ITER(hh, link->files, f, next)
        file_free(link, f);
    request_queue_free(link->queue);
    link->queue = NULL;
    timer_free(link->have_timer);
    link->have_timer = NULL;
    channel_free(link->channel);
    link->channel = NULL;
    upload_link_gone(link->upload);
    release(link);
}

static struct served *file_of(struct serve_link *link, uint32_t file)
{
    struct served *f;

    HASH_FIND(hh, link->files, &file, sizeof file, f);
    return f;
}

/* --- sending
 * -------------------------------------------------------------------------------------------------
 */

static void say(struct serve_link *link, unsigned type, const ProtobufCMessage *message)
{
    channel_send(link->channel, CHANNEL_URGENT, (uint16_t)type, 0, 0, message, NULL, 0);
}

static void reject(struct serve_link *link, struct block_run run, Peer__Reason reason, bool hashes)
{
    Peer__Reject message = PEER__REJECT__INIT;

    message.file = run.file;
    message.block = run.first;
    message.count = run.count;
    message.reason = reason;
    message.hashes = hashes;
    say(link, PEER__PEER_TYPE__PEER_REJECT, &message.base);
}

static void say_goodbye(struct serve_link *link, int farewell, const char *why)
{
    Peer__Goodbye bye = PEER__GOODBYE__INIT;
    char text[LIMIT_REASON];

    snprintf(text, sizeof text, "%s", why);
    bye.code = (Peer__Farewell)farewell;
    bye.text = text;
    say(link, PEER__PEER_TYPE__PEER_GOODBYE, &bye.base);
    link->leaving = true;
}

void serve_link_close(struct serve_link *link, int farewell, const char *why)
{
    if (link->leaving)
        return;
    say_goodbye(link, farewell, why);
    channel_finish(link->channel, why);
}

/* --- blocks
 * ---------------------------------------------------------------------------------------------------
 */

struct read_job {
    struct job job;
    struct mail mail;
    struct serve_link *link;
    struct content *content;
    struct block_run run;
    uint32_t generation;
    bool urgent;
    struct upload_buffer *buffer;
    uint32_t good;
    int error;
};

static void frame_sent(void *payload, void *arg)
{
    (void)payload;
    struct upload_buffer *buffer = arg;
    struct serve_link *link = buffer->link;

    if (--buffer->users > 0)
        return;
    if (link != NULL)
        link->urgent_queued -= buffer->lent;
    upload_buffer_put(buffer);
    /* Only the bulk queue tells when it runs low; demanded blocks that wait go on here. */
    if (link != NULL && !link->dead)
        serve_link_pump(link);
}

/* Queues the good blocks of a job; they hold the buffer from now on. */
static void send_blocks(struct serve_link *link, struct served *f, const struct read_job *job)
{
    const struct geometry *geometry = content_geometry(f->content);
    enum channel_class class = job->urgent ? CHANNEL_URGENT : CHANNEL_BULK;

    job->buffer->users = job->good;
    job->buffer->link = job->urgent ? link : NULL;
    job->buffer->lent = job->good * BLOCK_SIZE;
    if (job->urgent)
        link->urgent_queued += job->buffer->lent;
    for (uint32_t i = 0; i < job->good; i++) {
        Peer__Block message = PEER__BLOCK__INIT;
        message.file = job->run.file;
        message.block = job->run.first + i;
        uint32_t size = geometry_block_size(geometry, message.block);
        f->sent += size;
        link->sent += size;
        link->upload->total += size;
        channel_send_payload(link->channel, class, PEER__PEER_TYPE__PEER_BLOCK, 0, 0, &message.base,
                             job->buffer->bytes + (size_t)i * BLOCK_SIZE, size, frame_sent,
                             job->buffer);
    }
}

static void read_done(struct mail *mail, void *owner)
{
    struct read_job *job =
        (struct read_job *)(void *)((char *)mail - offsetof(struct read_job, mail));
    struct serve_link *link = job->link;

    (void)owner;
    CHECK_OBJECT(link, SERVE_LINK_MAGIC);
    link->reads--;
    *(job->urgent ? &link->urgent_reading : &link->bulk_reading) -= job->run.count * BLOCK_SIZE;
    struct served *f = link->dead ? NULL : file_of(link, job->run.file);
    if (f == NULL || f->generation != job->generation || link->leaving)
        job->good = 0;
    if (job->good > 0)
        send_blocks(link, f, job);
    else
        upload_buffer_put(job->buffer);
    if (f != NULL && f->generation == job->generation && job->good < job->run.count &&
        !link->leaving) {
        /* The block at fault is refused; those behind it are read again. */
        struct block_run bad = {job->run.file, job->run.first + job->good, 1};
        struct block_run rest = {job->run.file, bad.first + 1, job->run.count - job->good - 1};
        reject(link, bad,
               job->error == -EBADMSG ? PEER__REASON__REASON_CORRUPT
                                      : PEER__REASON__REASON_NO_BLOCK,
               false);
        if (!request_queue_push(link->queue, rest, job->urgent ? URGENT_DEMAND : URGENT_BACKGROUND))
            reject(link, rest, PEER__REASON__REASON_BUSY, false);
    }
    content_release(job->content);
    free(job);
    if (link->dead)
        release(link);
    else
        serve_link_pump(link);
}

static void read_run(struct job *raw)
{
    struct read_job *job = (struct read_job *)(void *)raw;

    job->good = content_get_many(job->content, job->run.first, job->run.count, job->buffer->bytes,
                                 &job->error);
    loop_post(job->link->upload->loop, &job->mail);
}

static void read_start(struct serve_link *link, struct served *f, struct block_run run, bool urgent)
{
    struct read_job *job = xcalloc(1, sizeof *job);

    job->job.run = read_run;
    job->mail.deliver = read_done;
    job->link = link;
    job->content = content_share(f->content);
    job->run = run;
    job->generation = f->generation;
    job->urgent = urgent;
    job->buffer = upload_buffer_get(link->upload);
    link->reads++;
    *(urgent ? &link->urgent_reading : &link->bulk_reading) += run.count * BLOCK_SIZE;
    workers_post(link->upload->daemon->workers, &job->job, urgent);
}

/* Whether so much is under way in a class that the next job waits. */
static bool class_is_full(const struct serve_link *link, bool urgent)
{
    if (urgent)
        return link->urgent_reading + link->urgent_queued >= URGENT_AHEAD;
    return link->bulk_reading + channel_queued(link->channel, CHANNEL_BULK) >= READ_AHEAD;
}

bool serve_link_turn(struct serve_link *link, bool demanded)
{
    struct block_run run;
    enum urgency urgency;

    if (link->leaving || request_queue_blocks(link->queue) == 0 || link->reads >= READS_MAX)
        return false;
    bool urgent = request_queue_has(link->queue, URGENT_DEMAND);
    if ((demanded && !urgent) || class_is_full(link, urgent))
        return false;
    uint32_t most = upload_allows(link->upload, urgent ? URGENT_JOB_BLOCKS : UPLOAD_JOB_BLOCKS);
    if (most == 0)
        return false;
    CHECK(request_queue_pop(link->queue, URGENT_BACKGROUND, most, &run, &urgency));
    struct served *f = file_of(link, run.file);
    CHECK(f != NULL && f->content != NULL); /* closing a file cancels its requests */
    upload_spend(link->upload, run.count * BLOCK_SIZE);
    read_start(link, f, run, urgency == URGENT_DEMAND);
    return true;
}

void serve_link_pump(struct serve_link *link)
{
    while (serve_link_turn(link, false))
        ;
}

static const char *on_request(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Request *m = message_unpack(&arena, &peer__request__descriptor, bytes, size);
    const char *fault = NULL;

    if (m == NULL || m->count == 0 || m->count > LIMIT_REQUEST_BLOCKS || m->urgency > 2 ||
        m->urgency < 0) {
        message_done(&arena);
        return "a malformed Request";
    }
    struct served *f = file_of(link, m->file);
    struct block_run run = {m->file, m->block, m->count};
    if (f == NULL || f->content == NULL) {
        reject(link, run, PEER__REASON__REASON_NO_FILE, false);
    } else if (m->block >= content_geometry(f->content)->blocks ||
               m->count > content_geometry(f->content)->blocks - m->block) {
        fault = "a Request behind the end of the file";
    } else {
        /* What is not here is refused at once; runs of what is go into the queue. */
        const uint8_t *present = content_present(f->content);
        uint64_t at = run.first, end = run.first + run.count;
        while (at < end) {
            uint64_t have = bitmap_next_set(present, at, end);
            uint64_t until = bitmap_next_clear(present, have, end);
            if (have > at)
                reject(link, (struct block_run){run.file, at, (uint32_t)(have - at)},
                       PEER__REASON__REASON_NO_BLOCK, false);
            run = (struct block_run){run.file, have, (uint32_t)(until - have)};
            if (run.count > 0 && !request_queue_push(link->queue, run, (enum urgency)m->urgency))
                reject(link, run, PEER__REASON__REASON_BUSY, false);
            at = until;
        }
    }
    message_done(&arena);
    return fault;
}

static const char *on_cancel(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Cancel *m = message_unpack(&arena, &peer__cancel__descriptor, bytes, size);

    if (m != NULL && m->count > 0 && m->block <= UINT64_MAX - m->count)
        request_queue_cancel(link->queue, (struct block_run){m->file, m->block, m->count});
    message_done(&arena);
    return m == NULL ? "a malformed Cancel" : NULL;
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
    if (link->dead)
        release(link);
    else if (!link->leaving && job->error == 0)
        send_hashes(link, job->run, job->layer, job->hashes);
    else if (!link->leaving)
        reject(link, job->run, PEER__REASON__REASON_NO_BLOCK, true);
    content_release(job->content);
    free(job->hashes);
    free(job);
}

static void hashes_run(struct job *raw)
{
    struct hash_job *job = (struct hash_job *)(void *)raw;

    job->error = content_block_hashes(job->content, job->run.first, job->run.count, job->hashes);
    loop_post(job->link->upload->loop, &job->mail);
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

static const char *on_hash_request(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__HashRequest *m =
        message_unpack(&arena, &peer__hash_request__descriptor, bytes, size);
    const char *fault = NULL;

    if (m == NULL) {
        message_done(&arena);
        return "a malformed HashRequest";
    }
    struct served *f = file_of(link, m->file);
    struct block_run run = {m->file, m->first, m->count};
    if (f == NULL || f->content == NULL) {
        reject(link, run, PEER__REASON__REASON_NO_FILE, true);
    } else if (!hash_range_is_good(content_geometry(f->content), m->layer, m->first, m->count)) {
        fault = "a HashRequest outside the file";
    } else if (link->hashings >= HASHES_MAX ||
               channel_queued(link->channel, CHANNEL_URGENT) >= HASHES_AHEAD) {
        reject(link, run, PEER__REASON__REASON_BUSY, true);
    } else if (m->layer == PEER__LAYER__LAYER_PIECES) {
        uint8_t *hashes = xmalloc((size_t)m->count * HASH_SIZE);
        if (content_piece_hashes(f->content, (uint32_t)m->first, m->count, hashes))
            send_hashes(link, run, m->layer, hashes);
        else
            reject(link, run, PEER__REASON__REASON_NO_BLOCK, true);
        free(hashes);
    } else {
        struct hash_job *job = xcalloc(1, sizeof *job);
        job->job.run = hashes_run;
        job->mail.deliver = hashes_done;
        job->link = link;
        job->content = content_share(f->content);
        job->run = run;
        job->layer = m->layer;
        job->hashes = xmalloc((size_t)m->count * HASH_SIZE);
        link->hashings++;
        workers_post(link->upload->daemon->workers, &job->job, true);
    }
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
    if (!message.complete) {
        f->told = xmalloc(bytes + 1);
        content_pieces(content, f->told);
        watch(f);
        wire = xmalloc(bytes + 1);
        bitmap_to_wire(wire, f->told, bytes);
    }
    channel_send(link->channel, CHANNEL_URGENT, PEER__PEER_TYPE__PEER_OPENED, 0, 0, &message.base,
                 wire, wire == NULL ? 0 : bytes);
    free(wire);
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
    struct served *f = link->dead ? NULL : file_of(link, job->file);
    if (f == NULL || f->generation != job->generation || link->leaving) {
        content_release(job->content);
    } else if (job->content == NULL) {
        file_free(link, f);
        reject(link, (struct block_run){.file = job->file},
               job->error == -EINVAL ? PEER__REASON__REASON_SIZE : PEER__REASON__REASON_NO_FILE,
               false);
    } else {
        opened(link, f, job->content);
    }
    if (link->dead)
        release(link);
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
    while (link->waiting != NULL && link->openings < OPENS_MAX && !link->leaving) {
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

static const char *open_file(struct serve_link *link, const Peer__Open *m)
{
    if (m->root.len != HASH_SIZE || m->size == 0 || m->size > FILE_SIZE_MAX)
        return "a malformed Open";
    if (file_of(link, m->file) != NULL)
        return "an Open of a number that is in use";
    if (HASH_COUNT(link->files) >= LIMIT_OPEN_FILES) {
        reject(link, (struct block_run){.file = m->file}, PEER__REASON__REASON_BUSY, false);
        return NULL;
    }
    struct served *f = xcalloc(1, sizeof *f);
    f->file = m->file;
    f->generation = ++link->generation;
    f->link = link;
    HASH_ADD(hh, link->files, file, sizeof f->file, f);
    struct content *content = store_find(link->upload->daemon->store, m->root.data);
    if (content != NULL && content_geometry(content)->size == m->size) {
        opened(link, f, content);
        return NULL;
    }
    content_release(content);
    memcpy(f->root, m->root.data, HASH_SIZE);
    f->size = m->size;
    f->waiting = true;
    DL_APPEND(link->waiting, f);
    open_next(link);
    return NULL;
}

static const char *on_open(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Open *m = message_unpack(&arena, &peer__open__descriptor, bytes, size);
    const char *fault = m == NULL ? "a malformed Open" : open_file(link, m);

    message_done(&arena);
    return fault;
}

static const char *on_close(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Close *m = message_unpack(&arena, &peer__close__descriptor, bytes, size);
    struct served *f = m == NULL ? NULL : file_of(link, m->file);

    if (f != NULL)
        file_free(link, f);
    message_done(&arena);
    return m == NULL ? "a malformed Close" : NULL;
}

/* Tells the fetcher of pieces that have come since. Lost ones it learns of by a Reject; they are
 * told of once more if they come again. */
static void tell_have(struct serve_link *link, struct served *f)
{
    Peer__Have message = PEER__HAVE__INIT;
    uint32_t list[LIMIT_HAVE_PIECES];
    size_t bytes = bitmap_bytes(content_geometry(f->content)->pieces);

    message.file = f->file;
    message.pieces = list;
    if (content_complete(f->content)) {
        message.complete = true;
        unwatch(f);
        say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
        return;
    }
    uint8_t *now = xmalloc(bytes);
    content_pieces(f->content, now);
    for (size_t i = 0; i < bytes; i++) {
        for (unsigned fresh = now[i] & ~(unsigned)f->told[i]; fresh != 0; fresh &= fresh - 1) {
            list[message.n_pieces++] = (uint32_t)i * 8 + (uint32_t)__builtin_ctz(fresh);
            if (message.n_pieces == LIMIT_HAVE_PIECES) {
                say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
                message.n_pieces = 0;
            }
        }
    }
    if (message.n_pieces > 0)
        say(link, PEER__PEER_TYPE__PEER_HAVE, &message.base);
    free(f->told);
    f->told = now;
}

static void have_due(void *arg)
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
        if (f->changed)
            continue;
        f->changed = true;
        if (!timer_pending(f->link->have_timer))
            timer_set(f->link->have_timer, HAVE_DELAY_NS);
    }
}

/* --- the channel
 * ---------------------------------------------------------------------------------------------------------
 */

static const char *on_ping(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Ping *m = message_unpack(&arena, &peer__ping__descriptor, bytes, size);

    if (m != NULL) {
        Peer__Pong pong = PEER__PONG__INIT;
        pong.nonce = m->nonce;
        say(link, PEER__PEER_TYPE__PEER_PONG, &pong.base);
    }
    message_done(&arena);
    return m == NULL ? "a malformed Ping" : NULL;
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    (void)arg;
    (void)message;
    if (!(frame->flags & FRAME_MAY_SKIP))
        *fault = "a payload where none belongs";
    return NULL; /* something newer: read and thrown away */
}

static const char *dispatch(struct serve_link *link, const struct frame *frame,
                            const uint8_t *message)
{
    size_t size = frame->message_size;

    switch (frame->type) {
    case PEER__PEER_TYPE__PEER_OPEN:
        return on_open(link, message, size);
    case PEER__PEER_TYPE__PEER_CLOSE:
        return on_close(link, message, size);
    case PEER__PEER_TYPE__PEER_REQUEST:
        return on_request(link, message, size);
    case PEER__PEER_TYPE__PEER_CANCEL:
        return on_cancel(link, message, size);
    case PEER__PEER_TYPE__PEER_HASH_REQUEST:
        return on_hash_request(link, message, size);
    case PEER__PEER_TYPE__PEER_PING:
        return on_ping(link, message, size);
    case PEER__PEER_TYPE__PEER_PONG:
        return NULL;
    case PEER__PEER_TYPE__PEER_GOODBYE:
        return "the peer said good-bye";
    default:
        return frame->flags & FRAME_MAY_SKIP ? NULL : "a message that a fetcher does not send";
    }
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct serve_link *link = arg;
    const char *fault = dispatch(link, frame, message);

    (void)payload;
    if (fault == NULL)
        return NULL;
    if (frame->type == PEER__PEER_TYPE__PEER_GOODBYE) {
        link->leaving = true;
    } else {
        log_info("%s at %s breaks the protocol: %s", link->remote.account, link->remote.address,
                 fault);
        say_goodbye(link, PEER__FAREWELL__FAREWELL_PROTOCOL, fault);
    }
    return fault;
}

static void on_idle(void *arg)
{
    serve_link_pump(arg);
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct serve_link *link = arg;

    log_debug("link for %s (%s) has ended: %s", link->remote.account, link->remote.address,
              orderly ? "closed by the peer" : why);
    serve_link_free(link);
}

static const struct channel_events events = {
    .frame = on_frame,
    .payload = on_payload,
    .idle = on_idle,
    .drained = on_idle,
    .closed = on_closed,
};

/* --- life
 * ------------------------------------------------------------------------------------------------------------------
 */

void serve_link_new(struct upload *u, struct stream *stream, const struct remote *remote,
                    bool answer)
{
    struct serve_link *link = xcalloc(1, sizeof *link);
    Peer__Hello hello = PEER__HELLO__INIT;
    char agent[] = "p2pd " P2P_VERSION;

    link->magic = SERVE_LINK_MAGIC;
    link->upload = u;
    link->remote = *remote;
    link->queue = request_queue_new();
    link->have_timer = timer_new(u->loop, have_due, link);
    link->channel = channel_new(u->loop, stream, &events, link);
    channel_set_low_mark(link->channel, READ_AHEAD / 2);
    DL_APPEND(u->links, link);
    u->link_count++;
    hello.version = 1;
    hello.oldest = 1;
    hello.role = PEER__ROLE__ROLE_SERVER;
    hello.agent = agent;
    if (answer)
        say(link, PEER__PEER_TYPE__PEER_HELLO, &hello.base);
    log_debug("serving %s at %s", remote->account, remote->address);
}

static uint64_t smooth(uint64_t rate, uint64_t bytes)
{
    return (rate * 3 + bytes) / 4;
}

void serve_link_tick(struct serve_link *link, int64_t now)
{
    struct served *f, *next;

    link->rate = smooth(link->rate, link->sent - link->rate_sent);
    link->rate_sent = link->sent;
    HASH_ITER(hh, link->files, f, next) {
        f->rate = smooth(f->rate, f->sent - f->rate_sent);
        f->rate_sent = f->sent;
    }
    int64_t silent = now - channel_last_heard(link->channel);
    if (clock_wall() / NS_PER_S > link->remote.valid_until + CERTIFICATE_GRACE_S) {
        /* A revocation may have been missed; whoever is still a member comes again with a new one. */
        serve_link_close(link, PEER__FAREWELL__FAREWELL_IDLE, "the certificate has ended");
    } else if (silent > LIMIT_PEER_IDLE_NS) {
        serve_link_close(link, PEER__FAREWELL__FAREWELL_IDLE, "idle");
    } else if (silent > LIMIT_PEER_IDLE_NS / 3 && !link->leaving &&
               now - link->pinged > LIMIT_PEER_IDLE_NS / 3) {
        Peer__Ping ping = PEER__PING__INIT;
        link->pinged = now;
        say(link, PEER__PEER_TYPE__PEER_PING, &ping.base);
    }
}

const struct remote *serve_link_remote(const struct serve_link *link)
{
    return &link->remote;
}

struct serve_link *serve_link_next(const struct serve_link *link)
{
    return link->next;
}

void serve_link_to_end(struct serve_link *link)
{
    DL_DELETE(link->upload->links, link);
    DL_APPEND(link->upload->links, link);
}

void serve_link_status(const struct serve_link *link, struct upload_link_status *status)
{
    memset(status, 0, sizeof *status);
    memcpy(status->account, link->remote.account, sizeof status->account);
    memcpy(status->device, link->remote.device, sizeof status->device);
    memcpy(status->address, link->remote.address, sizeof status->address);
    status->rate = link->rate;
    status->total = link->sent;
    status->rtt_us = (uint64_t)(tls_rtt(channel_stream(link->channel)) / NS_PER_US);
    status->files = HASH_COUNT(link->files);
    status->queued = request_queue_blocks(link->queue);
}

void serve_link_files(const struct serve_link *link,
                      void (*each)(void *arg, const uint8_t *root, uint64_t rate), void *arg)
{
    struct served *f, *next;

    HASH_ITER(hh, link->files, f, next) {
        if (f->content != NULL)
            each(arg, content_root(f->content), f->rate);
    }
}
