/* What of accounts the program's commands share with the server. */
#ifndef TRACKER_ACCOUNTS_H
#define TRACKER_ACCOUNTS_H

#include "base/swarm_url.h"
#include "tracker/storage.h"

#define ACCOUNTS_INVITE_CODE 20 /* characters out of 57: 116 bits */
_Static_assert(ACCOUNTS_INVITE_CODE <= SWARM_INVITE_MAX,
               "an invite's code must fit into an address");

#define ACCOUNTS_INVITE_LIFETIME (7 * 86400)

/* Makes a new code, and the hash of it in the invite; the other fields are the caller's. */
void accounts_make_invite(struct storage_invite *, char code[ACCOUNTS_INVITE_CODE + 1]);

#endif
