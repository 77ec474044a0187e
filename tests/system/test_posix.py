"""What programs expect of a local disk: reading and writing through one mount, the result seen whole at another member's."""
import mmap
import os
import unittest

from harness import SwarmTest, main, pattern

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


if __name__ == "__main__":
    main()
