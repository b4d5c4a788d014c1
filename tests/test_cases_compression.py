"""Compressed layers, through a whole site: rows Z01 to Z16."""

from __future__ import annotations

import pytest

from tests.hostile.asking import hold
from tests.hostile.case import Case
from tests.hostile.compressed import COMPRESSED
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", COMPRESSED, ids=lambda case: case.name)
@within(30)
async def test_compression(taking: Serving, case: Case) -> None:
    """Layers are unpacked to their true end, one level deep, or refused as a whole."""
    await hold(taking, case)
