/* p2pd: the map of the program.
 *
 *   thread     module       owns
 *   tracker    session.h    the connection to the tracker, credentials and their renewal, what is announced
 *   download   download.h   links on which we fetch, the picker, readers' demands, bans
 *   upload     upload.h     the listener, links on which we serve, the choker
 *   local      local.h      sockets of p2pfs and p2pctl; catalogue.h: the tree of names and its journal; ingest.h's files
 *   workers    store.h      (one per core) hashing, reading and writing the store
 *   handshakes              (two) RSA of TLS handshakes with those whom we dial, key generation
 *   accepts                 (two, meek) RSA of TLS handshakes with whoever dials us
 *
 * Each thread is a loop (base/loop.h) and the only owner of its state; they talk by the functions marked "any thread" in
 * each module's header, which post mail. What is shared instead of posted is immutable or guards itself: struct content
 * (store.h), struct credentials, struct bans, struct revocations, this structure.
 *
 * Who calls whom:
 *   local    -> session    operations on the catalogue, log in and the like
 *   local    -> download   demands of readers, get, pin
 *   session  -> local      changes of the catalogue, results of operations, state of the connection
 *   session  -> download   peers of a root, revocations, new credentials
 *   session  -> upload     new credentials, revocations, dial-backs
 *   download -> session    wants a root's peers; asks for a dial-back
 *   download -> upload     hands over what only the other direction can use (a link that was accepted for us comes the
 *                          other way)
 *   store    -> session, upload, local   blocks became present: announced, told to fetchers, shown */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdbool.h>
#include <stdint.h>

struct bans;
struct limits;
struct loop;
struct workers;
struct store;
struct session;
struct download;
struct upload;
struct local;
struct revocations;

struct daemon_settings {
    char *
        listen; /* "HOST:PORT" to accept peers on; default ":0" (any address, a free port that is kept
                              in state.db so that it stays the same over restarts) */
    char *announce;   /* extra address to announce, "" for none */
    uint64_t rate_up; /* bytes a second, 0: no limit; these two change while p2pd runs (atomic) */
    uint64_t rate_down;
    bool background;     /* complete files that are really being read; default true */
    uint64_t cache_size; /* bytes of other members' contents that are not pinned; 0: no limit */
    bool encryption;     /* a store that is empty becomes an encrypted one */
};

struct daemon {
    const char *home;
    struct daemon_settings settings;
    struct store *store;
    struct limits *limits;      /* of contents, and what p2pctl set */
    struct workers *workers;    /* one per core */
    struct workers *handshakes; /* two */
    struct workers *accepts;    /* two, meek: anybody can fill them with work */
    struct bans *bans;          /* proto/bans.h: guards itself */
    struct session *session;
    struct download *download;
    struct upload *upload;
    struct local *local;
    struct revocations *revocations; /* guards itself; NULL: nobody is revoked */
    uint64_t
        line_up; /* bytes a second that the uplink was seen to carry, 0: not known; from upload to download (atomic) */
    int64_t started; /* clock_now() */
};

#endif
