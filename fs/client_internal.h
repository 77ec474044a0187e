/* What client.c, client_table.c and client_connect.c share. The client's thread. */
#ifndef FS_CLIENT_INTERNAL_H
#define FS_CLIENT_INTERNAL_H

#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "fs/client.h"
#include "proto/channel.h"

#define CLIENT_MAGIC   0x636c6e74u
#define CLIENT_BUCKETS 4096
#define PAYLOAD_MAX    (64u << 10) /* the value of an extended attribute: the kernel's own limit */
#define ATTACH_ID      0xffff0000u /* ids from here on are Hello's and Reattach's */
/* The daemon is to answer a Want in time; p2pfs does it that much later. */
#define GRACE_NS (500 * NS_PER_MS)

enum client_state { CLIENT_AWAY, CLIENT_GREETING, CLIENT_ATTACHING, CLIENT_LIVE };

/* A p2pd --detach under way on a thread of its own. Whoever comes last frees it. */
struct starter {
    char *home;
    int result;
    char why[256];
    unsigned owners; /* atomic: the thread and the client */
    bool ended;      /* atomic */
};

struct client {
    unsigned magic;
    struct fs *fs;
    struct loop *loop;
    char *socket;
    uint64_t mount; /* our name over reconnects */

    enum client_state state;
    struct channel *channel;
    unsigned attaching; /* Reattach messages without answer */
    bool greeted;       /* there was a daemon before */
    bool goodbye;
    int64_t away_since, start_next, start_pause;
    struct starter *starter;
    uint8_t payload[PAYLOAD_MAX];

    struct request *table[CLIENT_BUCKETS];
    struct request_list lists[2]; /* by enum request_patience */
    size_t count;
    uint32_t next_id;
    bool stopping; /* everything is refused */
    sem_t refused; /* ... and client_await_refusal may return */
    bool ending;   /* the loop ends once the table is empty */
    struct timer *connect, *deadline, *sweep, *stop;
};

/* client_table.c */
void client_arm_deadline(struct client *);
void client_set_deadline(struct request *, int64_t now, int64_t wait);
/* Answers EIO to all that `which` picks. */
void client_finish_all(struct client *, bool (*which)(const struct request *));
void client_on_deadline(void *client); /* timers */
void client_on_sweep(void *client);

/* client_connect.c */
extern const struct channel_events client_channel_events; /* client.c: what comes from p2pd */
void client_on_connect(void *client);                     /* timer */
void client_go_away(struct client *);                     /* the connection is gone: try again */
void client_drop_starter(struct client *);

#endif
