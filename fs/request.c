/* Requests: making, starting, answering. The table itself is client.c's. */
#include "fs/request.h"

#include "base/check.h"
#include "base/mem.h"
#include "fs/client.h"
#include "fs/fs.h"

#include <errno.h>
#include <string.h>

#define REQUEST_MAGIC 0x72657175u

static void deliver_request(struct mail *mail, void *owner)
{
    struct request *r = (struct request *)mail;

    CHECK_OBJECT(r, REQUEST_MAGIC);
    request_begin(r);
}

struct request *request_new(struct fs *fs, fuse_req_t req, uint16_t type,
                            void (*done)(struct request *, struct answer *))
{
    struct request *r = xcalloc(1, sizeof(*r));

    r->magic = REQUEST_MAGIC;
    r->mail.deliver = deliver_request;
    r->fs = fs;
    r->req = req;
    r->tid = req != NULL ? fuse_req_ctx(req)->pid : 0;
    r->type = type;
    r->done = done;
    return r;
}

char *request_text(struct request *r, unsigned index, const char *text)
{
    CHECK(index < 2);
    free(r->text[index]);
    r->text[index] = xstrdup(text);
    return r->text[index];
}

void request_submit(struct request *r)
{
    loop_post(client_loop(r->fs->client), &r->mail);
}

static void request_free(struct request *r)
{
    CHECK(r->queue == NULL && !r->in_table);
    r->magic = 0;
    free(r->text[0]);
    free(r->text[1]);
    free(r->data);
    free(r);
}

void request_begin(struct request *r)
{
    CHECK_OBJECT(r, REQUEST_MAGIC);
    client_add(r->fs->client, r);
    if (client_stopping(r->fs->client))
        request_finish(r, EIO);
    else if (r->start != NULL)
        r->start(r);
    else
        request_send(r);
}

void request_send(struct request *r)
{
    CHECK_OBJECT(r, REQUEST_MAGIC);
    CHECK(r->in_table && r->type != LOCAL__LOCAL_TYPE__LOCAL_NONE);
    r->more = true;
    client_transmit(r->fs->client, r);
}

void request_answer(struct request *r, struct answer *answer)
{
    CHECK_OBJECT(r, REQUEST_MAGIC);
    CHECK(r->in_table);
    request_unqueue(r);
    r->sent = false;
    r->more = false;
    r->done(r, answer);
    if (r->more && !client_stopping(r->fs->client))
        return;
    if (r->more) {
        struct answer stopped = {.error = EIO, .fds = {-1, -1}};

        r->more = false;
        r->done(r, &stopped);
        CHECK(!r->more);
    }
    client_remove(r->fs->client, r);
    request_free(r);
}

void request_finish(struct request *r, int error)
{
    struct answer answer = {.error = error, .fds = {-1, -1}};

    request_answer(r, &answer);
}

void request_queue(struct request *r, struct request_list *queue)
{
    CHECK_OBJECT(r, REQUEST_MAGIC);
    CHECK(r->queue == NULL);
    TAILQ_INSERT_TAIL(queue, r, queue_link);
    r->queue = queue;
}

void request_unqueue(struct request *r)
{
    if (r->queue == NULL)
        return;
    TAILQ_REMOVE(r->queue, r, queue_link);
    r->queue = NULL;
}
