/* Parsing and comparing network addresses. Pure. */
#include "tracker/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/number.h"

static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static bool is_v4(const uint8_t ip[16])
{
    return memcmp(ip, mapped, sizeof mapped) == 0;
}

static bool can_be_dialled(const uint8_t ip[16])
{
    static const uint8_t zero[16];
    if (is_v4(ip))
        return ip[12] != 0 && ip[12] < 224;
    return ip[0] != 0xff && memcmp(ip, zero, sizeof zero) != 0;
}

bool address_parse(struct address *out, const char *text)
{
    char host[LIMIT_ADDRESS + 1];
    uint64_t port;
    size_t length = strlen(text);
    if (length > LIMIT_ADDRESS)
        return false;
    bool brackets = text[0] == '[';
    const char *end = brackets ? strchr(text, ']') : strchr(text, ':');
    const char *colon = brackets && end != NULL ? end + 1 : end;
    if (end == NULL || *colon != ':' || !number_parse(colon + 1, 1, 65535, &port))
        return false;
    const char *start = text + brackets;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = '\0';
    if (brackets) {
        char *scope = strchr(host, '%');
        if (scope != NULL) {
            for (const char *c = scope + 1; *c != '\0'; c++)
                if (*c <= ' ' || *c > '~')
                    return false;
            *scope = '\0';
        }
        if (inet_pton(AF_INET6, host, out->ip) != 1)
            return false;
    } else {
        memcpy(out->ip, mapped, sizeof mapped);
        if (inet_pton(AF_INET, host, out->ip + 12) != 1)
            return false;
    }
    if (!can_be_dialled(out->ip))
        return false;
    memcpy(out->text, text, length + 1);
    return true;
}

unsigned address_nearness(const struct address *a, const struct address *b)
{
    if (is_v4(a->ip) != is_v4(b->ip))
        return 0;
    unsigned bits = 0;
    for (unsigned i = is_v4(a->ip) ? 12 : 0; i < 16; i++) {
        uint8_t differ = a->ip[i] ^ b->ip[i];
        if (differ != 0)
            return bits + (unsigned)__builtin_clz(differ) - 24;
        bits += 8;
    }
    return bits;
}

void source_key(const struct sockaddr_storage *from, uint8_t key[16])
{
    memset(key, 0, 16);
    if (from->ss_family == AF_INET) {
        memcpy(key, mapped, sizeof mapped);
        memcpy(key + 12, &((const struct sockaddr_in *)(const void *)from)->sin_addr, 4);
    } else if (from->ss_family == AF_INET6) {
        memcpy(key, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, 16);
        if (!is_v4(key))
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
