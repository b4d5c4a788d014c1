"""A server in this process for storms, with a look at its disk after every job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from blobserve.config import Config, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.refstore import RefStore
from blobserve.web.site import make_site
from tests.support.services import Door
from tests.support.sites import MemoryLog
from tests.support.source_fixtures import registry_at
from tests.support.spaces import Watched, on_disk, opened, pool


@attrs.frozen
class Storm:
    """A server with a blob space on one thread, and measurements after each of its jobs."""

    door: Door
    store: RefStore
    space: BlobSpace
    metrics: Metrics
    seen: list[int]
    """The bytes that the blob space took on disk after each job."""
    booked: list[int]
    """The bytes that were counted for it just before each of these measurements."""

    def counted(self, name: str) -> float:
        """Return the value of one of the metrics."""
        return self.metrics.registry.get_sample_value(f"blobserve_{name}") or 0.0

    def is_ready(self, digest: Digest) -> bool:
        """Return whether a layer is READY."""
        return self.space.state_of(digest) is BlobState.READY


@asynccontextmanager
async def storming(
    directory: Path, host: str, bound: int, limits: Limits | None = None
) -> AsyncIterator[Storm]:
    """Serve the repositories below ``team`` of the registry at `host`, with a quota of `bound`."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    metrics, limits, seen, booked = Metrics(), limits or Limits(), list[int](), list[int]()
    open_spaces: list[BlobSpace] = []
    config = Config(timeout=30.0, repos={f"{host}/team/*": RepositoryRules()}, limits=limits)
    with pool(1) as thread:

        def look() -> None:
            if open_spaces:
                booked.append(open_spaces[0].size)
                seen.append(on_disk(directory))

        watched = Watched(thread, look)
        async with (
            registry_at(host, metrics=metrics) as registry,
            opened(directory, bound, watched, watched, reactor, metrics) as space,
        ):
            open_spaces.append(space)
            store = RefStore(
                space, lambda _: registry, config.rules_for, reactor, metrics, lambda: limits
            )
            await store.open()
            site = make_site(store, lambda: config, reactor, thread, metrics, MemoryLog())
            port = reactor.listenTCP(0, site, backlog=1024, interface="127.0.0.1")
            try:
                yield Storm(Door(port.getHost().port), store, space, metrics, seen, booked)
            finally:
                await port.stopListening()
                await site.drain(0)
                await store.close()
