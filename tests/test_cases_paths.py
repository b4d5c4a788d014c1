"""Paths, methods and framing over real sockets, with the hot path and without: rows H40 to H48."""

from __future__ import annotations

import pytest

from tests.cases_http import PATHS, Case
from tests.conversing import hold
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", PATHS, ids=lambda case: case.name)
@within(30)
async def test_path(answering: Serving, case: Case) -> None:
    """A target means one thing and leads nowhere else, whichever way the request comes."""
    await hold(answering, case)
