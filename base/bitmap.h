/* Bits in memory that several threads or processes read while one sets them.
 *
 * Bit i is bit (i % 8) of byte i / 8, counted from the LOW end, in memory and in the store's map
 * files. (On the wire, bitfields are BEP 3's, high bit first: bitmap_to_wire, bitmap_from_wire.)
 * Sets are atomic with release order, tests with acquire order: who sees a bit sees the data written
 * before it was set. */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t bitmap_bytes(uint64_t bits)
{
    return (size_t)((bits + 7) / 8);
}

static inline bool bitmap_test(const uint8_t *map, uint64_t i)
{
    return (__atomic_load_n(&map[i / 8], __ATOMIC_ACQUIRE) >> (i % 8)) & 1;
}

static inline void bitmap_set(uint8_t *map, uint64_t i)
{
    __atomic_fetch_or(&map[i / 8], (uint8_t)(1u << (i % 8)), __ATOMIC_RELEASE);
}

static inline void bitmap_clear(uint8_t *map, uint64_t i)
{
    __atomic_fetch_and(&map[i / 8], (uint8_t) ~(1u << (i % 8)), __ATOMIC_RELEASE);
}

/* True if all bits in [first, first + count) are set. */
bool bitmap_all(const uint8_t *map, uint64_t first, uint64_t count);
/* How many are. */
uint64_t bitmap_count(const uint8_t *map, uint64_t first, uint64_t count);
/* The first set / clear bit in [from, end), or `end`. */
uint64_t bitmap_next_set(const uint8_t *map, uint64_t from, uint64_t end);
uint64_t bitmap_next_clear(const uint8_t *map, uint64_t from, uint64_t end);
/* Reverse the bits of each byte; `bytes` as bitmap_bytes says. The two may be the same memory. */
void bitmap_to_wire(uint8_t *wire, const uint8_t *map, size_t bytes);
/* As above; false (and nothing promised about `map`) if a spare bit behind `bits` is set. */
bool bitmap_from_wire(uint8_t *map, const uint8_t *wire, uint64_t bits);

#endif
