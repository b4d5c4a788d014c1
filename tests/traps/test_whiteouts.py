"""Whiteouts in the layer that is served, through a whole site: rows W01 to W14."""

from __future__ import annotations

import pytest

from tests.faults.hostile.asking import hold
from tests.faults.hostile.case import Case
from tests.faults.hostile.whiteouts import WHITEOUTS
from tests.support.sites import Serving
from tests.support.within import within


@pytest.mark.parametrize("case", WHITEOUTS, ids=lambda case: case.name)
@within(30)
async def test_whiteout(taking: Serving, case: Case) -> None:
    """A whiteout in the first layer hides nothing and is not served."""
    await hold(taking, case)


@within(30)
async def test_w01_whiteouts_of_later_layers(taking: Serving) -> None:
    """With `layers: first`, whiteouts of later layers have no effect."""
    later = {".wh.x": b"", "d/.wh..wh..opq": b"", "e/.wh.z": b"", "z": b"later"}
    reference = taking.push({"x": b"1", "d/y": b"2", "e/z": b"3"}, later)
    for path, content in {"x": b"1", "d/y": b"2", "e/z": b"3"}.items():
        assert (await taking.fetch(f"/{reference}/{path}")).body == content
    assert (await taking.fetch(f"/{reference}/z")).status == 404
