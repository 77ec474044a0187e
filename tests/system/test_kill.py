"""A dozen rounds of tests/torture/kill.py."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../torture"))
from harness import main  # noqa: E402
from kill import Torture as Kill  # noqa: E402


class Torture(Kill):
    rounds = 12


del Kill

if __name__ == "__main__":
    main()
