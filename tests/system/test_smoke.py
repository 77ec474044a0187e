"""One file through a swarm of two."""
from harness import SwarmTest, libtorrent_root, main, pattern


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


if __name__ == "__main__":
    main()
