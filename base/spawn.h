/* Starting the daemon from a program that needs it. */
#ifndef BASE_SPAWN_H
#define BASE_SPAWN_H

#include <stddef.h>

/* Runs `p2pd --home HOME --detach` and waits until it is ready. p2pd is looked for beside the
 * running program first, then on PATH. Returns 0, or -1 with one clause in `why` (p2pd's own last
 * line on standard error where it gave one). Blocks up to half a minute: not for a loop's thread.
 * Any thread. */
int daemon_start(const char *home, char *why, size_t why_size);
/* The same, and hands it `secret` on its standard input (--passphrase-file -): the device key's
 * passphrase. `size` is at most 4096. */
int daemon_start_with(const char *home, const void *secret, size_t size, char *why,
                      size_t why_size);
/* Runs `p2pd --home HOME --key-passphrase`, which reads the present and the new passphrase of the
 * device's key from its standard input, a line each. As above. */
int daemon_key_passphrase(const char *home, const void *lines, size_t size, char *why,
                          size_t why_size);

#endif
