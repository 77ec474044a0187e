"""The life of an account: mail, resets, second factor, devices, admins, audit, throttling."""
import base64
import errno
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import struct
import time
import unittest

from harness import BIN, KEYS, PASSWORD, Member, SwarmTest, Tracker, main, pattern, wait_for
from smtp import MailServer, make_certificate
from test_security import peer_port
from wire import BUSY, FAULT, WRONG_PASSWORD, Stranger

NEW_PASSWORD = "another long password"


def totp(secret, at=None):
    """RFC 6238, from the base32 secret."""
    step = int((time.time() if at is None else at) // 30)
    digest = hmac.new(base64.b32decode(secret), struct.pack(">Q", step), hashlib.sha1).digest()
    offset = digest[19] & 15
    return f"{(struct.unpack('>I', digest[offset:offset + 4])[0] & 0x7fffffff) % 1000000:06d}"


class AccountsTest(SwarmTest):
    def secret(self, text, name="secret"):
        """A file that p2pctl takes a password or a code from."""
        path = os.path.join(self.directory, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text + "\n")
        return path

    def tracker_with(self, conf="", **more):
        tracker = Tracker(self, **more)
        with open(os.path.join(tracker.data, "tracker.conf"), "w") as file:
            file.write(conf)
        tracker.start()
        return tracker

    def home(self, name):
        """A member's home with a daemon; nobody is logged in."""
        member = Member(self, name)
        self.all_members.append(member)
        KEYS.device(name, member.home)
        self.addCleanup(self.keep_key, name, member.home)
        member.start_daemon()
        return member

    def keep_key(self, name, home):
        if os.path.exists(os.path.join(home, "device.key")):
            KEYS.keep_device(name, home)

    def account(self, tracker, name, *options, admin=False):
        member = self.home(name)
        member.ctl("register", tracker.invite(*(["--admin"] if admin else [])), name, *options)
        return member

    def device(self, tracker, name, account):
        member = self.home(name)
        member.ctl("login", tracker.url(), account)
        return member

    def refused(self, member, *arguments, says=".", **more):
        done = member.ctl(*arguments, check=False, **more)
        self.assertEqual(1, done.returncode, done.stdout + done.stderr)
        self.assertEqual(1, done.stderr.count("\n"), done.stderr)
        self.assertRegex(done.stderr, says)
        return done.stderr

    def json(self, member, *arguments):
        return json.loads(member.ctl(*arguments, "--json").stdout)

    def events(self, admin, *options):
        return self.json(admin, "audit", *options)["events"]

    def rows(self, tracker, query):
        base = sqlite3.connect(f"file:{tracker.data}/tracker.db?mode=ro", uri=True)
        try:
            return base.execute(query).fetchall()
        finally:
            base.close()


class MailTest(AccountsTest):
    def setUp(self):
        super().setUp()
        self.ca, self.certificate = make_certificate(self.directory)
        self.mail_server()

    def mail_server(self, port=0, **more):
        self.mails = MailServer(self.certificate, port, **more)
        self.addCleanup(self.mails.stop)

    def conf(self, mail="", tracker="", scheme="smtp"):
        return (f"[tracker]\n{tracker}\n[mail]\nserver = {scheme}://localhost:{self.mails.port}\nfrom = swarm@example.org\n"
                f"ca-file = {self.ca}\nretry = 1s\n{mail}\n")

    def code(self, count, to=None):
        """The code in the mail that is the `count`th."""
        mail = wait_for(f"mail {count}", lambda: len(self.mails.mails) >= count and self.mails.mails[count - 1])
        self.assertTrue(mail.tls, "a mail went out in clear text")
        if to:
            self.assertIn(to, mail.recipient)
        return re.search(r"^    (\w{16})$", mail.text, re.M).group(1)

    def change(self, code):
        return ("A" if code[0] != "A" else "B") + code[1:]


class Addresses(MailTest):
    def test_an_address_is_verified_by_a_code_that_works_once(self):
        tracker = self.tracker_with(self.conf("user = swarm\npassword-file = " + self.secret("mail password", "mail")))
        ann = self.account(tracker, "ann", "--email", "ann@example.org")
        code = self.code(1, "<ann@example.org>")
        mail = self.mails.mails[0]
        self.assertEqual("swarm", mail.user)
        for header in ("From: <swarm@example.org>", "To: <ann@example.org>", "Message-ID: <", "Date: ", "Subject: "):
            self.assertIn(header, mail.text)
        wait_for("the queue to be empty", lambda: self.rows(tracker, "select * from mail") == [])
        with open(os.path.join(tracker.data, "tracker.db"), "rb") as base, \
                open(os.path.join(tracker.data, "tracker.db-wal"), "rb") as wal:
            self.assertNotIn(code.encode(), base.read() + wal.read(), "the code itself is at rest")
        self.assertFalse(self.json(ann, "whoami", "--tracker")["email_verified"])
        altered = self.refused(ann, "email", "verify", self.change(code))
        ann.ctl("email", "verify", code)
        self.assertTrue(self.json(ann, "whoami", "--tracker")["email_verified"])
        self.assertEqual(altered, self.refused(ann, "email", "verify", code), "a used code is told from an altered one")
        # A new address counts when it is proven; until then the old one does.
        ann.ctl("email", "set", "new@example.org")
        code = self.code(2, "<new@example.org>")
        self.assertEqual("ann@example.org", self.json(ann, "whoami", "--tracker")["email"])
        ann.ctl("email", "verify", "--code-file", self.secret(code))
        self.assertEqual("new@example.org", self.json(ann, "whoami", "--tracker")["email"])
        ann.ctl("email", "set", "none")
        self.assertEqual("", self.json(ann, "whoami", "--tracker")["email"])
        self.assertNotIn(code, tracker.text())

    def test_a_tracker_may_ask_for_a_verified_address_before_the_first_log_in(self):
        tracker = self.tracker_with(self.conf(tracker="verify-email = yes"))
        ann = self.home("ann")
        self.refused(ann, "register", tracker.invite(), "ann", says="e-mail")
        done = ann.ctl("register", tracker.invite(), "ann", "--email", "ann@example.org")
        self.assertIn("code is on its way", done.stdout)
        self.refused(ann, "login", tracker.url(), "ann", says="verif")
        self.refused(ann, "whoami", says="nobody is logged in")
        self.refused(ann, "get", "/x", says="nobody is logged in: p2pctl register, or login, URL NAME")
        ann.ctl("email", "verify", self.code(1))
        ann.ctl("login", tracker.url(), "ann")
        self.assertEqual("ann", self.json(ann, "whoami")["name"])

    def test_bad_addresses_and_codes_are_refused(self):
        tracker = self.tracker_with(self.conf())
        ann = self.home("ann")
        invite = tracker.invite("--uses", "9")
        for bad in ("x@y\r\nRCPT TO:<z@z>", "x@y\nz", "a b@c", "@c", "a@", "a@b@c", "<a@b>", "-oX@b", "a@b>", "é@b",
                    "a" * 250 + "@b.cd"):
            done = ann.ctl("register", invite, "ann", "--email", bad, check=False)
            self.assertIn(done.returncode, (1, 2), bad)
            self.assertEqual(1, done.stderr.count("\n"), done.stderr)
        self.refused(ann, "register", "-", "ann", says="first line is empty", input="\n" + invite)
        ann.ctl("register", "-", "ann", input=invite + "\nwhat is behind the line")
        for bad in ("x@y\r\nz", "-x@y", "a" * 1000 + "@b"):
            self.assertIn(ann.ctl("email", "set", bad, check=False).returncode, (1, 2), bad)
        for bad in ("", "x" * 256, "a\nb", "é" * 40):
            self.refused(ann, "email", "verify", bad, says="code")
        self.assertEqual([], self.mails.mails)

    def test_mail_is_queued_while_its_server_is_away_and_survives_a_kill(self):
        tracker = self.tracker_with(self.conf())
        port = self.mails.port
        self.mails.stop()
        ann = self.account(tracker, "ann", "--email", "ann@example.org")
        wait_for("a failed try", lambda: "can't be sent now" in tracker.text())
        tracker.kill(signal.SIGKILL)
        self.assertEqual(1, len(self.rows(tracker, "select * from mail")))
        self.mail_server(port)
        tracker.start()
        ann.ctl("email", "verify", self.code(1))
        wait_for("the queue to be empty", lambda: self.rows(tracker, "select * from mail") == [])
        self.assertEqual(1, len(self.mails.mails), "a mail was sent twice")

    def test_mail_waits_where_starttls_is_missing_and_is_lost_where_it_is_refused(self):
        self.mails.offers_tls = False
        tracker = self.tracker_with(self.conf())
        ann = self.account(tracker, "ann", "--email", "ann@example.org", admin=True)
        wait_for("a failed try", lambda: "can't be sent now" in tracker.text())
        self.assertEqual([], self.mails.mails)
        self.mails.offers_tls, self.mails.refuses = True, "451 later"
        wait_for("a second try", lambda: tracker.text().count("can't be sent now") >= 2)
        self.mails.refuses = "550 no such user"
        wait_for("the mail to be refused", lambda: "is refused" in tracker.text())
        self.assertEqual([], self.rows(tracker, "select * from mail"))
        self.assertIn("mail-lost", [e["what"] for e in self.events(ann)])

    def test_mail_by_tls_from_the_start_and_by_a_command(self):
        self.mails.tls_at_once = True
        tracker = self.tracker_with(self.conf(scheme="smtps"))
        ann = self.account(tracker, "ann", "--email", "ann@example.org")
        ann.ctl("email", "verify", self.code(1))
        tracker.stop()
        out = os.path.join(self.directory, "mail.out")
        command = os.path.join(self.directory, "sendmail")
        with open(os.open(command, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
            file.write(f'#!/bin/sh\n(echo "$*"; cat) > {out}.part && mv {out}.part {out}\n')
        with open(os.path.join(tracker.data, "tracker.conf"), "w") as file:
            file.write(f"[mail]\ncommand = {command} -i --\nfrom = swarm@example.org\n")
        tracker.start()
        wait_for("ann's link", lambda: self.json(ann, "status")["connected"])
        ann.ctl("email", "set", "new@example.org")
        wait_for("the command", lambda: os.path.exists(out))
        with open(out) as file:
            text = file.read()
        self.assertTrue(text.startswith("-i -- new@example.org\n"), text)
        ann.ctl("email", "verify", re.search(r"^    (\w{16})\r?$", text, re.M).group(1))


class Resets(MailTest):
    def test_a_lost_password_is_replaced_by_mail(self):
        tracker = self.tracker_with(self.conf())
        ann = self.account(tracker, "ann", "--email", "ann@example.org", admin=True)
        code = self.code(1)
        other = self.device(tracker, "other", "ann")
        stranger = self.home("stranger")
        self.refused(stranger, "reset", "ann", says="--url")
        known = stranger.ctl("reset", "ann", "--url", tracker.url())
        unknown = stranger.ctl("reset", "nobody", "--url", tracker.url())
        self.assertEqual((known.stdout.replace("ann", "X"), known.stderr), (unknown.stdout.replace("nobody", "X"), unknown.stderr))
        code = self.code(2, "<ann@example.org>")
        new = self.secret(NEW_PASSWORD, "new")

        def give(text, password=new):
            return "reset", "--url", tracker.url(), "--code-file", self.secret(text), "--new-password-file", password, "ann"
        altered = self.refused(stranger, *give(self.change(code)))
        self.refused(stranger, *give(code, self.secret("short", "short")), says="at least 8")
        stranger.ctl(*give(code))
        self.assertEqual(altered, self.refused(stranger, *give(code)), "a used code is told from an altered one")
        self.refused(stranger, "login", tracker.url(), "ann", says="wrong name or password")
        stranger.ctl("login", tracker.url(), "ann", "--password-file", new)
        # Everybody else has to log in again.
        wait_for("the other device to be out", lambda: "logged out" in other.ctl("status").stdout)
        ann.ctl("logout", check=False)
        ann.ctl("login", tracker.url(), "ann", "--password-file", new)
        what = [(e["what"], e["account"]) for e in self.events(ann)]
        for event in (("reset-ask", "ann"), ("reset-ask", "nobody"), ("reset", "ann"), ("refused", "ann")):
            self.assertIn(event, what)
        self.assertEqual(2, len(self.mails.mails))

    def test_codes_expire_and_say_no_more_than_others(self):
        tracker = self.tracker_with(self.conf("code-lifetime = 1s"))
        ann = self.account(tracker, "ann", "--email", "ann@example.org")
        verify = self.code(1)
        ann.ctl("reset", "ann")
        reset = self.code(2)
        time.sleep(2.1)  # codes are dated to the second
        self.assertEqual(self.refused(ann, "email", "verify", verify), self.refused(ann, "email", "verify", "x" * 16))
        new = self.secret(NEW_PASSWORD, "new")
        self.assertEqual(self.refused(ann, "reset", "--code-file", self.secret(reset), "--new-password-file", new),
                         self.refused(ann, "reset", "--code-file", self.secret("x" * 16), "--new-password-file", new))

    def test_a_tracker_without_mail_says_so(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", "--email", "ann@example.org")
        self.refused(ann, "reset", says="sends no mail")
        self.assertFalse(self.json(ann, "email", "set", "b@example.org")["sent"])
        self.assertEqual("b@example.org", self.json(ann, "whoami", "--tracker")["email"])
        other = Tracker(self, name="other")
        for conf in ("[mail]\nserver = smtp://mail.example.org\n", "[mail]\nserver = http://x\nfrom = a@b\n",
                     "[mail]\nserver = smtp://mail.example.org\nfrom = a@b\nplain = yes\n", "[tracker]\nverify-email = yes\n"):
            with open(os.path.join(other.data, "tracker.conf"), "w") as file:
                file.write(conf)
            done = self.run(f"{BIN}/p2ptracker", "serve", "--data", other.data, "--listen", "127.0.0.1:0", check=False)
            self.assertEqual((1, 1), (done.returncode, done.stderr.count("\n")), conf + done.stderr)


class SecondFactor(AccountsTest):
    def enable(self, member):
        secret = self.json(member, "totp", "enable")["secret"]
        code = totp(secret)
        recovery = self.json(member, "totp", "confirm", "--totp-file", self.secret(code))["recovery"]
        return secret, code, recovery

    def test_a_log_in_wants_a_code_that_works_once(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        enabled = ann.ctl("totp", "enable").stdout
        self.assertRegex(enabled, r"otpauth://totp/swarm:ann\?secret=[A-Z2-7]{32}&issuer=swarm")
        secret, used, recovery = self.enable(ann)
        self.assertEqual(10, len(set(recovery)))
        other = self.home("other")
        url = tracker.url()
        self.refused(other, "login", url, "ann", says="terminal")
        self.refused(other, "login", url, "ann", "--totp-file", self.secret(used), says="wrong code")
        self.refused(other, "login", url, "ann", "--totp-file", self.secret(recovery[0]),
                     "--password-file", self.secret("wrong password", "wrong"), says="wrong name or password")
        other.ctl("login", url, "ann", "--totp-file", self.secret(recovery[0]))
        other.ctl("logout")
        self.refused(other, "login", url, "ann", "--totp-file", self.secret(recovery[0]), says="wrong code")
        # The next step's code is good already: clocks may be apart.
        other.ctl("login", url, "ann", "--totp-file", self.secret(totp(secret, time.time() + 30)))
        self.refused(ann, "totp", "enable", says="already")
        self.assertEqual(9, self.json(ann, "user", "show", "ann")["recovery_codes"])
        ann.ctl("totp", "disable", "--totp-file", self.secret(recovery[1].replace("-", "")))
        other.ctl("logout")
        other.ctl("login", url, "ann")
        what = [e["what"] for e in self.events(ann)]
        self.assertIn("totp-on", what)
        self.assertIn("totp-off", what)

    def test_an_admin_takes_a_lost_factor_away(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ben = self.account(tracker, "ben")
        self.enable(ben)
        ben.ctl("logout")
        ann.ctl("user", "totp-off", "ben")
        ben.ctl("login", tracker.url(), "ben")


class Devices(AccountsTest):
    def test_devices_are_listed_and_removed(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann")
        other = self.device(tracker, "other", "ann")
        devices = self.json(ann, "devices")["devices"]
        self.assertEqual(2, len(devices))
        mine = self.json(ann, "whoami")["device"]
        lost = next(d["id"] for d in devices if d["id"] != mine)
        self.refused(ann, "devices", "remove", mine, says="log out instead")
        self.refused(ann, "devices", "remove", "ffff", says="no such device")
        self.assertEqual(2, ann.ctl("devices", "remove", "xyz", check=False).returncode)
        ann.ctl("devices", "remove", lost[:16])
        wait_for("the other device to be out", lambda: "logged out" in other.ctl("status").stdout, 5)
        self.refused(ann, "devices", "remove", lost, says="no such device")
        self.assertTrue(next(d for d in self.json(ann, "devices")["devices"] if d["id"] == lost)["logged_out"])

    def test_a_new_password_ends_other_devices_sessions_only_if_asked(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann")
        other = self.device(tracker, "other", "ann")
        new = self.secret(NEW_PASSWORD, "new")
        ann.ctl("passwd", "--new-password-file", new)
        self.assertTrue(self.json(other, "status")["connected"])
        ann.ctl("passwd", "--password-file", new, "--new-password-file", self.password, "--logout-others")
        wait_for("the other device to be out", lambda: "logged out" in other.ctl("status").stdout, 5)
        self.assertTrue(self.json(ann, "status")["connected"])


class Admins(AccountsTest):
    def test_a_disabled_members_stream_stops_and_it_stays_out(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ben = self.account(tracker, "ben")
        for member in (ann, ben):
            member.start_mount()
        size = 64 << 20
        ann.write("film", pattern(size))
        ben.await_file("film", size)
        with open(ben.path("film"), "rb") as file:
            file.read(1 << 20)
        wait_for("a link", lambda: any(p["account"] == "ben" for p in self.json(ann, "peers").get("peers", [])))
        self.refused(ben, "user", "list", says="only an admin")
        self.refused(ben, "audit", says="only an admin")
        began = time.monotonic()
        ann.ctl("user", "disable", "ben")
        wait_for("the link to end", lambda: not any(p["account"] == "ben" and p["state"] == "connected"
                                                    for p in self.json(ann, "peers").get("peers", [])), 5)
        self.assertLess(time.monotonic() - began, 5)
        wait_for("ben to be out", lambda: not self.json(ben, "status")["connected"], 5)
        self.refused(self.home("ben2"), "login", tracker.url(), "ben", says="disabled")
        # After a restart of everything, and without a tracker that could say so.
        ann.unmount()
        ann.daemon.stop()
        tracker.stop()
        ann.start_daemon()
        self.assertFalse(self.peer_takes(ann, ben), "a revoked certificate is taken after a restart")
        tracker.start()
        wait_for("ann's link", lambda: self.json(ann, "status")["connected"])
        self.assertFalse(self.peer_takes(ann, ben))
        ann.ctl("user", "enable", "ben")
        ben.ctl("logout", check=False)
        ben.ctl("login", tracker.url(), "ben")
        self.assertTrue(self.peer_takes(ann, ben), "who was enabled and has logged in again is refused")

    def peer_takes(self, server, client):
        """Does the server's daemon keep a link on which the client's certificate is shown?"""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(os.path.join(client.home, "device.crt"), os.path.join(client.home, "device.key"))
        port = peer_port(server)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw, context.wrap_socket(raw) as link:
            link.settimeout(1)
            try:
                first = link.recv(1000)
                # A Farewell names the reason; a Hello or silence means that it is taken.
                return b"revoked" not in first
            except TimeoutError:
                return True
            except OSError:
                return False

    def test_admins_manage_accounts(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ben = self.account(tracker, "ben", "--email", "ben@example.org")
        users = {u["name"]: u for u in self.json(ann, "user", "list")["users"]}
        self.assertEqual({"ann", "ben"}, set(users))
        self.assertTrue(users["ann"]["admin"])
        self.assertEqual("ben@example.org", self.json(ann, "user", "show", "ben")["email"])
        for act in (("disable", "ann"), ("delete", "ann"), ("admin", "ann", "off")):
            self.refused(ann, "user", *act, says="last admin")
        self.refused(ann, "user", "disable", "nobody", says="no such account")
        self.assertEqual(2, ann.ctl("user", "disable", "x" * 256, check=False).returncode)
        self.assertEqual(2, ann.ctl("user", "frobnicate", check=False).returncode)
        ann.ctl("user", "admin", "ben", "on")
        self.assertEqual(2, len(self.json(ben, "user", "list")["users"]))
        ben.ctl("user", "admin", "ann", "off")
        self.refused(ann, "user", "list", says="only an admin")
        ben.ctl("user", "delete", "ann")
        wait_for("ann to be out", lambda: not self.json(ann, "status")["connected"], 5)
        self.refused(self.home("ann2"), "register", tracker.invite(), "ann", says="taken")
        self.refused(self.home("ann3"), "login", tracker.url(), "ann", says="wrong name or password")
        self.assertTrue(self.json(ben, "user", "show", "ann")["deleted"])

    def test_an_account_has_so_many_entries_and_no_more(self):
        tracker = self.tracker_with(conf="[tracker]\nentries-per-account = 4\n")
        ann = self.account(tracker, "ann", admin=True)
        ben = self.member(tracker, "ben")
        for n in range(4):
            os.mkdir(ben.path(f"{n}"))
        wait_for("all of them at the tracker", lambda: self.json(ann, "user", "show", "ben").get("entries") in (4, "4"))

        def made(name):
            try:
                os.mkdir(ben.path(name))
                return 0
            except OSError as error:
                return error.errno

        def told():
            return made(f"more {time.monotonic_ns()}") == errno.EDQUOT
        wait_for("EDQUOT", told)
        self.assertIn("this account has as many files, directories and links as it may", ben.daemon.text())
        self.assertEqual(4, int(self.json(ann, "user", "show", "ben")["quota"]))
        self.assertEqual(2, ann.ctl("user", "quota", "ben", "none", check=False).returncode)
        ann.ctl("user", "quota", "ben", "100")
        self.assertEqual(100, int(self.json(ann, "user", "show", "ben")["quota"]))
        wait_for("room", lambda: made("room") in (0, errno.EEXIST))
        wait_for("what was kept back", lambda: int(self.json(ann, "user", "show", "ben")["entries"]) >= 6)
        self.assertIn("quota", [e["what"] for e in self.events(ann)])

    def test_files_change_owner(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ben = self.account(tracker, "ben")
        for member in (ann, ben):
            member.start_mount()
        for i in range(300):
            ben.write(f"f{i}", b"x")
        wait_for("all files at ann's", lambda: len(os.listdir(ann.mount)) == 300)
        self.assertEqual("ben", ann.xattr("f7", "owner"))
        ann.ctl("user", "delete", "ben")
        self.refused(ann, "user", "transfer", "ann", "ben", says="no such account")
        self.assertEqual(300, self.json(ann, "user", "transfer", "ben", "ann")["entries"])
        wait_for("a new owner", lambda: all(ann.xattr(f"f{i}", "owner") == "ann" for i in (0, 7, 299)))
        self.assertEqual(0, self.json(ann, "user", "transfer", "ben", "ann")["entries"])

    def test_the_audit_log_tells_who_did_what(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ben = self.account(tracker, "ben")
        ann.ctl("invite")
        ann.ctl("user", "disable", "ben")
        for words in ("group create team", "group add team ben", "grant / team read", "revoke / everyone", "grant / everyone write"):
            ann.ctl(*words.split())
        events = self.events(ann)
        self.assertEqual(
            ["create team", "add to team: ben", "team: read in /", "everyone: none in /", "everyone: write in /"],
            [e["detail"] for e in events if e["what"] in ("group", "grant", "revoke")])
        self.assertEqual(sorted(e["number"] for e in events), [e["number"] for e in events])
        what = [(e["what"], e["account"], e["by"]) for e in events]
        for event in (("register", "ann", ""), ("register", "ben", ""), ("invite", "ann", ""), ("user-disable", "ben", "ann")):
            self.assertIn(event, what)
        self.assertEqual({"ben"}, {e["account"] for e in self.events(ann, "--account", "ben")})
        self.assertEqual(1, len(self.events(ann, "--count", "1")))
        self.assertEqual([], self.events(ann, "--since", "2999-01-01"))
        self.assertEqual(len(events), len(self.events(ann, "--since", "1h")))
        self.assertRegex(ann.ctl("audit").stdout, r"(?s)invite +\(p2ptracker\)\n.*user-disable +ben")
        self.assertEqual(2, ann.ctl("audit", "--since", "yesterday?", check=False).returncode)
        self.assertNotIn(PASSWORD.decode().strip(), tracker.text() + ann.daemon.text() + ben.daemon.text())


class Throttling(AccountsTest):
    def request(self):
        key, csr = (os.path.join(self.directory, n) for n in ("stranger.key", "stranger.csr"))
        self.run("openssl", "req", "-newkey", "rsa:3072", "-nodes", "-keyout", key, "-out", csr, "-subj", "/CN=x")
        with open(csr) as file:
            return file.read()

    def guess(self, tracker, name, source, request):
        """A wrong guess: what is said of it, in full."""
        link = Stranger(tracker.port, source)
        try:
            kind, fields = link.login(name, b"a wrong guess", request)
            self.assertEqual(FAULT, kind)
            return fields
        finally:
            link.close()

    def guess_until_told_to_wait(self, tracker, name, request):
        """A slow machine takes longer for a guess than it has to wait at first; but waits double."""
        while (fields := self.guess(tracker, name, "127.0.0.1", request))[1] != BUSY:
            pass
        return fields

    def test_guesses_slow_down_the_guesser_and_not_the_owner(self):
        tracker = self.tracker_with()
        ann = self.account(tracker, "ann", admin=True)
        ann.ctl("logout")
        request = self.request()
        judged = {name: [self.guess(tracker, name, "127.0.0.1", request) for _ in range(3)] for name in ("ann", "nobody")}
        self.assertEqual(judged["ann"], judged["nobody"], "a refusal tells whether there is such an account")
        self.assertEqual({WRONG_PASSWORD}, {fields[1] for fields in judged["ann"]})
        waits = [self.guess_until_told_to_wait(tracker, name, request) for name in ("ann", "nobody")]
        self.assertEqual(*({**fields, 3: 0} for fields in waits))
        # From another address a guess is judged, so a right password from there gets in.
        self.assertEqual(WRONG_PASSWORD, self.guess(tracker, "ann", "127.0.0.2", request)[1])
        # A device that the account knows gets in even from the guesser's own address.
        url = tracker.url()
        self.guess_until_told_to_wait(tracker, "ann", request)
        ann.ctl("login", url, "ann")
        # Not each of a series gets a row, but the first ones do.
        refused = {(e["account"], e["source"]) for e in self.events(ann) if e["what"] == "refused"}
        self.assertIn(("ann", "127.0.0.1"), refused)


if __name__ == "__main__":
    main()
