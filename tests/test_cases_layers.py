"""Layers with hostile names, links and framing, through a whole site: rows L01 to L58."""

from __future__ import annotations

import pytest

from tests.hostile.asking import hold
from tests.hostile.case import Case
from tests.hostile.streams import STREAMS
from tests.hostile.trees import TREES
from tests.rig.within import within
from tests.sites import Serving


@pytest.mark.parametrize("case", [*TREES, *STREAMS], ids=lambda case: case.name)
@within(30)
async def test_layer(taking: Serving, case: Case) -> None:
    """A layer is served as a chroot of it would look, or refused as a whole in our words."""
    await hold(taking, case)
