"""An encrypted store: nothing of a content is on the disk, all else works as ever, and its key is looked after."""
import hashlib
import json
import os
import shutil

from harness import BIN, SwarmTest, main, pattern, wait_for

MIB = 1 << 20
MARK = b"what nobody shall find on the disk; "
ENCRYPTED = "[store]\nencryption = yes\n"


def marked(size):
    """Bytes in which the mark stands at every place that a search could miss."""
    return (MARK * (size // len(MARK) + 1))[:size]


def store_of(member):
    return os.path.join(member.home, "store")


def files_of(member):
    for folder, _, names in os.walk(store_of(member)):
        for name in sorted(names):
            yield os.path.join(folder, name)


def holding(member):
    """The files of the store in which the mark can be read."""
    found = []
    for path in files_of(member):
        with open(path, "rb") as file:
            if MARK in file.read():
                found.append(path)
    return found


def picture(member):
    """What the store holds, byte for byte, and when it was written."""
    seen = {}
    for path in files_of(member):
        with open(path, "rb") as file:
            seen[path] = (hashlib.sha256(file.read()).digest(), os.stat(path).st_mtime_ns)
    return seen


def forget_pages(member, name):
    with open(member.path(name), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class AtRest(SwarmTest):
    def secret(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text + "\n")
        return path

    def refused(self, member, why, *arguments):
        """p2pd does not start, says so in one line, and leaves the store alone."""
        before = picture(member)
        done = self.run(f"{BIN}/p2pd", *arguments, env=member.env, check=False)
        self.assertEqual((1, 1), (done.returncode, done.stderr.count("\n")), done.stderr)
        self.assertIn(why, done.stderr)
        self.assertIn("nothing in the store was touched", done.stderr)
        self.assertEqual(before, picture(member))

    def test_nothing_of_a_content_is_on_the_disk(self):
        tracker = self.tracker()
        ann, ben = (self.member(tracker, name, config=ENCRYPTED) for name in ("ann", "ben"))
        cat = self.member(tracker, "cat")
        contents = {"large": marked(3 * MIB + 777), "small": marked(1000), "tiny": MARK[:5], "block": marked(16384)}
        with open(ann.path("large"), "wb") as file:
            file.write(contents["large"])
            file.flush()
            os.fsync(file.fileno())
            self.assertEqual([], holding(ann), "while it is written")
        for name in ("small", "tiny", "block"):
            ann.write(name, contents[name])
        for member in (ben, cat):
            for name, data in contents.items():
                member.await_file(name, len(data))
        with open(ben.path("large"), "rb") as file: # in part
            file.seek(MIB + 5)
            self.assertEqual(contents["large"][MIB + 5:MIB + 100], file.read(95))
        self.assertEqual([], holding(ben))
        for name, data in contents.items():
            self.assert_same_bytes(data, ben.read(name), name)
            self.assert_same_bytes(data, cat.read(name), name)
            forget_pages(ann, name)
            self.assert_same_bytes(data, ann.read(name), name)
        self.assertEqual(([], []), (holding(ann), holding(ben)))
        for member, encrypted in ((ann, True), (cat, False)):
            self.assertEqual(encrypted, ", encrypted\n" in member.ctl("status").stdout)
            self.assertEqual(encrypted, json.loads(member.ctl("status", "--json").stdout)["store_encrypted"])
        wait_for("the mark in a plain store", lambda: holding(cat))
        # A hole is one there, too.
        with open(ann.path("sparse"), "wb") as file:
            file.truncate(64 * MIB)
            file.seek(32 * MIB + 3)
            file.write(MARK)
        expected = bytes(32 * MIB + 3) + MARK + bytes(32 * MIB - 3 - len(MARK))
        self.assertLess(os.stat(ann.store_file("sparse")).st_blocks * 512, MIB)
        forget_pages(ann, "sparse")
        self.assert_same_bytes(expected, ann.read("sparse"), "sparse")

    def test_editing_restarts_and_kills(self):
        ann, ben = self.members("ann", "ben", config=ENCRYPTED, options="wait=60s")
        data = bytearray(marked(2 * MIB + 13))
        ann.write("f", data)
        ben.await_file("f", len(data))
        self.assert_same_bytes(data, ben.read("f"))
        ann.daemon.stop()
        ann.start_daemon()
        with open(ann.path("f"), "r+b") as file: # a new version, in place
            for at, new in ((0, b"x"), (16383, b"yz"), (MIB + 7, pattern(70001)), (len(data) - 3, b"longer than before")):
                file.seek(at)
                file.write(new)
                data[at:at + len(new)] = new
            file.flush()
            ann.daemon.kill() # p2pfs starts another
            file.truncate(len(data) - 9)
            del data[-9:]
            file.seek(0, 2)
            file.write(b"the end")
            data += b"the end"
        forget_pages(ann, "f")
        self.assert_same_bytes(data, ann.read("f"))
        ben.await_file("f", len(data))
        self.assert_same_bytes(data, ben.read("f"))
        # What was synced is there when all of a member was killed while it wrote.
        file = open(ann.path("log"), "wb", buffering=0)
        written = b""
        for size in (1, 30, 100, 4097):
            written += pattern(size, size)
            file.write(written[-size:])
        os.fsync(file.fileno())
        ann.fs.kill()
        os.kill(json.loads(ann.ctl("status", "--json").stdout)["pid"], 9)
        try:
            file.close()
        except OSError:
            pass
        self.run("fusermount3", "-u", ann.mount, check=False)
        ann.start_daemon()
        ann.start_mount()
        ann.await_file("log", len(written), 60)
        self.assert_same_bytes(written, ann.read("log"))
        self.assert_same_bytes(data, ann.read("f"))

    def test_evicting_and_damage(self):
        ann, ben = self.members("ann", "ben", config=ENCRYPTED, options="wait=60s")
        data = marked(5 * MIB + 99)
        ann.write("f", data)
        ben.await_file("f", len(data))
        ben.ctl("get", "/f")
        self.assertEqual("1 files checked, 5.0 MiB right.\n", ben.ctl("check").stdout.replace("1 file ", "1 files "))
        ben.ctl("evict", "/f")
        self.assertEqual("0", ben.xattr("f", "have").split("/")[0].split()[0])
        self.assert_same_bytes(data, ben.read("f"))
        wait_for("all of it", lambda: ben.xattr("f", "state") == "complete")
        wait_for("its file", lambda: os.path.exists(ben.store_file("f")))
        self.assertEqual([], holding(ben))
        with open(ben.store_file("f"), "r+b") as file:
            file.seek(4096 + 2 * MIB)
            byte = file.read(1)
            file.seek(4096 + 2 * MIB)
            file.write(bytes([byte[0] ^ 1]))
        done = ben.ctl("check", "--repair", "/f")
        self.assertIn("/f: 1 damaged block, fetched again\n", done.stdout)
        forget_pages(ben, "f")
        self.assert_same_bytes(data, ben.read("f"))

    def test_without_its_key_a_store_is_left_alone(self):
        ann, = self.members("ann", config=ENCRYPTED)
        data = marked(100001)
        ann.write("f", data)
        ann.unmount()
        ann.daemon.stop()
        key, mark = os.path.join(ann.home, "store.key"), os.path.join(store_of(ann), "encryption")
        self.assertEqual([0o600, 0o600], [os.stat(path).st_mode & 0o777 for path in (key, mark)])
        with open(key, "rb") as file:
            right = file.read()

        def put(path, content):
            with open(path, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(content)
        os.rename(key, key + ".away")
        self.refused(ann, "its key is missing")
        os.rename(key + ".away", key)
        put(key, right[:-20] + bytes([right[-20] ^ 1]) + right[-19:])
        self.refused(ann, "store.key is damaged")
        put(key, b"")
        self.refused(ann, "store.key is damaged")
        # Another member's.
        ben = self.member(self.the_tracker, "ben", config=ENCRYPTED, mounted=False)
        with open(os.path.join(ben.home, "store.key"), "rb") as file:
            put(key, file.read())
        self.refused(ann, "encrypted with another key")
        put(key, right)
        # Nor is it taken for a plain one, or for a new one.
        with open(mark, "rb") as file:
            marking = file.read()
        os.remove(mark)
        self.refused(ann, "'encryption' is missing")
        put(mark, marking[:10])
        self.refused(ann, "encrypted with another key")
        put(mark, marking)
        os.chmod(key, 0o640)
        done = self.run(f"{BIN}/p2pd", env=ann.env, check=False)
        self.assertEqual(1, done.returncode)
        self.assertIn("store.key: others can read", done.stderr)
        os.chmod(key, 0o600)
        # It stays encrypted whatever p2pd.conf says.
        with open(os.path.join(ann.home, "p2pd.conf")) as file:
            conf = file.read()
        with open(os.path.join(ann.home, "p2pd.conf"), "w") as file:
            file.write(conf.replace("encryption = yes", "encryption = no"))
        ann.start_daemon()
        ann.start_mount()
        self.assert_same_bytes(data, ann.read("f"))
        ann.write("g", data[1:])
        self.assertEqual([], holding(ann))

    def test_a_plain_store_is_not_called_an_encrypted_one(self):
        ann, = self.members("ann")
        data = marked(70000)
        ann.write("f", data)
        ann.unmount()
        ann.daemon.stop()
        conf = os.path.join(ann.home, "p2pd.conf")
        with open(conf, "a") as file:
            file.write(ENCRYPTED)
        self.refused(ann, "holds files that are not encrypted")
        self.assertFalse(os.path.exists(os.path.join(ann.home, "store.key")))
        # The way that p2pd(8) names: start with an empty store, and copy in anew.
        os.rename(store_of(ann), store_of(ann) + ".plain")
        ann.start_daemon()
        ann.start_mount()
        ann.write("f", data)
        self.assertEqual([], holding(ann))
        self.assert_same_bytes(data, ann.read("f"))

    def test_the_way_back_to_a_plain_store(self):
        ann, = self.members("ann", config=ENCRYPTED, mounted=False)
        ann.daemon.stop()
        conf, key = os.path.join(ann.home, "p2pd.conf"), os.path.join(ann.home, "store.key")
        with open(conf) as file:
            text = file.read()
        with open(conf, "w") as file:
            file.write(text.replace("encryption = yes", "encryption = no"))
        os.rename(store_of(ann), store_of(ann) + ".away")
        self.refused(ann, "move store.key away, too")
        os.rename(key, key + ".away")
        ann.start_daemon()
        ann.start_mount()
        data = marked(70000)
        ann.write("f", data)
        ann.unmount()
        ann.daemon.stop()
        ann.start_daemon()
        ann.start_mount()
        self.assert_same_bytes(data, ann.read("f"))

    def test_the_passphrase_of_the_devices_key_protects_the_stores(self):
        ann, = self.members("ann", config=ENCRYPTED)
        data = marked(50000)
        ann.write("f", data)
        first, second = self.secret("first", "a passphrase of some length"), self.secret("second", "another passphrase")
        ann.ctl("key", "passphrase", "--new-passphrase-file", first)
        ann.unmount()
        ann.daemon.stop()
        self.refused(ann, "store.key needs the passphrase")
        self.refused(ann, "store.key is not opened by this passphrase", "--passphrase-file", second)
        ann.ctl("start", "--passphrase-file", first)
        ann.start_mount()
        self.assert_same_bytes(data, ann.read("f"))
        ann.unmount()
        ann.ctl("stop")
        ann.ctl("key", "passphrase", "--passphrase-file", first, "--new-passphrase-file", second)
        self.refused(ann, "store.key is not opened by this passphrase", "--passphrase-file", first)
        # A store that begins under a passphrase.
        shutil.rmtree(store_of(ann))
        os.remove(os.path.join(ann.home, "store.key"))
        ann.ctl("start", "--passphrase-file", second)
        ann.ctl("stop")
        self.refused(ann, "store.key needs the passphrase")
        ann.ctl("key", "passphrase", "--passphrase-file", second, "--remove")
        ann.start_daemon()


if __name__ == "__main__":
    main()
