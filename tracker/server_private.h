/* Shared by what runs on the server's loop: server.c (listener, life), session.c (connections),
 * accounts.c, feed.c (catalogue), announce.c (who has what). Everything here is that thread's. */
#ifndef TRACKER_SERVER_PRIVATE_H
#define TRACKER_SERVER_PRIVATE_H

#include <event2/event.h>

#include "base/check.h"
#include "base/loop.h"
#include "base/workers.h"
#include "crypto/tls.h"
#include "proto/bans.h"
#include "proto/channel.h"
#include "proto/knocks.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/spent.h"
#include "proto/tracker.pb-c.h"
#include "tracker/address.h"
#include "tracker/authority.h"
#include "tracker/catalogue.h"
#include "tracker/mail.h"
#include "tracker/members.h"
#include "tracker/rights.h"
#include "tracker/server.h"
#include "tracker/storage_queue.h"
#include "tracker/swarm.h"
#include "tracker/table.h"
#include "tracker/throttle.h"

#define SESSION_MAGIC 0x5e5510a1u

/* One source address with its connections. */
struct source {
    struct table_node node;
    uint8_t key[16];
    unsigned links;
    unsigned half_open;
    unsigned waiting; /* in server->waiting */
};

/* One account with its connections. */
struct account_links {
    struct table_node node;
    char name[ACCOUNT_BYTES_MAX + 1];
    unsigned links;
};

enum feed_state { FEED_NONE, FEED_BEHIND, FEED_LIVE };

struct session {
    unsigned magic;
    unsigned refs; /* its own existence, and each answer under way */
    struct server *server;
    struct session *next, **link; /* in server->sessions */
    struct channel *channel;      /* NULL once it has ended */
    struct source *source;
    char from[64]; /* address for people */
    uint8_t source_key[16];
    int64_t since; /* when this state began: handshake, then ready */
    bool ready;    /* TLS is done */
    bool greeted;  /* Hello came */
    bool ending;   /* a last word is on its way; requests are ignored */
    unsigned unanswered;
    bool held_back;   /* its requests wait until it has read its answers */
    uint64_t taken;   /* bytes that had gone out when that was last looked at */
    int64_t taken_at; /* and when they last grew, or nothing waited */

    /* Of a member, else account is "". */
    char account[ACCOUNT_BYTES_MAX + 1];
    uint8_t device[DEVICE_ID_SIZE];
    int64_t
        valid_until; /* seconds since 1970: the end of its certificate, or of the one it was given since */
    struct swarm_device *peer;
    struct account_links *account_links;
    const char *void_why; /* a certificate was shown that counts no longer, and why; NULL: none */
    unsigned busy;        /* attempts of accounts.c under way */

    /* announce.c */
    struct address *addresses;
    unsigned addresses_count;
    bool announced;
    int64_t settle_at;  /* 0: not */
    int64_t dials_from; /* window for dial-backs */
    unsigned dials;

    /* feed.c */
    enum feed_state feed;
    bool feed_was_live;
    bool feed_reading;    /* a chunk is being read */
    unsigned feed_round;  /* which Subscribe: chunks of earlier ones are dropped */
    uint64_t feed_cursor; /* all changes up to this one were sent */
    uint64_t
        feed_scratch; /* from scratch: tombstones up to this one are left out; 0: not from scratch */
    bool feed_claims; /* the next chunk is the first: does the cursor mean anything here? */
    uint8_t feed_generation[STORAGE_GENERATION_SIZE]; /* that it says to know, zeros if none */
    bool feed_first;                                  /* nothing of this series was sent */
    bool feed_quiet;       /* changes of which it may see nothing need not be said */
    uint8_t *signers_told; /* bits: claims that were sent on this connection */
    uint32_t signers_room; /* bytes */
    uint32_t ops_failed;   /* Ops of this attempt and before are refused; the storage's thread's */
    unsigned feed_asked;   /* Subscribes so far */
    bool feed_anew;        /* its sight has changed once more since the series began */
    int64_t feed_renewed_at;
    bool renew;         /* rights.c: its sight has changed */
    bool renew_later;   /* the same, a moment after the last time */
    int64_t renewed_at; /* it was told so; 0: not yet */
};

struct server {
    struct loop *loop;
    struct workers *crypto;    /* handshakes, certificates */
    struct workers *passwords; /* Argon2 */
    char *dir, *name;
    enum registration registration;
    int64_t certificate_lifetime;
    int64_t ticket_lifetime;
    uint64_t quota; /* entries of one account; 0: the usual */

    struct authority authority;
    struct tls_context *tls;
    struct storage *storage;
    struct storage_queue *queue;
    uint8_t generation[STORAGE_GENERATION_SIZE];
    struct members *members;
    struct rights *rights;
    struct signers *signers;
    struct swarm *swarm;
    struct throttle *throttle;
    struct throttle *mails;
    struct mailer *mailer; /* NULL: no mail is sent */
    bool verify_email;

    /* server.c */
    char address[300];
    uint16_t port;
    int listener, lock;
    int reserve; /* a descriptor to give up when there are no more */
    struct event *accepting, *on_term, *on_int;
    struct timer *retry; /* accept again */
    struct timer *knock; /* somebody's budget for handshakes fills up */
    struct timer *sweep; /* every second */
    struct timer *hourly;
    struct table sources, accounts;
    struct knocks *knocks;
    struct spent *spent; /* of their bursts, by members' connections that have ended */
    struct bans *bans;
    uint64_t seed;
    struct session *sessions;
    unsigned links, half_open;
    struct channel_pool queued;             /* for all sessions */
    struct waiting *waiting, **waiting_end; /* accepted, not yet begun: too many handshakes */
    unsigned waiting_count;
    int64_t evicted_at; /* when a handshake had to make room */
    bool stopping, is_new;
    bool starting;         /* waiting_start runs: it is not called again from within */
    int64_t refusals_from; /* window for log lines about refusals */
    unsigned refusals;
    int64_t audited_from; /* window for rows about refusals */
    unsigned audited;

    /* accounts.c */
    unsigned attempts;
    struct attempt *waiting_attempts;

    /* announce.c */
    struct timer *news;
    struct timer *pieces;
    bool pieces_writing;

    /* feed.c */
    struct timer *feed;
    struct catalogue_changes feed_pending;
    int64_t feed_flushed;
};

/* --- session.c ---------------------------------------------------------------------------------------- */
/* Owns the stream. `session_ready` follows when its handshake is done; subject NULL: no certificate was shown. */
struct session *session_start(struct server *, struct stream *, struct source *, const char *from);
void session_ready(struct session *, const struct certificate_subject *subject);
void session_end(struct session *, const char *why); /* at once */
void session_keep(struct session *);
void session_release(struct session *);
/* A job of the storage's for this session took so much of its thread's time. */
void session_charge(struct session *, int64_t cost);
static inline bool session_is_open(const struct session *s)
{
    return s->channel != NULL && !s->ending;
}
static inline bool session_is_member(const struct session *s)
{
    return s->account[0] != '\0';
}
/* Answers to request `id`; nothing happens if the session has ended. */
void session_answer(struct session *, uint32_t id, Tracker__TrackerType, const ProtobufCMessage *);
void session_answer_payload(struct session *, uint32_t id, Tracker__TrackerType,
                            const ProtobufCMessage *, const void *payload, size_t size);
void session_fault(struct session *, uint32_t id, Tracker__FaultCode, const char *text,
                   int64_t retry_after_ns);
void session_done(struct session *, uint32_t id);
void session_push(struct session *, enum channel_class, Tracker__TrackerType,
                  const ProtobufCMessage *);
/* Ends all sessions of these devices and tells every member. */
void sessions_revoke(struct server *, const uint8_t (*devices)[DEVICE_ID_SIZE], size_t count,
                     const struct session *but);
/* Every second: ends what has been silent too long. */
void sessions_sweep(struct server *, int64_t now);
/* Ends the handshake that has taken longest, if that is more than a second, of the source that has most of them under
 * way: others wait for its place. False if there is none. */
bool sessions_make_room(struct server *, int64_t now);

/* --- server.c ----------------------------------------------------------------------------------------- */
/* A session over any stream, with the handshake's result: what fuzzing and simulations put in place of TLS. */
struct session *server_adopt(struct server *, struct stream *, const char *from,
                             const struct certificate_subject *);
/* A handshake has ended, one way or the other: another may begin. */
void server_handshake_ended(struct server *, struct source *);
void server_link_ended(struct server *, struct source *);
/* One more connection of an account; NULL if it has too many. */
struct account_links *server_account_begins(struct server *, const char *name);
void server_account_ends(struct server *, struct account_links *);
/* The handshake that has ended was a member's; it, or what came behind it, was nobody's. */
void server_knock_good(struct server *, const struct source *, const char *account);
void server_knock_bad(struct server *, const struct source *);
/* Logs "FROM: what", but not more than a few in a second. */
void server_log_refusal(struct server *, const char *from, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Whether one more row about what a stranger did may be written: not more than a few in a second. */
bool server_may_audit(struct server *);
/* A row about a log in that failed, if it may. */
void server_audit_refusal(struct server *, const char *account, const char *from);
int64_t wall_seconds(void);

/* --- signers.c ---------------------------------------------------------------------------------------- */
/* NULL: the data base cannot be read. Before the storage has its thread. */
struct signers *signers_load(struct storage *, uint64_t seed);
void signers_free(struct signers *); /* NULL is fine */
/* The claims of these entries' signers that the session was not sent yet: at most `count`; they live as long as the
 * server. */
size_t signers_tell(struct session *, Tracker__Entry *const *entries, size_t count,
                    Tracker__Signer **out);

/* --- handlers: return NULL, or why the connection must end ------------------------------------------------ */
typedef const char *session_handler(struct session *, uint32_t id, const void *message);
session_handler accounts_register, accounts_login, accounts_renew, accounts_logout,
    accounts_password, accounts_whoami, accounts_invite, accounts_users, accounts_user_change,
    accounts_transfer, accounts_device_remove, accounts_email, accounts_verify, accounts_reset,
    accounts_reset_set, accounts_totp, accounts_audit;
session_handler feed_subscribe;
session_handler signers_claim;
session_handler grants_grant, grants_access, grants_group, grants_groups;
session_handler announce_announce, announce_want, announce_unwant, announce_health,
    announce_release, announce_dial_back;
/* Ops are carried out on the storage's thread, so they are unpacked there. */
const char *feed_ops(struct session *, uint32_t id, const uint8_t *message, size_t size);

void accounts_stop(struct server *);
void feed_start(struct server *);
void feed_stop(struct server *);
void feed_drained(struct session *);
/* Changes that did not come as operations: subscribers are told. Takes the entries over. */
void feed_changed(struct server *, struct catalogue_changes *);
/* What this subscriber may see has changed: it gets the catalogue anew. */
void feed_renew(struct session *);
void announce_start(struct server *);
bool announce_load(struct server *);
/* Writes what is left of the piece maps: the storage is this thread's again. */
void announce_finish(struct server *);
void announce_stop(struct server *);
/* After swarm state changed: arranges for news to be told. */
void announce_changed(struct server *);
void announce_connect(struct session *);
void announce_disconnect(struct session *);

#endif
