/* A first look at the daemon, before a mount is made. */
#ifndef FS_PROBE_H
#define FS_PROBE_H

#include <stddef.h>

/* Whether p2pd runs (it is started if not) and somebody is logged in. 0, or -1 with one clause in `why`. Blocks for
 * seconds; before any thread is made. */
int probe_daemon(const char *home, char *why, size_t why_size);

#endif
