"""The size of the storms: small in a test suite, whole on request.

``BLOBSERVE_STORMS=whole`` selects the promised sizes, and ``long`` runs for hours.
`tests.faults.campaign` sets it; nothing but sizes may depend on it.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "BLOBSERVE_STORMS"
SCALE = os.environ.get(VARIABLE, "suite")


def sized(suite: T, whole: T, long: T | None = None) -> T:
    """Select one of these sizes; without a `long` one, the whole."""
    if SCALE == "suite":
        return suite
    return whole if SCALE == "whole" or long is None else long
