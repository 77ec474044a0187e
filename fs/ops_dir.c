/* Listings: a page of up to 1,024 entries from the daemon, handed to the kernel in its own small portions.
 *
 * Each open directory keeps the page that it is being read from. A page is used only as long as nothing in the tree has
 * changed since it was asked for (fs_changes): else an entry that was just removed could enter the kernel's cache and
 * stay there. Pages begin small and double, so that `rm -r`, where every removal spoils the page, costs little.
 *
 * The kernel keeps what it was shown, and shows it to the next one who opens the directory if nothing has changed since
 * (listings.h).
 *
 * Threads: workers and, for answers, the client's thread; one lock for each open directory, held for memory operations
 * only. */
#include "fs/ops.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/name.h"
#include "fs/attr.h"
#include "fs/client.h"
#include "fs/file.h"
#include "fs/fs.h"
#include "fs/invalidate.h"
#include "fs/listings.h"
#include "fs/request.h"
#include "fs/times.h"
#include "proto/limits.h"
#include "proto/message.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define DIR_MAGIC   0x64697265u
#define PAGE_MIN    64
#define PAGE_MAX    LIMIT_LIST_ENTRIES
#define OFFSET_BASE 2 /* offsets 1 and 2 are behind "." and ".."; an entry's is its cookie + 2 */
#define COOKIE_MAX  (UINT64_C(1) << 62)
#define BUFFER_MAX  (1u << 20)
#define NO_INO      0xffffffffu /* what libfuse writes for "unknown" */

struct dir {
    unsigned magic;
    uint64_t ino;
    pthread_mutex_t lock;
    /* Under the lock: */
    struct message_arena *arena;
    const Local__Listing *page; /* in the arena; NULL: none */
    uint64_t page_from;         /* cookie that it was asked for with */
    uint64_t page_changes;      /* fs_changes when it was asked for */
    size_t next;                /* entry where the last portion ended */
    uint32_t count;             /* entries to ask for */
    uint64_t
        read_changes; /* page_changes of all that was read from the first entry on; 0: of several states */
    bool kept;        /* listings.h knows this handle */
};

struct portion {
    fuse_req_t req;
    char *buffer;
    size_t size, used;
    bool plus;
    bool none_fits; /* room for not even one name */
    uint64_t whole; /* with this portion all was read, from this state of the tree; else 0 */
};

static struct dir *dir_of(const struct fuse_file_info *fi)
{
    struct dir *dir = (struct dir *)(uintptr_t)fi->fh;

    CHECK_OBJECT(dir, DIR_MAGIC);
    return dir;
}

static struct portion portion_of(fuse_req_t req, size_t size, bool plus)
{
    return (struct portion){
        .req = req, .size = size < BUFFER_MAX ? size : BUFFER_MAX, .plus = plus};
}

/* False if it does not fit. */
static bool add_entry(struct portion *p, const char *name, const struct fuse_entry_param *entry,
                      off_t behind)
{
    size_t left = p->size - p->used, need;

    if (p->plus)
        need = fuse_add_direntry_plus(p->req, p->buffer + p->used, left, name, entry, behind);
    else
        need = fuse_add_direntry(p->req, p->buffer + p->used, left, name, &entry->attr, behind);
    if (need > left)
        return false;
    p->used += need;
    return true;
}

/* "." and "..": names only, they are not looked up by this. */
static bool add_dot(struct portion *p, const char *name, uint64_t ino, off_t behind)
{
    struct fuse_entry_param entry = {.attr = {.st_ino = ino, .st_mode = S_IFDIR}};

    return add_entry(p, name, &entry, behind);
}

static bool add_attr(struct fs *fs, struct portion *p, uint64_t parent, const Local__Attr *attr,
                     uint64_t cookie)
{
    struct fuse_entry_param entry = {
        .ino = attr->ino, .entry_timeout = ATTR_LONG, .attr_timeout = attr_timeout(attr)};

    if (!name_is_valid(attr->name, strlen(attr->name)) ||
        !attr_stat(&entry.attr, attr, fs->uid, fs->gid))
        return true; /* cannot be shown */
    times_apply(fs->times, &entry.attr);
    if (attr->state == LOCAL__STATE__STATE_LOCAL)
        entry.attr_timeout = 0; /* its size may be known here better than there */
    if (p->plus && parent == FUSE_ROOT_ID)
        invalidate_seen_in_root(fs->invalidator, attr->name);
    return add_entry(p, attr->name, &entry, (off_t)(cookie + OFFSET_BASE));
}

static bool is_sound(const Local__Listing *page)
{
    if (page->n_entries != page->n_cookies || page->n_entries > LIMIT_LIST_ENTRIES)
        return false;
    for (size_t i = 0; i < page->n_cookies; i++)
        if (page->cookies[i] == 0 || page->cookies[i] > COOKIE_MAX)
            return false;
    return page->end || page->n_entries > 0;
}

/* Where in the page the entries behind `cookie` begin; -1 if they are not in it. */
static ssize_t find_cookie(const struct dir *dir, uint64_t cookie)
{
    const Local__Listing *page = dir->page;

    if (page == NULL)
        return -1;
    if (dir->next > 0 && dir->next <= page->n_cookies && page->cookies[dir->next - 1] == cookie)
        return (ssize_t)dir->next;
    if (cookie == dir->page_from)
        return 0;
    for (size_t i = 0; i < page->n_cookies; i++)
        if (page->cookies[i] == cookie)
            return (ssize_t)(i + 1);
    return -1;
}

/* Under the lock: makes a portion from the page. False if the page has nothing for this offset. */
static bool fill_portion(struct fs *fs, struct dir *dir, struct portion *p, off_t offset)
{
    uint64_t cookie = offset > OFFSET_BASE ? (uint64_t)offset - OFFSET_BASE : 0;
    ssize_t at = find_cookie(dir, cookie);
    bool fits = true;

    if (at < 0 || ((size_t)at == dir->page->n_entries && !dir->page->end))
        return false;
    p->buffer = xmalloc(p->size);
    if (offset < 1)
        fits = add_dot(p, ".", dir->ino, 1);
    if (fits && offset < 2)
        fits = add_dot(p, "..", NO_INO, 2);
    while (fits && (size_t)at < dir->page->n_entries) {
        fits = add_attr(fs, p, dir->ino, dir->page->entries[at], dir->page->cookies[at]);
        if (fits)
            at++;
    }
    dir->next = (size_t)at;
    p->none_fits = p->used == 0 && !fits;
    if (offset == 0)
        dir->read_changes = dir->page_changes;
    else if (dir->read_changes != dir->page_changes)
        dir->read_changes = 0;
    p->whole = p->used == 0 && fits && dir->kept ? dir->read_changes : 0;
    return true;
}

/* Without the lock, and the last that is done with the directory: RELEASEDIR may follow at once. */
static void reply_portion(struct fs *fs, const struct dir *dir, struct portion *p)
{
    if (p->whole != 0)
        listings_read(fs->listings, dir->ino, p->whole);
    if (p->none_fits)
        fuse_reply_err(p->req, EINVAL);
    else
        fuse_reply_buf(p->req, p->buffer, p->used);
    free(p->buffer);
}

static void drop_page(struct dir *dir)
{
    if (dir->arena != NULL)
        message_done(dir->arena);
    free(dir->arena);
    dir->arena = NULL;
    dir->page = NULL;
}

/* Under the lock; false if it is not a sound page. */
static bool take_page(struct dir *dir, const struct request *r, const struct answer *a)
{
    drop_page(dir);
    dir->arena = xmalloc(sizeof(*dir->arena));
    dir->page = message_unpack(dir->arena, &local__listing__descriptor, a->packed, a->packed_size);
    dir->page_from = r->message.readdir.cookie;
    dir->page_changes = r->changes;
    dir->next = 0;
    if (dir->page != NULL && is_sound(dir->page))
        return true;
    drop_page(dir);
    return false;
}

static void on_listing(struct request *r, struct answer *a)
{
    struct dir *dir = r->dir;
    struct portion p = portion_of(r->req, r->size, r->plus);
    bool good;

    if (r->req == NULL)
        return;
    if (a->error != 0) {
        fuse_reply_err(r->req, a->error);
        return;
    }
    CHECK_OBJECT(dir, DIR_MAGIC);
    CHECK(pthread_mutex_lock(&dir->lock) == 0);
    good = take_page(dir, r, a) && fill_portion(r->fs, dir, &p, (off_t)r->offset);
    CHECK(pthread_mutex_unlock(&dir->lock) == 0);
    if (good)
        reply_portion(r->fs, dir, &p);
    else
        fuse_reply_err(r->req, EIO);
}

static void list(fuse_req_t req, size_t size, off_t offset, struct fuse_file_info *fi, bool plus)
{
    struct fs *fs = fuse_req_userdata(req);
    struct dir *dir = dir_of(fi);
    struct request *r;
    uint64_t changes = fs_changes(fs);
    struct portion p = portion_of(req, size, plus);
    bool done = false, fresh;

    CHECK(pthread_mutex_lock(&dir->lock) == 0);
    fresh = dir->page != NULL && dir->page_changes == changes;
    if (fresh && offset != 0)
        done = fill_portion(fs, dir, &p, offset);
    if (!done && dir->page != NULL) {
        dir->count = fresh && dir->count < PAGE_MAX ? 2 * dir->count : fresh ? PAGE_MAX : PAGE_MIN;
        if (dir->count > PAGE_MAX)
            dir->count = PAGE_MAX;
    }
    CHECK(pthread_mutex_unlock(&dir->lock) == 0);
    if (done) {
        reply_portion(fs, dir, &p);
        return;
    }
    r = request_new(fs, req, LOCAL__LOCAL_TYPE__LOCAL_READDIR, on_listing);
    r->dir = dir;
    r->size = size;
    r->offset = (uint64_t)offset;
    r->changes = changes;
    r->plus = plus;
    r->message.readdir = (Local__Readdir)LOCAL__READDIR__INIT;
    r->message.readdir.ino = dir->ino;
    r->message.readdir.cookie = offset > OFFSET_BASE ? (uint64_t)offset - OFFSET_BASE : 0;
    r->message.readdir.count = dir->count;
    request_submit(r);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                       struct fuse_file_info *fi)
{
    list(req, size, offset, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                           struct fuse_file_info *fi)
{
    list(req, size, offset, fi, true);
}

static void free_dir(struct dir *dir)
{
    drop_page(dir);
    CHECK(pthread_mutex_destroy(&dir->lock) == 0);
    dir->magic = 0;
    free(dir);
}

static void close_dir(struct fs *fs, struct dir *dir)
{
    if (dir->kept)
        listings_closed(fs->listings, dir->ino);
    free_dir(dir);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *fs = fuse_req_userdata(req);
    struct dir *dir = xcalloc(1, sizeof(*dir));
    bool keep;

    dir->magic = DIR_MAGIC;
    dir->ino = ino;
    dir->count = 4 * PAGE_MIN;
    CHECK(pthread_mutex_init(&dir->lock, NULL) == 0);
    dir->kept = listings_opened(fs->listings, ino, fs_changes(fs), &keep);
    fi->cache_readdir = dir->kept;
    fi->keep_cache = keep;
    fi->fh = (uintptr_t)dir;
    if (fuse_reply_open(req, fi) == -ENOENT)
        close_dir(fs, dir);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    close_dir(fuse_req_userdata(req), dir_of(fi));
    fuse_reply_err(req, 0);
}

/* What was done to names before is durable when this is answered. */
static void on_synced(struct request *r, struct answer *a)
{
    if (r->req != NULL)
        fuse_reply_err(r->req, a->error);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct request *r =
        request_new(fuse_req_userdata(req), req, LOCAL__LOCAL_TYPE__LOCAL_SYNC, on_synced);

    r->message.node = (Local__Node)LOCAL__NODE__INIT;
    r->message.node.ino = ino;
    r->patience = PATIENCE_SLOW;
    request_submit(r);
}

void ops_fill_dir(struct fuse_lowlevel_ops *ops)
{
    ops->opendir = op_opendir;
    ops->readdir = op_readdir;
    ops->readdirplus = op_readdirplus;
    ops->releasedir = op_releasedir;
    ops->fsyncdir = op_fsyncdir;
}
