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


if __name__ == "__main__":
    main()
