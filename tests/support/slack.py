"""The factor of all time limits that only find hangs."""

from __future__ import annotations

import os

SLACK = float(os.environ.get("BLOBSERVE_TEST_SLACK", "1"))
"""Larger than 1 on a slow or busy machine, such as that of the checks: see ``.ci/check``."""
