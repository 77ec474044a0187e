#!/usr/bin/python3
"""I/O errors in daemon, mount process and tracker while files are written at one member and read at both; the checker of kill.py,
which knows every acknowledged byte.

    tests/torture/errors.py [--rounds 30] [--seed 1] [--chance 0.05] [--fiu]

Reads, writes, syncs, opens and renames fail (faults.c, or with --fiu Debian's libfiu: posix/io/rw, sync and open, sockets
included). An operation that reports an error may have been carried out or not; one that does not has been. No program may end, none
may hang, and nobody may ever read a byte that was not written. In some rounds a program is killed besides, and has to
start while its disk fails; one that says clearly that it cannot is started again.
"""
import argparse
import contextlib
import glob
import os
import random
import struct
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kill  # noqa: E402
from harness import BIN, KEYS, Member, Process, Tracker, wait_for  # noqa: E402

kill.PATIENCE = 40
SHIM = os.path.join(BIN, "../tests/torture/libfaults.so")
READ, WRITE, SYNC, OPEN, NAMES, CUT = 1, 2, 4, 8, 16, 32
ALL = READ | WRITE | SYNC | OPEN | NAMES | CUT


class Faults:
    """What fails in the programs that are started with `env`."""

    def __init__(self, test, name, programs=("p2pd", "p2pfs", "p2ptracker")):
        self.folder = os.path.join(test.directory, f"{name}.faults")
        os.makedirs(self.folder)
        for program in programs:
            with open(os.path.join(self.folder, program), "wb") as file:
                file.write(bytes(64))
        sanitizer = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS", ""), "verify_asan_link_order=0"]))
        self.env = {"LD_PRELOAD": SHIM, "P2P_FAULTS": self.folder, "ASAN_OPTIONS": sanitizer}

    def set(self, program, chance=0.0, countdown=0, kinds=ALL):
        """One call of `countdown` fails, or `chance` of all."""
        with open(os.path.join(self.folder, program), "r+b", buffering=0) as file:
            file.write(struct.pack("<III", int(chance * 65536), countdown, kinds))

    def clear(self):
        for program in os.listdir(self.folder):
            self.set(program)

    def read(self, program):
        """Calls that have failed, that could have; what is left of the countdown."""
        with open(os.path.join(self.folder, program), "rb") as file:
            _, countdown, _, failed, counted = struct.unpack("<IIIII", file.read(20))
        return failed, counted, countdown


class Fiu:
    """The same by libfiu, which is told of by a pipe of each process."""
    POINTS = ["posix/io/rw/*", "posix/io/sync/*", "posix/io/oc/open"]

    def __init__(self, test, name):
        self.prefix = os.path.join(test.directory, f"{name}.fiu")
        self.env = {"LD_PRELOAD": "/usr/lib/fiu/fiu_run_preload.so /usr/lib/fiu/fiu_posix_preload.so", "FIU_CTRL_FIFO": self.prefix,
                    "FIU_ENABLE": ""}
        self.on = set()

    def pids(self, program):
        for path in glob.glob(f"{self.prefix}-*.in"):
            pid = path[len(self.prefix) + 1:-3]
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == program:
                    yield pid

    def command(self, pid, command):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["fiu-ctrl", "-f", self.prefix, "-c", command, pid], timeout=5, capture_output=True)

    def set(self, program, chance):
        for pid in self.pids(program):
            for point in self.POINTS:
                self.command(pid, f"enable_random name={point},probability={chance}")
            self.on.add(pid)

    def clear(self):
        for pid in self.on:
            if os.path.exists(f"/proc/{pid}"):
                for point in self.POINTS:
                    self.command(pid, f"disable name={point}")
        self.on.clear()

    def read(self, program):
        return 0, 0, 0


class Writer(kill.Writer):
    goes_on = True


class Errors(kill.Torture):
    rounds = 30
    chance = 0.05
    writer = Writer
    faulty = Faults
    victims = ["ann.p2pd", "ann.p2pfs", "ann.p2pd ann.p2pfs", "ben.p2pd", "tracker.p2ptracker", "ann.p2pd ben.p2pd tracker.p2ptracker"]
    kills = True

    def member(self, tracker, name, config="", options="", mounted=True, host=None):
        member = Member(self, name, config, options, host)
        self.all_members.append(member)
        self.faults[name] = self.faulty(self, name)
        member.daemon.env = member.fs.env = dict(member.env, **self.faults[name].env)
        member.start_daemon()
        member.register(tracker)
        member.start_mount()
        return member

    def tracker(self, **more):
        self.faults = {"tracker": self.faulty(self, "tracker")}
        tracker = Tracker(self, **more)
        tracker.env = dict(os.environ, **self.faults["tracker"].env)
        tracker.start()
        return tracker

    def process(self, victim):
        who, _, what = victim.partition(".")
        return self.the_tracker if who == "tracker" else getattr(getattr(self, who), "fs" if what == "p2pfs" else "daemon")

    def faults_on(self, victims):
        for victim in victims:
            who, _, what = victim.partition(".")
            self.faults[who].set(what, self.chance)

    def faults_off(self):
        for faults in self.faults.values():
            faults.clear()

    def alive(self):
        """The programs that run, p2pd wherever it was started from."""
        found = {"tracker.p2ptracker": self.the_tracker.running()}
        for name in ("ann", "ben"):
            found[f"{name}.p2pfs"] = getattr(self, name).fs.running()
        return found

    def one_round(self, number):
        try:
            self.the_round(number)
        except AssertionError as error:
            if os.environ.get("P2P_KEEP"):
                self.keep()
            logs = "\n".join(f"{p.name}: " + f"\n{p.name}: ".join(p.text().splitlines()[-12:]) for p in self.processes)
            raise AssertionError(f"round {number}: {error}\n{logs}\n{self.ann.ctl('status', '--json', check=False)}") from None

    def where(self):
        """What is being read, and what is known of it."""
        return {name: [key, [m.ctl(*words, check=False).stdout for m in (self.ann, self.ben)
                             for words in (("status", "/" + key), ("health", "/" + key), ("peers", "/" + key))]]
                for name, key in self.reading.items() if key is not None}

    def the_round(self, number):
        victims = self.random.choice(self.victims).split()
        killed = self.random.choice(["ann.p2pd", "ben.p2pd"]) if self.kills and self.random.random() < 0.3 else None
        before = {name: self.pid(getattr(self, name)) for name in ("ann", "ben")}
        until = time.monotonic() + kill.LOAD
        threads = [kill.threading.Thread(target=w.run, args=(self.ann.mount, until)) for w in self.writers]
        threads += [kill.threading.Thread(target=self.read_at, args=(m, until)) for m in (self.ann, self.ben)]
        self.faults_on(victims)
        for thread in threads:
            thread.start()
        if killed is not None:
            time.sleep(self.random.random() * kill.LOAD)
            self.kill(killed)
        while time.monotonic() < until:
            time.sleep(0.05)
        self.faults_off()
        for thread in threads:
            thread.join(kill.PATIENCE)
            if thread.is_alive():
                self.fail(f"a program hangs after errors in {victims}: {self.where()}")
        what = f"round {number}, errors in {', '.join(victims)}" + (f", {killed} killed" if killed else "")
        for name, runs in self.alive().items():
            self.assertTrue(runs, f"{what}: {name} has ended: {self.process(name).text()[-1500:]}")
        for member in (self.ann, self.ben):
            self.await_calm(member)
        for name, pid in before.items():
            if killed != f"{name}.p2pd":
                self.assertEqual(pid, self.pid(getattr(self, name)), f"{what}: {name}'s p2pd has ended")
        self.check(what, number % 20 == 19)
        if number % 20 == 19:
            self.compare_members()
        if self.report and number % 10 == 9:
            failed = {f"{name} {program}": faults.read(program)[0] for name, faults in self.faults.items()
                      for program in ("p2pd", "p2pfs", "p2ptracker")}
            print(f"{time.monotonic() - self.began:.0f} s: {number + 1} rounds, {sum(w.operations for w in self.writers)} operations "
                  f"({sum(w.failures for w in self.writers)} failed), {self.reads} files read; calls that failed: "
                  f"{', '.join(f'{k} {v}' for k, v in failed.items() if v)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chance", type=float, default=0.05)
    parser.add_argument("--fiu", action="store_true", help="by libfiu (fiu-utils)")
    parser.add_argument("--victims", default=",".join(Errors.victims))
    parser.add_argument("--no-kills", action="store_true")
    options = parser.parse_args()
    Errors.rounds, Errors.seed, Errors.chance, Errors.report = options.rounds, options.seed, options.chance, True
    Errors.victims, Errors.kills = options.victims.split(","), not options.no_kills
    if options.fiu:
        Errors.faulty = Fiu
    suite = unittest.TestSuite([Errors("test_no_acknowledged_byte_is_lost_and_none_is_wrong")])
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())


if __name__ == "__main__":
    main()
