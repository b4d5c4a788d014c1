"""Manifests, look-ups and the answers of registries."""

from __future__ import annotations

import gzip

import attrs
import pytest
from twisted.internet.defer import Deferred

from blobserve.config import Limits, RegistryRules
from blobserve.errors import (
    AddressRefused,
    BadImage,
    ContentMismatch,
    ImageNotFound,
    RegistryBusy,
    RegistryFailed,
    RegistryRefused,
    StoreClosed,
)
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference
from blobserve.oci.source import RefreshResult
from blobserve.testing import make_image
from tests.support.scripted_registry import (
    NOTHING,
    Answer,
    Asked,
    Step,
    cut,
    listening,
    redirect,
    status,
)
from tests.support.slack import SLACK
from tests.support.source_fixtures import QUICK, Ahead, Sink, registry_at, until
from tests.support.within import within

IMAGE = make_image({"index.html": b"a page"})
OTHER = make_image({"index.html": b"another page"})
MANIFEST = IMAGE.documents[0]


@within(10)
async def test_accept() -> None:
    """A manifest request accepts all four media types and no content coding (M01)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        await registry.refresh(tagged, OTHER.digest)
        for asked in scripted.requests:
            assert asked.headers["accept"].count("application/vnd.") == 4
            assert asked.headers["accept-encoding"] == "identity"
            assert asked.headers["user-agent"].startswith("blobserve")
            assert asked.authorization is None


@within(10)
@pytest.mark.parametrize("announced", [str(OTHER.digest), "md5:123", "sha256:../../x", ""])
async def test_digest_of_tag(announced: str) -> None:
    """The digest of a tag is computed from the bytes, not taken from a header.

    Rows C28, C29, C30.
    """
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always(
            "manifests", lambda asked, usual: usual.having(docker_content_digest=announced)
        )
        assert (await registry.resolve(tagged)).digest == IMAGE.digest
        assert await registry.refresh(tagged, IMAGE.digest) == RefreshResult(IMAGE.digest)


@within(10)
async def test_wrong_manifest() -> None:
    """A manifest that does not match the requested digest is refused (C29, M05)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        wrong = Answer(body=MANIFEST.content + b" ")
        scripted.script("manifests", lambda asked, usual: wrong)
        with pytest.raises(ContentMismatch, match=str(IMAGE.digest)):
            await registry.resolve(tagged.at(IMAGE.digest))


@within(10)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_manifest_size(framing: str) -> None:
    """A manifest is read up to the limit exactly, with any framing (M03)."""
    limits = Limits(manifest_size=len(MANIFEST.content))
    async with listening() as scripted, registry_at(scripted.host, limits=limits) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        fits = Answer(body=MANIFEST.content, framing=framing)
        scripted.script("manifests", lambda *_: fits)
        assert (await registry.resolve(tagged)).content == MANIFEST.content
        too_long = Answer(body=MANIFEST.content + b" ", framing=framing)
        scripted.script("manifests", lambda *_: too_long)
        with pytest.raises(BadImage, match="its manifest exceeds"):
            await registry.resolve(tagged)


@within(10)
async def test_endless_manifest() -> None:
    """An endless manifest is abandoned at the limit, and its connection is closed (M03)."""
    limits = Limits(manifest_size=1000)
    async with listening() as scripted, registry_at(scripted.host, limits=limits) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        endless = Answer(body=bytes(1 << 20), framing="chunked", end="silence")
        scripted.script("manifests", lambda *_: endless)
        with pytest.raises(BadImage):
            await registry.resolve(tagged)
        await until(lambda: not scripted.connections)


@within(10)
async def test_coded_manifest() -> None:
    """A manifest that a proxy has compressed is decoded, within the limit (C38)."""
    limits = Limits(manifest_size=10_000)
    async with listening() as scripted, registry_at(scripted.host, limits=limits) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        for content in (MANIFEST.content, bytes(10_001)):
            coded = Answer(body=gzip.compress(content)).having(content_encoding="gzip")
            scripted.script("manifests", lambda *_, coded=coded: coded)
        assert (await registry.resolve(tagged)).content == MANIFEST.content
        with pytest.raises(BadImage):
            await registry.resolve(tagged)


@within(10)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("label", ["gzip", "x-gzip", "aws-chunked", "br", "aws-chunked, gzip", "?"])
async def test_labelled_manifest(label: str, framing: str) -> None:
    """A Content-Encoding on a manifest that is not encoded is ignored."""

    def step(asked: Asked, usual: Answer) -> Answer:
        return attrs.evolve(usual, framing=framing).having(content_encoding=label)

    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("GET", step)
        for reference in (tagged, tagged.at(IMAGE.digest)):
            assert (await registry.resolve(reference)).content == MANIFEST.content
        assert (await registry.refresh(tagged, OTHER.digest)).digest == IMAGE.digest


@within(10)
async def test_media_type() -> None:
    """The media type of a document has no parameters (M02)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", lambda _, usual: usual.having(content_type="A/b; charset=x"))
        assert (await registry.resolve(tagged)).media_type == "a/b"


@within(10)
@pytest.mark.parametrize(
    ("code", "error", "tries"),
    [
        (404, ImageNotFound, 1),
        (410, ImageNotFound, 1),
        (401, RegistryRefused, 1),
        (403, RegistryRefused, 1),
        (400, RegistryFailed, 1),
        (418, RegistryFailed, 1),
        (204, RegistryFailed, 1),
        (500, RegistryFailed, 5),
    ],
)
async def test_refusals(code: int, error: type[Exception], tries: int) -> None:
    """Refusals are not retried but 5xx are, and the error text is ours.

    Row C25.
    """
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        body = b'{"errors": [{"code": "NAME_UNKNOWN", "message": "internal secret"}]}'
        scripted.always("manifests", lambda *_: Answer(code, body=body))
        with pytest.raises(error) as raised:
            await registry.resolve(tagged)
        assert "secret" not in str(raised.value)
        assert len(scripted.requests) == tries


@within(20)
@pytest.mark.parametrize("code", [408, 429, 499, 500, 502, 503, 504, 522])
async def test_transient(code: int) -> None:
    """A temporary failure is retried with success (C23)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", status(code), status(code))
        assert (await registry.resolve(tagged)).digest == IMAGE.digest
        assert len(scripted.requests) == 3


@within(10)
@pytest.mark.parametrize("code", [429, 503])
async def test_busy(code: int) -> None:
    """A registry with a long Retry-After is reported as busy for that time (C22)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("manifests", status(code, Retry_After="17"))
        with pytest.raises(RegistryBusy) as raised:
            await registry.resolve(tagged)
        assert raised.value.retry_after == 17
        assert len(scripted.requests) == 1
        with pytest.raises(RegistryBusy):
            await registry.refresh(tagged, IMAGE.digest)


@within(10)
async def test_retry_after() -> None:
    """A short Retry-After is waited for (C21)."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", status(429, Retry_After="1"))
        begun = reactor.seconds()
        await registry.resolve(tagged)
        assert 1 <= reactor.seconds() - begun < 5 * SLACK


@within(10)
async def test_down() -> None:
    """Retries to a host that is down happen once; later requests fail after one attempt (C24)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("manifests", status(502))
        for tries in (5, 6, 7):
            with pytest.raises(RegistryFailed, match="it answered 502"):
                await registry.resolve(tagged)
            assert len(scripted.requests) == tries


@within(10)
async def test_refused_connection() -> None:
    """A registry that is not running is reported as refusing connections (C42)."""
    async with listening() as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
    async with registry_at(scripted.host) as registry:
        with pytest.raises(RegistryFailed, match="it does not accept connections"):
            await registry.resolve(tagged)


@within(10)
async def test_silent_head() -> None:
    """A silent registry fails after the header time-out (C20)."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("", lambda *_: NOTHING)
        with pytest.raises(RegistryFailed, match=r"it did not answer within 0\.4 s"):
            await registry.resolve(tagged)
        await until(lambda: not scripted.connections)


@within(10)
async def test_silent_body() -> None:
    """A manifest that stalls is requested again."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", cut(10, "silence"), cut(10, "reset"), cut(10))
        assert (await registry.resolve(tagged)).content == MANIFEST.content


@within(10)
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 10_000_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["long", "many", "continue", "no-http"],
)
async def test_head_bomb(head: bytes) -> None:
    """An answer with an endless or invalid head is abandoned with its connection (C37)."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", lambda *_: head)
        assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
async def test_stale_connection() -> None:
    """A connection that the registry has closed while idle is replaced without a delay (C44)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        scripted.connections[0].transport.loseConnection()
        await registry.resolve(tagged)
        assert scripted.accepted == 2


@within(10)
async def test_persistent() -> None:
    """One connection serves all requests, also after refusals and redirects."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        elsewhere = f"/v2/team/site/manifests/{IMAGE.digest}"
        scripted.script("/v1", redirect(elsewhere), status(404), status(500))
        await registry.resolve(tagged)
        with pytest.raises(ImageNotFound):
            await registry.resolve(tagged)
        await registry.resolve(tagged)
        assert len(scripted.requests) == 5
        assert scripted.accepted == 1


@within(10)
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect(code: int) -> None:
    """Every kind of redirect is followed, also relative ones, with the URL unchanged.

    Row C31.
    """
    signed = "/v2/team/site/blobs/../x;y//%2f%7E?X-Amz=a%2Fb+c&empty&e=&s=a=b==&~"
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", redirect(signed, code))
        scripted.script("X-Amz", lambda *_: Answer(body=MANIFEST.content))
        await registry.resolve(tagged)
        assert scripted.requests[1].target.partition("?")[2] == signed.partition("?")[2]
        assert scripted.requests[1].target.endswith("x;y//%2f%7E?X-Amz=a%2Fb+c&empty&e=&s=a=b==&~")


@within(10)
@pytest.mark.parametrize(
    ("raw", "asked"),
    [
        ("/x/größe der datei.json?name=a b&é=ü", "gr%C3%B6%C3%9Fe%20der%20datei.json"),
        ("/x/a  b", "a%20%20b"),
        ("/x/%20 %c3%a9é", "%20%20%c3%a9%C3%A9"),
        ("/x/\N{GRINNING FACE}", "%F0%9F%98%80"),
        ("ü/x", "%C3%BC/x"),
        ("/x/à", "%C3%A0"),
        ("/x/Å", "%C3%85"),
        ("?filename=My Report é", "filename=My%20Report%20%C3%A9"),
    ],
)
@pytest.mark.parametrize("is_absolute", [False, True])
async def test_raw_redirect(raw: str, asked: str, is_absolute: bool) -> None:
    """A redirect with raw UTF-8 or spaces is followed with these escaped."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        base = f"http://{scripted.host}/v2/team/site/manifests/" if is_absolute else ""
        location = base + (raw.lstrip("/") if is_absolute else raw)
        head = f"HTTP/1.1 307 Raw\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        scripted.always("", lambda *_: Answer(body=MANIFEST.content))
        scripted.script("manifests/v1$", lambda *_: head.encode())
        assert (await registry.resolve(tagged)).digest == IMAGE.digest
        assert asked in scripted.requests[1].target
        assert scripted.requests[1].target.isascii()


@within(10)
@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (None, "its redirect has no Location"),
        ("/v2/team/site/manifests/v1", "it redirects more than 5 times"),
        ("ftp://example.com/", "it redirects to an invalid URL"),
        ("http://user:secret@example.com/", "it redirects to an invalid URL"),
        ("http://example.com/", "plain HTTP to example.com:80 is not allowed"),
        ("https://ex ample.com/", "it redirects to an invalid URL"),
        ("https://ex\xe4mple.com/", "it redirects to an invalid URL"),
    ],
)
async def test_bad_redirect(location: str | None, problem: str) -> None:
    """A redirect that loops, has no valid target or leaves TLS is not followed (C31)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        step = status(307) if location is None else redirect(location)
        scripted.always("manifests", step)
        with pytest.raises(RegistryFailed, match=problem) as raised:
            await registry.resolve(tagged)
        assert "secret" not in str(raised.value)


BROKEN_HEADS: dict[str, Step] = {
    **{str(code): status(code) for code in (204, 400, 403, 404, 405, 408, 410, 499, 500, 501)},
    **{str(code): status(code) for code in (502, 504, 522)},
    "no digest": lambda _, usual: usual.having(docker_content_digest=""),
    "malformed digest": lambda _, usual: usual.having(docker_content_digest="sha256:../x"),
    "other digest": lambda _, usual: usual.having(docker_content_digest=str(OTHER.digest)),
    "closed": lambda *_: Answer(end="close", sent=-1),
    "reset": lambda *_: Answer(end="reset", sent=-1),
    "silent": lambda *_: NOTHING,
    "no http": lambda *_: b"SSH-2.0-OpenSSH_9.2\r\n",
    "nowhere": status(307),
    "loop": redirect("/v2/team/site/manifests/v1"),
    "no address": redirect("http://192.0.2.1/x"),
    "retry-after of the past": status(500, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
}


@within(10)
@pytest.mark.parametrize("moved", [False, True], ids=["stays", "moved"])
@pytest.mark.parametrize("broken", BROKEN_HEADS.values(), ids=BROKEN_HEADS.keys())
async def test_head_that_fails(broken: Step, moved: bool) -> None:
    """After any failure of a HEAD a conditional GET looks up the tag.

    Rows C26, C27.
    """
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        if moved:
            scripted.push("team/site:v1", OTHER)
        scripted.always("HEAD", broken)
        digest = OTHER.digest if moved else IMAGE.digest
        assert (await registry.refresh(tagged, IMAGE.digest)).digest == digest
        [get] = scripted.asked("GET")
        assert get.headers["if-none-match"] == f'"{IMAGE.digest}"'


@within(20)
@pytest.mark.parametrize("name", ["500", "404", "no digest", "other digest", "closed"])
async def test_broken_head_is_remembered(name: str) -> None:
    """A registry with a broken HEAD gets only GET requests for ten minutes, for all its tags."""
    ahead = Ahead()
    async with listening() as scripted, registry_at(scripted.host, ahead=ahead) as registry:
        tags = [scripted.push(f"team/{each}:v1", IMAGE) for each in ("one", "two")]
        scripted.script("HEAD", BROKEN_HEADS[name])
        for seconds in (0, 300, 299):
            ahead.by += seconds
            for tag in tags:
                assert (await registry.refresh(tag, IMAGE.digest)).digest == IMAGE.digest
        assert (len(scripted.asked("HEAD")), len(scripted.asked("GET"))) == (1, 6)
        for seconds in (2, -3600):
            ahead.by += seconds
            await registry.refresh(tags[0], IMAGE.digest)
        assert (len(scripted.asked("HEAD")), len(scripted.asked("GET"))) == (3, 6)


@within(10)
async def test_head_that_fails_as_get_does() -> None:
    """A HEAD that fails as the GET does is not considered broken."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("manifests", status(500), status(500))
        with pytest.raises(RegistryFailed, match="it answered 500"):
            await registry.refresh(tagged, IMAGE.digest)
        await registry.refresh(tagged, IMAGE.digest)
        assert [each.method for each in scripted.requests] == ["HEAD", "GET", "HEAD"]


@within(10)
@pytest.mark.parametrize(
    ("code", "fields", "seconds"),
    [
        (429, {}, 5),
        (503, {}, 5),
        (429, {"Retry_After": "30"}, 30),
        (500, {"Retry_After": "30"}, 30),
        (502, {"Retry_After": "0"}, 0),
        (403, {"Retry_After": "40"}, 40),
        (404, {"Retry_After": "7"}, 7),
    ],
)
async def test_head_that_asks_for_time(code: int, fields: dict[str, str], seconds: float) -> None:
    """A HEAD that gets a Retry-After is not followed by a GET."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("HEAD", status(code, **fields))
        with pytest.raises(RegistryBusy) as raised:
            await registry.refresh(tagged, IMAGE.digest)
        assert raised.value.retry_after == seconds
        assert len(scripted.requests) == 1
        assert (await registry.refresh(tagged, IMAGE.digest)).digest == IMAGE.digest
        assert len(scripted.asked("GET")) == 0


@within(10)
async def test_moved() -> None:
    """A tag that has moved is noticed by the digest of its bytes."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.push("team/site:v1", OTHER)
        assert (await registry.refresh(tagged, IMAGE.digest)).digest == OTHER.digest
        assert (await registry.refresh(tagged, OTHER.digest)).digest == OTHER.digest
        assert len(scripted.requests) == 3


@within(10)
@pytest.mark.parametrize(
    ("fields", "pause"),
    [
        ({}, 0),
        ({"ratelimit_remaining": "76;w=21600", "ratelimit_limit": "100;w=21600"}, 0),
        ({"ratelimit_remaining": "11;w=21600", "ratelimit_limit": "100;w=21600"}, 1800),
        ({"ratelimit_remaining": "0;w=21600", "ratelimit_limit": "100;w=21600"}, 3600),
        ({"RateLimit_Remaining": "5", "RateLimit_Reset": "60"}, 10),
        ({"RateLimit_Remaining": "5"}, 100),
        ({"RateLimit_Remaining": "-5, many"}, 0),
    ],
)
async def test_rate_limit(fields: dict[str, str], pause: float) -> None:
    """Tags are looked up less often when few requests are left in a rate limit."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("HEAD", lambda asked, usual: usual.having(**fields))
        assert await registry.refresh(tagged, IMAGE.digest) == RefreshResult(IMAGE.digest, pause)


@within(10)
async def test_holds() -> None:
    """A redirect means that a blob exists, and is not followed; a refused GET is an error."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        repository = scripted.push("team/site:v1", IMAGE).repository
        layer = IMAGE.layers[0]
        for method in ("HEAD", "GET"):
            scripted.script(method, redirect("http://192.0.2.1/"))
            assert await registry.holds(repository, layer)
            scripted.script("HEAD", status(405))
        assert await registry.holds(repository, layer)
        assert not await registry.holds(repository, OTHER.layers[0])
        scripted.always("blobs", status(403))
        with pytest.raises(RegistryRefused):
            await registry.holds(repository, layer)


BLOB_HEADS = {
    name: step
    for name, step in BROKEN_HEADS.items()
    if name not in ("204", "no digest", "malformed digest", "other digest", "loop", "no address")
}


@within(10)
@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "there"])
@pytest.mark.parametrize("broken", BLOB_HEADS.values(), ids=BLOB_HEADS.keys())
async def test_head_of_a_blob_that_fails(broken: Step, is_there: bool) -> None:
    """After any failure of a HEAD of a blob, a GET of one byte tells whether the blob exists."""
    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        repository = scripted.push("team/site:v1", IMAGE).repository
        scripted.always("HEAD", broken)
        layer = (IMAGE if is_there else OTHER).layers[0]
        is_redirect = broken is BROKEN_HEADS["nowhere"]
        assert await registry.holds(repository, layer) is (is_there or is_redirect)
        for get in scripted.asked("GET"):
            assert get.headers["range"] == "bytes=0-0"
        assert len(scripted.asked("GET")) == (not is_redirect)


@within(20)
@pytest.mark.parametrize("name", ["500", "404", "closed"])
async def test_broken_head_of_a_blob_is_remembered(name: str) -> None:
    """A registry with a broken HEAD of blobs gets only GET requests for them for ten minutes.

    The HEAD of manifests is remembered separately, since it counts less for rate limits.
    """
    ahead = Ahead()
    async with listening() as scripted, registry_at(scripted.host, ahead=ahead) as registry:
        tag = scripted.push("team/site:v1", IMAGE)
        scripted.script("HEAD .*blobs", BROKEN_HEADS[name])
        for seconds in (0, 300, 299):
            ahead.by += seconds
            assert await registry.holds(tag.repository, IMAGE.layers[0])
        assert not await registry.holds(tag.repository, OTHER.layers[0])
        assert (len(scripted.asked("HEAD")), len(scripted.asked("GET"))) == (1, 4)
        await registry.refresh(tag, IMAGE.digest)
        assert len(scripted.asked("HEAD .*manifests")) == 1
        ahead.by += 2
        assert await registry.holds(tag.repository, IMAGE.layers[0])
        assert (len(scripted.asked("HEAD .*blobs")), len(scripted.asked("GET"))) == (2, 4)


@within(10)
async def test_head_of_a_blob_that_fails_as_get_does() -> None:
    """A HEAD of a blob that fails as the GET does is not considered broken."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        repository = scripted.push("team/site:v1", IMAGE).repository
        scripted.script("blobs", status(400), status(400))
        with pytest.raises(RegistryFailed, match="it answered 400"):
            await registry.holds(repository, IMAGE.layers[0])
        assert await registry.holds(repository, IMAGE.layers[0])
        assert [each.method for each in scripted.requests] == ["HEAD", "GET", "HEAD"]


@within(10)
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (429, {"Retry_After": "30"}),
        (503, {"Retry_After": "30"}),
        (500, {"Retry_After": "30"}),
        (403, {"Retry_After": "30"}),
        (404, {"Retry_After": "30"}),
    ],
)
async def test_head_of_a_blob_that_asks_for_time(code: int, fields: dict[str, str]) -> None:
    """A HEAD of a blob that gets a Retry-After is not followed by a GET."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        repository = scripted.push("team/site:v1", IMAGE).repository
        scripted.script("HEAD", status(code, **fields))
        with pytest.raises(RegistryBusy) as raised:
            await registry.holds(repository, IMAGE.layers[0])
        assert raised.value.retry_after == 30
        assert len(scripted.requests) == 1


@within(10)
async def test_empty_blob() -> None:
    """An empty blob, which has no range to request, exists if a GET says so."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        digest = scripted.hold("team/site", b"")
        repository = Reference.parse(f"{scripted.host}/team/site:v1").repository
        empty = attrs.evolve(IMAGE.layers[0], digest=digest, size=0)
        scripted.always("HEAD", status(500))
        assert await registry.holds(repository, empty)


@within(10)
async def test_metrics() -> None:
    """Requests to registries are counted under the original names, methods in lower case."""
    metrics = Metrics()
    async with listening() as scripted, registry_at(scripted.host, metrics=metrics) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        await registry.resolve(tagged)
        await registry.refresh(tagged, IMAGE.digest)
        scripted.script("GET", status(404))
        with pytest.raises(ImageNotFound):
            await registry.resolve(tagged)
    for method, code in (("get", "200"), ("head", "200"), ("get", "404")):
        labels = {"method": method, "code": code}
        assert metrics.registry.get_sample_value("http_client_requests_total", labels) == 1
        timed = "http_client_requests_duration_seconds_count"
        assert metrics.registry.get_sample_value(timed, labels) == 1


@within(10)
async def test_ipv6() -> None:
    """A registry may be named by an IPv6 address."""
    async with listening(interface="::1") as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        assert (await registry.resolve(tagged)).digest == IMAGE.digest


@within(10)
async def test_unnamed_loopback() -> None:
    """A loopback registry that is not configured is not connected to, nor used over plain HTTP.

    Row C35.
    """
    async with listening() as scripted:
        tagged = scripted.push("team/site:v1", IMAGE)
        for rules in (RegistryRules(), RegistryRules(insecure=True)):
            async with registry_at(scripted.host, rules, may_be_private=False) as registry:
                with pytest.raises(
                    (AddressRefused, RegistryFailed), match=r"not public|plain HTTP"
                ):
                    await registry.resolve(tagged)
        assert scripted.accepted == 0


@within(10)
async def test_cancel() -> None:
    """Cancelling a request closes its connection in any phase (C39)."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.script("", lambda *_: NOTHING, cut(10, "silence"), status(503, Retry_After="9"))
        for asked in (1, 2, 3):
            resolving = Deferred.fromCoroutine(registry.resolve(tagged))
            cancelled = resolving.addErrback(lambda failure: failure.type.__name__)
            await until(lambda asked=asked: len(scripted.requests) == asked)
            resolving.cancel()
            assert await cancelled == "CancelledError"
            if asked < 3:
                await until(lambda: not scripted.connections)


@within(10)
async def test_close() -> None:
    """Closing ends ten stalled pulls and a waiting look-up at once, with every connection."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as scripted, registry_at(scripted.host) as registry:
        tagged = scripted.push("team/site:v1", IMAGE)
        scripted.always("blobs", cut(10, "silence"))
        scripted.always("manifests", lambda *_: NOTHING)
        pulls = [
            _outcome(registry.fetch(tagged.repository, IMAGE.layers[0], Sink())) for _ in range(10)
        ]
        pulls.append(_outcome(registry.resolve(tagged)))
        await until(lambda: len(scripted.requests) == 11)
        begun = reactor.seconds()
        await registry.close()
        assert [await pull for pull in pulls] == [StoreClosed] * 11
        await until(lambda: not scripted.connections)
        assert reactor.seconds() - begun < SLACK
        with pytest.raises(StoreClosed):
            await registry.resolve(tagged)


def _outcome(work: object) -> Deferred[object]:
    return Deferred.fromCoroutine(work).addErrback(lambda failure: failure.type)  # type: ignore[arg-type]


@within(10)
async def test_hub() -> None:
    """Images of Docker Hub come from the host of its registry."""
    from twisted.internet.testing import MemoryReactorClock

    from blobserve.oci.http.endpoints import Routes
    from blobserve.oci.http.name_lookup import Names
    from blobserve.oci.registry.registry import Registry
    from blobserve.testing import InlineThreads

    class Resolver:
        def resolveHostName(self, receiver: object, name: str, *_: object) -> None:
            names.append(name)

    names: list[str] = []
    clock = MemoryReactorClock()
    clock.nameResolver = Resolver()
    threads = InlineThreads()
    registry = Registry(
        clock, "docker.io", RegistryRules(), None, False, threads, Routes(Names(clock, threads)),
        Limits(), Metrics(),
    )  # fmt: skip
    asking = _outcome(registry.resolve(Reference.parse("docker.io/alpine:3")))
    clock.advance(0)
    await registry.close()
    assert await asking is StoreClosed
    assert names == ["registry-1.docker.io"]
