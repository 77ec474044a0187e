"""Real programs on the mount: tar, git, rsync, SQLite, mmap; ffmpeg where it is installed."""
import mmap
import json
import os
import random
import shutil
import sqlite3
import subprocess
import unittest

from harness import SANITIZER, SwarmTest, main, pattern, wait_for

SMALL_FILES = 300 if SANITIZER else 2000


class Programs(SwarmTest):
    def make_tree(self, path, count):
        """Looks like a source tree: directories three deep, sizes from nothing to 60 KB, a link, odd modes."""
        chance = random.Random(4)
        for i in range(count):
            directory = os.path.join(path, f"dir{i % 17}", f"sub{i % 5}")
            os.makedirs(directory, exist_ok=True)
            name = os.path.join(directory, f"file{i}.c")
            with open(name, "wb") as file:
                file.write(pattern(int(chance.paretovariate(1) * 1000) % 60000, i))
            os.utime(name, ns=(10 ** 18 + i, 10 ** 18 + i * 1000003))
            os.chmod(name, 0o755 if i % 9 == 0 else 0o644)
        os.symlink("dir1/sub1", os.path.join(path, "link"))

    def listing(self, path):
        out = {}
        for directory, names, files in os.walk(path):
            for name in names + files:
                whole = os.path.join(directory, name)
                status = os.lstat(whole)
                mtime = status.st_mtime_ns if name in files and not os.path.islink(whole) else 0
                out[os.path.relpath(whole, path)] = (status.st_mode, mtime)
        return out

    def test_tar_in_here_and_diff_there(self):
        ann, ben = self.members("ann", "ben")
        source = os.path.join(self.directory, "source")
        self.make_tree(source, SMALL_FILES)
        archive = os.path.join(self.directory, "source.tar")
        self.run("tar", "--format=posix", "-cf", archive, "-C", self.directory, "source")
        self.run("tar", "xf", archive, "-C", ann.mount, timeout=600)
        expected = self.listing(source)
        wait_for("the whole tree at ben's", lambda: len(self.listing(ben.path("source"))) == len(expected), 30)
        wait_for("modes and times at ben's", lambda: self.listing(ben.path("source")) == expected, 10)
        self.run("diff", "-r", "--no-dereference", source, ben.path("source"), timeout=600)
        copy = os.path.join(self.directory, "copy")
        self.run("cp", "-r", ben.path("source"), copy)
        self.run("diff", "-r", "--no-dereference", source, copy)

    @unittest.skipUnless(shutil.which("git"), "no git")
    def test_git_clones_from_a_bare_repository_on_the_mount(self):
        ann, ben = self.members("ann", "ben")
        work = os.path.join(self.directory, "work")
        os.makedirs(work)
        self.make_tree(work, 120)
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        self.run(*git, "init", "-q", cwd=work)
        self.run(*git, "add", ".", cwd=work)
        self.run(*git, "commit", "-qm", "all", cwd=work)
        self.run(*git, "clone", "-q", "--bare", work, ann.path("repository.git"))
        head = self.run(*git, "rev-parse", "HEAD", cwd=work).stdout
        wait_for("the repository at ben's", lambda: os.path.exists(ben.path("repository.git/packed-refs")) or
                 os.path.exists(ben.path("repository.git/refs/heads/main")))
        self.run(*git, "-c", "safe.directory=*", "clone", "-q", ben.path("repository.git"),
                 os.path.join(self.directory, "clone"))
        self.assertEqual(head, self.run(*git, "rev-parse", "HEAD", cwd=os.path.join(self.directory, "clone")).stdout)
        self.run(*git, "fsck", "--strict", cwd=os.path.join(self.directory, "clone"))

    @unittest.skipUnless(shutil.which("rsync"), "no rsync")
    def test_rsync_in_and_out(self):
        ann, ben = self.members("ann", "ben")
        source = os.path.join(self.directory, "source")
        self.make_tree(source, 150)
        self.run("rsync", "-a", source + "/", ann.path("tree") + "/")
        expected = self.listing(source)
        wait_for("the tree at ben's", lambda: self.listing(ben.path("tree")) == expected, 30)
        out = os.path.join(self.directory, "out")
        self.run("rsync", "-a", ben.path("tree") + "/", out + "/")
        self.run("diff", "-r", "--no-dereference", source, out)
        again = self.run("rsync", "-a", "-i", source + "/", ann.path("tree") + "/").stdout
        self.assertEqual("", again, "nothing is left to do the second time")

    def test_copying_onto_the_mount_itself_sets_its_mode_and_times(self):
        ann, ben = self.members("ann", "ben")
        source = os.path.join(self.directory, "source")
        os.makedirs(os.path.join(source, "sub"))
        with open(os.path.join(source, "sub", "file"), "wb") as file:
            file.write(b"bytes")
        archive = os.path.join(self.directory, "source.tar")
        before = os.stat(ben.mount)
        ways = [("tar", "xf", archive, "-C", ann.mount), ("cp", "-a", source + "/.", ann.mount + "/")]
        if shutil.which("rsync"):
            ways.append(("rsync", "-a", source + "/", ann.mount + "/"))
        for number, way in enumerate(ways):
            mode, time = (0o700, 0o750, 0o755)[number], (10 ** 9 + number) * 10 ** 9
            os.chmod(source, mode)
            os.utime(source, ns=(time, time))
            if way[0] == "tar":
                self.run("tar", "cf", archive, "-C", source, ".")
            self.run(*way)
            status = os.stat(ann.mount)
            self.assertEqual((mode, time), (status.st_mode & 0o777, status.st_mtime_ns), way)
        ann.write("new", b"")
        self.assertGreater(os.stat(ann.mount).st_mtime_ns, 10 ** 18 + 10 ** 17)  # names changed since
        ben.await_file("new", 0)
        self.assertEqual(before.st_mode, os.stat(ben.mount).st_mode)  # the mode is the mount's own

    def test_an_sqlite_database_opens_read_only(self):
        ann, ben = self.members("ann", "ben")
        path = os.path.join(self.directory, "data.db")
        with sqlite3.connect(path) as base:
            base.execute("create table t(i integer primary key, v blob)")
            base.executemany("insert into t(v) values(?)", ((pattern(2000, i),) for i in range(2000)))
        base.close()
        shutil.copy(path, ann.path("data.db"))
        ben.await_file("data.db", os.path.getsize(path))
        base = sqlite3.connect(f"file:{ben.path('data.db')}?mode=ro", uri=True)
        self.assertEqual([("ok",)], base.execute("pragma integrity_check").fetchall())
        self.assertEqual(pattern(2000, 1234), base.execute("select v from t where i = 1235").fetchone()[0])
        base.close()

    def test_mmap_reads_what_is_not_here_yet(self):
        ann, ben = self.members("ann", "ben")
        data = pattern(8 << 20)
        ann.write("model.bin", data)
        ben.await_file("model.bin", len(data))
        with open(ben.path("model.bin"), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            chance = random.Random(1)
            for _ in range(50):
                at = chance.randrange(len(data) - 100)
                self.assertEqual(data[at:at + 100], memory[at:at + 100])
            self.assert_same_bytes(data, memory[:])

    def test_du_and_df_tell_what_is_here(self):
        ann, ben = self.members("ann", "ben")
        ann.write("f", pattern(8 << 20))
        ben.await_file("f", 8 << 20)
        self.assertEqual(0, os.stat(ben.path("f")).st_blocks)
        with open(ben.path("f"), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.seek(4 << 20)
            file.read(4096)
        wait_for("some of it to be here", lambda: 0 < os.stat(ben.path("f")).st_blocks * 512 <= 512 << 10, 5)
        ben.ctl("get", "/f")
        wait_for("all of it to be here", lambda: os.stat(ben.path("f")).st_blocks * 512 == 8 << 20, 5)
        space = os.statvfs(ben.mount)
        self.assertGreater(space.f_blocks, 0)
        self.assertGreater(space.f_bavail, 0)

    @unittest.skipUnless(shutil.which("ffmpeg") and not SANITIZER, "no ffmpeg, or too slow for it")
    def test_a_video_is_probed_and_transcoded_with_seeks(self):
        ann, ben = self.members("ann", "ben")
        film = os.path.join(self.directory, "film.mp4")
        self.run("ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10", "-t", "600",
                 "-c:v", "mpeg4", "-b:v", "800k", film, timeout=300)
        shutil.copy(film, ann.path("film.mp4"))
        ben.await_file("film.mp4", os.path.getsize(film))
        probe = self.run("ffprobe", "-v", "error", "-show_entries", "format=duration", ben.path("film.mp4")).stdout
        self.assertIn("600", probe)
        for at in (580, 5, 300):
            out = os.path.join(self.directory, f"{at}.mp4")
            self.run("ffmpeg", "-loglevel", "error", "-ss", str(at), "-i", ben.path("film.mp4"), "-t", "3", "-c:v", "mpeg4",
                     out)
            self.assertGreater(os.path.getsize(out), 10000)
        self.run("cmp", film, ben.path("film.mp4"))


class Probes(SwarmTest):
    def test_a_probe_costs_what_is_read_and_little_more(self):
        ann, ben = self.members("ann", "ben")
        size = 32 << 20
        ann.write("f.bin", pattern(size))
        ben.await_file("f.bin", size)
        with open(ben.path("f.bin"), "rb") as file:
            file.read(64 << 10)
            file.seek(size - (64 << 10))
            file.read(64 << 10)
        self.assertLessEqual(self.fetched(ben, "f.bin"), 256 << 10)

    def test_file_and_a_small_read_cost_a_fraction_of_a_megabyte(self):
        ann, ben = self.members("ann", "ben")
        size = 32 << 20
        for name in ("one.bin", "two.bin"):
            ann.write(name, b"%PDF-1.4\n" + pattern(size, len(name)))
            ben.await_file(name, size + 9)
        if shutil.which("file"):
            # By itself it asks for 7 MiB at either end, and gets them.
            self.assertIn("PDF", self.run("file", "-P", "bytes=65536", "-b", ben.path("one.bin")).stdout)
            self.assertLessEqual(self.fetched(ben, "one.bin"), 256 << 10)
        with open(ben.path("two.bin"), "rb") as file:
            os.pread(file.fileno(), 16, size // 2)
        self.assertLessEqual(self.fetched(ben, "two.bin"), 256 << 10)

    @staticmethod
    def fetched(member, name):
        """Bytes of the file that are here once nothing is under way any more."""
        def settled():
            status = json.loads(member.ctl("status", "--json").stdout)
            peers = json.loads(member.ctl("peers", "--json").stdout)["peers"]
            return not status.get("files") and not any(peer.get("queued") for peer in peers)
        wait_for("nothing to be under way", settled)
        return int(member.xattr(name, "have").split("/")[0].split()[0])

    def test_a_file_that_is_really_read_is_completed_in_the_background(self):
        ann, ben = self.members("ann", "ben")
        size = 32 << 20
        ann.write("f.bin", pattern(size))
        ben.await_file("f.bin", size)
        with open(ben.path("f.bin"), "rb") as file:
            file.read(size // 2)
            wait_for("the rest", lambda: ben.xattr("f.bin", "state") == "complete", 30)


if __name__ == "__main__":
    main()
