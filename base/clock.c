/* The clocks, as nanoseconds in 64 bits (292 years). Any thread; no system call (vDSO) but for a
 * thread's own time. */
#include "base/clock.h"

#include "base/check.h"

#include <time.h>

static int64_t now(clockid_t id)
{
    struct timespec time;

    CHECK(clock_gettime(id, &time) == 0);
    return (int64_t)time.tv_sec * NS_PER_S + time.tv_nsec;
}

int64_t clock_now(void)
{
    return now(CLOCK_BOOTTIME);
}

int64_t clock_wall(void)
{
    return now(CLOCK_REALTIME);
}

int64_t clock_thread(void)
{
    return now(CLOCK_THREAD_CPUTIME_ID);
}
