/* Messages as JSON, by their descriptors: a field that is added to local.proto appears by itself.
 *
 * Owns nothing. Field access follows protobuf-c's layout: `offset` from the message's beginning, a
 * repeated field is a pointer to an array, with its count at quantifier_offset. */
#include "tools/json.h"

#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hex.h"
#include "base/mem.h"
#include "tools/text.h"

#define INDENT 2

json_t *json_from_text(const char *text)
{
    json_t *value = json_string(text);

    if (value == NULL) {
        char *escaped = text_escape(text);
        value = json_string(escaped);
        free(escaped);
    }
    CHECK(value != NULL);
    return value;
}

static json_t *from_unsigned(uint64_t number)
{
    return json_integer(number > INT64_MAX ? INT64_MAX : (json_int_t)number);
}

static json_t *from_bytes(const ProtobufCBinaryData *bytes)
{
    char *text = xmalloc(2 * bytes->len + 1);

    hex_encode(text, bytes->data, bytes->len);
    json_t *value = json_from_text(text);
    free(text);
    return value;
}

/* STATE_COMPLETE of enum State: "complete". */
static json_t *from_enum(const ProtobufCEnumDescriptor *descriptor, int number)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(descriptor, number);
    size_t prefix = strlen(descriptor->short_name);

    if (value == NULL)
        return json_integer(number);
    bool prefixed =
        strncasecmp(value->name, descriptor->short_name, prefix) == 0 && value->name[prefix] == '_';
    char *name = xstrdup(value->name + (prefixed ? prefix + 1 : 0));
    for (char *c = name; *c != '\0'; c++)
        *c = (char)tolower((unsigned char)*c);
    json_t *result = json_from_text(name);
    free(name);
    return result;
}

/* One value; `at` is where it lies; *size is how far the next one of an array is. NULL: absent. */
static json_t *from_value(const ProtobufCFieldDescriptor *field, const void *at, size_t *size)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        *size = sizeof(int32_t);
        return json_integer(*(const int32_t *)at);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        *size = sizeof(uint32_t);
        return json_integer(*(const uint32_t *)at);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        *size = sizeof(int64_t);
        return json_integer(*(const int64_t *)at);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        *size = sizeof(uint64_t);
        return from_unsigned(*(const uint64_t *)at);
    case PROTOBUF_C_TYPE_FLOAT:
        *size = sizeof(float);
        return json_real((double)*(const float *)at);
    case PROTOBUF_C_TYPE_DOUBLE:
        *size = sizeof(double);
        return json_real(*(const double *)at);
    case PROTOBUF_C_TYPE_BOOL:
        *size = sizeof(protobuf_c_boolean);
        return json_boolean(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_ENUM:
        *size = sizeof(int);
        return from_enum(field->descriptor, *(const int *)at);
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)at;
        *size = sizeof(char *);
        return json_from_text(text != NULL ? text : "");
    }
    case PROTOBUF_C_TYPE_BYTES:
        *size = sizeof(ProtobufCBinaryData);
        return from_bytes(at);
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *message = *(ProtobufCMessage *const *)at;
        *size = sizeof(ProtobufCMessage *);
        return message != NULL ? json_from_message(message) : NULL;
    }
    }
    *size = 0;
    return NULL;
}

static json_t *from_repeated(const ProtobufCFieldDescriptor *field, const uint8_t *message)
{
    size_t count = *(const size_t *)(const void *)(message + field->quantifier_offset), size = 0;
    const uint8_t *at = *(uint8_t *const *)(const void *)(message + field->offset);
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++, at += size) {
        json_t *value = from_value(field, at, &size);
        if (value != NULL)
            json_array_append_new(list, value);
    }
    return list;
}

json_t *json_from_message(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *descriptor = message->descriptor;
    const uint8_t *base = (const uint8_t *)message;
    json_t *object = json_object();
    size_t size;

    CHECK(object != NULL);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
        json_t *value = field->label == PROTOBUF_C_LABEL_REPEATED
                            ? from_repeated(field, base)
                            : from_value(field, base + field->offset, &size);
        if (value != NULL)
            json_object_set_new(object, field->name, value);
    }
    return object;
}

void json_flatten(json_t *list, const char *member)
{
    size_t i;
    json_t *object;

    json_array_foreach(list, i, object)
    {
        json_t *inner = json_object_get(object, member);
        if (inner != NULL)
            json_object_update_missing(object, inner);
        json_object_del(object, member);
    }
}

void json_print(json_t *value, bool indented)
{
    json_dumpf(value, stdout, indented ? JSON_INDENT(INDENT) : JSON_COMPACT);
    putchar('\n');
    json_decref(value);
}
