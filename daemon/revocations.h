/* Devices that the tracker has shown the door: which certificates count no more.
 *
 * Told by the tracker as it happens and after each connect, and kept in HOME/revoked, so that a daemon that was
 * restarted knows them before it reaches the tracker, or without. Any thread; it guards itself. */
#ifndef DAEMON_REVOCATIONS_H
#define DAEMON_REVOCATIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "crypto/identity.h"

struct revocations;

/* Reads HOME/revoked; a line that is not understood is skipped. Never NULL. */
struct revocations *revocations_open(const char *home);
void revocations_close(struct revocations *); /* NULL is fine */
/* Certificates of the device that were issued before that moment (seconds since 1970) are void. */
void revocations_add(struct revocations *, const uint8_t device[DEVICE_ID_SIZE], int64_t before);
/* Writes the file if there is news. Waits for the disk. */
void revocations_save(struct revocations *);
/* NULL revocations: false. */
bool revocations_void(struct revocations *, const struct certificate_subject *);

#endif
