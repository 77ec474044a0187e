/* Everything that stands between a stream and an owner's code: frame_decode, the channel's input,
 * and the unpacking of every message of the peer, tracker and local protocols in its bounded arena.
 *
 * The first byte is how to go about it (see struct plan), the rest is what the other end sends.
 * What must hold: frames keep their bounds, a payload lies where the owner said and is the input's
 * own bytes, nothing follows the end, and the frames are the same as a plain reading of the input
 * gives. */
#include <event2/event.h>

#include "base/check.h"
#include "base/log.h"
#include "base/loop.h"
#include "proto/channel.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "proto/message.h"
#include "proto/peer.pb-c.h"
#include "proto/tracker.pb-c.h"
#include "tests/mock_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Every message there is. */
static const ProtobufCMessageDescriptor *const descriptors[] = {
    &peer__hello__descriptor,
    &peer__open__descriptor,
    &peer__opened__descriptor,
    &peer__close__descriptor,
    &peer__have__descriptor,
    &peer__request__descriptor,
    &peer__block__descriptor,
    &peer__cancel__descriptor,
    &peer__reject__descriptor,
    &peer__hash_request__descriptor,
    &peer__hashes__descriptor,
    &peer__choke__descriptor,
    &peer__unchoke__descriptor,
    &peer__ping__descriptor,
    &peer__pong__descriptor,
    &peer__goodbye__descriptor,
    &tracker__fault__descriptor,
    &tracker__done__descriptor,
    &tracker__hello__descriptor,
    &tracker__welcome__descriptor,
    &tracker__register__descriptor,
    &tracker__login__descriptor,
    &tracker__renew__descriptor,
    &tracker__credentials__descriptor,
    &tracker__logout__descriptor,
    &tracker__password__descriptor,
    &tracker__whoami__descriptor,
    &tracker__device__descriptor,
    &tracker__account__descriptor,
    &tracker__invite__descriptor,
    &tracker__invited__descriptor,
    &tracker__entry__descriptor,
    &tracker__subscribe__descriptor,
    &tracker__changes__descriptor,
    &tracker__op__descriptor,
    &tracker__ops__descriptor,
    &tracker__result__descriptor,
    &tracker__results__descriptor,
    &tracker__holding__descriptor,
    &tracker__announce__descriptor,
    &tracker__want__descriptor,
    &tracker__unwant__descriptor,
    &tracker__peer__descriptor,
    &tracker__peers__descriptor,
    &tracker__health_request__descriptor,
    &tracker__health__descriptor,
    &tracker__dial_back__descriptor,
    &tracker__revoked__descriptor,
    &tracker__ping__descriptor,
    &local__error__descriptor,
    &local__done__descriptor,
    &local__hello__descriptor,
    &local__welcome__descriptor,
    &local__goodbye__descriptor,
    &local__attr__descriptor,
    &local__node__descriptor,
    &local__lookup__descriptor,
    &local__readdir__descriptor,
    &local__listing__descriptor,
    &local__text__descriptor,
    &local__statfs__descriptor,
    &local__space__descriptor,
    &local__xattr__descriptor,
    &local__make__descriptor,
    &local__rename__descriptor,
    &local__setattr__descriptor,
    &local__invalid__descriptor,
    &local__invalidate__descriptor,
    &local__open__descriptor,
    &local__opened__descriptor,
    &local__write_begin__descriptor,
    &local__wrote__descriptor,
    &local__seal__descriptor,
    &local__want__descriptor,
    &local__unwant__descriptor,
    &local__reading__descriptor,
    &local__release__descriptor,
    &local__reattach__descriptor,
    &local__open_node__descriptor,
    &local__register__descriptor,
    &local__login__descriptor,
    &local__logout__descriptor,
    &local__whoami__descriptor,
    &local__device__descriptor,
    &local__account__descriptor,
    &local__password__descriptor,
    &local__invite__descriptor,
    &local__status_request__descriptor,
    &local__file_status__descriptor,
    &local__mount__descriptor,
    &local__status__descriptor,
    &local__paths__descriptor,
    &local__peer__descriptor,
    &local__peers__descriptor,
    &local__file_health__descriptor,
    &local__health__descriptor,
    &local__get__descriptor,
    &local__progress__descriptor,
    &local__ls__descriptor,
    &local__stop__descriptor,
};
#define DESCRIPTORS (sizeof descriptors / sizeof descriptors[0])

struct plan {
    size_t chunk; /* the stream hands out so much at a time */
    bool trust;   /* from the start */
    bool skip;    /* payloads are thrown away */
    bool pause;   /* after every other frame */
    bool answer;  /* every frame */
};

struct owner {
    struct plan plan;
    struct channel *channel;
    const uint8_t *in; /* what should come next, by a plain reading */
    const uint8_t *end;
    uint8_t *payload;
    unsigned frames;
    bool closed;
};

static struct plan plan_of(uint8_t byte)
{
    static const size_t chunks[] = {0, 1, 7, 300};
    return (struct plan){
        .chunk = chunks[byte & 3],
        .trust = (byte & 4) != 0,
        .skip = (byte & 8) != 0,
        .pause = (byte & 16) != 0,
        .answer = (byte & 32) != 0,
    };
}

static void unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *message,
                   size_t size)
{
    struct message_arena arena;
    const ProtobufCMessage *unpacked = message_unpack(&arena, descriptor, message, size);
    if (unpacked != NULL) {
        CHECK(unpacked->descriptor == descriptor);
        CHECK(protobuf_c_message_check(unpacked));
        CHECK(protobuf_c_message_get_packed_size(unpacked) <= LIMIT_FRAME_MESSAGE * (size_t)16);
    }
    message_done(&arena);
}

static void *on_payload(void *arg, const struct frame *frame, const uint8_t *message,
                        const char **fault)
{
    struct owner *owner = arg;
    CHECK(!owner->closed && owner->payload == NULL && frame->payload_size > 0);
    CHECK(frame->payload_size <= LIMIT_FRAME_PAYLOAD);
    if (owner->plan.skip)
        return NULL;
    /* Of its very size, so that one byte too many is seen. */
    owner->payload = malloc(frame->payload_size);
    if (owner->payload == NULL)
        *fault = "no memory";
    return owner->payload;
}

static const char *on_frame(void *arg, const struct frame *frame, const uint8_t *message,
                            void *payload)
{
    struct owner *owner = arg;
    struct frame expected;
    CHECK(!owner->closed && payload == owner->payload);
    CHECK((size_t)(owner->end - owner->in) >= FRAME_HEADER_SIZE);
    CHECK(frame_decode(&expected, owner->in,
                       owner->plan.trust ? LIMIT_FRAME_MESSAGE : LIMIT_STRANGER_FRAME) == NULL);
    CHECK(expected.type == frame->type && expected.id == frame->id &&
          expected.flags == frame->flags);
    CHECK(expected.message_size == frame->message_size &&
          expected.payload_size == frame->payload_size);
    owner->in += FRAME_HEADER_SIZE;
    CHECK((size_t)(owner->end - owner->in) >= (size_t)frame->message_size + frame->payload_size);
    CHECK(memcmp(message, owner->in, frame->message_size) == 0);
    owner->in += frame->message_size;
    CHECK(payload == NULL || memcmp(payload, owner->in, frame->payload_size) == 0);
    owner->in += frame->payload_size;
    unpack(descriptors[frame->type % DESCRIPTORS], message, frame->message_size);
    CHECK(channel_take_fd(owner->channel) == -1);
    free(owner->payload);
    owner->payload = NULL;
    owner->frames++;
    if (owner->plan.pause && owner->frames % 2 == 0)
        channel_pause(owner->channel, true);
    if (owner->plan.answer)
        channel_send(owner->channel, CHANNEL_URGENT, frame->type, FRAME_ANSWER, frame->id, NULL,
                     NULL, 0);
    return NULL;
}

static void on_closed(void *arg, bool orderly, const char *why)
{
    struct owner *owner = arg;
    CHECK(!owner->closed && why != NULL);
    CHECK(!orderly || owner->in == owner->end);
    owner->closed = true;
}

static void run_channel(struct loop *loop, const uint8_t *bytes, size_t size)
{
    static const struct channel_events events = {
        .frame = on_frame,
        .payload = on_payload,
        .closed = on_closed,
    };
    struct owner owner = {.plan = plan_of(bytes[0]), .in = bytes + 1, .end = bytes + size};
    struct mock_stream mock;
    mock_init(&mock);
    mock.in = bytes + 1;
    mock.in_size = size - 1;
    mock.chunk = owner.plan.chunk;
    mock.at_end = true;
    mock.room = SIZE_MAX;
    owner.channel = channel_new(loop, &mock.stream, &events, &owner);
    if (owner.plan.trust)
        channel_trust(owner.channel);
    for (size_t rounds = 0; !owner.closed; rounds++) {
        CHECK(rounds < 4 * size + 16);
        mock.events->readable(mock.arg);
        event_base_loop(loop_base(loop), EVLOOP_NONBLOCK);
        channel_pause(owner.channel, false);
    }
    CHECK(!owner.plan.answer || mock.out_size == (size_t)owner.frames * FRAME_HEADER_SIZE);
    channel_free(owner.channel);
    CHECK(mock.destroyed);
    free(owner.payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct loop *loop;
    if (loop == NULL)
        loop = loop_new("fuzz");
    if (size == 0)
        return 0;
    run_channel(loop, bytes, size);
    /* The messages alone as well, without the header's luck. */
    unpack(descriptors[bytes[0] % DESCRIPTORS], bytes + 1, size - 1);
    return 0;
}
