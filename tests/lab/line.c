/* A line owns the packets that are on it, in one list in the order of leaving. The caller owns the clock
 * and decides where a packet goes next.
 *
 * The wire is one number, busy_until: a packet that arrives at t is sent from max(t, busy_until) on, for
 * length / rate, and leaves the line `delay` later. So what waits at t is (busy_until - t) x rate, and the
 * queue is full when that and the packet are more than it holds; one packet always fits on an idle wire.
 *
 * Invariants: 1. due times in the list never fall (a delay that was shortened reorders nothing);
 * 2. `held` is the sum of the lengths in the list and at most LINE_HELD_MOST. */
#include "tests/lab/line.h"

#include "base/check.h"

#define BITS_NS 8000000000.0 /* bits of a byte x nanoseconds of a second */

void line_init(struct line *line, const struct line_setting *setting, uint64_t seed)
{
    *line = (struct line){.setting = *setting};
    line->random = seed * UINT64_C(0x9e3779b97f4a7c15) + UINT64_C(0x2545f4914f6cdd1d);
    if (line->random == 0)
        line->random = 1;
    line->busy_until_ns = INT64_MIN;
    line->last = &line->first;
}

void line_set(struct line *line, const struct line_setting *setting)
{
    line->setting = *setting;
}

uint64_t line_queue(const struct line_setting *setting)
{
    uint64_t bytes;

    if (setting->rate == 0)
        return UINT64_MAX;
    if (setting->queue > 0)
        return setting->queue;
    bytes = (uint64_t)((double)setting->rate * (double)LINE_QUEUE_NS / BITS_NS);
    return bytes > LINE_QUEUE_LEAST ? bytes : LINE_QUEUE_LEAST;
}

/* xorshift64*: true with the probability `share`. */
static bool chance(struct line *line, double share)
{
    if (share <= 0)
        return false;
    line->random ^= line->random >> 12;
    line->random ^= line->random << 25;
    line->random ^= line->random >> 27;
    uint64_t drawn = line->random * UINT64_C(0x2545f4914f6cdd1d);
    return (double)(drawn >> 11) < share * (double)(UINT64_C(1) << 53);
}

bool line_offer(struct line *line, struct packet *packet, int64_t at_ns)
{
    const struct line_setting *setting = &line->setting;
    int64_t from = at_ns;

    if (line->held + packet->length > LINE_HELD_MOST)
        goto drop;
    if (setting->rate > 0 && line->busy_until_ns > at_ns) {
        double waiting = (double)(line->busy_until_ns - at_ns) * (double)setting->rate / BITS_NS;
        if (waiting + packet->length > (double)line_queue(setting))
            goto drop;
        from = line->busy_until_ns;
    }
    line->busy_until_ns = from;
    if (setting->rate > 0)
        line->busy_until_ns += (int64_t)(packet->length * BITS_NS / (double)setting->rate);

    packet->due_ns = line->busy_until_ns + setting->delay_ns;
    if (line->first != NULL) {
        const struct packet *tail =
            (const struct packet *)((const char *)line->last - offsetof(struct packet, next));
        if (packet->due_ns < tail->due_ns)
            packet->due_ns = tail->due_ns;
    }
    packet->lost = chance(line, setting->loss);
    packet->next = NULL;
    *line->last = packet;
    line->last = &packet->next;
    line->held += packet->length;
    line->count.packets++;
    line->count.bytes += packet->length;
    line->count.lost += packet->lost;
    return true;

drop:
    line->count.dropped++;
    return false;
}

int64_t line_due(const struct line *line)
{
    return line->first == NULL ? INT64_MAX : line->first->due_ns;
}

struct packet *line_take(struct line *line)
{
    struct packet *packet = line->first;

    if (packet == NULL)
        return NULL;
    CHECK(line->held >= packet->length);
    line->first = packet->next;
    if (line->first == NULL)
        line->last = &line->first;
    line->held -= packet->length;
    packet->next = NULL;
    return packet;
}
