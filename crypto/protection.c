/* Owns a look at the form of key files. Leaves opening them, and judging whether they are sound, to key.c and store_key.c.
 *
 * Thread: any. Memory: the file, wiped. */
#include "crypto/protection.h"

#include <stdbool.h>
#include <string.h>

#include "base/file.h"
#include "crypto/store_key.h"

int protection_of_key(const char *path)
{
    static const char head[] = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
    char *pem;
    size_t size;
    int error = file_read(path, PROTECTION_FILE_MAX, false, &pem, &size);

    if (error != 0)
        return error;
    bool protected = strstr(pem, head) != NULL;
    file_free_secret(pem, size);
    return protected;
}

int protection_of_store_key(const char *path)
{
    const size_t magic = sizeof STORE_KEY_MAGIC - 1;
    char *file;
    size_t size;
    int error = file_read(path, PROTECTION_FILE_MAX, false, &file, &size);

    if (error != 0)
        return error;
    bool protected = size > magic && memcmp(file, STORE_KEY_MAGIC, magic) == 0 &&
                     file[magic] == STORE_KEY_SEALED;
    file_free_secret(file, size);
    return protected;
}
