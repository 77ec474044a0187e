/* Requests about accounts that p2pd hands on to the tracker (tracker.proto). */
#ifndef TOOLS_CALL_H
#define TOOLS_CALL_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

#include "proto/tracker.pb-c.h"

struct client;
struct ctl;

struct call {
    unsigned type; /* Tracker__TrackerType */
    const ProtobufCMessage *message;
    unsigned answer_type;
    const ProtobufCMessageDescriptor *answer;
};

/* The answer, for call_free; or NULL: the reason has been said. --url of the command line says which swarm, where
 * nobody is logged in. */
ProtobufCMessage *call_tracker(struct client *, const struct ctl *, const struct call *);
void call_free(ProtobufCMessage *); /* NULL is fine */
/* For what is answered with Done. */
bool call_done(struct client *, const struct ctl *, unsigned type, const ProtobufCMessage *);

#endif
