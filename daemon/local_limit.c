/* p2pctl limit: rate limits of the daemon and of single files, set and shown.
 *
 * Owns nothing: limits.h keeps them, upload and download are told. Thread: "local". */
#include "daemon/local_private.h"

#include <errno.h>
#include <string.h>

#include "daemon/bucket.h"
#include "daemon/daemon.h"
#include "daemon/download.h"
#include "daemon/limits.h"
#include "daemon/upload.h"

static bool is_rate(uint64_t rate)
{
    return rate == 0 || (rate >= BUCKET_RATE_LEAST && rate <= BUCKET_RATE_MOST);
}

/* The content that the path names; NULL, and the answer was given: it has none. */
static const uint8_t *root_of(struct local *l, struct reply reply, const char *path)
{
    const struct node *node = ctl_resolve(l, reply, path);

    if (node == NULL)
        return NULL;
    if (node->kind != NODE_FILE || node->working || node->size == 0) {
        local_error(l, reply, node->kind == NODE_DIRECTORY ? EISDIR : EINVAL,
                    node->kind == NODE_DIRECTORY ? "a directory has no limit of its own: %s"
                                                 : "there is nothing to limit about %s",
                    path);
        return NULL;
    }
    return node->root;
}

void limit_handle(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Limit *m = message;
    struct daemon *d = l->daemon;
    const uint8_t *root = NULL;
    Local__Limits answer = LOCAL__LIMITS__INIT;

    (void)cl;
    if (m->path[0] != '\0' && (root = root_of(l, reply, m->path)) == NULL)
        return;
    struct rates rates = limits_of(d->limits, root);
    if ((m->set_up && !is_rate(m->up)) || (m->set_down && !is_rate(m->down))) {
        local_error(l, reply, EINVAL, "a rate limit is 4K to 128G a second, or unlimited");
        return;
    }
    if (m->set_up)
        rates.up = m->up;
    if (m->set_down)
        rates.down = m->down;
    if (m->set_up || m->set_down) {
        int error = limits_set(d->limits, root, rates);
        if (error != 0) {
            local_error(l, reply, error,
                        error == -ENOSPC && root != NULL ? "%d files have limits already"
                                                         : "the limit cannot be saved",
                        LIMITS_FILES);
            return;
        }
        if (root == NULL) {
            __atomic_store_n(&d->settings.rate_up, rates.up, __ATOMIC_RELAXED);
            __atomic_store_n(&d->settings.rate_down, rates.down, __ATOMIC_RELAXED);
        }
        upload_limits_changed(d->upload);
        download_limits_changed(d->download);
    }
    answer.up = rates.up;
    answer.down = rates.down;
    local_send(l, reply, TYPE(LIMITS_ARE), &answer.base);
}
