#!/usr/bin/python3
"""Power cuts of one member's machine and of the tracker's, at random moments, while files are written at that member and read
at another; the checker of kill.py, which knows every acknowledged byte.

    tests/torture/power.py [--rounds 50] [--seed 1]

P2P_HOME and the tracker's folder each lie on a powerfs (powerfs.c): a cut loses everything that was not synced. Then all
programs of that machine are killed, the disk is mounted as it is, and everything is started again.
"""
import argparse
import os
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kill  # noqa: E402
from harness import BIN, wait_for  # noqa: E402

POWERFS = os.path.join(BIN, "../tests/torture/powerfs")


class Disk:
    """A powerfs at `path`."""

    def __init__(self, test, path):
        self.test, self.path, self.backing = test, path, path + ".disk"
        os.makedirs(self.backing)
        os.makedirs(path, exist_ok=True)
        self.process = None
        test.addCleanup(self.end)
        self.start()

    def start(self):
        before = os.stat(self.path).st_dev
        # libfuse does not free the nodes that the kernel still knows when the session is cut off.
        settings = os.environ.get("ASAN_OPTIONS", "")
        self.process = subprocess.Popen([POWERFS, self.backing, self.path],
                                        env=dict(os.environ, ASAN_OPTIONS=f"{settings}:detect_leaks=0".lstrip(":")))
        wait_for(f"powerfs at {self.path}", lambda: os.stat(self.path).st_dev != before)

    def cut(self):
        """From now on nothing reaches the disk. Whoever uses it is killed before `restore`."""
        self.process.send_signal(signal.SIGUSR1)

    def restore(self):
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        if self.process.wait(60) != 0:
            raise AssertionError(f"powerfs ended with {self.process.returncode}")
        self.start()

    def end(self):
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)


class Power(kill.Torture):
    rounds = 50
    victims = ["ann", "tracker", "both"]

    def start(self, config="", own_disk=None):
        os.makedirs(os.path.join(self.directory, "ann.home"), mode=0o700)
        os.makedirs(os.path.join(self.directory, "tracker"), mode=0o700)
        self.disks = {"ann": Disk(self, os.path.join(self.directory, "ann.home")),
                      "tracker": Disk(self, os.path.join(self.directory, "tracker"))}
        super().start(config)

    def tracker(self, **more):
        return super().tracker(own_keys=True, **more)

    def machines(self, victim):
        return ["ann", "tracker"] if victim == "both" else [victim]

    def kill(self, victim):
        pid = self.pid(self.ann)
        for machine in self.machines(victim):
            self.disks[machine].cut()
        if "tracker" in self.machines(victim):
            self.the_tracker.kill()
        if "ann" in self.machines(victim):
            self.ann.fs.kill()
            # p2pfs may just have started another one.
            for p in filter(None, {pid, *self.daemons()}):
                os.kill(p, signal.SIGKILL)
            if self.ann.daemon.process.poll() is None:
                self.ann.daemon.process.wait()
            wait_for("ann's programs to be gone", lambda: not self.daemons())

    def daemons(self):
        found = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if os.path.basename(words[0]) == b"p2pd":
                    with open(f"/proc/{pid}/environ", "rb") as file:
                        if b"P2P_HOME=" + self.ann.home.encode() in file.read().split(b"\0"):
                            found.add(int(pid))
            except OSError:
                continue
        return found

    def revive(self, victim):
        for machine in self.machines(victim):
            if machine == "ann":
                subprocess.run(["umount", "-l", self.ann.mount], capture_output=True)
            self.disks[machine].restore()
        if "tracker" in self.machines(victim):
            self.the_tracker.start()
        if "ann" in self.machines(victim):
            self.ann.start_daemon()
            super().revive("ann.p2pfs")

    def check(self, what, all_of_it=False):
        """A publication may have come to the tracker, and its commit at ann have been lost: it is under way until ann hears of
        it, as of all that came before what ben makes now."""
        self.await_calm(self.ann)
        self.await_calm(self.ben)
        self.marks = getattr(self, "marks", 0) + 1
        os.mkdir(self.ben.path(f"mark-{self.marks}"))
        wait_for("what ben made", lambda: os.path.exists(self.ann.path(f"mark-{self.marks}")), kill.PATIENCE)
        super().check(what, True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    Power.rounds, Power.seed, Power.report = options.rounds, options.seed, True
    suite = unittest.TestSuite([Power("test_no_acknowledged_byte_is_lost_and_none_is_wrong")])
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())


if __name__ == "__main__":
    main()
