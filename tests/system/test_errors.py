"""Bad input: a clear message or errno, and nothing lost."""
import contextlib
import errno
import os
import re
import shutil
import socket
import stat
import sys
import unittest

from harness import BIN, Member, Process, SwarmTest, Tracker, main, pattern, wait_for


class Commands(SwarmTest):
    def fails(self, arguments, status, pattern, env=None):
        done = self.run(*arguments, check=False, env=env)
        self.assertEqual(status, done.returncode, (arguments, done.stderr))
        self.assertRegex(done.stderr, pattern)
        program = os.path.basename(arguments[0])
        self.assertTrue(done.stderr.startswith(program + ": "), done.stderr)
        if status == 1:
            self.assertEqual(1, done.stderr.count("\n"), done.stderr)

    def test_unknown_verbs_and_options_are_wrong_usage(self):
        for program in ("p2ptracker", "p2pd", "p2pfs", "p2pctl"):
            path = f"{BIN}/{program}"
            self.fails([path, "--no-such-option"], 2, "no-such-option|usage|unrecognized")
            for option in ("--help", "--version"):
                done = self.run(path, option)
                self.assertIn(program, done.stdout)
                self.assertEqual("", done.stderr)
        self.fails([f"{BIN}/p2pctl", "stauts"], 2, "stauts.*status|status")
        self.fails([f"{BIN}/p2ptracker", "serf"], 2, "serf")
        self.fails([f"{BIN}/p2ptracker", "serve"], 2, "--data")

    def test_the_manual_s_synopsis_and_the_completions_have_all_that_help_has(self):
        top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        texts = {}
        for name in ("man/p2pctl.1", "tools/p2pctl.bash", "tools/_p2pctl"):
            with open(os.path.join(top, name)) as file:
                texts[name] = file.read()
        manual = texts["man/p2pctl.1"].replace("\\-", "-")
        synopsis = manual.split(".Sh SYNOPSIS\n")[1].split(".Sh ")[0].split(".Nm p2pctl\n")
        verbs = re.search('local verbs="(.*)"', texts["tools/p2pctl.bash"]).group(1).split()
        listed = re.findall("^  ([a-z]+) ", self.run(f"{BIN}/p2pctl", "--help").stdout, re.MULTILINE)
        self.assertEqual(set(listed), set(verbs))
        for verb in listed:
            forms = [form for form in synopsis if re.match(rf"\.Cm [a-z| ]*\b{verb}\b", form)]
            self.assertTrue(forms, f"{verb} is not in the synopsis")
            for option in re.findall(r"^ .*?--([a-z-]+)", self.run(f"{BIN}/p2pctl", verb, "--help").stdout, re.MULTILINE):
                if option not in ("home", "json", "help", "version"):
                    self.assertTrue(any(f"-{option}" in form for form in forms), f"the synopsis of {verb} has no --{option}")
                    self.assertIn(f"--{option}", texts["tools/p2pctl.bash"])
                    self.assertIn(f"--{option}", texts["tools/_p2pctl"])

    def test_accounts(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=False)
        ctl = f"{BIN}/p2pctl"
        wrong = os.path.join(self.directory, "wrong")
        with open(wrong, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("not the password\n")
        # The same account again is fine and says so; another one is not.
        done = ann.ctl("login", tracker.url(), "ann")
        self.assertIn("already", done.stdout + done.stderr)
        self.fails([ctl, "login", tracker.url(), "ben"], 1, "logged in as ann", ann.env)
        ann.ctl("logout")
        self.fails([ctl, "login", tracker.url(), "ann", "--password-file", wrong], 1, "password", ann.env)
        self.fails([ctl, "login", tracker.url(), "nobody"], 1, "password", ann.env)
        self.fails([ctl, "login", "http://example.org", "ann"], 2, "address", ann.env)
        self.fails([ctl, "whoami"], 1, "logged in", ann.env)
        os.chmod(wrong, 0o644)
        self.fails([ctl, "login", tracker.url(), "ann", "--password-file", wrong], 1, "others", ann.env)
        self.fails([ctl, "register", tracker.url(), "cleo"], 1, "this tracker asks for an invite", ann.env)
        self.fails([ctl, "register", tracker.invite(), "ann"], 1, "taken", ann.env)
        for name in ("Ann", "a b", "", "x" * 65, "ännchen", "../x"):
            self.fails([ctl, "register", tracker.invite(), name], 2, "name|account", ann.env)
        invite = tracker.invite()
        ann.ctl("register", invite, "cleo")
        ann.ctl("logout")
        self.fails([ctl, "register", invite, "dora"], 1, "the invite is unknown, used up or expired", ann.env)
        ann.ctl("login", tracker.url(), "ann")
        new = os.path.join(self.directory, "new")
        with open(new, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("a new and longer password\n")
        self.fails([ctl, "passwd", "--password-file", wrong.replace("wrong", "new"), "--new-password-file", new], 1,
                   "password", ann.env)
        ann.ctl("passwd", "--new-password-file", new)
        ann.ctl("logout")
        self.fails([ctl, "login", tracker.url(), "ann"], 1, "password", ann.env)
        ann.ctl("login", tracker.url(), "ann", "--password-file", new)
        self.fails([ctl, "keys", "accept", "nosuch"], 1, "no key of 'nosuch'", ann.env)
        self.fails([ctl, "keys", "accept", "no\nsuch", "--json"], 1, "no key of 'no", ann.env)
        tracker.kill()
        ann.ctl("logout")
        self.fails([ctl, "login", tracker.url(), "ann", "--password-file", new], 1, "tracker", ann.env)

    def test_an_address_that_cannot_be_listened_at_is_refused_with_its_line(self):
        ann = Member(self, "ann")
        conf, p2pd = os.path.join(ann.home, "p2pd.conf"), f"{BIN}/p2pd"
        for bad in ("nonsense", "nonsense:7701", "127.0.0.1:70000", "127.0.0.1:x", "256.0.0.1:1", "[::1", "[::g]:7", ""):
            with open(conf, "w", encoding="ascii") as file:
                file.write(f"# a comment\n[peer]\nlisten = {bad}\n")
            for arguments in ((p2pd, "--check"), (p2pd,)):
                self.fails(arguments, 1, rf"{conf}:3: listen in \[peer\] ", ann.env)
        for good in (":0", "127.0.0.1", "127.0.0.1:0", "[::1]:7701", "0.0.0.0:7701"):
            with open(conf, "w", encoding="ascii") as file:
                file.write(f"[peer]\nlisten = {good}\nannounce = nonsense.example.org:7701\n")
            self.run(p2pd, "--check", env=ann.env)
        self.fails([p2pd, "--check", "--listen", "nonsense"], 2, "--listen: 'nonsense' must name its host by an IP", ann.env)

    def test_a_tickets_key_of_a_wrong_size_is_refused_and_left_alone(self):
        tracker = self.tracker()
        tracker.stop()
        path = os.path.join(tracker.data, "tickets.key")
        for size in (0, 31, 33):
            with open(path, "wb") as file:
                file.write(b"k" * size)
            done = self.run(f"{BIN}/p2ptracker", "serve", "--data", tracker.data, "--listen", "127.0.0.1:0", check=False)
            self.assertEqual((1, 1), (done.returncode, done.stderr.count("\n")), done.stderr)
            self.assertRegex(done.stderr, "tickets.key: is not a key of 32 bytes")
            self.assertEqual(size, os.stat(path).st_size)
        os.unlink(path)

    def test_a_daemon_whose_home_is_deleted_ends_with_its_line(self):
        [ann] = self.members("ann", mounted=False)
        shutil.rmtree(ann.home, ignore_errors=True)
        wait_for("p2pd to end", lambda: not ann.daemon.running())
        self.assertEqual(1, ann.daemon.process.returncode)
        self.assertRegex(ann.daemon.text(), r"p2pd.lock: was removed or replaced: .*stopping")

    def test_a_daemon_that_ends_leaves_the_socket_of_another_alone(self):
        [ann] = self.members("ann", mounted=False)
        path = os.path.join(ann.home, "p2pd.sock")
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            ann.daemon.stop()
            self.assertTrue(stat.S_ISSOCK(os.stat(path).st_mode))
        os.unlink(path)
        ann.start_daemon()
        ann.daemon.stop()
        self.assertFalse(os.path.exists(path))  # its own it takes away

    def test_an_invite_waits_for_the_keys_of_a_new_swarm(self):
        tracker = Tracker(self, own_keys=True)
        serve = [f"{BIN}/p2ptracker", "serve", "--data", tracker.data, "--listen", "127.0.0.1:0"]
        server = Process(self, "server", serve)
        server.start("making the keys of a new swarm")
        self.assertRegex(tracker.invite("--admin"), r"^p2p://127.0.0.1:\d+/\?ca=\w{64}&invite=")
        self.fails(serve, 1, "served by another p2ptracker already")
        server.stop()
        self.fails([f"{BIN}/p2ptracker", "invite", "--data", os.path.join(self.directory, "none")], 1, "holds no tracker yet")

    def test_mounting_needs_an_account_and_a_directory(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=False)
        self.fails([f"{BIN}/p2pfs", os.path.join(self.directory, "nowhere")], 1, "nowhere", ann.env)
        ann.ctl("logout")
        self.fails([f"{BIN}/p2pfs", ann.mount], 1, "logged in", ann.env)


class Files(SwarmTest):
    def test_names_that_are_too_long_or_odd(self):
        ann, ben = self.members("ann", "ben")
        with self.assertRaises(OSError) as caught:
            ann.write("n" * 256, b"x")
        self.assertEqual(errno.ENAMETOOLONG, caught.exception.errno)
        ann.write("n" * 255, b"x")
        ben.await_file("n" * 255, 1)
        with self.assertRaises(OSError) as caught:
            ann.write(b"not utf-8 \xff".decode("utf-8", "surrogateescape"), b"x")
        self.assertIn(caught.exception.errno, (errno.EINVAL, errno.EILSEQ))
        self.assertEqual(["n" * 255], os.listdir(ann.mount))

    def test_a_file_deleted_while_someone_streams_it_is_read_to_its_end(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", config="[limit]\nup = 4M\n")
        ben = self.member(tracker, "ben")
        data = pattern(12 << 20)
        ann.write("f", data)
        ben.await_file("f", len(data))
        with open(ben.path("f"), "rb") as file:
            got = file.read(1 << 20)
            os.unlink(ann.path("f"))
            wait_for("the name to go", lambda: not os.path.exists(ben.path("f")))
            got += file.read()
        self.assert_same_bytes(data, got)

    @unittest.skipIf(os.geteuid() != 0, "a small disk needs root")
    def test_a_file_without_a_name_is_written_on_when_one_of_its_writers_is_gone(self):
        [ann] = self.members("ann")
        for name, before in (("old", b"old" * 100000), ("new", b"")):
            path = ann.path(name)
            if before:
                with open(path, "wb") as file:
                    file.write(before)
            ours = os.open(path, os.O_RDWR | os.O_CREAT)
            other = "import os, sys; f = os.open(sys.argv[1], os.O_RDWR); os.pwrite(f, b'x' * 300000, 0); os.unlink(sys.argv[1]); os.close(f)"
            self.run(sys.executable, "-c", other, path)
            os.pwrite(ours, b"y" * 1000, 100000)
            os.ftruncate(ours, 250000)
            self.assertEqual(250000, os.fstat(ours).st_size)
            os.pwrite(ours, b"z" * 10, 250000)
            os.fsync(ours)
            self.assertEqual(250010, os.fstat(ours).st_size)
            self.assertTrue(os.pread(ours, 400000, 0) == b"x" * 100000 + b"y" * 1000 + b"x" * 149000 + b"z" * 10, name)
            os.close(ours)
            self.assertEqual([], os.listdir(ann.mount))

    def test_a_full_disk_is_told_to_the_writer_and_hurts_nothing_else(self):
        tracker = self.tracker()
        ben = self.member(tracker, "ben", mounted=True)
        ann_home = os.path.join(self.directory, "ann.home")
        os.makedirs(os.path.join(ann_home, "store"), mode=0o700)
        os.chmod(ann_home, 0o700)
        self.run("mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "none", os.path.join(ann_home, "store"))
        self.addCleanup(lambda: self.run("umount", "-l", os.path.join(ann_home, "store")))
        ann = Member(self, "ann")
        self.all_members.append(ann)
        ann.start_daemon()
        ann.register(tracker)
        ann.start_mount()
        ann.write("small", pattern(1 << 20))
        with self.assertRaises(OSError) as caught:
            ann.write("large", pattern(40 << 20))
        self.assertEqual(errno.ENOSPC, caught.exception.errno)
        self.assertEqual(pattern(1 << 20), ann.read("small"))
        ben.await_file("small", 1 << 20)
        self.assertEqual(pattern(1 << 20), ben.read("small"))
        ben.write("from ben", pattern(30 << 20, 3))
        ann.await_file("from ben", 30 << 20)
        self.assertEqual(pattern(30 << 20, 3)[:4096], open(ann.path("from ben"), "rb").read(4096))
        with contextlib.suppress(OSError):
            os.unlink(ann.path("large"))
        ann.write("after", b"there is room again")
        ben.await_file("after", 19)

    @unittest.skipIf(os.geteuid() != 0, "a small disk needs root")
    def test_what_a_file_was_does_not_fill_the_disk(self):
        """Versions that others may still be reading stay for a while, within an allowance: here 64 MiB and the newest."""
        tracker = self.tracker()
        ann_home = os.path.join(self.directory, "ann.home")
        store = os.path.join(ann_home, "store")
        os.makedirs(store, mode=0o700)
        os.chmod(ann_home, 0o700)
        self.run("mount", "-t", "tmpfs", "-o", "size=400m,mode=700", "none", store)
        self.addCleanup(lambda: self.run("umount", "-l", store))
        ann, ben = self.member(tracker, "ann"), self.member(tracker, "ben")
        size = 24 << 20
        ann.write("f", pattern(size, 0))
        ben.await_file("f", size)
        with open(ben.path("f"), "rb", buffering=0) as reader:
            self.assert_same_bytes(pattern(size, 0)[:100000], reader.read(100000))
            ann.write("f", pattern(size, 1))
            self.assert_same_bytes(pattern(size, 0)[100000:], reader.read(size))
        for number in range(2, 7):
            ann.write("f", pattern(size, number))

        def used():
            space = os.statvfs(store)
            return (space.f_blocks - space.f_bfree) * space.f_frsize

        wait_for("versions to go", lambda: used() < (64 << 20) + 2 * size)
        self.assert_same_bytes(pattern(size, 6), ann.read("f"))

    @unittest.skipIf(os.geteuid() != 0, "a small disk needs root")
    def test_fetching_goes_on_when_a_full_disk_has_room_again(self):
        """Full at the first blocks, and again in the middle; hashes need room as blocks do."""
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        image, store = os.path.join(self.directory, "disk"), os.path.join(self.directory, "ben.home", "store")
        self.run("truncate", "-s", "64M", image)
        self.run("mkfs.ext4", "-q", image)
        os.makedirs(store, mode=0o700)
        os.chmod(os.path.dirname(store), 0o700)
        self.run("mount", "-o", "loop", image, store)
        self.addCleanup(lambda: self.run("umount", "-l", store))
        os.chmod(store, 0o700)
        ben = self.member(tracker, "ben", mounted=False)
        filler = os.path.join(store, "filler")
        data = pattern(30 << 20, 4)
        ann.write("f", data)
        for left in (64 << 10, 12 << 20):
            with self.subTest(left=left):
                self.fill(filler, left)
                wait_for("the name at ben", lambda: ben.ctl("ls", "/f", check=False).returncode == 0)
                get = Process(self, f"get{left}", [f"{BIN}/p2pctl", "get", "/f"], ben.env)
                get.start()
                wait_for("the disk to be full", lambda: "no space left" in ben.ctl("status").stdout)
                os.unlink(filler)
                wait_for("the file to be here", lambda: not get.running(), 30)
                self.assertEqual(0, get.process.returncode, get.text())
                ben.start_mount()
                self.assert_same_bytes(data, ben.read("f"))
                ben.unmount()
                ben.ctl("evict", "/f")

    def fill(self, filler, left):
        with open(filler, "wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - left))
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
