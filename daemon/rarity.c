/* The order of rarity: one array of pieces, cut into classes.
 *
 * Owned by a picker (picker.h). Pure.
 *
 *   order   [ class 0 | class 1 | … | last class ]     end[c]: where class c ends
 *   where   position of a piece in `order`, or NOWHERE if it is not listed
 *
 * A piece changes its class by swapping places with the last or first of its class and moving the
 * border over it, one class at a time; then it changes places with a random one of its new class,
 * so that equals stay shuffled.
 *
 * Invariant: where[order[i]] == i for all i < listed; class_of(order[i]) is the class whose span
 * holds i. */
#include "daemon/rarity.h"

#include "base/check.h"

#define NEIGHBOURS 32 /* so many and more are equal */
#define COPIES     4  /* classes of the tracker's counts */
#define CLASSES    (NEIGHBOURS * COPIES)
#define NOWHERE    UINT32_MAX

struct rarity {
    uint32_t pieces, listed;
    uint64_t state; /* of the random generator */
    uint32_t *order, *where;
    uint16_t *neighbours;
    uint8_t *copies; /* class of the tracker's count */
    uint32_t end[CLASSES];
};

static uint32_t random_below(struct rarity *rarity, uint32_t bound)
{
    rarity->state ^= rarity->state << 13;
    rarity->state ^= rarity->state >> 7;
    rarity->state ^= rarity->state << 17;
    return (uint32_t)(((rarity->state >> 32) * bound) >> 32);
}

struct rarity *rarity_new(uint32_t pieces, uint64_t seed)
{
    struct rarity *rarity = calloc(1, sizeof(*rarity));

    if (rarity == NULL)
        return NULL;
    rarity->pieces = pieces;
    rarity->state = seed * UINT64_C(0x9E3779B97F4A7C15) + UINT64_C(0x2545F4914F6CDD1D);
    if (rarity->state == 0)
        rarity->state = 1;
    rarity->order = malloc(sizeof(uint32_t) * (pieces + 1));
    rarity->where = malloc(sizeof(uint32_t) * (pieces + 1));
    rarity->neighbours = calloc(pieces + 1, sizeof(uint16_t));
    rarity->copies = calloc(pieces + 1, 1);
    if (rarity->order == NULL || rarity->where == NULL || rarity->neighbours == NULL ||
        rarity->copies == NULL) {
        rarity_free(rarity);
        return NULL;
    }
    for (uint32_t i = 0; i < pieces; i++)
        rarity->where[i] = NOWHERE;
    return rarity;
}

void rarity_free(struct rarity *rarity)
{
    if (rarity == NULL)
        return;
    free(rarity->order);
    free(rarity->where);
    free(rarity->neighbours);
    free(rarity->copies);
    free(rarity);
}

static uint32_t class_of(const struct rarity *rarity, uint32_t piece)
{
    uint32_t near = rarity->neighbours[piece];

    return (near < NEIGHBOURS ? near : NEIGHBOURS - 1) * COPIES + rarity->copies[piece];
}

static void put(struct rarity *rarity, uint32_t piece, uint32_t at)
{
    rarity->order[at] = piece;
    rarity->where[piece] = at;
}

static void swap(struct rarity *rarity, uint32_t a, uint32_t b)
{
    uint32_t first = rarity->order[a], second = rarity->order[b];

    put(rarity, first, b);
    put(rarity, second, a);
}

static uint32_t begin_of(const struct rarity *rarity, uint32_t class)
{
    return class == 0 ? 0 : rarity->end[class - 1];
}

static void move(struct rarity *rarity, uint32_t piece, uint32_t from, uint32_t to)
{
    for (; from < to; from++) {
        swap(rarity, rarity->where[piece], rarity->end[from] - 1);
        rarity->end[from]--;
    }
    for (; from > to; from--) {
        swap(rarity, rarity->where[piece], begin_of(rarity, from));
        rarity->end[from - 1]++;
    }
}

static void shuffle_in(struct rarity *rarity, uint32_t piece)
{
    uint32_t class = class_of(rarity, piece), begin = begin_of(rarity, class);

    swap(rarity, rarity->where[piece], begin + random_below(rarity, rarity->end[class] - begin));
}

void rarity_list(struct rarity *rarity, uint32_t piece, bool listed)
{
    CHECK(piece < rarity->pieces);
    if ((rarity->where[piece] != NOWHERE) == listed)
        return;
    if (listed) {
        put(rarity, piece, rarity->listed++);
        rarity->end[CLASSES - 1]++;
        move(rarity, piece, CLASSES - 1, class_of(rarity, piece));
        shuffle_in(rarity, piece);
        return;
    }
    move(rarity, piece, class_of(rarity, piece), CLASSES - 1);
    swap(rarity, rarity->where[piece], rarity->listed - 1);
    rarity->listed--;
    rarity->end[CLASSES - 1]--;
    rarity->where[piece] = NOWHERE;
}

void rarity_neighbour(struct rarity *rarity, uint32_t piece, int change)
{
    uint32_t before;

    CHECK(piece < rarity->pieces);
    before = class_of(rarity, piece);
    CHECK(change > 0 || rarity->neighbours[piece] > 0);
    rarity->neighbours[piece] = (uint16_t)(rarity->neighbours[piece] + change);
    if (rarity->where[piece] == NOWHERE || class_of(rarity, piece) == before)
        return;
    move(rarity, piece, before, class_of(rarity, piece));
    shuffle_in(rarity, piece);
}

static uint8_t copies_class(uint8_t copies)
{
    if (copies <= 2)
        return 0;
    if (copies <= 6)
        return 1;
    return copies <= 24 ? 2 : 3;
}

void rarity_copies(struct rarity *rarity, const uint8_t *copies, size_t count)
{
    if (count > rarity->pieces)
        count = rarity->pieces;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t before = class_of(rarity, i);

        rarity->copies[i] = copies_class(copies[i]);
        if (rarity->where[i] == NOWHERE || class_of(rarity, i) == before)
            continue;
        move(rarity, i, before, class_of(rarity, i));
        shuffle_in(rarity, i);
    }
}

uint32_t rarity_listed(const struct rarity *rarity)
{
    return rarity->listed;
}

uint32_t rarity_at(const struct rarity *rarity, uint32_t i)
{
    CHECK(i < rarity->listed);
    return rarity->order[i];
}

uint32_t rarity_common(const struct rarity *rarity)
{
    return rarity->end[COPIES - 1];
}

uint32_t rarity_neighbours(const struct rarity *rarity, uint32_t piece)
{
    CHECK(piece < rarity->pieces);
    return rarity->neighbours[piece];
}
