"""Content codings over a connection: which one a request gets, and what caches are told of it."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

from tests.rig.within import within
from tests.sites import TAG, Response, Serving, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = b"".join(b"let line%d = %d;\n" % (number, number * number) for number in range(300))
FILES = {
    "app.js": TEXT,
    "index.html": b"<script src=app.js>{{BASE}}</script>" + TEXT,
    "small.js": b"let x = 1;",
    "image.png": TEXT,
    "lib.js": TEXT,
    "lib.js.br": b"as brotli",
    "lib.js.gz": b"as gzip",
    "lib.js.zst/file": b"a directory is no sibling",
}
BROWSER = {"Accept-Encoding": "gzip, deflate, br, zstd"}


async def settled(site: Serving, name: str, accept: str, **headers: str) -> Response:
    """The answer to a request once all that was to be made for it has been made."""
    for _ in range(3):
        found = await site.fetch(f"/{TAG}/{name}", headers={"Accept-Encoding": accept, **headers})
        await site.turn()
    return found


@within(20)
async def test_made_here(tmp_path: Path) -> None:
    """The first who asks for a coding gets the file as it is, the next get it coded."""
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
    """Small files, files that gain nothing by it, and files of other types are sent as they are."""
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
    """The weights of Accept-Encoding decide, and our order where they are equal."""
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


@within(20)
async def test_validators_of_every_coding(tmp_path: Path) -> None:
    """A client is told that it has a file, in whichever coding it has it."""
    async with serving(tmp_path, FILES) as site:
        coded = await settled(site, "app.js", "zstd")
        gzipped = await settled(site, "app.js", "gzip")
        plain = await site.fetch(f"/{TAG}/app.js")
        for held in (coded, gzipped, plain):
            asked = {**BROWSER, "If-None-Match": f'"x", {held.headers["etag"]}'}
            found = await site.fetch(f"/{TAG}/app.js", headers=asked)
            assert found.status == 304
            # The one that the client has, so that it is that which it uses.
            assert found.headers["etag"] == held.headers["etag"]
            assert found.headers["vary"] == "Accept-Encoding"
        asked = {"Accept-Encoding": "gzip", "If-None-Match": coded.headers["etag"]}
        assert (await site.fetch(f"/{TAG}/app.js", headers=asked)).status == 200


@within(20)
async def test_ranges(tmp_path: Path) -> None:
    """A range is of the file as it is, unless If-Range names a coding that is accepted."""
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


@within(20)
async def test_siblings(tmp_path: Path) -> None:
    """Where a repository says so, codings of a file that the image brings are used as they are."""
    async with serving(tmp_path, FILES) as site:
        assert "br" not in (await settled(site, "lib.js", "br")).headers.get("content-encoding", "")
        site.rule(precompressed=True)
        for accept, coding, body in (
            ("br, gzip", "br", b"as brotli"),
            ("gzip", "gzip", b"as gzip"),
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
        assert (raw.body, raw.headers["content-type"]) == (b"as gzip", "application/gzip")


@within(20)
async def test_inlined_pages(tmp_path: Path) -> None:
    """A page that is rewritten for a request is sent as it is; other requests may get it coded."""
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
    """Under a digest a coded file may be kept as long as the file itself."""
    async with serving(tmp_path) as site:
        digest = site.push(FILES)
        for _ in range(2):
            found = await site.fetch(f"/{digest}/app.js", headers=BROWSER)
            await site.turn()
        assert found.headers["content-encoding"] == "zstd"
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
