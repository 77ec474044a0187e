/* The rules of the catalogue: what an operation may do to the tree of names, and what it answers.
 *
 * Runs on the storage's thread within a transaction. An operation that is refused changes nothing;
 * one that the same device sends again (same number) is not done again: it gets the status of the
 * first time and the entry as it is now. */
#ifndef TRACKER_CATALOGUE_H
#define TRACKER_CATALOGUE_H

#include "proto/tracker.pb-c.h"
#include "tracker/storage.h"

/* Who asks. What an operation needs is said in catalogue.c. */
struct catalogue_actor {
    const char *account;
    const uint8_t *device; /* DEVICE_ID_SIZE bytes */
};

struct catalogue_result {
    uint64_t op;
    Tracker__OpStatus status;
    bool has_entry;
    struct storage_entry entry;
};

/* Entries as changes left them, in the order of seq: what subscribers are to be told. */
struct catalogue_changes {
    uint64_t from; /* seq before the first */
    uint64_t to;   /* seq of the last */
    struct storage_entry *entries;
    size_t count, room;
};

/* Does one operation. On return look at storage_failed before believing the result. */
void catalogue_apply(struct storage *, const struct catalogue_actor *, const Tracker__Op *,
                     struct catalogue_result *, struct catalogue_changes *);
/* Up to `max` entries of account `from` with ids after *after become `to`'s; *after moves on. Returns
 * how many: less than `max` at the end. */
size_t catalogue_transfer(struct storage *, const char *from, const char *to, uint64_t *after,
                          size_t max, struct catalogue_changes *);
void catalogue_result_clear(struct catalogue_result *);
void catalogue_changes_clear(struct catalogue_changes *);

/* Points the message's fields into the entry, which must outlive it. */
void catalogue_entry_message(Tracker__Entry *, const struct storage_entry *);

#endif
