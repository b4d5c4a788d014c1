"""How many examples property tests try: few in the suite, many when somebody asks for them.

``HYPOTHESIS_PROFILE=long`` tries a hundred times as many, ``campaign`` ten times, and others each
time.
"""

from __future__ import annotations

import os

from hypothesis import settings

PROFILE = "HYPOTHESIS_PROFILE"
TIMES = {"suite": 1, "campaign": 10, "long": 100}
NAME = os.environ.get(PROFILE, "suite")

settings.register_profile("suite", deadline=None, derandomize=True)
for name in ("campaign", "long"):
    settings.register_profile(name, deadline=None, max_examples=100 * TIMES[name])


def more(count: int) -> int:
    """`count`, or in a longer run so many times as many."""
    return count * TIMES[NAME]
