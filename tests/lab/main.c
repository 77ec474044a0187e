/* lab: hosts in network namespaces, joined by links of given rate, delay, queue and loss. The command line, the
 * process that keeps the house, and the loop.
 *
 * Two processes. The one that was started is the guardian: it waits for the other's end, passes signals on, and then
 * kills whatever still runs in the hosts. Its child has the links. Each ends with the other, and as every device and
 * namespace is only a descriptor of theirs, nothing stays behind even if both are killed.
 *
 * Exit status: 0 done, 1 failed (one line on standard error), 2 wrong usage. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/number.h"
#include "tests/lab/control.h"

enum { DONE = 0, FAILED = 1, USAGE = 2 };

#define CLIENTS_MOST 64
#define SECOND_NS    INT64_C(1000000000)

struct start {
    const char *name;
    uint64_t count, seed;
    bool attached;
    struct link_setting all;
    char **own; /* "N:SETTING", as given, in order */
    unsigned own_count;
};

static void print_help(void)
{
    printf(
        "lab joins hosts, each a network namespace, by emulated links. It needs root.\n\n"
        "  lab --hosts N [--link SETTING] [--host N:SETTING]... [--name NAME] [--seed N] "
        "[--attached]\n"
        "      make N hosts (10.77.0.1, fd77::1 and so on) and run until Ctrl-C\n"
        "  lab exec HOST COMMAND...     run a command in a host\n"
        "  lab set HOST|all SETTING     change links while the lab runs\n"
        "  lab show                     the hosts and their links\n"
        "  lab stats, lab clear         counters as JSON; back to 0\n"
        "  lab quit                     end the lab and what runs in its hosts\n"
        "  lab --help\n\n"
        "SETTING is KEY=VALUE[,KEY=VALUE...]:\n"
        "  up, down, rate    bit/s of IP packets to and from the host (20mbit); rate is both; 0: "
        "no "
        "limit\n"
        "  delay             one way, on each of its directions (5ms): a round trip between two "
        "hosts takes\n"
        "                    the four delays; delay-up, delay-down\n"
        "  queue             in front of the wire: bytes (64K), packets (50p), auto (100 ms); "
        "queue-up, queue-down\n"
        "  loss              of packets (0.1%% or 0.001); loss-up, loss-down\n"
        "  dial=no           nobody can open a TCP connection to the host\n\n"
        "  --link SETTING    for every host; --host 2:SETTING for host 2 on top\n"
        "  --seed N          which packets are lost (default 1)\n"
        "  --name NAME       several labs at once (default lab, or P2P_LAB); goes in front of the "
        "verb\n"
        "  --attached        end when standard input does\n\n"
        "  lab --hosts 2 --link rate=100mbit,delay=5ms &\n"
        "  lab exec 1 ping -c 3 10.77.0.2\n");
}

static int wrong_use(const char *what)
{
    log_error("%s; see lab --help", what);
    return USAGE;
}

/* --- the loop ------------------------------------------------------------------------------------------- */

struct loop_state {
    struct net *net;
    int epoll, listener, signals;
    unsigned clients;
    bool quit;
};

/* What a descriptor of the loop is, in the upper half of epoll's data; the descriptor or host in the lower. */
enum kind { HOST, LISTENER, CLIENT, SIGNALS, INPUT };

static bool watch(const struct loop_state *loop, int fd, enum kind kind, unsigned value)
{
    struct epoll_event event = {.events = EPOLLIN};

    event.data.u64 = (uint64_t)kind << 32 | value;
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void accept_client(struct loop_state *loop)
{
    int client = accept4(loop->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (client < 0)
        return;
    if (loop->clients >= CLIENTS_MOST || !watch(loop, client, CLIENT, (unsigned)client))
        close(client);
    else
        loop->clients++;
}

static void serve_client(struct loop_state *loop, int client)
{
    if (control_serve(loop->net, client, &loop->quit))
        return;
    close(client);
    loop->clients--;
}

/* Standard input says nothing; its end ends the lab. */
static void read_input(struct loop_state *loop)
{
    char waste[256];

    if (read(STDIN_FILENO, waste, sizeof waste) <= 0)
        loop->quit = true;
}

static void handle(struct loop_state *loop, uint64_t what, int64_t now_ns, int64_t late_ns)
{
    unsigned value = (unsigned)what;

    switch ((enum kind)(what >> 32)) {
    case HOST:
        net_receive(loop->net, &loop->net->hosts[value], now_ns, late_ns);
        break;
    case LISTENER:
        accept_client(loop);
        break;
    case CLIENT:
        serve_client(loop, (int)value);
        break;
    case SIGNALS:
        loop->quit = true;
        break;
    case INPUT:
        read_input(loop);
        break;
    }
}

static void turn(struct loop_state *loop)
{
    struct epoll_event events[64];
    struct timespec wait, *limit = NULL;
    int64_t now_ns = clock_now(), due_ns = net_run(loop->net, now_ns);
    int64_t late_ns = 0;
    int count;

    if (due_ns != INT64_MAX) {
        wait.tv_sec = (time_t)((due_ns - now_ns) / SECOND_NS);
        wait.tv_nsec = (long)((due_ns - now_ns) % SECOND_NS);
        limit = &wait;
    }
    count = epoll_pwait2(loop->epoll, events, 64, limit, NULL);
    now_ns = clock_now();
    if (now_ns > due_ns)
        late_ns = now_ns - due_ns;
    for (int i = 0; i < count; i++)
        handle(loop, events[i].data.u64, now_ns, late_ns);
}

/* The links' process. Its priority is a real-time one if that is allowed: a link that waits for the processor
 * is a slower link. */
static int run_links(struct net *net, int listener, const struct start *start)
{
    struct loop_state loop = {.net = net, .listener = listener};
    struct sched_param priority = {.sched_priority = 1};
    sigset_t signals;
    bool good;

    prctl(PR_SET_PDEATHSIG, SIGTERM);
    prctl(PR_SET_TIMERSLACK, 1);
    sched_setscheduler(0, SCHED_RR, &priority);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    loop.signals = signalfd(-1, &signals, SFD_CLOEXEC);
    loop.epoll = epoll_create1(EPOLL_CLOEXEC);
    good = loop.signals >= 0 && loop.epoll >= 0 && watch(&loop, listener, LISTENER, 0) &&
           watch(&loop, loop.signals, SIGNALS, 0);
    for (unsigned i = 0; i < net->count && good; i++)
        good = watch(&loop, net->hosts[i].tun, HOST, i);
    /* What cannot be watched (a file, /dev/null) says nothing more either. */
    if (good && start->attached)
        loop.quit = !watch(&loop, STDIN_FILENO, INPUT, 0);
    if (!good) {
        log_error("cannot watch the devices: %s", strerror(errno));
        return FAILED;
    }
    log_info("ready: %u hosts, 10.77.0.1 to 10.77.0.%u", net->count, net->count);
    while (!loop.quit)
        turn(&loop);
    return DONE;
}

/* --- the guardian --------------------------------------------------------------------------------------- */

static int guard(pid_t child, const struct host *hosts, unsigned count, const sigset_t *signals)
{
    int status = 0;

    for (;;) {
        int number = 0;
        sigwait(signals, &number);
        if (number != SIGCHLD)
            kill(child, SIGTERM);
        else if (waitpid(child, &status, WNOHANG) == child)
            break;
    }
    hosts_sweep(hosts, count);
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    log_error("the process with the links was killed by signal %d", WTERMSIG(status));
    return FAILED;
}

static int run(const struct start *start, struct net *net, int listener)
{
    sigset_t signals;
    pid_t parent = getpid(), child;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    child = fork();
    if (child < 0) {
        log_error("cannot fork: %s", strerror(errno));
        return FAILED;
    }
    if (child == 0) {
        int status = run_links(net, listener, start);
        if (getppid() != parent) /* nobody is left to do it */
            hosts_sweep(net->hosts, net->count);
        _exit(status);
    }
    close(listener);
    for (unsigned i = 0; i < net->count; i++)
        close(net->hosts[i].tun);
    return guard(child, net->hosts, net->count, &signals);
}

/* --- the verbs ------------------------------------------------------------------------------------------ */

/* Links in front of the first host; NULL, or what is wrong. */
static const char *settings_of(const struct start *start, struct link_setting *settings)
{
    for (uint64_t i = 0; i < start->count; i++)
        settings[i] = start->all;
    for (unsigned i = 0; i < start->own_count; i++) {
        char *text = start->own[i], *colon = strchr(text, ':');
        uint64_t number;
        const char *fault;

        if (colon == NULL)
            return "--host takes N:SETTING";
        *colon = '\0';
        if (!number_parse(text, 1, start->count, &number))
            return "--host names a host that there is not";
        fault = link_setting_parse(colon + 1, &settings[number - 1]);
        if (fault != NULL)
            return fault;
    }
    return NULL;
}

static int begin(const struct start *start)
{
    struct link_setting *settings = xcalloc(start->count, sizeof *settings);
    struct host *hosts = xcalloc(start->count, sizeof *hosts);
    struct net net;
    int listener, status = FAILED;
    const char *fault = settings_of(start, settings);

    if (fault != NULL) {
        status = wrong_use(fault);
        goto out;
    }
    if (geteuid() != 0) {
        log_error("making network namespaces and devices needs root");
        goto out;
    }
    listener = control_listen(start->name);
    if (listener < 0)
        goto out;
    for (unsigned i = 0; i < start->count; i++) {
        if (host_open(&hosts[i], i + 1, &settings[i], start->seed * 1000) != 0)
            goto out;
    }
    net_init(&net, hosts, (unsigned)start->count);
    status = run(start, &net, listener);
out:
    free(settings);
    free(hosts);
    return status;
}

static int run_in_host(const char *name, int count, char **words)
{
    static char answer[CONTROL_ANSWER_MAX];
    char command[64];
    uint64_t host;
    int netns;

    if (count < 3 || !number_parse(words[1], 1, HOSTS_MOST, &host))
        return wrong_use("exec takes a host's number and a command");
    snprintf(command, sizeof command, "enter %" PRIu64, host);
    if (control_ask(name, command, answer, &netns) != 0)
        return FAILED;
    if (netns < 0 || setns(netns, CLONE_NEWNET) != 0) {
        log_error("cannot enter host %" PRIu64 ": %s", host, strerror(errno));
        return FAILED;
    }
    close(netns);
    execvp(words[2], words + 2);
    log_error("cannot run %s: %s", words[2], strerror(errno));
    return FAILED;
}

static int ask(const char *name, int count, char **words)
{
    static char answer[CONTROL_ANSWER_MAX];
    char command[CONTROL_COMMAND_MAX];
    const char *data;
    int used = snprintf(command, sizeof command, "%s %s %s", words[0], count > 1 ? words[1] : "",
                        count > 2 ? words[2] : "");

    if (used < 0 || (size_t)used >= sizeof command || count > 3)
        return wrong_use("too long a command");
    if (control_ask(name, command, answer, NULL) != 0)
        return FAILED;
    data = strchr(answer, '\n');
    if (data != NULL)
        printf("%s%s", data + 1, answer[strlen(answer) - 1] == '\n' ? "" : "\n");
    return DONE;
}

/* --- the command line ----------------------------------------------------------------------------------- */

static const struct option long_options[] = {
    {"hosts", required_argument, NULL, 'n'}, {"link", required_argument, NULL, 'l'},
    {"host", required_argument, NULL, 'o'},  {"name", required_argument, NULL, 'N'},
    {"seed", required_argument, NULL, 's'},  {"attached", no_argument, NULL, 'a'},
    {"help", no_argument, NULL, 'h'},        {NULL, 0, NULL, 0},
};

/* -1: go on; else the exit status. */
static int take_option(int option, struct start *start)
{
    const char *fault = NULL;

    switch (option) {
    case 'n':
        if (!number_parse(optarg, 1, HOSTS_MOST, &start->count))
            fault = "--hosts takes a number from 1 to 250";
        break;
    case 'l':
        fault = link_setting_parse(optarg, &start->all);
        break;
    case 'o':
        start->own = xrealloc(start->own, (start->own_count + 1) * sizeof *start->own);
        start->own[start->own_count++] = optarg;
        break;
    case 'N':
        start->name = optarg;
        break;
    case 's':
        if (!number_parse(optarg, 0, UINT32_MAX, &start->seed))
            fault = "--seed takes a number";
        break;
    case 'a':
        start->attached = true;
        break;
    case 'h':
        print_help();
        return DONE;
    default:
        return wrong_use("unknown option, or an argument is missing");
    }
    return fault == NULL ? -1 : wrong_use(fault);
}

int main(int argc, char **argv)
{
    const char *named = getenv("P2P_LAB");
    struct start start = {.name = named == NULL ? "lab" : named, .seed = 1};
    int option, status = -1;

    log_init("lab", LOG_LEVEL_INFO, false);
    opterr = 0;
    while (status < 0 && (option = getopt_long(argc, argv, "+h", long_options, NULL)) != -1)
        status = take_option(option, &start);
    argc -= optind;
    argv += optind;
    if (status >= 0)
        ;
    else if (argc == 0 && start.count > 0)
        status = begin(&start);
    else if (argc == 0)
        status = wrong_use("--hosts or a verb is missing");
    else if (start.count > 0)
        status = wrong_use("--hosts starts a lab and takes no verb");
    else if (strcmp(argv[0], "exec") == 0)
        status = run_in_host(start.name, argc, argv);
    else
        status = ask(start.name, argc, argv);
    free(start.own);
    return status;
}
