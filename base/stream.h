/* A connected, ordered, non-blocking stream of bytes, whatever carries it: a Unix socket
 * (stream_unix, here) or TLS over TCP (crypto/tls.h). What the framing in proto/channel.h stands on.
 *
 * One loop's thread owns a stream; callbacks come there, never from within a call of the owner's
 * except stream_free. Events:
 *   ready     the handshake is done, peer certificate checked; bytes may flow (once)
 *   readable  stream_read may have bytes: read until it says STREAM_AGAIN, or stop early and call
 *             stream_resume later (the event does not come again by itself)
 *   writable  after a stream_write that took less than all: there is room again
 *   failed    the stream has ended in error before or after `ready`; `why` is one clause for a log
 *             line. No further events. The owner frees it. */
#ifndef BASE_STREAM_H
#define BASE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct loop;
struct stream;

#define STREAM_AGAIN  (-1) /* nothing now */
#define STREAM_FAILED (-2) /* `failed` was or will be called */

struct stream_events {
    void (*ready)(void *arg);
    void (*readable)(void *arg);
    void (*writable)(void *arg);
    void (*failed)(void *arg, const char *why);
};

/* What an implementation provides. */
struct stream_class {
    ssize_t (*read)(struct stream *, void *to, size_t size);
    ssize_t (*write)(struct stream *, const void *from, size_t size);
    size_t (*room)(struct stream *); /* NULL: what is offered is taken, or the kernel is full */
    int (*flush)(struct stream *);
    void (*set_events)(struct stream *, const struct stream_events *, void *arg);
    void (*resume)(struct stream *);
    void (*destroy)(struct stream *);
};
struct stream {
    const struct stream_class *class;
};

/* Who listens (all four are given); set before the loop runs again after the stream was made. */
void stream_set_events(struct stream *, const struct stream_events *, void *arg);

/* > 0 bytes read, 0 the peer has ended its side in order, STREAM_AGAIN, STREAM_FAILED. */
ssize_t stream_read(struct stream *, void *to, size_t size);

/* Takes up to `size` bytes, returns how many were taken (may be all, held in the stream's own bounded
 * buffer until stream_flush), STREAM_AGAIN or STREAM_FAILED. */
ssize_t stream_write(struct stream *, const void *from, size_t size);

/* How much stream_write would take at once, as far as it knows; who copies bytes together to offer them need not copy more. 0: none,
 * but stream_write is still to be called, for `writable` to come. */
size_t stream_room(struct stream *);

/* Sends what stream_write holds. 0 all gone to the kernel; STREAM_AGAIN: some is left, `writable`
 * will come; STREAM_FAILED. Call it at the end of each burst of writes. */
int stream_flush(struct stream *);

/* Asks for a `readable` event soon, after the owner stopped reading before STREAM_AGAIN. */
void stream_resume(struct stream *);

/* Closes at once; no event follows. Allowed within a callback. NULL is fine. */
void stream_free(struct stream *);

/* --- Unix sockets --------------------------------------------------------------------------------- */
/* Takes over the connected non-blocking socket `fd`. `ready` comes with the loop's next round. */
struct stream *stream_unix(struct loop *, int fd);

/* Whether it is one: only then may the functions below be called on it. */
bool stream_is_unix(const struct stream *);

/* File descriptors travel beside the bytes (SCM_RIGHTS): those given here leave with the first byte
 * of the next stream_write; they are duplicated, the caller keeps its own. At most
 * STREAM_UNIX_FDS_MAX may wait: else -EAGAIN. 0 or -errno. */
#define STREAM_UNIX_FDS_MAX 8
int stream_unix_attach(struct stream *, int fd);
/* The oldest received descriptor not yet taken, close-on-exec, now the caller's; -1 if there is none.
 * More than STREAM_UNIX_FDS_MAX untaken ones end the stream. */
int stream_unix_take(struct stream *);
/* The peer's user, from SO_PEERCRED. */
uid_t stream_unix_peer(const struct stream *);

#endif
