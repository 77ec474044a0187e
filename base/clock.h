/* The clocks. Every timeout uses clock_now: CLOCK_BOOTTIME, so a clock that is set does no harm, and tickets, bans and graces end in
 * their time though the machine sleeps. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_US INT64_C(1000)
#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S  INT64_C(1000000000)

int64_t clock_now(void); /* monotonic, nanoseconds; only differences mean anything */
int64_t
clock_wall(void); /* nanoseconds since 1970-01-01 UTC, for what people and certificates see */
/* Processor time that this thread has used, nanoseconds. Costs a system call (0.2 us). */
int64_t clock_thread(void);

#endif
