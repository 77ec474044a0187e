/* Small files that a program is about to read: the next ones of a directory that is being read file after file.
 *
 * Owns what is known of a few directories, and the fetches that run ahead in them; leaves fetching to local_fetch.c. Thread: local.
 *
 * `cp -r` and its like open a file only when they are through with the one before, so each would cost them the round trips that
 * one file takes. Evidence is a file of at most AHEAD_FILE bytes that was closed with all of its blocks here. When EVIDENCE of
 * them have followed each other in one of three orders (as listed, by inode as cp and tar read, by name as shells and rsync do) the
 * next ones in that order are fetched whole: twice as many with each further one, at most AHEAD_FILES and AHEAD_BYTES that have
 * not been read yet. A file out of order, or IDLE without one, ends it, and what is under way is withdrawn. So what is fetched in
 * vain is bounded, and a file that is only probed costs no more than itself.
 *
 *   NEW --two files--> LISTED --EVIDENCE in order--> FOLLOWED --end of the directory, IDLE--> forgotten
 *                        ^                              |
 *                        +-------- out of order --------+
 *
 * A1  held[] is in the order of `index`; each has a reference to its fetch.
 * A2  orders are arrays of `count` inode numbers of small files, as they were when the directory was listed. */
#include "daemon/local_private.h"

#include "base/clock.h"
#include "base/mem.h"

#define AHEAD_FILE  (UINT64_C(128) << 10) /* no more than one look at a file reads anyway */
#define AHEAD_BYTES (UINT64_C(4) << 20)
#define AHEAD_FILES 256u
#define AHEAD_LEAST 4u
#define EVIDENCE    3u
#define NEAR        8u /* files read side by side may change places, and a few may be left out */
#define STRAYS                                                                                     \
    64u /* reads out of order, without one in order: nothing is made of this directory any more */
#define LISTED_MOST 65536u
#define DIRECTORIES 8u /* at once */
#define IDLE        (10 * NS_PER_S)

enum order { AS_LISTED, BY_INODE, BY_NAME, ORDERS };

struct place {
    uint32_t at;  /* of the file that was read last */
    uint32_t run; /* files in order up to it */
};

struct held {
    uint32_t index;
    uint64_t size;
    struct fetch *fetch;
};

struct ahead {
    uint64_t directory; /* 0: unused */
    uint64_t first;     /* NEW: the file that was read in it */
    int64_t last;
    uint64_t *orders[ORDERS]; /* NULL: NEW */
    uint32_t count;
    struct place places[ORDERS];
    enum order followed; /* ORDERS: none */
    uint32_t next;       /* index of the next file to be fetched */
    uint32_t window;     /* files */
    uint32_t strays;
    struct held held[AHEAD_FILES];
    uint32_t held_count;
    uint64_t held_bytes;
};

struct aheads {
    struct ahead directories[DIRECTORIES];
};

/* --- what runs ahead ------------------------------------------------------------------------------------------------------ */
/* Lets go of the first `count`. */
static void let_go(struct local *l, struct ahead *a, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        a->held_bytes -= a->held[i].size;
        fetch_drop(l, a->held[i].fetch);
    }
    a->held_count -= count;
    memmove(a->held, a->held + count, a->held_count * sizeof a->held[0]);
}

static void forget(struct local *l, struct ahead *a)
{
    let_go(l, a, a->held_count);
    for (unsigned i = 0; i < ORDERS; i++)
        free(a->orders[i]);
    *a = (struct ahead){0};
}

static bool is_small(const struct node *node)
{
    return node->kind == NODE_FILE && !node->working && node->size > 0 && node->size <= AHEAD_FILE;
}

static void top_up(struct local *l, struct ahead *a)
{
    while (a->next < a->count && a->held_count < a->window && a->held_bytes < AHEAD_BYTES) {
        uint32_t index = a->next++;
        const struct node *node = catalogue_node(l->catalogue, a->orders[a->followed][index]);
        struct store_summary summary;

        if (node == NULL || !is_small(node) ||
            (store_summary(l->daemon->store, node->root, &summary) && summary.complete))
            continue;
        a->held[a->held_count++] = (struct held){
            .index = index, .size = node->size, .fetch = fetch_add(l, node->root, node->size)};
        a->held_bytes += node->size;
    }
}

/* --- what is being read --------------------------------------------------------------------------------------------------- */
static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static int by_name(const void *a, const void *b)
{
    const struct node *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

/* False: there are too many. */
static bool list(struct local *l, struct ahead *a, const struct node *directory)
{
    const struct node **nodes = NULL, *node;
    uint32_t room = 0;
    uint64_t cookie = 0;

    while ((node = catalogue_next(l->catalogue, directory, &cookie)) != NULL) {
        if (!is_small(node))
            continue;
        if (a->count == LISTED_MOST) {
            free(nodes);
            a->count = 0;
            return false;
        }
        if (a->count == room) {
            room = room == 0 ? 64 : 2 * room;
            nodes = xrealloc(nodes, room * sizeof *nodes);
        }
        nodes[a->count++] = node;
    }
    for (unsigned order = 0; order < ORDERS; order++) {
        a->orders[order] = xcalloc(a->count + 1, sizeof(uint64_t));
        if (order == BY_NAME && nodes != NULL)
            qsort(nodes, a->count, sizeof *nodes, by_name);
        for (uint32_t i = 0; i < a->count; i++)
            a->orders[order][i] = nodes[i]->ino;
        if (order == BY_INODE)
            qsort(a->orders[order], a->count, sizeof(uint64_t), by_number);
    }
    free(nodes);
    return true;
}

/* Moves the place in one order; true: the file stands where it was expected, or close by. */
static bool move_to(const struct ahead *a, enum order order, struct place *place, uint64_t ino)
{
    const uint64_t *inos = a->orders[order];
    uint32_t from = place->at > NEAR ? place->at - NEAR : 0;

    for (uint32_t i = from; i < a->count && i <= place->at + NEAR; i++) {
        if (inos[i] != ino)
            continue;
        if (i > place->at) {
            place->run++;
            place->at = i;
        }
        return true;
    }
    place->run = 0;
    for (uint32_t i = 0; i < a->count; i++) {
        if (inos[i] == ino) {
            place->at = i;
            break;
        }
    }
    return false;
}

/* The order with the longest run, if that is evidence. */
static enum order choose(const struct ahead *a)
{
    enum order best = ORDERS;

    for (unsigned order = 0; order < ORDERS; order++) {
        if (a->places[order].run + 1 >= EVIDENCE &&
            (best == ORDERS || a->places[order].run > a->places[best].run))
            best = (enum order)order;
    }
    return best;
}

static void follow(struct local *l, struct ahead *a)
{
    uint32_t passed = 0;

    if (a->followed == ORDERS) {
        a->followed = choose(a);
        if (a->followed == ORDERS)
            return;
        a->window = AHEAD_LEAST;
        a->next = a->places[a->followed].at + 1;
    } else {
        a->window = 2 * a->window < AHEAD_FILES ? 2 * a->window : AHEAD_FILES;
    }
    while (passed < a->held_count && a->held[passed].index + NEAR <= a->places[a->followed].at)
        passed++;
    let_go(l, a, passed);
    top_up(l, a);
}

/* The one of this directory, or the one unused for longest. */
static struct ahead *ahead_of(struct local *l, uint64_t directory)
{
    struct ahead *oldest = NULL;

    if (l->aheads == NULL)
        l->aheads = xcalloc(1, sizeof *l->aheads);
    for (unsigned i = 0; i < DIRECTORIES; i++) {
        struct ahead *a = &l->aheads->directories[i];

        if (a->directory == directory)
            return a;
        if (oldest == NULL || a->last < oldest->last)
            oldest = a;
    }
    forget(l, oldest);
    oldest->directory = directory;
    oldest->followed = ORDERS;
    return oldest;
}

void ahead_read(struct local *l, uint64_t ino)
{
    const struct node *node = catalogue_node(l->catalogue, ino);
    struct ahead *a;

    if (node == NULL || node->parent == NULL || !is_small(node) || l->stopped ||
        !l->daemon->settings.background)
        return;
    a = ahead_of(l, node->parent->ino);
    a->last = clock_now();
    if (a->first == 0) {
        a->first = ino;
        return;
    }
    if (a->first == ino || a->strays > STRAYS)
        return;
    if (a->orders[0] == NULL) {
        if (!list(l, a, node->parent)) {
            a->strays = STRAYS + 1;
            return;
        }
        for (unsigned order = 0; order < ORDERS; order++)
            move_to(a, (enum order)order, &a->places[order], a->first);
        for (unsigned order = 0; order < ORDERS; order++)
            a->places[order].run = 0;
    }
    for (unsigned order = 0; order < ORDERS; order++) {
        bool kept = move_to(a, (enum order)order, &a->places[order], ino);

        if (!kept && a->followed == (enum order)order) {
            let_go(l, a, a->held_count);
            a->followed = ORDERS;
        }
    }
    a->strays = choose(a) != ORDERS ? 0 : a->strays + 1;
    follow(l, a);
}

void ahead_tick(struct local *l, int64_t now)
{
    for (unsigned i = 0; l->aheads != NULL && i < DIRECTORIES; i++) {
        struct ahead *a = &l->aheads->directories[i];

        if (a->directory != 0 && now - a->last > IDLE)
            forget(l, a);
    }
}

void ahead_free(struct local *l)
{
    for (unsigned i = 0; l->aheads != NULL && i < DIRECTORIES; i++)
        forget(l, &l->aheads->directories[i]);
    free(l->aheads);
    l->aheads = NULL;
}
