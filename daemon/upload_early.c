/* What a fetcher asks for in the same flight as its Open: kept until the content is open, so that the first byte of a file costs
 * one round trip and not two.
 *
 * Owns a file's early requests; leaves answering to upload_blocks.c and upload_files.c. Thread: "upload". Memory: on one link
 * LIMIT_QUEUED_BLOCKS blocks and LIMIT_LINK_HASHES hash requests in all; what is more is refused as before an Open, and asked for again
 * by the fetcher once it has its Opened. */
#include "daemon/upload_link_private.h"

#include "base/check.h"
#include "base/mem.h"
#include "daemon/request_queue.h"

struct early_hashes {
    struct block_run run;
    Peer__Layer layer;
};

struct early {
    struct request_queue *blocks;
    struct early_hashes hashes[LIMIT_LINK_HASHES];
    uint32_t hash_count;
};

static struct early *early_get(struct served *f)
{
    CHECK(f->content == NULL);
    if (f->early == NULL) {
        f->early = xcalloc(1, sizeof *f->early);
        f->early->blocks = request_queue_new();
    }
    return f->early;
}

void early_request(struct served *f, struct block_run run, enum urgency urgency)
{
    struct serve_link *link = f->link;
    struct request_queue *blocks;
    uint32_t before;

    if (link->early_blocks + run.count > LIMIT_QUEUED_BLOCKS) {
        serve_reject(link, run, PEER__REASON__REASON_NO_FILE, false);
        return;
    }
    blocks = early_get(f)->blocks;
    before = request_queue_blocks(blocks);
    CHECK(request_queue_push(blocks, run, urgency));
    link->early_blocks += request_queue_blocks(blocks) - before;
}

void early_hash_request(struct served *f, struct block_run run, Peer__Layer layer)
{
    struct serve_link *link = f->link;
    struct early *early;

    if (link->early_hashes >= LIMIT_LINK_HASHES) {
        serve_reject(link, run, PEER__REASON__REASON_NO_FILE, true);
        return;
    }
    early = early_get(f);
    early->hashes[early->hash_count++] = (struct early_hashes){run, layer};
    link->early_hashes++;
}

void early_cancel(struct served *f, struct block_run run)
{
    uint32_t before;

    if (f->early == NULL)
        return;
    before = request_queue_blocks(f->early->blocks);
    request_queue_cancel(f->early->blocks, run);
    f->link->early_blocks -= before - request_queue_blocks(f->early->blocks);
}

static void early_free(struct serve_link *link, struct early *early)
{
    link->early_blocks -= request_queue_blocks(early->blocks);
    link->early_hashes -= early->hash_count;
    request_queue_free(early->blocks);
    free(early);
}

void early_drop(struct served *f)
{
    if (f->early == NULL)
        return;
    early_free(f->link, f->early);
    f->early = NULL;
}

const char *early_replay(struct served *f)
{
    struct early *early = f->early;
    struct serve_link *link = f->link;
    const char *fault = NULL;
    struct block_run run;
    enum urgency urgency;

    if (early == NULL)
        return NULL;
    f->early = NULL;
    for (uint32_t i = 0; i < early->hash_count && fault == NULL; i++)
        fault = serve_hashes(f, early->hashes[i].run, early->hashes[i].layer);
    link->early_blocks -= request_queue_blocks(early->blocks);
    while (fault == NULL && request_queue_pop(early->blocks, URGENT_BACKGROUND,
                                              LIMIT_REQUEST_BLOCKS, &run, &urgency))
        fault = serve_blocks(f, run, urgency);
    link->early_blocks += request_queue_blocks(early->blocks);
    early_free(link, early);
    return fault;
}
