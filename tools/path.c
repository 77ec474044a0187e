/* PATH: a path inside the swarm, or a file under a mount of p2pfs.
 *
 * What lies under a mount is told by the mount itself, through the extended attribute user.p2p.path;
 * only on FUSE file systems, as a copy elsewhere may have kept the attribute. What isn't under a mount
 * and begins with "/" is taken as a path inside the swarm. Owns nothing. */
#include "tools/path.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "base/mem.h"
#include "proto/limits.h"

#define ATTRIBUTE "user.p2p.path"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

char *path_tidy(const char *path)
{
    char *out = xmalloc(strlen(path) + 2), *to = out;

    while (*path != '\0') {
        size_t length;

        path += strspn(path, "/");
        length = strcspn(path, "/");
        if (length == 2 && memcmp(path, "..", 2) == 0) {
            while (to > out && *--to != '/')
                ;
        } else if (length > 0 && !(length == 1 && *path == '.')) {
            *to++ = '/';
            memcpy(to, path, length);
            to += length;
        }
        path += length;
    }
    if (to == out)
        *to++ = '/';
    *to = '\0';
    return out;
}

/* The swarm's path of an existing file on a mount: malloc'ed, or NULL with errno; ENODATA if it is on
 * something else. */
static char *ask_mount(const char *file)
{
    struct statfs fs;
    char *text;

    if (statfs(file, &fs) != 0)
        return NULL;
    if (fs.f_type != FUSE_SUPER_MAGIC) {
        errno = ENODATA;
        return NULL;
    }
    text = xmalloc(LIMIT_PATH + 2);
    ssize_t size = getxattr(file, ATTRIBUTE, text, LIMIT_PATH);
    if (size < 0) {
        int error = errno == ENOTSUP ? ENODATA : errno;
        free(text);
        errno = error;
        return NULL;
    }
    text[size] = '\0';
    char *path = path_tidy(text);
    free(text);
    return path;
}

/* True if the nearest directory above `file` that exists is on a mount. */
static bool would_be_on_mount(const char *file)
{
    char *path = xstrdup(file), *slash;
    bool found = false, exists = false;

    while (!exists) {
        size_t length = strlen(path);
        while (length > 1 && path[length - 1] == '/')
            path[--length] = '\0';
        slash = strrchr(path, '/');
        if (slash == NULL) {
            free(path);
            path = xstrdup(".");
            exists = true;
        } else {
            slash[slash == path ? 1 : 0] = '\0';
            exists = slash == path;
        }
        char *swarm_path = ask_mount(path);
        found = swarm_path != NULL;
        exists = exists || found || (errno != ENOENT && errno != ENOTDIR);
        free(swarm_path);
    }
    free(path);
    return found;
}

char *path_resolve(const char *argument, char **why)
{
    char *path;
    int error;

    if (*argument == '\0') {
        *why = xstrdup("an empty path");
        return NULL;
    }
    path = ask_mount(argument);
    if (path != NULL)
        return path;
    error = errno;
    if (error == ENOENT || error == ENOTDIR) {
        if (would_be_on_mount(argument)) {
            *why = xasprintf("%s: no such file", argument);
            return NULL;
        }
    } else if (error != ENODATA && error != EACCES && *argument != '/') {
        *why = xasprintf("%s: %s", argument, strerror(error));
        return NULL;
    }
    if (*argument == '/')
        return path_tidy(argument);
    *why =
        xasprintf("%s: %s, and not a path inside the swarm: those begin with /", argument,
                  error == ENOENT || error == ENOTDIR ? "no such file" : "not on a mount of p2pfs");
    return NULL;
}
