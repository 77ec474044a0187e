#!/usr/bin/python3
"""Files of a member or of the tracker that were damaged while nothing ran: after the start there is a clear line or a repair,
no crash, and no byte that was not written."""
import contextlib
import glob
import json
import os
import signal
import sqlite3
import subprocess
import unittest

from harness import BIN, SwarmTest, main, pattern, wait_for


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


class Damage(SwarmTest):
    SIZES = {"one": 9000, "two": 3000000}

    def setUp(self):
        super().setUp()
        self.ann, self.ben = self.members("ann", "ben", options="wait=3s")
        self.data = {name: pattern(size, i) for i, (name, size) in enumerate(self.SIZES.items())}
        for name, data in self.data.items():
            self.ann.write(name, data)
        for name, data in self.data.items():
            self.ben.await_file(name, len(data))
            self.assert_same_bytes(data, self.ben.read(name), name)

    def stop(self, member, number=signal.SIGTERM):
        member.unmount()
        if number == signal.SIGKILL:
            member.daemon.kill()
        else:
            member.daemon.stop()

    def start(self, member):
        member.start_daemon()
        # Who is logged in stands in the catalogue, too; where that is new, the tracker has to say it.
        wait_for("the tracker", lambda: json.loads(member.ctl("status", "--json").stdout)["connected"])
        member.start_mount()

    def right(self, member):
        for name, data in self.data.items():
            member.await_file(name, len(data), 20)
            self.assert_same_bytes(data, member.read(name), f"{name} at {member.name}")

    def store(self, member, name, kind):
        return member.store_file(name)[:-len("data")] + kind

    def test_the_catalogue_of_a_member(self):
        state = os.path.join(self.ann.home, "state.db")
        pages = os.path.getsize(state) // 4096
        for what in ("header", "middle", "cut", "noise"):
            with self.subTest(what):
                self.stop(self.ann)
                if what == "header":
                    flip(state, 3)
                elif what == "middle":
                    for page in range(1, pages):
                        flip(state, page * 4096 + 3)
                elif what == "cut":
                    cut(state)
                else:
                    with open(state, "wb") as file:
                        file.write(pattern(20000, 9))
                self.start(self.ann)
                self.right(self.ann)

    def test_what_was_written_last_in_the_catalogue_of_a_member(self):
        for what in ("flipped", "noise"):
            with self.subTest(what):
                self.ann.write(what, b"x")
                wait_for("the log", lambda: os.path.getsize(os.path.join(self.ann.home, "state.db-wal")) > 0)
                self.stop(self.ann, signal.SIGKILL)
                wal = os.path.join(self.ann.home, "state.db-wal")
                if what == "flipped":
                    flip(wal, os.path.getsize(wal) // 2)
                else:
                    with open(wal, "r+b") as file:
                        file.write(pattern(os.path.getsize(wal), 9))
                self.start(self.ann)
                self.right(self.ann)

    def test_the_hashes_of_a_content(self):
        for what, damage in (("flipped", lambda path: flip(path, 5000)), ("cut", cut), ("gone", os.unlink)):
            with self.subTest(what):
                path = self.store(self.ann, "two", "hash")
                self.stop(self.ann)
                damage(path)
                self.start(self.ann)
                self.right(self.ann)
                self.assertEqual(self.ann.xattr("two", "state"), "complete")
                self.assertEqual(0, self.ann.ctl("check", "/two").returncode)

    def fetched_again(self, member, name):
        """True once it was read; until a peer is found a read may fail, but never give another byte."""
        try:
            found = member.read(name)
        except OSError:
            return False
        self.assert_same_bytes(self.data[name], found)
        return True

    def test_the_bytes_of_a_content(self):
        for what, damage in (("cut", cut), ("emptied", lambda path: os.truncate(path, 0)),
                             ("longer", lambda path: os.truncate(path, 4000000)), ("gone", os.unlink)):
            with self.subTest(what):
                path = self.store(self.ann, "two", "data")
                self.stop(self.ann)
                damage(path)
                self.start(self.ann)
                self.assert_same_bytes(self.data["one"], self.ann.read("one"))
                wait_for("what ben has", lambda: self.fetched_again(self.ann, "two"))
                if what != "gone":
                    self.assertRegex(self.ann.daemon.text(),
                                     r"store: .*\.data is damaged and was renamed to .*\.damaged")
                    self.assertTrue(os.path.exists(path[:-4] + "damaged"))

    def test_a_byte_of_a_content(self):
        """Nothing but its time shows it, and the kernel reads such files without p2pd."""
        for what in "two", "one":
            with self.subTest(what):
                path = self.store(self.ann, what, "data")
                self.stop(self.ann)
                flip(path, 70)
                self.start(self.ann)
                wait_for("what ben has", lambda name=what: self.fetched_again(self.ann, name))
                self.assertRegex(self.ann.daemon.text(), r"was changed since it was stored: all of it is checked")
        # While everything runs, too.
        path = self.store(self.ann, "two", "data")
        flip(path, 70000)
        wait_for("what ben has", lambda: self.fetched_again(self.ann, "two"))

    def test_a_content_whose_time_alone_is_another(self):
        path = self.store(self.ann, "two", "data")
        self.stop(self.ann)
        os.utime(path)
        self.start(self.ann)
        self.right(self.ann)
        self.assertEqual(self.ann.xattr("two", "state"), "complete")
        self.stop(self.ann)
        self.start(self.ann)
        self.right(self.ann)
        self.assertEqual(1, self.ann.daemon.text().count("was changed since it was stored"))

    def test_a_content_that_is_not_whole(self):
        self.ann.write("big", pattern(20000000, 5))
        self.ben.await_file("big", 20000000)
        with open(self.ben.path("big"), "rb") as file:
            file.seek(10000000)
            self.assert_same_bytes(pattern(20000000, 5)[10000000:10000100], file.read(100))
        found = glob.glob(os.path.join(self.ben.home, "store/*/*.map"))
        self.stop(self.ben, signal.SIGKILL)
        for path in found:
            with open(path, "r+b") as file:
                file.seek(4096)
                file.write(b"\xff" * 200)
        self.start(self.ben)
        self.data["big"] = pattern(20000000, 5)
        self.right(self.ben)

    def test_the_tracker(self):
        database = [p for p in glob.glob(os.path.join(self.the_tracker.data, "*.db")) if "piece" not in p][0]
        self.the_tracker.stop()
        with open(database, "rb") as file:
            whole = file.read()
        for what in ("header", "middle", "cut", "noise"):
            with self.subTest(what):
                with open(database, "wb") as file:
                    file.write(whole)
                if what == "header":
                    flip(database, 3)
                elif what == "middle":
                    for page in range(1, len(whole) // 4096):
                        flip(database, page * 4096 + 1)
                elif what == "cut":
                    cut(database)
                else:
                    with open(database, "wb") as file:
                        file.write(pattern(20000, 9))
                done = subprocess.run([f"{BIN}/p2ptracker", "serve", "--data", self.the_tracker.data, "--listen", "127.0.0.1:0"],
                                      capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr.splitlines()[-1], r"^p2ptracker: .*damaged")
        with open(database, "wb") as file:
            file.write(whole)
        self.the_tracker.start()
        self.ann.write("after", b"all is well")
        self.ben.await_file("after", 11)
        self.assertEqual(sqlite3.connect(database).execute("PRAGMA integrity_check").fetchone(), ("ok",))


class Part(SwarmTest):
    """What is here of a content that is not whole is read without p2pd, too. After a clean end its file is known to be as it was
    left; after another one it is hashed before somebody reads it."""

    def setUp(self):
        super().setUp()
        self.ann, self.ben = self.members("ann", "ben", config="[fetch]\nbackground = no\n", options="wait=1s")
        self.data = pattern(20000000, 6)
        self.ann.write("big", self.data)
        self.ben.await_file("big", len(self.data))

    def looks(self):
        return self.ben.daemon.text().count("was changed since it was stored")

    def again(self, number, change=lambda: None):
        """Ends ben's programs, and starts them."""
        self.ben.unmount()
        if number == signal.SIGTERM:
            self.ben.daemon.stop()
        else:
            self.ben.daemon.kill(number)
        change()
        self.ben.start_daemon()
        self.ben.start_mount()
        wait_for("the catalogue", lambda: os.path.exists(self.ben.path("big")))

    def read(self, size):
        """The blocks of the beginning that can be had."""
        had = 0
        with open(self.ben.path("big"), "rb", buffering=0) as file:
            for at in range(0, size, 16384):
                with contextlib.suppress(OSError):
                    self.assert_same_bytes(self.data[at:at + 16384], os.pread(file.fileno(), 16384, at), f"at {at}")
                    had += 1
        return had

    def test_a_byte_of_what_is_here(self):
        self.assertEqual(20, self.read(20 * 16384))
        path = glob.glob(os.path.join(self.ben.home, "store/*/*.part"))[0]
        self.ann.unmount()
        self.ann.daemon.stop()
        self.again(signal.SIGTERM)
        self.assertEqual((20, 0), (self.read(20 * 16384), self.looks()))
        self.again(signal.SIGTERM, lambda: flip(path, 70000))
        self.assertEqual((19, 1), (self.read(20 * 16384), self.looks()))
        self.again(signal.SIGTERM)
        self.assertEqual((19, 1), (self.read(20 * 16384), self.looks()))
        self.again(signal.SIGKILL, lambda: flip(path, 150000))
        self.assertEqual((18, 2), (self.read(20 * 16384), self.looks()))
        self.ann.start_daemon()
        wait_for("what ann has", lambda: self.read(20 * 16384) == 20)

    def test_a_byte_of_what_becomes_whole(self):
        """A stamp that is given when the last block comes must not speak for those that came before."""
        self.assertEqual(20, self.read(20 * 16384))
        path = glob.glob(os.path.join(self.ben.home, "store/*/*.part"))[0]
        self.again(signal.SIGTERM, lambda: flip(path, 70000))
        self.ben.ctl("get", "/big")
        wait_for("all of it", lambda: self.ben.xattr("big", "state") == "complete")
        wait_for("its name", lambda: glob.glob(os.path.join(self.ben.home, "store/*/*.data")))
        self.ann.unmount()
        self.ann.daemon.stop()
        self.assertEqual(19, self.read(20 * 16384))


if __name__ == "__main__":
    main()
