"""Listings of directories, as pages and as JSON."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import InlineVariable, Limits
from blobserve.names.reference import Reference
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.listing import ListingRecipe, link, prefers_json
from blobserve.web.http.target import Target
from tests.support.examples import more
from tests.support.layers import Directory, File, Symlink, layer
from tests.support.layers import Entry as TarEntry
from tests.support.layers import Link as HardLink
from tests.support.parts.images import Files, Image, Layer, Link, write_layout
from tests.support.parts.server import Server
from tests.support.sites import REPOSITORY, TAG, Response, Serving, packed, serving
from tests.support.turn_watch import LOGGED, slow_turns
from tests.support.within import within
from tests.web.test_resource import FOR_EVER, SHORT, both, tag_of

JSON = {"Accept": "application/json"}
TREE: Files = {
    "docs/b.txt": b"two",
    "docs/a.txt": b"x" * 1536,
    "docs/sub/page.html": b"page",
    "index.html": b"home",
}


class Shown(HTMLParser):
    """The content of a page: its tags, its links, and its text without styles."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if (tag, name) == ("a", "href")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data if self.tags[-1:] != ["style"] else ""


async def listed(site: Serving, target: str = f"/{TAG}/docs/") -> list[dict[str, Any]]:
    """Return the JSON of a listing."""
    answer = await site.fetch(target, headers=JSON)
    assert answer.status == 200
    entries: list[dict[str, Any]] = json.loads(answer.body)
    return entries


@within(30)
async def test_json(tmp_path: Path) -> None:
    """JSON has all facts about each entry, directories first, then by name."""
    async with serving(tmp_path, TREE) as site:
        site.rule(listing=True)
        answer = await both(site, f"/{TAG}/docs/", **JSON)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == SHORT
        hashes = [hashlib.sha256(each) for each in (b"x" * 1536, b"two")]
        assert json.loads(answer.body) == [
            {
                "name": "sub",
                "href": "./sub/",
                "type": "directory",
                "size": None,
                "mtime": 1_600_000_000,
                "sha256": None,
                "integrity": None,
            },
            *(
                {
                    "name": name,
                    "href": f"./{name}",
                    "type": "file",
                    "size": size,
                    "mtime": 1_600_000_000,
                    "sha256": each.hexdigest(),
                    "integrity": f"sha256-{b64encode(each.digest()).decode()}",
                }
                for name, size, each in zip(("a.txt", "b.txt"), (1536, 3), hashes, strict=True)
            ),
        ]


@within(30)
async def test_page(tmp_path: Path) -> None:
    """A page links to each entry and to the parent, is sandboxed, and must be revalidated."""
    async with serving(tmp_path) as site:
        by_digest = site.push(TREE)
        site.rule(listing=True, content_location=True)
        answer = await both(site, f"/{TAG}/docs/")
        assert {name: answer.headers[name] for name in answer.headers if name != "date"} == {
            "content-type": "text/html; charset=utf-8",
            "content-length": str(len(answer.body)),
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox allow-downloads",
            "accept-ranges": "bytes",
            "etag": tag_of(answer.body),
            "cache-control": "no-cache",
            "vary": "Accept",
            "content-location": f"../../../../{by_digest}/docs/",
            "server": "blobserve",
            "connection": "close",
        }
        shown = Shown(answer.body)
        assert shown.links == ["../", "./sub/", "./a.txt", "./b.txt"]
        assert "1 directory, 2 files, 1.5 KiB" in shown.text
        assert "1.5 KiB2020-09-13 12:26sha256-" in shown.text
        under_digest = await both(site, f"/{by_digest}/docs/")
        assert under_digest.body == answer.body
        assert "content-location" not in under_digest.headers


@within(30)
async def test_conditions(tmp_path: Path) -> None:
    """A client with a listing gets a 304, and never for the other format."""
    async with serving(tmp_path, TREE) as site:
        site.rule(listing=True)
        page = await site.fetch(f"/{TAG}/docs/")
        held = {"If-None-Match": page.headers["etag"]}
        again = await both(site, f"/{TAG}/docs/", **held)
        assert (again.status, again.headers["vary"]) == (304, "Accept")
        assert (await site.fetch(f"/{TAG}/docs/", headers={**held, **JSON})).status == 200
        part = await site.fetch(f"/{TAG}/docs/", headers={"Range": "bytes=0-14"})
        assert (part.status, part.body) == (206, b"<!doctype html>")


@within(30)
async def test_never_kept_for_ever(tmp_path: Path) -> None:
    """A listing is never immutable, even under a fixed URL, since its look may change."""
    async with serving(tmp_path) as site:
        by_digest = site.push(TREE)
        site.rule(listing=True, immutable_paths=("*",))
        for accept, control in (("text/html", "no-cache"), (JSON["Accept"], SHORT)):
            answer = await both(site, f"/{by_digest}/docs/", Accept=accept)
            assert answer.headers["cache-control"] == control
            assert "last-modified" not in answer.headers
        file = await both(site, f"/{by_digest}/docs/a.txt")
        assert file.headers["cache-control"] == FOR_EVER


@within(30)
async def test_where(tmp_path: Path) -> None:
    """Directories without an index page are listed at a URL with a slash, if configured."""
    files = {**TREE, "odd/index.html/x": b"", "dangling/index.html": Link("nowhere")}
    async with serving(tmp_path, files) as site:
        answer = await site.fetch(f"/{TAG}/docs/")
        assert (answer.status, b"a.txt" in answer.body) == (404, False)
        site.rule(listing=True)
        assert (await site.fetch(f"/{TAG}/")).body == b"home"
        assert (await site.fetch(f"/{TAG}/docs")).headers["location"] == "./docs/"
        assert (await site.fetch(f"/{TAG}/docs/sub/.")).status == 200
        assert (await site.fetch(f"/{TAG}/nowhere/")).status == 404
        assert (await site.fetch(f"/{TAG}/docs/a.txt/")).status == 404
        assert [each["name"] for each in await listed(site, f"/{TAG}/odd/")] == ["index.html"]
        assert await listed(site, f"/{TAG}/dangling/") == []


@within(30)
async def test_other_rules(tmp_path: Path) -> None:
    """A listed directory takes precedence over a fallback and a not-found page."""
    files = {"docs/a.txt": b"", "app.html": b"app", "404.html": b"none"}
    async with serving(tmp_path, files) as site:
        site.rule(listing=True, fallback="/app.html", not_found="/404.html")
        assert [each["name"] for each in await listed(site)] == ["a.txt"]
        assert (await site.fetch(f"/{TAG}/elsewhere/")).body == b"app"
        assert (await site.fetch(f"/{TAG}/docs/none.txt")).body == b"none"


@within(30)
async def test_root(tmp_path: Path) -> None:
    """The root is listed without a parent, and only with its slash."""
    async with serving(tmp_path, {"ide/a.txt": b"", "outside.txt": b""}) as site:
        site.rule(listing=True, workdir="/ide", inline_static=(InlineVariable("a", "b"),))
        assert Shown((await site.fetch(f"/{TAG}/")).body).links == ["./a.txt"]
        bare = await site.fetch(f"/{TAG}", headers={"X-BlobServe-InlineVars": "{}"})
        assert (bare.status, bare.headers["location"]) == (301, "./site:v1/")


@within(30)
async def test_what_is_listed(tmp_path: Path) -> None:
    """Links are listed as their targets, and entries that cannot be served are omitted."""
    entries = [
        Directory(b"docs/", mtime=5),
        File(b"docs/a.txt", b"content", mtime=7),
        Directory(b"other/", mtime=9),
        Symlink(b"docs/to-file", b"a.txt"),
        Symlink(b"docs/to-directory", b"/other"),
        Symlink(b"docs/out", b"../../../etc"),
        Symlink(b"docs/dangling", b"nothing"),
        Symlink(b"docs/loop", b"loop"),
        HardLink(b"docs/hard", b"docs/a.txt"),
        HardLink(b"docs/nowhere", b"docs/missing"),
        TarEntry(b"docs/device", b"3"),
        TarEntry(b"docs/fifo", b"6"),
        File(b"docs/.wh.gone", b""),
        File(b"docs/.wh..wh..opq", b""),
        File(b"docs/.hidden", b""),
        File(b"etc", b"inside"),
        File(b"implied/x/y", b""),
    ]
    async with serving(tmp_path) as site:
        image = packed(Image((Layer.of_tar(layer(entries, "none")),)))
        site.source.push(Reference.parse(TAG), image)
        site.rule(listing=True)
        found = {each["name"]: each for each in await listed(site)}
        assert list(found) == ["to-directory", ".hidden", "a.txt", "hard", "out", "to-file"]
        assert found["to-directory"]["href"] == "./to-directory/"
        assert (found["to-directory"]["type"], found["to-directory"]["mtime"]) == ("directory", 9)
        for name in ("hard", "to-file"):
            assert {**found[name], "name": "", "href": ""} == {
                **found["a.txt"],
                "name": "",
                "href": "",
            }
        assert found["out"]["sha256"] == hashlib.sha256(b"inside").hexdigest()
        [implied] = await listed(site, f"/{TAG}/implied/")
        assert (implied["name"], implied["mtime"]) == ("x", None)


NAMES = [
    b"<script>alert(1)",
    b'"><img src=x onerror=alert(1)>',
    b"' onmouseover='alert(1)",
    b"&lt;b&gt;&amp;",
    b"javascript:alert(1)",
    b"http:evil.example",
    b"\\\\evil.example",
    b"%2e%2e",
    b"%00",
    b"a?b#c",
    b"with space",
    b"tab\tline\nreturn\r",
    b"\x1b[31m",
    b"\xe2\x80\xaetxt.exe",
    b"\xe2\x80\xa8",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "größe".encode(),
    b"<style><!--",
    b"]]>",
    b"...",
    b"~",
]


@within(30)
async def test_hostile_names(tmp_path: Path) -> None:
    """A name of any bytes is text on the page, with a link to its file."""
    entries = [File(b"docs/" + name, name) for name in NAMES]
    async with serving(tmp_path) as site:
        image = packed(Image((Layer.of_tar(layer(entries, "none")),)))
        site.source.push(Reference.parse(TAG), image)
        site.rule(listing=True)
        page = Shown((await site.fetch(f"/{TAG}/docs/")).body)
        assert not {"script", "img", "b"} & set(page.tags)
        assert page.tags.count("a") == len(NAMES) + 1
        assert "\\u202etxt.exe" in page.text
        hrefs = [each["href"] for each in await listed(site)]
        assert page.links == ["../", *hrefs]
        for name, href in zip(sorted(NAMES), hrefs, strict=True):
            target = urljoin(f"http://host/{TAG}/docs/", href).removeprefix("http://host")
            assert (await site.fetch(target)).body == name
        odd = await site.fetch(f"/{TAG}/%3Cscript%3E/")
        assert odd.status == 404


@within(30)
async def test_hostile_path(tmp_path: Path) -> None:
    """The path in the title of a page is escaped text as well."""
    async with serving(tmp_path, {"<script>alert(1)</script>/x": b""}) as site:
        site.rule(listing=True)
        page = await site.fetch(f"/{TAG}/%3Cscript%3Ealert(1)%3C%2Fscript%3E/")
        assert page.status == 200
        assert "script" not in Shown(page.body).tags
        assert "/<script>alert(1)</script>/" in Shown(page.body).text


OURS = {"html", "meta", "link", "title", "style", "h1", "p", "table", "thead", "tbody"}
OURS |= {"tr", "th", "td", "a", "bdi"}

segments = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in (b".", b"..") and not {0, 47} & set(name)
)


@attrs.frozen
class Holding:
    """A filesystem with a directory of these names only."""

    names: list[bytes]

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """See `Filesystem.entries`."""
        for name in self.names:
            yield name, Entry(name, EntryKind.FILE, size=len(name), sha256=bytes(32))


@given(st.lists(segments, unique=True).map(sorted))
@settings(max_examples=more(200))
def test_any_names(names: list[bytes]) -> None:
    """For any names the page and the JSON are well-formed, and the links lead to the files."""
    directory = Entry(b"docs", EntryKind.DIRECTORY)
    page, found = (
        ListingRecipe(is_json, b"docs/", 1000).make(Holding(names), directory, b"")  # type: ignore[arg-type]
        for is_json in (False, True)
    )
    shown, read = Shown(page.content), json.loads(found.content)
    assert shown.tags.count("tr") == len(names) + 2
    assert set(shown.tags) <= OURS
    assert shown.links == ["../", *(each["href"] for each in read)]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown.text)
    for name, each in zip(names, read, strict=True):
        url = urljoin("http://host/r.example/x:v1/docs/", each["href"])
        location = Target.parse(url.removeprefix("http://host/").encode())
        assert location.path == b"docs/" + name
        if b"\\" not in name:
            assert each["name"] == name.decode("utf-8", "backslashreplace")


@given(segments)
def test_links_are_relative(name: bytes) -> None:
    """A link of any name stays on the host, scheme and directory of the page."""
    for kind, slash in ((EntryKind.FILE, ""), (EntryKind.DIRECTORY, "/")):
        assert re.fullmatch(rf"\./[A-Za-z0-9%._~-]+{slash}", link(name, Entry(name, kind)))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/json", True),
        (b"APPLICATION/JSON; charset=utf-8", True),
        (b"application/*", True),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (b"application/json, text/plain, */*", True),
        (b"application/json;q=0.5, text/html;q=0.4", True),
        (b"application/json;q=0.4, text/html;q=0.5", False),
        (b"text/html, application/json", False),
        (b"text/html;q=0, */*", True),
        (b"application/json;q=0, */*", False),
        (b"application/json;q=0", False),
        (b"application/json;q=2", False),
        (b"image/png", False),
        (b"application/json" + b" " * 1024, False),
    ],
)
def test_accept(accept: bytes, expected: bool) -> None:
    """A client that prefers JSON gets it, and others get a page."""
    assert prefers_json(accept) is expected


@given(st.one_of(st.binary(max_size=200), st.text('json/html*;,=q.01" \t', max_size=60)))
@settings(max_examples=more(300))
def test_any_accept(accept: bytes | str) -> None:
    """Any Accept field gets one of the two formats."""
    raw = accept if isinstance(accept, bytes) else accept.encode()
    assert prefers_json(raw) in (True, False)


async def refused(site: Serving, target: str) -> Response:
    """Return the answer to a request for a directory that is too large."""
    answer = await site.fetch(target, headers=JSON)
    assert answer.status == 502
    assert answer.headers["cache-control"] == "no-store"
    return answer


@within(30)
async def test_bound(tmp_path: Path) -> None:
    """A directory with more entries than the limit is refused, not listed in part."""
    files = {f"docs/{number}.txt": b"" for number in range(11)}
    async with serving(tmp_path, {**files, "other/x": b""}) as site:
        site.rule(listing=True)
        site.config = attrs.evolve(site.config, limits=Limits(listing_entries=10))
        answer = await refused(site, f"/{TAG}/docs/")
        assert answer.body == b"docs cannot be listed: it exceeds 10 entries\n"
        site.config = attrs.evolve(site.config, limits=Limits(listing_entries=11))
        assert len(await listed(site)) == 11


@within(30)
async def test_size(tmp_path: Path) -> None:
    """A listing above 32 MiB is refused."""
    names = [b"docs/" + b"%04d" % number + b"\xff" * 4000 for number in range(3000)]
    async with serving(tmp_path) as site:
        image = packed(Image((Layer.of_tar(layer([File(name) for name in names], "none")),)))
        site.source.push(Reference.parse(TAG), image)
        site.rule(listing=True)
        assert b"32 MiB" in (await refused(site, f"/{TAG}/docs/")).body


@within(30)
async def test_tangled_links(tmp_path: Path) -> None:
    """A directory of links that are slow to follow is listed in bounded time."""
    steps = [Symlink(b"s%d" % number, b"s%d" % (number + 1)) for number in range(39)]
    links = [Symlink(b"docs/%d" % number, b"/s0") for number in range(100)]
    entries = [*steps, File(b"s39", b"end"), *links]
    async with serving(tmp_path) as site:
        image = packed(Image((Layer.of_tar(layer(entries, "none")),)))
        site.source.push(Reference.parse(TAG), image)
        site.rule(listing=True)
        site.config = attrs.evolve(site.config, limits=Limits(listing_entries=100))
        assert b"the time its links may take" in (await refused(site, f"/{TAG}/docs/")).body
        site.config = attrs.evolve(site.config, limits=Limits(listing_entries=1000))
        assert len(await listed(site)) == 100


def test_a_large_directory(tmp_path: Path, running: Callable[[Any], Any]) -> None:
    """Listing a directory of 100,000 files does not block the reactor."""
    entries = [File(b"docs/file-%06d.txt" % number, b"x") for number in range(100_000)]
    image = Image((Layer.of_tar(layer(entries, "none"), "none"),))
    layout = write_layout(tmp_path / "layout", {"v1": image})
    config = {"timeout": "60s", "repos": {REPOSITORY: {"source": f"oci:{layout}", "listing": True}}}
    server: Server = running(Server(tmp_path, config, **slow_turns(20)))
    assert server.fetch(f"/{TAG}/docs/", "HEAD").status == 200
    assert len(json.loads(server.fetch(f"/{TAG}/docs/", headers=JSON).body)) == 100_000
    assert server.fetch(f"/{TAG}/docs/").body.count(b"<a ") == 100_001
    assert LOGGED not in server.output.read_text()


@within(30)
async def test_configured_repositories_alone(tmp_path: Path) -> None:
    """A repository without the rule has no listings, even if another one with its layer has."""
    other = "registry.example/team/other"
    async with serving(tmp_path, TREE) as site:
        site.push(TREE, reference=f"{other}:v1")
        site.rule(listing=True)
        site.rule(other)
        assert (await site.fetch(f"/{TAG}/docs/")).status == 200
        assert (await site.fetch(f"/{other}:v1/docs/")).status == 404
        site.rule(REPOSITORY)
        assert (await site.fetch(f"/{TAG}/docs/")).status == 404


@within(30)
async def test_merged_layers(tmp_path: Path) -> None:
    """The merged tree of several layers is listed, without files that a layer hides."""
    lower = [File(b"docs/a.txt", b"old"), File(b"docs/b.txt", b"b"), Symlink(b"docs/l", b"b.txt")]
    upper = [File(b"docs/a.txt", b"new!"), File(b"docs/.wh.b.txt", b""), File(b"docs/c", b"")]
    async with serving(tmp_path) as site:
        layers_ = tuple(Layer.of_tar(layer(each, "none")) for each in (lower, upper))
        site.source.push(Reference.parse(TAG), packed(Image(layers_)))
        site.rule(listing=True, layers="all")
        found = {each["name"]: each["size"] for each in await listed(site)}
        assert found == {"a.txt": 4, "c": 0}
        site.rule(listing=True)
        assert [each["name"] for each in await listed(site)] == ["a.txt", "b.txt", "l"]
