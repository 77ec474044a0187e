/* The tracker as one object: listener, sessions, swarm state, storage, all threads.
 *
 * The thread that calls server_run owns everything; the storage has a thread of its own, handshakes and
 * certificates a pool of one thread per core, passwords a pool of half as many: 20 MiB each,
 * and whoever tries passwords takes no more of the machine. */
#ifndef TRACKER_SERVER_H
#define TRACKER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "tracker/mail.h"

struct server;

enum registration { REGISTRATION_INVITE, REGISTRATION_OPEN, REGISTRATION_CLOSED };

struct server_settings {
    const char *dir;  /* exists, private; see file_private_dir */
    const char *host; /* "" listens on all addresses */
    uint16_t port;    /* 0: any free one */
    enum registration registration;
    uint64_t certificate_lifetime; /* of devices, seconds */
    uint64_t
        ticket_lifetime; /* of the right to fetch a content from a peer, seconds; 0: the usual */
    uint64_t quota;      /* entries that one account may have; 0: LIMIT_ENTRIES_ACCOUNT */
    const char *name;    /* of the swarm */
    struct mail_settings mail; /* none: no mail is sent */
    bool verify_email;         /* who registers must prove an address before the first log in */
};
#define SERVER_CERTIFICATE_LIFETIME (24 * 3600)
#define SERVER_TICKET_LIFETIME      (20 * 60)

/* Opens the data directory (creating keys and databases at the first start) and the listener. NULL: *fault is
 * a malloc'ed sentence. Copies what it needs of the settings. */
struct server *server_new(const struct server_settings *, char **fault);
/* "HOST:PORT" as it listens, with the real port. Lives as long as the server. */
const char *server_address(const struct server *);
uint16_t server_port(const struct server *);
/* True if there is no account yet. Before server_run. */
bool server_is_new(const struct server *);
/* Serves until server_stop; then ends all sessions and writes what is left to write. */
void server_run(struct server *);
void server_stop(struct server *); /* any thread, also from a signal's event */
/* Stops at SIGTERM and SIGINT; call it before server_run, on the process's first thread. */
void server_stop_on_signals(struct server *);
void server_free(struct server *); /* NULL is fine */

#endif
