/* One line that says how far a fetch is. Pure: no clock, no terminal. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include <stddef.h>

#include "proto/local.pb-c.h"

/* With `width`: a bar, cut to that many columns. 0: a plain line for a log. malloc'ed. */
char *progress_line(const Local__Progress *, size_t width);

/* Whole percent, 100 only if all is here. */
unsigned progress_percent(uint64_t have, uint64_t size);

#endif
