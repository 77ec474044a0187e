"""Clocks that jump by a day, and certificates that end while links are up: programs run with libfaketime's clock, which is
changed under them. Time limits go by the monotonic clock, which is left alone."""
import glob
import json
import os
import unittest

from harness import SANITIZER, Member, SwarmTest, Tracker, main, pattern, wait_for
from test_hostile import T_DONE, T_PING, frame
from test_hostile import member as toy

LIBRARY = (glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") + [None])[0]
DAY = 86400


@unittest.skipIf(SANITIZER or not LIBRARY, "a library is loaded before all others, which sanitizers do not allow")
class Clock(SwarmTest):
    def clock(self, name, seconds=0):
        path = os.path.join(self.directory, f"{name}.clock")
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write(f"{seconds:+d}\n")
        os.rename(path + ".new", path)
        return {"LD_PRELOAD": LIBRARY, "FAKETIME_TIMESTAMP_FILE": path, "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}

    def swarm(self):
        self.the_tracker = Tracker(self)
        self.the_tracker.env = dict(os.environ, **self.clock("tracker"))
        self.the_tracker.start()
        made = []
        for name in ("ann", "ben"):
            member = Member(self, name)
            self.all_members.append(member)
            member.env.update(self.clock(name))
            member.start_daemon()
            member.register(self.the_tracker)
            member.start_mount()
            made.append(member)
        self.ann, self.ben = made
        self.number = 0

    def set_clocks(self, seconds, *names):
        for name in names or ("tracker", "ann", "ben"):
            self.clock(name, seconds)

    def one_more(self, why):
        """A file written at ann's is read at ben's."""
        self.number += 1
        data = pattern(3 << 20, self.number)
        name = f"file{self.number}"
        self.ann.write(name, data)
        self.ben.await_file(name, len(data), 30)
        self.assert_same_bytes(data, self.ben.read(name), why)

    def certificates(self):
        made = []
        for member in (self.ann, self.ben):
            with open(os.path.join(member.home, "device.crt"), "rb") as file:
                made.append(file.read())
        return made

    def jump(self, seconds):
        """Every member gets a certificate of the new day over the connection that is up, and starts with it."""
        old = self.certificates()
        self.set_clocks(seconds)
        yield
        wait_for("new certificates", lambda: all(a != b for a, b in zip(old, self.certificates())))
        self.ann.daemon.kill()
        self.ann.start_daemon()

    def test_a_stream_goes_on_when_all_clocks_jump_by_a_day(self):
        self.swarm()
        self.one_more("before")
        film = pattern(24 << 20, 99)
        self.ann.write("film", film)
        self.ben.await_file("film", len(film))
        with open(self.ben.path("film"), "rb", buffering=0) as stream:
            self.assert_same_bytes(film[:1 << 20], stream.read(1 << 20), "its beginning")
            for _ in self.jump(DAY):
                rest = b""
                while more := stream.read(1 << 20):
                    rest += more
                self.assert_same_bytes(film[1 << 20:], rest, "its rest, a day later")
                self.one_more("on links whose certificates have ended")
        self.one_more("after a start, a day later")
        for _ in self.jump(0):
            self.one_more("on links whose certificates are not valid yet")
        self.one_more("after a start, a day back")

    def test_who_was_away_while_the_certificate_ended_logs_in_again(self):
        self.swarm()
        self.one_more("before")
        self.ann.daemon.kill()
        self.set_clocks(DAY)
        self.ann.start_daemon()
        wait_for("the reason", lambda: "expired" in self.ann.ctl("status").stdout)
        self.ann.ctl("login", self.the_tracker.url(), "ann")
        self.one_more("after a log in")

    def test_a_link_does_not_outlive_its_certificate_when_nobody_renews_it(self):
        self.swarm()
        film = pattern(48 << 20, 98)
        self.ann.write("film", film)
        self.ben.await_file("film", len(film))
        self.ann.ctl("limit", "--up", "2M")  # it is not whole before the day is over
        with open(self.ben.path("film"), "rb", buffering=0) as stream:
            self.assert_same_bytes(film[:1 << 20], stream.read(1 << 20), "its beginning")

            def served():
                peers = json.loads(self.ann.ctl("peers", "--json").stdout)["peers"]
                return [p for p in peers if p["account"] == "ben" and p["state"] == "connected"]
            self.assertTrue(served())
            self.the_tracker.kill()
            self.set_clocks(DAY + 600, "ann")  # and five minutes in which clocks may be apart
            wait_for("the link to end", lambda: not served(), 10)
            self.assertFalse(served(), "who shows a certificate that has ended is served again")
            self.set_clocks(DAY + 600)
            self.the_tracker.start()
            for member in (self.ann, self.ben):
                member.ctl("login", self.the_tracker.url(), member.name)
            self.ann.ctl("limit", "--up", "unlimited")
            rest = b""
            while more := stream.read(1 << 20):
                rest += more
            self.assert_same_bytes(film[1 << 20:], rest, "its rest, after log ins")

    def test_a_session_at_the_tracker_does_not_outlive_its_certificate(self):
        self.swarm()
        own = os.path.join(self.ben.home, "device.crt"), os.path.join(self.ben.home, "device.key")
        self.ben.unmount()
        self.ben.daemon.stop()
        with toy(self.the_tracker.port, own) as link:
            self.set_clocks(DAY - 60, "tracker")
            link.send(frame(T_PING, id=5))
            link.until(T_DONE)
            self.set_clocks(DAY + 600, "tracker")
            link.socket.settimeout(30)
            self.assertTrue(link.is_closed())
        # Who renews it goes on: ann's daemon has, by itself.
        wait_for("ann at the tracker", lambda: self.ann.ctl("whoami", check=False).returncode == 0)

    def test_one_members_clock_that_is_wrong_is_said_and_mended(self):
        self.swarm()
        self.one_more("before")
        self.set_clocks(3 * DAY, "ben")
        self.one_more("on links that are up")
        self.set_clocks(0, "ben")
        self.one_more("when it is right again")
        self.set_clocks(-DAY, "ben")
        self.one_more("a day behind")
        self.set_clocks(0, "ben")
        wait_for("the tracker", lambda: "connected" in self.ben.ctl("status").stdout)
        self.one_more("at the end")


if __name__ == "__main__":
    main()
