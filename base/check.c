/* The end of a process whose own state is not what its code says it must be. */
#include "base/check.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

void check_failed(const char *file, int line, const char *expression)
{
    /* Plain stdio: log.c itself may be what failed. */
    fprintf(stderr, "%s: %s:%d: does not hold: %s\n", log_program(), file, line, expression);
    abort();
}
