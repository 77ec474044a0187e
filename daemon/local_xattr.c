/* Extended attributes for p2pfs: what this daemon knows of an entry (user.p2p.*), and what members gave it (user.*).
 *
 * Owns nothing. The first are read only; the second are the catalogue's, which journals their changes as those of modes
 * and times. Thread: local. */
#include "daemon/local_private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/hex.h"
#include "base/mem.h"
#include "daemon/download.h"
#include "proto/limits.h"

static const uint8_t zero_root[HASH_SIZE];

/* Of files; directories and links have the last two. */
static const char own_names[] =
    XATTR_PREFIX_OWN "root\0" XATTR_PREFIX_OWN "state\0" XATTR_PREFIX_OWN "have\0" XATTR_PREFIX_OWN
                     "peers\0" XATTR_PREFIX_OWN "owner\0" XATTR_PREFIX_OWN "path";
static const char few_names[] = XATTR_PREFIX_OWN "owner\0" XATTR_PREFIX_OWN "path";

static void send_value(struct local *l, struct reply reply, const void *value, size_t size)
{
    struct client *cl = local_client(l, reply.client);
    Local__Text text = LOCAL__TEXT__INIT;

    if (cl != NULL)
        channel_send(cl->channel, CHANNEL_URGENT, TYPE(TEXT), FRAME_ANSWER, reply.id, &text.base,
                     value, size);
}

static const char *state_text(Local__State state)
{
    static const char *const names[] = {"unknown",   "local",     "pending",
                                        "published", "streaming", "complete"};

    return names[state <= LOCAL__STATE__STATE_COMPLETE ? state : 0];
}

static void peers_known(struct local *l, struct gather *gather)
{
    char value[24];
    uint32_t holders = 0;

    for (size_t i = 0; gather->down != NULL && i < gather->down->file_count; i++)
        if (memcmp(gather->down->files[i].root, gather->root, HASH_SIZE) == 0)
            holders = gather->down->files[i].holders;
    snprintf(value, sizeof value, "%" PRIu32, holders);
    send_value(l, gather->reply, value, strlen(value));
}

/* NULL: answered already, or later. */
static const char *value_of(struct local *l, struct reply reply, const struct node *node,
                            const char *name, char buffer[80])
{
    Local__Attr attr;
    bool content = node->kind == NODE_FILE && !node->working;

    names_fill(l, &attr, node);
    if (strcmp(name, "state") == 0)
        return state_text(attr.state);
    if (strcmp(name, "owner") == 0)
        return node->owner;
    if (strcmp(name, "root") == 0 && content) {
        hex_encode(buffer, node->root, HASH_SIZE);
        return buffer;
    }
    if (strcmp(name, "have") == 0 && node->kind == NODE_FILE) {
        snprintf(buffer, 80, "%" PRIu64, attr.local);
        return buffer;
    }
    if (strcmp(name, "peers") == 0 && content) {
        if (memcmp(node->root, zero_root, HASH_SIZE) == 0)
            return "0";
        ctl_gather(l, reply, node->root, peers_known);
        return NULL;
    }
    local_error(l, reply, ENODATA, "%s", "");
    return NULL;
}

/* What members gave it. */
static void send_given(struct local *l, struct reply reply, const struct node *node,
                       const char *name)
{
    const Tracker__Xattr *x = xattrs_find(node->xattrs, name);

    if (x == NULL)
        local_error(l, reply, ENODATA, "%s", "");
    else
        send_value(l, reply, x->value.data, x->value.len);
}

void names_getxattr(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    static const char prefix[] = XATTR_PREFIX_OWN;
    const Local__Xattr *m = message;
    const struct node *node = names_visible(l, m->ino);
    char buffer[80], *path = NULL;

    if (node == NULL) {
        local_error(l, reply, ENOENT, "%s", "");
        return;
    }
    if (strncmp(m->name, prefix, sizeof prefix - 1) != 0) {
        send_given(l, reply, node, m->name);
        return;
    }
    const char *name = m->name + sizeof prefix - 1, *value;
    if (strcmp(name, "path") == 0 && (path = catalogue_path(l->catalogue, node)) != NULL)
        value = path;
    else
        value = value_of(l, reply, node, name, buffer);
    if (value != NULL)
        send_value(l, reply, value, strlen(value));
    free(path);
}

void names_listxattr(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const struct node *node = names_visible(l, ((const Local__Node *)message)->ino);
    char list[sizeof own_names + LIMIT_XATTRS * (LIMIT_XATTR_NAME + 1)];
    size_t size;

    if (node == NULL) {
        local_error(l, reply, ENOENT, "%s", "");
        return;
    }
    bool file = node->kind == NODE_FILE;
    size = file ? sizeof own_names : sizeof few_names;
    memcpy(list, file ? own_names : few_names, size);
    for (size_t i = 0; node->xattrs != NULL && i < node->xattrs->n_list; i++) {
        size_t length = strlen(node->xattrs->list[i]->name) + 1;
        memcpy(list + size, node->xattrs->list[i]->name, length);
        size += length;
    }
    send_value(l, reply, list, size);
}

void names_setxattr(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    static const uint8_t nothing;
    const Local__SetXattr *m = message;
    struct xattr_change change = {
        .name = m->name, .size = m->value.len, .create = m->create, .replace = m->replace};
    int error = -ENOENT;

    if (!m->remove)
        change.value = m->value.len > 0 ? m->value.data : &nothing;
    if (names_visible(l, m->ino) != NULL)
        error = catalogue_xattr(l->catalogue, m->ino, &change);
    names_finish(l, reply, error);
}
