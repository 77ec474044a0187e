/* The one judge of names, and of UTF-8 (RFC 3629).
 *
 * Whatever passes here may stand in a directory, in a log line and on a terminal without doing
 * anything but being read. Any thread; holds nothing. */
#include "base/name.h"

#include <string.h>

size_t utf8_decode(const char *text, size_t length, uint32_t *code)
{
    const unsigned char *byte = (const unsigned char *)text;
    uint32_t value, least;
    size_t size;

    if (length == 0)
        return 0;
    if (byte[0] < 0x80) {
        *code = byte[0];
        return 1;
    } else if (byte[0] >= 0xc2 && byte[0] <= 0xdf) {
        size = 2;
        value = byte[0] & 0x1f;
        least = 0x80;
    } else if ((byte[0] & 0xf0) == 0xe0) {
        size = 3;
        value = byte[0] & 0x0f;
        least = 0x800;
    } else if (byte[0] >= 0xf0 && byte[0] <= 0xf4) {
        size = 4;
        value = byte[0] & 0x07;
        least = 0x10000;
    } else {
        return 0;
    }
    if (length < size)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((byte[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (byte[i] & 0x3f);
    }
    /* Longer than needed, a surrogate, or behind the last plane. */
    if (value < least || (value >= 0xd800 && value <= 0xdfff) || value > 0x10ffff)
        return 0;
    *code = value;
    return size;
}

bool utf8_is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0x9f) || (code >= 0x2028 && code <= 0x202e) ||
           (code >= 0x2066 && code <= 0x2069);
}

bool utf8_is_valid(const char *text, size_t length)
{
    while (length > 0) {
        uint32_t code;
        size_t size = utf8_decode(text, length, &code);

        if (size == 0 || code == 0)
            return false;
        text += size;
        length -= size;
    }
    return true;
}

bool utf8_is_plain(const char *text, size_t length)
{
    while (length > 0) {
        uint32_t code;
        size_t size = utf8_decode(text, length, &code);

        if (size == 0 || utf8_is_control(code))
            return false;
        text += size;
        length -= size;
    }
    return true;
}

bool name_is_valid(const char *name, size_t length)
{
    if (length == 0 || length > NAME_BYTES_MAX)
        return false;
    if (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')))
        return false;
    return memchr(name, '/', length) == NULL && utf8_is_plain(name, length);
}

const char *account_name_fault(const char *name)
{
    size_t length = strlen(name);

    if (length == 0)
        return "is empty";
    if (length > ACCOUNT_BYTES_MAX)
        return "is longer than 64 characters";
    for (size_t i = 0; i < length; i++) {
        bool plain = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9');

        if (plain)
            continue;
        if (name[i] != '.' && name[i] != '_' && name[i] != '-')
            return "may only have the characters a-z 0-9 . _ -";
        if (i == 0)
            return "must begin with a letter a-z or a digit";
    }
    return NULL;
}
