/* Where a connection comes from. Pure. */
#include "base/source.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

void source_key(const struct sockaddr_storage *from, uint8_t key[SOURCE_KEY_SIZE])
{
    memset(key, 0, SOURCE_KEY_SIZE);
    if (from->ss_family == AF_INET) {
        memcpy(key, mapped, sizeof mapped);
        memcpy(key + 12, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
    } else if (from->ss_family == AF_INET6) {
        memcpy(key, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, 16);
        if (memcmp(key, mapped, sizeof mapped) != 0)
            memset(key + 8, 0, 8);
    }
}

void source_text(const struct sockaddr_storage *from, char *out, size_t size)
{
    snprintf(out, size, "unknown");
    if (from->ss_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)from)->sin_addr, out,
                  (socklen_t)size);
    } else if (from->ss_family == AF_INET6) {
        const struct in6_addr *ip = &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(ip))
            inet_ntop(AF_INET, ip->s6_addr + 12, out, (socklen_t)size);
        else
            inet_ntop(AF_INET6, ip, out, (socklen_t)size);
    }
}
