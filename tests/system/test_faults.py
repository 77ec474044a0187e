#!/usr/bin/python3
"""One call after the other fails on the disk of a member: what was acknowledged stays, and no wrong byte is read. What
tests/torture/errors.py does by chance, for long."""
import contextlib
import json
import os
import sys
import threading
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../torture"))
import errors  # noqa: E402
from harness import Member, SwarmTest, Tracker, main, pattern, wait_for  # noqa: E402


class Faults(SwarmTest):
    def setUp(self):
        super().setUp()
        tracker = self.tracker()
        self.ann = Member(self, "ann", options="wait=20s")
        self.all_members.append(self.ann)
        self.faults = errors.Faults(self, "ann", ["p2pd", "p2pfs"])
        self.ann.daemon.env = self.ann.fs.env = dict(self.ann.env, **self.faults.env)
        self.ann.start_daemon()
        self.ann.register(tracker)
        self.ann.start_mount()
        self.ben = self.member(tracker, "ben", options="wait=20s")

    def found(self, name):
        try:
            return self.ann.read(name)
        except FileNotFoundError:
            return None

    @staticmethod
    def write_all(fd, data):
        while data:
            data = data[os.write(fd, data):]

    def fail_each(self, program, kinds, most):
        """One file for each call that fails; until one is written without a failure."""
        for number in range(1, most + 1):
            name = f"{program}-{kinds}-{number}"
            data, half, sure = pattern(90000, number), 50000, 0
            self.faults.set(program, countdown=number, kinds=kinds)
            try:
                fd = os.open(self.ann.path(name), os.O_CREAT | os.O_WRONLY)
                try:
                    self.write_all(fd, data[:half])
                    os.fsync(fd)
                    sure = half
                    self.write_all(fd, data[half:])
                except OSError:
                    os.close(fd)
                    raise
                os.close(fd)
                sure = len(data)
            except OSError:
                pass
            left = self.faults.read(program)[2]
            self.faults.clear()
            # What is synced and was not stored is stored as soon as that can be done.
            wait_for(f"the {sure} bytes of {name} that were acknowledged", lambda: len(self.found(name) or b"") >= sure, 20)
            found = self.found(name) or b""
            self.assert_same_bytes(data[:len(found)], found, name)
            if sure == len(data):
                self.ben.await_file(name, len(data), 20)
                self.assert_same_bytes(data, self.ben.read(name), f"{name} at ben")
            self.assertTrue(self.ann.daemon.running() and self.ann.fs.running())
            if left > 0:
                return number
        return most

    def test_each_sync_of_the_daemon(self):
        self.assertGreater(self.fail_each("p2pd", errors.SYNC, 8), 3)

    def test_each_write_of_the_daemon(self):
        self.assertGreater(self.fail_each("p2pd", errors.WRITE, 8), 3)

    def test_each_name_and_file_of_the_daemon(self):
        self.assertGreater(self.fail_each("p2pd", errors.NAMES | errors.OPEN | errors.CUT, 8), 3)

    def test_each_call_of_the_mount(self):
        self.assertGreater(self.fail_each("p2pfs", errors.SYNC | errors.WRITE, 6), 2)

    def test_what_was_fetched_and_cannot_be_synced_is_synced_later(self):
        data = pattern(3 << 20, 5)
        self.ben.write("f", data)
        self.ann.await_file("f", len(data))
        pid = json.loads(self.ann.ctl("status", "--json").stdout)["pid"]
        with open(self.ann.path("f"), "rb", buffering=0) as file:
            file.read(1)
            self.faults.set("p2pd", countdown=1, kinds=errors.SYNC)
            self.assert_same_bytes(data[1:], file.readall())
            wait_for("a round of syncing to fail", lambda: self.faults.read("p2pd")[2] == 0, 30)
            file.seek(0)
            self.assert_same_bytes(data, file.readall())
        self.assertEqual(pid, json.loads(self.ann.ctl("status", "--json").stdout)["pid"])

    def test_what_a_disk_does_not_give_for_a_moment_is_served_when_it_does(self):
        data = pattern(3 << 20, 6)
        for name in ("opened", "unopened"):
            self.ann.write(name, data)
            self.ben.await_file(name, len(data))
        with open(self.ben.path("opened"), "rb", buffering=0) as file:
            file.read(1)
            self.faults.set("p2pd", chance=0.9999, kinds=errors.READ | errors.OPEN)
            got, reader = [], threading.Thread(target=lambda: got.append(file.readall()))
            other = threading.Thread(target=lambda: got.append(self.ben.read("unopened")))
            reader.start()
            other.start()
            wait_for("reads to fail", lambda: self.faults.read("p2pd")[0] >= 10, 10)
            self.faults.clear()
            reader.join(30)
            other.join(30)
        self.assertEqual([len(data) - 1, len(data)], sorted(map(len, got)))
        for found in got:
            self.assert_same_bytes(data[-len(found):], found)

    def rewrite(self, name, data, sync):
        """Writes it anew while nothing gets into the store; close() has to fail."""
        fd = os.open(self.ann.path(name), os.O_WRONLY | os.O_TRUNC)
        self.write_all(fd, data)
        if sync:
            os.fsync(fd)
        self.faults.set("p2pd", chance=0.9999, kinds=errors.NAMES)
        with self.assertRaises(OSError):
            os.close(fd)

    def test_what_was_synced_is_read_though_it_cannot_be_stored_yet(self):
        """Also by a kernel that has pages of the same size."""
        old, new = pattern(40000, 1), pattern(40000, 2)
        self.ann.write("f", old)
        self.assert_same_bytes(old, self.ann.read("f"))
        self.ben.await_file("f", len(old))
        self.rewrite("f", new, True)
        self.assert_same_bytes(new, self.ann.read("f"))
        self.faults.clear()
        wait_for("the new bytes at ben", lambda: self.ben.read("f") == new, 20)
        self.assert_same_bytes(new, self.ann.read("f"))

    def test_what_was_synced_is_stored_later_though_nobody_reads_it(self):
        old, new = pattern(40000, 1), pattern(40000, 2)
        self.ann.write("f", old)
        self.assert_same_bytes(old, self.ann.read("f"))
        self.rewrite("f", new, True)
        self.faults.clear()
        self.ben.await_file("f", len(old))
        wait_for("the new bytes at ben", lambda: self.ben.read("f") == new, 20)
        self.assert_same_bytes(new, self.ann.read("f"))

    def test_what_was_given_up_is_deleted_when_that_can_be_written_down(self):
        incoming = os.path.join(self.ann.home, "store/incoming")
        for i in range(3):
            self.ann.write(f"f{i}", b"old")
            fd = os.open(self.ann.path(f"f{i}"), os.O_WRONLY | os.O_TRUNC)
            self.write_all(fd, b"new")
            self.faults.set("p2pd", chance=0.9999, kinds=errors.NAMES | errors.WRITE)
            with self.assertRaises(OSError):
                os.close(fd)
            wait_for("state.db to fail", lambda: "state.db cannot" in self.ann.ctl("status").stdout, 20)
            self.faults.clear()
        self.ann.write("after", b"after")
        wait_for("no working files to be left", lambda: os.listdir(incoming) == [], 20)

    def test_what_was_given_up_is_not_read_from_memory(self):
        """The old bytes count again, for the kernel as well: shorter, as long, and longer than the new ones."""
        for size in (20000, 40000, 70000):
            name, old, new = f"given-up-{size}", pattern(40000, 1), pattern(size, 2)
            self.ann.write(name, old)
            self.assert_same_bytes(old, self.ann.read(name))
            self.rewrite(name, new, False)
            self.faults.clear()
            wait_for("the old bytes of " + name, lambda: self.ann.read(name) == old, 5)
            self.ann.write(name, new)
            self.assert_same_bytes(new, self.ann.read(name))


class Database(SwarmTest):
    """The tracker's disk, as it fails now and then."""
    @staticmethod
    def status(member):
        return json.loads(member.ctl("status", "--json").stdout)

    def test_changes_go_on_by_themselves_and_in_order_when_the_tracker_can_write_again(self):
        tracker = errors.Faults(self, "tracker", ["p2ptracker"])
        swarm = Tracker(self)
        swarm.env = dict(os.environ, **tracker.env)
        swarm.start()
        ann, ben = self.member(swarm, "ann"), self.member(swarm, "ben")
        ann.write("a", b"first")
        ben.await_file("a", 5)
        tracker.set("p2ptracker", chance=0.9999, kinds=errors.WRITE | errors.SYNC)
        for i in range(40):
            ann.write("a", b"version %d" % i)
            os.rename(ann.path("a"), ann.path("b"))
            os.rename(ann.path("b"), ann.path("a"))
            os.makedirs(ann.path(f"d/{i}"))
            ann.write(f"d/{i}/f", b"%d" % i)
        wait_for("the trouble to be told", lambda: "it takes no changes" in self.status(ann)["tracker_trouble"], 10) # one errno is ENOSPC
        self.assertTrue(self.status(ann)["connected"])
        tracker.clear()
        wait_for("the changes to be taken", lambda: self.status(ann)["pending"] == 0, 20)
        self.assertEqual("", self.status(ann)["tracker_trouble"])
        self.assertEqual(1, ann.daemon.text().count("does not take a change"), ann.daemon.text())
        self.assertEqual(["a", "d"], sorted(os.listdir(ann.mount)))
        wait_for("ben to have all of it", lambda: sorted(os.listdir(ben.mount)) == ["a", "d"] and ben.read("a") == b"version 39", 10)
        for i in range(40):
            self.assertEqual(b"%d" % i, ben.read(f"d/{i}/f"))

    @unittest.skipIf(os.geteuid() != 0, "a small disk needs root")
    def test_a_full_disk_of_the_tracker_loses_no_change(self):
        swarm = Tracker(self)
        image, kept = os.path.join(self.directory, "disk"), swarm.data + ".kept"
        self.run("truncate", "-s", "16M", image)
        self.run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
        os.rename(swarm.data, kept)
        os.mkdir(swarm.data, 0o700)
        self.run("mount", "-o", "loop", image, swarm.data)
        self.addCleanup(lambda: self.run("umount", "-l", swarm.data))
        self.run("cp", "-a", kept + "/.", swarm.data)
        swarm.start()
        ann, ben = self.member(swarm, "ann"), self.member(swarm, "ben")
        for name in ("a", "b", "c"):
            ann.write(name, name.encode())
            ben.await_file(name, 1)
        ballast = os.path.join(swarm.data, "ballast")
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)) > 0:
                pass
        made = 0
        while made < 3000 and "disk is full" not in self.status(ann)["tracker_trouble"]:
            for _ in range(100):
                os.makedirs(ann.path(f"d/{made}"))
                made += 1
        wait_for("the full disk to be told", lambda: "disk is full" in self.status(ann)["tracker_trouble"], 20)
        os.rename(ann.path("a"), ann.path("d/a"))
        os.unlink(ann.path("b"))
        os.chmod(ann.path("c"), 0o600)
        ann.write("c", b"C")
        self.assertRegex(ann.ctl("status").stdout, "tracker +connected: it takes no changes: the tracker's disk is full")
        self.assertEqual([b"a", b"b", b"c"], [ben.read(name) for name in "abc"])
        self.assertGreater(self.status(ann)["pending"], 3)
        os.unlink(ballast)
        wait_for("the changes to be taken", lambda: self.status(ann)["pending"] == 0, 30)
        self.assertEqual("", self.status(ann)["tracker_trouble"])
        wait_for("ben to have all of it", lambda: sorted(os.listdir(ben.mount)) == ["c", "d"], 10)
        wait_for("ben to have all folders", lambda: len(os.listdir(ben.path("d"))) == made + 1, 10)
        self.assertEqual([b"a", b"C"], [ben.read("d/a"), ben.read("c")])
        self.assertEqual(0o600, os.stat(ben.path("c")).st_mode & 0o777)
        self.assertEqual(1, ann.daemon.text().count("does not take a change"), ann.daemon.text())
        self.assertEqual(1, swarm.text().count("COMMIT: database or disk is full"), swarm.text())


if __name__ == "__main__":
    main()
