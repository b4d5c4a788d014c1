"""How many examples property tests try: few in the suite, many when somebody asks for them.

``HYPOTHESIS_PROFILE=long`` tries a hundred times as many, and others each time.
"""

from __future__ import annotations

import os

from hypothesis import settings

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=10_000)


def more(count: int) -> int:
    """`count`, or in the long run a hundred times as many."""
    return 100 * count if IS_LONG else count


def examples(count: int) -> settings:
    """Try so many examples, or in the long run a hundred times as many."""
    return settings(max_examples=more(count))
