"""The command `python -m blobserve`, which is `twist blobserve` under another name."""

from __future__ import annotations

import sys

# The entry point behind the console script `twist`; it has no public name.
from twisted.application.twist._twist import Twist

if __name__ == "__main__":
    # Usage texts and errors name the program by its first argument.
    sys.argv[:1] = ["twist", "blobserve"]
    Twist.main(sys.argv)
