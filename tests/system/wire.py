"""The tracker's protocol from outside, as far as a connection without certificate goes: TLS, frames, a few messages.

    link = Stranger(port, source="127.0.3.7")
    kind, fields = link.login("ann", b"password", csr)
"""
import socket
import ssl
import struct

HELLO, WELCOME, LOGIN, FAULT, CREDENTIALS = 2, 3, 5, 1, 6
WRONG_PASSWORD, BUSY = 4, 10


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def message(**fields):
    """f1=…, f2=…: numbers and bytes, in protobuf's form."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def fields_of(data):
    """{number: value} of a message of numbers and bytes."""
    def number(at):
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
    out, at = {}, 0
    while at < len(data):
        key, at = number(at)
        value, at = number(at)
        if key & 7 == 2:
            value, at = data[at:at + value], at + value
        out[key >> 3] = value
    return out


class Stranger:
    """A connection without certificate that trusts any tracker."""

    def __init__(self, port, source="127.0.0.1"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        raw = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link = context.wrap_socket(raw)
        self.id = 0
        self.ask(HELLO, message(f1=1, f2=1, f3="test"))

    def take(self, size):
        out = b""
        while len(out) < size:
            more = self.link.recv(size - len(out))
            if not more:
                raise ConnectionError("the tracker has closed")
            out += more
        return out

    def ask(self, kind, data):
        """The answer: its type and fields."""
        self.id += 1
        self.link.sendall(struct.pack(">IIHBBI", len(data), 0, kind, 0, 0, self.id) + data)
        while True:
            size, payload, kind, flags, _, number = struct.unpack(">IIHBBI", self.take(16))
            data = self.take(size + payload)[:size]
            if number == self.id and flags & 2:
                return kind, fields_of(data)

    def login(self, name, password, request):
        return self.ask(LOGIN, message(f1=name, f2=password, f3=request))

    def close(self):
        self.link.close()
