/* What the parts of the session share; nobody else includes this. All of it belongs to the tracker
 * thread.
 *
 *   session.c           the connection's life: dialling, back-off, subscription, operations, wants,
 * pushes session_account.c   registering, logging in and out, renewal of the certificate
 *   session_call.c      requests about accounts that p2pctl has us hand on
 *   session_announce.c  what we hold and where we listen, told to the tracker
 *   session_release.c   asking the tracker what may be deleted */
#ifndef DAEMON_SESSION_INTERNAL_H
#define DAEMON_SESSION_INTERNAL_H

#include "daemon/session.h"

#include <uthash.h>

#include "base/loop.h"
#include "crypto/signature.h"
#include "daemon/credentials.h"
#include "daemon/local.h"
#include "daemon/tracker_link.h"

struct addresses;
struct holding;
struct account_flow;
struct signatures;

/* A root whose peers download wants to know. */
struct wanted {
    uint8_t root[HASH_SIZE];
    uint64_t size;
    bool to_ask;   /* in session->to_ask */
    int64_t asked; /* when */
    struct wanted *prev, *next;
    UT_hash_handle hh;
};

struct session {
    struct daemon *daemon;
    struct loop *loop;
    struct credentials *credentials; /* NULL: nobody is logged in */
    struct tracker_link *link;       /* NULL while we wait to dial again */
    struct timer *redial;
    struct tracker_link_pools pools; /* its resolver is ours */
    unsigned failures;               /* in a row */
    int64_t up_since;                /* 0: the link is not up */
    unsigned epoch; /* grows with each time that local is told it is connected; see session_op */
    struct timer *resubmit; /* the tracker did not take an operation: all are sent again */
    char *ops_trouble;      /* why it did not; NULL: it takes them */
    char *swarm;            /* its name, from Welcome */
    bool void_certificate;  /* the tracker says Welcome to nobody: `redial` acts on it */
    /* the catalogue */
    bool catalogue_known; /* local has said where it stands */
    uint8_t generation[16];
    uint64_t seq;
    /* contents */
    struct wanted *wanted;
    struct wanted *to_ask;    /* those whose Want has not gone out, in order */
    unsigned wants_under_way; /* unanswered */
    struct timer *tickets;    /* looks for wants whose tickets are getting old */
    int64_t ticket_lifetime;  /* 0: the tracker gives none */
    struct holding *holdings;
    struct holding *marked;   /* those with something to tell, in order */
    unsigned loads_under_way; /* contents that workers open for it */
    bool holdings_listed;     /* the store has been listed */
    struct timer *announce_timer;
    unsigned announces_under_way;
    int64_t announced_at; /* the last one */
    uint16_t port;        /* where we accept peers, 0: not yet known */
    struct timer *address_timer;
    struct addresses *address_watch; /* NULL: the kernel does not say */
    char *addresses;                 /* what was announced last, joined, to notice changes */
    /* accounts */
    struct account_flow *flow; /* the one under way */
    struct timer *renew_timer;
    bool renewing;
    struct signatures *signatures;
    struct ask *asks; /* waiting for the connection, in order */
    bool stopping;    /* the thread has ended: mail that is left is only freed */
};

/* session.c */
void session_install(struct session *,
                     struct credentials *); /* takes the reference; NULL: logged out */
void session_replace_credentials(
    struct session *, struct credentials *); /* the same device, renewed; takes the reference */

/* session_account.c */
void session_account_init(struct session *);
void session_account_down(struct session *); /* at the end: flows are answered, timers freed */
void session_account_link_up(struct session *);
void session_account_link_down(struct session *); /* s->link is NULL */

/* One request of p2pctl about the account, under way. */
struct account_flow {
    struct session *session;
    struct account_request *request;
    struct swarm_url url;
    struct key *key;
    char *certificate_request; /* PEM */
    struct tls_context *context;
    struct tracker_link *link; /* the temporary one */
    const char *note;
    bool preparing;  /* a worker has the flow */
    bool connecting; /* it waits for the kept connection, which is being made */
    bool abandoned;  /* the session ends: free it when the worker gives it back */
};
/* Ends the flow with an answer: an errno and a clause, or (0, note or NULL). */
void account_flow_finish(struct account_flow *, int error, const char *text,
                         Tracker__Account *account);
/* The same for a call: the tracker's answer is handed back. */
void account_flow_finish_call(struct account_flow *, const struct tracker_answer *);
/* What to say of a Fault: an errno, and a clause for *text, malloc'ed. */
int account_fault(const Tracker__Fault *, char **text);
/* Opens the temporary connection to flow->url, without a certificate. */
void account_flow_dial(struct account_flow *);

/* session_call.c */
/* True for a request that needs no certificate. */
bool session_call_is_strangers(unsigned type);
/* Nobody is logged in, or the kept connection is not there: over the temporary one. */
void session_call_dial(struct account_flow *);
/* Over a connection that is up. */
void session_call_send(struct account_flow *, struct tracker_link *);
/* Which swarm was logged in to last is known after a log out, too. */
void session_call_remember(struct session *, const struct swarm_url *);
/* session_signed.c: what the tracker says of the catalogue, and of itself, goes to local through these, in order */
void session_signed_init(struct session *);
void session_signed_free(struct session *); /* after the last mail */
void session_signed_link_up(struct session *);
void session_signed_changes(struct session *, Tracker__Changes *); /* taken over */
void session_signed_results(struct session *, Tracker__Results *); /* taken over */
void session_signed_state(struct session *, enum session_state, const char *trouble);
struct session_signature {
    uint8_t signer[SIGNER_ID_SIZE], signature[SIGNATURE_SIZE];
};
/* False: there is nothing to sign in it, or no key. */
bool session_sign(struct session *, const Tracker__Op *, struct session_signature *out);

/* session_ask.c */
void session_ask_link_up(struct session *);
void session_ask_link_down(struct session *); /* s->link is NULL */

/* session_announce.c */
void session_announce_init(struct session *);
void session_announce_down(struct session *); /* at the end: timers are freed */
void session_announce_free(struct session *); /* after the last mail */
void session_announce_link_up(struct session *, const char *seen_as);
void session_announce_link_down(struct session *);
/* A content is about to be asked for, so it is not whole here. The tracker names nobody to a device that it thinks has all:
 * what it does not know yet of our losses goes out first. */
void session_announce_wanted(struct session *, const uint8_t root[HASH_SIZE], uint64_t size);
/* Between the two nothing is told of this content: the tracker has been asked whether parts of it may be deleted, and
 * what it granted must not count again before it is gone. `gone`: nothing is left. */
void session_announce_hold(struct session *, const uint8_t root[HASH_SIZE], uint64_t size);
void session_announce_go_on(struct session *, const uint8_t root[HASH_SIZE], bool gone);

#endif
