"""Whiteouts in the layer that is served, through a whole site: rows W01 to W14."""

from __future__ import annotations

import pytest

from tests.hostile.asking import hold
from tests.hostile.case import Case
from tests.hostile.whiteouts import WHITEOUTS
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", WHITEOUTS, ids=lambda case: case.name)
@within(30)
async def test_whiteout(taking: Serving, case: Case) -> None:
    """A whiteout in the first layer hides nothing, and is never served itself."""
    await hold(taking, case)
