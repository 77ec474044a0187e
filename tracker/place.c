/* The tracker's address as members see it: two small files, and a look at this machine's interfaces. */
#include "tracker/place.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "tracker/authority.h"

#define PLACE_MAX          512
#define FIRST_START_PAUSES 600 /* 30 s: keys are made within seconds on the slowest machine */

static bool write_place(const char *dir, const char *name, const char *text, char **fault)
{
    char *path = xasprintf("%s/%s", dir, name);
    char *line = xasprintf("%s\n", text);
    int error = file_replace(path, line, strlen(line), 0600);
    if (error < 0)
        *fault = xasprintf("cannot write %s: %s", path, strerror(-error));
    free(line);
    free(path);
    return error >= 0;
}

/* malloc'ed, without the line's end; NULL if there is no such file. */
static char *read_place(const char *dir, const char *name)
{
    char *path = xasprintf("%s/%s", dir, name);
    char *text = NULL;
    size_t size;
    if (file_read(path, PLACE_MAX, false, &text, &size) < 0)
        text = NULL;
    else
        text[strcspn(text, "\n")] = '\0';
    free(path);
    return text;
}

bool place_set_public(const char *dir, const char *text, char **fault)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    if (!host_port_parse(text, SWARM_PORT, host, &port) || host[0] == '\0' || port == 0) {
        *fault = xasprintf("--public must be HOST:PORT, not %s", text);
        return false;
    }
    return write_place(dir, "public", text, fault);
}

bool place_set_listening(const char *dir, const char *address, char **fault)
{
    return write_place(dir, "listening", address, fault);
}

static bool is_global(const struct ifaddrs *at, int family)
{
    if (at->ifa_addr == NULL || at->ifa_addr->sa_family != family || !(at->ifa_flags & IFF_UP) ||
        (at->ifa_flags & IFF_LOOPBACK))
        return false;
    if (family == AF_INET)
        return true;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)at->ifa_addr;
    return !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr);
}

/* What others can reach this machine by, as far as it can tell itself. */
static void own_host(char host[SWARM_HOST_MAX + 1])
{
    static const int families[] = {AF_INET, AF_INET6};
    struct ifaddrs *all = NULL;
    host[0] = '\0';
    if (getifaddrs(&all) == 0) {
        for (int f = 0; f < 2 && host[0] == '\0'; f++)
            for (struct ifaddrs *at = all; at != NULL && host[0] == '\0'; at = at->ifa_next)
                if (is_global(at, families[f]))
                    getnameinfo(at->ifa_addr,
                                families[f] == AF_INET ? sizeof(struct sockaddr_in)
                                                       : sizeof(struct sockaddr_in6),
                                host, SWARM_HOST_MAX, NULL, 0, NI_NUMERICHOST);
        freeifaddrs(all);
    }
    if (host[0] == '\0')
        snprintf(host, SWARM_HOST_MAX + 1, "localhost");
}

static bool is_wildcard(const char *host)
{
    return host[0] == '\0' || strcmp(host, "::") == 0 || strcmp(host, "0.0.0.0") == 0;
}

/* Has a server this directory? */
static bool is_taken(const char *dir)
{
    char *path = xasprintf("%s/tracker.lock", dir);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool taken = fd >= 0 && fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
    if (fd >= 0)
        close(fd);
    free(path);
    return taken;
}

/* The first start makes keys before it listens: who asks meanwhile waits for that. */
static void await_first_start(const char *dir)
{
    const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
    char *path = xasprintf("%s/listening", dir);
    for (int i = 0; i < FIRST_START_PAUSES && access(path, F_OK) != 0 && is_taken(dir); i++)
        (void)nanosleep(&pause, NULL);
    free(path);
}

bool place_url(const char *dir, struct swarm_url *out, char **fault)
{
    *out = (struct swarm_url){0};
    await_first_start(dir);
    if (!authority_fingerprint(dir, out->ca, fault))
        return false;
    char *text = read_place(dir, "public");
    if (text == NULL)
        text = read_place(dir, "listening");
    if (text == NULL || !host_port_parse(text, SWARM_PORT, out->host, &out->port)) {
        free(text);
        *fault = xasprintf(
            "%s does not say where the tracker listens; start `p2ptracker serve --data %s` "
            "once, or say --public HOST:PORT",
            dir, dir);
        return false;
    }
    free(text);
    if (is_wildcard(out->host))
        own_host(out->host);
    return true;
}
