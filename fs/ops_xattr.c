/* Extended attributes: user.*, which the daemon keeps, user.p2p.* among them, which it knows by itself.
 *
 * Programs ask for others at every turn (`ls -l`: security.selinux, system.posix_acl_access; every first write:
 * security.capability): these are answered here, without a message, and none can be set. What may be set in user.*, and
 * how much of it, the daemon says. Removing user.p2p.* is no error, though they stay: rsync -X removes all that the
 * source has not, and would fail for every file. */
#include "fs/ops.h"

#include "base/mem.h"
#include "fs/client.h"
#include "fs/fs.h"
#include "fs/request.h"
#include "proto/xattrs.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

static bool is_kept(const char *name)
{
    return strncmp(name, XATTR_PREFIX, strlen(XATTR_PREFIX)) == 0;
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

static void on_bytes(struct request *r, struct answer *a)
{
    if (r->req == NULL)
        return;
    if (a->error != 0)
        fuse_reply_err(r->req, stale(a->error));
    else if (a->payload_size > 0 && a->payload == NULL)
        fuse_reply_err(r->req, E2BIG);
    else
        reply_value(r->req, r->size, a->payload, a->payload_size);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct request *r;

    if (!is_kept(name)) {
        fuse_reply_err(req, strncmp(name, "system.", 7) == 0 ? EOPNOTSUPP : ENODATA);
        return;
    }
    r = request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_GETXATTR, on_bytes);
    r->size = size;
    r->message.xattr = (Local__Xattr)LOCAL__XATTR__INIT;
    r->message.xattr.ino = ino;
    r->message.xattr.name = request_text(r, 0, name);
    request_submit(r);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_LISTXATTR, on_bytes);

    r->size = size;
    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = ino;
    request_submit(r);
}

static void on_set(struct request *r, struct answer *a)
{
    if (r->req != NULL)
        fuse_reply_err(r->req, stale(a->error));
}

static struct request *set_request(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_SETXATTR, on_set);

    r->message.set_xattr = (Local__SetXattr)LOCAL__SET_XATTR__INIT;
    r->message.set_xattr.ino = ino;
    r->message.set_xattr.name = request_text(r, 0, name);
    return r;
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                        size_t size, int flags)
{
    struct request *r;
    int fault = xattr_name_fault(name);

    if (fault != 0) {
        fuse_reply_err(req, -fault);
        return;
    }
    r = set_request(req, ino, name);
    r->data = xmalloc(size + 1);
    if (size > 0)
        memcpy(r->data, value, size);
    r->message.set_xattr.value.data = r->data;
    r->message.set_xattr.value.len = size;
    r->message.set_xattr.create = (flags & XATTR_CREATE) != 0;
    r->message.set_xattr.replace = (flags & XATTR_REPLACE) != 0;
    request_submit(r);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct request *r;
    bool own = strncmp(name, XATTR_PREFIX_OWN, strlen(XATTR_PREFIX_OWN)) == 0;
    int fault = own ? 0 : xattr_name_fault(name);

    if (own || fault != 0) {
        fuse_reply_err(req, -fault);
        return;
    }
    r = set_request(req, ino, name);
    r->message.set_xattr.remove = true;
    request_submit(r);
}

void ops_fill_xattr(struct fuse_lowlevel_ops *ops)
{
    ops->getxattr = op_getxattr;
    ops->listxattr = op_listxattr;
    ops->setxattr = op_setxattr;
    ops->removexattr = op_removexattr;
}
