/* A table with one place for each of its numbers: who finds its place taken by a directory that is open goes without.
 *
 *   L1  `whole` is the state of the tree from which the kernel's pages of the directory were filled, all of them, or 0.
 *       It is set by a handle that was alone from its opening on: two that fill the pages by turns, from two states, would
 *       leave a mixture.
 *   L2  With `whole` not today's state an OPENDIR drops the pages, and `whole` with them.
 *
 * The lock is held for memory operations only. Memory: 32 bytes a place. */
#include "fs/listings.h"

#include "base/check.h"
#include "base/mem.h"

#include <pthread.h>

#define PLACES 8192 /* a power of two */

struct place {
    uint64_t ino; /* 0: free */
    uint64_t whole;
    uint32_t open;
    bool shared; /* two handles were open at a time, and one still is */
};

struct listings {
    pthread_mutex_t lock;
    struct place places[PLACES];
};

struct listings *listings_new(void)
{
    struct listings *l = xcalloc(1, sizeof(*l));

    CHECK(pthread_mutex_init(&l->lock, NULL) == 0);
    return l;
}

void listings_free(struct listings *l)
{
    if (l == NULL)
        return;
    CHECK(pthread_mutex_destroy(&l->lock) == 0);
    free(l);
}

static struct place *place_of(struct listings *l, uint64_t ino)
{
    return &l->places[ino * UINT64_C(0x9e3779b97f4a7c15) >> 51];
}

bool listings_opened(struct listings *l, uint64_t ino, uint64_t changes, bool *keep)
{
    struct place *place = place_of(l, ino);
    bool taken;

    CHECK(pthread_mutex_lock(&l->lock) == 0);
    taken = place->ino == ino || place->open == 0;
    if (taken && place->ino != ino)
        *place = (struct place){.ino = ino};
    *keep = taken && place->whole != 0 && place->whole == changes;
    if (taken) {
        if (!*keep)
            place->whole = 0;
        place->shared |= place->open > 0;
        place->open++;
    }
    CHECK(pthread_mutex_unlock(&l->lock) == 0);
    return taken;
}

void listings_read(struct listings *l, uint64_t ino, uint64_t changes)
{
    struct place *place = place_of(l, ino);

    CHECK(pthread_mutex_lock(&l->lock) == 0);
    CHECK(place->ino == ino && place->open > 0);
    if (!place->shared)
        place->whole = changes;
    CHECK(pthread_mutex_unlock(&l->lock) == 0);
}

void listings_closed(struct listings *l, uint64_t ino)
{
    struct place *place = place_of(l, ino);

    CHECK(pthread_mutex_lock(&l->lock) == 0);
    CHECK(place->ino == ino && place->open > 0);
    if (--place->open == 0)
        place->shared = false;
    CHECK(pthread_mutex_unlock(&l->lock) == 0);
}
