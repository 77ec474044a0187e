/* An attempt: one request about an account, on its way between threads. Shared by accounts.c (register, log in),
 * accounts_member.c (what needs a certificate) and attempt.c (the steps).
 *
 * It goes from the loop (throttle, answer) to the storage (rows), the password pool (Argon2, 25 ms and 20 MiB each) and
 * the crypto pool (an RSA signature for a certificate, 2 ms), one at a time, and owns copies of everything. Each step
 * names what follows on the loop's thread (`home`); a step that fails calls attempt_fail, and then the fault is answered
 * instead. */
#ifndef TRACKER_ATTEMPT_H
#define TRACKER_ATTEMPT_H

#include "tracker/accounts.h"
#include "tracker/server_private.h"

#define ATTEMPT_OK           0 /* no fault */
#define ATTEMPT_RECOVERY_MAX 10

struct attempt {
    struct storage_job storage;
    struct job work;
    struct mail mail;
    struct timer *timer;          /* while the certificate waits for its second */
    struct attempt *next_waiting; /* of server->waiting_attempts */
    struct session *session;
    uint32_t id;
    void (*home)(struct attempt *); /* what follows on the loop's thread */

    char name[ACCOUNT_BYTES_MAX + 1];
    char machine[NAME_BYTES_MAX + 1];
    char email[LIMIT_EMAIL + 1];
    char from[64];
    char *password, *new_password, *request;
    size_t password_size, new_password_size, request_size;
    uint8_t device[DEVICE_ID_SIZE];
    bool has_invite;
    uint8_t invite_hash[32];
    struct storage_invite invite;

    /* Results of steps. */
    Tracker__FaultCode fault; /* ATTEMPT_OK while all is well */
    const char *why;
    bool known; /* there is such an account */
    struct storage_account account;
    struct storage_device row;
    bool forgot; /* a device had to go for `row` ... */
    uint8_t forgotten[DEVICE_ID_SIZE];
    bool upgrade;
    char verified[PASSWORD_RECORD_MAX]; /* the one that the password was held against */
    char record[PASSWORD_RECORD_MAX];   /* a new one, or "" */
    int64_t valid_until;                /* of `certificate`, seconds since 1970 */
    char *certificate;
    char code[ACCOUNTS_INVITE_CODE + 1];
    /* Devices: of whoami, or those that a new password has voided. */
    struct storage_device *devices;
    size_t devices_count, devices_room;

    /* Of an admin's requests, mail and the second factor. */
    char target[ACCOUNT_BYTES_MAX + 1], target_to[ACCOUNT_BYTES_MAX + 1];
    unsigned act;   /* Tracker__UserAct, Tracker__TotpAct */
    uint64_t quota; /* that an admin gives */
    bool logout_others, again;
    uint64_t transferred, cursor;
    struct catalogue_changes changes;
    char recovery[ATTEMPT_RECOVERY_MAX][16];
    size_t recovery_made;
    int64_t wait; /* what a log in would have to wait, unless its device is known */
    char second[LIMIT_SECOND_FACTOR + 1]; /* code of a second factor, as it came */
    uint8_t token[32];                    /* hash of a code from a mail */
    bool with_token;
    struct storage_account *users;
    size_t users_count;
    bool more;
    uint32_t recovery_left;
    uint8_t prefix[DEVICE_ID_SIZE]; /* of a device's id */
    size_t prefix_size;
};

/* --- on the loop's thread -------------------------------------------------------------------------- */
/* NULL if there are too many: then the answer has been given. `password`: it will need the password pool. */
struct attempt *attempt_new(struct session *, uint32_t id, bool password);
void attempt_free(struct attempt *);
/* Answers with a fault, and frees. */
void attempt_fault(struct attempt *, Tracker__FaultCode, const char *why);
/* Copies what requests with a certificate request have in common. False: a fault has been answered. */
bool attempt_take_request(struct attempt *, const ProtobufCBinaryData *password,
                          const char *request, const char *machine);
bool attempt_password_is_sound(const ProtobufCBinaryData *password);
/* True if this name has been tried too often from there: then the answer has been given. A member's own device
 * counts for itself. */
bool attempt_is_throttled(struct session *, uint32_t id, const char *name);
/* Counts the code of a second factor, if one came, and says whether there were too many, from wherever they came: then
 * the answer has been given, and the attempt is gone. Once the password is known to be right: else a stranger without it
 * would keep the owner out. */
bool attempt_code_is_throttled(struct attempt *);
/* Password or code were right. */
void attempt_good(struct attempt *);
/* Takes over a password that the member gives once more, and a code, which is not counted yet; then
 * attempt_verify_run can be run. False:
 * a fault has been answered, and the attempt is gone. */
bool attempt_take_password(struct attempt *, const ProtobufCBinaryData *password, const char *code);
/* The mirror follows for a->devices, which attempt_log_out_run has logged out; their links end, everywhere. */
void attempt_revoke(struct attempt *);
/* The next step. */
void attempt_to_storage(struct attempt *, void (*run)(struct storage_job *, struct storage *),
                        bool writes, void (*home)(struct attempt *));
void attempt_to_worker(struct attempt *, struct workers *, void (*run)(struct job *),
                       void (*home)(struct attempt *));
/* After account and row were written: the mirror in memory follows, then the certificate is signed and answered. */
void attempt_issue(struct attempt *);
/* Answers with the certificate that attempt_sign_run made, and frees. */
void attempt_answer(struct attempt *);

/* --- within a step --------------------------------------------------------------------------------- */
struct attempt *attempt_of_storage(struct storage_job *);
struct attempt *attempt_of_work(struct job *);
void attempt_fail(struct attempt *, Tracker__FaultCode, const char *why);
/* A worker's step calls it as its last act. */
void attempt_worker_done(struct attempt *);
void attempt_wipe(char **secret, size_t size);
void attempt_audit(struct storage *, const struct attempt *, const char *what);
/* The same about another account; the attempt's own did it. `detail` may be NULL. */
void attempt_audit_about(struct storage *, const struct attempt *, const char *what,
                         const char *account, const char *detail);
/* Adds to a->devices; for storage_device_each. */
void attempt_add_device(const struct storage_device *, void *attempt);
/* All devices of the account have to log in again, but for `but` (NULL: none is spared): rows are written and left in
 * a->devices. */
void attempt_log_out_run(struct storage *, struct attempt *, const char *account,
                         const uint8_t *but);
/* Storage: is the code right? It is used up then, the account's row is written. */
bool attempt_second_factor(struct storage *, struct storage_account *, const char *code);
/* Storage: makes the device's row as a log in leaves it, for the caller to put; the device moves to this account if it
 * was another's. False: the account has LIMIT_ACCOUNT_DEVICES of which none can be forgotten; the fault
 * has been left. */
bool attempt_row_make(struct storage *, struct attempt *);

/* --- whole steps ------------------------------------------------------------------------------------ */
/* Storage: account and known, by name. */
void attempt_look_run(struct storage_job *, struct storage *);
/* Password pool: is it right? Then `record` gets what is to be written, if anything. Constant cost. */
void attempt_verify_run(struct job *);
/* Crypto pool: the certificate. */
void attempt_sign_run(struct job *);

#endif
