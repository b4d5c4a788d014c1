"""Blob spaces in temporary directories, and layers for them."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.concurrency.threads import OwnThreads, Threads
from blobserve.config import KIB, BlobSpaceRules, Limits
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.oci.manifest import Descriptor
from blobserve.store.blobspace import BlobSpace
from blobserve.testing import InlineThreads
from tests.support.layers import Compression, File, descriptor, layer

P = ParamSpec("P")
T = TypeVar("T")


@attrs.frozen
class Made:
    """A layer blob of one file, ``index.html``."""

    blob: bytes = attrs.field(repr=False)
    descriptor: Descriptor

    @property
    def digest(self) -> Digest:
        """The digest of the compressed bytes."""
        return self.descriptor.digest


def made(
    seed: int,
    size: int = 100 * KIB,
    content: bytes | None = None,
    compression: Compression = "gzip",
) -> Made:
    """Return a layer with the file `content`, or with `size` random bytes."""
    body = random.Random(seed).randbytes(size) if content is None else content
    blob = layer([File(b"index.html", body)], compression)
    return Made(blob, descriptor(blob, compression))


async def take_in(space: BlobSpace, layer: Made, step: int = 64 * KIB) -> None:
    """Ingest a layer; an ingest that fails is removed before the error is raised."""
    ingest = await space.ingest(layer.descriptor)
    ingest.failure.addErrback(lambda _: None)
    for at in range(0, len(layer.blob), step):
        ingest.write(layer.blob[at : at + step])
    await ingest.finish()


def read(space: BlobSpace, digest: Digest) -> bytes:
    """Return the file of a READY layer."""
    blob = space.blobs.acquire(digest)
    assert blob is not None
    try:
        return blob.filesystem.file(blob.filesystem.lookup(b"index.html")).read(0, 1 << 30)
    finally:
        blob.release()


@asynccontextmanager
async def opened(
    location: Path,
    max_size: int | None = None,
    threads: Threads | None = None,
    disk: Threads | None = None,
    reactor: Any = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[BlobSpace]:
    """Open a blob space, by default with inline threads and a clock that stands still."""
    space = BlobSpace(
        reactor or Clock(),
        BlobSpaceRules(location, max_size),
        Limits,
        threads or InlineThreads(),
        metrics or Metrics(),
        disk or InlineThreads(),
    )
    await space.open()
    try:
        yield space
    finally:
        await space.close()


@contextmanager
def pool(size: int = 2) -> Iterator[OwnThreads]:
    """Start a pool of real threads."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    threads = OwnThreads(reactor, size, "test")  # type: ignore[arg-type]
    threads.start()
    try:
        yield threads
    finally:
        threads.stop()


def on_disk(location: Path) -> int:
    """Return the size of a directory in blocks of 4 KiB, sparse files counted in full."""
    blocks = 0
    for directory, _, files in os.walk(location):
        for name in (".", *files):
            with suppress(FileNotFoundError):  # another thread may remove it meanwhile
                blocks += -(-os.lstat(os.path.join(directory, name)).st_size // 4096)
    return blocks * 4096


def names_in(location: Path, where: str) -> list[str]:
    """Return the sorted names in a directory of the blob space."""
    return sorted(os.listdir(location / where))


class Watched:
    """Threads that call `look` after every job, in the same thread."""

    def __init__(self, threads: Threads, look: Callable[[], None]) -> None:
        self._threads = threads
        self._look = look

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See `Threads.run`."""

        def job() -> T:
            try:
                return f(*args, **kwargs)
            finally:
                self._look()

        return self._threads.run(job)

    def soon(self, f: Callable[[], None]) -> None:
        """See `Threads.soon`."""
        self._threads.soon(f)


class Held:
    """Threads that hold their jobs until the test runs them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Callable[[], object]]] = []
        """The waiting jobs: the names of their functions, and their calls."""

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See `Threads.run`."""
        done: Deferred[T] = Deferred()
        name = getattr(getattr(f, "func", f), "__name__", "")
        self.jobs.append(
            (name, lambda: InlineThreads().run(f, *args, **kwargs).chainDeferred(done))
        )
        return done

    def soon(self, f: Callable[[], None]) -> None:
        """See `Threads.soon`; the function is called at once."""
        f()

    def go(self) -> None:
        """Run the next job."""
        _, call = self.jobs.pop(0)
        call()

    def go_on_until(self, name: str) -> None:
        """Run all jobs before the next call of `name`, new ones included."""
        while self.jobs[0][0] != name:
            self.go()

    def go_all(self) -> None:
        """Run all jobs, new ones included."""
        while self.jobs:
            self.go()
