"""Transfers through every kind of network fault: rows C01 to C48 of the list of cases.

Other modules name the rows that they test, above all `tests.oci.registry.test_blob_download`.
"""

from __future__ import annotations

import gzip
import random
import zlib
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, eventAsText
from twisted.python.failure import Failure

from blobserve.config import Limits, RegistryRules
from blobserve.errors import AddressRefused, ContentMismatch, RegistryFailed, UpstreamError
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.http import retry
from blobserve.oci.http.address_rules import Origin
from blobserve.oci.http.endpoints import Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.registry import Registry
from blobserve.testing import InlineThreads, make_image
from tests.oci.http.test_tls import Authority
from tests.support.parts.faults import Fault, FaultProxy, faulty, having
from tests.support.parts.images import Image, Layer
from tests.support.parts.registry import DockerRegistry
from tests.support.scripted_registry import (
    NOTHING,
    Answer,
    Asked,
    Scripted,
    Step,
    cut,
    listening,
    redirect,
    status,
)
from tests.support.services import allowing, configured, running
from tests.support.source_fixtures import QUICK, Sink, registry_at, until
from tests.support.within import within

MIB = 1 << 20
NOISE = random.Random(5).randbytes(3 * MIB)
LAYER = Layer.of({"a": NOISE}, "none")
BLOB, SIZE, HALF = LAYER.blob, len(LAYER.blob), len(LAYER.blob) // 2
WANTED = Descriptor("", Digest.parse(LAYER.digest), SIZE)
SITE = "team/site:v1"
PLACES = [0, 1, 511, 512, HALF, SIZE - 1]


def port_of(scripted: Scripted) -> int:
    """Return the port of a scripted registry."""
    return int(scripted.host.rpartition(":")[2])


async def fetched(
    host: str,
    descriptor: Descriptor = WANTED,
    limits: Limits | None = None,
    rules: RegistryRules | None = None,
) -> bytes:
    """Fetch a blob of team/site and return its bytes."""
    sink = Sink()
    async with registry_at(host, rules, limits=limits) as registry:
        await registry.fetch(Repository.parse(f"{host}/team/site"), descriptor, sink)
    return sink.content


# --- Cut, and resumed: C01 to C06, C48 ------------------------------------------------------------


@pytest.mark.parametrize("end", ["fin", "rst"], ids=["C01", "C02"])
@within(30)
async def test_cut_at_byte_k(docker_registry: DockerRegistry, end: Any) -> None:
    """A layer of a real registry that is cut anywhere is resumed with the range of the rest."""
    docker_registry.put(Image((LAYER,)), SITE)
    for after in PLACES:
        async with faulty(docker_registry.port) as proxy:
            proxy.script("blobs", Fault(after=after, end=end))
            assert await fetched(proxy.host) == BLOB
            first, second = proxy.requests
            assert (first.target, "range" in first.headers) == (second.target, False)
            rest = f"bytes={after}-{SIZE - 1}" if after else None
            assert second.headers.get("range") == rest
            assert second.headers.get("if-range") == (f'"{LAYER.digest}"' if after else None)


@pytest.mark.parametrize("etag", ['W/"weak"', "bare", None])
@within(10)
async def test_c01_only_strong_validators(
    docker_registry: DockerRegistry, etag: str | None
) -> None:
    """A download without a strong validator is resumed without If-Range."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy:
        head = having(etag=etag).edit
        proxy.script("blobs", Fault(after=HALF, edit=head), Fault(after=MIB + 1, edit=head))
        assert await fetched(proxy.host) == BLOB
        assert [each.headers.get("if-range") for each in proxy.requests] == [None] * 3
        assert proxy.requests[1].headers["range"] == f"bytes={HALF}-{SIZE - 1}"


@within(10)
async def test_c05_every_mebibyte(docker_registry: DockerRegistry) -> None:
    """Cuts after each mebibyte are resumed one after another, and no byte is sent twice."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy:
        proxy.always("blobs", Fault(after=MIB, end="rst"))
        assert await fetched(proxy.host) == BLOB
        ranges = [each.headers.get("range") for each in proxy.requests]
        assert ranges == [None, *(f"bytes={n * MIB}-{SIZE - 1}" for n in (1, 2, 3))]


@pytest.mark.parametrize("fault", [Fault(after=0), Fault(after=MIB - 1), Fault(after=1, end="rst")])
@within(20)
async def test_c06_without_progress(
    tmp_path: Path, docker_registry: DockerRegistry, fault: Fault
) -> None:
    """A pull fails, and leaves nothing, after three cuts with less than a mebibyte of progress."""
    layer = Layer.of({"a": NOISE * 2}, "none")
    docker_registry.put(Image((layer,)), SITE)
    async with faulty(docker_registry.port) as proxy, serving(tmp_path, proxy) as server:
        proxy.script("blobs", fault, fault, fault)
        answer = await server.fetch(f"{proxy.host}/{SITE}/a")
        assert (answer.status, b"it cut off its answer" in answer.body) == (502, True)
        assert len(proxy.asked("blobs")) == 3
        assert not [*tmp_path.rglob("content"), *tmp_path.glob("ingest/*")]
        assert (await server.fetch(f"{proxy.host}/{SITE}/a")).body == NOISE * 2


def serving(directory: Path, proxy: FaultProxy | Scripted, **own: Any) -> Any:
    """Return a server that pulls through a proxy, or from a registry."""
    return running(configured(directory, allowing(proxy.host, **own)))


@within(20)
async def test_c48_pull_through(
    docker_registry: DockerRegistry, part_directory: Any, running: Any
) -> None:
    """A pull-through registry that is cut off during its own fetch is resumed."""
    docker_registry.put(Image((LAYER,)), SITE)
    upstream = {"proxy": {"remoteurl": f"http://{docker_registry.host}"}}
    mirror = running(DockerRegistry(part_directory(), upstream))
    async with faulty(mirror.port) as proxy:
        proxy.script("blobs", Fault(after=HALF), Fault(after=MIB + HALF, end="rst"))
        assert await fetched(proxy.host) == BLOB
        assert proxy.requests[1].headers["range"] == f"bytes={HALF}-{SIZE - 1}"


# --- Wrong ranges: C07, C09, C10, C12 -------------------------------------------------------------


def part(content_range: str, body: bytes, **fields: str) -> Step:
    """Return a step that answers 206 with this Content-Range."""
    answer = Answer(206, body=body).having(content_range=content_range, **fields)
    return lambda asked, usual: answer


@within(10)
async def test_c07_wrong_start_for_ever() -> None:
    """After a wrong range the whole blob is requested once more, and a second wrong one fails."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.script("blobs", cut(HALF))
        scripted.always("blobs", part(f"bytes 0-{SIZE - 1}/{SIZE}", BLOB))
        with pytest.raises(RegistryFailed, match="it answered 206 for a blob"):
            await fetched(scripted.host)
        ranges = [each.headers.get("range") for each in scripted.requests]
        assert ranges == [None, f"bytes={HALF}-{SIZE - 1}", None]


@pytest.mark.parametrize("described", [True, False])
@within(10)
async def test_c09_several_parts(described: bool) -> None:
    """A multipart answer to a range is not used, even if its head has the right Content-Range."""
    rest = BLOB[HALF:]
    kind = "Multipart/ByteRanges; boundary=x"
    where = {"content_range": f"bytes {HALF}-{SIZE - 1}/{SIZE}"} if described else {}
    odd = Answer(206, body=rest).having(content_type=kind, **where)
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.script("blobs", cut(HALF), lambda *_: odd)
        assert await fetched(scripted.host) == BLOB
        assert "range" not in scripted.requests[2].headers


@within(10)
async def test_c10_no_range_is_ever_added() -> None:
    """A whole blob in answer to a range is skipped up to the offset, also in several answers."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.script(
            "blobs", cut(HALF), lambda *_: Answer(body=BLOB, sent=HALF - 1, end="close")
        )
        scripted.script("blobs", lambda *_: Answer(body=BLOB, framing="chunked"))
        assert await fetched(scripted.host) == BLOB


@within(10)
async def test_c12_changed_in_between(tmp_path: Path) -> None:
    """A blob that changed after a cut is fetched again from its start."""

    def other(asked: Asked, usual: Answer) -> Answer:
        changed = attrs.evolve(usual, body=bytes(len(usual.body)), sent=SIZE // 3, end="close")
        return changed.having(etag='"other"')

    async with listening() as scripted, serving(tmp_path, scripted) as server:
        image = make_image({"a": NOISE})
        site = scripted.push(SITE, image)
        scripted.script("GET .*blobs", other)
        assert (await server.fetch(f"{site}/a")).body == NOISE
        asked = scripted.asked("GET .*blobs")
        assert [each.headers.get("if-range") for each in asked] == [None, '"other"', None]


# --- Wrong bytes: C16, C17, C43 -------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, HALF, SIZE - 1])
@within(20)
async def test_c16_c17_one_wrong_byte(
    tmp_path: Path, docker_registry: DockerRegistry, at: int
) -> None:
    """A layer with a wrong byte is fetched again; after a second one every waiter gets a 502."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy, serving(tmp_path, proxy) as server:
        target, wrong = f"{proxy.host}/{SITE}/a", Fault(corrupt=at)
        proxy.script("blobs", wrong, wrong, wrong)
        answers = await server.fetch_all(*[target] * 20)
        assert {answer.status for answer in answers} == {502}
        assert len({answer.body for answer in answers}) == 1
        assert len(proxy.asked("blobs")) == 2
        assert not [*tmp_path.rglob("content"), *tmp_path.glob("ingest/*")]
        assert (await server.fetch(target)).body == NOISE
        assert len(proxy.asked("blobs")) == 4


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@within(10)
async def test_c43_nothing_at_all(framing: Any) -> None:
    """An empty 200 is not a blob, in any framing."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.always("blobs", lambda *_: Answer(framing=framing))
        with pytest.raises((ContentMismatch, RegistryFailed)):
            await fetched(scripted.host)
        assert len(scripted.requests) == (1 if framing == "length" else 3)


# --- Slow and silent: C18 to C21 ------------------------------------------------------------------


@within(20)
async def test_c18_silence(docker_registry: DockerRegistry) -> None:
    """A silent body is cut off by the client and resumed."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy:
        proxy.script("blobs", Fault(after=HALF, end="silence"))
        assert await fetched(proxy.host, limits=QUICK) == BLOB
        assert proxy.requests[1].headers["range"] == f"bytes={HALF}-{SIZE - 1}"


@within(20)
async def test_c19_trickle(docker_registry: DockerRegistry) -> None:
    """A body that trickles is cut off by the client, and resumed behind the last byte."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy:
        proxy.script("blobs", Fault(bandwidth=50))
        assert await fetched(proxy.host, limits=QUICK) == BLOB
        again = proxy.requests[1].headers["range"]
        first = int(again.removeprefix("bytes=").partition("-")[0])
        assert 0 < first < 100
        proxy.always("blobs", Fault(bandwidth=50))
        with pytest.raises(RegistryFailed, match="less than 1024 bytes per second"):
            await fetched(proxy.host, limits=QUICK)


@within(20)
async def test_c19_slow_is_no_fault(docker_registry: DockerRegistry) -> None:
    """A slow body above the minimum speed is read to its end in one request."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy:
        proxy.always("blobs", Fault(latency=0.2, bandwidth=3 * MIB))
        began = reactor.seconds()
        assert await fetched(proxy.host, limits=QUICK) == BLOB
        assert reactor.seconds() - began > 1
        assert len(proxy.requests) == 1


@within(10)
async def test_c20_no_head() -> None:
    """A response head that does not arrive in time is requested again."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.script("blobs", lambda *_: NOTHING)
        assert await fetched(scripted.host, limits=QUICK) == BLOB
        assert len(scripted.requests) == 2


@within(10)
async def test_c21_a_wait_holds_up_nobody_else() -> None:
    """The Retry-After of one blob does not delay other blobs of the registry."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as scripted, registry_at(scripted.host) as registry:
        repository = Repository.parse(f"{scripted.host}/team/site")
        blobs = [b"slow", b"quick"]
        slow, quick = (
            Descriptor("", scripted.hold("team/site", each), len(each)) for each in blobs
        )
        scripted.script(str(slow.digest), status(429, Retry_After="1"))
        began, sinks = reactor.seconds(), [Sink(), Sink()]
        waiting = Deferred.fromCoroutine(registry.fetch(repository, slow, sinks[0]))
        await until(lambda: scripted.requests)
        await registry.fetch(repository, quick, sinks[1])
        assert not waiting.called
        await waiting
        assert reactor.seconds() - began >= 1
        assert [sink.content for sink in sinks] == blobs


# --- Retries and their end: C22 to C24 ------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 503])
@within(10)
async def test_c22_our_own_retry_after(tmp_path: Path, code: int) -> None:
    """The Retry-After of a registry is passed on to clients, with the body of a timeout."""
    async with listening() as scripted, serving(tmp_path, scripted) as server:
        site = scripted.push(SITE, make_image({"a": b"a"}))
        scripted.script("blobs", status(code, Retry_After="33"))
        answer = await server.fetch(f"{site}/a")
        assert (answer.status, answer.body) == (503, b"timeout")
        assert answer.headers["retry-after"] == "33"
        assert (await server.fetch(f"{site}/a")).body == b"a"


def test_c23_full_jitter() -> None:
    """Each wait is random between zero and a bound that doubles with each failure."""
    for tried in range(4):
        waits = [retry.jitter(tried) for _ in range(400)]
        bound = 0.25 * 2**tried
        assert 0 <= min(waits) < bound / 4
        assert bound * 3 / 4 < max(waits) <= bound


@within(20)
async def test_c24_a_hundred_requests() -> None:
    """A registry that is down gets one request for each of a hundred look-ups, without retries."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        site = scripted.push(SITE, make_image({"a": b"a"}))
        scripted.always("manifests", status(500))
        with pytest.raises(RegistryFailed):
            await registry.resolve(site)
        before = len(scripted.requests)
        asked = [Deferred.fromCoroutine(registry.resolve(site)) for _ in range(100)]
        for each in asked:
            each.addErrback(lambda failure: failure.type)
        assert await gatherResults(asked) == [RegistryFailed] * 100
        assert len(scripted.requests) == before + 100


# --- Docker-Content-Digest: C28, C29 --------------------------------------------------------------


@within(10)
async def test_c28_no_digest_header(docker_registry: DockerRegistry) -> None:
    """The digest of a tag is computed at every look-up if the registry sends none."""
    image = Image((LAYER,))
    docker_registry.put(image, SITE)
    async with faulty(docker_registry.port) as proxy, registry_at(proxy.host) as registry:
        proxy.always("manifests", having(docker_content_digest=None))
        tagged = Reference.parse(f"{proxy.host}/{SITE}")
        digest = (await registry.resolve(tagged)).digest
        assert str(digest) == image.digest
        assert (await registry.refresh(tagged, digest)).digest == digest
        assert (await registry.refresh(tagged, WANTED.digest)).digest == digest


@within(10)
async def test_c29_wrong_digest_header(docker_registry: DockerRegistry) -> None:
    """A wrong Docker-Content-Digest neither refuses right content nor accepts wrong content."""
    image = Image((LAYER,))
    docker_registry.put(image, SITE)
    async with faulty(docker_registry.port) as proxy, registry_at(proxy.host) as registry:
        proxy.always("", having(docker_content_digest=LAYER.digest))
        tagged = Reference.parse(f"{proxy.host}/{SITE}")
        exact = tagged.at(Digest.parse(image.digest))
        assert (await registry.resolve(exact)).content == image.manifest
        proxy.script(
            "manifests", Fault(corrupt=5, edit=having(docker_content_digest=image.digest).edit)
        )
        with pytest.raises(ContentMismatch):
            await registry.resolve(exact)


# --- Redirects: C31, C33, C35 ---------------------------------------------------------------------


@pytest.mark.parametrize(("hops", "is_followed"), [(5, True), (6, False), (11, False)])
@within(10)
async def test_c31_hops(hops: int, is_followed: bool) -> None:
    """Five redirects in a row are followed, and a sixth is an error."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        place = f"/v2/team/site/blobs/{WANTED.digest}"
        steps = [redirect(f"{place}?hop={n}", 302 + n % 2 * 5) for n in range(hops)]
        scripted.script("blobs", *steps)
        if is_followed:
            assert await fetched(scripted.host) == BLOB
        else:
            with pytest.raises(RegistryFailed, match="redirects more than 5 times"):
                await fetched(scripted.host)
        assert len(scripted.requests) == 6


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("https://r.example", "https://R.Example:443/x?y", True),
        ("http://r.example:80", "http://r.example/", True),
        ("https://r.example", "http://r.example", False),
        ("https://r.example:80", "http://r.example:80", False),
        ("https://r.example", "https://r.example:8443", False),
        ("https://r.example", "https://cdn.r.example", False),
        ("https://r.example", "https://r.example.other.example", False),
        ("https://127.0.0.1", "https://localhost", False),
    ],
)
def test_c33_what_one_origin_is(one: str, other: str, is_same: bool) -> None:
    """An origin is a scheme, host and port, in any spelling of the URL."""
    assert (Origin.of(one) == Origin.of(other)) == is_same


@pytest.mark.parametrize("to", ["port", "https", "name", "back"])
@within(10)
async def test_c33_no_password_for_another_origin(to: str, tmp_path: Path) -> None:
    """A redirect to another origin drops the password, even if it leads back."""
    authority = Authority.make(tmp_path)
    tls = authority.issue("127.0.0.1") if to == "https" else None
    async with listening() as scripted, listening(tls=tls) as storage:
        for each in (scripted, storage):
            each.hold("team/site", BLOB)
        scripted.user = "reader:secret"
        blob = f"/v2/team/site/blobs/{WANTED.digest}?elsewhere"
        host = storage.host
        if to == "name":
            host = scripted.host.replace("127.0.0.1", "localhost")
        if to == "back":
            storage.script("elsewhere", redirect(f"http://{scripted.host}{blob}"))
        scripted.always("GET .*blobs/[^?]*$", redirect(f"{storage.scheme}://{host}{blob}"))
        ca = authority.write(tmp_path / "ca.pem")
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({host}), ca=ca)
        async with registry_at(scripted.host, rules, Credential("reader", "secret")) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            assert await registry.holds(repository, WANTED)  # from now on it is sent unasked
            sink = Sink()
            fetching = Deferred.fromCoroutine(registry.fetch(repository, WANTED, sink))
            await fetching.addErrback(lambda failure: failure.trap(UpstreamError))
        assert (sink.content == BLOB) == (to in ("port", "https"))
        asked = [*storage.asked("elsewhere"), *scripted.asked("elsewhere")]
        assert {each.authorization for each in asked} == {None}
        assert scripted.requests[-1 if to in ("port", "https") else 2].authorization


@pytest.mark.parametrize(
    "host",
    [
        *["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "0.0.0.0"],
        *["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "[0:0:0:0:0:0:0:1]"],
    ],
)
@within(10)
async def test_c35_redirect_to_inside(host: str) -> None:
    """A redirect to this machine, in any spelling, opens no connection."""
    async with listening() as inner, listening() as scripted:
        scripted.hold("team/site", BLOB)
        port = port_of(inner)
        scripted.script("blobs", redirect(f"https://{host}:{port}/"))
        with pytest.raises(AddressRefused):
            await fetched(scripted.host)
        assert inner.accepted == 0


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "169.254.0.1", "192.168.1.1", "[fd00::1]", "[fe80::1]", "3221225985"]
)
@within(10)
async def test_c35_redirect_to_a_neighbour(host: str) -> None:
    """A redirect to a private address is refused with the key that would allow it."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        scripted.script("blobs", redirect(f"https://{host}/"))
        with pytest.raises(AddressRefused) as raised:
            await fetched(scripted.host)
        assert f'"{host}:443"' in raised.value.key


# --- Bombs and codings: C37, C38 ------------------------------------------------------------------


@pytest.mark.parametrize(
    "tail",
    [b"0\r\n" + b"X: y\r\n" * 20_000, b"0\r\nX: " + b"y" * 100_000, b"9" * 100_000],
    ids=["many trailers", "long trailer", "long size"],
)
@within(10)
async def test_c37_behind_the_head(tail: bytes) -> None:
    """Endless trailers and chunk sizes are abandoned with their connection, in little memory."""
    async with listening() as scripted:
        site = scripted.push(SITE, make_image({"a": b"a"}))
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        scripted.script("manifests", lambda *_: head + tail)
        async with registry_at(scripted.host, limits=QUICK) as registry:
            assert (await registry.resolve(site)).content
            assert len(scripted.requests) == 2
            assert len(scripted.connections) == 1


@within(10)
async def test_c38_coded_rest() -> None:
    """A range with a content coding is refused like a whole blob with one."""
    async with listening() as scripted:
        scripted.hold("team/site", BLOB)
        coded = part(
            f"bytes {HALF}-{SIZE - 1}/{SIZE}", gzip.compress(BLOB[HALF:]), content_encoding="gzip"
        )
        scripted.script("blobs", cut(HALF), coded)
        with pytest.raises(RegistryFailed, match="content coding"):
            await fetched(scripted.host)


@within(20)
async def test_c38_unknown_coding() -> None:
    """A manifest with any content coding but gzip is an error."""

    def coded(asked: Asked, usual: Answer) -> Answer:
        body = zlib.compress(usual.body)
        return attrs.evolve(usual, body=body).having(content_encoding="deflate")

    async with listening() as scripted, registry_at(scripted.host) as registry:
        site = scripted.push(SITE, make_image({"a": b"a"}))
        scripted.always("manifests", coded)
        with pytest.raises(RegistryFailed, match="unknown content coding"):
            await registry.resolve(site)


# --- Clients that leave: C39 ----------------------------------------------------------------------


@within(20)
async def test_c39_all_leave(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """A pull goes on after all its clients have left, and leaves one blob and nothing else."""
    docker_registry.put(Image((LAYER,)), SITE)
    async with faulty(docker_registry.port) as proxy, serving(tmp_path, proxy) as server:
        proxy.always("blobs", Fault(bandwidth=6 * MIB))
        clients = [await server.begin(f"/{proxy.host}/{SITE}/a") for _ in range(20)]
        await until(lambda: list(tmp_path.glob("ingest/*/content")))
        for client in clients:
            client.transport.abortConnection()
        await until(lambda: server.counted("blobserve_pulls_total", outcome="ready") == 1)
        await until(lambda: not proxy.connections)
        await until(lambda: not list(tmp_path.glob("ingest/*")))
        assert len(list(tmp_path.glob("blobs/*/*/content"))) == 1
        read_only = {"X-BlobServe-ReadOnly": "true"}
        answer = await server.fetch(f"{proxy.host}/{SITE}/a", headers=read_only)
        assert answer.body == NOISE
        assert len(proxy.asked("blobs")) == 1


# --- No connection: C42 ---------------------------------------------------------------------------


class _Net:
    """A reactor without a network, which resolves every name to `addresses`."""

    def __init__(self, *addresses: str) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = self
        self.addresses = addresses
        self.resolved = 0

    def resolveHostName(self, receiver: Any, name: str, port: int = 0, *_: object) -> None:
        """See `IHostnameResolver.resolveHostName`."""
        self.resolved += 1
        receiver.resolutionBegan(None)
        for address in self.addresses:
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()

    def outcome(self, reason: error.ConnectError) -> str:
        """Return the error of a look-up when each connection fails with `reason`."""
        limits = Limits()
        registry = Registry(
            self.reactor, "r.example", RegistryRules(), None, False, InlineThreads(),
            Routes(Names(self.reactor, InlineThreads())), limits, Metrics(),
        )  # fmt: skip
        said: list[str] = []
        asking = Deferred.fromCoroutine(registry.resolve(Reference.parse("r.example/x:v1")))
        asking.addErrback(lambda failure: said.append(str(failure.value)))
        tried = 0
        for _ in range(100):
            for _, _, factory, _, _ in self.reactor.tcpClients[tried:]:
                tried += 1
                factory.clientConnectionFailed(None, Failure(reason))
            self.reactor.advance(0.5)
        assert not self.reactor.getDelayedCalls()
        return said[0]


def test_c42_no_such_name() -> None:
    """A name that does not resolve is retried and then named in the error."""
    net = _Net()
    failed = net.outcome(error.ConnectError())
    assert failed == "registry r.example failed: its name does not resolve"
    assert net.resolved == 5


@pytest.mark.parametrize(
    "reason", [error.NoRouteError(), error.ConnectionRefusedError(), error.TimeoutError()]
)
def test_c42_no_connection(reason: error.ConnectError) -> None:
    """A host that cannot be reached is retried and then named in the error."""
    net = _Net("93.184.216.34")
    failed = net.outcome(reason)
    assert failed == "registry r.example failed: it does not accept connections"
    assert len(net.reactor.tcpClients) == 5


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("after", [0, 1, 100])
@within(20)
async def test_c42_cut_in_a_handshake(tmp_path: Path, after: int, end: Any) -> None:
    """A TLS handshake that is cut off is retried with TLS."""
    authority = Authority.make(tmp_path)
    rules = RegistryRules(ca=authority.write(tmp_path / "ca.pem"))
    async with (
        listening(tls=authority.issue("127.0.0.1")) as scripted,
        faulty(port_of(scripted), speaks_http=False) as proxy,
    ):
        scripted.hold("team/site", BLOB)
        proxy.script("", Fault(after=after, end=end), Fault(after=after, end=end))
        assert await fetched(proxy.host, rules=rules) == BLOB
        assert len(scripted.requests) == 1


# --- Reused connections: C44, C45 -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "reset"])
@within(10)
async def test_c44_closed_under_a_request(end: Any) -> None:
    """A reused connection that ends is replaced by another one without a wait."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        site = scripted.push(SITE, make_image({"a": b"a"}))
        await registry.resolve(site)
        scripted.script("manifests", lambda *_: Answer(sent=-1, end=end))
        await registry.resolve(site)
        assert scripted.accepted == 2


UNASKED = make_image({"a": b"not asked for"})
_EXTRA = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (
    len(UNASKED.documents[0].content),
    UNASKED.documents[0].content,
)


@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["at once", "extra later", "extra in two"])
@pytest.mark.parametrize("kind", ["GET 200", "GET 304", "HEAD 200", "GET 404", "GET chunked"])
@within(10)
async def test_c45_more_than_was_asked_for(kind: str, pieces: int) -> None:
    """Bytes behind an answer are never taken as the answer to the next request."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    image = make_image({"a": b"asked for"})
    method, what = kind.split()

    def step(asked: Asked, usual: Answer) -> Answer | bytes:
        answer = Answer(int(what)) if what.isdigit() and what != "200" else usual
        if what == "chunked":
            answer = attrs.evolve(answer, framing="chunked")
            head = answer.head() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(usual.body), usual.body)
        else:
            head = answer.head() + answer.body
        [connection] = scripted.connections
        if pieces == 1:
            return head + _EXTRA
        cuts = [head, _EXTRA] if pieces == 2 else [head + _EXTRA[:40], _EXTRA[40:]]
        for n, each in enumerate(cuts):
            reactor.callLater(n * 0.05, connection.transport.write, each)
        return b""

    async with listening() as scripted, registry_at(scripted.host) as registry:
        site = scripted.push(SITE, image)
        scripted.script(method, step)
        looked = (
            registry.refresh(site, image.digest) if method == "HEAD" else registry.resolve(site)
        )
        await Deferred.fromCoroutine(looked).addErrback(lambda _: None)
        for pause in (0.0, 0.1):
            await deferLater(reactor, pause)
            assert (await registry.resolve(site)).digest == image.digest
        assert scripted.accepted == 2


# --- Logs: C46, C47 -------------------------------------------------------------------------------


@within(10)
async def test_c46_c47_nothing_of_theirs(docker_registry: DockerRegistry) -> None:
    """Text that a registry sends in its headers never reaches the log."""
    docker_registry.put(Image((LAYER,)), SITE)
    with capturedLogs() as events:
        async with faulty(docker_registry.port) as proxy, registry_at(proxy.host) as registry:
            odd = having(warning='299 - "hushhush\t\x1b[2J"', server="hushhush", etag='"hushhush"')
            proxy.always("", Fault(after=9, edit=odd.edit))
            with pytest.raises(RegistryFailed):
                await registry.fetch(Repository.parse(f"{proxy.host}/team/site"), WANTED, Sink())
            with pytest.raises(RegistryFailed):
                await registry.resolve(Reference.parse(f"{proxy.host}/{SITE}"))
    assert not [event for event in events if "hushhush" in eventAsText(event)]
