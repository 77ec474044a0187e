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

#define ATTEMPT_OK 0 /* no fault */

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
    bool upgrade;
    char verified[PASSWORD_RECORD_MAX]; /* the one that the password was held against */
    char record[PASSWORD_RECORD_MAX];   /* a new one, or "" */
    char *certificate;
    char code[ACCOUNTS_INVITE_CODE + 1];
    /* Devices: of whoami, or those that a new password has voided. */
    struct storage_device *devices;
    size_t devices_count, devices_room;
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
/* True if this name or source has tried too often: then the answer has been given. */
bool attempt_is_throttled(struct session *, uint32_t id, const char *name);
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
/* Storage: makes the device's row as a log in leaves it, for the caller to put; the device moves to this account if it
 * was another's. False: it is disabled, the fault has been left. */
bool attempt_row_make(struct storage *, struct attempt *);

/* --- whole steps ------------------------------------------------------------------------------------ */
/* Storage: account and known, by name. */
void attempt_look_run(struct storage_job *, struct storage *);
/* Password pool: is it right? Then `record` gets what is to be written, if anything. Constant cost. */
void attempt_verify_run(struct job *);
/* Crypto pool: the certificate. */
void attempt_sign_run(struct job *);

#endif
