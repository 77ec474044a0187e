"""A few seconds of tests/torture/stress.py and readers.py: many processes in one tree, and many readers beside writers and a cache that
is too small. Two members see the same in the end, no byte is wrong, nobody hangs. Minutes of it are for the long runs by hand."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../torture"))
from harness import main  # noqa: E402
from readers import Readers  # noqa: E402, F401
from stress import Stress  # noqa: E402, F401

if __name__ == "__main__":
    main()
