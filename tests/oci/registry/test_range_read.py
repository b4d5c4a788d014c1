"""Range reads of blobs over HTTP, with registries that ignore or falsify ranges."""

from __future__ import annotations

import gzip

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred

from blobserve.config import RegistryRules
from blobserve.errors import BlobNotFound, ContentMismatch, RegistryFailed, RegistryRefused
from blobserve.names.reference import Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.range_read import MOST_SKIPPED
from tests.oci.registry.test_blob_download import BLOB, LABELS
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
from tests.support.source_fixtures import QUICK, registry_at, until
from tests.support.within import within

START, LENGTH = 1000, 5000
PART = BLOB[START : START + LENGTH]


async def part(
    scripted: Scripted, start: int = START, length: int = LENGTH, storage: str = ""
) -> bytes:
    """Read a range of the blob."""
    digest = scripted.hold("team/site", BLOB)
    rules = RegistryRules(insecure=True, allow_hosts=frozenset(filter(None, [storage])))
    async with registry_at(scripted.host, rules, limits=QUICK) as registry:
        repository = Repository.parse(f"{scripted.host}/team/site")
        return await registry.read(repository, Descriptor("", digest, len(BLOB)), start, length)


def as_whole(framing: str = "length", **changes: object) -> Step:
    """Answer with the whole blob, as a registry does that ignores ranges."""

    def step(asked: Asked, usual: Answer) -> Answer:
        return Answer(body=BLOB, framing=framing, **changes)  # type: ignore[arg-type]

    return step


@within(10)
async def test_one_request() -> None:
    """A range takes one request for exactly its bytes."""
    async with listening() as scripted:
        assert await part(scripted) == PART
        [asked] = scripted.requests
        assert asked.headers["range"] == f"bytes={START}-{START + LENGTH - 1}"


@within(10)
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, len(BLOB)), (START, LENGTH)])
async def test_whole_instead(framing: str, start: int, length: int) -> None:
    """A whole blob in answer to a range is read up to the end of the range."""
    async with listening() as scripted:
        scripted.always("blobs", as_whole(framing))
        assert await part(scripted, start, length) == BLOB[start : start + length]
        await until(lambda: not scripted.connections)


@within(10)
async def test_whole_instead_is_left() -> None:
    """The rest of a whole blob behind the range is not waited for."""
    async with listening() as scripted:
        scripted.script("blobs", as_whole(sent=START + LENGTH, end="silence"))
        assert await part(scripted) == PART
        await until(lambda: not scripted.connections)


@within(10)
async def test_too_far_into_the_whole() -> None:
    """A range far into a whole blob is refused after the head of the answer."""
    async with listening() as scripted:
        size = MOST_SKIPPED + 10
        scripted.script("blobs", lambda *_: Answer(announced=size, sent=0, end="silence"))
        digest = scripted.hold("team/site", b"whatever")
        async with registry_at(scripted.host) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            with pytest.raises(RegistryFailed, match="whole blob instead"):
                await registry.read(repository, Descriptor("", digest, size), size - 5, 5)
            await until(lambda: not scripted.connections)


@within(20)
@pytest.mark.parametrize("end", ["close", "reset", "silence"])
@pytest.mark.parametrize("after", [0, 10, LENGTH - 1])
async def test_cut(after: int, end: str) -> None:
    """A range that is cut off or stalls is requested again."""
    async with listening() as scripted:
        scripted.script("blobs", cut(after, end))  # type: ignore[arg-type]
        assert await part(scripted) == PART
        assert len(scripted.requests) == 2


@within(20)
async def test_cut_again_and_again() -> None:
    """A range that is always cut off is an error in the end."""
    async with listening() as scripted:
        scripted.always("blobs", cut(10))
        with pytest.raises(RegistryFailed):
            await part(scripted)
        assert len(scripted.requests) == 3


@within(10)
async def test_storage() -> None:
    """A range follows a redirect, and goes back to the registry if the URL has expired."""
    async with listening() as storage, listening() as scripted:
        storage.hold("team/site", BLOB)
        scripted.always("blobs", lambda asked, _: redirect_to(storage, asked))
        storage.script("blobs", status(403))
        assert await part(scripted, storage=storage.host) == PART
        assert [each.headers["range"] for each in storage.requests] == ["bytes=1000-5999"] * 2


@within(10)
async def test_storage_is_remembered() -> None:
    """Further ranges of a blob are requested directly from its storage."""
    async with listening() as storage, listening() as scripted:
        digest = scripted.hold("team/site", BLOB)
        storage.hold("team/site", BLOB)
        scripted.always("blobs", lambda asked, _: redirect_to(storage, asked))
        rules = RegistryRules(insecure=True, allow_hosts=frozenset({storage.host}))
        async with registry_at(scripted.host, rules) as registry:
            repository = Repository.parse(f"{scripted.host}/team/site")
            descriptor = Descriptor("", digest, len(BLOB))
            for start in (5, 500, 50):
                part = await registry.read(repository, descriptor, start, 10)
                assert part == BLOB[start : start + 10]
            assert (len(scripted.asked("blobs")), len(storage.requests)) == (1, 3)
            storage.script("blobs", status(403))
            assert await registry.read(repository, descriptor, 7, 10) == BLOB[7:17]
            assert (len(scripted.asked("blobs")), len(storage.requests)) == (2, 5)


def redirect_to(storage: Scripted, asked: Asked) -> Answer:
    """Return a step that redirects to the same target at `storage`."""
    answer = redirect(f"http://{storage.host}{asked.target}")(asked, Answer())
    assert isinstance(answer, Answer)
    return answer


def _ranged(content_range: str, body: bytes = PART) -> Step:
    return lambda *_: Answer(206, body=body).having(content_range=content_range)


@within(10)
@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes {START + 1}-{START + LENGTH}/{len(BLOB)}",
        f"bytes {START}-{START + LENGTH - 2}/{len(BLOB)}",
        f"bytes {START}-{START + LENGTH}/{len(BLOB)}",
        f"bytes {START}-{START + LENGTH - 1}",
        "",
        "junk",
    ],
)
async def test_another_range(content_range: str) -> None:
    """A 206 with another Content-Range, or none, is refused."""
    async with listening() as scripted:
        scripted.script("blobs", _ranged(content_range))
        with pytest.raises(RegistryFailed, match="range"):
            await part(scripted)


@within(10)
@pytest.mark.parametrize("body", [PART + b"x", PART[:-1]])
async def test_another_length(body: bytes) -> None:
    """A body of another length than its Content-Range is refused."""
    described = f"bytes {START}-{START + LENGTH - 1}/*"
    async with listening() as scripted:
        scripted.always("blobs", _ranged(described, body))
        with pytest.raises(RegistryFailed):
            await part(scripted)
        chunked = attrs.evolve(_answer(_ranged(described, body)), framing="chunked")
        scripted.script("blobs", lambda *_: chunked)
        with pytest.raises(RegistryFailed):
            await part(scripted)


def _answer(step: Step) -> Answer:
    answer = step(Asked("GET", "", {}), Answer())
    assert isinstance(answer, Answer)
    return answer


@within(10)
async def test_another_size() -> None:
    """A blob of another size than the descriptor's is a mismatch, in any form of answer."""
    async with listening() as scripted:
        scripted.script("blobs", _ranged(f"bytes {START}-{START + LENGTH - 1}/{len(BLOB) + 1}"))
        with pytest.raises(ContentMismatch):
            await part(scripted)
        scripted.script("blobs", lambda *_: Answer(body=BLOB + b"x"))
        with pytest.raises(ContentMismatch):
            await part(scripted)


@within(10)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (404, BlobNotFound),
        (410, BlobNotFound),
        (401, RegistryRefused),
        (403, RegistryRefused),
        (400, RegistryFailed),
        (416, RegistryFailed),
        (204, RegistryFailed),
        (206, RegistryFailed),
    ],
)
async def test_refusals(code: int, error: type[Exception]) -> None:
    """A refused range is not requested again."""
    async with listening() as scripted:
        scripted.script("blobs", status(code))
        with pytest.raises(error):
            await part(scripted)
        assert len(scripted.requests) == 1


@within(10)
@pytest.mark.parametrize("label", [*LABELS, "gzip"])
async def test_label(label: str) -> None:
    """A Content-Encoding on bytes that are not encoded is ignored, in any form of answer."""
    async with listening() as scripted:
        whole = Answer(body=BLOB).having(content_encoding=label)
        scripted.script("blobs", lambda _, usual: usual.having(content_encoding=label))
        scripted.script("blobs", lambda *_: whole)
        for _ in range(2):
            assert await part(scripted) == PART


@within(10)
async def test_content_coding() -> None:
    """A range with a content coding is refused and never decoded."""
    async with listening() as scripted:
        described = f"bytes {START}-{START + LENGTH - 1}/{len(BLOB)}"
        coded = _answer(_ranged(described, gzip.compress(PART))).having(
            content_range=described, content_encoding="gzip"
        )
        scripted.script("blobs", lambda *_: coded)
        with pytest.raises(RegistryFailed, match="content coding"):
            await part(scripted)


@within(10)
async def test_cancel() -> None:
    """Cancelling a read closes its connection."""
    async with listening() as scripted, registry_at(scripted.host) as registry:
        descriptor = Descriptor("", scripted.hold("team/site", BLOB), len(BLOB))
        scripted.script("blobs", cut(10, "silence"))
        repository = Repository.parse(f"{scripted.host}/team/site")
        read = Deferred.fromCoroutine(registry.read(repository, descriptor, START, LENGTH))
        await until(lambda: scripted.requests)
        read.cancel()
        with pytest.raises(CancelledError):
            await read
        await until(lambda: not scripted.connections)


@within(10)
@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (len(BLOB) - 1, 2), (5, -1)])
async def test_outside(start: int, length: int) -> None:
    """A range outside its blob is an error of the caller, without a request."""
    async with listening() as scripted:
        with pytest.raises(ValueError, match="within its blob"):
            await part(scripted, start, length)
        assert not scripted.requests
