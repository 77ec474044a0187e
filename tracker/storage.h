/* The one narrow interface to what the tracker keeps on disk: accounts, devices, invites, audit,
 * the catalogue, the last operations of each device, piece maps.
 *
 * An open storage belongs to one thread at a time: the storage queue's (storage_queue.h) in a
 * server, the caller's in commands and tests. Everything happens between storage_begin and
 * storage_commit.
 *
 * Errors are sticky: the first failure of the database logs its cause and sets storage_failed;
 * until the mark or the transaction is undone every call then does nothing and says "no". So the
 * code between two marks need not look after each call, it must only not believe in a "no" before
 * storage_failed has been asked. Functions that return bool say: found (or done).
 *
 * Times are seconds since 1970, but for mtime: nanoseconds. */
#ifndef TRACKER_STORAGE_H
#define TRACKER_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/name.h"
#include "crypto/identity.h"
#include "crypto/password.h"
#include "crypto/signature.h"
#include "crypto/totp.h"
#include "proto/limits.h"
#include "proto/xattrs.h"

#define STORAGE_ROOT_SIZE       32
#define STORAGE_GENERATION_SIZE 16
#define STORAGE_ROOT_ENTRY      1 /* the id of the tree's root, which has no row */

struct storage;

enum storage_use {
    STORAGE_SERVE, /* creates and migrates, checks the file's integrity, opens the piece maps as
                      well */
    STORAGE_VISIT  /* a command beside a running server: opens what is there, changes no schema */
};

/* NULL on failure; *fault is then a malloc'ed sentence for people. `dir` exists. */
struct storage *storage_open(const char *dir, enum storage_use, char **fault);
void storage_close(struct storage *); /* NULL is fine */

/* --- transactions --------------------------------------------------------------------------------
 */
bool storage_begin(struct storage *, bool writes);
/* A point to come back to: storage_undo forgets what happened since, storage_keep keeps it. */
bool storage_mark(struct storage *);
void storage_undo(struct storage *);
bool storage_keep(struct storage *);
/* True: all of it is on disk, and survives a loss of power. False: nothing of it happened. */
bool storage_commit(struct storage *);
void storage_rollback(struct storage *);
bool storage_failed(const struct storage *);
/* The failure was for want of space (then somebody can do something about it). */
bool storage_is_full(const struct storage *);
/* True if the database gave up the whole transaction by itself: all marks are lost. */
bool storage_is_lost(const struct storage *);

/* --- the swarm itself
 * ------------------------------------------------------------------------------ */
void storage_generation(struct storage *, uint8_t out[STORAGE_GENERATION_SIZE]);
/* True until the first account was made. */
bool storage_is_new(struct storage *);
/* How many rows, those of deleted and of waiting accounts as well. */
uint64_t storage_account_count(struct storage *);

/* --- accounts and devices
 * -------------------------------------------------------------------------- */
struct storage_account {
    char name[ACCOUNT_BYTES_MAX + 1];
    char email[LIMIT_EMAIL + 1];
    char password[PASSWORD_RECORD_MAX];
    bool admin;
    bool disabled;
    int64_t created;
    bool verified;   /* a code that was sent to `email` came back */
    bool waiting;    /* no log in before that */
    int64_t deleted; /* when; 0: it is not. The name stays taken */
    bool has_totp;   /* `totp` means something */
    bool totp_on;    /* a log in needs a code of it */
    uint8_t totp[TOTP_SECRET_SIZE];
    int64_t totp_step; /* the last one whose code was used */
    uint64_t quota;    /* entries that it may have; 0: storage_quota says */
    uint64_t entries;  /* that it has; read only */
};
struct storage_device {
    uint8_t id[DEVICE_ID_SIZE];
    char account[ACCOUNT_BYTES_MAX + 1];
    char machine[NAME_BYTES_MAX + 1];
    int64_t created;
    int64_t last_seen;
    int64_t void_before; /* certificates issued before this moment are void */
    bool logged_out;     /* and none was issued since */
};

bool storage_account_get(struct storage *, const char *name, struct storage_account *out);
/* False if the name is taken. */
bool storage_account_add(struct storage *, const struct storage_account *);
bool storage_account_set_password(struct storage *, const char *name, const char *record);
/* Writes everything but name, `created` and `entries`. */
void storage_account_put(struct storage *, const struct storage_account *);
/* Up to `max` accounts whose names come after `after`, in the order of names; returns how many. */
size_t storage_accounts_after(struct storage *, const char *after, struct storage_account *out,
                              size_t max);
/* Admins that can log in, but for `name`. */
uint64_t storage_admins_besides(struct storage *, const char *name);
/* Drops accounts that have been waiting for a proof of their address since before `before`, but for
 * those that somebody has given rights already. */
void storage_account_prune(struct storage *, int64_t before);
bool storage_device_get(struct storage *, const uint8_t id[DEVICE_ID_SIZE],
                        struct storage_device *out);
void storage_device_put(struct storage *, const struct storage_device *);
uint64_t storage_device_count(struct storage *, const char *account);
/* Forgets the device of the account that is logged out, has no certificate that could still be good
 * (void_before < `before`) and was not seen longest. False: there is none; else its id is in `out`. */
bool storage_device_forget(struct storage *, const char *account, int64_t before,
                           uint8_t out[DEVICE_ID_SIZE]);
void storage_device_seen(struct storage *, const uint8_t id[DEVICE_ID_SIZE], int64_t when);
/* Call `each` for all of them; with `account` not NULL for that account's. */
void storage_account_each(struct storage *, void (*each)(const struct storage_account *, void *),
                          void *arg);
void storage_device_each(struct storage *, const char *account,
                         void (*each)(const struct storage_device *, void *), void *arg);

/* --- invites
 * --------------------------------------------------------------------------------------- */
struct storage_invite {
    uint8_t hash[32]; /* SHA-256 of the code: the code itself is not kept */
    bool admin;
    uint32_t uses; /* left */
    int64_t expires;
    char by[ACCOUNT_BYTES_MAX + 1]; /* "" for the tracker's own command */
};
void storage_invite_add(struct storage *, const struct storage_invite *);
/* False if there is none, it is used up or has expired. */
bool storage_invite_get(struct storage *, const uint8_t hash[32], int64_t now,
                        struct storage_invite *out);
void storage_invite_use(struct storage *, const uint8_t hash[32]);
/* Those by that account that are good at that time. */
uint64_t storage_invite_count(struct storage *, const char *by, int64_t now);
void storage_invite_prune(struct storage *, int64_t now);
/* The account may invite no more, or (`admin_only`) no more admins: what it has handed out goes with that. */
void storage_invite_drop_of(struct storage *, const char *by, bool admin_only);

/* --- codes that were sent by mail, codes for a lost second factor
 * ---------------------------------------------------------------------------------- */
enum storage_token_kind { STORAGE_TOKEN_EMAIL = 1, STORAGE_TOKEN_RESET = 2 };
struct storage_token {
    char account[ACCOUNT_BYTES_MAX + 1];
    enum storage_token_kind kind;
    uint8_t hash[32]; /* SHA-256 of the code: the code itself is not kept */
    char email[LIMIT_EMAIL + 1];
    int64_t expires;
};
/* Takes the place of the account's earlier one of that kind. */
void storage_token_put(struct storage *, const struct storage_token *);
/* False if there is none, or it has expired. */
bool storage_token_get(struct storage *, enum storage_token_kind, const uint8_t hash[32],
                       int64_t now, struct storage_token *out);
void storage_token_drop(struct storage *, const char *account, int kind); /* 0: all kinds */
void storage_token_prune(struct storage *, int64_t now);

/* Replaces all of an account's; count 0: none any more. */
void storage_recovery_set(struct storage *, const char *account, const uint8_t (*hashes)[32],
                          size_t count);
/* True once for each. */
bool storage_recovery_use(struct storage *, const char *account, const uint8_t hash[32]);
uint32_t storage_recovery_count(struct storage *, const char *account);

/* --- mail to be sent
 * ------------------------------------------------------------------------------- */
struct storage_mail {
    int64_t id; /* never used again */
    enum storage_token_kind kind;
    char account[ACCOUNT_BYTES_MAX + 1];
    char email[LIMIT_EMAIL + 1];
    int64_t made, due;
    uint32_t tries;
};
/* Queues one, due at once; an earlier one of that kind for that account goes. */
void storage_mail_add(struct storage *, enum storage_token_kind, const char *account,
                      const char *email, int64_t now);
/* The one that is due first; false if there is none. */
bool storage_mail_next(struct storage *, struct storage_mail *out);
/* It is being tried, and would be again at `due`. */
void storage_mail_later(struct storage *, int64_t id, int64_t due);
/* Everything that waits is due at once. */
void storage_mail_hurry(struct storage *, int64_t now);
void storage_mail_drop(struct storage *, int64_t id);
void storage_mail_drop_of(struct storage *, const char *account, int kind); /* 0: all kinds */

/* --- audit: rows are added, and the oldest dropped
 * ---------------------------------------------------------------------- */
struct storage_event {
    int64_t when;
    const char *what;      /* "login" */
    const char *account;   /* may be "" */
    const uint8_t *device; /* DEVICE_ID_SIZE bytes or NULL */
    const char *source;    /* address, may be "" */
    const char *by;        /* who did it, if not that account; may be NULL */
    const char *detail;    /* may be NULL */
};
/* What strangers can bring about, failed log ins ("refused") and asking for a reset ("reset-ask"), is kept apart, so
 * that whoever guesses does not push out the rest. */
void storage_audit(struct storage *, const struct storage_event *);
void storage_audit_prune(struct storage *);
struct storage_audit_row {
    uint64_t number;
    int64_t when;
    char what[32];
    char account[ACCOUNT_BYTES_MAX + 1], by[ACCOUNT_BYTES_MAX + 1];
    bool has_device;
    uint8_t device[DEVICE_ID_SIZE];
    char source[64];
    char detail[LIMIT_EMAIL + 1];
};
/* Rows before number `before` (0: from the newest) and since `since`, the newest first; of `account`
 * unless it is "". Returns how many, at most `max`. */
size_t storage_audit_list(struct storage *, uint64_t before, int64_t since, const char *account,
                          struct storage_audit_row *out, size_t max);
uint64_t storage_audit_count(struct storage *, const char *what);

/* --- the catalogue
 * ---------------------------------------------------------------------------------- */
struct storage_entry {
    uint64_t id;
    uint64_t parent;
    uint64_t seq;
    uint64_t size;
    int64_t mtime;
    uint32_t mode;
    uint8_t kind; /* Tracker__Kind */
    bool gone;
    uint8_t root[STORAGE_ROOT_SIZE];
    char name[NAME_BYTES_MAX + 1];
    char owner[ACCOUNT_BYTES_MAX + 1];
    char *target;            /* malloc'ed or NULL; storage_entry_clear frees it */
    Tracker__Xattrs *xattrs; /* likewise: proto/xattrs.h */
    bool is_signed;
    uint8_t signer[SIGNER_ID_SIZE];
    uint8_t signature[SIGNATURE_SIZE];
    /* Of a change, not of the row: the directory it was in before (0: it is new), what it held there,
     * and whether its maker was given the right to manage it. */
    uint64_t was;
    uint8_t was_root[STORAGE_ROOT_SIZE];
    bool was_file, ruled;
};
void storage_entry_clear(struct storage_entry *);
/* `to` gets its own copy of everything. */
void storage_entry_copy(struct storage_entry *to, const struct storage_entry *from);

bool storage_entry_get(struct storage *, uint64_t id,
                       struct storage_entry *out); /* tombstones as well */
bool storage_entry_find(struct storage *, uint64_t parent, const char *name,
                        struct storage_entry *out);
bool storage_entry_has_children(struct storage *, uint64_t id);
/* Levels below the directory: 0 if it is empty. */
unsigned storage_entry_height(struct storage *, uint64_t id);
/* Ids of live entries of one owner that come after `after`; returns how many, at most `max`. */
size_t storage_entries_owned(struct storage *, const char *owner, uint64_t after, uint64_t *out,
                             size_t max);
/* Live entries. */
uint64_t storage_entry_count(struct storage *);
/* How many entries one account may have of which its row says nothing else: LIMIT_ENTRIES_ACCOUNT if this is not called. */
void storage_quota_set(struct storage *, uint64_t entries);
uint64_t storage_quota(const struct storage *);
/* Whether the account has as many as it may. */
bool storage_owner_full(struct storage *, const char *account);
/* Whether a directory has LIMIT_DIRECTORY entries. */
bool storage_directory_full(struct storage *, uint64_t directory);
/* Adds an entry: gives it its id and the next seq. */
void storage_entry_add(struct storage *, struct storage_entry *);
/* Writes an entry as it is now, with the next seq; `gone` makes it a tombstone. */
void storage_entry_put(struct storage *, struct storage_entry *);
/* Takes the entry's name away for a moment, so that two can change places. */
void storage_entry_unname(struct storage *, uint64_t id);

/* The last change's number, and the last one whose tombstone has been dropped. */
uint64_t storage_seq(struct storage *);
uint64_t storage_pruned(struct storage *);
/* Drops tombstones older than `before`. */
void storage_prune(struct storage *, int64_t before);
/* Entries changed after `since`, in the order of seq, at most `max` of them and about `bytes_max` bytes.
 * Tombstones up to `tombstones_after` are left out. Returns how many; the caller clears each. *more: it
 * stopped at a bound, so there may be more. */
size_t storage_entries_since(struct storage *, uint64_t since, uint64_t tombstones_after,
                             struct storage_entry *out, size_t max, size_t bytes_max, bool *more);

/* What became of an operation of a device. */
struct storage_op {
    uint64_t op;
    uint32_t status; /* Tracker__OpStatus */
    uint64_t entry;  /* 0: none */
};
bool storage_op_get(struct storage *, const uint8_t device[DEVICE_ID_SIZE], uint64_t op,
                    struct storage_op *out);
void storage_op_put(struct storage *, const uint8_t device[DEVICE_ID_SIZE],
                    const struct storage_op *);

/* --- access: rules of folders, groups (tracker/access.h says what they mean) -------------------------------
 */
struct storage_rule {
    uint64_t folder;
    uint8_t kind;  /* enum access_kind */
    uint8_t level; /* enum access_level */
    char who[ACCOUNT_BYTES_MAX + 1];
};
void storage_rule_put(struct storage *, const struct storage_rule *);
void storage_rule_drop(struct storage *, const struct storage_rule *); /* `level` means nothing */
uint64_t storage_rule_count(struct storage *, uint64_t folder);
bool storage_rule_get(struct storage *, struct storage_rule *); /* fills in `level` */
void storage_rules_each(struct storage *, void (*each)(const struct storage_rule *, void *),
                        void *arg);
/* Those of the folder and of all above it, the folder's first. */
void storage_rules_above(struct storage *, uint64_t folder,
                         void (*each)(const struct storage_rule *, void *), void *arg);
/* True if somebody is kept from something, so that rights have to be looked at. */
bool storage_rules_narrow(struct storage *);
/* What rules let the account do in that folder (enum access_level); what it is besides (an admin) is
 * the caller's to know. */
unsigned storage_access(struct storage *, const char *account, uint64_t folder);

bool storage_group_get(struct storage *, const char *name);
void storage_group_add(struct storage *, const char *name);
void storage_group_drop(struct storage *, const char *name); /* with its rules and memberships */
uint64_t storage_group_count(struct storage *);
void storage_group_join(struct storage *, const char *group, const char *account);
void storage_group_leave(struct storage *, const char *group, const char *account);
uint64_t storage_groups_of(struct storage *, const char *account); /* how many */
/* Each group with account NULL, then its members with theirs. */
void storage_groups_each(struct storage *,
                         void (*each)(const char *group, const char *account, void *), void *arg);

/* What the account ("": everybody) may see has changed: who was told less than all changes up to now
 * gets everything anew. */
void storage_renew(struct storage *, const char *account);
uint64_t storage_renewed(struct storage *, const char *account);

/* Claims of signing keys, packed (tracker.Signer), at most `most` of one device. */
void storage_signer_put(struct storage *, const uint8_t id[SIGNER_ID_SIZE],
                        const uint8_t device[DEVICE_ID_SIZE], const void *claim, size_t size,
                        unsigned most);
void storage_signers_each(struct storage *,
                          void (*each)(const uint8_t id[SIGNER_ID_SIZE], const void *claim,
                                       size_t size, void *),
                          void *arg);

/* For the mirror at the start: every live directory, and every live file's root and directory. */
void storage_folders_each(struct storage *, void (*each)(uint64_t id, uint64_t parent, void *),
                          void *arg);
void storage_contents_each(struct storage *,
                           void (*each)(const uint8_t root[STORAGE_ROOT_SIZE], uint64_t parent,
                                        void *),
                           void *arg);

/* --- piece maps: a file of their own, may lag
 * ---------------------------------------------------------- */
struct storage_holding {
    uint8_t device[DEVICE_ID_SIZE];
    uint8_t root[STORAGE_ROOT_SIZE];
    uint64_t size;
    bool dropped;
    bool complete;
    uint8_t *map; /* unless complete: bits as base/bitmap.h has them in memory */
    size_t map_size;
};
/* Writes all in one transaction of their own. False: none was written. */
bool storage_holdings_write(struct storage *, const struct storage_holding *, size_t count);
void storage_holdings_each(struct storage *, void (*each)(const struct storage_holding *, void *),
                           void *arg);

#endif
