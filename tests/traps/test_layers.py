"""Layers with hostile names, links and framing, through a whole site: rows L01 to L58."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadLayer
from blobserve.names.reference import Reference
from blobserve.tar.reader import TarReader
from tests.faults.hostile.asking import hold, image_of
from tests.faults.hostile.case import Case, tree
from tests.faults.hostile.mutations import mutations
from tests.faults.hostile.streams import FILE, STREAMS
from tests.faults.hostile.trees import TREES
from tests.support.examples import more
from tests.support.layers import BLOCK, File, gnu_long, pax
from tests.support.sites import TAG, Serving, packed
from tests.support.within import within


@pytest.mark.parametrize("case", [*TREES, *STREAMS], ids=lambda case: case.name)
@within(30)
async def test_layer(taking: Serving, case: Case) -> None:
    """A layer is served as a chroot of it would look, or refused as a whole with our message."""
    await hold(taking, case)


@within(30)
async def test_l27_modes_on_disk(taking: Serving) -> None:
    """Files of the blob space are readable by their owner alone, not by the modes in the layer."""
    await hold(taking, next(case for case in TREES if case.name == "L27 modes"))
    root = taking.space._location.root
    found = {(path.is_dir(), path.stat().st_mode & 0o7777) for path in root.rglob("*")}
    assert found <= {(True, 0o700), (False, 0o600)}
    assert len(found) == 2


@within(30)
async def test_l28_times(taking: Serving) -> None:
    """A file with an impossible time has no Last-Modified; other files have theirs."""
    times = next(case for case in TREES if case.name == "L28 times")
    good = tree([File(b"a", mtime=1_600_000_000)], {b"a": b""}, "a time")
    dates = []
    for case in (times, good):
        reference = taking.source.push(Reference.parse(TAG), packed(image_of(case)))
        for path in case.answers:
            answer = await taking.fetch(f"/{reference}/{path.decode()}")
            dates.append(answer.headers.get("last-modified"))
    assert dates == [None] * 6 + ["Sun, 13 Sep 2020 12:26:40 GMT"]


@pytest.mark.parametrize(
    "extension",
    [pax({b"path": b"n" * 600}), gnu_long(b"n" * 600), pax({b"a": b"b"}) * 3],
    ids=["x", "L", "x x x"],
)
def test_l43_every_truncation(extension: bytes) -> None:
    """An archive that ends in an extension header, or right after it, is refused."""
    stream = extension + FILE
    for end in range(1, len(extension) + BLOCK + 1):
        reader = TarReader(Limits())
        assert reader.feed(stream[:end]) == []
        with pytest.raises(BadLayer):
            reader.finish()


@settings(max_examples=more(100))
@given(st.integers(0, 2**32))
def test_mutations_are_read_one_way(seed: int) -> None:
    """A damaged stream gives the same entries or error in pieces of any size."""
    [case] = mutations(1, seed)
    outcomes = []
    for step in (len(case.blob), 512, 1 + seed % 700):
        reader, members, problem = TarReader(Limits()), [], ""
        try:
            for at in range(0, len(case.blob), step):
                members += reader.feed(case.blob[at : at + step])
            reader.finish()
        except BadLayer as error:
            problem = str(error)
        # The entries read before an error depend on the pieces.
        outcomes.append((problem, [] if problem else members))
        for member in members:
            body = case.blob[member.offset : member.offset + member.size]
            assert member.sha256 in (None, hashlib.sha256(body).digest())
    assert outcomes[0] == outcomes[1] == outcomes[2]
