/* Simulations of whole swarms: the daemon's picker and choker against the physical limit.
 *
 * usage: sim [--seed N] [--no-suggestions] [--twice] [--timeline] [SCENARIO...]      all without names; CMakeLists.txt has those of the check
 *        sim --list
 *        sim --peers N [--up MBIT] [--down MBIT] [--delay MS] [--mib N] [--piece KIB] [--unit N] [--mixed] [--seed N]
 *
 * Prints for each run: completion times against the fluid bound max(F/u_seed, F/d_min, N F/(u_seed + sum u)); in brackets the
 * last one against what is possible if only whole units (daemon/parts.h) are passed on (see bound_of_pieces); the copies that
 * the first seed sent until every piece was out and in all, fairness of completion times (Jain's index), blocks that came in
 * vain, readers' stalls, a digest of all events. What it took of this machine goes to standard error, so that the rest is the
 * same each time. Ends with 1 if a scenario misses its goal, and the line names the seed that repeats it; with --twice also if
 * the second run of a scenario differs from the first. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/number.h"
#include "daemon/parts.h"
#include "tests/sim/sim.h"

struct scenario {
    const char *name, *what;
    uint32_t peers, neighbours;
    double up, down; /* Mbit/s */
    double seed_up;  /* 0: as the others */
    double delay;    /* ms, one way */
    uint32_t kib, piece_kib;
    uint32_t unit;                /* blocks that leave an uplink in one turn; 0: one */
    bool mixed;                   /* quarter and seven quarters of the uplink, by turns */
    double riders, liars, broken; /* parts of the peers */
    double stuck, slow, churn; /* slow: a twentieth of the uplink; churn: leave at a random time */
    double crowd;              /* s over which they come; 0: at once */
    double readers, read_rate; /* part; Mbit/s */
    unsigned seeks;
    /* Goals; 0: none. */
    double last, median, copies, worst_stall; /* over the bound; copies until all is out; s */
};

static const struct scenario scenarios[] = {
    {.name = "eight",
     .what = "8 leechers, equal links",
     .peers = 8,
     .up = 20,
     .down = 100,
     .delay = 10,
     .kib = 100 << 10,
     .last = 1.06,
     .copies = 1.08},
    {.name = "sixteen",
     .what = "16 leechers, 5/25 Mbit/s",
     .peers = 16,
     .up = 5,
     .down = 25,
     .delay = 10,
     .kib = 32 << 10,
     .last = 1.06,
     .copies = 1.08},
    {.name = "thirty-two",
     .what = "32 leechers",
     .peers = 32,
     .up = 40,
     .down = 200,
     .delay = 10,
     .kib = 100 << 10,
     .last = 1.10,
     .copies = 1.08},
    {.name = "mixed",
     .what = "16 leechers, uplinks of a quarter and seven quarters",
     .peers = 16,
     .up = 20,
     .down = 100,
     .delay = 10,
     .kib = 100 << 10,
     .mixed = true,
     .last = 1.10,
     .copies = 1.08},
    {.name = "mixed-slow",
     .what =
         "the same with 5/25 Mbit/s and a small file: slow uplinks hold up what they acknowledge",
     .peers = 16,
     .up = 5,
     .down = 25,
     .delay = 10,
     .kib = 16 << 10,
     .mixed = true,
     .last = 1.08,
     .copies = 1.10},
    {.name = "hostile",
     .what = "100 peers: riders, liars, garbage, stuck and slow ones",
     .peers = 100,
     .up = 20,
     .down = 100,
     .seed_up = 40,
     .delay = 20,
     .kib = 64 << 10,
     .riders = 0.1,
     .liars = 0.05,
     .broken = 0.05,
     .stuck = 0.05,
     .slow = 0.1,
     .last = 2.0},
    {.name = "stuck",
     .what = "24 peers, a quarter of which takes requests and never answers after a while",
     .peers = 24,
     .up = 20,
     .down = 100,
     .delay = 20,
     .kib = 16 << 10,
     .stuck = 0.25,
     .last = 2.2},
    {.name = "churn",
     .what = "200 peers over a minute, a third leaves again",
     .peers = 200,
     .up = 20,
     .down = 100,
     .delay = 20,
     .kib = 64 << 10,
     .churn = 0.33,
     .crowd = 60,
     .last = 0},
    {.name = "readers",
     .what = "20 peers, half of them play at 8 Mbit/s with seeks",
     .peers = 20,
     .up = 40,
     .down = 40,
     .seed_up = 100,
     .delay = 20,
     .kib = 128 << 10,
     .readers = 0.5,
     .read_rate = 8,
     .seeks = 6,
     .worst_stall = 2.0},
    {.name = "crowd",
     .what = "10,000 peers at once",
     /* 64 units of 64 KiB, larger than the daemon cuts 4 MiB, which makes fewer events; a tenth of a second for each on this
        uplink. */
     .peers = 10000,
     .neighbours = 6,
     .up = 5,
     .down = 25,
     .seed_up = 50,
     .delay = 10,
     .kib = 4 << 10,
     .piece_kib = 64,
     .unit = 4,
     .last = 1.9},
};

static double mbit(double rate)
{
    return rate * 1e6 / 8;
}

static bool part(struct swarm *swarm, double share)
{
    return share > 0 && sim_uniform(swarm) < share;
}

static void set_up_peer(struct swarm *swarm, const struct scenario *s, uint32_t i)
{
    struct peer *peer = &swarm->peers[i];
    int64_t join = 0;

    peer->swarm = swarm;
    peer->number = i;
    peer->up = mbit(s->up);
    peer->down = mbit(s->down);
    peer->delay = (int64_t)(s->delay * NS_PER_MS / 2);
    if (i == 0) {
        peer->seed = true;
        peer->up = mbit(s->seed_up > 0 ? s->seed_up : s->up);
        sim_at(swarm, 0, (struct event){.type = EVENT_JOIN, .peer = peer});
        return;
    }
    if (s->mixed)
        peer->up *= i % 2 == 0 ? 0.25 : 1.75;
    if (part(swarm, s->riders))
        peer->kind = KIND_RIDER;
    else if (part(swarm, s->liars))
        peer->kind = KIND_LIAR;
    else if (part(swarm, s->broken))
        peer->kind = KIND_BROKEN;
    else if (part(swarm, s->stuck))
        peer->kind = KIND_STUCK;
    else if (part(swarm, s->slow))
        peer->up /= 20;
    if (s->readers > 0 && part(swarm, s->readers)) {
        peer->read_rate = mbit(s->read_rate);
        peer->reading = true;
        peer->seeks = s->seeks;
    }
    if (s->crowd > 0)
        join = (int64_t)(sim_uniform(swarm) * s->crowd * NS_PER_S);
    if (part(swarm, s->churn))
        peer->stays = (int64_t)((5 + sim_uniform(swarm) * 60) * NS_PER_S);
    swarm->to_finish++;
    sim_at(swarm, 1 + join + sim_random(swarm, 20) * NS_PER_MS,
           (struct event){.type = EVENT_JOIN, .peer = peer});
}

static struct swarm *set_up(const struct scenario *s, uint64_t seed, bool no_suggestions)
{
    struct swarm *swarm = xcalloc(1, sizeof(*swarm));

    swarm->random = seed;
    struct geometry whole = geometry_of((uint64_t)s->kib << 10);

    swarm->geometry = parts_of(&whole);
    if (s->piece_kib != 0) {
        swarm->geometry.piece_size = s->piece_kib << 10;
        swarm->geometry.piece_blocks = swarm->geometry.piece_size / BLOCK_SIZE;
        swarm->geometry.pieces =
            (uint32_t)((swarm->geometry.blocks + swarm->geometry.piece_blocks - 1) /
                       swarm->geometry.piece_blocks);
    }
    swarm->unit = s->unit != 0 ? s->unit : 1;
    swarm->neighbours = s->neighbours != 0 ? s->neighbours : 30;
    swarm->tick = s->peers >= 1000 ? NS_PER_S : NS_PER_S / 4;
    swarm->no_suggestions = no_suggestions;
    swarm->limit = 3600 * NS_PER_S;
    swarm->peer_count = s->peers + 1;
    swarm->peers = xcalloc(swarm->peer_count, sizeof(*swarm->peers));
    swarm->here = xcalloc(swarm->peer_count, sizeof(*swarm->here));
    for (uint32_t i = 0; i < swarm->peer_count; i++)
        set_up_peer(swarm, s, i);
    return swarm;
}

static double bound_of(const struct swarm *swarm)
{
    double size = (double)swarm->geometry.size, sum = 0, slowest = 1e18, bound;
    uint32_t count = 0;

    for (uint32_t i = 0; i < swarm->peer_count; i++) {
        const struct peer *peer = &swarm->peers[i];

        if (peer->kind == KIND_GOOD || peer->seed)
            sum += peer->up;
        if (i > 0) {
            count++;
            if (peer->down < slowest)
                slowest = peer->down;
        }
    }
    bound = size / swarm->peers[0].up;
    if (size / slowest > bound)
        bound = size / slowest;
    if (count * size / sum > bound)
        bound = count * size / sum;
    return bound * HEADERS; /* the floor of any transport */
}

/* The least time if a piece is passed on only when all of it is there, and uplinks are as equal as their mean. A member has
 * nothing to give before its first piece; in the time that an uplink takes for a piece, and three delays (it is told of, asked
 * for, and on its way), each that has one makes another, and the seed as many more as its uplink is greater. What uplinks miss
 * meanwhile comes on top of the fluid bound: about log2(N) times that time. */
static double bound_of_pieces(const struct swarm *swarm)
{
    double bound = bound_of(swarm), seed = swarm->peers[0].up, sum = 0, have = 0, missed = 0, mean,
           turn;
    uint32_t count = 0;

    for (uint32_t i = 1; i < swarm->peer_count; i++) {
        sum += swarm->peers[i].kind == KIND_GOOD ? swarm->peers[i].up : 0;
        count += swarm->peers[i].kind == KIND_GOOD;
    }
    if (count == 0)
        return bound;
    mean = sum / count;
    turn = swarm->geometry.piece_size * HEADERS / mean +
           6.0 * (double)swarm->peers[0].delay / NS_PER_S;
    while (have < count) {
        missed += (count - have) * turn;
        have = 2 * have + seed / mean;
    }
    return bound + missed * mean / (sum + seed);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

struct figures {
    double last, median, p99, copies, copies_all, jain, spare, worst_stall, stalled;
    uint32_t finished, left;
    unsigned stalls;
    uint64_t digest;
};

static struct figures measure(const struct swarm *swarm)
{
    struct figures f = {0};
    double *times = xcalloc(swarm->peer_count, sizeof(double)), sum = 0, squares = 0,
           bound = bound_of(swarm);
    uint64_t got = 0, spare = 0;

    for (uint32_t i = 1; i < swarm->peer_count; i++) {
        const struct peer *peer = &swarm->peers[i];

        got += peer->got_blocks;
        spare += peer->spare_blocks;
        f.stalls += peer->stalls;
        f.stalled += (double)peer->stalled / NS_PER_S;
        if ((double)peer->worst_stall / NS_PER_S > f.worst_stall)
            f.worst_stall = (double)peer->worst_stall / NS_PER_S;
        if (peer->finished == 0) {
            f.left++;
            continue;
        }
        times[f.finished] = (double)(peer->finished - peer->joined) / NS_PER_S;
        sum += times[f.finished];
        squares += times[f.finished] * times[f.finished];
        f.finished++;
    }
    qsort(times, f.finished, sizeof(double), by_value);
    if (f.finished > 0) {
        f.last = times[f.finished - 1] / bound;
        f.median = times[f.finished / 2] / bound;
        f.p99 = times[(uint32_t)(0.99 * (f.finished - 1))] / bound;
        f.jain = sum * sum / (f.finished * squares);
    }
    f.copies = (double)swarm->seed_blocks_when_out / (double)swarm->geometry.blocks;
    f.copies_all = (double)swarm->peers[0].sent_blocks / (double)swarm->geometry.blocks;
    f.spare = (double)spare / (double)(got + spare + 1);
    f.digest = swarm->digest;
    free(times);
    return f;
}

static bool judge(const struct scenario *s, const struct figures *f, const struct swarm *swarm)
{
    uint32_t expected = 0;

    for (uint32_t i = 1; i < swarm->peer_count; i++)
        expected += swarm->peers[i].stays == 0;
    return f->finished >= expected && (s->last == 0 || f->last <= s->last) &&
           (s->median == 0 || f->median <= s->median) &&
           (s->copies == 0 || f->copies <= s->copies) &&
           (s->worst_stall == 0 || f->worst_stall <= s->worst_stall);
}

static void tear_down(struct swarm *swarm)
{
    for (uint32_t i = 0; i < swarm->peer_count; i++) {
        if (swarm->peers[i].here)
            peer_free(&swarm->peers[i]);
    }
    free(swarm->heap);
    free(swarm->here);
    free(swarm->peers);
    free(swarm);
}

struct options {
    uint64_t seed;
    bool no_suggestions, twice, timeline;
};

/* How much of its uplink each used in the second that has passed, in percent: the first seed, then the others. */
static void print_second(struct swarm *swarm, uint64_t *before)
{
    printf("%4d:", (int)(swarm->now / NS_PER_S));
    for (uint32_t i = 0; i < swarm->peer_count; i++) {
        const struct peer *peer = &swarm->peers[i];

        printf(" %4.0f",
               (double)(peer->sent_blocks - before[i]) * BLOCK_SIZE * HEADERS * 100 / peer->up);
        before[i] = peer->sent_blocks;
    }
    printf("\n");
}

static void run_to_end(struct swarm *swarm, bool timeline)
{
    uint64_t *before = xcalloc(swarm->peer_count, sizeof(*before));
    int64_t next = NS_PER_S;
    struct event event;

    while (swarm->to_finish > 0 && sim_next(swarm, &event) && swarm->now < swarm->limit) {
        if (timeline && swarm->now >= next) {
            print_second(swarm, before);
            next += NS_PER_S;
        }
        peer_event(swarm, &event);
    }
    free(before);
}

static uint64_t run_once(const struct scenario *s, const struct options *options, bool *good)
{
    struct swarm *swarm = set_up(s, options->seed, options->no_suggestions);
    struct figures f;
    double bound = bound_of(swarm), pieces = bound_of_pieces(swarm);
    clock_t began = clock();

    run_to_end(swarm, options->timeline);
    f = measure(swarm);
    *good = judge(s, &f, swarm);
    printf("%-11s %6u peers  %u units  bound %.1f s (whole units %.1f s)  last %.3f (%.3f)  p99 "
           "%.3f  median %.3f  "
           "copies %.3f until out, %.2f in all  fairness %.3f  vain %.2f%%",
           s->name, s->peers, swarm->geometry.pieces, bound, pieces, f.last,
           f.last * bound / pieces, f.p99, f.median, f.copies, f.copies_all, f.jain, 100 * f.spare);
    if (s->readers > 0)
        printf("  stalls %u, %.1f s, worst %.2f s", f.stalls, f.stalled, f.worst_stall);
    if (f.left > 0)
        printf("  unfinished %u", f.left);
    printf("  digest %016llx\n", (unsigned long long)f.digest);
    if (!*good)
        printf("  MISSED: repeat with --seed %llu %s\n", (unsigned long long)options->seed,
               s->name);
    fflush(stdout);
    fprintf(stderr, "%-11s %.1f M events, %.1f s of CPU\n", s->name, (double)swarm->events / 1e6,
            (double)(clock() - began) / CLOCKS_PER_SEC);
    tear_down(swarm);
    return f.digest;
}

static bool run(const struct scenario *s, const struct options *options)
{
    bool good, again;
    uint64_t digest = run_once(s, options, &good);

    if (options->twice && run_once(s, options, &again) != digest) {
        printf("  NOT THE SAME TWICE: %s\n", s->name);
        return false;
    }
    return good;
}

static double number(const char *text)
{
    char *end;
    double value = text == NULL ? NAN : strtod(text, &end);

    if (text == NULL || *end != '\0' || !(value >= 0)) {
        fprintf(stderr, "sim: '%s' is not a number\n", text == NULL ? "" : text);
        exit(2);
    }
    return value;
}

static const struct scenario *named(const char *name)
{
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    }
    fprintf(stderr, "sim: there is no scenario '%s'; see --list\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    struct scenario own = {
        .name = "own", .neighbours = 30, .up = 20, .down = 100, .delay = 10, .kib = 100 << 10};
    struct options options = {.seed = 1};
    bool good = true, any = false;

    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = argv[i + 1];

        if (option[0] != '-')
            continue;
        if (strcmp(option, "--list") == 0) {
            for (size_t k = 0; k < sizeof(scenarios) / sizeof(scenarios[0]); k++)
                printf("%-12s %s\n", scenarios[k].name, scenarios[k].what);
            return 0;
        }
        if (strcmp(option, "--no-suggestions") == 0) {
            options.no_suggestions = true;
            continue;
        }
        if (strcmp(option, "--twice") == 0) {
            options.twice = true;
            continue;
        }
        if (strcmp(option, "--timeline") == 0) {
            options.timeline = true;
            continue;
        }
        if (strcmp(option, "--mixed") == 0) {
            own.mixed = true;
            continue;
        }
        if (strcmp(option, "--seed") == 0)
            options.seed = (uint64_t)number(value);
        else if (strcmp(option, "--peers") == 0)
            own.peers = (uint32_t)number(value);
        else if (strcmp(option, "--neighbours") == 0)
            own.neighbours = (uint32_t)number(value);
        else if (strcmp(option, "--up") == 0)
            own.up = number(value);
        else if (strcmp(option, "--down") == 0)
            own.down = number(value);
        else if (strcmp(option, "--seed-up") == 0)
            own.seed_up = number(value);
        else if (strcmp(option, "--delay") == 0)
            own.delay = number(value);
        else if (strcmp(option, "--mib") == 0)
            own.kib = (uint32_t)(number(value) * 1024);
        else if (strcmp(option, "--unit") == 0)
            own.unit = (uint32_t)number(value);
        else if (strcmp(option, "--piece") == 0)
            own.piece_kib = (uint32_t)number(value);
        else {
            fprintf(stderr, "sim: unknown option '%s'\n", option);
            return 2;
        }
        argv[i] = argv[i + 1] = NULL;
        i++;
    }
    if (own.peers > 0)
        return run(&own, &options) ? 0 : 1;
    for (int i = 1; i < argc; i++) {
        if (argv[i] != NULL && argv[i][0] != '-') {
            any = true;
            good &= run(named(argv[i]), &options);
        }
    }
    for (size_t i = 0; !any && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        good &= run(&scenarios[i], &options);
    return good ? 0 : 1;
}
