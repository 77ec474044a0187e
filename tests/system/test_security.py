"""Who is let in, and what can be seen on the wire."""
import os
import pty
import resource
import select
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import unittest

from harness import BIN, KEYS, PASSWORD, SANITIZER, SLOW, Member, Process, SwarmTest, Tracker, main, wait_for


def peer_port(member):
    with open(os.path.join(member.home, "p2pd.port")) as file:
        return int(file.read())


def handshake(port, version=None, certificate=None):
    """Connects like a stranger who trusts anybody. True if the other end kept the connection open and took bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
    if certificate:
        context.load_cert_chain(*certificate)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        try:
            with context.wrap_socket(raw) as tls:
                tls.settimeout(1)
                try:
                    return tls.recv(1) != b""
                except TimeoutError:
                    return True
        except (ssl.SSLError, ConnectionError):
            return False


class Strangers(SwarmTest):
    def make_certificate(self, name):
        key, certificate = (os.path.join(self.directory, name + end) for end in (".key", ".crt"))
        self.run("openssl", "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", key, "-out", certificate,
                 "-days", "2", "-subj", "/CN=ann", "-addext",
                 "subjectAltName=URI:p2p://device/ann/00112233445566778899aabbccddeeff")
        return certificate, key

    def test_only_tls_1_3_with_a_certificate_of_this_swarm_is_accepted(self):
        ann, ben = self.members("ann", "ben")
        tracker = self.the_tracker
        port = peer_port(ann)
        self.assertFalse(handshake(tracker.port, ssl.TLSVersion.TLSv1_2), "TLS 1.2 at the tracker")
        self.assertFalse(handshake(port, ssl.TLSVersion.TLSv1_2), "TLS 1.2 at a peer")
        self.assertTrue(handshake(tracker.port), "the tracker lets in who has no certificate, to log in")
        self.assertFalse(handshake(port), "no certificate at a peer")
        foreign = self.make_certificate("foreign")
        self.assertFalse(handshake(tracker.port, None, foreign), "another CA's certificate at the tracker")
        self.assertFalse(handshake(port, None, foreign), "another CA's certificate at a peer")
        own = os.path.join(ben.home, "device.crt"), os.path.join(ben.home, "device.key")
        self.assertTrue(handshake(port, None, own), "a member's certificate at a peer")
        # A device has one connection to the tracker, the newest; so its own daemon must be out of the way.
        ben.unmount()
        ben.daemon.stop()
        self.assertTrue(handshake(tracker.port, None, own), "a member's certificate at the tracker")

    def test_another_swarms_member_is_refused_by_peers_and_tracker(self):
        ann, = self.members("ann")
        other = self.tracker(name="other", own_keys=True)
        eve = self.member(other, "eve", mounted=False)
        own = os.path.join(eve.home, "device.crt"), os.path.join(eve.home, "device.key")
        self.assertFalse(handshake(peer_port(ann), None, own))
        self.assertFalse(handshake(self.the_tracker.port, None, own))

    def test_a_tracker_with_another_fingerprint_is_not_trusted(self):
        ann, = self.members("ann")
        invite = self.the_tracker.invite()
        at = invite.index("ca=") + 3
        wrong = invite[:at] + ("0" if invite[at] != "0" else "1") + invite[at + 1:]
        ben = self.member(self.the_tracker, "ben", mounted=False)
        ben.ctl("logout")
        done = ben.ctl("login", wrong.split("&")[0], "ben", check=False)
        self.assertEqual(1, done.returncode)
        self.assertRegex(done.stderr, r"^p2pctl: .*(fingerprint|CA)")
        self.assertEqual(1, done.stderr.count("\n"))
        self.assertNotIn("ben", ben.ctl("whoami", check=False).stdout)

    def test_no_session_is_offered_for_resumption(self):
        ann, = self.members("ann")
        own = os.path.join(ann.home, "device.crt"), os.path.join(ann.home, "device.key")
        for port in (self.the_tracker.port, peer_port(ann)):
            done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cert", own[0], "-key", own[1],
                                   "-sess_out", os.path.join(self.directory, "session"), "-tls1_3"],
                                  input=b"", capture_output=True, timeout=30)
            self.assertNotIn(b"TLS session ticket", done.stdout)
            self.assertIn(b"TLS_AES_256_GCM_SHA384", done.stdout)

    def test_all_that_is_written_is_for_its_owner_only(self):
        self.addCleanup(os.umask, os.umask(0))  # the programs' own care, not the shell's
        tracker = self.the_tracker = self.tracker(own_keys=True)
        ann = self.member(tracker, "ann", config="[store]\nencryption = yes\n")
        ben = self.member(tracker, "ben")
        ann.ctl("stop")
        ann.ctl("start")  # with a log of its own
        wait_for("ann at the tracker", lambda: ann.ctl("whoami", "--tracker", check=False).returncode == 0)
        ann.ctl("limit", "--up", "50M")
        ann.write("film", b"x" * (3 << 20))
        ben.await_file("film", 3 << 20)
        self.assertEqual(3 << 20, len(ben.read("film")))
        with open(ann.path("half"), "wb") as file:
            file.write(b"y" * 100000)
            file.flush()
            modes = {}
            for directory, where in ((tracker.data, "tracker"), (ann.home, "ann"), (ben.home, "ben")):
                self.assertEqual(0o700, os.stat(directory).st_mode & 0o777)
                for top, directories, names in os.walk(directory):
                    for name in directories:
                        path = os.path.join(top, name)
                        self.assertEqual(0o700, os.lstat(path).st_mode & 0o777, path)
                    for name in names:
                        path = os.path.join(top, name)
                        modes[f"{where}/{name}"] = os.lstat(path).st_mode
                        # Certificates are shown to everybody; the settings are the user's own file. An owner's x of
                        # the store's files is a mark of the store's.
                        if not name.endswith(".crt") and name != "p2pd.conf":
                            mode = modes[f"{where}/{name}"] & (0o677 if name.endswith(".data") else 0o777)
                            self.assertEqual(0o600, mode, path)
        for name in ("tracker/ca.key", "tracker/server.key", "tracker/tickets.key", "tracker/tracker.db", "tracker/tracker.db-wal",
                     "tracker/tracker.db-shm", "tracker/pieces.db-wal", "tracker/tracker.lock", "ann/device.key", "ann/signing.key",
                     "ann/store.key", "ann/account", "ann/state.db", "ann/state.db-wal", "ann/state.db-shm", "ann/p2pd.log",
                     "ann/p2pd.sock"):
            self.assertIn(name, modes)
        self.assertTrue(stat.S_ISSOCK(modes["ann/p2pd.sock"]))
        self.assertTrue(any(name.startswith("ben/") and name.endswith((".data", ".part")) for name in modes), sorted(modes))
        with open("/proc/self/mounts") as mounts:
            line = next(line for line in mounts if ann.mount in line)
        self.assertIn("nosuid", line)
        self.assertIn("nodev", line)

    def test_no_process_shows_or_leaves_a_secret(self):
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        ann, = self.members("ann")
        ann.write("file", b"x" * 100000)
        secret = PASSWORD.strip()
        self.assertGreaterEqual(len(secret), 8)
        for process in (self.the_tracker, ann.daemon, ann.fs):
            pid = process.process.pid
            for name in ("cmdline", "environ"):
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    self.assertNotIn(secret, file.read(), f"{process.name}: {name}")
            with open(f"/proc/{pid}/limits", encoding="ascii") as file:
                line = next(line for line in file if line.startswith("Max core file size"))
            self.assertEqual(["0", "0"], line.split()[4:6], process.name)
            self.assertNotIn(secret.decode(), process.text(), process.name)
        for directory in (ann.home, self.the_tracker.data):
            for top, _, names in os.walk(directory):
                for name in names:
                    path = os.path.join(top, name)
                    mode = os.lstat(path).st_mode
                    self.assertTrue(stat.S_ISLNK(mode) or mode & 0o022 == 0, path)
                    if stat.S_ISREG(mode):
                        with open(path, "rb") as file:
                            self.assertNotIn(secret, file.read(), path)
        # One that a signal ends which asks for a core leaves none, whatever the limit was that it began with.
        ann.fs.process.send_signal(signal.SIGQUIT)
        ann.fs.process.wait(20)
        self.assertEqual([], [name for name in os.listdir(self.directory) + os.listdir(".") if name.startswith("core")])

    def test_a_key_with_a_passphrase_is_used_only_with_it(self):
        ann, = self.members("ann", mounted=False)
        secret, wrong = (os.path.join(self.directory, name) for name in ("secret", "wrong"))
        for path, text in ((secret, "a passphrase of some length"), (wrong, "another passphrase")):
            with open(path, "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text + "\n")
        key = os.path.join(ann.home, "device.key")
        self.run(f"{BIN}/p2pctl", "key", "passphrase", "--new-passphrase-file", secret, env=ann.env)
        with open(key) as file:
            self.assertIn("BEGIN ENCRYPTED PRIVATE KEY", file.read())
        self.assertEqual(0o600, os.stat(key).st_mode & 0o777)
        self.assertIn("ann", ann.ctl("whoami").stdout, "the running daemon goes on")
        ann.daemon.stop()
        for arguments, why in (((), "needs its passphrase"), (("--passphrase-file", wrong), "is not opened by this passphrase")):
            done = self.run(f"{BIN}/p2pd", *arguments, env=ann.env, check=False)
            self.assertEqual(1, done.returncode)
            self.assertIn(f"p2pd: device.key {why}", done.stderr)
        os.chmod(secret, 0o644)
        done = self.run(f"{BIN}/p2pd", "--passphrase-file", secret, env=ann.env, check=False)
        self.assertEqual((1, 1), (done.returncode, done.stderr.count("\n")))
        self.assertIn("others may read it", done.stderr)
        os.chmod(secret, 0o600)
        # By p2pctl start, from the environment's file, and from a credential of the service manager.
        ann.ctl("start", "--passphrase-file", secret)
        self.assertIn("ann", ann.ctl("whoami").stdout)
        ann.ctl("stop")
        credentials = os.path.join(self.directory, "credentials")
        os.mkdir(credentials, 0o700)
        shutil.copy(secret, os.path.join(credentials, "p2pd.passphrase"))
        for more in ({"P2P_PASSPHRASE_FILE": secret}, {"CREDENTIALS_DIRECTORY": credentials}):
            ann.daemon.env = dict(ann.env, **more)
            ann.start_daemon()
            ann.daemon.stop()
        # Changed, and removed.
        done = ann.ctl("key", "passphrase", "--passphrase-file", wrong, "--new-passphrase-file", secret, check=False)
        self.assertEqual(1, done.returncode)
        ann.ctl("key", "passphrase", "--passphrase-file", secret, "--new-passphrase-file", wrong)
        ann.ctl("key", "passphrase", "--passphrase-file", wrong, "--remove")
        ann.daemon.env = ann.env
        ann.start_daemon()
        self.assertIn("ann", ann.ctl("whoami").stdout)

    def test_what_others_can_read_is_not_used(self):
        ann, = self.members("ann", mounted=False, config="[store]\nencryption = yes\n")
        # Killed, they leave what their databases have beside them.
        ann.daemon.kill()
        tracker = self.the_tracker
        tracker.kill()
        serve = [f"{BIN}/p2ptracker", "serve", "--data", tracker.data, "--listen", "127.0.0.1:0"]
        for program, directory, names in (
                ([f"{BIN}/p2pd"], ann.home, (".", "device.key", "signing.key", "store.key", "account", "state.db", "state.db-wal")),
                (serve, tracker.data, (".", "ca.key", "server.key", "tickets.key", "tracker.db", "tracker.db-wal", "pieces.db",
                                       "pieces.db-wal"))):
            for name in names:
                path = os.path.join(directory, name)
                mode = os.stat(path).st_mode & 0o777
                os.chmod(path, mode | 0o044 | (0o011 if name == "." else 0))
                done = self.run(*program, env=ann.env, check=False)
                self.assertEqual((1, 1), (done.returncode, done.stderr.count("\n")), f"{path}: {done.stderr}")
                self.assertRegex(done.stderr, "chmod [67]00")
                os.chmod(path, mode)
        ann.start_daemon()

    def test_a_new_key_of_the_tracker_changes_nothing_for_members(self):
        ann, = self.members("ann", mounted=False)
        tracker = self.the_tracker
        certificate = os.path.join(tracker.data, "server.crt")
        with open(certificate) as file:
            before = file.read()
        tracker.stop()
        for name in ("server.key", "server.crt"):
            os.unlink(os.path.join(tracker.data, name))
        tracker.start()
        with open(certificate) as file:
            self.assertNotEqual(before, file.read())
        wait_for("ann to be connected again", lambda: ann.ctl("whoami", "--tracker", check=False).returncode == 0, 30)
        self.member(tracker, "ben", mounted=False)

    def test_processes_keep_their_secrets(self):
        ann, = self.members("ann", mounted=False)
        for process in (ann.daemon, self.the_tracker):
            pid = process.process.pid
            with open(f"/proc/{pid}/limits") as file:
                self.assertRegex(file.read(), r"Max core file size +0 +0 ")
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                self.assertNotIn(PASSWORD.strip(), file.read())
            if not SANITIZER:  # not dumpable: root's, whoever runs it, and closed to the same user's other programs
                self.assertEqual(0, os.stat(f"/proc/{pid}/environ").st_uid)
            self.assertNotIn(PASSWORD.strip().decode(), process.text())


@unittest.skipIf(os.geteuid() != 0, "only root can be another user")
class Users(SwarmTest):
    """All programs run by a user who is not root, and what other programs of that user's can learn of them."""
    UID = 65534

    def setUp(self):
        super().setUp()
        self.bin, self.cwd = (os.path.join(self.directory, name) for name in ("bin", "cwd"))
        os.mkdir(self.bin)
        os.mkdir(self.cwd)
        for name in ("p2ptracker", "p2pd", "p2pfs", "p2pctl"):
            shutil.copy(os.path.join(BIN, name), self.bin)
        for name, mode in ((self.directory, 0o711), (self.bin, 0o755), (self.cwd, 0o777)):
            os.chmod(name, mode)

    def as_user(self, *arguments):
        return ["setpriv", f"--reuid={self.UID}", f"--regid={self.UID}", "--clear-groups", "env", "-C", self.cwd, *arguments]

    def given_to_user(self, top):
        os.chown(top, self.UID, self.UID)
        for directory, directories, names in os.walk(top):
            for name in directories + names:
                os.chown(os.path.join(directory, name), self.UID, self.UID, follow_symlinks=False)

    def check_process(self, pid, *secrets):
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            self.assertRegex(file.read(), r"Max core file size +0 +0 ")
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            self.assertRegex(file.read(), rf"Uid:\t{self.UID}\t{self.UID}\t")
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                text = file.read()
            for secret in secrets:
                self.assertNotIn(secret, text, name)
        if SANITIZER:
            return  # it traces itself
        for name in ("environ", "maps", "mem", "auxv", "stack", "fd"):
            how = ["ls", "-l"] if name == "fd" else ["head", "-c1"]
            done = subprocess.run(self.as_user(*how, f"/proc/{pid}/{name}"), capture_output=True, timeout=30)
            self.assertNotEqual(0, done.returncode, f"its own user's programs read {name}")
            self.assertRegex(done.stderr, b"Permission denied|not permitted", name)

    def at_prompt(self, environment, *arguments):
        """p2pctl at a terminal of its own, as soon as it asks for something: its process, and the terminal."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvpe("setpriv", self.as_user(os.path.join(self.bin, "p2pctl"), *arguments), environment)
        self.addCleanup(os.close, terminal)
        return pid, terminal

    def await_text(self, terminal, text):
        said = b""
        while text not in said:
            self.assertTrue(select.select([terminal], [], [], 20 * SLOW)[0], said)
            said += os.read(terminal, 4096)
        return said

    def test_secrets_are_kept_from_other_programs_of_the_same_user(self):
        tracker = Tracker(self)
        ann = Member(self, "ann")
        self.all_members.append(ann)
        KEYS.device("ann", ann.home)
        for path in (tracker.data, ann.home, ann.mount):
            self.given_to_user(path)
        server = Process(self, "server", self.as_user(
            os.path.join(self.bin, "p2ptracker"), "serve", "--data", tracker.data, "--listen", "127.0.0.1:0"))
        server.start(r"p2ptracker: ready")
        environment = dict(ann.env)
        del environment["P2P_PASSWORD_FILE"]
        daemon = Process(self, "user.p2pd", self.as_user(os.path.join(self.bin, "p2pd")), environment)
        daemon.start(r"p2pd: ready")
        url = self.run(*self.as_user(os.path.join(self.bin, "p2ptracker"), "invite", "--data", tracker.data)).stdout.strip()
        code = url.split("invite=")[1].encode()

        # While it asks for the password, and once it has it and asks for it again.
        secret = b"typed at a terminal"
        ctl, terminal = self.at_prompt(environment, "register", url, "ann")
        self.await_text(terminal, b"New password for ann: ")
        with open(f"/proc/{ctl}/cmdline", "rb") as file:
            self.assertIn(b"register", file.read())
        self.check_process(ctl, code)
        os.write(terminal, secret + b"\n")
        said = self.await_text(terminal, b"again: ")
        self.check_process(ctl, code, secret)
        os.write(terminal, secret + b"\n")
        said += self.await_text(terminal, b"Registered")
        self.assertEqual(0, os.waitpid(ctl, 0)[1])
        self.assertNotIn(secret, said)

        mount = Process(self, "user.p2pfs", self.as_user(os.path.join(self.bin, "p2pfs"), ann.mount, "-f"), environment)
        programs = [server, daemon]
        if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:  # some machines let only root mount
            mount.start()
            wait_for("the mount", lambda: ann.mounted() or not mount.running())
            self.assertTrue(ann.mounted(), mount.text())
            programs.append(mount)
        ctl, terminal = self.at_prompt(environment, "passwd")
        self.await_text(terminal, b": ")
        os.write(terminal, secret + b"\n")
        self.await_text(terminal, b"New password")
        with open(tracker.data + "/ca.key", "rb") as file:
            ca = file.read().split(b"\n")[1]
        everybody = [ctl] + [program.process.pid for program in programs]
        for pid in everybody:
            self.check_process(pid, code, secret, ca)

        # Somebody else who could open the daemon's socket, as its mode says that all may: the kernel tells who it is.
        path = os.path.join(ann.home, "p2pd.sock")
        os.chmod(ann.home, 0o711)
        os.chmod(path, 0o666)
        knock = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(60); print(s.recv(1))"
        done = self.run("setpriv", f"--reuid={self.UID - 1}", "--clear-groups", sys.executable, "-c", knock, path, check=False)
        self.assertRegex(done.stdout + done.stderr, r"^b''\n|ConnectionResetError")
        self.assertIn(f"user {self.UID - 1} may not use the local socket", daemon.text())

        # What ends by a signal that asks for a core file leaves none.
        for pid in everybody:
            os.kill(pid, signal.SIGQUIT)
        self.assertTrue(os.WIFSIGNALED(os.waitpid(ctl, 0)[1]))
        for process in programs:
            process.process.wait(20 * SLOW)
        subprocess.run(["umount", "-l", ann.mount], capture_output=True)
        self.assertEqual([], os.listdir(self.cwd))
        for process in programs:
            self.assertNotIn(secret.decode(), process.text())
            self.assertNotIn(code.decode(), process.text())


class Wire(SwarmTest):
    MARK = b"This text stands in the file and must not be seen on the wire. "

    def sniff(self):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        raw.bind(("lo", 0))
        raw.settimeout(0.2)
        captured, stop = bytearray(), threading.Event()

        def collect():
            while not stop.is_set():
                try:
                    captured.extend(raw.recv(1 << 17))
                except TimeoutError:
                    pass
            raw.close()
        thread = threading.Thread(target=collect)
        thread.start()

        def finish():
            stop.set()
            thread.join()
            return bytes(captured)
        return finish

    @unittest.skipIf(os.geteuid() != 0, "capturing needs root")
    def test_neither_contents_nor_names_nor_passwords_are_seen(self):
        finish = self.sniff()
        try:
            ann, ben = self.members("ann", "ben")
            ann.write("a-name-that-is-secret", self.MARK * 20000)
            ben.await_file("a-name-that-is-secret")
            self.assertEqual(self.MARK * 20000, ben.read("a-name-that-is-secret"))
        finally:
            captured = finish()
        self.assertGreater(len(captured), len(self.MARK) * 20000, "the capture is not whole")
        for secret in (self.MARK, self.MARK[5:25], PASSWORD.strip(), b"a-name-that-is-secret"):
            self.assertNotIn(secret, captured)


if __name__ == "__main__":
    main()
