/* config_load with all its takers, on a file in memory. What it logs goes nowhere: see
 * CMakeLists.txt. */
#include "base/check.h"
#include "base/config.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    uint64_t number = 0, amount = 0, seconds = 0;
    bool yes = false;
    char *text = NULL;
    const struct config_key keys[] = {
        {"p2pd", "number", config_take_number, &number},
        {"p2pd", "yes", config_take_bool, &yes},
        {"p2pd", "bytes", config_take_bytes, &amount},
        {"cache", "seconds", config_take_duration, &seconds},
        {"cache", "text", config_take_text, &text},
        {NULL, NULL, NULL, NULL},
    };
    char path[64];
    int fd = memfd_create("config", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(size == 0 || write(fd, bytes, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    config_load(path, keys);
    close(fd);
    free(text);
    return 0;
}
