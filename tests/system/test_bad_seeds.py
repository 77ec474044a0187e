"""A reader beside servers that are nearer than the good one, and bad: each read has the right bytes, and none waits for a second."""
import json
import os
import random
import sys
import time

from harness import SLOW, Process, SwarmTest, main, pattern, wait_for

TRACKER, GOOD, BAD, READER = 1, 2, 3, 4
SIZE = 24 << 20
MIB = 1 << 20
HERE = os.path.dirname(os.path.realpath(__file__))


class BadSeeds(SwarmTest):
    def swarm(self, bad_mounted):
        """The good one is 20 ms away, the bad one 4 ms: whoever is asked first is the bad one."""
        self.lab(4, "rate=100mbit,delay=1ms", {TRACKER: "rate=0,delay=0", GOOD: "delay=9ms"})
        self.the_tracker = self.tracker(host=TRACKER)
        self.good = self.member(self.the_tracker, "good", host=GOOD)
        self.bad = self.member(self.the_tracker, "bad", host=BAD, mounted=bad_mounted)
        self.reader = self.member(self.the_tracker, "reader", host=READER)
        self.data = pattern(SIZE, 7)
        self.good.write("film", self.data)
        self.reader.await_file("film", SIZE)
        self.places = random.Random(3).sample(range(1, SIZE // MIB), 20)

    def start_bad(self, kind):
        self.bad.daemon.stop()
        seed = Process(self, "bad.seed", self.in_host(
            BAD, sys.executable, "-B", os.path.join(HERE, "bad_seed.py"), kind, os.path.join(self.bad.home, "device.crt"),
            os.path.join(self.bad.home, "device.key"), self.the_tracker.address, str(self.the_tracker.port),
            self.the_lab.address(BAD), self.reader.xattr("film", "root"), str(SIZE)))
        seed.start(r"ready")
        return seed

    def read(self, count):
        """Far places that were not read before."""
        slowest = 0
        with open(self.reader.path("film"), "rb", buffering=0) as file:
            for _ in range(count):
                place = self.places.pop() * MIB
                began = time.monotonic()
                got = os.pread(file.fileno(), 4096, place)
                slowest = max(slowest, time.monotonic() - began)
                self.assertEqual(self.data[place:place + 4096], got, f"at {place}")
        print(f"slowest read: {slowest * 1000:.0f} ms", file=sys.stderr)
        self.assertLess(slowest, SLOW)

    def states(self):
        peers = json.loads(self.reader.ctl("peers", "--json").stdout)["peers"]
        return [peer["state"] for peer in peers if peer["account"] == "bad"]

    def test_who_sends_garbage_is_banned_and_named(self):
        self.swarm(False)
        seed = self.start_bad("garbage")
        self.read(15)
        wait_for("the request", lambda: "asked" in seed.text())
        wait_for("the ban", lambda: any(state.startswith("banned: sent") for state in self.states()))
        self.assertIn("bad", self.reader.ctl("peers").stdout)

    def test_who_stalls_within_a_block_holds_up_no_read(self):
        self.swarm(False)
        seed = self.start_bad("stall")
        self.read(15)
        self.assertIn("asked", seed.text())

    def test_who_has_not_what_it_says_holds_up_no_read(self):
        self.swarm(False)
        seed = self.start_bad("boast")
        self.read(15)
        self.assertIn("asked", seed.text())

    def test_who_vanishes_holds_up_no_read(self):
        self.swarm(True)
        self.bad.ctl("get", "/film", timeout=60 * SLOW)
        self.read(5)
        self.the_lab.set(BAD, "loss=100%")
        self.read(15)


if __name__ == "__main__":
    main()
