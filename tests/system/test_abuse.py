"""A quarter of a minute of tests/torture/abuse.py: who streams is served, and gets every byte, while another member misbehaves in
every way. Rates are for the long run by hand."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "../torture"))
from abuse import Abuse  # noqa: E402, F401
from harness import main  # noqa: E402

if __name__ == "__main__":
    main()
