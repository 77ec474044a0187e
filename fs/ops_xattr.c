/* Extended attributes: user.p2p.*, what the daemon knows of an entry.
 *
 * Programs ask for others at every turn (`ls -l`: security.selinux, system.posix_acl_access; every first write:
 * security.capability): these are answered here, without a message. Setting any is not offered: the kernel gets ENOSYS
 * once (from libfuse, for want of an operation) and says EOPNOTSUPP by itself from then on. */
#include "fs/ops.h"

#include "fs/client.h"
#include "fs/fs.h"
#include "fs/request.h"

#include <errno.h>
#include <string.h>

#define PREFIX "user.p2p."

/* Of files; directories and links have the last two. */
static const char names[] = PREFIX "root\0" PREFIX "state\0" PREFIX "have\0" PREFIX "peers\0" PREFIX
                                   "owner\0" PREFIX "path";
static const char few_names[] = PREFIX "owner\0" PREFIX "path";

static bool is_ours(const char *name)
{
    for (const char *at = names; at < names + sizeof(names); at += strlen(at) + 1)
        if (strcmp(at, name) == 0)
            return true;
    return false;
}

/* getxattr(2): `size` 0 asks how large it is. */
static void reply_value(fuse_req_t req, size_t room, const void *value, size_t size)
{
    if (room == 0)
        fuse_reply_xattr(req, size);
    else if (size > room)
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, value, size);
}

static void on_getxattr(struct request *r, struct answer *a)
{
    const Local__Text *text = a->message;

    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, stale(a->error));
    else if (a->payload_size > 0 && a->payload == NULL)
        fuse_reply_err(r->req, E2BIG);
    else if (a->payload_size > 0)
        reply_value(r->req, r->size, a->payload, a->payload_size);
    else
        reply_value(r->req, r->size, text->text, strlen(text->text));
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct request *r;

    if (!is_ours(name)) {
        fuse_reply_err(req, strncmp(name, "system.", 7) == 0 ? EOPNOTSUPP : ENODATA);
        return;
    }
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_GETXATTR, on_getxattr);
    r->size = size;
    r->message.xattr = (Local__Xattr)LOCAL__XATTR__INIT;
    r->message.xattr.ino = ino;
    r->message.xattr.name = request_text(r, 0, name);
    request_submit(r);
}

static void on_listxattr(struct request *r, struct answer *a)
{
    const Local__Attr *attr = a->message;

    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, a->error);
    else if (attr->kind == LOCAL__KIND__KIND_FILE)
        reply_value(r->req, r->size, names, sizeof(names));
    else
        reply_value(r->req, r->size, few_names, sizeof(few_names));
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_GETATTR, on_listxattr);

    r->size = size;
    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = ino;
    request_submit(r);
}

void ops_fill_xattr(struct fuse_lowlevel_ops *ops)
{
    ops->getxattr = op_getxattr;
    ops->listxattr = op_listxattr;
}
