"""Random operations on one file of the mount, each compared with what a file in memory would have: `Exerciser(path, seed).run(count)`.

Reads and writes of all kinds (read, write, mapped, appended), cuts, extensions, holes, zeroed ranges, copies within the
file, fsync, closing and opening again. A difference names the seed and the last operations; the same seed does the same again.
"""
import ctypes
import mmap
import os
import random

from harness import libc

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # linux/falloc.h


def fallocate(fd, mode, offset, size):
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(size)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


class Exerciser:
    LARGEST = 3 << 20  # more than the daemon waits for before it hashes behind the writer
    LONGEST = 96 << 10

    def __init__(self, path, seed, largest=LARGEST):
        self.path, self.seed, self.largest = path, seed, largest
        self.chance = random.Random(seed)
        self.expected = bytearray()
        self.log = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def range(self, limit):
        offset = self.chance.randrange(max(limit, 1))
        return offset, min(self.chance.randrange(1, self.LONGEST), limit - offset)

    def put(self, offset, data):
        if offset > len(self.expected):
            self.expected.extend(bytes(offset - len(self.expected)))
        self.expected[offset:offset + len(data)] = data

    def check(self, what, offset, got):
        expected = bytes(self.expected[offset:offset + len(got)])
        if got != expected:
            at = next(i for i in range(len(got)) if got[i] != expected[i:i + 1][0]) + offset
            raise AssertionError(f"seed {self.seed}: {what} differs at byte {at} of {len(self.expected)}; "
                                 f"the last operations: {self.log[-12:]}")

    def read(self):
        offset, size = self.range(len(self.expected))
        got = os.pread(self.fd, size, offset)
        if len(got) != size:
            raise AssertionError(f"seed {self.seed}: {len(got)} bytes read of {size} at {offset}")
        self.check("read", offset, got)

    def write(self):
        offset, size = self.range(self.largest)
        data = self.chance.randbytes(size)
        os.pwrite(self.fd, data, offset)
        self.put(offset, data)

    def append(self):
        data = self.chance.randbytes(self.chance.randrange(1, 5000))
        if len(self.expected) + len(data) > self.largest:
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.expected.extend(data)

    def map_read(self):
        offset, size = self.range(len(self.expected))
        if size > 0:
            with mmap.mmap(self.fd, len(self.expected), mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                self.check("mapped read", offset, mapping[offset:offset + size])

    def map_write(self):
        offset, size = self.range(len(self.expected))
        if size > 0:
            data = self.chance.randbytes(size)
            with mmap.mmap(self.fd, len(self.expected), mmap.MAP_SHARED) as mapping:
                mapping[offset:offset + size] = data
            self.put(offset, data)

    def cut(self):
        size = self.chance.randrange(self.largest)
        os.ftruncate(self.fd, size)
        if size < len(self.expected):
            del self.expected[size:]
        else:
            self.expected.extend(bytes(size - len(self.expected)))

    def punch(self):
        offset, size = self.range(len(self.expected))
        if size > 0:
            fallocate(self.fd, self.chance.choice((PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE)), offset, size)
            self.put(offset, bytes(size))

    def allocate(self):
        offset, size = self.range(self.largest)
        fallocate(self.fd, 0, offset, size)
        if offset + size > len(self.expected):
            self.expected.extend(bytes(offset + size - len(self.expected)))

    def copy(self):
        offset, size = self.range(len(self.expected))
        to = self.chance.randrange(self.largest)
        size = min(size, abs(to - offset), self.largest - to)
        if size > 0:
            data = bytes(self.expected[offset:offset + size])
            done = 0
            while done < size:
                done += os.copy_file_range(self.fd, self.fd, size - done, offset + done, to + done)
            self.put(to, data)

    def sync(self):
        os.fsync(self.fd)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)
        if os.fstat(self.fd).st_size != len(self.expected):
            raise AssertionError(f"seed {self.seed}: {os.fstat(self.fd).st_size} bytes instead of {len(self.expected)}; "
                                 f"the last operations: {self.log[-12:]}")

    def run(self, count):
        weights = {self.read: 8, self.write: 10, self.append: 2, self.map_read: 4, self.map_write: 4, self.cut: 1, self.punch: 3,
                   self.allocate: 2, self.copy: 4, self.sync: 1, self.reopen: 1}
        actions = list(weights)
        for _ in range(count):
            action = self.chance.choices(actions, weights.values())[0]
            self.log.append(action.__name__)
            action()
        os.close(self.fd)
        with open(self.path, "rb") as file:
            self.check("the closed file", 0, file.read())
        return bytes(self.expected)
