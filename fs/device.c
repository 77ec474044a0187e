/* The device between libfuse and the kernel.
 *
 * Owns the two functions by which libfuse reads requests and writes answers. The INIT request is looked at for what the
 * kernel offers, its answer gets what libfuse cannot say; everything else goes by as it is. An answer whose bytes the
 * kernel cannot fetch (a view of a store's file on a failing disk) becomes an EIO: libfuse would leave it unanswered.
 *
 * The structures are those of include/uapi/linux/fuse.h, 7.40, as far as they are needed. */
#include "fs/device.h"

#include "base/log.h"
#include "base/mem.h"
#include "fs/fs.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define OP_INIT           26
#define INIT_EXT          (1u << 30)
#define INIT_KILLPRIV_V2  (1u << 28)
#define INIT2_DIRECT_MMAP (1u << 4) /* bit 36 of all flags; Linux 6.6 */
#define INIT2_PASSTHROUGH (1u << 5) /* bit 37 of all flags */
#define OPEN_PASSTHROUGH  (1u << 7)
#define OVERLAYFS         0x794c7630
#define CAPABILITY_ADMIN  21
#define FIRST_NAMESPACE   0xeffffffdu /* inode number of the initial user namespace */

struct in_header {
    uint32_t length, operation;
    uint64_t unique, node;
    uint32_t uid, gid, pid, more;
};

struct in_init {
    uint32_t major_version, minor_version, max_readahead, flags, flags2;
};

struct out_header {
    uint32_t length;
    int32_t error;
    uint64_t unique;
};

struct out_init {
    uint32_t major_version, minor_version, max_readahead, flags;
    uint16_t max_background, congestion;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2, max_stack_depth;
    uint32_t unused[6];
};

struct out_open {
    uint64_t handle;
    uint32_t flags;
    int32_t backing;
};

struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define BACKING_OPEN  _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

struct device {
    struct fs *fs;
    bool wanted;
    bool direct;    /* what is opened for direct I/O may still be mapped */
    bool passes;    /* set by the thread that reads INIT, which answers it, too */
    uint64_t init;  /* the number of INIT; 0: not seen yet */
    uint32_t flags; /* what the kernel offers */
};

/* Only the whole machine's root may: one of a container's user namespace may not. */
static bool may_pass(void)
{
    char line[256];
    struct stat st;
    bool may = false;
    FILE *status;

    if (stat("/proc/self/ns/user", &st) != 0 || st.st_ino != FIRST_NAMESPACE)
        return false;
    status = fopen("/proc/self/status", "re");
    while (status != NULL && fgets(line, sizeof(line), status) != NULL)
        if (strncmp(line, "CapEff:", 7) == 0)
            may = (strtoull(line + 7, NULL, 16) >> CAPABILITY_ADMIN & 1) != 0;
    if (status != NULL)
        fclose(status);
    return may;
}

static ssize_t device_read(int fd, void *to, size_t size, void *userdata)
{
    struct device *device = ((struct fs *)userdata)->device;
    ssize_t length = read(fd, to, size);
    struct in_header header;
    struct in_init init;

    if (device->init != 0 || length < (ssize_t)(sizeof(header) + sizeof(init)))
        return length;
    memcpy(&header, to, sizeof(header));
    memcpy(&init, (const char *)to + sizeof(header), sizeof(init));
    if (header.operation == OP_INIT) {
        device->init = header.unique;
        device->flags = init.flags;
        device->direct = (init.flags & INIT_EXT) != 0 && (init.flags2 & INIT2_DIRECT_MMAP) != 0;
        device->passes = device->wanted && (init.flags & INIT_EXT) != 0 &&
                         (init.flags2 & INIT2_PASSTHROUGH) != 0 && may_pass();
    }
    return length;
}

/* A store on an overlay (a container's) is one level up; everywhere else one is enough, and leaves room for an overlay
 * on top of the mount. */
static uint32_t stack_depth(const struct fs *fs)
{
    struct statfs st;

    return statfs(fs->home, &st) == 0 && st.f_type == OVERLAYFS ? 2 : 1;
}

static ssize_t write_init(const struct device *device, int fd, struct iovec *parts)
{
    struct out_init init;

    memcpy(&init, parts[1].iov_base, sizeof(init));
    /* No file here has a set-user-id bit or capabilities. Unless it is told that, the kernel asks at every write. */
    init.flags |= device->flags & INIT_KILLPRIV_V2;
    if (device->direct) {
        init.flags |= INIT_EXT;
        init.flags2 |= INIT2_DIRECT_MMAP;
    }
    if (device->passes) {
        init.flags |= INIT_EXT;
        init.flags2 |= INIT2_PASSTHROUGH;
        init.max_stack_depth = stack_depth(device->fs);
    }
    {
        struct iovec changed[2] = {parts[0], {.iov_base = &init, .iov_len = sizeof(init)}};

        return writev(fd, changed, 2);
    }
}

static ssize_t device_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    const struct device *device = ((struct fs *)userdata)->device;
    struct out_header header;
    ssize_t result;

    memcpy(&header, parts[0].iov_base, sizeof(header));
    if (header.unique == device->init && header.error == 0 && count == 2 &&
        parts[1].iov_len == sizeof(struct out_init))
        return write_init(device, fd, parts);
    result = writev(fd, parts, count);
    if (result < 0 && errno == EFAULT && header.unique != 0 && header.error == 0) {
        struct out_header failed = {
            .length = sizeof(failed), .error = -EIO, .unique = header.unique};

        if (write(fd, &failed, sizeof(failed)) == (ssize_t)sizeof(failed))
            return (ssize_t)header.length; /* it is answered */
        errno = EFAULT;
    }
    return result;
}

struct device *device_new(struct fs *fs, bool wanted)
{
    static const struct fuse_custom_io io = {.read = device_read, .writev = device_writev};
    struct device *device = xcalloc(1, sizeof(*device));

    device->fs = fs;
    device->wanted = wanted;
    if (fuse_session_custom_io(fs->session, &io, fuse_session_fd(fs->session)) == 0)
        return device;
    free(device);
    return NULL;
}

void device_free(struct device *device)
{
    free(device);
}

bool device_passes(const struct device *device)
{
    return device->passes;
}

bool device_direct(const struct device *device)
{
    return device->direct;
}

int device_backing_open(struct device *device, int fd)
{
    struct backing_map map = {.fd = fd};
    int backing = ioctl(fuse_session_fd(device->fs->session), BACKING_OPEN, &map);

    return backing > 0 ? backing : backing == 0 ? -EINVAL : -errno;
}

void device_backing_close(struct device *device, int backing)
{
    uint32_t id = (uint32_t)backing;

    if (ioctl(fuse_session_fd(device->fs->session), BACKING_CLOSE, &id) != 0)
        log_debug("backing file %d: %s", backing, strerror(errno));
}

int device_reply_open(fuse_req_t req, const struct fuse_file_info *fi, int backing)
{
    struct out_open out = {.handle = fi->fh, .flags = OPEN_PASSTHROUGH, .backing = backing};

    if (backing == 0)
        return fuse_reply_open(req, fi);
    return fuse_reply_buf(req, (const char *)&out, sizeof(out));
}
