"""The checks of a blob space that is opened again after a crash or a failure."""

from __future__ import annotations

from pathlib import Path

from blobserve.config import Limits
from blobserve.store.blobs.fsck import audit
from blobserve.store.disk.directory import FURNITURE
from blobserve.store.disk.files import blocks, footprint
from blobserve.store.disk.metadata_db import SLACK
from tests.faults.crashing.scenarios import HOT, IMAGES, SCENARIOS, Stand, opened
from tests.support.spaces import names_in, on_disk

_MENDABLE = "(it can be rebuilt)"
_KEEPS_HOT = ("pull", "manifest", "coding", "mend")


async def settled(name: str, location: Path) -> None:
    """Check the blob space after scenario `name`, which may have ended at any point.

    :raises AssertionError: if a cached layer is wrong, or a missing one cannot be pulled again.
    """
    scenario = SCENARIOS[name]
    if (location / "state").exists():
        damaged = audit(location, Limits()).damaged
        assert not [each for each in damaged if _MENDABLE not in each], damaged
    async with opened(location, scenario.bound) as stand:
        books(stand)
        await stand.read(HOT)
        if name in _KEEPS_HOT:
            assert stand.source.count("fetch") == 0, "what was here was pulled again"
        for image in IMAGES:
            await stand.read(image)
        await stand.code(HOT)
        books(stand)
    found = audit(location, Limits())
    assert (found.damaged, found.notes, found.foreign) == ([], [], [])


def books(stand: Stand) -> None:
    """Check that no ingest is left, and that the size that is counted is the size on disk."""
    location, size = stand.location, stand.space.size
    assert names_in(location, "ingest") == [], "something is left in ingest"
    held = sum(footprint(blob) for blob in location.glob("blobs/*/*"))
    held += sum(blocks(each.stat().st_size) for each in location.glob("manifests/*/*"))
    held += sum(footprint(each) for each in location.glob("state*"))
    held += sum(footprint(each) for each in location.glob("trees/*/*"))
    assert size == FURNITURE + SLACK + held, f"{size} counted, {held} there"
    assert on_disk(location) <= size
