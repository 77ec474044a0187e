"""Rate limits: kept within 5 %, of all and of one file, over restarts; what is wrong is said in one line."""
import json
import subprocess
import time

from harness import BIN, SLOW, SwarmTest, main, pattern

MIB = 1 << 20


class Limit(SwarmTest):
    def limits(self, member, *path):
        return json.loads(member.ctl("limit", "--json", *path).stdout)

    def rate_of(self, member, server, path, seconds):
        """What comes while a get runs, by the server's own count, once the first burst is over."""
        getting = subprocess.Popen([f"{BIN}/p2pctl", "get", path], env=member.env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            def total():
                """Bytes and the time they were counted at: a look that took long says that time too inexactly."""
                while True:
                    begin = time.monotonic()
                    count = json.loads(server.ctl("status", "--json").stdout)["total_out"]
                    end = time.monotonic()
                    if end - begin < 0.06 * SLOW or getting.poll() is not None:
                        return count, (begin + end) / 2
            first = total()
            while total()[0] - first[0] < MIB // 2:
                self.assertIsNone(getting.poll(), "it was over at once")
            first = total()
            while time.monotonic() - first[1] < seconds:
                time.sleep(0.05)
            last = total()
            return (last[0] - first[0]) / (last[1] - first[1])
        finally:
            getting.kill()
            getting.wait()

    def test_limits_are_kept_and_stay(self):
        ann, ben = self.members("ann", "ben")
        for name in ("one", "two", "three"):
            ann.write(name, pattern(24 * MIB, len(name)))
            ben.await_file(name, 24 * MIB)
        ann.ctl("limit", "--up", "2M")
        self.assertAlmostEqual(2 * MIB, self.rate_of(ben, ann, "/one", 3), delta=0.05 * 2 * MIB)
        status = json.loads(ann.ctl("status", "--json").stdout)
        self.assertEqual(2 * MIB, status["limit_up"])
        self.assertIn("2.0 MiB/s", ann.ctl("status").stdout.replace("2 MiB/s", "2.0 MiB/s"))
        # What is fetched is limited by pacing what is asked for; of one file only, too.
        ann.ctl("limit", "--up", "unlimited")
        ben.ctl("limit", "--down", "1M", "/two")
        self.assertEqual(MIB, self.limits(ben, "/two")["down"])
        self.assertEqual(0, self.limits(ben).get("down", 0))
        self.assertAlmostEqual(MIB, self.rate_of(ben, ann, "/two", 3), delta=0.05 * MIB)
        ben.ctl("limit", "--down", "4M", "--up", "3M")
        ben.daemon.stop()
        ben.start_daemon()
        self.assertEqual((3 * MIB, 4 * MIB), (self.limits(ben)["up"], self.limits(ben)["down"]))
        self.assertEqual(MIB, self.limits(ben, "/two")["down"])
        self.assertAlmostEqual(4 * MIB, self.rate_of(ben, ann, "/three", 3), delta=0.05 * 4 * MIB)
        ben.ctl("limit", "--down", "unlimited")
        self.run(f"{BIN}/p2pctl", "get", "/one", "/three", env=ben.env)
        self.assert_same_bytes(ann.read("three"), ben.read("three"))

    def test_what_is_wrong_is_said_in_one_line(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=False)
        for arguments, status, text in (
                (["--up", "0"], 2, "would stop everything"), (["--up", "0K"], 2, "would stop everything"),
                (["--up", "1"], 2, "too low"), (["--down", "999T"], 2, "too high"), (["--down", "-5"], 2, "is not a rate"),
                (["--down", "fast"], 2, "is not a rate"), (["--up", "99999999999999999999"], 2, "is not a rate|too high"),
                (["--up", ""], 2, "is not a rate"), (["--up", "1M", "/nothing"], 1, "no such file"),
                (["--up", "1M", "/"], 1, "directory")):
            done = ann.ctl("limit", *arguments, check=False)
            self.assertEqual(status, done.returncode, (arguments, done.stderr))
            self.assertRegex(done.stderr, text)
            self.assertTrue(done.stderr.startswith("p2pctl: "))
        self.assertEqual({0}, {v for k, v in self.limits(ann).items()} or {0})


if __name__ == "__main__":
    main()
