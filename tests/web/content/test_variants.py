"""Content codings over HTTP: their choice, and the headers for caches."""

from __future__ import annotations

import gzip
import sys
from email import message_from_bytes
from pathlib import Path

import brotli
import pytest

from tests.support.sites import REPOSITORY, TAG, Response, Serving, serving
from tests.support.spaces import pool
from tests.support.within import within

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"".join(b"let line%d = %d;\n" % (number, number * number) for number in range(300))
BR, GZ = brotli.compress(TEXT), gzip.compress(TEXT, 1, mtime=0)
FILES = {
    "app.js": TEXT,
    "index.html": b"<script src=app.js>{{BASE}}</script>" + TEXT,
    "small.js": b"let x = 1;",
    "image.png": TEXT,
    "lib.js": TEXT,
    "lib.js.br": BR,
    "lib.js.gz": GZ,
    "lib.js.zst/file": b"a directory is no sibling",
}
BROWSER = {"Accept-Encoding": "gzip, deflate, br, zstd"}


async def settled(site: Serving, name: str, accept: str, **headers: str) -> Response:
    """Repeat a request until its codings are made; return the last answer."""
    for _ in range(3):
        found = await site.fetch(f"/{TAG}/{name}", headers={"Accept-Encoding": accept, **headers})
        await site.turn()
    return found


@within(20)
async def test_made_here(tmp_path: Path) -> None:
    """The first request for a coding gets the uncoded file, and later ones get the coding."""
    async with serving(tmp_path, FILES) as site:
        first = await site.fetch(f"/{TAG}/app.js", headers=BROWSER)
        assert "content-encoding" not in first.headers
        assert (first.body, first.headers["vary"]) == (TEXT, "Accept-Encoding")
        await site.turn()
        coded = await site.fetch(f"/{TAG}/app.js", headers=BROWSER)
        assert coded.headers["content-encoding"] == "zstd"
        assert zstd.decompress(coded.body) == TEXT
        assert len(coded.body) < len(TEXT) / 2
        gzipped = await settled(site, "app.js", "gzip")
        assert gzipped.headers["content-encoding"] == "gzip"
        assert gzip.decompress(gzipped.body) == TEXT
        plain = await site.fetch(f"/{TAG}/app.js")
        answers = (plain, coded, gzipped)
        assert len({each.headers["etag"] for each in answers}) == 3
        assert {each.headers["vary"] for each in answers} == {"Accept-Encoding"}
        assert {each.headers["content-type"] for each in answers} == {
            "text/javascript; charset=utf-8"
        }
        assert {each.headers["cache-control"] for each in answers} == {
            "public, max-age=60, stale-while-revalidate=60"
        }
        head = await site.fetch(f"/{TAG}/app.js", "HEAD", BROWSER)
        assert head.headers["content-length"] == str(len(coded.body))


@within(20)
async def test_what_is_not_coded(tmp_path: Path) -> None:
    """Small files, incompressible files, and files of other types are sent uncoded."""
    async with serving(tmp_path, FILES) as site:
        for name in ("small.js", "image.png"):
            found = await settled(site, name, "gzip, zstd")
            assert "content-encoding" not in found.headers, name
            assert "vary" not in found.headers, name
        site.rule(codings=())
        found = await settled(site, "app.js", "gzip, zstd")
        assert found.body == TEXT
        assert "vary" not in found.headers
        site.rule(codings=("gzip",))
        assert (await settled(site, "app.js", "gzip, zstd")).headers["content-encoding"] == "gzip"


@within(20)
async def test_weights(tmp_path: Path) -> None:
    """The weights of Accept-Encoding decide, and our order for equal weights."""
    async with serving(tmp_path, FILES) as site:
        for accept, coding in {
            "gzip;q=0.5, zstd": "zstd",
            "gzip, zstd;q=0.5": "gzip",
            "gzip, zstd;q=0": "gzip",
            "zstd;q=0": None,
            "*": "zstd",
            "identity, gzip;q=0.5": None,
            "identity;q=0": None,
            "br": None,
        }.items():
            found = await settled(site, "app.js", accept)
            assert found.headers.get("content-encoding") == coding, accept
            assert found.status == 200


PATHS = pytest.mark.parametrize("hot_path", [True, False], ids=["hot", "parsed"])


@PATHS
@within(20)
async def test_conditions_on_codings(tmp_path: Path, hot_path: bool) -> None:
    """A condition is evaluated on the ETag that a 200 would have."""
    async with serving(tmp_path, FILES, hot_path=hot_path) as site:
        site.rule(precompressed=True)
        tags = {}
        for coding in ("zstd", "gzip", "br", "identity"):
            found = await settled(site, "lib.js", coding)
            assert found.headers.get("content-encoding", "identity") == coding
            tags[coding] = found.headers["etag"]
        assert len(set(tags.values())) == 4
        asked = {"zstd, gzip": "zstd", "gzip": "gzip", "br, gzip": "br", "x": "identity"}
        for accept, selected in asked.items():
            for coding, tag in tags.items():
                others = ", ".join(each for each in tags.values() if each != tag)
                for field, value, status in (
                    ("If-None-Match", tag, 304 if coding == selected else 200),
                    ("If-None-Match", f"W/{tag}", 304 if coding == selected else 200),
                    ("If-None-Match", others, 200 if coding == selected else 304),
                    ("If-None-Match", "*", 304),
                    ("If-Match", tag, 200 if coding == selected else 412),
                    ("If-Match", f"W/{tag}", 412),
                    ("If-Match", others, 412 if coding == selected else 200),
                    ("If-Match", "*", 200),
                ):
                    for method in ("GET", "HEAD"):
                        headers = {"Accept-Encoding": accept, field: value}
                        found = await site.fetch(f"/{TAG}/lib.js", method, headers)
                        assert found.status == status, (accept, coding, field, value)
                        if status != 412:
                            assert found.headers["etag"] == tags[selected]
                            assert found.headers["vary"] == "Accept-Encoding"


@PATHS
@within(20)
async def test_conditions_on_ranges(tmp_path: Path, hot_path: bool) -> None:
    """The conditions of a range are on the uncoded file, or on the coding in its If-Range."""
    async with serving(tmp_path, FILES, hot_path=hot_path) as site:
        coded = (await settled(site, "app.js", "gzip")).headers["etag"]
        plain = (await site.fetch(f"/{TAG}/app.js")).headers["etag"]
        for condition, held, status, tag in (
            ({}, plain, 304, plain),
            ({}, coded, 206, plain),
            ({"If-Range": coded}, coded, 304, coded),
            ({"If-Range": coded}, plain, 206, coded),
            ({"If-Range": plain}, plain, 304, plain),
            ({"If-Range": plain}, coded, 206, plain),
            ({"If-Range": '"x"'}, coded, 200, plain),
        ):
            asked = {"Accept-Encoding": "gzip", "Range": "bytes=5-14", **condition}
            asked["If-None-Match"] = held
            found = await site.fetch(f"/{TAG}/app.js", headers=asked)
            assert (found.status, found.headers["etag"]) == (status, tag), (condition, held)
            asked = {**asked, "If-Match": tag}
            assert (await site.fetch(f"/{TAG}/app.js", headers=asked)).status == status
            asked["If-Match"] = coded if tag == plain else plain
            assert (await site.fetch(f"/{TAG}/app.js", headers=asked)).status == 412


@PATHS
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@within(20)
async def test_an_unchanged_file_after_an_upgrade(
    tmp_path: Path, hot_path: bool, coding: str
) -> None:
    """A text that a new image leaves unchanged keeps its coding, its ETag and its 304.

    The first request gets a 304 without a new compression, also if both images were pulled before
    the coding was made.
    """
    new = {**FILES, "index.html": b"another page"}
    names = {"coding": coding, "outcome": "made"}
    async with serving(tmp_path, FILES, hot_path=hot_path) as site:
        site.push({**FILES, "index.html": b"a third page"}, reference=f"{REPOSITORY}:v3")
        await site.fetch(f"/{REPOSITORY}:v3/index.html")
        held = await settled(site, "app.js", coding)
        assert held.headers["content-encoding"] == coding
        site.push(new, reference=f"{REPOSITORY}:v2")
        for tag in ("v2", "v3"):
            target = f"/{REPOSITORY}:{tag}/app.js"
            asked = {"Accept-Encoding": coding, "If-None-Match": held.headers["etag"]}
            found = await site.fetch(target, headers=asked)
            assert (found.status, found.headers["etag"]) == (304, held.headers["etag"])
            found = await site.fetch(target, headers={"Accept-Encoding": coding})
            assert (found.status, found.body) == (200, held.body)
        assert site.metrics.registry.get_sample_value("blobserve_codings_total", names) == 1


@within(20)
async def test_ranges(tmp_path: Path) -> None:
    """A range is of the uncoded file, unless If-Range names an accepted coding."""
    async with serving(tmp_path, FILES) as site:
        coded = await settled(site, "app.js", "zstd")
        asked = {**BROWSER, "Range": "bytes=5-14"}
        found = await site.fetch(f"/{TAG}/app.js", headers=asked)
        assert (found.status, found.body) == (206, TEXT[5:15])
        asked["If-Range"] = coded.headers["etag"]
        found = await site.fetch(f"/{TAG}/app.js", headers=asked)
        assert (found.status, found.body) == (206, coded.body[5:15])
        assert found.headers["content-encoding"] == "zstd"
        found = await site.fetch(f"/{TAG}/app.js", headers={**asked, "Accept-Encoding": "br"})
        assert (found.status, found.body) == (200, TEXT)


@PATHS
@within(20)
async def test_several_ranges(tmp_path: Path, hot_path: bool) -> None:
    """Several ranges are of the uncoded file; for a coding the whole of it is sent."""
    async with serving(tmp_path, FILES, hot_path=hot_path) as site:
        coded = await settled(site, "app.js", "zstd")
        asked = {**BROWSER, "Range": "bytes=5-14,20-29"}
        for _ in range(2):
            found = await site.fetch(f"/{TAG}/app.js", headers=asked)
            assert found.status == 206
            assert "content-encoding" not in found.headers
            assert found.headers["vary"] == "Accept-Encoding"
            head = f"Content-Type: {found.headers['content-type']}\r\n\r\n".encode()
            parts = message_from_bytes(head + found.body).get_payload()
            assert [part.get_payload(decode=True) for part in parts] == [TEXT[5:15], TEXT[20:30]]
            assert [part["content-range"] for part in parts] == [
                f"bytes {start}-{start + 9}/{len(TEXT)}" for start in (5, 20)
            ]
        asked["If-Range"] = coded.headers["etag"]
        found = await site.fetch(f"/{TAG}/app.js", headers=asked)
        assert (found.status, found.body) == (200, coded.body)


@within(30)
async def test_several_ranges_of_a_large_file(tmp_path: Path) -> None:
    """Several ranges of a file that is read from disk in pieces are sent completely."""
    content = bytes(range(251)) * 4000
    with pool() as disk:
        async with serving(tmp_path, {"large.bin": content}, disk=disk) as site:
            for slices in (
                [(0, 200_000), (300_000, 900_001)],
                [(n * 9, n * 9 + 5) for n in range(64)],
            ):
                asked = ",".join(f"{start}-{stop - 1}" for start, stop in slices)
                found = await site.fetch(f"/{TAG}/large.bin", headers={"Range": f"bytes={asked}"})
                assert found.status == 206
                assert found.headers["content-length"] == str(len(found.body))
                head = f"Content-Type: {found.headers['content-type']}\r\n\r\n".encode()
                parts = message_from_bytes(head + found.body).get_payload()
                sent = [part.get_payload(decode=True) for part in parts]
                assert sent == [content[start:stop] for start, stop in slices]


@within(20)
async def test_siblings(tmp_path: Path) -> None:
    """With the rule of a repository, precompressed siblings are sent unchanged."""
    async with serving(tmp_path, FILES) as site:
        assert "br" not in (await settled(site, "lib.js", "br")).headers.get("content-encoding", "")
        site.rule(precompressed=True)
        for accept, coding, body in (
            ("br, gzip", "br", BR),
            ("gzip", "gzip", GZ),
            ("zstd;q=0", None, TEXT),
        ):
            found = await settled(site, "lib.js", accept)
            assert found.headers.get("content-encoding") == coding
            assert found.body == body
            assert found.headers["content-type"] == "text/javascript; charset=utf-8"
            assert found.headers["vary"] == "Accept-Encoding"
        made = await settled(site, "lib.js", "zstd")
        assert made.headers["content-encoding"] == "zstd"
        assert zstd.decompress(made.body) == TEXT
        raw = await site.fetch(f"/{TAG}/lib.js.gz", headers=BROWSER)
        assert (raw.body, raw.headers["content-type"]) == (GZ, "application/gzip")


@within(20)
async def test_inlined_pages(tmp_path: Path) -> None:
    """A page that is rewritten by a request is sent uncoded, and may be coded for others."""
    from blobserve.config import InlineVariable

    async with serving(tmp_path, FILES) as site:
        site.rule(inline_static=(InlineVariable("{{BASE}}", "${base}"),))
        found = await settled(site, "index.html", "gzip")
        assert found.headers["content-encoding"] == "gzip"
        assert found.headers["vary"] == "Accept-Encoding, X-BlobServe-InlineVars"
        inlined = await settled(site, "", "gzip", **{"X-BlobServe-InlineVars": '{"base": "/x"}'})
        assert "content-encoding" not in inlined.headers
        assert b">/x<" in inlined.body
        assert inlined.headers["vary"] == "X-BlobServe-InlineVars"


@within(20)
async def test_fixed_urls(tmp_path: Path) -> None:
    """Under a digest a coded file may be cached as long as the file itself."""
    async with serving(tmp_path) as site:
        digest = site.push(FILES)
        for _ in range(2):
            found = await site.fetch(f"/{digest}/app.js", headers=BROWSER)
            await site.turn()
        assert found.headers["content-encoding"] == "zstd"
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
