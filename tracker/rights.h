/* What each session may see, tickets, and what is done when rights change. The loop's thread. */
#ifndef TRACKER_RIGHTS_H
#define TRACKER_RIGHTS_H

#include "crypto/ticket.h"
#include "tracker/access.h"
#include "tracker/catalogue.h"

struct rights;
struct server;
struct session;

struct rights_settings {
    const char *dir;
    uint64_t seed;
    int64_t ticket_lifetime; /* seconds */
};
/* Loads rules and folders, and the key of tickets (made at the first start). NULL: *fault is a malloc'ed sentence.
 * Before the storage has its thread. */
struct rights *rights_open(const struct rights_settings *, struct storage *, char **fault);
void rights_close(struct rights *); /* NULL is fine */
struct access *rights_access(struct rights *);

/* --- judging: of member's sessions ---------------------------------------------------------------------- */
enum access_level rights_level(const struct session *, uint64_t folder);
bool rights_sees(const struct session *, const struct storage_entry *);
/* Whether it could see the entry before this change. */
bool rights_saw(const struct session *, const struct storage_entry *);
bool rights_sees_root(const struct session *, const uint8_t root[HASH_SIZE]);
/* The same for the swarm (swarm_set_judge): `owner` is a session, or NULL. */
bool rights_judge(void *arg, void *owner, const uint8_t root[HASH_SIZE]);
/* Whether the catalogue has this root, or had it lately; for swarm_set_known. */
bool rights_knows(void *arg, const uint8_t root[HASH_SIZE]);

/* --- tickets -------------------------------------------------------------------------------------------- */
void rights_server_key(const struct server *, const uint8_t device[DEVICE_ID_SIZE],
                       uint8_t out[TICKET_KEY_SIZE]);
/* For the fetcher, at the server `device`. True: it is good for every content, not only for the root. */
bool rights_ticket(const struct session *fetcher, const uint8_t device[DEVICE_ID_SIZE],
                   const uint8_t root[HASH_SIZE], uint8_t out[TICKET_SIZE]);
/* Tells a session that has said Hello whose tickets were made void lately. */
void rights_greet(struct session *);

/* --- changes -------------------------------------------------------------------------------------------- */
/* Rules or groups have changed in the mirror, for this account ("": for anybody): see rights.c. */
void rights_changed(struct server *, const char *account);
/* Brings the mirror up to these changes, which are about to be told; then, after all of a batch, rights_followed. */
void rights_follow(struct server *, const struct catalogue_changes *);
void rights_followed(struct server *);
/* Every second: what was put off, as too much changed at once. */
void rights_sweep(struct session *, int64_t now);

#endif
