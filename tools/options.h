/* The command line: which options there are, and which of them a verb takes. */
#ifndef TOOLS_OPTIONS_H
#define TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stdio.h>

#include "tools/ctl.h"

/* Bits of struct verb's `options`. --home, --help and --version go with every verb. */
enum {
    OPTION_EVERYWHERE = 1 << 0,
    OPTION_PASSPHRASE_FILE = 1 << 1,
    OPTION_NEW_PASSPHRASE_FILE = 1 << 2,
    OPTION_REMOVE = 1 << 3,
    OPTION_JSON = 1 << 4,
    OPTION_EMAIL = 1 << 5,
    OPTION_PASSWORD_FILE = 1 << 6,
    OPTION_NEW_PASSWORD_FILE = 1 << 7,
    OPTION_ADMIN = 1 << 8,
    OPTION_USES = 1 << 9,
    OPTION_EXPIRES = 1 << 10,
    OPTION_WATCH = 1 << 11,
    OPTION_TRACKER = 1 << 12,
    OPTION_LONG = 1 << 13,
    OPTION_CODE_FILE = 1 << 14,
    OPTION_TOTP_FILE = 1 << 15,
    OPTION_URL = 1 << 16,
    OPTION_ACCOUNT = 1 << 17,
    OPTION_SINCE = 1 << 18,
    OPTION_COUNT = 1 << 19,
    OPTION_LOGOUT_OTHERS = 1 << 20,
    OPTION_RATES = 1 << 21,
    OPTION_CHECK = 1 << 22, /* --repair, --recover, --pause, --resume */
    OPTION_ALL = 1 << 23,
};

/* Fills *ctl from the command line; options and arguments may be mixed, "--" ends the options. False
 * if it is wrong usage, which has been said. ctl->verb stays NULL if --help or --version need none.
 * The caller frees ctl->arguments. */
bool options_parse(struct ctl *ctl, int argc, char **argv);

/* Describes the options of that mask, one a line. */
void options_print(FILE *to, unsigned mask);

#endif
