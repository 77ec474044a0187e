/* faults: a disk that fails now and then, for the program it is preloaded into.
 *
 *     LD_PRELOAD=libfaults.so P2P_FAULTS=FOLDER program
 *
 * Owns nothing: the file FOLDER/program (64 bytes, made by the test, mapped shared; none: nothing fails) says at any moment
 * what fails, and is told what has:
 *
 *    0  u32  chance      of 65536 calls that are counted, so many fail
 *    4  u32  countdown   not 0: this many calls from now, one fails
 *    8  u32  kinds       FAIL_... below: which calls are counted
 *   12  u32  failed      calls that have failed, counted by us
 *   16  u32  counted     calls that could have
 *
 * Counted are calls on regular files and folders; never those on sockets, pipes and terminals, and never close, which does what
 * it says even where it reports an error. What fails is EIO, for what makes a file longer ENOSPC as well; a failed
 * sync does not sync, a failed write may have written a part of its bytes first. Threads: any. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    FAIL_READ = 1,
    FAIL_WRITE = 2,
    FAIL_SYNC = 4,
    FAIL_OPEN = 8,
    FAIL_NAMES = 16,
    FAIL_CUT = 32
};

struct control {
    uint32_t chance, countdown, kinds, failed, counted;
};

static struct control *control;
static uint64_t state = 88172645463325252u;

_Static_assert(sizeof(off_t) == 8, "one call under both of its names");

/* What the program would have called without us. */
#define REAL(name)                                                                                 \
    static __typeof__(name) *real;                                                                 \
    if (real == NULL)                                                                              \
    *(void **)&real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *folder = getenv("P2P_FAULTS");
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder == NULL ? "" : folder,
             program_invocation_short_name);
    int fd = folder == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (fd >= 0)
        close(fd);
    if (map != MAP_FAILED)
        __atomic_store_n(&control, map, __ATOMIC_RELEASE);
}

static uint32_t chance(void)
{
    uint64_t x = __atomic_add_fetch(&state, 0x9e3779b97f4a7c15u, __ATOMIC_RELAXED);

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 40);
}

static bool fails(uint32_t kind)
{
    struct control *c = __atomic_load_n(&control, __ATOMIC_ACQUIRE);

    if (c == NULL || (__atomic_load_n(&c->kinds, __ATOMIC_RELAXED) & kind) == 0)
        return false;
    __atomic_add_fetch(&c->counted, 1, __ATOMIC_RELAXED);
    bool now = false;
    uint32_t left = __atomic_load_n(&c->countdown, __ATOMIC_RELAXED);
    while (left > 0 && !__atomic_compare_exchange_n(&c->countdown, &left, left - 1, false,
                                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    now = left == 1 || (chance() & 0xffff) < __atomic_load_n(&c->chance, __ATOMIC_RELAXED);
    if (now)
        __atomic_add_fetch(&c->failed, 1, __ATOMIC_RELAXED);
    return now;
}

static bool is_file(int fd)
{
    struct stat status;
    int before = errno;
    bool is = control != NULL && fstat(fd, &status) == 0 &&
              (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));

    errno = before;
    return is;
}

static bool fd_fails(int fd, uint32_t kind)
{
    return is_file(fd) && fails(kind);
}

static int full(void)
{
    return (chance() & 1) != 0 ? ENOSPC : EIO;
}

/* --- bytes ---------------------------------------------------------------------------------------------------- */
ssize_t read(int fd, void *to, size_t size)
{
    REAL(read);
    if (fd_fails(fd, FAIL_READ)) {
        errno = EIO;
        return -1;
    }
    return real(fd, to, size);
}

ssize_t pread(int fd, void *to, size_t size, off_t at)
{
    REAL(pread);
    if (fd_fails(fd, FAIL_READ)) {
        errno = EIO;
        return -1;
    }
    return real(fd, to, size, at);
}

ssize_t preadv(int fd, const struct iovec *to, int count, off_t at)
{
    REAL(preadv);
    if (fd_fails(fd, FAIL_READ)) {
        errno = EIO;
        return -1;
    }
    return real(fd, to, count, at);
}

ssize_t preadv2(int fd, const struct iovec *to, int count, off_t at, int flags)
{
    REAL(preadv2);
    if (fd_fails(fd, FAIL_READ)) {
        errno = EIO;
        return -1;
    }
    return real(fd, to, count, at, flags);
}

ssize_t write(int fd, const void *from, size_t size)
{
    REAL(write);
    if (fd_fails(fd, FAIL_WRITE)) {
        errno = full();
        return -1;
    }
    return real(fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at)
{
    REAL(pwrite);
    if (!fd_fails(fd, FAIL_WRITE))
        return real(fd, from, size, at);
    if (size > 1 && (chance() & 1) != 0) { /* what follows meets the full disk, or does not */
        ssize_t done = real(fd, from, size / 2, at);
        if ((chance() & 1) != 0)
            return done;
    }
    errno = full();
    return -1;
}

ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at)
{
    REAL(pwritev);
    if (fd_fails(fd, FAIL_WRITE)) {
        errno = full();
        return -1;
    }
    return real(fd, from, count, at);
}

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags)
{
    REAL(copy_file_range);
    if (fd_fails(out, FAIL_WRITE)) {
        errno = full();
        return -1;
    }
    return real(in, from, out, to, size, flags);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    if (fd_fails(fd, FAIL_CUT)) {
        errno = EIO;
        return -1;
    }
    return real(fd, size);
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    REAL(posix_fallocate);
    return fd_fails(fd, FAIL_CUT) ? full() : real(fd, at, size);
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
    REAL(fallocate);
    if (fd_fails(fd, FAIL_CUT)) {
        errno = full();
        return -1;
    }
    return real(fd, mode, at, size);
}

/* --- syncs ---------------------------------------------------------------------------------------------------- */
int fsync(int fd)
{
    REAL(fsync);
    if (fd_fails(fd, FAIL_SYNC)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    if (fd_fails(fd, FAIL_SYNC)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

int syncfs(int fd)
{
    REAL(syncfs);
    if (fd_fails(fd, FAIL_SYNC)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

/* --- names ---------------------------------------------------------------------------------------------------- */
static bool may_open(const char *path)
{
    /* What the machine has, not the program: settings, random bytes, other processes. */
    static const char *const others[] = {"/etc/", "/dev/", "/proc/", "/sys/",
                                         "/usr/", "/lib",  "/run/"};

    for (unsigned i = 0; i < sizeof others / sizeof *others; i++)
        if (strncmp(path, others[i], strlen(others[i])) == 0)
            return true;
    if (!fails(FAIL_OPEN))
        return true;
    errno = EIO;
    return false;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    REAL(open);
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return may_open(path) ? real(path, flags, mode) : -1;
}

int openat(int folder, const char *path, int flags, ...)
{
    va_list rest;
    REAL(openat);
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return may_open(path) ? real(folder, path, flags, mode) : -1;
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    if (fails(FAIL_NAMES)) {
        errno = EIO;
        return -1;
    }
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    REAL(renameat);
    if (fails(FAIL_NAMES)) {
        errno = EIO;
        return -1;
    }
    return real(from_folder, from, to_folder, to);
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(mkdirat);
    if (fails(FAIL_NAMES)) {
        errno = full();
        return -1;
    }
    return real(folder, path, mode);
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(unlinkat);
    if (fails(FAIL_NAMES)) {
        errno = EIO;
        return -1;
    }
    return real(folder, path, flags);
}

int unlink(const char *path)
{
    REAL(unlink);
    if (fails(FAIL_NAMES)) {
        errno = EIO;
        return -1;
    }
    return real(path);
}

/* The same under the names that programs without _FILE_OFFSET_BITS, and SQLite, have in them. */
#define SAME(name, other) __attribute__((alias(#other))) __typeof__(other) name
SAME(pread64, pread);
SAME(preadv64, preadv);
SAME(preadv64v2, preadv2);
SAME(pwrite64, pwrite);
SAME(pwritev64, pwritev);
SAME(ftruncate64, ftruncate);
SAME(posix_fallocate64, posix_fallocate);
SAME(fallocate64, fallocate);
SAME(open64, open);
SAME(openat64, openat);
