/* A hash table of objects that carry their own link: no allocation for an entry, none that can fail
 * late.
 *
 * The owner computes hashes (of ids and roots, which are hashes already, or with table_hash under a
 * secret seed) and compares keys: table_find walks the chain of one hash value. One thread. */
#ifndef TRACKER_TABLE_H
#define TRACKER_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct table_node {
    struct table_node *next;
    uint64_t hash;
};
struct table {
    struct table_node **buckets;
    size_t size; /* power of two */
    size_t count;
};

void table_init(struct table *);
void table_clear(struct table *); /* frees the buckets; the objects are their owner's */
void table_add(struct table *, struct table_node *, uint64_t hash);
void table_remove(struct table *, struct table_node *);
/* The first node with that hash, and the next one after `node` with the same; NULL if there is
 * none. */
struct table_node *table_first(const struct table *, uint64_t hash);
struct table_node *table_next(const struct table_node *node);
/* For walking all: the node after `node` in any order (NULL: the first), NULL at the end. Not
 * across table_add and table_remove. */
struct table_node *table_walk(const struct table *, const struct table_node *node);

/* Spreads the bytes over 64 bits; with a seed that strangers do not know they cannot choose
 * collisions. */
uint64_t table_hash(uint64_t seed, const void *bytes, size_t size);

#endif
