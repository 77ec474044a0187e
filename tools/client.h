/* The other end of p2pd's socket, for a program that does one thing after the other: it blocks, with
 * a bound on each wait.
 *
 * A request at a time; answers to it, and notices before them, are read in the order they come. One
 * thread. */
#ifndef TOOLS_CLIENT_H
#define TOOLS_CLIENT_H

#include <protobuf-c/protobuf-c.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct client;

struct client_fault {
    bool absent;    /* no p2pd runs for this home */
    bool lost;      /* the connection has ended */
    int number;     /* errno of an answer LOCAL_ERROR, else 0 */
    char text[512]; /* one clause */
};

/* Connects to HOME's p2pd and says hello. NULL and *fault filled. */
struct client *client_open(const char *home, struct client_fault *fault);
void client_free(struct client *); /* NULL is fine */

uint32_t client_pid(const struct client *);        /* p2pd's */
const char *client_account(const struct client *); /* "" if nobody is logged in */
const char *client_url(const struct client *);     /* the swarm's */

struct client_request {
    uint16_t type;
    const ProtobufCMessage *message; /* NULL: an empty one */
    uint16_t answer_type;
    const ProtobufCMessageDescriptor *answer;
    int64_t timeout_ns;
};

/* Sends a request and waits for its answer; notices meanwhile are dropped. Returns the answer, which
 * lives until the next call for this client, or NULL and *fault filled. The packed request is wiped:
 * it may hold a password. */
const void *client_request(struct client *, const struct client_request *, struct client_fault *);

/* The same in steps, for a request with notices. client_send: false and *fault. client_next waits for
 * a message of that request. */
bool client_send(struct client *, const struct client_request *, struct client_fault *);

enum client_event {
    CLIENT_ANSWER,      /* *message is the answer */
    CLIENT_NOTICE,      /* *message is a notice of `notice_type` */
    CLIENT_TIMEOUT,     /* nothing came meanwhile */
    CLIENT_INTERRUPTED, /* by a signal of client_unblock's */
    CLIENT_FAULT,       /* an error was answered, or the connection has ended */
};
struct client_notice {
    uint16_t type;
    const ProtobufCMessageDescriptor *message;
};
enum client_event client_next(struct client *, const struct client_request *,
                              const struct client_notice *, int64_t timeout_ns,
                              const void **message, struct client_fault *);

/* The signal mask while waiting; so a signal that the caller has blocked else interrupts nothing but
 * a wait. client_request then fails with number EINTR. */
void client_unblock(struct client *, const sigset_t *mask);

#endif
