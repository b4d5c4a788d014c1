"""Images of several layers over HTTP: bytes, validators, ranges, codings, errors."""

from __future__ import annotations

from pathlib import Path

from blobserve.config import Replacement
from tests.support.parts.images import Link
from tests.support.sites import TAG, serving
from tests.support.within import within

LAYERS = (
    {"index.html": b"old", "app.js": b"0123456789", "text.txt": b"text " * 2000, "d/x": b"x"},
    {
        "index.html": b"<html>new</html>",
        "l": Link("app.js"),
        ".wh.d": b"",
        "big.bin": bytes(300_000),
    },
)


@within(30)
async def test_validators_are_those_of_the_file(tmp_path: Path) -> None:
    """A file that upper layers do not change has the same ETag with `layers` first and all."""
    async with serving(tmp_path, *LAYERS) as site:
        first = await site.fetch(f"/{TAG}/app.js")
        site.rule(layers="all")
        site.site.flush()
        tag = first.headers["etag"]
        for _ in range(2):
            merged = await site.fetch(f"/{TAG}/app.js")
            assert (merged.body, merged.headers) == (first.body, {**merged.headers, "etag": tag})
            again = await site.fetch(f"/{TAG}/app.js", headers={"If-None-Match": tag})
            assert (again.status, again.body) == (304, b"")
        changed = await site.fetch(f"/{TAG}/", headers={"If-None-Match": tag})
        assert (changed.status, changed.body) == (200, b"<html>new</html>")


@within(30)
async def test_a_reload_counts_at_once(tmp_path: Path) -> None:
    """A changed `layers` applies to the next request, with or without cached answers."""
    async with serving(tmp_path, *LAYERS) as site:
        pages = {"first": b"old", "all": b"<html>new</html>"}
        for layers in ("first", "all", "first", "all"):
            site.rule(layers=layers)
            for _ in range(2):
                assert (await site.fetch(f"/{TAG}/")).body == pages[layers]


@within(30)
async def test_files_of_every_layer(tmp_path: Path) -> None:
    """Files of any layer are served whole, by range, through links, large and rewritten."""
    async with serving(tmp_path, *LAYERS) as site:
        site.rule(layers="all", replacements=(Replacement("index.html", "new", "rewritten"),))
        part = await site.fetch(f"/{TAG}/l", headers={"Range": "bytes=2-4"})
        assert (part.status, part.body) == (206, b"234")
        assert (await site.fetch(f"/{TAG}/")).body == b"<html>rewritten</html>"
        large = await site.fetch(f"/{TAG}/big.bin")
        assert large.body == LAYERS[1]["big.bin"]
        for _ in range(2):
            coded = await site.fetch(f"/{TAG}/text.txt", headers={"Accept-Encoding": "gzip"})
        assert coded.headers["content-encoding"] == "gzip"


@within(30)
async def test_what_is_not_there(tmp_path: Path) -> None:
    """A 404 mentions the other layers only if they are not served."""
    async with serving(tmp_path, *LAYERS) as site:
        assert b"the first of the image's 2 layers" in (await site.fetch(f"/{TAG}/no")).body
        site.rule(layers="all")
        for path in ("no", "d/x", ".wh.d"):
            answer = await site.fetch(f"/{TAG}/{path}")
            assert (answer.status, b"layers" in answer.body) == (404, False), path
        read_only = {"X-BlobServe-ReadOnly": "true"}
        assert (await site.fetch(f"/{TAG}/app.js", headers=read_only)).status == 200
