"""The contract suite, run on each source."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Limits
from blobserve.names.reference import Reference
from blobserve.oci.local.directory import LayoutDirectory
from blobserve.oci.local.docker_archive import DockerArchive
from blobserve.oci.local.layout import Layout
from blobserve.oci.local.oci_archive import OciArchive
from blobserve.store.unpacker import Unpacker
from blobserve.testing import MadeImage, MemorySource
from tests.oci.source_contract import SourceContract
from tests.support.parts.archives import packed, saved_of_old
from tests.support.parts.images import write_layout
from tests.support.scripted_registry import listening
from tests.support.source_fixtures import RigImage, registry_at
from tests.support.spaces import opened

SITE = Reference.parse("registry.example/team/site:v1")


class TestMemorySource(SourceContract):
    """The fake."""

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        source = MemorySource()
        source.push(SITE, image)
        yield source, SITE


class TestScriptedRegistry(SourceContract):
    """The client with a scripted registry."""

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        async with listening() as scripted, registry_at(scripted.host) as registry:
            yield registry, scripted.push("team/site:v1", image)


class TestDockerRegistry(SourceContract):
    """The client with Debian's docker-registry."""

    @pytest.fixture(autouse=True)
    def _start(self, docker_registry: Any) -> None:
        self.real = docker_registry

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        self.real.put(RigImage.of(image), "team/site:v1")
        async with registry_at(self.real.host) as registry:
            yield registry, Reference.parse(f"{self.real.host}/team/site:v1")


class TestLayout(SourceContract):
    """A directory."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        write_layout(self.directory, {"v1": RigImage.of(image)})
        threads = OwnThreads(reactor, 2, "layout")
        threads.start()
        try:
            yield Layout(LayoutDirectory(self.directory), threads), SITE
        finally:
            threads.stop()


class Kept(SourceContract):
    """The base class of archives."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    @asynccontextmanager
    async def threads(self) -> AsyncIterator[OwnThreads]:
        """Run real threads."""
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        threads = OwnThreads(reactor, 2, "archive")
        threads.start()
        try:
            yield threads
        finally:
            threads.stop()


class TestOciArchive(Kept):
    """A layout in a tar file."""

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        layout = write_layout(self.directory / "layout", {"v1": RigImage.of(image)})
        archive = self.directory / "archive.tar"
        archive.write_bytes(packed(layout))
        async with self.threads() as threads:
            yield Layout(OciArchive(archive, threads, Limits()), threads), SITE


class TestDockerArchive(Kept):
    """The format of `docker save`, with the manifest that is made from it."""

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        archive = self.directory / "archive.tar"
        layers = [image.blobs[layer.digest] for layer in image.layers]
        archive.write_bytes(saved_of_old({"site:v1": layers}))
        async with self.threads() as threads:
            yield Layout(DockerArchive(archive, threads, Limits()), threads), SITE


class TestCompressedArchive(Kept):
    """A layout in a tar file that is compressed as a whole."""

    @asynccontextmanager
    async def holding(self, image: MadeImage) -> AsyncIterator[Any]:
        """See `SourceContract.holding`."""
        layout = write_layout(self.directory / "layout", {"v1": RigImage.of(image)})
        archive = self.directory / "archive.tar.gz"
        archive.write_bytes(gzip.compress(packed(layout), 1))
        async with (
            self.threads() as threads,
            opened(self.directory / "space", None, threads) as space,
        ):
            unpack = Unpacker(space, Limits, Clock()).unpack
            files = OciArchive(archive, threads, Limits(), unpack=unpack)
            yield Layout(files, threads), SITE
            await files.close()
