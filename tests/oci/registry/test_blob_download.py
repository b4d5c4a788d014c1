"""Blob downloads: cuts, ranges, stalls, and wrong sizes."""

from __future__ import annotations

import gzip
import re

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from blobserve.config import Limits, RegistryRules
from blobserve.errors import BlobNotFound, ContentMismatch, RegistryFailed, RegistryRefused
from blobserve.names.digest import Digest
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.manifest import Descriptor
from tests.support.scripted_registry import (
    Answer,
    Asked,
    Scripted,
    Step,
    cut,
    listening,
    redirect,
    status,
)
from tests.support.source_fixtures import QUICK, Sink, registry_at, until
from tests.support.within import within

BLOB = b"".join(Digest.of(bytes([n & 255, n >> 8])).hex.encode() for n in range(48_000))
HALF = len(BLOB) // 2


async def fetched(scripted: Scripted, blob: bytes = BLOB, limits: Limits | None = None) -> Sink:
    """Download the blob by its true descriptor; return its bytes."""
    sink = Sink()
    digest = scripted.hold("team/site", blob)
    async with registry_at(scripted.host, limits=limits) as registry:
        repository = Repository.parse(f"{scripted.host}/team/site")
        await registry.fetch(repository, Descriptor("", digest, len(blob)), sink)
    return sink


@within(10)
@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("after", [0, 1, 511, 512, HALF, len(BLOB) - 1])
async def test_cut(after: int, end: str) -> None:
    """A download that is cut off resumes at its offset, for the same content only (C01, C02)."""
    async with listening() as scripted:
        scripted.script("blobs", cut(after, end))  # type: ignore[arg-type]
        assert (await fetched(scripted)).content == BLOB
        again = scripted.requests[1].headers
        if after:
            assert again["range"] == f"bytes={after}-{len(BLOB) - 1}"
            assert again["if-range"] == f'"{Digest.of(BLOB)}"'
        else:
            assert "range" not in again


@within(10)
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_cut_without_length(framing: str) -> None:
    """A cut is noticed also in a body without a length (C03, C04)."""

    def step(asked: Asked, usual: Answer) -> Answer:
        return attrs.evolve(usual, framing=framing, sent=1000, end="close")

    async with listening() as scripted:
        scripted.script("blobs", step)
        assert (await fetched(scripted)).content == BLOB
        assert len(scripted.requests) == 2


@within(20)
async def test_many_cuts() -> None:
    """Cuts are resumed as long as each connection delivers another mebibyte (C05)."""
    async with listening() as scripted:
        scripted.always("blobs", cut((1 << 20) + 1))
        assert (await fetched(scripted, BLOB * 3)).content == BLOB * 3
        assert len(scripted.requests) == 9


@within(10)
async def test_no_progress() -> None:
    """A download fails after three connections without progress (C06)."""
    async with listening() as scripted:
        scripted.always("blobs", cut(0))
        with pytest.raises(RegistryFailed, match="it cut off its answer"):
            await fetched(scripted)
        assert len(scripted.requests) == 3


@within(10)
async def test_through_the_registry() -> None:
    """The rest of a blob is requested from the registry again, since its redirect may have expired.

    Row C13.
    """
    async with listening() as storage, listening() as scripted:
        digest = storage.hold("team/site", BLOB)
        place = f"http://{storage.host}/v2/team/site/blobs/{digest}?signature="
        scripted.script(
            "blobs", redirect(place + "1"), redirect(place + "2"), redirect(place + "3")
        )
        storage.script("signature=1", cut(HALF))
        storage.script("signature=2", status(403))
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({storage.host}))
        sink = Sink()
        async with registry_at(scripted.host, rules) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            await registry.fetch(repository, Descriptor("", digest, len(BLOB)), sink)
        assert sink.content == BLOB
        ranges = [each.headers.get("range") for each in storage.requests]
        assert ranges == [None, *[f"bytes={HALF}-{len(BLOB) - 1}"] * 2]


def ranged(value: str | None, body: bytes | None = None, **fields: str) -> Step:
    """Return a step that answers 206 with this Content-Range."""

    def step(asked: Asked, usual: Answer) -> Answer:
        part = usual.having(**fields)
        if body is not None:
            part = attrs.evolve(part, body=body)
        kept = tuple(each for each in part.headers if each[0] != "content-range")
        extra = () if value is None else tuple(("content-range", v) for v in value.split("\n"))
        return attrs.evolve(part, status=206, headers=kept + extra)

    return step


SIZE = len(BLOB)


@within(10)
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "bytes 1-2",
        "bytes -1-2/3",
        f"bytes {HALF}-{SIZE - 1}/{SIZE} x",
        f"bytes 0{HALF}-{SIZE - 1}/{SIZE}",
        f"bytes {HALF}-{SIZE - 1}/{SIZE + 1}",
        f"bytes {HALF}-{SIZE}/{SIZE}",
        f"bytes {HALF - 1}-{SIZE - 1}/{SIZE}",
        f"bytes {HALF + 1}-{SIZE - 1}/{SIZE}",
        f"bytes 0-{SIZE - 1}/{SIZE}",
        f"octets {HALF}-{SIZE - 1}/{SIZE}",
        f"bytes {HALF}-{SIZE - 1}/{SIZE}\nbytes 0-1/{SIZE}",
    ],
)
async def test_bad_range(value: str | None) -> None:
    """A 206 without the exact Content-Range is not used, and the whole blob is requested.

    Rows C07, C08.
    """
    async with listening() as scripted:
        scripted.script("blobs", cut(HALF), ranged(value))
        assert (await fetched(scripted)).content == BLOB
        assert "range" not in scripted.requests[2].headers


@within(10)
@pytest.mark.parametrize("total", [str(SIZE), "*"])
async def test_short_range(total: str) -> None:
    """A range shorter than requested is used, and the rest is requested."""
    short = ranged(f"bytes {HALF}-{HALF + 9}/{total}", BLOB[HALF : HALF + 10])
    async with listening() as scripted:
        scripted.script("blobs", cut(HALF), short)
        assert (await fetched(scripted)).content == BLOB
        assert scripted.requests[2].headers["range"] == f"bytes={HALF + 10}-{SIZE - 1}"


@within(10)
@pytest.mark.parametrize("code", [200, 400, 416])
async def test_no_ranges(code: int) -> None:
    """The whole blob in answer to a range is accepted, and only the rest is written.

    Rows C10, C11.
    """

    def step(asked: Asked, usual: Answer) -> Answer:
        if code != 200:
            return Answer(code)
        return Answer(body=BLOB)

    async with listening() as scripted:
        scripted.script("blobs", cut(HALF), step)
        assert (await fetched(scripted)).content == BLOB


@within(20)
async def test_always_from_the_beginning() -> None:
    """A registry that starts over at each cut is abandoned at twice the blob's size (C10)."""

    def step(asked: Asked, usual: Answer) -> Answer:
        so_far = min(SIZE - 1, len(scripted.requests) * (3 << 19))
        return Answer(body=BLOB, sent=so_far, end="close")

    async with listening() as scripted:
        scripted.always("blobs", step)
        with pytest.raises(RegistryFailed):
            await fetched(scripted)
        assert len(scripted.requests) <= 5


@within(10)
async def test_length() -> None:
    """A Content-Length other than the descriptor's size is refused before the body (C14)."""
    async with listening() as scripted:
        for announced in (SIZE - 1, SIZE + 1):
            lie = Answer(body=BLOB, announced=announced)
            scripted.script("blobs", lambda *_, lie=lie: lie)
            with pytest.raises(ContentMismatch, match=f"{announced} bytes were announced"):
                await fetched(scripted)


@within(10)
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_too_long(framing: str) -> None:
    """A body beyond the descriptor's size is refused, and its connection is closed.

    Row C15.
    """
    async with listening() as scripted:
        longer = Answer(body=BLOB * 2, framing=framing, end="silence")  # type: ignore[arg-type]
        scripted.script("blobs", lambda *_: longer)
        with pytest.raises(ContentMismatch, match="longer than the blob"):
            await fetched(scripted)


LABELS = ("identity", "aws-chunked", "aws-chunked,gzip", "gzip, identity", "binary", "x-gzip")


@within(10)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("label", [*LABELS, "gzip", "GZIP", "zstd", "br", "utf-8", "x y"])
async def test_label(label: str, framing: str) -> None:
    """A Content-Encoding on bytes that are not encoded is ignored, also for a range."""

    def step(asked: Asked, usual: Answer) -> Answer:
        labelled = usual.having(content_encoding=label)
        return attrs.evolve(labelled, framing=framing)

    def cut_off(asked: Asked, usual: Answer) -> Answer:
        return attrs.evolve(usual, sent=HALF, end="close").having(content_encoding=label)

    for content in (BLOB, gzip.compress(BLOB)):
        async with listening() as scripted:
            scripted.script("blobs", cut_off)
            scripted.always("blobs", step)
            assert (await fetched(scripted, content)).content == content


@within(10)
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_content_coding_of_no_length(framing: str) -> None:
    """A compressed blob without a length is refused for its content coding."""
    async with listening() as scripted:
        coded = Answer(body=gzip.compress(bytes(9000)), framing=framing)  # type: ignore[arg-type]
        scripted.script("blobs", lambda *_: coded.having(content_encoding="gzip"))
        with pytest.raises(RegistryFailed, match="content coding"):
            await fetched(scripted, bytes(9000))


@within(10)
async def test_content_coding() -> None:
    """A blob with a content coding is refused and never decoded (C38)."""
    async with listening() as scripted:
        coded = Answer(body=gzip.compress(BLOB)).having(content_encoding="gzip")
        scripted.script("blobs", lambda *_: coded)
        with pytest.raises(RegistryFailed, match="content coding"):
            await fetched(scripted)
        assert {each.headers["accept-encoding"] for each in scripted.requests} == {"identity"}


@within(10)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (404, BlobNotFound),
        (410, BlobNotFound),
        (401, RegistryRefused),
        (403, RegistryRefused),
        (400, RegistryFailed),
        (204, RegistryFailed),
        (206, RegistryFailed),
    ],
)
async def test_refusals(code: int, error: type[Exception]) -> None:
    """A blob that a registry refuses is not requested again (C25)."""
    async with listening() as scripted:
        scripted.script("blobs", status(code))
        with pytest.raises(error):
            await fetched(scripted)
        assert len(scripted.requests) == 1


@within(10)
async def test_stall() -> None:
    """A silent body is cut off and resumed on another connection (C18)."""
    async with listening() as scripted:
        scripted.script("blobs", cut(HALF, "silence"))
        assert (await fetched(scripted, limits=QUICK)).content == BLOB


@within(10)
async def test_pause_is_no_stall() -> None:
    """A pause of the consumer does not count as a stall."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as scripted, registry_at(scripted.host, limits=QUICK) as registry:
        blob = BLOB * 4
        descriptor = Descriptor("", scripted.hold("team/site", blob), len(blob))
        sink = Sink(pause_at=1)
        repository = Repository.parse(f"{scripted.host}/team/site")
        fetching = Deferred.fromCoroutine(registry.fetch(repository, descriptor, sink))
        await sink.has(1)
        await deferLater(reactor, QUICK.silence_timeout * 3)
        sink.flow()
        await fetching
        assert sink.content == blob
        assert len(scripted.requests) == 1


@within(10)
async def test_paused_from_the_beginning() -> None:
    """A consumer that pauses before the first byte gets none, also on the next connection."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    async with listening() as scripted, registry_at(scripted.host) as registry:
        descriptor = Descriptor("", scripted.hold("team/site", BLOB), SIZE)
        scripted.script("blobs", cut(10, "reset"))
        sink = Sink(pause_at=1)
        repository = Repository.parse(f"{scripted.host}/team/site")
        fetching = Deferred.fromCoroutine(registry.fetch(repository, descriptor, sink))
        await sink.has(10)
        assert len(sink.content) == 10
        sink.producer.resumeProducing()  # type: ignore[union-attr]
        sink.producer.pauseProducing()  # type: ignore[union-attr]
        await deferLater(reactor, 0.1)
        assert len(sink.content) <= 1 << 20
        sink.flow()
        await fetching
        assert sink.content == BLOB


@within(10)
async def test_stopped_by_its_consumer() -> None:
    """A consumer that stops its producer ends the download and its connection."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        descriptor = Descriptor("", scripted.hold("team/site", BLOB), SIZE)
        scripted.script("blobs", cut(10, "silence"))
        sink = Sink()
        repository = Repository.parse(f"{scripted.host}/team/site")
        fetching = Deferred.fromCoroutine(registry.fetch(repository, descriptor, sink))
        ended = fetching.addErrback(lambda failure: failure.type.__name__)
        await sink.has(10)
        sink.producer.stopProducing()  # type: ignore[union-attr]
        assert await ended == "CancelledError"
        await until(lambda: not scripted.connections)


@within(10)
async def test_password_stays() -> None:
    """Storage that a registry redirects to never gets the registry's credentials (C32)."""
    async with listening() as storage, listening() as scripted:
        digest = storage.hold("team/site", BLOB)
        scripted.hold("team/site", BLOB)
        scripted.user = "reader:secret"
        elsewhere = redirect(f"http://{storage.host}/v2/team/site/blobs/{digest}")
        scripted.script("blobs", lambda _, usual: usual, elsewhere)
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({storage.host}))
        sink = Sink()
        async with registry_at(scripted.host, rules, Credential("reader", "secret")) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            await registry.fetch(repository, Descriptor("", digest, SIZE), sink)
        assert sink.content == BLOB
        assert [each.authorization for each in storage.requests] == [None]
        assert re.match("Basic ", scripted.requests[1].authorization or "")


@within(10)
async def test_log() -> None:
    """A log line has no query of a signed URL, no credential and no text of a registry.

    Row C47.
    """
    with capturedLogs() as logged:
        async with listening() as storage, listening() as scripted:
            digest = scripted.hold("team/site", BLOB)
            signed = redirect(f"http://{storage.host}/x?signature=hushhush")
            scripted.has_tokens, scripted.user = True, "reader:hushhush"
            scripted.script("GET /v2", status(500), lambda _, usual: usual, signed, signed)
            body = b'{"errors": [{"code": "DENIED", "message": "hushhush"}]}'
            storage.script("", lambda *_: Answer(503, body=body), lambda *_: Answer(404, body=body))
            rules = RegistryRules(insecure=True, allow_hosts=frozenset({storage.host}))
            credential = Credential("reader", "hushhush")
            async with registry_at(scripted.host, rules, credential) as registry:
                repository = Repository.parse(f"{scripted.host}/team/site")
                with pytest.raises(BlobNotFound):
                    await registry.fetch(repository, Descriptor("", digest, SIZE), Sink())
    events = [f"{formatEvent(event)} {event.get('log_failure')}" for event in logged]
    assert any("503 DENIED" in event for event in events)
    assert not any("hushhush" in event or "token-1" in event for event in events)


@within(10)
async def test_storage_that_asks() -> None:
    """Storage that answers 401 with a challenge gets no credentials (C36)."""
    async with listening() as storage, listening() as scripted:
        digest = storage.hold("team/site", BLOB)
        storage.has_tokens = True
        scripted.always("blobs", redirect(f"http://{storage.host}/v2/team/site/blobs/{digest}"))
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({storage.host}))
        async with registry_at(scripted.host, rules, Credential("reader", "secret")) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            with pytest.raises(
                RegistryFailed, match=f"it leads to {storage.host}, which failed: it answered 401"
            ):
                await registry.fetch(repository, Descriptor("", digest, SIZE), Sink())
        assert not storage.asked("/token")
        assert {each.authorization for each in storage.requests} == {None}
