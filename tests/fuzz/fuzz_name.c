/* The judges of names: name_is_valid, utf8_is_valid, account_name_fault. A good name is good UTF-8,
 * short, one path component, and has no control characters; a good account's name is a good name as
 * well. */
#include "base/check.h"
#include "base/name.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_name(const char *name, size_t size)
{
    CHECK(size >= 1 && size <= NAME_BYTES_MAX);
    CHECK(utf8_is_valid(name, size));
    CHECK(memchr(name, '/', size) == NULL && memchr(name, '\0', size) == NULL);
    CHECK(!(size == 1 && name[0] == '.') && !(size == 2 && memcmp(name, "..", 2) == 0));
    for (size_t i = 0; i < size; i++)
        CHECK((uint8_t)name[i] >= 0x20 && name[i] != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    /* Of its very size, so that a look beyond the end is seen. */
    char *name = malloc(size + (size == 0));
    char *text = malloc(size + 1);
    CHECK(name != NULL && text != NULL);
    if (size > 0) {
        memcpy(name, bytes, size);
        memcpy(text, bytes, size);
    }
    text[size] = '\0';
    if (name_is_valid(name, size))
        check_name(name, size);
    utf8_is_valid(name, size);
    if (account_name_fault(text) == NULL)
        CHECK(strlen(text) <= ACCOUNT_BYTES_MAX && name_is_valid(text, strlen(text)));
    free(name);
    free(text);
    return 0;
}
