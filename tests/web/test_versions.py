"""Files of earlier versions of a tag in responses: order, caching, choice, purge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import get_ident
from time import process_time
from typing import Any

import attrs
import pytest
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Config, RepositoryRules
from blobserve.configfile import load
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.index import name_table
from blobserve.store.index.entry import Entry
from blobserve.store.index.lookup import IndexReader
from tests.support.parts.images import Files, Link
from tests.support.sites import REPOSITORY, TAG, Response, Serving, serving
from tests.support.within import within

HOST = "app.example.com"
FOR_EVER = "public, max-age=31536000, immutable"
CURRENT = "public, max-age=60, stale-while-revalidate=60"
NAVIGATION = {"Sec-Fetch-Mode": "navigate"}
CHUNK = "/assets/index-{}.js"
HASHES = ("BHxg-xhJ", "CJZrVD6h", "DtGw3Qz1", "Bq81_kZx")


def chunk(number: int) -> str:
    """Return the URL of the chunk that version `number` alone has."""
    return CHUNK.format(HASHES[number])


def app(number: int, **more: bytes) -> dict[str, Any]:
    """Return the files of version `number` of an application."""
    text = f"{number}".encode()
    return {
        "index.html": b"<html>" + text + b"</html>",
        chunk(number)[1:]: b"chunk " + text,
        f"only-{number}.json": text,
        "app.js": b"app " + text,
        f"assets/page-{number}.html": b"<html>page</html>",
        **more,
    }


def configured(own: Mapping[str, object] = {}, rules: Mapping[str, object] | None = None) -> Config:
    """Return a configuration with the site `HOST`, and the repository if it has rules."""
    repos = {} if rules is None else {REPOSITORY: rules}
    sites = {HOST: {"image": TAG, **own}}
    return load({"blobserve": {"sites": sites, "repos": repos}})


def hosting(
    directory: Path, own: Mapping[str, object] = {}, rules: Mapping[str, object] | None = None
) -> Any:
    """Run a server with the site `HOST`."""
    config = configured(own, rules)
    return serving(directory, app(0), sites=config.sites, repos=config.repos)


async def deploy(it: Serving, files: Files, tag: Reference | None = None) -> Digest:
    """Push an image, and let the tag of the site switch to it."""
    tag = tag or it.config.sites[HOST].reference()
    exact = tag.at(Reference.parse(it.push(files, reference=str(tag))).digest or Digest.of(b""))
    (await it.store.blob_for(exact)).release()
    known = it.store.references.get(exact)
    assert known is not None
    known = attrs.evolve(known, reference=tag, checked=it.reactor.seconds())
    it.store.references.learn(known)
    return known.digest


async def deployed(it: Serving, *numbers: int) -> list[Digest]:
    """Deploy versions of the application, one after the other."""
    return [await deploy(it, app(number)) for number in numbers]


async def get(it: Serving, path: str, **headers: str) -> Response:
    """Return the answer to a GET."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    host = "localhost" if path.startswith(f"/{REPOSITORY}") else HOST
    return await it.fetch(path, "GET", fields, host)


async def body(it: Serving, path: str, **headers: str) -> bytes | int:
    """Return the body of a file, or the status of an error. It is asked for twice."""
    first, second = await get(it, path, **headers), await get(it, path, **headers)
    assert (first.status, first.body, _without_date(first)) == (
        second.status,
        second.body,
        _without_date(second),
    )
    return first.body if first.status == 200 else first.status


def _without_date(answer: Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


# --- Order ----------------------------------------------------------------------------------------


@within(30)
async def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """A file in a folder of a bundler stays reachable; other files are gone at once."""
    async with hosting(tmp_path) as it:
        await deployed(it, 0, 1, 2)
        for number in range(3):
            assert await body(it, chunk(number)) == b"chunk %d" % number
        assert await body(it, chunk(3)) == 404
        assert await body(it, "/only-1.json") == 404
        assert await body(it, "/only-2.json") == b"2"
        assert await body(it, "/app.js") == b"app 2"
        assert (await get(it, "/")).body == b"<html>2</html>"
        assert await body(it, "/assets/page-1.html") == 404


@within(30)
async def test_the_newest_version_wins(tmp_path: Path) -> None:
    """The newest of several versions with a file answers, also after a rollback."""
    name = "assets/late.js"
    async with hosting(tmp_path) as it:
        for number in range(3):
            await deploy(it, app(number, **{name: b"%d" % number}))
        await deploy(it, app(3))
        assert await body(it, f"/{name}") == b"2"
        await deploy(it, app(0, **{name: b"0"}))
        assert await body(it, f"/{name}") == b"0"
        await deploy(it, app(3))
        assert await body(it, f"/{name}") == b"0"


@within(30)
async def test_paths(tmp_path: Path) -> None:
    """`paths` replaces folders and `immutablePaths`; without it both count."""
    files = {
        **app(0),
        "lib/a.js": b"a",
        "lib/sub/b.js": b"b",
        "data/c.json": b"c",
        "docs/d.html": b"<html>d</html>",
    }
    everything = ("/lib/a.js", "/lib/sub/b.js", "/data/c.json", "/docs/d.html", chunk(0))
    for number, (own, found) in enumerate(
        [
            ({"immutablePaths": ["lib/*"]}, {"/lib/a.js", "/lib/sub/b.js", chunk(0)}),
            ({"keepVersions": {"paths": ["data/*"]}}, {"/data/c.json"}),
            ({"keepVersions": {"paths": ["lib/a.js"]}}, {"/lib/a.js"}),
            ({"keepVersions": {"paths": ["*"]}}, {*everything} - {"/docs/d.html"}),
            ({"keepVersions": {"paths": []}, "immutablePaths": ["lib/*"]}, set()),
        ]
    ):
        async with hosting(tmp_path / str(number), own) as it:
            await deploy(it, files)
            await deploy(it, app(1))
            # While the table is made, and with it.
            for _ in range(2):
                seen = {path for path in everything if isinstance(await body(it, path), bytes)}
                assert seen == found
                await deferLater(it.reactor, 0.05)


@within(30)
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (f"{chunk(0)} /app.js 200", b"chunk 0"),
        (f"{chunk(0)} /app.js 200!", b"app 1"),
        (f"{chunk(0)} /elsewhere 301", b"chunk 0"),
        (f"{chunk(0)} /elsewhere 301!", 301),
        (f"/cdn/* {CHUNK.format(':splat')} 200", b"chunk 0"),
        ("/* /index.html 200", b"chunk 0"),
    ],
)
async def test_rules(tmp_path: Path, rule: str, expected: object) -> None:
    """A forced rule wins over an earlier version, and that over a rule that is not forced."""
    async with hosting(tmp_path, {"hostingDialect": "netlify"}) as it:
        await deployed(it, 0)
        await deploy(it, app(1, _redirects=rule.encode()))
        path = f"/cdn/{HASHES[0]}" if rule.startswith("/cdn") else chunk(0)
        assert await body(it, path) == expected


@within(30)
async def test_rules_of_cloudflare(tmp_path: Path) -> None:
    """Every rule of the Cloudflare dialect wins over a file, also of an earlier version."""
    async with hosting(tmp_path) as it:
        await deployed(it, 0)
        await deploy(it, app(1, _redirects=f"{chunk(0)} /app.js 200".encode()))
        assert await body(it, chunk(0)) == b"app 1"


@within(30)
async def test_pages_come_after_files(tmp_path: Path) -> None:
    """An earlier version wins over 404 pages and fallbacks, which are those of the current one."""
    async with hosting(tmp_path, {"fallback": "/index.html"}) as it:
        await deploy(it, app(0, **{"assets/route": b"a file"}))
        await deploy(it, app(1))
        assert await body(it, "/assets/route") == b"a file"
        assert await body(it, "/assets/other") == b"<html>1</html>"
    missing = {"404.html": b"<html>missing</html>"}
    async with hosting(tmp_path / "404") as it:
        await deploy(it, app(0, **missing))
        await deploy(it, app(1, **{"404.html": b"<html>new</html>"}))
        assert await body(it, chunk(0)) == b"chunk 0"
        answer = await get(it, chunk(3), **NAVIGATION)
        assert (answer.status, answer.body) == (404, b"<html>new</html>")


@within(30)
async def test_hosting_files_are_never_served(tmp_path: Path) -> None:
    """Neither `_headers` nor `_redirects` of an earlier version is served."""
    async with hosting(tmp_path, {"keepVersions": {"paths": ["*"]}}) as it:
        [old] = [await deploy(it, app(0, _headers=b"/*\n  X-Old: yes\n", _redirects=b"/a /b"))]
        await deploy(it, app(1))
        for path in ("/_headers", "/_redirects"):
            assert await body(it, path) == 404
            assert await body(it, f"{path}?dpl={old}") == 404


@within(30)
async def test_header_fields(tmp_path: Path) -> None:
    """A file is cached as it was while it was current, with the `_headers` of its version."""
    rule = b"/assets/*\n  X-Version: %d\n"
    async with hosting(tmp_path) as it:
        await deploy(it, app(0, _headers=rule % 0, **{"assets/plain.js": b"plain"}))
        before = [await get(it, path) for path in (chunk(0), "/assets/plain.js")]
        await deploy(it, app(1, _headers=rule % 1))
        after = [await get(it, path) for path in (chunk(0), "/assets/plain.js")]
        for old, new in zip(before, after, strict=True):
            assert _without_date(old) == _without_date(new)
            assert old.body == new.body
        assert [each.headers["cache-control"] for each in after] == [FOR_EVER, CURRENT]
        etag = {"If-None-Match": after[0].headers["etag"]}
        assert (await get(it, chunk(0), **etag)).status == 304
        assert (await get(it, chunk(0), Range="bytes=0-4")).body == b"chunk"


@within(30)
async def test_large_files_and_codings(tmp_path: Path) -> None:
    """Files that are not cached in memory, and coded ones, come from their version as well."""
    large, text = bytes(range(256)) * 1024, b"text " * 1000
    more = {"assets/large.wasm": large, "assets/text.js": text, "assets/text.js.br": b"?"}
    async with hosting(tmp_path) as it:
        await deploy(it, app(0, **more))
        await deploy(it, app(1))
        assert await body(it, "/assets/large.wasm") == large
        assert (await get(it, "/assets/large.wasm", Range="bytes=256-511")).body == bytes(
            range(256)
        )
        for _ in range(50):
            answer = await get(it, "/assets/text.js", Accept_Encoding="gzip")
            if "content-encoding" in answer.headers:
                break
            await deferLater(it.reactor, 0.05)
        assert answer.headers["content-encoding"] == "gzip"
        assert await body(it, "/assets/text.js") == text
        assert [each.digest for each in it.log[-1:]] != [it.store.references.current(_tag(it))]


def _tag(it: Serving) -> Reference:
    return it.config.sites[HOST].reference()


@within(30)
async def test_links(tmp_path: Path) -> None:
    """Links in earlier versions lead to files as in the current one, and loops end."""
    files = {
        **app(0),
        "srv/v1/assets/a.js": b"a",
        "srv/v1/assets/loop": Link(".."),
        "srv/current": Link("v1"),
    }
    async with hosting(tmp_path, {"workdir": "/srv/current"}) as it:
        await deploy(it, files)
        await deploy(it, {"srv/current/x": b"x"})
        for _ in range(3):
            assert await body(it, "/assets/a.js") == b"a"
            assert await body(it, "/assets/loop/assets/a.js") in (b"a", 404)
            assert await body(it, "/assets/missing.js") == 404
            await deferLater(it.reactor, 0.05)


# --- Bounds ---------------------------------------------------------------------------------------


@within(30)
async def test_off(tmp_path: Path) -> None:
    """With `keepVersions: false` a removed file is 404 at once."""
    async with hosting(tmp_path, {"keepVersions": False}) as it:
        digests = await deployed(it, 0, 1)
        assert await body(it, chunk(0)) == 404
        assert await body(it, f"{chunk(0)}?dpl={digests[0]}") == 404


@within(30)
async def test_plain_repositories(tmp_path: Path) -> None:
    """URLs that name a tag have earlier versions only with `keepVersions`."""
    for number, (rules, expected) in enumerate(
        [({}, 404), ({"keepVersions": {"count": 1}}, b"chunk 1"), ({"keepVersions": False}, 404)]
    ):
        async with hosting(tmp_path / str(number), rules=rules) as it:
            tag = Reference.parse(TAG)
            digests = [await deploy(it, app(each), tag) for each in range(3)]
            assert await body(it, f"/{TAG}{chunk(1)}") == expected
            assert await body(it, f"/{TAG}{chunk(0)}") == 404
            exact = f"/{REPOSITORY}@{digests[1]}"
            assert await body(it, exact + chunk(1)) == b"chunk 1"
            assert await body(it, exact + chunk(0)) == 404


@within(30)
async def test_sites_with_other_bounds(tmp_path: Path) -> None:
    """Two sites of one tag keep as many versions as each of them says."""
    config = load(
        {
            "blobserve": {
                "sites": {
                    HOST: {"image": TAG, "keepVersions": {"count": 1}},
                    "all.example.com": TAG,
                    "none.example.com": {"image": TAG, "keepVersions": False},
                }
            }
        }
    )
    async with serving(tmp_path, app(0), sites=config.sites, repos={}) as it:
        await deployed(it, 0, 1, 2)
        for host, expected in (
            (HOST, [404, 200]),
            ("all.example.com", [200, 200]),
            ("none.example.com", [404, 404]),
        ):
            for _ in range(2):
                answers = [await it.fetch(chunk(each), host=host) for each in (0, 1)]
                assert [each.status for each in answers] == expected


@within(60)
async def test_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table with many names holds hashes, and a full one leaves the oldest files out."""
    monkeypatch.setattr(name_table, "MOST_IN_FULL", 100)
    monkeypatch.setattr(name_table, "MOST_NAMES", 3000)
    async with hosting(tmp_path) as it:
        with capturedLogs() as events:
            for number in range(3):
                files = {f"assets/{number}-{each}.js": b"%d" % each for each in range(1500)}
                await deploy(it, {**app(number), **files})
            await deploy(it, app(3))
            await deferLater(it.reactor, 1.5)
            assert await body(it, "/assets/2-1499.js") == b"1499"
            assert await body(it, "/assets/1-77.js") == b"77"
            assert await body(it, "/assets/0-5.js") == 404
        assert [each for each in events if each.get("n", 0) >= 3000]


# --- The choice of a version ----------------------------------------------------------------------


@within(30)
async def test_dpl(tmp_path: Path) -> None:
    """`dpl` chooses among the versions of the tag, by a digest or its first 12 digits."""
    async with hosting(tmp_path) as it:
        digests = await deployed(it, 0, 1, 2)
        for number, digest in enumerate(digests):
            for value in (digest, digest.hex, digest.hex[:12], f"sha256%3A{digest.hex[:20]}"):
                answer = await get(it, f"/app.js?a=b&dpl={value}&c")
                assert answer.body == b"app %d" % number
                assert answer.headers["cache-control"] == FOR_EVER
                assert "vary" not in answer.headers
        # A file that the chosen version does not have comes from the others as usual.
        answer = await get(it, f"{chunk(1)}?dpl={digests[0]}")
        assert (answer.body, answer.headers["cache-control"]) == (b"chunk 1", FOR_EVER)
        answer = await get(it, f"/only-2.json?dpl={digests[0]}")
        assert (answer.body, answer.headers["cache-control"]) == (b"2", CURRENT)


@within(30)
async def test_dpl_without_effect(tmp_path: Path) -> None:
    """Documents, fallbacks, 404 pages and redirects are those of the current version."""
    for number, own in enumerate(({}, {"fallback": "/index.html"})):
        async with hosting(tmp_path / str(number), own) as it:
            page = {"404.html": b"<html>missing</html>", "_redirects": b"/go /app.js 301"}
            old = await deploy(it, app(0, **page, **{"docs/index.html": b"<html>docs</html>"}))
            await deploy(it, app(1))
            for path in ("/", "/index.html", "/route", "/docs", "/docs/", "/go", "/x/"):
                for more in ({}, NAVIGATION):
                    plain = await get(it, path, **more)
                    chosen = await get(it, f"{path}?dpl={old}", **more)
                    assert (plain.status, plain.body) == (chosen.status, chosen.body), path
                    control = plain.headers.get("cache-control")
                    assert chosen.headers.get("cache-control") == control


@within(30)
async def test_unknown_values(tmp_path: Path) -> None:
    """An unknown value is ignored, and adds nothing to the cache of responses."""
    async with hosting(tmp_path) as it:
        digests = await deployed(it, 0, 1)
        other = await deploy(it, app(3), attrs.evolve(_tag(it), tag="other"))
        responses = it.site.images.responder._responses
        await get(it, "/app.js")
        size = responses.size
        for value in (
            *(f"{each:064x}" for each in range(50)),
            digests[0].hex[:11],
            f"sha512:{digests[0].hex[:12]}",
            f"{digests[0]}0",
            other,
            "",
            "%00",
            "x" * 5000,
            "dpl_8xYz",
        ):
            answer = await get(it, f"/app.js?dpl={value}")
            assert (answer.status, answer.body) == (200, b"app 1")
            assert answer.headers["cache-control"] == CURRENT
        assert responses.size == size
        for value in (digests[0].hex[:12], digests[0].hex, digests[0]):
            await get(it, f"/app.js?dpl={value}")
        assert responses.size < 2.5 * size


FLAGS = {"versionHeader": True, "versionCookie": True}


@within(30)
async def test_header_and_cookie(tmp_path: Path) -> None:
    """The query comes before the header field, and that before the cookie."""
    async with hosting(tmp_path, FLAGS) as it:
        a, b, c, _ = await deployed(it, 0, 1, 2, 3)
        unknown = "f" * 64
        for query, header, cookie, expected in (
            (a, b, c, 0),
            (unknown, b, c, 1),
            (unknown, unknown, c, 2),
            (unknown, unknown, unknown, 3),
            (None, b, c, 1),
            (None, None, c, 2),
            (None, None, None, 3),
        ):
            fields = {}
            if header is not None:
                fields["X_Deployment_Id"] = str(header)
            if cookie is not None:
                fields["Cookie"] = f"a=b; __vdpl={cookie}; c=d"
            answer = await get(it, "/app.js" + (f"?dpl={query}" if query else ""), **fields)
            assert answer.body == b"app %d" % expected


@within(30)
async def test_what_the_flags_add(tmp_path: Path) -> None:
    """With the flags, every response says which fields decide; without them, fields are ignored."""
    paths = ["/", "/app.js", chunk(0), "/missing.js", "/%2e%2e/x", "/go", "/docs", "/missing"]
    more = {"docs/index.html": b"<html>docs</html>", "_redirects": b"/go /app.js 301"}
    for number, (own, vary, is_private) in enumerate(
        [
            ({}, set(), False),
            ({"versionHeader": True}, {"X-Deployment-Id"}, False),
            ({"versionCookie": True}, {"Cookie"}, True),
            (FLAGS, {"X-Deployment-Id", "Cookie"}, True),
            ({**FLAGS, "keepVersions": False}, set(), False),
        ]
    ):
        own = {**own, "headers": {"X-Own": "yes", "CDN-Cache-Control": "max-age=60"}}
        async with hosting(tmp_path / str(number), own) as it:
            old = await deploy(it, app(0, **more))
            await deploy(it, app(1, **more))
            for path in paths:
                for method in ("GET", "HEAD", "OPTIONS"):
                    for fields in ({}, {"Accept-Encoding": "br"}, NAVIGATION):
                        answer = await it.fetch(path, method, fields, HOST)
                        listed = set(answer.headers.get("vary", "").split(", ")) - {""}
                        assert vary == listed & {"X-Deployment-Id", "Cookie"}, (path, answer)
                        control = answer.headers.get("cache-control", "")
                        assert control.startswith("private") == is_private, (path, answer)
                        assert ("public" in control and is_private) is False
                        assert is_private is False or "cdn-cache-control" not in answer.headers
            answer = await get(it, "/app.js", X_Deployment_Id=str(old))
            is_chosen = "X-Deployment-Id" in vary
            assert answer.body == (b"app 0" if is_chosen else b"app 1")
            answer = await get(it, "/app.js", Cookie=f"__vdpl={old}")
            assert answer.body == (b"app 0" if "Cookie" in vary else b"app 1")


@within(30)
async def test_flags_of_a_plain_repository(tmp_path: Path) -> None:
    """A repository in `repos` can have all of it, too."""
    rules = {"keepVersions": {}, "versionHeader": True, "versionCookie": True}
    async with hosting(tmp_path, rules=rules) as it:
        tag = Reference.parse(TAG)
        old = await deploy(it, app(0), tag)
        await deploy(it, app(1), tag)
        for fields in ({"X_Deployment_Id": str(old)}, {"Cookie": f"__vdpl={old}"}):
            answer = await get(it, f"/{TAG}/app.js", **fields)
            assert answer.body == b"app 0"
            assert answer.headers["vary"] == "X-Deployment-Id, Cookie"
            assert answer.headers["cache-control"] == CURRENT.replace("public", "private")
        assert (await get(it, f"/{TAG}/app.js?dpl={old}")).body == b"app 0"
        assert (await get(it, f"/{TAG}/app.js")).body == b"app 1"


@within(30)
async def test_forged_values_show_nothing_of_other_repositories(tmp_path: Path) -> None:
    """The digest of another site, tag or repository has the same answer as an unknown one."""
    async with hosting(tmp_path, rules={"keepVersions": {}}) as it:
        await deployed(it, 0, 1)
        tag = Reference.parse(f"{REPOSITORY}:other")
        others = [await deploy(it, app(number), tag) for number in (2, 3)]
        for path in (chunk(2), chunk(3), "/only-2.json", "/app.js"):
            unknown = await get(it, f"{path}?dpl={'f' * 64}")
            for other in others:
                answer = await get(it, f"{path}?dpl={other}")
                assert (answer.status, answer.body) == (unknown.status, unknown.body)
                assert _without_date(answer) == _without_date(unknown)


@within(30)
async def test_the_fast_path(tmp_path: Path) -> None:
    """The fast path gives the same answers, also after a switch, and keeps versions apart."""
    async with hosting(tmp_path, FLAGS) as it:
        old, _ = await deployed(it, 0, 1)
        client = await it.connect()

        async def ask(path: str, *lines: str) -> bytes:
            before = len(client.received)
            head = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {HOST}", *lines, "", ""])
            client.send(head.encode())
            while not client.received[before:].endswith((b"0", b"1", b"2", b".\n")):
                await it.turn()
            return client.received[before:].partition(b"\r\n\r\n")[2]

        for _ in range(3):
            assert await ask("/app.js") == b"app 1"
            assert await ask(f"/app.js?dpl={old}") == b"app 0"
            assert await ask("/app.js", f"X-Deployment-Id: {old}") == b"app 0"
            assert await ask("/app.js", f"Cookie: __vdpl={old}") == b"app 0"
            assert await ask("/app.js", "Cookie: __vdpl=unknown") == b"app 1"
            assert await ask(chunk(0)) == b"chunk 0"
        await deploy(it, app(2))
        assert await ask("/app.js") == b"app 2"
        assert await ask(chunk(1)) == b"chunk 1"
        assert await ask(chunk(0)) == b"chunk 0"
        await it.store.purge(_tag(it).repository, old)
        assert await ask("/app.js", f"X-Deployment-Id: {old}") == b"app 2"
        assert b"no page" in await ask(chunk(0))


# --- Damage, purge, pins --------------------------------------------------------------------------


@within(30)
async def test_damage(tmp_path: Path) -> None:
    """A damaged version is skipped in favour of an older one, and repaired by its digest."""
    name = "assets/both.js"
    async with hosting(tmp_path) as it:
        await deploy(it, app(0, **{name: b"zero"}))
        one = await deploy(it, app(1, **{name: b"one"}))
        await deploy(it, app(2))
        await deferLater(it.reactor, 0.1)
        assert await body(it, f"/{name}") == b"one"
        known = it.store.references.get(_tag(it).at(one))
        assert known is not None
        assert known.image is not None
        gate = it.source.hold("fetch")
        await it.space.set_aside(known.image.digests[0])
        it.store.references.recheck_version(_tag(it))
        for _ in range(3):
            assert (await get(it, f"/{name}")).body == b"zero"
            assert (await get(it, chunk(1))).status == 404
            await deferLater(it.reactor, 0.5)
        assert gate.waiting == 1
        gate.open()
        await deferLater(it.reactor, 0.1)
        assert await body(it, chunk(1)) == b"chunk 1"
        assert await body(it, f"/{name}") == b"one"


@within(30)
async def test_purge(tmp_path: Path) -> None:
    """A purged version is unreachable at once, although its responses were cached."""
    async with hosting(tmp_path, {"keepVersions": {"paths": ["*"]}}, {}) as it:
        digests = await deployed(it, 0, 1, 2)
        urls = [chunk(1), "/only-1.json", f"/app.js?dpl={digests[1]}"]
        for url in urls:
            assert isinstance(await body(it, url), bytes)
        by_digest = f"/{REPOSITORY}@{digests[1]}/app.js"
        assert await body(it, by_digest) == b"app 1"
        await it.store.purge(_tag(it).repository, digests[1])
        assert [await body(it, url) for url in urls] == [404, 404, b"app 2"]
        assert await body(it, by_digest) == 404
        assert await body(it, chunk(0)) == b"chunk 0"


@within(30)
async def test_rollback_is_fast(tmp_path: Path) -> None:
    """A rollback to a kept version takes effect within 100 ms, and is reported as a switch."""
    async with hosting(tmp_path) as it:
        digests = await deployed(it, 0, 1, 2)
        assert await body(it, "/app.js") == b"app 2"
        asked, switches = len(it.source.requests), list[object]()
        it.store.references.on_switch(lambda *each: switches.append(each[1:]))
        began = it.reactor.seconds()
        await it.store.pin(HOST, digests[0])
        assert (await get(it, "/app.js")).body == b"app 0"
        assert it.reactor.seconds() - began < 0.1
        assert switches == [(digests[2], digests[0])]
        assert len(it.source.requests) == asked
        for number in range(3):
            assert await body(it, chunk(number)) == b"chunk %d" % number


@within(60)
async def test_no_gap_after_a_switch(tmp_path: Path) -> None:
    """From the moment of a switch, files of the former version are found without its table."""
    async with hosting(tmp_path) as it:
        await deployed(it, 0, 1)
        for turn in range(20):
            number = turn % 4
            await deploy(it, app(number))
            for other in range(4 if turn > 3 else 1):
                answer = await get(it, chunk(other if turn > 3 else 0))
                assert answer.status == 200, (turn, other)


@within(60)
async def test_missing_paths_cost_little(tmp_path: Path) -> None:
    """A path that no version has costs little more with ten versions than without any."""
    files = {f"assets/{number:04d}-BHxg-xhJ.js": b"x" for number in range(300)}
    spent = dict[bool, list[float]]()
    for is_kept in (False, True):
        own = {} if is_kept else {"keepVersions": False}
        async with hosting(tmp_path / str(is_kept), own) as it:
            for number in range(11):
                await deploy(it, {**files, f"assets/{number}.js": b"%d" % number})
            await deferLater(it.reactor, 2.5)
            assert await body(it, "/assets/3.js") == (b"3" if is_kept else 404)
            spent[is_kept] = []
            for _ in range(7):
                began = process_time()
                for each in range(60):
                    assert (await get(it, f"/assets/missing-{each}.js")).status == 404
                spent[is_kept].append(process_time() - began)
    assert min(spent[True]) < 1.5 * min(spent[False])


def test_rules_without_versions() -> None:
    """A repository keeps no version by default, and a site does, unless its repository says no."""
    assert RepositoryRules().versions is None
    for rules, own, expected in (
        ({}, {}, 10),
        ({"keepVersions": {"count": 3}}, {}, 3),
        ({"keepVersions": {"count": 3}}, {"keepVersions": {"for": "1d"}}, 10),
        ({"keepVersions": False}, {}, None),
        ({}, {"keepVersions": {"count": 0}}, None),
    ):
        keep = configured(own, rules).sites[HOST].rules.versions
        assert (keep and keep.count) == expected


@within(60)
async def test_lookups_stay_in_their_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other thread looks a path up while a table is made: an index has one cursor for that."""
    lookup, threads = IndexReader.lookup, set[int]()

    def watched(reader: IndexReader, path: bytes) -> Entry:
        threads.add(get_ident())
        return lookup(reader, path)

    monkeypatch.setattr(IndexReader, "lookup", watched)
    config = configured({"keepVersions": {"paths": ["assets/*", "*.json"]}})
    disk = OwnThreads(_reactor(), 1, "disk")
    disk.start()
    try:
        async with serving(
            tmp_path, app(0), disk=disk, sites=config.sites, repos=config.repos
        ) as it:
            await deployed(it, 0, 1, 2)
            await deferLater(it.reactor, 0.3)
            assert await body(it, "/only-0.json") == b"0"
            assert await body(it, chunk(0)) == b"chunk 0"
    finally:
        await disk.stopped()
    assert threads == {get_ident()}


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return reactor
