/* Passwords and the like: from a terminal without echo, or from a file that nobody else can read. Never
 * from the command line, but for what is made to be pasted, which is hidden there. */
#ifndef TOOLS_SECRET_H
#define TOOLS_SECRET_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/limits.h"

struct secret {
    char bytes[LIMIT_PASSWORD + 1]; /* with a NUL behind */
    size_t size;
};

struct secret_source {
    const char *file;   /* --password-file; "-" is standard input; may be NULL */
    const char *option; /* its name, for messages: "--password-file" */
    bool environment;   /* P2P_PASSWORD_FILE counts where `file` is NULL */
    const char *prompt; /* "Password for ann" */
    bool fresh;         /* a new one: asked twice, checked for its length */
};

/* False: the reason has been said, and *out is wiped. */
bool secret_get(struct secret *out, const struct secret_source *);

/* The first line of a file, for secret_get and tests. */
bool secret_read_file(struct secret *out, const char *path);

/* Takes an argument's end, from `from` on, out of what others see of this process's command line: the whole argument is in *out
 * afterwards. False, and nothing is changed: it is longer than a secret. */
bool secret_hide(struct secret *out, char *argument, size_t from);

void secret_clear(struct secret *);

#endif
