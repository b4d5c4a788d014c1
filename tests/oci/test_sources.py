"""Which source a repository's images come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from blobserve.configfile import load
from blobserve.errors import ImageNotFound, RegistryRefused
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference, Repository
from blobserve.oci.local.layout import Layout
from blobserve.oci.sources import Sources, SourceThreads
from blobserve.testing import InlineThreads
from tests.support.within import within

AUTH = '{"auths": {"%s": {"auth": "cmVhZGVyOnNlY3JldA=="}}}'


class Answering(Resource):
    """A registry that gives every request the same status, and notes who asked."""

    isLeaf = True  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self.status = 404
        self.authorizations: list[str | None] = []

    def render(self, request: Request) -> bytes:
        """Answer."""
        self.authorizations.append(request.getHeader("authorization"))
        request.setResponseCode(self.status)
        request.setHeader("WWW-Authenticate", 'Basic realm="r"')
        return b""


class Stand:
    """A registry on loopback, and the sources of a configuration that names it."""

    def __init__(self, tmp_path: Path) -> None:
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        self.reactor: Any = reactor
        self.registry = Answering()
        self.port = self.reactor.listenTCP(0, Site(self.registry), interface="127.0.0.1")
        self.name = f"127.0.0.1:{self.port.getHost().port}"
        self.auth = tmp_path / "auth.json"
        self.auth.write_text(AUTH % self.name)
        threads = SourceThreads(*[InlineThreads() for _ in range(4)])
        self.sources = Sources(self.reactor, self.config(), threads, Metrics())

    def config(self, **more: Any) -> Any:
        """A configuration that lists one repository, and allows every other."""
        own = {
            "allowAnyRepo": True,
            "repos": {f"{self.name}/listed": {}},
            "registries": {self.name: {"insecure": True, "allowAnyRepo": True}},
            **more,
        }
        return load({"blobserve": own, "dockerAuth": self.auth})

    async def resolve(self, path: str) -> None:
        """Ask for an image."""
        reference = Reference.parse(f"{self.name}/{path}:v1")
        await self.sources.for_repository(reference.repository).resolve(reference)

    async def stop(self) -> None:
        """Close everything."""
        await self.sources.close()
        await self.port.stopListening()


@within(30)
async def test_unlisted_repositories_are_asked_for_anonymously(tmp_path: Path) -> None:
    """Our credentials are used for listed repositories and for no others."""
    stand = Stand(tmp_path)
    stand.registry.status = 401
    with pytest.raises(RegistryRefused):
        await stand.resolve("listed")
    assert stand.registry.authorizations[-1] == "Basic cmVhZGVyOnNlY3JldA=="
    stand.registry.authorizations.clear()
    with pytest.raises(RegistryRefused):
        await stand.resolve("other")
    assert set(stand.registry.authorizations) == {None}
    await stand.stop()


@within(30)
async def test_a_reload_changes_credentials_and_registries(tmp_path: Path) -> None:
    """After a reload a source has the credentials and the rules of the new configuration."""
    stand = Stand(tmp_path)
    stand.registry.status = 401
    stand.auth = tmp_path / "other.json"
    stand.auth.write_text(AUTH % "elsewhere.example")
    stand.sources.reload(stand.config())
    with pytest.raises(RegistryRefused):
        await stand.resolve("listed")
    assert set(stand.registry.authorizations) == {None}
    await stand.stop()


@within(30)
async def test_health_shows_how_registries_answered(tmp_path: Path) -> None:
    """Each registry is shown with its last answer; that an image does not exist is a good one."""
    stand = Stand(tmp_path)
    assert stand.sources.health() == {}
    with pytest.raises(ImageNotFound):
        await stand.resolve("listed")
    [(name, shown)] = stand.sources.health().items()
    assert name == stand.name
    assert isinstance(shown, dict)
    assert shown["last"] == "ok"
    stand.registry.status = 403
    with pytest.raises(RegistryRefused):
        await stand.resolve("listed")
    assert f"registry refused access to {stand.name}/listed" in str(stand.sources.health())
    await stand.stop()


@within(30)
async def test_a_layout_instead_of_a_registry(tmp_path: Path) -> None:
    """A repository with `source` has its images from that directory."""
    stand = Stand(tmp_path)
    (tmp_path / "index.json").touch()
    repos = {f"{stand.name}/here": {"source": f"oci:{tmp_path}"}}
    stand.sources.reload(stand.config(repos=repos))
    source = stand.sources.for_repository(Repository.parse(f"{stand.name}/here"))
    assert isinstance(source, Layout)
    await stand.stop()
