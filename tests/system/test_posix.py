"""What programs expect of a local disk: reading and writing through one mount, the result seen whole at another member's."""
import ctypes
import mmap
import os
import unittest

from harness import SwarmTest, libc, main, pattern, wait_for

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # linux/falloc.h

PASSES = os.geteuid() == 0 and tuple(int(n) for n in os.uname().release.split(".")[:2]) >= (6, 9)


class Passthrough(SwarmTest):
    def answered(self, member, action):
        """How many bytes p2pfs wrote to the kernel (and elsewhere) during the action."""
        def written():
            with open(f"/proc/{member.fs.process.pid}/io") as io:
                return int(dict(line.split(": ") for line in io.read().splitlines())["wchar"])
        before = written()
        action()
        return written() - before

    @unittest.skipUnless(PASSES, "needs root and Linux 6.9")
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

    @unittest.skipUnless(PASSES, "needs root and Linux 6.9")
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


def fallocate(fd, mode, offset, size):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(size)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


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

    def test_what_is_removed_but_open_has_no_links(self):
        [ann] = self.members("ann")
        with open(ann.path("a"), "w+b") as file:
            file.write(b"12345")
            file.flush()
            os.unlink(ann.path("a"))
            self.assertEqual((0, 5), (os.fstat(file.fileno()).st_nlink, os.fstat(file.fileno()).st_size))
            file.seek(0)
            self.assertEqual(b"12345", file.read())


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


if __name__ == "__main__":
    main()
