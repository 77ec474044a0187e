"""Rights of folders: who sees what, who may change it, what happens to those who lose a right, and what peers say to who has none."""
import errno
import json
import os
import socket
import sqlite3
import ssl
import struct

from harness import KEYS, Member, SwarmTest, main, pattern, wait_for

HELLO, OPEN, OPENED, REJECT = 1, 2, 3, 9
NO_FILE = 1


def field(number, value):
    """A field of a Protocol Buffers message: a number, or bytes."""
    def varint(n):
        out = bytearray()
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        return bytes(out) + bytes([n])
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


class ToyPeer:
    """Asks a member's daemon for contents, with another member's certificate."""

    def __init__(self, member, port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(os.path.join(member.home, "device.crt"), os.path.join(member.home, "device.key"))
        self.tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=10))
        self.send(HELLO, field(1, 1) + field(2, 1) + field(3, 1) + field(5, b"toy"))

    def send(self, kind, message):
        self.tls.sendall(struct.pack(">IIHBBI", len(message), 0, kind, 0, 0, 0) + message)

    def receive(self):
        def exactly(size):
            data = b""
            while len(data) < size:
                more = self.tls.recv(size - len(data))
                if not more:
                    raise ConnectionError("the daemon has closed")
                data += more
            return data
        size, payload, kind, _, _, _ = struct.unpack(">IIHBBI", exactly(16))
        message = exactly(size)
        exactly(payload)
        return kind, message

    def ask(self, root, size, ticket=b""):
        """The frame that answers an Open."""
        self.send(OPEN, field(1, 7) + field(2, root) + field(3, size) + (field(4, ticket) if ticket else b""))
        while True:
            kind, message = self.receive()
            if kind in (OPENED, REJECT):
                return kind, message

    def close(self):
        self.tls.close()


def port_of(member):
    with open(os.path.join(member.home, "p2pd.port")) as file:
        return int(file.read())


class AccessTest(SwarmTest):
    def three(self):
        """An admin and two others."""
        self.the_tracker = self.tracker()
        made = []
        for name in ("ann", "ben", "cat"):
            member = Member(self, name)
            self.all_members.append(member)
            member.start_daemon()
            KEYS.device(name, member.home)
            member.ctl("register", self.the_tracker.invite(*(["--admin"] if name == "ann" else [])), name)
            KEYS.keep_device(name, member.home)
            member.start_mount()
            made.append(member)
        return made

    def await_gone(self, member, name):
        wait_for(f"'{name}' to go at {member.name}", lambda: not os.path.lexists(member.path(name)))

    def make_private(self, owner, folder):
        os.mkdir(owner.path(folder))
        owner.ctl("revoke", "/" + folder, "everyone")

    def refused(self, expected, call, *arguments):
        with self.assertRaises(OSError) as caught:
            call(*arguments)
        self.assertEqual(errno.errorcode[caught.exception.errno], errno.errorcode[expected])


class Folders(AccessTest):
    def test_a_folder_without_access_is_not_there(self):
        ann, ben, cat = self.three()
        self.make_private(ben, "private")  # no admin: who makes a folder manages it
        ben.write("private/secret.txt", b"nobody's business")
        ben.write("open.txt", b"for all")
        for other in (ann, cat):
            other.await_file("open.txt", 7)
        self.await_gone(cat, "private")
        self.assertEqual(sorted(os.listdir(cat.mount)), ["open.txt"])
        self.assertEqual(sorted(os.listdir(ben.mount)), ["open.txt", "private"])
        ann.await_file("private/secret.txt", 17)  # an admin sees all
        # Not there at all: what is said of it is what is said of anything that never was.
        for name in ("private", "private/secret.txt"):
            self.refused(errno.ENOENT, os.stat, cat.path(name))
            done, other = (cat.ctl("get", f"/{n}", check=False) for n in (name, name.replace("private", "nowhere")))
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stderr.replace("private", "nowhere"), other.stderr)
        listed = json.loads(cat.ctl("ls", "--json", "/").stdout)
        self.assertEqual([e["name"] for e in listed["entries"]], ["open.txt"])
        # The name is taken nevertheless, and it is not said by what.
        os.mkdir(cat.path("private"))
        self.await_gone(cat, "private")
        beside, = [name for name in os.listdir(cat.mount) if name.startswith("private")]
        self.assertIn("conflict", beside)
        os.rmdir(cat.path(beside))
        self.assertTrue(os.path.exists(ben.path("private/secret.txt")))

        # It appears, live, with what is in it, and goes again.
        ben.ctl("grant", "/private", "cat", "read")
        cat.await_file("private/secret.txt", 17)
        self.assertEqual(cat.read("private/secret.txt"), b"nobody's business")
        self.refused(errno.EACCES, cat.write, "private/mine.txt", b"x")
        self.refused(errno.EACCES, os.mkdir, cat.path("private/mine"))
        self.refused(errno.EACCES, os.rename, cat.path("private/secret.txt"), cat.path("stolen.txt"))
        self.refused(errno.EACCES, os.rename, cat.path("open.txt"), cat.path("private/open.txt"))
        self.refused(errno.EACCES, os.unlink, cat.path("private/secret.txt"))
        self.assertEqual(os.stat(cat.path("private")).st_mode & 0o222, 0)
        ben.ctl("revoke", "/private", "cat")
        self.await_gone(cat, "private")

        # What moves out of a hidden folder appears, what moves in goes.
        os.rename(ben.path("private/secret.txt"), ben.path("told.txt"))
        cat.await_file("told.txt", 17)
        os.mkdir(ben.path("private/deep"))
        ben.write("private/deep/a.txt", b"a")
        os.rename(ben.path("private/deep"), ben.path("deep"))
        cat.await_file("deep/a.txt", 1)
        os.rename(ben.path("deep"), ben.path("private/deep"))
        self.await_gone(cat, "deep")
        os.rename(ben.path("told.txt"), ben.path("private/told.txt"))
        self.await_gone(cat, "told.txt")

    def test_groups_inheritance_and_restarts(self):
        ann, ben, cat = self.three()
        ann.ctl("group", "create", "team")
        ann.ctl("group", "add", "team", "ben")
        self.assertEqual(ann.ctl("group", "list").stdout, "team: ben\n")
        self.assertEqual(json.loads(cat.ctl("group", "list", "--json").stdout)["groups"],
                         [{"name": "team", "accounts": ["ben"]}])
        self.assertEqual(cat.ctl("group", "add", "team", "cat", check=False).returncode, 1)
        self.assertEqual(ann.ctl("group", "create", "ben", check=False).returncode, 1)
        self.assertEqual(ann.ctl("grant", "/", "nobody", "read", check=False).returncode, 1)
        self.assertEqual(ann.ctl("grant", "/", "ben", "rule", check=False).returncode, 2)
        self.make_private(ann, "lab")
        ann.ctl("grant", "/lab", "team", "read")
        os.makedirs(ann.path("lab/data/raw"))
        ann.write("lab/data/raw/one.bin", b"1")
        ben.await_file("lab/data/raw/one.bin", 1)
        self.assertFalse(os.path.exists(cat.path("lab")))
        self.refused(errno.EACCES, ben.write, "lab/data/raw/two.bin", b"2")
        # Deeper down more, and only there; the way to it is shown, with nothing else on it.
        ann.ctl("grant", "/lab/data/raw", "cat", "write")
        cat.await_file("lab/data/raw/one.bin", 1)
        ann.write("lab/other.txt", b"other")
        ben.await_file("lab/other.txt", 5)
        self.assertEqual(os.listdir(cat.path("lab")), ["data"])
        cat.write("lab/data/raw/three.bin", b"333")
        ben.await_file("lab/data/raw/three.bin", 3)
        shown = json.loads(cat.ctl("access", "/lab/data/raw", "--json").stdout)
        self.assertEqual(shown["own"], "write")
        self.assertIn(("team", "read", True), [(r["who"], r["level"], r["inherited"]) for r in shown["rules"]])
        self.assertIn(("cat", "write", False), [(r["who"], r["level"], r["inherited"]) for r in shown["rules"]])
        self.assertEqual(cat.ctl("grant", "/lab/data/raw", "ben", "write", check=False).returncode, 1)
        self.assertIn("You: write", cat.ctl("access", "/lab/data/raw").stdout)
        # A right that went while a member was away.
        ben.unmount()
        ben.daemon.stop()
        ann.ctl("group", "remove", "team", "ben")
        self.the_tracker.stop()
        self.the_tracker.start()
        ben.start_daemon()
        ben.start_mount()
        self.await_gone(ben, "lab")
        self.assertTrue(os.path.exists(ann.path("lab/data/raw/three.bin")))
        cat.await_file("lab/data/raw/three.bin", 3)


class Peers(AccessTest):
    def test_who_has_no_right_learns_nothing_from_a_peer(self):
        ann, ben, cat = self.three()
        self.make_private(ben, "private")
        data = pattern(700000, 3)
        ben.write("private/film.bin", data)
        root = bytes.fromhex(ben.xattr("private/film.bin", "root"))
        toy = ToyPeer(cat, port_of(ben))
        known = toy.ask(root, len(data))
        self.assertEqual(known[0], REJECT)
        self.assertEqual(known, toy.ask(os.urandom(32), len(data)))
        self.assertEqual(known, toy.ask(root, len(data) + 1))
        self.assertEqual(known, toy.ask(root, len(data), os.urandom(32)))
        self.assertEqual(known[1], field(1, 7) + field(4, NO_FILE))
        toy.close()

    def test_a_right_that_is_taken_ends_a_running_stream(self):
        ann, ben, cat = self.three()
        os.mkdir(ann.path("films"))
        os.mkdir(ann.path("other"))
        size = 48 << 20
        ann.write("films/long.bin", pattern(size, 5))
        ann.write("other/long.bin", pattern(size, 6))
        ann.ctl("revoke", "/films", "everyone")
        for member in (ben, cat):
            ann.ctl("grant", "/films", member.name, "read")
            member.await_file("films/long.bin", size)
            # Slow enough to be under way for the whole test.
            member.unmount()
            member.daemon.stop()
            with open(os.path.join(member.home, "p2pd.conf"), "a") as conf:
                conf.write("[limit]\ndown = 2M\n")
            member.start_daemon()
            member.start_mount()
            member.await_file("films/long.bin", size)
        for member in (ben, cat):
            member.ctl("pin", "/films/long.bin")
        ben.ctl("pin", "/other/long.bin")

        def files_out():
            return {p["account"]: p["files"] for p in json.loads(ann.ctl("peers", "--json").stdout)["peers"]
                    if p["direction"] == "out"}
        wait_for("both to stream", lambda: files_out().get("ben", 0) >= 2 and files_out().get("cat", 0) >= 1)
        ann.ctl("revoke", "/films", "ben")
        wait_for("ben's stream to end", lambda: files_out().get("ben", 0) == 1, 5)
        self.await_gone(ben, "films")
        # The others go on: with cat, and ben's other file.
        here = [int(m.xattr(n, "have")) for m, n in ((cat, "films/long.bin"), (ben, "other/long.bin"))]
        for (member, name), had in zip(((cat, "films/long.bin"), (ben, "other/long.bin")), here):
            wait_for("the others' streams to go on", lambda: int(member.xattr(name, "have")) > had)
        self.assertEqual(files_out()["cat"], 1)


class Signatures(AccessTest):
    def test_an_entry_that_the_tracker_made_up_is_not_shown(self):
        ann, ben, cat = self.three()
        ann.write("true.txt", b"what ann said")
        ann.write("other.txt", b"something else")
        os.symlink("true.txt", ann.path("link"))
        for member in (ben, cat):
            member.await_file("other.txt", 14)
            wait_for("the link", lambda: os.path.islink(member.path("link")))
        self.assertEqual(json.loads(ben.ctl("status", "--json").stdout)["entries_refused"], 0)
        self.assertEqual({k["account"] for k in json.loads(ben.ctl("keys", "--json").stdout)["keys"]}, {"ann"})
        # Whoever has the tracker's machine puts another content under ann's name, and sees to it that all hear of it.
        cat.unmount()
        cat.daemon.stop()
        ann.await_file("true.txt", 13)
        self.the_tracker.stop()
        base = sqlite3.connect(os.path.join(self.the_tracker.data, "tracker.db"))
        with base:
            root, size = base.execute("SELECT root, size FROM entry WHERE name = 'other.txt'").fetchone()
            seq = int(base.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()[0])
            base.execute("UPDATE entry SET root = ?, size = ?, seq = ? WHERE name = 'true.txt'", (root, size, seq + 1))
            base.execute("UPDATE entry SET target = '/etc/passwd', seq = ? WHERE name = 'link'", (seq + 2,))
            base.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (seq + 2,))
        base.close()
        self.the_tracker.start()
        cat.start_daemon()
        cat.start_mount()
        for member in (ben, cat):
            wait_for(f"{member.name} to notice",
                     lambda: json.loads(member.ctl("status", "--json").stdout)["entries_refused"] == 2)
            self.await_gone(member, "true.txt")
            self.await_gone(member, "link")
            self.assertEqual(member.read("other.txt"), b"something else")
            self.assertIn("not what their publishers signed", member.ctl("status").stdout)
            self.assertRegex(member.daemon.text(), "not what its publisher signed: 'true.txt'")

    def test_a_key_that_comes_later_is_told_of_until_it_is_accepted(self):
        ann, ben, cat = self.three()
        ann.write("one.txt", b"1")
        ben.await_file("one.txt", 1)
        second = Member(self, "ann2")
        self.all_members.append(second)
        second.start_daemon()
        second.ctl("login", self.the_tracker.url(), "ann")
        second.start_mount()
        second.write("two.txt", b"22")
        ben.await_file("two.txt", 2)
        status = wait_for("ben to be warned", lambda: (lambda s: s["keys_unexpected"] and s)(
            json.loads(ben.ctl("status", "--json").stdout)))
        self.assertEqual(status["keys_unexpected"], 1)
        self.assertIn("ann signs with a key that was not seen before", ben.daemon.text())
        states = [k["state"] for k in json.loads(ben.ctl("keys", "--json").stdout)["keys"] if k["account"] == "ann"]
        self.assertEqual(sorted(states), ["first", "new"])
        ben.ctl("keys", "accept", "ann")
        self.assertEqual(json.loads(ben.ctl("status", "--json").stdout)["keys_unexpected"], 0)
        self.assertEqual(os.stat(os.path.join(ben.home, "signing.key")).st_mode & 0o777, 0o600)


if __name__ == "__main__":
    main()
