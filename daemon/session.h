/* The session with the tracker: one connection, kept; reconnects with jittered back-off; everything the daemon says to the
 * tracker goes through here. Thread: "tracker". Functions are for any thread (they post) unless marked otherwise. */
#ifndef DAEMON_SESSION_H
#define DAEMON_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "daemon/daemon.h"
#include "proto/tracker.pb-c.h"

struct credentials;
struct content;

/* Makes it (set-up thread), with credentials as found in HOME or NULL; nothing runs before session_start. */
struct session *session_new(struct daemon *, struct credentials *);
void session_start(struct session *);
/* Set-up thread: ends the thread. Mail still finds a box. */
void session_stop(struct session *);
/* After all modules were stopped and the workers are quiet. */
void session_free(struct session *);

/* --- accounts: one request of p2pctl at a time each; the answer goes to `done` on the local thread ------- */
enum account_verb {
    ACCOUNT_REGISTER,
    ACCOUNT_LOGIN,
    ACCOUNT_LOGOUT,
    ACCOUNT_WHOAMI,
    ACCOUNT_PASSWORD,
    ACCOUNT_INVITE,
    ACCOUNT_CALL /* a request of tracker.proto that is handed on unread: session_call.c */
};
struct account_request {
    enum account_verb verb;
    char *url, *name, *email;         /* as the verb needs */
    uint8_t *password, *new_password; /* wiped by session */
    size_t password_size, new_password_size;
    bool admin; /* invite */
    uint32_t uses, lifetime;
    bool ask_tracker;   /* whoami */
    bool logout_others; /* password */
    char *code;         /* login: of the second factor, or NULL; wiped by session */
    unsigned call_type; /* call: Tracker__TrackerType */
    uint8_t *call;      /* its packed message; wiped by session */
    size_t call_size;
    void *cookie; /* comes back */
};
struct account_answer {
    int error; /* 0 or an errno for the exit path */
    char *
        text; /* with an error: one clause; with ACCOUNT_INVITE: the address; else a note or NULL */
    Tracker__Account *account;         /* what the tracker says, or NULL */
    char *url, *swarm, *name, *device; /* what is known here; NULL if nobody is logged in */
    int64_t certificate_until;
    bool admin;
    unsigned call_type; /* call: the answer, packed; wiped by account_answer_free */
    uint8_t *call;
    size_t call_size;
    void *cookie;
};
/* Takes the request over. Any thread. Calls local_account_answer. */
void session_account(struct session *, struct account_request *);
void account_request_free(struct account_request *); /* wipes */
void account_answer_free(struct account_answer *);

/* --- any request that is packed already -------------------------------------------------------------------- */
struct session_ask {
    unsigned type; /* Tracker__TrackerType */
    const ProtobufCMessageDescriptor *descriptor;
    uint8_t *packed; /* malloc'ed, taken over */
    size_t size;
    unsigned answer_type;
    const ProtobufCMessageDescriptor *answer;
    void *cookie; /* comes back */
};
struct session_answer {
    int error;                 /* 0 or an errno */
    char *text;                /* with an error: one clause */
    ProtobufCMessage *message; /* else the answer */
    void *cookie;
};
/* Any thread. Waits for a connection that is being made; fails at once without one. Calls local_asked. */
void session_ask(struct session *, const struct session_ask *);
void session_answer_free(struct session_answer *);

/* --- keys of others ----------------------------------------------------------------------------------------- */
enum known_key_state {
    KNOWN_KEY_FIRST, /* among the first that were seen of its account */
    KNOWN_KEY_NEW,   /* came later: unexpected */
    KNOWN_KEY_ACCEPTED
};
struct known_key {
    char account[65];
    char device[33]; /* hexadecimal */
    int64_t first;   /* seen, seconds since 1970 */
    enum known_key_state state;
};
struct known_keys {
    struct known_key *keys;
    size_t count;
    uint32_t refused; /* entries that are not what their publishers signed */
    void *cookie;
};
/* With `accept`, that account's unexpected keys are believed from now on. Any thread. Calls local_keys. */
void session_keys(struct session *, const char *accept, void *cookie);
void known_keys_free(struct known_keys *); /* NULL is fine */

/* --- the catalogue --------------------------------------------------------------------------------------- */
/* From local: where the replica stands; after (re)connecting the session subscribes from there. `generation` 16 bytes. */
void session_catalogue_at(struct session *, const uint8_t generation[16], uint64_t seq);
/* From local: one operation of the journal, in order; packed is taken over (malloc'ed, tracker.Op). Sent at once if
 * connected; after a reconnect local is told (local_session_state) and submits again what is not acknowledged. `epoch` is
 * what it was told last: an operation that was on its way here while the link was lost and made again is not sent, as it
 * would overtake those before it, which were lost; it comes again behind them. */
void session_op(struct session *, unsigned epoch, uint8_t *packed, size_t size);

/* --- contents --------------------------------------------------------------------------------------------- */
/* From download: peers of this root are wanted (idempotent; asks again after reconnects); answers and pushes go to
 * download_peers. */
void session_want(struct session *, const uint8_t root[HASH_SIZE], uint64_t size);
void session_unwant(struct session *, const uint8_t root[HASH_SIZE]);
/* From the store's change hook (a worker): blocks of a content came or went. Gathered, and announced as piece deltas at
 * most twice a second. */
void session_holding_changed(struct session *, struct content *);
/* A content was dropped here. */
void session_dropped(struct session *, const uint8_t root[HASH_SIZE], uint64_t size);
/* From local: which of these pieces (bits, taken over; NULL: all) may be deleted? The answer goes to
 * local_release_answer with `cookie`. From then on, until session_released, nothing of this content is announced. */
void session_release(struct session *, const uint8_t root[HASH_SIZE], uint64_t size,
                     uint8_t *pieces, void *cookie);
/* Once for each session_release, when what was granted is deleted, or will not be. `gone`: nothing is left of it here. */
void session_released(struct session *, const uint8_t root[HASH_SIZE], bool gone);
/* From upload: where we listen. Announced with this machine's addresses. */
void session_listening(struct session *, uint16_t port);
/* From download: this device could not be dialled; ask it, through the tracker, to dial us. */
void session_ask_dial_back(struct session *, const uint8_t device[16]);
/* From local: health of a root; the answer goes to local_health_answer with `cookie`. */
void session_health(struct session *, const uint8_t root[HASH_SIZE], uint64_t size, void *cookie);

#endif
