"""How members find each other when not every way between them is open: hosts in network namespaces of their own."""
import os
import subprocess
import threading
import time

from harness import BIN, Member, SwarmTest, Tracker, main, pattern, wait_for


class Hosts:
    """`hub` with the tracker, and hosts that are joined to it by a link each, and to nobody else: it forwards nothing."""

    def __init__(self, test, *names):
        self.prefix = f"p2p{os.getpid()}"
        self.names = ("hub",) + names
        test.addCleanup(self.remove)
        for name in self.names:
            self.ip("netns", "add", self.space(name))
            self.ip("-n", self.space(name), "link", "set", "lo", "up")
        for at, name in enumerate(names, 1):
            self.join("hub", name, f"10.77.{at}")

    def space(self, name):
        return f"{self.prefix}{name}"

    @staticmethod
    def ip(*arguments):
        subprocess.run(("ip",) + arguments, check=True, capture_output=True)

    def join(self, one, other, network):
        """A link between two hosts, with addresses NETWORK.1 and NETWORK.2, and the same for IPv6."""
        ends = f"{one}-{other}"[:14], f"{other}-{one}"[:14]
        self.ip("link", "add", ends[0], "netns", self.space(one), "type", "veth", "peer", "name", ends[1], "netns",
                self.space(other))
        for at, (name, end) in enumerate(zip((one, other), ends), 1):
            self.ip("-n", self.space(name), "addr", "add", f"{network}.{at}/24", "dev", end)
            six = "fd" + network.replace(".", ":").split(":", 1)[1]
            self.ip("-n", self.space(name), "addr", "add", f"{six}::{at}/64", "dev", end, "nodad")
            self.ip("-n", self.space(name), "link", "set", end, "up")

    def office(self, network, *names):
        """These hosts move behind a router of their own: one network inside, one address outside, and nobody gets in from there."""
        self.names += ("router",)
        router = self.space("router")
        self.ip("netns", "add", router)
        self.ip("-n", router, "link", "set", "lo", "up")
        self.join("hub", "router", "10.77.200")
        self.ip("-n", router, "link", "add", "inside", "type", "bridge")
        self.ip("-n", router, "addr", "add", f"{network}.1/24", "dev", "inside")
        self.ip("-n", router, "link", "set", "inside", "up")
        for at, name in enumerate(names, 2):
            host = self.space(name)
            self.ip("-n", host, "link", "del", f"{name}-hub"[:14])
            self.ip("link", "add", "office", "netns", host, "type", "veth", "peer", "name", f"to-{name}"[:14], "netns", router)
            self.ip("-n", router, "link", "set", f"to-{name}"[:14], "master", "inside", "up")
            self.ip("-n", host, "addr", "add", f"{network}.{at}/24", "dev", "office")
            self.ip("-n", host, "link", "set", "office", "up")
            self.ip("-n", host, "route", "add", "default", "via", f"{network}.1")
        self.run_in("router", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for rule in ("add table ip nat", "add chain ip nat post { type nat hook postrouting priority 100 ; }",
                     "add rule ip nat post oifname router-hub masquerade",
                     "add table ip guard", "add chain ip guard pass { type filter hook forward priority 0 ; policy drop ; }",
                     "add rule ip guard pass iifname inside accept", "add rule ip guard pass ct state established accept"):
            self.run_in("router", "nft", rule)

    def run_in(self, name, *arguments):
        subprocess.run(self.inside(name, *arguments), check=True, capture_output=True)

    def inside(self, name, *arguments):
        return ["nsenter", f"--net=/run/netns/{self.space(name)}", *arguments]

    def remove(self):
        for name in self.names:
            subprocess.run(("ip", "netns", "del", self.space(name)), capture_output=True)


class HubTracker(Tracker):
    """On all addresses of the hub."""

    def start(self):
        hosts = self.test.hosts
        self.arguments = hosts.inside("hub", f"{BIN}/p2ptracker", "serve", "--data", self.data, "--listen",
                                      f"0.0.0.0:{self.port}")
        found = super(Tracker, self).start(r"p2ptracker: ready on \S+:(\d+)")
        self.port = int(found.group(1))


class Meeting(SwarmTest):
    def begin(self, *names):
        self.hosts = Hosts(self, *names)
        self.the_tracker = HubTracker(self)
        self.the_tracker.start()

    def host_member(self, name, peer, hub):
        """A member whose daemon runs on the host of that name; `hub` is the hub's address as seen from there."""
        member = Member(self, name)
        self.all_members.append(member)
        with open(os.path.join(member.home, "p2pd.conf"), "w") as conf:
            conf.write("[peer]\n" + peer)
        member.daemon.arguments = self.hosts.inside(name, f"{BIN}/p2pd")
        member.start_daemon()
        url = self.the_tracker.invite()
        member.ctl("register", url.replace(url.split("/")[2], f"{hub}:{self.the_tracker.port}"), name)
        member.start_mount()
        return member

    def test_a_member_that_cannot_be_dialled_is_asked_to_dial(self):
        self.begin("ann", "ben")
        self.hosts.join("ann", "ben", "10.78.0")
        # What ann announces leads nowhere, without an answer; and what she listens on is her own machine's.
        ann = self.host_member("ann", "listen = 127.0.0.1:0\nannounce = 10.78.0.99:7701\n", "10.77.1.1")
        ben = self.host_member("ben", "listen = 0.0.0.0:0\n", "10.77.2.1")
        data = pattern(3 << 20, 1)
        ann.write("f", data)
        ben.await_file("f", len(data))
        began = time.monotonic()
        with open(ben.path("f"), "rb") as file:
            self.assert_same_bytes(data[:100], file.read(100))
        self.assertLess(time.monotonic() - began, 5)
        self.assert_same_bytes(data, ben.read("f"))
        # She came to him: from a port that she does not listen on.
        self.assertRegex(ben.ctl("peers").stdout, r"ann .* 10\.78\.0\.1:\d+ +in ")

    def test_a_way_that_opens_later_is_taken(self):
        self.begin("ann", "ben")
        ann = self.host_member("ann", "listen = [::]:0\n", "10.77.1.1")
        ben = self.host_member("ben", "listen = [::]:0\n", "10.77.2.1")
        data = pattern(200000, 2)
        ann.write("f", data)
        ben.await_file("f", len(data))
        got = []
        reader = threading.Thread(target=lambda: got.append(ben.read("f")))
        reader.start()
        wait_for("a reader that waits", lambda: "1" in ben.ctl("status", "/f").stdout)
        self.hosts.join("ann", "ben", "10.78.0")
        reader.join(40)
        self.assertEqual([data], got)

    def test_members_behind_one_router_meet_inside_it(self):
        """Three in an office, with one address outside; and one at home, who can dial none of them."""
        names = "ann", "ben", "cid"
        self.begin(*names, "dan")
        self.hosts.office("192.168.7", *names)
        self.hosts.run_in("hub", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for host, gateway in ("dan", "10.77.4.1"), ("router", "10.77.200.1"):
            self.hosts.run_in(host, "ip", "route", "add", "default", "via", gateway)
        ann, ben, cid = (self.host_member(name, "listen = 0.0.0.0:0\n", "10.77.200.1") for name in names)
        dan = self.host_member("dan", "listen = 0.0.0.0:0\n", "10.77.4.1")
        data = pattern(3 << 20, 3)
        ann.write("f", data)
        for who in ben, cid, dan:
            who.await_file("f", len(data))
        for who in ben, cid:
            self.assert_same_bytes(data, who.read("f"), who.name)
        self.assertRegex(ben.ctl("peers").stdout, r"ann .* 192\.168\.7\.2:\d+ +(in|out) ")
        for line in cid.ctl("peers").stdout.splitlines()[1:]:
            self.assertRegex(line, r" 192\.168\.7\.[23]:\d+ +(in|out) ")
        # Who is outside is dialled from inside.
        self.assert_same_bytes(data, dan.read("f"))
        self.assertRegex(dan.ctl("peers").stdout, r" 10\.77\.200\.2:\d+ +in ")
        # And what came from outside is found inside by the others.
        more = pattern(2 << 20, 4)
        dan.write("g", more)
        for who in ann, ben, cid:
            who.await_file("g", len(more))
            self.assert_same_bytes(more, who.read("g"), who.name)


if __name__ == "__main__":
    main()
