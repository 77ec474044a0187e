"""Reads that wait for blocks which nobody serves: nothing else may wait for them."""
import json
import os
import signal
import subprocess
import sys
import time

from harness import SLOW, SwarmTest, main, pattern, wait_for

READERS = 200


class Parked(SwarmTest):
    def start_readers(self, path, program, size):
        readers = []
        for i in range(READERS):
            readers.append(subprocess.Popen([sys.executable, "-c", program, path, str(i * (size // READERS))],
                                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return readers

    def all_dead_within(self, readers, seconds):
        deadline = time.monotonic() + seconds
        for reader in readers:
            reader.wait(max(0.01, deadline - time.monotonic()))

    def setUp(self):
        super().setUp()
        tracker = self.tracker()
        self.ann = self.member(tracker, "ann")
        self.ben = self.member(tracker, "ben", options="wait=120s")
        self.size = 64 << 20
        self.ann.write("absent", pattern(self.size, 1))
        self.ann.write("present", pattern(1 << 20, 2))
        self.ben.await_file("absent", self.size)
        self.ben.await_file("present", 1 << 20)
        self.assertEqual(1 << 20, len(self.ben.read("present")))
        self.ann.daemon.kill()
        self.ann.fs.kill(signal.SIGTERM)

    def parked(self, program):
        readers = self.start_readers(self.ben.path("absent"), program, self.size)
        self.addCleanup(lambda: [r.kill() for r in readers])

        def waiting():
            status = self.ben.ctl("status", "/absent", "--json", check=False).stdout
            return '"waiting": ' in status and not '"waiting": 0' in status

        def blocked():
            count = 0
            for reader in readers:
                with open(f"/proc/{reader.pid}/stat") as stat:
                    state = stat.read().rsplit(")", 1)[1].split()[0]
                count += state in "DS" and os.path.exists(f"/proc/{reader.pid}/wchan")
            return count == READERS
        wait_for("the readers to wait", lambda: blocked() and waiting(), 30)
        return readers

    READ = "import os,sys; f=os.open(sys.argv[1],os.O_RDONLY); os.pread(f,4096,int(sys.argv[2]))"

    def look_around(self):
        began = time.monotonic()
        names = os.listdir(self.ben.mount)
        for name in names:
            os.stat(self.ben.path(name))
        listing = time.monotonic() - began
        self.assertLess(listing, 0.1 * SLOW, "ls -l")
        self.assertEqual(["absent", "present"], sorted(names))
        began = time.monotonic()
        with open(self.ben.path("present"), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(1 << 20, len(file.read()))
        self.assertLess(time.monotonic() - began, 0.2 * SLOW, "reading a present file")

    def test_listing_and_present_files_do_not_wait_and_sigkill_ends_readers(self):
        readers = self.parked(self.READ)
        self.look_around()
        for reader in readers:
            reader.kill()
        self.all_dead_within(readers, 2 * SLOW)
        self.assertLess(self.ben.unmount(3 * SLOW), 3 * SLOW)

    def test_ctrl_c_ends_readers(self):
        readers = self.parked(self.READ)
        for reader in readers:
            reader.send_signal(signal.SIGINT)
        self.all_dead_within(readers, 2 * SLOW)

    def test_unmounting_answers_parked_reads(self):
        readers = self.parked(self.READ)
        # Lazily, as open files keep a mount busy: the programs get an error when p2pfs ends.
        self.ben.fs.process.send_signal(signal.SIGTERM)
        wait_for("p2pfs to end", lambda: not self.ben.fs.running(), 3)
        self.all_dead_within(readers, 3 * SLOW)


class Bounded(SwarmTest):
    def test_a_read_that_nobody_can_serve_fails_after_the_mounts_wait(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben", options="wait=2s")
        ann.write("f", pattern(1 << 20))
        ben.await_file("f", 1 << 20)
        ann.daemon.kill()
        ann.fs.kill(signal.SIGTERM)
        began = time.monotonic()
        with self.assertRaises(OSError) as caught:
            ben.read("f")
        self.assertEqual(5, caught.exception.errno)
        self.assertGreater(time.monotonic() - began, 1.5)
        self.assertLess(time.monotonic() - began, 6 * SLOW)

    def test_status_says_which_blocks_nobody_has(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben", options="wait=60s")
        size = 8 << 20
        ann.write("f", pattern(size))
        ben.await_file("f", size)
        with open(ben.path("f"), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.pread(file.fileno(), 4096, 100 * 16384)
        ann.fs.kill(signal.SIGTERM)
        ann.daemon.stop()
        reader = subprocess.Popen([sys.executable, "-c", self.READ_ALL, ben.path("f")], stderr=subprocess.DEVNULL)
        self.addCleanup(reader.wait)
        self.addCleanup(reader.kill)

        def missing():
            file = json.loads(ben.ctl("status", "--json", "/f").stdout)["files"][0]
            return file["waiting"] > 0 and file.get("missing")
        runs = wait_for("the blocks that nobody has", missing)
        absent = {block for run in runs for block in range(run.get("first", 0), run.get("first", 0) + run["count"])}
        self.assertIn(0, absent)
        self.assertIn(size // 16384 - 1, absent)
        self.assertNotIn(100, absent)
        self.assertEqual(size - len(absent) * 16384, int(ben.xattr("f", "have").split("/")[0].split()[0]))
        self.assertRegex(ben.ctl("status", "/f").stdout, r"nobody who is connected has .*: blocks 0 to \d+, \d+ to 511")

    READ_ALL = "import sys; open(sys.argv[1], 'rb').read()"


if __name__ == "__main__":
    main()
