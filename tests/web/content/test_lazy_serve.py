"""Files of layers that are read lazily, over HTTP: a service and real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.task import deferLater

from tests.store.lazy.test_lazy_pulls import large
from tests.support.parts.nginx import Nginx
from tests.support.parts.registry import DockerRegistry, redirect
from tests.support.scripted_registry import Answer, Asked, Scripted, cut, listening
from tests.support.services import Running, allowing, configured
from tests.support.services import running as serving
from tests.support.source_fixtures import RigImage, until
from tests.support.within import within
from tests.testdata.toc import NAMES, Layer, retold

LAYERS = {name: Layer.named(name) for name in NAMES}
CHUNKED, CURRENT = LAYERS["chunked.tar.zst"], LAYERS["current.tar.gz"]


def held(asked: Asked, usual: Answer) -> Answer:
    """Answer with a whole blob that never arrives."""
    is_part = "range" in asked.headers
    return usual if is_part else attrs.evolve(usual, sent=0, end="silence")


@attrs.define
class Stand:
    """A service, the registry behind it, and an image there."""

    server: Running
    registry: Scripted
    image: str
    digest: str

    async def get(self, path: str, method: str = "GET", **fields: str) -> Any:
        """Send one request for a file."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        return await self.server.fetch(f"{self.image}/{path}", method, headers)

    @property
    def parts(self) -> list[Asked]:
        """The ranges of blobs that the registry was asked for."""
        return [each for each in self.registry.asked("/blobs/") if "range" in each.headers]

    def release(self) -> None:
        """Let the layer arrive, and reset connections that hold it up."""
        self.registry._script.clear()
        for connection in list(self.registry.connections):
            connection.transport.abortConnection()

    async def ready(self) -> None:
        """Wait until the layer is READY."""
        await until(lambda: self.server.counted("blobserve_pulls_total", outcome="ready"), 20)


@asynccontextmanager
async def standing(
    directory: Path, layer: Layer, is_held: bool = True, rules: Any = None, **own: Any
) -> AsyncIterator[Stand]:
    """Run a service with a registry that holds up the layer but serves its ranges."""
    async with listening() as registry:
        image = layer.image
        reference = registry.push("team/site:v1", image)
        if is_held:
            registry.always("GET /v2/.*/blobs/", held)
        limits = {"publishedIndexMinSize": 1, **own.pop("limits", {})}
        config = allowing(registry.host, rules or {}, limits=limits, **own)
        async with serving(configured(directory, config)) as server:
            yield Stand(server, registry, str(reference), str(image.digest))


@within(30)
@pytest.mark.parametrize("name", NAMES)
async def test_files(name: str, tmp_path: Path) -> None:
    """A lazily read file is answered in the same way as from the READY layer."""
    layer = LAYERS[name]
    async with standing(tmp_path, layer, rules={"codings": []}) as stand:
        early = {path: await stand.get(path) for path in layer.files if "ö" not in path}
        assert {path: each.body for path, each in early.items()} == {
            path: content for path, content in layer.files.items() if "ö" not in path
        }
        assert all(each.status == 200 for each in early.values())
        stand.release()
        await stand.ready()
        for path, each in early.items():
            late = await stand.get(path)
            assert late.status == 200
            varying = {"date"}
            if each.headers["content-type"] == "application/octet-stream":
                # Extraction decides whether a file without a known ending is text.
                varying.add("content-type")
            assert {k: v for k, v in late.headers.items() if k not in varying} == {
                k: v for k, v in each.headers.items() if k not in varying
            }
            assert late.body == each.body


@within(30)
async def test_what_needs_no_bytes(tmp_path: Path) -> None:
    """Conditions, HEAD, redirects and missing files are answered without reading a chunk."""
    async with standing(tmp_path, CURRENT) as stand:
        page = await stand.get("index.html")
        asked = len(stand.parts)
        etag = page.headers["etag"]
        assert (await stand.get("index.html", If_None_Match=etag)).status == 304
        assert (await stand.get("index.html", If_Match='"other"')).status == 412
        assert (await stand.get("assets/large.txt", Range="bytes=999999-")).status == 416
        assert (await stand.get("assets")).status == 301
        assert (await stand.get("nowhere")).status == 404
        head = await stand.get("assets/large.txt", "HEAD")
        assert (head.status, head.headers["content-length"]) == (200, "150000")
        assert (await stand.get("empty.txt")).body == b""
        assert len(stand.parts) == asked


@within(30)
async def test_ranges(tmp_path: Path) -> None:
    """A range of a file causes reads of the chunks in it, and of no others."""
    async with standing(tmp_path, CURRENT) as stand:
        content = CURRENT.files["assets/large.txt"]
        for start, end in ((0, 9), (8190, 8195), (149_990, 149_999), (100, 149_000)):
            answer = await stand.get("assets/large.txt", Range=f"bytes={start}-{end}")
            assert (answer.status, answer.body) == (206, content[start : end + 1])
            assert answer.headers["content-range"] == f"bytes {start}-{end}/150000"


@within(30)
@pytest.mark.parametrize("name", NAMES)
async def test_round_trips(name: str, tmp_path: Path) -> None:
    """With tokens, the first byte of any file in an uncached layer takes five requests."""
    layer = LAYERS[name]
    async with standing(tmp_path, layer) as stand:
        stand.registry.has_tokens = True
        assert (await stand.get("docs/deep/er/")).body == layer.files["docs/deep/er/index.html"]
        whole = [each for each in stand.registry.asked("/blobs/") if "range" not in each.headers]
        assert len(stand.registry.requests) - len(whole) == 5


@within(30)
@pytest.mark.parametrize("name", NAMES)
async def test_round_trips_with_storage(name: str, tmp_path: Path) -> None:
    """With tokens and separate storage, the first byte of any file takes six requests."""
    layer = LAYERS[name]
    async with listening() as storage, listening() as registry:
        storage.hold("team/site", layer.blob)
        storage.always("blobs", held)
        reference = registry.push("team/site:v1", layer.image)
        registry.has_tokens = True

        def elsewhere(asked: Asked, usual: Answer) -> Answer:
            if usual.status not in (200, 206):
                return usual
            return Answer(307).having(location=f"http://{storage.host}{asked.target}")

        registry.always("GET /v2/.*/blobs/", elsewhere)
        config = allowing(registry.host, limits={"publishedIndexMinSize": 1})
        config["registries"][registry.host]["allowHosts"] = [storage.host]
        async with serving(configured(tmp_path, config)) as server:
            answer = await server.fetch(f"{reference}/last.txt")
            assert answer.body == layer.files["last.txt"]
            asked = registry.requests + storage.requests
            whole = [
                each for each in asked if "/blobs/" in each.target and "range" not in each.headers
            ]
            assert len(asked) - len(whole) <= 6


@within(30)
async def test_a_registry_without_ranges(tmp_path: Path) -> None:
    """A registry that answers a range with the whole layer is read as far as needed."""
    async with standing(tmp_path, CHUNKED, is_held=False) as stand:

        def whole(asked: Asked, usual: Answer) -> Answer:
            is_part = "range" in asked.headers
            answer = Answer(body=CHUNKED.blob)
            return answer if is_part else attrs.evolve(answer, sent=0, end="silence")

        stand.registry.always("GET /v2/.*/blobs/sha256", whole)
        assert (await stand.get("last.txt")).body == CHUNKED.files["last.txt"]
        assert stand.server.counted("blobserve_published_indexes_total", outcome="used") == 1


@within(60)
@pytest.mark.parametrize("ranges", ["", "max_ranges 0;"], ids=["ranges", "whole"])
async def test_nginx(ranges: str, tmp_path: Path, part_directory: Any, running: Any) -> None:
    """Storage with ranges and storage without them both serve the requested bytes."""
    directory = part_directory()
    storage = running(Nginx(directory, f"{ranges} root {directory}/storage;"))
    registry = running(DockerRegistry(directory, redirect(f"http://{storage.host}/")))
    registry.put(RigImage.of(CURRENT.image), "team/site:v1")
    config = allowing(registry.host, limits={"publishedIndexMinSize": 1})
    config["registries"][registry.host]["allowHosts"] = [storage.host]
    async with serving(configured(tmp_path, config)) as server:
        answer = await server.fetch(f"{registry.host}/team/site:v1/assets/app.js")
        assert answer.body == CURRENT.files["assets/app.js"]
        assert server.counted("blobserve_published_indexes_total", outcome="used") == 1


@within(60)
async def test_docker_registry(tmp_path: Path, docker_registry: Any) -> None:
    """Every file from a real registry is the same, read lazily or from the layer."""
    for name, layer in LAYERS.items():
        docker_registry.put(RigImage.of(layer.image), f"team/{name.partition('.')[0]}:v1")
    config = allowing(docker_registry.host, limits={"publishedIndexMinSize": 1})
    async with serving(configured(tmp_path, config)) as server:
        for name, layer in LAYERS.items():
            image = f"{docker_registry.host}/team/{name.partition('.')[0]}:v1"
            for path in ("assets/app.js", "last.txt", "copy.js", "static/large.txt"):
                answer = await server.fetch(f"{image}/{path}")
                assert answer.body == layer.files[path.replace("static", "assets")]
        await until(lambda: server.counted("blobserve_pulls_total", outcome="ready") == 4, 20)
        assert server.counted("blobserve_published_indexes_total", outcome="used") == 4


@within(30)
async def test_a_chunk_that_does_not_come(tmp_path: Path) -> None:
    """A first chunk that does not arrive in time is a 503, as for a whole image."""
    async with standing(tmp_path, CURRENT, timeout="1s") as stand:
        assert (await stand.get("index.html")).status == 200
        stand.registry._script.clear()
        stand.registry.always("GET /v2/.*/blobs/", cut(0, "silence"))
        answer = await stand.get("last.txt")
        assert (answer.status, answer.body) == (503, b"timeout")
        assert answer.headers["cache-control"] == "no-store"


def _damaged(layer: Layer, at: int) -> Any:
    """Change one byte in the ranges of a blob."""

    def step(asked: Asked, usual: Answer) -> Answer:
        if "range" not in asked.headers:
            return attrs.evolve(usual, sent=0, end="silence")
        start = int(asked.headers["range"].removeprefix("bytes=").partition("-")[0])
        body = bytearray(usual.body)
        if start <= at < start + len(body):
            body[at - start] ^= 0xFF
        return attrs.evolve(usual, body=bytes(body))

    return step


@within(30)
async def test_a_first_chunk_that_is_wrong(tmp_path: Path) -> None:
    """A file with a wrong first chunk is a 502 with a reason in our words."""
    async with standing(tmp_path, CHUNKED) as stand:
        stand.registry._script.clear()
        stand.registry.always("GET /v2/.*/blobs/", _damaged(CHUNKED, 150))
        answer = await stand.get("index.html")
        assert answer.status == 502
        assert b"wrong content" in answer.body


@within(30)
async def test_a_later_chunk_that_is_wrong(tmp_path: Path) -> None:
    """A response is aborted before a later chunk that is wrong."""
    layer = large(40, 200_000)
    async with standing(tmp_path, layer) as stand:
        stand.registry._script.clear()
        stand.registry.always("GET /v2/.*/blobs/", _damaged(layer, 7_000_000))
        client = await stand.server.begin(f"/{stand.image}/large")
        received = await client.all()
        assert b"200 OK" in received[:20]
        assert b"Content-Length: 8000000" in received
        assert len(received) < 7_100_000
        assert client.ended is not None
        assert client.ended.type.__name__ == "ConnectionLost"


def _false_digest(entries: list[dict[str, Any]]) -> None:
    next(each for each in entries if each["name"] == "assets/holes.bin")["digest"] = (
        "sha256:" + "0" * 64
    )


@within(30)
async def test_a_file_with_another_digest(tmp_path: Path) -> None:
    """A file of right chunks with a wrong digest is never sent completely."""
    async with standing(tmp_path, retold(CURRENT, _false_digest)) as stand:
        client = await stand.server.begin(f"/{stand.image}/assets/holes.bin")
        received = await client.all()
        assert len(received.partition(b"\r\n\r\n")[2]) < 82_000


@within(30)
async def test_rules(tmp_path: Path) -> None:
    """Rewriting, fallbacks and not-found pages work on layers that are read lazily."""
    rules = {
        "replacements": [{"path": "index.html", "search": "published", "replacement": "edited"}],
        "inlineStatic": [{"search": "doctype", "replacement": "${word}"}],
        "notFound": "/last.txt",
        "workdir": "/",
    }
    edited = CURRENT.files["index.html"].replace(b"published", b"edited")
    async with standing(tmp_path, CURRENT, rules=rules) as stand:
        early = await stand.get("index.html")
        assert early.body == edited
        inlined = await stand.get("", X_BlobServe_InlineVars='{"word": "word"}')
        assert inlined.body == edited.replace(b"doctype", b"word")
        missing = await stand.get("nowhere")
        assert (missing.status, missing.body) == (404, CURRENT.files["last.txt"])
        stand.release()
        await stand.ready()
        late = await stand.get("index.html")
        assert {**late.headers, "date": ""} == {**early.headers, "date": ""}
        assert late.body == edited


@within(30)
async def test_views_of_what_is_not_verified_are_not_kept(tmp_path: Path) -> None:
    """A view of a lazily read file that was wrong is not served from the READY layer."""

    def swap(entries: list[dict[str, Any]]) -> None:
        for each in entries:
            if each["name"] in ("index.html", "last.txt"):
                each["name"] = {"index.html": "last.txt", "last.txt": "index.html"}[each["name"]]

    rules = {"replacements": [{"path": "index.html", "search": "l", "replacement": "L"}]}
    async with standing(tmp_path, retold(CURRENT, swap), rules=rules) as stand:
        assert (await stand.get("index.html")).body == b"the Last\n"
        stand.release()
        await stand.ready()
        expected = CURRENT.files["index.html"].replace(b"l", b"L")
        assert (await stand.get("index.html")).body == expected


@within(30)
async def test_read_only(tmp_path: Path) -> None:
    """A read-only request waits for the layer and causes no lazy read."""
    async with standing(tmp_path, CURRENT, timeout="1s") as stand:
        await stand.get("index.html")
        asked = len(stand.parts)
        answer = await stand.get("last.txt", X_BlobServe_ReadOnly="true")
        assert (answer.status, answer.body) == (503, b"timeout")
        assert len(stand.parts) == asked


@within(30)
async def test_clients_that_leave(tmp_path: Path) -> None:
    """A client that leaves in the middle of a file leaves nothing behind."""
    layer = large(40, 200_000)
    async with standing(tmp_path, layer) as stand:
        client = await stand.server.begin(f"/{stand.image}/large")
        await client.some(100_000)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await until(lambda: not stand.server.counted("blobserve_requests_in_flight"))
        cache = stand.server.service._store._pulls._indexes._cache
        assert cache.held == 0


@within(30)
async def test_draining(tmp_path: Path) -> None:
    """A server that stops aborts lazy reads and does not wait for them."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    layer = large(40, 200_000)
    async with standing(tmp_path, layer) as stand:
        client = await stand.server.begin(f"/{stand.image}/large")
        await client.some(100_000)
        client.transport.pauseProducing()  # type: ignore[union-attr]
        await deferLater(reactor, 0.1)
        stand.registry._script.clear()
        stand.registry.always("GET /v2/.*/blobs/", cut(0, "silence"))
        stopping = stand.server.service.stopService()
        client.transport.resumeProducing()  # type: ignore[union-attr]
        received = await client.all()
        assert len(received) < len(layer.blob)
        await stopping.addTimeout(5, reactor)


@within(30)
async def test_many_at_once(tmp_path: Path) -> None:
    """Concurrent requests for a file read it once."""
    async with standing(tmp_path, CURRENT) as stand:
        await stand.get("index.html")
        before = len(stand.parts)
        answers = await stand.server.fetch_all(*[f"{stand.image}/assets/large.txt"] * 20)
        assert all(each.body == CURRENT.files["assets/large.txt"] for each in answers)
        assert len(stand.parts) == before + 1
