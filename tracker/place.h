/* Where members find the tracker: the address that url and invite print.
 *
 * DIR/public holds what --public said last; DIR/listening what `serve` listened on last. */
#ifndef TRACKER_PLACE_H
#define TRACKER_PLACE_H

#include <stdbool.h>

#include "base/swarm_url.h"

/* Remembers the public address; `text` is HOST:PORT or HOST. False: *fault is a malloc'ed sentence. */
bool place_set_public(const char *dir, const char *text, char **fault);
/* Remembers what the server listens on, "HOST:PORT" as server_address says. */
bool place_set_listening(const char *dir, const char *address, char **fault);
/* The swarm's address, without invite: the public one if it was set, else the one listened on; for a server that
 * listens on all addresses, this machine's first that is not loopback. Waits for a server that is making its keys, at its first
 * start. */
bool place_url(const char *dir, struct swarm_url *out, char **fault);

#endif
