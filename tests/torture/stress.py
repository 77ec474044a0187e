#!/usr/bin/python3
"""Many processes do what programs do to a tree, all at once, in one mount; then two members have to see the same tree.

    tests/torture/stress.py [--seconds 300] [--processes 8] [--seed 1] [--names 40]

Every operation may fail, as another process may have been quicker, but only in ways that fit; none may hang. Names are few, so that
processes meet. The same seed chooses the same operations for each process; how they meet depends on the machine.
"""
import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import stat
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../system"))
from harness import SwarmTest, wait_for  # noqa: E402

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2
FITS = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ENODATA, errno.ELOOP, errno.ESTALE,
        errno.ENAMETOOLONG, errno.EPERM, errno.ENXIO, errno.ETXTBSY, errno.EBUSY}
LARGEST = 300000


def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Worker:
    def __init__(self, root, seed, names):
        self.random, self.root, self.names = random.Random(seed), root, names
        self.done = self.failed = 0
        kinds = {self.make: 5, self.write: 8, self.append: 4, self.through_map: 3, self.read: 4, self.truncate: 3, self.allocate: 2,
                 self.mkdir: 3, self.rmdir: 2, self.rename: 5, self.exchange: 2, self.rename_new: 2, self.unlink: 5, self.symlink: 2,
                 self.hard_link: 1, self.chmod: 2, self.times: 1, self.set_xattr: 2, self.remove_xattr: 1, self.listing: 2, self.save: 4,
                 self.unlinked: 1}
        self.kinds, self.weights = list(kinds), list(kinds.values())

    def folder(self):
        r = self.random
        return os.path.join(self.root, *(f"d{r.randrange(4)}" for _ in range(r.choice([0, 0, 1, 1, 2]))))

    def name(self):
        return os.path.join(self.folder(), f"f{self.random.randrange(self.names)}")

    def data(self):
        return self.random.randbytes(self.random.choice([0, 1, 100, 5000, 20000, self.random.randrange(LARGEST)]))

    @contextlib.contextmanager
    def opened(self, flags, name=None):
        fd = os.open(name or self.name(), flags | os.O_CLOEXEC, 0o644)
        try:
            yield fd
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def make(self):
        with self.opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            os.write(fd, self.data())

    def write(self):
        with self.opened(os.O_RDWR | self.random.choice([0, os.O_CREAT, os.O_CREAT | os.O_TRUNC])) as fd:
            for _ in range(self.random.randrange(1, 4)):
                os.pwrite(fd, self.data(), self.random.randrange(LARGEST))
            if self.random.random() < 0.2:
                os.fsync(fd)

    def append(self):
        with self.opened(os.O_WRONLY | os.O_APPEND) as fd:
            if os.fstat(fd).st_size < 4 * LARGEST:
                os.write(fd, self.data())

    def through_map(self):
        """Of a file that only this process has: where another cuts it short there is a SIGBUS, as on any disk."""
        with self.opened(os.O_RDWR | os.O_CREAT, os.path.join(self.root, f"m{os.getpid()}")) as fd:
            size = self.random.randrange(1, LARGEST)
            os.truncate(fd, size)
            with mmap.mmap(fd, size) as mapping:
                part = self.random.randbytes(min(size, 5000))
                mapping[:len(part)] = part

    def read(self):
        with self.opened(os.O_RDONLY) as fd:
            while os.read(fd, 100000):
                pass

    def truncate(self):
        os.truncate(self.name(), self.random.randrange(LARGEST))

    def allocate(self):
        with self.opened(os.O_WRONLY) as fd:
            mode = self.random.choice([0, 1, 3])  # grow, keep the size, punch a hole
            call(LIBC.fallocate(fd, mode, ctypes.c_long(self.random.randrange(LARGEST)), ctypes.c_long(1 + self.random.randrange(50000))))

    def mkdir(self):
        os.mkdir(os.path.join(self.folder(), f"d{self.random.randrange(4)}"))

    def rmdir(self):
        os.rmdir(os.path.join(self.folder(), f"d{self.random.randrange(4)}"))

    def rename(self):
        if self.random.random() < 0.2:
            os.rename(os.path.join(self.folder(), f"d{self.random.randrange(4)}"), os.path.join(self.folder(), f"d{self.random.randrange(4)}"))
        else:
            os.rename(self.name(), self.name())

    def rename_with(self, flags):
        call(LIBC.renameat2(-100, self.name().encode(), -100, self.name().encode(), flags))

    def exchange(self):
        self.rename_with(EXCHANGE)

    def rename_new(self):
        self.rename_with(NOREPLACE)

    def unlink(self):
        os.unlink(self.name())

    def symlink(self):
        os.symlink(f"f{self.random.randrange(self.names)}", self.name())

    def hard_link(self):
        try:
            os.link(self.name(), self.name() + ".link")
        except OSError as error:
            if error.errno in FITS | {errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                return
            raise
        raise AssertionError("a hard link was made")

    def chmod(self):
        os.chmod(self.name(), self.random.choice([0o600, 0o644, 0o755, 0o444]))

    def times(self):
        os.utime(self.name(), ns=(0, self.random.randrange(10**18)))

    def set_xattr(self):
        os.setxattr(self.name(), f"user.x{self.random.randrange(3)}", self.random.randbytes(self.random.randrange(200)))

    def remove_xattr(self):
        os.removexattr(self.name(), f"user.x{self.random.randrange(3)}")

    def listing(self):
        for entry in os.scandir(self.folder()):
            with contextlib.suppress(FileNotFoundError):
                entry.stat(follow_symlinks=False)

    def save(self):
        """As editors do."""
        name = self.name()
        new = f"{name}.{os.getpid()}"
        with self.opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL, new) as fd:
            os.write(fd, self.data())
            os.fsync(fd)
        os.rename(new, name)

    def unlinked(self):
        """A file without a name keeps its bytes."""
        name, data = os.path.join(self.root, f"u{os.getpid()}"), self.data()
        with self.opened(os.O_RDWR | os.O_CREAT | os.O_EXCL, name) as fd:
            os.unlink(name)
            os.write(fd, data)
            if os.pread(fd, len(data) + 1, 0) != data:
                raise AssertionError("a file without a name has other bytes than were written")

    def run(self, until):
        while time.monotonic() < until:
            kind = self.random.choices(self.kinds, self.weights)[0]
            try:
                kind()
            except OSError as error:
                if error.errno not in FITS:
                    raise AssertionError(f"{kind.__name__}: {error}") from None
                self.failed += 1
            self.done += 1


def work(root, seed, names, seconds, results):
    worker, why = Worker(root, seed, names), None
    try:
        worker.run(time.monotonic() + seconds)
    except BaseException as error:  # pylint: disable=broad-except
        why = f"process {seed}: {error!r}"
    results.put((worker.done, worker.failed, why))


def tree(root):
    """Everything that another member must see the same."""
    found = {}

    def add(folder):
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            status = entry.stat(follow_symlinks=False)
            what = [stat.S_IFMT(status.st_mode), status.st_mode & 0o777]
            if entry.is_symlink():
                what.append(os.readlink(entry.path))
            else:
                what.append(sorted((k, os.getxattr(entry.path, k)) for k in os.listxattr(entry.path) if not k.startswith("user.p2p.")))
            if entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb") as file:
                    what += [status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
            found[os.path.relpath(entry.path, root)] = what
            if entry.is_dir(follow_symlinks=False):
                add(entry.path)

    add(root)
    return found


class Stress(SwarmTest):
    seconds, workers, seed, names, report = 4, 8, 1, 40, False

    @staticmethod
    def calm(member):
        status = json.loads(member.ctl("status", "--json").stdout)
        return status["connected"] and status["pending"] == 0

    def test_two_members_see_the_same_tree_in_the_end(self):
        tracker = self.tracker()
        ann, ben = self.member(tracker, "ann", options="wait=60s"), self.member(tracker, "ben", options="wait=60s")
        results = multiprocessing.Queue()
        all_of_them = [multiprocessing.Process(target=work, args=(ann.mount, f"{self.seed}/{i}", self.names, self.seconds, results))
                       for i in range(self.workers)]
        for process in all_of_them:
            process.start()
        told = []
        for _ in all_of_them:
            told.append(results.get(timeout=self.seconds + 120))
        for process in all_of_them:
            process.join(30)
            self.assertEqual(0, process.exitcode)
        self.assertEqual([], [why for _, _, why in told if why])
        wait_for("ann to be calm", lambda: self.calm(ann), 60)
        here = tree(ann.mount)
        there = {}

        def same():
            nonlocal there
            try:
                there = tree(ben.mount)
            except OSError:
                return False
            return there == here

        try:
            wait_for("the same tree at ben", same, 60)
        except AssertionError:
            for name in sorted(set(here) | set(there)):
                if here.get(name) != there.get(name):
                    print(name, "\n   ann", here.get(name), "\n   ben", there.get(name))
            raise
        self.assertEqual([], [name for name in here if "(conflict" in name])
        self.assertGreater(sum(done for done, _, _ in told), self.workers)
        ann.unmount()
        ann.start_mount()
        self.assertEqual(here, tree(ann.mount), "what the kernel had in memory was something else")
        if self.report:
            print(f"{sum(t[0] for t in told)} operations, {sum(t[1] for t in told)} of them refused; {len(here)} entries in the end")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--names", type=int, default=40)
    options = parser.parse_args()
    Stress.seconds, Stress.workers, Stress.seed, Stress.names = options.seconds, options.processes, options.seed, options.names
    Stress.report = True
    suite = unittest.TestSuite([Stress("test_two_members_see_the_same_tree_in_the_end")])
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())


if __name__ == "__main__":
    main()
