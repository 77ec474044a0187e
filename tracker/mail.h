/* Mail from the tracker: a queue in the database, and one thread that sends.
 *
 * Whoever wants a mail sent adds a row (storage_mail_add) in its own transaction and calls mailer_kick. What the mail
 * says is made when it is sent, code included: so the code is nowhere on disk but as its hash, and each try has another
 * one. A mail is tried until it is taken, refused for good, or too old. */
#ifndef TRACKER_MAIL_H
#define TRACKER_MAIL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct server;
struct mailer;

struct mail_settings {
    char *server;  /* "smtp://HOST:PORT" (STARTTLS) or "smtps://HOST:PORT"; NULL: none */
    char *command; /* instead: a program that takes a mail, the address is its last argument */
    char *from;    /* address */
    char *user;    /* NULL: no log in at the server */
    char *password_file;    /* its first line; others may not read it */
    char *ca_file;          /* NULL: the system's */
    bool plain;             /* no TLS: to a server on this machine only */
    uint64_t retry;         /* seconds after a first failure; doubles up to an hour */
    uint64_t code_lifetime; /* seconds */
};
#define MAIL_RETRY         60
#define MAIL_CODE_LIFETIME (3600)

/* Printable ASCII without blanks, one @ with something on both sides, nothing that means more to a mail server, and at
 * most LIMIT_EMAIL bytes: what may be put into a header and a command. */
bool mail_address_is_sound(const char *address);
/* NULL if all is well, else a malloc'ed sentence. *configured: whether mail is to be sent at all. */
char *mail_settings_fault(const struct mail_settings *, bool *configured);
void mail_settings_copy(struct mail_settings *to, const struct mail_settings *from);
void mail_settings_clear(struct mail_settings *);

/* --- the queue: the loop's thread ------------------------------------------------------------------ */
struct mailer *mailer_new(struct server *, const struct mail_settings *);
/* Rows were added. NULL is fine. */
void mailer_kick(struct mailer *);
/* Before the storage's thread ends: a mail that is being sent is given up, and stays in the queue. NULL is fine. */
void mailer_stop(struct mailer *);
void mailer_free(struct mailer *); /* after the loop */

/* --- sending: any thread, blocks ------------------------------------------------------------------- */
enum mail_result { MAIL_SENT, MAIL_LATER, MAIL_REFUSED };
/* `text` is a whole message with CR LF. Gives up soon after *stop is set. `why` gets a clause. */
enum mail_result mail_send(const struct mail_settings *, const char *to, const char *text,
                           size_t size, const atomic_bool *stop, char *why, size_t why_size);

#endif
