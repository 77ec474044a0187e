/* Extended attributes that members give entries: user.*, kept in the catalogue.
 *
 * A list is sound if every name begins with "user." and has more behind it, is UTF-8 and at most LIMIT_XATTR_NAME bytes
 * long; names that begin with "user.p2p." are p2pd's own and never in a list. Values are any bytes, at most
 * LIMIT_XATTR_VALUE; at most LIMIT_XATTRS of them, names and values together at most LIMIT_XATTRS_BYTES; in the order of
 * the names' bytes, none twice. Tracker and member both judge what comes, before they keep it.
 *
 * Lists are immutable once made: a change makes a new one. NULL is the empty list, everywhere. Any thread. */
#ifndef PROTO_XATTRS_H
#define PROTO_XATTRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/tracker.pb-c.h"

#define XATTR_PREFIX     "user."
#define XATTR_PREFIX_OWN "user.p2p."

/* 0, or what setxattr(2) says of the name: -EOPNOTSUPP for one that is not in user.* or is our own, -ERANGE for one that
 * is too long, -EINVAL for one that is not UTF-8. */
int xattr_name_fault(const char *name);
bool xattrs_are_sound(const Tracker__Xattrs *);
/* NULL if it is not there. Lives as long as the list. */
const Tracker__Xattr *xattrs_find(const Tracker__Xattrs *, const char *name);
bool xattrs_are_equal(const Tracker__Xattrs *, const Tracker__Xattrs *);
/* Names and values, for bounds of messages. */
size_t xattrs_bytes(const Tracker__Xattrs *);

/* The caller frees what these return with xattrs_free: NULL if it is empty. */
Tracker__Xattrs *xattrs_copy(const Tracker__Xattrs *);
/* From its packed form; NULL also for what is not sound. */
Tracker__Xattrs *xattrs_unpack(const void *bytes, size_t size);
/* Malloc'ed, *size bytes; NULL for the empty list. */
uint8_t *xattrs_pack(const Tracker__Xattrs *, size_t *size);
void xattrs_free(Tracker__Xattrs *); /* NULL is fine */

/* *out: `from` with those of `set`, which is sound, and without the `removed_count` names `removed`. 0, or -ENOSPC and
 * *out NULL if that is more than an entry may have. */
int xattrs_change(const Tracker__Xattrs *from, const Tracker__Xattrs *set, char *const *removed,
                  size_t removed_count, Tracker__Xattrs **out);

#endif
