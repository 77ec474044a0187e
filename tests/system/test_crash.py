"""kill -9 of daemon and tracker, in mid-stream."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from harness import BIN, SwarmTest, main, pattern, wait_for, SANITIZER

SIZE = (16 if SANITIZER else 48) << 20


class Crash(SwarmTest):
    def test_a_read_goes_on_over_five_kills_of_the_readers_daemon(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", config=f"[limit]\nup = {SIZE // 12}\n")
        ben = self.member(tracker, "ben", options="wait=60s")
        data = pattern(SIZE)
        ann.write("film", data)
        ben.await_file("film", SIZE)
        digest, progress, errors = hashlib.sha256(), [0], []

        def read():
            try:
                with open(ben.path("film"), "rb", buffering=0) as file:
                    while part := file.read(256 << 10):
                        digest.update(part)
                        progress[0] += len(part)
            except OSError as error:
                errors.append(error)
        reader = threading.Thread(target=read)
        reader.start()
        for i in range(1, 6):
            wait_for("the reader to get on", lambda: progress[0] > i * SIZE // 8 or errors, 60)
            self.assertEqual([], errors)
            os.kill(json.loads(ben.ctl("status", "--json").stdout)["pid"], 9)
        reader.join(120)
        self.assertFalse(reader.is_alive(), "the reader hangs")
        self.assertEqual([], errors)
        self.assertEqual(SIZE, progress[0])
        self.assertEqual(hashlib.sha256(data).hexdigest(), digest.hexdigest())

    def test_nothing_that_is_here_is_fetched_again_after_a_kill(self):
        ann, ben = self.members("ann", "ben")
        data = pattern(8 << 20)
        ann.write("f", data)
        ben.await_file("f", len(data))
        self.assert_same_bytes(data, ben.read("f"))
        wait_for("all of it at ben's", lambda: ben.xattr("f", "state") == "complete")
        ben.daemon.kill()
        ann.daemon.kill()
        ben.start_daemon()
        with open(ben.path("f"), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.assert_same_bytes(data, file.read())

    def test_a_working_file_that_lies_ready_goes_when_no_more_are_made_and_with_a_kill(self):
        ann, = self.members("ann")
        incoming = os.path.join(ann.home, "store/incoming")

        def make(names):
            for name in names:
                ann.write(name, name.encode())
        make(f"a{i}" for i in range(10))
        wait_for("the last one to go", lambda: os.listdir(incoming) == [], 10)
        for attempt in range(20):
            make(f"b{attempt}.{i}" for i in range(10))
            ann.daemon.kill()
            left = os.listdir(incoming)
            ann.start_daemon()
            wait_for("what was left to go", lambda: os.listdir(incoming) == [], 10)
            if left:
                break
        self.assertTrue(left, "none ever lay ready")
        self.assertEqual(b"a9", ann.read("a9"))
        self.assertEqual(f"b{attempt}.9".encode(), ann.read(f"b{attempt}.9"))

    def test_connected_peers_go_on_without_the_tracker_and_a_restart_loses_nothing(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", config=f"[limit]\nup = {SIZE // 6}\n")
        ben = self.member(tracker, "ben")
        data = pattern(SIZE)
        ann.write("film", data)
        ann.write("other", b"other")
        ben.await_file("film", SIZE)
        with open(ben.path("film"), "rb") as file:
            got = file.read(1 << 20)
            tracker.kill()
            got += file.read()
        self.assert_same_bytes(data, got, "read without a tracker")
        # What is copied in meanwhile is kept, and published later.
        ben.write("while away", b"kept")
        self.assertEqual("pending", ben.xattr("while away", "state"))
        tracker.start()
        wait_for("publishing", lambda: os.path.exists(ann.path("while away")), 60)
        self.assertEqual(b"kept", ann.read("while away"))
        self.assertEqual({"film", "other", "while away"}, set(os.listdir(ben.mount)))
        self.assertIn("ben", ben.ctl("whoami").stdout)
        cleo = self.member(tracker, "cleo")
        cleo.await_file("film", SIZE)
        self.assertEqual(b"other", cleo.read("other"))


class DeadMount(SwarmTest):
    LOOK = "import os, sys; print('now', flush=True); os.stat(sys.argv[1])"

    def uninterruptible(self, pid):
        """Names of the threads of `pid` that wait in the kernel and take no signal."""
        names = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat") as stat:
                before, after = stat.read().rsplit(")", 1)
                if after.split()[0] == "D":
                    names.append(before.split("(", 1)[1])
        return names

    def test_a_p2pfs_that_is_killed_while_the_kernel_holds_one_of_its_threads_leaves_no_mount_that_hangs(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben")
        os.mkdir(ann.path("d"))
        ann.write("d/first", b"1")
        ben.await_file("d/first", 1)
        self.addCleanup(ben.daemon.process.send_signal, signal.SIGCONT)
        # What p2pd says of a new entry lies before p2pfs, and so does a lookup that p2pd will not answer.
        ben.fs.process.send_signal(signal.SIGSTOP)
        ann.write("d/second", b"2")
        wait_for("ben's p2pd to know of it", lambda: "second" in ben.ctl("ls", "/d").stdout)
        looking = subprocess.Popen([sys.executable, "-c", self.LOOK, ben.path("d", "nowhere")], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
        self.addCleanup(looking.communicate)
        self.addCleanup(looking.kill)
        self.assertEqual(b"now\n", looking.stdout.readline())
        wait_for("the lookup", lambda: self.state(looking.pid) == "S")
        ben.daemon.process.send_signal(signal.SIGSTOP)
        ben.fs.process.send_signal(signal.SIGCONT)
        wait_for("the notification to wait for the directory's lock",
                 lambda: "invalidate" in self.uninterruptible(ben.fs.process.pid))
        ben.fs.kill(signal.SIGKILL)
        self.assertNotEqual(0, looking.wait(10))
        ben.daemon.process.send_signal(signal.SIGCONT)
        self.run(f"{BIN}/p2pfs", ben.mount, env=ben.env)
        self.assertEqual(b"2", ben.read("d/second"))

    def state(self, pid):
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0]


class Rot(SwarmTest):
    def flip(self, path, at):
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    def test_a_flipped_byte_in_the_only_seeds_store_is_an_error_for_that_block_only(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben", options="wait=3s")
        data = pattern(4 << 20)
        ann.write("f", data)
        ben.await_file("f", len(data))
        bad = 1 << 20
        self.flip(ann.store_file("f"), bad + 5)
        fd = os.open(ben.path("f"), os.O_RDONLY)
        self.addCleanup(os.close, fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        block = 16384
        for at in [0, bad - block, bad + block, len(data) - block]:
            self.assert_same_bytes(data[at:at + block], os.pread(fd, block, at), f"at {at}")
        with self.assertRaises(OSError) as caught:
            os.pread(fd, block, bad)
        self.assertEqual(5, caught.exception.errno)
        self.assertNotIn("banned", ben.ctl("peers").stdout)

    def test_with_a_second_good_seed_there_is_no_error_at_all(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        cleo = self.member(tracker, "cleo")
        data = pattern(4 << 20)
        ann.write("f", data)
        cleo.await_file("f", len(data))
        cleo.ctl("get", "/f")
        ben = self.member(tracker, "ben", options="wait=20s")
        ben.await_file("f", len(data))
        for at in range(0, len(data), 256 << 10):
            self.flip(ann.store_file("f"), at + 77)
        began = time.monotonic()
        self.assert_same_bytes(data, ben.read("f"))
        self.assertLess(time.monotonic() - began, 30)


if __name__ == "__main__":
    main()
