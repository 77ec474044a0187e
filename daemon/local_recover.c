/* Working files after a restart of the daemon.
 *
 * The row {number, ino, mount, marked} of a working file is committed before Create or
 * WriteBegin is answered, so that a killed p2pd finds it again; a loss of power ends p2pfs as well,
 * and then only a marked file counts, whose row is committed safely. After a start, files that p2pfs
 * still holds are opened again and wait for Reattach; marked ones that nobody holds are sealed under
 * their name; the rest is gone. Killed after the store took a content and before the commit that
 * publishes it, we know the file by its inode, look where the store has put it, and publish it.
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

struct recover_one {
    struct working_row row;
    struct ingest *ingest;
    bool orphan; /* marked, and nobody holds it */
    bool stored; /* the store has it already */
    uint8_t root[HASH_SIZE];
    uint64_t size;
};

struct recover_task {
    struct task task;
    struct recover_one *items;
    size_t count;
};

static void found_orphan(void *arg, uint64_t number, uint64_t size)
{
    struct recover_task *recover = arg;

    for (size_t i = 0; i < recover->count; i++) {
        if (recover->items[i].row.number == number) {
            recover->items[i].orphan = true;
            return;
        }
    }
    log_warning("store/incoming/%" PRIu64 ".kept (%" PRIu64
                " bytes) was being written, but nobody knows its name",
                number, size);
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
        if (one->ingest != NULL || one->row.inode != (uint64_t)entry->d_ino || one->row.inode == 0)
            continue;
        one->stored = hex_decode(one->root, HASH_SIZE, digits) &&
                      fstatat(directory, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0;
        one->size = one->stored ? (uint64_t)status.st_size : 0;
    }
}

static void search_store(struct recover_task *recover, const char *home)
{
    char *path = home_path(home, "store");

    for (unsigned i = 0; i < 256; i++) {
        char *name = xasprintf("%s/%02x", path, i);
        DIR *directory = opendir(name);
        struct dirent *entry;
        while (directory != NULL && (entry = readdir(directory)) != NULL)
            look_for_stored(recover, dirfd(directory), entry);
        if (directory != NULL)
            closedir(directory);
        free(name);
    }
    free(path);
}

static void recover_work(struct task *task)
{
    bool missing = false;

    struct recover_task *recover = (struct recover_task *)(void *)task;
    struct store *store = task->local->daemon->store;

    ingest_recover(store, found_orphan, recover);
    for (size_t i = 0; i < recover->count; i++) {
        int error;
        recover->items[i].ingest = ingest_reopen(store, recover->items[i].row.number, &error);
        missing |= recover->items[i].ingest == NULL;
    }
    if (missing)
        search_store(recover, task->local->daemon->home);
}

static void recover_row(struct local *l, const struct recover_one *one)
{
    const struct node *node = catalogue_node(l->catalogue, one->row.ino);
    bool taken = node == NULL || node->kind != NODE_FILE || write_find(l, one->row.ino) != NULL;

    if (one->stored && !taken) {
        catalogue_working_remove(l->catalogue, one->row.number);
        if (catalogue_publish(l->catalogue, one->row.ino, one->root, one->size, node->mtime,
                              clock_wall()) != 0)
            local_unused(l, one->root);
        return;
    }
    if (one->ingest == NULL || taken) {
        write_drop_ingest(l, one->ingest);
        catalogue_working_remove(l->catalogue, one->row.number);
        if (!taken)
            numbers_add(&l->lost, one->row.ino);
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
        if (write_find(l, inos.items[i]) == NULL)
            catalogue_write_abandon(l->catalogue, inos.items[i]);
    free(inos.items);
}

static void recover_done(struct local *l, struct task *task)
{
    struct recover_task *recover = (struct recover_task *)(void *)task;

    for (size_t i = 0; i < recover->count; i++)
        recover_row(l, &recover->items[i]);
    abandon_strays(l);
    free(recover->items);
    free(recover);
    l->recovered = true;
    struct deferred *waiting = l->waiting_recovery;
    l->waiting_recovery = NULL;
    l->waiting_recovery_end = &l->waiting_recovery;
    local_resume(l, waiting);
}

static void add_row(void *arg, const struct working_row *row)
{
    struct recover_task *recover = arg;

    recover->items = xrealloc(recover->items, (recover->count + 1) * sizeof *recover->items);
    recover->items[recover->count++] = (struct recover_one){.row = *row};
}

void write_recover(struct local *l)
{
    struct recover_task *recover = xcalloc(1, sizeof *recover);

    catalogue_working_each(l->catalogue, add_row, recover);
    local_post(l, &recover->task, recover_work, recover_done);
}
