"""A tree of files, three members, one of whom joins later."""
import os
import shutil
import threading

from harness import BIN, Member, Process, SwarmTest, libtorrent_root, main, pattern, wait_for, SANITIZER

LARGE = (24 if SANITIZER else 300) << 20
FILES = {
    "empty": 0,
    "one byte": 1,
    "ein Block": 16384,
    "Blöcke/ein Block und ein Byte": 16385,
    "Blöcke/tief/größer.bin": 5_000_001,
    "Blöcke/tief/Ünïcödé 日本/large.img": LARGE,
}


class Tree(SwarmTest):
    def test_a_tree_copied_in_reads_the_same_at_all_members(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ben = self.member(tracker, "ben")
        source = os.path.join(self.directory, "source")
        for seed, (name, size) in enumerate(FILES.items()):
            path = os.path.join(source, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(pattern(size, seed))
        self.run("cp", "-r", source, ann.path("tree"))
        for name, size in FILES.items():
            ben.await_file(os.path.join("tree", name), size)
        self.run("diff", "-r", source, ben.path("tree"))
        cleo = self.member(tracker, "cleo")
        for name, size in FILES.items():
            cleo.await_file(os.path.join("tree", name), size)
        self.run("diff", "-r", source, cleo.path("tree"))
        self.run("diff", "-r", source, ann.path("tree"))
        for name in FILES:
            root = libtorrent_root(os.path.join(source, name))
            for member in ann, ben, cleo:
                self.assertEqual(root, member.xattr(os.path.join("tree", name), "root"), name)
        shutil.rmtree(ann.path("tree"))
        wait_for("the tree to go at cleo's", lambda: not os.path.exists(cleo.path("tree")))


class Names(SwarmTest):
    def test_what_others_do_to_names_is_seen_within_a_second(self):
        ann, ben = self.members("ann", "ben")
        os.mkdir(ann.path("d"))
        ann.write("d/a", b"first")
        wait_for("a new file", lambda: os.path.exists(ben.path("d/a")), 1)
        self.assertEqual(b"first", ben.read("d/a"))
        os.rename(ann.path("d/a"), ann.path("d/b"))
        wait_for("a new name", lambda: os.listdir(ben.path("d")) == ["b"], 1)
        ann.write("d/b", b"second, longer")
        wait_for("a new version", lambda: ben.read("d/b") == b"second, longer", 1)
        ann.write("c", b"takes the place")
        os.rename(ann.path("c"), ann.path("d/b"))
        wait_for("what was renamed over it", lambda: ben.read("d/b") == b"takes the place", 1)
        wait_for("the old name to go", lambda: os.listdir(ben.mount) == ["d"], 1)
        with self.assertRaises(OSError):
            os.rmdir(ben.path("d"))
        os.unlink(ben.path("d/b"))
        wait_for("the file to go", lambda: os.listdir(ann.path("d")) == [], 1)
        os.rmdir(ben.path("d"))
        wait_for("the directory to go", lambda: os.listdir(ann.mount) == [], 1)

    def test_a_name_that_is_replaced_is_never_missing(self):
        ann, ben = self.members("ann", "ben")
        ann.write("f", b"0")
        ben.await_file("f")
        stop, errors, seen, looks = threading.Event(), [], set(), [0]

        def look():
            while not stop.is_set():
                try:
                    os.stat(ben.path("f"))
                    seen.add(ben.read("f"))
                    looks[0] += 1
                except OSError as error:
                    errors.append(error)
        thread = threading.Thread(target=look)
        thread.start()
        for i in range(1, 40):
            ann.write("new", b"%d" % i)
            os.rename(ann.path("new"), ann.path("f"))
            before = looks[0]
            wait_for("a look", lambda: looks[0] > before or errors)
        wait_for("the last version", lambda: b"39" in seen or errors)
        stop.set()
        thread.join()
        self.assertEqual([], errors)
        self.assertGreater(len(seen), 2)

    def test_what_is_saved_through_one_mount_is_read_through_another_of_the_same_member(self):
        ann, = self.members("ann")
        second = Member.__new__(Member)
        second.__dict__.update(vars(ann), mount=os.path.join(self.directory, "ann.second"))
        os.makedirs(second.mount)
        second.fs = Process(self, "ann.second.p2pfs", [f"{BIN}/p2pfs", second.mount, "-f"], ann.env)
        second.start_mount()
        self.addCleanup(second.unmount)
        size = 300000  # of all versions: no attribute shows that it is another one
        ann.write("f", pattern(size, 0))
        second.await_file("f", size)
        with open(second.path("f"), "rb") as old:
            self.assert_same_bytes(pattern(size, 0), old.read(), "before")
            for version, (writer, reader) in enumerate([(ann, second), (second, ann), (ann, second)], 1):
                with open(writer.path("f"), "r+b") as file:
                    file.write(pattern(size, version))
                self.assert_same_bytes(pattern(size, version), writer.read("f"), "through the same mount")
                wait_for(f"version {version} through the other", lambda v=version, r=reader: r.read("f") == pattern(size, v))
            old.seek(0)
            self.assert_same_bytes(pattern(size, 0), old.read(), "who has it open keeps it")

    def test_a_reader_keeps_the_version_that_it_opened(self):
        ann, ben = self.members("ann", "ben")
        old, new = pattern(3 << 20, 1), pattern(2 << 20, 2)
        ann.write("f", old)
        ben.await_file("f", len(old))
        with open(ben.path("f"), "rb") as reader:
            self.assert_same_bytes(old[:100000], reader.read(100000))
            ann.write("f", new)
            ben.await_file("f", len(new))
            self.assert_same_bytes(old[100000:], reader.read(), "the opened version")
        self.assert_same_bytes(new, ben.read("f"), "the new version")


if __name__ == "__main__":
    main()
