/* Blocks on their way from a link into the store.
 *
 * Owns the buffers (bounded: above LIMIT_BLOCKS_HELD links are not read until some are free again) and the jobs that verify and
 * write. Leaves verification itself to the store, and what a verdict means for the picker to picker.h. Thread: "download";
 * `put_run` alone runs on workers.
 *
 *   link -> verify_block -> (held until the piece's block hashes are here) -> file->arrived -> verify_post: jobs of consecutive
 *   blocks -> worker: content_check -> file->puts -> one worker at a time: content_write -> mail -> verdicts: present, or wrong (the sender is banned, the block asked for
 *   elsewhere), or no room (all fetching pauses, and tries again).
 *
 * A few blocks of a file for which nothing else is under way are checked and written here, at once (content_put_now), and
 * their mail goes to ourselves: a reader does not wait for two threads to wake each other, nor does a slow link's every block.
 * A job with a block that a reader waits for is posted urgent; jobs are small, so that it does not wait for many others. While
 * the workers have enough to do, a short run waits for its next blocks: long runs are hashed and written with less work. */
#include "daemon/download_private.h"

#include <errno.h>

#include "base/bitmap.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/store.h"

#define HERE_SLOW (2 * NS_PER_MS)   /* so long it takes if the disk makes writers wait */
#define HERE_NOT  (500 * NS_PER_MS) /* and the next ones are likely to wait, too */

struct put_job {
    struct job job;
    struct mail mail;
    struct put_job *next;
    struct file *file;
    struct content *content;
    uint64_t first;
    uint32_t count;
    struct buffer *buffers[PUT_BLOCKS];
    const uint8_t *blocks[PUT_BLOCKS];
    int verdicts[PUT_BLOCKS];
};

/* --- buffers ------------------------------------------------------------------------------------------------------ */
static void pause_links(struct download *download, bool paused)
{
    struct link *link;

    if (download->paused == paused)
        return;
    download->paused = paused;
    TAILQ_FOREACH(link, &download->links, entry)
        link_pause(link, paused);
}

struct buffer *buffer_new(struct download *download)
{
    struct buffer *buffer = download->spare;

    if (buffer != NULL) {
        download->spare = buffer->next;
        download->spare_count--;
    } else {
        buffer = aligned_alloc(64, (sizeof(*buffer) + 63) & ~(size_t)63);
        CHECK(buffer != NULL); /* their number is bounded by us */
    }
    buffer->next = NULL;
    if (++download->buffers >= LIMIT_BLOCKS_HELD)
        pause_links(download, true);
    return buffer;
}

void buffer_free(struct download *download, struct buffer *buffer)
{
    if (buffer == NULL)
        return;
    buffer->next = download->spare;
    download->spare = buffer;
    download->spare_count++;
    download->buffers--;
    if (download->buffers < BUFFERS_AGAIN)
        pause_links(download, false);
}

void buffers_trim(struct download *download, uint32_t keep)
{
    while (download->spare_count > keep) {
        struct buffer *buffer = download->spare;

        download->spare = buffer->next;
        download->spare_count--;
        free(buffer);
    }
}

void verify_free(struct download *download)
{
    buffers_trim(download, 0);
    while (download->spare_jobs != NULL) {
        struct put_job *job = download->spare_jobs;

        download->spare_jobs = job->next;
        free(job);
    }
}

/* --- verdicts ------------------------------------------------------------------------------------------------------ */
void store_trouble(struct download *download, int error)
{
    struct file *file, *next;
    char text[sizeof(download->trouble)];

    download->disk_full = error == -ENOSPC || error == -EDQUOT;
    if (download->disk_full)
        snprintf(text, sizeof(text), "no space left for the store; fetching waits");
    else
        snprintf(text, sizeof(text), "cannot write to the store (%s); fetching waits",
                 strerror(-error));
    if (strcmp(text, download->trouble) != 0)
        log_warning("%s", text);
    memcpy(download->trouble, text, sizeof(text));
    download->trouble_until = clock_now() + TROUBLE_RETRY;
    HASH_ITER(hh, download->files, file, next) {
        struct fetch *fetch;

        LIST_FOREACH(fetch, &file->fetches, of_file)
        picker_source_withdraw(fetch->source);
    }
}

static void wrong_block(struct put_job *job, const struct buffer *buffer)
{
    struct download *download = job->file->download;
    char root[2 * HASH_SIZE + 1], why[64];

    hex_encode(root, job->file->root, HASH_SIZE);
    snprintf(why, sizeof(why), "sent a wrong block (%.8s, block %llu)", root,
             (unsigned long long)buffer->block);
    download->wasted += buffer->size;
    device_ban(download, buffer->device, why);
}

static void judge(struct put_job *job, uint32_t i)
{
    struct file *file = job->file;
    struct download *download = file->download;
    const struct buffer *buffer = job->buffers[i];
    int verdict = job->verdicts[i];

    if (verdict == 0 || verdict == -EALREADY) {
        file->bytes += buffer->size;
        download->total += buffer->size;
        picker_present(file->picker, buffer->block, 1);
        return;
    }
    picker_failed(file->picker, buffer->block);
    if (verdict == -EBADMSG)
        wrong_block(job, buffer);
    else if (verdict != -ENODATA && !download->stopping)
        store_trouble(download, verdict);
}

static void put_done(struct mail *mail, void *owner)
{
    struct put_job *job = (struct put_job *)(void *)((char *)mail - offsetof(struct put_job, mail));
    struct download *download = owner;
    struct file *file = job->file;
    bool good = false;

    CHECK_OBJECT(download, DOWNLOAD_MAGIC);
    file->jobs--;
    file->put_jobs--;
    if (file->arrived != NULL)
        file_dirty(file);
    for (uint32_t i = 0; i < job->count; i++) {
        good |= job->verdicts[i] == 0;
        judge(job, i);
    }
    for (uint32_t i = 0; i < job->count; i++)
        buffer_free(download, job->buffers[i]);
    /* Not while it is to be left alone: a few blocks that still found room say nothing of the next. */
    if (good && download->trouble[0] != '\0' && !download_is_troubled(download, clock_now())) {
        log_info("the store takes blocks again");
        download->trouble[0] = '\0';
    }
    file_progress(file, job->first, job->count);
    content_release(job->content);
    job->next = download->spare_jobs;
    download->spare_jobs = job;
    download_settle(download);
}

/* --- on workers --------------------------------------------------------------------------------------------------- */
void put_queue_init(struct put_queue *queue)
{
    CHECK(pthread_mutex_init(&queue->lock, NULL) == 0);
    queue->end = &queue->first;
}

void put_queue_end(struct put_queue *queue)
{
    CHECK(queue->first == NULL && !queue->writing);
    CHECK(pthread_mutex_destroy(&queue->lock) == 0);
}

/* Whether the caller is to write now; if so, everything that waits. */
static struct put_job *put_queue_take(struct put_queue *queue)
{
    struct put_job *all = queue->first;

    queue->first = NULL;
    queue->end = &queue->first;
    queue->writing = all != NULL;
    return all;
}

static struct put_job *put_queue_add(struct put_queue *queue, struct put_job *job)
{
    struct put_job *mine = NULL;

    CHECK(pthread_mutex_lock(&queue->lock) == 0);
    job->next = NULL;
    *queue->end = job;
    queue->end = &job->next;
    if (!queue->writing)
        mine = put_queue_take(queue);
    CHECK(pthread_mutex_unlock(&queue->lock) == 0);
    return mine;
}

static struct put_job *put_queue_more(struct put_queue *queue)
{
    CHECK(pthread_mutex_lock(&queue->lock) == 0);
    struct put_job *more = put_queue_take(queue);
    CHECK(pthread_mutex_unlock(&queue->lock) == 0);
    return more;
}

/* The last job of all is told of only when the queue is let go: with it the file may go. */
static void put_run(struct job *raw)
{
    struct put_job *job = (struct put_job *)(void *)raw, *last = NULL;
    struct put_queue *queue = &job->file->puts;
    struct loop *loop = job->file->download->loop;

    content_check(job->content, job->first, job->count, job->blocks, job->verdicts);
    job = put_queue_add(queue, job);
    while (job != NULL) {
        struct put_job *next = job->next;

        content_write(job->content, job->first, job->count, job->blocks, job->verdicts);
        if (last != NULL)
            loop_post(loop, &last->mail);
        last = job;
        job = next != NULL ? next : put_queue_more(queue);
    }
    if (last != NULL)
        loop_post(loop, &last->mail);
}

bool here_may(const struct download *download, uint32_t under_way)
{
    return under_way == 0 && clock_now() >= download->slow_until;
}

void here_done(struct download *download, int64_t began)
{
    int64_t now = clock_now();

    if (now - began > HERE_SLOW)
        download->slow_until = now + HERE_NOT;
}

static bool put_here(struct put_job *job)
{
    struct download *download = job->file->download;
    int64_t began = clock_now();

    if (!here_may(download, job->file->put_jobs) ||
        !content_put_now(job->content, job->first, job->count, job->blocks, job->verdicts))
        return false;
    here_done(download, began);
    return true;
}

static struct put_job *job_new(struct file *file)
{
    struct download *download = file->download;
    struct put_job *job = download->spare_jobs;

    if (job != NULL)
        download->spare_jobs = job->next;
    else
        job = xmalloc(sizeof(*job));
    job->job.run = put_run;
    job->mail.deliver = put_done;
    job->file = file;
    job->content = content_share(file->content);
    job->count = 0;
    return job;
}

void verify_block(struct file *file, struct buffer *buffer)
{
    buffer->next = NULL;
    if (hashes_hold(file, buffer))
        return;
    *file->arrived_end = buffer;
    file->arrived_end = &buffer->next;
    file_dirty(file);
}

void verify_post(struct file *file)
{
    struct download *download = file->download;
    struct buffer *buffer = file->arrived;

    while (buffer != NULL) {
        struct put_job *job = job_new(file);
        uint64_t piece = buffer->block / file->geometry->piece_blocks;
        struct buffer *rest = buffer;
        uint32_t count = 0;
        bool urgent = false;

        job->first = buffer->block;
        while (rest != NULL && count < PUT_BLOCKS && rest->block == job->first + count &&
               rest->block / file->geometry->piece_blocks == piece) {
            urgent |= rest->urgent;
            job->buffers[count] = rest;
            job->blocks[count++] = rest->bytes;
            rest = rest->next;
        }
        if (rest == NULL && count < PUT_BLOCKS && file->put_jobs >= PUT_JOBS_BUSY) {
            /* put_done comes back to these. */
            job->next = download->spare_jobs;
            download->spare_jobs = job;
            content_release(job->content);
            break;
        }
        for (uint32_t i = 0; i < count; i++)
            job->buffers[i]->next = NULL;
        job->count = count;
        buffer = rest;
        bool done = put_here(job);
        file->jobs++;
        file->put_jobs++;
        if (done)
            loop_post(download->loop, &job->mail);
        else
            workers_post(download->daemon->workers, &job->job, urgent);
    }
    file->arrived = buffer;
    if (buffer == NULL)
        file->arrived_end = &file->arrived;
}
