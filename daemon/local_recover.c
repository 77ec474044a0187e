/* Working files after a restart of the daemon.
 *
 * The row {number, ino, mount, marked} of a working file is committed before Create or
 * WriteBegin is answered, so that a killed p2pd finds it again; a loss of power ends p2pfs as well,
 * and then only a marked file counts, whose row is committed safely. After a start, files that p2pfs
 * still holds are opened again and wait for Reattach; marked ones that nobody holds are sealed under
 * their name; the rest is gone. Killed after the store took a content and before the commit that
 * publishes it, we know the file by its inode, look where the store has put it, and publish it. Until all that is known,
 * requests about working files wait. What the disk does not give is neither there nor gone: its row stays, its entry stays as it
 * is and is not written, and the next start looks again. The whole picture: local_write.c.
 *
 * Owns nothing that lasts; leaves struct working to local_write.c. Thread: local; files are looked for on a worker. */
#include "daemon/local_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/ingest.h"

#define TRIES 10 /* what a failing disk does not give it may give again */

struct recover_one {
    struct working_row row;
    struct ingest *ingest;
    bool unreadable; /* it may be there */
    bool orphan;     /* marked, and nobody holds it */
    bool stored;     /* the store has it already */
    uint8_t root[HASH_SIZE];
    uint64_t size;
};

struct recover_task {
    struct task task;
    struct recover_one *items;
    size_t count;
    struct kept *kept;
    size_t kept_count;
    uint64_t next;     /* number that no row has, nor any before it */
    bool not_searched; /* not all folders of the store could be read */
};

static void found_orphan(void *arg, uint64_t number, uint64_t size)
{
    struct recover_task *recover = arg;

    recover->kept = xrealloc(recover->kept, (recover->kept_count + 1) * sizeof *recover->kept);
    recover->kept[recover->kept_count++] = (struct kept){number, size};
    log_warning("store/incoming/%" PRIu64 ".kept (%" PRIu64
                " bytes) was being written, but nobody knows its name; "
                "'p2pctl check --recover DIR' copies it out",
                number, size);
}

/* NULL: there is none (errno 0), or the disk does not say. */
static const struct dirent *next_entry(DIR *directory)
{
    errno = 0;
    return readdir(directory);
}

/* HH/ROOT.data, by inode. */
static void look_for_stored(struct recover_task *recover, int directory, const struct dirent *entry)
{
    static const char tail[] = ".data";
    char digits[2 * HASH_SIZE + 1];
    struct stat status;

    if (strlen(entry->d_name) != 2 * HASH_SIZE + sizeof tail - 1 ||
        strcmp(entry->d_name + 2 * HASH_SIZE, tail) != 0)
        return;
    memcpy(digits, entry->d_name, 2 * HASH_SIZE);
    digits[2 * HASH_SIZE] = '\0';
    for (size_t i = 0; i < recover->count; i++) {
        struct recover_one *one = &recover->items[i];
        if (one->ingest != NULL || one->row.sealed || one->row.inode != (uint64_t)entry->d_ino ||
            one->row.inode == 0)
            continue;
        bool there = fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0;
        recover->not_searched |= !there && errno != ENOENT;
        one->stored = hex_decode(one->root, HASH_SIZE, digits) && there;
        one->size = one->stored ? store_size_of_length(recover->task.local->daemon->store,
                                                       (uint64_t)status.st_size)
                                : 0;
    }
}

static void search_store(struct recover_task *recover, const char *home)
{
    char *path = home_path(home, "store");

    for (unsigned i = 0; i < 256; i++) {
        char *name = xasprintf("%s/%02x", path, i);
        DIR *directory = NULL;
        const struct dirent *entry;
        for (int t = 0; t < TRIES && directory == NULL && (t == 0 || errno != ENOENT); t++)
            directory = opendir(name);
        while (directory != NULL && (entry = next_entry(directory)) != NULL)
            look_for_stored(recover, dirfd(directory), entry);
        recover->not_searched |= errno != 0 && (directory != NULL || errno != ENOENT);
        if (directory != NULL)
            closedir(directory);
        free(name);
    }
    free(path);
}

/* What nobody holds is sealed under its name if it was marked, else given up; what was sealed has its bytes in the store. */
static void look_after(struct recover_one *one)
{
    bool held = one->ingest != NULL && ingest_is_held(one->ingest);

    one->orphan = one->ingest != NULL && !held && one->row.marked && !one->row.sealed;
    if (one->ingest == NULL || (!one->row.sealed && (held || one->orphan)))
        return;
    ingest_drop(one->ingest);
    one->ingest = NULL;
}

static void reopen(struct store *store, struct recover_one *one)
{
    int error = 0;

    for (int t = 0; t < TRIES && one->ingest == NULL && error != -ENOENT; t++)
        one->ingest = ingest_reopen(store, one->row.number, &error);
    one->unreadable = one->ingest == NULL && error != -ENOENT;
    if (one->unreadable)
        log_error("store/incoming/%" PRIu64 " cannot be opened: %s; the next start tries again",
                  one->row.number, strerror(-error));
}

static void recover_work(struct task *task)
{
    bool missing = false;
    struct recover_task *recover = (struct recover_task *)(void *)task;
    struct store *store = task->local->daemon->store;

    for (size_t i = 0; i < recover->count; i++) {
        reopen(store, &recover->items[i]);
        missing |= recover->items[i].ingest == NULL;
    }
    /* Before anything is deleted: a number that becomes free is given to the next file that anybody makes. */
    if (missing)
        search_store(recover, task->local->daemon->home);
    for (size_t i = 0; i < recover->count; i++) {
        struct recover_one *one = &recover->items[i];
        one->unreadable |= recover->not_searched && one->ingest == NULL && !one->stored;
        look_after(one);
    }
    ingest_recover(store, found_orphan, recover); /* the rest has no row */
}

static void recover_row(struct local *l, const struct recover_one *one)
{
    if (one->row.sealed)
        return;
    const struct node *node = catalogue_node(l->catalogue, one->row.ino);
    bool taken = node == NULL || node->kind != NODE_FILE || write_find(l, one->row.ino) != NULL;

    if (one->stored && !taken) {
        struct working_row row = one->row;
        row.sealed = true;
        catalogue_working_put(l->catalogue, &row);
        if (catalogue_publish(l->catalogue, one->row.ino, one->root, one->size, node->mtime,
                              clock_wall()) != 0)
            local_unused(l, one->root);
        return;
    }
    if (one->unreadable && !taken) {
        numbers_add(&l->unreadable, one->row.ino);
        return;
    }
    if (one->ingest == NULL || taken) {
        write_drop_ingest(l, one->ingest);
        catalogue_working_remove(l->catalogue, one->row.number);
        return; /* the node goes with `abandon_stray` */
    }
    struct working *w = write_new(l, one->row.ino, NULL);
    w->number = one->row.number;
    w->ingest = one->ingest;
    w->inode = one->row.inode;
    w->phase = WORKING_READY;
    w->marked = one->row.marked || one->orphan;
    w->deadline = clock_now() + WRITE_ATTACH_NS;
    if (one->orphan)
        write_end(l, w);
}

bool write_is_unreadable(const struct local *l, uint64_t ino)
{
    for (size_t i = 0; i < l->unreadable.count; i++)
        if (l->unreadable.items[i] == ino)
            return true;
    return false;
}

static void add_stray(void *arg, uint64_t ino)
{
    numbers_add(arg, ino);
}

/* Files that say they are being written, and are not. */
static void abandon_strays(struct local *l)
{
    struct numbers inos = {0};

    catalogue_each_writing(l->catalogue, add_stray, &inos);
    for (size_t i = 0; i < inos.count; i++)
        if (write_find(l, inos.items[i]) == NULL && !write_is_unreadable(l, inos.items[i]))
            catalogue_write_abandon(l->catalogue, inos.items[i]);
    free(inos.items);
}

static void recover_done(struct local *l, struct task *task)
{
    struct recover_task *recover = (struct recover_task *)(void *)task;

    for (size_t i = 0; i < recover->count; i++)
        recover_row(l, &recover->items[i]);
    abandon_strays(l);
    l->kept = recover->kept;
    l->kept_count = recover->kept_count;
    free(recover->items);
    free(recover);
    l->recovered = true;
    struct deferred *waiting = l->waiting_recovery;
    l->waiting_recovery = NULL;
    l->waiting_recovery_end = &l->waiting_recovery;
    local_resume(l, waiting);
}

struct search {
    uint64_t mount, ino, number;
    struct numbers found;
};

static void add_sealed(void *arg, const struct working_row *row)
{
    struct search *search = arg;

    if (row->sealed && (search->mount == 0 || row->mount == search->mount) &&
        (search->ino == 0 || row->ino == search->ino) &&
        (search->number == 0 || row->number == search->number))
        numbers_add(&search->found, row->number);
}

bool write_was_sealed(struct local *l, uint64_t ino, uint64_t number)
{
    struct search search = {.ino = ino, .number = number};

    if (number != 0)
        catalogue_working_each(l->catalogue, add_sealed, &search);
    bool found = search.found.count > 0;
    free(search.found.items);
    return found;
}

void write_forget_sealed(struct local *l, uint64_t mount, uint64_t ino)
{
    struct search search = {.mount = mount, .ino = ino};

    catalogue_working_each(l->catalogue, add_sealed, &search);
    for (size_t i = 0; i < search.found.count; i++)
        catalogue_working_remove(l->catalogue, search.found.items[i]);
    free(search.found.items);
}

bool write_await_recovery(struct local *l, struct reply reply)
{
    if (l->recovered)
        return false;
    struct deferred *d = local_defer(l, reply);
    *l->waiting_recovery_end = d;
    l->waiting_recovery_end = &d->next;
    return true;
}

static void add_row(void *arg, const struct working_row *row)
{
    struct recover_task *recover = arg;

    if (row->number >= recover->next)
        recover->next = row->number + 1;
    recover->items = xrealloc(recover->items, (recover->count + 1) * sizeof *recover->items);
    recover->items[recover->count++] = (struct recover_one){.row = *row};
}

void write_recover(struct local *l)
{
    struct recover_task *recover = xcalloc(1, sizeof *recover);

    catalogue_working_each(l->catalogue, add_row, recover);
    ingest_numbers_from(l->daemon->store, recover->next);
    local_post(l, &recover->task, recover_work, recover_done);
}
