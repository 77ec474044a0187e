/* Messages as JSON, for --json: every field under its name in local.proto.
 *
 * Numbers are numbers, bytes hexadecimal, enum values their names in lower case without the prefix
 * ("complete"), a submessage that is absent is left out. */
#ifndef TOOLS_JSON_H
#define TOOLS_JSON_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

/* A new reference, never NULL. */
json_t *json_from_message(const ProtobufCMessage *message);

/* Text that may hold anything: what is not UTF-8 is escaped. */
json_t *json_from_text(const char *text);

/* The objects in array `list` take over what object `member` of each holds, where they have no
 * member of that name; `member` itself goes. */
void json_flatten(json_t *list, const char *member);

/* Prints on standard output, with a line end, and drops the reference. `indented`: for people; else
 * in one line. */
void json_print(json_t *value, bool indented);

#endif
