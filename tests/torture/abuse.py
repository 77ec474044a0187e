#!/usr/bin/python3
"""A member written from the schema files and man/p2p-protocol.7 joins a swarm and then misbehaves in every way it can think of
against tracker and peers, while two honest members stream from each other.

    tests/torture/abuse.py [--minutes 10] [--nice 0] [--first] [--pin] [--only KIND,...]

Three attackers (processes of one member with several devices, and of strangers from many addresses) take turns with decoys
(loops that take the same processor time and do nothing else, as attackers here live on the machine of those they attack) and
with quiet. Rates of the honest stream under attack and beside the decoys are compared. Attackers, and decoys, are in one
control group and all others in another one of the same weight, so that neither depends on how a kernel weighs sessions; where
such groups cannot be made, --nice is all there is. --first puts both groups before whatever else runs on the machine. --pin
gives the attackers the last processor, and all others to the attacked; then the comparison is with quiet. What each process of
the honest ones, and each of their busier threads, took of a processor in each kind of window is printed. --only leaves but these
kinds of misbehaving, to see what each of them costs. Under a sanitizer rates mean nothing and are not judged; all else is.

Held: the stream keeps 80 % of its rate; each process stays within 64 MiB of the memory it began with; nothing crashes; every
breach of the protocol ends its link, what is merely too much is refused, and the device that goes on is banned, by daemon and
tracker.
"""
import argparse
import base64
import contextlib
import json
import os
import signal
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../system"))
from harness import PASSWORD, SANITIZER, SLOW, SwarmTest, pattern, wait_for  # noqa: E402
from test_hostile import (ANSWER, BANNED, BLOCK, FETCHER, P_BLOCK, P_CANCEL, P_GOODBYE,  # noqa: E402
                          P_HASH_REQUEST, P_HELLO, P_OPEN, P_OPENED, P_PING, P_PONG, P_REJECT, P_REQUEST, P_TICKET,
                          T_ANNOUNCE, T_DONE, T_FAULT, T_HEALTH, T_HELLO, T_PEERS, T_PING, T_WANT, T_WELCOME, Link, context,
                          fetcher, frame, member, unpack)
from test_security import peer_port  # noqa: E402

T_LOGIN, T_CREDENTIALS, T_OPS, T_RESULTS, T_SUBSCRIBE = 5, 6, 22, 23, 20
T_DIAL_BACK, T_GRANT, T_SIGNER, T_HAVE = 36, 60, 69, 5
MKDIR, PUBLISH, SYMLINK, RENAME = 1, 2, 3, 4
OK, BAD_NAME, BAD = 1, 8, 13
LEVEL_READ, LEVEL_WRITE = 2, 3
ROOM = (64 << 20) * SLOW
SIZE = 96 << 20         # of what is streamed, again and again
SMALL = 24 << 20        # under a sanitizer
WINDOW = 12.0           # seconds of attack, then a third of it of decoy
ENTRIES = 20000         # that the attacker puts into one directory
PROCESSORS = sorted(os.sched_getaffinity(0))
CROWD = 6               # devices that do nothing but not read and make things up


# --- who gets how much of the processors ---------------------------------------------------------------------------------

class Groups:
    """Two control groups of the same weight, "honest" (this process, and who it starts) and "attackers"; `join` is for a child."""

    def __init__(self, weight):
        top, file, weights = "/sys/fs/cgroup/cpu", "cpu.shares", (1024, weight * 1024)
        if not os.path.isdir(top):  # version 2
            top, file, weights = "/sys/fs/cgroup", "cpu.weight", (100, min(weight * 100, 10000))
        self.top, self.both = top, os.path.join(top, f"p2p-abuse-{os.getpid()}")
        try:
            if file == "cpu.weight":
                self.write(os.path.join(top, "cgroup.subtree_control"), "+cpu")
            os.mkdir(self.both)
            self.write(os.path.join(self.both, file), weights[1])
            if file == "cpu.weight":
                self.write(os.path.join(self.both, "cgroup.subtree_control"), "+cpu")
            for name in ("honest", "attackers"):
                os.mkdir(os.path.join(self.both, name))
                self.write(os.path.join(self.both, name, file), weights[0])
            self.join("honest")
        except OSError as error:
            print(f"    no control groups: {error}", flush=True)
            self.end()
            self.both = None

    @staticmethod
    def write(path, value):
        with open(path, "w", encoding="ascii") as out:
            out.write(str(value))

    def join(self, name):
        if self.both:
            self.write(os.path.join(self.both, name, "cgroup.procs"), os.getpid())

    def end(self):
        if not self.both or not os.path.isdir(self.both):
            return
        with contextlib.suppress(OSError):
            self.write(os.path.join(self.top, "cgroup.procs"), os.getpid())
        for path in (os.path.join(self.both, "honest"), os.path.join(self.both, "attackers"), self.both):
            with contextlib.suppress(OSError):  # somebody is still ending
                wait_for("nobody in the group", lambda path=path: self.gone(path))

    @staticmethod
    def gone(path):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True


# --- joining, as the manual page has it -------------------------------------------------------------------------------

def openssl(*arguments, data=None, check=True):
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=check).stdout


class Device:
    """A device of the attacker's: its own key, a certificate by Login."""

    def __init__(self, directory, number, port, account):
        self.key = os.path.join(directory, f"{number}.key")
        self.certificate = os.path.join(directory, f"{number}.crt")
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", self.key)
        request = openssl("req", "-new", "-key", self.key, "-subj", "/CN=toy")
        with Link(port) as link:
            link.socket.settimeout(60 * SLOW)
            link.send(frame(T_HELLO, {1: 1, 2: 1, 3: "toy"}, id=1) +
                      frame(T_LOGIN, {1: account, 2: PASSWORD.strip(), 3: request, 4: f"toy {number}"}, id=2))
            kind, fields, _, _ = link.until(T_CREDENTIALS, T_FAULT)
            assert kind == T_CREDENTIALS, fields
            self.id = fields[3][0]
            with open(self.certificate, "wb") as file:
                file.write(fields[1][0])
        self.own = self.certificate, self.key


class Signer:
    """The device's signing key: see "Signatures" in the page."""

    def __init__(self, directory, device, port, account):
        self.key = os.path.join(directory, "signer.key")
        self.directory, self.account = directory, account
        openssl("genpkey", "-algorithm", "ed25519", "-out", self.key)
        self.public = openssl("pkey", "-in", self.key, "-pubout", "-outform", "DER")[-32:]
        self.name = openssl("dgst", "-sha256", "-binary", data=self.public)[:16]
        chain = openssl("s_client", "-connect", f"127.0.0.1:{port}", "-showcerts", data=b"", check=False).decode()
        last = chain.split("-----BEGIN CERTIFICATE-----")[-1].split("-----END")[0]
        self.ca = openssl("dgst", "-sha256", "-binary", data=base64.b64decode("".join(last.split())))
        self.device_key = openssl("pkey", "-in", device.key, "-pubout", "-outform", "DER")
        self.claim = openssl("dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sign",
                             device.key, data=b"p2p signer 1\0" + self.ca + self.public + account.encode())

    def frame(self, id):
        return frame(T_SIGNER, {1: self.public, 2: self.account, 3: self.device_key, 4: self.claim}, id=id)

    def sign(self, kind, size=0, root=bytes(32), target=b""):
        """The fields of an Op that carry it."""
        text = os.path.join(self.directory, "text")
        with open(text, "wb") as file:
            file.write(b"p2p entry 1\0" + self.ca + bytes([kind]) + struct.pack(">Q", size) + root + target)
        return {40: self.name, 41: openssl("pkeyutl", "-sign", "-inkey", self.key, "-rawin", "-in", text)}


# --- what ends a link, and what is refused ------------------------------------------------------------------------------

def header(message, payload, type, flags=0, fds=0, id=0):
    return struct.pack(">IIHBBI", message, payload, type, flags, fds, id)


def breaches(size):
    """(name, bytes to send on an open link with the file as number 1): each must end the link."""
    last = (size + BLOCK - 1) // BLOCK
    return [
        ("a message of 1 GiB", header(1 << 30, 0, P_PING)),
        ("a payload of 4 GiB", header(0, 0xffffffff, P_PING)),
        ("a file descriptor on a TLS link", header(2, 0, P_PING, fds=1) + b"\x08\x01"),
        ("unknown flags", header(2, 0, P_PING, flags=0x80) + b"\x08\x01"),
        ("an unknown type", frame(4711)),
        ("a field of the wrong type", frame(P_REQUEST, raw=b"\x0a\x03abc\x12\x03abc\x1a\x03abc")),
        ("a length that lies", frame(P_OPEN, raw=b"\x08\x02\x12\xff\xff\xff\xff\x0f")),
        ("groups within groups", frame(P_OPEN, raw=b"\x0b" * 60000)),
        ("a number without an end", frame(P_PING, raw=b"\x08" + b"\xff" * 11)),
        ("a payload where none belongs", frame(P_PING, {1: 1}, payload=b"x")),
        ("no blocks", frame(P_REQUEST, {1: 1, 2: 0, 3: 0})),
        ("more blocks than a Request may have", frame(P_REQUEST, {1: 1, 2: 0, 3: 1025})),
        ("a block behind the end", frame(P_REQUEST, {1: 1, 2: last, 3: 1})),
        ("a block beyond all numbers", frame(P_REQUEST, {1: 1, 2: (1 << 64) - 1, 3: 2})),
        ("hashes of an unknown layer", frame(P_HASH_REQUEST, {1: 1, 2: 99, 3: 0, 4: 1})),
        ("more hashes than one may ask for", frame(P_HASH_REQUEST, {1: 1, 2: 2, 3: 0, 4: 8193})),
        ("a root of 5 bytes", frame(P_OPEN, {1: 2, 2: b"short", 3: 5})),
        ("a size of 2^64 - 1", frame(P_OPEN, {1: 2, 2: os.urandom(32), 3: (1 << 64) - 1})),
        ("a server's word from a fetcher", frame(P_BLOCK, {1: 1, 2: 0}, payload=bytes(BLOCK))),
        ("a Have from a fetcher", frame(T_HAVE, {1: 1, 2: [1]})),
        ("a second Hello", frame(P_HELLO, {1: 1, 2: 1, 3: FETCHER})),
    ]


BAD_NAMES = [b".", b"..", b"", b"/", b"a/b", b"a\0b", b"x" * 256, b"x" * 60000, b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"a\nb",
             b"\x1b[2J", b"\xc2\x85", "\u202egpj.exe".encode(), "\u2028".encode(), b"\x7f"]


class Attacker:
    """What the three processes have in common: `plan` is a file of numbers and paths."""

    def __init__(self, plan):
        self.__dict__.update(plan)
        self.over = threading.Event()
        self.count, self.faults = {}, []
        self.root = bytes.fromhex(self.root)
        self.right = bytes.fromhex(self.right[0]), self.right[1]

    def add(self, what, number=1):
        self.count[what] = self.count.get(what, 0) + number

    def open_film(self, link, number=1):
        ticket, whole = self.right
        if whole:
            link.send(frame(P_TICKET, {2: ticket, 3: 1}))
        link.send(frame(P_OPEN, {1: number, 2: self.root, 3: self.size, **({} if whole else {4: ticket})}))

    def run(self, *works):
        def go(work):
            while not self.over.is_set():
                try:
                    work()
                except (OSError, IndexError, struct.error, subprocess.CalledProcessError):
                    self.add(f"{work.__name__}: turned away")
                    self.over.wait(0.05)
        threads = [threading.Thread(target=go, args=(work,)) for work in works]
        signal.signal(signal.SIGTERM, lambda *_: self.over.set())
        for thread in threads:
            thread.start()
        while not self.over.wait(0.2):
            pass
        for thread in threads:
            thread.join(20)
        print(json.dumps({"count": self.count, "faults": self.faults}), flush=True)
        os._exit(0)

    # --- strangers, from many addresses ---

    def sources(self, base):
        return [f"127.0.{base}.{n}" for n in range(1, 250)]

    def slowloris(self):
        for port, base in ((self.port, 1), (self.tracker, 2)):
            links = []
            for source in self.sources(base)[:60]:
                with contextlib.suppress(OSError):
                    links.append(Link(port, source=source, tls=False))
            until = time.monotonic() + 3
            while time.monotonic() < until and not self.over.wait(0.2):
                for link in links:
                    with contextlib.suppress(OSError):
                        link.send(b"\x16")
            self.add("slow handshakes", len(links))
            for link in links:
                link.close()

    def half_open(self):
        """A ClientHello makes the other end sign; then nothing more comes."""
        made = context()
        for source in self.sources(3):
            for port in (self.port, self.tracker):
                if self.over.is_set():
                    return
                into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = made.wrap_bio(into, out)
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                with contextlib.suppress(OSError), Link(port, source=source, tls=False) as link:
                    link.send(out.read())
                    self.add("half-open handshakes")
        self.over.wait(3)  # others want to come in and do harm as well

    def strangers(self):
        for source in self.sources(4):
            if self.over.is_set():
                return
            with contextlib.suppress(OSError), Link(self.tracker, source=source) as link:
                link.send(frame(T_HELLO, {1: 1, 2: 1}, id=1) + frame(T_LOGIN, {1: "ann", 2: b"guess " + os.urandom(9),
                                                                              3: "no request"}, id=2) +
                          frame(T_WANT, {1: self.root, 2: self.size, 3: 30}, id=3) + header(1 << 19, 0, T_OPS))
                with contextlib.suppress(IndexError):
                    link.until(-1)
            self.add("strangers at the tracker")

    def replay(self):
        """What a member sent once, sent again by somebody else, byte for byte."""
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context(self.devices[0]).wrap_bio(into, out)
        recorded = b""
        with Link(self.port, source="127.0.5.1", tls=False) as link:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    fresh = out.read()
                    recorded += fresh
                    link.send(fresh)
                    into.write(link.socket.recv(65536))
            tls.write(frame(P_HELLO, {1: 1, 2: 1, 3: FETCHER, 5: "toy"}))
            recorded += out.read()
        with Link(self.port, source="127.0.5.2", tls=False) as link:
            link.send(recorded)
            link.socket.settimeout(12)
            if not link.is_closed():
                self.faults.append("a replayed handshake was not closed")
        self.add("replays")
        self.over.wait(1)

    # --- a member, at a peer ---

    def asks_and_does_not_read(self):
        with fetcher(self.port, self.devices[1]) as link:
            self.open_film(link)
            link.socket.settimeout(1)
            until = time.monotonic() + 5
            while time.monotonic() < until and not self.over.is_set():
                for block in range(0, 1024, 64):
                    link.send(frame(P_REQUEST, {1: 1, 2: block, 3: 64, 4: 2}) + frame(P_PING, {1: 7}) * 64 +
                              frame(P_HASH_REQUEST, {1: 1, 2: 2, 3: 0, 4: 16}))
                self.add("requests and hashes not read", 32)

    def crowd(self):
        """Many links at once, each of which asks for blocks one by one, and pings, and reads nothing."""
        with contextlib.ExitStack() as stack:
            links = []
            for device, (right, whole) in 3 * list(zip(self.devices[11:], self.crowd_rights)):
                with contextlib.suppress(OSError, IndexError):  # who is turned away leaves the place to the next
                    ticket = bytes.fromhex(right)
                    link = stack.enter_context(fetcher(self.port, device))
                    link.send((frame(P_TICKET, {2: ticket, 3: 1}) if whole else b"") +
                              frame(P_OPEN, {1: 1, 2: self.root, 3: self.size, **({} if whole else {4: ticket})}))
                    link.until(P_OPENED)
                    link.socket.settimeout(0.2)
                    links.append(link)
            asked = b"".join(frame(P_REQUEST, {1: 1, 2: n * 2, 3: 1, 4: n % 3}) + frame(P_PING, {1: 7}) * 20 for n in range(500))
            left = {link: asked * 4 for link in links}
            until = time.monotonic() + 6
            while time.monotonic() < until and not self.over.is_set():
                for link in links:
                    with contextlib.suppress(TimeoutError, ssl.SSLWantWriteError):
                        while left[link]:
                            left[link] = left[link][link.socket.send(left[link][:16384]):]
                self.over.wait(0.2)
            self.add("links of a crowd that reads nothing", len(links))

    def floods(self):
        with fetcher(self.port, self.devices[1]) as link:
            self.open_film(link)
            link.socket.settimeout(2)
            many = b"".join(frame(P_REQUEST, {1: 1, 2: n * 2 % 1000, 3: 1}) + frame(P_CANCEL, {1: 1, 2: n * 2 % 1000, 3: 1})
                            for n in range(500))
            until = time.monotonic() + 5
            while time.monotonic() < until and not self.over.is_set():
                link.send(many)
                self.add("requests taken back", 500)

    def too_much_in_flight(self):
        with fetcher(self.port, self.devices[2]) as link:
            self.open_film(link)
            for _ in range(12):
                link.send(frame(P_REQUEST, {1: 1, 2: 0, 3: 1024}) + frame(P_REQUEST, {1: 1, 2: 0, 3: 1}))
            self.add("requests beyond the limit", 12 * 1025)
            until = time.monotonic() + 2
            while time.monotonic() < until and not self.over.is_set():
                link.next()

    def opens(self):
        with fetcher(self.port, self.devices[2]) as link:
            link.socket.settimeout(2)
            for n in range(2, 8000):
                link.send(frame(P_OPEN, {1: n, 2: os.urandom(32), 3: 1 + n, 4: os.urandom(32)}))
                if self.over.is_set():
                    return
            self.add("contents asked for that nobody has", 8000)

    def links(self):
        links = []
        with contextlib.suppress(OSError, IndexError):
            while len(links) < 12 and not self.over.is_set():
                links.append(fetcher(self.port, self.devices[3]))
        if len(links) > 4:
            alive = 0
            for link in links:
                with contextlib.suppress(OSError, IndexError):
                    link.send(frame(P_PING, {1: 5}))
                    link.until(P_PONG)
                    alive += 1
            if alive > 4:
                self.faults.append(f"{alive} links of one device")
        self.add("links beyond the limit", 12)
        self.over.wait(0.5)
        for link in links:
            link.close()

    def others_ticket(self):
        """Tickets are one device's: another one of the same account shows it."""
        with fetcher(self.port, self.devices[4]) as link:
            self.open_film(link)
            kind = link.until(P_OPENED, P_REJECT, P_GOODBYE)[0]
            if kind == P_OPENED:
                self.faults.append("another device's ticket was taken")
            link.send(frame(P_OPEN, {1: 9, 2: self.secret_root, 3: self.secret_size, 4: os.urandom(32)}))
            if link.until(P_OPENED, P_REJECT, P_GOODBYE)[0] == P_OPENED:
                self.faults.append("a content that may not be seen was opened")
            self.add("tickets that are no right", 2)
        self.over.wait(0.5)

    def outlaw(self):
        """Goes on with what got it banned."""
        with fetcher(self.port, self.devices[5]) as link:
            self.open_film(link)
            link.send(breaches(self.size)[0][1])
            link.farewell()
            self.add("breaches")

    # --- a member, at the tracker ---

    def announces(self):
        with member(self.tracker, self.devices[6]) as link:
            link.socket.settimeout(5)
            pieces = (self.size + (256 << 10) - 1) // (256 << 10)
            for n in range(200):
                if self.over.is_set():
                    return
                lies = [{1: self.root, 2: self.size, 4: os.urandom((pieces + 7) // 8 - 1) + bytes([0])},
                        {1: self.secret_root, 2: self.secret_size, 3: 1},      # a file that it may not see
                        {1: self.root, 2: self.size, 3: 1}] + \
                       [{1: os.urandom(32), 2: 1 + n, 3: 1} for _ in range(500)]
                link.send(frame(T_ANNOUNCE, {3: lies, 4: n % 50 == 0}, id=n * 2 + 1) +
                          frame(T_ANNOUNCE, {3: [{1: self.root, 2: self.size, 6: 1}]}, id=n * 2 + 2))
                link.until(T_DONE, T_FAULT)
                self.add("lies about what it has", len(lies))

    def made_up(self):
        """Devices that say they have what nobody published, as much as each may, again and again from scratch."""
        for device in self.devices[11:]:
            with member(self.tracker, device) as link:
                link.socket.settimeout(5)
                for n in range(80):
                    lies = [{1: os.urandom(32), 2: 1 + n, 3: 1} for _ in range(500)]
                    link.send(frame(T_ANNOUNCE, {3: lies, 4: n % 40 == 0}, id=n + 1))
                    link.until(T_DONE, T_FAULT)
                    self.add("contents made up", 500)
                    if self.over.is_set():
                        return

    def questions(self):
        with member(self.tracker, self.devices[7]) as link:
            link.socket.settimeout(2)
            many = b"".join(frame(T_HEALTH, {1: os.urandom(32), 2: 1 << 42}, id=9) + frame(T_WANT, {1: os.urandom(32), 2: 1 << 42,
                            3: 0xffffffff}, id=10) + frame(T_DIAL_BACK, {1: os.urandom(16)}, id=11) for _ in range(100))
            until = time.monotonic() + 4
            while time.monotonic() < until and not self.over.is_set():
                link.send(many)
                self.add("questions whose answers are not read", 300)

    def catalogue(self):
        with member(self.tracker, self.devices[8]) as link:
            link.socket.settimeout(20)
            signer = Signer(self.directory, argparse.Namespace(key=self.devices[8][1]), self.tracker, self.account)
            link.send(signer.frame(3))
            number = time.time_ns()

            def ask(*ops):
                """The results' status and entry of each."""
                nonlocal number
                made = []
                for op in ops:
                    number += 1
                    made.append({1: number, 11: number, **op})
                link.send(frame(T_OPS, {1: made}, id=7))
                kind, fields, _, _ = link.until(T_RESULTS, T_FAULT)
                if kind == T_FAULT:
                    return None
                results = [unpack(r) for r in fields.get(1, [])]
                return [(r.get(2, [0])[0], unpack(r[3][0]) if 3 in r else {}) for r in results]
            made = ask({2: MKDIR, 4: 1, 7: "abuse"})
            if made is None or 1 not in made[0][1]:
                raise ConnectionError("not now")
            place = made[0][1][1][0]
            for name in BAD_NAMES:
                got = ask({2: MKDIR, 4: place, 7: name})
                if got is not None and got[0][0] not in (BAD_NAME, BAD) and name != b"a\0b":
                    self.faults.append(f"name {name[:20]} was answered with {got[0][0]}")
                if got is not None and got[0][0] == OK and got[0][1].get(3, [b""])[0] != b"a":
                    self.faults.append(f"name {name[:20]} was made")
            for n, size in enumerate((1 << 63, (1 << 64) - 1, (1 << 63) - 1, (16 << 40) + 1)):
                got = ask({2: PUBLISH, 4: place, 7: f"huge{n}", 8: size, 9: os.urandom(32), 12: 0o7777})
                if got is not None and got[0][0] == OK:
                    self.faults.append(f"a file of {size} bytes was made")
            root = os.urandom(32)
            got = ask({2: SYMLINK, 4: place, 7: "passwd", 10: "/etc/passwd", **signer.sign(3, target=b"/etc/passwd")},
                      {2: PUBLISH, 4: place, 7: "setuid", 8: 5000, 9: root, 12: 0o7777, 13: 1, **signer.sign(2, 5000, root)},
                      {2: PUBLISH, 4: place, 7: "nobody has it", 8: 16 << 40, 9: root, 12: 0o644, **signer.sign(2, 16 << 40, root)},
                      {2: 99, 4: place, 7: "unknown"}, {2: RENAME, 3: place, 4: place, 7: "within itself"})
            self.add("entries that want to harm", len(BAD_NAMES) + 9)
            made = 0
            while made < ENTRIES and not self.over.is_set():
                got = ask(*[{2: MKDIR, 4: place, 7: f"{made + n:07}" + "x" * (n % 40)} for n in range(256)])
                if got is None:
                    self.over.wait(0.5)
                    continue
                made += 256
                self.add("entries in one directory", 256)
            while not self.over.is_set():  # rights that change, and what was asked for already
                link.send(frame(T_GRANT, {1: place, 2: "everyone", 3: LEVEL_READ}, id=8) +
                          frame(T_GRANT, {1: place, 2: "everyone", 3: LEVEL_WRITE}, id=9) +
                          frame(T_OPS, {1: [{1: number, 2: MKDIR, 4: place, 7: "again"}]}, id=10))
                link.until(T_RESULTS, T_FAULT)
                self.add("changes of rights", 2)

    def breaker(self):
        """Breaks the tracker's protocol until it is not let in any more, and then."""
        for n, breach in enumerate((frame(T_PING, id=3, flags=ANSWER), frame(999, id=4), frame(T_WANT, raw=b"\xff" * 99, id=4),
                                    header(0xffffffff, 0, T_PING), frame(T_OPS, {1: [{1: n} for n in range(300)]}, id=5),
                                    frame(T_SUBSCRIBE, {1: b"short"}, id=5), frame(T_PING, raw=b"\x0b" * 60000, id=1))):
            with Link(self.tracker, self.devices[9]) as link:
                link.send(frame(T_HELLO, {1: 1, 2: 1, 3: "toy"}, id=1))
                link.until(T_WELCOME)
                link.send(breach)
                link.is_closed()
                self.add("breaches at the tracker")
            if self.over.wait(0.1):
                return

    ROLES = {
        "stranger": ("slowloris", "half_open", "half_open", "strangers", "replay"),
        "peer": ("asks_and_does_not_read", "crowd", "floods", "too_much_in_flight", "opens", "links", "others_ticket", "outlaw"),
        "tracker": ("announces", "made_up", "questions", "catalogue", "breaker"),
    }


def attacker(role, plan, only):
    with open(plan, encoding="utf-8") as file:
        attack = Attacker(json.load(file))
    attack.run(*[getattr(attack, name) for name in attack.ROLES[role] if not only or name in only.split(",")])


def decoy():
    until = time.process_time()
    share = float(sys.argv[2])
    while True:  # `share` of a processor, in steps of 20 ms
        until += 0.02 * share
        while time.process_time() < until:
            pass
        if share < 1:
            time.sleep(0.02 * (1 - share))


def cpu_of(stat):
    """Seconds of a processor that a process, or a thread, has taken, from its line in /proc."""
    with open(f"/proc/{stat}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def threads_of(name, pid):
    """The same of each thread, and of all of them."""
    used = {name: cpu_of(pid)}
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8") as file:
                key = f"{name}:{file.read().strip()}"
            used[key] = used.get(key, 0) + cpu_of(f"{pid}/task/{thread}")
    return used


def resident(pid):
    with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Abuse(SwarmTest):
    seconds = 14
    judged = False  # rates of so short a run say little
    nice, pin, only, weight, groups = 0, False, "", 0, None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if SANITIZER:  # what is freed and kept back for a while is not what the programs take
            os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8"
        if cls.weight:
            cls.groups = Groups(cls.weight)
            cls.addClassCleanup(cls.groups.end)

    # --- the honest ones ---

    def honest(self):
        self.size = SMALL if SANITIZER else SIZE
        self.ann, self.ben = self.members("ann", "ben")
        self.data = pattern(self.size, 3)
        self.ann.write("film", self.data)
        self.ben.await_file("film", self.size)
        os.mkdir(self.ann.path("private"))
        self.ann.write("private/secret", pattern(100000, 4))
        self.ann.ctl("revoke", "/private", "everyone")
        self.secret = bytes.fromhex(self.ann.xattr("private/secret", "root"))

    def stream_once(self):
        """Bytes a second; what ben had before is given back first."""
        self.ben.ctl("evict", "/film", check=False)
        began = time.monotonic()
        with open(self.ben.path("film"), "rb") as file:
            got = file.read()
        took = time.monotonic() - began
        self.assert_same_bytes(self.data, got, "streamed")
        return self.size / took

    def stream_for(self, seconds, rates):
        until = time.monotonic() + seconds
        while True:
            rates.append(self.stream_once())
            if time.monotonic() >= until:
                return

    def window(self, kind, seconds, rates, cpu, served):
        """Streams for so long; what each of the served took of a processor is noted."""
        began, before = time.monotonic(), {name: threads_of(name, p.process.pid) for name, p in served.items()}
        self.stream_for(seconds, rates.setdefault(kind, []))
        took = time.monotonic() - began
        for name, p in served.items():
            for key, used in threads_of(name, p.process.pid).items():
                cpu.setdefault(kind, {}).setdefault(key, []).append((used - before[name].get(key, 0)) / took)
        return took

    # --- the attackers ---

    def beside(self, *arguments, **options):
        """A process of this file's that lives on the same machine."""
        def settle():
            if self.groups:
                self.groups.join("attackers")
            os.nice(self.nice)
            if self.pin:
                os.sched_setaffinity(0, {PROCESSORS[-1]})
        return subprocess.Popen(["/usr/bin/python3", "-B", os.path.abspath(__file__), *arguments], preexec_fn=settle,
                                **options)  # pylint: disable=subprocess-popen-preexec-fn

    def join(self):
        """eve registers with a daemon, which then stays down; her toy logs in with ten devices."""
        eve = self.member(self.the_tracker, "eve", mounted=False)
        eve.daemon.stop()
        directory = os.path.join(self.directory, "toy")
        os.mkdir(directory, 0o700)
        self.toys = [Device(directory, n, self.the_tracker.port, "eve") for n in range(11 + CROWD)]
        right = wait_for("a ticket", lambda: self.ticket(self.toys[1]))
        rights = [wait_for("a ticket", lambda toy=toy: self.ticket(toy)) for toy in self.toys[11:]]
        plan = {"port": peer_port(self.ann), "tracker": self.the_tracker.port, "root": self.ann.xattr("film", "root"),
                "size": self.size, "right": [right[0].hex(), right[1]], "crowd_rights": [(r[0].hex(), r[1]) for r in rights],
                "devices": [d.own for d in self.toys],
                "secret_root": self.secret.hex(), "secret_size": 100000, "directory": directory, "account": "eve"}
        self.plan = os.path.join(directory, "plan.json")
        with open(self.plan, "w", encoding="utf-8") as file:
            json.dump(plan, file)

    def ticket(self, device):
        root = bytes.fromhex(self.ann.xattr("film", "root"))
        with member(self.the_tracker.port, device.own) as link:
            link.send(frame(T_WANT, {1: root, 2: self.size, 3: 30}, id=2))
            for peer in map(unpack, link.until(T_PEERS)[1].get(2, [])):
                if peer[1][0] == b"ann" and 16 in peer:
                    return peer[16][0], peer.get(17, [0])[0]
        return None

    def states(self):
        peers = json.loads(self.ann.ctl("peers", "--json").stdout)["peers"]
        return [peer["state"] for peer in peers if peer["account"] == "eve"]

    def each_breach_ends_its_link(self):
        """With devices that have not been banned yet: two for each, as the third in ten minutes is one too many."""
        port, root = peer_port(self.ann), bytes.fromhex(self.ann.xattr("film", "root"))
        directory = os.path.join(self.directory, "toy")
        kept, device = [], None
        for n, (name, data) in enumerate(breaches(self.size)):
            if n % 2 == 0:
                device = Device(directory, 100 + n, self.the_tracker.port, "eve")
                ticket, whole = wait_for("a ticket", lambda d=device: self.ticket(d))
            with fetcher(port, device.own) as link:
                if whole:
                    link.send(frame(P_TICKET, {2: ticket, 3: 1}))
                link.send(frame(P_OPEN, {1: 1, 2: root, 3: self.size, **({} if whole else {4: ticket})}))
                link.until(P_OPENED)
                link.send(data)
                link.socket.settimeout(5 * SLOW)
                if not link.is_closed():
                    kept.append(name)
        self.assertEqual([], kept, "breaches that did not end the link")
        print(f"    {len(breaches(self.size))} kinds of breach: each ended its link", flush=True)

    def test_honest_members_are_served_while_another_misbehaves(self):
        self.honest()
        self.join()
        if self.seconds > 60:
            self.each_breach_ends_its_link()
        served = {"tracker": self.the_tracker, "ann": self.ann.daemon, "ben": self.ben.daemon, "ben.p2pfs": self.ben.fs}
        self.stream_once()
        self.stream_once()
        before = {name: resident(p.process.pid) for name, p in served.items()}
        most = dict(before)
        over = threading.Event()

        def watch():
            while not over.wait(0.1):
                for name, process in served.items():
                    with contextlib.suppress(OSError):
                        most[name] = max(most[name], resident(process.process.pid))
        watcher = threading.Thread(target=watch)
        watcher.start()
        attackers = [self.beside("--attack", role, self.plan, self.only, stdout=subprocess.PIPE, text=True) for role in Attacker.ROLES]
        rates, cpu = {}, {}
        deadline = time.monotonic() + self.seconds
        try:
            while time.monotonic() < deadline:
                spent = sum(cpu_of(p.pid) for p in attackers)
                took = self.window("attack", WINDOW, rates, cpu, served)
                share = (sum(cpu_of(p.pid) for p in attackers) - spent) / took / len(attackers)
                cpu.setdefault("attack", {}).setdefault("attackers", []).append(share * len(attackers))
                if not self.judged:
                    continue
                for p in attackers:
                    p.send_signal(signal.SIGSTOP)
                decoys = [self.beside("--decoy", f"{min(share, 1):.3f}") for _ in attackers]
                try:
                    time.sleep(1)
                    took = self.window("decoy", WINDOW / 3, rates, cpu, served)
                finally:
                    for p in decoys:
                        p.kill()
                        p.wait()
                took += self.window("quiet", WINDOW / 3, rates, cpu, served)
                for p in attackers:
                    p.send_signal(signal.SIGCONT)
                deadline += 1 + took  # the time of attack counts
        finally:
            for p in attackers:
                p.send_signal(signal.SIGCONT)
                p.send_signal(signal.SIGTERM)
            reports = [json.loads(p.communicate(timeout=120)[0] or "{}") for p in attackers]
            over.set()
            watcher.join()
        faults = [fault for report in reports for fault in report.get("faults", ["an attacker ended without a word"])]
        for report in reports:
            for what, number in sorted(report.get("count", {}).items()):
                print(f"    {number:9} {what}")
        for name in served:
            print(f"    {name}: {before[name] >> 20} MiB, at most {(most[name] - before[name]) >> 20} MiB more")
        median = {kind: statistics.median(some) / 1e6 for kind, some in rates.items()}
        for kind, some in rates.items():
            used = ", ".join(f"{name} {statistics.mean(shares):.2f}" for name, shares in cpu[kind].items()
                             if ":" not in name or statistics.mean(shares) >= 0.02)
            print(f"    {kind}: streamed {len(some)} times, median {median[kind]:.0f} MB/s; processors: {used}", flush=True)
        share = 1.0
        if self.judged:
            share = median["attack"] / median["quiet" if self.pin else "decoy"]
            print(f"    under attack {100 * share:.0f} % of what is streamed {'in quiet' if self.pin else 'beside the decoy'}; "
                  f"of quiet: {100 * median['attack'] / median['quiet']:.0f} %", flush=True)
        self.assertEqual([], sorted(set(faults)))
        if self.only:
            return
        for name, process in served.items():
            self.assertTrue(process.running(), name)
            self.assertLess(most[name] - before[name], ROOM, f"memory of {name}")
        self.assertTrue(any(s.startswith("banned: broke the protocol") for s in self.states()), self.states())
        with contextlib.closing(fetcher(peer_port(self.ann), self.toys[5].own, hello=False)) as link:
            self.assertEqual(BANNED, link.farewell())
        self.tracker_has_banned(self.toys[9])
        self.look_at_what_was_made()
        self.assertGreater(share, 0.8)

    def tracker_has_banned(self, device):
        """Who broke the tracker's protocol, three times at the most, is a stranger to it from then on."""
        for _ in range(4):
            with Link(self.the_tracker.port, device.own) as link:
                link.socket.settimeout(60 * SLOW)
                link.send(frame(T_HELLO, {1: 1, 2: 1}, id=1))
                if 5 not in link.until(T_WELCOME)[1]:
                    return
                link.send(frame(999, id=4))
                self.assertTrue(link.is_closed())
        self.fail("the tracker still takes the device for a member")

    def look_at_what_was_made(self):
        """What ben sees of the attacker's entries harms nobody."""
        place = self.ben.path("abuse")
        wait_for("the directory", lambda: os.path.isdir(place))
        names = os.listdir(place)
        self.assertEqual([], [n for n in names if n in (".", "..") or "/" in n or "\n" in n or "\0" in n])
        if "setuid" in names:
            self.assertEqual(0, os.stat(os.path.join(place, "setuid")).st_mode & 0o7000)
        if "passwd" in names:
            self.assertTrue(os.path.islink(os.path.join(place, "passwd")))
        print(f"    ben sees {len(names)} names in the attacker's directory", flush=True)


def main():
    if sys.argv[1:2] == ["--attack"]:
        attacker(*sys.argv[2:5])
    if sys.argv[1:2] == ["--decoy"]:
        decoy()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--nice", type=int, default=0, help="of the attackers")
    options.add_argument("--first", action="store_true", help="before whatever else runs on this machine")
    options.add_argument("--pin", action="store_true", help="attackers on the last processor, all others on the rest")
    options.add_argument("--only", default="", metavar="KIND,...",
                         help="of " + ", ".join(name for names in Attacker.ROLES.values() for name in dict.fromkeys(names)))
    chosen = options.parse_args()
    Abuse.only = chosen.only
    Abuse.seconds, Abuse.judged = chosen.minutes * 60, not SANITIZER
    Abuse.nice, Abuse.pin = chosen.nice, chosen.pin
    Abuse.weight = 64 if chosen.first else 1
    if Abuse.pin:
        os.sched_setaffinity(0, set(PROCESSORS[:-1]))
    unittest.main(module="__main__", argv=sys.argv[:1], verbosity=2)


if __name__ == "__main__":
    main()
