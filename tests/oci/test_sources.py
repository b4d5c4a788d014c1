"""The source of a repository's images."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Request as WebRequest
from twisted.web.server import Site

from blobserve.config import Limits
from blobserve.configfile import load
from blobserve.errors import AddressRefused, ImageNotFound, RegistryRefused, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference, Repository
from blobserve.oci.http.address_rules import AddressRules
from blobserve.oci.http.client import Client
from blobserve.oci.http.endpoints import Endpoints, Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.http.response import Request
from blobserve.oci.local.layout import Layout
from blobserve.oci.sources import Sources, SourceThreads
from blobserve.testing import InlineThreads, make_image
from tests.support.scripted_registry import listening, status
from tests.support.source_fixtures import Sink, until
from tests.support.within import within

IMAGE = make_image({"noise": random.Random(0).randbytes(1 << 24)})
AUTH = '{"auths": {"%s": {"auth": "cmVhZGVyOnNlY3JldA=="}}}'


class Answering(Resource):
    """A registry that answers each request with one status and records the Authorization header."""

    isLeaf = True  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self.status = 404
        self.authorizations: list[str | None] = []

    def render(self, request: WebRequest) -> bytes:
        """Answer with the status."""
        self.authorizations.append(request.getHeader("authorization"))
        request.setResponseCode(self.status)
        request.setHeader("WWW-Authenticate", 'Basic realm="r"')
        return b""


class Stand:
    """A registry on loopback, and the sources of a configuration with it."""

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
        """Return a configuration that lists one repository and allows all others."""
        own = {
            "allowAnyRepo": True,
            "repos": {f"{self.name}/listed": {}},
            "registries": {self.name: {"insecure": True, "allowAnyRepo": True}},
            **more,
        }
        return load({"blobserve": own, "dockerAuth": self.auth})

    async def resolve(self, path: str) -> None:
        """Resolve an image."""
        reference = Reference.parse(f"{self.name}/{path}:v1")
        await self.sources.for_repository(reference.repository).resolve(reference)

    async def resolve_at(self, repository: str) -> None:
        """Resolve an image of a repository at any registry."""
        reference = Reference.parse(f"{repository}:v1")
        await self.sources.for_repository(reference.repository).resolve(reference)

    async def resolve_none(self, path: str) -> None:
        """Resolve an image that does not exist."""
        with pytest.raises(ImageNotFound):
            await self.resolve(path)

    async def stop(self) -> None:
        """Close everything."""
        await self.sources.close()
        await self.port.stopListening()


@within(30)
async def test_unlisted_repositories_are_asked_for_anonymously(tmp_path: Path) -> None:
    """Credentials are used for listed repositories alone."""
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
    """A reload changes the credentials and rules of a source."""
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
    """Each registry is shown with its last answer, and a missing image counts as a good one."""
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
async def test_a_reload_leaves_no_connections(tmp_path: Path) -> None:
    """After a reload a retired registry keeps only the connections of running pulls.

    Such a pull ends successfully, over these connections and new ones.
    """
    async with listening() as scripted:
        stand = Stand(tmp_path)
        stand.name = scripted.host
        tagged = scripted.push("listed:v1", IMAGE)
        layer = IMAGE.layers[0]
        stand.sources.reload(stand.config())
        source = stand.sources.for_repository(tagged.repository)
        sink = Sink(pause_at=1)
        pulling = Deferred.fromCoroutine(source.fetch(tagged.repository, layer, sink))
        await sink.has(1)
        await source.resolve(tagged)
        assert len(scripted.connections) == 2
        stand.sources.reload(stand.config())
        await until(lambda: len(scripted.connections) == 1)
        sink.flow()
        await pulling
        assert sink.content == IMAGE.blobs[layer.digest]
        await until(lambda: not scripted.connections)
        assert (await source.resolve(tagged)).digest == IMAGE.digest
        await until(lambda: not scripted.connections)
        registry = weakref.ref(source._registry)  # type: ignore[attr-defined]
        assert registry() in stand.sources._retired
        del source, pulling
        gc.collect()
        assert registry() is None
        await stand.stop()


@within(30)
async def test_the_end_of_a_pull_from_a_retired_registry(tmp_path: Path) -> None:
    """A pull that began before a reload is ended with the sources."""
    async with listening() as scripted:
        stand = Stand(tmp_path)
        stand.name = scripted.host
        tagged = scripted.push("listed:v1", IMAGE)
        stand.sources.reload(stand.config())
        source = stand.sources.for_repository(tagged.repository)
        sink = Sink(pause_at=1)
        pulling = Deferred.fromCoroutine(source.fetch(tagged.repository, IMAGE.layers[0], sink))
        await sink.has(1)
        stand.sources.reload(stand.config())
        await stand.stop()
        with pytest.raises(StoreClosed):
            await pulling
        await until(lambda: not scripted.connections)


@within(60)
@pytest.mark.usefixtures("inward")
async def test_registries_that_are_not_listed_are_bounded(tmp_path: Path) -> None:
    """The number of unlisted registries is bounded by sixty-four, the last used ones."""
    stand = Stand(tmp_path)
    await stand.resolve_none("listed")
    for n in range(70):
        with pytest.raises(AddressRefused):
            await stand.resolve_at(f"h{n}.example/any")
        with pytest.raises(AddressRefused):
            await stand.resolve_at("h0.example/any")
    shown = stand.sources.health()
    kept = {f"h{n}.example" for n in (0, *range(7, 70))}
    assert set(shown) == {stand.name, *kept}
    assert len(stand.sources._unlisted) == 64
    await stand.stop()


@within(60)
async def test_labels_of_statuses_are_bounded() -> None:
    """A registry that sends any statuses causes a bounded number of labels."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    metrics, threads = Metrics(), InlineThreads()
    async with listening() as scripted:
        rules = AddressRules(scripted.host, frozenset({scripted.host}))
        endpoints = Endpoints(reactor, rules, None, threads, Routes(Names(reactor, threads)), 5.0)
        client = Client(reactor, rules, endpoints, Limits(), metrics, "tests")
        for code in range(200, 1000, 2):
            scripted.script("/", status(code))
            request = Request("GET", f"http://{scripted.host}/", is_followed=False)
            await (await client.ask(request)).discard()
        await client.close()
    labels = {
        sample.labels["code"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if family.name == "http_client_requests"
    }
    assert {"200", "404", "2xx", "5xx", "other"} <= labels
    assert len(labels) < 70


@within(30)
async def test_a_layout_instead_of_a_registry(tmp_path: Path) -> None:
    """The images of a repository with `source` come from that directory."""
    stand = Stand(tmp_path)
    (tmp_path / "index.json").touch()
    repos = {f"{stand.name}/here": {"source": f"oci:{tmp_path}"}}
    stand.sources.reload(stand.config(repos=repos))
    source = stand.sources.for_repository(Repository.parse(f"{stand.name}/here"))
    assert isinstance(source, Layout)
    await stand.stop()
