/* The table of verbs: dispatch and help come from it. */
#ifndef TOOLS_VERBS_H
#define TOOLS_VERBS_H

#include <stdio.h>

#include "tools/ctl.h"

struct verb {
    const char *name;
    int (*run)(const struct ctl *); /* returns an exit status */
    const char *arguments;          /* "URL NAME" */
    unsigned least, most;           /* how many */
    unsigned options;               /* bits of options.h */
    const char *summary;            /* one line */
    const char *details;            /* for its own --help; may be NULL */
};

/* NULL: there is none of that name. */
const struct verb *verb_find(const char *name);
/* The name of the verb that was probably meant, or NULL. */
const char *verb_nearest(const char *name);
void verb_help(const struct verb *, FILE *to);
void verb_help_all(FILE *to);

int account_register(const struct ctl *);
int account_login(const struct ctl *);
int account_logout(const struct ctl *);
int account_whoami(const struct ctl *);
int account_passwd(const struct ctl *);
int key_passphrase(const struct ctl *);
int account_invite(const struct ctl *);
int user_verb(const struct ctl *);
int user_devices(const struct ctl *);
int user_audit(const struct ctl *);
int proof_email(const struct ctl *);
int proof_reset(const struct ctl *);
int proof_totp(const struct ctl *);
int access_keys(const struct ctl *);
int access_grant(const struct ctl *);
int access_revoke(const struct ctl *);
int access_show(const struct ctl *);
int access_group(const struct ctl *);
int service_start(const struct ctl *);
int service_stop(const struct ctl *);
int status_show(const struct ctl *);
int swarm_peers(const struct ctl *);
int swarm_health(const struct ctl *);
int fetch_get(const struct ctl *);
int fetch_pin(const struct ctl *);
int fetch_unpin(const struct ctl *);
int watch_changes(const struct ctl *);
int limit_rates(const struct ctl *);
int store_evict(const struct ctl *);
int store_check(const struct ctl *);
/* fetch.c: fetches these paths whole, and waits. */
bool fetch_paths(const struct ctl *, char **paths, size_t count);
int list_entries(const struct ctl *);

/* The passphrase of the device's key, for whoever starts p2pd. False: the reason has been said. */
struct secret;
bool key_passphrase_get(const struct ctl *, struct secret *out);
bool key_has_passphrase(const struct ctl *);

#endif
