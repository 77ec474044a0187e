/* How many handshakes each source may have us begin.
 *
 * A handshake costs 2.6 ms of RSA before anything is known of who asks for it, so a stranger could
 * fill a core with 385 connections a second. Each source (base/source.h) has a bucket of
 * LIMIT_KNOCKS handshakes that fills up by one every LIMIT_KNOCK_NS. Who turns out to be a member
 * gets its handshake back, so that an office behind one address may come back all at once; but not
 * an account whose devices come back all the time: each has such a bucket as well. Who turns out to be nobody
 * pays more, and is suspected for LIMIT_KNOCK_SUSPECT_NS, unless a member has come from there: all
 * suspects share one bucket, so whoever has a thousand addresses gets no more by them than by two.
 *
 * Pure: no I/O, no clock, no thread. Memory: LIMIT_KNOCK_SOURCES records of sources and as many of
 * accounts at most; who has a full bucket, and is neither suspected nor trusted, is forgotten. */
#ifndef PROTO_KNOCKS_H
#define PROTO_KNOCKS_H

#include <stddef.h>
#include <stdint.h>

#include "base/source.h"

struct knocks;

struct knocks *knocks_new(void);
void knocks_free(struct knocks *); /* NULL is fine */

/* Takes one handshake out of the bucket: 0, or in how many nanoseconds there will be one. `now` on
 * the monotonic clock. */
int64_t knocks_take(struct knocks *, const uint8_t source[SOURCE_KEY_SIZE], int64_t now);
/* It was a member's: what was taken is put back, if its account does not come too often. */
void knocks_give_back(struct knocks *, const uint8_t source[SOURCE_KEY_SIZE], const char *account,
                      int64_t now);
/* It came to nothing, or worse: LIMIT_KNOCK_FINE more are taken, and the source is suspected. */
void knocks_fine(struct knocks *, const uint8_t source[SOURCE_KEY_SIZE], int64_t now);

/* How many sources are remembered. */
size_t knocks_sources(const struct knocks *);

#endif
