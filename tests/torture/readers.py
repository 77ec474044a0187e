#!/usr/bin/python3
"""A hundred readers at once in one member's mount, most of them through mmap, while files are written here and replaced elsewhere, and while
the cache takes away what they read: no wrong byte, no reader that hangs, no look that takes longer than the mount's wait.

    tests/torture/readers.py [--seconds 120] [--readers 100] [--seed 1]

Readers are `git fsck`, whole files through a mapping or by read(2), and single bytes of a film far larger than the cache, here and there
through a mapping. Files that are replaced have their version in front, and must be that version to their end.
"""
import argparse
import contextlib
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../system"))
from harness import SLOW, SwarmTest, pattern, wait_for  # noqa: E402

MIB = 1 << 20
CACHE = 16 * MIB
WAIT = 60  # seconds: of the mount
DOCUMENTS = 6
PAGE = 4096


def document(number, version):
    data = b"%08d" % version
    return data + random.Random(f"{number}/{version}").randbytes(1000 + (number * 7919 + version * 104729) % 700000)


class Reader:
    """One process. `busy` tells the test since when it waits for one look."""

    def __init__(self, root, film, seed, slot, since, longest):
        self.root, self.film, self.random = root, film, random.Random(seed)
        self.slot, self.since, self.longest, self.looks = slot, since, longest, 0

    @contextlib.contextmanager
    def look(self):
        began = self.since[self.slot] = time.monotonic()
        yield
        self.since[self.slot] = 0
        self.longest[self.slot] = max(self.longest[self.slot], time.monotonic() - began)
        self.looks += 1

    def film_here_and_there(self):
        with open(os.path.join(self.root, "film"), "rb") as file:
            with mmap.mmap(file.fileno(), len(self.film), mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                for _ in range(50):
                    at = self.random.randrange(len(self.film))
                    with self.look():
                        byte = mapping[at]
                    if byte != self.film[at]:
                        raise AssertionError(f"film: another byte at {at}")

    def film_piece(self):
        at, size = self.random.randrange(len(self.film)), self.random.randrange(1, 300000)
        with open(os.path.join(self.root, "film"), "rb", buffering=0) as file:
            with self.look():
                found = os.pread(file.fileno(), size, at)
        if found != self.film[at:at + size]:
            raise AssertionError(f"film: other bytes from {at}, {len(found)} of them")

    def read_document(self, mapped):
        number = self.random.randrange(DOCUMENTS)
        with self.look():
            with open(os.path.join(self.root, f"document{number}"), "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if mapped and size > 0:
                    with mmap.mmap(file.fileno(), size, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                        found = mapping[:]
                else:
                    found = file.readall()
        expected = document(number, int(found[:8]))
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            raise AssertionError(f"document{number}, version {int(found[:8])}, mapped {mapped}: {len(found)} bytes of {len(expected)}, "
                                 f"another from {at}, stat says {size}")

    def checksums(self):
        folder = os.path.join(self.root, "source")
        name = self.random.choice(os.listdir(folder))
        with self.look():
            with open(os.path.join(folder, name), "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                digest = hashlib.sha256(mapping).hexdigest()
        if digest != name:
            raise AssertionError(f"source/{name}: the checksum is {digest}")

    def run(self, until):
        kinds = {self.film_here_and_there: 3, self.film_piece: 2, lambda: self.read_document(True): 3,
                 lambda: self.read_document(False): 1, self.checksums: 4}
        while time.monotonic() < until:
            self.random.choices(list(kinds), list(kinds.values()))[0]()


def read(root, film, seed, slot, since, longest, seconds, results):
    reader, why = Reader(root, film, seed, slot, since, longest), None
    try:
        reader.run(time.monotonic() + seconds)
    except BaseException as error:  # pylint: disable=broad-except
        why = f"reader {slot}: {error!r}"
    results.put((reader.looks, why))


def replace(root, seed, seconds, results):
    """In another member's mount."""
    chance, versions, why = random.Random(seed), [0] * DOCUMENTS, None
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            number = chance.randrange(DOCUMENTS)
            versions[number] += 1
            path = os.path.join(root, f"document{number}")
            way = chance.randrange(3)
            if way == 0:
                with open(path + ".new", "wb") as file:
                    file.write(document(number, versions[number]))
                os.rename(path + ".new", path)
            elif way == 1:
                with open(path, "wb") as file:
                    file.write(document(number, versions[number]))
            else:
                with open(path, "r+b") as file:
                    data = document(number, versions[number])
                    file.truncate(len(data))
                    file.write(data)
            time.sleep(0.05)
    except BaseException as error:  # pylint: disable=broad-except
        why = f"replacing: {error!r}"
    results.put((sum(versions), why))


def write(root, seed, seconds, results):
    """In the mount of the readers."""
    chance, done, why = random.Random(seed), 0, None
    until = time.monotonic() + seconds
    path = os.path.join(root, f"own{os.getpid()}")
    try:
        while time.monotonic() < until:
            data = chance.randbytes(chance.randrange(500000))
            with open(path, "w+b") as file:
                file.write(data)
                file.flush()
                if data and chance.random() < 0.5:
                    with mmap.mmap(file.fileno(), len(data)) as mapping:
                        mapping[:100] = bytes(min(100, len(data))) if len(data) < 100 else bytes(100)
                        data = mapping[:]
            with open(path, "rb") as file:
                if file.read() != data:
                    raise AssertionError("own file: other bytes")
            done += 1
    except BaseException as error:  # pylint: disable=broad-except
        why = f"writing: {error!r}"
    results.put((done, why))


class Readers(SwarmTest):
    seconds, readers, seed, film_size, sources, report = 4, 30, 1, 2 * CACHE, 40, False

    def prepare(self, ann):
        chance = random.Random(self.seed)
        self.film = pattern(self.film_size, self.seed)
        ann.write("film", self.film)
        for number in range(DOCUMENTS):
            ann.write(f"document{number}", document(number, 0))
        os.mkdir(ann.path("source"))
        for _ in range(self.sources):
            data = chance.randbytes(chance.choice([100, 5000, 70000, 400000]))
            ann.write(f"source/{hashlib.sha256(data).hexdigest()}", data)
        repository = os.path.join(self.directory, "repository")
        self.run("git", "init", "-q", repository)
        git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "gc.auto=0"]
        for commit in range(3):
            for number in range(40):
                with open(os.path.join(repository, f"f{number}"), "wb") as file:
                    file.write(chance.randbytes(3000 + commit))
            self.run(*git, "add", ".")
            self.run(*git, "commit", "-q", "-m", "x")
            if commit == 1:
                self.run(*git, "repack", "-adq")
        self.run("cp", "-r", repository, ann.path("repository"))

    def fsck(self, member):
        return subprocess.Popen(["git", "-c", "safe.directory=*", "-C", member.path("repository"), "fsck", "--full", "--strict"],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def watch(self, processes, since, fscks, ben, until):
        """Until all have ended. Nobody may wait longer than the mount lets them."""
        checked = 0
        next_evict = time.monotonic()
        while any(p.is_alive() for p in processes):
            now = time.monotonic()
            for slot, began in enumerate(since):
                if began and now - began > WAIT * SLOW:
                    with open(f"/proc/{processes[slot].pid}/stack", encoding="ascii") as stack:
                        self.fail(f"reader {slot} has waited for {now - began:.0f} s:\n{stack.read()}")
            for i, fsck in enumerate(fscks):
                if fsck.poll() is not None:
                    self.assertEqual(0, fsck.returncode, fsck.stdout.read())
                    checked += 1
                    if now < until:
                        fscks[i] = self.fsck(ben)
            if now >= next_evict:
                ben.ctl("evict", "/film", "/source", check=False)
                next_evict = now + 1
            self.assertLess(now, until + (WAIT + 30) * SLOW, "readers do not end")
            time.sleep(0.1)
        return checked

    def test_nobody_hangs_and_no_byte_is_wrong(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", options=f"wait={WAIT}s")
        ben = self.member(tracker, "ben", config=f"[store]\ncache-size = {CACHE >> 20}M\n", options=f"wait={WAIT}s")
        self.prepare(ann)
        head = ann.read("repository/.git/HEAD")
        wait_for("the tree at ben", lambda: os.path.exists(ben.path("repository/.git/HEAD")) and ben.read("repository/.git/HEAD") == head and
                 json.loads(ann.ctl("status", "--json").stdout)["pending"] == 0, 60)
        wait_for("all of it", lambda: len(os.listdir(ben.path("source"))) == self.sources)
        results = multiprocessing.Queue()
        since, longest = (multiprocessing.Array("d", self.readers, lock=False) for _ in range(2))
        processes = [multiprocessing.Process(target=read, args=(ben.mount, self.film, f"{self.seed}/{i}", i, since, longest, self.seconds, results))
                     for i in range(self.readers)]
        processes += [multiprocessing.Process(target=write, args=(ben.mount, f"{self.seed}/w{i}", self.seconds, results)) for i in range(2)]
        processes += [multiprocessing.Process(target=replace, args=(ann.mount, f"{self.seed}/r", self.seconds, results))]
        for process in processes:
            process.start()
        fscks = [self.fsck(ben) for _ in range(3)]
        try:
            checked = self.watch(processes, since, fscks, ben, time.monotonic() + self.seconds)
            told = [results.get(timeout=30) for _ in processes]
            for fsck in fscks:
                text = fsck.communicate(timeout=(WAIT + 30) * SLOW)[0]
                self.assertEqual(0, fsck.returncode, text)
                checked += 1
        finally:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                process.join(30)
            for fsck in fscks:
                if fsck.poll() is None:
                    fsck.kill()
                fsck.wait()
        self.assertEqual([], [why for _, why in told if why])
        self.assertGreater(sum(looks for looks, _ in told), self.readers)
        if self.report:
            print(f"{sum(looks for looks, _ in told)} looks, writes and replacements, the longest look {max(longest):.2f} s; "
                  f"{checked} times git fsck")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    Readers.seconds, Readers.readers, Readers.seed = options.seconds, options.readers, options.seed
    Readers.film_size, Readers.sources, Readers.report = 6 * CACHE, 300, True
    suite = unittest.TestSuite([Readers("test_nobody_hangs_and_no_byte_is_wrong")])
    sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())


if __name__ == "__main__":
    main()
