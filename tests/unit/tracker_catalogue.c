/* tracker/catalogue.c over a real database: the rules of operations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/catalogue.h"

#define KIND(name)   TRACKER__OP_KIND__OP_##name
#define STATUS(name) TRACKER__OP_STATUS__OP_##name
#define TOP          STORAGE_ROOT_ENTRY

static char dir[64];
static struct storage *storage;
static const uint8_t laptop[DEVICE_ID_SIZE] = {1};
static const uint8_t desktop[DEVICE_ID_SIZE] = {2};
static const struct catalogue_actor ann = {.account = "ann", .device = laptop};
static const struct catalogue_actor bob = {.account = "bob", .device = desktop};
static uint64_t last_op;

/* What the last operation left. */
static struct storage_entry left;
static bool has_entry;
static uint64_t changes_count, changes_from, changes_to;

static int setup(void **state)
{
    char *fault = NULL;
    snprintf(dir, sizeof dir, "/tmp/catalogue-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    storage = storage_open(dir, STORAGE_SERVE, &fault);
    if (storage == NULL)
        fail_msg("%s", fault);
    last_op = 0;
    return storage_begin(storage, true) ? 0 : -1;
}

static int teardown(void **state)
{
    assert_false(storage_failed(storage));
    assert_true(storage_commit(storage));
    storage_entry_clear(&left);
    storage_close(storage);
    char *command = xasprintf("rm -rf %s", dir);
    int status = system(command);
    free(command);
    return status;
}

static Tracker__OpStatus apply(const struct catalogue_actor *actor, Tracker__Op *op)
{
    struct catalogue_result result;
    struct catalogue_changes changes = {0};
    uint64_t before = storage_seq(storage);
    if (op->op == 0)
        op->op = ++last_op;
    catalogue_apply(storage, actor, op, &result, &changes);
    assert_false(storage_failed(storage));
    assert_int_equal(result.op, op->op);
    /* Seqs are given without gaps, and each is told. */
    assert_int_equal(storage_seq(storage) - before, changes.count);
    for (size_t i = 0; i < changes.count; i++)
        assert_int_equal(changes.entries[i].seq, before + 1 + i);
    if (result.status != STATUS(OK))
        assert_int_equal(changes.count, 0);
    changes_count = changes.count;
    changes_from = changes.from;
    changes_to = changes.to;
    storage_entry_clear(&left);
    has_entry = result.has_entry;
    if (result.has_entry)
        storage_entry_copy(&left, &result.entry);
    catalogue_result_clear(&result);
    catalogue_changes_clear(&changes);
    return result.status;
}

static Tracker__Op new_op(Tracker__OpKind kind, uint64_t parent, const char *name)
{
    Tracker__Op op = TRACKER__OP__INIT;
    op.kind = kind;
    op.parent = parent;
    op.name = (char *)(uintptr_t)name;
    return op;
}

static Tracker__OpStatus mkdir_in(uint64_t parent, const char *name)
{
    Tracker__Op op = new_op(KIND(MKDIR), parent, name);
    op.mode = 0755;
    return apply(&ann, &op);
}

static uint64_t directory(uint64_t parent, const char *name)
{
    assert_int_equal(mkdir_in(parent, name), STATUS(OK));
    return left.id;
}

struct publication {
    uint64_t parent;
    const char *name;
    uint8_t root; /* every byte of it; 0: the empty file */
    uint8_t based_on;
    bool no_replace, replace_any;
};

static Tracker__OpStatus publish(const struct catalogue_actor *actor, struct publication p)
{
    uint8_t root[32], based_on[32];
    Tracker__Op op = new_op(KIND(PUBLISH), p.parent, p.name);
    memset(root, p.root, sizeof root);
    memset(based_on, p.based_on, sizeof based_on);
    op.root = (ProtobufCBinaryData){.len = 32, .data = root};
    op.size = p.root == 0 ? 0 : 1000;
    if (p.based_on != 0)
        op.based_on = (ProtobufCBinaryData){.len = 32, .data = based_on};
    op.no_replace = p.no_replace;
    op.replace_any = p.replace_any;
    op.mode = 0100644;
    return apply(actor, &op);
}

static uint64_t file(uint64_t parent, const char *name, uint8_t root)
{
    assert_int_equal(
        publish(&ann, (struct publication){.parent = parent, .name = name, .root = root}),
        STATUS(OK));
    return left.id;
}

static Tracker__OpStatus rename_to(uint64_t id, uint64_t parent, const char *name)
{
    Tracker__Op op = new_op(KIND(RENAME), parent, name);
    op.id = id;
    return apply(&ann, &op);
}

static void what_the_member_has_not_seen_is_neither_removed_nor_replaced(void **state)
{
    uint8_t seen[32];
    uint64_t f = file(1, "f", 1), g = file(1, "g", 2), h = file(1, "h", 3);
    Tracker__Op op = new_op(KIND(REMOVE), 0, "");
    op.id = f;
    op.based_on = (ProtobufCBinaryData){.len = 32, .data = seen};
    memset(seen, 9, sizeof seen);
    assert_int_equal(apply(&ann, &op), STATUS(CONFLICT));
    assert_int_equal(left.id, f);
    assert_false(left.gone);
    op = new_op(KIND(RENAME), 1, "g");
    op.id = h;
    op.over = f;
    assert_int_equal(apply(&ann, &op), STATUS(CONFLICT));
    assert_int_equal(left.id, g);
    op.op = 0;
    op.over = g;
    op.based_on = (ProtobufCBinaryData){.len = 32, .data = seen};
    assert_int_equal(apply(&ann, &op), STATUS(CONFLICT));
    memset(seen, 2, sizeof seen);
    op.op = 0;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    op = new_op(KIND(REMOVE), 0, "");
    op.id = f;
    op.based_on = (ProtobufCBinaryData){.len = 32, .data = seen};
    memset(seen, 1, sizeof seen);
    assert_int_equal(apply(&ann, &op), STATUS(OK));
}

static Tracker__OpStatus exchange(uint64_t id, uint64_t parent, const char *name)
{
    Tracker__Op op = new_op(KIND(RENAME), parent, name);
    op.id = id;
    op.exchange = true;
    return apply(&ann, &op);
}

static Tracker__OpStatus remove_id(uint64_t id)
{
    Tracker__Op op = new_op(KIND(REMOVE), 0, "");
    op.id = id;
    return apply(&ann, &op);
}

/* Id of what has that name, 0: nothing. */
static uint64_t lookup(uint64_t parent, const char *name)
{
    struct storage_entry entry;
    if (!storage_entry_find(storage, parent, name, &entry))
        return 0;
    storage_entry_clear(&entry);
    return entry.id;
}

/* --- making ------------------------------------------------------------------------------------------------- */

static void entries_are_made_with_what_was_said(void **state)
{
    uint64_t top = directory(TOP, "videos");
    assert_int_equal(left.kind, TRACKER__KIND__KIND_DIRECTORY);
    assert_int_equal(left.parent, TOP);
    file(top, "a.mkv", 7);
    assert_int_equal(left.kind, TRACKER__KIND__KIND_FILE);
    assert_int_equal(left.size, 1000);
    assert_int_equal(left.mode, 0644);
    assert_string_equal(left.owner, "ann");
    Tracker__Op op = new_op(KIND(SYMLINK), top, "link");
    char target[] = "../elsewhere/b";
    op.target = target;
    op.mtime = 12345;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    assert_string_equal(left.target, "../elsewhere/b");
    assert_int_equal(left.mtime, 12345);
    assert_int_equal(storage_entry_count(storage), 3);
}

static void bad_targets_are_refused(void **state)
{
    static const char *const targets[] = {"", "a\nb", "\x1b]0;x\x07", "\xff\xfe", "\u202e-fdp.exe"};
    char longest[LIMIT_SYMLINK + 2];
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        Tracker__Op op = new_op(KIND(SYMLINK), TOP, "link");
        op.target = (char *)(uintptr_t)targets[i];
        assert_int_equal(apply(&ann, &op), STATUS(BAD));
    }
    memset(longest, 'x', sizeof longest);
    longest[LIMIT_SYMLINK + 1] = '\0';
    Tracker__Op op = new_op(KIND(SYMLINK), TOP, "link");
    op.target = longest;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    longest[LIMIT_SYMLINK] = '\0';
    op = new_op(KIND(SYMLINK), TOP, "link");
    op.target = longest;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
}

static void bad_names_are_refused(void **state)
{
    static const char *const names[] = {
        "", ".", "..", "a/b", "line\nbreak", "\xff\xfe", "\u202e-fdp.exe"};
    char longest[257];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(mkdir_in(TOP, names[i]), STATUS(BAD_NAME));
    memset(longest, 'x', sizeof longest);
    longest[256] = '\0';
    assert_int_equal(mkdir_in(TOP, longest), STATUS(BAD_NAME));
    longest[255] = '\0';
    assert_int_equal(mkdir_in(TOP, longest), STATUS(OK));
}

static void unsound_contents_are_refused(void **state)
{
    uint8_t root[32] = {1};
    uint8_t zero[32] = {0};
    Tracker__Op op = new_op(KIND(PUBLISH), TOP, "f");
    op.root = (ProtobufCBinaryData){.len = 31, .data = root};
    op.size = 5;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    op.op = 0;
    op.root = (ProtobufCBinaryData){.len = 32, .data = zero};
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    op.op = 0;
    op.root.data = root;
    op.size = 0;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    op.op = 0;
    op.size = UINT64_MAX;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    op.op = 0;
    op.root.data = zero;
    op.size = 0;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
}

static void a_place_must_be_a_live_directory(void **state)
{
    uint64_t f = file(TOP, "f", 1);
    uint64_t gone = directory(TOP, "gone");
    assert_int_equal(remove_id(gone), STATUS(OK));
    assert_int_equal(mkdir_in(f, "x"), STATUS(NOT_DIRECTORY));
    assert_int_equal(mkdir_in(gone, "x"), STATUS(NOT_FOUND));
    assert_int_equal(mkdir_in(0, "x"), STATUS(NOT_FOUND));
    assert_int_equal(mkdir_in(99999, "x"), STATUS(NOT_FOUND));
}

static void a_taken_name_is_told_with_what_is_there(void **state)
{
    uint64_t d = directory(TOP, "d");
    assert_int_equal(mkdir_in(TOP, "d"), STATUS(EXISTS));
    assert_int_equal(left.id, d);
    assert_int_equal(publish(&ann, (struct publication){.parent = TOP, .name = "d", .root = 1}),
                     STATUS(IS_DIRECTORY));
}

static void depth_is_bounded(void **state)
{
    uint64_t at = TOP;
    for (unsigned i = 0; i < NAME_DEPTH_MAX; i++)
        at = directory(at, "d");
    assert_int_equal(mkdir_in(at, "one too deep"), STATUS(TOO_DEEP));

    /* A tree of two levels may go 62 levels down, not 63. */
    uint64_t tree = directory(TOP, "tree");
    uint64_t inner = directory(tree, "inner");
    file(inner, "leaf", 1);
    at = lookup(TOP, "d");
    uint64_t place[NAME_DEPTH_MAX + 1];
    for (unsigned depth = 1; depth <= NAME_DEPTH_MAX; depth++) {
        place[depth] = at;
        at = lookup(at, "d");
    }
    assert_int_equal(rename_to(tree, place[NAME_DEPTH_MAX - 2], "x"), STATUS(TOO_DEEP));
    assert_int_equal(rename_to(tree, place[NAME_DEPTH_MAX - 3], "x"), STATUS(OK));
}

/* --- versions ------------------------------------------------------------------------------------------------- */

static void a_version_based_on_the_present_one_replaces_it(void **state)
{
    uint64_t id = file(TOP, "f", 1);
    assert_int_equal(
        publish(&bob, (struct publication){.parent = TOP, .name = "f", .root = 2, .based_on = 1}),
        STATUS(OK));
    assert_int_equal(left.id, id);
    assert_int_equal(left.root[0], 2);
    assert_string_equal(left.owner, "bob");
}

static void a_version_based_on_an_older_one_is_a_conflict(void **state)
{
    file(TOP, "f", 1);
    assert_int_equal(
        publish(&bob, (struct publication){.parent = TOP, .name = "f", .root = 2, .based_on = 1}),
        STATUS(OK));
    assert_int_equal(
        publish(&ann, (struct publication){.parent = TOP, .name = "f", .root = 3, .based_on = 1}),
        STATUS(CONFLICT));
    assert_int_equal(left.root[0], 2);
    assert_int_equal(publish(&ann, (struct publication){.parent = TOP, .name = "f", .root = 3}),
                     STATUS(CONFLICT));
    assert_int_equal(
        publish(&ann,
                (struct publication){.parent = TOP, .name = "f", .root = 3, .replace_any = true}),
        STATUS(OK));
    assert_int_equal(left.root[0], 3);
}

static void the_same_content_again_is_no_conflict(void **state)
{
    file(TOP, "f", 1);
    assert_int_equal(publish(&bob, (struct publication){.parent = TOP, .name = "f", .root = 1}),
                     STATUS(OK));
    assert_int_equal(
        publish(&bob,
                (struct publication){.parent = TOP, .name = "f", .root = 1, .no_replace = true}),
        STATUS(EXISTS));
}

static void a_version_of_a_removed_file_makes_it_anew(void **state)
{
    uint64_t id = file(TOP, "f", 1);
    assert_int_equal(remove_id(id), STATUS(OK));
    assert_int_equal(
        publish(&bob, (struct publication){.parent = TOP, .name = "f", .root = 2, .based_on = 1}),
        STATUS(OK));
    assert_int_not_equal(left.id, id);
}

/* --- renaming --------------------------------------------------------------------------------------------------- */

static void renaming_moves_and_keeps_the_id(void **state)
{
    uint64_t d = directory(TOP, "d");
    uint64_t f = file(TOP, "f", 1);
    assert_int_equal(rename_to(f, d, "g"), STATUS(OK));
    assert_int_equal(left.id, f);
    assert_int_equal(lookup(TOP, "f"), 0);
    assert_int_equal(lookup(d, "g"), f);
    assert_int_equal(rename_to(f, d, "g"), STATUS(OK));
    assert_int_equal(changes_count, 0);
}

static void renaming_over_a_file_takes_its_place(void **state)
{
    uint64_t a = file(TOP, "a", 1);
    uint64_t b = file(TOP, "b", 2);
    assert_int_equal(rename_to(a, TOP, "b"), STATUS(OK));
    assert_int_equal(changes_count, 2);
    assert_int_equal(lookup(TOP, "b"), a);
    struct storage_entry gone;
    assert_true(storage_entry_get(storage, b, &gone));
    assert_true(gone.gone);
    storage_entry_clear(&gone);
    Tracker__Op op = new_op(KIND(RENAME), TOP, "b");
    op.id = file(TOP, "c", 3);
    op.no_replace = true;
    assert_int_equal(apply(&ann, &op), STATUS(EXISTS));
    assert_int_equal(left.id, a);
}

static void renaming_over_directories_follows_rename_2(void **state)
{
    uint64_t d = directory(TOP, "d");
    uint64_t full = directory(TOP, "full");
    uint64_t f = file(full, "f", 1);
    assert_int_equal(rename_to(f, TOP, "d"), STATUS(IS_DIRECTORY));
    assert_int_equal(rename_to(d, full, "f"), STATUS(NOT_DIRECTORY));
    assert_int_equal(rename_to(d, TOP, "full"), STATUS(NOT_EMPTY));
    assert_int_equal(rename_to(full, TOP, "d"), STATUS(OK));
    assert_int_equal(lookup(TOP, "d"), full);
    assert_int_equal(lookup(full, "f"), f);
}

static void a_directory_cannot_move_into_itself(void **state)
{
    uint64_t a = directory(TOP, "a");
    uint64_t b = directory(a, "b");
    uint64_t c = directory(b, "c");
    assert_int_equal(rename_to(a, a, "x"), STATUS(LOOP));
    assert_int_equal(rename_to(a, c, "x"), STATUS(LOOP));
    assert_int_equal(exchange(c, TOP, "a"), STATUS(LOOP));
    assert_int_equal(exchange(a, b, "c"), STATUS(LOOP));
    assert_int_equal(rename_to(c, TOP, "x"), STATUS(OK));
}

static void two_entries_change_places(void **state)
{
    uint64_t d = directory(TOP, "d");
    uint64_t inner = directory(d, "inner");
    uint64_t f = file(TOP, "f", 1);
    assert_int_equal(exchange(f, d, "inner"), STATUS(OK));
    assert_int_equal(changes_count, 2);
    assert_int_equal(lookup(d, "inner"), f);
    assert_int_equal(lookup(TOP, "f"), inner);
    assert_int_equal(exchange(f, TOP, "nothing"), STATUS(NOT_FOUND));
    uint64_t g = file(TOP, "g", 2);
    uint64_t h = file(TOP, "h", 3);
    assert_int_equal(exchange(g, TOP, "h"), STATUS(OK));
    assert_int_equal(lookup(TOP, "g"), h);
    assert_int_equal(lookup(TOP, "h"), g);
}

static void the_root_cannot_be_changed(void **state)
{
    assert_int_equal(remove_id(TOP), STATUS(DENIED));
    assert_int_equal(rename_to(TOP, TOP, "x"), STATUS(DENIED));
    Tracker__Op op = new_op(KIND(ATTR), 0, "");
    op.id = TOP;
    op.set_mode = true;
    assert_int_equal(apply(&ann, &op), STATUS(DENIED));
}

/* --- removing, attributes ------------------------------------------------------------------------------------------ */

static void only_empty_directories_are_removed(void **state)
{
    uint64_t d = directory(TOP, "d");
    uint64_t f = file(d, "f", 1);
    assert_int_equal(remove_id(d), STATUS(NOT_EMPTY));
    assert_int_equal(remove_id(f), STATUS(OK));
    assert_true(left.gone);
    assert_int_equal(remove_id(f), STATUS(NOT_FOUND));
    assert_int_equal(remove_id(d), STATUS(OK));
    assert_int_equal(storage_entry_count(storage), 0);
}

static void attributes_are_set_where_given(void **state)
{
    uint64_t f = file(TOP, "f", 1);
    Tracker__Op op = new_op(KIND(ATTR), 0, "");
    op.id = f;
    op.set_mtime = true;
    op.mtime = -5;
    op.mode = 0600;
    assert_int_equal(apply(&bob, &op), STATUS(OK));
    assert_int_equal(left.mtime, -5);
    assert_int_equal(left.mode, 0644);
    op.op = 0;
    op.set_mode = true;
    op.mode = 07777;
    assert_int_equal(apply(&bob, &op), STATUS(OK));
    assert_int_equal(left.mode, 0777);
    assert_string_equal(left.owner, "ann");
    op.op = 0;
    assert_int_equal(apply(&bob, &op), STATUS(OK));
    assert_int_equal(changes_count, 0);
}

static void extended_attributes_are_merged_kept_and_bounded(void **state)
{
    uint64_t f = file(TOP, "f", 1);
    uint8_t value[3] = {1, 0, 2};
    char *gone = (char *)(uintptr_t) "user.a";
    Tracker__Xattr items[2] = {TRACKER__XATTR__INIT, TRACKER__XATTR__INIT};
    Tracker__Xattr *list[2] = {&items[0], &items[1]};
    Tracker__Xattrs set = TRACKER__XATTRS__INIT;
    Tracker__Op op = new_op(KIND(ATTR), 0, "");
    items[0].name = gone;
    items[1].name = (char *)(uintptr_t) "user.b";
    items[0].value.data = items[1].value.data = value;
    items[0].value.len = items[1].value.len = sizeof value;
    set.list = list;
    set.n_list = 2;
    op.id = f;
    op.xattrs = &set;
    assert_int_equal(apply(&bob, &op), STATUS(OK));
    assert_int_equal(changes_count, 1);
    assert_int_equal(left.xattrs->n_list, 2);
    op.op = 0;
    assert_int_equal(apply(&bob, &op), STATUS(OK));
    assert_int_equal(changes_count, 0);
    /* Others stay when one goes; what takes the place of a version keeps them unless it says others. */
    op = new_op(KIND(ATTR), 0, "");
    op.id = f;
    op.xattrs_removed = &gone;
    op.n_xattrs_removed = 1;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    assert_int_equal(left.xattrs->n_list, 1);
    op = new_op(KIND(PUBLISH), TOP, "f");
    uint8_t root[STORAGE_ROOT_SIZE] = {2};
    op.root = (ProtobufCBinaryData){.len = sizeof root, .data = root};
    op.size = 2;
    op.replace_any = true;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    assert_int_equal(left.id, f);
    assert_memory_equal(xattrs_find(left.xattrs, "user.b")->value.data, value, sizeof value);
    op.op = 0;
    list[0] = &items[0];
    set.n_list = 1;
    op.xattrs = &set;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    assert_int_equal(left.xattrs->n_list, 1);
    assert_non_null(xattrs_find(left.xattrs, "user.a"));
    /* Strangers' input. */
    op = new_op(KIND(ATTR), 0, "");
    op.id = f;
    op.xattrs = &set;
    items[0].name = (char *)(uintptr_t) "user.p2p.root";
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    items[0].name = (char *)(uintptr_t) "trusted.a";
    op.op = 0;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    uint8_t *much = xcalloc(1, LIMIT_XATTR_VALUE + 1);
    items[0].name = (char *)(uintptr_t) "user.m";
    items[0].value = (ProtobufCBinaryData){.len = LIMIT_XATTR_VALUE + 1, .data = much};
    op.op = 0;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
    items[0].value.len = LIMIT_XATTR_VALUE;
    op.op = 0;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    items[0].name = (char *)(uintptr_t) "user.n";
    op.op = 0;
    assert_int_equal(apply(&ann, &op), STATUS(FULL));
    assert_int_equal(left.xattrs->n_list, 2);
    free(much);
}

/* --- numbers of operations ------------------------------------------------------------------------------------------- */

static void an_operation_is_done_once(void **state)
{
    Tracker__Op op = new_op(KIND(MKDIR), TOP, "d");
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    uint64_t id = left.id;
    assert_int_equal(apply(&ann, &op), STATUS(OK));
    assert_int_equal(changes_count, 0);
    assert_int_equal(left.id, id);
    /* The same number of another device is another operation. */
    assert_int_equal(apply(&bob, &op), STATUS(EXISTS));
    /* A refusal is remembered as well: the name is free now, the answer is the one of the first time. */
    assert_int_equal(remove_id(id), STATUS(OK));
    assert_int_equal(apply(&bob, &op), STATUS(EXISTS));
    assert_int_equal(lookup(TOP, "d"), 0);
}

static void operations_name_what_earlier_ones_made(void **state)
{
    Tracker__Op parent = new_op(KIND(MKDIR), TOP, "d");
    assert_int_equal(apply(&ann, &parent), STATUS(OK));
    uint64_t d = left.id;
    Tracker__Op child = new_op(KIND(MKDIR), 0, "inner");
    child.parent_op = parent.op;
    assert_int_equal(apply(&ann, &child), STATUS(OK));
    assert_int_equal(left.parent, d);
    Tracker__Op move = new_op(KIND(RENAME), TOP, "out");
    move.id_op = child.op;
    assert_int_equal(apply(&ann, &move), STATUS(OK));
    assert_int_equal(left.parent, TOP);
    Tracker__Op stranger = new_op(KIND(MKDIR), 0, "x");
    stranger.parent_op = parent.op;
    assert_int_equal(apply(&bob, &stranger), STATUS(NOT_FOUND));
}

static void only_the_last_operations_are_remembered(void **state)
{
    struct storage_op found;
    for (uint64_t i = 1; i <= LIMIT_OPS_KEPT + 600; i++) {
        struct storage_op op = {.op = i, .status = STATUS(OK), .entry = i};
        storage_op_put(storage, laptop, &op);
    }
    assert_false(storage_op_get(storage, laptop, 1, &found));
    assert_true(storage_op_get(storage, laptop, LIMIT_OPS_KEPT + 600, &found));
    assert_true(storage_op_get(storage, laptop, 601, &found));
}

static void an_operation_without_number_or_of_no_kind_is_bad(void **state)
{
    struct catalogue_result result;
    struct catalogue_changes changes = {0};
    Tracker__Op op = new_op(KIND(MKDIR), TOP, "d");
    catalogue_apply(storage, &ann, &op, &result, &changes);
    assert_int_equal(result.status, STATUS(BAD));
    op.kind = (Tracker__OpKind)77;
    assert_int_equal(apply(&ann, &op), STATUS(BAD));
}

/* --- what subscribers read ------------------------------------------------------------------------------------------- */

static size_t since(uint64_t seq, uint64_t tombstones_after, struct storage_entry *out)
{
    bool more;
    size_t count = storage_entries_since(storage, seq, tombstones_after, out, 16, 1 << 20, &more);
    for (size_t i = 0; i < count; i++) {
        assert_true(out[i].seq > seq);
        seq = out[i].seq;
        storage_entry_clear(&out[i]);
    }
    return count;
}

static void entries_are_read_in_the_order_of_change(void **state)
{
    struct storage_entry out[16];
    uint64_t a = directory(TOP, "a");
    uint64_t b = directory(TOP, "b");
    uint64_t at = storage_seq(storage);
    directory(TOP, "c");
    assert_int_equal(remove_id(a), STATUS(OK));
    assert_int_equal(since(at, 0, out), 2);
    assert_true(out[1].gone);
    assert_int_equal(since(0, storage_seq(storage), out), 2);
    assert_int_equal(out[0].id, b);
}

static void old_tombstones_are_dropped_and_that_is_known(void **state)
{
    struct storage_entry out[16];
    uint64_t a = directory(TOP, "a");
    directory(TOP, "b");
    assert_int_equal(remove_id(a), STATUS(OK));
    uint64_t at = storage_seq(storage);
    storage_prune(storage, 0);
    assert_int_equal(storage_pruned(storage), 0);
    storage_prune(storage, INT64_MAX);
    assert_int_equal(storage_pruned(storage), at);
    assert_int_equal(since(0, 0, out), 1);
    assert_int_equal(storage_entry_count(storage), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

static Tracker__OpStatus remove_it(uint64_t id)
{
    Tracker__Op op = TRACKER__OP__INIT;
    op.kind = KIND(REMOVE);
    op.id = id;
    return apply(&ann, &op);
}

static void one_directory_has_so_many_entries_and_no_more(void **state)
{
    uint64_t full = directory(TOP, "full"), other = directory(TOP, "other"), last;
    struct storage_entry entry = {.parent = full, .kind = TRACKER__KIND__KIND_DIRECTORY};
    snprintf(entry.owner, sizeof entry.owner, "ann");
    for (unsigned i = 0; i < LIMIT_DIRECTORY - 1; i++) {
        snprintf(entry.name, sizeof entry.name, "%u", i);
        storage_entry_add(storage, &entry);
    }
    last = directory(full, "last");
    assert_int_equal(mkdir_in(full, "too many"), STATUS(FULL));
    assert_int_equal(rename_to(other, full, "too many"), STATUS(FULL));
    assert_int_equal(mkdir_in(full, "last"), STATUS(EXISTS));
    assert_int_equal(mkdir_in(other, "has room"), STATUS(OK));
    assert_int_equal(rename_to(last, full, "renamed"), STATUS(OK));
    assert_int_equal(rename_to(last, other, "moved"), STATUS(OK));
    assert_int_equal(mkdir_in(full, "in its place"), STATUS(OK));
    assert_int_equal(remove_it(left.id), STATUS(OK));
    assert_int_equal(rename_to(last, full, "back"), STATUS(OK));
    assert_int_equal(mkdir_in(full, "too many"), STATUS(FULL));
    /* What is taken back was never there. */
    assert_true(storage_mark(storage));
    assert_int_equal(remove_it(last), STATUS(OK));
    storage_undo(storage);
    assert_int_equal(mkdir_in(full, "too many"), STATUS(FULL));
}

static uint64_t entries_of(const char *name)
{
    struct storage_account account;
    assert_true(storage_account_get(storage, name, &account));
    return account.entries;
}

static void an_account_has_so_many_entries_and_no_more(void **state)
{
    struct storage_account account = {0};
    struct catalogue_changes changes = {0};
    uint64_t after = 0;
    snprintf(account.name, sizeof account.name, "ann");
    assert_true(storage_account_add(storage, &account));
    snprintf(account.name, sizeof account.name, "ben");
    assert_true(storage_account_add(storage, &account));
    storage_quota_set(storage, 3);
    uint64_t one = directory(TOP, "one");
    directory(TOP, "two");
    directory(TOP, "three");
    assert_int_equal(mkdir_in(TOP, "four"), STATUS(QUOTA));
    assert_int_equal(mkdir_in(TOP, "two"), STATUS(EXISTS));
    assert_int_equal(rename_to(one, TOP, "renamed"), STATUS(OK));
    assert_int_equal(entries_of("ann"), 3);
    /* Room by removing, and a refusal was not remembered. */
    assert_int_equal(remove_it(one), STATUS(OK));
    assert_int_equal(entries_of("ann"), 2);
    assert_int_equal(mkdir_in(TOP, "four"), STATUS(OK));
    assert_int_equal(mkdir_in(TOP, "five"), STATUS(QUOTA));
    /* What another one has does not count, until it is handed over. */
    assert_int_equal(catalogue_transfer(storage, "ann", "ben", &after, 16, &changes), 3);
    catalogue_changes_clear(&changes);
    assert_int_equal(entries_of("ann"), 0);
    assert_int_equal(entries_of("ben"), 3);
    assert_int_equal(mkdir_in(TOP, "five"), STATUS(OK));
    /* One account's own number. */
    assert_true(storage_account_get(storage, "ann", &account));
    account.quota = 1;
    storage_account_put(storage, &account);
    assert_int_equal(mkdir_in(TOP, "six"), STATUS(QUOTA));
    account.quota = 2;
    storage_account_put(storage, &account);
    assert_int_equal(mkdir_in(TOP, "six"), STATUS(OK));
}

int main(void)
{
    log_init("test", LOG_LEVEL_WARNING, false);
    const struct CMUnitTest tests[] = {
        TEST(what_the_member_has_not_seen_is_neither_removed_nor_replaced),
        TEST(entries_are_made_with_what_was_said),
        TEST(bad_names_are_refused),
        TEST(bad_targets_are_refused),
        TEST(one_directory_has_so_many_entries_and_no_more),
        TEST(an_account_has_so_many_entries_and_no_more),
        TEST(unsound_contents_are_refused),
        TEST(a_place_must_be_a_live_directory),
        TEST(a_taken_name_is_told_with_what_is_there),
        TEST(depth_is_bounded),
        TEST(a_version_based_on_the_present_one_replaces_it),
        TEST(a_version_based_on_an_older_one_is_a_conflict),
        TEST(the_same_content_again_is_no_conflict),
        TEST(a_version_of_a_removed_file_makes_it_anew),
        TEST(renaming_moves_and_keeps_the_id),
        TEST(renaming_over_a_file_takes_its_place),
        TEST(renaming_over_directories_follows_rename_2),
        TEST(a_directory_cannot_move_into_itself),
        TEST(two_entries_change_places),
        TEST(the_root_cannot_be_changed),
        TEST(only_empty_directories_are_removed),
        TEST(attributes_are_set_where_given),
        TEST(extended_attributes_are_merged_kept_and_bounded),
        TEST(an_operation_is_done_once),
        TEST(operations_name_what_earlier_ones_made),
        TEST(only_the_last_operations_are_remembered),
        TEST(an_operation_without_number_or_of_no_kind_is_bad),
        TEST(entries_are_read_in_the_order_of_change),
        TEST(old_tombstones_are_dropped_and_that_is_known),
    };
    return cmocka_run_group_tests_name("tracker_catalogue", tests, NULL, NULL);
}
