/* proto/message.c: strangers' messages in bounded memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/peer.pb-c.h"
#include "proto/tracker.pb-c.h"

static uint8_t *pack(const ProtobufCMessage *message, size_t *size)
{
    *size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = xmalloc(*size + 1);
    protobuf_c_message_pack(message, bytes);
    return bytes;
}

/* `count` times the two bytes of an empty element of field `number`. */
static uint8_t *empty_elements(unsigned number, size_t count)
{
    uint8_t *bytes = xmalloc(2 * count);
    for (size_t i = 0; i < count; i++) {
        bytes[2 * i] = (uint8_t)(number << 3 | 2);
        bytes[2 * i + 1] = 0;
    }
    return bytes;
}

static void a_request_is_unpacked_without_malloc(void **state)
{
    Peer__Request request = PEER__REQUEST__INIT;
    request.file = 7;
    request.block = UINT64_MAX;
    request.count = 1024;
    request.urgency = PEER__URGENCY__URGENCY_DEMAND;
    size_t size;
    uint8_t *bytes = pack(&request.base, &size);
    struct message_arena arena;
    const Peer__Request *out = message_unpack(&arena, &peer__request__descriptor, bytes, size);
    assert_non_null(out);
    assert_int_equal(out->file, 7);
    assert_true(out->block == UINT64_MAX);
    assert_int_equal(out->count, 1024);
    assert_int_equal(out->urgency, PEER__URGENCY__URGENCY_DEMAND);
    assert_null(arena.chunks);
    assert_true((const uint8_t *)out >= arena.small &&
                (const uint8_t *)out < arena.small + sizeof arena.small);
    message_done(&arena);
    message_done(&arena);
    free(bytes);
}

static void an_empty_message_has_its_defaults(void **state)
{
    static const uint8_t none[1];
    struct message_arena arena;
    const Peer__Hello *hello = message_unpack(&arena, &peer__hello__descriptor, none, 0);
    assert_non_null(hello);
    assert_string_equal(hello->agent, "");
    assert_int_equal(hello->device.len, 0);
    message_done(&arena);
}

static void a_large_message_is_unpacked_whole(void **state)
{
    Tracker__Entry entries[LIMIT_CHANGES];
    Tracker__Entry *pointers[LIMIT_CHANGES];
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    for (size_t i = 0; i < LIMIT_CHANGES; i++) {
        tracker__entry__init(&entries[i]);
        entries[i].id = i + 2;
        entries[i].parent = 1;
        entries[i].name = xasprintf("file %zu", i);
        pointers[i] = &entries[i];
    }
    changes.n_entries = LIMIT_CHANGES;
    changes.entries = pointers;
    size_t size;
    uint8_t *bytes = pack(&changes.base, &size);
    struct message_arena arena;
    const Tracker__Changes *out =
        message_unpack(&arena, &tracker__changes__descriptor, bytes, size);
    assert_non_null(out);
    assert_int_equal(out->n_entries, LIMIT_CHANGES);
    for (size_t i = 0; i < LIMIT_CHANGES; i++) {
        assert_int_equal(out->entries[i]->id, i + 2);
        assert_string_equal(out->entries[i]->name, entries[i].name);
        free(entries[i].name);
    }
    message_done(&arena);
    free(bytes);
}

/* What honest senders pack tightest must fit under the floor. */
static void full_batches_of_the_smallest_elements_pass(void **state)
{
    Tracker__Entry entry = TRACKER__ENTRY__INIT;
    Tracker__Entry *entries[LIMIT_CHANGES];
    Tracker__Changes changes = TRACKER__CHANGES__INIT;
    entry.id = 2;
    entry.gone = true;
    for (size_t i = 0; i < LIMIT_CHANGES; i++)
        entries[i] = &entry;
    changes.n_entries = LIMIT_CHANGES;
    changes.entries = entries;
    size_t size;
    uint8_t *bytes = pack(&changes.base, &size);
    struct message_arena arena;
    assert_non_null(message_unpack(&arena, &tracker__changes__descriptor, bytes, size));
    message_done(&arena);
    free(bytes);

    Tracker__Op op = TRACKER__OP__INIT;
    Tracker__Op *ops[LIMIT_OPS];
    Tracker__Ops batch = TRACKER__OPS__INIT;
    op.op = 1;
    op.kind = TRACKER__OP_KIND__OP_REMOVE;
    for (size_t i = 0; i < LIMIT_OPS; i++)
        ops[i] = &op;
    batch.n_ops = LIMIT_OPS;
    batch.ops = ops;
    bytes = pack(&batch.base, &size);
    assert_non_null(message_unpack(&arena, &tracker__ops__descriptor, bytes, size));
    message_done(&arena);
    free(bytes);

    Tracker__Holding holding = TRACKER__HOLDING__INIT;
    Tracker__Holding *holdings[LIMIT_ANNOUNCE_FILES];
    Tracker__Announce announce = TRACKER__ANNOUNCE__INIT;
    uint8_t root[32] = {0};
    holding.root = (ProtobufCBinaryData){.len = sizeof root, .data = root};
    holding.dropped = true;
    for (size_t i = 0; i < LIMIT_ANNOUNCE_FILES; i++)
        holdings[i] = &holding;
    announce.n_holdings = LIMIT_ANNOUNCE_FILES;
    announce.holdings = holdings;
    bytes = pack(&announce.base, &size);
    assert_non_null(message_unpack(&arena, &tracker__announce__descriptor, bytes, size));
    message_done(&arena);
    free(bytes);
}

static size_t taken(const struct message_arena *arena, size_t size)
{
    return LIMIT_ARENA_FLOOR + LIMIT_ARENA_FACTOR * size - arena->left;
}

static void many_empty_submessages_hit_the_bound(void **state)
{
    size_t count = LIMIT_FRAME_MESSAGE / 2;
    uint8_t *bytes = empty_elements(2, count);
    struct message_arena arena;
    assert_null(message_unpack(&arena, &tracker__changes__descriptor, bytes, 2 * count));
    assert_true(taken(&arena, 2 * count) <= LIMIT_ARENA_FLOOR + LIMIT_ARENA_FACTOR * 2 * count);
    message_done(&arena);
    /* Few enough that the list of fields still fits, but not the elements. */
    count = 2000;
    assert_null(message_unpack(&arena, &tracker__changes__descriptor, bytes, 2 * count));
    assert_true(taken(&arena, 2 * count) <= LIMIT_ARENA_FLOOR + LIMIT_ARENA_FACTOR * 2 * count);
    message_done(&arena);
    /* A stranger's 64 KiB as well. */
    count = LIMIT_STRANGER_FRAME / 2;
    assert_null(message_unpack(&arena, &tracker__changes__descriptor, bytes, 2 * count));
    message_done(&arena);
    free(bytes);
}

static void many_copies_of_one_submessage_hit_the_bound(void **state)
{
    size_t count = LIMIT_STRANGER_FRAME / 2;
    uint8_t *bytes = empty_elements(3, count); /* Result.entry, again and again */
    struct message_arena arena;
    assert_null(message_unpack(&arena, &tracker__result__descriptor, bytes, 2 * count));
    message_done(&arena);
    free(bytes);
}

static void unknown_fields_are_skipped(void **state)
{
    /* field 15, varint 1; then file = 5; then field 14, 3 bytes */
    static const uint8_t bytes[] = {0x78, 0x01, 0x08, 0x05, 0x72, 0x03, 'a', 'b', 'c'};
    struct message_arena arena;
    const Peer__Block *block =
        message_unpack(&arena, &peer__block__descriptor, bytes, sizeof bytes);
    assert_non_null(block);
    assert_int_equal(block->file, 5);
    message_done(&arena);
}

static void malformed_bytes_are_refused(void **state)
{
    static const uint8_t cut_varint[] = {0x08, 0x80};
    static const uint8_t long_string[] = {0x2a, 0x7f, 'x'};
    static const uint8_t huge_length[] = {0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f};
    static const uint8_t group[] = {0x0b, 0x0c};
    static const uint8_t tag_zero[] = {0x02, 0x00};
    static const struct {
        const uint8_t *bytes;
        size_t size;
    } cases[] = {
        {cut_varint, sizeof cut_varint},   {long_string, sizeof long_string},
        {huge_length, sizeof huge_length}, {group, sizeof group},
        {tag_zero, sizeof tag_zero},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct message_arena arena;
        assert_null(
            message_unpack(&arena, &peer__hello__descriptor, cases[i].bytes, cases[i].size));
        message_done(&arena);
    }
}

static void every_prefix_of_a_message_is_survived(void **state)
{
    Tracker__Entry entry = TRACKER__ENTRY__INIT;
    Tracker__Result result = TRACKER__RESULT__INIT, *results[3] = {&result, &result, &result};
    Tracker__Results all = TRACKER__RESULTS__INIT;
    char name[] = "a name", target[] = "a target";
    entry.id = 77;
    entry.name = name;
    entry.target = target;
    result.op = 1;
    result.entry = &entry;
    all.n_results = 3;
    all.results = results;
    size_t size;
    uint8_t *bytes = pack(&all.base, &size);
    for (size_t cut = 0; cut <= size; cut++) {
        uint8_t *part = xmemdup(bytes, cut + (cut == 0));
        struct message_arena arena;
        const Tracker__Results *out =
            message_unpack(&arena, &tracker__results__descriptor, part, cut);
        if (cut == size)
            assert_non_null(out);
        message_done(&arena);
        free(part);
    }
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_unpacked_without_malloc),
        cmocka_unit_test(an_empty_message_has_its_defaults),
        cmocka_unit_test(a_large_message_is_unpacked_whole),
        cmocka_unit_test(full_batches_of_the_smallest_elements_pass),
        cmocka_unit_test(many_empty_submessages_hit_the_bound),
        cmocka_unit_test(many_copies_of_one_submessage_hit_the_bound),
        cmocka_unit_test(unknown_fields_are_skipped),
        cmocka_unit_test(malformed_bytes_are_refused),
        cmocka_unit_test(every_prefix_of_a_message_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
