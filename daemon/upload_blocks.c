/* Blocks, for one fetcher.
 *
 * Owns the read jobs under way. Leaves reading and checking to the store (on workers). Protocol: proto/peer.proto, Request, Cancel,
 * Block, Reject. Thread: "upload"; read_run alone runs on workers.
 *
 * A block's way: Request -> choker -> read at once if it is known to be right and in the page cache (content_get_now), else a
 * read job on a worker (content_get_many: read, verify) -> mail; then one Block frame each, the memory lent to the channel. Demanded blocks are read at once and overtake bulk in the channel; bulk is read only while
 * little of it is queued in the channel (READ_AHEAD bytes), so that it neither piles up nor runs dry. */
#include "daemon/upload_link_private.h"

#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
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

#define ASK_EVERY  (1 * NS_PER_MS)
#define DELAY_SPAN (500 * NS_PER_MS)
#define DELAY_BYTES                                                                                \
    BLOCK_SIZE /* acknowledged anew: the round trip is that of now, not of some time ago */
#define READER_NEAR (5 * NS_PER_S) /* so long after a read the next one is expected */

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
    struct upload *upload = buffer->upload;

    if (!buffer->urgent && link->choke != NULL)
        choker_sent(link->choke, BLOCK_SIZE, clock_now());
    bool last = --buffer->users == 0;
    if (last && buffer->urgent)
        link->urgent_queued -= buffer->lent;
    if (last)
        upload_buffer_put(buffer);
    /* Who is alone has more queued behind this; among several a frame may be what another waited for. */
    if (last || upload->link_count > 1)
        upload_pump(upload);
}

/* Queues the blocks of a run; they hold the buffer from now on. */
static void send_blocks(struct serve_link *link, struct served *f, struct block_run run,
                        bool urgent, struct upload_buffer *buffer)
{
    const struct geometry *geometry = content_geometry(f->content);
    enum channel_class class = urgent ? CHANNEL_URGENT : CHANNEL_BULK;

    buffer->users = run.count;
    buffer->link = link;
    buffer->urgent = urgent;
    buffer->lent = run.count * BLOCK_SIZE;
    if (urgent)
        link->urgent_queued += buffer->lent;
    for (uint32_t i = 0; i < run.count; i++) {
        Peer__Block message = PEER__BLOCK__INIT;
        message.file = run.file;
        message.block = run.first + i;
        uint32_t size = geometry_block_size(geometry, message.block);
        f->sent += size;
        link->sent += size;
        link->upload->total += size;
        channel_send_payload(link->channel, class, PEER__PEER_TYPE__PEER_BLOCK, 0, 0, &message.base,
                             buffer->bytes + (size_t)i * BLOCK_SIZE, size, frame_sent, buffer);
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
    link->upload->reading -= job->run.count * BLOCK_SIZE;
    *(job->urgent ? &link->urgent_reading : &link->bulk_reading) -= job->run.count * BLOCK_SIZE;
    struct served *f = link->dead ? NULL : serve_file_of(link, job->run.file);
    if (f == NULL || f->generation != job->generation || link->leaving)
        job->good = 0;
    struct block_run good = {job->run.file, job->run.first, job->good};
    if (good.count > 0)
        send_blocks(link, f, good, job->urgent, job->buffer);
    else
        upload_buffer_put(job->buffer);
    if (f != NULL && f->generation == job->generation && job->good < job->run.count &&
        !link->leaving) {
        /* The block at fault is refused; those behind it are read again. */
        struct block_run bad = {job->run.file, job->run.first + job->good, 1};
        struct block_run rest = {job->run.file, bad.first + 1, job->run.count - job->good - 1};
        serve_reject(link, bad,
                     job->error == -EBADMSG   ? PEER__REASON__REASON_CORRUPT
                     : job->error == -ENODATA ? PEER__REASON__REASON_NO_BLOCK
                                              : PEER__REASON__REASON_LATER,
                     false);
        if (rest.count > 0 &&
            !choker_request(link->choke, rest, job->urgent ? URGENT_DEMAND : URGENT_BACKGROUND,
                            clock_now()))
            serve_reject(link, rest, PEER__REASON__REASON_BUSY, false);
    }
    content_release(job->content);
    free(job);
    struct upload *upload = link->upload;
    if (link->dead)
        serve_release(link);
    upload_pump(upload);
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
    struct upload_buffer *buffer = upload_buffer_get(link->upload, run.count);

    /* What needs neither the disk nor a hash is quicker read than handed to a worker. */
    if (content_get_now(f->content, run.first, run.count, buffer->bytes)) {
        send_blocks(link, f, run, urgent, buffer);
        return;
    }
    struct read_job *job = xcalloc(1, sizeof *job);

    job->job.run = read_run;
    job->mail.deliver = read_done;
    job->link = link;
    job->content = content_share(f->content);
    job->run = run;
    job->generation = f->generation;
    job->urgent = urgent;
    job->buffer = buffer;
    link->reads++;
    link->upload->reading += run.count * BLOCK_SIZE;
    *(urgent ? &link->urgent_reading : &link->bulk_reading) += run.count * BLOCK_SIZE;
    workers_post(link->upload->daemon->workers, &job->job, urgent);
}

/* On this side of the socket. */
static uint32_t pending_of(const struct serve_link *link)
{
    return link->bulk_reading + (uint32_t)channel_queued(link->channel, CHANNEL_BULK);
}

/* How long the queue in front of our own line is: every link's round trip shows it, so it is no longer than the least late one
 * shows. Those that are later still acknowledge through queues of their own, and that is no reason to give others nothing. */
static void note_delay(struct upload *u, int64_t late)
{
    if (u->pumped_at - u->delay_since > DELAY_SPAN) {
        u->own_delay = u->pumped_at - u->delay_since < 2 * DELAY_SPAN ? u->delay_now : late;
        u->delay_now = late;
        u->delay_since = u->pumped_at;
    }
    if (late < u->delay_now)
        u->delay_now = late;
    if (late < u->own_delay)
        u->own_delay = late;
    u->delay_heard = true;
}

/* What the socket holds has not left: it counts, or every socket would be given a part of a piece at once, and all of them would
 * fill the queue of the one uplink. The kernel is asked once in a while. */
uint32_t serve_link_pending(void *arg)
{
    struct serve_link *link = arg;
    struct upload *u = link->upload;

    uint64_t out = channel_bytes_out(link->channel);
    struct tls_backlog backlog;
    size_t waits;

    if (u->pumped_at - link->asked_at >= ASK_EVERY) {
        link->asked_at = u->pumped_at;
        link->asked_out = out;
        tls_crowd(channel_stream(link->channel),
                  u->pumped_at < u->crowd_until && u->pumped_at >= link->reader_until);
        tls_backlog(channel_stream(link->channel), u->own_delay, &backlog);
        link->in_socket = backlog.waiting;
        if (backlog.acked - link->acked >= DELAY_BYTES) {
            link->acked = backlog.acked;
            note_delay(u, backlog.late);
        }
    }
    waits = link->in_socket + (size_t)(out - link->asked_out);
    u->socket_waits |= waits > 0;
    waits += pending_of(link);
    return waits < UINT32_MAX ? (uint32_t)waits : UINT32_MAX;
}

/* Bytes of bulk in front of the socket: a link that has just begun is given little more than it has taken, as its pace is not
 * known, and what it was given is not taken back when others come. */
static size_t bulk_ahead(const struct serve_link *link)
{
    uint64_t most = READ_AHEAD_FIRST + channel_bytes_out(link->channel) / 4;

    return most < READ_AHEAD ? (size_t)most : READ_AHEAD;
}

uint32_t serve_link_room(void *arg, bool urgent)
{
    const struct serve_link *link = arg;

    /* Hashes that were asked for go first: blocks without them are of no use to the fetcher, who holds only so many. */
    if (link->leaving || link->reads >= LIMIT_LINK_READS || link->hashings > 0)
        return 0;
    size_t ahead = urgent ? link->urgent_reading + link->urgent_queued : pending_of(link);
    size_t most = urgent ? LIMIT_URGENT_AHEAD : bulk_ahead(link);
    size_t share =
        channel_share(link->upload->queued.lent + link->upload->reading, LIMIT_BLOCKS_POOL,
                      link->upload->link_count, LIMIT_BLOCKS_SHARE, most);
    if (ahead >= share)
        return 0;
    uint32_t job = urgent && ahead == 0 ? URGENT_JOB_BLOCKS : UPLOAD_JOB_BLOCKS;
    uint32_t room = (uint32_t)((share - ahead + BLOCK_SIZE - 1) / BLOCK_SIZE);
    return share < READ_AHEAD && room < job ? room : job;
}

void serve_link_suggest(void *arg, uint32_t file, const uint32_t *pieces, uint32_t count)
{
    struct serve_link *link = arg;
    Peer__Suggest message = PEER__SUGGEST__INIT;
    uint32_t list[CHOKER_OFFERS];

    if (link->leaving)
        return;
    memcpy(list, pieces, count * sizeof list[0]);
    message.file = file;
    message.parts = list;
    message.n_parts = count;
    channel_send(link->channel, CHANNEL_URGENT, PEER__PEER_TYPE__PEER_SUGGEST, FRAME_MAY_SKIP, 0,
                 &message.base, NULL, 0);
}

void serve_link_start(struct serve_link *link, struct block_run run, bool urgent)
{
    struct served *f = serve_file_of(link, run.file);

    CHECK(f != NULL && f->content != NULL); /* closing a file cancels its requests */
    read_start(link, f, run, urgent);
}

const char *serve_blocks(struct served *f, struct block_run wanted, enum urgency urgency)
{
    struct serve_link *link = f->link;
    int64_t now = clock_now();
    const uint8_t *present = content_present(f->content);
    uint64_t at = wanted.first, end = wanted.first + wanted.count;
    unsigned gaps = 0;

    if (wanted.first >= content_geometry(f->content)->blocks ||
        wanted.count > content_geometry(f->content)->blocks - wanted.first)
        return "a Request behind the end of the file";
    if (urgency != URGENT_BACKGROUND) {
        link->reader_until = now + READER_NEAR;
        tls_reader_near(channel_stream(link->channel), link->reader_until);
    }
    /* What is not here is refused at once; runs of what is go into the queue. */
    while (at < end) {
        uint64_t have = bitmap_next_set(present, at, end);
        uint64_t until = bitmap_next_clear(present, have, end);
        struct block_run run = {wanted.file, have, (uint32_t)(until - have)};
        if (have > at && ++gaps > LIMIT_GAPS_TOLD) {
            serve_reject(link, (struct block_run){wanted.file, at, (uint32_t)(end - at)},
                         PEER__REASON__REASON_BUSY, false);
            break;
        }
        if (have > at)
            serve_reject(link, (struct block_run){wanted.file, at, (uint32_t)(have - at)},
                         PEER__REASON__REASON_NO_BLOCK, false);
        if (run.count > 0 && !choker_request(link->choke, run, urgency, now))
            serve_reject(link, run, PEER__REASON__REASON_BUSY, false);
        at = until;
    }
    return NULL;
}

const char *serve_on_request(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Request *m = message_unpack(&arena, &peer__request__descriptor, bytes, size);
    const char *fault = NULL;

    if (m == NULL || m->count == 0 || m->count > LIMIT_REQUEST_BLOCKS || m->urgency > 2 ||
        m->urgency < 0 || m->block > UINT64_MAX - m->count) {
        message_done(&arena);
        return "a malformed Request";
    }
    struct served *f = serve_file_of(link, m->file);
    struct block_run run = {m->file, m->block, m->count};
    if (m->passes_on > 0)
        choker_link_passes_on(link->choke, m->passes_on);
    if (f == NULL)
        serve_reject(link, run, PEER__REASON__REASON_NO_FILE, false);
    else if (f->content == NULL)
        early_request(f, run, (enum urgency)m->urgency);
    else
        fault = serve_blocks(f, run, (enum urgency)m->urgency);
    message_done(&arena);
    return fault;
}

/* One answer per run of blocks, each of which had been asked for: as many as the fetcher made necessary. What waits for its
 * file to be opened will be answered. */
static void withdraw(struct serve_link *link, struct block_run run)
{
    struct block_run taken;

    while (choker_withdraw(link->choke, run, &taken))
        serve_reject(link, taken, PEER__REASON__REASON_WITHDRAWN, false);
}

const char *serve_on_cancel(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Cancel *m = message_unpack(&arena, &peer__cancel__descriptor, bytes, size);

    if (m != NULL && m->count > 0 && m->block <= UINT64_MAX - m->count) {
        struct block_run run = {m->file, m->block, m->count};
        struct served *f = serve_file_of(link, m->file);
        if (m->tell) {
            withdraw(link, run);
        } else {
            choker_cancel(link->choke, run);
            if (f != NULL)
                early_cancel(f, run);
        }
    }
    message_done(&arena);
    return m == NULL ? "a malformed Cancel" : NULL;
}
