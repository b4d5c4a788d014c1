"""Types of files by content and by configuration, over HTTP."""

from __future__ import annotations

import gzip
from pathlib import Path

import brotli
import pytest

from blobserve.config import FileType
from tests.support.sites import TAG, serving
from tests.support.within import within

MODULE = b"\0asm" + b"module" * 2000
CODED = brotli.compress(MODULE)
TYPES = (
    FileType("*.wasm.br", "application/wasm", "br"),
    FileType("*.data", "application/x-site-data"),
    FileType("release", "text/plain; charset=ascii"),
    FileType("*.gz", "application/octet-stream", "gzip"),
    FileType("*.br", "application/x-brotli"),
)


@pytest.mark.parametrize("accept", ["", "gzip", "br", "identity;q=0"])
@within(20)
async def test_coded(tmp_path: Path, accept: str) -> None:
    """A coded file that is asked for by its own name is sent as it is, with its coding."""
    files = {"x.wasm.br": CODED, "y.br": CODED}
    async with serving(tmp_path, files) as site:
        site.rule(types=TYPES)
        for _ in range(2):  # The second answer is from memory.
            found = await site.fetch(f"/{TAG}/x.wasm.br", headers={"Accept-Encoding": accept})
            assert (found.status, found.body) == (200, CODED)
            assert found.headers["content-type"] == "application/wasm"
            assert found.headers["content-encoding"] == "br"
            assert "vary" not in found.headers
            await site.turn()
        tag = {"If-None-Match": found.headers["etag"]}
        assert (await site.fetch(f"/{TAG}/x.wasm.br", headers=tag)).status == 304
        part = await site.fetch(f"/{TAG}/x.wasm.br", headers={"Range": "bytes=1-4"})
        assert (part.status, part.body) == (206, CODED[1:5])
        assert part.headers["content-encoding"] == "br"
        other = await site.fetch(f"/{TAG}/y.br")
        assert other.headers["content-type"] == "application/x-brotli"
        assert "content-encoding" not in other.headers


@within(20)
async def test_by_name(tmp_path: Path) -> None:
    """A configured type is sent instead of our own, in every directory and in any case."""
    files = {"a/X.DATA": b"x", "RELEASE": b"1", "a.gz/page.html": b"<p>", "a.gz/b": b"x"}
    async with serving(tmp_path, files) as site:
        site.rule(types=TYPES)
        for name, expected in {
            "a/X.DATA": "application/x-site-data",
            "RELEASE": "text/plain; charset=ascii",
            "a.gz/page.html": "text/html; charset=utf-8",
        }.items():
            found = await site.fetch(f"/{TAG}/{name}")
            assert (found.status, found.headers["content-type"]) == (200, expected)
            assert "content-encoding" not in found.headers


@within(20)
async def test_coding_of_a_configured_text_type(tmp_path: Path) -> None:
    """A file of a configured type that is text is compressed for clients that accept it."""
    text = b"key = value\n" * 1000
    async with serving(tmp_path, {"a.conf5": text, "b.conf6": text}) as site:
        site.rule(types=(FileType("*.conf5", "text/x-conf"), FileType("*.conf6", "image/x-conf")))
        for name, coding in (("a.conf5", "gzip"), ("b.conf6", None)):
            for _ in range(3):
                found = await site.fetch(f"/{TAG}/{name}", headers={"Accept-Encoding": "gzip"})
                await site.turn()
            assert found.headers.get("content-encoding") == coding
            assert (gzip.decompress(found.body) if coding else found.body) == text


CONTENTS = {
    "LICENSE": (b"MIT", "text/plain; charset=utf-8"),
    "empty": (b"", "text/plain; charset=utf-8"),
    "page": (b"<!DOCTYPE html><script>1</script>", "text/plain; charset=utf-8"),
    "a.unknown": ("äöü".encode() * 999, "text/plain; charset=utf-8"),
    "cut": (b"a" * 511 + "ä".encode(), "text/plain; charset=utf-8"),
    "cut-at-the-end": (b"a" * 511 + b"\xc3", "application/octet-stream"),
    "cut-and-short": (b"a" * 99 + b"\xc3", "application/octet-stream"),
    "wrong-after-512": (b"a" * 512 + b"\xff\0", "text/plain; charset=utf-8"),
    "latin": (b"caf\xe9 au lait", "application/octet-stream"),
    "nul": (b"a\0b", "application/octet-stream"),
    "overlong": (b"\xc0\xaf", "application/octet-stream"),
    "surrogate": (b"\xed\xa0\x80", "application/octet-stream"),
    "main.ts": (b"export const a = 1;", "text/plain; charset=utf-8"),
    "video.ts": (b"G\x40\0\x10" * 200, "video/mp2t"),
    "text.bin": (b"text", "application/octet-stream"),
    "text.png": (b"text", "image/png"),
}


@pytest.mark.parametrize("layers", [1, 2])
@within(30)
async def test_by_content(tmp_path: Path, layers: int) -> None:
    """A file without a known ending is text if it starts so; no file becomes HTML by its bytes."""
    files = {name: content for name, (content, _) in CONTENTS.items()}
    others = [{"other": b"\xff"}] * (layers - 1)
    async with serving(tmp_path, files, *others) as site:
        site.rule(layers="all")
        for name, (content, expected) in CONTENTS.items():
            found = await site.fetch(f"/{TAG}/{name}")
            assert (found.status, found.body) == (200, content)
            assert found.headers["content-type"] == expected, name
