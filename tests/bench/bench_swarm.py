"""How near to the physical limit a swarm comes: one seed and N leechers in the lab of tests/lab, all fetching at once.

usage: bench_swarm.py [--leechers N] [--mib N] [--up MBIT] [--down MBIT] [--delay MS] [--mixed]
                      [--timeline]
       (P2P_BIN=build/release/bin, as root)

Prints when the last and the middle leecher had all, over the fluid bound max(F/u_seed, F/d_min, N F/(u_seed + sum u)), and
how many copies of the file the seed's uplink carried until then; what each leecher received, of the file, headers included, and
what of it came in vain; how busy this machine was: near 1 the figures are the machine's. --mixed: uplinks of a quarter and seven
quarters, by turns. --timeline: how much of its uplink the seed and each leecher used in each second, in percent.
"""
import argparse
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../system"))
from harness import BIN, SwarmTest, wait_for  # noqa: E402

parser = argparse.ArgumentParser()
for name, value in (("leechers", 8), ("mib", 100), ("up", 40.0), ("down", 200.0), ("delay", 10.0)):
    parser.add_argument(f"--{name}", type=type(value), default=value)
parser.add_argument("--mixed", action="store_true")
parser.add_argument("--timeline", action="store_true")
options = parser.parse_args()


def processor_time():
    """Busy and all, of all processors, in ticks."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:8]]
    return sum(ticks) - ticks[3], sum(ticks)


class Swarm(SwarmTest):
    def runTest(self):
        n, size = options.leechers, options.mib << 20
        ups = [options.up * ((0.25, 1.75)[i % 2] if options.mixed else 1) for i in range(n)]
        link = f"up={options.up}mbit,down={options.down}mbit,delay={options.delay / 2}ms"
        # Host 1 is the tracker's, 2 the seed's.
        lab = self.lab(n + 2, link, {3 + i: f"up={up}mbit" for i, up in enumerate(ups) if options.mixed} or None)
        tracker = self.tracker(host=1)
        seed = self.member(tracker, "seed", host=2)
        leechers = [self.member(tracker, f"leech{i}", mounted=False, host=3 + i) for i in range(n)]
        with open(seed.path("file"), "wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        for member in leechers:
            wait_for("the file's name", lambda m=member: m.ctl("ls", "/file", check=False).returncode == 0, 30)
        lab.clear()
        before, busy = lab.stats()["hosts"], processor_time()
        began, took, lines = time.monotonic(), {}, []
        looked = began
        running = {i: subprocess.Popen(self.in_host(m.host, f"{BIN}/p2pctl", "get", "/file"), env=m.env,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for i, m in enumerate(leechers)}
        while running:
            for i in list(running):
                if running[i].poll() is not None:
                    assert running.pop(i).returncode == 0, f"leecher {i} failed"
                    took[i] = time.monotonic() - began
            time.sleep(0.01)
            now = time.monotonic()
            if options.timeline and now - looked >= 1:
                hosts = lab.stats()["hosts"]
                lines.append(" ".join(
                    f"{(hosts[i + 1]['up']['bytes'] - before[i + 1]['up']['bytes']) / (now - looked) / up / 1250:4.0f}"
                    for i, up in enumerate([options.up] + ups)))
                before, looked = hosts, now
        hosts, spent = lab.stats()["hosts"], [b - a for a, b in zip(busy, processor_time())]
        copies = hosts[1]["up"]["bytes"] / size
        received = sum(host["down"]["bytes"] for host in hosts[2:]) / size / n
        wasted = sum(int(json.loads(m.ctl("status", "--json").stdout).get("wasted_in", 0)) for m in leechers) / size / n
        bound = max(size / (options.up * 125e3), size / (options.down * 125e3),
                    n * size / ((options.up + sum(ups)) * 125e3))
        times = sorted(took.values())
        print(f"{n} leechers, {options.mib} MiB, {options.up:g}/{options.down:g} Mbit/s{', mixed' if options.mixed else ''}: "
              f"bound {bound:.1f} s, last {times[-1] / bound:.3f}, median {times[n // 2] / bound:.3f}, "
              f"the seed sent {copies:.3f} copies (headers included); each received {received:.3f}, {wasted:.3f} in vain; "
              f"processors {spent[0] / spent[1]:.2f}")
        print("\n".join(f"{i + 1:4}: {line}" for i, line in enumerate(lines)), end="\n" if lines else "")


if __name__ == "__main__":
    test = Swarm()
    result = test.defaultTestResult()
    test.run(result)
    for _, text in result.errors + result.failures:
        sys.stderr.write(text)
    sys.exit(0 if result.wasSuccessful() else 1)
