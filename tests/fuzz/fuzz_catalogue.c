/* The catalogue's replica under whatever a tracker says, mixed with changes of ours.
 *
 * The input is a list of steps; a step's first byte says what it is: a whole Changes or Results message (two bytes of
 * length, then packed), an entry made of a few bytes (so that numbers and names meet often), an answer to one of our
 * operations, or a change of ours. After each step the tree must be sound, in the end it must commit. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "daemon/catalogue.h"
#include "daemon/catalogue_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NOW INT64_C(1790000000000000000)

struct input {
    const uint8_t *at, *end;
};

static uint8_t take(struct input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

static void on_invalid(void *arg, uint64_t ino, uint64_t parent, const char *name)
{
    CHECK(name == NULL || strlen(name) <= NAME_BYTES_MAX);
}
static void on_journalled(void *arg)
{
}
static void on_unused(void *arg, const uint8_t root[HASH_SIZE], uint64_t size)
{
}
static void on_pinned(void *arg, const struct node *node)
{
}
static const struct catalogue_events events = {.invalid = on_invalid,
                                               .renewed = on_invalid,
                                               .journalled = on_journalled,
                                               .unused = on_unused,
                                               .pinned = on_pinned};

static const char *name_of(uint8_t byte)
{
    static const char *const names[] = {
        "a", "b", "c", "d", "e", "f (conflict ann 2026-09-21 1413)", "..", ""};
    return names[byte % 8];
}

static void check_tree(struct catalogue *c)
{
    for (size_t i = 0; i <= c->tables[BY_INO].mask; i++) {
        for (struct entry *e = c->tables[BY_INO].buckets[i]; e != NULL; e = e->next[BY_INO]) {
            unsigned depth = 0;
            for (const struct node *n = e->node.parent; n != NULL; n = n->parent)
                CHECK(++depth <= NAME_DEPTH_MAX);
            CHECK(e->node.id == 0 || tree_find(c, BY_ID, e->node.id) == e);
            CHECK(e->node.parent == NULL || name_is_valid(e->node.name, strlen(e->node.name)));
            CHECK(e->node.parent == NULL ||
                  tree_child(c, (struct entry *)(void *)e->node.parent, e->node.name) == e);
            CHECK(e->node.unconfirmed == 0 || e->pending != NULL);
            CHECK((e->flags & FLAG_HIDDEN) == 0 ||
                  (e->node.parent == NULL && e->pending->held != NULL));
            CHECK((e->node.mode & ~0777u) == 0 && e->node.size <= FILE_SIZE_MAX);
        }
    }
}

static void fill_entry(struct input *in, Tracker__Entry *e, uint8_t root[HASH_SIZE])
{
    static uint64_t seq;
    uint8_t bits = take(in);
    tracker__entry__init(e);
    memset(root, 0, HASH_SIZE);
    e->id = take(in) % 16;
    e->parent = take(in) % 16;
    e->name = (char *)(uintptr_t)name_of(take(in));
    e->kind = (Tracker__Kind)(bits % 5);
    e->gone = (bits & 0x10) != 0;
    e->seq = (bits & 0x20) != 0 ? take(in) : ++seq;
    e->mode = bits;
    e->target = (char *)(uintptr_t) "t";
    if (e->kind == TRACKER__KIND__KIND_FILE) {
        root[0] = take(in) % 4;
        e->size = root[0];
        e->root.data = root;
        e->root.len = HASH_SIZE;
    }
}

static void say_entry(struct catalogue *c, struct input *in)
{
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    Tracker__Entry e, *list[1] = {&e};
    uint8_t root[HASH_SIZE], generation[GENERATION_SIZE] = {0}, bits = take(in);
    fill_entry(in, &e, root);
    generation[0] = bits % 8 == 0;
    changes.generation.data = generation;
    changes.generation.len = sizeof generation;
    changes.from_scratch = (bits & 0x10) != 0;
    changes.live = (bits & 0x20) == 0;
    changes.n_entries = 1;
    changes.entries = list;
    changes.seq = e.seq;
    catalogue_changes(c, &changes, NOW);
}

static void answer(struct catalogue *c, struct input *in)
{
    Tracker__Results results = TRACKER__RESULTS__INIT;
    Tracker__Result result = TRACKER__RESULT__INIT, *list[1] = {&result};
    Tracker__Entry e;
    uint8_t root[HASH_SIZE], bits = take(in);
    size_t size;
    int64_t due;
    free(catalogue_next_op(c, INT64_MAX, &due, &size));
    result.op = take(in) % 32 + 1;
    result.status = (Tracker__OpStatus)(bits % 16);
    fill_entry(in, &e, root);
    if ((bits & 0x10) == 0)
        result.entry = &e;
    results.n_results = 1;
    results.results = list;
    catalogue_results(c, &results, NOW);
}

static void whole_message(struct catalogue *c, struct input *in, bool of_results)
{
    size_t left = (size_t)(in->end - in->at), length = take(in);
    length |= (size_t)take(in) << 8;
    left = (size_t)(in->end - in->at);
    if (length > left)
        length = left;
    if (of_results) {
        Tracker__Results *m = tracker__results__unpack(NULL, length, in->at);
        if (m != NULL) {
            catalogue_results(c, m, NOW);
            tracker__results__free_unpacked(m, NULL);
        }
    } else {
        Tracker__Changes *m = tracker__changes__unpack(NULL, length, in->at);
        if (m != NULL) {
            catalogue_changes(c, m, NOW);
            tracker__changes__free_unpacked(m, NULL);
        }
    }
    in->at += length;
}

static void change(struct catalogue *c, struct input *in)
{
    uint8_t what = take(in), root[HASH_SIZE] = {0};
    uint64_t parent = take(in) % 24 + 15, ino = take(in) % 24 + 15, made;
    const char *name = name_of(take(in));
    const struct node *node = catalogue_node(c, ino);
    if (parent == 15)
        parent = INO_ROOT;
    switch (what % 12) {
    case 0:
        (void)catalogue_mkdir(c, parent, name, what, NOW, &made);
        break;
    case 1:
        (void)catalogue_symlink(c, parent, name, "x", NOW, &made);
        break;
    case 2:
        (void)catalogue_create(c, parent, name, what, NOW, &made);
        break;
    case 3:
        (void)catalogue_write_begin(c, ino);
        break;
    case 4:
        root[0] = what / 12 % 4;
        if (node != NULL && node->kind == NODE_FILE)
            (void)catalogue_publish(c, ino, root, root[0], NOW, NOW);
        break;
    case 5:
        catalogue_write_abandon(c, ino);
        break;
    case 6:
    case 7:
        if (node != NULL && node->parent != NULL) {
            char from[NAME_BYTES_MAX + 1];
            memcpy(from, node->name, strlen(node->name) + 1);
            const struct rename rename = {
                node->parent->ino, from, parent, name, (what & 0x40) != 0, (what & 0xc0) == 0x80};
            (void)catalogue_rename(c, &rename);
        }
        break;
    case 8:
        (void)catalogue_remove(c, parent, name, (what & 0x40) != 0);
        break;
    case 9:
        (void)catalogue_attr(c, ino, (what & 0x40) != 0 ? &(uint32_t){what} : NULL,
                             &(int64_t){what});
        break;
    case 10:
        if ((what & 0x40) != 0)
            catalogue_open_node(c, ino);
        else
            catalogue_close_node(c, ino);
        break;
    default:
        catalogue_pin(c, ino, (what & 0x40) != 0);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    const char *fault;
    static bool ready;
    if (!ready)
        log_init("fuzz_catalogue", LOG_LEVEL_ERROR, false);
    ready = true;
    struct catalogue *c = catalogue_open(":memory:", &events, NULL, &fault);
    CHECK(c != NULL);
    catalogue_set_account(c, "ann");
    for (unsigned steps = 0; in.at < in.end && steps < 400; steps++) {
        switch (take(&in) % 8) {
        case 0:
            whole_message(c, &in, false);
            break;
        case 1:
            whole_message(c, &in, true);
            break;
        case 2:
        case 3:
            say_entry(c, &in);
            break;
        case 4:
            answer(c, &in);
            break;
        case 5:
            if (take(&in) % 8 == 0)
                catalogue_resend(c, true);
            CHECK(catalogue_commit(c, false) == 0);
            break;
        default:
            change(c, &in);
            break;
        }
        check_tree(c);
    }
    CHECK(catalogue_commit(c, false) == 0);
    catalogue_close(c);
    return 0;
}
