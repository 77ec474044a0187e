"""One file through a swarm of two."""
import json
import os

from harness import SwarmTest, libtorrent_root, main, pattern, wait_for


class Smoke(SwarmTest):
    def test_a_file_copied_in_at_one_mount_is_read_at_the_other(self):
        ann, ben = self.members("ann", "ben")
        data = pattern(5_000_001)
        ann.write("first file.bin", data)
        ben.await_file("first file.bin", len(data))
        self.assert_same_bytes(data, ben.read("first file.bin"), "at ben's")
        root = libtorrent_root(ann.path("first file.bin"))
        self.assertEqual(root, ann.xattr("first file.bin", "root"))
        self.assertEqual(root, ben.xattr("first file.bin", "root"))
        self.assertEqual("ann", ben.xattr("first file.bin", "owner"))

    def test_who_has_registered_finds_at_once_what_the_swarm_has(self):
        ann, = self.members("ann")
        for number in range(300):
            os.mkdir(ann.path(f"folder {number}"))
        wait_for("the tracker to have all", lambda: json.loads(ann.ctl("status", "--json").stdout)["pending"] == 0)
        ben = self.member(self.the_tracker, "ben")
        self.assertEqual(300, len(os.listdir(ben.mount)))


if __name__ == "__main__":
    main()
