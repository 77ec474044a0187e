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

bool address_is_loopback(const struct address *a)
{
    static const uint8_t six[16] = {[15] = 1};

    return is_v4(a->ip) ? a->ip[12] == 127 : memcmp(a->ip, six, sizeof six) == 0;
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
