"""How large storms are: as a suite can bear it, or whole when somebody asks for that.

``BLOBSERVE_STORMS=whole`` has the numbers that are promised, ``long`` goes on for as long as one
has time. `tests.faults.campaign` sets it; nothing but sizes may depend on it.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "BLOBSERVE_STORMS"
SCALE = os.environ.get(VARIABLE, "suite")


def sized(suite: T, whole: T, long: T | None = None) -> T:
    """One of these sizes; without a `long` one, the whole."""
    if SCALE == "suite":
        return suite
    return whole if SCALE == "whole" or long is None else long
