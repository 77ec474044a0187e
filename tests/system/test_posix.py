"""What programs expect of a local disk: reading and writing through one mount, the result seen whole at another member's."""
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
import threading
import unittest

from exerciser import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Exerciser, fallocate
from harness import ENCRYPTED, SANITIZER, SwarmTest, libc, main, pattern, wait_for

OPERATIONS = int(os.environ.get("P2P_EXERCISES", 200 if SANITIZER else 700))

PASSES = not ENCRYPTED and os.geteuid() == 0 and tuple(int(n) for n in os.uname().release.split(".")[:2]) >= (6, 9)


class Passthrough(SwarmTest):
    def answered(self, member, action):
        """How many bytes p2pfs wrote to the kernel (and elsewhere) during the action."""
        def written():
            with open(f"/proc/{member.fs.process.pid}/io") as io:
                return int(dict(line.split(": ") for line in io.read().splitlines())["wchar"])
        before = written()
        action()
        return written() - before

    @unittest.skipUnless(PASSES, "needs root, Linux 6.9 and a plain store")
    def test_a_complete_file_is_read_by_the_kernel(self):
        ann, ben = self.members("ann", "ben")
        data = pattern(4 << 20)
        ann.write("a.bin", data)
        self.assertLess(self.answered(ann, lambda: self.assert_same_bytes(data, ann.read("a.bin"))), 1 << 20)
        # While it streams it comes through p2pfs; once it is complete, the next open is the kernel's.
        ben.await_file("a.bin", len(data))
        with open(ben.path("a.bin"), "rb") as held:
            self.assertGreater(self.answered(ben, lambda: self.assert_same_bytes(data, held.read())), 4 << 20)
            self.assert_same_bytes(data, ben.read("a.bin"))  # open in both ways is not possible: this one streams, too
        ben.ctl("get", "/a.bin")
        self.assertLess(self.answered(ben, lambda: self.assert_same_bytes(data, ben.read("a.bin"))), 1 << 20)

    @unittest.skipUnless(PASSES, "needs root, Linux 6.9 and a plain store")
    def test_who_reads_keeps_his_version_when_another_writes(self):
        ann, ben = self.members("ann", "ben")
        data = pattern(2 << 20)
        changed = b"hello" + data[5:]
        ann.write("a.bin", data)
        with open(ann.path("a.bin"), "rb") as reader:
            mapping = mmap.mmap(reader.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
            self.assert_same_bytes(data, mapping[:])
            with open(ann.path("a.bin"), "r+b") as writer:
                writer.write(b"hello")
            self.assert_same_bytes(data, reader.read())
            self.assert_same_bytes(data, mapping[:])
            self.assert_same_bytes(changed, ann.read("a.bin"))
            os.truncate(ann.path("a.bin"), 1 << 20)
            self.assertEqual(1 << 20, os.stat(ann.path("a.bin")).st_size)
            mapping.close()
        self.assert_same_bytes(changed[:1 << 20], ann.read("a.bin"))
        ben.await_file("a.bin", 1 << 20)
        self.assert_same_bytes(changed[:1 << 20], ben.read("a.bin"))

    def test_without_passthrough_a_reader_sees_what_is_written(self):
        [ann] = self.members("ann", options="writeback")
        data = pattern(2 << 20)
        ann.write("a.bin", data)
        with open(ann.path("a.bin"), "rb") as reader:
            self.assert_same_bytes(data, reader.read())
            with open(ann.path("a.bin"), "r+b") as writer:
                writer.write(b"hello")
            reader.seek(0)
            self.assert_same_bytes(b"hello" + data[5:], reader.read())


class Writing(SwarmTest):
    def test_what_changes_behind_the_hashing_is_published(self):
        """The daemon hashes behind the writer, and keeps the hashes of what a new version begins with."""
        ann, ben = self.members("ann", "ben", options="wait=5s")
        changes = {
            "write": lambda fd: os.pwrite(fd, b"x" * 100, 5000),
            "cut": lambda fd: (os.ftruncate(fd, 1 << 20), os.ftruncate(fd, 4 << 20)),
            "punch": lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100, 70000),
            "zero": lambda fd: fallocate(fd, ZERO_RANGE, 1 << 20, 70000),
        }
        data, found = pattern(4 << 20), {}
        for name, change in changes.items():
            fd = os.open(ann.path(name), os.O_RDWR | os.O_CREAT)
            os.write(fd, data)
            os.close(fd)
            before = ann.xattr(name, "root")
            fd = os.open(ann.path(name), os.O_RDWR)
            change(fd)
            os.close(fd)
            found[name] = ann.read(name)
            self.assertNotEqual(data, found[name], name)
            self.assertNotEqual(before, ann.xattr(name, "root"), name)
        for name, expected in found.items():
            wait_for(name, lambda: os.path.exists(ben.path(name)) and ben.xattr(name, "root") == ann.xattr(name, "root"))
            self.assert_same_bytes(expected, ben.read(name), name)


    def exercise(self, options):
        ann, ben = self.members("ann", "ben", options=options)
        for seed in range(int(os.environ.get("P2P_SEED", 1)), int(os.environ.get("P2P_SEED", 1)) + 2):
            name = f"file{seed}"
            expected = Exerciser(ann.path(name), seed).run(OPERATIONS)
            wait_for(f"{name} at ben's",
                     lambda: os.path.exists(ben.path(name)) and ben.xattr(name, "root") == ann.xattr(name, "root"))
            self.assert_same_bytes(expected, ben.read(name), f"seed {seed}")

    def test_random_operations_on_a_file(self):
        self.exercise("wait=5s")

    def test_random_operations_on_a_file_with_writes_gathered(self):
        self.exercise("wait=5s,writeback")


class Names(SwarmTest):
    def test_exclusive_names_exchanges_links_and_limits(self):
        ann, ben = self.members("ann", "ben")
        ann.write("a", b"aaa")
        ann.write("b", b"bb")
        with self.assertRaises(FileExistsError):
            os.close(os.open(ann.path("a"), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        rename = lambda old, new, flags: libc.renameat2(-100, ann.path(old).encode(), -100, ann.path(new).encode(), flags)
        self.assertEqual(-1, rename("a", "b", 1))  # RENAME_NOREPLACE
        self.assertEqual(0, rename("a", "b", 2))   # RENAME_EXCHANGE
        self.assertEqual((b"bb", b"aaa"), (ann.read("a"), ann.read("b")))
        for target in ("b", "/etc/passwd", "../../outside", "nowhere"):
            os.symlink(target, ann.path("link"))
            self.assertEqual(target, os.readlink(ann.path("link")))
            os.unlink(ann.path("link"))
        os.symlink("/etc/passwd", ann.path("absolute"))
        wait_for("the link at ben's", lambda: os.path.lexists(ben.path("absolute")))
        self.assertEqual("/etc/passwd", os.readlink(ben.path("absolute")))
        name = "n" * 255
        ann.write(name, b"x")
        self.assertRaises(OSError, ann.write, name + "n", b"x")
        os.unlink(ann.path(name))
        here = os.open(ann.mount, os.O_RDONLY)
        try:
            for _ in range(12):  # a path of more than 3,000 bytes, step by step
                os.mkdir(name, dir_fd=here)
                deeper = os.open(name, os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = deeper
            fd = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here)
            os.write(fd, b"deep")
            os.close(fd)
        finally:
            os.close(here)
        path = "/".join([name] * 12 + ["file"])
        wait_for("the deep file at ben's", lambda: os.path.exists(ben.path(path)))
        self.assertEqual(b"deep", ben.read(path))

    def test_locks_exclude_within_the_mount(self):
        [ann] = self.members("ann")
        ann.write("a", b"x" * 100)
        script = ("import fcntl, os, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
                  "try: fcntl.%s\nexcept OSError: sys.exit(7)\n")
        for take, other in ((lambda file: fcntl.flock(file, fcntl.LOCK_EX), "flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"),
                            (lambda file: fcntl.lockf(file, fcntl.LOCK_EX, 10, 0), "lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)")):
            with open(ann.path("a"), "r+b") as file:
                take(file)
                self.assertEqual(7, subprocess.run([sys.executable, "-c", script % other, ann.path("a")], check=False).returncode)
            self.assertEqual(0, subprocess.run([sys.executable, "-c", script % other, ann.path("a")], check=False).returncode)


class Times(SwarmTest):
    def test_utimens_chmod_and_changed_directories_show_in_stat(self):
        [ann] = self.members("ann")
        os.mkdir(ann.path("d"))
        before = os.stat(ann.path("d"))
        ann.write("d/a", b"1")
        after = os.stat(ann.path("d"))
        self.assertGreater(after.st_mtime_ns, before.st_mtime_ns)
        self.assertEqual(after.st_mtime_ns, after.st_ctime_ns)
        os.utime(ann.path("d/a"), ns=(1900000000123456789, 1950000000987654321))
        st = os.stat(ann.path("d/a"))
        self.assertEqual((1900000000123456789, 1950000000987654321), (st.st_atime_ns, st.st_mtime_ns))
        self.assertLess(st.st_ctime_ns, 1900000000 * 10 ** 9)
        os.chmod(ann.path("d/a"), 0o600)
        self.assertGreater(os.stat(ann.path("d/a")).st_ctime_ns, st.st_ctime_ns)
        os.utime(ann.path("d"), ns=(5, 7))
        self.assertEqual(7, os.stat(ann.path("d")).st_mtime_ns)
        os.rename(ann.path("d/a"), ann.path("d/b"))
        self.assertGreater(os.stat(ann.path("d")).st_mtime_ns, 7)

    def test_a_directory_s_time_that_was_set_counts_at_all_members(self):
        ann, ben = self.members("ann", "ben")
        time = lambda member, name: os.stat(member.path(name)).st_mtime_ns
        os.mkdir(ann.path("d"))
        # Again and again the same time: what counts is that it was set, not that it differs from what was set before.
        for number in range(3):
            ann.write(f"d/{number}", b"bytes")
            wait_for("a name at ben's", lambda: os.path.exists(ben.path(f"d/{number}")))
            if number > 0:
                wait_for("the time of the new name", lambda: time(ben, "d") != 7)
            os.utime(ann.path("d"), ns=(5, 7))
            self.assertEqual(7, time(ann, "d"))
            wait_for("the time that was set", lambda: time(ben, "d") == 7)
        # No name in it changes: neither by a new version, nor by a file's own time, nor by modes.
        with open(ann.path("d/0"), "ab") as file:
            file.write(b" more")
        os.utime(ann.path("d/1"), ns=(1, 1))
        os.chmod(ann.path("d"), 0o700)
        ben.await_file("d/0", 10)
        wait_for("the file's time", lambda: time(ben, "d/1") == 1)
        wait_for("the mode", lambda: os.stat(ben.path("d")).st_mode & 0o777 == 0o700)
        self.assertEqual((7, 7), (time(ann, "d"), time(ben, "d")))
        # Who changed it last is right, though the news of what he set before come back to him.
        os.utime(ben.path("d"), ns=(5, 9))
        os.unlink(ben.path("d/2"))
        wait_for("the removal", lambda: not os.path.exists(ann.path("d/2")))
        for member in (ann, ben):
            wait_for("the time of the removal", lambda: time(member, "d") > 9)

    @unittest.skipUnless(shutil.which("rsync"), "no rsync")
    def test_rsync_finds_nothing_to_do_at_another_member_s(self):
        ann, ben = self.members("ann", "ben")
        source = os.path.join(self.directory, "source")
        for name in ("one/two", "three"):
            os.makedirs(os.path.join(source, name))
            for number in range(5):
                with open(os.path.join(source, name, str(number)), "wb") as file:
                    file.write(b"bytes")
        for directory, _, _ in os.walk(source, topdown=False):
            os.utime(directory, ns=(10 ** 18, 10 ** 18))
        differs = lambda member: self.run("rsync", "-ain", source + "/", member.path("tree") + "/").stdout
        for _ in range(2):
            self.run("rsync", "-a", source + "/", ann.path("tree") + "/")
            self.assertEqual("", differs(ann))
            wait_for("the same at ben's", lambda: differs(ben) == "")
            os.remove(ann.path("tree/one/two/3"))  # what was set is set again by the second round
            wait_for("the removal at ben's", lambda: not os.path.exists(ben.path("tree/one/two/3")))

    def test_a_directory_has_a_link_from_each_in_it(self):
        ann, ben = self.members("ann", "ben")
        links = lambda member, name: os.stat(member.path(name)).st_nlink
        os.makedirs(ann.path("d/e"))
        os.mkdir(ann.path("f"))
        ann.write("d/file", b"1")
        self.assertEqual((4, 3, 2), tuple(links(ann, name) for name in ("", "d", "f")))
        os.rename(ann.path("d/e"), ann.path("f/e"))
        self.assertEqual((2, 3), (links(ann, "d"), links(ann, "f")))
        wait_for("ben's counts", lambda: os.path.exists(ben.path("f/e")) and (links(ben, "d"), links(ben, "f")) == (2, 3))
        os.rmdir(ann.path("f/e"))
        self.assertEqual((4, 2), (links(ann, ""), links(ann, "f")))
        wait_for("ben's count", lambda: links(ben, "f") == 2)

    def test_what_is_removed_but_open_has_no_links(self):
        [ann] = self.members("ann")
        with open(ann.path("a"), "w+b") as file:
            file.write(b"12345")
            file.flush()
            os.unlink(ann.path("a"))
            self.assertEqual((0, 5), (os.fstat(file.fileno()).st_nlink, os.fstat(file.fileno()).st_size))
            file.seek(0)
            self.assertEqual(b"12345", file.read())
        os.mkdir(ann.path("d"))
        os.mkdir(ann.path("e"))
        for remove in (lambda: os.rename(ann.path("e"), ann.path("d")), lambda: os.rmdir(ann.path("d"))):
            directory = os.open(ann.path("d"), os.O_RDONLY)
            remove()
            self.assertEqual(0, os.fstat(directory).st_nlink)
            os.close(directory)


class Holes(SwarmTest):
    @unittest.skipUnless(PASSES, "the kernel gathers writes, and knows of no holes")
    def test_holes_of_a_file_are_found_and_bytes_never_called_holes(self):
        [ann] = self.members("ann")
        fd = os.open(ann.path("a"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4 << 20)
        os.pwrite(fd, b"x" * 4096, 1 << 20)
        self.assertLessEqual(os.lseek(fd, 0, os.SEEK_DATA), 1 << 20)
        self.assertGreaterEqual(os.lseek(fd, 1 << 20, os.SEEK_HOLE), (1 << 20) + 4096)
        os.close(fd)
        fd = os.open(ann.path("a"), os.O_RDONLY)
        self.assertEqual(1 << 20, os.lseek(fd, 0, os.SEEK_DATA))
        self.assertEqual((1 << 20) + 4096, os.lseek(fd, 1 << 20, os.SEEK_HOLE))
        self.assertRaises(OSError, os.lseek, fd, 4 << 20, os.SEEK_DATA)
        os.close(fd)


class Saving(SwarmTest):
    """What editors do when they save; the other member reads all the while, and must see whole versions only."""

    def version(self, number):
        return (b"version %06d\n" % number) * (3000 + 700 * (number % 5))

    def in_place(self, path, data):  # nano, and most scripts
        with open(path, "wb") as file:
            for at in range(0, len(data), 10000):
                file.write(data[at:at + 10000])
                file.flush()

    def by_rename(self, path, data):  # a new file beside, then renamed over
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.fchmod(fd, 0o644)
        os.close(fd)
        os.rename(path + ".tmp", path)

    def by_backup(self, path, data):  # vim: the old one moves away, the new one is written under the name
        swap = os.open(os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".swp"), os.O_RDWR | os.O_CREAT)
        os.write(swap, data[:4096])
        os.fsync(swap)
        os.rename(path, path + "~")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.unlink(path + "~")
        os.close(swap)
        os.unlink(os.path.join(os.path.dirname(path), "." + os.path.basename(path) + ".swp"))

    def by_lock_and_copy(self, path, data):  # LibreOffice: a lock, a temporary file, its bytes over the old ones
        directory, name = os.path.split(path)
        lock = os.path.join(directory, f".~lock.{name}#")
        with open(lock, "w") as file:
            file.write("somebody")
        with open(os.path.join(directory, "lu1234.tmp"), "w+b") as temporary:
            temporary.write(data)
            temporary.seek(0)
            with open(path, "r+b") as file:
                while block := temporary.read(32768):
                    file.write(block)
                file.truncate(len(data))
        os.unlink(os.path.join(directory, "lu1234.tmp"))
        os.unlink(lock)

    def exchanged(self, path, data):  # renameat2(RENAME_EXCHANGE), then the old one goes
        with open(path + ".new", "wb") as file:
            file.write(data)
        if libc.renameat2(-100, (path + ".new").encode(), -100, path.encode(), 2) != 0:
            raise OSError("renameat2")
        os.unlink(path + ".new")

    def test_another_member_sees_each_saved_version_whole(self):
        ann, ben = self.members("ann", "ben", options="wait=10s")
        ann.write("doc", self.version(0))
        ben.await_file("doc", len(self.version(0)))
        done, faults, seen = threading.Event(), [], set()

        def watch():
            while not done.is_set():
                try:
                    data = ben.read("doc")
                except FileNotFoundError:
                    continue  # between vim's two renames
                except OSError as error:
                    faults.append(str(error))
                    return
                number = int(data[8:14] or b"-1")
                seen.add(number)
                if number < 0 or data != self.version(number):
                    faults.append(f"{len(data)} bytes that begin as version {number}")
                    return
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            number = 0
            for _ in range(4):
                for save in (self.in_place, self.by_rename, self.by_backup, self.by_lock_and_copy, self.exchanged):
                    number += 1
                    save(ann.path("doc"), self.version(number))
                    self.assertEqual(self.version(number), ann.read("doc"), save.__name__)
            wait_for("the last version at ben's", lambda: number in seen or faults)
        finally:
            done.set()
            thread.join()
        self.assertEqual([], faults)
        self.assertEqual(["doc"], os.listdir(ann.mount))
        wait_for("ben's directory", lambda: os.listdir(ben.mount) == ["doc"])


if __name__ == "__main__":
    main()
