/* Whether the thread that asked for something is still there to get it. Any thread. */
#ifndef FS_READER_H
#define FS_READER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum reader_state {
    READER_WAITS, /* it lives and no signal asks it to stop, or nothing can be told */
    READER_CALLED, /* it lives; a signal that means "stop" waits for it to come back from the kernel */
    READER_GONE, /* it has ended or is ending */
};

/* `tid` as in fuse_ctx's pid; 0 (of another PID namespace): READER_WAITS. */
enum reader_state reader_state(pid_t tid);

/* The process that a thread belongs to; 0 if it cannot be told. */
pid_t reader_process(pid_t tid);

/* Whether it has (another) descriptor open for writing of this inode on this mount (by mountinfo's number). False if
 * that cannot be told. */
bool reader_writes(pid_t tid, int mount_id, uint64_t ino);

#endif
