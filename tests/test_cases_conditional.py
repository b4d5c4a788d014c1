"""Conditional requests over real sockets, with the hot path and without: rows H01 to H13."""

from __future__ import annotations

import pytest

from tests.cases_http import CONDITIONAL, Case
from tests.conversing import hold
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", CONDITIONAL, ids=lambda case: case.name)
@within(30)
async def test_conditional(answering: Serving, case: Case) -> None:
    """A condition is judged as RFC 9110 §13 has it, whichever way the request comes."""
    await hold(answering, case)
