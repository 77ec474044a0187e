"""Small files of a directory that is read file after file are there before they are opened; others are not touched."""
import os
import random

from harness import SwarmTest, main, pattern, wait_for

FILES, SIZE = 60, 4096


class Ahead(SwarmTest):
    def setUp(self):
        super().setUp()
        self.ann, self.ben = self.members("ann", "ben")

    def fill(self, folder, names):
        os.mkdir(self.ann.path(folder))
        for number, name in enumerate(names):
            self.ann.write(f"{folder}/{name}", pattern(SIZE, hash((folder, number)) % 100000))
        for name in names:
            self.ben.await_file(f"{folder}/{name}", SIZE)

    def have(self, folder, names):
        return [name for name in names if self.ben.xattr(f"{folder}/{name}", "state") == "complete"]

    def read(self, folder, name):
        self.assert_same_bytes(self.ann.read(f"{folder}/{name}"), self.ben.read(f"{folder}/{name}"), name)

    def test_files_read_one_after_the_other_are_there_before_they_are_opened(self):
        """The names' order is another than the one in which they were made."""
        made = [f"{number * 37 % FILES:03}" for number in range(FILES)]
        for folder, order in (("made", made), ("names", sorted(made)), ("numbers", None)):
            self.fill(folder, made)
            if order is None:
                order = sorted(made, key=lambda name: os.stat(self.ben.path(folder, name)).st_ino)
            for name in order[:8]:
                self.read(folder, name)
            wait_for(f"the next files of '{folder}'", lambda: set(order[8:16]) <= set(self.have(folder, order)))
            for name in order:
                self.read(folder, name)

    def test_files_read_out_of_order_bring_no_others(self):
        names = [f"{number:03}" for number in range(FILES)]
        self.fill("loose", names)
        picked = random.Random(3).sample(names[::12], FILES // 12)  # each far from the others
        for name in picked:
            self.read("loose", name)
        # What is read in order elsewhere comes by the same way, later.
        self.fill("sequence", names)
        for name in names[:8]:
            self.read("sequence", name)
        wait_for("the next files", lambda: set(names[8:16]) <= set(self.have("sequence", names)))
        self.assertEqual(sorted(picked), self.have("loose", names))

    def test_two_files_in_order_are_no_evidence_and_large_ones_are_left_alone(self):
        names = [f"{number:03}" for number in range(20)]
        self.fill("two", names)
        for name in names[:2]:
            self.read("two", name)
        self.fill("many", names)
        self.ann.write("many/010large", pattern(1 << 20, 5))
        self.ben.await_file("many/010large", 1 << 20)
        for name in names[:10]:
            self.read("many", name)
        wait_for("the other small files", lambda: names == self.have("many", names))
        self.assertNotEqual("complete", self.ben.xattr("many/010large", "state"))
        self.assertEqual(names[:2], self.have("two", names))


if __name__ == "__main__":
    main()
