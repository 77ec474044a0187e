/* Searches and counts over shared bits, a word at a time.
 *
 * Others may set bits meanwhile: an answer was true of each word at the moment it was looked at.
 * Each load is an acquire, so bits that an answer rests on carry the promise of bitmap_test. The
 * bytes behind the map's last are never touched. Any thread; holds nothing. */
#include "base/bitmap.h"

#include <endian.h>

/* Memory that is bytes elsewhere. */
typedef uint64_t __attribute__((may_alias)) word;

/* The bits from `i` on, lowest first, as many as stand in one aligned word or in one byte and
 * before `end`; *count says how many, the others are 0. i < end. */
static inline uint64_t load_bits(const uint8_t *map, uint64_t i, uint64_t end, unsigned *count)
{
    const uint8_t *at = map + i / 8;
    unsigned shift = (unsigned)(i % 8), bits = 8 - shift;

    if (shift == 0 && end - i >= 64 && ((uintptr_t)at & 7) == 0) {
        *count = 64;
        return le64toh(__atomic_load_n((const word *)(const void *)at, __ATOMIC_ACQUIRE));
    }
    if (bits > end - i)
        bits = (unsigned)(end - i);
    *count = bits;
    return ((uint64_t)__atomic_load_n(at, __ATOMIC_ACQUIRE) >> shift) & ((1u << bits) - 1);
}

static inline uint64_t all_ones(unsigned count)
{
    return count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
}

bool bitmap_all(const uint8_t *map, uint64_t first, uint64_t count)
{
    return bitmap_next_clear(map, first, first + count) == first + count;
}

uint64_t bitmap_count(const uint8_t *map, uint64_t first, uint64_t count)
{
    uint64_t total = 0, end = first + count;
    unsigned step;

    for (uint64_t i = first; i < end; i += step)
        total += (uint64_t)__builtin_popcountll(load_bits(map, i, end, &step));
    return total;
}

uint64_t bitmap_next_set(const uint8_t *map, uint64_t from, uint64_t end)
{
    unsigned step;

    for (uint64_t i = from; i < end; i += step) {
        uint64_t bits = load_bits(map, i, end, &step);

        if (bits != 0)
            return i + (unsigned)__builtin_ctzll(bits);
    }
    return end;
}

uint64_t bitmap_next_clear(const uint8_t *map, uint64_t from, uint64_t end)
{
    unsigned step;

    for (uint64_t i = from; i < end; i += step) {
        uint64_t bits = load_bits(map, i, end, &step) ^ all_ones(step);

        if (bits != 0)
            return i + (unsigned)__builtin_ctzll(bits);
    }
    return end;
}

static uint8_t reversed(uint8_t byte)
{
    byte = (uint8_t)((byte & 0xf0) >> 4 | (byte & 0x0f) << 4);
    byte = (uint8_t)((byte & 0xcc) >> 2 | (byte & 0x33) << 2);
    return (uint8_t)((byte & 0xaa) >> 1 | (byte & 0x55) << 1);
}

void bitmap_to_wire(uint8_t *wire, const uint8_t *map, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        wire[i] = reversed(__atomic_load_n(&map[i], __ATOMIC_ACQUIRE));
}

bool bitmap_from_wire(uint8_t *map, const uint8_t *wire, uint64_t bits)
{
    size_t bytes = bitmap_bytes(bits);

    for (size_t i = 0; i < bytes; i++)
        map[i] = reversed(wire[i]);
    return bits % 8 == 0 || map[bytes - 1] >> (bits % 8) == 0;
}
