"""p2pctl check and --repair."""
import contextlib
import json
import os

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

    def test_what_was_written_and_lost_its_name_is_copied_out(self):
        ann, = self.members("ann")
        parts = [pattern(3 * MIB + 17, 2), b"short"]
        for number, data in enumerate(parts):
            fd = os.open(ann.path(f"lost{number}"), os.O_WRONLY | os.O_CREAT)
            self.addCleanup(self.close, fd)
            os.write(fd, data)
            os.fsync(fd)
        ann.daemon.kill()
        ann.fs.kill()
        for name in os.listdir(ann.home):
            if name.startswith("state.db"):
                os.unlink(os.path.join(ann.home, name))
        ann.start_daemon()
        listed = wait_for("the files to be listed", lambda: json.loads(ann.ctl("check", "--json").stdout)["kept"])
        self.assertEqual([len(p) for p in parts], sorted((k["bytes"] for k in listed), reverse=True))
        named = {f"kept-{k['number']}": k["bytes"] for k in listed}
        said = ann.ctl("check").stdout
        for name in named:
            self.assertRegex(said, rf"(?m)^{name}: .*its name is lost \(--recover DIR copies it out\)$")
        folder = os.path.join(self.directory, "saved")
        ann.ctl("check", "--recover", folder)
        self.assertEqual(set(named), set(os.listdir(folder)))
        for name in named:
            self.assertEqual(0o600, os.stat(os.path.join(folder, name)).st_mode & 0o777)
        found = {self.contents(os.path.join(folder, name)) for name in named}
        self.assertEqual(set(parts), found)
        # What is there is left alone, what is not is copied.
        first, second = named
        with open(os.path.join(folder, first), "w") as file:
            file.write("mine")
        os.unlink(os.path.join(folder, second))
        done = ann.ctl("check", "--recover", folder, check=False)
        self.assertEqual((1, f"p2pctl: {folder}/{first} is there already and is left alone\n"), (done.returncode, done.stderr))
        self.assertEqual(b"mine", self.contents(os.path.join(folder, first)))
        self.assertEqual(named[second], os.path.getsize(os.path.join(folder, second)))
        for wrong, status in ((["--recover", os.path.join(folder, first)], 1), (["--recover", folder, "/"], 2),
                              (["--recover", "/proc/none"], 1), (["--recover", ""], 2), (["--recover", folder, "--pause"], 2)):
            done = ann.ctl("check", *wrong, check=False)
            self.assertEqual((status, 1), (done.returncode, len(done.stderr.splitlines())), done.stderr)

    @staticmethod
    def close(fd):
        with contextlib.suppress(OSError):
            os.close(fd)

    @staticmethod
    def contents(path):
        with open(path, "rb") as file:
            return file.read()

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


if __name__ == "__main__":
    main()
