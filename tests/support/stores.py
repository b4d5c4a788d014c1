"""A ref store on a real blob space in a temporary directory, with its source in memory.

Time is a `Clock` and threads run inline, so that all work that can be done is done when a call
returns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads
from blobserve.config import BlobSpaceRules, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobSpace
from blobserve.store.lease import Lease
from blobserve.store.refstore import RefStore
from blobserve.testing import InlineThreads, MadeImage, MemorySource, make_image

SITE = Reference.parse("registry.example/team/site:v1")
OTHER = Reference.parse("registry.example/team/other:v1")


def an_image(content: str = "one") -> MadeImage:
    """Return an image with `content` as its index.html."""
    return make_image({"index.html": content.encode()})


@attrs.define
class Stand:
    """A ref store and everything below it."""

    space: BlobSpace
    source: MemorySource
    store: RefStore
    clock: Clock
    metrics: Metrics
    rules: dict[Repository, RepositoryRules]
    """Rules of particular repositories; all others are listed and have the defaults."""
    provided: list[Repository]
    """The repositories for which a source was requested."""

    def ask(self, reference: Reference = SITE, read_only: bool = False) -> Deferred[Lease]:
        """Request a lease."""
        return self.store.blob_for(reference, read_only)

    async def read(self, reference: Reference = SITE, read_only: bool = False) -> bytes:
        """Return the index.html of an image."""
        with await self.ask(reference, read_only) as lease:
            return content(lease)

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"blobserve_{name}", labels) or 0.0


def content(lease: Lease) -> bytes:
    """Return the index.html of a lease."""
    entry = lease.filesystem.lookup(b"index.html")
    return lease.filesystem.file(entry).read(0, entry.size)


def now(waiting: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired, or raise its error."""
    results: list[Any] = []
    waiting.addBoth(results.append)
    if not results:
        raise AssertionError("it has not fired")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


@asynccontextmanager
async def standing(
    directory: Path,
    source: MemorySource | None = None,
    clock: Any = None,
    limits: Limits | None = None,
    max_size: int | None = None,
    rules: dict[Repository, RepositoryRules] | None = None,
    threads: Threads | None = None,
    pulls_behind: bool = True,
    wall: Callable[[], float] | None = None,
) -> AsyncIterator[Stand]:
    """Open a ref store on the blob space in `directory`, and close both at the end.

    `wall` returns the time of day; without it, that is the time of `clock`. `clock` may be a
    reactor if `threads` are real ones. Without `pulls_behind` the source never delivers a layer as
    a whole.
    """
    source, clock = source or MemorySource(), clock or Clock()
    limits, metrics, rules = limits or Limits(), Metrics(), {} if rules is None else rules
    provided: list[Repository] = []

    def provide(repository: Repository) -> MemorySource:
        provided.append(repository)
        return source

    threads = threads or InlineThreads()
    bound = BlobSpaceRules(directory, max_size)
    space = BlobSpace(clock, bound, lambda: limits, threads, metrics, wall=wall)
    await space.open()
    store = RefStore(
        space,
        provide,
        lambda name: rules.get(name, RepositoryRules()),
        clock,
        metrics,
        lambda: limits,
        wall,
        lambda name: {Reference.parse(name)},
    )
    if not pulls_behind:
        source.hold("fetch")
    try:
        await store.open()
        yield Stand(space, source, store, clock, metrics, rules, provided)
    finally:
        await store.close()
        await space.close()
