"""The cache's limit, p2pctl evict, and what is never evicted."""
import contextlib
import hashlib
import json
import os
import threading

from harness import SwarmTest, main, pattern, wait_for

MIB = 1 << 20
LIMIT = 16 * MIB
CACHE = "[store]\ncache-size = 16M\n"


def disk_bytes(member):
    """What the store's files take."""
    total = 0
    for folder, _, names in os.walk(os.path.join(member.home, "store")):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


def status(member):
    return json.loads(member.ctl("status", "--json").stdout)


class Cache(SwarmTest):
    def test_an_open_file_larger_than_the_cache_is_read_right_twice_and_the_limit_holds(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben", config=CACHE, options="wait=60s")
        data = pattern(4 * LIMIT, 1)
        ann.write("film", data)
        ben.await_file("film", len(data))
        with open(ben.path("film"), "rb", buffering=0) as file:
            for _ in range(2):
                digest = hashlib.sha256()
                file.seek(0)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while part := file.read(MIB):
                    digest.update(part)
                self.assertEqual(hashlib.sha256(data).digest(), digest.digest())
            wait_for("the limit to hold", lambda: disk_bytes(ben) <= LIMIT + MIB)
            self.assertEqual("streaming", ben.xattr("film", "state"))
            self.assertLessEqual(int(ben.xattr("film", "have").split()[0]), LIMIT)
            self.assertLessEqual(os.fstat(file.fileno()).st_blocks * 512, LIMIT)
        # The owner's stays, whatever its own limit.
        self.assertEqual("complete", ann.xattr("film", "state"))

    def test_what_is_put_in_here_pinned_or_the_last_copy_is_never_evicted(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        cleo = self.member(tracker, "cleo")
        ben = self.member(tracker, "ben", config=CACHE, options="wait=60s")
        files = {name: pattern(6 * MIB, seed) for seed, name in enumerate(["pinned", "last", "plain", "next", "after"])}
        for name, data in files.items():
            ann.write(name, data)
        own = pattern(20 * MIB, 9)
        ben.write("own", own)
        for name in files:
            ben.await_file(name, 6 * MIB)
        ben.ctl("pin", "/pinned")
        ben.ctl("get", "/pinned", "/last", "/plain")
        cleo.ctl("get", "/pinned", "/plain", "/next", "/after")
        ann.unmount()
        ann.ctl("stop")
        done = ben.ctl("evict", "/last", check=False)
        self.assertEqual((1, ""), (done.returncode, done.stdout))
        self.assertEqual("p2pctl: /last stays: no other connected member has a copy\n", done.stderr)
        done = ben.ctl("evict", "/pinned", check=False)
        self.assertEqual((1, "p2pctl: /pinned is pinned: unpin it first\n"), (done.returncode, done.stderr))
        for name in ["next", "after"]:
            self.assert_same_bytes(files[name], ben.read(name), name)
        wait_for("some of it to go", lambda: any(ben.xattr(n, "state") != "complete" for n in ["plain", "next", "after"]))
        for name in ["pinned", "last", "own"]:
            self.assertEqual("complete", ben.xattr(name, "state"), name)
            self.assert_same_bytes(files.get(name, own), ben.read(name), name)
        for name in ["plain", "next", "after"]:
            self.assert_same_bytes(files[name], ben.read(name), name)
        self.assertEqual(LIMIT, status(ben)["cache_size"])

    def test_health_shows_the_worst_of_many_files_and_says_so(self):
        ann, ben = self.members("ann", "ben")
        os.mkdir(ann.path("d"))
        for number in range(54):
            ann.write(f"d/a{number:02}", b"bytes %d" % number)
        ann.write("z", b"at one member only")
        ben.await_file("z")
        ben.ctl("get", "/d")
        wait_for("ben's copies to be known", lambda: [54, 1] == [
            [f["complete"] for f in json.loads(ann.ctl("health", "--json", "/").stdout)["files"]].count(copies)
            for copies in (2, 1)])
        lines = ann.ctl("health", "/").stdout.splitlines()
        self.assertEqual(52, len(lines))  # with its heading and the line about the rest
        self.assertRegex(lines[1], "^/z .*at risk")
        self.assertEqual("5 more are no worse off; --all shows them.", lines[-1])
        self.assertEqual(56, len(ann.ctl("health", "--all", "/").stdout.splitlines()))

    def test_evict_gives_space_back_of_open_files_too_and_they_are_fetched_again(self):
        ann, ben = self.members("ann", "ben", options="wait=60s")
        data = pattern(8 * MIB, 3)
        ann.write("f", data)
        ann.write("g", data[:MIB])
        ben.await_file("g", MIB)
        wait_for("ann's copies to be known", lambda: all(f["complete"] == 1 for f in json.loads(
            ben.ctl("health", "--json", "/f", "/g").stdout)["files"]))
        streaming = os.open(ben.path("f"), os.O_RDONLY)
        self.addCleanup(os.close, streaming)
        self.assert_same_bytes(data, os.pread(streaming, len(data), 0))
        ben.ctl("get", "/f", "/g")
        done = json.loads(ben.ctl("evict", "--json", "/").stdout)
        self.assertEqual({"done": True, "files": 2, "bytes": 9 * MIB, "kept": 0}, done)
        # What lies in front of the reader's place may come back at once.
        self.assertLess(int(ben.xattr("f", "have").split()[0]), 5 * MIB)
        self.assertLess(disk_bytes(ben), 6 * MIB)
        os.posix_fadvise(streaming, 0, 0, os.POSIX_FADV_DONTNEED)
        self.assert_same_bytes(data, os.pread(streaming, len(data), 0))
        # Whoever opened it whole has it whole.
        ben.ctl("get", "/g")
        with open(ben.path("g"), "rb") as file:
            self.assertEqual(1, ben.ctl("evict", "/g", check=False).returncode)
            self.assert_same_bytes(data[:MIB], file.read())
        wait_for("the file to be let go", lambda: ben.ctl("evict", "/g", check=False).returncode == 0)
        # Its owner may let go of it, now that another has it.
        ben.ctl("get", "/g")
        wait_for("the tracker to hear of it", lambda: ann.ctl("evict", "/g", check=False).returncode == 0)
        self.assertEqual("published", ann.xattr("g", "state"))
        self.assert_same_bytes(data[:MIB], ann.read("g"))

    def test_two_who_evict_at_once_leave_one_copy(self):
        ann, ben = self.members("ann", "ben", options="wait=60s")
        names = [f"f{i}" for i in range(20)]
        for i, name in enumerate(names):
            ann.write(name, pattern(MIB, i))
        ben.await_file(names[-1], MIB)
        ben.ctl("get", "/")
        wait_for("two copies", lambda: all(f["complete"] == 2 for f in json.loads(
            ben.ctl("health", "--json", *["/" + n for n in names]).stdout)["files"]))
        both = [threading.Thread(target=m.ctl, args=("evict", "/"), kwargs={"check": False}) for m in (ann, ben)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        for i, name in enumerate(names):
            states = {ann.xattr(name, "state"), ben.xattr(name, "state")}
            self.assertIn("complete", states, name)
            self.assert_same_bytes(pattern(MIB, i), ben.read(name), name)

    def test_a_limit_that_is_no_limit_is_refused(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=False)
        with open(os.path.join(ann.home, "p2pd.conf"), "a") as conf:
            conf.write("[store]\ncache-size = 1M\n")
        done = self.run(ann.daemon.arguments[0], "--check", env=ann.env, check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn("cache-size in [store] is less than 16M", done.stderr)


if __name__ == "__main__":
    main()
