/* tracker/swarm.c and swarm_peers.c: against a naive recount, and the choice of peers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/bitmap.h"
#include "base/clock.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "tracker/swarm.h"

#define PIECE (256u << 10)

static int connection; /* any address that is not NULL */

static struct swarm_device *device(struct swarm *s, unsigned n)
{
    uint8_t id[DEVICE_ID_SIZE] = {1, (uint8_t)n, (uint8_t)(n >> 8)};
    return swarm_device(s, id);
}

static struct swarm_device *connected(struct swarm *s, unsigned n)
{
    struct swarm_device *d = device(s, n);
    swarm_connect(s, d, &connection);
    return d;
}

static struct swarm_key content(unsigned n, unsigned pieces)
{
    struct swarm_key key = {.root = {2, (uint8_t)n}, .size = (uint64_t)pieces * PIECE};
    return key;
}

static void hold(struct swarm *s, struct swarm_device *d, struct swarm_key key, uint8_t bits)
{
    assert_null(swarm_hold(s, d, &key, false, &bits, 1));
}

static void hold_all(struct swarm *s, struct swarm_device *d, struct swarm_key key)
{
    assert_null(swarm_hold(s, d, &key, true, NULL, 0));
}

static struct swarm_health health(struct swarm *s, struct swarm_key key)
{
    struct swarm_health h;
    swarm_health(s, &key, &h);
    return h;
}

/* --- health ---------------------------------------------------------------------------------------------- */

static void health_of_an_unknown_content_is_all_missing(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_health h = health(s, content(1, 4));
    assert_int_equal(h.pieces, 4);
    assert_int_equal(h.missing, 4);
    assert_int_equal(h.distributed, 0);
    swarm_free(s);
}

static void distributed_copies_are_the_rarest_and_the_share_that_has_more(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    hold_all(s, connected(s, 1), key);
    hold(s, connected(s, 2), key, 0xe0);
    struct swarm_health h = health(s, key);
    assert_int_equal(h.rarest, 1);
    assert_int_equal(h.distributed, 1750);
    assert_int_equal(h.complete, 1);
    assert_int_equal(h.partial, 1);
    assert_int_equal(h.missing, 0);
    swarm_free(s);
}

static void an_empty_file_counts_its_holders(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 0);
    assert_int_equal(health(s, key).distributed, 0);
    hold_all(s, connected(s, 1), key);
    assert_null(swarm_hold(s, connected(s, 2), &key, false, NULL, 0));
    assert_int_equal(health(s, key).rarest, 2);
    assert_int_equal(health(s, key).distributed, 2000);
    assert_int_equal(health(s, key).complete, 2);
    swarm_free(s);
}

static void the_last_piece_makes_a_holder_complete(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 3);
    struct swarm_device *d = connected(s, 1);
    uint32_t pieces[] = {0, 2};
    uint32_t last = 1;
    assert_null(swarm_add(s, d, &key, pieces, 2));
    assert_int_equal(health(s, key).partial, 1);
    assert_null(swarm_add(s, d, &key, &last, 1));
    assert_int_equal(health(s, key).complete, 1);
    assert_int_equal(health(s, key).partial, 0);
    assert_int_equal(health(s, key).rarest, 1);
    swarm_free(s);
}

static void no_new_pieces_confirm_what_is_known(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 3);
    struct swarm_device *d = connected(s, 1);
    assert_null(swarm_add(s, d, &key, NULL, 0));
    assert_int_equal(health(s, key).partial, 0);
    hold(s, d, key, 0x80);
    swarm_forget(s, d);
    assert_null(swarm_add(s, d, &key, NULL, 0));
    assert_int_equal(health(s, key).partial, 1);
    swarm_free(s);
}

static void one_root_with_two_sizes_is_two_contents(void **state)
{
    struct swarm *s = swarm_new(1);
    hold_all(s, connected(s, 1), content(1, 4));
    assert_int_equal(health(s, content(1, 5)).complete, 0);
    assert_int_equal(health(s, content(1, 4)).complete, 1);
    swarm_free(s);
}

static void bad_bitfields_and_pieces_are_refused(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_device *d = connected(s, 1);
    uint8_t spare_bit[1] = {0x08};
    uint8_t bits[2] = {0x80, 0};
    uint32_t piece = 4;
    assert_non_null(swarm_hold(s, d, &key, false, spare_bit, 1));
    assert_non_null(swarm_hold(s, d, &key, false, bits, 2));
    assert_non_null(swarm_hold(s, d, &key, false, bits, 0));
    assert_non_null(swarm_add(s, d, &key, &piece, 1));
    assert_int_equal(health(s, key).partial, 0);
    swarm_free(s);
}

static void one_device_cannot_announce_maps_without_bound(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *d = connected(s, 1);
    uint32_t piece = 1;
    const char *fault = NULL;
    unsigned made = 0;
    for (; fault == NULL && made < 200; made++) {
        struct swarm_key key = {.root = {3, (uint8_t)made}, .size = FILE_SIZE_MAX};
        fault = swarm_add(s, d, &key, &piece, 1);
    }
    assert_non_null(fault);
    assert_true(made <= 17);
    swarm_free(s);
}

static bool sees_nothing(void *arg, void *owner, const uint8_t root[HASH_SIZE])
{
    return root[0] != 2;
}

static void what_a_device_may_not_see_takes_little(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *d = connected(s, 1);
    struct swarm_key key = {.root = {2}, .size = PIECE}, seen = {.root = {3}, .size = PIECE};
    swarm_set_judge(s, sees_nothing, NULL);
    for (uint32_t i = 0; i < LIMIT_ANNOUNCED_UNSEEN; i++) {
        memcpy(key.root + 4, &i, sizeof i);
        hold_all(s, d, key);
    }
    hold_all(s, d, key); /* said again */
    key.root[9] = 1;
    assert_non_null(swarm_hold(s, d, &key, true, NULL, 0));
    hold_all(s, d, seen);
    key.root[9] = 0;
    swarm_drop(s, d, &key);
    key.root[9] = 1;
    hold_all(s, d, key);
    swarm_forget(s, d);
    swarm_free(s);
}

/* Says that it has `count` made-up contents; NULL, or why not all were taken. */
static const char *make_up(struct swarm *s, struct swarm_device *d, uint32_t first, uint32_t count)
{
    struct swarm_key key = {.root = {2}, .size = PIECE};
    const char *fault = NULL;
    for (uint32_t i = first; i < first + count && fault == NULL; i++) {
        memcpy(key.root + 4, &i, sizeof i);
        fault = swarm_hold(s, d, &key, true, NULL, 0);
    }
    return fault;
}

static bool is_published(void *arg, const uint8_t root[HASH_SIZE])
{
    return root[0] != 2;
}

static void what_nobody_published_is_bounded_for_all_devices_of_an_account(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *a = device(s, 1), *b = device(s, 2), *other = device(s, 3);
    struct swarm_key first = {.root = {2}, .size = PIECE}, known = {.root = {3}, .size = PIECE};
    swarm_set_known(s, is_published);
    swarm_device_of(s, a, "eve");
    swarm_device_of(s, b, "eve");
    swarm_device_of(s, other, "ann");
    swarm_connect(s, a, &connection);
    swarm_connect(s, b, &connection);
    swarm_connect(s, other, &connection);
    assert_null(make_up(s, a, 0, LIMIT_ANNOUNCED_UNSEEN / 2));
    assert_null(make_up(s, b, 1u << 20, LIMIT_ANNOUNCED_UNSEEN / 2));
    assert_non_null(make_up(s, a, 2u << 20, 1));
    assert_non_null(make_up(s, b, 2u << 20, 1));
    assert_null(make_up(s, a, 0, 100)); /* said again */
    assert_null(make_up(s, other, 2u << 20, 100));
    hold_all(s, a, known); /* what is in the catalogue is another matter */
    swarm_forget(s, a);    /* from scratch, or away and back: still there */
    assert_non_null(make_up(s, a, 2u << 20, 1));
    swarm_disconnect(s, a);
    swarm_device_of(s, a, "eve");
    swarm_connect(s, a, &connection);
    assert_non_null(make_up(s, a, 2u << 20, 1));
    swarm_confirm(s, a);
    swarm_published(s, &first); /* the number 0 of a's */
    assert_null(make_up(s, a, 2u << 20, 1));
    assert_non_null(make_up(s, a, 3u << 20, 1));
    swarm_forget(s, a);
    swarm_settle(s, a);
    assert_null(make_up(s, b, 3u << 20, LIMIT_ANNOUNCED_UNSEEN / 2));
    assert_non_null(make_up(s, b, 4u << 20, 1));
    swarm_free(s);
}

static void maps_of_what_nobody_published_are_bounded_closer(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *d = connected(s, 1);
    struct swarm_key key = {.root = {2}, .size = UINT64_C(16) << 40};
    uint32_t piece = 1, pieces = geometry_of(key.size).pieces;
    const char *fault = NULL;
    unsigned made = 0;
    swarm_set_known(s, is_published);
    for (; fault == NULL && made < 100; made++) {
        key.root[1] = (uint8_t)made;
        fault = swarm_add(s, d, &key, &piece, 1);
    }
    assert_non_null(fault);
    assert_int_equal(made, LIMIT_ANNOUNCED_UNSEEN_PIECES / pieces + 1);
    key.root[0] = 3;
    assert_null(swarm_add(s, d, &key, &piece, 1));
    swarm_free(s);
}

static bool blind; /* the address is an owner who may see nothing */

static bool blind_sees_nothing(void *arg, void *owner, const uint8_t root[HASH_SIZE])
{
    return owner != &blind;
}

static void who_may_not_see_a_content_learns_not_who_has_it_by_giving_it_up(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 8);
    struct swarm_device *a = connected(s, 1), *b = connected(s, 2);
    uint8_t id[DEVICE_ID_SIZE] = {99}, granted;
    struct swarm_device *stranger = swarm_device(s, id);
    swarm_set_judge(s, blind_sees_nothing, NULL);
    swarm_connect(s, stranger, &blind);
    hold_all(s, a, key);
    hold(s, b, key, 0xf0);
    hold_all(s, stranger, key);
    assert_null(swarm_release(s, stranger, &key, NULL, 0, &granted));
    assert_int_equal(granted, 0);
    assert_null(swarm_release(s, b, &key, NULL, 0, &granted));
    assert_int_equal(granted, 0xff);
    swarm_free(s);
}

static void an_offline_device_is_known_but_does_not_count(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_device *d = connected(s, 1);
    hold(s, d, key, 0xc0);
    swarm_disconnect(s, d);
    assert_int_equal(health(s, key).offline, 1);
    assert_int_equal(health(s, key).missing, 4);
    swarm_connect(s, d, &connection);
    assert_int_equal(health(s, key).partial, 0);
    swarm_confirm(s, d);
    assert_int_equal(health(s, key).partial, 1);
    assert_int_equal(health(s, key).offline, 0);
    swarm_free(s);
}

static void what_is_not_said_again_after_an_announce_from_scratch_is_dropped(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *d = connected(s, 1);
    hold_all(s, d, content(1, 4));
    hold_all(s, d, content(2, 4));
    swarm_forget(s, d);
    assert_int_equal(health(s, content(1, 4)).complete, 0);
    hold_all(s, d, content(1, 4));
    swarm_settle(s, d);
    assert_int_equal(health(s, content(1, 4)).complete, 1);
    assert_int_equal(health(s, content(2, 4)).offline, 0);
    swarm_free(s);
}

/* --- against a naive recount ----------------------------------------------------------------------------------- */

enum { DEVICES = 12, CONTENTS = 3, PIECES = 11 };

struct model {
    bool online[DEVICES];
    bool counted[DEVICES][CONTENTS];
    bool known[DEVICES][CONTENTS];
    bool has[DEVICES][CONTENTS][PIECES];
};

static unsigned model_pieces(const struct model *m, unsigned d, unsigned c)
{
    unsigned count = 0;
    for (unsigned p = 0; p < PIECES; p++)
        count += m->has[d][c][p];
    return count;
}

static void compare(struct swarm *s, const struct model *m)
{
    for (unsigned c = 0; c < CONTENTS; c++) {
        uint32_t copies[PIECES] = {0};
        struct swarm_health want = {.pieces = PIECES, .rarest = UINT32_MAX};
        uint32_t more = 0;
        for (unsigned d = 0; d < DEVICES; d++) {
            if (m->known[d][c] && !m->counted[d][c])
                want.offline++;
            if (!m->counted[d][c])
                continue;
            if (model_pieces(m, d, c) == PIECES)
                want.complete++;
            else
                want.partial++;
            for (unsigned p = 0; p < PIECES; p++)
                copies[p] += m->has[d][c][p];
        }
        for (unsigned p = 0; p < PIECES; p++)
            if (copies[p] < want.rarest)
                want.rarest = copies[p];
        for (unsigned p = 0; p < PIECES; p++) {
            more += copies[p] > want.rarest;
            want.missing += copies[p] == 0;
        }
        want.distributed = 1000 * (uint64_t)want.rarest + 1000 * more / PIECES;
        struct swarm_health got = health(s, content(c, PIECES));
        assert_memory_equal(&got, &want, sizeof got);
        uint8_t told[PIECES];
        struct swarm_key key = content(c, PIECES);
        assert_int_equal(swarm_copies(s, &key, told, PIECES), PIECES);
        for (unsigned p = 0; p < PIECES; p++)
            assert_int_equal(told[p], copies[p]);
    }
}

static uint32_t next_random(uint64_t *state, uint32_t below)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((*state >> 33) % below);
}

/* What the disk would know if every change were written. */
struct disk {
    bool known[DEVICES][CONTENTS];
    bool complete[DEVICES][CONTENTS];
    uint8_t map[DEVICES][CONTENTS][2];
};

static void to_disk(const struct swarm_change *change, void *arg)
{
    struct disk *disk = arg;
    unsigned d = change->device[1];
    unsigned c = change->key.root[1];
    disk->known[d][c] = !change->dropped;
    disk->complete[d][c] = change->complete;
    if (!change->dropped && !change->complete) {
        assert_int_equal(change->map_size, 2);
        memcpy(disk->map[d][c], change->map, 2);
    }
}

static void check_disk(const struct disk *disk, const struct model *m)
{
    for (unsigned d = 0; d < DEVICES; d++)
        for (unsigned c = 0; c < CONTENTS; c++) {
            assert_int_equal(disk->known[d][c], m->known[d][c]);
            if (!m->known[d][c])
                continue;
            assert_int_equal(disk->complete[d][c], model_pieces(m, d, c) == PIECES);
            for (unsigned p = 0; p < PIECES && !disk->complete[d][c]; p++)
                assert_int_equal(bitmap_test(disk->map[d][c], p), m->has[d][c][p]);
        }
}

static void step_offline(struct swarm *s, struct model *m, unsigned d, uint64_t *random)
{
    swarm_connect(s, device(s, d), &connection);
    m->online[d] = true;
    if (next_random(random, 2) == 0)
        return;
    swarm_confirm(s, device(s, d));
    for (unsigned c = 0; c < CONTENTS; c++)
        m->counted[d][c] = m->known[d][c];
}

static void step_hold(struct swarm *s, struct model *m, unsigned d, unsigned c, uint64_t *random)
{
    struct swarm_key key = content(c, PIECES);
    uint8_t map[2] = {0}, wire[2];
    uint32_t share = next_random(random, 4);
    bool all = share == 0;
    for (unsigned p = 0; p < PIECES; p++) {
        bool has = all || next_random(random, 4) < share;
        m->has[d][c][p] = has;
        if (has)
            bitmap_set(map, p);
    }
    bitmap_to_wire(wire, map, 2);
    assert_null(swarm_hold(s, device(s, d), &key, all && next_random(random, 2) == 0, wire, 2));
    m->known[d][c] = m->counted[d][c] = model_pieces(m, d, c) > 0;
}

static void step_add(struct swarm *s, struct model *m, unsigned d, unsigned c, uint64_t *random)
{
    struct swarm_key key = content(c, PIECES);
    uint32_t pieces[3];
    for (unsigned i = 0; i < 3; i++)
        pieces[i] = next_random(random, PIECES);
    assert_null(swarm_add(s, device(s, d), &key, pieces, 3));
    if (!m->known[d][c])
        memset(m->has[d][c], 0, sizeof m->has[d][c]);
    m->known[d][c] = m->counted[d][c] = true;
    for (unsigned i = 0; i < 3; i++)
        m->has[d][c][pieces[i]] = true;
}

static void step(struct swarm *s, struct model *m, uint64_t *random)
{
    unsigned d = next_random(random, DEVICES);
    unsigned c = next_random(random, CONTENTS);
    struct swarm_key key = content(c, PIECES);
    if (!m->online[d]) {
        step_offline(s, m, d, random);
        return;
    }
    switch (next_random(random, 10)) {
    case 0:
        swarm_disconnect(s, device(s, d));
        m->online[d] = false;
        memset(m->counted[d], 0, sizeof m->counted[d]);
        break;
    case 1:
        swarm_drop(s, device(s, d), &key);
        m->known[d][c] = m->counted[d][c] = false;
        break;
    case 2:
        swarm_forget(s, device(s, d));
        memset(m->counted[d], 0, sizeof m->counted[d]);
        break;
    case 3:
        swarm_settle(s, device(s, d));
        for (c = 0; c < CONTENTS; c++)
            m->known[d][c] &= m->counted[d][c];
        break;
    case 4:
    case 5:
    case 6:
        step_hold(s, m, d, c, random);
        break;
    default:
        step_add(s, m, d, c, random);
        break;
    }
}

static void counts_by_deltas_equal_a_recount(void **state)
{
    uint64_t random = 42;
    for (unsigned round = 0; round < 20; round++) {
        struct swarm *s = swarm_new(round);
        struct model *m = xcalloc(1, sizeof *m);
        struct disk *disk = xcalloc(1, sizeof *disk);
        for (unsigned i = 0; i < 2000; i++) {
            step(s, m, &random);
            compare(s, m);
            if (i % 50 == 49) {
                while (swarm_has_changes(s))
                    swarm_changes(s, 7, to_disk, disk);
                check_disk(disk, m);
            }
        }
        free(disk);
        free(m);
        swarm_free(s);
    }
}

static void what_was_written_is_known_after_a_restart(void **state)
{
    struct swarm *s = swarm_new(1);
    uint8_t map[2] = {0x03, 0x01};
    struct swarm_key a = content(1, PIECES);
    struct swarm_key b = content(2, PIECES);
    uint8_t id[DEVICE_ID_SIZE] = {1, 5};
    swarm_load(s, id, &a, false, map, 2);
    swarm_load(s, id, &a, false, map, 2);
    swarm_load(s, id, &b, true, NULL, 0);
    swarm_load(s, id, &b, false, map, 1);
    assert_int_equal(health(s, a).offline, 1);
    assert_false(swarm_has_changes(s));
    struct swarm_device *d = connected(s, 5);
    swarm_confirm(s, d);
    assert_int_equal(health(s, a).partial, 1);
    assert_int_equal(health(s, a).missing, PIECES - 3);
    assert_int_equal(health(s, b).complete, 1);
    swarm_free(s);
}

static void saying_the_same_again_writes_nothing(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_device *d = connected(s, 1);
    hold_all(s, d, content(1, 4));
    hold(s, d, content(2, 4), 0xc0);
    assert_int_equal(swarm_changes(s, 10, NULL, NULL), 2);
    swarm_forget(s, d);
    hold_all(s, d, content(1, 4));
    hold(s, d, content(2, 4), 0xc0);
    assert_false(swarm_has_changes(s));
    swarm_free(s);
}

/* --- peers ------------------------------------------------------------------------------------------------------- */

static size_t want(struct swarm *s, struct swarm_device *d, struct swarm_key key,
                   struct swarm_peer *out)
{
    size_t count;
    assert_null(swarm_want(s, d, &key, LIMIT_PEERS, out, &count));
    return count;
}

static bool holds(const struct swarm_peer *peers, size_t count, const struct swarm_device *d)
{
    for (size_t i = 0; i < count; i++)
        if (peers[i].device == d)
            return true;
    return false;
}

static void peers_that_have_what_the_asker_lacks_come_first(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct swarm_device *asker = connected(s, 1), *useless = connected(s, 2),
                        *useful = connected(s, 3), *waiting = connected(s, 4);
    hold(s, asker, key, 0xc0);
    hold(s, useless, key, 0x80);
    hold(s, useful, key, 0x20);
    want(s, waiting, key, peers);
    assert_int_equal(want(s, asker, key, peers), 2);
    assert_ptr_equal(peers[0].device, useful);
    assert_int_equal(peers[0].pieces, 1);
    assert_ptr_equal(peers[1].device, waiting);
    swarm_free(s);
}

static void nobody_is_told_of_itself_or_of_the_disconnected(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct swarm_device *asker = connected(s, 1), *gone = connected(s, 2);
    hold(s, asker, key, 0x80);
    hold_all(s, gone, key);
    want(s, gone, key, peers);
    swarm_disconnect(s, gone);
    assert_int_equal(want(s, asker, key, peers), 0);
    swarm_free(s);
}

static void a_seed_needs_nobody_but_hears_of_those_who_want(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct swarm_device *asker = connected(s, 1), *other = connected(s, 2);
    hold_all(s, asker, key);
    hold_all(s, other, key);
    assert_int_equal(want(s, asker, key, peers), 0);
    swarm_free(s);
}

static void everybody_is_chosen_about_equally_often(void **state)
{
    enum { HOLDERS = 3000, ASKS = 2000 };
    struct swarm *s = swarm_new(7);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    unsigned *times = xcalloc(HOLDERS + 2, sizeof *times);
    for (unsigned i = 1; i <= HOLDERS; i++)
        hold_all(s, connected(s, i), key);
    struct swarm_device *asker = connected(s, HOLDERS + 1);
    for (unsigned i = 0; i < ASKS; i++) {
        size_t count = want(s, asker, key, peers);
        assert_int_equal(count, LIMIT_PEERS);
        for (size_t k = 0; k < count; k++) {
            const uint8_t *id = swarm_device_id(peers[k].device);
            times[id[1] | (unsigned)id[2] << 8]++;
            assert_false(holds(peers, k, peers[k].device));
        }
    }
    for (unsigned i = 1; i <= HOLDERS; i++) /* 20 each are expected */
        assert_in_range(times[i], 1, 60);
    free(times);
    swarm_free(s);
}

/* --- news -------------------------------------------------------------------------------------------------------------- */

struct told {
    unsigned calls;
    size_t peers;
    struct swarm_device *to[64];
    struct swarm_device *last_peer;
};

static void tell(void *arg, struct swarm_device *to, const struct swarm_key *key,
                 const struct swarm_peer *peers, size_t count)
{
    struct told *told = arg;
    if (told->calls < 64)
        told->to[told->calls] = to;
    told->calls++;
    told->peers += count;
    told->last_peer = peers[count - 1].device;
    assert_false(holds(peers, count, to));
}

static void a_new_seed_is_told_to_all_who_wait(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct told told = {0};
    for (unsigned i = 1; i <= 100; i++)
        want(s, connected(s, i), key, peers);
    swarm_news(s, NS_PER_S, tell, &told);
    memset(&told, 0, sizeof told);
    swarm_at(s, 2 * NS_PER_S);
    struct swarm_device *seed = connected(s, 200);
    hold_all(s, seed, key);
    assert_true(swarm_news_due(s) > 2 * NS_PER_S);
    assert_true(swarm_news_due(s) < 2 * NS_PER_S + 300 * NS_PER_MS);
    swarm_news(s, swarm_news_due(s), tell, &told);
    assert_int_equal(told.calls, 100);
    assert_int_equal(told.peers, 100);
    assert_ptr_equal(told.last_peer, seed);
    assert_int_equal(swarm_news_due(s), INT64_MAX);
    swarm_free(s);
}

static void news_of_one_content_comes_at_most_five_times_a_second(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct told told = {0};
    unsigned rounds = 0;
    want(s, connected(s, 1), key, peers);
    for (unsigned i = 0; i < 1000; i++) { /* one newcomer each millisecond */
        int64_t now = NS_PER_S + i * NS_PER_MS;
        swarm_at(s, now);
        hold(s, connected(s, 10 + i), key, 0x80);
        if (swarm_news_due(s) <= now) {
            swarm_news(s, now, tell, &told);
            rounds++;
        }
    }
    assert_in_range(rounds, 4, 6);
    assert_true(told.peers <= LIMIT_PEERS);
    swarm_free(s);
}

static void leechers_find_each_other(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct told told = {0};
    struct swarm_device *a = connected(s, 1), *b = connected(s, 2);
    assert_int_equal(want(s, a, key, peers), 0);
    assert_int_equal(want(s, b, key, peers), 1);
    assert_ptr_equal(peers[0].device, a);
    swarm_news(s, NS_PER_S, tell, &told);
    assert_int_equal(told.calls, 1);
    assert_ptr_equal(told.to[0], a);
    assert_ptr_equal(told.last_peer, b);
    swarm_free(s);
}

static void nothing_is_told_after_unwant(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_key key = content(1, 4);
    struct swarm_peer peers[LIMIT_PEERS];
    struct told told = {0};
    struct swarm_device *a = connected(s, 1);
    want(s, a, key, peers);
    hold_all(s, connected(s, 2), key);
    swarm_unwant(s, a, key.root);
    assert_int_equal(swarm_news_due(s), INT64_MAX);
    swarm_news(s, NS_PER_S, tell, &told);
    assert_int_equal(told.calls, 0);
    swarm_free(s);
}

static void wants_are_bounded(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_peer peers[LIMIT_PEERS];
    struct swarm_device *d = connected(s, 1);
    size_t count;
    for (uint32_t i = 0; i < LIMIT_WANTED; i++) {
        struct swarm_key key = {.root = {(uint8_t)i, (uint8_t)(i >> 8)}, .size = 1};
        assert_null(swarm_want(s, d, &key, 1, peers, &count));
    }
    struct swarm_key key = content(99, 1);
    assert_non_null(swarm_want(s, d, &key, 1, peers, &count));
    swarm_free(s);
}

static void wants_of_all_devices_of_an_account_are_bounded(void **state)
{
    struct swarm *s = swarm_new(1);
    struct swarm_peer peers[LIMIT_PEERS];
    const char *fault = NULL;
    uint32_t made = 0;
    size_t count;
    for (uint8_t n = 1; n <= 8 && fault == NULL; n++) {
        struct swarm_device *d = device(s, n);
        swarm_device_of(s, d, "eve");
        swarm_connect(s, d, &connection);
        for (uint32_t i = 0; i < LIMIT_WANTED && fault == NULL; i++) {
            struct swarm_key key = {.root = {(uint8_t)i, (uint8_t)(i >> 8), n}, .size = 1};
            fault = swarm_want(s, d, &key, 1, peers, &count);
            made += fault == NULL;
        }
    }
    assert_int_equal(made, LIMIT_WANTED_ACCOUNT);
    swarm_disconnect(s, device(s, 1));
    struct swarm_key key = content(99, 1);
    assert_non_null(swarm_want(s, device(s, 2), &key, 1, peers, &count)); /* its own limit */
    struct swarm_device *late = device(s, 9);
    swarm_device_of(s, late, "eve");
    swarm_connect(s, late, &connection);
    assert_null(swarm_want(s, late, &key, 1, peers, &count));
    swarm_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(health_of_an_unknown_content_is_all_missing),
        cmocka_unit_test(distributed_copies_are_the_rarest_and_the_share_that_has_more),
        cmocka_unit_test(an_empty_file_counts_its_holders),
        cmocka_unit_test(the_last_piece_makes_a_holder_complete),
        cmocka_unit_test(no_new_pieces_confirm_what_is_known),
        cmocka_unit_test(one_root_with_two_sizes_is_two_contents),
        cmocka_unit_test(bad_bitfields_and_pieces_are_refused),
        cmocka_unit_test(one_device_cannot_announce_maps_without_bound),
        cmocka_unit_test(what_a_device_may_not_see_takes_little),
        cmocka_unit_test(what_nobody_published_is_bounded_for_all_devices_of_an_account),
        cmocka_unit_test(maps_of_what_nobody_published_are_bounded_closer),
        cmocka_unit_test(who_may_not_see_a_content_learns_not_who_has_it_by_giving_it_up),
        cmocka_unit_test(an_offline_device_is_known_but_does_not_count),
        cmocka_unit_test(what_is_not_said_again_after_an_announce_from_scratch_is_dropped),
        cmocka_unit_test(counts_by_deltas_equal_a_recount),
        cmocka_unit_test(what_was_written_is_known_after_a_restart),
        cmocka_unit_test(saying_the_same_again_writes_nothing),
        cmocka_unit_test(peers_that_have_what_the_asker_lacks_come_first),
        cmocka_unit_test(nobody_is_told_of_itself_or_of_the_disconnected),
        cmocka_unit_test(a_seed_needs_nobody_but_hears_of_those_who_want),
        cmocka_unit_test(everybody_is_chosen_about_equally_often),
        cmocka_unit_test(a_new_seed_is_told_to_all_who_wait),
        cmocka_unit_test(news_of_one_content_comes_at_most_five_times_a_second),
        cmocka_unit_test(leechers_find_each_other),
        cmocka_unit_test(nothing_is_told_after_unwant),
        cmocka_unit_test(wants_are_bounded),
        cmocka_unit_test(wants_of_all_devices_of_an_account_are_bounded),
    };
    return cmocka_run_group_tests_name("tracker_swarm", tests, NULL, NULL);
}
