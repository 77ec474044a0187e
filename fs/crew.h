/* The threads that answer the kernel.
 *
 * One reads a request from the device and carries it out, over and over, while the others sleep: on few processors that
 * is quicker than to wake another thread for each request. On many, up to half of them are at work at a time. Whoever is
 * going to wait for the disk steps aside first, and another takes the place; so no request waits for another's disk. */
#ifndef FS_CREW_H
#define FS_CREW_H

struct fuse_session;

/* Serves until the session ends (unmounted, or fuse_session_exit from a signal's handler on this thread). */
void crew_run(struct fuse_session *);
/* On a thread of the crew, within an operation that may wait for the disk; elsewhere nothing happens. */
void crew_step_aside(void);

#endif
