"""How near to the physical limit a swarm comes: one seed and N leechers in the lab of tests/lab, all fetching at once.

usage: bench_swarm.py [--leechers N] [--mib N] [--up MBIT] [--down MBIT] [--delay MS] [--mixed]
                      [--timeline] [--libtorrent] [--churn | --rider | --far]
       (P2P_BIN=build/release/bin, as root)

Prints when the last and the middle leecher had all, over the fluid bound max(F/u_seed, F/d_min, N F/(u_seed + sum u)), and
how many copies of the file the seed's uplink carried, and how many it had given (blocks only) when each of its pieces had gone
out once; what each leecher received, of the file, headers included, and what of
it came in vain. Then what decides whether the figures mean anything: how many packets the
emulated queues dropped, how late the emulator was at worst, how busy this machine's processors were (near 1 the figures are
the machine's) and how much of that the peers and the emulator took.

  --mixed       uplinks of a quarter and seven quarters, by turns
  --timeline    how much of its uplink the seed and each leecher used in each second, in percent
  --libtorrent  the same swarm of libtorrent's peers afterwards (Debian's python3-libtorrent), all of which know each other
  --churn       every fourth leecher's daemon is killed at a third of the bound and comes back at two thirds; the others' times
                count
  --rider       the last leecher serves nothing: p2pctl limit --up 4K
  --far         the last leecher has ten times the uplink, 100 ms away, and has the whole file
"""
import argparse
import glob
import json
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../system"))
from harness import BIN, SwarmTest, wait_for  # noqa: E402

parser = argparse.ArgumentParser()
for name, value in (("leechers", 8), ("mib", 100), ("up", 40.0), ("down", 200.0), ("delay", 10.0)):
    parser.add_argument(f"--{name}", type=type(value), default=value)
for name in ("mixed", "timeline", "libtorrent", "churn", "rider", "far"):
    parser.add_argument(f"--{name}", action="store_true")
options = parser.parse_args()

TICK = os.sysconf("SC_CLK_TCK")


def processor_time(pids):
    """Busy and all, of all processors, in ticks; then that of the processes, an ended one's counted as 0."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:8]]
    own = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                words = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        own += int(words[11]) + int(words[12])
    return sum(ticks) - ticks[3], sum(ticks), own


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


class Watch:
    """The lab's counters from now on, and second by second."""

    def __init__(self, lab, ups, pids):
        self.lab, self.ups, self.pids = lab, ups, pids
        lab.clear()
        self.busy, self.before = self.spent(), lab.stats()["hosts"]
        self.began = self.looked = time.monotonic()
        self.lines = []

    def spent(self):
        return *processor_time(self.pids), processor_time(children(self.lab.process.pid))[2]

    def look(self):
        now = time.monotonic()
        if now - self.looked < 1:
            return
        hosts = self.lab.stats()["hosts"]
        self.lines.append(" ".join(
            f"{(hosts[i + 1]['up']['bytes'] - self.before[i + 1]['up']['bytes']) / (now - self.looked) / up / 1250:4.0f}"
            for i, up in enumerate(self.ups)))
        self.before, self.looked = hosts, now

    def report(self, what, size, times, bound, vain=None, out=None):
        stats = self.lab.stats()
        hosts, spent = stats["hosts"], [b - a for a, b in zip(self.busy, self.spent())]
        n, took = len(self.ups) - 1, time.monotonic() - self.began
        received = sum(host["down"]["bytes"] for host in hosts[2:]) / size / n
        packets = sum(host[way]["packets"] for host in hosts for way in ("up", "down"))
        dropped = [sum(host[way]["dropped"] for host in hosts) for way in ("up", "down")]
        times = sorted(times)
        print(f"{what}: bound {bound:.1f} s, last {times[-1] / bound:.3f}, median {times[len(times) // 2] / bound:.3f}, "
              f"the seed sent {hosts[1]['up']['bytes'] / size:.3f} copies (headers included)"
              + (f", {out / size:.3f} until all was out" if out else "") + f"; each received {received:.3f}"
              + (f", {vain:.3f} in vain" if vain is not None else "") +
              f"; of {packets} packets {dropped[0]} dropped in uplinks' queues, {dropped[1]} in downlinks'; emulator late by "
              f"{stats['late_us'] / 1000:.1f} ms at worst; processors {spent[0] / spent[1]:.2f}, peers "
              f"{spent[2] / TICK / took:.2f} of one, emulator {spent[3] / TICK / took:.2f}")
        if options.timeline:
            print("dropped:", " ".join(f"{host['up']['dropped'] / max(1, host['up']['packets']):.0%}" for host in hosts[1:]),
                  "of each uplink's packets")
            print("\n".join(f"{i + 1:4}: {line}" for i, line in enumerate(self.lines)))
        sys.stdout.flush()


class Swarm(SwarmTest):
    def set_up_lab(self):
        """Host 1 is the tracker's, 2 the seed's."""
        n = options.leechers
        ups = [options.up * ((0.25, 1.75)[i % 2] if options.mixed else 1) for i in range(n)]
        own = {3 + i: f"up={up}mbit" for i, up in enumerate(ups)}
        if options.far:
            ups[-1] = 10 * options.up
            own[n + 2] = f"up={ups[-1]}mbit,delay=50ms"
        link = f"up={options.up}mbit,down={options.down}mbit,delay={options.delay / 2}ms"
        self.ups = [options.up] + ups
        return self.lab(n + 2, link, own)

    def what(self):
        kinds = "".join(f", {name}" for name in ("mixed", "churn", "rider", "far") if getattr(options, name))
        return f"{options.leechers} leechers, {options.mib} MiB, {options.up:g}/{options.down:g} Mbit/s{kinds}"

    def bound(self, size, wanting):
        """Of `wanting` leechers; who wants nothing, and who has all, gives."""
        given = sum(self.ups[:-1] if options.rider else self.ups)
        seed = self.ups[0] + (self.ups[-1] if options.far else 0)
        return max(size / (seed * 125e3), size / (options.down * 125e3), wanting * size / (given * 125e3))

    def get(self, member):
        return subprocess.Popen(self.in_host(member.host, f"{BIN}/p2pctl", "get", "/file"), env=member.env,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def churn(self, leechers, bound, leaving, running, now):
        """Kills the daemons that leave, once, a third of the bound after the beginning; at two thirds they come back."""
        if leaving["phase"] == 0 and now > bound / 3:
            leaving["phase"] = 1
            for i in leaving["who"]:
                leechers[i].daemon.kill(signal.SIGKILL)
                running.pop(i).wait()
        if leaving["phase"] == 1 and now > 2 * bound / 3:
            leaving["phase"] = 2
            for i in leaving["who"]:
                leechers[i].start_daemon()
                running[i] = self.get(leechers[i])

    def runTest(self):
        size, lab = options.mib << 20, self.set_up_lab()
        tracker = self.tracker(host=1)
        seed = self.member(tracker, "seed", host=2)
        leechers = [self.member(tracker, f"leech{i}", mounted=False, host=3 + i) for i in range(options.leechers)]
        with open(seed.path("file"), "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        for member in leechers:
            wait_for("the file's name", lambda m=member: m.ctl("ls", "/file", check=False).returncode == 0, 30)
        if options.rider:
            leechers[-1].ctl("limit", "--up", "4K")
        if options.far:
            far = leechers.pop()
            lab.set("all", "up=0,down=0,delay=0")
            far.ctl("get", "/file")
            for i, up in enumerate(self.ups):
                delay = 50 if i == options.leechers else options.delay / 2
                lab.set(i + 2, f"up={up}mbit,down={options.down}mbit,delay={delay}ms")
            time.sleep(2)
        bound = self.bound(size, len(leechers))
        leaving = {"phase": 0, "who": range(3, len(leechers), 4)} if options.churn else None
        watch, took = Watch(lab, self.ups, [m.daemon.process.pid for m in [seed] + leechers]), {}
        out, asked = 0, watch.began
        running = {i: self.get(m) for i, m in enumerate(leechers)}
        while running:
            for i in list(running):
                if running[i].poll() is not None:
                    assert running.pop(i).returncode == 0, f"leecher {i} failed"
                    took[i] = time.monotonic() - watch.began
            time.sleep(0.02)
            watch.look()
            if not out and time.monotonic() > asked + 1:
                asked = time.monotonic()
                out = int(json.loads(seed.ctl("status", "/file", "--json").stdout)["files"][0].get("sent_until_out", 0))
            if leaving:
                self.churn(leechers, bound, leaving, running, time.monotonic() - watch.began)
        if leaving:
            print("those who came back:", ", ".join(f"{took.pop(i) / bound:.3f}" for i in leaving["who"] if i in took))
        vain = sum(int(json.loads(m.ctl("status", "--json").stdout).get("wasted_in", 0)) for m in leechers)
        watch.report(self.what(), size, took.values(), bound, vain / size / len(leechers), out)


class Torrents(Swarm):
    """libtorrent's peers, as tests/bench/torrent_peer.py starts them."""

    def peer(self, host, role, torrent, peers):
        directory = os.path.join(self.directory, f"torrent{host}")
        os.makedirs(directory, exist_ok=True)
        return subprocess.Popen(self.in_host(host, "/usr/bin/python3", "-B", os.path.join(HERE, "torrent_peer.py"), role,
                                             torrent, directory, *peers),
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def runTest(self):
        import libtorrent
        size, lab, n = options.mib << 20, self.set_up_lab(), options.leechers
        source, torrent = os.path.join(self.directory, "torrent2"), os.path.join(self.directory, "file.torrent")
        os.mkdir(source)
        with open(os.path.join(source, "file"), "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        storage = libtorrent.file_storage()
        libtorrent.add_files(storage, os.path.join(source, "file"))
        made = libtorrent.create_torrent(storage)
        libtorrent.set_piece_hashes(made, source)
        with open(torrent, "wb") as file:
            file.write(libtorrent.bencode(made.generate()))
        addresses = [lab.address(2 + i) for i in range(n + 1)]
        peers = [self.peer(2 + i, "leech" if i else "seed", torrent, addresses[:i] + addresses[i + 1:]) for i in range(n + 1)]
        try:
            for peer in peers:
                assert peer.stdout.readline() == "ready\n"
            watch, took = Watch(lab, self.ups, [peer.pid for peer in peers]), {}
            for peer in peers:
                os.set_blocking(peer.stdout.fileno(), False)
                peer.stdin.write("go\n")
                peer.stdin.flush()
            while len(took) < n:
                for i, peer in enumerate(peers[1:]):
                    if i not in took and peer.stdout.readline() == "done\n":
                        took[i] = time.monotonic() - watch.began
                time.sleep(0.02)
                watch.look()
            watch.report("libtorrent, " + self.what(), size, took.values(), self.bound(size, n))
        finally:
            for peer in peers:
                peer.kill()
                peer.wait()
                peer.stdin.close()
                peer.stdout.close()


if __name__ == "__main__":
    good = True
    for test in [Swarm()] + ([Torrents()] if options.libtorrent else []):
        result = test.defaultTestResult()
        test.run(result)
        for _, text in result.errors + result.failures:
            sys.stderr.write(text)
        good = good and result.wasSuccessful()
    sys.exit(0 if good else 1)
