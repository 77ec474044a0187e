"""The lab itself: its links are what they say, as ping and iperf3 see them, and nothing of it stays behind.

Times are compared by their best, as a busy machine only adds; a rate that was too low is measured again."""
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import unittest

from harness import BIN, SANITIZER, main, wait_for

os.environ["P2P_BIN"] = BIN
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../lab"))
from lab import Lab, LabError, program  # noqa: E402  (needs P2P_BIN)

TCP, TCP6 = 1448 / 1500, 1428 / 1500  # payload's share of an IP packet
# 30 Mbit/s of datagrams to nobody.
FLOOD = """
import socket, sys, time
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for i in range(25):
        out.sendto(bytes(1472), (sys.argv[1], 9))
    time.sleep(0.01)
"""


def round_trip(lab, host, to, count="15", options=()):
    """The shortest of some round trips, in milliseconds, and how many packets were lost."""
    out = lab.run(host, "ping", "-q", "-c", count, "-i", "0.02", *options, to, check=False).stdout
    lost = re.search(r"([\d.]+)% packet loss", out)
    times = re.search(r"= ([\d.]+)/", out)
    return float(times.group(1)) if times else None, float(lost.group(1)) if lost else 100.0


class Iperf:
    """A server in a host; flows from it to another, as the receiver counts them."""

    def __init__(self, lab, host):
        self.lab, self.host = lab, host
        self.server = lab.popen(host, ["iperf3", "-s", "--forceflush"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while b"listening" not in self.server.stdout.readline():
            pass

    def flow(self, to, *options):
        """Payload in Mbit/s: the median of half seconds, without the first second."""
        address = self.lab.address6(self.host) if "-6" in options else self.lab.address(self.host)
        done = self.lab.run(to, "iperf3", "-c", address, "-R", "-J", "-i", "0.5", "-t", "2.5", *options)
        spans = json.loads(done.stdout)["intervals"][2:]
        return statistics.median(span["sum"]["bits_per_second"] for span in spans) / 1e6

    def stop(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()


class LabTest(unittest.TestCase):
    def lab(self, *arguments, **more):
        lab = Lab(*arguments, **more)
        self.addCleanup(lab.stop)
        return lab

    def assert_round_trip(self, expected, lab, host, to):
        for attempt in range(3):
            got, _ = round_trip(lab, host, to)
            if got is not None and expected <= got <= expected + 1:
                return
        self.fail(f"a round trip took {got} ms instead of {expected}")

    def assert_rate(self, expected, measure):
        got = []
        for attempt in range(3):
            got.append(measure())
            if 0.95 * expected <= got[-1] <= 1.05 * expected:
                return
        self.fail(f"{got} Mbit/s instead of {expected:.2f}")

    def test_a_round_trip_takes_the_delays_of_both_links_by_ipv4_and_ipv6(self):
        lab = self.lab(3, "delay=5ms", {2: "delay=20ms", 3: "delay-up=40ms,delay-down=2ms"})
        self.assert_round_trip(50, lab, 1, lab.address(2))
        self.assert_round_trip(50, lab, 1, lab.address6(2))
        self.assert_round_trip(52, lab, 1, lab.address(3))
        self.assert_round_trip(82, lab, 3, lab.address(2))

    @unittest.skipIf(SANITIZER, "a lab under a sanitizer is a slow one")
    def test_a_link_carries_its_rate_and_can_be_changed(self):
        lab = self.lab(2, "rate=50mbit,delay=5ms", {2: "up=20mbit"})
        iperf = Iperf(lab, 2)
        self.addCleanup(iperf.stop)
        self.assert_rate(20 * TCP, lambda: iperf.flow(1))
        lab.set(2, "up=0")
        lab.set("all", "rate=40mbit,delay=1ms")
        self.assert_rate(40 * TCP6, lambda: iperf.flow(1, "-6"))
        self.assert_round_trip(4, lab, 1, lab.address(2))

    @unittest.skipIf(SANITIZER, "a lab under a sanitizer is a slow one")
    def test_a_full_queue_delays_by_its_length_and_then_drops(self):
        lab = self.lab(3, "delay=1ms", {2: "down=10mbit,queue-down=100K"})
        source = lab.popen(1, [sys.executable, "-c", FLOOD, lab.address(2)])
        self.addCleanup(source.wait)
        self.addCleanup(source.kill)
        wait_for("the queue to be full", lambda: lab.stats()["hosts"][1]["down"]["dropped"] > 100)
        full = 100 * 1024 * 8 / 10e6 * 1000  # ms
        for attempt in range(5):
            out = lab.run(3, "ping", "-c", "40", "-i", "0.02", lab.address(2), check=False).stdout
            times = [float(t) for t in re.findall(r"time=([\d.]+)", out)]
            if times and abs(statistics.median(times) - full - 4) < 0.1 * full:
                break
        else:
            self.fail(f"a full queue of {full:.0f} ms delays by {times}")

    def test_loss_is_as_set_and_repeats_with_its_seed(self):
        results = []
        for seed in (1, 1, 2):
            with Lab(2, "", {2: "loss-up=20%"}, seed=seed) as lab:
                out = lab.run(1, "ping", "-c", "200", "-i", "0.001", lab.address(2), check=False).stdout
                results.append(re.findall(r"icmp_seq=(\d+)", out))
        self.assertEqual(results[0], results[1])
        self.assertNotEqual(results[0], results[2])
        self.assertTrue(120 < len(results[0]) < 195, len(results[0]))

    def test_a_closed_host_dials_and_is_not_dialled(self):
        lab = self.lab(2, "", {2: "dial=no"})
        dial = ("import socket,sys; s=socket.create_connection((sys.argv[1], 7), 0.5); "
                "print(s.getpeername()[0])")
        serve = "import socket,sys; s=socket.create_server(('', 7)); print('up', flush=True); sys.stdin.read()"
        for host in (1, 2):
            server = lab.popen(host, [sys.executable, "-c", serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.addCleanup(server.stdout.close)
            self.addCleanup(server.wait)
            self.addCleanup(server.stdin.close)
            server.stdout.readline()
        self.assertIn(lab.address(1), lab.run(2, sys.executable, "-c", dial, lab.address(1)).stdout)
        self.assertIn("timed out", lab.run(1, sys.executable, "-c", dial, lab.address(2), check=False).stderr)
        self.assertGreater(lab.stats()["refused"], 0)

    def test_nothing_is_left_of_a_lab_whatever_ends_it(self):
        def ends(how):
            lab = Lab(2)
            living = [lab.popen(1, ["sleep", "1000"], stdout=subprocess.DEVNULL), lab.popen(2, ["sleep", "1000"])]
            wait_for("both to run", lambda: all(os.readlink(f"/proc/{p.pid}/exe").endswith("sleep") for p in living))
            children = subprocess.run(["pgrep", "-P", str(lab.process.pid)], capture_output=True, text=True).stdout.split()
            how(lab, int(children[0]))
            for process in living:
                self.assertEqual(process.wait(15), -signal.SIGKILL)
            wait_for("the lab's two processes to end",
                     lambda: lab.process.poll() is not None and not os.path.exists(f"/proc/{children[0]}"))
            lab.stop()
        ends(lambda lab, child: lab.stop())
        ends(lambda lab, child: lab.ask("quit"))
        ends(lambda lab, child: lab.process.terminate())
        ends(lambda lab, child: lab.process.kill())
        ends(lambda lab, child: os.kill(child, signal.SIGKILL))
        devices = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
        self.assertNotIn("lab0", devices)

    def test_mistakes_are_said_in_one_line(self):
        def says(*arguments, status=2, **more):
            done = subprocess.run([program(), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            return done.stderr
        self.assertIn("a number from 1 to 250", says("--hosts", "0"))
        self.assertIn("a number from 1 to 250", says("--hosts", "1000000"))
        self.assertIn("KEY=VALUE", says("--hosts", "2", "--link", "fast"))
        self.assertIn("a rate is", says("--hosts", "2", "--link", "up=99999gbit"))
        self.assertIn("a host that there is not", says("--hosts", "2", "--host", "3:up=1mbit"))
        self.assertIn("needs root", says("--hosts", "2", status=1, user=65534, group=65534, extra_groups=[]))
        self.assertIn("no lab with the name", says("--name", "nobody", "show", status=1))
        lab = self.lab(2)
        self.assertIn("is running", says("--name", lab.name, "--hosts", "2", status=1))
        self.assertIn("numbered from 1 to 2", says("--name", lab.name, "exec", "3", "true", status=1))
        with self.assertRaisesRegex(LabError, "a delay is at most 60s"):
            lab.set(1, "delay=1000s")
        with self.assertRaisesRegex(LabError, "a loss is from 0 to 1"):
            lab.set("all", "up=1mbit,loss=2")
        self.assertIn("up no limit", lab.show())


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        print("no root or no /dev/net/tun: skipped")
        sys.exit(77)
    main()
