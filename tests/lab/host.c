/* Making a host's namespace, its TUN device and its addresses; finding the host that a packet is for.
 *
 * Owns nothing: the descriptors are the host's. Single thread: a namespace is entered for the time of
 * making it, so no other thread may run while host_open does. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
 *
 * The device has a /16 (and a /64) on link and no neighbour discovery: every address of the lab is
 * reached through it, and this program is the only router. */
#include "tests/lab/host.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/ipv6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/number.h"

#define DEVICE      "lab0"
#define TX_QUEUE    2000 /* packets the kernel keeps for us while we do not read */
#define SWEEP_TURNS 500  /* of 10 ms: how long killed processes may take to go */

static int complain(const char *what)
{
    log_error("cannot %s: %s", what, strerror(errno));
    return -1;
}

static int request(int socket, unsigned long what, struct ifreq *argument, const char *say)
{
    return ioctl(socket, what, argument) == 0 ? 0 : complain(say);
}

static void name_device(struct ifreq *request)
{
    memset(request, 0, sizeof *request);
    memcpy(request->ifr_name, DEVICE, sizeof DEVICE);
}

static int bring_up(int socket, const char *name)
{
    struct ifreq ask;

    memset(&ask, 0, sizeof ask);
    memcpy(ask.ifr_name, name, strlen(name) + 1);
    if (request(socket, SIOCGIFFLAGS, &ask, "look at an interface") != 0)
        return -1;
    ask.ifr_flags |= IFF_UP;
    return request(socket, SIOCSIFFLAGS, &ask, "bring an interface up");
}

static int give_address4(int socket, unsigned number)
{
    struct ifreq ask;
    struct sockaddr_in address = {.sin_family = AF_INET};

    name_device(&ask);
    address.sin_addr.s_addr = htonl(0x0a4d0000u | number);
    memcpy(&ask.ifr_addr, &address, sizeof address);
    if (request(socket, SIOCSIFADDR, &ask, "give an IPv4 address") != 0)
        return -1;
    address.sin_addr.s_addr = htonl(0xffff0000u);
    memcpy(&ask.ifr_netmask, &address, sizeof address);
    return request(socket, SIOCSIFNETMASK, &ask, "give an IPv4 netmask");
}

/* A kernel without IPv6 is no fault: the lab is then one of IPv4. */
static int give_address6(unsigned number)
{
    struct in6_ifreq ask = {.ifr6_prefixlen = 64};
    int socket6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int result = 0;

    if (socket6 < 0)
        return errno == EAFNOSUPPORT ? 0 : complain("make an IPv6 socket");
    ask.ifr6_ifindex = (int)if_nametoindex(DEVICE);
    ask.ifr6_addr.s6_addr[0] = 0xfd;
    ask.ifr6_addr.s6_addr[1] = 0x77;
    ask.ifr6_addr.s6_addr[15] = (uint8_t)number;
    if (ioctl(socket6, SIOCSIFADDR, &ask) != 0 && errno != EACCES && errno != EOPNOTSUPP)
        result = complain("give an IPv6 address");
    close(socket6);
    return result;
}

static int configure(unsigned number)
{
    struct ifreq ask;
    int result = -1;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (control < 0)
        return complain("make a socket");
    name_device(&ask);
    ask.ifr_mtu = LINE_MTU;
    if (request(control, SIOCSIFMTU, &ask, "set the MTU") != 0)
        goto out;
    name_device(&ask);
    ask.ifr_qlen = TX_QUEUE;
    if (request(control, SIOCSIFTXQLEN, &ask, "set the device's queue") != 0)
        goto out;
    if (bring_up(control, "lo") == 0 && bring_up(control, DEVICE) == 0 &&
        give_address4(control, number) == 0 && give_address6(number) == 0)
        result = 0;
out:
    close(control);
    return result;
}

static int open_tun(void)
{
    struct ifreq ask;
    int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (tun < 0)
        return complain("open /dev/net/tun");
    name_device(&ask);
    ask.ifr_flags = IFF_TUN | IFF_NO_PI;
    if (ioctl(tun, TUNSETIFF, &ask) != 0) {
        complain("make a TUN device");
        close(tun);
        return -1;
    }
    return tun;
}

/* Inside a namespace of its own, which the caller leaves. */
static int make(struct host *host)
{
    struct stat about;

    host->netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (host->netns < 0 || fstat(host->netns, &about) != 0)
        return complain("open a network namespace");
    host->netns_device = about.st_dev;
    host->netns_inode = about.st_ino;
    host->tun = open_tun();
    return host->tun < 0 ? -1 : configure(host->number);
}

int host_open(struct host *host, unsigned number, const struct link_setting *setting, uint64_t seed)
{
    int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    int result = -1;

    *host = (struct host){.number = number, .tun = -1, .netns = -1, .setting = *setting};
    line_init(&host->up, &setting->up, seed + 2 * (uint64_t)number);
    line_init(&host->down, &setting->down, seed + 2 * (uint64_t)number + 1);
    if (home < 0)
        return complain("open the network namespace");
    if (unshare(CLONE_NEWNET) != 0) {
        complain("make a network namespace");
    } else {
        result = make(host);
        if (setns(home, CLONE_NEWNET) != 0)
            result = complain("go back to the network namespace");
    }
    close(home);
    return result;
}

unsigned host_of_packet(const uint8_t *packet, size_t length)
{
    if (length >= sizeof(struct iphdr) && packet[0] >> 4 == 4) {
        const uint8_t *to = packet + offsetof(struct iphdr, daddr);
        return to[0] == 10 && to[1] == 77 && to[2] == 0 ? to[3] : 0;
    }
    if (length >= sizeof(struct ip6_hdr) && packet[0] >> 4 == 6) {
        static const uint8_t prefix[15] = {0xfd, 0x77};
        const uint8_t *to = packet + offsetof(struct ip6_hdr, ip6_dst);
        return memcmp(to, prefix, sizeof prefix) == 0 ? to[15] : 0;
    }
    return 0;
}

bool packet_dials(const uint8_t *packet, size_t length)
{
    const uint8_t *tcp;
    size_t header;

    if (length >= sizeof(struct iphdr) && packet[0] >> 4 == 4) {
        header = (size_t)(packet[0] & 15) * 4;
        if (packet[9] != IPPROTO_TCP)
            return false;
    } else if (length >= sizeof(struct ip6_hdr) && packet[0] >> 4 == 6) {
        header = sizeof(struct ip6_hdr);
        if (packet[6] != IPPROTO_TCP)
            return false;
    } else {
        return false;
    }
    if (length < header + sizeof(struct tcphdr))
        return false;
    tcp = packet + header;
    return (tcp[13] & (TH_SYN | TH_ACK)) == TH_SYN;
}

/* --- what runs in the hosts ----------------------------------------------------------------------------- */

static bool lives_in(const char *pid, const struct host *hosts, unsigned count)
{
    char path[64];
    struct stat about;

    snprintf(path, sizeof path, "/proc/%.20s/ns/net", pid);
    if (stat(path, &about) != 0)
        return false;
    for (unsigned i = 0; i < count; i++) {
        if (hosts[i].netns_inode == about.st_ino && hosts[i].netns_device == about.st_dev)
            return true;
    }
    return false;
}

static bool sweep_once(const struct host *hosts, unsigned count)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;
    bool any = false;
    uint64_t pid;

    if (proc == NULL)
        return false;
    while ((entry = readdir(proc)) != NULL) {
        if (!number_parse(entry->d_name, 2, INT32_MAX, &pid) || (pid_t)pid == getpid() ||
            !lives_in(entry->d_name, hosts, count))
            continue;
        kill((pid_t)pid, SIGKILL);
        any = true;
    }
    closedir(proc);
    return any;
}

void hosts_sweep(const struct host *hosts, unsigned count)
{
    for (int turn = 0; turn < SWEEP_TURNS && sweep_once(hosts, count); turn++)
        usleep(10000);
}
