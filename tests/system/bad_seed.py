"""A member's device that announces a file it does not have, and serves it badly: a program, as it may have to run in a host of its own.

usage: bad_seed.py KIND CERTIFICATE KEY TRACKER PORT ADDRESS ROOT SIZE

 garbage   random bytes for every block and every hash
 stall     half of the first block, then nothing; the link stays up
 boast     says that it has all, and refuses what is asked for

Says "ready" when it is announced, and "asked" at the first request of each link. Ends on SIGTERM.
"""
import contextlib
import os
import signal
import socket
import ssl
import sys
import threading

from test_hostile import (BLOCK, P_BLOCK, P_HASH_REQUEST, P_HASHES, P_HELLO, P_OPEN, P_OPENED, P_REJECT, P_REQUEST, SERVER,
                          T_ANNOUNCE, T_DONE, Link, frame, member)

NO_BLOCK = 2


class Server(Link):
    """A link that the other end began."""

    def __init__(self, raw, accept, kind):
        self.socket, self.buffer, self.kind = accept.wrap_socket(raw, server_side=True), b"", kind
        self.asked = self.silent = False

    def serve(self):
        self.send(frame(P_HELLO, {1: 1, 2: 1, 3: SERVER, 5: "toy"}))
        while True:
            type, fields, _, _ = self.next()
            if type == P_OPEN:
                self.send(frame(P_OPENED, {1: fields.get(1, [0])[0], 2: 1}))
            elif type in (P_REQUEST, P_HASH_REQUEST):
                if not self.asked:
                    print("asked", flush=True)
                self.asked = True
                getattr(self, self.kind)(type, fields)

    def garbage(self, type, fields):
        file = fields.get(1, [0])[0]
        if type == P_HASH_REQUEST:
            count = fields[4][0]
            self.send(frame(P_HASHES, {1: file, 2: fields[2][0], 3: fields.get(3, [0])[0], 4: count}, os.urandom(32 * count)))
            return
        for n in range(fields[3][0]):
            self.send(frame(P_BLOCK, {1: file, 2: fields.get(2, [0])[0] + n}, os.urandom(BLOCK)))

    def stall(self, type, fields):
        if type == P_REQUEST and not self.silent:
            self.silent = True
            whole = frame(P_BLOCK, {1: fields.get(1, [0])[0], 2: fields.get(2, [0])[0]}, os.urandom(BLOCK))
            self.send(whole[:BLOCK // 2])

    def boast(self, type, fields):
        hashes = type == P_HASH_REQUEST
        first, count = (fields.get(3, [0])[0], fields[4][0]) if hashes else (fields.get(2, [0])[0], fields[3][0])
        self.send(frame(P_REJECT, {1: fields.get(1, [0])[0], 2: first, 3: count, 4: NO_BLOCK, 5: int(hashes)}))


def serve(raw, accept, kind):
    with contextlib.suppress(OSError, IndexError):
        Server(raw, accept, kind).serve()


def main(kind, certificate, key, tracker, port, address, root, size):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = socket.create_server((address, 0))
    accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accept.load_cert_chain(certificate, key)
    link = member(int(port), (certificate, key), address, tracker)
    link.send(frame(T_ANNOUNCE, {1: 1, 2: [f"{address}:{listener.getsockname()[1]}"],
                                 3: [{1: bytes.fromhex(root), 2: int(size), 3: 1}], 4: 1}, id=2))
    link.until(T_DONE)
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], accept, kind), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
