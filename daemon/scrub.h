/* Looking whether what is kept is still what it was: `p2pctl check`, and the scrub that goes on in the background. Belongs to
 * the local thread, which calls all of it. */
#ifndef DAEMON_SCRUB_H
#define DAEMON_SCRUB_H

#include "proto/local.pb-c.h"

struct local;
struct scrub;

struct scrub *scrub_new(struct local *);
void scrub_start(struct scrub *);
/* After the local thread has ended: waits for the disk, not for the end of a check. */
void scrub_stop(struct scrub *);
void scrub_free(struct scrub *); /* NULL is fine */
/* Nobody waits for that client's checks any more: they end. */
void scrub_client_gone(struct scrub *, uint64_t client);
void scrub_status(const struct scrub *, Local__Status *);

#endif
