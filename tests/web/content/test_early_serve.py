"""``earlyServe`` over sockets: answers before an image is READY, and the end of its pull."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from blobserve.config import KIB, MIB, InlineVariable, Replacement
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.testing.source import Gate
from tests.support.layers import Directory, Entry, File, Symlink, tar
from tests.support.parts.faults import Fault, faulty
from tests.support.parts.images import Files, Image, Layer, Link
from tests.support.parts.registry import DockerRegistry
from tests.support.services import allowing, configured, running
from tests.support.sites import TAG, Client, Response, Serving, packed, serving
from tests.support.source_fixtures import until
from tests.support.within import within
from tests.web.content.test_lazy_serve import CHUNKED, standing

NOISE = random.Random(3).randbytes(12 * MIB)
LARGE = NOISE[: 11 * MIB]
"""More bytes than sockets can buffer."""

SITE: Files = {
    "index.html": b"<html>early</html>",
    "app.js": b"0123456789",
    "empty.txt": b"",
    "docs/index.html": b"docs",
    "link.js": Link("app.js"),
    "way": Link("docs"),
}
REST: Files = {"rest.bin": NOISE[: 600 * KIB], "late.txt": b"late"}


@attrs.define
class Early:
    """A site with one image, which is being pulled, with its layer held in the middle."""

    site: Serving
    gate: Gate
    by_digest: str
    pull: Deferred[Response]
    """The answer to a request that waits for the whole layer."""

    async def fetch(self, path: str, method: str = "GET", **headers: str) -> Response:
        """Send one request for a file of the image."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.site.fetch(f"/{TAG}{path}", method, named)

    async def begin(self, path: str) -> Client:
        """Send a request; the caller reads the answer."""
        client = await self.site.connect()
        client.send(f"GET /{TAG}{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        return client

    async def waits(self, path: str) -> Client:
        """Send a request that is not answered yet."""
        client, waiting = await self.begin(path), self.in_flight
        await until(lambda: self.in_flight > waiting or bool(client.received))
        for _ in range(3):
            await self.site.turn()
        assert client.received == b""
        return client

    @property
    def in_flight(self) -> float:
        """Return the number of requests in flight."""
        value = self.site.metrics.registry.get_sample_value("blobserve_requests_in_flight")
        return value or 0.0

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        name = f"blobserve_early_{name}_total"
        return self.site.metrics.registry.get_sample_value(name, labels) or 0.0

    async def ready(self) -> Response:
        """Let the whole layer arrive; return the answer to the request that waited for it."""
        self.gate.open()
        return await self.pull


@asynccontextmanager
async def early(
    directory: Path,
    image: Image | None = None,
    after: float = 0.5,
    corrupt: int | None = None,
    rules: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Early]:
    """Run a site with a running pull of an image, after a share or number of its bytes.

    `after` says how much of the layer has arrived. Byte `corrupt`, counted from the end, is changed
    in each download.
    """
    async with serving(directory, **config) as site:
        site.rule(early_serve=True, **(rules or {}))
        image = image or Image.of({**SITE, **REST}, "none")
        made = packed(image)
        by_digest = str(site.source.push(Reference.parse(TAG), made))
        blob, digest = image.layers[0].blob, Digest.parse(image.layers[0].digest)
        if corrupt is not None:
            site.source.corrupt(digest, 9, len(blob) - corrupt)
        gate = site.source.hold("fetch", int(after if after > 1 else after * len(blob)))
        # A directory without a slash is answered by a READY image only.
        pull = Deferred.fromCoroutine(site.fetch(f"/{TAG}"))
        await until(lambda: gate.waiting > 0)
        try:
            yield Early(site, gate, by_digest, pull)
        finally:
            gate.open()
            await pull


@within(20)
async def test_answered_before_ready(tmp_path: Path) -> None:
    """A file that has arrived is answered at once with 200, no-store and no validator."""
    async with early(tmp_path) as pulled:
        answer = await pulled.fetch("/app.js")
        assert (answer.status, answer.body) == (200, b"0123456789")
        del answer.headers["date"]
        assert answer.headers == {
            "server": "blobserve",
            "connection": "close",
            "content-type": "text/javascript; charset=utf-8",
            "content-length": "10",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        }
        head = await pulled.fetch("/app.js", "HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "10")
        for path, content in {
            "/": b"<html>early</html>",
            "/index.html": b"<html>early</html>",
            "/docs/": b"docs",
            "/empty.txt": b"",
            "//./app.js": b"0123456789",
            "/docs/index.htm%6C": b"docs",
        }.items():
            assert (await pulled.fetch(path)).body == content, path
        assert not pulled.pull.called
        assert [line.cache for line in pulled.site.log] == ["early"] * 8
        assert str(pulled.site.log[0].digest) == pulled.by_digest.partition("@")[2]
        assert pulled.counted("served") == 8
        assert (await pulled.ready()).status == 301
        after = await pulled.fetch("/app.js")
        assert (after.headers["cache-control"], "etag" in after.headers) != ("no-store", False)
        assert after.body == b"0123456789"


@within(20)
async def test_ranges_and_conditions(tmp_path: Path) -> None:
    """Ranges and conditions are ignored for a file without validators, which gets a whole 200."""
    async with early(tmp_path) as pulled:
        for headers in (
            {"Range": "bytes=2-3"},
            {"If_None_Match": "*"},
            {"If_Match": '"x"'},
            {"If_Modified_Since": "Sun, 13 Sep 2030 12:26:40 GMT"},
            {"If_Unmodified_Since": "Sun, 13 Sep 2010 12:26:40 GMT"},
            {"Range": "bytes=99-", "If_Range": '"x"'},
            {"Accept_Encoding": "gzip, zstd, br"},
        ):
            answer = await pulled.fetch("/app.js", **headers)
            assert (answer.status, answer.body) == (200, b"0123456789"), headers
            assert "content-encoding" not in answer.headers


@within(20)
async def test_by_digest(tmp_path: Path) -> None:
    """An early answer is not cacheable, even under a digest or an immutable tag."""
    async with early(tmp_path, rules={"immutable_tags": ("v*",)}) as pulled:
        assert (await pulled.fetch("/app.js")).headers["cache-control"] == "no-store"
        target = f"/{pulled.by_digest}/app.js"
        answer = await pulled.site.fetch(target)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


@within(20)
async def test_who_comes_first_waits(tmp_path: Path) -> None:
    """A request for a file that has not arrived waits, and is answered when it has."""
    image = Image.of({"first": b"1", **SITE, **REST}, "none")
    async with early(tmp_path, image, after=600) as pulled:
        waiting = await pulled.waits("/late.txt")
        gone = await pulled.waits("/nowhere.txt")
        pulled.gate.open()
        assert (await waiting.some(10)).startswith(b"HTTP/1.1 200 ")
        assert (await gone.some(10)).startswith(b"HTTP/1.1 404 ")
        waiting.transport.abortConnection()
        gone.transport.abortConnection()


@within(20)
async def test_waits_to_the_end(tmp_path: Path) -> None:
    """Links, directories without a slash and missing files are answered by the READY image."""
    async with early(tmp_path, rules={"fallback": "/index.html"}) as pulled:
        waiting = {
            path: await pulled.waits(path)
            for path in ("/link.js", "/way/", "/docs", "/none.js", "/app/route", "/app.js/")
        }
        assert (await pulled.fetch("/app.js")).status == 200
        await pulled.ready()
        statuses = {path: (await client.some(12))[9:12] for path, client in waiting.items()}
        assert statuses == {
            "/link.js": b"200",
            "/way/": b"200",
            "/docs": b"301",
            "/none.js": b"404",
            "/app/route": b"200",
            "/app.js/": b"404",
        }
        for client in waiting.values():
            assert b"no-store" not in client.received or b" 404 " in client.received
            client.transport.abortConnection()


@within(20)
async def test_timeout(tmp_path: Path) -> None:
    """A request for a file that does not arrive in time gets a 503, and the pull goes on."""
    async with early(tmp_path, timeout=0.2) as pulled:
        answer = await pulled.fetch("/late.txt")
        assert (answer.status, answer.body) == (503, b"timeout")
        assert (await pulled.fetch("/app.js")).status == 200


@within(20)
async def test_rules_that_change_bytes(tmp_path: Path) -> None:
    """A file that a rewriting rule or inline variables would change is not served early."""
    rules = {
        "replacements": (Replacement("/app.js", "0", "X"),),
        "inline_static": (InlineVariable("early", "${ide}"),),
    }
    async with early(tmp_path, rules=rules) as pulled:
        rewritten, inlined = await pulled.waits("/app.js"), await pulled.waits("/")
        await pulled.ready()
        assert (await rewritten.some(200)).endswith(b"X123456789")
        assert b"vary: x-blobserve-inlinevars" in (await inlined.some(200)).lower()
        for client in (rewritten, inlined):
            client.transport.abortConnection()


@within(20)
async def test_workdir_and_headers(tmp_path: Path) -> None:
    """Paths are below the workdir; configured headers are sent, except those for caching."""
    rules = {
        "workdir": "/docs",
        "headers": (
            ("X-Own", "1"),
            ("Cache-Control", "public, max-age=9"),
            ("CDN-Cache-Control", "max-age=9"),
            ("Surrogate-Control", "max-age=9"),
        ),
    }
    async with early(tmp_path, rules=rules) as pulled:
        answer = await pulled.fetch("/index.html")
        assert (answer.body, answer.headers["x-own"]) == (b"docs", "1")
        assert answer.headers["cache-control"] == "no-store"
        assert not {"cdn-cache-control", "surrogate-control"} & answer.headers.keys()
        await pulled.ready()
        answer = await pulled.fetch("/index.html")
        assert answer.headers["cache-control"] == "public, max-age=9"
        assert answer.headers["cdn-cache-control"] == "max-age=9"


@within(20)
async def test_only_where_it_is_wanted(tmp_path: Path) -> None:
    """Without `earlyServe: true` no file is served before its layer is READY."""
    async with early(tmp_path) as pulled:
        pulled.site.rule()
        client = await pulled.waits("/app.js")
        pulled.site.rule(early_serve=True)
        await pulled.ready()
        assert b"etag" in (await client.some(200)).lower()
        client.transport.abortConnection()
        assert pulled.counted("served") == 0


@within(20)
async def test_the_first_of_several_layers(tmp_path: Path) -> None:
    """The first layer of several is served early if it alone is served."""
    image = Image((Layer.of({**SITE, **REST}, "none"), Layer.of({"app.js": b"later"})))
    async with early(tmp_path, image) as pulled:
        assert (await pulled.fetch("/app.js")).body == b"0123456789"


@within(20)
async def test_all_of_several_layers(tmp_path: Path) -> None:
    """No file is served early if several layers are served, since an upper one may replace it."""
    image = Image((Layer.of({**SITE, **REST}, "none"), Layer.of({"app.js": b"later"}, "none")))
    async with early(tmp_path, image, rules={"layers": "all"}) as pulled:
        client = await pulled.waits("/app.js")
        await pulled.ready()
        assert (await client.some(200)).endswith(b"later")
        assert pulled.counted("served") == 0
        client.transport.abortConnection()


@within(20)
async def test_all_of_one_layer(tmp_path: Path) -> None:
    """A file of an image with one layer is served early for any `layers`."""
    async with early(tmp_path, rules={"layers": "all"}) as pulled:
        assert (await pulled.fetch("/app.js")).headers["cache-control"] == "no-store"


@within(20)
async def test_read_only(tmp_path: Path) -> None:
    """A read-only request gets an early file from a running pull."""
    async with early(tmp_path) as pulled:
        answer = await pulled.fetch("/app.js", X_BlobServe_ReadOnly="true")
        assert answer.status == 200


@within(20)
async def test_a_tag_that_moves(tmp_path: Path) -> None:
    """While the new image of a tag is pulled, the old READY one is served, and nothing early."""
    async with serving(tmp_path) as site:
        site.rule(early_serve=True, tag_max_age=0.0)
        site.push({"app.js": b"old"})
        assert (await site.fetch(f"/{TAG}/app.js")).body == b"old"
        site.push({"app.js": b"new", **REST})
        gate = site.source.hold("fetch", 300 * KIB)
        for _ in range(3):
            answer = await site.fetch(f"/{TAG}/app.js")
            assert (answer.body, "etag" in answer.headers) == (b"old", True)
        assert gate.waiting == 1
        gate.open()
        await until(lambda: site.store.references.switches > 0)
        assert (await site.fetch(f"/{TAG}/app.js")).body == b"new"


def tar_image(*entries: Entry) -> Image:
    """Return an image of one uncompressed layer with these entries."""
    return Image((Layer.of_tar(tar(entries), "none"),))


def stalled(client: Client) -> None:
    """Make a client stop reading."""
    client.transport.pauseProducing()


async def running_response(pulled: Early, path: str = "/d/large") -> Client:
    """Begin a response to a client that does not read on."""
    client = await pulled.begin(path)
    await client.some(1000)
    stalled(client)
    return client


async def aborted(client: Client) -> bool:
    """Return whether a connection was reset before its response was complete."""
    client.transport.resumeProducing()
    received = await client.all()
    assert client.ended is not None
    return len(received) < len(LARGE) and not client.ended.check(ConnectionDone)


@within(30)
async def test_a_mismatch_aborts(tmp_path: Path) -> None:
    """A layer with a wrong digest resets responses from it, and is not stored."""
    image = tar_image(File(b"d/large", LARGE), File(b"rest", NOISE[: 600 * KIB]))
    async with early(tmp_path, image, 0.95, corrupt=300 * KIB) as pulled:
        client = await running_response(pulled)
        assert (await pulled.fetch("/d/large", "HEAD")).status == 200
        assert (await pulled.ready()).status == 502
        assert await aborted(client)
        # The second download is not held, so that only the first one served a file.
        assert pulled.counted("aborted", reason="damaged") == 1
        assert pulled.counted("unconfirmed", reason="damaged") == 1
        assert [*tmp_path.rglob("content"), *tmp_path.glob("space/ingest/*")] == []
        line = pulled.site.log[-1]
        assert ("early", 200) in [(line.cache, line.status) for line in pulled.site.log]
        assert line.sent < len(LARGE)


OVERTAKING = {
    "file": [File(b"d/large", b"small")],
    "parent a link": [Symlink(b"d", b"e")],
    "directory replaced": [File(b"d", b"")],
    "directory in its place": [Directory(b"d/large")],
}


@within(60)
async def test_overtaken(tmp_path: Path) -> None:
    """A response is reset if a later entry of the layer replaces its file or a parent of it."""
    for number, (name, later) in enumerate(OVERTAKING.items()):
        image = tar_image(File(b"d/large", LARGE), *later, File(b"rest", NOISE[: 600 * KIB]))
        directory = tmp_path / str(number)
        directory.mkdir()
        async with early(directory, image, len(LARGE) + 600) as pulled:
            client = await running_response(pulled)
            assert (await pulled.ready()).status == 301, name
            assert await aborted(client), name
            assert pulled.counted("aborted", reason="overtaken") == 1, name


@within(30)
async def test_sent_on_when_ready(tmp_path: Path) -> None:
    """A response that is running when its layer becomes READY goes on to its end."""
    later = [File(b"d/.wh.large"), File(b".wh.d"), Directory(b"d")]
    image = tar_image(File(b"d/large", LARGE), *later, File(b"rest", NOISE[: 600 * KIB]))
    async with early(tmp_path, image, len(LARGE) + 600) as pulled:
        client = await running_response(pulled)
        await pulled.ready()
        client.transport.resumeProducing()
        head, _, _ = (await client.some(len(LARGE))).partition(b"\r\n\r\n")
        await client.some(len(head) + 4 + len(LARGE))
        assert client.received.partition(b"\r\n\r\n")[2] == LARGE
        assert pulled.counted("aborted", reason="overtaken") == 0
        client.transport.abortConnection()


@within(30)
async def test_a_client_that_leaves(tmp_path: Path) -> None:
    """A client that leaves affects neither the pull nor other waiting clients."""
    image = tar_image(File(b"d/large", LARGE), File(b"rest", NOISE[: 600 * KIB]))
    async with early(tmp_path, image, len(LARGE) + 600) as pulled:
        leaving = await running_response(pulled)
        waiting, other = await pulled.waits("/rest"), await pulled.waits("/rest")
        before = pulled.in_flight
        leaving.transport.abortConnection()
        waiting.transport.abortConnection()
        await until(lambda: pulled.in_flight == before - 2)
        await pulled.ready()
        assert (await other.some(12)).startswith(b"HTTP/1.1 200")
        other.transport.abortConnection()
        aborted = [pulled.counted("aborted", reason=why) for why in ("damaged", "abandoned")]
        assert aborted == [0, 0]


@within(30)
async def test_drain(tmp_path: Path) -> None:
    """At the end of a server, early responses that cannot be verified any more are reset."""
    image = tar_image(File(b"d/large", LARGE), File(b"rest", NOISE[: 600 * KIB]))
    async with early(tmp_path, image, len(LARGE) + 600) as pulled:
        client = await running_response(pulled)
        drained = pulled.site.site.drain(20)
        await pulled.site.store.close()
        assert await aborted(client)
        await drained
        assert pulled.counted("aborted", reason="abandoned") == 1


@within(60)
async def test_through_a_slow_link(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """A layer's first file is served before a tenth of the layer has arrived."""
    image = Image.of({"index.html": b"<html>", "first.js": b"first", "rest.bin": NOISE})
    docker_registry.push(image, "team/site:v1")
    async with faulty(docker_registry.port) as proxy:
        proxy.always("blobs", Fault(bandwidth=2 * MIB, latency=0.02))
        config = configured(tmp_path, allowing(proxy.host, {"earlyServe": True}))
        async with running(config) as server:
            base = f"{proxy.host}/team/site:v1"
            answer = await server.fetch(f"{base}/first.js")
            assert (answer.status, answer.body) == (200, b"first")
            assert answer.headers["cache-control"] == "no-store"
            assert server.counted("blobserve_pulled_bytes_total") < len(NOISE) / 10
            assert server.counted("blobserve_early_served_total") == 1
            missing = await server.fetch(f"{base}/missing.js")
            assert (missing.status, "etag" in missing.headers) == (404, False)
            answer = await server.fetch(f"{base}/rest.bin")
            assert (answer.body == NOISE, "etag" in answer.headers) == (True, True)


@within(30)
async def test_a_published_index_comes_first(tmp_path: Path) -> None:
    """Files with a table of contents are read lazily, verified and cacheable."""
    async with standing(tmp_path, CHUNKED, rules={"earlyServe": True}) as stand:
        for path, content in [each for each in CHUNKED.files.items() if each[0].isascii()]:
            answer = await stand.get(path)
            assert (answer.status, answer.body == content) == (200, True), path
            assert "etag" in answer.headers, path
        assert stand.server.counted("blobserve_early_served_total") == 0


@within(60)
async def test_a_crowd(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """Hundreds of requests during a download each get their whole file, from one download."""
    chance = random.Random(4)
    files = {f"{n % 7}/{n}.bin": chance.randbytes(chance.randrange(10_000)) for n in range(300)}
    docker_registry.push(Image.of(files), "team/site:v1")
    async with faulty(docker_registry.port) as proxy:
        proxy.always("blobs", Fault(bandwidth=MIB))
        listen = "tcp:0:interface=127.0.0.1:backlog=1024"
        config = configured(tmp_path, allowing(proxy.host, {"earlyServe": True}, listen=listen))
        async with running(config) as server:
            base = f"{proxy.host}/team/site:v1"
            answers = await server.fetch_all(*(f"{base}/{name}" for name in files))
            assert [answer.body for answer in answers] == list(files.values())
            early = [each for each in answers if each.headers["cache-control"] == "no-store"]
            assert server.counted("blobserve_early_served_total") == len(early) > 200
            assert len(proxy.asked("GET .*/blobs/")) == 1


@within(60)
async def test_a_real_mismatch(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """A layer of a real registry that is wrong at its end resets the responses from it."""
    files = {"large.bin": LARGE, "rest.bin": NOISE[: 4 * MIB]}
    docker_registry.push(Image.of(files), "team/site:v1")
    async with faulty(docker_registry.port) as proxy:
        wrong = Fault(bandwidth=8 * MIB, corrupt=len(LARGE) + 3900 * KIB)
        proxy.always("blobs", wrong)
        config = configured(tmp_path, allowing(proxy.host, {"earlyServe": True}))
        async with running(config) as server:
            client = await server.begin(f"/{proxy.host}/team/site:v1/large.bin")
            await client.some(1000)
            assert b"no-store" in client.received
            stalled(client)
            answer = await server.fetch(f"{proxy.host}/team/site:v1/missing.js")
            assert answer.status == 502
            assert await aborted(client)
            assert [*tmp_path.rglob("content")] == []
