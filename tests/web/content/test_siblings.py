"""Precompressed siblings in an image: their verification, over HTTP."""

from __future__ import annotations

import errno
import gzip
import sys
from pathlib import Path
from typing import Any

import attrs
import brotli
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from blobserve.metrics import Metrics
from blobserve.store.blobs.blob import BlobLease
from blobserve.store.blobspace import BlobState
from blobserve.store.space.siblings import LARGEST, MOST_WAITING, RETRY
from blobserve.testing import InlineThreads
from tests.support.coded_layers import lease, of_files, text
from tests.support.layers import File
from tests.support.sites import REPOSITORY, TAG, Response, Serving, serving
from tests.support.spaces import Held, opened, take_in
from tests.support.within import within

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"".join(b"let line%d = %d;\n" % (number, number * number) for number in range(300))
OLD = TEXT.replace(b"line7", b"line8")
NARROW = {zstd.DecompressionParameter.window_log_max: 23}
WIDE = {zstd.CompressionParameter.window_log: 24}


def wide(content: bytes) -> bytes:
    """Return a zstd frame with a window of 16 MiB."""
    compressor = zstd.ZstdCompressor(options=WIDE)
    return compressor.compress(content) + compressor.flush()


RIGHT = {
    "br": (".br", brotli.compress(TEXT)),
    "gzip": (".gz", gzip.compress(TEXT, 1)),
    "zstd": (".zst", zstd.compress(TEXT, 1)),
}
WRONG = {
    "junk .br": (".br", b"as brotli"),
    "junk .gz": (".gz", b"as gzip"),
    "junk .zst": (".zst", b"as zstd"),
    "outdated .br": (".br", brotli.compress(OLD)),
    "outdated .gz": (".gz", gzip.compress(OLD)),
    "outdated .zst": (".zst", zstd.compress(OLD)),
    "truncated .br": (".br", brotli.compress(TEXT)[:-9]),
    "truncated .gz": (".gz", gzip.compress(TEXT)[:-9]),
    "truncated .zst": (".zst", zstd.compress(TEXT)[:-9]),
    "a window of 16 MiB": (".zst", wide(TEXT)),
    "empty": (".gz", b""),
}
ACCEPTING = {"Accept-Encoding": "gzip, deflate, br, zstd"}
NAMES = {".br": "br", ".gz": "gzip", ".zst": "zstd"}


def decoded(metrics: Metrics, outcome: str) -> float:
    """Return the number of siblings with this outcome."""
    values = [
        metrics.registry.get_sample_value(
            "blobserve_siblings_total", {"coding": coding, "outcome": outcome}
        )
        for coding in NAMES.values()
    ]
    return sum(filter(None, values))


async def settled(site: Serving, accept: str, name: str = "app.bin", tag: str = TAG) -> Response:
    """Repeat a request until its siblings are verified; return the last answer."""
    for _ in range(3):
        found = await site.fetch(f"/{tag}/{name}", headers={"Accept-Encoding": accept})
        await site.turn()
    return found


@pytest.mark.parametrize("coding", RIGHT)
@within(20)
async def test_right(tmp_path: Path, coding: str) -> None:
    """A sibling is served as a coding after it was found to decode to the file."""
    ending, content = RIGHT[coding]
    async with serving(tmp_path, {"app.bin": TEXT, f"app.bin{ending}": content}) as site:
        site.rule(precompressed=True)
        first = await site.fetch(f"/{TAG}/app.bin", headers={"Accept-Encoding": coding})
        assert first.body in (TEXT, content)
        found = await settled(site, coding)
        assert (found.body, found.headers["content-encoding"]) == (content, coding)
        assert found.headers["vary"] == "Accept-Encoding"
        assert (await site.fetch(f"/{TAG}/app.bin")).body == TEXT
        assert (decoded(site.metrics, "right"), decoded(site.metrics, "wrong")) == (1, 0)


@pytest.mark.parametrize("name", WRONG)
@within(20)
async def test_wrong(tmp_path: Path, name: str) -> None:
    """A sibling that does not decode to the file is ignored, and logged once."""
    ending, content = WRONG[name]
    files = {"app.bin": TEXT, f"app.bin{ending}": content, "index.html": b"page"}
    with capturedLogs() as told:
        async with serving(tmp_path, files) as site:
            site.rule(precompressed=True)
            for accept in (NAMES[ending], ACCEPTING["Accept-Encoding"], "*"):
                found = await settled(site, accept)
                assert found.body == TEXT
                assert "content-encoding" not in found.headers
                assert "vary" not in found.headers
            site.site.flush()
            await settled(site, NAMES[ending])
            raw = await site.fetch(f"/{TAG}/app.bin{ending}", headers=ACCEPTING)
            assert raw.body == content
            assert (decoded(site.metrics, "right"), decoded(site.metrics, "wrong")) == (0, 1)
    [line] = [each for each in told if "is not served as" in each["log_format"]]
    assert line["path"] == f"'app.bin{ending}'"
    assert line["coding"] == NAMES[ending]


@within(20)
async def test_made_here_instead(tmp_path: Path) -> None:
    """A text with ignored siblings is coded as any other."""
    files = {"app.js": TEXT, "app.js.gz": gzip.compress(OLD), "app.js.zst": wide(TEXT)}
    async with serving(tmp_path, files) as site:
        site.rule(precompressed=True)
        found = await settled(site, "gzip", "app.js")
        assert found.headers["content-encoding"] == "gzip"
        assert gzip.decompress(found.body) == TEXT
        found = await settled(site, "zstd", "app.js")
        assert found.headers["content-encoding"] == "zstd"
        assert zstd.decompress(found.body, options=NARROW) == TEXT
        assert decoded(site.metrics, "wrong") == 2


@within(20)
async def test_of_several_layers(tmp_path: Path) -> None:
    """A sibling is compared with the served file, even if they are in different layers."""
    layers = (
        {"a.bin": TEXT, "b.bin.br": brotli.compress(TEXT), "a.bin.br": brotli.compress(TEXT)},
    )
    async with serving(tmp_path, *layers, {"b.bin": TEXT, "a.bin": OLD}) as site:
        site.rule(precompressed=True, layers="all")
        assert (await settled(site, "br", "b.bin")).headers["content-encoding"] == "br"
        found = await settled(site, "br", "a.bin")
        assert found.body == OLD
        assert "content-encoding" not in found.headers


@within(20)
async def test_equal_pairs_are_decoded_once(tmp_path: Path) -> None:
    """The result for two contents applies at once to every image with both."""
    files = {"app.bin": TEXT, "app.bin.br": RIGHT["br"][1], "app.bin.gz": b"junk"}
    with capturedLogs() as told:
        async with serving(tmp_path, {**files, "x": b"1"}) as site:
            site.rule(precompressed=True)
            await settled(site, "br")
            site.push({**files, "x": b"2"}, reference=f"{REPOSITORY}:v2")
            target = f"/{REPOSITORY}:v2/app.bin"
            found = await site.fetch(target, headers={"Accept-Encoding": "br, gzip"})
            assert found.headers["content-encoding"] == "br"
            assert decoded(site.metrics, "right") == decoded(site.metrics, "wrong") == 1
    # The log names the files of both images.
    assert len({each["digest"] for each in told if "is not served as" in each["log_format"]}) == 2


@within(20)
async def test_without_the_rule(tmp_path: Path) -> None:
    """Without the rule of a repository no sibling is decoded."""
    async with serving(tmp_path, {"app.bin": TEXT, "app.bin.br": RIGHT["br"][1]}) as site:
        assert "content-encoding" not in (await settled(site, "br")).headers
        assert decoded(site.metrics, "right") == 0


# --- In the blob space ----------------------------------------------------------------------------

PLAIN = text(1)
SITE = of_files(
    File(b"a", PLAIN), File(b"a.gz", gzip.compress(PLAIN)), File(b"a.br", brotli.compress(text(2)))
)


def ask(blob: BlobLease, name: bytes = b"a.gz", coding: bytes = b"gzip") -> bool | None:
    """Ask whether a file is the stated coding of ``a``."""
    return blob.is_coding(blob.filesystem.lookup(name), coding, blob.filesystem.lookup(b"a"))


@pytest_twisted.ensureDeferred
async def test_nothing_waits_for_it(tmp_path: Path) -> None:
    """While a sibling is decoded in a thread its state is unknown; it is decoded once."""
    metrics, threads = Metrics(), Held()
    async with opened(tmp_path, threads=threads, disk=InlineThreads(), metrics=metrics) as space:
        taken_in = Deferred.fromCoroutine(take_in(space, SITE))
        threads.go_all()
        await taken_in
        blobs = [lease(space, SITE) for _ in range(3)]
        while not decoded(metrics, "right"):
            assert [ask(blob) for blob in blobs] == [None] * 3
            threads.go()
        assert [ask(blob) for blob in blobs] == [True] * 3
        threads.go_all()
        assert decoded(metrics, "right") == 1
        for blob in blobs:
            blob.release()
        assert space.state_of(SITE.digest) is BlobState.READY


@pytest_twisted.ensureDeferred
async def test_closing(tmp_path: Path) -> None:
    """A blob space that closes ends a decoding and reports nothing."""
    threads, metrics = Held(), Metrics()
    async with opened(tmp_path, threads=threads, disk=InlineThreads(), metrics=metrics) as space:
        taken_in = Deferred.fromCoroutine(take_in(space, SITE))
        threads.go_all()
        await taken_in
        blob = lease(space, SITE)
        assert ask(blob) is None
        assert ask(blob, b"a.br", b"br") is None
        closing = Deferred.fromCoroutine(space.close())
        threads.go_all()
        assert closing.called
        assert ask(blob) is None
        assert not threads.jobs
        blob.release()
    assert (decoded(metrics, "right"), decoded(metrics, "failed")) == (0, 0)


class Failing(InlineThreads):
    """Threads on a disk that fails while `error` is set."""

    error: Exception | None = None

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        return fail(self.error) if self.error else super().run(f, *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_failing(tmp_path: Path) -> None:
    """A sibling that could not be decoded is ignored for a while and then tried again."""
    clock, metrics, threads = Clock(), Metrics(), Failing()
    async with opened(
        tmp_path, threads=threads, disk=InlineThreads(), reactor=clock, metrics=metrics
    ) as space:
        await take_in(space, SITE)
        blob = lease(space, SITE)
        threads.error = OSError(errno.EIO, "I/O error")
        assert [ask(blob) for _ in range(3)] == [None] * 3
        assert decoded(metrics, "failed") == 1
        threads.error = None
        assert ask(blob) is None
        clock.advance(RETRY)
        assert ask(blob) is True
        blob.release()


@pytest_twisted.ensureDeferred
async def test_what_is_too_large(tmp_path: Path) -> None:
    """A file above the limit is not decoded."""
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        await take_in(space, SITE)
        blob = lease(space, SITE)
        coded, plain = (blob.filesystem.lookup(name) for name in (b"a.gz", b"a"))
        larger = attrs.evolve(plain, size=LARGEST + 1)
        assert blob.is_coding(coded, b"gzip", larger) is False
        assert blob.is_coding(attrs.evolve(coded, size=LARGEST + 1), b"gzip", plain) is False
        assert decoded(metrics, "right") + decoded(metrics, "wrong") == 0
        blob.release()


@pytest_twisted.ensureDeferred
async def test_few_may_wait(tmp_path: Path) -> None:
    """Beyond a limit the sibling that was requested longest ago is dropped from the queue."""
    count = MOST_WAITING + 2
    files = [File(b"%d" % n, b"%d" % n) for n in range(count)]
    many, metrics, threads = of_files(File(b"a", PLAIN), *files), Metrics(), Held()
    async with opened(tmp_path, threads=threads, disk=InlineThreads(), metrics=metrics) as space:
        taken_in = Deferred.fromCoroutine(take_in(space, many))
        threads.go_all()
        await taken_in
        blob = lease(space, many)
        for n in range(count):  # the first begins at once
            assert ask(blob, b"%d" % n) is None
        threads.go_all()
        assert decoded(metrics, "wrong") == MOST_WAITING + 1
        assert ask(blob, b"1") is None
        threads.go_all()
        assert ask(blob, b"1") is False
        blob.release()
