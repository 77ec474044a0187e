/* Shared by the accounts_*.c files only: the form in which accounts are told. */
#ifndef TRACKER_ACCOUNTS_PRIVATE_H
#define TRACKER_ACCOUNTS_PRIVATE_H

#include "crypto/random.h"
#include "tracker/attempt.h"

/* An account as a message; its memory goes with accounts_told_free. `devices` must outlive it. */
struct accounts_told {
    Tracker__Account message;
    struct storage_account copy; /* without secrets */
    Tracker__Device *devices;
    Tracker__Device *list[];
};
struct accounts_told *accounts_tell(struct server *, const struct storage_account *,
                                    struct storage_device *devices, size_t count);
void accounts_told_free(struct accounts_told *); /* NULL is fine */

#endif
