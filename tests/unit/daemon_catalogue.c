/* The replica of the catalogue against a small reference tracker (catalogue_tracker.h): journal, results,
 * conflicts, what comes back after a restart; and a random walk in which two replicas and the tracker must agree
 * in the end. */
#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "daemon/catalogue.h"
#include "daemon/catalogue_private.h"
#include "tests/unit/catalogue_tracker.h"

#define NOW      (INT64_C(1790000000) * NS_PER_S)
#define CONFLICT " (conflict ann 2026-09-21 1413)"

/* --- one member ------------------------------------------------------------------------------------------- */

struct news {
    struct news *next;
    Tracker__Changes *changes;
    Tracker__Result *result;
    uint64_t link; /* the connection it came on */
};

struct queue {
    struct news *first, **end;
};

struct side {
    struct ref *tracker;
    struct catalogue *catalogue;
    char path[PATH_MAX];
    unsigned device;
    const char *account;
    bool online;
    uint64_t link;
    struct queue pushes, results;
    /* what the catalogue said */
    unsigned invalid_names, invalid_attrs, unused, pinned;
    char last_name[256];
};

static void on_invalid(void *arg, uint64_t ino, uint64_t parent, const char *name)
{
    struct side *s = arg;
    if (name == NULL)
        s->invalid_attrs++;
    else
        snprintf(s->last_name, sizeof s->last_name, "%s", name);
    s->invalid_names += name != NULL;
}
static void on_journalled(void *arg)
{
}
static void on_unused(void *arg, const uint8_t root[HASH_SIZE], uint64_t size)
{
    ((struct side *)arg)->unused++;
}
static void on_pinned(void *arg, const struct node *node)
{
    ((struct side *)arg)->pinned++;
}
static const struct catalogue_events events = {.invalid = on_invalid,
                                               .renewed = on_invalid,
                                               .journalled = on_journalled,
                                               .unused = on_unused,
                                               .pinned = on_pinned};

static char directory[] = "/tmp/p2p-catalogue-XXXXXX";

static void open_catalogue(struct side *s)
{
    const char *fault = NULL;
    s->catalogue = catalogue_open(s->path, &events, s, &fault);
    if (s->catalogue == NULL)
        fail_msg("%s", fault);
    catalogue_set_account(s->catalogue, s->account);
}

static void side_begin(struct side *s, struct ref *tracker, unsigned device, const char *account)
{
    static unsigned number;
    *s = (struct side){.tracker = tracker, .device = device, .account = account};
    s->pushes.end = &s->pushes.first;
    s->results.end = &s->results.first;
    snprintf(s->path, sizeof s->path, "%s/%u.db", directory, ++number);
    open_catalogue(s);
}

static void news_free(struct news *news)
{
    if (news->changes != NULL)
        tracker__changes__free_unpacked(news->changes, NULL);
    if (news->result != NULL)
        tracker__result__free_unpacked(news->result, NULL);
    free(news);
}

static void queue_clear(struct queue *q)
{
    while (q->first != NULL) {
        struct news *next = q->first->next;
        news_free(q->first);
        q->first = next;
    }
    q->end = &q->first;
}

static struct news *queue_take(struct queue *q)
{
    struct news *news = q->first;
    if (news == NULL)
        return NULL;
    q->first = news->next;
    if (q->first == NULL)
        q->end = &q->first;
    return news;
}

static struct news *queue_add(struct queue *q)
{
    struct news *news = xcalloc(1, sizeof *news);
    *q->end = news;
    q->end = &news->next;
    return news;
}

static void side_end(struct side *s)
{
    queue_clear(&s->pushes);
    queue_clear(&s->results);
    catalogue_close(s->catalogue);
}

static void restart(struct side *s)
{
    catalogue_close(s->catalogue);
    open_catalogue(s);
}

/* --- the wires between them ------------------------------------------------------------------------------- */

static struct side *sides[2];

static void push_since(struct ref *r, uint64_t seq)
{
    for (uint64_t i = seq + 1; i <= r->seq; i++) {
        for (int k = 0; k < 2; k++) {
            struct side *s = sides[k];
            if (s == NULL || !s->online)
                continue;
            Tracker__Changes *changes = ref_changes_new(r);
            /* The state of the entry as of now is that of its last change; within one operation no entry
             * changes twice. */
            ref_changes_add(changes, ref_message(&r->entries[r->log[i % 65536] - 2]));
            changes->seq = i;
            changes->live = true;
            queue_add(&s->pushes)->changes = changes;
        }
    }
}

/* The tracker carries out one operation of `s`, if there is one to send. */
static bool send_one(struct side *s)
{
    size_t size;
    int64_t due;
    uint8_t *packed = s->online ? catalogue_next_op(s->catalogue, INT64_MAX, &due, &size) : NULL;
    if (packed == NULL)
        return false;
    Tracker__Op *op = tracker__op__unpack(NULL, size, packed);
    assert_non_null(op);
    uint64_t seq = s->tracker->seq;
    Tracker__Result *result = ref_apply(s->tracker, s->device, s->account, op);
    push_since(s->tracker, seq);
    queue_add(&s->results)->result = result;
    tracker__op__free_unpacked(op, NULL);
    free(packed);
    return true;
}

static bool hear_result(struct side *s)
{
    struct news *news = queue_take(&s->results);
    if (news == NULL)
        return false;
    Tracker__Results results = TRACKER__RESULTS__INIT;
    results.n_results = 1;
    results.results = &news->result;
    catalogue_results(s->catalogue, &results, NOW);
    news_free(news);
    return true;
}

static bool hear_push(struct side *s)
{
    struct news *news = queue_take(&s->pushes);
    if (news == NULL)
        return false;
    catalogue_changes(s->catalogue, news->changes, NOW);
    news_free(news);
    return true;
}

static void connect_side(struct side *s)
{
    uint8_t generation[GENERATION_SIZE];
    uint64_t seq;
    bool known = catalogue_position(s->catalogue, generation, &seq);
    bool scratch = !known || seq == 0 || memcmp(generation, s->tracker->generation, 16) != 0;
    s->online = true;
    queue_add(&s->pushes)->changes = ref_since(s->tracker, scratch ? 0 : seq, scratch);
    catalogue_resend(s->catalogue, true);
}

static void disconnect_side(struct side *s)
{
    s->online = false;
    queue_clear(&s->pushes);
    queue_clear(&s->results);
}

/* The first Changes of a connection, without anything new in it. */
static void hear_nothing(struct side *s)
{
    Tracker__Changes *changes = ref_changes_new(s->tracker);
    changes->live = true;
    catalogue_changes(s->catalogue, changes, NOW);
    tracker__changes__free_unpacked(changes, NULL);
}

/* Until nobody has anything to say. */
static void run(struct side *s)
{
    bool moved;
    do {
        moved = false;
        while (send_one(s))
            moved = true;
        while (hear_result(s))
            moved = true;
        while (hear_push(s))
            moved = true;
    } while (moved);
}

/* --- helpers ---------------------------------------------------------------------------------------------- */

static void make_root(uint8_t root[HASH_SIZE], unsigned content)
{
    memset(root, 0, HASH_SIZE);
    memcpy(root, &content, sizeof content);
    root[31] = 1;
}

static uint64_t make_file(struct side *s, uint64_t parent, const char *name, unsigned content)
{
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    make_root(root, content);
    assert_int_equal(catalogue_create(s->catalogue, parent, name, 0644, NOW, &ino), 0);
    assert_int_equal(catalogue_publish(s->catalogue, ino, root, content, NOW, NOW), 0);
    return ino;
}

static uint64_t make_dir(struct side *s, uint64_t parent, const char *name)
{
    uint64_t ino;
    assert_int_equal(catalogue_mkdir(s->catalogue, parent, name, 0755, NOW, &ino), 0);
    return ino;
}

static void rewrite(struct side *s, uint64_t ino, unsigned content)
{
    uint8_t root[HASH_SIZE];
    make_root(root, content);
    assert_int_equal(catalogue_write_begin(s->catalogue, ino), 0);
    assert_int_equal(catalogue_publish(s->catalogue, ino, root, content, NOW, NOW), 0);
}

static int move_entry(struct side *s, uint64_t parent, const char *name, uint64_t to_parent,
                      const char *to_name)
{
    const struct rename rename = {parent, name, to_parent, to_name, false, false};
    return catalogue_rename(s->catalogue, &rename);
}

static const struct node *at(struct side *s, const char *path)
{
    int error;
    return catalogue_resolve(s->catalogue, path, &error);
}

static bool has_content(struct side *s, const char *path, unsigned content)
{
    const struct node *node = at(s, path);
    uint8_t root[HASH_SIZE];
    make_root(root, content);
    return node != NULL && node->kind == NODE_FILE && memcmp(node->root, root, HASH_SIZE) == 0;
}

/* Fails where the two trees differ. */
static void compare(struct side *s, uint64_t ino, uint64_t id)
{
    const struct node *d = catalogue_node(s->catalogue, ino), *child;
    uint64_t cookie = 0;
    size_t count = 0, expected = 0;
    for (size_t i = 0; i < s->tracker->count; i++)
        expected += !s->tracker->entries[i].gone && s->tracker->entries[i].parent == id;
    while ((child = catalogue_next(s->catalogue, d, &cookie)) != NULL) {
        struct ref_entry *e = ref_find(s->tracker, id, child->name);
        count++;
        if (e == NULL)
            fail_msg("%s: the tracker has no '%s' (id %lu)", s->account, child->name,
                     (unsigned long)child->id);
        assert_int_equal(child->id, e->id);
        assert_int_equal(child->kind, e->kind);
        assert_int_equal(child->mode, e->mode);
        assert_true(child->mtime == e->mtime);
        assert_string_equal(child->owner, e->owner);
        assert_int_equal(child->unconfirmed, 0);
        if (child->kind == NODE_FILE) {
            assert_memory_equal(child->root, e->root, HASH_SIZE);
            assert_int_equal(child->size, e->size);
        }
        if (child->kind == NODE_SYMLINK)
            assert_string_equal(child->target, e->target);
        if (child->kind == NODE_DIRECTORY)
            compare(s, child->ino, child->id);
    }
    if (count != expected)
        for (size_t i = 0; i < s->tracker->count; i++) {
            const struct ref_entry *e = &s->tracker->entries[i];
            const struct entry *here = tree_find(s->catalogue, BY_ID, e->id);
            if (getenv("P2P_TEST_DEBUG") != NULL && here != NULL)
                fprintf(stderr, "%s %lu: '%s' flags %d unconfirmed %d seq %lu/%lu linked %d\n",
                        s->account, (unsigned long)e->id, here->node.name, here->flags,
                        here->node.unconfirmed, (unsigned long)here->seq, (unsigned long)e->seq,
                        here->node.parent != NULL);
            else if (getenv("P2P_TEST_DEBUG") != NULL)
                fprintf(stderr, "%s %lu: unknown; gone %d seq %lu\n", s->account,
                        (unsigned long)e->id, e->gone, (unsigned long)e->seq);
            if (!e->gone && e->parent == id && catalogue_lookup(s->catalogue, ino, e->name) == NULL)
                fail_msg("%s: does not show '%s' (id %lu) in %lu", s->account, e->name,
                         (unsigned long)e->id, (unsigned long)id);
        }
    assert_int_equal(count, expected);
}

static void assert_same(struct side *s)
{
    assert_int_equal(catalogue_pending(s->catalogue), 0);
    compare(s, INO_ROOT, 1);
}

/* The invariants of catalogue_private.h. */
static void check_invariants(struct side *s)
{
    struct catalogue *c = s->catalogue;
    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++) {
        for (struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO]) {
            unsigned depth = 0;
            for (const struct node *n = e->node.parent; n != NULL; n = n->parent)
                assert_true(++depth <= NAME_DEPTH_MAX);
            if (e->node.id != 0)
                assert_ptr_equal(tree_find(c, BY_ID, e->node.id), e);
            if (e->node.parent != NULL)
                assert_ptr_equal(
                    tree_child(c, (struct entry *)(void *)e->node.parent, e->node.name), e);
            if ((e->flags & FLAG_HIDDEN) != 0) {
                assert_null(e->node.parent);
                assert_non_null(e->pending->held);
            }
            if (e->node.unconfirmed > 0)
                assert_non_null(e->pending);
            if (e->node.parent != NULL && e->node.id == 0 && e->node.unconfirmed == 0 &&
                !e->node.working)
                fail_msg("'%s' is shown (kind %d flags %d made_by %lu lost %d), and nobody will "
                         "ever publish it",
                         e->node.name, e->node.kind, e->flags,
                         e->pending ? (unsigned long)e->pending->made_by : 0,
                         e->pending ? e->pending->lost : 0);
        }
    }
}

/* --- one member alone ------------------------------------------------------------------------------------- */

static struct ref tracker;

static int set_up(void **state)
{
    memset(&tracker, 0, sizeof tracker);
    memset(tracker.generation, 7, sizeof tracker.generation);
    sides[0] = sides[1] = NULL;
    return 0;
}

static void what_is_made_while_the_tracker_is_away_is_published_later_in_order(void **state)
{
    struct side ann;
    side_begin(&ann, &tracker, 1, "ann");
    uint64_t d = make_dir(&ann, INO_ROOT, "photos"), e = make_dir(&ann, d, "2026");
    uint64_t ino = make_file(&ann, e, "a.jpg", 5);
    assert_int_equal(catalogue_symlink(ann.catalogue, d, "link", "2026/a.jpg", NOW, &ino), 0);
    assert_true(has_content(&ann, "/photos/2026/a.jpg", 5));
    assert_int_equal(at(&ann, "/photos/2026/a.jpg")->unconfirmed, 1);
    assert_int_equal(catalogue_pending(ann.catalogue), 4);
    ino = at(&ann, "/photos/2026/a.jpg")->ino;
    sides[0] = &ann;
    connect_side(&ann);
    run(&ann);
    assert_same(&ann);
    assert_int_equal(at(&ann, "/photos/2026/a.jpg")->ino, ino);
    assert_int_equal(at(&ann, "/photos/2026/a.jpg")->unconfirmed, 0);
    assert_int_not_equal(at(&ann, "/photos/2026/a.jpg")->id, 0);
    check_invariants(&ann);
    side_end(&ann);
}

static void the_journal_outlives_a_restart_and_numbers_are_never_used_twice(void **state)
{
    struct side ann;
    size_t size;
    int64_t due;
    side_begin(&ann, &tracker, 1, "ann");
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    uint64_t f = make_file(&ann, d, "f", 3);
    assert_null(
        catalogue_next_op(ann.catalogue, INT64_MAX, &due, &size)); /* which tracker is this? */
    hear_nothing(&ann);
    uint8_t *packed = catalogue_next_op(ann.catalogue, INT64_MAX, &due, &size);
    Tracker__Op *op = tracker__op__unpack(NULL, size, packed);
    uint64_t first = op->op;
    tracker__op__free_unpacked(op, NULL);
    free(packed);
    restart(&ann);
    assert_int_equal(catalogue_pending(ann.catalogue), 2);
    assert_int_equal(at(&ann, "/d/f")->ino, f);
    assert_int_equal(at(&ann, "/d/f")->unconfirmed, 1);
    hear_nothing(&ann);
    packed = catalogue_next_op(ann.catalogue, INT64_MAX, &due, &size);
    op = tracker__op__unpack(NULL, size, packed);
    assert_int_equal(op->op, first);
    tracker__op__free_unpacked(op, NULL);
    free(packed);
    catalogue_resend(ann.catalogue, true);
    uint64_t g = make_file(&ann, INO_ROOT, "g", 4);
    assert_true(g > f);
    connect_side(&ann);
    run(&ann);
    assert_same(&ann);
    for (size_t i = 0; i < tracker.answer_count; i++)
        for (size_t k = 0; k < i; k++)
            assert_true(tracker.answers[i].op != tracker.answers[k].op);
    side_end(&ann);
}

/* Copies the data base as a crash would leave it, without what was not committed. */
static void crash(struct side *s)
{
    static const char *const tails[] = {"", "-wal"};
    char from[PATH_MAX + 8], to[PATH_MAX + 8];
    static unsigned number;
    number++;
    for (int i = 0; i < 2; i++) {
        char *data;
        size_t size;
        snprintf(from, sizeof from, "%s%s", s->path, tails[i]);
        snprintf(to, sizeof to, "%s/crash-%u.db%s", directory, number, tails[i]);
        if (file_read(from, 256u << 20, false, &data, &size) == 0) {
            assert_int_equal(file_replace(to, data, size, 0600), 0);
            free(data);
        }
    }
    catalogue_close(s->catalogue);
    snprintf(s->path, sizeof s->path, "%s/crash-%u.db", directory, number);
    open_catalogue(s);
}

static void after_an_abort_what_was_committed_is_there_and_no_number_comes_again(void **state)
{
    struct side ann;
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    run(&ann);
    uint64_t d = make_dir(&ann, INO_ROOT, "kept");
    assert_int_equal(catalogue_commit(ann.catalogue, true), 0);
    uint64_t sent = make_dir(&ann, INO_ROOT, "sent");
    run(&ann);
    disconnect_side(&ann);
    crash(&ann);
    assert_int_equal(at(&ann, "/kept")->ino, d);
    assert_int_equal(at(&ann, "/sent")->ino, sent); /* nothing leaves that is not committed */
    uint64_t lost = make_dir(&ann, INO_ROOT, "neither");
    crash(&ann);
    assert_null(at(&ann, "/neither"));
    connect_side(&ann);
    uint64_t next = make_dir(&ann, INO_ROOT, "new");
    assert_true(next > lost); /* a kernel may still know the old number */
    run(&ann);
    assert_same(&ann);
    for (size_t i = 0; i < tracker.answer_count; i++)
        for (size_t k = 0; k < i; k++)
            assert_true(tracker.answers[i].op != tracker.answers[k].op);
    side_end(&ann);
}

static void an_answer_that_was_lost_changes_nothing_twice(void **state)
{
    struct side ann;
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    run(&ann);
    make_dir(&ann, INO_ROOT, "d");
    assert_true(send_one(&ann));
    disconnect_side(&ann); /* with the answer */
    uint64_t seq = tracker.seq;
    connect_side(&ann);
    run(&ann);
    assert_int_equal(tracker.seq, seq);
    assert_same(&ann);
    side_end(&ann);
}

static void errors_are_those_of_a_file_system(void **state)
{
    struct side ann;
    uint64_t ino;
    char long_name[300];
    memset(long_name, 'x', 299);
    long_name[299] = '\0';
    side_begin(&ann, &tracker, 1, "ann");
    struct catalogue *c = ann.catalogue;
    uint64_t d = make_dir(&ann, INO_ROOT, "d"), e = make_dir(&ann, d, "e"),
             f = make_file(&ann, INO_ROOT, "f", 1);
    assert_int_equal(catalogue_mkdir(c, INO_ROOT, "d", 0755, NOW, &ino), -EEXIST);
    assert_int_equal(catalogue_mkdir(c, f, "x", 0755, NOW, &ino), -ENOTDIR);
    assert_int_equal(catalogue_mkdir(c, 99999, "x", 0755, NOW, &ino), -ENOENT);
    assert_int_equal(catalogue_mkdir(c, INO_ROOT, "a/b", 0755, NOW, &ino), -EINVAL);
    assert_int_equal(catalogue_mkdir(c, INO_ROOT, "..", 0755, NOW, &ino), -EINVAL);
    assert_int_equal(catalogue_mkdir(c, INO_ROOT, long_name, 0755, NOW, &ino), -ENAMETOOLONG);
    assert_int_equal(catalogue_symlink(c, INO_ROOT, "l", "", NOW, &ino), -ENOENT);
    assert_int_equal(catalogue_symlink(c, INO_ROOT, "l", "a\nb", NOW, &ino), -EINVAL);
    assert_int_equal(catalogue_remove(c, INO_ROOT, "d", true), -ENOTEMPTY);
    assert_int_equal(catalogue_remove(c, INO_ROOT, "d", false), -EISDIR);
    assert_int_equal(catalogue_remove(c, INO_ROOT, "f", true), -ENOTDIR);
    assert_int_equal(catalogue_remove(c, INO_ROOT, "none", false), -ENOENT);
    assert_int_equal(move_entry(&ann, INO_ROOT, "d", e, "x"), -EINVAL);
    assert_int_equal(move_entry(&ann, INO_ROOT, "d", INO_ROOT, "f"), -ENOTDIR);
    assert_int_equal(move_entry(&ann, INO_ROOT, "f", INO_ROOT, "d"), -EISDIR);
    assert_int_equal(move_entry(&ann, INO_ROOT, "f", INO_ROOT, "f"), 0);
    assert_int_equal(catalogue_attr(c, INO_ROOT, NULL, &(int64_t){5}), -EPERM);
    for (uint64_t at_depth = d, depth = 1;; depth++) {
        int error = catalogue_mkdir(c, at_depth, "deeper", 0755, NOW, &ino);
        if (depth == NAME_DEPTH_MAX) {
            assert_int_equal(error, -ENAMETOOLONG);
            break;
        }
        assert_int_equal(error, 0);
        at_depth = ino;
    }
    assert_int_equal(move_entry(&ann, INO_ROOT, "d", INO_ROOT, "same depth"), 0);
    make_dir(&ann, INO_ROOT, "one more");
    assert_int_equal(move_entry(&ann, INO_ROOT, "same depth", at(&ann, "/one more")->ino, "x"),
                     -ENAMETOOLONG);
    sides[0] = &ann;
    connect_side(&ann);
    run(&ann);
    assert_same(&ann);
    side_end(&ann);
}

static void a_listing_goes_on_where_it_was_whatever_happens_to_its_directory(void **state)
{
    struct side ann;
    char name[32];
    uint64_t cookie = 0, before;
    bool seen[200] = {false};
    side_begin(&ann, &tracker, 1, "ann");
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "%d", i);
        make_dir(&ann, INO_ROOT, name);
    }
    const struct node *node;
    for (int step = 0;
         (node = catalogue_next(ann.catalogue, catalogue_node(ann.catalogue, INO_ROOT), &cookie)) !=
         NULL;
         step++) {
        int i = (int)strtol(node->name, NULL, 10);
        assert_false(seen[i]);
        seen[i] = true;
        assert_true(cookie > 15);
        before = cookie;
        if (step % 3 ==
            0) { /* the one just seen goes, one seen before is renamed, one far ahead goes */
            snprintf(name, sizeof name, "%d", i);
            assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, name, true), 0);
        }
        if (step == 10)
            assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "90", true), 0);
        assert_true(cookie == before);
    }
    for (int i = 0; i < 100; i++)
        assert_true(seen[i] == (i != 90));
    side_end(&ann);
}

/* --- working files ---------------------------------------------------------------------------------------- */

static void a_file_being_written_is_nobody_elses_business(void **state)
{
    struct side ann;
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "draft", 0600, NOW, &ino), 0);
    assert_true(at(&ann, "/draft")->working);
    assert_int_equal(move_entry(&ann, INO_ROOT, "draft", INO_ROOT, "letter"), 0);
    assert_int_equal(catalogue_attr(ann.catalogue, ino, &(uint32_t){0644}, NULL), 0);
    run(&ann);
    assert_int_equal(tracker.count, 0);
    make_root(root, 9);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 9, NOW, NOW), 0);
    run(&ann);
    assert_same(&ann);
    assert_true(has_content(&ann, "/letter", 9));
    assert_int_equal(at(&ann, "/letter")->mode, 0644);
    assert_int_equal(at(&ann, "/letter")->ino, ino);
    side_end(&ann);
}

static void an_editor_replaces_a_file_by_renaming_over_it_before_or_after_closing(void **state)
{
    struct side ann;
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    make_file(&ann, INO_ROOT, "text", 1);
    run(&ann);
    uint64_t id = at(&ann, "/text")->id;
    make_file(&ann, INO_ROOT, "text.new", 2); /* closed, published, then renamed */
    run(&ann);
    assert_int_equal(move_entry(&ann, INO_ROOT, "text.new", INO_ROOT, "text"), 0);
    run(&ann);
    assert_same(&ann);
    assert_true(has_content(&ann, "/text", 2));
    assert_int_not_equal(at(&ann, "/text")->id, id);
    id = at(&ann, "/text")->id;
    make_file(&ann, INO_ROOT, "text.new", 4); /* closed, and renamed before it left */
    assert_int_equal(move_entry(&ann, INO_ROOT, "text.new", INO_ROOT, "text"), 0);
    assert_int_equal(catalogue_pending(ann.catalogue), 1);
    uint64_t seq = tracker.seq;
    run(&ann);
    assert_same(&ann);
    assert_true(has_content(&ann, "/text", 4));
    assert_int_equal(at(&ann, "/text")->id, id); /* published once, and in one step */
    assert_int_equal(tracker.seq, seq + 1);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "text.new", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "text.new", INO_ROOT, "text"),
                     0); /* renamed, then closed */
    run(&ann);
    assert_int_equal(ref_find(&tracker, 1, "text")->size, 4); /* others still see the old one */
    make_root(root, 3);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 3, NOW, NOW), 0);
    run(&ann);
    assert_same(&ann);
    assert_true(has_content(&ann, "/text", 3));
    assert_int_equal(at(&ann, "/text")->id, id); /* one step: the tracker replaced it */
    assert_int_equal(at(&ann, "/text")->ino, ino);
    check_invariants(&ann);
    side_end(&ann);
}

static void giving_up_a_file_that_took_a_name_brings_the_old_one_back(void **state)
{
    struct side ann;
    uint64_t ino;
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    uint64_t old = make_file(&ann, INO_ROOT, "text", 1);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    restart(&ann);
    connect_side(&ann);
    assert_int_equal(at(&ann, "/text")->ino, ino);
    catalogue_write_abandon(ann.catalogue, ino);
    assert_int_equal(at(&ann, "/text")->ino, old);
    run(&ann);
    assert_same(&ann);
    side_end(&ann);
}

static void assert_no_conflicts(struct side *s)
{
    for (uint64_t ino = 16; ino < s->catalogue->next_ino; ino++) {
        const struct entry *e = tree_find(s->catalogue, BY_INO, ino);
        if (e != NULL && tree_is_linked(s->catalogue, e))
            assert_null(strstr(e->node.name, "(conflict "));
    }
}

/* Renamed over a file, and gone from there before it was closed: that file was replaced all the same. */
static void what_a_file_being_written_replaced_is_gone_when_it_leaves(void **state)
{
    struct side ann;
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    make_file(&ann, INO_ROOT, "text", 1);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "text", false), 0);
    assert_null(at(&ann, "/text"));
    run(&ann);
    assert_null(at(&ann, "/text"));
    assert_same(&ann);

    make_file(&ann, INO_ROOT, "text", 2);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "text", INO_ROOT, "other"), 0);
    assert_null(at(&ann, "/text"));
    make_root(root, 3);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 3, NOW, NOW), 0);
    run(&ann);
    assert_null(at(&ann, "/text"));
    assert_true(has_content(&ann, "/other", 3));
    assert_same(&ann);

    /* Removed once more before the tracker has answered its publication: the one below does not come back. */
    make_file(&ann, INO_ROOT, "below", 6);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "below"), 0);
    make_root(root, 7);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 7, NOW, NOW), 0);
    assert_true(send_one(&ann));
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "below", false), 0);
    make_file(&ann, INO_ROOT, "another", 8); /* what is hidden is tried again */
    assert_null(at(&ann, "/below"));
    run(&ann);
    assert_null(at(&ann, "/below"));
    assert_same(&ann);
    side_end(&ann);
}

static void what_a_file_being_written_replaced_is_known_after_a_restart(void **state)
{
    struct side ann;
    uint64_t ino, second;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    make_file(&ann, INO_ROOT, "text", 1);
    make_file(&ann, INO_ROOT, "other", 2);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &second), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "other"), 0);
    disconnect_side(&ann);
    restart(&ann);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "text", false), 0);
    assert_null(at(&ann, "/text"));
    assert_int_equal(move_entry(&ann, INO_ROOT, "other", INO_ROOT, "moved"), 0);
    assert_null(at(&ann, "/other"));
    make_root(root, 3);
    assert_int_equal(catalogue_publish(ann.catalogue, second, root, 3, NOW, NOW), 0);
    connect_side(&ann);
    run(&ann);
    assert_null(at(&ann, "/text"));
    assert_null(at(&ann, "/other"));
    assert_true(has_content(&ann, "/moved", 3));
    assert_same(&ann);
    side_end(&ann);
}

static void run_sql(const char *path, const char *text)
{
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void a_data_base_of_an_earlier_version_is_brought_up_to_date(void **state)
{
    static const char *const older[] = {
        "ALTER TABLE entry DROP COLUMN covers; PRAGMA user_version = 2",
        "ALTER TABLE entry DROP COLUMN covers; ALTER TABLE entry DROP COLUMN xattrs; "
        "PRAGMA user_version = 1"};
    struct side ann;
    uint64_t ino;
    for (size_t i = 0; i < sizeof older / sizeof *older; i++) {
        side_begin(&ann, &tracker, 1, "ann");
        make_file(&ann, make_dir(&ann, INO_ROOT, "d"), "f", 1);
        size_t pending = catalogue_pending(ann.catalogue);
        catalogue_close(ann.catalogue);
        run_sql(ann.path, older[i]);
        open_catalogue(&ann);
        assert_true(has_content(&ann, "/d/f", 1));
        assert_int_equal(catalogue_pending(ann.catalogue), pending);
        assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "new", 0644, NOW, &ino), 0);
        restart(&ann);
        assert_non_null(at(&ann, "/new"));
        side_end(&ann);
    }
}

static void what_takes_the_place_of_a_file_being_written_replaces_what_that_replaced(void **state)
{
    struct side ann;
    uint64_t ino, second;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    make_file(&ann, INO_ROOT, "text", 1);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &second), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    make_root(root, 4);
    assert_int_equal(catalogue_publish(ann.catalogue, second, root, 4, NOW, NOW), 0);
    run(&ann);
    assert_true(has_content(&ann, "/text", 4));
    assert_no_conflicts(&ann);
    assert_same(&ann);

    make_file(&ann, INO_ROOT, "known", 5);
    run(&ann);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "text"), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "known", INO_ROOT, "text"), 0);
    run(&ann);
    assert_true(has_content(&ann, "/text", 5));
    assert_no_conflicts(&ann);
    assert_same(&ann);
    side_end(&ann);
}

static void a_file_removed_while_it_is_written_is_published_nowhere(void **state)
{
    struct side ann;
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    side_begin(&ann, &tracker, 1, "ann");
    sides[0] = &ann;
    connect_side(&ann);
    make_root(root, 3);
    assert_int_equal(catalogue_create(ann.catalogue, INO_ROOT, "tmp", 0644, NOW, &ino), 0);
    catalogue_open_node(ann.catalogue, ino);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "tmp", false), 0);
    assert_null(at(&ann, "/tmp"));
    assert_non_null(catalogue_node(ann.catalogue, ino));
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 3, NOW, NOW), -ENOENT);
    catalogue_close_node(ann.catalogue, ino);
    assert_null(catalogue_node(ann.catalogue, ino));
    /* The same for a new version of a published one. */
    ino = make_file(&ann, INO_ROOT, "f", 1);
    run(&ann);
    assert_int_equal(catalogue_write_begin(ann.catalogue, ino), 0);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "f", false), 0);
    run(&ann);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 3, NOW, NOW), -ENOENT);
    run(&ann);
    assert_same(&ann);
    assert_int_equal(catalogue_entries(ann.catalogue), 0);
    side_end(&ann);
}

/* --- two members ------------------------------------------------------------------------------------------ */

static struct side ann, bob;

static int set_up_two(void **state)
{
    set_up(state);
    side_begin(&ann, &tracker, 1, "ann");
    side_begin(&bob, &tracker, 2, "bob");
    sides[0] = &ann;
    sides[1] = &bob;
    connect_side(&ann);
    connect_side(&bob);
    run(&ann);
    run(&bob);
    return 0;
}

static int tear_down_two(void **state)
{
    side_end(&ann);
    side_end(&bob);
    return 0;
}

static void settle_both(void)
{
    for (int i = 0; i < 8; i++) {
        run(&ann);
        run(&bob);
    }
    check_invariants(&ann);
    check_invariants(&bob);
    assert_same(&ann);
    assert_same(&bob);
}

static void what_one_makes_the_other_sees(void **state)
{
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_file(&ann, d, "f", 1);
    bob.invalid_names = 0;
    settle_both();
    assert_true(has_content(&bob, "/d/f", 1));
    assert_string_equal(at(&bob, "/d/f")->owner, "ann");
    assert_true(bob.invalid_names >= 2);
    assert_int_equal(move_entry(&bob, at(&bob, "/d")->ino, "f", INO_ROOT, "g"), 0);
    settle_both();
    assert_true(has_content(&ann, "/g", 1));
}

static void
another_members_version_gets_a_new_ino_and_who_has_the_old_one_open_keeps_it(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    settle_both();
    uint64_t old = at(&bob, "/f")->ino, own = at(&ann, "/f")->ino;
    catalogue_open_node(bob.catalogue, old);
    rewrite(&ann, own, 2);
    settle_both();
    assert_int_equal(at(&ann, "/f")->ino, own); /* one's own version keeps it */
    assert_true(has_content(&bob, "/f", 2));
    assert_int_not_equal(at(&bob, "/f")->ino, old);
    const struct node *detached = catalogue_node(bob.catalogue, old);
    assert_non_null(detached);
    assert_null(detached->parent);
    assert_int_equal(detached->size, 1);
    unsigned unused = bob.unused;
    catalogue_close_node(bob.catalogue, old);
    assert_null(catalogue_node(bob.catalogue, old));
    assert_int_equal(bob.unused, unused + 1);
}

static void two_who_publish_under_one_name_both_keep_their_content(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    uint64_t ino = make_file(&bob, INO_ROOT, "f", 2);
    run(&bob); /* first */
    run(&ann);
    settle_both();
    assert_true(has_content(&ann, "/f", 2));
    assert_true(has_content(&ann, "/f" CONFLICT, 1));
    assert_true(has_content(&bob, "/f" CONFLICT, 1));
    assert_int_equal(at(&bob, "/f")->ino, ino);
}

static void
two_new_versions_of_one_file_are_both_kept_and_the_one_beside_keeps_its_ino(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    settle_both();
    disconnect_side(&ann);
    uint64_t ino = at(&ann, "/f")->ino;
    catalogue_open_node(ann.catalogue, ino);
    rewrite(&ann, ino, 10);
    rewrite(&bob, at(&bob, "/f")->ino, 20);
    run(&bob);
    connect_side(&ann);
    settle_both();
    assert_true(has_content(&bob, "/f", 20));
    assert_true(has_content(&bob, "/f" CONFLICT, 10));
    assert_int_equal(at(&ann, "/f" CONFLICT)->ino, ino);
    assert_int_equal(at(&ann, "/f" CONFLICT)->opens, 1);
    assert_int_not_equal(at(&ann, "/f")->ino, ino);
}

static void two_versions_in_a_row_refused_leave_only_the_last_beside(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    settle_both();
    disconnect_side(&ann);
    rewrite(&ann, at(&ann, "/f")->ino, 10);
    rewrite(&ann, at(&ann, "/f")->ino, 11);
    rewrite(&bob, at(&bob, "/f")->ino, 20);
    run(&bob);
    connect_side(&ann);
    settle_both();
    assert_true(has_content(&ann, "/f", 20));
    assert_true(has_content(&ann, "/f" CONFLICT, 11));
    assert_int_equal(catalogue_entries(ann.catalogue), 2);
}

static void a_directory_made_by_two_is_one_with_the_files_of_both(void **state)
{
    disconnect_side(&ann);
    uint64_t d = make_dir(&ann, INO_ROOT, "photos"), e = make_dir(&ann, d, "2026");
    make_file(&ann, e, "a", 1);
    uint64_t x = make_dir(&bob, INO_ROOT, "photos"), y = make_dir(&bob, x, "2026");
    make_file(&bob, y, "b", 2);
    run(&bob);
    connect_side(&ann);
    settle_both();
    assert_true(has_content(&bob, "/photos/2026/a", 1));
    assert_true(has_content(&ann, "/photos/2026/b", 2));
    assert_int_equal(at(&ann, "/photos")->ino, d);
    assert_int_equal(catalogue_entries(ann.catalogue), 4);
}

static void a_file_put_into_a_directory_that_another_removes_makes_it_come_back(void **state)
{
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_dir(&ann, d, "e");
    settle_both();
    disconnect_side(&ann);
    make_file(&ann, at(&ann, "/d/e")->ino, "f", 1);
    assert_int_equal(catalogue_remove(bob.catalogue, at(&bob, "/d")->ino, "e", true), 0);
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "d", true), 0);
    run(&bob);
    connect_side(&ann);
    settle_both();
    assert_true(has_content(&bob, "/d/e/f", 1));
    assert_int_equal(at(&ann, "/d")->ino, d);
}

static void a_file_being_written_in_a_removed_directory_is_published_all_the_same(void **state)
{
    uint64_t ino;
    uint8_t root[HASH_SIZE];
    make_dir(&ann, INO_ROOT, "d");
    settle_both();
    assert_int_equal(catalogue_create(ann.catalogue, at(&ann, "/d")->ino, "f", 0644, NOW, &ino), 0);
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "d", true), 0);
    run(&bob);
    run(&ann);
    make_root(root, 4);
    assert_int_equal(catalogue_publish(ann.catalogue, ino, root, 4, NOW, NOW), 0);
    settle_both();
    assert_true(has_content(&bob, "/d/f", 4));
}

static void a_new_version_of_what_another_removed_or_replaced_meanwhile_is_kept(void **state)
{
    uint8_t root[HASH_SIZE];
    make_file(&ann, INO_ROOT, "removed", 1);
    make_file(&ann, INO_ROOT, "replaced", 2);
    settle_both();
    uint64_t removed = at(&ann, "/removed")->ino, replaced = at(&ann, "/replaced")->ino;
    assert_int_equal(catalogue_write_begin(ann.catalogue, removed), 0);
    assert_int_equal(catalogue_write_begin(ann.catalogue, replaced), 0);
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "removed", false), 0);
    rewrite(&bob, at(&bob, "/replaced")->ino, 20);
    settle_both();
    assert_null(at(&ann, "/removed"));
    make_root(root, 10);
    assert_int_equal(catalogue_publish(ann.catalogue, removed, root, 10, NOW, NOW), 0);
    make_root(root, 11);
    assert_int_equal(catalogue_publish(ann.catalogue, replaced, root, 11, NOW, NOW), 0);
    settle_both();
    assert_true(has_content(&bob, "/removed", 10));
    assert_true(has_content(&bob, "/replaced", 20));
    assert_true(has_content(&bob, "/replaced" CONFLICT, 11));
}

static void a_refused_removal_is_undone_and_a_refused_rename_goes_beside(void **state)
{
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_file(&ann, INO_ROOT, "x", 1);
    settle_both();
    disconnect_side(&ann);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "d", true), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "x", INO_ROOT, "d"), 0);
    assert_true(has_content(&ann, "/d", 1));
    make_file(&bob, at(&bob, "/d")->ino, "f", 2);
    run(&bob);
    connect_side(&ann);
    settle_both();
    assert_int_equal(at(&ann, "/d")->ino, d);
    assert_true(has_content(&ann, "/d/f", 2));
    assert_true(has_content(&ann, "/d" CONFLICT, 1));
    assert_null(at(&ann, "/x"));
}

/* --- what has not left is taken together ----------------------------------------------------------------- */

static unsigned ops_to_send(struct side *s)
{
    return (unsigned)catalogue_pending(s->catalogue);
}

static void what_is_made_and_changed_within_a_moment_is_one_operation_or_none(void **state)
{
    uint64_t seq = tracker.seq;
    uint64_t f = make_file(&ann, INO_ROOT, "f", 1);
    assert_int_equal(catalogue_attr(ann.catalogue, f, &(uint32_t){0600}, &(int64_t){5}), 0);
    rewrite(&ann, f, 2);
    assert_int_equal(move_entry(&ann, INO_ROOT, "f", INO_ROOT, "g"), 0);
    assert_int_equal(ops_to_send(&ann), 1);
    make_file(&ann, INO_ROOT, "tmp", 3);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "tmp", false), 0);
    make_file(&ann, INO_ROOT, "a", 4);
    make_file(&ann, INO_ROOT, "b", 5);
    assert_int_equal(move_entry(&ann, INO_ROOT, "a", INO_ROOT, "b"), 0);
    assert_int_equal(ops_to_send(&ann), 2);
    settle_both();
    assert_int_equal(tracker.seq, seq + 2);
    assert_true(has_content(&bob, "/g", 2));
    assert_int_equal(at(&bob, "/g")->mode, 0600);
    assert_true(has_content(&bob, "/b", 4));
    assert_int_equal(catalogue_entries(bob.catalogue), 2);
    rewrite(&ann, f, 6); /* a version of what is published */
    rewrite(&ann, f, 7);
    assert_int_equal(ops_to_send(&ann), 1);
    settle_both();
    assert_true(has_content(&bob, "/g", 7));
}

static void what_replaced_a_file_before_it_left_still_replaces_it_when_it_moves_on(void **state)
{
    make_file(&ann, INO_ROOT, "old", 1);
    settle_both();
    make_file(&ann, INO_ROOT, "tmp", 2);
    assert_int_equal(move_entry(&ann, INO_ROOT, "tmp", INO_ROOT, "old"), 0);
    assert_int_equal(move_entry(&ann, INO_ROOT, "old", INO_ROOT, "new"), 0);
    settle_both();
    assert_null(at(&bob, "/old"));
    assert_true(has_content(&bob, "/new", 2));
}

static void operations_linger_for_a_moment_and_leave_in_order(void **state)
{
    int64_t due, now = 1000;
    size_t size;
    make_file(&ann, INO_ROOT, "first", 1);
    assert_null(catalogue_next_op(ann.catalogue, now, &due, &size));
    assert_true(due == now + JOURNAL_LINGER_NS);
    make_dir(&ann, INO_ROOT, "second");
    now = due;
    uint8_t *packed = catalogue_next_op(ann.catalogue, now, &due, &size);
    assert_non_null(packed);
    free(packed);
    assert_null(catalogue_next_op(ann.catalogue, now, &due, &size));
    assert_true(due == now + JOURNAL_LINGER_NS);
    packed = catalogue_next_op(ann.catalogue, due, &due, &size);
    assert_non_null(packed);
    free(packed);
    assert_null(catalogue_next_op(ann.catalogue, now, &due, &size));
    assert_true(due == 0);
}

/* --- two members, one name: every pair of the table in catalogue.h --------------------------------------- */

/* bob is away; each does one thing; bob comes back. */
enum deed {
    CREATE_N,
    WRITE_F,
    REMOVE_F,
    F_TO_A,
    F_TO_B,
    F_OVER_G,
    MKDIR_N,
    RMDIR_D,
    CREATE_IN_D,
    LINK_N,
    DEEDS
};

static void do_deed(struct side *s, enum deed deed, unsigned content)
{
    uint64_t ino;
    const struct node *f = at(s, "/f");
    switch (deed) {
    case CREATE_N:
        make_file(s, INO_ROOT, "n", content);
        break;
    case WRITE_F:
        rewrite(s, f->ino, content);
        break;
    case REMOVE_F:
        assert_int_equal(catalogue_remove(s->catalogue, INO_ROOT, "f", false), 0);
        break;
    case F_TO_A:
        assert_int_equal(move_entry(s, INO_ROOT, "f", INO_ROOT, "a"), 0);
        break;
    case F_TO_B:
        assert_int_equal(move_entry(s, INO_ROOT, "f", INO_ROOT, "n"), 0);
        break;
    case F_OVER_G:
        assert_int_equal(move_entry(s, INO_ROOT, "f", INO_ROOT, "g"), 0);
        break;
    case MKDIR_N:
        make_dir(s, INO_ROOT, "n");
        break;
    case RMDIR_D:
        assert_int_equal(catalogue_remove(s->catalogue, INO_ROOT, "d", true), 0);
        break;
    case CREATE_IN_D:
        make_file(s, at(s, "/d")->ino, "in", content);
        break;
    case LINK_N:
        assert_int_equal(catalogue_symlink(s->catalogue, INO_ROOT, "n", "target", NOW, &ino), 0);
        break;
    default:
        fail();
    }
}

static unsigned count_content(struct side *s, unsigned content)
{
    uint8_t root[HASH_SIZE];
    const struct node *node = NULL;
    unsigned count = 0;
    make_root(root, content);
    while ((node = catalogue_with_root(s->catalogue, root, node)) != NULL)
        count += catalogue_is_attached(s->catalogue, node);
    return count;
}

static bool writes(enum deed deed)
{
    return deed == CREATE_N || deed == WRITE_F || deed == CREATE_IN_D;
}

static void whatever_two_members_do_to_the_same_names_nothing_written_is_lost(void **state)
{
    for (int first = 0; first < DEEDS; first++) {
        for (int second = 0; second < DEEDS; second++) {
            tear_down_two(NULL);
            set_up_two(NULL);
            make_file(&ann, INO_ROOT, "f", 1);
            make_file(&ann, INO_ROOT, "g", 2);
            make_dir(&ann, INO_ROOT, "d");
            settle_both();
            disconnect_side(&bob);
            do_deed(&ann, first, 10);
            run(&ann);
            do_deed(&bob, second, 20);
            connect_side(&bob);
            settle_both();
            assert_same(&ann);
            assert_same(&bob);
            check_invariants(&bob);
            if (writes(first) && count_content(&bob, 10) != 1)
                fail_msg("deeds %d, %d: what ann wrote is lost", first, second);
            if (writes(second) && count_content(&bob, 20) != 1)
                fail_msg("deeds %d, %d: what bob wrote is lost", first, second);
        }
    }
}

static void a_new_version_outlives_a_removal_by_one_who_had_not_seen_it(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    make_file(&ann, INO_ROOT, "g", 2);
    settle_both();
    disconnect_side(&bob);
    rewrite(&ann, at(&ann, "/f")->ino, 3);
    rewrite(&ann, at(&ann, "/g")->ino, 4);
    run(&ann);
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "f", false), 0);
    make_file(&bob, INO_ROOT, "h", 5);
    assert_int_equal(catalogue_attr(bob.catalogue, INO_ROOT, NULL, NULL), -EPERM);
    connect_side(&bob);
    settle_both();
    assert_true(has_content(&bob, "/f", 3));
    disconnect_side(&bob);
    rewrite(&ann, at(&ann, "/g")->ino, 6);
    run(&ann);
    assert_int_equal(move_entry(&bob, INO_ROOT, "h", INO_ROOT, "g"), 0);
    connect_side(&bob);
    settle_both();
    assert_true(has_content(&ann, "/g", 6));
    assert_true(has_content(&ann, "/g (conflict bob 2026-09-21 1413)", 5));
    assert_null(at(&ann, "/h"));
}

static void what_is_pushed_about_an_entry_of_ours_is_held_back(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    settle_both();
    assert_int_equal(catalogue_attr(ann.catalogue, at(&ann, "/f")->ino, &(uint32_t){0600}, NULL),
                     0);
    assert_int_equal(catalogue_attr(bob.catalogue, at(&bob, "/f")->ino, &(uint32_t){0640}, NULL),
                     0);
    run(&bob);
    while (hear_push(&ann))
        ;
    assert_int_equal(at(&ann, "/f")->mode, 0600);
    disconnect_side(&ann);
    restart(&ann);
    assert_int_equal(at(&ann, "/f")->mode, 0600);
    connect_side(&ann);
    settle_both();
    assert_int_equal(at(&bob, "/f")->mode, 0600);
}

static void a_push_that_comes_before_its_answer_makes_no_second_entry(void **state)
{
    uint64_t ino = make_file(&ann, INO_ROOT, "f", 1), d = make_dir(&ann, INO_ROOT, "d");
    while (send_one(&ann))
        ;
    run(&bob);
    make_file(&bob, at(&bob, "/d")->ino, "inside", 2);
    while (send_one(&bob))
        ;
    while (hear_push(&ann)) /* all pushes, no answer */
        ;
    assert_int_equal(catalogue_entries(ann.catalogue),
                     3); /* f, d, and what is under the hidden twin of d */
    assert_int_equal(at(&ann, "/f")->ino, ino);
    settle_both();
    assert_int_equal(at(&ann, "/f")->ino, ino);
    assert_int_equal(at(&ann, "/d")->ino, d);
    assert_true(has_content(&ann, "/d/inside", 2));
}

static void what_nobody_waits_for_is_kept_until_the_tracker_has_room(void **state)
{
    tracker.full = TRACKER__OP_STATUS__OP_FULL;
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_file(&ann, d, "f", 1);
    for (int i = 0; i < 4; i++)
        run(&ann);
    assert_true(has_content(&ann, "/d/f", 1));
    assert_int_equal(catalogue_pending(ann.catalogue), 2);
    tracker.full = 0;
    disconnect_side(&ann);
    restart(&ann);
    connect_side(&ann);
    settle_both();
    assert_true(has_content(&bob, "/d/f", 1));
}

static void an_account_that_has_all_it_may_makes_nothing_for_a_moment(void **state)
{
    struct catalogue *c = ann.catalogue;
    uint64_t ino;
    tracker.full = TRACKER__OP_STATUS__OP_QUOTA;
    make_dir(&ann, INO_ROOT, "a");
    run(&ann);
    assert_int_equal(catalogue_mkdir(c, INO_ROOT, "b", 0755, NOW, &ino), -EDQUOT);
    assert_int_equal(catalogue_symlink(c, INO_ROOT, "b", "a", NOW + QUOTA_AGAIN_NS - 1, &ino),
                     -EDQUOT);
    assert_int_equal(catalogue_create(c, INO_ROOT, "b", 0644, NOW + QUOTA_AGAIN_NS, &ino), 0);
    catalogue_write_abandon(c, ino);
    /* Nor for longer after a clock was set back. */
    assert_int_equal(catalogue_create(c, INO_ROOT, "c", 0644, NOW - NS_PER_S, &ino), 0);
    catalogue_write_abandon(c, ino);
    tracker.full = 0;
    disconnect_side(&ann);
    connect_side(&ann);
    run(&ann);
    make_dir(&ann, INO_ROOT, "d"); /* taken: there is room again */
    settle_both();
}

static void a_content_without_any_name_is_said_to_be_unused_once(void **state)
{
    make_file(&ann, INO_ROOT, "a", 1);
    make_file(&ann, INO_ROOT, "b", 1);
    settle_both();
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "a", false), 0);
    settle_both();
    assert_int_equal(ann.unused, 0);
    assert_int_equal(catalogue_remove(ann.catalogue, INO_ROOT, "b", false), 0);
    settle_both();
    assert_int_equal(ann.unused, 1);
    assert_int_equal(bob.unused, 1);
}

/* --- resync ----------------------------------------------------------------------------------------------- */

static void
a_resync_keeps_the_inos_of_what_is_the_same_and_invalidates_only_differences(void **state)
{
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_file(&ann, d, "same", 1);
    make_file(&ann, d, "other", 2);
    make_file(&ann, d, "gone", 3);
    settle_both();
    uint64_t same = at(&bob, "/d/same")->ino, other = at(&bob, "/d/other")->ino;
    disconnect_side(&bob);
    rewrite(&ann, at(&ann, "/d/other")->ino, 22);
    assert_int_equal(catalogue_remove(ann.catalogue, at(&ann, "/d")->ino, "gone", false), 0);
    make_file(&ann, d, "new", 4);
    run(&ann);
    bob.online = true;
    bob.invalid_attrs = bob.invalid_names = 0;
    queue_add(&bob.pushes)->changes = ref_since(&tracker, 0, true);
    settle_both();
    assert_int_equal(at(&bob, "/d/same")->ino, same);
    assert_int_not_equal(at(&bob, "/d/other")->ino, other);
    assert_null(at(&bob, "/d/gone"));
    assert_true(has_content(&bob, "/d/new", 4));
    assert_true(bob.invalid_names <= 4);
}

static void an_answer_older_than_a_resync_brings_nothing_back(void **state)
{
    make_file(&ann, INO_ROOT, "f", 1);
    settle_both();
    uint64_t f = at(&ann, "/f")->ino;
    assert_int_equal(catalogue_attr(ann.catalogue, f, &(uint32_t){0600}, NULL), 0);
    assert_true(send_one(&ann)); /* its answer is on the way */
    assert_int_equal(catalogue_attr(ann.catalogue, f, &(uint32_t){0640}, NULL), 0);
    while (hear_push(&bob))
        ;
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "f", false), 0);
    run(&bob);
    queue_clear(&ann.pushes);
    queue_add(&ann.pushes)->changes = ref_since(&tracker, 0, true);
    while (hear_push(&ann))
        ;
    settle_both();
    assert_null(at(&ann, "/f"));
    assert_same(&ann);
}

/* It was true when it was given, and the tracker says all again before it is heard. */
static void what_only_an_answer_named_in_a_resync_goes_if_the_resync_passes_it(void **state)
{
    make_file(&ann, INO_ROOT, "a", 1);
    settle_both();
    make_file(&bob, INO_ROOT, "f", 2);
    run(&bob);
    make_dir(&ann, INO_ROOT, "f");
    assert_true(send_one(&ann)); /* the answer names bob's */
    assert_int_equal(catalogue_remove(bob.catalogue, INO_ROOT, "f", false), 0);
    run(&bob);
    make_file(&ann, INO_ROOT, "new", 3);
    queue_clear(&ann.pushes);
    Tracker__Changes *all = ref_since(&tracker, 0, true), *first = ref_since(&tracker, 0, true);
    first->live = false;
    first->seq = 1;
    all->from_scratch = false;
    queue_add(&ann.pushes)->changes = first;
    queue_add(&ann.pushes)->changes = all;
    assert_true(hear_push(&ann));
    assert_true(hear_result(&ann));
    assert_true(send_one(&ann));
    assert_true(hear_result(&ann)); /* this one is ahead of it, and stays */
    uint64_t fresh = at(&ann, "/new")->ino;
    assert_true(hear_push(&ann));
    assert_null(catalogue_with_id(ann.catalogue, tracker.entries[1].id));
    settle_both();
    assert_int_equal(at(&ann, "/new")->ino, fresh);
    assert_same(&ann);
}

static void another_data_base_of_the_tracker_loses_nothing_of_ours(void **state)
{
    static struct ref fresh;
    uint64_t d = make_dir(&ann, INO_ROOT, "d");
    make_file(&ann, d, "old", 1);
    settle_both();
    disconnect_side(&ann);
    uint64_t mine = make_file(&ann, d, "mine", 2);
    uint64_t e = make_dir(&ann, INO_ROOT, "e");
    make_file(&ann, e, "deep", 3);
    /* The new data base knows /d with its file under other numbers, and something new. */
    memset(&fresh, 0, sizeof fresh);
    memset(fresh.generation, 9, 16);
    ann.tracker = bob.tracker = &fresh;
    disconnect_side(&bob);
    restart(&ann);
    Tracker__Op op = TRACKER__OP__INIT;
    uint8_t root[HASH_SIZE];
    op.op = 1;
    op.parent = 1;
    op.name = (char *)(uintptr_t) "x";
    op.kind = TRACKER__OP_KIND__OP_MKDIR;
    tracker__result__free_unpacked(ref_apply(&fresh, 3, "cyd", &op), NULL);
    op.op = 2;
    op.name = (char *)(uintptr_t) "d";
    tracker__result__free_unpacked(ref_apply(&fresh, 3, "cyd", &op), NULL);
    op.op = 3;
    op.kind = TRACKER__OP_KIND__OP_PUBLISH;
    op.parent = 3;
    op.name = (char *)(uintptr_t) "old";
    make_root(root, 1);
    op.root.data = root;
    op.root.len = 32;
    op.size = 1;
    tracker__result__free_unpacked(ref_apply(&fresh, 3, "cyd", &op), NULL);
    uint64_t old = at(&ann, "/d/old")->ino;
    connect_side(&ann);
    connect_side(&bob);
    settle_both();
    assert_int_equal(at(&ann, "/d")->ino, d);
    assert_int_not_equal(at(&ann, "/d/old")->ino, old); /* its time is another one */
    assert_int_equal(at(&ann, "/d/mine")->ino, mine);
    assert_true(has_content(&bob, "/d/mine", 2));
    assert_true(has_content(&bob, "/e/deep", 3));
    assert_non_null(at(&bob, "/x"));
}

/* --- what comes from outside ------------------------------------------------------------------------------ */

struct hostile {
    Tracker__Entry e;
    const char *why;
};

static void say(struct side *s, Tracker__Entry *e, bool live)
{
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    static uint8_t generation[16] = {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7};
    changes.generation.data = generation;
    changes.generation.len = 16;
    changes.n_entries = e == NULL ? 0 : 1;
    changes.entries = &e;
    changes.live = live;
    changes.seq = e == NULL ? 0 : e->seq;
    catalogue_changes(s->catalogue, &changes, NOW);
    check_invariants(s);
}

static Tracker__Entry entry_of(uint64_t id, uint64_t parent, const char *name, Tracker__Kind kind)
{
    static uint8_t root[HASH_SIZE] = {1};
    Tracker__Entry e = TRACKER__ENTRY__INIT;
    static uint64_t seq = 1000;
    e.id = id;
    e.parent = parent;
    e.name = (char *)(uintptr_t)name;
    e.kind = kind;
    e.seq = ++seq;
    if (kind == TRACKER__KIND__KIND_FILE) {
        e.size = 1;
        e.root.data = root;
        e.root.len = HASH_SIZE;
    }
    if (kind == TRACKER__KIND__KIND_SYMLINK)
        e.target = (char *)(uintptr_t) "x";
    return e;
}

static void bad_entries_are_shown_nowhere(void **state)
{
    static const char *const names[] = {"",
                                        ".",
                                        "..",
                                        "a/b",
                                        "a\nb",
                                        "\xff\xfe",
                                        ("a\xe2\x80\xae"
                                         "b")};
    struct side s;
    char long_name[257];
    side_begin(&s, &tracker, 1, "ann");
    memset(long_name, 'n', 256);
    long_name[256] = '\0';
    uint64_t id = 100;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Tracker__Entry e = entry_of(id++, 1, names[i], TRACKER__KIND__KIND_DIRECTORY);
        say(&s, &e, true);
    }
    Tracker__Entry e = entry_of(id++, 1, long_name, TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    e = entry_of(id++, 1, "huge", TRACKER__KIND__KIND_FILE);
    e.size = FILE_SIZE_MAX + 1;
    say(&s, &e, true);
    e = entry_of(id++, 1, "short root", TRACKER__KIND__KIND_FILE);
    e.root.len = 31;
    say(&s, &e, true);
    e = entry_of(id++, 1, "no root", TRACKER__KIND__KIND_FILE);
    e.root.len = 0;
    say(&s, &e, true);
    e = entry_of(id++, 1, "empty with a root", TRACKER__KIND__KIND_FILE);
    e.size = 0;
    say(&s, &e, true);
    e = entry_of(id++, 1, "kind", (Tracker__Kind)9);
    say(&s, &e, true);
    e = entry_of(id++, 1, "no target", TRACKER__KIND__KIND_SYMLINK);
    e.target = (char *)(uintptr_t) "";
    say(&s, &e, true);
    e = entry_of(id++, 1, "a target that a terminal would obey", TRACKER__KIND__KIND_SYMLINK);
    e.target = (char *)(uintptr_t) "\x1b]0;x\x07";
    say(&s, &e, true);
    e = entry_of(id++, 1, "owner", TRACKER__KIND__KIND_DIRECTORY);
    e.owner = (char *)(uintptr_t) "../x";
    say(&s, &e, true);
    e = entry_of(1, 1, "root", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    e = entry_of(id, id, "itself", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    assert_int_equal(catalogue_entries(s.catalogue), 0);
    /* An entry that turns bad disappears; mode bits are masked. */
    e = entry_of(500, 1, "good", TRACKER__KIND__KIND_FILE);
    e.mode = 07777;
    say(&s, &e, true);
    assert_int_equal(at(&s, "/good")->mode, 0777);
    e = entry_of(500, 1, "..", TRACKER__KIND__KIND_FILE);
    say(&s, &e, true);
    assert_null(at(&s, "/good"));
    assert_int_equal(catalogue_entries(s.catalogue), 0);
    side_end(&s);
}

static void loops_strays_and_twins_do_no_harm(void **state)
{
    struct side s;
    side_begin(&s, &tracker, 1, "ann");
    /* a below b, b below a: neither can be reached */
    Tracker__Entry e = entry_of(10, 11, "a", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, false);
    e = entry_of(11, 10, "b", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    assert_null(at(&s, "/a"));
    /* a child long before its directory */
    e = entry_of(20, 21, "child", TRACKER__KIND__KIND_FILE);
    say(&s, &e, false);
    assert_null(at(&s, "/dir/child"));
    e = entry_of(21, 1, "dir", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    assert_non_null(at(&s, "/dir/child"));
    /* a file as directory */
    e = entry_of(22, 20, "below a file", TRACKER__KIND__KIND_FILE);
    say(&s, &e, true);
    /* two of one name: the later one is seen, and the other one when that goes */
    e = entry_of(30, 1, "twin", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    e = entry_of(31, 1, "twin", TRACKER__KIND__KIND_FILE);
    say(&s, &e, true);
    assert_int_equal(at(&s, "/twin")->id, 31);
    restart(&s);
    e = entry_of(31, 1, "", TRACKER__KIND__KIND_FILE);
    e.gone = true;
    say(&s, &e, true);
    assert_int_equal(at(&s, "/twin")->id, 30);
    /* a directory that goes while it has children, which come out later */
    e = entry_of(21, 1, "", TRACKER__KIND__KIND_DIRECTORY);
    e.gone = true;
    say(&s, &e, false);
    assert_null(at(&s, "/dir"));
    e = entry_of(20, 1, "saved", TRACKER__KIND__KIND_FILE);
    say(&s, &e, true);
    assert_non_null(at(&s, "/saved"));
    restart(&s);
    assert_non_null(at(&s, "/saved"));
    check_invariants(&s);
    /* what changes its kind stays what it was */
    e = entry_of(20, 1, "saved", TRACKER__KIND__KIND_DIRECTORY);
    say(&s, &e, true);
    assert_int_equal(at(&s, "/saved")->kind, NODE_FILE);
    /* deeper than any path */
    char name[16];
    for (uint64_t i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "%u", (unsigned)i);
        e = entry_of(1000 + i, i == 0 ? 1 : 999 + i, name, TRACKER__KIND__KIND_DIRECTORY);
        say(&s, &e, true);
    }
    side_end(&s);
}

static void a_directory_out_of_sight_outlives_the_children_it_was_first_known_by(void **state)
{
    struct side s;
    side_begin(&s, &tracker, 1, "ann");
    make_file(&s, INO_ROOT, "d", 1);
    Tracker__Entry e = entry_of(41, 40, "child", TRACKER__KIND__KIND_FILE);
    say(&s, &e, true);
    e = entry_of(40, 1, "d",
                 TRACKER__KIND__KIND_DIRECTORY); /* its name is taken by a file of ours */
    say(&s, &e, true);
    e = entry_of(41, 1, "", TRACKER__KIND__KIND_FILE);
    e.gone = true;
    say(&s, &e, true);
    assert_int_equal(catalogue_remove(s.catalogue, INO_ROOT, "d", false), 0);
    assert_non_null(at(&s, "/d"));
    assert_int_equal(at(&s, "/d")->id, 40);
    side_end(&s);
}

static void answers_that_make_no_sense_do_no_harm(void **state)
{
    struct side s;
    side_begin(&s, &tracker, 1, "ann");
    make_dir(&s, INO_ROOT, "d");
    uint64_t f = make_file(&s, INO_ROOT, "f", 1);
    size_t size;
    hear_nothing(&s);
    for (int i = 0; i < 2; i++)
        free(catalogue_next_op(s.catalogue, INT64_MAX, &(int64_t){0}, &size));
    Tracker__Entry wrong = entry_of(77, 1, "d", TRACKER__KIND__KIND_FILE),
                   bad = entry_of(78, 1, "..", TRACKER__KIND__KIND_FILE);
    Tracker__Result results[4];
    for (int i = 0; i < 4; i++)
        tracker__result__init(&results[i]);
    results[0].op = 1; /* a directory that became a file */
    results[0].status = TRACKER__OP_STATUS__OP_OK;
    results[0].entry = &wrong;
    results[1].op = 2; /* well done, but what? */
    results[1].status = TRACKER__OP_STATUS__OP_OK;
    results[1].entry = &bad;
    results[2].op = 4711; /* never asked */
    results[2].status = TRACKER__OP_STATUS__OP_OK;
    results[3].op = 1; /* twice */
    Tracker__Result *pointers[] = {&results[0], &results[1], &results[2], &results[3], NULL};
    Tracker__Results message = TRACKER__RESULTS__INIT;
    message.n_results = 5;
    message.results = pointers;
    catalogue_results(s.catalogue, &message, NOW);
    check_invariants(&s);
    assert_int_equal(at(&s, "/f")->ino, f);
    assert_non_null(at(&s, "/d"));
    assert_int_equal(catalogue_pending(s.catalogue), 2); /* asked again another time */
    side_end(&s);
}

static void a_damaged_data_base_is_moved_aside(void **state)
{
    struct side s;
    side_begin(&s, &tracker, 1, "ann");
    make_dir(&s, INO_ROOT, "d");
    catalogue_close(s.catalogue);
    static const char rubbish[8192] = "this is no data base, and has never been one";
    assert_int_equal(file_replace(s.path, rubbish, sizeof rubbish, 0600), 0);
    open_catalogue(&s);
    assert_int_equal(catalogue_entries(s.catalogue), 0);
    make_dir(&s, INO_ROOT, "e");
    restart(&s);
    assert_non_null(at(&s, "/e"));
    side_end(&s);
}

static void count_one(void *arg, const uint8_t r[HASH_SIZE])
{
    (*(uint64_t *)arg)++;
}

static void pins_working_files_and_dropped_contents_are_remembered(void **state)
{
    struct side s;
    struct working_row row = {.number = 5, .ino = 20, .mount = UINT64_MAX - 3, .marked = true};
    uint8_t root[HASH_SIZE];
    side_begin(&s, &tracker, 1, "ann");
    uint64_t d = make_dir(&s, INO_ROOT, "d");
    catalogue_pin(s.catalogue, d, true);
    make_file(&s, d, "inherits", 1);
    catalogue_working_put(s.catalogue, &row);
    make_root(root, 1);
    catalogue_dropped_put(s.catalogue, root, NOW);
    make_root(root, 2);
    catalogue_dropped_put(s.catalogue, root, NOW + 1000);
    restart(&s);
    assert_true(at(&s, "/d")->pinned);
    assert_true(at(&s, "/d/inherits")->pinned);
    assert_int_equal(s.catalogue->working_count, 1);
    assert_true(s.catalogue->working[0].mount == UINT64_MAX - 3);
    uint64_t seen = 0;

    assert_true(catalogue_dropped_due(s.catalogue, NOW, count_one, &seen) == NOW + 1000);
    assert_int_equal(seen, 1);
    catalogue_working_remove(s.catalogue, 5);
    make_root(root, 1);
    catalogue_dropped_remove(s.catalogue, root);
    restart(&s);
    seen = 0;
    assert_int_equal(s.catalogue->working_count, 0);
    assert_true(catalogue_dropped_due(s.catalogue, NOW + 2000, count_one, &seen) == 0);
    assert_int_equal(seen, 1);
    side_end(&s);
}

static int set_xattr(struct side *s, uint64_t ino, const char *name, const char *value)
{
    struct xattr_change change = {.name = name, .value = (const uint8_t *)value};
    change.size = value == NULL ? 0 : strlen(value);
    return catalogue_xattr(s->catalogue, ino, &change);
}

static const char *get_xattr(struct side *s, const char *path, const char *name)
{
    static char text[64];
    const Tracker__Xattr *x = xattrs_find(at(s, path)->xattrs, name);
    if (x == NULL)
        return NULL;
    snprintf(text, sizeof text, "%.*s", (int)x->value.len, (const char *)x->value.data);
    return text;
}

static void extended_attributes_are_of_the_entry_and_outlive_a_restart(void **state)
{
    struct side s;
    struct xattr_change fresh = {.name = "user.a", .value = (const uint8_t *)"", .create = true};
    struct xattr_change there = {.name = "user.z", .value = (const uint8_t *)"", .replace = true};
    side_begin(&s, &tracker, 1, "ann");
    uint64_t d = make_dir(&s, INO_ROOT, "d"), f = make_file(&s, d, "f", 1);
    assert_int_equal(set_xattr(&s, f, "user.a", "one"), 0);
    assert_int_equal(set_xattr(&s, f, "user.b", "two"), 0);
    assert_int_equal(set_xattr(&s, d, "user.a", "of d"), 0);
    assert_int_equal(catalogue_xattr(s.catalogue, f, &fresh), -EEXIST);
    assert_int_equal(catalogue_xattr(s.catalogue, f, &there), -ENODATA);
    assert_int_equal(set_xattr(&s, f, "user.z", NULL), -ENODATA);
    assert_int_equal(set_xattr(&s, f, "user.p2p.root", "x"), -EOPNOTSUPP);
    assert_int_equal(set_xattr(&s, INO_ROOT, "user.a", "x"), -EPERM);
    restart(&s);
    assert_string_equal(get_xattr(&s, "/d/f", "user.a"), "one");
    assert_string_equal(get_xattr(&s, "/d", "user.a"), "of d");
    assert_int_equal(set_xattr(&s, f, "user.a", NULL), 0);
    /* A new version of it is the same entry. */
    assert_int_equal(catalogue_write_begin(s.catalogue, f), 0);
    uint8_t root[HASH_SIZE];
    make_root(root, 2);
    assert_int_equal(catalogue_publish(s.catalogue, f, root, 5, NOW, NOW), 0);
    restart(&s);
    assert_null(get_xattr(&s, "/d/f", "user.a"));
    assert_string_equal(get_xattr(&s, "/d/f", "user.b"), "two");
    side_end(&s);
}

/* --- a random walk ---------------------------------------------------------------------------------------- */

static uint64_t dice_state;
static unsigned dice(unsigned sides_of_it)
{
    dice_state ^= dice_state << 13;
    dice_state ^= dice_state >> 7;
    dice_state ^= dice_state << 17;
    return (unsigned)((dice_state >> 11) % sides_of_it);
}

/* Some node of that kind (0: any) or NULL. */
static const struct node *pick(struct side *s, int kind)
{
    const struct node *best =
        kind == NODE_DIRECTORY ? catalogue_node(s->catalogue, INO_ROOT) : NULL;
    struct catalogue *c = s->catalogue;
    unsigned seen = best != NULL;
    /* By number: the tables have another order in each run. */
    for (uint64_t ino = 16; ino < c->next_ino; ino++) {
        const struct entry *e = tree_find(c, BY_INO, ino);
        if (e != NULL && (kind == 0 || (int)e->node.kind == kind) && tree_is_attached(c, e) &&
            dice(++seen) == 0)
            best = &e->node;
    }
    return best;
}

static const char *random_name(void)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
    return names[dice(6)];
}

static void publish_random(struct side *s, uint64_t ino)
{
    uint8_t root[HASH_SIZE];
    unsigned content = 1 + dice(1000000);
    make_root(root, content);
    (void)catalogue_publish(s->catalogue, ino, root, content, NOW, NOW);
}

static void random_change(struct side *s)
{
    const struct node *d = pick(s, NODE_DIRECTORY), *n = pick(s, 0), *f = pick(s, NODE_FILE);
    uint64_t ino;
    switch (dice(12)) {
    case 0:
    case 1:
        (void)catalogue_mkdir(s->catalogue, d->ino, random_name(), 0755, NOW + dice(100), &ino);
        break;
    case 2:
        (void)catalogue_symlink(s->catalogue, d->ino, random_name(), "t", NOW, &ino);
        break;
    case 3:
    case 4:
        if (catalogue_create(s->catalogue, d->ino, random_name(), 0644, NOW, &ino) == 0 &&
            dice(3) != 0)
            publish_random(s, ino);
        break;
    case 5:
        if (f != NULL && catalogue_write_begin(s->catalogue, f->ino) == 0)
            publish_random(s, f->ino);
        break;
    case 6:
        if (f != NULL && f->working)
            publish_random(s, f->ino);
        else if (f != NULL && dice(4) == 0)
            (void)catalogue_write_begin(s->catalogue, f->ino);
        break;
    case 7:
    case 8:
        if (n != NULL) {
            char name[256];
            snprintf(name, sizeof name, "%s", n->name);
            const struct rename r = {n->parent->ino, name,         d->ino,
                                     random_name(),  dice(5) == 0, dice(5) == 0};
            if (!(r.no_replace && r.exchange))
                (void)catalogue_rename(s->catalogue, &r);
        }
        break;
    case 9:
    case 10:
        if (n != NULL) {
            char name[256];
            snprintf(name, sizeof name, "%s", n->name);
            (void)catalogue_remove(s->catalogue, n->parent->ino, name, n->kind == NODE_DIRECTORY);
        }
        break;
    default:
        if (n != NULL)
            (void)catalogue_attr(s->catalogue, n->ino, &(uint32_t){dice(01000)},
                                 dice(2) == 0 ? NULL : &(int64_t){NOW + dice(1000)});
        break;
    }
}

static void add_writing(void *arg, uint64_t ino)
{
    struct vector *v = arg;
    vector_add(v, ino);
    for (size_t i = v->count - 1; i > 0 && v->items[i - 1] > v->items[i]; i--) {
        uint64_t other = v->items[i];
        v->items[i] = v->items[i - 1];
        v->items[i - 1] = other;
    }
}

/* What is still being written is given up or published. */
static void end_writing(struct side *s)
{
    struct vector v = {0};
    catalogue_each_writing(s->catalogue, add_writing, &v);
    for (size_t i = 0; i < v.count; i++) {
        if (dice(2) == 0)
            catalogue_write_abandon(s->catalogue, v.items[i]);
        else
            publish_random(s, v.items[i]);
    }
    free(v.items);
}

static void random_step(struct side *s)
{
    switch (dice(20)) {
    case 0:
        if (s->online)
            disconnect_side(s);
        else
            connect_side(s);
        break;
    case 1:
        if (dice(4) == 0) {
            disconnect_side(s);
            if (dice(2) == 0 && catalogue_commit(s->catalogue, false) == 0)
                crash(s);
            else
                restart(s);
        }
        break;
    case 2:
        if (dice(10) == 0)
            s->tracker->full = s->tracker->full == 0 ? TRACKER__OP_STATUS__OP_FULL : 0;
        if (dice(10) == 0 && s->online) { /* the tracker says it all again */
            queue_clear(&s->pushes);
            queue_add(&s->pushes)->changes = ref_since(s->tracker, 0, true);
        }
        break;
    case 3:
        (void)catalogue_commit(s->catalogue, false);
        break;
    default:
        switch (dice(5)) {
        case 0:
        case 1:
            random_change(s);
            break;
        case 2:
            (void)send_one(s);
            break;
        case 3:
            (void)hear_result(s);
            break;
        default:
            (void)hear_push(s);
            break;
        }
    }
}

static void walk(uint64_t seed, int steps)
{
    dice_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    for (int i = 0; i < steps; i++) {
        random_step(dice(2) == 0 ? &ann : &bob);
        if (i % 16 == 0) {
            check_invariants(&ann);
            check_invariants(&bob);
        }
    }
    tracker.full = 0;
    end_writing(&ann);
    end_writing(&bob);
    for (int i = 0; i < 4; i++) {
        struct side *both[] = {&ann, &bob};
        for (int k = 0; k < 2; k++) {
            if (!both[k]->online)
                connect_side(both[k]);
            catalogue_retry(both[k]->catalogue);
        }
        for (int k = 0; k < 30; k++) {
            run(&ann);
            run(&bob);
        }
    }
    check_invariants(&ann);
    check_invariants(&bob);
    assert_same(&ann);
    assert_same(&bob);
}

static void two_replicas_and_the_tracker_agree_after_any_walk(void **state)
{
    const char *from = getenv("P2P_TEST_SEED"), *count = getenv("P2P_TEST_WALKS");
    uint64_t first = from == NULL ? 1 : strtoull(from, NULL, 10);
    uint64_t walks = count == NULL ? 150 : strtoull(count, NULL, 10);
    for (uint64_t seed = first; seed < first + walks; seed++) {
        assert_int_equal(set_up_two(NULL), 0);
        fprintf(stderr, "\rwalk %lu ", (unsigned long)seed);
        walk(seed, 600);
        tear_down_two(NULL);
    }
    fprintf(stderr, "\n");
}

/* What one device of an account makes, the other may take for its own. */
static void two_devices_of_an_account_and_the_tracker_agree_after_any_walk(void **state)
{
    const char *from = getenv("P2P_TEST_SEED"), *count = getenv("P2P_TEST_WALKS");
    uint64_t first = from == NULL ? 1 : strtoull(from, NULL, 10);
    uint64_t walks = count == NULL ? 50 : strtoull(count, NULL, 10);
    for (uint64_t seed = first; seed < first + walks; seed++) {
        assert_int_equal(set_up_two(NULL), 0);
        bob.account = ann.account;
        catalogue_set_account(bob.catalogue, bob.account);
        fprintf(stderr, "\rwalk of two devices %lu ", (unsigned long)seed);
        walk(seed, 600);
        tear_down_two(NULL);
    }
    fprintf(stderr, "\n");
}

/* Who is alone with the tracker, and never loses what was committed, is in nobody's way. */
static void one_member_alone_has_no_conflicts(void **state)
{
    const char *from = getenv("P2P_TEST_SEED"), *count = getenv("P2P_TEST_WALKS");
    uint64_t first = from == NULL ? 1 : strtoull(from, NULL, 10);
    uint64_t walks = count == NULL ? 100 : strtoull(count, NULL, 10);
    for (uint64_t seed = first; seed < first + walks; seed++) {
        assert_int_equal(set_up_two(NULL), 0);
        fprintf(stderr, "\rwalk alone %lu ", (unsigned long)seed);
        dice_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
        for (int i = 0; i < 600; i++) {
            switch (dice(40) | (seed % 2)) { /* every other walk without a disconnect */
            case 0:
                ann.online ? disconnect_side(&ann) : connect_side(&ann);
                break;
            case 1:
                (void)catalogue_commit(ann.catalogue, false);
                break;
            default:
                switch (dice(5)) {
                case 0:
                case 1:
                    random_change(&ann);
                    break;
                case 2:
                    (void)send_one(&ann);
                    break;
                case 3:
                    (void)hear_result(&ann);
                    break;
                default:
                    (void)hear_push(&ann);
                    break;
                }
            }
            assert_no_conflicts(&ann);
        }
        tear_down_two(NULL);
    }
    fprintf(stderr, "\n");
}

/* --- size and time ---------------------------------------------------------------------------------------- */

static void a_hundred_thousand_entries(void **state)
{
    enum { COUNT = 100000, PAGE = 500, DIRECTORIES = 100 };
    struct side s;
    char name[64];
    uint8_t root[HASH_SIZE];
    side_begin(&s, &tracker, 1, "ann");
    int64_t t0 = clock_now();
    for (unsigned i = 0; i < COUNT; i += PAGE) {
        Tracker__Changes *changes = ref_changes_new(&tracker);
        for (unsigned k = i; k < i + PAGE; k++) {
            struct ref_entry e = {
                .id = k + 2, .seq = k + 1, .parent = 1, .mode = 0644, .mtime = NOW};
            e.kind = k < DIRECTORIES ? TRACKER__KIND__KIND_DIRECTORY : TRACKER__KIND__KIND_FILE;
            if (k >= DIRECTORIES) {
                e.parent = 2 + k % DIRECTORIES;
                e.size = k;
                make_root(root, k);
                memcpy(e.root, root, HASH_SIZE);
            }
            snprintf(e.owner, sizeof e.owner, "bob");
            snprintf(e.name, sizeof e.name, "some file's name %u.jpg", k);
            ref_changes_add(changes, ref_message(&e));
        }
        changes->from_scratch = i == 0;
        changes->live = i + PAGE == COUNT;
        changes->seq = i + PAGE;
        catalogue_changes(s.catalogue, changes, NOW);
        tracker__changes__free_unpacked(changes, NULL);
    }
    int64_t t1 = clock_now();
    assert_int_equal(catalogue_entries(s.catalogue), COUNT);
    assert_int_equal(catalogue_commit(s.catalogue, false), 0);
    int64_t t2 = clock_now();
    restart(&s);
    int64_t t3 = clock_now();
    assert_int_equal(catalogue_entries(s.catalogue), COUNT);
    for (unsigned k = DIRECTORIES; k < COUNT; k++) {
        snprintf(name, sizeof name, "some file's name %u.jpg", k);
        assert_non_null(catalogue_lookup(
            s.catalogue, tree_find(s.catalogue, BY_ID, 2 + k % DIRECTORIES)->node.ino, name));
    }
    int64_t t4 = clock_now();
    printf("100000 entries: learned in %ld ms, committed in %ld ms, closed and loaded in %ld ms, "
           "lookup %ld ns\n",
           (long)((t1 - t0) / NS_PER_MS), (long)((t2 - t1) / NS_PER_MS),
           (long)((t3 - t2) / NS_PER_MS), (long)((t4 - t3) / (COUNT - DIRECTORIES)));
    side_end(&s);
}

static void no_number_is_given_twice_though_the_disk_failed_when_it_was_reserved(void **state)
{
    struct side s;
    sqlite3 *other = NULL;
    uint64_t ino;

    side_begin(&s, NULL, 1, "ann");
    assert_int_equal(catalogue_commit(s.catalogue, true), 0);
    assert_int_equal(sqlite3_open(s.path, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(catalogue_mkdir(s.catalogue, INO_ROOT, "a", 0755, NOW, &ino), 0);
    uint64_t op = s.catalogue->next_op - 1;
    int64_t due;
    size_t size;
    s.catalogue->heard = true;
    assert_null(catalogue_next_op(s.catalogue, INT64_MAX, &due, &size)); /* it cannot be noted */
    assert_int_equal(sqlite3_close(other), SQLITE_OK);
    uint8_t *packed = catalogue_next_op(s.catalogue, INT64_MAX, &due, &size);
    assert_non_null(packed);
    free(packed);
    crash(&s);
    assert_true(s.catalogue->next_op > op && s.catalogue->next_ino > ino);
    assert_non_null(catalogue_node(s.catalogue, ino));
    side_end(&s);
}

/* A disk of which one read fails: the `reads_left`th from now. */
static sqlite3_vfs *disk, failing_disk;
static const sqlite3_io_methods *disk_methods;
static sqlite3_io_methods failing_methods;
static int reads_left;

static int fail_read(sqlite3_file *file, void *to, int size, sqlite3_int64 at)
{
    if (reads_left > 0 && --reads_left == 0)
        return SQLITE_IOERR_READ;
    return disk_methods->xRead(file, to, size, at);
}

static int open_failing(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
    int result = disk->xOpen(disk, name, file, flags, out);
    if (result != SQLITE_OK || file->pMethods == NULL)
        return result;
    if (disk_methods == NULL) {
        disk_methods = file->pMethods;
        failing_methods = *disk_methods;
        failing_methods.xRead = fail_read;
    }
    if (file->pMethods == disk_methods)
        file->pMethods = &failing_methods;
    return result;
}

static void nothing_is_forgotten_that_the_disk_failed_to_give_at_the_start(void **state)
{
    struct side s;
    struct working_row row = {.number = 5, .ino = 20, .marked = true};
    const char *fault;
    int number = 0;

    side_begin(&s, NULL, 1, "ann");
    make_dir(&s, INO_ROOT, "d");
    catalogue_working_put(s.catalogue, &row);
    uint64_t op = s.catalogue->next_op, ino = s.catalogue->next_ino;
    size_t pending = catalogue_pending(s.catalogue);
    catalogue_close(s.catalogue);
    disk = sqlite3_vfs_find(NULL);
    failing_disk = *disk;
    failing_disk.zName = "failing";
    failing_disk.pNext = NULL;
    failing_disk.xOpen = open_failing;
    assert_int_equal(sqlite3_vfs_register(&failing_disk, 1), SQLITE_OK);
    do {
        reads_left = ++number;
        s.catalogue = catalogue_open(s.path, &events, &s, &fault);
        if (s.catalogue == NULL) /* it is not begun with */
            continue;
        assert_non_null(at(&s, "/d"));
        assert_int_equal(s.catalogue->working_count, 1);
        assert_int_equal(catalogue_pending(s.catalogue), pending);
        assert_true(s.catalogue->next_op >= op && s.catalogue->next_ino >= ino);
        assert_string_equal(catalogue_account(s.catalogue), "ann");
        if (reads_left == 0)
            catalogue_close(s.catalogue);
    } while (reads_left == 0);
    assert_true(number > 5);
    reads_left = 0;
    assert_int_equal(sqlite3_vfs_unregister(&failing_disk), SQLITE_OK);
    side_end(&s);
}

static void what_a_failed_sync_may_have_lost_is_written_again(void **state)
{
    struct side s;
    char *data;
    size_t size;

    side_begin(&s, NULL, 1, "ann");
    make_dir(&s, INO_ROOT, "d");
    assert_int_equal(catalogue_commit(s.catalogue, false), 0);
    assert_int_equal(catalogue_checkpoint(s.catalogue), 0);
    assert_int_equal(catalogue_sync(s.path), 0);
    /* Without its log, the data base has it all. */
    assert_int_equal(file_read(s.path, 256u << 20, false, &data, &size), 0);
    catalogue_close(s.catalogue);
    snprintf(s.path, sizeof s.path, "%s/without.db", directory);
    assert_int_equal(file_replace(s.path, data, size, 0600), 0);
    free(data);
    open_catalogue(&s);
    assert_non_null(at(&s, "/d"));
    side_end(&s);
}

static void what_is_no_longer_dropped_is_written_by_a_commit_that_says_so(void **state)
{
    struct side s;
    sqlite3 *other = NULL;
    uint8_t root[HASH_SIZE];
    uint64_t seen = 0;

    side_begin(&s, NULL, 1, "ann");
    make_root(root, 1);
    catalogue_dropped_put(s.catalogue, root, NOW);
    assert_int_equal(catalogue_commit(s.catalogue, true), 0);
    assert_int_equal(sqlite3_open(s.path, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other,
                                  "CREATE TRIGGER t BEFORE DELETE ON dropped BEGIN SELECT "
                                  "RAISE(ABORT, 'the disk fails'); END",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    catalogue_dropped_remove(s.catalogue, root);
    assert_true(catalogue_commit(s.catalogue, true) < 0);
    assert_true(catalogue_is_dirty(s.catalogue));
    assert_int_equal(sqlite3_exec(other, "DROP TRIGGER t", NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(other), SQLITE_OK);
    assert_int_equal(catalogue_commit(s.catalogue, true), 0);
    assert_false(catalogue_is_dirty(s.catalogue));
    restart(&s);
    assert_true(catalogue_dropped_due(s.catalogue, NOW + 1, count_one, &seen) == 0);
    assert_int_equal(seen, 0);
    side_end(&s);
}

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *where)
{
    return remove(path);
}

#define TWO(test) cmocka_unit_test_setup_teardown(test, set_up_two, tear_down_two)
#define ONE(test) cmocka_unit_test_setup(test, set_up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ONE(what_is_made_while_the_tracker_is_away_is_published_later_in_order),
        ONE(the_journal_outlives_a_restart_and_numbers_are_never_used_twice),
        ONE(after_an_abort_what_was_committed_is_there_and_no_number_comes_again),
        ONE(an_answer_that_was_lost_changes_nothing_twice),
        ONE(errors_are_those_of_a_file_system),
        ONE(a_listing_goes_on_where_it_was_whatever_happens_to_its_directory),
        ONE(a_file_being_written_is_nobody_elses_business),
        ONE(an_editor_replaces_a_file_by_renaming_over_it_before_or_after_closing),
        ONE(giving_up_a_file_that_took_a_name_brings_the_old_one_back),
        ONE(what_a_file_being_written_replaced_is_gone_when_it_leaves),
        ONE(what_a_file_being_written_replaced_is_known_after_a_restart),
        ONE(a_data_base_of_an_earlier_version_is_brought_up_to_date),
        ONE(what_takes_the_place_of_a_file_being_written_replaces_what_that_replaced),
        ONE(a_file_removed_while_it_is_written_is_published_nowhere),
        TWO(what_one_makes_the_other_sees),
        TWO(another_members_version_gets_a_new_ino_and_who_has_the_old_one_open_keeps_it),
        TWO(two_who_publish_under_one_name_both_keep_their_content),
        TWO(two_new_versions_of_one_file_are_both_kept_and_the_one_beside_keeps_its_ino),
        TWO(two_versions_in_a_row_refused_leave_only_the_last_beside),
        TWO(a_directory_made_by_two_is_one_with_the_files_of_both),
        TWO(a_file_put_into_a_directory_that_another_removes_makes_it_come_back),
        TWO(a_file_being_written_in_a_removed_directory_is_published_all_the_same),
        TWO(a_new_version_of_what_another_removed_or_replaced_meanwhile_is_kept),
        TWO(a_refused_removal_is_undone_and_a_refused_rename_goes_beside),
        TWO(what_is_made_and_changed_within_a_moment_is_one_operation_or_none),
        TWO(what_replaced_a_file_before_it_left_still_replaces_it_when_it_moves_on),
        TWO(operations_linger_for_a_moment_and_leave_in_order),
        TWO(whatever_two_members_do_to_the_same_names_nothing_written_is_lost),
        TWO(a_new_version_outlives_a_removal_by_one_who_had_not_seen_it),
        TWO(what_is_pushed_about_an_entry_of_ours_is_held_back),
        TWO(a_push_that_comes_before_its_answer_makes_no_second_entry),
        TWO(what_nobody_waits_for_is_kept_until_the_tracker_has_room),
        TWO(an_account_that_has_all_it_may_makes_nothing_for_a_moment),
        TWO(a_content_without_any_name_is_said_to_be_unused_once),
        TWO(a_resync_keeps_the_inos_of_what_is_the_same_and_invalidates_only_differences),
        TWO(an_answer_older_than_a_resync_brings_nothing_back),
        TWO(what_only_an_answer_named_in_a_resync_goes_if_the_resync_passes_it),
        TWO(another_data_base_of_the_tracker_loses_nothing_of_ours),
        ONE(bad_entries_are_shown_nowhere),
        ONE(loops_strays_and_twins_do_no_harm),
        ONE(a_directory_out_of_sight_outlives_the_children_it_was_first_known_by),
        ONE(answers_that_make_no_sense_do_no_harm),
        ONE(a_damaged_data_base_is_moved_aside),
        ONE(no_number_is_given_twice_though_the_disk_failed_when_it_was_reserved),
        ONE(nothing_is_forgotten_that_the_disk_failed_to_give_at_the_start),
        ONE(what_a_failed_sync_may_have_lost_is_written_again),
        ONE(what_is_no_longer_dropped_is_written_by_a_commit_that_says_so),
        ONE(pins_working_files_and_dropped_contents_are_remembered),
        ONE(extended_attributes_are_of_the_entry_and_outlive_a_restart),
        ONE(one_member_alone_has_no_conflicts),
        ONE(two_replicas_and_the_tracker_agree_after_any_walk),
        ONE(two_devices_of_an_account_and_the_tracker_agree_after_any_walk),
        ONE(a_hundred_thousand_entries),
    };
    setenv("TZ", "UTC", 1);
    log_init("daemon_catalogue", LOG_LEVEL_ERROR, false);
    if (mkdtemp(directory) == NULL)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
