"""Provenance: the record of the repositories that have shown each content."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.names.reference import Repository
from blobserve.store.disk.metadata_db import MetadataDb, provenance_put
from blobserve.store.space import provenance
from blobserve.store.space.provenance import MOST_ANONYMOUS_OF_ONE, Access
from tests.support.spaces import opened

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
SITE = Repository.parse("registry.example/team/site")


def numbered(n: int) -> Repository:
    """Return one of many repositories."""
    return Repository.parse(f"registry.example/any/r{n}")


def rows(location: Path) -> list[tuple[Digest, str, int]]:
    """Return the rows in the state file of a closed blob space."""
    state = MetadataDb(location / "state")
    state.open()
    try:
        return state.provenance()
    finally:
        state.close()


@pytest.mark.parametrize("access", [Access.LISTED, Access.ANONYMOUS])
@pytest_twisted.ensureDeferred
async def test_across_a_restart(tmp_path: Path, access: Access) -> None:
    """An entry is for one digest and one repository, and survives a restart."""
    async with opened(tmp_path) as space:
        space.provenance.record(ONE, SITE, access)
        space.provenance.record(ONE, SITE, access)
    for _ in range(2):
        async with opened(tmp_path) as space:
            covers = space.provenance.covers
            assert covers(ONE, SITE, access)
            assert not covers(TWO, SITE, access)
            assert not covers(ONE, numbered(1), access)
    assert rows(tmp_path) == [(ONE, str(SITE), access)]


@pytest_twisted.ensureDeferred
async def test_credentials(tmp_path: Path) -> None:
    """Content that was shown with credentials is not for the same repository without them."""
    async with opened(tmp_path) as space:
        space.provenance.record(ONE, SITE, Access.LISTED)
        space.provenance.record(TWO, SITE, Access.ANONYMOUS)
        listed, unlisted = (Access.needed(RepositoryRules(listed=each)) for each in (True, False))
        assert space.provenance.covers(ONE, SITE, listed)
        assert not space.provenance.covers(ONE, SITE, unlisted)
        assert space.provenance.covers(TWO, SITE, listed)
        assert space.provenance.covers(TWO, SITE, unlisted)


@pytest_twisted.ensureDeferred
async def test_bound_of_one_digest(tmp_path: Path) -> None:
    """A digest has a bounded number of unlisted repositories, which displace no listed one."""
    async with opened(tmp_path) as space:
        entries = space.provenance
        entries.record(ONE, SITE, Access.LISTED)
        entries.record(TWO, numbered(0), Access.ANONYMOUS)
        for n in range(MOST_ANONYMOUS_OF_ONE):
            entries.record(ONE, numbered(n), Access.ANONYMOUS)
        assert entries.covers(ONE, numbered(0), Access.ANONYMOUS)  # counts as a use
        entries.record(ONE, numbered(1000), Access.ANONYMOUS)
        assert entries.covers(ONE, numbered(0), Access.ANONYMOUS)
        assert not entries.covers(ONE, numbered(1), Access.ANONYMOUS)
        assert entries.covers(TWO, numbered(0), Access.ANONYMOUS)
        assert entries.covers(ONE, SITE, Access.LISTED)
    assert len(rows(tmp_path)) == MOST_ANONYMOUS_OF_ONE + 2


@pytest_twisted.ensureDeferred
async def test_bound_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total number of each kind is bounded, and the last used ones stay."""
    monkeypatch.setattr(provenance, "MOST_LISTED", 10)
    monkeypatch.setattr(provenance, "MOST_ANONYMOUS", 5)
    async with opened(tmp_path) as space:
        for n in range(100):
            for access in (Access.LISTED, Access.ANONYMOUS):
                space.provenance.record(Digest.of(b"%d" % n), numbered(n), access)
    kept = rows(tmp_path)
    assert [access for *_, access in kept].count(Access.LISTED) == 10
    assert len(kept) == 15
    assert {digest for digest, *_ in kept} == {Digest.of(b"%d" % n) for n in range(90, 100)}


@pytest_twisted.ensureDeferred
async def test_strange_rows(tmp_path: Path) -> None:
    """An unreadable row gives no access."""
    async with opened(tmp_path):
        pass
    state = MetadataDb(tmp_path / "state")
    state.open()
    for access in (-1, 0, 1, 4, 99):
        state.change(provenance_put(ONE, str(SITE), access, 0.0))
    state.change(("INSERT INTO provenance VALUES ('x', 'y', 2, 0)", ()))
    state.change(("INSERT INTO provenance VALUES (?, x'00ff', 'z', 0)", (str(TWO),)))
    state.close()
    async with opened(tmp_path) as space:
        for digest in (ONE, TWO):
            for access in (Access.LISTED, Access.ANONYMOUS):
                assert not space.provenance.covers(digest, SITE, access)
