#!/usr/bin/python3
"""A few power cuts of a member's machine and of the tracker's; tests/torture/power.py does many."""
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../torture"))
import power  # noqa: E402
from harness import SwarmTest, main  # noqa: E402


class Cut(power.Power):
    rounds = 2


class TheDisk(SwarmTest):
    def test_it_loses_what_was_not_synced_and_keeps_the_rest(self):
        disk = power.Disk(self, os.path.join(self.directory, "disk"))
        paths = {name: os.path.join(disk.path, name) for name in ("synced", "not", "half", "moved", "away")}
        for name, path in paths.items():
            if name != "away":
                with open(path, "wb") as file:
                    file.write(name.encode() * 3000)
                    file.flush()
                    if name != "not":
                        os.fsync(file.fileno())
        with open(paths["half"], "r+b") as file:
            file.write(b"XXXX")
        os.rename(paths["moved"], paths["away"])
        disk.cut()
        disk.restore()
        self.assertEqual(sorted(os.listdir(disk.path)), ["half", "moved", "synced"])
        for name in ("half", "moved", "synced"):
            with open(paths[name], "rb") as file:
                self.assert_same_bytes(name.encode() * 3000, file.read(), name)


def load_tests(loader, tests, pattern):
    return unittest.TestSuite([Cut("test_no_acknowledged_byte_is_lost_and_none_is_wrong"),
                               TheDisk("test_it_loses_what_was_not_synced_and_keeps_the_rest")])


if __name__ == "__main__":
    main()
