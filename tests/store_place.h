/* A store in a directory of its own for each test: state is a struct place. */
#ifndef TESTS_STORE_PLACE_H
#define TESTS_STORE_PLACE_H

#include "tests/store_help.h"

struct place {
    char *directory;
    struct store *store; /* a test may close it, and set NULL */
    uint64_t came, went; /* blocks, as the change hook was told */
};

static inline void place_count(void *arg, struct content *content, uint64_t first, uint32_t count,
                               bool present)
{
    struct place *place = arg;

    assert_true(first + count <= content_geometry(content)->blocks);
    __atomic_fetch_add(present ? &place->came : &place->went, count, __ATOMIC_RELAXED);
}

static inline void place_open(struct place *place)
{
    place->store = help_open(place->directory);
    store_on_change(place->store, place_count, place);
}

static inline int place_set_up(void **state)
{
    struct place *place = xcalloc(1, sizeof *place);

    place->directory = help_begin();
    place_open(place);
    *state = place;
    return 0;
}

static inline int place_tear_down(void **state)
{
    struct place *place = *state;

    if (place->store != NULL)
        store_close(place->store);
    help_end(place->directory);
    free(place);
    return 0;
}

static inline void place_reopen(struct place *place)
{
    store_close(place->store);
    place_open(place);
}

#endif
