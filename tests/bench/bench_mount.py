"""Speed of the mount beside its peers', in one run on this machine. A figure, not a test: nothing here passes or fails.

usage: tests/bench/bench_mount.py [--bin DIR] [--size MIB] [--runs N] [stream|local|copyin|far ...]

 stream   sequential read of a file that only the other member has, through a cold mount; beside sshfs
          (aes128-gcm, default options) of the same file
 local    sequential read of a file that is all here, kernel cache cold and warm; beside bindfs over the same store file
 copyin   cp into the mount until close returns; beside cp + fdatasync + one SHA-256 pass
 far      open, and 4 KiB at an offset that is not here, the link up and idle; beside the same through sshfs

Needs root (drop_caches is not used; single files' pages are dropped with posix_fadvise), sshfs, openssh-server, bindfs.
Ratios are of medians over runs in turn (ours, theirs, ours, …), as machines are noisy.
"""
import argparse
import os
import random
import resource
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
parser.add_argument("--size", type=int, default=1024, help="MiB")
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--keep-logs", action="store_true")
parser.add_argument("what", nargs="*", default=["stream", "local", "copyin", "far"])
options = parser.parse_args()
os.environ["P2P_BIN"] = os.path.realpath(options.bin)
import harness  # noqa: E402  (needs P2P_BIN)

SIZE = options.size << 20


def drop(path):
    """The kernel forgets the file's clean pages."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def warm(path):
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], check=True, capture_output=True)


def cpu_of(pids):
    """User and system seconds of processes so far."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except FileNotFoundError:
            pass
    return total


def timed(command, pids=()):
    before, children = cpu_of(pids), resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return wall, cpu_of(pids) - before + own


def pids_named(*names):
    out = subprocess.run(["pgrep", "-x", "|".join(names)], capture_output=True, text=True).stdout
    return [int(pid) for pid in out.split()]


def table(title, rows, size):
    """rows: name -> list of (wall, cpu); the first is ours."""
    print(f"\n{title}")
    medians = {}
    for name, runs in rows.items():
        walls = [wall for wall, _ in runs]
        medians[name] = statistics.median(walls)
        cpu = statistics.median(c for _, c in runs) * (1 << 30) / size
        print(f"  {name:34} {size / medians[name] / 1e6:7.0f} MB/s  ({size / max(walls) / 1e6:.0f}..{size / min(walls) / 1e6:.0f})"
              f"  {medians[name]:6.2f} s  {cpu:5.2f} CPU s/GiB")
    ours, *others = medians
    for other in others:
        print(f"  {ours} / {other}: {medians[other] / medians[ours]:.2f} x")
    sys.stdout.flush()


class Bench(harness.SwarmTest):
    def runTest(self):
        pass

    def start(self):
        self.setUp()
        self.ann, self.ben = self.members("ann", "ben")
        self.source = os.path.join(self.directory, "source.bin")
        with open(self.source, "wb") as file:
            for seed in range(0, SIZE, 64 << 20):
                file.write(harness.pattern(min(64 << 20, SIZE - seed), seed))
        warm(self.source)

    def sshd(self):
        directory = os.path.join(self.directory, "ssh")
        os.makedirs(directory, mode=0o700)
        os.makedirs("/run/sshd", exist_ok=True)
        for key in "host", "user":
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{directory}/{key}")
        shutil.copy(f"{directory}/user.pub", f"{directory}/authorized")
        with open(f"{directory}/config", "w") as config:
            config.write(f"Port 47722\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
                         "StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nUsePAM no\n"
                         "Subsystem sftp internal-sftp\n")
        sshd = harness.Process(self, "sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", f"{directory}/config"])
        sshd.start(r"Server listening")
        return directory

    def sshfs(self, directory):
        mount = os.path.join(self.directory, "sshfs")
        os.makedirs(mount)
        self.run("sshfs", "-p", "47722", "-o", f"IdentityFile={directory}/user,StrictHostKeyChecking=no,"
                 "UserKnownHostsFile=/dev/null,Ciphers=aes128-gcm@openssh.com", f"root@127.0.0.1:{self.directory}", mount)
        self.addCleanup(lambda: self.run("fusermount3", "-u", mount))
        return mount

    def stream(self):
        mount = self.sshfs(self.sshd())
        rows = {"p2pfs": [], "sshfs aes128-gcm": []}
        for run in range(options.runs):
            # A new content each time, as what has been read once is here.
            name = f"stream{run}.bin"
            with open(self.source, "r+b") as file:
                file.seek(run)
                file.write(os.urandom(16))
            shutil.copy(self.source, self.ann.path(name))
            self.ben.await_file(name, SIZE)
            warm(self.ann.store_file(name))
            pids = pids_named("p2pd", "p2pfs")
            rows["p2pfs"].append(timed(["dd", f"if={self.ben.path(name)}", "of=/dev/null", "bs=1M"], pids))
            drop(os.path.join(mount, "source.bin"))
            warm(self.source)
            pids = pids_named("sshd", "ssh", "sshfs")
            rows["sshfs aes128-gcm"].append(timed(["dd", f"if={mount}/source.bin", "of=/dev/null", "bs=1M"], pids))
        table(f"stream: {options.size} MiB, absent here, both ends on this machine", rows, SIZE)

    def local(self):
        shutil.copy(self.source, self.ann.path("local.bin"))
        store = self.ann.store_file("local.bin")
        mount = os.path.join(self.directory, "bindfs")
        os.makedirs(mount)
        self.run("bindfs", os.path.dirname(store), mount)
        self.addCleanup(lambda: self.run("fusermount3", "-u", mount))
        bound = os.path.join(mount, os.path.basename(store))
        warm(store)
        cold = {"p2pfs, kernel cache cold": [], "bindfs": [], "the store's file itself": []}
        hot = {"p2pfs, kernel cache warm": [], "the store's file itself": []}
        for _ in range(options.runs):
            drop(self.ann.path("local.bin"))
            warm(store)
            cold["p2pfs, kernel cache cold"].append(timed(["dd", f"if={self.ann.path('local.bin')}", "of=/dev/null", "bs=1M"],
                                                          pids_named("p2pfs", "p2pd")))
            hot["p2pfs, kernel cache warm"].append(timed(["dd", f"if={self.ann.path('local.bin')}", "of=/dev/null", "bs=1M"]))
            drop(bound)
            warm(store)
            cold["bindfs"].append(timed(["dd", f"if={bound}", "of=/dev/null", "bs=1M"], pids_named("bindfs")))
            direct = timed(["dd", f"if={store}", "of=/dev/null", "bs=1M"])
            cold["the store's file itself"].append(direct)
            hot["the store's file itself"].append(direct)
        table(f"local: {options.size} MiB, all here, the store's pages warm", cold, SIZE)
        table("local, read again", hot, SIZE)

    def copyin(self):
        plain = os.path.join(self.directory, "plain.bin")
        rows = {"cp into p2pfs": [], "cp + fdatasync + sha256": []}
        for run in range(options.runs):
            with open(self.source, "r+b") as file:
                file.seek(SIZE // 2 + run)
                file.write(os.urandom(16))
            warm(self.source)
            rows["cp into p2pfs"].append(timed(["cp", self.source, self.ann.path(f"in{run}.bin")], pids_named("p2pfs", "p2pd")))
            os.unlink(self.ann.path(f"in{run}.bin"))
            rows["cp + fdatasync + sha256"].append(timed(
                ["sh", "-c", f"cp {self.source} {plain} && sync -d {plain} && openssl dgst -sha256 {plain}"]))
            os.unlink(plain)
        table(f"copy in: {options.size} MiB until close returns", rows, SIZE)

    def far(self):
        """Places a MiB apart, so that no read-ahead brings what is read later; at once one after the other, and with pauses in which
        the link and the processors idle."""
        mount = self.sshfs(self.sshd())
        shutil.copy(self.source, self.ann.path("far.bin"))
        self.ben.await_file("far.bin", SIZE)
        places = random.sample(range(1, options.size), min(400, options.size - 2))
        self.reads_of(mount, places[::2], 0)
        self.reads_of(mount, places[1::2], 0.02)

    def reads_of(self, mount, places, pause):
        paths = {"p2pfs": self.ben.path("far.bin"), "sshfs aes128-gcm": os.path.join(mount, "source.bin")}
        print(f"\nfar: 4 KiB, absent here, loopback, {pause * 1000:.0f} ms between reads, n = {len(places)}")
        for name, path in paths.items():
            opened, read = [], []
            for place in places:
                time.sleep(pause)
                began = time.monotonic()
                fd = os.open(path, os.O_RDONLY)
                between = time.monotonic()
                got = os.pread(fd, 4096, place << 20)
                read.append((time.monotonic() - between) * 1000)
                opened.append((between - began) * 1000)
                os.close(fd)
                assert len(got) == 4096
            for what, ms in ("open", opened), ("read", read):
                ms.sort()
                print(f"  {name:20s} {what}   p50 {statistics.median(ms):.2f} ms   p95 {ms[len(ms) * 95 // 100]:.2f} ms")


bench = Bench()
try:
    bench.start()
    for what in options.what:
        getattr(bench, what)()
finally:
    bench.doCleanups()
