/* Requests that others have packed: sent as they are, answered as they come. What they mean is local_access.c's.
 *
 * Owns those that wait for the connection, or for their answer. Thread: "tracker"; session_ask posts mail. */
#include "daemon/session_internal.h"

#include <errno.h>
#include <utlist.h>

#include "base/mem.h"
#include "daemon/local.h"
#include "proto/limits.h"

struct ask {
    struct mail mail;
    struct ask *prev, *next;
    struct session *session;
    struct session_ask is;
    bool sent;
};

void session_answer_free(struct session_answer *answer)
{
    if (answer == NULL)
        return;
    if (answer->message != NULL)
        protobuf_c_message_free_unpacked(answer->message, NULL);
    free(answer->text);
    free(answer);
}

static void finish(struct ask *ask, int error, const char *text, ProtobufCMessage *message)
{
    struct session_answer *answer = xcalloc(1, sizeof *answer);

    answer->error = error;
    answer->text = text == NULL ? NULL : xstrdup(text);
    answer->message = message;
    answer->cookie = ask->is.cookie;
    DL_DELETE(ask->session->asks, ask);
    local_asked(ask->session->daemon->local, answer);
    free(ask->is.packed);
    free(ask);
}

static int error_of(const Tracker__Fault *fault)
{
    switch (fault->code) {
    case TRACKER__FAULT_CODE__FAULT_NOT_FOUND:
        return ENOENT;
    case TRACKER__FAULT_CODE__FAULT_EXISTS:
        return EEXIST;
    case TRACKER__FAULT_CODE__FAULT_LIMIT:
        return ENOSPC;
    case TRACKER__FAULT_CODE__FAULT_MALFORMED:
    case TRACKER__FAULT_CODE__FAULT_BAD_NAME:
        return EINVAL;
    case TRACKER__FAULT_CODE__FAULT_INTERNAL:
        return EIO;
    case TRACKER__FAULT_CODE__FAULT_BUSY:
        return EAGAIN;
    default:
        return EACCES;
    }
}

static void answered(void *arg, const struct tracker_answer *answer)
{
    struct ask *ask = arg;
    ProtobufCMessage *message = NULL;

    if (answer->lost != NULL) {
        finish(ask, ENOTCONN, answer->lost, NULL);
    } else if (answer->fault != NULL) {
        finish(ask, error_of(answer->fault), answer->fault->text, NULL);
    } else {
        if (answer->type == ask->is.answer_type)
            message =
                protobuf_c_message_unpack(ask->is.answer, NULL, answer->size, answer->message);
        finish(ask, message == NULL ? EPROTO : 0,
               message == NULL ? "the tracker sent an unexpected answer" : NULL, message);
    }
}

static void send_ask(struct ask *ask)
{
    ProtobufCMessage *message =
        protobuf_c_message_unpack(ask->is.descriptor, NULL, ask->is.size, ask->is.packed);

    ask->sent = true;
    if (message == NULL) {
        finish(ask, EINVAL, "a malformed request", NULL);
        return;
    }
    tracker_link_request(ask->session->link, ask->is.type, message, answered, ask);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void deliver_ask(struct mail *raw, void *owner)
{
    struct session *s = owner;
    struct ask *ask = (struct ask *)(void *)raw, *other;
    unsigned count;

    ask->session = s;
    DL_COUNT(s->asks, other, count);
    DL_APPEND(s->asks, ask);
    if (s->stopping)
        finish(ask, ECANCELED, "p2pd is stopping", NULL);
    else if (s->credentials == NULL)
        finish(ask, EACCES, "not logged in", NULL);
    else if (count >= LIMIT_LOCAL_ASKS)
        finish(ask, EAGAIN, "too much is asked at once", NULL);
    else if (tracker_link_is_up(s->link))
        send_ask(ask);
    else if (s->link == NULL)
        finish(ask, ENOTCONN, "the tracker is away", NULL);
}

void session_ask(struct session *s, const struct session_ask *is)
{
    struct ask *ask = xcalloc(1, sizeof *ask);

    ask->mail.deliver = deliver_ask;
    ask->is = *is;
    loop_post(s->loop, &ask->mail);
}

void session_ask_link_up(struct session *s)
{
    struct ask *ask, *next;

    DL_FOREACH_SAFE(s->asks, ask, next) {
        if (!ask->sent)
            send_ask(ask);
    }
}

void session_ask_link_down(struct session *s)
{
    struct ask *ask, *next;

    DL_FOREACH_SAFE(s->asks, ask, next) {
        if (!ask->sent)
            finish(ask, ENOTCONN, "the tracker is away", NULL);
    }
}
