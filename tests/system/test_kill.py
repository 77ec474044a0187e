"""A few rounds of tests/torture/kill.py: daemons and mount processes. The tracker is killed by that tool alone."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../torture"))
from harness import main  # noqa: E402
from kill import Torture as Kill  # noqa: E402


class Torture(Kill):
    rounds = 5
    victims = ["ann.p2pd", "ann.p2pfs", "ben.p2pd", "ben.p2pfs"]


del Kill

if __name__ == "__main__":
    main()
