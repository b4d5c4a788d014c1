"""The command `python -m blobserve`, which equals `twist blobserve`."""

from __future__ import annotations

import sys

# Twisted has no public name for the entry point of its script `twist`.
from twisted.application.twist._twist import Twist

if __name__ == "__main__":
    # Usage texts and errors take the program's name from here.
    sys.argv[:1] = ["twist", "blobserve"]
    Twist.main(sys.argv)
