/* Serving: the listener, links on which this daemon serves, the choker. Thread: "upload". Functions
 * are for any thread (they post) unless marked otherwise. */
#ifndef DAEMON_UPLOAD_H
#define DAEMON_UPLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/daemon.h"
#include "daemon/link_status.h"

struct content;
struct credentials;

/* Binds the listener (so that a port in use is a clear error at start): NULL and *fault. */
struct upload *upload_new(struct daemon *, const char **fault);
uint16_t upload_port(const struct upload *);
void upload_start(struct upload *);
void upload_stop(struct upload *); /* set-up thread: ends the thread; mail still finds a box */
void upload_free(struct upload *); /* after all modules were stopped and the workers are quiet */

/* New credentials, a reference of which is taken over; NULL: logged out, links end. */
void upload_credentials(struct upload *, struct credentials *);
void upload_revoked(struct upload *, const uint8_t device[16]);
/* From the session: the key that tickets are held against, and the time on the tracker's clock, seconds since 1970.
 * Until it has come nobody is served. */
void upload_ticket_key(struct upload *, const uint8_t key[32], int64_t tracker_time);
/* Tickets of that account ("": of all) from before `epoch` are void; for these roots at once. */
void upload_barred(struct upload *, const char *account, uint64_t epoch, const uint8_t (*roots)[32],
                   size_t count);
/* The store's change hook: blocks became present (or were lost): fetchers with that content open
 * are told, batched. */
void upload_holding_changed(struct upload *, struct content *);
/* settings.rate_up or a content's limit (limits.h) is another one. */
void upload_limits_changed(struct upload *);
/* From the session: that device can't dial us, and wants to fetch: dial it, as server. `addresses`:
 * NULL-terminated, malloc'ed strings, taken over. */
void upload_dial_back(struct upload *, const uint8_t device[16], char **addresses);

struct upload_file_status {
    uint8_t root[32];
    uint64_t rate;
    uint64_t sent, sent_until_out; /* bytes: choker_spent */
    uint32_t links;
};
struct upload_status {
    struct link_status *links;
    size_t link_count;
    struct upload_file_status *files;
    size_t file_count;
    uint64_t rate, total;
    void *cookie;
};
/* Calls local_upload_status(status) on the local thread. */
void upload_ask_status(struct upload *, void *cookie);
void upload_status_free(struct upload_status *);

#endif
