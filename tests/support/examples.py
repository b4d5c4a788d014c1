"""The number of examples in property tests: few in the test suite, more on request.

``HYPOTHESIS_PROFILE=long`` tries a hundred times as many, ``campaign`` ten times; both draw new
examples in each run.
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
    """Return `count`, multiplied in a longer run."""
    return count * TIMES[NAME]
