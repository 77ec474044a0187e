"""Extended attributes that members give files and directories: kept with the entry, seen by all, bounded."""
import contextlib
import errno
import os
import shutil
import unittest

from harness import SwarmTest, main, pattern, wait_for


def given(path):
    """All but p2pd's own, without those that go between the two questions."""
    found = {}
    for name in os.listxattr(path):
        if not name.startswith("user.p2p."):
            with contextlib.suppress(OSError):
                found[name] = os.getxattr(path, name)
    return found


class Attributes(SwarmTest):
    def refused(self, number, function, *arguments):
        with self.assertRaises(OSError) as caught:
            function(*arguments)
        self.assertEqual(errno.errorcode[number], errno.errorcode[caught.exception.errno])

    def test_they_travel_with_the_entry_and_outlive_edits_and_restarts(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=True)
        ben = self.member(tracker, "ben")
        os.mkdir(ann.path("d"))
        ann.write("d/f", b"one")
        os.setxattr(ann.path("d/f"), "user.mime_type", b"text/plain")
        os.setxattr(ann.path("d/f"), "user.binary", bytes(range(256)))
        os.setxattr(ann.path("d"), "user.tag", b"")
        with open(ann.path("d/g"), "wb") as file:  # while it is being written
            file.write(b"two")
            os.setxattr(file.fileno(), "user.early", b"yes")
        wanted = {"user.mime_type": b"text/plain", "user.binary": bytes(range(256))}
        ben.await_file("d/g", 3)
        wait_for("attributes at ben's", lambda: given(ben.path("d/f")) == wanted)
        self.assertEqual({"user.early": b"yes"}, given(ben.path("d/g")))
        wait_for("the directory's at ben's", lambda: given(ben.path("d")) == {"user.tag": b""})
        # Each changes one: both stay.
        os.setxattr(ben.path("d/f"), "user.ben", b"1")
        wait_for("ben's at ann's", lambda: "user.ben" in given(ann.path("d/f")))
        os.removexattr(ann.path("d/f"), "user.binary")
        wanted = {"user.mime_type": b"text/plain", "user.ben": b"1"}
        wait_for("the removal at ben's", lambda: given(ben.path("d/f")) == wanted)
        # An edit by the other, a rename, a truncation.
        with open(ben.path("d/f"), "r+b") as file:
            file.write(b"ONE and more")
        ann.await_file("d/f", 12)
        self.assertEqual(wanted, given(ann.path("d/f")))
        os.rename(ann.path("d/f"), ann.path("moved"))
        ben.await_file("moved", 12)
        self.assertEqual(wanted, given(ben.path("moved")))
        os.truncate(ann.path("moved"), 2)
        ben.await_file("moved", 2)
        self.assertEqual(wanted, given(ben.path("moved")))
        # Restart of everything.
        for member in ann, ben:
            member.unmount()
            member.daemon.stop()
        tracker.stop()
        tracker.start()
        for member in ann, ben:
            member.start_daemon()
            member.start_mount()
        carl = self.member(tracker, "carl")
        carl.await_file("moved", 2)
        for member in ann, ben, carl:
            wait_for("all after the restart", lambda: given(member.path("moved")) == wanted)  # noqa: B023
            self.assertEqual({"user.tag": b""}, given(member.path("d")))

    def test_without_the_tracker_they_are_told_later(self):
        tracker = self.tracker()
        ann, ben = self.member(tracker, "ann"), self.member(tracker, "ben")
        ann.write("f", b"x")
        ben.await_file("f", 1)
        tracker.stop()
        os.setxattr(ann.path("f"), "user.later", b"on")
        ann.write("g", b"x")
        os.setxattr(ann.path("g"), "user.later", b"too")
        self.assertEqual({"user.later": b"on"}, given(ann.path("f")))
        tracker.start()
        wait_for("what was set meanwhile", lambda: given(ben.path("f")) == {"user.later": b"on"}, 30)
        ben.await_file("g", 1)
        self.assertEqual({"user.later": b"too"}, given(ben.path("g")))

    def test_what_setxattr_says(self):
        ann, = self.members("ann")
        ann.write("f", b"x")
        path = ann.path("f")
        os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
        self.refused(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
        self.refused(errno.ENODATA, os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE)
        os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
        self.refused(errno.ENODATA, os.removexattr, path, "user.b")
        self.refused(errno.ENODATA, os.getxattr, path, "user.b")
        self.assertEqual({"user.a": b"3"}, given(path))
        for name in "user.p2p.root", "user.p2p.mine", "trusted.a", "security.a":
            self.refused(errno.EOPNOTSUPP, os.setxattr, path, name, b"x")
        os.removexattr(path, "user.p2p.root")
        self.assertEqual(64, len(os.getxattr(path, "user.p2p.root")))
        self.refused(errno.EPERM, os.setxattr, ann.mount, "user.a", b"x")
        self.refused(errno.E2BIG, os.setxattr, path, "user.big", bytes(8193))
        os.setxattr(path, "user.big", bytes(8192))
        self.refused(errno.ENOSPC, os.setxattr, path, "user.big2", bytes(8192))
        os.removexattr(path, "user.big")
        for i in range(63):
            os.setxattr(path, f"user.n{i}", b"x")
        self.refused(errno.ENOSPC, os.setxattr, path, "user.more", b"x")
        self.assertEqual(64, len(given(path)))
        self.assertIn("user.p2p.root", os.listxattr(path))
        os.symlink("f", ann.path("link"))  # Linux has no user.* on links
        self.refused(errno.EPERM, lambda: os.setxattr(ann.path("link"), "user.a", b"x", follow_symlinks=False))

    def test_mknod_makes_empty_files(self):
        ann, ben = self.members("ann", "ben")
        os.mknod(ann.path("f"), 0o100640)
        self.refused(errno.EEXIST, os.mknod, ann.path("f"))
        self.refused(errno.EPERM, os.mkfifo, ann.path("fifo"))
        ben.await_file("f", 0)
        ann.write("f", b"now more")
        ben.await_file("f", 8)
        self.assertEqual(0o640, os.stat(ben.path("f")).st_mode & 0o777)

    def test_programs_keep_them(self):
        ann, ben = self.members("ann", "ben")
        source = os.path.join(self.directory, "source")
        os.makedirs(os.path.join(source, "d"))
        for name in "a", "d/b":
            with open(os.path.join(source, name), "wb") as file:
                file.write(pattern(5000))
            os.setxattr(os.path.join(source, name), "user.name", name.encode())
        os.setxattr(os.path.join(source, "d"), "user.dir", b"yes")
        self.run("cp", "-a", source, ann.path("cp"))
        programs = ["cp"]
        if shutil.which("rsync"):
            self.run("rsync", "-aX", f"{source}/", ann.path("rsync"))
            self.run("rsync", "-aX", f"{source}/", ann.path("rsync"))
            self.run("rsync", "-aX", "--filter=-x user.p2p.*", ann.path("rsync/"), ann.path("rsync2"))
            programs += ["rsync", "rsync2"]
        archive = os.path.join(self.directory, "source.tar")
        self.run("tar", "--xattrs", "-cf", archive, "-C", source, ".")
        os.mkdir(ann.path("tar"))
        self.run("tar", "--xattrs", "-xf", archive, "-C", ann.path("tar"))
        self.run("cp", "-a", ann.path("cp"), ann.path("again"))  # p2pd's own are there, and in nobody's way
        for program in [*programs, "tar", "again"]:
            for name, wanted in ("a", {"user.name": b"a"}), ("d/b", {"user.name": b"d/b"}), ("d", {"user.dir": b"yes"}):
                path = os.path.join(program, name)
                ben.await_file(path)
                wait_for(f"those of {path}", lambda: given(ben.path(path)) == wanted)  # noqa: B023


if __name__ == "__main__":
    main()
