/* Working files of earlier runs whose name is lost: state.db was lost or damaged after fsync() or close() had promised that
 * their bytes last. They stay where they are; `p2pctl check` lists them, `p2pctl check --recover` has them copied out.
 *
 * Owns nothing: the list is filled once, by local_recover.c. Thread: local; the copy is made on a worker, as the store may be
 * encrypted with a key that only p2pd has. The copy is a new file, never another one's bytes: what is there is left alone. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "daemon/ingest.h"
#include "daemon/local_private.h"

#define LISTED_MAX 1000

void kept_list(const struct local *l, Local__Checked *answer)
{
    size_t count = l->kept_count < LISTED_MAX ? l->kept_count : LISTED_MAX;

    answer->kept = xcalloc(count + 1, sizeof *answer->kept);
    for (size_t i = 0; i < count; i++) {
        Local__Kept *one = xcalloc(1, sizeof *one);
        local__kept__init(one);
        one->number = l->kept[i].number;
        one->size = l->kept[i].size;
        answer->kept[answer->n_kept++] = one;
    }
}

struct copy_task {
    struct task task;
    struct reply reply;
    uint64_t number;
    char *path;
    int error;
};

static int copy_to(struct store *store, uint64_t number, int fd)
{
    int error = 0;
    struct ingest *ingest = ingest_reopen(store, number, &error);

    if (ingest == NULL)
        return error;
    error = ingest_copy_out(ingest, fd);
    ingest_free(ingest);
    return error == 0 && fsync(fd) < 0 ? -errno : error;
}

static void copy_work(struct task *task)
{
    struct copy_task *copy = (struct copy_task *)(void *)task;
    int fd = open(copy->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (fd < 0) {
        copy->error = -errno;
        return;
    }
    copy->error = copy_to(task->local->daemon->store, copy->number, fd);
    if (close(fd) < 0 && copy->error == 0)
        copy->error = -errno;
    if (copy->error != 0)
        (void)unlink(copy->path); /* ours, and not whole */
}

static void copy_done(struct local *l, struct task *task)
{
    struct copy_task *copy = (struct copy_task *)(void *)task;

    if (copy->error == 0)
        local_done(l, copy->reply);
    else
        local_error(l, copy->reply, copy->error, "%s", strerror(-copy->error));
    free(copy->path);
    free(copy);
}

void ctl_copy_kept(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__CopyKept *m = message;
    bool known = false;

    (void)cl;
    for (size_t i = 0; i < l->kept_count; i++)
        known |= l->kept[i].number == m->number;
    if (!known || m->path[0] != '/') {
        local_error(l, reply, known ? EINVAL : ENOENT,
                    known ? "the path does not begin with /" : "there is no such kept file");
        return;
    }
    struct copy_task *copy = xcalloc(1, sizeof *copy);
    copy->reply = reply;
    copy->number = m->number;
    copy->path = xstrdup(m->path);
    local_post(l, &copy->task, copy_work, copy_done);
}
