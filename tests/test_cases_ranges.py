"""Ranges over real sockets, with the hot path and without: rows H20 to H36."""

from __future__ import annotations

import pytest

from tests.cases_http import RANGES, Case
from tests.conversing import hold
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", RANGES, ids=lambda case: case.name)
@within(30)
async def test_range(answering: Serving, case: Case) -> None:
    """One range is honoured, anything else ignored, whichever way the request comes."""
    await hold(answering, case)
