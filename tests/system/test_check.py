"""p2pctl check and --repair; a full disk pauses fetching, tells the writer, and is got over."""
import errno
import json
import os
import subprocess
import tempfile

from harness import SwarmTest, main, pattern, wait_for

MIB = 1 << 20


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


class Check(SwarmTest):
    def test_damage_is_found_told_and_repaired(self):
        ann, ben = self.members("ann", "ben", options="wait=10s")
        data = pattern(3 * MIB, 1)
        ann.write("f", data)
        ann.write("g", data[:100000])
        ben.await_file("g", 100000)
        ben.ctl("get", "/")
        ben.unmount()
        wait_for("the file to be complete on disk", lambda: self.synced(ben))
        self.assertEqual("2 files checked, 3.1 MiB right.\n", ben.ctl("check").stdout)
        for at in [5, MIB, MIB + 40000]:
            flip(self.data_file, at)
        done = ben.ctl("check", "--json", check=False)
        self.assertEqual(1, done.returncode)
        found = json.loads(done.stdout)
        self.assertEqual([("/f", 3)], [(d["path"], d["blocks"]) for d in found["damaged"]])
        self.assertIn("3 damaged blocks given up", ben.ctl("status").stdout)
        # The blocks are gone, so there is nothing damaged any more; what is missing is fetched by whoever wants it.
        self.assertEqual(0, ben.ctl("check").returncode)
        ben.ctl("get", "/f")
        flip(self.part_or_data(), 5)
        done = ben.ctl("check", "--repair", "/f")
        self.assertIn("/f: 1 damaged block, fetched again\n", done.stdout)
        ben.start_mount()
        self.assert_same_bytes(data, ben.read("f"))
        self.assertEqual("complete", ben.xattr("f", "state"))
        self.assertIn("check      paused", ben.ctl("check", "--pause").stdout + ben.ctl("status").stdout)
        ben.ctl("check", "--resume")
        self.assertEqual(2, ben.ctl("check", "--pause", "--repair", check=False).returncode)

    def synced(self, member):
        for folder, _, names in os.walk(os.path.join(member.home, "store")):
            for name in names:
                if name.endswith(".data") and os.path.getsize(os.path.join(folder, name)) == 3 * MIB:
                    self.data_file = os.path.join(folder, name)
                    return True
        return False

    def part_or_data(self):
        part = self.data_file[:-4] + "part"
        return part if os.path.exists(part) else self.data_file


class FullDisk(SwarmTest):
    @staticmethod
    def free(member):
        space = os.statvfs(member.home)
        return space.f_bavail * space.f_frsize

    def small_disk(self, member):
        """The member's home on a disk of 64 MiB."""
        image = tempfile.NamedTemporaryFile(dir=self.directory, delete=False)
        image.truncate(64 * MIB)
        image.close()
        subprocess.run(["mkfs.ext4", "-q", "-m0", image.name], check=True, capture_output=True)
        done = subprocess.run(["mount", "-o", "loop", image.name, member.home], capture_output=True)
        if done.returncode != 0:
            self.skipTest("no loop devices here")
        os.chmod(member.home, 0o700)
        self.addCleanup(subprocess.run, ["umount", "-l", member.home], capture_output=True)

    def test_the_writer_is_told_fetching_pauses_and_both_go_on_when_there_is_room(self):
        tracker = self.tracker()
        ann = self.member(tracker, "ann")
        from harness import Member
        ben = Member(self, "ben", options="wait=60s")
        self.all_members.append(ben)
        with open(os.path.join(ben.home, "p2pd.conf")) as conf:
            text = conf.read()
        self.small_disk(ben)
        with open(os.path.join(ben.home, "p2pd.conf"), "w") as conf:
            conf.write(text)
        ben.start_daemon()
        ben.register(tracker)
        ben.start_mount()
        keep = pattern(MIB, 4)
        ben.write("keep", keep)
        # The writer: ENOSPC, nothing half.
        with self.assertRaises(OSError) as caught:
            ben.write("large", pattern(90 * MIB, 5))
        self.assertEqual(errno.ENOSPC, caught.exception.errno)
        # What was written of it became a version when the program closed it; it is deleted, and its space is needed now.
        if os.path.exists(ben.path("large")):
            os.unlink(ben.path("large"))
        filler = os.path.join(ben.home, "filler")
        with open(filler, "wb") as file:
            while self.free(ben) > 4 * MIB:
                file.write(bytes(MIB))
                file.flush()
        data = pattern(20 * MIB, 6)
        ann.write("film", data)
        ben.await_file("film", len(data))
        get = subprocess.Popen([ann.fs.arguments[0].replace("p2pfs", "p2pctl"), "get", "/film"], env=ben.env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(get.kill)
        wait_for("the status to say so", lambda: "no space left for the store; fetching waits"
                 in ben.ctl("status").stdout, 30)
        before = json.loads(ben.ctl("status", "--json").stdout)
        self.assertIsNone(get.poll())
        self.assert_same_bytes(keep, ben.read("keep"))
        os.unlink(filler)
        for folder in ["incoming"]:
            self.assertEqual([], os.listdir(os.path.join(ben.home, "store", folder)))
        self.assertEqual(0, get.wait(60))
        self.assert_same_bytes(data, ben.read("film"))
        self.assertNotIn("no space", ben.ctl("status").stdout)
        self.assertLess(before["wasted_in"], 40 * MIB)
        self.assertEqual(1, ben.daemon.text().count("no space left for the store"))


if __name__ == "__main__":
    main()
