"""What strangers write into the fields of an account, on the wire, where no p2pctl looks at it first; and one invite used by
many at the same moment."""
import os
import subprocess
import threading

from harness import SwarmTest, main
from wire import BUSY, CREDENTIALS, FAULT, Stranger, message

REGISTER = 4
NAME_TAKEN, BAD_NAME, BAD_PASSWORD, BAD_INVITE, BAD_EMAIL = 5, 6, 7, 8, 14
GOOD = b"long enough it is"


class BadInput(SwarmTest):
    def setUp(self):
        super().setUp()
        key = os.path.join(self.directory, "toy.key")
        subprocess.run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", key], check=True,
                       capture_output=True)
        self.csr = subprocess.run(["openssl", "req", "-new", "-key", key, "-subj", "/CN=toy"], check=True,
                                  capture_output=True).stdout
        self.the_tracker = self.tracker(registration="open")
        self.sources = iter(range(1, 250))

    def register(self, name, password=GOOD, invite=b"", email=b"", csr=None, machine=b""):
        """0 if it was done, else the fault's code."""
        stranger = Stranger(self.the_tracker.port, f"127.0.9.{next(self.sources)}")
        try:
            kind, fields = stranger.ask(REGISTER, message(f1=name, f2=password, f3=email, f4=invite,
                                                          f5=self.csr if csr is None else csr, f6=machine))
            return 0 if kind == CREDENTIALS else fields.get(1, 0)
        except ConnectionError:
            return "closed"
        finally:
            stranger.close()

    def test_names_passwords_addresses(self):
        self.assertEqual(0, self.register(b"ann"))
        self.assertEqual(NAME_TAKEN, self.register(b"ann"))
        for name in (b"", b"x" * 65, b"x" * 60000, b"a\nb", b"a\x1bb", b"a\x7fb", b"a\xc2\x85b", b"Ann", b"ANN", b"ann ", b" ann",
                     b"\xd0\xb0nn", "ａｎｎ".encode(), "a\u200bnn".encode(), "ann\u202e".encode(), b"\xff\xfe", b".", b"..",
                     b"../x", b"a/b"):
            self.assertEqual(BAD_NAME, self.register(name), name[:20])
        self.assertEqual(NAME_TAKEN, self.register(b"ann\0x"), "what stands behind a 0 tells nobody apart")
        self.assertEqual(NAME_TAKEN, self.register(b"everyone"))
        for password in (b"", b"seven77", b"x" * 1025, b"x" * 10000):
            self.assertEqual(BAD_PASSWORD, self.register(b"ben", password), password[:9])
        for address in (b"a@b.cd\r\nBcc: c@d.ef", b"a@b.cd\nX: y", b"a@b.cd\0", b"a b@c.de", b"a@", b"@b", b"a" * 255 + b"@b.cd",
                        "ä@b.cd".encode(), b"a@b.cd>", b"-oX@b.cd"):
            got = self.register(b"cleo" if address.endswith(b"\0") else b"ben", email=address)
            self.assertEqual(0 if address.endswith(b"\0") else BAD_EMAIL, got, address[:30])
        for machine in (b"a/b", b"a\nb", b"x" * 256, b"\xff"):
            self.assertNotEqual(0, self.register(b"ben", machine=machine), machine[:9])
        for csr in (b"", b"no request", self.csr[:-100], b"x" * 9000):
            self.assertNotEqual(0, self.register(b"ben", csr=csr), csr[:9])
        self.assertIn("ready", self.the_tracker.text())

    def test_a_password_with_a_zero_is_a_password_and_all_of_it_counts(self):
        self.assertEqual(0, self.register(b"ben", b"left\0right"))
        for n, (password, good) in enumerate(((b"left\0right", True), (b"left\0wrong", False), (b"left\0righ", False))):
            stranger = Stranger(self.the_tracker.port, f"127.0.8.{n + 1}")
            kind, _ = stranger.login(b"ben", password, self.csr)
            self.assertEqual(CREDENTIALS if good else FAULT, kind, password)
            stranger.close()

    def test_an_invite_for_two_lets_two_in_however_many_come_at_once(self):
        invite = self.the_tracker.invite("--uses", "2").split("invite=")[1].encode()
        self.the_tracker.stop()
        self.the_tracker.registration = "invite"
        self.the_tracker.start()
        strangers = [Stranger(self.the_tracker.port, f"127.0.7.{n + 1}") for n in range(12)]
        together, answers = threading.Barrier(len(strangers)), []

        def go(number, stranger):
            together.wait()
            while True:
                kind, fields = stranger.ask(REGISTER, message(f1=b"guest%d" % number, f2=GOOD, f4=invite, f5=self.csr))
                if fields.get(1) != BUSY or kind == CREDENTIALS:
                    break
            answers.append(0 if kind == CREDENTIALS else fields[1])
        threads = [threading.Thread(target=go, args=pair) for pair in enumerate(strangers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for stranger in strangers:
            stranger.close()
        self.assertEqual([0, 0] + [BAD_INVITE] * 10, sorted(answers))


if __name__ == "__main__":
    main()
