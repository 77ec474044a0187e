/* The client's thread: the connection to p2pd and the requests that wait for it. */
#ifndef FS_CLIENT_H
#define FS_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/loop.h"
#include "fs/request.h"
#include "proto/local.pb-c.h"

struct client;
struct fs;

/* Makes the client of `fs` (fs->client is set by the caller), then its thread. */
struct client *client_new(struct fs *);
void client_start(struct client *);
/* From now on answers everything, what waits and what comes, with EIO; but for sealing that is under way. */
void client_refuse(struct client *);
/* Another thread than the client's, after client_refuse: when this returns it holds, and nothing is begun any more. */
void client_await_refusal(struct client *);
/* After client_refuse, when no more requests can come: lets sealing that was begun end (2 s at most), ends the thread, frees. */
void client_stop(struct client *);

struct loop *client_loop(struct client *);
/* Any thread: a message without an answer. Lost if the daemon is away. `offset` and `size` where the type has them;
 * `last` of Release. */
void client_notice(struct client *, uint16_t type, uint64_t ino, uint64_t handle, uint64_t offset,
                   uint64_t size, bool last);
/* The client's thread: the same at once, in order with what else is sent. */
void client_notice_now(struct client *, uint16_t type, uint64_t ino, uint64_t handle,
                       uint64_t offset, uint64_t size, bool last);

/* The client's thread: nobody waits for it any more. Answers EINTR, tells the daemon if it was a Want. */
void client_let_go(struct client *, struct request *);

/* For request.c and tests. */
void client_add(struct client *, struct request *);
void client_remove(struct client *, struct request *);
void client_transmit(struct client *, struct request *);
struct request *client_find(struct client *, uint32_t id);
size_t client_waiting(const struct client *);
bool client_stopping(const struct client *);

#endif
