"""A swarm of real processes on this machine, for system tests.

    class SmokeTest(SwarmTest):
        def test_something(self):
            ann, ben = self.members("ann", "ben")   # registered, daemon running, mounted
            ann.write("a.bin", data)
            ben.await_file("a.bin")

Everything is started in the foreground with its messages in a file, and taken down at the end of the test even if it
failed: mounts first, then processes. A program that printed a sanitizer's report, a failed assertion or an `unexpected`
word fails the test even if it ended with 0 (see SUSPICIOUS).
"""
import atexit
import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = os.environ.get("P2P_BIN") or os.path.join(os.path.dirname(__file__), "../../build/release/bin")
BIN = os.path.realpath(BIN)
SANITIZER = os.environ.get("P2P_SANITIZER", "")
# Programs under a sanitizer are several times slower; what a test waits for is the same.
SLOW = 4 if SANITIZER else 1
# Every store an encrypted one: for a run by hand of tests that know nothing of it.
ENCRYPTED = bool(os.environ.get("P2P_TEST_ENCRYPTION"))
PASSWORD = b"correct horse battery staple\n"
SUSPICIOUS = re.compile(
    rb"AddressSanitizer|LeakSanitizer|ThreadSanitizer|runtime error:|UndefinedBehavior|CHECK failed|check failed|"
    rb"Assertion|Segmentation|stack smashing|double free|malloc\(\)|fuse: bad|fuse: internal", re.I)
libc = ctypes.CDLL(None, use_errno=True)


def wait_for(what, condition, seconds=15.0):
    """Polls until condition() is true; its value is returned. A test that gives up says what it waited for. Time in which nothing
    here ran (the machine slept, everything was stopped for a measurement) does not count."""
    left, before = seconds * SLOW, time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        if left < 0:
            raise AssertionError(f"waited {seconds * SLOW:.0f} s in vain for: {what}")
        time.sleep(0.01)
        now = time.monotonic()
        left -= min(now - before, 1.0)
        before = now


def pattern(size, seed=0):
    """`size` bytes that look random and differ from each other seed's."""
    out = bytearray()
    block = hashlib.sha256(b"%d" % seed).digest()
    state = hashlib.shake_256(block)
    if size <= 1 << 20:
        return state.digest(size)
    # shake is slow for large sizes: a 1 MiB digest with a counter mixed into each 16 KiB
    base = bytearray(state.digest(1 << 20))
    while len(out) < size:
        for at in range(0, 1 << 20, 16384):
            base[at:at + 8] = (len(out) + at + seed * 7).to_bytes(8, "little")
        out += base
    return bytes(out[:size])


def libtorrent_root(path):
    """The `pieces root` that libtorrent computes for the file, as hexadecimal."""
    import libtorrent
    storage = libtorrent.file_storage()
    size = os.path.getsize(path)
    if size == 0:
        return "00" * 32
    storage.add_file(os.path.basename(path), size)
    torrent = libtorrent.create_torrent(storage, piece_size=16384, flags=libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(torrent, os.path.dirname(path))
    info = libtorrent.torrent_info(torrent.generate())
    return info.files().root(0).to_bytes().hex()


def sync(top):
    """All that is in a folder is on its disk, as it would be had our programs written it: tests cut the power."""
    for folder, _, names in os.walk(top):
        for path in [os.path.join(folder, name) for name in names] + [folder]:
            if os.path.isfile(path) or os.path.isdir(path):  # no sockets
                handle = os.open(path, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)


class Reaper:
    """Another process, which outlives this one: should this be killed, what it started, mounted and made goes all the same."""

    def __init__(self):
        program = os.path.join(os.path.dirname(os.path.realpath(__file__)), "reaper.py")
        self.process = subprocess.Popen([sys.executable, "-B", program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True, text=True)
        atexit.register(self.end)

    def end(self):
        self.process.stdin.close()
        self.process.wait()

    def directory(self, prefix):
        """A new one in /tmp, until it is released."""
        path = tempfile.mkdtemp(prefix=prefix)
        self.say("+", path)
        return path

    def release(self, path):
        shutil.rmtree(path, ignore_errors=True)
        self.say("-", path)

    def say(self, sign, path):
        self.process.stdin.write(f"{sign} {path}\n")
        self.process.stdin.flush()


REAPER = Reaper()


class Keys:
    """RSA keys are made once for all tests of a file, as each costs up to a second: a tracker's data directory before anybody
    has registered, and devices' keys. P2P_TEST_KEYS names a folder that several files share. Whoever needs keys of their own
    says so."""

    def __init__(self):
        self.directory = os.environ.get("P2P_TEST_KEYS")
        if not self.directory:
            self.directory = REAPER.directory("p2pfs-keys-")
            atexit.register(REAPER.release, self.directory)

    def keep(self, source, name):
        """Whole or not at all, as others look while it is copied; who comes second leaves what is there."""
        part = tempfile.mkdtemp(prefix="part-", dir=self.directory)
        copied = os.path.join(part, name)
        if os.path.isdir(source):
            shutil.copytree(source, copied)
        else:
            shutil.copy2(source, copied)
        with contextlib.suppress(OSError):
            os.rename(copied, os.path.join(self.directory, name))
        shutil.rmtree(part)

    def tracker(self, data):
        """True if `data` was filled."""
        template = os.path.join(self.directory, "tracker")
        if os.path.exists(template):
            shutil.copytree(template, data)
            os.chmod(data, 0o700)
            sync(data)
            return True
        return False

    def keep_tracker(self, data):
        self.keep(data, "tracker")

    def device(self, name, home):
        kept, key = os.path.join(self.directory, f"{name}.key"), os.path.join(home, "device.key")
        if not os.path.exists(key) and os.path.exists(kept):
            shutil.copy2(kept, key)
            sync(home)

    def keep_device(self, name, home):
        if not os.path.exists(os.path.join(self.directory, f"{name}.key")):
            self.keep(os.path.join(home, "device.key"), f"{name}.key")


KEYS = Keys()


class Process:
    """A program that runs until it is told to stop; its messages are in `log`."""

    def __init__(self, test, name, arguments, env=None):
        self.test, self.name, self.arguments, self.env = test, name, arguments, env
        self.log = os.path.join(test.directory, f"{name}.log")
        self.process = None

    def start(self, ready=None, seconds=20):
        offset = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.arguments, env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        self.test.processes.append(self)
        if ready is None:
            return None

        def is_ready():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.text()[-2000:]}")
            return re.search(ready, self.text()[offset:])
        return wait_for(f"{self.name} to be ready", is_ready, seconds)

    def text(self):
        with open(self.log, "rb") as log:
            return log.read().decode("utf-8", "replace")

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self, number=signal.SIGKILL):
        if self.running():
            self.process.send_signal(number)
        if self.process is not None:
            return self.process.wait(30 * SLOW)

    def stop(self):
        """In order; a program that does not end is killed, and fails the test."""
        if not self.running():
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(15 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.test.troubles.append(f"{self.name} did not end on SIGTERM")
            return
        if status != 0:
            self.test.troubles.append(f"{self.name} ended with {status}")


class Tracker(Process):
    def __init__(self, test, name="tracker", registration="invite", own_keys=False, host=None):
        self.data = os.path.join(test.directory, name)
        self.port = 0
        self.host, self.address = host, test.the_lab.address(host) if host else "127.0.0.1"
        self.registration = registration
        super().__init__(test, name, [])
        if not own_keys and not KEYS.tracker(self.data):
            self.start()
            self.stop()
            KEYS.keep_tracker(self.data)
            self.port = 0

    def start(self):
        self.arguments = self.test.in_host(
            self.host, f"{BIN}/p2ptracker", "serve", "--data", self.data, "--listen", f"{self.address}:{self.port}",
            "--registration", self.registration)
        found = super().start(r"p2ptracker: ready on \S+:(\d+)")
        self.port = int(found.group(1))

    def invite(self, *options):
        return self.test.run(f"{BIN}/p2ptracker", "invite", "--data", self.data, *options).stdout.strip()

    def url(self):
        return self.test.run(f"{BIN}/p2ptracker", "url", "--data", self.data).stdout.strip()


class Member:
    """One member: a home, a daemon, a mount; in a host of the test's lab if one is given."""

    def __init__(self, test, name, config="", options="", host=None):
        self.test, self.name, self.host = test, name, host
        address = test.the_lab.address(host) if host else "127.0.0.1"
        self.home = os.path.join(test.directory, f"{name}.home")
        self.mount = os.path.join(test.directory, f"{name}.mnt")
        os.makedirs(self.home, mode=0o700, exist_ok=True)
        os.makedirs(self.mount)
        with open(os.path.join(self.home, "p2pd.conf"), "w") as conf:
            conf.write(f"[peer]\nlisten = {address}:0\n" + config + ("\n[store]\nencryption = yes\n" if ENCRYPTED else ""))
        self.env = dict(os.environ, P2P_HOME=self.home, P2P_PASSWORD_FILE=test.password)
        self.daemon = Process(test, f"{name}.p2pd", test.in_host(host, f"{BIN}/p2pd"), self.env)
        arguments = [f"{BIN}/p2pfs", self.mount, "-f"] + (["-o", options] if options else [])
        self.fs = Process(test, f"{name}.p2pfs", test.in_host(host, *arguments), self.env)

    def start_daemon(self):
        self.daemon.start(r"p2pd: ready")

    def ctl(self, *arguments, check=True, **more):
        return self.test.run(*self.test.in_host(self.host, f"{BIN}/p2pctl", *arguments), env=self.env, check=check,
                             **more)

    def register(self, tracker, *options):
        KEYS.device(self.name, self.home)
        done = self.ctl("register", tracker.invite(*options), self.name)
        KEYS.keep_device(self.name, self.home)
        return done

    def mounted(self):
        with open("/proc/self/mounts") as mounts:
            return any(line.split()[1] == self.mount for line in mounts)

    def start_mount(self):
        self.fs.start()
        wait_for(f"{self.name}'s mount", lambda: self.mounted() or not self.fs.running())
        if not self.mounted():
            raise AssertionError(f"p2pfs of {self.name} ended: {self.fs.text()[-2000:]}")

    def unmount(self, seconds=10):
        began = time.monotonic()
        if self.mounted():
            subprocess.run(["fusermount3", "-u", self.mount], timeout=60, capture_output=True)
            wait_for(f"{self.name}'s mount to go", lambda: not self.mounted(), seconds)
        if self.fs.process is not None:
            wait_for(f"p2pfs of {self.name} to end", lambda: not self.fs.running(), seconds)
        return time.monotonic() - began

    def path(self, *parts):
        return os.path.join(self.mount, *parts)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)

    def await_file(self, name, size=None, seconds=10):
        def there():
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(self.path(name))
                return size is None or status.st_size == size
        wait_for(f"'{name}' at {self.name}", there, seconds)

    def xattr(self, name, attribute):
        return os.getxattr(self.path(name), f"user.p2p.{attribute}").decode()

    def store_file(self, name):
        """The store's data file of a content."""
        root = self.xattr(name, "root")
        return os.path.join(self.home, "store", root[:2], root + ".data")


class SwarmTest(unittest.TestCase):
    def setUp(self):
        self.directory = REAPER.directory("p2pfs-test-")
        self.processes, self.all_members, self.troubles = [], [], []
        self.the_lab = None
        self.password = os.path.join(self.directory, "password")
        with open(self.password, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(PASSWORD)
        self.addCleanup(self.clean_up)

    def run(self, *arguments, **more):
        # unittest calls run(result); tests call run("program", …).
        if not arguments or not isinstance(arguments[0], str):
            return super().run(*arguments, **more)
        more.setdefault("timeout", 120 * SLOW)
        check = more.pop("check", True)
        text = more.pop("text", True)
        if "input" not in more:
            more.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(arguments, capture_output=True, text=text, **more)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def tracker(self, **more):
        tracker = Tracker(self, **more)
        tracker.start()
        return tracker

    def lab(self, hosts, link="", own=None, **more):
        """Emulated links (tests/lab/lab.py) for this test: trackers and members made with host=N run there."""
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../lab"))
        os.environ["P2P_BIN"] = BIN
        from lab import Lab
        self.the_lab = Lab(hosts, link, own, **more)
        return self.the_lab

    def in_host(self, host, *arguments):
        """The command as it runs in that host of the lab; on this machine itself if host is None."""
        return self.the_lab.command(host, *arguments) if host else list(arguments)

    def member(self, tracker, name, config="", options="", mounted=True, host=None):
        member = Member(self, name, config, options, host)
        self.all_members.append(member)
        member.start_daemon()
        member.register(tracker)
        if mounted:
            member.start_mount()
        return member

    def members(self, *names, **more):
        self.the_tracker = self.tracker()
        return [self.member(self.the_tracker, name, **more) for name in names]

    def assert_same_bytes(self, expected, got, what=""):
        if expected != got:
            at = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
            self.fail(f"{what}: {len(got)} bytes instead of {len(expected)}; first difference at {at}")

    def clean_up(self):
        for member in self.all_members:
            if member.mounted():
                subprocess.run(["fusermount3", "-u", member.mount], capture_output=True)
        for process in reversed(self.processes):
            if "p2pfs" in process.name and process.running():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.process.wait(5 * SLOW)
        for member in self.all_members:
            while member.mounted():
                self.troubles.append(f"{member.name}'s mount did not go by itself")
                subprocess.run(["umount", "-l", member.mount], capture_output=True)
        # Daemons that p2pfs started by itself are found by their homes.
        for member in self.all_members:
            with contextlib.suppress(FileNotFoundError):
                self.stop_spawned(member)
        for process in reversed(self.processes):
            process.stop()
        if self.the_lab is not None:
            self.the_lab.stop()
        for name in sorted(os.listdir(self.directory)) + [
                f"{m.name}.home/p2pd.log" for m in self.all_members]:
            path = os.path.join(self.directory, name)
            if name.endswith(".log") and os.path.exists(path):
                self.look_for_trouble(name, path)
        REAPER.release(self.directory)
        if self.troubles:
            self.fail("; ".join(self.troubles))

    def stop_spawned(self, member):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if os.path.basename(words[0]) == b"p2pd" and member.home.encode() in words and \
                        not any(p.process and p.process.pid == int(pid) for p in self.processes):
                    os.kill(int(pid), signal.SIGTERM)
                    wait_for("a daemon to end", lambda: not os.path.exists(f"/proc/{pid}"), 15)

    def look_for_trouble(self, name, path):
        with open(path, "rb") as file:
            text = file.read()
        found = SUSPICIOUS.search(text)
        if found:
            start = max(0, found.start() - 200)
            self.troubles.append(f"{name} says: {text[start:start + 3000].decode('utf-8', 'replace')}")
        elif os.environ.get("P2P_SHOW_LOGS"):
            sys.stderr.write(f"-- {name}\n{text.decode('utf-8', 'replace')}\n")


def main():
    if os.geteuid() != 0 and not os.access("/dev/fuse", os.W_OK):
        print("no access to /dev/fuse: skipped")
        sys.exit(77)
    unittest.main(module="__main__")
