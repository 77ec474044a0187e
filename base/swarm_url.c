/* The address of a swarm as text: p2p://HOST:PORT/?ca=SHA256HEX[&invite=CODE]
 *
 * People paste it from mails and chats, so every fault has its own words. Nothing is looked up
 * here. A port may be left out (7700) and so may the slash; what is written is always the whole
 * form. */
#include "base/swarm_url.h"

#include "base/hex.h"
#include "base/number.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define SCHEME "p2p://"

static bool is_host_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_';
}

static bool is_invite_character(char c)
{
    return is_host_character(c) && c != '.';
}

/* A port is plain digits of which "65535" has the most; 0 asks for any free one. */
static bool port_parse(const char *text, uint16_t *port)
{
    uint64_t value;

    if (strlen(text) > 5 || !number_parse(text, 0, UINT16_MAX, &value))
        return false;
    *port = (uint16_t)value;
    return true;
}

/* "[V6]" and what follows the bracket. */
static const char *bracket_parse(const char *text, char host[SWARM_HOST_MAX + 1])
{
    const char *end = strchr(text, ']');
    struct in6_addr address;
    size_t length;

    if (end == NULL)
        return NULL;
    length = (size_t)(end - text) - 1;
    if (length > SWARM_HOST_MAX)
        return NULL;
    memcpy(host, text + 1, length);
    host[length] = '\0';
    return inet_pton(AF_INET6, host, &address) == 1 ? end + 1 : NULL;
}

bool host_port_parse(const char *text, uint16_t default_port, char host[SWARM_HOST_MAX + 1],
                     uint16_t *port)
{
    if (*text == '[') {
        text = bracket_parse(text, host);
        if (text == NULL)
            return false;
    } else {
        size_t length = strcspn(text, ":");

        if (length > SWARM_HOST_MAX || (length == 0 && *text == '\0'))
            return false;
        for (size_t i = 0; i < length; i++) {
            if (!is_host_character(text[i]))
                return false;
        }
        memcpy(host, text, length);
        host[length] = '\0';
        text += length;
    }
    *port = default_port;
    return *text == '\0' || (*text == ':' && port_parse(text + 1, port));
}

/* "HOST[:PORT]" of `length` bytes. */
static const char *authority_parse(struct swarm_url *out, const char *text, size_t length)
{
    char copy[SWARM_HOST_MAX + 16];

    if (length >= sizeof(copy))
        return "names too long a host";
    memcpy(copy, text, length);
    copy[length] = '\0';
    if (!host_port_parse(copy, SWARM_PORT, out->host, &out->port) || out->port == 0)
        return "has a malformed HOST:PORT";
    if (out->host[0] == '\0')
        return "names no host";
    return NULL;
}

static const char *ca_parse(struct swarm_url *out, const char *value, size_t length)
{
    char copy[2 * sizeof(out->ca) + 1];

    if (length != sizeof(copy) - 1)
        return "has a ca that is not 64 hexadecimal digits";
    memcpy(copy, value, length);
    copy[length] = '\0';
    return hex_decode(out->ca, sizeof(out->ca), copy)
               ? NULL
               : "has a ca that is not 64 hexadecimal digits";
}

static const char *invite_parse(struct swarm_url *out, const char *value, size_t length)
{
    if (length == 0 || length > SWARM_INVITE_MAX)
        return "has an invite of the wrong length";
    for (size_t i = 0; i < length; i++) {
        if (!is_invite_character(value[i]))
            return "has an invite with characters other than A-Z a-z 0-9 - _";
    }
    memcpy(out->invite, value, length);
    out->invite[length] = '\0';
    return NULL;
}

/* "ca=…&invite=…" in either order, each at most once, nothing else. */
static const char *query_parse(struct swarm_url *out, const char *text)
{
    bool have_ca = false;

    out->invite[0] = '\0';
    for (;;) {
        size_t length = strcspn(text, "&");
        const char *fault;

        if (strncmp(text, "ca=", 3) == 0 && !have_ca) {
            fault = ca_parse(out, text + 3, length - 3);
            have_ca = true;
        } else if (strncmp(text, "invite=", 7) == 0 && out->invite[0] == '\0') {
            fault = invite_parse(out, text + 7, length - 7);
        } else {
            fault = "has a part that is neither ca= nor invite=, or one of them twice";
        }
        if (fault != NULL)
            return fault;
        if (text[length] == '\0')
            return have_ca ? NULL : "lacks the tracker's fingerprint (ca=...)";
        text += length + 1;
    }
}

bool swarm_url_parse(struct swarm_url *out, const char *text, const char **fault)
{
    size_t length;

    *fault = NULL;
    if (strlen(text) >= SWARM_URL_MAX) {
        *fault = "is too long";
        return false;
    }
    if (strncasecmp(text, SCHEME, strlen(SCHEME)) != 0) {
        *fault = "does not begin with " SCHEME;
        return false;
    }
    text += strlen(SCHEME);
    length = strcspn(text, "/?");
    *fault = authority_parse(out, text, length);
    if (*fault != NULL)
        return false;
    text += length;
    if (*text == '/')
        text++;
    if (*text == '?')
        *fault = query_parse(out, text + 1);
    else if (*text == '\0')
        *fault = "lacks the tracker's fingerprint (?ca=...)";
    else
        *fault = "has a path behind the host";
    return *fault == NULL;
}

void swarm_url_format(char *out, const struct swarm_url *url, bool with_invite)
{
    bool bracket = strchr(url->host, ':') != NULL;
    bool invite = with_invite && url->invite[0] != '\0';
    char ca[2 * sizeof(url->ca) + 1];

    hex_encode(ca, url->ca, sizeof(url->ca));
    snprintf(out, SWARM_URL_MAX, SCHEME "%s%s%s:%u/?ca=%s%s%s", bracket ? "[" : "", url->host,
             bracket ? "]" : "", url->port, ca, invite ? "&invite=" : "",
             invite ? url->invite : "");
}
