"""Ranges over real sockets, with and without the fast path: rows H20 to H36."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded
from blobserve.store.index.layer_index import IndexWriter
from blobserve.tar.reader import Member
from tests.support.raw_http import Conversation, hold
from tests.support.sites import TAG, Serving, serving
from tests.support.within import within
from tests.traps.cases_http import ASKED, RANGES, TEXT, Case, tag_of


@pytest.mark.parametrize("case", RANGES, ids=lambda case: case.name)
@within(30)
async def test_range(answering: Serving, case: Case) -> None:
    """A valid range is answered and anything else ignored, with and without the fast path."""
    await hold(answering, case)


@within(30)
async def test_h26_a_range_of_a_hundred_thousand_bytes(answering: Serving) -> None:
    """A Range field too long for a head gets a 431."""
    for ranges in (b"0-," * 33_333, b"9" * 100_000):
        conversation = await Conversation.begin(answering)
        reply = await conversation.ask(ASKED[:-2] + b"Range: bytes=" + ranges + b"\r\n\r\n")
        assert reply.status == 431
        assert await conversation.is_over()


@pytest.mark.parametrize("asked", ["gzip", "zstd", "br", "gzip, zstd, br", "identity", "*;q=0", ""])
@within(30)
async def test_h34_ranges_and_codings(answering: Serving, asked: str) -> None:
    """A range is a part of the uncoded file, under its ETag, for any Accept-Encoding."""
    lines = (
        ASKED.replace(b"asked.txt", b"text.css")[:-2] + b"Accept-Encoding: %b\r\n" % asked.encode()
    )
    conversation = await Conversation.begin(answering)
    for _ in range(3):
        whole = await conversation.ask(lines + b"\r\n")
        part = await conversation.ask(lines + b"Range: bytes=10-19\r\n\r\n")
        assert (part.status, part.body) == (206, TEXT[10:20])
        assert part.headers["etag"] == tag_of(TEXT)
        assert "content-encoding" not in part.headers
        is_coded = "content-encoding" in whole.headers
        assert is_coded == (whole.headers["etag"] != tag_of(TEXT))  # H11
        assert is_coded == (whole.body != TEXT)
    conversation.leave()


def with_large_files(space: Path) -> None:
    """Replace the one blob of `space` by one with sparse files of `SIZES`."""
    [directory] = space.glob("blobs/*/*")
    digest = Digest.parse(f"{directory.parent.name}:{directory.name}")
    (directory / "index").unlink()
    index, end = IndexWriter(directory / "index", Limits()), 0
    with (directory / "content").open("wb") as content:
        for number, (name, size) in enumerate(SIZES.items()):
            start = end + 512
            end = start + -(-size // 512) * 512
            tag = bytes([number]) * 32
            index.add(Member(number, name.encode(), b"0", 0o644, None, b"", start, size, tag))
            for boundary in (*BOUNDARIES, size):
                if boundary <= size:
                    content.seek(start + boundary - 8)
                    content.write(b"%016x" % boundary)
        content.truncate(end)
    built = index.finish(end)
    state = MetadataDb(space / "state")
    state.open()
    state.change(recorded(Record(digest, end, built.size, built.sha256, 0.0, durable=True)))
    state.close()


BOUNDARIES = (1 << 31, 1 << 32)
SIZES = {"two.bin": (1 << 31) + 10, "four.bin": (1 << 32) + 10}


def read(path: Path, offset: int, length: int) -> bytes:
    """Return the expected bytes at an offset of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@pytest.mark.parametrize("hot_path", [True, False], ids=["hot", "parsed"])
@within(30)
async def test_h36_files_beyond_4_gib(tmp_path: Path, hot_path: bool) -> None:
    """Ranges of files of more than 2 and 4 GiB are exact around the powers of two."""
    async with serving(tmp_path, {"small": b""}) as site:
        await site.fetch(f"/{TAG}/small")
    with_large_files(tmp_path / "space")
    [content] = (tmp_path / "space").glob("blobs/*/*/content")
    async with serving(tmp_path, hot_path=hot_path) as site:
        conversation, end = await Conversation.begin(site), 0
        for name, size in SIZES.items():
            start, end = end + 512, end + 512 + -(-size // 512) * 512
            head = f"GET /{TAG}/{name} HTTP/1.1\r\nHost: x\r\n".encode()
            whole = await conversation.ask(head.replace(b"GET", b"HEAD") + b"\r\n", "HEAD")
            assert int(whole.headers["content-length"]) == size
            places = [each + n for each in (*BOUNDARIES, size) for n in (-9, -1, 0, 1)]
            for at in [*places, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64]:
                raw = head + b"Range: bytes=%d-%d\r\n\r\n" % (at, at + 9)
                last = min(at + 9, size - 1)
                for cuts in ((), (), (20,)):
                    reply = await conversation.ask(raw, cuts=cuts)
                    if at >= size:
                        expected = 416, f"bytes */{size}"
                    else:
                        expected = 206, f"bytes {at}-{last}/{size}"
                        assert reply.body == read(content, start + at, last - at + 1)
                    assert (reply.status, reply.headers["content-range"]) == expected
            reply = await conversation.ask(head + b"Range: bytes=-9\r\n\r\n")
            assert reply.body == read(content, start + size - 9, 9)
        conversation.leave()
