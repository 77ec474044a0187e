/* Calls: requests about accounts that p2pctl makes and p2pd hands on to the tracker.
 *
 * Owns the table of requests that are handed on, and HOME/swarm, the address of the swarm that was logged in to last.
 * Leaves the flow and its connections to session_account.c. A call is unpacked and packed again on its way, so that
 * nothing reaches the tracker that is not a message of its kind; what was unpacked is wiped, as it may hold passwords
 * and codes. The answer is handed back as it came. Thread: "tracker".
 *
 * A call that needs no certificate takes the kept connection if it is up, else a temporary one to the address given,
 * or to the remembered one. */
#include <errno.h>
#include <malloc.h>
#include <string.h>

#include "base/check.h"
#include "base/file.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "daemon/session_internal.h"

static const struct call {
    Tracker__TrackerType type;
    const ProtobufCMessageDescriptor *descriptor;
    bool strangers; /* needs no certificate */
} calls[] = {
    {TRACKER__TRACKER_TYPE__TRACKER_WHOAMI, &tracker__whoami__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_USERS, &tracker__users__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_USER_CHANGE, &tracker__user_change__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_TRANSFER, &tracker__transfer__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_DEVICE_REMOVE, &tracker__device_remove__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_EMAIL, &tracker__email__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_VERIFY, &tracker__verify__descriptor, true},
    {TRACKER__TRACKER_TYPE__TRACKER_RESET, &tracker__reset__descriptor, true},
    {TRACKER__TRACKER_TYPE__TRACKER_RESET_SET, &tracker__reset_set__descriptor, true},
    {TRACKER__TRACKER_TYPE__TRACKER_TOTP, &tracker__totp__descriptor, false},
    {TRACKER__TRACKER_TYPE__TRACKER_AUDIT, &tracker__audit__descriptor, false},
};

static const struct call *call_find(unsigned type)
{
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (calls[i].type == type)
            return &calls[i];
    return NULL;
}

bool session_call_is_strangers(unsigned type)
{
    const struct call *call = call_find(type);

    return call != NULL && call->strangers;
}

/* --- which swarm ------------------------------------------------------------------------------- */

void session_call_remember(struct session *s, const struct swarm_url *url)
{
    char text[SWARM_URL_MAX], *path = home_path(s->daemon->home, "swarm");

    swarm_url_format(text, url, false);
    int error = file_replace(path, text, strlen(text), 0600);
    if (error != 0)
        log_warning("%s: %s", path, strerror(-error));
    free(path);
}

/* The address in HOME/swarm, malloc'ed, or NULL. */
static char *remembered(struct session *s)
{
    char *path = home_path(s->daemon->home, "swarm"), *text = NULL;
    size_t size;

    if (file_read(path, SWARM_URL_MAX, true, &text, &size) != 0)
        text = NULL;
    free(path);
    return text;
}

void session_call_dial(struct account_flow *flow)
{
    struct account_request *request = flow->request;
    const char *fault = NULL;

    if (request->url[0] == '\0' && flow->session->credentials != NULL) {
        flow->url = flow->session->credentials->url;
        account_flow_dial(flow);
        return;
    }
    if (request->url[0] == '\0') {
        char *known = remembered(flow->session);
        if (known != NULL) {
            free(request->url);
            request->url = known;
        }
    }
    if (request->url[0] == '\0') {
        account_flow_finish(flow, EDESTADDRREQ,
                            "nobody has logged in here yet: say which swarm with --url", NULL);
    } else if (!swarm_url_parse(&flow->url, request->url, &fault)) {
        char *text = xasprintf("the swarm's address is not good: %s", fault);
        account_flow_finish(flow, EINVAL, text, NULL);
        free(text);
    } else {
        account_flow_dial(flow);
    }
}

/* --- the call ---------------------------------------------------------------------------------- */

static void *plain_alloc(void *unused, size_t size)
{
    (void)unused;
    return malloc(size);
}

static void wiping_free(void *unused, void *memory)
{
    (void)unused;
    if (memory != NULL)
        secret_wipe(memory, malloc_usable_size(memory));
    free(memory);
}

static void answered(void *arg, const struct tracker_answer *answer)
{
    struct account_flow *flow = arg;
    char *text = NULL;

    if (answer->lost != NULL) {
        if (flow->link == NULL) /* else `down` follows, and ends the flow */
            account_flow_finish(flow, ENOTCONN, answer->lost, NULL);
    } else if (answer->fault != NULL) {
        int error = account_fault(answer->fault, &text);
        account_flow_finish(flow, error, text, NULL);
        free(text);
    } else {
        account_flow_finish_call(flow, answer);
    }
}

void session_call_send(struct account_flow *flow, struct tracker_link *link)
{
    ProtobufCAllocator wiping = {.alloc = plain_alloc, .free = wiping_free};
    struct account_request *request = flow->request;
    const struct call *call = call_find(request->call_type);
    ProtobufCMessage *message = call == NULL
                                    ? NULL
                                    : protobuf_c_message_unpack(call->descriptor, &wiping,
                                                                request->call_size, request->call);

    if (message == NULL) {
        account_flow_finish(flow, EINVAL, "the tracker takes no such request", NULL);
        return;
    }
    tracker_link_request(link, request->call_type, message, answered, flow);
    protobuf_c_message_free_unpacked(message, &wiping);
    secret_wipe(request->call, request->call_size);
}
