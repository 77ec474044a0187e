"""Mounting as an administrator does: a line in /etc/fstab and mount(8), in a mount namespace of the test's own."""
import os
import signal
import subprocess

from harness import BIN, SwarmTest, main, wait_for

OPTIONS = "noauto,user,_netdev,nofail,x-systemd.automount,x-systemd.mount-timeout=30,wait=5s,suid,dev"


class Fstab(SwarmTest):
    def inside(self, script):
        """Runs a script where /etc/fstab is `self.fstab`, and our programs are installed."""
        script = f"set -e; mount --bind {self.fstab} /etc/fstab; mount --bind {BIN} /usr/local/sbin; {script}"
        return self.run("unshare", "-m", "--propagation", "private", "sh", "-c", script, check=False)

    def test_a_line_in_fstab_and_mount(self):
        tracker = self.tracker()
        ann, ben = self.member(tracker, "ann"), self.member(tracker, "ben", mounted=False)
        ann.write("f", b"hello")
        self.fstab = os.path.join(self.directory, "fstab")
        with open(self.fstab, "w") as file:
            file.write(f"swarm {ben.mount} fuse.p2pfs {OPTIONS},home={ben.home} 0 0\n")
        at = ben.mount
        done = self.inside(
            f"mount {at}; grep ' {at} ' /proc/self/mountinfo; for i in 1 2 3 4 5 6 7 8 9 10; do "
            f"[ -e {at}/f ] && break; sleep 0.3; done; cat {at}/f; echo; echo x > {at}/g && echo written; umount {at}; "
            f"! grep -q ' {at} ' /proc/self/mountinfo && echo unmounted")
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        line, *rest = done.stdout.splitlines()
        self.assertEqual(["hello", "written", "unmounted"], rest)
        self.assertRegex(line, r"nosuid,nodev.* - fuse\.p2pfs ")
        self.assertIn("default_permissions", line)
        with open(self.fstab, "w") as file:
            file.write(f"swarm {ben.mount} fuse.p2pfs noauto,ro,home={ben.home} 0 0\n")
        done = self.inside(f"mount {at}; cat {at}/f; echo; touch {at}/h || echo refused; umount {at}")
        self.assertEqual(["hello", "refused"], done.stdout.splitlines(), done.stderr)
        self.assertIn("Read-only file system", done.stderr)

    def test_mount_of_all_lines_twice(self):
        """The second time, as after a change of fstab, what is mounted is known by its source."""
        tracker = self.tracker()
        ben = self.member(tracker, "ben", mounted=False)
        self.fstab = os.path.join(self.directory, "fstab")
        with open(self.fstab, "w") as file:
            file.write(f"our,swarm {ben.mount} fuse.p2pfs home={ben.home} 0 0\n")
        done = self.inside(f"mount -a; mount -a; findmnt -no SOURCE {ben.mount}; umount {ben.mount}")
        self.assertEqual((0, "our,swarm\n"), (done.returncode, done.stdout), done.stderr)

    def failing(self, member, place, *options):
        done = self.run(f"{BIN}/p2pfs", place, *options, env=member.env, check=False)
        self.assertNotEqual(0, done.returncode)
        self.assertEqual(1, done.stderr.count("\n"), done.stderr)
        return done.stderr

    def test_places_that_cannot_be_mounted_on_are_named(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann", mounted=False)
        with open(os.path.join(ann.mount, "in the way"), "w"):
            pass
        self.assertIn("not empty", self.failing(ann, ann.mount))
        self.assertIn("No such file", self.failing(ann, ann.mount + "/missing"))
        self.assertIn("not a directory", self.failing(ann, ann.mount + "/in the way"))
        self.assertIn("unknown mount option nonsense", self.failing(ann, ann.mount, "-o", "ro,nonsense"))
        os.unlink(os.path.join(ann.mount, "in the way"))
        ann.start_mount()
        self.assertIn("already mounted", self.failing(ann, ann.mount))
        ann.fs.process.send_signal(signal.SIGSTOP)
        self.addCleanup(ann.fs.process.send_signal, signal.SIGCONT)
        self.assertIn("does not answer", self.failing(ann, ann.mount))

    def test_what_a_crash_left_behind_is_cleaned_at_the_next_start(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        ann.write("f", b"1")
        ann.fs.kill(signal.SIGKILL)
        with self.assertRaises(OSError):
            os.stat(ann.mount)
        self.assertTrue(ann.mounted())
        self.run(f"{BIN}/p2pfs", ann.mount, env=ann.env)
        self.assertEqual(b"1", ann.read("f"))
        with open("/proc/self/mounts") as mounts:
            self.assertEqual(1, sum(line.split()[1] == ann.mount for line in mounts))
        subprocess.run(["fusermount3", "-u", ann.mount], check=True)
        wait_for("the mount to go", lambda: not ann.mounted())


if __name__ == "__main__":
    main()
