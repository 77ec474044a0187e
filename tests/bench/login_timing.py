#!/usr/bin/python3
"""Can it be told from the time of a failed log in whether there is such an account?

    tests/bench/login_timing.py [TRIES]

Starts a tracker with one account and tries TRIES (200) wrong passwords each for that account and for one that does not
exist, in turn, each from another address of this machine, so that nothing is throttled. Prints medians and means, and
exits 1 if the medians differ by 5 percent or more.
"""
import os
import statistics
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "system"))
from harness import SwarmTest  # noqa: E402
from wire import FAULT, WRONG_PASSWORD, Stranger  # noqa: E402

TRIES = int(sys.argv[1]) if len(sys.argv) > 1 else 200


class LoginTiming(SwarmTest):
    def test_known_and_unknown_accounts_take_the_same_time(self):
        self.members("ann", mounted=False)
        key, csr = (os.path.join(self.directory, n) for n in ("stranger.key", "stranger.csr"))
        subprocess.run(["openssl", "req", "-newkey", "rsa:3072", "-nodes", "-keyout", key, "-out", csr, "-subj", "/CN=x"],
                       check=True, capture_output=True)
        with open(csr) as file:
            request = file.read()
        times = {"ann": [], "nobody": []}
        for i in range(TRIES + 5):
            for name in (("ann", "nobody"), ("nobody", "ann"))[i % 2]:
                link = Stranger(self.the_tracker.port, f"127.{1 + i // 250}.{1 + (name == 'ann')}.{1 + i % 250}")
                began = time.perf_counter()
                kind, fields = link.login(name, b"wrong password", request)
                took = time.perf_counter() - began
                link.close()
                self.assertEqual((FAULT, WRONG_PASSWORD), (kind, fields[1]))
                if i >= 5:
                    times[name].append(took)
        medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
        for name, values in times.items():
            print(f"{name:8} median {medians[name]:.2f} ms, mean {statistics.mean(values) * 1000:.2f} ms, "
                  f"deviation {statistics.stdev(values) * 1000:.2f} ms, {len(values)} tries")
        apart = abs(medians["ann"] - medians["nobody"]) / min(medians.values())
        print(f"medians differ by {100 * apart:.2f} %")
        self.assertLess(apart, 0.05)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
