/* Owns one question: how fast a link that idled begins to send again.
 *
 * Most congestion controls shrink the window of a connection that was idle for some 0.2 s to ten packets, so an answer
 * of 64 KiB takes three round trips instead of one. BBR does not, and it keeps a link with some loss full; so links between
 * daemons ask for it, and take what the machine has where it is not there or not allowed
 * (net.ipv4.tcp_allowed_congestion_control).
 *
 * But BBR sends at a multiple of the best rate it has seen, and short answers show it little: a burst of B bytes that ends
 * one round trip after it began looks like a path of B per round trip. Until it has once met the path's limit (it is in
 * STARTUP) it therefore stretches every short answer by a third of a round trip. A new beginning of BBR's takes its rate from
 * the window instead, which has grown with those answers. So before a burst, while nothing is under way, such a connection's
 * BBR is begun anew if that makes it clearly faster. No more than the window ever leaves at once: less of a burst than the
 * same window without any pacing. Once BBR knows the path it is left alone.
 *
 * And every ten seconds BBR all but stops a busy link for 0.2 s, to see how long the round trip is without a queue of its own
 * (PROBE_RTT, if it has seen no shorter one meanwhile). A reader who waits for a block then waits for that, too. While a reader
 * is near, who asks for little more than fits on the path, BBR is begun anew before that is due: the kernel has the
 * shortest round trip of the last five minutes for it.
 *
 * BBR leaves STARTUP only after three round trips in which it was never out of bytes, and a server that is asked for little more
 * than fits on the path may never have those. Then it goes on sending at 2.9 times the path's rate for good, which matters where
 * packets are lost: all that is asked for when what a lost one held up is delivered goes out as one burst, which overflows the
 * path's queue (measured at 100 ms and 0.1 % of loss: 14 % of the packets lost, and a fifth of the rate with them). So once its
 * rate has stopped growing on a busy link we bound its pace as its own next state does: the rate that it has seen, and a quarter
 * more every now and then, to see whether there is more to be had.
 *
 * Where a member sends to many at once, BBR is the wrong one. Each flow takes the share that it happened to get for the path's
 * rate, and paces by it: a block of 16 KiB takes as long as there are flows, so that more and more flows are needed to fill the
 * line, and all their probing together keeps the line's queue full and drops one packet in twelve (measured with 16 fetchers on
 * 5 Mbit/s). There the owner bounds what is under way, and CUBIC sends what it is given (tls_crowd).
 *
 * Thread: whichever owns the SSL. */
#include <linux/inet_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/clock.h"
#include "crypto/tls_internal.h"

#define IDLE_NS (5 * NS_PER_MS) /* a pause that may be the end of an answer */

/* BBR's gain of a beginning, 2/ln 2, and the unit of its gains (tcp_bbr.c). */
#define BBR_BEGINNING 2.885
#define BBR_UNIT      256
#define WORTH_IT      1.25 /* times the rate it has */
#define WINDOW_MOST                                                                                \
    (1u << 20) /* a larger one is a bulk flow's, and its pace is fast enough for an answer */

#define PROBE_DUE_NS (8 * NS_PER_S) /* PROBE_RTT comes after 10 s (bbr_min_rtt_win_sec) */

/* The bound of a pace, in looks of tls_wake_measured. */
#define FLAT_LOOKS 3 /* without growth: the path is found */
#define IDLE_SHARE                                                                                 \
    8 /* a link that sends less than this part of its rate is not busy: losses alone make it a half */
#define PROBE_LOOKS 8 /* one of so many with a quarter more */

static bool choose(int fd, const char *name)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)) == 0;
}

void tls_wake_prepare(struct tls *tls)
{
    tls->bbr = tls->context->policy == TLS_PEER && choose(tls->fd, "bbr");
}

/* Whether BBR has not found the path's limit yet; with what it has measured, in bytes a second. */
static bool is_beginning(int fd, uint64_t *rate)
{
    union tcp_cc_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_CC_INFO, &info, &size) != 0 || size < sizeof info.bbr ||
        info.bbr.bbr_pacing_gain <= 2 * BBR_UNIT)
        return false;
    *rate = (uint64_t)info.bbr.bbr_bw_hi << 32 | info.bbr.bbr_bw_lo;
    return true;
}

static bool is_slow(int fd)
{
    struct tcp_info info;
    socklen_t size = sizeof info;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || info.tcpi_unacked > 0 ||
        info.tcpi_rtt == 0 || (uint64_t)info.tcpi_snd_cwnd * info.tcpi_snd_mss > WINDOW_MOST)
        return false;
    double rate = BBR_BEGINNING * info.tcpi_snd_cwnd * info.tcpi_snd_mss * 1e6 / info.tcpi_rtt;
    return rate > WORTH_IT * (double)info.tcpi_pacing_rate;
}

/* `rate` in bytes a second; UINT64_MAX: no bound. */
static void bound(struct tls *tls, uint64_t rate)
{
    if (rate == UINT64_MAX && !tls->held)
        return;
    tls->held = setsockopt(tls->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate) == 0 &&
                rate != UINT64_MAX;
}

/* What a reader asks for is short, and shows BBR less than the path carries: there its beginning is left alone. So it is where
 * little is sent. */
void tls_wake_measured(struct tls *tls, bool reader)
{
    uint64_t rate = 0;

    if (tls->near || reader || !tls->bbr || !is_beginning(tls->fd, &rate) ||
        tls->rate < rate / IDLE_SHARE) {
        tls->best = tls->flat = 0;
        bound(tls, UINT64_MAX);
        return;
    }
    if (rate > tls->best + tls->best / 8) {
        tls->best = rate;
        tls->flat = 0;
    }
    if (++tls->flat > FLAT_LOOKS)
        bound(tls, tls->flat % PROBE_LOOKS == 0 ? rate + rate / 4 : rate);
    else if (tls->held)
        bound(tls, rate + rate / 4);
}

void tls_crowd(struct stream *stream, bool crowd)
{
    struct tls *tls = (struct tls *)(void *)stream;

    if (stream->class != &tls_class)
        return;
    CHECK_OBJECT(tls, TLS_MAGIC);
    if (crowd == tls->crowd || tls->bbr != crowd || tls->near)
        return;
    if (!choose(tls->fd, crowd ? "cubic" : "bbr"))
        return;
    bound(tls, UINT64_MAX);
    tls->best = tls->flat = 0;
    tls->crowd = crowd;
    tls->bbr = !crowd;
}

static void begin_anew(struct tls *tls, int64_t now)
{
    tls->bbr = choose(tls->fd, "reno") && choose(tls->fd, "bbr");
    tls->begun_at = now;
}

void tls_wake(struct tls *tls)
{
    int64_t now;
    uint64_t rate;

    if (!tls->bbr || tls->unpaced)
        return;
    now = clock_now();
    if (now - tls->sent_at >= IDLE_NS && is_slow(tls->fd) && is_beginning(tls->fd, &rate))
        begin_anew(tls, now);
    else if (now < tls->reader_until && now - tls->begun_at > PROBE_DUE_NS)
        begin_anew(tls, now);
    tls->sent_at = now;
}
