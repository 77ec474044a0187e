/* The intrusive hash table: chains, doubled when as many entries as buckets are in it. */
#include "tracker/table.h"

#include "base/check.h"
#include "base/mem.h"

#define SIZE_FIRST 64

void table_init(struct table *t)
{
    t->size = SIZE_FIRST;
    t->count = 0;
    t->buckets = xcalloc(t->size, sizeof *t->buckets);
}

void table_clear(struct table *t)
{
    free(t->buckets);
    *t = (struct table){0};
}

static struct table_node **bucket_of(const struct table *t, uint64_t hash)
{
    return &t->buckets[(hash ^ (hash >> 32)) & (t->size - 1)];
}

static void grow(struct table *t)
{
    struct table_node **old = t->buckets;
    size_t old_size = t->size;
    t->size = 2 * old_size;
    t->buckets = xcalloc(t->size, sizeof *t->buckets);
    for (size_t i = 0; i < old_size; i++)
        for (struct table_node *node = old[i], *next; node != NULL; node = next) {
            struct table_node **bucket = bucket_of(t, node->hash);
            next = node->next;
            node->next = *bucket;
            *bucket = node;
        }
    free(old);
}

void table_add(struct table *t, struct table_node *node, uint64_t hash)
{
    if (t->count >= t->size)
        grow(t);
    struct table_node **bucket = bucket_of(t, hash);
    node->hash = hash;
    node->next = *bucket;
    *bucket = node;
    t->count++;
}

void table_remove(struct table *t, struct table_node *node)
{
    struct table_node **at = bucket_of(t, node->hash);
    while (*at != node) {
        CHECK(*at != NULL);
        at = &(*at)->next;
    }
    *at = node->next;
    t->count--;
}

struct table_node *table_first(const struct table *t, uint64_t hash)
{
    struct table_node *node = *bucket_of(t, hash);
    while (node != NULL && node->hash != hash)
        node = node->next;
    return node;
}

struct table_node *table_next(const struct table_node *node)
{
    uint64_t hash = node->hash;
    struct table_node *next = node->next;
    while (next != NULL && next->hash != hash)
        next = next->next;
    return next;
}

struct table_node *table_walk(const struct table *t, const struct table_node *node)
{
    size_t i = 0;
    if (node != NULL) {
        if (node->next != NULL)
            return node->next;
        i = (size_t)(bucket_of(t, node->hash) - t->buckets) + 1;
    }
    while (i < t->size && t->buckets[i] == NULL)
        i++;
    return i < t->size ? t->buckets[i] : NULL;
}

uint64_t table_hash(uint64_t seed, const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    uint64_t hash = seed ^ (size * UINT64_C(0x9e3779b97f4a7c15));
    while (size > 0) {
        uint64_t word = 0;
        size_t take = size < sizeof word ? size : sizeof word;
        memcpy(&word, at, take);
        hash = (hash ^ word) * UINT64_C(0xff51afd7ed558ccd);
        hash ^= hash >> 32;
        hash = (hash + seed) * UINT64_C(0xc4ceb9fe1a85ec53);
        hash ^= hash >> 29;
        at += take;
        size -= take;
    }
    return hash;
}
