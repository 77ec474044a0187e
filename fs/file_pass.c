/* Passthrough: which opens the kernel gets to serve by itself, and what happens to a writer meanwhile (file.h).
 *
 * A file that is not complete is read by direct I/O: what is streamed is in the store's pages already, and a second copy of
 * every byte in the mount's would cost more than all the rest of a read. Shared mappings of it still work. Only the first
 * of several that have the file open gets that: mapping a file that is open for direct I/O makes the kernel throw out the
 * mount's pages, and wait for those that another reader's parked read holds.
 *
 * Counts here run ahead of the kernel's: a handle counts from before its OPEN is answered until its RELEASE, which the
 * kernel sends after it has let go. So what is allowed by these counts is allowed by the kernel's.
 *
 * Thread: the client's. */
#include "fs/file_internal.h"

#include "base/check.h"
#include "base/log.h"
#include "fs/client.h"
#include "fs/device.h"
#include "fs/fs.h"

#include <errno.h>

#define PASS_MIN (1 << 20) /* below, one request and the page cache do as well */

int handle_pass(struct handle *h)
{
    struct file *f = h->file;
    const struct fs *fs = f->fs;
    int64_t size;

    if (f->passed == 0) {
        size = content_size(f->content);
        if (!fs->passthrough || h->writable || f->handles > 1 || f->state != FILE_SEALED ||
            !TAILQ_EMPTY(&f->turns) || f->edited || size < PASS_MIN ||
            !content_complete(f->content) || !content_is_plain(f->content))
            return 0;
        f->backing = device_backing_open(fs->device, content_fd(f->content));
        if (f->backing < 0) {
            log_debug("no passthrough: %s", strerror(-f->backing));
            return 0;
        }
    }
    CHECK(!h->writable);
    f->passed++;
    h->passed = true;
    return f->backing;
}

bool handle_is_direct(const struct handle *h)
{
    const struct file *f = h->file;

    return !h->passed && !h->writable && f->handles == 1 && f->state == FILE_SEALED && !f->edited &&
           device_direct(f->fs->device) && !content_complete(f->content);
}

bool file_is_passed(const struct file *f)
{
    return f->passed > 0;
}

static void on_renewed(struct request *r, struct answer *a)
{
    fs_changed(r->fs);
    if (r->req != NULL)
        fuse_reply_err(r->req, a->error == 0 ? ESTALE : ETXTBSY);
}

void file_renew(struct request *r)
{
    request_unqueue(r);
    r->type = LOCAL__LOCAL_TYPE__LOCAL_RENEW;
    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = r->ino;
    r->done = on_renewed;
    request_send(r);
}

void handle_unpass(struct handle *h)
{
    struct file *f = h->file;

    if (!h->passed || --f->passed > 0)
        return;
    device_backing_close(f->fs->device, f->backing);
    f->backing = 0;
}
