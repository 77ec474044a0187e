/* What has to be known of accounts and devices at every request, in memory.
 *
 * A mirror of the storage's rows, changed when the storage has answered. The main loop's thread. */
#ifndef TRACKER_MEMBERS_H
#define TRACKER_MEMBERS_H

#include "crypto/identity.h"
#include "tracker/storage.h"

struct members;

struct member_account {
    char name[ACCOUNT_BYTES_MAX + 1];
    bool admin;
    bool disabled;
};
struct member_device {
    uint8_t id[DEVICE_ID_SIZE];
    char account[ACCOUNT_BYTES_MAX + 1];
    int64_t void_before;
    bool logged_out;
};

enum members_verdict {
    MEMBERS_GOOD,
    MEMBERS_UNKNOWN,  /* no such account or device here, or the device is another account's now */
    MEMBERS_VOID,     /* the certificate was issued before a log out */
    MEMBERS_DISABLED, /* the account */
};

/* Loads everything; NULL on failure (logged by the storage). Call it before the storage has its
 * thread. */
struct members *members_load(struct storage *, uint64_t seed);
void members_free(struct members *); /* NULL is fine */

/* Pointers live until members_free, a device's until it is dropped; NULL if there is none. */
const struct member_account *members_account(const struct members *, const char *name);
const struct member_device *members_device(const struct members *,
                                           const uint8_t id[DEVICE_ID_SIZE]);
void members_set_account(struct members *, const struct storage_account *);
void members_set_device(struct members *, const struct storage_device *);
void members_drop_device(struct members *, const uint8_t id[DEVICE_ID_SIZE]);

/* May whoever shows this certificate act as a member? */
enum members_verdict members_judge(const struct members *, const struct certificate_subject *);

/* Devices that were logged out after `since` (as those of an account are when it is disabled): copies up to `max` ids to
 * `out`, returns how many there are. */
size_t members_revoked(const struct members *, int64_t since, uint8_t (*out)[DEVICE_ID_SIZE],
                       size_t max);

#endif
