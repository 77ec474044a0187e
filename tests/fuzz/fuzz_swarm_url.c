/* swarm_url_parse and host_port_parse: whatever is typed. What is accepted must format to a text
 * that parses to the same. */
#include "base/check.h"
#include "base/swarm_url.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void same(const struct swarm_url *a, const struct swarm_url *b)
{
    CHECK(strcmp(a->host, b->host) == 0 && a->port == b->port);
    CHECK(memcmp(a->ca, b->ca, sizeof a->ca) == 0 && strcmp(a->invite, b->invite) == 0);
}

static void one_url(const char *text)
{
    struct swarm_url url, again;
    const char *fault = NULL;
    char canonical[SWARM_URL_MAX];
    if (!swarm_url_parse(&url, text, &fault)) {
        CHECK(fault != NULL);
        return;
    }
    CHECK(strlen(url.host) <= SWARM_HOST_MAX && strlen(url.invite) <= SWARM_INVITE_MAX);
    swarm_url_format(canonical, &url, true);
    CHECK(swarm_url_parse(&again, canonical, &fault));
    same(&url, &again);
    swarm_url_format(canonical, &url, false);
    CHECK(swarm_url_parse(&again, canonical, &fault));
    CHECK(again.invite[0] == '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    char *text = malloc(size + 1);
    CHECK(text != NULL);
    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    one_url(text);
    if (host_port_parse(text, SWARM_PORT, host, &port))
        CHECK(strnlen(host, sizeof host) <= SWARM_HOST_MAX);
    free(text);
    return 0;
}
