"""What becomes of a file after close(): published once, under its last name; kept beside when another member was
quicker; durable and pending while the tracker is away or does not answer."""
import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import threading
import time

from harness import BIN, SLOW, SwarmTest, main, wait_for


def seq_of(tracker):
    """How many changes the tracker has carried out."""
    db = sqlite3.connect(f"file:{os.path.join(tracker.data, 'tracker.db')}?mode=ro", uri=True)
    try:
        return db.execute("SELECT max(seq) FROM entry").fetchone()[0] or 0
    finally:
        db.close()


def contents(member, directory=""):
    """Every file below, by its bytes."""
    out = {}
    for top, _, names in os.walk(member.path(directory)):
        for name in names:
            path = os.path.join(top, name)
            with contextlib.suppress(FileNotFoundError, IsADirectoryError), open(path, "rb") as file: # it changes as we look
                out.setdefault(file.read(), []).append(os.path.relpath(path, member.mount))
    return out


class Once(SwarmTest):
    def test_a_temporary_file_is_published_once_under_its_last_name(self):
        ann, ben = self.members("ann", "ben")
        ann.write("letter", b"first")
        ben.await_file("letter", 5)
        before = seq_of(self.the_tracker)
        seen, stop = set(), threading.Event()

        def look():
            while not stop.is_set():
                seen.update(os.listdir(ben.mount))
        thread = threading.Thread(target=look)
        thread.start()
        try:
            ann.write(".letter.tmp", b"second one")
            os.chmod(ann.path(".letter.tmp"), 0o600)
            os.utime(ann.path(".letter.tmp"), ns=(5, 5))
            os.rename(ann.path(".letter.tmp"), ann.path("letter"))
            ann.write("scratch", b"gone at once")
            os.unlink(ann.path("scratch"))
            ben.await_file("letter", 10)
        finally:
            stop.set()
            thread.join()
        self.assertEqual({"letter"}, seen)
        self.assertEqual(before + 1, seq_of(self.the_tracker))
        status = os.stat(ben.path("letter"))
        self.assertEqual((0o600, 5), (status.st_mode & 0o777, status.st_mtime_ns))
        self.assertEqual(b"second one", ben.read("letter"))

    def test_close_and_fsync_are_durable_while_the_tracker_sleeps_and_names_never_wait_for_it(self):
        ann, ben = self.members("ann", "ben")
        os.mkdir(ann.path("d"))
        ann.write("d/before", b"x")
        ben.await_file("d/before", 1)
        self.the_tracker.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            ann.write("d/f", b"while it sleeps")
            fd = os.open(ann.path("d/g"), os.O_CREAT | os.O_WRONLY)
            os.write(fd, b"synced")
            os.fsync(fd)
            os.close(fd)
            for member in ann, ben:
                os.statvfs(member.mount)
                os.stat(member.path("d/before"))
                os.listdir(member.path("d"))
                with self.assertRaises(FileNotFoundError):
                    os.stat(member.path("d/nothing"))
            os.rename(ann.path("d/before"), ann.path("d/after"))
            directory = os.open(ann.path("d"), os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
            self.assertLess(time.monotonic() - began, 5)
            self.assertEqual("pending", ann.xattr("d/f", "state"))
            self.assertIn("pending", ann.ctl("status", ann.path("d/f")).stdout)
            ann.daemon.kill()
            ann.start_daemon()
            wait_for("the daemon", lambda: ann.xattr("d/f", "state") == "pending")
        finally:
            self.the_tracker.process.send_signal(signal.SIGCONT)
        ben.await_file("d/f", 15)
        ben.await_file("d/after", 1)
        self.assertEqual(b"synced", ben.read("d/g"))
        wait_for("the state", lambda: ann.xattr("d/f", "state") == "complete")


class Conflicts(SwarmTest):
    def test_what_two_write_under_one_name_while_apart_is_all_kept(self):
        tracker = self.tracker()
        ann, ben = self.member(tracker, "ann"), self.member(tracker, "ben")
        for name in "edited", "removed", "renamed", "mine":
            ann.write(name, b"old " + name.encode())
        ben.await_file("mine", 8)
        tracker.stop()
        ann.write("edited", b"ann's version")
        ann.write("new", b"ann's new one")
        ann.write("removed", b"ann's, which ben removes")
        os.rename(ann.path("renamed"), ann.path("taken"))
        ann.write("both", b"a file")
        ben.write("edited", b"ben's version")
        ben.write("new", b"ben's new one")
        os.unlink(ben.path("removed"))
        os.rename(ben.path("mine"), ben.path("taken"))
        os.mkdir(ben.path("both"))
        ben.write("both/inside", b"in a directory")
        tracker.start()
        expected = {b"ann's version", b"ben's version", b"ann's new one", b"ben's new one", b"a file", b"in a directory",
                    b"ann's, which ben removes", b"old renamed", b"old mine"}
        for member in ann, ben:
            wait_for(f"everything at {member.name}'s", lambda: expected <= set(contents(member)))
        wait_for("the same names", lambda: contents(ann) == contents(ben))
        names = contents(ann)
        for content in expected - {b"ann's, which ben removes"}:
            self.assertEqual(1, len(names[content]), names)
        flat = [name for list_ in names.values() for name in list_]
        for name in "edited", "new", "taken":
            self.assertIn(name, flat)
            beside = [one for one in flat if one.startswith(f"{name} (conflict ")]
            self.assertEqual(1, len(beside), flat)
            self.assertRegex(beside[0], r"\(conflict (ann|ben) \d{4}-\d\d-\d\d \d{4}\)$")

    def test_mode_and_time_alone_are_seen_by_others(self):
        ann, ben = self.members("ann", "ben")
        ann.write("f", b"x")
        ben.await_file("f", 1)
        self.assertEqual(0o644, os.stat(ben.path("f")).st_mode & 0o777)
        wait_for("it to be published", lambda: ann.xattr("f", "state") == "complete")
        os.chmod(ann.path("f"), 0o600)
        wait_for("the mode", lambda: os.stat(ben.path("f")).st_mode & 0o777 == 0o600)
        os.utime(ann.path("f"), ns=(7, 7))
        wait_for("the time", lambda: os.stat(ben.path("f")).st_mtime_ns == 7)


class Watch(SwarmTest):
    def watch(self, member, *arguments):
        """p2pctl watch --json, and a function that takes its next event."""
        process = subprocess.Popen([f"{BIN}/p2pctl", "watch", "--json", *arguments], env=member.env,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.addCleanup(process.communicate)
        self.addCleanup(process.terminate)

        def take():
            ready, _, _ = select.select([process.stdout], [], [], 20 * SLOW)
            self.assertTrue(ready, "no event came")
            return json.loads(process.stdout.readline())
        self.assertEqual("watching", take()["what"])
        return take

    def expect(self, take, what, path, **more):
        event = take()
        self.assertEqual((what, path), (event["what"], event["path"]), event)
        for name, value in more.items():
            self.assertEqual(value, event[name], event)
        return event

    def test_each_change_is_told_once_here_and_there(self):
        ann, ben = self.members("ann", "ben")
        there, here, below = self.watch(ben), self.watch(ann), self.watch(ben, "/d")
        os.mkdir(ann.path("d"))
        for take in there, here, below:
            self.expect(take, "created", "/d", kind="directory", who="ann")
        ann.write("d/.tmp", b"12345")
        os.rename(ann.path("d/.tmp"), ann.path("d/f"))
        for take in there, below:
            event = self.expect(take, "created", "/d/f", size=5, who="ann")
        ben.await_file("d/f", 5)
        self.assertEqual(ben.xattr("d/f", "root"), event["root"])
        ben.write("d/f", b"another one")
        for take in there, below:
            event = self.expect(take, "changed", "/d/f", size=11, who="ben")
        wait_for("it to be published", lambda: ann.ctl("ls", "-l", "/d").stdout.find("11 B") >= 0)
        os.chmod(ann.path("d/f"), 0o600)
        for take in there, below:
            self.expect(take, "attributes", "/d/f", mode=0o600)
        os.rename(ann.path("d/f"), ann.path("g"))
        for take in there, below:
            self.expect(take, "renamed", "/g", size=11, root=event["root"], **{"from": "/d/f"})
        wait_for("the name", lambda: os.path.exists(ben.path("g")))
        os.unlink(ben.path("g"))
        self.expect(there, "removed", "/g", kind="file", size=11)
        self.expect(here, "created", "/d/.tmp")
        self.expect(here, "renamed", "/d/f", who="ann")
        self.expect(here, "changed", "/d/f", who="ben")
        self.expect(here, "attributes", "/d/f")
        self.expect(here, "renamed", "/g")
        self.expect(here, "removed", "/g")
        os.rmdir(ann.path("d"))
        self.expect(below, "removed", "/d")


if __name__ == "__main__":
    main()
