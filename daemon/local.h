/* The local sockets: serves p2pfs (names and contents) and p2pctl. Thread: "local". Owns the catalogue's replica and journal
 * (catalogue.h). Functions are for any thread (they post) unless marked otherwise. */
#ifndef DAEMON_LOCAL_H
#define DAEMON_LOCAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "daemon/daemon.h"
#include "proto/tracker.pb-c.h"

struct account_answer;
struct content;
struct download_status;
struct known_keys;
struct session_answer;
struct upload_status;

/* Binds HOME's socket and opens state.db: NULL and *fault. */
struct local *local_new(struct daemon *, const char **fault);
void local_start(struct local *);
void local_stop(
    struct local
        *); /* set-up thread: says good-bye to clients, ends the thread; mail still finds a box */
void local_free(struct local *); /* after all modules were stopped and the workers are quiet */

/* --- from the session --- */
enum session_state { SESSION_LOGGED_OUT, SESSION_AWAY, SESSION_CONNECTED };
/* `trouble`: why it is away or takes no changes, one clause, malloc'ed, taken over, may be NULL. With SESSION_CONNECTED: the
 * journal is submitted again; it is a new connection if the state was another one. account and swarm are malloc'ed, taken over, may be NULL. */
void local_session_state(struct local *, enum session_state, unsigned epoch, char *trouble,
                         char *account, char *swarm);
void local_tracker_trouble(struct local *, char *trouble); /* the same without a new state */
void local_changes(struct local *, Tracker__Changes *);    /* taken over */
void local_results(struct local *, Tracker__Results *);    /* taken over */
void local_asked(struct local *, struct session_answer *);
void local_keys(struct local *, struct known_keys *); /* taken over */
/* How many entries are not signed by their publishers, and how many keys are unexpected. */
void local_suspicions(struct local *, uint32_t refused, uint32_t unexpected);
void local_account_answer(struct local *, struct account_answer *);
/* health NULL: error is an errno; copies: one byte per piece, may be NULL; both taken over. */
void local_health_answer(struct local *, void *cookie, int error, Tracker__Health *health);

/* error 0, or an errno; `granted`: bits of pieces that may be deleted, malloc'ed, taken over, NULL with an error. */
void local_release_answer(struct local *, void *cookie, int error, uint8_t *granted);

/* --- from download and upload --- */
void local_demand_done(struct local *, uint64_t request, int error);
void local_content_complete(struct local *, const uint8_t root[HASH_SIZE], int error);
void local_download_status(struct local *, struct download_status *);
void local_upload_status(struct local *, struct upload_status *);
/* The store's change hook: `local` bytes and state of entries with this content changed; attribute invalidations are batched
 * (twice a second, and at once when it became complete). */
void local_holding_changed(struct local *, struct content *);

/* Called on the local thread when p2pctl asked the daemon to stop: set by main before start. */
void local_on_stop(struct local *, void (*stop)(void *arg), void *arg);

#endif
