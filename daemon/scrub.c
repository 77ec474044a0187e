/* Reads what is kept and checks it against its hashes, before a reader or a peer finds out.
 *
 * Owns the checks that were asked for, and the scrub: a pass over all contents in the order of their roots, from a random
 * one on, at SCRUB_RATE and with the lowest priority at processor and disk, so that a machine in use hardly notices; a
 * new pass begins PASS_NS after the last one did. A check goes before it, at CHECK_RATE. Leaves reading and what becomes
 * of a damaged block to content.c: its bit is cleared, it is no longer read or served, and is fetched again when
 * somebody wants it.
 *
 * Thread: local; reading on a thread of its own, one content at a time. Memory: the roots of a check, one piece. */
#include "daemon/scrub.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "daemon/local_private.h"

#define SCRUB_RATE  (4u << 20) /* bytes a second */
#define CHECK_RATE  (256u << 20)
#define PASS_NS     (7 * 24 * 3600 * NS_PER_S)
#define LOOK_NS     (5 * NS_PER_S) /* between looks whether there is something to do */
#define STEP        (1u << 20)     /* read at once */
#define DAMAGED_MAX 1000           /* contents that one answer names */
#define IO_IDLE     (3 << 13)      /* ioprio_set(2): IOPRIO_CLASS_IDLE */

struct check {
    struct check *next;
    struct reply reply;
    uint8_t (*roots)[HASH_SIZE];
    size_t count, room, at;
    Local__Checked *answer;
    bool all; /* no paths were named */
};

struct scrub {
    struct local *local;
    struct workers *disk;
    struct timer *timer;
    bool reading, paused;
    bool stop; /* atomic: the content under way need not be finished */
    struct check *checks;
    uint8_t cursor[HASH_SIZE]; /* contents up to this root are done */
    uint8_t first[HASH_SIZE];  /* where the pass began */
    bool around;               /* the pass has come to the end, and went on at the start */
    int64_t pass_began, next_pass;
    uint64_t done_bytes, damaged_blocks, damaged_bytes; /* of this pass; since the start */
};

/* --- one content ------------------------------------------------------------------------------------------ */
struct read_task {
    struct task task;
    struct scrub *scrub;
    struct check *check; /* NULL: the scrub's */
    uint8_t root[HASH_SIZE];
    uint64_t size, bytes;
    uint64_t blocks; /* damaged */
    int error;
};

/* Sleeps until `bytes` may have been read since `began`. */
static void hold_back(const struct scrub *s, int64_t began, uint64_t bytes, uint64_t rate)
{
    int64_t due = began + (int64_t)((double)bytes / (double)rate * (double)NS_PER_S);

    for (int64_t now; (now = clock_now()) < due && !__atomic_load_n(&s->stop, __ATOMIC_RELAXED);) {
        int64_t left = due - now < NS_PER_S / 10 ? due - now : NS_PER_S / 10;
        struct timespec step = {left / NS_PER_S, left % NS_PER_S};
        nanosleep(&step, NULL);
    }
}

static void read_work(struct task *task)
{
    struct read_task *r = (struct read_task *)(void *)task;
    struct scrub *s = r->scrub;
    uint64_t rate = r->check != NULL ? CHECK_RATE : SCRUB_RATE;
    int64_t began = clock_now();

    /* Of this thread, as far as the system lets us. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), r->check != NULL ? 5 : 19);
    (void)syscall(SYS_ioprio_set, 1, 0, r->check != NULL ? 0 : IO_IDLE);
    struct content *content =
        store_get(task->local->daemon->store, r->root, r->size, false, &r->error);
    uint8_t *buffer = content == NULL ? NULL : malloc(STEP);
    uint64_t blocks = content == NULL ? 0 : content_geometry(content)->blocks;
    for (uint64_t at = 0; buffer != NULL && at < blocks && r->error == 0; at += STEP / BLOCK_SIZE) {
        uint64_t left = blocks - at;
        uint32_t count = left < STEP / BLOCK_SIZE ? (uint32_t)left : STEP / BLOCK_SIZE;
        content_forget_cached(content, at, count);
        r->error = content_look(content, at, count, buffer, &r->bytes, &r->blocks);
        hold_back(s, began, r->bytes, rate);
        if (__atomic_load_n(&s->stop, __ATOMIC_RELAXED))
            break;
    }
    free(buffer);
    content_release(content);
}

static void go_on(struct scrub *s);

static void add_damaged(struct local *l, Local__Checked *answer, const struct read_task *r)
{
    const struct node *node = catalogue_with_root(l->catalogue, r->root, NULL);
    char digits[2 * HASH_SIZE + 1];

    if (answer->n_damaged == DAMAGED_MAX)
        return;
    Local__Damaged *one = xcalloc(1, sizeof *one);
    local__damaged__init(one);
    hex_encode(digits, r->root, HASH_SIZE);
    char *path = node == NULL ? NULL : catalogue_path(l->catalogue, node);
    one->path = path != NULL ? path : xstrdup("");
    one->root = xstrdup(digits);
    one->blocks = r->blocks;
    answer->damaged = xrealloc(answer->damaged, (answer->n_damaged + 1) * sizeof *answer->damaged);
    answer->damaged[answer->n_damaged++] = one;
}

static void read_done(struct local *l, struct task *task)
{
    struct read_task *r = (struct read_task *)(void *)task;
    struct scrub *s = r->scrub;

    s->reading = false;
    /* Set aside when it was opened: damaged as a whole. */
    if (r->error == -ENOENT)
        r->blocks += r->size / BLOCK_SIZE + 1;
    s->damaged_blocks += r->blocks;
    if (r->error != 0 && r->error != -ENOENT)
        log_warning("store: a content cannot be checked: %s", strerror(-r->error));
    if (r->check != NULL) {
        r->check->answer->files++;
        r->check->answer->bytes += r->bytes;
        r->check->answer->failed += r->error != 0 && r->error != -ENOENT;
        if (r->blocks > 0)
            add_damaged(l, r->check->answer, r);
    } else {
        s->done_bytes += r->bytes;
    }
    free(r);
    if (!l->stopped)
        go_on(s);
}

static void begin(struct scrub *s, const uint8_t *root, struct check *check)
{
    struct local *l = s->local;
    struct store_summary summary;
    struct read_task *r;

    if (!store_summary(l->daemon->store, root, &summary))
        return;
    r = xcalloc(1, sizeof *r);
    r->scrub = s;
    r->check = check;
    memcpy(r->root, root, HASH_SIZE);
    r->size = summary.size;
    s->reading = true;
    local_post_to(l, s->disk, &r->task, read_work, read_done);
}

/* --- checks --------------------------------------------------------------------------------------------------- */
static void check_free(struct check *check)
{
    local__checked__free_unpacked(check->answer, NULL);
    free(check->roots);
    free(check);
}

/* The next content of the first check; finished ones are answered. */
static bool next_of_checks(struct scrub *s)
{
    struct check *check;

    while ((check = s->checks) != NULL) {
        while (check->at < check->count && !s->reading)
            begin(s, check->roots[check->at++], check);
        if (s->reading)
            return true;
        s->checks = check->next;
        if (check->all)
            kept_list(s->local, check->answer);
        local_send(s->local, check->reply, TYPE(CHECKED), &check->answer->base);
        check_free(check);
    }
    return false;
}

void scrub_client_gone(struct scrub *s, uint64_t client)
{
    for (struct check *check = s->checks; check != NULL; check = check->next)
        if (check->reply.client == client)
            check->at = check->count; /* the content under way is its last */
}

static void add_root(struct check *check, const uint8_t *root)
{
    if (check->count == check->room) {
        check->room = check->room == 0 ? 64 : 2 * check->room;
        check->roots = xrealloc(check->roots, check->room * HASH_SIZE);
    }
    memcpy(check->roots[check->count++], root, HASH_SIZE);
}

static void add_summary(const struct store_summary *summary, void *arg)
{
    if (summary->bytes > 0)
        add_root(arg, summary->root);
}

static void add_tree(struct local *l, struct check *check, const struct node *node)
{
    const struct node *child;
    uint64_t cookie = 0;

    if (node->kind == NODE_FILE && !node->working && node->size > 0)
        add_root(check, node->root);
    else if (node->kind == NODE_DIRECTORY)
        while ((child = catalogue_next(l->catalogue, node, &cookie)) != NULL)
            add_tree(l, check, child);
}

void ctl_check(struct local *l, struct client *cl, struct reply reply, const void *message)
{
    const Local__Check *m = message;
    struct scrub *s = l->scrub;
    struct check *check, **at = &s->checks;

    (void)cl;
    if (m->pause || m->resume) {
        s->paused = m->pause;
        go_on(s);
        local_done(l, reply);
        return;
    }
    for (size_t i = 0; i < m->n_paths; i++)
        if (ctl_resolve(l, reply, m->paths[i]) == NULL)
            return;
    check = xcalloc(1, sizeof *check);
    check->reply = reply;
    check->all = m->n_paths == 0;
    check->answer = xcalloc(1, sizeof *check->answer);
    local__checked__init(check->answer);
    for (size_t i = 0; i < m->n_paths; i++)
        add_tree(l, check, ctl_resolve(l, reply, m->paths[i]));
    if (m->n_paths == 0)
        store_each(l->daemon->store, add_summary, check);
    while (*at != NULL)
        at = &(*at)->next;
    *at = check;
    go_on(s);
}

/* --- the scrub -------------------------------------------------------------------------------------------------- */
struct search {
    const uint8_t *after;
    uint8_t best[HASH_SIZE];
    bool found;
};

static void look_at(const struct store_summary *summary, void *arg)
{
    struct search *search = arg;

    if (summary->bytes > 0 && memcmp(summary->root, search->after, HASH_SIZE) > 0 &&
        (!search->found || memcmp(summary->root, search->best, HASH_SIZE) < 0)) {
        memcpy(search->best, summary->root, HASH_SIZE);
        search->found = true;
    }
}

/* The next content of the pass, if there is one. */
static bool next_of_pass(struct scrub *s)
{
    struct search search = {.after = s->cursor};

    store_each(s->local->daemon->store, look_at, &search);
    if (!search.found && !s->around) {
        s->around = true;
        memset(s->cursor, 0, HASH_SIZE);
        store_each(s->local->daemon->store, look_at, &search);
    }
    if (!search.found || (s->around && memcmp(search.best, s->first, HASH_SIZE) > 0))
        return false;
    memcpy(s->cursor, search.best, HASH_SIZE);
    begin(s, search.best, NULL);
    return true;
}

static void go_on(struct scrub *s)
{
    int64_t now = clock_now();

    if (s->reading || next_of_checks(s))
        return;
    if (!s->paused && now >= s->next_pass) {
        if (s->pass_began == 0) {
            s->pass_began = now;
            s->around = false;
            s->done_bytes = 0;
            random_bytes(s->first, HASH_SIZE);
            memcpy(s->cursor, s->first, HASH_SIZE);
        }
        if (next_of_pass(s))
            return;
        s->next_pass = s->pass_began + PASS_NS;
        s->pass_began = 0;
    }
    timer_set(s->timer, LOOK_NS);
}

static void on_timer(void *arg)
{
    go_on(arg);
}

void scrub_status(const struct scrub *s, Local__Status *status)
{
    status->scrub_paused = s->paused;
    status->scrub_running = s->pass_began != 0 && !s->paused;
    status->scrub_bytes = s->done_bytes;
    status->scrub_damaged = s->damaged_blocks;
}

/* --- life ------------------------------------------------------------------------------------------------------------ */
struct scrub *scrub_new(struct local *l)
{
    struct scrub *s = xcalloc(1, sizeof *s);

    s->local = l;
    s->disk = workers_new("scrub", 1);
    s->timer = timer_new(l->loop, on_timer, s);
    return s;
}

void scrub_start(struct scrub *s)
{
    s->next_pass = clock_now() + 60 * NS_PER_S; /* the start is busy enough */
    timer_set(s->timer, LOOK_NS);
}

void scrub_stop(struct scrub *s)
{
    __atomic_store_n(&s->stop, true, __ATOMIC_RELAXED);
    workers_drain(s->disk);
    timer_free(s->timer);
    s->timer = NULL;
}

void scrub_free(struct scrub *s)
{
    if (s == NULL)
        return;
    while (s->checks != NULL) {
        struct check *check = s->checks;
        s->checks = check->next;
        check_free(check);
    }
    workers_free(s->disk);
    free(s);
}
