/* powerfs: a file system that can lose power.
 *
 *     powerfs BACKING MOUNTPOINT       in the foreground; SIGUSR1 is the power cut: nothing is answered any more, and the
 *                                      program ends; started again on the same BACKING it shows what had been synced
 *
 * Owns a tree of nodes in memory; every node has a place as programs see it (`live`) and one as the disk has it (`durable`),
 * and two files, BACKING/live/N and BACKING/durable/N, which differ in what was written and not synced. BACKING/names is the
 * durable tree, written when the program ends. An orderly end (unmount, SIGTERM) syncs everything.
 *
 * What is durable when, as ext4 has it at the least:
 *   fsync, fdatasync of a file   its bytes and size; its own place (so the entry of a new file, and a rename of it), and the
 *                                directories above, if they are new
 *   fsync of a directory         the places of all that is in it, was in it, or went from it; not the bytes of its files
 *   a rename is whole: a node has one durable place; what was there before goes with it
 * Everything else is lost by a cut: a file whose entry is durable and whose bytes never were is empty.
 *
 * Single-threaded. What cannot go on ends with a message and status 1. No hard links. */
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <uthash.h>

#include "base/check.h"
#include "base/mem.h"

#define NAME_SIZE 256
#define COPY_STEP 65536

struct place {
    uint64_t parent; /* 0: none */
    char name[NAME_SIZE];
};

struct node {
    uint64_t ino;
    mode_t mode;
    struct place live, durable;
    struct timespec read, written;
    unsigned opens;
    int fd;            /* of live/N, while it is needed */
    uint64_t from, to; /* written and not synced, joined; to 0: nothing */
    UT_hash_handle by_ino, by_live;
};

static struct node *nodes, *places; /* by ino; by live place */
static uint64_t next_ino = 2;
static int live_folder, durable_folder, backing;
static volatile sig_atomic_t cut;

/* --- nodes ------------------------------------------------------------------------------------------------ */

static void number_text(uint64_t ino, char text[32])
{
    snprintf(text, 32, "%" PRIu64, ino);
}

static struct node *node_of(uint64_t ino)
{
    struct node *n;

    HASH_FIND(by_ino, nodes, &ino, sizeof ino, n);
    return n;
}

static struct place place_of(uint64_t parent, const char *name, size_t length)
{
    struct place place;

    memset(&place, 0, sizeof place); /* all of it is the key */
    place.parent = parent;
    memcpy(place.name, name, length);
    return place;
}

static struct node *node_at(const struct place *place)
{
    struct node *n;

    HASH_FIND(by_live, places, place, sizeof *place, n);
    return n;
}

static void put_at(struct node *n, const struct place *place)
{
    if (n->live.parent != 0)
        HASH_DELETE(by_live, places, n);
    memset(&n->live, 0, sizeof n->live);
    if (place == NULL)
        return;
    n->live = *place;
    HASH_ADD(by_live, places, live, sizeof n->live, n);
}

static struct node *node_new(uint64_t ino, mode_t mode)
{
    struct node *n = xcalloc(1, sizeof *n);

    n->ino = ino;
    n->mode = mode;
    n->fd = -1;
    clock_gettime(CLOCK_REALTIME, &n->written);
    n->read = n->written;
    HASH_ADD(by_ino, nodes, ino, sizeof n->ino, n);
    if (ino >= next_ino)
        next_ino = ino + 1;
    return n;
}

/* 0 or -errno. */
static int node_open(struct node *n)
{
    char name[32];

    if (n->fd >= 0)
        return 0;
    number_text(n->ino, name);
    n->fd = openat(live_folder, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return n->fd < 0 ? -errno : 0;
}

static void node_rest(struct node *n)
{
    char name[32];

    if (n->opens > 0)
        return;
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
    if (n->live.parent != 0 || n->durable.parent != 0 || n->ino == 1)
        return;
    number_text(n->ino, name);
    unlinkat(live_folder, name, 0);
    unlinkat(durable_folder, name, 0);
    HASH_DELETE(by_ino, nodes, n);
    free(n);
}

/* 0 or -errno; `last`: the place of what the path names, whether it is there or not. */
static int find(const char *path, struct node **out, struct place *last)
{
    struct node *n = node_of(1);

    while (*path == '/')
        path++;
    while (*path != '\0') {
        const char *end = strchrnul(path, '/');

        if (n == NULL)
            return -ENOENT;
        if (!S_ISDIR(n->mode))
            return -ENOTDIR;
        if ((size_t)(end - path) >= NAME_SIZE)
            return -ENAMETOOLONG;
        struct place place = place_of(n->ino, path, (size_t)(end - path));
        if (last != NULL)
            *last = place;
        n = node_at(&place);
        path = end + (*end == '/');
    }
    *out = n;
    return n == NULL ? -ENOENT : 0;
}

/* --- what is durable ---------------------------------------------------------------------------------------- */

static bool same_place(const struct place *a, const struct place *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static void place_sync(struct node *n)
{
    struct node *other, *next, *parent = n->live.parent == 0 ? NULL : node_of(n->live.parent);

    if (n->ino == 1 || same_place(&n->live, &n->durable))
        return;
    if (parent != NULL && parent->durable.parent == 0)
        place_sync(parent);
    if (n->live.parent != 0) {
        HASH_ITER(by_ino, nodes, other, next)
            if (other != n && same_place(&other->durable, &n->live)) {
                other->durable = other->live; /* it was replaced, or went elsewhere */
            }
    }
    n->durable = n->live;
}

static void copy_range(int from, int to, uint64_t at, uint64_t end)
{
    static char buffer[COPY_STEP];

    while (at < end) {
        size_t step = end - at < COPY_STEP ? end - at : COPY_STEP;
        ssize_t got = pread(from, buffer, step, (off_t)at);
        if (got <= 0)
            break;
        CHECK(pwrite(to, buffer, (size_t)got, (off_t)at) == got);
        at += (uint64_t)got;
    }
}

/* Makes folder/N of `to` like that of `from`, in that range and in its length. */
static void copy_bytes(int from_folder, int to_folder, uint64_t ino, uint64_t at, uint64_t end)
{
    char name[32];
    struct stat status = {0};

    number_text(ino, name);
    int from = openat(from_folder, name, O_RDONLY | O_CLOEXEC);
    int to = openat(to_folder, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(to >= 0 && (from < 0 || fstat(from, &status) == 0));
    if (end > (uint64_t)status.st_size)
        end = (uint64_t)status.st_size;
    if (from >= 0)
        copy_range(from, to, at, end);
    CHECK(ftruncate(to, status.st_size) == 0);
    close(to);
    if (from >= 0)
        close(from);
}

static void bytes_sync(struct node *n)
{
    if (n->to == 0)
        return;
    copy_bytes(live_folder, durable_folder, n->ino, n->from, n->to);
    n->from = n->to = 0;
}

static void changed(struct node *n, uint64_t from, uint64_t to)
{
    if (to <= from)
        to = from + 1; /* the length alone */
    if (n->to == 0 || from < n->from)
        n->from = from;
    if (to > n->to)
        n->to = to;
    clock_gettime(CLOCK_REALTIME, &n->written);
}

/* --- the disk's own folder ---------------------------------------------------------------------------------- */

static void save_names(void)
{
    int fd = openat(backing, "names.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    struct node *n, *next;

    CHECK(file != NULL);
    HASH_ITER(by_ino, nodes, n, next)
        if (n->ino == 1 || n->durable.parent != 0)
            fprintf(file, "%" PRIu64 " %" PRIu64 " %o %s\n", n->ino, n->durable.parent,
                    (unsigned)n->mode, n->durable.name);
    CHECK(fclose(file) == 0 && renameat(backing, "names.new", backing, "names") == 0);
}

static void load_names(void)
{
    int fd = openat(backing, "names", O_RDONLY | O_CLOEXEC);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length;

    while (file != NULL && (length = getline(&line, &room, file)) > 0) {
        uint64_t ino, parent;
        unsigned mode;
        int at = 0;

        line[length - 1] = '\0';
        CHECK(sscanf(line, "%" SCNu64 " %" SCNu64 " %o %n", &ino, &parent, &mode, &at) == 3);
        struct node *n = node_new(ino, (mode_t)mode);
        if (parent != 0) {
            struct place place = place_of(parent, line + at, strlen(line + at));
            put_at(n, &place);
            n->durable = place;
        }
        if (S_ISREG(n->mode))
            copy_bytes(durable_folder, live_folder, ino, 0, UINT64_MAX);
    }
    free(line);
    if (file != NULL)
        fclose(file);
    if (node_of(1) == NULL)
        node_new(1, S_IFDIR | 0700);
}

static int folder(const char *name)
{
    int fd;

    CHECK(mkdirat(backing, name, 0700) == 0 || errno == EEXIST);
    fd = openat(backing, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* --- operations --------------------------------------------------------------------------------------------- */

static struct node *handle(const struct fuse_file_info *fi)
{
    return (struct node *)(uintptr_t)fi->fh;
}

/* By handle if there is one. */
static int find_any(const char *path, const struct fuse_file_info *fi, struct node **out)
{
    if (cut)
        return -EIO;
    if (fi == NULL || fi->fh == 0)
        return find(path, out, NULL);
    *out = handle(fi);
    return 0;
}

static int fill_stat(struct node *n, struct stat *st)
{
    char name[32];

    memset(st, 0, sizeof *st);
    if (S_ISREG(n->mode)) {
        number_text(n->ino, name);
        if (n->fd >= 0 ? fstat(n->fd, st) != 0
                       : fstatat(live_folder, name, st, AT_SYMLINK_NOFOLLOW) != 0)
            memset(st, 0, sizeof *st);
    }
    st->st_ino = n->ino;
    st->st_mode = n->mode;
    st->st_nlink = n->live.parent != 0 || n->ino == 1;
    st->st_uid = getuid();
    st->st_gid = getgid();
    st->st_atim = n->read;
    st->st_mtim = n->written;
    st->st_ctim = n->written;
    return 0;
}

static int op_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    struct node *n;
    int error = find_any(path, fi, &n);

    return error != 0 ? error : fill_stat(n, st);
}

static int op_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    struct node *d, *n, *next;
    int error = find_any(path, fi, &d);
    struct stat st;

    if (error != 0)
        return error;
    fill(buffer, ".", NULL, 0, 0);
    fill(buffer, "..", NULL, 0, 0);
    HASH_ITER(by_live, places, n, next)
        if (n->live.parent == d->ino) {
            fill_stat(n, &st);
            fill(buffer, n->live.name, &st, 0, 0);
        }
    return 0;
}

static int make(const char *path, mode_t mode, struct node **out)
{
    struct place place = {0};
    struct node *n;

    if (cut)
        return -EIO;
    int error = find(path, &n, &place);
    if (error == 0)
        return -EEXIST;
    struct node *parent = place.parent == 0 ? NULL : node_of(place.parent);
    if (error != -ENOENT || parent == NULL)
        return error;
    n = node_new(next_ino, mode);
    put_at(n, &place);
    error = S_ISREG(mode) ? node_open(n) : 0;
    if (S_ISREG(mode))
        changed(n, 0, 0);
    *out = n;
    return error;
}

static int op_mknod(const char *path, mode_t mode, dev_t device)
{
    struct node *n;
    int error = make(path, mode, &n);

    if (error == 0)
        node_rest(n);
    return error;
}

static int op_mkdir(const char *path, mode_t mode)
{
    struct node *n;

    return make(path, S_IFDIR | mode, &n);
}

static int op_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    struct node *n;
    int error = make(path, S_IFREG | (mode & 07777), &n);

    if (error != 0)
        return error;
    n->opens++;
    fi->fh = (uintptr_t)n;
    fi->keep_cache = 1;
    return 0;
}

static int op_open(const char *path, struct fuse_file_info *fi)
{
    struct node *n;
    int error = cut ? -EIO : find(path, &n, NULL);

    if (error == 0)
        error = node_open(n);
    if (error == 0 && (fi->flags & O_TRUNC) != 0) {
        struct stat st;
        CHECK(fstat(n->fd, &st) == 0 && ftruncate(n->fd, 0) == 0);
        changed(n, 0, (uint64_t)st.st_size);
    }
    if (error != 0)
        return error;
    n->opens++;
    fi->fh = (uintptr_t)n;
    fi->keep_cache = 1;
    return 0;
}

static int op_release(const char *path, struct fuse_file_info *fi)
{
    struct node *n = handle(fi);

    n->opens--;
    node_rest(n);
    return 0;
}

static int op_opendir(const char *path, struct fuse_file_info *fi)
{
    struct node *n;
    int error = cut ? -EIO : find(path, &n, NULL);

    if (error != 0)
        return error;
    n->opens++;
    fi->fh = (uintptr_t)n;
    return 0;
}

static int op_read(const char *path, char *to, size_t size, off_t offset, struct fuse_file_info *fi)
{
    ssize_t got = cut ? -1 : pread(handle(fi)->fd, to, size, offset);

    return cut ? -EIO : got < 0 ? -errno : (int)got;
}

static int op_write(const char *path, const char *from, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    struct node *n = handle(fi);
    ssize_t put = cut ? -1 : pwrite(n->fd, from, size, offset);

    if (put <= 0)
        return cut ? -EIO : put < 0 ? -errno : 0;
    changed(n, (uint64_t)offset, (uint64_t)(offset + put));
    return (int)put;
}

static int op_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
    struct node *n;
    struct stat st;
    int error = find_any(path, fi, &n);

    if (error == 0)
        error = node_open(n);
    if (error != 0)
        return error;
    CHECK(fstat(n->fd, &st) == 0);
    if (ftruncate(n->fd, size) != 0)
        return -errno;
    changed(n, (uint64_t)(size < st.st_size ? size : st.st_size),
            (uint64_t)(size > st.st_size ? size : st.st_size));
    node_rest(n);
    return 0;
}

static int op_fallocate(const char *path, int mode, off_t offset, off_t length,
                        struct fuse_file_info *fi)
{
    struct node *n = handle(fi);

    if (cut)
        return -EIO;
    if (fallocate(n->fd, mode, offset, length) != 0)
        return -errno;
    changed(n, (uint64_t)offset, (uint64_t)(offset + length));
    return 0;
}

static int op_unlink(const char *path)
{
    struct node *n;
    int error = cut ? -EIO : find(path, &n, NULL);

    if (error != 0)
        return error;
    put_at(n, NULL);
    node_rest(n);
    return 0;
}

static bool is_empty(const struct node *d)
{
    struct node *n, *next;

    HASH_ITER(by_live, places, n, next)
        if (n->live.parent == d->ino)
            return false;
    return true;
}

static int op_rmdir(const char *path)
{
    struct node *n;
    int error = cut ? -EIO : find(path, &n, NULL);

    if (error != 0)
        return error;
    return !S_ISDIR(n->mode) ? -ENOTDIR : !is_empty(n) ? -ENOTEMPTY : op_unlink(path);
}

static int op_rename(const char *from, const char *to, unsigned flags)
{
    struct node *n, *there = NULL;
    struct place place = {0};
    int error = cut ? -EIO : find(from, &n, NULL);

    if (error == 0 && (error = find(to, &there, &place)) == -ENOENT && place.parent != 0)
        error = 0;
    if (error != 0 || there == n)
        return error;
    if ((flags & RENAME_EXCHANGE) != 0)
        return -EINVAL;
    if (there != NULL && (flags & RENAME_NOREPLACE) != 0)
        return -EEXIST;
    if (there != NULL && S_ISDIR(there->mode) && !is_empty(there))
        return -ENOTEMPTY;
    if (there != NULL)
        put_at(there, NULL);
    put_at(n, &place);
    if (there != NULL)
        node_rest(there);
    return 0;
}

static void sweep(void)
{
    struct node *n, *next;

    HASH_ITER(by_ino, nodes, n, next)
        node_rest(n);
}

static int op_fsync(const char *path, int data, struct fuse_file_info *fi)
{
    if (cut)
        return -EIO;
    bytes_sync(handle(fi));
    place_sync(handle(fi));
    sweep();
    return 0;
}

static int op_fsyncdir(const char *path, int data, struct fuse_file_info *fi)
{
    struct node *d = handle(fi), *n, *next;

    if (cut)
        return -EIO;
    place_sync(d);
    HASH_ITER(by_ino, nodes, n, next)
        if (n->live.parent == d->ino || n->durable.parent == d->ino)
            place_sync(n);
    sweep();
    return 0;
}

static int op_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
    struct node *n;
    int error = find_any(path, fi, &n);

    if (error == 0)
        n->mode = (n->mode & S_IFMT) | (mode & 07777);
    return error;
}

static int op_chown(const char *path, uid_t user, gid_t group, struct fuse_file_info *fi)
{
    return 0;
}

static int op_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *fi)
{
    struct node *n;
    int error = find_any(path, fi, &n);

    if (error == 0) {
        n->read = times[0];
        n->written = times[1];
    }
    return error;
}

static int op_statfs(const char *path, struct statvfs *out)
{
    return fstatvfs(backing, out) != 0 ? -errno : 0;
}

static void *op_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    config->use_ino = 1;
    config->hard_remove = 1;
    config->nullpath_ok = 1;
    config->entry_timeout = config->attr_timeout = 1;
    return NULL;
}

/* --- the end ------------------------------------------------------------------------------------------------ */

static struct fuse *the_fuse;

static void on_cut(int number)
{
    cut = 1;
    fuse_exit(the_fuse);
}

static void sync_all(void)
{
    struct node *n, *next;

    HASH_ITER(by_ino, nodes, n, next)
        if (n->live.parent != 0 || n->durable.parent != 0) {
            place_sync(n);
            if (S_ISREG(n->mode))
                bytes_sync(n);
        }
}

int main(int argc, char **argv)
{
    static const struct fuse_operations operations = {.init = op_init,
                                                      .getattr = op_getattr,
                                                      .readdir = op_readdir,
                                                      .mknod = op_mknod,
                                                      .mkdir = op_mkdir,
                                                      .create = op_create,
                                                      .open = op_open,
                                                      .release = op_release,
                                                      .opendir = op_opendir,
                                                      .releasedir = op_release,
                                                      .read = op_read,
                                                      .write = op_write,
                                                      .truncate = op_truncate,
                                                      .unlink = op_unlink,
                                                      .rmdir = op_rmdir,
                                                      .rename = op_rename,
                                                      .fsync = op_fsync,
                                                      .fsyncdir = op_fsyncdir,
                                                      .fallocate = op_fallocate,
                                                      .chmod = op_chmod,
                                                      .chown = op_chown,
                                                      .utimens = op_utimens,
                                                      .statfs = op_statfs};
    struct sigaction action = {.sa_handler = on_cut};

    if (argc != 3) {
        fprintf(stderr, "usage: powerfs BACKING MOUNTPOINT\n");
        return 2;
    }
    backing = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(backing >= 0);
    live_folder = folder("live");
    durable_folder = folder("durable");
    load_names();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    char options[] = "-ofsname=powerfs,default_permissions",
         *arguments[] = {argv[0], options, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(2, arguments);
    the_fuse = fuse_new(&args, &operations, sizeof operations, NULL);
    if (the_fuse == NULL || fuse_mount(the_fuse, argv[2]) != 0 ||
        fuse_set_signal_handlers(fuse_get_session(the_fuse)) != 0)
        return 1;
    (void)fuse_loop(the_fuse);
    if (!cut)
        sync_all();
    save_names();
    fuse_unmount(the_fuse);
    fuse_destroy(the_fuse);
    fuse_opt_free_args(&args);
    return 0;
}
