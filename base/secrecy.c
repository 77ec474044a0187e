/* Limits of the process that keep secrets in it. No state. */
#include "base/secrecy.h"

#include <sys/prctl.h>
#include <sys/resource.h>

void secrecy_begin(void)
{
    const struct rlimit none = {0, 0};

    (void)setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    /* Also holds where core files go to a program by a pipe, which RLIMIT_CORE does not stop. */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}
