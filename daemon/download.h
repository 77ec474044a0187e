/* Fetching: links on which this daemon fetches, the picker, readers' demands. Thread: "download". Functions are for any
 * thread (they post) unless marked otherwise. */
#ifndef DAEMON_DOWNLOAD_H
#define DAEMON_DOWNLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/merkle.h"
#include "daemon/daemon.h"
#include "daemon/link_status.h"
#include "daemon/picker.h"
#include "proto/tracker.pb-c.h"

struct content;
struct credentials;
struct stream;

struct download *download_new(struct daemon *);
void download_start(struct download *);
void download_stop(
    struct download
        *); /* set-up thread: answers every demand with -ESHUTDOWN, ends the thread; mail still finds a box */
void download_free(
    struct download *); /* after all modules were stopped and the workers are quiet */

/* --- readers ----------------------------------------------------------------------------------------------- */
/* A reader of `handle` waits for bytes [offset, offset + size) of the content. `request` names the demand; the answer is
 * local_demand_done(request, 0 or -errno): 0 when all its blocks are present, -EIO after `wait_ns`, -ESHUTDOWN. */
void download_demand(struct download *, struct content *, uint64_t request, uint64_t handle,
                     uint64_t offset, uint64_t size, int64_t wait_ns);
/* The reader is gone: no answer comes (one that is under way may). */
void download_undemand(struct download *, uint64_t request);
/* A reader went over these present bytes: moves its read-ahead window, counts as reading. */
void download_reading(struct download *, struct content *, uint64_t handle, uint64_t offset,
                      uint64_t size);
/* The handle was closed: its window and demands are dropped. */
void download_handle_closed(struct download *, uint64_t handle);

/* --- whole files -------------------------------------------------------------------------------------------- */
/* Fetch all of it (get, pin). local_content_complete is called when it is complete, at once if it already is; or with an
 * error that will not pass (-ENOSPC is not one: it waits). Idempotent. */
void download_get(struct download *, struct content *);
/* No longer asked for; what readers demand goes on. */
void download_unget(struct download *, const uint8_t root[HASH_SIZE]);

/* From the store's change hook: blocks of this content went. Who waits for them asks for them again. */
void download_lost(struct download *, struct content *);

/* --- from the session ---------------------------------------------------------------------------------------- */
/* `peers` is taken over (protobuf-c unpacked). `answer`: replaces what was known, else adds. */
void download_peers(struct download *, Tracker__Peers *peers, bool answer);
/* New credentials, a reference of which is taken over; NULL: logged out, links end. */
void download_credentials(struct download *, struct credentials *);
/* settings.rate_down or a content's limit (limits.h) is another one. */
void download_limits_changed(struct download *);
/* Links with this device end. */
void download_revoked(struct download *, const uint8_t device[16]);
/* From upload: an accepted (or dial-back) link on which the other end is the server. The stream was moved to the download
 * loop (tls_move); `hello` bytes have not been read except the first frame, which is given here. */
void download_adopt(struct download *, struct stream *, uint8_t *hello, size_t hello_size);
struct loop *download_loop(struct download *);

/* --- status: copies made on the download thread, handed to `done` on the local thread ------------------------- */
struct download_file_status {
    uint8_t root[HASH_SIZE];
    uint64_t rate; /* bytes a second */
    uint32_t links, waiting;
    uint32_t holders;                    /* devices known to hold some of it and reachable */
    uint32_t missing_pieces;             /* not here, and with no known peer */
    struct picker_gap gaps[PICKER_GAPS]; /* the blocks of those */
    uint32_t gap_count;
    bool more_gaps; /* than are listed */
    bool wanted_all;
};
struct download_status {
    struct download_file_status *files;
    size_t file_count;
    struct link_status *links;
    size_t link_count;
    uint64_t rate, total, wasted;
    char store_trouble[96];
    void *cookie;
};
/* Calls local_download_status(status) on the local thread. `root` may be NULL. */
void download_ask_status(struct download *, const uint8_t *root, void *cookie);
void download_status_free(struct download_status *);

#endif
