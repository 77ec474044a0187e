/* Limits of the process that keep secrets in it, and of the files that hold them. No state. */
#include "base/secrecy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

void secrecy_begin(void)
{
    const struct rlimit none = {0, 0};

    (void)setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    /* Also holds where core files go to a program by a pipe, which RLIMIT_CORE does not stop. */
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

static bool is_private(const char *path)
{
    int error = file_check_private(path);

    if (error == -EPERM)
        log_error("%s: others can read or write it, or it is not yours; if that did no harm: "
                  "chmod 600 %s",
                  path, path);
    else if (error != 0)
        log_error("%s: %s", path, strerror(-error));
    return error == 0;
}

bool secrecy_files(const char *directory, const char *const *names, size_t count)
{
    bool good = true;

    for (size_t i = 0; i < count && good; i++) {
        char *path = xasprintf("%s/%s", directory, names[i]);
        good = is_private(path);
        free(path);
    }
    return good;
}
