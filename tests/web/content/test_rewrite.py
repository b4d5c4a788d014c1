"""Replacements and inline variables."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import Deferred, gatherResults

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import InlineVariable, Limits, Replacement, RepositoryRules
from blobserve.errors import BadRequest
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.derived import CAPACITY
from blobserve.web.content.rewrite import Edit, edits_for, parse_variables
from tests.support.parts.images import Link
from tests.support.sites import TAG, Serving, serving
from tests.support.within import within

BASE = InlineVariable("{{BASE}}", "${ide}/${other}")
INDEX = Entry(b"ide/index.html", EntryKind.FILE)


@pytest.mark.parametrize(
    "value",
    [
        "https://example.com:8080/a/b?c=d&e=%20#f",
        "http://[::1]/",
        "/absolute/path-1.2_3~4/x?y=z",
        "/",
        "token-1.2_3~%20",
        "",
    ],
)
def test_values(value: str) -> None:
    """URLs, absolute paths and plain tokens are accepted unchanged."""
    assert parse_variables(json.dumps({"ide": value}).encode()) == {"ide": value}


@pytest.mark.parametrize(
    "value",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil.example/x",
        "ftp://example.com/",
        '"><script>',
        "/a'b",
        '/a"b',
        "/a\\b",
        "/a`b",
        "/a<b",
        "https://x/ y",
        "a\nb",
        "a\u2028b",
        "/\u00e9",
        7,
        None,
        ["/x"],
        True,
    ],
)
def test_bad_values(value: object) -> None:
    """A value that could be more than a URL in a page is refused."""
    with pytest.raises(BadRequest):
        parse_variables(json.dumps({"ide": value}).encode())


@pytest.mark.parametrize(
    "header", [b"", b"ide", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"a":"b"}, {"a":"c"}']
)
def test_bad_json(header: bytes) -> None:
    """A value that is not a JSON object is refused."""
    with pytest.raises(BadRequest):
        parse_variables(header)


def test_names() -> None:
    """Any name is replaced once, and names without a value stay unchanged."""
    rules = RepositoryRules(inline_static=(BASE,))
    edits = edits_for(b"ide/index.html", INDEX, rules, {"ide": "${other}", "x": "y"})
    assert edits == (Edit(b"{{BASE}}", b"${other}/${other}", "inlineStatic"),)
    assert edits_for(b"ide/index.html", INDEX, rules, None) == ()
    assert edits_for(b"ide/main.html", attrs.evolve(INDEX, path=b"x"), rules, {}) == ()


def test_paths() -> None:
    """A replacement names its file from the root of the image, for any path of the request."""
    rules = RepositoryRules(replacements=(Replacement("/ide/index.html", "a", "b"),))
    assert len(edits_for(b"link", INDEX, rules, None)) == 1
    assert len(edits_for(b"ide/index.html", attrs.evolve(INDEX, path=b"x"), rules, None)) == 1
    assert edits_for(b"index.html", attrs.evolve(INDEX, path=b"index.html"), rules, None) == ()


PAGE = b"<base href='{{BASE}}'>\none\ntwo\n"


async def page(site: Serving, **variables: str) -> bytes:
    """Request the index with these variables; return its body."""
    headers = {"X-BlobServe-InlineVars": json.dumps(variables)} if variables else {}
    response = await site.fetch(headers=headers)
    assert response.status == 200
    tag = urlsafe_b64encode(hashlib.sha256(response.body).digest()).rstrip(b"=").decode()
    assert response.headers["etag"] == f'"{tag}"'
    return response.body


@within(20)
async def test_replacements(tmp_path: Path) -> None:
    """Replacements of a file apply in order, across lines, and not to other files."""
    async with serving(tmp_path, {"index.html": PAGE, "two.txt": b"one\ntwo"}) as site:
        site.rule(
            replacements=(
                Replacement("index.html", "one\ntwo", "three"),
                Replacement("index.html", "three", "four"),
            )
        )
        assert await page(site) == b"<base href='{{BASE}}'>\nfour\n"
        assert (await site.fetch(f"/{TAG}/two.txt")).body == b"one\ntwo"


@within(20)
async def test_shared_layer(tmp_path: Path) -> None:
    """Repositories that share a layer have their own edits, and new rules apply at once."""
    async with serving(tmp_path, {"index.html": PAGE}) as site:
        other = "registry.example/team/other"
        site.push({"index.html": PAGE}, reference=f"{other}:v1")
        site.rule(replacements=(Replacement("index.html", "one", "first"),))
        site.rule(other, replacements=(Replacement("index.html", "one", "second"),))
        for _ in range(2):
            assert b"first" in await page(site)
            assert b"second" in (await site.fetch(f"/{other}:v1/")).body
        site.rule(replacements=(Replacement("index.html", "one", "third"),))
        assert b"third" in await page(site)
        site.rule()
        assert await page(site) == PAGE


@within(20)
async def test_inline_variables(tmp_path: Path) -> None:
    """Variables are replaced in every index.html, and in no other file."""
    files = {"index.html": PAGE, "sub/index.html": PAGE, "main.html": PAGE}
    async with serving(tmp_path, files) as site:
        site.rule(inline_static=(BASE,))
        headers = {"X-BlobServe-InlineVars": '{"ide": "/ide", "other": "https://x.example"}'}
        inlined = PAGE.replace(b"{{BASE}}", b"/ide/https://x.example")
        for target in ("/", "/index.html", "/sub/", "/sub/index.html"):
            assert (await site.fetch(f"/{TAG}{target}", headers=headers)).body == inlined
            assert (await site.fetch(f"/{TAG}{target}")).body == PAGE
        assert (await site.fetch(f"/{TAG}/main.html", headers=headers)).body == PAGE


@within(20)
async def test_index_caching(tmp_path: Path) -> None:
    """Each index.html of a repository with variables varies by them and is not immutable."""
    async with serving(tmp_path) as site:
        by_digest = site.push({"index.html": PAGE, "link": Link("index.html"), "a.js": b"x"})
        site.rule(inline_static=(BASE,), immutable_paths=("*",))
        for target in (f"/{TAG}/", f"/{by_digest}/", f"/{by_digest}/link"):
            plain = (await site.fetch(target)).headers
            assert (plain["cache-control"], plain["vary"]) == ("no-cache", "X-BlobServe-InlineVars")
            assert "last-modified" not in plain
            inlined = await site.fetch(target, headers={"X-BlobServe-InlineVars": "{}"})
            assert inlined.headers["cache-control"] == "private, no-cache"
            assert inlined.headers["vary"] == "X-BlobServe-InlineVars"
        assert "vary" not in (await site.fetch(f"/{TAG}/a.js")).headers


@within(20)
async def test_variants_have_their_tags(tmp_path: Path) -> None:
    """The ETag of one variant gives no 304 for another."""
    async with serving(tmp_path, {"index.html": PAGE}) as site:
        site.rule(inline_static=(BASE,))
        asked = {"X-BlobServe-InlineVars": '{"ide": "/a"}'}
        tag = (await site.fetch(headers=asked)).headers["etag"]
        again = {**asked, "If-None-Match": tag}
        assert (await site.fetch(headers=again)).status == 304
        assert (await site.fetch(headers={"If-None-Match": tag})).status == 200
        other = {"X-BlobServe-InlineVars": '{"ide": "/b"}', "If-None-Match": tag}
        assert (await site.fetch(headers=other)).status == 200


@within(20)
async def test_rewritten_ranges(tmp_path: Path) -> None:
    """Ranges and conditions of a rewritten file are those of the rewritten bytes."""
    async with serving(tmp_path, {"a.txt": b"0123456789"}) as site:
        site.rule(replacements=(Replacement("a.txt", "345", "-"),))
        target = f"/{TAG}/a.txt"
        whole = await site.fetch(target)
        assert whole.body == b"012-6789"
        part = await site.fetch(
            target, headers={"Range": "bytes=2-4", "If-Range": whole.headers["etag"]}
        )
        assert (part.status, part.body) == (206, b"2-6")
        assert part.headers["content-range"] == "bytes 2-4/8"


class CountedThreads:
    """Real threads that count their jobs."""

    def __init__(self) -> None:
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        self.threads = OwnThreads(cast("Any", reactor), 2, "test")
        self.count = 0

    def run(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        self.count += 1
        return self.threads.run(f, *args, **kwargs)


@within(20)
async def test_made_once(tmp_path: Path) -> None:
    """A file is rewritten once in a thread for concurrent requests, and goes on without them."""
    disk = CountedThreads()
    disk.threads.start()
    try:
        async with serving(tmp_path, {"index.html": PAGE * 10_000}, disk=disk) as site:
            site.rule(replacements=(Replacement("index.html", "one\ntwo", "three"),))
            await site.fetch(f"/{TAG}/nothing")
            impatient = await site.connect()
            impatient.send(f"GET /{TAG}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            asked = [Deferred.fromCoroutine(site.fetch()) for _ in range(20)]
            while not disk.count:
                await site.turn()
            impatient.transport.abortConnection()
            for answer in await gatherResults(asked):
                assert answer.body == PAGE.replace(b"one\ntwo", b"three") * 10_000
            assert disk.count == 1
    finally:
        disk.threads.stop()


@within(20)
async def test_too_large(tmp_path: Path) -> None:
    """A file too large to be rewritten, before or after, is a 502 that names the rule."""
    async with serving(tmp_path, {"a.txt": b"x" * 1001, "b.txt": b"y" * 1000}) as site:
        site.config = attrs.evolve(site.config, limits=Limits(rewrite_size=1000))
        site.rule(
            replacements=(
                Replacement("a.txt", "z", ""),
                Replacement("b.txt", "y", "yy"),
            )
        )
        for name in ("a.txt", "b.txt"):
            response = await site.fetch(f"/{TAG}/{name}")
            assert response.status == 502
            assert b"replacements" in response.body


@within(20)
async def test_views_are_bounded(tmp_path: Path) -> None:
    """The cache of variants is bounded."""
    megabyte = b"x" * (1 << 20) + b"{{BASE}}"
    async with serving(tmp_path, {"index.html": megabyte}) as site:
        site.rule(inline_static=(BASE,))
        kept = site.site.images.responder.derived
        for number in range(CAPACITY // len(megabyte) + 5):
            headers = {"X-BlobServe-InlineVars": json.dumps({"ide": f"/{number}"})}
            assert (await site.fetch(method="HEAD", headers=headers)).status == 200
            assert kept.size <= CAPACITY
        assert kept.size > CAPACITY // 2
        site.site.flush()
        assert kept.size == 0
