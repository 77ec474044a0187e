"""A mail server for tests: SMTP on loopback with STARTTLS (or TLS from the start) and AUTH, which keeps what it gets.

    ca, certificate = make_certificate(directory)
    server = MailServer(certificate)
    server.port, server.mails: [Mail(sender, recipient, text, tls, user)]
"""
import base64
import collections
import os
import socketserver
import ssl
import subprocess
import threading

Mail = collections.namedtuple("Mail", "sender recipient text tls user")


def make_certificate(directory):
    """A test CA and a certificate for localhost; returns paths: CA, certificate with key."""
    ca, ca_key = os.path.join(directory, "mail-ca.pem"), os.path.join(directory, "mail-ca.key")
    both, request, names = (os.path.join(directory, n) for n in ("mail.pem", "mail.csr", "mail.ext"))
    with open(names, "w") as file:
        file.write("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for command in (["req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=test mail CA"],
                    ["req", *curve, "-keyout", both, "-out", request, "-subj", "/CN=localhost"],
                    ["x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile",
                     names, "-out", both + ".crt"]):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60)
    with open(both, "a") as to, open(both + ".crt") as certificate:
        to.write(certificate.read())
    return ca, both


class Handler(socketserver.BaseRequestHandler):
    def say(self, line):
        self.request.sendall(line.encode() + b"\r\n")

    def line(self):
        while b"\r\n" not in self.buffer:
            more = self.request.recv(4096)
            if not more:
                raise ConnectionError
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def start_tls(self):
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.buffer, self.tls = b"", True

    def handle(self):
        self.buffer, self.tls, self.user = b"", False, None
        try:
            if self.server.tls_at_once:
                self.start_tls()
            self.say("220 test ESMTP")
            while self.one():
                pass
        except (OSError, ssl.SSLError):
            pass
        finally:
            self.request.close()

    def one(self):
        line = self.line().decode("latin-1")
        verb, _, rest = line.partition(" ")
        verb = verb.upper()
        if verb == "EHLO":
            extensions = ["250-test"]
            if not self.tls and self.server.offers_tls:
                extensions.append("250-STARTTLS")
            extensions += ["250-AUTH PLAIN", "250 8BITMIME"]
            self.say("\r\n".join(extensions))
        elif verb == "STARTTLS":
            self.say("220 go ahead")
            self.start_tls()
        elif verb == "AUTH":
            word = rest.split(" ")[1] if " " in rest else ""
            if not word:
                self.say("334 ")
                word = self.line().decode()
            user, password = base64.b64decode(word).split(b"\0")[1:]
            if password == self.server.password:
                self.user = user.decode()
            self.say("235 good" if self.user else "535 bad password")
        elif verb == "MAIL":
            self.sender = rest
            self.say("250 ok")
        elif verb == "RCPT":
            if self.server.refuses:
                self.say(self.server.refuses)
            else:
                self.recipient = rest
                self.say("250 ok")
        elif verb == "DATA":
            self.data()
        elif verb == "QUIT":
            self.say("221 bye")
            return False
        else:
            self.say("250 ok")
        return True

    def data(self):
        self.say("354 go on")
        lines = []
        while (line := self.line()) != b".":
            lines.append(line[1:] if line.startswith(b".") else line)
        mail = Mail(self.sender, self.recipient, b"\n".join(lines).decode(), self.tls, self.user)
        self.server.mails.append(mail)
        self.say("250 taken")


class MailServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, certificate, port=0, tls_at_once=False, offers_tls=True):
        super().__init__(("127.0.0.1", port), Handler)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate)
        self.tls_at_once, self.offers_tls = tls_at_once, offers_tls
        self.refuses, self.password, self.mails = "", b"mail password", []
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass

    def stop(self):
        self.shutdown()
        self.server_close()
