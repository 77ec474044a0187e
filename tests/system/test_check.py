"""p2pctl check and --repair."""
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
