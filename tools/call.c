/* Calls: a message of the tracker's protocol in an envelope of the local one.
 *
 * Owns the packed copy of the message, which may hold a password or a code and is wiped as soon as it was sent. */
#include "tools/call.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/client.h"
#include "tools/ctl.h"

ProtobufCMessage *call_tracker(struct client *client, const struct ctl *ctl,
                               const struct call *call)
{
    Local__TrackerCall message = LOCAL__TRACKER_CALL__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_TRACKER_CALL,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_TRACKER_ANSWER,
        .answer = &local__tracker_answer__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    size_t size = protobuf_c_message_get_packed_size(call->message);
    uint8_t *packed = xmalloc(size + 1);
    char *url = xstrdup(ctl->url != NULL ? ctl->url : "");
    ProtobufCMessage *result = NULL;

    protobuf_c_message_pack(call->message, packed);
    message.url = url;
    message.type = call->type;
    message.message.data = packed;
    message.message.len = size;
    const Local__TrackerAnswer *answer = ctl_ask(client, &request);
    explicit_bzero(packed, size);
    free(packed);
    free(url);
    if (answer == NULL)
        return NULL;
    if (answer->type == call->answer_type)
        result = protobuf_c_message_unpack(call->answer, NULL, answer->message.len,
                                           answer->message.data);
    if (result == NULL)
        log_error("the tracker sent an unexpected answer");
    return result;
}

void call_free(ProtobufCMessage *message)
{
    if (message != NULL)
        protobuf_c_message_free_unpacked(message, NULL);
}

bool call_done(struct client *client, const struct ctl *ctl, unsigned type,
               const ProtobufCMessage *message)
{
    const struct call call = {
        .type = type,
        .message = message,
        .answer_type = TRACKER__TRACKER_TYPE__TRACKER_DONE,
        .answer = &tracker__done__descriptor,
    };
    ProtobufCMessage *answer = call_tracker(client, ctl, &call);

    call_free(answer);
    return answer != NULL;
}
