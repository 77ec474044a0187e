#!/usr/bin/python3
"""kill -9 of daemon, mount process and tracker in turn, at random moments, while files are written at one member and read
at another; a checker that knows every acknowledged byte.

    tests/torture/kill.py [--rounds 1000] [--seed 1] [--stalls]

With --stalls processes also stand still for moments, so that what usually comes first comes second.

What close() and fsync(), of a directory for unlink() and rename(), said is done must be there after the kill. What was under way may be there
whole or not at all. What another member reads must be some version that was written, whole. The same seed chooses the same
files and the same victims; moments depend on the machine.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../system"))
from harness import SwarmTest, wait_for  # noqa: E402

VICTIMS = ["ann.p2pd", "ann.p2pfs", "tracker", "ben.p2pd", "ben.p2pfs"]
NAMES = 6       # of each writer
WRITERS = 3
LOAD = 0.6      # seconds of load in a round
PATIENCE = 200  # seconds for a program to be of use again
# A process of its own: the interpreter may stand still itself while p2pfs does.
STALL = """
import os, random, signal, sys, time
load, r, pids = float(sys.argv[1]), random.Random(sys.argv[2]), [int(pid) for pid in sys.argv[3:]]
until = time.monotonic() + load
while time.monotonic() < until and pids:
    pid = r.choice(pids)
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(r.random() ** 2 * load / 3)
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pids.remove(pid)
    time.sleep(r.random() * load / 10)
"""


class Name:
    """What may be found under one name."""

    def __init__(self):
        self.known = None       # acknowledged bytes; None: no such file
        self.maybe = []         # (bytes, least): under way; at least that many of them, if less than all then by fsync
        self.versions = []      # all that another member may find
        self.history = collections.deque(maxlen=16)

    def note(self, what):
        self.history.append(f"{time.strftime('%H:%M:%S')}.{int(time.time() * 1000) % 1000:03} {what}")

    def fits(self, found):
        if found == self.known:
            return True
        for data, least in self.maybe:
            if found == data or (data is not None and found is not None and least is not None
                                 and len(found) >= least and data.startswith(found)):
                return True
        return False

    def describe(self, found):
        def say(data):
            if data is ...:
                return "an fsync"
            return "none" if data is None else f"{len(data)} bytes {data[:8].hex()}"
        known = [i for i, data in enumerate(self.versions) if data == found]
        return (f"found {say(found)} (version {known} of {len(self.versions)}; {'; '.join(self.history)}), acknowledged {say(self.known)}, under way "
                + ", ".join(f"{say(d)} least {n}" for d, n in self.maybe))


class Writer:
    goes_on = False     # after an error, with names whose content is known

    def __init__(self, torture, number, seed):
        self.torture, self.number = torture, number
        self.random = random.Random(f"{seed}/{number}")
        self.names = {f"w{number}-{i}": Name() for i in range(NAMES)}
        self.operations = self.failures = 0

    def data(self):
        r = self.random
        size = r.choice([0, 1, r.randrange(1, 20000), r.randrange(16384, 300000), r.randrange(300000, 2000000)])
        return r.randbytes(size)

    def write(self, directory, key, name):
        r = self.random
        data, fsync = self.data(), r.random() < 0.3
        name.note(f"writes {len(data)} bytes, version {len(name.versions)}")
        name.versions.append(data)
        entry = [data, None]
        name.maybe.append(entry)
        fd = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=directory)
        try:
            at = 0
            stop = r.randrange(0, len(data) + 1) if fsync else -1
            while at < len(data):
                step = min(len(data) - at, r.choice([1000, 4096, 65536, 1 << 20]))
                if at < stop:
                    step = min(step, stop - at)
                at += os.write(fd, data[at:at + step])
                if at == stop:
                    entry[1] = at # from now on so much of it may survive a kill
                    os.fsync(fd)
                    name.known = ... # and does: what was there before is gone
        except BaseException as error:
            name.note(f"at {at}: {error}")
            if self.goes_on: # what was written before it, and maybe a part of what failed, is what is closed
                entry[1] = entry[1] or 0
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)
        name.note("closed")
        self.settle(name, data)

    def begun(self):
        """How many versions so far, and whether one is under way."""
        return sum(len(name.versions) for name in self.names.values()), any(name.maybe for name in self.names.values())

    @staticmethod
    def settle(name, data):
        name.known, name.maybe = data, []

    def step(self, mount):
        """Within one mount: after a kill there is none for a moment, and the directory below it takes everything."""
        directory = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.fstat(directory).st_dev != os.stat(os.path.dirname(mount)).st_dev:
                self.operations += 1
                self.step_in(directory)
        finally:
            os.close(directory)

    def step_in(self, directory):
        r = self.random
        key = r.choice(self.certain())
        name = self.names[key]
        kind = r.random()
        if kind < 0.7 or name.known is None:
            self.write(directory, key, name)
        elif kind < 0.8:
            name.maybe.append([None, None])
            name.note("unlink")
            os.unlink(key, dir_fd=directory)
            os.fsync(directory)
            name.note("unlinked")
            self.settle(name, None)
        else:
            other_key = r.choice([k for k in self.certain() if k != key])
            other = self.names[other_key]
            data = name.known
            name.maybe.append([None, None])
            other.maybe.append([data, None])
            other.versions.append(data)
            name.note(f"rename to {other_key}")
            other.note(f"rename from {key}, version {len(other.versions) - 1}")
            os.rename(key, other_key, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            name.note("renamed")
            other.note("renamed")
            self.settle(name, None)
            self.settle(other, data)

    def certain(self):
        return [key for key, name in self.names.items() if not name.maybe and name.known is not ...]

    def run(self, mount, until):
        least = 2 if self.goes_on else len(self.names)
        while time.monotonic() < until and len(self.certain()) >= least:
            try:
                self.step(mount)
            except OSError as error:
                self.failures += 1
                for name in self.names.values():
                    if name.maybe or name.known is ...:
                        name.note(str(error))
                if not self.goes_on:
                    return


class Torture(SwarmTest):
    rounds, seed = 12, 1
    victims = VICTIMS
    stalls = False
    writer = Writer
    report = False

    def start(self, config="", own_disk=None):
        self.own_disk = own_disk
        tracker = self.the_tracker = self.tracker()
        self.ann = self.member(tracker, "ann", config=config, options="wait=300s")
        self.ben = self.member(tracker, "ben", config=config, options="wait=300s")
        self.random = random.Random(f"{self.seed}/rounds")
        self.writers = [self.writer(self, i, self.seed) for i in range(WRITERS)]
        self.wrong = []
        self.reads = 0
        self.reading = {}

    def pid(self, member):
        done = member.ctl("status", "--json", check=False)
        return json.loads(done.stdout)["pid"] if done.returncode == 0 else None

    def kill(self, victim):
        who, _, what = victim.partition(".")
        if who == "tracker":
            self.the_tracker.kill()
            return
        member = getattr(self, who)
        if what == "p2pfs":
            member.fs.kill()
        else:
            pid = self.pid(member)
            if pid is not None:
                os.kill(pid, 9)
                if member.daemon.process is not None and member.daemon.process.pid == pid:
                    member.daemon.process.wait()

    def revive(self, victim):
        who, _, what = victim.partition(".")
        if who == "tracker":
            self.the_tracker.start()
        elif what == "p2pfs":
            member = getattr(self, who)
            member.fs.start()
            wait_for(f"{victim} to mount again", lambda: member.fs.running() and self.answers(member), PATIENCE)

    @staticmethod
    def answers(member):
        try:
            os.listdir(member.mount)
            return member.mounted()
        except OSError:
            return False

    def read_at(self, member, until):
        r = random.Random(self.random.random())
        while time.monotonic() < until:
            writer = r.choice(self.writers)
            key = r.choice(list(writer.names))
            name = writer.names[key]
            self.reading[member.name] = key
            began = writer.begun()
            try:
                with open(member.path(key), "rb", buffering=0) as file:
                    found = file.readall()
            except OSError:
                continue
            finally:
                self.reading[member.name] = None
            self.reads += 1
            # A version is in the list before its first byte is written. A name may still be looked up as the file that has
            # been renamed since, and that has a new version under its new name: news come one after the other.
            if any(found in other.versions for other in writer.names.values()):
                continue
            # Through the mount that it is written through, one read may come before and the next behind: as on any disk.
            if member is self.ann and (began[1] or writer.begun() != began) and self.is_mixture(writer, found):
                continue
            if not any(data is not None and data.startswith(found) and least is not None and len(found) >= least
                       for data, least in name.maybe) and not any(self.was_cut(n, found) for n in writer.names.values()):
                self.wrong.append(f"{member.name} reads {key}: {len(found)} bytes {found[:8].hex()} that its writer never wrote: "
                                  f"{self.made_of(found)}")

    @staticmethod
    def is_mixture(writer, found):
        versions = [data for name in writer.names.values() for data in name.versions if data]
        return all(any(data[at:at + 512].startswith(found[at:at + 512]) for data in versions) for at in range(0, len(found), 512))

    def made_of(self, found):
        """Which versions its parts are of."""
        parts = []
        for at in range(0, len(found), 4096):
            part = found[at:at + 4096]
            which = [f"{key} version {i}" for w in self.writers for key, name in w.names.items()
                     for i, data in enumerate(name.versions) if data and data[at:at + len(part)] == part]
            text = " or ".join(which[:3]) or ("zeros" if not any(part) else "nothing known")
            if not parts or parts[-1][1] != text:
                parts.append((at, text))
        return "; ".join(f"from {at} {text}" for at, text in parts[:12])

    @staticmethod
    def was_cut(name, found):
        """What a kill left of a file that had been fsynced is a version, too."""
        return any(data.startswith(found) for data in name.versions if data)

    def look(self, member, key):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                # Still being written, for all that p2pd knows: it will see that nobody is left to do it.
                while os.getxattr(member.path(key), "user.p2p.state") == b"local" and time.monotonic() < deadline:
                    time.sleep(0.05)
                with open(member.path(key), "rb", buffering=0) as file:
                    return file.readall()
            except FileNotFoundError:
                return None
            except OSError as error:
                if time.monotonic() > deadline:
                    self.fail(f"{key} at {member.name}: {error}")
                time.sleep(0.05)

    def await_calm(self, member):
        """Its daemon runs, is connected, and has told the tracker all."""
        def calm():
            if not self.answers(member):
                return False
            done = member.ctl("status", "--json", check=False)
            if done.returncode != 0:
                return False
            status = json.loads(done.stdout)
            return status["connected"] and status["pending"] == 0
        wait_for(f"{member.name} to be calm", calm, PATIENCE)

    def again(self, key, name):
        """Whether it stays wrong."""
        path, found = self.ann.path(key), None
        with contextlib.suppress(OSError):
            status = os.stat(path)
            state, root = os.getxattr(path, "user.p2p.state"), os.getxattr(path, "user.p2p.root")
            time.sleep(2)
            found = self.look(self.ann, key)
            return (f"stat says {status.st_size}, state {state}, root {root[:16]}; after 2 s "
                    f"{'right' if name.fits(found) else f'wrong: {len(found)} bytes'}")
        return "gone now"

    def check(self, what, all_of_it=False):
        if "p2pfs" in what:
            time.sleep(0.5) # what had been synced gets its name when p2pd knows of the kill
        self.await_calm(self.ann)
        for writer in self.writers:
            for key, name in writer.names.items():
                if not all_of_it and not name.maybe and name.known is not ... and self.random.random() < 0.5:
                    continue
                found = self.look(self.ann, key)
                # What an fsync kept of a file whose writer was killed gets its name when p2pd knows of the kill.
                deadline = time.monotonic() + 10
                while name.known is ... and not name.fits(found) and time.monotonic() < deadline:
                    time.sleep(0.1)
                    found = self.look(self.ann, key)
                if not name.fits(found):
                    self.wrong.append(f"{what}: {key} at ann: {name.describe(found)}; {self.again(key, name)}")
                if found is not None and not any(found == data for data in name.versions):
                    name.versions.append(found)
                Writer.settle(name, found)
        if self.wrong and os.environ.get("P2P_KEEP"):
            for writer in self.writers:
                for key, name in writer.names.items():
                    print(key, name.describe(name.known), flush=True)
            self.keep()
        if self.wrong:
            self.fail("\n".join(self.wrong))

    def keep(self):
        shutil.copytree(self.directory, os.path.join(os.environ["P2P_KEEP"], os.path.basename(self.directory)),
                        ignore=lambda d, names: [n for n in names if n.endswith((".mnt", ".sock"))], dirs_exist_ok=True)

    def compare_members(self):
        self.await_calm(self.ben)
        for writer in self.writers:
            for key, name in writer.names.items():
                wait_for(f"{key} to be the same at ben", lambda: self.look(self.ben, key) == name.known, PATIENCE)

    def running_pids(self):
        found = [self.the_tracker.process.pid, self.ann.fs.process.pid, self.ben.fs.process.pid]
        return found + [pid for pid in map(self.pid, (self.ann, self.ben)) if pid is not None]

    def after_kill(self, victim):
        self.revive(victim)

    def one_round(self, number):
        victim = self.random.choice(self.victims)
        until = time.monotonic() + LOAD
        threads = [threading.Thread(target=w.run, args=(self.ann.mount, until)) for w in self.writers]
        threads.append(threading.Thread(target=self.read_at, args=(self.ben, until)))
        if self.stalls:
            stalling = subprocess.Popen([sys.executable, "-c", STALL, str(LOAD), str(self.random.random()),
                                         *map(str, self.running_pids())])
            self.addCleanup(stalling.wait)
            threads.append(threading.Thread(target=stalling.wait))
        for thread in threads:
            thread.start()
        time.sleep(self.random.random() * LOAD)
        for writer in self.writers:
            for name in writer.names.values():
                if name.maybe:
                    name.note(f"{victim} is killed")
        self.kill(victim)
        self.after_kill(victim)
        for thread in threads:
            thread.join(PATIENCE)
            self.assertFalse(thread.is_alive(), f"round {number}: a program hangs after {victim} was killed")
        self.check(f"round {number}, {victim} killed", number % 20 == 19)
        if number % 20 == 19:
            self.compare_members()
        if self.report and number % 10 == 9:
            print(f"{time.monotonic() - self.began:.0f} s: "
                  f"{number + 1} rounds, {sum(w.operations for w in self.writers)} operations "
                  f"({sum(w.failures for w in self.writers)} cut short), {self.reads} files read", flush=True)

    def test_no_acknowledged_byte_is_lost_and_none_is_wrong(self):
        self.start()
        self.began = time.monotonic()
        for number in range(self.rounds):
            self.one_round(number)
        self.check("at the end", True)
        self.compare_members()
        self.assertGreater(sum(w.operations for w in self.writers), self.rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victims", default=",".join(VICTIMS), help="of " + ", ".join(VICTIMS))
    parser.add_argument("--stalls", action="store_true", help="processes also stand still for moments")
    options = parser.parse_args()
    Torture.stalls = options.stalls
    Torture.victims = options.victims.split(",")
    Torture.rounds, Torture.seed, Torture.report = options.rounds, options.seed, True
    unittest.main(module="__main__", argv=sys.argv[:1])


if __name__ == "__main__":
    main()
