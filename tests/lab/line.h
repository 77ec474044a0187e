/* One direction of a host's access link: a serialiser with a drop-tail queue, then a delay.
 *
 * Pure: packets and the time go in, packets and times come out; no clock, no descriptor. All times are
 * nanoseconds of one monotonic clock and need not be the present: a line works on the instants at which
 * things ought to happen, so a program that wakes late loses no rate. Single thread. */
#ifndef LAB_LINE_H
#define LAB_LINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINE_MTU         1500                  /* bytes of an IP packet at most */
#define LINE_QUEUE_NS    INT64_C(100000000)    /* a queue that nobody chose holds this long */
#define LINE_QUEUE_LEAST ((uint64_t)65536)     /* or this many bytes, if that is more */
#define LINE_HELD_MOST   ((uint64_t)256 << 20) /* bytes in one line, whatever its setting says */

struct line_setting {
    uint64_t rate;    /* bits per second, counted over whole IP packets; 0: no limit */
    uint64_t queue;   /* bytes that may wait; 0: LINE_QUEUE_NS at the rate */
    int64_t delay_ns; /* from the last bit sent to the packet's arrival */
    double loss;      /* probability, 0 to 1; a packet that is lost has used the wire */
};

struct packet {
    struct packet *next;
    int64_t due_ns;  /* when it leaves the line */
    unsigned to;     /* the host it goes to; the caller's */
    uint16_t length; /* bytes of `data` */
    bool lost;       /* it leaves the line to nowhere */
    uint8_t data[LINE_MTU];
};

struct line_count {
    uint64_t packets, bytes; /* sent, the lost ones included */
    uint64_t dropped, lost;  /* packets that found the queue full; that were lost on the wire */
};

struct line {
    struct line_setting setting;
    struct line_count count;
    uint64_t random;       /* state of the generator, never 0 */
    int64_t busy_until_ns; /* when the wire has sent all it was given */
    uint64_t held;         /* bytes of the packets in the list */
    struct packet *first;  /* in the order in which they leave */
    struct packet **last;
};

/* `seed` decides which packets are lost; two lines with one seed lose alike. */
void line_init(struct line *, const struct line_setting *, uint64_t seed);

/* From now on; what is on its way keeps its time. */
void line_set(struct line *, const struct line_setting *);

/* A packet arrives at `at_ns`, which is not before that of the one before. True: the line owns it.
 * False: the queue is full, and the packet is still the caller's. */
bool line_offer(struct line *, struct packet *, int64_t at_ns);

/* When the next packet leaves; INT64_MAX if none is there. */
int64_t line_due(const struct line *);

/* The next packet, which has left at its `due_ns` and is the caller's; NULL if none is there. */
struct packet *line_take(struct line *);

/* What a queue of this setting holds, in bytes; UINT64_MAX if the rate has no limit. */
uint64_t line_queue(const struct line_setting *);

/* --- settings as people write them ---------------------------------------------------------------------- */

/* Both directions of one host. */
struct link_setting {
    struct line_setting up, down;
    bool closed; /* nobody can open a TCP connection to it: what a firewall at home does */
};

/* "up=20mbit,down=100mbit,delay=5ms,queue=256K,loss=0.1%": changes what is named and leaves the rest.
 * Returns NULL, or what is wrong (static text), with *setting untouched. `text` is not kept. */
const char *link_setting_parse(const char *text, struct link_setting *setting);

/* "20 Mbit/s", "no limit"; returns `out`, which holds LINE_TEXT_MAX bytes. */
#define LINE_TEXT_MAX 32
char *line_rate_format(char *out, uint64_t rate);

#endif
