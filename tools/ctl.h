/* p2pctl: what all verbs share.
 *
 *   main.c      starts; verbs.c   the table of verbs, help      options.c  the command line
 *   account.c   register login logout whoami passwd invite      service.c  start stop
 *   user.c      user devices audit                              proof.c    email reset totp
 *   status.c    status                                          swarm.c    peers health
 *   limit.c     limit
 *   fetch.c     get pin unpin                                   list.c     ls
 *   watch.c     watch                                           store.c    evict check
 *   access.c    grant revoke access group keys                  key.c      key passphrase
 *   call.c      talks to the tracker, through p2pd
 *   client.c    talks to p2pd      path.c    what PATH means     secret.c   asks for passwords
 *   table.c     columns            text.c    names, widths       json.c     messages as JSON
 *   progress.c  a progress line    terminal.c  size, full screen
 *
 * One thread. A verb returns the exit status; what went wrong has then been said in one line on
 * standard error, where its cause was known. */
#ifndef TOOLS_CTL_H
#define TOOLS_CTL_H

#include <stdbool.h>
#include <stdint.h>

enum ctl_status { CTL_DONE = 0, CTL_FAILED = 1, CTL_WRONG_USAGE = 2 };

struct client;
struct client_request;
struct verb;

/* A command line, understood. Strings are argv's unless marked. */
struct ctl {
    const struct verb *verb;
    char *home; /* malloc'ed */
    const char *home_option;
    char **arguments; /* behind the verb; malloc'ed array */
    int argument_count;
    const char *email;
    const char *password_file;
    const char *new_password_file;
    const char *code_file; /* of a mail */
    const char *totp_file;
    const char *url, *account;
    int64_t since;  /* seconds since 1970; 0: not given */
    uint64_t count; /* 0: not given */
    bool logout_others;
    uint64_t uses;     /* 0: not given */
    uint64_t expires;  /* seconds; 0: not given */
    uint64_t up, down; /* bytes a second, 0: unlimited; if up_given, down_given */
    bool up_given, down_given;
    bool admin, json, watch, tracker, details, repair, pause, resume, all, help, version;
    const char *recover; /* a folder */
    const char *passphrase_file;
    const char *new_passphrase_file;
    bool remove;
};

/* The whole program: what main returns. */
int ctl_run(int argc, char **argv);

/* Connected to p2pd, or NULL: the reason has been said. `start`: starts it if it does not run. */
struct client *ctl_open(const struct ctl *, bool start);

/* A request and its answer, as client_request; NULL: the reason has been said. */
const void *ctl_ask(struct client *, const struct client_request *);

/* The command's paths as p2pd knows them; an array of argument_count malloc'ed strings, or NULL: the
 * reason has been said. Needs a running p2pd: a mount is asked. */
char **ctl_paths(const struct ctl *);
void ctl_free_paths(const struct ctl *, char **paths);

/* An exit status; if `good`, says that it is done, as JSON or in words. */
int ctl_finish(const struct ctl *, bool good, const char *said);

#endif
