/* Shared by what speaks about accounts: account.c, user.c, proof.c. */
#ifndef TOOLS_ACCOUNT_H
#define TOOLS_ACCOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/ctl.h"
#include "tools/secret.h"

struct client;

/* Connected to a p2pd where somebody is logged in, or NULL: the reason has been said. */
struct client *account_open(const struct ctl *);
/* "PROMPT_START NAME": the password, from --password-file or a terminal. False: the reason has been said. */
bool account_ask_password(struct secret *, const struct ctl *, const char *prompt_start,
                          const char *name, bool fresh);
/* A code of the second factor, from --totp-file, $P2P_TOTP_FILE or a terminal. */
bool account_ask_code(struct secret *, const struct ctl *);
/* "2026-01-31 12:00" in local time, or "unknown". */
void account_format_time(char *out, size_t size, int64_t seconds);

#endif
