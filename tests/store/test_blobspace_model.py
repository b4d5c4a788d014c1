"""A model test of the blob space: pulls, reads, evictions, crashes and restarts in any order."""

from __future__ import annotations

import random
import shutil
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.config import KIB, MIB, BlobSpaceRules, Limits
from blobserve.errors import NoSpace, SpaceContended
from blobserve.metrics import Metrics
from blobserve.store.blobspace import BlobLease, BlobSpace, BlobState, Ingest
from blobserve.store.disk.directory import FURNITURE
from blobserve.store.disk.files import blocks, footprint
from blobserve.store.disk.metadata_db import SLACK
from blobserve.testing import InlineThreads, make_image
from tests.support.examples import more
from tests.support.spaces import made, names_in, on_disk, take_in
from tests.support.stores import now

BOUND = 3 * MIB
FILES = [random.Random(n).randbytes((200 + 100 * n) * KIB) for n in range(8)]
LAYERS = [made(n, content=content) for n, content in enumerate(FILES)]
MANIFESTS = [make_image({"index.html": b"%d" % n}).documents[0] for n in range(4)]

numbers = st.integers(0, len(LAYERS) - 1)


def done(work: Coroutine[Deferred[Any], Any, Any]) -> Any:
    """Return the result of an operation that never has to wait."""
    return now(Deferred.fromCoroutine(work))


def file_of(blob: BlobLease) -> bytes:
    """Return the file of a layer."""
    return blob.filesystem.file(blob.filesystem.lookup(b"index.html")).read(0, 1 << 30)


class AnyOrder(RuleBasedStateMachine):
    """The model: the layers that are READY, being read, or being ingested."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = TemporaryDirectory()
        self._locations = (Path(self._directory.name, str(n)) for n in count())
        self._held: dict[int, BlobLease] = {}
        self._coming: dict[int, Ingest] = {}
        self._limit = BOUND

    @initialize()
    def begin(self) -> None:
        """Open a new blob space."""
        self._open(next(self._locations))

    def _open(self, location: Path) -> None:
        self._location = location
        self._clock = Clock()
        rules, threads = BlobSpaceRules(location, self._limit), InlineThreads()
        self._space = BlobSpace(self._clock, rules, Limits, threads, Metrics())
        done(self._space.open())

    def _ready(self) -> set[int]:
        states = [self._space.state_of(layer.digest) for layer in LAYERS]
        return {n for n, state in enumerate(states) if state is BlobState.READY}

    @rule(n=numbers)
    def pull(self, n: int) -> None:
        """Ingest a layer at once, which only leased layers may prevent."""
        if n in self._coming or n in self._ready():
            return
        try:
            done(take_in(self._space, LAYERS[n]))
        except SpaceContended:
            assert self._coming
        except NoSpace:
            assert self._held or self._coming or self._limit < BOUND
        else:
            assert n in self._ready()
        self._settle()

    @rule(n=numbers, part=st.floats(0, 1))
    def begin_to_pull(self, n: int, part: float) -> None:
        """Write a part of a layer."""
        if n in self._coming or n in self._ready():
            return
        try:
            ingest = self._coming[n] = done(self._space.ingest(LAYERS[n].descriptor))
        except NoSpace:
            assert self._limit < BOUND
            return
        ingest.failure.addErrback(lambda _: None)
        ingest.write(LAYERS[n].blob[: int(part * len(LAYERS[n].blob))])
        assert self._space.state_of(LAYERS[n].digest) is not BlobState.READY
        self._settle()

    @precondition(lambda self: self._coming)
    @rule()
    def abandon(self) -> None:
        """Abandon the oldest pull."""
        ingest = self._coming.pop(min(self._coming))
        done(ingest.abandon())

    @rule(n=numbers)
    def get(self, n: int) -> None:
        """Read a layer, which works if and only if it is READY."""
        blob = self._space.blobs.acquire(LAYERS[n].digest) or done(
            self._space.blobs.mount(LAYERS[n].digest)
        )
        assert (blob is not None) == (n in self._ready())
        if blob is not None:
            assert file_of(blob) == FILES[n]
            blob.release()

    @rule(n=numbers)
    def hold(self, n: int) -> None:
        """Begin to read a layer."""
        blob = None if n in self._held else done(self._space.blobs.mount(LAYERS[n].digest))
        if blob is not None:
            self._held[n] = blob

    @precondition(lambda self: self._held)
    @rule()
    def drop(self) -> None:
        """End a read; the next pass of garbage collection may evict what it has held."""
        self._held.pop(min(self._held)).release()
        done(self._space.reclaim())
        self._settle()

    @rule(n=st.integers(0, len(MANIFESTS) - 1))
    def put(self, n: int) -> None:
        """Store a manifest."""
        document = MANIFESTS[n]
        done(self._space.manifests.put(document))
        found = done(self._space.manifests.get(document.digest))
        assert found in (document, None)

    @rule(limit=st.sampled_from([BOUND, BOUND, MIB]))
    def reclaim(self, limit: int) -> None:
        """Change the quota perhaps, and reclaim space; leased layers stay."""
        self._limit = limit
        self._space.reconfigure(BlobSpaceRules(self._location, limit))
        done(self._space.reclaim())
        self._settle()

    @rule()
    def restart(self) -> None:
        """Close and reopen; the same layers are READY, and nothing else exists."""
        before = self._ready()
        self._close()
        self._open(self._location)
        assert self._ready() <= before
        assert self._ready() == before or self._limit < BOUND

    @rule()
    def crash(self) -> None:
        """Crash and reopen; the same layers are READY, and nothing else exists."""
        before, location = self._ready(), next(self._locations)
        shutil.copytree(self._location, location, symlinks=True)
        self._close()
        shutil.rmtree(self._location)
        self._open(location)
        assert self._ready() <= before
        assert self._ready() == before or self._limit < BOUND

    def _close(self) -> None:
        for blob in self._held.values():
            blob.release()
        done(self._space.close())
        assert names_in(self._location, "ingest") == []
        self._held.clear()
        self._coming.clear()

    def _settle(self) -> None:
        """Forget the pulls that had to give up space."""
        for n in [n for n, each in self._coming.items() if each not in self._space._ingests]:
            del self._coming[n]

    @invariant()
    def what_is_read_stays(self) -> None:
        """Each reader gets the bytes of its layer, which stays READY."""
        assert not self._held or set(self._held) <= self._ready()
        for n, blob in self._held.items():
            assert file_of(blob) == FILES[n]

    @invariant()
    def bound_holds(self) -> None:
        """The size on disk is within the counted one, and that within the quota."""
        if not hasattr(self, "_space"):
            return
        assert on_disk(self._location) <= self._space.size
        assert self._space.size <= self._limit or self._held

    @invariant()
    def books_are_those_of_the_disk(self) -> None:
        """Without an ingest the counted size is exact, and no other files exist."""
        if not hasattr(self, "_space"):
            return
        directory = self._location / "blobs" / "sha256"
        found = set(names_in(self._location, "blobs/sha256")) if directory.exists() else set()
        assert found == {LAYERS[n].digest.hex for n in self._ready()}
        assert len(names_in(self._location, "ingest")) <= len(self._coming)
        if not self._coming:
            blobs = sum(footprint(directory / name) for name in found)
            manifests = sum(
                blocks(path.stat().st_size) for path in (self._location / "manifests").glob("*/*")
            )
            state = sum(blocks(p.stat().st_size) for p in self._location.glob("state*"))
            assert self._space.size == FURNITURE + SLACK + blobs + manifests + state

    def teardown(self) -> None:
        """Close the blob space."""
        if hasattr(self, "_space"):
            self._close()
        self._directory.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=more(25), stateful_step_count=30)
