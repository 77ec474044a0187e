/* Whatever p2pd says, p2pfs stays sound: frames of any kind and order, between requests of the kernel.
 *
 * libfuse's replies are replaced by ours, which count. What must hold at the end: every request of the kernel was
 * answered, and once.
 *
 * The input is a list of steps. A step below OPERATIONS is a request of the kernel; each other one is a frame from p2pd:
 * a type, an id (small numbers are ids of requests under way), a length of two bytes, the message. */
#include <event2/event.h>

#include "base/check.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/workers.h"
#include "fs/client_internal.h"
#include "fs/device.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/listings.h"
#include "fs/ops.h"
#include "fs/request.h"
#include "fs/times.h"
#include "tests/mock_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define REQUESTS   64
#define HANDLES    16
#define OPERATIONS 20
#define ROUNDS     4 /* of the loop after a step: mail, answers, what they post */

struct fuse_req {
    struct fs *fs;
    struct fuse_ctx ctx;
    unsigned answers;
    bool opens_dir; /* an open that is answered later may see other requests in between */
};

static struct fuse_req requests[REQUESTS];
static unsigned request_count, handle_count, dir_count, outstanding;
static struct fuse_file_info handles[HANDLES], dirs[HANDLES];
static bool vanished; /* the kernel says of every open that its caller is gone */
static bool ending;

/* --- libfuse's part ---- */

static int answered(fuse_req_t req)
{
    CHECK(req >= requests && req < requests + request_count);
    CHECK(req->answers++ == 0);
    outstanding--;
    return 0;
}

int fuse_reply_err(fuse_req_t req, int error)
{
    CHECK(error >= 0 && error <= 4095);
    return answered(req);
}

int fuse_reply_entry(fuse_req_t req, const struct fuse_entry_param *entry)
{
    CHECK(entry->ino != 0 && (entry->attr.st_mode & 07000) == 0);
    return answered(req);
}

int fuse_reply_attr(fuse_req_t req, const struct stat *st, double timeout)
{
    CHECK((st->st_mode & 07000) == 0 && st->st_size >= 0);
    return answered(req);
}

int fuse_reply_readlink(fuse_req_t req, const char *target)
{
    CHECK(strlen(target) < ((size_t)1 << 20));
    return answered(req);
}

static int opened(fuse_req_t req, const struct fuse_file_info *fi, struct fuse_file_info *all,
                  unsigned *count)
{
    answered(req);
    CHECK(fi->fh != 0);
    if (vanished || ending || *count == HANDLES)
        return -ENOENT;
    all[(*count)++] = *fi;
    return 0;
}

int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
    return req->opens_dir ? opened(req, fi, dirs, &dir_count)
                          : opened(req, fi, handles, &handle_count);
}

int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *entry,
                      const struct fuse_file_info *fi)
{
    CHECK(entry->ino != 0);
    return opened(req, fi, handles, &handle_count);
}

int fuse_reply_write(fuse_req_t req, size_t count)
{
    return answered(req);
}

int fuse_reply_buf(fuse_req_t req, const char *buffer, size_t size)
{
    static volatile unsigned sum;

    for (size_t i = 0; i < size; i++)
        sum += (unsigned char)buffer[i];
    (void)sum;
    return answered(req);
}

int fuse_reply_statfs(fuse_req_t req, const struct statvfs *st)
{
    return answered(req);
}

int fuse_reply_xattr(fuse_req_t req, size_t count)
{
    return answered(req);
}

const struct fuse_ctx *fuse_req_ctx(fuse_req_t req)
{
    return &req->ctx;
}

void *fuse_req_userdata(fuse_req_t req)
{
    return req->fs;
}

void fuse_req_interrupt_func(fuse_req_t req, fuse_interrupt_func_t function, void *data)
{
}

/* The device is never read or written here. */
int fuse_session_fd(struct fuse_session *session)
{
    return -1;
}

int fuse_session_custom_io(struct fuse_session *session, const struct fuse_custom_io *io, int fd)
{
    return 0;
}

/* --- steps ---- */

static void turn(struct fs *fs)
{
    for (unsigned i = 0; i < ROUNDS; i++)
        CHECK(event_base_loop(loop_base(client_loop(fs->client)), EVLOOP_NONBLOCK) >= 0);
}

static fuse_req_t new_request(struct fs *fs)
{
    fuse_req_t req = &requests[request_count++];

    *req = (struct fuse_req){.fs = fs};
    outstanding++;
    return req;
}

static void operate(struct fs *fs, const struct fuse_lowlevel_ops *ops, unsigned which,
                    uint8_t argument)
{
    struct fuse_file_info fi = {.flags = argument & 1 ? O_RDWR | (argument & 2 ? O_TRUNC : 0)
                                                      : O_RDONLY};
    struct fuse_file_info *h = handle_count > 0 ? &handles[argument % handle_count] : NULL;
    struct fuse_file_info *d = dir_count > 0 ? &dirs[argument % dir_count] : NULL;
    struct stat st = {.st_size = argument, .st_mode = 0644};
    uint64_t ino = 1 + argument % 4;
    fuse_req_t req;

    if (request_count == REQUESTS || (which >= 12 && which <= 16 && h == NULL) ||
        (which == 17 && d == NULL))
        return;
    req = new_request(fs);
    req->opens_dir = which == 11;
    switch (which) {
    case 0:
        ops->lookup(req, 1, "a");
        break;
    case 1:
        ops->getattr(req, ino, NULL);
        break;
    case 2:
        ops->readlink(req, ino);
        break;
    case 3:
        ops->statfs(req, 1);
        break;
    case 4:
        ops->mkdir(req, 1, "d", 0755);
        break;
    case 5:
        ops->unlink(req, 1, "a");
        break;
    case 6:
        ops->rename(req, 1, "a", 1, "b", argument & 1);
        break;
    case 7:
        ops->getxattr(req, ino, "user.p2p.state", argument);
        break;
    case 8:
        ops->listxattr(req, ino, argument);
        break;
    case 9:
        ops->open(req, ino, &fi);
        break;
    case 10:
        ops->create(req, 1, "c", 0644, &fi);
        break;
    case 11:
        ops->opendir(req, ino, &fi);
        break;
    case 12:
        ops->read(req, 1, 4096, argument * 4096, h);
        break;
    case 13:
        ops->write(req, 1, "hello", 5, argument, h);
        break;
    case 14:
        ops->flush(req, 1, h);
        break;
    case 15:
        ops->fsync(req, 1, 0, h);
        break;
    case 16:
        ops->fallocate(req, 1, 0, 0, 1 + argument, h);
        break;
    case 17:
        ops->readdirplus(req, 1, 4096, argument & 1 ? 0 : argument, d);
        break;
    case 18:
        ops->setattr(req, ino, &st, argument & 1 ? FUSE_SET_ATTR_SIZE : FUSE_SET_ATTR_MTIME_NOW,
                     NULL);
        break;
    default:
        ops->symlink(req, "t", 1, "s");
        break;
    }
}

static void give_frame(struct fs *fs, struct mock_stream *mock, const uint8_t *head,
                       const uint8_t *message, size_t size)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 65536];
    struct frame frame = {
        .type = head[0] % 80, .id = head[1] & 63, .flags = head[1] & 128 ? 0 : FRAME_ANSWER};

    if ((head[1] & 64) != 0 && size > 0) { /* the last byte says how much of it is a payload */
        size--;
        frame.payload_size = message[size] % (size + 1);
    }
    frame.message_size = (uint32_t)(size - frame.payload_size);
    frame_encode(bytes, &frame);
    memcpy(bytes + FRAME_HEADER_SIZE, message, size);
    if (fs->client->channel == NULL)
        return;
    mock->in = bytes;
    mock->in_at = 0;
    mock->in_size = FRAME_HEADER_SIZE + size;
    mock->room = SIZE_MAX / 2;
    mock->events->readable(mock->arg);
    turn(fs);
}

static void run_steps(struct fs *fs, const struct fuse_lowlevel_ops *ops, struct mock_stream *mock,
                      const uint8_t *bytes, size_t size)
{
    while (size >= 2) {
        size_t length;

        if (bytes[0] < OPERATIONS) {
            operate(fs, ops, bytes[0], bytes[1]);
            turn(fs);
            bytes += 2;
            size -= 2;
            continue;
        }
        if (size < 4)
            return;
        length = bytes[2] | (size_t)bytes[3] << 8;
        if (length > size - 4)
            length = size - 4;
        {
            uint8_t head[2] = {(uint8_t)(bytes[0] - OPERATIONS), bytes[1]};

            give_frame(fs, mock, head, bytes + 4, length);
        }
        bytes += 4 + length;
        size -= 4 + length;
    }
}

/* The kernel closes everything; only then, for RELEASE never overtakes what is under way. */
static void close_all(struct fs *fs, const struct fuse_lowlevel_ops *ops)
{
    CHECK(outstanding == 0);
    request_count = 0;
    while (handle_count > 0)
        ops->release(new_request(fs), 1, &handles[--handle_count]);
    while (dir_count > 0)
        ops->releasedir(new_request(fs), 1, &dirs[--dir_count]);
    turn(fs);
    CHECK(outstanding == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct fs fs = {.wait = NS_PER_S * 3600, .slow = INT64_MAX};
    struct fuse_lowlevel_ops ops = {.init = NULL};
    struct mock_stream mock;
    char home[] = "/nonexistent/fuzz";

    if (size == 0)
        return 0;
    fs.home = fs.mountpoint = home;
    ops_fill_names(&ops);
    ops_fill_xattr(&ops);
    ops_fill_dir(&ops);
    ops_fill_io(&ops);
    ops_fill_write(&ops);
    request_count = handle_count = dir_count = outstanding = 0;
    vanished = (bytes[0] & 1) != 0;
    ending = false;
    fs.device = device_new(&fs, false);
    fs.files = files_new(&fs);
    fs.times = times_new();
    fs.disk = workers_new("disk", 1);
    fs.invalidator = invalidator_new(&fs);
    fs.client = client_new(&fs);
    fs.listings = listings_new();
    fs.client->channel =
        channel_new(client_loop(fs.client), mock_init(&mock), &client_channel_events, fs.client);
    channel_trust(fs.client->channel);
    fs.client->state = (bytes[0] & 2) != 0 ? CLIENT_GREETING : CLIENT_LIVE;
    fs.client->greeted = (bytes[0] & 4) != 0;
    run_steps(&fs, &ops, &mock, bytes + 1, size - 1);

    workers_free(fs.disk);
    ending = true;
    invalidator_finish(fs.invalidator);
    client_refuse(fs.client);
    turn(&fs);
    close_all(&fs, &ops);
    loop_start(client_loop(fs.client));
    client_stop(fs.client);
    invalidator_free(fs.invalidator);
    listings_free(fs.listings);
    files_free(fs.files);
    times_free(fs.times);
    device_free(fs.device);
    return 0;
}
