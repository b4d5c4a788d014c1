"""Whiteouts, links and replaced names across layers, through a whole site: rows W01 to W14."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

import pytest

from blobserve.names.reference import Reference
from tests.support.layers import tar
from tests.support.parts.images import Image, Layer
from tests.support.sites import TAG, Serving, packed
from tests.support.within import within
from tests.traps.cases_merged import MERGED, Merged


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case.name)
@within(60)
async def test_merged(taking: Serving, case: Merged) -> None:
    """The tree of several layers is the one that extracting all of them would make."""
    taking.rule(layers="all")
    image = Image(tuple(Layer.of_tar(tar(entries)) for entries in case.layers))
    exact = str(taking.source.push(Reference.parse(TAG), packed(image)))
    for path, content in case.answers.items():
        answer = await taking.fetch(f"/{exact}/{quote_from_bytes(path)}")
        if content is None:
            assert answer.status in (301, 404), path
            answer = await taking.fetch(f"/{exact}/{quote_from_bytes(path)}/")
            assert answer.status == 404, path
        else:
            assert (answer.status, answer.body) == (200, content), path
