/* Threads' buffers, by pthread_setspecific: unlike a thread-local variable it frees them at the thread's end. */
#include "fs/buffer.h"

#include "base/check.h"

#include <pthread.h>
#include <stdlib.h>

#define ALIGNMENT 4096

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    CHECK(pthread_key_create(&key, free) == 0);
}

void *buffer_here(void)
{
    void *buffer;

    CHECK(pthread_once(&once, make_key) == 0);
    buffer = pthread_getspecific(key);
    if (buffer == NULL) {
        CHECK(posix_memalign(&buffer, ALIGNMENT, BUFFER_SIZE) == 0);
        CHECK(pthread_setspecific(key, buffer) == 0);
    }
    return buffer;
}
