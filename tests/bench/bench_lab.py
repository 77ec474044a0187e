"""One reader over emulated links: how soon the first byte is there, how steadily a film runs, how full the link gets.

usage: tests/bench/bench_lab.py [--bin DIR] [--samples N] [--rtt MS] [--files N] [first cold busy video flow small ...]

 first  100 Mbit/s at 20, 50 and 100 ms: open + 4 KiB, and 64 KiB, at random far offsets, on a warm link
 cold   the same link: mounted, the daemon has just started: open + 4 KiB
 busy   40 Mbit/s, 20 ms, saturated by `p2pctl get` of another file: 4 KiB at random offsets, and what `get` loses
 video  20 Mbit/s, 40 ms: a film of 8 Mbit/s with 6 seeks, alone and beside a `get` of another file
 flow   100 Mbit/s, 100 ms, 0.1 % loss: one `get`, beside iperf3
 small  100 Mbit/s, 20 ms: `cp -r` of 10,000 files of 4 KiB from one mount's tree, beside one tar stream over ssh

Figures, not tests. Every line names the limit, which is what the link itself needs, and whether what is asked for was met. Samples
during which this machine was too busy to deliver packets in time (see `late` in tests/lab/lab.py) are left out and
counted. Needs root, iperf3.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../system"))

parser = argparse.ArgumentParser()
parser.add_argument("--bin", default=os.path.join(HERE, "../../build/release/bin"))
parser.add_argument("--samples", type=int, default=30)
parser.add_argument("--rtt", type=int, help="only this round trip, in milliseconds")
parser.add_argument("--seconds", type=float, default=10, help="of the film between two seeks, and of a flow")
parser.add_argument("--rounds", type=int, default=5, help="of what is measured by turns with another program")
parser.add_argument("--files", type=int, default=10000, help="small ones")
parser.add_argument("--show", action="store_true", help="every sample")
parser.add_argument("what", nargs="*", default=[])
options = parser.parse_args()
os.environ["P2P_BIN"] = os.path.realpath(options.bin)
import harness  # noqa: E402  (needs P2P_BIN)

READER, SEED, TRACKER = 1, 2, 3
BLOCK = 16384
LATE_US = 1500  # a sample with a packet later than this is left out
LATE_SEEK_US = 5000  # the same for what takes a tenth of a second
LATE_FLOW_US = 50000  # the same for a flow of seconds: half a round trip of a far link


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def line(what, values, limit, left_out, unit="ms", middle_most=None, tail_most=None, tail=0.95):
    if options.show:
        print("   ", " ".join(f"{v:.1f}" for v in values))
    if not values:
        print(f"  {what:44} no sample ({left_out} left out)")
        return
    middle = statistics.median(values)
    print(f"  {what:44} p50 {middle:7.1f} ({middle / limit:5.2f} x)  p95 {quantile(values, 0.95):7.1f} "
          f"({quantile(values, 0.95) / limit:5.2f} x)  max {max(values):7.1f} {unit}  limit {limit:.1f}  n={len(values)}"
          + (f" ({left_out} left out)" if left_out else ""))
    for name, got, most in (("p50", middle, middle_most), (f"p{tail * 100:.0f}", quantile(values, tail), tail_most)):
        if most is not None:
            print(f"      {name} {got:.1f}, asked for at most {most:.1f}: {'met' if got <= most else 'MISSED'}")
    sys.stdout.flush()


class Bench(harness.SwarmTest):
    def runTest(self):
        pass

    def start(self, link, files, own=None):
        """A tracker, a seed with the files {name: bytes}, and a reader who sees them."""
        self.setUp()
        self.been, self.chance = set(), random.Random(1)
        self.lab(3, link, {TRACKER: "rate=0,loss=0", **(own or {})})
        self.the_tracker = self.tracker(host=TRACKER)
        self.seed = self.member(self.the_tracker, "seed", host=SEED)
        self.reader = self.member(self.the_tracker, "reader", host=READER)
        for number, (name, size) in enumerate(files.items()):
            with open(self.seed.path(name), "wb") as file:
                for at in range(0, size, 64 << 20):
                    file.write(harness.pattern(min(64 << 20, size - at), number * 1000 + at))
            self.reader.await_file(name, size, 60)

    def finish(self):
        self.doCleanups()

    def sample(self, name, size, offset):
        """Milliseconds of open + read at an offset, and whether this machine was in time."""
        self.the_lab.clear()
        began = time.monotonic()
        fd = os.open(self.reader.path(name), os.O_RDONLY)
        data = os.pread(fd, size, offset)
        took = (time.monotonic() - began) * 1000
        os.close(fd)
        assert len(data) == size
        return took, self.the_lab.stats()["late_us"] < LATE_US

    def reads(self, name, file_size, size, count, pause=0.2):
        """Reads at random offsets, far from each other: each block at most once, in whatever call."""
        fresh = [place for place in range(1, file_size // (1 << 20) - 1) if (name, place) not in self.been]
        places = self.chance.sample(fresh, count)
        self.been.update((name, place) for place in places)
        took, left_out = [], 0
        for place in places:
            time.sleep(pause)
            ms, good = self.sample(name, size, (place << 20) + (size if size < BLOCK else 0))
            if good:
                took.append(ms)
            else:
                left_out += 1
        return took, left_out

    def fetched(self):
        return self.the_lab.stats()["hosts"][READER - 1]["down"]["bytes"]

    # --- what is measured ---------------------------------------------------------------------------------------------

    def first(self):
        for rtt in [options.rtt] if options.rtt else [20, 50, 100]:
            size = 512 << 20
            self.start(f"rate=100mbit,delay={rtt / 4}ms", {"far.bin": size})
            self.reads("far.bin", size, 4096, 1)
            base = rtt + BLOCK * 8 / 100e6 * 1000
            took, left_out = self.reads("far.bin", size, 4096, options.samples)
            line(f"{rtt} ms: open + 4 KiB, warm", took, base, left_out, middle_most=1.15 * base, tail_most=1.5 * base)
            took, left_out = self.reads("far.bin", size, 65536, options.samples)
            base = rtt + 65536 * 8 / 100e6 * 1000
            line(f"{rtt} ms: open + 64 KiB, warm", took, base, left_out, middle_most=1.15 * base)
            self.finish()

    def cold(self):
        for rtt in [options.rtt] if options.rtt else [20]:
            took, left_out = [], 0
            size = 64 << 20
            self.start(f"rate=100mbit,delay={rtt / 4}ms", {"far.bin": size})
            for number in range(max(3, options.samples // 6)):
                self.reader.daemon.stop()
                self.reader.start_daemon()
                self.reader.await_file("far.bin", size)
                time.sleep(1)
                ms, good = self.sample("far.bin", 4096, (number * 2 + 1) << 20)
                if good:
                    took.append(ms)
                else:
                    left_out += 1
            line(f"{rtt} ms: open + 4 KiB, cold", took, rtt + BLOCK * 8 / 100e6 * 1000, left_out)
            self.finish()

    @contextlib.contextmanager
    def get(self, *names):
        process = subprocess.Popen(self.in_host(READER, f"{harness.BIN}/p2pctl", "get", *names), env=self.reader.env,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def busy(self):
        """By turns the background alone, and with reads at two paces. What it loses is what the link carries less, the reads' own
        bytes included."""
        rtt, rate, size = options.rtt or 20, 40e6, 384 << 20
        self.start(f"rate=40mbit,delay={rtt / 4}ms", {"far.bin": size, "bulk.bin": size})
        self.reads("far.bin", size, 4096, 1)
        carried, self.counted = {0: [], 2: [], 10: []}, 0
        took, left_out = [], 0
        with self.get("/bulk.bin"):
            time.sleep(3)
            for _ in range(3):
                for pace in carried:
                    first, began = self.counted + self.fetched(), time.monotonic()
                    while time.monotonic() - began < options.seconds / 2:
                        time.sleep(1 / pace if pace else 0.1)
                        if not pace:
                            continue
                        ms, good = self.read_beside("far.bin", size)
                        if good:
                            took.append(ms)
                        else:
                            left_out += 1
                    carried[pace].append((self.counted + self.fetched() - first) * 8 / (time.monotonic() - began) / 1e6)
        line(f"{rtt} ms, link full: open + 4 KiB", took, rtt + BLOCK * 8 / rate * 1000, left_out, middle_most=rtt + 20,
             tail_most=rtt + 40, tail=0.99)
        alone = statistics.median(carried.pop(0))
        for pace, rates in carried.items():
            lost = 1 - statistics.median(rates) / alone
            print(f"    {pace} reads a second: the link carried {statistics.median(rates):.2f} Mbit/s, {alone:.2f} without them; "
                  f"{lost * 100:.1f} % less, asked for at most 5: {'met' if lost <= 0.05 else 'MISSED'}  n={len(rates)}", flush=True)
        self.finish()

    def read_beside(self, name, file_size):
        """One read at a place of its own."""
        place = self.chance.choice([n for n in range(1, file_size // (1 << 18) - 1) if (name, n) not in self.been])
        self.been.add((name, place))
        self.forget()
        began = time.monotonic()
        fd = os.open(self.reader.path(name), os.O_RDONLY)
        os.pread(fd, 4096, (place << 18) + 4096)
        took = (time.monotonic() - began) * 1000
        os.close(fd)
        return took, self.the_lab.stats()["late_us"] < LATE_US

    def forget(self):
        """The lab's counters begin anew, the reader's bytes do not."""
        self.counted += self.fetched()
        self.the_lab.clear()

    def video(self):
        """The film is larger than what the link carries meanwhile, so that no seek goes where the rest of it was fetched already."""
        rtt, rate, film = options.rtt or 40, 20e6, 8e6
        size = max(int(rate / 8 * options.seconds * 7 * 3) >> 20, 64) << 20
        for beside in (False, True):
            self.start(f"rate=20mbit,delay={rtt / 4}ms", {"film.bin": size, "other.bin": size // 2})
            self.reads("film.bin", size, 4096, 1)
            with self.get("/other.bin") if beside else contextlib.nullcontext():
                time.sleep(2 if beside else 0)
                self.play("film.bin", size, film, rtt, rate, "beside a get" if beside else "alone")
            self.finish()

    def play(self, name, size, film, rtt, rate, how):
        """Reads 64 KiB at a time as a player with half a second of buffer does; a read that comes later than the film
        needs it is a stall. What the emulator delivered late is left out and counted."""
        chunk, buffer = 65536, 0.5
        places = [i * size // 7 // chunk * chunk for i in (0, 4, 1, 6, 2, 5, 3)]
        seeks, stalls, late, seeks_out, stalls_out, there = [], [], 0, 0, 0, 0
        fd = os.open(self.reader.path(name), os.O_RDONLY)

        def punctual(most):
            nonlocal late
            now = self.the_lab.stats()["late_us"]
            late = max(late, now)
            self.the_lab.clear()
            return now < most
        for number, place in enumerate(places):
            self.the_lab.clear()
            began = time.monotonic()
            at = place
            os.pread(fd, chunk, at)
            took = (time.monotonic() - began) * 1000
            if took < rtt:
                there += 1  # it was here already: no sample of a seek
            elif number > 0 and punctual(LATE_SEEK_US):
                seeks.append(took)
            elif number > 0:
                seeks_out += 1
            punctual(0)
            shown = time.monotonic()  # the instant at which the film's first byte of this place is shown
            while at - place < film / 8 * options.seconds:
                at += chunk
                due = shown + (at - place) * 8 / film
                ahead = due - buffer - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
                os.pread(fd, chunk, at)
                stall = time.monotonic() - due
                if stall > 0.001:
                    shown += stall
                    if punctual(LATE_SEEK_US):
                        stalls.append(stall * 1000)
                    else:
                        stalls_out += 1
        os.close(fd)
        limit = rtt + chunk * 8 / rate * 1000
        line(f"film, {how}: the first 64 KiB after a seek", seeks, limit, seeks_out, tail_most=1.5 * limit, tail=1)
        longest = max(stalls, default=0)
        print(f"    stalls {len(stalls)} ({stalls_out} left out), longest {longest:.0f} ms, asked for at most 100: "
              f"{'met' if longest <= 100 else 'MISSED'}; together {sum(stalls):.0f} ms; seeks to what was here {there}; "
              f"latest packet {late / 1000:.1f} ms", flush=True)

    def flow(self):
        """Each round one flow of iperf3's and one of ours, both on a new connection, each from its third second on."""
        rtt, size = options.rtt or 100, 1 << 30
        self.start(f"rate=100mbit,delay={rtt / 4}ms", {"bulk.bin": size}, {SEED: "loss-up=0.1%"})
        control = open("/proc/sys/net/ipv4/tcp_congestion_control").read().strip()
        ours, theirs, left_out = [], [], 0
        while len(ours) + left_out < options.rounds:
            self.reader.daemon.stop()
            self.reader.start_daemon()
            self.reader.await_file("bulk.bin", size)
            self.the_lab.clear()
            them, us = self.iperf(), self.one_get()
            late = self.the_lab.stats()["late_us"]
            if late > LATE_FLOW_US:
                left_out += 1
                continue
            theirs.append(them)
            ours.append(us)
            print(f"    iperf3 {them:.1f}, ours {us:.1f} Mbit/s of content, {us / them:.3f} x; latest packet {late / 1000:.1f} ms", flush=True)
        if ours:
            share = statistics.median(ours) / statistics.median(theirs)
            print(f"  {rtt} ms, 0.1 % loss: one flow, medians           {statistics.median(ours):.1f} Mbit/s of content; iperf3 ({control}) "
                  f"{statistics.median(theirs):.1f}; {share:.3f} x, asked for at least 0.90: {'met' if share >= 0.9 else 'MISSED'}"
                  f"  n={len(ours)} ({left_out} left out)")
        self.finish()

    def iperf(self):
        server = self.the_lab.popen(SEED, ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
        time.sleep(0.5)
        done = self.the_lab.run(READER, "iperf3", "-c", self.the_lab.address(SEED), "-R", "-J", "-O", "2",
                                "-t", str(int(options.seconds)))
        server.wait(10)
        return json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"] / 1e6

    def one_get(self):
        with self.get("/bulk.bin"):
            time.sleep(2)
            before, began = self.have("bulk.bin"), time.monotonic()
            time.sleep(options.seconds)
            return (self.have("bulk.bin") - before) * 8 / (time.monotonic() - began) / 1e6

    def small(self):
        rtt = options.rtt or 20
        work = tempfile.mkdtemp(prefix="p2pfs-small-")
        self.addCleanup(shutil.rmtree, work, True)
        source = os.path.join(work, "tree")
        os.mkdir(source)
        for number in range(options.files):
            with open(f"{source}/{number:05}.txt", "wb") as file:
                file.write(harness.pattern(4096, number))
        self.start(f"rate=100mbit,delay={rtt / 4}ms", {"first.bin": 4 << 20})
        self.reads("first.bin", 4 << 20, 4096, 1)
        shutil.copytree(source, self.seed.path("tree"))
        harness.wait_for("the tree", lambda: os.path.isdir(self.reader.path("tree")) and
                         len(os.listdir(self.reader.path("tree"))) == options.files, 120)
        harness.wait_for("nothing to be pending", lambda: json.loads(
            self.seed.ctl("status", "--json").stdout).get("pending", 0) == 0, 60)
        began = time.monotonic()
        subprocess.run(["cp", "-r", self.reader.path("tree"), os.path.join(work, "copy")], check=True)
        ours = time.monotonic() - began
        subprocess.run(["diff", "-r", source, os.path.join(work, "copy")], check=True)
        theirs = self.tar(work)
        print(f"  {rtt} ms: cp -r of {options.files} files of 4 KiB         {ours:.1f} s; tar over ssh {theirs:.1f} s; "
              f"{ours / theirs:.2f} x (limit 3)")
        links = json.loads(self.reader.ctl("peers", "--json").stdout)
        print(f"    peers: {json.dumps(links)[:400]}")
        self.finish()

    def tar(self, work):
        """Seconds that one tar stream over ssh takes for the same tree."""
        os.makedirs("/run/sshd", exist_ok=True)
        key = os.path.join(work, "key")
        for name in (key, key + "-host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
        with open(f"{work}/config", "w") as file:
            file.write(f"Port 2222\nHostKey {key}-host\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\n"
                       f"PidFile none\nPermitRootLogin yes\n")
        sshd = harness.Process(self, "sshd", self.in_host(SEED, "/usr/sbin/sshd", "-D", "-e", "-f", f"{work}/config"))
        sshd.start(r"Server listening")
        os.mkdir(f"{work}/tar")
        ssh = (f"ssh -p 2222 -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
               f"root@{self.the_lab.address(SEED)}")
        began = time.monotonic()
        self.the_lab.run(READER, "sh", "-c", f"{ssh} tar -C {work} -cf - tree | tar -C {work}/tar -xf -", timeout=600)
        took = time.monotonic() - began
        sshd.stop()
        assert len(os.listdir(f"{work}/tar/tree")) == options.files
        return took

    def have(self, name):
        return os.stat(self.reader.path(name)).st_blocks * 512


def main():
    what = options.what or ["first", "cold", "busy", "video", "flow", "small"]
    for name in what:
        if name not in ("first", "cold", "busy", "video", "flow", "small"):
            parser.error(f"no such measurement: {name}")
    for name in what:
        print(f"\n{name}", flush=True)
        bench = Bench()
        try:
            getattr(bench, name)()
        finally:
            bench.doCleanups()


if __name__ == "__main__":
    main()
