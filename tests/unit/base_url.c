/* The address of a swarm and HOST:PORT. */
#include "base/swarm_url.h"

#include <stdio.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define CA "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

static struct swarm_url url;
static const char *fault;

static void an_address_goes_there_and_back(void **state)
{
    static const char *const texts[] = {
        "p2p://swarm.example.org:7700/?ca=" CA,
        "p2p://127.0.0.1:1/?ca=" CA "&invite=AZaz09-_",
        "p2p://[::1]:65535/?ca=" CA,
        "p2p://[2001:db8::5]:7700/?ca=" CA "&invite=x",
    };
    char text[SWARM_URL_MAX];

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        assert_true(swarm_url_parse(&url, texts[i], &fault));
        assert_null(fault);
        swarm_url_format(text, &url, true);
        assert_string_equal(text, texts[i]);
    }
}

static void the_parts_of_an_address_are_told_apart(void **state)
{
    assert_true(swarm_url_parse(&url, "p2p://[::1]:99/?invite=Code&ca=" CA, &fault));
    assert_string_equal(url.host, "::1");
    assert_int_equal(url.port, 99);
    assert_string_equal(url.invite, "Code");
    assert_int_equal(url.ca[0], 0);
    assert_int_equal(url.ca[1], 0x11);
    assert_int_equal(url.ca[31], 0xff);
}

static void the_invite_can_be_left_out_of_the_text(void **state)
{
    char text[SWARM_URL_MAX];

    assert_true(swarm_url_parse(&url, "p2p://h:7700/?ca=" CA "&invite=secret", &fault));
    swarm_url_format(text, &url, false);
    assert_string_equal(text, "p2p://h:7700/?ca=" CA);
}

static void port_and_slash_may_be_left_out(void **state)
{
    assert_true(swarm_url_parse(&url, "P2P://h?ca=" CA, &fault));
    assert_int_equal(url.port, SWARM_PORT);
    assert_string_equal(url.invite, "");
}

static void a_malformed_address_is_refused_with_a_reason(void **state)
{
    static const char *const bad[] = {
        "",
        "p2p://",
        "http://h:1/?ca=" CA,
        "h:1/?ca=" CA,
        "p2p:///?ca=" CA,
        "p2p://:7700/?ca=" CA,
        "p2p://h:0/?ca=" CA,
        "p2p://h:65536/?ca=" CA,
        "p2p://h:/?ca=" CA,
        "p2p://h:+1/?ca=" CA,
        "p2p://h:1x/?ca=" CA,
        "p2p://h:000001/?ca=" CA,
        "p2p://u@h:1/?ca=" CA,
        "p2p://h h:1/?ca=" CA,
        "p2p://::1:7700/?ca=" CA,
        "p2p://[::1:7700/?ca=" CA,
        "p2p://[]:7700/?ca=" CA,
        "p2p://[h]:7700/?ca=" CA,
        "p2p://[::1]7700/?ca=" CA,
        "p2p://h:1",
        "p2p://h:1/",
        "p2p://h:1/?",
        "p2p://h:1/?ca=",
        "p2p://h:1/?ca=0" CA,
        "p2p://h:1/?ca=0g112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        "p2p://h:1/?ca=00112233445566778899aabbccddeeff00112233445566778899aabbccddee",
        "p2p://h:1/?ca=" CA " ",
        "p2p://h:1/?ca=" CA "\n",
        "p2p://h:1/?ca=" CA "&",
        "p2p://h:1/?ca=" CA "&invite=",
        "p2p://h:1/?ca=" CA "&invite=a.b",
        "p2p://h:1/?ca=" CA "&invite=a b",
        "p2p://h:1/?ca=" CA "&invite=a&invite=b",
        "p2p://h:1/?ca=" CA "&ca=" CA,
        "p2p://h:1/?ca=" CA "&more=1",
        "p2p://h:1/?ca=" CA "#x",
        "p2p://h:1/path?ca=" CA,
        "p2p://h:1/?invite=abc",
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        fault = NULL;
        if (swarm_url_parse(&url, bad[i], &fault))
            fail_msg("accepted: %s", bad[i]);
        assert_non_null(fault);
        assert_true(strlen(fault) > 5);
    }
}

static void lengths_are_bounded(void **state)
{
    char text[2048], back[SWARM_URL_MAX], host[SWARM_HOST_MAX + 2], invite[SWARM_INVITE_MAX + 2];

    memset(host, 'h', sizeof(host));
    memset(invite, 'i', sizeof(invite));
    host[SWARM_HOST_MAX] = invite[SWARM_INVITE_MAX] = '\0';
    snprintf(text, sizeof(text), "p2p://%s:65535/?ca=" CA "&invite=%s", host, invite);
    assert_true(swarm_url_parse(&url, text, &fault));
    swarm_url_format(back, &url, true);
    assert_string_equal(back, text);

    host[SWARM_HOST_MAX] = 'h';
    host[SWARM_HOST_MAX + 1] = '\0';
    snprintf(text, sizeof(text), "p2p://%s:65535/?ca=" CA, host);
    assert_false(swarm_url_parse(&url, text, &fault));

    invite[SWARM_INVITE_MAX] = 'i';
    invite[SWARM_INVITE_MAX + 1] = '\0';
    snprintf(text, sizeof(text), "p2p://h:1/?ca=" CA "&invite=%s", invite);
    assert_false(swarm_url_parse(&url, text, &fault));

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    memcpy(text, "p2p://[", 7);
    assert_false(swarm_url_parse(&url, text, &fault));
}

static void host_and_port_are_split(void **state)
{
    static const struct {
        const char *text, *host;
        uint16_t port;
    } good[] = {{"h:1", "h", 1},          {"h", "h", 7},   {"[::1]:5", "::1", 5},
                {"[::]", "::", 7},        {":80", "", 80}, {"0.0.0.0:0", "0.0.0.0", 0},
                {"a_b-c.d", "a_b-c.d", 7}};
    static const char *const bad[] = {"",     ":",      "h:",     "a:b",   "a:1:2",
                                      "::1",  "[::1",   "[]",     "[a]:1", "h:70000",
                                      "h/:1", "[::1]x", "[::1]:", "h:-1",  "[::1%lo]:1"};
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(host_port_parse(good[i].text, 7, host, &port));
        assert_string_equal(host, good[i].host);
        assert_int_equal(port, good[i].port);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (host_port_parse(bad[i], 7, host, &port))
            fail_msg("accepted: %s", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_address_goes_there_and_back),
        cmocka_unit_test(the_parts_of_an_address_are_told_apart),
        cmocka_unit_test(the_invite_can_be_left_out_of_the_text),
        cmocka_unit_test(port_and_slash_may_be_left_out),
        cmocka_unit_test(a_malformed_address_is_refused_with_a_reason),
        cmocka_unit_test(lengths_are_bounded),
        cmocka_unit_test(host_and_port_are_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
