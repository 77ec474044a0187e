"""Many small files through the mount beside the disk below it. A figure, not a test: nothing here passes or fails.

usage: tests/bench/bench_files.py [--bin DIR] [--files N] [--entries N] [--runs N] [tar|cp|git|rm|one|find ...]

 tar      tar x of a tree of source files, until tar ends; and until the other member sees all of it
 cp       cp -r of such a tree
 git      git clone of a repository with such a tree
 rm       rm -rf of what tar made
 one      create, write 4 KiB, close: beside the same with fdatasync
 find     find over a tree of --entries entries, cold (right after mounting) and warm; memory of p2pd and p2pfs an entry

Each beside the same on the disk that the store is on. close() there is no promise; here it waits until the file is
durable, so the one fdatasync that this needs is shown as well ("synced": each file written and synced by one thread).
"""
import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../system"))

parser = argparse.ArgumentParser()
parser.add_argument("--bin", default=os.path.join(HERE, "../../build/release/bin"))
parser.add_argument("--files", type=int, default=5000)
parser.add_argument("--entries", type=int, default=61189)
parser.add_argument("--runs", type=int, default=1)
parser.add_argument("what", nargs="*", default=["tar", "cp", "git", "rm", "one", "find"])
options = parser.parse_args()
os.environ["P2P_BIN"] = os.path.realpath(options.bin)
import harness  # noqa: E402  (needs P2P_BIN)


def timed(*command, **more):
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, **more)
    return time.monotonic() - began


def show(what, ours, theirs, extra=""):
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    print(f"{what:28} {ours:7.2f} s   disk {theirs:7.3f} s   {ours / theirs:6.1f} x   {extra}", flush=True)


def make_tree(path, count):
    chance = random.Random(4)
    for i in range(count):
        directory = os.path.join(path, f"dir{i % 47}", f"sub{i % 7}")
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f"file{i}.c"), "wb") as file:
            file.write(harness.pattern(int(chance.paretovariate(1) * 1500) % 60000, i))


def count_entries(path):
    return sum(len(names) + len(files) for _, names, files in os.walk(path))


def write_files(path, sync):
    data = bytearray(os.urandom(4096))
    times = []
    os.makedirs(path)
    for i in range(1000):
        data[:4] = i.to_bytes(4, "big")
        began = time.monotonic()
        fd = os.open(os.path.join(path, f"f{i}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, data)
        if sync:
            os.fdatasync(fd)
        os.close(fd)
        times.append(time.monotonic() - began)
    return statistics.median(times) * 1e6


def memory(process):
    with open(f"/proc/{process.process.pid}/smaps_rollup") as rollup:
        lines = dict(line.split()[:2] for line in rollup.read().splitlines()[1:])
    return int(lines["Anonymous:"]) << 10


class Bench(harness.SwarmTest):
    def runTest(self):
        pass

    def start(self):
        self.setUp()
        self.ann, self.ben = self.members("ann", "ben")
        self.disk = os.path.join(self.directory, "disk")
        self.source = os.path.join(self.directory, "source")
        os.makedirs(self.disk)
        make_tree(self.source, options.files)
        self.archive = os.path.join(self.directory, "source.tar")
        timed("tar", "cf", self.archive, "-C", self.directory, "source")
        self.entries = count_entries(self.source)

    def fresh(self, name):
        for base in self.ann.mount, self.disk:
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)
            os.mkdir(os.path.join(base, name))
        os.sync()
        return os.path.join(self.ann.mount, name), os.path.join(self.disk, name)

    def tar(self):
        ours, theirs, seen = [], [], []
        for _ in range(options.runs):
            mine, plain = self.fresh("tar")
            theirs.append(timed("tar", "xf", self.archive, "-C", plain))
            ours.append(timed("tar", "xf", self.archive, "-C", mine))
            began = time.monotonic()
            harness.wait_for("all at the other", lambda: count_entries(self.ben.path("tar/source")) == self.entries, 60)
            seen.append(time.monotonic() - began)
        show(f"tar x of {options.files} files", ours, theirs,
             f"{statistics.median(ours) / options.files * 1e6:.0f} us a file; whole at the other {max(seen):.1f} s later")

    def cp(self):
        mine, plain = self.fresh("cp")
        theirs = timed("cp", "-r", self.source, plain)
        show("cp -r", [timed("cp", "-r", self.source, mine)], [theirs])

    def git(self):
        work = os.path.join(self.directory, "work")
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "safe.directory=*"]
        shutil.copytree(self.source, work)
        for command in ["init", "-q"], ["add", "."], ["commit", "-qm", "all"]:
            timed(*git, *command, cwd=work)
        mine, plain = self.fresh("git")
        theirs = timed(*git, "clone", "-q", "--no-local", work, f"{plain}/clone")
        show("git clone", [timed(*git, "clone", "-q", "--no-local", work, f"{mine}/clone")], [theirs])

    def rm(self):
        mine, plain = self.fresh("rm")
        for base in mine, plain:
            timed("cp", "-r", self.source, base)
        theirs = timed("rm", "-rf", plain)
        show("rm -rf", [timed("rm", "-rf", mine)], [theirs])

    def one(self):
        mine, plain = self.fresh("one")
        ours = write_files(os.path.join(mine, "here"), False)
        synced = write_files(os.path.join(plain, "synced"), True)
        print(f"create + 4 KiB + close       {ours:7.0f} us  disk {write_files(os.path.join(plain, 'not'), False):7.0f} us  "
              f"disk, synced {synced:.0f} us", flush=True)

    def find(self):
        before = memory(self.ben.daemon) + memory(self.ben.fs)
        entries = 0
        tree, plain = self.ann.path("find"), os.path.join(self.disk, "find")
        began = time.monotonic()
        while entries < options.entries:  # empty files and links: names are what counts
            for base in tree, plain:
                directory = os.path.join(base, f"d{entries // 4000}", f"e{entries // 50 % 80}")
                os.makedirs(directory, exist_ok=True)
            for i in range(50):
                for base in tree, plain:
                    os.symlink("x", os.path.join(base, f"d{entries // 4000}", f"e{entries // 50 % 80}", f"name-{i:04}.txt"))
            entries += 50
        entries = count_entries(plain)
        harness.wait_for("all at the other", lambda: count_entries(self.ben.path("find")) == entries, 120)
        print(f"made and told                {time.monotonic() - began:7.2f} s   {entries} entries", flush=True)
        for member in self.ann, self.ben:
            member.unmount()
            member.start_mount()
            cold = timed("find", member.path("find"))
            warm = min(timed("find", member.path("find")) for _ in range(3))
            stat = timed("find", member.path("find"), "-newer", "/", "-size", "+1")
            show(f"find at {member.name}, cold", [cold], [timed("find", plain)], f"warm {warm:.2f} s, with attributes {stat:.2f} s")
        after = memory(self.ben.daemon) + memory(self.ben.fs)
        print(f"memory of p2pd and p2pfs     {(after - before) / entries:7.0f} bytes an entry "
              f"(p2pd {memory(self.ben.daemon) >> 20} MiB, p2pfs {memory(self.ben.fs) >> 20} MiB in all)", flush=True)


bench = Bench()
try:
    bench.start()
    for what in options.what:
        getattr(bench, what)()
finally:
    bench.doCleanups()
