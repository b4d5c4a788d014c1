"""Compressed layers through a whole site: rows Z01 to Z16."""

from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.errors import BadLayer
from blobserve.store.extract.decompress import fastest
from tests.faults.hostile.asking import hold
from tests.faults.hostile.case import Case
from tests.faults.hostile.compressed import COMPRESSED, DAMAGED, GZIPPED
from tests.store.extract.test_decompress import unpack
from tests.support.examples import more
from tests.support.sites import Serving
from tests.support.within import within


@pytest.mark.parametrize("case", COMPRESSED, ids=lambda case: case.name)
@within(30)
async def test_compression(taking: Serving, case: Case) -> None:
    """Layers are decompressed to their true end, one level deep, or refused as a whole."""
    await hold(taking, case)


ROWS = {name: row[0] for name, row in {**GZIPPED, **DAMAGED}.items() if len(row[0]) < 30_000}


@settings(max_examples=more(150))
@given(
    st.sampled_from(sorted(ROWS)),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 255)), max_size=3),
    st.one_of(st.integers(1, 40), st.integers(1, 40_000)),
)
def test_one_meaning_of_gzip(name: str, changes: list[tuple[int, int]], step: int) -> None:
    """A blob has one content or is refused, in pieces of any size and with each decompressor."""
    blob = bytearray(ROWS[name] or b"\0")
    for at, bits in changes:
        blob[at % min(len(blob), 40) if at % 2 else at % len(blob)] ^= bits
    outcomes = []
    for inflate in (zlib.decompressobj, fastest):
        for size in (len(blob), step):
            try:
                content = unpack(bytes(blob), inflate=inflate, step=size)
                outcomes.append(hashlib.sha256(content).hexdigest())
            except BadLayer as problem:
                outcomes.append("damaged" if "gzip" in str(problem) else str(problem))
    assert len(set(outcomes)) == 1
