"""Members and strangers who misbehave on purpose, against real daemons and a real tracker: others are served, memory stays
bounded, the culprit is closed, and banned if it can be no mistake.

The toy clients speak the protocols from their schema files, with certificates of a registered member whose own daemon is
not running.
"""
import contextlib
import json
import os
import resource
import socket
import ssl
import struct
import threading
import time
import unittest

from harness import SLOW, SwarmTest, main, pattern, wait_for
from test_security import peer_port

MAY_SKIP, ANSWER = 1, 2
# proto/peer.proto
P_HELLO, P_OPEN, P_OPENED, P_CLOSE, P_REQUEST, P_BLOCK, P_CANCEL, P_REJECT = 1, 2, 3, 4, 6, 7, 8, 9
P_HASH_REQUEST, P_HASHES, P_PING, P_PONG, P_GOODBYE, P_TICKET = 10, 11, 14, 15, 16, 17
FETCHER, SERVER = 1, 2
PROTOCOL, BANNED, BUSY = 3, 4, 5
# proto/tracker.proto
T_FAULT, T_HELLO, T_WELCOME, T_DONE = 1, 2, 3, 12
T_ANNOUNCE, T_WANT, T_PEERS, T_HEALTH, T_PING = 30, 31, 33, 34, 40
ROOM = (64 << 20) * SLOW  # what strangers may make a process grow by (a sanitizer keeps what was freed)
BLOCK = 16384


# --- Protocol Buffers, as much as is needed -----------------------------------------------------------------------

def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7f:
        out.append(n & 0x7f | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


def pack(fields):
    """{number: int, bytes, str, bool, dict or list of these}."""
    out = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                out += varint(number << 3) + varint(one)
            else:
                one = pack(one) if isinstance(one, dict) else one.encode() if isinstance(one, str) else one
                out += varint(number << 3 | 2) + varint(len(one)) + one
    return out


def unpack(data):
    """{number: [values]}; submessages stay bytes."""
    at, out = 0, {}

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                return value
    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            value = number()
        else:
            size = number()
            value = data[at:at + size]
            at += size
        out.setdefault(tag >> 3, []).append(value)
    return out


def frame(type, fields=None, payload=b"", flags=0, id=0, raw=None):
    message = raw if raw is not None else pack(fields or {})
    return struct.pack(">IIHBBI", len(message), len(payload), type, flags, 0, id) + message + payload


# --- a link ---------------------------------------------------------------------------------------------------------

def context(own=None):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if own:
        made.load_cert_chain(*own)
    return made


class Link:
    def __init__(self, port, own=None, source="127.0.0.1", tls=True, host="127.0.0.1"):
        raw = socket.create_connection((host, port), timeout=10 * SLOW, source_address=(source, 0))
        self.socket = context(own).wrap_socket(raw) if tls else raw
        self.buffer = b""

    def send(self, data):
        self.socket.sendall(data)

    def exactly(self, size):
        while len(self.buffer) < size:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionError("closed")
            self.buffer += more
        out, self.buffer = self.buffer[:size], self.buffer[size:]
        return out

    def next(self):
        """(type, fields, payload, id)"""
        message, payload, type, _, _, id = struct.unpack(">IIHBBI", self.exactly(16))
        return type, unpack(self.exactly(message)), self.exactly(payload), id

    def until(self, *types):
        while True:
            got = self.next()
            if got[0] in types:
                return got

    def farewell(self):
        """The code of the Goodbye, or None if the link just ended."""
        with contextlib.suppress(OSError, IndexError):
            return self.until(P_GOODBYE)[1].get(1, [0])[0]

    def is_closed(self):
        """True once the other end has closed."""
        with contextlib.suppress(TimeoutError):
            try:
                while self.socket.recv(1 << 16):
                    pass
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
            return True
        return False

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def fetcher(port, own, hello=True, source="127.0.0.1"):
    link = Link(port, own, source)
    if hello:
        link.send(frame(P_HELLO, {1: 1, 2: 1, 3: FETCHER, 5: "toy"}))
        link.until(P_HELLO)
    return link


def member(port, own, source="127.0.0.1", host="127.0.0.1"):
    link = Link(port, own, source, host=host)
    link.send(frame(T_HELLO, {1: 1, 2: 1, 3: "toy"}, id=1))
    link.until(T_WELCOME)
    return link


def memory(process):
    with open(f"/proc/{process.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(process):
    return len(os.listdir(f"/proc/{process.process.pid}/fd"))


class Watch:
    """The most that a process's memory grew while it was watched."""

    def __init__(self, *processes):
        self.processes = processes
        self.before = [memory(p) for p in processes]
        self.most = list(self.before)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.wait(0.05):
            for i, process in enumerate(self.processes):
                with contextlib.suppress(OSError):
                    self.most[i] = max(self.most[i], memory(process))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def grown(self):
        return max(most - before for most, before in zip(self.most, self.before))


class Crowd:
    """Things that go on in threads until the end of the block."""

    def __init__(self, *works):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.go, args=(work,)) for work in works]
        self.rounds = 0

    def go(self, work):
        while not self.over.is_set():
            with contextlib.suppress(OSError, IndexError):
                work(self.over)
                self.rounds += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


class Hostile(SwarmTest):
    def swarm(self):
        """ann has a file that ben can read; eve is a member whose daemon is not running."""
        self.ann, self.ben = self.members("ann", "ben")
        eve = self.member(self.the_tracker, "eve", mounted=False)
        eve.daemon.stop()
        self.eve = eve
        self.own = os.path.join(eve.home, "device.crt"), os.path.join(eve.home, "device.key")
        self.data = pattern(24 << 20, 5)
        self.ann.write("film", self.data)
        self.ben.await_file("film", len(self.data))
        self.root = bytes.fromhex(self.ann.xattr("film", "root"))
        self.port = peer_port(self.ann)
        self.right = wait_for("the tracker's ticket for eve", lambda: self.ticket("ann"))

    def ticket(self, account):
        """What eve must show to that member to be served the file: from the tracker, as any client gets it."""
        with member(self.the_tracker.port, self.own) as link:
            link.send(frame(T_WANT, {1: self.root, 2: len(self.data), 3: 30}, id=2))
            peers = link.until(T_PEERS)[1].get(2, [])
        for peer in map(unpack, peers):
            if peer[1][0].decode() == account and 16 in peer:
                return peer[16][0], peer.get(17, [0])[0]
        return None

    def open_film(self, link, number=1):
        ticket, whole = self.right
        if whole:
            link.send(frame(P_TICKET, {2: ticket, 3: 1}))
        link.send(frame(P_OPEN, {1: number, 2: self.root, 3: len(self.data), **({4: ticket} if not whole else {})}))
        self.assertEqual(P_OPENED, link.until(P_OPENED, P_REJECT)[0], "a member is served")

    def states(self, who):
        peers = json.loads(who.ctl("peers", "--json").stdout)["peers"]
        return [peer["state"] for peer in peers if peer["account"] == "eve"]

    # --- a peer's port ---

    def test_a_daemon_under_attack_serves_others_and_bans_the_culprit(self):
        self.swarm()
        daemon = self.ann.daemon
        before = descriptors(daemon)

        def slowloris(over):
            links = [Link(self.port, source=f"127.0.0.{n}", tls=False) for n in range(10, 22) for _ in range(6)]
            while not over.wait(0.2):
                for link in links:
                    with contextlib.suppress(OSError):
                        link.send(b"\x16")
            for link in links:
                link.close()

        def strangers(over):
            with Link(self.port, source="127.0.0.9"):
                pass

        def asks_and_does_not_read(over):
            with fetcher(self.port, self.own) as link:
                self.open_film(link)
                link.socket.setblocking(True)
                link.socket.settimeout(1)
                for block in range(0, 1024, 64):
                    link.send(frame(P_REQUEST, {1: 1, 2: block, 3: 64, 4: 2}))
                while not over.wait(0.05):
                    link.send(frame(P_PING, {1: 7}) * 64)

        def floods(over):
            with fetcher(self.port, self.own) as link:
                self.open_film(link)
                link.socket.settimeout(1)
                many = b"".join(frame(P_REQUEST, {1: 1, 2: n * 2 % 1500, 3: 1}) + frame(P_CANCEL, {1: 1, 2: n * 2 % 1500, 3: 1})
                                for n in range(2000))
                while not over.is_set():
                    link.send(many)

        def opens(over):
            with fetcher(self.port, self.own) as link:
                for n in range(10000):
                    link.send(frame(P_OPEN, {1: n, 2: os.urandom(32), 3: 1 + n}))
                    if over.is_set():
                        return
                over.wait(1)

        # What is asked for is refused, and is no reason to end the link.
        with fetcher(self.port, self.own) as link:
            link.send(frame(P_REQUEST, {1: 77, 2: 1, 3: 1}))
            self.assertEqual(P_REJECT, link.next()[0], "a file that was not opened")
            link.send(frame(P_OPEN, {1: 1, 2: os.urandom(32), 3: 5}))
            self.assertEqual(P_REJECT, link.next()[0], "a root that nobody has")
            link.send(frame(P_OPEN, {1: 2, 2: self.root, 3: len(self.data), 4: os.urandom(32)}))
            self.assertEqual(P_REJECT, link.next()[0], "a ticket that is made up")
            link.send(frame(4711, flags=MAY_SKIP, payload=b"x" * 1000) + frame(P_PING, {1: 3}))
            self.assertEqual(P_PONG, link.next()[0], "what may be skipped is skipped")

        began = time.monotonic()
        with Watch(daemon) as watch:
            with Crowd(slowloris, strangers, strangers, asks_and_does_not_read, floods, opens) as crowd:
                wait_for("the attack to be under way", lambda: crowd.rounds > 20)
                self.assert_same_bytes(self.data, self.ben.read("film"), "read under attack")
                took = time.monotonic() - began
                # Somebody who comes from elsewhere finds a place although all are taken, at once or, as a daemon tries
                # again as well, soon: those who are slow have a second before they must give theirs up.
                friend = os.path.join(self.ben.home, "device.crt"), os.path.join(self.ben.home, "device.key")

                def gets_in():
                    with contextlib.suppress(OSError):
                        with fetcher(self.port, friend, source="127.0.0.200"):
                            return True
                wait_for("a place for a member", gets_in)
            self.assertLess(watch.grown(), ROOM)
        print(f"    {took:.1f} s, {crowd.rounds} rounds, {watch.grown() >> 20} MiB more", flush=True)
        wait_for("the descriptors to come back", lambda: descriptors(daemon) <= before + 12)

        # Breaches of the protocol: the link ends each time, and then eve is banned.
        breaches = [frame(P_REQUEST, {1: 1, 2: 0, 3: 1 << 30}),
                    frame(P_OPEN, {1: 1, 2: b"short", 3: 5}),
                    struct.pack(">IIHBBI", 1 << 30, 0, P_PING, 0, 0, 0)]
        for breach in breaches:
            with fetcher(self.port, self.own) as link:
                link.send(breach)
                self.assertIn(link.farewell(), (PROTOCOL, None))
            if breach is not breaches[-1]:
                self.assertFalse(any("banned" in s for s in self.states(self.ann)))
        wait_for("the ban", lambda: any(s.startswith("banned: broke the protocol") for s in self.states(self.ann)))
        with fetcher(self.port, self.own, hello=False) as link:
            self.assertEqual(BANNED, link.farewell())
        self.assertTrue(daemon.running())

    def test_what_is_no_message_ends_the_link_and_nothing_else(self):
        self.swarm()
        nothing = b""
        wrong = [
            frame(P_HELLO, {1: 1, 2: 1, 3: 99}),                    # an unknown role
            frame(P_HELLO, {1: 1, 2: 1, 3: SERVER}, payload=b"x"),  # a payload where none belongs
            frame(P_HELLO, {1: 7, 2: 7, 3: FETCHER}),               # another version
            frame(P_PING, {1: 1}),                                  # no Hello first
            frame(P_HELLO, raw=b"\x0a\xff\xff\xff\xff\x0f"),        # a length that lies
            frame(P_HELLO, raw=b"\x0b" * 900),                      # groups within groups
            frame(P_HELLO, raw=b"\x08\x01" * 500),                  # the same field over and over
            struct.pack(">IIHBBI", 0xffffffff, 0xffffffff, 1, 0, 0, 0),
            struct.pack(">IIHBBI", 4, 0, 1, 0xff, 9, 0) + b"xxxx",
            frame(P_HELLO, {1: 1, 2: 1, 3: FETCHER})[:9],           # the half of one
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", nothing]
        for hello in wrong:
            with Link(self.port, self.own) as link:
                link.send(hello)
                if hello == wrong[-3][:len(hello)] or hello == nothing:
                    continue  # it would wait for the rest
                link.socket.settimeout(9 * SLOW)
                self.assertTrue(link.is_closed(), hello[:40])
        for hello in wrong:  # to the tracker as well, from a stranger
            with Link(self.the_tracker.port, None) as link:
                link.send(hello)
                if hello in (nothing, wrong[-3]):
                    continue
                link.socket.settimeout(9 * SLOW)
                self.assertTrue(link.is_closed(), hello[:40])
        self.assert_same_bytes(self.data, self.ben.read("film"), "afterwards")

    def test_a_server_that_lies_is_found_out_and_the_reader_does_not_notice(self):
        self.swarm()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(20 * SLOW)
        served = threading.Event()
        accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        accept.load_cert_chain(*self.own)

        def lie():
            with contextlib.suppress(OSError, IndexError), contextlib.closing(Link.__new__(Link)) as link:
                link.socket, link.buffer = listener.accept()[0], b""
                link.socket = accept.wrap_socket(link.socket, server_side=True)
                link.send(frame(P_HELLO, {1: 1, 2: 1, 3: SERVER, 5: "toy"}))
                while True:
                    type, fields, _, _ = link.next()
                    if type == P_OPEN:
                        link.send(frame(P_OPENED, {1: fields.get(1, [0])[0], 2: 1}))
                    elif type == P_REQUEST:
                        served.set()
                        for n in range(fields[3][0]):
                            link.send(frame(P_BLOCK, {1: fields.get(1, [0])[0], 2: fields.get(2, [0])[0] + n}, os.urandom(BLOCK)))
                    elif type == P_HASH_REQUEST:
                        link.send(frame(P_HASHES, {1: fields.get(1, [0])[0], 2: fields[2][0], 3: fields.get(3, [0])[0],
                                                   4: fields[4][0]}, os.urandom(32 * fields[4][0])))
        thread = threading.Thread(target=lie)
        thread.start()
        with member(self.the_tracker.port, self.own) as link:
            link.send(frame(T_ANNOUNCE, {1: 1, 2: [f"127.0.0.1:{listener.getsockname()[1]}"],
                                         3: [{1: self.root, 2: len(self.data), 3: 1}], 4: 1}, id=2))
            link.until(T_DONE)
            self.assert_same_bytes(self.data, self.ben.read("film"), "with a liar among the peers")
            wait_for("the liar to be banned", lambda: any(s.startswith("banned: sent") for s in self.states(self.ben)))
        listener.close()
        thread.join()

    # --- the tracker's port ---

    def test_a_tracker_under_attack_answers_others(self):
        self.swarm()
        tracker, port = self.the_tracker, self.the_tracker.port
        before = descriptors(tracker)

        def strangers_who_say_nothing(over):
            links = [Link(port, source=f"127.0.0.{n}", tls=False) for n in range(30, 42) for _ in range(100)]
            over.wait()
            for link in links:
                link.close()

        def strangers_in_a_hurry(over):
            with Link(port, source="127.0.0.9"):
                pass

        def healthless(over):
            with member(port, self.own) as link:
                link.socket.settimeout(1)
                # A large file that nobody has: up to a megabyte of answer to 60 bytes of question.
                question = frame(T_HEALTH, {1: os.urandom(32), 2: 1 << 42}, id=9)
                while not over.is_set():
                    link.send(question * 100)

        began = time.monotonic()
        with Watch(tracker) as watch:
            with Crowd(strangers_who_say_nothing, strangers_in_a_hurry, healthless) as crowd:
                wait_for("the attack to be under way", lambda: descriptors(tracker) > before + 500 and crowd.rounds > 5)
                self.ann.write("news", b"read this")
                self.ben.await_file("news", 9)
                zoe = self.member(tracker, "zoe", mounted=False)
                self.assertIn("zoe", zoe.ctl("whoami").stdout)
                took = time.monotonic() - began
            self.assertLess(watch.grown(), ROOM)
        print(f"    {took:.1f} s, {watch.grown() >> 20} MiB more", flush=True)

        # What a member may not say, or not so.
        size = len(self.data)
        with member(port, self.own) as link:
            for holding in ({1: self.root, 2: size, 4: b"\xff" * 1000},         # a bitfield of the wrong size
                            {1: self.root, 2: size, 5: [1 << 31]},              # a piece behind the end
                            {1: b"short", 2: size, 3: 1},
                            {1: self.root, 2: (1 << 64) - 1, 3: 1}):
                link.send(frame(T_ANNOUNCE, {3: [holding]}, id=5))
                self.assertEqual(T_FAULT, link.until(T_FAULT, T_DONE)[0], holding)
        for breach in (frame(T_PING, id=3, flags=ANSWER), frame(999, id=4), frame(T_WANT, raw=b"\xff\xff\xff", id=4)):
            with member(port, self.own) as link:
                link.send(breach)
                self.assertTrue(link.is_closed(), breach)
        with Link(port, self.own) as link:  # banned: a stranger from now on
            link.send(frame(T_HELLO, {1: 1, 2: 1}, id=1) + frame(T_WANT, {1: self.root, 2: size, 3: 1}, id=2))
            self.assertNotIn(5, link.until(T_WELCOME)[1])
            self.assertEqual(T_FAULT, link.until(T_FAULT, T_PEERS)[0])
        wait_for("the descriptors to come back", lambda: descriptors(tracker) <= before + 12)

    # --- descriptors ---

    def test_strangers_do_not_get_the_last_descriptors(self):
        self.swarm()
        tracker, daemon = self.the_tracker, self.ann.daemon

        def crowd(port, count):
            links = []
            for n in range(count):
                with contextlib.suppress(OSError):
                    links.append(Link(port, source=f"127.0.0.{50 + n % 100}", tls=False))
            return links

        for process, port in ((tracker, tracker.port), (daemon, self.port)):
            room = max(map(int, os.listdir(f"/proc/{process.process.pid}/fd"))) + 75
            resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (room, room))
            links = crowd(port, 200)
            self.assertLess(descriptors(process), room - 55)
            # What needs files, sockets of its own, a database, goes on.
            self.ann.write(process.name, b"written meanwhile")
            self.ben.await_file(process.name, 17)
            self.assertIn("film", self.ann.ctl("ls").stdout)
            self.assertEqual(b"written meanwhile", self.ben.read(process.name))
            for link in links:
                link.close()


if __name__ == "__main__":
    main()
