/* Where everything of one member is: P2P_HOME and the paths in it.
 *
 * Paths are made absolute and tidy ("//", "/./" and a trailing "/" go) as text only, without asking
 * the file system, so that every program gets the same path and so the same socket. */
#include "base/home.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_NAME "p2pd.sock"
/* A socket's path ends in a NUL within its 108 bytes. */
#define SOCKET_PATH_MAX (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)

/* Removes empty and "." parts from an absolute path, in place. ".." stays: behind a symbolic link
 * it does not mean what it looks like. */
static void tidy(char *path)
{
    char *to = path;

    for (const char *from = path; *from != '\0';) {
        size_t length;

        from += strspn(from, "/");
        length = strcspn(from, "/");
        if (length > 0 && !(length == 1 && *from == '.')) {
            *to++ = '/';
            memmove(to, from, length);
            to += length;
        }
        from += length;
    }
    if (to == path)
        *to++ = '/';
    *to = '\0';
}

static char *absolute(const char *path)
{
    char *result, *here;

    if (*path == '/') {
        result = xstrdup(path);
    } else {
        here = getcwd(NULL, 0);
        if (here == NULL)
            return NULL;
        result = xasprintf("%s/%s", here, path);
        free(here);
    }
    tidy(result);
    return result;
}

/* The variable's value, or NULL if it is not set or empty. */
static const char *environment(const char *name)
{
    const char *value = getenv(name);

    return value != NULL && *value != '\0' ? value : NULL;
}

char *home_find(const char *option)
{
    const char *base;
    char *path, *result;

    if (option != NULL)
        return *option != '\0' ? absolute(option) : NULL;
    base = environment("P2P_HOME");
    if (base != NULL)
        return absolute(base);
    base = environment("XDG_DATA_HOME");
    if (base != NULL && *base == '/') { /* a relative one is void, says its specification */
        path = xasprintf("%s/p2pfs", base);
    } else {
        base = environment("HOME");
        if (base == NULL)
            return NULL;
        path = xasprintf("%s/.local/share/p2pfs", base);
    }
    result = absolute(path);
    free(path);
    return result;
}

char *home_path(const char *home, const char *name)
{
    return xasprintf("%s/%s", home, name);
}

static uint64_t fnv1a(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (; *text != '\0'; text++) {
        hash ^= (unsigned char)*text;
        hash *= UINT64_C(0x100000001b3);
    }
    return hash;
}

char *home_socket(const char *home)
{
    const char *runtime = environment("XDG_RUNTIME_DIR");
    char *path = home_path(home, SOCKET_NAME), *directory;
    uint64_t hash = fnv1a(home);
    int result;

    if (strlen(path) <= SOCKET_PATH_MAX)
        return path;
    free(path);
    if (runtime != NULL && *runtime == '/') {
        path = xasprintf("%s/p2pfs-%016" PRIx64 ".sock", runtime, hash);
        if (strlen(path) <= SOCKET_PATH_MAX)
            return path;
        free(path);
    }
    directory = xasprintf("/tmp/p2pfs-%u", (unsigned)geteuid());
    result = file_private_dir(directory);
    if (result < 0)
        log_error("%s cannot hold the local socket: %s", directory, strerror(-result));
    path = xasprintf("%s/%016" PRIx64 ".sock", directory, hash);
    free(directory);
    return path;
}
